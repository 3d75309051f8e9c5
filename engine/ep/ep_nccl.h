/*
 * The exchange between ranks on devices of several nodes: those of a node as
 * ep_peer_open() makes it, with NCCL to those of other nodes (ep_peer.c, but
 * ep_nccl.c opens it).
 *
 * The nodes swap one frame when it is opened; node 0 puts NCCL's id into it:
 *
 *     0   4  max_rows
 *     4   4  top_k
 *     8   4  experts
 *    12   4  hidden
 *    16   4  1: exact
 *    20   4  micro
 *    24 128  id, zeros but from node 0
 *
 * After that no step needs another word between hosts, but that all agree how
 * many rows it may have.
 */

#ifndef EP_EP_NCCL_H
#define EP_EP_NCCL_H

#include "ep/ep_nodes.h"
#include "ep/exchange.h"


/*
 * As ep_peer_open(), for this node's `ranks` ranks, which are numbered from
 * node * ranks on; all nodes have as many.  NCCL's id is be_peer_id() of
 * `backend`; `nodes` outlives the exchanges.  A failure of NCCL's is one of the
 * nodes', and the other way round.
 */
int ep_nccl_open(ep_exchange_t **ex, ep_nodes_t *nodes, uint32_t ranks,
    uint32_t max_rows, uint32_t top_k, uint32_t experts, uint32_t hidden,
    int exact, uint32_t micro, uint32_t timeout_ms, const char *backend,
    char *err);

/*
 * No rank of any node sends more rows than that, max_rows at most, until the
 * next such call; all nodes make it alike, between steps, once for all their
 * ranks.  What is sent has the size for as many.
 */
void ep_nccl_most(ep_exchange_t *ex, uint32_t rows);

#endif /* EP_EP_NCCL_H */
