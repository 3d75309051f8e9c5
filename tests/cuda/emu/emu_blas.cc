/*
 * A stand-in for cuBLASLt: D = alpha A^T B + beta C, by columns.
 *
 * What it holds a caller to: attributes of their own size; the combinations of
 * types, transpositions and scale modes that the documentation has; in FP8,
 * dimensions and distances that are multiples of 16 bytes, M and N multiples
 * of 4, scales at 16 bytes.  An algorithm is for the alignment that the
 * preference promised, and a pointer without it ends the program, as do
 * operands that are not in device memory as far as they reach: scales are
 * [L][N] for 128 elements and [M / 128][L up to a multiple of 4] for blocks.
 *
 * Sums are float32, in FP8 of 128 elements, which are scaled and added up.  The
 * order along K is the algorithm's: its step, and how many parts of K are
 * added at the end (where reductions are allowed); the heuristic takes others
 * for other numbers of columns, so that whoever wants the same bits for any
 * number has to keep the algorithm.
 */

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "cublasLt.h"
#include "emu_runtime.h"
#include "emu_thread.h"
#include "emu_types.h"


#define BLAS_MAGIC  0x626c6173u
#define BLAS_LANES  16

struct cublasLtContext {
    uint32_t  magic;
};

struct cublasLtMatmulDesc {
    int32_t      trans[2];
    int32_t      mode[2];            /* of scales */
    const float *scale[2];
};

struct cublasLtMatrixLayout {
    int       type;
    uint64_t  rows;
    uint64_t  cols;
    int64_t   ld;
    int32_t   batch;
    int64_t   stride;
};

struct cublasLtMatmulPref {
    uint64_t  workspace;
    uint32_t  schemes;
    uint32_t  align[4];
};

/* What cublasLtMatmulAlgo_t holds. */

struct algo_t {
    uint32_t  magic;
    uint32_t  types;
    uint32_t  align[2];              /* of A and B, of C and D */
    uint32_t  step;
    uint32_t  parts;
    uint64_t  m;
    uint64_t  k;
    uint64_t  batch;
};

struct product_t {
    cublasLtMatmulDesc    desc;
    cublasLtMatrixLayout  a, b, d;
    algo_t                algo;
    float                 alpha, beta;
    const uint8_t        *pa, *pb;
    const uint8_t        *pc;
    uint8_t              *pd;
};

static_assert(sizeof(algo_t) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm");

static std::atomic<int>                 blas_objects;
static std::atomic<unsigned long long>  blas_products[2];
static int                              blas_missing = -1;
static int                              blas_old;
static char                             blas_library;


static size_t
blas_size(int type)
{
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1;
}


static float
blas_get(int type, const uint8_t *p, size_t i)
{
    float     f;
    uint16_t  h;

    switch (type) {

    case CUDA_R_32F:
        memcpy(&f, p + 4 * i, 4);
        return f;

    case CUDA_R_16BF:
        memcpy(&h, p + 2 * i, 2);
        return emu_from_bf16(h);

    default:
        return emu_from_e4m3(p[i]);
    }
}


/* --- objects ----------------------------------------------------------- */

static cublasStatus_t
blas_create(cublasLtHandle_t *handle)
{
    *handle = new cublasLtContext { BLAS_MAGIC };
    blas_objects++;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_destroy(cublasLtHandle_t handle)
{
    delete handle;
    blas_objects--;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_desc_create(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
    cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    *desc = new cublasLtMatmulDesc();
    blas_objects++;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_desc_destroy(cublasLtMatmulDesc_t desc)
{
    delete desc;
    blas_objects--;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_desc_set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what,
    const void *value, size_t size)
{
    void      *at;
    int32_t    n;
    size_t     want;

    at = NULL;
    want = sizeof(int32_t);

    switch (what) {

    case CUBLASLT_MATMUL_DESC_TRANSA:
    case CUBLASLT_MATMUL_DESC_TRANSB:
        at = &desc->trans[what == CUBLASLT_MATMUL_DESC_TRANSB];
        break;

    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
        if (!blas_old) {
            at = &desc->mode[what == CUBLASLT_MATMUL_DESC_B_SCALE_MODE];
        }

        break;

    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
        at = &desc->scale[what == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER];
        want = sizeof(void *);
        break;
    }

    if (at == NULL || value == NULL || size != want) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    if (want == sizeof(int32_t)) {
        memcpy(&n, value, sizeof(n));

        if (n < 0 || n > CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    }

    memcpy(at, value, size);

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_layout_create(cublasLtMatrixLayout_t *layout, cudaDataType type,
    uint64_t rows, uint64_t cols, int64_t ld)
{
    if (rows == 0 || cols == 0 || ld < (int64_t) rows
        || (type != CUDA_R_32F && type != CUDA_R_16BF
            && type != CUDA_R_8F_E4M3))
    {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    *layout = new cublasLtMatrixLayout { type, rows, cols, ld, 1, 0 };
    blas_objects++;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_layout_destroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    blas_objects--;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_layout_set(cublasLtMatrixLayout_t layout,
    cublasLtMatrixLayoutAttribute_t what, const void *value, size_t size)
{
    if (what == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT
        && size == sizeof(layout->batch))
    {
        memcpy(&layout->batch, value, size);
        return layout->batch > 0 ? CUBLAS_STATUS_SUCCESS
                                 : CUBLAS_STATUS_INVALID_VALUE;
    }

    if (what == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET
        && size == sizeof(layout->stride))
    {
        memcpy(&layout->stride, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }

    return CUBLAS_STATUS_INVALID_VALUE;
}


static cublasStatus_t
blas_pref_create(cublasLtMatmulPreference_t *pref)
{
    *pref = new cublasLtMatmulPref { 0, CUBLASLT_REDUCTION_SCHEME_MASK,
                                     { 256, 256, 256, 256 } };
    blas_objects++;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_pref_destroy(cublasLtMatmulPreference_t pref)
{
    delete pref;
    blas_objects--;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_pref_set(cublasLtMatmulPreference_t pref,
    cublasLtMatmulPreferenceAttributes_t what, const void *value, size_t size)
{
    void    *at;
    size_t   want;

    want = sizeof(uint32_t);

    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        at = &pref->workspace;
        want = sizeof(uint64_t);

    } else if (what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
        at = &pref->schemes;

    } else {
        at = &pref->align[what - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES];
    }

    if (size != want) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    memcpy(at, value, size);

    return CUBLAS_STATUS_SUCCESS;
}


/* --- what there is for a product ---------------------------------------- */

/* Shapes that fit each other; by operation. */

static int
blas_fits(const cublasLtMatmulDesc *d, const cublasLtMatrixLayout *a,
    const cublasLtMatrixLayout *b, const cublasLtMatrixLayout *c,
    const cublasLtMatrixLayout *out)
{
    uint64_t  m, n, k;

    m = d->trans[0] ? a->cols : a->rows;
    k = d->trans[0] ? a->rows : a->cols;
    n = d->trans[1] ? b->rows : b->cols;

    return (d->trans[1] ? b->cols : b->rows) == k
           && out->rows == m && out->cols == n
           && c->rows == m && c->cols == n && c->type == out->type
           && a->batch == b->batch && a->batch == c->batch
           && a->batch == out->batch;
}


static cublasStatus_t
blas_supported(const cublasLtMatmulDesc *d, const cublasLtMatrixLayout *a,
    const cublasLtMatrixLayout *b, const cublasLtMatrixLayout *c,
    const cublasLtMatrixLayout *out)
{
    int  fp8;

    if (!blas_fits(d, a, b, c, out)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    fp8 = a->type == CUDA_R_8F_E4M3;

    /* what the engine asks for; the library has more */

    if (d->trans[0] != CUBLAS_OP_T || d->trans[1] != CUBLAS_OP_N
        || a->type != b->type || a->type == CUDA_R_32F
        || (out->type != CUDA_R_32F && out->type != CUDA_R_16BF))
    {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }

    if (!fp8) {
        return d->mode[0] == 0 && d->mode[1] == 0
               && d->scale[0] == NULL && d->scale[1] == NULL
               ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    }

    /* one value for a matrix is not asked for */

    if ((d->mode[0] != CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F
         && d->mode[0] != CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F)
        || (d->mode[1] != CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F
            && d->mode[1] != CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F)
        || (d->mode[0] == d->mode[1]
            && d->mode[0] == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F))
    {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }

    if (d->scale[0] == NULL || d->scale[1] == NULL
        || (uintptr_t) d->scale[0] % 16 != 0
        || (uintptr_t) d->scale[1] % 16 != 0)
    {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    return a->rows % 16 == 0 && a->ld % 16 == 0 && b->ld % 16 == 0
           && out->rows * blas_size(out->type) % 16 == 0
           && out->ld * blas_size(out->type) % 16 == 0
           && out->rows % 4 == 0 && out->cols % 4 == 0 && a->batch == 1
           ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}


static uint32_t
blas_types(const cublasLtMatrixLayout *a, const cublasLtMatrixLayout *d)
{
    return (uint32_t) (a->type << 8 | d->type);
}


static size_t
blas_workspace(const algo_t *algo, const cublasLtMatrixLayout *d)
{
    return algo->parts > 1 ? d->rows * d->cols * d->batch * algo->parts * 4
                           : 0;
}


static cublasStatus_t
blas_heuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t pref, int most,
    cublasLtMatmulHeuristicResult_t *result, int *n)
{
    algo_t          algo;
    cublasStatus_t  rc;

    *n = 0;

    if (handle->magic != BLAS_MAGIC || most < 1) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    rc = blas_supported(desc, a, b, c, d);

    if (rc != CUBLAS_STATUS_SUCCESS) {
        return rc;
    }

    memset(&algo, 0, sizeof(algo));
    algo.magic = BLAS_MAGIC;
    algo.types = blas_types(a, d);
    algo.align[0] = pref->align[0] < pref->align[1] ? pref->align[0]
                                                    : pref->align[1];
    algo.align[1] = pref->align[2] < pref->align[3] ? pref->align[2]
                                                    : pref->align[3];
    algo.m = d->rows;
    algo.k = a->rows;
    algo.batch = (uint64_t) d->batch;
    algo.step = d->cols < 8 ? 32 : d->cols < 64 ? 64 : 128;
    algo.parts = (pref->schemes != CUBLASLT_REDUCTION_SCHEME_NONE
                  && d->cols < 32 && a->rows >= 256) ? 2 : 1;

    if (a->type == CUDA_R_8F_E4M3) {
        if (algo.align[0] < 16 || algo.align[1] < 16) {
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }

        algo.step = 128;
    }

    if (blas_workspace(&algo, d) > pref->workspace) {
        algo.parts = 1;
    }

    memset(result, 0, sizeof(*result));
    memcpy(&result->algo, &algo, sizeof(algo));
    result->workspaceSize = blas_workspace(&algo, d);
    *n = 1;

    return CUBLAS_STATUS_SUCCESS;
}


static cublasStatus_t
blas_check(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
    cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    const cublasLtMatmulAlgo_t *which,
    cublasLtMatmulHeuristicResult_t *result)
{
    algo_t          algo;
    cublasStatus_t  rc;

    memcpy(&algo, which, sizeof(algo));
    rc = blas_supported(desc, a, b, c, d);

    if (rc != CUBLAS_STATUS_SUCCESS) {
        return rc;
    }

    if (algo.magic != BLAS_MAGIC || algo.types != blas_types(a, d)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }

    memset(result, 0, sizeof(*result));
    result->algo = *which;
    result->workspaceSize = blas_workspace(&algo, d);

    return CUBLAS_STATUS_SUCCESS;
}


/* --- products ----------------------------------------------------------- */

/* A column's elements from … to, in the algorithm's order. */

static float
blas_sum(const product_t *p, const float *a, const float *b, size_t from,
    size_t to)
{
    float   sum, lane[BLAS_LANES];
    size_t  i, j, end;

    sum = 0;

    for (i = from; i < to; i = end) {
        end = (i + p->algo.step < to) ? i + p->algo.step : to;
        memset(lane, 0, sizeof(lane));

        for (j = i; j + BLAS_LANES <= end; j += BLAS_LANES) {
            for (int l = 0; l < BLAS_LANES; l++) {
                lane[l] += a[j + (size_t) l] * b[j + (size_t) l];
            }
        }

        for (int l = 0; l < BLAS_LANES; l++) {
            sum += lane[l];
        }

        for (; j < end; j++) {
            sum += a[j] * b[j];
        }
    }

    return sum;
}


static float
blas_scale(const product_t *p, int of, size_t i, size_t block)
{
    size_t  blocks;

    blocks = (p->a.rows + 127) / 128;

    if (p->desc.mode[of] == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
        return p->desc.scale[of][block * (of ? p->d.cols : p->d.rows) + i];
    }

    return p->desc.scale[of][i / 128 * ((blocks + 3) / 4 * 4) + block];
}


static float
blas_element(const product_t *p, const float *a, const float *b, size_t row,
    size_t col)
{
    float   sum;
    size_t  k, i, end, part;

    k = p->a.rows;
    sum = 0;

    if (p->a.type == CUDA_R_8F_E4M3) {
        for (i = 0; i < k; i += 128) {
            end = (i + 128 < k) ? i + 128 : k;
            sum += blas_sum(p, a, b, i, end)
                   * (blas_scale(p, 0, row, i / 128)
                      * blas_scale(p, 1, col, i / 128));
        }

        return sum;
    }

    part = (k / p->algo.parts + 127) / 128 * 128;

    for (i = 0; i < k; i += part) {
        sum += blas_sum(p, a, b, i, i + part < k ? i + part : k);
    }

    return sum;
}


static void
blas_run(const product_t *p)
{
    float               v;
    size_t              m, n, k, i, j, e, at, batch, size;
    uint16_t            h;
    std::vector<float>  a, b;

    m = p->d.rows;
    n = p->d.cols;
    k = p->a.rows;
    size = blas_size(p->a.type);
    a.resize(m * k);
    b.resize(k);

    for (batch = 0; batch < (size_t) p->d.batch; batch++) {
        const uint8_t  *pa = p->pa + batch * p->a.stride * size;
        const uint8_t  *pb = p->pb + batch * p->b.stride * size;

        for (i = 0; i < m; i++) {
            for (e = 0; e < k; e++) {
                a[i * k + e] = blas_get(p->a.type, pa, i * p->a.ld + e);
            }
        }

        for (j = 0; j < n; j++) {
            for (e = 0; e < k; e++) {
                b[e] = blas_get(p->b.type, pb, j * p->b.ld + e);
            }

            for (i = 0; i < m; i++) {
                at = batch * p->d.stride + j * p->d.ld + i;
                v = p->alpha * blas_element(p, &a[i * k], b.data(), i, j);

                if (p->beta != 0) {
                    v += p->beta * blas_get(p->d.type, p->pc, at);
                }

                if (p->d.type == CUDA_R_32F) {
                    memcpy(p->pd + 4 * at, &v, 4);

                } else {
                    h = emu_to_bf16(v);
                    memcpy(p->pd + 2 * at, &h, 2);
                }
            }
        }
    }
}


static void
blas_reaches(const void *p, size_t size, const char *what)
{
    size_t  left;

    if (emu_place(p, &left) != EMU_DEVICE || left < size) {
        emu_fatal("cuBLASLt: %s reaches %zu bytes from %p, and of device "
                  "memory there are %zu", what, size, p, left);
    }
}


static void
blas_operand(const cublasLtMatrixLayout *l, const void *p, size_t align,
    const char *what)
{
    size_t  size;

    size = blas_size(l->type);

    if ((uintptr_t) p % align != 0 || l->ld * size % align != 0
        || (l->batch > 1 && l->stride * size % align != 0))
    {
        emu_fatal("cuBLASLt: %s at %p, lines of %zu bytes, is not at %zu "
                  "bytes, as its algorithm was chosen for", what, p,
                  l->ld * size, align);
    }

    blas_reaches(p, ((size_t) (l->batch - 1) * l->stride
                     + (l->cols - 1) * l->ld + l->rows) * size, what);
}


static void
blas_scales(const cublasLtMatmulDesc *d, int of, size_t lines, size_t k)
{
    size_t  blocks;

    blocks = (k + 127) / 128;

    blas_reaches(d->scale[of],
                 d->mode[of] == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F
                 ? lines * blocks * 4
                 : (lines + 127) / 128 * ((blocks + 3) / 4 * 4) * 4,
                 of ? "the scales of B" : "the scales of A");
}


static cublasStatus_t
blas_matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
    const void *alpha, const void *a, cublasLtMatrixLayout_t la,
    const void *b, cublasLtMatrixLayout_t lb, const void *beta, const void *c,
    cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,
    const cublasLtMatmulAlgo_t *which, void *workspace, size_t size,
    cudaStream_t stream)
{
    int             fp8;
    product_t       p;
    cublasStatus_t  rc;

    if (handle->magic != BLAS_MAGIC || a == NULL || b == NULL || c == NULL
        || d == NULL || which == NULL || alpha == NULL || beta == NULL)
    {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    rc = blas_supported(desc, la, lb, lc, ld);

    if (rc != CUBLAS_STATUS_SUCCESS) {
        return rc;
    }

    memcpy(&p.algo, which, sizeof(p.algo));

    if (p.algo.magic != BLAS_MAGIC || p.algo.types != blas_types(la, ld)
        || p.algo.m != ld->rows || p.algo.k != la->rows
        || p.algo.batch != (uint64_t) ld->batch
        || blas_workspace(&p.algo, ld) > size
        || (size != 0 && (uintptr_t) workspace % 256 != 0)
        || (c == d && lc->ld != ld->ld))
    {
        return CUBLAS_STATUS_INVALID_VALUE;
    }

    fp8 = la->type == CUDA_R_8F_E4M3;
    blas_operand(la, a, p.algo.align[0], "A");
    blas_operand(lb, b, p.algo.align[0], "B");
    blas_operand(lc, c, p.algo.align[1], "C");
    blas_operand(ld, d, p.algo.align[1], "D");

    if (size != 0) {
        blas_reaches(workspace, size, "the workspace");
    }

    if (fp8) {
        blas_scales(desc, 0, ld->rows, la->rows);
        blas_scales(desc, 1, ld->cols, la->rows);
    }

    p.desc = *desc;
    p.a = *la;
    p.b = *lb;
    p.d = *ld;
    p.pa = (const uint8_t *) a;
    p.pb = (const uint8_t *) b;
    p.pc = (const uint8_t *) c;
    p.pd = (uint8_t *) d;
    memcpy(&p.alpha, alpha, sizeof(p.alpha));
    memcpy(&p.beta, beta, sizeof(p.beta));

    if (emu_queue(stream, "cublasLtMatmul", [p]() { blas_run(&p); })
        != cudaSuccess)
    {
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }

    blas_products[0]++;
    blas_products[1] += (unsigned) fp8;

    return CUBLAS_STATUS_SUCCESS;
}


/* --- the library ------------------------------------------------------- */

void *
emu_blas_dlopen(const char *name, int)
{
    if (blas_missing < 0) {
        blas_missing = getenv("CU_EMU_BLAS") == NULL;
    }

    if (!blas_missing && strcmp(name, "libcublasLt.so.13") == 0) {
        return &blas_library;
    }

    return dlopen("libcublasLt-is-not-here.so", RTLD_NOW);
}


void *
emu_blas_dlsym(void *library, const char *name)
{
    static const struct {
        const char  *name;
        void        *f;
    } calls[] = {
        { "cublasLtCreate", (void *) blas_create },
        { "cublasLtDestroy", (void *) blas_destroy },
        { "cublasLtMatmul", (void *) blas_matmul },
        { "cublasLtMatmulDescCreate", (void *) blas_desc_create },
        { "cublasLtMatmulDescDestroy", (void *) blas_desc_destroy },
        { "cublasLtMatmulDescSetAttribute", (void *) blas_desc_set },
        { "cublasLtMatrixLayoutCreate", (void *) blas_layout_create },
        { "cublasLtMatrixLayoutDestroy", (void *) blas_layout_destroy },
        { "cublasLtMatrixLayoutSetAttribute", (void *) blas_layout_set },
        { "cublasLtMatmulPreferenceCreate", (void *) blas_pref_create },
        { "cublasLtMatmulPreferenceDestroy", (void *) blas_pref_destroy },
        { "cublasLtMatmulPreferenceSetAttribute", (void *) blas_pref_set },
        { "cublasLtMatmulAlgoGetHeuristic", (void *) blas_heuristic },
        { "cublasLtMatmulAlgoCheck", (void *) blas_check }
    };

    if (library != &blas_library) {
        return NULL;
    }

    for (auto &c : calls) {
        if (strcmp(c.name, name) == 0) {
            return c.f;
        }
    }

    return NULL;
}


void
emu_blas_missing(int missing)
{
    blas_missing = missing;
}


void
emu_blas_old(int old)
{
    blas_old = old;
}


unsigned long long
emu_blas_products(int fp8)
{
    return blas_products[fp8 != 0];
}


int
emu_blas_open(void)
{
    return blas_objects;
}
