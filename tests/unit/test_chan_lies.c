/*
 * Memory files and doorbells that are handed over and are not what the welcome
 * says: seals, sizes and heads are checked before anything is mapped or used.
 */

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel/channel.h"
#include "channel/chan_board.h"
#include "unit/chan_fds.h"


#define SEALS   (F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_SEAL)
#define FSEALS  (SEALS|F_SEAL_FUTURE_WRITE)


/* A lane's memory file that is not what the welcome says. */

enum { AS_IT_IS, UNSEALED, NO_SHRINK_SEAL, NO_GROW_SEAL, NO_SEAL_SEAL, SMALLER,
       LARGER, EMPTY, WRITE_SEALED, REGULAR, A_PIPE, CLOSED, NO_MAGIC,
       NO_VERSION, OTHER_SIZES, ODD_SIZES, TINY, HUGE_SIZES, BELL_PIPE,
       BELL_BLOCKS, BELL_CLOSED, N_LIES };


static int
make_file(int lie, size_t size, const void *head, size_t head_size, int seals)
{
    int   fd, fds[2];
    char  name[] = "/tmp/test_chan_lane.f.XXXXXX";

    if (lie == REGULAR) {
        fd = mkstemp(name);
        assert_true(fd >= 0);
        unlink(name);
        assert_int_equal(ftruncate(fd, size), 0);
        assert_int_equal(pwrite(fd, head, head_size, 0), head_size);
        return fd;
    }

    if (lie == A_PIPE) {
        assert_int_equal(pipe(fds), 0);
        close(fds[1]);
        return fds[0];
    }

    fd = memfd_create("test", MFD_ALLOW_SEALING|MFD_CLOEXEC);
    assert_true(fd >= 0);

    size = lie == SMALLER ? size - 4096 : lie == LARGER ? size + 4096
           : lie == EMPTY ? 0 : size;

    assert_int_equal(ftruncate(fd, size), 0);

    if (size != 0) {
        assert_int_equal(pwrite(fd, head, head_size, 0), head_size);
    }

    seals = lie == UNSEALED ? 0
            : lie == NO_SHRINK_SEAL ? seals & ~F_SEAL_SHRINK
            : lie == NO_GROW_SEAL ? seals & ~F_SEAL_GROW
            : lie == NO_SEAL_SEAL ? seals & ~F_SEAL_SEAL
            : lie == WRITE_SEALED ? seals | F_SEAL_WRITE : seals;

    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);

    if (lie == CLOSED) {
        close(fd);
    }

    return fd;
}


static void
test_lying_lane(void **state)
{
    int               lie, rc, before, fd, be, bw, fds[2];
    char              err[CHAN_ERR_LEN];
    uint64_t          ring;
    chan_lane_t       lane;
    chan_welcome_t    w;
    chan_lane_head_t  head;

    (void) state;

    before = count_fds();

    for (lie = AS_IT_IS; lie < N_LIES; lie++) {
        ring = CHAN_RING_MIN;

        if (lie == ODD_SIZES) {
            ring += 4096;

        } else if (lie == TINY) {
            ring = CHAN_RING_MIN / 2;

        } else if (lie == HUGE_SIZES) {
            ring = UINT64_C(1) << 63;
        }

        memset(&w, 0, sizeof(w));
        w.magic = CHAN_MAGIC;
        w.version = CHAN_VERSION;
        w.sub_size = ring;
        w.ev_size = ring;

        memset(&head, 0, sizeof(head));
        head.magic = CHAN_MAGIC ^ (lie == NO_MAGIC);
        head.version = CHAN_VERSION + (lie == NO_VERSION);
        head.sub_size = ring << (lie == OTHER_SIZES);
        head.ev_size = ring;

        fd = make_file(lie, lie == HUGE_SIZES ? 4096 : 4096 + 2 * ring, &head,
                       sizeof(head), SEALS);
        be = eventfd(0, EFD_NONBLOCK);
        bw = eventfd(0, lie == BELL_BLOCKS ? 0 : EFD_NONBLOCK);

        if (lie == BELL_PIPE) {
            close(be);
            assert_int_equal(pipe2(fds, O_NONBLOCK), 0);
            close(fds[0]);
            be = fds[1];

        } else if (lie == BELL_CLOSED) {
            close(be);
        }

        err[0] = '\0';
        rc = chan_lane_open(&lane, &w, fd, be, bw, err);

        if ((rc == CHAN_OK) != (lie == AS_IT_IS)
            || (rc != CHAN_OK && strlen(err) < 10))
        {
            fail_msg("lie %d: %d, %s", lie, rc, err);
        }

        chan_lane_close(&lane);
        assert_int_equal(count_fds(), before);
    }
}


static void
test_lying_board(void **state)
{
    int                lie, fd, rc, before, i;
    char               err[CHAN_ERR_LEN];
    uint64_t           size;
    chan_board_t      *b;
    chan_welcome_t     w;
    chan_board_head_t  head, h;

    static const struct {
        uint64_t  magic, size, log_size;
        uint32_t  version, ranks;
    } off[] = {
        { 1, 0, 0, 0, 0 }, { 0, 8, 0, 0, 0 }, { 0, 0, 1, 0, 0 },
        { 0, 0, CHAN_LOG_SIZE, 0, 0 }, { 0, 0, 3 * CHAN_LOG_SIZE, 0, 0 },
        { 0, 0, -CHAN_LOG_SIZE, 0, 0 }, { 0, 0, UINT64_C(1) << 60, 0, 0 },
        { 0, 0, 0, 1, 0 }, { 0, 0, 0, 0, -2 }, { 0, 0, 0, 0, 62 },
        { 0, 0, 0, 0, 63 }, { 0, 0, 0, 0, 0x7fffffff },
    };

    (void) state;

    before = count_fds();

    assert_int_equal(chan_board_create(&b, 0, &fd, err), CHAN_ERROR);
    assert_int_equal(chan_board_create(&b, CHAN_RANKS_MAX + 1, &fd, err),
                     CHAN_ERROR);
    assert_int_equal(chan_board_create(&b, 2, &fd, err), CHAN_OK);

    size = chan_board_size(b);
    assert_int_equal(pread(fd, &head, sizeof(head), 0), sizeof(head));

    /* nobody else gets a writable view */

    assert_ptr_equal(mmap(NULL, size, PROT_READ|PROT_WRITE, MAP_SHARED, fd, 0),
                     MAP_FAILED);
    assert_int_equal(pwrite(fd, &head, sizeof(head), 0), -1);
    assert_int_equal(ftruncate(fd, 0), -1);

    chan_board_close(b);

    memset(&w, 0, sizeof(w));
    w.board_size = size;

    for (lie = AS_IT_IS; lie <= NO_VERSION; lie++) {

        h = head;
        h.magic ^= lie == NO_MAGIC;
        h.version += lie == NO_VERSION;

        fd = make_file(lie, size, &h, sizeof(h), FSEALS);
        rc = chan_board_open(&b, &w, fd, err);

        if ((rc == CHAN_OK) != (lie == AS_IT_IS || lie == WRITE_SEALED)) {
            fail_msg("lie %d: %d, %s", lie, rc, err);
        }

        assert_int_equal(b == NULL, rc != CHAN_OK);
        chan_board_close(b);
        assert_int_equal(count_fds(), before);
    }

    /* sealed as a lane is, but open to new writers */

    fd = make_file(AS_IT_IS, size, &head, sizeof(head), SEALS);
    assert_int_equal(chan_board_open(&b, &w, fd, err), CHAN_ERROR);

    for (i = 0; i < (int) (sizeof(off) / sizeof(off[0])); i++) {
        h = head;
        h.magic += off[i].magic;
        h.size += off[i].size;
        h.log_size += off[i].log_size;
        h.version += off[i].version;
        h.n_ranks += off[i].ranks;

        fd = make_file(AS_IT_IS, size, &h, sizeof(h), FSEALS);

        if (chan_board_open(&b, &w, fd, err) != CHAN_ERROR) {
            fail_msg("board %d", i);
        }
    }

    for (i = 0; i < 3; i++) {
        w.board_size = i == 0 ? 8 : i == 1 ? 0 : UINT64_MAX;
        fd = make_file(AS_IT_IS, size, &head, sizeof(head), FSEALS);
        assert_int_equal(chan_board_open(&b, &w, fd, err), CHAN_ERROR);
    }

    assert_int_equal(count_fds(), before);
}


static void
test_lane_sizes(void **state)
{
    int          i, before;
    char         err[CHAN_ERR_LEN];
    chan_lane_t  lane;

    static const struct {
        uint64_t  asked, ring;
    } cases[] = {
        { 0, CHAN_LANE_DEFAULT / 2 },
        { 2 * CHAN_RING_MIN, CHAN_RING_MIN },
        { 2 * CHAN_RING_MIN + 2, CHAN_RING_MIN },
        { 4 * CHAN_RING_MIN - 1, CHAN_RING_MIN },
        { 4 * CHAN_RING_MIN, 2 * CHAN_RING_MIN },
        { 1, 0 },
        { 2 * CHAN_RING_MIN - 1, 0 },
        { UINT64_C(2) * CHAN_RING_MAX + 2, 0 },
        { UINT64_C(1) << 63, 0 },
        { UINT64_MAX, 0 },
    };

    (void) state;

    before = count_fds();

    for (i = 0; i < (int) (sizeof(cases) / sizeof(cases[0])); i++) {
        assert_int_equal(chan_lane_create(&lane, cases[i].asked, err),
                         cases[i].ring == 0 ? CHAN_ERROR : CHAN_OK);

        if (cases[i].ring != 0) {
            assert_int_equal(lane.in.size, cases[i].ring);
            assert_int_equal(lane.out.size, cases[i].ring);

            /* the peer cannot take the memory away */

            assert_int_equal(ftruncate(lane.lane_fd, 0), -1);
            assert_int_equal(ftruncate(lane.lane_fd, 1 << 30), -1);
            assert_int_equal(fcntl(lane.lane_fd, F_ADD_SEALS, F_SEAL_WRITE),
                             -1);
        }

        chan_lane_close(&lane);
        assert_int_equal(count_fds(), before);
    }
}


/* A bell whose counter is full, or that was made blocking, stops nobody. */

static void
test_hostile_bell(void **state)
{
    char         err[CHAN_ERR_LEN];
    uint64_t     n;
    chan_lane_t  lane;

    (void) state;

    assert_int_equal(chan_lane_create(&lane, 0, err), CHAN_OK);

    n = UINT64_MAX - 1;
    assert_int_equal(write(lane.bell_peer, &n, sizeof(n)), sizeof(n));
    assert_int_equal(fcntl(lane.bell_peer, F_SETFL, 0), 0);
    lane.out.ctl->consumer_sleeps = 1;

    alarm(5);
    chan_ring_notify_data(&lane.out);
    assert_int_equal(lane.out.ctl->consumer_sleeps, 0);

    assert_int_equal(fcntl(lane.bell_own, F_SETFL, 0), 0);
    chan_bell_drain(lane.bell_own);
    alarm(0);

    chan_lane_close(&lane);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_lying_lane),
        cmocka_unit_test(test_lying_board),
        cmocka_unit_test(test_lane_sizes),
        cmocka_unit_test(test_hostile_bell),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
