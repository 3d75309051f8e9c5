/*
 * A rank's steps: what it admits, computes and ends.
 */

#include <stdlib.h>

#include "route.h"


static int rank_admit(uint32_t i, request_t *r);
static void rank_finish(uint32_t i, request_t *r, double now);


void
rank_add(request_t *r)
{
    rank_t  *rk;

    r->rank = policy_choose(r);
    rk = &sim.ranks[r->rank];

    r->next = NULL;
    *rk->tail = r;
    rk->tail = &r->next;
    rk->n_waiting++;
}


void
rank_step(uint32_t i, double now)
{
    rank_t     *rk;
    uint32_t    left, take;
    request_t  *r, **p;

    rk = &sim.ranks[i];

    while (rk->waiting != NULL && rk->n_running < BATCH_MAX) {
        r = rk->waiting;

        if (!rank_admit(i, r)) {
            break;
        }

        rk->waiting = r->next;
        rk->tail = rk->waiting == NULL ? &rk->waiting : rk->tail;
        rk->n_waiting--;

        for (p = &rk->running; *p != NULL; p = &(*p)->next) {
            /* void */
        }

        r->next = NULL;
        *p = r;
        rk->n_running++;
    }

    rk->in_flight += rk->n_running + rk->n_waiting;
    left = opt.budget;

    for (p = &rk->running; (r = *p) != NULL; /* void */) {

        if (r->todo != 0) {
            take = r->todo < left ? r->todo : left;
            r->todo -= take;
            left -= take;
            rk->work += take;

            if (r->todo != 0) {
                p = &r->next;
                continue;
            }
        }

        if (!r->first) {
            r->first = 1;
            sim.first_ms += now - r->when;
            sim.firsts++;
        }

        rk->work++;

        if (--r->left == 0) {
            *p = r->next;
            rk->n_running--;
            rank_finish(i, r, now);
            continue;
        }

        p = &r->next;
    }
}


/* 0: not enough blocks; it waits. */

static int
rank_admit(uint32_t i, request_t *r)
{
    rank_t    *rk;
    block_t   *b;
    uint32_t   k, depth, need;

    rk = &sim.ranks[i];
    depth = cache_depth(rk, r);
    need = 0;

    for (k = 0; k < r->n_after; k++) {
        b = cache_find(rk, r->tags[k].tag);

        /* One that nobody holds can no longer be evicted. */

        need += b == NULL || b->holders == 0;
    }

    if (opt.blocks - rk->blocks + rk->idle < need) {
        return 0;
    }

    /* Those that are there first, lest they make room for the others. */

    for (k = 0; k < r->n_after; k++) {
        b = cache_find(rk, r->tags[k].tag);

        if (b != NULL) {
            cache_hold(rk, b);
        }
    }

    for (k = 0; k < r->n_after; k++) {
        cache_take(i, r->tags[k].tag, k < r->n);
    }

    r->todo = r->tokens - depth * BLOCK_TOKENS;
    r->todo = r->todo == 0 ? 1 : r->todo;
    sim.cached += r->tokens - r->todo;
    sim.prompts += r->tokens;

    if (sim.policy == OURS) {
        ours_admitted(r, i);
    }

    return 1;
}


/* Its blocks stay as cache; then the client thinks about the next turn. */

static void
rank_finish(uint32_t i, request_t *r, double now)
{
    uint32_t  k;
    talk_t   *talk;

    for (k = (uint32_t) r->n_after; k-- > 0; /* void */) {
        cache_drop(&sim.ranks[i], cache_find(&sim.ranks[i], r->tags[k].tag));
    }

    talk = r->talk;

    if (r->turn + 1 < talk->turns) {
        run_add(trace_request(talk, r->turn + 1,
                              now + talk->think[r->turn + 1]));
    }

    free(r->tags);
    free(r);
}
