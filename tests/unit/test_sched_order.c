/*
 * Who comes first: order, fairness between prompts, preemption, pauses.
 */

#include "sched_model.h"


/* Much more wanted than there is: everything is preempted, nothing is lost. */

static void
test_preemption(void **state)
{
    req_t     r[12];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 5;
    start(1, 12, 64, 10, 100);

    for (i = 0; i < 12; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 10, 300);
    }

    while (step()) {
        invariants();
    }

    for (i = 0; i < 12; i++) {
        check_end(&r[i]);
    }

    assert_true(sched->preempted > 0);
    done(r, 12);
}


/* Of equals, the first come ends first, whatever gets preempted. */

static void
test_order(void **state)
{
    req_t     r[6];
    uint32_t  i, first;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 6;
    start(1, 2, 32, 20, 100);

    for (i = 0; i < 6; i++) {
        r[i].ignore_eos = 1;
        submit_full(&r[i], 20, 50, INT32_MAX, i == 5 ? 1 : 0, 0, 0, 0);
    }

    step();

    assert_true(r[5].accepted);          /* priority */
    assert_true(r[0].accepted);
    assert_false(r[1].accepted);

    while (step()) { /* void */ }

    first = r[5].f.step < r[0].f.step ? 5 : 0;
    assert_true(first == 5 || r[5].f.step == r[0].f.step);

    for (i = 2; i < 5; i++) {
        assert_true(r[i - 1].f.step <= r[i].f.step);
    }

    done(r, 6);
}


/* A long prompt lets short ones by, and gets its share all the same. */

static void
test_fair_prefill(void **state)
{
    req_t     r[40];
    uint32_t  i, steps;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 7;
    start(1, 8, 64, 64, 100);

    submit(&r[0], 3000, 4);

    for (i = 1; i < 40; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 30, 2);
    }

    step();
    step();
    assert_true(r[1].n_output > 0);

    for (steps = 2; !r[0].finished; steps++) {
        assert_true(step());
    }

    /* At least half of every step but the decoders' share was its own. */
    assert_true(steps <= 2 * 3000 / 64 + 10);

    while (step()) { /* void */ }
    done(r, 40);
}


/* Who does not read pauses; the others, and newcomers, do not notice. */

static void
test_credit(void **state)
{
    req_t     r[70];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 11;
    start(1, 4, 64, 64, 100);

    for (i = 0; i < 60; i++) {
        r[i].ignore_eos = 1;
        submit_full(&r[i], 30, 200, 5, 0, 0, 0, 0);
    }

    while (step()) {
        invariants();
    }

    for (i = 0; i < 60; i++) {
        assert_int_equal(r[i].n_output, 5);
        assert_false(r[i].finished);
    }

    for (i = 60; i < 70; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 600, 300);
    }

    while (step()) {
        invariants();
    }

    for (i = 60; i < 70; i++) {
        check_end(&r[i]);
    }

    assert_true(sched->preempted > 0);

    for (i = 0; i < 60; i++) {
        sched_credit(sched, r[i].seq, 1000);
    }

    while (step()) {
        invariants();
    }

    for (i = 0; i < 60; i++) {
        check_end(&r[i]);
    }

    done(r, 70);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_fair_prefill),
        cmocka_unit_test(test_credit)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
