/*
 * Variables about a request's tokens, times and end.  They are meant for
 * logs: while a request runs they tell what is known so far.  What its body
 * asks for is known before, where llm_read_body is on.
 */

#include "ngx_http_llm_module.h"
#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_price.h"

#include "ledger/ledger_decimal.h"


/* Names of $llm_usage are of at most 25 bytes, its numbers of at most 20. */

#define NGX_HTTP_LLM_USAGE_LEN    (15 * (25 + 2 * 20))

#define NGX_HTTP_LLM_SECONDS_LEN  (NGX_INT64_LEN + 4)


static ngx_http_llm_ctx_t *ngx_http_llm_variable_asked(
    ngx_http_request_t *r);
static char *ngx_http_llm_variable_name(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_variable_counted(ngx_http_llm_ctx_t *ctx,
    uintptr_t data);
static u_char *ngx_http_llm_variable_seconds(u_char *p, uint64_t ms);
static ngx_uint_t ngx_http_llm_variable_timed(ngx_http_llm_ctx_t *ctx,
    uintptr_t data, uint64_t *ms);
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
static ngx_int_t ngx_http_llm_variable_usage(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static void ngx_http_llm_usage_numbers(ngx_http_llm_writer_t *w,
    ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_usage_count(ngx_http_llm_writer_t *w,
    const char *name, ngx_http_llm_ctx_t *ctx, uintptr_t data,
    const char *unknown);
static void ngx_http_llm_usage_seconds(ngx_http_llm_writer_t *w,
    uint64_t ms);
static void ngx_http_llm_usage_text(ngx_http_llm_writer_t *w,
    const char *name, const ngx_str_t *s);
static ngx_uint_t ngx_http_llm_usage_status(ngx_http_request_t *r);


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

    ngx_http_llm_var("llm_usage", ngx_http_llm_variable_usage, 0),

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


/* A hash of nothing sends all requests to one server. */

void
ngx_http_llm_variables_check(ngx_conf_t *cf)
{
    ngx_uint_t                  i;
    ngx_http_variable_t        *v;
    ngx_http_llm_main_conf_t   *lmcf;
    ngx_http_core_main_conf_t  *cmcf;

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);

    if (lmcf->read_body) {
        return;
    }

    cmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
    v = cmcf->variables.elts;

    for (i = 0; i < cmcf->variables.nelts; i++) {
        if (v[i].name.len == sizeof("llm_prefix_key") - 1
            && ngx_strncmp(v[i].name.data, "llm_prefix_key", v[i].name.len)
               == 0)
        {
            ngx_log_error(NGX_LOG_WARN, cf->log, 0,
                          "the \"$llm_prefix_key\" variable is always empty "
                          "without \"llm_read_body\" or \"llm_meter\"");
            return;
        }
    }
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
    char  *model;

    model = ngx_http_llm_variable_name(r);

    if (model == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_llm_variable_set(v, (u_char *) model, ngx_strlen(model));
}


static char *
ngx_http_llm_variable_name(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_llm_variable_asked(r);

    if (ctx != NULL && ctx->parsed) {
        return ctx->params.model;
    }

    if (ctx != NULL && ctx->peek != NULL && ctx->peek->model[0] != '\0') {
        return ctx->peek->model;
    }

    return NULL;
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

    if (!ngx_http_llm_variable_counted(ctx, data)) {
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


/* No rank has computed an answer that was there already, or elsewhere. */

static ngx_uint_t
ngx_http_llm_variable_counted(ngx_http_llm_ctx_t *ctx, uintptr_t data)
{
    if (ctx == NULL || !ctx->accepted) {
        return 0;
    }

    return data != offsetof(ngx_http_llm_ctx_t, rank)
           || (ctx->engine != NULL
               && ctx->admission != NGX_HTTP_LLM_ANSWERED);
}


static ngx_int_t
ngx_http_llm_variable_time(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    u_char              *p, *last;
    uint64_t             ms;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (!ngx_http_llm_variable_timed(ctx, data, &ms)) {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, NGX_HTTP_LLM_SECONDS_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    last = ngx_http_llm_variable_seconds(p, ms);

    return ngx_http_llm_variable_set(v, p, last - p);
}


/* With three decimals, as $request_time; where they end. */

static u_char *
ngx_http_llm_variable_seconds(u_char *p, uint64_t ms)
{
    return ngx_sprintf(p, "%uL.%03uL", ms / 1000, ms % 1000);
}


static ngx_uint_t
ngx_http_llm_variable_timed(ngx_http_llm_ctx_t *ctx, uintptr_t data,
    uint64_t *ms)
{
    if (ctx == NULL || !ctx->accepted) {
        return 0;
    }

    if (data == offsetof(ngx_http_llm_ctx_t, queue_us)
        && ctx->engine == NULL)
    {
        return 0;
    }

    if (data == offsetof(ngx_http_llm_ctx_t, ttft_us) && !ctx->first) {
        return 0;
    }

    if (data == offsetof(ngx_http_llm_ctx_t, tpot_us) && !ctx->tpot) {
        return 0;
    }

    *ms = (*(uint64_t *) ((char *) ctx + data) + 500) / 1000;

    return 1;
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


/*
 * A line of a usage log.  nginx's log_format could put it together of the
 * variables above, with a map for each that may be empty; that took a third of
 * all the time that policy takes.
 */

static ngx_int_t
ngx_http_llm_variable_usage(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    size_t                         len;
    ngx_str_t                      time, id, model, reason;
    ngx_table_elt_t               *h;
    ngx_http_llm_ctx_t            *ctx;
    ngx_http_llm_writer_t          w;
    const ngx_http_llm_account_t  *account;

    static const ngx_http_llm_account_t  none;

    time = ngx_cached_http_log_iso8601;
    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);
    h = ngx_http_llm_request_id_find(&r->headers_out.headers);

    account = ngx_http_llm_account(r);
    account = account != NULL ? account : &none;

    id = h != NULL ? h->value : none.name;

    model.data = (u_char *) ngx_http_llm_variable_name(r);
    model.len = model.data != NULL ? ngx_strlen(model.data) : 0;

    reason.data = ctx != NULL ? (u_char *) ctx->reason : NULL;
    reason.len = reason.data != NULL ? ngx_strlen(reason.data) : 0;

    /* A byte takes six at most, as \u0001: one block has it all. */

    len = id.len + account->name.len + account->tier.len + model.len
          + reason.len;

    ngx_http_llm_writer_init(&w, r->pool, NGX_HTTP_LLM_USAGE_LEN + 6 * len);

    ngx_http_llm_usage_text(&w, "{\"time\":", &time);
    ngx_http_llm_usage_text(&w, ",\"request_id\":", &id);
    ngx_http_llm_usage_text(&w, ",\"account\":", &account->name);
    ngx_http_llm_usage_text(&w, ",\"tier\":", &account->tier);
    ngx_http_llm_usage_text(&w, ",\"model\":", &model);

    ngx_http_llm_put_literal(&w, ",\"status\":");
    ngx_http_llm_put_uint(&w, ngx_http_llm_usage_status(r));

    ngx_http_llm_usage_numbers(&w, r, ctx);

    ngx_http_llm_usage_text(&w, ",\"finish_reason\":", &reason);
    ngx_http_llm_usage_count(&w, ",\"rank\":", ctx,
                             offsetof(ngx_http_llm_ctx_t, rank), "null");
    ngx_http_llm_put_literal(&w, "}");

    if (w.failed || w.first->next != NULL) {
        return NGX_ERROR;
    }

    return ngx_http_llm_variable_set(v, w.first->buf->pos, w.size);
}


static void
ngx_http_llm_usage_numbers(ngx_http_llm_writer_t *w, ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx)
{
    char             buf[LEDGER_DIGITS];
    int64_t          nano;
    uint64_t         ms;
    ngx_time_t      *tp;
    ngx_msec_int_t   took;

    ngx_http_llm_usage_count(w, ",\"prompt_tokens\":", ctx,
                             offsetof(ngx_http_llm_ctx_t, prompt_tokens), "0");
    ngx_http_llm_usage_count(w, ",\"cached_tokens\":", ctx,
                             offsetof(ngx_http_llm_ctx_t, cached_tokens), "0");
    ngx_http_llm_usage_count(w, ",\"completion_tokens\":", ctx,
                             offsetof(ngx_http_llm_ctx_t, completion_tokens),
                             "0");
    ngx_http_llm_usage_count(w, ",\"reasoning_tokens\":", ctx,
                             offsetof(ngx_http_llm_ctx_t, reasoning_tokens),
                             "0");

    ngx_http_llm_put_literal(w, ",\"cost\":");

    if (ctx != NULL && ngx_http_llm_cost(r, ctx, &nano) == NGX_OK) {
        ledger_exact(buf, nano, LEDGER_NANO);
        ngx_http_llm_put(w, buf, ngx_strlen(buf));

    } else {
        ngx_http_llm_put_literal(w, "null");
    }

    ngx_http_llm_put_literal(w, ",\"ttft\":");

    if (ngx_http_llm_variable_timed(ctx,
                                    offsetof(ngx_http_llm_ctx_t, ttft_us),
                                    &ms))
    {
        ngx_http_llm_usage_seconds(w, ms);

    } else {
        ngx_http_llm_put_literal(w, "null");
    }

    /* as $request_time */

    tp = ngx_timeofday();
    took = (ngx_msec_int_t) ((tp->sec - r->start_sec) * 1000
                             + (tp->msec - r->start_msec));

    ngx_http_llm_put_literal(w, ",\"duration\":");
    ngx_http_llm_usage_seconds(w, ngx_max(took, 0));
}


static void
ngx_http_llm_usage_count(ngx_http_llm_writer_t *w, const char *name,
    ngx_http_llm_ctx_t *ctx, uintptr_t data, const char *unknown)
{
    ngx_http_llm_put(w, name, ngx_strlen(name));

    if (ngx_http_llm_variable_counted(ctx, data)) {
        ngx_http_llm_put_uint(w, *(ngx_uint_t *) ((char *) ctx + data));

    } else {
        ngx_http_llm_put(w, unknown, ngx_strlen(unknown));
    }
}


static void
ngx_http_llm_usage_seconds(ngx_http_llm_writer_t *w, uint64_t ms)
{
    u_char  buf[NGX_HTTP_LLM_SECONDS_LEN];

    ngx_http_llm_put(w, buf, ngx_http_llm_variable_seconds(buf, ms) - buf);
}


static void
ngx_http_llm_usage_text(ngx_http_llm_writer_t *w, const char *name,
    const ngx_str_t *s)
{
    ngx_http_llm_put(w, name, ngx_strlen(name));
    ngx_http_llm_put_literal(w, "\"");
    ngx_http_llm_put_json(w, s->data, s->len);
    ngx_http_llm_put_literal(w, "\"");
}


/* As $status, but 0 where that is 009. */

static ngx_uint_t
ngx_http_llm_usage_status(ngx_http_request_t *r)
{
    return r->err_status != 0 ? r->err_status : r->headers_out.status;
}
