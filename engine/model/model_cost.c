/*
 * What a model's tokens cost: bytes of weights read, multiplications.
 */

#include "backend/be_quant.h"
#include "model/model_int.h"


typedef struct {
    const model_t  *model;
    be_dtype_t      compute;
    be_dtype_t      weights;         /* BE_F32: as they are */
    model_cost_t   *cost;
} cost_t;


static void cost_layer(const cost_t *c, uint32_t layer);
static void cost_matrix(const cost_t *c, uint32_t item, uint32_t rows,
    uint32_t cols, double times);
static double cost_bytes(const cost_t *c, be_dtype_t dtype, uint32_t rows,
    uint32_t cols);


void
model_cost(const model_t *model, be_dtype_t compute, be_dtype_t weights,
    model_cost_t *cost)
{
    cost_t                 c;
    double                 matrix;
    uint32_t               i;
    const model_config_t  *conf;

    conf = &model->config;

    c.model = model;
    c.compute = compute;
    c.weights = weights;
    c.cost = cost;

    cost->matrix = 0;
    cost->router = 0;
    cost->pair = 0;
    cost->bytes = 0;
    cost->expert_bytes = 0;

    for (i = 0; i < conf->layers; i++) {
        cost_layer(&c, i);
    }

    matrix = cost->matrix;
    cost_matrix(&c, model->head, conf->vocab, conf->hidden, 1);
    cost->head = cost->matrix - matrix;
    cost->matrix = matrix;
}


static void
cost_layer(const cost_t *c, uint32_t layer)
{
    double                 before;
    uint32_t               inter, h;
    const be_mla_t        *mla;
    const model_layer_t   *l;
    const model_config_t  *conf;

    conf = &c->model->config;
    mla = &conf->mla;
    l = &c->model->layer[layer];
    h = conf->hidden;

    cost_matrix(c, l->q_a, conf->q_lora, h, 1);
    cost_matrix(c, l->q_b, mla->heads * (mla->nope + mla->rope),
                (l->q_a != MODEL_NONE) ? conf->q_lora : h, 1);
    cost_matrix(c, l->kv_a, mla->kv_lora + mla->rope, h, 1);
    cost_matrix(c, l->uk, mla->heads * mla->nope, mla->kv_lora, 1);
    cost_matrix(c, l->uv, mla->heads * mla->v, mla->kv_lora, 1);
    cost_matrix(c, l->o, h, mla->heads * mla->v, 1);

    c->cost->pair += 2.0 * mla->heads * (mla->nope + mla->rope + mla->v);

    if (l->gate == MODEL_NONE) {
        cost_matrix(c, l->mlp[0], conf->inter, h, 2);
        cost_matrix(c, l->mlp[2], h, conf->inter, 1);
        return;
    }

    inter = conf->moe_inter * conf->shared;
    cost_matrix(c, l->mlp[0], inter, h, 2);
    cost_matrix(c, l->mlp[2], h, inter, 1);

    before = c->cost->bytes;
    inter = conf->moe_inter;
    cost_matrix(c, l->experts, inter, h, 2.0 * conf->gate.top_k);
    cost_matrix(c, l->experts + 2, h, inter, conf->gate.top_k);
    c->cost->expert_bytes += c->cost->bytes - before;

    c->cost->router += 2.0 * h * conf->gate.experts;
    c->cost->bytes += 4.0 * h * conf->gate.experts;
}


static void
cost_matrix(const cost_t *c, uint32_t item, uint32_t rows, uint32_t cols,
    double times)
{
    if (item == MODEL_NONE) {
        return;
    }

    c->cost->matrix += 2.0 * times * rows * cols;
    c->cost->bytes += times * cost_bytes(c, c->model->item[item].t.dtype,
                                         rows, cols);
}


/* As the backend has it: BF16 stays so, what is not quantised is computed. */

static double
cost_bytes(const cost_t *c, be_dtype_t dtype, uint32_t rows, uint32_t cols)
{
    dtype = (c->weights != BE_F32) ? c->weights
          : (dtype == BE_BF16) ? BE_BF16 : c->compute;

    if (be_quant_panels(dtype)) {
        return (double) be_quant_panel(dtype, cols)
               * be_quant_part_panels(rows);
    }

    return (dtype == BE_BF16 ? 2.0 : 4.0) * rows * cols;
}
