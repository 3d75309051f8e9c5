/*
 * A look at an answer of an OpenAI-compatible server as it passes: its usage,
 * how it ended, and how many events carried text.  Bytes may come in pieces of
 * any size, and nothing is kept of them.  It knows JSON and server-sent
 * events, but no request, so that it is compiled and tested alone as well.
 *
 * What is looked for, in each object (an event's data, or the whole body):
 *
 *     usage.prompt_tokens, .completion_tokens, .prompt_cache_hit_tokens,
 *     usage.prompt_tokens_details.cached_tokens,
 *     usage.completion_tokens_details.reasoning_tokens
 *     timings.prompt_n, .cache_n, .predicted_n           (llama-server's own)
 *     choices[].finish_reason, choices[].text,
 *     choices[].delta|message.content|reasoning_content|reasoning|tool_calls
 *     error
 *
 * The last value counts.  What is malformed finds nothing and does no harm.
 */

#ifndef NGX_HTTP_LLM_SCAN_H
#define NGX_HTTP_LLM_SCAN_H

#include <ngx_config.h>
#include <ngx_core.h>


#define NGX_HTTP_LLM_SCAN_DEPTH  5     /* levels that are looked at */
#define NGX_HTTP_LLM_SCAN_WORD   32    /* bytes of the longest name */


typedef struct {

    /* found */

    uint64_t    prompt;          /* tokens, if `usage` or `timings` */
    uint64_t    cached;
    uint64_t    completion;
    uint64_t    reasoning;
    uint64_t    pieces;          /* events with text; without events, 1 */
    uint64_t    bytes;           /* of text */
    const char *reason;          /* of the last choice that ended, or NULL */
    uint64_t    prompt_n;
    uint64_t    cache_n;
    uint64_t    predicted_n;

    unsigned    usage:1;
    unsigned    timings:1;
    unsigned    error:1;

    /* where it is */

    unsigned    events:1;
    unsigned    piece:1;         /* this event has text */
    unsigned    name:1;          /* a string here is a name */
    unsigned    escape:1;
    unsigned    whole:1;         /* `number` is a whole number */
    unsigned    cr:1;            /* the byte before ended a line */

    unsigned    line;            /* of events: what it is */
    unsigned    state;
    ngx_uint_t  depth;
    u_char      path[NGX_HTTP_LLM_SCAN_DEPTH + 1];   /* names on the way */
    u_char      object[NGX_HTTP_LLM_SCAN_DEPTH + 1];
    u_char      word[NGX_HTTP_LLM_SCAN_WORD];
    size_t      len;             /* of the string so far */
    uint64_t    number;
} ngx_http_llm_scan_t;


/*
 * ngx_http_llm_scan_init() starts; with `events` what comes is a stream of
 * them.  ngx_http_llm_scan_end() is the end of the bytes.
 */

void ngx_http_llm_scan_init(ngx_http_llm_scan_t *s, ngx_uint_t events);
void ngx_http_llm_scan(ngx_http_llm_scan_t *s, const u_char *p, size_t n);
void ngx_http_llm_scan_end(ngx_http_llm_scan_t *s);


#endif /* NGX_HTTP_LLM_SCAN_H */
