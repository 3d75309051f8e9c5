/*
 * From the queue to a rank, and back.
 *
 * A rank can take a sequence if, once all prompts that it has are in blocks,
 * there are enough left for this one and one more for each sequence that
 * runs.  Blocks of sequences that pause count as free: they are preempted.
 */

#include "sched/sched_int.h"

#include <stdlib.h>
#include <string.h>


static void sched_count(sched_rank_t *rk);
static uint32_t sched_missing(const sched_seq_t *seq);
static uint32_t sched_room(const sched_rank_t *rk);
static sched_rank_t *sched_choose(sched_t *s, const sched_seq_t *seq);
static int sched_enter_rank(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint64_t now);


void
sched_admit(sched_t *s, uint64_t now)
{
    uint32_t       i;
    sched_seq_t   *seq;
    sched_rank_t  *rk;

    for (i = 0; i < s->n_ranks; i++) {
        sched_count(&s->rank[i]);
    }

    while ((seq = s->queue.first) != NULL) {

        if (seq->accepted && sched_paused(seq)) {
            sched_list_remove(&s->queue, seq);
            sched_list_add(&s->park, seq);
            seq->place = SCHED_IN_PARK;
            continue;
        }

        rk = sched_choose(s, seq);

        if (rk == NULL || sched_enter_rank(s, rk, seq, now) != 0) {
            break;
        }
    }
}


/* What the running sequences of a rank will need. */

static void
sched_count(sched_rank_t *rk)
{
    uint32_t      i;
    sched_seq_t  *seq;

    rk->n_active = 0;
    rk->reserve = 0;

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];
        seq->pause = sched_paused(seq);

        if (!seq->pause) {
            rk->n_active++;
            rk->reserve += sched_missing(seq);
        }
    }
}


/* Blocks that the ids known so far and the next one need beyond those held. */

static uint32_t
sched_missing(const sched_seq_t *seq)
{
    uint32_t  need;

    need = kv_blocks((uint64_t) sched_target(seq) + 1);

    return need > seq->n_blocks ? need - seq->n_blocks : 0;
}


/* Blocks that a newcomer may have. */

static uint32_t
sched_room(const sched_rank_t *rk)
{
    uint32_t  i, room, taken;

    room = rk->pool.n_free;

    for (i = 0; i < rk->n_running; i++) {
        if (rk->running[i]->pause) {
            room += rk->running[i]->n_blocks;
        }
    }

    taken = rk->reserve + rk->n_active;

    return room > taken ? room - taken : 0;
}


/*
 * The hinted rank, if the hint is not out of date and the rank has at most
 * one sequence more than the emptiest; else the one with the fewest sequences,
 * and of those the one with most free blocks.
 */

static sched_rank_t *
sched_choose(sched_t *s, const sched_seq_t *seq)
{
    int            fits;
    uint32_t       i, need, best_free, room, least;
    sched_rank_t  *rk, *best, *hint;

    best = NULL;
    hint = NULL;
    best_free = 0;
    least = UINT32_MAX;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        if (rk->n_active < least) {
            least = rk->n_active;
        }

        need = kv_blocks((uint64_t) sched_target(seq) + 1);

        if (need > rk->pool.n_blocks) {
            need = rk->pool.n_blocks;    /* the last token needs no room */
        }

        room = sched_room(rk);
        fits = rk->n_active < s->opt.max_batch && need <= room;

        if (!fits) {
            continue;
        }

        if ((int64_t) i == seq->r.rank_hint
            && rk->pool.epoch == seq->r.rank_epoch)
        {
            hint = rk;
        }

        if (best == NULL || rk->n_active < best->n_active
            || (rk->n_active == best->n_active && room > best_free))
        {
            best = rk;
            best_free = room;
        }
    }

    if (hint != NULL && hint->n_active <= least + 1) {
        return hint;
    }

    return best;
}


static int
sched_enter_rank(sched_t *s, sched_rank_t *rk, sched_seq_t *seq, uint64_t now)
{
    uint32_t           i, cap;
    sched_seq_t      **running;
    sched_accepted_t   a;

    if (rk->n_running == rk->cap_running) {
        cap = rk->cap_running > 0 ? 2 * rk->cap_running : 64;
        running = realloc(rk->running, cap * sizeof(sched_seq_t *));

        if (running == NULL) {
            return -1;               /* stays in the queue */
        }

        rk->running = running;
        rk->cap_running = cap;
    }

    sched_list_remove(&s->queue, seq);
    s->n_waiting -= !seq->accepted;

    for (i = rk->n_running; i > 0; i--) {
        if (!sched_before(seq, rk->running[i - 1])) {
            break;
        }

        rk->running[i] = rk->running[i - 1];
    }

    rk->running[i] = seq;
    rk->n_running++;

    seq->place = SCHED_IN_RANK;
    seq->rank = rk->index;

    /* With a first credit of nothing it is accepted, and pauses at once. */

    seq->pause = sched_paused(seq);

    if (!seq->pause) {
        rk->n_active++;
        rk->reserve += sched_missing(seq);
    }

    if (seq->accepted) {
        return 0;
    }

    seq->accepted = 1;
    seq->accepted_us = now;
    s->accepted++;

    memset(&a, 0, sizeof(a));
    a.rank = rk->index;
    a.epoch = rk->pool.epoch;
    a.n_prompt = seq->r.n_prompt;

    s->opt.ops->accepted(seq->r.data, &a);

    return 0;
}


void
sched_leave_rank(sched_t *s, sched_seq_t *seq)
{
    uint32_t       i;
    sched_rank_t  *rk;

    rk = &s->rank[seq->rank];

    for (i = 0; i < rk->n_running && rk->running[i] != seq; i++) {
        /* void */
    }

    for (i++; i < rk->n_running; i++) {
        rk->running[i - 1] = rk->running[i];
    }

    rk->n_running--;
    seq->place = SCHED_IN_NONE;

    sched_free_blocks(s, seq);
}


/* Takes a sequence's blocks; it is computed again when there is room. */

void
sched_preempt(sched_t *s, sched_seq_t *seq)
{
    sched_leave_rank(s, seq);

    seq->rows = 0;
    seq->n_score = 0;
    seq->planned = SCHED_UNPLANNED;
    s->preempted++;

    if (sched_paused(seq)) {
        sched_list_add(&s->park, seq);
        seq->place = SCHED_IN_PARK;

    } else {
        sched_list_add(&s->queue, seq);
        seq->place = SCHED_IN_QUEUE;
    }
}
