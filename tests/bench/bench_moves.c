/*
 * What it costs a step that experts move meanwhile.
 *
 *     bench_moves MODEL-DIR [--ranks N] [--rows N] [--redundant N] [--alone]
 *                 [--steps N]
 *
 * Two engines compute the same steps by turns, phase by phase: one that never
 * moves an expert, and one whose balancer looks as often as it can and moves
 * for any gain.  In each phase all rows are of a few tokens, others in the
 * next, so that experts are used unevenly and never the same for long.  With
 * --alone ranks share no weights, and each move makes some; that takes time
 * where the checkpoint's weights are not used as they are mapped (FP8).
 *
 * Printed: times of a step (mean, median, 99th percentile, the longest), what
 * was moved, and how busy the busiest rank was.
 */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli_ranks.h"


#define PHASES     24
#define PHASE_IDS  6                 /* tokens that a phase is made of */
#define MAX_RANKS  8
#define MAX_ROWS   512
#define CONTEXT    64                /* positions, then from 0 again */

typedef struct {
    int32_t         id[MAX_ROWS];
    uint32_t        pos[MAX_ROWS];
    uint32_t        seq[MAX_ROWS];
    int32_t         block[MAX_ROWS];
    const int32_t  *blocks[MAX_ROWS];
    uint32_t        want[1];
    float          *logits;
} rows_t;

typedef struct {
    const char    *name;
    cli_ranks_t   *ranks;
    double        *ms;
    uint32_t       n;
} engine_t;

static uint32_t  ranks = 2, rows = 32, redundant, steps = 60;
static int       alone;
static rows_t    rows_of[MAX_RANKS];


static double
now_ms(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec * 1e3 + (double) ts.tv_nsec / 1e6;
}


static void
die(const char *what)
{
    fprintf(stderr, "bench_moves: %s\n", what);
    exit(1);
}


static void
engine_open(engine_t *e, model_t *model, const char *name, double interval)
{
    char                  err[ERR_LEN];
    cli_engine_t          cli;
    cli_ranks_options_t   opt;

    memset(&cli, 0, sizeof(cli));
    cli.backend = "cpu";
    cli.ranks = ranks;
    cli.threads = 1;
    cli.compute = CLI_COMPUTE_AUTO;
    cli_ranks_options(&cli, &opt);

    opt.max_rows = rows;
    opt.max_logits = 1;
    opt.kv_blocks = rows;
    opt.redundant = redundant;
    opt.interval = interval;
    opt.alone = alone;

    e->name = name;
    e->ms = calloc((size_t) PHASES * steps, sizeof(double));
    e->ranks = cli_ranks_open(model, &opt, err);

    if (e->ranks == NULL || e->ms == NULL) {
        die(err);
    }
}


static void
engine_phase(engine_t *e, uint32_t vocab, uint32_t phase)
{
    char         err[ERR_LEN];
    double       start;
    rows_t      *r;
    uint32_t     i, k, n;
    cli_step_t   s[MAX_RANKS];

    for (n = 0; n < steps; n++) {
        memset(s, 0, sizeof(s));

        for (i = 0; i < ranks; i++) {
            r = &rows_of[i];

            for (k = 0; k < rows; k++) {
                r->id[k] = (int32_t) ((phase * PHASE_IDS + (k + n * 7 + i)
                                       % PHASE_IDS) * 7919 % vocab);
                r->pos[k] = n % CONTEXT;
                r->seq[k] = k;
                r->block[k] = (int32_t) k;
                r->blocks[k] = &r->block[k];
            }

            s[i].batch.n_rows = rows;
            s[i].batch.id = r->id;
            s[i].batch.pos = r->pos;
            s[i].batch.seq = r->seq;
            s[i].batch.n_seqs = rows;
            s[i].batch.blocks = r->blocks;
            s[i].logit_row = r->want;
            s[i].n_logits = 1;
            s[i].logits = r->logits;
        }

        start = now_ms();

        if (cli_ranks_step(e->ranks, s, err) != 0) {
            die(err);
        }

        e->ms[e->n++] = now_ms() - start;
    }
}


static int
compare(const void *one, const void *two)
{
    double  a = *(const double *) one, b = *(const double *) two;

    return a < b ? -1 : a > b;
}


/* Returns the 99th percentile. */

static double
engine_report(engine_t *e)
{
    double                  sum, max;
    uint32_t                i;
    uint64_t                moves;
    model_balance_stats_t   st;

    for (i = 0, sum = 0; i < e->n; i++) {
        sum += e->ms[i];
    }

    qsort(e->ms, e->n, sizeof(double), compare);

    moves = 0;
    max = 0;

    for (i = 0; i < ranks; i++) {
        cli_ranks_load(e->ranks, i, &st);
        moves += st.moves;
        max = (double) st.load_max > max ? (double) st.load_max : max;
    }

    printf("%-8s %6u steps  mean %7.3f  p50 %7.3f  p99 %7.3f  max %7.3f ms  "
           "%6llu experts moved  worst layer's busiest rank %.2f of the mean\n",
           e->name, e->n, sum / e->n, e->ms[e->n / 2],
           e->ms[e->n * 99 / 100], e->ms[e->n - 1],
           (unsigned long long) moves, max / 1000);

    return e->ms[e->n * 99 / 100];
}


static void
options(int argc, char **argv)
{
    int  c;

    static const struct option  list[] = {
        { "ranks", required_argument, NULL, 'r' },
        { "rows", required_argument, NULL, 'n' },
        { "redundant", required_argument, NULL, 'x' },
        { "steps", required_argument, NULL, 's' },
        { "alone", no_argument, NULL, 'a' },
        { NULL, 0, NULL, 0 }
    };

    while ((c = getopt_long(argc, argv, "", list, NULL)) != -1) {
        switch (c) {

        case 'r':
            ranks = (uint32_t) strtoul(optarg, NULL, 10);
            break;

        case 'n':
            rows = (uint32_t) strtoul(optarg, NULL, 10);
            break;

        case 'x':
            redundant = (uint32_t) strtoul(optarg, NULL, 10);
            break;

        case 's':
            steps = (uint32_t) strtoul(optarg, NULL, 10);
            break;

        case 'a':
            alone = 1;
            break;

        default:
            exit(2);
        }
    }

    if (optind + 1 != argc || ranks < 2 || ranks > MAX_RANKS || rows == 0
        || rows > MAX_ROWS || steps < 10 || steps > 100000)
    {
        die("usage: bench_moves MODEL-DIR [--ranks 2 … 8] [--rows 1 … 512] "
            "[--redundant N] [--alone] [--steps 10 … 100000]");
    }
}


int
main(int argc, char **argv)
{
    char       err[ERR_LEN];
    double     still, moving;
    model_t   *model;
    uint32_t   i, vocab;
    engine_t   e[2];

    options(argc, argv);
    memset(e, 0, sizeof(e));

    model = model_open(argv[optind], err);
    if (model == NULL) {
        die(err);
    }

    vocab = model_config(model)->vocab;

    for (i = 0; i < ranks; i++) {
        rows_of[i].logits = calloc(vocab, sizeof(float));
        if (rows_of[i].logits == NULL) {
            die("no memory");
        }
    }

    engine_open(&e[0], model, "still", 0);
    engine_open(&e[1], model, "moving", 0.01);

    /* the first steps are the slowest: memory is new */

    for (i = 0; i < 2; i++) {
        engine_phase(&e[i], vocab, 0);
        e[i].n = 0;
    }

    for (i = 0; i < PHASES; i++) {
        engine_phase(&e[i % 2], vocab, i / 2);
        engine_phase(&e[1 - i % 2], vocab, i / 2);
    }

    printf("%s: %u ranks of 1 thread, %u rows each, %u redundant experts, "
           "weights %s\n", argv[optind], ranks, rows, redundant,
           alone ? "of each rank alone" : "shared");

    still = engine_report(&e[0]);
    moving = engine_report(&e[1]);

    printf("p99 with moves / without: %.2f\n", moving / still);

    for (i = 0; i < 2; i++) {
        cli_ranks_close(e[i].ranks);
        free(e[i].ms);
    }

    for (i = 0; i < ranks; i++) {
        free(rows_of[i].logits);
    }

    model_close(model);

    return 0;
}
