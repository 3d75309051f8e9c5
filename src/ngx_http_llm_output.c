/*
 * Bytes on their way to the client: header, chains, credit, time limits.
 *
 * A stream that the client does not take fills its credit and then costs the
 * engine nothing; its credit goes back once all that was rendered has left.
 * A reply that was kept is given in the same way, a piece in each turn of the
 * event loop, so that a long one keeps no other request waiting.
 */

#include "ngx_http_llm_reply.h"


static void ngx_http_llm_replay_run(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_replay_handler(ngx_event_t *ev);
static ngx_int_t ngx_http_llm_header(ngx_http_llm_ctx_t *ctx,
    off_t length);
static void ngx_http_llm_fail(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_finish(ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_flush(ngx_http_llm_ctx_t *ctx, ngx_uint_t event);
static void ngx_http_llm_flushed(ngx_http_llm_ctx_t *ctx,
    ngx_uint_t event);
static ngx_chain_t *ngx_http_llm_take(ngx_http_llm_ctx_t *ctx,
    ngx_uint_t last);


/* Longest time between two looks at a waiting request. */

#define NGX_HTTP_LLM_TIMER_MAX   30000
#define NGX_HTTP_LLM_TIMER_WAIT  500


void
ngx_http_llm_run(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->closed) {
        return;
    }

    if (ctx->error.status != 0) {
        ngx_http_llm_fail(ctx);
        return;
    }

    if (ctx->parked) {
        ctx->parked = 0;
        ngx_del_timer(&ctx->timer);
        ngx_http_llm_start(ctx);
        return;
    }

    if (ctx->again && ngx_http_llm_resume(ctx) != NGX_OK) {
        ngx_http_llm_fail(ctx);
        return;
    }

    if (ctx->replay != NULL) {
        ngx_http_llm_replay_run(ctx);
        return;
    }

    if (ctx->nactive == 0) {
        ngx_http_llm_render_end(ctx);
        ngx_http_llm_finish(ctx);
        return;
    }

    ngx_http_llm_flush(ctx, 0);
}


void
ngx_http_llm_run_event(ngx_http_llm_ctx_t *ctx)
{
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    ngx_http_llm_run(ctx);
    ngx_http_run_posted_requests(c);
}


ngx_int_t
ngx_http_llm_replay(ngx_http_llm_ctx_t *ctx, const u_char *data)
{
    ngx_http_llm_replay_t            *replay;
    const ngx_http_llm_reply_head_t  *head;

    replay = ngx_pcalloc(ctx->request->pool, sizeof(ngx_http_llm_replay_t));
    if (replay == NULL) {
        return NGX_ERROR;
    }

    head = (const ngx_http_llm_reply_head_t *) data;

    replay->next = data + sizeof(ngx_http_llm_reply_head_t);
    replay->last = replay->next + head->size;

    replay->turn.handler = ngx_http_llm_replay_handler;
    replay->turn.data = ctx;
    replay->turn.log = ctx->request->connection->log;

    ctx->replay = replay;

    ngx_http_llm_run(ctx);

    return NGX_OK;
}


/* Another piece, unless the client has yet to take the last one. */

static void
ngx_http_llm_replay_run(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->busy != NULL || ctx->request->connection->buffered) {
        return;
    }

    if (ngx_http_llm_reply_play(ctx) == NGX_OK) {
        ngx_http_llm_replay_end(ctx);
        ngx_http_llm_render_end(ctx);
        ngx_http_llm_finish(ctx);
        return;
    }

    if (!ctx->timer.timer_set) {
        ngx_http_llm_wait(ctx);
        ngx_http_llm_timer_start(ctx, ngx_http_llm_timer_next(ctx));
    }

    if (!ctx->replay->turn.posted) {
        ngx_post_event(&ctx->replay->turn, &ngx_posted_next_events);
    }

    ngx_http_llm_flush(ctx, 0);
}


static void
ngx_http_llm_replay_handler(ngx_event_t *ev)
{
    ngx_http_llm_run_event(ev->data);
}


void
ngx_http_llm_replay_end(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->replay->turn.posted) {
        ngx_delete_posted_event(&ctx->replay->turn);
    }

    ctx->replay = NULL;
}


/* `length` -1: not known yet. */

static ngx_int_t
ngx_http_llm_header(ngx_http_llm_ctx_t *ctx, off_t length)
{
    ngx_int_t                  rc;
    ngx_str_t                  value;
    ngx_connection_t          *c;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    r = ctx->request;
    c = r->connection;

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = length;

    if (ctx->params.stream) {
        ngx_str_set(&r->headers_out.content_type, "text/event-stream");

        ngx_str_set(&value, "no-cache");

        if (ngx_http_llm_add_header(r, "Cache-Control", &value) != NGX_OK) {
            return NGX_ERROR;
        }

        /* For an nginx in front of this one. */

        ngx_str_set(&value, "no");

        if (ngx_http_llm_add_header(r, "X-Accel-Buffering", &value)
            != NGX_OK)
        {
            return NGX_ERROR;
        }

    } else {
        ngx_str_set(&r->headers_out.content_type, "application/json");
    }

    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    /* Conditions are for files, not for answers. */

    r->disable_not_modified = 1;

    ctx->started = 1;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK) {
        return rc;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (clcf->tcp_nodelay && ngx_tcp_nodelay(c) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_OK;
}


static void
ngx_http_llm_fail(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t           level;
    ngx_http_request_t  *r;

    r = ctx->request;
    level = ctx->error.status >= 500 ? NGX_LOG_ERR : NGX_LOG_INFO;

    ngx_log_error(level, r->connection->log, 0,
                  "llm request failed with %ui: %s", ctx->error.status,
                  ctx->error.message);

    /* A stream's status is chosen when it is accepted, whatever follows. */

    if (!ctx->started && !(ctx->params.stream && ctx->accepted)) {
        ngx_http_llm_close(ctx);
        ngx_http_finalize_request(r, ctx->error.status);
        return;
    }

    ngx_http_llm_render_error(ctx);
    ngx_http_llm_finish(ctx);
}


/* Sends what there is as the last of it. */

static void
ngx_http_llm_finish(ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t            rc;
    ngx_chain_t         *out;
    ngx_http_request_t  *r;

    r = ctx->request;

    if (ctx->out.failed) {
        ngx_http_llm_close(ctx);
        ngx_http_finalize_request(r, NGX_ERROR);
        return;
    }

    if (!ctx->started) {
        rc = ngx_http_llm_header(ctx, ctx->params.stream
                                      ? -1 : (off_t) ctx->out.size);

        if (rc != NGX_OK || r->header_only) {
            ngx_http_llm_close(ctx);
            ngx_http_finalize_request(r, rc);
            return;
        }
    }

    ngx_http_llm_close(ctx);

    out = ngx_http_llm_take(ctx, 1);

    rc = ngx_http_output_filter(r, out);

    ngx_http_finalize_request(r, rc);
}


/* With `event` the client may take more than it could before. */

static void
ngx_http_llm_flush(ngx_http_llm_ctx_t *ctx, ngx_uint_t event)
{
    ngx_int_t            rc;
    ngx_chain_t         *out;
    ngx_connection_t    *c;
    ngx_http_request_t  *r;

    r = ctx->request;
    c = r->connection;

    if (ctx->out.failed) {
        rc = NGX_ERROR;
        goto failed;
    }

    if (ctx->out.first == NULL && ctx->busy == NULL && !c->buffered) {
        return;
    }

    /* The write event is armed: what was rendered goes with it. */

    if (ctx->busy != NULL && !event) {
        return;
    }

    if (!ctx->started) {
        rc = ngx_http_llm_header(ctx, -1);

        if (rc != NGX_OK || r->header_only) {
            goto failed;
        }
    }

    out = ngx_http_llm_take(ctx, 0);

    rc = ngx_http_output_filter(r, out);

    if (rc == NGX_ERROR) {
        goto failed;
    }

    ngx_chain_update_chains(r->pool, &ctx->out.free, &ctx->busy, &out,
                            (ngx_buf_tag_t) &ngx_http_llm_module);

    ctx->last = ngx_current_msec;

    ngx_http_llm_flushed(ctx, event);

    return;

failed:

    ngx_http_llm_close(ctx);
    ngx_http_finalize_request(r, rc);
}


static void
ngx_http_llm_flushed(ngx_http_llm_ctx_t *ctx, ngx_uint_t event)
{
    ngx_uint_t                 i;
    ngx_event_t               *wev;
    ngx_connection_t          *c;
    ngx_http_request_t        *r;
    ngx_http_llm_choice_t     *choice;
    ngx_http_core_loc_conf_t  *clcf;

    r = ctx->request;
    c = r->connection;
    wev = c->write;

    if (ctx->busy == NULL && !c->buffered) {

        if (wev->timer_set && !wev->delayed) {
            ngx_del_timer(wev);
        }

        for (i = 0; i < ctx->nchoices; i++) {
            choice = &ctx->choices[i];

            if (choice->unreturned != 0) {
                ngx_http_llm_lane_credit(choice, choice->unreturned);
                choice->unreturned = 0;
            }
        }

        ngx_http_llm_lane_pump(ctx->engine);

        if (ctx->replay != NULL && !ctx->replay->turn.posted) {
            ngx_post_event(&ctx->replay->turn, &ngx_posted_next_events);
        }

        return;
    }

    /* Only the active request of a connection owns its events. */

    if (c->data != r) {
        return;
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    /* New tokens are no progress of the client's. */

    if (!wev->delayed && (event || !wev->timer_set)) {
        ngx_add_timer(wev, clcf->send_timeout);
    }

    if (ngx_handle_write_event(wev, clcf->send_lowat) != NGX_OK) {
        ngx_http_llm_close(ctx);
        ngx_http_finalize_request(r, NGX_ERROR);
    }
}


/* All rendered blocks as a chain that is not to be held back. */

static ngx_chain_t *
ngx_http_llm_take(ngx_http_llm_ctx_t *ctx, ngx_uint_t last)
{
    ngx_buf_t           *b;
    ngx_chain_t         *cl, *out;
    ngx_http_request_t  *r;

    r = ctx->request;

    cl = ctx->out.tail;
    out = ngx_http_llm_writer_take(&ctx->out);

    if (out == NULL) {
        return NULL;
    }

    b = cl->buf;
    b->flush = 1;

    if (last) {
        b->last_buf = (r == r->main) ? 1 : 0;
        b->last_in_chain = 1;
    }

    return out;
}


void
ngx_http_llm_write_handler(ngx_http_request_t *r)
{
    ngx_event_t               *wev;
    ngx_connection_t          *c;
    ngx_http_llm_ctx_t        *ctx;
    ngx_http_core_loc_conf_t  *clcf;

    c = r->connection;
    wev = c->write;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx == NULL || ctx->closed) {
        return;
    }

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, c->log, NGX_ETIMEDOUT,
                      "client timed out");
        c->timedout = 1;

        ngx_http_llm_close(ctx);
        ngx_http_finalize_request(r, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    if (wev->delayed
        || (ctx->out.first == NULL && ctx->busy == NULL && !c->buffered))
    {
        clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

        if (ngx_handle_write_event(wev, wev->delayed ? clcf->send_lowat : 0)
            != NGX_OK)
        {
            ngx_http_llm_close(ctx);
            ngx_http_finalize_request(r, NGX_ERROR);
        }

        return;
    }

    ngx_http_llm_flush(ctx, 1);

    /* Not `ctx`: the request may be gone. */
}


ngx_msec_t
ngx_http_llm_timer_next(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                i;
    ngx_msec_t                next, idle, gone;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(ctx->request, ngx_http_llm_module);

    next = NGX_HTTP_LLM_TIMER_MAX;

    if (llcf->keepalive != 0) {
        idle = ngx_current_msec - ctx->last;
        next = ngx_min(next, llcf->keepalive - ngx_min(idle,
                                                       llcf->keepalive));
    }

    if (ctx->waiting) {
        gone = ngx_current_msec - ctx->lost;
        next = ngx_min(next, ctx->engine->resume
                             - ngx_min(gone, ctx->engine->resume));
    }

    for (i = 0; i < ctx->nchoices; i++) {
        if (ctx->choices[i].seq != NULL && !ctx->choices[i].seq->submitted) {
            next = ngx_min(next, NGX_HTTP_LLM_TIMER_WAIT);
            break;
        }
    }

    return ngx_max(next, 1);
}


void
ngx_http_llm_timer_handler(ngx_event_t *ev)
{
    ngx_msec_t                idle, limit;
    ngx_uint_t                i;
    ngx_connection_t         *c;
    ngx_http_request_t       *r;
    ngx_http_llm_ctx_t       *ctx;
    ngx_http_llm_loc_conf_t  *llcf;

    ctx = ev->data;
    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (ctx->parked) {
        (void) ngx_http_llm_unavailable(&ctx->error,
                                        "The engine is not available.");

        ngx_http_llm_run(ctx);
        ngx_http_run_posted_requests(c);
        return;
    }

    if (ctx->waiting && ngx_current_msec - ctx->lost >= ctx->engine->resume) {
        (void) ngx_http_llm_unavailable(&ctx->error, "The engine was lost "
                                        "while it worked on the request.");

        ngx_http_llm_run(ctx);
        ngx_http_run_posted_requests(c);
        return;
    }

    limit = llcf->queue_timeout ? llcf->queue_timeout
                                : NGX_HTTP_LLM_WAITING_TIME;

    if (ngx_current_msec - ctx->submitted >= limit) {

        for (i = 0; i < ctx->nchoices; i++) {

            if (ctx->choices[i].seq == NULL
                || ctx->choices[i].seq->submitted)
            {
                continue;
            }

            (void) ngx_http_llm_error_set(&ctx->error,
                                          NGX_HTTP_SERVICE_UNAVAILABLE,
                                          "timeout", NULL, "The request "
                                          "waited too long for the engine.");
            ctx->error.retry_after = 1;

            ngx_http_llm_run(ctx);
            ngx_http_run_posted_requests(c);
            return;
        }
    }

    idle = ngx_current_msec - ctx->last;

    if (llcf->keepalive != 0 && idle >= llcf->keepalive) {

        ctx->last = ngx_current_msec;

        if (ctx->busy == NULL && ctx->out.first == NULL && !c->buffered) {
            ngx_http_llm_render_keepalive(ctx);
        }
    }

    ngx_add_timer(&ctx->timer, ngx_http_llm_timer_next(ctx));

    ngx_http_llm_run(ctx);
    ngx_http_run_posted_requests(c);
}
