/*
 * Everything below the scheduler, opened as the command line says: model,
 * tokenizer, ranks; for commands that run a scheduler on top.
 */

#ifndef CLI_CLI_ENGINE_H
#define CLI_CLI_ENGINE_H

#include "cli/cli_options.h"
#include "cli/cli_ranks.h"
#include "model/model.h"
#include "sched/sched.h"
#include "tokenizer/tok.h"


typedef struct {
    model_t              *model;
    tok_t                *tok;
    cli_ranks_t          *ranks;
    ep_nodes_t           *nodes;     /* NULL: this one alone */
    uint32_t              speculate;
    cli_ranks_options_t   opt;       /* as opened */
    uint32_t              max_context;
    uint64_t              fingerprint;   /* of model, weights, tokenizer */
    const char           *compute;   /* "f32", "bf16" */
    const char           *path;      /* of kernels */
    size_t                block_size;    /* bytes of a KV block */
    kv_disk_options_t     disk;
} cli_stack_t;


/*
 * 0, or -1 with the reason in `err` (ERR_LEN) and nothing left open.
 * `cli->max_context` 0 is the model's own.  The KV pool of each rank is what
 * `cli->kv_memory` says, or what max_batch sequences of max_context tokens
 * need, but at most half of the free memory over all ranks.  Without
 * `tokenizer` none is read, and `tok` stays NULL.
 */
int cli_stack_open(cli_stack_t *st, const cli_engine_t *cli, int tokenizer,
    char *err);
void cli_stack_close(cli_stack_t *st);

/*
 * Maps or copies the weights as --load says, for ranks to be opened with
 * `opt`.  0, or -1 with the reason in `err` (ERR_LEN).
 */
int cli_engine_load(model_t *model, const cli_engine_t *cli,
    cli_ranks_options_t *opt, char *err);

/* The part of a scheduler's options that follows from the stack. */
void cli_stack_sched(cli_stack_t *st, const cli_engine_t *cli,
    sched_options_t *opt);

/*
 * Adds the disk tier that the command line asks for, if it does; `log` is
 * told what kv_disk.h says.
 */
void cli_stack_disk(cli_stack_t *st, const cli_engine_t *cli,
    sched_options_t *opt, void (*log)(int warning, const char *message));

#endif /* CLI_CLI_ENGINE_H */
