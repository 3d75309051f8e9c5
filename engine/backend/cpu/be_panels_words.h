/*
 * Activations as 16-bit integers, for products of words.
 *
 * They are made integers as in be_panels_int8.h, |a| <= 32512 with a scale for
 * each 64 of a row, but each stays one number.  A row after the other, for
 * each 64 elements of it:
 *
 *     [16][4] int16, of four neighbours the first, third, second and fourth;
 *     float scale, three words unused
 *
 * In that order a broadcast of two of them meets the even or the odd bytes of
 * a line of codes.
 */

#ifndef BE_PANELS_WORDS_H
#define BE_PANELS_WORDS_H

#include "backend/cpu/be_panels.h"


#define WORDS_GROUP  BE_GROUP_INT8
#define WORDS_SCALE  (WORDS_GROUP * 2)           /* bytes */
#define WORDS_BLOCK  (WORDS_SCALE + 16)


size_t be_panels_words_size(uint32_t rows, uint32_t k);
void be_panels_words_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);
BE_PANEL_PRODUCT(be_panels_words_int8);
BE_PANEL_PRODUCT(be_panels_words_int4);

#endif /* BE_PANELS_WORDS_H */
