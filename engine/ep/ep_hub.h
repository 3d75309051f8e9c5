/*
 * Where the ranks of one process meet: an exchange takes two meetings a
 * layer, one after all have shown what they send, one after all have written.
 *
 * A rank that waits spins for a moment, as ranks usually come within
 * microseconds of each other, and then sleeps in a futex.
 *
 * Failure is sticky: whoever notices one says why, and every meeting fails
 * with these words from then on.
 */

#ifndef EP_EP_HUB_H
#define EP_EP_HUB_H

#include <stdint.h>

#include "backend/backend.h"


typedef struct ep_hub_s  ep_hub_t;

/* What the last to arrive does before the others go on; 0, or -1. */
typedef int (*ep_hub_last_pt)(void *ctx, char *err);


/*
 * `first`: the number of the first rank, for messages; `timeout_ms` 0: none.
 * NULL: no memory.
 */
ep_hub_t *ep_hub_open(uint32_t ranks, uint32_t first, uint32_t timeout_ms);
void ep_hub_close(ep_hub_t *hub);

/*
 * Rank `index` of this process comes, and goes on when all have come and the
 * last of them has done `last`, if there is one, which all name alike.  What
 * a rank wrote before is seen by all after.  0, or -1 with the reason.
 */
int ep_hub_meet(ep_hub_t *hub, uint32_t index, const char *what,
    ep_hub_last_pt last, void *ctx, char *err);

/* The first reason stays. */
void ep_hub_fail(ep_hub_t *hub, const char *why);

/* 0, or -1 with the reason why it has failed. */
int ep_hub_status(ep_hub_t *hub, char *err);

/* Is told of the first failure, by whoever notices it; before any meeting. */
void ep_hub_tell(ep_hub_t *hub, void (*failed)(void *ctx, const char *why),
    void *ctx);

#endif /* EP_EP_HUB_H */
