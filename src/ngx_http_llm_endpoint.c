/*
 * Endpoints: what a URI asks for, and with which method it may.
 */

#include "ngx_http_llm_module.h"


static ngx_http_llm_endpoint_e ngx_http_llm_endpoint_find(
    ngx_http_request_t *r, ngx_str_t *name);
static ngx_http_llm_endpoint_e ngx_http_llm_endpoint_named(u_char *p,
    u_char *last, ngx_str_t *name);


ngx_int_t
ngx_http_llm_endpoint(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_endpoint_e *endpoint)
{
    *endpoint = ngx_http_llm_endpoint_find(r, &ctx->name);

    switch (*endpoint) {

    case NGX_HTTP_LLM_NONE:
        (void) ngx_http_llm_error_set(&ctx->error, NGX_HTTP_NOT_FOUND,
                                      "not_found", NULL,
                                      "There is no such endpoint.");
        return NGX_HTTP_NOT_FOUND;

    case NGX_HTTP_LLM_MODELS:
        if (r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD)) {
            return NGX_OK;
        }

        ngx_str_set(&ctx->allow, "GET, HEAD");
        break;

    default:
        if (r->method == NGX_HTTP_POST) {
            return NGX_OK;
        }

        ngx_str_set(&ctx->allow, "POST");
    }

    (void) ngx_http_llm_error_set(&ctx->error, NGX_HTTP_NOT_ALLOWED,
                                  "method_not_allowed", NULL,
                                  "The method is not allowed here, use "
                                  "%.*s.", (int) ctx->allow.len,
                                  ctx->allow.data);

    return NGX_HTTP_NOT_ALLOWED;
}


/*
 * What follows the location's prefix names the endpoint.  A location without
 * a prefix (regular expression, "=", "@") or one that ends with the endpoint
 * itself is matched by the end of the URI instead.
 */

static ngx_http_llm_endpoint_e
ngx_http_llm_endpoint_find(ngx_http_request_t *r, ngx_str_t *name)
{
    u_char                     *p, *last;
    ngx_str_t                  *prefix;
    ngx_http_core_loc_conf_t   *clcf;
    ngx_http_llm_endpoint_e     endpoint;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    prefix = &clcf->name;
    p = r->uri.data;
    last = p + r->uri.len;

    if (!clcf->named && !clcf->exact_match
#if (NGX_PCRE)
        && clcf->regex == NULL
#endif
        && prefix->len != 0 && prefix->len < r->uri.len
        && ngx_strncmp(p, prefix->data, prefix->len) == 0)
    {
        p += prefix->len;

        if (prefix->data[prefix->len - 1] != '/' && *p++ != '/') {
            return NGX_HTTP_LLM_NONE;
        }

        return ngx_http_llm_endpoint_named(p, last, name);
    }

    for ( /* void */ ; p < last; p++) {

        if (*p != '/') {
            continue;
        }

        endpoint = ngx_http_llm_endpoint_named(p + 1, last, name);

        if (endpoint != NGX_HTTP_LLM_NONE) {
            return endpoint;
        }
    }

    return NGX_HTTP_LLM_NONE;
}


static ngx_http_llm_endpoint_e
ngx_http_llm_endpoint_named(u_char *p, u_char *last, ngx_str_t *name)
{
    size_t  len;

    ngx_str_null(name);

    if (last - p >= 3 && ngx_strncmp(p, "v1/", 3) == 0) {
        p += 3;
    }

    len = last - p;

    if (len == sizeof("chat/completions") - 1
        && ngx_strncmp(p, "chat/completions", len) == 0)
    {
        return NGX_HTTP_LLM_CHAT;
    }

    if (len == sizeof("completions") - 1
        && ngx_strncmp(p, "completions", len) == 0)
    {
        return NGX_HTTP_LLM_COMPLETION;
    }

    if (len < sizeof("models") - 1
        || ngx_strncmp(p, "models", sizeof("models") - 1) != 0)
    {
        return NGX_HTTP_LLM_NONE;
    }

    p += sizeof("models") - 1;
    len -= sizeof("models") - 1;

    if (len == 0) {
        return NGX_HTTP_LLM_MODELS;
    }

    if (*p != '/' || len == 1) {
        return NGX_HTTP_LLM_NONE;
    }

    name->data = p + 1;
    name->len = len - 1;

    return NGX_HTTP_LLM_MODELS;
}
