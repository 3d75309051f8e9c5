/*
 * The prefix cache of one rank: an index by hash, and the order of use.
 */

#include "sched/kv_cache.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>


static int32_t *kv_cache_bucket(const kv_cache_t *c, const kv_key_t *hash);
static int kv_key_equal(const kv_key_t *a, const kv_key_t *b);
static void kv_cache_age(kv_cache_t *c, int32_t block);
static void kv_cache_unlink(kv_cache_t *c, int32_t block);
static void kv_cache_evict(kv_cache_t *c, int32_t block);


int
kv_cache_open(kv_cache_t *c, uint32_t n_blocks, uint64_t epoch, int cached)
{
    uint32_t  n;

    memset(c, 0, sizeof(kv_cache_t));

    c->epoch = epoch;
    c->oldest = -1;
    c->newest = -1;

    if (kv_pool_open(&c->pool, n_blocks) != 0) {
        return -1;
    }

    if (!cached) {
        return 0;
    }

    for (n = 64; n < n_blocks; n *= 2) {
        /* void */
    }

    c->mask = n - 1;
    c->block = calloc(n_blocks, sizeof(kv_block_t));
    c->bucket = malloc(n * sizeof(int32_t));

    if (c->block == NULL || c->bucket == NULL) {
        kv_cache_close(c);
        return -1;
    }

    memset(c->bucket, 0xff, n * sizeof(int32_t));

    return 0;
}


void
kv_cache_close(kv_cache_t *c)
{
    kv_pool_close(&c->pool);
    free(c->block);
    free(c->bucket);
    memset(c, 0, sizeof(kv_cache_t));
}


kv_key_t
kv_cache_root(uint64_t seed, const kv_key_t *tenant)
{
    kv_key_t       key;
    XXH128_hash_t  h;

    h = XXH3_128bits_withSeed(tenant, sizeof(kv_key_t), seed);
    key.lo = h.low64;
    key.hi = h.high64;

    return key;
}


kv_key_t
kv_cache_chain(const kv_key_t *before, const int32_t *id)
{
    uint8_t        data[sizeof(kv_key_t) + KV_BLOCK * sizeof(int32_t)];
    kv_key_t       key;
    XXH128_hash_t  h;

    memcpy(data, before, sizeof(kv_key_t));
    memcpy(data + sizeof(kv_key_t), id, KV_BLOCK * sizeof(int32_t));

    h = XXH3_128bits(data, sizeof(data));
    key.lo = h.low64;
    key.hi = h.high64;

    return key;
}


static int32_t *
kv_cache_bucket(const kv_cache_t *c, const kv_key_t *hash)
{
    return &c->bucket[hash->lo & c->mask];
}


static int
kv_key_equal(const kv_key_t *a, const kv_key_t *b)
{
    return a->lo == b->lo && a->hi == b->hi;
}


int32_t
kv_cache_get(kv_cache_t *c)
{
    int32_t  block;

    block = kv_pool_get(&c->pool);

    if (block >= 0 || c->oldest < 0) {
        return block;
    }

    kv_cache_evict(c, c->oldest);

    return kv_pool_get(&c->pool);
}


int32_t
kv_cache_find(const kv_cache_t *c, const kv_name_t *name)
{
    int32_t            block;
    const kv_block_t  *b;

    if (c->block == NULL) {
        return -1;
    }

    block = *kv_cache_bucket(c, &name->hash);

    for ( /* void */ ; block >= 0; block = b->chain) {
        b = &c->block[block];

        if (kv_key_equal(&b->hash, &name->hash)
            && b->parent == name->parent
            && kv_key_equal(&b->tenant, &name->tenant)
            && memcmp(b->id, name->id, sizeof(b->id)) == 0)
        {
            return block;
        }
    }

    return -1;
}


void
kv_cache_ref(kv_cache_t *c, int32_t block)
{
    if (c->pool.refs[block] == 0) {
        kv_cache_unlink(c, block);
    }

    kv_pool_ref(&c->pool, block);
}


void
kv_cache_put(kv_cache_t *c, int32_t block)
{
    if (kv_pool_unref(&c->pool, block) > 0) {
        return;
    }

    if (c->block != NULL && c->block[block].published) {
        kv_cache_age(c, block);

    } else {
        kv_pool_put(&c->pool, block);
    }
}


void
kv_cache_publish(kv_cache_t *c, int32_t block, const kv_name_t *name,
    int drafted)
{
    int32_t     *head;
    kv_block_t  *b;

    b = &c->block[block];

    assert(!b->published && c->pool.refs[block] > 0);

    b->hash = name->hash;
    b->tenant = name->tenant;
    b->parent = name->parent;
    b->drafted = drafted;
    memcpy(b->id, name->id, sizeof(b->id));

    if (b->parent >= 0) {
        assert(c->block[b->parent].published);
        c->block[b->parent].children++;
    }

    head = kv_cache_bucket(c, &b->hash);
    b->chain = *head;
    *head = block;
    b->published = 1;
}


/* Makes a block the newest of the idle ones. */

static void
kv_cache_age(kv_cache_t *c, int32_t block)
{
    kv_block_t  *b;

    b = &c->block[block];
    b->newer = -1;
    b->older = c->newest;

    if (c->newest >= 0) {
        c->block[c->newest].newer = block;
    } else {
        c->oldest = block;
    }

    c->newest = block;
    c->n_idle++;
}


static void
kv_cache_unlink(kv_cache_t *c, int32_t block)
{
    kv_block_t  *b;

    b = &c->block[block];

    if (b->older >= 0) {
        c->block[b->older].newer = b->newer;
    } else {
        c->oldest = b->newer;
    }

    if (b->newer >= 0) {
        c->block[b->newer].older = b->older;
    } else {
        c->newest = b->older;
    }

    c->n_idle--;
}


static void
kv_cache_evict(kv_cache_t *c, int32_t block)
{
    int32_t     *p;
    kv_name_t    name;
    kv_block_t  *b, *parent;

    b = &c->block[block];
    parent = b->parent >= 0 ? &c->block[b->parent] : NULL;

    assert(b->published && b->children == 0);

    if (c->evict != NULL) {
        name.hash = b->hash;
        name.tenant = b->tenant;
        name.parent = b->parent;
        name.id = b->id;

        c->evict(c->evict_ctx, block, &name,
                 parent != NULL ? &parent->hash : NULL);
    }

    kv_cache_unlink(c, block);

    p = kv_cache_bucket(c, &b->hash);

    while (*p != block) {
        p = &c->block[*p].chain;
    }

    *p = b->chain;
    b->published = 0;

    if (parent != NULL) {
        parent->children--;
    }

    c->n_evicted++;
    kv_pool_put(&c->pool, block);
}
