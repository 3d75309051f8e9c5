/*
 * Attention over the latent cache.
 *
 * An item is a group of rows of one sequence by a group of heads, at most
 * ATTEND_QUERIES queries that go through the KV blocks together: each block
 * is read once for all of them.  A query's arithmetic is fixed by its own
 * position: for each block in order, scores of the tokens up to its position,
 * one step of the online softmax, one rescale of the sum so far.  Rows that
 * see a different part of a block are taken one after the other there.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/be_cpu.h"


#define ATTEND_QUERIES  64
#define ATTEND_TOKENS   16           /* scores are for a multiple of that */
#define ATTEND_NEVER    (-1e30f)     /* score of what is not seen */


typedef struct {
    uint32_t             row;
    uint32_t             n;
} attend_rows_t;

typedef struct {
    be_cpu_t            *cpu;
    const be_kv_t       *kv;
    const uint8_t       *layer;
    const be_mla_t      *mla;
    const be_batch_t    *b;
    float                scale;
    const float         *ql;
    float               *ol;
    const attend_rows_t *group;
    uint32_t             n_groups;
    uint32_t             heads;      /* of an item */
    uint32_t             parts;      /* of all heads */
    uint8_t             *scratch;
    size_t               scratch_size;
} attend_job_t;

/*
 * What an item works with, all of ATTEND_QUERIES queries; probabilities have
 * room for a tile that begins at the last.
 */

typedef struct {
    uint8_t             *q;          /* packed */
    float               *o;          /* [][kv_lora] */
    float               *s;          /* [][BE_BLOCK] */
    uint8_t             *p;          /* [][BE_BLOCK] */
    float               *max;
    float               *sum;
    float               *rescale;
    uint8_t             *v;          /* a block rearranged for `value` */
} attend_work_t;


static uint32_t attend_group_rows(const be_batch_t *b, uint32_t most,
    attend_rows_t *group);
static size_t attend_layout(const be_cpu_t *cpu, const be_mla_t *mla,
    uint8_t *base, attend_work_t *w);
static void attend_item(void *ctx, uint32_t item, uint32_t worker);
static void attend_load(const attend_job_t *job, const attend_work_t *w,
    const attend_rows_t *rows, uint32_t head, uint32_t heads);
static void attend_block(const attend_job_t *job, const attend_work_t *w,
    const uint8_t *kv, const uint32_t *pos, uint32_t rows, uint32_t heads,
    uint32_t from, uint32_t first);
static inline uint32_t attend_visible(uint32_t pos, uint32_t from);
static inline size_t attend_align(size_t size);


void
be_cpu_mla_attend(be_t *be, be_kv_t *kv, uint32_t layer, const be_mla_t *mla,
    float scale, const float *ql, const be_batch_t *b, float *ol)
{
    uint32_t        i, most;
    uint64_t        tokens;
    be_cpu_t       *cpu;
    attend_job_t    job;
    attend_rows_t  *group;

    if (b->n_rows == 0) {
        return;
    }

    cpu = (be_cpu_t *) be;

    job.cpu = cpu;
    job.kv = kv;
    job.layer = kv->data + (size_t) layer * kv->blocks * kv->block_size;
    job.mla = mla;
    job.b = b;
    job.scale = scale;
    job.ql = ql;
    job.ol = ol;

    job.heads = (mla->heads < ATTEND_QUERIES) ? mla->heads : ATTEND_QUERIES;
    most = ATTEND_QUERIES / job.heads;

    group = be_scratch(cpu, BE_SCRATCH_RUN,
                       b->n_rows * sizeof(attend_rows_t));
    job.group = group;
    job.n_groups = attend_group_rows(b, most, group);
    job.parts = (mla->heads + job.heads - 1) / job.heads;

    while (job.n_groups * job.parts < cpu->threads && job.heads > 1) {
        job.heads = (job.heads + 1) / 2;
        job.parts = (mla->heads + job.heads - 1) / job.heads;
    }

    job.scratch_size = attend_layout(cpu, mla, NULL, NULL);
    job.scratch = be_scratch(cpu, BE_SCRATCH_ATTEND,
                             job.scratch_size * cpu->threads);

    tokens = 0;

    for (i = 0; i < b->n_rows; i++) {
        tokens += b->pos[i] + 1;
    }

    be_team_run(cpu->team, attend_item, &job, job.n_groups * job.parts,
                tokens * mla->heads * (2 * mla->kv_lora + mla->rope) / 48);
}


/* Neighbouring rows of the same sequence, at most `most` together. */

static uint32_t
attend_group_rows(const be_batch_t *b, uint32_t most, attend_rows_t *group)
{
    uint32_t  i, n;

    n = 0;

    for (i = 0; i < b->n_rows; i++) {
        if (n != 0 && group[n - 1].n < most && b->seq[i] == b->seq[i - 1]) {
            group[n - 1].n++;
            continue;
        }

        group[n].row = i;
        group[n].n = 1;
        n++;
    }

    return n;
}


/* Lays the work arrays out from `base`; returns the size of all. */

static size_t
attend_layout(const be_cpu_t *cpu, const be_mla_t *mla, uint8_t *base,
    attend_work_t *w)
{
    size_t  q, o, s, p, f, v;

    q = attend_align(cpu->mode->gemm[cpu->compute].size(ATTEND_QUERIES,
                                             mla->kv_lora + mla->rope));
    o = attend_align((size_t) ATTEND_QUERIES * mla->kv_lora * sizeof(float));
    s = attend_align(ATTEND_QUERIES * BE_BLOCK * sizeof(float));
    p = attend_align((ATTEND_QUERIES + BE_ROW_BLOCK) * BE_BLOCK
                     * cpu->mode->prob_size);
    f = attend_align(ATTEND_QUERIES * sizeof(float));
    v = attend_align(cpu->mode->value_size(mla->kv_lora));

    if (w != NULL) {
        w->q = base;
        w->o = (float *) (base + q);
        w->s = (float *) (base + q + o);
        w->p = base + q + o + s;
        w->max = (float *) (base + q + o + s + p);
        w->sum = (float *) (base + q + o + s + p + f);
        w->rescale = (float *) (base + q + o + s + p + 2 * f);
        w->v = base + q + o + s + p + 3 * f;
    }

    return q + o + s + p + 3 * f + v;
}


static void
attend_item(void *ctx, uint32_t item, uint32_t worker)
{
    size_t                at;
    int32_t               block;
    uint32_t              last, from, first, i, j, heads, head, q, seq;
    attend_job_t         *job;
    attend_work_t         w;
    const uint8_t        *kv;
    const uint32_t       *pos;
    const attend_rows_t  *rows;

    job = ctx;

    /* The last rows see most: they go first, so that nobody waits long. */

    rows = &job->group[job->n_groups - 1 - item / job->parts];
    head = item % job->parts * job->heads;
    heads = (job->mla->heads - head < job->heads) ? job->mla->heads - head
                                                  : job->heads;

    (void) attend_layout(job->cpu, job->mla,
                         job->scratch + worker * job->scratch_size, &w);
    attend_load(job, &w, rows, head, heads);

    pos = job->b->pos + rows->row;
    seq = job->b->seq[rows->row];
    first = (job->b->first != NULL) ? job->b->first[seq] : 0;
    last = 0;

    for (i = 0; i < rows->n; i++) {
        last = (pos[i] > last) ? pos[i] : last;
    }

    for (from = first / BE_BLOCK * BE_BLOCK; from <= last; from += BE_BLOCK) {
        block = job->b->blocks[seq][from / BE_BLOCK];
        kv = job->layer + (size_t) (uint32_t) block * job->kv->block_size;

        attend_block(job, &w, kv, pos, rows->n, heads, from, first);

        if (from > UINT32_MAX - BE_BLOCK) {
            break;
        }
    }

    for (i = 0; i < rows->n; i++) {
        for (j = 0; j < heads; j++) {
            q = i * heads + j;
            at = ((size_t) (rows->row + i) * job->mla->heads + head + j)
                 * job->mla->kv_lora;

            job->cpu->k->scale(1.0f / w.sum[q],
                               w.o + (size_t) q * job->mla->kv_lora,
                               job->mla->kv_lora, job->ol + at);
        }
    }
}


static void
attend_load(const attend_job_t *job, const attend_work_t *w,
    const attend_rows_t *rows, uint32_t head, uint32_t heads)
{
    size_t            at;
    uint32_t          i, n, q, dim, block;
    const float      *x[ATTEND_QUERIES];
    const be_gemm_t  *gemm;

    dim = job->mla->kv_lora + job->mla->rope;
    gemm = &job->cpu->mode->gemm[job->kv->dtype];
    block = gemm->row_block;
    n = rows->n * heads;

    for (q = 0; q < n; q++) {
        at = (size_t) (rows->row + q / heads) * job->mla->heads + head
             + q % heads;

        x[q] = job->ql + at * dim;
        w->max[q] = -INFINITY;
        w->sum[q] = 0.0f;
    }

    for (q = 0; q < n; q += i) {
        i = (n - q < block) ? n - q : block;
        gemm->pack(w->q, dim, q, 0, x + q, i, dim);
    }

    memset(w->o, 0, (size_t) n * job->mla->kv_lora * sizeof(float));
}


/*
 * All queries over the block of tokens from `from` on.  Scores of tokens that
 * a row does not see are computed with the others and not used: whole tiles
 * are worth more than what they waste.
 */

static void
attend_block(const attend_job_t *job, const attend_work_t *w,
    const uint8_t *kv, const uint32_t *pos, uint32_t rows, uint32_t heads,
    uint32_t from, uint32_t first)
{
    size_t                    at;
    uint32_t                  i, j, q, n, most;
    be_value_t                value;
    const be_mode_kernels_t  *mode;

    mode = job->cpu->mode;
    most = 0;

    for (i = 0; i < rows; i++) {
        n = attend_visible(pos[i], from);
        most = (n > most) ? n : most;
    }

    most = (most + ATTEND_TOKENS - 1) / ATTEND_TOKENS * ATTEND_TOKENS;

    mode->gemm[job->kv->dtype].product(w->q, job->kv->dim, 0, rows * heads,
                                       kv, job->kv->row_size, most, w->s,
                                       BE_BLOCK);

    for (q = 0; first > from && q < rows * heads; q++) {
        for (i = 0; i < first - from; i++) {
            w->s[(size_t) q * BE_BLOCK + i] = ATTEND_NEVER;
        }
    }

    value.dim = job->mla->kv_lora;
    value.v = kv;
    value.ldv = job->kv->row_size;
    value.ldo = job->mla->kv_lora;
    value.work = w->v;
    value.have = 0;

    for (i = 0; i < rows; i = j) {
        n = attend_visible(pos[i], from);

        for (j = i + 1; j < rows; j++) {
            if (attend_visible(pos[j], from) != n) {
                break;
            }
        }

        if (n == 0) {
            continue;
        }

        for (q = i * heads; q < j * heads; q++) {
            at = (size_t) q * BE_BLOCK;

            w->rescale[q] = mode->softmax(w->s + at, n, job->scale,
                                          &w->max[q], &w->sum[q],
                                          w->p + at * mode->prob_size);
        }

        q = i * heads;
        value.p = w->p + (size_t) q * BE_BLOCK * mode->prob_size;
        value.m = (j - i) * heads;
        value.n = n;
        value.rescale = w->rescale + q;
        value.o = w->o + (size_t) q * value.ldo;

        mode->value(&value);
    }
}


/* How many tokens of the block that begins at `from` a position sees. */

static inline uint32_t
attend_visible(uint32_t pos, uint32_t from)
{
    return (pos < from) ? 0 : (pos - from < BE_BLOCK) ? pos - from + 1
                                                      : BE_BLOCK;
}


static inline size_t
attend_align(size_t size)
{
    return (size + 63) / 64 * 64;
}
