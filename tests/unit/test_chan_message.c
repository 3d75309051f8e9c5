/*
 * Messages: what is written comes out again, and what no writer makes is
 * refused with a reason.  Records are checked in buffers of their exact size,
 * so that the address sanitizer sees a byte too many.
 */

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel/chan_message.h"
#include "unit/chan_submit.h"
#include "unit/random.h"


#define PAD(n)    (((n) + 7) & ~(size_t) 7)
#define N(array)  (sizeof(array) / sizeof((array)[0]))

static uint64_t  seed = 42;


static uint64_t
rnd(void)
{
    return random_next(&seed);
}


/* A record of exact size on the heap. */

static chan_record_t *
record(uint16_t type, const void *p, size_t n, const void *q, size_t m)
{
    uint8_t        *b;
    chan_record_t  *rec;

    rec = calloc(1, sizeof(*rec) + PAD(n) + PAD(m));
    assert_non_null(rec);

    rec->size = (uint32_t) (sizeof(*rec) + PAD(n) + PAD(m));
    rec->type = type;
    rec->id = 5;
    b = (uint8_t *) (rec + 1);
    memcpy(b, p, n);

    if (m != 0) {
        memcpy(b + PAD(n), q, m);
    }

    return rec;
}


static void
test_layout(void **state)
{
    (void) state;

    /* What the other side of a lane was compiled with. */

    assert_int_equal(sizeof(chan_hello_t), 24);
    assert_int_equal(sizeof(chan_welcome_t), 160);
    assert_int_equal(sizeof(chan_lane_head_t), 32);
    assert_int_equal(sizeof(chan_ring_ctl_t), 128);
    assert_int_equal(offsetof(chan_ring_ctl_t, tail), 64);
    assert_int_equal(sizeof(chan_record_t), 16);
    assert_int_equal(sizeof(chan_submit_t), 120);
    assert_int_equal(sizeof(chan_accepted_t), 32);
    assert_int_equal(sizeof(chan_delta_t), 16);
    assert_int_equal(sizeof(chan_token_t), 16);
    assert_int_equal(sizeof(chan_top_t), 16);
    assert_int_equal(sizeof(chan_finish_t), 56);
    assert_int_equal(sizeof(chan_error_t), 16);
    assert_int_equal(sizeof(chan_section_head_t), 8);
}


static void
test_submit(void **state)
{
    int                    rc;
    char                   err[CHAN_ERR_LEN];
    size_t                 i, n;
    chan_submit_t          s;
    chan_record_t         *rec;
    const uint8_t         *body;
    const chan_submit_t   *got;

#define BAD(field, value)  { offsetof(chan_submit_t, field),                  \
                             sizeof(((chan_submit_t *) 0)->field),            \
                             (union any) value, CHAN_ERROR }
#define GOOD(field, value) { offsetof(chan_submit_t, field),                  \
                             sizeof(((chan_submit_t *) 0)->field),            \
                             (union any) value, CHAN_OK }

    union any {
        uint64_t  u;
        float     f;
    };

    const struct {
        size_t     off, size;
        union any  v;
        int        rc;
    } cases[] = {
        GOOD(endpoint, { .u = 2 }), BAD(endpoint, { .u = 0 }),
        BAD(endpoint, { .u = 3 }), GOOD(flags, { .u = 0x35 }),
        BAD(flags, { .u = 0x100 }), BAD(flags, { .u = 0x80000000 }),
        BAD(flags, { .u = CHAN_F_THINK|CHAN_F_NO_THINK }),
        BAD(flags, { .u = CHAN_F_ECHO }),
        BAD(body_size, { .u = 12 }), BAD(body_size, { .u = 0 }),
        GOOD(body_size, { .u = CHAN_BODY_MAX }),
        BAD(body_size, { .u = CHAN_BODY_MAX + 8ULL }),
        BAD(body_size, { .u = UINT64_MAX - 7 }),
        GOOD(credit, { .u = 0 }), GOOD(credit, { .u = CHAN_CREDIT_MAX }),
        BAD(credit, { .u = CHAN_CREDIT_MAX + 1 }),
        BAD(credit, { .u = UINT64_MAX }),
        GOOD(top_logprobs, { .u = 20 }), BAD(top_logprobs, { .u = 21 }),
        BAD(rank_hint, { .u = (uint32_t) -2 }),
        GOOD(rank_hint, { .u = 1000 }),
        GOOD(temperature, { .f = 0 }), BAD(temperature, { .f = -0.1f }),
        BAD(temperature, { .f = NAN }), BAD(temperature, { .f = INFINITY }),
        GOOD(top_p, { .f = 0 }), BAD(top_p, { .f = 1.1f }),
        BAD(top_p, { .f = NAN }), BAD(top_p, { .f = -1 }),
        GOOD(min_p, { .f = 1 }), BAD(min_p, { .f = 1.1f }),
        BAD(min_p, { .f = NAN }),
        BAD(repetition_penalty, { .f = 0 }),
        BAD(repetition_penalty, { .f = NAN }),
        BAD(repetition_penalty, { .f = INFINITY }),
        GOOD(presence_penalty, { .f = -2 }),
        BAD(presence_penalty, { .f = -INFINITY }),
        BAD(frequency_penalty, { .f = NAN }),
        GOOD(max_tokens, { .u = 0 }), GOOD(priority, { .u = 0xffffffff }),
    };

#undef BAD
#undef GOOD

    (void) state;

    for (i = 0; i < N(cases); i++) {
        submit_init(&s);
        s.body_size = 800;
        memcpy((uint8_t *) &s + cases[i].off, &cases[i].v, cases[i].size);
        rec = record(CHAN_SUBMIT, &s, sizeof(s), "12345678", 8);
        rc = chan_get_submit(rec, &got, &body, &n, err);

        if (rc != cases[i].rc) {
            fail_msg("case %d: %d, %s", (int) i, rc, err);
        }

        if (rc == CHAN_OK) {
            assert_memory_equal(got, &s, sizeof(s));
            assert_int_equal(n, 8);
            assert_memory_equal(body, "12345678", 8);
        }

        free(rec);
    }

    /* more body than announced, none at all, a record that is too short */

    submit_init(&s);
    s.body_size = 8;
    rec = record(CHAN_SUBMIT, &s, sizeof(s), "1234567890", 10);
    assert_int_equal(chan_get_submit(rec, &got, &body, &n, err), CHAN_ERROR);
    free(rec);

    rec = record(CHAN_SUBMIT, &s, sizeof(s), NULL, 0);
    assert_int_equal(chan_get_submit(rec, &got, &body, &n, err), CHAN_OK);
    assert_int_equal(n, 0);
    free(rec);

    rec = record(CHAN_SUBMIT, &s, sizeof(s) - 8, NULL, 0);
    assert_int_equal(chan_get_submit(rec, &got, &body, &n, err), CHAN_ERROR);
    rec->type = CHAN_CANCEL;
    assert_int_equal(chan_get_submit(rec, &got, &body, &n, err), CHAN_ERROR);
    free(rec);
}


static void
test_small(void **state)
{
    char                    err[CHAN_ERR_LEN];
    size_t                  i, n;
    uint64_t                v, credit, offset;
    chan_record_t          *rec;
    chan_finish_t           f;
    const uint8_t          *body;
    chan_accepted_t         a;
    const chan_finish_t    *fp;
    const chan_accepted_t  *ap;

    static const struct {
        uint64_t  v;
        size_t    n;
        int       rc;
    } mores[] = {
        { 0, 8, CHAN_OK }, { 8, 64, CHAN_OK }, { 4, 8, CHAN_ERROR },
        { 0, 0, CHAN_ERROR }, { CHAN_BODY_MAX - 8, 8, CHAN_OK },
        { CHAN_BODY_MAX, 8, CHAN_ERROR },
        { CHAN_BODY_MAX - 8, 16, CHAN_ERROR },
        { UINT64_MAX - 7, 8, CHAN_ERROR },
    };

    (void) state;

    for (i = 0; i < N(mores); i++) {
        rec = record(CHAN_SUBMIT_MORE, &mores[i].v, 8, mores, mores[i].n);
        assert_int_equal(chan_get_more(rec, &offset, &body, &n, err),
                         mores[i].rc);

        if (mores[i].rc == CHAN_OK) {
            assert_int_equal(offset, mores[i].v);
            assert_int_equal(n, mores[i].n);
            assert_memory_equal(body, mores, n);
        }

        free(rec);
    }

    for (i = 0; i < 3; i++) {
        v = i == 0 ? 123 : CHAN_CREDIT_MAX + i - 1;
        rec = record(CHAN_WINDOW, &v, 8, NULL, 0);
        assert_int_equal(chan_get_window(rec, &credit, err),
                         i == 2 ? CHAN_ERROR : CHAN_OK);
        assert_true(i == 2 || credit == v);
        free(rec);
    }

    rec = record(CHAN_WINDOW, &v, 8, &v, 8);
    assert_int_equal(chan_get_window(rec, &credit, err), CHAN_ERROR);
    free(rec);

    memset(&a, 7, sizeof(a));
    rec = record(CHAN_ACCEPTED, &a, sizeof(a), NULL, 0);
    assert_int_equal(chan_get_accepted(rec, &ap, err), CHAN_OK);
    assert_memory_equal(ap, &a, sizeof(a));
    free(rec);

    rec = record(CHAN_ACCEPTED, &a, sizeof(a) - 8, NULL, 0);
    assert_int_equal(chan_get_accepted(rec, &ap, err), CHAN_ERROR);
    free(rec);

    for (i = 0; i < 6; i++) {
        memset(&f, 0, sizeof(f));
        f.reason = (uint32_t) i;
        rec = record(CHAN_FINISH, &f, sizeof(f), NULL, 0);
        assert_int_equal(chan_get_finish(rec, &fp, err),
                         i >= 1 && i <= 4 ? CHAN_OK : CHAN_ERROR);
        free(rec);
    }

    rec = record(CHAN_FINISH, &f, sizeof(f), &f, 8);
    assert_int_equal(chan_get_finish(rec, &fp, err), CHAN_ERROR);
    free(rec);
}


static void
test_error(void **state)
{
    char                 err[CHAN_ERR_LEN], text[32];
    size_t               i;
    chan_error_t         e;
    chan_record_t       *rec;
    chan_error_view_t    v;

    static const struct {
        uint32_t     code, message, param;
        const char  *text;
        size_t       n;
        int          rc;
    } cases[] = {
        { 1, 5, 3, "wrong\0\0\0n_x\0\0\0\0", 16, CHAN_OK },
        { 8, 0, 0, "", 0, CHAN_OK }, { 0, 0, 0, "", 0, CHAN_ERROR },
        { 9, 0, 0, "", 0, CHAN_ERROR },
        { 1, 9, 3, "wrong\0\0\0n_x\0\0\0\0", 16, CHAN_ERROR },
        { 1, 5, 9, "wrong\0\0\0n_x\0\0\0\0", 16, CHAN_ERROR },
        { 1, 5, 0, "wrong\0\0\0n_x\0\0\0\0", 16, CHAN_ERROR },
        { 1, 2, 1, "a\xff\0\0\0\0\0\0x\0\0\0\0\0\0\0", 16, CHAN_ERROR },
        { 1, 1, 1, "a\0\0\0\0\0\0\0\xff\0\0\0\0\0\0\0", 16, CHAN_ERROR },
        { 1, 0xfffffff8, 24, "", 0, CHAN_ERROR },
        { 1, 0xffffffff, 0xffffffff, "", 0, CHAN_ERROR },
    };

    (void) state;

    for (i = 0; i < N(cases); i++) {
        memset(&e, 0, sizeof(e));
        e.code = cases[i].code;
        e.message_size = cases[i].message;
        e.param_size = cases[i].param;
        rec = record(CHAN_ERROR_REC, &e, sizeof(e), cases[i].text, cases[i].n);

        if (chan_get_error(rec, &v, err) != cases[i].rc) {
            fail_msg("case %d", (int) i);
        }

        if (i == 0) {
            snprintf(text, sizeof(text), "%.*s,%.*s",
                     (int) v.error->message_size, v.message,
                     (int) v.error->param_size, v.param);
            assert_string_equal(text, "wrong,n_x");
        }

        free(rec);
    }
}


/* A DELTA with two tokens, the first with two alternatives. */

static size_t
delta_make(uint8_t *buf)
{
    uint8_t       *p;
    chan_top_t     top;
    chan_delta_t   d;
    chan_token_t   t;

    memset(buf, 0, 512);
    memset(&d, 0, sizeof(d));
    d.kind = CHAN_CONTENT;
    d.n_tokens = 2;
    d.text_size = 9;
    p = buf + sizeof(d);
    memcpy(p, "nine byte", 9);
    p += 16;

    memset(&t, 0, sizeof(t));
    t.id = 11;
    t.logprob = -0.5f;
    t.size = 4;
    t.n_top = 2;
    memcpy(p, &t, sizeof(t));
    memcpy(p + 16, "nine", 4);
    p += 24;

    memset(&top, 0, sizeof(top));
    top.id = 12;
    top.size = 8;
    memcpy(p, &top, sizeof(top));
    memcpy(p + 16, "eightfull", 8);
    p += 24;

    top.id = 13;
    top.size = 0;
    memcpy(p, &top, sizeof(top));
    p += 16;

    memset(&t, 0, sizeof(t));
    t.id = 14;
    t.logprob = NAN;
    memcpy(p, &t, sizeof(t));
    p += 16;

    d.token_size = (uint32_t) (p - buf - sizeof(d) - 16);
    memcpy(buf, &d, sizeof(d));

    return (size_t) (p - buf);
}


static void
test_delta(void **state)
{
    char                err[CHAN_ERR_LEN];
    size_t              n;
    uint8_t             buf[512];
    const uint8_t      *p, *q;
    chan_record_t      *rec;
    chan_top_view_t     top;
    chan_delta_view_t   v;
    chan_token_view_t   t;

    (void) state;

    n = delta_make(buf);
    rec = record(CHAN_DELTA, buf, n, NULL, 0);

    if (chan_get_delta(rec, &v, err) != CHAN_OK) {
        fail_msg("%s", err);
    }

    assert_int_equal(v.delta->n_tokens, 2);
    assert_memory_equal(v.text, "nine byte", 9);

    p = v.tokens;
    chan_next_token(&p, &t);
    assert_int_equal(t.token->id, 11);
    assert_memory_equal(t.bytes, "nine", 4);
    q = t.tops;
    chan_next_top(&q, &top);
    assert_int_equal(top.top->id, 12);
    assert_memory_equal(top.bytes, "eightful", 8);
    chan_next_top(&q, &top);
    assert_int_equal(top.top->id, 13);
    assert_ptr_equal(q, p);
    chan_next_token(&p, &t);
    assert_int_equal(t.token->id, 14);
    assert_true(isnan(t.token->logprob));
    assert_ptr_equal(p, (uint8_t *) rec + rec->size);

    free(rec);
}


/* Every 32-bit word of it replaced by values around every limit. */

static void
test_delta_mutations(void **state)
{
    int                 ok, bad;
    char                err[CHAN_ERR_LEN];
    size_t              n, i, k, j;
    uint8_t             buf[512];
    uint32_t            m, u;
    const uint8_t      *p, *q;
    chan_record_t      *rec;
    chan_top_view_t     top;
    chan_delta_view_t   v;
    chan_token_view_t   t;

    static const uint32_t  values[] = {
        0, 1, 2, 3, 5, 8, 9, 15, 16, 17, 20, 21, 24, 88, 96, 104, 0x7fffffff,
        0x80000000, 0xfffffff8, 0xfffffff9, 0xffffffff
    };

    (void) state;

    ok = 0;
    bad = 0;

    for (i = 0; i < 40; i++) {
        for (k = 0; k < N(values) + 40; k++) {
            n = delta_make(buf);

            if (i * 4 >= n) {
                break;
            }

            u = k < N(values) ? values[k] : (uint32_t) rnd();
            memcpy(buf + i * 4, &u, 4);
            rec = record(CHAN_DELTA, buf, n, NULL, 0);

            if (chan_get_delta(rec, &v, err) != CHAN_OK) {
                assert_true(strlen(err) > 8);
                bad++;
                free(rec);
                continue;
            }

            ok++;
            p = v.tokens;

            for (m = 0; m < v.delta->n_tokens; m++) {
                chan_next_token(&p, &t);
                q = t.tops;

                for (j = 0; j < t.token->n_top; j++) {
                    chan_next_top(&q, &top);
                }
            }

            assert_ptr_equal(p, (uint8_t *) rec + rec->size);
            free(rec);
        }
    }

    assert_true(ok > 100);
    assert_true(bad > 300);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_submit),
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_error),
        cmocka_unit_test(test_delta),
        cmocka_unit_test(test_delta_mutations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
