/*
 * Drawing tokens from rows of logits as engine/sample does: the same weights
 * (sample_weight.h), added up in the same order, so the same tokens.
 *
 * All that is added up in an order that matters is added one after another,
 * the rows of a block of SAMPLE_BLOCK and then the blocks.  The sums by
 * distance are not: they only tell how many of the likeliest rows are worth
 * sorting, with a margin that rounding does not reach.  Where these are more
 * than CU_SAMPLE_SORT the host has to do it.
 */

#ifndef CU_SAMPLE_H
#define CU_SAMPLE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif


#define CU_SAMPLE_SORT   2048
#define CU_SAMPLE_VOCAB  (1u << 20)  /* at most */

typedef struct {
    float     temperature;
    float     top_p;
    float     min_p;
    uint32_t  top_k;
    double    u;                     /* random, in [0, 1) */
} cu_draw_t;


/*
 * logits [rows][vocab], known [vocab], draw and id [rows], all in the device's
 * memory; `block`: rows * ((vocab + 63) / 64) doubles.  id[r] is -1 if nothing
 * can be drawn, -2 if the host has to draw.
 */
int cu_sample(const float *logits, uint32_t rows, uint32_t vocab,
    const uint8_t *known, const cu_draw_t *draw, double *block, int32_t *id,
    void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_SAMPLE_H */
