/*
 * llm_status: what engines and requests do, as JSON, as a stream of it, and as
 * a page that shows the stream.
 *
 * A stream is server-sent events, one object each second.  Before the first
 * there is an event "history" with what is known of the last minutes,
 *
 *     [[time, tokens of engines, tokens of prompts, ranks,
 *       [load of rank, ...]], ...]
 *
 * where a load is in thousandths and only the last two minutes have them.
 *
 * The timer of a stream is not cancelable: a worker that shuts down waits for
 * it, and it ends the stream then.  A client that is slow misses objects.
 */

#include "ngx_http_llm_page.h"
#include "ngx_http_llm_ledger.h"
#include "ngx_http_llm_status.h"

#include "ledger/ledger_decimal.h"


#define NGX_HTTP_LLM_STATUS_TIME   1000       /* ms between two objects */
#define NGX_HTTP_LLM_STATUS_COST   1000000000 /* dollars an hour, at most */
#define NGX_HTTP_LLM_STATUS_BLOCK  4096


typedef enum {
    NGX_HTTP_LLM_STATUS_JSON = 0,
    NGX_HTTP_LLM_STATUS_PAGE,
    NGX_HTTP_LLM_STATUS_STREAM
} ngx_http_llm_status_e;

typedef struct {
    ngx_http_request_t     *request;
    ngx_event_t             timer;
    ngx_http_llm_writer_t   out;
    ngx_chain_t            *busy;
} ngx_http_llm_status_ctx_t;


static ngx_int_t ngx_http_llm_status_handler(ngx_http_request_t *r);
static ngx_http_llm_status_e ngx_http_llm_status_wanted(
    ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_status_accepts(ngx_http_request_t *r,
    char *type);
static ngx_int_t ngx_http_llm_status_stream(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_status_send(ngx_http_llm_status_ctx_t *ctx);
static void ngx_http_llm_status_timer(ngx_event_t *ev);
static void ngx_http_llm_status_write(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_status_sent(ngx_http_llm_status_ctx_t *ctx,
    ngx_chain_t *out);
static void ngx_http_llm_status_cleanup(void *data);
static void *ngx_http_llm_status_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_llm_status(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_command_t  ngx_http_llm_status_commands[] = {

    { ngx_string("llm_status"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_llm_status,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_status_module_ctx = {
    NULL,                                  /* preconfiguration */
    NULL,                                  /* postconfiguration */

    NULL,                                  /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_status_create_loc_conf,   /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_status_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_status_module_ctx,       /* module context */
    ngx_http_llm_status_commands,          /* module directives */
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


static ngx_int_t
ngx_http_llm_status_handler(ngx_http_request_t *r)
{
    ngx_int_t              rc;
    ngx_str_t              type;
    ngx_http_llm_writer_t  w;

    rc = ngx_http_llm_get_only(r);
    if (rc != NGX_OK) {
        return rc;
    }

    switch (ngx_http_llm_status_wanted(r)) {

    case NGX_HTTP_LLM_STATUS_PAGE:
        return ngx_http_llm_page_send(r, &ngx_http_llm_status_page, NULL);

    case NGX_HTTP_LLM_STATUS_STREAM:
        return ngx_http_llm_status_stream(r);

    default:
        break;
    }

    ngx_http_llm_writer_init(&w, r->pool, NGX_HTTP_LLM_STATUS_BLOCK);

    if (ngx_http_llm_status_put(r, &w) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_llm_put_literal(&w, "\n");

    ngx_str_set(&type, "application/json");

    return ngx_http_llm_respond(r, &w, &type);
}


/* An argument says it, else what the client prefers. */

static ngx_http_llm_status_e
ngx_http_llm_status_wanted(ngx_http_request_t *r)
{
    ngx_uint_t  i;

    static const struct {
        ngx_str_t              args;
        ngx_http_llm_status_e  wanted;
    } map[] = {
        { ngx_string("json"), NGX_HTTP_LLM_STATUS_JSON },
        { ngx_string("html"), NGX_HTTP_LLM_STATUS_PAGE },
        { ngx_string("stream"), NGX_HTTP_LLM_STATUS_STREAM }
    };

    /* A part of another answer is no stream. */

    if (r != r->main) {
        return NGX_HTTP_LLM_STATUS_JSON;
    }

    for (i = 0; i < sizeof(map) / sizeof(map[0]); i++) {
        if (r->args.len == map[i].args.len
            && ngx_strncmp(r->args.data, map[i].args.data, r->args.len) == 0)
        {
            return map[i].wanted;
        }
    }

    if (ngx_http_llm_status_accepts(r, "text/event-stream")) {
        return NGX_HTTP_LLM_STATUS_STREAM;
    }

    return ngx_http_llm_status_accepts(r, "text/html")
           ? NGX_HTTP_LLM_STATUS_PAGE : NGX_HTTP_LLM_STATUS_JSON;
}


static ngx_uint_t
ngx_http_llm_status_accepts(ngx_http_request_t *r, char *type)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */; i++) {

        if (i >= part->nelts) {

            if (part->next == NULL) {
                return 0;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == sizeof("Accept") - 1
            && ngx_strncasecmp(h[i].key.data, (u_char *) "Accept",
                               sizeof("Accept") - 1)
               == 0
            && ngx_strcasestrn(h[i].value.data, type, ngx_strlen(type) - 1)
               != NULL)
        {
            return 1;
        }
    }
}


static ngx_int_t
ngx_http_llm_status_stream(ngx_http_request_t *r)
{
    ngx_int_t                   rc;
    ngx_uint_t                  i;
    ngx_http_cleanup_t         *cln;
    ngx_http_llm_status_ctx_t  *ctx;

    static struct {
        const char  *key;
        ngx_str_t    value;
    } headers[] = {
        { "Cache-Control", ngx_string("no-store") },
        { "X-Accel-Buffering", ngx_string("no") }   /* for an nginx before */
    };

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_llm_status_ctx_t));
    if (ctx == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ctx->request = r;

    cln = ngx_http_cleanup_add(r, 0);
    if (cln == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    cln->handler = ngx_http_llm_status_cleanup;
    cln->data = ctx;

    for (i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        if (ngx_http_llm_add_header(r, headers[i].key, &headers[i].value)
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    ngx_http_set_ctx(r, ctx, ngx_http_llm_status_module);

    r->headers_out.status = NGX_HTTP_OK;
    ngx_str_set(&r->headers_out.content_type, "text/event-stream");
    r->headers_out.content_type_len = r->headers_out.content_type.len;
    r->headers_out.content_type_lowcase = NULL;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    ngx_http_llm_writer_init(&ctx->out, r->pool, NGX_HTTP_LLM_STATUS_BLOCK);
    ngx_http_llm_put_literal(&ctx->out, "retry: 1000\n\n");
    ngx_http_llm_status_history(r, &ctx->out);

    if (ngx_http_llm_status_send(ctx) != NGX_OK) {
        return NGX_ERROR;
    }

    r->read_event_handler = ngx_http_test_reading;
    r->write_event_handler = ngx_http_llm_status_write;

    ctx->timer.handler = ngx_http_llm_status_timer;
    ctx->timer.data = ctx;
    ctx->timer.log = r->connection->log;

    ngx_add_timer(&ctx->timer, NGX_HTTP_LLM_STATUS_TIME);

    r->connection->log->action = "sending llm status";
    r->main->count++;

    return NGX_DONE;
}


static ngx_int_t
ngx_http_llm_status_send(ngx_http_llm_status_ctx_t *ctx)
{
    ngx_chain_t         *cl, *out;
    ngx_http_request_t  *r;

    r = ctx->request;

    ngx_http_llm_put_literal(&ctx->out, "data: ");

    if (ngx_http_llm_status_put(r, &ctx->out) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_llm_put_literal(&ctx->out, "\n\n");

    if (ctx->out.failed) {
        return NGX_ERROR;
    }

    cl = ctx->out.tail;
    out = ngx_http_llm_writer_take(&ctx->out);
    cl->buf->flush = 1;

    return ngx_http_llm_status_sent(ctx, out);
}


static void
ngx_http_llm_status_timer(ngx_event_t *ev)
{
    ngx_int_t                   rc;
    ngx_connection_t           *c;
    ngx_http_request_t         *r;
    ngx_http_llm_status_ctx_t  *ctx;

    ctx = ev->data;
    r = ctx->request;
    c = r->connection;

    ngx_http_set_log_request(c->log, r);

    if (ngx_exiting || ngx_terminate) {
        ngx_http_finalize_request(r, ngx_http_send_special(r, NGX_HTTP_LAST));
        ngx_http_run_posted_requests(c);
        return;
    }

    ngx_add_timer(ev, NGX_HTTP_LLM_STATUS_TIME);

    if (ctx->busy == NULL && !c->buffered) {
        rc = ngx_http_llm_status_send(ctx);

        if (rc != NGX_OK) {
            ngx_http_finalize_request(r, rc);
        }
    }

    ngx_http_run_posted_requests(c);
}


static void
ngx_http_llm_status_write(ngx_http_request_t *r)
{
    ngx_int_t                   rc;
    ngx_event_t                *wev;
    ngx_connection_t           *c;
    ngx_http_llm_status_ctx_t  *ctx;

    c = r->connection;
    wev = c->write;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_status_module);

    if (wev->timedout) {
        ngx_log_error(NGX_LOG_INFO, c->log, NGX_ETIMEDOUT,
                      "client timed out");
        c->timedout = 1;

        ngx_http_finalize_request(r, NGX_HTTP_REQUEST_TIME_OUT);
        return;
    }

    rc = ngx_http_llm_status_sent(ctx, NULL);

    if (rc != NGX_OK) {
        ngx_http_finalize_request(r, rc);
    }
}


/* Sends `out`, or goes on with what is left. */

static ngx_int_t
ngx_http_llm_status_sent(ngx_http_llm_status_ctx_t *ctx, ngx_chain_t *out)
{
    ngx_event_t               *wev;
    ngx_connection_t          *c;
    ngx_http_request_t        *r;
    ngx_http_core_loc_conf_t  *clcf;

    r = ctx->request;
    c = r->connection;
    wev = c->write;

    if (out != NULL || ctx->busy != NULL || c->buffered) {

        if (ngx_http_output_filter(r, out) == NGX_ERROR) {
            return NGX_ERROR;
        }

        ngx_chain_update_chains(r->pool, &ctx->out.free, &ctx->busy, &out,
                                (ngx_buf_tag_t) &ngx_http_llm_module);
    }

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    if (ctx->busy == NULL && !c->buffered) {

        if (wev->timer_set && !wev->delayed) {
            ngx_del_timer(wev);
        }

    } else if (!wev->delayed && !wev->timer_set) {
        ngx_add_timer(wev, clcf->send_timeout);
    }

    return ngx_handle_write_event(wev, ctx->busy != NULL ? clcf->send_lowat
                                                         : 0);
}


static void
ngx_http_llm_status_cleanup(void *data)
{
    ngx_http_llm_status_ctx_t *ctx = data;

    if (ctx->timer.timer_set) {
        ngx_del_timer(&ctx->timer);
    }
}


static void *
ngx_http_llm_status_create_loc_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_status_loc_conf_t));
}


static char *
ngx_http_llm_status(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_status_loc_conf_t *slcf = conf;

    ngx_str_t                 *value;
    ledger_int_t               cost;
    ngx_http_core_loc_conf_t  *clcf;

    if (slcf->on) {
        return "is duplicate";
    }

    slcf->on = 1;

    if (cf->args->nelts == 2) {
        value = cf->args->elts;

        if (ngx_strncmp(value[1].data, "cost=", 5) != 0
            || ledger_decimal((char *) value[1].data + 5, LEDGER_NANO,
                              (ledger_int_t) NGX_HTTP_LLM_STATUS_COST
                              * 1000000000, &cost)
               != 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[1]);
            return NGX_CONF_ERROR;
        }

        slcf->cost = (int64_t) cost;
    }

    if (ngx_http_llm_ledger_need(cf) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (ngx_http_llm_page_init(&ngx_http_llm_status_page) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_llm_status_handler;

    return ngx_http_llm_counters_zone(cf);
}
