/*
 * The exchange of one rank alone on a device: nothing is exchanged, and pairs
 * are sorted where the rows are.
 */

#include <stdio.h>
#include <stdlib.h>

#include "ep/exchange.h"


typedef struct {
    ep_exchange_t  ex;               /* first */
    uint32_t       max_experts;
    int            dispatched;
    int            failed;
} ep_local_t;


static int ep_local_dispatch(ep_exchange_t *ex, const ep_send_t *send,
    be_pairs_t *pairs, char *err);
static int ep_local_combine(ep_exchange_t *ex, char *err);
static int ep_local_barrier(ep_exchange_t *ex, char *err);
static void ep_local_abort(ep_exchange_t *ex);
static void ep_local_close(ep_exchange_t *ex);


ep_exchange_t *
ep_local_open(uint32_t max_experts, char *err)
{
    ep_local_t  *l;

    l = calloc(1, sizeof(ep_local_t));
    if (l == NULL) {
        snprintf(err, ERR_LEN, "no memory for an exchange");
        return NULL;
    }

    l->ex.name = "local";
    l->ex.ranks = 1;
    l->ex.queued = 1;
    l->ex.recorded = 1;
    l->ex.dispatch = ep_local_dispatch;
    l->ex.combine = ep_local_combine;
    l->ex.barrier = ep_local_barrier;
    l->ex.abort = ep_local_abort;
    l->ex.close = ep_local_close;
    l->max_experts = max_experts;

    return &l->ex;
}


static int
ep_local_dispatch(ep_exchange_t *ex, const ep_send_t *send, be_pairs_t *pairs,
    char *err)
{
    uint32_t               e;
    ep_local_t            *l;
    be_route_t             route;
    const ep_placement_t  *p;

    l = (ep_local_t *) ex;
    p = send->placement;

    if (l->failed || l->dispatched) {
        snprintf(err, ERR_LEN, "rank 0: %s", l->failed
                 ? "left the exchange" : "dispatch without combine");
        return -1;
    }

    for (e = 0; e < p->count[0] && p->expert[e] == e; e++) { /* void */ }

    if (p->ranks != 1 || p->experts > l->max_experts || e != p->experts
        || send->be == NULL || send->be->route == NULL)
    {
        snprintf(err, ERR_LEN, "%u experts in %u slots of one rank of %u are "
                 "more than the exchange was made for", p->experts,
                 p->count[0], p->ranks);
        return -1;
    }

    route.batch = send->batch;
    route.rows = send->rows;
    route.hidden = send->hidden;
    route.top_k = send->top_k;
    route.experts = p->experts;
    route.id = send->id;
    route.x = send->x;
    route.contrib = send->contrib;
    route.load = send->load;

    send->be->route(send->be, &route, pairs);
    l->dispatched = 1;

    return 0;
}


static int
ep_local_combine(ep_exchange_t *ex, char *err)
{
    ep_local_t  *l;

    l = (ep_local_t *) ex;

    if (!l->dispatched) {
        snprintf(err, ERR_LEN, "rank 0: combine without dispatch");
        return -1;
    }

    l->dispatched = 0;

    return 0;
}


static int
ep_local_barrier(ep_exchange_t *ex, char *err)
{
    if (((ep_local_t *) ex)->failed) {
        snprintf(err, ERR_LEN, "rank 0 left the exchange");
        return -1;
    }

    return 0;
}


static void
ep_local_abort(ep_exchange_t *ex)
{
    ((ep_local_t *) ex)->failed = 1;
}


static void
ep_local_close(ep_exchange_t *ex)
{
    free(ex);
}
