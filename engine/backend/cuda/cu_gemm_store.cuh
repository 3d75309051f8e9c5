/*
 * What becomes of a tile's sums: y, or, of two matrices, inputs of the next
 * product.
 */

#ifndef CU_GEMM_STORE_CUH
#define CU_GEMM_STORE_CUH


/*
 * The sums of a tile's blocks become one, in their order, in the last block
 * that is done: whether this is it.  `index` is the block's, of all.
 */

template <int NT, int PARTS>
static __device__ __forceinline__ int
gemm_join(const gemm_args_t &a, gemm_head_t *head, uint32_t index,
    float (*d)[NT / 2])
{
    constexpr uint32_t  sums = PARTS * NT / 2;

    uint32_t      i, k;
    float        *mine;
    const float  *all;

    mine = a.part + (size_t) index * sums * 256 + threadIdx.x;

#pragma unroll
    for (i = 0; i < sums; i++) {
        mine[256 * i] = d[i / (NT / 2)][i % (NT / 2)];
    }

    __threadfence();
    cu_named_sync(2, 256);

    if (threadIdx.x == 0) {
        head->last = cu_add_acq_rel_gpu(&a.count[index / a.split], 1)
                     == a.split - 1;

        if (head->last) {
            a.count[index / a.split] = 0;
        }
    }

    cu_named_sync(2, 256);

    if (!head->last) {
        return 0;
    }

    all = a.part + (size_t) (index / a.split) * a.split * sums * 256
          + threadIdx.x;

#pragma unroll
    for (i = 0; i < sums; i++) {
        d[i / (NT / 2)][i % (NT / 2)] = all[256 * i];
    }

#pragma unroll 2
    for (k = 1; k < a.split; k++) {
        all += sums * 256;

#pragma unroll
        for (i = 0; i < sums; i++) {
            d[i / (NT / 2)][i % (NT / 2)] += all[256 * i];
        }
    }

    return 1;
}


static __device__ __forceinline__ void
gemm_put(const gemm_args_t &a, uint32_t row, uint32_t col, float v)
{
    float     *f;
    uint16_t  *h;

    if (col >= a.n) {
        return;
    }

    if (a.narrow) {
        h = (uint16_t *) a.y + (size_t) row * a.ldy + col;
        v += a.add ? __uint_as_float((uint32_t) *h << 16) : 0.0f;
        *h = (uint16_t) cu_pack_bf16(v, 0.0f);
        return;
    }

    f = (a.py != NULL) ? a.py[row] : a.y + (size_t) row * a.ldy;
    f[col] = a.add ? f[col] + v : v;
}


template <int NT>
static __device__ __forceinline__ void
gemm_store(const gemm_args_t &a, const gemm_tile_t &t, const float *d)
{
    constexpr int  some = (NT / 2 < 16) ? NT / 2 : 16;

    int       i, k;
    float    *y;
    float     old[some];
    uint32_t  col, row;

    col = t.col + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;

    /* Loads first, many at a time: one behind another they take too long. */

    if (a.add && !a.narrow) {

#pragma unroll
        for (k = 0; k < NT / 2; k += some) {

#pragma unroll
            for (i = k; i < k + some; i++) {
                row = 8 * (i / 4) + 2 * (threadIdx.x % 4) + i % 2;
                y = a.y + (size_t) (t.row + row) * a.ldy + col
                    + 8 * (i / 2 % 2);
                old[i - k] = (row < t.count && col + 8 * (i / 2 % 2) < a.n)
                             ? *y : 0.0f;
            }

#pragma unroll
            for (i = k; i < k + some; i++) {
                row = 8 * (i / 4) + 2 * (threadIdx.x % 4) + i % 2;
                y = a.y + (size_t) (t.row + row) * a.ldy + col
                    + 8 * (i / 2 % 2);

                if (row < t.count && col + 8 * (i / 2 % 2) < a.n) {
                    *y = old[i - k] + d[i];
                }
            }
        }

        return;
    }

#pragma unroll
    for (i = 0; i < NT / 2; i++) {
        row = 8 * (i / 4) + 2 * (threadIdx.x % 4) + i % 2;

        if (row < t.count) {
            gemm_put(a, t.row + row, col + 8 * (i / 2 % 2), d[i]);
        }
    }
}


/*
 * silu(g) * u as inputs of the next product.  FP8: a tile is one group of 128
 * outputs, its largest element found over lanes, warps and both warpgroups;
 * the same arithmetic as cu_act().
 */

template <int NT, int FP8>
static __device__ __forceinline__ void
gemm_store_act(const gemm_args_t &a, gemm_head_t *head, const gemm_tile_t &t,
    float *g, const float *u)
{
    int        i, k;
    float      v, scale;
    uint8_t   *q;
    uint16_t  *h;
    uint32_t   col, row, warp, lane;

    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    col = t.col + warp * 16 + lane / 4;

#pragma unroll
    for (i = 0; i < NT / 2; i++) {
        g[i] = (col + 8 * (i / 2 % 2) < a.n)
               ? g[i] / (1.0f + expf(-g[i])) * u[i] : 0.0f;
    }

    if (FP8) {

#pragma unroll
        for (i = 0; i < NT / 2; i += 4) {
#pragma unroll
            for (k = 0; k < 2; k++) {
                v = fmaxf(fabsf(g[i + k]), fabsf(g[i + k + 2]));
                v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, 4));
                v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, 8));
                v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, 16));

                if (lane / 4 == 0) {
                    head->top[warp][2 * i + 2 * lane + k] = v;
                }
            }
        }

        cu_named_sync(1, 256);
    }

#pragma unroll
    for (i = 0; i < NT / 2; i += 4) {
#pragma unroll
        for (k = 0; k < 2; k++) {
            row = 2 * i + 2 * (lane % 4) + k;
            scale = 0.0f;

            if (FP8) {
                v = head->top[0][row];

                for (warp = 1; warp < GEMM_WARPS; warp++) {
                    v = fmaxf(v, head->top[warp][row]);
                }

                scale = fmaxf(v, 1e-4f) / 448.0f;
            }

            if (row >= t.count) {
                continue;
            }

            row += t.row;

            if (!FP8) {
                h = (uint16_t *) a.act.x + (size_t) row * a.act.ld + col;

                if (col < a.n) {
                    h[0] = (uint16_t) cu_pack_bf16(g[i + k], 0.0f);
                }

                if (col + 8 < a.n) {
                    h[8] = (uint16_t) cu_pack_bf16(g[i + k + 2], 0.0f);
                }

                continue;
            }

            q = (uint8_t *) a.act.x + (size_t) row * a.act.ld + col;
            v = 1.0f / scale;

            if (threadIdx.x / 4 == 0) {
                a.act.scale[(size_t) (t.col / 128) * a.act.ld_scale + row] =
                    scale;
            }

            if (col < a.n) {
                q[0] = (uint8_t) cu_pack_e4m3(g[i + k] * v, 0, 0, 0);
            }

            if (col + 8 < a.n) {
                q[8] = (uint8_t) cu_pack_e4m3(g[i + k + 2] * v, 0, 0, 0);
            }
        }
    }

    if (FP8) {
        cu_named_sync(1, 256);
    }
}

#endif /* CU_GEMM_STORE_CUH */
