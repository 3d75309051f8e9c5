/*
 * Inside ep_tcp.c and ep_tcp_frame.c.
 */

#ifndef EP_EP_TCP_INT_H
#define EP_EP_TCP_INT_H

#include <stdatomic.h>

#include "ep/ep_gather.h"
#include "ep/ep_hub.h"
#include "ep/ep_tcp.h"


#define TCP_HEAD  16                 /* bytes before the numbers of rows */

/* What goes to and comes from another node. */

typedef struct {
    struct iovec  *iov;
    uint32_t       n_iov;
    uint8_t       *frame;            /* dispatch, as it came */
    float         *give;             /* contributions made here for its rows */
    float         *take;             /* and there for ours */
} tcp_peer_t;

/* Pairs that are given to and taken from a node in the layer at hand. */

typedef struct {
    size_t  give;
    size_t  take;
} tcp_count_t;

typedef struct {
    ep_hub_t          *meet;
    ep_nodes_t        *nodes;
    uint32_t           n_nodes;
    uint32_t           self;
    uint32_t           local;        /* ranks of a node */
    uint32_t           ranks;        /* of all */
    uint32_t           first;        /* of this one */
    uint32_t           max_rows;
    uint32_t           max_top_k;
    uint32_t           max_experts;
    uint32_t           max_hidden;
    size_t             max_frame;
    _Atomic uint32_t   open;

    ep_send_t         *send;         /* [ranks] */
    const float      **row;          /* [ranks][max_rows], of other nodes */
    uint64_t          *where;        /* [experts] nodes that have it, bits */
    uint32_t          *head;         /* of the dispatch that is sent */
    tcp_peer_t        *peer;         /* [n_nodes] */
    ep_out_t          *out;
    ep_in_t           *in;
} ep_tcp_all_t;

typedef struct {
    ep_exchange_t   ex;              /* first */
    ep_tcp_all_t   *all;
    uint32_t        index;           /* among the node's ranks */
    ep_gather_t     mine;
    int             dispatched;
    const float   **from;            /* [rows][top_k], NULL: it was here */
    tcp_count_t    *count;           /* [n_nodes] */
} ep_tcp_t;


/* Which nodes have each expert, into `where`; before frames are packed. */
void ep_tcp_where(ep_tcp_all_t *all, const ep_placement_t *p);

uint64_t ep_tcp_hash(const ep_placement_t *p);

/* A dispatch for a node, as pieces, into out[node]. */
void ep_tcp_pack(ep_tcp_all_t *all, uint32_t node);
void ep_tcp_piece(tcp_peer_t *p, const void *data, size_t len);

/*
 * What a node has sent, in[node], is checked, and its ranks' entries of `send`
 * and `row` point into it.  0, or -1 with the reason.
 */
int ep_tcp_unpack(ep_tcp_all_t *all, uint32_t node, char *err);

#endif /* EP_EP_TCP_INT_H */
