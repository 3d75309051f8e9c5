/*
 * One run: sequences through the scheduler as it runs under `serve`, with
 * everything above it left out.
 *
 * A sequence whose first token is there pauses for lack of credit.  Prompts
 * are measured until the last has come so far; answers from the moment when
 * all get credit again until all have ended, so that as many run at any time
 * as were asked for.  Tokens count from that moment on, too: while steps are
 * prepared ahead, there are some more when one pauses.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli_bench.h"
#include "sample/sample_int.h"


#define BENCH_CREDIT  (INT64_MAX / 2)


struct bench_s {
    cli_stack_t       st;
    sched_t          *sched;
    uint8_t          *known;
    uint64_t          runs;
    atomic_uint       made;          /* tokens of this run */

    pthread_mutex_t   lock;
    pthread_cond_t    wake;
    uint32_t          n_started;     /* have a first token */
    uint32_t          n_ended;
    double            all_started;   /* when the last of them had it */
    double            all_ended;
    uint32_t          n;
    int               failed;
    char              err[ERR_LEN];
};

typedef struct {
    bench_t      *bench;
    sched_seq_t  *seq;
    int           started;
} bench_seq_t;

typedef struct {
    uint32_t      n;
    uint32_t      n_prompt;
    uint32_t      n_new;
    uint64_t      seed;              /* of the ids */
    double        prompts;           /* seconds */
    double        answers;
    uint32_t      made;              /* tokens before these */
} bench_run_t;


static int bench_run(bench_t *b, bench_run_t *run, char *err);
static int bench_submit(bench_t *b, bench_seq_t *seq, const bench_run_t *run,
    uint32_t number);
static void bench_wait(bench_t *b, const uint32_t *count, uint32_t n);
static void bench_accepted(void *data, const sched_accepted_t *a);
static int bench_tokens(void *data, sched_kind_t kind,
    const sched_token_t *tok, uint32_t n);
static void bench_finish(void *data, const sched_finish_t *f);
static void bench_failed(void *ctx, const char *reason);
static double bench_now(void);


static const sched_ops_t  bench_ops = {
    bench_accepted, bench_tokens, bench_finish, NULL, bench_failed
};


bench_t *
bench_open(const cli_engine_t *cli, char *err)
{
    bench_t          *b;
    sched_options_t   opt;

    b = calloc(1, sizeof(bench_t));
    if (b == NULL) {
        snprintf(err, ERR_LEN, "no memory");
        return NULL;
    }

    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wake, NULL);

    if (cli_stack_open(&b->st, cli, 0, err) != 0) {
        goto failed;
    }

    cli_stack_sched(&b->st, cli, &opt);

    b->known = malloc(opt.vocab);

    if (b->known == NULL) {
        snprintf(err, ERR_LEN, "no memory");
        goto failed;
    }

    memset(b->known, 1, opt.vocab);

    opt.known = b->known;
    opt.queue_max = UINT32_MAX;
    opt.ops = &bench_ops;
    opt.ops_ctx = b;

    b->sched = sched_open(&opt, err);

    if (b->sched == NULL || sched_start(b->sched, err) != 0) {
        goto failed;
    }

    return b;

failed:

    bench_close(b);

    return NULL;
}


void
bench_close(bench_t *b)
{
    if (b == NULL) {
        return;
    }

    sched_close(b->sched);
    cli_stack_close(&b->st);
    free(b->known);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->wake);
    free(b);
}


const cli_stack_t *
bench_stack(const bench_t *b)
{
    return &b->st;
}


void
bench_stats(const bench_t *b, sched_stats_t *st)
{
    sched_stats(b->sched, st);
}


int
bench_prompts(bench_t *b, uint32_t n, uint32_t n_prompt, double *rate,
    char *err)
{
    bench_run_t  run;

    run.n = n;
    run.n_prompt = n_prompt;
    run.n_new = 1;
    run.seed = ++b->runs;

    if (bench_run(b, &run, err) != 0) {
        return -1;
    }

    *rate = (double) n * n_prompt / run.prompts;

    return 0;
}


/* The same ids each time: what is there of them need not be computed again. */

int
bench_answers(bench_t *b, uint32_t n, uint32_t depth, uint32_t n_new,
    double *rate, char *err)
{
    bench_run_t  run;

    run.n = n;
    run.n_prompt = depth;
    run.n_new = n_new;
    run.seed = 0;

    if (bench_run(b, &run, err) != 0) {
        return -1;
    }

    *rate = ((double) n * n_new - run.made) / run.answers;

    return 0;
}


static int
bench_run(bench_t *b, bench_run_t *run, char *err)
{
    int           rc;
    double        begun;
    uint32_t      i, n;
    bench_seq_t  *seq;

    seq = calloc(run->n, sizeof(bench_seq_t));
    if (seq == NULL) {
        snprintf(err, ERR_LEN, "no memory");
        return -1;
    }

    b->n = run->n;
    b->n_started = 0;
    b->n_ended = 0;
    atomic_store(&b->made, 0);
    begun = bench_now();

    for (n = 0; n < run->n; n++) {
        if (bench_submit(b, &seq[n], run, n) != 0) {
            break;
        }
    }

    rc = (n == run->n) ? 0 : -1;

    if (rc == 0) {
        bench_wait(b, &b->n_started, n);

        run->prompts = b->all_started - begun;
        run->made = atomic_load(&b->made);
        begun = bench_now();
    }

    for (i = 0; i < n; i++) {
        if (rc == 0) {
            sched_credit(b->sched, seq[i].seq, BENCH_CREDIT);
        } else {
            sched_cancel(b->sched, seq[i].seq);
        }
    }

    bench_wait(b, &b->n_ended, n);

    if (b->failed) {
        rc = -1;
    }

    if (rc != 0) {
        memcpy(err, b->err, ERR_LEN);
    }

    run->answers = b->all_ended - begun;

    for (i = 0; i < n; i++) {
        sched_release(seq[i].seq);
    }

    free(seq);

    return rc;
}


static int
bench_submit(bench_t *b, bench_seq_t *seq, const bench_run_t *run,
    uint32_t number)
{
    uint32_t         i;
    sched_request_t  q;

    memset(&q, 0, sizeof(q));
    seq->bench = b;

    q.data = seq;
    q.n_prompt = run->n_prompt;
    q.max_tokens = run->n_new;
    q.params.top_p = 1;
    q.params.repetition_penalty = 1;
    q.ignore_eos = 1;
    q.rank_hint = -1;
    q.credit = 1;

    q.ids = malloc(run->n_prompt * sizeof(int32_t));

    if (q.ids != NULL) {
        for (i = 0; i < run->n_prompt; i++) {
            q.ids[i] = (int32_t) (sample_random(run->seed << 32 | number, i)
                                  * model_config(b->st.model)->vocab);
        }

        if (sched_submit(b->sched, &q, &seq->seq) == 0) {
            return 0;
        }
    }

    snprintf(b->err, ERR_LEN, "no memory");

    return -1;
}


/* Until `*count` is n, or something failed and everything has ended. */

static void
bench_wait(bench_t *b, const uint32_t *count, uint32_t n)
{
    pthread_mutex_lock(&b->lock);

    while (*count < n && b->n_ended < n) {
        pthread_cond_wait(&b->wake, &b->lock);
    }

    pthread_mutex_unlock(&b->lock);
}


static void
bench_accepted(void *data, const sched_accepted_t *a)
{
    (void) data;
    (void) a;
}


static int
bench_tokens(void *data, sched_kind_t kind, const sched_token_t *tok,
    uint32_t n)
{
    bench_t      *b;
    bench_seq_t  *seq = data;

    (void) kind;
    (void) tok;

    b = seq->bench;
    atomic_fetch_add(&b->made, n);

    if (seq->started) {
        return 0;
    }

    seq->started = 1;
    sched_charge(seq->seq, 1);

    pthread_mutex_lock(&b->lock);

    if (++b->n_started == b->n) {
        b->all_started = bench_now();
        pthread_cond_signal(&b->wake);
    }

    pthread_mutex_unlock(&b->lock);

    return 0;
}


static void
bench_finish(void *data, const sched_finish_t *f)
{
    bench_t      *b;
    bench_seq_t  *seq = data;

    b = seq->bench;

    pthread_mutex_lock(&b->lock);

    if (f->message != NULL && !b->failed) {
        b->failed = 1;
        snprintf(b->err, ERR_LEN, "%s", f->message);
    }

    b->n_ended++;
    b->all_ended = bench_now();
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
}


static void
bench_failed(void *ctx, const char *reason)
{
    bench_t  *b = ctx;

    pthread_mutex_lock(&b->lock);
    b->failed = 1;
    snprintf(b->err, ERR_LEN, "%s", reason);
    pthread_mutex_unlock(&b->lock);
}


static double
bench_now(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}
