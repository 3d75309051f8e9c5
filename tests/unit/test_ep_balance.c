/*
 * Placements: what must hold of any, and how busy the busiest rank is, next to
 * the published algorithm's result on the same loads.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ep/ep_balance.h"
#include "ep_published.h"
#include "random.h"


#define EXPERTS_MAX  PUBLISHED_EXPERTS


static double
uniform(uint64_t *state)
{
    return (double) (random_next(state) >> 11) / 9007199254740992.0;
}


/* Loads of a kind: 0 even, 1 random, 2 Zipf, 3 a few hot, 4 none. */

static void
loads(uint32_t kind, double *load, uint32_t n, uint64_t *state)
{
    double    t;
    uint32_t  i, j;

    for (i = 0; i < n; i++) {
        switch (kind) {

        case 0:
            load[i] = 1;
            break;

        case 1:
            load[i] = floor(uniform(state) * 200);
            break;

        case 2:
            load[i] = 1e6 / pow(i + 1, 1.1);
            break;

        case 3:
            load[i] = uniform(state) < 0.05 ? 1000 : uniform(state) * 10;
            break;

        default:
            load[i] = 0;
        }
    }

    for (i = n; kind == 2 && i-- > 1; /* void */ ) {
        j = (uint32_t) (uniform(state) * (i + 1));
        t = load[i];
        load[i] = load[j];
        load[j] = t;
    }
}


/* A sound placement, and its loads add up; returns the busiest rank's. */

static double
check(const ep_balance_t *b, const ep_placement_t *p, const double *load)
{
    double    sum, all, max, rank[EP_RANKS_MAX];
    uint32_t  e, r, i, h, nodes[8], size;

    assert_int_equal(p->experts, b->experts);
    assert_int_equal(p->ranks, b->ranks);
    assert_int_equal(p->first[0], 0);
    assert_int_equal(p->first[p->experts], b->slots);

    for (e = 0, all = 0; e < p->experts; e++) {
        assert_true(p->first[e + 1] > p->first[e]);
        all += load[e];

        for (h = p->first[e]; h < p->first[e + 1]; h++) {
            assert_true(h == p->first[e] || p->rank[h] > p->rank[h - 1]);
            assert_true(p->slot[h] < p->count[p->rank[h]]);
            assert_int_equal(p->expert[p->begin[p->rank[h]] + p->slot[h]], e);
        }
    }

    for (r = 0, i = 0; r < p->ranks; r++) {
        assert_int_equal(p->begin[r], i);
        assert_true(b->nodes > 1 || (p->count[r] >= b->slots / b->ranks
                                     && p->count[r] <= (b->slots + b->ranks
                                                        - 1) / b->ranks));
        i += p->count[r];
    }

    assert_int_equal(i, b->slots);

    /* a group's experts stay on one node, and each node has as many groups */

    size = b->experts / b->groups;
    memset(nodes, 0, sizeof(nodes));

    for (e = 0; e < p->experts && b->nodes > 1; e++) {
        for (h = p->first[e]; h < p->first[e + 1]; h++) {
            assert_int_equal(p->rank[h] / (b->ranks / b->nodes),
                             p->rank[p->first[e / size * size]]
                             / (b->ranks / b->nodes));
        }

        nodes[p->rank[p->first[e]] / (b->ranks / b->nodes)]++;
    }

    for (r = 0; r < b->nodes && b->nodes > 1; r++) {
        assert_int_equal(nodes[r], b->experts / b->nodes);
    }

    max = ep_balance_load(p, load, rank);

    for (r = 0, sum = 0; r < p->ranks; r++) {
        sum += rank[r];
        assert_true(rank[r] <= max);
    }

    assert_true(fabs(sum - all) <= 1e-9 * all);
    assert_true(max >= all / b->ranks * (1 - 1e-9));

    return max;
}


static double
balance(const ep_balance_t *b, const double *load)
{
    char       err[ERR_LEN];
    double     max;
    ep_map_t  *map;

    map = ep_balance(b, load, NULL, err);
    assert_non_null(map);
    max = check(b, ep_map_placement(map), load);
    ep_map_close(map);

    return max;
}


/* The README example of the published code, 2 layers, 16 slots, 2 nodes. */

static void
test_published_example(void **state)
{
    double                max, sum[8];
    uint32_t              l, i, r, n, count[12];
    static const double   load[2][12] = {
        { 90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86 },
        { 20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27 }
    };
    static const uint32_t  result[2][16] = {
        { 5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1 },
        { 7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1 }
    };
    const ep_balance_t  b = { 12, 16, 4, 2, 8 };

    (void) state;

    for (l = 0; l < 2; l++) {
        memset(count, 0, sizeof(count));
        memset(sum, 0, sizeof(sum));

        for (i = 0; i < 16; i++) {
            count[result[l][i]]++;
        }

        for (i = 0, max = 0; i < 16; i++) {
            r = i / 2;
            sum[r] += load[l][result[l][i]] / count[result[l][i]];
            max = sum[r] > max ? sum[r] : max;
        }

        /* the oracle above is that algorithm */

        assert_true(fabs(published_max(&b, load[l]) - max) < 1e-9);
        assert_true(balance(&b, load[l]) <= max + 1e-9);

        for (i = 0, n = 0; i < 12; i++) {
            n += count[i];
        }

        assert_int_equal(n, 16);
        print_message("published example, layer %u: busiest rank %g, "
                      "published %g\n", l, balance(&b, load[l]), max);
    }
}


/* No worse than the published one, on loads of all kinds and many sizes. */

static void
test_no_worse(void **state)
{
    double        load[EXPERTS_MAX], ours, theirs, all, mean[4];
    uint64_t      seed;
    uint32_t      kind, i, e, s;
    ep_balance_t  b;

    static const ep_balance_t  size[] = {
        { 256, 256, 8, 1, 8 }, { 256, 288, 8, 1, 32 }, { 256, 288, 8, 4, 32 },
        { 256, 320, 8, 8, 64 }, { 64, 64, 4, 1, 2 }, { 64, 72, 4, 1, 4 },
        { 64, 68, 4, 2, 4 }, { 160, 176, 8, 2, 16 }, { 24, 26, 4, 1, 2 }
    };
    static const char *const  name[] = { "even", "random", "Zipf", "hot" };

    (void) state;

    seed = 5;

    print_message("busiest rank over the mean, published and ours\n");

    for (s = 0; s < sizeof(size) / sizeof(size[0]); s++) {
        b = size[s];

        for (kind = 0; kind < 4; kind++) {
            memset(mean, 0, sizeof(mean));

            for (i = 0; i < 20; i++) {
                loads(kind, load, b.experts, &seed);

                for (e = 0, all = 0; e < b.experts; e++) {
                    all += load[e];
                }

                theirs = published_max(&b, load);
                ours = balance(&b, load);
                mean[0] += theirs / all * b.ranks / 20;
                mean[1] += ours / all * b.ranks / 20;
                mean[2] = fmax(mean[2], ours / theirs);

                if (ours > theirs * (1 + 1e-9)) {
                    print_message("experts %u slots %u nodes %u ranks %u %s: "
                                  "%g, published %g\n", b.experts, b.slots,
                                  b.nodes, b.ranks, name[kind], ours, theirs);
                    fail();
                }
            }

            print_message("%3u experts %3u slots %u nodes %2u ranks %-6s "
                          "%.4f %.4f  (worst ratio %.4f)\n", b.experts,
                          b.slots, b.nodes, b.ranks, name[kind], mean[0],
                          mean[1], mean[2]);
        }
    }
}


/* Any size that is possible: slots that do not divide, replicas everywhere. */

static void
test_any_size(void **state)
{
    char                   err[ERR_LEN];
    double                 load[EXPERTS_MAX], before, after;
    uint64_t               seed;
    uint32_t               i;
    ep_map_t              *map, *next;
    ep_balance_t           b;
    const ep_placement_t  *p, *q;

    (void) state;

    seed = 11;

    for (i = 0; i < 3000; i++) {
        b.nodes = 1 + (uint32_t) (random_next(&seed) % 3);
        b.groups = b.nodes * (1 + (uint32_t) (random_next(&seed) % 3));
        b.experts = b.groups * (1 + (uint32_t) (random_next(&seed) % 12));
        b.ranks = b.nodes * (1 + (uint32_t) (random_next(&seed) % 5));
        b.slots = b.experts + (uint32_t) (random_next(&seed)
                                          % (2 * b.experts));

        loads(i % 5, load, b.experts, &seed);

        if (ep_balance_check(&b, err) != 0) {
            assert_null(ep_balance(&b, load, NULL, err));
            continue;
        }

        map = ep_balance(&b, load, NULL, err);
        assert_non_null(map);
        p = ep_map_placement(map);
        check(&b, p, load);

        /* another load: never worse than staying, nor than a fresh start */

        loads((i + 1) % 5, load, b.experts, &seed);
        before = ep_balance_load(p, load, NULL);

        next = ep_balance(&b, load, p, err);
        assert_non_null(next);
        q = ep_map_placement(next);
        after = check(&b, q, load);

        if (b.nodes == 1) {
            assert_true(after <= before * (1 + 1e-9));
            assert_true(after <= balance(&b, load) * (1.01 + 1e-9));
        }

        /* and again the same load: nothing moves */

        ep_map_close(map);
        map = ep_balance(&b, load, q, err);
        assert_non_null(map);
        assert_true(b.nodes > 1 || ep_balance_moves(q, ep_map_placement(map),
                                                    NULL) == 0);

        ep_map_close(map);
        ep_map_close(next);
    }
}


/* The same loads from the start placement: few experts need to move. */

static void
test_moves(void **state)
{
    char                   err[ERR_LEN];
    double                 load[EXPERTS_MAX], all;
    uint64_t               seed;
    uint32_t               e, moves;
    ep_map_t              *start, *map;
    ep_balance_t           b;
    const ep_placement_t  *p, *q;

    (void) state;

    seed = 3;
    b = (ep_balance_t) { 64, 64, 1, 1, 4 };
    loads(1, load, 64, &seed);

    for (e = 0, all = 0; e < 64; e++) {
        all += load[e];
    }

    start = ep_map_open(64, 4, 0, err);
    assert_non_null(start);
    p = ep_map_placement(start);

    map = ep_balance(&b, load, p, err);
    assert_non_null(map);
    q = ep_map_placement(map);
    moves = ep_balance_moves(p, q, NULL);

    print_message("64 experts on 4 ranks: busiest over mean %.3f -> %.3f, "
                  "%u of 64 moved\n", ep_balance_load(p, load, NULL) / all * 4,
                  ep_balance_load(q, load, NULL) / all * 4, moves);

    assert_true(ep_balance_load(q, load, NULL) < all / 4 * 1.01);
    assert_in_range(moves, 1, 16);

    ep_map_close(start);
    ep_map_close(map);
}


static void
test_start(void **state)
{
    char         err[ERR_LEN];
    double       load[EXPERTS_MAX];
    uint32_t     e, r, n;
    ep_map_t    *map, *copy;
    ep_balance_t  b;

    (void) state;

    for (e = 0; e < EXPERTS_MAX; e++) {
        load[e] = 1;
    }

    for (e = 1; e <= 30; e++) {
        for (r = 1; r <= 5 && r <= e; r++) {
            for (n = 0; n <= e * (r - 1); n++) {
                map = ep_map_open(e, r, n, err);
                assert_non_null(map);
                b = (ep_balance_t) { e, e + n, 1, 1, r };
                check(&b, ep_map_placement(map), load);

                copy = ep_map_copy(map, err);
                assert_non_null(copy);
                check(&b, ep_map_placement(copy), load);
                assert_int_equal(ep_balance_moves(ep_map_placement(map),
                                                  ep_map_placement(copy),
                                                  NULL), 0);
                ep_map_close(copy);
                ep_map_close(map);
            }

            assert_null(ep_map_open(e, r, e * (r - 1) + 1, err));
        }
    }

    assert_string_equal(err, "121 redundant experts are too many: 5 ranks "
                        "can hold 120, each of 30 experts once more on all "
                        "others");
}


static void
test_refused(void **state)
{
    char                    err[ERR_LEN];
    uint32_t                i;
    ep_balance_t            b;
    static const uint32_t   two[] = { 2, 2 }, three[] = { 3, 1 };
    static const uint32_t   twice[] = { 0, 1, 2, 2 };
    static const uint32_t   missing[] = { 0, 1, 0, 1 };
    static const uint32_t   beyond[] = { 0, 1, 2, 3 };

    static const struct {
        ep_balance_t   b;
        const char    *why;
    } bad[] = {
        { { 0, 0, 1, 1, 1 }, "0 experts" },
        { { 4, 4, 1, 1, 0 }, "0 ranks" },
        { { 4, 400, 1, 1, 257 }, "257 ranks" },
        { { 4, 3, 1, 1, 2 }, "with 3 slots" },
        { { 2, 3, 1, 1, 4 }, "with 3 slots" },
        { { 8, 8, 3, 1, 2 }, "evenly" },
        { { 8, 8, 4, 3, 6 }, "evenly" },
        { { 8, 8, 4, 2, 3 }, "evenly" },
        { { 8, 17, 1, 1, 2 }, "17 slots are more than 8 experts" },
        { { 8, 17, 2, 2, 4 }, "each once on each of 2 ranks" },
    };

    (void) state;

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(ep_balance_check(&bad[i].b, err), -1);
        assert_non_null(strstr(err, bad[i].why));
    }

    b = (ep_balance_t) { 8, 8, 3, 2, 2 };
    ep_balance_global(&b);
    assert_int_equal(b.nodes, 1);
    assert_int_equal(ep_balance_check(&b, err), 0);

    assert_null(ep_map_make(3, 2, two, twice, 2, err));
    assert_string_equal(err, "rank 1 is to hold expert 2 twice");
    assert_null(ep_map_make(3, 2, two, missing, 2, err));
    assert_string_equal(err, "expert 2 has no rank");
    assert_null(ep_map_make(3, 2, two, beyond, 2, err));
    assert_string_equal(err, "rank 1 is to hold expert 3 of 3");
    assert_null(ep_map_make(3, 2, three, beyond, 2, err));
    assert_non_null(strstr(err, "not possible"));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_published_example),
        cmocka_unit_test(test_no_worse),
        cmocka_unit_test(test_any_size),
        cmocka_unit_test(test_moves),
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
