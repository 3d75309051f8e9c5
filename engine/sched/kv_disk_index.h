/*
 * Which blocks are on disk, in order of use, and how much they take.
 *
 * An entry stands for a file, or for a block that is still to be written and
 * waits in a slot of staging memory.  Tenant and hash find it; `check`, over
 * parent and ids, tells other blocks of the same hash apart well enough to
 * plan by; the file itself is compared in full when it is read.
 *
 * `used` counts files, those of `lost` entries included: files of ours that
 * are good for nothing and could not be removed.  No locks in here.
 */

#ifndef SCHED_KV_DISK_INDEX_H
#define SCHED_KV_DISK_INDEX_H

#include <stdint.h>

#include "sched/kv_disk_file.h"


typedef struct kv_entry_s  kv_entry_t;

struct kv_entry_s {
    kv_key_t     tenant;
    kv_key_t     hash;
    uint64_t     check;
    int64_t      stamp;              /* of the last use, ns since 1970 */
    kv_entry_t  *bucket;
    kv_entry_t  *older;
    kv_entry_t  *newer;
    int32_t      slot;               /* of staging memory, -1: on disk */
    uint8_t      touched;            /* `stamp` is newer than the file's */
    uint8_t      kept;               /* written because the engine stops */
};

typedef struct {
    kv_entry_t  **bucket;
    uint32_t      n_buckets;         /* a power of two */
    uint32_t      n;
    uint32_t      n_files;           /* those that are on disk */
    kv_entry_t   *oldest;
    kv_entry_t   *newest;
    uint64_t      used;              /* bytes */
    uint64_t      file_size;         /* of each */
} kv_index_t;


/* 0, or -1: no memory. */
int kv_index_open(kv_index_t *index, uint64_t file_size);
void kv_index_close(kv_index_t *index);

/* Forgets all entries. */
void kv_index_clear(kv_index_t *index);

uint64_t kv_index_check(const kv_disk_key_t *key);

/* The block of that tenant and hash, whatever its `check`; NULL: none. */
kv_entry_t *kv_index_find(const kv_index_t *index, const kv_key_t *tenant,
    const kv_key_t *hash);

/*
 * A new entry, in order before `newer`, or as the newest for NULL; not yet a
 * file.  NULL: no memory.
 */
kv_entry_t *kv_index_add(kv_index_t *index, const kv_key_t *tenant,
    const kv_key_t *hash, uint64_t check, kv_entry_t *newer);

/* It is a file from now on. */
void kv_index_written(kv_index_t *index, kv_entry_t *e);

/* Moves it in order before `newer`, or to the newest for NULL. */
void kv_index_move(kv_index_t *index, kv_entry_t *e, kv_entry_t *newer);

void kv_index_remove(kv_index_t *index, kv_entry_t *e);

/* The least recently used file; NULL: none. */
kv_entry_t *kv_index_oldest_file(const kv_index_t *index);

#endif /* SCHED_KV_DISK_INDEX_H */
