/*
 * The exchange between ranks of one process on devices.
 *
 * The backends do it (peer_send() and so on, backend.h); here ranks' threads
 * meet, so that each has queued what others wait for before these queue that
 * they wait.  No thread waits for a device.
 *
 * A rank whose device has failed goes on as if nothing were; the failure is
 * told at the end of its step, and the step fails.
 */

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_hub.h"
#include "ep/exchange.h"


typedef struct {
    ep_hub_t           *meet;
    be_peer_options_t   opt;
    _Atomic uint32_t    open;
    be_peer_t         **peer;        /* [ranks] */
    be_peer_send_t     *send;        /* [ranks] what each shows */
} ep_peer_all_t;

typedef struct {
    ep_exchange_t   ex;              /* first */
    ep_peer_all_t  *all;
    be_t           *be;              /* NULL: not attached */
    int             dispatched;
} ep_peer_t;


static void peer_all_free(ep_peer_all_t *all);
static int peer_attach(ep_exchange_t *ex, be_t *be, const be_mlp_t *expert,
    char *err);
static void peer_detach(ep_exchange_t *ex);
static int peer_dispatch(ep_exchange_t *ex, const ep_send_t *send,
    be_pairs_t *pairs, char *err);
static int peer_check(const ep_peer_t *p, const ep_send_t *send, char *err);
static int peer_combine(ep_exchange_t *ex, char *err);
static int peer_barrier(ep_exchange_t *ex, char *err);
static void peer_abort(ep_exchange_t *ex);
static void peer_close(ep_exchange_t *ex);


int
ep_peer_open(ep_exchange_t **ex, uint32_t ranks, uint32_t max_rows,
    uint32_t top_k, uint32_t experts, uint32_t hidden, int exact,
    uint32_t timeout_ms, char *err)
{
    uint32_t        r;
    ep_peer_t      *p;
    ep_peer_all_t  *all;

    if (ranks == 0 || ranks > BE_PEERS_MAX) {
        snprintf(err, ERR_LEN, "%u ranks on devices: 1 to %u are possible",
                 ranks, BE_PEERS_MAX);
        return -1;
    }

    if ((uint64_t) ranks * max_rows * top_k > INT32_MAX) {
        snprintf(err, ERR_LEN, "an exchange of %u ranks, %u rows and %u "
                 "experts a row is too large", ranks, max_rows, top_k);
        return -1;
    }

    all = calloc(1, sizeof(ep_peer_all_t));
    if (all == NULL) {
        goto nomem;
    }

    all->opt.ranks = ranks;
    all->opt.max_rows = max_rows;
    all->opt.top_k = top_k;
    all->opt.experts = experts;
    all->opt.hidden = hidden;
    all->opt.exact = exact;
    all->meet = ep_hub_open(ranks, 0, timeout_ms);
    all->peer = calloc(ranks, sizeof(be_peer_t *));
    all->send = calloc(ranks, sizeof(be_peer_send_t));

    if (all->meet == NULL || all->peer == NULL || all->send == NULL) {
        peer_all_free(all);
        goto nomem;
    }

    for (r = 0; r < ranks; r++) {
        p = calloc(1, sizeof(ep_peer_t));

        if (p == NULL) {
            while (r-- > 0) {
                free(ex[r]);
                ex[r] = NULL;
            }

            peer_all_free(all);
            goto nomem;
        }

        p->all = all;
        p->ex.name = "peer";
        p->ex.rank = r;
        p->ex.ranks = ranks;
        p->ex.queued = 1;
        p->ex.attach = peer_attach;
        p->ex.detach = peer_detach;
        p->ex.dispatch = peer_dispatch;
        p->ex.combine = peer_combine;
        p->ex.barrier = peer_barrier;
        p->ex.abort = peer_abort;
        p->ex.close = peer_close;

        ex[r] = &p->ex;
    }

    atomic_store(&all->open, ranks);

    return 0;

nomem:

    snprintf(err, ERR_LEN, "no memory for an exchange of %u ranks", ranks);
    return -1;
}


static void
peer_all_free(ep_peer_all_t *all)
{
    ep_hub_close(all->meet);
    free(all->peer);
    free(all->send);
    free(all);
}


static int
peer_attach(ep_exchange_t *ex, be_t *be, const be_mlp_t *expert, char *err)
{
    ep_peer_t          *p;
    be_peer_options_t   opt;

    p = (ep_peer_t *) ex;

    if (be->peer_open == NULL) {
        snprintf(err, ERR_LEN, "the %s backend has no exchange between "
                 "devices", be->name);
        return -1;
    }

    opt = p->all->opt;
    opt.rank = ex->rank;
    opt.expert = expert;

    p->all->peer[ex->rank] = be->peer_open(be, &opt, err);

    if (p->all->peer[ex->rank] == NULL) {
        return -1;
    }

    p->be = be;

    return 0;
}


static void
peer_detach(ep_exchange_t *ex)
{
    ep_peer_t  *p;

    p = (ep_peer_t *) ex;

    if (p->be != NULL) {
        p->be->peer_close(p->be, p->all->peer[ex->rank]);
        p->all->peer[ex->rank] = NULL;
        p->be = NULL;
    }
}


static int
peer_dispatch(ep_exchange_t *ex, const ep_send_t *send, be_pairs_t *pairs,
    char *err)
{
    ep_peer_t             *p;
    ep_peer_all_t         *all;
    be_peer_send_t        *s;
    const ep_placement_t  *at;

    p = (ep_peer_t *) ex;
    all = p->all;
    at = send->placement;

    if (ep_hub_status(all->meet, err) != 0) {
        return -1;
    }

    if (peer_check(p, send, err) != 0) {
        ep_hub_fail(all->meet, err);
        return -1;
    }

    s = &all->send[ex->rank];
    s->experts = at->experts;
    s->homes = at->first[at->experts];
    s->first = at->first;
    s->home = at->rank;
    s->slot = at->slot;
    s->slots = at->count[ex->rank];
    s->batch = send->batch;
    s->rows = send->rows;
    s->x = send->x;
    s->id = send->id;
    s->contrib = send->contrib;
    s->load = send->load;

    p->be->peer_send(p->be, all->peer, s);

    if (ep_hub_meet(all->meet, ex->rank, "dispatch", NULL, NULL, err) != 0) {
        return -1;
    }

    p->be->peer_pairs(p->be, all->peer, all->send, pairs);
    p->dispatched = 1;

    return 0;
}


static int
peer_check(const ep_peer_t *p, const ep_send_t *send, char *err)
{
    uint32_t                  r;
    const ep_placement_t     *at;
    const be_peer_options_t  *opt;

    opt = &p->all->opt;
    at = send->placement;

    if (p->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: dispatch without combine",
                 p->ex.rank);
        return -1;
    }

    for (r = 0; r < opt->ranks && p->all->peer[r] != NULL; r++) {
        /* void */
    }

    if (r != opt->ranks || send->be != p->be) {
        snprintf(err, ERR_LEN, "rank %u: rank %u is not attached", p->ex.rank,
                 r != opt->ranks ? r : p->ex.rank);
        return -1;
    }

    if (at->ranks != opt->ranks || at->experts > opt->experts
        || send->rows > opt->max_rows || send->top_k != opt->top_k
        || send->hidden != opt->hidden)
    {
        snprintf(err, ERR_LEN, "rank %u: dispatch of %u rows to %u experts "
                 "each is not what the exchange was made for", p->ex.rank,
                 send->rows, send->top_k);
        return -1;
    }

    return 0;
}


static int
peer_combine(ep_exchange_t *ex, char *err)
{
    ep_peer_t      *p;
    ep_peer_all_t  *all;

    p = (ep_peer_t *) ex;
    all = p->all;

    if (!p->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: combine without dispatch", ex->rank);
        ep_hub_fail(all->meet, err);
        return -1;
    }

    p->dispatched = 0;
    p->be->peer_return(p->be, all->peer);

    if (ep_hub_meet(all->meet, ex->rank, "combine", NULL, NULL, err) != 0) {
        return -1;
    }

    p->be->peer_collect(p->be, all->peer, &all->send[ex->rank]);

    return 0;
}


static int
peer_barrier(ep_exchange_t *ex, char *err)
{
    return ep_hub_meet(((ep_peer_t *) ex)->all->meet, ex->rank, "barrier",
                       NULL, NULL, err);
}


static void
peer_abort(ep_exchange_t *ex)
{
    char  why[64];

    snprintf(why, sizeof(why), "rank %u left the exchange", ex->rank);
    ep_hub_fail(((ep_peer_t *) ex)->all->meet, why);
}


static void
peer_close(ep_exchange_t *ex)
{
    ep_peer_t      *p;
    ep_peer_all_t  *all;

    p = (ep_peer_t *) ex;
    all = p->all;

    free(p);

    if (atomic_fetch_sub_explicit(&all->open, 1, memory_order_acq_rel) == 1) {
        peer_all_free(all);
    }
}
