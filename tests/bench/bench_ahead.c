/*
 * How long ranks have nothing to do between two steps.
 *
 *     bench_ahead [--ranks 1] [--step-us 8000] [--seconds 3] TOKENIZER-DIR
 *
 * The scheduler over devices that only pass the time: a step sleeps, and draws
 * tokens as a device does.  What follows is nearly as it is under `serve`:
 * tokens go through detokenisers with a stop string, and to memory.  Answers
 * of 200 tokens end, and others to prompts of 100 to 400 begin, all the time.
 * Printed is the time from a step's end to the next one's begin on a rank, the
 * mean over all, for several batches: without steps prepared ahead, with all
 * of them, and with those that it should pay for.
 */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sample/sample_int.h"
#include "sched/sched.h"
#include "tokenizer/tok.h"
#include "tokenizer/tok_stream.h"


#define AHEADS   3
#define ANSWER   200
#define CREDIT   (INT64_MAX / 2)
#define RECORD   512                 /* bytes of a token's record, at most */

typedef struct {
    sched_seq_t   *seq;
    tok_stream_t   stream;
    atomic_int     ended;
    uint8_t        record[RECORD];
} talk_t;

typedef struct {
    uint32_t       ranks;
    uint32_t       step_us;
    uint32_t       seconds;

    tok_t         *tok;
    uint32_t       vocab;
    uint8_t       *known;
    sched_t       *sched;
    atomic_int     failed;
} bench_t;


static bench_t  b;


static uint64_t
now_us(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}


static int
device_step(void *ctx, uint32_t rank, const sched_batch_t *batch,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    uint32_t         i;
    struct timespec  ts;

    (void) ctx;
    (void) rank;
    (void) logits;
    (void) err;

    ts.tv_sec = b.step_us / 1000000;
    ts.tv_nsec = (long) (b.step_us % 1000000) * 1000;
    nanosleep(&ts, NULL);

    for (i = 0; i < n_logits; i++) {
        batch->drawn[i] = (int32_t) (sample_random(batch->id[logit_row[i]],
                                                   batch->pos[logit_row[i]])
                                     * b.vocab);
    }

    return 0;
}


static void
on_accepted(void *data, const sched_accepted_t *a)
{
    (void) data;
    (void) a;
}


static int
on_tokens(void *data, sched_kind_t kind, const sched_token_t *tok, uint32_t n)
{
    size_t             len;
    talk_t            *t = data;
    tok_stream_out_t   out;

    (void) kind;
    (void) n;

    tok_stream_push(&t->stream, tok[0].id, &out);

    len = out.content_len < RECORD ? out.content_len : RECORD;
    memcpy(t->record, out.content, len);
    sched_charge(t->seq, (int64_t) len);

    return out.stopped;
}


static void
on_finish(void *data, const sched_finish_t *f)
{
    talk_t  *t = data;

    if (f->reason == SCHED_E_INTERNAL || f->reason == SCHED_E_LENGTH) {
        atomic_store(&b.failed, 1);
    }

    atomic_store(&t->ended, 1);
}


static void
on_failed(void *ctx, const char *reason)
{
    (void) ctx;
    (void) reason;
    atomic_store(&b.failed, 1);
}


static const sched_ops_t  ops = {
    on_accepted, on_tokens, on_finish, NULL, on_failed
};


static int
talk_begin(talk_t *t, uint64_t number)
{
    uint32_t          i;
    sched_request_t   q;

    static const tok_stop_t  stop = { "</s> never", 10 };

    if (tok_stream_init(&t->stream, b.tok, &stop, 1, TOK_STREAM_RAW) != 0) {
        return -1;
    }

    atomic_store(&t->ended, 0);

    memset(&q, 0, sizeof(q));
    q.data = t;
    q.n_prompt = 100 + (uint32_t) (sample_random(number, 1) * 300);
    q.max_tokens = ANSWER;
    q.params.temperature = 1;
    q.params.top_p = 1;
    q.params.repetition_penalty = 1;
    q.params.seed = number;
    q.ignore_eos = 1;
    q.rank_hint = -1;
    q.credit = CREDIT;
    q.ids = malloc(q.n_prompt * sizeof(int32_t));

    if (q.ids == NULL) {
        return -1;
    }

    for (i = 0; i < q.n_prompt; i++) {
        q.ids[i] = (int32_t) (sample_random(number, 2 + i) * b.vocab);
    }

    return sched_submit(b.sched, &q, &t->seq);
}


static void
talk_end(talk_t *t)
{
    sched_release(t->seq);
    tok_stream_free(&t->stream);
}


static int
bench_open(uint32_t ahead, uint32_t batch)
{
    char              err[SCHED_ERR_LEN];
    sched_options_t   o;

    memset(&o, 0, sizeof(o));
    o.n_ranks = b.ranks;
    o.vocab = b.vocab;
    o.known = b.known;
    o.kv_blocks = batch * 10;
    o.max_context = 640;
    o.max_batch = batch;
    o.prefill_chunk = 512;
    o.queue_max = UINT32_MAX;
    o.prefix_cache = 1;
    o.boot = 1;
    o.step = device_step;
    o.ahead = ahead;
    o.ops = &ops;

    b.sched = sched_open(&o, err);

    if (b.sched == NULL || sched_start(b.sched, err) != 0) {
        fprintf(stderr, "bench_ahead: %s\n", err);
        return -1;
    }

    return 0;
}


/* Those that end are followed by others; the first seconds do not count. */

static int
bench_cell(talk_t *talk, uint32_t n, sched_stats_t *was, sched_stats_t *is)
{
    uint32_t          i;
    uint64_t          from, made, us;
    struct timespec   ts = { 0, 500000 };

    for (made = 0; made < n; made++) {
        if (talk_begin(&talk[made], made) != 0) {
            return -1;
        }
    }

    memset(was, 0, sizeof(sched_stats_t));
    from = now_us();

    do {
        nanosleep(&ts, NULL);

        for (i = 0; i < n; i++) {
            if (atomic_load(&talk[i].ended)) {
                talk_end(&talk[i]);

                if (talk_begin(&talk[i], made++) != 0) {
                    return -1;
                }
            }
        }

        us = now_us() - from;

        if (us > 1000000 && was->steps == 0) {
            sched_stats(b.sched, was);
        }

    } while (us < UINT64_C(1000000) * (1 + b.seconds));

    sched_stats(b.sched, is);
    sched_stop(b.sched);

    for (i = 0; i < n; i++) {
        talk_end(&talk[i]);
    }

    return atomic_load(&b.failed) ? -1 : 0;
}


static int
bench_batch(uint32_t batch)
{
    int             rc;
    double          us[AHEADS], rate[AHEADS], steps;
    talk_t         *talk;
    uint32_t        i;
    sched_stats_t   was, is;

    static const uint32_t  ahead[AHEADS] = { 0, 1, SCHED_AHEAD };

    talk = calloc((size_t) b.ranks * batch, sizeof(talk_t));

    if (talk == NULL) {
        return -1;
    }

    rc = 0;

    for (i = 0; i < AHEADS && rc == 0; i++) {
        rc = bench_open(ahead[i], batch);

        if (rc == 0) {
            rc = bench_cell(talk, b.ranks * batch, &was, &is);
        }

        sched_close(b.sched);

        steps = (double) (is.followed - was.followed);
        us[i] = (double) (is.idle_us - was.idle_us) / steps;
        rate[i] = (double) (is.tokens - was.tokens) / b.seconds;
    }

    if (rc == 0) {
        printf("%5u %7u %8.0f %8.0f %8.0f %12.0f %8.0f %8.0f\n", b.ranks,
               batch, us[0], us[1], us[2], rate[0], rate[1], rate[2]);
        fflush(stdout);
    }

    free(talk);

    return rc;
}


static const char *
options(int argc, char **argv)
{
    int  c;

    static const struct option  list[] = {
        { "ranks", required_argument, NULL, 'r' },
        { "step-us", required_argument, NULL, 'u' },
        { "seconds", required_argument, NULL, 's' },
        { NULL, 0, NULL, 0 }
    };

    b.ranks = 1;
    b.step_us = 8000;
    b.seconds = 3;

    while ((c = getopt_long(argc, argv, "", list, NULL)) != -1) {

        switch (c) {

        case 'r':
            b.ranks = (uint32_t) atoi(optarg);
            break;

        case 'u':
            b.step_us = (uint32_t) atoi(optarg);
            break;

        case 's':
            b.seconds = (uint32_t) atoi(optarg);
            break;

        default:
            return NULL;
        }
    }

    return optind + 1 == argc && b.ranks > 0 && b.seconds > 0
           && b.ranks <= SCHED_RANKS_MAX ? argv[optind] : NULL;
}


int
main(int argc, char **argv)
{
    int          rc;
    char         err[ERR_LEN];
    size_t       i;
    const char  *dir;

    static const uint32_t  batches[] = { 1, 32, 256, 1024 };

    dir = options(argc, argv);

    if (dir == NULL) {
        fprintf(stderr, "bench_ahead: see the head of its source\n");
        return 2;
    }

    b.tok = tok_open(dir, err);

    if (b.tok == NULL) {
        fprintf(stderr, "bench_ahead: %s\n", err);
        return 1;
    }

    b.vocab = tok_size(b.tok);
    b.known = malloc(b.vocab);
    rc = b.known == NULL;

    if (rc == 0) {
        memset(b.known, 1, b.vocab);
        printf("steps of %u us; us idle between two; tokens/s\n"
               "ranks   batch     idle    ahead     auto     tokens/s"
               "    ahead     auto\n",
               b.step_us);
    }

    for (i = 0; i < sizeof(batches) / sizeof(batches[0]) && rc == 0; i++) {
        rc = bench_batch(batches[i]) != 0;
    }

    free(b.known);
    tok_close(b.tok);

    return rc;
}
