/*
 * A request's way in: endpoint, body, parameters, submission; and its one way
 * out, whether it ended, failed or was left by the client.
 */

#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_policy.h"


/* ms that a request waits for a new worker's handshake */

#define NGX_HTTP_LLM_PARKED_TIME  1000

/* Bytes that a template may put around a message, or around all of them. */

#define NGX_HTTP_LLM_TEMPLATE_MAX  64


static void ngx_http_llm_body_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_body_parse(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limits(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static uint64_t ngx_http_llm_bound(ngx_http_llm_ctx_t *ctx);
static uint64_t ngx_http_llm_bound_prompt(const chan_body_t *body);
static ngx_int_t ngx_http_llm_submit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_cleanup(void *data);


ngx_int_t
ngx_http_llm_handler(ngx_http_request_t *r)
{
    ngx_int_t                 rc;
    ngx_http_cleanup_t       *cln;
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_loc_conf_t  *llcf;
    ngx_http_llm_endpoint_e   endpoint;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    ctx = ngx_http_llm_get_ctx(r);
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->engine = llcf->engine;

    /* Access may have been refused first and granted after ("satisfy any"). */

    ctx->error.status = 0;

    rc = ngx_http_llm_endpoint(r, ctx, &endpoint);
    if (rc != NGX_OK) {
        return rc;
    }

    /* No use reading a body that nobody wants. */

    if (ngx_http_llm_engine_usable(ctx->engine) == NGX_ERROR) {
        (void) ngx_http_llm_unavailable(&ctx->error,
                                        "The engine is not available.");
        return NGX_HTTP_SERVICE_UNAVAILABLE;
    }

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    cln->handler = ngx_http_llm_cleanup;
    cln->data = ctx;

    if (endpoint == NGX_HTTP_LLM_MODELS) {

        rc = ngx_http_discard_request_body(r);
        if (rc != NGX_OK) {
            return rc;
        }

        ctx->models = 1;
        r->main->count++;
        ngx_http_llm_start(ctx);

        return NGX_DONE;
    }

    ctx->params.endpoint = endpoint == NGX_HTTP_LLM_CHAT ? CHAN_CHAT
                                                         : CHAN_COMPLETION;

    rc = ngx_http_read_client_request_body(r, ngx_http_llm_body_handler);

    if (rc >= NGX_HTTP_SPECIAL_RESPONSE) {
        return rc;
    }

    return NGX_DONE;
}


ngx_http_llm_ctx_t *
ngx_http_llm_get_ctx(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t      *ctx;
    ngx_http_llm_account_t  *account;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx != NULL) {
        return ctx;
    }

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_llm_ctx_t));

    if (ctx == NULL) {
        return NULL;
    }

    ctx->request = r;
    account = ngx_http_llm_account(r);

    if (account != NULL) {
        ctx->params.account = account->name;
    }

    ngx_http_set_ctx(r, ctx, ngx_http_llm_module);

    return ctx;
}


static void
ngx_http_llm_body_handler(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    ctx->keepalive = r->keepalive;

    ngx_http_llm_start(ctx);
}


void
ngx_http_llm_start(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t            rc;
    ngx_http_request_t  *r;

    r = ctx->request;

    /*
     * The body, or a step of admission, may have taken its time: the engine
     * is looked at again.
     */

    rc = ngx_http_llm_engine_usable(ctx->engine);

    if (rc == NGX_AGAIN) {
        ngx_http_llm_lane_park(ctx->engine, ctx);
        ngx_http_llm_timer_start(ctx, NGX_HTTP_LLM_PARKED_TIME);

    } else if (rc == NGX_ERROR) {
        (void) ngx_http_llm_unavailable(&ctx->error,
                                        "The engine is not available.");

    } else if (ctx->models) {
        ngx_http_llm_close(ctx);
        ngx_http_finalize_request(r, ngx_http_llm_models(r, ctx));
        return;

    } else if (ctx->parsed || ngx_http_llm_body_parse(r, ctx) == NGX_OK) {

        rc = ngx_http_llm_policy_admit(r, ctx);

        if (rc == NGX_DONE) {
            return;
        }

        if (rc == NGX_OK) {
            (void) ngx_http_llm_submit(r, ctx);
        }
    }

    if (ctx->error.status != 0) {
        ngx_http_llm_close(ctx);
        ngx_http_finalize_request(r, ctx->error.status);
        return;
    }

    ngx_http_llm_wait(ctx);
}


void
ngx_http_llm_wait(ngx_http_llm_ctx_t *ctx)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    if (!r->discard_body) {
        r->read_event_handler = ngx_http_test_reading;
    }

    r->write_event_handler = ngx_http_llm_write_handler;

    c->log->action = "waiting for llm engine";

    /* A client may have left while its body was read. */

    if (c->read->pending_eof) {
        ngx_post_event(c->read, &ngx_posted_events);
    }
}


/*
 * The timer is there for keep-alives, and because a worker that shuts down
 * counts timers, not requests: it is not cancelable.
 */

void
ngx_http_llm_timer_start(ngx_http_llm_ctx_t *ctx, ngx_msec_t time)
{
    ctx->timer.handler = ngx_http_llm_timer_handler;
    ctx->timer.data = ctx;
    ctx->timer.log = ctx->request->connection->log;

    ngx_add_timer(&ctx->timer, time);
}


/* NGX_ERROR: ctx->error tells why. */

static ngx_int_t
ngx_http_llm_body_parse(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    size_t      size;
    u_char     *data, *copy;
    ngx_int_t   rc;

    rc = ngx_http_llm_body_data(r, &data, &size, &copy);

    if (rc == NGX_DECLINED) {
        return ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_REQUEST_ENTITY_TOO_LARGE,
                                      "request_too_large", NULL,
                                      "The request body is larger than the "
                                      "server accepts.");
    }

    if (rc != NGX_OK) {
        return ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_INTERNAL_SERVER_ERROR,
                                      "internal_error", NULL,
                                      "The request body could not be read.");
    }

    ctx->params.names = ctx->engine->model.names;

    rc = ngx_http_llm_limits(r, ctx);

    if (rc == NGX_OK) {
        rc = ngx_http_llm_params_parse(&ctx->params, data, size, &ctx->error);
        ctx->parsed = (rc == NGX_OK);
    }

    if (rc == NGX_OK) {
        ctx->bound = ngx_http_llm_bound(ctx);
    }

    if (copy != NULL) {
        ngx_free(copy);
    }

    return rc;
}


/* What the configuration says about a submission. */

static ngx_int_t
ngx_http_llm_limits(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_str_t                 priority;
    chan_submit_t            *submit;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);
    submit = &ctx->params.submit;

    ctx->params.max_tokens = llcf->max_tokens;

    submit->credit = NGX_HTTP_LLM_CREDIT;
    submit->max_context = llcf->max_context;
    submit->queue_max = llcf->queue_max;
    submit->queue_timeout = llcf->queue_timeout;

    if (llcf->priority == NULL) {
        return NGX_OK;
    }

    if (ngx_http_complex_value(r, llcf->priority, &priority) != NGX_OK) {
        return ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_INTERNAL_SERVER_ERROR,
                                      "internal_error", NULL,
                                      "Out of memory.");
    }

    if (priority.len != 0
        && ngx_http_llm_priority_value(&priority, &submit->priority)
           != NGX_OK)
    {
        ngx_log_error(NGX_LOG_INFO, r->connection->log, 0,
                      "invalid llm_priority \"%V\", 0 is used", &priority);
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_priority_value(ngx_str_t *s, int32_t *value)
{
    ngx_int_t   n;
    ngx_uint_t  negative;

    negative = (s->len != 0 && s->data[0] == '-');
    n = ngx_atoi(s->data + negative, s->len - negative);

    if (n == NGX_ERROR || n > NGX_HTTP_LLM_PRIORITY_MAX) {
        return NGX_ERROR;
    }

    *value = negative ? -n : n;

    return NGX_OK;
}


/*
 * The most tokens that a request may use: a token stands for a byte of the
 * prompt at least, and a prompt and its answer fit into the context.
 */

static uint64_t
ngx_http_llm_bound(ngx_http_llm_ctx_t *ctx)
{
    uint64_t        sum, asked, context;
    ngx_uint_t      i;
    chan_submit_t  *submit;

    submit = &ctx->params.submit;
    context = ctx->engine->model.max_context;

    if (submit->max_context != 0 && submit->max_context < context) {
        context = submit->max_context;
    }

    asked = ngx_min(submit->max_tokens, context);
    sum = 0;

    for (i = 0; i < ctx->params.nprompts; i++) {
        sum += ngx_min(ngx_http_llm_bound_prompt(&ctx->params.prompts[i].body),
                       context - asked);
        sum += ctx->params.n * asked;
    }

    return sum;
}


static uint64_t
ngx_http_llm_bound_prompt(const chan_body_t *body)
{
    size_t          off;
    uint64_t        sum;
    chan_section_t  sec;

    off = 0;
    sum = NGX_HTTP_LLM_TEMPLATE_MAX;

    while (chan_body_next(body->data, body->size, &off, &sec) == CHAN_OK) {

        switch (sec.kind) {

        case CHAN_SEC_MESSAGE:
            sum += sec.size + NGX_HTTP_LLM_TEMPLATE_MAX;
            break;

        case CHAN_SEC_TEXT:
            sum += sec.size;
            break;

        case CHAN_SEC_IDS:
            sum += sec.size / sizeof(int32_t);
            break;
        }
    }

    return sum;
}


static ngx_int_t
ngx_http_llm_submit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t              i, n;
    ngx_http_llm_engine_t  *engine;

    engine = ctx->engine;
    n = ctx->params.nprompts * ctx->params.n;

    ctx->params.submit.fingerprint = engine->model.fingerprint;

    if (engine->nwaiting + n > NGX_HTTP_LLM_WAITING_MAX) {
        (void) ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_SERVICE_UNAVAILABLE,
                                      "overloaded", NULL, "Too many requests "
                                      "wait for the engine.");
        ctx->error.retry_after = 1;
        return NGX_ERROR;
    }

    if (ngx_http_llm_choices(ctx) != NGX_OK
        || ngx_http_llm_route_submit(r, ctx) != NGX_OK)
    {
        goto failed;
    }

    for (i = 0; i < n; i++) {

        if (ngx_http_llm_lane_submit(engine, &ctx->choices[i]) != NGX_OK) {
            goto failed;
        }

        ctx->nactive++;
    }

    ngx_http_llm_timer_start(ctx, ngx_http_llm_timer_next(ctx));

    ngx_http_llm_lane_pump(engine);

    return NGX_OK;

failed:

    return ngx_http_llm_error_set(&ctx->error, NGX_HTTP_INTERNAL_SERVER_ERROR,
                                  "internal_error", NULL, "Out of memory.");
}


ngx_int_t
ngx_http_llm_choices(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t              i, n;
    ngx_http_llm_choice_t  *choice;

    n = ctx->params.nprompts * ctx->params.n;

    ctx->choices = ngx_pcalloc(ctx->request->pool,
                               n * sizeof(ngx_http_llm_choice_t));
    if (ctx->choices == NULL) {
        return NGX_ERROR;
    }

    ctx->nchoices = n;

    for (i = 0; i < n; i++) {
        choice = &ctx->choices[i];

        choice->ctx = ctx;
        choice->index = i;
        choice->nth = i % ctx->params.n;
        choice->prompt = &ctx->params.prompts[i / ctx->params.n];

        /* Choices of one prompt differ also when a seed is given. */

        choice->seed = ctx->params.submit.seed + choice->nth;
    }

    ctx->start = ngx_current_msec;
    ctx->submitted = ngx_current_msec;
    ctx->last = ngx_current_msec;

    return ngx_http_llm_render_init(ctx);
}


void
ngx_http_llm_close(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t  i;

    if (ctx->closed) {
        return;
    }

    ctx->closed = 1;

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }

    if (ctx->queued) {
        ctx->queued = 0;
        ngx_queue_remove(&ctx->ready);
    }

    if (ctx->error.status != 0) {
        ctx->reason = "error";

    } else if (ctx->nactive != 0 || ctx->replay != NULL) {
        ctx->reason = "cancelled";
    }

    /* An engine's failure is not the client's to pay. */

    ctx->waived = (ctx->error.status != 0 && !ctx->given);

    if (ctx->replay != NULL) {
        ngx_http_llm_replay_end(ctx);
    }

    ngx_http_llm_resume_forget(ctx);

    for (i = 0; i < ctx->nchoices; i++) {
        if (ctx->choices[i].seq != NULL) {
            ngx_http_llm_lane_cancel(&ctx->choices[i]);
        }

        ngx_http_llm_resume_free(&ctx->choices[i]);
    }

    ngx_http_llm_policy_done(ctx->request, ctx);

    ngx_http_llm_params_free(&ctx->params);
}


static void
ngx_http_llm_cleanup(void *data)
{
    ngx_http_llm_ctx_t *ctx = data;

    ngx_http_llm_close(ctx);
}
