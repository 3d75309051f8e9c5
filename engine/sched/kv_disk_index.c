/*
 * The index of blocks on disk: a hash table and a list in order of use.
 */

#include "sched/kv_disk_index.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>


#define KV_INDEX_BUCKETS  1024


static uint32_t kv_index_bucket(const kv_index_t *index,
    const kv_key_t *tenant, const kv_key_t *hash);
static void kv_index_grow(kv_index_t *index);
static void kv_index_link(kv_index_t *index, kv_entry_t *e,
    kv_entry_t *newer);
static void kv_index_unlink(kv_index_t *index, kv_entry_t *e);


int
kv_index_open(kv_index_t *index, uint64_t file_size)
{
    memset(index, 0, sizeof(kv_index_t));

    index->bucket = calloc(KV_INDEX_BUCKETS, sizeof(kv_entry_t *));

    if (index->bucket == NULL) {
        return -1;
    }

    index->n_buckets = KV_INDEX_BUCKETS;
    index->file_size = file_size;

    return 0;
}


void
kv_index_close(kv_index_t *index)
{
    kv_index_clear(index);
    free(index->bucket);
    memset(index, 0, sizeof(kv_index_t));
}


void
kv_index_clear(kv_index_t *index)
{
    while (index->oldest != NULL) {
        kv_index_remove(index, index->oldest);
    }

    index->used = 0;
}


uint64_t
kv_index_check(const kv_disk_key_t *key)
{
    return XXH3_64bits(&key->parent,
                       sizeof(kv_disk_key_t) - offsetof(kv_disk_key_t, parent));
}


static uint32_t
kv_index_bucket(const kv_index_t *index, const kv_key_t *tenant,
    const kv_key_t *hash)
{
    return (uint32_t) (hash->lo ^ tenant->hi) & (index->n_buckets - 1);
}


kv_entry_t *
kv_index_find(const kv_index_t *index, const kv_key_t *tenant,
    const kv_key_t *hash)
{
    kv_entry_t  *e;

    e = index->bucket[kv_index_bucket(index, tenant, hash)];

    while (e != NULL
           && (memcmp(&e->hash, hash, sizeof(kv_key_t)) != 0
               || memcmp(&e->tenant, tenant, sizeof(kv_key_t)) != 0))
    {
        e = e->bucket;
    }

    return e;
}


kv_entry_t *
kv_index_add(kv_index_t *index, const kv_key_t *tenant,
    const kv_key_t *hash, uint64_t check, kv_entry_t *newer)
{
    uint32_t     i;
    kv_entry_t  *e;

    if (index->n >= index->n_buckets) {
        kv_index_grow(index);
    }

    e = calloc(1, sizeof(kv_entry_t));

    if (e == NULL) {
        return NULL;
    }

    e->tenant = *tenant;
    e->hash = *hash;
    e->check = check;
    e->slot = -1;

    i = kv_index_bucket(index, tenant, hash);
    e->bucket = index->bucket[i];
    index->bucket[i] = e;
    index->n++;

    kv_index_link(index, e, newer);

    return e;
}


/* Without memory it stays as it is, and gets slower. */

static void
kv_index_grow(kv_index_t *index)
{
    uint32_t      i, j, n;
    kv_entry_t   *e, *next, **bucket, **old;

    if (index->n_buckets > UINT32_MAX / 4) {
        return;
    }

    n = index->n_buckets;
    old = index->bucket;
    bucket = calloc((size_t) n * 2, sizeof(kv_entry_t *));

    if (bucket == NULL) {
        return;
    }

    index->bucket = bucket;
    index->n_buckets = n * 2;

    for (i = 0; i < n; i++) {
        for (e = old[i]; e != NULL; e = next) {
            next = e->bucket;
            j = kv_index_bucket(index, &e->tenant, &e->hash);
            e->bucket = bucket[j];
            bucket[j] = e;
        }
    }

    free(old);
}


void
kv_index_written(kv_index_t *index, kv_entry_t *e)
{
    e->slot = -1;
    index->n_files++;
    index->used += index->file_size;
}


void
kv_index_move(kv_index_t *index, kv_entry_t *e, kv_entry_t *newer)
{
    if (e != newer) {
        kv_index_unlink(index, e);
        kv_index_link(index, e, newer);
    }
}


void
kv_index_remove(kv_index_t *index, kv_entry_t *e)
{
    kv_entry_t  **p;

    p = &index->bucket[kv_index_bucket(index, &e->tenant, &e->hash)];

    while (*p != e) {
        p = &(*p)->bucket;
    }

    *p = e->bucket;

    kv_index_unlink(index, e);
    index->n--;

    if (e->slot == -1) {
        index->n_files--;
        index->used -= index->file_size;
    }

    free(e);
}


kv_entry_t *
kv_index_oldest_file(const kv_index_t *index)
{
    kv_entry_t  *e;

    e = index->oldest;

    while (e != NULL && e->slot != -1) {
        e = e->newer;
    }

    return e;
}


static void
kv_index_link(kv_index_t *index, kv_entry_t *e, kv_entry_t *newer)
{
    e->newer = newer;
    e->older = newer != NULL ? newer->older : index->newest;

    if (e->older != NULL) {
        e->older->newer = e;
    } else {
        index->oldest = e;
    }

    if (newer != NULL) {
        newer->older = e;
    } else {
        index->newest = e;
    }
}


static void
kv_index_unlink(kv_index_t *index, kv_entry_t *e)
{
    if (e->older != NULL) {
        e->older->newer = e->newer;
    } else {
        index->oldest = e->newer;
    }

    if (e->newer != NULL) {
        e->newer->older = e->older;
    } else {
        index->newest = e->older;
    }
}
