/*
 * The prefix cache of one rank: KV blocks that are found by what they hold.
 *
 * Once its 64 positions are computed, a block never changes.  It can then be
 * published: entered under its name, so that other sequences which begin alike
 * hold it too instead of computing it again.
 *
 * NAMES.  A block is named by its tenant, its parent (the published block in
 * front of it, -1: none) and its 64 ids.  The chained hash, of the tenant and
 * of all ids up to its last, is only the index: a hit compares the name.  As
 * the parent is itself a block found in this way, equal names mean equal
 * tokens from the start on.
 *
 * STATES.
 *
 *     free       on the pool's stack
 *     held       by sequences, published or not
 *     idle       published, and nobody holds it: kept until its memory is
 *                needed, least recently used first
 *
 * Who holds a published block holds its parent too, and puts it later.  So an
 * idle block's children are idle as well and older than itself in the order of
 * use, and what is evicted is always a leaf: the parent of a published block
 * is published.
 *
 * `epoch` names the contents of all blocks: whoever remembers a block of
 * another epoch remembers nothing.
 *
 * One thread at a time: the scheduler's step thread.
 */

#ifndef SCHED_KV_CACHE_H
#define SCHED_KV_CACHE_H

#include "sched/kv_pool.h"


typedef struct {
    uint64_t  lo;
    uint64_t  hi;
} kv_key_t;

typedef struct {
    kv_key_t        hash;            /* chained */
    kv_key_t        tenant;
    int32_t         parent;
    const int32_t  *id;              /* [KV_BLOCK] */
} kv_name_t;

typedef struct {
    kv_key_t  hash;
    kv_key_t  tenant;
    int32_t   parent;
    int32_t   published;
    int32_t   chain;                 /* next of the same bucket, -1: none */
    int32_t   older;                 /* while idle; -1: none */
    int32_t   newer;
    uint32_t  children;              /* published ones */
    int32_t   drafted;               /* has the drafting layer's keys, too */
    int32_t   id[KV_BLOCK];
} kv_block_t;

/*
 * Told before an idle block's memory is used again; block and parent are as
 * they were until this returns.
 */
typedef void (*kv_evict_pt)(void *ctx, int32_t block, const kv_name_t *name,
    const kv_key_t *parent_hash);

typedef struct {
    kv_pool_t     pool;
    uint64_t      epoch;
    kv_block_t   *block;             /* [n_blocks]; NULL: nothing is cached */
    int32_t      *bucket;            /* heads of chains, -1: empty */
    uint32_t      mask;
    int32_t       oldest;            /* idle blocks, -1: none */
    int32_t       newest;
    uint32_t      n_idle;
    uint64_t      n_evicted;
    kv_evict_pt   evict;             /* NULL: nobody */
    void         *evict_ctx;
} kv_cache_t;


/* `cached`: 0 publishes nothing.  0, or -1: no memory. */
int kv_cache_open(kv_cache_t *c, uint32_t n_blocks, uint64_t epoch,
    int cached);
void kv_cache_close(kv_cache_t *c);

/* The hash in front of a tenant's first block; `seed` is the model's. */
kv_key_t kv_cache_root(uint64_t seed, const kv_key_t *tenant);

/* The hash of a block behind one with hash `before`. */
kv_key_t kv_cache_chain(const kv_key_t *before, const int32_t *id);

/* A block held once: a free one, else the memory of the oldest; -1: none. */
int32_t kv_cache_get(kv_cache_t *c);

/* Blocks that kv_cache_get() can give. */
static inline uint32_t
kv_cache_free(const kv_cache_t *c)
{
    return c->pool.n_free + c->n_idle;
}

/* The published block of that name, or -1. */
int32_t kv_cache_find(const kv_cache_t *c, const kv_name_t *name);

/*
 * One more holder, who holds the block's parent already; one less, who still
 * holds the parent.
 */
void kv_cache_ref(kv_cache_t *c, int32_t block);
void kv_cache_put(kv_cache_t *c, int32_t block);

/*
 * Publishes a full block under a name that is not published, and whose parent
 * the caller holds.  So a block restored from elsewhere is added too.
 * `drafted`: with all keys of the layer that drafts (sched_draft.c).
 */
void kv_cache_publish(kv_cache_t *c, int32_t block, const kv_name_t *name,
    int drafted);

#endif /* SCHED_KV_CACHE_H */
