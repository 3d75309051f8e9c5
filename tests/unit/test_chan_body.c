/*
 * Bodies of submissions: sections that are put come out again, and what no
 * writer makes is refused.  They are checked in buffers of their exact size, so
 * that the address sanitizer sees a byte too many.
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


#define N(array)  (sizeof(array) / sizeof((array)[0]))


static void
test_utf8(void **state)
{
    size_t  i, k;
    char   *s, *copy;

    static const struct {
        const char  *text;
        int          valid;
    } cases[] = {
        { "", 1 }, { "a", 1 }, { "plain text of some length", 1 },
        { "\xc2\x80", 1 }, { "\xdf\xbf", 1 }, { "\xe0\xa0\x80", 1 },
        { "\xed\x9f\xbf", 1 }, { "\xee\x80\x80", 1 }, { "\xef\xbf\xbf", 1 },
        { "\xf0\x90\x80\x80", 1 }, { "\xf4\x8f\xbf\xbf", 1 },
        { "\xe4\xbd\xa0\xe5\xa5\xbd", 1 }, { "\xf0\x9f\xa6\x85 falcon", 1 },
        { "\x80", 0 }, { "\xbf", 0 }, { "\xc0\x80", 0 }, { "\xc1\xbf", 0 },
        { "\xc2", 0 }, { "\xc2\x41", 0 }, { "\xc2\xc2", 0 },
        { "\xe0\x80\x80", 0 }, { "\xe0\x9f\xbf", 0 }, { "\xe1\x80", 0 },
        { "\xe1\x80\x41", 0 }, { "\xed\xa0\x80", 0 }, { "\xed\xbf\xbf", 0 },
        { "\xf0\x80\x80\x80", 0 }, { "\xf0\x8f\xbf\xbf", 0 },
        { "\xf0\x90\x80", 0 }, { "\xf1\x80\x80\x41", 0 },
        { "\xf4\x90\x80\x80", 0 }, { "\xf5\x80\x80\x80", 0 },
        { "\xf8\x88\x80\x80\x80", 0 }, { "\xfe", 0 }, { "\xff", 0 },
        { "a\x80", 0 }, { "12345678\xff", 0 }, { "1234567\xff", 0 },
        { "12345678123\xc2", 0 },
    };

    (void) state;

    assert_int_equal(chan_utf8_valid(NULL, 0), 1);
    assert_int_equal(chan_utf8_valid("a\0b", 3), 1);

    for (i = 0; i < N(cases); i++) {

        /* at every distance from the end of a word */

        for (k = 0; k < 17; k++) {
            s = malloc(k + strlen(cases[i].text) + 1);
            assert_non_null(s);
            memset(s, 'x', k);
            strcpy(s + k, cases[i].text);
            copy = malloc(strlen(s) + 1);
            assert_non_null(copy);
            memcpy(copy, s, strlen(s));

            if (chan_utf8_valid(copy, strlen(s)) != cases[i].valid) {
                fail_msg("case %d at %d", (int) i, (int) k);
            }

            free(copy);
            free(s);
        }
    }
}


/* All code points, against the definition. */

static void
test_utf8_all(void **state)
{
    int       n, valid;
    uint8_t   s[4];
    uint32_t  c;

    (void) state;

    for (c = 0; c < 0x120000; c++) {

        if (c < 0x80) {
            n = 1;
            s[0] = (uint8_t) c;
        } else if (c < 0x800) {
            n = 2;
            s[0] = (uint8_t) (0xc0 | c >> 6);
        } else if (c < 0x10000) {
            n = 3;
            s[0] = (uint8_t) (0xe0 | c >> 12);
        } else {
            n = 4;
            s[0] = (uint8_t) (0xf0 | c >> 18);
        }

        s[n - 1] = n > 1 ? 0x80 | (c & 0x3f) : s[0];

        if (n > 2) {
            s[n - 2] = 0x80 | (c >> 6 & 0x3f);
        }

        if (n > 3) {
            s[n - 3] = 0x80 | (c >> 12 & 0x3f);
        }

        valid = c <= 0x10ffff && (c < 0xd800 || c > 0xdfff);
        assert_int_equal(chan_utf8_valid(s, (size_t) n), valid);
        assert_int_equal(chan_utf8_valid(s, (size_t) n - 1), n == 1);
    }
}


static void
test_body_round_trip(void **state)
{
    int              i;
    char             err[CHAN_ERR_LEN], text[64];
    size_t           off, k;
    int32_t          ids[] = { 0, 1, 2147483647 };
    chan_tag_t       tag = { 77, 5 };
    chan_bias_t      bias[2] = { { 1, -100 }, { 2, 100 } };
    chan_body_t      body;
    chan_submit_t    s;
    chan_message_t   m;
    chan_section_t   sec;

    (void) state;

    memset(&body, 0, sizeof(body));
    memset(&m, 0, sizeof(m));

    for (i = 0; i < 100; i++) {
        m.role = (uint32_t) (1 + i % 4);
        memset(text, 'a' + i % 26, sizeof(text));
        assert_int_equal(chan_body_put(&body, CHAN_SEC_MESSAGE, &m, sizeof(m),
                                       text, (size_t) i % 64), CHAN_OK);
    }

    assert_int_equal(chan_body_put(&body, CHAN_SEC_STOP, NULL, 0, "x", 1), 0);
    assert_int_equal(chan_body_put(&body, CHAN_SEC_BIAS, NULL, 0, bias, 16),
                     0);
    assert_int_equal(chan_body_put(&body, CHAN_SEC_TAGS, &tag, 16, NULL, 0),
                     0);
    assert_int_equal(chan_body_put(&body, CHAN_SEC_TENANT, NULL, 0, "\xff", 1),
                     0);
    assert_int_equal(chan_body_put(&body, CHAN_SEC_RESUME_IDS, NULL, 0, ids,
                                   12), 0);

    submit_init(&s);
    s.body_size = body.size;
    s.resume_bytes = 3;

    if (chan_body_check(&s, body.data, body.size, err) != CHAN_OK) {
        fail_msg("%s", err);
    }

    off = 0;

    for (i = 0; i < 100; i++) {
        assert_int_equal(chan_body_next(body.data, body.size, &off, &sec), 0);
        assert_int_equal(sec.kind, CHAN_SEC_MESSAGE);
        assert_int_equal(sec.role, 1 + i % 4);
        assert_int_equal(sec.size, i % 64);
        assert_int_equal((uintptr_t) sec.data % 8, 0);

        for (k = 0; k < sec.size; k++) {
            assert_int_equal(sec.data[k], 'a' + i % 26);
        }
    }

    for (i = CHAN_SEC_STOP; i <= CHAN_SEC_RESUME_IDS; i++) {
        assert_int_equal(chan_body_next(body.data, body.size, &off, &sec), 0);
        assert_int_equal(sec.kind, i);
    }

    assert_memory_equal(sec.data, ids, sizeof(ids));
    assert_int_equal(chan_body_next(body.data, body.size, &off, &sec),
                     CHAN_AGAIN);

    /* any change of length is noticed */

    assert_int_equal(chan_body_check(&s, body.data, body.size - 8, err),
                     CHAN_ERROR);

    s.body_size -= 8;
    assert_int_equal(chan_body_check(&s, body.data, body.size - 8, err),
                     CHAN_ERROR);

    chan_body_free(&body);
    assert_null(body.data);

    /* the largest, and one more */

    assert_int_equal(chan_body_put(&body, CHAN_SEC_TENANT, NULL, 0, NULL,
                                   SIZE_MAX), CHAN_ERROR);
    assert_int_equal(chan_body_put(&body, CHAN_SEC_TENANT, NULL, SIZE_MAX,
                                   NULL, 1), CHAN_ERROR);
    assert_null(body.data);
}


/* One section each, in a chat or completion; what chan_body_check() says. */

static void
test_body_sections(void **state)
{
    int              rc;
    char             err[CHAN_ERR_LEN];
    size_t           i;
    uint8_t         *exact;
    chan_body_t      body;
    chan_submit_t    s;
    chan_message_t   m;

    static char  big[CHAN_STOP_LEN + 1];

    static const struct {
        const char  *name;
        int          chat;           /* 2: a completion with no prompt yet */
        uint32_t     kind;
        const void  *p;
        size_t       n;
        int          copies;
        int          rc;
    } cases[] = {
        { "message", 1, CHAN_SEC_MESSAGE, "\2\0\0\0\0\0\0\0hi", 10, 1, 0 },
        { "empty", 1, CHAN_SEC_MESSAGE, "\3\0\0\0\0\0\0\0", 8, 1, 0 },
        { "no role", 1, CHAN_SEC_MESSAGE, "\0\0\0\0\0\0\0\0", 8, 1, -2 },
        { "role 5", 1, CHAN_SEC_MESSAGE, "\5\0\0\0\0\0\0\0", 8, 1, -2 },
        { "flags", 1, CHAN_SEC_MESSAGE, "\2\0\0\0\1\0\0\0", 8, 1, -2 },
        { "short", 1, CHAN_SEC_MESSAGE, "\2\0\0\0\0\0\0", 7, 1, -2 },
        { "utf8", 1, CHAN_SEC_MESSAGE, "\2\0\0\0\0\0\0\0\xff", 9, 1, -2 },
        { "in completion", 0, CHAN_SEC_MESSAGE, "\2\0\0\0\0\0\0\0", 8, 1, -2 },
        { "text", 2, CHAN_SEC_TEXT, "t", 1, 1, 0 },
        { "empty text", 2, CHAN_SEC_TEXT, "", 0, 1, 0 },
        { "text utf8", 2, CHAN_SEC_TEXT, "\xc3", 1, 1, -2 },
        { "two texts", 0, CHAN_SEC_TEXT, "t", 1, 1, -2 },
        { "text in chat", 1, CHAN_SEC_TEXT, "t", 1, 1, -2 },
        { "ids", 2, CHAN_SEC_IDS, "\1\0\0\0\0\0\0\0", 8, 1, 0 },
        { "no ids", 2, CHAN_SEC_IDS, "", 0, 1, 0 },
        { "ids size", 2, CHAN_SEC_IDS, "\1\0\0\0\0", 5, 1, -2 },
        { "negative", 2, CHAN_SEC_IDS, "\0\0\0\x80", 4, 1, -2 },
        { "ids and text", 0, CHAN_SEC_IDS, "\1\0\0\0", 4, 1, -2 },
        { "ids in chat", 1, CHAN_SEC_IDS, "\1\0\0\0", 4, 1, -2 },
        { "no prompt", 2, CHAN_SEC_STOP, "t", 1, 1, -2 },
        { "stop", 1, CHAN_SEC_STOP, "s", 1, 1, 0 },
        { "empty stop", 1, CHAN_SEC_STOP, "", 0, 1, -2 },
        { "256", 1, CHAN_SEC_STOP, big, CHAN_STOP_LEN, 1, 0 },
        { "257", 1, CHAN_SEC_STOP, big, CHAN_STOP_LEN + 1, 1, -2 },
        { "stop utf8", 1, CHAN_SEC_STOP, "\xe2\x82", 2, 1, -2 },
        { "16 stops", 1, CHAN_SEC_STOP, "s", 1, CHAN_STOP_MAX, 0 },
        { "17 stops", 1, CHAN_SEC_STOP, "s", 1, CHAN_STOP_MAX + 1, -2 },
        { "bias size", 1, CHAN_SEC_BIAS, "\1\0\0\0\0\0\0", 7, 1, -2 },
        { "bias id", 1, CHAN_SEC_BIAS, "\0\0\0\xff\0\0\0\0", 8, 1, -2 },
        { "bias nan", 1, CHAN_SEC_BIAS, "\0\0\0\0\0\0\xc0\x7f", 8, 1, -2 },
        { "bias inf", 1, CHAN_SEC_BIAS, "\0\0\0\0\0\0\x80\x7f", 8, 1, -2 },
        { "bias 100", 1, CHAN_SEC_BIAS, "\0\0\0\0\0\0\xc8\x42", 8, 1, 0 },
        { "bias 101", 1, CHAN_SEC_BIAS, "\0\0\0\0\0\0\xca\x42", 8, 1, -2 },
        { "bias -101", 1, CHAN_SEC_BIAS, "\0\0\0\0\0\0\xca\xc2", 8, 1, -2 },
        { "no bias", 1, CHAN_SEC_BIAS, "", 0, 1, 0 },
        { "two biases", 1, CHAN_SEC_BIAS, "", 0, 2, -2 },
        { "tags size", 1, CHAN_SEC_TAGS, "12345678", 8, 1, -2 },
        { "tags", 1, CHAN_SEC_TAGS, "1234567812345678", 16, 1, 0 },
        { "two tags", 1, CHAN_SEC_TAGS, "1234567812345678", 16, 2, -2 },
        { "tags rise", 1, CHAN_SEC_TAGS,
          "tagtagt1\1\0\0\0\0\0\0\0tagtagt2\2\0\0\0\0\0\0", 32, 1, 0 },
        { "tags stand", 1, CHAN_SEC_TAGS,
          "tagtagt1\1\0\0\0\0\0\0\0tagtagt2\1\0\0\0\0\0\0", 32, 1, -2 },
        { "tag of nothing", 1, CHAN_SEC_TAGS,
          "tagtagt1\0\0\0\0\0\0\0", 16, 1, -2 },
        { "tenant", 1, CHAN_SEC_TENANT, "\xff\0", 2, 1, 0 },
        { "two tenants", 1, CHAN_SEC_TENANT, "a", 1, 2, -2 },
        { "resume", 1, CHAN_SEC_RESUME_IDS, "\1\0\0\0", 4, 1, 0 },
        { "resume size", 1, CHAN_SEC_RESUME_IDS, "\1", 1, 1, -2 },
        { "two resumes", 1, CHAN_SEC_RESUME_IDS, "\1\0\0\0", 4, 2, -2 },
        { "kind 0", 1, 0, "", 0, 1, -2 },
        { "kind 9", 1, 9, "", 0, 1, -2 },
        { "kind -1", 1, UINT32_MAX, "", 0, 1, -2 },
    };

    (void) state;

    memset(big, 's', sizeof(big));
    memset(&m, 0, sizeof(m));
    m.role = CHAN_ROLE_USER;

    for (i = 0; i < N(cases); i++) {
        int  k;

        memset(&body, 0, sizeof(body));
        submit_init(&s);
        s.endpoint = cases[i].chat == 1 ? CHAN_CHAT : CHAN_COMPLETION;

        if (cases[i].chat == 1 && cases[i].kind != CHAN_SEC_MESSAGE) {
            chan_body_put(&body, CHAN_SEC_MESSAGE, &m, sizeof(m), "hi", 2);

        } else if (cases[i].chat == 0) {
            chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, "hi", 2);
        }

        for (k = 0; k < cases[i].copies; k++) {
            assert_int_equal(chan_body_put(&body, cases[i].kind, NULL, 0,
                                           cases[i].p, cases[i].n), CHAN_OK);
        }

        s.body_size = body.size;
        exact = malloc(body.size);
        assert_non_null(exact);
        memcpy(exact, body.data, body.size);
        err[0] = '\0';
        rc = chan_body_check(&s, exact, body.size, err);

        if (rc != cases[i].rc || (rc != 0 && strlen(err) < 8)) {
            fail_msg("%s: %d, %s", cases[i].name, rc, err);
        }

        free(exact);
        chan_body_free(&body);
    }

    submit_init(&s);
    assert_int_equal(chan_body_check(&s, NULL, 0, err), CHAN_ERROR);

    /* As many tags as allowed, and one more. */

    for (i = CHAN_TAGS_MAX; i <= CHAN_TAGS_MAX + 1; i++) {
        size_t       k;
        chan_tag_t  *tag;

        tag = calloc(i, sizeof(*tag));
        assert_non_null(tag);

        for (k = 0; k < i; k++) {
            tag[k].end = k + 1;
        }

        memset(&body, 0, sizeof(body));
        chan_body_put(&body, CHAN_SEC_MESSAGE, &m, sizeof(m), "hi", 2);
        assert_int_equal(chan_body_put(&body, CHAN_SEC_TAGS, NULL, 0, tag,
                                       i * sizeof(*tag)), CHAN_OK);
        s.body_size = body.size;
        assert_int_equal(chan_body_check(&s, body.data, body.size, err),
                         i == CHAN_TAGS_MAX ? CHAN_OK : CHAN_ERROR);
        chan_body_free(&body);
        free(tag);
    }

    s.resume_bytes = 1;
    chan_body_put(&body, CHAN_SEC_MESSAGE, &m, sizeof(m), "hi", 2);
    s.body_size = body.size;
    assert_int_equal(chan_body_check(&s, body.data, body.size, err),
                     CHAN_ERROR);
    chan_body_free(&body);
}


/* Section heads that lie about their size, and too many biases. */

static void
test_body_heads(void **state)
{
    char                 err[CHAN_ERR_LEN];
    size_t               i, off;
    uint8_t             *exact, *many;
    chan_body_t          body;
    chan_submit_t        s;
    chan_section_t       sec;
    chan_section_head_t  head;

    static const uint32_t  sizes[] = { 9, 16, 17, 0x7fffffff, 0xfffffff0,
                                       0xfffffff8, 0xfffffff9, 0xffffffff };

    (void) state;

    submit_init(&s);

    for (i = 0; i < N(sizes); i++) {
        head.kind = CHAN_SEC_MESSAGE;
        head.size = sizes[i];
        exact = calloc(1, 16);
        assert_non_null(exact);
        memcpy(exact, &head, sizeof(head));
        exact[8] = 1;
        s.body_size = 16;
        assert_int_equal(chan_body_check(&s, exact, 16, err), CHAN_ERROR);
        off = 0;
        assert_int_equal(chan_body_next(exact, 16, &off, &sec), CHAN_ERROR);
        assert_int_equal(off, 0);
        off = 17;
        assert_int_equal(chan_body_next(exact, 16, &off, &sec), CHAN_ERROR);
        off = 9;
        assert_int_equal(chan_body_next(exact, 16, &off, &sec), CHAN_ERROR);
        free(exact);
    }

    many = calloc(CHAN_BIAS_MAX + 1, sizeof(chan_bias_t));
    assert_non_null(many);

    for (i = CHAN_BIAS_MAX; i <= CHAN_BIAS_MAX + 1; i++) {
        memset(&body, 0, sizeof(body));
        s.endpoint = CHAN_COMPLETION;
        chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, "x", 1);
        chan_body_put(&body, CHAN_SEC_BIAS, NULL, 0, many,
                      i * sizeof(chan_bias_t));
        s.body_size = body.size;
        assert_int_equal(chan_body_check(&s, body.data, body.size, err),
                         i == CHAN_BIAS_MAX ? CHAN_OK : CHAN_ERROR);
        chan_body_free(&body);
    }

    free(many);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_utf8_all),
        cmocka_unit_test(test_body_round_trip),
        cmocka_unit_test(test_body_sections),
        cmocka_unit_test(test_body_heads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
