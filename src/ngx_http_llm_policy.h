/*
 * Policy: what is asked of a request before it costs anything, and what is
 * settled once it is known what it cost.
 *
 * Each feature (accounts, balances, limits, response cache …) is an nginx
 * module of its own.  In its postconfiguration it adds a step here; the way of
 * a request runs them all, in the order of ngx_http_llm_step_e, whichever
 * order the modules are in.
 *
 *     parsed ──► admit, admit, … ──► submitted ──► counts are final ──► done, …
 *
 * ADMIT  NGX_OK: the next step is asked.  NGX_ERROR, or a status: refused, with
 * ctx->error filled (for a status without one nginx's page is described).
 * NGX_AGAIN: the step is not ready; it calls ngx_http_llm_start() later
 * and is then asked again, the steps before it are not.  NGX_DONE: the step
 * has answered, with ctx->admission NGX_HTTP_LLM_ANSWERED set and ctx's
 * counts filled before it sent anything; it finalizes the request itself, and
 * may have done so already.
 *
 * DONE  Called exactly once for every request whose admission began, whatever
 * came of it, when its counts are final: before the last bytes leave, so a
 * client that saw the end of its answer has been settled.  ctx->admission
 * tells how it came out.  The prompts of ctx->params may be gone by then, its
 * other fields are there.  A step knows itself what it holds for a request.
 *
 * Either may be NULL.  Neither waits, and neither is called per token.
 *
 * PROGRESS  What a worker that is killed must not forget, it writes to shared
 * memory as it goes: each of ctx->progress is set to the tokens used so far
 * with every event that counts some.  One store each, no lock.
 */

#ifndef NGX_HTTP_LLM_POLICY_H
#define NGX_HTTP_LLM_POLICY_H

#include "ngx_http_llm_module.h"


typedef enum {
    NGX_HTTP_LLM_STEP_CACHE = 0,     /* answered without the engine */
    NGX_HTTP_LLM_STEP_ACCOUNT,       /* the account's own limits, 429 */
    NGX_HTTP_LLM_STEP_BALANCE,       /* 402 */
    NGX_HTTP_LLM_STEP_LIMIT,         /* llm_token_limit, 429 */
    NGX_HTTP_LLM_STEP_COUNT,         /* looks on, refuses nothing */
    NGX_HTTP_LLM_NSTEPS
} ngx_http_llm_step_e;


typedef ngx_int_t (*ngx_http_llm_admit_pt)(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
typedef void (*ngx_http_llm_done_pt)(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);

typedef struct {
    ngx_http_llm_step_e      step;
    ngx_http_llm_admit_pt    admit;
    ngx_http_llm_done_pt     done;
} ngx_http_llm_policy_t;


/*
 * ngx_http_llm_policy_add() is for postconfiguration; several may have the
 * same place, and then run in the order in which they were added.
 *
 * ngx_http_llm_policy_admit() runs the steps as said above: NGX_OK, NGX_AGAIN
 * and NGX_DONE, or NGX_ERROR with ctx->error filled.  ctx->bound must be set.
 * ngx_http_llm_policy_done() settles; it may be called at any time and more
 * than once.  A proxied request goes through the two like any other.
 *
 * ngx_http_llm_policy_used() is what limits count: tokens of prompt and
 * answer.  ngx_http_llm_policy_progress() tells it to ctx->progress.
 */

ngx_int_t ngx_http_llm_policy_add(ngx_conf_t *cf, ngx_http_llm_step_e step,
    ngx_http_llm_admit_pt admit, ngx_http_llm_done_pt done);
ngx_int_t ngx_http_llm_policy_admit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_policy_done(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);

#define ngx_http_llm_policy_used(ctx)                                        \
    ((uint64_t) (ctx)->prompt_tokens + (ctx)->completion_tokens)

static ngx_inline void
ngx_http_llm_policy_progress(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t  i;

    for (i = 0; i < ctx->nprogress; i++) {
        *ctx->progress[i] = ngx_http_llm_policy_used(ctx);
    }
}


#endif /* NGX_HTTP_LLM_POLICY_H */
