/*
 * What a long prompt costs the streams beside it, and they it.
 *
 *     bench_prefill --model DIR [--streams 8] [--prompt-tokens 32768]
 *                   [--seconds 4] [--limit 0] [engine's options]
 *
 * Streams of random ids run; the time between two tokens of one stream is
 * measured without the prompt, for --seconds before it and after it, and while
 * it is computed.  Then the prompt is computed alone.  --limit ends the prompt
 * after so many seconds (0: never) where it would take too long; what was
 * measured until then is printed.
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli_engine.h"
#include "sample/sample_int.h"


#define PHASES   4
#define SAMPLES  (1 << 20)           /* of a phase */

enum { WARM = 0, BEFORE, BESIDE, AFTER };

typedef struct {
    float     *ms;                   /* [SAMPLES] between two tokens */
    uint32_t   n;
    uint64_t   busy_us;
    uint64_t   guess_us;
} phase_t;

typedef struct {
    sched_seq_t  *seq;
    double        last;              /* when its last token came */
    int           is_prompt;
    int           started;
    int           ended;
} stream_t;

typedef struct {
    cli_stack_t       st;
    sched_t          *sched;
    pthread_mutex_t   lock;
    pthread_cond_t    wake;
    int               phase;
    phase_t           of[PHASES];
    double            prompt_at;     /* when it had its token */
    char              err[ERR_LEN];
} bench_t;


static bench_t  b;


static double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}


static int
on_tokens(void *data, sched_kind_t kind, const sched_token_t *tok, uint32_t n)
{
    double     t;
    phase_t   *p;
    stream_t  *x = data;

    (void) kind;
    (void) tok;
    (void) n;

    t = now();

    pthread_mutex_lock(&b.lock);

    p = &b.of[b.phase];

    if (x->is_prompt) {
        b.prompt_at = t;

    } else if (x->last != 0 && p->n < SAMPLES) {
        p->ms[p->n++] = (float) ((t - x->last) * 1e3);
    }

    x->last = t;

    if (!x->started) {
        x->started = 1;
        pthread_cond_broadcast(&b.wake);
    }

    pthread_mutex_unlock(&b.lock);

    return 0;
}


static void
on_accepted(void *data, const sched_accepted_t *a)
{
    (void) data;
    (void) a;
}


static void
on_finish(void *data, const sched_finish_t *f)
{
    stream_t  *x = data;

    pthread_mutex_lock(&b.lock);

    if (f->message != NULL) {
        snprintf(b.err, sizeof(b.err), "%s", f->message);
    }

    x->ended = 1;
    pthread_cond_broadcast(&b.wake);
    pthread_mutex_unlock(&b.lock);
}


static void
on_failed(void *ctx, const char *reason)
{
    (void) ctx;
    (void) reason;
}


static const sched_ops_t  ops = {
    on_accepted, on_tokens, on_finish, NULL, on_failed
};


/* Waits until it began or ended, or until `until`; whether it began. */

static int
wait_for(stream_t *x, double until)
{
    int              rc;
    struct timespec  ts;

    ts.tv_sec = (time_t) until;
    ts.tv_nsec = (long) ((until - (double) ts.tv_sec) * 1e9);

    pthread_mutex_lock(&b.lock);

    for (rc = 0; rc == 0 && !x->started && !x->ended; /* void */ ) {
        rc = pthread_cond_timedwait(&b.wake, &b.lock, &ts);
    }

    rc = x->started;
    pthread_mutex_unlock(&b.lock);

    return rc;
}


static void
set_phase(int phase)
{
    sched_stats_t  st;

    sched_stats(b.sched, &st);

    pthread_mutex_lock(&b.lock);

    b.of[b.phase].busy_us += st.busy_us;
    b.of[b.phase].guess_us += st.guess_us;
    b.phase = phase;
    b.of[phase].busy_us -= st.busy_us;
    b.of[phase].guess_us -= st.guess_us;

    pthread_mutex_unlock(&b.lock);
}


static void
pause_for(double seconds)
{
    struct timespec  ts;

    ts.tv_sec = (time_t) seconds;
    ts.tv_nsec = (long) ((seconds - (double) ts.tv_sec) * 1e9);
    nanosleep(&ts, NULL);
}


static int
submit(stream_t *x, uint32_t number, uint32_t n_prompt, uint32_t max_tokens)
{
    uint32_t         i;
    sched_request_t  q;

    memset(&q, 0, sizeof(q));
    q.ids = malloc(n_prompt * sizeof(int32_t));

    if (q.ids == NULL) {
        return -1;
    }

    for (i = 0; i < n_prompt; i++) {
        q.ids[i] = (int32_t) (sample_random(number, i)
                              * model_config(b.st.model)->vocab);
    }

    q.data = x;
    q.n_prompt = n_prompt;
    q.max_tokens = max_tokens;
    q.params.top_p = 1;
    q.params.repetition_penalty = 1;
    q.ignore_eos = 1;
    q.rank_hint = -1;
    q.credit = INT64_MAX / 2;

    return sched_submit(b.sched, &q, &x->seq);
}


static void
end(stream_t *x)
{
    if (x->seq == NULL) {
        return;
    }

    sched_cancel(b.sched, x->seq);

    pthread_mutex_lock(&b.lock);

    while (!x->ended) {
        pthread_cond_wait(&b.wake, &b.lock);
    }

    pthread_mutex_unlock(&b.lock);
    sched_release(x->seq);
    x->seq = NULL;
}


static int
compare(const void *a, const void *c)
{
    float  x = *(const float *) a, y = *(const float *) c;

    return (x > y) - (x < y);
}


static double
mean(const phase_t *p)
{
    double    sum;
    uint32_t  i;

    for (sum = 0, i = 0; i < p->n; i++) {
        sum += p->ms[i];
    }

    return p->n > 0 ? sum / p->n : 0;
}


static void
print_phase(const char *name, phase_t *p)
{
    double  m;

    m = mean(p);
    qsort(p->ms, p->n, sizeof(float), compare);

    printf("%-16s %8.2f %8.2f %8.2f %8.2f %9u   %6.2f\n", name, m,
           p->n ? p->ms[p->n / 2] : 0, p->n ? p->ms[p->n * 99 / 100] : 0,
           p->n ? p->ms[p->n - 1] : 0, p->n,
           p->busy_us ? (double) p->guess_us / (double) p->busy_us : 0);
}


static int
open_all(cli_engine_t *cli)
{
    uint8_t          *known;
    uint32_t          i;
    sched_options_t   opt;
    pthread_condattr_t  attr;

    pthread_mutex_init(&b.lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&b.wake, &attr);

    if (cli_stack_open(&b.st, cli, 0, b.err) != 0) {
        return -1;
    }

    cli_stack_sched(&b.st, cli, &opt);

    known = malloc(opt.vocab);
    if (known == NULL) {
        return -1;
    }

    memset(known, 1, opt.vocab);
    opt.known = known;
    opt.queue_max = UINT32_MAX;
    opt.ops = &ops;

    for (i = 0; i < PHASES; i++) {
        b.of[i].ms = malloc(SAMPLES * sizeof(float));
        if (b.of[i].ms == NULL) {
            return -1;
        }
    }

    b.sched = sched_open(&opt, b.err);

    return b.sched != NULL ? sched_start(b.sched, b.err) : -1;
}


int
main(int argc, char **argv)
{
    int           i, rc, whole;
    double        from, beside, alone, base, seconds, limit;
    uint32_t      n_streams, n_prompt;
    stream_t     *x, prompt;
    cli_engine_t  cli;

    const cli_option_t  own[] = {
        { "streams", "N", CLI_UINT, &n_streams, "answers that run", 1, 4096 },
        { "prompt-tokens", "N", CLI_UINT, &n_prompt,
          "length of the prompt", 2, 1e7 },
        { "seconds", "T", CLI_FLOAT, &seconds,
          "of streams alone, before and after", 0.1, 1e4 },
        { "limit", "T", CLI_FLOAT, &limit,
          "seconds for the prompt; 0: none", 0, 1e6 },
        { NULL }
    };

    const cli_command_t  cmd = {
        "bench_prefill", NULL, "Streams beside a long prompt.",
        CLI_G_MODEL|CLI_G_COMPUTE, own, 0
    };

    n_streams = 8;
    n_prompt = 32768;
    seconds = 4;
    limit = 0;

    rc = cli_parse(&cmd, &cli, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    if (cli.max_context == 0) {
        cli.max_context = n_prompt + 8192;
    }

    x = calloc(n_streams, sizeof(stream_t));

    if (x == NULL || open_all(&cli) != 0) {
        cli_error("bench_prefill: %s", b.err);
        return 1;
    }

    for (i = 0; i < (int) n_streams; i++) {
        if (submit(&x[i], (uint32_t) i, 16, b.st.max_context - 16) != 0
            || !wait_for(&x[i], now() + 600))
        {
            cli_error("bench_prefill: stream %d: %s", i, b.err);
            return 1;
        }
    }

    pause_for(1);
    set_phase(BEFORE);
    pause_for(seconds);

    memset(&prompt, 0, sizeof(prompt));
    prompt.is_prompt = 1;
    set_phase(BESIDE);
    from = now();

    if (submit(&prompt, n_streams, n_prompt, 1) != 0) {
        cli_error("bench_prefill: no memory");
        return 1;
    }

    whole = wait_for(&prompt, limit > 0 ? from + limit : 1e9);
    beside = whole ? b.prompt_at - from : now() - from;
    set_phase(AFTER);
    end(&prompt);
    pause_for(seconds);
    set_phase(WARM);

    for (i = 0; i < (int) n_streams; i++) {
        if (x[i].ended) {
            cli_error("bench_prefill: stream %d ended: %s", i, b.err);
            return 1;
        }

        end(&x[i]);
    }

    memset(&prompt, 0, sizeof(prompt));
    prompt.is_prompt = 1;
    from = now();

    if (submit(&prompt, n_streams + 1, n_prompt, 1) != 0) {
        cli_error("bench_prefill: no memory");
        return 1;
    }

    rc = wait_for(&prompt, limit > 0 ? from + limit : 1e9);
    alone = rc ? b.prompt_at - from : now() - from;
    end(&prompt);

    printf("ms between tokens    mean   median      p99      max    tokens"
           "   guess / time\n");
    print_phase("before", &b.of[BEFORE]);
    print_phase("beside prompt", &b.of[BESIDE]);
    print_phase("after", &b.of[AFTER]);

    base = (mean(&b.of[BEFORE]) + mean(&b.of[AFTER])) / 2;

    printf("\n%u streams, prompt of %u tokens, ranks %u, threads %u, %s, "
           "prefill chunk %u\n", n_streams, n_prompt, cli.ranks, cli.threads,
           b.st.path, cli.prefill_chunk);
    printf("mean beside the prompt: %.2f times that without\n",
           mean(&b.of[BESIDE]) / base);
    printf("prompt: %s%.2f s beside the streams, %s%.2f s alone\n",
           whole ? "" : "more than ", beside, rc ? "" : "more than ", alone);

    sched_close(b.sched);
    cli_stack_close(&b.st);

    return 0;
}
