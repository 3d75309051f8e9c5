/*
 * The exchange between ranks of one process on devices, and with those of
 * other nodes (ep_nccl.c).
 *
 * The backends do it (peer_send() and so on, backend.h); here ranks' threads
 * meet, so that each has queued what others wait for before these queue that
 * they wait: dispatch() is send(), a meeting and receive(), combine() is
 * give(), a meeting and collect().  Of a step in two micro-batches these come
 * by themselves, and each part has its own `send`.  What a rank shows there
 * stays until all have looked, as its next send() of that part comes after a
 * meeting that follows.  No thread waits for a device.  Without other nodes
 * the backends also meet at the beginning of a step, and record it if all can:
 * a step that is replayed has none of the meetings here.
 *
 * A rank whose device has failed goes on as if nothing were; the failure is
 * told at the end of its step, and the step fails.  With other nodes, which
 * would wait for it, it is told at once.
 */

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_peer_int.h"


static int peer_meet(void *ctx, uint32_t rank, const char *what,
    int (*last)(void *arg, char *err), void *arg, char *err);
static int peer_status(void *ctx, char *err);
static void peer_all_free(ep_peer_all_t *all);
static int peer_attach(ep_exchange_t *ex, be_t *be, const be_mlp_t *expert,
    char *err);
static void peer_detach(ep_exchange_t *ex);
static int peer_dispatch(ep_exchange_t *ex, const ep_send_t *send,
    be_pairs_t *pairs, char *err);
static int peer_combine(ep_exchange_t *ex, char *err);
static int peer_send(ep_exchange_t *ex, const ep_send_t *send, char *err);
static int peer_check(const ep_peer_t *p, const ep_send_t *send, char *err);
static uint32_t peer_rows(const ep_peer_all_t *all, uint32_t part);
static int peer_receive(ep_exchange_t *ex, uint32_t part, be_pairs_t *pairs,
    char *err);
static int peer_give(ep_exchange_t *ex, uint32_t part, char *err);
static int peer_collect(ep_exchange_t *ex, uint32_t part, char *err);
static int peer_turn(ep_peer_t *p, uint32_t part, peer_state_t from,
    peer_state_t to, const char *what, char *err);
static uint32_t peer_most(ep_exchange_t *ex);
static int peer_let_go(ep_peer_t *p);
static int peer_barrier(ep_exchange_t *ex, char *err);
static void peer_abort(ep_exchange_t *ex);
static void peer_close(ep_exchange_t *ex);


int
ep_peer_open(ep_exchange_t **ex, uint32_t ranks, uint32_t max_rows,
    uint32_t top_k, uint32_t experts, uint32_t hidden, int exact,
    uint32_t micro, uint32_t timeout_ms, char *err)
{
    be_peer_options_t  opt;

    memset(&opt, 0, sizeof(opt));
    opt.ranks = ranks;
    opt.max_rows = max_rows;
    opt.top_k = top_k;
    opt.experts = experts;
    opt.hidden = hidden;
    opt.exact = exact;
    opt.timeout_ms = timeout_ms;
    opt.meet = peer_meet;

    return ep_peer_all_open(ex, &opt, 0, ranks, micro, timeout_ms, err);
}


static uint32_t
peer_most(ep_exchange_t *ex)
{
    ep_peer_all_t  *all;

    all = ((ep_peer_t *) ex)->all;

    return all->nodes != NULL ? all->most : 0;
}


/* For the backend, at the beginning and the end of a step. */

static int
peer_meet(void *ctx, uint32_t rank, const char *what,
    int (*last)(void *arg, char *err), void *arg, char *err)
{
    ep_peer_all_t  *all;

    all = ctx;

    return ep_hub_meet(all->meet, rank - all->first, what, last, arg, err);
}


/* For the backend, which may have to stop waiting, or to say that it has. */

static int
peer_status(void *ctx, char *err)
{
    return ep_hub_status(((ep_peer_all_t *) ctx)->meet, err);
}


void
ep_peer_fail(void *ctx, const char *why)
{
    ep_hub_fail(((ep_peer_all_t *) ctx)->meet, why);
}


int
ep_peer_all_open(ep_exchange_t **ex, const be_peer_options_t *opt,
    uint32_t first, uint32_t local, uint32_t micro, uint32_t timeout_ms,
    char *err)
{
    uint32_t        r;
    ep_peer_t      *p;
    ep_peer_all_t  *all;

    if (local == 0 || opt->ranks > BE_PEERS_MAX) {
        snprintf(err, ERR_LEN, "%u ranks on devices: 1 to %u are possible",
                 opt->ranks, BE_PEERS_MAX);
        return -1;
    }

    if ((uint64_t) opt->ranks * opt->max_rows * opt->top_k > INT32_MAX) {
        snprintf(err, ERR_LEN, "an exchange of %u ranks, %u rows and %u "
                 "experts a row is too large", opt->ranks, opt->max_rows,
                 opt->top_k);
        return -1;
    }

    all = calloc(1, sizeof(ep_peer_all_t));
    if (all == NULL) {
        goto nomem;
    }

    all->opt = *opt;
    all->first = first;
    all->local = local;
    all->meet = ep_hub_open(local, first, timeout_ms);
    all->peer = calloc(opt->ranks, sizeof(be_peer_t *));
    all->send[0] = calloc(opt->ranks, sizeof(be_peer_send_t));
    all->send[1] = calloc(opt->ranks, sizeof(be_peer_send_t));

    if (all->meet == NULL || all->peer == NULL || all->send[0] == NULL
        || all->send[1] == NULL)
    {
        peer_all_free(all);
        goto nomem;
    }

    all->opt.status = peer_status;
    all->opt.fail = ep_peer_fail;
    all->opt.peers = all->peer;
    all->opt.ctx = all;

    for (r = 0; r < local; r++) {
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
        p->ex.name = (local == opt->ranks) ? "peer" : "nccl";
        p->ex.rank = first + r;
        p->ex.ranks = opt->ranks;
        p->ex.queued = 1;
        p->ex.recorded = (opt->meet != NULL);
        p->ex.attach = peer_attach;
        p->ex.detach = peer_detach;
        p->ex.dispatch = peer_dispatch;
        p->ex.combine = peer_combine;
        p->ex.micro = (opt->ranks > 1) ? micro : 0;
        p->ex.send = peer_send;
        p->ex.receive = peer_receive;
        p->ex.give = peer_give;
        p->ex.collect = peer_collect;
        p->ex.most = peer_most;
        p->ex.barrier = peer_barrier;
        p->ex.abort = peer_abort;
        p->ex.close = peer_close;

        ex[r] = &p->ex;
    }

    atomic_store(&all->open, local);
    ep_nccl_most(ex[0], opt->max_rows);

    return 0;

nomem:

    snprintf(err, ERR_LEN, "no memory for an exchange of %u ranks",
             opt->ranks);
    return -1;
}


static void
peer_all_free(ep_peer_all_t *all)
{
    ep_hub_close(all->meet);
    free(all->peer);
    free(all->send[0]);
    free(all->send[1]);
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
        if (p->all->nodes != NULL) {
            ep_hub_fail(p->all->meet, err);
        }

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
    return (peer_send(ex, send, err) != 0) ? -1
           : peer_receive(ex, send->part, pairs, err);
}


static int
peer_combine(ep_exchange_t *ex, char *err)
{
    return (peer_give(ex, 0, err) != 0) ? -1 : peer_collect(ex, 0, err);
}


static int
peer_send(ep_exchange_t *ex, const ep_send_t *send, char *err)
{
    ep_peer_t             *p;
    ep_peer_all_t         *all;
    be_peer_send_t        *s;
    const ep_placement_t  *at;

    p = (ep_peer_t *) ex;
    all = p->all;
    at = send->placement;

    if (peer_turn(p, send->part, PEER_IDLE, PEER_SENT,
                  "dispatch without combine", err)
        != 0)
    {
        return -1;
    }

    if (peer_check(p, send, err) != 0) {
        ep_hub_fail(all->meet, err);
        return peer_let_go(p);
    }

    s = &all->send[send->part == 2][ex->rank];
    s->experts = at->experts;
    s->homes = at->first[at->experts];
    s->first = at->first;
    s->home = at->rank;
    s->slot = at->slot;
    s->slots = at->count[ex->rank];
    s->batch = send->batch;
    s->rows = send->rows;
    s->most = peer_rows(all, send->part);
    s->x = send->x;
    s->id = send->id;
    s->contrib = send->contrib;
    s->load = send->load;

    p->be->peer_send(p->be, all->peer, s);

    return 0;
}


static int
peer_check(const ep_peer_t *p, const ep_send_t *send, char *err)
{
    uint32_t                  r, last;
    const ep_placement_t     *at;
    const be_peer_options_t  *opt;

    opt = &p->all->opt;
    at = send->placement;
    last = p->all->first + p->all->local;

    for (r = p->all->first; r < last && p->all->peer[r] != NULL; r++) {
        /* void */
    }

    if (r != last || send->be != p->be) {
        snprintf(err, ERR_LEN, "rank %u: rank %u is not attached", p->ex.rank,
                 r != last ? r : p->ex.rank);
        return -1;
    }

    if (at->ranks != opt->ranks || at->experts > opt->experts
        || send->rows > peer_rows(p->all, send->part)
        || send->top_k != opt->top_k || send->hidden != opt->hidden)
    {
        snprintf(err, ERR_LEN, "rank %u: dispatch of %u rows to %u experts "
                 "each is not what the exchange was made for", p->ex.rank,
                 send->rows, send->top_k);
        return -1;
    }

    return 0;
}


/* That a part may have now: the first micro-batch has one more if need be. */

static uint32_t
peer_rows(const ep_peer_all_t *all, uint32_t part)
{
    return (part == 0) ? all->most : (all->most + (part == 1)) / 2;
}


static int
peer_receive(ep_exchange_t *ex, uint32_t part, be_pairs_t *pairs, char *err)
{
    ep_peer_t      *p;
    ep_peer_all_t  *all;

    p = (ep_peer_t *) ex;
    all = p->all;

    if (peer_turn(p, part, PEER_SENT, PEER_RECEIVED,
                  "nothing was dispatched", err)
        != 0)
    {
        return -1;
    }

    if (ep_hub_meet(all->meet, ex->rank - all->first, "dispatch", NULL, NULL,
                    err)
        != 0)
    {
        return peer_let_go(p);
    }

    p->be->peer_pairs(p->be, all->peer, all->send[part == 2], pairs);

    return 0;
}


static int
peer_give(ep_exchange_t *ex, uint32_t part, char *err)
{
    ep_peer_t  *p;

    p = (ep_peer_t *) ex;

    if (peer_turn(p, part, PEER_RECEIVED, PEER_GIVEN,
                  "combine without dispatch", err)
        != 0)
    {
        return -1;
    }

    p->be->peer_return(p->be, p->all->peer);

    return 0;
}


static int
peer_collect(ep_exchange_t *ex, uint32_t part, char *err)
{
    ep_peer_t      *p;
    ep_peer_all_t  *all;

    p = (ep_peer_t *) ex;
    all = p->all;

    if (peer_turn(p, part, PEER_GIVEN, PEER_IDLE, "nothing was given", err)
        != 0)
    {
        return -1;
    }

    if (ep_hub_meet(all->meet, ex->rank - all->first, "combine", NULL, NULL,
                    err)
        != 0)
    {
        return peer_let_go(p);
    }

    p->be->peer_collect(p->be, all->peer,
                        &all->send[part == 2][ex->rank]);

    return 0;
}


/* The order of calls; where it is broken all fail. */

static int
peer_turn(ep_peer_t *p, uint32_t part, peer_state_t from, peer_state_t to,
    const char *what, char *err)
{
    peer_state_t  *state;

    if (ep_hub_status(p->all->meet, err) != 0) {
        return peer_let_go(p);
    }

    state = &p->state[part == 2];

    if (*state != from) {
        snprintf(err, ERR_LEN, "rank %u: %s", p->ex.rank, what);
        ep_hub_fail(p->all->meet, err);
        return peer_let_go(p);
    }

    *state = to;

    return 0;
}


/*
 * A recording ends here, as its thread is the one that may end it.  With other
 * nodes, what a rank has queued may never end by itself, and other ranks'
 * streams wait for it: its backend looks, sees that all has failed, and gives
 * it up.
 */

static int
peer_let_go(ep_peer_t *p)
{
    char  why[ERR_LEN];

    if (p->be != NULL && p->be->peer_stop != NULL) {
        p->be->peer_stop(p->be);
    }

    if (p->all->nodes != NULL && p->be != NULL) {
        (void) p->be->sync(p->be, why);
    }

    return -1;
}


static int
peer_barrier(ep_exchange_t *ex, char *err)
{
    ep_peer_t      *p;
    ep_peer_all_t  *all;

    p = (ep_peer_t *) ex;
    all = p->all;

    if (ep_hub_meet(all->meet, ex->rank - all->first, "barrier",
                    all->nodes != NULL ? ep_nccl_barrier : NULL, all, err)
        != 0)
    {
        return peer_let_go(p);
    }

    return 0;
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
        if (all->nodes != NULL) {
            ep_nodes_on_fail(all->nodes, NULL, NULL);
        }

        peer_all_free(all);
    }
}
