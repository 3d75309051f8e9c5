/*
 * The server as a worker sees it: cancels, credit, full rings, violations,
 * limits, death and shutdown.
 */

#include "unit/serve_worker.h"


/* Steps between the board as it was read before a CANCEL and the end. */

static uint64_t
cancel_one(worker_t *w, uint64_t id)
{
    uint64_t       step;
    reply_t        r;
    chan_submit_t  s;

    defaults(&s);
    s.max_tokens = 1000;
    ask(w, id, &s, 10);
    memset(&r, 0, sizeof(r));

    while (r.n_tokens < 5) {
        next(w, &r, id, -1);
    }

    step = board_step(w);
    small(w, id, CHAN_CANCEL, NULL, 0);
    small(w, id, CHAN_CANCEL, NULL, 0);

    while (!r.ended) {
        next(w, &r, id, -1);
    }

    assert_int_equal(r.reason, CHAN_CANCELLED);
    assert_int_equal(r.f.completion_tokens, r.n_tokens);
    assert_true(r.f.step >= step);
    board_free_between(w, 2 * BLOCKS, 2 * BLOCKS);

    return r.f.step - step;
}


/*
 * The step under way and the first without the sequence.  Steps go on between
 * the board's reading and the CANCEL when this process has to wait for a
 * processor, so the least of several counts.
 */

static void
test_cancel(void **state)
{
    uint64_t  id, steps, least;
    worker_t  w;

    (void) state;
    join(&w);
    atomic_store(&step_us, 3000);

    least = UINT64_MAX;

    for (id = 1; id <= 10 && least > 2; id++) {
        steps = cancel_one(&w, id);
        least = steps < least ? steps : least;
    }

    assert_in_range(least, 0, 2);

    leave(&w);
}


static void
test_worker_dies(void **state)
{
    int            i;
    reply_t        r;
    worker_t       w, dead;
    chan_submit_t  s;

    (void) state;
    join(&w);
    join(&dead);
    atomic_store(&step_us, 2000);

    defaults(&s);
    s.max_tokens = 1000;
    s.flags = CHAN_F_IGNORE_EOS;

    for (i = 0; i < 30; i++) {
        ask(&dead, (uint64_t) i + 1, &s, 10);
    }

    ask(&w, 1, &s, 10);
    memset(&r, 0, sizeof(r));

    while (next(&dead, &r, 0, -1) != CHAN_DELTA) { /* void */ }

    board_free_between(&w, 0, 2 * BLOCKS - 1);
    leave(&dead);

    /* Only its own end. */

    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_LENGTH);
    board_free_between(&w, 2 * BLOCKS, 2 * BLOCKS);

    leave(&w);
}


/* Reads until `bytes` have come, and then what comes beyond. */

static void
until(worker_t *w, reply_t *r, size_t bytes)
{
    int  i;

    for (i = 0; i < 50 && r->bytes < bytes; i++) {
        (void) next(w, r, 1, 700);
    }

    while (next(w, r, 1, 700) >= 0) { /* void */ }
}


/* As much comes as there is credit for, and at most one record more. */

static void
test_credit(void **state)
{
    size_t         before;
    reply_t        r, other;
    worker_t       w;
    chan_window_t  win;
    chan_submit_t  s;

    (void) state;
    join(&w);

    defaults(&s);
    s.max_tokens = 300;
    s.credit = 1000;
    ask(&w, 1, &s, 10);
    memset(&r, 0, sizeof(r));

    until(&w, &r, 1000);

    assert_false(r.ended);
    assert_true(r.bytes >= 1000);
    assert_true(r.bytes < 1000 + 200);
    before = r.bytes;

    /* Others go on. */
    defaults(&s);
    ask(&w, 2, &s, 10);
    all(&w, &other, 2);
    assert_int_equal(other.reason, CHAN_LENGTH);

    win.credit = 500;
    small(&w, 1, CHAN_WINDOW, &win, sizeof(win));

    until(&w, &r, 1500);

    assert_true(r.bytes >= 1500 && r.bytes > before);
    assert_true(r.bytes < 1500 + 200);

    win.credit = 1 << 30;
    small(&w, 1, CHAN_WINDOW, &win, sizeof(win));

    while (!r.ended) {
        next(&w, &r, 1, -1);
    }

    assert_int_equal(r.f.completion_tokens, 300);
    assert_int_equal(r.n_tokens, 300);

    /* For a request that is not there: ignored. */
    small(&w, 77, CHAN_WINDOW, &win, sizeof(win));
    small(&w, 77, CHAN_CANCEL, NULL, 0);

    leave(&w);
}


/* A worker that does not read its ring pauses; others do not notice. */

static void
test_full_ring(void **state)
{
    int             i, ended;
    reply_t         r;
    worker_t        w, lazy;
    chan_submit_t   s;
    chan_welcome_t  welcome;

    (void) state;
    join(&w);
    assert_int_equal(dial(&lazy, 2 * CHAN_RING_MIN, &welcome), 0);

    defaults(&s);
    s.max_tokens = 1500;
    s.flags = CHAN_F_IGNORE_EOS | CHAN_F_LOGPROBS;
    s.top_logprobs = 20;

    for (i = 0; i < 4; i++) {
        ask(&lazy, (uint64_t) i + 1, &s, 10);
    }

    nap(300);

    defaults(&s);
    ask(&w, 1, &s, 10);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_LENGTH);

    /* It wakes up, and not a byte is lost. */

    memset(&r, 0, sizeof(r));
    ended = 0;

    while (ended < 4) {
        switch (next(&lazy, &r, 0, -1)) {

        case CHAN_FINISH:
            assert_int_equal(r.f.completion_tokens, 1500);
            ended++;
            r.ended = 0;
            break;

        case -1:
            fail_msg("nothing comes");
        }

        r.text[0] = '\0';
    }

    assert_int_equal(r.n_tokens, 4 * 1500);

    leave(&lazy);
    leave(&w);
}


static void
test_violations(void **state)
{
    int             i;
    char            err[CHAN_ERR_LEN];
    reply_t         r;
    worker_t        w, bad;
    chan_window_t   win = { 5 };
    chan_submit_t   s;
    struct pollfd   pfd;

    (void) state;
    join(&w);

    for (i = 0; i < 4; i++) {
        join(&bad);
        defaults(&s);
        s.max_tokens = 1000;

        switch (i) {
        case 0:
            small(&bad, 1, 99, NULL, 0);
            break;

        case 1:
            atomic_store(&step_us, 2000);
            ask(&bad, 1, &s, 3);
            ask(&bad, 1, &s, 3);
            break;

        case 2:
            AO_store(&bad.lane.out.ctl->head, 12345677);
            (void) write(bad.lane.bell_peer, &(uint64_t) { 1 }, 8);
            break;

        case 3:
            s.temperature = NAN;
            ask(&bad, 1, &s, 3);
            break;
        }

        pfd.fd = bad.lane.sock;
        pfd.events = POLLIN;
        assert_int_equal(poll(&pfd, 1, 5000), 1);
        assert_int_equal(chan_peer_alive(bad.lane.sock, err), CHAN_ERROR);
        leave(&bad);
    }

    atomic_store(&step_us, 0);
    defaults(&s);
    small(&w, 77, CHAN_WINDOW, &win, sizeof(win));
    ask(&w, 1, &s, 10);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_LENGTH);

    leave(&w);
}


static void
test_strangers(void **state)
{
    int                 i, sock[3];
    worker_t            w[9];
    chan_hello_t        hello;
    chan_welcome_t      welcome;
    struct sockaddr_un  sa;

    (void) state;

    for (i = 0; i < 8; i++) {
        join(&w[i]);
    }

    assert_int_equal(dial(&w[8], 0, &welcome), -1);
    assert_int_equal(welcome.status, CHAN_WELCOME_LIMIT);
    leave(&w[0]);
    nap(50);
    join(&w[0]);

    for (i = 1; i < 8; i++) {
        leave(&w[i]);
    }

    nap(50);

    /* Another version is told so; nonsense is cut off; silence too, later. */

    memset(&sa, 0, sizeof(sa));
    sa.sun_family = AF_UNIX;
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);

    for (i = 0; i < 3; i++) {
        sock[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(connect(sock[i], (struct sockaddr *) &sa,
                                 sizeof(sa)), 0);
    }

    memset(&hello, 0, sizeof(hello));
    hello.magic = CHAN_MAGIC;
    hello.version = CHAN_VERSION + 1;
    assert_int_equal(write(sock[0], &hello, sizeof(hello)), sizeof(hello));
    assert_int_equal(write(sock[1], "GET / HTTP/1.0\r\n\r\n", 18), 18);

    assert_int_equal(read(sock[0], &welcome, sizeof(welcome)),
                     sizeof(welcome));
    assert_int_equal(welcome.status, CHAN_WELCOME_VERSION);
    assert_int_equal(read(sock[1], &welcome, sizeof(welcome)), 0);

    for (i = 0; i < 3; i++) {
        close(sock[i]);
    }

    leave(&w[0]);
}


static void
test_queue(void **state)
{
    int            i, refused, done;
    reply_t        r;
    worker_t       w;
    chan_submit_t  s;

    (void) state;

    start_with(1, 2, 3, 8);
    join(&w);
    atomic_store(&step_us, 2000);

    defaults(&s);
    s.max_tokens = 30;
    s.flags = CHAN_F_IGNORE_EOS;

    for (i = 0; i < 40; i++) {
        ask(&w, (uint64_t) i + 1, &s, 10);
    }

    memset(&r, 0, sizeof(r));

    for (refused = 0, done = 0; refused + done < 40; ) {
        switch (next(&w, &r, 0, -1)) {

        case CHAN_ACCEPTED:
            break;

        case CHAN_FINISH:
            done++;
            break;

        case CHAN_ERROR_REC:
            assert_int_equal(r.reason, CHAN_E_QUEUE);
            refused++;
            break;

        case -1:
            fail_msg("nothing comes");
        }

        r.ended = 0;
    }

    /* Two ran and three waited, at least; far from all did. */
    assert_in_range(done, 5, 12);

    /* Waiting longer than one may. */
    defaults(&s);
    s.max_tokens = 200;
    s.flags = CHAN_F_IGNORE_EOS;
    ask(&w, 1, &s, 10);
    ask(&w, 2, &s, 10);
    nap(30);
    s.queue_timeout = 50;
    ask(&w, 3, &s, 10);
    done = 0;

    while (!done) {
        memset(&r, 0, sizeof(r));
        i = next(&w, &r, 0, -1);
        assert_true(i >= 0);

        if (i == CHAN_ERROR_REC) {
            assert_int_equal(r.reason, CHAN_E_TIMEOUT);
            done = 1;
        }
    }

    leave(&w);
    assert_int_equal(stop(NULL), 0);
}


/* What runs may finish; the socket is gone at once. */

static void
test_shutdown(void **state)
{
    reply_t        r;
    worker_t       w;
    chan_submit_t  s;

    (void) state;

    start_with(1, 1, 3, 8);
    join(&w);
    atomic_store(&step_us, 2000);

    defaults(&s);
    s.max_tokens = 100;
    s.flags = CHAN_F_IGNORE_EOS;
    ask(&w, 1, &s, 10);
    memset(&r, 0, sizeof(r));

    while (next(&w, &r, 1, -1) != CHAN_DELTA) { /* void */ }

    kill(getpid(), SIGTERM);
    nap(60);
    assert_int_not_equal(access(path, F_OK), 0);

    while (!r.ended) {
        next(&w, &r, 1, -1);
    }

    assert_int_equal(r.reason, CHAN_LENGTH);
    pthread_join(thread, NULL);
    assert_int_equal(rc_run, 0);
    leave(&w);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(test_cancel, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_worker_dies, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_credit, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_full_ring, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_violations, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_strangers, start,
                                        stop),
        cmocka_unit_test(test_queue),
        cmocka_unit_test(test_shutdown)
    };

    ahead = 1;

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
