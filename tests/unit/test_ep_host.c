/*
 * The exchange between ranks of one process, against a naive sum; and what
 * happens when a rank is late, leaves, or sends nonsense.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#include "ep/ep_balance.h"
#include "unit/ep_ranks.h"


static void
setup(rank_t *rank, uint32_t ranks, uint32_t redundant, uint32_t steps,
    uint32_t timeout, ep_map_t **map)
{
    char             err[ERR_LEN];
    uint32_t         i;
    ep_exchange_t   *ex[RANKS];

    *map = ep_map_open(EXPERTS, ranks, redundant, err);
    assert_non_null(*map);
    assert_int_equal(ep_host_open(ex, ranks, ROWS, TOP_K, EXPERTS, timeout,
                                  err), 0);

    memset(rank, 0, ranks * sizeof(rank_t));

    for (i = 0; i < ranks; i++) {
        rank[i].ex = ex[i];
        rank[i].p = ep_map_placement(*map);
        rank[i].seed = i * 977 + 1;
        rank[i].steps = steps;
        rank[i].late = -1;
    }
}


static void
run_all(rank_t *rank, uint32_t ranks, ep_map_t *map)
{
    uint32_t   i;
    pthread_t  thread[RANKS];

    for (i = 0; i < ranks; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, run, &rank[i]), 0);
    }

    for (i = 0; i < ranks; i++) {
        pthread_join(thread[i], NULL);
    }

    for (i = 0; i < ranks; i++) {
        rank[i].ex->close(rank[i].ex);
    }

    ep_map_close(map);
}


static void
test_random_routing(void **state)
{
    rank_t     rank[RANKS];
    ep_map_t  *map;
    uint32_t   i, ranks, redundant;

    (void) state;

    for (ranks = 1; ranks <= RANKS; ranks++) {
        for (redundant = 0; redundant <= EXPERTS * (ranks - 1);
             redundant += 5)
        {
            setup(rank, ranks, redundant, STEPS, 60000, &map);
            run_all(rank, ranks, map);

            for (i = 0; i < ranks; i++) {
                assert_int_equal(rank[i].rc, 0);
                assert_int_equal(rank[i].wrong, 0);
                assert_int_equal(rank[i].order, 0);
            }
        }
    }
}


/*
 * All rows want the same three experts.  Without replicas one rank has all the
 * work; placed by that load, with as many more slots, each has its part.
 */

static void
test_hot_experts(void **state)
{
    char          err[ERR_LEN];
    double        load[EXPERTS], most;
    rank_t        rank[RANKS];
    ep_map_t     *map, *better;
    uint32_t      i, all;
    ep_balance_t  b;

    (void) state;

    setup(rank, RANKS, 0, STEPS, 60000, &map);

    for (i = 0; i < RANKS; i++) {
        rank[i].hot = 1;
    }

    run_all(rank, RANKS, map);

    all = (uint32_t) rank[0].pairs;
    assert_true(all > STEPS * ROWS);

    for (i = 1; i < RANKS; i++) {
        assert_int_equal(rank[i].wrong, 0);
        assert_int_equal(rank[i].pairs, 0);
    }

    for (i = 0; i < EXPERTS; i++) {
        load[i] = i < TOP_K ? 1000 : 1;
    }

    b = (ep_balance_t) { EXPERTS, EXPERTS + 9, 1, 1, RANKS };
    better = ep_balance(&b, load, NULL, err);
    assert_non_null(better);

    setup(rank, RANKS, 0, STEPS, 60000, &map);
    ep_map_close(map);

    for (i = 0; i < RANKS; i++) {
        rank[i].hot = 1;
        rank[i].p = ep_map_placement(better);
    }

    run_all(rank, RANKS, better);

    for (i = 0, most = 0; i < RANKS; i++) {
        assert_int_equal(rank[i].rc, 0);
        assert_int_equal(rank[i].wrong, 0);
        assert_int_equal(rank[i].order, 0);
        most = rank[i].pairs > most ? (double) rank[i].pairs : most;
    }

    print_message("busiest of %u ranks over the mean: %g -> %.3f\n", RANKS,
                  (double) RANKS, most * RANKS / all);

    assert_true(most * RANKS < all * 1.25);
}


static void
all_failed(const rank_t *rank, const char *why)
{
    uint32_t  i;

    for (i = 0; i < 3; i++) {
        assert_int_equal(rank[i].rc, -1);
        assert_string_equal(rank[i].err, why);
    }
}


static void
test_late_rank(void **state)
{
    rank_t     rank[3];
    ep_map_t  *map;

    (void) state;

    setup(rank, 3, 4, 1000, 100, &map);
    rank[1].late = 600;
    run_all(rank, 3, map);
    all_failed(rank, "no dispatch within 100 ms from rank 1");
}


static void
test_abort(void **state)
{
    rank_t     rank[3];
    ep_map_t  *map;

    (void) state;

    setup(rank, 3, 4, 1000, 0, &map);
    rank[2].leave = 1;
    run_all(rank, 3, map);
    all_failed(rank, "rank 2 left the exchange");
}


static void
test_impossible_expert(void **state)
{
    rank_t     rank[3];
    ep_map_t  *map;

    (void) state;

    setup(rank, 3, 4, 1000, 0, &map);
    rank[0].bad = 1;
    run_all(rank, 3, map);
    all_failed(rank, "rank 0: row 0 wants expert 11 of 11");
}


static void
test_misuse(void **state)
{
    char         err[ERR_LEN];
    rank_t       rank[1];
    ep_map_t    *map;
    ep_send_t    send;
    be_pairs_t   pairs;

    (void) state;

    setup(rank, 1, 0, 0, 0, &map);
    assert_int_equal(rank[0].ex->barrier(rank[0].ex, err), 0);
    assert_int_equal(rank[0].ex->combine(rank[0].ex, err), -1);
    assert_string_equal(err, "rank 0: combine without dispatch");
    run_all(rank, 1, map);

    setup(rank, 1, 0, 0, 0, &map);
    memset(&send, 0, sizeof(send));
    send.placement = rank[0].p;
    send.rows = ROWS + 1;
    assert_int_equal(rank[0].ex->dispatch(rank[0].ex, &send, &pairs, err),
                     -1);
    assert_non_null(strstr(err, "more than the exchange was made for"));
    run_all(rank, 1, map);
}


static void
test_placement(void **state)
{
    char                   err[ERR_LEN];
    ep_map_t              *map;
    uint32_t               e, r, n[3];
    const ep_placement_t  *p;

    (void) state;

    map = ep_map_open(11, 3, 0, err);
    assert_non_null(map);
    p = ep_map_placement(map);
    memset(n, 0, sizeof(n));

    for (e = 0; e < 11; e++) {
        assert_int_equal(p->first[e], e);
        assert_int_equal(p->slot[e], n[p->rank[e]]);
        n[p->rank[e]]++;
        assert_true(e == 0 || p->rank[e] >= p->rank[e - 1]);
    }

    for (r = 0; r < 3; r++) {
        assert_int_equal(n[r], p->count[r]);
        assert_true(n[r] == 3 || n[r] == 4);
    }

    ep_map_close(map);

    assert_null(ep_map_open(4, 5, 0, err));
    assert_string_equal(err, "cannot place 4 experts on 5 ranks: each rank "
                        "must hold at least one");
    assert_null(ep_map_open(4, 0, 0, err));
    assert_null(ep_map_open(4, 257, 0, err));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_random_routing),
        cmocka_unit_test(test_hot_experts),
        cmocka_unit_test(test_late_rank),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_impossible_expert),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_placement),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
