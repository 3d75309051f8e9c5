/*
 * The scripted engine when something goes wrong: requests that it refuses, ends
 * that it plays, and records that no worker sends.
 */

#include "unit/scripted_client.h"


static const char *const  none[] = { NULL };


static void
test_refusals(void **state)
{
    static const char *const  limit[] = { "--max-lanes", "0", NULL };
    static const char *const  denied[] = { "--refuse", "denied", NULL };
    static const char *const  version[] = { "--version", "7", NULL };

    (void) state;

    start(limit);
    assert_int_equal(join(0), CHAN_WELCOME_LIMIT);
    assert_int_equal(stop(), 0);

    start(denied);
    assert_int_equal(join(0), CHAN_WELCOME_DENIED);
    assert_int_equal(stop(), 0);

    start(version);
    assert_int_equal(join(0), CHAN_WELCOME_VERSION);
    assert_int_equal(c.welcome.version, 7);
    assert_int_equal(stop(), 0);

    start(none);
    assert_int_equal(join(1), CHAN_WELCOME_BAD);
    assert_int_equal(stop(), 0);
}


static void
test_incidents(void **state)
{
    int            i, status;
    char           text[64];
    chan_submit_t  s;

    static const char *const  kinds[] = { "head", "size", "type", "text",
                                          "id", "zero", "order", "token" };

    (void) state;

    defaults(&s, CHAN_CHAT);

    /* the process ends: the socket says so, what was sent can be read */

    start(none);
    assert_int_equal(join(0), CHAN_WELCOME_OK);
    submit_text(1, &s, "tokens=5 die_after=2");
    assert_int_equal(collect(1, 0, 5000), CHAN_ERROR);
    assert_string_equal(c.got, "A4/0@0 [w1|1][ w2|2]");
    status = stop();
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);

    /* it hangs: the heartbeat says so */

    start(none);
    assert_int_equal(join(0), CHAN_WELCOME_OK);
    submit_text(1, &s, "tokens=5 hang_after=1");
    assert_int_equal(collect(1, 0, 300), CHAN_AGAIN);
    assert_int_equal(chan_board_stale(c.board), 0);

    for (i = 0; i < 70 && chan_board_stale(c.board) == 0; i++) {
        usleep(100000);
    }

    assert_int_equal(chan_board_stale(c.board), 1);
    assert_int_equal(stop(), 0);

    /* violations: some are seen by the ring, some by a decoder */

    for (i = 0; i < (int) (sizeof(kinds) / sizeof(kinds[0])); i++) {
        start(none);
        assert_int_equal(join(0), CHAN_WELCOME_OK);
        snprintf(text, sizeof(text), "tokens=5 corrupt=%s corrupt_after=1",
                 kinds[i]);
        submit_text(1, &s, text);

        if (i == 4) {
            assert_int_equal(collect(1, 0, 200), CHAN_AGAIN);

        } else if (i == 6) {
            assert_int_equal(collect(1, 0, 200), CHAN_AGAIN);
            assert_string_equal(c.got, "A5/0@0 [w1|1]A0/0@0 ");

        } else {
            assert_int_equal(collect(1, 0, 200), CHAN_ERROR);
            assert_int_equal(chan_peer_alive(c.lane.sock, text), CHAN_OK);
        }

        assert_int_equal(stop(), 0);
    }

    start(none);
    assert_int_equal(join(0), CHAN_WELCOME_OK);
    submit_text(1, &s, "tokens=5 corrupt=cursor");
    assert_int_equal(collect(1, 0, 100), CHAN_AGAIN);
    assert_int_equal(chan_ring_room(&c.lane.out, text), CHAN_ERROR);
    assert_int_equal(stop(), 0);
}


/* What a worker must not do costs it its lane, and the engine nothing. */

static void
test_violations(void **state)
{
    int            i;
    char           err[CHAN_ERR_LEN];
    chan_more_t    more;
    chan_submit_t  s;
    struct pollfd  pfd;

    (void) state;

    start(none);

    for (i = 0; i < 7; i++) {
        assert_int_equal(join(0), CHAN_WELCOME_OK);
        defaults(&s, CHAN_CHAT);
        memset(&more, 0, sizeof(more));

        switch (i) {
        case 0:
            send_record(55, 1, NULL, 0, NULL, 0);
            break;
        case 1:
            submit_text(1, &s, "first=10000");
            submit_text(1, &s, "x");
            break;
        case 2:
            send_record(CHAN_SUBMIT_MORE, 1, &more, sizeof(more), &s, 8);
            break;
        case 3:
            s.temperature = NAN;
            submit_text(1, &s, "x");
            break;
        case 4:
            submit_text(1, &s, "x\xff");
            break;
        case 5:
            AO_store_release(&c.lane.out.ctl->head, 12345);
            AO_store_release(&c.lane.out.ctl->consumer_sleeps, 1);
            chan_ring_notify_data(&c.lane.out);
            break;
        case 6:
            AO_store_release(&c.lane.in.ctl->tail, 8);   /* and never more */
            s.credit = CHAN_CREDIT_MAX;
            submit_text(1, &s, "tokens=100000");

            while (chan_ring_room(&c.lane.out, err) >= 0
                   && AO_load_acquire(&c.lane.in.ctl->producer_waits) == 0)
            {
                usleep(1000);
            }

            AO_store_release(&c.lane.in.ctl->tail, (AO_t) -8);
            AO_store_release(&c.lane.in.ctl->producer_waits, 0);
            chan_ring_notify_data(&c.lane.out);
            submit_text(2, &s, "x");
            break;
        }

        if (i < 6) {
            assert_int_equal(collect(1, 0, 5000), CHAN_ERROR);

        } else {
            pfd.fd = c.lane.sock;
            pfd.events = POLLIN;
            assert_int_equal(poll(&pfd, 1, 5000), 1);
        }

        assert_int_equal(chan_peer_alive(c.lane.sock, err), CHAN_ERROR);
        leave();
    }

    assert_int_equal(join(0), CHAN_WELCOME_OK);
    defaults(&s, CHAN_CHAT);
    submit_text(1, &s, "still there");
    assert_int_equal(collect(1, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, "A4/0@0 [still|1][ there|2] Fstop 4+2/0");
    assert_int_equal(stop(), 0);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_incidents),
        cmocka_unit_test(test_violations),
    };

    alarm(60);       /* a hang is a failure too */

    return cmocka_run_group_tests(tests, NULL, NULL);
}
