/*
 * Which rank computes which pair (row, expert).
 *
 * Pairs of an expert are numbered in the order of home rank, row and place in
 * the row's list.  Each home of the expert gets a run of them; where there
 * are several, the less busy ones get more.  It follows from all ranks' ids
 * and the placement alone, so every rank works it out for itself, alike.
 */

#ifndef EP_EP_SHARE_H
#define EP_EP_SHARE_H

#include "ep/exchange.h"


typedef struct {
    uint32_t   ranks;
    uint32_t   max_experts;
    uint32_t  *total;                /* [experts] pairs of all ranks */
    uint32_t  *until;                /* [homes] where its run ends */
    uint32_t  *seen;                 /* [experts] of a walk: pairs passed */
    uint32_t  *home;                 /* [experts] and who gets the next */
    uint32_t  *part;                 /* [ranks] of one expert's homes */
    uint64_t  *busy;                 /* [ranks] pairs given so far */
} ep_share_t;


/* 0, or -1: no memory, and nothing is left. */
int ep_share_open(ep_share_t *s, uint32_t ranks, uint32_t max_experts);
void ep_share_close(ep_share_t *s);

/*
 * What `rank` is about to send, checked at home, so that the others need not.
 * 0, or -1: more than the exchange was made for, or no such expert.
 */
int ep_share_check(const ep_share_t *s, uint32_t rank, const ep_send_t *send,
    uint32_t max_rows, uint32_t max_top_k, uint32_t max_hidden, char *err);

/* `send`: what each rank sends, [ranks]; only rows, top_k and ids matter. */
void ep_share_out(ep_share_t *s, const ep_placement_t *p,
    const ep_send_t *send);

/* Pairs of expert e that a rank computes. */
uint32_t ep_share_count(const ep_share_t *s, const ep_placement_t *p,
    uint32_t e, uint32_t rank);

/* Begins a walk through all pairs in order. */
void ep_share_walk(ep_share_t *s, const ep_placement_t *p);


/* The rank of the next pair, which is one of expert e. */

static inline uint32_t
ep_share_next(ep_share_t *s, const ep_placement_t *p, uint32_t e)
{
    uint32_t  n;

    n = s->seen[e]++;

    while (n >= s->until[s->home[e]]) {
        s->home[e]++;
    }

    return p->rank[s->home[e]];
}

#endif /* EP_EP_SHARE_H */
