/*
 * Attention over the latent cache: blocks of threads that take units of work.
 *
 * Three warpgroups: two compute, the third one brings in the tokens.  The
 * shared memory holds the tile's queries and two blocks of 64 tokens, each as
 * nine tiles of 64 x 64 elements, swizzled: eight of the latent part, which
 * are keys and values at once, and one of the rope part.  That is all there is
 * room for, so a block's memory must be free again as early as possible:
 *
 *     computing warpgroup     0                        1
 *     scores                  of block 0               of block 1
 *     output, 64 x 256        latent elements 0 …      latent elements 256 …
 *     first                   P0 V0, own half: frees   P0 V0, cross half:
 *                             the left of block 0      frees the rest of it
 *     then                    P1 V1, cross half:       P1 V1, own half: frees
 *                             frees left and rope of   the right of block 1
 *                             block 1
 *
 * (Block w's own half is the one that warpgroup w multiplies.)  Warpgroup 1 is
 * behind: it takes the maximum of warpgroup 0 over and goes on from there, so
 * one's exponentials are computed while the other one's products are.  Both
 * scale their halves of the output alike.  Probabilities go from one warpgroup
 * to the other in the memory of their block's rope part, whose scores are done:
 * as registers, since thread i of both has the same places.
 *
 * The mbarriers of a block are two for each of its halves, the cross half with
 * the rope part: full and free.
 */

#include "cu_mla.cuh"
#include "cu_mla_bring.cuh"
#include "cu_mla_pair.cuh"


/* The sums of whole rows, of both warpgroups' columns. */

static __device__ void
mla_sums(float (&sum)[2], const mla_rows_t *r, mla_shared_t *sh, int group,
    uint32_t turn)
{
    int    i;
    float  mine[2];

    #pragma unroll
    for (i = 0; i < 2; i++) {
        mine[i] = r->sum[i];
        mine[i] += __shfl_xor_sync(0xffffffff, mine[i], 1);
        mine[i] += __shfl_xor_sync(0xffffffff, mine[i], 2);

        if (threadIdx.x % 4 == 0) {
            sh->sum[turn & 1][group][r->row[i]] = mine[i];
        }
    }

    cu_named_sync(MLA_SUM, 256);

    #pragma unroll
    for (i = 0; i < 2; i++) {
        sum[i] = sh->sum[turn & 1][0][r->row[i]]
                 + sh->sum[turn & 1][1][r->row[i]];
    }
}


/*
 * A run is over.  Joins it to the unit's runs before, of which the sums lie in
 * memory of this thread's own; leaves them there unless the unit is over.
 */

static __device__ void
mla_join_run(float (&o)[128], const float (&sum)[2], const mla_args_t *a,
    mla_rows_t *r, int others, int over)
{
    int      i;
    float    max, of[2], by[2];
    float4   v, *merged;

    merged = (float4 *) a->merged
             + (size_t) blockIdx.x * CU_MLA_TILE * CU_MLA_LORA / 4
             + threadIdx.x;

    #pragma unroll
    for (i = 0; i < 2; i++) {

        if (!others) {
            r->all_max[i] = r->max[i];
            r->all_sum[i] = sum[i];
            continue;
        }

        max = fmaxf(r->all_max[i], r->max[i]);
        of[i] = mla_shift(r->all_max[i], max);
        by[i] = mla_shift(r->max[i], max);
        r->all_sum[i] = mla_join(r->all_sum[i], of[i], sum[i], by[i]);
        r->all_max[i] = max;
    }

    if (!others && over) {
        return;
    }

    #pragma unroll
    for (i = 0; i < 32; i++) {

        if (others) {
            v = merged[256 * i];
            o[4 * i] = mla_join(v.x, of[0], o[4 * i], by[0]);
            o[4 * i + 1] = mla_join(v.y, of[0], o[4 * i + 1], by[0]);
            o[4 * i + 2] = mla_join(v.z, of[1], o[4 * i + 2], by[1]);
            o[4 * i + 3] = mla_join(v.w, of[1], o[4 * i + 3], by[1]);
        }

        if (!over) {
            merged[256 * i] = make_float4(o[4 * i], o[4 * i + 1],
                                          o[4 * i + 2], o[4 * i + 3]);
        }
    }
}


/* A partial result: sums, and what they are relative to. */

static __device__ void
mla_put_part(const float (&o)[128], const mla_args_t *a, const mla_work_t *w,
    const mla_rows_t *r, int group)
{
    int     i, k;
    float  *to, *ml;

    ml = a->part_ml + (size_t) w->part * 2 * CU_MLA_TILE;

    #pragma unroll
    for (k = 0; k < 2; k++) {

        to = a->part + ((size_t) w->part * CU_MLA_TILE + r->row[k])
                       * CU_MLA_LORA
             + MLA_HALF * group + 2 * (threadIdx.x % 4);

        #pragma unroll
        for (i = 0; i < 32; i++) {
            *(float2 *) (to + 8 * i) = make_float2(o[4 * i + 2 * k],
                                                   o[4 * i + 2 * k + 1]);
        }

        if (group == 0 && threadIdx.x % 4 == 0) {
            ml[r->row[k]] = r->all_max[k];
            ml[CU_MLA_TILE + r->row[k]] = r->all_sum[k];
        }
    }
}


static __device__ void
mla_put(const float (&o)[128], const mla_args_t *a, const mla_work_t *w,
    const mla_rows_t *r, int group)
{
    int     i, k;
    float   by;
    size_t  at;

    #pragma unroll
    for (k = 0; k < 2; k++) {

        if (w->query + r->row[k] >= w->end) {
            continue;
        }

        by = r->all_sum[k] > 0 ? 1.0f / r->all_sum[k] : 0;
        at = (size_t) (w->query + r->row[k]) * CU_MLA_LORA
             + MLA_HALF * group + 2 * (threadIdx.x % 4);

        #pragma unroll
        for (i = 0; i < 32; i++) {
            mla_out(a->o, at + 8 * i, o[4 * i + 2 * k] * by,
                    o[4 * i + 2 * k + 1] * by, a->wide);
        }
    }
}


/* Tells the compiler that all lanes have the same. */

static __device__ __forceinline__ uint32_t
mla_same(uint32_t x)
{
    return __shfl_sync(0xffffffff, x, 0);
}


/* What a computing thread does. */

static __device__ void
mla_compute(const mla_args_t *a, mla_shared_t *sh, int group)
{
    int         i, others;
    float       o[128], sum[2];
    uint32_t    q, unit, last, at, end, next, runs;
    mla_rows_t  r;
    mla_turn_t  turn;
    mla_work_t  w;

    turn = mla_turn_t();
    runs = 0;
    unit = mla_same(a->lane[blockIdx.x / a->gang]);
    last = mla_same(a->lane[blockIdx.x / a->gang + 1]);

    r.row[0] = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    r.row[1] = r.row[0] + 8;

    for ( /* void */ ; unit < last; unit++) {

        if (!mla_same(mla_work(a, unit, &w))) {
            continue;
        }

        w.begin = mla_same(w.begin);
        w.stop = mla_same(w.stop);
        w.first = mla_same(w.first);
        w.full = mla_same(w.full);

        for (i = 0; i < 2; i++) {
            q = min(w.query + r.row[i], w.end - 1);
            r.limit[i] = a->pos[q / a->heads] + 1;
        }

        cu_mbar_wait(&sh->q_full, turn.q & 1);
        turn.q++;
        others = 0;

        for (at = w.begin; at < w.stop; /* void */ ) {

            end = mla_run_end(a, at, w.stop);

            for (i = 0; i < 2; i++) {
                r.max[i] = MLA_NONE;
                r.sum[i] = 0;
            }

            #pragma unroll
            for (i = 0; i < 128; i++) {
                o[i] = 0;
            }

            for ( /* void */ ; at < end; at = next) {
                next = mla_next(a, at, w.stop);

                if (group == 0) {
                    mla_pair_0(o, a, &w, &r, sh, at, next, &turn);
                } else {
                    mla_pair_1(o, a, &w, &r, sh, at, next, &turn);
                }
            }

            mla_sums(sum, &r, sh, group, runs++);
            mla_join_run(o, sum, a, &r, others, at == w.stop);
            others = 1;
        }

        if (w.part >= 0) {
            mla_put_part(o, a, &w, &r, group);
        } else {
            mla_put(o, a, &w, &r, group);
        }
    }
}


template <int FP8>
static __global__ void __launch_bounds__(MLA_THREADS, 1)
mla_kernel(const __grid_constant__ CUtensorMap q,
    const __grid_constant__ CUtensorMap kv,
    const __grid_constant__ mla_args_t a)
{
    int  i, k;

    CU_SHARED(mla_shared_t, sh);

    if (threadIdx.x == 0) {
        cu_mbar_init(&sh->q_full, 1);
        cu_mbar_init(&sh->q_free, 8);

        for (i = 0; i < 2; i++) {
            for (k = 0; k < 2; k++) {
                cu_mbar_init(&sh->full[i][k], FP8 ? 128 : 1);
                cu_mbar_init(&sh->free[i][k], 4);
            }
        }

        cu_fence_init();
    }

    cu_begin();

    __syncthreads();

    /* the block has 168 for each thread, 504 for three warpgroups */

    if (threadIdx.x >= 256) {
        cu_regs_less<FP8 ? 56 : 24>();

        if (FP8 || threadIdx.x == 256) {
            mla_bring<FP8>(&q, &kv, &a, sh);
        }

    } else {
        cu_regs_more<FP8 ? 224 : 240>();

        mla_compute(&a, sh, (int) mla_same(threadIdx.x / 128));
    }
}


template <int FP8>
static int
mla_launch(const cu_mla_attend_t *a, const CUtensorMap *q,
    const CUtensorMap *kv, const mla_args_t *args, void *stream)
{
    int  rc;

    rc = CU_SMEM(mla_kernel<FP8>, sizeof(mla_shared_t));     /* by device */

    if (rc != 0) {
        return rc;
    }

    return CU_LAUNCH(mla_kernel<FP8>, dim3(a->lanes * a->gang),
                     dim3(MLA_THREADS), sizeof(mla_shared_t),
                     (cudaStream_t) stream, *q, *kv, *args);
}


int
cu_mla_attend(const cu_mla_attend_t *a, void *stream)
{
    int          rc;
    mla_args_t   args;
    CUtensorMap  q, kv;

    args.unit = a->work.unit;
    args.lane = a->work.lane;
    args.table = a->work.table;
    args.pos = a->work.pos;
    args.kv = (const uint8_t *) a->kv;
    args.o = a->o;
    args.part = (float *) a->scratch;
    args.part_ml = args.part + (size_t) a->max_parts * CU_MLA_TILE
                               * CU_MLA_LORA;
    args.merged = args.part_ml + (size_t) a->max_parts * CU_MLA_TILE * 2;
    args.heads = a->heads;
    args.gang = a->gang;
    args.scale = a->scale * 1.4426950408889634f;
    args.run = a->fixed ? CU_MLA_RUN : 0;
    args.wide = a->wide;

    rc = cu_map_2d(&q, CU_BF16, a->q, CU_MLA_DIM, a->n_queries, 64,
                   CU_MLA_TILE);
    kv = q;

    if (rc == 0 && !a->fp8) {
        rc = cu_map_2d(&kv, CU_BF16, a->kv, CU_MLA_DIM,
                       a->blocks * CU_MLA_BLOCK, 64, CU_MLA_BLOCK);
    }

    if (rc != 0) {
        return rc;
    }

    rc = a->fp8 ? mla_launch<1>(a, &q, &kv, &args, stream)
                : mla_launch<0>(a, &q, &kv, &args, stream);

    return rc != 0 ? rc : cu_mla_merge(a, args.part, args.part_ml, stream);
}
