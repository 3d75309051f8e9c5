/*
 * What a rank's leader does in a step: has the rows computed, samples, hands
 * the tokens out.
 */

#include "sched/sched_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


static void sched_draws(sched_rank_t *rk, sched_batch_t *b);
static void sched_entry(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t at);
static void sched_echo(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t first, const float *logits);
static void sched_answer(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t at);
static void sched_token(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t at);
static void sched_score(sched_rank_t *rk, sched_seq_t *seq,
    const float *logits, int32_t id, uint32_t slot);
static int sched_append(sched_seq_t *seq, int32_t id);
static int sched_is_eos(const sched_t *s, int32_t id);
static void sched_learn_depth(sched_t *s);


void
sched_rank_run(sched_t *s, sched_rank_t *rk)
{
    uint32_t       i, n, at;
    sched_seq_t   *seq;
    sched_batch_t  b;

    memset(&b, 0, sizeof(b));
    b.n_rows = rk->n_rows;
    b.id = rk->row_id;
    b.pos = rk->row_pos;
    b.seq = rk->row_seq;
    b.n_seqs = rk->n_entries;
    b.blocks = rk->seq_blocks;
    b.drafts = s->depth > 0;
    b.known = s->opt.known;
    sched_draws(rk, &b);

    rk->rc = s->opt.step(s->opt.step_ctx, rk->index, &b, rk->logit_row,
                         rk->n_logits, rk->logits, rk->err);

    if (rk->rc != 0) {
        return;
    }

    at = 0;
    rk->answered = 0;
    rk->made = 0;

    for (i = 0; i < rk->n_entries; i++) {
        seq = rk->entry[i];
        n = seq->n_score + (sched_samples(seq) ? 1 + seq->n_spec : 0);

        sched_entry(s, rk, seq, at);

        at += n;
    }

    if (s->depth > 0) {
        rk->rc = sched_draft_run(s, rk);
    }
}


/* Lets the step draw the tokens, if it can draw them all. */

static void
sched_draws(sched_rank_t *rk, sched_batch_t *b)
{
    uint32_t      i, j, n;
    sched_seq_t  *seq;

    n = 0;
    rk->drawing = 0;

    for (i = 0; i < rk->n_entries; i++) {
        seq = rk->entry[i];

        if (seq->n_score > 0 || seq->r.logprobs) {
            return;
        }

        for (j = 0; sched_samples(seq) && j <= seq->n_spec; j++) {
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


/* From row `at` of the logits: those that score the prompt, then the last. */

static void
sched_entry(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t at)
{
    uint32_t  first;

    first = seq->n_done;
    seq->n_before = first;
    seq->n_done += seq->rows - seq->n_spec;

    if (seq->r.echo && seq->n_echo < seq->r.n_prompt) {
        sched_echo(s, rk, seq, first,
                   rk->logits + (size_t) at * s->opt.vocab);
        at += seq->n_score;
    }

    if (seq->done != 0) {
        return;
    }

    if (seq->r.max_tokens == 0) {
        if (seq->n_done == sched_target(seq)) {
            seq->done = SCHED_LENGTH;
        }

        return;
    }

    /* Resumed, and there was no more to do. */

    if (seq->r.ended) {
        seq->done = SCHED_STOP;

    } else if (seq->n_total - seq->r.n_prompt >= seq->r.max_tokens) {
        seq->done = SCHED_LENGTH;

    } else if (seq->rows > 0 && seq->n_done == seq->n_total) {
        sched_answer(s, rk, seq, at);
    }
}


/* The next token, and those after it for which the guesses were right. */

static void
sched_answer(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t at)
{
    int       hit;
    uint32_t  i;

    rk->answered++;
    rk->drafts += seq->n_spec > 0;
    rk->drafted += seq->n_spec;
    seq->n_drafted += seq->n_spec;

    for (i = 0; ; i++) {
        sched_token(s, rk, seq, at + i);

        if (i == seq->n_spec || seq->n_done == seq->n_total) {
            break;
        }

        hit = seq->ids[seq->n_total - 1] == seq->draft[i];
        seq->n_hit += (uint32_t) hit;
        rk->hit[i] += (uint64_t) hit;

        if (!hit || seq->done != 0 || sched_paused(seq)) {
            break;
        }

        seq->n_done++;
    }

    seq->n_draft = 0;
}


static void
sched_echo(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t first,
    const float *logits)
{
    uint32_t  i, n, end, last;

    end = seq->r.n_prompt;

    if (seq->r.logprobs) {
        last = first + seq->rows + 1;
        end = last < end ? last : end;
    }

    while (seq->n_echo < end && seq->done == 0) {

        n = end - seq->n_echo;
        n = n < s->max_logits ? n : s->max_logits;

        for (i = 0; i < n; i++) {
            if (seq->r.logprobs && seq->n_echo + i > 0) {
                sched_score(rk, seq, logits, seq->ids[seq->n_echo + i], i);
                logits += s->opt.vocab;

            } else {
                memset(&rk->token[i], 0, sizeof(sched_token_t));
                rk->token[i].id = seq->ids[seq->n_echo + i];
                rk->token[i].logprob = NAN;
            }
        }

        seq->n_echo += n;

        if (s->opt.ops->tokens(seq->r.data, SCHED_ECHO, rk->token, n)) {
            seq->done = SCHED_STOP;
        }
    }
}


static void
sched_token(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t at)
{
    int32_t         id;
    uint32_t        n_output;
    const float    *logits;
    sched_token_t  *t;

    n_output = seq->n_total - seq->r.n_prompt;
    logits = rk->logits + (size_t) at * s->opt.vocab;
    id = rk->drawing ? rk->drawn[at] : SAMPLE_NOT_DRAWN;

    if (id == SAMPLE_NOT_DRAWN) {
        id = sample_token(rk->sample, &seq->r.params, logits, seq->ids,
                          seq->r.n_prompt, seq->ids + seq->r.n_prompt,
                          n_output, seq->n_total);
    }

    if (id < 0) {
        seq->done = SCHED_E_INTERNAL;
        seq->message = "the model gave no token that could be drawn";
        return;
    }

    if (sched_append(seq, id) != 0) {
        seq->done = SCHED_E_INTERNAL;
        seq->message = "no memory";
        return;
    }

    t = &rk->token[0];

    if (seq->r.logprobs) {
        sched_score(rk, seq, logits, id, 0);

    } else {
        memset(t, 0, sizeof(sched_token_t));
        t->id = id;
        t->logprob = NAN;
    }

    t->eos = !seq->r.ignore_eos && sched_is_eos(s, id);
    rk->tokens++;
    rk->made++;

    if (seq->first_us == 0) {
        seq->first_us = sched_now(s);
    }

    if (s->opt.ops->tokens(seq->r.data, SCHED_OUTPUT, t, 1) || t->eos) {
        seq->done = SCHED_STOP;

    } else if (n_output + 1 >= seq->r.max_tokens) {
        seq->done = SCHED_LENGTH;
    }
}


static void
sched_score(sched_rank_t *rk, sched_seq_t *seq, const float *logits,
    int32_t id, uint32_t slot)
{
    uint32_t        n;
    sample_top_t   *top;
    sched_token_t  *t;

    t = &rk->token[slot];
    top = &rk->top[slot * SCHED_TOP_MAX];

    t->id = id;
    t->eos = 0;
    t->logprob = sample_logprob(rk->sample, logits, id, top, seq->r.n_top);

    for (n = 0; n < seq->r.n_top && top[n].id >= 0; n++) {
        /* void */
    }

    t->n_top = n;
    t->top = top;
}


static int
sched_append(sched_seq_t *seq, int32_t id)
{
    int32_t   *ids;
    uint32_t   cap;

    if (seq->n_total == seq->cap) {
        cap = seq->cap + seq->cap / 2 + 64;

        ids = realloc(seq->ids, (size_t) cap * sizeof(int32_t));
        if (ids == NULL) {
            return -1;
        }

        seq->ids = ids;
        seq->cap = cap;
    }

    seq->ids[seq->n_total++] = id;

    return 0;
}


static int
sched_is_eos(const sched_t *s, int32_t id)
{
    uint32_t  i;

    for (i = 0; i < s->opt.n_eos; i++) {
        if (s->eos[i] == id) {
            return 1;
        }
    }

    return 0;
}


/* Only a step of nothing but answers tells what guessing brings. */

static void
sched_learn_depth(sched_t *s)
{
    uint32_t             i, entries, answered, made;
    const sched_rank_t  *rk;

    entries = 0;
    answered = 0;
    made = 0;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];
        entries += rk->n_entries;
        answered += rk->answered;
        made += rk->made;

        if (rk->n_rows > rk->n_entries * (1 + s->opt.speculate)) {
            return;                  /* a prompt, too */
        }
    }

    if (answered == entries) {
        sched_depth_learn(s, answered, made, sched_now(s) - s->step_from);
    }
}


void
sched_collect(sched_t *s)
{
    uint32_t       i, j;
    sched_seq_t   *seq;
    sched_rank_t  *rk;

    s->steps++;

    if (!s->foreign) {
        sched_budget_learn(s);
        sched_learn_depth(s);
    }

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        if (rk->rc != 0) {
            sched_fail(s, rk->err);
        }
    }

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        for (j = 0; j < rk->n_entries; j++) {
            seq = rk->entry[j];

            if (!s->failed) {
                sched_cache_publish(s, rk, seq);
            }

            if (seq->done != 0) {
                sched_end(s, seq, seq->done, seq->message);
            }
        }

        rk->n_entries = 0;
    }

    if (s->failed) {
        sched_end_all(s, SCHED_E_INTERNAL, "a rank of the engine failed");
    }

    sched_publish(s);

    if (s->opt.ops->stepped != NULL) {
        s->opt.ops->stepped(s->opt.ops_ctx);
    }
}


void
sched_fail(sched_t *s, const char *why)
{
    if (!s->failed) {
        s->failed = 1;
        s->opt.ops->failed(s->opt.ops_ctx, why);
    }
}
