/*
 * The directory of the disk tier: its lock, what is in it, what leaves it.
 */

#include "sched/kv_disk_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>


typedef struct {
    kv_key_t  tenant;
    kv_key_t  hash;
    uint64_t  check;
    int64_t   stamp;
} kv_found_t;

typedef struct {
    kv_found_t  *file;
    size_t       n;
    size_t       cap;
} kv_found_list_t;


static int kv_disk_open_dir(kv_disk_t *d);
static int kv_disk_look(kv_disk_t *d, const char *name,
    kv_found_list_t *list);
static int kv_disk_found(kv_found_list_t *list, const kv_head_t *head,
    int64_t stamp);
static int kv_disk_by_stamp(const void *a, const void *b);
static int kv_disk_adopt(kv_disk_t *d, const kv_found_list_t *list);
static int kv_disk_stopped(kv_disk_t *d);
static void kv_disk_count(kv_disk_t *d, uint64_t *counter, uint64_t n);


int
kv_disk_attach(kv_disk_t *d, char *err)
{
    int          e;
    const char  *what;

    what = "cannot open the directory";

    if (kv_disk_open_dir(d) != 0) {
        goto failed;
    }

    what = "cannot open its file \"lock\"";

    d->lock_fd = openat(d->dir.fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW
                        | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0600);

    if (d->lock_fd == -1) {
        goto failed;
    }

    what = "cannot lock its file \"lock\"";

    if (flock(d->lock_fd, LOCK_EX | LOCK_NB) != 0) {

        if (errno == EWOULDBLOCK) {
            snprintf(err, KV_DISK_ERR_LEN, "%.300s: another engine uses the "
                     "directory", d->path);
            kv_disk_detach(d);
            errno = EWOULDBLOCK;
            return -1;
        }

        goto failed;
    }

    return 0;

failed:

    e = errno;
    snprintf(err, KV_DISK_ERR_LEN, "%.300s: %s: %s", d->path, what,
             strerror(e));
    kv_disk_detach(d);
    errno = e;

    return -1;
}


static int
kv_disk_open_dir(kv_disk_t *d)
{
    int  flags;

    flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    d->dir.named = 0;
    d->dir.fd = open(d->path, flags);

    if (d->dir.fd == -1 && errno == ENOENT && mkdir(d->path, 0700) == 0) {
        d->dir.fd = open(d->path, flags);
    }

    return d->dir.fd == -1 ? -1 : 0;
}


void
kv_disk_detach(kv_disk_t *d)
{
    if (d->lock_fd != -1) {
        (void) close(d->lock_fd);
        d->lock_fd = -1;
    }

    if (d->dir.fd != -1) {
        (void) close(d->dir.fd);
        d->dir.fd = -1;
    }
}


int
kv_disk_scan(kv_disk_t *d)
{
    int               fd, rc, e;
    DIR              *dir;
    kv_found_list_t   list;
    struct dirent    *entry;

    memset(&list, 0, sizeof(list));
    rc = -1;

    fd = openat(d->dir.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd == -1) {
        return -1;
    }

    dir = fdopendir(fd);

    if (dir == NULL) {
        e = errno;
        (void) close(fd);
        errno = e;
        return -1;
    }

    for ( ;; ) {

        errno = 0;
        entry = readdir(dir);

        if (entry == NULL) {

            if (errno == 0) {
                rc = kv_disk_adopt(d, &list);
            }

            break;
        }

        if (kv_disk_stopped(d) || kv_disk_look(d, entry->d_name, &list) != 0)
        {
            break;
        }
    }

    e = errno;
    (void) closedir(dir);
    free(list.file);
    errno = e;

    return rc;
}


/* 0, or -1 with errno: the directory is of no use. */

static int
kv_disk_look(kv_disk_t *d, const char *name, kv_found_list_t *list)
{
    int64_t    stamp;
    uint64_t   size;
    kv_head_t  head;

    if (kv_file_is_temporary(name)) {
        if (unlinkat(d->dir.fd, name, 0) != 0 && errno != ENOENT
            && errno != EISDIR)
        {
            return -1;
        }

        return 0;
    }

    if (!kv_file_is_name(name)) {
        return 0;
    }

    switch (kv_file_scan(&d->dir, name, &head, &stamp, &size)) {

    case KV_FILE_OK:
        return kv_disk_found(list, &head, stamp);

    case KV_FILE_BAD:
        kv_disk_count(d, &d->stats.bad, 1);

        if (unlinkat(d->dir.fd, name, 0) != 0 && errno != ENOENT) {
            kv_disk_count(d, &d->lost, size);
        }

        return 0;

    case KV_FILE_FAILED:
        if (errno != EIO && errno != EACCES) {
            return -1;
        }

        /* It may well be ours, and takes room. */

        size = size > d->index.file_size ? size : d->index.file_size;
        kv_disk_count(d, &d->lost, size);
        return 0;

    default:                         /* not ours, or gone meanwhile */
        return 0;
    }
}


static int
kv_disk_found(kv_found_list_t *list, const kv_head_t *head, int64_t stamp)
{
    size_t       cap;
    kv_found_t  *file;

    if (list->n == list->cap) {
        cap = list->cap > 0 ? 2 * list->cap : 1024;
        file = realloc(list->file, cap * sizeof(kv_found_t));

        if (file == NULL) {
            errno = ENOMEM;
            return -1;
        }

        list->file = file;
        list->cap = cap;
    }

    file = &list->file[list->n++];

    file->tenant = head->key.tenant;
    file->hash = head->key.hash;
    file->check = kv_index_check(&head->key);
    file->stamp = stamp;

    return 0;
}


static int
kv_disk_by_stamp(const void *a, const void *b)
{
    const kv_found_t  *x = a;
    const kv_found_t  *y = b;

    return x->stamp < y->stamp ? -1 : x->stamp > y->stamp;
}


/* Oldest first into the index; what is too much goes at once. */

static int
kv_disk_adopt(kv_disk_t *d, const kv_found_list_t *list)
{
    size_t       i;
    kv_entry_t  *e;

    if (list->n == 0) {
        return 0;
    }

    qsort(list->file, list->n, sizeof(kv_found_t), kv_disk_by_stamp);

    for (i = 0; i < list->n; i++) {

        /* A directory that changes may be read twice in a place. */

        if (kv_index_find(&d->index, &list->file[i].tenant,
                          &list->file[i].hash)
            != NULL)
        {
            continue;
        }

        e = kv_index_add(&d->index, &list->file[i].tenant,
                         &list->file[i].hash, list->file[i].check, NULL);

        if (e == NULL) {
            errno = ENOMEM;
            return -1;
        }

        e->stamp = list->file[i].stamp;
        kv_index_written(&d->index, e);
    }

    while (d->index.used + d->lost > d->opt.size
           && (e = d->index.oldest) != NULL)
    {
        (void) kv_disk_remove(d, &e->tenant, &e->hash);
        kv_disk_count(d, &d->stats.dropped, 1);
        kv_index_remove(&d->index, e);
    }

    return 0;
}


int
kv_disk_remove(kv_disk_t *d, const kv_key_t *tenant, const kv_key_t *hash)
{
    int            e;
    char           name[KV_FILE_NAME];
    kv_disk_key_t  key;

    key.tenant = *tenant;
    key.hash = *hash;
    kv_file_name(&key, name);

    if (unlinkat(d->dir.fd, name, 0) == 0 || errno == ENOENT) {
        return 0;
    }

    e = errno;

    kv_disk_count(d, &d->lost, d->index.file_size);
    errno = e;

    return -1;
}


/* Nobody else is at work any more. */

void
kv_disk_restamp(kv_disk_t *d)
{
    char              name[KV_FILE_NAME];
    kv_entry_t       *e;
    kv_disk_key_t     key;
    struct timespec   ts[2];

    ts[0].tv_sec = 0;
    ts[0].tv_nsec = UTIME_OMIT;

    for (e = d->index.oldest; e != NULL; e = e->newer) {

        if (!e->touched || e->slot != -1) {
            continue;
        }

        key.tenant = e->tenant;
        key.hash = e->hash;
        kv_file_name(&key, name);

        ts[1].tv_sec = (time_t) (e->stamp / 1000000000);
        ts[1].tv_nsec = (long) (e->stamp % 1000000000);

        /* A file without it is only taken for older than it is. */

        (void) utimensat(d->dir.fd, name, ts, AT_SYMLINK_NOFOLLOW);
    }
}


static int
kv_disk_stopped(kv_disk_t *d)
{
    int  stop;

    pthread_mutex_lock(&d->lock);
    stop = d->stop;
    pthread_mutex_unlock(&d->lock);

    if (stop) {
        errno = EINTR;
    }

    return stop;
}


static void
kv_disk_count(kv_disk_t *d, uint64_t *counter, uint64_t n)
{
    pthread_mutex_lock(&d->lock);
    *counter += n;
    pthread_mutex_unlock(&d->lock);
}
