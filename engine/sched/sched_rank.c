/*
 * What a rank's leader does in a step: has the rows computed, samples.
 *
 * What comes of that is in the slots of the rank's part of the step: one for
 * the position in front of the rows that score the prompt, one for each of
 * these, one for each token sampled.
 */

#include "sched/sched_int.h"

#include <math.h>
#include <string.h>


static void sched_rows(sched_t *s, sched_rank_t *rk, sched_batch_t *b);
static void sched_draws(sched_rank_t *rk, sched_batch_t *b);
static void sched_score(sched_t *s, sched_rank_t *rk, const sched_entry_t *e);
static void sched_logprob(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t slot, int32_t id, uint32_t row);


void
sched_rank_run(sched_t *s, sched_rank_t *rk)
{
    uint32_t        i;
    sched_batch_t   b;
    sched_entry_t  *e;

    sched_rows(s, rk, &b);
    sched_draws(rk, &b);

    rk->began_us = sched_now(s);
    rk->rc = s->opt.step(s->opt.step_ctx, rk->index, &b, rk->logit_row,
                         rk->n_logits, rk->logits, rk->err);
    rk->ended_us = sched_now(s);

    if (rk->rc != 0) {
        return;
    }

    for (i = 0; i < rk->part->n; i++) {
        e = &rk->part->entry[i];

        sched_score(s, rk, e);

        if (!s->run.ahead) {
            sched_answer(s, rk, e);

        } else if (e->samples) {
            sched_draw(s, rk, e, 0);
        }
    }

    if (s->run.depth > 0) {
        rk->rc = sched_draft_run(s, rk);
        rk->ended_us = sched_now(s);
    }
}


static void
sched_rows(sched_t *s, sched_rank_t *rk, sched_batch_t *b)
{
    memset(b, 0, sizeof(sched_batch_t));

    b->n_rows = rk->n_rows;
    b->id = rk->row_id;
    b->pos = rk->row_pos;
    b->seq = rk->row_seq;
    b->n_seqs = rk->part->n;
    b->blocks = rk->seq_blocks;
    b->drafts = s->run.depth > 0;
    b->known = s->opt.known;
}


/* Lets the step draw the tokens, if it can draw them all. */

static void
sched_draws(sched_rank_t *rk, sched_batch_t *b)
{
    uint32_t              i, j, n;
    const sched_seq_t    *seq;
    const sched_entry_t  *e;

    n = 0;
    rk->drawing = 0;

    for (i = 0; i < rk->part->n; i++) {
        e = &rk->part->entry[i];
        seq = e->seq;

        if (e->n_score > 0 || seq->r.logprobs) {
            return;
        }

        for (j = 0; e->samples && j <= e->n_spec; j++) {
            rk->drawn[n] = SAMPLE_NOT_DRAWN;

            if (!sample_plain(&seq->r.params, seq->n_total + j,
                              &rk->draw[n++]))
            {
                return;
            }
        }
    }

    b->draw = rk->draw;
    b->drawn = rk->drawn;
    rk->drawing = 1;
}


/* The log-probabilities of prompt tokens. */

static void
sched_score(sched_t *s, sched_rank_t *rk, const sched_entry_t *e)
{
    uint32_t  i;

    for (i = 0; i < e->n_score; i++) {
        sched_logprob(s, rk, e->seq, e->slot + 1 + i,
                      e->seq->ids[e->scored + i + 1], e->logit + i);
    }
}


/* The token behind the ids known now, from the `i`-th row that samples. */

void
sched_draw(sched_t *s, sched_rank_t *rk, const sched_entry_t *e, uint32_t i)
{
    int32_t         id;
    uint32_t        row, slot;
    sched_seq_t    *seq;
    sched_token_t  *t;

    seq = e->seq;
    row = e->logit + e->n_score + i;
    slot = e->slot + 1 + e->n_score + i;
    id = rk->drawing ? rk->drawn[row] : SAMPLE_NOT_DRAWN;

    if (id == SAMPLE_NOT_DRAWN) {
        id = sample_token(rk->sample, &seq->r.params,
                          rk->logits + (size_t) row * s->opt.vocab, seq->ids,
                          seq->r.n_prompt, seq->ids + seq->r.n_prompt,
                          seq->n_total - seq->r.n_prompt, seq->n_total);
    }

    if (seq->r.logprobs && id >= 0) {
        sched_logprob(s, rk, seq, slot, id, row);
        return;
    }

    t = &rk->part->token[slot];
    memset(t, 0, sizeof(sched_token_t));
    t->id = id;
    t->logprob = NAN;
}


static void
sched_logprob(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t slot,
    int32_t id, uint32_t row)
{
    uint32_t        n;
    sample_top_t   *top;
    sched_token_t  *t;

    t = &rk->part->token[slot];
    top = &rk->part->top[(size_t) slot * SCHED_TOP_MAX];

    t->id = id;
    t->eos = 0;
    t->logprob = sample_logprob(rk->sample,
                                rk->logits + (size_t) row * s->opt.vocab, id,
                                top, seq->r.n_top);

    for (n = 0; n < seq->r.n_top && top[n].id >= 0; n++) {
        /* void */
    }

    t->n_top = n;
    t->top = top;
}
