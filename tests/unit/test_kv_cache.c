/*
 * The prefix cache beside a model of it that knows whole prefixes.
 *
 * The model remembers, for each block, all tokens from the start up to its
 * last and the tenant, and finds by comparing them; no hash, no parent, no
 * list.  Sequences take, fill, publish and give back blocks at random; hits,
 * holders, free and idle blocks and the order of eviction must agree.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sched/kv_cache.h"
#include "random.h"


#define BLOCKS   24
#define DEPTH    6                   /* blocks of a sequence at most */
#define SEQS     8
#define TENANTS  3

typedef struct {
    int       cached;
    uint32_t  n;                     /* blocks from the start on */
    uint32_t  kind[DEPTH];           /* stand for 64 ids each */
    uint32_t  tenant;
    uint32_t  holders;
    uint64_t  used;                  /* when the last holder left */
} model_t;

typedef struct {
    int       alive;
    uint32_t  tenant;
    uint32_t  n;
    uint32_t  kind[DEPTH];
    int32_t   block[DEPTH];
    kv_key_t  hash[DEPTH];
} seq_t;


static kv_cache_t  cache;
static model_t     model[BLOCKS];
static seq_t       seqs[SEQS];
static uint64_t    clock_now;
static uint64_t    evictions;
static int         collide;          /* all hashes are equal */
static uint64_t    rng;


static uint32_t
rnd(uint32_t n)
{
    return (uint32_t) (random_next(&rng) % n);
}


static void
ids_of(uint32_t kind, int32_t *id)
{
    int  i;

    for (i = 0; i < KV_BLOCK; i++) {
        id[i] = (int32_t) (kind * 1000) + i;
    }

    /* kinds 0 and 1 differ in the last id alone */

    if (kind == 1) {
        ids_of(0, id);
        id[KV_BLOCK - 1]++;
    }
}


static void
name_of(seq_t *s, uint32_t i, int32_t *id, kv_name_t *name)
{
    kv_key_t  tenant, root;

    ids_of(s->kind[i], id);

    tenant.lo = s->tenant;
    tenant.hi = 0;
    root = kv_cache_root(77, &tenant);

    s->hash[i] = kv_cache_chain(i > 0 ? &s->hash[i - 1] : &root, id);

    if (collide) {
        memset(&s->hash[i], 0, sizeof(kv_key_t));
    }

    name->hash = s->hash[i];
    name->tenant = tenant;
    name->parent = i > 0 ? s->block[i - 1] : -1;
    name->id = id;
}


/* What the model finds for block `i` of a sequence. */

static int32_t
model_find(const seq_t *s, uint32_t i)
{
    uint32_t  b;

    for (b = 0; b < BLOCKS; b++) {
        if (model[b].cached && model[b].n == i + 1
            && model[b].tenant == s->tenant
            && memcmp(model[b].kind, s->kind, (i + 1) * sizeof(uint32_t))
               == 0)
        {
            return (int32_t) b;
        }
    }

    return -1;
}


/* The cached block without holders that was used longest ago. */

static int32_t
model_oldest(void)
{
    int32_t   best;
    uint32_t  b;

    best = -1;

    for (b = 0; b < BLOCKS; b++) {
        if (model[b].cached && model[b].holders == 0
            && (best < 0 || model[b].used < model[best].used))
        {
            best = (int32_t) b;
        }
    }

    return best;
}


static void
on_evict(void *ctx, int32_t block, const kv_name_t *name,
    const kv_key_t *parent)
{
    int32_t    id[KV_BLOCK];
    uint32_t   b;
    model_t   *m;

    assert_ptr_equal(ctx, &cache);
    assert_int_equal(block, model_oldest());

    m = &model[block];
    ids_of(m->kind[m->n - 1], id);
    assert_memory_equal(id, name->id, sizeof(id));
    assert_int_equal(name->tenant.lo, m->tenant);
    assert_true((name->parent < 0) == (m->n == 1));
    assert_true((parent == NULL) == (m->n == 1));

    /* a leaf */

    for (b = 0; b < BLOCKS; b++) {
        assert_false(model[b].cached && model[b].n == m->n + 1
                     && model[b].tenant == m->tenant
                     && memcmp(model[b].kind, m->kind,
                               m->n * sizeof(uint32_t))
                        == 0);
    }

    m->cached = 0;
    evictions++;
}


static void
check(void)
{
    uint32_t  b, i, j, held, idle, refs[BLOCKS];

    memset(refs, 0, sizeof(refs));

    for (i = 0; i < SEQS; i++) {
        for (j = 0; seqs[i].alive && j < seqs[i].n; j++) {
            refs[seqs[i].block[j]]++;
        }
    }

    held = 0;
    idle = 0;

    for (b = 0; b < BLOCKS; b++) {
        assert_int_equal(refs[b], cache.pool.refs[b]);
        assert_int_equal(refs[b], model[b].holders);
        held += refs[b] > 0;
        idle += refs[b] == 0 && model[b].cached;
    }

    assert_int_equal(idle, cache.n_idle);
    assert_int_equal(held + idle + cache.pool.n_free, BLOCKS);
    assert_int_equal(kv_cache_free(&cache), BLOCKS - held);
    assert_int_equal(evictions, cache.n_evicted);
}


static void
hold(seq_t *s, int32_t block)
{
    s->block[s->n++] = block;
    model[block].holders++;
}


/* One more block: the cached one, or an own that is published. */

static int
extend(seq_t *s, uint32_t kind)
{
    int32_t    id[KV_BLOCK], found, own;
    model_t   *m;
    kv_name_t  name;

    s->kind[s->n] = kind;
    name_of(s, s->n, id, &name);

    found = kv_cache_find(&cache, &name);
    assert_int_equal(found, model_find(s, s->n));

    if (found >= 0) {
        kv_cache_ref(&cache, found);
        hold(s, found);
        return 1;
    }

    own = kv_cache_get(&cache);

    if (own < 0) {
        assert_int_equal(kv_cache_free(&cache), 0);
        return 0;
    }

    m = &model[own];
    assert_int_equal(m->holders, 0);
    assert_false(m->cached);
    hold(s, own);

    kv_cache_publish(&cache, own, &name, 0);
    assert_int_equal(kv_cache_find(&cache, &name), own);

    m->cached = 1;
    m->n = s->n;
    m->tenant = s->tenant;
    memcpy(m->kind, s->kind, s->n * sizeof(uint32_t));

    return 1;
}


static void
leave(seq_t *s)
{
    while (s->n > 0) {
        s->n--;
        kv_cache_put(&cache, s->block[s->n]);

        if (--model[s->block[s->n]].holders == 0) {
            model[s->block[s->n]].used = ++clock_now;
        }
    }

    s->alive = 0;
}


static void
random_run(uint64_t seed, int collisions, int steps)
{
    int      i, hits;
    seq_t   *s;

    rng = seed;
    collide = collisions;
    evictions = 0;
    hits = 0;
    memset(model, 0, sizeof(model));
    memset(seqs, 0, sizeof(seqs));

    assert_int_equal(kv_cache_open(&cache, BLOCKS, 5, 1), 0);
    cache.evict = on_evict;
    cache.evict_ctx = &cache;

    for (i = 0; i < steps; i++) {
        s = &seqs[rnd(SEQS)];

        if (!s->alive) {
            s->alive = 1;
            s->tenant = rnd(TENANTS);

        } else if (s->n == DEPTH || rnd(4) == 0) {
            leave(s);

        } else {
            hits += model_find(s, s->n) >= 0;

            if (!extend(s, rnd(4))) {
                leave(s);
            }
        }

        check();
    }

    for (i = 0; i < SEQS; i++) {
        leave(&seqs[i]);
    }

    check();
    assert_int_equal(kv_cache_free(&cache), BLOCKS);
    assert_true(hits > 0 && evictions > 0);

    kv_cache_close(&cache);
}


static void
test_random(void **state)
{
    int  steps;

    (void) state;

    steps = getenv("LONG") != NULL ? 1000000 : 30000;

    random_run(1, 0, steps);
    random_run(2, 0, steps);
}


/* The hash finds; only tenant, parent and ids decide. */

static void
test_collisions(void **state)
{
    (void) state;

    random_run(3, 1, 30000);
}


/* Others' prefixes are no parents: the same ids elsewhere are not the same. */

static void
test_parent(void **state)
{
    int32_t    id[KV_BLOCK], a;
    seq_t      s, t;
    kv_name_t  name;

    (void) state;

    collide = 1;
    memset(model, 0, sizeof(model));
    memset(&s, 0, sizeof(s));
    memset(&t, 0, sizeof(t));
    assert_int_equal(kv_cache_open(&cache, 8, 1, 1), 0);

    assert_true(extend(&s, 2));
    assert_true(extend(&s, 3));

    /* 3 at the start is not 3 behind 2, though hash and ids are. */

    assert_true(extend(&t, 3));
    assert_int_not_equal(t.block[0], s.block[1]);

    /* Another tenant finds nothing. */

    t.tenant = 1;
    t.kind[0] = 2;
    name_of(&t, 0, id, &name);
    assert_int_equal(kv_cache_find(&cache, &name), -1);

    t.tenant = 0;
    name_of(&t, 0, id, &name);
    assert_int_equal(kv_cache_find(&cache, &name), s.block[0]);

    /* A different id, at the very end. */

    id[KV_BLOCK - 1]++;
    assert_int_equal(kv_cache_find(&cache, &name), -1);

    a = s.block[0];
    leave(&s);
    assert_int_equal(cache.n_idle, 2);
    assert_int_equal(cache.newest, a);

    t.n = 1;
    leave(&t);
    kv_cache_close(&cache);
}


/* Off: blocks come and go, nothing is kept. */

static void
test_off(void **state)
{
    int        i;
    int32_t    id[KV_BLOCK], block[4];
    seq_t      s;
    kv_name_t  name;

    (void) state;

    memset(&s, 0, sizeof(s));
    assert_int_equal(kv_cache_open(&cache, 4, 9, 0), 0);

    for (i = 0; i < 4; i++) {
        block[i] = kv_cache_get(&cache);
        assert_int_equal(block[i], i);
    }

    assert_int_equal(kv_cache_get(&cache), -1);

    name_of(&s, 0, id, &name);
    assert_int_equal(kv_cache_find(&cache, &name), -1);

    kv_cache_ref(&cache, block[2]);
    kv_cache_put(&cache, block[2]);
    assert_int_equal(kv_cache_free(&cache), 0);

    for (i = 0; i < 4; i++) {
        kv_cache_put(&cache, block[i]);
        assert_int_equal(kv_cache_free(&cache), i + 1);
    }

    kv_cache_close(&cache);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_collisions),
        cmocka_unit_test(test_parent),
        cmocka_unit_test(test_off)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
