/*
 * Matrices in INT4: chunks of be_quant.h become a warpgroup's operand, in
 * registers, in BF16 or, where the rows are in FP8, in e4m3fn.
 */

#ifndef CU_GEMM_INT4_CUH
#define CU_GEMM_INT4_CUH


#define GEMM_CHUNK    1152           /* 16 outputs by 128 elements */
#define GEMM_SCALES   128            /* bytes of them in front */


/*
 * INT4: one half byte stands for BF16 `level`; these are the high and the low
 * bytes of the sixteen, for __byte_perm().
 */

#define GEMM_HIGH_0  0xc2c2c2c2u     /* -56 -72 -88 -112 */
#define GEMM_HIGH_1  0xc1c1c2c2u     /* -9 -20 -32 -44 */
#define GEMM_HIGH_2  0x42414100u     /* 32 22 11 0 */
#define GEMM_HIGH_3  0x42424242u     /* 96 72 56 44 */
#define GEMM_LOW_0   0x6090b0e0u
#define GEMM_LOW_1   0x10a00030u
#define GEMM_LOW_2   0x00b03000u
#define GEMM_LOW_3   0xc0906030u

/*
 * Four half bytes, 4 bits each of the lower half of `t`, as BF16: the first
 * and the third to `even`, the second and the fourth to `odd`.
 */

static __device__ __forceinline__ void
gemm_levels(uint32_t t, uint32_t *even, uint32_t *odd)
{
    uint32_t  at, upper, high, low;

    at = t & 0x7777;
    upper = 0x3210 | (t >> 1 & 0x4444);

    high = __byte_perm(__byte_perm(GEMM_HIGH_0, GEMM_HIGH_1, at),
                       __byte_perm(GEMM_HIGH_2, GEMM_HIGH_3, at), upper);
    low = __byte_perm(__byte_perm(GEMM_LOW_0, GEMM_LOW_1, at),
                      __byte_perm(GEMM_LOW_2, GEMM_LOW_3, at), upper);

    *even = __byte_perm(low, high, 0x6240);
    *odd = __byte_perm(low, high, 0x7351);
}


/*
 * A thread's registers of 16 elements of K, `step` of a chunk's 8: outputs o
 * and o + 8, elements 2 q, 2 q + 1 and 8 more, q = lane % 4.
 */

static __device__ __forceinline__ void
gemm_decode(const uint8_t *chunk, uint32_t o, uint32_t shift, uint32_t step,
    uint32_t *r)
{
    int              i;
    uint32_t         u, v, s;
    const uint8_t   *code;

#pragma unroll
    for (i = 0; i < 2; i++) {
        code = chunk + GEMM_SCALES + step * 128 + (o + 8 * i) * 4;

        u = *(const uint32_t *) code >> shift;
        v = *(const uint32_t *) (code + 64) >> shift;
        s = *(const uint16_t *) (chunk + step / 2 * 32 + (o + 8 * i) * 2);
        s |= s << 16;

        gemm_levels((u & 0x0f0f) | (v << 4 & 0xf0f0), &r[i], &r[i + 2]);
        r[i] = cu_mul_bf16(r[i], s);
        r[i + 2] = cu_mul_bf16(r[i + 2], s);
    }
}


/* INT4, half of a stage, 64 elements: registers, then products. */

static __device__ __forceinline__ void
gemm_half(const uint8_t *chunk, uint32_t half, uint32_t *r)
{
    int       k;
    uint32_t  o, shift;

    o = threadIdx.x % 32 / 4;
    shift = 16 * (threadIdx.x % 2) + 4 * (threadIdx.x % 4 / 2);

#pragma unroll
    for (k = 0; k < 4; k++) {
        gemm_decode(chunk, o, shift, half * 4 + k, r + 4 * k);
    }
}


template <int NT>
static __device__ __forceinline__ void
gemm_int4(float *d, const uint32_t *r, const uint8_t *x, int first)
{
    int  k;

#pragma unroll
    for (k = 0; k < 4; k++) {
        cu_wgmma_bf16_rs<NT>(d, r[4 * k], r[4 * k + 1], r[4 * k + 2],
                             r[4 * k + 3], cu_desc_k(x + 32 * k),
                             !first || k > 0);
    }
}


/* --- rows in FP8 --------------------------------------------------------- */

/* The levels are numbers of e4m3fn. */

#define GEMM_E4M3_0  0xe6e9ebeeu     /* -56 -72 -88 -112 */
#define GEMM_E4M3_1  0xd1dae0e3u     /* -9 -20 -32 -44 */
#define GEMM_E4M3_2  0x605b5300u     /* 32 22 11 0 */
#define GEMM_E4M3_3  0x6c696663u     /* 96 72 56 44 */

/*
 * A thread's registers of 32 elements of K, `group` of a chunk's 4: outputs o
 * and o + 8, elements 4 q … and 16 more, q = lane % 4.
 */

static __device__ __forceinline__ void
gemm_codes(const uint8_t *chunk, uint32_t o, uint32_t group, uint32_t *r)
{
    int       i;
    uint32_t  q, u, at, upper;

    q = threadIdx.x % 4;
    chunk += GEMM_SCALES + (group * 4 + q / 2) * 64 + o * 4;

#pragma unroll
    for (i = 0; i < 4; i++) {
        u = *(const uint32_t *) (chunk + i / 2 * 128 + i % 2 * 32);
        u = u >> (4 * (q % 2)) & 0x0f0f0f0f;

        /* four half bytes together */

        u = __byte_perm(u | u >> 4, 0, 0x4420);
        at = u & 0x7777;
        upper = 0x3210 | (u >> 1 & 0x4444);

        r[i] = __byte_perm(__byte_perm(GEMM_E4M3_0, GEMM_E4M3_1, at),
                           __byte_perm(GEMM_E4M3_2, GEMM_E4M3_3, at), upper);
    }
}


/*
 * One stage: each 32 elements of K, a group with its scale of the matrix, are
 * summed apart; the next group's registers are made while they are.
 */

template <int NT>
static __device__ __forceinline__ void
gemm_int4_fp8(float *d, const uint8_t *chunk, const uint8_t *x,
    const float *scale, int first)
{
    int              i, g;
    float            part[NT / 2], sum[NT / 2], s[2];
    float2           factor;
    uint32_t         o, r[2][4];
    const uint16_t  *scales;

    o = threadIdx.x % 32 / 4;
    scales = (const uint16_t *) chunk + o;
    gemm_codes(chunk, o, 0, r[0]);

#pragma unroll
    for (g = 0; g < 4; g++) {
        cu_wgmma_hold<NT>(part);
        cu_wgmma_fence();
        cu_wgmma_e4m3_rs<NT>(part, r[g % 2][0], r[g % 2][1], r[g % 2][2],
                             r[g % 2][3], cu_desc_k(x + 32 * g), 0);
        cu_wgmma_commit();

        s[0] = __uint_as_float((uint32_t) scales[16 * g] << 16);
        s[1] = __uint_as_float((uint32_t) scales[16 * g + 8] << 16);

        if (g < 3) {
            gemm_codes(chunk, o, (uint32_t) g + 1, r[(g + 1) % 2]);
        }

        cu_wgmma_wait<0>();
        cu_wgmma_hold<NT>(part);

#pragma unroll
        for (i = 0; i < NT / 2; i++) {
            sum[i] = __fmaf_rn(part[i], s[i / 2 % 2],
                               g == 0 ? 0.0f : sum[i]);
        }
    }

#pragma unroll
    for (i = 0; i < NT / 8; i++) {
        factor.x = scale[8 * i + 2 * (threadIdx.x % 4)];
        factor.y = scale[8 * i + 2 * (threadIdx.x % 4) + 1];

        d[4 * i] = __fmaf_rn(sum[4 * i], factor.x,
                             first ? 0.0f : d[4 * i]);
        d[4 * i + 1] = __fmaf_rn(sum[4 * i + 1], factor.y,
                                 first ? 0.0f : d[4 * i + 1]);
        d[4 * i + 2] = __fmaf_rn(sum[4 * i + 2], factor.x,
                                 first ? 0.0f : d[4 * i + 2]);
        d[4 * i + 3] = __fmaf_rn(sum[4 * i + 3], factor.y,
                                 first ? 0.0f : d[4 * i + 3]);
    }
}

#endif /* CU_GEMM_INT4_CUH */
