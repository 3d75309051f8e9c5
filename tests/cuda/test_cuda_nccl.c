/*
 * The exchange over NCCL between nodes, here threads of one process with a
 * stand-in for NCCL: 2 nodes of 1 and 2 ranks and 4 of 1 give the bits that the
 * exchange over the host does, in two micro-batches, too; a node that goes away, a rank whose rows never
 * come, a library that is not there, nodes that differ and ranks that share a
 * device end with words on all nodes, and nothing is left open.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "cuda/peer_ranks.h"
#include "ep/ep_nccl.h"


#define NODES  4
#define LIMIT  30000                 /* ms */
#define SHORT  3000

typedef struct {
    uint32_t        self;
    uint32_t        count;
    uint32_t        ranks;
    uint32_t        top_k;
    int             exact;
    uint32_t        micro;
    uint32_t        limit;
    int             rc;
    char            err[ERR_LEN];
    ep_nodes_t     *nodes;
    ep_exchange_t  *ex[RANKS];
    pthread_t       thread;
} node_t;


static char      at[64];             /* where nodes meet */
static uint32_t  ranks_of_node;
static uint32_t  micro_of_node[2];   /* of the first, and of the last */


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


static void *
open_node(void *arg)
{
    node_t           *n = arg;
    ep_rendezvous_t   r;

    memset(&r, 0, sizeof(r));
    r.nodes = n->count;
    r.node = n->self;
    r.ranks = n->ranks;
    r.fingerprint = 77;
    r.setup = "test";
    r.at = at;
    r.join_ms = 10000;
    r.timeout_ms = n->limit;
    n->rc = -1;
    n->nodes = ep_nodes_open(&r, n->err);

    if (n->nodes != NULL && ep_nodes_ready(n->nodes, n->err) == 0) {
        n->rc = ep_nccl_open(n->ex, n->nodes, n->ranks, ROWS, n->top_k,
                             EXPERTS, HIDDEN, n->exact, n->micro, n->limit,
                             "cuda", n->err);
    }

    return NULL;
}


static void
open_nodes(node_t *n, uint32_t count, uint32_t ranks, int exact,
    uint32_t limit, uint32_t last_top_k)
{
    uint32_t  i;

    pick_port();
    memset(n, 0, count * sizeof(node_t));
    ranks_of_node = ranks;

    for (i = 0; i < count; i++) {
        n[i].self = i;
        n[i].count = count;
        n[i].ranks = ranks;
        n[i].top_k = (i == count - 1) ? last_top_k : TOP_K;
        n[i].exact = exact;
        n[i].micro = micro_of_node[i == count - 1];
        n[i].limit = limit;
        assert_int_equal(pthread_create(&n[i].thread, NULL, open_node, &n[i]),
                         0);
    }

    for (i = 0; i < count; i++) {
        pthread_join(n[i].thread, NULL);
    }
}


static void *
linger(void *arg)
{
    node_t  *n = arg;

    n->rc = ep_nodes_linger(n->nodes, n->err);

    return NULL;
}


static void
close_nodes(node_t *n, uint32_t count, int fine)
{
    uint32_t  i, k;

    for (i = 0; i < count && fine; i++) {
        assert_int_equal(pthread_create(&n[i].thread, NULL, linger, &n[i]),
                         0);
    }

    for (i = 0; i < count && fine; i++) {
        pthread_join(n[i].thread, NULL);

        if (n[i].rc != 0) {
            fail_msg("node %u: %s", i, n[i].err);
        }
    }

    for (i = 0; i < count; i++) {
        for (k = 0; k < n[i].ranks; k++) {
            if (n[i].ex[k] != NULL) {
                n[i].ex[k]->close(n[i].ex[k]);
            }
        }

        ep_nodes_close(n[i].nodes);
    }

    assert_int_equal(emu_nccl_open(), 0);
}


/* Every other step has less room for rows, agreed on by all. */

static void
step(void *rank, uint32_t n, uint32_t *rows)
{
    rank_t    *r = rank;
    uint32_t   most;

    most = (n % 3 == 2) ? 4 : (n == 4) ? 0 : ROWS;
    *rows = (*rows < most) ? *rows : most;

    r->wrong += r->host->barrier(r->host, r->err) != 0;

    if (r->rank % ranks_of_node == 0) {
        ep_nccl_most(r->peer, most);
    }

    r->wrong += r->host->barrier(r->host, r->err) != 0;
}


static void
start_ranks(rank_t *r, node_t *n, ep_exchange_t **host, ep_map_t **map,
    int fp8)
{
    uint32_t  i, ranks;

    ranks = n[0].count * n[0].ranks;
    memset(r, 0, ranks * sizeof(rank_t));

    for (i = 0; i < ranks; i++) {
        r[i].rank = i;
        r[i].ranks = ranks;
        r[i].fp8 = fp8;
        r[i].exact = n[0].exact;
        r[i].host = (host != NULL) ? host[i] : NULL;
        r[i].step = (host != NULL) ? step : NULL;
        r[i].peer = n[i / n[0].ranks].ex[i % n[0].ranks];
        r[i].map[0] = map[0];
        r[i].map[1] = map[1];
        assert_int_equal(r[i].peer->rank, i);
    }
}


static void
check(uint32_t nodes, uint32_t local, uint32_t redundant, int fp8, int exact)
{
    char                 err[ERR_LEN];
    node_t               n[NODES];
    rank_t               r[RANKS];
    ep_map_t            *map[MAPS];
    uint32_t             i, same, ranks;
    pthread_t            thread[RANKS];
    ep_exchange_t       *host[RANKS];
    unsigned long long   groups, bytes;

    ranks = nodes * local;
    groups = emu_nccl_groups();
    bytes = emu_nccl_bytes();

    emu_set_device((int) ranks, 4, (size_t) 8 << 30);
    make_maps(ranks, redundant, map);
    open_nodes(n, nodes, local, exact, LIMIT, TOP_K);

    for (i = 0; i < nodes; i++) {
        if (n[i].rc != 0) {
            fail_msg("node %u: %s", i, n[i].err);
        }
    }

    assert_int_equal(ep_host_open(host, ranks, ROWS, TOP_K, EXPERTS, LIMIT,
                                  err), 0);
    start_ranks(r, n, host, map, fp8);

    for (i = 0; i < ranks; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, run, &r[i]), 0);
    }

    for (i = 0, same = 0; i < ranks; i++) {
        pthread_join(thread[i], NULL);
        same += r[i].same;
    }

    for (i = 0; i < ranks; i++) {
        if (r[i].wrong != 0 || r[i].counts != 0) {
            fail_msg("rank %u of %u x %u: %u wrong, %u of %u counts wrong: %s",
                     i, nodes, local, r[i].wrong, r[i].counts, EXPERTS,
                     r[i].err);
        }
    }

    /*
     * Each rank: two groups a step, and one where nobody may have rows; twice
     * that in those of steps 1, 3 and 4 that are split.
     */

    assert_int_equal(emu_nccl_groups() - groups,
                     ranks * (n[0].micro != 0 ? 2 + 4 + 2 + 4 + 2 + 2
                                              : 2 + 2 + 2 + 2 + 1 + 2));
    assert_true(emu_nccl_bytes() > bytes);
    assert_true(same > 0);

    for (i = 0; i < ranks; i++) {
        close_rank(&r[i]);
        host[i]->close(host[i]);
    }

    close_nodes(n, nodes, 1);
    ep_map_close(map[0]);
    ep_map_close(map[1]);
}


static void
test_same(void **state)
{
    (void) state;

    check(2, 1, 0, 0, 1);
    check(2, 2, 0, 0, 0);
    check(2, 2, 0, 1, 1);
    check(4, 1, 7, 1, 0);
    check(2, 2, 3, 0, 1);
}


static void
test_micro(void **state)
{
    (void) state;

    micro_of_node[0] = 1;
    micro_of_node[1] = 1;

    check(2, 1, 0, 0, 1);
    check(2, 2, 3, 1, 0);
    check(4, 1, 0, 0, 0);

    micro_of_node[0] = 0;
    micro_of_node[1] = 0;
}


/* `lost` 1: node 1 goes; 2: what rank 1 sends third does not come. */

static void
broken(int lost, const char *text, const char *other)
{
    node_t           n[2];
    rank_t           r[RANKS];
    ep_map_t        *map[MAPS];
    uint32_t         i;
    pthread_t        thread[RANKS];
    struct timespec  from, to;

    emu_set_device(4, 4, (size_t) 8 << 30);
    make_maps(4, 0, map);
    open_nodes(n, 2, 2, 1, lost == 1 ? LIMIT : SHORT, TOP_K);
    assert_int_equal(n[0].rc, 0);
    assert_int_equal(n[1].rc, 0);
    start_ranks(r, n, NULL, map, 0);
    emu_nccl_mute(1, lost == 2 ? 3 : 0);
    clock_gettime(CLOCK_MONOTONIC, &from);

    for (i = 0; i < 4; i++) {
        r[i].leave = (lost == 1 && i >= 2) ? 2 : 0;
        assert_int_equal(pthread_create(&thread[i], NULL, run, &r[i]), 0);
    }

    for (i = 4; i-- > 0; /* void */ ) {
        pthread_join(thread[i], NULL);

        /* as ep_nodes_close() begins, but the exchanges are still open */

        if (i == 2 && lost == 1) {
            ep_nodes_fail(n[1].nodes, "it is going down");
        }
    }

    clock_gettime(CLOCK_MONOTONIC, &to);
    assert_true(to.tv_sec - from.tv_sec < 45);
    emu_nccl_mute(0, 0);

    for (i = 0; i < (lost == 1 ? 2 : 4); i++) {
        if (r[i].wrong == 0
            || (strstr(r[i].err, text) == NULL
                && strstr(r[i].err, other) == NULL))
        {
            fail_msg("rank %u: \"%s\" instead of \"%s\"", i, r[i].err, text);
        }
    }

    for (i = 0; i < 4; i++) {
        close_rank(&r[i]);
    }

    close_nodes(n, 2, 0);
    ep_map_close(map[0]);
    ep_map_close(map[1]);
}


static void
test_mute(void **state)
{
    (void) state;

    broken(2, "NCCL: ", "within 3000 ms");
}


static void
test_gone(void **state)
{
    (void) state;

    broken(1, "node 1: it is going down", "node 1: it is going down");
}


static void
test_missing(void **state)
{
    node_t  n[2];

    (void) state;

    emu_nccl_missing(1);
    open_nodes(n, 2, 1, 1, LIMIT, TOP_K);
    emu_nccl_missing(0);

    assert_int_equal(n[0].rc, -1);
    assert_int_equal(n[1].rc, -1);
    assert_non_null(strstr(n[0].err, "ranks of other nodes need NCCL: "
                                     "libnccl"));
    assert_non_null(strstr(n[1].err, "need NCCL: libnccl"));
    close_nodes(n, 2, 0);
}


static void
test_differ(void **state)
{
    node_t  n[2];

    (void) state;

    open_nodes(n, 2, 1, 1, LIMIT, TOP_K + 1);

    assert_int_equal(n[0].rc, -1);
    assert_int_equal(n[1].rc, -1);
    assert_non_null(strstr(n[0].err, "has an exchange of 9 rows, "));
    close_nodes(n, 2, 0);

    micro_of_node[1] = 64;
    open_nodes(n, 2, 1, 1, LIMIT, TOP_K);
    micro_of_node[1] = 0;

    assert_int_equal(n[0].rc, -1);
    assert_int_equal(n[1].rc, -1);
    assert_non_null(strstr(n[1].err, " rows; node "));
    assert_non_null(strstr(n[1].err, "overlap from "));
    close_nodes(n, 2, 0);
}


/* Two of a node are counted; of two nodes, NCCL finds out. */

static void
share(uint32_t local, const char *text)
{
    node_t      n[2];
    rank_t      r[RANKS];
    ep_map_t   *map[MAPS];
    uint32_t    i;
    pthread_t   thread[RANKS];

    emu_set_device(1, 4, (size_t) 8 << 30);
    make_maps(2 * local, 0, map);
    open_nodes(n, 2, local, 1, LIMIT, TOP_K);
    assert_int_equal(n[0].rc, 0);
    assert_int_equal(n[1].rc, 0);
    start_ranks(r, n, NULL, map, 0);

    for (i = 0; i < 2 * local; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, run, &r[i]), 0);
    }

    for (i = 0; i < 2 * local; i++) {
        pthread_join(thread[i], NULL);
    }

    for (i = 0; i < 2 * local; i++) {
        if (r[i].wrong == 0 || strstr(r[i].err, text) == NULL) {
            fail_msg("rank %u: \"%s\" instead of \"%s\"", i, r[i].err, text);
        }

        close_rank(&r[i]);
    }

    close_nodes(n, 2, 0);
    ep_map_close(map[0]);
    ep_map_close(map[1]);
}


static void
test_share(void **state)
{
    (void) state;

    share(1, "invalid usage: two ranks on one device; each rank needs a "
             "device of its own");
    share(2, "2 ranks of a node on 1 CUDA devices: NCCL refuses two ranks on "
             "one device");
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_mute),
        cmocka_unit_test(test_gone),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_differ),
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_micro)
    };

    make_experts();

    return cmocka_run_group_tests(tests, NULL, NULL);
}
