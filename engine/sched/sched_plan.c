/*
 * The plan of a step: which rows, whose blocks.
 *
 * First every sequence's share is decided, those that answer before prompts,
 * so that it is known what a step takes without these (sched_budget.c); in
 * order, so that whoever has to give blocks back comes after those that take
 * them.  Then the shares become the batch.
 *
 * The shares may be given out while a step is under way, and more than once:
 * they count what that computes as done (sched_ahead.c).
 */

#include "sched/sched_int.h"

#include <string.h>


static int sched_is_prompt(const sched_seq_t *seq);
static uint32_t sched_answering(const sched_t *s);
static void sched_plan_answers(sched_t *s, sched_rank_t *rk);
static void sched_plan_prompts(sched_t *s, sched_rank_t *rk);
static sched_seq_t *sched_short_prompt(const sched_t *s,
    const sched_rank_t *rk, sched_seq_t *oldest);
static void sched_share(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t rows);
static uint32_t sched_cover(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t rows);
static sched_seq_t *sched_victim(sched_rank_t *rk, const sched_seq_t *seq);
static void sched_score_rows(const sched_seq_t *seq, uint32_t rows,
    uint32_t *first, uint32_t *n);
static void sched_batch_rank(sched_rank_t *rk);
static void sched_batch_entry(sched_rank_t *rk, sched_seq_t *seq);


int
sched_plan(sched_t *s)
{
    sched_share_out(s);

    return sched_batch(s);
}


void
sched_share_out(sched_t *s)
{
    uint32_t       i, n_answers, n_prompts;
    uint64_t       now;
    sched_rank_t  *rk;

    now = sched_now(s);

    sched_budget_keep(s);
    sched_take_events(s);
    sched_disk_collect(s);
    sched_expire(s, now);
    sched_unpark(s);
    sched_admit(s, now);
    sched_refuse(s);

    sched_depth_choose(s, sched_answering(s));
    s->abandoned |= s->preparing && s->depth > 0;

    n_answers = 0;
    n_prompts = 0;
    s->all_rows = 0;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];
        sched_plan_answers(s, rk);
        n_answers += rk->n_planned;
        n_prompts += rk->n_prompts;
        s->all_rows += rk->load.rows;
    }

    sched_budget_open(s, n_answers, n_prompts);

    for (i = 0; i < s->n_ranks; i++) {
        sched_plan_prompts(s, &s->rank[i]);
    }

    sched_disk_give_up(s);
}


int
sched_batch(sched_t *s)
{
    int       work;
    uint32_t  i;

    work = 0;

    for (i = 0; i < s->n_ranks; i++) {
        sched_batch_rank(&s->rank[i]);
        work |= s->rank[i].part->n > 0;
    }

    if (work) {
        sched_budget_close(s);
    }

    s->run.ahead = s->opt.ahead != 0 && s->all_rows >= s->opt.ahead
                   && s->depth == 0;
    s->run.last_depth = s->last_depth;
    s->run.depth = s->depth;
    s->run.all_rows = s->all_rows;

    return work;
}


/* Sequences that need only their next token. */

static uint32_t
sched_answering(const sched_t *s)
{
    uint32_t             i, j, n;
    const sched_rank_t  *rk;

    n = 0;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        for (j = 0; j < rk->n_running; j++) {
            n += sched_takes_part(rk->running[j])
                 && sched_pending(rk->running[j]) == 1;
        }
    }

    return n;
}


uint32_t
sched_pending(const sched_seq_t *seq)
{
    return sched_target(seq) - seq->n_done;
}


int
sched_takes_part(const sched_seq_t *seq)
{
    return !seq->pause && !seq->leaves;
}


static int
sched_is_prompt(const sched_seq_t *seq)
{
    return sched_takes_part(seq) && sched_pending(seq) > 1;
}


/*
 * The sequences that need one row or none; what the others need is counted.
 * Preemption may shorten the array behind the one at hand, never before it,
 * except where one pauses.
 */

static void
sched_plan_answers(sched_t *s, sched_rank_t *rk)
{
    uint32_t      i;
    sched_seq_t  *seq;

    memset(&rk->load, 0, sizeof(sched_load_t));
    rk->logits_left = s->max_logits;
    rk->n_planned = 0;
    rk->n_prompts = 0;
    rk->prompt_rows = 0;

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];
        seq->rows = 0;
        seq->n_spec = 0;
        seq->n_score = 0;
        seq->planned = SCHED_UNPLANNED;

        if (sched_is_prompt(seq)) {
            sched_cache_adopt(s, rk, seq);

            if (sched_cache_coming(s, rk, seq)
                || sched_disk_waits(s, rk, seq))
            {
                seq->planned = SCHED_PASSED;
            }
        }
    }

    for (i = 0; i < rk->n_running && rk->n_planned < s->opt.max_batch; i++) {
        seq = rk->running[i];

        if (!sched_takes_part(seq) || sched_is_prompt(seq)) {
            continue;
        }

        sched_share(s, rk, seq, 1);

        if (seq->planned == SCHED_PLANNED) {
            sched_draft_plan(s, rk, seq);
            rk->n_planned++;
            sched_load_add(&rk->load, seq->n_done, seq->rows, seq->rows);
        }

        while (i > 0 && (i >= rk->n_running || rk->running[i] != seq)) {
            i--;
        }
    }

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];

        /* One that waits for the disk wants no time. */

        if (seq->planned == SCHED_UNPLANNED && sched_is_prompt(seq)) {
            rk->n_prompts++;
            rk->prompt_rows += sched_pending(seq);
        }
    }
}


/* Prompts in turn, while there are rows and time. */

static void
sched_plan_prompts(sched_t *s, sched_rank_t *rk)
{
    int           first;
    uint32_t      left, rows;
    sched_seq_t  *seq, *oldest;

    left = s->opt.prefill_chunk;
    oldest = sched_next_prompt(rk);
    first = 1;

    if (oldest == NULL || s->budget <= 0) {
        return;
    }

    if (rk->n_prompts == 1 || rk->oldest != oldest->order) {
        rk->oldest = oldest->order;
        rk->lead = 0;
    }

    while (rk->n_planned < s->opt.max_batch && left > 0) {

        seq = first && rk->lead <= 0 && oldest->planned == SCHED_UNPLANNED
              ? oldest : sched_short_prompt(s, rk, oldest);

        if (seq == NULL) {
            break;
        }

        if (first && seq == oldest && rk->lead > 0) {
            rk->lead = 0;            /* nobody else wants the time */
        }

        /* Others may compute what it is about to; see sched_cache.c. */

        rows = !first && sched_cache_follows(s, rk, seq)
               ? 0 : sched_budget_rows(s, rk, seq, left, first);

        if (rows == 0) {
            seq->planned = SCHED_PASSED;
            continue;
        }

        sched_share(s, rk, seq, rows);

        if (seq->planned == SCHED_PLANNED) {
            sched_draft_plan(s, rk, seq);
            first = 0;
            rk->n_planned++;
            left -= seq->rows - seq->n_spec;
            sched_budget_take(s, rk, seq, oldest);
        }
    }
}


/* The unplanned prompt that is first in order. */

sched_seq_t *
sched_next_prompt(const sched_rank_t *rk)
{
    uint32_t      i;
    sched_seq_t  *seq;

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];

        if (seq->planned == SCHED_UNPLANNED && sched_is_prompt(seq)) {
            return seq;
        }
    }

    return NULL;
}


/*
 * The shortest of the others, of the highest priority there is among them, but
 * none that waits for what `oldest` is about to compute; when there is none,
 * `oldest` itself.
 */

static sched_seq_t *
sched_short_prompt(const sched_t *s, const sched_rank_t *rk,
    sched_seq_t *oldest)
{
    uint32_t      i;
    sched_seq_t  *seq, *best;

    best = NULL;

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];

        if (seq == oldest || seq->planned != SCHED_UNPLANNED
            || !sched_is_prompt(seq))
        {
            continue;
        }

        if (best != NULL && seq->r.priority < best->r.priority) {
            break;                   /* in order: those behind are lower */
        }

        if (best != NULL && sched_pending(seq) >= sched_pending(best)) {
            continue;
        }

        if (oldest->planned == SCHED_UNPLANNED
            && sched_cache_shares(s, rk, seq, oldest))
        {
            continue;
        }

        best = seq;
    }

    if (best == NULL && oldest->planned == SCHED_UNPLANNED) {
        best = oldest;
    }

    return best;
}


/*
 * Gives a sequence up to `rows` rows, and rows of logits out of those that are
 * left, of which one each is set aside for those that only decode.
 */

static void
sched_share(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint32_t rows)
{
    uint32_t  want, first, score, spare, aside;

    want = sched_pending(seq);
    want = want < rows ? want : rows;

    seq->planned = SCHED_PASSED;

    want = sched_cover(s, rk, seq, want);

    /* Every other sequence of the batch may need its rows of logits. */

    aside = s->opt.max_batch * (1 + s->opt.speculate);
    spare = rk->logits_left > aside ? rk->logits_left - aside : 0;

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

    rk->logits_left -= score;
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

    while (seq->n_blocks < need) {

        block = kv_cache_get(&rk->cache);

        if (block >= 0) {
            seq->blocks[seq->n_blocks++] = block;
            continue;
        }

        victim = sched_victim(rk, seq);

        if (victim == NULL || sched_preempt(s, victim) != 0) {
            break;
        }
    }

    have = seq->n_blocks * KV_BLOCK - seq->n_done;

    return have < rows ? have : rows;
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


/*
 * Turns the shares into rows, and counts what they are.  One whose sequence
 * has ended since is void.
 */

static void
sched_batch_rank(sched_rank_t *rk)
{
    uint32_t      i;
    sched_seq_t  *seq;

    rk->part->n = 0;
    rk->part->n_slots = 0;
    rk->n_rows = 0;
    rk->n_logits = 0;
    rk->answered = 0;
    rk->made = 0;
    memset(&rk->load, 0, sizeof(sched_load_t));

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];

        if (seq->planned == SCHED_PLANNED && seq->done == 0
            && !atomic_load_explicit(&seq->cancelled, memory_order_relaxed))
        {
            sched_batch_entry(rk, seq);
        }
    }
}


static void
sched_batch_entry(sched_rank_t *rk, sched_seq_t *seq)
{
    uint32_t        j, k, n, pos;
    sched_entry_t  *e;

    n = rk->n_rows;
    k = rk->part->n++;
    rk->seq_blocks[k] = seq->blocks;

    e = &rk->part->entry[k];
    memset(e, 0, sizeof(sched_entry_t));
    e->seq = seq;
    e->first = seq->n_done;
    e->rows = seq->rows;
    e->n_spec = seq->n_spec;
    e->samples = sched_samples(seq);
    e->logit = rk->n_logits;
    e->slot = rk->part->n_slots;

    for (j = 0; j < e->rows; j++) {
        pos = e->first + j;
        rk->row_id[n + j] = pos < seq->n_total
                            ? seq->ids[pos] : seq->draft[pos - seq->n_total];
        rk->row_pos[n + j] = pos;
        rk->row_seq[n + j] = k;
    }

    sched_score_rows(seq, e->rows, &e->scored, &e->n_score);

    for (j = 0; j < e->n_score; j++) {
        rk->logit_row[rk->n_logits++] = n + (e->scored - e->first) + j;
    }

    for (j = 0; e->samples && j <= e->n_spec; j++) {
        rk->logit_row[rk->n_logits++] = n + e->rows - 1 - e->n_spec + j;
    }

    rk->n_rows += e->rows;
    rk->part->n_slots += 1 + rk->n_logits - e->logit;
    sched_load_add(&rk->load, e->first, e->rows, rk->n_logits - e->logit);

    seq->in_step = 1;
    seq->coming = e->samples != 0;
    seq->n_done += e->rows - e->n_spec;
}
