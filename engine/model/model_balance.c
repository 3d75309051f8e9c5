/*
 * The balancer's thread.
 */

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/model_balance_int.h"


#define BALANCE_TICK  1.0            /* seconds between counts */
#define BALANCE_HALF  32768.0        /* rows after which one counts half */

/* Rows that an expert has on average before a layer is placed by them. */
#define BALANCE_LEAST  16


static int balance_helpers(model_balance_t *b, char *err);
static void *balance_main(void *data);
static int balance_count(model_balance_t *b);
static void balance_publish(model_balance_t *b);
static int balance_plan(model_balance_t *b);
static int balance_layer(model_balance_t *b, uint32_t layer, char *err);
static int balance_move(model_balance_t *b, uint32_t layer,
    const ep_map_t *map, char *err);
static be_t *balance_be(const model_balance_t *b, uint32_t rank);


model_balance_t *
model_balance_open(model_rank_t *const *rank, uint32_t n,
    const model_balance_options_t *opt, char *err)
{
    size_t            size;
    uint32_t          i;
    model_balance_t  *b;

    b = calloc(1, sizeof(model_balance_t));
    if (b == NULL) {
        model_error(err, "no memory for a balancer");
        return NULL;
    }

    b->n = n;
    b->ranks = rank[0]->ex->ranks;
    b->first = rank[0]->ex->rank;
    b->layers = rank[0]->n_layers;
    b->experts = rank[0]->model->config.gate.experts;
    b->top_k = rank[0]->model->config.gate.top_k;
    b->opt = *opt;
    sem_init(&b->wake, 0, 0);
    pthread_mutex_init(&b->lock, NULL);

    size = (size_t) b->layers * b->experts;

    b->rank = calloc(n, sizeof(model_rank_t *));
    b->helper = calloc(n, sizeof(be_t *));
    b->place = calloc(n, sizeof(model_place_t));
    b->load_max = calloc(b->ranks, sizeof(*b->load_max));
    b->moves = calloc(b->ranks, sizeof(*b->moves));
    b->load = calloc(size, sizeof(double));
    b->seen = calloc(size, sizeof(uint64_t));
    b->sum = calloc(b->experts, sizeof(uint64_t));
    b->away = calloc(size, sizeof(uint64_t));

    if (b->rank == NULL || b->helper == NULL || b->place == NULL
        || b->load_max == NULL || b->moves == NULL || b->load == NULL
        || b->seen == NULL || b->sum == NULL || b->away == NULL)
    {
        model_error(err, "no memory for a balancer");
        goto failed;
    }

    memcpy(b->rank, rank, n * sizeof(model_rank_t *));

    for (i = 0; i < b->layers; i++) {
        if (balance_at(b, i) != NULL) {
            b->shape.slots = balance_at(b, i)->first[b->experts];
        }
    }

    b->shape.experts = b->experts;
    b->shape.ranks = b->ranks;
    b->shape.groups = 1;
    b->shape.nodes = 1;

    if (opt->interval > 0 && balance_helpers(b, err) != 0) {
        goto failed;
    }

    if (opt->nodes != NULL && balance_nodes_open(b, err) != 0) {
        goto failed;
    }

    if (pthread_create(&b->thread, NULL, balance_main, b) != 0) {
        model_error(err, "no thread for the balancer");
        goto failed;
    }

    b->started = 1;

    return b;

failed:

    model_balance_close(b);
    return NULL;
}


/* If all ranks have one pool, each expert's weights are in it. */

static int
balance_helpers(model_balance_t *b, char *err)
{
    be_t      *be;
    uint32_t   i;

    for (i = 0; i < b->n && b->rank[i]->pool == b->rank[0]->pool; i++) {
        /* void */
    }

    if (i == b->n) {
        return 0;
    }

    for (i = 0; i < b->n; i++) {
        be = b->rank[i]->be;
        b->helper[i] = be->helper(be, err);

        if (b->helper[i] == NULL) {
            return -1;
        }
    }

    return 0;
}


void
model_balance_close(model_balance_t *b)
{
    uint32_t  i;

    if (b == NULL) {
        return;
    }

    if (b->started) {
        atomic_store(&b->stop, 1);
        sem_post(&b->wake);
        pthread_join(b->thread, NULL);
    }

    if (b->opt.nodes != NULL) {
        balance_nodes_close(b);
    }

    for (i = 0; b->helper != NULL && i < b->n; i++) {
        if (b->helper[i] != NULL) {
            b->helper[i]->close(b->helper[i]);
        }
    }

    sem_destroy(&b->wake);
    pthread_mutex_destroy(&b->lock);
    free(b->rank);
    free(b->helper);
    free(b->place);
    free(b->load_max);
    free(b->moves);
    free(b->load);
    free(b->seen);
    free(b->sum);
    free(b->away);
    free(b);
}


uint64_t
model_balance_move(const model_balance_t *b)
{
    return atomic_load_explicit(&b->ready, memory_order_acquire);
}


int
model_balance_turn(model_balance_t *b, uint64_t move)
{
    uint32_t  i;

    if (move == 0) {
        return 0;
    }

    if (atomic_load_explicit(&b->ready, memory_order_acquire) != move) {
        return -1;
    }

    for (i = 0; i < b->n; i++) {
        model_place_swap(b->rank[i], b->layer, &b->place[i]);
    }

    atomic_store_explicit(&b->ready, 0, memory_order_release);
    sem_post(&b->wake);

    return 0;
}


void
model_balance_stats(const model_balance_t *b, uint32_t rank,
    model_balance_stats_t *st)
{
    st->load_max = atomic_load_explicit(&b->load_max[b->first + rank],
                                        memory_order_relaxed);
    st->moves = atomic_load_explicit(&b->moves[b->first + rank],
                                     memory_order_relaxed);
}


static void *
balance_main(void *data)
{
    int                 news;
    double              now, next, tick;
    model_balance_t    *b = data;
    struct sched_param  param;

    pthread_setname_np(pthread_self(), "llm-balance");

    /* it runs when a processor has nothing better to do */

    memset(&param, 0, sizeof(param));
    (void) pthread_setschedparam(pthread_self(), SCHED_IDLE, &param);

    tick = b->opt.interval;
    tick = (tick > 0 && tick < BALANCE_TICK) ? tick : BALANCE_TICK;
    next = balance_now() + b->opt.interval;
    news = 0;

    while (balance_wait(b, balance_now() + tick) == 0) {

        if (b->follows) {
            balance_follow(b);
            continue;
        }

        news |= balance_count(b);

        if (!news) {
            continue;
        }

        now = balance_now();

        if (b->opt.interval > 0 && now >= next) {
            next = now + b->opt.interval;
            news = 0;

            if (balance_plan(b) != 0) {
                b->opt.interval = 0;
            }
        }

        balance_publish(b);
    }

    return NULL;
}


/* Until then, or until turn() or close() wakes it; 1: it is time to stop. */

int
balance_wait(model_balance_t *b, double until)
{
    struct timespec  ts;

    ts.tv_sec = (time_t) until;
    ts.tv_nsec = (long) ((until - (double) ts.tv_sec) * 1e9);

    (void) sem_clockwait(&b->wake, CLOCK_MONOTONIC, &ts);

    return atomic_load(&b->stop);
}


double
balance_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}


/* Takes in what ranks have counted; 1 if that is more than before. */

static int
balance_count(model_balance_t *b)
{
    int        news;
    double    *load, rows, keep;
    uint32_t   i, l, e;
    uint64_t  *seen;

    news = 0;

    for (l = 0; l < b->layers; l++) {

        if (balance_at(b, l) == NULL) {
            continue;
        }

        load = b->load + (size_t) l * b->experts;
        seen = b->seen + (size_t) l * b->experts;
        memset(b->sum, 0, b->experts * sizeof(uint64_t));

        for (i = 0; i < b->n; i++) {
            model_expert_load(b->rank[i], l, b->sum);
        }

        balance_nodes_add(b, l, b->sum);

        for (e = 0, rows = 0; e < b->experts; e++) {
            rows += (double) (b->sum[e] - seen[e]);
        }

        if (rows == 0) {
            continue;
        }

        keep = exp2(-rows / b->top_k / BALANCE_HALF);

        for (e = 0; e < b->experts; e++) {
            load[e] = load[e] * keep + (double) (b->sum[e] - seen[e]);
            seen[e] = b->sum[e];
        }

        news = 1;
    }

    return news;
}


static void
balance_publish(model_balance_t *b)
{
    double    all, rank[EP_RANKS_MAX], max[EP_RANKS_MAX];
    uint32_t  i, l;

    memset(max, 0, sizeof(max));

    for (l = 0; l < b->layers; l++) {

        if (balance_at(b, l) == NULL) {
            continue;
        }

        ep_balance_load(balance_at(b, l), b->load + (size_t) l * b->experts,
                        rank);

        for (i = 0, all = 0; i < b->ranks; i++) {
            all += rank[i];
        }

        for (i = 0; all > 0 && i < b->ranks; i++) {
            max[i] = fmax(max[i], rank[i] / all * b->ranks);
        }
    }

    for (i = 0; i < b->ranks; i++) {
        atomic_store_explicit(&b->load_max[i], (uint64_t) (max[i] * 1000 + .5),
                              memory_order_relaxed);
    }

    balance_nodes_publish(b);
}


/* 0, or -1: there is no more to be had from balancing. */

static int
balance_plan(model_balance_t *b)
{
    char      err[ERR_LEN], text[ERR_LEN + 64];
    uint32_t  l;

    for (l = 0; l < b->layers && atomic_load(&b->stop) == 0; l++) {

        if (balance_at(b, l) != NULL && balance_layer(b, l, err) != 0) {
            snprintf(text, sizeof(text), "balance: layer %u: %.400s; experts "
                     "stay where they are from now on", l, err);
            b->opt.log(b->opt.log_ctx, 1, text);
            return -1;
        }
    }

    return 0;
}


static int
balance_layer(model_balance_t *b, uint32_t layer, char *err)
{
    int                    rc;
    char                   text[ERR_LEN];
    double                *load, all, before, after;
    uint32_t               e, moves;
    ep_map_t              *map;
    const ep_placement_t  *now;

    load = b->load + (size_t) layer * b->experts;
    now = balance_at(b, layer);

    for (e = 0, all = 0; e < b->experts; e++) {
        all += load[e];
    }

    if (all < (double) BALANCE_LEAST * b->experts) {
        return 0;
    }

    map = ep_balance(&b->shape, load, now, err);
    if (map == NULL) {
        return -1;
    }

    before = ep_balance_load(now, load, NULL);
    after = ep_balance_load(ep_map_placement(map), load, NULL);
    moves = ep_balance_moves(now, ep_map_placement(map), NULL);

    if (moves == 0 || before - after <= b->opt.gain * before) {
        ep_map_close(map);
        return 0;
    }

    rc = balance_move(b, layer, map, err);
    ep_map_close(map);

    if (rc == 0) {
        snprintf(text, sizeof(text), "balance: layer %u max/mean %.3f -> %.3f,"
                 " %u experts moved", layer, before / all * b->ranks,
                 after / all * b->ranks, moves);
        b->opt.log(b->opt.log_ctx, 0, text);
    }

    return rc < 0 ? -1 : 0;
}


/* 0; 1 if it was told to stop before it came to that; or -1. */

static int
balance_move(model_balance_t *b, uint32_t layer, const ep_map_t *map,
    char *err)
{
    int       rc;
    uint32_t  i, moves[EP_RANKS_MAX];
    uint64_t  move;

    ep_balance_moves(balance_at(b, layer), ep_map_placement(map), moves);
    move = ++b->move;

    if (balance_nodes_place(b, layer, map, move, err) != 0
        || balance_make(b, layer, map, err) != 0)
    {
        balance_nodes_drop(b, move);
        return -1;
    }

    rc = balance_nodes_made(b, move, err);

    if (rc != 0) {
        balance_drop(b, layer, b->n);
        balance_nodes_drop(b, move);
        return rc;
    }

    if (balance_turned(b, layer, move) != 0) {
        balance_nodes_drop(b, move);
        return 1;
    }

    for (i = 0; i < b->ranks; i++) {
        atomic_fetch_add_explicit(&b->moves[i], moves[i],
                                  memory_order_relaxed);
    }

    return 0;
}


/* The places of this node's ranks. */

int
balance_make(model_balance_t *b, uint32_t layer, const ep_map_t *map,
    char *err)
{
    uint32_t  i;

    for (i = 0; i < b->n; i++) {
        if (model_place_open(b->rank[i], balance_be(b, i), layer, map,
                             &b->place[i], err)
            != 0)
        {
            balance_drop(b, layer, i);
            return -1;
        }
    }

    return 0;
}


/* Waits until a step has taken them, and frees what they replaced. */

int
balance_turned(model_balance_t *b, uint32_t layer, uint64_t move)
{
    uint64_t  waits;

    b->layer = layer;
    atomic_store_explicit(&b->ready, move, memory_order_release);
    balance_nodes_ready(b, move);

    while (atomic_load_explicit(&b->ready, memory_order_acquire) != 0
           && balance_wait(b, balance_now() + 3600) == 0
           && !balance_nodes_dropped(b, move))
    {
        /* void */
    }

    /* told to stop, it takes back what no step will take any more */

    waits = move;
    waits = atomic_compare_exchange_strong(&b->ready, &waits, 0);

    balance_drop(b, layer, b->n);

    return waits ? -1 : 0;
}


void
balance_drop(model_balance_t *b, uint32_t layer, uint32_t n)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        model_place_close(b->rank[i], balance_be(b, i), layer, &b->place[i]);
    }
}


static be_t *
balance_be(const model_balance_t *b, uint32_t rank)
{
    return b->helper[rank] != NULL ? b->helper[rank] : b->rank[rank]->be;
}


/* Equal on all ranks; NULL in a dense layer. */

const ep_placement_t *
balance_at(const model_balance_t *b, uint32_t layer)
{
    ep_map_t  *map;

    map = b->rank[0]->layer[layer].place.map;

    return map != NULL ? ep_map_placement(map) : NULL;
}
