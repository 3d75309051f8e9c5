/*
 * What the files of this room share, and show to their tests.
 */

#ifndef SAMPLE_SAMPLE_INT_H
#define SAMPLE_SAMPLE_INT_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "sample/sample.h"
#include "sample/sample_weight.h"


#define SAMPLE_NEVER      (-9999.0f) /* log-probability of the impossible */


typedef struct {
    double   weight;
    float    logit;
    int32_t  id;
} sample_cand_t;

struct sample_s {
    uint32_t        vocab;
    const uint8_t  *known;
    float          *row;             /* logits after bias and penalties */
    uint32_t       *count;           /* of each id in the output; all 0 */
    uint8_t        *seen;            /* id is in prompt or output; all 0 */
    int32_t        *touched;         /* ids with seen[] set */
    uint32_t        n_touched;
    double          max;             /* largest logit of the row at hand */
    double          inverse_t;       /* 1 / temperature */
    double         *block_w;         /* sums of weights of SAMPLE_BLOCK rows */
    sample_cand_t  *cand;
    uint32_t        n_cand;
    uint32_t        bucket_n[SAMPLE_BUCKETS];
    double          bucket_w[SAMPLE_BUCKETS];
};


/* The random number of (seed, position), in [0, 1). */
double sample_random(uint64_t seed, uint32_t position);


#endif /* SAMPLE_SAMPLE_INT_H */
