/*
 * Descriptions of matrices in global memory for bulk copies (TMA), made on
 * the host and given to kernels by value:
 *
 *     const __grid_constant__ CUtensorMap map
 */

#ifndef CU_MAP_H
#define CU_MAP_H

#include <stdint.h>

#include <cuda.h>
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif


typedef enum {
    CU_BYTES = 0,                    /* e4m3fn, codes */
    CU_BF16,
    CU_F32
} cu_element_t;

/*
 * A row-major matrix of `rows` rows of `cols` elements, `ld` elements apart,
 * copied by boxes of box_rows x box_cols.  Base and rows are aligned to 16
 * bytes; a box has at most 256 rows.  Where a box's row is 128 bytes, and not
 * float32, it has the 128-byte swizzle in shared memory, else none.  A cudaError_t; the driver's refusal is cudaErrorInvalidValue.
 */
int cu_map_2d_ld(CUtensorMap *map, cu_element_t type, const void *base,
    uint64_t cols, uint64_t rows, uint64_t ld, uint32_t box_cols,
    uint32_t box_rows);

/* Rows without gaps. */
int cu_map_2d(CUtensorMap *map, cu_element_t type, const void *base,
    uint64_t cols, uint64_t rows, uint32_t box_cols, uint32_t box_rows);

/* `count` such matrices, `stride` elements apart, as a third dimension. */
int cu_map_3d(CUtensorMap *map, cu_element_t type, const void *base,
    uint64_t cols, uint64_t rows, uint64_t ld, uint64_t count,
    uint64_t stride, uint32_t box_cols, uint32_t box_rows);

#ifdef __cplusplus
}
#endif

#endif /* CU_MAP_H */
