/*
 * Quantised weights: every kernel path and type against sums in double over
 * what be_quant_decode() says the weights are, bit by bit the same for one
 * row and for many, and what quantising itself promises.
 */

#include "test_be_util.h"

#include "backend/be_quant.h"


typedef struct {
    uint32_t  rows;
    uint32_t  in;
    uint32_t  out;
} quant_shape_t;


static const be_dtype_t  quant_types[] = { BE_F8E4M3, BE_INT8, BE_INT4 };

static const quant_shape_t  quant_shapes[] = {
    { 1, 1, 1 }, { 1, 72, 40 }, { 2, 31, 3 }, { 3, 33, 65 }, { 5, 64, 100 },
    { 6, 200, 17 }, { 7, 257, 129 }, { 13, 128, 5 }, { 24, 96, 33 },
    { 33, 511, 70 }, { 101, 40, 300 }, { 49, 1107, 37 }, { 530, 24, 34 }
};

#define QUANT_MANY    19             /* rows */
#define QUANT_SHAPES  (sizeof(quant_shapes) / sizeof(quant_shapes[0]))


static be_t *
quant_open(const char *path, be_dtype_t compute, be_dtype_t weights,
    uint32_t threads)
{
    be_t          *be;
    char           err[ERR_LEN];
    be_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = compute;
    opt.weights = weights;
    opt.threads = threads;
    opt.path = path;
    opt.pin = -1;

    be = be_cpu_open(&opt, err);
    if (be == NULL) {
        fail_msg("%s", err);
    }

    return be;
}


/* The matrix as floats [rows][cols], read from what would be saved. */

static float *
quant_floats(be_t *be, const be_weight_t *w)
{
    float        *all, x[BE_CHUNK * BE_PANEL];
    uint32_t      row, k, i, part, in;
    be_tensor_t   t;

    be->weight_tensor(w, &t);

    all = malloc((size_t) t.rows * t.cols * sizeof(float));
    assert_non_null(all);

    for (row = 0; row < t.rows; row++) {
        part = row / (t.rows / t.parts);
        in = row % (t.rows / t.parts);

        for (k = 0; k < t.cols; k += BE_CHUNK) {
            be_quant_decode(t.dtype, (const uint8_t *) t.data
                + ((size_t) part * be_quant_part_panels(t.rows / t.parts)
                   + in / BE_PANEL) * be_quant_panel(t.dtype, t.cols)
                + k / BE_CHUNK * be_quant_chunk(t.dtype), x);

            for (i = 0; i < BE_CHUNK && k + i < t.cols; i++) {
                all[(size_t) row * t.cols + k + i]
                    = x[i * BE_PANEL + in % BE_PANEL];
            }
        }
    }

    return all;
}


/* With vpmaddwd or VNNI, INT4 without tiles: inputs are integers. */

static int
quant_integers(const char *path, be_dtype_t compute, be_dtype_t type)
{
    if (compute != BE_BF16) {
        return 0;
    }

    return strcmp(path, "avx2") == 0 || strcmp(path, "avx512bf16") == 0
           ? type == BE_INT8 || type == BE_INT4
           : strcmp(path, "amx") == 0 && type == BE_INT8;
}


/* Then weights are not rounded; nor FP8 whose scale is for their sum. */

static be_dtype_t
quant_rounded(const char *path, be_dtype_t compute, be_dtype_t type)
{
    if (type == BE_F8E4M3 && strcmp(path, "avx512bf16") == 0) {
        return BE_F32;
    }

    return quant_integers(path, compute, type) ? BE_F32 : compute;
}


/*
 * Inputs as a product takes them: as they are, in BF16, or integers up to
 * 32512 with a scale for each 64.
 */

static double *
quant_inputs(int integers, be_dtype_t compute, const float *x, uint32_t rows,
    uint32_t in)
{
    float     most, times;
    double   *to;
    uint32_t  i, j, l, end;

    to = malloc((size_t) rows * in * sizeof(double));
    assert_non_null(to);

    for (i = 0; i < rows; i++) {
        for (j = 0; j < in; j = end) {
            end = (in - j < 64) ? in : j + 64;
            most = 0;

            for (l = j; l < end; l++) {
                most = fmaxf(most, fabsf(x[(size_t) i * in + l]));
            }

            times = 32512.0f / most;

            for (l = j; l < end; l++) {
                to[(size_t) i * in + l]
                    = integers
                      ? nearbyintf(x[(size_t) i * in + l] * times)
                        * (double) most / 32512
                      : be_round(x[(size_t) i * in + l], compute);
            }
        }
    }

    return to;
}


static be_tensor_t
quant_tensor(be_dtype_t type, uint32_t rows, uint32_t cols, void **base)
{
    be_tensor_t  t;

    memset(&t, 0, sizeof(t));
    t.rows = rows;
    t.cols = cols;
    t.dtype = type;

    if (type == BE_BF16) {
        t.data = be_random_bf16((size_t) rows * cols, 0.5f, base);

    } else {
        *base = be_random_floats((size_t) rows * cols, 0.5f);
        t.data = *base;
    }

    return t;
}


static void
quant_check(const char *path, be_dtype_t compute, be_dtype_t type,
    const quant_shape_t *s)
{
    int           integers;
    be_t         *be;
    char          err[ERR_LEN];
    void         *base;
    float        *x, *y, *one, *w64;
    double       *x64, sum, size, a, b;
    size_t        copies;
    uint32_t      i, j, l, threads;
    be_tensor_t   t, made;
    be_weight_t  *w, *again;

    t = quant_tensor((s->in & 1) ? BE_F32 : BE_BF16, s->out, s->in, &base);
    x = be_random_floats((size_t) s->rows * s->in, 1.0f);
    y = be_random_floats((size_t) s->rows * s->out, 1.0f);
    one = be_random_floats(s->out, 1.0f);
    integers = quant_integers(path, compute, type);
    x64 = quant_inputs(integers, compute, x, s->rows, s->in);

    for (threads = 1; threads <= 3; threads += 2) {
        be = quant_open(path, compute, type, threads);
        copies = 0;

        w = be->weight(be, &t, &copies, err);
        assert_non_null(w);
        assert_int_equal(copies, be_quant_size(type, s->out, s->in, 1));

        be->weight_tensor(w, &made);
        assert_int_equal(be_tensor_size(&made), copies);

        w64 = quant_floats(be, w);
        be->linear(be, w, x, s->rows, y);

        for (i = 0; i < s->rows; i++) {
            be->linear(be, w, x + (size_t) i * s->in, 1, one);
            assert_memory_equal(one, y + (size_t) i * s->out,
                                s->out * sizeof(float));

            for (j = 0; j < s->out && threads == 1; j++) {
                sum = 0;
                size = 0;

                for (l = 0; l < s->in; l++) {
                    a = x64[(size_t) i * s->in + l];
                    b = be_round(w64[(size_t) j * s->in + l],
                                 quant_rounded(path, compute, type));
                    sum += a * b;
                    size += fabs(a * b);
                }

                be_near(y[(size_t) i * s->out + j], sum, size, 2e-6,
                        "quantised", path);
            }
        }

        /* What was made is taken back as it is. */

        again = be->weight(be, &made, &copies, err);
        assert_non_null(again);
        assert_int_equal(copies, be_tensor_size(&made));

        be->linear_add(be, again, x, s->rows, y);

        for (i = 0; i < s->rows; i += 7) {
            be->linear(be, w, x + (size_t) i * s->in, 1, one);

            for (j = 0; j < s->out; j++) {
                assert_true(y[(size_t) i * s->out + j] == 2 * one[j]);
            }
        }

        be->weight_free(be, again);
        be->weight_free(be, w);
        be->close(be);
        free(w64);
    }

    free(base);
    free(x64);
    free(x);
    free(y);
    free(one);
}


static void
test_products(void **state)
{
    size_t              i, j;
    const char *const  *path;

    (void) state;

    for (path = be_test_paths(); *path != NULL; path++) {
        for (i = 0; i < QUANT_SHAPES; i++) {
            if (quant_shapes[i].rows > 100 && strcmp(*path, "generic") == 0) {
                continue;            /* it cuts nothing into pieces */
            }

            for (j = 0; j < 3; j++) {
                quant_check(*path, BE_F32, quant_types[j], &quant_shapes[i]);
                quant_check(*path, BE_BF16, quant_types[j], &quant_shapes[i]);
            }
        }
    }
}


/* The same bytes from every path and number of threads. */

static void
test_same_bytes(void **state)
{
    be_t               *be;
    char                err[ERR_LEN];
    void               *base, *first;
    size_t              size;
    uint32_t            i;
    be_tensor_t         t, made;
    be_weight_t        *w;
    const char *const  *path;

    (void) state;

    t = quant_tensor(BE_BF16, 170, 300, &base);

    for (i = 0; i < 3; i++) {
        first = NULL;

        for (path = be_test_paths(); *path != NULL; path++) {
            be = quant_open(*path, BE_F32, quant_types[i], 2);
            w = be->weight(be, &t, NULL, err);
            assert_non_null(w);
            be->weight_tensor(w, &made);
            size = be_tensor_size(&made);
            assert_int_not_equal(size, 0);

            if (first == NULL) {
                first = malloc(size);
                assert_non_null(first);
                memcpy(first, made.data, size);
            }

            assert_memory_equal(first, made.data, size);
            be->weight_free(be, w);
            be->close(be);
        }

        free(first);
    }

    free(base);
}


/* Parts, slices of them, transposed or not: what is where. */

static void
test_parts(void **state)
{
    be_t         *be;
    char          err[ERR_LEN];
    void         *base;
    float        *got, want, most;
    uint32_t      i, turn, p, r, c;
    be_tensor_t   t, made;
    be_weight_t  *w;
    const float  *x;

    enum { PARTS = 3, STRIDE = 45, FROM = 5, TAKE = 37, COLS = 150 };

    (void) state;

    t = quant_tensor(BE_F32, PARTS * STRIDE, COLS, &base);
    t.parts = PARTS;
    t.from = FROM;
    t.take = TAKE;
    x = t.data;

    for (i = 0; i < 3; i++) {
        be = quant_open("generic", BE_F32, quant_types[i], 2);
        most = (quant_types[i] == BE_INT4) ? 0.2f : 0.06f;

        for (turn = 0; turn < 2; turn++) {
            w = turn ? be->weight_t(be, &t, PARTS, NULL, err)
                     : be->weight(be, &t, NULL, err);
            assert_non_null(w);

            be->weight_tensor(w, &made);
            assert_int_equal(made.parts, PARTS);
            assert_int_equal(made.rows, PARTS * (turn ? COLS : TAKE));
            assert_int_equal(made.cols, turn ? TAKE : COLS);
            got = quant_floats(be, w);

            for (p = 0; p < PARTS; p++) {
                for (r = 0; r < TAKE; r++) {
                    for (c = 0; c < COLS; c++) {
                        want = x[(p * STRIDE + FROM + r) * COLS + c];
                        assert_true(fabsf(want
                                    - (turn ? got[(p * COLS + c) * TAKE + r]
                                       : got[(p * TAKE + r) * COLS + c]))
                                    < most);
                    }
                }
            }

            free(got);
            be->weight_free(be, w);
        }

        t.take = STRIDE - FROM + 1;
        assert_null(be->weight(be, &t, NULL, err));
        t.take = TAKE;
        t.parts = 4;
        assert_null(be->weight(be, &t, NULL, err));
        t.parts = PARTS;

        be->close(be);
    }

    free(base);
}


/* Published FP8 stays what it is, exactly, also cut into heads and turned. */

static void
test_fp8_exact(void **state)
{
    be_t         *be;
    char          err[ERR_LEN];
    float        *got, scale[4 * 3], want;
    uint8_t      *data;
    uint32_t      i, turn, p, r, c, row;
    be_tensor_t   t;
    be_weight_t  *w;

    enum { PARTS = 2, STRIDE = 256, FROM = 128, TAKE = 128, COLS = 300 };

    (void) state;

    data = malloc(PARTS * STRIDE * COLS);
    assert_non_null(data);

    for (i = 0; i < PARTS * STRIDE * COLS; i++) {
        data[i] = (uint8_t) (i * 7 + i / 251);
        data[i] = ((data[i] & 0x7f) == 0x7f) ? 0 : data[i];
    }

    for (i = 0; i < 12; i++) {
        scale[i] = 0.0013f * (float) (i + 1);
    }

    memset(&t, 0, sizeof(t));
    t.dtype = BE_F8E4M3;
    t.data = data;
    t.rows = PARTS * STRIDE;
    t.cols = COLS;
    t.scale = scale;
    t.scale_cols = 3;
    t.parts = PARTS;
    t.from = FROM;
    t.take = TAKE;

    be = quant_open("generic", BE_F32, BE_F8E4M3, 1);

    for (turn = 0; turn < 2; turn++) {
        w = turn ? be->weight_t(be, &t, PARTS, NULL, err)
                 : be->weight(be, &t, NULL, err);
        assert_non_null(w);
        got = quant_floats(be, w);

        for (p = 0; p < PARTS; p++) {
            for (r = 0; r < TAKE; r++) {
                for (c = 0; c < COLS; c++) {
                    row = p * STRIDE + FROM + r;
                    want = be_from_e4m3(data[row * COLS + c])
                           * scale[row / 128 * 3 + c / 128];
                    assert_true(want == (turn ? got[(p * COLS + c) * TAKE + r]
                                         : got[(p * TAKE + r) * COLS + c]));
                }
            }
        }

        free(got);
        be->weight_free(be, w);
    }

    data[FROM * COLS + 3] = 0xff;
    assert_null(be->weight(be, &t, NULL, err));
    assert_non_null(strstr(err, "not a number"));

    be->close(be);
    free(data);
}


/* Each code, at each of four elements, to few rows and to many. */

static void
test_fp8_codes(void **state)
{
    be_t               *be;
    char                err[ERR_LEN];
    float               x[QUANT_MANY * 4], y[QUANT_MANY * 256], scale[2];
    uint8_t             data[256 * 4];
    uint32_t            i, j, m, f32;
    be_tensor_t         t;
    be_weight_t        *w;
    const char *const  *path;

    (void) state;

    for (i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t) (i / 4 + i % 4 * 37);
        data[i] = ((data[i] & 0x7f) == 0x7f) ? 0 : data[i];
    }

    memset(x, 0, sizeof(x));

    for (i = 0; i < QUANT_MANY; i++) {
        x[i * 4 + i % 4] = 1.0f;
    }

    scale[0] = 0.5f;
    scale[1] = 2.0f;

    memset(&t, 0, sizeof(t));
    t.dtype = BE_F8E4M3;
    t.data = data;
    t.rows = 256;
    t.cols = 4;
    t.scale = scale;
    t.scale_cols = 1;

    for (path = be_test_paths(); *path != NULL; path++) {
        for (f32 = 0; f32 < 2; f32++) {
            be = quant_open(*path, f32 ? BE_F32 : BE_BF16, BE_F8E4M3, 1);
            w = be->weight(be, &t, NULL, err);
            assert_non_null(w);

            for (m = 4; m <= QUANT_MANY; m += QUANT_MANY - 4) {
                be->linear(be, w, x, m, y);

                for (i = 0; i < m; i++) {
                    for (j = 0; j < 256; j++) {
                        assert_true(y[i * 256 + j]
                                    == be_from_e4m3(data[j * 4 + i % 4])
                                       * scale[j / 128]);
                    }
                }
            }

            be->weight_free(be, w);
            be->close(be);
        }
    }
}


/* The squared error over the squared weights, of normal ones. */

static void
test_error(void **state)
{
    be_t         *be;
    char          err[ERR_LEN];
    void         *base;
    float        *got;
    double        e, s;
    uint32_t      i, j;
    be_tensor_t   t;
    be_weight_t  *w;
    const float  *x;

    static const double  most[] = { 1e-3, 4.5e-5, 6.3e-3 };

    (void) state;

    t = quant_tensor(BE_F32, 256, 1024, &base);
    x = t.data;

    for (i = 0; i < 3; i++) {
        be = quant_open("generic", BE_F32, quant_types[i], 2);
        w = be->weight(be, &t, NULL, err);
        assert_non_null(w);
        got = quant_floats(be, w);
        e = 0;
        s = 0;

        for (j = 0; j < 256 * 1024; j++) {
            e += ((double) got[j] - x[j]) * ((double) got[j] - x[j]);
            s += (double) x[j] * x[j];
        }

        if (e / s > most[i]) {
            fail_msg("type %d: relative error %g", (int) quant_types[i],
                     e / s);
        }

        free(got);
        be->weight_free(be, w);
        be->close(be);
    }

    free(base);
}


/* Zeros, extremes, a lone outlier; not a number is refused, by name. */

static void
test_edges(void **state)
{
    be_t         *be;
    char          err[ERR_LEN];
    float        *got, x[16 * 128];
    uint32_t      i, j, k;
    be_tensor_t   t;
    be_weight_t  *w;

    static const float  bad[] = { NAN, INFINITY, -INFINITY, 2e15f };
    static const float  top[] = { 1e15f, -1e15f, 1e-20f, 0.75f, 1e-38f };

    (void) state;

    memset(&t, 0, sizeof(t));
    t.dtype = BE_F32;
    t.data = x;
    t.rows = 16;
    t.cols = 128;

    for (i = 0; i < 3; i++) {
        be = quant_open("generic", BE_F32, quant_types[i], 1);

        for (j = 0; j < 5; j++) {
            memset(x, 0, sizeof(x));
            x[3 * 128 + 77] = top[j];

            w = be->weight(be, &t, NULL, err);
            assert_non_null(w);
            got = quant_floats(be, w);

            assert_true(fabsf(got[3 * 128 + 77] - top[j])
                        <= 0.02f * fabsf(top[j]) + 1e-28f);
            got[3 * 128 + 77] = 0;

            for (k = 0; k < 16 * 128; k++) {
                assert_true(got[k] == 0);
            }

            free(got);
            be->weight_free(be, w);
        }

        for (j = 0; j < 4; j++) {
            memset(x, 0, sizeof(x));
            x[15 * 128 + 127] = bad[j];
            assert_null(be->weight(be, &t, NULL, err));
            assert_non_null(strstr(err, "not a number"));
        }

        be->close(be);
    }
}


static void
test_e4m3(void **state)
{
    float     x, d, least;
    uint32_t  i, j;

    (void) state;

    for (i = 0; i < 256; i++) {
        if ((i & 0x7f) != 0x7f) {
            assert_int_equal(be_to_e4m3(be_from_e4m3((uint8_t) i)), i);
        }
    }

    assert_true(isnan(be_from_e4m3(0x7f)) && isnan(be_from_e4m3(0xff)));
    assert_int_equal(be_to_e4m3(1e9f), 0x7e);
    assert_int_equal(be_to_e4m3(-INFINITY), 0xfe);

    /* the nearest of all, and of two the even one */

    for (x = 1.0f / 4096; x < 500.0f; x *= 1.0037f) {
        least = INFINITY;

        for (j = 0; j < 0x7f; j++) {
            d = fabsf(be_from_e4m3((uint8_t) j) - x);
            least = (d < least) ? d : least;
        }

        assert_true(fabsf(be_from_e4m3(be_to_e4m3(x)) - x) == least);
    }

    assert_int_equal(be_to_e4m3(1.0625f), 0x38);
    assert_int_equal(be_to_e4m3(1.1875f), 0x3a);
    assert_int_equal(be_to_e4m3(1.0f / 1024), 0x00);
    assert_int_equal(be_to_e4m3(3.0f / 1024), 0x02);
}


static void
test_sizes(void **state)
{
    be_tensor_t  t;

    (void) state;

    assert_int_equal(be_quant_size(BE_INT8, 16, 128, 1), 2112);
    assert_int_equal(be_quant_size(BE_INT4, 17, 129, 1), 4 * 1152);
    assert_int_equal(be_quant_size(BE_F8E4M3, 34, 1, 2), 4 * 2112);

    memset(&t, 0, sizeof(t));
    t.parts = 1;
    assert_int_equal(be_tensor_size(&t), 0);
    t.rows = 3;
    t.cols = 5;
    assert_int_equal(be_tensor_size(&t), 60);
    t.dtype = BE_BF16;
    assert_int_equal(be_tensor_size(&t), 30);
    t.parts = 2;
    assert_int_equal(be_tensor_size(&t), 0);
    t.parts = 1;
    t.dtype = BE_DTYPES;
    assert_int_equal(be_tensor_size(&t), 0);
    t.dtype = BE_F32;
    t.rows = UINT32_MAX;
    t.cols = UINT32_MAX;
    assert_int_equal(be_tensor_size(&t), 0);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_e4m3),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_error),
        cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_fp8_exact),
        cmocka_unit_test(test_fp8_codes),
        cmocka_unit_test(test_products)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
