/*
 * Sampling: from one row of logits to one token, and log-probabilities.
 *
 * The result depends on the row, the parameters, the tokens so far, the seed
 * and the position, and on nothing else: the random number of a position is
 * a hash of (seed, position).
 *
 * Order: logit bias, then repetition, presence and frequency penalties over
 * the tokens given, then temperature, top-k, top-p, min-p, draw.  temperature
 * 0 is argmax (lowest id on a tie) after bias and penalties.  Rows of ids
 * without a token are never drawn.
 *
 * Log-probabilities are of the model's own distribution: log-softmax of the
 * raw logits over all rows of the head, before bias, penalties and
 * temperature.
 */

#ifndef SAMPLE_SAMPLE_H
#define SAMPLE_SAMPLE_H

#include <stddef.h>
#include <stdint.h>


typedef struct {
    int32_t  id;
    float    bias;
} sample_bias_t;

typedef struct {
    float                 temperature;
    float                 top_p;
    float                 min_p;
    uint32_t              top_k;
    float                 repetition_penalty;
    float                 presence_penalty;
    float                 frequency_penalty;
    uint64_t              seed;
    const sample_bias_t  *bias;
    uint32_t              n_bias;
} sample_params_t;

typedef struct {
    int32_t  id;
    float    logprob;
} sample_top_t;

/* A draw from a row alone, `u` its random number. */

typedef struct {
    float     temperature;
    float     top_p;
    float     min_p;
    uint32_t  top_k;
    double    u;
} sample_draw_t;

#define SAMPLE_NOT_DRAWN  (-2)

typedef struct sample_s  sample_t;       /* scratch of one thread */

/*
 * `known`: [vocab] bytes, 1 where an id has a token; kept by reference.
 * `max_context`: the longest history.  NULL: no memory.
 */
sample_t *sample_open(uint32_t vocab, const uint8_t *known,
    uint32_t max_context);
void sample_close(sample_t *s);

/*
 * Draws the token for `position` (that of the token to be made).  `prompt`
 * and `output` are the sequence so far: repetition_penalty looks at both,
 * presence and frequency at `output` alone.  `logits` is not changed.
 * Returns the id, or -1 if no row can be drawn (all NaN or banned).
 */
int32_t sample_token(sample_t *s, const sample_params_t *p,
    const float *logits, const int32_t *prompt, uint32_t n_prompt,
    const int32_t *output, uint32_t n_output, uint32_t position);

/*
 * Whether a token for `position` depends on nothing but its row of logits, with
 * neither bias nor penalties; then `draw` says how it is drawn.
 */
int sample_plain(const sample_params_t *p, uint32_t position,
    sample_draw_t *draw);

/*
 * Log-probability of `id` (may be -1: then 0 is returned) and the `n_top`
 * likeliest tokens in falling order (ties: lower id first; ids without a
 * token are left out).
 */
float sample_logprob(sample_t *s, const float *logits, int32_t id,
    sample_top_t *top, uint32_t n_top);

#endif /* SAMPLE_SAMPLE_H */
