/*
 * The disk tier: blocks go out and come back, across a restart too; the size
 * limit and the order of use against a model of both; what else lies in the
 * directory; who may have it; the end of an engine.
 *
 * LONG=1 is 20 times longer.
 */

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sched/kv_disk_int.h"
#include "unit/kv_disk_util.h"


static char  last_log[1024];
static int   n_warnings;
static int   n_notices;


static void
on_log(int warning, const char *message)
{
    snprintf(last_log, sizeof(last_log), "%s", message);
    n_warnings += warning;
    n_notices += !warning;
}


static kv_disk_t *
open_files(uint64_t files)
{
    char                err[KV_DISK_ERR_LEN];
    kv_disk_t          *d;
    kv_disk_options_t   opt;

    util_options(&opt, files);
    opt.log = on_log;
    d = kv_disk_open(&opt, err);

    if (d == NULL) {
        fail_msg("%s", err);
    }

    kv_disk_settle(d);

    return d;
}


static void
store_all(kv_disk_t *d, uint64_t first, uint64_t n, uint64_t tenant)
{
    uint64_t  i;

    for (i = first; i < first + n; i++) {
        assert_int_equal(util_store(d, i, tenant), 1);
        kv_disk_settle(d);
    }
}


static void
test_round(void **state)
{
    uint64_t          i;
    kv_disk_t        *d;
    kv_disk_stats_t   st;

    (void) state;

    d = open_files(100);
    store_all(d, 0, 24, 1);

    for (i = 0; i < 24; i++) {
        assert_true(util_find(d, i, 1));
        assert_false(util_find(d, i, 2));
        assert_false(util_find(d, i + 24, 1));
    }

    /* Any rank may have them. */

    assert_int_equal(util_restore(d, 0, 24, 1, 0), 24);
    assert_int_equal(util_restore(d, 8, 16, 1, 1), 16);
    assert_int_equal(util_restore(d, 8, 16, 2, 1), 0);
    assert_int_equal(util_restore(d, 20, 10, 1, 0), 4);

    kv_disk_stats(d, &st);
    assert_int_equal(st.stored, 24);
    assert_int_equal(st.restored, 44);
    assert_int_equal(st.missed, 22);
    assert_int_equal(st.files, 24);
    assert_int_equal(st.used, 24 * FILE_SIZE);
    assert_int_equal(util_usage(), 24 * FILE_SIZE);
    assert_int_equal(util_files(NULL, 0), 24);
    assert_true(st.read_us > 0);

    /* Again: it is there already. */

    store_all(d, 0, 8, 1);
    kv_disk_stats(d, &st);
    assert_int_equal(st.stored, 24);

    kv_disk_close(d);

    d = open_files(100);
    kv_disk_stats(d, &st);
    assert_int_equal(st.files, 24);
    assert_true(st.ready);
    assert_int_equal(util_restore(d, 0, 24, 1, 1), 24);
    kv_disk_close(d);

    assert_int_equal(n_warnings, 0);
}


/* Another block of the same tenant and hash: not that one, and it stays. */

static void
test_collision(void **state)
{
    kv_disk_t      *d;
    int32_t         block;
    uint64_t        flags;
    kv_restore_t    job;
    kv_disk_key_t   key, twin;

    (void) state;

    d = open_files(100);
    util_key(5, 1, &key);
    twin = key;
    twin.ids[63]++;

    assert_int_equal(util_store(d, 5, 1), 1);
    assert_false(kv_disk_find(d, &twin));

    util_bytes(&twin, memory[0][0]);
    assert_int_equal(kv_disk_store(d, 0, 0, &twin, 0), 0);
    kv_disk_settle(d);

    block = 3;
    memset(&job, 0, sizeof(job));
    job.n = 1;
    job.key = &twin;
    job.block = &block;
    job.flags = &flags;

    kv_disk_restore(d, &job);
    kv_disk_settle(d);
    assert_ptr_equal(kv_disk_done(d), &job);
    assert_null(kv_disk_done(d));
    assert_int_equal(job.n_ok, 0);

    assert_int_equal(util_restore(d, 5, 1, 1, 0), 1);
    kv_disk_close(d);
}


/*
 * The model: numbers in order of use.  After every operation the directory
 * holds what the model does, and never more than the limit.
 */

#define MODEL  40

static uint64_t  order[MODEL];       /* oldest first */
static unsigned  n_order;


static int
model_at(uint64_t n)
{
    unsigned  i;

    for (i = 0; i < n_order; i++) {
        if (order[i] == n) {
            return (int) i;
        }
    }

    return -1;
}


static void
model_use(uint64_t n, unsigned limit)
{
    int  at;

    at = model_at(n);

    if (at == -1 && n_order == limit) {
        at = 0;
    }

    if (at != -1) {
        memmove(&order[at], &order[at + 1],
                (n_order - (unsigned) at - 1) * sizeof(uint64_t));
        n_order--;
    }

    order[n_order++] = n;
}


static void
test_limit(void **state)
{
    int               got, want;
    unsigned          i, limit, rounds, n;
    uint64_t          rng, first;
    kv_disk_t        *d;
    kv_disk_stats_t   st;

    (void) state;

    rng = 1;
    limit = 17;
    n_order = 0;
    rounds = getenv("LONG") != NULL ? 60000 : 3000;
    d = open_files(limit);

    for (i = 0; i < rounds; i++) {

        first = random_next(&rng) % 60;

        switch (random_next(&rng) % 8) {

        case 0:                      /* another engine, another limit */
            if (random_next(&rng) % 8 == 0) {
                kv_disk_close(d);
                limit = 1 + (unsigned) (random_next(&rng) % MODEL);
                d = open_files(limit);

                while (n_order > limit) {
                    memmove(order, order + 1, --n_order * sizeof(uint64_t));
                }
            }
            break;

        case 1:
        case 2:
            n = 1 + (unsigned) (random_next(&rng) % 8);

            for (want = 0; want < (int) n; want++) {
                if (model_at(first + (unsigned) want) == -1) {
                    break;
                }
            }

            got = util_restore(d, first, n, 7, (uint32_t) first % RANKS);
            assert_int_equal(got, want);

            while (want-- > 0) {
                model_use(first + (unsigned) want, limit);
            }
            break;

        default:
            assert_int_equal(util_store(d, first, 7), 1);
            kv_disk_settle(d);
            model_use(first, limit);
        }

        assert_true(util_usage() <= limit * FILE_SIZE);

        if (i % 16 == 0) {
            kv_disk_stats(d, &st);
            assert_int_equal(st.files, n_order);
            assert_int_equal(st.used, util_usage());

            for (first = 0; first < 60; first++) {
                assert_int_equal(util_find(d, first, 7),
                                 model_at(first) != -1);
            }
        }
    }

    kv_disk_close(d);
    assert_int_equal(n_warnings, 0);
}


static void
put(const char *name, const void *bytes, size_t size)
{
    int   fd;
    char  path[256];

    snprintf(path, sizeof(path), "%s/%s", dir_path, name);
    fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_int_not_equal(fd, -1);
    assert_int_equal(write(fd, bytes, size), size);
    close(fd);
}


/* Whatever is not ours survives; whatever is ours and useless does not. */

static void
test_company(void **state)
{
    char               name[KV_FILE_NAME], path[200], err[KV_DISK_ERR_LEN];
    kv_disk_t         *d;
    kv_disk_key_t      key;
    kv_disk_stats_t    st;
    kv_disk_options_t  opt;

    (void) state;

    d = open_files(100);
    store_all(d, 0, 10, 1);
    kv_disk_close(d);

    put("notes.txt", "mine", 4);
    put("kv-block.tmp", "cut", 3);

    util_key(3, 1, &key);            /* somebody's file under our name */
    kv_file_name(&key, name);
    put(name, "something else", 14);

    util_key(4, 1, &key);            /* cut off */
    kv_file_name(&key, name);
    snprintf(path, sizeof(path), "%s/%s", dir_path, name);
    assert_int_equal(truncate(path, 3000), 0);

    util_key(5, 1, &key);            /* nothing came to be written */
    kv_file_name(&key, name);
    put(name, "", 0);

    util_key(90, 1, &key);           /* a link out of the directory */
    kv_file_name(&key, name);
    snprintf(path, sizeof(path), "%s/%s", dir_path, name);
    assert_int_equal(symlink("/etc/passwd", path), 0);

    d = open_files(100);
    kv_disk_stats(d, &st);
    assert_int_equal(st.files, 7);
    assert_int_equal(st.bad, 2);
    assert_int_equal(util_files(NULL, 0), 7 + 3);
    assert_int_equal(util_files(kv_file_is_temporary, 0), 0);

    assert_false(util_find(d, 3, 1));
    assert_false(util_find(d, 4, 1));
    assert_int_equal(util_restore(d, 0, 10, 1, 0), 3);
    assert_int_equal(util_restore(d, 90, 1, 1, 0), 0);

    /* Computed again and kept again, but not over what is not ours. */

    assert_int_equal(util_store(d, 4, 1), 1);
    assert_int_equal(util_store(d, 3, 1), 1);
    assert_int_equal(util_store(d, 90, 1), 1);
    kv_disk_settle(d);
    assert_true(util_find(d, 4, 1));
    assert_false(util_find(d, 3, 1));
    assert_false(util_find(d, 90, 1));
    kv_disk_close(d);

    /* Another model's: all of them go. */

    util_options(&opt, 100);
    opt.fingerprint++;
    d = kv_disk_open(&opt, err);
    assert_non_null(d);
    kv_disk_settle(d);
    kv_disk_stats(d, &st);
    assert_int_equal(st.files, 0);
    assert_int_equal(st.bad, 8);
    assert_int_equal(util_files(NULL, 0), 3);
    assert_int_equal(util_store(d, 1, 1), 1);
    kv_disk_close(d);

    assert_int_equal(n_warnings, 0);
}


/* A file that decays while the engine runs. */

static void
test_decay(void **state)
{
    int               fd;
    char              name[KV_FILE_NAME], path[200];
    kv_disk_t        *d;
    kv_disk_key_t     key;
    kv_disk_stats_t   st;

    (void) state;

    d = open_files(100);
    store_all(d, 0, 8, 1);

    util_key(2, 1, &key);
    kv_file_name(&key, name);
    snprintf(path, sizeof(path), "%s/%s", dir_path, name);
    fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "x", 1, KV_FILE_HEAD + 1000), 1);
    close(fd);

    util_key(1, 1, &key);
    kv_file_name(&key, name);
    snprintf(path, sizeof(path), "%s/%s", dir_path, name);
    assert_int_equal(unlink(path), 0);

    assert_int_equal(util_restore(d, 2, 4, 1, 0), 0);
    assert_int_equal(util_restore(d, 0, 4, 1, 0), 1);
    assert_false(util_find(d, 1, 1));
    assert_false(util_find(d, 2, 1));
    assert_true(util_find(d, 3, 1));

    kv_disk_stats(d, &st);
    assert_int_equal(st.files, 6);
    assert_int_equal(st.bad, 1);
    assert_int_equal(util_usage(), 6 * FILE_SIZE);

    store_all(d, 1, 2, 1);
    assert_int_equal(util_restore(d, 0, 8, 1, 0), 8);
    kv_disk_close(d);
    assert_int_equal(n_warnings, 0);
}


static void
test_owner(void **state)
{
    char                err[KV_DISK_ERR_LEN];
    kv_disk_t          *d;
    kv_disk_options_t   opt;

    (void) state;

    d = open_files(10);

    util_options(&opt, 10);
    assert_null(kv_disk_open(&opt, err));
    assert_non_null(strstr(err, dir_path));
    assert_non_null(strstr(err, "another engine uses the directory"));

    kv_disk_close(d);
    d = open_files(10);
    kv_disk_close(d);

    opt.dir = "/proc/nowhere/kv";
    assert_null(kv_disk_open(&opt, err));
    assert_non_null(strstr(err, "cannot open the directory"));

    opt.dir = "/etc/passwd";
    assert_null(kv_disk_open(&opt, err));
    assert_non_null(strstr(err, "Not a directory"));

    opt.dir = dir_path;
    opt.size = FILE_SIZE - 1;
    assert_null(kv_disk_open(&opt, err));
    assert_non_null(strstr(err, "8191 bytes have no room"));
}


/* At the end: the last used first, up to the limit, or until it is time. */

static void
test_keep(void **state)
{
    int                rc;
    uint64_t           i, n;
    kv_disk_t         *d;
    kv_disk_key_t      key;
    kv_disk_stats_t    st;

    (void) state;

    d = open_files(20);
    store_all(d, 100, 15, 1);

    for (i = 0, n = 0; i < 40; i++) {
        util_key(i, 1, &key);
        util_bytes(&key, memory[0][0]);

        rc = kv_disk_keep(d, 0, 0, &key, util_flags(&key),
                          kv_disk_now() + 10000000);

        if (rc == -1) {
            break;
        }

        n += (uint64_t) rc;
    }

    assert_in_range(n, 20, 20 + 4);  /* staged is not written yet */
    kv_disk_stop(d, kv_disk_now() + 10000000);
    kv_disk_stats(d, &st);
    assert_int_equal(st.files, 20);
    kv_disk_close(d);

    /* The order too outlives the engine: 19 was used least. */

    d = open_files(20);
    assert_int_equal(util_restore(d, 0, 40, 1, 0), 20);
    kv_disk_close(d);

    d = open_files(13);
    for (i = 0; i < 20; i++) {
        assert_int_equal(util_find(d, i, 1), i < 13);
    }

    /* Those that are there are only used again. */

    for (i = 12; i-- > 0; ) {
        util_key(i, 1, &key);
        assert_int_equal(kv_disk_keep(d, 0, 0, &key, util_flags(&key),
                                      kv_disk_now() + 10000000), 1);
    }

    /* No time: nothing. */

    util_key(500, 1, &key);
    assert_int_equal(kv_disk_keep(d, 0, 0, &key, 0, kv_disk_now() - 1), -1);
    kv_disk_close(d);

    d = open_files(5);
    for (i = 0; i < 20; i++) {
        assert_int_equal(util_find(d, i, 1), i > 6 && i < 12);
    }

    kv_disk_close(d);
    assert_int_equal(n_warnings, 0);
}


/* Staged and not written when time is up: the engine does not wait. */

static void
test_stop_late(void **state)
{
    kv_disk_t        *d;
    kv_disk_stats_t   st;

    (void) state;

    d = open_files(20);
    assert_int_equal(util_store(d, 1, 1), 1);
    assert_int_equal(util_store(d, 2, 1), 1);
    kv_disk_stop(d, 0);
    assert_int_equal(util_store(d, 3, 1), 0);
    assert_false(util_find(d, 1, 1));
    kv_disk_stats(d, &st);
    assert_int_equal(st.files, util_files(NULL, 0));
    kv_disk_close(d);
}


/*
 * A step thread and many jobs at once: stores, asks, gives up.  Jobs write to
 * blocks that nobody else uses, and what they say is there is there.
 */

#define JOBS  6

static pthread_mutex_t  wake_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t   wake_cond = PTHREAD_COND_INITIALIZER;
static unsigned         woken;


static void
on_wake(void *ctx)
{
    (void) ctx;

    pthread_mutex_lock(&wake_lock);
    woken++;
    pthread_cond_signal(&wake_cond);
    pthread_mutex_unlock(&wake_lock);
}


static void
test_traffic(void **state)
{
    char                err[KV_DISK_ERR_LEN];
    int                 free_jobs;
    unsigned            i, k, n, rounds, aborted, seen;
    int32_t             block[JOBS][8];
    uint64_t            rng, first, restored, flags[JOBS][8];
    kv_disk_t          *d;
    kv_restore_t        job[JOBS], *done;
    kv_disk_key_t       key[JOBS][8];
    kv_disk_stats_t     st;
    kv_disk_options_t   opt;

    (void) state;

    util_options(&opt, 64);
    opt.wake = on_wake;
    opt.log = on_log;
    d = kv_disk_open(&opt, err);
    assert_non_null(d);

    rounds = getenv("LONG") != NULL ? 100000 : 5000;
    memset(job, 0, sizeof(job));
    rng = 3;
    seen = 0;
    restored = 0;
    aborted = 0;
    free_jobs = (1 << JOBS) - 1;

    for (i = 0; i < JOBS; i++) {
        job[i].key = key[i];
        job[i].block = block[i];
        job[i].flags = flags[i];
        job[i].data = &job[i];

        for (k = 0; k < 8; k++) {
            block[i][k] = (int32_t) (8 + 8 * i + k);
        }
    }

    for (i = 0; i < rounds; i++) {

        for (k = 0; k < 3; k++) {
            (void) util_store(d, random_next(&rng) % 96, 1);
        }

        k = (unsigned) (random_next(&rng) % JOBS);

        if ((free_jobs & 1 << k) == 0) {
            if (random_next(&rng) % 4 == 0) {
                atomic_store(&job[k].abort, 1);
                aborted++;
            }

        } else {
            free_jobs &= ~(1 << k);
            first = random_next(&rng) % 96;
            job[k].rank = (uint32_t) (random_next(&rng) % RANKS);
            job[k].n = 1 + (uint32_t) (random_next(&rng) % 8);
            atomic_store(&job[k].abort, 0);

            for (n = 0; n < job[k].n; n++) {
                util_key(first + n, 1, &key[k][n]);
            }

            kv_disk_restore(d, &job[k]);
        }

        if (free_jobs == 0) {
            pthread_mutex_lock(&wake_lock);

            while (woken == seen) {
                pthread_cond_wait(&wake_cond, &wake_lock);
            }

            seen = woken;
            pthread_mutex_unlock(&wake_lock);
        }

        while ((done = kv_disk_done(d)) != NULL) {
            assert_ptr_equal(done->data, done);
            free_jobs |= 1 << (done - job);
            restored += done->n_ok;

            for (n = 0; n < done->n_ok; n++) {
                assert_true(util_is(memory[done->rank][done->block[n]],
                                    &done->key[n]));
                assert_int_equal(done->flags[n], util_flags(&done->key[n]));
            }
        }
    }

    kv_disk_stop(d, 0);

    while ((done = kv_disk_done(d)) != NULL) {
        free_jobs |= 1 << (done - job);
    }

    assert_int_equal(free_jobs, (1 << JOBS) - 1);
    kv_disk_stats(d, &st);
    assert_true(restored > 100 && st.restored >= restored);
    assert_true(st.stored > 100 && st.dropped > 100);
    assert_true(st.used <= 64 * FILE_SIZE && st.used == util_usage());
    assert_true(aborted > 0);
    kv_disk_close(d);
    assert_int_equal(n_warnings, 0);
}


/* Many files are looked through at the start: how long that takes. */

static void
test_many(void **state)
{
    unsigned           i, n;
    uint64_t           began;
    uint8_t            buf[KV_FILE_HEAD + PAYLOAD];
    kv_dir_t           dir;
    kv_disk_t         *d;
    kv_disk_key_t      key;
    kv_disk_stats_t    st;

    (void) state;

    n = getenv("LONG") != NULL ? 100000 : 2000;

    memset(&dir, 0, sizeof(dir));
    dir.fd = open(dir_path, O_RDONLY | O_DIRECTORY);
    dir.fingerprint = PRINT;
    dir.payload = PAYLOAD;

    for (i = 0; i < n; i++) {
        util_key(i, 1, &key);
        assert_int_equal(kv_file_write(&dir, &key, util_flags(&key), buf,
                                       (int64_t) i * 1000), KV_FILE_OK);
    }

    close(dir.fd);

    began = kv_disk_now();
    d = open_files(n - 100);
    print_message("%u files in %.1f ms\n", n,
                  (double) (kv_disk_now() - began) / 1000);

    kv_disk_stats(d, &st);
    assert_int_equal(st.files, n - 100);

    for (i = 0; i < n; i++) {
        assert_int_equal(util_find(d, i, 1), i >= 100);
    }

    kv_disk_close(d);
}


static int
setup(void **state)
{
    n_warnings = 0;
    n_notices = 0;

    return util_make_dir(state);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(test_round, setup, util_remove_dir),
        cmocka_unit_test_setup_teardown(test_collision, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_limit, setup, util_remove_dir),
        cmocka_unit_test_setup_teardown(test_company, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_decay, setup, util_remove_dir),
        cmocka_unit_test_setup_teardown(test_owner, setup, util_remove_dir),
        cmocka_unit_test_setup_teardown(test_keep, setup, util_remove_dir),
        cmocka_unit_test_setup_teardown(test_stop_late, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_traffic, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_many, setup, util_remove_dir)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
