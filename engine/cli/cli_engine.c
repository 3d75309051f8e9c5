/*
 * Model, tokenizer and ranks, and the step that a scheduler has them do.
 */

#include "cli/cli_engine.h"
#include "cli/cli_nodes.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <xxhash.h>

#include "model/model_plan.h"


#define CLI_COPY_MAX  (UINT64_C(2) << 30)


static int cli_stack_files(cli_stack_t *st, const cli_engine_t *cli,
    int tokenizer, char *err);
static uint64_t cli_stack_fingerprint(const cli_stack_t *st);
static uint32_t cli_kv_blocks(cli_stack_t *st, const cli_engine_t *cli,
    char *err);
static int cli_device(cli_stack_t *st, const cli_engine_t *cli,
    uint32_t *blocks, char *err);
static uint64_t cli_free_memory(void);
static void cli_stack_begin(void *ctx);
static int cli_stack_join(void *ctx, sched_join_t *j, char *err);
static void cli_stack_waker(void *ctx, sched_t *s);
static void cli_stack_woken(void *ctx);
static int cli_stack_step(void *ctx, uint32_t rank, const sched_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err);
static int cli_stack_draft(void *ctx, uint32_t rank,
    const sched_draft_t *draft, const uint32_t *logit_row, uint32_t n_logits,
    float *logits, char *err);
static int cli_stack_draws(model_rank_t *mr, const sched_batch_t *batch,
    char *err);
static void cli_stack_batch(const sched_batch_t *batch, be_batch_t *b);

_Static_assert(sizeof(sample_draw_t) == sizeof(be_draw_t)
               && offsetof(sample_draw_t, u) == offsetof(be_draw_t, u)
               && offsetof(sample_draw_t, top_k) == offsetof(be_draw_t, top_k),
               "draws are handed down as they are");


int
cli_stack_open(cli_stack_t *st, const cli_engine_t *cli, int tokenizer,
    char *err)
{
    memset(st, 0, sizeof(cli_stack_t));

    if (cli_stack_files(st, cli, tokenizer, err) != 0) {
        goto failed;
    }

    cli_ranks_options(cli, &st->opt);

    if (cli_ranks_weights(st->model, &st->opt.weights, err) != 0) {
        goto failed;
    }

    if (cli_engine_load(st->model, cli, &st->opt, err) != 0) {
        goto failed;
    }

    st->fingerprint = cli_stack_fingerprint(st);

    st->opt.mtp = cli->speculate > 0;
    st->opt.max_rows = sched_max_rows(cli->max_batch, cli->prefill_chunk,
                                      cli->speculate);
    st->opt.max_logits = sched_max_logits(cli->max_batch, cli->prefill_chunk,
                                          cli->speculate);
    st->opt.micro = cli_overlap(cli->overlap, cli->ranks * cli->n_nodes,
                                st->opt.max_rows);
    st->block_size = model_kv_block_size(st->model, st->opt.compute,
                                         st->opt.mtp);

    switch (cli_device(st, cli, &st->opt.kv_blocks, err)) {

    case 0:
        break;

    case 1:
        st->opt.kv_blocks = cli_kv_blocks(st, cli, err);

        if (st->opt.kv_blocks != 0) {
            break;
        }

        /* fall through */

    default:
        goto failed;
    }

    if ((uint64_t) st->opt.kv_blocks * 64 < st->max_context) {
        st->max_context = st->opt.kv_blocks * 64;
    }

    st->speculate = cli->speculate;

    if (cli->n_nodes > 1) {
        st->nodes = cli_nodes_open(cli, &st->opt, st->fingerprint, err);

        if (st->nodes == NULL) {
            goto failed;
        }

        st->opt.nodes = st->nodes;
        st->opt.timeout_ms = (uint32_t) (cli->node_timeout * 1000);
    }

    st->ranks = cli_ranks_open(st->model, &st->opt, err);

    if (st->ranks == NULL
        || (st->nodes != NULL && ep_nodes_ready(st->nodes, err) != 0))
    {
        goto failed;
    }

    st->compute = st->opt.compute == BE_BF16 ? "bf16" : "f32";
    st->path = cli_ranks_backend(st->ranks, 0)->path;

    return 0;

failed:

    cli_stack_close(st);

    return -1;
}


/* Model and tokenizer, and what they allow. */

static int
cli_stack_files(cli_stack_t *st, const cli_engine_t *cli, int tokenizer,
    char *err)
{
    const model_config_t  *conf;

    st->model = model_open(cli->model, err);
    if (st->model == NULL) {
        return -1;
    }

    conf = model_config(st->model);

    if (cli->speculate > 0 && conf->mtp_layers == 0) {
        snprintf(err, ERR_LEN, "--speculate: %.300s has no multi-token "
                 "prediction layer to guess with", cli->model);
        return -1;
    }

    if (tokenizer) {
        st->tok = tok_open(cli->model, err);

        if (st->tok == NULL || tok_fits(st->tok, conf->vocab, err) != 0) {
            return -1;
        }
    }

    st->max_context = conf->max_context;

    if (cli->max_context > st->max_context) {
        snprintf(err, ERR_LEN, "--max-context: \"%u\" is more than the "
                 "model's %u", cli->max_context, st->max_context);
        return -1;
    }

    if (cli->max_context != 0) {
        st->max_context = cli->max_context;
    }

    return 0;
}


/* Of all that changes an answer. */

static uint64_t
cli_stack_fingerprint(const cli_stack_t *st)
{
    size_t    n;
    uint64_t  all[3];

    all[0] = model_fingerprint(st->model);
    all[1] = st->tok != NULL ? tok_fingerprint(st->tok) : 0;
    all[2] = st->opt.weights | (uint64_t) st->opt.expert_inputs << 16
             | (uint64_t) st->opt.kv << 32;
    n = (all[2] == BE_F32) ? 2 : 3;

    return XXH3_64bits(all, n * sizeof(all[0])) | 1;
}


void
cli_stack_close(cli_stack_t *st)
{
    cli_ranks_close(st->ranks);
    ep_nodes_close(st->nodes);

    if (st->tok != NULL) {
        tok_close(st->tok);
    }

    if (st->model != NULL) {
        model_close(st->model);
    }

    memset(st, 0, sizeof(cli_stack_t));
}


/*
 * What is small is copied at once and computes faster; what is large would
 * take its time, and twice the memory while the file is cached.  Where the
 * backend has an order of its own for BF16 it does the copying.
 */

int
cli_engine_load(model_t *model, const cli_engine_t *cli,
    cli_ranks_options_t *opt, char *err)
{
    uint64_t  size;

    size = model_size(model);

    /* a device has its own copy */

    if (strcmp(cli->backend, "cpu") != 0) {
        return 0;
    }

    if (cli->load == CLI_LOAD_MAP
        || (cli->load == CLI_LOAD_AUTO
            && (size > CLI_COPY_MAX || size > cli_free_memory() / 4)))
    {
        return 0;
    }

    if (opt->weights == BE_F32 && cli_ranks_packs(opt)) {
        opt->pack = 1;
        return 0;
    }

    return model_load(model, err);
}


/* 0: too few, see err. */

static uint32_t
cli_kv_blocks(cli_stack_t *st, const cli_engine_t *cli, char *err)
{
    uint64_t  want, have, memory;

    want = (uint64_t) cli->max_batch * ((st->max_context + 63) / 64);

    if (cli->kv_memory != 0) {
        want = cli->kv_memory / st->block_size;

    } else {
        memory = cli_free_memory();
        have = memory / 2 / cli->ranks / st->block_size;
        want = memory != 0 && have < want ? have : want;
    }

    if (want < 2) {
        snprintf(err, ERR_LEN, "--kv-memory: %llu bytes hold %llu blocks of "
                 "%zu bytes; at least 2 are needed",
                 (unsigned long long) (want * st->block_size),
                 (unsigned long long) want, st->block_size);
        return 0;
    }

    return want > INT32_MAX / 64 ? INT32_MAX / 64 : (uint32_t) want;
}


/*
 * Plans the memory of devices before anything is loaded into it.  0; 1: there
 * are none; or -1: it does not fit.
 */

static int
cli_device(cli_stack_t *st, const cli_engine_t *cli, uint32_t *blocks,
    char *err)
{
    int                    rc;
    char                   why[ERR_LEN];
    model_plan_t           plan;
    model_plan_options_t   opt;

    memset(&opt, 0, sizeof(opt));

    rc = be_memory(cli->backend, cli->ranks, &opt.memory, &opt.per_card, err);

    if (rc != 0) {
        return rc;
    }

    opt.ranks = cli->ranks * cli->n_nodes;
    opt.nodes = cli->n_nodes;
    opt.weights = st->opt.weights;
    opt.inputs = st->opt.expert_inputs;
    opt.redundant = cli->redundant;
    opt.max_rows = st->opt.max_rows;
    opt.max_logits = st->opt.max_logits;
    opt.max_batch = cli->max_batch;
    opt.max_context = cli->max_context;
    opt.kv_memory = cli->kv_memory;
    opt.kv_fp8 = (cli->kv_type == CLI_KV_FP8);
    opt.mtp = st->opt.mtp;
    opt.exact = st->opt.fixed;
    opt.micro = (st->opt.micro != 0);

    if (model_plan(model_config(st->model), &opt, &plan, err) != 0) {
        return -1;
    }

    if (!plan.fits) {
        memcpy(why, err, ERR_LEN);
        snprintf(err, ERR_LEN, "it does not fit the device: %.450s", why);
        return -1;
    }

    st->block_size = (size_t) plan.kv_block;
    *blocks = (plan.kv_blocks > INT32_MAX / 64) ? INT32_MAX / 64
                                                : (uint32_t) plan.kv_blocks;

    return 0;
}


/* Bytes, 0 if that cannot be found out. */

static uint64_t
cli_free_memory(void)
{
    FILE                *f;
    char                 line[128];
    unsigned long long   kb;

    f = fopen("/proc/meminfo", "re");
    if (f == NULL) {
        return 0;
    }

    kb = 0;

    while (fgets(line, sizeof(line), f) != NULL) {
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1) {
            break;
        }
    }

    fclose(f);

    return (uint64_t) kb * 1024;
}


void
cli_stack_sched(cli_stack_t *st, const cli_engine_t *cli, sched_options_t *opt)
{
    const model_config_t  *conf;

    conf = model_config(st->model);

    memset(opt, 0, sizeof(sched_options_t));

    opt->n_ranks = cli->ranks;
    opt->vocab = conf->vocab;
    opt->kv_blocks = st->opt.kv_blocks;
    opt->max_context = st->max_context;
    opt->max_batch = cli->max_batch;
    opt->prefill_chunk = cli->prefill_chunk;
    opt->touch = conf->gate.experts > 0
                 ? (double) conf->gate.top_k / conf->gate.experts : 0;
    opt->queue_max = cli->queue;
    opt->prefix_cache = (int) cli->prefix_cache;
    opt->cache_seed = st->fingerprint;
    opt->eos = conf->eos;
    opt->n_eos = conf->n_eos;
    opt->step = cli_stack_step;
    opt->begin = cli_stack_begin;
    opt->join = (st->nodes != NULL) ? cli_stack_join : NULL;
    opt->waker = cli_stack_waker;
    opt->step_ctx = st;
    opt->ahead = cli_ahead(cli);
    opt->speculate = cli->speculate;
    opt->speculate_always = cli->speculate_always;
    opt->draft = cli_stack_draft;

    if (getrandom(&opt->boot, sizeof(opt->boot), 0) != sizeof(opt->boot)) {
        opt->boot = (uint64_t) getpid() << 32;
    }

    /* Epochs count up from it. */
    opt->boot |= 1;
    opt->boot &= ~(UINT64_C(1) << 63);
}


/* With other nodes it is done when all have agreed on it. */

static void
cli_stack_begin(void *ctx)
{
    char          err[ERR_LEN];
    cli_stack_t  *st = ctx;

    if (st->nodes == NULL) {
        (void) cli_ranks_turn(st->ranks, cli_ranks_move(st->ranks), err);
    }
}


static int
cli_stack_join(void *ctx, sched_join_t *j, char *err)
{
    int           rc;
    char          why[ERR_LEN];
    cli_stack_t  *st = ctx;

    rc = cli_nodes_join(st->nodes, st->ranks, st->speculate, j, why);

    if (rc == -1) {
        snprintf(err, SCHED_ERR_LEN, "%s", why);
    }

    return rc;
}


static void
cli_stack_woken(void *ctx)
{
    sched_wake(ctx);
}


static void
cli_stack_waker(void *ctx, sched_t *s)
{
    cli_stack_t  *st = ctx;

    ep_nodes_on_wake(st->nodes, s != NULL ? cli_stack_woken : NULL, s);
}


static int
cli_stack_step(void *ctx, uint32_t rank, const sched_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    int            rc;
    char           why[ERR_LEN];
    be_batch_t     b;
    cli_stack_t   *st = ctx;
    model_rank_t  *mr;

    mr = cli_ranks_rank(st->ranks, rank);
    cli_stack_batch(batch, &b);

    model_keep(mr, batch->drafts);
    rc = cli_stack_draws(mr, batch, why);

    if (rc == 0) {
        rc = model_step(mr, &b, logit_row, n_logits, logits, why);
    }

    if (rc != 0) {
        snprintf(err, SCHED_ERR_LEN, "rank %u: %.480s", rank, why);
    }

    return rc;
}


static int
cli_stack_draft(void *ctx, uint32_t rank, const sched_draft_t *draft,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    int            rc;
    char           why[ERR_LEN];
    be_batch_t     b;
    cli_stack_t   *st = ctx;
    model_rank_t  *mr;

    cli_stack_batch(&draft->rows, &b);
    b.first = draft->first;

    mr = cli_ranks_rank(st->ranks, rank);
    rc = cli_stack_draws(mr, &draft->rows, why);

    if (rc == 0) {
        rc = model_draft(mr, &b, draft->from, draft->pass, logit_row,
                         n_logits, logits, why);
    }

    if (rc != 0) {
        snprintf(err, SCHED_ERR_LEN, "rank %u: %.480s", rank, why);
    }

    return rc;
}


static int
cli_stack_draws(model_rank_t *mr, const sched_batch_t *batch, char *err)
{
    if (batch->draw == NULL || batch->known == NULL) {
        return 0;
    }

    return model_draws(mr, (const be_draw_t *) (const void *) batch->draw,
                       batch->known, batch->drawn, err);
}


static void
cli_stack_batch(const sched_batch_t *batch, be_batch_t *b)
{
    memset(b, 0, sizeof(be_batch_t));

    b->n_rows = batch->n_rows;
    b->id = batch->id;
    b->pos = batch->pos;
    b->seq = batch->seq;
    b->n_seqs = batch->n_seqs;
    b->blocks = batch->blocks;
}
