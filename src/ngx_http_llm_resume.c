/*
 * Requests that outlive their engine.
 *
 * Of what a choice was given the ids of its tokens are kept, and how many
 * bytes of text came with them: together with the prompt and the seed that is
 * all that an engine of the same model needs to go on where the other one
 * stopped (CHAN_SEC_RESUME_IDS).  The prompt itself is not kept twice: nginx
 * has the request's body until the end, and it is parsed again.
 *
 * When a lane is dropped its requests wait in engine->lost.  A handshake lets
 * them go on, or ends them if it is with another model; so does the time
 * `resume`, which ctx->timer measures.  That timer is not cancelable, so a
 * worker that shuts down waits with them.  A request that has been submitted
 * NGX_HTTP_LLM_RESUME_TRIES times without a token may be what the engine dies
 * of: it is not submitted again.
 *
 * What was counted and rendered stays: a second ACCEPTED says nothing new
 * about a prompt, and times are then the worker's own, for the new engine does
 * not know when the request came.
 */

#include "ngx_http_llm_module.h"


#define NGX_HTTP_LLM_RESUME_TRIES  3


static ngx_int_t ngx_http_llm_resume_ids(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view);
static ngx_int_t ngx_http_llm_resume_prompts(ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_resume_choice(ngx_http_llm_choice_t *choice);


void
ngx_http_llm_resume_keep(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view)
{
    ngx_http_llm_past_t  *past;

    if (choice->ctx->engine->resume == 0) {
        return;
    }

    past = &choice->past;
    choice->ctx->tries = 0;

    if (view->delta->kind == CHAN_ECHO) {
        past->echo_tokens += view->delta->n_tokens;
        past->echo_bytes += view->delta->text_size;
        return;
    }

    past->bytes += view->delta->text_size;

    if (!past->lost && ngx_http_llm_resume_ids(choice, view) != NGX_OK) {

        /* It can still end well, if the engine lives that long. */

        past->lost = 1;
        ngx_http_llm_resume_free(choice);
    }
}


static ngx_int_t
ngx_http_llm_resume_ids(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view)
{
    size_t                 n, cap;
    int32_t               *ids;
    uint32_t               i;
    const uint8_t         *p;
    chan_token_view_t      token;
    ngx_http_llm_past_t   *past;

    past = &choice->past;
    n = past->n + view->delta->n_tokens;

    if (n > choice->ctx->engine->model.max_context) {
        return NGX_ERROR;
    }

    if (n > past->cap) {

        cap = ngx_max(2 * past->cap, 64);
        cap = ngx_max(cap, n);

        ids = ngx_alloc(cap * sizeof(int32_t), ngx_cycle->log);
        if (ids == NULL) {
            return NGX_ERROR;
        }

        if (past->n != 0) {
            ngx_memcpy(ids, past->ids, past->n * sizeof(int32_t));
            ngx_free(past->ids);
        }

        past->ids = ids;
        past->cap = cap;
    }

    p = view->tokens;

    for (i = 0; i < view->delta->n_tokens; i++) {
        chan_next_token(&p, &token);

        if (token.token->id < 0) {
            return NGX_ERROR;
        }

        past->ids[past->n++] = token.token->id;
    }

    return NGX_OK;
}


void
ngx_http_llm_resume_free(ngx_http_llm_choice_t *choice)
{
    if (choice->past.ids != NULL) {
        ngx_free(choice->past.ids);
        choice->past.ids = NULL;
    }

    choice->past.n = 0;
    choice->past.cap = 0;

    chan_body_free(&choice->tail);
}


/* An engine echoes a prompt from its start: what was there is left out. */

void
ngx_http_llm_resume_echo(ngx_http_llm_choice_t *choice,
    chan_delta_view_t *view, chan_delta_t *delta)
{
    uint32_t              n, size;
    chan_token_view_t     token;
    ngx_http_llm_past_t  *past;

    past = &choice->past;

    if (view->delta->kind != CHAN_ECHO
        || (past->skip_tokens == 0 && past->skip_bytes == 0))
    {
        return;
    }

    *delta = *view->delta;

    n = ngx_min(delta->n_tokens, past->skip_tokens);
    size = ngx_min(delta->text_size, past->skip_bytes);

    past->skip_tokens -= n;
    past->skip_bytes -= size;

    delta->n_tokens -= n;
    delta->text_size -= size;

    view->delta = delta;
    view->text += size;

    while (n-- != 0) {
        chan_next_token(&view->tokens, &token);
    }
}


ngx_int_t
ngx_http_llm_resume_wait(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_ctx_t     *ctx;
    ngx_http_llm_engine_t  *engine;

    ctx = choice->ctx;
    engine = ctx->engine;

    if (engine->resume == 0 || ctx->closed || ctx->error.status != 0
        || choice->past.lost)
    {
        return NGX_DECLINED;
    }

    if (!ctx->waiting) {

        if (ctx->tries == NGX_HTTP_LLM_RESUME_TRIES) {
            return NGX_DECLINED;
        }

        ctx->tries++;
        ctx->waiting = 1;
        ctx->lost = ngx_current_msec;

        ngx_queue_insert_tail(&engine->lost, &ctx->wait);

        /* Its records would not be one answer's. */

        ctx->reply = NULL;

        ngx_add_timer(&ctx->timer, ngx_http_llm_timer_next(ctx));
    }

    choice->waiting = 1;

    return NGX_OK;
}


void
ngx_http_llm_resume_forget(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->waiting) {
        ctx->waiting = 0;
        ngx_queue_remove(&ctx->wait);
    }
}


void
ngx_http_llm_resume_connected(ngx_http_llm_engine_t *engine)
{
    ngx_uint_t           n;
    ngx_queue_t         *q;
    ngx_http_llm_ctx_t  *ctx;

    n = 0;

    for (q = ngx_queue_head(&engine->lost);
         q != ngx_queue_sentinel(&engine->lost);
         q = ngx_queue_next(q))
    {
        ctx = ngx_queue_data(q, ngx_http_llm_ctx_t, wait);

        if (ctx->params.submit.fingerprint == engine->model.fingerprint) {
            ctx->again = 1;
            n++;

        } else if (ctx->error.status == 0) {
            (void) ngx_http_llm_unavailable(&ctx->error, "The engine was "
                                            "lost while it worked on the "
                                            "request, and another model "
                                            "took its place.");
        }

        ngx_http_llm_lane_ready(engine, ctx);
    }

    if (n != 0) {
        ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                      "llm engine \"%V\": %ui requests go on",
                      &engine->name, n);
    }
}


ngx_int_t
ngx_http_llm_resume(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t              i;
    ngx_http_llm_choice_t  *choice;
    ngx_http_llm_prompt_t  *prompts;

    ctx->again = 0;

    /* It may be gone again. */

    if (!ctx->waiting || ctx->engine->state != NGX_HTTP_LLM_READY) {
        return NGX_OK;
    }

    if (ngx_http_llm_resume_prompts(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    if (ngx_http_llm_route_submit(ctx->request, ctx) != NGX_OK) {
        goto failed;
    }

    ngx_http_llm_resume_forget(ctx);

    prompts = ctx->params.prompts;

    for (i = 0; i < ctx->params.nprompts; i++) {
        prompts[i].refs = 0;
    }

    for (i = 0; i < ctx->nchoices; i++) {
        choice = &ctx->choices[i];

        if (!choice->waiting) {
            continue;
        }

        choice->waiting = 0;
        choice->prompt = &prompts[i / ctx->params.n];
        choice->prompt->refs++;

        if (ngx_http_llm_resume_choice(choice) != NGX_OK) {
            goto failed;
        }
    }

    for (i = 0; i < ctx->params.nprompts; i++) {
        if (prompts[i].refs == 0) {
            chan_body_free(&prompts[i].body);
        }
    }

    ctx->submitted = ngx_current_msec;
    ctx->resumed = 1;

    return NGX_OK;

failed:

    return ngx_http_llm_error_set(&ctx->error, NGX_HTTP_INTERNAL_SERVER_ERROR,
                                  "internal_error", NULL, "Out of memory.");
}


/* The same body gives the same prompts; the model's name is known. */

static ngx_int_t
ngx_http_llm_resume_prompts(ngx_http_llm_ctx_t *ctx)
{
    size_t                 size;
    u_char                *data, *copy;
    ngx_int_t              rc;
    ngx_http_llm_params_t  params;

    if (ngx_http_llm_body_data(ctx->request, &data, &size, &copy) != NGX_OK) {
        return ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_INTERNAL_SERVER_ERROR,
                                      "internal_error", NULL,
                                      "The request body could not be read.");
    }

    ngx_memzero(&params, sizeof(ngx_http_llm_params_t));

    params.endpoint = ctx->params.endpoint;
    params.names = ctx->params.model;
    params.max_tokens = ctx->params.max_tokens;
    params.account = ctx->params.account;

    rc = ngx_http_llm_params_parse(&params, data, size, &ctx->error);

    if (copy != NULL) {
        ngx_free(copy);
    }

    if (rc != NGX_OK) {
        return rc;
    }

    ngx_http_llm_params_free(&ctx->params);

    ctx->params.prompts = params.prompts;
    ctx->params.nprompts = params.nprompts;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_resume_choice(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_past_t  *past;

    past = &choice->past;

    if (past->n != 0
        && chan_body_put(&choice->tail, CHAN_SEC_RESUME_IDS, NULL, 0,
                         past->ids, past->n * sizeof(int32_t))
           != CHAN_OK)
    {
        return NGX_ERROR;
    }

    past->skip_tokens = past->echo_tokens;
    past->skip_bytes = past->echo_bytes;

    choice->resumed = 1;

    return ngx_http_llm_lane_submit(choice->ctx->engine, choice);
}


/* It has waited its turn before, and its seed is known. */

void
ngx_http_llm_resume_submit(ngx_http_llm_choice_t *choice,
    chan_submit_t *submit)
{
    submit->credit -= ngx_min(submit->credit, choice->unreturned);

    if (!choice->begun) {
        return;
    }

    submit->flags |= CHAN_F_SEED;
    submit->seed = choice->accepted.seed;
    submit->queue_max = CHAN_QUEUE_ANY;
    submit->queue_timeout = 0;

    if (choice->past.n != 0) {
        submit->flags &= ~CHAN_F_ECHO;
        submit->resume_bytes = choice->past.bytes;
    }
}


void
ngx_http_llm_resume_accepted(ngx_http_llm_choice_t *choice,
    const chan_accepted_t *accepted)
{
    choice->accepted.tags_matched = accepted->tags_matched;
    choice->accepted.rank = accepted->rank;
    choice->accepted.rank_epoch = accepted->rank_epoch;

    choice->ctx->rank = accepted->rank;
}
