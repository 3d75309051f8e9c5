/*
 * Errors as OpenAI's clients expect them.
 *
 * An error of the module ends the request with its status and goes through
 * nginx's special responses like any other, so error_page applies.  Where
 * nginx is about to send its own page under llm_pass, for an error of the
 * module or of its own (limit_req, auth_request, 413, 405 …), two filters
 * replace page and headers by an error object.  Responses under llm_pass also
 * get X-Request-Id here.
 */

#include "ngx_http_llm_meter.h"


static ngx_int_t ngx_http_llm_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);
static ngx_int_t ngx_http_llm_replace(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_replace_headers(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_request_id(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_request_id_valid(ngx_str_t *id);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


ngx_int_t
ngx_http_llm_error_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_llm_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_llm_body_filter;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_unavailable(ngx_http_llm_error_t *err, const char *what)
{
    (void) ngx_http_llm_error_set(err, NGX_HTTP_SERVICE_UNAVAILABLE,
                                  "engine_unavailable", NULL, "%s", what);
    err->retry_after = 2;

    return NGX_ERROR;
}


void
ngx_http_llm_put_error(ngx_http_llm_writer_t *w,
    const ngx_http_llm_error_t *err)
{
    const char  *type;

    switch (err->status) {

    case NGX_HTTP_UNAUTHORIZED:
        type = "authentication_error";
        break;

    case 402:
        type = "insufficient_quota";
        break;

    case NGX_HTTP_FORBIDDEN:
        type = "permission_error";
        break;

    case NGX_HTTP_TOO_MANY_REQUESTS:
        type = "rate_limit_error";
        break;

    default:
        type = err->status >= 500 ? "server_error" : "invalid_request_error";
    }

    ngx_http_llm_put_literal(w, "{\"error\":{\"message\":\"");
    ngx_http_llm_put_json(w, err->message, ngx_strlen(err->message));
    ngx_http_llm_put_literal(w, "\",\"type\":\"");
    ngx_http_llm_put_json(w, type, ngx_strlen(type));

    if (err->param[0] != '\0') {
        ngx_http_llm_put_literal(w, "\",\"param\":\"");
        ngx_http_llm_put_json(w, err->param, ngx_strlen(err->param));
        ngx_http_llm_put_literal(w, "\",\"code\":");

    } else {
        ngx_http_llm_put_literal(w, "\",\"param\":null,\"code\":");
    }

    if (err->code != NULL) {
        ngx_http_llm_put_literal(w, "\"");
        ngx_http_llm_put_json(w, err->code, ngx_strlen(err->code));
        ngx_http_llm_put_literal(w, "\"}}");

    } else {
        ngx_http_llm_put_literal(w, "null}}");
    }
}


ngx_int_t
ngx_http_llm_add_header(ngx_http_request_t *r, const char *key,
    ngx_str_t *value)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    h->key.data = (u_char *) key;
    h->key.len = ngx_strlen(key);
    h->value = *value;
    h->lowcase_key = NULL;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_header_filter(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (llcf->engine == NULL && !ngx_http_llm_meter_on(r)) {
        return ngx_http_next_header_filter(r);
    }

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    /*
     * nginx's own page: made for an error status, as text/html, and not by
     * the module's handler.
     */

    if ((ctx == NULL || !ctx->started)
        && r->err_status != 0
        && r->headers_out.status >= NGX_HTTP_BAD_REQUEST
        && r->headers_out.content_type.len == sizeof("text/html") - 1
        && ngx_strncmp(r->headers_out.content_type.data, "text/html",
                       sizeof("text/html") - 1)
           == 0)
    {
        if (ngx_http_llm_replace(r) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (r == r->main && ngx_http_llm_request_id(r) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_next_header_filter(r);
}


static ngx_int_t
ngx_http_llm_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_chain_t         *cl, *out;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx == NULL || ctx->replaced == NULL || in == NULL) {
        return ngx_http_next_body_filter(r, in);
    }

    /* The page comes in one piece; its place is taken by the object. */

    for (cl = in; cl != NULL; cl = cl->next) {
        cl->buf->pos = cl->buf->last;
    }

    out = ctx->replaced;
    ctx->replaced = NULL;

    return ngx_http_next_body_filter(r, out);
}


static ngx_int_t
ngx_http_llm_replace(ngx_http_request_t *r)
{
    size_t                  size;
    ngx_chain_t            *cl;
    ngx_http_llm_ctx_t     *ctx;
    ngx_http_llm_error_t    err;
    ngx_http_llm_writer_t   w;

    ctx = ngx_http_llm_get_ctx(r);
    if (ctx == NULL) {
        return NGX_ERROR;
    }

    if (ctx->error.status == r->headers_out.status) {
        err = ctx->error;

    } else {
        ngx_http_llm_describe(&err, r->headers_out.status);
    }

    ngx_http_llm_writer_init(&w, r->pool, NGX_HTTP_LLM_BLOCK_SMALL);
    ngx_http_llm_put_error(&w, &err);

    if (w.failed) {
        return NGX_ERROR;
    }

    size = w.size;
    ctx->replaced = ngx_http_llm_writer_take(&w);

    for (cl = ctx->replaced; cl->next != NULL; cl = cl->next) { /* void */ }

    cl->buf->last_buf = (r == r->main) ? 1 : 0;
    cl->buf->last_in_chain = 1;

    r->headers_out.content_length_n = size;

    return ngx_http_llm_replace_headers(r, ctx, &err);
}


static ngx_int_t
ngx_http_llm_replace_headers(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_error_t *err)
{
    u_char     *p;
    ngx_str_t   value;

    ngx_str_set(&r->headers_out.content_type, "application/json");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;
    r->headers_out.charset.len = 0;

    if (err->retry_after != 0) {
        p = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
        if (p == NULL) {
            return NGX_ERROR;
        }

        value.data = p;
        value.len = ngx_sprintf(p, "%ui", ngx_min(err->retry_after,
                                                  NGX_HTTP_LLM_RETRY_MAX))
                    - p;

        if (ngx_http_llm_add_header(r, "Retry-After", &value) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    if (ctx->allow.len != 0 && err->status == NGX_HTTP_NOT_ALLOWED
        && ngx_http_llm_add_header(r, "Allow", &ctx->allow) != NGX_OK)
    {
        return NGX_ERROR;
    }

    /* A body that was read and found wrong is no reason to hang up. */

    if (ctx->keepalive && ctx->error.status == err->status) {
        r->keepalive = 1;
    }

    return NGX_OK;
}


/* What there is to say about an error that nginx itself made. */

void
ngx_http_llm_describe(ngx_http_llm_error_t *err, ngx_uint_t status)
{
    ngx_uint_t  i;

    static const struct {
        ngx_uint_t   status;
        ngx_uint_t   retry_after;
        const char  *code;
        const char  *message;
    } map[] = {
        { 400, 0, NULL, "The request is malformed." },
        { 401, 0, "invalid_api_key", "Authentication is required." },
        { 402, 0, "insufficient_balance", "The balance is insufficient." },
        { 403, 0, "forbidden", "Access is denied." },
        { 404, 0, "not_found", "There is no such endpoint." },
        { 405, 0, "method_not_allowed", "The method is not allowed." },
        { 408, 0, "timeout", "The request took too long to arrive." },
        { 411, 0, "length_required", "The request's length is missing." },
        { 413, 0, "request_too_large", "The request body is larger than the "
               "server accepts." },
        { 414, 0, "uri_too_large", "The URI is too long." },
        { 429, 1, "rate_limit_exceeded", "Too many requests." },
        { 500, 0, "internal_error", "The server had an error." },
        { 502, 0, "bad_gateway", "A server behind this one failed." },
        { 503, 1, "overloaded", "The server is overloaded." },
        { 504, 0, "gateway_timeout", "A server behind this one was too "
               "slow." }
    };

    for (i = 0; i < sizeof(map) / sizeof(map[0]); i++) {
        if (map[i].status == status) {
            (void) ngx_http_llm_error_set(err, status, map[i].code, NULL,
                                          "%s", map[i].message);
            err->retry_after = map[i].retry_after;
            return;
        }
    }

    (void) ngx_http_llm_error_set(err, status, NULL, NULL,
                                  "The request failed with status %lu.",
                                  (unsigned long) status);
}


/*
 * The client's own, if it is harmless, else $request_id; none if a server
 * behind has said one.
 */

static ngx_int_t
ngx_http_llm_request_id(ngx_http_request_t *r)
{
    ngx_str_t                   value;
    ngx_table_elt_t            *h;
    ngx_http_variable_value_t  *vv;
    ngx_http_llm_main_conf_t   *lmcf;

    if (ngx_http_llm_request_id_find(&r->headers_out.headers) != NULL) {
        return NGX_OK;
    }

    h = ngx_http_llm_request_id_find(&r->headers_in.headers);

    if (h != NULL) {
        return ngx_http_llm_add_header(r, "X-Request-Id", &h->value);
    }

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);

    vv = ngx_http_get_indexed_variable(r, lmcf->request_id);

    if (vv == NULL || vv->not_found) {
        return NGX_OK;
    }

    value.data = vv->data;
    value.len = vv->len;

    return ngx_http_llm_add_header(r, "X-Request-Id", &value);
}


ngx_table_elt_t *
ngx_http_llm_request_id_find(ngx_list_t *headers)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    for (part = &headers->part; part != NULL; part = part->next) {

        h = part->elts;

        for (i = 0; i < part->nelts; i++) {

            if (h[i].hash != 0
                && h[i].key.len == sizeof("X-Request-Id") - 1
                && ngx_strncasecmp(h[i].key.data, (u_char *) "X-Request-Id",
                                   sizeof("X-Request-Id") - 1)
                   == 0
                && ngx_http_llm_request_id_valid(&h[i].value))
            {
                return &h[i];
            }
        }
    }

    return NULL;
}


static ngx_int_t
ngx_http_llm_request_id_valid(ngx_str_t *id)
{
    u_char      ch;
    ngx_uint_t  i;

    if (id->len == 0 || id->len > 128) {
        return 0;
    }

    for (i = 0; i < id->len; i++) {
        ch = id->data[i];

        if (!((ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z')
              || (ch >= '0' && ch <= '9') || ch == '-' || ch == '_'
              || ch == '.' || ch == ':' || ch == '/' || ch == '+'
              || ch == '='))
        {
            return 0;
        }
    }

    return 1;
}
