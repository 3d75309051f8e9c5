/*
 * config.json: what a checkpoint says of itself.
 *
 * Whatever changes the result and is not computed here is refused.  Sizes are
 * bounded, so that no product of two of them overflows 32 bits further on.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json/json.h"
#include "model/model_conf.h"
#include "model/model_config.h"
#include "model/model_int.h"


static void conf_type(model_conf_t *c, model_config_t *cfg);
static void conf_sizes(model_conf_t *c, model_config_t *cfg);
static void conf_gate(model_conf_t *c, model_config_t *cfg);
static void conf_method(model_conf_t *c, model_config_t *cfg);
static void conf_groups(model_conf_t *c, model_config_t *cfg);
static void conf_rope(model_conf_t *c, model_config_t *cfg);
static void conf_yarn(model_conf_t *c, model_config_t *cfg);
static void conf_quantisation(model_conf_t *c, model_config_t *cfg);
static void conf_ids(model_conf_t *c, model_config_t *cfg);
static void conf_eos(model_conf_t *c, model_config_t *cfg, const cJSON *id);


static void
conf_type(model_conf_t *c, model_config_t *cfg)
{
    const char  *s;

    /* kimi_k2 is V3 by another name */

    s = model_conf_string(c, "model_type", NULL);

    if (strcmp(s, "deepseek_v3") != 0 && strcmp(s, "deepseek_v2") != 0
        && strcmp(s, "kimi_k2") != 0)
    {
        model_conf_error(c, "model_type", "\"%.64s\" is not supported: "
                         "deepseek_v3, deepseek_v2 and kimi_k2 are", s);
        return;
    }

    snprintf(cfg->type, sizeof(cfg->type), "%s", s);

    s = model_conf_string(c, "hidden_act", "silu");

    if (strcmp(s, "silu") != 0) {
        model_conf_error(c, "hidden_act", "\"%.64s\" is not supported: silu "
                         "is", s);
    }

    if (model_conf_flag(c, "attention_bias", 0)) {
        model_conf_error(c, "attention_bias", "true is not supported");
    }

    if (model_conf_flag(c, "mlp_bias", 0)) {
        model_conf_error(c, "mlp_bias", "true is not supported");
    }

    cfg->tied = model_conf_flag(c, "tie_word_embeddings", 0);
}


static void
conf_sizes(model_conf_t *c, model_config_t *cfg)
{
    cfg->hidden = model_conf_uint(c, "hidden_size", 1, 65536, MODEL_REQUIRED);
    cfg->layers = model_conf_uint(c, "num_hidden_layers", 1, 1024,
                                  MODEL_REQUIRED);
    cfg->mtp_layers = model_conf_uint(c, "num_nextn_predict_layers", 0, 64, 0);
    cfg->vocab = model_conf_uint(c, "vocab_size", 1, 1 << 22, MODEL_REQUIRED);
    cfg->max_context = model_conf_uint(c, "max_position_embeddings", 1, 1 << 24,
                                       MODEL_REQUIRED);
    cfg->inter = model_conf_uint(c, "intermediate_size", 1, 1 << 20,
                                 MODEL_REQUIRED);
    cfg->eps = (float) model_conf_number(c, "rms_norm_eps", 0, 1,
                                         MODEL_REQUIRED);

    cfg->q_lora = model_conf_uint(c, "q_lora_rank", 1, 65536, 0);

    cfg->mla.hidden = cfg->hidden;
    cfg->mla.heads = model_conf_uint(c, "num_attention_heads", 1, 1024,
                                     MODEL_REQUIRED);
    cfg->mla.nope = model_conf_uint(c, "qk_nope_head_dim", 1, 1024,
                                    MODEL_REQUIRED);
    cfg->mla.rope = model_conf_uint(c, "qk_rope_head_dim", 2, 1024,
                                    MODEL_REQUIRED);
    cfg->mla.v = model_conf_uint(c, "v_head_dim", 1, 1024, MODEL_REQUIRED);
    cfg->mla.kv_lora = model_conf_uint(c, "kv_lora_rank", 1, 8192,
                                       MODEL_REQUIRED);

    if (cfg->mla.rope % 2 != 0) {
        model_conf_error(c, "qk_rope_head_dim", "%u is odd", cfg->mla.rope);
    }
}


static void
conf_gate(model_conf_t *c, model_config_t *cfg)
{
    int  v3;

    v3 = strcmp(cfg->type, "deepseek_v2") != 0;

    cfg->dense_layers = model_conf_uint(c, "first_k_dense_replace", 0, 1024,
                                        MODEL_REQUIRED);
    cfg->moe_freq = model_conf_uint(c, "moe_layer_freq", 1, 1024, 1);
    cfg->moe_inter = model_conf_uint(c, "moe_intermediate_size", 1, 1 << 20,
                                     MODEL_REQUIRED);
    cfg->shared = model_conf_uint(c, "n_shared_experts", 0, 64, 0);

    cfg->gate.experts = model_conf_uint(c, "n_routed_experts", 1, 65536,
                                        MODEL_REQUIRED);
    cfg->gate.top_k = model_conf_uint(c, "num_experts_per_tok", 1, BE_TOPK_MAX,
                                      MODEL_REQUIRED);
    cfg->gate.normalise = model_conf_flag(c, "norm_topk_prob", v3);
    cfg->gate.scale = (float) model_conf_number(c, "routed_scaling_factor",
                                                1e-6, 1e6, v3 ? 2.5 : 1);

    if ((uint64_t) cfg->moe_inter * cfg->shared > 1 << 20) {
        model_conf_error(c, "n_shared_experts", "%u are too many", cfg->shared);
    }

    if (cfg->gate.top_k > cfg->gate.experts) {
        model_conf_error(c, "num_experts_per_tok", "%u of %u experts",
                         cfg->gate.top_k, cfg->gate.experts);
    }

    conf_method(c, cfg);

    if (cfg->gate.method == BE_GREEDY) {
        cfg->gate.groups = 1;
        cfg->gate.topk_groups = 1;
        return;
    }

    conf_groups(c, cfg);
}


/* Three combinations are published; newer files of V3 name neither part. */

static void
conf_method(model_conf_t *c, model_config_t *cfg)
{
    int          v3;
    const char  *scoring, *method;

    v3 = strcmp(cfg->type, "deepseek_v2") != 0;
    scoring = model_conf_string(c, "scoring_func", v3 ? "sigmoid" : "softmax");
    method = model_conf_string(c, "topk_method", v3 ? "noaux_tc" : "greedy");

    if (strcmp(scoring, "sigmoid") == 0) {
        cfg->gate.scoring = BE_SIGMOID;

    } else if (strcmp(scoring, "softmax") == 0) {
        cfg->gate.scoring = BE_SOFTMAX;

    } else {
        model_conf_error(c, "scoring_func", "\"%.64s\" is not supported",
                         scoring);
    }

    if (strcmp(method, "noaux_tc") == 0) {
        cfg->gate.method = BE_NOAUX_TC;

    } else if (strcmp(method, "greedy") == 0) {
        cfg->gate.method = BE_GREEDY;

    } else if (strcmp(method, "group_limited_greedy") == 0) {
        cfg->gate.method = BE_GROUP_MAX;

    } else {
        model_conf_error(c, "topk_method", "\"%.64s\" is not supported",
                         method);
    }

    if ((cfg->gate.method == BE_NOAUX_TC)
        != (cfg->gate.scoring == BE_SIGMOID))
    {
        model_conf_error(c, "topk_method", "%s with scoring_func %s is not "
                         "supported", method, scoring);
    }

    /* V2's code scales or normalises, V3's does both */

    if (!v3 && cfg->gate.normalise && cfg->gate.scale != 1) {
        model_conf_error(c, "norm_topk_prob", "true with a "
                         "routed_scaling_factor of %g means different things "
                         "to different programs", cfg->gate.scale);
    }
}


static void
conf_groups(model_conf_t *c, model_config_t *cfg)
{
    uint32_t    size;
    be_gate_t  *g;

    g = &cfg->gate;
    g->groups = model_conf_uint(c, "n_group", 1, 65536, 1);
    g->topk_groups = model_conf_uint(c, "topk_group", 1, 65536, 1);

    if (c->failed) {
        return;
    }

    if (g->experts % g->groups != 0) {
        model_conf_error(c, "n_group", "%u does not divide %u experts",
                         g->groups, g->experts);
        return;
    }

    size = g->experts / g->groups;

    if (g->method == BE_NOAUX_TC && g->groups > 1 && size < 2) {
        model_conf_error(c, "n_group", "%u leaves groups of one expert, and "
                         "noaux_tc compares groups by two", g->groups);
    }

    if (g->topk_groups > g->groups) {
        model_conf_error(c, "topk_group", "%u of %u groups", g->topk_groups,
                         g->groups);
    }

    if ((uint64_t) g->topk_groups * size < g->top_k) {
        model_conf_error(c, "topk_group", "%u groups of %u experts are fewer "
                         "than num_experts_per_tok, %u", g->topk_groups, size,
                         g->top_k);
    }
}


static void
conf_rope(model_conf_t *c, model_config_t *cfg)
{
    model_conf_t        inner;
    const char   *type, *within;
    const cJSON  *item;

    cfg->theta = (float) model_conf_number(c, "rope_theta", 1, 1e12, 10000);

    if (!model_conf_flag(c, "rope_interleave", 1)) {
        model_conf_error(c, "rope_interleave", "false is not supported");
    }

    within = "rope_scaling.";
    item = model_conf_get(c, "rope_scaling");

    if (item == NULL) {
        within = "rope_parameters.";
        item = model_conf_get(c, "rope_parameters");
    }

    if (item == NULL) {
        return;
    }

    if (!cJSON_IsObject(item)) {
        model_conf_error(c, "rope_scaling", "not an object");
        return;
    }

    inner = *c;
    inner.node = item;
    inner.within = within;

    cfg->theta = (float) model_conf_number(&inner, "rope_theta", 1, 1e12,
                                           cfg->theta);

    type = model_conf_string(&inner, "type",
                             model_conf_string(&inner, "rope_type", "default"));

    if (strcmp(type, "yarn") == 0) {
        conf_yarn(&inner, cfg);

    } else if (strcmp(type, "default") != 0) {
        model_conf_error(&inner, "type", "\"%.64s\" is not supported: yarn is",
                         type);
    }

    c->failed = inner.failed;
}


static void
conf_yarn(model_conf_t *c, model_config_t *cfg)
{
    cfg->yarn = 1;
    cfg->yarn_factor = (float) model_conf_number(c, "factor", 1, 1e6,
                                                 MODEL_REQUIRED);
    cfg->yarn_original = model_conf_uint(c, "original_max_position_embeddings",
                                         1, 1 << 24, MODEL_REQUIRED);
    cfg->yarn_beta_fast = (float) model_conf_number(c, "beta_fast", 1e-3, 1e6,
                                                    32);
    cfg->yarn_beta_slow = (float) model_conf_number(c, "beta_slow", 1e-3, 1e6,
                                                    1);
    cfg->yarn_mscale = (float) model_conf_number(c, "mscale", 0, 100, 1);
    cfg->yarn_mscale_all_dim = (float) model_conf_number(c, "mscale_all_dim", 0,
                                                         100, 0);

    if (cfg->theta <= 1) {
        model_conf_error(c, "type", "yarn needs a rope_theta above 1");
    }

    if (model_conf_get(c, "attention_factor") != NULL) {
        model_conf_error(c, "attention_factor", "not supported");
    }

    if (!model_conf_flag(c, "truncate", 1)) {
        model_conf_error(c, "truncate", "false is not supported");
    }
}


static void
conf_quantisation(model_conf_t *c, model_config_t *cfg)
{
    model_conf_t        inner;
    const char   *s;
    const cJSON  *item, *first;

    item = model_conf_get(c, "quantization_config");
    if (item == NULL) {
        return;
    }

    if (!cJSON_IsObject(item)) {
        model_conf_error(c, "quantization_config", "not an object");
        return;
    }

    inner = *c;
    inner.node = item;
    inner.within = "quantization_config.";

    s = model_conf_string(&inner, "quant_method", NULL);

    if (strcmp(s, "fp8") != 0) {
        model_conf_error(&inner, "quant_method", "\"%.64s\" is not supported: "
                         "fp8 is", s);
    }

    s = model_conf_string(&inner, "fmt", "e4m3");

    if (strcmp(s, "e4m3") != 0) {
        model_conf_error(&inner, "fmt", "\"%.64s\" is not supported: e4m3 is",
                         s);
    }

    s = model_conf_string(&inner, "activation_scheme", "dynamic");

    if (strcmp(s, "dynamic") != 0) {
        model_conf_error(&inner, "activation_scheme", "\"%.64s\" is not "
                         "supported: dynamic is", s);
    }

    item = model_conf_get(&inner, "weight_block_size");
    first = (item != NULL && cJSON_IsArray(item)) ? item->child : NULL;

    if (first == NULL || first->next == NULL || first->next->next != NULL
        || !cJSON_IsNumber(first) || first->valuedouble != 128
        || !cJSON_IsNumber(first->next) || first->next->valuedouble != 128)
    {
        model_conf_error(&inner, "weight_block_size", "not [128, 128]");
    }

    cfg->fp8 = 1;
    c->failed = inner.failed;
}


static void
conf_ids(model_conf_t *c, model_config_t *cfg)
{
    const cJSON  *item;

    cfg->bos = -1;

    if (model_conf_get(c, "bos_token_id") != NULL) {
        cfg->bos = (int32_t) model_conf_uint(c, "bos_token_id", 0,
                                             cfg->vocab - 1, 0);
    }

    item = model_conf_get(c, "eos_token_id");

    if (item != NULL) {
        conf_eos(c, cfg, item);
    }
}


/* A number or an array of numbers, added to those known. */

static void
conf_eos(model_conf_t *c, model_config_t *cfg, const cJSON *id)
{
    int           many;
    uint32_t      i;
    int32_t       v;

    many = cJSON_IsArray(id);

    for (id = many ? id->child : id; id != NULL; id = many ? id->next : NULL) {

        if (!cJSON_IsNumber(id) || id->valuedouble != floor(id->valuedouble)
            || id->valuedouble < 0 || id->valuedouble >= cfg->vocab)
        {
            model_conf_error(c, "eos_token_id", "not an id below vocab_size, "
                             "%u", cfg->vocab);
            return;
        }

        v = (int32_t) id->valuedouble;

        for (i = 0; i < cfg->n_eos && cfg->eos[i] != v; i++) { /* void */ }

        if (i < cfg->n_eos) {
            continue;
        }

        if (i == sizeof(cfg->eos) / sizeof(cfg->eos[0])) {
            model_conf_error(c, "eos_token_id", "more than %u ids", i);
            return;
        }

        cfg->eos[cfg->n_eos++] = v;
    }
}


int
model_config_parse(const char *data, size_t len, const char *name,
    model_config_t *cfg, char *err)
{
    model_conf_t   c;
    cJSON   *tree;

    memset(cfg, 0, sizeof(model_config_t));
    cfg->temperature = 1;
    cfg->top_p = 1;

    tree = model_conf_open(&c, data, len, name, err);
    if (tree == NULL) {
        return -1;
    }

    conf_type(&c, cfg);
    conf_sizes(&c, cfg);
    conf_gate(&c, cfg);
    conf_rope(&c, cfg);
    conf_quantisation(&c, cfg);

    if (!c.failed) {
        conf_ids(&c, cfg);
    }

    cJSON_Delete(tree);

    return c.failed ? -1 : 0;
}


int
model_config_generation(const char *data, size_t len, const char *name,
    model_config_t *cfg, char *err)
{
    model_conf_t        c;
    cJSON        *tree;
    const cJSON  *item;

    tree = model_conf_open(&c, data, len, name, err);
    if (tree == NULL) {
        return -1;
    }

    cfg->temperature = (float) model_conf_number(&c, "temperature", 0, 100, 1);
    cfg->top_p = (float) model_conf_number(&c, "top_p", 0, 1, 1);

    if (!model_conf_flag(&c, "do_sample", 1)) {
        cfg->temperature = 0;
    }

    item = model_conf_get(&c, "eos_token_id");

    if (item != NULL) {
        conf_eos(&c, cfg, item);
    }

    cJSON_Delete(tree);

    return c.failed ? -1 : 0;
}


int
model_config_read(const char *dir, model_config_t *cfg, char *err)
{
    int      rc;
    char     path[4096], *data;
    size_t   len;

    snprintf(path, sizeof(path), "%s/config.json", dir);

    if (json_load(path, MODEL_CONFIG_MAX, &data, &len, err) != 0) {
        return -1;
    }

    if (data == NULL) {
        return model_error(err, "%s: no such file", path);
    }

    rc = model_config_parse(data, len, path, cfg, err);
    free(data);

    if (rc != 0) {
        return -1;
    }

    snprintf(path, sizeof(path), "%s/generation_config.json", dir);

    if (json_load(path, MODEL_CONFIG_MAX, &data, &len, err) != 0) {
        return -1;
    }

    if (data == NULL) {
        return 0;
    }

    rc = model_config_generation(data, len, path, cfg, err);
    free(data);

    return rc;
}


int
model_config_moe(const model_config_t *cfg, uint32_t layer)
{
    return layer >= cfg->dense_layers && layer % cfg->moe_freq == 0;
}
