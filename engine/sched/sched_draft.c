/*
 * Speculation: tokens are guessed, and the model looks at several in one step.
 *
 * VERIFICATION.  A sequence that only needs its next token gets rows for its
 * last one and for what was guessed to follow, and each gives logits.  From
 * these it samples as ever, at each position with that position's random
 * number: the first row's token is the next one for certain; if it is the one
 * guessed, then the second row had the right input and its token is certain
 * too, and so on.  So a step hands out one token or more, and they are the
 * same, log-probabilities included, as without speculation.  What the rows of
 * wrong guesses left in the KV blocks lies beyond `n_done`: it is never
 * published, and overwritten later.
 *
 * DRAFTS.  After a step has sampled, each rank's leader has the drafting layer
 * computed, once for each token guessed, on all ranks alike.  The first pass
 * has a row for each position whose token has become known, prompts included,
 * so that the layer's keys are there; the last row of a sequence that answers
 * gives logits, of which the likeliest token is guessed, bias and penalties
 * applied.  (To sample the guess like the token, with the same random number,
 * was right less often at any temperature.)  Further passes have one row a
 * sequence, the guess before.
 *
 * KEYS.  The layer's row at a position needs the model's state at the one
 * before, which is at hand only in the step that computes it.  So a sequence
 * has keys from `mtp_first` on, which is 1, or the first position after what
 * was computed while nothing was drafted.  A block is published, and written to
 * disk, with the word whether it has them all, and who finds it has them too.
 * What is missing then is the one at the first position behind it: it is made
 * with that position's own state, which is like the one before it.  Guesses may
 * depend on all that, answers cannot.
 */

#include "sched/sched_int.h"

#include <string.h>


static uint32_t sched_draft_most(const sched_t *s, const sched_seq_t *seq);
static uint32_t sched_draft_known(const sched_t *s, sched_rank_t *rk,
    uint32_t entry, uint32_t base);
static int sched_draft_pass(sched_t *s, sched_rank_t *rk, uint32_t pass);
static void sched_draft_take(sched_t *s, sched_rank_t *rk, uint32_t pass);
static void sched_draft_row(sched_rank_t *rk, uint32_t entry, int32_t id,
    uint32_t pos, uint32_t from);


/*
 * Drafts that the sequence can use in its next step: none beyond its last
 * token.
 */

static uint32_t
sched_draft_most(const sched_t *s, const sched_seq_t *seq)
{
    uint32_t  left;

    left = seq->r.n_prompt + seq->r.max_tokens - seq->n_total;

    return left <= s->depth ? (left > 0 ? left - 1 : 0) : s->depth;
}


/*
 * Adds rows for drafts to a sequence that was given one row, and sees that
 * there are blocks for them and for what is drafted after the step; but not at
 * the cost of anybody.
 */

void
sched_draft_plan(sched_t *s, sched_rank_t *rk, sched_seq_t *seq)
{
    int32_t   block;
    uint32_t  n, have, end, last;

    if (s->depth == 0 || seq->rows == 0 || seq->r.max_tokens == 0) {
        return;
    }

    n = 0;

    if (sched_samples(seq) && seq->n_done + 1 == seq->n_total) {
        n = sched_draft_most(s, seq);
        n = n < seq->n_draft ? n : seq->n_draft;
    }

    last = seq->r.n_prompt + seq->r.max_tokens;
    end = seq->n_done + seq->rows + n + s->depth;
    end = end < last ? end : last;

    while (seq->n_blocks < kv_blocks(end)
           && kv_cache_free(&rk->cache) > rk->n_running)
    {
        block = kv_cache_get(&rk->cache);

        if (block < 0) {
            break;
        }

        seq->blocks[seq->n_blocks++] = block;
    }

    have = seq->n_blocks * KV_BLOCK - seq->n_done - seq->rows;

    seq->n_spec = n < have ? n : have;
    seq->rows += seq->n_spec;
}


/* After the step's tokens are handed out. */

int
sched_draft_run(sched_t *s, sched_rank_t *rk)
{
    uint32_t      i, pass, base, last;
    sched_seq_t  *seq;

    rk->d_rows = 0;
    rk->d_logits = 0;
    base = 0;

    for (i = 0; i < rk->part->n; i++) {
        seq = rk->part->entry[i].seq;
        last = sched_draft_known(s, rk, i, base);
        base += rk->part->entry[i].rows;

        if (last > 0 && last == seq->n_total - 1
            && sched_draft_most(s, seq) > 0)
        {
            rk->d_entry[rk->d_logits] = i;
            rk->d_logit_row[rk->d_logits++] = rk->d_rows - 1;
        }
    }

    for (pass = 0; pass < s->depth; pass++) {
        if (sched_draft_pass(s, rk, pass) != 0) {
            return -1;
        }

        sched_draft_take(s, rk, pass);
    }

    return 0;
}


/*
 * Rows of the positions whose token and whose state before it are known since
 * this step, of which the first row is row `base`.  Returns the last position
 * that has its keys now, or 0.
 */

static uint32_t
sched_draft_known(const sched_t *s, sched_rank_t *rk, uint32_t entry,
    uint32_t base)
{
    uint32_t              pos, from, to, room;
    sched_seq_t          *seq;
    const sched_entry_t  *e;

    e = &rk->part->entry[entry];
    seq = e->seq;

    if (seq->done != 0 || seq->r.max_tokens == 0 || e->rows == 0) {
        return 0;
    }

    from = e->first + 1;
    to = seq->n_done < seq->n_total ? seq->n_done : seq->n_total - 1;
    room = seq->n_blocks * KV_BLOCK;
    to = to < room ? to : room - 1;

    /* The rest of the step has a row each at most. */

    if (seq->mtp_next != 0 && seq->mtp_next == from - 1
        && seq->mtp_next % KV_BLOCK == 0 && to >= from
        && rk->d_rows + rk->n_rows - base < s->max_rows)
    {
        sched_draft_row(rk, entry, seq->ids[from - 1], from - 1, base);

    } else if (seq->mtp_next != from) {
        seq->mtp_first = from;
    }

    for (pos = from; pos <= to; pos++) {
        sched_draft_row(rk, entry, seq->ids[pos], pos, base + pos - from);
    }

    seq->mtp_next = to + 1;
    rk->d_first[entry] = seq->mtp_first;

    return to >= from ? to : 0;
}


/* A sequence takes a published block `i` in front of what it computes. */

void
sched_draft_found(sched_seq_t *seq, uint32_t i, int drafted)
{
    if (!drafted) {
        seq->mtp_next = 0;
        return;
    }

    if (i == 0) {
        seq->mtp_first = 1;

    } else if (seq->mtp_next < i * KV_BLOCK) {
        seq->mtp_first = i * KV_BLOCK;
    }

    seq->mtp_next = (i + 1) * KV_BLOCK;
}


/* Whether a sequence's block `i`, which it has computed, has all keys. */

int
sched_draft_full(const sched_seq_t *seq, uint32_t i)
{
    return seq->mtp_next >= (i + 1) * KV_BLOCK
           && seq->mtp_first <= (i == 0 ? 1 : i * KV_BLOCK);
}


static void
sched_draft_row(sched_rank_t *rk, uint32_t entry, int32_t id, uint32_t pos,
    uint32_t from)
{
    uint32_t  n;

    n = rk->d_rows++;

    rk->d_id[n] = id;
    rk->d_pos[n] = pos;
    rk->d_seq[n] = entry;
    rk->d_from[n] = from;
}


static int
sched_draft_pass(sched_t *s, sched_rank_t *rk, uint32_t pass)
{
    uint32_t          i;
    sched_seq_t      *seq;
    sched_draft_t     d;
    sample_params_t   p;

    memset(&d, 0, sizeof(d));
    d.rows.n_rows = rk->d_rows;
    d.rows.id = rk->d_id;
    d.rows.pos = rk->d_pos;
    d.rows.seq = rk->d_seq;
    d.rows.n_seqs = rk->part->n;
    d.rows.blocks = rk->seq_blocks;
    d.first = rk->d_first;
    d.from = rk->d_from;
    d.pass = pass;
    d.rows.known = s->opt.known;

    /* the likeliest each */

    for (i = 0; i < rk->d_logits; i++) {
        seq = rk->part->entry[rk->d_entry[i]].seq;
        p = seq->r.params;
        p.temperature = 0;
        rk->drawn[i] = SAMPLE_NOT_DRAWN;

        if (!sample_plain(&p, seq->n_total + pass, &rk->draw[i])) {
            break;
        }
    }

    rk->drawing = (i == rk->d_logits);
    d.rows.draw = rk->drawing ? rk->draw : NULL;
    d.rows.drawn = rk->drawing ? rk->drawn : NULL;

    return s->opt.draft(s->opt.step_ctx, rk->index, &d, rk->d_logit_row,
                        rk->d_logits, rk->logits, rk->err);
}


/* Takes the guesses, and makes the rows of the next pass. */

static void
sched_draft_take(sched_t *s, sched_rank_t *rk, uint32_t pass)
{
    int32_t           id;
    uint32_t          i, n, pos;
    sched_seq_t      *seq;
    sample_params_t   p;

    n = rk->d_logits;
    rk->d_rows = 0;
    rk->d_logits = 0;

    for (i = 0; i < n; i++) {
        seq = rk->part->entry[rk->d_entry[i]].seq;
        pos = seq->n_total + pass;

        p = seq->r.params;
        p.temperature = 0;

        id = rk->drawing ? rk->drawn[i] : SAMPLE_NOT_DRAWN;

        if (id == SAMPLE_NOT_DRAWN) {
            id = sample_token(rk->sample, &p,
                              rk->logits + (size_t) i * s->opt.vocab,
                              seq->ids, seq->r.n_prompt,
                              seq->ids + seq->r.n_prompt,
                              seq->n_total - seq->r.n_prompt, pos);
        }

        if (id < 0) {
            continue;
        }

        seq->draft[seq->n_draft++] = id;

        if (seq->n_draft < sched_draft_most(s, seq)
            && pos < seq->n_blocks * KV_BLOCK)
        {
            rk->d_entry[rk->d_logits] = rk->d_entry[i];
            rk->d_logit_row[rk->d_logits++] = rk->d_rows;
            sched_draft_row(rk, rk->d_entry[i], id, pos, i);
        }
    }
}
