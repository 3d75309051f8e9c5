#include "cu_launch.cuh"
#include "cu_gemm.cuh"


int
cu_gemm_int4(const cu_gemm_t *p, const gemm_launch_t *l)
{
    return gemm_choose<CU_MM_INT4>(p, l);
}
