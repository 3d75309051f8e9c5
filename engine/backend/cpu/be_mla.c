/*
 * Latent attention but the attention itself: what goes into the cache, the
 * query that absorbs W_UK, and the value through W_UV.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/be_cpu.h"


#define MLA_CACHE_ROWS  8            /* rows of an item */


typedef struct {
    be_cpu_t           *cpu;
    be_kv_t            *kv;
    uint32_t            layer;
    const be_mla_t     *mla;
    const float        *w;
    float               eps;
    const float        *kva;
    const be_batch_t   *b;
    const float        *rope;        /* [rows][rope / 2] cos, sin */
    float              *tmp;         /* a row for each thread */
} mla_cache_t;

/* Rows of all heads: head h, row r is at x + (r * heads + h) * dim. */

typedef struct {
    const float        *x;
    uint32_t            heads;
    uint32_t            rows;
    uint32_t            packed;      /* packed rows from head to head */
    uint32_t            dim;
} mla_heads_t;

typedef struct {
    const be_mla_t     *mla;
    const float        *q;
    const float        *rope;
    float              *ql;
} mla_query_t;


static const float *mla_rope_table(be_cpu_t *cpu, const be_rope_t *rope,
    const be_batch_t *b);
static void mla_rotate(const float *table, uint32_t dim, const float *x,
    float *y);
static void mla_cache_item(void *ctx, uint32_t item, uint32_t worker);
static void mla_heads(be_cpu_t *cpu, const mla_heads_t *src,
    be_product_t *p, const be_weight_t *w, uint32_t stride, uint32_t offset);
static const float *mla_heads_row(void *ctx, uint32_t row,
    uint32_t *packed);
static void mla_query_rotate(void *ctx, uint32_t g, uint32_t row, uint32_t m,
    uint32_t col, uint32_t n, float *c, const float *pair, size_t ld);


void
be_cpu_mla_cache(be_t *be, be_kv_t *kv, uint32_t layer, const be_mla_t *mla,
    const be_rope_t *rope, const float *w, float eps, const float *kva,
    const be_batch_t *b)
{
    be_cpu_t     *cpu;
    mla_cache_t   job;

    if (b->n_rows == 0) {
        return;
    }

    cpu = (be_cpu_t *) be;

    atomic_store_explicit(&kv->infinite, 0, memory_order_relaxed);

    job.cpu = cpu;
    job.kv = kv;
    job.layer = layer;
    job.mla = mla;
    job.w = w;
    job.eps = eps;
    job.kva = kva;
    job.b = b;
    job.rope = mla_rope_table(cpu, rope, b);
    job.tmp = be_scratch(cpu, BE_SCRATCH_TILE,
                         (size_t) kv->dim * cpu->threads * sizeof(float));

    be_team_run(cpu->team, mla_cache_item, &job,
                (b->n_rows + MLA_CACHE_ROWS - 1) / MLA_CACHE_ROWS,
                (uint64_t) b->n_rows * kv->dim / 2);
}


void
be_mla_reserve(const be_cpu_t *cpu, const be_largest_t *l, size_t *size)
{
    uint32_t         rows;
    const be_mla_t  *mla;

    mla = l->mla;
    rows = (l->rows + BE_ROW_BLOCK - 1) / BE_ROW_BLOCK * BE_ROW_BLOCK;

    be_reserve(&size[BE_SCRATCH_TILE],
               ((size_t) mla->kv_lora + mla->rope) * cpu->threads
               * sizeof(float));
    be_reserve(&size[BE_SCRATCH_ACT],
               be_packed_size(cpu, rows * mla->heads,
                              mla->nope > mla->kv_lora ? mla->nope
                                                       : mla->kv_lora));
    be_reserve(&size[BE_SCRATCH_GROUP], mla->heads * sizeof(be_group_t));
    be_reserve(&size[BE_SCRATCH_ROPE],
               (mla->rope / 2 + (size_t) l->rows * mla->rope)
               * sizeof(float));
    be_reserve(&size[BE_SCRATCH_POS], l->rows * sizeof(uint32_t));
}


static void
mla_cache_item(void *ctx, uint32_t item, uint32_t worker)
{
    float             *tmp, sum;
    int32_t            block;
    uint8_t           *dst;
    uint16_t           h;
    uint32_t           row, end, i;
    mla_cache_t       *job;
    const float       *x;
    const be_kv_t     *kv;
    const be_batch_t  *b;

    job = ctx;
    kv = job->kv;
    b = job->b;
    tmp = job->tmp + (size_t) worker * kv->dim;

    row = item * MLA_CACHE_ROWS;
    end = (b->n_rows - row < MLA_CACHE_ROWS) ? b->n_rows
                                             : row + MLA_CACHE_ROWS;

    for ( /* void */ ; row < end; row++) {
        x = job->kva + (size_t) row * kv->dim;

        job->cpu->k->norm(job->w, job->eps, x, job->mla->kv_lora, tmp);
        mla_rotate(job->rope + (size_t) row * job->mla->rope, job->mla->rope,
                   x + job->mla->kv_lora, tmp + job->mla->kv_lora);

        block = b->blocks[b->seq[row]][b->pos[row] / BE_BLOCK];
        dst = kv->data
              + ((size_t) job->layer * kv->blocks + (uint32_t) block)
                * kv->block_size
              + (size_t) (b->pos[row] % BE_BLOCK) * kv->row_size;

        if (kv->dtype == BE_F32) {
            memcpy(dst, tmp, kv->row_size);
            continue;
        }

        /* Zero times a number is zero, or it was none. */

        sum = 0.0f;

        for (i = 0; i < kv->dim; i++) {
            h = be_to_bf16(tmp[i]);
            memcpy(dst + (size_t) i * 2, &h, 2);
            sum += 0.0f * be_from_bf16(h);
        }

        if (sum != 0.0f) {
            atomic_store_explicit(&kv->infinite, 1, memory_order_relaxed);
        }
    }
}


void
be_cpu_mla_query(be_t *be, const be_mla_t *mla, const be_rope_t *rope,
    const be_weight_t *w_uk, const float *q, const be_batch_t *b, float *ql)
{
    be_cpu_t      *cpu;
    mla_heads_t    src;
    mla_query_t    rotate;
    be_product_t   p;

    if (b->n_rows == 0) {
        return;
    }

    cpu = (be_cpu_t *) be;

    rotate.mla = mla;
    rotate.q = q;
    rotate.rope = mla_rope_table(cpu, rope, b);
    rotate.ql = ql;

    src.x = q;
    src.heads = mla->heads;
    src.rows = b->n_rows;
    src.dim = mla->nope + mla->rope;

    memset(&p, 0, sizeof(p));
    p.k = mla->nope;
    p.n = mla->kv_lora;
    p.y = ql;
    p.group_y = mla->kv_lora + mla->rope;
    p.ldy = p.group_y * mla->heads;
    p.store = mla_query_rotate;
    p.ctx = &rotate;

    mla_heads(cpu, &src, &p, w_uk, mla->kv_lora, 0);
}


/* The rope part, by whoever did the first columns of those rows. */

static void
mla_query_rotate(void *ctx, uint32_t g, uint32_t row, uint32_t m,
    uint32_t col, uint32_t n, float *c, const float *pair, size_t ld)
{
    float           *to;
    uint32_t         i;
    mla_query_t     *s;
    const float     *from;
    const be_mla_t  *mla;

    (void) n;
    (void) c;
    (void) pair;
    (void) ld;

    if (col != 0) {
        return;
    }

    s = ctx;
    mla = s->mla;

    for (i = row; i < row + m; i++) {
        from = s->q + ((size_t) i * mla->heads + g) * (mla->nope + mla->rope);
        to = s->ql + ((size_t) i * mla->heads + g)
                     * (mla->kv_lora + mla->rope);

        mla_rotate(s->rope + (size_t) i * mla->rope, mla->rope,
                   from + mla->nope, to + mla->kv_lora);
    }
}


void
be_cpu_mla_value(be_t *be, const be_mla_t *mla, const be_weight_t *w_uv,
    const float *ol, uint32_t rows, float *o)
{
    uint32_t       stride;
    mla_heads_t    src;
    be_product_t   p;

    if (rows == 0) {
        return;
    }

    src.x = ol;
    src.heads = mla->heads;
    src.rows = rows;
    src.dim = mla->kv_lora;

    memset(&p, 0, sizeof(p));
    p.k = mla->kv_lora;
    p.n = mla->v;
    p.y = o;
    p.group_y = mla->v;
    p.ldy = p.group_y * mla->heads;

    /* kv_b_proj itself serves too: W_UV are the last v rows of each head. */

    stride = w_uv->rows / mla->heads;

    mla_heads((be_cpu_t *) be, &src, &p, w_uv, stride, stride - mla->v);
}


/*
 * One product for each head: rows offset + h * stride … of w times the first
 * columns of the head's rows, as many as p says.
 */

static void
mla_heads(be_cpu_t *cpu, const mla_heads_t *src, be_product_t *p,
    const be_weight_t *w, uint32_t stride, uint32_t offset)
{
    void             *act;
    uint32_t          h, block;
    be_group_t       *group;
    mla_heads_t       rows;
    const be_gemm_t  *gemm;

    gemm = be_weight_gemm(cpu, w);
    block = gemm->row_block;

    rows = *src;
    rows.packed = (src->rows + block - 1) / block * block;

    act = be_scratch(cpu, BE_SCRATCH_ACT,
                     gemm->size(rows.packed * rows.heads, p->k));
    be_pack(cpu, gemm, act, p->k, rows.rows * rows.heads, mla_heads_row,
            &rows);

    group = be_scratch(cpu, BE_SCRATCH_GROUP,
                       rows.heads * sizeof(be_group_t));

    for (h = 0; h < rows.heads; h++) {
        group[h].w = w;
        group[h].pair = NULL;
        group[h].w_row = h * stride + offset;
        group[h].act_row = h * rows.packed;
        group[h].rows = rows.rows;
    }

    p->gemm = cpu->mode->gemm;
    p->act = act;
    p->n_groups = rows.heads;
    p->group = group;

    be_product(cpu, p);
}


static const float *
mla_heads_row(void *ctx, uint32_t row, uint32_t *packed)
{
    uint32_t      h, r;
    mla_heads_t  *s;

    s = ctx;
    h = row / s->rows;
    r = row % s->rows;

    *packed = h * s->packed + r;

    return s->x + ((size_t) r * s->heads + h) * s->dim;
}


/*
 * Cosines and sines of the batch's positions.  They are the same in every
 * layer of a step, so they are kept until positions or rope change.  In
 * double, so that all kernel paths rotate alike.
 */

static const float *
mla_rope_table(be_cpu_t *cpu, const be_rope_t *rope, const be_batch_t *b)
{
    float     *freq, *table, *t;
    size_t     size;
    double     angle;
    uint32_t   half, i, r, *pos;

    half = rope->dim / 2;
    size = ((size_t) half + (size_t) b->n_rows * rope->dim) * sizeof(float);

    if (size > cpu->scratch_size[BE_SCRATCH_ROPE]) {
        cpu->rope_rows = 0;
        cpu->rope_dim = 0;
    }

    freq = be_scratch(cpu, BE_SCRATCH_ROPE, size);
    table = freq + half;

    if (b->n_rows * sizeof(uint32_t) > cpu->scratch_size[BE_SCRATCH_POS]) {
        cpu->rope_rows = 0;
    }

    pos = be_scratch(cpu, BE_SCRATCH_POS, b->n_rows * sizeof(uint32_t));

    if (cpu->rope_dim != rope->dim || cpu->rope_mscale != rope->mscale
        || memcmp(freq, rope->freq, half * sizeof(float)) != 0)
    {
        cpu->rope_rows = 0;
        cpu->rope_dim = rope->dim;
        cpu->rope_mscale = rope->mscale;
        memcpy(freq, rope->freq, half * sizeof(float));
    }

    for (r = 0; r < b->n_rows; r++) {
        if (r < cpu->rope_rows && pos[r] == b->pos[r]) {
            continue;
        }

        pos[r] = b->pos[r];
        t = table + (size_t) r * rope->dim;

        for (i = 0; i < half; i++) {
            angle = (double) pos[r] * (double) freq[i];
            t[2 * i] = (float) (cos(angle) * (double) rope->mscale);
            t[2 * i + 1] = (float) (sin(angle) * (double) rope->mscale);
        }
    }

    if (cpu->rope_rows < b->n_rows) {
        cpu->rope_rows = b->n_rows;
    }

    return table;
}


static void
mla_rotate(const float *table, uint32_t dim, const float *x, float *y)
{
    float     a, b;
    uint32_t  i;

    for (i = 0; i < dim; i += 2) {
        a = x[i];
        b = x[i + 1];

        y[i] = a * table[i] - b * table[i + 1];
        y[i + 1] = a * table[i + 1] + b * table[i];
    }
}
