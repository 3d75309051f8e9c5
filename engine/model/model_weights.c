/*
 * Tensors by their place in the graph, each checked for presence, type and
 * shape before anything is computed.
 */

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_config.h"
#include "model/model_packed.h"


#define WEIGHT_NAME   160
#define WEIGHT_BLOCK  128            /* of a scale, both ways */


/* The first failure makes all further calls return at once. */

typedef struct {
    model_t  *model;
    char     *err;
    int       failed;
} weights_t;


static void weights_layer(weights_t *w, uint32_t layer);
static void weights_attention(weights_t *w, uint32_t layer);
static void weights_moe(weights_t *w, uint32_t layer);
static void weights_mtp(weights_t *w, uint32_t layer);
static void weights_mlp(weights_t *w, uint32_t *item, uint32_t inter,
    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static uint32_t weights_matrix(weights_t *w, uint32_t rows, uint32_t cols,
    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static uint32_t weights_floats(weights_t *w, uint32_t rows, uint32_t cols,
    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static uint32_t weights_item(weights_t *w, model_kind_t kind, uint32_t rows,
    uint32_t cols, const char *name);
static int weights_made(weights_t *w, const model_tensor_t *t,
    model_item_t *item);
static int weights_shape(weights_t *w, const model_tensor_t *t,
    model_kind_t kind, uint32_t rows, uint32_t cols);
static int weights_dtype(weights_t *w, const model_tensor_t *t,
    model_kind_t kind, be_dtype_t *dtype);
static int weights_scale(weights_t *w, const model_tensor_t *t,
    be_tensor_t *out);
static const float *weights_align(weights_t *w, const model_tensor_t *s);
static void weights_no_bias(weights_t *w);
static void weights_error(weights_t *w, const model_tensor_t *t,
    const char *fmt, ...) __attribute__((format(printf, 3, 4)));


int
model_weights_open(model_t *model, char *err)
{
    char             prefix[64];
    uint32_t         i;
    weights_t        w;
    model_config_t  *c;

    w.model = model;
    w.err = err;
    w.failed = 0;
    c = &model->config;

    /* re-saved checkpoints leave the MTP layers out and keep the field */

    for (i = 0; i < c->mtp_layers; i++) {
        snprintf(prefix, sizeof(prefix), "model.layers.%u.", c->layers + i);

        if (model_shards_prefix(model->shards, prefix) == NULL) {
            c->mtp_layers = i;
        }
    }

    model->layer = calloc(c->layers + c->mtp_layers, sizeof(model_layer_t));
    if (model->layer == NULL) {
        return model_error(err, "no memory for the table of layers");
    }

    model->embed = weights_item(&w, MODEL_TABLE, c->vocab, c->hidden,
                                "model.embed_tokens.weight");
    model->norm = weights_floats(&w, 1, c->hidden, "model.norm.weight");
    model->head = weights_matrix(&w, c->vocab, c->hidden, "%s",
                                 c->tied ? "model.embed_tokens.weight"
                                         : "lm_head.weight");

    for (i = 0; i < c->layers + c->mtp_layers && !w.failed; i++) {
        weights_layer(&w, i);

        if (i >= c->layers) {
            weights_mtp(&w, i);
        }
    }

    weights_no_bias(&w);

    return w.failed ? -1 : 0;
}


void
model_weights_close(model_t *model)
{
    uint32_t  i;

    for (i = 0; i < model->n_kept; i++) {
        free(model->kept[i]);
    }

    free(model->kept);
    free(model->item);
    free(model->layer);
}


static void
weights_layer(weights_t *w, uint32_t layer)
{
    uint32_t               hidden;
    model_layer_t         *l;
    const model_config_t  *c;

    c = &w->model->config;
    l = &w->model->layer[layer];
    hidden = c->hidden;

    l->in_norm = weights_floats(w, 1, hidden,
                                "model.layers.%u.input_layernorm.weight",
                                layer);

    weights_attention(w, layer);

    l->post_norm = weights_floats(w, 1, hidden, "model.layers.%u."
                                  "post_attention_layernorm.weight", layer);

    l->gate = MODEL_NONE;
    l->bias = MODEL_NONE;
    l->experts = MODEL_NONE;
    l->mlp[0] = MODEL_NONE;

    if (model_config_moe(c, layer)) {
        weights_moe(w, layer);

    } else {
        weights_mlp(w, l->mlp, c->inter, "model.layers.%u.mlp", layer);
    }
}


static void
weights_attention(weights_t *w, uint32_t layer)
{
    char                   at[64], kv_b[WEIGHT_NAME];
    uint32_t               q_in, kv_rows;
    be_mla_t               m;
    model_layer_t         *l;
    const model_config_t  *c;

    c = &w->model->config;
    m = c->mla;
    l = &w->model->layer[layer];
    snprintf(at, sizeof(at), "model.layers.%u.self_attn", layer);

    l->q_a = MODEL_NONE;
    l->q_a_norm = MODEL_NONE;
    q_in = c->hidden;

    if (c->q_lora != 0) {
        q_in = c->q_lora;
        l->q_a = weights_matrix(w, q_in, c->hidden, "%s.q_a_proj.weight", at);
        l->q_a_norm = weights_floats(w, 1, q_in, "%s.q_a_layernorm.weight",
                                     at);
    }

    l->q_b = weights_matrix(w, m.heads * (m.nope + m.rope), q_in, "%s.%s",
                            at, c->q_lora != 0 ? "q_b_proj.weight"
                                               : "q_proj.weight");
    l->kv_a = weights_matrix(w, m.kv_lora + m.rope, c->hidden,
                             "%s.kv_a_proj_with_mqa.weight", at);
    l->kv_a_norm = weights_floats(w, 1, m.kv_lora,
                                  "%s.kv_a_layernorm.weight", at);

    snprintf(kv_b, sizeof(kv_b), "%s.kv_b_proj.weight", at);
    kv_rows = m.heads * (m.nope + m.v);
    l->uk = weights_item(w, MODEL_UK, kv_rows, m.kv_lora, kv_b);
    l->uv = weights_item(w, MODEL_UV, kv_rows, m.kv_lora, kv_b);

    l->o = weights_matrix(w, c->hidden, m.heads * m.v, "%s.o_proj.weight",
                          at);
}


static void
weights_moe(weights_t *w, uint32_t layer)
{
    uint32_t               i, item[3];
    model_layer_t         *l;
    const model_config_t  *c;

    c = &w->model->config;
    l = &w->model->layer[layer];

    l->gate = weights_floats(w, c->gate.experts, c->hidden,
                             "model.layers.%u.mlp.gate.weight", layer);

    if (c->gate.method == BE_NOAUX_TC) {
        l->bias = weights_floats(w, 1, c->gate.experts, "model.layers.%u.mlp."
                                 "gate.e_score_correction_bias", layer);
    }

    if (c->shared != 0) {
        weights_mlp(w, l->mlp, c->moe_inter * c->shared,
                    "model.layers.%u.mlp.shared_experts", layer);
    }

    l->experts = w->model->n_items;

    for (i = 0; i < c->gate.experts && !w->failed; i++) {
        weights_mlp(w, item, c->moe_inter, "model.layers.%u.mlp.experts.%u",
                    layer, i);
    }

    for (i = l->experts; i < w->model->n_items; i++) {
        w->model->item[i].t.expert = 1;
    }
}


/*
 * Embedding and head, where there are any, are copies of the model's own, and
 * those are used.  Layers after the first are checked, no more: a published
 * model has one.
 */

static void
weights_mtp(weights_t *w, uint32_t layer)
{
    char                   name[WEIGHT_NAME];
    uint32_t               i, item;
    model_mtp_t            m;
    const model_config_t  *c;
    static const char     *copies[] = { "embed_tokens", "shared_head.head" };

    c = &w->model->config;

    m.enorm = weights_floats(w, 1, c->hidden, "model.layers.%u.enorm.weight",
                             layer);
    m.hnorm = weights_floats(w, 1, c->hidden, "model.layers.%u.hnorm.weight",
                             layer);
    m.eh_proj = weights_matrix(w, c->hidden, 2 * c->hidden,
                               "model.layers.%u.eh_proj.weight", layer);
    m.norm = weights_floats(w, 1, c->hidden,
                            "model.layers.%u.shared_head.norm.weight", layer);

    if (layer == c->layers) {
        w->model->mtp = m;
    }

    for (i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "model.layers.%u.%s.weight", layer,
                 copies[i]);

        if (model_shards_find(w->model->shards, name) != NULL) {
            item = weights_matrix(w, c->vocab, c->hidden, "%s", name);

            if (item != MODEL_NONE) {
                w->model->item[item].idle = 1;
            }
        }
    }
}


static void
weights_mlp(weights_t *w, uint32_t *item, uint32_t inter, const char *fmt,
    ...)
{
    char      at[WEIGHT_NAME];
    va_list   args;
    uint32_t  hidden;

    hidden = w->model->config.hidden;

    va_start(args, fmt);
    vsnprintf(at, sizeof(at), fmt, args);
    va_end(args);

    item[0] = weights_matrix(w, inter, hidden, "%s.gate_proj.weight", at);
    item[1] = weights_matrix(w, inter, hidden, "%s.up_proj.weight", at);
    item[2] = weights_matrix(w, hidden, inter, "%s.down_proj.weight", at);
}


static uint32_t
weights_matrix(weights_t *w, uint32_t rows, uint32_t cols, const char *fmt,
    ...)
{
    char     name[WEIGHT_NAME];
    va_list  args;

    va_start(args, fmt);
    vsnprintf(name, sizeof(name), fmt, args);
    va_end(args);

    return weights_item(w, MODEL_MATRIX, rows, cols, name);
}


static uint32_t
weights_floats(weights_t *w, uint32_t rows, uint32_t cols, const char *fmt,
    ...)
{
    char     name[WEIGHT_NAME];
    va_list  args;

    va_start(args, fmt);
    vsnprintf(name, sizeof(name), fmt, args);
    va_end(args);

    return weights_item(w, MODEL_FLOATS, rows, cols, name);
}


static uint32_t
weights_item(weights_t *w, model_kind_t kind, uint32_t rows, uint32_t cols,
    const char *name)
{
    char                   full[WEIGHT_NAME + 8];
    uint32_t               max;
    model_t               *model;
    model_item_t          *grown, *item;
    const model_tensor_t  *t;

    if (w->failed) {
        return MODEL_NONE;
    }

    model = w->model;

    if (model_shards_packed(model->shards) != NULL) {
        snprintf(full, sizeof(full), "%s%s", name, model_packed_suffix(kind));
        name = full;
    }

    t = model_shards_find(model->shards, name);

    if (t == NULL) {
        w->failed = 1;
        model_error(w->err, "%.250s: tensor %s is missing", model->dir, name);
        return MODEL_NONE;
    }

    if (model->n_items == model->max_items) {
        max = model->max_items * 2 + 256;
        grown = realloc(model->item, max * sizeof(model_item_t));

        if (grown == NULL) {
            weights_error(w, t, "no memory for the table of weights");
            return MODEL_NONE;
        }

        model->item = grown;
        model->max_items = max;
    }

    item = &model->item[model->n_items];
    memset(item, 0, sizeof(model_item_t));
    item->name = t->name;
    item->kind = kind;
    item->t.data = t->data;
    item->t.rows = rows;
    item->t.cols = cols;

    if (t->made) {
        return weights_made(w, t, item) == 0 ? model->n_items++ : MODEL_NONE;
    }

    if (weights_shape(w, t, kind, rows, cols) != 0
        || weights_dtype(w, t, kind, &item->t.dtype) != 0)
    {
        return MODEL_NONE;
    }

    if (item->t.dtype == BE_F8E4M3 && weights_scale(w, t, &item->t) != 0) {
        return MODEL_NONE;
    }

    return model->n_items++;
}


/* An item of model.packed, whose size is known to be that of its shape. */

static int
weights_made(weights_t *w, const model_tensor_t *t, model_item_t *item)
{
    be_mla_t  m;

    m = w->model->config.mla;

    item->t.parts = 1;
    item->t.made = 1;
    item->t.dtype = (item->kind == MODEL_FLOATS) ? BE_F32
                    : model_shards_packed(w->model->shards)->dtype;

    if (item->kind == MODEL_TABLE) {
        item->t.dtype = (strcmp(t->dtype, "f32") == 0) ? BE_F32 : BE_BF16;

    } else if (item->kind == MODEL_UK) {
        item->t.parts = m.heads;
        item->t.rows = m.heads * m.kv_lora;
        item->t.cols = m.nope;

    } else if (item->kind == MODEL_UV) {
        item->t.parts = m.heads;
        item->t.rows = m.heads * m.v;
    }

    if (t->kind != item->kind || t->parts != item->t.parts
        || t->dim[0] != item->t.rows || t->dim[1] != item->t.cols)
    {
        weights_error(w, t, "the shape is [%llu, %llu] in %u parts of kind "
                      "%u, not [%u, %u] in %u of kind %u, as config.json says",
                      (unsigned long long) t->dim[0],
                      (unsigned long long) t->dim[1], t->parts, t->kind,
                      item->t.rows, item->t.cols, item->t.parts,
                      (unsigned) item->kind);
        return -1;
    }

    return 0;
}


/* Vectors have one dimension, all else two; a matrix of one row has either. */

static int
weights_shape(weights_t *w, const model_tensor_t *t, model_kind_t kind,
    uint32_t rows, uint32_t cols)
{
    if (kind == MODEL_FLOATS && rows == 1) {

        if ((t->n_dims == 1 && t->dim[0] == cols)
            || (t->n_dims == 2 && t->dim[0] == 1 && t->dim[1] == cols))
        {
            return 0;
        }

        weights_error(w, t, "the shape is not [%u], as config.json says",
                      cols);
        return -1;
    }

    if (t->n_dims == 2 && t->dim[0] == rows && t->dim[1] == cols) {
        return 0;
    }

    if (t->n_dims == 2) {
        weights_error(w, t, "the shape is [%llu, %llu], config.json says "
                      "[%u, %u]", (unsigned long long) t->dim[0],
                      (unsigned long long) t->dim[1], rows, cols);

    } else {
        weights_error(w, t, "the shape is not [%u, %u], as config.json says",
                      rows, cols);
    }

    return -1;
}


static int
weights_dtype(weights_t *w, const model_tensor_t *t, model_kind_t kind,
    be_dtype_t *dtype)
{
    if (strcmp(t->dtype, "BF16") == 0) {
        *dtype = BE_BF16;
        return 0;
    }

    if (strcmp(t->dtype, "F32") == 0) {
        *dtype = BE_F32;
        return 0;
    }

    if (strcmp(t->dtype, "F8_E4M3") == 0 && kind != MODEL_FLOATS) {
        *dtype = BE_F8E4M3;
        return 0;
    }

    if (strcmp(t->dtype, "F16") == 0) {
        weights_error(w, t, "dtype F16 is not supported, its range is too "
                      "small for these models: convert it to BF16");

    } else {
        weights_error(w, t, "dtype %s is not supported here", t->dtype);
    }

    return -1;
}


static int
weights_scale(weights_t *w, const model_tensor_t *t, be_tensor_t *out)
{
    char                   name[WEIGHT_NAME + 16];
    float                  v;
    size_t                 i, n;
    uint32_t               rows, cols;
    const model_tensor_t  *s;

    if (!w->model->config.fp8) {
        weights_error(w, t, "dtype F8_E4M3, but config.json has no "
                      "quantization_config");
        return -1;
    }

    snprintf(name, sizeof(name), "%s_scale_inv", t->name);
    s = model_shards_find(w->model->shards, name);

    if (s == NULL) {
        weights_error(w, t, "dtype F8_E4M3, but %s is missing", name);
        return -1;
    }

    rows = (out->rows + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;
    cols = (out->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK;

    if (strcmp(s->dtype, "F32") != 0) {
        weights_error(w, s, "dtype %s, scales must be F32", s->dtype);
        return -1;
    }

    if (s->n_dims != 2 || s->dim[0] != rows || s->dim[1] != cols) {
        weights_error(w, s, "the shape is not [%u, %u], one scale for each "
                      "block of 128 x 128", rows, cols);
        return -1;
    }

    n = (size_t) rows * cols;

    for (i = 0; i < n; i++) {
        memcpy(&v, s->data + i * sizeof(float), sizeof(float));

        if (!isfinite(v) || v < 0) {
            weights_error(w, s, "scale %zu is %g", i, v);
            return -1;
        }
    }

    out->scale = weights_align(w, s);
    out->scale_cols = cols;

    return out->scale != NULL ? 0 : -1;
}


/* Nothing in the format aligns a tensor. */

static const float *
weights_align(weights_t *w, const model_tensor_t *s)
{
    void     **grown, *copy;
    model_t   *model;

    model = w->model;

    if ((uintptr_t) s->data % sizeof(float) == 0) {
        return (const float *) (const void *) s->data;
    }

    copy = malloc((size_t) (s->end - s->begin));
    grown = realloc(model->kept, (model->n_kept + 1) * sizeof(void *));

    if (grown != NULL) {
        model->kept = grown;
    }

    if (copy == NULL || grown == NULL) {
        free(copy);
        weights_error(w, s, "no memory");
        return NULL;
    }

    memcpy(copy, s->data, (size_t) (s->end - s->begin));
    model->kept[model->n_kept++] = copy;

    return copy;
}


/* A bias that is not added would be a silent error. */

static void
weights_no_bias(weights_t *w)
{
    size_t                 i, n, len;
    const model_tensor_t  *t;

    if (w->failed) {
        return;
    }

    t = model_shards_list(w->model->shards, &n);

    for (i = 0; i < n; i++) {
        len = strlen(t[i].name);

        if (len > 5 && strcmp(t[i].name + len - 5, ".bias") == 0) {
            weights_error(w, &t[i], "a bias is not supported");
            return;
        }
    }
}


static void
weights_error(weights_t *w, const model_tensor_t *t, const char *fmt, ...)
{
    char     why[ERR_LEN];
    va_list  args;

    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);

    w->failed = 1;
    model_error(w->err, "%s: %.200s: %s",
                model_shards_file(w->model->shards, t->file), t->name, why);
}
