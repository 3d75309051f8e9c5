/*
 * Tags on the blocks of a rank, as the scheduler puts them there.
 *
 * A tag here is a hash of tenant and tokens up to its last, one for every
 * STRIDE tokens of a prompt, as a module would make them.  The model keeps
 * (rank, tokens of a published block) → tags by looking at the sequences after
 * each step, and finds what was lost by looking at which blocks are left.
 */

#include "sched_model.h"


#define STRIDE    40
#define TAGS_MAX  100000

typedef struct {
    uint32_t  rank;
    int32_t   block;
    uint64_t  prefix;                /* of all tokens of it and before it */
    uint64_t  tag;
} entry_t;


static entry_t   *model;
static uint32_t   n_model;
static uint64_t   reported[RANKS][4096];
static uint32_t   n_reported[RANKS];
static uint32_t   total_lost;
static req_t     *all;
static uint32_t   n_all;


static uint64_t
prefix_hash(uint32_t tenant, const int32_t *ids, uint32_t n)
{
    uint32_t  i;
    uint64_t  h;

    h = mix(99, tenant);

    for (i = 0; i < n; i++) {
        h = mix(h, (uint64_t) ids[i]);
    }

    return h;
}


/* The hash of what a published block and those before it hold. */

static uint64_t
block_prefix(const kv_cache_t *c, int32_t block)
{
    int32_t   ids[BLOCKS * KV_BLOCK], chain[BLOCKS], b;
    uint32_t  i, n;

    n = 0;

    for (b = block; b >= 0; b = c->block[b].parent) {
        assert_true(c->block[b].published && n < BLOCKS);
        chain[n++] = b;
    }

    for (i = 0; i < n; i++) {
        memcpy(ids + i * KV_BLOCK, c->block[chain[n - 1 - i]].id,
               KV_BLOCK * sizeof(int32_t));
    }

    return prefix_hash((uint32_t) c->block[block].tenant.hi, ids,
                       n * KV_BLOCK);
}


static int
still_there(const entry_t *e)
{
    const kv_cache_t  *c;

    c = &sched->rank[e->rank].cache;

    return c->block[e->block].published
           && block_prefix(c, e->block) == e->prefix;
}


static void
model_add(uint32_t rank, int32_t block, uint64_t prefix, uint64_t tag)
{
    uint32_t  i;

    for (i = 0; i < n_model; i++) {
        if (model[i].rank == rank && model[i].block == block
            && model[i].prefix == prefix && model[i].tag == tag)
        {
            return;
        }
    }

    assert_true(n_model < TAGS_MAX);
    model[n_model++] = (entry_t) { rank, block, prefix, tag };
}


/* The tags of a request on the first `n` blocks of its prompt. */

static void
model_attach(const req_t *r, uint32_t rank, uint32_t n)
{
    int32_t            b;
    uint32_t           i, at;
    uint64_t           prefix;
    const kv_cache_t  *c;

    c = &sched->rank[rank].cache;

    for (i = STRIDE - 1; i < r->n_prompt && i / KV_BLOCK < n; i += STRIDE) {
        at = (i / KV_BLOCK + 1) * KV_BLOCK;
        prefix = prefix_hash(r->tenant, r->seq->ids, at);

        for (b = 0; (uint32_t) b < c->pool.n_blocks; b++) {
            if (c->block[b].published && block_prefix(c, b) == prefix) {
                model_add(rank, b, prefix,
                          prefix_hash(r->tenant, r->seq->ids, i + 1));
                break;
            }
        }

        CHECK((uint32_t) b < c->pool.n_blocks);
    }
}


static void
on_lost(void *ctx, uint32_t rank, uint64_t tag)
{
    (void) ctx;

    assert_true(n_reported[rank] < 4096);
    reported[rank][n_reported[rank]++] = tag;
    total_lost++;
}


/* After it was published by its last step, before its blocks can go. */

static void
on_tags_finish(void *data, const sched_finish_t *f)
{
    req_t  *r = data;

    on_finish(data, f);

    if (r->f.reason != SCHED_CANCELLED) {
        model_attach(r, f->rank, r->seq->n_seen / KV_BLOCK);
    }
}


static int
cmp(const void *a, const void *b)
{
    uint64_t  x = *(const uint64_t *) a, y = *(const uint64_t *) b;

    return x < y ? -1 : x > y;
}


/*
 * After a plan, which evicts and publishes nothing: what has no block any more
 * was reported, once, and nothing else was.
 */

static void
settle(void)
{
    uint32_t         i, j, rank, n;
    static uint64_t  gone[4096];
    static uint8_t   kept[TAGS_MAX];

    for (i = 0; i < n_model; i++) {
        kept[i] = (uint8_t) still_there(&model[i]);
    }

    for (rank = 0; rank < sched->n_ranks; rank++) {
        n = 0;

        for (i = 0; i < n_model; i++) {
            if (kept[i] || model[i].rank != rank) {
                continue;
            }

            for (j = 0; j < n_model; j++) {
                if (model[j].rank == rank && model[j].tag == model[i].tag
                    && (kept[j] || j < i))
                {
                    break;
                }
            }

            if (j == n_model) {
                gone[n++] = model[i].tag;
            }
        }

        CHECK(n == n_reported[rank]);
        qsort(gone, n, sizeof(uint64_t), cmp);
        qsort(reported[rank], n_reported[rank], sizeof(uint64_t), cmp);
        CHECK(n != n_reported[rank]
              || memcmp(gone, reported[rank], n * sizeof(uint64_t)) == 0);
        n_reported[rank] = 0;
    }

    for (i = 0, j = 0; i < n_model; i++) {
        if (kept[i]) {
            model[j++] = model[i];
        }
    }

    n_model = j;
}


/* A step publishes, and evicts nothing once it is planned. */

static void
tags_step(void)
{
    int       work;
    uint32_t  i;

    work = sched_plan(sched);

    settle();

    for (i = 0; work && i < sched->n_ranks; i++) {
        sched_rank_run(sched, &sched->rank[i]);
    }

    if (work) {
        sched_collect(sched);
    }

    for (i = 0; i < n_all; i++) {
        if (all[i].seq->place == SCHED_IN_RANK) {
            model_attach(&all[i], all[i].seq->rank, all[i].seq->n_public);
        }
    }

    fake_now += 1000;
    invariants();
}


static void
on_tags_accepted(void *data, const sched_accepted_t *a)
{
    req_t  *r = data;

    on_accepted(data, a);

    /* Those whose last token is among the tokens that it took over. */

    CHECK(a->tags == a->cached / STRIDE);
    CHECK(a->tags <= r->n_prompt / STRIDE);
}


static const sched_ops_t  tag_ops = {
    on_tags_accepted, on_tokens, on_tags_finish, NULL, on_failed, on_lost
};


static void
ask(req_t *r)
{
    uint32_t         i, like;
    sched_request_t  q;

    memset(&q, 0, sizeof(q));
    r->tenant = rnd(2);
    q.n_prompt = 1 + rnd(400);
    like = rnd(q.n_prompt + 1);
    q.ids = malloc(q.n_prompt * sizeof(int32_t));
    r->prompt = malloc(q.n_prompt * sizeof(int32_t));
    q.tags = malloc((q.n_prompt / STRIDE + 1) * sizeof(sched_tag_t));
    assert_true(q.ids != NULL && r->prompt != NULL && q.tags != NULL);

    for (i = 0; i < q.n_prompt; i++) {
        q.ids[i] = i < like ? (int32_t) (mix(1, i) % (VOCAB - 1))
                            : (int32_t) rnd(VOCAB - 1);
        r->prompt[i] = q.ids[i];
        r->hash = mix(r->hash, (uint64_t) q.ids[i]);

        if (i % STRIDE == STRIDE - 1) {
            q.tags[q.n_tags].last = i;
            q.tags[q.n_tags++].tag = prefix_hash(r->tenant, q.ids, i + 1);
        }
    }

    r->n_prompt = q.n_prompt;
    r->max_tokens = 1 + rnd(40);

    q.data = r;
    q.max_tokens = r->max_tokens;
    q.params.top_p = 1;
    q.params.repetition_penalty = 1;
    q.tenant[1] = r->tenant;
    q.rank_hint = -1;
    q.credit = INT32_MAX;
    q.submitted_us = fake_now;

    assert_int_equal(sched_submit(sched, &q, &r->seq), 0);
}


static void
tags_run(uint64_t seed, uint32_t ranks, uint32_t blocks, uint32_t n)
{
    uint32_t  i;

    rng = seed;
    n_model = 0;
    total_lost = 0;
    start(ranks, 6, 60, blocks, UINT32_MAX);
    sched->opt.ops = &tag_ops;

    all = calloc(n, sizeof(req_t));
    model = calloc(TAGS_MAX, sizeof(entry_t));
    assert_true(all != NULL && model != NULL);

    for (n_all = 0; n_all < n || (uint32_t) atomic_load(&n_finished) < n; ) {

        if (n_all < n && rnd(3) == 0) {
            ask(&all[n_all++]);
        }

        if (n_all > 0 && rnd(60) == 0) {
            i = rnd(n_all);
            all[i].cancelled = 1;
            sched_cancel(sched, all[i].seq);
        }

        tags_step();
        assert_int_equal(atomic_load(&bad), 0);
    }

    for (i = 0; i < n; i++) {
        check_end(&all[i]);
    }

    assert_true(total_lost > n / 4);

    done(all, n);
    free(all);
    free(model);
}


static void
test_tags(void **state)
{
    (void) state;

    tags_run(1, 1, 40, 150);
    tags_run(2, 3, 20, 150);
    tags_run(3, 1, 12, 100);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_tags)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
