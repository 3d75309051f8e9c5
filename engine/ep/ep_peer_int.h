/*
 * Inside ep_peer.c and ep_nccl.c.
 */

#ifndef EP_EP_PEER_INT_H
#define EP_EP_PEER_INT_H

#include "ep/ep_hub.h"
#include "ep/ep_nccl.h"


typedef struct {
    ep_hub_t           *meet;
    be_peer_options_t   opt;
    _Atomic uint32_t    open;
    be_peer_t         **peer;        /* [ranks]; NULL: of another node */
    be_peer_send_t     *send[2];     /* [ranks] what each shows, by part */
    uint32_t            most;        /* rows of a rank in the step at hand */

    uint32_t            first;       /* of this process's ranks, */
    uint32_t            local;       /* and their number */
    ep_nodes_t         *nodes;       /* NULL: there are no others */
    uint8_t             id[BE_PEER_ID];
} ep_peer_all_t;

typedef enum {
    PEER_IDLE = 0, PEER_SENT, PEER_RECEIVED, PEER_GIVEN
} peer_state_t;

typedef struct {
    ep_exchange_t   ex;              /* first */
    ep_peer_all_t  *all;
    be_t           *be;              /* NULL: not attached */
    peer_state_t    state[2];        /* of each part */
} ep_peer_t;


/*
 * Opens the exchanges of `local` ranks from `first` on; `opt` says the rest,
 * but for what is the same for all.  0, or -1 with the reason in `err`.
 */
int ep_peer_all_open(ep_exchange_t **ex, const be_peer_options_t *opt,
    uint32_t first, uint32_t local, uint32_t micro, uint32_t timeout_ms,
    char *err);

/* All calls fail from now on; the first reason stays.  `ctx`: of all. */
void ep_peer_fail(void *ctx, const char *why);

/* ep_nccl.c: the nodes' part of a barrier; 0, or -1 with the reason. */
int ep_nccl_barrier(void *ctx, char *err);

#endif /* EP_EP_PEER_INT_H */
