/*
 * One KV block in one file.
 *
 * NAME  hash and tenant in hexadecimal: 32 digits, '-', 32 digits, ".kv".
 *
 * FORMAT  (numbers as this machine has them)
 *
 *     offset   0  kv_head_t: what it is, whose, under which parent, the ids
 *            512  the payload, `payload` bytes, as the backend gave it
 *
 * `sum` covers the payload, `head_sum` all that precedes it; so a header can
 * be trusted without its payload, and nothing is outside of both.  `flags` are
 * no part of the name: they say what else the payload is good for.
 *
 * WRITER  one process, which holds a lock on the directory.  The file is made
 * without a name (O_TMPFILE), or as kv-….tmp where that cannot be, and gets
 * its name when it is complete; a name that is taken is left as it is.
 *
 * RECOVERY  A file with our magic that does not fit in any way is removed and
 * its block computed again; it may have been written by another version or
 * for another model, been cut off, or decayed.  There is no fsync(): after a
 * power cut a file can be short or empty, which is the same case.  A file that
 * does not start with the magic is not ours and is never touched, except an
 * empty one under such a name, and kv-….tmp.
 */

#ifndef SCHED_KV_DISK_FILE_H
#define SCHED_KV_DISK_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "sched/kv_cache.h"


#define KV_FILE_MAGIC    UINT64_C(0x316b636f6c62766b)    /* "kvblock1" */
#define KV_FILE_VERSION  1
#define KV_FILE_HEAD     512
#define KV_FILE_NAME     69          /* with the final NUL */

/* `flags` of a block. */
#define KV_FILE_DRAFTED  1           /* with all of the drafting layer's keys */
#define KV_FILE_FLAGS    KV_FILE_DRAFTED

/*
 * What a block is.  The parent, known here by its hash alone, is a block that
 * was itself confirmed before this one is asked for.
 */

typedef struct {
    kv_key_t  tenant;
    kv_key_t  hash;                  /* of all ids up to the block's end */
    kv_key_t  parent;                /* the hash of the block before */
    int32_t   ids[KV_BLOCK];
} kv_disk_key_t;

typedef struct {
    uint64_t  magic;
    uint32_t  version;
    uint32_t  head_size;
    uint64_t  fingerprint;           /* of all that decides the contents */
    uint64_t  payload;               /* bytes */

    kv_disk_key_t  key;

    uint64_t  flags;                 /* files of old have none */
    uint64_t  reserved[19];
    uint64_t  sum;                   /* XXH3 of the payload */
    uint64_t  head_sum;              /* XXH3 of the header before it */
} kv_head_t;

_Static_assert(sizeof(kv_head_t) == KV_FILE_HEAD, "kv_head_t is the format");

/* A directory of such files. */

typedef struct {
    int       fd;                    /* of the directory */
    int       named;                 /* no O_TMPFILE here */
    uint64_t  fingerprint;
    size_t    payload;
} kv_dir_t;

typedef enum {
    KV_FILE_OK = 0,
    KV_FILE_NONE,                    /* no such file */
    KV_FILE_OTHER,                   /* a sound one, of another block */
    KV_FILE_BAD,                     /* ours, to be removed */
    KV_FILE_FOREIGN,                 /* not ours, to be left alone */
    KV_FILE_FAILED                   /* errno */
} kv_file_rc_t;


/* Bytes that a file takes on disk. */
uint64_t kv_file_size(size_t payload);

void kv_file_name(const kv_disk_key_t *key, char name[KV_FILE_NAME]);

/* Whether a name is one that kv_file_name() gives, or a temporary one. */
int kv_file_is_name(const char *name);
int kv_file_is_temporary(const char *name);

int kv_disk_key_equal(const kv_disk_key_t *a, const kv_disk_key_t *b);

/*
 * Writes a block.  `buf` is KV_FILE_HEAD bytes of room, which the header is
 * made in, and the payload; `flags` are KV_FILE_….  `stamp`, nanoseconds since
 * 1970, becomes the file's time.  KV_FILE_OK, KV_FILE_FOREIGN (the name is taken), or
 * KV_FILE_FAILED with errno and nothing left behind.
 */
kv_file_rc_t kv_file_write(kv_dir_t *dir, const kv_disk_key_t *key,
    uint64_t flags, void *buf, int64_t stamp);

/*
 * Reads a block, header and payload, into `buf`, and checks all of it: it is
 * KV_FILE_OK only if it is this very block.
 */
kv_file_rc_t kv_file_read(const kv_dir_t *dir, const kv_disk_key_t *key,
    void *buf);

/*
 * Reads and checks the header of the file `name`; KV_FILE_OK: `head` is
 * valid, the file is as long as it says and named as it must be.  `stamp` is
 * its time, `size` what it takes on disk, both unless there is no such file.
 */
kv_file_rc_t kv_file_scan(const kv_dir_t *dir, const char *name,
    kv_head_t *head, int64_t *stamp, uint64_t *size);

#endif /* SCHED_KV_DISK_FILE_H */
