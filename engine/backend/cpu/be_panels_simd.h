/*
 * Products with quantised weights on vectors of floats, written once for
 * AVX2 and AVX-512: a path's file includes this and names the products.
 *
 * PANELS_STEP elements of as many panels as four vectors hold are made into
 * floats [element][output]; then rows of activations, each element broadcast,
 * pass over them.  Lanes are outputs, so nothing is added across lanes.
 *
 * A byte becomes a float without a conversion: with 128 added it goes into
 * the middle of the bits of 32768.0, whose unit there is one, and a
 * multiplication by the scale takes 32768 + 128 off.  Scales are BF16, so
 * that is exact.  An e4m3 goes where a float has its exponent and mantissa,
 * 2^8 too small; the implicit one that denormals do not have is taken off
 * where 2 a - 2^-14 is less than a.
 */

#ifndef BE_PANELS_SIMD_H
#define BE_PANELS_SIMD_H

#include "backend/cpu/be_panels.h"
#include "backend/cpu/be_simd.h"


#define PANELS_STEP   64             /* elements */
#define PANELS_OUT    (4 * VL)       /* outputs */
#define PANELS_MANY   (PANELS_OUT / BE_PANEL)
#define PANELS_PAD    16             /* of packed activations */
#define PANELS_AHEAD  2112           /* bytes to prefetch */

#if defined(__AVX512F__)
#define PANELS_ROWS   6
#else
#define PANELS_ROWS   3
#endif


#if VL == 16

typedef __m512i  vi_t;

#define vi_load(p)         _mm512_loadu_si512(p)
#define vi_set1(a)         _mm512_set1_epi32((int) (a))
#define vi_left(a, n)      _mm512_slli_epi32(a, n)
#define vi_right(a, n)     _mm512_srli_epi32(a, n)
#define vi_and(a, b)       _mm512_and_si512(a, b)
#define vi_xor(a, b)       _mm512_xor_si512(a, b)
#define vi_or(a, b)        _mm512_or_si512(a, b)
#define vi_shuffle(a, b)   _mm512_shuffle_epi8(a, b)
#define vi_quarter(p)      _mm512_broadcast_i32x4(_mm_loadu_si128(p))
#define vf_bits(a)         _mm512_castsi512_ps(a)
#define vf_min(a, b)       _mm512_min_ps(a, b)
#define vf_signed(a, b)    vf_bits(vi_or(_mm512_castps_si512(a), b))

#else

typedef __m256i  vi_t;

#define vi_load(p)         _mm256_loadu_si256((const __m256i *) (p))
#define vi_set1(a)         _mm256_set1_epi32((int) (a))
#define vi_left(a, n)      _mm256_slli_epi32(a, n)
#define vi_right(a, n)     _mm256_srli_epi32(a, n)
#define vi_and(a, b)       _mm256_and_si256(a, b)
#define vi_xor(a, b)       _mm256_xor_si256(a, b)
#define vi_or(a, b)        _mm256_or_si256(a, b)
#define vi_shuffle(a, b)   _mm256_shuffle_epi8(a, b)
#define vi_quarter(p)      _mm256_broadcastsi128_si256(_mm_loadu_si128(p))
#define vf_bits(a)         _mm256_castsi256_ps(a)
#define vf_min(a, b)       _mm256_min_ps(a, b)
#define vf_signed(a, b)    vf_bits(vi_or(_mm256_castps_si256(a), b))

#endif


/* Four elements, bytes of x with 128 added, to out, out + BE_PANEL, … */

BE_INLINE void
panels_bytes(vi_t x, vf_t s, vf_t less, float *out, const int round)
{
    vf_t      f;
    vi_t      y;
    uint32_t  j;

#pragma GCC unroll 4
    for (j = 0; j < 4; j++) {
        y = (j == 0) ? vi_left(x, 8) : (j == 1) ? x
          : (j == 2) ? vi_right(x, 8) : vi_right(x, 16);
        y = vi_or(vi_and(y, vi_set1(0xff00)), vi_set1(0x47000000));
        f = vf_fma(vf_bits(y), s, less);
        vf_store(out + j * BE_PANEL, round ? vf_round_bf16(f) : f);
    }
}


/* The same of e4m3; s is the scale times 2^8. */

BE_INLINE void
panels_e4m3(vi_t x, vf_t s, float *out, const int round)
{
    vf_t      f;
    vi_t      y, sign;
    uint32_t  j;

#pragma GCC unroll 4
    for (j = 0; j < 4; j++) {
        y = (j == 0) ? vi_left(x, 24) : (j == 1) ? vi_left(x, 16)
          : (j == 2) ? vi_left(x, 8) : x;
        sign = vi_and(y, vi_set1(0x80000000));
        y = vi_or(vi_and(vi_right(y, 4), vi_set1(0x07f00000)),
                  vi_set1(0x38000000));
        f = vf_min(vf_bits(y), vf_fma(vf_bits(y), vf_set1(2.0f),
                                      vf_set1(-0x1p-14f)));
        f = vf_mul(vf_signed(f, sign), s);
        vf_store(out + j * BE_PANEL, round ? vf_round_bf16(f) : f);
    }
}


/* PANELS_STEP elements of a chunk, from the first or from the middle. */

BE_INLINE void
panels_decode(const uint8_t *chunk, uint32_t half, float *out,
    const be_dtype_t dtype, const int round)
{
    vf_t            s, less;
    vi_t            x, levels;
    uint32_t        v, g, i;
    const uint8_t  *code, *scale;

    for (v = 0; v < BE_PANEL; v += VL) {

        code = chunk + be_quant_scales(dtype) + v * 4
               + half * (dtype == BE_INT4 ? PANELS_STEP * 8
                                          : PANELS_STEP * 16);

        if (dtype == BE_F8E4M3) {
            s = vf_mul(vf_load(chunk + v * 4), vf_set1(256.0f));

            for (i = 0; i < PANELS_STEP / 4; i++) {
                _mm_prefetch(code + i * 64 + PANELS_AHEAD, _MM_HINT_T0);
                panels_e4m3(vi_load(code + i * 64), s,
                            out + i * 4 * BE_PANEL + v, round);
            }

            continue;
        }

        if (dtype == BE_INT8) {
            s = vf_load_bf16(chunk + (half * BE_PANEL + v) * 2);
            less = vf_mul(s, vf_set1(-32896.0f));

            for (i = 0; i < PANELS_STEP / 4; i++) {
                _mm_prefetch(code + i * 64 + PANELS_AHEAD, _MM_HINT_T0);
                x = vi_xor(vi_load(code + i * 64), vi_set1(0x80808080));
                panels_bytes(x, s, less, out + i * 4 * BE_PANEL + v, round);
            }

            continue;
        }

        levels = vi_xor(vi_quarter((const __m128i *) be_quant_levels),
                        vi_set1(0x80808080));
        scale = chunk + (half * 2 * BE_PANEL + v) * 2;

        for (g = 0; g < PANELS_STEP / BE_GROUP_INT4; g++) {
            s = vf_load_bf16(scale + g * BE_PANEL * 2);
            less = vf_mul(s, vf_set1(-32896.0f));

            for (i = 0; i < BE_GROUP_INT4 / 8; i++) {
                _mm_prefetch(code + PANELS_AHEAD, _MM_HINT_T0);
                x = vi_load(code);

                panels_bytes(vi_shuffle(levels,
                                        vi_and(x, vi_set1(0x0f0f0f0f))),
                             s, less, out + v, round);
                panels_bytes(vi_shuffle(levels,
                                        vi_and(vi_right(x, 4),
                                               vi_set1(0x0f0f0f0f))),
                             s, less, out + 4 * BE_PANEL + v, round);

                code += 64;
                out += 8 * BE_PANEL;
            }
        }

        out -= PANELS_STEP * BE_PANEL;
    }
}


/* `rows` rows by four vectors of outputs, of which n are there. */

BE_INLINE void
panels_tile(const float *a, size_t lda, uint32_t steps,
    const float *const *piece, float *c, size_t ldc, uint32_t n, int first,
    const uint32_t rows)
{
    vf_t      acc[PANELS_ROWS][4], w[4], x;
    uint32_t  i, j, t, lanes[4];

#pragma GCC unroll 4
    for (j = 0; j < 4; j++) {
        lanes[j] = (n > j * VL) ? n - j * VL : 0;
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (j = 0; j < 4; j++) {
            acc[i][j] = first ? vf_zero()
                              : vf_loadn(c + i * ldc + j * VL, lanes[j]);
        }
    }

    for (t = 0; t < steps; t++) {
#pragma GCC unroll 4
        for (j = 0; j < 4; j++) {
            w[j] = vf_load(piece[j * VL / BE_PANEL] + t * BE_PANEL
                           + j * VL % BE_PANEL);
        }

#pragma GCC unroll 8
        for (i = 0; i < rows; i++) {
            x = vf_set1(a[i * lda + t]);
#pragma GCC unroll 4
            for (j = 0; j < 4; j++) {
                acc[i][j] = vf_fma(x, w[j], acc[i][j]);
            }
        }
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (j = 0; j < 4; j++) {
            vf_storen(c + i * ldc + j * VL, acc[i][j], lanes[j]);
        }
    }
}


/* All rows over a piece. */

BE_INLINE void
panels_rows(const float *a, size_t lda, uint32_t m, uint32_t steps,
    const float *const *piece, float *c, size_t ldc, uint32_t n, int first)
{
    uint32_t  i, rows, tiles;

    tiles = (m + PANELS_ROWS - 1) / PANELS_ROWS;

    for (i = 0; i < m; i += rows, tiles--) {
        rows = (m - i + tiles - 1) / tiles;

        switch (rows) {
        case 1:
            panels_tile(a, lda, steps, piece, c, ldc, n, first, 1);
            break;
        case 2:
            panels_tile(a, lda, steps, piece, c, ldc, n, first, 2);
            break;
        case 3:
            panels_tile(a, lda, steps, piece, c, ldc, n, first, 3);
            break;
#if PANELS_ROWS > 3
        case 4:
            panels_tile(a, lda, steps, piece, c, ldc, n, first, 4);
            break;
        case 5:
            panels_tile(a, lda, steps, piece, c, ldc, n, first, 5);
            break;
        default:
            panels_tile(a, lda, steps, piece, c, ldc, n, first, 6);
            break;
#endif
        }

        a += rows * lda;
        c += rows * ldc;
    }
}


BE_INLINE void
panels_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const be_dtype_t dtype, const int round)
{
    float           x[PANELS_MANY][PANELS_STEP * BE_PANEL]
                    __attribute__((aligned(64)));
    size_t          lda;
    uint32_t        j, l, p, many, outs, steps;
    const float    *a, *piece[PANELS_MANY];
    const uint8_t  *from;

    lda = ((size_t) k + PANELS_PAD - 1) / PANELS_PAD * PANELS_PAD;
    a = (const float *) act + row * lda;

    for (j = 0; j < n; j += PANELS_OUT) {
        outs = (n - j < PANELS_OUT) ? n - j : PANELS_OUT;
        many = (outs + BE_PANEL - 1) / BE_PANEL;

        /* Where there are no more outputs, nothing is stored. */

        for (p = 0; p < PANELS_MANY; p++) {
            piece[p] = x[p < many ? p : 0];
        }

        for (l = 0; l < k; l += PANELS_STEP) {
            steps = (lda - l < PANELS_STEP) ? (uint32_t) (lda - l)
                                            : PANELS_STEP;

            for (p = 0; p < many; p++) {
                from = w + (j / BE_PANEL + p) * ldw
                       + l / BE_CHUNK * be_quant_chunk(dtype);
                panels_decode(from, l % BE_CHUNK / PANELS_STEP, x[p], dtype,
                              round);
            }

            panels_rows(a + l, lda, m, steps, piece, c + j, ldc, outs,
                        l == 0);
        }
    }
}


#define PANELS(name, dtype, round)                                           \
    BE_PANEL_PRODUCT(name)                                                   \
    {                                                                        \
        panels_product(act, k, row, m, w, ldw, n, c, ldc, dtype, round);     \
    }

#endif /* BE_PANELS_SIMD_H */
