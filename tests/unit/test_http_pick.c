/*
 * Which rank is named for a prompt.
 */

#include "unit/prefix_zone.h"


static ngx_int_t
pick(fixture_t *f, ngx_uint_t min_match, ngx_uint_t max_skew,
    const uint32_t *d, ngx_uint_t n)
{
    uint64_t                  epoch;
    uint32_t                  full[CHAN_RANKS_MAX];
    ngx_int_t                 rank;
    ngx_http_llm_pick_conf_t  conf;

    memset(full, 0, sizeof(full));
    memcpy(full, d, RANKS * sizeof(*d));
    conf.min_match = min_match;
    conf.max_skew = max_skew;
    epoch = 0;

    rank = ngx_http_llm_pick(&f->zone, f->engine, f->board, &conf, full, n, 1,
                             &epoch);

    assert_true(rank >= -1 && rank < RANKS);
    assert_int_equal(epoch, rank == -1 ? 0 : f->epoch[rank]);

    /* forget that it was sent */

    f->state.step += 2;
    publish(f);

    return rank;
}


static void
test_pick(void **state)
{
    uint32_t   i, none[RANKS] = { 0 }, d[RANKS] = { 0, 4, 9, 0, 1 };
    uint32_t   same[RANKS] = { 0, 5, 0, 5, 5 };
    fixture_t  f;

    (void) state;

    fixture_start(&f, 1 << 20);

    assert_int_equal(pick(&f, 0, 4, none, 10), -1);
    assert_int_equal(pick(&f, 0, 4, d, 10), 2);
    assert_int_equal(pick(&f, 90, 4, d, 10), 2);
    assert_int_equal(pick(&f, 91, 4, d, 10), -1);
    assert_int_equal(pick(&f, 100, 4, d, 9), 2);

    /* Up to max_skew more than the least, or a quarter above the mean. */

    f.rank[2].running = 3;
    f.rank[2].waiting = 1;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 2);
    f.rank[2].waiting = 2;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 1);
    assert_int_equal(pick(&f, 0, 5, d, 10), 2);

    for (i = 0; i < RANKS; i++) {
        f.rank[i].running = 100;
        f.rank[i].waiting = 0;
    }

    f.rank[0].running = 80;
    f.rank[2].running = 119;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 2);
    f.rank[2].running = 140;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 1);

    /* Balance wins where the others have nothing to offer. */

    d[1] = 0;
    d[4] = 0;
    assert_int_equal(pick(&f, 0, 4, d, 10), 0);
    d[4] = 1;
    assert_int_equal(pick(&f, 20, 4, d, 10), 0);

    /* Of equals the least loaded, then that with more room, then in turn. */

    memset(f.rank, 0, sizeof(f.rank));
    f.rank[1].running = 2;
    f.rank[3].running = 1;
    f.rank[4].running = 1;
    f.rank[3].blocks_free = 5;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, same, 5), 3);
    f.rank[4].blocks_free = 6;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, same, 5), 4);
    f.rank[3].running = 0;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, same, 5), 3);
    f.rank[3].running = 1;
    f.rank[3].blocks_free = 6;
    publish(&f);

    for (i = 0; pick(&f, 0, 4, same, 5) != 3; i++) {
        assert_true(i < RANKS);
    }

    for (i = 0; pick(&f, 0, 4, same, 5) != 4; i++) {
        assert_true(i < RANKS);
    }

    fixture_end(&f);
}


/* What was sent counts until the board can show it. */

static void
test_pick_sent(void **state)
{
    int        i, n[RANKS];
    uint32_t   d[CHAN_RANKS_MAX] = { 9, 9, 9, 9, 9 };
    uint64_t   epoch;
    ngx_int_t  rank;
    fixture_t  f;

    ngx_http_llm_pick_conf_t  conf = { 0, 4 };

    (void) state;

    fixture_start(&f, 1 << 20);
    memset(n, 0, sizeof(n));

    for (i = 0; i < 10 * RANKS; i++) {
        rank = ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d, 9, 1,
                                 &epoch);
        assert_in_range(rank, 0, RANKS - 1);
        n[rank]++;
    }

    for (i = 0; i < RANKS; i++) {
        assert_int_equal(n[i], 10);
    }

    /* One rank alone: from the sixth on it is overloaded. */

    f.state.step += 2;
    publish(&f);
    memset(d, 0, sizeof(d));
    d[3] = 9;

    for (i = 0; i < 5; i++) {
        assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    }

    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);

    /* The step after still counts them, the next no longer. */

    f.state.step++;
    publish(&f);
    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    f.state.step++;
    publish(&f);
    assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d,
                                       9, 5, &epoch), 3);

    /* Those that the board shows in the same step do not count twice. */

    f.state.step += 2;
    publish(&f);

    for (i = 0; i < 5; i++) {
        assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
        f.rank[3].waiting = (uint64_t) i + 1;
        publish(&f);
    }

    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    f.rank[3].waiting = 0;
    f.state.step += 2;
    publish(&f);
    assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d,
                                       9, 5, &epoch), 3);

    /* Without steps, time does. */

    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    shim_clock(ngx_current_msec + 5001);
    assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d,
                                       9, 1, &epoch), 3);

    fixture_end(&f);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_pick),
        cmocka_unit_test(test_pick_sent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
