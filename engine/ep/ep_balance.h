/*
 * Where experts should live, from how much each is used.
 *
 * A rank has slots; a slot holds one expert.  With more slots than experts the
 * busiest ones get replicas, which share their load.  All ranks wait for the
 * busiest one in every MoE layer: its load is what is made small.
 *
 * The method is the published one (EPLB): groups of experts are packed onto
 * nodes, replicas go one by one to the expert with the largest load for each
 * replica, and replicas are packed onto the node's ranks, the largest first,
 * each onto the least loaded rank that has room.  Beyond it:
 *
 *   - a rank never holds an expert twice, which would be no help;
 *   - slots need not be a multiple of ranks;
 *   - after packing, pairs of experts are exchanged between the busiest rank
 *     and others for as long as that makes it less busy;
 *   - where little has changed, few experts move: the present placement is
 *     bettered by exchanges alone if that comes close, and else the new ranks
 *     are named after those that they resemble.
 *
 * One layer at a time; layers do not depend on each other.
 */

#ifndef EP_EP_BALANCE_H
#define EP_EP_BALANCE_H

#include "ep/exchange.h"


/*
 * Hierarchical: each group's experts stay on one of `nodes`, and node n has
 * the ranks n * ranks / nodes …; both must divide evenly.  Global: 1 and 1.
 * Where groups cannot be shared out evenly over nodes, global is what is left:
 * ep_balance_global() says so.
 */

typedef struct {
    uint32_t  experts;
    uint32_t  slots;                 /* of all ranks, at least experts */
    uint32_t  groups;
    uint32_t  nodes;
    uint32_t  ranks;
} ep_balance_t;


/* Whether it can be done: 0, or -1 with the reason in `err` (ERR_LEN). */
int ep_balance_check(const ep_balance_t *b, char *err);

/* Groups and nodes become 1 if groups cannot be shared out over the nodes. */
void ep_balance_global(ep_balance_t *b);

/*
 * A placement for `load` [experts] (not negative; any unit).  `now` is the one
 * in use, or NULL.  The map is the caller's.  NULL with the reason in `err`.
 */
ep_map_t *ep_balance(const ep_balance_t *b, const double *load,
    const ep_placement_t *now, char *err);

/*
 * The load of each rank under a placement, `rank` [ranks] or NULL, the least
 * busy of an expert's homes taking its rows as in the exchange; returns the
 * largest.
 */
double ep_balance_load(const ep_placement_t *p, const double *load,
    double *rank);

/*
 * Slots of `to` whose expert `from` does not have on the same rank: all, and
 * those of each, `rank` [ranks] or NULL.
 */
uint32_t ep_balance_moves(const ep_placement_t *from,
    const ep_placement_t *to, uint32_t *rank);

#endif /* EP_EP_BALANCE_H */
