/*
 * What small kernels share: reductions over a warp and a block of threads, and
 * short types.
 */

#ifndef CU_UTIL_CUH
#define CU_UTIL_CUH


#define CU_ALL_LANES  0xffffffffu


static __device__ __forceinline__ float
cu_warp_sum(float x)
{
    int  i;

    for (i = 16; i > 0; i >>= 1) {
        x += __shfl_xor_sync(CU_ALL_LANES, x, i);
    }

    return x;
}


static __device__ __forceinline__ float
cu_warp_max(float x)
{
    int  i;

    for (i = 16; i > 0; i >>= 1) {
        x = fmaxf(x, __shfl_xor_sync(CU_ALL_LANES, x, i));
    }

    return x;
}


/* The sum over all threads, in all of them; `part` has 32 floats. */

static __device__ __forceinline__ float
cu_block_sum(float x, float *part)
{
    uint32_t  warp, lane, warps;

    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    warps = blockDim.x / 32;

    x = cu_warp_sum(x);

    if (lane == 0) {
        part[warp] = x;
    }

    __syncthreads();

    x = cu_warp_sum(lane < warps ? part[lane] : 0.0f);
    __syncthreads();

    return x;
}


static __device__ __forceinline__ float
cu_block_max(float x, float *part)
{
    uint32_t  warp, lane, warps;

    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    warps = blockDim.x / 32;

    x = cu_warp_max(x);

    if (lane == 0) {
        part[warp] = x;
    }

    __syncthreads();

    x = cu_warp_max(lane < warps ? part[lane] : -INFINITY);
    __syncthreads();

    return x;
}


static __device__ __forceinline__ float
cu_from_bf16(uint16_t h)
{
    return __uint_as_float((uint32_t) h << 16);
}


static __device__ __forceinline__ uint16_t
cu_to_bf16(float x)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}


static __device__ __forceinline__ uint8_t
cu_to_e4m3(float x)
{
    return __nv_fp8_e4m3(x).__x;
}


static __device__ __forceinline__ float
cu_from_e4m3(uint8_t code)
{
    __nv_fp8_e4m3  f;

    f.__x = code;
    return (float) f;
}

#endif /* CU_UTIL_CUH */
