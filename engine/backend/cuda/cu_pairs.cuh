/*
 * Pairs in the order of what they are for (a slot, an expert): a block of
 * threads for each of these finds where its own begin and writes them, one
 * block more the end.
 *
 * Pairs come in lists, at most one for each lane of a warp, and are gone
 * through in chunks, none of which reaches from one list into the next.  Each
 * warp of a block has chunks that follow one another.  It counts its own pairs,
 * and those for less; once all warps have said how many they have, each knows
 * where its pairs belong and waits for no other.
 *
 * A lane's pairs of a chunk are 32 apart: as many sectors as if it read four
 * neighbours at once, and nothing to be done about alignment or ends of lists.
 */

#ifndef CU_PAIRS_CUH
#define CU_PAIRS_CUH

#include "backend/cuda/cu_rows.h"
#include "backend/cuda/cu_util.cuh"


#define PAIRS_EACH    4              /* of a lane in a chunk */
#define PAIRS_CHUNK   (32 * PAIRS_EACH)
#define PAIRS_SMALL   256            /* threads, up to 2 chunks a warp, */
#define PAIRS_LARGE   1024           /* or else */
#define PAIRS_SHARED  (2 * PAIRS_LARGE / 32)
#define PAIRS_NONE    UINT32_MAX

#define PAIRS_THREADS(pairs)                                                  \
    ((pairs) > PAIRS_SMALL / 32 * 2 * PAIRS_CHUNK ? PAIRS_LARGE : PAIRS_SMALL)

typedef struct {
    const int32_t   *of;             /* pair i of list l is for
                                        of[l * stride + i], < 0: for nothing */
    size_t           stride;
    const uint32_t  *pos;            /* NULL, or of i / top_k: CU_NO_ROW where
                                        there is no pair */
    uint32_t         top_k;
    uint32_t         n;              /* pairs of the lane's list, */
    uint32_t         first;          /* its first chunk */
    uint32_t         chunks;         /* of all lists */
} pairs_t;

/* Where a chunk is, in all lanes of a warp. */

typedef struct {
    uint32_t         list;
    uint32_t         i;              /* the lane's first pair */
    uint32_t         n;              /* pairs of the list */
} pairs_chunk_t;


/* Lists of n pairs, each lane's own. */

static __device__ __forceinline__ void
pairs_lists(pairs_t *s, uint32_t n)
{
    uint32_t  i, own, sum, other;

    own = (n + PAIRS_CHUNK - 1) / PAIRS_CHUNK;
    sum = own;

#pragma unroll
    for (i = 1; i < 32; i *= 2) {
        other = __shfl_up_sync(CU_ALL_LANES, sum, i);
        sum += (threadIdx.x % 32 >= i) ? other : 0;
    }

    s->n = n;
    s->first = sum - own;
    s->chunks = __shfl_sync(CU_ALL_LANES, sum, 31);
}


/*
 * Its list is the last that begins there or before: one without pairs begins
 * where the next one does, or behind all chunks.
 */

static __device__ __forceinline__ pairs_chunk_t
pairs_find(const pairs_t &s, uint32_t chunk)
{
    uint32_t       begun;
    pairs_chunk_t  c;

    begun = __ballot_sync(CU_ALL_LANES, s.first <= chunk);

    c.list = 31 - (uint32_t) __clz((int) begun);
    c.i = (chunk - __shfl_sync(CU_ALL_LANES, s.first, (int) c.list))
          * PAIRS_CHUNK + threadIdx.x % 32;
    c.n = __shfl_sync(CU_ALL_LANES, s.n, (int) c.list);

    return c;
}


/* Those of padding are none. */

static __device__ __forceinline__ void
pairs_real(const pairs_t &s, const pairs_chunk_t &c, uint32_t *v)
{
    uint32_t  i, k, row, pos[PAIRS_EACH];

    row = c.i / s.top_k;
    k = c.i - row * s.top_k;

#pragma unroll
    for (i = 0; i < PAIRS_EACH; i++) {
        pos[i] = (c.i + 32 * i < c.n) ? s.pos[row] : CU_NO_ROW;

        row += 32 / s.top_k;
        k += 32 % s.top_k;
        row += (k >= s.top_k);
        k -= (k >= s.top_k) ? s.top_k : 0;
    }

#pragma unroll
    for (i = 0; i < PAIRS_EACH; i++) {
        v[i] = (pos[i] == CU_NO_ROW) ? PAIRS_NONE : v[i];
    }
}


/* What a lane's pairs of a chunk are for. */

static __device__ __forceinline__ pairs_chunk_t
pairs_load(const pairs_t &s, uint32_t chunk, uint32_t *v)
{
    uint32_t        i;
    const int32_t  *of;
    pairs_chunk_t   c;

    c = pairs_find(s, chunk);
    of = s.of + c.list * s.stride + c.i;

#pragma unroll
    for (i = 0; i < PAIRS_EACH; i++) {
        v[i] = (c.i + 32 * i < c.n) ? (uint32_t) of[32 * i] : PAIRS_NONE;
    }

    if (s.pos != NULL) {
        pairs_real(s, c, v);
    }

    return c;
}


/* The pairs of a warp's chunks that are for the block, and those for less. */

static __device__ __forceinline__ uint32_t
pairs_count(const pairs_t &s, uint32_t begin, uint32_t end, uint32_t *lower)
{
    uint32_t  i, own, below, v[PAIRS_EACH];

    own = 0;
    below = 0;

#pragma unroll 1
    for (; begin < end; begin++) {
        (void) pairs_load(s, begin, v);

#pragma unroll
        for (i = 0; i < PAIRS_EACH; i++) {
            own += (v[i] == blockIdx.x);
            below += (v[i] < blockIdx.x);
        }
    }

    *lower = __reduce_add_sync(CU_ALL_LANES, below);

    return __reduce_add_sync(CU_ALL_LANES, own);
}


/* put(at, list, i) for the block's pairs of a warp's chunks. */

template <typename F>
static __device__ __forceinline__ void
pairs_put(const pairs_t &s, uint32_t begin, uint32_t end, uint32_t at,
    const F &put)
{
    uint32_t       i, own, below, v[PAIRS_EACH];
    pairs_chunk_t  c;

    below = (1u << threadIdx.x % 32) - 1;

#pragma unroll 1
    for (; begin < end; begin++) {
        c = pairs_load(s, begin, v);

#pragma unroll
        for (i = 0; i < PAIRS_EACH; i++) {
            own = __ballot_sync(CU_ALL_LANES, v[i] == blockIdx.x);

            if (v[i] == blockIdx.x) {
                put(at + (uint32_t) __popc(own & below), c.list,
                    c.i + 32 * i);
            }

            at += (uint32_t) __popc(own);
        }
    }
}


/*
 * The at-th pair of all, by what they are for, then list and i, is put(at,
 * list, i); those for b, of `most` values, begin at offset[b].  Returns how
 * many are for the block.  `part`: PAIRS_SHARED.
 */

template <typename F>
static __device__ __forceinline__ uint32_t
pairs_sort(const pairs_t &s, uint32_t most, uint32_t *offset, uint32_t *part,
    const F &put)
{
    uint32_t  n, at, begin, end, own, lower, rest, warp, warps, lane;

    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    warps = blockDim.x / 32;

    n = s.chunks / warps;
    rest = s.chunks % warps;
    begin = warp * n + min(warp, rest);
    end = begin + n + (warp < rest);

    own = pairs_count(s, begin, end, &lower);

    if (lane == 0) {
        part[warp] = own;
        part[PAIRS_LARGE / 32 + warp] = lower;
    }

    __syncthreads();

    own = (lane < warps) ? part[lane] : 0;
    lower = (lane < warps) ? part[PAIRS_LARGE / 32 + lane] : 0;
    at = __reduce_add_sync(CU_ALL_LANES, lower);

    if (threadIdx.x == 0) {
        offset[blockIdx.x] = at;
    }

    if (blockIdx.x == most) {
        return 0;
    }

    at += __reduce_add_sync(CU_ALL_LANES, (lane < warp) ? own : 0);
    pairs_put(s, begin, end, at, put);

    return __reduce_add_sync(CU_ALL_LANES, own);
}

#endif /* CU_PAIRS_CUH */
