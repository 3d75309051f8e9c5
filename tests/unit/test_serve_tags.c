/*
 * Tags: which token is a tag's last, and what a worker is told of them.
 */

#include "serve_worker.h"

#include "random.h"
#include "serve/serve_int.h"


#define TEXT_MAX  4096

/* A conversation, rendered by hand in some order, with reasons to differ. */

typedef struct {
    char           said[8][600];
    tok_message_t  message[8];
    size_t         n;
    char           text[TEXT_MAX];
    tok_range_t    content[8];
    size_t         len;
    size_t         need[TEXT_MAX];   /* text byte of each canonical byte */
    size_t         canon;
    uint32_t       end[TEXT_MAX];
    tok_ids_t      ids;
} talk_t;


static uint64_t  seed;


static uint32_t
rnd(uint32_t n)
{
    return (uint32_t) (random_next(&seed) % n);
}


static void
put_text(talk_t *t, const char *s, size_t n)
{
    assert_true(t->len + n < TEXT_MAX);
    memcpy(t->text + t->len, s, n);
    t->len += n;
}


/* What comes last of a message's content is rendered, `from` on. */

static void
put_content(talk_t *t, size_t i, size_t from)
{
    t->content[i].begin = t->len;
    put_text(t, t->message[i].content + from, t->message[i].len - from);
    t->content[i].end = t->len;
}


static void
make_talk(talk_t *t)
{
    size_t          i, j, n, answer, left;
    tok_message_t  *m;

    memset(t, 0, sizeof(*t));
    t->n = 1 + rnd(7);

    for (i = 0; i < t->n; i++) {
        m = &t->message[i];
        m->role = rnd(3) == 0 ? TOK_ROLE_SYSTEM
                  : rnd(2) ? TOK_ROLE_USER : TOK_ROLE_ASSISTANT;
        m->content = t->said[i];

        if (rnd(3) == 0) {
            strcpy(t->said[i], "why not</think>or</think>");
        }

        n = rnd(60);

        for (j = 0; j < n; j++) {
            t->said[i][strlen(t->said[i])] = (char) ('a' + rnd(26));
        }

        m->len = strlen(t->said[i]);
    }

    put_text(t, "<BOS>", rnd(2) * 5);

    /* System messages in front, one of them dropped. */

    for (i = 0; i < t->n; i++) {
        if (t->message[i].role == TOK_ROLE_SYSTEM && rnd(4) > 0) {
            put_content(t, i, 0);
            put_text(t, "\n\n", rnd(3));
        }
    }

    for (i = 0; i < t->n; i++) {
        m = &t->message[i];

        if (m->role != TOK_ROLE_SYSTEM) {
            put_text(t, "<User>", rnd(7));
            put_content(t, i, m->role == TOK_ROLE_USER || m->len == 0 ? 0
                        : rnd(3) == 0 && strchr(m->content, '>') != NULL
                        ? strlen("why not</think>") : 0);
        }
    }

    put_text(t, "<Assistant>", 11);

    for (i = 0; i < t->n; i++) {
        m = &t->message[i];
        answer = 0;

        if (m->role == TOK_ROLE_ASSISTANT && strstr(m->content, "</think>")) {
            answer = strlen("why not</think>or</think>");
        }

        for (j = answer; j <= m->len; j++) {

            /* first the role, then each byte by its distance from the end */

            left = m->len - (j - 1);

            if (j > answer
                && left <= t->content[i].end - t->content[i].begin)
            {
                t->need[t->canon++] = t->content[i].end - left;

            } else {
                t->need[t->canon++] = t->content[i].begin > 0
                                      ? t->content[i].begin - 1 : 0;
            }
        }
    }

    for (i = 0; i < t->len; ) {
        i += 1 + rnd(6);
        i = i < t->len ? i : t->len;
        t->end[t->ids.n++] = (uint32_t) i;
    }

    t->ids.end = t->end;
}


static uint32_t
token_of(const talk_t *t, size_t byte)
{
    uint32_t  i;

    for (i = 0; t->end[i] <= byte; i++) { /* void */ }

    return i;
}


static void
test_chat_bytes(void **state)
{
    size_t           i;
    talk_t           t;
    uint32_t         runs, k, last, token;
    chan_tag_t       tag[TEXT_MAX];
    serve_body_t     b;
    tok_prompt_t     p;
    serve_fault_t    f;

    (void) state;
    seed = 1;

    for (runs = 0; runs < 3000; runs++) {
        make_talk(&t);

        memset(&b, 0, sizeof(b));
        memset(&p, 0, sizeof(p));
        b.message = t.message;
        b.n_messages = t.n;
        b.tag = tag;
        p.text = t.text;
        p.len = t.len;
        p.content = t.content;
        p.n_content = t.n;

        for (i = 0; i < t.canon; i++) {
            if (runs % 3 == 0 || rnd(5) == 0) {
                tag[b.n_tags].tag = 1000 + i;
                tag[b.n_tags++].end = i + 1;
            }
        }

        assert_int_equal(serve_tags_chat(&b, &p, &t.ids, &f), 0);

        for (i = 0, k = 0, last = 0; i < t.canon; i++) {
            token = token_of(&t, t.need[i]);
            last = token > last ? token : last;

            if (k < b.n_tags && tag[k].end == i + 1) {
                assert_int_equal(b.tags[k].tag, 1000 + i);

                assert_int_equal(b.tags[k].last, last);
                k++;
            }
        }

        free(b.tags);
        b.tags = NULL;

        tag[0].end = t.canon + 1;
        b.n_tags = 1;
        assert_int_equal(serve_tags_chat(&b, &p, &t.ids, &f), -1);
        assert_int_equal(f.code, CHAN_E_INVALID);
        free(b.tags);
    }
}


/* `n` ids made from `from`, a tag for every 100 bytes of them. */

static void
ask_tagged(worker_t *w, uint64_t id, uint32_t from, uint32_t n,
    const char *tenant)
{
    int32_t        ids[2048];
    uint32_t       i, n_tags;
    chan_tag_t     tag[128];
    chan_body_t    b;
    chan_submit_t  s;

    for (i = 0; i < n; i++) {
        ids[i] = (int32_t) (300 + (from + i * 7 + i / 64) % 500);
    }

    n_tags = n * 4 / 100;

    for (i = 0; i < n_tags; i++) {
        tag[i].tag = ((uint64_t) from << 32) + i;
        tag[i].end = (i + 1) * 100;
    }

    memset(&b, 0, sizeof(b));
    assert_int_equal(chan_body_put(&b, CHAN_SEC_IDS, NULL, 0, ids,
                                   n * sizeof(int32_t)), CHAN_OK);
    assert_int_equal(chan_body_put(&b, CHAN_SEC_TAGS, NULL, 0, tag,
                                   n_tags * sizeof(chan_tag_t)), CHAN_OK);

    if (tenant != NULL) {
        assert_int_equal(chan_body_put(&b, CHAN_SEC_TENANT, NULL, 0, tenant,
                                       strlen(tenant)), CHAN_OK);
    }

    defaults(&s);
    s.max_tokens = 2;
    submit(w, id, &s, &b);
    chan_body_free(&b);
}


/* What ACCEPTED and FINISH tell, what the log gets. */

static void
test_matched(void **state)
{
    reply_t             r;
    worker_t            w;
    uint32_t            rank, seen[4];
    uint64_t            n, tag;
    chan_board_state_t  st;

    (void) state;
    start_with(1, 8, 100, 8);
    join(&w);

    /* 1000 ids: 15 full blocks, 960 of them; 40 tags of 25 ids each */

    ask_tagged(&w, 1, 1, 1000, "alice");
    all(&w, &r, 1);
    assert_int_equal(r.ended, CHAN_FINISH);
    assert_int_equal(r.a.cached_tokens, 0);
    assert_int_equal(r.a.tags_matched, 0);

    ask_tagged(&w, 2, 1, 1000, "alice");
    all(&w, &r, 2);
    assert_int_equal(r.a.cached_tokens, 960);
    assert_int_equal(r.f.cached_tokens, 960);
    assert_int_equal(r.a.tags_matched, 960 / 25);

    ask_tagged(&w, 3, 1, 100, "alice");
    all(&w, &r, 3);
    assert_int_equal(r.a.cached_tokens, 64);
    assert_int_equal(r.a.tags_matched, 2);

    /* The same ids of somebody else, and of nobody. */

    ask_tagged(&w, 4, 1, 1000, "bob");
    all(&w, &r, 4);
    assert_int_equal(r.f.cached_tokens, 0);
    assert_int_equal(r.a.tags_matched, 0);

    ask_tagged(&w, 5, 1, 1000, NULL);
    all(&w, &r, 5);
    assert_int_equal(r.f.cached_tokens, 0);

    ask_tagged(&w, 6, 1, 1000, NULL);
    all(&w, &r, 6);
    assert_int_equal(r.f.cached_tokens, 960);

    assert_int_equal(chan_board_get_state(w.board, &st), CHAN_OK);
    assert_int_equal(st.log_head, 0);

    /* 45 of 64 blocks; others need all of them, so all go but the last's. */

    ask_tagged(&w, 7, 2, 1900, NULL);
    all(&w, &r, 7);
    ask_tagged(&w, 8, 3, 1900, NULL);
    all(&w, &r, 8);
    ask_tagged(&w, 9, 4, 1900, NULL);
    all(&w, &r, 9);
    assert_int_equal(r.ended, CHAN_FINISH);

    assert_int_equal(chan_board_get_state(w.board, &st), CHAN_OK);
    memset(seen, 0, sizeof(seen));

    for (n = 1; n <= st.log_head; n++) {
        assert_int_equal(chan_board_log(w.board, n, &rank, &tag), CHAN_OK);
        assert_int_equal(rank, 0);
        assert_in_range(tag >> 32, 1, 3);
        seen[tag >> 32]++;
    }

    /*
     * Three tenants have the tags of the first: they go with the last of the
     * blocks.  Tags behind the full blocks were never there.
     */

    assert_int_equal(seen[1], 960 / 25);
    assert_in_range(seen[2], 1, 1856 / 25);

    ask_tagged(&w, 10, 1, 1000, NULL);
    all(&w, &r, 10);
    assert_int_equal(r.f.cached_tokens, 0);
    assert_int_equal(r.a.tags_matched, 0);

    leave(&w);
}


static void
test_refused(void **state)
{
    reply_t        r;
    int32_t        id[4] = { 300, 301, 302, 303 };
    worker_t       w;
    chan_tag_t     tag = { 1, 17 };
    chan_body_t    b;
    chan_submit_t  s;

    (void) state;
    start_with(1, 8, 100, 8);
    join(&w);
    defaults(&s);

    memset(&b, 0, sizeof(b));
    chan_body_put(&b, CHAN_SEC_IDS, NULL, 0, id, sizeof(id));
    chan_body_put(&b, CHAN_SEC_TAGS, NULL, 0, &tag, sizeof(tag));
    submit(&w, 1, &s, &b);
    all(&w, &r, 1);
    assert_int_equal(r.ended, CHAN_ERROR_REC);
    assert_int_equal(r.reason, CHAN_E_INVALID);
    assert_string_equal(r.message, "a tag ends at byte 17 of a prompt of 16");
    chan_body_free(&b);

    leave(&w);
}


/* Texts: what lies behind a BOS, and in the middle of a token. */

static void
test_text(void **state)
{
    uint32_t        i, j;
    char            err[ERR_LEN];
    tok_ids_t       out;
    chan_tag_t      tag[1024];
    serve_body_t    b;
    serve_fault_t   f;

    (void) state;

    memset(&b, 0, sizeof(b));
    memset(&out, 0, sizeof(out));
    b.text = story;
    b.text_len = strlen(story);
    assert_int_equal(tok_encode(tok, story, b.text_len, NULL, 0, &out, err),
                     0);

    b.tag = tag;
    b.n_tags = (uint32_t) b.text_len;

    for (i = 0; i < b.n_tags; i++) {
        tag[i].tag = i;
        tag[i].end = i + 1;
    }

    assert_int_equal(serve_tags_text(&b, &out, 1, &f), 0);

    for (i = 0; i < b.n_tags; i++) {
        for (j = 0; out.end[j] <= i; j++) { /* void */ }

        assert_int_equal(b.tags[i].last, j + 1);
    }

    free(b.tags);
    tok_ids_free(&out);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_chat_bytes),
        cmocka_unit_test(test_text),
        cmocka_unit_test_teardown(test_matched, stop),
        cmocka_unit_test_teardown(test_refused, stop)
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
