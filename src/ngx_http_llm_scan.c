/*
 * Answers that pass (ngx_http_llm_scan.h): a machine that takes a byte at a
 * time and knows where in an object it is, as deep as it is interested.
 */

#include "ngx_http_llm_scan.h"


/* Names that mean something, one a level. */

typedef enum {
    NGX_HTTP_LLM_S_OTHER = 0,
    NGX_HTTP_LLM_S_ITEM,             /* of a list */
    NGX_HTTP_LLM_S_CACHE_N,
    NGX_HTTP_LLM_S_CACHED,
    NGX_HTTP_LLM_S_CHOICES,
    NGX_HTTP_LLM_S_COMPLETION,
    NGX_HTTP_LLM_S_COMPLETION_DETAILS,
    NGX_HTTP_LLM_S_CONTENT,
    NGX_HTTP_LLM_S_DELTA,
    NGX_HTTP_LLM_S_ERROR,
    NGX_HTTP_LLM_S_FINISH,
    NGX_HTTP_LLM_S_HIT,
    NGX_HTTP_LLM_S_PREDICTED_N,
    NGX_HTTP_LLM_S_PROMPT,
    NGX_HTTP_LLM_S_PROMPT_DETAILS,
    NGX_HTTP_LLM_S_PROMPT_N,
    NGX_HTTP_LLM_S_REASONING,
    NGX_HTTP_LLM_S_TEXT,
    NGX_HTTP_LLM_S_TIMINGS,
    NGX_HTTP_LLM_S_TOOLS,
    NGX_HTTP_LLM_S_USAGE
} ngx_http_llm_s_e;

enum {
    NGX_HTTP_LLM_SCAN_BETWEEN = 0,
    NGX_HTTP_LLM_SCAN_STRING,
    NGX_HTTP_LLM_SCAN_NUMBER,
    NGX_HTTP_LLM_SCAN_LITERAL        /* true, false, null, or rubbish */
};

/* A line of events: so many bytes of "data:" were seen, or one of these. */

#define NGX_HTTP_LLM_LINE_DATA  (sizeof("data:") - 1)
#define NGX_HTTP_LLM_LINE_SKIP  100


static void ngx_http_llm_scan_event(ngx_http_llm_scan_t *s);
static void ngx_http_llm_scan_json(ngx_http_llm_scan_t *s, u_char ch);
static void ngx_http_llm_scan_between(ngx_http_llm_scan_t *s, u_char ch);
static void ngx_http_llm_scan_open(ngx_http_llm_scan_t *s, u_char ch);
static void ngx_http_llm_scan_string(ngx_http_llm_scan_t *s, u_char ch);
static void ngx_http_llm_scan_string_end(ngx_http_llm_scan_t *s);
static void ngx_http_llm_scan_number(ngx_http_llm_scan_t *s);
static ngx_uint_t ngx_http_llm_scan_text(ngx_http_llm_scan_t *s);
static ngx_http_llm_s_e ngx_http_llm_scan_name(ngx_http_llm_scan_t *s);
static ngx_uint_t ngx_http_llm_scan_is(ngx_http_llm_scan_t *s,
    const char *word);


#define ngx_http_llm_scan_at(s, level, id)  ((s)->path[level] == (id))


void
ngx_http_llm_scan_init(ngx_http_llm_scan_t *s, ngx_uint_t events)
{
    ngx_memzero(s, sizeof(ngx_http_llm_scan_t));
    s->events = events;
}


void
ngx_http_llm_scan(ngx_http_llm_scan_t *s, const u_char *p, size_t n)
{
    u_char         ch;
    const u_char  *last;

    static const char  data[] = "data:";

    for (last = p + n; p < last; p++) {

        ch = *p;

        if (!s->events) {
            ngx_http_llm_scan_json(s, ch);
            continue;
        }

        /* A line ends with CR, LF or both; an empty one ends an event. */

        if (ch == '\n' && s->cr) {
            s->cr = 0;
            continue;
        }

        s->cr = (ch == '\r');

        if (ch == '\n' || ch == '\r') {

            if (s->line == 0) {
                ngx_http_llm_scan_event(s);

            } else if (s->line == NGX_HTTP_LLM_LINE_DATA) {
                ngx_http_llm_scan_json(s, '\n');
            }

            s->line = 0;
            continue;
        }

        if (s->line == NGX_HTTP_LLM_LINE_DATA) {
            ngx_http_llm_scan_json(s, ch);

        } else if (s->line < NGX_HTTP_LLM_LINE_DATA
                   && ch == (u_char) data[s->line])
        {
            s->line++;

        } else {
            s->line = NGX_HTTP_LLM_LINE_SKIP;
        }
    }
}


void
ngx_http_llm_scan_end(ngx_http_llm_scan_t *s)
{
    ngx_http_llm_scan_event(s);
}


/* The end of an object, whether it was whole or not. */

static void
ngx_http_llm_scan_event(ngx_http_llm_scan_t *s)
{
    if (s->piece) {
        s->pieces++;
    }

    s->piece = 0;
    s->name = 0;
    s->escape = 0;
    s->state = NGX_HTTP_LLM_SCAN_BETWEEN;
    s->depth = 0;
}


static void
ngx_http_llm_scan_json(ngx_http_llm_scan_t *s, u_char ch)
{
    switch (s->state) {

    case NGX_HTTP_LLM_SCAN_STRING:
        ngx_http_llm_scan_string(s, ch);
        return;

    case NGX_HTTP_LLM_SCAN_NUMBER:

        if (ch >= '0' && ch <= '9') {

            if (s->number > (UINT64_C(1) << 53)) {
                s->whole = 0;

            } else {
                s->number = s->number * 10 + (ch - '0');
            }

            return;
        }

        if (ch == '.' || ch == 'e' || ch == 'E' || ch == '+' || ch == '-') {
            s->whole = 0;
            return;
        }

        ngx_http_llm_scan_number(s);
        s->state = NGX_HTTP_LLM_SCAN_BETWEEN;
        break;

    case NGX_HTTP_LLM_SCAN_LITERAL:

        if (ch >= 'a' && ch <= 'z') {
            return;
        }

        s->state = NGX_HTTP_LLM_SCAN_BETWEEN;
        break;
    }

    ngx_http_llm_scan_between(s, ch);
}


static void
ngx_http_llm_scan_between(ngx_http_llm_scan_t *s, u_char ch)
{
    ngx_uint_t  seen;

    seen = s->depth <= NGX_HTTP_LLM_SCAN_DEPTH;

    switch (ch) {

    case '{':
    case '[':
        ngx_http_llm_scan_open(s, ch);
        return;

    case '}':
    case ']':
        s->depth -= (s->depth != 0);
        s->name = 0;
        return;

    case ',':
        s->name = seen && s->object[s->depth];
        return;

    case ':':
        s->name = 0;
        return;

    case '"':

        if (!s->name && seen && s->depth == 1
            && ngx_http_llm_scan_at(s, 1, NGX_HTTP_LLM_S_ERROR))
        {
            s->error = 1;
        }

        s->state = NGX_HTTP_LLM_SCAN_STRING;
        s->len = 0;
        return;
    }

    if ((ch >= '0' && ch <= '9') || ch == '-') {
        s->state = NGX_HTTP_LLM_SCAN_NUMBER;
        s->whole = (ch != '-');
        s->number = s->whole ? ch - '0' : 0;

    } else if (ch >= 'a' && ch <= 'z') {
        s->state = NGX_HTTP_LLM_SCAN_LITERAL;
    }
}


static void
ngx_http_llm_scan_open(ngx_http_llm_scan_t *s, u_char ch)
{
    if (s->depth == 1 && ch == '{'
        && ngx_http_llm_scan_at(s, 1, NGX_HTTP_LLM_S_ERROR))
    {
        s->error = 1;
    }

    /* A call of a tool is text of the answer too. */

    if (s->depth == 5 && ch == '{'
        && ngx_http_llm_scan_at(s, 1, NGX_HTTP_LLM_S_CHOICES)
        && ngx_http_llm_scan_at(s, 3, NGX_HTTP_LLM_S_DELTA)
        && ngx_http_llm_scan_at(s, 4, NGX_HTTP_LLM_S_TOOLS))
    {
        s->piece = 1;
    }

    s->depth++;
    s->name = (ch == '{');

    if (s->depth <= NGX_HTTP_LLM_SCAN_DEPTH) {
        s->object[s->depth] = (ch == '{');
        s->path[s->depth] = ch == '{' ? NGX_HTTP_LLM_S_OTHER
                                      : NGX_HTTP_LLM_S_ITEM;
    }
}


static void
ngx_http_llm_scan_string(ngx_http_llm_scan_t *s, u_char ch)
{
    if (s->escape) {
        s->escape = 0;

    } else if (ch == '\\') {
        s->escape = 1;

        /* No name that is looked for needs one. */

        s->len = ngx_max(s->len, NGX_HTTP_LLM_SCAN_WORD);

    } else if (ch == '"') {
        ngx_http_llm_scan_string_end(s);
        s->state = NGX_HTTP_LLM_SCAN_BETWEEN;
        return;
    }

    if (s->len < NGX_HTTP_LLM_SCAN_WORD) {
        s->word[s->len] = ch;
    }

    s->len++;
}


static void
ngx_http_llm_scan_string_end(ngx_http_llm_scan_t *s)
{
    ngx_uint_t  i;

    static const char *const  reasons[] = {
        "stop", "length", "tool_calls", "content_filter"
    };

    if (s->depth > NGX_HTTP_LLM_SCAN_DEPTH) {
        return;
    }

    if (s->name) {
        s->path[s->depth] = ngx_http_llm_scan_name(s);
        return;
    }

    if (s->depth < 3
        || !ngx_http_llm_scan_at(s, 1, NGX_HTTP_LLM_S_CHOICES)
        || !ngx_http_llm_scan_at(s, 2, NGX_HTTP_LLM_S_ITEM))
    {
        return;
    }

    if (s->depth == 3 && ngx_http_llm_scan_at(s, 3, NGX_HTTP_LLM_S_FINISH)) {

        s->reason = "other";

        for (i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
            if (ngx_http_llm_scan_is(s, reasons[i])) {
                s->reason = reasons[i];
            }
        }

        return;
    }

    if (s->len != 0 && ngx_http_llm_scan_text(s)) {
        s->piece = 1;
        s->bytes += s->len;
    }
}


/* Whether the value here is text that the model made. */

static ngx_uint_t
ngx_http_llm_scan_text(ngx_http_llm_scan_t *s)
{
    if (s->depth == 3) {
        return ngx_http_llm_scan_at(s, 3, NGX_HTTP_LLM_S_TEXT);
    }

    return s->depth == 4
           && ngx_http_llm_scan_at(s, 3, NGX_HTTP_LLM_S_DELTA)
           && (ngx_http_llm_scan_at(s, 4, NGX_HTTP_LLM_S_CONTENT)
               || ngx_http_llm_scan_at(s, 4, NGX_HTTP_LLM_S_REASONING));
}


static void
ngx_http_llm_scan_number(ngx_http_llm_scan_t *s)
{
    if (!s->whole || s->depth < 2 || s->depth > 3) {
        return;
    }

    if (s->depth == 2 && ngx_http_llm_scan_at(s, 1, NGX_HTTP_LLM_S_TIMINGS)) {

        switch (s->path[2]) {

        case NGX_HTTP_LLM_S_PROMPT_N:
            s->prompt_n = s->number;
            break;

        case NGX_HTTP_LLM_S_CACHE_N:
            s->cache_n = s->number;
            break;

        case NGX_HTTP_LLM_S_PREDICTED_N:
            s->predicted_n = s->number;
            s->timings = 1;
            break;
        }

        return;
    }

    if (!ngx_http_llm_scan_at(s, 1, NGX_HTTP_LLM_S_USAGE)) {
        return;
    }

    if (s->depth == 2) {

        switch (s->path[2]) {

        case NGX_HTTP_LLM_S_PROMPT:
            s->prompt = s->number;
            s->usage = 1;
            break;

        case NGX_HTTP_LLM_S_COMPLETION:
            s->completion = s->number;
            s->usage = 1;
            break;

        case NGX_HTTP_LLM_S_HIT:
            s->cached = s->number;
            break;
        }

        return;
    }

    if (ngx_http_llm_scan_at(s, 2, NGX_HTTP_LLM_S_PROMPT_DETAILS)
        && ngx_http_llm_scan_at(s, 3, NGX_HTTP_LLM_S_CACHED))
    {
        s->cached = s->number;

    } else if (ngx_http_llm_scan_at(s, 2, NGX_HTTP_LLM_S_COMPLETION_DETAILS)
               && ngx_http_llm_scan_at(s, 3, NGX_HTTP_LLM_S_REASONING))
    {
        s->reasoning = s->number;
    }
}


static ngx_http_llm_s_e
ngx_http_llm_scan_name(ngx_http_llm_scan_t *s)
{
    ngx_uint_t  i;

    static const struct {
        const char        *name;
        ngx_http_llm_s_e   id;
    } names[] = {
        { "cache_n", NGX_HTTP_LLM_S_CACHE_N },
        { "cached_tokens", NGX_HTTP_LLM_S_CACHED },
        { "choices", NGX_HTTP_LLM_S_CHOICES },
        { "completion_tokens", NGX_HTTP_LLM_S_COMPLETION },
        { "completion_tokens_details", NGX_HTTP_LLM_S_COMPLETION_DETAILS },
        { "content", NGX_HTTP_LLM_S_CONTENT },
        { "delta", NGX_HTTP_LLM_S_DELTA },
        { "message", NGX_HTTP_LLM_S_DELTA },
        { "error", NGX_HTTP_LLM_S_ERROR },
        { "finish_reason", NGX_HTTP_LLM_S_FINISH },
        { "predicted_n", NGX_HTTP_LLM_S_PREDICTED_N },
        { "prompt_cache_hit_tokens", NGX_HTTP_LLM_S_HIT },
        { "prompt_n", NGX_HTTP_LLM_S_PROMPT_N },
        { "prompt_tokens", NGX_HTTP_LLM_S_PROMPT },
        { "prompt_tokens_details", NGX_HTTP_LLM_S_PROMPT_DETAILS },
        { "reasoning", NGX_HTTP_LLM_S_REASONING },
        { "reasoning_content", NGX_HTTP_LLM_S_REASONING },
        { "reasoning_tokens", NGX_HTTP_LLM_S_REASONING },
        { "text", NGX_HTTP_LLM_S_TEXT },
        { "timings", NGX_HTTP_LLM_S_TIMINGS },
        { "tool_calls", NGX_HTTP_LLM_S_TOOLS },
        { "usage", NGX_HTTP_LLM_S_USAGE }
    };

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (ngx_http_llm_scan_is(s, names[i].name)) {
            return names[i].id;
        }
    }

    return NGX_HTTP_LLM_S_OTHER;
}


static ngx_uint_t
ngx_http_llm_scan_is(ngx_http_llm_scan_t *s, const char *word)
{
    return s->len < NGX_HTTP_LLM_SCAN_WORD
           && ngx_strlen(word) == s->len
           && ngx_memcmp(word, s->word, s->len) == 0;
}
