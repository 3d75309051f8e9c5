/*
 * The default placement of experts: contiguous runs, one a rank.
 */

#include <stdio.h>
#include <stdlib.h>

#include "ep/exchange.h"


#define EP_MAX_RANKS  256            /* a rank is a uint8_t in the map */


struct ep_map_s {
    ep_placement_t   p;
    uint8_t         *rank;
    uint32_t        *slot;
    uint32_t        *count;
};


ep_map_t *
ep_map_open(uint32_t experts, uint32_t ranks, char *err)
{
    uint32_t   e, r, n, small, extra;
    ep_map_t  *map;

    if (ranks == 0 || ranks > EP_MAX_RANKS) {
        snprintf(err, ERR_LEN, "cannot place experts on %u ranks: "
                 "1 to %u are possible", ranks, EP_MAX_RANKS);
        return NULL;
    }

    if (experts == 0 || ranks > experts) {
        snprintf(err, ERR_LEN, "cannot place %u experts on %u ranks: "
                 "each rank must hold at least one", experts, ranks);
        return NULL;
    }

    map = calloc(1, sizeof(ep_map_t));
    if (map == NULL) {
        goto nomem;
    }

    map->rank = calloc(experts, sizeof(uint8_t));
    map->slot = calloc(experts, sizeof(uint32_t));
    map->count = calloc(ranks, sizeof(uint32_t));

    if (map->rank == NULL || map->slot == NULL || map->count == NULL) {
        goto nomem;
    }

    /* the first `extra` ranks hold one expert more than the others */

    small = experts / ranks;
    extra = experts % ranks;
    e = 0;

    for (r = 0; r < ranks; r++) {
        map->count[r] = small + (r < extra ? 1 : 0);

        for (n = 0; n < map->count[r]; n++, e++) {
            map->rank[e] = (uint8_t) r;
            map->slot[e] = n;
        }
    }

    map->p.experts = experts;
    map->p.ranks = ranks;
    map->p.rank = map->rank;
    map->p.slot = map->slot;
    map->p.count = map->count;

    return map;

nomem:

    snprintf(err, ERR_LEN, "no memory for the placement of %u experts",
             experts);
    ep_map_close(map);
    return NULL;
}


const ep_placement_t *
ep_map_placement(const ep_map_t *map)
{
    return &map->p;
}


void
ep_map_close(ep_map_t *map)
{
    if (map == NULL) {
        return;
    }

    free(map->rank);
    free(map->slot);
    free(map->count);
    free(map);
}
