/*
 * Priorities: what runs makes room for what is worth more.
 */

#include "sched_model.h"


static void
submit_class(req_t *r, int32_t priority, uint32_t n_prompt,
    uint32_t max_tokens)
{
    r->ignore_eos = 1;
    submit_full(r, n_prompt, max_tokens, INT32_MAX, priority, 0, 0, 0);
}


static void
run(void)
{
    while (step()) {
        invariants();
    }
}


static int
runs(const req_t *r)
{
    return r->seq->place == SCHED_IN_RANK;
}


/* The batch is full: the last of the lowest goes, and comes back. */

static void
test_batch(void **state)
{
    req_t     r[6];
    uint32_t  i, computed;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 1;
    start(1, 4, 64, BLOCKS, 100);

    submit_class(&r[0], 1, 70, 200);
    submit_class(&r[1], 0, 70, 200);
    submit_class(&r[2], 0, 70, 200);
    submit_class(&r[3], 1, 70, 200);

    for (i = 0; i < 150; i++) {
        step();
        invariants();
    }

    assert_true(r[2].n_output > 64);
    computed = (uint32_t) n_computed;

    submit_class(&r[4], 2, 70, 20);
    step();
    invariants();

    assert_true(r[4].accepted && runs(&r[4]));
    assert_false(runs(&r[2]));
    assert_true(runs(&r[0]) && runs(&r[1]) && runs(&r[3]));
    assert_int_equal(sched->preempted, 1);

    /* An equal waits. */

    submit_class(&r[5], 0, 70, 20);

    for (i = 0; i < 5; i++) {
        step();
        invariants();
    }

    assert_false(r[5].accepted);
    assert_int_equal(sched->preempted, 1);

    /* It comes back before the one that came later, and to its blocks. */

    while (!runs(&r[2])) {
        assert_false(r[5].accepted);
        step();
        invariants();
    }

    run();

    for (i = 0; i < 6; i++) {
        check_end(&r[i]);
        assert_int_equal(r[i].f.reason, SCHED_LENGTH);
    }

    assert_true(n_computed < computed + 70 + 70 + 4 * 200 + KV_BLOCK);

    done(r, 6);
}


/* No blocks: as many go as it takes, of the lowest first. */

static void
test_blocks(void **state)
{
    req_t     r[6];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 2;
    start(1, 16, 256, 20, 100);

    submit_class(&r[0], 2, 300, 10);
    submit_class(&r[1], 0, 300, 10);
    submit_class(&r[2], 1, 300, 10);

    step();
    assert_true(runs(&r[0]) && runs(&r[1]) && runs(&r[2]));

    submit_class(&r[3], 2, 500, 10);
    step();
    invariants();

    assert_true(runs(&r[3]) && runs(&r[0]));
    assert_false(runs(&r[1]));
    assert_true(runs(&r[2]) == (sched->preempted == 1));

    run();

    for (i = 0; i < 4; i++) {
        check_end(&r[i]);
    }

    done(r, 4);
}


/*
 * A block that one in its way holds, and that it would find, is no room: ten
 * blocks, five of them the first's, four the second's, three of which the
 * third begins with.  It needs six.
 */

static void
test_shared(void **state)
{
    req_t     r[3];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    start(1, 16, 1024, 10, 100);

    rng = 5;
    submit_class(&r[0], 1, 300, 10);
    rng = 6;
    submit_class(&r[1], 0, 200, 50);

    step();
    invariants();
    assert_true(runs(&r[0]) && runs(&r[1]));
    assert_int_equal(r[1].seq->n_public, 3);

    rng = 6;
    submit_class(&r[2], 1, 380, 1);

    step();
    invariants();
    assert_true(runs(&r[0]) && runs(&r[1]));
    assert_false(r[2].accepted);
    assert_int_equal(sched->preempted, 0);

    /* When the first has gone there is room, and the second stays. */

    run();

    assert_int_equal(r[2].cached, 3 * KV_BLOCK);
    assert_int_equal(sched->preempted, 0);

    for (i = 0; i < 3; i++) {
        check_end(&r[i]);
    }

    done(r, 3);
}


/* Where even all of them would not be enough, none goes. */

static void
test_in_vain(void **state)
{
    req_t     r[3];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 3;
    start(1, 16, 256, 20, 100);

    submit_class(&r[0], 2, 900, 10);
    submit_class(&r[1], 0, 200, 10);
    step();
    assert_true(runs(&r[0]) && runs(&r[1]));

    submit_class(&r[2], 1, 600, 10);
    step();
    invariants();

    assert_true(runs(&r[1]));
    assert_false(r[2].accepted);
    assert_int_equal(sched->preempted, 0);

    run();

    for (i = 0; i < 3; i++) {
        check_end(&r[i]);
    }

    done(r, 3);
}


/* Of two ranks the one that loses less. */

static void
test_cheapest_rank(void **state)
{
    req_t     r[5];
    uint32_t  i, high;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 4;
    start(2, 2, 64, BLOCKS, 100);

    for (i = 0; i < 4; i++) {
        submit_class(&r[i], i == 0 || i == 3 ? 1 : 0, 20, 200);
    }

    for (i = 0; i < 10; i++) {
        step();
        invariants();
    }

    for (i = 0; i < 4; i++) {
        assert_true(runs(&r[i]));
    }

    submit_class(&r[4], 1, 20, 20);
    step();
    invariants();

    /* One of the lower ones has left, and its rank is the newcomer's. */

    assert_true(runs(&r[4]));
    assert_true(runs(&r[0]) && runs(&r[3]));
    assert_int_equal(runs(&r[1]) + runs(&r[2]), 1);

    high = runs(&r[1]) ? 2 : 1;
    assert_int_equal(r[high].seq->rank, r[4].seq->rank);

    run();

    for (i = 0; i < 5; i++) {
        check_end(&r[i]);
    }

    done(r, 5);
}


/* The prompts of a higher class come first, those of a lower go on. */

static void
test_prompts(void **state)
{
    req_t     r[2];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 5;
    start(1, 4, 64, BLOCKS, 100);

    submit_class(&r[0], 0, 1500, 1);
    submit_class(&r[1], 1, 1500, 1);

    for (i = 0; !r[1].finished; i++) {
        step();
        invariants();
    }

    assert_false(r[0].finished);
    assert_in_range(r[0].seq->n_done, 1500 / 8, 1500 / 2);

    run();
    check_end(&r[0]);
    check_end(&r[1]);
    done(r, 2);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_in_vain),
        cmocka_unit_test(test_cheapest_rank),
        cmocka_unit_test(test_prompts)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
