/*
 * Replicas of experts packed onto ranks: the state that ep_balance.c works
 * on, also used for groups and nodes.
 */

#ifndef EP_EP_PACK_H
#define EP_EP_PACK_H

#include <stdint.h>


#define EP_NONE  UINT32_MAX

typedef struct {
    uint32_t   experts;
    uint32_t   ranks;
    uint32_t   room;                 /* slots of a rank at most */
    double    *load;                 /* [experts] of each replica */
    uint32_t  *replicas;             /* [experts] wanted */
    uint32_t  *used;                 /* [ranks] slots filled */
    uint32_t  *expert;               /* [ranks][room] */
    double    *sum;                  /* [ranks] load */
    uint8_t   *has;                  /* [ranks][experts] */

    /* The ranks at work: n from first, `extra` of them have one slot more. */
    uint32_t   first;
    uint32_t   n;
    uint32_t   least;
    uint32_t   extra;
} ep_pack_t;


/* Empty; NULL: no memory.  `load` is that of all replicas of an expert. */
ep_pack_t *ep_pack_open(uint32_t experts, uint32_t ranks, uint32_t slots,
    const double *load, const uint32_t *replicas);
void ep_pack_close(ep_pack_t *pack);

/* What follows is about `n` ranks from `first`, with `slots` slots. */
void ep_pack_range(ep_pack_t *pack, uint32_t first, uint32_t n,
    uint32_t slots);

void ep_pack_put(ep_pack_t *pack, uint32_t rank, uint32_t expert);

/*
 * Places all replicas of the experts with node[e] == n (all experts, if
 * `node` is NULL): the largest first, each on the least loaded rank that has
 * room and not that expert.  There are as many as slots, and of none more
 * than ranks.  0, or -1: no memory.
 */
int ep_pack_fill(ep_pack_t *pack, const uint8_t *node, uint32_t n);

/*
 * Exchanges pairs, one of the busiest rank and one of another, always the
 * pair that leaves the busier of the two least busy, until none helps.
 */
void ep_pack_refine(ep_pack_t *pack);

/* The load of the busiest rank, of all. */
double ep_pack_max(const ep_pack_t *pack);

#endif /* EP_EP_PACK_H */
