/*
 * Products through cuBLASLt, that is its stand-in, which refuses what the
 * library would: beside float64, in BF16 and FP8, one and many; those left to
 * others; with one algorithm for any number of rows the same bits; recorded
 * and replayed; more shapes than are kept; libraries that are old or not there.
 */

#include <cublasLt.h>

#include "backend/be_quant.h"
#include "backend/cuda/be_cuda.h"
#include "bf16.h"
#include "test_cuda_util.h"


typedef struct {
    cu_mm_t   p;
    size_t    size_w, size_x, size_y;      /* bytes */
    uint8_t  *w, *x, *y;
    float    *scale_w, *scale_x;
    float    *before;                      /* what y held, if p.add */
} work_t;


static be_cuda_t *
open_be(const char *path, int fixed)
{
    be_t          *be;
    char           err[ERR_LEN];
    be_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_BF16;
    opt.path = path;
    opt.fixed = fixed;
    be = be_cuda_open(&opt, err);

    if (be == NULL) {
        fail_msg("%s", err);
    }

    return (be_cuda_t *) be;
}


static void
close_be(be_cuda_t *cuda)
{
    cuda->be.close(&cuda->be);
}


/* Random elements, all over: what is between lines, too. */

static uint8_t *
fill(int fp8, size_t n, size_t *size)
{
    size_t     i;
    uint8_t   *p;
    uint16_t   h;

    *size = n * (fp8 ? 1 : 2);
    p = malloc(*size);
    assert_non_null(p);

    for (i = 0; i < n; i++) {
        if (fp8) {
            p[i] = be_to_e4m3(cu_normal() * 60);

        } else {
            h = to_bf16(cu_normal());
            memcpy(p + 2 * i, &h, 2);
        }
    }

    return p;
}


static float *
scales(size_t n, void **dev)
{
    float   *s;
    size_t   i;

    s = malloc(n * sizeof(float));
    assert_non_null(s);

    for (i = 0; i < n; i++) {
        s[i] = 0.001f * (float) (1 + cu_random(1000));
    }

    *dev = cu_put(s, n * sizeof(float));

    return s;
}


/* `batch` heads beside each other in lines of x and y, as in attention. */

static void
make(work_t *t, int fp8, uint32_t rows, uint32_t n, uint32_t k,
    uint32_t batch)
{
    void      *dev;
    uint32_t   groups;

    memset(t, 0, sizeof(work_t));
    t->p.m.type = fp8 ? CU_MM_FP8 : CU_MM_BF16;
    t->p.m.n = n;
    t->p.m.k = k;
    t->p.m.ld = (k + 127) / 128 * 128;
    t->p.rows = rows;
    t->p.batch = batch;
    t->p.x.ld = t->p.m.ld * batch;
    t->p.ldy = (size_t) n * batch;
    t->p.stride_w = (size_t) n * t->p.m.ld;
    t->p.stride_x = t->p.m.ld;
    t->p.stride_y = n;

    t->w = fill(fp8, (size_t) batch * n * t->p.m.ld, &t->size_w);
    t->x = fill(fp8, (size_t) rows * t->p.x.ld, &t->size_x);
    t->p.m.w = cu_put(t->w, t->size_w);
    t->p.x.x = cu_put(t->x, t->size_x);

    if (fp8) {
        groups = (k + 127) / 128;
        t->p.m.ld_scale = groups;
        t->p.x.ld_scale = (rows + 3) / 4 * 4;
        t->scale_w = scales((size_t) ((n + 127) / 128) * groups, &dev);
        t->p.m.scale = dev;
        t->scale_x = scales((size_t) groups * t->p.x.ld_scale, &dev);
        t->p.x.scale = dev;
    }

    t->size_y = (size_t) rows * t->p.ldy * sizeof(float);
    t->y = malloc(t->size_y);
    t->before = malloc(t->size_y);
    assert_true(t->y != NULL && t->before != NULL);
    t->p.y = cu_put(NULL, t->size_y);
}


static void
drop(work_t *t)
{
    CU_OK(cudaFree((void *) (uintptr_t) t->p.m.w));
    CU_OK(cudaFree((void *) (uintptr_t) t->p.m.scale));
    CU_OK(cudaFree(t->p.x.x));
    CU_OK(cudaFree(t->p.x.scale));
    CU_OK(cudaFree(t->p.y));
    free(t->w);
    free(t->x);
    free(t->y);
    free(t->scale_w);
    free(t->scale_x);
    free(t->before);
}


/* What y is full of before. */

static void
prepare(work_t *t)
{
    float     f;
    size_t    i, n;
    uint16_t  h;

    n = t->size_y / sizeof(float);

    for (i = 0; i < n; i++) {
        f = t->p.add ? cu_normal() : NAN;
        h = t->p.add ? to_bf16(f) : 0x7fff;

        if (t->p.narrow) {
            memcpy(t->y + 2 * i, &h, 2);
            t->before[i] = from_bf16(h);

        } else {
            memcpy(t->y + 4 * i, &f, 4);
            t->before[i] = f;
        }
    }

    CU_OK(cudaMemcpy(t->p.y, t->y, t->size_y, cudaMemcpyHostToDevice));
}


static double
element(const work_t *t, const uint8_t *p, size_t at)
{
    uint16_t  h;

    if (t->p.m.type == CU_MM_FP8) {
        return be_from_e4m3(p[at]);
    }

    memcpy(&h, p + 2 * at, 2);

    return from_bf16(h);
}


static double
want(const work_t *t, uint32_t b, uint32_t row, uint32_t col, double *size)
{
    double    sum, v;
    uint32_t  i;

    sum = 0;
    *size = 0;

    for (i = 0; i < t->p.m.k; i++) {
        v = element(t, t->w, b * t->p.stride_w + (size_t) col * t->p.m.ld + i)
            * element(t, t->x, b * t->p.stride_x
                               + (size_t) row * t->p.x.ld + i);

        if (t->p.m.type == CU_MM_FP8) {
            v *= (double) t->scale_w[col / 128 * t->p.m.ld_scale + i / 128]
                 * t->scale_x[i / 128 * t->p.x.ld_scale + row];
        }

        sum += v;
        *size += fabs(v);
    }

    return sum;
}


static void
read_back(be_cuda_t *cuda, work_t *t)
{
    CU_OK(cudaStreamSynchronize(cuda->stream));
    cu_get(t->y, t->p.y, t->size_y);
}


/* Of each head, some rows and outputs. */

static void
check(be_cuda_t *cuda, work_t *t)
{
    float     got;
    double    w, size, loose;
    size_t    at;
    uint32_t  b, r, c;
    uint16_t  h;

    read_back(cuda, t);

    for (b = 0; b < t->p.batch; b++) {
        for (r = 0; r < t->p.rows; r += 1 + t->p.rows / 9) {
            for (c = 0; c < t->p.m.n; c += 1 + t->p.m.n / 19) {
                at = b * t->p.stride_y + r * t->p.ldy + c;
                w = want(t, b, r, c, &size);
                w += t->p.add ? t->before[at] : 0;
                loose = size * 2e-6 + 1e-6;

                if (t->p.narrow) {
                    memcpy(&h, t->y + 2 * at, 2);
                    got = from_bf16(h);
                    loose += fabs(w) / 250;

                } else {
                    memcpy(&got, t->y + 4 * at, 4);
                }

                if (!(fabs(got - w) <= loose)) {
                    fail_msg("type %d, %u x %u x %u, head %u, row %u, output "
                             "%u: %g, not %g", (int) t->p.m.type, t->p.rows,
                             t->p.m.n, t->p.m.k, b, r, c, got, w);
                }
            }
        }
    }
}


static void
test_products(void **state)
{
    work_t      t;
    uint32_t    i, way;
    be_cuda_t  *cuda;

    static const struct {
        int       fp8;
        uint32_t  rows, n, k, batch;
    } shapes[] = {
        { 0, 1, 16, 64, 1 },
        { 0, 3, 160, 512, 1 },
        { 0, 33, 56, 200, 1 },
        { 0, 9, 301, 260, 1 },       /* lines at 4 bytes, at 2 */
        { 0, 70, 48, 130, 5 },
        { 1, 128, 144, 512, 1 },
        { 1, 132, 16, 2000, 1 },
        { 1, 256, 272, 496, 1 }
    };

    (void) state;
    emu_blas_missing(0);
    cuda = open_be(NULL, 0);
    assert_non_null(cuda->blas);
    assert_string_equal(cuda->be.path, "sm90");

    for (i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        make(&t, shapes[i].fp8, shapes[i].rows, shapes[i].n, shapes[i].k,
             shapes[i].batch);

        for (way = 0; way < 4; way++) {
            t.p.narrow = way & 1;
            t.p.add = way >> 1;
            prepare(&t);
            assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 0);
            check(cuda, &t);
        }

        drop(&t);
    }

    close_be(cuda);
    assert_int_equal(emu_blas_open(), 0);
}


/* What the library cannot have, and what it is not asked for. */

static void
test_others(void **state)
{
    work_t               t;
    uint32_t             i;
    be_cuda_t           *cuda;
    unsigned long long   before;

    static const struct {
        uint32_t  rows, n, k;
    } shapes[] = {
        { 64, 144, 512 },            /* few rows */
        { 130, 144, 512 },           /* rows, outputs, elements, groups */
        { 128, 136, 512 },
        { 128, 144, 504 },
        { 128, 144, 640 }
    };

    (void) state;
    emu_blas_missing(0);
    cuda = open_be(NULL, 0);
    before = emu_blas_products(0);

    for (i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        make(&t, 1, shapes[i].rows, shapes[i].n, shapes[i].k, 1);
        assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 1);
        drop(&t);
    }

    make(&t, 1, 132, 144, 512, 1);
    t.p.rows = 128;                  /* of more: scales further apart */
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 1);
    drop(&t);

    make(&t, 1, 128, 144, 512, 1);
    t.p.m.scale++;
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 1);
    t.p.m.scale--;
    t.p.x.x = (uint8_t *) t.p.x.x + 1;
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 1);
    t.p.x.x = (uint8_t *) t.p.x.x - 1;
    drop(&t);

    make(&t, 0, 2, 16, 64, 1);       /* small, and not at 16 bytes */
    t.p.y = (float *) t.p.y + 1;
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 1);
    t.p.y = (float *) t.p.y - 1;
    t.p.m.type = CU_MM_INT4;
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 1);
    drop(&t);

    assert_int_equal(emu_blas_products(0), before);
    close_be(cuda);
}


/* y's first row, alone or as one of `rows`. */

static void
first_row(be_cuda_t *cuda, work_t *t, uint32_t rows, float *out)
{
    t->p.rows = rows;
    prepare(t);
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t->p), 0);
    read_back(cuda, t);
    memcpy(out, t->y, t->p.ldy * sizeof(float));
}


static void
test_fixed(void **state)
{
    int         differ;
    float       one[96], many[96];
    work_t      t;
    uint32_t    i, fixed;
    be_cuda_t  *cuda;

    static const uint32_t  rows[] = { 2, 9, 40, 64, 100 };

    (void) state;
    emu_blas_missing(0);

    for (fixed = 0; fixed < 2; fixed++) {
        cuda = open_be(NULL, (int) fixed);
        make(&t, 0, 100, 32, 512, 3);
        first_row(cuda, &t, 1, one);
        differ = 0;

        for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
            first_row(cuda, &t, rows[i], many);
            differ |= memcmp(one, many, sizeof(one)) != 0;
        }

        /* which is how the stand-in differs, too, if it may */

        assert_int_equal(differ, !fixed);
        drop(&t);
        close_be(cuda);
    }
}


static void
test_recorded(void **state)
{
    work_t           t;
    cudaGraph_t      graph;
    be_cuda_t       *cuda;
    cudaGraphExec_t  exec;

    (void) state;
    emu_blas_missing(0);
    cuda = open_be(NULL, 0);
    make(&t, 1, 128, 32, 512, 1);

    CU_OK(cudaStreamBeginCapture(cuda->stream,
                                 cudaStreamCaptureModeThreadLocal));
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 0);
    CU_OK(cudaStreamEndCapture(cuda->stream, &graph));
    CU_OK(cudaGraphInstantiate(&exec, graph, 0));
    prepare(&t);

    free(t.x);
    t.x = fill(1, (size_t) t.p.rows * t.p.x.ld, &t.size_x);
    CU_OK(cudaMemcpy(t.p.x.x, t.x, t.size_x, cudaMemcpyHostToDevice));
    CU_OK(cudaGraphLaunch(exec, cuda->stream));
    check(cuda, &t);

    CU_OK(cudaGraphExecDestroy(exec));
    CU_OK(cudaGraphDestroy(graph));
    drop(&t);
    close_be(cuda);
}


static void
test_plans(void **state)
{
    work_t      t;
    uint32_t    i, fixed;
    be_cuda_t  *cuda;

    (void) state;
    emu_blas_missing(0);

    for (fixed = 0; fixed < 2; fixed++) {
        cuda = open_be(NULL, (int) fixed);
        make(&t, 0, 1200, 16, 16, 1);

        for (i = 1; i <= 1200; i++) {
            t.p.rows = i;
            assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 0);
        }

        prepare(&t);
        assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 0);
        check(cuda, &t);

        /* three layouts each of half a table, and what is always there */

        assert_in_range(emu_blas_open(), 4, 3 * 512 + 4);
        drop(&t);
        close_be(cuda);
        assert_int_equal(emu_blas_open(), 0);
    }
}


static void
test_missing(void **state)
{
    char        err[ERR_LEN];
    work_t      t;
    be_cuda_t  *cuda;

    (void) state;

    emu_blas_missing(1);
    assert_null(be_cuda_blas_open(0, err));
    assert_non_null(strstr(err, "cublasLt"));
    cuda = open_be(NULL, 0);
    assert_null(cuda->blas);
    assert_string_equal(cuda->be.path, "sm90-own");
    make(&t, 0, 7, 30, 100, 1);
    prepare(&t);
    assert_int_equal(be_cuda_mm(cuda, &t.p), 0);
    check(cuda, &t);
    drop(&t);
    close_be(cuda);

    emu_blas_missing(0);
    cuda = open_be("sm90-own", 0);
    assert_null(cuda->blas);
    close_be(cuda);

    /* no scales of blocks: FP8 is for others, the rest as ever */

    emu_blas_old(1);
    cuda = open_be(NULL, 0);
    make(&t, 1, 128, 32, 512, 1);
    prepare(&t);
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 1);
    assert_int_equal(be_cuda_mm(cuda, &t.p), 0);
    check(cuda, &t);
    drop(&t);
    make(&t, 0, 5, 32, 512, 1);
    prepare(&t);
    assert_int_equal(be_cuda_blas_mm(cuda, cuda->blas, &t.p), 0);
    check(cuda, &t);
    drop(&t);
    close_be(cuda);
    emu_blas_old(0);
    assert_int_equal(emu_blas_open(), 0);
}


/* The stand-in is as strict as it says. */

static void
wrong(int which)
{
    work_t      t;
    be_cuda_t  *cuda;

    emu_blas_missing(0);
    cuda = open_be(NULL, 0);
    make(&t, which > 1, 128, 32, 512, 1);

    switch (which) {

    case 0:
        t.p.m.n = 48;
        t.p.ldy = 48;
        break;

    case 1:
        t.p.y = t.y;
        break;

    case 2:
        t.p.m.k = 1024;
        t.p.m.ld = 1024;
        t.p.x.ld = 1024;
        t.p.m.ld_scale = 8;
        break;

    default:
        t.p.m.n = 144;
        CU_OK(cudaFree((void *) (uintptr_t) t.p.m.w));
        t.p.m.w = cu_put(NULL, 144 * 512);
        t.p.ldy = 144;
        t.p.y = cu_put(NULL, 128 * 144 * 4);
    }

    (void) be_cuda_blas_mm(cuda, cuda->blas, &t.p);
}


static void
test_strict(void **state)
{
    (void) state;

    cu_dies(wrong, 0, "cuBLASLt: A reaches");
    cu_dies(wrong, 1, "cuBLASLt: C reaches");
    cu_dies(wrong, 2, "cuBLASLt: A reaches");
    cu_dies(wrong, 3, "cuBLASLt: the scales of A reaches");
}


/* And says no as the library does, when it is asked itself. */

static void
test_refused(void **state)
{
    int                              n;
    float                           *scale;
    int32_t                          mode, turn;
    uint64_t                         workspace;
    cublasLtHandle_t                 handle;
    cublasLtMatmulDesc_t             desc;
    cublasLtMatrixLayout_t           w, x, y, odd;
    cublasLtMatmulPreference_t       pref;
    cublasLtMatmulHeuristicResult_t  found;

    void  *lib = emu_blas_dlopen("libcublasLt.so.13", 0);

#define CALL(name, ...)                                                       \
    ((cublasStatus_t (*)()) emu_blas_dlsym(lib, "cublasLt" name))(__VA_ARGS__)
#define SET(what, value)                                                      \
    CALL("MatmulDescSetAttribute", desc, what, &value, sizeof(value))
#define ASK(b, d)                                                             \
    CALL("MatmulAlgoGetHeuristic", handle, desc, w, b, d, d, pref, 1, &found, \
         &n)

    (void) state;
    scale = cu_put(NULL, 4096);
    turn = CUBLAS_OP_T;
    workspace = 0;
    assert_null(emu_blas_dlsym(lib, "cublasLtGetVersion"));

    CU_OK(CALL("Create", &handle));
    CU_OK(CALL("MatmulDescCreate", &desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    CU_OK(CALL("MatmulPreferenceCreate", &pref));
    assert_int_equal(CALL("MatmulPreferenceSetAttribute", pref,
                          CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                          &workspace, sizeof(uint32_t)),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(CALL("MatrixLayoutCreate", &w, CUDA_R_8F_E4M3,
                          (uint64_t) 512, (uint64_t) 32, (int64_t) 500),
                     CUBLAS_STATUS_INVALID_VALUE);

    CU_OK(CALL("MatrixLayoutCreate", &w, CUDA_R_8F_E4M3, (uint64_t) 512,
               (uint64_t) 32, (int64_t) 512));
    CU_OK(CALL("MatrixLayoutCreate", &x, CUDA_R_8F_E4M3, (uint64_t) 512,
               (uint64_t) 8, (int64_t) 512));
    CU_OK(CALL("MatrixLayoutCreate", &y, CUDA_R_32F, (uint64_t) 32,
               (uint64_t) 8, (int64_t) 32));

    /* not turned, then no scales, two of blocks, at 4 bytes, then all right */

    assert_int_equal(ASK(x, y), CUBLAS_STATUS_INVALID_VALUE);
    CU_OK(SET(CUBLASLT_MATMUL_DESC_TRANSA, turn));
    assert_int_equal(ASK(x, y), CUBLAS_STATUS_NOT_SUPPORTED);
    mode = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    CU_OK(SET(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode));
    CU_OK(SET(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode));
    assert_int_equal(ASK(x, y), CUBLAS_STATUS_NOT_SUPPORTED);
    mode = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    CU_OK(SET(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode));
    assert_int_equal(ASK(x, y), CUBLAS_STATUS_INVALID_VALUE);
    CU_OK(SET(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale));
    scale++;
    CU_OK(SET(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale));
    scale--;
    assert_int_equal(ASK(x, y), CUBLAS_STATUS_INVALID_VALUE);
    CU_OK(SET(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale));
    CU_OK(ASK(x, y));
    assert_int_equal(n, 1);

    /* six columns, and others than there are rows of x */

    CU_OK(CALL("MatrixLayoutCreate", &odd, CUDA_R_8F_E4M3, (uint64_t) 512,
               (uint64_t) 6, (int64_t) 512));
    assert_int_equal(ASK(odd, y), CUBLAS_STATUS_INVALID_VALUE);
    CU_OK(CALL("MatrixLayoutDestroy", y));
    CU_OK(CALL("MatrixLayoutCreate", &y, CUDA_R_32F, (uint64_t) 32,
               (uint64_t) 6, (int64_t) 32));
    assert_int_equal(ASK(odd, y), CUBLAS_STATUS_NOT_SUPPORTED);
    assert_int_equal(n, 0);

    CU_OK(CALL("MatrixLayoutDestroy", odd));
    CU_OK(CALL("MatrixLayoutDestroy", w));
    CU_OK(CALL("MatrixLayoutDestroy", x));
    CU_OK(CALL("MatrixLayoutDestroy", y));
    CU_OK(CALL("MatmulPreferenceDestroy", pref));
    CU_OK(CALL("MatmulDescDestroy", desc));
    CU_OK(CALL("Destroy", handle));
    CU_OK(cudaFree(scale));
    assert_int_equal(emu_blas_open(), 0);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_others),
        cmocka_unit_test(test_fixed),
        cmocka_unit_test(test_recorded),
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_strict),
        cmocka_unit_test(test_refused)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
