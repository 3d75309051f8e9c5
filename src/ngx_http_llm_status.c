/*
 * llm_status: what engines and requests do, as JSON, as a stream of it, and as
 * a page that shows the stream.
 *
 * FORMAT
 *
 *     {"time": seconds, "since": seconds,
 *      "engines": [{"name", "up", and where it is up: "model", "fingerprint",
 *          "max_context", "heartbeat_age", "step", "running", "waiting",
 *          "lanes", "requests", "tokens",
 *          "ranks": [{"running", "kv_blocks", "kv_free_blocks",
 *              "tokens_per_second", "expert_load", "expert_moves"}]}],
 *      "bounds": {"ttft": [seconds, ...], "tpot", "queue", "duration"},
 *      "models": [{"model", "requests", "status": {"200": n, ...},
 *          "finish_reason": {"stop": n, ...}, "prompt_tokens",
 *          "cached_tokens", "completion_tokens", "reasoning_tokens",
 *          "response_cache_hits", "routed": {"hit", "moved", "none"},
 *          "ttft": {"sum", "p50", "p90", "p99", "buckets": [n, ...]}, "tpot",
 *          "queue", "duration"}],
 *      "today": {"revenue": dollars, "cost": dollars}}
 *
 * Counters are those of ngx_http_llm_metrics.h, from "since" on; those of an
 * engine are from its own start on.  Where the board could not be read, an
 * engine that is up has its name and model alone.  `expert_load` is 0 for a
 * rank without experts.  Today is a day of UTC; its revenue is there where
 * llm_price has priced something, its cost where the directive says what an
 * hour costs.
 *
 * A stream is server-sent events, one object each second.  Before the first
 * there is an event "history" with what is known of the last minutes,
 *
 *     [[time, tokens of engines, tokens of prompts, ranks,
 *       [load of rank, ...]], ...]
 *
 * where a load is in thousandths and only the last two minutes have them.  The
 * timer of a
 * stream is not cancelable: a worker that shuts down waits for it, and it ends
 * the stream then.  A client that is slow misses objects.
 */

#include "ngx_http_llm_page.h"
#include "ngx_http_llm_ledger.h"

#include "ledger/ledger_decimal.h"


#define NGX_HTTP_LLM_STATUS_TIME   1000       /* ms between two objects */
#define NGX_HTTP_LLM_STATUS_COST   1000000000 /* dollars an hour, at most */
#define NGX_HTTP_LLM_STATUS_LOADS  120        /* seconds */
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

typedef struct {
    ngx_uint_t              on;
    int64_t                 cost;          /* nanodollars an hour, 0: none */
} ngx_http_llm_status_loc_conf_t;


static ngx_int_t ngx_http_llm_status_handler(ngx_http_request_t *r);
static ngx_http_llm_status_e ngx_http_llm_status_wanted(
    ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_status_accepts(ngx_http_request_t *r,
    char *type);
static ngx_int_t ngx_http_llm_status_stream(ngx_http_request_t *r);
static void ngx_http_llm_status_history(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w);
static ngx_int_t ngx_http_llm_status_send(ngx_http_llm_status_ctx_t *ctx);
static void ngx_http_llm_status_timer(ngx_event_t *ev);
static void ngx_http_llm_status_write(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_status_sent(ngx_http_llm_status_ctx_t *ctx,
    ngx_chain_t *out);
static void ngx_http_llm_status_cleanup(void *data);
static ngx_int_t ngx_http_llm_status_put(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w);
static void ngx_http_llm_status_today(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w);
static void ngx_http_llm_status_engine(ngx_http_llm_writer_t *w,
    ngx_http_llm_view_t *view);
static void ngx_http_llm_status_rank(ngx_http_llm_writer_t *w,
    chan_board_rank_t *rank);
static void ngx_http_llm_status_bounds(ngx_http_llm_writer_t *w);
static void ngx_http_llm_status_model(ngx_http_llm_writer_t *w,
    ngx_http_llm_counted_t *m);
static void ngx_http_llm_status_requests(ngx_http_llm_writer_t *w,
    ngx_http_llm_counted_t *m);
static void ngx_http_llm_status_entry(ngx_http_llm_writer_t *w, uint64_t n,
    const char *name, uint64_t value);
static void ngx_http_llm_status_times(ngx_http_llm_writer_t *w,
    ngx_http_llm_histogram_t *h, ngx_uint_t which);
static void ngx_http_llm_status_uint(ngx_http_llm_writer_t *w,
    const char *key, uint64_t value);
static void ngx_http_llm_status_float(ngx_http_llm_writer_t *w,
    const char *key, double value);
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


static const char *const
    ngx_http_llm_status_times_names[NGX_HTTP_LLM_NHISTOGRAMS] =
{
    "ttft", "tpot", "duration", "queue"
};


static ngx_int_t
ngx_http_llm_status_handler(ngx_http_request_t *r)
{
    ngx_int_t              rc;
    ngx_str_t              type;
    ngx_http_llm_writer_t  w;

    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    rc = ngx_http_discard_request_body(r);
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


static void
ngx_http_llm_status_history(ngx_http_request_t *r, ngx_http_llm_writer_t *w)
{
    time_t                    now, t;
    uint32_t                  i;
    ngx_uint_t                n;
    ngx_http_llm_sample_t     sample;
    ngx_http_llm_counters_t  *counters;

    counters = ngx_http_llm_counters(r);
    now = ngx_time();

    ngx_http_llm_put_literal(w, "event: history\ndata: [");

    for (n = 0, t = now - NGX_HTTP_LLM_SAMPLES + 1; t < now; t++) {

        if (ngx_http_llm_history_get(counters, t, &sample) != NGX_OK) {
            continue;
        }

        ngx_http_llm_status_uint(w, n++ != 0 ? ",[" : "[", t);
        ngx_http_llm_status_uint(w, ",", sample.out);
        ngx_http_llm_status_uint(w, ",", sample.prompt);
        ngx_http_llm_status_uint(w, ",", sample.nranks);
        ngx_http_llm_put_literal(w, ",[");

        for (i = 0; i < sample.nranks
                    && t > now - NGX_HTTP_LLM_STATUS_LOADS; i++)
        {
            ngx_http_llm_status_uint(w, i != 0 ? "," : "", sample.load[i]);
        }

        ngx_http_llm_put_literal(w, "]]");
    }

    ngx_http_llm_put_literal(w, "]\n\n");
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


/* NGX_ERROR: no memory.  What is only for this object has a pool of its own. */

static ngx_int_t
ngx_http_llm_status_put(ngx_http_request_t *r, ngx_http_llm_writer_t *w)
{
    ngx_uint_t                 i, n;
    ngx_pool_t                *pool;
    ngx_time_t                *tp;
    ngx_http_llm_view_t       *views;
    ngx_http_llm_counters_t   *counters;
    ngx_http_llm_main_conf_t  *lmcf;

    pool = ngx_create_pool(4096, r->connection->log);
    if (pool == NULL) {
        return NGX_ERROR;
    }

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);

    views = ngx_http_llm_views(lmcf, pool, &n);
    if (views == NULL) {
        ngx_destroy_pool(pool);
        return NGX_ERROR;
    }

    tp = ngx_timeofday();
    counters = ngx_http_llm_counters(r);

    ngx_http_llm_put_literal(w, "{\"time\":");
    ngx_http_llm_put_uint(w, tp->sec);
    ngx_http_llm_put_literal(w, ".");
    ngx_http_llm_put_uint(w, tp->msec / 100);
    ngx_http_llm_status_uint(w, ",\"since\":", counters->since);
    ngx_http_llm_put_literal(w, ",\"engines\":[");

    for (i = 0; i < n; i++) {

        if (i != 0) {
            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_status_engine(w, &views[i]);
    }

    ngx_destroy_pool(pool);

    ngx_http_llm_put_literal(w, "],\"bounds\":{");
    ngx_http_llm_status_bounds(w);
    ngx_http_llm_put_literal(w, "},\"models\":[");

    n = counters->nmodels;

    ngx_memory_barrier();

    for (i = 0; i < n; i++) {

        if (i != 0) {
            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_status_model(w, &counters->models[i]);
    }

    ngx_http_llm_put_literal(w, "],\"today\":{");
    ngx_http_llm_status_today(r, w);
    ngx_http_llm_put_literal(w, "}}");

    return w->failed ? NGX_ERROR : NGX_OK;
}


static void
ngx_http_llm_status_today(ngx_http_request_t *r, ngx_http_llm_writer_t *w)
{
    double                           hours;
    ngx_uint_t                       priced;
    ngx_http_llm_day_t               day;
    ngx_http_llm_status_loc_conf_t  *slcf;

    slcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_status_module);

    priced = ngx_http_llm_ledger_today(r, &day) == NGX_OK && day.nano != 0;

    if (priced) {
        ngx_http_llm_status_float(w, "\"revenue\":", (double) day.nano / 1e9);
    }

    if (slcf->cost != 0) {
        hours = (double) (ngx_time() % 86400) / 3600;

        ngx_http_llm_status_float(w, priced ? ",\"cost\":" : "\"cost\":",
                                  (double) slcf->cost / 1e9 * hours);
    }
}


static void
ngx_http_llm_status_engine(ngx_http_llm_writer_t *w,
    ngx_http_llm_view_t *view)
{
    u_char                  hex[16];
    uint32_t                i;
    ngx_http_llm_engine_t  *engine;

    engine = view->engine;

    ngx_http_llm_put_literal(w, "{\"name\":\"");
    ngx_http_llm_put_json(w, engine->name.data, engine->name.len);

    if (!view->up) {
        ngx_http_llm_put_literal(w, "\",\"up\":false}");
        return;
    }

    ngx_http_llm_put_literal(w, "\",\"up\":true,\"model\":\"");
    ngx_http_llm_put_json(w, engine->model.names,
                          ngx_strlen(engine->model.names));

    (void) ngx_sprintf(hex, "%016xL", engine->model.fingerprint);

    ngx_http_llm_put_literal(w, "\",\"fingerprint\":\"");
    ngx_http_llm_put(w, hex, 16);
    ngx_http_llm_status_uint(w, "\",\"max_context\":",
                             engine->model.max_context);

    if (!view->known) {
        ngx_http_llm_put_literal(w, "}");
        return;
    }

    ngx_http_llm_status_float(w, ",\"heartbeat_age\":",
                              (double) view->age_ms / 1000);
    ngx_http_llm_status_uint(w, ",\"step\":", view->state.step);
    ngx_http_llm_status_uint(w, ",\"running\":", view->state.running);
    ngx_http_llm_status_uint(w, ",\"waiting\":", view->state.waiting);
    ngx_http_llm_status_uint(w, ",\"lanes\":", view->state.lanes);
    ngx_http_llm_status_uint(w, ",\"requests\":", view->state.requests);
    ngx_http_llm_status_uint(w, ",\"tokens\":", view->state.tokens);
    ngx_http_llm_put_literal(w, ",\"ranks\":[");

    for (i = 0; i < view->nranks; i++) {

        if (i != 0) {
            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_status_rank(w, &view->ranks[i]);
    }

    ngx_http_llm_put_literal(w, "]}");
}


static void
ngx_http_llm_status_rank(ngx_http_llm_writer_t *w, chan_board_rank_t *rank)
{
    ngx_http_llm_status_uint(w, "{\"running\":", rank->running);
    ngx_http_llm_status_uint(w, ",\"kv_blocks\":", rank->blocks_total);
    ngx_http_llm_status_uint(w, ",\"kv_free_blocks\":", rank->blocks_free);
    ngx_http_llm_status_uint(w, ",\"tokens_per_second\":",
                             rank->tokens_per_sec);
    ngx_http_llm_status_float(w, ",\"expert_load\":",
                              (double) rank->load_max / 1000);
    ngx_http_llm_status_uint(w, ",\"expert_moves\":", rank->moves);
    ngx_http_llm_put_literal(w, "}");
}


static void
ngx_http_llm_status_bounds(ngx_http_llm_writer_t *w)
{
    ngx_uint_t       i, j;
    const char      *name;
    const uint64_t  *bounds;

    for (i = 0; i < NGX_HTTP_LLM_NHISTOGRAMS; i++) {
        name = ngx_http_llm_status_times_names[i];
        bounds = ngx_http_llm_bounds[i];

        if (i != 0) {
            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_put_literal(w, "\"");
        ngx_http_llm_put(w, name, ngx_strlen(name));
        ngx_http_llm_put_literal(w, "\":[");

        for (j = 0; bounds[j] != 0; j++) {

            if (j != 0) {
                ngx_http_llm_put_literal(w, ",");
            }

            ngx_http_llm_put_float(w, (double) bounds[j] / 1e6);
        }

        ngx_http_llm_put_literal(w, "]");
    }
}


static void
ngx_http_llm_status_model(ngx_http_llm_writer_t *w,
    ngx_http_llm_counted_t *m)
{
    ngx_uint_t  i;

    ngx_http_llm_put_literal(w, "{\"model\":\"");
    ngx_http_llm_put_json(w, m->name, ngx_strlen(m->name));
    ngx_http_llm_put_literal(w, "\"");

    ngx_http_llm_status_requests(w, m);

    ngx_http_llm_status_uint(w, ",\"prompt_tokens\":", m->prompt_tokens);
    ngx_http_llm_status_uint(w, ",\"cached_tokens\":", m->cached_tokens);
    ngx_http_llm_status_uint(w, ",\"completion_tokens\":",
                             m->completion_tokens);
    ngx_http_llm_status_uint(w, ",\"reasoning_tokens\":",
                             m->reasoning_tokens);
    ngx_http_llm_status_uint(w, ",\"response_cache_hits\":", m->replayed);
    ngx_http_llm_status_uint(w, ",\"routed\":{\"hit\":",
                             m->routed[NGX_HTTP_LLM_R_HIT]);
    ngx_http_llm_status_uint(w, ",\"moved\":",
                             m->routed[NGX_HTTP_LLM_R_MOVED]);
    ngx_http_llm_status_uint(w, ",\"none\":", m->routed[NGX_HTTP_LLM_R_NONE]);
    ngx_http_llm_put_literal(w, "}");

    for (i = 0; i < NGX_HTTP_LLM_NHISTOGRAMS; i++) {
        ngx_http_llm_status_times(w, &m->histograms[i], i);
    }

    ngx_http_llm_put_literal(w, "}");
}


static void
ngx_http_llm_status_requests(ngx_http_llm_writer_t *w,
    ngx_http_llm_counted_t *m)
{
    uint64_t    n, all, status[NGX_HTTP_LLM_STATUSES_MAX],
                reason[NGX_HTTP_LLM_REASONS_MAX];
    ngx_uint_t  i, j;

    all = 0;
    ngx_memzero(status, sizeof(status));
    ngx_memzero(reason, sizeof(reason));

    for (i = 0; i < NGX_HTTP_LLM_STATUSES_MAX; i++) {
        for (j = 0; j < NGX_HTTP_LLM_REASONS_MAX; j++) {
            n = m->requests[i][j];
            all += n;
            status[i] += n;
            reason[j] += n;
        }
    }

    ngx_http_llm_status_uint(w, ",\"requests\":", all);
    ngx_http_llm_put_literal(w, ",\"status\":{");

    for (i = 0, n = 0; i < NGX_HTTP_LLM_STATUSES_MAX; i++) {
        if (status[i] != 0) {
            ngx_http_llm_status_entry(w, n++, ngx_http_llm_statuses[i],
                                      status[i]);
        }
    }

    ngx_http_llm_put_literal(w, "},\"finish_reason\":{");

    for (j = 0, n = 0; j < NGX_HTTP_LLM_REASONS_MAX; j++) {
        if (reason[j] != 0) {
            ngx_http_llm_status_entry(w, n++, ngx_http_llm_reasons[j],
                                      reason[j]);
        }
    }

    ngx_http_llm_put_literal(w, "}");
}


/* The `n`th of an object. */

static void
ngx_http_llm_status_entry(ngx_http_llm_writer_t *w, uint64_t n,
    const char *name, uint64_t value)
{
    if (n != 0) {
        ngx_http_llm_put_literal(w, ",");
    }

    ngx_http_llm_put_literal(w, "\"");
    ngx_http_llm_put(w, name, ngx_strlen(name));
    ngx_http_llm_status_uint(w, "\":", value);
}


static void
ngx_http_llm_status_times(ngx_http_llm_writer_t *w,
    ngx_http_llm_histogram_t *h, ngx_uint_t which)
{
    ngx_uint_t                 i;
    const char                *name;
    const uint64_t            *bounds;
    ngx_http_llm_histogram_t   copy;

    copy = *h;                           /* it goes on counting */
    name = ngx_http_llm_status_times_names[which];
    bounds = ngx_http_llm_bounds[which];

    ngx_http_llm_put_literal(w, ",\"");
    ngx_http_llm_put(w, name, ngx_strlen(name));
    ngx_http_llm_status_float(w, "\":{\"sum\":", (double) copy.sum_us / 1e6);
    ngx_http_llm_status_float(w, ",\"p50\":",
                              ngx_http_llm_quantile(&copy, bounds, 0.5));
    ngx_http_llm_status_float(w, ",\"p90\":",
                              ngx_http_llm_quantile(&copy, bounds, 0.9));
    ngx_http_llm_status_float(w, ",\"p99\":",
                              ngx_http_llm_quantile(&copy, bounds, 0.99));
    ngx_http_llm_put_literal(w, ",\"buckets\":[");

    for (i = 0; /* void */; i++) {

        if (i != 0) {
            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_put_uint(w, copy.buckets[i]);

        if (bounds[i] == 0) {
            break;
        }
    }

    ngx_http_llm_put_literal(w, "]}");
}


static void
ngx_http_llm_status_uint(ngx_http_llm_writer_t *w, const char *key,
    uint64_t value)
{
    ngx_http_llm_put(w, key, ngx_strlen(key));
    ngx_http_llm_put_uint(w, value);
}


static void
ngx_http_llm_status_float(ngx_http_llm_writer_t *w, const char *key,
    double value)
{
    ngx_http_llm_put(w, key, ngx_strlen(key));
    ngx_http_llm_put_float(w, value);
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
