/*
 * The prefix zone against a plain table under random use; memory that runs out,
 * lapped logs, epochs and boots.
 */

#include "unit/prefix_zone.h"


#define CHAINS  40
#define LONG    30           /* tags of a chain */


/* The zone against a table. */

static void
test_random(void **state)
{
    int          step;
    uint32_t     c, r, n, k;
    uint64_t     epoch;
    fixture_t    f;
    chan_tag_t   tags[CHAINS][LONG];

    static uint8_t  table[CHAINS][LONG][RANKS];

    (void) state;

    random_state = 11;
    fixture_start(&f, 16 << 20);
    memset(table, 0, sizeof(table));

    for (c = 0; c < CHAINS; c++) {
        tags_of(tags[c], c, LONG);
    }

    for (step = 0; step < 200000; step++) {
        c = random_below(CHAINS);
        r = random_below(RANKS);
        n = 1 + random_below(LONG);

        switch (random_below(20)) {

        default:
            held(&f, tags[c], n, r);

            for (k = 0; k < n; k++) {
                table[c][k][r] = 1;
            }

            break;

        case 0: case 1: case 2: case 3: case 4: case 5:
            (void) chan_board_evict(f.board, r, tags[c][n - 1].tag);
            table[c][n - 1][r] = 0;
            break;

        case 6:                  /* out of date: nothing happens */
            epoch = f.epoch[r];
            f.epoch[r] = 1;
            assert_int_equal(sync_zone(&f, 0), NGX_OK);
            held(&f, tags[c], n, r);
            f.epoch[r] = epoch;
            break;

        case 7:
            if (random_below(20) == 0) {
                f.epoch[r]++;
                publish(&f);
                assert_int_equal(sync_zone(&f, 0), NGX_OK);

                for (c = 0; c < CHAINS; c++) {
                    for (k = 0; k < LONG; k++) {
                        table[c][k][r] = 0;
                    }
                }
            }

            break;

        case 8:
            if (random_below(200) == 0) {
                board_new(&f);
                assert_int_equal(sync_zone(&f, 0), NGX_DECLINED);
                assert_int_equal(sync_zone(&f, 1), NGX_OK);
                memset(table, 0, sizeof(table));
            }

            break;

        case 9:
            if (random_below(400) == 0) {
                for (k = 0; k <= CHAN_LOG_SIZE; k++) {
                    (void) chan_board_evict(f.board, r, 1);
                }

                assert_int_equal(sync_zone(&f, 0), NGX_OK);
                memset(table, 0, sizeof(table));
            }

            break;
        }

        assert_int_equal(sync_zone(&f, 0), NGX_OK);
        c = random_below(CHAINS);
        r = random_below(RANKS);

        for (k = 0; k < LONG && table[c][k][r]; k++) {
            /* void */
        }

        assert_int_equal(depth(&f, tags[c], LONG, r), k);
    }

    fixture_end(&f);
}


static void
test_lapped(void **state)
{
    uint32_t    k;
    fixture_t   f;
    chan_tag_t  t[4];

    (void) state;

    fixture_start(&f, 1 << 20);
    tags_of(t, 1, 4);
    held(&f, t, 4, 2);

    /* Exactly the log's size can still be read. */

    for (k = 0; k < CHAN_LOG_SIZE; k++) {
        (void) chan_board_evict(f.board, 2, 99);
    }

    assert_int_equal(sync_zone(&f, 0), NGX_OK);
    assert_int_equal(depth(&f, t, 4, 2), 4);

    for (k = 0; k <= CHAN_LOG_SIZE; k++) {
        (void) chan_board_evict(f.board, 1, 99);
    }

    assert_int_equal(sync_zone(&f, 0), NGX_OK);
    assert_int_equal(depth(&f, t, 4, 2), 0);

    held(&f, t, 4, 2);
    assert_int_equal(depth(&f, t, 4, 2), 4);
    (void) chan_board_evict(f.board, 2, t[2].tag);
    assert_int_equal(sync_zone(&f, 0), NGX_OK);
    assert_int_equal(depth(&f, t, 4, 2), 2);

    fixture_end(&f);
}


/* 65,535 voids and the counter begins again. */

static void
test_voids(void **state)
{
    uint32_t    i;
    fixture_t   f;
    chan_tag_t  t[2];

    (void) state;

    fixture_start(&f, 1 << 20);
    tags_of(t, 1, 2);

    for (i = 0; i < 140000; i++) {

        if (i % 3 != 2) {
            held(&f, t, 2, i % RANKS);
            assert_int_equal(depth(&f, t, 2, i % RANKS), 2);
        }

        f.epoch[i % RANKS]++;
        publish(&f);
        assert_int_equal(sync_zone(&f, 0), NGX_OK);
        assert_int_equal(depth(&f, t, 2, i % RANKS), 0);
    }

    fixture_end(&f);
}


static void
test_memory(void **state)
{
    uint32_t     c, n;
    size_t       full;
    fixture_t    f;
    ngx_str_t    name = ngx_string("another");
    chan_tag_t   t[LONG], big[600];

    (void) state;

    full = 8192 + 100 * 64;
    fixture_start(&f, full);

    for (c = 0; c < 1000; c++) {
        tags_of(t, c, LONG);
        held(&f, t, LONG, c % RANKS);
        assert_int_equal(depth(&f, t, LONG, c % RANKS), LONG);
        assert_true(shim_slab_used <= full);
    }

    /* The oldest are gone; of one that is going its end goes first. */

    assert_int_equal(depth(&f, t, LONG, 999 % RANKS), LONG);
    tags_of(t, 998, LONG);
    assert_int_equal(depth(&f, t, LONG, 998 % RANKS), LONG);
    tags_of(t, 900, LONG);
    assert_int_equal(depth(&f, t, LONG, 900 % RANKS), 0);

    for (c = 999, n = LONG; n == LONG; c--) {
        tags_of(t, c, LONG);
        n = depth(&f, t, LONG, c % RANKS);
    }

    assert_true(c < 997 && n < LONG);

    /* A prompt larger than the zone keeps its beginning. */

    tags_of(big, 5000, 600);
    held(&f, big, 600, 0);
    n = depth(&f, big, 600, 0);
    assert_true(n > 50 && n < 250);

    /* Another engine finds room, or hears that there is none. */

    assert_non_null(ngx_http_llm_prefix_engine(&f.zone, &name));
    name.len = 3;
    shim_slab_left = 0;
    (void) ngx_http_llm_prefix_engine(&f.zone, &name);
    shim_slab_left = 0;
    name.len = 2;

    while (ngx_http_llm_prefix_engine(&f.zone, &name) != NULL) {
        shim_slab_left = 0;
        name.len++;
        assert_true(name.len < 8);
    }

    fixture_end(&f);
}


static void
test_inactive(void **state)
{
    fixture_t   f;
    chan_tag_t  t[3], o[3];

    (void) state;

    fixture_start(&f, 1 << 20);
    f.zone.inactive = 10;
    tags_of(t, 1, 3);
    tags_of(o, 2, 3);

    held(&f, t, 3, 1);
    shim_clock(6000);
    held(&f, o, 3, 1);
    held(&f, t, 2, 3);
    shim_clock(12000);
    assert_int_equal(depth(&f, t, 3, 1), 2);
    assert_int_equal(f.zone.sh->nodes, 5);
    shim_clock(17000);
    assert_int_equal(depth(&f, t, 3, 1), 0);
    assert_int_equal(depth(&f, t, 3, 3), 0);

    /* New ones push out those that nobody asks for. */

    tags_of(t, 3, 3);
    held(&f, t, 3, 1);
    assert_int_equal(f.zone.sh->nodes, 3);

    fixture_end(&f);
}


/* Two engines share a zone and do not see each other. */

static void
test_engines(void **state)
{
    uint32_t                       d[CHAN_RANKS_MAX];
    fixture_t                      f;
    ngx_str_t                      name = ngx_string("other");
    chan_tag_t                     t[3];
    ngx_http_llm_prefix_engine_t  *other;

    (void) state;

    fixture_start(&f, 1 << 20);
    other = ngx_http_llm_prefix_engine(&f.zone, &name);
    assert_non_null(other);
    assert_int_equal(ngx_http_llm_prefix_sync(&f.zone, other, f.board, f.boot,
                                              1), NGX_OK);
    tags_of(t, 1, 3);
    held(&f, t, 3, 1);

    ngx_http_llm_prefix_find(&f.zone, other, t, 3, d);
    assert_int_equal(d[1], 0);
    ngx_http_llm_prefix_held(&f.zone, other, t, 2, 1, f.epoch[1]);
    ngx_http_llm_prefix_find(&f.zone, other, t, 3, d);
    assert_int_equal(d[1], 2);
    assert_int_equal(depth(&f, t, 3, 1), 3);

    /* One restarts, the other does not mind. */

    board_new(&f);
    assert_int_equal(sync_zone(&f, 1), NGX_OK);
    assert_int_equal(depth(&f, t, 3, 1), 0);
    ngx_http_llm_prefix_find(&f.zone, other, t, 3, d);
    assert_int_equal(d[1], 2);

    /* Ranks beyond the board's, and of another epoch. */

    ngx_http_llm_prefix_held(&f.zone, f.engine, t, 3, RANKS, f.epoch[0]);
    ngx_http_llm_prefix_held(&f.zone, f.engine, t, 3, UINT32_MAX, 0);
    ngx_http_llm_prefix_held(&f.zone, f.engine, t, 3, 0, 12345);
    assert_int_equal(depth(&f, t, 3, 0), 0);

    fixture_end(&f);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_lapped),
        cmocka_unit_test(test_voids),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_inactive),
        cmocka_unit_test(test_engines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
