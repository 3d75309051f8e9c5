/*
 * Activations as integers, for the products that take them.
 *
 * They are made 16-bit integers with a scale for each 64 of a row, which is
 * far finer than BF16, and stored as two digits,
 *
 *     a = 256 high + low,  |a| <= 32512,  -128 <= low <= 127,
 *
 * so that a sum over 64 weights of a byte is exact in 32 bits, in whatever
 * order and by whatever instruction.  Packed, for each 16 rows and 64
 * elements:
 *
 *     [16][64] high; [16][64] low; [16] float scales;
 *     [2][16] int32 -128 * sum, of the first 32 elements and of the others
 *
 * The sums are what vpdpbusd wants, whose bytes of weights are unsigned: 128
 * is added to them.
 */

#ifndef BE_PANELS_INT8_H
#define BE_PANELS_INT8_H

#include "backend/be_quant.h"


#define INT8_GROUP   BE_GROUP_INT8
#define INT8_LOW     1024                        /* bytes: 16 rows, a group */
#define INT8_SCALE   2048
#define INT8_SUM     (INT8_SCALE + 64)
#define INT8_BLOCK   (INT8_SUM + 2 * 64)


size_t be_panels_int8_size(uint32_t rows, uint32_t k);
void be_panels_int8_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);

#endif /* BE_PANELS_INT8_H */
