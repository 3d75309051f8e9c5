/*
 * Sequences and the prefix cache of their rank.
 *
 * A sequence takes the longest beginning that is cached when it enters a rank,
 * and again before each step while it stands at the start of a block: what
 * another sequence computes is had by all that begin alike.  At least one
 * position is left to compute, for its logits.  Prompts whose log-probabilities
 * are asked for are computed in full.
 *
 * After a step the blocks that have become full are published.  One that is
 * there already, computed by two at once, is given back for the published one:
 * one arithmetic per position makes them equal, but for the drafting layer's
 * keys, which may be missing (sched_draft.c).  A request's tags are put on the
 * published blocks that hold their last tokens.
 */

#include "sched/sched_int.h"

#include <stdlib.h>


static void sched_cache_evicted(void *ctx, int32_t block,
    const kv_name_t *name, const kv_key_t *parent);
static void sched_cache_lost(void *ctx, uint64_t tag);
static uint32_t sched_cache_alike(const sched_t *s, sched_seq_t *seq,
    sched_seq_t *o);
static void sched_cache_count(sched_seq_t *seq, uint32_t done);
static void sched_cache_public(sched_rank_t *rk, sched_seq_t *seq);


int
sched_cache_open(sched_t *s, sched_rank_t *rk)
{
    if (kv_cache_open(&rk->cache, s->opt.kv_blocks, s->opt.boot + rk->index,
                      s->opt.prefix_cache)
        != 0)
    {
        return -1;
    }

    rk->cache.evict = sched_cache_evicted;
    rk->cache.evict_ctx = rk;

    return s->opt.prefix_cache
           ? kv_tags_open(&rk->tags, s->opt.kv_blocks, sched_cache_lost, rk)
           : 0;
}


void
sched_cache_close(sched_rank_t *rk)
{
    kv_cache_close(&rk->cache);
    kv_tags_close(&rk->tags);
}


static void
sched_cache_evicted(void *ctx, int32_t block, const kv_name_t *name,
    const kv_key_t *parent)
{
    sched_rank_t  *rk = ctx;

    sched_disk_store(rk, block, name, parent);
    kv_tags_drop(&rk->tags, block);
}


static void
sched_cache_lost(void *ctx, uint64_t tag)
{
    sched_t       *s;
    sched_rank_t  *rk = ctx;

    s = rk->sched;

    if (s->opt.ops->lost != NULL) {
        s->opt.ops->lost(s->opt.ops_ctx, rk->index, tag);
    }
}


/* Leading blocks that a sequence may take instead of computing them. */

uint32_t
sched_cache_limit(const sched_seq_t *seq)
{
    uint32_t  target;

    if (seq->r.echo && seq->r.logprobs && seq->n_echo < seq->r.n_prompt) {
        return 0;
    }

    target = sched_target(seq);

    return target > 0 ? (target - 1) / KV_BLOCK : 0;
}


/* Sees that the hashes of the first `n` blocks are there; 0, or -1. */

int
sched_cache_hash(const sched_t *s, sched_seq_t *seq, uint32_t n)
{
    uint32_t   cap;
    kv_key_t  *hash, root, tenant;

    if (n > seq->cap_hash) {
        cap = n + n / 2 + 8;

        hash = realloc(seq->hash, cap * sizeof(kv_key_t));
        if (hash == NULL) {
            return -1;
        }

        seq->hash = hash;
        seq->cap_hash = cap;
    }

    if (seq->n_hash == 0 && n > 0) {
        tenant.lo = seq->r.tenant[0];
        tenant.hi = seq->r.tenant[1];
        root = kv_cache_root(s->opt.cache_seed, &tenant);

        seq->hash[0] = kv_cache_chain(&root, seq->ids);
        seq->n_hash = 1;
    }

    for ( /* void */ ; seq->n_hash < n; seq->n_hash++) {
        seq->hash[seq->n_hash] =
            kv_cache_chain(&seq->hash[seq->n_hash - 1],
                           seq->ids + (size_t) seq->n_hash * KV_BLOCK);
    }

    return 0;
}


/* The name of a sequence's block `i`, all of whose ids are known. */

int
sched_cache_name(const sched_t *s, sched_seq_t *seq, uint32_t i,
    int32_t parent, kv_name_t *name)
{
    if (sched_cache_hash(s, seq, i + 1) != 0) {
        return -1;
    }

    name->hash = seq->hash[i];
    name->tenant.lo = seq->r.tenant[0];
    name->tenant.hi = seq->r.tenant[1];
    name->parent = parent;
    name->id = seq->ids + (size_t) i * KV_BLOCK;

    return 0;
}


/*
 * How many leading blocks of a sequence that waits are cached on a rank, and
 * how many of them cost no memory because others hold them.
 */

uint32_t
sched_cache_match(const sched_t *s, const sched_rank_t *rk, sched_seq_t *seq,
    uint32_t *held)
{
    int32_t    block;
    uint32_t   i, limit;
    kv_name_t  name;

    *held = 0;

    if (rk->cache.block == NULL) {
        return 0;
    }

    limit = sched_cache_limit(seq);
    block = -1;

    for (i = 0; i < limit; i++) {

        if (sched_cache_name(s, seq, i, block, &name) != 0) {
            break;
        }

        block = kv_cache_find(&rk->cache, &name);

        if (block < 0) {
            break;
        }

        *held += rk->cache.pool.refs[block] > rk->paused[block];
    }

    return i;
}


/* Takes what is cached of what comes next. */

void
sched_cache_adopt(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq)
{
    int32_t    block;
    uint32_t   i, limit;
    kv_name_t  name;

    if (rk->cache.block == NULL) {
        return;
    }

    limit = sched_cache_limit(seq);

    while (seq->n_public < limit && seq->n_done == seq->n_public * KV_BLOCK) {

        i = seq->n_public;

        if (sched_cache_name(s, seq, i, i > 0 ? seq->blocks[i - 1] : -1, &name)
            != 0)
        {
            return;
        }

        block = kv_cache_find(&rk->cache, &name);

        if (block < 0) {
            return;
        }

        kv_cache_ref(&rk->cache, block);

        if (i < seq->n_blocks) {
            kv_cache_put(&rk->cache, seq->blocks[i]);
        } else {
            seq->n_blocks++;
        }

        seq->blocks[i] = block;
        sched_draft_found(seq, i, rk->cache.block[block].drafted);
        sched_cache_public(rk, seq);
        sched_cache_count(seq, seq->n_public * KV_BLOCK);
        seq->n_done = seq->n_public * KV_BLOCK;
    }
}


/* Prompt tokens up to `done` that this sequence never computed are hits. */

static void
sched_cache_count(sched_seq_t *seq, uint32_t done)
{
    uint32_t  hi;

    hi = done < seq->r.n_prompt ? done : seq->r.n_prompt;

    if (hi > seq->n_seen) {
        seq->n_cached += hi - seq->n_seen;
    }

    if (done > seq->n_seen) {
        seq->n_seen = done;
    }
}


/*
 * Whether a sequence is about to begin the block that another one is to begin,
 * or in the midst of: it may as well wait for that.
 */

int
sched_cache_shares(const sched_t *s, const sched_rank_t *rk, sched_seq_t *seq,
    sched_seq_t *o)
{
    uint32_t  at;

    at = seq->n_public;

    return rk->cache.block != NULL && o != seq
           && seq->n_done == at * KV_BLOCK
           && at < sched_cache_limit(seq)
           && o->n_done / KV_BLOCK == at && o->n_public == at
           && (at + 1) * KV_BLOCK <= o->n_total
           && sched_cache_hash(s, seq, at + 1) == 0
           && sched_cache_hash(s, o, at + 1) == 0
           && o->hash[at].lo == seq->hash[at].lo
           && o->hash[at].hi == seq->hash[at].hi;
}


/*
 * Whether the block that a sequence would begin is one that another sequence
 * computes in this step.  Then it waits, and finds it published.
 */

int
sched_cache_follows(const sched_t *s, const sched_rank_t *rk,
    sched_seq_t *seq)
{
    uint32_t      i;
    sched_seq_t  *o;

    for (i = 0; i < rk->n_running; i++) {
        o = rk->running[i];

        if (o->planned == SCHED_PLANNED && o->rows > 0
            && sched_cache_shares(s, rk, seq, o))
        {
            return 1;
        }
    }

    return 0;
}


/*
 * What the step under way is computing of a sequence that has no part in it
 * is published when the step is done.  1: it does best to wait, because who
 * computes that goes on with more of it.  Where it could go on itself by then,
 * the plan has come too early.
 */

int
sched_cache_coming(sched_t *s, const sched_rank_t *rk, sched_seq_t *seq)
{
    uint32_t      i, at, n;
    sched_seq_t  *o;

    if (!s->preparing || seq->in_step || rk->cache.block == NULL
        || seq->n_done != seq->n_public * KV_BLOCK)
    {
        return 0;
    }

    for (i = 0; i < rk->n_running; i++) {
        o = rk->running[i];

        if (!o->in_step || o->n_public > seq->n_public) {
            continue;
        }

        at = seq->n_public;
        n = sched_cache_alike(s, seq, o);

        if (n <= at || o->n_done / KV_BLOCK <= at) {
            continue;
        }

        if (n > o->n_done / KV_BLOCK && !o->leaves) {
            return 1;
        }

        s->abandoned = 1;
    }

    return 0;
}


/* How many leading blocks both have, of those that `seq` may take. */

static uint32_t
sched_cache_alike(const sched_t *s, sched_seq_t *seq, sched_seq_t *o)
{
    uint32_t  i, n;

    n = sched_cache_limit(seq);
    n = n < o->n_total / KV_BLOCK ? n : o->n_total / KV_BLOCK;

    if (sched_cache_hash(s, seq, n) != 0 || sched_cache_hash(s, o, n) != 0) {
        return 0;
    }

    for (i = seq->n_public; i < n; i++) {
        if (seq->hash[i].lo != o->hash[i].lo
            || seq->hash[i].hi != o->hash[i].hi)
        {
            break;
        }
    }

    return i;
}


/* Publishes the blocks that are full now. */

void
sched_cache_publish(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq)
{
    int32_t    block;
    uint32_t   i;
    kv_name_t  name;

    if (seq->n_done > seq->n_seen) {
        seq->n_seen = seq->n_done;
    }

    if (rk->cache.block == NULL) {
        return;
    }

    while (seq->n_public < seq->n_done / KV_BLOCK) {

        i = seq->n_public;

        if (sched_cache_name(s, seq, i, i > 0 ? seq->blocks[i - 1] : -1, &name)
            != 0)
        {
            return;
        }

        block = kv_cache_find(&rk->cache, &name);

        if (block < 0) {
            kv_cache_publish(&rk->cache, seq->blocks[i], &name,
                             sched_draft_full(seq, i));

        } else {
            kv_cache_ref(&rk->cache, block);
            kv_cache_put(&rk->cache, seq->blocks[i]);
            seq->blocks[i] = block;

            if (!rk->cache.block[block].drafted) {
                seq->mtp_next = 0;
            }
        }

        sched_cache_public(rk, seq);
    }
}


/* One more leading block is published; it has the request's tags now. */

static void
sched_cache_public(sched_rank_t *rk, sched_seq_t *seq)
{
    int32_t             block;
    const sched_tag_t  *tag;

    block = seq->blocks[seq->n_public++];

    for ( /* void */ ; seq->n_tagged < seq->r.n_tags; seq->n_tagged++) {
        tag = &seq->r.tags[seq->n_tagged];

        if (tag->last / KV_BLOCK >= seq->n_public) {
            break;
        }

        kv_tags_add(&rk->tags, block, tag->tag);
    }
}
