/*
 * Placements: made, checked, copied.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/exchange.h"


struct ep_map_s {
    ep_placement_t   p;
    uint32_t        *first;
    uint8_t         *rank;
    uint32_t        *slot;
    uint32_t        *count;
    uint32_t        *begin;
    uint32_t        *expert;
};


static ep_map_t *map_new(uint32_t experts, uint32_t ranks, uint32_t slots,
    char *err);
static int map_homes(ep_map_t *map, char *err);


ep_map_t *
ep_map_open(uint32_t experts, uint32_t ranks, uint32_t redundant, char *err)
{
    uint32_t   i, r, n, e, slots;
    ep_map_t  *map;

    if (ranks == 0 || ranks > EP_RANKS_MAX) {
        snprintf(err, ERR_LEN, "cannot place experts on %u ranks: "
                 "1 to %u are possible", ranks, EP_RANKS_MAX);
        return NULL;
    }

    if (experts == 0 || ranks > experts) {
        snprintf(err, ERR_LEN, "cannot place %u experts on %u ranks: "
                 "each rank must hold at least one", experts, ranks);
        return NULL;
    }

    if ((uint64_t) experts + redundant > (uint64_t) experts * ranks) {
        snprintf(err, ERR_LEN, "%u redundant experts are too many: %u ranks "
                 "can hold %llu, each of %u experts once more on all others",
                 redundant, ranks,
                 (unsigned long long) experts * (ranks - 1), experts);
        return NULL;
    }

    slots = experts + redundant;

    map = map_new(experts, ranks, slots, err);
    if (map == NULL) {
        return NULL;
    }

    /*
     * The list of all experts is begun again until the slots are full, so
     * that no rank, with a run of at most `experts`, has one twice.
     */

    e = 0;
    i = 0;

    for (r = 0; r < ranks; r++) {
        map->begin[r] = i;
        map->count[r] = slots / ranks + (r < slots % ranks);

        for (n = 0; n < map->count[r]; n++) {
            map->expert[i++] = e;
            e = (e + 1) % experts;
        }
    }

    if (map_homes(map, err) != 0) {
        ep_map_close(map);
        return NULL;
    }

    return map;
}


ep_map_t *
ep_map_make(uint32_t experts, uint32_t ranks, const uint32_t *count,
    const uint32_t *expert, uint32_t room, char *err)
{
    uint64_t   slots;
    uint32_t   r;
    ep_map_t  *map;

    slots = 0;

    for (r = 0; r < ranks && ranks <= EP_RANKS_MAX; r++) {
        slots += count[r];

        if (count[r] > room) {
            break;
        }
    }

    if (ranks == 0 || r != ranks || slots > INT32_MAX) {
        snprintf(err, ERR_LEN, "a placement of %u experts on %u ranks is not "
                 "possible", experts, ranks);
        return NULL;
    }

    map = map_new(experts, ranks, (uint32_t) slots, err);
    if (map == NULL) {
        return NULL;
    }

    slots = 0;

    for (r = 0; r < ranks; r++) {
        map->begin[r] = (uint32_t) slots;
        map->count[r] = count[r];
        memcpy(map->expert + slots, expert + (size_t) r * room,
               count[r] * sizeof(uint32_t));
        slots += count[r];
    }

    if (map_homes(map, err) != 0) {
        ep_map_close(map);
        return NULL;
    }

    return map;
}


ep_map_t *
ep_map_copy(const ep_map_t *map, char *err)
{
    uint32_t               slots;
    ep_map_t              *copy;
    const ep_placement_t  *p;

    p = &map->p;
    slots = p->first[p->experts];

    copy = map_new(p->experts, p->ranks, slots, err);
    if (copy == NULL) {
        return NULL;
    }

    memcpy(copy->first, p->first, (p->experts + 1) * sizeof(uint32_t));
    memcpy(copy->rank, p->rank, slots * sizeof(uint8_t));
    memcpy(copy->slot, p->slot, slots * sizeof(uint32_t));
    memcpy(copy->count, p->count, p->ranks * sizeof(uint32_t));
    memcpy(copy->begin, p->begin, p->ranks * sizeof(uint32_t));
    memcpy(copy->expert, p->expert, slots * sizeof(uint32_t));

    return copy;
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

    free(map->first);
    free(map->rank);
    free(map->slot);
    free(map->count);
    free(map->begin);
    free(map->expert);
    free(map);
}


static ep_map_t *
map_new(uint32_t experts, uint32_t ranks, uint32_t slots, char *err)
{
    ep_map_t  *map;

    map = calloc(1, sizeof(ep_map_t));
    if (map == NULL) {
        goto nomem;
    }

    map->first = calloc((size_t) experts + 1, sizeof(uint32_t));
    map->rank = calloc((size_t) slots + 1, sizeof(uint8_t));
    map->slot = calloc((size_t) slots + 1, sizeof(uint32_t));
    map->count = calloc(ranks, sizeof(uint32_t));
    map->begin = calloc(ranks, sizeof(uint32_t));
    map->expert = calloc((size_t) slots + 1, sizeof(uint32_t));

    if (map->first == NULL || map->rank == NULL || map->slot == NULL
        || map->count == NULL || map->begin == NULL || map->expert == NULL)
    {
        goto nomem;
    }

    map->p.experts = experts;
    map->p.ranks = ranks;
    map->p.first = map->first;
    map->p.rank = map->rank;
    map->p.slot = map->slot;
    map->p.count = map->count;
    map->p.begin = map->begin;
    map->p.expert = map->expert;

    return map;

nomem:

    snprintf(err, ERR_LEN, "no memory for the placement of %u experts",
             experts);
    ep_map_close(map);
    return NULL;
}


/* The homes of each expert, from the slots of each rank: a counting sort. */

static int
map_homes(ep_map_t *map, char *err)
{
    uint32_t  e, r, i, n, at;

    for (r = 0; r < map->p.ranks; r++) {
        for (i = 0; i < map->count[r]; i++) {
            e = map->expert[map->begin[r] + i];

            if (e >= map->p.experts) {
                snprintf(err, ERR_LEN, "rank %u is to hold expert %u of %u",
                         r, e, map->p.experts);
                return -1;
            }

            map->first[e]++;
        }
    }

    /* first[e] is now the end of e's homes, and falls to their begin */

    for (e = 0, n = 0; e < map->p.experts; e++) {

        if (map->first[e] == 0) {
            snprintf(err, ERR_LEN, "expert %u has no rank", e);
            return -1;
        }

        n += map->first[e];
        map->first[e] = n;
    }

    map->first[e] = n;

    for (r = map->p.ranks; r-- > 0; /* void */ ) {
        for (i = 0; i < map->count[r]; i++) {
            e = map->expert[map->begin[r] + i];
            at = --map->first[e];
            map->rank[at] = (uint8_t) r;
            map->slot[at] = i;
        }
    }

    for (e = 0; e < map->p.experts; e++) {
        for (at = map->first[e] + 1; at < map->first[e + 1]; at++) {

            if (map->rank[at] == map->rank[at - 1]) {
                snprintf(err, ERR_LEN, "rank %u is to hold expert %u twice",
                         map->rank[at], e);
                return -1;
            }
        }
    }

    return 0;
}
