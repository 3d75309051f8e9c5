/*
 * The board: what is published is read back by another mapping; a board that
 * is half written, garbage or still is told from a good one, and no content
 * makes a reader crash or wait.
 */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel/chan_board.h"
#include "unit/random.h"


#define SEALS                                                                \
    (F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_SEAL|F_SEAL_FUTURE_WRITE)

#define MODEL  64            /* offsets of the entries with two ranks */
#define STATE  (MODEL + 640)
#define RANK0  (STATE + 192)
#define RANK1  (RANK0 + 128)
#define LOG    (RANK1 + 128)

static uint64_t  seed = 7;


static uint64_t
rnd(void)
{
    return random_next(&seed);
}


/* A good board's bytes, writable by the test, and a reader's view of them. */

typedef struct {
    uint8_t       *raw;
    uint64_t       size;
    chan_board_t  *seen;
} fake_t;


static void
fill(chan_board_t *b)
{
    chan_board_rank_t    r;
    chan_board_model_t   m;
    chan_board_state_t   s;

    memset(&m, 0, sizeof(m));
    m.boot = 1;
    m.fingerprint = 2;
    m.max_context = 4096;
    m.has_template = 1;
    memcpy(m.names, "one\0two\0", 9);
    chan_board_set_model(b, &m);

    memset(&s, 0, sizeof(s));
    s.step = 10;
    s.heartbeat_ms = chan_now_ms();
    s.running = 3;
    s.log_head = 12345;
    chan_board_set_state(b, &s);

    memset(&r, 0, sizeof(r));
    r.epoch = 100;
    chan_board_set_rank(b, 0, &r);
    r.epoch = 101;
    chan_board_set_rank(b, 1, &r);
    chan_board_set_rank(b, 2, &r);       /* not there: nothing happens */

    assert_int_equal(chan_board_evict(b, 0, 0xaa), 1);
    assert_int_equal(chan_board_evict(b, 1, 0xbb), 2);
}


static void
fake_open(fake_t *f)
{
    int              fd, own;
    char             err[CHAN_ERR_LEN];
    chan_board_t    *b;
    chan_welcome_t   w;

    assert_int_equal(chan_board_create(&b, 2, &fd, err), CHAN_OK);
    fill(b);
    f->size = chan_board_size(b);

    own = memfd_create("fake", MFD_ALLOW_SEALING|MFD_CLOEXEC);
    assert_true(own >= 0);
    assert_int_equal(ftruncate(own, (off_t) f->size), 0);
    f->raw = mmap(NULL, f->size, PROT_READ|PROT_WRITE, MAP_SHARED, own, 0);
    assert_ptr_not_equal(f->raw, MAP_FAILED);
    assert_int_equal(pread(fd, f->raw, f->size, 0), f->size);
    assert_int_equal(fcntl(own, F_ADD_SEALS, SEALS), 0);

    memset(&w, 0, sizeof(w));
    w.board_size = f->size;

    if (chan_board_open(&f->seen, &w, own, err) != CHAN_OK) {
        fail_msg("%s", err);
    }

    chan_board_close(b);
}


static void
fake_close(fake_t *f)
{
    munmap(f->raw, f->size);
    chan_board_close(f->seen);
}


static void
word(fake_t *f, size_t off, uint64_t v)
{
    memcpy(f->raw + off, &v, sizeof(v));
}


static void
test_published(void **state)
{
    fake_t               f;
    uint32_t             rank;
    uint64_t             tag;
    chan_board_rank_t    r;
    chan_board_model_t   m;
    chan_board_state_t   s;

    (void) state;

    fake_open(&f);
    assert_int_equal(chan_board_ranks(f.seen), 2);

    assert_int_equal(chan_board_get_model(f.seen, &m), CHAN_OK);
    assert_int_equal(m.boot, 1);
    assert_int_equal(m.max_context, 4096);
    assert_string_equal(m.names, "one");
    assert_string_equal(m.names + 4, "two");

    assert_int_equal(chan_board_get_state(f.seen, &s), CHAN_OK);
    assert_int_equal(s.step, 10);
    assert_int_equal(s.running, 3);
    assert_int_equal(s.log_head, 2);     /* not what set_state() was given */
    assert_int_equal(chan_board_stale(f.seen), 0);

    assert_int_equal(chan_board_get_rank(f.seen, 0, &r), CHAN_OK);
    assert_int_equal(r.epoch, 100);
    assert_int_equal(chan_board_get_rank(f.seen, 1, &r), CHAN_OK);
    assert_int_equal(r.epoch, 101);
    assert_int_equal(chan_board_get_rank(f.seen, 2, &r), CHAN_ERROR);
    assert_int_equal(chan_board_get_rank(f.seen, UINT32_MAX, &r), CHAN_ERROR);

    assert_int_equal(chan_board_log(f.seen, 0, &rank, &tag), CHAN_ERROR);
    assert_int_equal(chan_board_log(f.seen, 1, &rank, &tag), CHAN_OK);
    assert_int_equal(rank, 0);
    assert_int_equal(tag, 0xaa);
    assert_int_equal(chan_board_log(f.seen, 2, &rank, &tag), CHAN_OK);
    assert_int_equal(rank, 1);
    assert_int_equal(tag, 0xbb);
    assert_int_equal(chan_board_log(f.seen, 3, &rank, &tag), CHAN_AGAIN);
    assert_int_equal(chan_board_log(f.seen, UINT64_MAX, &rank, &tag),
                     CHAN_AGAIN);
    fake_close(&f);
}


static void
test_log_laps(void **state)
{
    int            fd;
    char           err[CHAN_ERR_LEN];
    uint32_t       rank;
    uint64_t       i, tag;
    chan_board_t  *b;

    (void) state;

    assert_int_equal(chan_board_create(&b, 64, &fd, err), CHAN_OK);

    for (i = 1; i <= 2 * CHAN_LOG_SIZE + 5; i++) {
        assert_int_equal(chan_board_evict(b, (uint32_t) i % 64, i * 3), i);
    }

    for (i = 1; i <= CHAN_LOG_SIZE + 5; i++) {
        assert_int_equal(chan_board_log(b, i, &rank, &tag), CHAN_ERROR);
    }

    for (/* void */; i <= 2 * CHAN_LOG_SIZE + 5; i++) {
        assert_int_equal(chan_board_log(b, i, &rank, &tag), CHAN_OK);
        assert_int_equal(rank, i % 64);
        assert_int_equal(tag, i * 3);
    }

    assert_int_equal(chan_board_log(b, i, &rank, &tag), CHAN_AGAIN);
    chan_board_close(b);
}


/* A writer that died between odd and even. */

static void
test_odd(void **state)
{
    fake_t               f;
    uint64_t             seq;
    chan_board_rank_t    r;
    chan_board_model_t   m;
    chan_board_state_t   s;

    (void) state;

    fake_open(&f);

    memcpy(&seq, f.raw + STATE, 8);
    word(&f, STATE, seq | 1);
    memset(&s, 0xff, sizeof(s));
    assert_int_equal(chan_board_get_state(f.seen, &s), CHAN_AGAIN);
    assert_int_equal(s.running, 0);      /* nothing half read is handed out */
    word(&f, STATE, seq);
    assert_int_equal(chan_board_get_state(f.seen, &s), CHAN_OK);

    word(&f, MODEL, UINT64_MAX);
    memset(&m, 0xff, sizeof(m));
    assert_int_equal(chan_board_get_model(f.seen, &m), CHAN_AGAIN);
    assert_int_equal(m.names[0], 0);

    word(&f, RANK1, 1);
    assert_int_equal(chan_board_get_rank(f.seen, 1, &r), CHAN_AGAIN);
    assert_int_equal(chan_board_get_rank(f.seen, 0, &r), CHAN_OK);

    fake_close(&f);
}


static void
test_garbage(void **state)
{
    int                  i, n;
    fake_t               f;
    size_t               k;
    uint32_t             rank;
    uint64_t             v, tag;
    chan_board_rank_t    r;
    chan_board_model_t   m;
    chan_board_state_t   s;

    (void) state;

    fake_open(&f);

    /* names without an end */

    memset(f.raw + MODEL, 'n', 640);
    word(&f, MODEL, 2);
    assert_int_equal(chan_board_get_model(f.seen, &m), CHAN_OK);
    assert_int_equal(strlen(m.names), CHAN_NAMES_LEN - 2);
    assert_int_equal(m.names[CHAN_NAMES_LEN - 1], 0);

    /* a slot of a rank that is not there, of another number, half written */

    word(&f, LOG + 32 + 16, 2);
    assert_int_equal(chan_board_log(f.seen, 1, &rank, &tag), CHAN_ERROR);
    word(&f, LOG + 32 + 16, UINT64_C(1) << 32);
    assert_int_equal(chan_board_log(f.seen, 1, &rank, &tag), CHAN_ERROR);
    word(&f, LOG + 64, 99);
    assert_int_equal(chan_board_log(f.seen, 2, &rank, &tag), CHAN_ERROR);
    word(&f, LOG + 64, 0);
    assert_int_equal(chan_board_log(f.seen, 2, &rank, &tag), CHAN_ERROR);

    /* the header may change after it was checked: nobody looks again */

    memset(f.raw, 0xff, 64);
    assert_int_equal(chan_board_ranks(f.seen), 2);
    assert_int_equal(chan_board_get_rank(f.seen, 2, &r), CHAN_ERROR);
    assert_int_equal(chan_board_get_rank(f.seen, 1, &r), CHAN_OK);

    n = getenv("LONG") != NULL ? 1000000 : 20000;

    for (i = 0; i < n; i++) {

        for (k = rnd() % 8; k > 0; k--) {
            v = rnd() >> (rnd() % 64);
            word(&f, (rnd() % (rnd() % 2 ? 2048 : f.size) & ~UINT64_C(7)), v);
        }

        (void) chan_board_get_model(f.seen, &m);
        assert_true(strlen(m.names) < CHAN_NAMES_LEN);
        (void) chan_board_get_state(f.seen, &s);
        (void) chan_board_get_rank(f.seen, 0, &r);

        if (chan_board_log(f.seen, rnd() >> (rnd() % 64), &rank, &tag)
            == CHAN_OK)
        {
            assert_true(rank < 2);
        }

        (void) chan_board_stale(f.seen);
    }

    fake_close(&f);
}


static void
test_stale(void **state)
{
    fake_t    f;
    size_t    i;
    uint64_t  now;

    static const struct {
        int64_t  ago;
        int      stale;
    } cases[] = {
        { 0, 0 }, { CHAN_STALE_MS - 1000, 0 }, { CHAN_STALE_MS + 1, 1 },
        { 1000000, 1 }, { -1000, 0 }, { -CHAN_STALE_MS - 1000, 1 },
        { INT64_MIN, 1 }, { INT64_MAX, 1 },
    };

    (void) state;

    fake_open(&f);
    now = chan_now_ms();
    assert_true(now > 0);

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        now = chan_now_ms();
        word(&f, STATE + 8 + 8, now - (uint64_t) cases[i].ago);

        if (chan_board_stale(f.seen) != cases[i].stale) {
            fail_msg("case %d", (int) i);
        }
    }

    word(&f, STATE + 8 + 8, 0);
    assert_int_equal(chan_board_stale(f.seen), now > CHAN_STALE_MS);
    fake_close(&f);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_log_laps),
        cmocka_unit_test(test_odd),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_stale),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
