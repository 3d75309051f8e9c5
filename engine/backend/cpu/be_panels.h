/*
 * Products with quantised weights (be_quant.h), for the tables of kernels.
 *
 * A piece of some panels is made into floats or BF16 in the L1 cache, then
 * all rows pass over it.  So few rows cost what reading the codes costs, and
 * many rows what other weights do; and a row's sums are the same either way:
 * one chain over k for each output, from piece to piece through c.
 *
 * In BF16 mode a weight (code times scale, which is exact in float32 but for
 * FP8) is rounded to BF16 as an activation is.
 */

#ifndef BE_PANELS_H
#define BE_PANELS_H

#include "backend/be_quant.h"
#include "backend/cpu/be_kernels.h"


#define BE_PANEL_PRODUCT(name)                                               \
    void name(const void *act, uint32_t k, uint32_t row, uint32_t m,         \
        const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)

#define BE_PANEL_PRODUCTS(name)                                              \
    BE_PANEL_PRODUCT(name ## _f8);                                           \
    BE_PANEL_PRODUCT(name ## _int8);                                         \
    BE_PANEL_PRODUCT(name ## _int4)

/* Members of a mode's table; the packing must be that of `name`. */

#define BE_PANEL_GEMMS(block, size, pack, name)                              \
    .gemm[BE_F8E4M3] = { block, size, pack, name ## _f8 },                   \
    .gemm[BE_INT8] = { block, size, pack, name ## _int8 },                   \
    .gemm[BE_INT4] = { block, size, pack, name ## _int4 }


/* Activations as the path's pack() leaves them for row-major weights. */

BE_PANEL_PRODUCTS(be_panels_generic);
BE_PANEL_PRODUCTS(be_panels_generic_rounded);
BE_PANEL_PRODUCTS(be_panels_avx2);
BE_PANEL_PRODUCTS(be_panels_avx2_rounded);
BE_PANEL_PRODUCTS(be_panels_avx512);
BE_PANEL_PRODUCTS(be_panels_avx512_rounded);
BE_PANEL_PRODUCT(be_panels_avx512bf16_f8);

/* On the matrix unit, which takes them in tiles of 16 rows by 32 columns. */

size_t be_panels_amx_size(uint32_t rows, uint32_t k);
void be_panels_amx_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);
BE_PANEL_PRODUCT(be_panels_amx_f8);
BE_PANEL_PRODUCT(be_panels_amx_int4);
BE_PANEL_PRODUCT(be_panels_amx_pairs);

/*
 * As integers, packed as in be_panels_int8.h: on the matrix unit and VNNI, on
 * VNNI alone.
 */

BE_PANEL_PRODUCT(be_panels_int8);
BE_PANEL_PRODUCT(be_panels_vnni_int8);
BE_PANEL_PRODUCT(be_panels_vnni_int4);

#endif /* BE_PANELS_H */
