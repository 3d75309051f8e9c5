/*
 * The disk tier as the step thread sees it: look-up, staging, jobs.
 */

#include "sched/kv_disk_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>


static int kv_disk_staging(kv_disk_t *d);
static int kv_disk_usable(kv_disk_t *d, kv_disk_trouble_t worst);
static kv_entry_t *kv_disk_known(kv_disk_t *d, const kv_disk_key_t *key,
    int *other);
static int32_t kv_disk_take_slot(kv_disk_t *d);
static int kv_disk_stage(kv_disk_t *d, int32_t i, uint32_t rank,
    int32_t block, const kv_disk_key_t *key, uint64_t flags, int64_t stamp,
    int keep);


uint64_t
kv_disk_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}


/* Now, in nanoseconds since 1970, and always later than before. */

int64_t
kv_disk_stamp(kv_disk_t *d)
{
    int64_t          now;
    struct timespec  ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    now = (int64_t) ts.tv_sec * 1000000000 + ts.tv_nsec;
    d->clock = now > d->clock ? now : d->clock + 1;

    return d->clock;
}


kv_disk_t *
kv_disk_open(const kv_disk_options_t *opt, char *err)
{
    int                 rc;
    kv_disk_t          *d;
    pthread_condattr_t  attr;

    if (opt->block_size == 0 || opt->block_size > UINT32_MAX
        || opt->size < kv_file_size(opt->block_size))
    {
        snprintf(err, KV_DISK_ERR_LEN, "%.300s: %llu bytes have no room for "
                 "one block, which takes %llu", opt->dir,
                 (unsigned long long) opt->size,
                 (unsigned long long) kv_file_size(opt->block_size));
        return NULL;
    }

    d = calloc(1, sizeof(kv_disk_t));

    if (d == NULL) {
        snprintf(err, KV_DISK_ERR_LEN, "%.300s: no memory", opt->dir);
        return NULL;
    }

    d->opt = *opt;
    d->dir.fd = -1;
    d->dir.fingerprint = opt->fingerprint;
    d->dir.payload = opt->block_size;
    d->lock_fd = -1;
    d->jobs_end = &d->jobs;
    d->done_end = &d->done;
    d->stats.limit = opt->size;
    d->free = -1;
    d->first = -1;
    d->last = -1;
    d->busy = 1;

    if (d->opt.retry_us == 0) {
        d->opt.retry_us = KV_DISK_RETRY_US;
    }

    /* A first guess: 0.1 ms and 1 GB/s. */

    d->stats.read_us = 100 + (double) opt->block_size / 1000;

    pthread_mutex_init(&d->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->work, &attr);
    pthread_cond_init(&d->room, &attr);
    pthread_condattr_destroy(&attr);

    d->path = strdup(opt->dir);

    if (d->path == NULL
        || kv_index_open(&d->index, kv_file_size(opt->block_size)) != 0
        || kv_disk_staging(d) != 0)
    {
        snprintf(err, KV_DISK_ERR_LEN, "%.300s: no memory", opt->dir);
        goto failed;
    }

    if (kv_disk_attach(d, err) != 0) {

        if (errno != ENOSPC && errno != EDQUOT && errno != EIO) {
            goto failed;
        }

        kv_disk_fail(d, KV_DISK_DOWN, err);
    }

    rc = pthread_create(&d->thread, NULL, kv_disk_main, d);

    if (rc != 0) {
        snprintf(err, KV_DISK_ERR_LEN, "%.300s: cannot start a thread: %s",
                 opt->dir, strerror(rc));
        goto failed;
    }

    d->started = 1;

    return d;

failed:

    kv_disk_close(d);
    return NULL;
}


/* Memory that is not touched before it is used. */

static int
kv_disk_staging(kv_disk_t *d)
{
    void      *p;
    size_t     each;
    uint64_t   n, want;
    uint32_t   i;

    each = kv_file_size(d->opt.block_size);
    want = d->opt.staging != 0 ? d->opt.staging : KV_DISK_STAGING;
    n = want / each;
    n = n < KV_DISK_SLOTS_MIN && d->opt.staging == 0 ? KV_DISK_SLOTS_MIN : n;
    n = n < 1 ? 1 : n;
    n = n > INT32_MAX ? INT32_MAX : n;

    d->staging_size = (size_t) (n + 1) * each;

    p = mmap(NULL, d->staging_size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        d->staging_size = 0;
        return -1;
    }

    d->staging = p;
    d->buf = d->staging + n * each;
    d->slot = calloc(n, sizeof(kv_slot_t));

    if (d->slot == NULL) {
        return -1;
    }

    d->n_slots = (uint32_t) n;
    d->free = 0;

    for (i = 0; i < d->n_slots; i++) {
        d->slot[i].buf = d->staging + i * each;
        d->slot[i].next = i + 1 < d->n_slots ? (int32_t) (i + 1) : -1;
    }

    return 0;
}


void
kv_disk_stop(kv_disk_t *d, uint64_t deadline_us)
{
    if (d->started) {
        pthread_mutex_lock(&d->lock);
        d->stop = 1;
        d->deadline = deadline_us;
        pthread_cond_signal(&d->work);
        pthread_mutex_unlock(&d->lock);

        pthread_join(d->thread, NULL);
        d->started = 0;
    }
}


void
kv_disk_close(kv_disk_t *d)
{
    if (d == NULL) {
        return;
    }

    kv_disk_stop(d, 0);
    kv_disk_detach(d);

    if (d->index.bucket != NULL) {
        kv_index_close(&d->index);
    }

    if (d->staging != NULL) {
        (void) munmap(d->staging, d->staging_size);
    }

    pthread_cond_destroy(&d->work);
    pthread_cond_destroy(&d->room);
    pthread_mutex_destroy(&d->lock);

    free(d->slot);
    free(d->path);
    free(d);
}


/* After trouble it is usable again, on trial, when the pause is over. */

static int
kv_disk_usable(kv_disk_t *d, kv_disk_trouble_t worst)
{
    return d->ready && !d->stop
           && (d->trouble <= worst || kv_disk_now() >= d->retry_at);
}


/* The block's entry, if it is there; `other`: another has its name. */

static kv_entry_t *
kv_disk_known(kv_disk_t *d, const kv_disk_key_t *key, int *other)
{
    kv_entry_t  *e;

    e = kv_index_find(&d->index, &key->tenant, &key->hash);

    *other = e != NULL && e->check != kv_index_check(key);

    return *other ? NULL : e;
}


int
kv_disk_find(kv_disk_t *d, const kv_disk_key_t *key)
{
    int  found, other;

    found = 0;

    pthread_mutex_lock(&d->lock);

    if (kv_disk_usable(d, KV_DISK_NO_WRITE)) {
        found = kv_disk_known(d, key, &other) != NULL;
    }

    pthread_mutex_unlock(&d->lock);

    return found;
}


uint64_t
kv_disk_read_us(kv_disk_t *d, uint32_t n)
{
    double  us;

    pthread_mutex_lock(&d->lock);
    us = d->stats.read_us * ((double) d->n_asked + n);
    pthread_mutex_unlock(&d->lock);

    return (uint64_t) us;
}


/* Removes an entry from the index; the tier's thread only. */

void
kv_disk_forget(kv_disk_t *d, kv_entry_t *e)
{
    if (d->keep_mark == e) {
        d->keep_mark = e->newer;
    }

    kv_index_remove(&d->index, e);
}


void
kv_disk_free_slot(kv_disk_t *d, int32_t i)
{
    d->slot[i].entry = NULL;
    d->slot[i].next = d->free;
    d->free = i;
    pthread_cond_broadcast(&d->room);
}


static int32_t
kv_disk_take_slot(kv_disk_t *d)
{
    int32_t  i;

    i = d->free;

    if (i != -1) {
        d->free = d->slot[i].next;
    }

    return i;
}


/*
 * Copies a block into its slot and queues it.  The lock is given up while the
 * block is copied, and nobody but the caller adds entries.
 */

static int
kv_disk_stage(kv_disk_t *d, int32_t i, uint32_t rank, int32_t block,
    const kv_disk_key_t *key, uint64_t flags, int64_t stamp, int keep)
{
    kv_slot_t   *slot;
    kv_entry_t  *e;

    slot = &d->slot[i];

    pthread_mutex_unlock(&d->lock);

    slot->key = *key;
    slot->flags = flags;
    d->opt.read(d->opt.ctx, rank, block, slot->buf + KV_FILE_HEAD);

    pthread_mutex_lock(&d->lock);

    /* The directory may have gone meanwhile, and the index with it. */

    e = NULL;

    if (d->ready && !d->stop) {
        e = kv_index_add(&d->index, &key->tenant, &key->hash,
                         kv_index_check(key), keep ? d->keep_mark : NULL);
    }

    if (e == NULL) {
        kv_disk_free_slot(d, i);
        return 0;
    }

    e->slot = i;
    e->stamp = stamp;
    slot->entry = e;
    slot->next = -1;

    if (d->last != -1) {
        d->slot[d->last].next = i;
    } else {
        d->first = i;
    }

    d->last = i;
    pthread_cond_signal(&d->work);

    return 1;
}


int
kv_disk_store(kv_disk_t *d, uint32_t rank, int32_t block,
    const kv_disk_key_t *key, uint64_t flags)
{
    int          kept, other;
    int32_t      i;
    kv_entry_t  *e;

    kept = 0;

    pthread_mutex_lock(&d->lock);

    if (!kv_disk_usable(d, KV_DISK_WELL)) {
        goto done;
    }

    e = kv_disk_known(d, key, &other);

    if (e != NULL) {
        e->stamp = kv_disk_stamp(d);
        e->touched = 1;
        kv_index_move(&d->index, e, NULL);
        kept = 1;
        goto done;
    }

    if (other) {
        goto done;
    }

    i = kv_disk_take_slot(d);

    if (i == -1) {
        d->stats.skipped++;
        goto done;
    }

    kept = kv_disk_stage(d, i, rank, block, key, flags, kv_disk_stamp(d), 0);

done:

    pthread_mutex_unlock(&d->lock);

    return kept;
}


int
kv_disk_keep(kv_disk_t *d, uint32_t rank, int32_t block,
    const kv_disk_key_t *key, uint64_t flags, uint64_t deadline_us)
{
    int               rc, other;
    int32_t           i;
    kv_entry_t       *e;
    struct timespec   ts;

    ts.tv_sec = (time_t) (deadline_us / 1000000);
    ts.tv_nsec = (long) (deadline_us % 1000000) * 1000;

    rc = 0;

    pthread_mutex_lock(&d->lock);

    if (d->keep_stamp == 0) {
        d->keep_stamp = kv_disk_stamp(d);
    }

    for ( ;; ) {

        if (!kv_disk_usable(d, KV_DISK_WELL) || d->keep_full
            || kv_disk_now() >= deadline_us)
        {
            rc = -1;
            goto done;
        }

        e = kv_disk_known(d, key, &other);

        if (e != NULL || other) {
            break;
        }

        i = kv_disk_take_slot(d);

        if (i != -1) {
            break;
        }

        (void) pthread_cond_timedwait(&d->room, &d->lock, &ts);
    }

    if (other) {
        goto done;
    }

    d->keep_stamp -= 1000;

    if (e != NULL) {
        kv_index_move(&d->index, e, d->keep_mark);
        e->stamp = d->keep_stamp;
        e->touched = 1;
        rc = 1;

    } else {
        rc = kv_disk_stage(d, i, rank, block, key, flags, d->keep_stamp, 1);

        e = rc ? d->slot[i].entry : NULL;
    }

    if (e != NULL) {
        e->kept = 1;
        d->keep_mark = e;
    }

done:

    pthread_mutex_unlock(&d->lock);

    return rc;
}


void
kv_disk_restore(kv_disk_t *d, kv_restore_t *job)
{
    job->next = NULL;
    job->n_ok = 0;

    pthread_mutex_lock(&d->lock);

    *d->jobs_end = job;
    d->jobs_end = &job->next;
    d->n_asked += job->n;

    pthread_cond_signal(&d->work);
    pthread_mutex_unlock(&d->lock);
}


kv_restore_t *
kv_disk_done(kv_disk_t *d)
{
    kv_restore_t  *job;

    pthread_mutex_lock(&d->lock);

    job = d->done;

    if (job != NULL) {
        d->done = job->next;

        if (d->done == NULL) {
            d->done_end = &d->done;
        }
    }

    pthread_mutex_unlock(&d->lock);

    return job;
}


void
kv_disk_ready(kv_disk_t *d, uint64_t limit_us)
{
    uint64_t         until;
    struct timespec  ts;

    until = kv_disk_now() + limit_us;
    ts.tv_sec = (time_t) (until / 1000000);
    ts.tv_nsec = (long) (until % 1000000) * 1000;

    pthread_mutex_lock(&d->lock);

    while (!d->ready && d->busy
           && pthread_cond_timedwait(&d->room, &d->lock, &ts) == 0)
    {
        /* void */
    }

    pthread_mutex_unlock(&d->lock);
}


void
kv_disk_settle(kv_disk_t *d)
{
    pthread_mutex_lock(&d->lock);

    while (d->busy || d->jobs != NULL || d->first != -1) {
        pthread_cond_wait(&d->room, &d->lock);
    }

    pthread_mutex_unlock(&d->lock);
}


void
kv_disk_stats(kv_disk_t *d, kv_disk_stats_t *st)
{
    pthread_mutex_lock(&d->lock);

    *st = d->stats;
    st->ready = d->ready;
    st->trouble = d->trouble != KV_DISK_WELL;

    if (d->ready) {
        st->used = d->index.used + d->lost;
        st->files = d->index.n_files;
    }

    pthread_mutex_unlock(&d->lock);
}
