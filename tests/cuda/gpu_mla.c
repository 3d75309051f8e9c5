/*
 * Attention over the latent cache on a device, against sums in double
 * precision over the same rounded inputs.  Blocks that belong to nobody, and
 * what lies behind a sequence's end, are not numbers.
 */

#include "bf16.h"
#include "test_cuda_util.h"
#include "gpu_main.h"

#include "backend/cuda/cu_mla.h"


#define GROUPS  40
#define ROWS    256
#define BLOCKS  400

typedef struct {
    uint32_t         heads;
    uint32_t         sms;
    uint32_t         n_rows;
    uint32_t         n_groups;
    cu_mla_group_t   group[GROUPS];
    int              fixed;
    int              fp8;
    int              wide;
} mla_case_t;

/* All of one case, on the host. */

typedef struct {
    uint16_t  *q;                    /* [n_rows * heads][576] */
    uint16_t  *kv;                   /* [BLOCKS * 64][576] */
    uint8_t   *record;               /* [BLOCKS * 64][656] */
    int32_t    table[BLOCKS];
    uint32_t   n_table;
    uint32_t   pos[ROWS];
    float     *o;                    /* [n_rows * heads][512] */
} mla_data_t;


static const float  mla_scale = 0.1352338f;


static double
fp8_value(uint8_t b)
{
    int     e, m;
    double  v;

    e = b >> 3 & 15;
    m = b & 7;
    v = e == 0 ? ldexp(m, -9) : ldexp(8 + m, e - 10);

    return b & 0x80 ? -v : v;
}


/* A token of a sequence, in both formats; what BF16 has is what FP8 says. */

static void
mla_token(mla_data_t *d, const mla_case_t *c, int32_t row)
{
    int       i;
    float     scale, f;
    uint8_t  *r;
    uint16_t *h;

    h = d->kv + (size_t) row * CU_MLA_DIM;
    r = d->record + (size_t) row * CU_MLA_FP8_SIZE;

    for (i = 0; i < 4; i++) {
        scale = 0.001f * (float) (1 + cu_random(50));
        memcpy(r + CU_MLA_LORA + 4 * i, &scale, 4);
    }

    for (i = 0; i < CU_MLA_LORA; i++) {

        if (c->fp8) {
            r[i] = (uint8_t) cu_random(256);
            r[i] = (r[i] & 0x7f) == 0x7f ? 0x3c : r[i];
            memcpy(&scale, r + CU_MLA_LORA + 4 * (i / 128), 4);
            f = (float) fp8_value(r[i]) * scale * 0.1f;
            h[i] = to_bf16((float) fp8_value(r[i]) * scale);

        } else {
            f = cu_normal();
            h[i] = to_bf16(f);
        }
    }

    for (i = CU_MLA_LORA; i < CU_MLA_DIM; i++) {
        h[i] = to_bf16(cu_normal());
    }

    memcpy(r + CU_MLA_LORA + 16, h + CU_MLA_LORA, 2 * CU_MLA_ROPE);
}


static void
mla_make(mla_data_t *d, mla_case_t *c)
{
    int32_t           free[BLOCKS], b;
    uint32_t          i, k, n, left, blocks;
    cu_mla_group_t   *g;

    memset(d, 0, sizeof(mla_data_t));
    n = c->n_rows * c->heads;
    d->q = malloc((size_t) n * CU_MLA_DIM * 2);
    d->kv = malloc((size_t) BLOCKS * 64 * CU_MLA_DIM * 2);
    d->record = malloc((size_t) BLOCKS * 64 * CU_MLA_FP8_SIZE);
    d->o = malloc((size_t) n * CU_MLA_LORA * sizeof(float));

    memset(d->kv, 0xff, (size_t) BLOCKS * 64 * CU_MLA_DIM * 2);
    memset(d->record, 0xff, (size_t) BLOCKS * 64 * CU_MLA_FP8_SIZE);
    memset(d->o, 0xff, (size_t) n * CU_MLA_LORA * sizeof(float));

    for (i = 0; i < n * CU_MLA_DIM; i++) {
        d->q[i] = to_bf16(cu_normal() * 0.6f);
    }

    for (i = 0; i < BLOCKS; i++) {
        free[i] = (int32_t) i;
    }

    left = BLOCKS;

    for (i = 0; i < c->n_groups; i++) {
        g = &c->group[i];
        g->table = d->n_table;
        blocks = (g->pos + g->rows + 63) / 64;

        for (k = 0; k < blocks; k++) {
            assert_true(left > 0);
            n = cu_random(left);
            b = free[n];
            free[n] = free[--left];
            d->table[d->n_table++] = b;
        }

        for (k = g->first / 64 * 64; k < g->pos + g->rows; k++) {
            mla_token(d, c, d->table[g->table + k / 64] * 64
                            + (int32_t) (k % 64));
        }

        for (k = 0; k < g->rows; k++) {
            d->pos[g->row + k] = g->pos + k;
        }
    }
}


static void
mla_drop(mla_data_t *d)
{
    free(d->q);
    free(d->kv);
    free(d->record);
    free(d->o);
}


/* Runs it on a device with `c->sms` multiprocessors. */

static void
mla_run(const mla_case_t *c, mla_data_t *d)
{
    size_t            size;
    uint32_t          i, n;
    uint16_t         *h;
    cu_mla_plan_t     p;
    cu_mla_attend_t   a;

    n = c->n_rows * c->heads;
    assert_int_equal(cu_mla_plan_open(&p, c->heads, c->sms, c->n_rows,
                                      c->fixed), 0);
    assert_int_equal(cu_mla_plan(&p, c->group, c->n_groups), 0);

    memset(&a, 0, sizeof(a));
    size = (size_t) n * CU_MLA_LORA * (c->wide ? 4 : 2);

    a.work.unit = cu_put(p.unit, p.n_units
                                                   * sizeof(cu_mla_unit_t));
    a.work.lane = cu_put(p.lane, (p.lanes + 1)
                                              * sizeof(uint32_t));
    a.work.merge = cu_put(p.merge, (p.n_merge + 1)
                                                * sizeof(cu_mla_merge_t));
    a.work.n_merge = cu_put(&p.n_merge, sizeof(uint32_t));
    a.work.table = cu_put(d->table, sizeof(d->table));
    a.work.pos = cu_put(d->pos, sizeof(d->pos));
    a.q = cu_put(d->q, (size_t) n * CU_MLA_DIM * 2);
    a.kv = c->fp8 ? cu_put(d->record, (size_t) BLOCKS * 64 * CU_MLA_FP8_SIZE)
                  : cu_put(d->kv, (size_t) BLOCKS * 64 * CU_MLA_DIM * 2);
    a.o = cu_put(NULL, size);
    CU_OK(cudaMemset(a.o, 0xff, size));
    a.scratch = cu_put(NULL, cu_mla_scratch_size(&p));
    a.n_queries = n;
    a.heads = c->heads;
    a.blocks = BLOCKS;
    a.gang = p.gang;
    a.lanes = p.lanes;
    a.max_parts = p.max_parts;
    a.scale = mla_scale;
    a.fixed = c->fixed;
    a.fp8 = c->fp8;
    a.wide = c->wide;

    CU_OK(cu_mla_attend(&a, NULL));
    CU_OK(cudaDeviceSynchronize());

    if (c->wide) {
        cu_get(d->o, a.o, size);

    } else {
        h = malloc(size);
        cu_get(h, a.o, size);

        for (i = 0; i < n * CU_MLA_LORA; i++) {
            d->o[i] = (float) from_bf16(h[i]);
        }

        free(h);
    }

    CU_OK(cudaFree((void *) a.work.unit));
    CU_OK(cudaFree((void *) a.work.lane));
    CU_OK(cudaFree((void *) a.work.merge));
    CU_OK(cudaFree((void *) a.work.n_merge));
    CU_OK(cudaFree((void *) a.work.table));
    CU_OK(cudaFree((void *) a.work.pos));
    CU_OK(cudaFree((void *) a.q));
    CU_OK(cudaFree((void *) a.kv));
    CU_OK(cudaFree(a.o));
    CU_OK(cudaFree(a.scratch));
    cu_mla_plan_close(&p);
}


/* One query's output, in double precision. */

static void
mla_want(const mla_case_t *c, const mla_data_t *d, const cu_mla_group_t *g,
    uint32_t query, double *o)
{
    double           *s, max, sum;
    uint32_t          t, end, i;
    const uint16_t   *k, *q;

    (void) c;
    end = d->pos[query / c->heads] + 1;
    q = d->q + (size_t) query * CU_MLA_DIM;
    s = calloc(end, sizeof(double));
    max = -INFINITY;
    sum = 0;

    for (t = g->first; t < end; t++) {
        k = d->kv + ((size_t) d->table[g->table + t / 64] * 64 + t % 64)
                    * CU_MLA_DIM;

        for (i = 0; i < CU_MLA_DIM; i++) {
            s[t] += from_bf16(q[i]) * from_bf16(k[i]);
        }

        s[t] *= mla_scale;
        max = s[t] > max ? s[t] : max;
    }

    memset(o, 0, CU_MLA_LORA * sizeof(double));

    for (t = g->first; t < end; t++) {
        k = d->kv + ((size_t) d->table[g->table + t / 64] * 64 + t % 64)
                    * CU_MLA_DIM;
        s[t] = exp(s[t] - max);
        sum += s[t];

        for (i = 0; i < CU_MLA_LORA; i++) {
            o[i] += s[t] * from_bf16(k[i]);
        }
    }

    for (i = 0; i < CU_MLA_LORA; i++) {
        o[i] /= sum;
    }

    free(s);
}


/* Relative to the length of the output: BF16 rounds by up to 2^-9. */

static void
mla_compare(const mla_case_t *c, const mla_data_t *d)
{
    double                 o[CU_MLA_LORA], e, w, worst;
    uint32_t               i, k, q, step;
    const cu_mla_group_t  *g;

    worst = 0;

    for (i = 0; i < c->n_groups; i++) {
        g = &c->group[i];
        step = 1 + g->rows * c->heads / 40;

        for (q = g->row * c->heads; q < (g->row + g->rows) * c->heads;
             q += 1 + cu_random(2 * step))
        {
            mla_want(c, d, g, q, o);
            e = 0;
            w = 0;

            for (k = 0; k < CU_MLA_LORA; k++) {
                e += (d->o[(size_t) q * CU_MLA_LORA + k] - o[k])
                     * (d->o[(size_t) q * CU_MLA_LORA + k] - o[k]);
                w += o[k] * o[k];
            }

            e = sqrt(e / w);

            if (!(e < (c->wide ? 3e-3 : 4e-3))) {
                fail_msg("%u heads, group %u of %u rows at %u, query %u: "
                         "off by %g", c->heads, i, g->rows, g->pos, q, e);
            }

            worst = e > worst ? e : worst;
        }
    }

    assert_true(worst > 0);
}


static void
mla_groups(mla_case_t *c, uint32_t n, uint32_t most, uint32_t context)
{
    uint32_t  i;

    c->n_groups = n;
    c->n_rows = 0;

    for (i = 0; i < n; i++) {
        c->group[i].row = c->n_rows;
        c->group[i].rows = 1 + cu_random(most);
        c->group[i].pos = cu_random(context);
        c->group[i].first = 0;
        c->n_rows += c->group[i].rows;
    }
}


static void
mla_check(mla_case_t *c)
{
    mla_data_t  d;

    mla_make(&d, c);
    mla_run(c, &d);
    mla_compare(c, &d);
    mla_drop(&d);
}


static void
test_decode(void **state)
{
    int         i;
    mla_case_t  c;

    static const uint32_t  heads[] = { 16, 128, 64, 3, 24 };

    (void) state;

    for (i = 0; i < 5; i++) {
        memset(&c, 0, sizeof(c));
        c.heads = heads[i];
        c.sms = i == 1 ? 8 : 5;
        c.wide = i % 2;
        mla_groups(&c, 3, i == 0 ? 4 : 1, 900);
        c.group[0].pos = 0;
        c.group[1].pos = 63;
        mla_check(&c);
    }
}


/*
 * One long sequence, cut into as many pieces as there are multiprocessors: a
 * merge reads eight parts at a time.
 */

static void
test_split(void **state)
{
    int         i;
    mla_case_t  c;

    static const uint32_t  sms[] = { 7, 8, 9, 21 };

    (void) state;

    for (i = 0; i < 5; i++) {
        memset(&c, 0, sizeof(c));
        c.heads = 16;
        c.sms = sms[i % 4];
        c.wide = 1;
        c.fixed = i == 4;
        c.n_groups = 1;
        c.n_rows = 2;
        c.group[0].rows = 2;
        c.group[0].pos = 3000;
        mla_check(&c);
    }
}


/* Rows of a prompt, behind what is cached. */

static void
test_prefill(void **state)
{
    int         i;
    mla_case_t  c;

    (void) state;

    for (i = 0; i < 3; i++) {
        memset(&c, 0, sizeof(c));
        c.heads = i == 0 ? 16 : 5;
        c.sms = 6;
        c.fixed = i == 2;
        c.n_groups = 2;
        c.n_rows = 50;
        c.group[0].rows = 37;
        c.group[0].pos = i == 2 ? 1010 : 100;
        c.group[1].row = 37;
        c.group[1].rows = 13;
        c.group[1].pos = 0;
        mla_check(&c);
    }
}


/* Attention that begins later, in a block whose beginning is finite. */

static void
test_first(void **state)
{
    mla_case_t  c;

    (void) state;

    memset(&c, 0, sizeof(c));
    c.heads = 16;
    c.sms = 3;
    c.wide = 1;
    mla_groups(&c, 4, 3, 500);
    c.group[0].first = c.group[0].pos;
    c.group[1].first = c.group[1].pos / 2;
    c.group[2].first = c.group[2].pos / 64 * 64;
    mla_check(&c);
}


/*
 * With fixed cuts a row's bytes are the same alone and in a batch, on few
 * multiprocessors and on many, in one chunk and in single steps.
 */

static void
test_fixed(void **state)
{
    int         i, k;
    size_t      at, size;
    mla_case_t  c, one;
    mla_data_t  d, e;

    (void) state;

    memset(&c, 0, sizeof(c));
    c.heads = 16;
    c.sms = 40;
    c.wide = 1;
    c.fixed = 1;
    c.n_groups = 2;
    c.n_rows = 7;
    c.group[0].rows = 5;
    c.group[0].pos = 2100;
    c.group[1].row = 5;
    c.group[1].rows = 2;
    c.group[1].pos = 1023;

    mla_make(&d, &c);
    mla_run(&c, &d);
    mla_compare(&c, &d);
    size = (size_t) 16 * CU_MLA_LORA * sizeof(float);

    for (k = 0; k < 2; k++) {
        for (i = 0; i < 7; i += k == 0 ? 1 : 3) {
            e = d;
            one = c;
            one.sms = k == 0 ? 1 : 9;
            one.n_groups = 1;
            one.n_rows = 1;
            one.group[0] = c.group[i >= 5];
            one.group[0].row = 0;
            one.group[0].rows = 1;
            one.group[0].pos = d.pos[i];
            e.q = d.q + (size_t) i * 16 * CU_MLA_DIM;
            e.o = malloc(size);
            e.pos[0] = d.pos[i];

            mla_run(&one, &e);

            at = (size_t) i * 16 * CU_MLA_LORA;
            assert_memory_equal(e.o, d.o + at, size);
            free(e.o);
        }
    }

    mla_drop(&d);
}


static void
test_fp8(void **state)
{
    int         i;
    mla_case_t  c;

    (void) state;

    for (i = 0; i < 2; i++) {
        memset(&c, 0, sizeof(c));
        c.heads = i ? 128 : 16;
        c.sms = 4;
        c.fp8 = 1;
        c.wide = 1;
        mla_groups(&c, 3, 2, 400);
        c.group[1].pos = 64;
        mla_check(&c);
    }
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_prefill),
        cmocka_unit_test(test_first),
        cmocka_unit_test(test_fixed),
        cmocka_unit_test(test_fp8),
    };

    return GPU_MAIN(argc, argv, tests);
}
