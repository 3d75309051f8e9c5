/*
 * The exchange between ranks of several nodes, over TCP.
 *
 * Ranks of a node meet as those of one process do (ep_host.c) and read and
 * write each other's memory.  The last one to come to a meeting swaps frames
 * with the other nodes before the others go on:
 *
 * DISPATCH: a node sends the ids of all its rows, and the rows that have an
 * expert on the node it sends to:
 *
 *     0   8  hash of the placement, which must be the same everywhere
 *     8   4  hidden
 *    12   4  top_k
 *    16   4  rows of each of its ranks
 *     …   4  ids of each rank, [rows][top_k], rank by rank
 *     …   4  float32 rows, by rank and row
 *
 * COMBINE: the contributions to the other node's rows that were computed
 * here, float32, in order of home rank, row and place in the row's list.  Both
 * sides know which these are.
 *
 * Nothing is rounded and sums are made at home, so it changes no result.
 */

#ifndef EP_EP_TCP_H
#define EP_EP_TCP_H

#include "ep/ep_nodes.h"
#include "ep/exchange.h"


/*
 * Makes the exchanges of this node's `ranks` ranks, ex[0 … ranks - 1], which
 * are numbered from node * ranks on.  All nodes have as many; `nodes` outlives
 * them.  The limits are as in ep_host_open(), `max_hidden` that of a row.  0,
 * or -1 with the reason in `err` (ERR_LEN).
 */
int ep_tcp_open(ep_exchange_t **ex, ep_nodes_t *nodes, uint32_t ranks,
    uint32_t max_rows, uint32_t max_top_k, uint32_t max_experts,
    uint32_t max_hidden, uint32_t timeout_ms, char *err);

#endif /* EP_EP_TCP_H */
