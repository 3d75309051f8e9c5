/*
 * A worker's end of the channel, and an engine that recites, for the tests of
 * the server: a real tokenizer, sockets, lanes and scheduler, and a model for
 * which the token at position p is token p of a text, whatever was before.  So
 * a prompt of any N ids is answered by what follows the text's first N tokens.
 */

#ifndef TESTS_UNIT_SERVE_WORKER_H
#define TESTS_UNIT_SERVE_WORKER_H


#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel/chan_board.h"
#include "channel/chan_message.h"
#include "channel/channel.h"
#include "serve/serve.h"
#include "tokenizer/tok.h"
#include "tokenizer/tok_stream.h"


#define MODEL   "engine/models/wordnet-tiny"
#define BLOCKS  64

static const char  story[] =
    "The falcon is a bird of prey. It hunts by day \xe2\x80\x94 "
    "\xf0\x9f\xa6\x85 and STOP it sleeps at night. "
    "The falcon is a bird of prey. It hunts by day \xe2\x80\x94 "
    "\xf0\x9f\xa6\x85 and then it rests, high on its rock, until the sun is "
    "up again.";

static tok_t           *tok;
static tok_ids_t        ids;
static uint32_t         context = 2048;
static atomic_int       step_us;
static int              ahead;       /* steps are prepared */
static atomic_uint      steps_computed;
static char             dir[64];
static char             path[96];
static pthread_t        thread;
static int              rc_run;
static char             err_run[SERVE_ERR_LEN];
static serve_options_t  options;


/* A worker's end. */

typedef struct {
    chan_lane_t    lane;
    chan_board_t  *board;
} worker_t;

typedef struct {
    int       accepted;
    int       ended;                 /* CHAN_FINISH or CHAN_ERROR_REC */
    uint32_t  reason;                /* or code */
    char      text[65536];
    char      echo[65536];
    char      message[256];
    char      param[64];
    size_t    n_tokens;
    size_t    n_echo;
    size_t    bytes;
    size_t    bad;
    int32_t   id[8192];
    chan_accepted_t  a;
    chan_finish_t    f;
} reply_t;


static inline void
nap(int ms)
{
    struct timespec  ts = { ms / 1000, (ms % 1000) * 1000000L };

    nanosleep(&ts, NULL);
}


static inline int
recite(void *ctx, uint32_t rank, const sched_batch_t *b,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    int       us;
    uint32_t  i, j;

    (void) ctx;
    (void) rank;
    (void) err;

    us = atomic_load(&step_us);

    if (us > 0) {
        struct timespec  ts = { 0, us * 1000L };

        nanosleep(&ts, NULL);
    }

    atomic_fetch_add(&steps_computed, 1);

    for (i = 0; i < n_logits; i++) {
        for (j = 0; j < tok_size(tok); j++) {
            logits[i * tok_size(tok) + j] = 0;
        }

        j = (b->pos[logit_row[i]] + 1) % (uint32_t) ids.n;
        logits[i * tok_size(tok) + (uint32_t) ids.id[j]] = 20;
    }

    return 0;
}


static inline void *
run(void *data)
{
    (void) data;

    rc_run = serve_run(&options, err_run);

    return NULL;
}


static inline void
start_with(uint32_t ranks, uint32_t batch, uint32_t queue, uint32_t lanes)
{
    static int32_t  eos;

    eos = tok_eos(tok);

    memset(&options, 0, sizeof(options));
    options.socket = path;
    options.socket_mode = 0600;
    options.socket_gid = (gid_t) -1;
    options.max_lanes = lanes;
    options.grace_us = 2000000;
    options.names = "recital,,alias";
    options.fingerprint = 4711;
    options.created = 1700000000;
    options.tok = tok;
    options.temperature = 3;
    options.top_p = 0.9f;
    options.ready = "ready";
    options.sched.n_ranks = ranks;
    options.sched.vocab = tok_size(tok);
    options.sched.kv_blocks = context / 2048 * BLOCKS;
    options.sched.max_context = context;
    options.sched.max_batch = batch;
    options.sched.prefill_chunk = 256;
    options.sched.queue_max = queue;
    options.sched.prefix_cache = 1;
    options.sched.ahead = ahead;
    options.sched.eos = &eos;
    options.sched.n_eos = 1;
    options.sched.boot = 77;
    options.sched.step = recite;

    atomic_store(&step_us, 0);
    rc_run = -2;
    assert_int_equal(pthread_create(&thread, NULL, run, NULL), 0);
}


static inline int
start(void **state)
{
    (void) state;
    start_with(2, 8, 100, 8);
    return 0;
}


static inline int
stop(void **state)
{
    sigset_t         set;
    struct timespec  zero = { 0, 0 };

    (void) state;

    kill(getpid(), SIGTERM);
    nap(20);
    kill(getpid(), SIGTERM);
    pthread_join(thread, NULL);

    /* The second one may have come too late for it. */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    (void) sigtimedwait(&set, NULL, &zero);

    return rc_run != 0 || access(path, F_OK) == 0;
}


static inline int
dial(worker_t *w, uint64_t lane_size, chan_welcome_t *welcome)
{
    int   i, rc, sock, fds[4];
    char  err[CHAN_ERR_LEN];

    memset(w, 0, sizeof(worker_t));

    for (i = 0; (sock = chan_connect(path, err)) < 0; i++) {
        if (i == 400) {
            fail_msg("connect: %s", err);
        }
        nap(5);
    }

    assert_int_equal(chan_send_hello(sock, lane_size, err), CHAN_OK);

    while ((rc = chan_recv_welcome(sock, welcome, fds, err)) == CHAN_AGAIN) {
        struct pollfd  p = { sock, POLLIN, 0 };

        poll(&p, 1, 100);
    }

    if (rc != CHAN_OK) {
        fail_msg("welcome: %s", err);
    }

    if (welcome->status != CHAN_WELCOME_OK) {
        close(sock);
        return -1;
    }

    assert_int_equal(chan_lane_open(&w->lane, welcome, fds[0], fds[2], fds[3],
                                    err), CHAN_OK);
    assert_int_equal(chan_board_open(&w->board, welcome, fds[1], err),
                     CHAN_OK);
    w->lane.sock = sock;

    return 0;
}


static inline void
join(worker_t *w)
{
    chan_welcome_t  welcome;

    assert_int_equal(dial(w, 0, &welcome), 0);
}


static inline void
leave(worker_t *w)
{
    chan_board_close(w->board);
    chan_lane_close(&w->lane);
}


static inline void
put(worker_t *w, const struct iovec *part, int n)
{
    char  err[CHAN_ERR_LEN];

    assert_int_equal(chan_ring_write(&w->lane.out, part, n, err), CHAN_OK);
    chan_ring_notify_data(&w->lane.out);
}


static inline void
defaults(chan_submit_t *s)
{
    memset(s, 0, sizeof(*s));
    s->endpoint = CHAN_COMPLETION;
    s->credit = 1 << 24;
    s->max_tokens = 16;
    s->rank_hint = -1;
    s->top_p = 1;
    s->repetition_penalty = 1;
}


static inline void
submit(worker_t *w, uint64_t id, chan_submit_t *s, const chan_body_t *b)
{
    struct iovec  part[2];

    struct {
        chan_record_t  rec;
        chan_submit_t  s;
    } head;

    s->body_size = b->size;
    memset(&head, 0, sizeof(head));
    head.rec.type = CHAN_SUBMIT;
    head.rec.id = id;
    head.s = *s;
    part[0].iov_base = &head;
    part[0].iov_len = sizeof(head);
    part[1].iov_base = b->data;
    part[1].iov_len = b->size;
    put(w, part, 2);
}


static inline void
small(worker_t *w, uint64_t id, uint16_t type, const void *data, size_t n)
{
    chan_record_t  rec;
    struct iovec   part[2];

    memset(&rec, 0, sizeof(rec));
    rec.type = type;
    rec.id = id;
    part[0].iov_base = &rec;
    part[0].iov_len = sizeof(rec);
    part[1].iov_base = (void *) data;
    part[1].iov_len = n;
    put(w, part, n > 0 ? 2 : 1);
}


/* A prompt of n ids. */

static inline void
prompt(chan_body_t *b, uint32_t n)
{
    uint32_t  i;
    int32_t   id[2048];

    for (i = 0; i < n; i++) {
        id[i] = (int32_t) (300 + i % 50);
    }

    assert_int_equal(chan_body_put(b, CHAN_SEC_IDS, NULL, 0, id,
                                   n * sizeof(int32_t)), CHAN_OK);
}


static inline void
ask(worker_t *w, uint64_t id, chan_submit_t *s, uint32_t n_prompt)
{
    chan_body_t  b;

    memset(&b, 0, sizeof(b));
    prompt(&b, n_prompt);
    submit(w, id, s, &b);
    chan_body_free(&b);
}


/* The next record, of request `id` if that is not 0; -1: none in time. */

static inline int
next(worker_t *w, reply_t *r, uint64_t id, int ms)
{
    int                i, rc;
    char               err[CHAN_ERR_LEN];
    size_t             n;
    const uint8_t     *p;
    chan_error_view_t  e;
    chan_delta_view_t  d;
    chan_token_view_t  t;
    struct pollfd      pfd[2];
    const chan_record_t    *rec;
    const chan_finish_t    *f;
    const chan_accepted_t  *a;

    static uint64_t  buf[CHAN_RECORD_MAX / 8];

    for (i = 0; ; i++) {
        rc = chan_ring_read(&w->lane.in, buf, sizeof(buf), err);

        if (rc == CHAN_OK) {
            break;
        }

        assert_int_equal(rc, CHAN_AGAIN);
        chan_ring_notify_room(&w->lane.in);

        if (chan_ring_sleep(&w->lane.in, err) == 1) {
            if (i > 0 && ms >= 0) {
                return -1;
            }

            pfd[0].fd = w->lane.bell_own;
            pfd[1].fd = w->lane.sock;
            pfd[0].events = pfd[1].events = POLLIN;

            if (poll(pfd, 2, ms < 0 ? 20000 : ms) == 0) {
                return -1;
            }

            if (pfd[0].revents == 0
                && chan_peer_alive(w->lane.sock, err) != CHAN_OK)
            {
                fail_msg("the lane was dropped");
            }

            chan_bell_drain(w->lane.bell_own);
        }

        chan_ring_awake(&w->lane.in);
    }

    rec = (const chan_record_t *) buf;

    if (id != 0) {
        assert_int_equal(rec->id, id);
    }

    assert_false(r->ended);

    switch (rec->type) {

    case CHAN_ACCEPTED:
        assert_int_equal(chan_get_accepted(rec, &a, err), CHAN_OK);
        assert_true(id == 0 || !r->accepted);
        r->accepted = 1;
        r->a = *a;
        break;

    case CHAN_DELTA:
        assert_true(id == 0 || r->accepted);
        assert_int_equal(chan_get_delta(rec, &d, err), CHAN_OK);
        r->bytes += rec->size;
        r->bad += !chan_utf8_valid(d.text, d.delta->text_size);

        if (d.delta->kind == CHAN_ECHO) {
            strncat(r->echo, (const char *) d.text, d.delta->text_size);
            r->n_echo += d.delta->n_tokens;
            break;
        }

        strncat(r->text, (const char *) d.text, d.delta->text_size);
        p = d.tokens;

        for (n = 0; n < d.delta->n_tokens; n++) {
            chan_next_token(&p, &t);
            r->id[r->n_tokens++ % 8192] = t.token->id;
        }
        break;

    case CHAN_FINISH:
        assert_int_equal(chan_get_finish(rec, &f, err), CHAN_OK);
        r->ended = CHAN_FINISH;
        r->reason = f->reason;
        r->f = *f;
        break;

    case CHAN_ERROR_REC:
        assert_int_equal(chan_get_error(rec, &e, err), CHAN_OK);
        r->ended = CHAN_ERROR_REC;
        r->reason = e.error->code;
        snprintf(r->message, sizeof(r->message), "%.*s",
                 (int) e.error->message_size, e.message);
        snprintf(r->param, sizeof(r->param), "%.*s",
                 (int) e.error->param_size, e.param);
        break;

    default:
        fail_msg("record type %d", rec->type);
    }

    return rec->type;
}


static inline void
all(worker_t *w, reply_t *r, uint64_t id)
{
    memset(r, 0, sizeof(reply_t));

    while (!r->ended) {
        if (next(w, r, id, -1) < 0) {
            fail_msg("no answer");
        }
    }
}


/* The text of `n` tokens from position `from`. */

static inline char *
recital(uint32_t from, uint32_t n)
{
    char     *text;
    size_t    len;
    int32_t  *id;
    uint32_t  i;

    id = malloc((n + 1) * sizeof(int32_t));
    assert_non_null(id);

    for (i = 0; i < n; i++) {
        id[i] = ids.id[(from + i) % ids.n];
    }

    text = tok_decode(tok, id, n, TOK_STREAM_RAW, &len);
    assert_non_null(text);
    free(id);

    return text;
}


static inline uint64_t
board_free(worker_t *w)
{
    uint64_t           sum;
    chan_board_rank_t  b0, b1;

    sum = 0;
    assert_int_equal(chan_board_get_rank(w->board, 0, &b0), CHAN_OK);
    assert_int_equal(chan_board_get_rank(w->board, 1, &b1), CHAN_OK);
    sum = b0.blocks_free + b1.blocks_free;

    return sum;
}


/* The board follows the step; on a busy machine after a while. */

static inline void
board_free_between(worker_t *w, uint64_t min, uint64_t max)
{
    int       i;
    uint64_t  n;

    for (i = 0; i < 1000; i++) {
        n = board_free(w);
        if (n >= min && n <= max) {
            break;
        }

        nap(5);
    }

    assert_in_range(n, min, max);
}


static inline uint64_t
board_step(worker_t *w)
{
    chan_board_state_t  s;

    assert_int_equal(chan_board_get_state(w->board, &s), CHAN_OK);

    return s.step;
}


static inline int
group_setup(void **state)
{
    char      err[ERR_LEN];
    sigset_t  set;

    (void) state;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    serve_log_level(getenv("DEBUG") != NULL ? SERVE_DEBUG : SERVE_ERROR);

    tok = tok_open(MODEL, err);
    if (tok == NULL) {
        fprintf(stderr, "%s\n", err);
        return -1;
    }

    if (tok_encode(tok, story, strlen(story), NULL, 0, &ids, err) != 0) {
        return -1;
    }

    snprintf(dir, sizeof(dir), "/tmp/test_serve.XXXXXX");

    if (mkdtemp(dir) == NULL) {
        return -1;
    }

    snprintf(path, sizeof(path), "%s/s", dir);

    return 0;
}


static inline int
group_teardown(void **state)
{
    char  lock[128];

    (void) state;

    tok_ids_free(&ids);
    tok_close(tok);
    snprintf(lock, sizeof(lock), "%s.lock", path);
    unlink(lock);
    rmdir(dir);

    return 0;
}

#endif /* TESTS_UNIT_SERVE_WORKER_H */
