/*
 * The server as a worker sees it: what requests are answered with.
 */

#include "unit/serve_worker.h"


static void
test_completion(void **state)
{
    char                *want;
    reply_t              r;
    worker_t             w;
    chan_submit_t        s;
    chan_board_model_t   m;

    (void) state;
    join(&w);

    assert_int_equal(chan_board_get_model(w.board, &m), CHAN_OK);
    assert_string_equal(m.names, "recital");
    assert_string_equal(m.names + 8, "alias");
    assert_int_equal(m.names[14], 0);
    assert_int_equal(m.max_context, 2048);
    assert_int_equal(m.fingerprint, 4711);
    assert_int_equal(m.has_template, 1);

    defaults(&s);
    s.max_tokens = 200;
    s.flags = CHAN_F_SEED | CHAN_F_LOGPROBS;
    s.seed = 99;
    s.top_logprobs = 5;
    ask(&w, 1, &s, 3);
    all(&w, &r, 1);

    want = recital(3, 200);
    assert_int_equal(r.ended, CHAN_FINISH);
    assert_int_equal(r.reason, CHAN_LENGTH);
    assert_string_equal(r.text, want);
    assert_int_equal(r.bad, 0);
    assert_int_equal(r.n_tokens, 200);
    assert_int_equal(r.a.seed, 99);
    assert_int_equal(r.a.prompt_tokens, 3);
    assert_int_equal(r.f.prompt_tokens, 3);
    assert_int_equal(r.f.completion_tokens, 200);
    assert_true(r.f.first_us >= r.f.queue_us);
    assert_true(r.f.total_us >= r.f.first_us);
    free(want);

    /* The id may be used again at once. */
    ask(&w, 1, &s, 4);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_LENGTH);

    leave(&w);
}


static void
test_stop_string(void **state)
{
    char           *want;
    reply_t         r;
    worker_t        w;
    chan_body_t     b;
    chan_submit_t   s;

    (void) state;
    join(&w);

    defaults(&s);
    s.max_tokens = 500;
    memset(&b, 0, sizeof(b));
    prompt(&b, 2);
    assert_int_equal(chan_body_put(&b, CHAN_SEC_STOP, NULL, 0, " STOP it", 8),
                     CHAN_OK);
    submit(&w, 5, &s, &b);
    all(&w, &r, 5);
    chan_body_free(&b);

    assert_int_equal(r.reason, CHAN_STOP);
    want = recital(2, (uint32_t) r.n_tokens);
    assert_non_null(strstr(want, " STOP it"));
    *strstr(want, " STOP it") = '\0';
    assert_string_equal(r.text, want);
    assert_int_equal(r.f.completion_tokens, r.n_tokens);
    free(want);

    leave(&w);
}


static void
test_echo_and_score(void **state)
{
    reply_t         r;
    worker_t        w;
    chan_body_t     b;
    chan_submit_t   s;

    (void) state;
    join(&w);

    defaults(&s);
    s.max_tokens = 0;
    s.flags = CHAN_F_ECHO | CHAN_F_LOGPROBS;
    memset(&b, 0, sizeof(b));
    assert_int_equal(chan_body_put(&b, CHAN_SEC_TEXT, NULL, 0, story,
                                   strlen(story)), CHAN_OK);
    submit(&w, 5, &s, &b);
    all(&w, &r, 5);

    assert_int_equal(r.reason, CHAN_LENGTH);
    assert_string_equal(r.echo, story);
    assert_string_equal(r.text, "");
    assert_int_equal(r.n_echo, ids.n + (size_t) tok_add_bos(tok));
    assert_int_equal(r.f.prompt_tokens, r.n_echo);
    assert_int_equal(r.f.completion_tokens, 0);

    s.flags = CHAN_F_ECHO;
    s.max_tokens = 3;
    submit(&w, 6, &s, &b);
    all(&w, &r, 6);
    assert_string_equal(r.echo, story);
    assert_int_equal(r.n_tokens, 3);

    chan_body_free(&b);
    leave(&w);
}


/* The same again from one seed, and from the middle. */

/* What a request leaves open is the model's own. */

static void
test_own_sampling(void **state)
{
    reply_t         given, own;
    worker_t        w;
    chan_submit_t   s;

    (void) state;
    join(&w);

    defaults(&s);
    s.max_tokens = 60;
    s.flags = CHAN_F_SEED;
    s.seed = 5;
    s.temperature = options.temperature;
    s.top_p = options.top_p;
    ask(&w, 5, &s, 3);
    all(&w, &given, 5);

    s.flags = CHAN_F_SEED | CHAN_F_OWN_T | CHAN_F_OWN_TOP_P;
    s.temperature = 0;
    s.top_p = 1;
    ask(&w, 6, &s, 3);
    all(&w, &own, 6);
    assert_int_equal(own.n_tokens, 60);
    assert_memory_equal(given.id, own.id, 60 * sizeof(int32_t));

    s.flags = CHAN_F_SEED | CHAN_F_OWN_TOP_P;
    ask(&w, 7, &s, 3);
    all(&w, &own, 7);
    assert_memory_not_equal(given.id, own.id, 60 * sizeof(int32_t));

    s.flags = CHAN_F_SEED | CHAN_F_OWN_T;
    ask(&w, 8, &s, 3);
    all(&w, &own, 8);
    assert_memory_not_equal(given.id, own.id, 60 * sizeof(int32_t));

    leave(&w);
}


static void
test_resume(void **state)
{
    char            end[4];
    size_t          cut, n, i;
    reply_t         r, again;
    worker_t        w;
    chan_body_t     b;
    chan_submit_t   s;

    (void) state;
    join(&w);

    defaults(&s);
    s.max_tokens = 60;
    s.temperature = 3;
    s.flags = CHAN_F_SEED;
    s.seed = 5;
    ask(&w, 5, &s, 3);
    all(&w, &r, 5);
    assert_int_equal(r.n_tokens, 60);

    ask(&w, 6, &s, 3);
    all(&w, &again, 6);
    assert_memory_equal(r.id, again.id, 60 * sizeof(int32_t));

    /* 20 tokens came through, and of their text but the first 10 bytes. */

    memset(&b, 0, sizeof(b));
    prompt(&b, 3);
    assert_int_equal(chan_body_put(&b, CHAN_SEC_RESUME_IDS, NULL, 0, r.id,
                                   20 * sizeof(int32_t)), CHAN_OK);
    cut = 10;

    while ((r.text[cut] & 0xc0) == 0x80) {
        cut++;
    }

    s.resume_bytes = cut;
    submit(&w, 7, &s, &b);
    all(&w, &again, 7);
    chan_body_free(&b);

    assert_int_equal(again.n_tokens, 40);
    assert_memory_equal(r.id + 20, again.id, 40 * sizeof(int32_t));
    assert_int_equal(again.f.completion_tokens, 60);
    assert_string_equal(again.text, r.text + cut);

    /* All of them did, but for FINISH. */

    memset(&b, 0, sizeof(b));
    prompt(&b, 3);
    assert_int_equal(chan_body_put(&b, CHAN_SEC_RESUME_IDS, NULL, 0, r.id,
                                   60 * sizeof(int32_t)), CHAN_OK);
    submit(&w, 8, &s, &b);
    all(&w, &again, 8);
    chan_body_free(&b);

    assert_int_equal(again.n_tokens, 0);
    assert_int_equal(again.reason, CHAN_LENGTH);
    assert_int_equal(again.f.completion_tokens, 60);
    assert_string_equal(again.text, r.text + cut);

    /* They end with a stop string. */

    memset(end, 0, sizeof(end));
    memcpy(end, r.text + cut, 3);
    s.resume_bytes = 0;
    n = 0;

    for (i = 0; i < 2; i++) {
        memset(&b, 0, sizeof(b));
        prompt(&b, 3);
        assert_int_equal(chan_body_put(&b, CHAN_SEC_STOP, NULL, 0, end,
                                       strlen(end)), CHAN_OK);

        if (i == 1) {
            assert_int_equal(chan_body_put(&b, CHAN_SEC_RESUME_IDS, NULL, 0,
                                           r.id, n * sizeof(int32_t)),
                             CHAN_OK);
        }

        submit(&w, 9 + i, &s, &b);
        all(&w, &again, 9 + i);
        chan_body_free(&b);

        assert_int_equal(again.reason, CHAN_STOP);
        assert_int_equal(again.n_tokens, i == 0 ? n = again.f.completion_tokens
                                                : 0);
        assert_int_equal(again.f.completion_tokens, n);
        assert_int_equal(strlen(again.text),
                         strstr(r.text, end) - r.text);
        assert_memory_equal(again.text, r.text, strlen(again.text));
    }

    /* And with the end of text. */

    memset(&b, 0, sizeof(b));
    prompt(&b, 3);
    r.id[20] = tok_eos(tok);
    assert_int_equal(chan_body_put(&b, CHAN_SEC_RESUME_IDS, NULL, 0, r.id,
                                   21 * sizeof(int32_t)), CHAN_OK);
    submit(&w, 11, &s, &b);
    all(&w, &again, 11);
    assert_int_equal(again.reason, CHAN_STOP);
    assert_int_equal(again.n_tokens, 0);
    assert_int_equal(again.f.completion_tokens, 21);
    assert_memory_equal(again.text, r.text, strlen(again.text));

    /* But not before their own end. */

    assert_int_equal(chan_body_put(&b, CHAN_SEC_STOP, NULL, 0, end,
                                   strlen(end)), CHAN_OK);
    submit(&w, 12, &s, &b);
    all(&w, &again, 12);
    assert_int_equal(again.reason, CHAN_E_INVALID);
    chan_body_free(&b);

    leave(&w);
}


static void
test_refusals(void **state)
{
    reply_t        r;
    worker_t       w;
    chan_body_t    b;
    chan_submit_t  s;

    (void) state;
    join(&w);

    defaults(&s);
    s.max_tokens = 2000;
    ask(&w, 1, &s, 100);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_E_LENGTH);
    assert_non_null(strstr(r.message, "2048"));
    assert_non_null(strstr(r.message, "2100"));

    defaults(&s);
    s.max_context = 50;
    ask(&w, 1, &s, 60);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_E_LENGTH);

    defaults(&s);
    s.max_tokens = CHAN_TOKENS_MAX;
    s.max_context = 50;
    ask(&w, 1, &s, 40);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_LENGTH);
    assert_int_equal(r.n_tokens, 10);

    defaults(&s);
    s.fingerprint = 1;
    ask(&w, 1, &s, 3);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_E_MODEL);

    defaults(&s);
    memset(&b, 0, sizeof(b));
    assert_int_equal(chan_body_put(&b, CHAN_SEC_IDS, NULL, 0,
                                   &(int32_t) { 1 << 30 }, 4), CHAN_OK);
    submit(&w, 2, &s, &b);
    all(&w, &r, 2);
    assert_int_equal(r.reason, CHAN_E_INVALID);
    assert_string_equal(r.param, "prompt");
    chan_body_free(&b);

    /* And the lane is as good as new. */
    defaults(&s);
    ask(&w, 2, &s, 3);
    all(&w, &r, 2);
    assert_int_equal(r.reason, CHAN_LENGTH);

    leave(&w);
}


static void
test_chat(void **state)
{
    reply_t         r;
    worker_t        w;
    chan_body_t     b;
    chan_submit_t   s;
    chan_message_t  m = { CHAN_ROLE_USER, 0 };

    (void) state;
    join(&w);

    defaults(&s);
    s.endpoint = CHAN_CHAT;
    memset(&b, 0, sizeof(b));
    assert_int_equal(chan_body_put(&b, CHAN_SEC_MESSAGE, &m, sizeof(m),
                                   "What is a falcon?", 17), CHAN_OK);
    submit(&w, 1, &s, &b);
    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_LENGTH);
    assert_int_equal(r.n_tokens, 16);
    chan_body_free(&b);

    memset(&b, 0, sizeof(b));
    m.role = CHAN_ROLE_TOOL;
    assert_int_equal(chan_body_put(&b, CHAN_SEC_MESSAGE, &m, sizeof(m),
                                   "3", 1), CHAN_OK);
    submit(&w, 2, &s, &b);
    all(&w, &r, 2);
    assert_int_equal(r.reason, CHAN_E_INVALID);
    assert_string_equal(r.param, "messages");
    chan_body_free(&b);

    leave(&w);
}


/* Cut into pieces; once cancelled half-way. */

static void
test_body_in_parts(void **state)
{
    int             i;
    size_t          off, n;
    reply_t         r;
    worker_t        w;
    chan_body_t     b, none;
    chan_submit_t   s;
    struct iovec    part[2];

    struct {
        chan_record_t  rec;
        chan_submit_t  s;
    } head;

    struct {
        chan_record_t  rec;
        chan_more_t    m;
    } more;

    (void) state;
    join(&w);

    defaults(&s);
    memset(&b, 0, sizeof(b));
    memset(&none, 0, sizeof(none));
    prompt(&b, 1000);

    for (i = 0; i < 3; i++) {

        memset(&head, 0, sizeof(head));
        head.rec.type = CHAN_SUBMIT;
        head.rec.id = 9;
        head.s = s;
        head.s.body_size = b.size;
        part[0].iov_base = &head;
        part[0].iov_len = sizeof(head);
        put(&w, part, 1);

        for (off = 0; off < b.size; off += n) {

            if (i == 1 && off > b.size / 2) {
                small(&w, 9, CHAN_CANCEL, NULL, 0);
                break;
            }

            n = b.size - off < 1016 ? b.size - off : 1016;
            memset(&more, 0, sizeof(more));
            more.rec.type = CHAN_SUBMIT_MORE;
            more.rec.id = 9;
            more.m.offset = off;
            part[0].iov_base = &more;
            part[0].iov_len = sizeof(more);
            part[1].iov_base = b.data + off;
            part[1].iov_len = n;
            put(&w, part, 2);
        }

        all(&w, &r, 9);
        assert_int_equal(r.reason, i == 1 ? CHAN_CANCELLED : CHAN_LENGTH);
        assert_int_equal(r.n_tokens, i == 1 ? 0 : 16);
    }

    chan_body_free(&b);
    leave(&w);
}


/* Four megabytes of text. */

static void
megabytes(chan_body_t *b)
{
    char    *text;
    size_t   i, size;

    size = 4 << 20;
    text = malloc(size);
    assert_non_null(text);

    for (i = 0; i < size; i++) {
        text[i] = i % 7 == 0 ? ' ' : (char) ('a' + i * i % 23);
    }

    memset(b, 0, sizeof(*b));
    assert_int_equal(chan_body_put(b, CHAN_SEC_TEXT, NULL, 0, text, size),
                     CHAN_OK);
    free(text);
}


/* Sends a body that is larger than a record. */

static void
submit_large(worker_t *w, uint64_t id, const chan_submit_t *s,
    const chan_body_t *b)
{
    int           rc;
    char          err[CHAN_ERR_LEN];
    size_t        off, n;
    struct iovec  part[2];

    struct {
        chan_record_t  rec;
        chan_submit_t  s;
    } head;

    struct {
        chan_record_t  rec;
        chan_more_t    m;
    } more;

    memset(&head, 0, sizeof(head));
    head.rec.type = CHAN_SUBMIT;
    head.rec.id = id;
    head.s = *s;
    head.s.body_size = b->size;
    part[0].iov_base = &head;
    part[0].iov_len = sizeof(head);
    put(w, part, 1);

    for (off = 0; off < b->size; off += n) {
        n = b->size - off < 65000 ? b->size - off : 65000;
        memset(&more, 0, sizeof(more));
        more.rec.type = CHAN_SUBMIT_MORE;
        more.rec.id = id;
        more.m.offset = off;
        part[0].iov_base = &more;
        part[0].iov_len = sizeof(more);
        part[1].iov_base = b->data + off;
        part[1].iov_len = n;

        while ((rc = chan_ring_write(&w->lane.out, part, 2, err))
               == CHAN_AGAIN)
        {
            chan_ring_notify_data(&w->lane.out);
            nap(1);
        }

        assert_int_equal(rc, CHAN_OK);
    }

    chan_ring_notify_data(&w->lane.out);
}


static int
start_long(void **state)
{
    (void) state;

    context = 1 << 19;
    start_with(2, 8, 100, 8);
    context = 2048;

    return 0;
}


/*
 * A question does not wait until four megabytes of another are tokenised, and
 * nobody's are if they were cancelled before.
 */

static void
test_megabytes(void **state)
{
    int             rc;
    size_t          i;
    reply_t         r;
    worker_t        w;
    uint64_t        ended[3];
    chan_body_t     b;
    chan_submit_t   s;

    (void) state;
    join(&w);

    megabytes(&b);
    defaults(&s);

    submit_large(&w, 1, &s, &b);
    submit_large(&w, 3, &s, &b);
    small(&w, 3, CHAN_CANCEL, NULL, 0);
    ask(&w, 2, &s, 3);

    chan_body_free(&b);
    memset(ended, 0, sizeof(ended));

    for (i = 1; i < 4; ) {
        memset(&r, 0, sizeof(r));
        rc = next(&w, &r, 0, -1);

        if (rc == CHAN_ERROR_REC) {
            assert_int_equal(r.reason, CHAN_E_LENGTH);
            assert_int_equal(ended[0], 0);
            ended[0] = i++;

        } else if (rc == CHAN_FINISH && r.reason == CHAN_CANCELLED) {
            ended[2] = i++;

        } else if (rc == CHAN_FINISH) {
            assert_int_equal(r.reason, CHAN_LENGTH);
            ended[1] = i++;
        }
    }

    assert_true(ended[1] < ended[0]);
    assert_true(ended[2] != 0);

    leave(&w);
}


/* A text that cannot fit is not tokenised at all. */

static void
test_too_long(void **state)
{
    reply_t        r;
    worker_t       w;
    chan_body_t    b;
    chan_submit_t  s;

    (void) state;
    join(&w);

    megabytes(&b);
    defaults(&s);
    submit_large(&w, 1, &s, &b);
    chan_body_free(&b);

    all(&w, &r, 1);
    assert_int_equal(r.reason, CHAN_E_LENGTH);
    assert_string_equal(r.param, "prompt");
    assert_non_null(strstr(r.message, "has at least"));

    leave(&w);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test_setup_teardown(test_completion, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_stop_string, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_echo_and_score, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_own_sampling, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_resume, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_refusals, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_chat, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_body_in_parts, start,
                                        stop),
        cmocka_unit_test_setup_teardown(test_megabytes, start_long,
                                        stop),
        cmocka_unit_test_setup_teardown(test_too_long, start,
                                        stop)
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
