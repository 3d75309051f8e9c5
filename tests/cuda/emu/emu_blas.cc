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
 * The heuristic takes another order along K for other numbers of columns, so
 * that whoever wants the same bits for any number has to keep the algorithm.
 */

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "emu_blas.h"
#include "emu_runtime.h"
#include "emu_thread.h"


#define BLAS_MAGIC  0x626c6173u

struct cublasLtContext {
    uint32_t  magic;
};

struct cublasLtMatmulPref {
    uint64_t  workspace;
    uint32_t  schemes;
    uint32_t  align[4];
};

static std::atomic<int>                 blas_objects;
static std::atomic<unsigned long long>  blas_products[2];
static int                              blas_missing = -1;
static int                              blas_old;
static char                             blas_library;


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


/* --- calls ---------------------------------------------------------------- */

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

    if (emu_queue(stream, "cublasLtMatmul", [p]() { emu_blas_run(&p); })
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
    static const emu_call_t  calls[] = {
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

    return (library == &blas_library) ? emu_call(calls, name) : NULL;
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
