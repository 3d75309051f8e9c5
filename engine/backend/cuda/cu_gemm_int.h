/* Between cu_gemm.c and the kernels, one file for each type. */

#ifndef CU_GEMM_INT_H
#define CU_GEMM_INT_H

#include "backend/cuda/cu_gemm.h"

#ifdef __cplusplus
extern "C" {
#endif


typedef struct {
    CUtensorMap   x;
    CUtensorMap   scale;             /* of x in FP8 */
    uint32_t      tile;
    uint32_t      blocks;            /* multiprocessors */
    uint32_t      split;             /* blocks of a tile */
    void         *stream;
} gemm_launch_t;


int cu_gemm_bf16(const cu_gemm_t *p, const gemm_launch_t *l);
int cu_gemm_fp8(const cu_gemm_t *p, const gemm_launch_t *l);
int cu_gemm_int4(const cu_gemm_t *p, const gemm_launch_t *l);
int cu_gemm_int4_fp8(const cu_gemm_t *p, const gemm_launch_t *l);

#ifdef __cplusplus
}
#endif

#endif /* CU_GEMM_INT_H */
