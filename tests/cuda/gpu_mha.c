/*
 * Attention over expanded keys and values against sums in double precision over
 * the same rounded inputs, in one tile of tokens and in several; latent rows
 * out of both caches; matrices turned.  What belongs to nobody is not a number.
 * Then the backend's attention of a step with prompts, expanded and absorbed,
 * against the CPU backend's in float32.
 */

#include "bf16.h"
#include "test_cuda_util.h"
#include "gpu_main.h"

#include "backend/be_quant.h"
#include "backend/cuda/be_cuda.h"


#define KEY  (CU_MHA_NOPE + CU_MHA_ROPE)

typedef struct {
    uint32_t  heads;
    uint32_t  all;
    uint32_t  row;
    uint32_t  rows;
    uint32_t  pos;
    uint32_t  first;
    uint32_t  tile;                  /* tokens */
    int       wide;
} mha_case_t;


static const float  mha_scale = 0.1352338f;


/* Random numbers, in BF16. */

static uint16_t *
numbers(size_t n, float size)
{
    size_t     i;
    uint16_t  *p;

    p = malloc(n * sizeof(uint16_t));
    assert_non_null(p);

    for (i = 0; i < n; i++) {
        p[i] = to_bf16(cu_normal() * size);
    }

    return p;
}


/* A query's output. */

static void
want(const mha_case_t *c, const uint16_t *qn, const uint16_t *ql,
    const uint16_t *k, const uint16_t *v, const uint16_t *rope, uint32_t row,
    uint32_t head, double *o)
{
    double           s, max, sum, *all;
    uint32_t         t, i, end;
    const uint16_t  *key;

    qn += ((size_t) (c->row + row) * c->heads + head) * CU_MHA_NOPE;
    ql += ((size_t) (c->row + row) * c->heads + head) * CU_MLA_DIM
          + CU_MLA_LORA;
    end = c->pos + row + 1;
    all = calloc(end, sizeof(double));
    assert_non_null(all);
    max = -INFINITY;

    for (t = c->first; t < end; t++) {
        key = k + ((size_t) t * c->heads + head) * CU_MHA_NOPE;
        s = 0;

        for (i = 0; i < CU_MHA_NOPE; i++) {
            s += from_bf16(qn[i]) * from_bf16(key[i]);
        }

        for (i = 0; i < CU_MHA_ROPE; i++) {
            s += from_bf16(ql[i])
                 * from_bf16(rope[(size_t) t * CU_MHA_ROPE + i]);
        }

        all[t] = s * mha_scale;
        max = all[t] > max ? all[t] : max;
    }

    memset(o, 0, CU_MHA_V * sizeof(double));
    sum = 0;

    for (t = c->first; t < end; t++) {
        s = exp(all[t] - max);
        sum += s;

        for (i = 0; i < CU_MHA_V; i++) {
            o[i] += s * from_bf16(v[((size_t) t * c->heads + head) * CU_MHA_V
                                + i]);
        }
    }

    for (i = 0; i < CU_MHA_V; i++) {
        o[i] /= sum;
    }

    free(all);
}


static void
run(const mha_case_t *c, float *out)
{
    size_t      n, size;
    double      o[CU_MHA_V], e, w;
    cu_mha_t    a;
    uint32_t    i, r, h, t, tokens;
    uint16_t   *qn, *ql, *k, *v, *rope, half;

    tokens = c->pos + c->rows;
    n = (size_t) c->all * c->heads;
    qn = numbers(n * CU_MHA_NOPE, 0.7f);
    ql = numbers(n * CU_MLA_DIM, 0.7f);
    k = numbers((size_t) tokens * c->heads * CU_MHA_NOPE, 1);
    v = numbers((size_t) tokens * c->heads * CU_MHA_V, 1);
    rope = numbers((size_t) tokens * CU_MHA_ROPE, 1);

    for (t = 0; t < c->first / 64 * 64; t++) {       /* is not looked at */
        memset(k + (size_t) t * c->heads * CU_MHA_NOPE, 0xff,
               c->heads * CU_MHA_NOPE * 2);
    }

    memset(&a, 0, sizeof(a));
    size = n * CU_MHA_V * (c->wide ? 4 : 2);
    a.qn = cu_put(qn, n * CU_MHA_NOPE * 2);
    a.ql = cu_put(ql, n * CU_MLA_DIM * 2);
    a.o = cu_put(NULL, size);
    CU_OK(cudaMemset(a.o, 0xff, size));
    a.state = cu_put(NULL, (size_t) c->rows * c->heads * CU_MHA_STATE
                           * sizeof(float));
    a.all = c->all;
    a.heads = c->heads;
    a.row = c->row;
    a.rows = c->rows;
    a.pos = c->pos;
    a.first = c->first;
    a.scale = mha_scale;
    a.wide = c->wide;
    a.begin = 1;

    for (t = c->first / 64 * 64; t < tokens; t += c->tile) {
        a.from = t;
        a.tokens = (tokens - t < c->tile) ? tokens - t : c->tile;
        a.end = (t + c->tile >= tokens);
        a.k = cu_put(k + (size_t) t * c->heads * CU_MHA_NOPE,
                     (size_t) a.tokens * c->heads * CU_MHA_NOPE * 2);
        a.v = cu_put(v + (size_t) t * c->heads * CU_MHA_V,
                     (size_t) a.tokens * c->heads * CU_MHA_V * 2);
        a.rope = cu_put(rope + (size_t) t * CU_MHA_ROPE,
                        (size_t) a.tokens * CU_MHA_ROPE * 2);
        CU_OK(cu_mha(&a, NULL));
        CU_OK(cudaDeviceSynchronize());
        CU_OK(cudaFree((void *) a.k));
        CU_OK(cudaFree((void *) a.v));
        CU_OK(cudaFree((void *) a.rope));
        a.begin = 0;
    }

    cu_get(out, a.o, size);

    for (i = 0; !c->wide && i < n * CU_MHA_V; i++) {
        memcpy(&half, (uint8_t *) out + 2 * (n * CU_MHA_V - 1 - i), 2);
        out[n * CU_MHA_V - 1 - i] = (float) from_bf16(half);
    }

    for (r = 0; r < c->rows; r += (r < 3 || r > c->rows - 4) ? 1 : 7) {
        for (h = 0; h < c->heads; h++) {
            want(c, qn, ql, k, v, rope, r, h, o);
            e = 0;
            w = 0;

            for (i = 0; i < CU_MHA_V; i++) {
                double  d = out[((size_t) (c->row + r) * c->heads + h)
                                * CU_MHA_V + i] - o[i];

                e += d * d;
                w += o[i] * o[i];
            }

            if (!(sqrt(e / w) < (c->wide ? 3e-3 : 4e-3))) {
                fail_msg("%u rows at %u, tiles of %u, row %u, head %u: off "
                         "by %g", c->rows, c->pos, c->tile, r, h,
                         sqrt(e / w));
            }
        }
    }

    /* rows of others are left alone */

    for (r = 0; r < c->all; r++) {
        if (r < c->row || r >= c->row + c->rows) {
            assert_true(isnan(out[(size_t) r * c->heads * CU_MHA_V + 5]));
        }
    }

    CU_OK(cudaFree((void *) a.qn));
    CU_OK(cudaFree((void *) a.ql));
    CU_OK(cudaFree(a.o));
    CU_OK(cudaFree(a.state));
    free(qn);
    free(ql);
    free(k);
    free(v);
    free(rope);
}


static void
test_rows(void **state)
{
    float     *out;
    uint32_t   i;

    static const mha_case_t  cases[] = {
        { 1, 1, 0, 1, 0, 0, 64, 1 },
        { 3, 200, 20, 150, 0, 0, 4096, 0 },
        { 2, 140, 0, 140, 100, 0, 4096, 1 },
        { 2, 140, 0, 140, 100, 0, 128, 1 },
        { 2, 90, 30, 37, 300, 0, 64, 0 },
        { 1, 130, 0, 130, 200, 150, 128, 1 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        out = malloc((size_t) cases[i].all * cases[i].heads * CU_MHA_V * 4);
        assert_non_null(out);
        run(&cases[i], out);
        free(out);
    }
}


static void
test_gather(void **state)
{
    void      *kv, *table, *c, *rope;
    float      scale;
    size_t     size, record;
    uint8_t   *cache, *r;
    int        fp8;
    uint32_t   i, t;
    uint16_t  *got, *gope, want;

    static const int32_t  blocks[] = { 3, 0, 4 };

    (void) state;
    table = cu_put(blocks, sizeof(blocks));

    for (fp8 = 0; fp8 < 2; fp8++) {
        record = fp8 ? CU_MLA_FP8_SIZE : CU_MLA_DIM * 2;
        size = 5 * 64 * record;
        cache = malloc(size);
        got = malloc(100 * CU_MLA_LORA * 2);
        gope = malloc(100 * CU_MHA_ROPE * 2);
        assert_true(cache != NULL && got != NULL && gope != NULL);

        for (i = 0; i < size; i++) {
            cache[i] = (uint8_t) cu_random(0x70);
        }

        kv = cu_put(cache, size);
        c = cu_put(NULL, 100 * CU_MLA_LORA * 2);
        rope = cu_put(NULL, 100 * CU_MHA_ROPE * 2);
        CU_OK(cu_mha_gather(kv, fp8, table, 64, 100, c, rope, NULL));
        CU_OK(cudaDeviceSynchronize());
        cu_get(got, c, 100 * CU_MLA_LORA * 2);
        cu_get(gope, rope, 100 * CU_MHA_ROPE * 2);

        for (t = 0; t < 100; t++) {
            r = cache + ((size_t) blocks[1 + t / 64] * 64 + t % 64) * record;

            for (i = 0; i < CU_MLA_LORA; i++) {
                memcpy(&want, r + 2 * i, 2);

                if (fp8) {
                    memcpy(&scale, r + CU_MLA_LORA + i / 128 * 4, 4);
                    want = to_bf16(be_from_e4m3(r[i]) * scale);
                }

                assert_int_equal(got[t * CU_MLA_LORA + i], want);
            }

            r += fp8 ? CU_MLA_LORA + 16 : CU_MLA_LORA * 2;
            assert_memory_equal(gope + t * CU_MHA_ROPE, r, CU_MHA_ROPE * 2);
        }

        CU_OK(cudaFree(kv));
        CU_OK(cudaFree(c));
        CU_OK(cudaFree(rope));
        free(cache);
        free(got);
        free(gope);
    }

    CU_OK(cudaFree(table));
}


static void
test_turn(void **state)
{
    void      *w, *to;
    uint32_t   p, r, c;
    uint16_t  *from, *got;

    (void) state;
    from = numbers(3 * 70 * 64, 1);
    got = malloc(3 * 70 * 45 * 2);
    assert_non_null(got);
    w = cu_put(from, 3 * 70 * 64 * 2);
    to = cu_put(NULL, 3 * 70 * 45 * 2);
    CU_OK(cu_mha_turn(w, 3, 70, 45, 64, to, NULL));
    CU_OK(cudaDeviceSynchronize());
    cu_get(got, to, 3 * 70 * 45 * 2);

    for (p = 0; p < 3; p++) {
        for (r = 0; r < 70; r++) {
            for (c = 0; c < 45; c++) {
                assert_int_equal(got[(p * 45 + c) * 70 + r],
                                 from[(p * 70 + r) * 64 + c]);
            }
        }
    }

    CU_OK(cudaFree(w));
    CU_OK(cudaFree(to));
    free(from);
    free(got);
}


/* --- of a backend -------------------------------------------------------- */

#define HEADS   3
#define STEPS   2
#define MOST    340                  /* rows of a step */

/*
 * First what is cached, then an answer's row, a prompt behind 90 tokens and one
 * from its beginning.
 */

static const struct {
    uint32_t  seq;
    uint32_t  pos;
    uint32_t  rows;
} parts[STEPS][3] = {
    { { 0, 0, 90 }, { 1, 0, 20 }, { 2, 0, 0 } },
    { { 1, 20, 1 }, { 0, 90, 200 }, { 2, 0, 130 } }
};

typedef struct {
    float     *kv_b, *norm;
    float     *q[STEPS], *kva[STEPS];
    uint32_t   rows[STEPS];
    float     *freq;
    be_mla_t   mla;
} model_t;


static float *
floats(size_t n, float size)
{
    float   *p;
    size_t   i;

    p = malloc(n * sizeof(float));
    assert_non_null(p);

    for (i = 0; i < n; i++) {
        p[i] = cu_normal() * size;
    }

    return p;
}


static void
model_make(model_t *m)
{
    uint32_t  i, k;

    m->mla.heads = HEADS;
    m->mla.nope = CU_MHA_NOPE;
    m->mla.rope = CU_MHA_ROPE;
    m->mla.v = CU_MHA_V;
    m->mla.kv_lora = CU_MLA_LORA;
    m->mla.hidden = 64;
    m->kv_b = floats(HEADS * 256 * CU_MLA_LORA, 0.06f);
    m->norm = floats(CU_MLA_LORA, 0.3f);
    m->freq = floats(CU_MHA_ROPE / 2, 0);

    for (i = 0; i < CU_MHA_ROPE / 2; i++) {
        m->freq[i] = powf(1e4f, -2.0f * (float) i / CU_MHA_ROPE);
    }

    for (i = 0; i < STEPS; i++) {
        m->rows[i] = 0;

        for (k = 0; k < 3; k++) {
            m->rows[i] += parts[i][k].rows;
        }

        m->q[i] = floats((size_t) m->rows[i] * HEADS * KEY, 0.8f);
        m->kva[i] = floats((size_t) m->rows[i] * CU_MLA_DIM, 1);
    }
}


static void
model_drop(model_t *m)
{
    uint32_t  i;

    for (i = 0; i < STEPS; i++) {
        free(m->q[i]);
        free(m->kva[i]);
    }

    free(m->kv_b);
    free(m->norm);
    free(m->freq);
}


/* The host's, or the device's memory. */

static void *
of(be_t *be, const float *x, size_t n)
{
    void  *p;

    p = be->device ? be->alloc(be, n * sizeof(float))
                   : calloc(n, sizeof(float));
    assert_non_null(p);

    if (x != NULL && be->device) {
        be->upload(be, p, x, n * sizeof(float));

    } else if (x != NULL) {
        memcpy(p, x, n * sizeof(float));
    }

    return p;
}


static void
off(be_t *be, void *p)
{
    if (be->device) {
        be->free(be, p);

    } else {
        free(p);
    }
}


/* What attention gives for the last step's rows. */

static float *
attention(be_t *be, const model_t *m)
{
    char          err[ERR_LEN];
    void         *norm, *q, *kva, *ql, *ol, *o;
    float        *out;
    size_t        n;
    be_kv_t      *kv;
    uint32_t      i, k, r, rows;
    be_rope_t     rope;
    be_step_t     step;
    be_weight_t  *uk, *uv;
    be_tensor_t   t;
    uint16_t     *half;

    static int32_t         id[MOST];
    static uint32_t        pos[MOST], seq[MOST];
    static const int32_t   table[3][5] = {
        { 5, 1, 7, 2, 9 }, { 0 }, { 3, 4, 6 }
    };
    static const int32_t  *const  blocks[] = { table[0], table[1], table[2] };

    memset(&t, 0, sizeof(t));
    t.rows = HEADS * 256;
    t.cols = CU_MLA_LORA;
    t.dtype = BE_F32;
    t.data = m->kv_b;
    t.take = CU_MHA_NOPE;
    uk = be->weight_t(be, &t, HEADS, NULL, err);
    t.parts = HEADS;
    t.from = CU_MHA_NOPE;
    t.take = CU_MHA_V;
    uv = be->weight(be, &t, NULL, err);
    kv = be->kv_open(be, 1, 10, &m->mla, err);
    assert_true(uk != NULL && uv != NULL && kv != NULL);

    rope.dim = CU_MHA_ROPE;
    rope.freq = m->freq;
    rope.mscale = 1;
    norm = of(be, m->norm, CU_MLA_LORA);
    out = NULL;

    for (i = 0; i < STEPS; i++) {
        rows = 0;

        for (k = 0; k < 3; k++) {
            for (r = 0; r < parts[i][k].rows; r++, rows++) {
                id[rows] = 1;
                pos[rows] = parts[i][k].pos + r;
                seq[rows] = parts[i][k].seq;
            }
        }

        memset(&step, 0, sizeof(step));
        step.all.n_rows = rows;
        step.all.id = id;
        step.all.pos = pos;
        step.all.seq = seq;
        step.all.n_seqs = 3;
        step.all.blocks = blocks;
        step.last = step.all;
        step.last.n_rows = 1;
        step.max_rows = MOST;
        step.max_last = MOST;

        q = of(be, m->q[i], (size_t) rows * HEADS * KEY);
        kva = of(be, m->kva[i], (size_t) rows * CU_MLA_DIM);
        ql = of(be, NULL, (size_t) rows * HEADS * CU_MLA_DIM);
        ol = of(be, NULL, (size_t) rows * HEADS * CU_MLA_LORA);
        n = (size_t) rows * HEADS * CU_MHA_V;
        o = of(be, NULL, n);

        if (be->begin != NULL) {
            assert_int_equal(be->begin(be, &step, err), 0);
        }

        be->mla_cache(be, kv, 0, &m->mla, &rope, norm, 1e-6f, kva, &step.all);
        be->mla_query(be, &m->mla, &rope, uk, q, &step.all, ql);
        be->mla_attend(be, kv, 0, &m->mla, 0.1f, ql, &step.all, ol);
        be->mla_value(be, &m->mla, uv, ol, rows, o);

        if (be->end != NULL) {
            assert_int_equal(be->end(be, err), 0);
        }

        free(out);
        out = malloc(n * sizeof(float));
        assert_non_null(out);

        if (be->device) {
            be->download(be, out, o, n * sizeof(uint16_t));

            if (be->sync(be, err) != 0) {
                fail_msg("%s", err);
            }

            half = (uint16_t *) (void *) out;

            for (r = (uint32_t) n; r-- > 0; /* void */ ) {
                out[r] = (float) from_bf16(half[r]);
            }

        } else {
            memcpy(out, o, n * sizeof(float));
        }

        off(be, q);
        off(be, kva);
        off(be, ql);
        off(be, ol);
        off(be, o);
    }

    off(be, norm);
    be->kv_free(be, kv);
    be->weight_free(be, uk);
    be->weight_free(be, uv);

    return out;
}


static void
compare(const float *x, const float *y, const char *what)
{
    double    e, w;
    uint32_t  i, k;

    for (i = 0; i < 331; i++) {
        e = 0;
        w = 0;

        for (k = 0; k < HEADS * CU_MHA_V; k++) {
            e += pow((double) x[i * HEADS * CU_MHA_V + k]
                     - y[i * HEADS * CU_MHA_V + k], 2);
            w += pow(y[i * HEADS * CU_MHA_V + k], 2);
        }

        if (!(sqrt(e) < 0.015 * sqrt(w))) {
            fail_msg("%s, row %u: off by %g of %g", what, i, sqrt(e),
                     sqrt(w));
        }
    }
}


static void
test_backend(void **state)
{
    char          err[ERR_LEN];
    be_t         *be;
    float        *out, *same;
    model_t       m;
    uint32_t      i;
    be_cuda_t    *cuda;
    be_options_t  opt;

    (void) state;
    model_make(&m);
    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_F32;
    opt.threads = 1;
    opt.pin = -1;
    be = be_cpu_open(&opt, err);
    assert_non_null(be);
    same = attention(be, &m);
    be->close(be);

    /* expanded, in tiles too; absorbed, as the option says, or determinism */

    for (i = 0; i < 4; i++) {
        opt.compute = BE_BF16;
        opt.absorbed = (i == 2);
        opt.fixed = (i == 3);
        be = be_cuda_open(&opt, err);

        if (be == NULL) {
            fail_msg("%s", err);
        }

        cuda = (be_cuda_t *) be;
        cuda->expand.tile = (i == 1) ? 128 : 0;
        out = attention(be, &m);
        compare(out, same, i < 2 ? "expanded" : "absorbed");
        assert_int_equal(cuda->expand.groups, i < 2 ? 2 : 0);
        be->close(be);
        free(out);
    }

    free(same);
    model_drop(&m);
}


/* Where it pays: README and be_cuda_expand.c have these numbers. */

static void
test_choice(void **state)
{
    uint32_t        i;
    be_cuda_t       cuda;
    cu_mla_group_t  g;

    static const struct {
        uint32_t  rows, pos, first;
        int       yes;
    } cases[] = {
        { 63, 0, 0, 0 }, { 90, 0, 0, 0 }, { 128, 0, 0, 1 }, { 512, 0, 0, 1 },
        { 128, 4096, 0, 0 }, { 256, 4096, 0, 1 }, { 160, 100000, 0, 0 },
        { 256, 100000, 0, 1 }, { 512, 100000, 0, 1 },
        { 128, 100000, 100000, 1 }
    };

    (void) state;
    memset(&cuda, 0, sizeof(cuda));
    memset(&g, 0, sizeof(g));

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        g.rows = cases[i].rows;
        g.pos = cases[i].pos;
        g.first = cases[i].first;
        cuda.expand.on = 1;
        assert_int_equal(be_cuda_expands(&cuda, &g), cases[i].yes);
        cuda.expand.on = 0;
        assert_int_equal(be_cuda_expands(&cuda, &g), 0);
    }
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_turn),
        cmocka_unit_test(test_backend),
        cmocka_unit_test(test_choice)
    };

    return GPU_MAIN(argc, argv, tests);
}
