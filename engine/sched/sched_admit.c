/*
 * From the queue to a rank, and back.
 *
 * A rank can take a sequence if, once all prompts that it has are in blocks,
 * there are enough left for this one and one more for each sequence that
 * runs.  Blocks of sequences that pause count as free: they are preempted.
 * Blocks that are cached there and held by one that does not pause cost
 * nothing.
 *
 * WHICH RANK.  All ranks step together and the slowest sets the time, so load
 * must not lean to one side: a rank that has SCHED_SKEW sequences and a quarter
 * more than the emptiest is out of the question while another has room, and so
 * is one whose answers, by number and by KV to read, take that much longer in
 * a step.  Of the rest, that one is taken on which the prompt is done first: by
 * the estimated time of the prompts before it and of its own, what is cached
 * not counted.  Between equals the hint decides, then the answers' time, their
 * number, the blocks.
 */

#include "sched/sched_int.h"

#include <stdlib.h>
#include <string.h>


#define SCHED_SKEW  1

typedef struct {
    sched_rank_t  *rank;
    double         us;               /* until its prompt is done */
    uint32_t       room;
    int            hinted;
    int            leans;            /* has too many sequences already */
} sched_choice_t;


static int sched_block_room(sched_seq_t *seq);
static void sched_count_paused(sched_rank_t *rk);
static void sched_clear_paused(sched_rank_t *rk);
static uint32_t sched_room(const sched_rank_t *rk);
static sched_rank_t *sched_choose(sched_t *s, sched_seq_t *seq);
static int sched_fits(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    sched_choice_t *c);
static int sched_better(const sched_choice_t *a, const sched_choice_t *b);
static int sched_enter_rank(sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint64_t now);


void
sched_admit(sched_t *s, uint64_t now)
{
    uint32_t       i;
    sched_seq_t   *seq;
    sched_rank_t  *rk;

    for (i = 0; i < s->n_ranks; i++) {
        sched_count(s, &s->rank[i]);
    }

    while ((seq = s->queue.first) != NULL) {

        if (seq->accepted && sched_paused(seq)) {
            sched_list_remove(&s->queue, seq);
            sched_list_add(&s->park, seq);
            seq->place = SCHED_IN_PARK;
            continue;
        }

        rk = sched_choose(s, seq);

        if (rk == NULL) {
            rk = sched_make_room(s, seq);
        }

        if (rk == NULL || sched_enter_rank(s, rk, seq, now) != 0) {
            break;
        }
    }

    for (i = 0; i < s->n_ranks; i++) {
        sched_clear_paused(&s->rank[i]);
    }
}


/* What the running sequences of a rank will need, and what they leave. */

void
sched_count(const sched_t *s, sched_rank_t *rk)
{
    uint32_t       i;
    sched_seq_t   *seq;
    sched_load_t   answers;

    rk->n_active = 0;
    rk->backlog_us = 0;
    rk->reserve = 0;
    memset(&answers, 0, sizeof(answers));

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];
        seq->leaves = sched_leaves(seq);
        seq->pause = !seq->leaves && sched_paused(seq);

        if (sched_takes_part(seq)) {
            rk->n_active++;
            rk->reserve += sched_missing(seq);
            sched_load_add(&answers, sched_target(seq), 1, 1);

            if (sched_pending(seq) > 1) {
                rk->backlog_us += sched_cost_prompt(&s->cost, seq->n_done,
                                                    sched_target(seq),
                                                    s->opt.prefill_chunk);
            }
        }
    }

    rk->answers_us = sched_cost_part(&s->cost, &answers);

    sched_count_paused(rk);
}


/*
 * Counts the blocks that nobody holds but sequences that pause.  Until it is
 * cleared, rk->paused says how many of these hold a block; else it is zero.
 */

static void
sched_count_paused(sched_rank_t *rk)
{
    int32_t       block;
    uint32_t      i, j;
    sched_seq_t  *seq;

    rk->reclaim = 0;

    sched_clear_paused(rk);

    for (i = 0; i < rk->n_running; i++) {
        seq = rk->running[i];

        for (j = 0; seq->pause && j < seq->n_blocks; j++) {
            block = seq->blocks[j];
            rk->counted = 1;
            rk->paused[block]++;
            rk->reclaim += rk->paused[block] == rk->cache.pool.refs[block];
        }
    }
}


static void
sched_clear_paused(sched_rank_t *rk)
{
    uint32_t      i, j;
    sched_seq_t  *seq;

    for (i = 0; rk->counted && i < rk->n_running; i++) {
        seq = rk->running[i];

        for (j = 0; j < seq->n_blocks; j++) {
            rk->paused[seq->blocks[j]] = 0;
        }
    }

    rk->counted = 0;
}


/* Blocks that the ids known so far and the next one need beyond those held. */

uint32_t
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
    uint32_t  room, taken;

    room = kv_cache_free(&rk->cache) + rk->reclaim;
    taken = rk->reserve + rk->n_active;

    return room > taken ? room - taken : 0;
}


static sched_rank_t *
sched_choose(sched_t *s, sched_seq_t *seq)
{
    double          one, least_us;
    uint32_t        i, least;
    sched_load_t    l;
    sched_rank_t   *rk;
    sched_choice_t  best, c;

    memset(&best, 0, sizeof(best));
    least = UINT32_MAX;
    least_us = SCHED_NO_LIMIT;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];
        least = rk->n_active < least ? rk->n_active : least;
        least_us = rk->answers_us < least_us ? rk->answers_us : least_us;
    }

    memset(&l, 0, sizeof(l));
    sched_load_add(&l, sched_target(seq), 1, 1);
    one = sched_cost_part(&s->cost, &l);

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        if (!sched_fits(s, rk, seq, &c)) {
            continue;
        }

        /* A rank that leans is better than none. */

        c.leans = rk->n_active > least + least / 4 + SCHED_SKEW
                  || rk->answers_us > 1.25 * least_us + SCHED_SKEW * one;

        if (best.rank == NULL || sched_better(&c, &best)) {
            best = c;
        }
    }

    return best.rank;
}


static int
sched_fits(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    sched_choice_t *c)
{
    uint32_t  need, cached;

    need = sched_need(s, rk, seq, &cached);

    memset(c, 0, sizeof(sched_choice_t));
    c->rank = rk;
    c->us = rk->backlog_us
            + sched_cost_prompt(&s->cost, cached * KV_BLOCK,
                                sched_target(seq), s->opt.prefill_chunk);
    c->room = sched_room(rk);
    c->hinted = (int64_t) rk->index == seq->r.rank_hint
                && rk->cache.epoch == seq->r.rank_epoch;

    return rk->n_active < s->opt.max_batch && need <= c->room;
}


/* Blocks that a sequence would take from a rank; `cached` it would find. */

uint32_t
sched_need(const sched_t *s, const sched_rank_t *rk, sched_seq_t *seq,
    uint32_t *cached)
{
    uint32_t  need, held;

    *cached = sched_cache_match(s, rk, seq, &held);
    need = kv_blocks((uint64_t) sched_target(seq) + 1);

    if (need > rk->cache.pool.n_blocks) {
        need = rk->cache.pool.n_blocks;  /* the last token needs no room */
    }

    return need - held;
}


static int
sched_better(const sched_choice_t *a, const sched_choice_t *b)
{
    if (a->leans != b->leans) {
        return b->leans;
    }

    if (a->us < b->us || a->us > b->us) {
        return a->us < b->us;
    }

    if (a->hinted != b->hinted) {
        return a->hinted;
    }

    if (a->rank->answers_us < b->rank->answers_us
        || a->rank->answers_us > b->rank->answers_us)
    {
        return a->rank->answers_us < b->rank->answers_us;
    }

    if (a->rank->n_active != b->rank->n_active) {
        return a->rank->n_active < b->rank->n_active;
    }

    return a->room > b->room;
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

    if (sched_block_room(seq) != 0) {
        return -1;
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

    sched_cache_adopt(s, rk, seq);

    /* With a first credit of nothing it is accepted, and pauses at once. */

    sched_count(s, rk);

    if (seq->accepted) {
        return 0;
    }

    seq->accepted = 1;
    seq->accepted_us = now;
    s->accepted++;

    memset(&a, 0, sizeof(a));
    a.rank = rk->index;
    a.epoch = rk->cache.epoch;
    a.n_prompt = seq->r.n_prompt;
    a.cached = seq->n_cached;
    a.tags = seq->n_tagged + sched_disk_tags(s, seq);

    s->opt.ops->accepted(seq->r.data, &a);

    return 0;
}


/*
 * Room for the numbers of all blocks it can ever have, for they must stay
 * where they are while a step uses them; 0, or -1.
 */

static int
sched_block_room(sched_seq_t *seq)
{
    uint32_t  n;

    if (seq->blocks != NULL) {
        return 0;
    }

    n = seq->r.n_prompt + seq->r.max_tokens;
    n = kv_blocks(n < seq->n_total ? seq->n_total : n);

    seq->blocks = malloc(n * sizeof(int32_t));

    return seq->blocks != NULL ? 0 : -1;
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


/*
 * Takes a sequence's blocks; it is computed again when there is room.  0; or
 * -1: not while a step is under way, whose end may make it needless.
 */

int
sched_preempt(sched_t *s, sched_seq_t *seq)
{
    if (s->preparing) {
        s->abandoned = 1;
        return -1;
    }

    sched_leave_rank(s, seq);

    seq->rows = 0;
    seq->n_spec = 0;
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

    return 0;
}
