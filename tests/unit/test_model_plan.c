/*
 * The memory plan against sums worked out by hand from the published
 * configurations, and against what a rank really allocates.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "model/model_config.h"
#include "model/model_plan.h"


#define GIB  (UINT64_C(1) << 30)

#define V3_GATE                                                              \
    "\"n_routed_experts\": 256, \"num_experts_per_tok\": 8, "                 \
    "\"n_group\": 8, \"topk_group\": 4, \"num_hidden_layers\": 61, "          \
    "\"first_k_dense_replace\": 3, \"num_attention_heads\": 128, "            \
    "\"vocab_size\": 129280, \"routed_scaling_factor\": 2.5, "

#define BIG                                                                  \
    "\"model_type\": \"deepseek_v3\", \"hidden_size\": 7168, "                \
    "\"intermediate_size\": 18432, \"moe_intermediate_size\": 2048, "         \
    "\"q_lora_rank\": 1536, \"kv_lora_rank\": 512, "                          \
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, "                   \
    "\"v_head_dim\": 128, \"n_shared_experts\": 1, \"rms_norm_eps\": 1e-6, "  \
    "\"rope_theta\": 10000, \"max_position_embeddings\": 163840, "            \
    "\"eos_token_id\": 1, \"bos_token_id\": 0, \"quantization_config\": "     \
    "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", "                         \
    "\"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]}"

#define SMALL                                                                \
    "\"hidden_size\": 2048, \"moe_intermediate_size\": 1408, "                \
    "\"num_hidden_layers\": 27, \"first_k_dense_replace\": 1, "               \
    "\"num_attention_heads\": 16, \"kv_lora_rank\": 512, "                    \
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, "                   \
    "\"v_head_dim\": 128, \"n_routed_experts\": 64, "                         \
    "\"num_experts_per_tok\": 6, \"n_shared_experts\": 2, "                   \
    "\"n_group\": 1, \"topk_group\": 1, \"rope_theta\": 10000, "              \
    "\"eos_token_id\": 1, \"bos_token_id\": 0, "

static const char  v3[] =
    "{" V3_GATE "\"num_nextn_predict_layers\": 1, " BIG "}";

static const char  k2[] =
    "{\"n_routed_experts\": 384, \"num_experts_per_tok\": 8, "
    "\"n_group\": 1, \"topk_group\": 1, \"num_hidden_layers\": 61, "
    "\"first_k_dense_replace\": 1, \"num_attention_heads\": 64, "
    "\"vocab_size\": 163840, \"routed_scaling_factor\": 2.827, " BIG "}";

static const char  lite[] =
    "{\"model_type\": \"deepseek_v2\", \"intermediate_size\": 10944, "
    "\"vocab_size\": 102400, \"rms_norm_eps\": 1e-6, \"q_lora_rank\": null, "
    "\"norm_topk_prob\": false, \"routed_scaling_factor\": 1.0, "
    "\"scoring_func\": \"softmax\", \"topk_method\": \"greedy\", " SMALL
    "\"max_position_embeddings\": 163840}";

static const char  moonlight[] =
    "{\"model_type\": \"deepseek_v3\", \"intermediate_size\": 11264, "
    "\"vocab_size\": 163840, \"rms_norm_eps\": 1e-5, \"q_lora_rank\": null, "
    "\"routed_scaling_factor\": 2.446, " SMALL
    "\"max_position_embeddings\": 8192}";


static be_dtype_t  inputs;           /* of INT4 experts */


static void
config(const char *text, model_config_t *c)
{
    char  err[ERR_LEN];

    if (model_config_parse(text, strlen(text), "config.json", c, err) != 0) {
        fail_msg("%s", err);
    }
}


static int
work_out(const char *text, uint32_t ranks, be_dtype_t weights,
    model_plan_t *plan, char *err)
{
    model_config_t        c;
    model_plan_options_t  opt;

    config(text, &c);
    memset(&opt, 0, sizeof(opt));
    opt.ranks = ranks;
    opt.nodes = 1 + (ranks > 8);
    opt.memory = UINT64_C(81559) << 20;      /* an H100 of 80 GB */
    opt.weights = weights;
    opt.inputs = inputs;
    opt.max_rows = 288;
    opt.max_logits = 96;
    opt.max_batch = 32;

    assert_int_equal(model_plan(&c, &opt, plan, err), 0);

    return plan->fits;
}


/*
 * One layer: attention q_a 1536 x 7168 and 12 x 56 scales, q_b 24576 x 1536
 * and 192 x 12, kv_a 576 x 7168 and 5 x 56, kv_b 32768 x 512 in BF16, o 7168 x
 * 16384 and 56 x 128: 11010048 + 37748736 + 4128768 + 33554432 + 117440512
 * and 10424 scales of 4 bytes: 203924192.  An expert: three of 2048 x 7168 and
 * 16 x 56 scales: 44050944.
 */

static void
test_v3_fp8(void **state)
{
    char          err[ERR_LEN];
    model_plan_t  p;

    (void) state;

    assert_false(work_out(v3, 8, BE_F32, &p, err));

    assert_int_equal(p.bytes[MODEL_PLAN_EMBEDDING], UINT64_C(1853358080));
    assert_int_equal(p.bytes[MODEL_PLAN_HEAD], UINT64_C(1853358080));
    assert_int_equal(p.bytes[MODEL_PLAN_ATTENTION],
                     61 * UINT64_C(203924192));
    assert_int_equal(p.bytes[MODEL_PLAN_DENSE], UINT64_C(1189375488));
    assert_int_equal(p.bytes[MODEL_PLAN_SHARED], 58 * UINT64_C(44050944));
    assert_int_equal(p.bytes[MODEL_PLAN_ROUTER], UINT64_C(429807616));
    assert_int_equal(p.bytes[MODEL_PLAN_EXPERTS],
                     32 * 58 * UINT64_C(44050944));
    assert_int_equal(p.bytes[MODEL_PLAN_MTP], 0);
    assert_int_equal(p.weights, UINT64_C(102078781792));
    assert_int_equal(p.kv_block, 64 * 70272);
    assert_true(p.params > 671.0e9 && p.params < 671.1e9);

    /* 8 x 288 rows of 7168 e4m3 and 56 scales, 8 slots; 8 BF16 rows home */
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE],
                     2304 * (7168 + 224 + 32) + 288 * 8 * 7168 * 2);

    assert_non_null(strstr(err, "GiB and has 79.6"));
    assert_non_null(strstr(err, "routed experts 76.1"));
    assert_true(p.total > 95 * GIB);
}


/*
 * INT4: 128 panels of 56 chunks of 1152 bytes, and 448 of 16: 8257536 for
 * each of the three matrices.
 */

static void
test_v3_int4(void **state)
{
    char          err[ERR_LEN];
    model_plan_t  p;

    (void) state;

    assert_true(work_out(v3, 8, BE_INT4, &p, err));

    assert_int_equal(p.bytes[MODEL_PLAN_EXPERTS],
                     32 * 58 * UINT64_C(24772608));
    assert_int_equal(p.bytes[MODEL_PLAN_SHARED], 58 * UINT64_C(44050944));
    assert_int_equal(p.weights, UINT64_C(66298190176));
    assert_true(p.total <= p.memory);
    assert_true(p.kv_tokens > 150000);

    /* all of it is given to KV but what a block does not fit into */
    assert_true(p.memory - p.total < p.kv_block);
    assert_int_equal(p.bytes[MODEL_PLAN_KV], p.kv_blocks * p.kv_block);
    assert_int_equal(p.max_context, 163840);

    /* rows travel as experts take them: FP8 like all other matrices' */
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE],
                     2304 * (7168 + 224 + 32) + 288 * 8 * 7168 * 2);

    inputs = BE_BF16;
    assert_true(work_out(v3, 8, BE_INT4, &p, err));
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE],
                     2304 * (14336 + 32) + 288 * 8 * 7168 * 2);

    /* of a checkpoint in BF16 if nothing else is said, or else */
    inputs = BE_F32;
    assert_true(work_out(moonlight, 2, BE_INT4, &p, err));
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE],
                     576 * (4096 + 24) + 288 * 6 * 2048 * 2);

    inputs = BE_F8E4M3;
    assert_true(work_out(moonlight, 2, BE_INT4, &p, err));
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE],
                     576 * (2048 + 64 + 24) + 288 * 6 * 2048 * 2);
    inputs = BE_F32;
}


static void
test_v3_mtp(void **state)
{
    char                  err[ERR_LEN];
    model_plan_t          p;
    model_config_t        c;
    model_plan_options_t  opt;

    (void) state;

    config(v3, &c);
    memset(&opt, 0, sizeof(opt));
    opt.ranks = 8;
    opt.nodes = 1;
    opt.memory = 141 * GIB;
    opt.max_rows = 288;
    opt.max_logits = 96;
    opt.max_batch = 1;
    opt.mtp = 1;
    opt.redundant = 32;
    opt.kv_fp8 = 1;
    opt.kv_memory = 8 * GIB;

    assert_int_equal(model_plan(&c, &opt, &p, err), 0);
    assert_true(p.fits);

    /* 36 experts of a layer; eh_proj 7168 x 14336 and 56 x 112 scales */

    assert_int_equal(p.experts, 36);
    assert_int_equal(p.bytes[MODEL_PLAN_MTP], UINT64_C(1767883488)
                                              + 4 * UINT64_C(44050944));
    assert_int_equal(p.kv_block, 64 * 656 * 62);
    assert_int_equal(p.kv_blocks, 8 * GIB / p.kv_block);
}


static void
test_lite(void **state)
{
    char          err[ERR_LEN];
    model_plan_t  p;

    (void) state;

    assert_true(work_out(lite, 1, BE_F32, &p, err));

    assert_int_equal(p.bytes[MODEL_PLAN_EMBEDDING], 419430400);
    assert_int_equal(p.bytes[MODEL_PLAN_ATTENTION], 27 * 27525120);
    assert_int_equal(p.bytes[MODEL_PLAN_DENSE], 134479872);
    assert_int_equal(p.bytes[MODEL_PLAN_SHARED], 899678208);
    assert_int_equal(p.bytes[MODEL_PLAN_ROUTER], 14137344);
    assert_int_equal(p.bytes[MODEL_PLAN_EXPERTS], UINT64_C(28789702656));
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE], 0);
    assert_int_equal(p.weights, UINT64_C(31420037120));
    assert_int_equal(p.kv_block, 64 * 31104);
    assert_true(p.params > 15.70e9 && p.params < 15.72e9);
}


/* Two ranks on one card: all experts once, all else but weights twice. */

static void
test_shared_card(void **state)
{
    char                  err[ERR_LEN];
    model_plan_t          one, two;
    model_config_t        c;
    model_plan_options_t  opt;

    (void) state;

    config(lite, &c);
    memset(&opt, 0, sizeof(opt));
    opt.ranks = 2;
    opt.nodes = 1;
    opt.memory = 80 * GIB;
    opt.max_rows = 288;
    opt.max_logits = 96;
    opt.max_batch = 32;
    opt.kv_memory = GIB;

    assert_int_equal(model_plan(&c, &opt, &one, err), 0);
    opt.per_card = 2;
    assert_int_equal(model_plan(&c, &opt, &two, err), 0);

    assert_true(one.fits && two.fits);
    assert_int_equal(two.weights, UINT64_C(31420037120));
    assert_int_equal(two.weights - one.weights, UINT64_C(14394851328));
    assert_int_equal(two.kv_blocks, one.kv_blocks);

    assert_int_equal(two.bytes[MODEL_PLAN_KV], 2 * one.bytes[MODEL_PLAN_KV]);
    assert_int_equal(two.bytes[MODEL_PLAN_EXCHANGE],
                     2 * one.bytes[MODEL_PLAN_EXCHANGE]);
    assert_int_equal(two.bytes[MODEL_PLAN_WORKSPACE],
                     2 * one.bytes[MODEL_PLAN_WORKSPACE]);
    assert_int_equal(two.bytes[MODEL_PLAN_RUNTIME],
                     one.bytes[MODEL_PLAN_RUNTIME]);
}


static void
test_moonlight(void **state)
{
    char          err[ERR_LEN];
    model_plan_t  p;

    (void) state;

    assert_true(work_out(moonlight, 2, BE_F32, &p, err));

    assert_int_equal(p.bytes[MODEL_PLAN_EMBEDDING], 671088640);
    assert_int_equal(p.bytes[MODEL_PLAN_ATTENTION], 27 * 27525120);
    assert_int_equal(p.bytes[MODEL_PLAN_DENSE], 138412032);
    assert_int_equal(p.bytes[MODEL_PLAN_ROUTER], 14144000);
    assert_int_equal(p.bytes[MODEL_PLAN_EXPERTS], UINT64_C(14394851328));
    assert_true(p.params > 15.95e9 && p.params < 15.97e9);

    /* 32 sequences of 8192 tokens are all that can be used */
    assert_int_equal(p.kv_tokens, 32 * 8192);

    /* 2 x 288 rows of 2048 in BF16 with 6 slots; 6 BF16 rows each home */
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE],
                     576 * (4096 + 24) + 288 * 6 * 2048 * 2);
}


static void
test_k2(void **state)
{
    char          err[ERR_LEN];
    model_plan_t  p;

    (void) state;

    /* 8 cards: not even with experts in 4 bits */

    assert_false(work_out(k2, 8, BE_INT4, &p, err));
    assert_int_equal(p.bytes[MODEL_PLAN_EXPERTS],
                     48 * 60 * UINT64_C(24772608));
    assert_true(p.params > 1.026e12 && p.params < 1.0265e12);

    assert_true(work_out(k2, 16, BE_INT4, &p, err));

    assert_true(work_out(k2, 16, BE_F32, &p, err));
    assert_int_equal(p.bytes[MODEL_PLAN_ATTENTION],
                     61 * UINT64_C(109533408));
    assert_int_equal(p.bytes[MODEL_PLAN_EXPERTS],
                     24 * 60 * UINT64_C(44050944));
    assert_int_equal(p.weights, UINT64_C(78516754272));

    /*
     * As of 16 ranks of one node; and for each of the 8 of the other one 288
     * rows as they travel, with their slots, and 8 BF16 rows of each there
     * and back
     */
    assert_int_equal(p.bytes[MODEL_PLAN_EXCHANGE],
                     16 * 288 * (7168 + 224 + 32) + 288 * 8 * 7168 * 2
                     + 8 * 288 * (7168 + 224 + 32 + 2 * 8 * 7168 * 2));
}


static void
refused(const model_config_t *c, const model_plan_options_t *opt,
    const char *says)
{
    char          err[ERR_LEN];
    model_plan_t  p;

    err[0] = '\0';

    if (model_plan(c, opt, &p, err) == 0 && p.fits) {
        fail_msg("accepted, not \"%s\"", says);
    }

    if (strstr(err, says) == NULL) {
        fail_msg("\"%s\" instead of \"%s\"", err, says);
    }
}


static void
test_refused(void **state)
{
    model_config_t        c;
    model_plan_options_t  opt, o;

    (void) state;

    config(lite, &c);
    memset(&opt, 0, sizeof(opt));
    opt.ranks = 1;
    opt.nodes = 1;
    opt.memory = 80 * GIB;
    opt.max_rows = 288;
    opt.max_logits = 96;
    opt.max_batch = 32;

    o = opt;
    o.ranks = 65;
    refused(&c, &o, "64 experts cannot be spread over 65 ranks");

    o = opt;
    o.redundant = 1;
    refused(&c, &o, "1 redundant experts are too many: 1 ranks can hold 0");

    o = opt;
    o.mtp = 1;
    refused(&c, &o, "no multi-token prediction layer");

    o = opt;
    o.max_context = 200000;
    refused(&c, &o, "more than the model's 163840");

    o = opt;
    o.weights = BE_INT8;
    refused(&c, &o, "int8");

    /* 163840 tokens are 4.7 GiB */

    o = opt;
    o.max_context = 163840;
    o.kv_memory = GIB;
    refused(&c, &o, "a context of 163840 tokens needs 4.7 GiB of KV cache, "
            "a rank has 1.0 GiB for it, which holds 34496 tokens");

    o = opt;
    o.kv_memory = 60 * GIB;
    refused(&c, &o, "GiB and has 80.0");

    o = opt;
    o.memory = GIB;
    refused(&c, &o, "GiB and has 1.0");
}


/* What a rank takes for activations, counted by its backend. */

static void   *(*be_alloc_real)(be_t *be, size_t size);
static uint64_t  be_alloc_sum;


static void *
be_alloc_counted(be_t *be, size_t size)
{
    be_alloc_sum += size;

    return be_alloc_real(be, size);
}


static void
activations(int mtp, int micro)
{
    be_t                  *be;
    char                   err[ERR_LEN];
    uint64_t               weights;
    ep_map_t              *map;
    model_t               *model;
    be_options_t           bo;
    model_rank_t          *mr[2];
    ep_exchange_t         *ex;
    model_rank_options_t   ro;

    model = model_open("engine/models/wordnet-tiny", err);
    assert_non_null(model);

    memset(&bo, 0, sizeof(bo));
    bo.threads = 1;
    bo.pin = -1;

    be = be_open("cpu", &bo, err);
    assert_non_null(be);

    be_alloc_real = be->alloc;
    be->alloc = be_alloc_counted;

    assert_int_equal(ep_host_open(&ex, 1, 40, 8, 256, 0, err), 0);
    ex->micro = micro ? 16 : 0;
    map = ep_map_open(model_config(model)->gate.experts, 1, 0, err);
    assert_non_null(map);

    /* weights are shared, so the second rank allocates activations alone */

    memset(&ro, 0, sizeof(ro));
    ro.max_rows = 40;
    ro.max_logits = 12;
    ro.kv_blocks = 2;
    ro.mtp = mtp;

    mr[0] = model_rank_open(model, be, ex, map, &ro, err);
    assert_non_null(mr[0]);

    weights = be_alloc_sum;
    be_alloc_sum = 0;

    mr[1] = model_rank_open(model, be, ex, map, &ro, err);
    assert_non_null(mr[1]);

    assert_true(weights >= be_alloc_sum);
    assert_int_equal(be_alloc_sum,
                     model_plan_activations(model_config(model), 40, 12, mtp,
                                            micro));

    be_alloc_sum = 0;
    model_rank_close(mr[1]);
    model_rank_close(mr[0]);
    ep_map_close(map);
    ex->close(ex);
    be->close(be);
    model_close(model);
}


static void
test_activations(void **state)
{
    (void) state;

    activations(0, 0);
    activations(1, 0);
    activations(0, 1);
    activations(1, 1);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v3_fp8),
        cmocka_unit_test(test_v3_int4),
        cmocka_unit_test(test_v3_mtp),
        cmocka_unit_test(test_lite),
        cmocka_unit_test(test_shared_card),
        cmocka_unit_test(test_moonlight),
        cmocka_unit_test(test_k2),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_activations)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
