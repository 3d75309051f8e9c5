/*
 * What a request costs: published prices by hand, rounding at each side of a
 * half, sums of parts, the largest values.
 */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>

#include <cmocka.h>

#include "ledger/ledger_price.h"

#include "unit/random.h"


static int64_t
cost(int64_t hit, int64_t miss, int64_t output, uint32_t all,
    uint64_t nhit, uint64_t nmiss, uint64_t noutput)
{
    ledger_price_t    price;
    ledger_percent_t  percent;

    price.hit = hit;
    price.miss = miss;
    price.output = output;
    percent.hit = 100;
    percent.miss = 100;
    percent.output = 100;
    percent.all = all;

    return ledger_price_cost(&price, &percent, nhit, nmiss, noutput);
}


static void
test_published(void **unused)
{
    (void) unused;

    /* $0.14, $0.55, $2.19 for a million, in picodollars for a token */

    assert_int_equal(cost(140000, 550000, 2190000, 100, 1000000, 0, 0),
                     140000000);
    assert_int_equal(cost(140000, 550000, 2190000, 100, 0, 1000000, 0),
                     550000000);
    assert_int_equal(cost(140000, 550000, 2190000, 100, 0, 0, 1000000),
                     2190000000);

    /* 342, 266 and 168 billion: $562,100 */

    assert_int_equal(cost(140000, 550000, 2190000, 100, 342000000000,
                          266000000000, 168000000000),
                     562100 * INT64_C(1000000000));
    assert_int_equal(cost(140000, 550000, 2190000, 25, 342000000000,
                          266000000000, 168000000000),
                     140525 * INT64_C(1000000000));
    assert_int_equal(cost(140000, 550000, 2190000, 0, 1, 2, 3), 0);
    assert_int_equal(cost(140000, 550000, 2190000, 100, 0, 0, 0), 0);
}


static void
test_rounding(void **unused)
{
    ledger_price_t    price;
    ledger_percent_t  percent;

    (void) unused;

    /* picodollars; half a nanodollar goes up */

    assert_int_equal(cost(1, 0, 0, 100, 499, 0, 0), 0);
    assert_int_equal(cost(1, 0, 0, 100, 500, 0, 0), 1);
    assert_int_equal(cost(1, 0, 0, 100, 1499, 0, 0), 1);
    assert_int_equal(cost(1, 0, 0, 100, 1500, 0, 0), 2);

    /* The parts are added first: 499 + 1 picodollars are half of one. */

    assert_int_equal(cost(1, 1, 1, 100, 400, 99, 0), 0);
    assert_int_equal(cost(1, 1, 1, 100, 400, 99, 1), 1);

    /* Percents are exact: 33 % of 1 % of 150,000 picodollars is 495. */

    price.hit = 150000;
    price.miss = 0;
    price.output = 0;
    percent.hit = 1;
    percent.miss = 100;
    percent.output = 100;
    percent.all = 33;
    assert_int_equal(ledger_price_cost(&price, &percent, 1, 0, 0), 0);
    percent.all = 34;                            /* 510 */
    assert_int_equal(ledger_price_cost(&price, &percent, 1, 0, 0), 1);
    percent.hit = 1000;
    percent.all = 100;
    assert_int_equal(ledger_price_cost(&price, &percent, 1, 0, 0), 1500);
}


/* Never off by more than half a nanodollar from the sum of all parts. */

static void
test_random(void **unused)
{
    int               i, k;
    int64_t           got;
    uint64_t          state, tokens[3];
    ledger_int_t      exact, rest;
    ledger_price_t    price;
    ledger_percent_t  percent;

    (void) unused;
    state = 1;

    for (i = 0; i < 100000; i++) {
        price.hit = (int64_t) (random_next(&state) % 100000000);
        price.miss = (int64_t) (random_next(&state) % 100000000);
        price.output = (int64_t) (random_next(&state) % 100000000);
        percent.hit = random_next(&state) % 201;
        percent.miss = random_next(&state) % 201;
        percent.output = random_next(&state) % 201;
        percent.all = random_next(&state) % 101;

        for (k = 0; k < 3; k++) {
            tokens[k] = random_next(&state) % 200000;
        }

        got = ledger_price_cost(&price, &percent, tokens[0], tokens[1],
                                tokens[2]);

        exact = (ledger_int_t) price.hit * percent.hit * tokens[0]
                + (ledger_int_t) price.miss * percent.miss * tokens[1]
                + (ledger_int_t) price.output * percent.output * tokens[2];
        exact *= percent.all;
        rest = exact - (ledger_int_t) got * 10000000;

        assert_true(rest >= -5000000 && rest < 5000000);
    }
}


static void
test_largest(void **unused)
{
    ledger_price_t    price;
    ledger_percent_t  percent;

    (void) unused;

    price.hit = LEDGER_PRICE_MAX;
    price.miss = LEDGER_PRICE_MAX;
    price.output = LEDGER_PRICE_MAX;
    percent.hit = LEDGER_PERCENT_MAX;
    percent.miss = LEDGER_PERCENT_MAX;
    percent.output = LEDGER_PERCENT_MAX;
    percent.all = LEDGER_PERCENT_MAX;

    assert_true(ledger_price_cost(&price, &percent, LEDGER_TOKENS_MAX,
                                  LEDGER_TOKENS_MAX, LEDGER_TOKENS_MAX)
                == INT64_MAX);

    /* 9,000,000,000 dollars: just below what 64 bits hold */

    assert_int_equal(cost(0, 0, 9000000, 100, 0, 0, 1000000000000000),
                     9000000000 * INT64_C(1000000000));
    assert_true(cost(0, 0, 9300000, 100, 0, 0, 1000000000000000)
                == INT64_MAX);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_largest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
