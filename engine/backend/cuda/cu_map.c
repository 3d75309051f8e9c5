/*
 * Tensor maps, by the driver's own function, which is asked for by name so
 * that the engine needs no driver to start.
 */

#include <stdatomic.h>
#include <stddef.h>

#include "backend/cuda/cu_map.h"


#define MAP_DRIVER  12000            /* where the function is from */
#define MAP_SWIZZLE 128


typedef CUresult (*map_encode_f)(CUtensorMap *map, CUtensorMapDataType type,
    cuuint32_t rank, void *base, const cuuint64_t *dims,
    const cuuint64_t *strides, const cuuint32_t *box,
    const cuuint32_t *steps, CUtensorMapInterleave interleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
    CUtensorMapFloatOOBfill fill);


static int map_make(CUtensorMap *map, cu_element_t type, const void *base,
    uint32_t rank, const cuuint64_t *dims, const cuuint64_t *strides,
    const cuuint32_t *box);
static map_encode_f map_encode(int *rc);


static const uint32_t             map_size[] = { 1, 2, 4 };
static const CUtensorMapDataType  map_type[] = {
    CU_TENSOR_MAP_DATA_TYPE_UINT8,
    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    CU_TENSOR_MAP_DATA_TYPE_FLOAT32
};


int
cu_map_2d(CUtensorMap *map, cu_element_t type, const void *base,
    uint64_t cols, uint64_t rows, uint32_t box_cols, uint32_t box_rows)
{
    return cu_map_2d_ld(map, type, base, cols, rows, cols, box_cols,
                        box_rows);
}


int
cu_map_2d_ld(CUtensorMap *map, cu_element_t type, const void *base,
    uint64_t cols, uint64_t rows, uint64_t ld, uint32_t box_cols,
    uint32_t box_rows)
{
    cuuint32_t  box[2];
    cuuint64_t  dims[2], strides[1];

    dims[0] = cols;
    dims[1] = rows;
    strides[0] = ld * map_size[type];
    box[0] = box_cols;
    box[1] = box_rows;

    return map_make(map, type, base, 2, dims, strides, box);
}


int
cu_map_3d(CUtensorMap *map, cu_element_t type, const void *base,
    uint64_t cols, uint64_t rows, uint64_t ld, uint64_t count,
    uint64_t stride, uint32_t box_cols, uint32_t box_rows)
{
    cuuint32_t  box[3];
    cuuint64_t  dims[3], strides[2];

    dims[0] = cols;
    dims[1] = rows;
    dims[2] = count;
    strides[0] = ld * map_size[type];
    strides[1] = stride * map_size[type];
    box[0] = box_cols;
    box[1] = box_rows;
    box[2] = 1;

    return map_make(map, type, base, 3, dims, strides, box);
}


static int
map_make(CUtensorMap *map, cu_element_t type, const void *base,
    uint32_t rank, const cuuint64_t *dims, const cuuint64_t *strides,
    const cuuint32_t *box)
{
    int                 rc;
    map_encode_f        encode;
    CUtensorMapSwizzle  swizzle;

    static const cuuint32_t  steps[] = { 1, 1, 1 };

    encode = map_encode(&rc);

    if (encode == NULL) {
        return rc;
    }

    swizzle = (type != CU_F32 && box[0] * map_size[type] == MAP_SWIZZLE)
              ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE;

    rc = (int) encode(map, map_type[type], rank, (void *) base, dims, strides,
                      box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                      CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    return (rc == 0) ? cudaSuccess : cudaErrorInvalidValue;
}


static map_encode_f
map_encode(int *rc)
{
    void                                 *f;
    enum cudaDriverEntryPointQueryResult  result;

    static _Atomic(map_encode_f)  known;

    if (atomic_load(&known) == NULL) {
        f = NULL;
        *rc = (int) cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled",
                                                     &f, MAP_DRIVER,
                                                     cudaEnableDefault,
                                                     &result);

        if (*rc != 0 || result != cudaDriverEntryPointSuccess || f == NULL) {
            *rc = (*rc != 0) ? *rc : cudaErrorSymbolNotFound;
            return NULL;
        }

        atomic_store(&known, (map_encode_f) f);
    }

    *rc = 0;

    return atomic_load(&known);
}
