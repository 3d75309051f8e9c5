/*
 * Products with quantised weights: AVX-512 with BF16.  As in
 * be_panels_simd.h, but two elements at a time.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_panels_pairs.h"


#define PAIRS_MANY  4                /* panels together */
#define PAIRS_ROWS  5


BE_INLINE void
pairs_tile(const uint16_t *a, size_t lda, uint32_t steps,
    const uint8_t *const *piece, float *c, size_t ldc, uint32_t n, int first,
    const uint32_t rows)
{
    vf_t      acc[PAIRS_ROWS][PAIRS_MANY];
    int32_t   pair;
    __m512i   w[PAIRS_MANY], x;
    uint32_t  i, j, t, lanes[PAIRS_MANY];

#pragma GCC unroll 4
    for (j = 0; j < PAIRS_MANY; j++) {
        lanes[j] = (n > j * VL) ? n - j * VL : 0;
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (j = 0; j < PAIRS_MANY; j++) {
            acc[i][j] = first ? vf_zero()
                              : pairs_disorder(vf_loadn(c + i * ldc + j * VL,
                                                        lanes[j]));
        }
    }

    for (t = 0; t < steps; t += 2) {
#pragma GCC unroll 4
        for (j = 0; j < PAIRS_MANY; j++) {
            w[j] = _mm512_load_si512(piece[j] + t * 32);
        }

#pragma GCC unroll 8
        for (i = 0; i < rows; i++) {
            memcpy(&pair, a + i * lda + t, sizeof(pair));
            x = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (j = 0; j < PAIRS_MANY; j++) {
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh) x,
                                             (__m512bh) w[j]);
            }
        }
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (j = 0; j < PAIRS_MANY; j++) {
            vf_storen(c + i * ldc + j * VL, pairs_order(acc[i][j]),
                      lanes[j]);
        }
    }
}


BE_INLINE void
pairs_rows(const uint16_t *a, size_t lda, uint32_t m, uint32_t steps,
    const uint8_t *const *piece, float *c, size_t ldc, uint32_t n, int first)
{
    uint32_t  i, rows, tiles;

    tiles = (m + PAIRS_ROWS - 1) / PAIRS_ROWS;

    for (i = 0; i < m; i += rows, tiles--) {
        rows = (m - i + tiles - 1) / tiles;

        switch (rows) {
        case 1:
            pairs_tile(a, lda, steps, piece, c, ldc, n, first, 1);
            break;
        case 2:
            pairs_tile(a, lda, steps, piece, c, ldc, n, first, 2);
            break;
        case 3:
            pairs_tile(a, lda, steps, piece, c, ldc, n, first, 3);
            break;
        case 4:
            pairs_tile(a, lda, steps, piece, c, ldc, n, first, 4);
            break;
        default:
            pairs_tile(a, lda, steps, piece, c, ldc, n, first, 5);
            break;
        }

        a += rows * lda;
        c += rows * ldc;
    }
}


BE_INLINE void
pairs_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const be_dtype_t dtype)
{
    size_t           lda;
    uint8_t          x[PAIRS_MANY][PAIRS_PIECE] __attribute__((aligned(64)));
    uint32_t         j, l, p, many, outs, steps;
    const uint8_t   *from, *piece[PAIRS_MANY];
    const uint16_t  *a;

    lda = ((size_t) k + PAIRS_PAD - 1) / PAIRS_PAD * PAIRS_PAD;
    a = (const uint16_t *) act + row * lda;

    for (j = 0; j < n; j += PAIRS_MANY * BE_PANEL) {
        outs = (n - j < PAIRS_MANY * BE_PANEL) ? n - j : PAIRS_MANY * BE_PANEL;
        many = (outs + BE_PANEL - 1) / BE_PANEL;

        /* Where there are no more outputs, nothing is stored. */

        for (p = 0; p < PAIRS_MANY; p++) {
            piece[p] = x[p < many ? p : 0];
        }

        for (l = 0; l < k; l += PAIRS_STEP) {
            steps = (lda - l < PAIRS_STEP) ? (uint32_t) (lda - l)
                                           : PAIRS_STEP;

            for (p = 0; p < many; p++) {
                from = w + (j / BE_PANEL + p) * ldw
                       + l / BE_CHUNK * be_quant_chunk(dtype);
                pairs_decode(from, l % BE_CHUNK / PAIRS_STEP, x[p], dtype);
            }

            pairs_rows(a + l, lda, m, steps, piece, c + j, ldc, outs, l == 0);
        }
    }
}


BE_PANEL_PRODUCT(be_panels_avx512bf16_f8)
{
    pairs_product(act, k, row, m, w, ldw, n, c, ldc, BE_F8E4M3);
}

#else

typedef int be_panels_avx512bf16_none_t;

#endif
