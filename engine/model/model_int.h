/*
 * What the files of the model share: the table of weights, and the pool of
 * weights that a backend has made of it.
 *
 *     model.c              opening, fingerprint
 *     model_config.c       config.json
 *     model_conf.c         its fields
 *     model_rope.c         constants that follow from it
 *     model_safetensors.c  headers, the table of tensors
 *     model_shards.c       files, index
 *     model_load.c         files into memory
 *     model_packed.c       model.packed, read
 *     model_convert.c      model.packed, written
 *     model_weights.c      tensors by their place in the graph
 *     model_pool.c         weights as a backend likes them, shared by ranks
 *     model_rank.c         one rank: its weights and its memory
 *     model_place.c        its experts of one layer, and others in their stead
 *     model_forward.c      the graph
 *     model_moe.c          router and experts in it
 *     model_micro.c        a step in two micro-batches
 *     model_mtp.c          the graph of the multi-token prediction layer
 *     model_balance.c      moves experts while the ranks compute
 *     model_balance_nodes.c  and what balancers of several nodes tell each
 *                          other
 *     model_cost.c         what a token costs
 *     model_plan.c         what a rank on a GPU holds, by config.json alone
 */

#ifndef MODEL_MODEL_INT_H
#define MODEL_MODEL_INT_H

#include <pthread.h>

#include "model/model.h"
#include "model/model_safetensors.h"


#define MODEL_NONE  UINT32_MAX       /* no such item */

typedef enum {
    MODEL_MATRIX = 0,                /* as it is */
    MODEL_FLOATS,                    /* vectors and the router: float32 */
    MODEL_UK,                        /* of kv_b_proj: the keys' half */
    MODEL_UV,                        /* of kv_b_proj: the values' half */
    MODEL_TABLE                      /* embedding: rows, never quantised */
} model_kind_t;

typedef struct {
    const char    *name;             /* of the tensor */
    model_kind_t   kind;
    int            idle;             /* checked, but not used */
    be_tensor_t    t;
} model_item_t;

/* A decoder layer, by index into the items. */

typedef struct {
    uint32_t  in_norm;
    uint32_t  post_norm;
    uint32_t  q_a;                   /* NONE without q_lora */
    uint32_t  q_a_norm;
    uint32_t  q_b;                   /* or q_proj */
    uint32_t  kv_a;
    uint32_t  kv_a_norm;
    uint32_t  uk;
    uint32_t  uv;
    uint32_t  o;
    uint32_t  mlp[3];                /* w1, w3, w2: dense, shared or NONE */
    uint32_t  gate;                  /* NONE in a dense layer */
    uint32_t  bias;                  /* NONE without correction */
    uint32_t  experts;               /* the first of experts x 3 */
} model_layer_t;

/* What a multi-token prediction layer has besides. */

typedef struct {
    uint32_t  enorm;
    uint32_t  hnorm;
    uint32_t  eh_proj;
    uint32_t  norm;                  /* before the head */
} model_mtp_t;

/*
 * Weights made for one kind of backend.  A rank that needs an item which
 * nobody has begun makes it; others wait for it.
 */

typedef struct model_pool_s  model_pool_t;

struct model_s {
    char             *dir;           /* for errors */
    model_config_t    config;
    model_shards_t   *shards;
    uint64_t          created;
    uint64_t          fingerprint;

    model_item_t     *item;
    uint32_t          n_items;
    uint32_t          max_items;
    uint32_t          embed;
    uint32_t          norm;
    uint32_t          head;
    model_layer_t    *layer;         /* [layers + mtp_layers] */
    model_mtp_t       mtp;           /* of the first of those */
    void            **kept;          /* scales that were not aligned */
    uint32_t          n_kept;

    pthread_mutex_t   lock;          /* of the list */
    model_pool_t     *pools;
};


/* Writes to `err` (ERR_LEN), what does not fit is cut; returns -1. */
int model_error(char *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Fills items and layers.  0, or -1 with file, tensor and reason. */
int model_weights_open(model_t *model, char *err);
void model_weights_close(model_t *model);

/* Of the fields that decide what a model computes. */
uint64_t model_config_hash(const model_config_t *c);

/*
 * Makes an item for a backend: what be->weight() or be->alloc() returned,
 * NULL with the reason in `err`; `copies` adds the bytes it took.
 */
void *model_item_make(const model_t *model, be_t *be, uint32_t item,
    size_t *copies, char *err);
void model_item_free(const model_t *model, be_t *be, uint32_t item,
    void *made);

/*
 * The pool of a backend: one for all with the same `share`, else its own.
 * model_pool_get() makes the item, or finds it made: what be->weight() or
 * be->alloc() returned.  model_pool_put() takes back one such get: what nobody
 * uses any more is freed.  The last rank to leave frees all that is left.
 */
model_pool_t *model_pool_join(model_t *model, be_t *be, char *err);
void *model_pool_get(model_pool_t *pool, be_t *be, uint32_t item, char *err);
void model_pool_put(model_pool_t *pool, be_t *be, uint32_t item);
void model_pool_leave(model_pool_t *pool, be_t *be);

/* Makes what nobody has begun, in the order of `item`, without waiting. */
int model_pool_make(model_pool_t *pool, be_t *be, const uint32_t *item,
    uint32_t n, char *err);

#endif /* MODEL_MODEL_INT_H */
