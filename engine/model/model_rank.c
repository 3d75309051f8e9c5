/*
 * A rank: weights, KV pool, scratch.  A step allocates nothing.
 */

#include <stdlib.h>
#include <string.h>

#include "model/model_config.h"
#include "model/model_rank.h"


static void rank_free(be_t *be, void *p);
static int rank_check(const model_rank_t *mr, const ep_placement_t *p,
    char *err);
static int rank_weights(model_rank_t *mr, const ep_map_t *map, char *err);
static int rank_prepare(model_rank_t *mr, const ep_placement_t *p, char *err);
static uint32_t rank_needs(const model_rank_t *mr, const ep_placement_t *p,
    uint32_t layer, uint32_t *item);
static int rank_layer(model_rank_t *mr, uint32_t layer, char *err);
static int rank_mlp(model_rank_t *mr, be_mlp_t *mlp, const uint32_t *item,
    char *err);
static int rank_get(model_rank_t *mr, uint32_t item, void *p, char *err);
static int rank_attach(model_rank_t *mr, char *err);
static int rank_scratch(model_rank_t *mr, char *err);
static int rank_scratch_gate(model_rank_t *mr);
static int rank_reserve(model_rank_t *mr, char *err);
static int rank_scratch_mtp(model_rank_t *mr, char *err);
static float *rank_rows(model_rank_t *mr, size_t rows, size_t dim, int *rc);


model_rank_t *
model_rank_open(model_t *model, be_t *be, ep_exchange_t *ex,
    const ep_map_t *map, const model_rank_options_t *opt, char *err)
{
    uint32_t               i;
    model_rank_t          *mr;
    const model_config_t  *c;

    c = &model->config;

    mr = calloc(1, sizeof(model_rank_t));
    if (mr == NULL) {
        model_error(err, "no memory for a rank");
        return NULL;
    }

    mr->model = model;
    mr->be = be;
    mr->ex = ex;
    mr->opt = *opt;
    mr->n_layers = c->layers + (opt->mtp != 0);
    mr->keep = (opt->mtp != 0);

    if (rank_check(mr, ep_map_placement(map), err) != 0) {
        goto failed;
    }

    mr->layer = calloc(mr->n_layers, sizeof(model_rank_layer_t));
    mr->load = calloc((size_t) mr->n_layers * c->gate.experts,
                      sizeof(*mr->load));
    mr->freq = calloc(c->mla.rope / 2, sizeof(float));

    if (mr->layer == NULL || mr->load == NULL || mr->freq == NULL) {
        model_error(err, "no memory for the layers of a rank");
        goto failed;
    }

    for (i = 0; i < mr->n_layers; i++) {
        mr->layer[i].load = mr->load + (size_t) i * c->gate.experts;
    }

    model_config_rope(c, mr->freq, &mr->rope.mscale);
    mr->rope.freq = mr->freq;
    mr->rope.dim = c->mla.rope;
    mr->scale = model_config_scale(c);

    mr->pool = model_pool_join(model, be, err);

    if (mr->pool == NULL || rank_weights(mr, map, err) != 0
        || rank_attach(mr, err) != 0
        || rank_scratch(mr, err) != 0
        || (opt->mtp && rank_scratch_mtp(mr, err) != 0)
        || rank_reserve(mr, err) != 0)
    {
        goto failed;
    }

    mr->kv = be->kv_open(be, mr->n_layers, opt->kv_blocks, &c->mla, err);
    if (mr->kv == NULL) {
        goto failed;
    }

    return mr;

failed:

    model_rank_close(mr);
    return NULL;
}


void
model_rank_close(model_rank_t *mr)
{
    be_t      *be;
    uint32_t   i;

    if (mr == NULL) {
        return;
    }

    be = mr->be;

    if (mr->attached) {
        mr->ex->detach(mr->ex);
    }

    rank_free(be, mr->x);
    rank_free(be, mr->h);
    rank_free(be, mr->q_a);
    rank_free(be, mr->q);
    rank_free(be, mr->kva);
    rank_free(be, mr->o);
    rank_free(be, mr->ql);
    rank_free(be, mr->last_x);
    rank_free(be, mr->last_h);
    rank_free(be, mr->logits);
    rank_free(be, mr->kept);
    rank_free(be, mr->drafted);
    rank_free(be, mr->half);
    rank_free(be, mr->pair);
    rank_free(be, mr->weight);
    rank_free(be, mr->counter);
    rank_free(be, mr->be_known);

    if (mr->host_expert != mr->expert) {
        free(mr->host_expert);
    }

    rank_free(be, mr->expert);

    if (mr->kv != NULL) {
        be->kv_free(be, mr->kv);
    }

    for (i = 0; mr->layer != NULL && i < mr->n_layers; i++) {
        model_place_close(mr, be, i, &mr->layer[i].place);
    }

    if (mr->pool != NULL) {
        model_pool_leave(mr->pool, be);
    }

    free(mr->host_counter);
    free(mr->last_id);
    free(mr->last_pos);
    free(mr->last_seq);
    free(mr->layer);
    free(mr->load);
    free(mr->freq);
    free(mr);
}


static void
rank_free(be_t *be, void *p)
{
    if (p != NULL) {
        be->free(be, p);
    }
}


be_kv_t *
model_rank_kv(model_rank_t *mr)
{
    return mr->kv;
}


void
model_expert_load(const model_rank_t *mr, uint32_t layer, uint64_t *load)
{
    uint32_t  e;

    for (e = 0; e < mr->model->config.gate.experts; e++) {
        load[e] += atomic_load_explicit(&mr->layer[layer].load[e],
                                        memory_order_relaxed);
    }
}


static int
rank_check(const model_rank_t *mr, const ep_placement_t *p, char *err)
{
    if (p->experts != mr->model->config.gate.experts
        || p->ranks != mr->ex->ranks || mr->ex->rank >= p->ranks)
    {
        return model_error(err, "the placement is of %u experts on %u ranks, "
                           "the model has %u and the exchange %u", p->experts,
                           p->ranks, mr->model->config.gate.experts,
                           mr->ex->ranks);
    }

    if (mr->opt.max_rows == 0 || mr->opt.max_logits == 0
        || mr->opt.kv_blocks == 0)
    {
        return model_error(err, "a rank needs rows, logits and KV blocks");
    }

    if (mr->opt.mtp && mr->model->config.mtp_layers == 0) {
        return model_error(err, "%.250s: the checkpoint has no multi-token "
                           "prediction layer, which is what drafts",
                           mr->model->dir);
    }

    return 0;
}


static int
rank_weights(model_rank_t *mr, const ep_map_t *map, char *err)
{
    uint32_t   i;
    model_t   *model;

    model = mr->model;

    if (rank_prepare(mr, ep_map_placement(map), err) != 0
        || rank_get(mr, model->embed, &mr->embed, err) != 0
        || rank_get(mr, model->norm, &mr->norm, err) != 0
        || rank_get(mr, model->head, &mr->head, err) != 0)
    {
        return -1;
    }

    for (i = 0; i < mr->n_layers; i++) {
        if (rank_layer(mr, i, err) != 0
            || (model->layer[i].experts != MODEL_NONE
                && model_place_open(mr, mr->be, i, map, &mr->layer[i].place,
                                    err) != 0))
        {
            return -1;
        }
    }

    if (mr->opt.mtp
        && (rank_get(mr, model->mtp.enorm, &mr->enorm, err) != 0
            || rank_get(mr, model->mtp.hnorm, &mr->hnorm, err) != 0
            || rank_get(mr, model->mtp.eh_proj, &mr->eh_proj, err) != 0
            || rank_get(mr, model->mtp.norm, &mr->mtp_norm, err) != 0))
    {
        return -1;
    }

    return 0;
}


/*
 * Ranks that share weights begin at different layers, so that they convert
 * side by side instead of waiting for one another.
 */

static int
rank_prepare(model_rank_t *mr, const ep_placement_t *p, char *err)
{
    int        rc;
    uint32_t   i, n, layers, *item;

    layers = mr->n_layers;

    item = calloc(16 + (size_t) p->count[mr->ex->rank] * 3,
                  sizeof(uint32_t));
    if (item == NULL) {
        return model_error(err, "no memory for the list of weights");
    }

    rc = 0;

    for (i = 0; i < layers && rc == 0; i++) {
        n = rank_needs(mr, p, (i + mr->ex->rank * layers / mr->ex->ranks)
                              % layers, item);
        rc = model_pool_make(mr->pool, mr->be, item, n, err);
    }

    free(item);

    return rc;
}


static uint32_t
rank_needs(const model_rank_t *mr, const ep_placement_t *p, uint32_t layer,
    uint32_t *item)
{
    uint32_t              i, e, n;
    const uint32_t       *expert;
    const model_layer_t  *l;

    l = &mr->model->layer[layer];
    expert = p->expert + p->begin[mr->ex->rank];
    n = 0;

    item[n++] = l->in_norm;
    item[n++] = l->post_norm;
    item[n++] = l->q_a;
    item[n++] = l->q_a_norm;
    item[n++] = l->q_b;
    item[n++] = l->kv_a;
    item[n++] = l->kv_a_norm;
    item[n++] = l->uk;
    item[n++] = l->uv;
    item[n++] = l->o;
    item[n++] = l->gate;
    item[n++] = l->bias;

    for (i = 0; i < 3; i++) {
        item[n++] = l->mlp[0] != MODEL_NONE ? l->mlp[i] : MODEL_NONE;
    }

    if (l->experts == MODEL_NONE) {
        return n;
    }

    for (e = 0; e < p->count[mr->ex->rank]; e++) {
        for (i = 0; i < 3; i++) {
            item[n++] = l->experts + expert[e] * 3 + i;
        }
    }

    return n;
}


static int
rank_layer(model_rank_t *mr, uint32_t layer, char *err)
{
    model_rank_layer_t   *l;
    const model_layer_t  *m;

    l = &mr->layer[layer];
    m = &mr->model->layer[layer];

    if (rank_get(mr, m->in_norm, &l->in_norm, err) != 0
        || rank_get(mr, m->post_norm, &l->post_norm, err) != 0
        || rank_get(mr, m->q_a, &l->q_a, err) != 0
        || rank_get(mr, m->q_a_norm, &l->q_a_norm, err) != 0
        || rank_get(mr, m->q_b, &l->q_b, err) != 0
        || rank_get(mr, m->kv_a, &l->kv_a, err) != 0
        || rank_get(mr, m->kv_a_norm, &l->kv_a_norm, err) != 0
        || rank_get(mr, m->uk, &l->uk, err) != 0
        || rank_get(mr, m->uv, &l->uv, err) != 0
        || rank_get(mr, m->o, &l->o, err) != 0
        || rank_get(mr, m->gate, &l->gate, err) != 0
        || rank_get(mr, m->bias, &l->bias, err) != 0)
    {
        return -1;
    }

    return m->mlp[0] != MODEL_NONE ? rank_mlp(mr, &l->mlp, m->mlp, err) : 0;
}


static int
rank_mlp(model_rank_t *mr, be_mlp_t *mlp, const uint32_t *item, char *err)
{
    if (rank_get(mr, item[0], &mlp->w1, err) != 0
        || rank_get(mr, item[1], &mlp->w3, err) != 0
        || rank_get(mr, item[2], &mlp->w2, err) != 0)
    {
        return -1;
    }

    return 0;
}


/* `p` points to a pointer of the item's kind. */

static int
rank_get(model_rank_t *mr, uint32_t item, void *p, char *err)
{
    void  *made;

    made = NULL;

    if (item != MODEL_NONE) {
        made = model_pool_get(mr->pool, mr->be, item, err);

        if (made == NULL) {
            return -1;
        }
    }

    memcpy(p, &made, sizeof(void *));

    return 0;
}


/* All layers' experts are of one type. */

static int
rank_attach(model_rank_t *mr, char *err)
{
    uint32_t  i;

    for (i = 0; i < mr->n_layers && mr->layer[i].place.map == NULL; i++) {
        /* void */
    }

    if (mr->ex->attach == NULL || i == mr->n_layers) {
        return 0;
    }

    if (mr->ex->attach(mr->ex, mr->be, mr->layer[i].place.expert, err) != 0) {
        return -1;
    }

    mr->attached = 1;

    return 0;
}


static int
rank_scratch(model_rank_t *mr, char *err)
{
    int                    rc;
    size_t                 rows, last, heads, ql, ol, contrib, half, both;
    const model_config_t  *c;

    c = &mr->model->config;
    rows = mr->opt.max_rows;
    last = mr->opt.max_logits;
    heads = c->mla.heads;
    rc = 0;

    mr->x = rank_rows(mr, rows, c->hidden, &rc);
    mr->h = rank_rows(mr, rows, c->hidden, &rc);
    mr->q = rank_rows(mr, rows, heads * (c->mla.nope + c->mla.rope), &rc);
    mr->kva = rank_rows(mr, rows, c->mla.kv_lora + c->mla.rope, &rc);
    mr->o = rank_rows(mr, rows, heads * c->mla.v, &rc);
    mr->last_x = rank_rows(mr, last, c->hidden, &rc);
    mr->last_h = rank_rows(mr, last, c->hidden, &rc);
    mr->logits = rank_rows(mr, last, c->vocab, &rc);

    if (c->q_lora != 0) {
        mr->q_a = rank_rows(mr, rows, c->q_lora, &rc);
    }

    /*
     * Attention is over before the experts begin; not so of two micro-batches,
     * but only one of these is at its attention.
     */

    ql = (heads * (c->mla.kv_lora + c->mla.rope) + 15) / 16 * 16;
    ol = heads * c->mla.kv_lora;
    contrib = (size_t) c->gate.top_k * c->hidden;
    half = (mr->ex->micro != 0) ? (rows + 1) / 2 : 0;
    both = rows * (ql + ol > contrib ? ql + ol : contrib);

    if (half != 0 && both < half * (ql + ol) + rows * contrib) {
        both = half * (ql + ol) + rows * contrib;
    }

    mr->ql = rank_rows(mr, 1, both, &rc);
    mr->contrib = mr->ql;

    if (mr->ql != NULL) {
        mr->ol = mr->ql + rows * ql;
        mr->micro_ol = mr->ql + half * ql;
        mr->micro_contrib = mr->micro_ol + half * ol;
    }

    mr->last_id = calloc(last, sizeof(int32_t));
    mr->last_pos = calloc(last, sizeof(uint32_t));
    mr->last_seq = calloc(last, sizeof(uint32_t));

    if (rc != 0 || rank_scratch_gate(mr) != 0 || mr->last_id == NULL
        || mr->last_pos == NULL || mr->last_seq == NULL)
    {
        return model_error(err, "no memory for steps of %zu rows and %zu "
                           "rows of logits", rows, last);
    }

    return 0;
}


/* What the router gives, and where the host sees it. */

static int
rank_scratch_gate(model_rank_t *mr)
{
    be_t      *be;
    size_t     n, size;
    uint32_t   i;

    be = mr->be;
    n = (size_t) mr->opt.max_rows * mr->model->config.gate.top_k + 1;

    mr->expert = be->alloc(be, n * sizeof(int32_t));
    mr->weight = be->alloc(be, n * sizeof(float));

    if (mr->expert == NULL || mr->weight == NULL) {
        return -1;
    }

    if (!be->device) {
        mr->host_expert = mr->expert;
        return 0;
    }

    mr->host_expert = calloc(n, sizeof(int32_t));
    if (mr->host_expert == NULL) {
        return -1;
    }

    if (!mr->ex->queued) {
        return 0;
    }

    n = mr->model->config.gate.experts;
    size = mr->n_layers * n * sizeof(uint32_t);

    mr->counter = be->alloc(be, size + sizeof(uint32_t));
    mr->host_counter = calloc(1, size + sizeof(uint32_t));

    if (mr->counter == NULL || mr->host_counter == NULL) {
        return -1;
    }

    for (i = 0; i < mr->n_layers; i++) {
        mr->layer[i].counter = mr->counter + i * n;
    }

    return 0;
}


/* What the backend itself works in. */

static int
rank_reserve(model_rank_t *mr, char *err)
{
    size_t                 pairs, inputs;
    be_largest_t           l;
    const model_config_t  *c;

    if (mr->be->reserve == NULL) {
        return 0;
    }

    c = &mr->model->config;
    pairs = (size_t) mr->opt.max_rows * c->gate.top_k;
    inputs = (size_t) c->mla.heads * c->mla.v;

    if (inputs < (size_t) c->hidden * (mr->opt.mtp ? 2 : 1)) {
        inputs = (size_t) c->hidden * (mr->opt.mtp ? 2 : 1);
    }

    memset(&l, 0, sizeof(l));
    l.rows = mr->opt.max_rows;
    l.pairs = (pairs > UINT32_MAX / mr->ex->ranks)
              ? UINT32_MAX : (uint32_t) pairs * mr->ex->ranks;
    l.inputs = (inputs > c->q_lora) ? (uint32_t) inputs : c->q_lora;
    l.hidden = c->hidden;
    l.inter = (c->inter > c->shared) ? c->inter : c->shared;
    l.moe_inter = c->moe_inter;
    l.mla = &c->mla;
    l.gate = &c->gate;

    return mr->be->reserve(mr->be, &l, err);
}


static int
rank_scratch_mtp(model_rank_t *mr, char *err)
{
    int     rc;
    size_t  rows, hidden;

    rows = mr->opt.max_rows;
    hidden = mr->model->config.hidden;
    rc = 0;

    mr->kept = rank_rows(mr, rows, hidden, &rc);
    mr->drafted = rank_rows(mr, mr->opt.max_logits, hidden, &rc);
    mr->half = rank_rows(mr, 2 * rows, hidden, &rc);
    mr->pair = rank_rows(mr, 2 * rows, hidden, &rc);

    if (rc != 0) {
        return model_error(err, "no memory for drafts of %zu rows", rows);
    }

    return 0;
}


static float *
rank_rows(model_rank_t *mr, size_t rows, size_t dim, int *rc)
{
    float  *p;

    p = mr->be->alloc(mr->be, rows * dim * sizeof(float));

    if (p == NULL) {
        *rc = -1;
    }

    return p;
}
