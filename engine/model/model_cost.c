/*
 * What a model's tokens cost: bytes of weights read, multiplications.
 */

#include "model/model_int.h"


static void cost_matrix(const model_t *model, be_dtype_t compute,
    uint32_t item, double times, model_cost_t *cost);


void
model_cost(const model_t *model, be_dtype_t compute, model_cost_t *cost)
{
    double                 routed;
    uint32_t               i, j;
    const be_mla_t        *mla;
    const model_layer_t   *l;
    const model_config_t  *c;

    c = &model->config;
    mla = &c->mla;

    cost->matrix = 0;
    cost->router = 0;
    cost->bytes = 0;
    cost->expert_bytes = 0;
    cost->pair = 0;

    for (i = 0; i < c->layers; i++) {
        l = &model->layer[i];

        cost_matrix(model, compute, l->q_a, 1, cost);
        cost_matrix(model, compute, l->q_b, 1, cost);
        cost_matrix(model, compute, l->kv_a, 1, cost);
        cost_matrix(model, compute, l->o, 1, cost);

        /* Both halves are the same tensor. */

        cost_matrix(model, compute, l->uv, 1, cost);

        for (j = 0; j < 3; j++) {
            cost_matrix(model, compute, l->mlp[j], 1, cost);
        }

        cost->pair += 2.0 * mla->heads * (mla->nope + mla->rope + mla->v);

        if (l->gate == MODEL_NONE) {
            continue;
        }

        routed = cost->bytes;

        for (j = 0; j < 3; j++) {
            cost_matrix(model, compute, l->experts + j, c->gate.top_k, cost);
        }

        cost->expert_bytes += cost->bytes - routed;

        cost->router += 2.0 * c->hidden * c->gate.experts;
        cost->bytes += 4.0 * c->hidden * c->gate.experts;
    }

    cost->head = 2.0 * c->hidden * c->vocab;

    routed = cost->matrix;
    cost_matrix(model, compute, model->head, 1, cost);
    cost->matrix = routed;
}


/* As the backend has it: BF16 stays so, all else is of the compute mode. */

static void
cost_matrix(const model_t *model, be_dtype_t compute, uint32_t item,
    double times, model_cost_t *cost)
{
    double              n;
    const be_tensor_t  *t;

    if (item == MODEL_NONE) {
        return;
    }

    t = &model->item[item].t;
    n = times * t->rows * t->cols;

    cost->matrix += 2 * n;
    cost->bytes += (t->dtype == BE_BF16 || compute == BE_BF16) ? 2 * n
                                                               : 4 * n;
}
