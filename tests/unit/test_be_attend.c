/*
 * Latent attention of the CPU backend, every kernel path: against loops in
 * double, and bit by bit over chunks, threads and batches.
 */

#include "test_be_util.h"


typedef struct {
    be_mla_t      mla;
    float         scale;
    be_dtype_t    compute;
    uint32_t      n;                 /* positions of the sequence */
    uint32_t      first;             /* that attention sees */
    be_rope_t     rope;
    float        *freq;
    float        *norm;
    float        *kva;               /* [n][kv_lora + rope] */
    float        *q;                 /* [n][heads][nope + rope] */
    void         *base;
    uint8_t      *kvb;               /* BF16 [heads][nope + v][kv_lora] */
} attend_case_t;

static const be_mla_t  attend_shapes[] = {
    { 0, 3, 20, 12, 24, 72 },
    { 0, 8, 34, 32, 16, 128 },
    { 0, 1, 7, 2, 5, 9 },
    { 0, 67, 6, 4, 6, 20 }
};

#define ATTEND_SHAPES  (sizeof(attend_shapes) / sizeof(attend_shapes[0]))


static void attend_make(attend_case_t *c, const be_mla_t *mla,
    be_dtype_t compute, uint32_t n);
static void attend_free(attend_case_t *c);
static void attend_run(const attend_case_t *c, const char *path,
    uint32_t threads, uint32_t chunk, int others, float *o, void *kv_out);
static void attend_reference(const attend_case_t *c, double *o,
    double *size);
static void attend_compare(attend_case_t *c, const float *o,
    const double *ref, const double *size, const char *path);


static void
attend_make(attend_case_t *c, const be_mla_t *mla, be_dtype_t compute,
    uint32_t n)
{
    uint32_t  i, dim;

    c->mla = *mla;
    c->compute = compute;
    c->n = n;
    c->first = 0;
    c->scale = 1.0f / sqrtf((float) (mla->nope + mla->rope));
    dim = mla->kv_lora + mla->rope;

    c->freq = be_random_floats(mla->rope / 2, 0.0f);

    for (i = 0; i < mla->rope / 2; i++) {
        c->freq[i] = powf(10000.0f, -2.0f * (float) i / (float) mla->rope);
    }

    c->rope.dim = mla->rope;
    c->rope.freq = c->freq;
    c->rope.mscale = 1.1f;
    c->norm = be_random_floats(mla->kv_lora, 1.0f);
    c->kva = be_random_floats((size_t) n * dim, 2.0f);
    c->q = be_random_floats((size_t) n * mla->heads * (mla->nope + mla->rope),
                            1.0f);
    c->kvb = be_random_bf16((size_t) mla->heads * (mla->nope + mla->v)
                            * mla->kv_lora, 0.4f, &c->base);
}


static void
attend_free(attend_case_t *c)
{
    free(c->freq);
    free(c->norm);
    free(c->kva);
    free(c->q);
    free(c->base);
}


/*
 * The sequence in chunks of `chunk` rows; with `others` each batch also has
 * rows of a second sequence, before it.  Its KV blocks go out of order.
 */

static void
attend_run(const attend_case_t *c, const char *path, uint32_t threads,
    uint32_t chunk, int others, float *o, void *kv_out)
{
    be_t            *be;
    char             err[ERR_LEN];
    float           *ql, *ol, *out, *q, *kva;
    size_t           qrow, krow, orow;
    int32_t          mine[20], other[8];
    be_kv_t         *kv;
    uint32_t         i, at, rows, extra, pos[1280], seq[1280], blocks;
    uint32_t         first[2];
    be_batch_t       b;
    be_tensor_t      t;
    be_weight_t     *uk, *uv;
    const int32_t   *table[2];
    const be_mla_t  *mla;

    mla = &c->mla;
    qrow = (size_t) mla->heads * (mla->nope + mla->rope);
    krow = mla->kv_lora + mla->rope;
    orow = (size_t) mla->heads * mla->v;
    blocks = (c->n + 63) / 64;

    be = be_test_open(path, c->compute, threads);
    kv = be->kv_open(be, 2, 48, mla, err);
    assert_non_null(kv);

    memset(&t, 0, sizeof(t));
    t.dtype = BE_BF16;
    t.data = c->kvb;
    t.rows = mla->heads * (mla->nope + mla->v);
    t.cols = mla->kv_lora;

    uk = be->weight_t(be, &t, mla->heads, NULL, err);
    uv = be->weight(be, &t, NULL, err);
    assert_non_null(uk);
    assert_non_null(uv);

    for (i = 0; i < 20; i++) {
        mine[i] = (int32_t) (47 - 2 * i);
        other[i % 8] = (int32_t) (2 * (i % 8));
    }

    extra = others ? 5 : 0;
    rows = chunk + extra;
    q = be_random_floats(rows * qrow, 1.0f);
    kva = be_random_floats(rows * krow, 1.0f);
    ql = be_random_floats(rows * mla->heads * krow, 0.0f);
    ol = be_random_floats((size_t) rows * mla->heads * mla->kv_lora, 0.0f);
    out = be_random_floats(rows * orow, 0.0f);

    memset(&b, 0, sizeof(b));
    table[0] = other;
    table[1] = mine;
    first[0] = 3;
    first[1] = c->first;
    b.first = (c->first != 0) ? first : NULL;
    b.pos = pos;
    b.seq = seq;
    b.n_seqs = 2;
    b.blocks = table;

    for (at = 0; at < c->n; at += chunk) {
        rows = (c->n - at < chunk) ? c->n - at : chunk;

        for (i = 0; i < extra + rows; i++) {
            seq[i] = (i < extra) ? 0 : 1;
            pos[i] = (i < extra) ? i + at / chunk % 50 : at + i - extra;
        }

        memcpy(q + extra * qrow, c->q + at * qrow,
               rows * qrow * sizeof(float));
        memcpy(kva + extra * krow, c->kva + at * krow,
               rows * krow * sizeof(float));

        b.n_rows = extra + rows;

        be->mla_cache(be, kv, 1, mla, &c->rope, c->norm, 1e-6f, kva, &b);
        be->mla_query(be, mla, &c->rope, uk, q, &b, ql);
        be->mla_attend(be, kv, 1, mla, c->scale, ql, &b, ol);
        be->mla_value(be, mla, uv, ol, b.n_rows, out);

        memcpy(o + at * orow, out + extra * orow,
               rows * orow * sizeof(float));
    }

    if (kv_out != NULL) {
        for (i = 0; i < blocks; i++) {
            be->kv_read(be, kv, mine[i],
                        (char *) kv_out + i * be->kv_block_size(kv));
        }

        /* Written elsewhere, a block reads back the same. */

        be->kv_write(be, kv, 1, kv_out);
        mine[0] = 1;
        memset(ol, 0, (size_t) b.n_rows * mla->heads * mla->kv_lora
                      * sizeof(float));
        be->mla_attend(be, kv, 1, mla, c->scale, ql, &b, ol);
        be->mla_value(be, mla, uv, ol, b.n_rows, out);
        at = c->n - rows;
        assert_memory_equal(o + at * orow, out + extra * orow,
                            rows * orow * sizeof(float));
    }

    be->weight_free(be, uk);
    be->weight_free(be, uv);
    be->kv_free(be, kv);
    be->close(be);
    free(q);
    free(kva);
    free(ql);
    free(ol);
    free(out);
}


/* In double, inputs of products rounded like the backend's. */

static void
attend_reference(const attend_case_t *c, double *o, double *size)
{
    double          *kv, *ql, *s, *ol, sum, max, angle, x0, x1, w, r;
    uint32_t         i, j, h, l, t, dim, at;
    const float     *q;
    const be_mla_t  *mla;

    mla = &c->mla;
    dim = mla->kv_lora + mla->rope;

    kv = calloc((size_t) c->n * dim, sizeof(double));
    ql = calloc(dim, sizeof(double));
    ol = calloc(mla->kv_lora, sizeof(double));
    s = calloc(c->n, sizeof(double));

    for (i = 0; i < c->n; i++) {
        sum = 0;

        for (l = 0; l < mla->kv_lora; l++) {
            x0 = c->kva[(size_t) i * dim + l];
            sum += x0 * x0;
        }

        r = 1 / sqrt(sum / mla->kv_lora + 1e-6);

        for (l = 0; l < mla->kv_lora; l++) {
            kv[(size_t) i * dim + l] = be_round(c->kva[(size_t) i * dim + l]
                                                * r * c->norm[l], c->compute);
        }

        for (l = 0; l < mla->rope; l += 2) {
            at = mla->kv_lora + l;
            angle = (double) i * c->freq[l / 2];
            x0 = c->kva[(size_t) i * dim + at];
            x1 = c->kva[(size_t) i * dim + at + 1];

            kv[(size_t) i * dim + at] = be_round(
                (x0 * cos(angle) - x1 * sin(angle)) * 1.1f, c->compute);
            kv[(size_t) i * dim + at + 1] = be_round(
                (x0 * sin(angle) + x1 * cos(angle)) * 1.1f, c->compute);
        }
    }

    for (i = 0; i < c->n; i++) {
        for (h = 0; h < mla->heads; h++) {
            q = c->q + ((size_t) i * mla->heads + h)
                       * (mla->nope + mla->rope);

            for (l = 0; l < mla->kv_lora; l++) {
                sum = 0;

                for (j = 0; j < mla->nope; j++) {
                    at = (h * (mla->nope + mla->v) + j) * mla->kv_lora + l;
                    sum += be_round(q[j], c->compute)
                           * be_load_bf16(c->kvb + (size_t) at * 2);
                }

                ql[l] = be_round(sum, c->compute);
            }

            for (l = 0; l < mla->rope; l += 2) {
                angle = (double) i * c->freq[l / 2];
                x0 = q[mla->nope + l];
                x1 = q[mla->nope + l + 1];

                ql[mla->kv_lora + l] = be_round(
                    (x0 * cos(angle) - x1 * sin(angle)) * 1.1f, c->compute);
                ql[mla->kv_lora + l + 1] = be_round(
                    (x0 * sin(angle) + x1 * cos(angle)) * 1.1f, c->compute);
            }

            max = -INFINITY;

            for (t = c->first; t <= i; t++) {
                s[t] = 0;

                for (l = 0; l < dim; l++) {
                    s[t] += ql[l] * kv[(size_t) t * dim + l];
                }

                s[t] *= c->scale;
                max = fmax(max, s[t]);
            }

            sum = 0;

            for (t = c->first; t <= i; t++) {
                s[t] = exp(s[t] - max);
                sum += s[t];
            }

            for (l = 0; l < mla->kv_lora; l++) {
                ol[l] = 0;

                for (t = c->first; t <= i; t++) {
                    ol[l] += s[t] / sum * kv[(size_t) t * dim + l];
                }
            }

            for (j = 0; j < mla->v; j++) {
                sum = 0;
                r = 0;

                for (l = 0; l < mla->kv_lora; l++) {
                    at = (h * (mla->nope + mla->v) + mla->nope + j)
                         * mla->kv_lora + l;
                    w = be_load_bf16(c->kvb + (size_t) at * 2);
                    sum += be_round(ol[l], c->compute) * w;
                    r += fabs(ol[l] * w);
                }

                at = (i * mla->heads + h) * mla->v + j;
                o[at] = sum;
                size[at] = r;
            }
        }
    }

    free(kv);
    free(ql);
    free(ol);
    free(s);
}


static void
attend_compare(attend_case_t *c, const float *o, const double *ref,
    const double *size, const char *path)
{
    double  tol, error;
    size_t  j, begin, n;

    n = (size_t) c->n * c->mla.heads * c->mla.v;
    begin = (size_t) c->first * c->mla.heads * c->mla.v;
    error = 0;

    /*
     * Under BF16 a sum that falls on the other side of a rounding border
     * moves by 2^-8: only the mean is sharp.
     */

    tol = (c->compute == BE_F32) ? 2e-5 : 2e-2;

    for (j = begin; j < n; j++) {
        be_near(o[j], ref[j], size[j], tol, "attend", path);
        error += fabs(o[j] - ref[j]) / (size[j] + 1e-30);
    }

    if (c->compute == BE_BF16) {
        assert_true(error / (double) (n - begin) < 1.5e-3);
    }
}


static void
test_attend_reference(void **state)
{
    float              *o;
    double             *ref, *size;
    size_t              i, j, n;
    be_dtype_t          compute;
    attend_case_t       c;
    const char *const  *path;

    static const uint32_t  first[] = { 0, 1, 65 };

    (void) state;

    for (i = 0; i < ATTEND_SHAPES; i++) {
        for (compute = BE_F32; compute <= BE_BF16; compute++) {
            attend_make(&c, &attend_shapes[i], compute,
                        i == 0 ? 135 : i == 2 ? 1100 : 67);

            n = (size_t) c.n * c.mla.heads * c.mla.v;
            o = be_random_floats(n, 0.0f);
            ref = calloc(n, sizeof(double));
            size = calloc(n, sizeof(double));
            assert_non_null(ref);
            assert_non_null(size);

            for (j = 0; j < sizeof(first) / sizeof(first[0]); j++) {
                c.first = first[j];
                attend_reference(&c, ref, size);

                for (path = be_test_paths(); *path != NULL; path++) {
                    attend_run(&c, *path, 2, 64, 0, o, NULL);
                    attend_compare(&c, o, ref, size, *path);
                }
            }

            free(o);
            free(ref);
            free(size);
            attend_free(&c);
        }
    }
}


/* One sequence, cut differently: outputs and KV blocks equal bit by bit. */

static void
test_attend_same_bits(void **state)
{
    void               *kv, *kv2;
    float              *o, *p;
    size_t              i, j, n, kv_size;
    be_dtype_t          compute;
    attend_case_t       c;
    const char *const  *path;

    static const uint32_t  cut[][3] = {      /* threads, chunk, others */
        { 2, 140, 0 }, { 1, 1, 0 }, { 2, 1, 1 }, { 2, 16, 1 }, { 3, 64, 0 },
        { 1, 7, 1 }
    };

    (void) state;

    for (i = 0; i < ATTEND_SHAPES; i++) {
        for (compute = BE_F32; compute <= BE_BF16; compute++) {
            attend_make(&c, &attend_shapes[i], compute,
                        attend_shapes[i].heads > 4 ? 70 : 140);

            /* with and without a beginning of its own */

            c.first = i % 2 * 66;
            n = (size_t) c.n * c.mla.heads * c.mla.v;
            kv_size = (size_t) 3 * 2 * 64 * (c.mla.kv_lora + c.mla.rope)
                      * (compute == BE_F32 ? 4 : 2);
            o = be_random_floats(n, 0.0f);
            p = be_random_floats(n, 0.0f);
            kv = calloc(1, kv_size);
            kv2 = calloc(1, kv_size);
            assert_non_null(kv);
            assert_non_null(kv2);

            for (path = be_test_paths(); *path != NULL; path++) {
                attend_run(&c, *path, 1, c.n, 0, o, kv);

                for (j = 0; j < sizeof(cut) / sizeof(cut[0]); j++) {
                    if (j >= 3 && strcmp(*path, "generic") == 0) {
                        break;       /* slow, and the same for all */
                    }

                    attend_run(&c, *path, cut[j][0], cut[j][1],
                               (int) cut[j][2], p, kv2);
                    assert_memory_equal(o, p, n * sizeof(float));
                    assert_memory_equal(kv, kv2, kv_size);
                }
            }

            free(o);
            free(p);
            free(kv);
            free(kv2);
            attend_free(&c);
        }
    }
}


/* Several runs of tokens, alone or with others, split over threads or not. */

static void
test_attend_runs(void **state)
{
    float              *o, *p;
    size_t              j, n;
    be_dtype_t          compute;
    attend_case_t       c;
    const char *const  *path;

    static const be_mla_t  shape = { 0, 5, 4, 2, 3, 40 };

    static const uint32_t  cut[][4] = {  /* threads, chunk, others, first */
        { 2, 1150, 0, 0 }, { 3, 1, 0, 0 }, { 2, 37, 1, 0 },
        { 1, 1150, 0, 530 }, { 3, 1, 1, 530 }, { 2, 300, 1, 530 }
    };

    (void) state;

    for (compute = BE_F32; compute <= BE_BF16; compute++) {
        attend_make(&c, &shape, compute, 1150);

        n = (size_t) c.n * c.mla.heads * c.mla.v;
        o = be_random_floats(n, 0.0f);
        p = be_random_floats(n, 0.0f);

        for (path = be_test_paths(); *path != NULL; path++) {

            for (j = 0; j < sizeof(cut) / sizeof(cut[0]); j++) {

                if (c.first != cut[j][3] || j == 0) {
                    c.first = cut[j][3];
                    attend_run(&c, *path, 1, 64, 0, o, NULL);
                }

                attend_run(&c, *path, cut[j][0], cut[j][1], (int) cut[j][2],
                           p, NULL);

                assert_memory_equal(o + n / c.n * c.first,
                                    p + n / c.n * c.first,
                                    n / c.n * (c.n - c.first)
                                    * sizeof(float));
            }
        }

        free(o);
        free(p);
        attend_free(&c);
    }
}


/*
 * More runs than there is memory for their results at once, after a reserve
 * for so many rows: three sequences that are one, or a single one.
 */

static void
test_attend_turns(void **state)
{
    be_t               *be, *one;
    char                err[ERR_LEN];
    float              *kva, *ql, *o, *p, *norm, freq;
    size_t              n;
    int32_t            *blocks;
    be_kv_t            *kv;
    uint32_t            i, at, seqs, threads, pos[64], seq[64], first[3];
    be_gate_t           gate;
    be_rope_t           rope;
    be_batch_t          b;
    be_largest_t        l;
    const int32_t      *table[3];
    const char *const  *path;

    static const be_mla_t  mla = { 16, 3, 4, 2, 3, 10 };

    enum { BLOCKS = 70 * 8, DIM = 12, ROWS = 3 };

    (void) state;

    n = (size_t) ROWS * mla.heads * mla.kv_lora;
    kva = be_random_floats((size_t) 64 * DIM, 2.0f);
    ql = be_random_floats((size_t) ROWS * mla.heads * DIM, 3.0f);
    o = be_random_floats(n, 0.0f);
    p = be_random_floats(n, 0.0f);
    norm = be_random_floats(mla.kv_lora, 1.0f);
    blocks = calloc(BLOCKS, sizeof(int32_t));
    assert_non_null(blocks);

    freq = 0.7f;
    rope.dim = 2;
    rope.freq = &freq;
    rope.mscale = 1.0f;

    memset(&gate, 0, sizeof(gate));
    gate.experts = 4;
    gate.top_k = 2;

    memset(&l, 0, sizeof(l));
    l.rows = 64;
    l.pairs = 128;
    l.inputs = 16;
    l.hidden = 16;
    l.inter = 16;
    l.moe_inter = 16;
    l.mla = &mla;
    l.gate = &gate;

    for (i = 0; i < BLOCKS; i++) {
        blocks[i] = (int32_t) i;
    }

    for (path = be_test_paths(); *path != NULL; path++) {
        for (threads = 2; threads <= 3; threads++) {
            be = be_test_open(*path, BE_BF16, threads);
            one = be_test_open(*path, BE_BF16, 1);
            kv = be->kv_open(be, 1, BLOCKS, &mla, err);
            assert_non_null(kv);
            assert_int_equal(be->reserve(be, &l, err), 0);

            memset(&b, 0, sizeof(b));
            table[0] = blocks;
            table[1] = blocks;
            table[2] = blocks;
            b.pos = pos;
            b.seq = seq;
            b.n_seqs = 3;
            b.blocks = table;
            b.n_rows = 64;
            memset(seq, 0, sizeof(seq));

            for (at = 0; at < BLOCKS * 64; at += 64) {
                for (i = 0; i < 64; i++) {
                    pos[i] = at + i;
                    kva[(i * 7 + at / 64) % (64 * DIM)] += 0.01f;
                }

                be->mla_cache(be, kv, 0, &mla, &rope, norm, 1e-6f, kva, &b);
            }

            b.n_rows = ROWS;

            for (i = 0; i < 3; i++) {
                first[i] = i * 12000;
            }

            for (seqs = 1; seqs <= 3; seqs += 2) {
                b.first = (seqs == 3) ? first : NULL;

                for (i = 0; i < ROWS; i++) {
                    seq[i] = i % seqs;
                    pos[i] = BLOCKS * 64 - 1 - (seqs == 3 ? i * 700 : 3 - i);
                }

                /* as one thread does it, run by run */

                be->mla_attend(be, kv, 0, &mla, 0.5f, ql, &b, p);
                one->mla_attend(one, kv, 0, &mla, 0.5f, ql, &b, o);
                assert_memory_equal(o, p, n * sizeof(float));
            }

            be->kv_free(be, kv);
            be->close(be);
            one->close(one);
        }
    }

    free(kva);
    free(ql);
    free(o);
    free(p);
    free(norm);
    free(blocks);
}


/* A row that is not finite must not spoil those before it in its step. */

static void
test_attend_infinite(void **state)
{
    float              *o, *p;
    size_t              i, n;
    attend_case_t       c;
    const char *const  *path;

    (void) state;

    attend_make(&c, &attend_shapes[0], BE_BF16, 20);

    n = (size_t) c.n * c.mla.heads * c.mla.v;
    o = be_random_floats(n, 0.0f);
    p = be_random_floats(n, 0.0f);

    c.kva[17 * (c.mla.kv_lora + c.mla.rope) + 3] = INFINITY;

    for (path = be_test_paths(); *path != NULL; path++) {
        attend_run(&c, *path, 1, 1, 0, o, NULL);
        attend_run(&c, *path, 2, 20, 0, p, NULL);

        n = (size_t) 17 * c.mla.heads * c.mla.v;
        assert_memory_equal(o, p, n * sizeof(float));

        for (i = 0; i < n; i++) {
            assert_true(isfinite(o[i]));
        }
    }

    free(o);
    free(p);
    attend_free(&c);
}


/* What lies in the cache beyond a row's position must not matter. */

static void
test_attend_beyond(void **state)
{
    be_t               *be;
    char                err[ERR_LEN];
    float              *ql, *ol, *ol2;
    void               *block, *bad;
    size_t              i, size;
    int32_t             ids[1];
    be_kv_t            *kv;
    uint32_t            pos[2], seq[2], row, threads;
    be_batch_t          b;
    be_dtype_t          compute;
    const int32_t      *table[1];
    const be_mla_t     *mla;
    const char *const  *path;

    (void) state;

    mla = &attend_shapes[0];
    row = mla->kv_lora + mla->rope;
    ql = be_random_floats(2 * mla->heads * row, 1.0f);
    ol = be_random_floats(2 * mla->heads * mla->kv_lora, 0.0f);
    ol2 = be_random_floats(2 * mla->heads * mla->kv_lora, 0.0f);

    ids[0] = 0;
    table[0] = ids;
    seq[0] = 0;
    seq[1] = 0;

    memset(&b, 0, sizeof(b));
    b.n_rows = 2;
    b.pos = pos;
    b.seq = seq;
    b.n_seqs = 1;
    b.blocks = table;

    for (path = be_test_paths(); *path != NULL; path++) {
        for (compute = BE_F32; compute <= BE_BF16; compute++) {
            for (threads = 1; threads <= 2; threads++) {
                be = be_test_open(*path, compute, threads);
                kv = be->kv_open(be, 1, 1, mla, err);
                assert_non_null(kv);

                size = be->kv_block_size(kv);
                block = calloc(1, size);
                bad = malloc(size);
                assert_non_null(block);
                assert_non_null(bad);

                for (i = 0; i < size / 2; i++) {
                    ((uint16_t *) block)[i] = be_to_bf16(be_random());
                }

                pos[0] = (threads == 1) ? 4 : 5;
                pos[1] = pos[0] + 1;

                memset(bad, 0xff, size);
                memcpy(bad, block, (pos[1] + 1) * (size / 64));

                be->kv_write(be, kv, 0, block);
                be->mla_attend(be, kv, 0, mla, 0.1f, ql, &b, ol);
                be->kv_write(be, kv, 0, bad);
                be->mla_attend(be, kv, 0, mla, 0.1f, ql, &b, ol2);

                assert_memory_equal(ol, ol2, 2 * mla->heads * mla->kv_lora
                                             * sizeof(float));

                free(block);
                free(bad);
                be->kv_free(be, kv);
                be->close(be);
            }
        }
    }

    free(ql);
    free(ol);
    free(ol2);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_attend_reference),
        cmocka_unit_test(test_attend_same_bits),
        cmocka_unit_test(test_attend_runs),
        cmocka_unit_test(test_attend_turns),
        cmocka_unit_test(test_attend_infinite),
        cmocka_unit_test(test_attend_beyond)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
