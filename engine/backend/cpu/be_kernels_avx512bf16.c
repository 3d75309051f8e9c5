/*
 * The AVX-512 kernels with the BF16 product of pairs: vdpbf16ps adds the
 * products of two neighbouring elements to a lane, without rounding between
 * and with denormals as zeros.  In F32 it is the AVX-512 path.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_bf16.h"
#include "backend/cpu/be_kernels_simd.h"
#include "backend/cpu/be_panels.h"
#include "backend/cpu/be_panels_int8.h"


#define BF16_ROWS  6                 /* of a register tile */
#define BF16_COLS  4
#define BF16_FEW   64                /* rows that may wait for memory: */
#define BF16_AHEAD 8192              /* bytes on, to ask for */


static size_t bf16_size(uint32_t rows, uint32_t k);
static void bf16_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);
static void bf16_product_ahead(const void *act, uint32_t k, uint32_t row,
    uint32_t m, const uint8_t *w, size_t ldw, uint32_t n, float *c,
    size_t ldc);


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
            .gemm[BE_BF16] = { 1, bf16_size, bf16_pack, bf16_product_ahead },
            .gemm[BE_F8E4M3] = { 1, bf16_size, bf16_pack,
                                 be_panels_avx512bf16_f8 },
            .gemm[BE_INT4] = { BE_ROW_BLOCK, be_panels_int8_size,
                               be_panels_int8_pack, be_panels_vnni_int4,
                               BE_GROUP_INT8 },
            .gemm[BE_INT8] = { BE_ROW_BLOCK, be_panels_int8_size,
                               be_panels_int8_pack, be_panels_vnni_int8,
                               BE_GROUP_INT8 },
            .run_size = be_bf16_run_size,
            .run = be_bf16_run
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


BE_INLINE void
bf16_tile(const uint16_t *a, size_t lda, uint32_t k, const uint8_t *const *w,
    float *c, size_t ldc, uint32_t n, const uint32_t rows, ptrdiff_t ahead,
    const int ask)
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
            if (ask) {
                _mm_prefetch(w[j] + (size_t) l * 2 + ahead, _MM_HINT_T1);
            }

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


BE_INLINE void
bf16_rows(const uint16_t *a, size_t lda, uint32_t k, const uint8_t *const *w,
    float *c, size_t ldc, uint32_t n, uint32_t rows, ptrdiff_t ahead,
    const int ask)
{
    switch (rows) {
    case 1:
        bf16_tile(a, lda, k, w, c, ldc, n, 1, ahead, ask);
        break;
    case 2:
        bf16_tile(a, lda, k, w, c, ldc, n, 2, ahead, ask);
        break;
    case 3:
        bf16_tile(a, lda, k, w, c, ldc, n, 3, ahead, ask);
        break;
    case 4:
        bf16_tile(a, lda, k, w, c, ldc, n, 4, ahead, ask);
        break;
    case 5:
        bf16_tile(a, lda, k, w, c, ldc, n, 5, ahead, ask);
        break;
    default:
        bf16_tile(a, lda, k, w, c, ldc, n, 6, ahead, ask);
        break;
    }
}


/*
 * The first rows ask for what comes next, `ahead` bytes on, into the L2 cache;
 * 0: for nothing.  Each asks as it loads: many at once, before all of the
 * products, took as long as memory and products one after the other.
 */

BE_INLINE void
bf16_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    ptrdiff_t ahead)
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

            if (ahead != 0 && i == 0) {
                bf16_rows(a, lda, k, wj, to, ldc, cols, rows, ahead, 1);

            } else {
                bf16_rows(a, lda, k, wj, to, ldc, cols, rows, 0, 0);
            }
        }
    }
}


static void
bf16_product_ahead(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    bf16_product(act, k, row, m, w, ldw, n, c, ldc,
                 (m <= BF16_FEW) ? BF16_AHEAD : 0);
}


void
be_bf16_scores(const be_run_t *run, const uint8_t *kv, uint32_t n,
    ptrdiff_t ahead, float *s, size_t lds)
{
    bf16_product(run->q, run->k, 0, run->m, kv, run->ldkv, n, s, lds, ahead);
}


#else

typedef int be_kernels_avx512bf16_none_t;

#endif
