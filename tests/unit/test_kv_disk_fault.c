/*
 * The disk tier on a bad disk, and dying.
 *
 * The calls that reach the disk are defined here, so the library's go through
 * them: each passes on to the kernel, except the one that is to fail.  A
 * scenario is run once to count the calls, then once for each call and kind of
 * failure.  Whatever fails: no client's block is wrong, nothing hangs, the
 * limit holds, nothing is left behind, there is one warning, and once the disk
 * is well the tier is too.
 *
 * Then processes that write are killed, and the next one finds only whole
 * blocks.
 *
 * LONG=1 kills 20 times more often.
 */

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "sched/kv_disk_int.h"
#include "unit/kv_disk_util.h"


#define LIMIT  12                    /* files */

typedef enum {
    NOTHING = 0,
    ERRNO,                           /* fails with `fault_errno` */
    SHORT,                           /* does half of it */
    NONE                             /* says 0 bytes */
} fault_t;

static atomic_uint    n_calls;
static atomic_uint    fault_at;      /* the call that fails, from 1 */
static atomic_uint    fault_n;       /* and how many from it on */
static atomic_int     fault_kind;
static atomic_int     fault_errno;
static atomic_int     no_tmpfile;
static atomic_int     over_limit;
static atomic_ulong   limit_bytes;
static __thread int   inside;        /* the test's own calls do not count */


/* What is to become of this call. */

static fault_t
fault(void)
{
    unsigned  n, at;

    if (inside) {
        return NOTHING;
    }

    n = atomic_fetch_add(&n_calls, 1) + 1;
    at = atomic_load(&fault_at);

    if (at == 0 || n < at || n - at >= atomic_load(&fault_n)) {
        return NOTHING;
    }

    errno = atomic_load(&fault_errno);

    return (fault_t) atomic_load(&fault_kind);
}


int
openat(int dir, const char *path, int flags, ...)
{
    va_list  args;
    mode_t   mode;

    va_start(args, flags);
    mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(args, mode_t) : 0;
    va_end(args);

    if ((flags & O_TMPFILE) == O_TMPFILE && atomic_load(&no_tmpfile)) {
        errno = EOPNOTSUPP;
        return -1;
    }

    if (fault() == ERRNO) {
        return -1;
    }

    return (int) syscall(SYS_openat, dir, path, flags, mode);
}


int
open(const char *path, int flags, ...)
{
    va_list  args;
    mode_t   mode;

    va_start(args, flags);
    mode = (flags & O_CREAT) != 0 ? va_arg(args, mode_t) : 0;
    va_end(args);

    return (int) syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}


ssize_t
write(int fd, const void *buf, size_t n)
{
    fault_t  f;

    if (n < KV_FILE_HEAD) {          /* cmocka's, not a block */
        return syscall(SYS_write, fd, buf, n);
    }

    f = fault();

    if (f == ERRNO) {
        return -1;
    }

    if (f == NONE) {
        return 0;
    }

    return syscall(SYS_write, fd, buf, f == SHORT ? n / 2 : n);
}


ssize_t
pread(int fd, void *buf, size_t n, off_t at)
{
    fault_t  f;

    f = fault();

    if (f == ERRNO) {
        return -1;
    }

    if (f == NONE) {
        return 0;
    }

    return syscall(SYS_pread64, fd, buf, f == SHORT ? n / 2 : n, at);
}


/* A file has its name: now the directory is at its fullest. */

int
linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    int  rc, was;

    if (fault() == ERRNO) {
        return -1;
    }

    rc = (int) syscall(SYS_linkat, from_dir, from, to_dir, to, flags);

    was = inside;
    inside = 1;

    if (limit_bytes != 0 && util_usage() > limit_bytes) {
        atomic_store(&over_limit, 1);
    }

    inside = was;

    return rc;
}


int
unlinkat(int dir, const char *path, int flags)
{
    if (fault() == ERRNO) {
        return -1;
    }

    return (int) syscall(SYS_unlinkat, dir, path, flags);
}


int
futimens(int fd, const struct timespec ts[2])
{
    if (fault() == ERRNO) {
        return -1;
    }

    return (int) syscall(SYS_utimensat, fd, NULL, ts, 0);
}


int
fstat(int fd, struct stat *st)
{
    if (fault() == ERRNO) {
        return -1;
    }

    return (int) syscall(SYS_fstat, fd, st);
}


int
flock(int fd, int op)
{
    if (fault() == ERRNO) {
        return -1;
    }

    return (int) syscall(SYS_flock, fd, op);
}


/* --- scenarios --------------------------------------------------------- */

static atomic_int  n_warnings;
static atomic_int  n_notices;
static char        last_log[1024];


static void
on_log(int warning, const char *message)
{
    snprintf(last_log, sizeof(last_log), "%s", message);
    atomic_fetch_add(warning ? &n_warnings : &n_notices, 1);
}


static kv_disk_t *
open_tier(uint64_t retry_us, char *err)
{
    kv_disk_t          *d;
    kv_disk_options_t   opt;

    util_options(&opt, LIMIT);
    opt.log = on_log;
    opt.retry_us = retry_us;

    d = kv_disk_open(&opt, err);

    if (d != NULL) {
        kv_disk_settle(d);
    }

    return d;
}


static void
no_fault(void)
{
    atomic_store(&fault_at, 0);
}


static void
arm(unsigned at, unsigned n, fault_t kind, int e)
{
    atomic_store(&n_calls, 0);
    atomic_store(&fault_n, n);
    atomic_store(&fault_kind, kind);
    atomic_store(&fault_errno, e);
    atomic_store(&fault_at, at);
}


/*
 * An engine with a full directory that stores, reads and stops.  Returns 0 if
 * it could not be opened, with a reason then.
 */

static int
life(void)
{
    char              err[KV_DISK_ERR_LEN];
    uint64_t          i;
    kv_disk_t        *d;
    kv_disk_stats_t   st;

    err[0] = '\0';
    d = open_tier(3600000000, err);

    if (d == NULL) {
        assert_non_null(strstr(err, dir_path));
        return 0;
    }

    for (i = 8; i < 8 + 6; i++) {
        (void) util_store(d, i, 1);
        kv_disk_settle(d);
    }

    assert_true(util_restore(d, 8, 6, 1, 0) >= 0);
    assert_true(util_restore(d, 0, 4, 1, 1) >= 0);

    kv_disk_stats(d, &st);
    assert_true(st.used <= LIMIT * FILE_SIZE);
    kv_disk_close(d);

    return 1;
}


/* What any engine leaves: whole blocks, the limit kept, no odds and ends. */

static void
check_dir(void)
{
    int               n;
    char              err[KV_DISK_ERR_LEN];
    uint64_t          i;
    unsigned          files;
    kv_disk_t        *d;
    kv_disk_stats_t   st;

    no_fault();

    assert_true(util_usage() <= LIMIT * FILE_SIZE);

    d = open_tier(0, err);
    assert_non_null(d);
    kv_disk_stats(d, &st);
    files = st.files;
    assert_int_equal(util_files(kv_file_is_name, 0), files);
    assert_int_equal(util_files(NULL, 0), files);

    for (i = 0, n = 0; i < 200; i++) {
        if (util_find(d, i, 1)) {
            assert_int_equal(util_restore(d, i, 1, 1, 0), 1);
            n++;
        }
    }

    assert_int_equal(n, files);

    assert_int_equal(util_store(d, 199, 1), 1);
    kv_disk_settle(d);
    assert_int_equal(util_restore(d, 199, 1, 1, 0), 1);
    kv_disk_close(d);
}


/* LIMIT - 2 files: the scenario fills it and goes beyond. */

static void
prepare(void)
{
    char        err[KV_DISK_ERR_LEN];
    uint64_t    i;
    kv_disk_t  *d;

    inside = 1;
    util_files(NULL, 1);
    inside = 0;

    d = open_tier(0, err);
    assert_non_null(d);

    for (i = 0; i < LIMIT - 2; i++) {
        assert_int_equal(util_store(d, i, 1), 1);
        kv_disk_settle(d);
    }

    kv_disk_close(d);
    atomic_store(&n_warnings, 0);
    atomic_store(&n_notices, 0);
}


static const struct {
    fault_t    kind;
    unsigned   n;                    /* calls in a row */
    int        e;
} faults[] = {
    { ERRNO, 1, ENOSPC },
    { ERRNO, 1, EIO },
    { ERRNO, 1, EACCES },
    { ERRNO, 1, EINTR },
    { ERRNO, 1, EMFILE },
    { ERRNO, UINT32_MAX, ENOSPC },
    { ERRNO, UINT32_MAX, EIO },
    { ERRNO, UINT32_MAX, EROFS },
    { SHORT, 1, 0 },
    { NONE, 1, 0 },
    { SHORT, 3, 0 },
    { NONE, UINT32_MAX, 0 }
};


static void
run_faults(void)
{
    unsigned  i, k, calls, failed;

    limit_bytes = LIMIT * FILE_SIZE;

    prepare();
    arm(0, 0, NOTHING, 0);
    assert_true(life());
    calls = atomic_load(&n_calls);
    assert_true(calls > 50);
    assert_int_equal(n_warnings, 0);
    check_dir();

    failed = 0;

    for (k = 0; k < sizeof(faults) / sizeof(faults[0]); k++) {
        for (i = 1; i <= calls; i++) {
            prepare();
            arm(i, faults[k].n, faults[k].kind, faults[k].e);
            failed += !life();
            no_fault();

            if (n_warnings > 1 || over_limit
                || util_usage() > LIMIT * FILE_SIZE)
            {
                fail_msg("failure %u (errno %d) of call %u: %d warnings, "
                         "%lu bytes: %s", k, faults[k].e, i, n_warnings,
                         (unsigned long) util_usage(), last_log);
            }

            check_dir();
        }
    }

    limit_bytes = 0;
    print_message("%u calls, %u runs, %u refused to start\n", calls,
                  (unsigned) (k * calls), failed);
}


static void
test_faults(void **state)
{
    (void) state;
    run_faults();
}


static void
test_faults_named(void **state)
{
    (void) state;

    atomic_store(&no_tmpfile, 1);
    run_faults();
    atomic_store(&no_tmpfile, 0);
}


/* A full disk: one warning, what is there is read, and then it has room. */

static void
test_full(void **state)
{
    char              err[KV_DISK_ERR_LEN];
    uint64_t          i;
    kv_disk_t        *d;
    kv_disk_stats_t   st;

    (void) state;

    prepare();
    d = open_tier(20000, err);
    assert_non_null(d);

    for (i = 0; i < 20; i++) {
        arm(1, UINT32_MAX, ERRNO, ENOSPC);
        (void) util_store(d, 20 + i, 1);
        kv_disk_settle(d);
        no_fault();
        assert_true(util_find(d, 0, 1));
        assert_int_equal(util_restore(d, 0, 8, 1, 0), 8);
        usleep(3000);
    }

    kv_disk_stats(d, &st);
    assert_true(st.trouble);
    assert_int_equal(n_warnings, 1);
    assert_int_equal(n_notices, 0);
    assert_non_null(strstr(last_log, "No space left on device"));
    assert_non_null(strstr(last_log, dir_path));

    for (i = 0; i < 2000 && n_notices == 0; i++) {
        (void) util_store(d, 50, 1);
        kv_disk_settle(d);
        usleep(1000);
    }

    kv_disk_stats(d, &st);
    assert_false(st.trouble);
    assert_int_equal(n_warnings, 1);
    assert_int_equal(n_notices, 1);
    assert_int_equal(util_restore(d, 50, 1, 1, 0), 1);
    kv_disk_close(d);
}


/* Somebody removes the directory; then it may come back. */

static void
test_vanished(void **state)
{
    char              err[KV_DISK_ERR_LEN];
    unsigned          i;
    kv_disk_t        *d;
    kv_disk_stats_t   st;

    prepare();
    d = open_tier(20000, err);
    assert_non_null(d);

    assert_int_equal(util_remove_dir(state), 0);
    assert_int_equal(util_restore(d, 0, 8, 1, 0), 0);
    assert_false(util_find(d, 3, 1));
    assert_int_equal(n_warnings, 1);

    for (i = 0; i < 2000 && n_notices == 0; i++) {
        (void) util_store(d, 50, 1);
        kv_disk_settle(d);
        usleep(1000);
    }

    assert_int_equal(n_warnings, 1);
    assert_int_equal(n_notices, 1);
    assert_int_equal(util_restore(d, 50, 1, 1, 0), 1);
    kv_disk_stats(d, &st);
    assert_int_equal(st.files, 1);
    assert_int_equal(util_files(kv_file_is_name, 0), 1);
    kv_disk_close(d);
}


/* Full when the engine starts: it starts. */

static void
test_full_start(void **state)
{
    char        err[KV_DISK_ERR_LEN];
    unsigned    i;
    kv_disk_t  *d;

    (void) state;

    atomic_store(&n_warnings, 0);
    atomic_store(&n_notices, 0);
    arm(1, 1, ERRNO, ENOSPC);
    d = open_tier(20000, err);
    assert_non_null(d);
    assert_int_equal(n_warnings, 1);

    for (i = 0; i < 2000 && n_notices == 0; i++) {
        (void) util_store(d, 50, 1);
        kv_disk_settle(d);
        usleep(1000);
    }

    assert_int_equal(n_notices, 1);
    assert_int_equal(util_restore(d, 50, 1, 1, 0), 1);
    kv_disk_close(d);
}


/* --- death ------------------------------------------------------------- */

static void
write_for_ever(unsigned seed)
{
    char        err[KV_DISK_ERR_LEN];
    uint64_t    rng;
    kv_disk_t  *d;

    rng = seed;
    d = open_tier(0, err);

    if (d == NULL) {
        _exit(1);
    }

    for ( ;; ) {
        (void) util_store(d, random_next(&rng) % 190, 1);

        if (random_next(&rng) % 4 == 0) {
            (void) util_restore(d, random_next(&rng) % 190, 2, 1, 0);
        }
    }
}


static void
run_kills(void)
{
    int       status;
    pid_t     pid;
    unsigned  i, n;
    uint64_t  rng;

    rng = 5;
    n = getenv("LONG") != NULL ? 2000 : 100;
    no_fault();

    for (i = 0; i < n; i++) {
        pid = fork();

        if (pid == 0) {
            write_for_ever(i);
        }

        assert_true(pid > 0);
        usleep((useconds_t) (random_next(&rng) % 20000));
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));

        assert_true(util_usage() <= LIMIT * FILE_SIZE);
        check_dir();
    }
}


static void
test_kills(void **state)
{
    (void) state;
    run_kills();
}


static void
test_kills_named(void **state)
{
    (void) state;

    atomic_store(&no_tmpfile, 1);
    run_kills();
    atomic_store(&no_tmpfile, 0);
}


static int
setup(void **state)
{
    no_fault();
    atomic_store(&no_tmpfile, 0);
    atomic_store(&over_limit, 0);
    atomic_store(&n_warnings, 0);
    atomic_store(&n_notices, 0);
    limit_bytes = 0;

    return util_make_dir(state);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(test_faults, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_faults_named, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_full, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_vanished, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_full_start, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_kills, setup,
                                        util_remove_dir),
        cmocka_unit_test_setup_teardown(test_kills_named, setup,
                                        util_remove_dir)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
