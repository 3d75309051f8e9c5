/*
 * Attention over expanded keys and values.
 *
 * A block of threads has 128 rows of one head: two warpgroups compute, 64 rows
 * each, one warp fetches.  Shared memory holds the queries, three tiles of 64 x
 * 64 elements for each warpgroup, and a ring of stages of 64 tokens: keys, two
 * tiles and the rope part, then values, two tiles; all swizzled.  While one
 * warpgroup has its exponentials computed the other one's products go on, as
 * they wait for nothing of each other.  (Exponentials beside a warpgroup's own
 * products with values, as published kernels have them, made it 5 % slower on
 * an H100: products of 64 x 64 with both operands in shared memory take all of
 * that memory's bandwidth.)
 *
 * full[s]: one arrival and the bytes of the stage.  empty[s]: one arrival for
 * each of the eight computing warps.
 *
 * Registers of a computing thread: 64 sums of the output and 32 scores; rows
 * 16 (warp % 4) + lane / 4 and 8 more.
 */

#include "cu_launch.cuh"
#include "cu_ptx.cuh"
#include "backend/cuda/cu_map.h"
#include "cu_mha.h"
#include "cu_mla.h"
#include "cu_util.cuh"


#define MHA_THREADS  384
#define MHA_ROWS     128             /* of a block of threads */
#define MHA_TILE     8192            /* bytes of 64 x 64 BF16, swizzled */
#define MHA_STAGES   3
#define MHA_NONE     (-INFINITY)     /* the maximum of nothing */

typedef struct {
    unsigned char  q[2][3][MHA_TILE];
    unsigned char  kv[MHA_STAGES][5][MHA_TILE];
    uint64_t       q_full;
    uint64_t       full[MHA_STAGES];
    uint64_t       empty[MHA_STAGES];
} mha_shared_t;

typedef struct {
    void      *o;
    float     *state;
    uint32_t   heads;
    uint32_t   row;
    uint32_t   rows;
    uint32_t   pos;
    uint32_t   first;
    uint32_t   from;
    uint32_t   tokens;
    float      scale;                /* of base 2 */
    int        begin;
    int        end;
    int        wide;
} mha_args_t;

/* What a computing thread has of its two rows. */

typedef struct {
    uint32_t   row[2];               /* of the group */
    uint32_t   limit[2];             /* tokens that the row may see */
    float      max[2];               /* of scores times `scale` */
    float      sum[2];               /* of its own columns */
} mha_rows_t;


/* Blocks of 64 tokens that rows of this block of threads may see. */

static __device__ __forceinline__ uint32_t
mha_blocks(const mha_args_t &a, uint32_t row)
{
    uint32_t  end, last;

    last = min(row + MHA_ROWS, a.rows);
    end = min(a.from + a.tokens, a.pos + last);

    return (end > a.from) ? (end - a.from + CU_MHA_BLOCK - 1) / CU_MHA_BLOCK
                          : 0;
}


static __device__ __forceinline__ float
mha_shift(float from, float to)
{
    return from == to ? 1.0f : cu_exp2(from - to);
}


/* --- fetching ---------------------------------------------------------- */

static __device__ void
mha_fetch(const mha_args_t &a, mha_shared_t *sh, uint32_t row, uint32_t head,
    const CUtensorMap *qn, const CUtensorMap *ql, const CUtensorMap *k,
    const CUtensorMap *v, const CUtensorMap *rope)
{
    int       i, g, token;
    uint32_t  block, blocks, s, turn;

    blocks = mha_blocks(a, row);
    s = 0;
    turn = 0;

    cu_mbar_expect(&sh->q_full, sizeof(sh->q));

    for (g = 0; g < 2; g++) {
        for (i = 0; i < 2; i++) {
            cu_tma_load_2d(sh->q[g][i], qn, &sh->q_full,
                           (int) (head * CU_MHA_NOPE) + 64 * i,
                           (int) (a.row + row) + 64 * g);
        }

        cu_tma_load_2d(sh->q[g][2], ql, &sh->q_full,
                       (int) (head * CU_MLA_DIM) + CU_MLA_LORA,
                       (int) (a.row + row) + 64 * g);
    }

    for (block = 0; block < blocks; block++) {
        token = (int) (block * CU_MHA_BLOCK);

        cu_mbar_wait(&sh->empty[s], ~turn & 1);
        cu_mbar_expect(&sh->full[s], sizeof(sh->kv[s]));

        for (i = 0; i < 2; i++) {
            cu_tma_load_2d(sh->kv[s][i], k, &sh->full[s],
                           (int) (head * CU_MHA_NOPE) + 64 * i, token);
        }

        cu_tma_load_2d(sh->kv[s][2], rope, &sh->full[s], 0, token);

        for (i = 0; i < 2; i++) {
            cu_tma_load_2d(sh->kv[s][3 + i], v, &sh->full[s],
                           (int) (head * CU_MHA_V) + 64 * i, token);
        }

        if (++s == MHA_STAGES) {
            s = 0;
            turn++;
        }
    }
}


/* --- computing --------------------------------------------------------- */

/* s = queries times the tokens of a stage, 64 x 64. */

static __device__ __forceinline__ void
mha_scores(float (&s)[32], const mha_shared_t *sh, int group, uint32_t stage)
{
    int  i, k;

    cu_wgmma_hold<64>(s);
    cu_wgmma_fence();

#pragma unroll
    for (i = 0; i < 3; i++) {
#pragma unroll
        for (k = 0; k < 4; k++) {
            cu_wgmma_bf16<64>(s, cu_desc_k(sh->q[group][i] + 32 * k),
                              cu_desc_k(sh->kv[stage][i] + 32 * k),
                              i > 0 || k > 0);
        }
    }

    cu_wgmma_commit();
    cu_wgmma_wait<0>();
    cu_wgmma_hold<64>(s);
}


/* Leaves the scores that count: of tokens first … limit - 1. */

static __device__ __forceinline__ void
mha_mask(float (&s)[32], const mha_rows_t &r, uint32_t first, uint32_t token)
{
    int       i;
    uint32_t  t;

    token += 2 * (threadIdx.x % 4);

#pragma unroll
    for (i = 0; i < 32; i++) {
        t = token + 8 * (i / 4) + i % 2;
        s[i] = t >= first && t < r.limit[i / 2 % 2] ? s[i] : MHA_NONE;
    }
}


/*
 * Scores become probabilities relative to the new maximum, as an operand; `by`
 * is what was summed before is multiplied with.
 */

static __device__ __forceinline__ void
mha_softmax(uint32_t (&p)[16], float (&by)[2], float (&s)[32], mha_rows_t &r,
    float scale)
{
    int    i;
    float  max[2], base[2];

    max[0] = MHA_NONE;
    max[1] = MHA_NONE;

#pragma unroll
    for (i = 0; i < 32; i++) {
        max[i / 2 % 2] = fmaxf(max[i / 2 % 2], s[i]);
    }

#pragma unroll
    for (i = 0; i < 2; i++) {
        max[i] = fmaxf(max[i], __shfl_xor_sync(CU_ALL_LANES, max[i], 1));
        max[i] = fmaxf(max[i], __shfl_xor_sync(CU_ALL_LANES, max[i], 2));
        max[i] = fmaxf(max[i] * scale, r.max[i]);
        by[i] = mha_shift(r.max[i], max[i]);
        base[i] = max[i] == MHA_NONE ? 0.0f : max[i];
        r.max[i] = max[i];
        r.sum[i] *= by[i];
    }

#pragma unroll
    for (i = 0; i < 32; i++) {
        s[i] = cu_exp2(__fmaf_rn(s[i], scale, -base[i / 2 % 2]));
        r.sum[i / 2 % 2] += s[i];
    }

#pragma unroll
    for (i = 0; i < 16; i++) {
        p[i] = cu_pack_bf16(s[2 * i], s[2 * i + 1]);
    }
}


/* o += p times a stage's values; in front of it o is scaled. */

static __device__ __forceinline__ void
mha_values(float (&o)[64], const uint32_t (&p)[16], const float (&by)[2],
    const mha_shared_t *sh, uint32_t stage)
{
    int  i;

#pragma unroll
    for (i = 0; i < 64; i++) {
        o[i] *= by[i / 2 % 2];
    }

    cu_wgmma_hold<128>(o);
    cu_wgmma_fence();

#pragma unroll
    for (i = 0; i < 4; i++) {
        cu_wgmma_bf16_rs<128, 1>(o, p[4 * i], p[4 * i + 1], p[4 * i + 2],
                                 p[4 * i + 3],
                                 cu_desc_mn(sh->kv[stage][3] + 16 * 128 * i,
                                            MHA_TILE), 1);
    }

    cu_wgmma_commit();
    cu_wgmma_wait<0>();
    cu_wgmma_hold<128>(o);
}


static __device__ __forceinline__ float *
mha_state(const mha_args_t &a, uint32_t row, uint32_t head)
{
    return a.state + ((size_t) row * a.heads + head) * CU_MHA_STATE;
}


/* Where the tile before left off; a sum is one thread's of four. */

static __device__ void
mha_resume(float (&o)[64], mha_rows_t &r, const mha_args_t &a, uint32_t head)
{
    int           i, k;
    const float  *from;

#pragma unroll
    for (k = 0; k < 2; k++) {
        r.max[k] = MHA_NONE;
        r.sum[k] = 0.0f;

#pragma unroll
        for (i = 0; i < 16; i++) {
            o[4 * i + 2 * k] = 0.0f;
            o[4 * i + 2 * k + 1] = 0.0f;
        }

        if (a.begin || r.row[k] >= a.rows) {
            continue;
        }

        from = mha_state(a, r.row[k], head);
        r.max[k] = from[CU_MHA_V];
        r.sum[k] = (threadIdx.x % 4 == 0) ? from[CU_MHA_V + 1] : 0.0f;
        from += 2 * (threadIdx.x % 4);

#pragma unroll
        for (i = 0; i < 16; i++) {
            o[4 * i + 2 * k] = from[8 * i];
            o[4 * i + 2 * k + 1] = from[8 * i + 1];
        }
    }
}


static __device__ void
mha_leave(const float (&o)[64], const mha_rows_t &r, const mha_args_t &a,
    uint32_t head)
{
    int     i, k;
    float   sum, by, *to;
    size_t  at;

#pragma unroll
    for (k = 0; k < 2; k++) {
        sum = r.sum[k];
        sum += __shfl_xor_sync(CU_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(CU_ALL_LANES, sum, 2);

        if (r.row[k] >= a.rows) {
            continue;
        }

        if (!a.end) {
            to = mha_state(a, r.row[k], head);

            if (threadIdx.x % 4 == 0) {
                to[CU_MHA_V] = r.max[k];
                to[CU_MHA_V + 1] = sum;
            }

            to += 2 * (threadIdx.x % 4);

#pragma unroll
            for (i = 0; i < 16; i++) {
                to[8 * i] = o[4 * i + 2 * k];
                to[8 * i + 1] = o[4 * i + 2 * k + 1];
            }

            continue;
        }

        by = sum > 0.0f ? 1.0f / sum : 0.0f;
        at = ((size_t) (a.row + r.row[k]) * a.heads + head) * CU_MHA_V
             + 2 * (threadIdx.x % 4);

#pragma unroll
        for (i = 0; i < 16; i++) {
            if (a.wide) {
                *(float2 *) ((float *) a.o + at + 8 * i) =
                    make_float2(o[4 * i + 2 * k] * by,
                                o[4 * i + 2 * k + 1] * by);

            } else {
                *(uint32_t *) ((uint16_t *) a.o + at + 8 * i) =
                    cu_pack_bf16(o[4 * i + 2 * k] * by,
                                 o[4 * i + 2 * k + 1] * by);
            }
        }
    }
}


static __device__ void
mha_compute(const mha_args_t &a, mha_shared_t *sh, uint32_t row, uint32_t head)
{
    int         i, group;
    float       o[64], s[32], by[2];
    uint32_t    block, blocks, stage, turn, token, full, p[16];
    mha_rows_t  r;

    group = (int) __shfl_sync(CU_ALL_LANES, threadIdx.x / 128, 0);
    blocks = mha_blocks(a, row);
    row += 64 * (uint32_t) group;
    full = a.pos + row + 1;
    stage = 0;
    turn = 0;

    for (i = 0; i < 2; i++) {
        r.row[i] = row + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4
                   + 8 * (uint32_t) i;
        r.limit[i] = min(a.pos + r.row[i] + 1, a.from + a.tokens);
    }

    mha_resume(o, r, a, head);
    cu_mbar_wait(&sh->q_full, 0);

    for (block = 0; block < blocks; block++) {
        token = a.from + block * CU_MHA_BLOCK;

        cu_mbar_wait(&sh->full[stage], turn & 1);
        mha_scores(s, sh, group, stage);

        if (token + CU_MHA_BLOCK > full || token < a.first
            || token + CU_MHA_BLOCK > a.from + a.tokens)
        {
            mha_mask(s, r, a.first, token);
        }

        mha_softmax(p, by, s, r, a.scale);
        mha_values(o, p, by, sh, stage);
        __syncwarp();

        if (threadIdx.x % 32 == 0) {
            cu_mbar_arrive(&sh->empty[stage]);
        }

        if (++stage == MHA_STAGES) {
            stage = 0;
            turn++;
        }
    }

    mha_leave(o, r, a, head);
}


static __global__ void
__launch_bounds__(MHA_THREADS, 1)
mha_kernel(const __grid_constant__ mha_args_t a,
    const __grid_constant__ CUtensorMap qn,
    const __grid_constant__ CUtensorMap ql,
    const __grid_constant__ CUtensorMap k,
    const __grid_constant__ CUtensorMap v,
    const __grid_constant__ CUtensorMap rope)
{
    uint32_t  i, row;

    CU_SHARED(mha_shared_t, sh);

    /* those that see most tokens first */

    row = (gridDim.y - 1 - blockIdx.y) * MHA_ROWS;

    if (threadIdx.x == 0) {
        cu_mbar_init(&sh->q_full, 1);

        for (i = 0; i < MHA_STAGES; i++) {
            cu_mbar_init(&sh->full[i], 1);
            cu_mbar_init(&sh->empty[i], 8);
        }

        cu_fence_init();
    }

    cu_begin();

    __syncthreads();

    if (threadIdx.x >= 256) {
        cu_regs_less<40>();

        if (threadIdx.x == 256) {
            mha_fetch(a, sh, row, blockIdx.x, &qn, &ql, &k, &v, &rope);
        }

    } else {
        cu_regs_more<232>();
        mha_compute(a, sh, row, blockIdx.x);
    }
}


int
cu_mha(const cu_mha_t *a, void *stream)
{
    int          rc;
    uint64_t     wide;
    mha_args_t   args;
    CUtensorMap  qn, ql, k, v, rope;

    if (a->rows == 0 || a->tokens == 0) {
        return 0;
    }

    args.o = a->o;
    args.state = a->state;
    args.heads = a->heads;
    args.row = a->row;
    args.rows = a->rows;
    args.pos = a->pos;
    args.first = a->first;
    args.from = a->from;
    args.tokens = a->tokens;
    args.scale = a->scale * 1.4426950408889634f;
    args.begin = a->begin;
    args.end = a->end;
    args.wide = a->wide;

    wide = (uint64_t) a->heads * CU_MHA_NOPE;
    rc = cu_map_2d(&qn, CU_BF16, a->qn, wide, a->all, 64, 64);

    if (rc == 0) {
        rc = cu_map_2d(&ql, CU_BF16, a->ql, (uint64_t) a->heads * CU_MLA_DIM,
                       a->all, 64, 64);
    }

    if (rc == 0) {
        rc = cu_map_2d(&k, CU_BF16, a->k, wide, a->tokens, 64, 64);
    }

    if (rc == 0) {
        rc = cu_map_2d(&v, CU_BF16, a->v, wide, a->tokens, 64, 64);
    }

    if (rc == 0) {
        rc = cu_map_2d(&rope, CU_BF16, a->rope, CU_MHA_ROPE, a->tokens, 64,
                       64);
    }

    if (rc == 0) {
        rc = CU_SMEM(mha_kernel, sizeof(mha_shared_t));
    }

    if (rc != 0) {
        return rc;
    }

    return CU_LAUNCH(mha_kernel,
                     dim3(a->heads, (a->rows + MHA_ROWS - 1) / MHA_ROWS),
                     dim3(MHA_THREADS), sizeof(mha_shared_t),
                     (cudaStream_t) stream, args, qn, ql, k, v, rope);
}


/* --- what it takes in ----------------------------------------------------- */

/* A token for each block of threads. */

static __global__ void
mha_gather(const uint8_t *kv, int fp8, const int32_t *table, uint32_t from,
    uint16_t *c, uint16_t *rope)
{
    float            scale;
    size_t           row;
    uint32_t         i, t;
    const uint8_t   *r;
    const uint16_t  *h;

    cu_begin();

    t = blockIdx.x;
    c += (size_t) t * CU_MLA_LORA;
    rope += (size_t) t * CU_MHA_ROPE;
    t += from;
    row = (size_t) table[t / CU_MLA_BLOCK] * CU_MLA_BLOCK + t % CU_MLA_BLOCK;
    r = kv + row * CU_MLA_FP8_SIZE;
    h = fp8 ? (const uint16_t *) (r + CU_MLA_LORA + 16)
            : (const uint16_t *) kv + row * CU_MLA_DIM + CU_MLA_LORA;

    for (i = threadIdx.x; i < CU_MLA_LORA; i += blockDim.x) {
        if (fp8) {
            scale = *(const float *) (r + CU_MLA_LORA + i / 128 * 4);
            c[i] = cu_to_bf16(cu_from_e4m3(r[i]) * scale);

        } else {
            c[i] = ((const uint16_t *) kv)[row * CU_MLA_DIM + i];
        }
    }

    for (i = threadIdx.x; i < CU_MHA_ROPE; i += blockDim.x) {
        rope[i] = h[i];
    }
}


int
cu_mha_gather(const void *kv, int fp8, const int32_t *table, uint32_t from,
    uint32_t tokens, void *c, void *rope, void *stream)
{
    if (tokens == 0) {
        return 0;
    }

    return CU_LAUNCH(mha_gather, dim3(tokens), dim3(128), 0,
                     (cudaStream_t) stream, (const uint8_t *) kv, fp8, table,
                     from, (uint16_t *) c, (uint16_t *) rope);
}


/* 32 x 32 elements for each block of threads. */

static __global__ void
mha_turn(const uint16_t *w, uint32_t rows, uint32_t cols, uint32_t ld,
    uint16_t *to)
{
    uint32_t  i, r, c;

    CU_STATIC_SHARED(uint16_t, tile, [32][33]);

    cu_begin();

    w += (size_t) blockIdx.z * rows * ld;
    to += (size_t) blockIdx.z * rows * cols;
    c = blockIdx.x * 32 + threadIdx.x % 32;

    for (i = threadIdx.x / 32; i < 32; i += 8) {
        r = blockIdx.y * 32 + i;

        if (r < rows && c < cols) {
            tile[i][threadIdx.x % 32] = w[(size_t) r * ld + c];
        }
    }

    __syncthreads();
    r = blockIdx.y * 32 + threadIdx.x % 32;

    for (i = threadIdx.x / 32; i < 32; i += 8) {
        c = blockIdx.x * 32 + i;

        if (r < rows && c < cols) {
            to[(size_t) c * rows + r] = tile[threadIdx.x % 32][i];
        }
    }
}


int
cu_mha_turn(const void *w, uint32_t parts, uint32_t rows, uint32_t cols,
    uint32_t ld, void *to, void *stream)
{
    return CU_LAUNCH(mha_turn, dim3((cols + 31) / 32, (rows + 31) / 32, parts),
                     dim3(256), 0, (cudaStream_t) stream,
                     (const uint16_t *) w, rows, cols, ld, (uint16_t *) to);
}
