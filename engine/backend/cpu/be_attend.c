/*
 * Attention over the latent cache.
 *
 * An item is a group of rows of one sequence by a group of heads, queries
 * that go through the KV blocks together: each block is read once for all of
 * them.  A query's arithmetic is fixed by its own position.  The tokens are
 * cut into runs of BE_RUN, by position.  A run has its own largest score and
 * sums; in it blocks go in order.  What comes of the runs is merged in order:
 * one rescale of one of the two sides each.
 *
 * So a long sequence of few rows, as in decoding, is cut into an item for
 * each run, and merged when all are done; where there are more runs than
 * memory for what comes of them, so many at a time.  Otherwise an item goes
 * through all its runs and merges on the way.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/be_cpu.h"


#define ATTEND_QUERIES  128          /* of an item at most */
#define ATTEND_CACHE    (1024 * 1024)    /* less than that: half of them */
#define ATTEND_TOKENS   16           /* scores are for a multiple of that */
#define ATTEND_NEVER    (-1e30f)     /* score of what is not seen */
#define ATTEND_ALIGN    64
#define ATTEND_TILE     16           /* heads that are worth an item */
#define ATTEND_PARTS    64           /* results of runs that wait, */
#define ATTEND_SHARE    8            /* or so many for each thread */


typedef struct {
    uint32_t             row;
    uint32_t             n;
} attend_rows_t;

/* Of one run or of several, for all queries of an item. */

typedef struct {
    float               *o;          /* [][ldo] */
    float               *max;
    float               *sum;
} attend_part_t;

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
    uint32_t             queries;    /* of an item at most */
    uint32_t             heads;      /* of an item */
    uint32_t             parts;      /* of all heads */
    uint32_t             runs;       /* of an item, if it is cut into them */
    uint32_t             from;       /* run, of those in work */
    uint32_t             turn;       /* how many these are */
    size_t               ldo;
    uint8_t             *scratch;
    size_t               scratch_size;
    uint8_t             *part;       /* [items][1 + turn]: all, and one */
    size_t               part_size;
} attend_job_t;

/* What one item is about. */

typedef struct {
    const uint32_t      *pos;
    const int32_t       *blocks;
    uint32_t             row;
    uint32_t             rows;
    uint32_t             head;
    uint32_t             heads;
    uint32_t             first;      /* position */
    uint32_t             last;
} attend_item_t;

/*
 * What a thread works with, all of a job's `queries`; probabilities have room
 * for a tile that begins at the last.
 */

typedef struct {
    uint8_t             *q;          /* packed */
    uint32_t            *n;          /* tokens of the run that it sees */
    attend_part_t        all;
    attend_part_t        one;        /* a run */
    float               *s;          /* [][BE_BLOCK] */
    uint8_t             *p;          /* [][BE_BLOCK] */
    float               *rescale;
    uint8_t             *work;       /* of the kernel */
} attend_work_t;


static void attend_cut(attend_job_t *job, attend_rows_t *group);
static uint32_t attend_queries(const be_cpu_t *cpu);
static void attend_runs(attend_job_t *job, uint64_t cost);
static uint32_t attend_parts(const be_cpu_t *cpu);
static size_t attend_layout(const attend_job_t *job, uint8_t *base,
    attend_work_t *w);
static size_t attend_part(const attend_job_t *job, uint8_t *base,
    attend_part_t *part);
static void attend_item(const attend_job_t *job, uint32_t i,
    attend_item_t *item);
static void attend_whole(void *ctx, uint32_t i, uint32_t worker);
static uint8_t *attend_part_of(const attend_job_t *job,
    const attend_item_t *item, uint32_t i, uint32_t run);
static void attend_one_run(void *ctx, uint32_t i, uint32_t worker);
static void attend_merge_runs(void *ctx, uint32_t i, uint32_t worker);
static void attend_load(const attend_job_t *job, const attend_item_t *item,
    const attend_work_t *w);
static void attend_run(const attend_job_t *job, const attend_item_t *item,
    const attend_work_t *w, uint32_t from, uint32_t next,
    const attend_part_t *part);
static uint32_t attend_blocks(const attend_job_t *job,
    const attend_item_t *item, uint32_t from, const uint8_t **kv);
static void attend_block(const attend_job_t *job, const attend_item_t *item,
    const attend_work_t *w, uint32_t from, const attend_part_t *part);
static void attend_merge(const attend_job_t *job, uint32_t queries,
    const attend_part_t *to, const attend_part_t *from);
static void attend_store(const attend_job_t *job, const attend_item_t *item,
    const attend_part_t *part);
static inline uint32_t attend_visible(uint32_t pos, uint32_t from,
    uint32_t most);
static inline size_t attend_align(size_t size, size_t to);


void
be_cpu_mla_attend(be_t *be, be_kv_t *kv, uint32_t layer, const be_mla_t *mla,
    float scale, const float *ql, const be_batch_t *b, float *ol)
{
    uint32_t        i;
    uint64_t        cost;
    be_cpu_t       *cpu;
    attend_job_t    job;

    if (b->n_rows == 0) {
        return;
    }

    cpu = (be_cpu_t *) be;
    memset(&job, 0, sizeof(job));

    job.cpu = cpu;
    job.kv = kv;
    job.layer = kv->data + (size_t) layer * kv->blocks * kv->block_size;
    job.mla = mla;
    job.b = b;
    job.scale = scale;
    job.ql = ql;
    job.ol = ol;
    job.ldo = attend_align(mla->kv_lora, 32);

    attend_cut(&job, be_scratch(cpu, BE_SCRATCH_RUN,
                                b->n_rows * sizeof(attend_rows_t)));

    job.scratch_size = attend_layout(&job, NULL, NULL);
    job.scratch = be_scratch(cpu, BE_SCRATCH_ATTEND,
                             job.scratch_size * cpu->threads);
    cost = 0;

    for (i = 0; i < b->n_rows; i++) {
        cost += b->pos[i] + 1;
    }

    cost = cost * mla->heads * (2 * mla->kv_lora + mla->rope) / 48;

    if (job.runs < 2) {
        be_team_run(cpu->team, attend_whole, &job, job.n_groups * job.parts,
                    cost);
        return;
    }

    attend_runs(&job, cost);
}


/* There are fewer than 2 * threads items then, see attend_cut(). */

static void
attend_runs(attend_job_t *job, uint64_t cost)
{
    uint32_t   items, n;
    uint64_t   merge;
    be_cpu_t  *cpu;

    cpu = job->cpu;
    items = job->n_groups * job->parts;

    job->turn = attend_parts(cpu) / items;
    job->turn = (job->turn < job->runs) ? job->turn : job->runs;
    job->part_size = attend_part(job, NULL, NULL);
    job->part = be_scratch(cpu, BE_SCRATCH_PART,
                           job->part_size * items * (1 + job->turn));

    for (job->from = 0; job->from < job->runs; job->from += job->turn) {
        n = (job->runs - job->from < job->turn) ? job->runs - job->from
                                                : job->turn;
        merge = (uint64_t) job->b->n_rows * job->mla->heads * n * job->ldo
                / 16;

        be_team_run(cpu->team, attend_one_run, job, items * job->turn,
                    cost / job->runs * n);
        be_team_run(cpu->team, attend_merge_runs, job, items, merge);
    }
}


/* At least two for each item. */

static uint32_t
attend_parts(const be_cpu_t *cpu)
{
    return (cpu->threads * ATTEND_SHARE > ATTEND_PARTS)
           ? cpu->threads * ATTEND_SHARE : ATTEND_PARTS;
}


void
be_attend_reserve(be_cpu_t *cpu, const be_largest_t *l, size_t *size)
{
    be_kv_t        kv;
    attend_job_t   job;

    memset(&job, 0, sizeof(job));
    memset(&kv, 0, sizeof(kv));

    kv.dtype = cpu->compute;
    job.cpu = cpu;
    job.kv = &kv;
    job.mla = l->mla;
    job.ldo = attend_align(l->mla->kv_lora, 32);
    job.queries = attend_queries(cpu);

    be_reserve(&size[BE_SCRATCH_RUN], l->rows * sizeof(attend_rows_t));
    be_reserve(&size[BE_SCRATCH_ATTEND],
               attend_layout(&job, NULL, NULL) * cpu->threads);

    if (cpu->threads > 1) {
        be_reserve(&size[BE_SCRATCH_PART],
                   attend_part(&job, NULL, NULL)
                   * (attend_parts(cpu) + 2 * cpu->threads));
    }
}


/*
 * Groups are neighbouring rows of the same sequence.  Where what was just
 * stored is not finite each row is alone, because zero times what it does not
 * see is not zero then.
 */

static void
attend_cut(attend_job_t *job, attend_rows_t *group)
{
    uint32_t           i, n, most, last, threads;
    const be_batch_t  *b;

    b = job->b;
    threads = job->cpu->threads;

    job->queries = attend_queries(job->cpu);
    job->heads = (job->mla->heads < job->queries) ? job->mla->heads
                                                  : job->queries;
    most = atomic_load_explicit(&job->kv->infinite, memory_order_relaxed)
           ? 1 : job->queries / job->heads;
    n = 0;
    last = 0;

    for (i = 0; i < b->n_rows; i++) {
        last = (b->pos[i] > last) ? b->pos[i] : last;

        if (n != 0 && group[n - 1].n < most && b->seq[i] == b->seq[i - 1]) {
            group[n - 1].n++;
            continue;
        }

        group[n].row = i;
        group[n].n = 1;
        n++;
    }

    job->group = group;
    job->n_groups = n;
    job->parts = (job->mla->heads + job->heads - 1) / job->heads;

    if (n * job->parts < 2 * threads && threads > 1) {
        job->runs = last / BE_RUN + 1;
    }

    while (job->runs < 2 && n * job->parts < threads
           && job->heads > ATTEND_TILE)
    {
        job->heads = (job->heads + 1) / 2;
        job->parts = (job->mla->heads + job->heads - 1) / job->heads;
    }
}


static uint32_t
attend_queries(const be_cpu_t *cpu)
{
    return (cpu->cache < ATTEND_CACHE || cpu->mode->run == NULL)
           ? ATTEND_QUERIES / 2 : ATTEND_QUERIES;
}


/* Lays the work arrays out from `base`; returns the size of all. */

static size_t
attend_layout(const attend_job_t *job, uint8_t *base, attend_work_t *w)
{
    size_t                    at, n;
    attend_work_t             unused;
    const be_mla_t           *mla;
    const be_mode_kernels_t  *mode;

    mla = job->mla;
    mode = job->cpu->mode;
    w = (w != NULL) ? w : &unused;
    n = attend_align(job->queries, BE_ROW_BLOCK) * sizeof(float);
    at = 0;

    w->q = base + at;
    at += attend_align(mode->gemm[job->kv->dtype].size(job->queries,
                           mla->kv_lora + mla->rope), ATTEND_ALIGN);
    w->n = (uint32_t *) (base + at);
    at += attend_align(n, ATTEND_ALIGN);

    at += attend_part(job, base + at, &w->all);
    at += attend_part(job, base + at, &w->one);

    w->work = base + at;

    if (mode->run != NULL) {
        return at + attend_align(mode->run_size(job->queries, mla->kv_lora),
                                 ATTEND_ALIGN);
    }

    at += attend_align(mode->value_size(mla->kv_lora), ATTEND_ALIGN);
    w->s = (float *) (base + at);
    at += attend_align(job->queries * BE_BLOCK * sizeof(float), ATTEND_ALIGN);
    w->p = base + at;
    at += attend_align((job->queries + BE_ROW_BLOCK) * BE_BLOCK
                       * mode->prob_size, ATTEND_ALIGN);
    w->rescale = (float *) (base + at);

    return at + attend_align(n, ATTEND_ALIGN);
}


static size_t
attend_part(const attend_job_t *job, uint8_t *base, attend_part_t *part)
{
    size_t         o, f;
    attend_part_t  unused;

    part = (part != NULL) ? part : &unused;

    f = attend_align(job->queries, BE_ROW_BLOCK) * sizeof(float);
    o = f * job->ldo;
    f = attend_align(f, ATTEND_ALIGN);

    part->o = (float *) base;
    part->max = (float *) (base + o);
    part->sum = (float *) (base + o + f);

    return o + 2 * f;
}


static void
attend_item(const attend_job_t *job, uint32_t i, attend_item_t *item)
{
    uint32_t              j, seq;
    const attend_rows_t  *rows;

    /* The last rows see most: they go first, so that nobody waits long. */

    rows = &job->group[job->n_groups - 1 - i / job->parts];
    seq = job->b->seq[rows->row];

    item->row = rows->row;
    item->rows = rows->n;
    item->pos = job->b->pos + rows->row;
    item->blocks = job->b->blocks[seq];
    item->first = (job->b->first != NULL) ? job->b->first[seq] : 0;
    item->last = 0;

    item->head = i % job->parts * job->heads;
    item->heads = (job->mla->heads - item->head < job->heads)
                  ? job->mla->heads - item->head : job->heads;

    for (j = 0; j < rows->n; j++) {
        item->last = (item->pos[j] > item->last) ? item->pos[j] : item->last;
    }
}


static void
attend_whole(void *ctx, uint32_t i, uint32_t worker)
{
    uint32_t        run;
    attend_job_t   *job;
    attend_item_t   item;
    attend_work_t   w;

    job = ctx;

    (void) attend_layout(job, job->scratch + worker * job->scratch_size, &w);
    attend_item(job, i, &item);
    attend_load(job, &item, &w);

    run = item.first / BE_RUN;
    attend_run(job, &item, &w, run, run + 1, &w.all);

    for (run++; run <= item.last / BE_RUN; run++) {
        attend_run(job, &item, &w, run, run + 1, &w.one);
        attend_merge(job, item.rows * item.heads, &w.all, &w.one);
    }

    attend_store(job, &item, &w.all);
}


/* Where the result of a run goes: an item's first takes in the others. */

static uint8_t *
attend_part_of(const attend_job_t *job, const attend_item_t *item, uint32_t i,
    uint32_t run)
{
    size_t  at;

    at = (size_t) i * (1 + job->turn);
    at += (run == item->first / BE_RUN) ? 0 : 1 + run - job->from;

    return job->part + at * job->part_size;
}


static void
attend_one_run(void *ctx, uint32_t i, uint32_t worker)
{
    uint32_t        run;
    attend_job_t   *job;
    attend_item_t   item;
    attend_part_t   part;
    attend_work_t   w;

    job = ctx;
    run = job->from + i % job->turn;
    i /= job->turn;

    attend_item(job, i, &item);

    if (run < item.first / BE_RUN || run > item.last / BE_RUN) {
        return;
    }

    (void) attend_layout(job, job->scratch + worker * job->scratch_size, &w);
    (void) attend_part(job, attend_part_of(job, &item, i, run), &part);

    attend_load(job, &item, &w);

    /* The threads take them in turn, more or less. */

    attend_run(job, &item, &w, run, run + job->cpu->threads, &part);
}


static void
attend_merge_runs(void *ctx, uint32_t i, uint32_t worker)
{
    uint32_t        run, end;
    attend_job_t   *job;
    attend_item_t   item;
    attend_part_t   all, one;

    (void) worker;

    job = ctx;
    attend_item(job, i, &item);

    run = item.first / BE_RUN;
    (void) attend_part(job, attend_part_of(job, &item, i, run), &all);

    run = (run + 1 > job->from) ? run + 1 : job->from;
    end = job->from + job->turn;

    for ( /* void */ ; run < end && run <= item.last / BE_RUN; run++) {
        (void) attend_part(job, attend_part_of(job, &item, i, run), &one);
        attend_merge(job, item.rows * item.heads, &all, &one);
    }

    if (item.last / BE_RUN >= job->from && item.last / BE_RUN < end) {
        attend_store(job, &item, &all);
    }
}


static void
attend_load(const attend_job_t *job, const attend_item_t *item,
    const attend_work_t *w)
{
    size_t            at;
    uint32_t          i, n, q, dim, block;
    const float      *x[ATTEND_QUERIES];
    const be_gemm_t  *gemm;

    dim = job->mla->kv_lora + job->mla->rope;
    gemm = &job->cpu->mode->gemm[job->kv->dtype];
    block = gemm->row_block;
    n = item->rows * item->heads;

    for (q = 0; q < n; q++) {
        at = (size_t) (item->row + q / item->heads) * job->mla->heads
             + item->head + q % item->heads;

        x[q] = job->ql + at * dim;
    }

    for (q = 0; q < n; q += i) {
        i = (n - q < block) ? n - q : block;
        gemm->pack(w->q, dim, q, 0, x + q, i, dim);
    }
}


/* A run of tokens, for all queries; the thread's next may be `next`. */

static void
attend_run(const attend_job_t *job, const attend_item_t *item,
    const attend_work_t *w, uint32_t which, uint32_t next,
    const attend_part_t *part)
{
    uint32_t        i, j, n, from, end;
    be_run_t        run;
    const uint8_t  *kv[BE_RUN / BE_BLOCK], *ahead[BE_RUN / BE_BLOCK];

    from = which * BE_RUN;
    n = item->rows * item->heads;

    if (job->cpu->mode->run == NULL) {

        for (i = 0; i < n; i++) {
            part->max[i] = -INFINITY;
            part->sum[i] = 0.0f;
        }

        memset(part->o, 0, n * job->ldo * sizeof(float));

        end = attend_visible(item->last, from, BE_RUN);
        i = (item->first > from) ? (item->first - from) / BE_BLOCK : 0;

        for ( /* void */ ; i * BE_BLOCK < end; i++) {
            attend_block(job, item, w, from + i * BE_BLOCK, part);
        }

        return;
    }

    for (i = 0; i < item->rows; i++) {
        for (j = 0; j < item->heads; j++) {
            w->n[i * item->heads + j] = attend_visible(item->pos[i], from,
                                                       BE_RUN);
        }
    }

    for (i = n; i % BE_ROW_BLOCK != 0; i++) {
        w->n[i] = 0;
    }

    (void) attend_blocks(job, item, from, kv);

    run.q = w->q;
    run.m = n;
    run.k = job->kv->dim;
    run.dim = job->mla->kv_lora;
    run.kv = kv;
    run.ahead = ahead;
    run.n_ahead = attend_blocks(job, item, next * BE_RUN, ahead);
    run.ldkv = job->kv->row_size;
    run.first = (item->first > from) ? item->first - from : 0;
    run.n = w->n;
    run.scale = job->scale;
    run.o = part->o;
    run.ldo = job->ldo;
    run.max = part->max;
    run.sum = part->sum;
    run.work = w->work;

    job->cpu->mode->run(&run);
}


/* A run's blocks; how many tokens they have, of those that are seen. */

static uint32_t
attend_blocks(const attend_job_t *job, const attend_item_t *item,
    uint32_t from, const uint8_t **kv)
{
    uint32_t  i, n;

    n = attend_visible(item->last, from, BE_RUN);

    for (i = 0; i * BE_BLOCK < n; i++) {
        kv[i] = job->layer + (size_t) (uint32_t)
                             item->blocks[from / BE_BLOCK + i]
                             * job->kv->block_size;
    }

    return n;
}


/*
 * All queries over the block of tokens from `from` on.  Scores of tokens that
 * a row does not see are computed with the others and not used: whole tiles
 * are worth more than what they waste.
 */

static void
attend_block(const attend_job_t *job, const attend_item_t *item,
    const attend_work_t *w, uint32_t from, const attend_part_t *part)
{
    size_t                    at;
    uint32_t                  i, j, q, n, most, heads;
    be_value_t                value;
    const uint8_t            *kv;
    const be_mode_kernels_t  *mode;

    mode = job->cpu->mode;
    heads = item->heads;
    kv = job->layer + (size_t) (uint32_t) item->blocks[from / BE_BLOCK]
                      * job->kv->block_size;

    most = attend_visible(item->last, from, BE_BLOCK);
    most = (most + ATTEND_TOKENS - 1) / ATTEND_TOKENS * ATTEND_TOKENS;

    mode->gemm[job->kv->dtype].product(w->q, job->kv->dim, 0,
                                       item->rows * heads, kv,
                                       job->kv->row_size, most, w->s,
                                       BE_BLOCK);

    for (q = 0; item->first > from && q < item->rows * heads; q++) {
        for (i = 0; i < item->first - from && i < BE_BLOCK; i++) {
            w->s[(size_t) q * BE_BLOCK + i] = ATTEND_NEVER;
        }
    }

    value.dim = job->mla->kv_lora;
    value.v = kv;
    value.ldv = job->kv->row_size;
    value.ldo = job->ldo;
    value.work = w->work;
    value.have = 0;

    for (i = 0; i < item->rows; i = j) {
        n = attend_visible(item->pos[i], from, BE_BLOCK);

        for (j = i + 1; j < item->rows; j++) {
            if (attend_visible(item->pos[j], from, BE_BLOCK) != n) {
                break;
            }
        }

        if (n == 0) {
            continue;
        }

        for (q = i * heads; q < j * heads; q++) {
            at = (size_t) q * BE_BLOCK;

            w->rescale[q] = mode->softmax(w->s + at, n, job->scale,
                                          &part->max[q], &part->sum[q],
                                          w->p + at * mode->prob_size);
        }

        q = i * heads;
        value.p = w->p + (size_t) q * BE_BLOCK * mode->prob_size;
        value.m = (j - i) * heads;
        value.n = n;
        value.rescale = w->rescale + q;
        value.o = part->o + (size_t) q * value.ldo;

        mode->value(&value);
    }
}


/*
 * The side with the smaller maximum is brought to the other's.  A query that
 * saw nothing of the later run stays as it is.  exp() in double: the same
 * function on all kernel paths.
 */

static void
attend_merge(const attend_job_t *job, uint32_t queries,
    const attend_part_t *to, const attend_part_t *from)
{
    float     a, b;
    uint32_t  q;

    for (q = 0; q < queries; q++) {

        if (from->sum[q] == 0.0f) {
            continue;
        }

        a = 1.0f;
        b = 1.0f;

        if (from->max[q] > to->max[q]) {
            a = (float) exp((double) to->max[q] - (double) from->max[q]);
            to->max[q] = from->max[q];

        } else {
            b = (float) exp((double) from->max[q] - (double) to->max[q]);
        }

        to->sum[q] = a * to->sum[q] + b * from->sum[q];

        job->cpu->k->merge(a, b, from->o + q * job->ldo, job->mla->kv_lora,
                           to->o + q * job->ldo);
    }
}


static void
attend_store(const attend_job_t *job, const attend_item_t *item,
    const attend_part_t *part)
{
    size_t    at;
    uint32_t  q;

    for (q = 0; q < item->rows * item->heads; q++) {
        at = (size_t) (item->row + q / item->heads) * job->mla->heads
             + item->head + q % item->heads;

        job->cpu->k->scale(1.0f / part->sum[q], part->o + q * job->ldo,
                           job->mla->kv_lora,
                           job->ol + at * job->mla->kv_lora);
    }
}


/* How many of `most` tokens from `from` on a position sees. */

static inline uint32_t
attend_visible(uint32_t pos, uint32_t from, uint32_t most)
{
    return (pos < from) ? 0 : (pos - from < most) ? pos - from + 1 : most;
}


static inline size_t
attend_align(size_t size, size_t to)
{
    return (size + to - 1) / to * to;
}
