/*
 * Multi-token prediction: the graph of the layer that drafts.
 *
 * For a position with hidden state h (after the final norm) and the token t
 * that follows it:
 *
 *     z = eh_proj [enorm(embedding of t); hnorm(h)]
 *     y = shared_head.norm(decoder layer(z))
 *     logits = head y
 *
 * with the model's own embedding and head.  y takes the place of h for one
 * token more.  The row lives at t's position, so that its keys in the cache
 * follow from the tokens up to there, as in every other layer; position 0 has
 * none.
 *
 * What comes out is a guess and nothing depends on it: the keys that a guess
 * has left are overwritten when the token at its position is known.
 */

#include "model/model_rank.h"


static int mtp_check(const model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *from, uint32_t pass, const uint32_t *logit_row,
    uint32_t n_logits, char *err);
static void mtp_input(model_rank_t *mr, const model_rows_t *f,
    uint32_t pass);


void
model_keep(model_rank_t *mr, int keep)
{
    mr->keep = keep && mr->opt.mtp;
}


int
model_draft(model_rank_t *mr, const be_batch_t *batch, const uint32_t *from,
    uint32_t pass, const uint32_t *logit_row, uint32_t n_logits,
    float *logits, char *err)
{
    be_t                  *be;
    uint32_t               layer;
    model_rows_t           f;
    const model_config_t  *c;

    be = mr->be;
    c = &mr->model->config;
    layer = c->layers;

    if (mtp_check(mr, batch, from, pass, logit_row, n_logits, err) != 0) {
        mr->ex->abort(mr->ex);
        return -1;
    }

    if (model_rows_begin(mr, &f, batch, from, logit_row, n_logits,
                         MODEL_KEY_DRAFT | (pass == 0 ? MODEL_KEY_FIRST : 0),
                         err)
        != 0)
    {
        mr->ex->abort(mr->ex);
        return -1;
    }

    mr->n_kept = n_logits;

    if (f.queued) {
        return model_rows_end(mr, &f, logits, err);
    }

    if (f.rows > 0) {
        mtp_input(mr, &f, pass);
    }

    model_layer_keys(mr, layer, &f);

    if (f.some) {
        model_rows_narrow(mr, &f);
    }

    if (model_layer_rest(mr, layer, &f, err) != 0) {
        return -1;
    }

    if (f.rows > 0) {
        be->norm(be, mr->mtp_norm, c->eps, f.x, f.rows, c->hidden,
                 mr->drafted);
        be->linear(be, mr->head, mr->drafted, f.rows, mr->logits);
    }

    return model_rows_end(mr, &f, logits, err);
}


static int
mtp_check(const model_rank_t *mr, const be_batch_t *batch,
    const uint32_t *from, uint32_t pass, const uint32_t *logit_row,
    uint32_t n_logits, char *err)
{
    uint32_t  i;

    if (!mr->opt.mtp || (pass == 0 && !mr->keep)) {
        return model_error(err, "rank %u: a draft, but nothing was kept for "
                           "it", mr->ex->rank);
    }

    if (model_rows_check(mr, batch, logit_row, n_logits, err) != 0) {
        return -1;
    }

    for (i = 0; i < batch->n_rows; i++) {
        if (batch->pos[i] == 0 || from[i] >= mr->n_kept) {
            return model_error(err, "rank %u: row %u of a draft is at "
                               "position %u and comes from row %u of %u",
                               mr->ex->rank, i, batch->pos[i], from[i],
                               mr->n_kept);
        }
    }

    return 0;
}


/*
 * Embeddings and states are normed each in one half of a region, then brought
 * together row by row.
 */

static void
mtp_input(model_rank_t *mr, const model_rows_t *f, uint32_t pass)
{
    be_t                  *be;
    float                 *state;
    uint32_t               n;
    const model_config_t  *c;

    be = mr->be;
    c = &mr->model->config;
    n = f->rows;
    state = mr->half + (size_t) mr->opt.max_rows * c->hidden;

    be->embed(be, mr->embed, f->batch, mr->half);
    be->norm(be, mr->enorm, c->eps, mr->half, n, c->hidden, mr->half);
    be->gather(be, pass == 0 ? mr->kept : mr->drafted, f->step.from, n,
               c->hidden, state);
    be->norm(be, mr->hnorm, c->eps, state, n, c->hidden, state);

    be->join(be, mr->half, state, n, c->hidden, mr->pair);
    be->linear(be, mr->eh_proj, mr->pair, n, mr->x);
}
