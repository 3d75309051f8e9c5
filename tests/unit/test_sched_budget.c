/*
 * Prompts beside answers, on a machine whose time is computed and not
 * measured: a small CPU, whose attention works on two rows at a time.
 */

#define BLOCKS  2048

#include "sched_model.h"


#define STREAMS  8


static uint64_t
machine(void)
{
    double                t, worst, all, depth;
    uint32_t              i, j;
    sched_rank_t         *rk;
    const sched_entry_t  *e;

    all = 0;

    for (i = 0; i < sched->n_ranks; i++) {
        all += sched->rank[i].n_rows;
    }

    worst = 0;

    for (i = 0; i < sched->n_ranks; i++) {
        rk = &sched->rank[i];
        t = 170.0 * rk->n_rows + 50.0 * rk->n_logits;

        for (j = 0; j < rk->part->n; j++) {
            e = &rk->part->entry[j];
            depth = e->first + e->rows / 2.0;
            t += 0.22 * ((e->rows + 1) / 2) * depth + 0.8 * depth;
        }

        worst = t > worst ? t : worst;
    }

    t = 3000 + 5000 * (1 - pow(1 - 6.0 / 64, all)) + worst;

    return (uint64_t) (t * (0.9 + rnd(200) / 1000.0));
}


static void
open_machine(uint32_t ranks, uint32_t batch, uint64_t seed)
{
    rng = seed;
    start(ranks, batch, 256, BLOCKS, 1000);
    sched->opt.touch = 6.0 / 64;
    sched_cost_init(&sched->cost, 6.0 / 64);
    per_token = 0;
    step_us = machine;
}


/* Time until a prompt alone has its token. */

static uint64_t
alone(uint32_t n_prompt)
{
    req_t     r;
    uint64_t  from;

    memset(&r, 0, sizeof(r));
    from = fake_now;
    submit(&r, n_prompt, 1);

    while (!r.finished) {
        assert_true(step());
    }

    sched_release(r.seq);
    free(r.prompt);

    return fake_now - from;
}


static void
open_streams(req_t *r, uint32_t n)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 10, 10000);
    }

    for (i = 0; i < 20; i++) {
        step();
    }
}


/* Mean time of the next `n` steps. */

static double
steps(uint32_t n)
{
    uint32_t  i;
    uint64_t  from;

    from = fake_now;

    for (i = 0; i < n; i++) {
        assert_true(step());
        invariants();
    }

    return (double) (fake_now - from) / n;
}


/* Eight streams go on at half their speed at least, whatever comes. */

static void
test_long_beside_streams(void **state)
{
    req_t     r[STREAMS + 1];
    double    base, beside;
    uint32_t  i, n, before;
    uint64_t  from, only;

    (void) state;

    memset(r, 0, sizeof(r));
    open_machine(1, 32, 1);
    only = alone(32000);
    open_streams(r, STREAMS);
    base = steps(200);

    from = fake_now;
    before = r[0].n_output;
    submit(&r[STREAMS], 32000, 1);

    for (n = 0; !r[STREAMS].finished; n++) {
        assert_true(step());
        assert_true(n < 100000);
    }

    beside = (double) (fake_now - from) / n;

    /* Every stream had its token in every step. */
    assert_int_equal(r[0].n_output - before, n);

    base = (base + steps(200)) / 2;

    assert_true(beside < 2 * base);
    assert_true(beside > 1.4 * base);

    /* The prompt has its part of the time, and does not waste it. */
    assert_true(fake_now - from < 4 * only);

    for (i = 0; i < STREAMS; i++) {
        sched_cancel(sched, r[i].seq);
    }

    step();
    done(r, STREAMS + 1);
}


/* A short prompt beside a long one and streams: not behind it. */

static void
test_short_beside_long(void **state)
{
    req_t     r[STREAMS + 2];
    uint32_t  i, left;
    uint64_t  from, only;

    (void) state;

    memset(r, 0, sizeof(r));
    open_machine(1, 32, 2);
    alone(5000);
    only = alone(300);
    open_streams(r, STREAMS);

    submit(&r[STREAMS], 30000, 1);
    steps(1500);
    left = sched_pending(r[STREAMS].seq);
    assert_true(left > 5000);

    from = fake_now;
    submit(&r[STREAMS + 1], 300, 1);

    while (!r[STREAMS + 1].finished) {
        assert_true(step());
    }

    /* A quarter of the time is its own: streams, and then the long one. */
    assert_true(fake_now - from < 8 * only);

    /* And the long one went on meanwhile. */
    assert_true(sched_pending(r[STREAMS].seq) < left);

    for (i = 0; i <= STREAMS; i++) {
        sched_cancel(sched, r[i].seq);
    }

    step();
    done(r, STREAMS + 2);
}


/* A flood of short prompts does not stop a long one, with time as with rows. */

static void
test_long_beside_short(void **state)
{
    req_t     *r, x;
    uint32_t   i, n;
    uint64_t   from, only;

    (void) state;

    r = calloc(3000, sizeof(req_t));
    assert_non_null(r);
    memset(&x, 0, sizeof(x));

    open_machine(1, 16, 3);
    only = alone(10000);

    from = fake_now;
    submit(&x, 10000, 1);

    for (n = 0; !x.finished; ) {
        while (n < 3000 && n < (uint32_t) atomic_load(&n_finished) + 4) {
            submit(&r[n++], 100 + rnd(100), 1);
        }

        assert_true(step());
        invariants();
    }

    assert_true(n < 3000);
    assert_true(n > 50);
    assert_true(fake_now - from < 3 * only);

    while (step()) { /* void */ }

    for (i = 0; i < n; i++) {
        sched_release(r[i].seq);
        free(r[i].prompt);
    }

    free(r);
    done(&x, 1);
}


/* Many prompts and one answer: they do not wait for it as if it were many. */

static void
test_burst(void **state)
{
    req_t     r[33];
    uint32_t  i;
    uint64_t  from, only;

    (void) state;

    memset(r, 0, sizeof(r));
    open_machine(1, 40, 4);
    only = alone(400);
    open_streams(r, 1);

    from = fake_now;

    for (i = 1; i < 33; i++) {
        submit(&r[i], 400, 1);
    }

    for (i = 1; i < 33; ) {
        assert_true(step());
        i += r[i].finished;
    }

    assert_true(fake_now - from < 2 * 32 * only);

    sched_cancel(sched, r[0].seq);
    step();
    done(r, 33);
}


/*
 * Two ranks, one deep in a prompt: both are busy for the same time, so that
 * neither has the other wait.
 */

static void
test_even_ranks(void **state)
{
    req_t     r[5];
    double    t[2], sum[2];
    uint32_t  i, j;

    (void) state;

    memset(r, 0, sizeof(r));
    open_machine(2, 32, 5);

    submit(&r[0], 40000, 1);

    while (r[0].seq->n_done < 20000) {
        assert_true(step());
    }

    for (i = 1; i < 5; i++) {
        submit(&r[i], 20000, 1);
    }

    sum[0] = sum[1] = 0;

    for (i = 0; i < 60; i++) {
        assert_true(step());

        for (j = 0; j < 2; j++) {
            t[j] = sched_cost_time(&sched->cost, &sched->rank[j].load,
                                   sched->all_rows);
            sum[j] += t[j];
        }
    }

    assert_true(sched->rank[0].n_running > 0 && sched->rank[1].n_running > 0);
    assert_true(sum[0] / sum[1] > 0.66 && sum[0] / sum[1] < 1.5);

    for (i = 0; i < 5; i++) {
        sched_cancel(sched, r[i].seq);
    }

    step();
    done(r, 5);
}


/* A prompt on one rank does not slow the streams of another. */

static void
test_other_rank(void **state)
{
    req_t     r[STREAMS + 1];
    double    base, beside;
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    open_machine(2, 32, 6);
    alone(8000);
    open_streams(r, STREAMS);
    base = steps(200);

    submit(&r[STREAMS], 30000, 1);
    beside = steps(400);
    assert_false(r[STREAMS].finished);
    sched_cancel(sched, r[STREAMS].seq);
    step();
    base = (base + steps(200)) / 2;

    assert_true(beside < 2 * base);
    assert_true(beside > 1.4 * base);

    for (i = 0; i < STREAMS; i++) {
        sched_cancel(sched, r[i].seq);
    }

    step();
    done(r, STREAMS + 1);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_long_beside_streams),
        cmocka_unit_test(test_short_beside_long),
        cmocka_unit_test(test_long_beside_short),
        cmocka_unit_test(test_burst),
        cmocka_unit_test(test_even_ranks),
        cmocka_unit_test(test_other_rank)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
