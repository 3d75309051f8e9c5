/*
 * Time to first token when prompts begin alike: computed, found in memory, and
 * read from disk by the next engine.
 *
 *     bench_prefix --model DIR [--cache-dir DIR] [option...]
 *
 * `requests` prompts of `prefix` shared tokens and `own` others, one after the
 * other: the first computes, the others find.  With a directory for the disk
 * tier all is closed then, model and ranks too, and opened again, `restarts`
 * times: the first request finds the prefix on disk.  With --cold its files
 * are dropped from the page cache before.
 */

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli_engine.h"
#include "sample/sample_int.h"


#define SAMPLES  1024

typedef struct {
    uint32_t        prefix;
    uint32_t        own;
    uint32_t        requests;
    uint32_t        restarts;
    int             cold;
    cli_engine_t    cli;

    cli_stack_t     st;
    sched_t        *sched;
    uint8_t        *known;
    uint64_t        seed;            /* of tokens that no prompt shares */

    pthread_mutex_t lock;
    pthread_cond_t  wake;
    int             ended;
    sched_finish_t  f;
} bench_t;

typedef struct {
    double    ms[SAMPLES];
    uint32_t  n;
    uint32_t  cached;
} bench_times_t;


static void
on_accepted(void *data, const sched_accepted_t *a)
{
    (void) data;
    (void) a;
}


static int
on_tokens(void *data, sched_kind_t kind, const sched_token_t *tok, uint32_t n)
{
    (void) data;
    (void) kind;
    (void) tok;
    (void) n;

    return 0;
}


static void
on_finish(void *data, const sched_finish_t *f)
{
    bench_t  *b = data;

    pthread_mutex_lock(&b->lock);
    b->f = *f;
    b->ended = 1;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
}


static void
on_failed(void *ctx, const char *reason)
{
    (void) ctx;
    fprintf(stderr, "bench_prefix: %s\n", reason);
    exit(1);
}


static const sched_ops_t  ops = {
    .accepted = on_accepted,
    .tokens = on_tokens,
    .finish = on_finish,
    .failed = on_failed
};


static void
on_log(int warning, const char *message)
{
    fprintf(stderr, "bench_prefix: %s%s\n", warning ? "warning: " : "",
            message);
}


static uint64_t
now_us(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}


static int
engine_open(bench_t *b)
{
    char             err[SCHED_ERR_LEN];
    sched_options_t  opt;

    if (cli_stack_open(&b->st, &b->cli, 0, err) != 0) {
        goto failed;
    }

    cli_stack_sched(&b->st, &b->cli, &opt);
    cli_stack_disk(&b->st, &b->cli, &opt, on_log);

    b->known = malloc(opt.vocab);

    if (b->known == NULL) {
        snprintf(err, sizeof(err), "no memory");
        goto failed;
    }

    memset(b->known, 1, opt.vocab);
    opt.known = b->known;
    opt.ops = &ops;
    opt.ops_ctx = b;

    b->sched = sched_open(&opt, err);

    if (b->sched == NULL || sched_start(b->sched, err) != 0) {
        goto failed;
    }

    return 0;

failed:

    fprintf(stderr, "bench_prefix: %s\n", err);
    return -1;
}


static void
engine_close(bench_t *b)
{
    sched_stop(b->sched);
    sched_keep(b->sched, 60000000);
    sched_close(b->sched);
    cli_stack_close(&b->st);
    free(b->known);
    b->sched = NULL;
    b->known = NULL;
}


/* One request: `shared` names the prefix. */

static int
ask(bench_t *b, uint64_t shared, bench_times_t *t)
{
    uint32_t          i, vocab;
    sched_seq_t      *seq;
    sched_request_t   r;

    vocab = model_config(b->st.model)->vocab;

    memset(&r, 0, sizeof(r));
    r.data = b;
    r.n_prompt = b->prefix + b->own;
    r.ids = malloc(r.n_prompt * sizeof(int32_t));

    if (r.ids == NULL) {
        return -1;
    }

    for (i = 0; i < r.n_prompt; i++) {
        r.ids[i] = (int32_t) (sample_random(i < b->prefix ? shared : b->seed,
                                            i) * vocab);
    }

    b->seed++;

    r.max_tokens = 1;
    r.params.top_p = 1;
    r.params.repetition_penalty = 1;
    r.ignore_eos = 1;
    r.rank_hint = -1;
    r.credit = INT32_MAX;
    r.submitted_us = now_us();

    b->ended = 0;

    if (sched_submit(b->sched, &r, &seq) != 0) {
        return -1;
    }

    pthread_mutex_lock(&b->lock);

    while (!b->ended) {
        pthread_cond_wait(&b->wake, &b->lock);
    }

    pthread_mutex_unlock(&b->lock);
    sched_release(seq);

    if (b->f.reason != SCHED_LENGTH) {
        fprintf(stderr, "bench_prefix: a request failed: %s\n",
                b->f.message != NULL ? b->f.message : "?");
        return -1;
    }

    if (t->n < SAMPLES) {
        t->ms[t->n++] = (double) (b->f.first_us - b->f.submitted_us) / 1000;
    }

    t->cached = b->f.n_cached;

    return 0;
}


static int
by_size(const void *a, const void *b)
{
    const double  *x = a;
    const double  *y = b;

    return *x < *y ? -1 : *x > *y;
}


static void
show(const char *what, bench_times_t *t, double miss)
{
    double  median;

    if (t->n == 0) {
        return;
    }

    qsort(t->ms, t->n, sizeof(double), by_size);
    median = t->ms[t->n / 2];

    printf("%-10s %9.1f ms  %9.1f … %9.1f  %5u cached", what, median,
           t->ms[0], t->ms[t->n - 1], t->cached);

    if (miss > 0) {
        printf("  %5.1f %% of a miss", 100 * median / miss);
    }

    printf("\n");
}


/* Has the kernel forget the directory's files. */

static void
forget(const char *path)
{
    int             fd;
    DIR            *dir;
    struct dirent  *e;

    dir = opendir(path);

    while (dir != NULL && (e = readdir(dir)) != NULL) {
        fd = openat(dirfd(dir), e->d_name, O_RDONLY);

        if (fd != -1) {
            (void) fdatasync(fd);
            (void) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            close(fd);
        }
    }

    if (dir != NULL) {
        closedir(dir);
    }
}


int
main(int argc, char **argv)
{
    int            rc;
    double         miss_ms;
    bench_t        b;
    uint32_t       i;
    uint64_t       shared;
    const char    *dir;
    bench_times_t  miss, hit, read;

    memset(&b, 0, sizeof(b));
    memset(&miss, 0, sizeof(miss));
    memset(&hit, 0, sizeof(hit));
    memset(&read, 0, sizeof(read));

    dir = NULL;
    b.prefix = 4096;
    b.own = 32;
    b.requests = 64;
    b.restarts = 5;

    const cli_option_t  own[] = {
        { "prefix", "N", CLI_UINT, &b.prefix, "tokens in common", 1, 1e6 },
        { "own", "N", CLI_UINT, &b.own, "tokens behind them", 1, 1e6 },
        { "requests", "N", CLI_UINT, &b.requests, "prompts", 2, SAMPLES },
        { "restarts", "N", CLI_UINT, &b.restarts, "of the engine", 1, 100 },
        { "cache-dir", "DIR", CLI_STRING, &dir, "of the disk tier" },
        { "cold", NULL, CLI_FLAG, &b.cold, "drop its files from memory" },
        { NULL }
    };

    const cli_command_t  cmd = {
        "bench_prefix", NULL, "Time to first token of prompts that begin "
        "alike.", CLI_G_MODEL|CLI_G_COMPUTE, own, 0
    };

    rc = cli_parse(&cmd, &b.cli, argc, argv);

    if (rc >= 0) {
        return rc;
    }

    b.cli.kv_cache_dir = dir;
    b.seed = now_us() << 20;
    shared = b.seed + (1u << 18);
    pthread_mutex_init(&b.lock, NULL);
    pthread_cond_init(&b.wake, NULL);

    if (engine_open(&b) != 0) {
        return 1;
    }

    /* Other prefixes first, so that a miss is measured more than once. */

    for (i = 0; i < 3; i++) {
        if (ask(&b, b.seed + (1u << 19) + i, &miss) != 0) {
            return 1;
        }
    }

    for (i = 0; i < b.requests; i++) {
        if (ask(&b, shared, i == 0 ? &miss : &hit) != 0) {
            return 1;
        }
    }

    show("miss", &miss, 0);
    miss_ms = miss.ms[miss.n / 2];
    show("memory", &hit, miss_ms);

    for (i = 0; dir != NULL && i < b.restarts; i++) {
        engine_close(&b);

        if (b.cold) {
            forget(dir);
        }

        if (engine_open(&b) != 0 || ask(&b, shared, &read) != 0) {
            return 1;
        }
    }

    show("disk", &read, miss_ms);
    engine_close(&b);
    pthread_cond_destroy(&b.wake);
    pthread_mutex_destroy(&b.lock);

    return 0;
}
