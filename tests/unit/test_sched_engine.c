/*
 * The scheduler over a real model: many requests at once on two ranks, with
 * too few blocks, priorities and cancels, say what each says alone.
 */

#define BLOCKS  64

#include "cli/cli_engine.h"
#include "model_dir.h"
#include "sched_model.h"


#define REQUESTS  160
#define LIVE      24

typedef struct {
    sched_seq_t      *seq;
    int32_t           ids[400];
    uint32_t          n_prompt;
    uint32_t          max_tokens;
    int32_t           priority;
    sample_params_t   params;
    int32_t           out[100];
    uint32_t          n_out;
    int               cancelled;
    atomic_int        finished;
    sched_finish_t    f;
} talk_t;


static talk_t      talk[REQUESTS];
static talk_t      alone[REQUESTS];
static talk_t      fresh[REQUESTS];
static atomic_int  n_ended;


static void
talk_accepted(void *data, const sched_accepted_t *a)
{
    (void) data;
    (void) a;
}


static int
talk_tokens(void *data, sched_kind_t kind, const sched_token_t *tok,
    uint32_t n)
{
    uint32_t   i;
    talk_t    *t = data;

    CHECK(kind == SCHED_OUTPUT);

    for (i = 0; i < n; i++) {
        CHECK(t->n_out < 100);
        t->out[t->n_out++] = tok[i].id;
    }

    return 0;
}


static void
talk_finish(void *data, const sched_finish_t *f)
{
    talk_t  *t = data;

    t->f = *f;
    atomic_store(&t->finished, 1);
    atomic_fetch_add(&n_ended, 1);
}


static void
talk_stepped(void *ctx)
{
    (void) ctx;
    invariants();
}


static void
talk_failed(void *ctx, const char *reason)
{
    (void) ctx;
    fprintf(stderr, "%s\n", reason);
    CHECK(0);
}


static const sched_ops_t  talk_ops = {
    talk_accepted, talk_tokens, talk_finish, talk_stepped, talk_failed
};


static void
talk_open(cli_stack_t *st, const char *dir, uint32_t ranks, uint32_t batch,
    uint32_t chunk, uint32_t blocks, int cache)
{
    char             err[ERR_LEN];
    cli_engine_t     cli;
    sched_options_t  opt;

    static uint8_t  all[101];

    memset(&cli, 0, sizeof(cli));
    memset(all, 1, sizeof(all));
    cli.model = dir;
    cli.backend = "cpu";
    cli.ranks = ranks;
    cli.threads = 1;
    cli.compute = CLI_COMPUTE_F32;
    cli.max_batch = batch;
    cli.prefill_chunk = chunk;
    cli.max_context = 512;
    cli.kv_memory = UINT64_C(1) << 22;
    cli.ahead = ahead ? CLI_AHEAD_ON : CLI_AHEAD_OFF;

    if (cli_stack_open(st, &cli, 0, err) != 0) {
        fail_msg("%s", err);
    }

    assert_true(st->opt.kv_blocks >= blocks);

    cli_stack_sched(st, &cli, &opt);
    opt.kv_blocks = blocks;
    opt.prefix_cache = cache;
    opt.queue_max = UINT32_MAX;
    opt.known = all;
    opt.ops = &talk_ops;

    sched = sched_open(&opt, err);

    if (sched == NULL || sched_start(sched, err) != 0) {
        fail_msg("%s", err);
    }

    atomic_store(&n_ended, 0);
    atomic_store(&bad, 0);
}


static void
talk_submit(talk_t *t)
{
    sched_request_t  q;

    memset(&q, 0, sizeof(q));
    q.data = t;
    q.ids = malloc(t->n_prompt * sizeof(int32_t));
    assert_non_null(q.ids);
    memcpy(q.ids, t->ids, t->n_prompt * sizeof(int32_t));
    q.n_prompt = t->n_prompt;
    q.max_tokens = t->max_tokens;
    q.params = t->params;
    q.priority = t->priority;
    q.rank_hint = -1;
    q.credit = INT64_MAX / 2;

    assert_int_equal(sched_submit(sched, &q, &t->seq), 0);
}


static void
talk_wait(int n)
{
    uint32_t         i;
    struct timespec  ts = { 0, 100000 };

    for (i = 0; atomic_load(&n_ended) < n; i++) {
        nanosleep(&ts, NULL);
        assert_true(i < 3000000);
    }
}


static void
talk_close(cli_stack_t *st, talk_t *t)
{
    uint32_t  i;

    sched_stop(sched);

    for (i = 0; i < sched->n_ranks; i++) {
        assert_int_equal(kv_cache_free(&sched->rank[i].cache),
                         sched->opt.kv_blocks);
    }

    for (i = 0; i < REQUESTS; i++) {
        sched_release(t[i].seq);
    }

    sched_close(sched);
    cli_stack_close(st);
    assert_int_equal(atomic_load(&bad), 0);
}


static void
talk_make(void)
{
    uint32_t   i, j, like;
    talk_t    *t;

    rng = 1;
    memset(talk, 0, sizeof(talk));

    for (i = 0; i < REQUESTS; i++) {
        t = &talk[i];
        t->n_prompt = rnd(6) == 0 ? 1 + rnd(400) : 1 + rnd(60);
        t->max_tokens = 1 + rnd(60);
        t->priority = (int32_t) rnd(3);
        t->params.temperature = rnd(2) == 0 ? 0 : 1;
        t->params.top_p = 1;
        t->params.repetition_penalty = 1;
        t->params.seed = rnd(1000);
        like = rnd(t->n_prompt + 1);

        for (j = 0; j < t->n_prompt; j++) {
            t->ids[j] = 2 + (int32_t) (j < like ? mix(i % 3, j) % 99
                                                : rnd(99));
        }
    }

    memcpy(alone, talk, sizeof(talk));
    memcpy(fresh, talk, sizeof(talk));
}


/* All at once, and some of them leave. */

static void
talk_together(void)
{
    uint32_t         i, j;
    struct timespec  ts = { 0, 100000 };

    for (i = 0; i < REQUESTS; i++) {

        while (i - (uint32_t) atomic_load(&n_ended) >= LIVE) {
            nanosleep(&ts, NULL);
        }

        talk_submit(&talk[i]);

        if (rnd(10) == 0) {
            j = i - rnd(i < 10 ? i + 1 : 10);
            talk[j].cancelled = 1;
            sched_cancel(sched, talk[j].seq);
        }
    }

    talk_wait(REQUESTS);
}


static void
talk_compare(void)
{
    uint32_t  i, whole;

    for (i = 0, whole = 0; i < REQUESTS; i++) {

        assert_true(talk[i].n_out <= alone[i].n_out);
        assert_memory_equal(talk[i].out, alone[i].out,
                            talk[i].n_out * sizeof(int32_t));

        if (talk[i].f.reason == SCHED_CANCELLED) {
            assert_true(talk[i].cancelled);
            continue;
        }

        assert_int_equal(talk[i].f.reason, alone[i].f.reason);
        assert_int_equal(talk[i].n_out, alone[i].n_out);
        whole++;
    }

    assert_true(whole > REQUESTS / 2);
}


static void
test_same_as_alone(void **state)
{
    uint32_t      i;
    cli_stack_t   st;
    model_dir_t  *dir;

    (void) state;

    talk_make();

    dir = model_dir_open(NULL);
    model_dir_tensors(dir);
    model_dir_write(dir);

    talk_open(&st, dir->path, 1, 1, 64, 8, 0);

    for (i = 0; i < REQUESTS; i++) {
        talk_submit(&alone[i]);
        talk_wait((int) i + 1);
    }

    talk_close(&st, alone);

    for (ahead = 0; ahead <= 1; ahead++) {
        memcpy(talk, fresh, sizeof(talk));
        talk_open(&st, dir->path, 2, 6, 32, 9, 1);
        talk_together();
        assert_true(sched->preempted > 0);
        talk_close(&st, talk);
        talk_compare();
    }

    model_dir_close(dir);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_same_as_alone)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
