/*
 * config.json: what is read, and what is refused with which words.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/model_config.h"
#include "unit/model_dir.h"


typedef struct {
    const char  *field;
    const char  *value;              /* NULL: left out */
    const char  *says;               /* NULL: accepted */
} case_t;


static int
parse(const model_field_t *style, const char *field, const char *value,
    model_config_t *cfg, char *err)
{
    int           rc;
    char         *text;
    model_dir_t  *d;

    d = model_dir_open(style);

    if (field != NULL) {
        model_dir_field(d, field, value);
    }

    text = model_dir_config(d);
    rc = model_config_parse(text, strlen(text), "config.json", cfg, err);
    free(text);
    model_dir_close(d);

    return rc;
}


static void
table(const model_field_t *style, const case_t *c)
{
    int             rc;
    char            err[ERR_LEN];
    model_config_t  cfg;

    for ( /* void */ ; c->field != NULL; c++) {
        rc = parse(style, c->field, c->value, &cfg, err);

        if (c->says == NULL) {
            if (rc != 0) {
                fail_msg("%s: %s is refused: %s", c->field, c->value, err);
            }

            continue;
        }

        if (rc == 0) {
            fail_msg("%s: %s is accepted", c->field, c->value);
        }

        if (strncmp(err, "config.json: ", 13) != 0
            || strstr(err, c->says) == NULL)
        {
            fail_msg("%s: %s gives \"%s\", not \"%s\"", c->field, c->value,
                     err, c->says);
        }
    }
}


static void
test_fields(void **state)
{
    char            err[ERR_LEN];
    model_config_t  c;

    (void) state;

    assert_int_equal(parse(NULL, NULL, NULL, &c, err), 0);
    assert_string_equal(c.type, "deepseek_v3");
    assert_int_equal(c.hidden, 72);
    assert_int_equal(c.layers, 3);
    assert_int_equal(c.mtp_layers, 1);
    assert_int_equal(c.dense_layers, 1);
    assert_int_equal(c.vocab, 101);
    assert_int_equal(c.max_context, 4096);
    assert_int_equal(c.q_lora, 36);
    assert_int_equal(c.mla.hidden, 72);
    assert_int_equal(c.mla.heads, 3);
    assert_int_equal(c.mla.nope, 20);
    assert_int_equal(c.mla.rope, 12);
    assert_int_equal(c.mla.v, 18);
    assert_int_equal(c.mla.kv_lora, 44);
    assert_int_equal(c.inter, 90);
    assert_int_equal(c.moe_inter, 28);
    assert_int_equal(c.shared, 1);
    assert_int_equal(c.gate.experts, 12);
    assert_int_equal(c.gate.top_k, 3);
    assert_int_equal(c.gate.groups, 4);
    assert_int_equal(c.gate.topk_groups, 2);
    assert_int_equal(c.gate.scoring, BE_SIGMOID);
    assert_int_equal(c.gate.method, BE_NOAUX_TC);
    assert_int_equal(c.gate.normalise, 1);
    assert_true(c.gate.scale == 2.5f);
    assert_true(c.eps == 1e-6f);
    assert_int_equal(c.yarn, 1);
    assert_int_equal(c.bos, 0);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos[0], 1);
    assert_int_equal(c.fp8, 0);
    assert_true(c.temperature == 1 && c.top_p == 1);

    assert_int_equal(parse(NULL, "model_type", "\"kimi_k2\"", &c, err), 0);
    assert_string_equal(c.type, "kimi_k2");
    assert_int_equal(c.gate.method, BE_NOAUX_TC);

    assert_int_equal(parse(model_dir_v2, NULL, NULL, &c, err), 0);
    assert_int_equal(c.q_lora, 0);
    assert_int_equal(c.shared, 2);
    assert_int_equal(c.gate.scoring, BE_SOFTMAX);
    assert_int_equal(c.gate.method, BE_GREEDY);
    assert_int_equal(c.gate.normalise, 0);
    assert_int_equal(c.yarn, 0);
    assert_int_equal(c.mtp_layers, 0);

    assert_int_equal(parse(model_dir_fp8, NULL, NULL, &c, err), 0);
    assert_int_equal(c.fp8, 1);
}


static void
test_refused(void **state)
{
    static const case_t  cases[] = {
        { "model_type", "\"llama\"", "model_type: \"llama\" is not supp" },
        { "model_type", NULL, "model_type: missing" },
        { "model_type", "3", "model_type: not a string" },
        { "model_type", "\"deepseek_v32\"", "model_type" },
        { "hidden_act", "\"gelu\"", "hidden_act: \"gelu\"" },
        { "attention_bias", "true", "attention_bias" },
        { "attention_bias", "0", "neither true nor false" },
        { "mlp_bias", "true", "mlp_bias" },
        { "hidden_size", "0", "hidden_size: 0 is not within" },
        { "hidden_size", "1e18", "hidden_size" },
        { "hidden_size", "72.5", "hidden_size: 72.5 is not a whole" },
        { "hidden_size", "\"72\"", "hidden_size: not a number" },
        { "hidden_size", "true", "hidden_size: not a number" },
        { "hidden_size", NULL, "hidden_size: missing" },
        { "hidden_size", "null", "hidden_size: missing" },
        { "hidden_size", "-1", "hidden_size" },
        { "num_hidden_layers", "0", "num_hidden_layers" },
        { "num_hidden_layers", "1025", "num_hidden_layers" },
        { "num_nextn_predict_layers", "-1", "num_nextn_predict_layers" },
        { "vocab_size", "0", "vocab_size" },
        { "max_position_embeddings", "0", "max_position_embeddings" },
        { "intermediate_size", NULL, "intermediate_size: missing" },
        { "moe_intermediate_size", "0", "moe_intermediate_size" },
        { "rms_norm_eps", "-1", "rms_norm_eps" },
        { "rms_norm_eps", "1e999", "number too large" },
        { "q_lora_rank", "0", "q_lora_rank" },
        { "num_attention_heads", "0", "num_attention_heads" },
        { "qk_nope_head_dim", "0", "qk_nope_head_dim" },
        { "qk_rope_head_dim", "13", "qk_rope_head_dim: 13 is odd" },
        { "v_head_dim", "100000", "v_head_dim" },
        { "kv_lora_rank", NULL, "kv_lora_rank: missing" },
        { "first_k_dense_replace", NULL, "first_k_dense_replace: missing" },
        { "moe_layer_freq", "0", "moe_layer_freq" },
        { "n_shared_experts", "65", "n_shared_experts" },
        { "n_routed_experts", "0", "n_routed_experts" },
        { "n_routed_experts", "null", "n_routed_experts: missing" },
        { "num_experts_per_tok", "13", "num_experts_per_tok: 13 of 12" },
        { "num_experts_per_tok", "33", "num_experts_per_tok" },
        { "num_experts_per_tok", "0", "num_experts_per_tok" },
        { "n_group", "5", "n_group: 5 does not divide 12" },
        { "n_group", "12", "n_group: 12 leaves groups of one" },
        { "topk_group", "5", "topk_group: 5 of 4 groups" },
        { "num_experts_per_tok", "7", "topk_group: 2 groups of 3 experts" },
        { "scoring_func", "\"tanh\"", "scoring_func: \"tanh\"" },
        { "scoring_func", "\"softmax\"", "noaux_tc with scoring_func softm" },
        { "topk_method", "\"random\"", "topk_method: \"random\"" },
        { "topk_method", "\"greedy\"", "greedy with scoring_func sigmoid" },
        { "routed_scaling_factor", "0", "routed_scaling_factor" },
        { "norm_topk_prob", "1", "norm_topk_prob: neither" },
        { "rope_theta", "0", "rope_theta" },
        { "rope_interleave", "false", "rope_interleave" },
        { "rope_scaling", "[]", "rope_scaling: not an object" },
        { "rope_scaling", "{\"type\": \"linear\", \"factor\": 2}",
          "rope_scaling.type: \"linear\"" },
        { "rope_scaling", "{\"type\": \"yarn\"}",
          "rope_scaling.factor: missing" },
        { "rope_scaling", "{\"type\": \"yarn\", \"factor\": 0,"
          " \"original_max_position_embeddings\": 1}",
          "rope_scaling.factor: 0 is not" },
        { "rope_scaling", "{\"type\": \"yarn\", \"factor\": 2,"
          " \"original_max_position_embeddings\": 9, \"truncate\": false}",
          "rope_scaling.truncate" },
        { "quantization_config", "{\"quant_method\": \"awq\"}",
          "quantization_config.quant_method: \"awq\"" },
        { "quantization_config", "{\"quant_method\": \"fp8\"}",
          "quantization_config.weight_block_size" },
        { "quantization_config", "{\"quant_method\": \"fp8\", \"fmt\":"
          " \"e5m2\", \"weight_block_size\": [128, 128]}",
          "quantization_config.fmt" },
        { "quantization_config", "{\"quant_method\": \"fp8\","
          " \"weight_block_size\": [64, 128]}", "weight_block_size" },
        { "quantization_config", "{\"quant_method\": \"fp8\","
          " \"weight_block_size\": [128, 128],"
          " \"activation_scheme\": \"static\"}", "activation_scheme" },
        { "eos_token_id", "101", "eos_token_id: not an id below" },
        { "eos_token_id", "[1, -1]", "eos_token_id" },
        { "eos_token_id", "[1,2,3,4,5,6,7,8,9]", "more than 8" },
        { "bos_token_id", "101", "bos_token_id" },

        /* given twice: others would take the last */
        { "unused\": 1, \"hidden_size", "73", "hidden_size: given twice" },

        { "eos_token_id", "[1, 2, 1]", NULL },
        { "eos_token_id", "null", NULL },
        { "bos_token_id", NULL, NULL },
        { "n_shared_experts", "null", NULL },
        { "tie_word_embeddings", "true", NULL },
        { "quantization_config", "null", NULL },
        { "some_new_field", "{\"a\": [1, 2, {\"b\": null}]}", NULL },
        { NULL, NULL, NULL }
    };

    (void) state;
    table(NULL, cases);
}


static void
test_refused_v2(void **state)
{
    static const case_t  cases[] = {
        { "scoring_func", "\"sigmoid\"", "greedy with scoring_func sigm" },
        { "topk_method", "\"group_limited_greedy\"", NULL },
        { "norm_topk_prob", "true", NULL },
        { "scoring_func", NULL, NULL },
        { "topk_method", NULL, NULL },
        { "routed_scaling_factor", "16.0", NULL },
        { NULL, NULL, NULL }
    };

    (void) state;
    table(model_dir_v2, cases);
}


static void
test_generation(void **state)
{
    size_t          i;
    char            err[ERR_LEN];
    model_config_t  c;

    static const struct {
        const char  *text;
        const char  *says;
    } cases[] = {
        { "{\"temperature\": -1}", "temperature: -1" },
        { "{\"top_p\": 1.5}", "top_p: 1.5" },
        { "{\"top_p\": \"a\"}", "top_p: not a number" },
        { "{\"eos_token_id\": 101}", "eos_token_id" },
        { "{\"do_sample\": 2}", "do_sample" },
        { "[]", "not a JSON object" },
        { "{", "a string is expected" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(parse(NULL, NULL, NULL, &c, err), 0);
        assert_int_equal(model_config_generation(cases[i].text,
                         strlen(cases[i].text), "g.json", &c, err), -1);

        if (strstr(err, cases[i].says) == NULL
            || strncmp(err, "g.json: ", 8) != 0)
        {
            fail_msg("%s gives \"%s\"", cases[i].text, err);
        }
    }

    static const char  good[] = "{\"temperature\": 0.5, \"top_p\": 0.25,"
                                " \"eos_token_id\": [1, 7], \"x\": null}";

    assert_int_equal(parse(NULL, NULL, NULL, &c, err), 0);
    assert_int_equal(model_config_generation(good, strlen(good), "g.json", &c,
                                             err), 0);
    assert_true(c.temperature == 0.5f && c.top_p == 0.25f);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos[1], 7);

    assert_int_equal(model_config_generation("{\"do_sample\": false}", 20,
                                             "g.json", &c, err), 0);
    assert_true(c.temperature == 0);
}


/* The constants of the published models. */

static void
test_yarn(void **state)
{
    char            err[ERR_LEN];
    float           freq[32], mscale;
    uint32_t        i;
    model_dir_t    *d;
    char           *text;
    model_config_t  c;

    (void) state;

    d = model_dir_open(NULL);
    model_dir_field(d, "qk_rope_head_dim", "64");
    model_dir_field(d, "qk_nope_head_dim", "128");
    text = model_dir_config(d);
    assert_int_equal(model_config_parse(text, strlen(text), "c", &c, err), 0);
    free(text);

    assert_true(fabs(model_config_scale(&c) - 0.1352338) < 1e-6);

    model_config_rope(&c, freq, &mscale);
    assert_true(mscale == 1);

    for (i = 0; i < 32; i++) {
        double  f = pow(10000, -2.0 * i / 64);

        /* untouched up to pair 10, a fortieth from pair 23 on */

        if (i <= 10) {
            assert_true(freq[i] == (float) f);

        } else if (i >= 23) {
            assert_true(fabs(freq[i] - f / 40) <= 1e-7 * f);

        } else {
            assert_true(freq[i] < f && freq[i] > f / 40);
        }
    }

    model_dir_field(d, "rope_scaling", "{\"rope_type\": \"yarn\", \"factor\":"
                    " 40, \"mscale\": 0.707, \"mscale_all_dim\": 0.707,"
                    " \"original_max_position_embeddings\": 4096}");
    text = model_dir_config(d);
    assert_int_equal(model_config_parse(text, strlen(text), "c", &c, err), 0);
    free(text);
    assert_true(fabs(model_config_scale(&c) - 0.1147214) < 1e-6);

    model_dir_field(d, "rope_scaling", "null");
    text = model_dir_config(d);
    assert_int_equal(model_config_parse(text, strlen(text), "c", &c, err), 0);
    free(text);
    assert_true(fabs(model_config_scale(&c) - 0.0721688) < 1e-6);

    model_dir_close(d);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_refused_v2),
        cmocka_unit_test(test_generation),
        cmocka_unit_test(test_yarn),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
