/*
 * The pairs (row, expert) that a rank computes, sorted by slot: what an
 * exchange in the host's memory hands to the backend.
 *
 * A layer: ep_gather_begin(), then ep_share_next() of all pairs of all ranks
 * in order and ep_gather_put() of those that it gives to this rank, then
 * ep_gather_pairs().
 */

#ifndef EP_EP_GATHER_H
#define EP_EP_GATHER_H

#include "ep/ep_share.h"


typedef struct {
    ep_share_t     share;
    uint32_t      *offset;           /* [max_experts + 1], by slot */
    uint32_t      *at;               /* [max_experts] where the next goes */
    const float  **x;                /* [max pairs] */
    float        **y;
} ep_gather_t;


/* 0, or -1: no memory; close it in either case. */
int ep_gather_open(ep_gather_t *g, uint32_t ranks, uint32_t max_rows,
    uint32_t max_top_k, uint32_t max_experts);
void ep_gather_close(ep_gather_t *g);

/* `send`: what each rank sends, [ranks]. */
void ep_gather_begin(ep_gather_t *g, const ep_placement_t *p,
    const ep_send_t *send, uint32_t rank);

/* `pairs` holds until the next ep_gather_begin(). */
void ep_gather_pairs(const ep_gather_t *g, const ep_placement_t *p,
    uint32_t rank, be_pairs_t *pairs);


/* A pair of expert e, which reads x and writes y. */

static inline void
ep_gather_put(ep_gather_t *g, uint32_t e, const float *x, float *y)
{
    uint32_t  at;

    at = g->at[e]++;
    g->x[at] = x;
    g->y[at] = y;
}

#endif /* EP_EP_GATHER_H */
