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
 * Of 16 BF16 in an AVX2 register the even ones are floats after a shift, the odd
 * ones without what is below them.  So packed rows of SIMD_TWO have the even of
 * each 16 elements before the odd, and "element" above is one of these.
 *
 * Few rows take weights as they come from memory.  For more, a piece of some
 * columns is made floats in the L1 cache, and all rows pass over it.
 */

#ifndef BE_SIMD_PRODUCT_H
#define BE_SIMD_PRODUCT_H

#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_simd.h"


#define SIMD_PAD     16              /* floats, of packed rows */
#define SIMD_FEW     8               /* rows */
#define SIMD_FEW_COLS  4             /* with AVX2 half as many by 4 rows */
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

/* What weights are. */

typedef enum {
    SIMD_F32 = 0,
    SIMD_BF16,
    SIMD_TWO                         /* BF16, rows in the order above */
} simd_type_t;


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


BE_INLINE uint32_t
simd_bytes(const simd_type_t type)
{
    return (type == SIMD_F32) ? 4 : 2;
}


/* Elements that are taken together. */

BE_INLINE uint32_t
simd_step(const simd_type_t type)
{
    return (type == SIMD_TWO) ? 2 * VL : VL;
}


/*
 * The i-th vector of those that begin at w, of which n elements are there, at
 * least a step or the last ones.
 */

BE_INLINE vf_t
simd_weight(const uint8_t *w, uint32_t n, const uint32_t i,
    const simd_type_t type)
{
#if VL == 8
    __m256i   x;
    uint16_t  last[2 * VL];

    if (type == SIMD_TWO) {
        if (n >= 2 * VL) {
            x = _mm256_loadu_si256((const __m256i *) w);

        } else {
            memset(last, 0, sizeof(last));
            memcpy(last, w, n * sizeof(uint16_t));
            x = _mm256_loadu_si256((const __m256i *) last);
        }

        return _mm256_castsi256_ps((i == 0)
                   ? _mm256_slli_epi32(x, 16)
                   : _mm256_and_si256(x, _mm256_set1_epi32((int)
                                                           0xffff0000)));
    }
#endif

    (void) i;

    if (n >= VL) {
        return (type == SIMD_F32) ? vf_load(w) : vf_load_bf16(w);
    }

    return (type == SIMD_F32) ? vf_loadn(w, n) : vf_loadn_bf16(w, n);
}


/* A step of `rows` rows by `cols` columns, l elements from their first. */

BE_INLINE void
simd_few_step(const float *a, size_t lda, const uint8_t *const *w,
    uint32_t l, uint32_t n, vf_t (*acc)[SIMD_FEW_COLS], const uint32_t rows,
    const uint32_t cols, const simd_type_t type)
{
    vf_t      b;
    uint32_t  i, j, v;

#pragma GCC unroll 2
    for (v = 0; v < simd_step(type) / VL; v++) {
#pragma GCC unroll 8
        for (j = 0; j < cols; j++) {
            b = simd_weight(w[j] + (size_t) l * simd_bytes(type), n, v, type);
#pragma GCC unroll 8
            for (i = 0; i < rows; i++) {
                acc[i][j] = vf_fma(vf_load(a + i * lda + l + v * VL), b,
                                   acc[i][j]);
            }
        }
    }
}


/*
 * Up to four rows by columns w[0] …, of which n are stored.  `ahead`: asks for
 * the lines of the columns that follow, each once, so many bytes on.
 */

BE_INLINE void
simd_few(const float *a, size_t lda, uint32_t k, const uint8_t *const *w,
    float *c, size_t ldc, uint32_t n, ptrdiff_t ahead, const uint32_t rows,
    const uint32_t cols, const simd_type_t type)
{
    vf_t            acc[4][SIMD_FEW_COLS], none;
    uint32_t        i, j, l;
    const uint32_t  step = simd_step(type);
    const uint32_t  bytes = SIMD_FEW_COLS * simd_bytes(type);

    none = vf_zero();

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 8
        for (j = 0; j < cols; j++) {
            acc[i][j] = none;
        }
    }

    for (l = 0; l + step <= k; l += step) {

        if (ahead != 0) {
#pragma GCC unroll 8
            for (j = 0; j < step * bytes; j += 64) {
                _mm_prefetch(w[0] + (size_t) l * bytes + j + ahead,
                             _MM_HINT_T1);
            }
        }

        simd_few_step(a, lda, w, l, step, acc, rows, cols, type);
    }

    if (l < k) {
        simd_few_step(a, lda, w, l, k - l, acc, rows, cols, type);
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
        simd_store4(c + i * ldc,
                    vf_sum4(acc[i][0], acc[i][1],
                            (cols > 2) ? acc[i][2] : none,
                            (cols > 2) ? acc[i][3] : none), n);
    }
}


/* `rows` of up to SIMD_FEW rows by four columns. */

BE_INLINE void
simd_few_rows(const float *a, size_t lda, uint32_t k,
    const uint8_t *const *w, float *c, size_t ldc, uint32_t n,
    ptrdiff_t ahead, uint32_t rows, const simd_type_t type)
{
    switch (rows) {
    case 1:
        simd_few(a, lda, k, w, c, ldc, n, ahead, 1, 4, type);
        break;
    case 2:
        simd_few(a, lda, k, w, c, ldc, n, ahead, 2, 4, type);
        break;
    case 3:
        simd_few(a, lda, k, w, c, ldc, n, ahead, 3, 4, type);
        break;
    default:
#if VL == 16
        simd_few(a, lda, k, w, c, ldc, n, ahead, 4, 4, type);
#else
        simd_few(a, lda, k, w, c, ldc, (n < 2) ? n : 2, ahead, 4, 2, type);

        if (n > 2) {
            simd_few(a, lda, k, w + 2, c + 2, ldc, n - 2, 0, 4, 2, type);
        }
#endif
        break;
    }
}


BE_INLINE void
simd_product_few(const float *a, size_t lda, uint32_t k, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const simd_type_t type)
{
    uint32_t        i, j, l, rows, cols, tiles;
    const uint8_t  *wj[SIMD_FEW_COLS];

    for (j = 0; j < n; j += SIMD_FEW_COLS) {
        cols = (n - j < SIMD_FEW_COLS) ? n - j : SIMD_FEW_COLS;

        /* Columns past the end are the last one again, and not stored. */

        for (l = 0; l < SIMD_FEW_COLS; l++) {
            wj[l] = w + (j + (l < cols ? l : cols - 1)) * ldw;
        }

        tiles = (m + 3) / 4;

        for (i = 0; i < m; i += rows, tiles--) {
            rows = (m - i + tiles - 1) / tiles;
            simd_few_rows(a + i * lda, lda, k, wj, c + i * ldc + j, ldc,
                          cols, (i == 0) ? SIMD_AHEAD : 0, rows, type);
        }
    }
}


/* n weights as floats, on to a whole step with zeros. */

BE_INLINE void
simd_make(const uint8_t *w, uint32_t n, float *to, const simd_type_t type)
{
    uint32_t        l, v, left;
    const uint32_t  step = simd_step(type);

    for (l = 0; l < n; l += step) {
        left = n - l;

        _mm_prefetch(w + SIMD_AHEAD, _MM_HINT_T1);

        if (left >= step) {
#pragma GCC unroll 2
            for (v = 0; v < step / VL; v++) {
                vf_store(to + l + v * VL, simd_weight(w, step, v, type));
            }

        } else {
            for (v = 0; v < step / VL; v++) {
                vf_store(to + l + v * VL, simd_weight(w, left, v, type));
            }
        }

        w += step * simd_bytes(type);
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
    const simd_type_t type)
{
    uint32_t      i, j, l, rows, tiles, piece;
    simd_strip_t  s;

    for (j = 0; j < n; j += SIMD_STRIP) {
        s.n = (n - j < SIMD_STRIP) ? n - j : SIMD_STRIP;

        for (l = 0; l < k; l += piece) {
            piece = (k - l < SIMD_PIECE) ? k - l : SIMD_PIECE;
            s.steps = simd_padded(piece, simd_step(type));
            s.first = (l == 0);
            s.last = (l + piece == k);

            for (i = 0; i < s.n; i++) {
                simd_make(w + (j + i) * ldw + (size_t) l * simd_bytes(type),
                          piece, s.b[i], type);
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
    const simd_type_t type)
{
    size_t        lda;
    uint32_t      i, rows;
    const float  *a;

    lda = simd_padded(k, SIMD_PAD);
    a = (const float *) act + row * lda;

    if (m <= SIMD_FEW) {
        simd_product_few(a, lda, k, m, w, ldw, n, c, ldc, type);
        return;
    }

    for (i = 0; i < m; i += rows) {
        rows = (m - i < SIMD_BLOCK) ? m - i : SIMD_BLOCK;
        simd_product_block(a + i * lda, lda, k, rows, w, ldw, n,
                           c + i * ldc, ldc, type);
    }
}


static void
simd_product_f32(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    simd_product(act, k, row, m, w, ldw, n, c, ldc, SIMD_F32);
}


static void
simd_product_bf16(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    simd_product(act, k, row, m, w, ldw, n, c, ldc, SIMD_BF16);
}

#endif /* BE_SIMD_PRODUCT_H */
