/*
 * The rendezvous.
 */

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ep/ep_rendezvous.h"
#include "ep/ep_wire.h"


#define RV_MAGIC      "LLMNODES"
#define RV_HELLO_MS   5000
#define RV_STRANGERS  64
#define RV_WHY        248

enum { RV_JOIN = 1, RV_MEET };
enum { RV_STEP = 0, RV_SIDE };

/* The first 16 bytes say whether the rest can be read. */

typedef struct {
    char      magic[8];
    uint32_t  version;
    uint32_t  size;
    uint32_t  kind;
    uint32_t  node;
    uint32_t  nodes;
    uint32_t  ranks;
    uint64_t  session;
    uint64_t  fingerprint;
    uint32_t  port;
    uint32_t  channel;
    char      setup[EP_SETUP_LEN];
} rv_hello_t;

typedef struct {
    char            magic[8];
    uint32_t        version;
    uint32_t        size;
    uint32_t        status;
    uint32_t        nodes;
    uint64_t        session;
    char            why[RV_WHY];
    ep_wire_addr_t  node[EP_NODES_MAX];
} rv_answer_t;

_Static_assert(sizeof(rv_hello_t) == 288, "HELLO");
_Static_assert(sizeof(ep_wire_addr_t) == 24, "address");
_Static_assert(sizeof(rv_answer_t) == 1816, "ANSWER");

#define RV_HEAD  16

typedef struct {
    int         fd;
    int64_t     until;
    size_t      got;
    rv_hello_t  hello;
} rv_stranger_t;

typedef struct {
    const ep_rendezvous_t  *r;
    ep_link_t              *link;
    int64_t                 until;
    uint64_t                session;
    int                     listener;
    rv_stranger_t           stranger[RV_STRANGERS];
    uint32_t                n_strangers;
    ep_wire_addr_t          addr[EP_NODES_MAX];
    char                    refused[RV_WHY];     /* the last that was */
} rv_t;


static int rv_first(rv_t *v, char *err);
static int rv_welcome(rv_t *v, char *err);
static int rv_other(rv_t *v, char *err);
static int rv_join(rv_t *v, uint16_t port, char *err);
static int rv_call(rv_t *v, char *err);
static int rv_meet(rv_t *v, uint32_t node, uint32_t channel, int *fd,
    char *err);
static int rv_gather(rv_t *v, uint32_t kind, char *err);
static int rv_complete(const rv_t *v, uint32_t kind, uint32_t *missing);
static void rv_newcomer(rv_t *v);
static int rv_listen(rv_t *v, rv_stranger_t *s);
static int rv_take(rv_t *v, rv_stranger_t *s, uint32_t kind);
static int rv_check(rv_t *v, const rv_hello_t *h, char *why);
static void rv_differ(const rv_hello_t *h, const char *setup, char *why);
static void rv_refuse(rv_t *v, rv_stranger_t *s, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void rv_hello(const rv_t *v, rv_hello_t *h, uint32_t kind);
static void rv_answer(const rv_t *v, rv_answer_t *a);
static void rv_log(const rv_t *v, int bad, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int rv_dead(int fd);


int
ep_rendezvous(const ep_rendezvous_t *r, ep_link_t *link, uint64_t *session,
    char *err)
{
    int       rc;
    rv_t     *v;
    uint32_t  i;

    if (r->nodes < 2 || r->nodes > EP_NODES_MAX || r->node >= r->nodes) {
        snprintf(err, ERR_LEN, "node %u of %u: 2 to %u nodes are possible, "
                 "numbered from 0", r->node, r->nodes, EP_NODES_MAX);
        return -1;
    }

    for (i = 0; i < r->nodes; i++) {
        link[i].step = -1;
        link[i].side = -1;
    }

    v = calloc(1, sizeof(rv_t));
    if (v == NULL) {
        snprintf(err, ERR_LEN, "no memory for a rendezvous");
        return -1;
    }

    v->r = r;
    v->link = link;
    v->listener = -1;
    v->until = ep_wire_now() + r->join_ms;

    rc = (r->node == 0) ? rv_first(v, err) : rv_other(v, err);

    *session = v->session;

    for (i = 0; i < v->n_strangers; i++) {
        close(v->stranger[i].fd);
    }

    if (v->listener != -1) {
        close(v->listener);
    }

    for (i = 0; i < r->nodes; i++) {
        if (rc == 0 && i != r->node) {
            ep_wire_tune(link[i].step, r->timeout_ms);
            ep_wire_tune(link[i].side, r->timeout_ms);
        }

        if (rc != 0 && link[i].step != -1) {
            close(link[i].step);
        }

        if (rc != 0 && link[i].side != -1) {
            close(link[i].side);
        }
    }

    free(v);

    return rc;
}


static int
rv_first(rv_t *v, char *err)
{
    char  host[EP_WIRE_HOST], port[EP_WIRE_PORT];

    if (ep_wire_split(v->r->at, host, port, err) != 0) {
        return -1;
    }

    if (getrandom(&v->session, sizeof(v->session), 0) != sizeof(v->session)) {
        snprintf(err, ERR_LEN, "no random number for a session");
        return -1;
    }

    v->listener = ep_wire_listen(host, port, NULL, err);

    if (v->listener == -1) {
        return -1;
    }

    rv_log(v, 0, "node 0 waits at %s for %u others", v->r->at,
           v->r->nodes - 1);

    if (rv_gather(v, RV_JOIN, err) != 0 || rv_welcome(v, err) != 0) {
        return -1;
    }

    return rv_gather(v, RV_MEET, err);
}


static int
rv_welcome(rv_t *v, char *err)
{
    char         why[ERR_LEN];
    uint32_t     i;
    rv_answer_t  a;

    rv_answer(v, &a);
    a.session = v->session;
    memcpy(a.node, v->addr, sizeof(a.node));

    for (i = 1; i < v->r->nodes; i++) {
        if (ep_wire_write(v->link[i].side, &a, sizeof(a), v->until, why)
            != 0)
        {
            snprintf(err, ERR_LEN, "node %u left before all had come: %.300s",
                     i, why);
            return -1;
        }
    }

    return 0;
}


static int
rv_other(rv_t *v, char *err)
{
    char            host[EP_WIRE_HOST], port[EP_WIRE_PORT], any[8];
    uint16_t        bound;
    ep_wire_addr_t  self;

    if (ep_wire_split(v->r->at, host, port, err) != 0) {
        return -1;
    }

    v->link[0].side = ep_wire_connect(host, port, v->until, err);

    if (v->link[0].side == -1) {
        return -1;
    }

    /* the others reach it where node 0 did */

    if (ep_wire_self(v->link[0].side, &self) != 0) {
        snprintf(err, ERR_LEN, "no address of one's own: %s",
                 strerror(errno));
        return -1;
    }

    snprintf(any, sizeof(any), "0");
    self.port = 0;
    ep_wire_name(&self, host, sizeof(host));
    host[strlen(host) - 2] = '\0';           /* without ":0" */

    if (host[0] == '[') {
        memmove(host, host + 1, strlen(host));
        host[strlen(host) - 1] = '\0';
    }

    v->listener = ep_wire_listen(host, any, &bound, err);

    if (v->listener == -1 || rv_join(v, bound, err) != 0
        || rv_call(v, err) != 0)
    {
        return -1;
    }

    return rv_gather(v, RV_MEET, err);
}


static int
rv_join(rv_t *v, uint16_t port, char *err)
{
    int          fd;
    char         why[ERR_LEN];
    rv_hello_t   h;
    rv_answer_t  a;

    fd = v->link[0].side;
    rv_hello(v, &h, RV_JOIN);
    h.port = port;

    if (ep_wire_write(fd, &h, sizeof(h), v->until, why) != 0
        || ep_wire_read(fd, &a, RV_HEAD, v->until, why) != 0)
    {
        snprintf(err, ERR_LEN, "node 0 at %.100s: %.300s", v->r->at, why);
        return -1;
    }

    if (memcmp(a.magic, RV_MAGIC, 8) != 0) {
        snprintf(err, ERR_LEN, "%.100s: who answers there is no node of an "
                 "engine", v->r->at);
        return -1;
    }

    if (a.version != EP_VERSION || a.size != sizeof(a)) {
        snprintf(err, ERR_LEN, "node 0 at %.100s speaks version %u, this one "
                 "%u: both must be the same release", v->r->at, a.version,
                 EP_VERSION);
        return -1;
    }

    if (ep_wire_read(fd, (char *) &a + RV_HEAD, sizeof(a) - RV_HEAD, v->until,
                     why)
        != 0)
    {
        snprintf(err, ERR_LEN, "node 0 at %.100s: %.300s", v->r->at, why);
        return -1;
    }

    if (a.status != 0) {
        a.why[RV_WHY - 1] = '\0';
        snprintf(err, ERR_LEN, "node 0 at %.100s refuses this one: %s",
                 v->r->at, a.why);
        return -1;
    }

    if (a.nodes != v->r->nodes) {
        snprintf(err, ERR_LEN, "node 0 at %.100s counts %u nodes, not %u",
                 v->r->at, a.nodes, v->r->nodes);
        return -1;
    }

    v->session = a.session;
    memcpy(v->addr, a.node, sizeof(v->addr));

    return 0;
}


/* Both connections to each node before this one. */

static int
rv_call(rv_t *v, char *err)
{
    uint32_t  i;

    if (ep_wire_peer(v->link[0].side, &v->addr[0]) != 0) {
        snprintf(err, ERR_LEN, "node 0 is gone: %s", strerror(errno));
        return -1;
    }

    for (i = 0; i < v->r->node; i++) {
        if (rv_meet(v, i, RV_STEP, &v->link[i].step, err) != 0
            || (i > 0 && rv_meet(v, i, RV_SIDE, &v->link[i].side, err) != 0))
        {
            return -1;
        }
    }

    return 0;
}


static int
rv_meet(rv_t *v, uint32_t node, uint32_t channel, int *fd, char *err)
{
    char        why[ERR_LEN], name[64];
    rv_hello_t  h;

    rv_hello(v, &h, RV_MEET);
    h.channel = channel;

    *fd = ep_wire_dial(&v->addr[node], v->until, why);

    if (*fd == -1
        || ep_wire_write(*fd, &h, sizeof(h), v->until, why) != 0)
    {
        ep_wire_name(&v->addr[node], name, sizeof(name));
        snprintf(err, ERR_LEN, "node %u at %s: %.300s", node, name, why);
        return -1;
    }

    return 0;
}


/* Until all that are to come have come. */

static int
rv_gather(rv_t *v, uint32_t kind, char *err)
{
    int            rc, wait;
    int64_t        now;
    uint32_t       i, n, missing;
    struct pollfd  p[RV_STRANGERS + 1];

    while (!rv_complete(v, kind, &missing)) {

        now = ep_wire_now();

        if (now >= v->until) {
            snprintf(err, ERR_LEN, "node %u did not come within %u ms%s%s",
                     missing, v->r->join_ms,
                     v->refused[0] != '\0' ? "; the last one refused: " : "",
                     v->refused);
            return -1;
        }

        p[0].fd = (v->n_strangers < RV_STRANGERS) ? v->listener : -1;
        p[0].events = POLLIN;
        p[0].revents = 0;

        for (i = 0; i < v->n_strangers; i++) {
            p[i + 1].fd = v->stranger[i].fd;
            p[i + 1].events = POLLIN;
            p[i + 1].revents = 0;
        }

        n = v->n_strangers;
        wait = (v->until - now < 500) ? (int) (v->until - now) : 500;

        if (poll(p, n + 1, wait) == -1 && errno != EINTR) {
            snprintf(err, ERR_LEN, "poll() failed: %s", strerror(errno));
            return -1;
        }

        now = ep_wire_now();

        for (i = n; i-- > 0; /* void */ ) {
            rc = (p[i + 1].revents != 0) ? rv_listen(v, &v->stranger[i])
                 : (now >= v->stranger[i].until) ? -1 : 0;

            if (rc == 1) {
                rc = rv_take(v, &v->stranger[i], kind);
            }

            if (rc == 0) {
                continue;
            }

            if (rc == -1) {
                close(v->stranger[i].fd);
            }

            v->stranger[i] = v->stranger[--v->n_strangers];
        }

        if (p[0].revents != 0) {
            rv_newcomer(v);
        }
    }

    return 0;
}


static int
rv_complete(const rv_t *v, uint32_t kind, uint32_t *missing)
{
    uint32_t  i;

    for (i = (kind == RV_JOIN) ? 1 : v->r->node + 1; i < v->r->nodes; i++) {
        if (v->link[i].side == -1
            || (kind == RV_MEET && v->link[i].step == -1))
        {
            *missing = i;
            return 0;
        }
    }

    return 1;
}


static void
rv_newcomer(rv_t *v)
{
    int             fd;
    rv_stranger_t  *s;

    fd = ep_wire_accept(v->listener);

    if (fd == -1) {
        return;
    }

    s = &v->stranger[v->n_strangers++];
    memset(s, 0, sizeof(rv_stranger_t));
    s->fd = fd;
    s->until = ep_wire_now() + RV_HELLO_MS;
}


/* 1: its HELLO is there; 0: not yet; -1: it is to go. */

static int
rv_listen(rv_t *v, rv_stranger_t *s)
{
    ssize_t  n;

    n = recv(s->fd, (char *) &s->hello + s->got, sizeof(rv_hello_t) - s->got,
             0);

    if (n == -1 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }

    if (n <= 0) {
        return -1;
    }

    s->got += (size_t) n;

    if (s->got < RV_HEAD) {
        return memcmp(s->hello.magic, RV_MAGIC, s->got < 8 ? s->got : 8) == 0
               ? 0 : -1;
    }

    if (memcmp(s->hello.magic, RV_MAGIC, 8) != 0) {
        rv_refuse(v, s, "this is the port of an engine's nodes");
        return -1;
    }

    if (s->hello.version != EP_VERSION || s->hello.size != sizeof(rv_hello_t))
    {
        rv_refuse(v, s, "it speaks version %u, node %u version %u",
                  s->hello.version, v->r->node, EP_VERSION);
        return -1;
    }

    return s->got == sizeof(rv_hello_t);
}


/* 1: the connection is a node's now; -1: it is to go. */

static int
rv_take(rv_t *v, rv_stranger_t *s, uint32_t kind)
{
    int          *fd;
    char          why[RV_WHY];
    rv_hello_t   *h;

    h = &s->hello;
    h->setup[EP_SETUP_LEN - 1] = '\0';

    if (h->kind != kind) {
        rv_refuse(v, s, kind == RV_JOIN ? "nobody is met before all have come"
                                        : "all have come already");
        return -1;
    }

    if (kind == RV_JOIN) {

        if (rv_check(v, h, why) != 0) {
            rv_refuse(v, s, "%s", why);
            return -1;
        }

        fd = &v->link[h->node].side;

        if (*fd != -1 && !rv_dead(*fd)) {
            rv_refuse(v, s, "node %u is here already", h->node);
            return -1;
        }

        if (ep_wire_peer(s->fd, &v->addr[h->node]) != 0) {
            return -1;
        }

        v->addr[h->node].port = (uint16_t) h->port;
        v->addr[h->node].scope = 0;
        rv_log(v, 0, "node %u has come", h->node);

    } else {

        if (h->session != v->session || h->node <= v->r->node
            || h->node >= v->r->nodes || h->channel > RV_SIDE)
        {
            rv_refuse(v, s, "it is of another session");
            return -1;
        }

        fd = (h->channel == RV_STEP) ? &v->link[h->node].step
                                     : &v->link[h->node].side;

        if (*fd != -1) {
            rv_refuse(v, s, "node %u is here already", h->node);
            return -1;
        }
    }

    if (*fd != -1) {
        close(*fd);
    }

    *fd = s->fd;

    return 1;
}


static int
rv_check(rv_t *v, const rv_hello_t *h, char *why)
{
    const ep_rendezvous_t  *r;

    r = v->r;

    if (h->nodes != r->nodes) {
        snprintf(why, RV_WHY, "it counts %u nodes, node 0 %u", h->nodes,
                 r->nodes);
        return -1;
    }

    if (h->node == 0 || h->node >= r->nodes) {
        snprintf(why, RV_WHY, "it is node %u, of nodes 1 to %u", h->node,
                 r->nodes - 1);
        return -1;
    }

    if (h->ranks != r->ranks) {
        snprintf(why, RV_WHY, "node %u has %u ranks, node 0 %u", h->node,
                 h->ranks, r->ranks);
        return -1;
    }

    if (h->fingerprint != r->fingerprint) {
        snprintf(why, RV_WHY, "node %u has another model or other weights: "
                 "fingerprint %016llx, node 0 %016llx", h->node,
                 (unsigned long long) h->fingerprint,
                 (unsigned long long) r->fingerprint);
        return -1;
    }

    if (strcmp(h->setup, r->setup) != 0) {
        rv_differ(h, r->setup, why);
        return -1;
    }

    if (h->port == 0 || h->port > 65535) {
        snprintf(why, RV_WHY, "node %u listens at port %u", h->node, h->port);
        return -1;
    }

    return 0;
}


/* The first option that is another; commas divide them. */

static void
rv_differ(const rv_hello_t *h, const char *setup, char *why)
{
    size_t  i, begin;

    begin = 0;

    for (i = 0; h->setup[i] == setup[i]; i++) {
        if (setup[i] == ',' && setup[i + 1] == ' ') {
            begin = i + 2;
        }
    }

    snprintf(why, RV_WHY, "node %u has \"%.*s\", node 0 \"%.*s\"", h->node,
             (int) strcspn(h->setup + begin, ","), h->setup + begin,
             (int) strcspn(setup + begin, ","), setup + begin);
}


/*
 * Only a node can read the answer; others see the connection's end.  What it
 * sent is read, or the system takes the answer back.
 */

static void
rv_refuse(rv_t *v, rv_stranger_t *s, const char *fmt, ...)
{
    char            name[64], rest[1024], err[ERR_LEN];
    va_list         args;
    rv_answer_t     a;
    ep_wire_addr_t  addr;

    rv_answer(v, &a);
    a.status = 1;

    va_start(args, fmt);
    vsnprintf(a.why, sizeof(a.why), fmt, args);
    va_end(args);

    snprintf(v->refused, sizeof(v->refused), "%s", a.why);
    snprintf(name, sizeof(name), "?");

    if (ep_wire_peer(s->fd, &addr) == 0) {
        ep_wire_name(&addr, name, sizeof(name));
    }

    rv_log(v, 1, "%s is refused: %s", name, a.why);

    (void) ep_wire_write(s->fd, &a, sizeof(a), ep_wire_now() + 100, err);
    (void) shutdown(s->fd, SHUT_WR);
    (void) recv(s->fd, rest, sizeof(rest), 0);
}


static void
rv_hello(const rv_t *v, rv_hello_t *h, uint32_t kind)
{
    memset(h, 0, sizeof(rv_hello_t));
    memcpy(h->magic, RV_MAGIC, 8);
    h->version = EP_VERSION;
    h->size = sizeof(rv_hello_t);
    h->kind = kind;
    h->node = v->r->node;
    h->nodes = v->r->nodes;
    h->ranks = v->r->ranks;
    h->session = v->session;
    h->fingerprint = v->r->fingerprint;
    snprintf(h->setup, sizeof(h->setup), "%s", v->r->setup);
}


static void
rv_answer(const rv_t *v, rv_answer_t *a)
{
    memset(a, 0, sizeof(rv_answer_t));
    memcpy(a->magic, RV_MAGIC, 8);
    a->version = EP_VERSION;
    a->size = sizeof(rv_answer_t);
    a->nodes = v->r->nodes;
}


static void
rv_log(const rv_t *v, int bad, const char *fmt, ...)
{
    char     text[ERR_LEN];
    va_list  args;

    if (v->r->log == NULL) {
        return;
    }

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);

    v->r->log(v->r->log_ctx, bad, text);
}


static int
rv_dead(int fd)
{
    char     c;
    ssize_t  n;

    n = recv(fd, &c, 1, MSG_PEEK);

    return n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR);
}
