/*
 * The server thread: one loop over sockets, bells and signals.
 */

#include "serve/serve_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "tokenizer/tok_template.h"


#define SERVE_EVENTS      64
#define SERVE_DRAIN_MS    20         /* how often the end is looked for */
#define SERVE_LINGER_MS   100        /* workers read their last events */
#define SERVE_KEEP_US     20000000   /* cached blocks to disk, at the end */
#define SERVE_LANE_FILES  3          /* socket and two bells */
#define SERVE_OTHER_FILES 256


static int serve_open(serve_t *s, char *err);
static void serve_files(const serve_t *s);
static int serve_signals(serve_t *s, char *err);
static int serve_known(serve_t *s, char *err);
static void serve_loop(serve_t *s);
static void serve_event(serve_t *s, const struct epoll_event *ev);
static void serve_on_signal(serve_t *s);
static void serve_drain(serve_t *s);
static int serve_drained(serve_t *s);
static void serve_sweep(serve_t *s, uint64_t now);
static void serve_close(serve_t *s);
static void serve_keep(serve_t *s);
static void serve_on_step(void *ctx);
static void serve_on_failed(void *ctx, const char *reason);
static void serve_on_lost(void *ctx, uint32_t rank, uint64_t tag);


static const sched_ops_t  serve_ops = {
    serve_on_accepted,
    serve_on_tokens,
    serve_on_finish,
    serve_on_step,
    serve_on_failed,
    serve_on_lost
};


uint64_t
serve_now_us(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}


int
serve_run(const serve_options_t *opt, char *err)
{
    int       rc;
    serve_t  *s;

    s = calloc(1, sizeof(serve_t));
    if (s == NULL) {
        snprintf(err, SERVE_ERR_LEN, "no memory");
        return -1;
    }

    s->opt = *opt;
    s->listener = -1;
    s->lock_fd = -1;
    s->epoll = -1;
    s->signals = -1;
    s->board_fd = -1;
    pthread_mutex_init(&s->board_lock, NULL);

    rc = serve_open(s, err);

    if (rc == 0) {
        serve_log(SERVE_NOTICE, "%s", opt->ready);
        serve_loop(s);

        if (atomic_load(&s->failed)) {
            snprintf(err, SERVE_ERR_LEN, "a rank failed");
            rc = -1;
        }
    }

    serve_close(s);

    return rc;
}


static int
serve_open(serve_t *s, char *err)
{
    uint64_t  fits;

    s->has_template = tok_template(s->opt.tok) != TOK_TEMPLATE_NONE;

    fits = (uint64_t) s->opt.sched.kv_blocks * 64;
    s->max_context = s->opt.sched.max_context;

    if (fits < s->max_context) {
        s->max_context = (uint32_t) fits;
    }

    s->opt.sched.ops = &serve_ops;
    s->opt.sched.ops_ctx = s;

    if (serve_known(s, err) != 0) {
        return -1;
    }

    s->sched = sched_open(&s->opt.sched, err);
    if (s->sched == NULL) {
        return -1;
    }

    if (serve_board_open(s, err) != 0) {
        return -1;
    }

    serve_files(s);

    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (s->epoll == -1) {
        snprintf(err, SERVE_ERR_LEN, "epoll_create1: %s", strerror(errno));
        return -1;
    }

    if (serve_signals(s, err) != 0 || serve_listen(s, err) != 0
        || sched_start(s->sched, err) != 0 || serve_intake_open(s, err) != 0)
    {
        return -1;
    }

    return 0;
}


/* Descriptors for all lanes; the usual limit may be raised by anybody. */

static void
serve_files(const serve_t *s)
{
    rlim_t         need;
    struct rlimit  limit;

    need = (rlim_t) s->opt.max_lanes * SERVE_LANE_FILES + SERVE_OTHER_FILES;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= need) {
        return;
    }

    limit.rlim_cur = limit.rlim_max < need ? limit.rlim_max : need;

    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < need) {
        serve_log(SERVE_WARN, "%llu descriptors are not enough for %u lanes",
                  (unsigned long long) limit.rlim_cur, s->opt.max_lanes);
    }
}


static int
serve_signals(serve_t *s, char *err)
{
    sigset_t  set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);

    s->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);

    if (s->signals == -1
        || serve_watch(s, s->signals, NULL, SERVE_W_SIGNAL) != 0)
    {
        snprintf(err, SERVE_ERR_LEN, "signalfd: %s", strerror(errno));
        return -1;
    }

    return 0;
}


/* Rows of the head beyond the tokenizer's ids mean nothing: never drawn. */

static int
serve_known(serve_t *s, char *err)
{
    size_t    len;
    uint32_t  i, n;

    s->known = calloc(s->opt.sched.vocab, 1);
    if (s->known == NULL) {
        snprintf(err, SERVE_ERR_LEN, "no memory");
        return -1;
    }

    s->longest = 1;

    for (i = 0, n = 0; i < s->opt.sched.vocab; i++) {
        s->known[i] = (uint8_t) tok_known(s->opt.tok, (int32_t) i);
        n += s->known[i];

        if (tok_bytes(s->opt.tok, (int32_t) i, &len) != NULL
            && len > s->longest)
        {
            s->longest = len;
        }
    }

    if (n == 0 || tok_size(s->opt.tok) > s->opt.sched.vocab) {
        snprintf(err, SERVE_ERR_LEN, "the tokenizer has ids up to %u, %u of "
                 "them among the model's %u rows", tok_size(s->opt.tok), n,
                 s->opt.sched.vocab);
        return -1;
    }

    s->opt.sched.known = s->known;

    return 0;
}


static void
serve_loop(serve_t *s)
{
    int                  i, n, busy, ms;
    uint64_t             now, tick;
    serve_lane_t        *lane;
    struct epoll_event   ev[SERVE_EVENTS];

    tick = 0;
    busy = 0;

    for ( ;; ) {

        ms = SERVE_TICK_MS;
        ms = atomic_load(&s->draining) ? SERVE_DRAIN_MS : ms;
        ms = busy ? 0 : ms;

        n = epoll_wait(s->epoll, ev, SERVE_EVENTS, ms);

        for (i = 0; i < n; i++) {
            serve_event(s, &ev[i]);
        }

        busy = 0;

        for (lane = s->lanes; lane != NULL; lane = lane->next) {
            if (lane->busy) {
                serve_lane_read(lane);
                busy |= lane->busy;
            }
        }

        now = chan_now_ms();

        if (now - tick >= SERVE_TICK_MS || atomic_load(&s->draining)) {
            tick = now;
            serve_board_publish(s, 1);

            if (s->accept_paused && s->listener != -1) {
                s->accept_paused = serve_watch(s, s->listener, NULL,
                                               SERVE_W_LISTENER) != 0;
            }
        }

        serve_sweep(s, now);

        if (atomic_load(&s->failed) && !atomic_load(&s->draining)) {
            serve_drain(s);
        }

        if (atomic_load(&s->draining) && serve_drained(s)) {
            return;
        }
    }
}


static void
serve_event(serve_t *s, const struct epoll_event *ev)
{
    char           err[CHAN_ERR_LEN];
    unsigned       kind;
    serve_lane_t  *lane;

    kind = (unsigned) (ev->data.u64 & 7);
    lane = (serve_lane_t *) (uintptr_t) (ev->data.u64 & ~UINT64_C(7));

    switch (kind) {

    case SERVE_W_LISTENER:
        if (s->listener != -1) {
            serve_accept(s);
        }
        break;

    case SERVE_W_SIGNAL:
        serve_on_signal(s);
        break;

    case SERVE_W_SOCK:
        if (lane->state == SERVE_L_HELLO) {
            serve_hello(lane);

        } else if (lane->state == SERVE_L_OPEN
                   && chan_peer_alive(lane->chan.sock, err) != CHAN_OK)
        {
            serve_lane_drop(lane, err);
        }
        break;

    case SERVE_W_BELL:
        if (lane->state == SERVE_L_OPEN) {
            serve_lane_bell(lane);
        }
        break;
    }
}


/* The first asks for an orderly end, the second for an immediate one. */

static void
serve_on_signal(serve_t *s)
{
    struct signalfd_siginfo  info;

    while (read(s->signals, &info, sizeof(info)) == sizeof(info)) {

        if (!atomic_load(&s->draining)) {
            serve_log(SERVE_NOTICE, "signal %u: no new requests, %u in "
                      "flight", (unsigned) info.ssi_signo,
                      atomic_load(&s->n_requests));
            serve_drain(s);

        } else {
            serve_log(SERVE_NOTICE, "signal %u: going down at once",
                      (unsigned) info.ssi_signo);
            s->drain_us = 0;
        }
    }
}


static void
serve_drain(serve_t *s)
{
    atomic_store(&s->draining, 1);
    s->drain_us = serve_now_us();

    serve_stop_listening(s);
    sched_drain(s->sched);
}


static int
serve_drained(serve_t *s)
{
    serve_lane_t  *lane;

    for (lane = s->lanes; lane != NULL; lane = lane->next) {
        if (lane->state != SERVE_L_HELLO) {
            serve_lane_reap(lane);
        }
    }

    return atomic_load(&s->n_requests) == 0 || s->drain_us == 0
           || atomic_load(&s->failed)
           || serve_now_us() - s->drain_us > s->opt.grace_us;
}


/* Forgets lanes that have ended, and connections that say nothing. */

static void
serve_sweep(serve_t *s, uint64_t now)
{
    serve_lane_t  *lane, **p;

    for (p = &s->lanes; (lane = *p) != NULL; ) {

        if (lane->state == SERVE_L_HELLO
            && now - lane->since_ms > SERVE_HELLO_MS)
        {
            serve_lane_drop(lane, "no hello came");
        }

        serve_lane_reap(lane);

        if (lane->state == SERVE_L_DEAD && atomic_load(&lane->refs) == 1) {
            *p = lane->next;
            serve_lane_unref(lane);
            continue;
        }

        p = &lane->next;
    }
}


static void
serve_close(serve_t *s)
{
    serve_lane_t     *lane;
    sched_stats_t     st;
    struct timespec   ts = { 0, SERVE_LINGER_MS * 1000000L };

    serve_stop_listening(s);

    /* Intake first: it hands over to the scheduler. */

    if (s->intake.n_threads > 0) {
        serve_intake_close(s);
    }

    if (s->sched != NULL) {
        sched_stop(s->sched);
        sched_stats(s->sched, &st);

        if (st.steps > 0) {
            serve_log(SERVE_NOTICE, "%llu steps, %llu requests, %llu tokens, "
                      "%llu preempted, %llu of %llu prompt tokens cached, "
                      "%llu us idle between steps",
                      (unsigned long long) st.steps,
                      (unsigned long long) st.accepted,
                      (unsigned long long) st.tokens,
                      (unsigned long long) st.preempted,
                      (unsigned long long) st.cached,
                      (unsigned long long) st.prompt,
                      (unsigned long long) (st.idle_us / (st.followed + 1)));
        }

        if (st.drafted > 0) {
            serve_log(SERVE_NOTICE, "%llu tokens guessed, %llu right",
                      (unsigned long long) st.drafted,
                      (unsigned long long) st.hits);
        }
    }

    if (s->lanes != NULL) {
        nanosleep(&ts, NULL);
    }

    for (lane = s->lanes; lane != NULL; lane = lane->next) {
        serve_lane_drop(lane, "the engine goes down");
    }

    while (s->lanes != NULL) {
        serve_sweep(s, 0);
    }

    serve_keep(s);
    sched_close(s->sched);

    if (s->board != NULL) {
        chan_board_close(s->board);
    }

    if (s->signals != -1) {
        close(s->signals);
    }

    if (s->epoll != -1) {
        close(s->epoll);
    }

    if (s->lock_fd != -1) {
        close(s->lock_fd);
    }

    pthread_mutex_destroy(&s->board_lock);
    free(s->known);
    free(s);
}


/* The workers know that the engine goes; who said "at once" is heard. */

static void
serve_keep(serve_t *s)
{
    kv_disk_stats_t  st;

    if (s->sched == NULL || sched_disk_stats(s->sched, &st) != 0) {
        return;
    }

    if (atomic_load(&s->draining) && s->drain_us != 0) {
        sched_keep(s->sched, SERVE_KEEP_US);
        (void) sched_disk_stats(s->sched, &st);
    }

    serve_log(SERVE_NOTICE, "KV cache: %u blocks of %llu bytes; %llu were "
              "written, %llu read", st.files, (unsigned long long) st.used,
              (unsigned long long) st.stored,
              (unsigned long long) st.restored);
}


static void
serve_on_step(void *ctx)
{
    serve_board_publish(ctx, 0);
}


static void
serve_on_failed(void *ctx, const char *reason)
{
    serve_t  *s = ctx;

    serve_log(SERVE_ERROR, "%s", reason);
    atomic_store(&s->failed, 1);
}


/* The step thread is the eviction log's only writer. */

static void
serve_on_lost(void *ctx, uint32_t rank, uint64_t tag)
{
    serve_t  *s = ctx;

    (void) chan_board_evict(s->board, rank, tag);
}
