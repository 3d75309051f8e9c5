#include "cu_launch.cuh"
#include "cu_gemm.cuh"


int
cu_gemm_bf16(const cu_gemm_t *p, const gemm_launch_t *l)
{
    return (p->m_up == NULL) ? gemm_choose<GEMM_BF16, 1>(p, l)
                             : gemm_choose<GEMM_BF16, 2>(p, l);
}
