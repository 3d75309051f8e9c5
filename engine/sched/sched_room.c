/*
 * Room by priority: what runs makes way for what is worth more.
 *
 * When no rank has room for the head of the queue, running sequences of lower
 * priority leave one of the ranks, the last in order first, until it fits.
 * They go back into the queue in their own place and come back to what is left
 * of their blocks in the cache.  It is done only where it helps: if all of
 * lower priority together would not make room, none leaves.  Of the ranks that
 * can, the one is taken whose leaving sequences are of the lowest priority,
 * and of those the one that has the least to compute again.
 *
 * Sequences that pause are not asked: their blocks count as free already, and
 * they are not part of the batch.
 */

#include "sched/sched_int.h"


typedef struct {
    uint32_t  n;                     /* sequences that leave */
    int32_t   priority;              /* the highest of them */
    uint64_t  rows;                  /* that they have computed */
} sched_price_t;


static int sched_price(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    sched_price_t *price);
static uint32_t sched_common(const sched_seq_t *seq, const sched_seq_t *v,
    uint32_t cached);
static sched_seq_t *sched_lower(const sched_rank_t *rk, uint32_t *at,
    int32_t priority);


/* The rank that has room now, or NULL: nobody left. */

sched_rank_t *
sched_make_room(sched_t *s, sched_seq_t *seq)
{
    uint32_t        i, at;
    sched_rank_t   *rk, *best;
    sched_price_t   price, least;

    best = NULL;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        if (!sched_price(s, rk, seq, &price)) {
            continue;
        }

        if (best == NULL || price.priority < least.priority
            || (price.priority == least.priority && price.rows < least.rows))
        {
            best = rk;
            least = price;
        }
    }

    if (best == NULL) {
        return NULL;
    }

    at = best->n_running;

    while (least.n-- > 0) {
        if (sched_preempt(s, sched_lower(best, &at, seq->r.priority)) != 0) {
            return NULL;
        }
    }

    sched_count(s, best);

    return best;
}


/* Whether it can be had, and for what. */

static int
sched_price(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    sched_price_t *price)
{
    int32_t       block;
    uint32_t      i, at, batch, need, room, taken, cached;
    sched_seq_t  *v;

    need = sched_need(s, rk, seq, &cached);
    room = kv_cache_free(&rk->cache) + rk->reclaim;
    taken = rk->reserve + rk->n_active;
    batch = rk->n_active;

    price->n = 0;
    price->priority = 0;
    price->rows = 0;
    at = rk->n_running;

    while (batch >= s->opt.max_batch || need + taken > room) {

        v = sched_lower(rk, &at, seq->r.priority);

        if (v == NULL) {
            return 0;
        }

        /*
         * Blocks that others hold as well do not count, to be sure; nor do
         * those that the newcomer will hold: it is not to pay for them.
         */

        for (i = sched_common(seq, v, cached); i < v->n_blocks; i++) {
            block = v->blocks[i];
            room += rk->cache.pool.refs[block] == rk->paused[block] + 1;
        }

        taken -= sched_missing(v) + 1;
        batch--;

        price->n++;
        price->priority = v->r.priority;
        price->rows += v->n_done;
    }

    return price->n > 0;
}


/* How many of the `cached` blocks that one would find lead another's. */

static uint32_t
sched_common(const sched_seq_t *seq, const sched_seq_t *v, uint32_t cached)
{
    uint32_t  i, n;

    n = cached < v->n_public ? cached : v->n_public;

    for (i = 0; i < n; i++) {
        if (seq->hash[i].lo != v->hash[i].lo
            || seq->hash[i].hi != v->hash[i].hi)
        {
            break;
        }
    }

    return i;
}


/* The next running sequence of lower priority in front of `*at`. */

static sched_seq_t *
sched_lower(const sched_rank_t *rk, uint32_t *at, int32_t priority)
{
    sched_seq_t  *v;

    while (*at > 0) {
        v = rk->running[--*at];

        if (v->r.priority >= priority) {
            break;                   /* in order: so are all in front */
        }

        if (!v->pause) {
            return v;
        }
    }

    return NULL;
}
