/*
 * The disk tier of the prefix cache.
 *
 * Blocks that leave a rank's memory are written to files, one each (see
 * kv_disk_file.h), and read back when a prompt begins with them: on any rank,
 * and by the next engine.
 *
 *     step thread   kv_disk_store(): copies the block into staging memory;
 *                   kv_disk_find(), kv_disk_restore(), kv_disk_done()
 *     its own       writes what is staged, reads what was asked for straight
 *     thread        into KV memory, removes the least recently used; all
 *                   calls that may wait for a disk are here
 *
 * Nothing waits for a disk: with staging memory full a block is not kept, and
 * who wants blocks back goes on with other things until they are there.
 * Reads go before writes.
 *
 * THE DIRECTORY belongs to one engine at a time (flock on its file `lock`).
 * Its headers are read once, at the start, behind the scenes; until that is
 * done nothing is found and nothing kept.  Everything in it is untrusted: what
 * does not fit is dropped and computed again.  `size` bounds the files' bytes,
 * headers and rounding to pages included, at any moment.
 *
 * TROUBLE.  A full or failing disk, or a directory that is gone, costs nothing
 * but the tier: one warning, then a try now and again.  When it is only
 * writing that fails, what is there is still read.
 */

#ifndef SCHED_KV_DISK_H
#define SCHED_KV_DISK_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "sched/kv_disk_file.h"


#define KV_DISK_ERR_LEN  512

typedef struct kv_disk_s     kv_disk_t;
typedef struct kv_restore_s  kv_restore_t;

typedef struct {
    const char  *dir;                /* made if it is not there */
    uint64_t     size;               /* bytes of all files at most */
    uint64_t     staging;            /* bytes; 0: KV_DISK_STAGING */
    uint64_t     retry_us;           /* after trouble; 0: a minute */
    uint64_t     fingerprint;        /* of all that decides a block's bytes */
    size_t       block_size;

    /*
     * Copy a block out of KV memory and into it.  read() is called by those
     * who call kv_disk_store() and kv_disk_keep(); write() by the tier's
     * thread, for blocks that a job names and no step uses.
     */
    void       (*read)(void *ctx, uint32_t rank, int32_t block, void *dst);
    void       (*write)(void *ctx, uint32_t rank, int32_t block,
                   const void *src);
    void        *ctx;

    /* By the tier's thread: a job is done; something to tell. */
    void       (*wake)(void *ctx);
    void        *wake_ctx;
    void       (*log)(int warning, const char *message);     /* or NULL */
} kv_disk_options_t;

/* Blocks to read, in order of the chain; the caller's until it is done. */

struct kv_restore_s {
    kv_restore_t   *next;
    uint32_t        rank;
    uint32_t        n;
    kv_disk_key_t  *key;             /* [n] */
    int32_t        *block;           /* [n] where to */
    uint64_t       *flags;           /* [n] of those read: KV_FILE_… */
    atomic_int      abort;           /* nobody wants it any more */
    void           *data;            /* the caller's */
    uint32_t        n_ok;            /* blocks read, from the first on */
};

typedef struct {
    uint64_t  limit;                 /* bytes */
    uint64_t  used;
    uint32_t  files;
    uint64_t  stored;                /* blocks written, since the start */
    uint64_t  restored;              /* blocks read */
    uint64_t  missed;                /* of those asked for, not read */
    uint64_t  skipped;               /* not kept: no room in staging memory */
    uint64_t  dropped;               /* files removed to make room */
    uint64_t  bad;                   /* files removed as useless */
    double    read_us;               /* of a block, running mean */
    int       ready;                 /* the directory was looked through */
    int       trouble;
} kv_disk_stats_t;


/* The monotonic clock of all times in here, µs. */
uint64_t kv_disk_now(void);

/*
 * NULL with the reason in `err` (KV_DISK_ERR_LEN): the directory is another
 * engine's, cannot be made or opened, the size is less than one block's.
 */
kv_disk_t *kv_disk_open(const kv_disk_options_t *opt, char *err);

/*
 * kv_disk_stop(): aborts jobs, writes what is staged until the monotonic time
 * `deadline_us`, ends the thread; all jobs are done then.  kv_disk_close()
 * frees, and stops at once if nobody has stopped it.
 */
void kv_disk_stop(kv_disk_t *d, uint64_t deadline_us);
void kv_disk_close(kv_disk_t *d);

/* Whether the block is there, or about to be. */
int kv_disk_find(kv_disk_t *d, const kv_disk_key_t *key);

/* How long it would take, from now, to have `n` blocks read. */
uint64_t kv_disk_read_us(kv_disk_t *d, uint32_t n);

/*
 * Keeps a block whose memory is about to be used for something else; 1: it is
 * there or about to be, 0: it is lost.  One that is there keeps its flags.
 */
int kv_disk_store(kv_disk_t *d, uint32_t rank, int32_t block,
    const kv_disk_key_t *key, uint64_t flags);

/*
 * The same when the engine stops: begins with the block used last and ends
 * with the one used first, waits for room in staging memory until
 * `deadline_us`.  1, or 0 as above; -1: the limit or the deadline is reached,
 * or there is trouble, and no other block will be kept.
 */
int kv_disk_keep(kv_disk_t *d, uint32_t rank, int32_t block,
    const kv_disk_key_t *key, uint64_t flags, uint64_t deadline_us);

/*
 * Has blocks read.  kv_disk_done() gives a job back that is done, or NULL;
 * then the first `n_ok` blocks hold what their keys say, the others nothing.
 */
void kv_disk_restore(kv_disk_t *d, kv_restore_t *job);
kv_restore_t *kv_disk_done(kv_disk_t *d);

/*
 * kv_disk_ready() waits until the directory was looked through, for at most
 * `limit_us`; kv_disk_settle() until all is written and read, too.
 */
void kv_disk_ready(kv_disk_t *d, uint64_t limit_us);
void kv_disk_settle(kv_disk_t *d);

void kv_disk_stats(kv_disk_t *d, kv_disk_stats_t *st);

#endif /* SCHED_KV_DISK_H */
