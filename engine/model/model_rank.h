/*
 * One rank, as model_rank.c prepares it and the graph uses it.
 */

#ifndef MODEL_MODEL_RANK_H
#define MODEL_MODEL_RANK_H

#include <stdatomic.h>

#include "model/model_int.h"


/* Its experts of one layer. */

typedef struct {
    ep_map_t     *map;               /* NULL: none */
    be_mlp_t     *expert;            /* by slot */
} model_place_t;

typedef struct {
    const float            *in_norm;
    const float            *post_norm;
    const float            *q_a_norm;
    const float            *kv_a_norm;
    be_weight_t            *q_a;     /* NULL without q_lora */
    be_weight_t            *q_b;
    be_weight_t            *kv_a;
    be_weight_t            *uk;
    be_weight_t            *uv;
    be_weight_t            *o;
    be_mlp_t                mlp;     /* dense or shared; w1 NULL: none */
    const float            *gate;    /* NULL in a dense layer */
    const float            *bias;
    model_place_t           place;   /* changes between steps only */
    atomic_uint_least64_t  *load;    /* [experts] its own rows, so far */
    uint32_t               *counter; /* [experts] the same on a device */
} model_rank_layer_t;

struct model_rank_s {
    model_t               *model;
    be_t                  *be;
    ep_exchange_t         *ex;
    int                    attached;
    model_rank_options_t   opt;
    uint32_t               n_layers; /* with the MTP layer, if it is used */
    int                    keep;
    uint32_t               n_kept;   /* rows of `kept` */
    model_pool_t          *pool;

    be_kv_t               *kv;
    be_rope_t              rope;
    float                 *freq;
    float                  scale;    /* of attention's scores */

    be_weight_t           *embed;
    be_weight_t           *head;
    const float           *norm;
    model_rank_layer_t    *layer;    /* [n_layers] */
    const float           *enorm;    /* of the MTP layer */
    const float           *hnorm;
    const float           *mtp_norm;
    be_weight_t           *eh_proj;
    atomic_uint_least64_t *load;     /* of all layers */

    /* In the backend's memory, for max_rows rows. */
    float                 *x;        /* the residual stream */
    float                 *h;        /* normed */
    float                 *q_a;
    float                 *q;
    float                 *kva;
    float                 *o;
    float                 *ql;       /* in one region with */
    float                 *ol;
    float                 *contrib;  /* the experts' contributions, and */
    float                 *micro_ol; /* where these two are of micro-batches */
    float                 *micro_contrib;
    float                 *last_x;   /* of the rows that give logits */
    float                 *last_h;
    float                 *logits;
    float                 *kept;     /* all rows after the final norm */
    float                 *drafted;  /* the MTP layer's rows of logits */
    float                 *half;     /* [2 max_rows][hidden]: embeddings, */
    float                 *pair;     /* then states; and in pairs */
    int32_t               *expert;   /* [max_rows][top_k] */
    float                 *weight;
    uint32_t              *counter;  /* of all layers, on a device */

    /* Draws of the next step, or NULL; `known` where the backend sees it. */
    const be_draw_t       *draw;
    int32_t               *drawn;
    const uint8_t         *known;
    uint8_t               *be_known;

    /* In host memory. */
    int32_t               *host_expert;  /* `expert`, or a copy of it */
    uint32_t              *host_counter;
    uint32_t               uncounted;    /* steps since it was fetched */
    int32_t               *last_id;
    uint32_t              *last_pos;
    uint32_t              *last_seq;
};

/* What the layers work on: all rows, or in the end those that give logits. */

typedef struct {
    be_step_t          step;         /* a device may add rows to it */
    int                some;         /* of the rows give logits, not all */
    int                queued;       /* a device replays the step */
    uint32_t           n_logits;     /* without what was added */
    const be_batch_t  *batch;
    uint32_t           rows;
    uint32_t           part;         /* 1, 2: a micro-batch; 0: all */
    float             *x;
    float             *h;
    float             *ol;
    int32_t           *expert;
    float             *weight;
    float             *contrib;
} model_rows_t;


/* Kinds of steps, of which a device records one of each size. */
#define MODEL_KEY_STEP    1
#define MODEL_KEY_KEEP    2
#define MODEL_KEY_DRAFT   4
#define MODEL_KEY_FIRST   8


/* model_forward.c */

/* Rows, tokens and the order of `logit_row`; 0, or -1. */
int model_rows_check(const model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, char *err);

/*
 * Begins a step of rows that were checked; `key` tells apart steps that are
 * different operations.  0, or -1 with the reason in `err`.
 */
int model_rows_begin(model_rank_t *mr, model_rows_t *f,
    const be_batch_t *batch, const uint32_t *from, const uint32_t *logit_row,
    uint32_t n_logits, uint32_t key, char *err);

/* Ends it, and brings its logits. */
int model_rows_end(model_rank_t *mr, model_rows_t *f, float *logits,
    char *err);

/*
 * A layer: stores the rows' keys; then all the rest of it, which begins with
 * attention and the norm behind it.
 */
void model_layer_keys(model_rank_t *mr, uint32_t layer,
    const model_rows_t *f);
void model_layer_attend(model_rank_t *mr, uint32_t layer,
    const model_rows_t *f);
int model_layer_rest(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    char *err);

/* Leaves the rows that give logits. */
void model_rows_narrow(model_rank_t *mr, model_rows_t *f);

/*
 * model_moe.c: router, experts and their sum, of rows that were normed.  Of a
 * micro-batch the three by themselves: _send() chooses and dispatches,
 * _experts() computes what came, _collect() adds what comes home.  0, or -1
 * with the reason in `err`.
 */
int model_moe(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    char *err);
int model_moe_send(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    char *err);
int model_moe_experts(model_rank_t *mr, uint32_t layer,
    const model_rows_t *f, char *err);
int model_moe_collect(model_rank_t *mr, const model_rows_t *f, char *err);

/* model_micro.c: the first `layers` layers of a step in two micro-batches. */
int model_micro(model_rank_t *mr, const model_rows_t *f, uint32_t layers,
    char *err);

/*
 * Makes a place of `layer` as `map` has it, which is copied, beside the one in
 * use.  `be`: the rank's own backend if the caller drives it, or a helper of
 * it.  0, or -1 with the reason in `err` and nothing made.
 */
int model_place_open(model_rank_t *mr, be_t *be, uint32_t layer,
    const ep_map_t *map, model_place_t *place, char *err);

/* Gives its weights back; an empty one does no harm. */
void model_place_close(model_rank_t *mr, be_t *be, uint32_t layer,
    model_place_t *place);

/* Exchanges it with the one in use; on all ranks, while none is in a step. */
void model_place_swap(model_rank_t *mr, uint32_t layer, model_place_t *place);

#endif /* MODEL_MODEL_RANK_H */
