/*
 * Sorts by counting: the pairs of each slot are known beforehand.
 */

#include <stdlib.h>

#include "ep/ep_gather.h"


int
ep_gather_open(ep_gather_t *g, uint32_t ranks, uint32_t max_rows,
    uint32_t max_top_k, uint32_t max_experts)
{
    size_t  pairs;

    /* every row of every rank may want this rank's experts only */

    pairs = (size_t) ranks * max_rows * max_top_k + 1;

    g->offset = calloc((size_t) max_experts + 1, sizeof(uint32_t));
    g->at = calloc((size_t) max_experts + 1, sizeof(uint32_t));
    g->x = calloc(pairs, sizeof(*g->x));
    g->y = calloc(pairs, sizeof(*g->y));

    if (ep_share_open(&g->share, ranks, max_experts) != 0
        || g->offset == NULL || g->at == NULL || g->x == NULL || g->y == NULL)
    {
        return -1;
    }

    return 0;
}


void
ep_gather_close(ep_gather_t *g)
{
    ep_share_close(&g->share);
    free(g->offset);
    free(g->at);
    free(g->x);
    free(g->y);
}


void
ep_gather_begin(ep_gather_t *g, const ep_placement_t *p,
    const ep_send_t *send, uint32_t rank)
{
    uint32_t         j, slots, sum;
    const uint32_t  *expert;

    ep_share_out(&g->share, p, send);

    slots = p->count[rank];
    expert = p->expert + p->begin[rank];
    sum = 0;

    for (j = 0; j < slots; j++) {
        g->offset[j] = sum;
        g->at[expert[j]] = sum;
        sum += ep_share_count(&g->share, p, expert[j], rank);
    }

    g->offset[slots] = sum;

    ep_share_walk(&g->share, p);
}


void
ep_gather_pairs(const ep_gather_t *g, const ep_placement_t *p, uint32_t rank,
    be_pairs_t *pairs)
{
    pairs->n_experts = p->count[rank];
    pairs->offset = g->offset;
    pairs->x = g->x;
    pairs->y = g->y;
    pairs->max = 0;
    pairs->row = NULL;
}
