/*
 * The scheduler over a model made of hashes, for its tests.
 *
 * The model keeps one number per position in the KV blocks it is given: a hash
 * of the number before it and the token.  A block that two sequences share by
 * mistake, a position computed twice, too early or not at all gives another
 * hash, and so another token than the oracle, which hashes the ids alone.
 */

#ifndef SCHED_MODEL_H
#define SCHED_MODEL_H

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "sched/sched_int.h"


#define VOCAB     97
#define EOS       96
#define RANKS     4
#ifndef BLOCKS
#define BLOCKS    64                 /* of a rank, at most */
#endif


typedef struct {
    sched_seq_t  *seq;
    int32_t      *prompt;
    uint32_t      n_prompt;
    uint32_t      max_tokens;
    uint64_t      hash;              /* of all ids so far */
    uint32_t      n_echo;
    uint32_t      n_output;
    uint32_t      stop_at;           /* tokens() ends it there; 0: never */
    int           logprobs;
    int           echo;
    int           ignore_eos;
    int           cancelled;
    int           accepted;
    int           finished;
    int           saw_eos;
    int64_t       owed;              /* credit used and not returned */
    uint32_t      tenant;
    uint32_t      cached;            /* of ACCEPTED */
    uint32_t      tags;
    int32_t       rank_hint;         /* plus one */
    uint64_t      rank_epoch;
    int64_t       credit;            /* 0: plenty */
    sched_finish_t  f;
} req_t;


static uint64_t    kv[RANKS][BLOCKS * KV_BLOCK];
static sched_t    *sched;
static atomic_int  n_finished;
static atomic_int  bad;
static uint64_t    fake_now;
static uint64_t    rng;
static int         step_fails;
static int         per_token;
static int         cache_off;
static uint32_t    ahead;            /* steps of so many rows prepare one */
static uint64_t    n_apart;          /* steps that did so, on threads, */
static uint64_t    n_together;       /* and others */
static uint32_t    families;         /* prompts that begin alike; 0: none */
static uint64_t    n_computed;       /* rows */
static uint64_t    n_steps;          /* of step() */
static uint64_t    n_used;           /* of these prepared ahead */

/*
 * The drafting layer has keys of its own, hashes too, and guesses right so
 * many times in a hundred.
 */

#define ROWS_MAX  2048

static uint32_t    speculate;
static int         speculate_free;   /* as it pays */
static uint32_t    accuracy;
static uint64_t    drafts[RANKS][BLOCKS * KV_BLOCK];
static uint64_t    states[RANKS][ROWS_MAX];
static uint32_t    draft_first;      /* of the last sequence drafted for */
static kv_disk_options_t  *disk_options;     /* NULL: no disk tier */
static uint64_t  (*step_us)(void);   /* what the planned step takes */
static void      (*after_step)(void *ctx);


static uint64_t
mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 29;
    h *= UINT64_C(0xbf58476d1ce4e5b9);

    return h ^ (h >> 32);
}


static uint32_t
rnd(uint32_t n)
{
    rng = mix(rng, 12345);

    return (uint32_t) (rng % n);
}


/* Ends of sequence are rare, or nothing would run long. */

static int32_t
oracle(uint64_t hash)
{
    return hash % 200 == 7 ? EOS : (int32_t) (hash % (VOCAB - 1));
}


#define CHECK(x)                                                             \
    do {                                                                     \
        if (!(x)) {                                                          \
            fprintf(stderr, "%d: %s\n", __LINE__, #x);                       \
            atomic_store(&bad, 1);                                           \
        }                                                                    \
    } while (0)


static int
fake_step(void *ctx, uint32_t rank, const sched_batch_t *b,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    char       name[16];
    uint32_t   i, j, pos;
    uint64_t   prev, h;
    int32_t    block;

    (void) ctx;

    if (step_fails && rank == 1) {
        snprintf(err, SCHED_ERR_LEN, "rank 1 is broken");
        return -1;
    }

    if (sched->n_ranks == 1) {
        n_computed += b->n_rows;
    }

    /* rank 0's leader is the step thread, or that prepares meanwhile */

    if (after_step != NULL && rank == 0) {
        CHECK(pthread_getname_np(pthread_self(), name, sizeof(name)) == 0);
        CHECK((strcmp(name, "llm-step") == 0) == !sched->run.ahead);
        n_apart += sched->run.ahead;
        n_together += !sched->run.ahead && sched->run.all_rows > 0;
    }

    for (i = 0; i < b->n_rows; i++) {
        pos = b->pos[i];
        CHECK(b->seq[i] < b->n_seqs);
        block = b->blocks[b->seq[i]][pos / KV_BLOCK];
        CHECK(block >= 0 && block < BLOCKS);

        prev = 0;

        if (pos > 0) {
            block = b->blocks[b->seq[i]][(pos - 1) / KV_BLOCK];
            prev = kv[rank][block * KV_BLOCK + (int) ((pos - 1) % KV_BLOCK)];
        }

        block = b->blocks[b->seq[i]][pos / KV_BLOCK];
        kv[rank][block * KV_BLOCK + (int) (pos % KV_BLOCK)] =
            mix(prev, (uint64_t) b->id[i]);

        CHECK(i < ROWS_MAX);
        states[rank][i] = mix(prev, (uint64_t) b->id[i]);
    }

    for (j = 0; j < n_logits; j++) {
        i = logit_row[j];
        CHECK(i < b->n_rows);
        CHECK(j == 0 || logit_row[j - 1] < i);

        pos = b->pos[i];
        block = b->blocks[b->seq[i]][pos / KV_BLOCK];
        h = kv[rank][block * KV_BLOCK + (int) (pos % KV_BLOCK)];

        for (i = 0; i < VOCAB; i++) {
            logits[j * VOCAB + i] = 0;
        }

        logits[j * VOCAB + (uint32_t) oracle(h)] = 10;
    }

    return 0;
}


/*
 * A row whose keys before it are not those of its own tokens is an error.  One
 * with its own state, not that before it, stands in for what is not known
 * behind blocks that others have computed.
 */

static int
fake_draft(void *ctx, uint32_t rank, const sched_draft_t *d,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    int32_t                block;
    uint32_t               i, j, pos, id;
    uint64_t               h, state, next[ROWS_MAX];
    const sched_batch_t   *b;

    (void) ctx;
    (void) err;

    b = &d->rows;
    CHECK(d->pass < speculate && b->n_rows < ROWS_MAX);

    for (i = 0; i < b->n_rows; i++) {
        pos = b->pos[i];
        state = states[rank][d->from[i]];
        CHECK(b->seq[i] < b->n_seqs);
        CHECK(d->first[b->seq[i]] > 0 && pos >= d->first[b->seq[i]]);
        draft_first = d->first[b->seq[i]];

        block = b->blocks[b->seq[i]][pos / KV_BLOCK];

        if (d->pass == 0 && pos % KV_BLOCK == 0
            && state == kv[rank][block * KV_BLOCK])
        {
            block = b->blocks[b->seq[i]][pos / KV_BLOCK - 1];
            state = kv[rank][block * KV_BLOCK + KV_BLOCK - 1];
        }

        if (pos > d->first[b->seq[i]]) {
            block = b->blocks[b->seq[i]][(pos - 1) / KV_BLOCK];
            CHECK(drafts[rank][block * KV_BLOCK + (int) ((pos - 1) % KV_BLOCK)]
                  == state);
        }

        block = b->blocks[b->seq[i]][pos / KV_BLOCK];
        h = mix(state, (uint64_t) b->id[i]);
        drafts[rank][block * KV_BLOCK + (int) (pos % KV_BLOCK)] = h;
        next[i] = h;
    }

    for (j = 0; j < n_logits; j++) {
        h = next[logit_row[j]];
        id = (uint32_t) oracle(h);
        id = mix(h, 77) % 100 < accuracy ? id : (id + 1) % VOCAB;
        states[rank][j] = h;

        for (i = 0; i < VOCAB; i++) {
            logits[j * VOCAB + i] = i == id ? 10 : 0;
        }
    }

    return 0;
}


static void
on_accepted(void *data, const sched_accepted_t *a)
{
    req_t  *r = data;

    CHECK(!r->accepted && !r->finished);
    CHECK(a->rank < RANKS);
    CHECK(a->cached == 0 || a->cached < r->n_prompt);
    r->accepted = 1;
    r->cached = a->cached;
    r->tags = a->tags;
}


static int
on_tokens(void *data, sched_kind_t kind, const sched_token_t *tok, uint32_t n)
{
    req_t     *r = data;
    float      lp;
    uint32_t   i;

    CHECK(r->accepted && !r->finished);

    sched_charge(r->seq, per_token * (int64_t) n);
    r->owed += per_token * (int64_t) n;

    /* the likely token has 10, all others 0 */
    lp = (float) (10 - log(exp(10) + VOCAB - 1));

    for (i = 0; i < n; i++) {

        if (kind == SCHED_ECHO) {
            CHECK(r->echo && r->n_output == 0);
            CHECK(r->n_echo < r->n_prompt);
            CHECK(tok[i].id == r->prompt[r->n_echo]);

            if (r->logprobs && r->n_echo > 0) {
                CHECK(fabsf(tok[i].logprob
                            - (oracle(r->hash) == tok[i].id ? lp : lp - 10))
                      < 1e-4f);
                CHECK(tok[i].n_top == 2);
                CHECK(tok[i].top[0].id == oracle(r->hash));

            } else {
                CHECK(isnan(tok[i].logprob));
            }

            r->hash = mix(r->hash, (uint64_t) tok[i].id);
            r->n_echo++;
            continue;
        }

        CHECK(!r->echo || r->n_echo == r->n_prompt);
        CHECK(tok[i].id == oracle(r->hash));
        CHECK(isnan(tok[i].logprob) == !r->logprobs);
        CHECK(tok[i].eos == (tok[i].id == EOS && !r->ignore_eos));

        r->hash = mix(r->hash, (uint64_t) tok[i].id);
        r->n_output++;
        r->saw_eos = tok[i].eos;
    }

    return r->stop_at != 0 && r->n_output >= r->stop_at;
}


static void
on_finish(void *data, const sched_finish_t *f)
{
    req_t  *r = data;

    CHECK(!r->finished);
    r->finished = 1;
    r->f = *f;
    CHECK(f->n_output == r->n_output);
    CHECK(f->n_prompt == r->n_prompt);
    CHECK(f->n_cached >= r->cached && f->n_cached <= r->n_prompt);
    CHECK(f->n_hit <= f->n_drafted);
    CHECK(speculate > 0 || f->n_drafted == 0);
    CHECK(accuracy > 0 || f->n_hit == 0);
    CHECK(f->n_cached == 0 || (!cache_off && !(r->echo && r->logprobs)));
    atomic_fetch_add(&n_finished, 1);
}


static void
on_failed(void *ctx, const char *reason)
{
    (void) ctx;
    CHECK(strcmp(reason, "rank 1 is broken") == 0);
}


static uint64_t
clock_fake(void)
{
    return fake_now;
}


static const uint8_t  known[VOCAB] = { [0 ... VOCAB - 1] = 1 };

static void
on_stepped(void *ctx)
{
    if (after_step != NULL) {
        after_step(ctx);
    }
}


static const sched_ops_t  ops = {
    on_accepted, on_tokens, on_finish, on_stepped, on_failed
};


static inline void
start(uint32_t ranks, uint32_t batch, uint32_t chunk, uint32_t blocks,
    uint32_t queue)
{
    char             err[SCHED_ERR_LEN];
    sched_options_t  o;

    static const int32_t  eos = EOS;

    memset(&o, 0, sizeof(o));
    o.n_ranks = ranks;
    o.vocab = VOCAB;
    o.known = known;
    o.kv_blocks = blocks;
    o.max_context = blocks * KV_BLOCK;
    o.max_batch = batch;
    o.prefill_chunk = chunk;
    o.queue_max = queue;
    o.eos = &eos;
    o.n_eos = 1;
    o.boot = 1000;
    o.prefix_cache = !cache_off;
    o.disk = disk_options;
    o.ahead = ahead;
    o.step = fake_step;
    o.speculate = speculate;
    o.speculate_always = !speculate_free;
    o.draft = fake_draft;
    o.ops = &ops;
    o.now = clock_fake;

    sched = sched_open(&o, err);
    assert_non_null(sched);

    atomic_store(&n_finished, 0);
    atomic_store(&bad, 0);
    fake_now = 1000000;
    per_token = 1;
    n_computed = 0;
    n_steps = 0;
    n_used = 0;
    step_us = NULL;
    after_step = NULL;
}


static inline void
submit_full(req_t *r, uint32_t n_prompt, uint32_t max_tokens, int64_t credit,
    int32_t priority, uint64_t queue_us, uint64_t deadline_us,
    uint32_t queue_max)
{
    uint32_t         i, like, family;
    sched_request_t  q;

    /* `like` leading ids are those of a family, the rest is its own. */

    like = families > 0 ? rnd(n_prompt + 1) : 0;
    like = like > 0 && rnd(4) == 0 ? n_prompt : like;
    family = like > 0 ? rnd(families) : 0;

    memset(&q, 0, sizeof(q));
    q.ids = malloc(n_prompt * sizeof(int32_t));
    r->prompt = malloc(n_prompt * sizeof(int32_t));
    assert_non_null(q.ids);
    assert_non_null(r->prompt);

    for (i = 0; i < n_prompt; i++) {
        q.ids[i] = i < like ? (int32_t) (mix(family + 1, i) % (VOCAB - 1))
                            : (int32_t) rnd(VOCAB - 1);
        r->prompt[i] = q.ids[i];

        if (!r->echo) {
            r->hash = mix(r->hash, (uint64_t) q.ids[i]);
        }
    }

    r->n_prompt = n_prompt;
    r->max_tokens = max_tokens;

    q.data = r;
    q.n_prompt = n_prompt;
    q.max_tokens = max_tokens;
    q.params.top_p = 1;
    q.params.repetition_penalty = 1;
    q.echo = r->echo;
    q.logprobs = r->logprobs;
    q.n_top = r->logprobs ? 2 : 0;
    q.ignore_eos = r->ignore_eos;
    q.rank_hint = -1;
    q.priority = priority;
    q.tenant[1] = r->tenant;
    q.credit = credit;
    q.queue_us = queue_us;
    q.deadline_us = deadline_us;
    q.queue_max = queue_max;
    q.submitted_us = fake_now;

    assert_int_equal(sched_submit(sched, &q, &r->seq), 0);
}


static inline void
submit(req_t *r, uint32_t n_prompt, uint32_t max_tokens)
{
    submit_full(r, n_prompt, max_tokens, INT32_MAX, 0, 0, 0, 0);
}


/* Blocks that are being read, and those in front of them. */

static inline uint32_t
hold_fetches(const sched_rank_t *rk, uint32_t *refs)
{
    uint32_t        i, held;
    sched_fetch_t  *f;

    held = 0;

    for (f = rk->fetches; f != NULL; f = f->next) {
        for (i = 0; i < f->first; i++) {
            held += refs[f->front[i]]++ == 0;
            CHECK(rk->cache.block[f->front[i]].published);
        }

        for (i = 0; i < f->job.n; i++) {
            held += refs[f->job.block[i]]++ == 0;
            CHECK(refs[f->job.block[i]] == 1);
            CHECK(!rk->cache.block[f->job.block[i]].published);
        }
    }

    return held;
}


/*
 * Every block is held as often as it is counted, or idle, or free; those with
 * more than one holder hold the same ids of the same tenant.
 */

static inline void
invariants_rank(sched_rank_t *rk)
{
    int32_t       b;
    uint32_t      j, k, held, idle, refs[BLOCKS];
    sched_seq_t  *seq, *by[BLOCKS];

    memset(refs, 0, sizeof(refs));
    memset(by, 0, sizeof(by));
    held = 0;
    idle = 0;

    for (j = 0; j < rk->n_running; j++) {
        seq = rk->running[j];
        CHECK(seq->place == SCHED_IN_RANK && seq->rank == rk->index);
        CHECK(j == 0 || sched_before(rk->running[j - 1], seq));
        CHECK(seq->n_done <= seq->n_blocks * KV_BLOCK);
        CHECK(seq->n_public <= seq->n_done / KV_BLOCK);

        for (k = 0; k < seq->n_blocks; k++) {
            b = seq->blocks[k];

            if (refs[b]++ == 0) {
                held++;
                by[b] = seq;
                continue;
            }

            CHECK(k < seq->n_public && by[b]->blocks[k] == b);
            CHECK(by[b]->r.tenant[1] == seq->r.tenant[1]);
            CHECK(memcmp(by[b]->ids, seq->ids,
                         (k + 1) * KV_BLOCK * sizeof(int32_t))
                  == 0);
        }
    }

    held += hold_fetches(rk, refs);

    for (b = 0; (uint32_t) b < rk->cache.pool.n_blocks; b++) {
        CHECK(refs[b] == rk->cache.pool.refs[b]);
        CHECK(rk->paused[b] == 0);
    }

    for (b = rk->cache.oldest; b >= 0; b = rk->cache.block[b].newer) {
        CHECK(refs[b] == 0 && rk->cache.block[b].published);
        idle++;
    }

    CHECK(idle == rk->cache.n_idle);
    CHECK(held + idle + rk->cache.pool.n_free == rk->cache.pool.n_blocks);
}


static inline void
invariants(void)
{
    uint32_t      i;
    sched_seq_t  *seq;

    for (i = 0; i < sched->n_ranks; i++) {
        invariants_rank(&sched->rank[i]);
    }

    for (seq = sched->queue.first; seq != NULL; seq = seq->next) {
        CHECK(seq->n_blocks == 0 && seq->n_done == 0);
        CHECK(seq->next == NULL || sched_before(seq, seq->next));
    }
}


/* While a step is under way: what comes then has it prepared again. */

static inline void
meanwhile(void)
{
    uint32_t  again;

    again = 0;
    sched_deliver(sched);

    do {
        if (sched->run.ahead) {
            sched_prepare(sched);
        }

    } while (sched->run.ahead && mix(sched->steps, ++again) % 4 == 0);
}


static inline int
step(void)
{
    int       work, prepared;
    uint32_t  i;

    prepared = sched->prepared;
    work = sched_next(sched);

    if (work) {
        n_steps++;
        n_used += prepared && sched->owing;

        if (sched->run.ahead) {
            meanwhile();

        } else {
            sched_deliver(sched);
        }

        for (i = 0; i < sched->n_ranks; i++) {
            CHECK(sched->rank[i].part->n <= sched->opt.max_batch);
            CHECK(sched->rank[i].n_rows <= sched->max_rows);
            CHECK(sched->rank[i].n_logits <= sched->max_logits);
            sched_rank_run(sched, &sched->rank[i]);
        }

        if (step_us != NULL) {
            fake_now += step_us();
        }

        sched_collect(sched);
    }

    if (step_us == NULL) {
        fake_now += 1000;
    }

    assert_int_equal(atomic_load(&bad), 0);

    return work;
}


static inline void
done(req_t *r, uint32_t n)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        sched_release(r[i].seq);
        free(r[i].prompt);
    }

    sched_close(sched);
    assert_int_equal(atomic_load(&bad), 0);
}


/* What a finished request must look like. */

static inline void
check_end(const req_t *r)
{
    assert_true(r->finished);

    switch (r->f.reason) {

    case SCHED_STOP:
        assert_true(r->saw_eos
                    || (r->stop_at != 0 && r->n_output == r->stop_at));
        break;

    case SCHED_LENGTH:
        assert_int_equal(r->n_output, r->max_tokens);
        assert_int_equal(r->n_echo, r->echo ? r->n_prompt : 0);
        break;

    case SCHED_CANCELLED:
        assert_true(r->cancelled);
        break;

    default:
        fail_msg("reason %d", (int) r->f.reason);
    }
}

#endif /* SCHED_MODEL_H */
