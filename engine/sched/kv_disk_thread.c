/*
 * The disk tier's own thread: reads, then writes, one block at a time.
 */

#include "sched/kv_disk_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>


static int kv_disk_afresh(kv_disk_t *d);
static void kv_disk_begin(kv_disk_t *d);
static void kv_disk_leave(kv_disk_t *d);
static void kv_disk_wait(kv_disk_t *d);
static void kv_disk_trouble(kv_disk_t *d, kv_disk_trouble_t trouble,
    const char *doing, int e);
static void kv_disk_well(kv_disk_t *d);
static void kv_disk_empty_queue(kv_disk_t *d);
static int kv_disk_gone(kv_disk_t *d);
static void kv_disk_write(kv_disk_t *d);
static int kv_disk_make_room(kv_disk_t *d, const kv_entry_t *e);
static void kv_disk_read(kv_disk_t *d);
static int kv_disk_read_block(kv_disk_t *d, kv_restore_t *job, uint32_t i);
static void kv_disk_touch(kv_disk_t *d, const kv_restore_t *job);
static int kv_disk_read_file(kv_disk_t *d, kv_entry_t *e,
    const kv_disk_key_t *key);


void *
kv_disk_main(void *data)
{
    kv_disk_t  *d = data;

    pthread_setname_np(pthread_self(), "llm-disk");

    pthread_mutex_lock(&d->lock);

    for ( ;; ) {

        if (d->jobs != NULL) {
            kv_disk_read(d);
            continue;
        }

        if (d->stop && (d->first == -1 || kv_disk_now() >= d->deadline)) {
            break;
        }

        if (kv_disk_afresh(d)) {
            kv_disk_begin(d);
            continue;
        }

        if (d->first != -1) {
            kv_disk_write(d);
            continue;
        }

        kv_disk_wait(d);
    }

    kv_disk_empty_queue(d);
    d->busy = 0;
    pthread_cond_broadcast(&d->room);
    pthread_mutex_unlock(&d->lock);

    if (d->dir.fd != -1) {
        kv_disk_restamp(d);
    }

    return NULL;
}


/* Nothing to do: until there is, or it is time to try again. */

static void
kv_disk_wait(kv_disk_t *d)
{
    struct timespec  ts;

    d->busy = 0;
    pthread_cond_broadcast(&d->room);

    if (d->ready) {
        pthread_cond_wait(&d->work, &d->lock);

    } else {
        ts.tv_sec = (time_t) (d->retry_at / 1000000);
        ts.tv_nsec = (long) (d->retry_at % 1000000) * 1000;
        (void) pthread_cond_timedwait(&d->work, &d->lock, &ts);
    }

    d->busy = 1;
}


/*
 * Whether it is time to look through the directory: at the start, after it was
 * gone, and when there is more in it than we know.
 */

static int
kv_disk_afresh(kv_disk_t *d)
{
    return !d->stop && kv_disk_now() >= d->retry_at
           && (!d->ready || (d->trouble != KV_DISK_WELL && d->lost > 0));
}


/* Opens the directory, if it is not, and looks through it. */

static void
kv_disk_begin(kv_disk_t *d)
{
    int   rc, e;
    char  err[KV_DISK_ERR_LEN];

    kv_disk_leave(d);
    pthread_mutex_unlock(&d->lock);

    rc = 0;

    if (d->dir.fd == -1) {
        rc = kv_disk_attach(d, err);
    }

    if (rc == 0) {
        rc = kv_disk_scan(d);

        if (rc != 0) {
            e = errno;
            kv_index_clear(&d->index);
            snprintf(err, sizeof(err), "%.300s: cannot look through the "
                     "directory: %s", d->path, strerror(e));
        }
    }

    pthread_mutex_lock(&d->lock);

    if (rc == 0) {
        d->ready = 1;

        if (d->trouble != KV_DISK_WELL) {
            d->trouble = KV_DISK_NO_WRITE;   /* the next block will show */
        }

    } else if (!d->stop) {
        kv_disk_fail(d, KV_DISK_DOWN, err);
    }
}


/* Knows nothing any more of what is in the directory. */

static void
kv_disk_leave(kv_disk_t *d)
{
    kv_disk_empty_queue(d);
    kv_index_clear(&d->index);
    d->ready = 0;
    d->lost = 0;
    d->keep_mark = NULL;
}


void
kv_disk_fail(kv_disk_t *d, kv_disk_trouble_t trouble, const char *why)
{
    char  line[KV_DISK_ERR_LEN + 128];

    if (d->trouble == KV_DISK_WELL) {
        d->retry_us = d->opt.retry_us;

        if (d->opt.log != NULL) {
            snprintf(line, sizeof(line), "KV cache: %s; going on without, "
                     "next try in %.3g s", why, (double) d->retry_us / 1e6);
            d->opt.log(1, line);
        }

    } else if (d->retry_us < KV_DISK_RETRY_MAX * d->opt.retry_us) {
        d->retry_us *= 2;
    }

    if (trouble > d->trouble) {
        d->trouble = trouble;
    }

    d->retry_at = kv_disk_now() + d->retry_us;
    kv_disk_empty_queue(d);
}


static void
kv_disk_trouble(kv_disk_t *d, kv_disk_trouble_t trouble, const char *doing,
    int e)
{
    char  why[KV_DISK_ERR_LEN];

    snprintf(why, sizeof(why), "%.300s: %s: %s", d->path, doing, strerror(e));
    kv_disk_fail(d, trouble, why);

    if (kv_disk_gone(d)) {
        d->trouble = KV_DISK_DOWN;
        kv_disk_leave(d);
        kv_disk_detach(d);
    }
}


static void
kv_disk_well(kv_disk_t *d)
{
    char  line[KV_DISK_ERR_LEN];

    if (d->trouble == KV_DISK_WELL) {
        return;
    }

    d->trouble = KV_DISK_WELL;

    if (d->opt.log != NULL) {
        snprintf(line, sizeof(line), "KV cache: %.300s: works again",
                 d->path);
        d->opt.log(0, line);
    }
}


/* What is staged is lost. */

static void
kv_disk_empty_queue(kv_disk_t *d)
{
    int32_t  i;

    while (d->first != -1) {
        i = d->first;
        d->first = d->slot[i].next;
        kv_disk_forget(d, d->slot[i].entry);
        kv_disk_free_slot(d, i);
    }

    d->last = -1;
}


/* Whether somebody has removed the directory. */

static int
kv_disk_gone(kv_disk_t *d)
{
    struct stat  st;

    return d->dir.fd != -1 && fstat(d->dir.fd, &st) == 0 && st.st_nlink == 0;
}


/* Writes the block that has waited longest. */

static void
kv_disk_write(kv_disk_t *d)
{
    int            e;
    int32_t        i;
    int64_t        stamp;
    kv_slot_t     *slot;
    kv_entry_t    *entry;
    kv_file_rc_t   rc;

    i = d->first;
    slot = &d->slot[i];
    entry = slot->entry;

    if (kv_disk_make_room(d, entry) != 0) {

        /* It still heads the queue, unless there was trouble. */

        if (d->first != i) {
            return;
        }

        rc = KV_FILE_FOREIGN;

    } else {
        stamp = entry->stamp;

        pthread_mutex_unlock(&d->lock);
        rc = kv_file_write(&d->dir, &slot->key, slot->flags, slot->buf,
                           stamp);
        e = errno;
        pthread_mutex_lock(&d->lock);

        if (rc == KV_FILE_FAILED) {
            kv_disk_trouble(d, KV_DISK_NO_WRITE, "cannot write a block", e);
            return;
        }
    }

    d->first = slot->next;

    if (d->first == -1) {
        d->last = -1;
    }

    if (rc == KV_FILE_OK) {
        kv_index_written(&d->index, entry);
        d->stats.stored++;
        kv_disk_well(d);

    } else {
        kv_disk_forget(d, entry);
    }

    kv_disk_free_slot(d, i);
}


/*
 * Removes files until there is room for one.  -1: there is none to be had, or
 * trouble.  What was kept at the engine's end does not make room for what was
 * used less.
 */

static int
kv_disk_make_room(kv_disk_t *d, const kv_entry_t *e)
{
    int          rc, err;
    kv_key_t     tenant, hash;
    kv_entry_t  *old;

    while (d->index.used + d->lost + d->index.file_size > d->opt.size) {

        old = kv_index_oldest_file(&d->index);

        if (old == NULL || (old->kept && e->kept)) {
            d->keep_full |= e->kept;
            return -1;
        }

        tenant = old->tenant;
        hash = old->hash;
        kv_disk_forget(d, old);
        d->stats.dropped++;

        pthread_mutex_unlock(&d->lock);
        rc = kv_disk_remove(d, &tenant, &hash);
        err = errno;
        pthread_mutex_lock(&d->lock);

        if (rc != 0) {
            kv_disk_trouble(d, KV_DISK_NO_WRITE, "cannot remove a block",
                            err);
            return -1;
        }
    }

    return 0;
}


/* Reads some blocks of the first job; it comes last then, unless it is done. */

static void
kv_disk_read(kv_disk_t *d)
{
    uint32_t       i;
    kv_restore_t  *job;

    job = d->jobs;
    d->jobs = job->next;
    job->next = NULL;

    if (d->jobs == NULL) {
        d->jobs_end = &d->jobs;
    }

    for (i = 0; i < KV_DISK_TURN && job->n_ok < job->n; i++) {

        if (d->stop || atomic_load(&job->abort)
            || kv_disk_read_block(d, job, job->n_ok) != 0)
        {
            break;
        }

        job->n_ok++;
        d->n_asked--;
        d->stats.restored++;
    }

    if (i == KV_DISK_TURN && job->n_ok < job->n) {
        *d->jobs_end = job;
        d->jobs_end = &job->next;
        return;
    }

    kv_disk_touch(d, job);

    d->n_asked -= job->n - job->n_ok;
    d->stats.missed += job->n - job->n_ok;

    *d->done_end = job;
    d->done_end = &job->next;

    pthread_mutex_unlock(&d->lock);

    if (d->opt.wake != NULL) {
        d->opt.wake(d->opt.wake_ctx);
    }

    pthread_mutex_lock(&d->lock);
}


/* 0, or -1: it is to be computed. */

static int
kv_disk_read_block(kv_disk_t *d, kv_restore_t *job, uint32_t i)
{
    double                us;
    uint64_t              began;
    kv_slot_t            *slot;
    kv_entry_t           *e;
    const uint8_t        *from;
    const kv_disk_key_t  *key;

    if (!d->ready) {
        return -1;
    }

    began = kv_disk_now();
    key = &job->key[i];
    e = kv_index_find(&d->index, &key->tenant, &key->hash);

    if (e == NULL || e->check != kv_index_check(key)) {
        return -1;
    }

    if (e->slot != -1) {
        slot = &d->slot[e->slot];

        if (!kv_disk_key_equal(&slot->key, key)) {
            return -1;
        }

        from = slot->buf;
        job->flags[i] = slot->flags;

    } else {
        if (kv_disk_read_file(d, e, key) != 0) {
            return -1;
        }

        from = d->buf;
        job->flags[i] = ((kv_head_t *) d->buf)->flags;
    }

    pthread_mutex_unlock(&d->lock);

    d->opt.write(d->opt.ctx, job->rank, job->block[i], from + KV_FILE_HEAD);

    pthread_mutex_lock(&d->lock);

    if (from == d->buf) {
        us = (double) (kv_disk_now() - began);
        d->stats.read_us += (us - d->stats.read_us) / 8;
    }

    return 0;
}


/* They were used: the last of the chain first, which may go before others. */

static void
kv_disk_touch(kv_disk_t *d, const kv_restore_t *job)
{
    uint32_t     i;
    kv_entry_t  *e;

    if (!d->ready) {
        return;
    }

    for (i = job->n_ok; i-- > 0; ) {
        e = kv_index_find(&d->index, &job->key[i].tenant, &job->key[i].hash);

        if (e != NULL) {
            e->stamp = kv_disk_stamp(d);
            e->touched = 1;
            kv_index_move(&d->index, e, NULL);
        }
    }
}


/* Reads a block into `buf`; what is found to be useless is removed. */

static int
kv_disk_read_file(kv_disk_t *d, kv_entry_t *e, const kv_disk_key_t *key)
{
    int            err;
    kv_key_t       tenant, hash;
    kv_file_rc_t   rc;

    pthread_mutex_unlock(&d->lock);

    rc = kv_file_read(&d->dir, key, d->buf);
    err = errno;

    pthread_mutex_lock(&d->lock);

    switch (rc) {

    case KV_FILE_OK:
        if (d->trouble == KV_DISK_DOWN) {
            d->trouble = KV_DISK_NO_WRITE;
        }

        return 0;

    case KV_FILE_OTHER:
        return -1;

    case KV_FILE_FAILED:
        if (err != EIO && err != EACCES) {
            kv_disk_trouble(d, KV_DISK_DOWN, "cannot read a block", err);
            return -1;
        }

        break;

    case KV_FILE_BAD:
        d->stats.bad++;
        break;

    default:                         /* gone, or somebody else's by now */
        kv_disk_forget(d, e);

        if (kv_disk_gone(d)) {
            kv_disk_trouble(d, KV_DISK_DOWN, "cannot read a block", ENOENT);
        }

        return -1;
    }

    tenant = e->tenant;
    hash = e->hash;
    kv_disk_forget(d, e);

    pthread_mutex_unlock(&d->lock);
    (void) kv_disk_remove(d, &tenant, &hash);
    pthread_mutex_lock(&d->lock);

    if (rc == KV_FILE_FAILED) {
        kv_disk_trouble(d, KV_DISK_DOWN, "cannot read a block", err);
    }

    return -1;
}
