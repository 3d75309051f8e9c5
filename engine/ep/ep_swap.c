/*
 * A swap: a frame to every other node, and one from each, all at once, so
 * that nobody waits for one who waits for him.
 */

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>

#include "ep/ep_nodes_int.h"
#include "ep/ep_wire.h"


#define SWAP_IOV       256           /* pieces of a call */
#define SWAP_CAUSE_MS  300           /* for the cause of an end to come */


typedef struct {
    ep_frame_t  head;                /* of what is sent */
    ep_frame_t  from;                /* of what comes */
    size_t      got;
    uint32_t    at;                  /* piece being sent */
    int         sent;
    int         done;
} swap_peer_t;

typedef struct {
    ep_nodes_t   *n;
    uint32_t      frame;
    const char   *what;
    ep_out_t     *out;
    ep_in_t      *in;
    swap_peer_t   peer[EP_NODES_MAX];
} swap_t;


static int swap_run(swap_t *s, char *err);
static int swap_send(swap_t *s, uint32_t node, char *err);
static int swap_receive(swap_t *s, uint32_t node, char *err);
static int swap_head(swap_t *s, uint32_t node, char *err);
static int swap_ended(swap_t *s, uint32_t node, const char *why, char *err);
static int swap_late(swap_t *s, char *err);


int
ep_nodes_swap(ep_nodes_t *n, uint32_t frame, const char *what, ep_out_t *out,
    ep_in_t *in, char *err)
{
    int        rc;
    size_t     len;
    swap_t     s;
    uint32_t   i, k;

    if (ep_nodes_status(n, err) != 0) {
        return -1;
    }

    s.n = n;
    s.frame = frame;
    s.what = what;
    s.out = out;
    s.in = in;
    n->swaps++;

    for (i = 0; i < n->nodes; i++) {
        memset(&s.peer[i], 0, sizeof(swap_peer_t));

        if (i == n->self) {
            s.peer[i].sent = 1;
            s.peer[i].done = 1;
            continue;
        }

        for (len = 0, k = 1; k < out[i].n; k++) {
            len += out[i].iov[k].iov_len;
        }

        ep_frame_make(&s.peer[i].head, frame, n->swaps, len);
        out[i].iov[0].iov_base = &s.peer[i].head;
        out[i].iov[0].iov_len = sizeof(ep_frame_t);
    }

    rc = swap_run(&s, err);

    if (rc != 0) {
        ep_nodes_fail(n, err);
        (void) ep_nodes_status(n, err);
    }

    return rc;
}


static int
swap_run(swap_t *s, char *err)
{
    int64_t         until, left;
    uint32_t        i, open;
    ep_nodes_t     *n;
    struct pollfd   p[EP_NODES_MAX + 1];

    n = s->n;
    until = ep_wire_now() + n->timeout_ms;

    for ( ;; ) {

        for (open = 0, i = 0; i < n->nodes; i++) {

            if (!s->peer[i].sent && swap_send(s, i, err) != 0) {
                return -1;
            }

            if (!s->peer[i].done && swap_receive(s, i, err) != 0) {
                return -1;
            }

            p[i].fd = (s->peer[i].sent && s->peer[i].done)
                      ? -1 : n->peer[i].link.step;
            p[i].events = (short) ((s->peer[i].sent ? 0 : POLLOUT)
                                   | (s->peer[i].done ? 0 : POLLIN));
            open += p[i].fd != -1;
        }

        if (open == 0) {
            return 0;
        }

        p[n->nodes].fd = n->stop_fd;
        p[n->nodes].events = POLLIN;

        left = until - ep_wire_now();

        if (n->timeout_ms != 0 && left <= 0) {
            return swap_late(s, err);
        }

        if (poll(p, n->nodes + 1, n->timeout_ms != 0 ? (int) left : -1) == -1
            && errno != EINTR)
        {
            snprintf(err, ERR_LEN, "poll() failed: %s", strerror(errno));
            return -1;
        }

        if (ep_nodes_status(n, err) != 0) {
            return -1;
        }
    }
}


static int
swap_send(swap_t *s, uint32_t node, char *err)
{
    ssize_t         n;
    ep_out_t       *o;
    swap_peer_t    *p;
    struct iovec   *v;
    struct msghdr   m;

    o = &s->out[node];
    p = &s->peer[node];

    for ( ;; ) {

        while (p->at < o->n && o->iov[p->at].iov_len == 0) {
            p->at++;
        }

        if (p->at == o->n) {
            p->sent = 1;
            return 0;
        }

        memset(&m, 0, sizeof(m));
        m.msg_iov = o->iov + p->at;
        m.msg_iovlen = (o->n - p->at < SWAP_IOV) ? o->n - p->at : SWAP_IOV;

        n = sendmsg(s->n->peer[node].link.step, &m,
                    MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n == -1) {

            if (errno == EAGAIN) {
                return 0;
            }

            if (errno == EINTR) {
                continue;
            }

            return swap_ended(s, node, strerror(errno), err);
        }

        while (n > 0) {
            v = &o->iov[p->at];

            if ((size_t) n < v->iov_len) {
                v->iov_base = (char *) v->iov_base + n;
                v->iov_len -= (size_t) n;
                break;
            }

            n -= (ssize_t) v->iov_len;
            v->iov_len = 0;
            p->at++;
        }
    }
}


static int
swap_receive(swap_t *s, uint32_t node, char *err)
{
    char         *to;
    size_t        left, body;
    ssize_t       n;
    ep_in_t      *in;
    swap_peer_t  *p;

    p = &s->peer[node];
    in = &s->in[node];

    for ( ;; ) {

        if (p->got < sizeof(ep_frame_t)) {
            to = (char *) &p->from + p->got;
            left = sizeof(ep_frame_t) - p->got;

        } else {
            body = p->got - sizeof(ep_frame_t);
            to = (char *) in->buf + body;
            left = in->len - body;

            if (left == 0) {
                p->done = 1;
                return 0;
            }
        }

        n = recv(s->n->peer[node].link.step, to, left, MSG_DONTWAIT);

        if (n == -1 && errno == EINTR) {
            continue;
        }

        if (n == -1 && errno == EAGAIN) {
            return 0;
        }

        if (n <= 0) {
            return swap_ended(s, node, n == 0 ? "its process has ended"
                                              : strerror(errno), err);
        }

        p->got += (size_t) n;

        if (p->got == sizeof(ep_frame_t) && swap_head(s, node, err) != 0) {
            return -1;
        }
    }
}


static int
swap_head(swap_t *s, uint32_t node, char *err)
{
    const ep_frame_t  *f;

    f = &s->peer[node].from;

    if (ep_frame_check(f) != 0) {
        snprintf(err, ERR_LEN, "node %u sends what is no frame", node);
        return -1;
    }

    if (f->what != s->frame || f->number != s->n->swaps) {
        snprintf(err, ERR_LEN, "node %u is out of step: frame %u, number "
                 "%llu, instead of a %s, number %llu", node, f->what,
                 (unsigned long long) f->number, s->what,
                 (unsigned long long) s->n->swaps);
        return -1;
    }

    if (f->length > s->in[node].max) {
        snprintf(err, ERR_LEN, "node %u: a %s of %llu bytes, at most %zu are "
                 "possible", node, s->what, (unsigned long long) f->length,
                 s->in[node].max);
        return -1;
    }

    s->in[node].len = (size_t) f->length;

    return 0;
}


/* A node that ends on purpose has said why on the other connection. */

static int
swap_ended(swap_t *s, uint32_t node, const char *why, char *err)
{
    struct pollfd  p;

    p.fd = s->n->stop_fd;
    p.events = POLLIN;
    (void) poll(&p, 1, SWAP_CAUSE_MS);

    if (ep_nodes_status(s->n, err) == 0) {
        snprintf(err, ERR_LEN, "node %u is gone: %.300s", node, why);
    }

    return -1;
}


static int
swap_late(swap_t *s, char *err)
{
    int       n;
    uint32_t  i;

    n = snprintf(err, ERR_LEN, "no %s within %u ms from node", s->what,
                 s->n->timeout_ms);

    for (i = 0; i < s->n->nodes && n < ERR_LEN - 8; i++) {
        if (!s->peer[i].sent || !s->peer[i].done) {
            n += snprintf(err + n, ERR_LEN - (size_t) n, " %u", i);
        }
    }

    return -1;
}
