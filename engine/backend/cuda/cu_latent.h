/*
 * What goes into the latent cache and what comes out of queries before
 * attention, and an attention that is simple.
 *
 * Rotary embedding is over adjacent pairs.  Cosines and sines of a step's rows
 * are made once, in double from float32 frequencies, and serve all layers.
 */

#ifndef CU_LATENT_H
#define CU_LATENT_H

#include "backend/cuda/cu_rows.h"

#ifdef __cplusplus
extern "C" {
#endif


typedef struct {
    uint32_t  heads;
    uint32_t  nope;
    uint32_t  rope;
    uint32_t  lora;                  /* of the latent row, at most 1024 */
} cu_latent_t;


/* table[r] = cosine and sine, in turn, of pos[r] * freq[i]; [rope] a row. */
int cu_rope_table(const cu_batch_t *b, const float *freq, uint32_t rope,
    float mscale, float *table, void *stream);

/*
 * kva [rows][lora + rope]: the first part normed with w, the second rotated,
 * rounded to BF16 into kv, a layer's [blocks][64][lora + rope]; with `fp8` into
 * its [blocks][64] records (cu_mla.h), lora 512 and rope 64.
 */
int cu_cache(const cu_latent_t *l, const cu_batch_t *b, const float *table,
    const float *w, float eps, const float *kva, void *kv, int fp8,
    void *stream);

/*
 * q [rows][heads][nope + rope]: the first part of each head, in BF16, to
 * qn [rows][heads][nope], the second rotated to the end of ql [rows][heads]
 * [lora + rope], BF16.
 */
int cu_query(const cu_latent_t *l, const cu_batch_t *b, const float *table,
    const float *q, void *qn, void *ql, void *stream);

/*
 * ol [rows][heads][lora] BF16 from ql and the cache, a block of threads for a
 * row and a head; what others are held against.  Runs of 512 tokens, cut by
 * position and merged in order; probabilities are rounded to BF16.
 */
int cu_attend_simple(const cu_latent_t *l, const cu_batch_t *b, float scale,
    const void *ql, const void *kv, void *ol, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_LATENT_H */
