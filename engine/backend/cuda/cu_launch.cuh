/*
 * How kernels are written here, so that one source runs on a GPU (nvcc) and
 * on any CPU (g++ with -DCU_EMU, tests/cuda/emu).  Every .cu includes this
 * file first.
 *
 *     static __global__ void
 *     kernel(int *p) {
 *         CU_STATIC_SHARED(float, sum, [32]);
 *         CU_SHARED(tiles_t, tiles);        dynamic, aligned to 1024
 *
 *         cu_begin();                       before memory is touched
 *         ...
 *     }
 *
 *     return CU_LAUNCH(kernel, grid, block, smem_bytes, stream, p);
 *
 * A launch returns a cudaError_t as int.  CU_LAUNCH_COOP has all blocks on
 * the device at once, for kernels whose blocks wait for each other.  Kernels
 * with commas in their template arguments go in parentheses.
 *
 * With CU_EARLY (make CUDA_EARLY=1) launches are programmatic dependent ones:
 * a kernel is brought onto the device while the one in front of it still runs,
 * and waits in cu_begin() until that is done; from then on the kernel behind it
 * may come.  The emulator always has it, and does not let threads end without.
 * It has not run on a GPU.
 *
 * CU_SMEM(kernel, bytes) raises the limit of dynamic shared memory, needed
 * above 48 KB, once for each kernel.
 *
 * Not used: __shared__ and extern __shared__ as such, <<< >>>, cooperative
 * groups, textures, device printf, recursion, inline PTX outside of
 * cu_ptx.cuh.
 */

#ifndef CU_LAUNCH_CUH
#define CU_LAUNCH_CUH

#include <stddef.h>
#include <stdint.h>


#define CU_PLAIN  0
#define CU_DEP    1
#define CU_COOP   2

#ifdef CU_EARLY
#define CU_USUAL  CU_DEP
#else
#define CU_USUAL  CU_PLAIN
#endif

#define CU_SMEM_MAX   232448         /* dynamic, of a block on sm_90 */
#define CU_SMEM_HALF  115712         /* of two blocks on a multiprocessor */

#define CU_LAUNCH(kernel, grid, block, smem, stream, ...)                     \
    cu_launch(#kernel, CU_USUAL, kernel, grid, block, smem, stream,           \
              ##__VA_ARGS__)

#define CU_LAUNCH_COOP(kernel, grid, block, smem, stream, ...)                \
    cu_launch(#kernel, CU_COOP, kernel, grid, block, smem, stream,            \
              ##__VA_ARGS__)


#ifdef CU_EMU

#include "emu.h"

#else

#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>


extern __shared__ __align__(1024) unsigned char  cu_dynamic_shared[];

#define CU_SHARED(type, name)                                                 \
    type *name = reinterpret_cast<type *>(cu_dynamic_shared)

#define CU_STATIC_SHARED(type, name, dims)                                    \
    __shared__ type name dims

#define CU_SMEM(kernel, bytes)                                                \
    ((int) cudaFuncSetAttribute((const void *) (kernel),                      \
        cudaFuncAttributeMaxDynamicSharedMemorySize, (int) (bytes)))


static __device__ __forceinline__ void
cu_begin(void)
{
#ifdef CU_EARLY
    cudaGridDependencySynchronize();
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}


template <typename... P, typename... A>
static inline int
cu_launch(const char *, int how, void (*kernel)(P...), dim3 grid, dim3 block,
    size_t smem, cudaStream_t stream, A... args)
{
    cudaLaunchConfig_t     conf = {};
    cudaLaunchAttribute_st attr = {};

    conf.gridDim = grid;
    conf.blockDim = block;
    conf.dynamicSmemBytes = smem;
    conf.stream = stream;

    if (how == CU_DEP) {
        attr.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attr.val.programmaticStreamSerializationAllowed = 1;
        conf.attrs = &attr;
        conf.numAttrs = 1;
    }

    if (how == CU_COOP) {
        attr.id = cudaLaunchAttributeCooperative;
        attr.val.cooperative = 1;
        conf.attrs = &attr;
        conf.numAttrs = 1;
    }

    return (int) cudaLaunchKernelEx(&conf, kernel, P(args)...);
}

#endif /* CU_EMU */

#endif /* CU_LAUNCH_CUH */
