/*
 * The scripted engine itself, by a client that checks every record: what the
 * module's tests rely on is tested here, without nginx.
 */

#include "unit/scripted_client.h"


static const char *const  none[] = { NULL };


static void
test_answers(void **state)
{
    int            i;
    chan_submit_t  s;

    static const struct {
        uint32_t     endpoint, flags, top, max_tokens;
        const char  *text, *want;
    } cases[] = {
        { CHAN_CHAT, 0, 0, -1, "hello you",
          "A4/0@0 [hello|1][ you|2] Fstop 4+2/0" },
        { CHAN_CHAT, 0, 0, -1, "tokens=3",
          "A3/0@0 [w1|1][ w2|2][ w3|3] Fstop 3+3/0" },
        { CHAN_CHAT, 0, 0, 2, "tokens=3",
          "A3/0@0 [w1|1][ w2|2] Flength 3+2/0" },
        { CHAN_CHAT, 0, 0, 3, "tokens=3",
          "A3/0@0 [w1|1][ w2|2][ w3|3] Fstop 3+3/0" },
        { CHAN_CHAT, 0, 0, -1, "one\ntwo \xc3\xa9\nscript: finish=length",
          "A7/0@0 [one|1][\ntwo|2][ \xc3\xa9|3][\n|4] Flength 7+4/0" },
        { CHAN_CHAT, 0, 0, -1, "x=1 tokens=2",
          "A4/0@0 [x=1|1][ tokens=2|2] Fstop 4+2/0" },
        { CHAN_CHAT, 0, 0, -1, "reasoning=2 tokens=1 cached=7 rank=0",
          "A6/7@0 r:[r1|1]r:[ r2|2][w1|3] Fstop 6+3/2" },
        { CHAN_CHAT, 0, 0, -1, "text=a%20%E2%82%ACb",
          "A3/0@0 [a|1][ |2][\xe2\x82\xac|3][b|4] Fstop 3+4/0" },
        { CHAN_CHAT, 0, 0, -1, "bytes=1 text=%E2%82%ACb",
          "A4/0@0 [|1][|2][\xe2\x82\xac|3][b|4] Fstop 4+4/0" },
        { CHAN_CHAT, 0, 0, -1, "batch=2 tokens=3",
          "A4/0@0 [w1 w2|1|2][ w3|3] Fstop 4+3/0" },
        { CHAN_CHAT, CHAN_F_LOGPROBS, 2, -1, "tokens=1",
          "A3/0@0 [w1|1(w1 -0.375 w1:-0.375  alt1:-1.375)] Fstop 3+1/0" },
        { CHAN_COMPLETION, CHAN_F_ECHO|CHAN_F_LOGPROBS, 0, 0, "a b",
          "A2/0@0 e:[a b|1(a nan)|2( b -0.625)] Flength 2+0/0" },
        { CHAN_COMPLETION, CHAN_F_ECHO, 0, 1, "a b",
          "A2/0@0 e:[a b|1|2][a|1] Flength 2+1/0" },
        { CHAN_COMPLETION, 0, 0, -1, "", "A0/0@0  Fstop 0+0/0" },
        { CHAN_CHAT, 0, 0, -1, "error=queue retry=9", " E5 'scripted error: "
          "queue' '' 9" },
        { CHAN_CHAT, 0, 0, -1, "error=invalid param=top_p message=no%20way",
          " E1 'no way' 'top_p' 0" },
        { CHAN_CHAT, 0, 0, -1, "prompt_tokens=65537",
          " E2 'the prompt is longer than the context' 'messages' 0" },
        { CHAN_CHAT, 0, 0, -1, "prompt_tokens=65534 tokens=5",
          "A65534/0@0 [w1|1][ w2|2] Flength 65534+2/0" },
        { CHAN_CHAT, 0, 0, -1, "tokens=9 fail_after=1",
          "A4/0@0 [w1|1] E8 'scripted error: internal' '' 0" },
        { CHAN_CHAT, 0, 0, -1, "tokens=1 fail_after=5",
          "A4/0@0 [w1|1] E8 'scripted error: internal' '' 0" },
    };

    (void) state;

    start(none);
    assert_int_equal(join(0), CHAN_WELCOME_OK);

    for (i = 0; i < (int) (sizeof(cases) / sizeof(cases[0])); i++) {
        defaults(&s, cases[i].endpoint);
        s.flags = cases[i].flags;
        s.top_logprobs = cases[i].top;
        s.max_tokens = cases[i].max_tokens;
        submit_text((uint64_t) i + 1, &s, cases[i].text);
        assert_int_equal(collect((uint64_t) i + 1, 0, 5000), CHAN_OK);
        assert_string_equal(c.got, cases[i].want);
    }

    assert_int_equal(stop(), 0);
}


static void
test_sections(void **state)
{
    int32_t        ids[] = { 5, 900 };
    chan_body_t    body;
    chan_submit_t  s;

    (void) state;

    start(none);
    assert_int_equal(join(0), CHAN_WELCOME_OK);

    memset(&body, 0, sizeof(body));
    defaults(&s, CHAN_COMPLETION);
    s.flags = CHAN_F_ECHO;
    chan_body_put(&body, CHAN_SEC_IDS, NULL, 0, ids, sizeof(ids));
    submit(1, &s, &body);
    assert_int_equal(collect(1, 0, 5000), CHAN_OK);
    assert_string_equal(c.got,
                        "A2/0@0 e:[t5 t900|5|900][t5|1][ t900|2] Fstop 2+2/0");

    s.flags = 0;
    chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, "ab cde fgh ij", 13);
    chan_body_put(&body, CHAN_SEC_STOP, NULL, 0, "h i", 3);
    chan_body_put(&body, CHAN_SEC_STOP, NULL, 0, "zz", 2);
    submit(2, &s, &body);
    assert_int_equal(collect(2, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, "A4/0@0 [ab|1][ cde|2][ fg|3][|4] Fstop 4+4/0");

    assert_int_equal(stop(), 0);
}


/* A megabyte goes through a small lane and comes back whole. */

static void
test_large(void **state)
{
    int            rc, records;
    char          *text, err[CHAN_ERR_LEN];
    size_t         i, n, seen;
    chan_body_t    body;
    chan_record_t *rec;
    chan_submit_t  s;
    chan_delta_view_t  v;

    (void) state;

    start(none);
    assert_int_equal(join(2 * CHAN_RING_MIN), CHAN_WELCOME_OK);

    n = 1 << 20;
    text = malloc(n);
    assert_non_null(text);

    for (i = 0; i < n; i++) {
        text[i] = i % 7 == 6 ? ' ' : (char) ('a' + i % 23);
    }

    memset(&body, 0, sizeof(body));
    defaults(&s, CHAN_COMPLETION);
    s.credit = CHAN_CREDIT_MAX;
    s.max_context = 0;
    s.max_tokens = 0;
    s.flags = CHAN_F_ECHO;
    n = 300000;
    chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, text, n);
    submit(1, &s, &body);

    seen = 0;
    records = 0;
    rec = (chan_record_t *) c.buf;

    for ( ;; ) {
        rc = chan_ring_read(&c.lane.in, c.buf, sizeof(c.buf), err);
        assert_int_not_equal(rc, CHAN_ERROR);

        if (rc == CHAN_AGAIN) {
            chan_ring_notify_room(&c.lane.in);
            usleep(500);
            continue;
        }

        if (rec->type == CHAN_FINISH) {
            break;
        }

        records++;

        if (rec->type == CHAN_DELTA) {
            assert_int_equal(chan_get_delta(rec, &v, err), CHAN_OK);
            assert_memory_equal(v.text, text + seen, v.delta->text_size);
            seen += v.delta->text_size;
        }
    }

    assert_int_equal(seen, n);
    assert_true(records > 1000);
    free(text);
    assert_int_equal(stop(), 0);
}


/* Nothing is sent at a credit of 0 or less; one DELTA at most exceeds it. */

static void
test_credit(void **state)
{
    int            i;
    chan_submit_t  s;

    (void) state;

    start(none);
    assert_int_equal(join(0), CHAN_WELCOME_OK);

    defaults(&s, CHAN_CHAT);
    s.credit = 57;      /* a DELTA of one short word has 16 + 16 + 8 + 16 */
    c.cost = 0;
    submit_text(1, &s, "tokens=8");
    assert_int_equal(collect(1, 0, 100), CHAN_AGAIN);
    assert_string_equal(c.got, "A3/0@0 [w1|1][ w2|2]");
    assert_int_equal(c.cost, 112);

    window(1, 55);      /* exactly 0: still nothing */
    assert_int_equal(collect(1, 0, 100), CHAN_AGAIN);
    assert_string_equal(c.got, "");

    for (i = 0; i < 3; i++) {
        window(1, i == 0 ? 1 : 56);
        assert_int_equal(collect(1, 0, 50), CHAN_AGAIN);
    }

    window(1, 1 << 20);
    assert_int_equal(collect(1, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, "[ w6|6][ w7|7][ w8|8] Fstop 3+8/0");

    /* without any credit; others go on */

    s.credit = 0;
    submit_text(2, &s, "tokens=1");
    s.credit = 1000;
    submit_text(3, &s, "tokens=2");
    assert_int_equal(collect(3, 0, 5000), CHAN_OK);
    send_record(CHAN_CANCEL, 2, NULL, 0, NULL, 0);
    assert_int_equal(collect(2, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, " Fcancelled 3+0/0");

    assert_int_equal(stop(), 0);
}


static uint64_t
wait_board(uint64_t running, uint64_t waiting)
{
    int                 i;
    chan_board_state_t  s;

    for (i = 0; i < 500; i++) {
        assert_int_equal(chan_board_get_state(c.board, &s), CHAN_OK);

        if (s.running == running && s.waiting == waiting) {
            return s.step;
        }

        usleep(5000);
    }

    fail_msg("running %d, waiting %d", (int) s.running, (int) s.waiting);

    return 0;
}


static void
test_cancel(void **state)
{
    uint64_t       step;
    chan_submit_t  s;

    (void) state;

    start(none);
    assert_int_equal(join(0), CHAN_WELCOME_OK);
    defaults(&s, CHAN_CHAT);

    submit_text(1, &s, "tokens=100000 delay=20");
    assert_int_equal(collect(1, 3, 5000), CHAN_AGAIN);
    wait_board(1, 0);
    send_record(CHAN_CANCEL, 1, NULL, 0, NULL, 0);
    assert_int_equal(collect(1, 0, 5000), CHAN_OK);
    assert_non_null(strstr(c.got, "Fcancelled"));
    wait_board(0, 0);

    /* in the queue, and for an id that is not there */

    submit_text(2, &s, "first=100000");
    wait_board(0, 1);
    send_record(CHAN_CANCEL, 2, NULL, 0, NULL, 0);
    send_record(CHAN_CANCEL, 77, NULL, 0, NULL, 0);
    window(77, 5);
    assert_int_equal(collect(2, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, " Fcancelled 3+0/0");

    /* a worker that goes away takes its requests along */

    submit_text(3, &s, "tokens=100000 delay=50");
    submit_text(4, &s, "first=100000");
    step = wait_board(1, 1);
    leave();
    assert_int_equal(join(0), CHAN_WELCOME_OK);
    assert_true(wait_board(0, 0) >= step);

    assert_int_equal(stop(), 0);
}


static void
test_queue(void **state)
{
    chan_submit_t  s;

    static const char *const  args[] = { "--slots", "1", "--queue", "1",
                                         "--delay", "20", NULL };

    (void) state;

    start(args);
    assert_int_equal(join(0), CHAN_WELCOME_OK);
    defaults(&s, CHAN_CHAT);

    submit_text(1, &s, "tokens=10");
    submit_text(2, &s, "tokens=1");
    submit_text(3, &s, "tokens=1");
    assert_int_equal(collect(3, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, " E5 'the queue is full' '' 1");
    wait_board(1, 1);

    s.queue_max = 2;
    s.priority = 1;
    s.queue_timeout = 30;
    submit_text(4, &s, "tokens=1");
    assert_int_equal(collect(4, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, " E6 'waited too long' '' 1");

    assert_int_equal(collect(2, 0, 5000), CHAN_OK);
    assert_string_equal(c.got, "A3/0@0 [w1|1] Fstop 3+1/0");

    s.queue_timeout = 0;
    s.deadline = 70;
    submit_text(5, &s, "tokens=100");
    assert_int_equal(collect(5, 0, 5000), CHAN_OK);
    assert_non_null(strstr(c.got, " E6 'deadline passed'"));

    assert_int_equal(stop(), 0);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_sections),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_credit),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_queue),
    };

    alarm(60);       /* a hang is a failure too */

    return cmocka_run_group_tests(tests, NULL, NULL);
}
