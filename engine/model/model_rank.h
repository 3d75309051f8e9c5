/*
 * One rank, as model_rank.c prepares it and model_forward.c uses it.
 */

#ifndef MODEL_MODEL_RANK_H
#define MODEL_MODEL_RANK_H

#include "model/model_int.h"


typedef struct {
    const float  *in_norm;
    const float  *post_norm;
    const float  *q_a_norm;
    const float  *kv_a_norm;
    be_weight_t  *q_a;               /* NULL without q_lora */
    be_weight_t  *q_b;
    be_weight_t  *kv_a;
    be_weight_t  *uk;
    be_weight_t  *uv;
    be_weight_t  *o;
    be_mlp_t      mlp;               /* dense or shared; w1 NULL: none */
    const float  *gate;              /* NULL in a dense layer */
    const float  *bias;
    be_mlp_t     *expert;            /* those of this rank, by slot */
    uint64_t     *load;              /* [experts] */
} model_rank_layer_t;

struct model_rank_s {
    model_t               *model;
    be_t                  *be;
    ep_exchange_t         *ex;
    const ep_placement_t  *placement;
    model_rank_options_t   opt;
    model_pool_t          *pool;

    be_kv_t               *kv;
    be_rope_t              rope;
    float                 *freq;
    float                  scale;    /* of attention's scores */

    be_weight_t           *embed;
    be_weight_t           *head;
    const float           *norm;
    model_rank_layer_t    *layer;
    be_mlp_t              *experts;  /* of all layers */
    uint64_t              *load;

    /* In the backend's memory, for max_rows rows. */
    float                 *x;        /* the residual stream */
    float                 *h;        /* normed */
    float                 *q_a;
    float                 *q;
    float                 *kva;
    float                 *o;
    float                 *ql;       /* in one region with */
    float                 *ol;
    float                 *contrib;  /* the experts' contributions */
    float                 *last_x;   /* of the rows that give logits */
    float                 *last_h;
    float                 *logits;

    /* In host memory. */
    int32_t               *expert;   /* [max_rows][top_k] */
    float                 *weight;
    int32_t               *last_id;
    uint32_t              *last_pos;
    uint32_t              *last_seq;
};

#endif /* MODEL_MODEL_RANK_H */
