/*
 * Operations but for router and experts.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"


static void ops_linear(be_cuda_t *cuda, const be_weight_t *w, const float *x,
    uint32_t rows, float *y, int add);
static cuda_scratch_t ops_kept(const be_cuda_t *cuda, cu_mm_type_t type);
static const uint32_t *ops_rows(be_cuda_t *cuda, const uint32_t *row);


cuda_made_t *
be_cuda_made(be_cuda_t *cuda)
{
    return &cuda->made[be_cuda_half(cuda)];
}


void
be_cuda_wrote(be_cuda_t *cuda, const float *y)
{
    uint32_t  i;

    for (i = 0; i < 2; i++) {
        if (cuda->made[i].x == y) {
            cuda->made[i].x = NULL;
        }
    }
}


cu_mm_type_t
be_cuda_act_type(const be_cuda_t *cuda, cu_mm_type_t type)
{
    be_dtype_t  inputs;

    inputs = cuda->opt.expert_inputs;

    if (type == CU_MM_INT4
        && (inputs == BE_F8E4M3 || (inputs != BE_BF16 && cuda->fp8)))
    {
        return CU_MM_FP8;
    }

    return (type == CU_MM_FP8) ? CU_MM_FP8 : CU_MM_BF16;
}


int
be_cuda_act(be_cuda_t *cuda, cuda_scratch_t use, cu_mm_type_t type,
    uint32_t rows, uint32_t dim, cu_act_t *act)
{
    size_t   size, scales;
    uint8_t  *p;

    memset(act, 0, sizeof(cu_act_t));
    type = be_cuda_act_type(cuda, type);

    if (type == CU_MM_FP8) {
        act->ld = (dim + CU_GROUP - 1) / CU_GROUP * CU_GROUP;
        act->ld_scale = (rows + 3) / 4 * 4;
        size = ((size_t) rows * act->ld + 255) / 256 * 256;
        scales = (size_t) act->ld / CU_GROUP * act->ld_scale * sizeof(float);

    } else {
        act->ld = (dim + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
        size = (size_t) rows * act->ld * sizeof(uint16_t);
        scales = 0;
    }

    p = be_cuda_scratch(cuda, use, size + scales);

    if (p == NULL) {
        return -1;
    }

    act->x = p;
    act->scale = (type == CU_MM_FP8) ? (float *) (void *) (p + size) : NULL;

    return 0;
}


int
be_cuda_input(be_cuda_t *cuda, const float *x, uint32_t all, uint32_t row,
    uint32_t rows, uint32_t dim, cu_mm_type_t type, cu_act_t *act)
{
    int             known;
    cu_src_t        src;
    cuda_made_t    *made;
    cuda_scratch_t  use;

    made = be_cuda_made(cuda);
    type = be_cuda_act_type(cuda, type);
    known = (made->x == x && made->rows == all && made->dim == dim);

    if (known && made->act[type].x != NULL) {
        *act = made->act[type];
        act->x = (uint8_t *) act->x
                 + (size_t) row * act->ld * (type == CU_MM_FP8 ? 1 : 2);
        act->scale = (act->scale != NULL) ? act->scale + row : NULL;
        return 0;
    }

    known = known && rows == all;
    use = known ? ops_kept(cuda, type) : CUDA_ACT;

    if (be_cuda_act(cuda, use, type, rows, dim, act) != 0) {
        return -1;
    }

    memset(&src, 0, sizeof(src));
    src.x = x + (size_t) row * dim;
    src.ld = dim;
    src.rows = rows;
    src.dim = dim;

    if (be_cuda_check(cuda, cu_act(&src, act, cuda->stream), "inputs") != 0) {
        return -1;
    }

    if (known) {
        made->act[type] = *act;
    }

    return 0;
}


/* Where what norm() gives is made. */

static cuda_scratch_t
ops_kept(const be_cuda_t *cuda, cu_mm_type_t type)
{
    return (type == CU_MM_FP8 ? CUDA_ACT_H8 : CUDA_ACT_H)
           + be_cuda_half(cuda);
}


int
be_cuda_mm(be_cuda_t *cuda, const cu_mm_t *p)
{
    int  rc;

    /*
     * cuBLASLt has what it can; with `fixed` only batches, as for the others
     * our own products need no promise of somebody else's.
     */

    if (cuda->blas != NULL && (!cuda->opt.fixed || p->batch > 1)) {
        rc = be_cuda_blas_mm(cuda, cuda->blas, p);

        if (rc <= 0) {
            return rc;
        }
    }

    if (p->batch == 1 && p->dev != NULL) {
        rc = cu_gemm(p, p->dev, cuda->opt.fixed ? CU_GEMM_FIXED : 0,
                     cuda->room, cuda->stream);

        if (rc != cudaErrorInvalidValue) {
            return be_cuda_check(cuda, rc, "product");
        }
    }

    return be_cuda_check(cuda, cu_mm_simple(p, cuda->stream), "product");
}


void
be_cuda_embed(be_t *be, const be_weight_t *w, const be_batch_t *b, float *x)
{
    be_cuda_t     *cuda;
    cuda_batch_t  *batch;

    cuda = (be_cuda_t *) be;
    batch = be_cuda_batch(cuda, b);

    if (batch == NULL || cuda->failed) {
        return;
    }

    be_cuda_wrote(cuda, x);
    (void) be_cuda_check(cuda, cu_embed(w->data, w->wide, &batch->b, w->m.k,
                                        x, cuda->stream), "embedding");
}


void
be_cuda_norm(be_t *be, const float *w, float eps, const float *x,
    uint32_t rows, uint32_t dim, float *y)
{
    be_cuda_t     *cuda;
    cuda_made_t   *made;
    cu_mm_type_t   type;

    cuda = (be_cuda_t *) be;
    made = be_cuda_made(cuda);

    if (cuda->failed || rows == 0) {
        return;
    }

    type = cuda->fp8 ? CU_MM_FP8 : CU_MM_BF16;
    memset(made, 0, sizeof(cuda_made_t));

    if (dim > CU_NORM_MAX) {
        be_cuda_fail(cuda, "a norm of %u elements: %u are possible", dim,
                     CU_NORM_MAX);
        return;
    }

    if (be_cuda_act(cuda, ops_kept(cuda, type), type, rows, dim,
                    &made->act[type])
        != 0
        || be_cuda_check(cuda, cu_norm(w, eps, x, rows, dim, y,
                                       &made->act[type], cuda->stream),
                         "norm")
           != 0)
    {
        return;
    }

    made->x = y;
    made->rows = rows;
    made->dim = dim;
}


void
be_cuda_linear(be_t *be, const be_weight_t *w, const float *x, uint32_t rows,
    float *y)
{
    ops_linear((be_cuda_t *) be, w, x, rows, y, 0);
}


void
be_cuda_linear_add(be_t *be, const be_weight_t *w, const float *x,
    uint32_t rows, float *y)
{
    ops_linear((be_cuda_t *) be, w, x, rows, y, 1);
}


static void
ops_linear(be_cuda_t *cuda, const be_weight_t *w, const float *x,
    uint32_t rows, float *y, int add)
{
    cu_mm_t  p;

    if (cuda->failed || rows == 0) {
        return;
    }

    memset(&p, 0, sizeof(p));

    if (be_cuda_input(cuda, x, rows, 0, rows, w->m.k, w->m.type, &p.x) != 0) {
        return;
    }

    be_cuda_wrote(cuda, y);

    p.m = w->m;
    p.dev = w->dev;
    p.y = y;
    p.ldy = w->m.n;
    p.rows = rows;
    p.batch = 1;
    p.add = add;

    (void) be_cuda_mm(cuda, &p);
}


/* --- latent attention ----------------------------------------------------- */

void
be_cuda_latent(cu_latent_t *l, const be_mla_t *mla)
{
    l->heads = mla->heads;
    l->nope = mla->nope;
    l->rope = mla->rope;
    l->lora = mla->kv_lora;
}


void
be_cuda_mla_cache(be_t *be, be_kv_t *kv, uint32_t layer, const be_mla_t *mla,
    const be_rope_t *rope, const float *w, float eps, const float *kva,
    const be_batch_t *b)
{
    uint8_t       *at;
    be_cuda_t     *cuda;
    cu_latent_t    l;
    const float   *table;
    cuda_batch_t  *batch;

    cuda = (be_cuda_t *) be;
    batch = be_cuda_batch(cuda, b);

    if (batch == NULL || cuda->failed) {
        return;
    }

    table = be_cuda_rope(cuda, batch, rope);

    if (table == NULL) {
        return;
    }

    be_cuda_latent(&l, mla);
    at = kv->data + (size_t) layer * kv->blocks * kv->block_size;

    (void) be_cuda_check(cuda, cu_cache(&l, &batch->b, table, w, eps, kva, at,
                                        kv->fp8, cuda->stream), "cache");
}


void
be_cuda_mla_query(be_t *be, const be_mla_t *mla, const be_rope_t *rope,
    const be_weight_t *w_uk, const float *q, const be_batch_t *b, float *ql)
{
    size_t         dim;
    cu_mm_t        p;
    uint32_t       i, row;
    uint16_t      *qn;
    be_cuda_t     *cuda;
    cu_latent_t    l;
    const float   *table;
    cuda_batch_t  *batch;

    cuda = (be_cuda_t *) be;
    batch = be_cuda_batch(cuda, b);

    if (batch == NULL || cuda->failed) {
        return;
    }

    table = be_cuda_rope(cuda, batch, rope);
    memset(&p, 0, sizeof(p));

    qn = be_cuda_scratch(cuda, CUDA_QUERY, (size_t) batch->b.rows
                                           * mla->heads * mla->nope
                                           * sizeof(uint16_t));

    if (table == NULL || qn == NULL) {
        return;
    }

    be_cuda_latent(&l, mla);

    if (be_cuda_check(cuda, cu_query(&l, &batch->b, table, q, qn, ql,
                                     cuda->stream), "query")
        != 0)
    {
        return;
    }

    dim = mla->kv_lora + mla->rope;

    p.m = w_uk->m;
    p.m.n = mla->kv_lora;
    p.m.k = mla->nope;
    p.stride_w = (size_t) (w_uk->m.n / mla->heads) * w_uk->m.ld;
    p.x.ld = mla->heads * mla->nope;
    p.stride_x = mla->nope;
    p.ldy = mla->heads * dim;
    p.stride_y = dim;
    p.batch = mla->heads;
    p.narrow = 1;

    /* expanded rows stay as they are */

    cuda->expand.uk = w_uk;
    cuda->expand.qn = qn;
    cuda->expand.ql = ql;

    for (i = 0; i <= batch->n_expand; i++) {
        p.rows = be_cuda_expand_gap(batch, i, &row);
        p.x.x = qn + (size_t) row * p.x.ld;
        p.y = (uint16_t *) (void *) ql + row * p.ldy;

        if (p.rows > 0 && be_cuda_mm(cuda, &p) != 0) {
            return;
        }
    }
}


/* In BF16 where that is what the product after it wants. */

void
be_cuda_mla_value(be_t *be, const be_mla_t *mla, const be_weight_t *w_uv,
    const float *ol, uint32_t rows, float *o)
{
    size_t               size;
    cu_mm_t              p;
    uint32_t             i, row, stride;
    be_cuda_t           *cuda;
    cuda_made_t         *made;
    const cuda_batch_t  *batch;

    cuda = (be_cuda_t *) be;
    batch = cuda->expand.batch;

    if (cuda->failed || rows == 0) {
        return;
    }

    memset(&p, 0, sizeof(p));
    stride = w_uv->m.n / mla->heads;

    p.m = w_uv->m;
    p.m.w = (const uint16_t *) w_uv->m.w
            + (size_t) (stride - mla->v) * w_uv->m.ld;
    p.m.n = mla->v;
    p.m.k = mla->kv_lora;
    p.stride_w = (size_t) stride * w_uv->m.ld;
    p.x.ld = mla->heads * mla->kv_lora;
    p.stride_x = mla->kv_lora;
    p.ldy = (size_t) mla->heads * mla->v;
    p.stride_y = mla->v;
    p.batch = mla->heads;
    p.narrow = !cuda->fp8;
    size = p.narrow ? sizeof(uint16_t) : sizeof(float);

    be_cuda_wrote(cuda, o);

    for (i = 0; i <= (batch != NULL ? batch->n_expand : 0); i++) {
        row = 0;
        p.rows = (batch != NULL) ? be_cuda_expand_gap(batch, i, &row) : rows;
        p.x.x = (uint16_t *) (uintptr_t) ol + (size_t) row * p.x.ld;
        p.y = (uint8_t *) o + row * p.ldy * size;

        if (p.rows > 0 && be_cuda_mm(cuda, &p) != 0) {
            return;
        }
    }

    if ((batch != NULL && be_cuda_expand(cuda, mla, w_uv, o) != 0)
        || cuda->fp8)
    {
        return;
    }

    made = be_cuda_made(cuda);
    memset(made, 0, sizeof(cuda_made_t));

    made->x = o;
    made->rows = rows;
    made->dim = mla->heads * mla->v;
    made->act[CU_MM_BF16].x = o;
    made->act[CU_MM_BF16].ld = mla->heads * mla->v;
}


/* --- rows ------------------------------------------------------------------- */

void
be_cuda_combine(be_t *be, const float *c, const float *weight, uint32_t rows,
    uint32_t top_k, uint32_t hidden, float *x)
{
    int              rc;
    be_cuda_t       *cuda;
    const uint16_t  *inbox;

    cuda = (be_cuda_t *) be;

    if (cuda->failed) {
        return;
    }

    be_cuda_wrote(cuda, x);
    inbox = (cuda->peer != NULL) ? be_cuda_peer_inbox(cuda->peer, c) : NULL;

    rc = (inbox != NULL)
         ? cu_combine_bf16(inbox, weight, rows, top_k, hidden, x, cuda->stream)
         : cu_combine(c, weight, rows, top_k, hidden, x, cuda->stream);

    (void) be_cuda_check(cuda, rc, "combine");
}


static const uint32_t *
ops_rows(be_cuda_t *cuda, const uint32_t *row)
{
    if (cuda->step != NULL && row == cuda->step->row) {
        return cuda->dev_row;
    }

    if (cuda->step != NULL && row == cuda->step->from) {
        return cuda->dev_from;
    }

    be_cuda_fail(cuda, "rows that are not of a step");

    return NULL;
}


void
be_cuda_gather(be_t *be, const float *x, const uint32_t *row, uint32_t n,
    uint32_t dim, float *y)
{
    be_cuda_t       *cuda;
    const uint32_t  *dev;

    cuda = (be_cuda_t *) be;
    dev = ops_rows(cuda, row);

    if (dev == NULL || cuda->failed) {
        return;
    }

    be_cuda_wrote(cuda, y);
    (void) be_cuda_check(cuda, cu_gather(x, dev, n, dim, y, cuda->stream),
                         "gather");
}


void
be_cuda_join(be_t *be, const float *a, const float *b, uint32_t rows,
    uint32_t dim, float *y)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    if (cuda->failed) {
        return;
    }

    be_cuda_wrote(cuda, y);
    (void) be_cuda_check(cuda, cu_join(a, b, rows, dim, y, cuda->stream),
                         "join");
}


/* Outside of what is recorded: each step draws in its own way. */

void
be_cuda_draw(be_t *be, const float *logits, uint32_t rows, uint32_t vocab,
    const uint8_t *known, const be_draw_t *draw, int32_t *id)
{
    int         rc;
    size_t      at, blocks, ids;
    uint8_t    *p;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    _Static_assert(sizeof(be_draw_t) == sizeof(cu_draw_t)
                   && offsetof(be_draw_t, u) == offsetof(cu_draw_t, u)
                   && offsetof(be_draw_t, top_k) == offsetof(cu_draw_t, top_k),
                   "draws go over as they are");

    if (cuda->failed || rows == 0 || be_cuda_settle(cuda) != 0) {
        return;
    }

    at = ((size_t) rows * sizeof(cu_draw_t) + 63) / 64 * 64;
    blocks = (size_t) rows * ((vocab + 63) / 64) * sizeof(double);
    ids = (size_t) rows * sizeof(int32_t);
    p = be_cuda_scratch(cuda, CUDA_DRAW, at + blocks + ids);

    if (p == NULL) {
        return;
    }

    rc = cudaMemcpyAsync(p, draw, rows * sizeof(cu_draw_t),
                         cudaMemcpyHostToDevice, cuda->stream);

    if (rc == 0) {
        rc = cu_sample(logits, rows, vocab, known,
                       (const cu_draw_t *) (const void *) p,
                       (double *) (void *) (p + at),
                       (int32_t *) (void *) (p + at + blocks), cuda->stream);
    }

    if (rc == 0) {
        rc = cudaMemcpyAsync(id, p + at + blocks, ids,
                             cudaMemcpyDeviceToHost, cuda->stream);
    }

    (void) be_cuda_check(cuda, rc, "draws");
}
