/*
 * Strings of a request's JSON, which are passed over eight bytes at a time:
 * any byte at any place, beside a rule that takes one at a time.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ngx_http_llm_params.h"


#define LEN  27


/* Whether `text` is one string and where it fails, by RFC 8259. */

static int
plain(const u_char *text, size_t len, size_t *at)
{
    size_t  i;

    for (i = 1; i < len; i++) {
        *at = i;

        if (text[i] == '"') {

            do {
                i++;
            } while (i < len && text[i] != '\0'
                     && strchr(" \t\r\n", text[i]) != NULL);

            *at = i;

            return i == len;
        }

        if (text[i] < 0x20) {
            return 0;
        }

        if (text[i] == '\\') {
            *at = ++i;

            if (i == len || text[i] == '\0'
                || strchr("\"\\/bfnrt", text[i]) == NULL)
            {
                return 0;
            }
        }
    }

    *at = len;

    return 0;
}


static void
agree(const u_char *text, size_t len)
{
    int                   good;
    char                  where[32];
    u_char               *copy;
    size_t                at;
    ngx_int_t             rc;
    ngx_str_t             seed;
    ngx_http_llm_error_t  err;

    /* exactly as long, so that a step beyond it is seen */

    copy = malloc(len);
    assert_non_null(copy);
    memcpy(copy, text, len);
    memset(&err, 0, sizeof(err));

    rc = ngx_http_llm_json_check(copy, len, &seed, &err);
    good = plain(copy, len, &at);

    assert_int_equal(rc, good ? NGX_OK : NGX_ERROR);

    if (!good) {
        snprintf(where, sizeof(where), "at byte %zu.", at);
        if (strstr(err.message, where) == NULL) {
            fail_msg("\"%.*s\": %s, not %s", (int) len, text, err.message,
                     where);
        }
    }

    free(copy);
}


/* Two bytes of any value at any two places, in text of three kinds. */

static void
test_bytes(void **state)
{
    u_char    text[LEN + 2];
    size_t    i, j, len;
    unsigned  a, b, fill;

    static const u_char  second[] = { '"', '\\', 0, 0x1f, 0x20, 0x21, 0x7f,
                                      0x80, 0xa2, 0xdc, 0xff, 'u', 'n' };
    static const u_char  fills[] = { 'a', 0x20, 0xe9 };

    (void) state;

    for (fill = 0; fill < sizeof(fills); fill++) {
        for (len = 2; len <= LEN + 2; len += 3) {
            for (i = 1; i + 1 < len; i++) {
                for (j = i; j + 1 < len; j += 1 + j / 8) {
                    for (b = 0; b < sizeof(second); b++) {
                        for (a = 0; a < 256; a += 1 + (j != i)) {
                            memset(text, fills[fill], len);
                            text[0] = text[len - 1] = '"';
                            text[j] = second[b];
                            text[i] = (u_char) a;

                            if (text[i] == '\\' && text[i + 1] == 'u') {
                                continue;       /* has rules of its own */
                            }

                            if (text[j] == '\\' && text[j + 1] == 'u') {
                                continue;
                            }

                            agree(text, len);
                        }
                    }
                }
            }
        }
    }
}


/* No end, at any length. */

static void
test_cut(void **state)
{
    u_char  text[LEN];
    size_t  len;

    (void) state;

    memset(text, 'a', sizeof(text));
    text[0] = '"';

    for (len = 1; len <= LEN; len++) {
        agree(text, len);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
