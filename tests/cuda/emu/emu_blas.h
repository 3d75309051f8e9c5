/*
 * A product of the stand-in for cuBLASLt, and what computes it.
 */

#ifndef EMU_BLAS_INT_H
#define EMU_BLAS_INT_H

#include <stddef.h>
#include <stdint.h>

#include "cublasLt.h"


struct cublasLtMatmulDesc {
    int32_t      trans[2];
    int32_t      mode[2];            /* of scales */
    const float *scale[2];
};

struct cublasLtMatrixLayout {
    int       type;
    uint64_t  rows;
    uint64_t  cols;
    int64_t   ld;
    int32_t   batch;
    int64_t   stride;
};

/* What cublasLtMatmulAlgo_t holds. */

struct algo_t {
    uint32_t  magic;
    uint32_t  types;
    uint32_t  align[2];              /* of A and B, of C and D */
    uint32_t  step;
    uint32_t  parts;
    uint64_t  m;
    uint64_t  k;
    uint64_t  batch;
};

struct product_t {
    cublasLtMatmulDesc    desc;
    cublasLtMatrixLayout  a, b, d;
    algo_t                algo;
    float                 alpha, beta;
    const uint8_t        *pa, *pb;
    const uint8_t        *pc;
    uint8_t              *pd;
};

static_assert(sizeof(algo_t) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm");


/* Of an element, in bytes. */

static inline size_t
blas_size(int type)
{
    return type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1;
}


/* Operands and result are in device memory, and checked. */
void emu_blas_run(const product_t *p);

#endif /* EMU_BLAS_INT_H */
