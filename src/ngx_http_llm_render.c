/*
 * Events as a client sees them, in two shapes: chunks of a stream, or one
 * JSON body for which text is kept until the end.
 *
 * Every chunk starts with the same bytes (id, object, time, model), which are
 * made once.
 */

#include "ngx_http_llm_module.h"


static ngx_int_t ngx_http_llm_render_head(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_writer_t *w);
static void ngx_http_llm_render_chat(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view, ngx_uint_t logprobs);
static void ngx_http_llm_render_text(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view, ngx_uint_t logprobs);
static void ngx_http_llm_render_keep(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view, ngx_uint_t logprobs);
static void ngx_http_llm_render_open(ngx_http_llm_choice_t *choice);
static void ngx_http_llm_render_close(ngx_http_llm_choice_t *choice,
    ngx_uint_t finished);
static void ngx_http_llm_render_choice(ngx_http_llm_choice_t *choice);
static void ngx_http_llm_render_kept(ngx_http_llm_choice_t *choice);
static void ngx_http_llm_render_reason(ngx_http_llm_writer_t *w,
    uint32_t reason);
static void ngx_http_llm_render_usage(ngx_http_llm_ctx_t *ctx);


ngx_int_t
ngx_http_llm_render_init(ngx_http_llm_ctx_t *ctx)
{
    u_char                 *p;
    ngx_uint_t              i, j;
    ngx_chain_t            *cl;
    ngx_http_request_t     *r;
    ngx_http_llm_writer_t   w, *kept;

    r = ctx->request;

    if (ngx_http_llm_render_head(ctx, &w) != NGX_OK) {
        return NGX_ERROR;
    }

    p = ngx_pnalloc(r->pool, w.size);
    if (p == NULL) {
        return NGX_ERROR;
    }

    ctx->head.data = p;
    ctx->head.len = w.size;

    for (cl = w.first; cl != NULL; cl = cl->next) {
        p = ngx_cpymem(p, cl->buf->pos, cl->buf->last - cl->buf->pos);
    }

    ngx_http_llm_writer_init(&ctx->out, r->pool, NGX_HTTP_LLM_BLOCK);

    if (ctx->params.stream) {
        return NGX_OK;
    }

    for (i = 0; i < ctx->nchoices; i++) {

        kept = ngx_palloc(r->pool, NGX_HTTP_LLM_NWRITERS
                                   * sizeof(ngx_http_llm_writer_t));
        if (kept == NULL) {
            return NGX_ERROR;
        }

        for (j = 0; j < NGX_HTTP_LLM_NWRITERS; j++) {
            ngx_http_llm_writer_init(&kept[j], r->pool,
                                     NGX_HTTP_LLM_BLOCK_SMALL);
        }

        ctx->choices[i].kept = kept;
    }

    return NGX_OK;
}


/* What all chunks of an answer begin with. */

static ngx_int_t
ngx_http_llm_render_head(ngx_http_llm_ctx_t *ctx, ngx_http_llm_writer_t *w)
{
    ngx_uint_t                  chat;
    ngx_http_request_t         *r;
    ngx_http_variable_value_t  *vv;
    ngx_http_llm_main_conf_t   *lmcf;

    r = ctx->request;
    chat = ctx->params.endpoint == CHAN_CHAT;

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);

    vv = ngx_http_get_indexed_variable(r, lmcf->request_id);

    if (vv == NULL || vv->not_found) {
        return NGX_ERROR;
    }

    ngx_http_llm_writer_init(w, r->pool, NGX_HTTP_LLM_BLOCK_SMALL);

    if (ctx->params.stream) {
        ngx_http_llm_put_literal(w, "data: ");
    }

    ngx_http_llm_put_literal(w, "{\"id\":\"");

    if (chat) {
        ngx_http_llm_put_literal(w, "chatcmpl-");

    } else {
        ngx_http_llm_put_literal(w, "cmpl-");
    }

    ngx_http_llm_put(w, vv->data, vv->len);
    ngx_http_llm_put_literal(w, "\",\"object\":\"");

    if (!chat) {
        ngx_http_llm_put_literal(w, "text_completion");

    } else if (ctx->params.stream) {
        ngx_http_llm_put_literal(w, "chat.completion.chunk");

    } else {
        ngx_http_llm_put_literal(w, "chat.completion");
    }

    ngx_http_llm_put_literal(w, "\",\"created\":");
    ngx_http_llm_put_uint(w, ngx_time());
    ngx_http_llm_put_literal(w, ",\"model\":\"");
    ngx_http_llm_put_json(w, ctx->params.model,
                          ngx_strlen(ctx->params.model));
    ngx_http_llm_put_literal(w, "\",\"choices\":[");

    return w->failed ? NGX_ERROR : NGX_OK;
}


void
ngx_http_llm_render_accepted(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;

    if (!ctx->params.stream || ctx->params.endpoint != CHAN_CHAT) {
        return;
    }

    ngx_http_llm_render_open(choice);
    ngx_http_llm_put_literal(&ctx->out, ",\"delta\":{\"role\":\"assistant\","
                             "\"content\":\"\"},\"logprobs\":null");
    ngx_http_llm_render_close(choice, 0);
}


void
ngx_http_llm_render_delta(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view)
{
    ngx_uint_t           logprobs;
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;

    logprobs = (ctx->params.submit.flags & CHAN_F_LOGPROBS)
               && view->delta->n_tokens != 0;

    if (view->delta->kind == CHAN_TOOL_CALL
        || (view->delta->text_size == 0 && !logprobs))
    {
        return;
    }

    if (!ctx->params.stream) {
        ngx_http_llm_render_keep(choice, view, logprobs);

    } else if (ctx->params.endpoint == CHAN_CHAT) {
        ngx_http_llm_render_chat(choice, view, logprobs);

    } else {
        ngx_http_llm_render_text(choice, view, logprobs);
    }

    choice->chars += ngx_http_llm_chars(view->text, view->delta->text_size);
}


static void
ngx_http_llm_render_chat(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view, ngx_uint_t logprobs)
{
    ngx_uint_t              reasoning;
    ngx_http_llm_writer_t  *w;

    w = &choice->ctx->out;
    reasoning = view->delta->kind == CHAN_REASONING;

    ngx_http_llm_render_open(choice);

    if (reasoning) {
        ngx_http_llm_put_literal(w, ",\"delta\":{\"reasoning_content\":\"");

    } else {
        ngx_http_llm_put_literal(w, ",\"delta\":{\"content\":\"");
    }

    ngx_http_llm_put_json(w, view->text, view->delta->text_size);
    ngx_http_llm_put_literal(w, "\"},\"logprobs\":");

    if (!logprobs) {
        ngx_http_llm_put_literal(w, "null");

    } else {

        if (reasoning) {
            ngx_http_llm_put_literal(w, "{\"reasoning_content\":[");

        } else {
            ngx_http_llm_put_literal(w, "{\"content\":[");
        }

        ngx_http_llm_logprobs_chat(w, view, 0);

        if (reasoning) {
            ngx_http_llm_put_literal(w, "],\"content\":[],\"refusal\":null}");

        } else {
            ngx_http_llm_put_literal(w, "],\"refusal\":null}");
        }
    }

    ngx_http_llm_render_close(choice, 0);
}


static void
ngx_http_llm_render_text(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view, ngx_uint_t logprobs)
{
    ngx_http_llm_writer_t  *w;

    w = &choice->ctx->out;

    ngx_http_llm_render_open(choice);

    ngx_http_llm_put_literal(w, ",\"text\":\"");
    ngx_http_llm_put_json(w, view->text, view->delta->text_size);
    ngx_http_llm_put_literal(w, "\",\"logprobs\":");

    if (!logprobs) {
        ngx_http_llm_put_literal(w, "null");

    } else {
        ngx_http_llm_put_literal(w, "{\"tokens\":[");
        ngx_http_llm_logprobs_tokens(w, view, 0);
        ngx_http_llm_put_literal(w, "],\"token_logprobs\":[");
        ngx_http_llm_logprobs_values(w, view, 0);

        if (choice->ctx->params.submit.top_logprobs != 0) {
            ngx_http_llm_put_literal(w, "],\"top_logprobs\":[");
            ngx_http_llm_logprobs_tops(w, view, 0);
            ngx_http_llm_put_literal(w, "],\"text_offset\":[");

        } else {
            ngx_http_llm_put_literal(w, "],\"top_logprobs\":null,"
                                     "\"text_offset\":[");
        }

        ngx_http_llm_logprobs_offsets(w, view, 0, choice->chars);
        ngx_http_llm_put_literal(w, "]}");
    }

    ngx_http_llm_render_close(choice, 0);
}


/* For a JSON body: escaped already, so that the end only joins. */

static void
ngx_http_llm_render_keep(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view, ngx_uint_t logprobs)
{
    ngx_uint_t              reasoning;
    ngx_http_llm_writer_t  *w, *kept;

    kept = choice->kept;
    reasoning = view->delta->kind == CHAN_REASONING
                && choice->ctx->params.endpoint == CHAN_CHAT;

    w = &kept[reasoning ? NGX_HTTP_LLM_W_REASONING : NGX_HTTP_LLM_W_TEXT];

    ngx_http_llm_put_json(w, view->text, view->delta->text_size);

    if (!logprobs) {
        return;
    }

    if (choice->ctx->params.endpoint == CHAN_CHAT) {
        w = &kept[reasoning ? NGX_HTTP_LLM_W_TOKEN_LOGPROBS
                            : NGX_HTTP_LLM_W_TOKENS];
        ngx_http_llm_logprobs_chat(w, view, w->size != 0);
        return;
    }

    w = &kept[NGX_HTTP_LLM_W_TOKENS];
    ngx_http_llm_logprobs_tokens(w, view, w->size != 0);

    w = &kept[NGX_HTTP_LLM_W_TOKEN_LOGPROBS];
    ngx_http_llm_logprobs_values(w, view, w->size != 0);

    w = &kept[NGX_HTTP_LLM_W_TEXT_OFFSET];
    ngx_http_llm_logprobs_offsets(w, view, w->size != 0, choice->chars);

    if (choice->ctx->params.submit.top_logprobs != 0) {
        w = &kept[NGX_HTTP_LLM_W_TOP_LOGPROBS];
        ngx_http_llm_logprobs_tops(w, view, w->size != 0);
    }
}


static void
ngx_http_llm_render_open(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;

    ngx_http_llm_put(&ctx->out, ctx->head.data, ctx->head.len);
    ngx_http_llm_put_literal(&ctx->out, "{\"index\":");
    ngx_http_llm_put_uint(&ctx->out, choice->index);
}


static void
ngx_http_llm_render_close(ngx_http_llm_choice_t *choice, ngx_uint_t finished)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;

    ngx_http_llm_put_literal(&ctx->out, ",\"finish_reason\":");
    ngx_http_llm_render_reason(&ctx->out, finished ? choice->reason : 0);
    ngx_http_llm_put_literal(&ctx->out, "}]");

    if (ctx->params.include_usage) {
        ngx_http_llm_put_literal(&ctx->out, ",\"usage\":null");
    }

    ngx_http_llm_put_literal(&ctx->out, "}\n\n");
}


void
ngx_http_llm_render_finish(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_ctx_t  *ctx;

    ctx = choice->ctx;

    if (!ctx->params.stream) {
        return;
    }

    ngx_http_llm_render_open(choice);

    if (ctx->params.endpoint == CHAN_CHAT) {
        ngx_http_llm_put_literal(&ctx->out, ",\"delta\":{}");

    } else {
        ngx_http_llm_put_literal(&ctx->out, ",\"text\":\"\"");
    }

    ngx_http_llm_put_literal(&ctx->out, ",\"logprobs\":null");
    ngx_http_llm_render_close(choice, 1);
}


/* A stream's closing events, or the whole body. */

void
ngx_http_llm_render_end(ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t              i;
    ngx_http_llm_writer_t  *w;

    w = &ctx->out;

    if (ctx->params.stream) {

        if (ctx->params.include_usage) {
            ngx_http_llm_put(w, ctx->head.data, ctx->head.len);
            ngx_http_llm_put_literal(w, "],\"usage\":");
            ngx_http_llm_render_usage(ctx);
            ngx_http_llm_put_literal(w, "}\n\n");
        }

        ngx_http_llm_put_literal(w, "data: [DONE]\n\n");

        return;
    }

    ngx_http_llm_put(w, ctx->head.data, ctx->head.len);

    for (i = 0; i < ctx->nchoices; i++) {

        if (i != 0) {
            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_render_choice(&ctx->choices[i]);
    }

    ngx_http_llm_put_literal(w, "],\"usage\":");
    ngx_http_llm_render_usage(ctx);
    ngx_http_llm_put_literal(w, "}");
}


static void
ngx_http_llm_render_choice(ngx_http_llm_choice_t *choice)
{
    ngx_uint_t              chat;
    ngx_http_llm_writer_t  *w, *kept;

    w = &choice->ctx->out;
    kept = choice->kept;
    chat = choice->ctx->params.endpoint == CHAN_CHAT;

    ngx_http_llm_put_literal(w, "{\"index\":");
    ngx_http_llm_put_uint(w, choice->index);

    if (chat) {
        ngx_http_llm_put_literal(w, ",\"message\":{\"role\":\"assistant\","
                                 "\"content\":\"");
        ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TEXT]);

        if (kept[NGX_HTTP_LLM_W_REASONING].size != 0) {
            ngx_http_llm_put_literal(w, "\",\"reasoning_content\":\"");
            ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_REASONING]);
        }

        ngx_http_llm_put_literal(w, "\"}");

    } else {
        ngx_http_llm_put_literal(w, ",\"text\":\"");
        ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TEXT]);
        ngx_http_llm_put_literal(w, "\"");
    }

    ngx_http_llm_put_literal(w, ",\"logprobs\":");

    if (choice->ctx->params.submit.flags & CHAN_F_LOGPROBS) {
        ngx_http_llm_render_kept(choice);

    } else {
        ngx_http_llm_put_literal(w, "null");
    }

    ngx_http_llm_put_literal(w, ",\"finish_reason\":");
    ngx_http_llm_render_reason(w, choice->reason);
    ngx_http_llm_put_literal(w, "}");
}


/* The kept log-probabilities. */

static void
ngx_http_llm_render_kept(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_writer_t  *w, *kept;

    w = &choice->ctx->out;
    kept = choice->kept;

    if (choice->ctx->params.endpoint == CHAN_CHAT) {
        ngx_http_llm_put_literal(w, "{\"content\":[");
        ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TOKENS]);

        if (kept[NGX_HTTP_LLM_W_TOKEN_LOGPROBS].size != 0) {
            ngx_http_llm_put_literal(w, "],\"reasoning_content\":[");
            ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TOKEN_LOGPROBS]);
        }

        ngx_http_llm_put_literal(w, "],\"refusal\":null}");
        return;
    }

    ngx_http_llm_put_literal(w, "{\"tokens\":[");
    ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TOKENS]);
    ngx_http_llm_put_literal(w, "],\"token_logprobs\":[");
    ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TOKEN_LOGPROBS]);

    if (choice->ctx->params.submit.top_logprobs != 0) {
        ngx_http_llm_put_literal(w, "],\"top_logprobs\":[");
        ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TOP_LOGPROBS]);
        ngx_http_llm_put_literal(w, "],\"text_offset\":[");

    } else {
        ngx_http_llm_put_literal(w, "],\"top_logprobs\":null,"
                                 "\"text_offset\":[");
    }

    ngx_http_llm_writer_join(w, &kept[NGX_HTTP_LLM_W_TEXT_OFFSET]);
    ngx_http_llm_put_literal(w, "]}");
}


static void
ngx_http_llm_render_reason(ngx_http_llm_writer_t *w, uint32_t reason)
{
    switch (reason) {

    case 0:
        ngx_http_llm_put_literal(w, "null");
        break;

    case CHAN_LENGTH:
        ngx_http_llm_put_literal(w, "\"length\"");
        break;

    case CHAN_TOOLS:
        ngx_http_llm_put_literal(w, "\"tool_calls\"");
        break;

    default:
        ngx_http_llm_put_literal(w, "\"stop\"");
    }
}


/* A prompt counts once however many choices it has. */

static void
ngx_http_llm_render_usage(ngx_http_llm_ctx_t *ctx)
{
    uint64_t                prompt, cached, completion, reasoning;
    ngx_uint_t              i;
    ngx_http_llm_writer_t  *w;
    ngx_http_llm_choice_t  *choice;

    prompt = 0;
    cached = 0;
    completion = 0;
    reasoning = 0;

    for (i = 0; i < ctx->nchoices; i++) {
        choice = &ctx->choices[i];

        if (choice->nth == 0) {
            prompt += choice->finish.prompt_tokens;
            cached += choice->finish.cached_tokens;
        }

        completion += choice->finish.completion_tokens;
        reasoning += choice->finish.reasoning_tokens;
    }

    cached = ngx_min(cached, prompt);

    w = &ctx->out;

    ngx_http_llm_put_literal(w, "{\"prompt_tokens\":");
    ngx_http_llm_put_uint(w, prompt);
    ngx_http_llm_put_literal(w, ",\"completion_tokens\":");
    ngx_http_llm_put_uint(w, completion);
    ngx_http_llm_put_literal(w, ",\"total_tokens\":");
    ngx_http_llm_put_uint(w, prompt + completion);
    ngx_http_llm_put_literal(w, ",\"prompt_tokens_details\":"
                             "{\"cached_tokens\":");
    ngx_http_llm_put_uint(w, cached);
    ngx_http_llm_put_literal(w, "},\"completion_tokens_details\":"
                             "{\"reasoning_tokens\":");
    ngx_http_llm_put_uint(w, reasoning);
    ngx_http_llm_put_literal(w, "},\"prompt_cache_hit_tokens\":");
    ngx_http_llm_put_uint(w, cached);
    ngx_http_llm_put_literal(w, ",\"prompt_cache_miss_tokens\":");
    ngx_http_llm_put_uint(w, prompt - cached);
    ngx_http_llm_put_literal(w, "}");
}


/* After the header: a stream's last event, or the body after empty lines. */

void
ngx_http_llm_render_error(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->params.stream) {
        ngx_http_llm_put_literal(&ctx->out, "data: ");
    }

    ngx_http_llm_put_error(&ctx->out, &ctx->error);

    if (ctx->params.stream) {
        ngx_http_llm_put_literal(&ctx->out, "\n\n");
    }
}


void
ngx_http_llm_render_keepalive(ngx_http_llm_ctx_t *ctx)
{
    if (ctx->params.stream) {
        ngx_http_llm_put_literal(&ctx->out, ": keep-alive\n\n");

    } else {
        ngx_http_llm_put_literal(&ctx->out, "\n");
    }
}
