/*
 * A day of a busy server: 2,000 requests with long and short prompts, of three
 * priorities, some of which leave, read slowly or run out of time.  After
 * every step each block is accounted for.
 */

#define BLOCKS  256

#include "sched_model.h"


#define REQUESTS  2000
#define LIVE      120                /* requests at once, at most */


static uint64_t
machine(void)
{
    double                t, worst;
    uint32_t              i, j;
    const sched_entry_t  *e;

    worst = 0;

    for (i = 0; i < sched->n_ranks; i++) {
        t = 200.0 * sched->rank[i].n_rows;

        for (j = 0; j < sched->rank[i].part->n; j++) {
            e = &sched->rank[i].part->entry[j];
            t += 0.1 * e->rows * (e->first + e->rows);
        }

        worst = t > worst ? t : worst;
    }

    return 3000 + (uint64_t) worst;
}


static void
any_request(req_t *x, int threads)
{
    uint32_t  kind, n_prompt;

    kind = rnd(20);
    n_prompt = kind == 0 ? 1 + rnd(10000) : kind < 4 ? 1 + rnd(2000)
                                                     : 1 + rnd(150);

    x->echo = rnd(8) == 0;
    x->logprobs = rnd(8) == 0;
    x->ignore_eos = rnd(4) == 0;
    x->stop_at = rnd(6) == 0 ? 1 + rnd(50) : 0;
    x->tenant = rnd(3);

    submit_full(x, n_prompt, rnd(16) == 0 ? 0 : 1 + rnd(250),
                threads ? INT32_MAX : 1 + rnd(200), (int32_t) rnd(3),
                !threads && rnd(30) == 0 ? 1 + rnd(3000000) : 0,
                !threads && rnd(30) == 0 ? 1 + rnd(9000000) : 0, 0);
}


static void
check_trace(const req_t *r, uint32_t n)
{
    uint32_t  i, count[SCHED_E_INTERNAL + 1];

    memset(count, 0, sizeof(count));

    for (i = 0; i < n; i++) {
        assert_true(r[i].finished);
        count[r[i].f.reason]++;

        if (r[i].f.reason != SCHED_E_TIMEOUT) {
            check_end(&r[i]);
        }
    }

    assert_true(count[SCHED_STOP] > n / 20);
    assert_true(count[SCHED_LENGTH] > n / 20);
    assert_true(count[SCHED_CANCELLED] > n / 50);
    assert_true(sched->preempted > 0);

    for (i = 0; i < sched->n_ranks; i++) {
        assert_int_equal(sched->rank[i].n_running, 0);
        assert_int_equal(kv_cache_free(&sched->rank[i].cache),
                         sched->opt.kv_blocks);
    }

    assert_int_equal(sched->park.n + sched->queue.n, 0);
    assert_int_equal(sched_waiting(sched), 0);
}


static void
trace(void)
{
    req_t     *r, *x;
    uint32_t   i, made, ended, quiet;

    rng = 1;
    families = 20;
    start(4, 8, 256, BLOCKS, UINT32_MAX);
    step_us = machine;

    r = calloc(REQUESTS, sizeof(req_t));
    assert_non_null(r);

    made = 0;
    ended = 0;                       /* all in front have */
    quiet = 0;

    while (atomic_load(&n_finished) < REQUESTS) {

        for (i = rnd(4); i > 0 && made < REQUESTS
             && made - (uint32_t) atomic_load(&n_finished) < LIVE; i--)
        {
            any_request(&r[made++], 0);
        }

        for (i = ended; i < made; i++) {
            x = &r[i];

            if (x->finished) {
                ended += i == ended;
                continue;
            }

            if (x->owed > 0 && rnd(6) == 0) {
                sched_credit(sched, x->seq, x->owed);
                x->owed = 0;
            }

            if (rnd(2000) == 0) {
                x->cancelled = 1;
                sched_cancel(sched, x->seq);
            }
        }

        quiet = step() ? 0 : quiet + 1;
        fake_now += quiet > 0 ? 1000 : 0;
        invariants();
        assert_true(quiet < 1000);
    }

    check_trace(r, REQUESTS);
    families = 0;
    done(r, REQUESTS);
    free(r);
}


static void
test_trace(void **state)
{
    (void) state;

    trace();
    assert_int_equal(n_used, 0);
}


/* Most steps are prepared, those that preempt or wait for others' are not. */

static void
test_trace_ahead(void **state)
{
    (void) state;

    ahead = 1;
    trace();
    ahead = 0;

    print_message("%llu of %llu steps prepared\n",
                  (unsigned long long) n_used,
                  (unsigned long long) n_steps);
    assert_true(n_used > n_steps / 2 && n_used < n_steps);

    /* only large ones are: both kinds follow each other */

    n_used = 0;
    n_steps = 0;
    ahead = 40;
    trace();
    ahead = 0;

    print_message("%llu of %llu steps prepared where 40 rows are\n",
                  (unsigned long long) n_used,
                  (unsigned long long) n_steps);
    assert_true(n_used > n_steps / 10 && n_used < n_steps * 9 / 10);
}


/* Real threads: the step thread looks after each step, when no leader runs. */

static void
after(void *ctx)
{
    (void) ctx;
    invariants();
}


static void
trace_threads(void)
{
    char              err[SCHED_ERR_LEN];
    req_t            *r;
    uint32_t          i, j;
    struct timespec   ts = { 0, 100000 };

    rng = 2;
    families = 20;
    start(3, 8, 256, 200, UINT32_MAX);
    sched->opt.now = NULL;
    per_token = 0;
    after_step = after;

    r = calloc(REQUESTS, sizeof(req_t));
    assert_non_null(r);
    assert_int_equal(sched_start(sched, err), 0);

    for (i = 0; i < REQUESTS; i++) {

        while (i - (uint32_t) atomic_load(&n_finished) >= LIVE) {
            nanosleep(&ts, NULL);
        }

        any_request(&r[i], 1);

        if (rnd(8) == 0) {
            j = i - rnd(i < 30 ? i + 1 : 30);
            r[j].cancelled = 1;
            sched_cancel(sched, r[j].seq);
        }
    }

    for (i = 0; atomic_load(&n_finished) < REQUESTS; i++) {
        nanosleep(&ts, NULL);
        assert_true(i < 3000000);
    }

    sched_stop(sched);
    check_trace(r, REQUESTS);
    families = 0;
    done(r, REQUESTS);
    free(r);
}


static void
test_trace_threads(void **state)
{
    (void) state;

    trace_threads();
    assert_int_equal(n_apart, 0);

    ahead = 1;
    n_together = 0;
    trace_threads();
    assert_int_equal(n_together, 0);

    /* as many rows as some steps have */

    ahead = 40;
    n_apart = 0;
    trace_threads();
    ahead = 0;

    print_message("%llu steps prepared the next, %llu did not\n",
                  (unsigned long long) n_apart,
                  (unsigned long long) n_together);
    assert_true(n_apart > 100 && n_together > 100);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_trace),
        cmocka_unit_test(test_trace_ahead),
        cmocka_unit_test(test_trace_threads)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
