/*
 * Steps that are prepared while others are computed: what comes, ends or goes
 * wrong meanwhile.
 */

#include "sched_model.h"


/* A step that has begun, as far as the step thread has to do with it. */

static void
begin(void)
{
    assert_true(sched_next(sched));
    sched_deliver(sched);
    sched_prepare(sched);
}


static void
end(void)
{
    uint32_t  i;

    for (i = 0; i < sched->n_ranks; i++) {
        sched_rank_run(sched, &sched->rank[i]);
    }

    fake_now += 1000;
    sched_collect(sched);
    invariants();
}


static void
open_ahead(uint32_t ranks, uint32_t batch, uint32_t blocks)
{
    ahead = 1;
    start(ranks, batch, 64, blocks, 100);
    ahead = 0;
}


static int
in_step(const req_t *r)
{
    return r->seq->in_step;
}


static void
drain(req_t *r, uint32_t n)
{
    uint32_t  i;

    while (step()) {
        invariants();
    }

    for (i = 0; i < sched->n_ranks; i++) {
        assert_int_equal(kv_cache_free(&sched->rank[i].cache),
                         sched->opt.kv_blocks);
        assert_int_equal(sched->rank[i].n_running, 0);
    }

    done(r, n);
}


/* Who comes during a step is in the next one, at its priority. */

static void
test_newcomer(void **state)
{
    req_t  r[3];

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 1;
    open_ahead(1, 2, 64);

    submit(&r[0], 100, 50);
    begin();
    assert_true(sched->prepared);

    submit(&r[1], 20, 50);
    submit_full(&r[2], 20, 50, INT32_MAX, 1, 0, 0, 0);
    sched_prepare(sched);
    assert_true(sched->prepared && r[2].accepted && !r[1].accepted);
    end();

    begin();
    assert_true(in_step(&r[0]) && in_step(&r[2]));
    end();

    assert_int_equal(r[0].n_output, 0);
    begin();
    assert_int_equal(r[0].n_output, 1);
    assert_int_equal(r[2].n_output, 1);
    end();

    drain(r, 3);
}


/* Steps of fewer rows than it pays with are planned one by one. */

static void
test_few_rows(void **state)
{
    req_t     r[3];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 3;
    ahead = 3;
    start(1, 4, 64, 64, 100);
    ahead = 0;

    for (i = 0; i < 3; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 1, 10 + 10 * i);
        assert_true(sched_next(sched));
        assert_int_equal(sched->run.ahead, i == 2);

        sched_deliver(sched);

        if (sched->run.ahead) {
            sched_prepare(sched);
        }

        end();
    }

    while (!r[0].finished) {
        assert_true(step());
    }

    assert_true(step());
    assert_int_equal(sched->run.ahead, 0);

    drain(r, 3);
}


/* The place of one that gets its last token is free. */

static void
test_place(void **state)
{
    req_t     r[2];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 10;
    open_ahead(1, 1, 64);

    r[0].ignore_eos = 1;
    submit(&r[0], 20, 5);
    submit(&r[1], 20, 5);

    for (i = 0; i < 5; i++) {
        begin();
        assert_int_equal(r[1].accepted, i == 4);
        end();
    }

    begin();
    assert_true(r[0].finished && in_step(&r[1]));
    end();

    drain(r, 2);
}


/* Length and end of sequence are known in time, what tokens() says is not. */

static void
test_ends(void **state)
{
    req_t     r;
    uint32_t  i, rows;

    (void) state;

    for (i = 0; i < 40; i++) {
        memset(&r, 0, sizeof(r));
        rng = 100 + i;
        cache_off = 1;
        open_ahead(1, 2, 64);
        cache_off = 0;

        r.stop_at = i % 2 == 0 ? 5 : 0;
        submit(&r, 100, 200);

        while (!r.finished) {
            (void) step();
            invariants();
        }

        rows = 100 + r.n_output - 1;
        rows += r.f.reason == SCHED_STOP && !r.saw_eos;
        assert_int_equal(n_computed, rows);
        check_end(&r);
        drain(&r, 1);
    }
}


/* A cancel, seen by the plan or not: no more rows, and one end. */

static void
test_cancel(void **state)
{
    req_t     r[2];
    uint32_t  late, n;

    (void) state;

    for (late = 0; late <= 1; late++) {
        memset(r, 0, sizeof(r));
        rng = 2;
        open_ahead(1, 2, 64);

        r[0].ignore_eos = r[1].ignore_eos = 1;
        submit(&r[0], 100, 50);
        submit(&r[1], 20, 50);
        step();
        step();
        step();

        begin();
        assert_true(sched->prepared && in_step(&r[0]));
        n = r[0].n_output;
        r[0].cancelled = 1;
        sched_cancel(sched, r[0].seq);

        if (!late) {
            sched_prepare(sched);
        }

        end();
        assert_false(r[0].finished);

        begin();
        assert_true(r[0].finished && in_step(&r[1]));
        assert_int_equal(r[0].f.reason, SCHED_CANCELLED);
        assert_int_equal(r[0].n_output, n + late);
        end();

        drain(r, 2);
    }
}


static void
test_deadline(void **state)
{
    req_t  r;

    (void) state;

    memset(&r, 0, sizeof(r));
    rng = 3;
    open_ahead(1, 2, 64);

    r.ignore_eos = 1;
    submit_full(&r, 20, 200, INT32_MAX, 0, 0, 10000, 0);

    while (!r.finished) {
        (void) step();
        invariants();
    }

    assert_int_equal(r.f.reason, SCHED_E_TIMEOUT);
    assert_in_range(fake_now, 1010000, 1013000);

    drain(&r, 1);
}


/* One token more than there is credit for, each time. */

static void
test_credit(void **state)
{
    req_t     r;
    uint32_t  i;

    (void) state;

    memset(&r, 0, sizeof(r));
    rng = 4;
    open_ahead(1, 2, 64);

    r.ignore_eos = 1;
    submit_full(&r, 20, 60, 5, 0, 0, 0, 0);

    while (step()) { /* void */ }
    assert_int_equal(r.n_output, 6);

    for (i = 0; i < 10; i++) {
        sched_credit(sched, r.seq, 3);
        while (step()) { /* void */ }
        assert_int_equal(r.n_output, 9 + 3 * i);
    }

    sched_credit(sched, r.seq, 1000);
    drain(&r, 1);
    assert_int_equal(r.f.reason, SCHED_LENGTH);
}


/* A plan that would preempt is made when it is known who has ended. */

static void
test_preemption(void **state)
{
    req_t     r[3];
    uint32_t  i, given_up;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 5;
    open_ahead(1, 3, 6);

    for (i = 0; i < 3; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 60, 120);
    }

    given_up = 0;

    while (step()) {
        invariants();
        given_up += sched->abandoned;
    }

    assert_true(sched->preempted > 0 && given_up > 0);
    assert_true(given_up <= sched->preempted + 2);

    for (i = 0; i < 3; i++) {
        assert_int_equal(r[i].f.reason, SCHED_LENGTH);
    }

    drain(r, 3);
}


/*
 * Who waits for what another computes has it when that is there, no later than
 * without all this, and nothing is computed twice.
 */

static void
prefixes(uint64_t seed, uint64_t *computed, uint64_t *steps, uint32_t *cached)
{
    req_t     r[3];
    uint32_t  i;

    memset(r, 0, sizeof(r));
    rng = seed;
    start(1, 4, 64, 64, 100);

    for (i = 0; i < 3; i++) {
        r[i].ignore_eos = 1;
        submit(&r[i], 400 + i, 3);
    }

    while (step()) {
        invariants();
    }

    *computed = n_computed;
    *steps = n_steps;
    *cached = r[0].f.n_cached + r[1].f.n_cached + r[2].f.n_cached;

    done(r, 3);
}


static void
test_prefix(void **state)
{
    uint32_t  i, cached[2], found;
    uint64_t  computed[2], steps[2];

    (void) state;

    families = 1;
    found = 0;

    for (i = 0; i < 30; i++) {
        ahead = 0;
        prefixes(i, &computed[0], &steps[0], &cached[0]);
        ahead = 1;
        prefixes(i, &computed[1], &steps[1], &cached[1]);

        assert_int_equal(cached[1], cached[0]);
        assert_int_equal(computed[1], computed[0]);
        assert_true(steps[1] <= steps[0] + 1);
        found += cached[0] > 0;
    }

    assert_true(found > 10);
    ahead = 0;
    families = 0;
}


/* Plans that come to nothing leave the budget's sums alone. */

static void
test_sums(void **state)
{
    req_t     r[3];
    double    account, lead;
    uint32_t  i, j, below;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 6;
    open_ahead(1, 4, 64);

    r[0].ignore_eos = 1;
    submit(&r[0], 20, 200);
    submit(&r[1], 1500, 5);
    submit(&r[2], 1000, 5);

    for (i = 0, below = 0; i < 40; i++) {
        begin();
        account = sched->account;
        lead = sched->rank[0].lead;
        below += account < 0;

        for (j = 0; j < 3; j++) {
            sched_prepare(sched);
            assert_true(sched->account >= account
                        && sched->account <= account);
            assert_true(sched->rank[0].lead >= lead
                        && sched->rank[0].lead <= lead);
        }

        end();
    }

    assert_true(below > 0);
    drain(r, 3);
}


static void
test_failure(void **state)
{
    req_t  r[3];

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 7;
    open_ahead(2, 2, 16);

    submit(&r[0], 10, 40);
    submit(&r[1], 10, 40);
    submit(&r[2], 10, 40);
    step();
    begin();
    step_fails = 1;
    end();
    step_fails = 0;

    assert_int_equal(r[0].f.reason, SCHED_E_INTERNAL);
    assert_int_equal(r[1].f.reason, SCHED_E_INTERNAL);
    assert_int_equal(r[2].f.reason, SCHED_E_INTERNAL);
    assert_false(sched->prepared || sched->owing);

    drain(r, 3);
}


/*
 * Tokens of a step come while the next one is computed, which waits for that
 * here, and a newcomer is accepted meanwhile.
 */

static req_t       waited[2];
static atomic_int  n_accepted;
static atomic_int  n_tokens;
static uint32_t    n_begun;

#define TOKENS  8


static void
on_accepted_too(void *data, const sched_accepted_t *a)
{
    on_accepted(data, a);
    atomic_fetch_add(&n_accepted, 1);
}


static int
on_tokens_too(void *data, sched_kind_t kind, const sched_token_t *tok,
    uint32_t n)
{
    int  rc;

    rc = on_tokens(data, kind, tok, n);

    if (data == &waited[0]) {
        atomic_fetch_add(&n_tokens, (int) n);
    }

    return rc;
}


static int
wait_for(atomic_int *count, int n)
{
    uint32_t         i;
    struct timespec  ts = { 0, 100000 };

    for (i = 0; atomic_load(count) < n && i < 100000; i++) {
        nanosleep(&ts, NULL);
    }

    return atomic_load(count) >= n;
}


static int
waiting_step(void *ctx, uint32_t rank, const sched_batch_t *b,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    if (++n_begun > 1 && n_begun <= TOKENS) {
        CHECK(wait_for(&n_tokens, (int) n_begun - 1));
    }

    if (n_begun == 4) {
        submit(&waited[1], 10, 3);
        CHECK(wait_for(&n_accepted, 2));
    }

    return fake_step(ctx, rank, b, logit_row, n_logits, logits, err);
}


static void
test_meanwhile(void **state)
{
    char         err[SCHED_ERR_LEN];
    sched_ops_t  own;

    (void) state;

    memset(waited, 0, sizeof(waited));
    rng = 8;
    open_ahead(1, 2, 64);

    own = ops;
    own.accepted = on_accepted_too;
    own.tokens = on_tokens_too;
    sched->opt.ops = &own;
    sched->opt.step = waiting_step;
    sched->opt.now = NULL;
    per_token = 0;

    waited[0].ignore_eos = 1;
    submit(&waited[0], 10, TOKENS);
    assert_int_equal(sched_start(sched, err), 0);

    assert_true(wait_for(&n_finished, 2));
    assert_int_equal(waited[0].n_output, TOKENS);

    sched_stop(sched);
    done(waited, 2);
}


/* Down with a step under way, one prepared and tokens owed. */

static void
test_stop(void **state)
{
    char             err[SCHED_ERR_LEN];
    req_t            r[8];
    uint32_t         i, j;
    struct timespec  ts = { 0, 300000 };

    (void) state;

    for (j = 0; j < 20; j++) {
        memset(r, 0, sizeof(r));
        rng = 9 + j;
        open_ahead(2, 2, 64);
        sched->opt.now = NULL;
        assert_int_equal(sched_start(sched, err), 0);

        for (i = 0; i < 8; i++) {
            r[i].ignore_eos = 1;
            submit(&r[i], 10, 2000);
        }

        nanosleep(&ts, NULL);

        if (j % 2 == 0) {
            sched_drain(sched);
        }

        sched_stop(sched);

        for (i = 0; i < 8; i++) {
            assert_true(r[i].finished);
            assert_int_equal(r[i].f.reason, SCHED_E_SHUTDOWN);
        }

        invariants();
        done(r, 8);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_newcomer),
        cmocka_unit_test(test_few_rows),
        cmocka_unit_test(test_place),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_credit),
        cmocka_unit_test(test_preemption),
        cmocka_unit_test(test_prefix),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_failure),
        cmocka_unit_test(test_meanwhile),
        cmocka_unit_test(test_stop)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
