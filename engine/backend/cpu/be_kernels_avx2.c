/*
 * The AVX2 kernels: floats, BF16 widened on the way in, INT8 and INT4 as
 * integers where inputs need not be exact.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_kernels_simd.h"
#include "backend/cpu/be_panels_words.h"


static void avx2_pack_two(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);
static void avx2_product_two(const void *act, uint32_t k, uint32_t row,
    uint32_t m, const uint8_t *w, size_t ldw, uint32_t n, float *c,
    size_t ldc);


const be_kernels_t  be_kernels_avx2 = {
    .path = "avx2",
    .mode = {
        [BE_F32] = {
            .gemm[BE_F32] = { 1, simd_size, simd_pack, simd_product_f32 },
            .gemm[BE_BF16] = { 1, simd_size, simd_pack, simd_product_bf16 },
            BE_PANEL_GEMMS(1, simd_size, simd_pack, be_panels_avx2),
            .prob_size = sizeof(float),
            .value_size = simd_value_size,
            .value = simd_value_f32,
            .softmax = simd_softmax
        },
        [BE_BF16] = {
            .gemm[BE_BF16] = { 1, simd_size, avx2_pack_two,
                               avx2_product_two },
            .gemm[BE_F8E4M3] = { 1, simd_size, simd_pack_rounded,
                                 be_panels_avx2_rounded_f8 },
            .gemm[BE_INT8] = { 1, be_panels_words_size,
                               be_panels_words_pack, be_panels_words_int8,
                               WORDS_GROUP },
            .gemm[BE_INT4] = { 1, be_panels_words_size,
                               be_panels_words_pack, be_panels_words_int4,
                               WORDS_GROUP },
            .prob_size = sizeof(float),
            .value_size = simd_value_size,
            .value = simd_value_bf16,
            .softmax = simd_softmax_rounded
        }
    },
    .norm = simd_norm,
    .swiglu = simd_swiglu,
    .axpy = simd_axpy,
    .add = simd_add,
    .scale = simd_scale,
    .merge = simd_merge
};


/* Of each 16 elements the even ones, then the odd ones, rounded to BF16. */

static void
avx2_pack_two(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    vf_t      v[2], two;
    float    *a;
    uint32_t  i, j, l, left;

    for (i = 0; i < m; i++) {
        a = (float *) act + (size_t) (row + i) * simd_padded(k, SIMD_PAD)
            + col;

        for (j = 0; j < n; j += 2 * VL) {
#pragma GCC unroll 2
            for (l = 0; l < 2; l++) {
                left = (n - j > l * VL) ? n - j - l * VL : 0;
                v[l] = (left >= VL) ? vf_load(x[i] + j + l * VL)
                     : (left > 0) ? vf_loadn(x[i] + j + l * VL, left)
                                  : vf_zero();
                v[l] = vf_round_bf16(v[l]);
            }

            two = _mm256_shuffle_ps(v[0], v[1], 0x88);
            vf_store(a + j, _mm256_castpd_ps(_mm256_permute4x64_pd(
                                _mm256_castps_pd(two), 0xd8)));

            two = _mm256_shuffle_ps(v[0], v[1], 0xdd);
            vf_store(a + j + VL, _mm256_castpd_ps(_mm256_permute4x64_pd(
                                     _mm256_castps_pd(two), 0xd8)));
        }
    }
}


static void
avx2_product_two(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    simd_product(act, k, row, m, w, ldw, n, c, ldc, SIMD_TWO);
}

#else

typedef int be_kernels_avx2_none_t;

#endif
