/*
 * Tests of the disk tier: a directory, KV memory, blocks that tell what they
 * are.
 *
 * Block number n of tenant t is child of block n - 1 if n % CHAIN is not 0.
 * Its bytes follow from its key, so whoever has a key can tell whether memory
 * holds that block and no other.
 */

#ifndef UNIT_KV_DISK_UTIL_H
#define UNIT_KV_DISK_UTIL_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sched/kv_disk.h"
#include "unit/random.h"


#define PAYLOAD   5000               /* 512 + 5000 bytes are two pages */
#define FILE_SIZE 8192
#define CHAIN     8
#define MEMORY    64                 /* blocks of a rank */
#define RANKS     2
#define PRINT     UINT64_C(0x1122334455667788)

static char     dir_path[64];
static uint8_t  memory[RANKS][MEMORY][PAYLOAD];


static inline void
util_key(uint64_t n, uint64_t tenant, kv_disk_key_t *key)
{
    int  i;

    memset(key, 0, sizeof(kv_disk_key_t));

    key->tenant.lo = random_mix(tenant + 1);
    key->tenant.hi = tenant;
    key->hash.lo = random_mix(n + 77) ^ tenant;
    key->hash.hi = n;

    if (n % CHAIN != 0) {
        key->parent.lo = random_mix(n + 76) ^ tenant;
        key->parent.hi = n - 1;
    }

    for (i = 0; i < KV_BLOCK; i++) {
        key->ids[i] = (int32_t) (random_mix(n * 64 + (uint64_t) i) >> 40);
    }
}


static inline void
util_bytes(const kv_disk_key_t *key, uint8_t *bytes)
{
    size_t    i;
    uint64_t  x;

    x = key->hash.lo ^ key->tenant.lo;

    for (i = 0; i < PAYLOAD; i++) {
        bytes[i] = (uint8_t) (random_mix(x + i / 8) >> (i % 8 * 8));
    }
}


static inline int
util_is(const uint8_t *bytes, const kv_disk_key_t *key)
{
    uint8_t  want[PAYLOAD];

    util_bytes(key, want);

    return memcmp(bytes, want, PAYLOAD) == 0;
}


static void
util_read(void *ctx, uint32_t rank, int32_t block, void *dst)
{
    (void) ctx;
    memcpy(dst, memory[rank][block], PAYLOAD);
}


static void
util_write(void *ctx, uint32_t rank, int32_t block, const void *src)
{
    (void) ctx;
    memcpy(memory[rank][block], src, PAYLOAD);
}


static inline void
util_options(kv_disk_options_t *opt, uint64_t files)
{
    memset(opt, 0, sizeof(kv_disk_options_t));

    opt->dir = dir_path;
    opt->size = files * FILE_SIZE;
    opt->staging = 4 * FILE_SIZE;
    opt->fingerprint = PRINT;
    opt->block_size = PAYLOAD;
    opt->read = util_read;
    opt->write = util_write;
}


static inline int
util_make_dir(void **state)
{
    const char  *tmp;

    (void) state;

    tmp = getenv("TMPDIR");
    snprintf(dir_path, sizeof(dir_path), "%.40s/kv-XXXXXX",
             tmp != NULL ? tmp : "/tmp");

    return mkdtemp(dir_path) == NULL;
}


/* Files that `match` names (NULL: all but `lock`); removes them if asked. */

static inline unsigned
util_files(int (*match)(const char *), int and_remove)
{
    DIR            *dir;
    unsigned        n;
    struct dirent  *e;

    n = 0;
    dir = opendir(dir_path);

    if (dir == NULL) {
        return 0;
    }

    while ((e = readdir(dir)) != NULL) {

        if (e->d_name[0] == '.'
            || (match != NULL ? !match(e->d_name)
                              : strcmp(e->d_name, "lock") == 0))
        {
            continue;
        }

        n++;

        if (and_remove && unlinkat(dirfd(dir), e->d_name, 0) != 0) {
            (void) unlinkat(dirfd(dir), e->d_name, AT_REMOVEDIR);
        }
    }

    closedir(dir);

    return n;
}


static inline int
util_remove_dir(void **state)
{
    char  path[80];

    (void) state;

    util_files(NULL, 1);
    snprintf(path, sizeof(path), "%s/lock", dir_path);
    (void) unlink(path);

    return rmdir(dir_path) != 0 && errno != ENOENT;
}


/* What block files take, and the temporary one if that is its only name. */

static inline uint64_t
util_usage(void)
{
    DIR            *dir;
    uint64_t        sum;
    struct stat     st;
    struct dirent  *e;

    sum = 0;
    dir = opendir(dir_path);

    if (dir == NULL) {
        return 0;
    }

    while ((e = readdir(dir)) != NULL) {
        if ((kv_file_is_name(e->d_name) || kv_file_is_temporary(e->d_name))
            && fstatat(dirfd(dir), e->d_name, &st, 0) == 0
            && (st.st_nlink == 1 || !kv_file_is_temporary(e->d_name)))
        {
            sum += ((uint64_t) st.st_size + 4095) / 4096 * 4096;
        }
    }

    closedir(dir);

    return sum;
}


/* Every other block has the drafting layer's keys. */

static inline uint64_t
util_flags(const kv_disk_key_t *key)
{
    return key->ids[0] % 2 != 0 ? KV_FILE_DRAFTED : 0;
}


/* Stores block n from memory, which is no block's afterwards. */

static inline int
util_store(kv_disk_t *d, uint64_t n, uint64_t tenant)
{
    int            rc;
    uint32_t       rank;
    kv_disk_key_t  key;

    rank = (uint32_t) n % RANKS;
    util_key(n, tenant, &key);
    util_bytes(&key, memory[rank][0]);

    rc = kv_disk_store(d, rank, 0, &key, util_flags(&key));
    memset(memory[rank][0], 0xee, PAYLOAD);

    return rc;
}


/*
 * Reads blocks first … first + n - 1, at most MEMORY, into a rank's memory;
 * how many came, or -1 if one is not what its key says.
 */

static inline int
util_restore(kv_disk_t *d, uint64_t first, uint32_t n, uint64_t tenant,
    uint32_t rank)
{
    int             rc;
    uint32_t        i;
    int32_t         block[MEMORY];
    uint64_t        flags[MEMORY];
    kv_restore_t    job;
    kv_disk_key_t   key[MEMORY];

    memset(&job, 0, sizeof(job));

    for (i = 0; i < n; i++) {
        util_key(first + i, tenant, &key[i]);
        block[i] = (int32_t) (MEMORY - 1 - i);
        memset(memory[rank][block[i]], 0xee, PAYLOAD);
    }

    job.rank = rank;
    job.n = n;
    job.key = key;
    job.block = block;
    job.flags = flags;

    kv_disk_restore(d, &job);
    kv_disk_settle(d);

    if (kv_disk_done(d) != &job || job.n_ok > n) {
        return -1;
    }

    rc = (int) job.n_ok;

    for (i = 0; i < job.n_ok; i++) {
        if (!util_is(memory[rank][block[i]], &key[i])
            || flags[i] != util_flags(&key[i]))
        {
            rc = -1;
        }
    }

    return rc;
}


static inline int
util_find(kv_disk_t *d, uint64_t n, uint64_t tenant)
{
    kv_disk_key_t  key;

    util_key(n, tenant, &key);

    return kv_disk_find(d, &key);
}

#endif /* UNIT_KV_DISK_UTIL_H */
