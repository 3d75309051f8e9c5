/*
 * The steps of admission and settlement, in their order.
 */

#include "ngx_http_llm_policy.h"


static ngx_int_t ngx_http_llm_policy_begin(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_policy_mark(void *data);
static ngx_int_t ngx_http_llm_policy_refused(ngx_http_llm_ctx_t *ctx,
    ngx_int_t rc);


ngx_int_t
ngx_http_llm_policy_add(ngx_conf_t *cf, ngx_http_llm_step_e step,
    ngx_http_llm_admit_pt admit, ngx_http_llm_done_pt done)
{
    ngx_uint_t                 i;
    ngx_http_llm_policy_t     *p;
    ngx_http_llm_main_conf_t  *lmcf;

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);

    if (ngx_array_push(&lmcf->policies) == NULL) {
        return NGX_ERROR;
    }

    p = lmcf->policies.elts;

    for (i = lmcf->policies.nelts - 1; i > 0 && p[i - 1].step > step; i--) {
        p[i] = p[i - 1];
    }

    p[i].step = step;
    p[i].admit = admit;
    p[i].done = done;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_policy_admit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t                  rc;
    ngx_http_llm_policy_t     *p;
    ngx_http_llm_main_conf_t  *lmcf;

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);
    p = lmcf->policies.elts;

    if (ctx->admission == NGX_HTTP_LLM_UNASKED
        && ngx_http_llm_policy_begin(r, ctx) != NGX_OK)
    {
        return ngx_http_llm_policy_refused(ctx, NGX_ERROR);
    }

    while (ctx->admission == NGX_HTTP_LLM_ASKING
           && ctx->policy < lmcf->policies.nelts)
    {
        if (p[ctx->policy].admit != NULL) {

            rc = p[ctx->policy].admit(r, ctx);

            /* After NGX_DONE `ctx` may be gone. */

            if (rc == NGX_DONE || rc == NGX_AGAIN) {
                return rc;
            }

            if (rc != NGX_OK) {
                ctx->admission = NGX_HTTP_LLM_REFUSED;
                return ngx_http_llm_policy_refused(ctx, rc);
            }
        }

        ctx->policy++;
    }

    ctx->admission = NGX_HTTP_LLM_ADMITTED;

    return NGX_OK;
}


/*
 * error_page may lead to another location with a context of its own, while a
 * proxied request still holds what it was given in the first: it has failed
 * there, and is settled before the second asks for as much.
 */

static ngx_int_t
ngx_http_llm_policy_begin(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_http_cleanup_t  *cln;
    ngx_http_llm_ctx_t  *before;

    for (cln = r->main->cleanup; cln != NULL; cln = cln->next) {

        if (cln->handler != ngx_http_llm_policy_mark) {
            continue;
        }

        before = cln->data;

        if (before->request == r) {
            ngx_http_llm_policy_done(r, before);
        }
    }

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    cln->handler = ngx_http_llm_policy_mark;
    cln->data = ctx;

    ctx->admission = NGX_HTTP_LLM_ASKING;

    return NGX_OK;
}


/* Who began admission settles; this only tells of it. */

static void
ngx_http_llm_policy_mark(void *data)
{
}


static ngx_int_t
ngx_http_llm_policy_refused(ngx_http_llm_ctx_t *ctx, ngx_int_t rc)
{
    if (ctx->error.status != 0) {
        return NGX_ERROR;
    }

    if (rc < NGX_HTTP_BAD_REQUEST) {
        rc = NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_llm_describe(&ctx->error, rc);

    return NGX_ERROR;
}


void
ngx_http_llm_policy_done(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                 i;
    ngx_http_llm_policy_t     *p;
    ngx_http_llm_main_conf_t  *lmcf;

    if (ctx->admission == NGX_HTTP_LLM_UNASKED || ctx->settled) {
        return;
    }

    ctx->settled = 1;
    ctx->end = ngx_time();
    ctx->nprogress = 0;

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);
    p = lmcf->policies.elts;

    for (i = 0; i < lmcf->policies.nelts; i++) {
        if (p[i].done != NULL) {
            p[i].done(r, ctx);
        }
    }
}
