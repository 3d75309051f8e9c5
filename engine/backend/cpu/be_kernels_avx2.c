/*
 * The AVX2 kernels: floats, BF16 widened on the way in, INT8 and INT4 as
 * integers where inputs need not be exact.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_kernels_simd.h"
#include "backend/cpu/be_panels_words.h"


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
            .gemm[BE_F32] = { 1, simd_size, simd_pack_rounded,
                              simd_product_f32 },
            .gemm[BE_BF16] = { 1, simd_size, simd_pack_rounded,
                              simd_product_bf16 },
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

#else

typedef int be_kernels_avx2_none_t;

#endif
