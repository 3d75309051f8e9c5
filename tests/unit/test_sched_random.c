/*
 * Random runs of the scheduler, on one thread and on many.
 */

#include "sched_model.h"


static void
random_run(uint64_t seed, uint32_t ranks, uint32_t batch, uint32_t chunk,
    uint32_t blocks, uint32_t n)
{
    req_t     *r, *x;
    uint32_t   i, live, made, quiet;

    rng = seed;
    start(ranks, batch, chunk, blocks, UINT32_MAX);

    r = calloc(n, sizeof(req_t));
    assert_non_null(r);

    made = 0;
    quiet = 0;

    while ((uint32_t) atomic_load(&n_finished) < n) {

        live = made - (uint32_t) atomic_load(&n_finished);

        for (i = rnd(4); i > 0 && made < n && live < 60; i--, live++) {
            x = &r[made++];
            x->echo = rnd(4) == 0;
            x->logprobs = rnd(4) == 0;
            x->ignore_eos = rnd(8) == 0;
            x->stop_at = rnd(6) == 0 ? 1 + rnd(20) : 0;

            x->tenant = rnd(2);

            submit_full(x, 1 + rnd(rnd(8) == 0 ? blocks * 50
                                   : families > 0 ? 250 : 40),
                        rnd(10) == 0 ? 0 : 1 + rnd(blocks * 13),
                        1 + rnd(50), (int32_t) rnd(3), 0, 0, 0);
        }

        /* Clients read now and then, and leave now and then. */

        for (i = 0; i < made; i++) {
            x = &r[i];

            if (x->finished) {
                continue;
            }

            if (x->owed > 0 && rnd(4) == 0) {
                sched_credit(sched, x->seq, x->owed);
                x->owed = 0;
            }

            if (rnd(3000) == 0) {
                x->cancelled = 1;
                sched_cancel(sched, x->seq);
            }
        }

        quiet = step() ? 0 : quiet + 1;
        invariants();
        assert_int_equal(atomic_load(&bad), 0);
        assert_true(quiet < 1000);
    }

    for (i = 0; i < n; i++) {
        check_end(&r[i]);
    }

    for (i = 0; i < ranks; i++) {
        assert_int_equal(kv_cache_free(&sched->rank[i].cache), blocks);
        assert_int_equal(sched->rank[i].n_running, 0);
    }

    assert_int_equal(sched->park.n + sched->queue.n, 0);
    assert_int_equal(sched_waiting(sched), 0);

    done(r, n);
    free(r);
}


static void
test_random(void **state)
{
    uint32_t  n;

    (void) state;

    n = getenv("LONG") != NULL ? 20000 : 600;

    random_run(1, 1, 8, 32, 64, n);
    random_run(2, 3, 4, 16, 12, n);
    random_run(3, 2, 2, 1, 4, n / 4);
    random_run(4, 4, 16, 512, 20, n);
}


/* Prompts that begin alike, so that most blocks have been seen before. */

static void
test_shared(void **state)
{
    uint32_t  n;

    (void) state;

    n = getenv("LONG") != NULL ? 20000 : 600;
    families = 3;

    random_run(21, 1, 8, 32, 64, n);
    random_run(22, 3, 4, 16, 12, n);
    random_run(23, 2, 2, 1, 5, n / 4);
    random_run(24, 4, 16, 512, 20, n);

    families = 0;
    cache_off = 1;

    random_run(25, 2, 8, 32, 12, n / 4);

    cache_off = 0;
}


/* Guesses right and wrong, which must not show in any answer. */

static void
test_speculation(void **state)
{
    uint32_t  n;

    (void) state;

    n = getenv("LONG") != NULL ? 20000 : 600;

    speculate = 1;
    accuracy = 70;
    random_run(31, 1, 8, 32, 64, n);
    speculate = 3;
    random_run(32, 3, 4, 16, 12, n);
    speculate = SCHED_DEPTH_MAX;
    random_run(33, 2, 2, 1, 5, n / 4);
    random_run(34, 4, 16, 512, 20, n);

    families = 3;
    speculate = 2;
    random_run(35, 2, 8, 32, 12, n);
    accuracy = 100;
    random_run(36, 3, 4, 64, 20, n);
    accuracy = 0;
    random_run(37, 1, 8, 32, 64, n);

    /* off and on by itself */

    speculate_free = 1;
    accuracy = 60;
    random_run(38, 1, 8, 32, 64, n);

    speculate_free = 0;
    families = 0;
    speculate = 0;
    accuracy = 0;
}


/* The same while each step is prepared during the one before. */

static void
test_ahead(void **state)
{
    uint32_t  n;

    (void) state;

    n = getenv("LONG") != NULL ? 20000 : 600;
    ahead = 1;

    random_run(41, 1, 8, 32, 64, n);
    random_run(42, 3, 4, 16, 12, n);
    random_run(43, 2, 2, 1, 4, n / 4);
    families = 3;
    random_run(44, 1, 8, 32, 64, n);
    random_run(45, 3, 4, 16, 12, n);
    random_run(46, 4, 16, 512, 20, n);

    speculate = 2;
    speculate_free = 1;
    accuracy = 60;
    random_run(47, 2, 8, 32, 24, n);
    speculate_free = 0;
    random_run(48, 1, 8, 32, 64, n / 4);

    ahead = 0;
    families = 0;
    speculate = 0;
    accuracy = 0;
}


/* Real threads: three ranks, credit and cancels from outside. */

static void
test_threads(void **state)
{
    char              err[SCHED_ERR_LEN];
    req_t            *r;
    uint32_t          i, n, cancelled;
    struct timespec   ts = { 0, 200000 };

    (void) state;

    n = getenv("LONG") != NULL ? 5000 : 400;
    rng = 14;
    start(3, 8, 32, 24, UINT32_MAX);
    sched->opt.now = NULL;
    per_token = 0;

    r = calloc(n, sizeof(req_t));
    assert_non_null(r);

    /* Half is there before the threads are, half comes while they run. */

    for (i = 0; i < n; i++) {
        if (i == n / 2) {
            assert_int_equal(sched_start(sched, err), 0);
        }

        r[i].echo = rnd(3) == 0;
        r[i].logprobs = r[i].echo;
        submit(&r[i], 1 + rnd(60), 1 + rnd(200));

        if (i > n / 2 && rnd(8) == 0) {
            nanosleep(&ts, NULL);
        }

        if (i % 16 == 5) {
            r[i].cancelled = 1;
            sched_cancel(sched, r[i].seq);
        }
    }

    for (i = 0; atomic_load(&n_finished) < (int) n; i++) {
        nanosleep(&ts, NULL);
        assert_true(i < 200000);
    }

    sched_stop(sched);

    for (i = 0, cancelled = 0; i < n; i++) {
        check_end(&r[i]);
        cancelled += r[i].f.reason == SCHED_CANCELLED;
    }

    assert_true(cancelled > 0);
    done(r, n);
    free(r);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_speculation),
        cmocka_unit_test(test_ahead),
        cmocka_unit_test(test_threads)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
