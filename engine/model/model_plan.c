/*
 * The memory plan of a GPU.
 */

#include <stdio.h>
#include <string.h>

#include "backend/be_quant.h"
#include "model/model_config.h"
#include "model/model_int.h"
#include "model/model_plan.h"


#define PLAN_MIB       ((uint64_t) 1 << 20)
#define PLAN_GIB       ((double) ((uint64_t) 1 << 30))
#define PLAN_SCALES    128           /* elements of a scale, both ways */

/*
 * Assumed: what a context and the kernels' code take on a card of this kind;
 * the library of dense products and the sums of our own; a captured launch;
 * NCCL's buffers.
 */

#define PLAN_CONTEXT   (640 * PLAN_MIB)
#define PLAN_PRODUCTS  (43 * PLAN_MIB)
#define PLAN_LAUNCH    4096
#define PLAN_LAUNCHES  32            /* of a layer */
#define PLAN_NCCL      (512 * PLAN_MIB)

#define PLAN_DENSE     1024          /* rows of a dense MLP at once */
#define PLAN_SPLITS    16            /* parts of the router's sums, of so */
#define PLAN_SPLIT     512           /* many rows */
#define PLAN_KV_LEAST  2             /* blocks; the engine takes no fewer */

#define PLAN_FP8_SCALE  128          /* latent elements of a scale, FP8 KV */


typedef struct {
    const model_config_t        *c;
    const model_plan_options_t  *opt;
    model_plan_t                *plan;
    uint32_t                     per_card;
} plan_t;


static int plan_check(const plan_t *p, char *err);
static void plan_types(const plan_t *p);
static void plan_weights(const plan_t *p);
static void plan_layer(const plan_t *p, int moe, uint64_t *bytes);
static uint64_t plan_attention(const plan_t *p);
static uint64_t plan_mlp(const plan_t *p, be_dtype_t type, uint32_t inter);
static uint64_t plan_matrix(be_dtype_t type, uint64_t rows, uint64_t cols);
static uint64_t plan_norms(const model_config_t *c);
static double plan_params(const model_config_t *c);
static uint64_t plan_expanded(const plan_t *p);
static int plan_inputs_fp8(const plan_t *p);
static void plan_buffers(const plan_t *p);
static void plan_kv(const plan_t *p);
static void plan_verdict(const plan_t *p, char *err);


const char *const  model_plan_names[MODEL_PLAN_KINDS] = {
    "embedding", "head", "attention", "dense MLPs", "shared experts",
    "router and norms", "routed experts", "MTP layer", "activations",
    "exchange", "workspace", "graphs", "CUDA runtime", "KV cache"
};


int
model_plan(const model_config_t *c, const model_plan_options_t *opt,
    model_plan_t *plan, char *err)
{
    plan_t    p;
    uint32_t  i;

    memset(plan, 0, sizeof(model_plan_t));
    memset(&p, 0, sizeof(p));
    p.c = c;
    p.opt = opt;
    p.plan = plan;
    p.per_card = (opt->per_card != 0) ? opt->per_card : 1;

    if (plan_check(&p, err) != 0) {
        return -1;
    }

    plan->memory = opt->memory;
    plan->params = plan_params(c);

    plan_types(&p);
    plan_weights(&p);
    plan_buffers(&p);

    for (i = 0; i < MODEL_PLAN_KV; i++) {
        plan->total += plan->bytes[i];
        plan->weights += (i < MODEL_PLAN_WEIGHTS) ? plan->bytes[i] : 0;
    }

    plan_kv(&p);
    plan_verdict(&p, err);

    return 0;
}


static int
plan_check(const plan_t *p, char *err)
{
    uint32_t  experts;

    experts = p->c->gate.experts;

    if (p->opt->ranks == 0 || p->opt->ranks > experts) {
        return model_error(err, "%u experts cannot be spread over %u ranks: "
                           "each must hold at least one", experts,
                           p->opt->ranks);
    }

    if (p->opt->redundant > (uint64_t) experts * (p->opt->ranks - 1)) {
        return model_error(err, "%u redundant experts are too many: %u ranks "
                           "can hold %llu", p->opt->redundant, p->opt->ranks,
                           (unsigned long long) experts * (p->opt->ranks - 1));
    }

    if (p->opt->mtp && p->c->mtp_layers == 0) {
        return model_error(err, "the model has no multi-token prediction "
                           "layer");
    }

    if (p->opt->max_context > p->c->max_context) {
        return model_error(err, "a context of %u tokens is more than the "
                           "model's %u", p->opt->max_context,
                           p->c->max_context);
    }

    if (p->opt->weights == BE_INT8 || p->opt->weights == BE_PAIRS) {
        return model_error(err, "int8 weights are for the CPU: a GPU takes "
                           "bf16, fp8, or int4 for the routed experts");
    }

    return 0;
}


static void
plan_types(const plan_t *p)
{
    be_dtype_t  own;

    own = p->c->fp8 ? BE_F8E4M3 : BE_BF16;

    switch (p->opt->weights) {

    case BE_BF16:
    case BE_F8E4M3:
        p->plan->dense_type = p->opt->weights;
        p->plan->expert_type = p->opt->weights;
        break;

    case BE_INT4:
        p->plan->dense_type = own;
        p->plan->expert_type = BE_INT4;
        break;

    default:
        p->plan->dense_type = own;
        p->plan->expert_type = own;
    }
}


static void
plan_weights(const plan_t *p)
{
    uint32_t               i, slots;
    uint64_t              *b, mtp[MODEL_PLAN_KINDS];
    const model_config_t  *c;

    c = p->c;
    b = p->plan->bytes;

    slots = c->gate.experts + p->opt->redundant;
    slots = (slots + p->opt->ranks - 1) / p->opt->ranks * p->per_card;
    p->plan->experts = (slots < c->gate.experts) ? slots : c->gate.experts;

    b[MODEL_PLAN_EMBEDDING] = plan_matrix(BE_BF16, c->vocab, c->hidden);
    b[MODEL_PLAN_HEAD] = c->tied ? 0 : b[MODEL_PLAN_EMBEDDING];
    b[MODEL_PLAN_ROUTER] = c->hidden * sizeof(float);

    for (i = 0; i < c->layers; i++) {
        plan_layer(p, model_config_moe(c, i), b);
    }

    if (!p->opt->mtp) {
        return;
    }

    /* embedding and head are the model's own */

    memset(mtp, 0, sizeof(mtp));
    plan_layer(p, model_config_moe(c, c->layers), mtp);

    b[MODEL_PLAN_MTP] = plan_matrix(p->plan->dense_type, c->hidden,
                                    2 * c->hidden)
                        + 3 * c->hidden * sizeof(float);

    for (i = 0; i < MODEL_PLAN_WEIGHTS; i++) {
        b[MODEL_PLAN_MTP] += mtp[i];
    }
}


static void
plan_layer(const plan_t *p, int moe, uint64_t *bytes)
{
    const model_config_t  *c;

    c = p->c;

    bytes[MODEL_PLAN_ATTENTION] += plan_attention(p);
    bytes[MODEL_PLAN_ROUTER] += plan_norms(c);

    if (!moe) {
        bytes[MODEL_PLAN_DENSE] += plan_mlp(p, p->plan->dense_type, c->inter);
        return;
    }

    bytes[MODEL_PLAN_ROUTER] += (uint64_t) c->gate.experts * c->hidden
                                * sizeof(float);

    if (c->gate.method == BE_NOAUX_TC) {
        bytes[MODEL_PLAN_ROUTER] += c->gate.experts * sizeof(float);
    }

    if (c->shared != 0) {
        bytes[MODEL_PLAN_SHARED] += plan_mlp(p, p->plan->dense_type,
                                             c->moe_inter * c->shared);
    }

    bytes[MODEL_PLAN_EXPERTS] += p->plan->experts
                                 * plan_mlp(p, p->plan->expert_type,
                                            c->moe_inter);
}


static uint64_t
plan_attention(const plan_t *p)
{
    uint64_t               n, q_in;
    be_dtype_t             type;
    const be_mla_t        *m;
    const model_config_t  *c;

    c = p->c;
    m = &c->mla;
    type = p->plan->dense_type;
    q_in = (c->q_lora != 0) ? c->q_lora : c->hidden;
    n = (c->q_lora != 0) ? plan_matrix(type, c->q_lora, c->hidden) : 0;

    n += plan_matrix(type, m->heads * (m->nope + m->rope), q_in);
    n += plan_matrix(type, m->kv_lora + m->rope, c->hidden);
    n += plan_matrix(BE_BF16, m->heads * (m->nope + m->v), m->kv_lora);
    n += plan_matrix(type, c->hidden, m->heads * m->v);

    return n;
}


static uint64_t
plan_mlp(const plan_t *p, be_dtype_t type, uint32_t inter)
{
    return 2 * plan_matrix(type, inter, p->c->hidden)
           + plan_matrix(type, p->c->hidden, inter);
}


static uint64_t
plan_matrix(be_dtype_t type, uint64_t rows, uint64_t cols)
{
    switch (type) {

    case BE_F8E4M3:
        return rows * cols
               + ((rows + PLAN_SCALES - 1) / PLAN_SCALES)
                 * ((cols + PLAN_SCALES - 1) / PLAN_SCALES) * sizeof(float);

    case BE_INT4:
        return be_quant_size(type, (uint32_t) rows, (uint32_t) cols, 1);

    default:
        return rows * cols * 2;
    }
}


static uint64_t
plan_norms(const model_config_t *c)
{
    return (2 * (uint64_t) c->hidden + c->q_lora + c->mla.kv_lora)
           * sizeof(float);
}


/* All experts once, with norms and biases. */

static double
plan_params(const model_config_t *c)
{
    double           n, h, moe;
    uint32_t         i;
    const be_mla_t  *m;

    h = c->hidden;
    m = &c->mla;
    moe = c->gate.experts * (3 * h * c->moe_inter + h)
          + (c->gate.method == BE_NOAUX_TC ? c->gate.experts : 0)
          + 3 * h * c->moe_inter * c->shared;

    n = (c->tied ? 1 : 2) * h * c->vocab + h;

    for (i = 0; i < c->layers; i++) {
        n += 2 * h + c->q_lora + m->kv_lora + c->q_lora * h
             + (c->q_lora != 0 ? c->q_lora : h) * m->heads
               * (m->nope + m->rope)
             + (m->kv_lora + m->rope) * h
             + (double) m->kv_lora * m->heads * (m->nope + m->v)
             + h * m->heads * m->v;
        n += model_config_moe(c, i) ? moe : 3 * h * c->inter;
    }

    return n;
}


uint64_t
model_plan_activations(const model_config_t *c, uint32_t max_rows,
    uint32_t max_logits, int mtp, int micro)
{
    uint64_t  heads, row, last, attend, contrib, both, half;

    heads = c->mla.heads;

    /*
     * Attention's queries and results lie where contributions come later; of
     * two micro-batches, those of one beside contributions to both.
     */

    attend = (heads * (c->mla.kv_lora + c->mla.rope) + 15) / 16 * 16
             + heads * c->mla.kv_lora;
    contrib = (uint64_t) c->gate.top_k * c->hidden;

    row = 2 * (uint64_t) c->hidden + c->q_lora
          + heads * (c->mla.nope + c->mla.rope)
          + c->mla.kv_lora + c->mla.rope + heads * c->mla.v;
    both = max_rows * (attend > contrib ? attend : contrib);
    half = micro ? (max_rows + 1) / 2 * attend + max_rows * contrib : 0;
    both = (both > half) ? both : half;
    last = 2 * (uint64_t) c->hidden + c->vocab;

    if (mtp) {
        row += 5 * (uint64_t) c->hidden;
        last += c->hidden;
    }

    /* the router's ids and weights have an element to spare */

    return (row * max_rows + both + last * max_logits
            + 2 * ((uint64_t) max_rows * c->gate.top_k + 1)) * sizeof(float);
}


/* Keys and values of a prompt's tokens, where a device expands them. */

static uint64_t
plan_expanded(const plan_t *p)
{
    uint64_t               heads, tokens, most;
    const model_config_t  *c;

    c = p->c;
    heads = c->mla.heads;

    if (p->opt->exact || c->mla.kv_lora != 512 || c->mla.rope != 64
        || c->mla.nope != 128 || c->mla.v != 128)
    {
        return 0;
    }

    most = (p->opt->max_context != 0) ? p->opt->max_context : c->max_context;
    most = (most + BE_BLOCK - 1) / BE_BLOCK * BE_BLOCK;
    tokens = most < BE_EXPAND_TOKENS ? most : BE_EXPAND_TOKENS;

    return heads * c->mla.nope * c->mla.kv_lora * 2
           + tokens * (c->mla.kv_lora + c->mla.rope) * 2
           + tokens * heads * (c->mla.nope + c->mla.v) * 2
           + (most > tokens ? p->opt->max_rows * heads * (c->mla.v + 2) * 4
                            : 0);
}


/* What experts take in, as be_cuda_act_type() decides it. */

static int
plan_inputs_fp8(const plan_t *p)
{
    if (p->plan->expert_type == BE_INT4 && p->opt->inputs != BE_F32) {
        return p->opt->inputs == BE_F8E4M3;
    }

    return p->plan->expert_type == BE_F8E4M3
           || (p->plan->expert_type == BE_INT4
               && p->plan->dense_type == BE_F8E4M3);
}


static void
plan_buffers(const plan_t *p)
{
    int                          fp8;
    uint64_t                     rows, all, far, pairs, parts, row, layers;
    uint64_t                     n, each, back;
    uint64_t                    *b;
    const model_config_t        *c;
    const model_plan_options_t  *opt;

    c = p->c;
    b = p->plan->bytes;
    opt = p->opt;
    rows = opt->max_rows;
    all = rows * opt->ranks;
    layers = c->layers + (opt->mtp != 0);
    fp8 = plan_inputs_fp8(p);

    b[MODEL_PLAN_ACTIVATIONS] = model_plan_activations(c, opt->max_rows,
                                                       opt->max_logits,
                                                       opt->mtp, opt->micro);

    /* a row as it travels; a rank alone keeps its rows where they are */

    row = fp8 ? (c->hidden + PLAN_SCALES - 1) / PLAN_SCALES
                * (PLAN_SCALES + sizeof(float))
              : (uint64_t) c->hidden * 2;

    if (opt->ranks > 1) {
        b[MODEL_PLAN_EXCHANGE] =
            all * (row + c->gate.top_k * sizeof(int32_t))
            + (opt->exact ? 0 : rows * c->gate.top_k * c->hidden * 2);
    }

    if (opt->nodes > 1) {
        far = opt->ranks - opt->ranks / opt->nodes;
        n = (uint64_t) c->gate.top_k * c->hidden
            * (opt->exact ? sizeof(float) : sizeof(uint16_t));
        b[MODEL_PLAN_EXCHANGE] +=
            far * rows * (row + c->gate.top_k * sizeof(int32_t) + 2 * n);
    }

    each = (p->plan->experts + p->per_card - 1) / p->per_card;
    pairs = ((c->gate.top_k < each) ? c->gate.top_k : each) * all;

    parts = (rows < PLAN_SPLIT ? rows : PLAN_SPLIT) * PLAN_SPLITS;
    parts = parts > rows ? parts : rows;

    /* gate and up in float32, and what follows in the type of a product */

    n = pairs * (row + c->moe_inter * (uint64_t) (fp8 ? 9 : 10) + 20);

    back = opt->exact ? 0 : c->hidden * sizeof(uint16_t);

    if (opt->ranks > 1) {
        n += pairs * back;
    }

    /* what the second micro-batch has of its own */

    if (opt->micro) {
        n += pairs / 2 * (back + 20) + rows / 2 * row;
    }

    n += (rows < PLAN_DENSE ? rows : PLAN_DENSE) * c->inter * 10
         + parts * c->gate.experts * sizeof(float)
         + plan_expanded(p);

    b[MODEL_PLAN_WORKSPACE] = n + n / 4 + PLAN_PRODUCTS;

    /* one graph for each batch of 1, 2, 4, … sequences; none between nodes */

    for (n = 1; n < opt->max_batch && opt->nodes <= 1; n *= 2) {
        b[MODEL_PLAN_GRAPHS] += layers * PLAN_LAUNCHES * PLAN_LAUNCH;
    }

    if (opt->nodes <= 1) {
        b[MODEL_PLAN_GRAPHS] += layers * PLAN_LAUNCHES * PLAN_LAUNCH;
    }

    for (n = MODEL_PLAN_ACTIVATIONS; n <= MODEL_PLAN_GRAPHS; n++) {
        b[n] *= p->per_card;
    }

    b[MODEL_PLAN_RUNTIME] = PLAN_CONTEXT + (opt->nodes > 1 ? PLAN_NCCL : 0);
}


/*
 * The pool is what was asked for, or what the batch can use of what the card
 * has left.
 */

static void
plan_kv(const plan_t *p)
{
    uint64_t               record, left, want, context;
    model_plan_t          *plan;
    const model_config_t  *c;

    c = p->c;
    plan = p->plan;

    record = (c->mla.kv_lora + c->mla.rope) * 2;

    if (p->opt->kv_fp8) {
        record = c->mla.kv_lora
                 + (c->mla.kv_lora + PLAN_FP8_SCALE - 1) / PLAN_FP8_SCALE
                   * sizeof(float)
                 + c->mla.rope * 2;
    }

    plan->kv_block = record * BE_BLOCK * (c->layers + (p->opt->mtp != 0));

    context = (p->opt->max_context != 0) ? p->opt->max_context
                                         : c->max_context;
    want = (context + BE_BLOCK - 1) / BE_BLOCK * p->opt->max_batch;
    left = (plan->memory > plan->total) ? plan->memory - plan->total : 0;
    left /= p->per_card;

    if (p->opt->kv_memory != 0) {
        want = p->opt->kv_memory / plan->kv_block;

    } else if (left / plan->kv_block < want) {
        want = left / plan->kv_block;
    }

    plan->kv_blocks = (want > PLAN_KV_LEAST) ? want : PLAN_KV_LEAST;
    plan->kv_tokens = plan->kv_blocks * BE_BLOCK;
    plan->max_context = (uint32_t) (plan->kv_tokens < context ? plan->kv_tokens
                                                              : context);
    plan->bytes[MODEL_PLAN_KV] = plan->kv_blocks * plan->kv_block
                                 * p->per_card;
    plan->total += plan->bytes[MODEL_PLAN_KV];
}


/* A context that was asked for has to be possible. */

static void
plan_verdict(const plan_t *p, char *err)
{
    uint64_t             least;
    const model_plan_t  *plan;

    plan = p->plan;
    p->plan->fits = 0;

    if (plan->total > plan->memory) {
        model_error(err, "a card would hold %.1f GiB and has %.1f: "
                    "weights %.1f GiB (of them routed experts %.1f), KV cache "
                    "%.1f, buffers and runtime %.1f", plan->total / PLAN_GIB,
                    plan->memory / PLAN_GIB, plan->weights / PLAN_GIB,
                    plan->bytes[MODEL_PLAN_EXPERTS] / PLAN_GIB,
                    plan->bytes[MODEL_PLAN_KV] / PLAN_GIB,
                    (plan->total - plan->weights - plan->bytes[MODEL_PLAN_KV])
                    / PLAN_GIB);
        return;
    }

    if (p->opt->max_context != 0 && plan->max_context < p->opt->max_context) {
        least = ((uint64_t) p->opt->max_context + BE_BLOCK - 1) / BE_BLOCK
                * plan->kv_block;
        model_error(err, "a context of %u tokens needs %.1f GiB of KV cache, "
                    "a rank has %.1f GiB for it, which holds %llu tokens",
                    p->opt->max_context, least / PLAN_GIB,
                    plan->bytes[MODEL_PLAN_KV] / PLAN_GIB,
                    (unsigned long long) plan->kv_tokens);
        return;
    }

    p->plan->fits = 1;
}
