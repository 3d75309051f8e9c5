#include "cu_launch.cuh"
#include "cu_gemm.cuh"


int
cu_gemm_int4_fp8(const cu_gemm_t *p, const gemm_launch_t *l)
{
    return (p->m_up == NULL) ? gemm_choose<GEMM_INT4_FP8, 1>(p, l)
                             : gemm_choose<GEMM_INT4_FP8, 2>(p, l);
}
