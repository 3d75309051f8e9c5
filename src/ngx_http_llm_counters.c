/*
 * The counters' zone: its creation, what a request adds to it in the log
 * phase, and the look at engines beside it.  ngx_http_llm_metrics.h has the
 * format.
 */

#include "ngx_http_llm_metrics.h"
#include "ngx_http_llm_meter.h"


#if (NGX_PTR_SIZE != 8)
#error "counters need 64 bits"
#endif


static ngx_int_t ngx_http_llm_counters_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_llm_counters_handler(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_counters_counts(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_llm_loc_conf_t *llcf);
static const char *ngx_http_llm_counters_model(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_engine_t *engine);
static ngx_http_llm_counted_t *ngx_http_llm_counters_find(
    ngx_shm_zone_t *shm_zone, const char *name);
static ngx_http_llm_counted_t *ngx_http_llm_counters_known(
    ngx_http_llm_counters_t *counters, const char *name);
static void ngx_http_llm_counters_accepted(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_llm_counted_t *m);
static void ngx_http_llm_counters_computed(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_counted_t *m);
static void ngx_http_llm_counters_value(ngx_http_llm_counted_t *m,
    ngx_http_llm_histogram_e which, uint64_t us);
static ngx_uint_t ngx_http_llm_counters_status(ngx_http_request_t *r);
static ngx_uint_t ngx_http_llm_counters_reason(const char *reason);
static void ngx_http_llm_view(ngx_http_llm_view_t *view);


#define NGX_HTTP_LLM_REASON_OTHER   (NGX_HTTP_LLM_REASONS_MAX - 2)
#define NGX_HTTP_LLM_REASON_NONE    (NGX_HTTP_LLM_REASONS_MAX - 1)


const char *const  ngx_http_llm_statuses[NGX_HTTP_LLM_STATUSES_MAX] = {
    "200", "400", "401", "402", "403", "404", "405", "408", "413", "415",
    "422", "429", "499", "500", "502", "503", "504", "other"
};

const char *const  ngx_http_llm_reasons[NGX_HTTP_LLM_REASONS_MAX] = {
    "stop", "length", "tool_calls", "content_filter", "cancelled", "error",
    "other", ""
};


/* Six steps for each power of ten, wherever requests are expected. */

static const uint64_t  ngx_http_llm_bounds_wait[] = {
    1000, 1500, 2000, 3000, 5000, 7000, 10000, 15000, 20000, 30000, 50000,
    70000, 100000, 150000, 200000, 300000, 500000, 700000, 1000000, 1500000,
    2000000, 3000000, 5000000, 7000000, 10000000, 15000000, 20000000,
    30000000, 60000000, 120000000, 300000000, 0
};

static const uint64_t  ngx_http_llm_bounds_token[] = {
    100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10000,
    15000, 20000, 30000, 50000, 70000, 100000, 150000, 200000, 300000, 500000,
    700000, 1000000, 2000000, 5000000, 10000000, 0
};

static const uint64_t  ngx_http_llm_bounds_whole[] = {
    10000, 20000, 30000, 50000, 70000, 100000, 150000, 200000, 300000, 500000,
    700000, 1000000, 1500000, 2000000, 3000000, 5000000, 7000000, 10000000,
    15000000, 20000000, 30000000, 60000000, 120000000, 180000000, 300000000,
    600000000, 1200000000, 1800000000, 3600000000, 0
};

const uint64_t  *const  ngx_http_llm_bounds[NGX_HTTP_LLM_NHISTOGRAMS] = {
    ngx_http_llm_bounds_wait, ngx_http_llm_bounds_token,
    ngx_http_llm_bounds_whole, ngx_http_llm_bounds_wait
};


char *
ngx_http_llm_counters_zone(ngx_conf_t *cf)
{
    size_t                             size;
    ngx_str_t                          name = ngx_string("llm_metrics");
    ngx_http_llm_metrics_main_conf_t  *mmcf;

    mmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_metrics_module);

    if (mmcf->zone != NULL) {
        return NGX_CONF_OK;
    }

    /* The slab's own, and whole pages for what is allocated from it. */

    size = ngx_align(sizeof(ngx_http_llm_counters_t), ngx_pagesize)
           + 8 * ngx_pagesize;

    mmcf->zone = ngx_shared_memory_add(cf, &name, size,
                                       &ngx_http_llm_metrics_module);
    if (mmcf->zone == NULL) {
        return NGX_CONF_ERROR;
    }

    mmcf->zone->init = ngx_http_llm_counters_init_zone;

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_llm_counters_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_slab_pool_t          *shpool;
    ngx_http_llm_counters_t  *counters;

    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (data != NULL) {
        shm_zone->data = data;
        return NGX_OK;
    }

    if (shm_zone->shm.exists) {
        shm_zone->data = shpool->data;
        return NGX_OK;
    }

    counters = ngx_slab_calloc(shpool, sizeof(ngx_http_llm_counters_t));
    if (counters == NULL) {
        return NGX_ERROR;
    }

    counters->since = ngx_time();

    shpool->data = counters;
    shm_zone->data = counters;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_counters_init(ngx_conf_t *cf)
{
    ngx_http_llm_metrics_main_conf_t  *mmcf;

    mmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_metrics_module);

    if (mmcf->zone == NULL) {
        return NGX_OK;
    }

    return ngx_http_llm_add_handler(cf, NGX_HTTP_LOG_PHASE,
                                    ngx_http_llm_counters_handler);
}


ngx_http_llm_counters_t *
ngx_http_llm_counters(ngx_http_request_t *r)
{
    ngx_http_llm_metrics_main_conf_t  *mmcf;

    mmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_metrics_module);

    return mmcf->zone != NULL ? mmcf->zone->data : NULL;
}


static ngx_int_t
ngx_http_llm_counters_handler(ngx_http_request_t *r)
{
    ngx_uint_t                         status, reason;
    ngx_http_llm_ctx_t                *ctx;
    ngx_http_llm_counted_t            *m;
    ngx_http_llm_loc_conf_t           *llcf;
    ngx_http_llm_metrics_main_conf_t  *mmcf;

    mmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_metrics_module);
    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);
    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (!ngx_http_llm_counters_counts(r, ctx, llcf)) {
        return NGX_OK;
    }

    m = ngx_http_llm_counters_find(mmcf->zone,
                                   ngx_http_llm_counters_model(ctx,
                                                           llcf->engine));

    status = ngx_http_llm_counters_status(r);
    reason = ngx_http_llm_counters_reason(ctx != NULL ? ctx->reason : NULL);

    (void) ngx_atomic_fetch_add(&m->requests[status][reason], 1);

    if (ctx != NULL && ctx->accepted) {
        ngx_http_llm_counters_accepted(r, ctx, m);
    }

    return NGX_OK;
}


/*
 * Counted is what llm_pass answers, and what is posted to where llm_meter is
 * on, refusals of nginx's own included.  A list of models is no use of one.
 */

static ngx_uint_t
ngx_http_llm_counters_counts(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_loc_conf_t *llcf)
{
    if (ctx != NULL && ctx->models) {
        return 0;
    }

    return llcf->engine != NULL
           || (r->method == NGX_HTTP_POST && ngx_http_llm_meter_on(r));
}


/* A name that the client made up is none. */

static const char *
ngx_http_llm_counters_model(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_engine_t *engine)
{
    if (ctx == NULL) {
        return "";
    }

    if (ctx->parsed) {
        return ctx->params.model;
    }

    if (ctx->peek != NULL && engine != NULL && engine->model.names[0] != '\0'
        && ngx_http_llm_model_known(engine->model.names, ctx->peek->model,
                                    ngx_strlen(ctx->peek->model)))
    {
        return ctx->peek->model;
    }

    return "";
}


static ngx_http_llm_counted_t *
ngx_http_llm_counters_find(ngx_shm_zone_t *shm_zone, const char *name)
{
    ngx_uint_t                n;
    ngx_slab_pool_t          *shpool;
    ngx_http_llm_counted_t   *m;
    ngx_http_llm_counters_t  *counters;

    counters = shm_zone->data;

    m = ngx_http_llm_counters_known(counters, name);
    if (m != NULL) {
        return m;
    }

    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    ngx_shmtx_lock(&shpool->mutex);

    m = ngx_http_llm_counters_known(counters, name);

    if (m == NULL) {
        n = counters->nmodels;

        if (n == NGX_HTTP_LLM_COUNTED_MODELS - 1) {
            name = "other";
        }

        m = &counters->models[n];

        (void) ngx_cpystrn((u_char *) m->name, (u_char *) name,
                           CHAN_NAMES_LEN);

        ngx_memory_barrier();

        counters->nmodels = n + 1;
    }

    ngx_shmtx_unlock(&shpool->mutex);

    return m;
}


/* In a full table everything else is in the last place. */

static ngx_http_llm_counted_t *
ngx_http_llm_counters_known(ngx_http_llm_counters_t *counters,
    const char *name)
{
    ngx_uint_t  i, n;

    n = counters->nmodels;

    ngx_memory_barrier();

    for (i = 0; i < n; i++) {
        if (ngx_strcmp(counters->models[i].name, name) == 0) {
            return &counters->models[i];
        }
    }

    return n == NGX_HTTP_LLM_COUNTED_MODELS ? &counters->models[n - 1] : NULL;
}


/* An answer out of the response cache has no times and no rank. */

static void
ngx_http_llm_counters_accepted(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_llm_counted_t *m)
{
    uint64_t      ms;
    ngx_time_t   *tp;

    (void) ngx_atomic_fetch_add(&m->prompt_tokens, ctx->prompt_tokens);
    (void) ngx_atomic_fetch_add(&m->cached_tokens, ctx->cached_tokens);
    (void) ngx_atomic_fetch_add(&m->completion_tokens,
                                ctx->completion_tokens);
    (void) ngx_atomic_fetch_add(&m->reasoning_tokens, ctx->reasoning_tokens);

    if (ctx->admission == NGX_HTTP_LLM_ANSWERED) {
        (void) ngx_atomic_fetch_add(&m->replayed, 1);

    } else {
        ngx_http_llm_counters_computed(ctx, m);
    }

    /* As $request_time: a clock that was set back is no negative time. */

    tp = ngx_timeofday();

    ms = ngx_max((int64_t) (tp->sec - r->start_sec) * 1000
                 + ((int64_t) tp->msec - (int64_t) r->start_msec), 0);

    ngx_http_llm_counters_value(m, NGX_HTTP_LLM_H_DURATION, ms * 1000);
}


static void
ngx_http_llm_counters_computed(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_counted_t *m)
{
    ngx_http_llm_routed_e  routed;

    if (ctx->resumed) {
        (void) ngx_atomic_fetch_add(&m->resumed, 1);
    }

    if (ctx->routes != NULL) {
        routed = ctx->routes[0].rank < 0 ? NGX_HTTP_LLM_R_NONE
                 : (ngx_uint_t) ctx->routes[0].rank == ctx->rank
                   ? NGX_HTTP_LLM_R_HIT : NGX_HTTP_LLM_R_MOVED;

        (void) ngx_atomic_fetch_add(&m->routed[routed], 1);
    }

    /* Other servers say nothing of their queue. */

    if (ctx->engine != NULL) {
        ngx_http_llm_counters_value(m, NGX_HTTP_LLM_H_QUEUE, ctx->queue_us);
    }

    if (ctx->first) {
        ngx_http_llm_counters_value(m, NGX_HTTP_LLM_H_TTFT, ctx->ttft_us);
    }

    if (ctx->tpot) {
        ngx_http_llm_counters_value(m, NGX_HTTP_LLM_H_TPOT, ctx->tpot_us);
    }
}


static void
ngx_http_llm_counters_value(ngx_http_llm_counted_t *m,
    ngx_http_llm_histogram_e which, uint64_t us)
{
    ngx_uint_t                 i;
    const uint64_t            *bounds;
    ngx_http_llm_histogram_t  *h;

    h = &m->histograms[which];
    bounds = ngx_http_llm_bounds[which];

    for (i = 0; bounds[i] != 0 && us > bounds[i]; i++) { /* void */ }

    (void) ngx_atomic_fetch_add(&h->sum_us, us);
    (void) ngx_atomic_fetch_add(&h->buckets[i], 1);
}


/* The same that $status says. */

static ngx_uint_t
ngx_http_llm_counters_status(ngx_http_request_t *r)
{
    ngx_int_t   status;
    ngx_uint_t  i;

    status = r->err_status ? r->err_status : r->headers_out.status;

    for (i = 0; i < NGX_HTTP_LLM_STATUSES_MAX - 1; i++) {
        if (ngx_atoi((u_char *) ngx_http_llm_statuses[i], 3) == status) {
            break;
        }
    }

    return i;
}


static ngx_uint_t
ngx_http_llm_counters_reason(const char *reason)
{
    ngx_uint_t  i;

    if (reason == NULL || reason[0] == '\0') {
        return NGX_HTTP_LLM_REASON_NONE;
    }

    for (i = 0; i < NGX_HTTP_LLM_REASON_OTHER; i++) {
        if (ngx_strcmp(ngx_http_llm_reasons[i], reason) == 0) {
            break;
        }
    }

    return i;
}


ngx_http_llm_view_t *
ngx_http_llm_views(ngx_http_llm_main_conf_t *lmcf, ngx_pool_t *pool,
    ngx_uint_t *n)
{
    size_t                   size;
    ngx_uint_t               i;
    ngx_http_llm_view_t     *views;
    ngx_http_llm_engine_t  **engines;

    engines = lmcf->engines.elts;
    *n = lmcf->engines.nelts;

    views = ngx_pcalloc(pool, (*n + 1) * sizeof(ngx_http_llm_view_t));
    if (views == NULL) {
        return NULL;
    }

    for (i = 0; i < *n; i++) {
        views[i].engine = engines[i];

        /* Looking at it is what notices that it has hung. */

        if (ngx_http_llm_engine_usable(engines[i]) != NGX_OK) {
            continue;
        }

        views[i].nranks = chan_board_ranks(engines[i]->board);

        size = views[i].nranks * sizeof(chan_board_rank_t);

        views[i].ranks = ngx_pcalloc(pool, size);
        if (views[i].ranks == NULL) {
            return NULL;
        }

        ngx_http_llm_view(&views[i]);
    }

    return views;
}


static void
ngx_http_llm_view(ngx_http_llm_view_t *view)
{
    uint32_t       i;
    uint64_t       now;
    chan_board_t  *board;

    board = view->engine->board;
    view->up = 1;

    for (i = 0; i < view->nranks; i++) {
        if (chan_board_get_rank(board, i, &view->ranks[i]) != CHAN_OK) {
            goto unknown;
        }
    }

    if (chan_board_get_state(board, &view->state) != CHAN_OK) {
        goto unknown;
    }

    now = chan_now_ms();

    view->age_ms = now > view->state.heartbeat_ms
                   ? now - view->state.heartbeat_ms : 0;

    for (i = 0; i < CHAN_DEPTH_MAX; i++) {
        view->accepted += view->state.accepted[i];
    }

    view->known = 1;

    return;

unknown:

    view->nranks = 0;
    ngx_memzero(&view->state, sizeof(chan_board_state_t));
}


uint64_t
ngx_http_llm_values(const ngx_http_llm_histogram_t *h)
{
    uint64_t    n;
    ngx_uint_t  i;

    n = 0;

    for (i = 0; i <= NGX_HTTP_LLM_BOUNDS_MAX; i++) {
        n += h->buckets[i];
    }

    return n;
}


double
ngx_http_llm_quantile(const ngx_http_llm_histogram_t *h,
    const uint64_t *bounds, double q)
{
    double      low, high, n, before, wanted;
    ngx_uint_t  i;

    wanted = q * (double) ngx_http_llm_values(h);

    if (wanted == 0) {
        return 0;
    }

    low = 0;
    before = 0;

    for (i = 0; bounds[i] != 0; i++) {
        high = (double) bounds[i] / 1e6;
        n = (double) h->buckets[i];

        if (before + n >= wanted) {
            return low + (high - low) * (wanted - before) / n;
        }

        before += n;
        low = high;
    }

    return low;
}
