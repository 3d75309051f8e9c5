/*
 * Ranks in threads: each opens its own backend and drives it alone.
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli_ranks.h"
#include "ep/ep_nccl.h"
#include "ep/ep_tcp.h"
#include "serve/serve.h"


typedef struct {
    cli_ranks_t        *all;
    uint32_t            index;
    pthread_t           thread;
    int                 started;
    be_t               *be;
    model_rank_t       *mr;
    ep_exchange_t      *ex;
    int                 rc;
    char                err[ERR_LEN];
} cli_rank_t;

struct cli_ranks_s {
    model_t              *model;
    cli_ranks_options_t   opt;
    ep_map_t             *map;
    model_balance_t      *balance;   /* of several ranks */
    cli_rank_t           *rank;
    int                   far;       /* others' devices, over NCCL */

    pthread_mutex_t       lock;
    pthread_cond_t        go;
    pthread_cond_t        done;
    uint64_t              round;     /* of work handed out */
    uint32_t              busy;
    int                   stop;
    int                   draft;     /* this round is one */
    const cli_step_t     *step;
};


static int cli_ranks_round(cli_ranks_t *r, const cli_step_t *step, int draft,
    char *err);
static int cli_ranks_exchange(cli_ranks_t *r, char *err);
static int cli_ranks_balance(cli_ranks_t *r, char *err);
static void cli_ranks_loaded(cli_ranks_t *r);
static void cli_ranks_log(void *ctx, int bad, const char *text);
static int cli_ranks_wait(cli_ranks_t *r, char *err);
static void cli_ranks_done(cli_ranks_t *r);
static void *cli_rank_main(void *arg);
static int cli_rank_open(cli_rank_t *rank);


cli_ranks_t *
cli_ranks_open(model_t *model, const cli_ranks_options_t *opt, char *err)
{
    uint32_t      i, all;
    cli_ranks_t  *r;

    r = calloc(1, sizeof(cli_ranks_t));
    if (r == NULL) {
        snprintf(err, ERR_LEN, "no memory for ranks");
        return NULL;
    }

    r->model = model;
    r->opt = *opt;

    if (cli_ranks_weights(model, &r->opt.weights, err) != 0) {
        free(r);
        return NULL;
    }

    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->go, NULL);
    pthread_cond_init(&r->done, NULL);

    all = opt->ranks * (opt->nodes != NULL ? ep_nodes_count(opt->nodes) : 1);

    r->map = ep_map_open(model_config(model)->gate.experts, all,
                         opt->redundant, err);
    if (r->map == NULL) {
        goto failed;
    }

    r->rank = calloc(opt->ranks, sizeof(cli_rank_t));
    if (r->rank == NULL) {
        snprintf(err, ERR_LEN, "no memory for %u ranks", opt->ranks);
        goto failed;
    }

    if (cli_ranks_exchange(r, err) != 0) {
        goto failed;
    }

    r->busy = opt->ranks;

    for (i = 0; i < opt->ranks; i++) {
        if (pthread_create(&r->rank[i].thread, NULL, cli_rank_main,
                           &r->rank[i])
            != 0)
        {
            snprintf(err, ERR_LEN, "no thread for rank %u", i);

            pthread_mutex_lock(&r->lock);
            r->busy -= opt->ranks - i;
            pthread_mutex_unlock(&r->lock);

            (void) cli_ranks_wait(r, NULL);
            goto failed;
        }

        r->rank[i].started = 1;
    }

    if (cli_ranks_wait(r, err) != 0
        || (all > 1 && r->opt.interval >= 0 && cli_ranks_balance(r, err) != 0))
    {
        goto failed;
    }

    cli_ranks_loaded(r);

    return r;

failed:

    cli_ranks_close(r);
    return NULL;
}


static int
cli_ranks_exchange(cli_ranks_t *r, char *err)
{
    int              rc;
    uint32_t         i;
    ep_exchange_t  **ex;
    const be_gate_t  *gate;

    gate = &model_config(r->model)->gate;

    ex = calloc(r->opt.ranks, sizeof(ep_exchange_t *));
    if (ex == NULL) {
        snprintf(err, ERR_LEN, "no memory for the exchange");
        return -1;
    }

    if (r->opt.nodes != NULL && strcmp(r->opt.backend, "cuda") == 0) {
        rc = ep_nccl_open(ex, r->opt.nodes, r->opt.ranks, r->opt.max_rows,
                          gate->top_k, gate->experts,
                          model_config(r->model)->hidden, r->opt.fixed,
                          r->opt.micro, r->opt.timeout_ms, r->opt.backend,
                          err);
        r->far = 1;

    } else if (r->opt.nodes != NULL) {
        rc = ep_tcp_open(ex, r->opt.nodes, r->opt.ranks, r->opt.max_rows,
                         gate->top_k, gate->experts,
                         model_config(r->model)->hidden, r->opt.timeout_ms,
                         err);

    } else if (strcmp(r->opt.backend, "cuda") == 0 && r->opt.ranks == 1) {
        ex[0] = ep_local_open(gate->experts, err);
        rc = (ex[0] != NULL) ? 0 : -1;

    } else if (strcmp(r->opt.backend, "cuda") == 0) {
        rc = ep_peer_open(ex, r->opt.ranks, r->opt.max_rows, gate->top_k,
                          gate->experts, model_config(r->model)->hidden,
                          r->opt.fixed, r->opt.micro, r->opt.timeout_ms,
                          err);

    } else {
        rc = ep_host_open(ex, r->opt.ranks, r->opt.max_rows, gate->top_k,
                          gate->experts, r->opt.timeout_ms, err);
    }

    for (i = 0; i < r->opt.ranks; i++) {
        r->rank[i].all = r;
        r->rank[i].index = i;
        r->rank[i].ex = ex[i];
    }

    free(ex);

    return rc;
}


static void
cli_ranks_loaded(cli_ranks_t *r)
{
    be_t      *be;
    double     seconds;
    uint32_t   i;
    uint64_t   bytes;

    for (i = 0; i < r->opt.ranks; i++) {
        be = r->rank[i].be;

        if (be->loaded == NULL) {
            continue;
        }

        be->loaded(be, &bytes, &seconds);

        if (bytes > 0 && seconds > 0) {
            serve_log(SERVE_INFO, "rank %u: %.2f GB of weights on the device "
                      "in %.1f s, %.2f GB/s", r->rank[i].index,
                      (double) bytes / 1e9, seconds,
                      (double) bytes / 1e9 / seconds);
        }
    }
}


static int
cli_ranks_balance(cli_ranks_t *r, char *err)
{
    uint32_t                   i;
    model_rank_t             **rank;
    model_balance_options_t    opt;

    rank = calloc(r->opt.ranks, sizeof(model_rank_t *));
    if (rank == NULL) {
        snprintf(err, ERR_LEN, "no memory for the balancer");
        return -1;
    }

    for (i = 0; i < r->opt.ranks; i++) {
        rank[i] = r->rank[i].mr;
    }

    opt.interval = r->opt.interval;
    opt.gain = r->opt.gain;
    opt.log = cli_ranks_log;
    opt.log_ctx = r;
    opt.nodes = r->opt.nodes;

    r->balance = model_balance_open(rank, r->opt.ranks, &opt, err);
    free(rank);

    return r->balance != NULL ? 0 : -1;
}


static void
cli_ranks_log(void *ctx, int bad, const char *text)
{
    (void) ctx;

    serve_log(bad ? SERVE_WARN : SERVE_INFO, "%s", text);
}


uint64_t
cli_ranks_move(const cli_ranks_t *r)
{
    return r->balance != NULL ? model_balance_move(r->balance) : 0;
}


int
cli_ranks_turn(cli_ranks_t *r, uint64_t move, char *err)
{
    if (move != 0 && (r->balance == NULL
                      || model_balance_turn(r->balance, move) != 0))
    {
        snprintf(err, ERR_LEN, "experts are to move that have not been made "
                 "ready here");
        return -1;
    }

    return 0;
}


void
cli_ranks_most(cli_ranks_t *r, uint32_t rows)
{
    if (r->far) {
        ep_nccl_most(r->rank[0].ex, rows);
    }
}


void
cli_ranks_load(const cli_ranks_t *r, uint32_t rank, model_balance_stats_t *st)
{
    memset(st, 0, sizeof(model_balance_stats_t));

    if (r->balance != NULL) {
        model_balance_stats(r->balance, rank, st);
    }
}


void
cli_ranks_close(cli_ranks_t *r)
{
    uint32_t  i;

    if (r == NULL) {
        return;
    }

    pthread_mutex_lock(&r->lock);
    r->stop = 1;
    pthread_cond_broadcast(&r->go);
    pthread_mutex_unlock(&r->lock);

    for (i = 0; r->rank != NULL && i < r->opt.ranks; i++) {
        if (r->rank[i].started) {
            pthread_join(r->rank[i].thread, NULL);
        }
    }

    model_balance_close(r->balance);

    for (i = 0; r->rank != NULL && i < r->opt.ranks; i++) {
        model_rank_close(r->rank[i].mr);

        if (r->rank[i].be != NULL) {
            r->rank[i].be->close(r->rank[i].be);
        }

        if (r->rank[i].ex != NULL) {
            r->rank[i].ex->close(r->rank[i].ex);
        }
    }

    ep_map_close(r->map);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->go);
    pthread_cond_destroy(&r->done);
    free(r->rank);
    free(r);
}


int
cli_ranks_step(cli_ranks_t *r, const cli_step_t *step, char *err)
{
    return cli_ranks_round(r, step, 0, err);
}


int
cli_ranks_draft(cli_ranks_t *r, const cli_step_t *step, char *err)
{
    return cli_ranks_round(r, step, 1, err);
}


static int
cli_ranks_round(cli_ranks_t *r, const cli_step_t *step, int draft, char *err)
{
    if (cli_ranks_turn(r, cli_ranks_move(r), err) != 0) {
        return -1;
    }

    pthread_mutex_lock(&r->lock);

    r->step = step;
    r->draft = draft;
    r->busy = r->opt.ranks;
    r->round++;
    pthread_cond_broadcast(&r->go);

    pthread_mutex_unlock(&r->lock);

    return cli_ranks_wait(r, err);
}


static int
cli_ranks_wait(cli_ranks_t *r, char *err)
{
    uint32_t  i;

    pthread_mutex_lock(&r->lock);

    while (r->busy != 0) {
        pthread_cond_wait(&r->done, &r->lock);
    }

    pthread_mutex_unlock(&r->lock);

    for (i = 0; i < r->opt.ranks; i++) {
        if (r->rank[i].rc != 0) {
            if (err != NULL) {
                memcpy(err, r->rank[i].err, ERR_LEN);
            }

            return -1;
        }
    }

    return 0;
}


static void
cli_ranks_done(cli_ranks_t *r)
{
    if (--r->busy == 0) {
        pthread_cond_signal(&r->done);
    }
}


static void *
cli_rank_main(void *arg)
{
    int                draft;
    uint64_t           round;
    cli_rank_t        *rank;
    cli_ranks_t       *r;
    const cli_step_t  *step;

    rank = arg;
    r = rank->all;
    round = 0;

    rank->rc = cli_rank_open(rank);

    pthread_mutex_lock(&r->lock);
    cli_ranks_done(r);

    for ( ;; ) {

        while (r->round == round && !r->stop) {
            pthread_cond_wait(&r->go, &r->lock);
        }

        if (r->stop) {
            break;
        }

        round = r->round;
        step = &r->step[rank->index];
        draft = r->draft;
        pthread_mutex_unlock(&r->lock);

        if (draft) {
            rank->rc = model_draft(rank->mr, &step->batch, step->from,
                                   step->pass, step->logit_row,
                                   step->n_logits, step->logits, rank->err);

        } else {
            rank->rc = model_step(rank->mr, &step->batch, step->logit_row,
                                  step->n_logits, step->logits, rank->err);
        }

        pthread_mutex_lock(&r->lock);
        cli_ranks_done(r);
    }

    pthread_mutex_unlock(&r->lock);

    return NULL;
}


static int
cli_rank_open(cli_rank_t *rank)
{
    cli_ranks_t           *r;
    be_options_t           be;
    model_rank_options_t   opt;

    r = rank->all;

    memset(&be, 0, sizeof(be));
    be.compute = r->opt.compute;
    be.weights = r->opt.weights;
    be.absorbed = r->opt.absorbed;
    be.expert_inputs = r->opt.expert_inputs;
    be.kv = r->opt.kv;
    be.threads = r->opt.threads;
    be.rank = rank->index;
    be.path = r->opt.kernels;
    be.pin = (r->opt.pin < 0) ? -1
             : r->opt.pin + (int) (rank->index * r->opt.threads);
    be.alone = r->opt.alone;
    be.pack = r->opt.pack;
    be.fixed = r->opt.fixed;

    rank->be = be_open(r->opt.backend, &be, rank->err);
    if (rank->be == NULL) {
        return -1;
    }

    opt.max_rows = r->opt.max_rows;
    opt.max_logits = r->opt.max_logits;
    opt.kv_blocks = r->opt.kv_blocks;
    opt.mtp = r->opt.mtp;

    rank->mr = model_rank_open(r->model, rank->be, rank->ex, r->map, &opt,
                               rank->err);

    return rank->mr != NULL ? 0 : -1;
}


int
cli_ranks_weights(const model_t *model, be_dtype_t *weights, char *err)
{
    be_dtype_t  packed;

    static const char *const  names[BE_DTYPES] = {
        "auto", "bf16", "fp8", "int8", "int4"
    };

    packed = model_packed_as(model);

    if (packed == BE_F32 || packed == *weights) {
        return 0;
    }

    if (*weights != BE_F32) {
        snprintf(err, ERR_LEN, "--weights: the checkpoint was converted to "
                 "%s; for %s take the one it was made of", names[packed],
                 names[*weights]);
        return -1;
    }

    *weights = packed;

    return 0;
}


model_rank_t *
cli_ranks_rank(cli_ranks_t *r, uint32_t rank)
{
    return r->rank[rank].mr;
}


be_t *
cli_ranks_backend(cli_ranks_t *r, uint32_t rank)
{
    return r->rank[rank].be;
}


const char *
cli_ranks_path(const cli_ranks_options_t *opt)
{
    const char          *best;
    const char *const   *path;

    best = opt->kernels;

    for (path = be_cpu_paths(); best == NULL && *path != NULL; path++) {
        if (path[1] == NULL) {
            best = *path;
        }
    }

    return best != NULL ? best : "";
}


int
cli_ranks_packs(const cli_ranks_options_t *opt)
{
    return opt->compute == BE_BF16 && strcmp(cli_ranks_path(opt), "amx") == 0;
}


void
cli_ranks_options(const cli_engine_t *cli, cli_ranks_options_t *opt)
{
    const char          *best;
    const char *const   *path;

    static const be_dtype_t  types[] = {
        [CLI_WEIGHTS_AUTO] = BE_F32,
        [CLI_WEIGHTS_BF16] = BE_BF16,
        [CLI_WEIGHTS_FP8] = BE_F8E4M3,
        [CLI_WEIGHTS_INT8] = BE_INT8,
        [CLI_WEIGHTS_INT4] = BE_INT4
    };

    memset(opt, 0, sizeof(cli_ranks_options_t));

    opt->backend = cli->backend;
    opt->kernels = cli->kernels;
    opt->ranks = cli->ranks;
    opt->threads = cli->threads;
    opt->pin = (cli->pin == UINT32_MAX) ? -1 : (int) cli->pin;
    opt->redundant = cli->redundant;
    opt->interval = cli->balance_interval;
    opt->gain = cli->balance_gain / 100;
    opt->absorbed = cli->absorbed;
    opt->fixed = cli->deterministic;
    opt->expert_inputs = (cli->expert_inputs == CLI_INPUTS_FP8) ? BE_F8E4M3
                         : (cli->expert_inputs == CLI_INPUTS_BF16) ? BE_BF16
                                                                   : BE_F32;
    opt->kv = (cli->kv_type == CLI_KV_FP8) ? BE_F8E4M3 : BE_F32;
    opt->compute = BE_F32;
    opt->weights = types[cli->weights];

    best = cli->kernels;

    if (best == NULL) {
        for (path = be_cpu_paths(); *path != NULL; path++) {
            best = *path;
        }
    }

    if (cli->compute == CLI_COMPUTE_BF16
        || (cli->compute == CLI_COMPUTE_AUTO
            && strcmp(cli->backend, "cuda") == 0)
        || (cli->compute == CLI_COMPUTE_AUTO && best != NULL
            && (strcmp(best, "avx2") == 0 || strcmp(best, "avx512bf16") == 0
                || strcmp(best, "amx") == 0)))
    {
        opt->compute = BE_BF16;
    }
}
