/*
 * The scheduler and the prefix cache: who shares, what is counted, what is
 * computed.  Answers are compared with the oracle in every case.
 */

#include "sched_model.h"


/* A request for ids made from `family`, `n_own` random ones behind them. */

static void
ask(req_t *r, uint32_t family, uint32_t n_like, uint32_t n_own,
    uint32_t max_tokens)
{
    uint32_t         i;
    sched_request_t  q;

    memset(&q, 0, sizeof(q));
    q.n_prompt = n_like + n_own;
    q.ids = malloc(q.n_prompt * sizeof(int32_t));
    r->prompt = malloc(q.n_prompt * sizeof(int32_t));
    assert_non_null(q.ids);
    assert_non_null(r->prompt);

    for (i = 0; i < q.n_prompt; i++) {
        q.ids[i] = i < n_like ? (int32_t) (mix(family, i) % (VOCAB - 1))
                              : (int32_t) rnd(VOCAB - 1);
        r->prompt[i] = q.ids[i];

        if (!r->echo) {
            r->hash = mix(r->hash, (uint64_t) q.ids[i]);
        }
    }

    r->n_prompt = q.n_prompt;
    r->max_tokens = max_tokens;
    r->ignore_eos = 1;

    q.data = r;
    q.max_tokens = max_tokens;
    q.params.top_p = 1;
    q.params.repetition_penalty = 1;
    q.echo = r->echo;
    q.logprobs = r->logprobs;
    q.n_top = r->logprobs ? 2 : 0;
    q.ignore_eos = 1;
    q.tenant[1] = r->tenant;
    q.rank_hint = r->rank_hint - 1;      /* 0: none */
    q.rank_epoch = r->rank_epoch;
    q.credit = r->credit != 0 ? r->credit : INT32_MAX;
    q.submitted_us = fake_now;

    assert_int_equal(sched_submit(sched, &q, &r->seq), 0);
}


static void
run(void)
{
    while (step()) {
        invariants();
    }

    invariants();
}


/* What the second of two equal requests takes: all but what gives logits. */

static void
test_again(void **state)
{
    req_t     r[2];
    uint32_t  i, full;
    uint64_t  before;

    static const uint32_t  length[] = { 1, 63, 64, 65, 127, 128, 129, 1000 };

    (void) state;

    for (i = 0; i < sizeof(length) / sizeof(length[0]); i++) {
        memset(r, 0, sizeof(r));
        rng = 1;
        start(1, 4, 64, 40, 10);

        ask(&r[0], 7, length[i], 0, 3);
        run();
        check_end(&r[0]);
        assert_int_equal(r[0].f.n_cached, 0);
        assert_int_equal(n_computed, length[i] + 2);

        before = n_computed;
        full = (length[i] - 1) / KV_BLOCK * KV_BLOCK;

        ask(&r[1], 7, length[i], 0, 3);
        run();
        check_end(&r[1]);
        assert_int_equal(r[1].cached, full);
        assert_int_equal(r[1].f.n_cached, full);
        assert_int_equal(n_computed - before, length[i] + 2 - full);

        done(r, 2);
    }
}


/* A conversation: prompt and answer of one turn begin the next. */

static void
test_turns(void **state)
{
    req_t     r[2];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 2;
    start(1, 4, 64, 40, 10);

    ask(&r[0], 3, 100, 0, 200);
    run();
    check_end(&r[0]);

    /* The same hash function makes ids and answers; so ask by hand. */

    r[1].echo = 1;
    ask(&r[1], 3, 100, 250, 1);

    for (i = 0; i < 199; i++) {
        r[1].seq->ids[100 + i] = r[0].seq->ids[100 + i];
        r[1].prompt[100 + i] = r[0].seq->ids[100 + i];
    }

    run();
    check_end(&r[1]);

    /* 299 positions were computed: the last token of all was not. */

    assert_int_equal(r[1].f.n_cached, 256);

    done(r, 2);
}


/* All rows of all sequences, hits left out, and not one more. */

static void
test_exact(void **state)
{
    req_t     *r;
    uint32_t   i, n, hits;
    uint64_t   rows;

    (void) state;

    n = 300;
    r = calloc(n, sizeof(req_t));
    assert_non_null(r);

    rng = 3;
    start(1, 8, 100, BLOCKS, UINT32_MAX);

    for (i = 0; i < n; i++) {
        r[i].tenant = rnd(3) == 0;
        ask(&r[i], rnd(4), rnd(300), 1 + rnd(70), 1 + rnd(30));

        if (rnd(3) == 0) {
            step();
            invariants();
        }
    }

    run();

    rows = 0;
    hits = 0;

    for (i = 0; i < n; i++) {
        check_end(&r[i]);
        rows += r[i].n_prompt - r[i].f.n_cached + r[i].n_output - 1;
        hits += r[i].f.n_cached > 0;
    }

    assert_true(hits > 50);
    assert_true(sched->rank[0].cache.n_evicted > 0);
    assert_int_equal(sched->preempted, 0);

    /* Two that computed the same block at once did both compute it. */

    assert_int_equal(n_computed, rows);

    done(r, n);
    free(r);
}


/* Many that begin alike at once: one computes, the others wait for it. */

static void
test_together(void **state)
{
    req_t     r[16];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 4;
    start(1, 16, 128, BLOCKS, 100);

    for (i = 0; i < 16; i++) {
        ask(&r[i], 5, 1000, 10, 4);
    }

    run();

    for (i = 0; i < 16; i++) {
        check_end(&r[i]);
        assert_int_equal(r[i].f.n_cached, i == 0 ? 0 : 960);
    }

    assert_int_equal(n_computed, 16 * (1010 + 3) - 15 * 960);

    /* As many steps as one takes; the ends of the others are in small chunks. */

    assert_true(sched->steps <= 8 + 16 * 50 / 16 + 6);

    done(r, 16);
}


/* The one that others wait for leaves. */

static void
test_leader_leaves(void **state)
{
    req_t     r[4];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 5;
    start(1, 16, 50, BLOCKS, 100);

    for (i = 0; i < 4; i++) {
        ask(&r[i], 5, 1000, 10, 4);
    }

    for (i = 0; i < 5; i++) {
        step();
        invariants();
    }

    r[0].cancelled = 1;
    sched_cancel(sched, r[0].seq);
    run();

    for (i = 0; i < 4; i++) {
        check_end(&r[i]);
    }

    /* What it had computed stays; the next went on from there. */

    assert_int_equal(r[1].f.n_cached, 5 * 50 / KV_BLOCK * KV_BLOCK);
    assert_int_equal(r[2].f.n_cached, 960);
    assert_int_equal(r[3].f.n_cached, 960);

    done(r, 4);
}


static void
test_tenants(void **state)
{
    req_t     r[4];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 6;
    start(1, 8, 64, BLOCKS, 100);

    for (i = 0; i < 4; i++) {
        r[i].tenant = i / 2 + 1;
        ask(&r[i], 1, 300, 0, 5);
        run();
        check_end(&r[i]);
        assert_int_equal(r[i].f.n_cached, i % 2 == 0 ? 0 : 256);
    }

    assert_int_equal(sched->rank[0].prompt, 4 * 300);
    assert_int_equal(sched->rank[0].cached, 2 * 256);

    done(r, 4);
}


/* Scoring a prompt takes all its rows; what it computes serves others. */

static void
test_scores(void **state)
{
    req_t  r[4];

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 7;
    start(1, 8, 64, BLOCKS, 100);

    r[0].echo = r[0].logprobs = 1;
    ask(&r[0], 1, 300, 0, 5);
    run();

    ask(&r[1], 1, 300, 0, 5);
    run();

    r[2].echo = r[2].logprobs = 1;
    ask(&r[2], 1, 300, 0, 0);
    run();

    r[3].echo = 1;
    ask(&r[3], 1, 300, 0, 5);
    run();

    check_end(&r[0]);
    check_end(&r[1]);
    check_end(&r[2]);
    check_end(&r[3]);
    assert_int_equal(r[0].f.n_cached, 0);
    assert_int_equal(r[1].f.n_cached, 256);
    assert_int_equal(r[2].f.n_cached, 0);
    assert_int_equal(r[3].f.n_cached, 256);

    done(r, 4);
}


/* A preempted sequence comes back to its own blocks, which are no hits. */

static void
test_preempted(void **state)
{
    int       off;
    req_t     r[3];
    uint32_t  i;
    uint64_t  rows[2], preempted[2];

    (void) state;

    for (off = 0; off < 2; off++) {
        memset(r, 0, sizeof(r));
        rng = 8;
        cache_off = off;
        start(1, 3, 64, 14, 100);

        /* 14 blocks: too few as soon as each needs its fifth */

        for (i = 0; i < 3; i++) {
            ask(&r[i], 10 + i, 200, 0, i == 0 ? 150 : 300);
        }

        run();

        for (i = 0; i < 3; i++) {
            check_end(&r[i]);
            assert_int_equal(r[i].f.n_cached, 0);
        }

        rows[off] = n_computed;
        preempted[off] = sched->preempted;
        done(r, 3);
    }

    cache_off = 0;

    assert_true(preempted[0] > 0 && preempted[1] > 0);
    assert_true(rows[0] < rows[1]);
}


/* Those that pause share one beginning; a newcomer gets its memory. */

static void
test_paused_share(void **state)
{
    req_t     r[6];
    uint32_t  i;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 9;
    start(1, 6, 64, 20, 100);

    for (i = 0; i < 5; i++) {
        r[i].credit = 3;
        ask(&r[i], 1, 640, 10, 20);
    }

    run();

    /* 10 blocks that five hold, and one of each */

    assert_int_equal(kv_cache_free(&sched->rank[0].cache), 5);

    ask(&r[5], 2, 1000, 0, 20);
    run();
    check_end(&r[5]);

    for (i = 0; i < 5; i++) {
        sched_credit(sched, r[i].seq, 1000);
    }

    run();

    for (i = 0; i < 6; i++) {
        check_end(&r[i]);
    }

    done(r, 6);
}


/* Where the prefix is, unless that rank has too much to do. */

static void
test_ranks(void **state)
{
    req_t     r[12];
    uint32_t  i, where;

    (void) state;

    memset(r, 0, sizeof(r));
    rng = 10;
    start(2, 8, 64, BLOCKS, 100);

    /* A hint decides where nothing else does; an old one does not count. */

    r[0].rank_hint = 2;
    r[0].rank_epoch = 1001;
    ask(&r[0], 1, 500, 0, 2);
    run();
    assert_int_equal(r[0].f.rank, 1);

    r[1].rank_hint = 2;
    r[1].rank_epoch = 999;
    ask(&r[1], 2, 500, 0, 2);
    run();
    assert_int_equal(r[1].f.rank, 0);

    /* The cache knows better than a hint. */

    r[2].rank_hint = 1;
    r[2].rank_epoch = 1000;
    ask(&r[2], 1, 500, 10, 2);
    run();
    assert_int_equal(r[2].f.rank, 1);
    assert_int_equal(r[2].f.n_cached, 448);

    ask(&r[3], 2, 500, 10, 2);
    run();
    assert_int_equal(r[3].f.rank, 0);

    /* Eight at once: two may lean to one side, the others go elsewhere. */

    for (i = 4; i < 12; i++) {
        ask(&r[i], 1, 500, 10, 50);
    }

    run();

    for (i = 4, where = 0; i < 12; i++) {
        where += r[i].f.rank == 1;
        check_end(&r[i]);
        assert_true(r[i].f.n_cached == 448 || r[i].f.rank == 0);
    }

    assert_in_range(where, 4, 6);

    done(r, 12);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_again),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_together),
        cmocka_unit_test(test_leader_leaves),
        cmocka_unit_test(test_tenants),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_preempted),
        cmocka_unit_test(test_paused_share),
        cmocka_unit_test(test_ranks)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
