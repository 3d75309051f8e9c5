/*
 * Products of groups of rows with a matrix for each (experts), on the matrix
 * units: y[p] = m[e] x[p] for the rows offset[e] … offset[e + 1] - 1 of x.
 * Counts stay on the device, so that a recorded step serves any routing; rows
 * need no padding, and groups without rows cost nothing.
 *
 *     BF16   x BF16, sums float32
 *     FP8    x and m e4m3fn with their scales (cu_mm.h); each 128 elements of
 *            K are summed apart, scaled and added in float32
 *     INT4   m as in be_quant.h (chunks of 16 outputs by 128).  x BF16: codes
 *            become level * scale, rounded to BF16, in registers.  x e4m3fn
 *            with scales, as for FP8: codes become levels, which e4m3fn has,
 *            and each 32 elements of K are summed apart and scaled with the
 *            matrix's scale, each 128 with that of x
 *
 * The matrix is the 64-row operand, so that one row of x costs little: tiles
 * are 128 outputs by 8 to 128 rows.  A block has a warp that fetches (TMA, a
 * ring of stages) and two warpgroups that compute; as many blocks as
 * multiprocessors take tiles in turn, those of one matrix beside each other.
 *
 * An output is summed along K in one order whatever the tile; CU_GEMM_FIXED
 * takes one tile size for all, so that nothing at all depends on how many rows
 * there are.
 *
 * Wanted: x at 16 bytes, x.ld * element size and x.ld_scale * 4 multiples of
 * 16; BF16 and FP8 matrices the same, FP8 scales anywhere; INT4 matrices at 16
 * bytes.  n and k are any.  At most CU_GEMM_GROUPS groups.
 */

#ifndef CU_GEMM_H
#define CU_GEMM_H

#include "backend/cuda/cu_map.h"
#include "backend/cuda/cu_mm.h"

#ifdef __cplusplus
extern "C" {
#endif


#define CU_GEMM_GROUPS  512
#define CU_GEMM_FIXED   64           /* rows of a tile */

/*
 * Blocks that may be at work on parts of K, and bytes of device memory for
 * their sums: counters of tiles, then 64 rows by 128 outputs of two matrices.
 */
#define CU_GEMM_TILES   1024
#define CU_GEMM_SPLIT   160
#define CU_GEMM_ROOM    (CU_GEMM_TILES * 4                                    \
                         + (size_t) CU_GEMM_SPLIT * 2 * 64 * 128 * 4)

/*
 * `g` as cu_mm_grouped_simple() takes it; g.offset NULL: one group of g.rows
 * rows.  `maps` [groups], in the device's memory, are what cu_gemm_map() made
 * of the matrices (not for INT4; with one group NULL, and `map` is used).
 * `tile`: 0, or the rows of a tile (8, 16, 32, 64, 128; the last one not for
 * INT4 with x in FP8).  `add`: adds to y; not with py.  x.scale says whether x is in FP8.
 *
 * `room`, with one group and `tile` 0: CU_GEMM_ROOM bytes, zero when they are
 * first used, of one stream.  Where there are fewer tiles than multiprocessors
 * several take parts of K then, whose sums are added in their order; how many
 * depends on the number of rows.
 *
 * With `m_up`, matrices of the same shape and type, the results of m and m_up
 * become silu(m x) * (m_up x) and go to `act` as the next product wants them,
 * BF16, or FP8 where x is: as by two products and cu_act().
 */

typedef struct {
    cu_mm_grouped_t      g;
    const CUtensorMap   *maps;
    CUtensorMap          map;
    cu_mm_type_t         type;
    uint32_t             tile;
    int                  add;
    void                *room;

    const cu_matrix_t   *m_up;
    const CUtensorMap   *maps_up;
    CUtensorMap          map_up;
    cu_act_t             act;
} cu_gemm_t;


/* The map of a matrix, BF16 or FP8; a cudaError_t. */
int cu_gemm_map(const cu_matrix_t *m, CUtensorMap *map);

/* Queued on `stream`; a cudaError_t.  cudaErrorInvalidValue: see "Wanted". */
int cu_gemm_grouped(const cu_gemm_t *p, void *stream);

/* The rows that a tile gets where p->tile is 0. */
uint32_t cu_gemm_tile(const cu_gemm_t *p);

/*
 * y (+)= x m^T, one matrix; p->m.w and its scale on the device, the struct
 * itself `m` in the device's memory.  As cu_mm_simple(), but batch is 1.
 */
int cu_gemm(const cu_mm_t *p, const cu_matrix_t *m, uint32_t tile,
    void *room, void *stream);

#ifdef __cplusplus
}
#endif

#endif /* CU_GEMM_H */
