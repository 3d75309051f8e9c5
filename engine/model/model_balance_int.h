/*
 * Inside model_balance.c and model_balance_nodes.c.
 */

#ifndef MODEL_MODEL_BALANCE_INT_H
#define MODEL_MODEL_BALANCE_INT_H

#include <semaphore.h>
#include <stdatomic.h>

#include "ep/ep_balance.h"
#include "model/model_balance.h"
#include "model/model_rank.h"


struct model_balance_s {
    model_rank_t           **rank;
    be_t                   **helper; /* NULL: weights are made already */
    uint32_t                 n;      /* ranks of this node */
    uint32_t                 ranks;  /* of all */
    uint32_t                 first;  /* of this one's among them */
    uint32_t                 layers;
    uint32_t                 experts;
    uint32_t                 top_k;
    model_balance_options_t  opt;
    ep_balance_t             shape;

    pthread_t                thread;
    int                      started;
    sem_t                    wake;
    atomic_int               stop;

    double                  *load;   /* [layers][experts] */
    uint64_t                *seen;   /* [layers][experts], counted so far */
    uint64_t                *sum;    /* [experts] */

    /* One layer's new place: the thread's, and turn()'s while `ready`. */
    model_place_t           *place;  /* [ranks of this node] */
    uint32_t                 layer;
    atomic_uint_least64_t    ready;  /* the move it is for, 0: none */
    uint64_t                 move;   /* the last one begun */

    atomic_uint_least64_t   *load_max;   /* [ranks] */
    atomic_uint_least64_t   *moves;      /* [ranks] */

    /* Several nodes.  Under `lock`: what the listening thread has heard. */
    int                      follows;    /* this is not node 0 */
    pthread_mutex_t          lock;
    uint64_t                *away;   /* [layers][experts] counted elsewhere */
    ep_map_t                *order;  /* the place to make, NULL: none */
    uint32_t                 order_layer;
    uint64_t                 order_move;
    uint64_t                 dropped;    /* no move up to this one counts */
    uint64_t                 made[EP_NODES_MAX];
    int                      refused;    /* one could not be made */
    uint32_t                *delta;  /* a message: [layers][experts] */
};


/* model_balance.c */

int balance_wait(model_balance_t *b, double until);
double balance_now(void);
int balance_make(model_balance_t *b, uint32_t layer, const ep_map_t *map,
    char *err);
int balance_turned(model_balance_t *b, uint32_t layer, uint64_t move);
void balance_drop(model_balance_t *b, uint32_t layer, uint32_t n);
const ep_placement_t *balance_at(const model_balance_t *b, uint32_t layer);


/*
 * model_balance_nodes.c; without other nodes none of these does anything.
 * Node 0: adds what others have counted of a layer, sends a place, waits until
 * it is made everywhere (1: told to stop), takes it back, sends loads.
 */

int balance_nodes_open(model_balance_t *b, char *err);
void balance_nodes_close(model_balance_t *b);

void balance_nodes_add(model_balance_t *b, uint32_t layer, uint64_t *sum);
int balance_nodes_place(model_balance_t *b, uint32_t layer,
    const ep_map_t *map, uint64_t move, char *err);
int balance_nodes_made(model_balance_t *b, uint64_t move, char *err);
void balance_nodes_drop(model_balance_t *b, uint64_t move);
void balance_nodes_publish(model_balance_t *b);

/* The others: a turn of their thread; that a place is ready; not wanted. */

void balance_follow(model_balance_t *b);
void balance_nodes_ready(model_balance_t *b, uint64_t move);
int balance_nodes_dropped(model_balance_t *b, uint64_t move);

#endif /* MODEL_MODEL_BALANCE_INT_H */
