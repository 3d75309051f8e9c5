/*
 * The exchange between nodes.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_tcp_int.h"


static int tcp_all(ep_tcp_all_t *all);
static void tcp_all_free(ep_tcp_all_t *all);
static ep_tcp_t *tcp_rank(ep_tcp_all_t *all, uint32_t index);
static void tcp_rank_free(ep_tcp_t *t);
static int tcp_dispatch(ep_exchange_t *ex, const ep_send_t *send,
    be_pairs_t *pairs, char *err);
static int tcp_check(ep_tcp_t *t, const ep_send_t *send, char *err);
static int tcp_dispatch_last(void *ctx, char *err);
static void tcp_collect(ep_tcp_t *t, const ep_placement_t *p);
static void tcp_pair(ep_tcp_t *t, uint32_t home, size_t i, uint32_t owner,
    uint32_t e);
static int tcp_combine(ep_exchange_t *ex, char *err);
static int tcp_combine_last(void *ctx, char *err);
static int tcp_barrier(ep_exchange_t *ex, char *err);
static int tcp_barrier_last(void *ctx, char *err);
static void tcp_abort(ep_exchange_t *ex);
static void tcp_close(ep_exchange_t *ex);
static void tcp_failed(void *ctx, const char *why);
static void tcp_node_failed(void *ctx, const char *why);


int
ep_tcp_open(ep_exchange_t **ex, ep_nodes_t *nodes, uint32_t ranks,
    uint32_t max_rows, uint32_t max_top_k, uint32_t max_experts,
    uint32_t max_hidden, uint32_t timeout_ms, char *err)
{
    uint32_t       r;
    ep_tcp_t      *t;
    ep_tcp_all_t  *all;

    all = calloc(1, sizeof(ep_tcp_all_t));
    if (all == NULL) {
        goto nomem;
    }

    all->nodes = nodes;
    all->n_nodes = ep_nodes_count(nodes);
    all->self = ep_nodes_self(nodes);
    all->local = ranks;
    all->ranks = ranks * all->n_nodes;
    all->first = ranks * all->self;
    all->max_rows = max_rows;
    all->max_top_k = max_top_k;
    all->max_experts = max_experts;
    all->max_hidden = max_hidden;

    if (ranks == 0 || all->ranks > EP_RANKS_MAX) {
        snprintf(err, ERR_LEN, "%u ranks on each of %u nodes: 1 to %u are "
                 "possible together", ranks, all->n_nodes, EP_RANKS_MAX);
        free(all);
        return -1;
    }

    if ((uint64_t) all->ranks * max_rows * max_top_k > INT32_MAX) {
        snprintf(err, ERR_LEN, "an exchange of %u ranks, %u rows and %u "
                 "experts a row is too large", all->ranks, max_rows,
                 max_top_k);
        free(all);
        return -1;
    }

    all->meet = ep_hub_open(ranks, all->first, timeout_ms);

    if (all->meet == NULL || tcp_all(all) != 0) {
        tcp_all_free(all);
        goto nomem;
    }

    for (r = 0; r < ranks; r++) {
        t = tcp_rank(all, r);

        if (t == NULL) {
            while (r-- > 0) {
                tcp_rank_free((ep_tcp_t *) ex[r]);
                ex[r] = NULL;
            }

            tcp_all_free(all);
            goto nomem;
        }

        ex[r] = &t->ex;
    }

    atomic_store(&all->open, ranks);
    ep_hub_tell(all->meet, tcp_failed, all);
    ep_nodes_on_fail(nodes, tcp_node_failed, all);

    if (ep_nodes_status(nodes, err) != 0) {
        ep_hub_fail(all->meet, err);
    }

    return 0;

nomem:

    snprintf(err, ERR_LEN, "no memory for an exchange of %u ranks, %u rows "
             "and %u experts a row", ranks, max_rows, max_top_k);
    return -1;
}


static int
tcp_all(ep_tcp_all_t *all)
{
    size_t       pairs;
    uint32_t     i;
    tcp_peer_t  *p;

    all->send = calloc(all->ranks, sizeof(ep_send_t));
    all->row = calloc((size_t) all->ranks * all->max_rows + 1,
                      sizeof(*all->row));
    all->where = calloc((size_t) all->max_experts + 1, sizeof(uint64_t));
    all->head = calloc(TCP_HEAD / 4 + all->local, sizeof(uint32_t));
    all->peer = calloc(all->n_nodes, sizeof(tcp_peer_t));
    all->out = calloc(all->n_nodes, sizeof(ep_out_t));
    all->in = calloc(all->n_nodes, sizeof(ep_in_t));

    if (all->send == NULL || all->row == NULL || all->where == NULL
        || all->head == NULL || all->peer == NULL || all->out == NULL
        || all->in == NULL)
    {
        return -1;
    }

    pairs = (size_t) all->local * all->max_rows * all->max_top_k;
    all->max_frame = TCP_HEAD + all->local * sizeof(uint32_t)
                     + pairs * sizeof(int32_t)
                     + (size_t) all->local * all->max_rows * all->max_hidden
                       * sizeof(float);

    for (i = 0; i < all->n_nodes; i++) {

        if (i == all->self) {
            continue;
        }

        /* pages that are never used are never taken */

        p = &all->peer[i];
        p->iov = calloc(2 + (size_t) all->local * (1 + all->max_rows),
                        sizeof(struct iovec));
        p->frame = malloc(all->max_frame);
        p->give = malloc(pairs * all->max_hidden * sizeof(float) + 1);
        p->take = malloc(pairs * all->max_hidden * sizeof(float) + 1);

        if (p->iov == NULL || p->frame == NULL || p->give == NULL
            || p->take == NULL)
        {
            return -1;
        }
    }

    return 0;
}


static void
tcp_all_free(ep_tcp_all_t *all)
{
    uint32_t  i;

    for (i = 0; all->peer != NULL && i < all->n_nodes; i++) {
        free(all->peer[i].iov);
        free(all->peer[i].frame);
        free(all->peer[i].give);
        free(all->peer[i].take);
    }

    ep_hub_close(all->meet);
    free(all->send);
    free(all->row);
    free(all->where);
    free(all->head);
    free(all->peer);
    free(all->out);
    free(all->in);
    free(all);
}


static ep_tcp_t *
tcp_rank(ep_tcp_all_t *all, uint32_t index)
{
    ep_tcp_t  *t;

    t = calloc(1, sizeof(ep_tcp_t));
    if (t == NULL) {
        return NULL;
    }

    t->all = all;
    t->index = index;
    t->from = calloc((size_t) all->max_rows * all->max_top_k + 1,
                     sizeof(*t->from));
    t->count = calloc(all->n_nodes, sizeof(tcp_count_t));

    if (ep_gather_open(&t->mine, all->ranks, all->max_rows, all->max_top_k,
                       all->max_experts)
        != 0
        || t->from == NULL || t->count == NULL)
    {
        tcp_rank_free(t);
        return NULL;
    }

    t->ex.name = "tcp";
    t->ex.rank = all->first + index;
    t->ex.ranks = all->ranks;
    t->ex.dispatch = tcp_dispatch;
    t->ex.combine = tcp_combine;
    t->ex.barrier = tcp_barrier;
    t->ex.abort = tcp_abort;
    t->ex.close = tcp_close;

    return t;
}


static void
tcp_rank_free(ep_tcp_t *t)
{
    ep_gather_close(&t->mine);
    free(t->from);
    free(t->count);
    free(t);
}


static int
tcp_dispatch(ep_exchange_t *ex, const ep_send_t *send, be_pairs_t *pairs,
    char *err)
{
    ep_tcp_t      *t;
    ep_tcp_all_t  *all;

    t = (ep_tcp_t *) ex;
    all = t->all;

    /* others may still look at what a failed exchange has shown them */

    if (ep_hub_status(all->meet, err) != 0) {
        return -1;
    }

    if (tcp_check(t, send, err) != 0) {
        ep_hub_fail(all->meet, err);
        return -1;
    }

    all->send[ex->rank] = *send;

    if (ep_hub_meet(all->meet, t->index, "dispatch", tcp_dispatch_last, all,
                    err)
        != 0)
    {
        return -1;
    }

    tcp_collect(t, send->placement);
    ep_gather_pairs(&t->mine, send->placement, ex->rank, pairs);

    t->dispatched = 1;

    return 0;
}


static int
tcp_check(ep_tcp_t *t, const ep_send_t *send, char *err)
{
    ep_tcp_all_t  *all;

    all = t->all;

    if (t->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: dispatch without combine",
                 t->ex.rank);
        return -1;
    }

    return ep_share_check(&t->mine.share, t->ex.rank, send, all->max_rows,
                          all->max_top_k, all->max_hidden, err);
}


static int
tcp_dispatch_last(void *ctx, char *err)
{
    uint64_t       hash;
    uint32_t       i;
    ep_send_t     *mine;
    ep_tcp_all_t  *all = ctx;

    mine = &all->send[all->first];

    hash = ep_tcp_hash(mine->placement);
    memcpy(all->head, &hash, sizeof(hash));
    all->head[2] = mine->hidden;
    all->head[3] = mine->top_k;

    for (i = 0; i < all->local; i++) {
        all->head[TCP_HEAD / 4 + i] = mine[i].rows;
    }

    ep_tcp_where(all, mine->placement);

    for (i = 0; i < all->n_nodes; i++) {
        if (i != all->self) {
            ep_tcp_pack(all, i);
            all->in[i].buf = all->peer[i].frame;
            all->in[i].max = all->max_frame;
        }
    }

    if (ep_nodes_swap(all->nodes, EP_FRAME_DISPATCH, "dispatch", all->out,
                      all->in, err)
        != 0)
    {
        return -1;
    }

    for (i = 0; i < all->n_nodes; i++) {
        if (i != all->self && ep_tcp_unpack(all, i, err) != 0) {
            return -1;
        }
    }

    return 0;
}


/*
 * The pairs that are ours, and where pairs of other nodes lie in what is given
 * and taken.
 */

static void
tcp_collect(ep_tcp_t *t, const ep_placement_t *p)
{
    size_t            i, n;
    uint32_t          e, r;
    ep_tcp_all_t     *all;
    const ep_send_t  *s;

    all = t->all;

    memset(t->count, 0, all->n_nodes * sizeof(tcp_count_t));
    ep_gather_begin(&t->mine, p, all->send, t->ex.rank);

    for (r = 0; r < all->ranks; r++) {
        s = &all->send[r];
        n = (size_t) s->rows * s->top_k;

        for (i = 0; i < n; i++) {
            e = (uint32_t) s->id[i];
            tcp_pair(t, r, i, ep_share_next(&t->mine.share, p, e), e);
        }
    }
}


static void
tcp_pair(ep_tcp_t *t, uint32_t home, size_t i, uint32_t owner, uint32_t e)
{
    size_t            row, n;
    float            *y;
    uint32_t          there;
    ep_tcp_all_t     *all;
    const float      *x;
    const ep_send_t  *s;

    all = t->all;
    s = &all->send[home];
    there = owner / all->local;

    if (home / all->local == all->self) {

        if (there != all->self) {
            n = t->count[there].take++;

            if (home == t->ex.rank) {
                t->from[i] = all->peer[there].take + n * s->hidden;
            }

            return;
        }

        if (home == t->ex.rank) {
            t->from[i] = NULL;
        }

        if (owner != t->ex.rank) {
            return;
        }

        x = s->x + i / s->top_k * s->hidden;
        y = s->contrib + i * s->hidden;

    } else {

        if (there != all->self) {
            return;
        }

        n = t->count[home / all->local].give++;

        if (owner != t->ex.rank) {
            return;
        }

        row = i / s->top_k;
        x = all->row[(size_t) home * all->max_rows + row];
        y = all->peer[home / all->local].give + n * s->hidden;
    }

    ep_gather_put(&t->mine, e, x, y);
}


static int
tcp_combine(ep_exchange_t *ex, char *err)
{
    size_t            i, n;
    ep_tcp_t         *t;
    ep_tcp_all_t     *all;
    const ep_send_t  *s;

    t = (ep_tcp_t *) ex;
    all = t->all;

    if (!t->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: combine without dispatch", ex->rank);
        ep_hub_fail(all->meet, err);
        return -1;
    }

    t->dispatched = 0;

    if (ep_hub_meet(all->meet, t->index, "combine", tcp_combine_last, t, err)
        != 0)
    {
        return -1;
    }

    s = &all->send[ex->rank];
    n = (size_t) s->rows * s->top_k;

    for (i = 0; i < n; i++) {
        if (t->from[i] != NULL) {
            memcpy(s->contrib + i * s->hidden, t->from[i],
                   s->hidden * sizeof(float));
        }
    }

    return 0;
}


/* All ranks of the node have counted the same. */

static int
tcp_combine_last(void *ctx, char *err)
{
    size_t         row;
    uint32_t       i;
    ep_tcp_t      *t = ctx;
    tcp_peer_t    *p;
    ep_tcp_all_t  *all;

    all = t->all;
    row = all->send[all->first].hidden * sizeof(float);

    for (i = 0; i < all->n_nodes; i++) {

        if (i == all->self) {
            continue;
        }

        p = &all->peer[i];
        p->n_iov = 1;
        ep_tcp_piece(p, p->give, t->count[i].give * row);

        all->out[i].iov = p->iov;
        all->out[i].n = p->n_iov;
        all->in[i].buf = p->take;
        all->in[i].max = t->count[i].take * row;
    }

    if (ep_nodes_swap(all->nodes, EP_FRAME_COMBINE, "combine", all->out,
                      all->in, err)
        != 0)
    {
        return -1;
    }

    for (i = 0; i < all->n_nodes; i++) {
        if (i != all->self && all->in[i].len != t->count[i].take * row) {
            snprintf(err, ERR_LEN, "node %u: a combine of %zu bytes instead "
                     "of %zu", i, all->in[i].len, t->count[i].take * row);
            return -1;
        }
    }

    return 0;
}


static int
tcp_barrier(ep_exchange_t *ex, char *err)
{
    ep_tcp_t  *t;

    t = (ep_tcp_t *) ex;

    return ep_hub_meet(t->all->meet, t->index, "barrier", tcp_barrier_last,
                       t->all, err);
}


static int
tcp_barrier_last(void *ctx, char *err)
{
    uint32_t       i;
    ep_tcp_all_t  *all = ctx;

    for (i = 0; i < all->n_nodes; i++) {
        if (i != all->self) {
            all->out[i].iov = all->peer[i].iov;
            all->out[i].n = 1;
            all->in[i].buf = all->peer[i].frame;
            all->in[i].max = 0;
        }
    }

    return ep_nodes_swap(all->nodes, EP_FRAME_BARRIER, "barrier", all->out,
                         all->in, err);
}


static void
tcp_abort(ep_exchange_t *ex)
{
    char  why[64];

    snprintf(why, sizeof(why), "rank %u left the exchange", ex->rank);
    ep_hub_fail(((ep_tcp_t *) ex)->all->meet, why);
}


static void
tcp_close(ep_exchange_t *ex)
{
    ep_tcp_t      *t;
    ep_tcp_all_t  *all;

    t = (ep_tcp_t *) ex;
    all = t->all;

    tcp_rank_free(t);

    if (atomic_fetch_sub_explicit(&all->open, 1, memory_order_acq_rel) == 1) {
        ep_nodes_on_fail(all->nodes, NULL, NULL);
        tcp_all_free(all);
    }
}


/* A failure here is told there, and one there here; both end at once. */

static void
tcp_failed(void *ctx, const char *why)
{
    ep_nodes_fail(((ep_tcp_all_t *) ctx)->nodes, why);
}


static void
tcp_node_failed(void *ctx, const char *why)
{
    ep_hub_fail(((ep_tcp_all_t *) ctx)->meet, why);
}
