/*
 * Finding each other and handing over: listen, hello, welcome, descriptors;
 * what a stranger or a liar sends is refused with a reason.
 */

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel/channel.h"
#include "channel/chan_board.h"
#include "unit/chan_fds.h"


typedef struct {
    char  dir[64];
    char  path[96];
    int   lock;
    int   listener;
    int   engine;            /* accepted */
    int   worker;
} pair_t;


static void
pair_open(pair_t *p)
{
    char           err[CHAN_ERR_LEN];
    struct pollfd  pfd;

    strcpy(p->dir, "/tmp/test_chan_lane.XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    snprintf(p->path, sizeof(p->path), "%s/sock", p->dir);

    p->listener = chan_listen(p->path, 0600, (gid_t) -1, &p->lock, err);

    if (p->listener < 0) {
        fail_msg("%s", err);
    }

    p->worker = chan_connect(p->path, err);
    assert_true(p->worker >= 0);

    pfd.fd = p->listener;
    pfd.events = POLLIN;
    assert_int_equal(poll(&pfd, 1, 1000), 1);

    p->engine = accept4(p->listener, NULL, NULL, SOCK_NONBLOCK|SOCK_CLOEXEC);
    assert_true(p->engine >= 0);
}


static void
pair_close(pair_t *p)
{
    char  lock[112];

    close(p->listener);
    close(p->lock);

    if (p->engine != -1) {
        close(p->engine);
    }

    if (p->worker != -1) {
        close(p->worker);
    }

    snprintf(lock, sizeof(lock), "%s.lock", p->path);
    unlink(lock);
    unlink(p->path);
    assert_int_equal(rmdir(p->dir), 0);
}


static void
welcome_for(chan_welcome_t *w, chan_lane_t *lane, chan_board_t *board)
{
    memset(w, 0, sizeof(*w));
    w->magic = CHAN_MAGIC;
    w->version = CHAN_VERSION;
    w->sub_size = lane->in.size;
    w->ev_size = lane->out.size;
    w->board_size = chan_board_size(board);
}


/* The whole way: hello, welcome, both maps, a record each way, bells. */

static void
test_handshake(void **state)
{
    int              fd, fds[4], before;
    char             err[CHAN_ERR_LEN];
    pair_t           p;
    uint64_t         buf[CHAN_RECORD_MAX / 8];
    chan_lane_t      engine, worker;
    chan_hello_t     hello;
    chan_board_t    *board, *seen;
    struct iovec     part[2];
    struct pollfd    pfd;
    chan_record_t   *rec, head;
    chan_welcome_t   w, got;

    (void) state;

    before = count_fds();
    pair_open(&p);

    assert_int_equal(chan_recv_hello(p.engine, &hello, err), CHAN_AGAIN);
    assert_int_equal(chan_send_hello(p.worker, 1 << 20, err), CHAN_OK);
    assert_int_equal(chan_recv_hello(p.engine, &hello, err), CHAN_OK);
    assert_int_equal(chan_hello_check(&hello, err), CHAN_OK);
    assert_int_equal(hello.pid, getpid());
    assert_int_equal(hello.lane_size, 1 << 20);

    assert_int_equal(chan_board_create(&board, 2, &fd, err), CHAN_OK);
    assert_int_equal(chan_lane_create(&engine, hello.lane_size, err), CHAN_OK);
    assert_int_equal(engine.in.size, 1 << 19);

    welcome_for(&w, &engine, board);
    fds[0] = engine.lane_fd;
    fds[1] = fd;
    fds[2] = engine.bell_own;
    fds[3] = engine.bell_peer;

    assert_int_equal(chan_recv_welcome(p.worker, &got, fds, err), CHAN_AGAIN);

    fds[0] = engine.lane_fd;
    fds[1] = fd;
    fds[2] = engine.bell_own;
    fds[3] = engine.bell_peer;
    assert_int_equal(chan_send_welcome(p.engine, &w, fds, err), CHAN_OK);
    assert_int_equal(chan_recv_welcome(p.worker, &got, fds, err), CHAN_OK);
    assert_int_equal(chan_welcome_check(&got, err), CHAN_OK);

    assert_int_equal(chan_lane_open(&worker, &got, fds[0], fds[2], fds[3],
                                    err), CHAN_OK);
    assert_int_equal(chan_board_open(&seen, &got, fds[1], err), CHAN_OK);
    assert_int_equal(chan_board_ranks(seen), 2);

    engine.sock = p.engine;
    worker.sock = p.worker;
    p.engine = -1;
    p.worker = -1;

    /* the engine sleeps, the worker writes and wakes it */

    assert_int_equal(chan_ring_sleep(&engine.in, err), 1);

    memset(&head, 0, sizeof(head));
    head.type = 4;
    head.id = 7;
    part[0].iov_base = &head;
    part[0].iov_len = sizeof(head);
    part[1].iov_base = "hello";
    part[1].iov_len = 5;
    assert_int_equal(chan_ring_write(&worker.out, part, 2, err), CHAN_OK);
    chan_ring_notify_data(&worker.out);

    pfd.fd = engine.bell_own;
    pfd.events = POLLIN;
    assert_int_equal(poll(&pfd, 1, 0), 1);
    chan_bell_drain(engine.bell_own);
    assert_int_equal(poll(&pfd, 1, 0), 0);
    chan_bell_drain(engine.bell_own);

    rec = (chan_record_t *) buf;
    assert_int_equal(chan_ring_read(&engine.in, buf, sizeof(buf), err),
                     CHAN_OK);
    assert_int_equal(rec->size, 24);
    assert_int_equal(rec->type, 4);
    assert_int_equal(rec->id, 7);
    assert_memory_equal(rec + 1, "hello\0\0", 8);
    assert_int_equal(chan_ring_read(&engine.in, buf, sizeof(buf), err),
                     CHAN_AGAIN);

    /* nobody sleeps: no ring */

    assert_int_equal(chan_ring_write(&engine.out, part, 2, err), CHAN_OK);
    chan_ring_notify_data(&engine.out);
    pfd.fd = worker.bell_own;
    assert_int_equal(poll(&pfd, 1, 0), 0);
    assert_int_equal(chan_ring_sleep(&worker.in, err), 0);
    assert_int_equal(chan_ring_read(&worker.in, buf, sizeof(buf), err),
                     CHAN_OK);

    /* the end of one is seen by the other */

    assert_int_equal(chan_peer_alive(worker.sock, err), CHAN_OK);
    chan_lane_close(&engine);
    assert_int_equal(chan_peer_alive(worker.sock, err), CHAN_ERROR);

    chan_lane_close(&worker);
    chan_lane_close(&worker);
    chan_board_close(seen);
    chan_board_close(board);
    pair_close(&p);

    assert_int_equal(count_fds(), before);
}


static void
test_listen(void **state)
{
    int          fd, lock;
    char         err[CHAN_ERR_LEN], name[200];
    pair_t       p;
    struct stat  st;

    (void) state;

    pair_open(&p);

    assert_int_equal(stat(p.path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);

    /* a second engine */

    assert_int_equal(chan_listen(p.path, 0600, (gid_t) -1, &lock, err),
                     CHAN_ERROR);
    assert_non_null(strstr(err, "another engine"));
    assert_int_equal(lock, -1);

    /* a stale socket goes, whatever the umask */

    close(p.listener);
    close(p.lock);
    umask(0177);
    p.listener = chan_listen(p.path, 0660, getgid(), &p.lock, err);
    umask(022);
    assert_true(p.listener >= 0);
    assert_int_equal(stat(p.path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);

    /* a file that is no socket stays */

    snprintf(name, sizeof(name), "%s/file", p.dir);
    fd = open(name, O_CREAT|O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(chan_listen(name, 0600, (gid_t) -1, &lock, err),
                     CHAN_ERROR);
    assert_non_null(strstr(err, "not a socket"));
    assert_int_equal(chan_connect(name, err), CHAN_ERROR);
    unlink(name);
    strcat(name, ".lock");
    unlink(name);

    snprintf(name, sizeof(name), "%s/none", p.dir);
    assert_int_equal(chan_connect(name, err), CHAN_ERROR);
    assert_int_equal(chan_connect("", err), CHAN_ERROR);

    memset(name, 'x', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(chan_connect(name, err), CHAN_ERROR);
    assert_int_equal(chan_listen(name, 0600, (gid_t) -1, &lock, err),
                     CHAN_ERROR);

    pair_close(&p);
}


/* What may stand where a hello or a welcome should be. */

static void
test_strangers(void **state)
{
    int             i, rc, fds[4];
    char            err[CHAN_ERR_LEN], junk[600];
    pair_t          p;
    chan_hello_t    hello, h;
    chan_welcome_t  w;

    static const struct {
        const char  *name;
        uint64_t     magic;
        uint32_t     version;
        size_t       size;
        int          rc, check;
    } cases[] = {
        { "right",  CHAN_MAGIC, CHAN_VERSION, sizeof(chan_hello_t),
          CHAN_OK, CHAN_OK },
        { "newer",  CHAN_MAGIC, CHAN_VERSION + 1, sizeof(chan_hello_t),
          CHAN_OK, CHAN_ERROR },
        { "newer and longer", CHAN_MAGIC, CHAN_VERSION + 1, 400,
          CHAN_OK, CHAN_ERROR },
        { "newer and shorter", CHAN_MAGIC, CHAN_VERSION + 1, 16,
          CHAN_OK, CHAN_ERROR },
        { "short",  CHAN_MAGIC, CHAN_VERSION, sizeof(chan_hello_t) - 1,
          CHAN_ERROR, 0 },
        { "oversized", CHAN_MAGIC, CHAN_VERSION, sizeof(chan_hello_t) + 1,
          CHAN_ERROR, 0 },
        { "prolog cut", CHAN_MAGIC, CHAN_VERSION, 15, CHAN_ERROR, 0 },
        { "one byte", CHAN_MAGIC, CHAN_VERSION, 1, CHAN_ERROR, 0 },
        { "nothing", CHAN_MAGIC, CHAN_VERSION, 0, CHAN_ERROR, 0 },
        { "foreign", CHAN_MAGIC ^ 1, CHAN_VERSION, sizeof(chan_hello_t),
          CHAN_ERROR, 0 },
        { "HTTP",  UINT64_C(0x2f20544547), CHAN_VERSION, 600, CHAN_ERROR, 0 },
    };

    (void) state;

    for (i = 0; i < (int) (sizeof(cases) / sizeof(cases[0])); i++) {
        pair_open(&p);

        memset(junk, 0, sizeof(junk));
        memset(&h, 0, sizeof(h));
        h.magic = cases[i].magic;
        h.version = cases[i].version;
        h.lane_size = 5;
        memcpy(junk, &h, sizeof(h));

        if (cases[i].size != 0) {
            assert_int_equal(send(p.worker, junk, cases[i].size, 0),
                             cases[i].size);
        } else {
            close(p.worker);
            p.worker = -1;
        }

        rc = chan_recv_hello(p.engine, &hello, err);

        if (rc != cases[i].rc) {
            fail_msg("%s: %d", cases[i].name, rc);
        }

        if (rc == CHAN_OK) {
            assert_int_equal(hello.version, cases[i].version);
            assert_int_equal(chan_hello_check(&hello, err), cases[i].check);
        }

        pair_close(&p);

        /* the same from the engine, as a refusal of the right length */

        if (cases[i].size != sizeof(chan_hello_t)) {
            continue;
        }

        pair_open(&p);
        memset(&w, 0, sizeof(w));
        w.magic = cases[i].magic;
        w.version = cases[i].version;
        w.status = CHAN_WELCOME_LIMIT;
        memset(w.reason, 'r', sizeof(w.reason));
        w.reason[5] = '\n';
        assert_int_equal(send(p.engine, &w, sizeof(w), 0), sizeof(w));

        rc = chan_recv_welcome(p.worker, &w, fds, err);
        assert_int_equal(rc, cases[i].rc);
        assert_int_equal(fds[0], -1);

        if (rc == CHAN_OK) {
            assert_int_equal(strlen(w.reason), sizeof(w.reason) - 1);
            assert_int_equal(w.reason[5], '?');
            assert_int_equal(chan_welcome_check(&w, err), CHAN_ERROR);
        }

        pair_close(&p);
    }
}


/* Sends `n` copies of `fd` with `size` bytes at `data`. */

static void
send_fds(int sock, const void *data, size_t size, int fd, int n)
{
    int              i;
    char             buf[CMSG_SPACE(64 * sizeof(int))];
    struct iovec     iov;
    struct msghdr    mh;
    struct cmsghdr  *cm;

    memset(&mh, 0, sizeof(mh));
    memset(buf, 0, sizeof(buf));
    iov.iov_base = (void *) data;
    iov.iov_len = size;
    mh.msg_iov = &iov;
    mh.msg_iovlen = 1;

    if (n != 0) {
        mh.msg_control = buf;
        mh.msg_controllen = CMSG_SPACE(n * sizeof(int));
        cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(n * sizeof(int));

        for (i = 0; i < n; i++) {
            memcpy(CMSG_DATA(cm) + i * sizeof(int), &fd, sizeof(int));
        }
    }

    assert_int_equal(sendmsg(sock, &mh, 0), size);
}


/* A wrong number of descriptors is refused, and none stays open. */

static void
test_descriptors(void **state)
{
    int             i, n, rc, before, fds[4];
    char            err[CHAN_ERR_LEN];
    pair_t          p;
    chan_hello_t    hello;
    chan_welcome_t  w;

    (void) state;

    for (n = 0; n <= 64; n++) {
        pair_open(&p);
        before = count_fds();

        memset(&w, 0, sizeof(w));
        w.magic = CHAN_MAGIC;
        w.version = CHAN_VERSION;
        send_fds(p.engine, &w, sizeof(w), p.listener, n);

        rc = chan_recv_welcome(p.worker, &w, fds, err);
        assert_int_equal(rc, n == 4 ? CHAN_OK : CHAN_ERROR);

        for (i = 0; i < 4; i++) {
            if (rc == CHAN_OK) {
                assert_int_equal(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
                close(fds[i]);

            } else {
                assert_int_equal(fds[i], -1);
            }
        }

        assert_int_equal(count_fds(), before);

        /* with a refusal, and with another version */

        w.status = CHAN_WELCOME_LIMIT;
        send_fds(p.engine, &w, sizeof(w), p.listener, n);
        assert_int_equal(chan_recv_welcome(p.worker, &w, fds, err),
                         n == 0 ? CHAN_OK : CHAN_ERROR);
        assert_int_equal(count_fds(), before);

        w.magic = CHAN_MAGIC;
        w.version = CHAN_VERSION + 1;
        w.status = CHAN_WELCOME_OK;
        send_fds(p.engine, &w, sizeof(w), p.listener, n);
        rc = chan_recv_welcome(p.worker, &w, fds, err);
        assert_int_equal(rc, n <= 16 ? CHAN_OK : CHAN_ERROR);
        assert_int_equal(count_fds(), before);

        /* a worker sends none */

        memset(&hello, 0, sizeof(hello));
        hello.magic = CHAN_MAGIC;
        hello.version = CHAN_VERSION;
        send_fds(p.worker, &hello, sizeof(hello), p.listener, n);
        assert_int_equal(chan_recv_hello(p.engine, &hello, err),
                         n == 0 ? CHAN_OK : CHAN_ERROR);
        assert_int_equal(count_fds(), before);

        pair_close(&p);
    }
}


static void
test_after_handshake(void **state)
{
    char    err[CHAN_ERR_LEN];
    pair_t  p;

    (void) state;

    pair_open(&p);
    assert_int_equal(chan_peer_alive(p.worker, err), CHAN_OK);
    assert_int_equal(send(p.engine, "x", 1, 0), 1);
    assert_int_equal(chan_peer_alive(p.worker, err), CHAN_ERROR);
    assert_non_null(strstr(err, "byte"));
    assert_int_equal(chan_peer_alive(-1, err), CHAN_ERROR);
    pair_close(&p);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_handshake),
        cmocka_unit_test(test_listen),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_after_handshake),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
