/*
 * Nodes: processes that find each other, exchange rows over TCP, and what
 * happens when one is another's model, speaks nonsense, dies or hangs.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ep/ep_tcp.h"
#include "ep/ep_wire.h"
#include "unit/ep_ranks.h"


#define NODES  4
#define LIMIT  2000                  /* ms that a node may take to answer */

/* What a node is told, and what it says in the end. */

typedef struct {
    uint32_t     nodes;
    uint32_t     node;
    uint32_t     ranks;
    uint32_t     redundant;
    uint32_t     steps;
    uint32_t     join_ms;
    uint64_t     fingerprint;
    const char  *setup;
    int          leave;              /* its first rank aborts */
    int          bad;                /* and wants an impossible expert */
    int          other_map;          /* experts placed otherwise */
} plan_t;

typedef struct {
    int       rc;
    char      err[ERR_LEN];
    uint32_t  wrong;
    uint32_t  order;
    uint64_t  pairs;
    int64_t   ms;                    /* from ready to the end */
} result_t;

typedef struct {
    pid_t  pid;
    int    fd;
} child_t;


static char  at[64];                 /* where nodes meet */


static void
pick_port(void)
{
    int                 fd;
    socklen_t           len;
    struct sockaddr_in  sa;

    memset(&sa, 0, sizeof(sa));
    sa.sin_family = AF_INET;
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    len = sizeof(sa);

    fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *) &sa, sizeof(sa)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *) &sa, &len), 0);
    close(fd);

    snprintf(at, sizeof(at), "127.0.0.1:%u", ntohs(sa.sin_port));
}


static int
dial(void)
{
    int                 fd, i;
    struct sockaddr_in  sa;

    memset(&sa, 0, sizeof(sa));
    sa.sin_family = AF_INET;
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sa.sin_port = htons((uint16_t) atoi(strchr(at, ':') + 1));

    for (i = 0; i < 200; i++) {
        fd = socket(AF_INET, SOCK_STREAM, 0);

        if (connect(fd, (struct sockaddr *) &sa, sizeof(sa)) == 0) {
            return fd;
        }

        close(fd);
        usleep(20000);
    }

    fail_msg("nobody listens at %s", at);

    return -1;
}


static void
plan_default(plan_t *p, uint32_t nodes, uint32_t node)
{
    memset(p, 0, sizeof(plan_t));
    p->nodes = nodes;
    p->node = node;
    p->ranks = 2;
    p->steps = 60;
    p->join_ms = 10000;
    p->fingerprint = 77;
    p->setup = "compute f32";
}


static void
rendezvous_of(const plan_t *p, ep_rendezvous_t *r)
{
    memset(r, 0, sizeof(ep_rendezvous_t));
    r->nodes = p->nodes;
    r->node = p->node;
    r->ranks = p->ranks;
    r->fingerprint = p->fingerprint;
    r->setup = p->setup;
    r->at = at;
    r->join_ms = p->join_ms;
    r->timeout_ms = LIMIT;
}


/* In a process of its own. */

static void
node_main(const plan_t *p, result_t *res)
{
    int64_t           began;
    uint32_t          i;
    ep_map_t         *map;
    rank_t            rank[RANKS];
    ep_nodes_t       *nodes;
    pthread_t         thread[RANKS];
    ep_exchange_t    *ex[RANKS];
    ep_rendezvous_t   r;

    memset(res, 0, sizeof(result_t));
    memset(rank, 0, sizeof(rank));
    res->rc = -1;

    rendezvous_of(p, &r);
    nodes = ep_nodes_open(&r, res->err);

    if (nodes == NULL || ep_nodes_ready(nodes, res->err) != 0) {
        ep_nodes_close(nodes);
        return;
    }

    began = ep_wire_now();
    map = ep_map_open(EXPERTS, p->ranks * p->nodes,
                      p->redundant + (p->other_map ? 1 : 0), res->err);

    if (map == NULL
        || ep_tcp_open(ex, nodes, p->ranks, ROWS, TOP_K, EXPERTS, HIDDEN,
                       LIMIT, res->err)
           != 0)
    {
        ep_nodes_close(nodes);
        return;
    }

    for (i = 0; i < p->ranks; i++) {
        rank[i].ex = ex[i];
        rank[i].p = ep_map_placement(map);
        rank[i].seed = ex[i]->rank * 977 + 1;
        rank[i].steps = p->steps;
        rank[i].late = -1;
        rank[i].leave = (i == 0) && p->leave;
        rank[i].bad = (i == 0) && p->bad;
        pthread_create(&thread[i], NULL, run, &rank[i]);
    }

    res->rc = 0;

    for (i = 0; i < p->ranks; i++) {
        pthread_join(thread[i], NULL);
        res->wrong += rank[i].wrong;
        res->order += rank[i].order;
        res->pairs += rank[i].pairs;

        if (rank[i].rc != 0 && res->rc == 0) {
            res->rc = rank[i].rc;
            memcpy(res->err, rank[i].err, ERR_LEN);
        }
    }

    res->ms = ep_wire_now() - began;

    if (res->rc == 0) {
        res->rc = ep_nodes_linger(nodes, res->err);
    }

    for (i = 0; i < p->ranks; i++) {
        ex[i]->close(ex[i]);
    }

    ep_map_close(map);
    ep_nodes_close(nodes);
}


static child_t
start(const plan_t *p)
{
    int       fd[2];
    child_t   c;
    result_t  res;

    assert_int_equal(pipe(fd), 0);
    fflush(NULL);
    c.pid = fork();
    assert_true(c.pid >= 0);

    if (c.pid == 0) {
        alarm(60);
        node_main(p, &res);
        (void) !write(fd[1], &res, sizeof(res));
        _exit(0);
    }

    close(fd[1]);
    c.fd = fd[0];

    return c;
}


/* 1 if it said anything. */

static int
finish(child_t c, result_t *res)
{
    int      status;
    ssize_t  n;

    memset(res, 0, sizeof(result_t));
    n = read(c.fd, res, sizeof(result_t));
    close(c.fd);
    assert_int_equal(waitpid(c.pid, &status, 0), c.pid);

    return n == (ssize_t) sizeof(result_t);
}


static void
says(const result_t *res, const char *text)
{
    if (res->rc == 0) {
        fail_msg("no failure, not \"%s\"", text);
    }

    if (strstr(res->err, text) == NULL) {
        fail_msg("\"%s\" instead of \"%s\"", res->err, text);
    }
}


static uint64_t
together(uint32_t nodes, uint32_t ranks, uint32_t redundant)
{
    plan_t    p[NODES];
    child_t   c[NODES];
    uint32_t  i;
    uint64_t  pairs;
    result_t  res;

    pick_port();
    pairs = 0;

    for (i = nodes; i-- > 0; /* void */ ) {
        plan_default(&p[i], nodes, i);
        p[i].ranks = ranks;
        p[i].redundant = redundant;
        c[i] = start(&p[i]);
    }

    for (i = 0; i < nodes; i++) {
        assert_true(finish(c[i], &res));

        if (res.rc != 0) {
            fail_msg("node %u: %s", i, res.err);
        }

        assert_int_equal(res.wrong, 0);
        assert_int_equal(res.order, 0);
        pairs += res.pairs;
    }

    return pairs;
}


/* The pairs that a rank makes follow from its number alone. */

static void
test_exchange(void **state)
{
    uint64_t  pairs;

    (void) state;

    pairs = together(2, 2, 0);
    assert_true(pairs > 0);

    assert_int_equal(together(4, 1, 0), pairs);
    assert_int_equal(together(2, 2, 7), pairs);
    assert_int_equal(together(4, 1, 33), pairs);
    assert_true(together(3, 2, 5) > pairs);
}


static void
pair(plan_t *p)
{
    pick_port();
    plan_default(&p[0], 2, 0);
    plan_default(&p[1], 2, 1);
}


/*
 * A node that does not fit is told why; node 0 goes on waiting for one that
 * does, and in the end says what the last one lacked.
 */

static void
refused(const plan_t *other, const char *text)
{
    plan_t    p[2];
    child_t   c[2];
    result_t  res[2];

    pair(p);
    p[0].join_ms = 700;
    p[1] = *other;

    c[0] = start(&p[0]);
    c[1] = start(&p[1]);

    assert_true(finish(c[1], &res[1]));
    assert_true(finish(c[0], &res[0]));

    says(&res[1], text);
    says(&res[1], "refuses");
    says(&res[0], "did not come within 700 ms");
    says(&res[0], text);
}


static void
test_refused(void **state)
{
    plan_t  p;

    (void) state;

    plan_default(&p, 2, 1);
    p.fingerprint = 78;
    refused(&p, "another model or other weights: fingerprint "
            "000000000000004e, node 0 000000000000004d");

    plan_default(&p, 3, 1);
    refused(&p, "it counts 3 nodes, node 0 2");

    plan_default(&p, 2, 1);
    p.ranks = 3;
    refused(&p, "node 1 has 3 ranks, node 0 2");

    plan_default(&p, 2, 1);
    p.setup = "compute bf16, batch 1";
    refused(&p, "node 1 has \"compute bf16\", node 0 \"compute f32\"");
}


static void
test_alone(void **state)
{
    plan_t    p[2];
    result_t  res;

    (void) state;

    pair(p);
    p[0].join_ms = 300;
    p[1].join_ms = 300;

    assert_true(finish(start(&p[0]), &res));
    says(&res, "node 1 did not come within 300 ms");

    assert_true(finish(start(&p[1]), &res));
    says(&res, "does not answer: Connection refused");

    snprintf(at, sizeof(at), "127.0.0.1");
    assert_true(finish(start(&p[0]), &res));
    says(&res, "has no port");

    snprintf(at, sizeof(at), "127.0.0.1:70000");
    assert_true(finish(start(&p[1]), &res));
    says(&res, "no port from 1 to 65535");

    snprintf(at, sizeof(at), "::1:80");
    assert_true(finish(start(&p[1]), &res));
    says(&res, "several colons");

    p[1].node = 2;
    assert_true(finish(start(&p[1]), &res));
    says(&res, "node 2 of 2");
}


/* Strangers at the port are sent away and harm nobody. */

static void
test_strangers(void **state)
{
    int       i, fd[40];
    char      junk[4096];
    plan_t    p[2];
    ssize_t   n;
    child_t   c[2];
    result_t  res;
    uint32_t  head[4], answer[1816 / 4];

    (void) state;

    pair(p);
    c[0] = start(&p[0]);

    /* some say nothing, some half a word, some too much */

    for (i = 0; i < 40; i++) {
        fd[i] = dial();
        memset(junk, i * 7, sizeof(junk));

        if (i % 4 == 1) {
            (void) !write(fd[i], "LLMN", 4);
        }

        if (i % 4 == 2) {
            (void) !send(fd[i], junk, sizeof(junk), MSG_NOSIGNAL);
        }

        if (i % 4 == 3) {
            (void) !send(fd[i], "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL);
            close(fd[i]);
        }
    }

    /* another release */

    memcpy(head, "LLMNODES", 8);
    head[2] = EP_VERSION + 1;
    head[3] = 4000;
    i = dial();
    assert_int_equal(write(i, head, sizeof(head)), sizeof(head));

    for (n = 0; n < (ssize_t) sizeof(answer); /* void */ ) {
        ssize_t  got = read(i, (char *) answer + n, sizeof(answer)
                                                    - (size_t) n);
        assert_true(got > 0);
        n += got;
    }

    assert_memory_equal(answer, "LLMNODES", 8);
    assert_int_equal(answer[2], EP_VERSION);
    assert_int_equal(answer[4], 1);
    assert_non_null(strstr((char *) answer + 32, "it speaks version 3"));
    close(i);

    c[1] = start(&p[1]);
    assert_true(finish(c[1], &res));

    if (res.rc != 0) {
        fail_msg("%s", res.err);
    }

    assert_true(finish(c[0], &res));
    assert_int_equal(res.rc, 0);

    for (i = 0; i < 40; i++) {
        if (i % 4 != 3) {
            close(fd[i]);
        }
    }
}


/* Who answers at the address is no node 0, or one of another release. */

static void
impostor(const void *answer, size_t len, const char *text)
{
    int                 fd, s;
    char                hello[288];
    plan_t              p[2];
    child_t             c;
    result_t            res;
    struct sockaddr_in  sa;
    int                 on = 1;

    pair(p);

    memset(&sa, 0, sizeof(sa));
    sa.sin_family = AF_INET;
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sa.sin_port = htons((uint16_t) atoi(strchr(at, ':') + 1));

    s = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    assert_int_equal(bind(s, (struct sockaddr *) &sa, sizeof(sa)), 0);
    assert_int_equal(listen(s, 4), 0);

    c = start(&p[1]);
    fd = accept(s, NULL, NULL);
    assert_true(fd >= 0);
    assert_int_equal(recv(fd, hello, sizeof(hello), MSG_WAITALL), 288);
    assert_int_equal(send(fd, answer, len, MSG_NOSIGNAL), (ssize_t) len);
    close(fd);
    close(s);

    assert_true(finish(c, &res));
    says(&res, text);
}


static void
test_impostor(void **state)
{
    uint32_t  answer[1816 / 4];

    (void) state;

    impostor("HTTP/1.1 400 Bad Request\r\n\r\n", 28, "no node of an engine");
    impostor("LLM", 3, "the connection was closed");

    memset(answer, 0, sizeof(answer));
    memcpy(answer, "LLMNODES", 8);
    answer[2] = 9;
    answer[3] = sizeof(answer);
    impostor(answer, sizeof(answer), "speaks version 9, this one 2");

    answer[2] = EP_VERSION;
    answer[5] = 3;
    impostor(answer, sizeof(answer), "counts 3 nodes, not 2");
}


/* A rank that leaves, or wants what there is not, ends it everywhere. */

static void
test_leave(void **state)
{
    plan_t    p[2];
    child_t   c[2];
    result_t  res;

    (void) state;

    pair(p);
    p[1].leave = 1;
    c[0] = start(&p[0]);
    c[1] = start(&p[1]);
    assert_true(finish(c[0], &res));
    says(&res, "node 1: rank 2 left the exchange");
    assert_true(finish(c[1], &res));
    says(&res, "rank 2 left the exchange");

    pair(p);
    p[0].bad = 1;
    c[0] = start(&p[0]);
    c[1] = start(&p[1]);
    assert_true(finish(c[0], &res));
    says(&res, "rank 0: row 0 wants expert 11 of 11");
    assert_true(finish(c[1], &res));
    says(&res, "node 0: rank 0: row 0 wants expert 11 of 11");

    pair(p);
    p[1].other_map = 1;
    c[0] = start(&p[0]);
    c[1] = start(&p[1]);
    assert_true(finish(c[0], &res));
    says(&res, "placed otherwise");
    assert_true(finish(c[1], &res));
    says(&res, "placed otherwise");
}


/* kill -9, and a process that is stopped: both within the limit. */

static void
test_signals(void **state)
{
    plan_t    p[3];
    child_t   c[3];
    int64_t   began;
    uint32_t  i;
    result_t  res;

    (void) state;

    pick_port();

    for (i = 0; i < 3; i++) {
        plan_default(&p[i], 3, i);
        p[i].steps = 1000000;
        c[i] = start(&p[i]);
    }

    usleep(700000);
    began = ep_wire_now();
    kill(c[2].pid, SIGKILL);

    assert_true(finish(c[0], &res));
    says(&res, "node 2 is gone");
    assert_true(finish(c[1], &res));
    says(&res, "node 2 is gone");
    assert_false(finish(c[2], &res));
    assert_true(ep_wire_now() - began < LIMIT);

    pair(p);
    p[0].steps = 1000000;
    p[1].steps = 1000000;
    c[0] = start(&p[0]);
    c[1] = start(&p[1]);

    usleep(500000);
    kill(c[1].pid, SIGSTOP);
    assert_true(finish(c[0], &res));
    says(&res, "within 2000 ms from node 1");

    /* woken again it finds the others gone */

    kill(c[1].pid, SIGCONT);
    assert_true(finish(c[1], &res));
    assert_int_equal(res.rc, -1);
    assert_non_null(strstr(res.err, "node 0"));
}


/* A peer that keeps to the rendezvous and then sends what it likes. */

static void
nonsense(const void *data, size_t len, int side, const char *text)
{
    char              err[ERR_LEN], junk[256];
    plan_t            p[2];
    child_t           c;
    result_t          res;
    uint64_t          session;
    ep_link_t         link[2];
    ep_rendezvous_t   r;
    uint32_t          ready[6] = { 0, EP_FRAME_READY, 0, 0, 0, 0 };

    pair(p);
    c = start(&p[0]);

    rendezvous_of(&p[1], &r);
    assert_int_equal(ep_rendezvous(&r, link, &session, err), 0);

    memcpy(ready, "LLMF", 4);
    assert_int_equal(ep_wire_write(link[0].side, ready, 24,
                                   ep_wire_now() + 1000, err), 0);
    assert_int_equal(ep_wire_write(side ? link[0].side : link[0].step, data,
                                   len, ep_wire_now() + 1000, err), 0);

    assert_true(finish(c, &res));
    says(&res, text);

    /* it was told, too */

    (void) ep_wire_read(link[0].side, junk, 48, ep_wire_now() + 1000, err);
    close(link[0].step);
    close(link[0].side);
}


static void
frame(uint8_t *f, uint32_t what, uint64_t number, uint64_t length)
{
    memcpy(f, "LLMF", 4);
    memcpy(f + 4, &what, 4);
    memcpy(f + 8, &number, 8);
    memcpy(f + 16, &length, 8);
}


static void
test_nonsense(void **state)
{
    uint8_t   f[24 + 24 + 4096];
    uint32_t  head[6];
    uint64_t  big;

    (void) state;

    memset(f, 'x', sizeof(f));
    nonsense(f, sizeof(f), 0, "node 1 sends what is no frame");
    nonsense(f, sizeof(f), 1, "it sends what is no frame");

    frame(f, EP_FRAME_COMBINE, 1, 0);
    nonsense(f, 24, 0, "out of step: frame 3, number 1, instead of a "
             "dispatch, number 1");

    frame(f, EP_FRAME_DISPATCH, 2, 0);
    nonsense(f, 24, 0, "frame 2, number 2, instead of a dispatch, number 1");

    big = UINT64_MAX;
    frame(f, EP_FRAME_DISPATCH, 1, big);
    nonsense(f, 24, 0, "a dispatch of 18446744073709551615 bytes, at most");

    frame(f, EP_FRAME_POST, 0, EP_POST_MAX + 1);
    nonsense(f, 24, 1, "it sends what is no frame");

    frame(f, EP_FRAME_DISPATCH, 1, 4);
    nonsense(f, 28, 0, "a dispatch of 4 bytes");

    /* hash, hidden, top_k, rows of two ranks: of a placement not its own */

    memset(head, 0, sizeof(head));
    head[2] = HIDDEN;
    head[3] = TOP_K;
    frame(f, EP_FRAME_DISPATCH, 1, sizeof(head));
    memcpy(f + 24, head, sizeof(head));
    nonsense(f, 24 + sizeof(head), 0, "placed otherwise");
}


/* Steps begin when any node has work; nodes without sleep until then. */

static _Atomic int  woken;
static _Atomic int  told;

static void
wake(void *ctx)
{
    (void) ctx;
    woken++;
}


static void
heard(void *ctx, uint32_t node, const void *data, size_t len)
{
    assert_int_equal(node, 0);
    assert_int_equal(len, 5);
    memcpy(ctx, data, len);
    told = 1;
}


typedef struct {
    plan_t       p;
    ep_nodes_t  *n;
    char         err[ERR_LEN];
} opener_t;


static void *
open_node(void *arg)
{
    opener_t         *o = arg;
    ep_rendezvous_t   r;

    rendezvous_of(&o->p, &r);
    o->n = ep_nodes_open(&r, o->err);

    if (o->n != NULL && ep_nodes_ready(o->n, o->err) != 0) {
        ep_nodes_close(o->n);
        o->n = NULL;
    }

    return NULL;
}


static void *
linger(void *arg)
{
    opener_t  *o = arg;

    return ep_nodes_linger(o->n, o->err) == 0 ? o : NULL;
}


static void *
begin(void *arg)
{
    opener_t    *o = arg;
    ep_begin_t   mine, all[2];

    memset(&mine, 0, sizeof(mine));
    mine.work = 1;
    mine.rows = 10 + o->p.node;

    if (ep_nodes_begin(o->n, &mine, all, o->err) != 0
        || all[0].rows != 10 || all[1].rows != 11)
    {
        return NULL;
    }

    return o;
}


static void
test_begin(void **state)
{
    int        i;
    char       said[8];
    void      *ok;
    opener_t   o[2];
    pthread_t  t;

    (void) state;

    pick_port();
    memset(o, 0, sizeof(o));
    plan_default(&o[0].p, 2, 0);
    plan_default(&o[1].p, 2, 1);

    pthread_create(&t, NULL, open_node, &o[0]);
    open_node(&o[1]);
    pthread_join(t, NULL);
    assert_non_null(o[0].n);
    assert_non_null(o[1].n);

    memset(said, 0, sizeof(said));
    ep_nodes_on_wake(o[1].n, wake, NULL);
    ep_nodes_on_post(o[1].n, heard, said);

    for (i = 1; i <= 3; i++) {
        assert_int_equal(ep_nodes_wanted(o[1].n), 0);
        ep_nodes_idle(o[1].n);
        usleep(50000);
        assert_int_equal(woken, i - 1);

        pthread_create(&t, NULL, begin, &o[0]);

        while (woken < i) {
            usleep(1000);
        }

        assert_int_equal(ep_nodes_wanted(o[1].n), 1);
        assert_non_null(begin(&o[1]));
        pthread_join(t, &ok);
        assert_non_null(ok);
    }

    assert_int_equal(ep_nodes_post(o[0].n, 1, "hello", 5, o[0].err), 0);

    for (i = 0; i < 1000 && !told; i++) {
        usleep(1000);
    }

    assert_string_equal(said, "hello");

    /* nobody goes before all are done, and then nobody fails */

    pthread_create(&t, NULL, linger, &o[0]);
    assert_non_null(linger(&o[1]));
    pthread_join(t, &ok);
    assert_non_null(ok);

    ep_nodes_close(o[0].n);
    usleep(50000);
    assert_int_equal(ep_nodes_status(o[1].n, o[1].err), 0);
    assert_int_equal(woken, 3);
    ep_nodes_close(o[1].n);
}


/* One that goes without a word is missed also while nothing is to do. */

static void
test_idle_death(void **state)
{
    int        i;
    opener_t   o[2];
    pthread_t  t;

    (void) state;

    pick_port();
    memset(o, 0, sizeof(o));
    plan_default(&o[0].p, 2, 0);
    plan_default(&o[1].p, 2, 1);

    pthread_create(&t, NULL, open_node, &o[0]);
    open_node(&o[1]);
    pthread_join(t, NULL);
    assert_non_null(o[0].n);
    assert_non_null(o[1].n);

    woken = 0;
    ep_nodes_on_wake(o[1].n, wake, NULL);
    ep_nodes_idle(o[1].n);
    ep_nodes_close(o[0].n);

    for (i = 0; i < 1000 && woken == 0; i++) {
        usleep(1000);
    }

    assert_int_equal(woken, 1);
    assert_int_equal(ep_nodes_status(o[1].n, o[1].err), -1);
    assert_non_null(strstr(o[1].err, "node 0: it is going down"));
    assert_int_equal(ep_nodes_post(o[1].n, 0, "x", 1, o[1].err), -1);
    ep_nodes_close(o[1].n);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exchange),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_impostor),
        cmocka_unit_test(test_leave),
        cmocka_unit_test(test_signals),
        cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_begin),
        cmocka_unit_test(test_idle_death)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
