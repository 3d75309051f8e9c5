/*
 * Variables about a request's tokens, times and end.  They are meant for
 * logs: while a request runs they tell what is known so far.  What its body
 * asks for is known before, where llm_read_body is on.
 */

#include "ngx_http_llm_module.h"


static ngx_http_llm_ctx_t *ngx_http_llm_variable_asked(
    ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_variable_model(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_variable_key(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_variable_count(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_variable_time(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_variable_reason(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


#define ngx_http_llm_var(name, handler, data)                                \
    { ngx_string(name), NULL, handler, (uintptr_t) (data),                   \
      NGX_HTTP_VAR_NOCACHEABLE, 0 }


static ngx_http_variable_t  ngx_http_llm_vars[] = {

    ngx_http_llm_var("llm_model", ngx_http_llm_variable_model, 0),

    ngx_http_llm_var("llm_prefix_key", ngx_http_llm_variable_key, 0),

    ngx_http_llm_var("llm_prompt_tokens", ngx_http_llm_variable_count,
                     offsetof(ngx_http_llm_ctx_t, prompt_tokens)),

    ngx_http_llm_var("llm_cached_tokens", ngx_http_llm_variable_count,
                     offsetof(ngx_http_llm_ctx_t, cached_tokens)),

    ngx_http_llm_var("llm_completion_tokens", ngx_http_llm_variable_count,
                     offsetof(ngx_http_llm_ctx_t, completion_tokens)),

    ngx_http_llm_var("llm_reasoning_tokens", ngx_http_llm_variable_count,
                     offsetof(ngx_http_llm_ctx_t, reasoning_tokens)),

    ngx_http_llm_var("llm_rank", ngx_http_llm_variable_count,
                     offsetof(ngx_http_llm_ctx_t, rank)),

    ngx_http_llm_var("llm_queue_time", ngx_http_llm_variable_time,
                     offsetof(ngx_http_llm_ctx_t, queue_us)),

    ngx_http_llm_var("llm_ttft", ngx_http_llm_variable_time,
                     offsetof(ngx_http_llm_ctx_t, ttft_us)),

    ngx_http_llm_var("llm_tpot", ngx_http_llm_variable_time,
                     offsetof(ngx_http_llm_ctx_t, tpot_us)),

    ngx_http_llm_var("llm_finish_reason", ngx_http_llm_variable_reason, 0),

      ngx_http_null_variable
};


ngx_int_t
ngx_http_llm_variables(ngx_conf_t *cf)
{
    return ngx_http_llm_add_variables(cf, ngx_http_llm_vars);
}


ngx_int_t
ngx_http_llm_add_variables(ngx_conf_t *cf, ngx_http_variable_t *vars)
{
    ngx_http_variable_t  *var, *v;

    for (v = vars; v->name.len; v++) {
        var = ngx_http_add_variable(cf, &v->name, v->flags);
        if (var == NULL) {
            return NGX_ERROR;
        }

        var->get_handler = v->get_handler;
        var->data = v->data;
    }

    return NGX_OK;
}


/* What was asked for is known to subrequests too, as of auth_request. */

static ngx_http_llm_ctx_t *
ngx_http_llm_variable_asked(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    return ctx != NULL ? ctx
                       : ngx_http_get_module_ctx(r->main, ngx_http_llm_module);
}


ngx_int_t
ngx_http_llm_variable_set(ngx_http_variable_value_t *v, u_char *data,
    size_t len)
{
    v->data = data;
    v->len = len;
    v->valid = 1;
    v->no_cacheable = 0;
    v->not_found = 0;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_variable_model(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    char                *model;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_variable_asked(r);

    if (ctx != NULL && ctx->parsed) {
        model = ctx->params.model;

    } else if (ctx != NULL && ctx->peek != NULL
               && ctx->peek->model[0] != '\0')
    {
        model = ctx->peek->model;

    } else {
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_llm_variable_set(v, (u_char *) model, ngx_strlen(model));
}


/* Equal for prompts that begin alike, of one tenant and model. */

static ngx_int_t
ngx_http_llm_variable_key(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char               *p;
    ngx_http_llm_ctx_t   *ctx;
    ngx_http_llm_peek_t  *peek;

    ctx = ngx_http_llm_variable_asked(r);

    if (ctx == NULL || ctx->peek == NULL || !ctx->peek->prompt) {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, 16);
    if (p == NULL) {
        return NGX_ERROR;
    }

    peek = ctx->peek;

    (void) ngx_sprintf(p, "%016xL",
                       ngx_http_llm_tags_key(&ctx->params.account, peek->user,
                                             peek->model, peek->head));

    return ngx_http_llm_variable_set(v, p, 16);
}


static ngx_int_t
ngx_http_llm_variable_count(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char              *p, *last;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    /* No rank has computed an answer that was there already, or elsewhere. */

    if (ctx == NULL || !ctx->accepted
        || (data == offsetof(ngx_http_llm_ctx_t, rank)
            && (ctx->engine == NULL
                || ctx->admission == NGX_HTTP_LLM_ANSWERED)))
    {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_INT_T_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    last = ngx_sprintf(p, "%ui", *(ngx_uint_t *) ((char *) ctx + data));

    return ngx_http_llm_variable_set(v, p, last - p);
}


/* Seconds with three decimals, as $request_time. */

static ngx_int_t
ngx_http_llm_variable_time(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char              *p, *last;
    uint64_t             ms;
    ngx_uint_t           known;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    known = ctx != NULL && ctx->accepted;

    if (known && data == offsetof(ngx_http_llm_ctx_t, queue_us)) {
        known = ctx->engine != NULL;
    }

    if (known && data == offsetof(ngx_http_llm_ctx_t, ttft_us)) {
        known = ctx->first;
    }

    if (known && data == offsetof(ngx_http_llm_ctx_t, tpot_us)) {
        known = ctx->tpot;
    }

    if (!known) {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_INT64_LEN + 4);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ms = (*(uint64_t *) ((char *) ctx + data) + 500) / 1000;

    last = ngx_sprintf(p, "%uL.%03uL", ms / 1000, ms % 1000);

    return ngx_http_llm_variable_set(v, p, last - p);
}


static ngx_int_t
ngx_http_llm_variable_reason(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx == NULL || ctx->reason == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_llm_variable_set(v, (u_char *) ctx->reason,
                                     ngx_strlen(ctx->reason));
}
