/*
 * KV blocks in files: written aside and linked, read and checked.
 */

#include "sched/kv_disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>


#define KV_FILE_PAGE      4096       /* what files are rounded up to */
#define KV_FILE_TMP       "kv-block.tmp"
#define KV_FILE_PROC_LEN  64
#define KV_FILE_LATEST    INT64_C(9000000000)    /* seconds, or overflow */


static void kv_file_head(const kv_dir_t *dir, const kv_disk_key_t *key,
    uint64_t flags, kv_head_t *head);
static int kv_file_create(kv_dir_t *dir);
static int kv_file_put(int fd, const void *buf, size_t size);
static ssize_t kv_file_get(int fd, const struct stat *st, void *buf,
    size_t size);
static kv_file_rc_t kv_file_link(kv_dir_t *dir, int fd, const char *name);
static int kv_file_open(const kv_dir_t *dir, const char *name,
    struct stat *st, kv_file_rc_t *rc);
static kv_file_rc_t kv_file_check(const kv_dir_t *dir, const char *name,
    const kv_head_t *head, ssize_t got, const struct stat *st);


uint64_t
kv_file_size(size_t payload)
{
    return ((uint64_t) KV_FILE_HEAD + payload + KV_FILE_PAGE - 1)
           / KV_FILE_PAGE * KV_FILE_PAGE;
}


void
kv_file_name(const kv_disk_key_t *key, char name[KV_FILE_NAME])
{
    snprintf(name, KV_FILE_NAME,
             "%016" PRIx64 "%016" PRIx64 "-%016" PRIx64 "%016" PRIx64 ".kv",
             key->hash.hi, key->hash.lo, key->tenant.hi, key->tenant.lo);
}


int
kv_file_is_name(const char *name)
{
    size_t  i;

    if (strlen(name) != KV_FILE_NAME - 1) {
        return 0;
    }

    for (i = 0; i < 65; i++) {
        if (i == 32 ? name[i] != '-'
                    : strchr("0123456789abcdef", name[i]) == NULL)
        {
            return 0;
        }
    }

    return strcmp(name + 65, ".kv") == 0;
}


int
kv_file_is_temporary(const char *name)
{
    return strcmp(name, KV_FILE_TMP) == 0;
}


int
kv_disk_key_equal(const kv_disk_key_t *a, const kv_disk_key_t *b)
{
    return memcmp(a, b, sizeof(kv_disk_key_t)) == 0;
}


static void
kv_file_head(const kv_dir_t *dir, const kv_disk_key_t *key, uint64_t flags,
    kv_head_t *head)
{
    memset(head, 0, sizeof(kv_head_t));

    head->magic = KV_FILE_MAGIC;
    head->version = KV_FILE_VERSION;
    head->head_size = KV_FILE_HEAD;
    head->fingerprint = dir->fingerprint;
    head->payload = dir->payload;
    head->key = *key;
    head->flags = flags;
    head->sum = XXH3_64bits(head + 1, dir->payload);
    head->head_sum = XXH3_64bits(head, offsetof(kv_head_t, head_sum));
}


kv_file_rc_t
kv_file_write(kv_dir_t *dir, const kv_disk_key_t *key, uint64_t flags,
    void *buf, int64_t stamp)
{
    int              fd, e;
    char             name[KV_FILE_NAME];
    kv_file_rc_t     rc;
    struct timespec  ts[2];

    kv_file_name(key, name);
    kv_file_head(dir, key, flags, buf);

    ts[0].tv_sec = 0;
    ts[0].tv_nsec = UTIME_OMIT;
    ts[1].tv_sec = (time_t) (stamp / 1000000000);
    ts[1].tv_nsec = (long) (stamp % 1000000000);

    fd = kv_file_create(dir);

    if (fd == -1) {
        return KV_FILE_FAILED;
    }

    /* Without its time a file is only younger than it should be. */

    if (kv_file_put(fd, buf, KV_FILE_HEAD + dir->payload) != 0
        || (futimens(fd, ts) != 0 && errno == EIO))
    {
        e = errno;
        (void) close(fd);

        if (dir->named) {
            (void) unlinkat(dir->fd, KV_FILE_TMP, 0);
        }

        errno = e;
        return KV_FILE_FAILED;
    }

    rc = kv_file_link(dir, fd, name);

    if (rc == KV_FILE_FAILED && errno == ENOENT && !dir->named) {

        /* No /proc, perhaps.  If it is the directory, this fails too. */

        dir->named = 1;
        return kv_file_write(dir, key, flags, buf, stamp);
    }

    return rc;
}


static int
kv_file_create(kv_dir_t *dir)
{
    int  fd;

    if (!dir->named) {
        fd = openat(dir->fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);

        if (fd != -1
            || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        {
            return fd;
        }

        dir->named = 1;
    }

    if (unlinkat(dir->fd, KV_FILE_TMP, 0) != 0 && errno != ENOENT) {
        return -1;
    }

    return openat(dir->fd, KV_FILE_TMP,
                  O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
}


static int
kv_file_put(int fd, const void *buf, size_t size)
{
    size_t    done;
    ssize_t   n;

    for (done = 0; done < size; done += (size_t) n) {

        n = write(fd, (const uint8_t *) buf + done, size - done);

        if (n == -1 && errno == EINTR) {
            n = 0;

        } else if (n <= 0) {
            errno = n == 0 ? EIO : errno;
            return -1;
        }
    }

    return 0;
}


/*
 * Bytes up to `size` or the file's end; -1: errno.  One that ends before it
 * does is an error of the disk's.
 */

static ssize_t
kv_file_get(int fd, const struct stat *st, void *buf, size_t size)
{
    size_t    done;
    ssize_t   n;

    if ((uint64_t) st->st_size < size) {
        size = (size_t) st->st_size;
    }

    for (done = 0; done < size; done += (size_t) n) {

        n = pread(fd, (uint8_t *) buf + done, size - done, (off_t) done);

        if (n == -1 && errno == EINTR) {
            n = 0;

        } else if (n == -1) {
            return -1;

        } else if (n == 0) {
            errno = EIO;
            return -1;
        }
    }

    return (ssize_t) done;
}


/*
 * Gives the file its name, and closes it.  Some file systems tell of a failed
 * write only in close(), which a file must outlive there to have a name.
 */

static kv_file_rc_t
kv_file_link(kv_dir_t *dir, int fd, const char *name)
{
    int   rc, e;
    char  proc[KV_FILE_PROC_LEN];

    if (dir->named) {
        rc = close(fd);

        if (rc == 0) {
            rc = linkat(dir->fd, KV_FILE_TMP, dir->fd, name, 0);
        }

        e = errno;

        if (unlinkat(dir->fd, KV_FILE_TMP, 0) != 0 && rc == 0) {

            /* It has two names now, and the next block needs this one. */

            e = errno;
            (void) unlinkat(dir->fd, name, 0);
            rc = -1;
        }

    } else {
        snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);

        rc = linkat(AT_FDCWD, proc, dir->fd, name, AT_SYMLINK_FOLLOW);
        e = errno;

        if (close(fd) != 0 && rc == 0) {
            e = errno;
            (void) unlinkat(dir->fd, name, 0);
            rc = -1;
        }
    }

    if (rc == 0) {
        return KV_FILE_OK;
    }

    errno = e;

    return e == EEXIST ? KV_FILE_FOREIGN : KV_FILE_FAILED;
}


/* A regular file, or -1 and why not.  A FIFO or a link does no harm. */

static int
kv_file_open(const kv_dir_t *dir, const char *name, struct stat *st,
    kv_file_rc_t *rc)
{
    int  fd, e;

    fd = openat(dir->fd, name,
                O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

    if (fd == -1) {
        *rc = errno == ENOENT ? KV_FILE_NONE
              : errno == ELOOP || errno == ENXIO ? KV_FILE_FOREIGN
              : KV_FILE_FAILED;
        return -1;
    }

    if (fstat(fd, st) != 0) {
        e = errno;
        (void) close(fd);
        errno = e;
        *rc = KV_FILE_FAILED;
        return -1;
    }

    if (!S_ISREG(st->st_mode)) {
        (void) close(fd);
        *rc = KV_FILE_FOREIGN;
        return -1;
    }

    return fd;
}


/* `got` bytes of the header are there. */

static kv_file_rc_t
kv_file_check(const kv_dir_t *dir, const char *name, const kv_head_t *head,
    ssize_t got, const struct stat *st)
{
    char  expect[KV_FILE_NAME];

    if (st->st_size == 0) {
        return KV_FILE_BAD;
    }

    if (got < (ssize_t) sizeof(head->magic) || head->magic != KV_FILE_MAGIC) {
        return KV_FILE_FOREIGN;
    }

    if (got < KV_FILE_HEAD
        || head->version != KV_FILE_VERSION
        || head->head_size != KV_FILE_HEAD
        || head->head_sum
           != XXH3_64bits(head, offsetof(kv_head_t, head_sum))
        || head->fingerprint != dir->fingerprint
        || head->payload != dir->payload
        || (head->flags & ~(uint64_t) KV_FILE_FLAGS) != 0
        || (uint64_t) st->st_size != KV_FILE_HEAD + head->payload)
    {
        return KV_FILE_BAD;
    }

    kv_file_name(&head->key, expect);

    return strcmp(name, expect) == 0 ? KV_FILE_OK : KV_FILE_BAD;
}


kv_file_rc_t
kv_file_read(const kv_dir_t *dir, const kv_disk_key_t *key, void *buf)
{
    int            fd, e;
    char           name[KV_FILE_NAME];
    size_t         size;
    ssize_t        got;
    struct stat    st;
    kv_head_t     *head = buf;
    kv_file_rc_t   rc;

    kv_file_name(key, name);

    fd = kv_file_open(dir, name, &st, &rc);

    if (fd == -1) {
        return rc;
    }

    size = KV_FILE_HEAD + dir->payload;
    got = kv_file_get(fd, &st, buf, size);
    e = errno;
    (void) close(fd);

    if (got == -1) {
        errno = e;
        return KV_FILE_FAILED;
    }

    rc = kv_file_check(dir, name, head, got, &st);

    if (rc != KV_FILE_OK) {
        return rc;
    }

    if ((size_t) got != size
        || head->sum != XXH3_64bits(head + 1, dir->payload))
    {
        return KV_FILE_BAD;
    }

    return kv_disk_key_equal(&head->key, key) ? KV_FILE_OK : KV_FILE_OTHER;
}


kv_file_rc_t
kv_file_scan(const kv_dir_t *dir, const char *name, kv_head_t *head,
    int64_t *stamp, uint64_t *size)
{
    int           fd, e;
    ssize_t       got;
    struct stat   st;
    kv_file_rc_t  rc;

    *stamp = 0;
    *size = 0;

    fd = kv_file_open(dir, name, &st, &rc);

    if (fd == -1) {
        return rc;
    }

    if (st.st_mtim.tv_sec >= 0 && st.st_mtim.tv_sec < KV_FILE_LATEST) {
        *stamp = (int64_t) st.st_mtim.tv_sec * 1000000000
                 + st.st_mtim.tv_nsec;
    }

    *size = (uint64_t) st.st_blocks * 512;

    got = kv_file_get(fd, &st, head, KV_FILE_HEAD);
    e = errno;
    (void) close(fd);

    if (got == -1) {
        errno = e;
        return KV_FILE_FAILED;
    }

    return kv_file_check(dir, name, head, got, &st);
}
