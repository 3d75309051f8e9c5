/*
 * The exchange between ranks on devices of several nodes: what the nodes tell
 * each other when it is opened (ep_nccl.h).
 */

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "ep/ep_peer_int.h"


typedef struct {
    uint32_t  max_rows;
    uint32_t  top_k;
    uint32_t  experts;
    uint32_t  hidden;
    uint32_t  exact;
    uint32_t  micro;
    uint8_t   id[BE_PEER_ID];
} nccl_frame_t;

_Static_assert(sizeof(nccl_frame_t) == 24 + BE_PEER_ID, "a frame");


static int nccl_agree(ep_peer_all_t *all, ep_nodes_t *nodes, uint32_t micro,
    const char *backend, char *err);
static int nccl_swap(ep_nodes_t *nodes, uint32_t frame, const char *what,
    nccl_frame_t *mine, nccl_frame_t *from, char *err);
static void nccl_failed(void *ctx, const char *why);


int
ep_nccl_open(ep_exchange_t **ex, ep_nodes_t *nodes, uint32_t ranks,
    uint32_t max_rows, uint32_t top_k, uint32_t experts, uint32_t hidden,
    int exact, uint32_t micro, uint32_t timeout_ms, const char *backend,
    char *err)
{
    uint32_t            r;
    ep_peer_all_t      *all;
    be_peer_options_t   opt;

    if (ranks > BE_PEERS_MAX) {
        snprintf(err, ERR_LEN, "%u ranks of a node on devices: 1 to %u are "
                 "possible on all nodes", ranks, BE_PEERS_MAX);
        return -1;
    }

    memset(&opt, 0, sizeof(opt));
    opt.ranks = ranks * ep_nodes_count(nodes);
    opt.max_rows = max_rows;
    opt.top_k = top_k;
    opt.experts = experts;
    opt.hidden = hidden;
    opt.exact = exact;
    opt.first = ranks * ep_nodes_self(nodes);
    opt.local = ranks;
    opt.timeout_ms = timeout_ms;

    if (ep_peer_all_open(ex, &opt, opt.first, ranks, micro, timeout_ms, err)
        != 0)
    {
        return -1;
    }

    all = ((ep_peer_t *) ex[0])->all;
    all->opt.id = all->id;

    if (nccl_agree(all, nodes, micro, backend, err) != 0) {
        for (r = 0; r < ranks; r++) {
            ex[r]->close(ex[r]);
            ex[r] = NULL;
        }

        return -1;
    }

    all->nodes = nodes;
    ep_hub_tell(all->meet, nccl_failed, all);
    ep_nodes_on_fail(nodes, ep_peer_fail, all);

    if (ep_nodes_status(nodes, err) != 0) {
        ep_hub_fail(all->meet, err);
    }

    return 0;
}


static int
nccl_agree(ep_peer_all_t *all, ep_nodes_t *nodes, uint32_t micro,
    const char *backend, char *err)
{
    uint32_t       i, self;
    nccl_frame_t   mine, from[EP_NODES_MAX];

    memset(&mine, 0, sizeof(mine));
    mine.max_rows = all->opt.max_rows;
    mine.top_k = all->opt.top_k;
    mine.experts = all->opt.experts;
    mine.hidden = all->opt.hidden;
    mine.exact = all->opt.exact != 0;
    mine.micro = micro;
    self = ep_nodes_self(nodes);

    if (self == 0 && be_peer_id(backend, mine.id, err) != 0) {
        ep_nodes_fail(nodes, err);
        return -1;
    }

    memset(from, 0, sizeof(from));
    from[self] = mine;

    if (nccl_swap(nodes, EP_FRAME_OPEN, "opening", &mine, from, err) != 0) {
        return -1;
    }

    for (i = 0; i < ep_nodes_count(nodes); i++) {
        if (memcmp(&from[i], &mine, offsetof(nccl_frame_t, id)) != 0) {
            snprintf(err, ERR_LEN, "node %u has an exchange of %u rows, %u of "
                     "%u experts, %u wide%s, overlap from %u rows; node %u of "
                     "%u, %u of %u, %u%s, %u",
                     i, from[i].max_rows, from[i].top_k, from[i].experts,
                     from[i].hidden, from[i].exact ? ", exact" : "",
                     from[i].micro, self, mine.max_rows, mine.top_k,
                     mine.experts, mine.hidden, mine.exact ? ", exact" : "",
                     mine.micro);
            ep_nodes_fail(nodes, err);
            return -1;
        }
    }

    memcpy(all->id, from[0].id, BE_PEER_ID);

    return 0;
}


/* `mine` to all others, theirs to from[nodes]; NULL: frames without a body. */

static int
nccl_swap(ep_nodes_t *nodes, uint32_t frame, const char *what,
    nccl_frame_t *mine, nccl_frame_t *from, char *err)
{
    size_t        len;
    uint32_t      i;
    ep_in_t       in[EP_NODES_MAX];
    ep_out_t      out[EP_NODES_MAX];
    struct iovec  iov[EP_NODES_MAX][2];

    len = (mine != NULL) ? sizeof(nccl_frame_t) : 0;

    for (i = 0; i < ep_nodes_count(nodes); i++) {
        iov[i][1].iov_base = mine;
        iov[i][1].iov_len = len;
        out[i].iov = iov[i];
        out[i].n = (mine != NULL) ? 2 : 1;
        in[i].buf = (from != NULL) ? &from[i] : NULL;
        in[i].max = len;
        in[i].len = len;
    }

    if (ep_nodes_swap(nodes, frame, what, out, in, err) != 0) {
        return -1;
    }

    for (i = 0; i < ep_nodes_count(nodes); i++) {
        if (in[i].len != len) {
            snprintf(err, ERR_LEN, "node %u: an %s of %zu bytes", i, what,
                     in[i].len);
            ep_nodes_fail(nodes, err);
            return -1;
        }
    }

    return 0;
}


static void
nccl_failed(void *ctx, const char *why)
{
    ep_nodes_fail(((ep_peer_all_t *) ctx)->nodes, why);
}


void
ep_nccl_most(ep_exchange_t *ex, uint32_t rows)
{
    ep_peer_all_t  *all;

    all = ((ep_peer_t *) ex)->all;
    all->most = (rows < all->opt.max_rows) ? rows : all->opt.max_rows;
}


int
ep_nccl_barrier(void *ctx, char *err)
{
    return nccl_swap(((ep_peer_all_t *) ctx)->nodes, EP_FRAME_BARRIER,
                     "barrier", NULL, NULL, err);
}
