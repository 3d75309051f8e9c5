/*
 * The exchange between ranks of one process.
 *
 * Nothing is copied: a rank shows the others what it sends, each of them
 * picks the pairs of its own experts and reads rows and writes contributions
 * in the home rank's memory.  What remains is two meetings per MoE layer:
 * after all have shown their rows, and after all have written.
 */

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_gather.h"
#include "ep/ep_hub.h"


typedef struct {
    ep_hub_t          *meet;
    uint32_t           ranks;
    uint32_t           max_rows;
    uint32_t           max_top_k;
    uint32_t           max_experts;
    _Atomic uint32_t   open;         /* exchanges not closed yet */
    ep_send_t         *send;         /* [ranks] what each shows */
} ep_host_all_t;


typedef struct {
    ep_exchange_t   ex;              /* first: the two are cast */
    ep_host_all_t  *all;
    ep_gather_t     mine;
    int             dispatched;
} ep_host_t;


static ep_host_t *ep_host_rank(ep_host_all_t *all, uint32_t rank);
static void ep_host_rank_free(ep_host_t *h);
static void ep_host_all_free(ep_host_all_t *all);
static int ep_host_dispatch(ep_exchange_t *ex, const ep_send_t *send,
    be_pairs_t *pairs, char *err);
static int ep_host_check(ep_host_t *h, const ep_send_t *send, char *err);
static void ep_host_collect(ep_host_t *h, const ep_placement_t *p);
static int ep_host_combine(ep_exchange_t *ex, char *err);
static int ep_host_barrier(ep_exchange_t *ex, char *err);
static void ep_host_abort(ep_exchange_t *ex);
static void ep_host_close(ep_exchange_t *ex);


int
ep_host_open(ep_exchange_t **ex, uint32_t ranks, uint32_t max_rows,
    uint32_t max_top_k, uint32_t max_experts, uint32_t timeout_ms, char *err)
{
    uint32_t        r;
    ep_host_t      *h;
    ep_host_all_t  *all;

    if (ranks == 0 || ranks > EP_RANKS_MAX) {
        snprintf(err, ERR_LEN, "%u ranks: 1 to %u are possible", ranks,
                 EP_RANKS_MAX);
        return -1;
    }

    if ((uint64_t) ranks * max_rows * max_top_k > INT32_MAX) {
        snprintf(err, ERR_LEN, "an exchange of %u ranks, %u rows and %u "
                 "experts a row is too large", ranks, max_rows, max_top_k);
        return -1;
    }

    all = calloc(1, sizeof(ep_host_all_t));
    if (all == NULL) {
        goto nomem;
    }

    all->ranks = ranks;
    all->max_rows = max_rows;
    all->max_top_k = max_top_k;
    all->max_experts = max_experts;
    all->meet = ep_hub_open(ranks, 0, timeout_ms);
    all->send = calloc(ranks, sizeof(ep_send_t));

    if (all->meet == NULL || all->send == NULL) {
        ep_host_all_free(all);
        goto nomem;
    }

    for (r = 0; r < ranks; r++) {
        h = ep_host_rank(all, r);

        if (h == NULL) {
            while (r-- > 0) {
                ep_host_rank_free((ep_host_t *) ex[r]);
                ex[r] = NULL;
            }

            ep_host_all_free(all);
            goto nomem;
        }

        ex[r] = &h->ex;
    }

    atomic_store(&all->open, ranks);

    return 0;

nomem:

    snprintf(err, ERR_LEN, "no memory for an exchange of %u ranks, %u rows "
             "and %u experts a row", ranks, max_rows, max_top_k);
    return -1;
}


static ep_host_t *
ep_host_rank(ep_host_all_t *all, uint32_t rank)
{
    ep_host_t  *h;

    h = calloc(1, sizeof(ep_host_t));
    if (h == NULL) {
        return NULL;
    }

    h->all = all;

    if (ep_gather_open(&h->mine, all->ranks, all->max_rows, all->max_top_k,
                       all->max_experts)
        != 0)
    {
        ep_host_rank_free(h);
        return NULL;
    }

    h->ex.name = "host";
    h->ex.rank = rank;
    h->ex.ranks = all->ranks;
    h->ex.dispatch = ep_host_dispatch;
    h->ex.combine = ep_host_combine;
    h->ex.barrier = ep_host_barrier;
    h->ex.abort = ep_host_abort;
    h->ex.close = ep_host_close;

    return h;
}


static void
ep_host_rank_free(ep_host_t *h)
{
    ep_gather_close(&h->mine);
    free(h);
}


static void
ep_host_all_free(ep_host_all_t *all)
{
    ep_hub_close(all->meet);
    free(all->send);
    free(all);
}


static int
ep_host_dispatch(ep_exchange_t *ex, const ep_send_t *send, be_pairs_t *pairs,
    char *err)
{
    ep_host_t      *h;
    ep_host_all_t  *all;

    h = (ep_host_t *) ex;
    all = h->all;

    /* others may still look at what a failed exchange has shown them */

    if (ep_hub_status(all->meet, err) != 0) {
        return -1;
    }

    if (ep_host_check(h, send, err) != 0) {
        ep_hub_fail(all->meet, err);
        return -1;
    }

    all->send[ex->rank] = *send;

    if (ep_hub_meet(all->meet, ex->rank, "dispatch", NULL, NULL, err) != 0) {
        return -1;
    }

    ep_host_collect(h, send->placement);
    ep_gather_pairs(&h->mine, send->placement, ex->rank, pairs);

    h->dispatched = 1;

    return 0;
}


/* Checked by the home rank, so that the others need not. */

static int
ep_host_check(ep_host_t *h, const ep_send_t *send, char *err)
{
    ep_host_all_t  *all;

    all = h->all;

    if (h->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: dispatch without combine",
                 h->ex.rank);
        return -1;
    }

    return ep_share_check(&h->mine.share, h->ex.rank, send, all->max_rows,
                          all->max_top_k, UINT32_MAX, err);
}


static void
ep_host_collect(ep_host_t *h, const ep_placement_t *p)
{
    size_t            i, n;
    uint32_t          e, r, me;
    const ep_send_t  *s;

    me = h->ex.rank;

    ep_gather_begin(&h->mine, p, h->all->send, me);

    for (r = 0; r < h->all->ranks; r++) {
        s = &h->all->send[r];
        n = (size_t) s->rows * s->top_k;

        for (i = 0; i < n; i++) {
            e = (uint32_t) s->id[i];

            if (ep_share_next(&h->mine.share, p, e) == me) {
                ep_gather_put(&h->mine, e, s->x + i / s->top_k * s->hidden,
                              s->contrib + i * s->hidden);
            }
        }
    }
}


static int
ep_host_combine(ep_exchange_t *ex, char *err)
{
    ep_host_t  *h;

    h = (ep_host_t *) ex;

    if (!h->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: combine without dispatch", ex->rank);
        ep_hub_fail(h->all->meet, err);
        return -1;
    }

    h->dispatched = 0;

    return ep_hub_meet(h->all->meet, ex->rank, "combine", NULL, NULL, err);
}


static int
ep_host_barrier(ep_exchange_t *ex, char *err)
{
    return ep_hub_meet(((ep_host_t *) ex)->all->meet, ex->rank, "barrier",
                       NULL, NULL, err);
}


static void
ep_host_abort(ep_exchange_t *ex)
{
    char  why[64];

    snprintf(why, sizeof(why), "rank %u left the exchange", ex->rank);
    ep_hub_fail(((ep_host_t *) ex)->all->meet, why);
}


static void
ep_host_close(ep_exchange_t *ex)
{
    ep_host_t      *h;
    ep_host_all_t  *all;

    h = (ep_host_t *) ex;
    all = h->all;

    ep_host_rank_free(h);

    if (atomic_fetch_sub_explicit(&all->open, 1, memory_order_acq_rel) == 1) {
        ep_host_all_free(all);
    }
}
