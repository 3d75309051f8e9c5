/*
 * Attention of prompts over expanded keys and values: which rows, and what is
 * done with them in the places of the three operations of attention.
 *
 * A group of rows of one sequence is expanded where that takes less.  For each
 * head, in multiplications and additions, with P pairs of a row and a token that
 * it sees, R rows and T tokens (DeepSeek-V2 report, section 2.1):
 *
 *     absorbed    1088 P + 131072 R       576 for a score, 512 for values, and
 *                                         W_uk, W_uv with each row
 *     expanded     320 P + 131072 T       192 and 128, and both with each token
 *
 * and expanded it is counted a quarter more, for what goes to memory and back.
 * So 96 rows from a prompt's beginning are, and 240 behind any number of cached
 * tokens.
 *
 * mla_query() leaves such rows out of its product, mla_attend() notes what they
 * need, and mla_value() makes keys and values of a tile of tokens at a time and
 * attends to them.  Not in recorded steps, which are replayed for other
 * positions, and not with `fixed`: a row's bits depend on the rows beside it.
 */

#include <string.h>

#include "backend/cuda/be_cuda.h"


#define EXPAND_ROWS   64             /* fewer are not looked at */
#define EXPAND_ALIGN  256

/* Where things lie in the scratch memory. */

typedef struct {
    uint16_t  *turned;               /* [heads][nope][lora], W_uk */
    uint16_t  *c;                    /* [tile][lora] */
    uint16_t  *rope;                 /* [tile][rope] */
    uint16_t  *k;                    /* [tile][heads][nope] */
    uint16_t  *v;                    /* [tile][heads][v] */
    float     *state;
} expand_memory_t;


static int expand_memory(be_cuda_t *cuda, const be_mla_t *mla,
    expand_memory_t *m);
static int expand_group(be_cuda_t *cuda, const be_mla_t *mla,
    const cu_mla_group_t *g, const expand_memory_t *m,
    const be_weight_t *w_uv, float *o);
static int expand_products(be_cuda_t *cuda, const be_mla_t *mla,
    const expand_memory_t *m, const be_weight_t *w_uv, uint32_t tokens);


void
be_cuda_expand_model(be_cuda_t *cuda, const be_mla_t *mla)
{
    cuda->expand.on = mla->kv_lora == CU_MLA_LORA
                      && mla->rope == CU_MHA_ROPE
                      && mla->nope == CU_MHA_NOPE
                      && mla->v == CU_MHA_V
                      && !cuda->opt.absorbed
                      && !cuda->opt.fixed;

    if (cuda->expand.tile == 0) {
        cuda->expand.tile = BE_EXPAND_TOKENS;
    }
}


int
be_cuda_expands(const be_cuda_t *cuda, const cu_mla_group_t *g)
{
    uint64_t  pairs, tokens, rows;

    rows = g->rows;
    tokens = g->pos + rows - g->first;
    pairs = rows * (g->pos - g->first) + rows * (rows + 1) / 2;

    return cuda->expand.on
           && rows >= EXPAND_ROWS
           && (320 * pairs + 131072 * tokens) * 5
              < (1088 * pairs + 131072 * rows) * 4;
}


uint32_t
be_cuda_expand_gap(const cuda_batch_t *b, uint32_t i, uint32_t *row)
{
    uint32_t  end;

    *row = (i == 0) ? 0 : b->expand[i - 1].row + b->expand[i - 1].rows;
    end = (i == b->n_expand) ? b->b.rows : b->expand[i].row;

    return end - *row;
}


int
be_cuda_expand(be_cuda_t *cuda, const be_mla_t *mla, const be_weight_t *w_uv,
    float *o)
{
    int                  rc;
    uint32_t             i;
    cuda_expand_t       *e;
    const be_weight_t   *uk;
    expand_memory_t      m;

    e = &cuda->expand;
    uk = e->uk;

    if (expand_memory(cuda, mla, &m) != 0) {
        return -1;
    }

    rc = cu_mha_turn(uk->m.w, mla->heads, mla->kv_lora, mla->nope, uk->m.ld,
                     m.turned, cuda->stream);

    if (be_cuda_check(cuda, rc, "keys of a prompt") != 0) {
        return -1;
    }

    for (i = 0; i < e->batch->n_expand; i++) {
        if (expand_group(cuda, mla, &e->batch->expand[i], &m, w_uv, o) != 0) {
            return -1;
        }

        e->groups++;
    }

    return 0;
}


/* Room for the batch's largest group. */

static int
expand_memory(be_cuda_t *cuda, const be_mla_t *mla, expand_memory_t *m)
{
    uint8_t               *p;
    size_t                 size[6], all, heads, tile, state;
    uint32_t               i, tokens;
    const cuda_batch_t    *b;
    const cu_mla_group_t  *g;

    b = cuda->expand.batch;
    heads = mla->heads;
    tile = 0;
    state = 0;

    for (i = 0; i < b->n_expand; i++) {
        g = &b->expand[i];
        tokens = g->pos + g->rows - g->first / CU_MHA_BLOCK * CU_MHA_BLOCK;
        tile = tokens > tile ? tokens : tile;

        if (tokens > cuda->expand.tile && g->rows > state) {
            state = g->rows;
        }
    }

    tile = tile < cuda->expand.tile ? tile : cuda->expand.tile;

    size[0] = heads * mla->nope * mla->kv_lora * sizeof(uint16_t);
    size[1] = tile * mla->kv_lora * sizeof(uint16_t);
    size[2] = tile * mla->rope * sizeof(uint16_t);
    size[3] = tile * heads * mla->nope * sizeof(uint16_t);
    size[4] = tile * heads * mla->v * sizeof(uint16_t);
    size[5] = state * heads * CU_MHA_STATE * sizeof(float);
    all = 0;

    for (i = 0; i < 6; i++) {
        size[i] = (size[i] + EXPAND_ALIGN - 1) / EXPAND_ALIGN * EXPAND_ALIGN;
        all += size[i];
    }

    p = be_cuda_scratch(cuda, CUDA_EXPAND, all);

    if (p == NULL) {
        return -1;
    }

    m->turned = (uint16_t *) (void *) p;
    m->c = (uint16_t *) (void *) (p += size[0]);
    m->rope = (uint16_t *) (void *) (p += size[1]);
    m->k = (uint16_t *) (void *) (p += size[2]);
    m->v = (uint16_t *) (void *) (p += size[3]);
    m->state = (float *) (void *) (p + size[4]);

    return 0;
}


/* Tile by tile of its tokens. */

static int
expand_group(be_cuda_t *cuda, const be_mla_t *mla, const cu_mla_group_t *g,
    const expand_memory_t *m, const be_weight_t *w_uv, float *o)
{
    int             rc;
    cu_mha_t        a;
    uint32_t        at, end, n;
    cuda_expand_t  *e;

    e = &cuda->expand;
    end = g->pos + g->rows;

    memset(&a, 0, sizeof(a));
    a.qn = e->qn;
    a.ql = e->ql;
    a.k = m->k;
    a.v = m->v;
    a.rope = m->rope;
    a.o = o;
    a.state = m->state;
    a.all = e->batch->b.rows;
    a.heads = mla->heads;
    a.row = g->row;
    a.rows = g->rows;
    a.pos = g->pos;
    a.first = g->first;
    a.scale = e->scale;
    a.wide = cuda->fp8;
    a.begin = 1;

    for (at = g->first / CU_MHA_BLOCK * CU_MHA_BLOCK; at < end; at += n) {
        n = (end - at < e->tile) ? end - at : e->tile;

        rc = cu_mha_gather(e->kv, e->fp8, e->batch->b.table + g->table, at, n,
                           m->c, m->rope, cuda->stream);

        if (be_cuda_check(cuda, rc, "tokens of a prompt") != 0
            || expand_products(cuda, mla, m, w_uv, n) != 0)
        {
            return -1;
        }

        a.from = at;
        a.tokens = n;
        a.end = (at + n == end);

        if (be_cuda_check(cuda, cu_mha(&a, cuda->stream),
                          "attention of a prompt")
            != 0)
        {
            return -1;
        }

        a.begin = 0;
    }

    return 0;
}


/*
 * Of all heads at once; only where a matrix is kept with more than W_uv its
 * heads lie apart.
 */

static int
expand_products(be_cuda_t *cuda, const be_mla_t *mla,
    const expand_memory_t *m, const be_weight_t *w_uv, uint32_t tokens)
{
    cu_mm_t   p;
    uint32_t  stride;

    memset(&p, 0, sizeof(p));

    p.m = cuda->expand.uk->m;
    p.m.w = m->turned;
    p.m.n = mla->heads * mla->nope;
    p.m.k = mla->kv_lora;
    p.m.ld = mla->kv_lora;
    p.dev = cuda->expand.uk->dev;    /* BF16: not looked at */
    p.x.x = m->c;
    p.x.ld = mla->kv_lora;
    p.y = m->k;
    p.ldy = (size_t) mla->heads * mla->nope;
    p.rows = tokens;
    p.batch = 1;
    p.narrow = 1;

    if (be_cuda_mm(cuda, &p) != 0) {
        return -1;
    }

    stride = w_uv->m.n / mla->heads;

    p.m = w_uv->m;
    p.dev = w_uv->dev;
    p.y = m->v;
    p.ldy = (size_t) mla->heads * mla->v;

    if (stride != mla->v) {
        p.m.w = (const uint16_t *) w_uv->m.w
                + (size_t) (stride - mla->v) * w_uv->m.ld;
        p.m.n = mla->v;
        p.dev = NULL;
        p.batch = mla->heads;
        p.stride_w = (size_t) stride * w_uv->m.ld;
        p.stride_y = mla->v;
    }

    return be_cuda_mm(cuda, &p);
}
