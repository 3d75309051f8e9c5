/*
 * What one request holds of limits: taken at admission, settled at its end, and
 * told to the client in between.
 *
 *     x-ratelimit-limit-tokens       what may be used at once
 *     x-ratelimit-remaining-tokens   what is left of it, this request's share
 *                                    taken off
 *     x-ratelimit-reset-tokens       until all of it is back, as "1m30.5s"
 *
 * and the same for requests.  Of several limits of a kind the one of which
 * least is left is told, of a refusal the one that refused.
 */

#include "ngx_http_llm_limit.h"


static void ngx_http_llm_limit_told(ngx_http_llm_limits_t *limits,
    ngx_http_llm_kind_e kind, const ngx_http_llm_bucket_state_t *state,
    ngx_uint_t refused);
static ngx_int_t ngx_http_llm_limit_numbers(ngx_http_request_t *r,
    const char *const *names, const ngx_http_llm_bucket_state_t *state);
static u_char *ngx_http_llm_limit_duration(u_char *p, uint64_t ms);


#define NGX_HTTP_LLM_DURATION_LEN  (NGX_INT64_LEN + sizeof("h59m59.999s"))


ngx_http_llm_limits_t *
ngx_http_llm_limits_get(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->limits == NULL) {
        ctx->limits = ngx_pcalloc(ctx->request->pool,
                                  sizeof(ngx_http_llm_limits_t));
    }

    return ctx->limits;
}


ngx_int_t
ngx_http_llm_limit_hold(ngx_http_llm_ctx_t *ctx, ngx_http_llm_buckets_t *zone,
    ngx_http_llm_kind_e kind, ngx_str_t *key,
    const ngx_http_llm_bucket_limit_t *limit, uint64_t reserve,
    ngx_uint_t dry_run, ngx_http_llm_bucket_state_t *state)
{
    uint64_t                n;
    ngx_int_t               rc;
    ngx_http_llm_hold_t    *hold;
    ngx_http_llm_held_t    *held;
    ngx_http_llm_limits_t  *limits;

    limits = ngx_http_llm_limits_get(ctx);

    if (limits == NULL || limits->nheld == NGX_HTTP_LLM_HELD_MAX) {
        return NGX_ERROR;
    }

    if (kind != NGX_HTTP_LLM_TOKENS) {
        n = 1;

    } else if (reserve == NGX_HTTP_LLM_RESERVE_FULL) {
        n = ctx->bound;

    } else {

        /* A guess that is larger than the limit would refuse everything. */

        n = ngx_min(reserve, limit->burst);
        n = ngx_min(n, ctx->bound);
    }

    rc = ngx_http_llm_bucket_reserve(zone, kind, key, limit, n, state, &hold);

    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }

    if (!dry_run) {
        ngx_http_llm_limit_told(limits, kind, state, rc != NGX_OK);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    held = &limits->held[limits->nheld++];

    held->zone = zone;
    held->hold = hold;
    held->kind = kind;

    switch (kind) {

    case NGX_HTTP_LLM_TOKENS:
        ctx->progress[ctx->nprogress++] = &hold->used;
        break;

    case NGX_HTTP_LLM_REQUESTS:
        hold->used = 1;
        break;

    case NGX_HTTP_LLM_CONCURRENCY:
        break;
    }

    return NGX_OK;
}


static void
ngx_http_llm_limit_told(ngx_http_llm_limits_t *limits,
    ngx_http_llm_kind_e kind, const ngx_http_llm_bucket_state_t *state,
    ngx_uint_t refused)
{
    ngx_http_llm_bucket_state_t  *told;

    if (kind == NGX_HTTP_LLM_CONCURRENCY) {
        return;
    }

    told = (kind == NGX_HTTP_LLM_TOKENS) ? &limits->tokens
                                         : &limits->requests;

    if (refused || told->limit == 0 || state->remaining < told->remaining) {
        *told = *state;
    }
}


ngx_int_t
ngx_http_llm_limit_refuse(ngx_http_llm_ctx_t *ctx, ngx_int_t rc,
    ngx_http_llm_kind_e kind, const ngx_http_llm_bucket_state_t *state)
{
    uint64_t    wait;
    const char  *what;

    if (rc == NGX_ERROR) {
        (void) ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_SERVICE_UNAVAILABLE,
                                      "overloaded", NULL, "The server has no "
                                      "memory to count the request.");
        ctx->error.retry_after = 1;
        return NGX_ERROR;
    }

    wait = NGX_HTTP_LLM_RETRY_MAX;

    if (kind == NGX_HTTP_LLM_CONCURRENCY) {
        wait = 1;

        (void) ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_TOO_MANY_REQUESTS,
                                      "concurrency_limit_exceeded", NULL,
                                      "%llu requests of this account are "
                                      "under way already, which is its limit.",
                                      (unsigned long long) state->limit);

    } else if (rc == NGX_DECLINED) {
        ctx->limits->never = 1;

        (void) ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_TOO_MANY_REQUESTS,
                                      "rate_limit_exceeded", NULL,
                                      "The request may use %llu tokens, and "
                                      "the limit allows %llu at once: ask for "
                                      "less.",
                                      (unsigned long long) ctx->bound,
                                      (unsigned long long) state->limit);

    } else {
        wait = ngx_min(state->wait / 1000 + (state->wait % 1000 != 0), wait);
        what = (kind == NGX_HTTP_LLM_TOKENS) ? "tokens" : "requests";

        (void) ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_TOO_MANY_REQUESTS,
                                      "rate_limit_exceeded", NULL,
                                      "The limit of %llu %s is reached, %llu "
                                      "are left: try again in %llu s.",
                                      (unsigned long long) state->limit, what,
                                      (unsigned long long) state->remaining,
                                      (unsigned long long) wait);
    }

    ctx->error.retry_after = wait;

    return NGX_ERROR;
}


/* What did not run costs nothing, nor do tokens that nobody was given. */

void
ngx_http_llm_limit_settle(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    uint64_t                used;
    ngx_uint_t              i;
    ngx_http_llm_held_t    *held;
    ngx_http_llm_limits_t  *limits;

    limits = ctx->limits;

    if (limits == NULL) {
        return;
    }

    for (i = 0; i < limits->nheld; i++) {

        held = &limits->held[i];
        used = 0;

        if (ctx->admission == NGX_HTTP_LLM_ADMITTED) {

            if (held->kind == NGX_HTTP_LLM_TOKENS) {
                used = ctx->waived ? 0 : ngx_http_llm_policy_used(ctx);

            } else if (held->kind == NGX_HTTP_LLM_REQUESTS) {
                used = 1;
            }
        }

        ngx_http_llm_bucket_settle(held->zone, held->hold, used);
    }

    limits->nheld = 0;
}


ngx_int_t
ngx_http_llm_limit_headers(ngx_http_request_t *r,
    ngx_http_llm_limits_t *limits)
{
    ngx_str_t  value;

    static const char *const  tokens[] = {
        "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens"
    };

    static const char *const  requests[] = {
        "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests"
    };

    if (ngx_http_llm_limit_numbers(r, tokens, &limits->tokens) != NGX_OK
        || ngx_http_llm_limit_numbers(r, requests, &limits->requests)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    /* OpenAI's clients obey this one. */

    if (limits->never) {
        ngx_str_set(&value, "false");
        return ngx_http_llm_add_header(r, "x-should-retry", &value);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_limit_numbers(ngx_http_request_t *r, const char *const *names,
    const ngx_http_llm_bucket_state_t *state)
{
    u_char     *p;
    ngx_str_t   value;
    ngx_uint_t  i;

    if (state->limit == 0) {
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, 2 * NGX_INT64_LEN + NGX_HTTP_LLM_DURATION_LEN);
    if (p == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < 3; i++) {

        value.data = p;

        switch (i) {

        case 0:
            p = ngx_sprintf(p, "%uL", state->limit);
            break;

        case 1:
            p = ngx_sprintf(p, "%uL", state->remaining);
            break;

        default:
            p = ngx_http_llm_limit_duration(p, state->reset);
        }

        value.len = p - value.data;

        if (ngx_http_llm_add_header(r, names[i], &value) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


/* As OpenAI writes them: 0s, 17ms, 1.25s, 6m0s, 2h0m3s. */

static u_char *
ngx_http_llm_limit_duration(u_char *p, uint64_t ms)
{
    uint64_t  s;

    if (ms != 0 && ms < 1000) {
        return ngx_sprintf(p, "%uLms", ms);
    }

    s = ms / 1000;
    ms %= 1000;

    if (s >= 3600) {
        p = ngx_sprintf(p, "%uLh%uLm", s / 3600, s / 60 % 60);

    } else if (s >= 60) {
        p = ngx_sprintf(p, "%uLm", s / 60);
    }

    p = ngx_sprintf(p, "%uL", s % 60);

    if (ms != 0) {
        p = ngx_sprintf(p, ".%03uL", ms);

        while (p[-1] == '0') {
            p--;
        }
    }

    *p++ = 's';

    return p;
}
