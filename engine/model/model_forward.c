/*
 * The graph: one step of the model, written once for all backends.
 *
 * Prefill, decode and recomputation are the same: rows with a position, each
 * attending over what its sequence's blocks hold up to it.
 */

#include <string.h>

#include "model/model_rank.h"


static void forward_attend(model_rank_t *mr, uint32_t layer,
    const model_rows_t *f);
static int forward_moe(model_rank_t *mr, uint32_t layer,
    const model_rows_t *f, char *err);
static void forward_count(model_rank_t *mr, model_rank_layer_t *l, size_t n);
static void forward_end(model_rank_t *mr, const model_rows_t *f,
    const uint32_t *logit_row, uint32_t n_logits, float *logits);


int
model_step(model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    uint32_t       i, layers;
    model_rows_t   f;

    layers = mr->model->config.layers;

    if (model_rows_check(mr, batch, logit_row, n_logits, err) != 0) {
        mr->ex->abort(mr->ex);
        return -1;
    }

    f.batch = batch;
    f.rows = batch->n_rows;
    f.x = mr->x;
    f.h = mr->h;

    if (f.rows > 0) {
        mr->be->embed(mr->be, mr->embed, batch, f.x);
    }

    for (i = 0; i < layers; i++) {
        model_layer_keys(mr, i, &f);

        /* with its keys stored, a row without logits is done */

        if (i == layers - 1 && n_logits < f.rows && !mr->keep) {
            model_rows_narrow(mr, &f, logit_row, n_logits);
        }

        if (model_layer_rest(mr, i, &f, err) != 0) {
            return -1;
        }
    }

    mr->n_kept = 0;

    if (f.rows > 0) {
        forward_end(mr, &f, logit_row, n_logits, logits);
    }

    return 0;
}


int
model_rows_check(const model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, char *err)
{
    uint32_t  i, vocab;

    if (batch->n_rows > mr->opt.max_rows || n_logits > mr->opt.max_logits
        || n_logits > batch->n_rows)
    {
        return model_error(err, "rank %u: a step of %u rows with %u rows of "
                           "logits: at most %u and %u are possible",
                           mr->ex->rank, batch->n_rows, n_logits,
                           mr->opt.max_rows, mr->opt.max_logits);
    }

    vocab = mr->model->config.vocab;

    for (i = 0; i < batch->n_rows; i++) {
        if (batch->id[i] < 0 || (uint32_t) batch->id[i] >= vocab
            || batch->seq[i] >= batch->n_seqs)
        {
            return model_error(err, "rank %u: row %u has token %d of %u and "
                               "sequence %u of %u", mr->ex->rank, i,
                               batch->id[i], vocab, batch->seq[i],
                               batch->n_seqs);
        }
    }

    for (i = 0; i < n_logits; i++) {
        if (logit_row[i] >= batch->n_rows
            || (i > 0 && logit_row[i] <= logit_row[i - 1]))
        {
            return model_error(err, "rank %u: rows of logits are not in "
                               "order", mr->ex->rank);
        }
    }

    return 0;
}


void
model_layer_keys(model_rank_t *mr, uint32_t layer, const model_rows_t *f)
{
    be_t                      *be;
    const model_config_t      *c;
    const model_rank_layer_t  *l;

    be = mr->be;
    c = &mr->model->config;
    l = &mr->layer[layer];

    if (f->rows == 0) {
        return;
    }

    be->norm(be, l->in_norm, c->eps, f->x, f->rows, c->hidden, f->h);
    be->linear(be, l->kv_a, f->h, f->rows, mr->kva);
    be->mla_cache(be, mr->kv, layer, &c->mla, &mr->rope, l->kv_a_norm, c->eps,
                  mr->kva, f->batch);
}


int
model_layer_rest(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    char *err)
{
    be_t                      *be;
    const model_config_t      *c;
    const model_rank_layer_t  *l;

    be = mr->be;
    c = &mr->model->config;
    l = &mr->layer[layer];

    if (f->rows > 0) {
        forward_attend(mr, layer, f);
        be->norm(be, l->post_norm, c->eps, f->x, f->rows, c->hidden, f->h);
    }

    if (l->gate != NULL) {
        return forward_moe(mr, layer, f, err);
    }

    if (f->rows > 0) {
        be->mlp_add(be, &l->mlp, f->h, f->rows, f->x);
    }

    return 0;
}


static void
forward_attend(model_rank_t *mr, uint32_t layer, const model_rows_t *f)
{
    be_t                      *be;
    const model_config_t      *c;
    const model_rank_layer_t  *l;

    be = mr->be;
    c = &mr->model->config;
    l = &mr->layer[layer];

    if (l->q_a != NULL) {
        be->linear(be, l->q_a, f->h, f->rows, mr->q_a);
        be->norm(be, l->q_a_norm, c->eps, mr->q_a, f->rows, c->q_lora,
                 mr->q_a);
        be->linear(be, l->q_b, mr->q_a, f->rows, mr->q);

    } else {
        be->linear(be, l->q_b, f->h, f->rows, mr->q);
    }

    be->mla_query(be, &c->mla, &mr->rope, l->uk, mr->q, f->batch, mr->ql);
    be->mla_attend(be, mr->kv, layer, &c->mla, mr->scale, mr->ql, f->batch,
                   mr->ol);
    be->mla_value(be, &c->mla, l->uv, mr->ol, f->rows, mr->o);
    be->linear_add(be, l->o, mr->o, f->rows, f->x);
}


/* Collective: without rows of its own a rank still serves its experts. */

static int
forward_moe(model_rank_t *mr, uint32_t layer, const model_rows_t *f,
    char *err)
{
    be_t                *be;
    ep_send_t            send;
    be_pairs_t           pairs;
    const be_gate_t     *g;
    model_rank_layer_t  *l;

    be = mr->be;
    g = &mr->model->config.gate;
    l = &mr->layer[layer];

    send.placement = ep_map_placement(l->place.map);
    send.x = f->h;
    send.rows = f->rows;
    send.hidden = mr->model->config.hidden;
    send.top_k = g->top_k;
    send.id = mr->expert;
    send.contrib = mr->contrib;

    if (f->rows > 0) {
        be->gate(be, g, l->gate, l->bias, f->h, f->rows, send.hidden,
                 mr->expert, mr->weight);
    }

    be->sync(be);

    if (mr->ex->dispatch(mr->ex, &send, &pairs, err) != 0) {
        return -1;
    }

    if (f->rows > 0 && l->mlp.w1 != NULL) {
        be->mlp_add(be, &l->mlp, f->h, f->rows, f->x);
    }

    be->experts(be, l->place.expert, &pairs);
    be->sync(be);

    if (mr->ex->combine(mr->ex, err) != 0) {
        return -1;
    }

    if (f->rows > 0) {
        be->combine(be, mr->contrib, mr->weight, f->rows, g->top_k,
                    send.hidden, f->x);
    }

    forward_count(mr, l, (size_t) f->rows * g->top_k);

    return 0;
}


/* Read by other threads, written by this one alone. */

static void
forward_count(model_rank_t *mr, model_rank_layer_t *l, size_t n)
{
    size_t                  i;
    atomic_uint_least64_t  *at;

    for (i = 0; i < n; i++) {
        at = &l->load[mr->expert[i]];
        atomic_store_explicit(at, atomic_load_explicit(at,
                                                       memory_order_relaxed)
                                  + 1, memory_order_relaxed);
    }
}


void
model_rows_narrow(model_rank_t *mr, model_rows_t *f,
    const uint32_t *logit_row, uint32_t n_logits)
{
    be_t      *be;
    uint32_t   i, hidden;

    be = mr->be;
    hidden = mr->model->config.hidden;

    for (i = 0; i < n_logits; i++) {
        mr->last_id[i] = f->batch->id[logit_row[i]];
        mr->last_pos[i] = f->batch->pos[logit_row[i]];
        mr->last_seq[i] = f->batch->seq[logit_row[i]];
    }

    if (n_logits > 0) {
        be->gather(be, f->x, logit_row, n_logits, hidden, mr->last_x);
        be->gather(be, f->h, logit_row, n_logits, hidden, mr->last_h);
    }

    f->last = *f->batch;
    f->last.n_rows = n_logits;
    f->last.id = mr->last_id;
    f->last.pos = mr->last_pos;
    f->last.seq = mr->last_seq;

    f->batch = &f->last;
    f->rows = n_logits;
    f->x = mr->last_x;
    f->h = mr->last_h;
}


/* The final norm, of all rows if they are kept, and the head. */

static void
forward_end(model_rank_t *mr, const model_rows_t *f,
    const uint32_t *logit_row, uint32_t n_logits, float *logits)
{
    be_t                  *be;
    float                 *h;
    const model_config_t  *c;

    be = mr->be;
    c = &mr->model->config;
    h = mr->keep ? mr->kept : f->h;

    be->norm(be, mr->norm, c->eps, f->x, f->rows, c->hidden, h);

    if (mr->keep) {
        mr->n_kept = f->rows;

        if (n_logits < f->rows) {
            be->gather(be, h, logit_row, n_logits, c->hidden, mr->last_h);
            h = mr->last_h;
        }
    }

    model_head(mr, h, n_logits, logits);
}


void
model_head(model_rank_t *mr, const float *h, uint32_t rows, float *logits)
{
    be_t      *be;
    uint32_t   vocab;

    be = mr->be;
    vocab = mr->model->config.vocab;

    if (rows == 0) {
        return;
    }

    be->linear(be, mr->head, h, rows, mr->logits);
    be->download(be, logits, mr->logits,
                 (size_t) rows * vocab * sizeof(float));
    be->sync(be);
}
