/*
 * Matrix products over groups of rows: one group for a dense matrix, one for
 * each head or each expert otherwise.
 *
 * The work of a group is cut into items of BLOCK rows of activations (which
 * stay in the L2 cache) by a band of rows of the matrix; items are numbered
 * band by band within a block, so that threads that take them in turn share
 * the activations and each reads its own part of the matrix.  A result that
 * is not just put in place goes through a tile in the cache to the store
 * function of the caller, which may add, scatter, or go on with the next
 * step.
 */

#include <stdlib.h>
#include <string.h>

#include "backend/cpu/be_cpu.h"


#define PRODUCT_ROWS         64          /* blocks and tiles are multiples */
#define PRODUCT_TILE         16384       /* floats */
#define PRODUCT_BAND_BYTES   32768
#define PRODUCT_BAND_FEW     131072
#define PRODUCT_FEW          32          /* rows */
#define PRODUCT_BLOCK_MIN    64
#define PRODUCT_BLOCK_MAX    512
#define PRODUCT_PACK_ITEM    16384       /* elements */


typedef struct {
    be_cpu_t            *cpu;
    const be_product_t  *p;
    uint32_t             block;          /* rows of an item */
    uint32_t             rows;           /* of a tile */
    uint32_t             band;           /* columns of the result */
    uint32_t             bands;
    const uint32_t      *first;          /* [n_groups + 1] items */
    float               *tile;
    size_t               tile_size;      /* floats of a thread */
} product_job_t;

typedef struct {
    const be_gemm_t          *gemm;
    void                     *act;
    uint32_t                  k;
    uint32_t                  rows;
    uint32_t                  per_item;
    be_row_f                  row;
    void                     *ctx;
} pack_job_t;

typedef struct {
    const be_kernels_t       *k;
    float                    *y;
    size_t                    ldy;
} linear_add_t;


static void product_cut(product_job_t *job);
static void product_item(void *ctx, uint32_t item, uint32_t worker);
static void pack_item(void *ctx, uint32_t item, uint32_t worker);
static void linear_run(be_t *be, const be_weight_t *w, const float *x,
    uint32_t rows, float *y, be_store_f store);
static void linear_add_store(void *ctx, uint32_t g, uint32_t row, uint32_t m,
    uint32_t col, uint32_t n, float *c, const float *pair, size_t ld);


void
be_product(be_cpu_t *cpu, const be_product_t *p)
{
    uint32_t        i, *first, blocks, rows;
    uint64_t        macs, bytes;
    product_job_t   job;

    job.cpu = cpu;
    job.p = p;
    product_cut(&job);

    first = be_scratch(cpu, BE_SCRATCH_ITEM,
                       ((size_t) p->n_groups + 1) * sizeof(uint32_t));
    first[0] = 0;
    rows = 0;
    bytes = 0;

    for (i = 0; i < p->n_groups; i++) {
        blocks = (p->group[i].rows + job.block - 1) / job.block;
        first[i + 1] = first[i] + blocks * job.bands;
        rows += p->group[i].rows;

        if (p->group[i].rows != 0) {
            bytes += p->n * p->group[i].w->ld
                     / (p->group[i].w->part_panels != 0 ? BE_PANEL : 1);
        }
    }

    job.first = first;
    job.tile = be_scratch(cpu, BE_SCRATCH_TILE,
                          job.tile_size * cpu->threads * sizeof(float));

    macs = (uint64_t) rows * p->n * p->k;

    be_team_run(cpu->team, product_item, &job, first[p->n_groups],
                macs / 64 + bytes / 16);
}


void
be_product_reserve(const be_cpu_t *cpu, const be_largest_t *l, size_t *size)
{
    uint32_t  groups;

    groups = (l->gate->experts > l->mla->heads) ? l->gate->experts
                                                : l->mla->heads;

    be_reserve(&size[BE_SCRATCH_ACT], be_packed_size(cpu, l->rows,
                                                     l->inputs));
    be_reserve(&size[BE_SCRATCH_ITEM],
               ((size_t) groups + 2) * sizeof(uint32_t));
    be_reserve(&size[BE_SCRATCH_TILE],
               (size_t) cpu->threads * PRODUCT_TILE * 2 * sizeof(float));
}


/* How large blocks, bands and tiles are; the result does not depend on it. */

static void
product_cut(product_job_t *job)
{
    size_t               row_size, bytes;
    uint32_t             i, most, threads, piece;
    const be_gemm_t     *gemm;
    const be_product_t  *p;

    p = job->p;
    gemm = &p->gemm[p->group[0].w->dtype];
    threads = job->cpu->threads;
    row_size = gemm->size(gemm->row_block, p->k) / gemm->row_block;
    piece = (p->piece != 0) ? p->piece : BE_PIECE;
    most = 0;

    for (i = 0; i < p->n_groups; i++) {
        most = (p->group[i].rows > most) ? p->group[i].rows : most;
    }

    job->block = (uint32_t) (job->cpu->cache / row_size);
    job->block = (job->block < PRODUCT_BLOCK_MIN) ? PRODUCT_BLOCK_MIN
               : (job->block > PRODUCT_BLOCK_MAX) ? PRODUCT_BLOCK_MAX
               : job->block / PRODUCT_ROWS * PRODUCT_ROWS;

    /* Few rows only stream the matrix: longer pieces of it then. */

    bytes = (most <= PRODUCT_FEW) ? PRODUCT_BAND_FEW : PRODUCT_BAND_BYTES;

    job->band = (uint32_t) (bytes / row_size) / piece * piece;
    job->band = (job->band < piece) ? piece
              : (job->band > BE_TILE_COLS) ? BE_TILE_COLS : job->band;

    /* A small matrix still gives every thread something. */

    while (job->band > piece && p->n / job->band < threads * 2
           && p->n_groups < threads * 2)
    {
        job->band = (job->band / 2 + piece - 1) / piece * piece;
    }

    job->bands = (p->n + job->band - 1) / job->band;

    job->rows = PRODUCT_TILE / job->band / PRODUCT_ROWS * PRODUCT_ROWS;
    job->rows = (job->rows < job->block) ? job->rows : job->block;
    job->rows = (job->rows < most) ? job->rows : most;
    job->tile_size = (size_t) job->rows * job->band * 2;
}


static void
product_item(void *ctx, uint32_t item, uint32_t worker)
{
    float               *tile, *c, *pair;
    size_t               ldc;
    uint32_t             g, local, row, end, m, col, n;
    product_job_t       *job;
    const uint8_t       *w, *w2;
    const be_group_t    *group;
    const be_product_t  *p;

    job = ctx;
    p = job->p;

    g = be_find(job->first, p->n_groups, item);
    group = &p->group[g];
    local = item - job->first[g];

    row = local / job->bands * job->block;
    end = (group->rows - row < job->block) ? group->rows : row + job->block;

    col = local % job->bands * job->band;
    n = (p->n - col < job->band) ? p->n - col : job->band;


    w = be_weight_row(group->w, group->w_row + col);
    w2 = (group->pair != NULL)
         ? be_weight_row(group->pair, group->w_row + col) : NULL;

    tile = job->tile + worker * job->tile_size;
    pair = NULL;

    for ( /* void */ ; row < end; row += m) {
        m = (end - row < job->rows) ? end - row : job->rows;

        c = tile;
        ldc = job->band;

        if (p->y != NULL) {
            c = p->y + g * p->group_y + row * p->ldy + col;
            ldc = p->ldy;
        }

        p->gemm[group->w->dtype].product(p->act, p->k, group->act_row + row,
                                         m, w, group->w->ld, n, c, ldc);

        if (group->pair != NULL) {
            pair = tile + job->tile_size / 2;

            p->gemm[group->pair->dtype].product(p->act, p->k,
                                                group->act_row + row, m, w2,
                                                group->pair->ld, n, pair,
                                                job->band);
        }

        if (p->store != NULL) {
            p->store(p->ctx, g, row, m, col, n, c, pair, ldc);
        }
    }
}


uint32_t
be_find(const uint32_t *first, uint32_t n, uint32_t item)
{
    uint32_t  low, high, mid;

    low = 0;
    high = n;

    while (high - low > 1) {
        mid = (low + high) / 2;

        if (first[mid] <= item) {
            low = mid;

        } else {
            high = mid;
        }
    }

    return low;
}


void
be_pack(be_cpu_t *cpu, const be_gemm_t *gemm, void *act, uint32_t k,
    uint32_t rows, be_row_f row, void *ctx)
{
    pack_job_t  job;

    if (rows == 0) {
        return;
    }

    job.gemm = gemm;
    job.act = act;
    job.k = k;
    job.rows = rows;
    job.per_item = PRODUCT_PACK_ITEM / k / BE_ROW_BLOCK * BE_ROW_BLOCK;
    job.per_item = (job.per_item == 0) ? BE_ROW_BLOCK : job.per_item;
    job.row = row;
    job.ctx = ctx;

    be_team_run(cpu->team, pack_item, &job,
                (rows + job.per_item - 1) / job.per_item,
                (uint64_t) rows * k / 8);
}


/* Neighbours in the packed matrix that lie in one row block go together. */

static void
pack_item(void *ctx, uint32_t item, uint32_t worker)
{
    uint32_t      row, end, m, first, packed, block;
    pack_job_t   *job;
    const float  *x[BE_ROW_BLOCK];

    (void) worker;

    job = ctx;
    block = job->gemm->row_block;
    row = item * job->per_item;
    end = (job->rows - row < job->per_item) ? job->rows : row + job->per_item;

    while (row < end) {
        x[0] = job->row(job->ctx, row, &first);

        for (m = 1; m < block && row + m < end; m++) {
            x[m] = job->row(job->ctx, row + m, &packed);

            if (packed != first + m || packed % block == 0) {
                break;
            }
        }

        job->gemm->pack(job->act, job->k, first, 0, x, m, job->k);
        row += m;
    }
}


const float *
be_rows_row(void *ctx, uint32_t row, uint32_t *packed)
{
    be_rows_t  *r;

    r = ctx;
    *packed = row;

    return r->x + row * r->ldx;
}


void
be_cpu_linear(be_t *be, const be_weight_t *w, const float *x, uint32_t rows,
    float *y)
{
    linear_run(be, w, x, rows, y, NULL);
}


void
be_cpu_linear_add(be_t *be, const be_weight_t *w, const float *x,
    uint32_t rows, float *y)
{
    linear_run(be, w, x, rows, y, linear_add_store);
}


/* With a store function the result is added, else put in place. */

static void
linear_run(be_t *be, const be_weight_t *w, const float *x, uint32_t rows,
    float *y, be_store_f store)
{
    void             *act;
    be_cpu_t         *cpu;
    be_rows_t         src;
    be_group_t        group;
    linear_add_t      add;
    be_product_t      p;
    const be_gemm_t  *gemm;

    if (rows == 0) {
        return;
    }

    cpu = (be_cpu_t *) be;

    gemm = be_weight_gemm(cpu, w);
    act = be_scratch(cpu, BE_SCRATCH_ACT, gemm->size(rows, w->cols));

    src.x = x;
    src.ldx = w->cols;
    be_pack(cpu, gemm, act, w->cols, rows, be_rows_row, &src);

    memset(&group, 0, sizeof(group));
    group.w = w;
    group.rows = rows;

    add.k = cpu->k;
    add.y = y;
    add.ldy = w->rows;

    memset(&p, 0, sizeof(p));
    p.gemm = cpu->mode->gemm;
    p.act = act;
    p.k = w->cols;
    p.n = w->rows;
    p.n_groups = 1;
    p.group = &group;
    p.y = (store == NULL) ? y : NULL;
    p.ldy = w->rows;
    p.store = store;
    p.ctx = &add;

    be_product(cpu, &p);
}


static void
linear_add_store(void *ctx, uint32_t g, uint32_t row, uint32_t m,
    uint32_t col, uint32_t n, float *c, const float *pair, size_t ld)
{
    uint32_t       i;
    linear_add_t  *add;

    (void) g;
    (void) pair;

    add = ctx;

    for (i = 0; i < m; i++) {
        add->k->add(c + i * ld, n, add->y + (row + i) * add->ldy + col);
    }
}
