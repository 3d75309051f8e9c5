/*
 * Sequences and the disk tier.
 *
 * What leaves a rank's memory goes to disk.  A sequence that stands at the
 * start of a block which is not in memory, and on disk, has it read, and those
 * behind it that are there too, if that is estimated to take less time than to
 * compute them.  Such a fetch is the rank's, not the sequence's: all that
 * begin alike wait for it, and pass while others compute.  When it is done its
 * blocks are published as if they had been computed, and found in the cache by
 * those who waited; what could not be read is computed.
 *
 * TAGS (kv_tags.h) are a rank's, and gone for it when a block leaves its
 * memory: on disk it is as near to all other ranks.  ACCEPTED counts them
 * there.
 *
 * A fetch holds the blocks it reads into and those in front of them, whatever
 * becomes of the sequences.  One that nobody waits for any more is given up.
 */

#include "sched/sched_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>


#define SCHED_DISK_LOOK_US  1000000  /* then the rest is done in passing */


static void sched_disk_wake(void *ctx);
static uint64_t sched_disk_flags(const kv_block_t *b);
static void sched_disk_key(const kv_name_t *name, const kv_key_t *parent,
    kv_disk_key_t *key);
static sched_fetch_t *sched_disk_under_way(const sched_rank_t *rk,
    const sched_seq_t *seq);
static int sched_disk_next(const sched_t *s, sched_seq_t *seq, uint32_t i,
    kv_disk_key_t *key);
static uint32_t sched_disk_count(const sched_t *s, sched_seq_t *seq,
    uint32_t at);
static uint32_t sched_disk_worth(const sched_t *s, sched_seq_t *seq,
    uint32_t at);
static sched_fetch_t *sched_disk_fetch(const sched_t *s, sched_rank_t *rk,
    sched_seq_t *seq, uint32_t n);
static void sched_disk_finish(kv_cache_t *c, sched_fetch_t *f);
static void sched_disk_free(sched_fetch_t *f);


int
sched_disk_open(sched_t *s, char *err)
{
    char               why[KV_DISK_ERR_LEN];
    kv_disk_options_t  opt;

    if (s->opt.disk == NULL || !s->opt.prefix_cache) {
        return 0;
    }

    opt = *s->opt.disk;
    opt.wake = sched_disk_wake;
    opt.wake_ctx = s;

    s->disk = kv_disk_open(&opt, why);

    if (s->disk == NULL) {
        snprintf(err, SCHED_ERR_LEN, "KV cache: %.490s", why);
        return -1;
    }

    /* The first requests may be those of the engine before. */

    kv_disk_ready(s->disk, SCHED_DISK_LOOK_US);

    return 0;
}


static void
sched_disk_wake(void *ctx)
{
    sched_wake(ctx);
}


/* Ends all fetches, so that nobody but the cache has their blocks. */

void
sched_disk_quiet(sched_t *s)
{
    uint32_t        i, n;
    sched_fetch_t  *f;

    if (s->disk == NULL) {
        return;
    }

    n = 0;

    for (i = 0; i < s->n_ranks; i++) {
        for (f = s->rank[i].fetches; f != NULL; f = f->next) {
            atomic_store(&f->job.abort, 1);
            n++;
        }
    }

    if (n > 0) {
        kv_disk_settle(s->disk);
        sched_disk_collect(s);
    }
}


void
sched_disk_close(sched_t *s)
{
    if (s->disk != NULL) {
        sched_disk_quiet(s);
        kv_disk_close(s->disk);
        s->disk = NULL;
    }
}


/*
 * Ranks in turn, each from the block used last: parents come before children,
 * so whatever the time allows is of use.
 */

void
sched_keep(sched_t *s, uint64_t limit_us)
{
    int             rc;
    int32_t         at[SCHED_RANKS_MAX];
    uint32_t        i, left;
    uint64_t        deadline;
    kv_name_t       name;
    kv_cache_t     *c;
    kv_block_t     *b;
    kv_disk_key_t   key;

    if (s->disk == NULL || s->failed) {
        return;
    }

    deadline = kv_disk_now() + limit_us;
    rc = 0;

    for (i = 0; i < s->n_ranks; i++) {
        at[i] = s->rank[i].cache.newest;
    }

    do {
        left = 0;

        for (i = 0; i < s->n_ranks && rc != -1; i++) {

            if (at[i] < 0) {
                continue;
            }

            c = &s->rank[i].cache;
            b = &c->block[at[i]];

            name.hash = b->hash;
            name.tenant = b->tenant;
            name.parent = b->parent;
            name.id = b->id;

            sched_disk_key(&name, b->parent >= 0
                                  ? &c->block[b->parent].hash : NULL, &key);

            rc = kv_disk_keep(s->disk, i, at[i], &key, sched_disk_flags(b),
                              deadline);

            at[i] = b->older;
            left += at[i] >= 0;
        }

    } while (left > 0 && rc != -1);

    kv_disk_stop(s->disk, deadline);
}


int
sched_disk_stats(sched_t *s, kv_disk_stats_t *st)
{
    if (s->disk == NULL) {
        return -1;
    }

    kv_disk_stats(s->disk, st);

    return 0;
}


/* Keeps a block that is about to leave the rank's memory. */

void
sched_disk_store(sched_rank_t *rk, int32_t block, const kv_name_t *name,
    const kv_key_t *parent)
{
    kv_disk_key_t  key;

    if (rk->sched->disk != NULL) {
        sched_disk_key(name, parent, &key);
        (void) kv_disk_store(rk->sched->disk, rk->index, block, &key,
                             sched_disk_flags(&rk->cache.block[block]));
    }
}


static uint64_t
sched_disk_flags(const kv_block_t *b)
{
    return b->drafted ? KV_FILE_DRAFTED : 0;
}


/* A first block has no parent: zeroes. */

static void
sched_disk_key(const kv_name_t *name, const kv_key_t *parent,
    kv_disk_key_t *key)
{
    memset(key, 0, sizeof(kv_disk_key_t));

    key->tenant = name->tenant;
    key->hash = name->hash;

    if (parent != NULL) {
        key->parent = *parent;
    }

    memcpy(key->ids, name->id, sizeof(key->ids));
}


/*
 * Whether a sequence waits for blocks that are being read, or that are about
 * to be because it wants them.  It has adopted what the cache has.  One that
 * the step under way computes wants none until its own are published.
 */

int
sched_disk_waits(sched_t *s, sched_rank_t *rk, sched_seq_t *seq)
{
    uint32_t        n, at;
    sched_fetch_t  *f;

    at = seq->n_done / KV_BLOCK;

    if (s->disk == NULL || seq->n_done % KV_BLOCK != 0
        || at >= sched_cache_limit(seq)
        || sched_cache_hash(s, seq, at + 1) != 0)
    {
        return 0;
    }

    if (seq->in_step) {
        s->abandoned |= sched_disk_worth(s, seq, at) > 0;
        return 0;
    }

    if (at != seq->n_public) {
        return 0;
    }

    f = sched_disk_under_way(rk, seq);

    if (f == NULL) {
        n = sched_disk_worth(s, seq, at);

        if (n > 0) {
            seq->fetched = at + 1;
            f = sched_disk_fetch(s, rk, seq, n);
        }
    }

    if (f == NULL) {
        return 0;
    }

    f->wanted = 1;

    return 1;
}


/* The fetch that has the sequence's next block among its own. */

static sched_fetch_t *
sched_disk_under_way(const sched_rank_t *rk, const sched_seq_t *seq)
{
    uint32_t              at;
    sched_fetch_t        *f;
    const kv_disk_key_t  *key;

    at = seq->n_public;

    for (f = rk->fetches; f != NULL; f = f->next) {

        if (at < f->first || at - f->first >= f->job.n) {
            continue;
        }

        key = &f->job.key[at - f->first];

        if (key->hash.lo == seq->hash[at].lo
            && key->hash.hi == seq->hash[at].hi)
        {
            return f;
        }
    }

    return NULL;
}


/* The key of block `i`; 0, or -1. */

static int
sched_disk_next(const sched_t *s, sched_seq_t *seq, uint32_t i,
    kv_disk_key_t *key)
{
    kv_name_t  name;

    if (sched_cache_name(s, seq, i, -1, &name) != 0) {
        return -1;
    }

    sched_disk_key(&name, i > 0 ? &seq->hash[i - 1] : NULL, key);

    return 0;
}


/* How many blocks from block `at` on are on disk. */

static uint32_t
sched_disk_count(const sched_t *s, sched_seq_t *seq, uint32_t at)
{
    uint32_t       i, limit;
    kv_disk_key_t  key;

    limit = sched_cache_limit(seq);

    for (i = at; i < limit; i++) {
        if (sched_disk_next(s, seq, i, &key) != 0
            || !kv_disk_find(s->disk, &key))
        {
            break;
        }
    }

    return i - at;
}


/* The same, or 0 if reading takes more time than computing, or was tried. */

static uint32_t
sched_disk_worth(const sched_t *s, sched_seq_t *seq, uint32_t at)
{
    double    us;
    uint32_t  n, from;

    if (seq->fetched == at + 1) {
        return 0;                    /* once is enough */
    }

    n = sched_disk_count(s, seq, at);

    if (n == 0 || s->cost.steps == 0) {
        return n;                    /* nothing is known of computing yet */
    }

    from = at * KV_BLOCK;
    us = sched_cost_prompt(&s->cost, from, from + n * KV_BLOCK,
                           s->opt.prefill_chunk);

    return (double) kv_disk_read_us(s->disk, n) < us ? n : 0;
}


/*
 * How many of a sequence's tags, behind those in memory, lie in blocks on disk:
 * any rank may have these.
 */

uint32_t
sched_disk_tags(const sched_t *s, sched_seq_t *seq)
{
    uint32_t  i, end;

    i = seq->n_tagged;

    if (s->disk != NULL && i < seq->r.n_tags
        && seq->n_done == seq->n_public * KV_BLOCK)
    {
        end = seq->n_public + sched_disk_count(s, seq, seq->n_public);

        while (i < seq->r.n_tags && seq->r.tags[i].last / KV_BLOCK < end) {
            i++;
        }
    }

    return i - seq->n_tagged;
}


/* Begins to read `n` blocks, or as many as there is memory for; or NULL. */

static sched_fetch_t *
sched_disk_fetch(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq,
    uint32_t n)
{
    int32_t         block;
    uint32_t        i;
    sched_fetch_t  *f;

    f = calloc(1, sizeof(sched_fetch_t));

    if (f == NULL) {
        return NULL;
    }

    f->first = seq->n_public;
    f->front = malloc((f->first + 1) * sizeof(int32_t));
    f->job.key = malloc(n * sizeof(kv_disk_key_t));
    f->job.block = malloc(n * sizeof(int32_t));
    f->job.flags = malloc(n * sizeof(uint64_t));
    f->job.rank = rk->index;
    f->job.data = f;

    if (f->front == NULL || f->job.key == NULL || f->job.block == NULL
        || f->job.flags == NULL)
    {
        sched_disk_free(f);
        return NULL;
    }

    for (i = 0; i < n; i++) {

        if (sched_disk_next(s, seq, f->first + i, &f->job.key[i]) != 0) {
            break;
        }

        block = kv_cache_get(&rk->cache);

        if (block < 0) {
            break;
        }

        f->job.block[i] = block;
    }

    if (i == 0) {
        sched_disk_free(f);
        return NULL;
    }

    f->job.n = i;

    for (i = 0; i < f->first; i++) {
        f->front[i] = seq->blocks[i];
        kv_cache_ref(&rk->cache, f->front[i]);
    }

    f->next = rk->fetches;
    rk->fetches = f;

    kv_disk_restore(s->disk, &f->job);

    return f;
}


/* Takes in what was read, before a plan; everything is unwanted then. */

void
sched_disk_collect(sched_t *s)
{
    uint32_t        i;
    kv_restore_t   *job;
    sched_rank_t   *rk;
    sched_fetch_t  *f, **p;

    if (s->disk == NULL) {
        return;
    }

    while ((job = kv_disk_done(s->disk)) != NULL) {
        f = job->data;
        rk = &s->rank[job->rank];

        for (p = &rk->fetches; *p != f; p = &(*p)->next) {
            /* void */
        }

        *p = f->next;

        sched_disk_finish(&rk->cache, f);
        sched_disk_free(f);
    }

    for (i = 0; i < s->n_ranks; i++) {
        for (f = s->rank[i].fetches; f != NULL; f = f->next) {
            f->wanted = 0;
        }
    }
}


/* Publishes its blocks, and holds none any more. */

static void
sched_disk_finish(kv_cache_t *c, sched_fetch_t *f)
{
    int32_t         block, parent;
    uint32_t        i;
    kv_name_t       name;
    kv_disk_key_t  *key;

    parent = f->first > 0 ? f->front[f->first - 1] : -1;

    for (i = 0; i < f->job.n_ok; i++) {
        key = &f->job.key[i];

        name.hash = key->hash;
        name.tenant = key->tenant;
        name.parent = parent;
        name.id = key->ids;

        block = kv_cache_find(c, &name);

        if (block < 0) {
            kv_cache_publish(c, f->job.block[i], &name,
                             f->job.flags[i] & KV_FILE_DRAFTED);

        } else {
            kv_cache_ref(c, block);
            kv_cache_put(c, f->job.block[i]);
            f->job.block[i] = block;
        }

        parent = f->job.block[i];
    }

    for (i = f->job.n; i-- > 0; ) {
        kv_cache_put(c, f->job.block[i]);
    }

    for (i = f->first; i-- > 0; ) {
        kv_cache_put(c, f->front[i]);
    }
}


static void
sched_disk_free(sched_fetch_t *f)
{
    free(f->front);
    free(f->job.key);
    free(f->job.block);
    free(f->job.flags);
    free(f);
}


/* After a plan: what no sequence waits for is given up. */

void
sched_disk_give_up(sched_t *s)
{
    uint32_t        i;
    sched_fetch_t  *f;

    for (i = 0; i < s->n_ranks; i++) {
        for (f = s->rank[i].fetches; f != NULL; f = f->next) {
            atomic_store(&f->job.abort, !f->wanted);
        }
    }
}
