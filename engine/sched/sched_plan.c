/*
 * The plan of a step: which rows, whose blocks.
 *
 * First every sequence's share is decided, in order, so that whoever has to
 * give blocks back comes after those that take them; then the shares become
 * the batch.
 */

#include "sched/sched_int.h"

#include <stdlib.h>


static uint32_t sched_pending(const sched_seq_t *seq);
static sched_seq_t *sched_next_prompt(sched_rank_t *rk, int shortest);
static int sched_plan_rank(sched_t *s, sched_rank_t *rk);
static void sched_share(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t *rows, uint32_t *logits);
static uint32_t sched_cover(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t rows);
static sched_seq_t *sched_victim(sched_rank_t *rk, const sched_seq_t *seq);
static void sched_score_rows(const sched_seq_t *seq, uint32_t rows,
    uint32_t *first, uint32_t *n);
static void sched_batch(sched_rank_t *rk);


int
sched_plan(sched_t *s)
{
    int       work;
    uint32_t  i;
    uint64_t  now;

    now = sched_now(s);

    sched_take_events(s);
    sched_expire(s, now);
    sched_unpark(s);
    sched_admit(s, now);
    sched_refuse(s);

    work = 0;

    for (i = 0; i < s->n_ranks; i++) {
        work |= sched_plan_rank(s, &s->rank[i]);
    }

    return work;
}


static uint32_t
sched_pending(const sched_seq_t *seq)
{
    return sched_target(seq) - seq->n_done;
}


/* The unplanned prompt that is next in order, or the shortest one. */

static sched_seq_t *
sched_next_prompt(sched_rank_t *rk, int shortest)
{
    uint32_t      i;
    sched_seq_t  *seq, *best;

    best = NULL;

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];

        if (seq->pause || seq->planned != SCHED_UNPLANNED
            || sched_pending(seq) < 2)
        {
            continue;
        }

        if (!shortest) {
            return seq;
        }

        if (best == NULL || sched_pending(seq) < sched_pending(best)) {
            best = seq;
        }
    }

    return best;
}


static int
sched_plan_rank(sched_t *s, sched_rank_t *rk)
{
    uint32_t      i, n, rows, logits, least, half;
    sched_seq_t  *seq, *first;

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];
        seq->rows = 0;
        seq->n_score = 0;
        seq->planned = SCHED_UNPLANNED;

        if (!seq->pause && sched_pending(seq) > 1) {
            sched_cache_adopt(s, rk, seq);
        }
    }

    rows = s->opt.prefill_chunk;
    logits = s->max_logits;
    n = 0;

    /*
     * Those that need one row or none.  Preemption may shorten the array
     * behind the one at hand, never before it, except where one pauses.
     */

    for (i = 0; i < rk->n_running && n < s->opt.max_batch; i++) {
        seq = rk->running[i];

        if (!seq->pause && sched_pending(seq) < 2) {
            sched_share(s, rk, seq, &rows, &logits);
            n += seq->planned == SCHED_PLANNED;

            while (i > 0 && (i >= rk->n_running || rk->running[i] != seq)) {
                i--;
            }
        }
    }

    /* Prompts: what is left, but something in any case. */

    least = (s->opt.prefill_chunk + 3) / 4;
    rows = rows > least ? rows : least;
    first = NULL;

    while (n < s->opt.max_batch && rows > 0) {

        seq = sched_next_prompt(rk, first != NULL);

        if (seq == NULL) {
            break;
        }

        if (first != NULL && sched_cache_follows(s, rk, seq)) {
            seq->planned = SCHED_PASSED;
            continue;
        }

        half = rows;

        if (first == NULL && rk->n_active > 1) {
            first = seq;
            half = (rows + 1) / 2;
        }

        rows -= half;
        sched_share(s, rk, seq, &half, &logits);
        rows += half;

        n += seq->planned == SCHED_PLANNED;
    }

    /* What nobody else wanted is the oldest one's, too. */

    if (rows > 0 && first != NULL && first->planned == SCHED_PLANNED) {
        rows += first->rows;
        logits += first->n_score;
        sched_share(s, rk, first, &rows, &logits);
    }

    sched_batch(rk);

    return rk->n_entries > 0;
}


/*
 * Gives a sequence rows out of `rows`, and rows of logits out of `logits`,
 * of which one each is set aside for those that only decode.
 */

static void
sched_share(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t *rows,
    uint32_t *logits)
{
    uint32_t  want, first, score, spare;

    want = sched_pending(seq);

    if (want > 1 && want > *rows) {
        want = *rows;
    }

    seq->planned = SCHED_PASSED;

    want = sched_cover(s, rk, seq, want);

    /* Every other sequence of the batch may need one row of logits. */

    spare = *logits > s->opt.max_batch ? *logits - s->opt.max_batch : 0;

    sched_score_rows(seq, want, &first, &score);

    if (score > spare) {
        want = first + spare - seq->n_done;
        score = spare;
    }

    if (want == 0 && sched_pending(seq) > 0) {
        return;                      /* no blocks, or no rows of logits */
    }

    seq->rows = want;
    seq->n_score = score;
    seq->planned = SCHED_PLANNED;

    *logits -= score;
    *rows -= want < *rows ? want : *rows;
}


/*
 * Prompt positions among the next `rows` whose logits give the log-probability
 * of a prompt token that was not handed out yet.
 */

static void
sched_score_rows(const sched_seq_t *seq, uint32_t rows, uint32_t *first,
    uint32_t *n)
{
    uint32_t  lo, hi;

    *n = 0;
    *first = seq->n_done;

    if (!seq->r.echo || !seq->r.logprobs) {
        return;
    }

    lo = seq->n_done;
    hi = seq->n_done + rows;

    if (seq->n_echo > 0 && lo < seq->n_echo - 1) {
        lo = seq->n_echo - 1;
    }

    if (hi > seq->r.n_prompt - 1) {
        hi = seq->r.n_prompt - 1;
    }

    *first = lo;
    *n = hi > lo ? hi - lo : 0;
}


/*
 * Sees that the sequence has blocks for its next `rows` positions, at the cost
 * of those behind it; returns how many of them it has.
 */

static uint32_t
sched_cover(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t rows)
{
    int32_t       block;
    uint32_t      need, have;
    sched_seq_t  *victim;

    need = kv_blocks((uint64_t) seq->n_done + rows);

    if (need > seq->cap_blocks && sched_grow_blocks(seq, need) != 0) {
        need = seq->cap_blocks;
    }

    while (seq->n_blocks < need) {

        block = kv_cache_get(&rk->cache);

        if (block >= 0) {
            seq->blocks[seq->n_blocks++] = block;
            continue;
        }

        victim = sched_victim(rk, seq);

        if (victim == NULL) {
            break;
        }

        sched_preempt(s, victim);
    }

    have = seq->n_blocks * KV_BLOCK - seq->n_done;

    return have < rows ? have : rows;
}


int
sched_grow_blocks(sched_seq_t *seq, uint32_t n)
{
    int32_t  *blocks;

    n = n < 8 ? 8 : n + n / 2;

    blocks = realloc(seq->blocks, n * sizeof(int32_t));
    if (blocks == NULL) {
        return -1;
    }

    seq->blocks = blocks;
    seq->cap_blocks = n;

    return 0;
}


/* The last of those that pause and hold blocks, else the last behind `seq`. */

static sched_seq_t *
sched_victim(sched_rank_t *rk, const sched_seq_t *seq)
{
    uint32_t      i;
    sched_seq_t  *v;

    for (i = rk->n_running; i-- > 0; ) {
        v = rk->running[i];

        if (v->pause && v->n_blocks > 0) {
            return v;
        }
    }

    for (i = rk->n_running; i-- > 0; ) {
        v = rk->running[i];

        if (v == seq) {
            break;
        }

        if (v->n_blocks > 0) {
            return v;
        }
    }

    return NULL;
}


/* Turns the shares into rows. */

static void
sched_batch(sched_rank_t *rk)
{
    uint32_t      i, j, k, n, first, score;
    sched_seq_t  *seq;

    rk->n_entries = 0;
    rk->n_rows = 0;
    rk->n_logits = 0;

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];

        if (seq->planned != SCHED_PLANNED) {
            continue;
        }

        n = rk->n_rows;
        k = rk->n_entries++;
        rk->entry[k] = seq;
        rk->seq_blocks[k] = seq->blocks;

        for (j = 0; j < seq->rows; j++) {
            rk->row_id[n + j] = seq->ids[seq->n_done + j];
            rk->row_pos[n + j] = seq->n_done + j;
            rk->row_seq[n + j] = k;
        }

        sched_score_rows(seq, seq->rows, &first, &score);

        for (j = 0; j < score; j++) {
            rk->logit_row[rk->n_logits++] = n + (first - seq->n_done) + j;
        }

        if (seq->rows > 0 && seq->r.max_tokens > 0
            && seq->n_done + seq->rows == seq->n_total)
        {
            rk->logit_row[rk->n_logits++] = n + seq->rows - 1;
        }

        rk->n_rows += seq->rows;
    }
}
