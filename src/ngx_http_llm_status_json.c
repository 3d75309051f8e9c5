/*
 * What llm_status says, as JSON (ngx_http_llm_status.h).
 */

#include "ngx_http_llm_status.h"
#include "ngx_http_llm_ledger.h"


#define NGX_HTTP_LLM_STATUS_LOADS  120        /* seconds */


static void ngx_http_llm_status_today(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w);
static void ngx_http_llm_status_engine(ngx_http_llm_writer_t *w,
    ngx_http_llm_view_t *view);
static void ngx_http_llm_status_guesses(ngx_http_llm_writer_t *w,
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


static const char *const
    ngx_http_llm_status_times_names[NGX_HTTP_LLM_NHISTOGRAMS] =
{
    "ttft", "tpot", "duration", "queue"
};


/* NGX_ERROR: no memory.  What is only for this object has a pool of its own. */

ngx_int_t
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

    if (engine->model.speculate != 0) {
        ngx_http_llm_status_guesses(w, view);
    }

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
ngx_http_llm_status_guesses(ngx_http_llm_writer_t *w,
    ngx_http_llm_view_t *view)
{
    ngx_http_llm_status_uint(w, ",\"speculation\":{\"max\":",
                             view->engine->model.speculate);
    ngx_http_llm_status_uint(w, ",\"depth\":", view->state.depth);
    ngx_http_llm_status_uint(w, ",\"drafts\":", view->state.drafts);
    ngx_http_llm_status_uint(w, ",\"draft_tokens\":",
                             view->state.draft_tokens);
    ngx_http_llm_status_uint(w, ",\"accepted_tokens\":", view->accepted);
    ngx_http_llm_put_literal(w, "}");
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
    ngx_http_llm_status_uint(w, ",\"resumed\":", m->resumed);
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


void
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
