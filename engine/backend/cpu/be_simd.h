/*
 * A vector of floats, in AVX-512 or AVX2 by what the including file is
 * compiled for.  The names are those of the operations; `n` variants take the
 * first n lanes, the others read as zero or are not written.
 */

#ifndef BE_SIMD_H
#define BE_SIMD_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "backend/cpu/be_kernels.h"

#define BE_INLINE  static inline __attribute__((always_inline))


#if defined(__AVX512F__)

#define VL  16

typedef __m512     vf_t;
typedef __mmask16  vmask_t;

BE_INLINE vmask_t
vmask(uint32_t n)
{
    return (vmask_t) ((n >= VL) ? 0xffff : (1u << n) - 1);
}


BE_INLINE vf_t
vf_load(const void *p)
{
    return _mm512_loadu_ps(p);
}


BE_INLINE vf_t
vf_loadn(const void *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps(vmask(n), p);
}


BE_INLINE void
vf_store(float *p, vf_t x)
{
    _mm512_storeu_ps(p, x);
}


BE_INLINE void
vf_storen(float *p, vf_t x, uint32_t n)
{
    _mm512_mask_storeu_ps(p, vmask(n), x);
}


/* VL numbers in BF16, widened exactly. */

BE_INLINE vf_t
vf_load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(
               _mm256_loadu_si256(p)), 16));
}


BE_INLINE vf_t
vf_loadn_bf16(const void *p, uint32_t n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(
               _mm256_maskz_loadu_epi16(vmask(n), p)), 16));
}


#define vf_set1(a)        _mm512_set1_ps(a)
#define vf_zero()         _mm512_setzero_ps()
#define vf_add(a, b)      _mm512_add_ps(a, b)
#define vf_sub(a, b)      _mm512_sub_ps(a, b)
#define vf_mul(a, b)      _mm512_mul_ps(a, b)
#define vf_div(a, b)      _mm512_div_ps(a, b)
#define vf_max(a, b)      _mm512_max_ps(a, b)
#define vf_fma(a, b, c)   _mm512_fmadd_ps(a, b, c)
#define vf_fnma(a, b, c)  _mm512_fnmadd_ps(a, b, c)
#define vf_rint(a)        _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT  \
                                                  | _MM_FROUND_NO_EXC)


/* The first n lanes of a, those of b after them. */

BE_INLINE vf_t
vf_first(vf_t a, vf_t b, uint32_t n)
{
    return _mm512_mask_blend_ps(vmask(n), b, a);
}


/* 2^x for whole x in the exponent's range */

BE_INLINE vf_t
vf_pow2(vf_t x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(
               _mm512_cvtps_epi32(x), _mm512_set1_epi32(127)), 23));
}


/* y where x is above (or not a number), else zero */

BE_INLINE vf_t
vf_if_above(vf_t x, float bound, vf_t y)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(bound),
                                                  _CMP_NLE_UQ), y);
}


/* z where x is above, else y */

BE_INLINE vf_t
vf_above_set(vf_t x, float bound, vf_t y, float z)
{
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, _mm512_set1_ps(bound),
                                                    _CMP_GT_OQ),
                              _mm512_set1_ps(z));
}


/* Rounded to BF16, nearest even; not-a-number stays so. */

BE_INLINE vf_t
vf_round_bf16(vf_t x)
{
    __m512i  u, r;

    u = _mm512_castps_si512(x);
    r = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    r = _mm512_add_epi32(u, _mm512_add_epi32(r, _mm512_set1_epi32(0x7fff)));
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                              _mm512_set1_epi32(0x7fc00000));

    return _mm512_castsi512_ps(_mm512_and_si512(r,
               _mm512_set1_epi32((int) 0xffff0000)));
}


/*
 * The sums of the lanes of four vectors.  Lanes are added in one fixed tree:
 * in each quarter (0 + 2) + (1 + 3), then quarters (0 + 2) + (1 + 3).
 */

BE_INLINE __m128
vf_sum4(vf_t a, vf_t b, vf_t c, vf_t d)
{
    __m512  ab, cd, s;
    __m256  h;

    ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));

    s = _mm512_add_ps(
            _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab),
                                                _mm512_castps_pd(cd))),
            _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab),
                                                _mm512_castps_pd(cd))));

    h = _mm256_add_ps(_mm512_castps512_ps256(s),
                      _mm512_extractf32x8_ps(s, 1));

    return _mm_add_ps(_mm256_castps256_ps128(h),
                      _mm256_extractf128_ps(h, 1));
}


BE_INLINE float
vf_largest(vf_t a)
{
    return _mm512_reduce_max_ps(a);
}

#else

#define VL  8

typedef __m256   vf_t;
typedef __m256i  vmask_t;

BE_INLINE vmask_t
vmask(uint32_t n)
{
    static const int32_t  bits[16] = {
        -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0
    };

    return _mm256_loadu_si256((const __m256i *)
                              (bits + 8 - ((n < VL) ? n : VL)));
}


BE_INLINE vf_t
vf_load(const void *p)
{
    return _mm256_loadu_ps(p);
}


BE_INLINE vf_t
vf_loadn(const void *p, uint32_t n)
{
    return _mm256_maskload_ps(p, vmask(n));
}


BE_INLINE void
vf_store(float *p, vf_t x)
{
    _mm256_storeu_ps(p, x);
}


BE_INLINE void
vf_storen(float *p, vf_t x, uint32_t n)
{
    _mm256_maskstore_ps(p, vmask(n), x);
}


/* VL numbers in BF16, widened exactly. */

BE_INLINE vf_t
vf_load_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(
               _mm_loadu_si128(p)), 16));
}


BE_INLINE vf_t
vf_loadn_bf16(const void *p, uint32_t n)
{
    uint16_t  h[VL] = { 0 };

    memcpy(h, p, (n < VL ? n : VL) * 2);

    return vf_load_bf16(h);
}


#define vf_set1(a)        _mm256_set1_ps(a)
#define vf_zero()         _mm256_setzero_ps()
#define vf_add(a, b)      _mm256_add_ps(a, b)
#define vf_sub(a, b)      _mm256_sub_ps(a, b)
#define vf_mul(a, b)      _mm256_mul_ps(a, b)
#define vf_div(a, b)      _mm256_div_ps(a, b)
#define vf_max(a, b)      _mm256_max_ps(a, b)
#define vf_fma(a, b, c)   _mm256_fmadd_ps(a, b, c)
#define vf_fnma(a, b, c)  _mm256_fnmadd_ps(a, b, c)
#define vf_rint(a)        _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT       \
                                             | _MM_FROUND_NO_EXC)


/* The first n lanes of a, those of b after them. */

BE_INLINE vf_t
vf_first(vf_t a, vf_t b, uint32_t n)
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(vmask(n)));
}


/* 2^x for whole x in the exponent's range */

BE_INLINE vf_t
vf_pow2(vf_t x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(
               _mm256_cvtps_epi32(x), _mm256_set1_epi32(127)), 23));
}


/* y where x is above (or not a number), else zero */

BE_INLINE vf_t
vf_if_above(vf_t x, float bound, vf_t y)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(bound),
                                       _CMP_NLE_UQ), y);
}


/* z where x is above, else y */

BE_INLINE vf_t
vf_above_set(vf_t x, float bound, vf_t y, float z)
{
    return _mm256_blendv_ps(y, _mm256_set1_ps(z),
                            _mm256_cmp_ps(x, _mm256_set1_ps(bound),
                                          _CMP_GT_OQ));
}


/* Rounded to BF16, nearest even; not-a-number stays so. */

BE_INLINE vf_t
vf_round_bf16(vf_t x)
{
    __m256i  u, r;

    u = _mm256_castps_si256(x);
    r = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    r = _mm256_add_epi32(u, _mm256_add_epi32(r, _mm256_set1_epi32(0x7fff)));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000),
            _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));

    return _mm256_castsi256_ps(_mm256_and_si256(r,
               _mm256_set1_epi32((int) 0xffff0000)));
}


/*
 * The sums of the lanes of four vectors.  Lanes are added in one fixed tree:
 * in each half (0 + 2) + (1 + 3), then the halves.
 */

BE_INLINE __m128
vf_sum4(vf_t a, vf_t b, vf_t c, vf_t d)
{
    __m256  ab, cd, s;

    ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));

    s = _mm256_add_ps(
            _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab),
                                                _mm256_castps_pd(cd))),
            _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab),
                                                _mm256_castps_pd(cd))));

    return _mm_add_ps(_mm256_castps256_ps128(s),
                      _mm256_extractf128_ps(s, 1));
}


BE_INLINE float
vf_largest(vf_t a)
{
    __m128  m;

    m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_movehdup_ps(m));

    return _mm_cvtss_f32(m);
}

#endif


BE_INLINE float
vf_sum(vf_t a)
{
    return _mm_cvtss_f32(vf_sum4(a, a, a, a));
}


/* As in the plain C kernels; not a number stays so. */

BE_INLINE vf_t
simd_exp(vf_t x)
{
    vf_t  n, r, y;

    n = vf_rint(vf_mul(x, vf_set1(BE_LOG2E)));
    r = vf_fnma(n, vf_set1(BE_LN2_HI), x);
    r = vf_fnma(n, vf_set1(BE_LN2_LO), r);

    y = vf_set1(BE_EXP_7);
    y = vf_fma(y, r, vf_set1(BE_EXP_6));
    y = vf_fma(y, r, vf_set1(BE_EXP_5));
    y = vf_fma(y, r, vf_set1(BE_EXP_4));
    y = vf_fma(y, r, vf_set1(BE_EXP_3));
    y = vf_fma(y, r, vf_set1(BE_EXP_2));
    y = vf_fma(y, r, vf_set1(1.0f));
    y = vf_fma(y, r, vf_set1(1.0f));
    y = vf_mul(y, vf_pow2(n));

    y = vf_if_above(x, BE_EXP_MIN, y);

    return vf_above_set(x, BE_EXP_MAX, y, INFINITY);
}


BE_INLINE uint32_t
simd_padded(uint32_t k, uint32_t pad)
{
    return (k + pad - 1) / pad * pad;
}

#endif /* BE_SIMD_H */
