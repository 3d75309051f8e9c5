/*
 * The graph: one step of the model, written once for all backends.
 *
 * Prefill, decode and recomputation are the same: rows with a position, each
 * attending over what its sequence's blocks hold up to it.
 */

#include <string.h>

#include "model/model_rank.h"


#define FORWARD_FETCH  64            /* steps between looks at counters */


static int forward_fetch(model_rank_t *mr, char *err);
static int forward_draw(model_rank_t *mr, uint32_t n, char *err);
static void forward_end(model_rank_t *mr, const model_rows_t *f);


int
model_step(model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    uint32_t       i, layers;
    model_rows_t   f;

    layers = mr->model->config.layers;

    if (model_rows_check(mr, batch, logit_row, n_logits, err) != 0
        || model_rows_begin(mr, &f, batch, NULL, logit_row, n_logits,
                            MODEL_KEY_STEP | (mr->keep ? MODEL_KEY_KEEP : 0),
                            err)
           != 0)
    {
        mr->ex->abort(mr->ex);
        return -1;
    }

    mr->n_kept = mr->keep ? batch->n_rows : 0;

    if (f.queued) {
        return model_rows_end(mr, &f, logits, err);
    }

    if (f.rows > 0) {
        mr->be->embed(mr->be, mr->embed, f.batch, f.x);
    }

    i = 0;

    /*
     * What ranks exchange in the last layer must not depend on whether all of
     * a rank's rows give logits.
     */

    if (f.step.split) {
        i = mr->keep ? layers : layers - 1;
        f.some |= !mr->keep;

        if (model_micro(mr, &f, i, err) != 0) {
            return -1;
        }
    }

    for ( /* void */ ; i < layers; i++) {
        model_layer_keys(mr, i, &f);

        /* with its keys stored, a row without logits is done */

        if (i == layers - 1 && f.some && !mr->keep) {
            model_rows_narrow(mr, &f);
        }

        if (model_layer_rest(mr, i, &f, err) != 0) {
            return -1;
        }
    }

    if (f.rows > 0) {
        forward_end(mr, &f);
    }

    return model_rows_end(mr, &f, logits, err);
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


int
model_rows_begin(model_rank_t *mr, model_rows_t *f, const be_batch_t *batch,
    const uint32_t *from, const uint32_t *logit_row, uint32_t n_logits,
    uint32_t key, char *err)
{
    int         rc;
    uint32_t    i;
    be_step_t  *s;

    s = &f->step;
    memset(s, 0, sizeof(be_step_t));
    s->all = *batch;
    s->all.device = NULL;
    s->last = s->all;
    s->row = logit_row;
    s->from = from;
    s->max_rows = mr->opt.max_rows;
    s->max_last = mr->opt.max_logits;

    if (mr->ex->micro != 0 && !(key & MODEL_KEY_DRAFT)) {
        s->micro = mr->ex->micro;
        s->most = mr->ex->most(mr->ex);
    }

    s->some = n_logits < batch->n_rows;
    s->key = mr->ex->recorded ? key : 0;

    for (i = 0; i < n_logits; i++) {
        mr->last_id[i] = batch->id[logit_row[i]];
        mr->last_pos[i] = batch->pos[logit_row[i]];
        mr->last_seq[i] = batch->seq[logit_row[i]];
    }

    s->last.n_rows = n_logits;
    s->last.id = mr->last_id;
    s->last.pos = mr->last_pos;
    s->last.seq = mr->last_seq;

    rc = (mr->be->begin != NULL) ? mr->be->begin(mr->be, s, err) : 0;

    f->some = s->some;
    f->queued = (rc == 1);
    f->n_logits = n_logits;
    f->batch = &s->all;
    f->rows = s->all.n_rows;
    f->part = 0;
    f->x = mr->x;
    f->h = mr->h;
    f->ol = mr->ol;
    f->expert = mr->expert;
    f->weight = mr->weight;
    f->contrib = mr->contrib;

    return rc < 0 ? -1 : 0;
}


int
model_rows_end(model_rank_t *mr, model_rows_t *f, float *logits, char *err)
{
    int    rc;
    be_t  *be;

    be = mr->be;

    if (be->end != NULL && be->end(be, err) != 0) {
        return -1;
    }

    if (f->n_logits > 0 && mr->draw != NULL) {
        rc = forward_draw(mr, f->n_logits, err);

        if (rc < 0) {
            return -1;
        }

        if (rc == 0) {
            return mr->counter != NULL ? forward_fetch(mr, err) : 0;
        }
    }

    mr->draw = NULL;

    if (f->n_logits > 0) {
        be->download(be, logits, mr->logits,
                     (size_t) f->n_logits * mr->model->config.vocab
                     * sizeof(float));
    }

    return mr->counter != NULL ? forward_fetch(mr, err) : be->sync(be, err);
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
    const model_rank_layer_t  *l;

    be = mr->be;
    l = &mr->layer[layer];

    model_layer_attend(mr, layer, f);

    if (l->gate != NULL) {
        return model_moe(mr, layer, f, err);
    }

    if (f->rows > 0) {
        be->mlp_add(be, &l->mlp, f->h, f->rows, f->x);
    }

    return 0;
}


void
model_layer_attend(model_rank_t *mr, uint32_t layer, const model_rows_t *f)
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
                   f->ol);
    be->mla_value(be, &c->mla, l->uv, f->ol, f->rows, mr->o);
    be->linear_add(be, l->o, mr->o, f->rows, f->x);
    be->norm(be, l->post_norm, c->eps, f->x, f->rows, c->hidden, f->h);
}


/*
 * The device's counters, which wrap: every few steps, so that it costs little,
 * and before any can have wrapped twice.
 */

static int
forward_fetch(model_rank_t *mr, char *err)
{
    size_t     i, n;
    uint32_t   now;

    n = (size_t) mr->n_layers * mr->model->config.gate.experts;

    if (mr->uncounted++ % FORWARD_FETCH != 0) {
        return mr->be->sync(mr->be, err);
    }

    mr->be->download(mr->be, mr->host_counter, mr->counter,
                     n * sizeof(uint32_t));

    if (mr->be->sync(mr->be, err) != 0) {
        return -1;
    }

    for (i = 0; i < n; i++) {
        now = atomic_load_explicit(&mr->load[i], memory_order_relaxed);
        now = mr->host_counter[i] - now;
        atomic_fetch_add_explicit(&mr->load[i], now, memory_order_relaxed);
    }

    return 0;
}


int
model_draws(model_rank_t *mr, const be_draw_t *draw, const uint8_t *known,
    int32_t *id, char *err)
{
    be_t      *be;
    uint32_t   vocab;

    be = mr->be;
    vocab = mr->model->config.vocab;

    if (be->draw == NULL) {
        return 0;
    }

    if (mr->be_known == NULL) {
        mr->be_known = be->alloc(be, vocab);

        if (mr->be_known == NULL) {
            return model_error(err, "no memory for what can be drawn");
        }
    }

    if (mr->known != known) {
        be->upload(be, mr->be_known, known, vocab);
        mr->known = known;
    }

    mr->draw = draw;
    mr->drawn = id;

    return 0;
}


/* 0; 1: the host has to draw some; or -1. */

static int
forward_draw(model_rank_t *mr, uint32_t n, char *err)
{
    be_t      *be;
    uint32_t   i;

    be = mr->be;

    be->draw(be, mr->logits, n, mr->model->config.vocab, mr->be_known,
             mr->draw, mr->drawn);
    mr->draw = NULL;

    if (be->sync(be, err) != 0) {
        return -1;
    }

    for (i = 0; i < n && mr->drawn[i] >= -1; i++) { /* void */ }

    return i < n;
}


void
model_rows_narrow(model_rank_t *mr, model_rows_t *f)
{
    be_t              *be;
    uint32_t           hidden;
    const be_batch_t  *last;

    be = mr->be;
    hidden = mr->model->config.hidden;
    last = &f->step.last;

    if (last->n_rows > 0) {
        be->gather(be, f->x, f->step.row, last->n_rows, hidden, mr->last_x);
        be->gather(be, f->h, f->step.row, last->n_rows, hidden, mr->last_h);
    }

    f->batch = last;
    f->rows = last->n_rows;
    f->x = mr->last_x;
    f->h = mr->last_h;
}


/* The final norm, of all rows if they are kept, and the head. */

static void
forward_end(model_rank_t *mr, const model_rows_t *f)
{
    be_t                  *be;
    float                 *h;
    uint32_t               rows;
    const model_config_t  *c;

    be = mr->be;
    c = &mr->model->config;
    h = mr->keep ? mr->kept : f->h;
    rows = f->step.last.n_rows;

    be->norm(be, mr->norm, c->eps, f->x, f->rows, c->hidden, h);

    if (mr->keep && f->some) {
        if (rows > 0) {
            be->gather(be, h, f->step.row, rows, c->hidden, mr->last_h);
        }

        h = mr->last_h;
    }

    if (rows > 0) {
        be->linear(be, mr->head, h, rows, mr->logits);
    }
}
