/*
 * The AVX-512 kernels with the BF16 product of pairs: vdpbf16ps adds the
 * products of two neighbouring elements to a lane, without rounding between
 * and with denormals as zeros.  In F32 it is the AVX-512 path.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_kernels_simd.h"
#include "backend/cpu/be_panels.h"


#define BF16_PAD     32              /* elements of a vector */
#define BF16_ROWS    6               /* of a register tile */
#define BF16_COLS    4
#define BF16_VALUES  12


static size_t bf16_size(uint32_t rows, uint32_t k);
static void bf16_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);
static void bf16_product(const void *act, uint32_t k, uint32_t row,
    uint32_t m, const uint8_t *w, size_t ldw, uint32_t n, float *c,
    size_t ldc);
static void bf16_value(be_value_t *value);


const be_kernels_t  be_kernels_avx512bf16 = {
    .path = "avx512bf16",
    .mode = {
        [BE_F32] = {
            .gemm[BE_F32] = { 1, simd_size, simd_pack, simd_product_f32 },
            .gemm[BE_BF16] = { 1, simd_size, simd_pack, simd_product_bf16 },
            BE_PANEL_GEMMS(1, simd_size, simd_pack, be_panels_avx512),
            .prob_size = sizeof(float),
            .value_size = simd_value_size,
            .value = simd_value_f32,
            .softmax = simd_softmax
        },
        [BE_BF16] = {
            .gemm[BE_BF16] = { 1, bf16_size, bf16_pack, bf16_product },
            BE_PANEL_GEMMS(1, bf16_size, bf16_pack, be_panels_avx512bf16),
            .prob_size = sizeof(uint16_t),
            .value_size = simd_value_size,
            .value = bf16_value,
            .softmax = simd_softmax_bf16
        }
    },
    .norm = simd_norm,
    .swiglu = simd_swiglu,
    .axpy = simd_axpy,
    .add = simd_add,
    .scale = simd_scale,
    .merge = simd_merge
};


static size_t
bf16_size(uint32_t rows, uint32_t k)
{
    return (size_t) rows * simd_padded(k, BF16_PAD) * sizeof(uint16_t);
}


static void
bf16_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint32_t   i, j, end;
    uint16_t  *a;

    end = simd_padded(n, BF16_PAD);

    for (i = 0; i < m; i++) {
        a = (uint16_t *) act + (size_t) (row + i) * simd_padded(k, BF16_PAD)
            + col;

        for (j = 0; j < end; j += VL) {
            _mm256_storeu_si256((__m256i *) (a + j),
                (__m256i) _mm512_cvtneps_pbh(vf_loadn(x[i] + j,
                                                (j < n) ? n - j : 0)));
        }
    }
}


BE_INLINE __m512i
bf16_load(const void *p)
{
    return _mm512_loadu_si512(p);
}


BE_INLINE __m512i
bf16_loadn(const void *p, uint32_t n)
{
    return _mm512_maskz_loadu_epi16((n >= 32) ? 0xffffffff : (1u << n) - 1,
                                    p);
}


BE_INLINE void
bf16_tile(const uint16_t *a, size_t lda, uint32_t k, const uint8_t *const *w,
    float *c, size_t ldc, uint32_t n, const uint32_t rows)
{
    vf_t      acc[BF16_ROWS][BF16_COLS];
    __m512i   b[BF16_COLS], x;
    uint32_t  i, j, l;

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 8
        for (j = 0; j < BF16_COLS; j++) {
            acc[i][j] = vf_zero();
        }
    }

    for (l = 0; l < k; l += BF16_PAD) {
#pragma GCC unroll 8
        for (j = 0; j < BF16_COLS; j++) {
            b[j] = (k - l >= BF16_PAD) ? bf16_load(w[j] + (size_t) l * 2)
                   : bf16_loadn(w[j] + (size_t) l * 2, k - l);
        }

#pragma GCC unroll 8
        for (i = 0; i < rows; i++) {
            x = bf16_load(a + i * lda + l);
#pragma GCC unroll 8
            for (j = 0; j < BF16_COLS; j++) {
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh) x,
                                             (__m512bh) b[j]);
            }
        }
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
        simd_store4(c + i * ldc, vf_sum4(acc[i][0], acc[i][1], acc[i][2],
                                         acc[i][3]), n);
    }
}


static void
bf16_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    float           *to;
    size_t           lda;
    uint32_t         i, j, l, rows, tiles, cols;
    const uint8_t   *wj[BF16_COLS];
    const uint16_t  *a;

    lda = simd_padded(k, BF16_PAD);

    for (j = 0; j < n; j += BF16_COLS) {
        cols = (n - j < BF16_COLS) ? n - j : BF16_COLS;

        for (l = 0; l < BF16_COLS; l++) {
            wj[l] = w + (j + (l < cols ? l : cols - 1)) * ldw;
        }

        tiles = (m + BF16_ROWS - 1) / BF16_ROWS;

        for (i = 0; i < m; i += rows, tiles--) {
            rows = (m - i + tiles - 1) / tiles;
            a = (const uint16_t *) act + (row + i) * lda;
            to = c + i * ldc + j;

            switch (rows) {
            case 1:
                bf16_tile(a, lda, k, wj, to, ldc, cols, 1);
                break;
            case 2:
                bf16_tile(a, lda, k, wj, to, ldc, cols, 2);
                break;
            case 3:
                bf16_tile(a, lda, k, wj, to, ldc, cols, 3);
                break;
            case 4:
                bf16_tile(a, lda, k, wj, to, ldc, cols, 4);
                break;
            case 5:
                bf16_tile(a, lda, k, wj, to, ldc, cols, 5);
                break;
            default:
                bf16_tile(a, lda, k, wj, to, ldc, cols, 6);
                break;
            }
        }
    }
}


/*
 * `rows` queries by 32 columns of v, or fewer.  The rows of two tokens are
 * interleaved, so that one instruction adds both of their products; an odd
 * last token goes with zeros.
 */

BE_INLINE void
bf16_value_tile(const uint16_t *p, const uint8_t *v, size_t ldv, uint32_t n,
    uint32_t dim, const float *rescale, float *o, size_t ldo,
    const uint32_t rows)
{
    vf_t      acc[BF16_VALUES][2];
    int32_t   pair;
    __m512i   even, odd, low, high, at_low, at_high, x;
    uint32_t  i, t, d0, d1;

    static const uint16_t  order[64] = {
        0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
        8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
        16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
        24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63
    };

    at_low = _mm512_loadu_si512(order);
    at_high = _mm512_loadu_si512(order + 32);

    d0 = (dim < VL) ? dim : VL;
    d1 = dim - d0;

#pragma GCC unroll 12
    for (i = 0; i < rows; i++) {
        acc[i][0] = vf_mul(vf_loadn(o + i * ldo, d0), vf_set1(rescale[i]));
        acc[i][1] = vf_mul(vf_loadn(o + i * ldo + VL, d1),
                           vf_set1(rescale[i]));
    }

    for (t = 0; t < n; t += 2) {
        even = bf16_loadn(v + t * ldv, dim);
        odd = (t + 1 < n) ? bf16_loadn(v + (t + 1) * ldv, dim)
                          : _mm512_setzero_si512();

        low = _mm512_permutex2var_epi16(even, at_low, odd);
        high = _mm512_permutex2var_epi16(even, at_high, odd);

#pragma GCC unroll 12
        for (i = 0; i < rows; i++) {
            memcpy(&pair, p + i * BE_BLOCK + t, sizeof(pair));
            x = _mm512_set1_epi32(pair);

            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], (__m512bh) x,
                                         (__m512bh) low);
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], (__m512bh) x,
                                         (__m512bh) high);
        }
    }

#pragma GCC unroll 12
    for (i = 0; i < rows; i++) {
        vf_storen(o + i * ldo, acc[i][0], d0);
        vf_storen(o + i * ldo + VL, acc[i][1], d1);
    }
}


static void
bf16_value(be_value_t *value)
{
    float           *o;
    uint32_t         i, j, d;
    const uint8_t   *v;
    const uint16_t  *p;

    p = value->p;

    for (j = 0; j < value->dim; j += BF16_PAD) {
        d = (value->dim - j < BF16_PAD) ? value->dim - j : BF16_PAD;
        v = value->v + (size_t) j * 2;
        o = value->o + j;

        for (i = 0; i + BF16_VALUES <= value->m; i += BF16_VALUES) {
            bf16_value_tile(p + i * BE_BLOCK, v, value->ldv, value->n, d,
                            value->rescale + i, o + i * value->ldo,
                            value->ldo, BF16_VALUES);
        }

        for ( /* void */ ; i + 4 <= value->m; i += 4) {
            bf16_value_tile(p + i * BE_BLOCK, v, value->ldv, value->n, d,
                            value->rescale + i, o + i * value->ldo,
                            value->ldo, 4);
        }

        for ( /* void */ ; i < value->m; i++) {
            bf16_value_tile(p + i * BE_BLOCK, v, value->ldv, value->n, d,
                            value->rescale + i, o + i * value->ldo,
                            value->ldo, 1);
        }
    }
}

#else

typedef int be_kernels_avx512bf16_none_t;

#endif
