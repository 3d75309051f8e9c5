/*
 * Products through cuBLASLt, which is loaded when a backend is opened: a build
 * with CUDA starts where its libraries are not.
 *
 * cuBLASLt's matrices are by columns.  Ours, y [rows][n] = x [rows][k] w^T, is
 * the same memory as Y = W^T X with Y n by rows, W k by n and X k by rows.
 *
 * FP8 wants libraries of CUDA 12.9 or newer.  Scales of W are its mode of
 * blocks of 128 x 128: along k one after another, a row of them a multiple of
 * four; those of X its mode of 128 elements: [k / 128][rows], which is how
 * cu_act() makes them if rows are a multiple of four, as be_cuda_step.c sees to
 * in large steps.  Other shapes, and few rows, are left to cu_gemm().
 *
 * What the heuristic chose for a shape is kept; with recorded steps' few sizes
 * these are few.  With `fixed` it chooses once for a shape of matrix, without
 * sums over parts of K, and that algorithm serves any number of rows: an
 * element's sum along K is then the same whatever else the tile holds.
 */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"

#include <cublasLt.h>

#ifdef CU_EMU
#define dlopen  emu_blas_dlopen
#define dlsym   emu_blas_dlsym
#define dlclose(library)  0
#endif


#define BLAS_WORKSPACE  (32u << 20)
#define BLAS_PLANS      1024         /* a power of two */
#define BLAS_FIXED      64           /* rows that an algorithm is chosen for,
                                        if it is the same for all */
#define BLAS_FP8_ROWS   128          /* at least */


typedef struct {
    uint64_t                n;       /* 0: free */
    uint64_t                k;
    uint64_t                rows;
    uint64_t                ldw;
    uint64_t                ldx;
    uint64_t                ldy;
    uint64_t                batch;
    uint64_t                stride[3];
    uint64_t                align;   /* of all three, bytes */
    uint64_t                narrow;
    uint64_t                add;
    uint64_t                fp8;
} blas_shape_t;

typedef struct {
    blas_shape_t            shape;
    int                     none;    /* 1: there is no algorithm; -1: or a call
                                        has failed */
    cublasLtMatrixLayout_t  w;
    cublasLtMatrixLayout_t  x;
    cublasLtMatrixLayout_t  y;
    cublasLtMatmulAlgo_t    algo;
} blas_plan_t;

struct cuda_blas_s {
    void                       *library;
    cublasLtHandle_t            handle;
    cublasLtMatmulDesc_t        desc;
    cublasLtMatmulDesc_t        desc_fp8;    /* NULL: it has no such scales */
    cublasLtMatmulPreference_t  preference;
    void                       *workspace;
    blas_plan_t                *plan;        /* [BLAS_PLANS] */
    uint32_t                    n_plans;
    int                         fixed;

    cublasStatus_t (*create)(cublasLtHandle_t *);
    cublasStatus_t (*destroy)(cublasLtHandle_t);
    cublasStatus_t (*matmul)(cublasLtHandle_t, cublasLtMatmulDesc_t,
        const void *, const void *, cublasLtMatrixLayout_t, const void *,
        cublasLtMatrixLayout_t, const void *, const void *,
        cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t,
        const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t);
    cublasStatus_t (*desc_create)(cublasLtMatmulDesc_t *,
        cublasComputeType_t, cudaDataType_t);
    cublasStatus_t (*desc_destroy)(cublasLtMatmulDesc_t);
    cublasStatus_t (*desc_set)(cublasLtMatmulDesc_t,
        cublasLtMatmulDescAttributes_t, const void *, size_t);
    cublasStatus_t (*layout_create)(cublasLtMatrixLayout_t *, cudaDataType,
        uint64_t, uint64_t, int64_t);
    cublasStatus_t (*layout_destroy)(cublasLtMatrixLayout_t);
    cublasStatus_t (*layout_set)(cublasLtMatrixLayout_t,
        cublasLtMatrixLayoutAttribute_t, const void *, size_t);
    cublasStatus_t (*preference_create)(cublasLtMatmulPreference_t *);
    cublasStatus_t (*preference_destroy)(cublasLtMatmulPreference_t);
    cublasStatus_t (*preference_set)(cublasLtMatmulPreference_t,
        cublasLtMatmulPreferenceAttributes_t, const void *, size_t);
    cublasStatus_t (*heuristic)(cublasLtHandle_t, cublasLtMatmulDesc_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t *,
        int *);
    cublasStatus_t (*check)(cublasLtHandle_t, cublasLtMatmulDesc_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        const cublasLtMatmulAlgo_t *, cublasLtMatmulHeuristicResult_t *);
};


static int blas_load(cuda_blas_t *blas, char *err);
static cublasLtMatmulDesc_t blas_desc(cuda_blas_t *blas);
static void blas_desc_fp8(cuda_blas_t *blas);
static int blas_fp8(cuda_blas_t *blas, const cu_mm_t *p);
static void blas_shape(const cu_mm_t *p, blas_shape_t *s);
static uint32_t blas_align(const void *p, size_t ld, size_t stride);
static blas_plan_t *blas_plan(cuda_blas_t *blas, const blas_shape_t *s);
static int blas_choose(cuda_blas_t *blas, blas_plan_t *plan);
static int blas_layout(cuda_blas_t *blas, cublasLtMatrixLayout_t *layout,
    cudaDataType type, uint64_t rows, uint64_t cols, uint64_t ld,
    uint64_t batch, uint64_t stride);
static void blas_plan_free(cuda_blas_t *blas, blas_plan_t *plan);


cuda_blas_t *
be_cuda_blas_open(int fixed, char *err)
{
    size_t               size;
    cuda_blas_t         *blas;
    uint32_t             none;

    blas = calloc(1, sizeof(cuda_blas_t));
    if (blas == NULL) {
        snprintf(err, ERR_LEN, "no memory");
        return NULL;
    }

    if (blas_load(blas, err) != 0) {
        goto failed;
    }

    blas->fixed = fixed;
    blas->plan = calloc(BLAS_PLANS, sizeof(blas_plan_t));
    size = BLAS_WORKSPACE;
    none = CUBLASLT_REDUCTION_SCHEME_NONE;

    if (blas->plan == NULL || blas->create(&blas->handle) != 0) {
        snprintf(err, ERR_LEN, "cuBLASLt cannot be started");
        goto failed;
    }

    blas->desc = blas_desc(blas);

    if (blas->desc == NULL
        || blas->preference_create(&blas->preference) != 0
        || blas->preference_set(blas->preference,
                                CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                &size, sizeof(size)) != 0
        || (fixed
            && blas->preference_set(blas->preference,
                                CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                &none, sizeof(none)) != 0)
        || cudaMalloc(&blas->workspace, size) != 0)
    {
        snprintf(err, ERR_LEN, "cuBLASLt cannot be started");
        (void) cudaGetLastError();
        goto failed;
    }

    blas_desc_fp8(blas);

    return blas;

failed:

    be_cuda_blas_close(blas);

    return NULL;
}


static int
blas_load(cuda_blas_t *blas, char *err)
{
    uint32_t  i;

    static const char *const  names[] = {
        "libcublasLt.so.13", "libcublasLt.so.12"
    };

    const struct {
        void        *at;
        const char  *name;
    } calls[] = {
        { &blas->create, "cublasLtCreate" },
        { &blas->destroy, "cublasLtDestroy" },
        { &blas->matmul, "cublasLtMatmul" },
        { &blas->desc_create, "cublasLtMatmulDescCreate" },
        { &blas->desc_destroy, "cublasLtMatmulDescDestroy" },
        { &blas->desc_set, "cublasLtMatmulDescSetAttribute" },
        { &blas->layout_create, "cublasLtMatrixLayoutCreate" },
        { &blas->layout_destroy, "cublasLtMatrixLayoutDestroy" },
        { &blas->layout_set, "cublasLtMatrixLayoutSetAttribute" },
        { &blas->preference_create, "cublasLtMatmulPreferenceCreate" },
        { &blas->preference_destroy, "cublasLtMatmulPreferenceDestroy" },
        { &blas->preference_set, "cublasLtMatmulPreferenceSetAttribute" },
        { &blas->heuristic, "cublasLtMatmulAlgoGetHeuristic" },
        { &blas->check, "cublasLtMatmulAlgoCheck" }
    };

    /* It leaves threads' destructors behind, so its code stays. */

    for (i = 0; i < 2 && blas->library == NULL; i++) {
        blas->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL
                                         | RTLD_NODELETE);
    }

    if (blas->library == NULL) {
        snprintf(err, ERR_LEN, "%s", dlerror());
        return -1;
    }

    for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        *(void **) calls[i].at = dlsym(blas->library, calls[i].name);

        if (*(void **) calls[i].at == NULL) {
            snprintf(err, ERR_LEN, "libcublasLt has no %s", calls[i].name);
            return -1;
        }
    }

    return 0;
}


/* W is to be turned. */

static cublasLtMatmulDesc_t
blas_desc(cuda_blas_t *blas)
{
    cublasOperation_t     turn;
    cublasLtMatmulDesc_t  desc;

    turn = CUBLAS_OP_T;

    if (blas->desc_create(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) != 0) {
        return NULL;
    }

    if (blas->desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &turn,
                       sizeof(turn)) != 0)
    {
        (void) blas->desc_destroy(desc);
        return NULL;
    }

    return desc;
}


static void
blas_desc_fp8(cuda_blas_t *blas)
{
    int32_t               w, x;
    cublasLtMatmulDesc_t  desc;

    w = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    x = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    desc = blas_desc(blas);

    if (desc == NULL) {
        return;
    }

    if (blas->desc_set(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &w,
                       sizeof(w)) != 0
        || blas->desc_set(desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &x,
                          sizeof(x)) != 0)
    {
        (void) blas->desc_destroy(desc);
        return;
    }

    blas->desc_fp8 = desc;
}


void
be_cuda_blas_close(cuda_blas_t *blas)
{
    uint32_t  i;

    if (blas == NULL) {
        return;
    }

    for (i = 0; blas->plan != NULL && i < BLAS_PLANS; i++) {
        blas_plan_free(blas, &blas->plan[i]);
    }

    if (blas->preference != NULL) {
        (void) blas->preference_destroy(blas->preference);
    }

    if (blas->desc_fp8 != NULL) {
        (void) blas->desc_destroy(blas->desc_fp8);
    }

    if (blas->desc != NULL) {
        (void) blas->desc_destroy(blas->desc);
    }

    if (blas->handle != NULL) {
        (void) blas->destroy(blas->handle);
    }

    (void) cudaFree(blas->workspace);

    if (blas->library != NULL) {
        (void) dlclose(blas->library);
    }

    free(blas->plan);
    free(blas);
}


int
be_cuda_blas_mm(be_cuda_t *cuda, cuda_blas_t *blas, const cu_mm_t *p)
{
    float           alpha, beta;
    blas_plan_t    *plan;
    blas_shape_t    s, one;
    cublasStatus_t  rc;

    blas_shape(p, &s);

    if (p->m.type == CU_MM_FP8) {
        if (s.align < 16 || !blas_fp8(blas, p)) {
            return 1;
        }

    } else if (p->m.type != CU_MM_BF16

               /* Tensor cores are fed 16 bytes at a time. */

               || (s.align < 16 && p->m.n * (uint64_t) p->m.k < 65536))
    {
        return 1;
    }

    /* Without an algorithm for these rows there is none for any. */

    if (blas->fixed) {
        one = s;
        one.rows = BLAS_FIXED;

        if (blas_plan(blas, &one)->none > 0) {
            return 1;
        }
    }

    plan = blas_plan(blas, &s);

    if (plan->none) {

        /* Some rows by one arithmetic and some by another is not `fixed`. */

        if (blas->fixed) {
            be_cuda_fail(cuda, "cuBLASLt has no algorithm for %u products of "
                         "%u x %u with any number of rows, as with %u",
                         p->batch, p->m.n, p->m.k, p->rows);
            return -1;
        }

        return 1;
    }

    alpha = 1.0f;
    beta = p->add ? 1.0f : 0.0f;

    rc = blas->matmul(blas->handle, s.fp8 ? blas->desc_fp8 : blas->desc,
                      &alpha, p->m.w, plan->w, p->x.x, plan->x, &beta, p->y,
                      plan->y, p->y, plan->y, &plan->algo, blas->workspace,
                      BLAS_WORKSPACE, cuda->stream);

    if (rc != CUBLAS_STATUS_SUCCESS) {
        be_cuda_fail(cuda, "CUDA device %d: cuBLASLt failed with status %d in "
                     "a product of %u rows with a matrix of %u x %u",
                     cuda->device, (int) rc, p->rows, p->m.n, p->m.k);
        return -1;
    }

    return 0;
}


/* Whether it can have this one; the scales are told to the library. */

static int
blas_fp8(cuda_blas_t *blas, const cu_mm_t *p)
{
    uint32_t     groups;
    const void  *w, *x;

    w = p->m.scale;
    x = p->x.scale;
    groups = (p->m.k + CU_GROUP - 1) / CU_GROUP;

    return blas->desc_fp8 != NULL
           && p->batch == 1
           && p->rows >= BLAS_FP8_ROWS
           && p->rows % 4 == 0
           && p->x.ld_scale == p->rows
           && p->m.n % 16 == 0
           && p->m.k % 16 == 0
           && groups % 4 == 0
           && p->m.ld_scale == groups
           && (uintptr_t) w % 16 == 0
           && (uintptr_t) x % 16 == 0
           && blas->desc_set(blas->desc_fp8,
                             CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w,
                             sizeof(w)) == 0
           && blas->desc_set(blas->desc_fp8,
                             CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x,
                             sizeof(x)) == 0;
}


static void
blas_shape(const cu_mm_t *p, blas_shape_t *s)
{
    size_t    size;
    uint32_t  a, b;

    memset(s, 0, sizeof(blas_shape_t));

    s->n = p->m.n;
    s->k = p->m.k;
    s->rows = p->rows;
    s->ldw = p->m.ld;
    s->ldx = p->x.ld;
    s->ldy = p->ldy;
    s->batch = p->batch;
    s->narrow = p->narrow;
    s->add = p->add;
    s->fp8 = (p->m.type == CU_MM_FP8);
    size = s->fp8 ? 1 : 2;

    if (p->batch > 1) {
        s->stride[0] = p->stride_w;
        s->stride[1] = p->stride_x;
        s->stride[2] = p->stride_y;
    }

    a = blas_align(p->m.w, p->m.ld * size, s->stride[0] * size);
    b = blas_align(p->x.x, p->x.ld * size, s->stride[1] * size);
    a = a < b ? a : b;
    b = blas_align(p->y, p->ldy * (p->narrow ? 2 : 4),
                   s->stride[2] * (p->narrow ? 2 : 4));
    s->align = a < b ? a : b;
}


static uint32_t
blas_align(const void *p, size_t ld, size_t stride)
{
    uint32_t  i;

    for (i = 16; i > 1; i /= 2) {
        if (((uintptr_t) p | ld | stride) % i == 0) {
            break;
        }
    }

    return i;
}


static blas_plan_t *
blas_plan(cuda_blas_t *blas, const blas_shape_t *s)
{
    size_t         i;
    uint64_t       h;
    blas_plan_t   *plan;

    h = s->n * 0x9e3779b97f4a7c15u ^ s->k * 0xbf58476d1ce4e5b9u
        ^ s->rows * 0x94d049bb133111ebu ^ s->batch << 7 ^ s->add
        ^ s->narrow << 1 ^ s->fp8 << 2;
    h ^= h >> 29;

    for (i = 0; i < BLAS_PLANS; i++) {
        plan = &blas->plan[(h + i) % BLAS_PLANS];

        if (plan->shape.n == 0) {
            break;
        }

        if (memcmp(&plan->shape, s, sizeof(blas_shape_t)) == 0) {
            return plan;
        }
    }

    /* Prompts come in any length: what was kept makes room, all at once. */

    if (blas->n_plans == BLAS_PLANS / 2) {
        for (i = 0; i < BLAS_PLANS; i++) {
            blas_plan_free(blas, &blas->plan[i]);
        }

        blas->n_plans = 0;
        plan = &blas->plan[h % BLAS_PLANS];
    }

    plan->shape = *s;
    blas->n_plans++;
    plan->none = blas_choose(blas, plan);

    return plan;
}


/* 0, or as plan->none. */

static int
blas_choose(cuda_blas_t *blas, blas_plan_t *plan)
{
    int                               n;
    uint32_t                          align;
    blas_plan_t                      *same;
    cudaDataType                      type;
    blas_shape_t                      one;
    cublasStatus_t                    rc;
    const blas_shape_t               *s;
    cublasLtMatmulDesc_t              desc;
    cublasLtMatmulHeuristicResult_t   found;

    s = &plan->shape;
    align = (uint32_t) s->align;
    type = s->fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    desc = s->fp8 ? blas->desc_fp8 : blas->desc;

    if (blas_layout(blas, &plan->w, type, s->k, s->n, s->ldw, s->batch,
                    s->stride[0]) != 0
        || blas_layout(blas, &plan->x, type, s->k, s->rows, s->ldx, s->batch,
                       s->stride[1]) != 0
        || blas_layout(blas, &plan->y, s->narrow ? CUDA_R_16BF : CUDA_R_32F,
                       s->n, s->rows, s->ldy, s->batch, s->stride[2]) != 0
        || blas->preference_set(blas->preference,
                                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                &align, sizeof(align)) != 0
        || blas->preference_set(blas->preference,
                                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                &align, sizeof(align)) != 0
        || blas->preference_set(blas->preference,
                                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                &align, sizeof(align)) != 0
        || blas->preference_set(blas->preference,
                                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                                &align, sizeof(align)) != 0)
    {
        return -1;
    }

    if (blas->fixed && s->rows != BLAS_FIXED) {
        one = *s;
        one.rows = BLAS_FIXED;
        same = blas_plan(blas, &one);
        plan->algo = same->algo;

        return (same->none
                || blas->check(blas->handle, desc, plan->w, plan->x, plan->y,
                               plan->y, &plan->algo, &found) != 0
                || found.workspaceSize > BLAS_WORKSPACE) ? -1 : 0;
    }

    n = 0;
    rc = blas->heuristic(blas->handle, desc, plan->w, plan->x, plan->y,
                         plan->y, blas->preference, 1, &found, &n);

    if (rc != CUBLAS_STATUS_SUCCESS || n == 0) {
        return (rc == CUBLAS_STATUS_SUCCESS
                || rc == CUBLAS_STATUS_NOT_SUPPORTED) ? 1 : -1;
    }

    plan->algo = found.algo;

    return 0;
}


static int
blas_layout(cuda_blas_t *blas, cublasLtMatrixLayout_t *layout,
    cudaDataType type, uint64_t rows, uint64_t cols, uint64_t ld,
    uint64_t batch, uint64_t stride)
{
    int32_t  count;
    int64_t  offset;

    if (blas->layout_create(layout, type, rows, cols, (int64_t) ld) != 0) {
        *layout = NULL;
        return -1;
    }

    if (batch <= 1) {
        return 0;
    }

    count = (int32_t) batch;
    offset = (int64_t) stride;

    if (blas->layout_set(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                         sizeof(count)) != 0
        || blas->layout_set(*layout,
                            CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                            &offset, sizeof(offset)) != 0)
    {
        return -1;
    }

    return 0;
}


static void
blas_plan_free(cuda_blas_t *blas, blas_plan_t *plan)
{
    if (plan->w != NULL) {
        (void) blas->layout_destroy(plan->w);
    }

    if (plan->x != NULL) {
        (void) blas->layout_destroy(plan->x);
    }

    if (plan->y != NULL) {
        (void) blas->layout_destroy(plan->y);
    }

    memset(plan, 0, sizeof(blas_plan_t));
}

