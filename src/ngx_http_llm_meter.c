/*
 * llm_meter (ngx_http_llm_meter.h).
 *
 * The body is read and the steps of admission are run just before the content
 * handler, when access has been checked.  A body filter looks at the answer as
 * it passes (ngx_http_llm_scan.h); it neither changes nor holds a byte.  Where
 * the answer says nothing of its usage, events with text are counted as a
 * token each and four bytes of the request, or of an answer that is not
 * streamed, as one.
 */

#include "ngx_http_llm_meter.h"
#include "ngx_http_llm_policy.h"
#include "ngx_http_llm_scan.h"


#define NGX_HTTP_LLM_METER_CONTEXT  131072    /* tokens, if nobody says */
#define NGX_HTTP_LLM_METER_BYTES    4         /* of a token, guessed */


typedef struct {
    ngx_flag_t            on;
} ngx_http_llm_meter_conf_t;

typedef struct {
    ngx_http_llm_ctx_t   *ctx;
    ngx_http_llm_scan_t   scan;
    ngx_uint_t            size;        /* bytes of the body */
    ngx_msec_t            first;       /* text came */
    ngx_msec_t            last;

    unsigned              scanning:1;
    unsigned              ended:1;
} ngx_http_llm_meter_ctx_t;


static ngx_int_t ngx_http_llm_meter_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_meter_admit(ngx_http_request_t *r);
static uint64_t ngx_http_llm_meter_bound(ngx_http_request_t *r,
    ngx_http_llm_peek_t *peek, ngx_uint_t size);
static void ngx_http_llm_meter_plain(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_meter_header_filter(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_meter_type(ngx_http_request_t *r,
    const char *type);
static ngx_int_t ngx_http_llm_meter_body_filter(ngx_http_request_t *r,
    ngx_chain_t *in);
static void ngx_http_llm_meter_count(ngx_http_llm_meter_ctx_t *mctx);
static void ngx_http_llm_meter_end(ngx_http_request_t *r,
    ngx_http_llm_meter_ctx_t *mctx);
static void ngx_http_llm_meter_cleanup(void *data);
static ngx_int_t ngx_http_llm_meter_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_meter_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_meter_init(ngx_conf_t *cf);
static void *ngx_http_llm_meter_create_conf(ngx_conf_t *cf);
static char *ngx_http_llm_meter_merge_conf(ngx_conf_t *cf, void *parent,
    void *child);


static ngx_command_t  ngx_http_llm_meter_commands[] = {

    { ngx_string("llm_meter"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_meter_conf_t, on),
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_meter_module_ctx = {
    ngx_http_llm_meter_add_variables,      /* preconfiguration */
    ngx_http_llm_meter_init,               /* postconfiguration */

    NULL,                                  /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_meter_create_conf,        /* create location configuration */
    ngx_http_llm_meter_merge_conf          /* merge location configuration */
};


ngx_module_t  ngx_http_llm_meter_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_meter_module_ctx,        /* module context */
    ngx_http_llm_meter_commands,           /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;
static ngx_http_output_body_filter_pt    ngx_http_next_body_filter;


ngx_uint_t
ngx_http_llm_meter_on(ngx_http_request_t *r)
{
    ngx_http_llm_loc_conf_t    *llcf;
    ngx_http_llm_meter_conf_t  *mcf;

    mcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_meter_module);

    if (!mcf->on) {
        return 0;
    }

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    return llcf->engine == NULL;
}


static ngx_int_t
ngx_http_llm_meter_handler(ngx_http_request_t *r)
{
    ngx_int_t  rc;

    if (r != r->main || r->method != NGX_HTTP_POST
        || !ngx_http_llm_meter_on(r)
        || ngx_http_get_module_ctx(r, ngx_http_llm_meter_module) != NULL)
    {
        return NGX_DECLINED;
    }

    rc = ngx_http_llm_body_read(r);

    return rc == NGX_OK ? ngx_http_llm_meter_admit(r) : rc;
}


/* NGX_DECLINED: the request goes on. */

static ngx_int_t
ngx_http_llm_meter_admit(ngx_http_request_t *r)
{
    ngx_int_t                  rc;
    ngx_chain_t               *cl;
    ngx_http_cleanup_t        *cln;
    ngx_http_llm_ctx_t        *ctx;
    ngx_http_llm_meter_ctx_t  *mctx;

    ctx = ngx_http_llm_get_ctx(r);
    cln = ngx_http_cleanup_add(r, 0);
    mctx = ngx_pcalloc(r->pool, sizeof(ngx_http_llm_meter_ctx_t));

    if (ctx == NULL || cln == NULL || mctx == NULL
        || (ctx->peek == NULL && ngx_http_llm_body_peek(r) != NGX_OK))
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (cl = r->request_body->bufs; cl != NULL; cl = cl->next) {
        mctx->size += ngx_buf_size(cl->buf);
    }

    mctx->ctx = ctx;
    ngx_http_set_ctx(r, mctx, ngx_http_llm_meter_module);

    cln->handler = ngx_http_llm_meter_cleanup;
    cln->data = mctx;

    (void) ngx_cpystrn((u_char *) ctx->params.model,
                       (u_char *) ctx->peek->model,
                       sizeof(ctx->params.model));

    ctx->start = ngx_current_msec;
    ctx->bound = ngx_http_llm_meter_bound(r, ctx->peek, mctx->size);

    rc = ngx_http_llm_policy_admit(r, ctx);

    if (rc != NGX_OK) {
        ctx->reason = "error";

        return ctx->error.status != 0 ? (ngx_int_t) ctx->error.status
                                      : NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_llm_meter_plain(r);

    return NGX_DECLINED;
}


/*
 * The most tokens that it may use: a token is a byte of the body at least, and
 * a prompt fits into the context, as far as llm_max_context tells, and so does
 * each of its answers.  A body that could not be read may be understood by the
 * server behind: it counts for the most that is asked for at once.
 */

static uint64_t
ngx_http_llm_meter_bound(ngx_http_request_t *r, ngx_http_llm_peek_t *peek,
    ngx_uint_t size)
{
    uint64_t                  asked, context, n, nprompts;
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    context = llcf->max_context != 0 ? llcf->max_context
                                     : NGX_HTTP_LLM_METER_CONTEXT;

    asked = peek->max_tokens != 0 ? peek->max_tokens : context;
    asked = ngx_min(asked, context);

    n = peek->read ? peek->n : NGX_HTTP_LLM_N_MAX;
    nprompts = peek->read ? peek->nprompts : 1;

    /* Beyond any limit, and no product of these is beyond 64 bits. */

    n = ngx_min(nprompts * n, UINT32_MAX);

    return ngx_min(size, nprompts * context) + n * asked;
}


/*
 * Answers must come as they are.  What the client takes is found out before,
 * so that nginx may still compress them itself.
 */

static void
ngx_http_llm_meter_plain(ngx_http_request_t *r)
{
#if (NGX_HTTP_GZIP)

    ngx_table_elt_t  *h;

    h = r->headers_in.accept_encoding;

    if (h == NULL) {
        return;
    }

    (void) ngx_http_gzip_ok(r);

#if (nginx_version >= 1023000)

    for ( /* void */ ; h != NULL; h = h->next) {
        ngx_str_set(&h->value, "identity");
    }

#else

    ngx_str_set(&h->value, "identity");

#endif
#endif
}


static ngx_int_t
ngx_http_llm_meter_header_filter(ngx_http_request_t *r)
{
    ngx_table_elt_t           *h;
    ngx_http_llm_ctx_t        *ctx;
    ngx_http_llm_meter_ctx_t  *mctx;

    mctx = ngx_http_get_module_ctx(r, ngx_http_llm_meter_module);

    if (mctx == NULL || r != r->main || mctx->ended
        || mctx->ctx->admission != NGX_HTTP_LLM_ADMITTED)
    {
        return ngx_http_next_header_filter(r);
    }

    ctx = mctx->ctx;

    if (r->headers_out.status != NGX_HTTP_OK) {
        ctx->reason = "error";
        return ngx_http_next_header_filter(r);
    }

    /* The server knows the model: the name may be counted. */

    ctx->accepted = 1;
    ctx->parsed = 1;

    h = r->headers_out.content_encoding;

    if (h != NULL && h->hash != 0 && h->value.len != 0
        && ngx_strncasecmp(h->value.data, (u_char *) "identity", 8) != 0)
    {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                      "llm_meter cannot count an answer in \"%V\"",
                      &h->value);

    } else if (ngx_http_llm_meter_type(r, "text/event-stream")) {
        ngx_http_llm_scan_init(&mctx->scan, 1);
        mctx->scanning = 1;

    } else if (ngx_http_llm_meter_type(r, "application/json")) {
        ngx_http_llm_scan_init(&mctx->scan, 0);
        mctx->scanning = 1;
    }

    if (mctx->scanning) {
        r->filter_need_in_memory = 1;
    }

    ngx_http_llm_meter_count(mctx);

    return ngx_http_next_header_filter(r);
}


static ngx_uint_t
ngx_http_llm_meter_type(ngx_http_request_t *r, const char *type)
{
    ngx_str_t  *s;

    s = &r->headers_out.content_type;

    return s->len >= ngx_strlen(type)
           && ngx_strncasecmp(s->data, (u_char *) type, ngx_strlen(type))
              == 0;
}


static ngx_int_t
ngx_http_llm_meter_body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    ngx_uint_t                 last;
    ngx_chain_t               *cl;
    ngx_http_llm_meter_ctx_t  *mctx;

    mctx = ngx_http_get_module_ctx(r, ngx_http_llm_meter_module);

    if (mctx == NULL || r != r->main || mctx->ended || in == NULL
        || mctx->ctx->admission != NGX_HTTP_LLM_ADMITTED)
    {
        return ngx_http_next_body_filter(r, in);
    }

    last = 0;

    for (cl = in; cl != NULL; cl = cl->next) {

        if (mctx->scanning && ngx_buf_in_memory(cl->buf)) {
            ngx_http_llm_scan(&mctx->scan, cl->buf->pos,
                              cl->buf->last - cl->buf->pos);
        }

        last |= cl->buf->last_buf;
    }

    /* Settled before the client has the end, like an engine's answer. */

    if (last) {
        ngx_http_llm_meter_end(r, mctx);

    } else {
        ngx_http_llm_meter_count(mctx);
    }

    return ngx_http_next_body_filter(r, in);
}


/* What is known so far, in the request's own counts. */

static void
ngx_http_llm_meter_count(ngx_http_llm_meter_ctx_t *mctx)
{
    ngx_uint_t            tokens;
    ngx_http_llm_ctx_t   *ctx;
    ngx_http_llm_scan_t  *scan;

    ctx = mctx->ctx;
    scan = &mctx->scan;

    if (!mctx->scanning) {
        return;
    }

    tokens = ctx->completion_tokens;

    if (scan->usage) {
        ctx->prompt_tokens = scan->prompt;
        ctx->cached_tokens = ngx_min(scan->cached, scan->prompt);
        ctx->completion_tokens = scan->completion;
        ctx->reasoning_tokens = ngx_min(scan->reasoning, scan->completion);

    } else if (scan->timings) {
        ctx->prompt_tokens = scan->prompt_n + scan->cache_n;
        ctx->cached_tokens = scan->cache_n;
        ctx->completion_tokens = scan->predicted_n;

    } else {
        ctx->prompt_tokens = (mctx->size + NGX_HTTP_LLM_METER_BYTES - 1)
                             / NGX_HTTP_LLM_METER_BYTES;

        ctx->completion_tokens = scan->events ? scan->pieces
                  : (scan->bytes + NGX_HTTP_LLM_METER_BYTES - 1)
                    / NGX_HTTP_LLM_METER_BYTES;
    }

    if (ctx->completion_tokens != tokens) {

        mctx->last = ngx_current_msec;

        if (!ctx->first) {
            ctx->first = 1;
            mctx->first = ngx_current_msec;
            ctx->ttft_us = (uint64_t) (ngx_current_msec - ctx->start) * 1000;
        }
    }

    if (scan->reason != NULL) {
        ctx->reason = scan->reason;
    }

    if (scan->error) {
        ctx->reason = "error";
    }

    ngx_http_llm_policy_progress(ctx);
}


static void
ngx_http_llm_meter_end(ngx_http_request_t *r, ngx_http_llm_meter_ctx_t *mctx)
{
    ngx_http_llm_ctx_t  *ctx;

    if (mctx->ended) {
        return;
    }

    mctx->ended = 1;
    ctx = mctx->ctx;

    if (mctx->scanning) {
        ngx_http_llm_scan_end(&mctx->scan);
        ngx_http_llm_meter_count(mctx);
    }

    if (mctx->scan.events && ctx->completion_tokens > 1) {
        ctx->tpot = 1;
        ctx->tpot_us = (uint64_t) (mctx->last - mctx->first) * 1000
                       / (ctx->completion_tokens - 1);
    }

    /* As of an engine: it has failed, and nothing of an answer came. */

    ctx->waived = (ctx->completion_tokens == 0 && ctx->reason != NULL
                   && ngx_strcmp(ctx->reason, "error") == 0);

    ngx_http_llm_policy_done(r, ctx);
}


static void
ngx_http_llm_meter_cleanup(void *data)
{
    ngx_http_llm_meter_ctx_t *mctx = data;

    ngx_http_request_t  *r;

    r = mctx->ctx->request;

    /* It was cut off, by the client or behind. */

    if (!mctx->ended && mctx->ctx->reason == NULL) {
        mctx->ctx->reason = r->connection->error || r->connection->timedout
                            ? "cancelled" : "error";
    }

    ngx_http_llm_meter_end(r, mctx);
}


static ngx_int_t
ngx_http_llm_meter_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t                  source;
    ngx_http_llm_meter_ctx_t  *mctx;

    mctx = ngx_http_get_module_ctx(r, ngx_http_llm_meter_module);

    if (mctx == NULL || !mctx->scanning) {
        v->not_found = 1;
        return NGX_OK;
    }

    if (mctx->scan.usage || mctx->scan.timings) {
        ngx_str_set(&source, "reported");

    } else {
        ngx_str_set(&source, "estimated");
    }

    return ngx_http_llm_variable_set(v, source.data, source.len);
}


static ngx_int_t
ngx_http_llm_meter_add_variables(ngx_conf_t *cf)
{
    ngx_str_t             name = ngx_string("llm_usage_source");
    ngx_http_variable_t  *var;

    var = ngx_http_add_variable(cf, &name, NGX_HTTP_VAR_NOCACHEABLE);
    if (var == NULL) {
        return NGX_ERROR;
    }

    var->get_handler = ngx_http_llm_meter_variable;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_meter_init(ngx_conf_t *cf)
{
    if (ngx_http_llm_add_handler(cf, NGX_HTTP_PRECONTENT_PHASE,
                                 ngx_http_llm_meter_handler)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_llm_meter_header_filter;

    ngx_http_next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = ngx_http_llm_meter_body_filter;

    return NGX_OK;
}


static void *
ngx_http_llm_meter_create_conf(ngx_conf_t *cf)
{
    ngx_http_llm_meter_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_meter_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    conf->on = NGX_CONF_UNSET;

    return conf;
}


static char *
ngx_http_llm_meter_merge_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_llm_meter_conf_t *prev = parent;
    ngx_http_llm_meter_conf_t *conf = child;

    ngx_http_llm_main_conf_t  *lmcf;

    ngx_conf_merge_value(conf->on, prev->on, 0);

    if (conf->on) {
        lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);
        lmcf->read_body = 1;
    }

    return NGX_CONF_OK;
}
