/*
 * The kernel of cu_gemm.h, a template over type, rows of a tile and matrices:
 * one, or two whose results become silu(first) * second.
 *
 * Shared memory, a stage of the ring: the matrix's part, the rows' part, and
 * (FP8) the rows' scales.  BF16: 64 elements of K, 128 x 128 and NT x 128
 * bytes with the 128-byte swizzle.  FP8: the same with 128 elements.  INT4:
 * 128 elements, eight chunks as they lie in memory, and rows twice NT x 128
 * bytes.  The rows lie in front, matrices follow.
 *
 * full[s]: one arrival and the bytes of the stage's copies.  empty[s]: one
 * arrival for each of the eight computing warps.
 *
 * Registers of a computing thread, with NT rows: NT / 2 sums of each matrix,
 * FP8 as many of one again; outputs 64 w + 16 (warp % 4) + lane / 4 and 8 more of warpgroup w,
 * rows 8 j + 2 (lane % 4) and the next one.
 */

#ifndef CU_GEMM_CUH
#define CU_GEMM_CUH

#include "cu_launch.cuh"
#include "cu_ptx.cuh"
#include "backend/cuda/cu_gemm.h"
#include "backend/cuda/cu_gemm_int.h"


#define GEMM_N        128            /* outputs of a tile */
#define GEMM_THREADS  384            /* two warpgroups compute, one fetches */
#define GEMM_WARPS    8
#define GEMM_STAGES   16             /* at most */
#define GEMM_BAND     8              /* tiles of rows beside each other */
#define GEMM_CHUNK    1152           /* INT4: 16 outputs by 128 elements */
#define GEMM_SCALES   128            /* bytes of them in front */


/* What a launch is told, beside the maps. */

typedef struct {
    const cu_matrix_t   *m;
    const uint32_t      *offset;
    const CUtensorMap   *maps;
    float               *y;
    float *const        *py;
    size_t               ldy;
    uint32_t             groups;
    uint32_t             rows;
    uint32_t             n;
    uint32_t             k;
    int                  narrow;
    int                  add;

    /* the second matrices, and where silu(first) * second goes */
    const cu_matrix_t   *m_up;
    const CUtensorMap   *maps_up;
    cu_act_t             act;
} gemm_args_t;

template <cu_mm_type_t TYPE, int NT, int PARTS>
struct gemm_shape_t {
    static constexpr uint32_t  k = (TYPE == CU_MM_BF16) ? 64 : 128;
    static constexpr uint32_t  w = (TYPE == CU_MM_INT4) ? 8 * GEMM_CHUNK
                                                        : GEMM_N * 128;
    static constexpr uint32_t  x = (TYPE == CU_MM_INT4) ? 2 * NT * 128
                                                        : NT * 128;
    static constexpr uint32_t  scale = (TYPE == CU_MM_FP8)
                                       ? 1024 : 0;
    static constexpr uint32_t  stage = PARTS * w + x + scale;
    static constexpr uint32_t  most = (CU_SMEM_MAX - 8192) / stage;
    static constexpr uint32_t  stages = (most < GEMM_STAGES) ? most
                                                             : GEMM_STAGES;
    static constexpr uint32_t  smem = stages * stage;
};

/* Beside the ring: tiles of the groups in front of each, barriers. */

typedef struct {
    uint64_t  full[GEMM_STAGES];
    uint64_t  empty[GEMM_STAGES];
    uint32_t  first[CU_GEMM_GROUPS + 1];
    float     top[GEMM_WARPS][128];  /* of each row, by warp */
} gemm_head_t;

typedef struct {
    uint32_t  group;
    uint32_t  row;                   /* of x, the tile's first */
    uint32_t  count;                 /* rows that are of the group */
    uint32_t  col;                   /* the first output */
    int       again;                 /* the matrix's part is read again */
} gemm_tile_t;


/* --- which tile -------------------------------------------------------- */

/* Tiles of rows in front of each group; by the first warp. */

template <int NT>
static __device__ __forceinline__ void
gemm_count(const gemm_args_t &a, gemm_head_t *head)
{
    uint32_t  g, n, sum, before, i, lane;

    lane = threadIdx.x;
    before = 0;

    for (g = lane; g - lane < a.groups; g += 32) {
        n = 0;

        if (g < a.groups) {
            n = (a.offset != NULL) ? a.offset[g + 1] - a.offset[g] : a.rows;
            n = (n + NT - 1) / NT;
        }

        sum = n;

        for (i = 1; i < 32; i <<= 1) {
            n = __shfl_up_sync(0xffffffff, sum, i);
            sum += (lane >= i) ? n : 0;
        }

        if (g < a.groups) {
            head->first[g + 1] = before + sum;
        }

        before += __shfl_sync(0xffffffff, sum, 31);
    }

    if (lane == 0) {
        head->first[0] = 0;
    }
}


/*
 * Tiles of one group follow each other in bands of GEMM_BAND tiles of rows,
 * in a band those of the same outputs: what runs at the same time reads few
 * parts of the matrix and few rows, from the L2 but for the first.
 */

template <int NT>
static __device__ __forceinline__ int
gemm_tile(const gemm_args_t &a, const gemm_head_t *head, uint32_t index,
    gemm_tile_t *t)
{
    uint32_t  cols, low, high, mid, rows, band, height, from, to;

    cols = (a.n + GEMM_N - 1) / GEMM_N;

    if (index >= head->first[a.groups] * cols) {
        return 0;
    }

    low = 0;
    high = a.groups;

    while (high - low > 1) {
        mid = (low + high) / 2;

        if (head->first[mid] * cols <= index) {
            low = mid;

        } else {
            high = mid;
        }
    }

    index -= head->first[low] * cols;
    rows = head->first[low + 1] - head->first[low];
    from = (a.offset != NULL) ? a.offset[low] : 0;
    to = (a.offset != NULL) ? a.offset[low + 1] : a.rows;

    band = index / (GEMM_BAND * cols) * GEMM_BAND;
    index -= band * cols;
    height = (rows - band < GEMM_BAND) ? rows - band : GEMM_BAND;

    t->group = low;
    t->col = index / height * GEMM_N;
    t->row = from + (band + index % height) * NT;
    t->again = rows > 1;
    t->count = (to - t->row < NT) ? to - t->row : NT;

    return 1;
}


/* --- fetching ---------------------------------------------------------- */

/* INT4: panels of a tile, and where the first one begins. */

static __device__ __forceinline__ const uint8_t *
gemm_panels(const cu_matrix_t *m, const gemm_tile_t &t, uint32_t blocks)
{
    return (const uint8_t *) m[t.group].w
           + (size_t) (t.col / 16) * blocks * GEMM_CHUNK;
}


template <cu_mm_type_t TYPE, int NT, int PARTS>
static __device__ __forceinline__ void
gemm_fetch(const gemm_args_t &a, gemm_head_t *head, uint8_t *ring,
    const CUtensorMap *w, const CUtensorMap *w_up, const CUtensorMap *x,
    const CUtensorMap *scale)
{
    typedef gemm_shape_t<TYPE, NT, PARTS>  shape;

    int                 part;
    uint32_t            i, tile, s, turn, block, blocks, bytes, panels, known;
    uint8_t            *p, *q;
    uint64_t            keep;
    gemm_tile_t         t;
    const uint8_t      *codes[2];
    const CUtensorMap  *map[2];

    blocks = (a.k + shape::k - 1) / shape::k;
    s = 0;
    turn = 0;
    known = UINT32_MAX;

    for (tile = blockIdx.x; gemm_tile<NT>(a, head, tile, &t);
         tile += gridDim.x)
    {
        map[0] = (a.maps != NULL) ? a.maps + t.group : w;
        map[1] = (a.maps_up != NULL) ? a.maps_up + t.group : w_up;
        codes[0] = NULL;
        codes[1] = NULL;
        panels = 0;

        if (a.maps != NULL && t.group != known) {
            cu_map_acquire(map[0]);

            if (PARTS == 2) {
                cu_map_acquire(map[1]);
            }

            known = t.group;
        }

        if (TYPE == CU_MM_INT4) {
            codes[0] = gemm_panels(a.m, t, blocks);
            codes[1] = (PARTS == 2) ? gemm_panels(a.m_up, t, blocks)
                                    : NULL;
            panels = (a.n - t.col + 15) / 16;
            panels = (panels < 8) ? panels : 8;
        }

        keep = t.again ? CU_KEEP_NORMAL : CU_KEEP_FIRST;
        bytes = shape::x + PARTS * (TYPE == CU_MM_INT4 ? panels * GEMM_CHUNK
                                                       : shape::w);
        bytes += (TYPE == CU_MM_FP8) ? NT * 4 : 0;

        for (block = 0; block < blocks; block++) {
            p = ring + s * shape::stage;

            cu_mbar_wait(&head->empty[s], ~turn & 1);
            cu_mbar_expect(&head->full[s], bytes);

#pragma unroll
            for (part = 0; part < PARTS; part++) {
                q = p + shape::x + part * shape::w;

                if constexpr (TYPE == CU_MM_INT4) {
                    for (i = 0; i < panels; i++) {
                        cu_bulk_load(q + i * GEMM_CHUNK,
                                     codes[part]
                                     + ((size_t) i * blocks + block)
                                       * GEMM_CHUNK,
                                     GEMM_CHUNK, &head->full[s], keep);
                    }

                } else {
                    cu_tma_load_2d(q, map[part], &head->full[s],
                                   (int) (block * shape::k), (int) t.col,
                                   keep);
                }
            }

            cu_tma_load_2d(p, x, &head->full[s], (int) (block * shape::k),
                           (int) t.row);

            if (TYPE == CU_MM_INT4) {
                cu_tma_load_2d(p + NT * 128, x, &head->full[s],
                               (int) (block * 128 + 64), (int) t.row);
            }

            if (TYPE == CU_MM_FP8) {
                cu_tma_load_2d(p + shape::x + PARTS * shape::w, scale,
                               &head->full[s], (int) t.row, (int) block);
            }

            if (++s == shape::stages) {
                s = 0;
                turn++;
            }
        }
    }
}


/* --- computing --------------------------------------------------------- */

/*
 * INT4: one half byte stands for BF16 `level`; these are the high and the low
 * bytes of the sixteen, for __byte_perm().
 */

#define GEMM_HIGH_0  0xc2c2c2c2u     /* -64 -81 -102 -127 */
#define GEMM_HIGH_1  0xc1c1c2c2u     /* -11 -22 -35 -49 */
#define GEMM_HIGH_2  0x42414100u     /* 37 24 12 0 */
#define GEMM_HIGH_3  0x42424242u     /* 107 84 66 51 */
#define GEMM_LOW_0   0x80a2ccfeu
#define GEMM_LOW_1   0x30b00c44u
#define GEMM_LOW_2   0x14c04000u
#define GEMM_LOW_3   0xd6a8844cu

/*
 * Four half bytes, 4 bits each of the lower half of `t`, as BF16: the first
 * and the third to `even`, the second and the fourth to `odd`.
 */

static __device__ __forceinline__ void
gemm_levels(uint32_t t, uint32_t *even, uint32_t *odd)
{
    uint32_t  at, upper, high, low;

    at = t & 0x7777;
    upper = 0x3210 | (t >> 1 & 0x4444);

    high = __byte_perm(__byte_perm(GEMM_HIGH_0, GEMM_HIGH_1, at),
                       __byte_perm(GEMM_HIGH_2, GEMM_HIGH_3, at), upper);
    low = __byte_perm(__byte_perm(GEMM_LOW_0, GEMM_LOW_1, at),
                      __byte_perm(GEMM_LOW_2, GEMM_LOW_3, at), upper);

    *even = __byte_perm(low, high, 0x6240);
    *odd = __byte_perm(low, high, 0x7351);
}


/*
 * A thread's registers of 16 elements of K, `step` of a chunk's 8: outputs o
 * and o + 8, elements 2 q, 2 q + 1 and 8 more, q = lane % 4.
 */

static __device__ __forceinline__ void
gemm_decode(const uint8_t *chunk, uint32_t o, uint32_t shift, uint32_t step,
    uint32_t *r)
{
    int              i;
    uint32_t         u, v, s;
    const uint8_t   *code;

#pragma unroll
    for (i = 0; i < 2; i++) {
        code = chunk + GEMM_SCALES + step * 128 + (o + 8 * i) * 4;

        u = *(const uint32_t *) code >> shift;
        v = *(const uint32_t *) (code + 64) >> shift;
        s = *(const uint16_t *) (chunk + step / 2 * 32 + (o + 8 * i) * 2);
        s |= s << 16;

        gemm_levels((u & 0x0f0f) | (v << 4 & 0xf0f0), &r[i], &r[i + 2]);
        r[i] = cu_mul_bf16(r[i], s);
        r[i + 2] = cu_mul_bf16(r[i + 2], s);
    }
}


/* One stage's products; `d` is the sums.  BF16: not yet committed. */

template <int NT>
static __device__ __forceinline__ void
gemm_bf16(float *d, const uint8_t *w, const uint8_t *x, int first)
{
    int  k;

#pragma unroll
    for (k = 0; k < 4; k++) {
        cu_wgmma_bf16<NT>(d, cu_desc_k(w + 32 * k), cu_desc_k(x + 32 * k),
                          !first || k > 0);
    }
}


template <int NT>
static __device__ __forceinline__ void
gemm_fp8(float *d, const uint8_t *w, const uint8_t *x, const float *scale,
    float factor, int first)
{
    int     i, k;
    float   part[NT / 2];
    float2  s;

    cu_wgmma_hold<NT>(part);
    cu_wgmma_fence();

#pragma unroll
    for (k = 0; k < 4; k++) {
        cu_wgmma_e4m3<NT>(part, cu_desc_k(w + 32 * k), cu_desc_k(x + 32 * k),
                          k > 0);
    }

    cu_wgmma_commit();
    cu_wgmma_wait<0>();
    cu_wgmma_hold<NT>(part);

#pragma unroll
    for (i = 0; i < NT / 8; i++) {
        s = *(const float2 *) (scale + 8 * i + 2 * (threadIdx.x % 4));
        s.x = __fmul_rn(s.x, factor);
        s.y = __fmul_rn(s.y, factor);

        d[4 * i] = __fmaf_rn(part[4 * i], s.x, first ? 0.0f : d[4 * i]);
        d[4 * i + 1] = __fmaf_rn(part[4 * i + 1], s.y,
                                 first ? 0.0f : d[4 * i + 1]);
        d[4 * i + 2] = __fmaf_rn(part[4 * i + 2], s.x,
                                 first ? 0.0f : d[4 * i + 2]);
        d[4 * i + 3] = __fmaf_rn(part[4 * i + 3], s.y,
                                 first ? 0.0f : d[4 * i + 3]);
    }
}


/* INT4, half of a stage, 64 elements: registers, then products. */

static __device__ __forceinline__ void
gemm_half(const uint8_t *chunk, uint32_t half, uint32_t *r)
{
    int       k;
    uint32_t  o, shift;

    o = threadIdx.x % 32 / 4;
    shift = 16 * (threadIdx.x % 2) + 4 * (threadIdx.x % 4 / 2);

#pragma unroll
    for (k = 0; k < 4; k++) {
        gemm_decode(chunk, o, shift, half * 4 + k, r + 4 * k);
    }
}


template <int NT>
static __device__ __forceinline__ void
gemm_int4(float *d, const uint32_t *r, const uint8_t *x, int first)
{
    int  k;

#pragma unroll
    for (k = 0; k < 4; k++) {
        cu_wgmma_bf16_rs<NT>(d, r[4 * k], r[4 * k + 1], r[4 * k + 2],
                             r[4 * k + 3], cu_desc_k(x + 32 * k),
                             !first || k > 0);
    }
}


/* A warp is through with a stage. */

static __device__ __forceinline__ void
gemm_release(uint64_t *empty)
{
    __syncwarp();

    if (threadIdx.x % 32 == 0) {
        cu_mbar_arrive(empty);
    }
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
    int       i;
    uint32_t  col, row;

    col = t.col + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;

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


template <cu_mm_type_t TYPE, int NT, int PARTS>
static __device__ __forceinline__ void
gemm_compute(const gemm_args_t &a, gemm_head_t *head, const uint8_t *ring)
{
    typedef gemm_shape_t<TYPE, NT, PARTS>  shape;

    int             part, half;
    float           d[PARTS][NT / 2], factor[PARTS], next[PARTS];
    uint32_t        tile, s, turn, last, block, blocks;
    uint32_t        r[2][16];
    gemm_tile_t     t;
    const float    *factors[PARTS];
    const uint8_t  *x, *w;

    blocks = (a.k + shape::k - 1) / shape::k;
    s = 0;
    turn = 0;

    for (tile = blockIdx.x; gemm_tile<NT>(a, head, tile, &t);
         tile += gridDim.x)
    {
        last = 0;

#pragma unroll
        for (part = 0; part < PARTS; part++) {
            const cu_matrix_t  *m = (part == 0) ? a.m : a.m_up;

            factors[part] = NULL;
            next[part] = 0.0f;

            if (TYPE == CU_MM_FP8) {
                factors[part] = m[t.group].scale + (size_t) (t.col / 128)
                                                   * m[t.group].ld_scale;
                next[part] = factors[part][0];
            }
        }

        for (block = 0; block < blocks; block++) {
            x = ring + s * shape::stage;
            w = x + shape::x;

#pragma unroll
            for (part = 0; part < PARTS; part++) {
                factor[part] = next[part];

                if (TYPE == CU_MM_FP8 && block + 1 < blocks) {
                    next[part] = factors[part][block + 1];
                }
            }

            cu_mbar_wait(&head->full[s], turn & 1);

            if constexpr (TYPE == CU_MM_BF16) {
                cu_wgmma_fence();

#pragma unroll
                for (part = 0; part < PARTS; part++) {
                    gemm_bf16<NT>(d[part],
                                  w + part * shape::w
                                  + threadIdx.x / 128 * 8192, x, block == 0);
                }

                cu_wgmma_commit();

                /* the stage before this one has been read */

                cu_wgmma_wait<1>();

                if (block > 0) {
                    gemm_release(&head->empty[last]);
                }

            } else if constexpr (TYPE == CU_MM_FP8) {
#pragma unroll
                for (part = 0; part < PARTS; part++) {
                    gemm_fp8<NT>(d[part],
                                 w + part * shape::w
                                 + threadIdx.x / 128 * 8192, x,
                                 (const float *) (w + PARTS * shape::w),
                                 factor[part], block == 0);
                }

                gemm_release(&head->empty[s]);

            } else {
/*
                 * One matrix: the other half's products are under way while
                 * this one's registers are made.  Two: they share them out.
                 */

#pragma unroll
                for (half = 0; half < 2; half++) {
#pragma unroll
                    for (part = 0; part < PARTS; part++) {
                        gemm_half(w + part * shape::w
                                  + threadIdx.x / 32 * GEMM_CHUNK,
                                  (uint32_t) half,
                                  r[PARTS == 1 ? half : part]);
                    }

                    cu_wgmma_fence();

#pragma unroll
                    for (part = 0; part < PARTS; part++) {
                        gemm_int4<NT>(d[part], r[PARTS == 1 ? half : part],
                                      x + half * NT * 128,
                                      block == 0 && half == 0);
                    }

                    cu_wgmma_commit();
                    cu_wgmma_wait<PARTS == 1 ? 1 : 0>();

                    if (PARTS == 1 && block > 0 && half == 0) {
                        gemm_release(&head->empty[last]);
                    }
                }

                if (PARTS == 2) {
                    gemm_release(&head->empty[s]);
                }
            }

            last = s;

            if (++s == shape::stages) {
                s = 0;
                turn++;
            }
        }

        if (TYPE == CU_MM_BF16 || (TYPE == CU_MM_INT4 && PARTS == 1)) {
            cu_wgmma_wait<0>();
            gemm_release(&head->empty[last]);
        }

#pragma unroll
        for (part = 0; part < PARTS; part++) {
            cu_wgmma_hold<NT>(d[part]);
        }

        if constexpr (PARTS == 1) {
            gemm_store<NT>(a, t, d[0]);

        } else {
            gemm_store_act<NT, TYPE == CU_MM_FP8>(a, head, t, d[0], d[1]);
        }
    }
}


template <cu_mm_type_t TYPE, int NT, int PARTS>
static __global__ void
__launch_bounds__(GEMM_THREADS, 1)
gemm_kernel(const __grid_constant__ gemm_args_t a,
    const __grid_constant__ CUtensorMap w,
    const __grid_constant__ CUtensorMap w_up,
    const __grid_constant__ CUtensorMap x,
    const __grid_constant__ CUtensorMap scale)
{
    typedef gemm_shape_t<TYPE, NT, PARTS>  shape;

    uint32_t  i;

    CU_SHARED(uint8_t, ring);
    CU_STATIC_SHARED(gemm_head_t, head, );

    if (threadIdx.x == 128) {
        for (i = 0; i < shape::stages; i++) {
            cu_mbar_init(&head.full[i], 1);
            cu_mbar_init(&head.empty[i], GEMM_WARPS);
        }

        cu_fence_init();
    }

    cu_dep_wait();

    if (threadIdx.x < 32) {
        gemm_count<NT>(a, &head);
    }

    __syncthreads();

    if (threadIdx.x >= 256) {
        cu_regs_less<40>();

        if (threadIdx.x == 256) {
            gemm_fetch<TYPE, NT, PARTS>(a, &head, ring, &w, &w_up, &x,
                                        &scale);
        }

    } else {
        cu_regs_more<232>();
        gemm_compute<TYPE, NT, PARTS>(a, &head, ring);
    }
}


/* --- launching --------------------------------------------------------- */

template <cu_mm_type_t TYPE, int NT, int PARTS>
static int
gemm_launch(const cu_gemm_t *p, const gemm_launch_t *l)
{
    typedef gemm_shape_t<TYPE, NT, PARTS>  shape;

    int            rc;
    uint64_t       tiles;
    gemm_args_t    a;

    rc = CU_SMEM((gemm_kernel<TYPE, NT, PARTS>), shape::smem);

    if (rc != 0) {
        return rc;
    }

    a.m = p->g.m;
    a.offset = p->g.offset;
    a.maps = p->maps;
    a.y = p->g.y;
    a.py = p->g.py;
    a.ldy = p->g.ldy;
    a.groups = p->g.groups;
    a.rows = p->g.rows;
    a.n = p->g.n;
    a.k = p->g.k;
    a.narrow = p->narrow;
    a.add = p->add;
    a.m_up = p->m_up;
    a.maps_up = p->maps_up;
    a.act = p->act;

    /* there cannot be more */

    tiles = ((uint64_t) p->g.rows / NT + p->g.groups)
            * ((p->g.n + GEMM_N - 1) / GEMM_N);
    tiles = (tiles < l->blocks) ? tiles : l->blocks;

    return CU_LAUNCH((gemm_kernel<TYPE, NT, PARTS>), dim3((unsigned) tiles),
                     dim3(GEMM_THREADS), shape::smem,
                     (cudaStream_t) l->stream, a, p->map, p->map_up, l->x,
                     l->scale);
}


template <cu_mm_type_t TYPE, int PARTS>
static int
gemm_choose(const cu_gemm_t *p, const gemm_launch_t *l)
{
    switch (l->tile) {

    case 8:
        return gemm_launch<TYPE, 8, PARTS>(p, l);

    case 16:
        return gemm_launch<TYPE, 16, PARTS>(p, l);

    case 32:
        return gemm_launch<TYPE, 32, PARTS>(p, l);

    case 64:
        return gemm_launch<TYPE, 64, PARTS>(p, l);

    case 128:
        return gemm_launch<TYPE, 128, PARTS>(p, l);

    default:
        return (int) cudaErrorInvalidValue;
    }
}

#endif /* CU_GEMM_CUH */
