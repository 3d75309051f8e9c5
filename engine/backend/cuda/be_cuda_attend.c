/*
 * Attention: the kernels of the latent attention (cu_mla.h) where the model has
 * the sizes that they are made for, else the simple one; and the plan of a
 * step, which travels with its arrays.  Of 32-bit words, for each batch:
 *
 *     units merges lanes n_merge
 *
 * with room for the most that its rows may have.
 */

#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"


#define ATTEND_WORDS(type)  (sizeof(type) / sizeof(uint32_t))


static uint32_t attend_groups(be_cuda_t *cuda, const be_batch_t *b,
    const uint32_t *at, const uint32_t *first);
static uint32_t attend_expand(be_cuda_t *cuda, cuda_batch_t *batch,
    uint32_t n);


void
be_cuda_attend_model(be_cuda_t *cuda, const be_mla_t *mla)
{
    cuda->attend.heads = (mla->kv_lora == CU_MLA_LORA
                          && mla->rope == CU_MLA_ROPE) ? mla->heads : 0;
    be_cuda_expand_model(cuda, mla);
}


int
be_cuda_attend_room(be_cuda_t *cuda, uint32_t rows)
{
    cuda_attend_t  *a;

    a = &cuda->attend;

    if (a->heads == 0 || (rows <= a->plan.max_rows
                          && a->heads == a->plan.heads))
    {
        return 0;
    }

    be_cuda_drop(cuda);
    cu_mla_plan_close(&a->plan);
    free(a->group);

    a->group = malloc(rows * sizeof(cu_mla_group_t));

    if (a->group == NULL
        || cu_mla_plan_open(&a->plan, a->heads, (uint32_t) cuda->sms, rows,
                            cuda->opt.fixed)
           != 0)
    {
        be_cuda_fail(cuda, "no memory for the attention of %u rows", rows);
        return -1;
    }

    return 0;
}


void
be_cuda_attend_close(be_cuda_t *cuda)
{
    cu_mla_plan_close(&cuda->attend.plan);
    free(cuda->attend.group);
    cuda->attend.group = NULL;
}


size_t
be_cuda_attend_words(const be_cuda_t *cuda, uint32_t rows)
{
    const cu_mla_plan_t  *p;

    p = &cuda->attend.plan;

    if (cuda->attend.heads == 0 || rows == 0) {
        return 0;
    }

    return cu_mla_plan_units(p, rows) * ATTEND_WORDS(cu_mla_unit_t)
           + cu_mla_plan_merges(p) * ATTEND_WORDS(cu_mla_merge_t)
           + p->lanes + 2;
}


int
be_cuda_attend_plan(be_cuda_t *cuda, cuda_batch_t *batch,
    const be_batch_t *b, const uint32_t *at, const uint32_t *first,
    uint32_t *host, const uint32_t *dev)
{
    size_t           merges, lanes;
    uint32_t         n;
    cu_mla_plan_t   *p;
    cu_mla_work_t   *w;

    p = &cuda->attend.plan;
    batch->n_expand = 0;

    if (cuda->attend.heads == 0 || batch->b.rows == 0) {
        return 0;
    }

    n = attend_groups(cuda, b, at, first);

    /* a step that may be recorded is the same for other positions */

    if (cuda->step->key == 0) {
        n = attend_expand(cuda, batch, n);
    }

    if (cu_mla_plan(p, cuda->attend.group, n) != 0) {
        be_cuda_fail(cuda, "the attention of %u rows has no plan",
                     b->n_rows);
        return -1;
    }

    merges = cu_mla_plan_units(p, batch->b.rows)
             * ATTEND_WORDS(cu_mla_unit_t);
    lanes = merges + cu_mla_plan_merges(p) * ATTEND_WORDS(cu_mla_merge_t);

    memcpy(host, p->unit, p->n_units * sizeof(cu_mla_unit_t));
    memcpy(host + merges, p->merge, p->n_merge * sizeof(cu_mla_merge_t));
    memcpy(host + lanes, p->lane, (p->lanes + 1) * sizeof(uint32_t));
    host[lanes + p->lanes + 1] = p->n_merge;

    w = &batch->work;
    w->unit = (const cu_mla_unit_t *) (const void *) dev;
    w->merge = (const cu_mla_merge_t *) (const void *) (dev + merges);
    w->lane = dev + lanes;
    w->n_merge = dev + lanes + p->lanes + 1;
    w->table = batch->b.table;
    w->pos = batch->b.pos;

    return 0;
}


/* Rows of a sequence at positions that follow each other. */

static uint32_t
attend_groups(be_cuda_t *cuda, const be_batch_t *b, const uint32_t *at,
    const uint32_t *first)
{
    uint32_t         i, n, s;
    cu_mla_group_t  *g;

    n = 0;

    for (i = 0; i < b->n_rows; i++) {

        if (i > 0 && b->seq[i] == b->seq[i - 1]
            && b->pos[i] == b->pos[i - 1] + 1)
        {
            cuda->attend.group[n - 1].rows++;
            continue;
        }

        s = cuda->map[b->seq[i]] - 1;
        g = &cuda->attend.group[n++];
        g->row = i;
        g->rows = 1;
        g->pos = b->pos[i];
        g->first = first[s];
        g->table = at[s];
    }

    return n;
}


/* Takes out those that are expanded; how many are left. */

static uint32_t
attend_expand(be_cuda_t *cuda, cuda_batch_t *batch, uint32_t n)
{
    uint32_t         i, left;
    cu_mla_group_t  *g;

    left = 0;

    for (i = 0; i < n; i++) {
        g = &cuda->attend.group[i];

        if (batch->n_expand < CUDA_EXPANDS && be_cuda_expands(cuda, g)) {
            batch->expand[batch->n_expand++] = *g;

        } else {
            cuda->attend.group[left++] = *g;
        }
    }

    return left;
}


void
be_cuda_mla_attend(be_t *be, be_kv_t *kv, uint32_t layer, const be_mla_t *mla,
    float scale, const float *ql, const be_batch_t *b, float *ol)
{
    int               rc;
    uint8_t          *at;
    be_cuda_t        *cuda;
    cu_latent_t       l;
    cuda_batch_t     *batch;
    cu_mla_attend_t   a;

    cuda = (be_cuda_t *) be;
    batch = be_cuda_batch(cuda, b);

    if (batch == NULL || cuda->failed || batch->b.rows == 0) {
        return;
    }

    at = kv->data + (size_t) layer * kv->blocks * kv->block_size;
    cuda->expand.batch = (batch->n_expand > 0) ? batch : NULL;
    cuda->expand.kv = at;
    cuda->expand.fp8 = kv->fp8;
    cuda->expand.scale = scale;

    if (batch->work.unit == NULL) {
        be_cuda_latent(&l, mla);
        rc = cu_attend_simple(&l, &batch->b, scale, ql, at, ol, cuda->stream);
        (void) be_cuda_check(cuda, rc, "attention");
        return;
    }

    memset(&a, 0, sizeof(a));

    a.work = batch->work;
    a.q = ql;
    a.kv = at;
    a.o = ol;
    a.scratch = be_cuda_scratch(cuda, CUDA_ATTEND,
                                cu_mla_scratch_size(&cuda->attend.plan));
    a.n_queries = batch->b.rows * mla->heads;
    a.heads = mla->heads;
    a.blocks = kv->blocks;
    a.gang = cuda->attend.plan.gang;
    a.lanes = cuda->attend.plan.lanes;
    a.max_parts = cuda->attend.plan.max_parts;
    a.scale = scale;
    a.fixed = cuda->opt.fixed;
    a.fp8 = kv->fp8;

    if (a.scratch != NULL) {
        (void) be_cuda_check(cuda, cu_mla_attend(&a, cuda->stream),
                             "attention");
    }
}
