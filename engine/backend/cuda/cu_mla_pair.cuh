/*
 * A pair of blocks of tokens, as the two computing warpgroups go through it;
 * cu_mla.cu says in what order.
 */

#ifndef CU_MLA_PAIR_CUH
#define CU_MLA_PAIR_CUH

#include "cu_mla.cuh"


/* s = queries times the tokens of a block, 64 x 64; asynchronous no more. */

static __device__ void
mla_scores(float (&s)[32], mla_shared_t *sh, int block, uint32_t turn)
{
    int       i, k, tile;
    uint64_t  q, kv;

    q = cu_desc_k(sh->q[0]);
    kv = cu_desc_k(sh->kv[block][0]);

    cu_mbar_wait(&sh->full[block][MLA_OWN], turn & 1);
    cu_wgmma_hold<64>(s);
    cu_wgmma_fence();

    #pragma unroll
    for (i = 0; i < MLA_TILES; i++) {

        if (i == 4) {
            cu_mbar_wait(&sh->full[block][MLA_CROSS], turn & 1);
            cu_wgmma_fence();
        }

        tile = i < 4 ? 4 * block + i
                     : (i < 8 ? 4 * (1 - block) + i - 4 : MLA_TILES - 1);

        #pragma unroll
        for (k = 0; k < 4; k++) {
            cu_wgmma_bf16<64>(s, cu_desc_plus(q, tile * MLA_TILE + 32 * k),
                              cu_desc_plus(kv, tile * MLA_TILE + 32 * k),
                              i > 0 || k > 0);
        }
    }

    cu_wgmma_commit();
    cu_wgmma_wait<0>();
    cu_wgmma_hold<64>(s);
}


/* Leaves the scores that count: of tokens first … limit - 1. */

static __device__ void
mla_mask(float (&s)[32], const mla_rows_t *r, uint32_t first, uint32_t tok)
{
    int       i;
    uint32_t  t;

    tok += 2 * (threadIdx.x % 4);

    #pragma unroll
    for (i = 0; i < 32; i++) {
        t = tok + 8 * (i / 4) + i % 2;
        s[i] = t >= first && t < r->limit[i / 2 % 2] ? s[i] : MLA_NONE;
    }
}


/* The largest scores of the thread's rows, scaled. */

static __device__ void
mla_most(float (&max)[2], const float (&s)[32], float scale)
{
    int  i;

    max[0] = MLA_NONE;
    max[1] = MLA_NONE;

    #pragma unroll
    for (i = 0; i < 32; i++) {
        max[i / 2 % 2] = fmaxf(max[i / 2 % 2], s[i]);
    }

    #pragma unroll
    for (i = 0; i < 2; i++) {
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffff, max[i], 1));
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffff, max[i], 2));
        max[i] *= scale;
    }
}


/* Probabilities over the maximum's, as operand of a product; their sums. */

static __device__ void
mla_exp(uint32_t (&p)[16], float (&sum)[2], float (&s)[32],
    const float (&max)[2], float scale)
{
    int    i;
    float  base[2];

    base[0] = max[0] == MLA_NONE ? 0 : max[0];
    base[1] = max[1] == MLA_NONE ? 0 : max[1];

    #pragma unroll
    for (i = 0; i < 32; i++) {
        s[i] = cu_exp2(__fmaf_rn(s[i], scale, -base[i / 2 % 2]));
        sum[i / 2 % 2] += s[i];
    }

    #pragma unroll
    for (i = 0; i < 16; i++) {
        p[i] = cu_pack_bf16(s[2 * i], s[2 * i + 1]);
    }
}


/* Probabilities go by in the rope part's memory. */

static __device__ void
mla_give(mla_shared_t *sh, int block, const uint32_t (&p)[16])
{
    int    i;
    uint4  *to;

    to = (uint4 *) sh->kv[block][MLA_TILES - 1] + threadIdx.x % 128;

    #pragma unroll
    for (i = 0; i < 4; i++) {
        to[128 * i] = make_uint4(p[4 * i], p[4 * i + 1], p[4 * i + 2],
                                 p[4 * i + 3]);
    }
}


static __device__ void
mla_take(const mla_shared_t *sh, int block, uint32_t (&p)[16])
{
    int          i;
    uint4        v;
    const uint4  *from;

    from = (const uint4 *) sh->kv[block][MLA_TILES - 1] + threadIdx.x % 128;

    #pragma unroll
    for (i = 0; i < 4; i++) {
        v = from[128 * i];
        p[4 * i] = v.x;
        p[4 * i + 1] = v.y;
        p[4 * i + 2] = v.z;
        p[4 * i + 3] = v.w;
    }
}


/*
 * Tokens from `n` on of a block are none, and what is in their place may be
 * anything: times a probability of zero it must be zero.
 */

static __device__ void
mla_clear(mla_shared_t *sh, int block, uint32_t n)
{
    uint32_t  i, size;

    size = (CU_MLA_BLOCK - n) * 8;

    for (i = threadIdx.x % 128; i < 8 * size; i += 128) {
        ((uint4 *) sh->kv[block][i / size])[n * 8 + i % size]
            = make_uint4(0, 0, 0, 0);
    }

    cu_fence_async();
    cu_named_sync(MLA_GROUP + block, 128);
}


static __device__ void
mla_rescale(float (&o)[128], const float (&by)[2])
{
    int  i;

    #pragma unroll
    for (i = 0; i < 128; i++) {
        o[i] *= by[i / 2 % 2];
    }
}


/* o += p times a block's values, the columns of this warpgroup; queued. */

static __device__ void
mla_values(float (&o)[128], const uint32_t (&p)[16], mla_shared_t *sh,
    int block, int group)
{
    int       i;
    uint64_t  kv;

    kv = cu_desc_mn(sh->kv[block][4 * group], MLA_TILE);
    cu_wgmma_hold<256>(o);
    cu_wgmma_fence();

    #pragma unroll
    for (i = 0; i < 4; i++) {
        cu_wgmma_bf16_rs<256, 1>(o, p[4 * i], p[4 * i + 1], p[4 * i + 2],
                                 p[4 * i + 3],
                                 cu_desc_plus(kv, 16 * 128 * i), 1);
    }

    cu_wgmma_commit();
}


/* Each warp for itself. */

static __device__ __forceinline__ void
mla_arrive(uint64_t *bar)
{
    if (threadIdx.x % 32 == 0) {
        cu_mbar_arrive(bar);
    }
}


/* What the row of a thread is multiplied with, from one maximum to the next. */

static __device__ __forceinline__ void
mla_shifts(float (&by)[2], const float (&from)[2], const float (&to)[2])
{
    by[0] = mla_shift(from[0], to[0]);
    by[1] = mla_shift(from[1], to[1]);
}


/* Scores of this warpgroup's block, masked, and their maxima. */

static __device__ void
mla_own_scores(float (&s)[32], float (&max)[2], const mla_args_t *a,
    const mla_work_t *w, const mla_rows_t *r, mla_shared_t *sh, int block,
    uint32_t tok, mla_turn_t *turn)
{
    mla_scores(s, sh, block, turn->kv[block]);

    /* All four warps are through with the rope part. */

    cu_named_sync(MLA_GROUP + block, 128);

    if (tok + CU_MLA_BLOCK > w->full || tok < w->first) {
        mla_mask(s, r, w->first, tok);
    }

    if (tok + CU_MLA_BLOCK > w->stop) {
        mla_clear(sh, block, w->stop - tok);
    }

    mla_most(max, s, a->scale);
}


/* A pair of blocks, as warpgroup 0 goes through it. */

static __device__ void
mla_pair_0(float (&o)[128], const mla_args_t *a, const mla_work_t *w,
    mla_rows_t *r, mla_shared_t *sh, uint32_t at, uint32_t next,
    mla_turn_t *turn)
{
    int       i, both;
    float     s[32], max[2], by[2];
    uint32_t  p[16];

    both = at + CU_MLA_BLOCK < next;

    mla_own_scores(s, max, a, w, r, sh, 0, at, turn);

    if (next == w->stop) {
        mla_arrive(&sh->q_free);
    }

    max[0] = fmaxf(max[0], r->max[0]);
    max[1] = fmaxf(max[1], r->max[1]);
    mla_shifts(by, r->max, max);

    r->sum[0] *= by[0];
    r->sum[1] *= by[1];
    mla_exp(p, r->sum, s, max, a->scale);
    mla_give(sh, 0, p);

    if (threadIdx.x % 4 == 0) {
        sh->max[0][r->row[0]] = max[0];
        sh->max[0][r->row[1]] = max[1];
    }

    cu_named_arrive(MLA_P0, 256);

    mla_rescale(o, by);
    mla_values(o, p, sh, 0, 0);

    r->max[0] = max[0];
    r->max[1] = max[1];

    if (both) {
        cu_named_sync(MLA_P1, 256);

        max[0] = sh->max[1][r->row[0]];
        max[1] = sh->max[1][r->row[1]];
        mla_shifts(by, r->max, max);
    }

    cu_wgmma_wait<0>();
    cu_wgmma_hold<256>(o);
    mla_arrive(&sh->free[0][MLA_OWN]);

    if (both) {
        mla_take(sh, 1, p);
        mla_rescale(o, by);
        cu_mbar_wait(&sh->full[1][MLA_CROSS], turn->kv[1] & 1);
        mla_values(o, p, sh, 1, 0);

        #pragma unroll
        for (i = 0; i < 2; i++) {
            r->sum[i] *= by[i];
            r->max[i] = max[i];
        }

        cu_wgmma_wait<0>();
        cu_wgmma_hold<256>(o);
        cu_fence_async();
        mla_arrive(&sh->free[1][MLA_CROSS]);
        turn->kv[1]++;
    }

    turn->kv[0]++;
}


/* As warpgroup 1 does. */

static __device__ void
mla_pair_1(float (&o)[128], const mla_args_t *a, const mla_work_t *w,
    mla_rows_t *r, mla_shared_t *sh, uint32_t at, uint32_t next,
    mla_turn_t *turn)
{
    int       i, both;
    float     s[32], mine[2], max[2], by[2];
    uint32_t  p[16], q[16];

    both = at + CU_MLA_BLOCK < next;

    if (both) {
        mla_own_scores(s, mine, a, w, r, sh, 1, at + CU_MLA_BLOCK, turn);
    }

    if (next == w->stop) {
        mla_arrive(&sh->q_free);
    }

    cu_named_sync(MLA_P0, 256);

    max[0] = sh->max[0][r->row[0]];
    max[1] = sh->max[0][r->row[1]];
    mla_take(sh, 0, p);
    mla_shifts(by, r->max, max);
    mla_rescale(o, by);
    cu_mbar_wait(&sh->full[0][MLA_CROSS], turn->kv[0] & 1);
    mla_values(o, p, sh, 0, 1);

    #pragma unroll
    for (i = 0; i < 2; i++) {
        r->sum[i] *= by[i];
        r->max[i] = max[i];
    }

    if (both) {
        max[0] = fmaxf(max[0], mine[0]);
        max[1] = fmaxf(max[1], mine[1]);
        mla_shifts(by, r->max, max);

        r->sum[0] *= by[0];
        r->sum[1] *= by[1];
        mla_exp(q, r->sum, s, max, a->scale);
        mla_give(sh, 1, q);

        if (threadIdx.x % 4 == 0) {
            sh->max[1][r->row[0]] = max[0];
            sh->max[1][r->row[1]] = max[1];
        }

        cu_named_arrive(MLA_P1, 256);
    }

    cu_wgmma_wait<0>();
    cu_wgmma_hold<256>(o);
    cu_fence_async();
    mla_arrive(&sh->free[0][MLA_CROSS]);

    if (both) {
        mla_rescale(o, by);
        mla_values(o, q, sh, 1, 1);

        r->max[0] = max[0];
        r->max[1] = max[1];

        cu_wgmma_wait<0>();
        cu_wgmma_hold<256>(o);
        mla_arrive(&sh->free[1][MLA_OWN]);
        turn->kv[1]++;
    }

    turn->kv[0]++;
}


#endif /* CU_MLA_PAIR_CUH */
