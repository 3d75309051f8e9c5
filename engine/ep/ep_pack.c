/*
 * Packing replicas onto ranks, and bettering it by exchanges.
 */

#include <stdlib.h>

#include "ep/ep_pack.h"


#define PACK_LEAST  1e-9             /* a gain below that share is rounding */

typedef struct {
    double    load;
    uint32_t  expert;
} pack_item_t;

typedef struct {
    uint32_t  rank;
    uint32_t  from;                  /* slot of the busiest rank */
    uint32_t  to;                    /* slot of the other, or its end */
    double    max;                   /* of the two, afterwards */
} pack_swap_t;


static int pack_compare(const void *one, const void *two);
static int pack_room(const ep_pack_t *pack, uint32_t rank);
static void pack_make_room(ep_pack_t *pack, uint32_t expert);
static uint32_t pack_busiest(const ep_pack_t *pack);
static void pack_try(const ep_pack_t *pack, uint32_t busy, uint32_t rank,
    pack_swap_t *best);
static void pack_take(ep_pack_t *pack, uint32_t rank, uint32_t slot);


ep_pack_t *
ep_pack_open(uint32_t experts, uint32_t ranks, uint32_t slots,
    const double *load, const uint32_t *replicas)
{
    uint32_t    e;
    ep_pack_t  *pack;

    pack = calloc(1, sizeof(ep_pack_t));
    if (pack == NULL) {
        return NULL;
    }

    pack->experts = experts;
    pack->ranks = ranks;
    pack->room = (slots + ranks - 1) / ranks;
    pack->load = calloc(experts, sizeof(double));
    pack->replicas = calloc(experts, sizeof(uint32_t));
    pack->used = calloc(ranks, sizeof(uint32_t));
    pack->sum = calloc(ranks, sizeof(double));
    pack->has = calloc((size_t) ranks * experts, sizeof(uint8_t));
    pack->expert = calloc((size_t) ranks * pack->room, sizeof(uint32_t));

    if (pack->load == NULL || pack->replicas == NULL || pack->used == NULL
        || pack->sum == NULL || pack->has == NULL || pack->expert == NULL)
    {
        ep_pack_close(pack);
        return NULL;
    }

    for (e = 0; e < experts; e++) {
        pack->replicas[e] = replicas[e];
        pack->load[e] = load[e] / replicas[e];
    }

    return pack;
}


void
ep_pack_close(ep_pack_t *pack)
{
    if (pack == NULL) {
        return;
    }

    free(pack->load);
    free(pack->replicas);
    free(pack->used);
    free(pack->sum);
    free(pack->has);
    free(pack->expert);
    free(pack);
}


void
ep_pack_range(ep_pack_t *pack, uint32_t first, uint32_t n, uint32_t slots)
{
    pack->first = first;
    pack->n = n;
    pack->least = slots / n;
    pack->extra = slots % n;
}


void
ep_pack_put(ep_pack_t *pack, uint32_t rank, uint32_t expert)
{
    pack->expert[(size_t) rank * pack->room + pack->used[rank]++] = expert;
    pack->has[(size_t) rank * pack->experts + expert] = 1;
    pack->sum[rank] += pack->load[expert];
}


static void
pack_take(ep_pack_t *pack, uint32_t rank, uint32_t slot)
{
    uint32_t  *list, expert;

    list = pack->expert + (size_t) rank * pack->room;
    expert = list[slot];
    list[slot] = list[--pack->used[rank]];

    pack->has[(size_t) rank * pack->experts + expert] = 0;
    pack->sum[rank] -= pack->load[expert];
}


int
ep_pack_fill(ep_pack_t *pack, const uint8_t *node, uint32_t n)
{
    size_t        i, count;
    uint32_t      e, r, at;
    pack_item_t  *item;

    item = calloc((size_t) pack->n * (pack->least + 1), sizeof(pack_item_t));
    if (item == NULL) {
        return -1;
    }

    count = 0;

    for (e = 0; e < pack->experts; e++) {
        for (r = 0; (node == NULL || node[e] == n) && r < pack->replicas[e];
             r++)
        {
            item[count].expert = e;
            item[count++].load = pack->load[e];
        }
    }

    qsort(item, count, sizeof(pack_item_t), pack_compare);

    for (i = 0; i < count; i++) {
        e = item[i].expert;
        at = EP_NONE;

        for (r = pack->first; r < pack->first + pack->n; r++) {

            if (pack_room(pack, r)
                && !pack->has[(size_t) r * pack->experts + e]
                && (at == EP_NONE || pack->sum[r] < pack->sum[at]
                    || (pack->sum[r] == pack->sum[at]
                        && pack->used[r] < pack->used[at])))
            {
                at = r;
            }
        }

        if (at != EP_NONE) {
            ep_pack_put(pack, at, e);

        } else {
            pack_make_room(pack, e);
        }
    }

    free(item);

    return 0;
}


static int
pack_compare(const void *one, const void *two)
{
    const pack_item_t  *a = one, *b = two;

    if (a->load != b->load) {
        return a->load < b->load ? 1 : -1;
    }

    return a->expert < b->expert ? -1 : a->expert > b->expert;
}


static int
pack_room(const ep_pack_t *pack, uint32_t rank)
{
    uint32_t  r, left;

    if (pack->used[rank] != pack->least) {
        return pack->used[rank] < pack->least;
    }

    left = pack->extra;

    for (r = pack->first; r < pack->first + pack->n; r++) {
        left -= (pack->used[r] > pack->least);
    }

    return left > 0;
}


/*
 * Only ranks that have the expert have room.  One of the others, which is full
 * and so holds more than that one, gives an expert of its own to it: there are
 * at least two that the other does not have.
 */

static void
pack_make_room(ep_pack_t *pack, uint32_t expert)
{
    uint32_t  i, r, from, to, slot, other;

    from = EP_NONE;
    to = EP_NONE;

    for (r = pack->first; r < pack->first + pack->n; r++) {

        if (pack_room(pack, r)) {
            to = r;

        } else if (!pack->has[(size_t) r * pack->experts + expert]
                   && (from == EP_NONE || pack->sum[r] < pack->sum[from]))
        {
            from = r;
        }
    }

    /* the last placed are the smallest */

    slot = 0;

    for (i = 0; i < pack->used[from]; i++) {
        other = pack->expert[(size_t) from * pack->room + i];

        if (!pack->has[(size_t) to * pack->experts + other]) {
            slot = i;
        }
    }

    other = pack->expert[(size_t) from * pack->room + slot];

    pack_take(pack, from, slot);
    ep_pack_put(pack, to, other);
    ep_pack_put(pack, from, expert);
}


void
ep_pack_refine(ep_pack_t *pack)
{
    uint32_t     i, r, busy, a, b;
    pack_swap_t  best;

    /* each exchange betters a rank; the limit is against rounding */

    for (i = 0; i < pack->n * (pack->least + 1) * 4; i++) {
        busy = pack_busiest(pack);
        best.rank = EP_NONE;
        best.max = pack->sum[busy] * (1 - PACK_LEAST);

        for (r = pack->first; r < pack->first + pack->n; r++) {
            if (r != busy) {
                pack_try(pack, busy, r, &best);
            }
        }

        if (best.rank == EP_NONE) {
            return;
        }

        a = pack->expert[(size_t) busy * pack->room + best.from];

        if (best.to == pack->used[best.rank]) {
            pack_take(pack, busy, best.from);
            ep_pack_put(pack, best.rank, a);
            continue;
        }

        b = pack->expert[(size_t) best.rank * pack->room + best.to];

        pack_take(pack, busy, best.from);
        pack_take(pack, best.rank, best.to);
        ep_pack_put(pack, busy, b);
        ep_pack_put(pack, best.rank, a);
    }
}


static uint32_t
pack_busiest(const ep_pack_t *pack)
{
    uint32_t  r, busy;

    busy = pack->first;

    for (r = pack->first; r < pack->first + pack->n; r++) {
        busy = pack->sum[r] > pack->sum[busy] ? r : busy;
    }

    return busy;
}


static void
pack_try(const ep_pack_t *pack, uint32_t busy, uint32_t rank,
    pack_swap_t *best)
{
    double           d, max;
    uint32_t         i, j, a, b, end;
    const uint8_t   *in_busy, *in_rank;
    const uint32_t  *of_busy, *of_rank;

    of_busy = pack->expert + (size_t) busy * pack->room;
    of_rank = pack->expert + (size_t) rank * pack->room;
    in_busy = pack->has + (size_t) busy * pack->experts;
    in_rank = pack->has + (size_t) rank * pack->experts;

    /* with a slot less here and one more there, an expert may just go */

    end = pack->used[rank] + (pack->used[busy] > pack->used[rank]);

    for (i = 0; i < pack->used[busy]; i++) {
        a = of_busy[i];

        for (j = 0; j < end && !in_rank[a]; j++) {
            b = (j < pack->used[rank]) ? of_rank[j] : EP_NONE;

            if (b != EP_NONE && in_busy[b]) {
                continue;
            }

            d = pack->load[a] - (b != EP_NONE ? pack->load[b] : 0);
            max = pack->sum[busy] - d;
            max = pack->sum[rank] + d > max ? pack->sum[rank] + d : max;

            if (max < best->max) {
                best->rank = rank;
                best->from = i;
                best->to = j;
                best->max = max;
            }
        }
    }
}


double
ep_pack_max(const ep_pack_t *pack)
{
    double    max;
    uint32_t  r;

    max = 0;

    for (r = 0; r < pack->ranks; r++) {
        max = pack->sum[r] > max ? pack->sum[r] : max;
    }

    return max;
}
