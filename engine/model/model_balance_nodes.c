/*
 * Balancers of several nodes, by messages (ep_nodes_post()).  Each begins with
 *
 *     0   4  kind
 *     4   4  layer
 *     8   8  move
 *
 * and is, in order of what happens:
 *
 *     LOAD   to node 0    u32 [layers][experts]: rows counted since the last
 *     PLACE  from node 0  u32 ranks, u32 room, u32 count[ranks],
 *                         u32 expert[ranks][room]: make this of `layer`
 *     MADE   to node 0    u32: 1, it is made and ready; 0, it cannot be
 *     DROP   from node 0  no move up to this one will be asked for
 *     STATE  from node 0  u64 [ranks]: loads over the mean, x 1000
 *
 * A place that is ready is taken in the step for which node 0 says so.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_balance_int.h"


enum {
    BALANCE_LOAD = 1,
    BALANCE_PLACE,
    BALANCE_MADE,
    BALANCE_DROP,
    BALANCE_STATE
};

typedef struct {
    uint32_t  kind;
    uint32_t  layer;
    uint64_t  move;
} balance_head_t;

_Static_assert(sizeof(balance_head_t) == 16, "a message's head");


static void balance_heard(void *ctx, uint32_t node, const void *data,
    size_t len);
static int balance_take(model_balance_t *b, uint32_t node,
    const balance_head_t *h, const uint32_t *body, size_t len);
static int balance_take_load(model_balance_t *b, const uint32_t *body,
    size_t len);
static int balance_take_place(model_balance_t *b, const balance_head_t *h,
    const uint32_t *body, size_t len);
static int balance_take_state(model_balance_t *b, const uint32_t *body,
    size_t len);
static void balance_report(model_balance_t *b);
static int balance_post(model_balance_t *b, uint32_t node, uint32_t kind,
    uint32_t layer, uint64_t move, const void *body, size_t len, char *err);
static void balance_post_all(model_balance_t *b, uint32_t kind, uint64_t move,
    const void *body, size_t len);


int
balance_nodes_open(model_balance_t *b, char *err)
{
    b->follows = ep_nodes_self(b->opt.nodes) != 0;
    b->delta = calloc((size_t) b->layers * b->experts + 1, sizeof(uint32_t));

    if (b->delta == NULL) {
        return model_error(err, "no memory for a balancer");
    }

    ep_nodes_on_post(b->opt.nodes, balance_heard, b);

    return 0;
}


void
balance_nodes_close(model_balance_t *b)
{
    ep_nodes_on_post(b->opt.nodes, NULL, NULL);
    ep_map_close(b->order);
    free(b->delta);
}


void
balance_nodes_add(model_balance_t *b, uint32_t layer, uint64_t *sum)
{
    uint32_t  e;

    pthread_mutex_lock(&b->lock);

    for (e = 0; e < b->experts; e++) {
        sum[e] += b->away[(size_t) layer * b->experts + e];
    }

    pthread_mutex_unlock(&b->lock);
}


int
balance_nodes_place(model_balance_t *b, uint32_t layer, const ep_map_t *map,
    uint64_t move, char *err)
{
    int                    rc;
    size_t                 size;
    uint32_t               i, room, *body;
    const ep_placement_t  *p;

    if (b->opt.nodes == NULL) {
        return 0;
    }

    p = ep_map_placement(map);

    for (i = 0, room = 0; i < p->ranks; i++) {
        room = (p->count[i] > room) ? p->count[i] : room;
    }

    size = 2 + (size_t) p->ranks * (1 + room);
    body = calloc(size, sizeof(uint32_t));

    if (body == NULL) {
        return model_error(err, "no memory for a message");
    }

    body[0] = p->ranks;
    body[1] = room;

    for (i = 0; i < p->ranks; i++) {
        body[2 + i] = p->count[i];
        memcpy(body + 2 + p->ranks + (size_t) i * room,
               p->expert + p->begin[i], p->count[i] * sizeof(uint32_t));
    }

    pthread_mutex_lock(&b->lock);
    b->refused = 0;
    pthread_mutex_unlock(&b->lock);

    rc = 0;

    for (i = 1; rc == 0 && i < ep_nodes_count(b->opt.nodes); i++) {
        rc = balance_post(b, i, BALANCE_PLACE, layer, move, body,
                          size * sizeof(uint32_t), err);
    }

    free(body);

    return rc;
}


int
balance_nodes_made(model_balance_t *b, uint64_t move, char *err)
{
    int       refused;
    uint32_t  i, left;

    if (b->opt.nodes == NULL) {
        return 0;
    }

    for ( ;; ) {
        pthread_mutex_lock(&b->lock);

        refused = b->refused;

        for (i = 1, left = 0; i < ep_nodes_count(b->opt.nodes); i++) {
            left += (b->made[i] != move);
        }

        pthread_mutex_unlock(&b->lock);

        if (refused != 0) {
            return model_error(err, "node %d cannot make it", refused);
        }

        if (left == 0) {
            return 0;
        }

        if (ep_nodes_status(b->opt.nodes, err) != 0) {
            return -1;
        }

        if (balance_wait(b, balance_now() + 1) != 0) {
            return 1;
        }
    }
}


void
balance_nodes_drop(model_balance_t *b, uint64_t move)
{
    if (b->opt.nodes != NULL && !b->follows) {
        balance_post_all(b, BALANCE_DROP, move, NULL, 0);
    }
}


void
balance_nodes_publish(model_balance_t *b)
{
    uint32_t  i;
    uint64_t  state[EP_RANKS_MAX];

    if (b->opt.nodes == NULL) {
        return;
    }

    for (i = 0; i < b->ranks; i++) {
        state[i] = atomic_load_explicit(&b->load_max[i], memory_order_relaxed);
    }

    balance_post_all(b, BALANCE_STATE, 0, state,
                     b->ranks * sizeof(uint64_t));
}


/* What another node's thread does after each wait. */

void
balance_follow(model_balance_t *b)
{
    char       err[ERR_LEN];
    uint32_t   ok, i, layer, moves[EP_RANKS_MAX];
    uint64_t   move;
    ep_map_t  *map;

    balance_report(b);

    pthread_mutex_lock(&b->lock);
    map = b->order;
    layer = b->order_layer;
    move = b->order_move;
    b->order = NULL;
    pthread_mutex_unlock(&b->lock);

    if (map == NULL) {
        return;
    }

    ep_balance_moves(balance_at(b, layer), ep_map_placement(map), moves);

    if (balance_make(b, layer, map, err) != 0) {
        ok = 0;
        (void) balance_post(b, 0, BALANCE_MADE, layer, move, &ok, sizeof(ok),
                            err);

    } else if (balance_turned(b, layer, move) == 0) {
        for (i = 0; i < b->ranks; i++) {
            atomic_fetch_add_explicit(&b->moves[i], moves[i],
                                      memory_order_relaxed);
        }
    }

    ep_map_close(map);
}


/* Rows counted since the last time, if there are any. */

static void
balance_report(model_balance_t *b)
{
    int        news;
    char       err[ERR_LEN];
    size_t     at;
    uint32_t   l, i, e;

    news = 0;

    for (l = 0; l < b->layers; l++) {

        if (balance_at(b, l) == NULL) {
            continue;
        }

        memset(b->sum, 0, b->experts * sizeof(uint64_t));

        for (i = 0; i < b->n; i++) {
            model_expert_load(b->rank[i], l, b->sum);
        }

        for (e = 0; e < b->experts; e++) {
            at = (size_t) l * b->experts + e;
            b->delta[at] = (uint32_t) (b->sum[e] - b->seen[at]);
            b->seen[at] = b->sum[e];
            news |= b->delta[at] != 0;
        }
    }

    if (news) {
        (void) balance_post(b, 0, BALANCE_LOAD, 0, 0, b->delta,
                            (size_t) b->layers * b->experts
                            * sizeof(uint32_t), err);
    }
}


void
balance_nodes_ready(model_balance_t *b, uint64_t move)
{
    char      err[ERR_LEN];
    uint32_t  ok;

    if (b->follows) {
        ok = 1;
        (void) balance_post(b, 0, BALANCE_MADE, b->layer, move, &ok,
                            sizeof(ok), err);
    }
}


int
balance_nodes_dropped(model_balance_t *b, uint64_t move)
{
    int  dropped;

    pthread_mutex_lock(&b->lock);
    dropped = b->dropped >= move;
    pthread_mutex_unlock(&b->lock);

    return dropped;
}


/* The listening thread's: checks, notes, and wakes the balancer. */

static void
balance_heard(void *ctx, uint32_t node, const void *data, size_t len)
{
    int               rc;
    char              why[96];
    model_balance_t  *b = ctx;
    balance_head_t    h;

    rc = -1;

    if (len >= sizeof(h) && len % sizeof(uint32_t) == 0) {
        memcpy(&h, data, sizeof(h));
        rc = balance_take(b, node, &h,
                          (const uint32_t *) ((const char *) data
                                              + sizeof(h)),
                          len - sizeof(h));
    }

    if (rc != 0) {
        snprintf(why, sizeof(why), "node %u: a message of its balancer is not "
                 "right", node);
        ep_nodes_fail(b->opt.nodes, why);
    }
}


static int
balance_take(model_balance_t *b, uint32_t node, const balance_head_t *h,
    const uint32_t *body, size_t len)
{
    if (b->follows != (node == 0)) {
        return -1;
    }

    switch (h->kind) {

    case BALANCE_LOAD:
        return b->follows ? -1 : balance_take_load(b, body, len);

    case BALANCE_PLACE:
        return b->follows ? balance_take_place(b, h, body, len) : -1;

    case BALANCE_STATE:
        return b->follows ? balance_take_state(b, body, len) : -1;

    case BALANCE_MADE:
        if (b->follows || len != sizeof(uint32_t)) {
            return -1;
        }

        pthread_mutex_lock(&b->lock);
        b->made[node] = h->move;
        b->refused = (body[0] == 0) ? (int) node : b->refused;
        pthread_mutex_unlock(&b->lock);
        break;

    case BALANCE_DROP:
        if (!b->follows) {
            return -1;
        }

        pthread_mutex_lock(&b->lock);
        b->dropped = h->move;

        if (b->order != NULL && b->order_move <= h->move) {
            ep_map_close(b->order);
            b->order = NULL;
        }

        pthread_mutex_unlock(&b->lock);
        break;

    default:
        return -1;
    }

    sem_post(&b->wake);

    return 0;
}


static int
balance_take_load(model_balance_t *b, const uint32_t *body, size_t len)
{
    size_t  i, n;

    n = (size_t) b->layers * b->experts;

    if (len != n * sizeof(uint32_t)) {
        return -1;
    }

    pthread_mutex_lock(&b->lock);

    for (i = 0; i < n; i++) {
        b->away[i] += body[i];
    }

    pthread_mutex_unlock(&b->lock);

    return 0;
}


static int
balance_take_place(model_balance_t *b, const balance_head_t *h,
    const uint32_t *body, size_t len)
{
    char       err[ERR_LEN];
    ep_map_t  *map;

    if (len < 2 * sizeof(uint32_t) || h->layer >= b->layers
        || b->rank[0]->model->layer[h->layer].experts == MODEL_NONE
        || body[0] != b->ranks
        || body[1] > b->experts || h->move == 0
        || len != (2 + (size_t) body[0] * (1 + body[1])) * sizeof(uint32_t))
    {
        return -1;
    }

    map = ep_map_make(b->experts, b->ranks, body + 2, body + 2 + b->ranks,
                      body[1], err);
    if (map == NULL) {
        return -1;
    }

    pthread_mutex_lock(&b->lock);
    ep_map_close(b->order);
    b->order = map;
    b->order_layer = h->layer;
    b->order_move = h->move;
    pthread_mutex_unlock(&b->lock);

    sem_post(&b->wake);

    return 0;
}


static int
balance_take_state(model_balance_t *b, const uint32_t *body, size_t len)
{
    uint32_t  i;
    uint64_t  v;

    if (len != b->ranks * sizeof(uint64_t)) {
        return -1;
    }

    for (i = 0; i < b->ranks; i++) {
        memcpy(&v, body + 2 * i, sizeof(v));
        atomic_store_explicit(&b->load_max[i], v, memory_order_relaxed);
    }

    return 0;
}


static int
balance_post(model_balance_t *b, uint32_t node, uint32_t kind, uint32_t layer,
    uint64_t move, const void *body, size_t len, char *err)
{
    int              rc;
    char            *data;
    balance_head_t   h;

    data = malloc(sizeof(h) + len);
    if (data == NULL) {
        return model_error(err, "no memory for a message");
    }

    h.kind = kind;
    h.layer = layer;
    h.move = move;
    memcpy(data, &h, sizeof(h));

    if (len > 0) {
        memcpy(data + sizeof(h), body, len);
    }

    rc = ep_nodes_post(b->opt.nodes, node, data, sizeof(h) + len, err);
    free(data);

    return rc;
}


/* A failure is the nodes', which tell of it themselves. */

static void
balance_post_all(model_balance_t *b, uint32_t kind, uint64_t move,
    const void *body, size_t len)
{
    char      err[ERR_LEN];
    uint32_t  i;

    for (i = 1; i < ep_nodes_count(b->opt.nodes); i++) {
        (void) balance_post(b, i, kind, 0, move, body, len, err);
    }
}
