/*
 * What the files of `llm-engine bench` share.
 *
 *     cli_bench.c        options, the cells of the table, printing
 *     cli_bench_run.c    one run: sequences through the scheduler
 *     cli_bench_roof.c   what the machine could do
 */

#ifndef CLI_CLI_BENCH_H
#define CLI_CLI_BENCH_H

#include "cli/cli_engine.h"


typedef struct bench_s  bench_t;

/* Peaks of one number of threads in all, and what a token costs. */

typedef struct {
    uint32_t      threads;
    double        read;              /* bytes per second */
    double        matrix;            /* operations per second, by kind */
    double        attend;
    double        router;
    const char   *matrix_name;       /* the instructions */
    const char   *attend_name;
    const char   *router_name;
    model_cost_t  cost;
} bench_roof_t;


/*
 * A model and a scheduler, open for runs.  NULL with the reason in `err`
 * (ERR_LEN).
 */
bench_t *bench_open(const cli_engine_t *cli, char *err);
void bench_close(bench_t *b);

const cli_stack_t *bench_stack(const bench_t *b);

/*
 * `n` sequences at once.  bench_prompts(): tokens per second until each has
 * its first token, every prompt a new one.  bench_answers(): tokens per second
 * of the tokens, n_new each, that follow `depth` and the first ones, all begun
 * at the same moment.  0, or -1 with the reason in `err` (ERR_LEN).
 */
int bench_prompts(bench_t *b, uint32_t n, uint32_t n_prompt, double *rate,
    char *err);
int bench_answers(bench_t *b, uint32_t n, uint32_t depth, uint32_t n_new,
    double *rate, char *err);

/* What the scheduler has counted so far. */
void bench_stats(const bench_t *b, sched_stats_t *st);

/* Measures; -1 without memory for it. */
int bench_roof(const bench_t *b, uint32_t threads, bench_roof_t *roof,
    char *err);

/* The most tokens per second that the roof allows. */
double bench_roof_prompts(const bench_roof_t *roof, uint32_t n_prompt);
double bench_roof_answers(const bench_roof_t *roof, const be_gate_t *gate,
    uint32_t n);

#endif /* CLI_CLI_BENCH_H */
