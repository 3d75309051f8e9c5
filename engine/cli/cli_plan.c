/*
 * llm-engine plan: what each GPU would hold of a model.
 *
 * It reads config.json alone, and needs no GPU.
 */

#include <stdio.h>
#include <string.h>

#include "cli/cli_common.h"
#include "cli/cli_options.h"
#include "model/model_config.h"
#include "model/model_plan.h"
#include "sched/sched.h"


#define PLAN_GIB  ((double) ((uint64_t) 1 << 30))

typedef struct {
    uint32_t               gpus;     /* of a node */
    uint32_t               max_batch;
    uint32_t               prefill_chunk;
    uint32_t               overlap;
    uint32_t               speculate;
    uint32_t               weights;  /* index into plan_weights */
    uint32_t               inputs;   /* into plan_inputs */
    uint32_t               kv_type;
    uint32_t               format;
    model_plan_options_t   opt;
} plan_cli_t;


static void plan_print(const plan_cli_t *p, const model_config_t *c,
    const model_plan_t *plan);
static void plan_json(const plan_cli_t *p, const model_config_t *c,
    const model_plan_t *plan, const char *err);
static const char *plan_type(be_dtype_t type);


static const char *const  plan_weights[] = {
    "auto", "bf16", "fp8", "int4", NULL
};
static const be_dtype_t  plan_types[] = {
    BE_F32, BE_BF16, BE_F8E4M3, BE_INT4
};
static const char *const  plan_inputs[] = { "auto", "bf16", "fp8", NULL };
static const char *const  plan_kv_types[] = { "bf16", "fp8", NULL };
static const char *const  plan_formats[] = { "text", "json", NULL };


int
cli_plan(int argc, char **argv)
{
    int             rc;
    char            err[ERR_LEN];
    plan_cli_t      p;
    cli_engine_t    cli;
    model_plan_t    plan;
    model_config_t  conf;

    memset(&p, 0, sizeof(p));
    p.gpus = 8;
    p.max_batch = 32;
    p.overlap = CLI_OVERLAP;
    p.opt.nodes = 1;
    p.opt.memory = UINT64_C(80) << 30;

    const cli_option_t  own[] = {
        { "gpus", "N", CLI_UINT, &p.gpus,
          "GPUs of each node, one rank each (default: 8)", 1, 64 },
        { "nodes", "N", CLI_UINT, &p.opt.nodes, "nodes (default: 1)", 1, 64 },
        { "gpu-memory", "SIZE", CLI_SIZE, &p.opt.memory,
          "of each GPU, as nvidia-smi shows it (default: 80G)", 1 },
        { "weights", "TYPE", CLI_WORD, &p.weights,
          "bf16, fp8, int4 (routed experts alone), or auto: as they are", 0,
          0, plan_weights },
        { "expert-inputs", "TYPE", CLI_WORD, &p.inputs,
          "of int4 experts: bf16, fp8 or auto, fp8 if the rest is", 0, 0,
          plan_inputs },
        { "kv-memory", "SIZE", CLI_SIZE, &p.opt.kv_memory,
          "KV cache of each rank (default: what is left)", 1 },
        { "kv-type", "TYPE", CLI_WORD, &p.kv_type, "bf16 or fp8", 0, 0,
          plan_kv_types },
        { "max-context", "N", CLI_UINT, &p.opt.max_context,
          "tokens of a sequence that must fit (default: as many as do)", 2,
          16777216 },
        { "max-batch", "N", CLI_UINT, &p.max_batch,
          "sequences computed at once on each rank", 1, 4096 },
        { "prefill-chunk", "N", CLI_UINT, &p.prefill_chunk,
          "prompt tokens of a step on each rank (default: as serve)", 1,
          65536 },
        { "overlap", "ROWS", CLI_UINT, &p.overlap,
          "as serve (default: 1024)", 0, 65536 },
        { "speculate", "N", CLI_UINT, &p.speculate,
          "tokens guessed by the MTP layer, 0: it is not loaded", 0,
          SCHED_DEPTH_MAX },
        { "redundant-experts", "N", CLI_UINT, &p.opt.redundant,
          "replicas of busy experts in each layer, over all ranks", 0,
          65536 },
        { "format", "FORMAT", CLI_WORD, &p.format, "text or json", 0, 0,
          plan_formats },
        { NULL }
    };

    const cli_command_t  cmd = {
        "plan", NULL, "Shows what each GPU would hold; reads config.json.",
        CLI_G_MODEL, own, 0
    };

    rc = cli_parse(&cmd, &cli, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    if (model_config_read(cli.model, &conf, err) != 0) {
        cli_error("%s", err);
        return 1;
    }

    if (p.prefill_chunk == 0) {
        p.prefill_chunk = cli_prefill_chunk("cuda", p.gpus);
    }

    p.opt.ranks = p.gpus * p.opt.nodes;
    p.opt.weights = plan_types[p.weights];
    p.opt.inputs = plan_types[p.inputs];
    p.opt.kv_fp8 = p.kv_type == 1;
    p.opt.max_batch = p.max_batch;
    p.opt.max_rows = sched_max_rows(p.max_batch, p.prefill_chunk,
                                    p.speculate);
    p.opt.max_logits = sched_max_logits(p.max_batch, p.prefill_chunk,
                                        p.speculate);
    p.opt.micro = cli_overlap(p.overlap, p.opt.ranks, p.opt.max_rows) != 0;
    p.opt.mtp = p.speculate > 0;

    if (model_plan(&conf, &p.opt, &plan, err) != 0) {
        cli_error("plan: %s", err);
        return 1;
    }

    if (p.format == 1) {
        plan_json(&p, &conf, &plan, err);

    } else {
        plan_print(&p, &conf, &plan);
    }

    if (!plan.fits) {
        cli_error("plan: it does not fit: %s", err);
        return 1;
    }

    return 0;
}


static void
plan_print(const plan_cli_t *p, const model_config_t *c,
    const model_plan_t *plan)
{
    uint32_t  i;

    printf("model    %s, %u layers, %u experts, %.2f B parameters\n",
           c->type, c->layers, c->gate.experts, plan->params / 1e9);
    printf("ranks    %u", p->opt.ranks);

    if (p->opt.nodes > 1) {
        printf(" on %u nodes", p->opt.nodes);
    }

    printf(", one a GPU of %.1f GiB; %u experts of each layer on each\n",
           plan->memory / PLAN_GIB, plan->experts);
    printf("weights  routed experts %s, other matrices %s\n\n",
           plan_type(plan->expert_type), plan_type(plan->dense_type));

    printf("%-18s %16s  %8s\n", "each rank", "bytes", "GiB");

    for (i = 0; i < MODEL_PLAN_KINDS; i++) {

        if (i == MODEL_PLAN_ACTIVATIONS) {
            printf("  %-16s %16llu  %8.2f\n", "= weights",
                   (unsigned long long) plan->weights,
                   plan->weights / PLAN_GIB);
        }

        if (plan->bytes[i] != 0) {
            printf("%-18s %16llu  %8.2f%s\n", model_plan_names[i],
                   (unsigned long long) plan->bytes[i],
                   plan->bytes[i] / PLAN_GIB,
                   i == MODEL_PLAN_GRAPHS || i == MODEL_PLAN_RUNTIME
                   ? "  assumed" : "");
        }
    }

    printf("  %-16s %16llu  %8.2f\n", "= total",
           (unsigned long long) plan->total, plan->total / PLAN_GIB);
    printf("  %-16s %16lld  %8.2f\n\n", "= left",
           (long long) (plan->memory - plan->total),
           ((double) plan->memory - (double) plan->total) / PLAN_GIB);

    printf("KV cache of a rank: %llu blocks of 64 tokens, %llu bytes each: "
           "%llu tokens;\nthe longest sequence has %u\n",
           (unsigned long long) plan->kv_blocks,
           (unsigned long long) plan->kv_block,
           (unsigned long long) plan->kv_tokens, plan->max_context);
}


/* All strings are ours but `err`, which has no quotes or controls in it. */

static void
plan_json(const plan_cli_t *p, const model_config_t *c,
    const model_plan_t *plan, const char *err)
{
    uint32_t  i;

    printf("{\"model\": \"%s\", \"parameters\": %.0f, \"ranks\": %u, "
           "\"nodes\": %u, \"memory\": %llu, \"experts_per_rank\": %u, "
           "\"expert_type\": \"%s\", \"dense_type\": \"%s\", \"bytes\": {",
           c->type, plan->params, p->opt.ranks, p->opt.nodes,
           (unsigned long long) plan->memory, plan->experts,
           plan_type(plan->expert_type), plan_type(plan->dense_type));

    for (i = 0; i < MODEL_PLAN_KINDS; i++) {
        printf("%s\"%s\": %llu", i > 0 ? ", " : "", model_plan_names[i],
               (unsigned long long) plan->bytes[i]);
    }

    printf("}, \"weights\": %llu, \"total\": %llu, \"kv_block\": %llu, "
           "\"kv_blocks\": %llu, \"kv_tokens\": %llu, \"max_context\": %u, "
           "\"fits\": %s", (unsigned long long) plan->weights,
           (unsigned long long) plan->total,
           (unsigned long long) plan->kv_block,
           (unsigned long long) plan->kv_blocks,
           (unsigned long long) plan->kv_tokens, plan->max_context,
           plan->fits ? "true" : "false");

    if (!plan->fits) {
        printf(", \"reason\": \"%s\"", err);
    }

    printf("}\n");
}


static const char *
plan_type(be_dtype_t type)
{
    return type == BE_F8E4M3 ? "fp8" : type == BE_INT4 ? "int4" : "bf16";
}
