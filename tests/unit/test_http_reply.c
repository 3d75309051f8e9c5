/*
 * Kept replies: what comes back is what was kept, and nothing that somebody
 * else wrote, with a good hash even, gets past the check.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ngx_http_llm_reply.h"

#define XXH_INLINE_ALL
#include <xxhash.h>


#define REPLY_MAX  (1 << 18)


/* Stand-ins: a writer of one block, and choices that note what happens. */

static u_char        written[REPLY_MAX];
static u_char        head_bytes[sizeof(ngx_http_llm_reply_head_t)];
static ngx_buf_t     bufs[2];
static ngx_chain_t   links[2];
static ngx_uint_t    nbufs, nlinks;
static char          seen[REPLY_MAX];


void
ngx_http_llm_put(ngx_http_llm_writer_t *w, const void *data, size_t len)
{
    memcpy(written + w->size, data, len);
    w->size += len;
}


ngx_chain_t *
ngx_http_llm_writer_take(ngx_http_llm_writer_t *w)
{
    bufs[1].pos = written;
    bufs[1].last = written + w->size;
    links[1].buf = &bufs[1];
    links[1].next = NULL;

    return &links[1];
}


ngx_buf_t *
ngx_create_temp_buf(ngx_pool_t *pool, size_t size)
{
    assert_int_equal(size, sizeof(head_bytes));
    nbufs++;
    bufs[0].pos = head_bytes;
    bufs[0].last = head_bytes;

    return &bufs[0];
}


ngx_chain_t *
ngx_alloc_chain_link(ngx_pool_t *pool)
{
    nlinks++;

    return &links[0];
}


static void
note(const ngx_http_llm_choice_t *choice, const char *what, unsigned n)
{
    size_t  len = strlen(seen);

    snprintf(seen + len, sizeof(seen) - len, "%u%s%u ",
             (unsigned) choice->index, what, n);
}


void
ngx_http_llm_choice_accepted(ngx_http_llm_choice_t *choice,
    const chan_accepted_t *accepted)
{
    note(choice, "a", accepted->prompt_tokens);
}


void
ngx_http_llm_choice_delta(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view)
{
    note(choice, "d", view->text[0]);
}


void
ngx_http_llm_choice_finish(ngx_http_llm_choice_t *choice,
    const chan_finish_t *finish)
{
    note(choice, "f", finish->reason);
}


/* Records. */

static union {
    chan_record_t  rec;
    uint64_t       words[32];
} r;


static const chan_record_t *
record(unsigned type, size_t size)
{
    r.rec.size = (uint32_t) (sizeof(chan_record_t) + size);
    r.rec.type = (uint16_t) type;
    r.rec.flags = 0;
    r.rec.id = 0x123456789;

    return &r.rec;
}


static const chan_record_t *
accepted(unsigned prompt)
{
    chan_accepted_t  *a = (chan_accepted_t *) (&r.rec + 1);

    memset(&r, 0, sizeof(r));
    a->prompt_tokens = prompt;

    return record(CHAN_ACCEPTED, sizeof(chan_accepted_t));
}


static const chan_record_t *
delta(char ch)
{
    chan_delta_t  *d = (chan_delta_t *) (&r.rec + 1);

    memset(&r, 0, sizeof(r));
    d->kind = CHAN_CONTENT;
    d->text_size = 1;
    *(char *) (d + 1) = ch;

    return record(CHAN_DELTA, sizeof(chan_delta_t) + 8);
}


static const chan_record_t *
finish(unsigned reason)
{
    chan_finish_t  *f = (chan_finish_t *) (&r.rec + 1);

    memset(&r, 0, sizeof(r));
    f->reason = reason;

    return record(CHAN_FINISH, sizeof(chan_finish_t));
}


static ngx_http_llm_ctx_t      ctx;
static ngx_http_llm_reply_t    reply;
static ngx_http_llm_choice_t   choices[2];
static uint64_t                kept[REPLY_MAX / 8];
static size_t                  nkept;


static void
start(ngx_uint_t n)
{
    ngx_uint_t  i;

    memset(&ctx, 0, sizeof(ctx));
    memset(&reply, 0, sizeof(reply));
    memset(choices, 0, sizeof(choices));
    ctx.reply = &reply;
    ctx.choices = choices;
    ctx.nchoices = n;

    for (i = 0; i < n; i++) {
        choices[i].ctx = &ctx;
        choices[i].index = i;
        choices[i].reason = CHAN_STOP;
    }
}


/* Head and records as they are in a file; what `start` and keep made. */

static void
take(void)
{
    ngx_chain_t  *cl;

    nkept = 0;

    for (cl = ngx_http_llm_reply_take(&ctx); cl != NULL; cl = cl->next) {
        memcpy((u_char *) kept + nkept, cl->buf->pos,
               (size_t) (cl->buf->last - cl->buf->pos));
        nkept += (size_t) (cl->buf->last - cl->buf->pos);
    }
}


/* Somebody else's hash over what is there. */

static void
hash(void)
{
    ngx_http_llm_reply_head_t  *head = (ngx_http_llm_reply_head_t *) kept;

    head->hash = 0;
    head->hash = XXH3_64bits(kept, nkept);
}


static ngx_int_t
check(ngx_uint_t n)
{
    char  err[CHAN_ERR_LEN];

    return ngx_http_llm_reply_check((u_char *) kept, nkept, n, err);
}


/* What was kept happens again; the number of turns that it takes. */

static int
play(void)
{
    int                            turns;
    static ngx_http_llm_replay_t   replay;

    replay.next = (u_char *) kept + sizeof(ngx_http_llm_reply_head_t);
    replay.last = (u_char *) kept + nkept;
    ctx.replay = &replay;

    seen[0] = '\0';

    for (turns = 1; ngx_http_llm_reply_play(&ctx) == NGX_AGAIN; turns++) {
        assert_true(replay.next < replay.last);
    }

    assert_ptr_equal(replay.next, replay.last);

    return turns;
}


static void
test_round(void **state)
{
    (void) state;

    start(2);
    ngx_http_llm_reply_keep(&choices[1], accepted(7));
    ngx_http_llm_reply_keep(&choices[0], accepted(9));
    ngx_http_llm_reply_keep(&choices[0], delta('x'));
    ngx_http_llm_reply_keep(&choices[1], delta('y'));
    ngx_http_llm_reply_keep(&choices[1], finish(CHAN_LENGTH));
    ngx_http_llm_reply_keep(&choices[0], delta('z'));
    ngx_http_llm_reply_keep(&choices[0], finish(CHAN_STOP));
    take();

    assert_true(nkept > sizeof(ngx_http_llm_reply_head_t));
    assert_int_equal(check(2), NGX_OK);
    assert_int_equal(check(1), NGX_ERROR);
    assert_int_equal(check(3), NGX_ERROR);

    assert_int_equal(play(), 1);
    assert_string_equal(seen, "1a7 0a9 0d120 1d121 1f2 0d122 0f1 ");
}


/* A long one takes several turns, and nothing is lost between them. */

static void
test_turns(void **state)
{
    int   n;
    char  want[REPLY_MAX];

    (void) state;

    start(1);
    ngx_http_llm_reply_keep(&choices[0], accepted(7));
    n = sprintf(want, "0a7 ");

    while (reply.records.size < 5 * NGX_HTTP_LLM_REPLY_TURN / 2) {
        ngx_http_llm_reply_keep(&choices[0], delta('x'));
        n += sprintf(want + n, "0d120 ");
    }

    ngx_http_llm_reply_keep(&choices[0], finish(CHAN_STOP));
    (void) sprintf(want + n, "0f1 ");
    take();

    assert_int_equal(check(1), NGX_OK);
    assert_int_equal(play(), 3);
    assert_string_equal(seen, want);
}


/* What is not whole is not taken. */

static void
test_part(void **state)
{
    (void) state;

    start(2);
    choices[1].reason = 0;
    take();
    assert_int_equal(nkept, 0);

    start(1);
    choices[0].reason = CHAN_CANCELLED;
    take();
    assert_int_equal(nkept, 0);

    start(1);
    reply.records.size = NGX_HTTP_LLM_REPLY_MAX;
    ngx_http_llm_reply_keep(&choices[0], delta('x'));
    assert_true(reply.records.failed);
    take();
    assert_int_equal(nkept, 0);

    start(0);
    take();
    assert_int_equal(nkept, 0);
}


/* Orders of events that no engine makes; 'A' 'D' 'F' 'C'(ancelled). */

static void
test_orders(void **state)
{
    size_t       i;
    const char  *p;

    static const char *const  bad[] = {
        "", "A", "AD", "D", "F", "DF", "FA", "AA", "AAF", "AFF", "AFD", "AFA",
        "AC", "ADC", "DAF"
    };

    static const char *const  good[] = { "AF", "ADF", "ADDDDDF" };

    (void) state;

    for (i = 0; i < sizeof(bad) / sizeof(bad[0])
                    + sizeof(good) / sizeof(good[0]); i++)
    {
        p = i < sizeof(bad) / sizeof(bad[0])
            ? bad[i] : good[i - sizeof(bad) / sizeof(bad[0])];
        start(1);

        for ( /* void */ ; *p != '\0'; p++) {
            ngx_http_llm_reply_keep(&choices[0],
                                    *p == 'A' ? accepted(1)
                                    : *p == 'D' ? delta('x')
                                    : finish(*p == 'F' ? CHAN_STOP
                                                       : CHAN_CANCELLED));
        }

        take();
        assert_int_equal(check(1), i < sizeof(bad) / sizeof(bad[0])
                                   ? NGX_ERROR : NGX_OK);
    }
}


/* Bytes changed at random, hashed well: refused, or good enough to play. */

static void
test_forged(void **state)
{
    int          n;
    size_t       i, size;
    unsigned     seed, played;
    static u_char  copy[REPLY_MAX];

    (void) state;

    start(2);
    ngx_http_llm_reply_keep(&choices[0], accepted(9));
    ngx_http_llm_reply_keep(&choices[1], accepted(7));
    ngx_http_llm_reply_keep(&choices[0], delta('x'));
    ngx_http_llm_reply_keep(&choices[1], delta('y'));
    ngx_http_llm_reply_keep(&choices[1], finish(CHAN_LENGTH));
    ngx_http_llm_reply_keep(&choices[0], finish(CHAN_STOP));
    take();

    size = nkept;
    memcpy(copy, kept, size);
    played = 0;

    for (seed = 1; seed < 200000; seed++) {
        srand(seed);
        nkept = size;
        memcpy(kept, copy, size);

        for (n = 1 + rand() % 3; n > 0; n--) {
            i = (size_t) rand() % size;
            ((u_char *) kept)[i] = rand() % 2 ? (u_char) rand()
                                   : (u_char) (((u_char *) kept)[i]
                                               ^ (1 << rand() % 8));
        }

        if (rand() % 8 == 0) {
            nkept = (size_t) rand() % size;
        }

        if (nkept > sizeof(ngx_http_llm_reply_head_t) && rand() % 16 != 0) {
            ((ngx_http_llm_reply_head_t *) kept)->size =
                nkept - sizeof(ngx_http_llm_reply_head_t);
            hash();
        }

        if (check(2) == NGX_OK) {
            (void) play();
            played++;
        }
    }

    /* Counts and times may be anything; most of the rest may not. */

    assert_true(played > 0 && played < 150000);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_round),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_part),
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_forged)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
