/*
 * The scheduler with a disk tier, over the model of hashes: a block that comes
 * back from disk as anything but itself gives another answer than the oracle's.
 *
 * LONG=1 is 30 times longer.
 */

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "sched_model.h"


#define LAYER_BYTES  (KV_BLOCK * sizeof(uint64_t))
#define BLOCK_BYTES  (2 * LAYER_BYTES)    /* the drafting layer's, too */
#define FILE_BYTES   4096

static char               dir_path[64];
static kv_disk_options_t  disk;
static int                tagged;


static void
disk_read(void *ctx, uint32_t rank, int32_t block, void *dst)
{
    (void) ctx;
    memcpy(dst, &kv[rank][block * KV_BLOCK], LAYER_BYTES);
    memcpy((uint8_t *) dst + LAYER_BYTES, &drafts[rank][block * KV_BLOCK],
           LAYER_BYTES);
}


static void
disk_write(void *ctx, uint32_t rank, int32_t block, const void *src)
{
    (void) ctx;
    memcpy(&kv[rank][block * KV_BLOCK], src, LAYER_BYTES);
    memcpy(&drafts[rank][block * KV_BLOCK], (const uint8_t *) src + LAYER_BYTES,
           LAYER_BYTES);
}


static int
setup(void **state)
{
    const char  *tmp;

    (void) state;

    tmp = getenv("TMPDIR");
    snprintf(dir_path, sizeof(dir_path), "%.40s/kv-XXXXXX",
             tmp != NULL ? tmp : "/tmp");

    memset(&disk, 0, sizeof(disk));
    disk.dir = dir_path;
    disk.size = 1000 * FILE_BYTES;
    disk.fingerprint = 5;
    disk.block_size = BLOCK_BYTES;
    disk.read = disk_read;
    disk.write = disk_write;

    disk_options = &disk;
    memset(kv, 0, sizeof(kv));
    memset(drafts, 0, sizeof(drafts));

    return mkdtemp(dir_path) == NULL;
}


/* Calls for each file of the directory; how many there are. */

static unsigned
each_file(void (*call)(int dir, const char *name))
{
    DIR            *dir;
    unsigned        n;
    struct dirent  *e;

    n = 0;
    dir = opendir(dir_path);
    assert_non_null(dir);

    while ((e = readdir(dir)) != NULL) {
        if (kv_file_is_name(e->d_name)) {
            n++;

            if (call != NULL) {
                call(dirfd(dir), e->d_name);
            }
        }
    }

    closedir(dir);

    return n;
}


static void
remove_file(int dir, const char *name)
{
    assert_int_equal(unlinkat(dir, name, 0), 0);
}


/* A byte of the payload decays, of one file in three. */

static void
spoil_file(int dir, const char *name)
{
    int      fd;
    uint8_t  byte;

    if (rnd(3) != 0) {
        return;
    }

    fd = openat(dir, name, O_RDWR);

    if (fd != -1) {
        byte = 0;
        (void) !pread(fd, &byte, 1, 512 + 100);
        byte ^= 1;
        (void) !pwrite(fd, &byte, 1, 512 + 100);
        close(fd);
    }
}


static int
teardown(void **state)
{
    char  path[80];

    (void) state;

    disk_options = NULL;
    each_file(remove_file);
    snprintf(path, sizeof(path), "%s/lock", dir_path);
    (void) unlink(path);

    return rmdir(dir_path);
}


static void
open_engine(uint32_t ranks, uint32_t batch, uint32_t blocks)
{
    start(ranks, batch, 64, blocks, UINT32_MAX);
    kv_disk_settle(sched->disk);
}


/* A request for the first `n` ids of a family. */

static void
ask(req_t *r, uint32_t family, uint32_t n, uint32_t max_tokens)
{
    uint32_t         i;
    sched_request_t  q;

    memset(r, 0, sizeof(req_t));
    memset(&q, 0, sizeof(q));
    q.n_prompt = n;
    q.ids = malloc(n * sizeof(int32_t));
    r->prompt = malloc(n * sizeof(int32_t));
    assert_non_null(q.ids);
    assert_non_null(r->prompt);

    for (i = 0; i < n; i++) {
        q.ids[i] = (int32_t) (mix(family, i) % (VOCAB - 1));
        r->prompt[i] = q.ids[i];
        r->hash = mix(r->hash, (uint64_t) q.ids[i]);
    }

    r->n_prompt = n;
    r->max_tokens = max_tokens;
    r->ignore_eos = 1;

    q.data = r;
    q.max_tokens = max_tokens;
    q.params.top_p = 1;
    q.params.repetition_penalty = 1;
    q.ignore_eos = 1;
    q.rank_hint = -1;
    q.credit = INT32_MAX;
    q.submitted_us = fake_now;

    if (tagged) {
        q.tags = malloc((n / 100 + 1) * sizeof(sched_tag_t));
        assert_non_null(q.tags);

        for (i = 99; i < n; i += 100) {
            q.tags[q.n_tags].last = i;
            q.tags[q.n_tags++].tag = mix(family, i) | 1;
        }
    }

    assert_int_equal(sched_submit(sched, &q, &r->seq), 0);
}


static int
fetching(void)
{
    uint32_t  i;

    for (i = 0; i < sched->n_ranks; i++) {
        if (sched->rank[i].fetches != NULL) {
            return 1;
        }
    }

    return 0;
}


/* Until `n` requests have ended. */

static void
run(int n)
{
    unsigned  quiet;

    quiet = 0;

    while (atomic_load(&n_finished) < n) {

        if (step()) {
            quiet = 0;

        } else {
            assert_true(fetching() || quiet++ < 3);
            kv_disk_settle(sched->disk);
        }

        invariants();
    }

    atomic_store(&n_finished, 0);
}


static void
one(uint32_t family, uint32_t n, uint32_t cached)
{
    req_t     r;
    uint64_t  before;

    before = n_computed;
    ask(&r, family, n, 3);
    run(1);
    check_end(&r);
    assert_int_equal(r.f.n_cached, cached);

    if (sched->n_ranks == 1) {
        assert_int_equal(n_computed - before, n - cached + 2);
    }

    sched_release(r.seq);
    free(r.prompt);
    kv_disk_settle(sched->disk);
}


/* One prompt of 1,000 tokens, and an orderly end: its blocks are on disk. */

static void
kept_engine(uint32_t ranks, uint32_t batch, uint32_t blocks)
{
    open_engine(ranks, batch, blocks);
    one(1, 1000, 0);
    sched_stop(sched);
    sched_keep(sched, 10000000);
    done(NULL, 0);
}


/* Out of memory, and back. */

static void
test_evicted(void **state)
{
    uint32_t         i;
    kv_disk_stats_t  st;

    (void) state;

    open_engine(1, 4, 10);

    one(1, 400, 0);
    one(2, 600, 0);                  /* takes all of it */

    assert_int_equal(sched_disk_stats(sched, &st), 0);
    assert_true(st.stored >= 6);

    for (i = 0; i < 4; i++) {
        one(1, 400, 384);
        one(2, 600, 576);
    }

    assert_int_equal(sched_disk_stats(sched, &st), 0);
    assert_true(st.restored >= 4 * 6);
    assert_int_equal(st.missed, 0);

    one(1, 200, 192);
    one(2, 64, 0);                   /* its only block gives the logits */
    one(2, 65, 64);

    done(NULL, 0);
}


/* The next engine, on any of its ranks; what it cannot read it computes. */

static void
test_restart(void **state)
{
    unsigned         n;
    kv_disk_stats_t  st;

    (void) state;

    open_engine(2, 4, 32);
    one(1, 1000, 0);
    one(2, 700, 0);
    sched_stop(sched);
    sched_keep(sched, 10000000);
    done(NULL, 0);

    n = each_file(NULL);
    assert_int_equal(n, 15 + 10);

    open_engine(3, 4, 32);
    one(2, 700, 640);
    one(1, 1000, 960);
    assert_int_equal(sched_disk_stats(sched, &st), 0);
    assert_int_equal(st.restored, 25);
    sched_stop(sched);
    sched_keep(sched, 10000000);
    assert_int_equal(sched_disk_stats(sched, &st), 0);
    assert_int_equal(st.stored, 0);  /* they are there already */
    done(NULL, 0);

    /* No time to keep anything. */

    each_file(remove_file);
    open_engine(1, 4, 32);
    one(1, 1000, 0);
    sched_stop(sched);
    sched_keep(sched, 0);
    done(NULL, 0);
    assert_int_equal(each_file(NULL), 0);

    /* Another model. */

    kept_engine(1, 4, 32);

    disk.fingerprint++;
    open_engine(1, 4, 32);
    one(1, 1000, 0);
    done(NULL, 0);
}


/*
 * A request for which guesses are made: the positions from `first` on have the
 * drafting layer's keys, and with the keys of all before them every guess is
 * right.
 */

static void
guessed(uint32_t family, uint32_t n, uint32_t cached, uint32_t first)
{
    req_t  r;

    draft_first = 0;
    ask(&r, family, n, 40);
    run(1);
    check_end(&r);
    assert_int_equal(atomic_load(&bad), 0);
    assert_int_equal(r.f.n_cached, cached);
    assert_int_equal(draft_first, first);
    assert_true(r.f.n_drafted > 0 && r.f.n_hit == r.f.n_drafted);
    sched_release(r.seq);
    free(r.prompt);
    kv_disk_settle(sched->disk);
}


static void
test_drafts(void **state)
{
    uint32_t  i;

    (void) state;

    speculate = 2;
    accuracy = 100;

    /* Out of memory, and back. */

    open_engine(1, 4, 10);
    guessed(1, 400, 0, 1);
    guessed(2, 520, 0, 1);

    for (i = 0; i < 4; i++) {
        guessed(1, 400, 384, 1);
        guessed(2, 520, 512, 1);
    }

    sched_stop(sched);
    sched_keep(sched, 10000000);
    done(NULL, 0);

    /* The next engine, whose memory has nothing of it. */

    memset(kv, 0, sizeof(kv));
    memset(drafts, 0, sizeof(drafts));

    open_engine(1, 4, 32);
    guessed(2, 520, 512, 1);
    guessed(1, 400, 384, 1);
    sched_stop(sched);
    sched_keep(sched, 10000000);
    done(NULL, 0);
    each_file(remove_file);

    /* Blocks of an engine that made no guesses have no such keys. */

    speculate = 0;
    kept_engine(1, 4, 32);

    speculate = 2;
    open_engine(1, 4, 32);
    guessed(1, 1000, 960, 961);
    done(NULL, 0);

    speculate = 0;
}


/* Many that begin alike at once: read once. */

static void
test_together(void **state)
{
    req_t            r[8];
    uint32_t         i;
    kv_disk_stats_t  st;

    (void) state;

    kept_engine(1, 8, 48);

    open_engine(1, 8, 48);

    for (i = 0; i < 8; i++) {
        ask(&r[i], 1, 650 + 10 * i, 3);
    }

    run(8);

    for (i = 0; i < 8; i++) {
        check_end(&r[i]);
        assert_int_equal(r[i].f.n_cached, (649 + 10 * i) / 64 * 64);
    }

    assert_int_equal(sched_disk_stats(sched, &st), 0);
    assert_in_range(st.restored, 11, 12);
    assert_int_equal(st.missed, 0);
    done(r, 8);
}


/* Tags behind what is in memory count while their blocks are on disk. */

static void
test_tags(void **state)
{
    int    i;
    req_t  r;

    (void) state;

    kept_engine(2, 4, 48);

    open_engine(2, 4, 48);
    tagged = 1;

    for (i = 0; i < 3; i++) {        /* from disk, then from memory */
        ask(&r, 1, 700, 3);
        run(1);
        check_end(&r);
        assert_int_equal(r.tags, 6); /* 600 of the first 640 tokens */
        assert_int_equal(r.cached, i == 0 ? 0 : 640);
        assert_int_equal(r.f.n_cached, 640);
        sched_release(r.seq);
        free(r.prompt);
    }

    /* Another prompt has none of them. */

    ask(&r, 2, 700, 3);
    run(1);
    check_end(&r);
    assert_int_equal(r.tags, 0);
    sched_release(r.seq);
    free(r.prompt);

    tagged = 0;
    done(NULL, 0);
}


/* A file in the middle is bad: up to it from disk, the rest computed. */

static void
test_bad_file(void **state)
{
    req_t            r;
    unsigned         i;
    kv_disk_stats_t  st;

    (void) state;

    for (i = 0; i < 20; i++) {
        rng = i + 1;
        open_engine(1, 4, 48);
        one(1, 1000, i == 0 ? 0 : 960);
        sched_stop(sched);
        sched_keep(sched, 10000000);
        done(NULL, 0);
        assert_int_equal(each_file(NULL), 15);

        if (i % 2 == 0) {
            continue;
        }

        each_file(spoil_file);
        open_engine(1, 4, 48);

        ask(&r, 1, 1000, 3);
        run(1);
        check_end(&r);

        assert_int_equal(sched_disk_stats(sched, &st), 0);
        assert_int_equal(st.restored + st.missed > 0, 1);
        sched_stop(sched);
        sched_keep(sched, 10000000);
        done(&r, 1);
    }
}


/* When computing is faster, it is computed. */

static void
test_not_worth(void **state)
{
    uint32_t  i;
    req_t     r;

    (void) state;

    kept_engine(1, 4, 48);

    open_engine(1, 4, 48);

    sched->cost.steps = 1;

    for (i = 0; i < SCHED_COST_TERMS; i++) {
        sched->cost.factor[i] *= 1e-6;
    }

    ask(&r, 1, 1000, 3);
    assert_true(step());
    assert_false(fetching());
    run(1);
    check_end(&r);
    assert_int_equal(r.f.n_cached, 0);
    done(&r, 1);
}


/* Gone while its blocks are being read; so is the scheduler. */

static void
test_cancel(void **state)
{
    req_t     r[2];
    uint32_t  i;

    (void) state;

    kept_engine(1, 4, 48);

    for (i = 0; i < 200; i++) {
        open_engine(1, 4, 48);
        ask(&r[0], 1, 1000, 3);
        ask(&r[1], 1, 500, 3);
        assert_false(step());
        assert_true(fetching());
        invariants();

        if (i % 4 < 3) {
            r[0].cancelled = 1;
            sched_cancel(sched, r[0].seq);
            (void) step();
            invariants();
        }

        if (i % 4 < 2) {
            r[1].cancelled = i % 4 == 1;

            if (r[1].cancelled) {
                sched_cancel(sched, r[1].seq);
            }

            run(2);
            check_end(&r[0]);
            check_end(&r[1]);
            assert_true(r[1].cancelled || r[1].f.n_cached == 448);
        }

        sched_stop(sched);
        assert_false(fetching());
        assert_int_equal(kv_cache_free(&sched->rank[0].cache), 48);
        done(r, 2);
    }
}


/*
 * Everything at once: small pools, prompts that begin alike, cancels, files
 * that decay, and the tier's thread in between.
 */

static void
random_disk(uint64_t seed, uint32_t ranks, uint32_t batch, uint32_t blocks,
    uint32_t n)
{
    req_t            *r, *x;
    uint32_t          i, live, made, cut;
    kv_disk_stats_t   st;

    rng = seed;
    families = 6;
    disk.size = (60 + seed * 7) * FILE_BYTES;
    disk.staging = 16 * FILE_BYTES;
    speculate = seed % 2 == 0 ? 3 : 0;
    speculate_free = seed == 4;
    accuracy = 70;
    open_engine(ranks, batch, blocks);

    r = calloc(n, sizeof(req_t));
    assert_non_null(r);
    made = 0;
    cut = 0;

    while ((uint32_t) atomic_load(&n_finished) < n) {

        live = made - (uint32_t) atomic_load(&n_finished);

        for (i = rnd(3); i > 0 && made < n && live < 20; i--, live++) {
            x = &r[made++];
            x->echo = rnd(6) == 0;
            x->logprobs = rnd(6) == 0;
            x->tenant = rnd(2);
            submit_full(x, 1 + rnd(blocks * 50), 1 + rnd(blocks * 10),
                        1 + rnd(100), (int32_t) rnd(3), 0, 0, 0);
        }

        for (i = 0; i < made; i++) {
            x = &r[i];

            if (!x->finished && x->owed > 0 && rnd(3) == 0) {
                sched_credit(sched, x->seq, x->owed);
                x->owed = 0;
            }

            if (!x->finished && rnd(500) == 0) {
                x->cancelled = 1;
                sched_cancel(sched, x->seq);
            }
        }

        if (rnd(200) == 0) {
            each_file(spoil_file);
            cut++;
        }

        if (step() == 0 && rnd(2) == 0) {
            kv_disk_settle(sched->disk);
        }

        invariants();
        assert_int_equal(atomic_load(&bad), 0);
    }

    for (i = 0; i < n; i++) {
        check_end(&r[i]);
    }

    sched_stop(sched);

    for (i = 0; i < ranks; i++) {
        assert_int_equal(kv_cache_free(&sched->rank[i].cache), blocks);
    }

    assert_int_equal(sched_disk_stats(sched, &st), 0);
    assert_true(st.used <= disk.size);
    print_message("%u requests: %llu blocks stored, %llu restored, %llu "
                  "missed, %llu dropped, %llu bad\n", n,
                  (unsigned long long) st.stored,
                  (unsigned long long) st.restored,
                  (unsigned long long) st.missed,
                  (unsigned long long) st.dropped,
                  (unsigned long long) st.bad);
    assert_true(st.restored > 0 && (cut == 0 || st.bad > 0));

    if (seed % 2 == 0) {
        sched_keep(sched, 10000000);
    }

    done(r, n);
    free(r);
    families = 0;
    speculate = 0;
    speculate_free = 0;
}


static void
test_random(void **state)
{
    uint32_t  n;

    (void) state;

    n = getenv("LONG") != NULL ? 6000 : 200;

    for (ahead = 0; ahead <= 1; ahead++) {
        random_disk(1, 1, 4, 24, n);
        random_disk(2, 2, 4, 16, n);
        random_disk(3, 3, 2, 12, n);
        random_disk(4, 1, 8, 40, n);
    }

    ahead = 0;
}


/* Real threads, and steps that are slow enough for a disk to be faster. */

static int
slow_step(void *ctx, uint32_t rank, const sched_batch_t *b,
    const uint32_t *logit_row, uint32_t n_logits, float *logits, char *err)
{
    struct timespec  ts = { 0, 20000L * b->n_rows };

    nanosleep(&ts, NULL);

    return fake_step(ctx, rank, b, logit_row, n_logits, logits, err);
}


static void
test_threads(void **state)
{
    char              err[SCHED_ERR_LEN];
    req_t            *r;
    uint32_t          i, n;
    kv_disk_stats_t   st;
    struct timespec   ts = { 0, 200000 };

    (void) state;

    n = getenv("LONG") != NULL ? 4000 : 200;
    rng = 14;
    families = 4;
    open_engine(3, 4, 24);
    sched->opt.now = NULL;
    sched->opt.step = slow_step;
    per_token = 0;
    r = calloc(n, sizeof(req_t));
    assert_non_null(r);
    assert_int_equal(sched_start(sched, err), 0);

    for (i = 0; i < n; i++) {
        submit(&r[i], 1 + rnd(1000), 1 + rnd(100));

        if (i % 16 == 5) {
            r[i].cancelled = 1;
            sched_cancel(sched, r[i].seq);
        }

        nanosleep(&ts, NULL);
    }

    for (i = 0; atomic_load(&n_finished) < (int) n; i++) {
        nanosleep(&ts, NULL);
        assert_true(i < 300000);
    }

    sched_stop(sched);

    for (i = 0; i < n; i++) {
        check_end(&r[i]);
    }

    assert_int_equal(sched_disk_stats(sched, &st), 0);
    assert_true(st.restored > 0);
    sched_keep(sched, 10000000);
    done(r, n);
    free(r);
    families = 0;
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(test_evicted, setup, teardown),
        cmocka_unit_test_setup_teardown(test_restart, setup, teardown),
        cmocka_unit_test_setup_teardown(test_drafts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_together, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tags, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_worth, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
