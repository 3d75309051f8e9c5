/*
 * Tags of a prompt against a flat copy of its canonical bytes.
 */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "shim/ngx_shim.h"
#include "ngx_http_llm_prefix.h"


typedef struct {
    uint8_t  byte[65536];
    size_t   n;
} flat_t;

static void
flat_add(flat_t *flat, const void *p, size_t n)
{
    assert_true(flat->n + n <= sizeof(flat->byte));
    memcpy(flat->byte + flat->n, p, n);
    flat->n += n;
}


static void
message(chan_body_t *body, flat_t *flat, uint32_t role, const char *text,
    const char *canonical)
{
    uint8_t         b;
    chan_message_t  m = { role, 0 };

    assert_int_equal(chan_body_put(body, CHAN_SEC_MESSAGE, &m, sizeof(m),
                                   text, strlen(text)), CHAN_OK);
    b = (uint8_t) (0xf8 + role);
    flat_add(flat, &b, 1);
    flat_add(flat, canonical, strlen(canonical));
}


static void
check_tags(const chan_body_t *body, const flat_t *flat, size_t block,
    uint64_t seed)
{
    uint64_t     chain;
    ngx_uint_t   i, n;
    chan_tag_t  *tags;

    n = ngx_http_llm_tags_count(body, block);
    assert_int_equal(n, flat->n / block < CHAN_TAGS_MAX ? flat->n / block
                                                        : CHAN_TAGS_MAX);
    tags = malloc(n * sizeof(*tags) + 1);
    assert_non_null(tags);
    ngx_http_llm_tags_make(body, seed, block, tags, n);
    chain = seed;

    for (i = 0; i < n; i++) {
        chain = XXH64(flat->byte + i * block, block, chain);
        assert_int_equal(tags[i].tag, chain);
        assert_int_equal(tags[i].end, (i + 1) * block);
    }

    free(tags);
}


static void
test_tags(void **state)
{
    char         long_text[3000];
    size_t       block;
    uint64_t     seed;
    chan_body_t  body;

    static flat_t  flat;

    (void) state;

    memset(&body, 0, sizeof(body));
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    flat.n = 0;
    seed = ngx_http_llm_tags_seed("model", (u_char *) "a\0b", 3);

    message(&body, &flat, CHAN_ROLE_SYSTEM, "be brief", "be brief");
    message(&body, &flat, CHAN_ROLE_USER, long_text, long_text);
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "<think>a</think>b</think>c",
            "c");
    message(&body, &flat, CHAN_ROLE_USER, "x</think>y", "x</think>y");
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "</think>", "");
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "</think", "</think");
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "", "");
    message(&body, &flat, CHAN_ROLE_TOOL, "caf\xc3\xa9", "caf\xc3\xa9");

    /* Other sections do not belong to it. */

    assert_int_equal(chan_body_put(&body, CHAN_SEC_STOP, NULL, 0, "stop", 4),
                     CHAN_OK);
    message(&body, &flat, CHAN_ROLE_USER, long_text, long_text);

    for (block = 1; block < flat.n + 2; block += 1 + block / 7) {
        check_tags(&body, &flat, block, seed);
    }

    chan_body_free(&body);

    /* Text, ids, and more than there may be. */

    flat.n = 0;
    flat_add(&flat, long_text, 2999);
    chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, long_text, 2999);
    check_tags(&body, &flat, 64, seed);
    chan_body_free(&body);

    flat.n = 0;
    flat_add(&flat, (int32_t[]) { 1, -2, 300000 }, 12);
    chan_body_put(&body, CHAN_SEC_IDS, NULL, 0, flat.byte, 12);
    check_tags(&body, &flat, 4, seed);
    check_tags(&body, &flat, 5, seed);
    chan_body_free(&body);

    flat.n = 0;

    while (flat.n + 2999 <= sizeof(flat.byte)) {
        flat_add(&flat, long_text, 2999);
    }

    chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, flat.byte, flat.n);
    check_tags(&body, &flat, 15, seed);
    check_tags(&body, &flat, 16, seed);
    chan_body_free(&body);
}


static void
test_tags_apart(void **state)
{
    uint64_t  s;

    (void) state;

    s = ngx_http_llm_tags_seed("m", NULL, 0);
    assert_int_equal(s, ngx_http_llm_tags_seed("m", (u_char *) "x", 0));
    assert_int_not_equal(s, ngx_http_llm_tags_seed("n", NULL, 0));
    assert_int_not_equal(s, ngx_http_llm_tags_seed("m", (u_char *) "u", 1));
    assert_int_not_equal(ngx_http_llm_tags_seed("m", (u_char *) "u\0v", 3),
                         ngx_http_llm_tags_seed("m", (u_char *) "uv\0", 3));
    assert_int_not_equal(ngx_http_llm_tags_seed("mu", NULL, 0),
                         ngx_http_llm_tags_seed("m", (u_char *) "u", 1));
}


static uint64_t
head_of(int n, const uint32_t *roles, const char *const *texts)
{
    int          i;
    uint64_t     h;
    chan_body_t  body;

    static flat_t  flat;

    memset(&body, 0, sizeof(body));
    flat.n = 0;

    for (i = 0; i < n; i++) {
        message(&body, &flat, roles[i], texts[i], "");
    }

    h = ngx_http_llm_tags_head(&body);
    chan_body_free(&body);

    return h;
}


static void
test_head(void **state)
{
    char         big[8001];
    uint64_t     h;
    uint32_t     roles[] = { CHAN_ROLE_SYSTEM, CHAN_ROLE_USER,
                             CHAN_ROLE_ASSISTANT, CHAN_ROLE_USER };
    const char  *texts[] = { "s", "u1", "a1", "u2" };
    const char  *other[] = { "s", "u1", "a2", "u3" };
    const char  *first[] = { "s", "u2", "a1", "u2" };

    (void) state;

    h = head_of(4, roles, texts);
    assert_int_equal(h, head_of(4, roles, other));
    assert_int_equal(h, head_of(2, roles, texts));
    assert_int_not_equal(h, head_of(4, roles, first));
    assert_int_not_equal(h, head_of(1, roles, texts));
    assert_int_equal(h, XXH64("\xf9s\xfau1", 5, 0));

    /* 4096 bytes: the role, "s", the role, 4093 bytes of the user's. */

    memset(big, 'x', 8000);
    big[8000] = '\0';
    texts[1] = big;
    h = head_of(2, roles, texts);
    big[4093] = 'y';
    assert_int_equal(h, head_of(2, roles, texts));
    big[4092] = 'y';
    assert_int_not_equal(h, head_of(2, roles, texts));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_tags),
        cmocka_unit_test(test_tags_apart),
        cmocka_unit_test(test_head),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
