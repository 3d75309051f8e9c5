/*
 * Nodes: the thread that listens, steps' beginnings, failure.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ep/ep_nodes_int.h"
#include "ep/ep_wire.h"


#define NODES_ABORT_MS  500          /* for telling others of a failure */


static int nodes_prepare(ep_nodes_t *n, const ep_rendezvous_t *r, char *err);
static void *nodes_main(void *data);
static void nodes_listen(ep_nodes_t *n, uint32_t node);
static void nodes_frame(ep_nodes_t *n, uint32_t node);
static void nodes_gone(ep_nodes_t *n, uint32_t node, const char *why);
static void nodes_look(ep_nodes_t *n, const struct pollfd *p);
static void nodes_broken(ep_nodes_t *n, const char *why, int tell);
static int nodes_send(ep_nodes_t *n, uint32_t node, uint32_t frame,
    const void *data, size_t len, int64_t until, char *err);
static int nodes_all(ep_nodes_t *n, uint32_t frame, size_t at,
    uint32_t limit_ms, const char *what, char *err);
static void nodes_ring(int fd);


ep_nodes_t *
ep_nodes_open(const ep_rendezvous_t *r, char *err)
{
    uint32_t              i;
    ep_nodes_t           *n;
    pthread_mutexattr_t   mattr;

    n = calloc(1, sizeof(ep_nodes_t));
    if (n == NULL) {
        snprintf(err, ERR_LEN, "no memory for nodes");
        return NULL;
    }

    n->nodes = r->nodes;
    n->self = r->node;
    n->timeout_ms = r->timeout_ms;
    n->join_ms = r->join_ms;
    n->wake_fd = -1;
    n->stop_fd = -1;

    for (i = 0; i < EP_NODES_MAX; i++) {
        n->peer[i].link.step = -1;
        n->peer[i].link.side = -1;
    }

    pthread_mutex_init(&n->lock, NULL);
    pthread_mutex_init(&n->send_lock, NULL);

    /* who is told of something may tell of a failure */

    pthread_mutexattr_init(&mattr);
    pthread_mutexattr_settype(&mattr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&n->tell_lock, &mattr);
    pthread_mutexattr_destroy(&mattr);

    pthread_condattr_init(&n->attr);
    pthread_condattr_setclock(&n->attr, CLOCK_MONOTONIC);
    pthread_cond_init(&n->news, &n->attr);

    if (nodes_prepare(n, r, err) != 0) {
        ep_nodes_close(n);
        return NULL;
    }

    return n;
}


static int
nodes_prepare(ep_nodes_t *n, const ep_rendezvous_t *r, char *err)
{
    uint32_t   i;
    uint64_t   session;
    ep_link_t  link[EP_NODES_MAX];

    n->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    n->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    if (n->wake_fd == -1 || n->stop_fd == -1) {
        snprintf(err, ERR_LEN, "eventfd() failed: %s", strerror(errno));
        return -1;
    }

    if (ep_rendezvous(r, link, &session, err) != 0) {
        return -1;
    }

    for (i = 0; i < n->nodes; i++) {
        n->peer[i].link = link[i];
    }

    if (pthread_create(&n->thread, NULL, nodes_main, n) != 0) {
        snprintf(err, ERR_LEN, "no thread for the nodes");
        return -1;
    }

    n->started = 1;

    return 0;
}


void
ep_nodes_close(ep_nodes_t *n)
{
    uint32_t  i;

    if (n == NULL) {
        return;
    }

    if (n->started && !n->bye) {
        nodes_broken(n, "it is going down", 1);
    }

    if (n->started) {
        atomic_store(&n->quit, 1);
        nodes_ring(n->wake_fd);
        pthread_join(n->thread, NULL);
    }

    for (i = 0; i < EP_NODES_MAX; i++) {
        if (n->peer[i].link.step != -1) {
            close(n->peer[i].link.step);
        }

        if (n->peer[i].link.side != -1) {
            close(n->peer[i].link.side);
        }

        free(n->peer[i].buf);
    }

    if (n->wake_fd != -1) {
        close(n->wake_fd);
    }

    if (n->stop_fd != -1) {
        close(n->stop_fd);
    }

    pthread_cond_destroy(&n->news);
    pthread_condattr_destroy(&n->attr);
    pthread_mutex_destroy(&n->lock);
    pthread_mutex_destroy(&n->send_lock);
    pthread_mutex_destroy(&n->tell_lock);
    free(n);
}


uint32_t
ep_nodes_count(const ep_nodes_t *n)
{
    return n->nodes;
}


uint32_t
ep_nodes_self(const ep_nodes_t *n)
{
    return n->self;
}


/*
 * The thread that listens.  What comes on a step connection is the stepping
 * thread's to read; while that one sleeps, this one sees that it comes.
 */

static void *
nodes_main(void *data)
{
    uint32_t       i;
    ep_nodes_t    *n = data;
    struct pollfd  p[1 + 2 * EP_NODES_MAX];

    pthread_setname_np(pthread_self(), "llm-nodes");

    while (!atomic_load(&n->quit)) {

        p[0].fd = n->wake_fd;
        p[0].events = POLLIN;

        for (i = 0; i < n->nodes; i++) {
            p[1 + i].fd = n->peer[i].gone ? -1 : n->peer[i].link.side;
            p[1 + i].events = POLLIN;

            p[1 + n->nodes + i].fd =
                (atomic_load(&n->idle) && !n->peer[i].mute)
                ? n->peer[i].link.step : -1;
            p[1 + n->nodes + i].events = POLLIN;
        }

        if (poll(p, 1 + 2 * n->nodes, -1) == -1) {
            if (errno == EINTR) {
                continue;
            }

            nodes_broken(n, "poll() failed", 1);
            break;
        }

        if (p[0].revents != 0) {
            (void) !read(n->wake_fd, &n->drain, sizeof(n->drain));
        }

        for (i = 0; i < n->nodes; i++) {
            if (p[1 + i].fd != -1 && p[1 + i].revents != 0) {
                nodes_listen(n, i);
            }
        }

        nodes_look(n, p + 1 + n->nodes);
    }

    return NULL;
}


/* A step that another has begun, or the end of its connection. */

static void
nodes_look(ep_nodes_t *n, const struct pollfd *p)
{
    char      c;
    uint32_t  i;
    ssize_t   rc;

    for (i = 0; i < n->nodes; i++) {

        if (p[i].fd == -1 || p[i].revents == 0 || !atomic_load(&n->idle)) {
            continue;
        }

        rc = recv(p[i].fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);

        if (rc > 0) {
            atomic_store(&n->idle, 0);

            pthread_mutex_lock(&n->tell_lock);

            if (n->wake != NULL) {
                n->wake(n->wake_ctx);
            }

            pthread_mutex_unlock(&n->tell_lock);

        } else if (rc == 0 || (errno != EAGAIN && errno != EINTR)) {
            n->peer[i].mute = 1;     /* its side connection says why */
        }
    }
}


static void
nodes_listen(ep_nodes_t *n, uint32_t node)
{
    void          *grown;
    size_t         want;
    ssize_t        got;
    nodes_peer_t  *p;

    p = &n->peer[node];

    for ( ;; ) {

        if (p->got < sizeof(ep_frame_t)) {
            got = recv(p->link.side, (char *) &p->head + p->got,
                       sizeof(ep_frame_t) - p->got, MSG_DONTWAIT);

        } else {
            want = (size_t) p->head.length;
            got = recv(p->link.side, p->buf + (p->got - sizeof(ep_frame_t)),
                       want - (p->got - sizeof(ep_frame_t)), MSG_DONTWAIT);
        }

        if (got == -1 && errno == EINTR) {
            continue;
        }

        if (got == -1 && errno == EAGAIN) {
            return;
        }

        if (got <= 0) {
            nodes_gone(n, node, got == 0 ? "its process has ended"
                                         : strerror(errno));
            return;
        }

        p->got += (size_t) got;

        if (p->got < sizeof(ep_frame_t)) {
            continue;
        }

        if (p->got == sizeof(ep_frame_t)) {

            if (ep_frame_check(&p->head) != 0
                || p->head.what < EP_FRAME_READY
                || p->head.what > EP_FRAME_POST
                || p->head.length > EP_POST_MAX)
            {
                nodes_gone(n, node, "it sends what is no frame");
                return;
            }

            grown = realloc(p->buf, (size_t) p->head.length + 1);

            if (grown == NULL) {
                nodes_gone(n, node, "no memory for its message");
                return;
            }

            p->buf = grown;
        }

        if (p->got == sizeof(ep_frame_t) + p->head.length) {
            p->buf[p->head.length] = '\0';
            p->got = 0;
            nodes_frame(n, node);

            if (p->gone) {
                return;
            }
        }
    }
}


static void
nodes_frame(ep_nodes_t *n, uint32_t node)
{
    char           why[ERR_LEN];
    nodes_peer_t  *p;

    p = &n->peer[node];

    switch (p->head.what) {

    case EP_FRAME_READY:
    case EP_FRAME_BYE:
        pthread_mutex_lock(&n->lock);

        if (p->head.what == EP_FRAME_READY) {
            p->ready = 1;

        } else {
            p->bye = 1;
        }

        pthread_cond_broadcast(&n->news);
        pthread_mutex_unlock(&n->lock);
        break;

    case EP_FRAME_ABORT:
        snprintf(why, sizeof(why), "node %u: %.400s", node, p->buf);
        p->gone = 1;
        nodes_broken(n, why, 0);
        break;

    default:
        pthread_mutex_lock(&n->tell_lock);

        if (n->post != NULL) {
            n->post(n->post_ctx, node, p->buf, (size_t) p->head.length);
        }

        pthread_mutex_unlock(&n->tell_lock);
    }
}


/* After a good-bye of both sides that is how it should be. */

static void
nodes_gone(ep_nodes_t *n, uint32_t node, const char *why)
{
    int   bye;
    char  text[ERR_LEN];

    n->peer[node].gone = 1;

    pthread_mutex_lock(&n->lock);
    bye = n->peer[node].bye && n->bye;
    pthread_mutex_unlock(&n->lock);

    if (!bye) {
        snprintf(text, sizeof(text), "node %u is gone: %.300s", node, why);
        nodes_broken(n, text, 1);
    }
}


void
ep_nodes_fail(ep_nodes_t *n, const char *why)
{
    nodes_broken(n, why, 1);
}


static void
nodes_broken(ep_nodes_t *n, const char *why, int tell)
{
    char      err[ERR_LEN];
    size_t    len;
    int64_t   until;
    uint32_t  i;

    if (atomic_exchange(&n->failing, 1)) {
        return;
    }

    pthread_mutex_lock(&n->lock);
    snprintf(n->why, sizeof(n->why), "%s", why);
    atomic_store(&n->failed, 1);
    pthread_cond_broadcast(&n->news);
    pthread_mutex_unlock(&n->lock);

    nodes_ring(n->stop_fd);

    if (tell) {
        len = strlen(n->why);
        until = ep_wire_now() + NODES_ABORT_MS;

        for (i = 0; i < n->nodes; i++) {
            if (i != n->self) {
                (void) nodes_send(n, i, EP_FRAME_ABORT, n->why, len, until,
                                  err);
            }
        }
    }

    pthread_mutex_lock(&n->tell_lock);

    if (n->fail != NULL) {
        n->fail(n->fail_ctx, n->why);
    }

    if (n->wake != NULL) {
        n->wake(n->wake_ctx);
    }

    pthread_mutex_unlock(&n->tell_lock);
}


int
ep_nodes_status(ep_nodes_t *n, char *err)
{
    if (!atomic_load(&n->failed)) {
        return 0;
    }

    snprintf(err, ERR_LEN, "%s", n->why);

    return -1;
}


static int
nodes_send(ep_nodes_t *n, uint32_t node, uint32_t frame, const void *data,
    size_t len, int64_t until, char *err)
{
    int         rc;
    ep_frame_t  head;

    ep_frame_make(&head, frame, 0, len);

    pthread_mutex_lock(&n->send_lock);

    rc = ep_wire_write(n->peer[node].link.side, &head, sizeof(head), until,
                       err);

    if (rc == 0 && len > 0) {
        rc = ep_wire_write(n->peer[node].link.side, data, len, until, err);
    }

    pthread_mutex_unlock(&n->send_lock);

    return rc;
}


int
ep_nodes_post(ep_nodes_t *n, uint32_t node, const void *data, size_t len,
    char *err)
{
    char  why[ERR_LEN];

    if (ep_nodes_status(n, err) != 0) {
        return -1;
    }

    if (nodes_send(n, node, EP_FRAME_POST, data, len,
                   ep_wire_now() + n->timeout_ms, why)
        != 0)
    {
        snprintf(err, ERR_LEN, "node %u: %.300s", node, why);
        ep_nodes_fail(n, err);
        return -1;
    }

    return 0;
}


int
ep_nodes_ready(ep_nodes_t *n, char *err)
{
    return nodes_all(n, EP_FRAME_READY, offsetof(nodes_peer_t, ready),
                     n->join_ms, "did not get ready", err);
}


int
ep_nodes_linger(ep_nodes_t *n, char *err)
{
    pthread_mutex_lock(&n->lock);
    n->bye = 1;
    pthread_mutex_unlock(&n->lock);

    return nodes_all(n, EP_FRAME_BYE, offsetof(nodes_peer_t, bye), 0, "", err);
}


/* Says it to all, and waits until all have said it; limit 0: for ever. */

static int
nodes_all(ep_nodes_t *n, uint32_t frame, size_t at, uint32_t limit_ms,
    const char *what, char *err)
{
    int              rc;
    char             why[ERR_LEN];
    int64_t          until;
    uint32_t         i;
    struct timespec  ts;

    until = ep_wire_now() + limit_ms;
    ts.tv_sec = until / 1000;
    ts.tv_nsec = until % 1000 * 1000000;

    for (i = 0; i < n->nodes; i++) {
        if (i != n->self
            && nodes_send(n, i, frame, NULL, 0,
                          ep_wire_now() + NODES_ABORT_MS, why)
               != 0)
        {
            snprintf(err, ERR_LEN, "node %u: %.300s", i, why);
            ep_nodes_fail(n, err);
            return -1;
        }
    }

    rc = 0;
    pthread_mutex_lock(&n->lock);

    for (i = 0; i < n->nodes && !atomic_load(&n->failed); i++) {

        while (i != n->self && !*(int *) ((char *) &n->peer[i] + at)
               && !atomic_load(&n->failed) && rc == 0)
        {
            rc = (limit_ms == 0)
                 ? pthread_cond_wait(&n->news, &n->lock)
                 : pthread_cond_timedwait(&n->news, &n->lock, &ts);
        }

        if (rc != 0) {
            break;
        }
    }

    pthread_mutex_unlock(&n->lock);

    if (ep_nodes_status(n, err) != 0) {
        return -1;
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "node %u %s within %u ms", i, what, limit_ms);
        ep_nodes_fail(n, err);
        return -1;
    }

    return 0;
}


int
ep_nodes_begin(ep_nodes_t *n, const ep_begin_t *mine, ep_begin_t *all,
    char *err)
{
    uint32_t      i;
    ep_in_t       in[EP_NODES_MAX];
    ep_out_t      out[EP_NODES_MAX];
    struct iovec  iov[EP_NODES_MAX][2];

    atomic_store(&n->idle, 0);

    for (i = 0; i < n->nodes; i++) {
        iov[i][1].iov_base = (void *) mine;
        iov[i][1].iov_len = sizeof(ep_begin_t);
        out[i].iov = iov[i];
        out[i].n = 2;
        in[i].buf = &all[i];
        in[i].max = sizeof(ep_begin_t);
    }

    if (ep_nodes_swap(n, EP_FRAME_BEGIN, "step", out, in, err) != 0) {
        return -1;
    }

    all[n->self] = *mine;

    for (i = 0; i < n->nodes; i++) {
        if (i != n->self && in[i].len != sizeof(ep_begin_t)) {
            snprintf(err, ERR_LEN, "node %u begins a step with %zu bytes", i,
                     in[i].len);
            ep_nodes_fail(n, err);
            return -1;
        }
    }

    return 0;
}


int
ep_nodes_wanted(ep_nodes_t *n)
{
    char      c;
    uint32_t  i;

    for (i = 0; i < n->nodes; i++) {
        if (i != n->self
            && recv(n->peer[i].link.step, &c, 1, MSG_PEEK | MSG_DONTWAIT) > 0)
        {
            return 1;
        }
    }

    return 0;
}


void
ep_nodes_idle(ep_nodes_t *n)
{
    if (!atomic_exchange(&n->idle, 1)) {
        nodes_ring(n->wake_fd);
    }
}


static void
nodes_ring(int fd)
{
    uint64_t  one;

    one = 1;
    (void) !write(fd, &one, sizeof(one));
}


void
ep_nodes_on_fail(ep_nodes_t *n, void (*fail)(void *ctx, const char *why),
    void *ctx)
{
    pthread_mutex_lock(&n->tell_lock);
    n->fail = fail;
    n->fail_ctx = ctx;
    pthread_mutex_unlock(&n->tell_lock);
}


void
ep_nodes_on_wake(ep_nodes_t *n, void (*wake)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&n->tell_lock);
    n->wake = wake;
    n->wake_ctx = ctx;
    pthread_mutex_unlock(&n->tell_lock);
}


void
ep_nodes_on_post(ep_nodes_t *n, void (*post)(void *ctx, uint32_t node,
    const void *data, size_t len), void *ctx)
{
    pthread_mutex_lock(&n->tell_lock);
    n->post = post;
    n->post_ctx = ctx;
    pthread_mutex_unlock(&n->tell_lock);
}
