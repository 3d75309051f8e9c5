/*
 * Quantised weights as pairs of BF16, for the paths that multiply these: 64
 * elements of a panel become 32 lines [pair][16 outputs][2], which are two
 * tiles of the matrix unit.
 *
 * Bytes become floats as in be_panels_simd.h, but of two elements of an
 * output side by side: from each quarter of a line (four outputs by four
 * elements) two outputs go to one vector and two to another, and the
 * conversion to BF16 puts these one behind the other.  So the outputs of a
 * line are in the order 0 1, 4 5, 8 9, 12 13, 2 3, 6 7, 10 11, 14 15, and
 * pairs_order() puts sums right.
 */

#ifndef BE_PANELS_PAIRS_H
#define BE_PANELS_PAIRS_H

#include "backend/cpu/be_panels.h"
#include "backend/cpu/be_simd.h"


#define PAIRS_STEP   64              /* elements */
#define PAIRS_PIECE  2048            /* bytes that they become */
#define PAIRS_PAD    32              /* of packed activations */
#define PAIRS_AHEAD  4224            /* bytes to prefetch, a page and more */

#define PAIRS_BYTE1  0x2222222222222222ull   /* of each dword */
#define PAIRS_BYTE3  0x8888888888888888ull


/* Constants of a decoder: where bytes come from, for elements 0, 1 and 2, 3. */

typedef struct {
    __m512i  from[4];
    __m512i  base;                   /* 32768.0f */
} pairs_t;


/*
 * Puts bytes (element e and e + 1 of two outputs of each quarter) into byte
 * `at` of the dwords.
 */

BE_INLINE __m512i
pairs_from(uint32_t output, uint32_t element, uint32_t at)
{
    uint32_t  b;

    b = output * 4 + element;

    return _mm512_broadcast_i32x4(_mm_setr_epi32(
               (int) (b << (8 * at)), (int) ((b + 1) << (8 * at)),
               (int) ((b + 4) << (8 * at)), (int) ((b + 5) << (8 * at))));
}


BE_INLINE void
pairs_init(pairs_t *d, const be_dtype_t dtype)
{
    uint32_t  at;

    at = (dtype == BE_F8E4M3) ? 3 : 1;

    d->from[0] = pairs_from(0, 0, at);
    d->from[1] = pairs_from(2, 0, at);
    d->from[2] = pairs_from(0, 2, at);
    d->from[3] = pairs_from(2, 2, at);
    d->base = _mm512_set1_epi32(0x47000000);
}


/* Sums in order of the outputs from sums in order of a line, and back. */

BE_INLINE vf_t
pairs_order(vf_t x)
{
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11,
                                     4, 5, 12, 13, 6, 7, 14, 15), x);
}


BE_INLINE vf_t
pairs_disorder(vf_t x)
{
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13,
                                     2, 3, 6, 7, 10, 11, 14, 15), x);
}


/* Two lines from four elements, bytes of x with 128 added. */

BE_INLINE void
pairs_bytes(const pairs_t *d, __m512i x, vf_t s, vf_t s2, vf_t less,
    vf_t less2, uint8_t *out)
{
    vf_t  a, b;

    a = _mm512_castsi512_ps(_mm512_mask_shuffle_epi8(d->base, PAIRS_BYTE1, x,
                                                     d->from[0]));
    b = _mm512_castsi512_ps(_mm512_mask_shuffle_epi8(d->base, PAIRS_BYTE1, x,
                                                     d->from[1]));
    a = vf_fma(a, s, less);
    b = vf_fma(b, s2, less2);
    _mm512_store_si512(out, (__m512i) _mm512_cvtne2ps_pbh(b, a));

    a = _mm512_castsi512_ps(_mm512_mask_shuffle_epi8(d->base, PAIRS_BYTE1, x,
                                                     d->from[2]));
    b = _mm512_castsi512_ps(_mm512_mask_shuffle_epi8(d->base, PAIRS_BYTE1, x,
                                                     d->from[3]));
    a = vf_fma(a, s, less);
    b = vf_fma(b, s2, less2);
    _mm512_store_si512(out + 64, (__m512i) _mm512_cvtne2ps_pbh(b, a));
}


/* An e4m3 in the top byte, times s, the scale times 2^8. */

BE_INLINE vf_t
pairs_e4m3(__m512i x, vf_t s)
{
    vf_t     a;
    __m512i  y;

    /* (x >> 4 & mask) | base */

    y = _mm512_ternarylogic_epi32(_mm512_srli_epi32(x, 4),
                                  _mm512_set1_epi32(0x07f00000),
                                  _mm512_set1_epi32(0x38000000), 0xea);
    a = _mm512_castsi512_ps(y);
    a = _mm512_min_ps(a, vf_fma(a, vf_set1(2.0f), vf_set1(-0x1p-14f)));

    /* the sign of x */

    y = _mm512_ternarylogic_epi32(_mm512_castps_si512(a), x,
                                  _mm512_set1_epi32((int) 0x80000000), 0xf8);

    return vf_mul(_mm512_castsi512_ps(y), s);
}


BE_INLINE void
pairs_e4m3_line(const pairs_t *d, __m512i x, vf_t s, vf_t s2, uint8_t *out)
{
    vf_t  a, b;

    a = pairs_e4m3(_mm512_maskz_shuffle_epi8(PAIRS_BYTE3, x, d->from[0]), s);
    b = pairs_e4m3(_mm512_maskz_shuffle_epi8(PAIRS_BYTE3, x, d->from[1]), s2);
    _mm512_store_si512(out, (__m512i) _mm512_cvtne2ps_pbh(b, a));

    a = pairs_e4m3(_mm512_maskz_shuffle_epi8(PAIRS_BYTE3, x, d->from[2]), s);
    b = pairs_e4m3(_mm512_maskz_shuffle_epi8(PAIRS_BYTE3, x, d->from[3]), s2);
    _mm512_store_si512(out + 64, (__m512i) _mm512_cvtne2ps_pbh(b, a));
}


/* PAIRS_STEP elements of a chunk, from the first or from the middle. */

BE_INLINE void
pairs_decode(const uint8_t *chunk, uint32_t half, uint8_t *out,
    const be_dtype_t dtype)
{
    vf_t            s, s2, less, less2;
    __m512i         x, levels, low;
    pairs_t         d;
    uint32_t        g, i;
    const uint8_t  *code, *scale;

    pairs_init(&d, dtype);
    code = chunk + be_quant_scales(dtype)
           + half * (dtype == BE_INT4 ? PAIRS_STEP * 8 : PAIRS_STEP * 16);

    if (dtype == BE_F8E4M3) {
        s = vf_mul(vf_load(chunk), vf_set1(256.0f));
        s2 = _mm512_unpackhi_ps(s, s);
        s = _mm512_unpacklo_ps(s, s);

        for (i = 0; i < PAIRS_STEP / 4; i++) {
            _mm_prefetch(code + i * 64 + PAIRS_AHEAD, _MM_HINT_T0);
            pairs_e4m3_line(&d, _mm512_loadu_si512(code + i * 64), s, s2,
                            out + i * 128);
        }

        return;
    }

    levels = _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128(
                                  (const __m128i *) be_quant_levels)),
                              _mm512_set1_epi32((int) 0x80808080));
    low = _mm512_set1_epi32(0x0f0f0f0f);
    scale = chunk + half * 2 * BE_PANEL * 2;

    for (g = 0; g < PAIRS_STEP / BE_GROUP_INT4; g++) {
        s = vf_load_bf16(scale + g * BE_PANEL * 2);
        s2 = _mm512_unpackhi_ps(s, s);
        s = _mm512_unpacklo_ps(s, s);
        less = vf_mul(s, vf_set1(-32896.0f));
        less2 = vf_mul(s2, vf_set1(-32896.0f));

        for (i = 0; i < BE_GROUP_INT4 / 8; i++) {
            _mm_prefetch(code + PAIRS_AHEAD, _MM_HINT_T0);
            x = _mm512_loadu_si512(code);

            pairs_bytes(&d, _mm512_shuffle_epi8(levels,
                                                _mm512_and_si512(x, low)),
                        s, s2, less, less2, out);
            pairs_bytes(&d, _mm512_shuffle_epi8(levels, _mm512_and_si512(
                                _mm512_srli_epi32(x, 4), low)),
                        s, s2, less, less2, out + 128);

            code += 64;
            out += 256;
        }
    }
}

#endif /* BE_PANELS_PAIRS_H */
