/*
 * Matrices and products of the CPU backend: every kernel path against sums
 * in double, and each row alone against the same row in a batch, bit by bit.
 */

#include "test_be_util.h"


typedef struct {
    uint32_t  rows;
    uint32_t  in;
    uint32_t  out;
} linear_shape_t;


static const linear_shape_t  linear_shapes[] = {
    { 1, 1, 1 }, { 1, 72, 40 }, { 2, 31, 3 }, { 3, 33, 65 }, { 5, 64, 100 },
    { 6, 200, 17 }, { 7, 257, 129 }, { 13, 100, 5 }, { 24, 96, 33 },
    { 49, 511, 70 }, { 101, 40, 300 }, { 140, 1107, 37 }, { 530, 24, 34 }
};

#define LINEAR_SHAPES  (sizeof(linear_shapes) / sizeof(linear_shapes[0]))


static void linear_check(const char *path, be_dtype_t compute,
    be_dtype_t type, const linear_shape_t *s);
static double fp8_value(uint8_t b);


static void
linear_check(const char *path, be_dtype_t compute, be_dtype_t type,
    const linear_shape_t *s)
{
    be_t         *be;
    char          err[ERR_LEN];
    void         *base;
    float        *x, *y, *one, *f;
    double        sum, size, a, b;
    size_t        copies;
    uint32_t      i, j, l, threads;
    be_tensor_t   t;
    be_weight_t  *w;

    memset(&t, 0, sizeof(t));
    t.dtype = type;
    t.rows = s->out;
    t.cols = s->in;

    x = be_random_floats((size_t) s->rows * s->in, 1.0f);
    y = be_random_floats((size_t) s->rows * s->out, 1.0f);
    one = be_random_floats(s->out, 1.0f);

    if (type == BE_BF16) {
        t.data = be_random_bf16((size_t) s->in * s->out, 0.5f, &base);

    } else {
        base = malloc((size_t) s->in * s->out * 4 + 1);
        assert_non_null(base);
        f = be_random_floats((size_t) s->in * s->out, 0.5f);
        memcpy((char *) base + 1, f, (size_t) s->in * s->out * 4);
        free(f);
        t.data = (char *) base + 1;
    }

    for (threads = 1; threads <= 3; threads++) {
        if (threads == 2 && strcmp(path, "generic") == 0) {
            continue;                /* slow; 3 shows as much */
        }

        be = be_test_open(path, compute, threads);
        copies = 0;

        w = be->weight(be, &t, &copies, err);
        assert_non_null(w);

        if (type == compute || type == BE_BF16) {
            assert_int_equal(copies, 0);
        }

        memset(y, 0, (size_t) s->rows * s->out * sizeof(float));
        be->linear(be, w, x, s->rows, y);

        for (i = 0; i < s->rows; i++) {
            be->linear(be, w, x + (size_t) i * s->in, 1, one);
            assert_memory_equal(one, y + (size_t) i * s->out,
                                s->out * sizeof(float));

            for (j = 0; j < s->out && threads == 1; j++) {
                sum = 0;
                size = 0;

                for (l = 0; l < s->in; l++) {
                    a = be_round(x[(size_t) i * s->in + l], compute);
                    b = (type == BE_BF16)
                        ? be_load_bf16((const uint8_t *) t.data
                                       + ((size_t) j * s->in + l) * 2)
                        : be_round(be_load_f32((const uint8_t *) t.data
                                       + ((size_t) j * s->in + l) * 4),
                                   compute);
                    sum += a * b;
                    size += fabs(a * b);
                }

                be_near(y[(size_t) i * s->out + j], sum, size, 2e-6,
                        "linear", path);
            }
        }

        /* A second time on top gives twice the first, exactly. */

        be->linear_add(be, w, x, s->rows, y);

        for (i = 0; i < s->rows; i += 7) {
            be->linear(be, w, x + (size_t) i * s->in, 1, one);

            for (j = 0; j < s->out; j++) {
                assert_true(y[(size_t) i * s->out + j] == 2 * one[j]);
            }
        }

        be->weight_free(be, w);
        be->close(be);
    }

    free(base);
    free(x);
    free(y);
    free(one);
}


static void
test_linear(void **state)
{
    size_t              i;
    const char *const  *path;

    (void) state;

    for (path = be_test_paths(); *path != NULL; path++) {
        for (i = 0; i < LINEAR_SHAPES; i++) {
            if (linear_shapes[i].rows > 128
                && strcmp(*path, "generic") == 0)
            {
                continue;            /* it cuts nothing into pieces */
            }

            linear_check(*path, BE_F32, BE_F32, &linear_shapes[i]);
            linear_check(*path, BE_F32, BE_BF16, &linear_shapes[i]);
            linear_check(*path, BE_BF16, BE_BF16, &linear_shapes[i]);
            linear_check(*path, BE_BF16, BE_F32, &linear_shapes[i]);
        }
    }
}


/* The rows past the end of a matrix must not be read, nor those before. */

static void
test_linear_nan_neighbours(void **state)
{
    enum { ROWS = 40, COLS = 37, OUT = 32 };

    be_t               *be;
    char                err[ERR_LEN];
    float               x[ROWS * COLS], y[ROWS * OUT];
    size_t              i;
    uint16_t            h, all[(OUT + 2) * COLS];
    be_tensor_t         t;
    be_weight_t        *w;
    const char *const  *path;

    (void) state;

    for (i = 0; i < ROWS * COLS; i++) {
        x[i] = be_random();
    }

    for (i = 0; i < (OUT + 2) * COLS; i++) {
        h = be_to_bf16(be_random());
        all[i] = (i < COLS || i >= (OUT + 1) * COLS) ? 0x7fc0 : h;
    }

    memset(&t, 0, sizeof(t));
    t.dtype = BE_BF16;
    t.data = all + COLS;
    t.rows = OUT;
    t.cols = COLS;

    for (path = be_test_paths(); *path != NULL; path++) {
        be = be_test_open(*path, BE_BF16, 2);
        w = be->weight(be, &t, NULL, err);
        assert_non_null(w);

        be->linear(be, w, x, ROWS, y);

        for (i = 0; i < ROWS * OUT; i++) {
            assert_false(isnan(y[i]));
        }

        be->weight_free(be, w);
        be->close(be);
    }
}


static double
fp8_value(uint8_t b)
{
    int     e, m;
    double  x;

    e = (b >> 3) & 15;
    m = b & 7;
    x = (e == 0) ? ldexp(m, -9) : ldexp(8 + m, e - 10);

    return (b & 0x80) ? -x : x;
}


/* FP8 with ragged blocks, by way of a product with unit vectors. */

static void
test_fp8(void **state)
{
    be_t               *be;
    char                err[ERR_LEN];
    float              *x, *y, scale[3 * 2];
    size_t              copies;
    double              v;
    uint8_t            *data;
    uint32_t            i, j;
    be_tensor_t         t;
    be_weight_t        *w;
    be_dtype_t          compute;
    const char *const  *path;

    enum { ROWS = 300, COLS = 150 };

    (void) state;

    data = malloc(ROWS * COLS);
    x = calloc(COLS * COLS, sizeof(float));
    y = calloc(COLS * ROWS, sizeof(float));
    assert_non_null(data);
    assert_non_null(x);
    assert_non_null(y);

    for (i = 0; i < ROWS * COLS; i++) {
        data[i] = (uint8_t) (i * 7 + i / 251);
        if ((data[i] & 0x7f) == 0x7f) {
            data[i] = 0;
        }
    }

    for (i = 0; i < 6; i++) {
        scale[i] = 0.001f * (float) (i + 1);
    }

    for (i = 0; i < COLS; i++) {
        x[i * COLS + i] = 1.0f;
    }

    memset(&t, 0, sizeof(t));
    t.dtype = BE_F8E4M3;
    t.data = data;
    t.rows = ROWS;
    t.cols = COLS;
    t.scale = scale;
    t.scale_cols = 2;

    for (path = be_test_paths(); *path != NULL; path++) {
        for (compute = BE_F32; compute <= BE_BF16; compute++) {
            be = be_test_open(*path, compute, 2);
            copies = 0;

            w = be->weight(be, &t, &copies, err);
            assert_non_null(w);
            assert_int_equal(copies,
                             ROWS * COLS * (compute == BE_F32 ? 4 : 2));

            be->linear(be, w, x, COLS, y);

            for (i = 0; i < COLS; i++) {
                for (j = 0; j < ROWS; j++) {
                    v = (float) fp8_value(data[j * COLS + i])
                        * scale[j / 128 * 2 + i / 128];
                    assert_true(y[i * ROWS + j]
                                == (float) be_round((float) v, compute));
                }
            }

            be->weight_free(be, w);
            be->close(be);
        }
    }

    t.scale_cols = 1;
    be = be_test_open("generic", BE_F32, 1);
    assert_null(be->weight(be, &t, NULL, err));
    t.scale_cols = 2;
    t.scale = NULL;
    assert_null(be->weight(be, &t, NULL, err));
    t.rows = 0;
    assert_null(be->weight(be, &t, NULL, err));
    be->close(be);

    free(data);
    free(x);
    free(y);
}


/* Transposed in parts: part i of the result is the transpose of part i. */

static void
test_transpose(void **state)
{
    be_t               *be;
    char                err[ERR_LEN];
    void               *base;
    float              *x, *y;
    uint8_t            *data;
    uint32_t            i, j, p;
    be_tensor_t         t;
    be_weight_t        *w;
    const char *const  *path;

    enum { PARTS = 3, ROWS = 70, COLS = 90 };

    (void) state;

    data = be_random_bf16(PARTS * ROWS * COLS, 1.0f, &base);
    x = calloc(ROWS * ROWS, sizeof(float));
    y = calloc(ROWS * PARTS * COLS, sizeof(float));
    assert_non_null(x);
    assert_non_null(y);

    for (i = 0; i < ROWS; i++) {
        x[i * ROWS + i] = 1.0f;
    }

    memset(&t, 0, sizeof(t));
    t.dtype = BE_BF16;
    t.data = data;
    t.rows = PARTS * ROWS;
    t.cols = COLS;

    for (path = be_test_paths(); *path != NULL; path++) {
        be = be_test_open(*path, BE_BF16, 2);

        assert_null(be->weight_t(be, &t, 4, NULL, err));

        w = be->weight_t(be, &t, PARTS, NULL, err);
        assert_non_null(w);

        be->linear(be, w, x, ROWS, y);

        for (i = 0; i < ROWS; i++) {
            for (p = 0; p < PARTS; p++) {
                for (j = 0; j < COLS; j++) {
                    assert_true(y[(i * PARTS + p) * COLS + j]
                                == be_load_bf16(data + (((size_t) p * ROWS
                                                + i) * COLS + j) * 2));
                }
            }
        }

        be->weight_free(be, w);
        be->close(be);
    }

    free(base);
    free(x);
    free(y);
}


static void
test_rows(void **state)
{
    be_t               *be;
    char                err[ERR_LEN];
    void               *base;
    float              *x, *y, *z, *w, one[200];
    double              sum;
    uint32_t            i, j, dim, row[5];
    int32_t             id[3];
    uint8_t            *data;
    be_batch_t          b;
    be_tensor_t         t;
    be_weight_t        *e;
    const char *const  *path;

    enum { ROWS = 300 };

    (void) state;

    for (path = be_test_paths(); *path != NULL; path++) {
        be = be_test_open(*path, BE_BF16, 2);

        for (dim = 1; dim <= 199; dim += 33) {
            x = be_random_floats(ROWS * dim, 2.0f);
            y = be_random_floats(ROWS * dim, 0.0f);
            w = be_random_floats(dim, 1.0f);

            be->norm(be, w, 1e-6f, x, ROWS, dim, y);

            for (i = 0; i < ROWS; i++) {
                be->norm(be, w, 1e-6f, x + i * dim, 1, dim, one);
                assert_memory_equal(one, y + i * dim, dim * sizeof(float));

                sum = 0;

                for (j = 0; j < dim; j++) {
                    sum += (double) x[i * dim + j] * x[i * dim + j];
                }

                sum = 1 / sqrt(sum / dim + 1e-6);

                for (j = 0; j < dim; j++) {
                    be_near(y[i * dim + j], x[i * dim + j] * sum * w[j],
                            fabs(x[i * dim + j] * sum * w[j]), 1e-6, "norm",
                            *path);
                }
            }

            z = be_random_floats(5 * dim, 0.0f);

            for (i = 0; i < 5; i++) {
                row[i] = (i * 77) % ROWS;
            }

            be->gather(be, x, row, 5, dim, z);

            for (i = 0; i < 5; i++) {
                assert_memory_equal(z + i * dim, x + row[i] * dim,
                                    dim * sizeof(float));
            }

            free(x);
            free(y);
            free(z);
            free(w);
        }

        data = be_random_bf16(10 * 33, 1.0f, &base);
        id[0] = 9;
        id[1] = 0;
        id[2] = 9;

        memset(&b, 0, sizeof(b));
        b.n_rows = 3;
        b.id = id;

        memset(&t, 0, sizeof(t));
        t.dtype = BE_BF16;
        t.data = data;
        t.rows = 10;
        t.cols = 33;

        e = be->weight(be, &t, NULL, err);
        assert_non_null(e);

        y = be_random_floats(3 * 33, 0.0f);
        be->embed(be, e, &b, y);

        for (i = 0; i < 3; i++) {
            for (j = 0; j < 33; j++) {
                assert_true(y[i * 33 + j]
                            == be_load_bf16(data
                                            + ((size_t) id[i] * 33 + j) * 2));
            }
        }

        be->weight_free(be, e);
        free(y);
        free(base);
        be->close(be);
    }
}


static void
test_open(void **state)
{
    char          err[ERR_LEN];
    be_t         *be;
    void         *p;
    be_options_t  opt;

    (void) state;

    memset(&opt, 0, sizeof(opt));
    opt.pin = -1;
    opt.path = "mmx";
    assert_null(be_open("cpu", &opt, err));
    assert_non_null(strstr(err, "mmx"));

    opt.path = NULL;
    assert_null(be_open("abacus", &opt, err));
    opt.compute = BE_F8E4M3;
    assert_null(be_open("cpu", &opt, err));

    opt.compute = BE_F32;
    opt.threads = 2;
    be = be_open("cpu", &opt, err);
    assert_non_null(be);
    assert_non_null(strstr(be->share, "f32"));

    p = be->alloc(be, 100);
    assert_non_null(p);
    assert_int_equal((uintptr_t) p % 64, 0);
    be->upload(be, p, "abc", 4);
    be->download(be, err, p, 4);
    assert_string_equal(err, "abc");
    be->free(be, p);
    be->close(be);
}


static be_t *
linear_packing(const char *path, be_dtype_t compute)
{
    be_t          *be;
    char           err[ERR_LEN];
    be_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = compute;
    opt.threads = 2;
    opt.path = path;
    opt.pin = -1;
    opt.pack = 1;

    be = be_cpu_open(&opt, err);
    if (be == NULL) {
        fail_msg("%s", err);
    }

    return be;
}


/* BF16 weights in an order of the backend's own: the same bits. */

static void
test_linear_packed(void **state)
{
    be_t               *be[2];
    char                err[ERR_LEN];
    void               *base;
    float              *x, *y[2], *q, *ql[2];
    size_t              i;
    uint32_t            k, pos[9], seq[9];
    be_mla_t            mla = { 0, 3, 20, 12, 24, 72 };
    be_rope_t           rope;
    be_batch_t          b;
    be_tensor_t         t;
    be_weight_t        *w, *again;
    const float         freq[6] = { 1, 0.5f, 0.25f, 0.1f, 0.05f, 0.01f };
    const char *const  *path;

    (void) state;

    for (path = be_test_paths(); *path != NULL; path++) {
        be[0] = be_test_open(*path, BE_BF16, 2);
        be[1] = linear_packing(*path, BE_BF16);

        for (i = 0; i < LINEAR_SHAPES; i++) {
            memset(&t, 0, sizeof(t));
            t.dtype = BE_BF16;
            t.rows = linear_shapes[i].out;
            t.cols = linear_shapes[i].in;
            t.data = be_random_bf16((size_t) t.rows * t.cols, 0.5f, &base);
            x = be_random_floats((size_t) linear_shapes[i].rows * t.cols, 1);

            for (k = 0; k < 2; k++) {
                y[k] = be_random_floats((size_t) linear_shapes[i].rows
                                        * t.rows, 1);
                w = be[k]->weight(be[k], &t, NULL, err);
                again = be[k]->weight(be[k], &t, NULL, err);
                assert_non_null(w);
                assert_non_null(again);
                be[k]->linear(be[k], w, x, linear_shapes[i].rows, y[k]);
                be[k]->weight_free(be[k], w);
                be[k]->linear(be[k], again, x, 1, y[k]);
                be[k]->weight_free(be[k], again);
            }

            assert_memory_equal(y[0], y[1], (size_t) linear_shapes[i].rows
                                            * t.rows * sizeof(float));
            free(base);
            free(x);
            free(y[0]);
            free(y[1]);
        }

        /* transposed, and parts of which only the last rows are used */

        t.rows = mla.heads * (mla.nope + mla.v);
        t.cols = mla.kv_lora;
        t.data = be_random_bf16((size_t) t.rows * t.cols, 0.5f, &base);
        q = be_random_floats(9 * mla.heads * (mla.nope + mla.rope), 1);

        rope.dim = mla.rope;
        rope.freq = freq;
        rope.mscale = 1;
        memset(&b, 0, sizeof(b));
        b.n_rows = 9;
        b.pos = pos;
        b.seq = seq;

        for (i = 0; i < 9; i++) {
            pos[i] = (uint32_t) i * 7;
            seq[i] = 0;
        }

        for (k = 0; k < 2; k++) {
            ql[k] = be_random_floats(9 * mla.heads
                                     * (mla.kv_lora + mla.rope), 1);
            y[k] = be_random_floats(9 * mla.heads * mla.v, 1);

            t.take = mla.nope;
            w = be[k]->weight_t(be[k], &t, mla.heads, NULL, err);
            assert_non_null(w);
            be[k]->mla_query(be[k], &mla, &rope, w, q, &b, ql[k]);
            be[k]->weight_free(be[k], w);

            t.parts = mla.heads;
            t.from = mla.nope;
            t.take = mla.v;
            w = be[k]->weight(be[k], &t, NULL, err);
            assert_non_null(w);
            be[k]->mla_value(be[k], &mla, w, ql[0], 9, y[k]);
            be[k]->weight_free(be[k], w);
            t.parts = 0;
            t.from = 0;
        }

        assert_memory_equal(ql[0], ql[1], 9 * mla.heads
                            * (mla.kv_lora + mla.rope) * sizeof(float));
        assert_memory_equal(y[0], y[1], 9 * mla.heads * mla.v
                                        * sizeof(float));

        for (k = 0; k < 2; k++) {
            free(ql[k]);
            free(y[k]);
            be[k]->close(be[k]);
        }

        free(base);
        free(q);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_linear_nan_neighbours),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_transpose),
        cmocka_unit_test(test_linear_packed),
        cmocka_unit_test(test_rows)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
