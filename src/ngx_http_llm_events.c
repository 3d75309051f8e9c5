/*
 * Events: what an engine says about requests, checked and dispatched.
 *
 * A record that the protocol does not allow ends the lane; a record about a
 * request that was cancelled only moves its id on.  What an event means for a
 * choice is the same when it is played again (ngx_http_llm_reply.h).
 */

#include "ngx_http_llm_policy.h"
#include "ngx_http_llm_reply.h"


#define NGX_HTTP_LLM_RECORDS_TURN  4096    /* then other events get a turn */


static ngx_int_t ngx_http_llm_lane_events(ngx_http_llm_engine_t *engine,
    char *err);
static ngx_int_t ngx_http_llm_lane_event(ngx_http_llm_engine_t *engine,
    const chan_record_t *rec, char *err);
static ngx_int_t ngx_http_llm_lane_accepted(ngx_http_llm_seq_t *seq,
    const chan_record_t *rec, char *err);
static ngx_int_t ngx_http_llm_lane_delta(ngx_http_llm_seq_t *seq,
    const chan_record_t *rec, char *err);
static ngx_int_t ngx_http_llm_lane_finish(ngx_http_llm_seq_t *seq,
    const chan_record_t *rec, char *err);
static ngx_int_t ngx_http_llm_lane_error(ngx_http_llm_seq_t *seq,
    const chan_record_t *rec, char *err);
static void ngx_http_llm_lane_blame(ngx_http_llm_ctx_t *ctx,
    const chan_error_view_t *view);
static void ngx_http_llm_lane_times(ngx_http_llm_choice_t *choice,
    const chan_finish_t *finish);


/* Records are copied here before they are looked at; one worker, one turn. */

static uint64_t  ngx_http_llm_record[CHAN_RECORD_MAX / sizeof(uint64_t)];


void
ngx_http_llm_lane_drain(ngx_http_llm_engine_t *engine)
{
    char       err[CHAN_ERR_LEN];
    ngx_int_t  rc;

    rc = ngx_http_llm_lane_events(engine, err);

    if (rc == NGX_ERROR) {
        ngx_http_llm_engine_drop(engine, err);

    } else {
        chan_ring_notify_room(&engine->lane.in);

        if (rc == NGX_AGAIN && !engine->post.posted) {
            ngx_post_event(&engine->post, &ngx_posted_next_events);
        }
    }

    ngx_http_llm_lane_run(engine);
    ngx_http_llm_lane_pump(engine);
}


/*
 * NGX_OK: the worker may sleep; NGX_AGAIN: there is more than one turn's
 * share.
 */

static ngx_int_t
ngx_http_llm_lane_events(ngx_http_llm_engine_t *engine, char *err)
{
    int         rc;
    ngx_uint_t  n;

    for (n = 0; n < NGX_HTTP_LLM_RECORDS_TURN; n++) {

        rc = chan_ring_read(&engine->lane.in, ngx_http_llm_record,
                            sizeof(ngx_http_llm_record), err);

        if (rc == CHAN_OK) {

            if (ngx_http_llm_lane_event(engine,
                                  (chan_record_t *) ngx_http_llm_record, err)
                != NGX_OK)
            {
                return NGX_ERROR;
            }

            continue;
        }

        if (rc != CHAN_AGAIN) {
            return NGX_ERROR;
        }

        /* Space first: the engine may wait for it to say more. */

        chan_ring_notify_room(&engine->lane.in);

        rc = chan_ring_sleep(&engine->lane.in, err);

        if (rc == 1) {
            return NGX_OK;
        }

        if (rc != 0) {
            return NGX_ERROR;
        }
    }

    return NGX_AGAIN;
}


static ngx_int_t
ngx_http_llm_lane_event(ngx_http_llm_engine_t *engine,
    const chan_record_t *rec, char *err)
{
    ngx_http_llm_seq_t  *seq;

    seq = ngx_http_llm_seq_find(engine, rec->id);

    if (seq == NULL) {
        (void) ngx_snprintf((u_char *) err, CHAN_ERR_LEN,
                            "event %d for unknown request %uL%Z",
                            (int) rec->type, rec->id);
        return NGX_ERROR;
    }

    switch (rec->type) {

    case CHAN_ACCEPTED:
        return ngx_http_llm_lane_accepted(seq, rec, err);

    case CHAN_DELTA:
        return ngx_http_llm_lane_delta(seq, rec, err);

    case CHAN_FINISH:
        return ngx_http_llm_lane_finish(seq, rec, err);

    case CHAN_ERROR_REC:
        return ngx_http_llm_lane_error(seq, rec, err);
    }

    (void) ngx_snprintf((u_char *) err, CHAN_ERR_LEN,
                        "event of unknown type %d%Z", (int) rec->type);

    return NGX_ERROR;
}


static ngx_int_t
ngx_http_llm_lane_accepted(ngx_http_llm_seq_t *seq, const chan_record_t *rec,
    char *err)
{
    ngx_http_llm_choice_t  *choice;
    const chan_accepted_t  *accepted;

    if (chan_get_accepted(rec, &accepted, err) != CHAN_OK) {
        return NGX_ERROR;
    }

    if (seq->accepted || seq->sending) {
        (void) ngx_snprintf((u_char *) err, CHAN_ERR_LEN,
                            "unexpected ACCEPTED of request %uL%Z", seq->id);
        return NGX_ERROR;
    }

    seq->accepted = 1;
    choice = seq->choice;

    if (choice == NULL) {
        return NGX_OK;
    }

    if (choice->begun) {
        ngx_http_llm_resume_accepted(choice, accepted);

    } else {
        choice->begun = 1;
        ngx_http_llm_choice_accepted(choice, accepted);
    }

    ngx_http_llm_route_accepted(choice);

    if (choice->ctx->reply != NULL) {
        ngx_http_llm_reply_keep(choice, rec);
    }

    ngx_http_llm_lane_ready(seq->engine, choice->ctx);

    return NGX_OK;
}


void
ngx_http_llm_choice_accepted(ngx_http_llm_choice_t *choice,
    const chan_accepted_t *accepted)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;
    choice->accepted = *accepted;

    if (choice->nth == 0) {
        ctx->prompt_tokens += accepted->prompt_tokens;
        ctx->cached_tokens += accepted->cached_tokens;

        ngx_http_llm_policy_progress(ctx);
    }

    if (!ctx->accepted) {
        ctx->accepted = 1;
        ctx->rank = accepted->rank;
        ctx->queue_us = (uint64_t) (ngx_current_msec - ctx->start) * 1000;
    }

    ngx_http_llm_render_accepted(choice);
}


static ngx_int_t
ngx_http_llm_lane_delta(ngx_http_llm_seq_t *seq, const chan_record_t *rec,
    char *err)
{
    chan_delta_t            delta;
    ngx_http_llm_ctx_t     *ctx;
    chan_delta_view_t       view;
    ngx_http_llm_choice_t  *choice;

    if (chan_get_delta(rec, &view, err) != CHAN_OK) {
        return NGX_ERROR;
    }

    if (!seq->accepted) {
        (void) ngx_snprintf((u_char *) err, CHAN_ERR_LEN,
                            "DELTA of request %uL before ACCEPTED%Z",
                            seq->id);
        return NGX_ERROR;
    }

    choice = seq->choice;

    if (choice == NULL) {
        return NGX_OK;
    }

    ctx = choice->ctx;

    ngx_http_llm_resume_echo(choice, &view, &delta);
    ngx_http_llm_resume_keep(choice, &view);
    ngx_http_llm_choice_delta(choice, &view);

    if (ctx->reply != NULL) {
        ngx_http_llm_reply_keep(choice, rec);
    }

    /*
     * A stream's bytes count until the client has taken them; for a JSON body
     * they are kept anyway.
     */

    choice->unreturned += rec->size;

    if (!ctx->params.stream) {
        ngx_http_llm_lane_credit(choice, choice->unreturned);
        choice->unreturned = 0;
    }

    ngx_http_llm_lane_ready(seq->engine, ctx);

    return NGX_OK;
}


void
ngx_http_llm_choice_delta(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;
    ctx->given |= ctx->params.stream;

    if (view->delta->kind != CHAN_ECHO) {

        if (!ctx->first && view->delta->n_tokens != 0) {
            ctx->first = 1;
            ctx->ttft_us = (uint64_t) (ngx_current_msec - ctx->start) * 1000;
        }

        ctx->completion_tokens += view->delta->n_tokens;

        if (view->delta->kind == CHAN_REASONING) {
            ctx->reasoning_tokens += view->delta->n_tokens;
        }

        choice->finish.completion_tokens += view->delta->n_tokens;

        ngx_http_llm_policy_progress(ctx);
    }

    ngx_http_llm_render_delta(choice, view);
}


static ngx_int_t
ngx_http_llm_lane_finish(ngx_http_llm_seq_t *seq, const chan_record_t *rec,
    char *err)
{
    chan_finish_t           own;
    const chan_finish_t    *finish;
    ngx_http_llm_ctx_t     *ctx;
    ngx_http_llm_choice_t  *choice;

    if (chan_get_finish(rec, &finish, err) != CHAN_OK) {
        return NGX_ERROR;
    }

    choice = seq->choice;

    if (choice == NULL) {
        ngx_http_llm_seq_release(seq);
        return NGX_OK;
    }

    if (!seq->accepted) {
        (void) ngx_snprintf((u_char *) err, CHAN_ERR_LEN,
                            "FINISH of request %uL before ACCEPTED%Z",
                            seq->id);
        return NGX_ERROR;
    }

    ctx = choice->ctx;

    /* What the prompt has cost was said by the engine that computed it. */

    if (choice->resumed) {
        own = *finish;
        own.cached_tokens = choice->accepted.cached_tokens;
        finish = &own;
    }

    ngx_http_llm_choice_finish(choice, finish);
    ngx_http_llm_lane_times(choice, finish);

    if (ctx->reply != NULL) {
        ngx_http_llm_reply_keep(choice, rec);
    }

    ngx_http_llm_seq_release(seq);

    ctx->nactive--;

    ngx_http_llm_lane_ready(ctx->engine, ctx);

    return NGX_OK;
}


/* Usage; what was counted until then were estimates. */

void
ngx_http_llm_choice_finish(ngx_http_llm_choice_t *choice,
    const chan_finish_t *finish)
{
    ngx_http_llm_ctx_t  *ctx;

    static const char *const  names[] = {
        NULL, "stop", "length", "cancelled", "tool_calls"
    };

    ctx = choice->ctx;

    ctx->completion_tokens -= choice->finish.completion_tokens;
    ctx->completion_tokens += finish->completion_tokens;

    /* More may have been found than when the request was accepted. */

    if (choice->nth == 0
        && finish->cached_tokens > choice->accepted.cached_tokens)
    {
        ctx->cached_tokens += finish->cached_tokens
                              - choice->accepted.cached_tokens;
    }

    choice->finish = *finish;
    choice->reason = finish->reason;

    ctx->reason = names[finish->reason];

    if (ctx->nchoices == 1) {
        ctx->reasoning_tokens = finish->reasoning_tokens;
    }

    ngx_http_llm_render_finish(choice);
}


static ngx_int_t
ngx_http_llm_lane_error(ngx_http_llm_seq_t *seq, const chan_record_t *rec,
    char *err)
{
    ngx_http_llm_ctx_t     *ctx;
    chan_error_view_t       view;
    ngx_http_llm_choice_t  *choice;

    if (chan_get_error(rec, &view, err) != CHAN_OK) {
        return NGX_ERROR;
    }

    choice = seq->choice;

    ngx_http_llm_seq_release(seq);

    /* An engine that goes down has another one after it. */

    if (choice == NULL
        || (view.error->code == CHAN_E_SHUTDOWN && choice->begun
            && ngx_http_llm_resume_wait(choice) == NGX_OK))
    {
        return NGX_OK;
    }

    ctx = choice->ctx;

    if (ctx->error.status == 0) {
        ngx_http_llm_lane_blame(ctx, &view);
    }

    ctx->nactive--;
    ngx_http_llm_lane_ready(ctx->engine, ctx);

    return NGX_OK;
}


/* What the engine's error is in HTTP. */

static void
ngx_http_llm_lane_blame(ngx_http_llm_ctx_t *ctx,
    const chan_error_view_t *view)
{
    char  param[64];

    static const struct {
        ngx_uint_t   status;
        const char  *code;
    } map[] = {
        { 500, "internal_error" },
        { 400, NULL },                              /* CHAN_E_INVALID */
        { 400, "context_length_exceeded" },         /* CHAN_E_LENGTH */
        { 400, "no_chat_template" },                /* CHAN_E_TEMPLATE */
        { 404, "model_not_found" },                 /* CHAN_E_MODEL */
        { 429, "queue_full" },                      /* CHAN_E_QUEUE */
        { 503, "timeout" },                         /* CHAN_E_TIMEOUT */
        { 503, "engine_unavailable" },              /* CHAN_E_SHUTDOWN */
        { 500, "internal_error" }                   /* CHAN_E_INTERNAL */
    };

    (void) ngx_snprintf((u_char *) param, sizeof(param), "%*s%Z",
                        (size_t) ngx_min(view->error->param_size,
                                         sizeof(param) - 1),
                        view->param);

    (void) ngx_http_llm_error_set(&ctx->error, map[view->error->code].status,
                                  map[view->error->code].code,
                                  param[0] != '\0' ? param : NULL, "%.*s",
                                  (int) ngx_min(view->error->message_size,
                                                sizeof(ctx->error.message)),
                                  view->message);

    if (ctx->error.status == 429 || ctx->error.status == 503) {
        ctx->error.retry_after = ngx_max(view->error->retry_after, 1);
    }
}


/*
 * Of the engine's clock, which knows better, unless it started late; the
 * slowest choice counts.
 */

static void
ngx_http_llm_lane_times(ngx_http_llm_choice_t *choice,
    const chan_finish_t *finish)
{
    uint64_t             first, total, tpot;
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;
    first = finish->first_us;
    total = finish->total_us;

    if (choice->resumed) {
        first = ctx->ttft_us;
        total = (uint64_t) (ngx_current_msec - ctx->start) * 1000;

    } else if (ctx->nchoices == 1) {
        ctx->queue_us = finish->queue_us;

        if (ctx->first) {
            ctx->ttft_us = finish->first_us;
        }
    }

    if (finish->completion_tokens > 1 && total >= first) {
        tpot = (total - first) / (finish->completion_tokens - 1);

        ctx->tpot_us = ctx->tpot ? ngx_max(ctx->tpot_us, tpot) : tpot;
        ctx->tpot = 1;
    }
}
