/*
 * A client of the scripted engine, which it starts and ends, that writes down
 * every record that it gets.
 */

#ifndef SCRIPTED_CLIENT_H
#define SCRIPTED_CLIENT_H

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel/channel.h"
#include "channel/chan_board.h"
#include "channel/chan_message.h"


typedef struct {
    pid_t          pid;
    char           dir[64], path[96], log[96];
    chan_lane_t    lane;
    chan_board_t  *board;
    chan_welcome_t welcome;
    uint64_t       buf[CHAN_RECORD_MAX / 8];
    char           got[1 << 16];     /* transcript of one request */
    int64_t        cost;             /* bytes of its DELTAs */
    int            last;             /* type of the last record */
} client_t;

static client_t  c;


static inline void
start(const char *const *args)
{
    int          n;
    char         exe[256], *slash;
    const char  *argv[24];
    ssize_t      len;

    strcpy(c.dir, "/tmp/test_chan_scripted.XXXXXX");
    assert_non_null(mkdtemp(c.dir));
    snprintf(c.path, sizeof(c.path), "%s/s", c.dir);
    snprintf(c.log, sizeof(c.log), "%s/log", c.dir);

    len = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    assert_true(len > 0);
    exe[len] = '\0';
    slash = strrchr(exe, '/');
    assert_non_null(slash);
    strcpy(slash + 1, "scripted_engine");

    n = 0;
    argv[n++] = exe;
    argv[n++] = "--socket";
    argv[n++] = c.path;
    argv[n++] = "--log";
    argv[n++] = c.log;

    while (*args != NULL) {
        argv[n++] = *args++;
    }

    argv[n] = NULL;

    c.pid = fork();
    assert_true(c.pid >= 0);

    if (c.pid == 0) {
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(exe, (char **) argv);
        _exit(127);
    }
}


/* The welcome's status, or CHAN_ERROR. */

static inline int
join(uint64_t size)
{
    int            i, sock, fds[4];
    char           err[CHAN_ERR_LEN];
    struct pollfd  pfd;

    for (i = 0; i < 1000; i++) {
        sock = chan_connect(c.path, err);

        if (sock >= 0) {
            break;
        }

        usleep(5000);
    }

    assert_true(sock >= 0);
    assert_int_equal(chan_send_hello(sock, size, err), CHAN_OK);
    pfd.fd = sock;
    pfd.events = POLLIN;
    assert_int_equal(poll(&pfd, 1, 5000), 1);

    if (chan_recv_welcome(sock, &c.welcome, fds, err) != CHAN_OK) {
        fail_msg("%s", err);
    }

    chan_lane_init(&c.lane);

    if (chan_welcome_check(&c.welcome, err) != CHAN_OK) {
        close(sock);
        return (int) c.welcome.status;
    }

    assert_int_equal(chan_lane_open(&c.lane, &c.welcome, fds[0], fds[2],
                                    fds[3], err), CHAN_OK);
    assert_int_equal(chan_board_open(&c.board, &c.welcome, fds[1], err),
                     CHAN_OK);
    c.lane.sock = sock;

    return CHAN_WELCOME_OK;
}


static inline void
leave(void)
{
    chan_lane_close(&c.lane);
    chan_board_close(c.board);
    c.board = NULL;
}


/* Ends the engine; returns its wait status. */

static inline int
stop(void)
{
    int   status;
    char  lock[112];

    kill(c.pid, SIGTERM);
    assert_int_equal(waitpid(c.pid, &status, 0), c.pid);
    leave();

    snprintf(lock, sizeof(lock), "%s.lock", c.path);
    unlink(lock);
    unlink(c.path);
    unlink(c.log);
    assert_int_equal(rmdir(c.dir), 0);

    return status;
}


static inline void
defaults(chan_submit_t *s, uint32_t endpoint)
{
    memset(s, 0, sizeof(*s));
    s->endpoint = endpoint;
    s->credit = 1 << 20;
    s->max_tokens = CHAN_TOKENS_MAX;
    s->rank_hint = -1;
    s->temperature = 1;
    s->top_p = 1;
    s->repetition_penalty = 1;
}


static inline void
send_record(uint16_t type, uint64_t id, const void *p, size_t n,
    const void *q, size_t m)
{
    int            rc;
    char           err[CHAN_ERR_LEN];
    chan_record_t  rec;
    struct iovec   part[3];

    memset(&rec, 0, sizeof(rec));
    rec.type = type;
    rec.id = id;
    part[0].iov_base = &rec;
    part[0].iov_len = sizeof(rec);
    part[1].iov_base = (void *) p;
    part[1].iov_len = n;
    part[2].iov_base = (void *) q;
    part[2].iov_len = m;

    while ((rc = chan_ring_write(&c.lane.out, part, 3, err)) == CHAN_AGAIN) {
        chan_ring_notify_data(&c.lane.out);
        usleep(1000);
    }

    assert_int_equal(rc, CHAN_OK);
    chan_ring_notify_data(&c.lane.out);
}


/* Sends a body in as many records as it takes. */

static inline void
submit(uint64_t id, chan_submit_t *s, chan_body_t *body)
{
    size_t       n, off;
    chan_more_t  more;

    s->body_size = body->size;
    n = body->size < 32768 ? body->size : 32768;
    send_record(CHAN_SUBMIT, id, s, sizeof(*s), body->data, n);

    for (off = n; off < body->size; off += n) {
        n = body->size - off < 65000 ? body->size - off : 65000;
        more.offset = off;
        send_record(CHAN_SUBMIT_MORE, id, &more, sizeof(more),
                    body->data + off, n);
    }

    chan_body_free(body);
}


static inline void
submit_text(uint64_t id, chan_submit_t *s, const char *text)
{
    chan_body_t     body;
    chan_message_t  m;

    memset(&body, 0, sizeof(body));

    if (s->endpoint == CHAN_CHAT) {
        memset(&m, 0, sizeof(m));
        m.role = CHAN_ROLE_SYSTEM;
        chan_body_put(&body, CHAN_SEC_MESSAGE, &m, sizeof(m), "be brief", 8);
        m.role = CHAN_ROLE_USER;
        chan_body_put(&body, CHAN_SEC_MESSAGE, &m, sizeof(m), text,
                      strlen(text));

    } else {
        chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, text, strlen(text));
    }

    submit(id, s, &body);
}


static inline void
window(uint64_t id, uint64_t credit)
{
    send_record(CHAN_WINDOW, id, &credit, sizeof(credit), NULL, 0);
}


static inline void
put(const char *fmt, ...)
{
    size_t   n;
    va_list  args;

    n = strlen(c.got);
    va_start(args, fmt);
    vsnprintf(c.got + n, sizeof(c.got) - n, fmt, args);
    va_end(args);
}


static inline int
put_delta(chan_record_t *rec)
{
    char               err[CHAN_ERR_LEN];
    uint32_t           i, j;
    const uint8_t     *p, *q;
    chan_top_view_t    top;
    chan_token_view_t  t;
    chan_delta_view_t  v;

    static const char *const  kinds[] = { "", "", "r:", "t:", "e:" };

    if (chan_get_delta(rec, &v, err) != CHAN_OK) {
        return CHAN_ERROR;
    }

    c.cost += rec->size;
    put("%s[%.*s", kinds[v.delta->kind], (int) v.delta->text_size,
        (const char *) v.text);
    p = v.tokens;

    for (i = 0; i < v.delta->n_tokens; i++) {
        chan_next_token(&p, &t);
        put("|%d", t.token->id);

        if (t.token->size != 0) {
            put("(%.*s %g", (int) t.token->size, (const char *) t.bytes,
                (double) t.token->logprob);
            q = t.tops;

            for (j = 0; j < t.token->n_top; j++) {
                chan_next_top(&q, &top);
                put(" %.*s:%g", (int) top.top->size, (const char *) top.bytes,
                    (double) top.top->logprob);
            }

            put(")");
        }
    }

    put("]");

    return CHAN_OK;
}


/* Until there may be something to read: CHAN_OK; CHAN_AGAIN: `ms` passed. */

static inline int
collect_wait(int ms)
{
    int            rc;
    char           err[CHAN_ERR_LEN];
    struct pollfd  pfd[2];

    chan_ring_notify_room(&c.lane.in);
    rc = chan_ring_sleep(&c.lane.in, err);

    if (rc == 0) {
        return CHAN_OK;
    }

    if (rc == CHAN_ERROR) {
        return rc;
    }

    pfd[0].fd = c.lane.bell_own;
    pfd[0].events = POLLIN;
    pfd[1].fd = c.lane.sock;
    pfd[1].events = POLLIN;
    rc = poll(pfd, 2, ms);
    chan_ring_awake(&c.lane.in);

    if (rc == 0) {
        return CHAN_AGAIN;
    }

    chan_bell_drain(c.lane.bell_own);

    if (pfd[1].revents != 0 && pfd[0].revents == 0
        && chan_ring_sleep(&c.lane.in, err) == 1)
    {
        return CHAN_ERROR;
    }

    return CHAN_OK;
}


/*
 * Reads what comes for `id` until its last record, `max` records, or `ms` of
 * silence; the transcript is in c.got.  CHAN_OK: last record seen; CHAN_AGAIN:
 * not; CHAN_ERROR: lane broken.
 */

static inline int
collect(uint64_t id, int max, int ms)
{
    int                     rc;
    char                    err[CHAN_ERR_LEN];
    chan_record_t          *rec;
    chan_error_view_t       ev;
    const chan_finish_t    *f;
    const chan_accepted_t  *a;

    static const char *const  reasons[] = { "?", "stop", "length",
                                            "cancelled", "tools" };

    rec = (chan_record_t *) c.buf;
    c.got[0] = '\0';

    for ( ;; ) {
        rc = chan_ring_read(&c.lane.in, c.buf, sizeof(c.buf), err);

        if (rc == CHAN_ERROR) {
            return rc;
        }

        if (rc == CHAN_AGAIN) {
            rc = collect_wait(ms);

            if (rc != CHAN_OK) {
                return rc;
            }

            continue;
        }

        if (rec->id != id) {
            continue;
        }

        c.last = rec->type;

        switch (rec->type) {

        case CHAN_ACCEPTED:
            assert_int_equal(chan_get_accepted(rec, &a, err), CHAN_OK);
            put("A%u/%u@%u ", a->prompt_tokens, a->cached_tokens, a->rank);
            break;

        case CHAN_DELTA:
            if (put_delta(rec) != CHAN_OK) {
                return CHAN_ERROR;
            }

            break;

        case CHAN_FINISH:
            assert_int_equal(chan_get_finish(rec, &f, err), CHAN_OK);
            put(" F%s %u+%u/%u", reasons[f->reason], f->prompt_tokens,
                f->completion_tokens, f->reasoning_tokens);
            chan_ring_notify_room(&c.lane.in);
            return CHAN_OK;

        case CHAN_ERROR_REC:
            assert_int_equal(chan_get_error(rec, &ev, err), CHAN_OK);
            put(" E%u '%.*s' '%.*s' %u", ev.error->code,
                (int) ev.error->message_size, ev.message,
                (int) ev.error->param_size, ev.param, ev.error->retry_after);
            chan_ring_notify_room(&c.lane.in);
            return CHAN_OK;

        default:
            return CHAN_ERROR;
        }

        if (max != 0 && --max == 0) {
            chan_ring_notify_room(&c.lane.in);
            return CHAN_AGAIN;
        }
    }
}

#endif /* SCRIPTED_CLIENT_H */
