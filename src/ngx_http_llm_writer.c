/*
 * Bytes in blocks.  A stream's blocks come back once nginx has sent them
 * (ngx_chain_update_chains() puts them on `free`), so a long stream uses no
 * more memory than what was ever unsent at once.
 */

#include "ngx_http_llm_module.h"

#include <math.h>
#include <stdio.h>


static ngx_buf_t *ngx_http_llm_writer_block(ngx_http_llm_writer_t *w);
static size_t ngx_http_llm_utf8(const u_char *p, const u_char *last);


void
ngx_http_llm_writer_init(ngx_http_llm_writer_t *w, ngx_pool_t *pool,
    size_t block)
{
    ngx_memzero(w, sizeof(ngx_http_llm_writer_t));

    w->pool = pool;
    w->block = block;
}


/* A buffer with room, at the end of the chain. */

static ngx_buf_t *
ngx_http_llm_writer_block(ngx_http_llm_writer_t *w)
{
    ngx_buf_t    *b;
    ngx_chain_t  *cl;

    if (w->tail != NULL && w->tail->buf->last < w->tail->buf->end) {
        return w->tail->buf;
    }

    if (w->free != NULL) {
        cl = w->free;
        w->free = cl->next;

    } else {
        cl = ngx_alloc_chain_link(w->pool);
        if (cl == NULL) {
            w->failed = 1;
            return NULL;
        }

        cl->buf = ngx_create_temp_buf(w->pool, w->block);
        if (cl->buf == NULL) {
            w->failed = 1;
            return NULL;
        }

        cl->buf->tag = (ngx_buf_tag_t) &ngx_http_llm_module;
    }

    b = cl->buf;
    b->pos = b->start;
    b->last = b->start;
    b->flush = 0;
    b->last_buf = 0;
    b->last_in_chain = 0;

    cl->next = NULL;

    if (w->first == NULL) {
        w->first = cl;

    } else {
        w->tail->next = cl;
    }

    w->tail = cl;

    return b;
}


void
ngx_http_llm_put(ngx_http_llm_writer_t *w, const void *data, size_t len)
{
    size_t         n;
    ngx_buf_t     *b;
    const u_char  *p;

    p = data;

    while (len != 0) {

        b = ngx_http_llm_writer_block(w);
        if (b == NULL) {
            return;
        }

        n = ngx_min(len, (size_t) (b->end - b->last));

        b->last = ngx_cpymem(b->last, p, n);
        w->size += n;

        p += n;
        len -= n;
    }
}


void
ngx_http_llm_put_json(ngx_http_llm_writer_t *w, const void *data, size_t len)
{
    int            n;
    char           buf[8];
    size_t         size;
    const u_char  *p, *last, *run;

    p = data;
    last = p + len;

    /* Runs that need nothing are copied as they are. */

    for (run = p; p < last; /* void */) {

        if (*p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\') {
            p++;
            continue;
        }

        if (*p >= 0x80) {
            size = ngx_http_llm_utf8(p, last);

            if (size != 0) {
                p += size;
                continue;
            }
        }

        ngx_http_llm_put(w, run, p - run);

        switch (*p) {

        case '"':
            ngx_http_llm_put_literal(w, "\\\"");
            break;

        case '\\':
            ngx_http_llm_put_literal(w, "\\\\");
            break;

        case '\n':
            ngx_http_llm_put_literal(w, "\\n");
            break;

        case '\r':
            ngx_http_llm_put_literal(w, "\\r");
            break;

        case '\t':
            ngx_http_llm_put_literal(w, "\\t");
            break;

        default:
            if (*p >= 0x80) {
                ngx_http_llm_put_literal(w, "\xef\xbf\xbd");
                break;
            }

            n = snprintf(buf, sizeof(buf), "\\u%04x", (unsigned) *p);
            ngx_http_llm_put(w, buf, n);
        }

        run = ++p;
    }

    ngx_http_llm_put(w, run, p - run);
}


/* Bytes of the character at `p`, which is not ASCII; 0: it is none. */

static size_t
ngx_http_llm_utf8(const u_char *p, const u_char *last)
{
    size_t  n;

    n = *p >= 0xf0 ? 4 : *p >= 0xe0 ? 3 : 2;

    if ((size_t) (last - p) < n || !chan_utf8_valid(p, n)) {
        return 0;
    }

    return n;
}


void
ngx_http_llm_put_uint(ngx_http_llm_writer_t *w, uint64_t value)
{
    u_char  *p, buf[NGX_INT64_LEN];

    p = buf + NGX_INT64_LEN;

    do {
        *--p = (u_char) ('0' + value % 10);
        value /= 10;
    } while (value != 0);

    ngx_http_llm_put(w, p, buf + NGX_INT64_LEN - p);
}


/* Nine digits hold a float exactly; JSON has no infinity and no NaN. */

void
ngx_http_llm_put_float(ngx_http_llm_writer_t *w, double value)
{
    int   n;
    char  buf[32];

    if (isnan(value)) {
        ngx_http_llm_put_literal(w, "null");
        return;
    }

    if (isinf(value)) {
        value = value < 0 ? -9999 : 9999;
    }

    n = snprintf(buf, sizeof(buf), "%.9g", value);

    ngx_http_llm_put(w, buf, n);
}


void
ngx_http_llm_writer_join(ngx_http_llm_writer_t *w,
    ngx_http_llm_writer_t *from)
{
    w->failed |= from->failed;

    if (from->first == NULL) {
        return;
    }

    if (w->first == NULL) {
        w->first = from->first;

    } else {
        w->tail->next = from->first;
    }

    w->tail = from->tail;
    w->size += from->size;

    from->first = NULL;
    from->tail = NULL;
    from->size = 0;
}


ngx_chain_t *
ngx_http_llm_writer_take(ngx_http_llm_writer_t *w)
{
    ngx_chain_t  *first;

    first = w->first;

    w->first = NULL;
    w->tail = NULL;
    w->size = 0;

    return first;
}
