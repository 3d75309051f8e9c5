/*
 * The ranks of a model in one process, stepped together: for commands that
 * compute without a scheduler, and for tests.
 */

#ifndef CLI_CLI_RANKS_H
#define CLI_CLI_RANKS_H

#include "backend/backend.h"
#include "cli/cli_options.h"
#include "ep/ep_nodes.h"
#include "model/model_balance.h"


typedef struct {
    const char  *backend;            /* "cpu" */
    const char  *kernels;            /* NULL: the best */
    be_dtype_t   compute;
    be_dtype_t   weights;            /* BE_F32: as they are */
    int          absorbed;
    be_dtype_t   expert_inputs;      /* BE_F32: as other matrices' */
    be_dtype_t   kv;                 /* BE_F32: as it computes */
    uint32_t     ranks;
    uint32_t     threads;            /* of each */
    int          pin;                /* CPU of the first, -1: none */
    uint32_t     max_rows;           /* of a step and rank */
    uint32_t     max_logits;
    uint32_t     kv_blocks;          /* of each rank */
    int          mtp;                /* cli_ranks_draft() will be called */
    uint32_t     micro;              /* rows of a step in two micro-batches,
                                        on devices; 0: none is */
    uint32_t     timeout_ms;         /* of the exchange, 0: none */
    uint32_t     redundant;          /* slots of experts beyond one each */
    double       interval;           /* of the balancer, seconds; 0: it counts
                                        only; less: there is none, and whoever
                                        moves experts does so between steps */
    double       gain;               /* least that is worth a move, 0 … 1 */
    int          alone;              /* ranks share no weights */
    int          pack;               /* BF16 weights may be copied */
    int          fixed;              /* one arithmetic on a device, too */
    ep_nodes_t  *nodes;              /* `ranks` on each, NULL: here alone */
} cli_ranks_options_t;

/* What one rank computes in a step, or drafts; n_rows may be 0. */

typedef struct {
    be_batch_t       batch;
    const uint32_t  *logit_row;
    uint32_t         n_logits;
    float           *logits;         /* [n_logits][vocab] */
    const uint32_t  *from;           /* of a draft, see model_draft() */
    uint32_t         pass;
} cli_step_t;

typedef struct cli_ranks_s  cli_ranks_t;


/* NULL with the reason in `err` (ERR_LEN).  The model outlives the ranks. */
cli_ranks_t *cli_ranks_open(model_t *model, const cli_ranks_options_t *opt,
    char *err);
void cli_ranks_close(cli_ranks_t *r);

/* `step` has one entry a rank.  0, or -1 with the first rank's reason. */
int cli_ranks_step(cli_ranks_t *r, const cli_step_t *step, char *err);
int cli_ranks_draft(cli_ranks_t *r, const cli_step_t *step, char *err);

/*
 * The type that the matrices of a model get: what is asked for, or what it was
 * converted to.  0, or -1 with the reason in `err` if these are two.
 */
int cli_ranks_weights(const model_t *model, be_dtype_t *weights, char *err);

model_rank_t *cli_ranks_rank(cli_ranks_t *r, uint32_t rank);

/*
 * Lets the balancer change the placement: before each step of those who step
 * the ranks themselves, while none is in one.  Of several nodes the first
 * one's `move` is everyone's; else it is the own one.  0, or -1 with the
 * reason in `err` (ERR_LEN).
 */
uint64_t cli_ranks_move(const cli_ranks_t *r);
int cli_ranks_turn(cli_ranks_t *r, uint64_t move, char *err);

/*
 * No rank of any node has more rows in the next step, nor in its drafts: as
 * cli_ranks_turn(), what all nodes have agreed on.
 */
void cli_ranks_most(cli_ranks_t *r, uint32_t rows);

/* How busy experts keep this rank; with one rank there is nothing to say. */
void cli_ranks_load(const cli_ranks_t *r, uint32_t rank,
    model_balance_stats_t *st);

be_t *cli_ranks_backend(cli_ranks_t *r, uint32_t rank);

/* The kernel path that the options stand for. */
const char *cli_ranks_path(const cli_ranks_options_t *opt);

/* Whether the backend would keep BF16 weights in an order of its own. */
int cli_ranks_packs(const cli_ranks_options_t *opt);

/*
 * Backend, ranks and threads as the command line says; `auto` computes in
 * BF16 where the processor multiplies it, else in float32.  The rest is 0.
 */
void cli_ranks_options(const cli_engine_t *cli, cli_ranks_options_t *opt);

#endif /* CLI_CLI_RANKS_H */
