/*
 * Router and experts of a layer, with what ranks exchange for them.  All is
 * collective: without rows of its own a rank still serves its experts.
 */

#include <string.h>

#include "model/model_rank.h"


static int moe_chosen(model_rank_t *mr, size_t n, char *err);
static void moe_gate(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    ep_send_t *send);
static void moe_shared(model_rank_t *mr, uint32_t layer,
    const model_rows_t *f);
static void moe_sum(model_rank_t *mr, const model_rows_t *f);
static void moe_count(model_rank_t *mr, model_rank_layer_t *l, size_t n);


int
model_moe(model_rank_t *mr, uint32_t layer, const model_rows_t *f, char *err)
{
    size_t               n;
    be_t                *be;
    ep_send_t            send;
    be_pairs_t           pairs;
    model_rank_layer_t  *l;

    be = mr->be;
    l = &mr->layer[layer];
    n = (size_t) f->rows * mr->model->config.gate.top_k;

    moe_gate(mr, layer, f, &send);

    if (!mr->ex->queued && moe_chosen(mr, n, err) != 0) {
        mr->ex->abort(mr->ex);
        return -1;
    }

    if (mr->ex->dispatch(mr->ex, &send, &pairs, err) != 0) {
        return -1;
    }

    moe_shared(mr, layer, f);
    be->experts(be, l->place.expert, &pairs);

    if (!mr->ex->queued && be->sync(be, err) != 0) {
        mr->ex->abort(mr->ex);
        return -1;
    }

    if (mr->ex->combine(mr->ex, err) != 0) {
        return -1;
    }

    moe_sum(mr, f);

    if (!mr->ex->queued) {
        moe_count(mr, l, n);
    }

    return 0;
}


int
model_moe_send(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    char *err)
{
    ep_send_t  send;

    moe_gate(mr, layer, f, &send);

    return mr->ex->send(mr->ex, &send, err);
}


int
model_moe_experts(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    char *err)
{
    be_pairs_t  pairs;

    moe_shared(mr, layer, f);

    if (mr->ex->receive(mr->ex, f->part, &pairs, err) != 0) {
        return -1;
    }

    mr->be->experts(mr->be, mr->layer[layer].place.expert, &pairs);

    return mr->ex->give(mr->ex, f->part, err);
}


int
model_moe_collect(model_rank_t *mr, const model_rows_t *f, char *err)
{
    if (mr->ex->collect(mr->ex, f->part, err) != 0) {
        return -1;
    }

    moe_sum(mr, f);

    return 0;
}


/* Chooses, and says what is to be sent. */

static void
moe_gate(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    ep_send_t *send)
{
    be_t                *be;
    const be_gate_t     *g;
    model_rank_layer_t  *l;

    be = mr->be;
    g = &mr->model->config.gate;
    l = &mr->layer[layer];

    send->be = be;
    send->part = f->part;
    send->batch = f->batch;
    send->load = l->counter;
    send->placement = ep_map_placement(l->place.map);
    send->x = f->h;
    send->rows = f->rows;
    send->hidden = mr->model->config.hidden;
    send->top_k = g->top_k;
    send->id = mr->ex->queued ? f->expert : mr->host_expert;
    send->contrib = f->contrib;

    if (f->rows > 0) {
        be->gate(be, g, l->gate, l->bias, f->h, f->rows, send->hidden,
                 f->expert, f->weight);
    }
}


/* The router's choice to where the exchange looks, rows ready to be read. */

static int
moe_chosen(model_rank_t *mr, size_t n, char *err)
{
    be_t  *be;

    be = mr->be;

    if (mr->host_expert != mr->expert && n > 0) {
        be->download(be, mr->host_expert, mr->expert, n * sizeof(int32_t));
    }

    return be->sync(be, err);
}


static void
moe_shared(model_rank_t *mr, uint32_t layer, const model_rows_t *f)
{
    const be_mlp_t  *mlp;

    mlp = &mr->layer[layer].mlp;

    if (f->rows > 0 && mlp->w1 != NULL) {
        mr->be->mlp_add(mr->be, mlp, f->h, f->rows, f->x);
    }
}


static void
moe_sum(model_rank_t *mr, const model_rows_t *f)
{
    const model_config_t  *c;

    c = &mr->model->config;

    if (f->rows > 0) {
        mr->be->combine(mr->be, f->contrib, f->weight, f->rows,
                        c->gate.top_k, c->hidden, f->x);
    }
}


/* Read by other threads, written by this one alone. */

static void
moe_count(model_rank_t *mr, model_rank_layer_t *l, size_t n)
{
    size_t                  i;
    atomic_uint_least64_t  *at;

    for (i = 0; i < n; i++) {
        at = &l->load[mr->host_expert[i]];
        atomic_store_explicit(at, atomic_load_explicit(at,
                                                       memory_order_relaxed)
                                  + 1, memory_order_relaxed);
    }
}
