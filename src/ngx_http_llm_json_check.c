/*
 * Whether a text is JSON as RFC 8259 has it, and no more than a server can
 * take: one pass without recursion, before anything is built from it.
 */

#include "ngx_http_llm_params.h"

#include <math.h>
#include <stdlib.h>


/* A pass over the text; `object` has one flag for each open level. */

typedef struct {
    const u_char          *start;
    const u_char          *pos;
    const u_char          *last;
    ngx_uint_t             depth;
    ngx_uint_t             values;
    u_char                 object[NGX_HTTP_LLM_DEPTH_MAX];
    ngx_str_t             *seed;
    ngx_http_llm_error_t  *err;
} ngx_http_llm_json_check_t;


static ngx_int_t ngx_http_llm_json_walk(ngx_http_llm_json_check_t *ck);
static ngx_int_t ngx_http_llm_json_value(ngx_http_llm_json_check_t *ck,
    ngx_uint_t seed);
static ngx_int_t ngx_http_llm_json_key(ngx_http_llm_json_check_t *ck,
    ngx_uint_t *seed);
static ngx_int_t ngx_http_llm_json_quoted(ngx_http_llm_json_check_t *ck);
static void ngx_http_llm_json_plain(ngx_http_llm_json_check_t *ck);
static ngx_int_t ngx_http_llm_json_escape(ngx_http_llm_json_check_t *ck);
static ngx_int_t ngx_http_llm_json_hex(ngx_http_llm_json_check_t *ck);
static ngx_int_t ngx_http_llm_json_number(ngx_http_llm_json_check_t *ck,
    ngx_uint_t seed);
static ngx_int_t ngx_http_llm_json_word(ngx_http_llm_json_check_t *ck,
    const char *word);
static ngx_int_t ngx_http_llm_json_digits(ngx_http_llm_json_check_t *ck);
static void ngx_http_llm_json_space(ngx_http_llm_json_check_t *ck);
static ngx_int_t ngx_http_llm_json_bad(ngx_http_llm_json_check_t *ck,
    const char *what);


ngx_int_t
ngx_http_llm_json_check(const u_char *data, size_t len, ngx_str_t *seed,
    ngx_http_llm_error_t *err)
{
    ngx_http_llm_json_check_t  ck;

    ngx_memzero(&ck, sizeof(ngx_http_llm_json_check_t));

    ck.start = data;
    ck.pos = data;
    ck.last = data + len;
    ck.seed = seed;
    ck.err = err;

    return ngx_http_llm_json_walk(&ck);
}


static ngx_int_t
ngx_http_llm_json_walk(ngx_http_llm_json_check_t *ck)
{
    u_char      close;
    ngx_uint_t  seed;

    seed = 0;

value:

    /* Each costs memory and time that two bytes of text do not show. */

    if (ck->values++ == NGX_HTTP_LLM_VALUES_MAX) {
        return ngx_http_llm_json_bad(ck, "too many values");
    }

    ngx_http_llm_json_space(ck);

    if (ck->pos < ck->last && (*ck->pos == '{' || *ck->pos == '[')) {

        if (ck->depth == NGX_HTTP_LLM_DEPTH_MAX) {
            return ngx_http_llm_json_bad(ck, "too many levels");
        }

        ck->object[ck->depth++] = (*ck->pos++ == '{');
        close = ck->object[ck->depth - 1] ? '}' : ']';

        ngx_http_llm_json_space(ck);

        if (ck->pos < ck->last && *ck->pos == close) {
            ck->pos++;
            ck->depth--;
            goto next;
        }

        goto member;
    }

    if (ngx_http_llm_json_value(ck, seed) != NGX_OK) {
        return NGX_ERROR;
    }

next:

    ngx_http_llm_json_space(ck);

    if (ck->depth == 0) {
        return ck->pos == ck->last ? NGX_OK
                                   : ngx_http_llm_json_bad(ck, "text after "
                                                           "the end");
    }

    if (ck->pos == ck->last) {
        return ngx_http_llm_json_bad(ck, "the end is missing");
    }

    if (*ck->pos == (ck->object[ck->depth - 1] ? '}' : ']')) {
        ck->pos++;
        ck->depth--;
        goto next;
    }

    if (*ck->pos != ',') {
        return ngx_http_llm_json_bad(ck, "a comma is missing");
    }

    ck->pos++;

member:

    seed = 0;

    if (ck->object[ck->depth - 1]
        && ngx_http_llm_json_key(ck, &seed) != NGX_OK)
    {
        return NGX_ERROR;
    }

    goto value;
}


/* A value that is neither an object nor an array. */

static ngx_int_t
ngx_http_llm_json_value(ngx_http_llm_json_check_t *ck, ngx_uint_t seed)
{
    if (ck->pos == ck->last) {
        return ngx_http_llm_json_bad(ck, "the end is missing");
    }

    switch (*ck->pos) {

    case '"':
        return ngx_http_llm_json_quoted(ck);

    case 't':
        return ngx_http_llm_json_word(ck, "true");

    case 'f':
        return ngx_http_llm_json_word(ck, "false");

    case 'n':
        return ngx_http_llm_json_word(ck, "null");

    default:
        return ngx_http_llm_json_number(ck, seed);
    }
}


static ngx_int_t
ngx_http_llm_json_key(ngx_http_llm_json_check_t *ck, ngx_uint_t *seed)
{
    const u_char  *key;

    ngx_http_llm_json_space(ck);

    key = ck->pos;

    if (key == ck->last || *key != '"') {
        return ngx_http_llm_json_bad(ck, "a name is missing");
    }

    if (ngx_http_llm_json_quoted(ck) != NGX_OK) {
        return NGX_ERROR;
    }

    *seed = (ck->depth == 1 && ck->pos - key == sizeof("\"seed\"") - 1
             && ngx_memcmp(key, "\"seed\"", sizeof("\"seed\"") - 1) == 0);

    ngx_http_llm_json_space(ck);

    if (ck->pos == ck->last || *ck->pos != ':') {
        return ngx_http_llm_json_bad(ck, "a colon is missing");
    }

    ck->pos++;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_json_quoted(ngx_http_llm_json_check_t *ck)
{
    for (ck->pos++; /* void */ ; ck->pos++) {

        ngx_http_llm_json_plain(ck);

        if (ck->pos == ck->last) {
            break;
        }

        if (*ck->pos == '"') {
            ck->pos++;
            return NGX_OK;
        }

        if (*ck->pos < 0x20) {
            return ngx_http_llm_json_bad(ck, "a control character is not "
                                         "escaped");
        }

        if (*ck->pos == '\\' && ngx_http_llm_json_escape(ck) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return ngx_http_llm_json_bad(ck, "a string does not end");
}


/*
 * Eight bytes at a time past those that mean nothing: neither a quote, nor a
 * backslash, nor below a space.  A byte's top bit is set by the subtraction
 * where it is less than what is subtracted, and by a borrow only above such a
 * byte, so no eight bytes are passed over wrongly.
 */

static void
ngx_http_llm_json_plain(ngx_http_llm_json_check_t *ck)
{
    uint64_t  word, quote, slash;

    static const uint64_t  ones = 0x0101010101010101;

    while (ck->last - ck->pos >= 8) {

        ngx_memcpy(&word, ck->pos, 8);

        quote = word ^ ones * '"';
        slash = word ^ ones * '\\';

        if ((((word - ones * 0x20) & ~word) | ((quote - ones) & ~quote)
             | ((slash - ones) & ~slash)) & ones << 7)
        {
            return;
        }

        ck->pos += 8;
    }
}


/* From the backslash to the last byte of the escape. */

static ngx_int_t
ngx_http_llm_json_escape(ngx_http_llm_json_check_t *ck)
{
    ngx_int_t  ch;

    ck->pos++;

    if (ck->pos == ck->last) {
        return ngx_http_llm_json_bad(ck, "a string does not end");
    }

    if (*ck->pos != 'u') {

        if (*ck->pos == '\0' || strchr("\"\\/bfnrt", *ck->pos) == NULL) {
            return ngx_http_llm_json_bad(ck, "an unknown escape");
        }

        return NGX_OK;
    }

    ch = ngx_http_llm_json_hex(ck);

    if (ch == NGX_ERROR) {
        return ngx_http_llm_json_bad(ck, "a broken \\u escape");
    }

    if (ch == 0) {
        return ngx_http_llm_json_bad(ck, "\\u0000 is not allowed");
    }

    if (ch < 0xd800 || ch > 0xdfff) {
        return NGX_OK;
    }

    if (ch > 0xdbff || ck->last - ck->pos < 3
        || ck->pos[1] != '\\' || ck->pos[2] != 'u')
    {
        return ngx_http_llm_json_bad(ck, "a lone surrogate");
    }

    ck->pos += 2;

    ch = ngx_http_llm_json_hex(ck);

    if (ch < 0xdc00 || ch > 0xdfff) {
        return ngx_http_llm_json_bad(ck, "a lone surrogate");
    }

    return NGX_OK;
}


/* From the 'u' to the last of four digits. */

static ngx_int_t
ngx_http_llm_json_hex(ngx_http_llm_json_check_t *ck)
{
    u_char      ch;
    ngx_int_t   value;
    ngx_uint_t  i;

    if (ck->last - ck->pos < 5) {
        return NGX_ERROR;
    }

    value = 0;

    for (i = 0; i < 4; i++) {
        ch = *++ck->pos;

        if (ch >= '0' && ch <= '9') {
            value = value * 16 + ch - '0';
            continue;
        }

        ch |= 0x20;

        if (ch < 'a' || ch > 'f') {
            return NGX_ERROR;
        }

        value = value * 16 + ch - 'a' + 10;
    }

    return value;
}


static ngx_int_t
ngx_http_llm_json_number(ngx_http_llm_json_check_t *ck, ngx_uint_t seed)
{
    char           buf[NGX_HTTP_LLM_NUMBER_MAX + 1];
    size_t         len;
    ngx_uint_t     integer;
    const u_char  *start;

    start = ck->pos;
    integer = 1;

    if (*ck->pos == '-') {
        ck->pos++;
    }

    if (ck->pos < ck->last && *ck->pos == '0') {
        ck->pos++;

    } else if (ngx_http_llm_json_digits(ck) != NGX_OK) {
        return ngx_http_llm_json_bad(ck, "a value is missing");
    }

    if (ck->pos < ck->last && *ck->pos == '.') {
        ck->pos++;
        integer = 0;

        if (ngx_http_llm_json_digits(ck) != NGX_OK) {
            return ngx_http_llm_json_bad(ck, "a digit is missing");
        }
    }

    if (ck->pos < ck->last && (*ck->pos == 'e' || *ck->pos == 'E')) {
        ck->pos++;
        integer = 0;

        if (ck->pos < ck->last && (*ck->pos == '+' || *ck->pos == '-')) {
            ck->pos++;
        }

        if (ngx_http_llm_json_digits(ck) != NGX_OK) {
            return ngx_http_llm_json_bad(ck, "a digit is missing");
        }
    }

    len = ck->pos - start;

    if (len > NGX_HTTP_LLM_NUMBER_MAX) {
        return ngx_http_llm_json_bad(ck, "a number has too many digits");
    }

    if (!integer) {
        ngx_memcpy(buf, start, len);
        buf[len] = '\0';

        if (!isfinite(strtod(buf, NULL))) {
            return ngx_http_llm_json_bad(ck, "a number is too large");
        }
    }

    if (seed && integer) {
        ck->seed->data = (u_char *) start;
        ck->seed->len = len;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_json_word(ngx_http_llm_json_check_t *ck, const char *word)
{
    size_t  len;

    len = ngx_strlen(word);

    if ((size_t) (ck->last - ck->pos) < len
        || ngx_memcmp(ck->pos, word, len) != 0)
    {
        return ngx_http_llm_json_bad(ck, "an unknown word");
    }

    ck->pos += len;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_json_digits(ngx_http_llm_json_check_t *ck)
{
    const u_char  *start;

    start = ck->pos;

    while (ck->pos < ck->last && *ck->pos >= '0' && *ck->pos <= '9') {
        ck->pos++;
    }

    return ck->pos == start ? NGX_ERROR : NGX_OK;
}


static void
ngx_http_llm_json_space(ngx_http_llm_json_check_t *ck)
{
    while (ck->pos < ck->last
           && (*ck->pos == ' ' || *ck->pos == '\n' || *ck->pos == '\r'
               || *ck->pos == '\t'))
    {
        ck->pos++;
    }
}


static ngx_int_t
ngx_http_llm_json_bad(ngx_http_llm_json_check_t *ck, const char *what)
{
    return ngx_http_llm_error_invalid(ck->err, NULL, "The request body is "
                                      "not valid JSON: %s at byte %zu.", what,
                                      (size_t) (ck->pos - ck->start));
}
