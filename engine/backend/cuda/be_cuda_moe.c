/*
 * Router and experts.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"


#define MOE_ROWS  1024               /* of a dense MLP at once */


/* Pairs where the device finds them. */

typedef struct {
    const uint32_t      *offset;
    const float *const  *x;
    float *const        *y;
    uint32_t             max;
} moe_pairs_t;


static void moe_mlp(be_cuda_t *cuda, const be_mlp_t *mlp, const cu_act_t *x,
    uint32_t rows, float *y);
static const cuda_mlps_t *moe_mlps(be_cuda_t *cuda, const be_mlp_t *mlp,
    uint32_t n);
static int moe_gated(be_cuda_t *cuda, const be_mlp_t *mlp, cu_gemm_t *p);
static void moe_apart(be_cuda_t *cuda, const cuda_mlps_t *all,
    const be_mlp_t *mlp, cu_mm_grouped_t *g);
static int moe_mlp_gated(be_cuda_t *cuda, const be_mlp_t *mlp,
    const cu_act_t *x, uint32_t rows, cu_act_t *act);
static int moe_products(be_cuda_t *cuda, const cuda_mlps_t *all,
    uint32_t which, cu_mm_type_t type, const cu_mm_grouped_t *g);
static int moe_maps(be_cuda_t *cuda, cuda_mlps_t *all, const be_mlp_t *mlp,
    uint32_t n);
static int moe_pairs(be_cuda_t *cuda, const be_pairs_t *pairs,
    moe_pairs_t *p);


void
be_cuda_mlp_add(be_t *be, const be_mlp_t *mlp, const float *x, uint32_t rows,
    float *y)
{
    uint32_t    r, n, hidden;
    cu_act_t    act;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;
    hidden = mlp->w1->m.k;

    for (r = 0; r < rows && !cuda->failed; r += n) {
        n = (rows - r < MOE_ROWS) ? rows - r : MOE_ROWS;

        if (be_cuda_input(cuda, x, rows, r, n, hidden, mlp->w1->m.type, &act)
            == 0)
        {
            moe_mlp(cuda, mlp, &act, n, y + (size_t) r * hidden);
        }
    }

    be_cuda_wrote(cuda, y);
}


/* y += w2 (silu(w1 x) * w3 x) */

static void
moe_mlp(be_cuda_t *cuda, const be_mlp_t *mlp, const cu_act_t *x,
    uint32_t rows, float *y)
{
    int       rc;
    size_t    size;
    cu_mm_t   p;
    cu_src_t  src;

    size = (size_t) rows * mlp->w1->m.n * sizeof(float);
    memset(&p, 0, sizeof(p));
    memset(&src, 0, sizeof(src));
    p.rows = rows;
    p.batch = 1;

    rc = moe_mlp_gated(cuda, mlp, x, rows, &p.x);

    if (rc <= 0) {
        if (rc == 0) {
            goto down;
        }

        return;
    }

    src.x = be_cuda_scratch(cuda, CUDA_UP, size);
    src.up = be_cuda_scratch(cuda, CUDA_UP2, size);
    src.ld = mlp->w1->m.n;
    src.rows = rows;
    src.dim = mlp->w1->m.n;

    if (src.x == NULL || src.up == NULL) {
        return;
    }

    p.m = mlp->w1->m;
    p.dev = mlp->w1->dev;
    p.x = *x;
    p.y = (void *) (uintptr_t) src.x;
    p.ldy = src.ld;

    if (be_cuda_mm(cuda, &p) != 0) {
        return;
    }

    p.m = mlp->w3->m;
    p.dev = mlp->w3->dev;
    p.y = (void *) (uintptr_t) src.up;

    if (be_cuda_mm(cuda, &p) != 0
        || be_cuda_act(cuda, CUDA_ACT2, mlp->w2->m.type, rows, src.dim, &p.x)
           != 0
        || be_cuda_check(cuda, cu_act(&src, &p.x, cuda->stream), "SwiGLU")
           != 0)
    {
        return;
    }

down:

    p.m = mlp->w2->m;
    p.dev = mlp->w2->dev;
    p.y = y;
    p.ldy = mlp->w2->m.n;
    p.add = 1;

    (void) be_cuda_mm(cuda, &p);
}


void
be_cuda_gate(be_t *be, const be_gate_t *g, const float *w, const float *bias,
    const float *x, uint32_t rows, uint32_t hidden, int32_t *id,
    float *weight)
{
    float      *part;
    cu_gate_t   gate;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    if (cuda->failed || rows == 0) {
        return;
    }

    if (g->experts > CU_GATE_EXPERTS || g->top_k > CU_GATE_TOPK
        || g->groups > CU_GATE_GROUPS)
    {
        be_cuda_fail(cuda, "a router of %u experts in %u groups, %u a row: "
                     "%u, %u and %u are possible", g->experts, g->groups,
                     g->top_k, CU_GATE_EXPERTS, CU_GATE_GROUPS,
                     CU_GATE_TOPK);
        return;
    }

    part = be_cuda_scratch(cuda, CUDA_LOGITS, CU_GATE_PARTS(rows) * g->experts
                                              * sizeof(float));
    if (part == NULL) {
        return;
    }

    gate.experts = g->experts;
    gate.top_k = g->top_k;
    gate.groups = g->groups;
    gate.topk_groups = g->topk_groups;
    gate.sigmoid = (g->scoring == BE_SIGMOID);
    gate.grouped = (g->method != BE_GREEDY);
    gate.two = (g->method == BE_NOAUX_TC);
    gate.normalise = g->normalise;
    gate.scale = g->scale;

    (void) be_cuda_check(cuda, cu_gate(&gate, w, bias, x, rows, hidden, part,
                                       id, weight, cuda->stream), "router");
}


void
be_cuda_route(be_t *be, const be_route_t *r, be_pairs_t *pairs)
{
    size_t         n, at;
    uint8_t       *p;
    be_cuda_t     *cuda;
    cu_route_t     route;
    cuda_batch_t  *batch;

    cuda = (be_cuda_t *) be;
    n = (size_t) r->rows * r->top_k;
    at = ((r->experts + 1) * sizeof(uint32_t) + 63) / 64 * 64;

    memset(pairs, 0, sizeof(be_pairs_t));
    pairs->n_experts = r->experts;
    pairs->max = 1;                  /* if it fails */

    p = be_cuda_scratch(cuda, CUDA_PAIRS, at + 2 * n * sizeof(float *));

    if (p == NULL || cuda->failed) {
        return;
    }

    batch = (r->batch != NULL) ? r->batch->device : NULL;

    route.id = r->id;
    route.pos = (batch != NULL) ? batch->b.pos : NULL;
    route.rows = r->rows;
    route.top_k = r->top_k;
    route.experts = r->experts;
    route.hidden = r->hidden;
    route.from = r->x;
    route.to = r->contrib;
    route.offset = (uint32_t *) (void *) p;
    route.x = (const float **) (void *) (p + at);
    route.y = (float **) (void *) (p + at) + n;
    route.load = r->load;

    pairs->offset = route.offset;
    pairs->x = (const float *const *) route.x;
    pairs->y = route.y;
    pairs->max = n > 0 ? (uint32_t) n : 1;

    (void) be_cuda_check(cuda, cu_route(&route, cuda->stream), "pairs");
}


void
be_cuda_experts(be_t *be, const be_mlp_t *mlp, const be_pairs_t *pairs)
{
    int                  rc;
    cu_src_t             src;
    cu_act_t             act;
    cu_gemm_t            gated;
    be_cuda_t           *cuda;
    moe_pairs_t          p;
    cu_mm_grouped_t      g;
    const cuda_mlps_t   *all;
    const cu_matrix_t   *m;

    cuda = (be_cuda_t *) be;

    if (cuda->failed || pairs->n_experts == 0
        || moe_pairs(cuda, pairs, &p) != 0 || p.max == 0)
    {
        return;
    }

    all = moe_mlps(cuda, mlp, pairs->n_experts);

    if (all == NULL) {
        return;
    }

    /* the rows, one after another */

    m = &mlp[0].w1->m;
    memset(&src, 0, sizeof(src));
    src.px = p.x;
    src.rows = p.max;
    src.dim = m->k;
    src.n = p.offset + pairs->n_experts;

    if (be_cuda_act(cuda, CUDA_ACT, m->type, p.max, m->k, &act) != 0
        || (pairs->row != NULL
            ? be_cuda_peer_take(cuda, pairs, &act)
            : be_cuda_check(cuda, cu_act(&src, &act, cuda->stream), "rows"))
           != 0)
    {
        return;
    }

    memset(&g, 0, sizeof(g));

    g.offset = p.offset;
    g.groups = pairs->n_experts;
    g.rows = p.max;
    g.n = m->n;
    g.k = m->k;
    g.x = act;

    memset(&gated, 0, sizeof(gated));
    gated.g = g;
    gated.g.m = all->m;
    gated.m_up = all->m + all->n;
    gated.maps = all->maps;
    gated.maps_up = all->maps + all->n;

    rc = moe_gated(cuda, mlp, &gated);

    if (rc == 0) {
        g.x = gated.act;

    } else if (rc == 1) {
        moe_apart(cuda, all, mlp, &g);
    }

    if (cuda->failed) {
        return;
    }

    m = &mlp[0].w2->m;
    g.n = m->n;
    g.k = m->k;
    g.y = NULL;
    g.py = p.y;

    /* what goes to other ranks does so in BF16 */

    if (p.y == NULL) {
        g.y = (float *) (void *) be_cuda_peer_stage(cuda->peer);
        g.ldy = m->n;
        g.narrow = 1;
    }

    (void) moe_products(cuda, all, 2, m->type, &g);
}


/*
 * Gate and up as one product whose result is what the next one takes in.  0;
 * 1: not for such matrices; or -1, failed.
 */

static int
moe_gated(be_cuda_t *cuda, const be_mlp_t *mlp, cu_gemm_t *p)
{
    int  rc;

    p->type = mlp->w1->m.type;
    p->tile = cuda->opt.fixed ? CU_GEMM_FIXED : 0;

    if (mlp->w3->m.type != p->type
        || be_cuda_act_type(cuda, mlp->w2->m.type)
           != be_cuda_act_type(cuda, p->type))
    {
        return 1;
    }

    if (be_cuda_act(cuda, CUDA_ACT2, mlp->w2->m.type, p->g.rows, p->g.n,
                    &p->act) != 0)
    {
        return -1;
    }

    rc = cu_gemm_grouped(p, cuda->stream);

    return (rc == cudaErrorInvalidValue) ? 1
           : be_cuda_check(cuda, rc, "gate and up");
}


/* The same in three steps; g->x becomes their result. */

static void
moe_apart(be_cuda_t *cuda, const cuda_mlps_t *all, const be_mlp_t *mlp,
    cu_mm_grouped_t *g)
{
    size_t        size;
    cu_src_t      src;
    cu_mm_type_t  type;

    size = (size_t) g->rows * g->n * sizeof(float);
    type = mlp[0].w1->m.type;
    memset(&src, 0, sizeof(src));

    src.x = be_cuda_scratch(cuda, CUDA_UP, size);
    src.up = be_cuda_scratch(cuda, CUDA_UP2, size);
    src.ld = g->n;
    src.rows = g->rows;
    src.dim = g->n;
    src.n = g->offset + g->groups;

    g->ldy = g->n;
    g->y = (float *) (uintptr_t) src.x;

    if (src.x == NULL || src.up == NULL
        || moe_products(cuda, all, 0, type, g) != 0)
    {
        return;
    }

    g->y = (float *) (uintptr_t) src.up;

    if (moe_products(cuda, all, 1, type, g) != 0
        || be_cuda_act(cuda, CUDA_ACT2, mlp[0].w2->m.type, g->rows, g->n,
                       &g->x) != 0)
    {
        return;
    }

    (void) be_cuda_check(cuda, cu_act(&src, &g->x, cuda->stream), "SwiGLU");
}


/* As moe_gated(), of a dense MLP; cuBLASLt is left what it does. */

static int
moe_mlp_gated(be_cuda_t *cuda, const be_mlp_t *mlp, const cu_act_t *x,
    uint32_t rows, cu_act_t *act)
{
    int        rc;
    cu_gemm_t  p;

    if (mlp->w1->m.type == CU_MM_BF16 && cuda->blas != NULL
        && !cuda->opt.fixed)
    {
        return 1;
    }

    memset(&p, 0, sizeof(p));

    p.g.m = mlp->w1->dev;
    p.m_up = mlp->w3->dev;
    p.g.groups = 1;
    p.g.rows = rows;
    p.g.n = mlp->w1->m.n;
    p.g.k = mlp->w1->m.k;
    p.g.x = *x;
    p.room = cuda->room;

    if (mlp->w1->m.type != CU_MM_INT4) {
        rc = cu_gemm_map(&mlp->w1->m, &p.map);

        if (rc == 0) {
            rc = cu_gemm_map(&mlp->w3->m, &p.map_up);
        }

        if (rc != 0) {
            return (rc == cudaErrorInvalidValue) ? 1
                   : be_cuda_check(cuda, rc, "gate and up");
        }
    }

    rc = moe_gated(cuda, mlp, &p);
    *act = p.act;

    return rc;
}


/* With all w1 (0), w3 (1) or w2 (2). */

static int
moe_products(be_cuda_t *cuda, const cuda_mlps_t *all, uint32_t which,
    cu_mm_type_t type, const cu_mm_grouped_t *g)
{
    int        rc;
    cu_gemm_t  p;

    memset(&p, 0, sizeof(p));

    p.g = *g;
    p.g.m = all->m + (size_t) which * all->n;
    p.maps = (type != CU_MM_INT4) ? all->maps + (size_t) which * all->n
                                  : NULL;
    p.type = type;
    p.tile = cuda->opt.fixed ? CU_GEMM_FIXED : 0;

    rc = cu_gemm_grouped(&p, cuda->stream);

    if (rc == cudaErrorInvalidValue) {
        rc = cu_mm_grouped_simple(&p.g, cuda->stream);
    }

    return be_cuda_check(cuda, rc, "experts");
}


/* Pairs that the host sorted go over first. */

static int
moe_pairs(be_cuda_t *cuda, const be_pairs_t *pairs, moe_pairs_t *p)
{
    int       rc;
    size_t    n, at, size;
    uint8_t  *dev;

    if (pairs->max != 0) {
        p->offset = pairs->offset;
        p->x = pairs->x;
        p->y = pairs->y;
        p->max = pairs->max;
        return 0;
    }

    n = pairs->offset[pairs->n_experts];
    p->max = (uint32_t) n;

    if (n == 0) {
        return 0;
    }

    size = (pairs->n_experts + 1) * sizeof(uint32_t);
    at = (size + 63) / 64 * 64;

    dev = be_cuda_scratch(cuda, CUDA_PAIRS_HOST,
                          at + 2 * n * sizeof(float *));
    if (dev == NULL) {
        return -1;
    }

    p->offset = (const uint32_t *) (void *) dev;
    p->x = (const float *const *) (void *) (dev + at);
    p->y = (float *const *) (void *) (dev + at) + n;

    rc = cudaMemcpyAsync(dev, pairs->offset, size, cudaMemcpyHostToDevice,
                         cuda->stream);

    if (rc == 0) {
        rc = cudaMemcpyAsync(dev + at, pairs->x, n * sizeof(float *),
                             cudaMemcpyHostToDevice, cuda->stream);
    }

    if (rc == 0) {
        rc = cudaMemcpyAsync(dev + at + n * sizeof(float *), pairs->y,
                             n * sizeof(float *), cudaMemcpyHostToDevice,
                             cuda->stream);
    }

    return be_cuda_check(cuda, rc, "pairs");
}


/* Made when they are first used, which is not while a step is recorded. */

static const cuda_mlps_t *
moe_mlps(be_cuda_t *cuda, const be_mlp_t *mlp, uint32_t n)
{
    int           rc;
    uint32_t      i;
    cu_matrix_t  *m;
    cuda_mlps_t  *all;

    for (all = cuda->mlps; all != NULL; all = all->next) {
        if (all->mlp == mlp && all->n == n) {
            return all;
        }
    }

    if (cuda->recording != CUDA_PLAIN) {
        be_cuda_fail(cuda, "other experts in a recorded step");
        return NULL;
    }

    all = calloc(1, sizeof(cuda_mlps_t));
    m = calloc(3 * (size_t) n, sizeof(cu_matrix_t));

    if (all == NULL || m == NULL) {
        be_cuda_fail(cuda, "no memory for a table of experts");
        goto failed;
    }

    for (i = 0; i < n; i++) {
        m[i] = mlp[i].w1->m;
        m[n + i] = mlp[i].w3->m;
        m[2 * (size_t) n + i] = mlp[i].w2->m;
    }

    /* a copy from memory that is not pinned waits for the stream */

    if (be_cuda_wait(cuda) != 0) {
        goto failed;
    }

    rc = cudaMalloc((void **) &all->m, 3 * (size_t) n * sizeof(cu_matrix_t));

    if (rc == 0) {
        rc = cudaMemcpyAsync(all->m, m, 3 * (size_t) n * sizeof(cu_matrix_t),
                             cudaMemcpyHostToDevice, cuda->stream);
    }

    if (rc == 0) {
        rc = cudaStreamSynchronize(cuda->stream);
    }

    if (rc == 0) {
        rc = moe_maps(cuda, all, mlp, n);
    }

    if (be_cuda_check(cuda, rc, "a table of experts") != 0) {
        goto failed;
    }

    all->mlp = mlp;
    all->n = n;
    all->next = cuda->mlps;
    cuda->mlps = all;
    free(m);

    return all;

failed:

    if (all != NULL) {
        (void) cudaFree(all->m);
        (void) cudaFree(all->maps);
    }

    free(all);
    free(m);

    return NULL;
}


/* By the stream that uses them: cudaMemcpy() may return before it is done. */

static int
moe_maps(be_cuda_t *cuda, cuda_mlps_t *all, const be_mlp_t *mlp, uint32_t n)
{
    int           rc;
    size_t        size;
    uint32_t      i;
    CUtensorMap  *maps;

    size = 3 * (size_t) n * sizeof(CUtensorMap);
    maps = aligned_alloc(_Alignof(CUtensorMap) > 64 ? _Alignof(CUtensorMap)
                                                   : 64, size);

    if (maps == NULL) {
        return cudaErrorMemoryAllocation;
    }

    memset(maps, 0, size);
    rc = 0;

    for (i = 0; i < n && rc == 0; i++) {
        if (mlp[i].w1->m.type != CU_MM_INT4) {
            rc = cu_gemm_map(&mlp[i].w1->m, &maps[i]);
        }

        if (rc == 0 && mlp[i].w3->m.type != CU_MM_INT4) {
            rc = cu_gemm_map(&mlp[i].w3->m, &maps[n + i]);
        }

        if (rc == 0 && mlp[i].w2->m.type != CU_MM_INT4) {
            rc = cu_gemm_map(&mlp[i].w2->m, &maps[2 * (size_t) n + i]);
        }
    }

    if (rc == 0) {
        rc = cudaMalloc((void **) &all->maps, size);
    }

    if (rc == 0) {
        rc = cudaMemcpyAsync(all->maps, maps, size, cudaMemcpyHostToDevice,
                             cuda->stream);
    }

    if (rc == 0) {
        rc = cudaStreamSynchronize(cuda->stream);
    }

    free(maps);

    return rc;
}


void
be_cuda_moe_close(be_cuda_t *cuda)
{
    cuda_mlps_t  *all;

    while (cuda->mlps != NULL) {
        all = cuda->mlps;
        cuda->mlps = all->next;

        (void) cudaFree(all->m);
        (void) cudaFree(all->maps);
        free(all);
    }
}
