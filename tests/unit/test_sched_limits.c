/*
 * How a sequence ends before its time, and the scheduler: cancels, limits,
 * failures, stops.
 */

#include "sched_model.h"


static void
test_cancel(void **state)
{
    req_t     r[3];
    uint64_t  before;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 8;
    start(2, 1, 64, 16, 100);

    r[0].ignore_eos = r[1].ignore_eos = r[2].ignore_eos = 1;
    submit(&r[0], 70, 500);
    submit(&r[1], 70, 500);
    submit(&r[2], 70, 500);

    step();
    step();
    step();
    assert_true(r[0].n_output > 0 && r[1].n_output > 0);
    assert_false(r[2].accepted);

    before = sched->steps;
    r[0].cancelled = 1;
    sched_cancel(sched, r[0].seq);
    r[2].cancelled = 1;
    sched_cancel(sched, r[2].seq);
    sched_cancel(sched, r[2].seq);
    step();

    assert_true(r[0].finished && r[2].finished);
    assert_int_equal(r[0].f.reason, SCHED_CANCELLED);
    assert_int_equal(r[2].f.reason, SCHED_CANCELLED);
    assert_true(r[0].f.step <= before + 1);
    assert_int_equal(kv_cache_free(&sched->rank[0].cache)
                     + kv_cache_free(&sched->rank[1].cache), 32 - 2);

    sched_cancel(sched, r[0].seq);       /* too late: nothing happens */
    while (step()) { /* void */ }
    check_end(&r[1]);

    done(r, 3);
}


static void
test_queue_limit(void **state)
{
    req_t     r[12];
    uint32_t  i, refused;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 9;
    start(1, 2, 64, 64, 4);

    for (i = 0; i < 8; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 10, 100);
    }

    step();

    /* Two run, four wait, two are refused, at once. */

    for (i = 0, refused = 0; i < 8; i++) {
        if (r[i].finished) {
            assert_int_equal(r[i].f.reason, SCHED_E_QUEUE);
            refused++;
        }
    }

    assert_int_equal(refused, 2);
    assert_true(r[6].finished && r[7].finished);
    assert_int_equal(sched_waiting(sched), 4);

    /* A request's own limit counts too, but cannot widen. */

    submit_full(&r[8], 10, 100, INT32_MAX, 0, 0, 0, 2);
    submit_full(&r[9], 10, 100, INT32_MAX, 0, 0, 0, 50);
    step();
    assert_int_equal(r[8].f.reason, SCHED_E_QUEUE);
    assert_int_equal(r[9].f.reason, SCHED_E_QUEUE);

    while (step()) { /* void */ }

    /* A limit of one does not refuse what need not wait. */

    submit_full(&r[10], 10, 5, INT32_MAX, 0, 0, 0, 1);
    submit_full(&r[11], 10, 5, INT32_MAX, 0, 0, 0, 1);
    step();
    assert_true(r[10].accepted && r[11].accepted);

    while (step()) { /* void */ }
    done(r, 12);
}


static void
test_time_limits(void **state)
{
    req_t  r[4];

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 10;
    start(1, 1, 64, 64, 10);

    r[0].ignore_eos = r[1].ignore_eos = r[2].ignore_eos = 1;
    submit_full(&r[0], 10, 200, INT32_MAX, 0, 0, 50000, 0);
    submit_full(&r[1], 10, 200, INT32_MAX, 0, 20000, 0, 0);
    submit_full(&r[2], 10, 200, INT32_MAX, 0, 900000, 0, 0);

    while (!r[1].finished) {
        assert_true(step());
    }

    assert_int_equal(r[1].f.reason, SCHED_E_TIMEOUT);
    assert_false(r[1].accepted);
    assert_in_range(fake_now, 1020000, 1023000);

    while (!r[0].finished) {
        assert_true(step());
    }

    assert_int_equal(r[0].f.reason, SCHED_E_TIMEOUT);
    assert_in_range(fake_now, 1050000, 1053000);

    while (step()) { /* void */ }
    assert_int_equal(r[2].f.reason, SCHED_LENGTH);

    done(r, 3);
}


static void
test_too_large(void **state)
{
    req_t  r[2];

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 12;
    start(1, 4, 64, 10, 100);

    submit(&r[0], 600, 41);
    r[1].ignore_eos = 1;
    submit(&r[1], 600, 40);

    while (step()) { /* void */ }
    assert_int_equal(r[0].f.reason, SCHED_E_LENGTH);
    check_end(&r[1]);
    assert_int_equal(r[1].f.reason, SCHED_LENGTH);

    done(r, 2);
}


static void
test_failure(void **state)
{
    req_t  r[3];

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 13;
    start(2, 1, 64, 10, 100);

    submit(&r[0], 10, 40);
    submit(&r[1], 10, 40);
    submit(&r[2], 10, 40);
    step();
    step_fails = 1;
    step();
    step_fails = 0;

    assert_int_equal(r[0].f.reason, SCHED_E_INTERNAL);
    assert_int_equal(r[1].f.reason, SCHED_E_INTERNAL);
    assert_int_equal(r[2].f.reason, SCHED_E_INTERNAL);

    done(r, 3);
}


/* Nothing to do costs nothing; stopping ends what waits and what runs. */

static void
test_idle_and_stop(void **state)
{
    char             err[SCHED_ERR_LEN];
    req_t            r[3];
    struct timespec  a, b, ts = { 0, 200000000 };

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 15;
    start(2, 1, 32, 64, 100);
    sched->opt.now = NULL;
    assert_int_equal(sched_start(sched, err), 0);

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    nanosleep(&ts, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    assert_true((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec
                < 20000000);
    assert_true(sched_alive(sched, 1));

    r[0].ignore_eos = r[1].ignore_eos = r[2].ignore_eos = 1;
    submit_full(&r[0], 10, 4000, INT32_MAX, 0, 0, 0, 0);
    submit_full(&r[1], 10, 4000, 3, 0, 0, 0, 0);
    submit_full(&r[2], 10, 4000, 3, 0, 0, 0, 0);
    nanosleep(&ts, NULL);
    sched_drain(sched);
    sched_stop(sched);

    assert_true(r[0].finished && r[1].finished && r[2].finished);
    assert_int_equal(r[1].f.reason, SCHED_E_SHUTDOWN);

    done(r, 3);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_queue_limit),
        cmocka_unit_test(test_time_limits),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_idle_and_stop)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
