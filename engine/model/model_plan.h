/*
 * What a rank on a GPU holds, by config.json alone: before anything is loaded.
 *
 * Weights are counted matrix by matrix as the device keeps them:
 *
 *     embedding, head           BF16, never quantised
 *     matrices                  BF16; or FP8: a byte an element and a float32
 *                               for each block of 128 x 128
 *     routed experts            the same, or INT4 as be_quant.h lays it out
 *     kv_b_proj                 BF16, cut into its two halves
 *     router, norms             float32
 *
 * The largest rank counts: of E experts and R replicas over N ranks it has
 * ceil((E + R) / N) in each layer.  All other weights are on every rank.
 *
 * Exchange (cu_exchange.h): rows that other ranks send, BF16 or, for experts
 * that take them so, FP8 with a scale for 128 elements, each at most once to
 * each rank, and their slots; at home one BF16 contribution for each (row,
 * expert).  For each rank of another node, besides: the rows that it is sent,
 * and boxes for the contributions that go there and come from it.
 * Workspace: what the experts' products take in and hand on if all rows of all
 * ranks come here, what a dense MLP does, keys and values of BE_EXPAND_TOKENS
 * tokens where prompts are expanded, and a quarter more, by which such
 * memory grows.  Activations are float32 as model_rank.c has them, and a test
 * compares the two.
 *
 * Ranks that share a card share the weights there; of everything else each
 * has its own, and it is their sum that is given.
 *
 * What the CUDA runtime itself, graphs and NCCL take is not known before; it
 * is assumed (model_plan.c says how) and reported as its own lines.
 */

#ifndef MODEL_MODEL_PLAN_H
#define MODEL_MODEL_PLAN_H

#include "model/model.h"


typedef struct {
    uint32_t    ranks;               /* of all nodes, one a card */
    uint32_t    nodes;
    uint32_t    per_card;            /* ranks that share one, 0: 1 */
    uint64_t    memory;              /* bytes of a card */
    be_dtype_t  weights;             /* BE_F32: as the checkpoint has them;
                                        BE_INT4: routed experts alone */
    be_dtype_t  inputs;              /* of INT4 experts: BE_BF16, BE_F8E4M3, or
                                        BE_F32: FP8 if other matrices are */
    int         kv_fp8;              /* records of 656 bytes instead of 1152 */
    uint32_t    redundant;
    uint32_t    max_rows;            /* of a step and rank */
    uint32_t    max_logits;
    uint32_t    max_batch;
    uint32_t    max_context;         /* 0: the model's */
    uint64_t    kv_memory;           /* 0: what is left, if it can be used */
    int         mtp;                 /* the drafting layer is loaded, too */
    int         exact;               /* contributions are float32 */
    int         micro;               /* steps may go in two micro-batches */
} model_plan_options_t;

typedef enum {
    MODEL_PLAN_EMBEDDING = 0,
    MODEL_PLAN_HEAD,                 /* 0 if it is the embedding */
    MODEL_PLAN_ATTENTION,
    MODEL_PLAN_DENSE,                /* MLPs of the first layers */
    MODEL_PLAN_SHARED,               /* shared experts */
    MODEL_PLAN_ROUTER,               /* with its bias, and all norms */
    MODEL_PLAN_EXPERTS,              /* routed ones of this rank */
    MODEL_PLAN_MTP,                  /* the drafting layer, all of it */
    MODEL_PLAN_WEIGHTS,              /* the first so many are weights */

    MODEL_PLAN_ACTIVATIONS = MODEL_PLAN_WEIGHTS,
    MODEL_PLAN_EXCHANGE,
    MODEL_PLAN_WORKSPACE,
    MODEL_PLAN_GRAPHS,               /* assumed */
    MODEL_PLAN_RUNTIME,              /* assumed */
    MODEL_PLAN_KV,
    MODEL_PLAN_KINDS
} model_plan_kind_t;

typedef struct {
    uint64_t    bytes[MODEL_PLAN_KINDS];
    uint64_t    weights;             /* sum of these */
    uint64_t    total;
    uint64_t    memory;              /* of the card */
    uint64_t    kv_block;            /* bytes of 64 tokens, all layers */
    uint64_t    kv_blocks;           /* of a rank */
    uint64_t    kv_tokens;
    uint32_t    max_context;         /* that these can hold */
    uint32_t    experts;             /* of a layer, on this card */
    be_dtype_t  dense_type;
    be_dtype_t  expert_type;
    double      params;              /* of the model, without MTP */
    int         fits;
} model_plan_t;


/* Names of the kinds, as in "routed experts". */
extern const char *const  model_plan_names[MODEL_PLAN_KINDS];

/*
 * Works it out.  0, and then `fits` says whether the card can hold it; if not,
 * `err` (ERR_LEN) has the numbers.  -1 with the reason in `err` if such a
 * division is not possible at all.
 */
int model_plan(const model_config_t *c, const model_plan_options_t *opt,
    model_plan_t *plan, char *err);

/* Bytes of activations of a rank, MODEL_PLAN_ACTIVATIONS. */
uint64_t model_plan_activations(const model_config_t *c, uint32_t max_rows,
    uint32_t max_logits, int mtp, int micro);

#endif /* MODEL_MODEL_PLAN_H */
