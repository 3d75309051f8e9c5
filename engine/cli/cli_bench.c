/*
 * llm-engine bench: how many tokens per second, of prompts and of answers.
 *
 * For each number of ranks, of threads and of sequences at once: prompts of
 * each length, until each has its first token, and answers after each depth.
 * Every cell is run --repeat times; the figure is the median, with the lowest
 * and the highest beside it, and the time between two steps in which ranks had
 * nothing to do.  With --roof it also stands beside what the machine allows
 * (cli_bench_roof.c).
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli_bench.h"


#define BENCH_REPEAT_MAX  100


typedef struct {
    cli_engine_t   cli;
    cli_list_t     ranks;
    cli_list_t     threads;
    cli_list_t     batch;
    cli_list_t     prompt;
    cli_list_t     depth;
    uint32_t       n_new;
    uint32_t       repeat;
    int            with_roof;
    int            json;

    bench_t       *bench;
    bench_roof_t   roof;
    uint32_t       cells;            /* printed */
    uint32_t       tables;
    char           err[ERR_LEN];
} bench_cmd_t;

typedef struct {
    uint32_t       batch;
    int            prompts;          /* or answers */
    uint32_t       tokens;           /* of a prompt, or before an answer */
    double         rate[BENCH_REPEAT_MAX];
    uint32_t       n;
    sched_stats_t  was;              /* before and after */
    sched_stats_t  is;
} bench_cell_t;


static int bench_team(bench_cmd_t *cmd);
static uint32_t bench_most(const cli_list_t *list);
static int bench_fits(bench_cmd_t *cmd);
static int bench_cell(bench_cmd_t *cmd, bench_cell_t *cell);
static int bench_order(const void *a, const void *b);
static double bench_idle(const bench_cell_t *cell);
static void bench_print(bench_cmd_t *cmd, const bench_cell_t *cell);
static void bench_head(bench_cmd_t *cmd);
static void bench_json_head(bench_cmd_t *cmd);
static void bench_json_cell(const bench_cmd_t *cmd, const bench_cell_t *cell,
    double median, double share);
static double bench_share(const bench_cmd_t *cmd, const bench_cell_t *cell,
    double rate);


int
cli_bench(int argc, char **argv)
{
    int           rc;
    uint32_t      i, j;
    bench_cmd_t   cmd;

    const cli_option_t  own[] = {
        { "ranks", "N,N", CLI_LIST, &cmd.ranks,
          "expert-parallel ranks", 1, 64 },
        { "threads", "N,N", CLI_LIST, &cmd.threads,
          "threads of each rank (default: cores / ranks)", 1, 1024 },
        { "batch", "N,N", CLI_LIST, &cmd.batch,
          "sequences at once, over all ranks", 1, 4096 },
        { "prompt-tokens", "N,N", CLI_LIST, &cmd.prompt,
          "length of a prompt, 0: no prompts", 0, 1e6 },
        { "depth", "N,N", CLI_LIST, &cmd.depth,
          "tokens before an answer", 1, 1e6 },
        { "new-tokens", "N", CLI_UINT, &cmd.n_new,
          "length of an answer, 0: no answers", 0, 1e6 },
        { "repeat", "N", CLI_UINT, &cmd.repeat,
          "runs of each; the median counts", 1, BENCH_REPEAT_MAX },
        { "roof", NULL, CLI_FLAG, &cmd.with_roof,
          "measure what the machine allows, too" },
        { "json", NULL, CLI_FLAG, &cmd.json, "print JSON" },
        { NULL }
    };

    const cli_command_t  command = {
        "bench", NULL, "Measures prompt and generation speed.",
        CLI_G_MODEL|CLI_G_COMPUTE, own, 0
    };

    memset(&cmd, 0, sizeof(cmd));
    cmd.ranks = (cli_list_t) { 1, { 1 } };
    cmd.batch = (cli_list_t) { 3, { 1, 8, 32 } };
    cmd.prompt = (cli_list_t) { 1, { 512 } };
    cmd.depth = (cli_list_t) { 1, { 16 } };
    cmd.n_new = 64;
    cmd.repeat = 3;

    rc = cli_parse(&command, &cmd.cli, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    if (cmd.n_new == 1) {
        cli_error("bench: --new-tokens: \"1\" is the prompt's; 2 or more are "
                  "needed, or 0 for no answers");
        return CLI_EXIT_USAGE;
    }

    rc = 0;

    for (i = 0; i < cmd.ranks.n && rc == 0; i++) {
        cmd.cli.ranks = cmd.ranks.value[i];

        for (j = 0; j < cmd.threads.n && rc == 0; j++) {
            cmd.cli.threads = cmd.threads.value[j];
            rc = bench_team(&cmd);
        }

        if (cmd.threads.n == 0) {
            cmd.cli.threads = cli_threads(cmd.cli.ranks);
            rc = bench_team(&cmd);
        }
    }

    if (rc != 0) {
        cli_error("bench: %s", cmd.err);

    } else if (cmd.json) {
        printf("]}\n");
    }

    return rc != 0;
}


/* All cells of one number of ranks and threads. */

static int
bench_team(bench_cmd_t *cmd)
{
    int            rc;
    double         unused;
    uint32_t       i, j;
    bench_cell_t   cell;

    if (bench_fits(cmd) != 0) {
        return -1;
    }

    cmd->bench = bench_open(&cmd->cli, cmd->err);
    if (cmd->bench == NULL) {
        return -1;
    }

    rc = 0;

    if (cmd->with_roof) {
        rc = bench_roof(cmd->bench, cmd->cli.ranks * cmd->cli.threads,
                        &cmd->roof, cmd->err);
    }

    /* Weights are read from disk by the first step: not what is measured. */

    if (rc == 0) {
        rc = bench_prompts(cmd->bench, 1, 2, &unused, cmd->err);
    }

    if (rc == 0) {
        bench_head(cmd);
    }

    for (i = 0; i < cmd->batch.n && rc == 0; i++) {
        cell.batch = cmd->batch.value[i];

        cell.prompts = 1;

        for (j = 0; j < cmd->prompt.n && rc == 0; j++) {
            cell.tokens = cmd->prompt.value[j];
            rc = (cell.tokens != 0) ? bench_cell(cmd, &cell) : 0;
        }

        cell.prompts = 0;

        for (j = 0; j < cmd->depth.n && rc == 0; j++) {
            cell.tokens = cmd->depth.value[j];
            rc = (cmd->n_new != 0) ? bench_cell(cmd, &cell) : 0;
        }
    }

    bench_close(cmd->bench);

    return rc;
}


static uint32_t
bench_most(const cli_list_t *list)
{
    uint32_t  i, most;

    most = 0;

    for (i = 0; i < list->n; i++) {
        most = (list->value[i] > most) ? list->value[i] : most;
    }

    return most;
}


/* Room for the largest cell, unless the command line says otherwise. */

static int
bench_fits(bench_cmd_t *cmd)
{
    uint32_t  need, answer;

    need = bench_most(&cmd->prompt) + 1;
    answer = (cmd->n_new != 0) ? bench_most(&cmd->depth) + cmd->n_new : 0;
    need = (answer > need) ? answer : need;

    if (cmd->cli.max_context != 0 && cmd->cli.max_context < need) {
        snprintf(cmd->err, ERR_LEN, "--max-context: \"%u\" is less than the "
                 "%u tokens of the longest run", cmd->cli.max_context, need);
        return -1;
    }

    cmd->cli.max_context = need;
    cmd->cli.max_batch = bench_most(&cmd->batch);

    return 0;
}


static int
bench_cell(bench_cmd_t *cmd, bench_cell_t *cell)
{
    int                 rc;
    uint64_t            blocks, have;
    const cli_stack_t  *st;

    /* Sequences that push each other out of memory measure something else. */

    st = bench_stack(cmd->bench);
    blocks = ((uint64_t) cell->tokens + (cell->prompts ? 1 : cmd->n_new) + 63)
             / 64;
    have = st->opt.kv_blocks;

    if ((cell->batch + cmd->cli.ranks - 1) / cmd->cli.ranks * blocks > have) {
        snprintf(cmd->err, ERR_LEN, "%u sequences of %llu blocks do not fit "
                 "into the %llu that each of %u ranks has; see --kv-memory",
                 cell->batch, (unsigned long long) blocks,
                 (unsigned long long) have, cmd->cli.ranks);
        return -1;
    }

    bench_stats(cmd->bench, &cell->was);

    for (cell->n = 0; cell->n < cmd->repeat; cell->n++) {

        rc = cell->prompts
             ? bench_prompts(cmd->bench, cell->batch, cell->tokens,
                             &cell->rate[cell->n], cmd->err)
             : bench_answers(cmd->bench, cell->batch, cell->tokens,
                             cmd->n_new, &cell->rate[cell->n], cmd->err);

        if (rc != 0) {
            return -1;
        }
    }

    bench_stats(cmd->bench, &cell->is);

    qsort(cell->rate, cell->n, sizeof(double), bench_order);
    bench_print(cmd, cell);

    return 0;
}


static int
bench_order(const void *a, const void *b)
{
    double  x, y;

    x = *(const double *) a;
    y = *(const double *) b;

    return (x > y) - (x < y);
}


/* Of what the roof allows; 0 without one. */

static double
bench_share(const bench_cmd_t *cmd, const bench_cell_t *cell, double rate)
{
    const model_config_t  *c;

    if (!cmd->with_roof) {
        return 0;
    }

    c = model_config(bench_stack(cmd->bench)->model);

    return rate / (cell->prompts
                   ? bench_roof_prompts(&cmd->roof, cell->tokens)
                   : bench_roof_answers(&cmd->roof, &c->gate, cell->batch));
}


/* Microseconds that a rank had nothing to do between two steps. */

static double
bench_idle(const bench_cell_t *cell)
{
    uint64_t  us, n;

    us = cell->is.idle_us - cell->was.idle_us;
    n = cell->is.followed - cell->was.followed;

    return n > 0 ? (double) us / (double) n : 0;
}


static void
bench_print(bench_cmd_t *cmd, const bench_cell_t *cell)
{
    char    what[32];
    double  median, share;

    median = (cell->rate[cell->n / 2] + cell->rate[(cell->n - 1) / 2]) / 2;
    share = bench_share(cmd, cell, median);

    if (cmd->json) {
        bench_json_cell(cmd, cell, median, share);

    } else {
        snprintf(what, sizeof(what), "%s %u",
                 cell->prompts ? "prompt of" : "new after", cell->tokens);

        printf("%5u %7u %5u  %-16s %10.1f  [%.1f - %.1f]", cmd->cli.ranks,
               cmd->cli.threads, cell->batch, what, median, cell->rate[0],
               cell->rate[cell->n - 1]);

        if (cmd->with_roof) {
            printf("  %.1f %% of roof", share * 100);
        }

        printf("  %.0f us idle", bench_idle(cell));

        if (cmd->cli.speculate > 0 && !cell->prompts) {
            printf("  %llu of %llu guesses right",
                   (unsigned long long) (cell->is.hits - cell->was.hits),
                   (unsigned long long) (cell->is.drafted
                                         - cell->was.drafted));
        }

        printf("\n");
    }

    fflush(stdout);
    cmd->cells++;
}


static void
bench_head(bench_cmd_t *cmd)
{
    const cli_stack_t     *st;
    const bench_roof_t    *r;
    const model_config_t  *c;

    st = bench_stack(cmd->bench);
    c = model_config(st->model);
    r = &cmd->roof;

    if (cmd->json) {
        bench_json_head(cmd);
        return;
    }

    if (cmd->tables++ == 0) {
        printf("%s, %u layers, hidden %u, vocabulary %u; %s, %s, prefill "
               "chunk %u\n", c->type, c->layers, c->hidden, c->vocab,
               st->path, st->compute, cmd->cli.prefill_chunk);
    }

    if (cmd->with_roof) {
        printf("\nroof of %u thread%s: %.1f GB/s read, %.2f MB of weights a "
               "token;\n%.1f GFLOP/s (%s), attention %.1f (%s), router %.1f "
               "(%s)\n", r->threads, r->threads == 1 ? "" : "s",
               r->read / 1e9, r->cost.bytes / 1e6, r->matrix / 1e9,
               r->matrix_name, r->attend / 1e9, r->attend_name,
               r->router / 1e9, r->router_name);
    }

    if (cmd->tables == 1 || cmd->with_roof) {
        printf("\nranks threads batch  %-16s   tokens/s  [lowest - highest]\n",
               "tokens");
    }

    fflush(stdout);
}


static void
bench_json_head(bench_cmd_t *cmd)
{
    const cli_stack_t     *st;
    const model_config_t  *c;

    if (cmd->tables++ != 0) {
        return;
    }

    st = bench_stack(cmd->bench);
    c = model_config(st->model);

    printf("{\"model\":\"%s\",\"layers\":%u,\"hidden\":%u,\"vocab\":%u,"
           "\"kernels\":\"%s\",\"compute\":\"%s\",\"prefill_chunk\":%u,"
           "\"new_tokens\":%u,\"repeat\":%u,\"results\":[", c->type,
           c->layers, c->hidden, c->vocab, st->path, st->compute,
           cmd->cli.prefill_chunk, cmd->n_new, cmd->repeat);
}


static void
bench_json_cell(const bench_cmd_t *cmd, const bench_cell_t *cell,
    double median, double share)
{
    uint32_t             i;
    const bench_roof_t  *r;

    r = &cmd->roof;

    printf("%s\n{\"ranks\":%u,\"threads\":%u,\"batch\":%u,\"kind\":\"%s\","
           "\"tokens\":%u,\"tokens_per_second\":%.2f,\"runs\":[",
           cmd->cells > 0 ? "," : "", cmd->cli.ranks, cmd->cli.threads,
           cell->batch, cell->prompts ? "prompt" : "new", cell->tokens,
           median);

    for (i = 0; i < cell->n; i++) {
        printf("%s%.2f", i > 0 ? "," : "", cell->rate[i]);
    }

    printf("],\"idle_us\":%.1f", bench_idle(cell));

    if (cmd->cli.speculate > 0) {
        printf(",\"guessed\":%llu,\"guessed_right\":%llu",
               (unsigned long long) (cell->is.drafted - cell->was.drafted),
               (unsigned long long) (cell->is.hits - cell->was.hits));
    }

    if (cmd->with_roof) {
        printf(",\"roof_share\":%.4f,\"read_gb\":%.2f,\"token_mb\":%.3f,"
               "\"matrix_gflop\":%.1f,\"matrix_instruction\":\"%s\","
               "\"attend_gflop\":%.1f,\"attend_instruction\":\"%s\","
               "\"router_gflop\":%.1f,\"router_instruction\":\"%s\"", share,
               r->read / 1e9, r->cost.bytes / 1e6, r->matrix / 1e9,
               r->matrix_name, r->attend / 1e9, r->attend_name,
               r->router / 1e9, r->router_name);
    }

    printf("}");
}
