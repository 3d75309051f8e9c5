/*
 * A step in two micro-batches, so that one computes while rows of the other are
 * on their way (DeepSeek-V3 report, sections 3.2.1 and 3.4).  In each layer, of
 * what a rank tells its backend:
 *
 *     1    sum of the layer before, keys, attention, router, dispatch
 *     2    the same
 *     1    shared expert, experts, combine
 *     2    the same
 *
 * so beside the dispatch of 1 there is the attention of 2, beside that of 2 the
 * experts of 1; beside the combine of 1 the experts of 2, beside that of 2 the
 * attention of 1 in the layer behind.
 *
 * They are halves of the rows in their order.  A sequence may have rows in
 * both: those in 2 see the keys of those in 1, which the same layer has stored
 * before, and not the other way round.
 */

#include "model/model_rank.h"


static void micro_rows(const model_rank_t *mr, const model_rows_t *f,
    uint32_t part, model_rows_t *m);
static int micro_layer(model_rank_t *mr, uint32_t layer, int collect,
    const model_rows_t *m, char *err);


int
model_micro(model_rank_t *mr, const model_rows_t *f, uint32_t layers,
    char *err)
{
    int            moe;
    uint32_t       i, k;
    model_rows_t   m[2];

    for (k = 0; k < 2; k++) {
        micro_rows(mr, f, k + 1, &m[k]);
    }

    for (i = 0, moe = 0; i < layers; i++) {
        if (micro_layer(mr, i, moe, m, err) != 0) {
            return -1;
        }

        moe = (mr->layer[i].gate != NULL);
    }

    for (k = 0; k < 2 && moe; k++) {
        mr->be->part(mr->be, k + 1);

        if (model_moe_collect(mr, &m[k], err) != 0) {
            return -1;
        }
    }

    mr->be->part(mr->be, 0);

    return 0;
}


/* Its places in memory.  Attention's are those of both. */

static void
micro_rows(const model_rank_t *mr, const model_rows_t *f, uint32_t part,
    model_rows_t *m)
{
    size_t                 first, top_k, hidden;
    const model_config_t  *c;

    c = &mr->model->config;
    top_k = c->gate.top_k;
    hidden = c->hidden;

    *m = *f;
    m->part = part;
    m->batch = &f->step.part[part - 1];
    m->rows = m->batch->n_rows;

    first = (part == 2) ? f->step.part[0].n_rows : 0;
    m->x = f->x + first * hidden;
    m->h = f->h + first * hidden;
    m->ol = mr->micro_ol;
    m->expert = f->expert + first * top_k;
    m->weight = f->weight + first * top_k;
    m->contrib = mr->micro_contrib + first * top_k * hidden;
}


static int
micro_layer(model_rank_t *mr, uint32_t layer, int collect,
    const model_rows_t *m, char *err)
{
    be_t                      *be;
    uint32_t                   k;
    const model_rank_layer_t  *l;

    be = mr->be;
    l = &mr->layer[layer];

    for (k = 0; k < 2; k++) {
        be->part(be, m[k].part);

        if (collect && model_moe_collect(mr, &m[k], err) != 0) {
            return -1;
        }

        model_layer_keys(mr, layer, &m[k]);
        model_layer_attend(mr, layer, &m[k]);

        if (l->gate != NULL) {
            if (model_moe_send(mr, layer, &m[k], err) != 0) {
                return -1;
            }

        } else if (m[k].rows > 0) {
            be->mlp_add(be, &l->mlp, m[k].h, m[k].rows, m[k].x);
        }
    }

    for (k = 0; k < 2 && l->gate != NULL; k++) {
        be->part(be, m[k].part);

        if (model_moe_experts(mr, layer, &m[k], err) != 0) {
            return -1;
        }
    }

    return 0;
}
