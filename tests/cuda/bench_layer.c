/*
 * One layer of DeepSeek-V3 at full width through the backend, FP8 weights, with
 * the 32 experts that a rank of eight holds, and as many (row, expert) pairs as
 * such a rank gets: time by operation, beside what the bytes it has to read
 * would take at the speed of a copy measured in the same run; then the layer as
 * one recorded step.  All of it twice, the second time as with --deterministic,
 * and what that costs: its time over the time without.  Then the attention of
 * prompts, from the query's product to the values', absorbed and expanded.
 *
 *     bench_layer [--small]     tiny, to see that it runs
 *
 * Operations run REPEATS times behind each other; weights are random numbers,
 * and so is the cache, 4096 tokens for each row of decoding.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/be_quant.h"
#include "backend/cuda/be_cuda.h"


#define REPEATS   20
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


/* --- time ------------------------------------------------------------------- */

static double
seconds(layer_t *l, void (*run)(layer_t *), uint32_t n)
{
    float        ms;
    uint32_t     i;
    cudaEvent_t  a, b;

    run(l);

    if (cudaEventCreate(&a) != 0 || cudaEventCreate(&b) != 0
        || cudaEventRecord(a, l->cuda->stream) != 0)
    {
        die("event", "none");
    }

    for (i = 0; i < n; i++) {
        run(l);
    }

    (void) cudaEventRecord(b, l->cuda->stream);
    wait_for(l);
    ms = 0;
    (void) cudaEventElapsedTime(&ms, a, b);
    (void) cudaEventDestroy(a);
    (void) cudaEventDestroy(b);

    return ms * 1e-3 / n;
}


static void
copy_rate(layer_t *l)
{
    size_t          n;
    uint32_t        i;
    double          best, t;
    static uint8_t *from, *to;

    n = NOISE;

    if (cudaMalloc((void **) &from, n) != 0
        || cudaMalloc((void **) &to, n) != 0
        || cudaMemcpy(from, noise, n, cudaMemcpyHostToDevice) != 0
        || cudaDeviceSynchronize() != 0)
    {
        die("copy", "no memory");
    }

    best = 0;

    for (i = 0; i < 10; i++) {
        float        ms = 0;
        cudaEvent_t  a, b;

        (void) cudaEventCreate(&a);
        (void) cudaEventCreate(&b);
        (void) cudaEventRecord(a, l->cuda->stream);
        (void) cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice,
                               l->cuda->stream);
        (void) cudaEventRecord(b, l->cuda->stream);
        wait_for(l);
        (void) cudaEventElapsedTime(&ms, a, b);
        (void) cudaEventDestroy(a);
        (void) cudaEventDestroy(b);

        t = (ms > 0) ? 2.0 * (double) n / (ms * 1e-3) : 0;
        best = t > best ? t : best;
    }

    (void) cudaFree(from);
    (void) cudaFree(to);
    l->copy = best;

    printf("copy: %.0f GB/s read and written\n", best / 1e9);
}


/* As it is in a model's step: recorded, then replayed. */

static double
recorded(layer_t *l, uint32_t rows, uint32_t repeats)
{
    float        ms;
    double       total;
    uint32_t     i, j;
    cudaEvent_t  a, b;

    if (cudaEventCreate(&a) != 0 || cudaEventCreate(&b) != 0) {
        die("event", "none");
    }

    total = 0;

    for (j = 0; j < 2 + repeats; j++) {
        begin(l, rows, 0, 1);

        for (i = 0; l->rows > 0 && i < OPS; i++) {
            ops[i].run(l);
        }

        (void) cudaEventRecord(a, l->cuda->stream);
        end(l);
        (void) cudaEventRecord(b, l->cuda->stream);
        wait_for(l);
        ms = 0;
        (void) cudaEventElapsedTime(&ms, a, b);
        total += (j >= 2) ? ms : 0;
    }

    (void) cudaEventDestroy(a);
    (void) cudaEventDestroy(b);

    return total * 1e-3 / repeats;
}


static void
print(const char *name, double t, double floor, double fixed)
{
    printf("%-18s %10.1f %10.1f %7.0f%% %10.1f %7.2f\n", name, t * 1e6,
           floor * 1e6, (t > 0) ? floor / t * 100 : 0, fixed * 1e6,
           (t > 0) ? fixed / t : 0);
}


static void
measure(layer_t *l, layer_t *f, uint32_t rows, int prefill, uint32_t repeats)
{
    double    t[OPS], fixed, floor, all[3];
    uint32_t  i;

    printf("\n%s, %u rows\n%-18s %10s %10s %8s %10s %7s\n",
           prefill ? "prefill" : "decode", rows, "operation", "us", "floor us",
           "share", "fixed us", "cost");

    begin(l, rows, prefill, 0);

    for (i = 0; i < OPS; i++) {
        t[i] = seconds(l, ops[i].run, repeats);
    }

    end(l);
    wait_for(l);
    memset(all, 0, sizeof(all));
    begin(f, rows, prefill, 0);

    for (i = 0; i < OPS; i++) {
        fixed = seconds(f, ops[i].run, repeats);
        floor = (l->copy > 0) ? ops[i].bytes(l) / l->copy : 0;
        print(ops[i].name, t[i], floor, fixed);

        all[0] += t[i];
        all[1] += floor;
        all[2] += fixed;
    }

    end(f);
    wait_for(f);
    print("sum", all[0], all[1], all[2]);

    if (!prefill) {
        t[0] = recorded(l, rows, repeats);
        fixed = recorded(f, rows, repeats);
        print("recorded layer", t[0], all[1], fixed);
        all[0] = t[0];
        all[2] = fixed;
    }

    printf("--deterministic, %s of %u rows: %.1f us instead of %.1f, %.2f "
           "times the time\n", prefill ? "prefill" : "decode", rows,
           all[2] * 1e6, all[0] * 1e6, (all[0] > 0) ? all[2] / all[0] : 0);
}


static double
prompt(layer_t *l, uint32_t rows, int expanded)
{
    double  t;

    l->cuda->expand.on = expanded;
    begin(l, rows, 1, 0);
    expanded = (l->cuda->batch[0].n_expand > 0);
    t = seconds(l, op_query, 3) + seconds(l, op_attend, 3)
        + seconds(l, op_value, 3);
    end(l);
    wait_for(l);

    return (expanded == l->cuda->expand.on) ? t : 0;
}


static void
prompts(layer_t *l, int small)
{
    double         t;
    size_t         i;
    uint32_t       rows;
    cu_mla_group_t g;

    static const struct {
        uint32_t  rows;
        uint32_t  behind;
    } shapes[] = {
        { 64, 0 }, { 128, 0 }, { 512, 0 }, { 4096, 0 }, { 128, 4096 },
        { 256, 4096 }, { 1024, 4096 }, { 512, 32768 }, { 2048, 32768 }
    };

    printf("\nattention of prompts, us\n%6s %8s %10s %10s  %s\n", "rows",
           "behind", "absorbed", "expanded", "which it is");

    for (i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        rows = small ? 4 : shapes[i].rows;
        l->behind = small ? (uint32_t) i : shapes[i].behind;
        memset(&g, 0, sizeof(g));
        g.rows = rows;
        g.pos = l->behind;

        t = prompt(l, rows, 0);
        printf("%6u %8u %10.1f", rows, l->behind, t * 1e6);
        t = prompt(l, rows, 1);
        printf(" %10.1f  %s\n", t * 1e6,
               be_cuda_expands(l->cuda, &g) ? "expanded" : "absorbed");
    }
}


static void
open_layer(layer_t *l, const shape_t *s, int fixed)
{
    char          err[ERR_LEN];
    be_options_t  opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_BF16;
    opt.fixed = fixed;

    l->s = *s;
    l->be = be_cuda_open(&opt, err);

    if (l->be == NULL) {
        die("cuda", err);
    }

    l->cuda = (be_cuda_t *) l->be;
}


int
main(int argc, char **argv)
{
    int             small;
    size_t          i;
    uint64_t        seed;
    static layer_t  l, f;

    static const shape_t  v3 = { 7168, 1536, 2048,
                                 { 7168, 128, 128, 64, 128, 512 }, 4096,
                                 4096 };
    static const shape_t  tiny = { 256, 128, 128,
                                   { 256, 4, 16, 8, 16, 32 }, 128, 8 };

    small = (argc > 1 && strcmp(argv[1], "--small") == 0);

    noise = malloc(NOISE);
    scales = malloc(1 << 20);

    if (noise == NULL || scales == NULL) {
        die("memory", "there is not enough");
    }

    seed = 88172645463325252ull;

    for (i = 0; i < NOISE; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise[i] = (uint8_t) (seed >> 40) & 0xbf;    /* below 2 */
    }

    for (i = 0; i < (1 << 20) / sizeof(float); i++) {
        scales[i] = 0.01f;
    }

    open_layer(&l, small ? &tiny : &v3, 0);
    open_layer(&f, small ? &tiny : &v3, 1);
    printf("backend path: %s\n", l.be->path);

    copy_rate(&l);
    make(&l);
    make(&f);

    measure(&l, &f, small ? 4 : 64, 0, small ? 2 : REPEATS);
    measure(&l, &f, small ? 8 : 128, 0, small ? 2 : REPEATS);
    measure(&l, &f, small ? 8 : 4096, 1, small ? 1 : 3);
    prompts(&l, small);

    wait_for(&l);

    return 0;
}
