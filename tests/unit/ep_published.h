/*
 * The published algorithm (EPLB) for one layer, written from its description:
 * the oracle that ours has to be no worse than.  published_max() returns the
 * load of the busiest rank, replicas sharing evenly.
 */

#ifndef UNIT_EP_PUBLISHED_H
#define UNIT_EP_PUBLISHED_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_balance.h"


#define PUBLISHED_EXPERTS  320
#define PUBLISHED_SLOTS    1024

typedef struct {
    double    load;
    uint32_t  index;
} published_item_t;

/* Of each item its pack. */

static uint32_t  published_at[PUBLISHED_SLOTS];


static inline int
published_order(const void *one, const void *two)
{
    const published_item_t  *a = one, *b = two;

    if (a->load != b->load) {
        return a->load < b->load ? 1 : -1;
    }

    return a->index < b->index ? -1 : a->index > b->index;
}


static inline void
published_pack(const double *load, uint32_t n, uint32_t packs)
{
    double             sum[EP_RANKS_MAX];
    uint32_t           i, p, best, used[EP_RANKS_MAX];
    published_item_t   item[PUBLISHED_SLOTS];

    memset(sum, 0, sizeof(sum));
    memset(used, 0, sizeof(used));

    for (i = 0; i < n; i++) {
        item[i].load = load[i];
        item[i].index = i;
    }

    qsort(item, n, sizeof(published_item_t), published_order);

    for (i = 0; i < n; i++) {
        best = EP_RANKS_MAX;

        for (p = 0; p < packs; p++) {
            if (used[p] < n / packs
                && (best == EP_RANKS_MAX || sum[p] < sum[best]))
            {
                best = p;
            }
        }

        published_at[item[i].index] = best;
        sum[best] += item[i].load;
        used[best]++;
    }
}


static inline double
published_max(const ep_balance_t *b, const double *load)
{
    double    group[PUBLISHED_EXPERTS], each[PUBLISHED_SLOTS];
    double    sum[EP_RANKS_MAX], max;
    uint32_t  i, e, n, best, size, per, owner[PUBLISHED_SLOTS];
    uint32_t  replicas[PUBLISHED_EXPERTS], node[PUBLISHED_EXPERTS];

    size = b->experts / b->groups;
    per = b->ranks / b->nodes;
    memset(group, 0, sizeof(group));

    for (e = 0; e < b->experts; e++) {
        group[e / size] += load[e];
    }

    published_pack(group, b->groups, b->nodes);
    memcpy(node, published_at, sizeof(node));
    max = 0;

    for (n = 0; n < b->nodes; n++) {
        i = 0;

        for (e = 0; e < b->experts; e++) {
            if (node[e / size] == n) {
                owner[i++] = e;
                replicas[e] = 1;
            }
        }

        for ( /* void */ ; i < b->slots / b->nodes; i++) {
            best = owner[0];

            for (e = 0; e < b->experts; e++) {
                if (node[e / size] == n && load[e] / replicas[e]
                                           > load[best] / replicas[best])
                {
                    best = e;
                }
            }

            owner[i] = best;
            replicas[best]++;
        }

        for (i = 0; i < b->slots / b->nodes; i++) {
            each[i] = load[owner[i]] / replicas[owner[i]];
        }

        published_pack(each, b->slots / b->nodes, per);
        memset(sum, 0, sizeof(sum));

        for (i = 0; i < b->slots / b->nodes; i++) {
            sum[published_at[i]] += each[i];
            max = sum[published_at[i]] > max ? sum[published_at[i]] : max;
        }
    }

    return max;
}

#endif /* UNIT_EP_PUBLISHED_H */
