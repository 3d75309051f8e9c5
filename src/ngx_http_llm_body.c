/*
 * Request bodies: their bytes in one piece, and llm_read_body, which reads
 * them before the phases that may want to know what they say.
 *
 * The handler runs first in the rewrite phase of the location, so that `set`,
 * `if`, limits, access checks and the choice of an upstream server all see the
 * variables.  Whoever reads the body later, the module or a proxy, finds it
 * there.
 */

#include "ngx_http_llm_module.h"
#include "ngx_http_llm_peek.h"


static ngx_int_t ngx_http_llm_read_body_handler(ngx_http_request_t *r);
static void ngx_http_llm_read_body_done(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_body_copy(ngx_http_request_t *r,
    ngx_chain_t *in, u_char *p);


ngx_int_t
ngx_http_llm_body_init(ngx_conf_t *cf)
{
    return ngx_http_llm_add_handler(cf, NGX_HTTP_REWRITE_PHASE,
                                    ngx_http_llm_read_body_handler);
}


static ngx_int_t
ngx_http_llm_read_body_handler(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (!llcf->read_body || r != r->main || r->method != NGX_HTTP_POST) {
        return NGX_DECLINED;
    }

    /* It was read just now, or before an internal redirect. */

    if (r->request_body != NULL) {

        ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

        if ((ctx == NULL || ctx->peek == NULL) && !r->discard_body
            && ngx_http_llm_body_peek(r) != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }

        return NGX_DECLINED;
    }

    return ngx_http_llm_body_read(r);
}


ngx_int_t
ngx_http_llm_body_read(ngx_http_request_t *r)
{
    ngx_int_t  rc;

    if (r->request_body != NULL) {
        return NGX_OK;
    }

    rc = ngx_http_read_client_request_body(r, ngx_http_llm_read_body_done);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    ngx_http_finalize_request(r, NGX_DONE);

    return NGX_DONE;
}


static void
ngx_http_llm_read_body_done(ngx_http_request_t *r)
{
    r->write_event_handler = ngx_http_core_run_phases;

    ngx_http_core_run_phases(r);
}


ngx_int_t
ngx_http_llm_body_peek(ngx_http_request_t *r)
{
    size_t               size;
    u_char              *data, *copy;
    ngx_int_t            rc;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_get_ctx(r);
    if (ctx == NULL) {
        return NGX_ERROR;
    }

    ctx->peek = ngx_pcalloc(r->pool, sizeof(ngx_http_llm_peek_t));
    if (ctx->peek == NULL) {
        return NGX_ERROR;
    }

    rc = ngx_http_llm_body_data(r, &data, &size, &copy);

    /* What is too large says nothing, and may be meant for somebody else. */

    if (rc != NGX_OK) {
        return rc == NGX_DECLINED ? NGX_OK : NGX_ERROR;
    }

    ngx_http_llm_peek(ctx->peek, data, size);

    if (copy != NULL) {
        ngx_free(copy);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_body_data(ngx_http_request_t *r, u_char **data, size_t *size,
    u_char **copy)
{
    off_t         sum;
    ngx_chain_t  *cl, *in;

    in = r->request_body != NULL ? r->request_body->bufs : NULL;
    sum = 0;

    *data = NULL;
    *copy = NULL;
    *size = 0;

    for (cl = in; cl != NULL; cl = cl->next) {
        sum += ngx_buf_size(cl->buf);
    }

    if (sum > CHAN_BODY_MAX) {
        return NGX_DECLINED;
    }

    *size = sum;

    if (in != NULL && in->next == NULL && ngx_buf_in_memory(in->buf)) {
        *data = in->buf->pos;
        return NGX_OK;
    }

    if (sum == 0) {
        return NGX_OK;
    }

    *copy = ngx_alloc(sum, r->connection->log);
    if (*copy == NULL) {
        return NGX_ERROR;
    }

    if (ngx_http_llm_body_copy(r, in, *copy) != NGX_OK) {
        ngx_free(*copy);
        *copy = NULL;
        return NGX_ERROR;
    }

    *data = *copy;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_body_copy(ngx_http_request_t *r, ngx_chain_t *in, u_char *p)
{
    size_t      size;
    ssize_t     n;
    ngx_buf_t  *b;

    for ( /* void */ ; in != NULL; in = in->next) {

        b = in->buf;

        if (ngx_buf_in_memory(b)) {
            p = ngx_cpymem(p, b->pos, b->last - b->pos);
            continue;
        }

        if (!b->in_file) {
            continue;
        }

        size = (size_t) (b->file_last - b->file_pos);
        n = ngx_read_file(b->file, p, size, b->file_pos);

        if (n < 0 || (size_t) n != size) {
            ngx_log_error(NGX_LOG_ERR, r->connection->log, 0,
                          "%z bytes of %uz read from \"%V\"", n, size,
                          &b->file->name);
            return NGX_ERROR;
        }

        p += size;
    }

    return NGX_OK;
}
