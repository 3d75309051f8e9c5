/*
 * Speculation: how many steps it saves, where it stops, when it is left off.
 */

#include "sched_model.h"


/* Runs one sequence to its end; returns the steps that took. */

static uint32_t
alone(req_t *r, uint32_t n_prompt, uint32_t max_tokens)
{
    uint32_t  n;

    memset(r, 0, sizeof(req_t));
    r->ignore_eos = 1;
    submit(r, n_prompt, max_tokens);

    for (n = 0; !r->finished; n++) {
        assert_true(step());
        invariants();
    }

    check_end(r);

    return n;
}


/* With all guesses right a step makes one token more than were guessed. */

static void
test_steps(void **state)
{
    req_t     r;
    uint32_t  n, tokens;

    (void) state;

    for (n = 0; n <= SCHED_DEPTH_MAX; n++) {
        for (tokens = 1; tokens < 150; tokens += 1 + tokens / 4) {

            speculate = n;
            accuracy = 100;
            rng = 1000 * n + tokens;
            start(1, 4, 64, 8, 10);

            assert_int_equal(alone(&r, 60, tokens),
                             1 + (tokens - 1 + n) / (n + 1));
            assert_int_equal(r.f.n_drafted, r.f.n_hit);
            assert_int_equal(r.f.n_hit, tokens - 1 - (tokens - 1 + n)
                                                     / (n + 1));
            done(&r, 1);

            accuracy = 0;
            start(1, 4, 64, 8, 10);
            assert_int_equal(alone(&r, 60, tokens), tokens);
            done(&r, 1);
        }
    }

    speculate = 0;
}


/*
 * Who finds blocks in the cache finds the drafting layer's keys in them, if
 * they were made while drafting.
 */

static void
test_found(void **state)
{
    req_t     r;
    uint32_t  i, hits;

    (void) state;

    families = 1;
    accuracy = 100;

    for (speculate = 1; speculate <= 2; speculate++) {
        start(1, 4, 64, 24, 10);
        hits = 0;

        for (i = 0; i < 30; i++) {
            draft_first = 0;
            (void) alone(&r, 200, 20);
            assert_int_equal(draft_first, 1);

            hits += r.f.n_cached > 0;
            sched_release(r.seq);
            free(r.prompt);
        }

        assert_true(hits > 5);
        done(NULL, 0);
    }

    families = 0;
    speculate = 0;
}


/*
 * A sequence is never computed beyond what it may have: the last block that
 * its tokens need is the last it takes.
 */

static void
test_full_pool(void **state)
{
    req_t  r;

    (void) state;

    speculate = 4;
    accuracy = 100;
    start(1, 4, 64, 3, 10);

    alone(&r, 100, 92);
    assert_int_equal(r.f.reason, SCHED_LENGTH);
    done(&r, 1);

    speculate = 0;
}


/* Without credit for more the rest of a step's tokens waits. */

static void
test_credit(void **state)
{
    req_t     r;
    uint32_t  n;

    (void) state;

    speculate = 4;
    accuracy = 100;
    start(1, 4, 64, 8, 10);

    memset(&r, 0, sizeof(r));
    r.ignore_eos = 1;
    submit_full(&r, 20, 50, 3, 0, 0, 0, 0);

    while (step()) { /* void */ }

    assert_int_equal(r.n_output, 3);

    for (n = 4; n < 40; n++) {
        sched_credit(sched, r.seq, 1);
        while (step()) { /* void */ }
        assert_int_equal(r.n_output, n);
    }

    sched_credit(sched, r.seq, 1000);
    while (step()) { /* void */ }
    check_end(&r);

    done(&r, 1);
    speculate = 0;
}


static uint64_t
time_of_rows(void)
{
    return 1000 + 100 * sched->rank[0].n_rows + 50 * sched->depth;
}


/*
 * Guessing that does not pay is left off, tried again, and taken up again
 * once it pays.
 */

static void
test_depth(void **state)
{
    req_t     r;
    uint32_t  i, off;
    uint64_t  drafted;

    (void) state;

    speculate = 3;
    speculate_free = 1;
    accuracy = 0;
    start(1, 4, 64, 60, 10);
    step_us = time_of_rows;

    memset(&r, 0, sizeof(r));
    r.ignore_eos = 1;
    submit(&r, 20, 3500);

    for (i = 0; i < 150; i++) {
        assert_true(step());
    }

    assert_int_equal(sched->depth, 0);
    drafted = sched->rank[0].drafted;

    for (i = 0, off = 0; i < 1000; i++) {
        assert_true(step());
        off += sched->depth == 0;
    }

    assert_true(off > 900 && off < 1000);
    assert_true(sched->rank[0].drafted > drafted);

    accuracy = 100;

    for (i = 0; i < 20000 && sched->depth != 3 && !r.finished; i++) {
        assert_true(step());
    }

    assert_false(r.finished);

    /* and all depths that are worth less are known by now */

    for (i = 0, off = 0; i < 300; i++) {
        assert_true(step());
        off += sched->depth != 3;
    }

    assert_true(off < 60);

    sched_cancel(sched, r.seq);
    r.cancelled = 1;
    (void) step();
    done(&r, 1);

    speculate = 0;
    speculate_free = 0;
    step_us = NULL;
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_found),
        cmocka_unit_test(test_full_pool),
        cmocka_unit_test(test_credit),
        cmocka_unit_test(test_depth)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
