/*
 * Answers that pass: what is found in them, wherever they are cut.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ngx_http_llm_scan.h"


static void
scan_all(ngx_http_llm_scan_t *s, const char *text, ngx_uint_t events)
{
    ngx_http_llm_scan_init(s, events);
    ngx_http_llm_scan(s, (const u_char *) text, strlen(text));
    ngx_http_llm_scan_end(s);
}


/* Equal in what was found. */

static void
same(const ngx_http_llm_scan_t *a, const ngx_http_llm_scan_t *b)
{
    assert_int_equal(a->prompt, b->prompt);
    assert_int_equal(a->cached, b->cached);
    assert_int_equal(a->completion, b->completion);
    assert_int_equal(a->reasoning, b->reasoning);
    assert_int_equal(a->pieces, b->pieces);
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(a->prompt_n, b->prompt_n);
    assert_int_equal(a->cache_n, b->cache_n);
    assert_int_equal(a->predicted_n, b->predicted_n);
    assert_int_equal(a->usage, b->usage);
    assert_int_equal(a->timings, b->timings);
    assert_int_equal(a->error, b->error);
    assert_true(a->reason == b->reason);
}


static const char  stream[] =
    ": a comment with usage\r\n\r\n"
    "event: x\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"role\":"
    "\"assistant\",\"content\":\"\"},\"finish_reason\":null}],"
    "\"usage\":null}\n\n"
    "data:{\"choices\":[{\"delta\":{\"reasoning_content\":\"so\"}}]}\n\n"
    "data: {\"choices\":[{\"delta\":{\"content\":\"a \\\"usage\\\" "
    "{\\\\\"},\"logprobs\":{\"content\":[{\"token\":\"x\"}]}}]}\r\n\r\n"
    "data: {\"choices\":[{\"delta\":\n"
    "data: {\"content\":\"b\"}}]}\r\r"
    "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":"
    "{\"arguments\":\"{}\"}}]}}]}\n\n"
    "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":17,"
    "\"completion_tokens\":4,\"total_tokens\":21,\"prompt_tokens_details\":"
    "{\"cached_tokens\":16},\"completion_tokens_details\":"
    "{\"reasoning_tokens\":1}}}\n\n"
    "data: [DONE]\n\n";


static void
test_stream(void **state)
{
    size_t               i, j, n;
    ngx_http_llm_scan_t  all, s;

    (void) state;

    scan_all(&all, stream, 1);

    assert_true(all.usage);
    assert_false(all.error || all.timings);
    assert_int_equal(all.prompt, 17);
    assert_int_equal(all.cached, 16);
    assert_int_equal(all.completion, 4);
    assert_int_equal(all.reasoning, 1);
    assert_int_equal(all.pieces, 4);
    assert_string_equal(all.reason, "length");

    /* Cut anywhere, once and twice. */

    n = strlen(stream);

    for (i = 0; i <= n; i++) {
        for (j = i; j <= n; j += 1 + (j - i) / 3) {
            ngx_http_llm_scan_init(&s, 1);
            ngx_http_llm_scan(&s, (const u_char *) stream, i);
            ngx_http_llm_scan(&s, (const u_char *) stream + i, j - i);
            ngx_http_llm_scan(&s, (const u_char *) stream + j, n - j);
            ngx_http_llm_scan_end(&s);
            same(&all, &s);
        }
    }
}


static void
test_json(void **state)
{
    ngx_http_llm_scan_t  s;

    (void) state;

    scan_all(&s, "{\"choices\":[{\"index\":0,\"message\":"
             "{\"role\":\"assistant\",\"content\":\"hello\"},"
             "\"finish_reason\":\"stop\"}],\"usage\":"
             "{\"prompt_tokens\":5,\"completion_tokens\":2,"
             "\"prompt_cache_hit_tokens\":3}}", 0);
    assert_int_equal(s.prompt, 5);
    assert_int_equal(s.cached, 3);
    assert_int_equal(s.completion, 2);
    assert_int_equal(s.pieces, 1);
    assert_int_equal(s.bytes, 5);
    assert_string_equal(s.reason, "stop");

    scan_all(&s, "{ \"choices\" : [ { \"text\" : \"abc\" , \"finish_reason\" :"
             " \"weird\" } ] }", 0);
    assert_false(s.usage);
    assert_int_equal(s.bytes, 3);
    assert_string_equal(s.reason, "other");

    scan_all(&s, "{\"choices\":[{\"text\":\"x\"}],\"timings\":{\"cache_n\":10,"
             "\"prompt_n\":3,\"prompt_ms\":1.5,\"predicted_n\":7}}", 0);
    assert_true(s.timings);
    assert_int_equal(s.cache_n, 10);
    assert_int_equal(s.prompt_n, 3);
    assert_int_equal(s.predicted_n, 7);
}


/* What looks like it and is not. */

static void
test_decoys(void **state)
{
    size_t               i;
    ngx_http_llm_scan_t  s;

    static const char *const  decoys[] = {
        "{\"x\":{\"usage\":{\"prompt_tokens\":1}}}",
        "{\"usage\":{\"x\":{\"prompt_tokens\":1}}}",
        "{\"usage\":[{\"prompt_tokens\":1}]}",
        "{\"choices\":[{\"message\":{\"content\":\"\"},\"usage\":"
            "{\"prompt_tokens\":1}}]}",
        "{\"x\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":1}\"}",
        "{\"usage\":{\"prompt_tokens\":-1,\"completion_tokens\":1.5}}",
        "{\"usage\":{\"prompt_tokens\":\"1\",\"completion_tokens\":null}}",
        "{\"usage\":{\"prompt_tokens\":99999999999999999999}}",
        "{\"usage\":{\"prompt_tokens\":1e3}}",
        "{\"Usage\":{\"prompt_tokens\":1},\"error\":null}",
        "{\"usage\":null,\"error\":false}",
        "[{\"usage\":{\"prompt_tokens\":1}}]",
        "{\"a\":[[[[[[[[{\"usage\":{\"prompt_tokens\":1}}]]]]]]]]}",
        "]]]}}}\"",
        ""
    };

    (void) state;

    for (i = 0; i < sizeof(decoys) / sizeof(decoys[0]); i++) {
        scan_all(&s, decoys[i], 0);

        if (s.usage || s.error || s.pieces != 0) {
            fail_msg("found something in %s", decoys[i]);
        }
    }

    scan_all(&s, "{\"a\":[[[[[[[[{}]]]]]]]],\"usage\":{\"completion_tokens\":3,"
             "\"prompt_tokens\":1}}", 0);
    assert_int_equal(s.completion, 3);

    scan_all(&s, "data: {\"error\":{\"message\":\"no\"}}\n\n", 1);
    assert_true(s.error);

    scan_all(&s, "{\"error\":\"no\"}", 0);
    assert_true(s.error);

    /* An event that is cut off does no harm to the next one. */

    scan_all(&s, "data: {\"choices\":[{\"delta\":{\"content\":\"x\n\n"
             "data: {\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}",
             1);
    assert_true(s.usage);
    assert_int_equal(s.prompt, 2);
}


/* Rubbish of all kinds: nothing but bounds to be kept (sanitizers). */

static void
test_rubbish(void **state)
{
    size_t               i, n;
    unsigned             seed;
    char                 buf[512];
    ngx_http_llm_scan_t  s;

    static const char  chars[] = "{}[]\",:\\ \n\rdata:usage0123456789.e-x";

    (void) state;

    for (seed = 1; seed < 20000; seed++) {
        srand(seed);
        n = (size_t) rand() % sizeof(buf);

        for (i = 0; i < n; i++) {
            buf[i] = rand() % 8 == 0 ? (char) rand()
                                     : chars[(size_t) rand()
                                             % (sizeof(chars) - 1)];
        }

        ngx_http_llm_scan_init(&s, seed & 1);
        ngx_http_llm_scan(&s, (const u_char *) buf, n / 2);
        ngx_http_llm_scan(&s, (const u_char *) buf + n / 2, n - n / 2);
        ngx_http_llm_scan_end(&s);
        assert_true(s.depth == 0);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_decoys),
        cmocka_unit_test(test_rubbish)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
