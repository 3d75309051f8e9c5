/*
 * Router and experts.
 *
 * An MLP is two products: gate and up on the same inputs, whose result goes
 * through SiLU and is packed as it comes out of the tile, and down.  A dense
 * or shared MLP is the same with one group of rows.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/be_cpu.h"


#define MOE_GATE_ROWS   4            /* rows of an item */
#define MOE_GROUPS_MAX  64


typedef struct {
    be_cpu_t            *cpu;
    const be_group_t    *group;
    const uint32_t      *offset;
    uint32_t             n_groups;
    uint32_t             inter;
    const be_gemm_t     *up;         /* of gate and up */
    const be_gemm_t     *down;
    const float *const  *x;          /* of pairs, or */
    const float         *rows;       /* of a dense MLP */
    uint32_t             hidden;
    void                *act2;
    float *const        *y;
    float               *add;
} moe_mlp_t;

typedef struct {
    const be_gate_t     *g;
    const float         *bias;
    float               *score;      /* [rows][2][experts] */
    uint32_t             rows;
    int32_t             *id;
    float               *weight;
} moe_gate_t;

typedef struct {
    be_cpu_t            *cpu;
    const float         *c;
    const float         *weight;
    uint32_t             rows;
    uint32_t             top_k;
    uint32_t             hidden;
    uint32_t             per_item;
    float               *x;
} moe_combine_t;


static uint32_t moe_turn(moe_mlp_t *job, const be_pairs_t *pairs, uint32_t g,
    uint32_t *offset);
static void moe_mlps(moe_mlp_t *job, const be_mlp_t *mlp);
static const float *moe_row(void *ctx, uint32_t row, uint32_t *packed);
static void moe_up_store(void *ctx, uint32_t g, uint32_t row, uint32_t m,
    uint32_t col, uint32_t n, float *c, const float *pair, size_t ld);
static void moe_down_store(void *ctx, uint32_t g, uint32_t row, uint32_t m,
    uint32_t col, uint32_t n, float *c, const float *pair, size_t ld);
static void moe_gate_item(void *ctx, uint32_t item, uint32_t worker);
static void moe_gate_row(const moe_gate_t *job, float *score, float *choice,
    int32_t *id, float *weight);
static void moe_scores(const be_gate_t *g, float *score);
static void moe_drop_groups(const be_gate_t *g, float *choice);
static uint32_t moe_top(const float *score, uint32_t n, uint32_t k,
    int32_t *id);
static void moe_combine_item(void *ctx, uint32_t item, uint32_t worker);


void
be_cpu_mlp_add(be_t *be, const be_mlp_t *mlp, const float *x, uint32_t rows,
    float *y)
{
    uint32_t   offset[2];
    moe_mlp_t  job;

    memset(&job, 0, sizeof(job));
    offset[0] = 0;
    offset[1] = rows;

    job.cpu = (be_cpu_t *) be;
    job.offset = offset;
    job.n_groups = 1;
    job.rows = x;
    job.add = y;

    moe_mlps(&job, mlp);
}


/* In turns, if what has to be packed is more than there is memory for. */

void
be_cpu_experts(be_t *be, const be_mlp_t *mlp, const be_pairs_t *pairs)
{
    uint32_t   g, next, n, *offset;
    moe_mlp_t  job;

    memset(&job, 0, sizeof(job));
    n = pairs->n_experts;

    if (n == 0) {
        return;
    }

    job.cpu = (be_cpu_t *) be;
    job.x = pairs->x;
    job.y = pairs->y;

    offset = be_scratch(job.cpu, BE_SCRATCH_OFFSET,
                        ((size_t) n + 1) * sizeof(uint32_t));
    offset[0] = pairs->offset[0];

    for (g = 0; g < n; g = next) {
        next = moe_turn(&job, pairs, g, offset);
        moe_mlps(&job, mlp + g);
        offset[0] = offset[job.n_groups];
    }
}


/*
 * Pairs from offset[0] on, which is in group g: as many as can be packed.
 * Returns the group that the next turn begins in.
 */

static uint32_t
moe_turn(moe_mlp_t *job, const be_pairs_t *pairs, uint32_t g,
    uint32_t *offset)
{
    uint32_t  n, rows, room;

    room = job->cpu->most_packed;
    n = 0;

    do {
        rows = pairs->offset[g + 1] - offset[n];
        rows = (rows < room) ? rows : room;
        room -= (rows + BE_ROW_BLOCK - 1) / BE_ROW_BLOCK * BE_ROW_BLOCK;

        offset[n + 1] = offset[n] + rows;
        n++;

        if (offset[n] < pairs->offset[g + 1]) {
            break;
        }

        g++;

    } while (g < pairs->n_experts);

    job->offset = offset;
    job->n_groups = n;

    return g;
}


void
be_moe_reserve(const be_cpu_t *cpu, const be_largest_t *l, size_t *size)
{
    uint32_t          rows;
    const be_gemm_t  *gate;

    rows = cpu->most_packed;
    gate = &cpu->k->mode[BE_F32].gemm[BE_F32];

    be_reserve(&size[BE_SCRATCH_ACT], be_packed_size(cpu, l->rows,
                                                     l->hidden));
    be_reserve(&size[BE_SCRATCH_ACT], be_packed_size(cpu, rows, l->hidden));
    be_reserve(&size[BE_SCRATCH_ACT], gate->size(l->rows, l->hidden));
    be_reserve(&size[BE_SCRATCH_ACT2], be_packed_size(cpu, l->rows,
                                                      l->inter));
    be_reserve(&size[BE_SCRATCH_ACT2], be_packed_size(cpu, rows,
                                                      l->moe_inter));
    be_reserve(&size[BE_SCRATCH_GROUP],
               ((size_t) l->gate->experts + 1) * sizeof(be_group_t));
    be_reserve(&size[BE_SCRATCH_OFFSET],
               ((size_t) l->gate->experts + 1) * sizeof(uint32_t));
    be_reserve(&size[BE_SCRATCH_LOGITS],
               (size_t) l->rows * l->gate->experts * 2 * sizeof(float));
}


/* mlp[g] for the rows offset[g] … offset[g + 1] - 1 of each group. */

static void
moe_mlps(moe_mlp_t *job, const be_mlp_t *mlp)
{
    void          *act;
    uint32_t       g, rows, block, packed;
    be_cpu_t      *cpu;
    be_group_t    *group;
    be_product_t   p;

    cpu = job->cpu;

    if (job->n_groups == 0 || job->offset[job->n_groups] == job->offset[0]) {
        return;
    }

    job->hidden = mlp[0].w1->cols;
    job->inter = mlp[0].w1->rows;
    job->up = be_weight_gemm(cpu, mlp[0].w1);
    job->down = be_weight_gemm(cpu, mlp[0].w2);
    block = (job->up->row_block > job->down->row_block)
            ? job->up->row_block : job->down->row_block;

    group = be_scratch(cpu, BE_SCRATCH_GROUP,
                       job->n_groups * sizeof(be_group_t));
    packed = 0;

    for (g = 0; g < job->n_groups; g++) {
        rows = job->offset[g + 1] - job->offset[g];

        group[g].w = mlp[g].w1;
        group[g].pair = mlp[g].w3;
        group[g].w_row = 0;
        group[g].act_row = packed;
        group[g].rows = rows;

        packed += (rows + block - 1) / block * block;
    }

    job->group = group;

    act = be_scratch(cpu, BE_SCRATCH_ACT,
                     job->up->size(packed, job->hidden));
    job->act2 = be_scratch(cpu, BE_SCRATCH_ACT2,
                           job->down->size(packed, job->inter));

    be_pack(cpu, job->up, act, job->hidden,
            job->offset[job->n_groups] - job->offset[0], moe_row, job);

    memset(&p, 0, sizeof(p));
    p.gemm = cpu->mode->gemm;
    p.act = act;
    p.k = job->hidden;
    p.n = job->inter;
    p.n_groups = job->n_groups;
    p.group = group;
    p.store = moe_up_store;
    p.ctx = job;
    p.piece = job->down->piece;

    be_product(cpu, &p);

    for (g = 0; g < job->n_groups; g++) {
        group[g].w = mlp[g].w2;
        group[g].pair = NULL;
    }

    p.act = job->act2;
    p.k = job->inter;
    p.n = job->hidden;
    p.store = moe_down_store;
    p.piece = 0;

    be_product(cpu, &p);
}


static const float *
moe_row(void *ctx, uint32_t row, uint32_t *packed)
{
    uint32_t    g, pair;
    moe_mlp_t  *job;

    job = ctx;
    pair = job->offset[0] + row;
    g = be_find(job->offset, job->n_groups, pair);

    *packed = job->group[g].act_row + pair - job->offset[g];

    return (job->x != NULL) ? job->x[pair]
                            : job->rows + (size_t) pair * job->hidden;
}


static void
moe_up_store(void *ctx, uint32_t g, uint32_t row, uint32_t m, uint32_t col,
    uint32_t n, float *c, const float *pair, size_t ld)
{
    uint32_t      i, r, block;
    moe_mlp_t    *job;
    const float  *x[BE_ROW_BLOCK];

    job = ctx;
    block = job->down->row_block;

    for (i = 0; i < m; i += r) {
        for (r = 0; r < block && i + r < m; r++) {
            job->cpu->k->swiglu(c + (i + r) * ld, pair + (i + r) * ld, n,
                                c + (i + r) * ld);
            x[r] = c + (i + r) * ld;
        }

        job->down->pack(job->act2, job->inter,
                        job->group[g].act_row + row + i, col, x, r, n);
    }
}


static void
moe_down_store(void *ctx, uint32_t g, uint32_t row, uint32_t m, uint32_t col,
    uint32_t n, float *c, const float *pair, size_t ld)
{
    size_t      at;
    uint32_t    i;
    moe_mlp_t  *job;

    (void) pair;

    job = ctx;

    for (i = 0; i < m; i++) {
        at = (size_t) job->offset[g] + row + i;

        if (job->add != NULL) {
            job->cpu->k->add(c + i * ld, n, job->add + at * job->hidden + col);

        } else {
            memcpy(job->y[at] + col, c + i * ld, n * sizeof(float));
        }
    }
}


void
be_cpu_gate(be_t *be, const be_gate_t *g, const float *w, const float *bias,
    const float *x, uint32_t rows, uint32_t hidden, int32_t *id,
    float *weight)
{
    void                     *act;
    be_cpu_t                 *cpu;
    be_rows_t                 src;
    be_group_t                group;
    moe_gate_t                job;
    be_weight_t               matrix;
    be_product_t              p;
    const be_gemm_t          *gemm;

    if (rows == 0) {
        return;
    }

    cpu = (be_cpu_t *) be;
    gemm = &cpu->k->mode[BE_F32].gemm[BE_F32];

    act = be_scratch(cpu, BE_SCRATCH_ACT, gemm->size(rows, hidden));
    job.score = be_scratch(cpu, BE_SCRATCH_LOGITS,
                           (size_t) rows * g->experts * 2 * sizeof(float));

    src.x = x;
    src.ldx = hidden;
    be_pack(cpu, gemm, act, hidden, rows, be_rows_row, &src);

    memset(&matrix, 0, sizeof(matrix));
    matrix.dtype = BE_F32;
    matrix.rows = g->experts;
    matrix.cols = hidden;
    matrix.part_rows = g->experts;
    matrix.ld = (size_t) hidden * sizeof(float);
    matrix.data = (const uint8_t *) w;

    memset(&group, 0, sizeof(group));
    group.w = &matrix;
    group.rows = rows;

    memset(&p, 0, sizeof(p));
    p.gemm = cpu->k->mode[BE_F32].gemm;
    p.act = act;
    p.k = hidden;
    p.n = g->experts;
    p.n_groups = 1;
    p.group = &group;
    p.y = job.score;
    p.ldy = (size_t) g->experts * 2;

    be_product(cpu, &p);

    job.g = g;
    job.bias = bias;
    job.rows = rows;
    job.id = id;
    job.weight = weight;

    be_team_run(cpu->team, moe_gate_item, &job,
                (rows + MOE_GATE_ROWS - 1) / MOE_GATE_ROWS,
                (uint64_t) rows * g->experts * 16);
}


static void
moe_gate_item(void *ctx, uint32_t item, uint32_t worker)
{
    float       *score;
    uint32_t     row, end;
    moe_gate_t  *job;

    (void) worker;

    job = ctx;
    row = item * MOE_GATE_ROWS;
    end = (job->rows - row < MOE_GATE_ROWS) ? job->rows : row + MOE_GATE_ROWS;

    for ( /* void */ ; row < end; row++) {
        score = job->score + (size_t) row * job->g->experts * 2;

        moe_gate_row(job, score, score + job->g->experts,
                     job->id + (size_t) row * job->g->top_k,
                     job->weight + (size_t) row * job->g->top_k);
    }
}


/* `score` holds the logits of all experts, `choice` is room for as many. */

static void
moe_gate_row(const moe_gate_t *job, float *score, float *choice, int32_t *id,
    float *weight)
{
    float             sum;
    uint32_t          e, k;
    const be_gate_t  *g;

    g = job->g;

    moe_scores(g, score);

    for (e = 0; e < g->experts; e++) {
        choice[e] = (job->bias != NULL) ? score[e] + job->bias[e] : score[e];

        /* Not a number compares with nothing: it must lose, not confuse. */

        if (isnan(choice[e])) {
            choice[e] = -INFINITY;
        }
    }

    if (g->method != BE_GREEDY && g->groups > 1) {
        moe_drop_groups(g, choice);
    }

    sum = 0.0f;

    for (k = moe_top(choice, g->experts, g->top_k, id); k < g->top_k; k++) {
        id[k] = 0;
    }

    for (k = 0; k < g->top_k; k++) {
        weight[k] = score[id[k]];
        sum += weight[k];
    }

    for (k = 0; k < g->top_k; k++) {
        if (g->normalise) {
            weight[k] /= sum + 1e-20f;
        }

        weight[k] *= g->scale;
    }
}


/* In double from float logits: all kernel paths get the same function. */

static void
moe_scores(const be_gate_t *g, float *score)
{
    float     max;
    double    sum;
    uint32_t  e;

    if (g->scoring == BE_SIGMOID) {
        for (e = 0; e < g->experts; e++) {
            score[e] = (float) (1.0 / (1.0 + exp(-(double) score[e])));
        }

        return;
    }

    max = score[0];

    for (e = 1; e < g->experts; e++) {
        max = (score[e] > max) ? score[e] : max;
    }

    sum = 0.0;

    for (e = 0; e < g->experts; e++) {
        sum += exp((double) score[e] - (double) max);
    }

    for (e = 0; e < g->experts; e++) {
        score[e] = (float) (exp((double) score[e] - (double) max) / sum);
    }
}


/* Leaves the experts of the best groups; the others become minus infinity. */

static void
moe_drop_groups(const be_gate_t *g, float *choice)
{
    float     rank[MOE_GROUPS_MAX], first, second, c;
    int32_t   keep[MOE_GROUPS_MAX];
    uint8_t   kept[MOE_GROUPS_MAX];
    uint32_t  i, e, size, n;

    n = (g->groups < MOE_GROUPS_MAX) ? g->groups : MOE_GROUPS_MAX;
    size = g->experts / n;

    memset(rank, 0, sizeof(rank));
    memset(kept, 0, sizeof(kept));

    for (i = 0; i < n; i++) {
        first = -INFINITY;
        second = -INFINITY;

        for (e = 0; e < size; e++) {
            c = choice[i * size + e];

            if (c > first) {
                second = first;
                first = c;

            } else if (c > second) {
                second = c;
            }
        }

        rank[i] = (g->method == BE_NOAUX_TC) ? first + second : first;
    }

    e = moe_top(rank, n, g->topk_groups, keep);

    for (i = 0; i < e; i++) {
        kept[keep[i]] = 1;
    }

    for (i = 0; i < n * size; i++) {
        if (!kept[i / size]) {
            choice[i] = -INFINITY;
        }
    }
}


/*
 * The k largest in falling order, among equals the lower index first; how
 * many there are.
 */

static uint32_t
moe_top(const float *score, uint32_t n, uint32_t k, int32_t *id)
{
    uint32_t  i, j, found;

    found = 0;

    for (i = 0; i < n; i++) {
        if (found == k) {
            if (k == 0 || !(score[i] > score[id[k - 1]])) {
                continue;
            }

            found--;
        }

        for (j = found; j > 0 && score[i] > score[id[j - 1]]; j--) {
            id[j] = id[j - 1];
        }

        id[j] = (int32_t) i;
        found++;
    }

    return found;
}


void
be_cpu_combine(be_t *be, const float *c, const float *weight, uint32_t rows,
    uint32_t top_k, uint32_t hidden, float *x)
{
    be_cpu_t       *cpu;
    moe_combine_t   job;

    if (rows == 0) {
        return;
    }

    cpu = (be_cpu_t *) be;

    job.cpu = cpu;
    job.c = c;
    job.weight = weight;
    job.rows = rows;
    job.top_k = top_k;
    job.hidden = hidden;
    job.per_item = (hidden >= 4096) ? 1 : 4096 / hidden;
    job.x = x;

    be_team_run(cpu->team, moe_combine_item, &job,
                (rows + job.per_item - 1) / job.per_item,
                (uint64_t) rows * top_k * hidden / 8);
}


static void
moe_combine_item(void *ctx, uint32_t item, uint32_t worker)
{
    size_t          at;
    uint32_t        row, end, k;
    moe_combine_t  *job;

    (void) worker;

    job = ctx;
    row = item * job->per_item;
    end = (job->rows - row < job->per_item) ? job->rows : row + job->per_item;

    for ( /* void */ ; row < end; row++) {
        for (k = 0; k < job->top_k; k++) {
            at = (size_t) row * job->top_k + k;

            job->cpu->k->axpy(job->weight[at], job->c + at * job->hidden,
                              job->hidden,
                              job->x + (size_t) row * job->hidden);
        }
    }
}
