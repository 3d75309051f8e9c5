/*
 * Packing: groups onto nodes, replicas onto ranks.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_balance.h"
#include "ep/ep_pack.h"


/* Few moves are worth a busiest rank that is this much busier. */

#define BALANCE_KEEP  1.01


static int balance_usable(const ep_balance_t *b, const ep_placement_t *now);
static int balance_nodes(const ep_balance_t *b, const double *load, int even,
    uint8_t *node);
static void balance_replicas(const ep_balance_t *b, const double *load,
    const uint8_t *node, uint32_t n, uint32_t *replicas);
static uint32_t balance_share(uint32_t all, uint32_t parts, uint32_t i);
static ep_pack_t *balance_best(const ep_balance_t *b, const double *load);
static ep_pack_t *balance_new(const ep_balance_t *b, const double *load,
    int even);
static ep_map_t *balance_old(const ep_balance_t *b, const double *load,
    const ep_placement_t *now, int refine, char *err);
static void balance_pour(double *sum, const uint8_t *home, uint32_t n,
    double load);
static ep_map_t *balance_map(const ep_balance_t *b, const ep_pack_t *pack,
    const ep_placement_t *now, char *err);
static void balance_names(const ep_balance_t *b, const ep_pack_t *pack,
    const ep_placement_t *now, uint32_t *name);
static uint32_t balance_common(const ep_pack_t *pack, uint32_t rank,
    const ep_placement_t *now, uint32_t old);


int
ep_balance_check(const ep_balance_t *b, char *err)
{
    if (b->experts == 0 || b->ranks == 0 || b->ranks > EP_RANKS_MAX) {
        snprintf(err, ERR_LEN, "cannot place %u experts on %u ranks: "
                 "1 to %u ranks are possible", b->experts, b->ranks,
                 EP_RANKS_MAX);
        return -1;
    }

    if (b->slots < b->experts || b->slots < b->ranks) {
        snprintf(err, ERR_LEN, "cannot place %u experts on %u ranks with %u "
                 "slots", b->experts, b->ranks, b->slots);
        return -1;
    }

    if (b->groups == 0 || b->nodes == 0 || b->experts % b->groups != 0
        || b->groups % b->nodes != 0 || b->ranks % b->nodes != 0)
    {
        snprintf(err, ERR_LEN, "cannot share %u experts in %u groups and %u "
                 "ranks over %u nodes evenly", b->experts, b->groups,
                 b->ranks, b->nodes);
        return -1;
    }

    /* each expert at most once on each rank of its node */

    if (balance_share(b->slots, b->nodes, 0)
        > (uint64_t) b->experts / b->nodes * (b->ranks / b->nodes))
    {
        snprintf(err, ERR_LEN, "%u slots are more than %u experts can fill, "
                 "each once on each of %u ranks", b->slots, b->experts,
                 b->ranks / b->nodes);
        return -1;
    }

    return 0;
}


void
ep_balance_global(ep_balance_t *b)
{
    if (b->groups == 0 || b->nodes == 0 || b->experts % b->groups != 0
        || b->groups % b->nodes != 0 || b->ranks % b->nodes != 0)
    {
        b->groups = 1;
        b->nodes = 1;
    }
}


ep_map_t *
ep_balance(const ep_balance_t *b, const double *load,
    const ep_placement_t *now, char *err)
{
    int         refine;
    double      enough;
    ep_map_t   *map, *old;
    ep_pack_t  *pack;

    if (ep_balance_check(b, err) != 0) {
        return NULL;
    }

    pack = balance_best(b, load);

    if (pack == NULL) {
        snprintf(err, ERR_LEN, "no memory to place %u experts", b->experts);
        return NULL;
    }

    map = balance_map(b, pack, now, err);
    ep_pack_close(pack);

    if (map == NULL || !balance_usable(b, now)) {
        return map;
    }

    enough = ep_balance_load(ep_map_placement(map), load, NULL)
             * BALANCE_KEEP;

    /* as it is, then bettered by exchanges, then anew */

    for (refine = 0; refine < 2; refine++) {
        old = balance_old(b, load, now, refine, err);

        if (old == NULL) {
            ep_map_close(map);
            return NULL;
        }

        if (ep_balance_load(ep_map_placement(old), load, NULL) <= enough) {
            ep_map_close(map);
            return old;
        }

        ep_map_close(old);
    }

    return map;
}


/* A placement of the same slots, shared out as evenly as ours. */

static int
balance_usable(const ep_balance_t *b, const ep_placement_t *now)
{
    uint32_t  r;

    if (now == NULL || b->nodes > 1 || now->ranks != b->ranks
        || now->experts != b->experts || now->first[b->experts] != b->slots)
    {
        return 0;
    }

    for (r = 0; r < b->ranks; r++) {
        if (now->count[r] < b->slots / b->ranks
            || now->count[r] > (b->slots + b->ranks - 1) / b->ranks)
        {
            return 0;
        }
    }

    return 1;
}


double
ep_balance_load(const ep_placement_t *p, const double *load, double *rank)
{
    double    max, sum[EP_RANKS_MAX];
    uint32_t  e, i, n, r;

    memset(sum, 0, sizeof(sum));

    for (e = 0; e < p->experts; e++) {
        n = p->first[e + 1] - p->first[e];

        for (i = p->first[e]; i < p->first[e + 1]; i++) {
            sum[p->rank[i]] += load[e] / n;
        }
    }

    for (e = 0; e < p->experts; e++) {
        n = p->first[e + 1] - p->first[e];

        if (n > 1) {
            balance_pour(sum, p->rank + p->first[e], n, load[e]);
        }
    }

    max = 0;

    for (r = 0; r < p->ranks; r++) {
        max = sum[r] > max ? sum[r] : max;
    }

    if (rank != NULL) {
        memcpy(rank, sum, p->ranks * sizeof(double));
    }

    return max;
}


/*
 * An expert's load, shared evenly so far, goes to the lowest of its homes and
 * raises them to one level as far as it goes: none gets higher than before.
 */

static void
balance_pour(double *sum, const uint8_t *home, uint32_t n, double load)
{
    double    level, next, need;
    uint32_t  i, low;

    for (i = 0; i < n; i++) {
        sum[home[i]] -= load / n;
    }

    level = sum[home[0]];

    for (i = 1; i < n; i++) {
        level = sum[home[i]] < level ? sum[home[i]] : level;
    }

    for ( ;; ) {
        low = 0;
        next = INFINITY;

        for (i = 0; i < n; i++) {
            if (sum[home[i]] <= level) {
                low++;

            } else if (sum[home[i]] < next) {
                next = sum[home[i]];
            }
        }

        need = (next - level) * low;

        if (!(need < load)) {
            break;
        }

        load -= need;
        level = next;
    }

    level += load / low;

    for (i = 0; i < n; i++) {
        sum[home[i]] = sum[home[i]] < level ? level : sum[home[i]];
    }
}


uint32_t
ep_balance_moves(const ep_placement_t *from, const ep_placement_t *to,
    uint32_t *rank)
{
    uint32_t  e, i, j, n, moves[EP_RANKS_MAX];

    n = 0;
    memset(moves, 0, sizeof(moves));

    for (e = 0; e < to->experts; e++) {
        for (i = to->first[e]; i < to->first[e + 1]; i++) {

            for (j = from->first[e]; j < from->first[e + 1]; j++) {
                if (from->rank[j] == to->rank[i]) {
                    break;
                }
            }

            if (j == from->first[e + 1]) {
                moves[to->rank[i]]++;
                n++;
            }
        }
    }

    if (rank != NULL) {
        memcpy(rank, moves, to->ranks * sizeof(uint32_t));
    }

    return n;
}


/*
 * Nodes with even loads are most often best, but not where one expert is too
 * much for its node's ranks.
 */

static ep_pack_t *
balance_best(const ep_balance_t *b, const double *load)
{
    ep_pack_t  *pack, *other;

    pack = balance_new(b, load, 1);

    if (pack == NULL || b->nodes == 1) {
        return pack;
    }

    other = balance_new(b, load, 0);

    if (other != NULL && ep_pack_max(other) < ep_pack_max(pack)) {
        ep_pack_close(pack);
        return other;
    }

    ep_pack_close(other);

    return pack;
}


/* From nothing. */

static ep_pack_t *
balance_new(const ep_balance_t *b, const double *load, int even)
{
    uint8_t    *node;
    uint32_t   *replicas, n, per;
    ep_pack_t  *pack;

    node = calloc(b->experts, sizeof(uint8_t));
    replicas = calloc(b->experts, sizeof(uint32_t));
    pack = NULL;

    if (node == NULL || replicas == NULL
        || balance_nodes(b, load, even, node) != 0)
    {
        goto done;
    }

    for (n = 0; n < b->nodes; n++) {
        balance_replicas(b, load, node, n, replicas);
    }

    pack = ep_pack_open(b->experts, b->ranks, b->slots, load, replicas);
    if (pack == NULL) {
        goto done;
    }

    per = b->ranks / b->nodes;

    for (n = 0; n < b->nodes; n++) {
        ep_pack_range(pack, n * per, per,
                      balance_share(b->slots, b->nodes, n));

        if (ep_pack_fill(pack, b->nodes > 1 ? node : NULL, n) != 0) {
            ep_pack_close(pack);
            pack = NULL;
            goto done;
        }

        ep_pack_refine(pack);
    }

done:

    free(node);
    free(replicas);

    return pack;
}


/* What is there, with its replicas, if `refine` bettered by exchanges. */

static ep_map_t *
balance_old(const ep_balance_t *b, const double *load,
    const ep_placement_t *now, int refine, char *err)
{
    uint32_t   *replicas, e, i, r;
    ep_map_t   *map;
    ep_pack_t  *pack;

    pack = NULL;

    replicas = calloc(b->experts, sizeof(uint32_t));

    if (replicas != NULL) {
        for (e = 0; e < b->experts; e++) {
            replicas[e] = now->first[e + 1] - now->first[e];
        }

        pack = ep_pack_open(b->experts, b->ranks, b->slots, load, replicas);
        free(replicas);
    }

    if (pack == NULL) {
        snprintf(err, ERR_LEN, "no memory to place %u experts", b->experts);
        return NULL;
    }

    ep_pack_range(pack, 0, b->ranks, b->slots);

    for (r = 0; r < b->ranks; r++) {
        for (i = 0; i < now->count[r]; i++) {
            ep_pack_put(pack, r, now->expert[now->begin[r] + i]);
        }
    }

    if (refine) {
        ep_pack_refine(pack);
    }

    map = ep_map_make(b->experts, b->ranks, pack->used, pack->expert,
                      pack->room, err);
    ep_pack_close(pack);

    return map;
}


/* Of `all` things in `parts` shares that differ by at most one, share `i`. */

static uint32_t
balance_share(uint32_t all, uint32_t parts, uint32_t i)
{
    return all / parts + (i < all % parts);
}


/* Groups are items too, each once, each node as many. */

static int
balance_nodes(const ep_balance_t *b, const double *load, int even,
    uint8_t *node)
{
    double     *sum;
    uint32_t   *once, e, g, n, i, size;
    ep_pack_t  *pack;

    if (b->nodes == 1) {
        return 0;
    }

    sum = calloc(b->groups, sizeof(double));
    once = calloc(b->groups, sizeof(uint32_t));
    pack = NULL;
    size = b->experts / b->groups;

    if (sum == NULL || once == NULL) {
        goto done;
    }

    for (e = 0; e < b->experts; e++) {
        sum[e / size] += load[e];
        once[e / size] = 1;
    }

    pack = ep_pack_open(b->groups, b->nodes, b->groups, sum, once);
    if (pack == NULL) {
        goto done;
    }

    ep_pack_range(pack, 0, b->nodes, b->groups);

    if (ep_pack_fill(pack, NULL, 0) != 0) {
        ep_pack_close(pack);
        pack = NULL;
        goto done;
    }

    if (even) {
        ep_pack_refine(pack);
    }

    for (n = 0; n < b->nodes; n++) {
        for (i = 0; i < pack->used[n]; i++) {
            g = pack->expert[n * pack->room + i];
            memset(node + g * size, (int) n, size);
        }
    }

done:

    free(sum);
    free(once);
    ep_pack_close(pack);

    return pack != NULL ? 0 : -1;
}


static void
balance_replicas(const ep_balance_t *b, const double *load,
    const uint8_t *node, uint32_t n, uint32_t *replicas)
{
    uint32_t  e, best, left, most;

    most = b->ranks / b->nodes;
    left = balance_share(b->slots, b->nodes, n);

    for (e = 0; e < b->experts; e++) {
        if (node[e] == n) {
            replicas[e] = 1;
            left--;
        }
    }

    for ( /* void */ ; left > 0; left--) {
        best = EP_NONE;

        for (e = 0; e < b->experts; e++) {
            if (node[e] == n && replicas[e] < most
                && (best == EP_NONE || load[e] * replicas[best]
                                       > load[best] * replicas[e]))
            {
                best = e;
            }
        }

        replicas[best]++;
    }
}


static ep_map_t *
balance_map(const ep_balance_t *b, const ep_pack_t *pack,
    const ep_placement_t *now, char *err)
{
    uint32_t   *name, *used, *expert, r;
    ep_map_t   *map;

    name = calloc(b->ranks, sizeof(uint32_t));
    used = calloc(b->ranks, sizeof(uint32_t));
    expert = calloc((size_t) b->ranks * pack->room, sizeof(uint32_t));
    map = NULL;

    if (name == NULL || used == NULL || expert == NULL) {
        snprintf(err, ERR_LEN, "no memory to place %u experts", b->experts);
        goto done;
    }

    balance_names(b, pack, now, name);

    for (r = 0; r < b->ranks; r++) {
        used[name[r]] = pack->used[r];
        memcpy(expert + (size_t) name[r] * pack->room,
               pack->expert + (size_t) r * pack->room,
               pack->used[r] * sizeof(uint32_t));
    }

    map = ep_map_make(b->experts, b->ranks, used, expert, pack->room, err);

done:

    free(name);
    free(used);
    free(expert);

    return map;
}


/*
 * Which rank of the same node each pack is for: the pair with most in common
 * first.
 */

static void
balance_names(const ep_balance_t *b, const ep_pack_t *pack,
    const ep_placement_t *now, uint32_t *name)
{
    uint8_t    taken[EP_RANKS_MAX];
    uint32_t   i, r, old, n, per, best, best_r, best_old;

    for (r = 0; r < b->ranks; r++) {
        name[r] = r;
    }

    if (now == NULL || now->ranks != b->ranks || now->experts != b->experts) {
        return;
    }

    for (r = 0; r < b->ranks; r++) {
        name[r] = EP_NONE;
        taken[r] = 0;
    }

    per = b->ranks / b->nodes;

    for (i = 0; i < b->ranks; i++) {
        best = 0;
        best_r = EP_NONE;
        best_old = 0;

        for (r = 0; r < b->ranks; r++) {
            for (old = r / per * per; old < r / per * per + per; old++) {

                if (name[r] != EP_NONE || taken[old]) {
                    continue;
                }

                n = balance_common(pack, r, now, old) + 1;

                if (n > best) {
                    best = n;
                    best_r = r;
                    best_old = old;
                }
            }
        }

        name[best_r] = best_old;
        taken[best_old] = 1;
    }
}


static uint32_t
balance_common(const ep_pack_t *pack, uint32_t rank,
    const ep_placement_t *now, uint32_t old)
{
    uint32_t  e, i, j, n;

    n = 0;

    for (i = 0; i < pack->used[rank]; i++) {
        e = pack->expert[(size_t) rank * pack->room + i];

        for (j = now->first[e]; j < now->first[e + 1]; j++) {
            n += (now->rank[j] == old);
        }
    }

    return n;
}
