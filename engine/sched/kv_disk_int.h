/*
 * Inside the disk tier.
 *
 * All under `lock`, except what is the thread's own: the directory's
 * descriptors, its buffer, and the index while `ready` is 0.  Entries of the
 * index are added by anybody and removed by the thread alone, so it may keep
 * pointing to one while it works without the lock.
 */

#ifndef SCHED_KV_DISK_INT_H
#define SCHED_KV_DISK_INT_H

#include <pthread.h>

#include "sched/kv_disk.h"
#include "sched/kv_disk_index.h"


#define KV_DISK_STAGING     (UINT64_C(64) << 20)
#define KV_DISK_SLOTS_MIN   8
#define KV_DISK_RETRY_US    UINT64_C(60000000)
#define KV_DISK_RETRY_MAX   16       /* times the first pause */
#define KV_DISK_TURN        16       /* blocks of a job before others' */

typedef enum {
    KV_DISK_WELL = 0,
    KV_DISK_NO_WRITE,                /* what is there is still read */
    KV_DISK_DOWN
} kv_disk_trouble_t;

/* A block in staging memory. */

typedef struct {
    uint8_t        *buf;             /* header and payload */
    kv_disk_key_t   key;
    uint64_t        flags;
    kv_entry_t     *entry;           /* NULL: free */
    int32_t         next;            /* free or queued, -1: last */
} kv_slot_t;

struct kv_disk_s {
    kv_disk_options_t  opt;
    char              *path;

    pthread_mutex_t    lock;
    pthread_cond_t     work;         /* for the thread */
    pthread_cond_t     room;         /* a slot is free, or all is done */
    pthread_t          thread;
    int                started;
    int                stop;
    uint64_t           deadline;     /* of what is staged, when it stops */

    int                ready;
    kv_index_t         index;
    uint64_t           lost;         /* bytes of files we could not remove */
    int64_t            clock;        /* last stamp given */

    uint8_t           *staging;
    size_t             staging_size;
    kv_slot_t         *slot;
    uint32_t           n_slots;
    int32_t            free;
    int32_t            first;        /* to be written, in order */
    int32_t            last;

    kv_restore_t      *jobs;
    kv_restore_t     **jobs_end;
    uint32_t           n_asked;      /* blocks of all jobs */
    kv_restore_t      *done;
    kv_restore_t     **done_end;
    int                busy;         /* the thread is at work */

    kv_entry_t        *keep_mark;    /* the block kept last */
    int64_t            keep_stamp;
    int                keep_full;

    kv_disk_trouble_t  trouble;
    uint64_t           retry_at;
    uint64_t           retry_us;
    kv_disk_stats_t    stats;

    kv_dir_t           dir;
    int                lock_fd;
    uint8_t           *buf;          /* the thread's, header and payload */
};


/* kv_disk.c */
int64_t kv_disk_stamp(kv_disk_t *d);
void kv_disk_forget(kv_disk_t *d, kv_entry_t *e);
void kv_disk_free_slot(kv_disk_t *d, int32_t i);

/* kv_disk_dir.c */

/*
 * Opens the directory and takes its lock; 0, or -1 with errno and the reason.
 * kv_disk_scan() builds the index; 0, or -1 with errno.  kv_disk_remove()
 * removes a block's file; 0, or -1 with errno and its bytes among the lost.
 * kv_disk_restamp() leaves the order of use in the files' times.
 */
int kv_disk_attach(kv_disk_t *d, char *err);
void kv_disk_detach(kv_disk_t *d);
int kv_disk_scan(kv_disk_t *d);
int kv_disk_remove(kv_disk_t *d, const kv_key_t *tenant,
    const kv_key_t *hash);
void kv_disk_restamp(kv_disk_t *d);

/* kv_disk_thread.c */

/* Warns, unless that is done, and says when to try again; under the lock. */
void kv_disk_fail(kv_disk_t *d, kv_disk_trouble_t trouble, const char *why);
void *kv_disk_main(void *data);

#endif /* SCHED_KV_DISK_INT_H */
