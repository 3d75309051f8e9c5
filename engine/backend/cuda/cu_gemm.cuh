/*
 * The kernel of cu_gemm.h, a template over type, rows of a tile and matrices:
 * one, or two whose results become silu(first) * second.
 *
 * Shared memory, a stage of the ring: the matrix's part, the rows' part, and
 * (of rows in FP8) the rows' scales, from up to three rows before the first
 * one, as copies begin at multiples of 16 bytes.  BF16: 64 elements of K, 128 x 128 and NT
 * x 128 bytes with the 128-byte swizzle.  FP8: the same with 128 elements.
 * INT4: 128 elements, eight chunks as they lie in memory, and rows twice NT x
 * 128 bytes, or once in FP8.  The rows lie in front, matrices follow.
 *
 * full[s]: one arrival and the bytes of the stage's copies.  empty[s]: one
 * arrival for each of the eight computing warps.
 *
 * Registers of a computing thread, with NT rows: NT / 2 sums of each matrix,
 * FP8 as many of one again, INT4 with FP8 twice as many; outputs 64 w + 16
 * (warp % 4) + lane / 4 and 8 more of warpgroup w, rows 8 j + 2 (lane % 4) and
 * the next one.
 */

#ifndef CU_GEMM_CUH
#define CU_GEMM_CUH

#include "cu_launch.cuh"
#include "cu_ptx.cuh"
#include "backend/cuda/cu_gemm.h"
#include "backend/cuda/cu_gemm_int.h"
#include "cu_gemm_int4.cuh"


#define GEMM_N        128            /* outputs of a tile */
#define GEMM_THREADS  384            /* two warpgroups compute, one fetches */
#define GEMM_WARPS    8
#define GEMM_STAGES   16             /* at most */
#define GEMM_BAND     8              /* tiles of rows beside each other */


/* Types of matrices, each with the rows that it wants, and one with others. */

typedef enum {
    GEMM_BF16 = CU_MM_BF16,
    GEMM_FP8 = CU_MM_FP8,
    GEMM_INT4 = CU_MM_INT4,
    GEMM_INT4_FP8                    /* rows in FP8 */
} gemm_type_t;

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

    /* blocks that share a tile, each with a part of K, and their sums */
    uint32_t             split;
    float               *part;       /* [tiles][split][sums][256] */
    uint32_t            *count;      /* of the tile's blocks that are done */
} gemm_args_t;

template <gemm_type_t TYPE, int NT, int PARTS>
struct gemm_shape_t {
    static constexpr bool      codes = (TYPE == GEMM_INT4
                                        || TYPE == GEMM_INT4_FP8);
    static constexpr bool      scaled = (TYPE == GEMM_FP8
                                         || TYPE == GEMM_INT4_FP8);
    static constexpr uint32_t  k = (TYPE == GEMM_BF16) ? 64 : 128;
    static constexpr uint32_t  w = codes ? 8 * GEMM_CHUNK : GEMM_N * 128;
    static constexpr uint32_t  x = (TYPE == GEMM_INT4) ? 2 * NT * 128
                                                       : NT * 128;
    static constexpr uint32_t  scale = scaled ? 1024 : 0;
    static constexpr uint32_t  stage = PARTS * w + x + scale;

    /*
     * Making operands of codes takes about as long as fetching them: where
     * there are registers for it two blocks share a multiprocessor, so that
     * one's waits are the other one's turns.
     */

    static constexpr int       blocks = (codes && NT <= 32) ? 2 : 1;
    static constexpr int       regs_less = 40;
    static constexpr int       regs_more = (blocks == 2) ? 96 : 232;
    static_assert(4 * regs_less + 8 * regs_more
                  <= 12 * (65536 / blocks / GEMM_THREADS / 8 * 8),
                  "registers of three warpgroups");
    static constexpr uint32_t  room = (blocks == 2) ? CU_SMEM_HALF
                                                    : CU_SMEM_MAX;
    static constexpr uint32_t  most = (room - 8192) / stage;
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
    uint32_t  last;                  /* the tile's other blocks are done */
} gemm_head_t;

typedef struct {
    uint32_t  group;
    uint32_t  row;                   /* of x, the tile's first */
    uint32_t  count;                 /* rows that are of the group */
    uint32_t  col;                   /* the first output */
    uint32_t  slice;                 /* of K */
    int       again;                 /* the matrix's part is read again */
} gemm_tile_t;


#include "cu_gemm_store.cuh"


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
    t->slice = index % a.split;
    index /= a.split;

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


/* Where a slice of `blocks` of K begins; the next one's begin is its end. */

static __device__ __forceinline__ uint32_t
gemm_slice(const gemm_args_t &a, uint32_t slice, uint32_t blocks)
{
    return slice * blocks / a.split;
}


/* --- fetching ---------------------------------------------------------- */

/* INT4: panels of a tile, and where the first one begins. */

static __device__ __forceinline__ const uint8_t *
gemm_panels(const cu_matrix_t *m, const gemm_tile_t &t, uint32_t blocks)
{
    return (const uint8_t *) m[t.group].w
           + (size_t) (t.col / 16) * blocks * GEMM_CHUNK;
}


template <gemm_type_t TYPE, int NT, int PARTS>
static __device__ __forceinline__ void
gemm_fetch(const gemm_args_t &a, gemm_head_t *head, uint8_t *ring,
    const CUtensorMap *w, const CUtensorMap *w_up, const CUtensorMap *x,
    const CUtensorMap *scale)
{
    typedef gemm_shape_t<TYPE, NT, PARTS>  shape;

    int                 part;
    uint32_t            i, tile, s, turn, block, to, blocks, bytes, panels;
    uint32_t            known;
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

        if (!shape::codes && a.maps != NULL && t.group != known) {
            cu_map_acquire(map[0]);

            if (PARTS == 2) {
                cu_map_acquire(map[1]);
            }

            known = t.group;
        }

        if (shape::codes) {
            codes[0] = gemm_panels(a.m, t, blocks);
            codes[1] = (PARTS == 2) ? gemm_panels(a.m_up, t, blocks)
                                    : NULL;
            panels = (a.n - t.col + 15) / 16;
            panels = (panels < 8) ? panels : 8;
        }

        keep = t.again ? CU_KEEP_NORMAL : CU_KEEP_FIRST;
        bytes = shape::x
                + PARTS * (shape::codes ? panels * GEMM_CHUNK : shape::w);
        bytes += shape::scaled ? (NT + 4) * 4 : 0;

        to = gemm_slice(a, t.slice + 1, blocks);

        for (block = gemm_slice(a, t.slice, blocks); block < to; block++) {
            p = ring + s * shape::stage;

            cu_mbar_wait(&head->empty[s], ~turn & 1);
            cu_mbar_expect(&head->full[s], bytes);

#pragma unroll
            for (part = 0; part < PARTS; part++) {
                q = p + shape::x + part * shape::w;

                if constexpr (shape::codes) {
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

            if (TYPE == GEMM_INT4) {
                cu_tma_load_2d(p + NT * 128, x, &head->full[s],
                               (int) (block * 128 + 64), (int) t.row);
            }

            if (shape::scaled) {
                cu_tma_load_2d(p + shape::x + PARTS * shape::w, scale,
                               &head->full[s], (int) (t.row / 4 * 4),
                               (int) block);
            }

            if (++s == shape::stages) {
                s = 0;
                turn++;
            }
        }
    }
}


/* --- computing --------------------------------------------------------- */

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


/* FP8, the products of one stage, then their scales; the latter come early
 * where there are registers for them. */

template <int NT, int PARTS>
static __device__ __forceinline__ void
gemm_fp8(float *d, const uint8_t *w, const uint8_t *x, const float *scale,
    float factor, int first)
{
    constexpr int  ahead = (NT * PARTS <= 128) ? NT / 8 : 0;

    int     i, k;
    float   part[NT / 2];
    float2  s, early[ahead > 0 ? ahead : 1];

    cu_wgmma_hold<NT>(part);
    cu_wgmma_fence();

#pragma unroll
    for (k = 0; k < 4; k++) {
        cu_wgmma_e4m3<NT>(part, cu_desc_k(w + 32 * k), cu_desc_k(x + 32 * k),
                          k > 0);
    }

    cu_wgmma_commit();
    scale += 2 * (threadIdx.x % 4);

#pragma unroll
    for (i = 0; i < ahead; i++) {
        early[i] = make_float2(scale[8 * i], scale[8 * i + 1]);
    }

    cu_wgmma_wait<0>();
    cu_wgmma_hold<NT>(part);

#pragma unroll
    for (i = 0; i < NT / 8; i++) {
        s = (ahead > 0) ? early[i]
                        : make_float2(scale[8 * i], scale[8 * i + 1]);
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


/* A warp is through with a stage. */

static __device__ __forceinline__ void
gemm_release(uint64_t *empty)
{
    __syncwarp();

    if (threadIdx.x % 32 == 0) {
        cu_mbar_arrive(empty);
    }
}


template <gemm_type_t TYPE, int NT, int PARTS>
static __device__ __forceinline__ void
gemm_compute(const gemm_args_t &a, gemm_head_t *head, const uint8_t *ring)
{
    typedef gemm_shape_t<TYPE, NT, PARTS>  shape;

    int             part, half;
    float           d[PARTS][NT / 2], factor[PARTS], next[PARTS];
    uint32_t        tile, s, turn, last, block, from, to, blocks, warp, group;
    uint32_t        r[2][16];
    gemm_tile_t     t;
    const float    *factors[PARTS];
    const uint8_t  *x, *w;

    blocks = (a.k + shape::k - 1) / shape::k;
    s = 0;
    turn = 0;

    /* the same in all lanes, which the compiler does not know */

    warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    group = warp / 4;

    for (tile = blockIdx.x; gemm_tile<NT>(a, head, tile, &t);
         tile += gridDim.x)
    {
        last = 0;
        from = gemm_slice(a, t.slice, blocks);
        to = gemm_slice(a, t.slice + 1, blocks);

#pragma unroll
        for (part = 0; part < PARTS; part++) {
            const cu_matrix_t  *m = (part == 0) ? a.m : a.m_up;

            factors[part] = NULL;
            next[part] = 0.0f;

            if (TYPE == GEMM_FP8) {
                factors[part] = m[t.group].scale + (size_t) (t.col / 128)
                                                   * m[t.group].ld_scale;
                next[part] = factors[part][from];
            }
        }

        for (block = from; block < to; block++) {
            x = ring + s * shape::stage;
            w = x + shape::x;

#pragma unroll
            for (part = 0; part < PARTS; part++) {
                factor[part] = next[part];

                if (TYPE == GEMM_FP8 && block + 1 < to) {
                    next[part] = factors[part][block + 1];
                }
            }

            cu_mbar_wait(&head->full[s], turn & 1);

            if constexpr (TYPE == GEMM_BF16) {
                cu_wgmma_fence();

#pragma unroll
                for (part = 0; part < PARTS; part++) {
                    gemm_bf16<NT>(d[part],
                                  w + part * shape::w + group * 8192, x,
                                  block == from);
                }

                cu_wgmma_commit();

                /* the stage before this one has been read */

                cu_wgmma_wait<1>();

                if (block > from) {
                    gemm_release(&head->empty[last]);
                }

            } else if constexpr (TYPE == GEMM_FP8) {
#pragma unroll
                for (part = 0; part < PARTS; part++) {
                    gemm_fp8<NT, PARTS>(d[part],
                                        w + part * shape::w + group * 8192, x,
                                        (const float *) (w + PARTS * shape::w)
                                        + t.row % 4,
                                        factor[part], block == from);
                }

                gemm_release(&head->empty[s]);

            } else if constexpr (TYPE == GEMM_INT4_FP8) {
#pragma unroll
                for (part = 0; part < PARTS; part++) {
                    gemm_int4_fp8<NT>(d[part],
                                      w + part * shape::w
                                      + warp * GEMM_CHUNK, x,
                                      (const float *) (w + PARTS * shape::w)
                                      + t.row % 4, block == from);
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
                                  + warp * GEMM_CHUNK,
                                  (uint32_t) half,
                                  r[PARTS == 1 ? half : part]);
                    }

                    cu_wgmma_fence();

#pragma unroll
                    for (part = 0; part < PARTS; part++) {
                        gemm_int4<NT>(d[part], r[PARTS == 1 ? half : part],
                                      x + half * NT * 128,
                                      block == from && half == 0);
                    }

                    cu_wgmma_commit();
                    cu_wgmma_wait<PARTS == 1 ? 1 : 0>();

                    if (PARTS == 1 && block > from && half == 0) {
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

        if (TYPE == GEMM_BF16 || (TYPE == GEMM_INT4 && PARTS == 1)) {
            cu_wgmma_wait<0>();
            gemm_release(&head->empty[last]);
        }

#pragma unroll
        for (part = 0; part < PARTS; part++) {
            cu_wgmma_hold<NT>(d[part]);
        }

        if constexpr (NT <= 64) {
            if (a.split > 1 && !gemm_join<NT, PARTS>(a, head, tile, d)) {
                continue;
            }
        }

        if constexpr (PARTS == 1) {
            gemm_store<NT>(a, t, d[0]);

        } else {
            gemm_store_act<NT, shape::scaled>(a, head, t, d[0], d[1]);
        }
    }
}


#include "cu_gemm_rows.cuh"


template <gemm_type_t TYPE, int NT, int PARTS>
static __global__ void
__launch_bounds__(GEMM_THREADS, (gemm_shape_t<TYPE, NT, PARTS>::blocks))
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

    cu_begin();

    if (threadIdx.x < 32) {
        gemm_count<NT>(a, &head);
    }

    __syncthreads();

    if (threadIdx.x >= 256) {
        cu_regs_less<shape::regs_less>();

        if (threadIdx.x == 256) {
            gemm_fetch<TYPE, NT, PARTS>(a, &head, ring, &w, &w_up, &x,
                                        &scale);
        }

    } else {
        cu_regs_more<shape::regs_more>();

        if constexpr (TYPE == GEMM_FP8 && NT == ROWS_TILE) {
            gemm_compute_rows<PARTS>(a, &head, ring);

        } else {
            gemm_compute<TYPE, NT, PARTS>(a, &head, ring);
        }
    }
}


/* --- launching --------------------------------------------------------- */

template <gemm_type_t TYPE, int NT, int PARTS>
static int
gemm_launch(const cu_gemm_t *p, const gemm_launch_t *l)
{
    typedef gemm_shape_t<TYPE, NT, PARTS>  shape;

    int            rc;
    uint32_t       most;
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
    a.narrow = p->g.narrow;
    a.add = p->add;
    a.m_up = p->m_up;
    a.maps_up = p->maps_up;
    a.act = p->act;
    a.split = l->split;
    a.count = (uint32_t *) p->room;
    a.part = (float *) p->room + CU_GEMM_TILES;

    /* there cannot be more */

    tiles = ((uint64_t) p->g.rows / NT + p->g.groups)
            * ((p->g.n + GEMM_N - 1) / GEMM_N) * l->split;
    most = l->blocks * shape::blocks;
    tiles = (tiles < most) ? tiles : most;

    return CU_LAUNCH((gemm_kernel<TYPE, NT, PARTS>), dim3((unsigned) tiles),
                     dim3(GEMM_THREADS), shape::smem,
                     (cudaStream_t) l->stream, a, p->map, p->map_up, l->x,
                     l->scale);
}


template <gemm_type_t TYPE, int PARTS>
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
        if constexpr (TYPE != GEMM_INT4_FP8) {
            return gemm_launch<TYPE, 128, PARTS>(p, l);
        }

        break;
    }

    return (int) cudaErrorInvalidValue;
}

#endif /* CU_GEMM_CUH */
