/*
 * The exchange between ranks on devices against the one over the host, on
 * the same backends: 1, 2 and 4 ranks, BF16 and FP8 experts, replicas, ranks
 * without rows, placements that change, two micro-batches.  Exact contributions are the same
 * bits; others are these, rounded to BF16.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_main.h"
#include "cuda/peer_ranks.h"


static void
check(uint32_t ranks, uint32_t redundant, int fp8, int exact, uint32_t micro)
{
    char            err[ERR_LEN];
    rank_t          r[RANKS];
    ep_map_t       *map[MAPS];
    uint32_t        i, same;
    pthread_t       thread[RANKS];
    ep_exchange_t  *host[RANKS], *peer[RANKS];

    make_maps(ranks, redundant, map);

    assert_int_equal(ep_host_open(host, ranks, ROWS, TOP_K, EXPERTS, 60000,
                                  err), 0);
    assert_int_equal(ep_peer_open(peer, ranks, ROWS, TOP_K, EXPERTS, HIDDEN,
                                  exact, micro, 60000, err), 0);

    memset(r, 0, sizeof(r));

    for (i = 0; i < ranks; i++) {
        r[i].rank = i;
        r[i].ranks = ranks;
        r[i].fp8 = fp8;
        r[i].exact = exact;
        r[i].host = host[i];
        r[i].peer = peer[i];
        r[i].map[0] = map[0];
        r[i].map[1] = map[1];
        assert_int_equal(pthread_create(&thread[i], NULL, run, &r[i]), 0);
    }

    for (i = 0; i < ranks; i++) {
        pthread_join(thread[i], NULL);
    }

    for (i = 0, same = 0; i < ranks; i++) {
        close_rank(&r[i]);
        same += r[i].same;
    }

    for (i = 0; i < ranks; i++) {
        host[i]->close(host[i]);
        peer[i]->close(peer[i]);

        if (r[i].wrong != 0 || r[i].counts != 0) {
            fail_msg("rank %u of %u: %u wrong, %u of %u counts wrong: %s", i,
                     ranks, r[i].wrong, r[i].counts, EXPERTS, r[i].err);
        }
    }

    assert_true(same > 0);
    ep_map_close(map[0]);
    ep_map_close(map[1]);
}


static void
test_bf16(void **state)
{
    (void) state;

    check(1, 0, 0, 1, 0);
    check(2, 0, 0, 1, 0);
    check(4, 0, 0, 1, 0);
    check(4, 0, 0, 0, 0);
}


static void
test_fp8(void **state)
{
    (void) state;

    check(2, 0, 1, 1, 0);
    check(4, 0, 1, 0, 0);
}


static void
test_replicas(void **state)
{
    (void) state;

    check(2, 3, 0, 1, 0);
    check(4, 7, 0, 0, 0);
}


/* Some steps in two micro-batches. */

static void
test_micro(void **state)
{
    (void) state;

    check(2, 0, 0, 1, 1);
    check(2, 3, 1, 0, 1);
    check(4, 7, 0, 0, 1);
    check(4, 0, 1, 1, 1);
}


/* What does not fit is refused, and then all fail with the same words. */

static void
test_refused(void **state)
{
    char            err[ERR_LEN], other[ERR_LEN];
    ep_map_t       *map;
    ep_send_t       send;
    be_pairs_t      pairs;
    ep_exchange_t  *ex[33];

    (void) state;

    assert_int_equal(ep_peer_open(ex, 33, 1, 1, 64, 8, 1, 0, 0, err), -1);
    assert_non_null(strstr(err, "33 ranks on devices: 1 to 32"));

    map = ep_map_open(EXPERTS, 2, 0, err);
    assert_int_equal(ep_peer_open(ex, 2, ROWS, TOP_K, EXPERTS, HIDDEN, 1, 0,
                                  0, err), 0);

    memset(&send, 0, sizeof(send));
    send.placement = ep_map_placement(map);
    assert_int_equal(ex[0]->dispatch(ex[0], &send, &pairs, err), -1);
    assert_non_null(strstr(err, "rank 0 is not attached"));
    assert_int_equal(ex[1]->dispatch(ex[1], &send, &pairs, other), -1);
    assert_string_equal(err, other);

    ex[0]->close(ex[0]);
    ex[1]->close(ex[1]);
    ep_map_close(map);
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_replicas),
        cmocka_unit_test(test_micro),
        cmocka_unit_test(test_refused)
    };

    make_experts();

    return GPU_MAIN(argc, argv, tests);
}
