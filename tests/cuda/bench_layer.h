/*
 * A layer of DeepSeek-V3's kind on the device, for bench_layer.c: its weights,
 * random numbers, rows and cache, its operations, and the bytes that each of
 * them has to move.
 */

#ifndef BENCH_LAYER_H
#define BENCH_LAYER_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/be_quant.h"
#include "backend/cuda/be_cuda.h"


#define EXPERTS   32                 /* of a rank */
#define ROUTED    256                /* of the model, which the router knows */
#define TOP_K     8
#define NOISE     (160u << 20)


typedef struct {
    uint32_t    hidden;
    uint32_t    q_lora;
    uint32_t    inter;               /* of an expert */
    be_mla_t    mla;
    uint32_t    context;
    uint32_t    max_rows;
} shape_t;

typedef struct {
    be_t         *be;
    be_cuda_t    *cuda;
    shape_t       s;
    be_step_t     step;
    double        copy;              /* bytes a second */

    be_weight_t  *q_a, *q_b, *kv_a, *uk, *uv, *o;
    be_mlp_t      shared;
    be_mlp_t      expert[EXPERTS];
    be_gate_t     gate;
    be_rope_t     rope;
    be_kv_t      *kv;
    uint32_t      rows;
    uint32_t      behind;            /* tokens in front of a prompt's rows */

    float        *norm, *router;
    float        *x, *h, *qa, *q, *kva, *ql, *ol, *out, *contrib, *weight;
    int32_t      *id, *routed;
    be_pairs_t    pairs;
} layer_t;

typedef struct {
    const char  *name;
    void       (*run)(layer_t *l);
    double     (*bytes)(const layer_t *l);
} op_t;


static void op_norm(layer_t *l);
static void op_kv(layer_t *l);
static void op_q(layer_t *l);
static void op_query(layer_t *l);
static void op_attend(layer_t *l);
static void op_value(layer_t *l);
static void op_out(layer_t *l);
static void op_gate(layer_t *l);
static void op_route(layer_t *l);
static void op_shared(layer_t *l);
static void op_experts(layer_t *l);
static void op_combine(layer_t *l);


static uint8_t  *noise;
static float    *scales;


static void
die(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}


static void
wait_for(layer_t *l)
{
    char  err[ERR_LEN];

    if (l->be->sync(l->be, err) != 0) {
        die("sync", err);
    }
}


/* --- what there is ------------------------------------------------------- */

static be_weight_t *
matrix(layer_t *l, uint32_t rows, uint32_t cols)
{
    char           err[ERR_LEN];
    be_tensor_t    t;
    be_weight_t   *w;
    static size_t  at;

    memset(&t, 0, sizeof(t));
    t.rows = rows;
    t.cols = cols;
    t.dtype = BE_F8E4M3;
    t.scale = scales;
    t.scale_cols = (cols + 127) / 128;

    if (at + (size_t) rows * cols > NOISE) {
        at = 0;
    }

    t.data = noise + at;
    at += 4099;

    w = l->be->weight(l->be, &t, NULL, err);
    if (w == NULL) {
        die("weight", err);
    }

    return w;
}


static void *
memory(layer_t *l, size_t floats)
{
    void    *p;
    float   *x;
    size_t   i;

    p = l->be->alloc(l->be, floats * sizeof(float));
    x = malloc(floats * sizeof(float));

    if (p == NULL || x == NULL) {
        die("memory", "there is not enough");
    }

    for (i = 0; i < floats; i++) {
        x[i] = (float) (noise[i % NOISE] & 15) / 8 - 0.9f;
    }

    l->be->upload(l->be, p, x, floats * sizeof(float));
    free(x);

    return p;
}


/* Different experts of this rank for each row, as many as it gets pairs. */

static int32_t *
choices(layer_t *l, uint32_t rows)
{
    int32_t   *id, *dev;
    uint32_t   i;

    id = malloc((size_t) rows * TOP_K * sizeof(int32_t));
    dev = l->be->alloc(l->be, (size_t) rows * TOP_K * sizeof(int32_t));

    if (id == NULL || dev == NULL) {
        die("memory", "there is not enough");
    }

    for (i = 0; i < rows * TOP_K; i++) {
        id[i] = (int32_t) ((noise[i / TOP_K] * 5
                            + i % TOP_K * (2 * (noise[i / TOP_K + 1] % 16)
                                           + 1)) % EXPERTS);
    }

    l->be->upload(l->be, dev, id, (size_t) rows * TOP_K * sizeof(int32_t));
    free(id);

    return dev;
}


static void
make(layer_t *l)
{
    char          err[ERR_LEN];
    size_t        i, n, heads;
    uint8_t      *block;
    uint16_t      h;
    uint32_t      e, blocks;
    be_mla_t     *m;
    be_tensor_t   t;

    static float  freq[64];

    m = &l->s.mla;
    heads = m->heads;

    l->q_a = matrix(l, l->s.q_lora, l->s.hidden);
    l->q_b = matrix(l, (m->heads * (m->nope + m->rope)), l->s.q_lora);
    l->kv_a = matrix(l, m->kv_lora + m->rope, l->s.hidden);
    l->o = matrix(l, l->s.hidden, m->heads * m->v);

    memset(&t, 0, sizeof(t));
    t.rows = m->heads * (m->nope + m->v);
    t.cols = m->kv_lora;
    t.dtype = BE_F8E4M3;
    t.data = noise;
    t.scale = scales;
    t.scale_cols = (t.cols + 127) / 128;
    t.take = m->nope;
    l->uk = l->be->weight_t(l->be, &t, m->heads, NULL, err);

    t.parts = m->heads;
    t.from = m->nope;
    t.take = m->v;
    l->uv = l->be->weight(l->be, &t, NULL, err);

    if (l->uk == NULL || l->uv == NULL) {
        die("kv_b", err);
    }

    for (e = 0; e <= EXPERTS; e++) {
        be_mlp_t  *mlp = (e < EXPERTS) ? &l->expert[e] : &l->shared;

        mlp->w1 = matrix(l, l->s.inter, l->s.hidden);
        mlp->w3 = matrix(l, l->s.inter, l->s.hidden);
        mlp->w2 = matrix(l, l->s.hidden, l->s.inter);
    }

    l->gate.experts = EXPERTS;
    l->gate.top_k = TOP_K;
    l->gate.groups = 8;
    l->gate.topk_groups = 4;
    l->gate.scoring = BE_SIGMOID;
    l->gate.method = BE_NOAUX_TC;
    l->gate.normalise = 1;
    l->gate.scale = 2.5f;

    for (i = 0; i < m->rope / 2; i++) {
        freq[i] = (float) pow(1e4, -2.0 * (double) i / m->rope);
    }

    l->rope.dim = m->rope;
    l->rope.freq = freq;
    l->rope.mscale = 1;

    n = l->s.max_rows;
    l->norm = memory(l, l->s.hidden);
    l->router = memory(l, (size_t) ROUTED * l->s.hidden);
    l->x = memory(l, n * l->s.hidden);
    l->h = memory(l, n * l->s.hidden);
    l->qa = memory(l, n * l->s.q_lora);
    l->q = memory(l, n * heads * (m->nope + m->rope));
    l->kva = memory(l, n * (m->kv_lora + m->rope));
    l->ql = memory(l, n * heads * (m->kv_lora + m->rope));
    l->ol = memory(l, n * heads * m->kv_lora);
    l->out = memory(l, n * heads * m->v);
    l->contrib = memory(l, n * TOP_K * l->s.hidden);
    l->weight = memory(l, n * TOP_K);
    l->id = choices(l, (uint32_t) n);
    l->routed = memory(l, n * TOP_K);

    blocks = 128 * (l->s.context / BE_BLOCK);
    l->kv = l->be->kv_open(l->be, 1, blocks, m, err);

    if (l->kv == NULL) {
        die("kv", err);
    }

    n = l->be->kv_block_size(l->kv);
    block = malloc(n);

    if (block == NULL) {
        die("kv", "no memory");
    }

    for (e = 0; e < blocks; e++) {
        for (i = 0; i < n; i += 2) {
            h = (uint16_t) (0x3e00 + noise[(i + e * 7) % NOISE]);
            memcpy(block + i, &h, 2);
        }

        l->be->kv_write(l->be, l->kv, (int32_t) e, block);
    }

    free(block);
}


/* Rows of as many sequences, or of one. */

static void
begin(layer_t *l, uint32_t rows, int prefill, uint32_t key)
{
    int                     rc;
    char                    err[ERR_LEN];
    uint32_t                i;

    static int32_t          id[4096], table[128 * 1024];
    static uint32_t         pos[4096], seq[4096];
    static const int32_t   *blocks[4096];

    memset(&l->step, 0, sizeof(l->step));

    for (i = 0; i < rows; i++) {
        id[i] = 1;
        pos[i] = prefill ? l->behind + i : l->s.context - 1 - i % 7;
        seq[i] = prefill ? 0 : i;
        blocks[i] = table + (size_t) (i % 128) * (l->s.context / BE_BLOCK);
    }

    for (i = 0; i < 128 * (l->s.context / BE_BLOCK); i++) {
        table[i] = (int32_t) i;
    }

    l->rows = rows;
    l->step.all.n_rows = rows;
    l->step.all.id = id;
    l->step.all.pos = pos;
    l->step.all.seq = seq;
    l->step.all.n_seqs = prefill ? 1 : rows;
    l->step.all.blocks = blocks;
    l->step.last = l->step.all;
    l->step.max_rows = l->s.max_rows;
    l->step.max_last = l->s.max_rows;
    l->step.key = key;

    rc = l->be->begin(l->be, &l->step, err);

    if (rc < 0) {
        die("begin", err);
    }

    if (key != 0 && rc == 1) {
        l->rows = 0;                 /* it is replayed */
    }
}


static void
end(layer_t *l)
{
    char  err[ERR_LEN];

    if (l->be->end(l->be, err) != 0) {
        die("end", err);
    }
}


/* --- operations ------------------------------------------------------------ */

static void
op_norm(layer_t *l)
{
    l->be->norm(l->be, l->norm, 1e-6f, l->x, l->rows, l->s.hidden, l->h);
}


static void
op_kv(layer_t *l)
{
    l->be->linear(l->be, l->kv_a, l->h, l->rows, l->kva);
    l->be->mla_cache(l->be, l->kv, 0, &l->s.mla, &l->rope, l->norm, 1e-6f,
                     l->kva, &l->step.all);
}


static void
op_q(layer_t *l)
{
    l->be->linear(l->be, l->q_a, l->h, l->rows, l->qa);
    l->be->norm(l->be, l->norm, 1e-6f, l->qa, l->rows, l->s.q_lora, l->qa);
    l->be->linear(l->be, l->q_b, l->qa, l->rows, l->q);
}


static void
op_query(layer_t *l)
{
    l->be->mla_query(l->be, &l->s.mla, &l->rope, l->uk, l->q, &l->step.all,
                     l->ql);
}


static void
op_attend(layer_t *l)
{
    l->be->mla_attend(l->be, l->kv, 0, &l->s.mla, 0.1f, l->ql, &l->step.all,
                      l->ol);
}


static void
op_value(layer_t *l)
{
    l->be->mla_value(l->be, &l->s.mla, l->uv, l->ol, l->rows, l->out);
}


static void
op_out(layer_t *l)
{
    l->be->linear_add(l->be, l->o, l->out, l->rows, l->x);
}


static void
op_gate(layer_t *l)
{
    be_gate_t  g;

    /* of the model's experts; those of this rank are chosen among by another */

    g = l->gate;
    g.experts = ROUTED;
    l->be->gate(l->be, &g, l->router, NULL, l->h, l->rows, l->s.hidden,
                l->routed, l->weight);
}


static void
op_route(layer_t *l)
{
    be_route_t  r;

    memset(&r, 0, sizeof(r));
    r.batch = &l->step.all;
    r.rows = l->rows;
    r.hidden = l->s.hidden;
    r.top_k = TOP_K;
    r.experts = EXPERTS;
    r.id = l->id;
    r.x = l->h;
    r.contrib = l->contrib;

    l->be->route(l->be, &r, &l->pairs);
}


static void
op_shared(layer_t *l)
{
    l->be->mlp_add(l->be, &l->shared, l->h, l->rows, l->x);
}


static void
op_experts(layer_t *l)
{
    l->be->experts(l->be, l->expert, &l->pairs);
}


static void
op_combine(layer_t *l)
{
    l->be->combine(l->be, l->contrib, l->weight, l->rows, TOP_K, l->s.hidden,
                   l->x);
}


/* --- bytes that have to be read and written -------------------------------- */

static double
rows_of(const layer_t *l, double dims)
{
    return (double) l->rows * dims;
}


static double
bytes_norm(const layer_t *l)
{
    return rows_of(l, 9.0 * l->s.hidden);
}


static double
bytes_kv(const layer_t *l)
{
    double  dim = l->s.mla.kv_lora + l->s.mla.rope;

    return dim * l->s.hidden + rows_of(l, l->s.hidden + 10 * dim);
}


static double
bytes_q(const layer_t *l)
{
    double  q = l->s.mla.heads * (double) (l->s.mla.nope + l->s.mla.rope);

    return l->s.q_lora * (l->s.hidden + q) + rows_of(l, l->s.hidden + 4 * q);
}


static double
bytes_query(const layer_t *l)
{
    const be_mla_t  *m = &l->s.mla;

    return 2.0 * m->heads * m->nope * m->kv_lora
           + rows_of(l, m->heads * (4.0 * (m->nope + m->rope)
                                    + 2.0 * (m->kv_lora + m->rope)));
}


static double
bytes_attend(const layer_t *l)
{
    double           tokens;
    const be_mla_t  *m = &l->s.mla;

    tokens = (l->step.all.n_seqs == 1) ? l->rows
                                       : rows_of(l, l->s.context);

    return 2.0 * tokens * (m->kv_lora + m->rope)
           + rows_of(l, 2.0 * m->heads * (2 * m->kv_lora + m->rope));
}


static double
bytes_value(const layer_t *l)
{
    const be_mla_t  *m = &l->s.mla;

    return 2.0 * m->heads * m->v * m->kv_lora
           + rows_of(l, m->heads * (2.0 * m->kv_lora + 4.0 * m->v));
}


static double
bytes_out(const layer_t *l)
{
    double  in = l->s.mla.heads * (double) l->s.mla.v;

    return in * l->s.hidden + rows_of(l, 4 * in + 8.0 * l->s.hidden);
}


static double
bytes_gate(const layer_t *l)
{
    return 4.0 * ROUTED * l->s.hidden + rows_of(l, 4.0 * l->s.hidden);
}


static double
bytes_route(const layer_t *l)
{
    return rows_of(l, TOP_K * 20.0);
}


static double
bytes_shared(const layer_t *l)
{
    return 3.0 * l->s.hidden * l->s.inter + rows_of(l, 9.0 * l->s.hidden);
}


static double
bytes_experts(const layer_t *l)
{
    return EXPERTS * 3.0 * l->s.hidden * l->s.inter
           + rows_of(l, TOP_K * 8.0 * l->s.hidden);
}


static double
bytes_combine(const layer_t *l)
{
    return rows_of(l, (TOP_K + 2) * 4.0 * l->s.hidden);
}


static const op_t  ops[] = {
    { "norm, quantised", op_norm, bytes_norm },
    { "kv_a, cache", op_kv, bytes_kv },
    { "q_a, norm, q_b", op_q, bytes_q },
    { "query (W_UK)", op_query, bytes_query },
    { "attention", op_attend, bytes_attend },
    { "value (W_UV)", op_value, bytes_value },       /* or all, expanded */
    { "o_proj", op_out, bytes_out },
    { "router", op_gate, bytes_gate },
    { "pairs", op_route, bytes_route },
    { "shared expert", op_shared, bytes_shared },
    { "experts", op_experts, bytes_experts },
    { "combine", op_combine, bytes_combine }
};

#define OPS  (sizeof(ops) / sizeof(ops[0]))

#endif /* BENCH_LAYER_H */
