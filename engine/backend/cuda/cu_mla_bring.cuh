/*
 * The third warpgroup of the latent attention: queries and tokens come into
 * shared memory.
 */

#ifndef CU_MLA_BRING_CUH
#define CU_MLA_BRING_CUH

#include "cu_mla.cuh"


#define MLA_LOADS  2                 /* of 16 bytes a thread, at a time */


/* Eight elements of FP8 times their scale, in BF16. */

static __device__ __forceinline__ uint4
mla_widen(uint32_t lo, uint32_t hi, float scale)
{
    float  f[8];
    uint4  out;

    cu_e4m3x4(&f[0], lo);
    cu_e4m3x4(&f[4], hi);

    out.x = cu_pack_bf16(f[0] * scale, f[1] * scale);
    out.y = cu_pack_bf16(f[2] * scale, f[3] * scale);
    out.z = cu_pack_bf16(f[4] * scale, f[5] * scale);
    out.w = cu_pack_bf16(f[6] * scale, f[7] * scale);

    return out;
}


/*
 * Half a block of tokens in FP8, converted by the whole third warpgroup.  A
 * thread has 16 elements of a token at a time, so a warp reads rows of 256
 * bytes.
 */

static __device__ void
mla_convert(const mla_args_t *a, mla_shared_t *sh, int block, int half,
    int row, uint32_t turn)
{
    int             i, n, t, swizzle;
    uint4           v[MLA_LOADS];
    float           scale[MLA_LOADS];
    uint8_t        *to;
    const uint8_t  *from, *scales;

    t = threadIdx.x % 128;
    from = a->kv + (size_t) (row + t / 16) * CU_MLA_FP8_SIZE;
    scales = from + CU_MLA_LORA + (mla_half(block, half) + t % 16 / 4) / 2 * 4;
    from += 64 * mla_half(block, half) + t % 16 * 16;
    to = sh->kv[block][mla_half(block, half) + t % 16 / 4] + t / 16 * 128;
    swizzle = t / 16 * 16;

    #pragma unroll 1
    for (n = 0; n < 8 / MLA_LOADS; n++) {

        #pragma unroll
        for (i = 0; i < MLA_LOADS; i++) {
            v[i] = *(const uint4 *) (from + i * 8 * CU_MLA_FP8_SIZE);
            scale[i] = *(const float *) (scales + i * 8 * CU_MLA_FP8_SIZE);
        }

        /* Some of it is on its way before there is room. */

        if (n == 0) {
            cu_mbar_wait(&sh->free[block][half], ~turn & 1);
        }

        #pragma unroll
        for (i = 0; i < MLA_LOADS; i++) {
            *(uint4 *) (to + i * 8 * 128 + ((t % 4 * 32) ^ swizzle))
                = mla_widen(v[i].x, v[i].y, scale[i]);
            *(uint4 *) (to + i * 8 * 128 + ((t % 4 * 32 + 16) ^ swizzle))
                = mla_widen(v[i].z, v[i].w, scale[i]);
        }

        from += MLA_LOADS * 8 * CU_MLA_FP8_SIZE;
        scales += MLA_LOADS * 8 * CU_MLA_FP8_SIZE;
        to += MLA_LOADS * 8 * 128;
    }

    if (half == MLA_CROSS) {
        from = a->kv + (size_t) (row + t / 8) * CU_MLA_FP8_SIZE + CU_MLA_LORA
               + 16 + t % 8 * 16;
        to = sh->kv[block][MLA_TILES - 1] + t / 8 * 128
             + ((t % 8) ^ (t / 8 & 7)) * 16;

        #pragma unroll 2
        for (i = 0; i < 4; i++) {
            *(uint4 *) (to + i * 16 * 128)
                = *(const uint4 *) (from + i * 16 * CU_MLA_FP8_SIZE);
        }
    }

    cu_fence_async();
    cu_mbar_arrive(&sh->full[block][half]);
}


/* Tokens in FP8 from `tok` on, one block, are asked for. */

static __device__ __forceinline__ void
mla_ask(const mla_args_t *a, const mla_work_t *w, uint32_t tok)
{
    size_t  block;

    if (tok < w->stop) {
        block = (size_t) a->table[w->table + tok / CU_MLA_BLOCK];
        cu_bulk_prefetch(a->kv + block * CU_MLA_BLOCK * CU_MLA_FP8_SIZE,
                         CU_MLA_BLOCK * CU_MLA_FP8_SIZE);
    }
}


/*
 * The third warpgroup brings in queries and tokens, by the copy engine: one
 * thread does, but all convert tokens in FP8.  What they read they ask for a
 * pair of blocks ahead, as a thread has few loads under way.
 */

template <int FP8>
static __device__ void
mla_bring(const CUtensorMap *q, const CUtensorMap *kv, const mla_args_t *a,
    mla_shared_t *sh)
{
    int         i, row, block, half, tile, one;
    uint32_t    unit, last, at, next, tok;
    mla_turn_t  turn;
    mla_work_t  w;

    turn = mla_turn_t();
    one = threadIdx.x % 128 == 0;
    unit = a->lane[blockIdx.x / a->gang];
    last = a->lane[blockIdx.x / a->gang + 1];

    for ( /* void */ ; unit < last; unit++) {

        if (!mla_work(a, unit, &w)) {
            continue;
        }

        if (FP8 && one) {
            mla_ask(a, &w, w.begin);
            mla_ask(a, &w, w.begin + CU_MLA_BLOCK);
        }

        if (one) {
            cu_mbar_wait(&sh->q_free, ~turn.q & 1);
            cu_mbar_expect(&sh->q_full, sizeof(sh->q));

            for (i = 0; i < MLA_TILES; i++) {
                cu_tma_load_2d(sh->q[i], q, &sh->q_full, i * 64,
                               (int) w.query);
            }
        }

        turn.q++;

        for (at = w.begin; at < w.stop; at = next) {
            next = mla_next(a, at, w.stop);

            #pragma unroll
            for (block = 0; block < 2; block++) {

                tok = at + block * CU_MLA_BLOCK;

                if (tok >= next) {
                    break;
                }

                row = a->table[w.table + tok / CU_MLA_BLOCK] * CU_MLA_BLOCK;

                if (FP8 && one) {
                    mla_ask(a, &w, tok + 2 * CU_MLA_BLOCK);
                }

                #pragma unroll 1
                for (half = MLA_OWN; half <= MLA_CROSS; half++) {

                    if (FP8) {
                        mla_convert(a, sh, block, half, row, turn.kv[block]);
                        continue;
                    }

                    cu_mbar_wait(&sh->free[block][half],
                                 ~turn.kv[block] & 1);
                    cu_mbar_expect(&sh->full[block][half],
                                   (4 + half) * MLA_TILE);

                    for (i = 0; i < 4 + half; i++) {
                        tile = i < 4 ? mla_half(block, half) + i
                                     : MLA_TILES - 1;
                        cu_tma_load_2d(sh->kv[block][tile], kv,
                                       &sh->full[block][half], tile * 64,
                                       row);
                    }
                }

                turn.kv[block]++;
            }
        }
    }
}


#endif /* CU_MLA_BRING_CUH */
