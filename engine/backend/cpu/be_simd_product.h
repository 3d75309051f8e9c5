/*
 * Products with weights in float32 and BF16 on vectors of floats, written once
 * for AVX2 and AVX-512; included by be_kernels_simd.h.
 *
 * An output has one vector of partial sums, lane l summing the elements l,
 * l + VL, l + 2 VL, … with fused multiply-add, and the lanes are added up in
 * the fixed tree of vf_sum4().  How many rows and columns are in registers
 * together changes nothing in that, nor where the inner dimension is cut, as
 * partial sums are kept; and what it is padded with multiplies zeros.
 *
 * Few rows take weights as they come from memory.  For more, a piece of some
 * columns is made floats in the L1 cache, and all rows pass over it.
 */

#ifndef BE_SIMD_PRODUCT_H
#define BE_SIMD_PRODUCT_H

#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_simd.h"


#define SIMD_PAD     16              /* floats, of packed rows */
#define SIMD_FEW     3               /* rows */
#define SIMD_FEW_COLS  4
#define SIMD_AHEAD   4096            /* bytes on, to ask for */
#define SIMD_PIECE   640             /* elements made floats */
#define SIMD_TILES   2               /* wide, the columns of a piece */
#define SIMD_BLOCK   48              /* rows whose partial sums are kept */

/* Of a register tile: 16 or 32 registers hold it and its inputs. */

#if defined(__AVX512F__)
#define SIMD_ROWS    6
#define SIMD_COLS    4
#else
#define SIMD_ROWS    4
#define SIMD_COLS    3
#endif

#define SIMD_STRIP   (SIMD_TILES * SIMD_COLS)


/* The first n, up to four, results of a row. */

BE_INLINE void
simd_store4(float *c, __m128 x, uint32_t n)
{
    if (n == 4) {
        _mm_storeu_ps(c, x);
        return;
    }

    if (n >= 2) {
        _mm_storel_pi((__m64 *) (void *) c, x);
        x = _mm_movehl_ps(x, x);
        c += 2;
    }

    if (n % 2 != 0) {
        _mm_store_ss(c, x);
    }
}


BE_INLINE vf_t
simd_weight(const uint8_t *w, uint32_t l, const int bf16)
{
    return bf16 ? vf_load_bf16(w + (size_t) l * 2)
                : vf_load(w + (size_t) l * 4);
}


BE_INLINE vf_t
simd_weightn(const uint8_t *w, uint32_t l, uint32_t n, const int bf16)
{
    return bf16 ? vf_loadn_bf16(w + (size_t) l * 2, n)
                : vf_loadn(w + (size_t) l * 4, n);
}


/* Up to SIMD_FEW rows by columns w[0] …, of which n are stored. */

BE_INLINE void
simd_few(const float *a, size_t lda, uint32_t k, const uint8_t *const *w,
    float *c, size_t ldc, uint32_t n, const uint32_t rows, const int bf16)
{
    vf_t            acc[SIMD_FEW][SIMD_FEW_COLS], b;
    uint32_t        i, j, l;
    const uint32_t  size = bf16 ? 2 : 4;

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 8
        for (j = 0; j < SIMD_FEW_COLS; j++) {
            acc[i][j] = vf_zero();
        }
    }

    for (l = 0; l + VL <= k; l += VL) {

        /* what columns follow, each line once */

#pragma GCC unroll 8
        for (j = 0; j < SIMD_FEW_COLS * VL * size / 64; j++) {
            _mm_prefetch(w[0] + (size_t) l * SIMD_FEW_COLS * size + j * 64
                         + SIMD_AHEAD, _MM_HINT_T1);
        }

#pragma GCC unroll 8
        for (j = 0; j < SIMD_FEW_COLS; j++) {
            b = simd_weight(w[j], l, bf16);
#pragma GCC unroll 8
            for (i = 0; i < rows; i++) {
                acc[i][j] = vf_fma(vf_load(a + i * lda + l), b, acc[i][j]);
            }
        }
    }

    if (l < k) {
#pragma GCC unroll 8
        for (j = 0; j < SIMD_FEW_COLS; j++) {
            b = simd_weightn(w[j], l, k - l, bf16);
#pragma GCC unroll 8
            for (i = 0; i < rows; i++) {
                acc[i][j] = vf_fma(vf_load(a + i * lda + l), b, acc[i][j]);
            }
        }
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
        simd_store4(c + i * ldc, vf_sum4(acc[i][0], acc[i][1], acc[i][2],
                                         acc[i][3]), n);
    }
}


BE_INLINE void
simd_product_few(const float *a, size_t lda, uint32_t k, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const int bf16)
{
    uint32_t        j, l, cols;
    const uint8_t  *wj[SIMD_FEW_COLS];

    for (j = 0; j < n; j += SIMD_FEW_COLS) {
        cols = (n - j < SIMD_FEW_COLS) ? n - j : SIMD_FEW_COLS;

        /* Columns past the end are the last one again, and not stored. */

        for (l = 0; l < SIMD_FEW_COLS; l++) {
            wj[l] = w + (j + (l < cols ? l : cols - 1)) * ldw;
        }

        switch (m) {
        case 1:
            simd_few(a, lda, k, wj, c + j, ldc, cols, 1, bf16);
            break;
        case 2:
            simd_few(a, lda, k, wj, c + j, ldc, cols, 2, bf16);
            break;
        default:
            simd_few(a, lda, k, wj, c + j, ldc, cols, SIMD_FEW, bf16);
            break;
        }
    }
}


/* n weights as floats, on to a multiple of VL with zeros. */

BE_INLINE void
simd_make(const uint8_t *w, uint32_t n, float *to, const int bf16)
{
    uint32_t  l;

    for (l = 0; l + VL <= n; l += VL) {
        _mm_prefetch(w + (size_t) l * (bf16 ? 2 : 4) + SIMD_AHEAD,
                     _MM_HINT_T1);
        vf_store(to + l, simd_weight(w, l, bf16));
    }

    if (l < n) {
        vf_store(to + l, simd_weightn(w, l, n - l, bf16));
    }
}


/* What is made of a piece: SIMD_STRIP columns, of which n are there. */

typedef struct {
    float     b[SIMD_STRIP][SIMD_PIECE];
    vf_t      part[SIMD_BLOCK][SIMD_STRIP];
    uint32_t  steps;                 /* a multiple of VL */
    uint32_t  n;
    int       first;                 /* else part has sums, */
    int       last;                  /* else they go there */
} simd_strip_t;


/* Rows row … of a block by columns col … of a strip. */

BE_INLINE void
simd_tile(simd_strip_t *s, uint32_t row, uint32_t col, const float *a,
    size_t lda, float *c, size_t ldc, const uint32_t rows)
{
    vf_t          acc[SIMD_ROWS][SIMD_COLS], b[SIMD_COLS], x;
    uint32_t      i, j, l, n;
    const float  *from;

    from = s->b[col];

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 8
        for (j = 0; j < SIMD_COLS; j++) {
            acc[i][j] = s->first ? vf_zero() : s->part[row + i][col + j];
        }
    }

    for (l = 0; l < s->steps; l += VL) {
#pragma GCC unroll 8
        for (j = 0; j < SIMD_COLS; j++) {
            b[j] = vf_load(from + j * SIMD_PIECE + l);
        }

#pragma GCC unroll 8
        for (i = 0; i < rows; i++) {
            x = vf_load(a + i * lda + l);
#pragma GCC unroll 8
            for (j = 0; j < SIMD_COLS; j++) {
                acc[i][j] = vf_fma(x, b[j], acc[i][j]);
            }
        }
    }

    n = (s->n - col < SIMD_COLS) ? s->n - col : SIMD_COLS;

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
        if (s->last) {
            simd_store4(c + i * ldc,
                        vf_sum4(acc[i][0], acc[i][1], acc[i][2],
                                acc[i][SIMD_COLS - 1]), n);
            continue;
        }

#pragma GCC unroll 8
        for (j = 0; j < SIMD_COLS; j++) {
            s->part[row + i][col + j] = acc[i][j];
        }
    }
}


/* `rows` rows by all columns of a strip. */

BE_INLINE void
simd_tiles(simd_strip_t *s, uint32_t row, const float *a, size_t lda,
    float *c, size_t ldc, uint32_t rows)
{
    uint32_t  j;

    for (j = 0; j < s->n; j += SIMD_COLS) {
        switch (rows) {
        case 1:
            simd_tile(s, row, j, a, lda, c + j, ldc, 1);
            break;
        case 2:
            simd_tile(s, row, j, a, lda, c + j, ldc, 2);
            break;
        case 3:
            simd_tile(s, row, j, a, lda, c + j, ldc, 3);
            break;
#if SIMD_ROWS > 4
        case 4:
            simd_tile(s, row, j, a, lda, c + j, ldc, 4);
            break;
        case 5:
            simd_tile(s, row, j, a, lda, c + j, ldc, 5);
            break;
#endif
        default:
            simd_tile(s, row, j, a, lda, c + j, ldc, SIMD_ROWS);
            break;
        }
    }
}


/* Up to SIMD_BLOCK rows. */

BE_INLINE void
simd_product_block(const float *a, size_t lda, uint32_t k, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const int bf16)
{
    uint32_t      i, j, l, rows, tiles, piece;
    simd_strip_t  s;

    for (j = 0; j < n; j += SIMD_STRIP) {
        s.n = (n - j < SIMD_STRIP) ? n - j : SIMD_STRIP;

        for (l = 0; l < k; l += piece) {
            piece = (k - l < SIMD_PIECE) ? k - l : SIMD_PIECE;
            s.steps = simd_padded(piece, VL);
            s.first = (l == 0);
            s.last = (l + piece == k);

            for (i = 0; i < s.n; i++) {
                simd_make(w + (j + i) * ldw + (size_t) l * (bf16 ? 2 : 4),
                          piece, s.b[i], bf16);
            }

            /* a tile of columns that are not there computes what was there */

            for ( /* void */ ; i % SIMD_COLS != 0; i++) {
                memset(s.b[i], 0, s.steps * sizeof(float));
            }

            tiles = (m + SIMD_ROWS - 1) / SIMD_ROWS;

            for (i = 0; i < m; i += rows, tiles--) {
                rows = (m - i + tiles - 1) / tiles;
                simd_tiles(&s, i, a + i * lda + l, lda, c + i * ldc + j, ldc,
                           rows);
            }
        }
    }
}


BE_INLINE void
simd_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const int bf16)
{
    size_t        lda;
    uint32_t      i, rows;
    const float  *a;

    lda = simd_padded(k, SIMD_PAD);
    a = (const float *) act + row * lda;

    if (m <= SIMD_FEW) {
        simd_product_few(a, lda, k, m, w, ldw, n, c, ldc, bf16);
        return;
    }

    for (i = 0; i < m; i += rows) {
        rows = (m - i < SIMD_BLOCK) ? m - i : SIMD_BLOCK;
        simd_product_block(a + i * lda, lda, k, rows, w, ldw, n,
                           c + i * ldc, ldc, bf16);
    }
}


static void
simd_product_f32(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    simd_product(act, k, row, m, w, ldw, n, c, ldc, 0);
}


static void
simd_product_bf16(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    simd_product(act, k, row, m, w, ldw, n, c, ldc, 1);
}

#endif /* BE_SIMD_PRODUCT_H */
