/*
 * A step's budget: how much prompt is computed beside running answers.
 *
 * BESIDE ANSWERS.  The step without prompts takes a time D, by the estimate of
 * sched_cost.h.  Each step adds a share of D to an account, each chunk of
 * prompt takes from it what it makes the step longer; prompts have rows only
 * while there is something in it.  So over some steps the mean time between
 * tokens stays within 1 + share, though a chunk may be larger than what is
 * there: the steps that follow go without prompts then.  For rows that are
 * computed in ones and twos cost many times what they cost together, most of
 * all deep in a long context, whose KV is read again for each chunk.
 *
 * The share is SCHED_SHARE while there is one prompt for eight answers, say,
 * and as many times D as there are prompts for each answer while there are
 * more, up to SCHED_SHARE_MAX: a burst of prompts shall not wait for a lone
 * answer.
 *
 * WITHOUT ANSWERS a chunk may have all rows allowed.  But ranks step together:
 * where all of them have prompts enough, they get equal times, not equal rows,
 * or the one with the deepest prompt has the others wait in every step.
 *
 * BETWEEN PROMPTS of one rank the time is halved between the first in order
 * and the shortest of the others: `lead` is what the first has had more than
 * those.  A shortest of lower priority gets a third of the first's time.
 */

#include "sched/sched_int.h"

#include <string.h>


#define SCHED_SHARE      0.7
#define SCHED_SHARE_MAX  3.0
#define SCHED_GRANULE    16          /* rows; chunks are multiples of it */
#define SCHED_WASTE      1.5         /* a small chunk's cost per row, at most */
#define SCHED_LOWER      3.0         /* weight of lower priority's time */


static double sched_even_time(const sched_t *s);
static uint32_t sched_least_rows(const sched_t *s, const sched_rank_t *rk,
    uint32_t pos, uint32_t max);


/*
 * Before a plan: the sums are what they were before other plans of the same
 * step, which came to nothing.
 */

void
sched_budget_keep(sched_t *s)
{
    uint32_t       i;
    sched_rank_t  *rk;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        if (s->kept) {
            rk->lead = rk->lead_kept;
            rk->oldest = rk->oldest_kept;

        } else {
            rk->lead_kept = rk->lead;
            rk->oldest_kept = rk->oldest;
        }
    }

    if (s->kept) {
        s->account = s->account_kept;
    } else {
        s->account_kept = s->account;
    }

    s->kept = 1;
}


/* The answers' rows are planned: what may prompts have? */

void
sched_budget_open(sched_t *s, uint32_t n_answers, uint32_t n_prompts)
{
    double    t, share;
    uint32_t  i;

    s->budget_base = 0;

    for (i = 0; i < s->n_ranks; i++) {
        t = sched_cost_time(&s->cost, &s->rank[i].load, s->all_rows);
        s->budget_base = t > s->budget_base ? t : s->budget_base;
    }

    if (n_answers == 0) {
        s->account = 0;
        s->budget = sched_even_time(s);
        return;
    }

    share = (double) n_prompts / n_answers;
    share = share < SCHED_SHARE ? SCHED_SHARE : share;
    share = share > SCHED_SHARE_MAX ? SCHED_SHARE_MAX : share;

    /* What was not used is not kept: a chunk could be as large as all of it. */

    s->account = s->account < 0 ? s->account : 0;
    s->account += share * s->budget_base;
    s->budget = s->account > 0 ? s->budget_base + s->account : 0;
}


/* The time of a whole chunk on the rank where that is shortest. */

static double
sched_even_time(const sched_t *s)
{
    double               t, even;
    uint32_t             i, rows;
    sched_load_t         l;
    const sched_rank_t  *rk;
    const sched_seq_t   *seq;

    even = SCHED_NO_LIMIT;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];
        seq = sched_next_prompt(rk);

        if (seq == NULL || rk->prompt_rows < s->opt.prefill_chunk) {
            continue;
        }

        rows = sched_pending(seq);
        rows = rows < s->opt.prefill_chunk ? rows : s->opt.prefill_chunk;

        l = rk->load;
        sched_load_add(&l, seq->n_done, rows, 1);
        sched_load_add(&l, 0, s->opt.prefill_chunk - rows, 0);

        t = sched_cost_time(&s->cost, &l, s->all_rows
                            + s->opt.prefill_chunk);
        even = t < even ? t : even;
    }

    return even;
}


/*
 * Rows that a prompt may have of a budget that is not used up, at most `max`;
 * 0: none.  The first that is asked for on a rank gets as many as are worth a
 * chunk in any case.
 */

uint32_t
sched_budget_rows(const sched_t *s, const sched_rank_t *rk,
    const sched_seq_t *seq, uint32_t max, int first)
{
    uint32_t  rows, want, least;

    want = sched_pending(seq);
    max = want < max ? want : max;

    rows = sched_cost_rows(&s->cost, &rk->load, s->all_rows, seq->n_done, max,
                           s->budget);
    if (rows == max) {
        return rows;
    }

    /* Chunks end with a block if that is near: others may share it then. */

    if (rows >= KV_BLOCK) {
        rows -= (seq->n_done + rows) % KV_BLOCK;
    } else {
        rows -= rows % SCHED_GRANULE;
    }

    if (first) {
        least = sched_least_rows(s, rk, seq->n_done, max);
        rows = rows > least ? rows : least;
    }

    return rows;
}


/* The smallest chunk whose rows cost not much more than those of a large. */

static uint32_t
sched_least_rows(const sched_t *s, const sched_rank_t *rk, uint32_t pos,
    uint32_t max)
{
    double        none, row;
    uint32_t      n;
    sched_load_t  l;

    none = sched_cost_time(&s->cost, &rk->load, s->all_rows);

    l = rk->load;
    sched_load_add(&l, pos, max, 0);
    row = (sched_cost_time(&s->cost, &l, s->all_rows + max) - none) / max;

    for (n = SCHED_GRANULE; n < max; n *= 2) {
        l = rk->load;
        sched_load_add(&l, pos, n, 0);

        if (sched_cost_time(&s->cost, &l, s->all_rows + n) - none
            <= SCHED_WASTE * row * n)
        {
            return n;
        }
    }

    return max;
}


/* The prompt got its rows; `oldest` is the rank's first in order. */

void
sched_budget_take(sched_t *s, sched_rank_t *rk, const sched_seq_t *seq,
    const sched_seq_t *oldest)
{
    double  before, t;

    before = sched_cost_time(&s->cost, &rk->load, s->all_rows);

    sched_load_add(&rk->load, seq->n_done, seq->rows, seq->n_score);
    s->all_rows += seq->rows;

    t = sched_cost_time(&s->cost, &rk->load, s->all_rows) - before;

    if (seq == oldest) {
        rk->lead += t;

    } else if (seq->r.priority < oldest->r.priority) {
        rk->lead -= SCHED_LOWER * t;

    } else {
        rk->lead -= t;
    }
}


/* Everything is planned: the load that the step will be measured by. */

void
sched_budget_close(sched_t *s)
{
    double    t;
    uint32_t  i;

    s->planned_us = 0;
    s->all_rows = 0;

    for (i = 0; i < s->n_ranks; i++) {
        s->all_rows += s->rank[i].load.rows;
    }

    for (i = 0; i < s->n_ranks; i++) {
        t = sched_cost_time(&s->cost, &s->rank[i].load, s->all_rows);

        if (t > s->planned_us) {
            s->planned_us = t;
            s->load = s->rank[i].load;
        }
    }

    if (s->planned_us > s->budget_base) {
        s->account -= s->planned_us - s->budget_base;
    }

    s->step_from = sched_now(s);
    s->kept = 0;
}


/* The step was done. */

void
sched_budget_learn(sched_t *s)
{
    uint64_t  us;

    us = sched_now(s) - s->step_from;

    s->busy_us += us;
    s->guess_us += (uint64_t) s->planned_us;

    sched_cost_learn(&s->cost, &s->load, s->run.all_rows, (double) us);
}
