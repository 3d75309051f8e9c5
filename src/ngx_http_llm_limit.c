/*
 * llm_token_limit_zone and llm_token_limit: limits in tokens, of prompt and
 * answer together.  And what every zone of buckets needs: its place in the
 * configuration, and a look at what dead workers left there.
 */

#include "ngx_http_llm_limit.h"


typedef struct {
    ngx_http_llm_buckets_t        buckets; /* comes first */
    ngx_http_complex_value_t      key;
    ngx_http_llm_bucket_limit_t   limit;
} ngx_http_llm_limit_zone_t;

typedef struct {
    ngx_shm_zone_t               *shm_zone;
    uint64_t                      burst;   /* 0: the zone's rate */
    uint64_t                      reserve;
    ngx_uint_t                    dry_run;
} ngx_http_llm_limit_t;

typedef struct {
    ngx_array_t                   zones;   /* ngx_http_llm_buckets_t * */
} ngx_http_llm_limit_main_conf_t;

typedef struct {
    ngx_array_t                   limits;  /* ngx_http_llm_limit_t */
} ngx_http_llm_limit_conf_t;


static ngx_int_t ngx_http_llm_limit_admit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_limit_one(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_llm_limit_t *limit);
static ngx_int_t ngx_http_llm_limit_header_filter(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_limit_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_limit_add_variables(ngx_conf_t *cf);
static void *ngx_http_llm_limit_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_llm_limit_create_conf(ngx_conf_t *cf);
static char *ngx_http_llm_limit_merge_conf(ngx_conf_t *cf, void *parent,
    void *child);
static ngx_int_t ngx_http_llm_limit_init(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_limit_init_process(ngx_cycle_t *cycle);
static void ngx_http_llm_limit_exit_process(ngx_cycle_t *cycle);
static void ngx_http_llm_limit_zones(ngx_cycle_t *cycle,
    void (*handler)(ngx_http_llm_buckets_t *zone));
static ngx_int_t ngx_http_llm_limit_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static char *ngx_http_llm_token_limit_zone(ngx_conf_t *cf,
    ngx_command_t *cmd, void *conf);
static char *ngx_http_llm_token_limit(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_token_limit_param(ngx_conf_t *cf,
    ngx_http_llm_limit_t *limit, ngx_str_t *value);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;


static ngx_command_t  ngx_http_llm_limit_commands[] = {

    { ngx_string("llm_token_limit_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE3,
      ngx_http_llm_token_limit_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_token_limit"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1234,
      ngx_http_llm_token_limit,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_limit_module_ctx = {
    ngx_http_llm_limit_add_variables,      /* preconfiguration */
    ngx_http_llm_limit_init,               /* postconfiguration */

    ngx_http_llm_limit_create_main_conf,   /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_limit_create_conf,        /* create location configuration */
    ngx_http_llm_limit_merge_conf          /* merge location configuration */
};


ngx_module_t  ngx_http_llm_limit_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_limit_module_ctx,        /* module context */
    ngx_http_llm_limit_commands,           /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_llm_limit_init_process,       /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_llm_limit_exit_process,       /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_str_t  ngx_http_llm_limit_statuses[] = {
    ngx_null_string,
    ngx_string("PASSED"),
    ngx_string("REJECTED"),
    ngx_string("REJECTED_DRY_RUN")
};


static ngx_http_variable_t  ngx_http_llm_limit_vars[] = {

    { ngx_string("llm_token_limit_status"), NULL, ngx_http_llm_limit_variable,
      0, NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


/* All limits or none: what was held before one refused is settled with 0. */

static ngx_int_t
ngx_http_llm_limit_admit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t                  i;
    ngx_http_llm_limit_t       *limits;
    ngx_http_llm_limit_conf_t  *lcf;

    lcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_limit_module);
    limits = lcf->limits.elts;

    for (i = 0; i < lcf->limits.nelts; i++) {
        if (ngx_http_llm_limit_one(r, ctx, &limits[i]) != NGX_OK) {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_limit_one(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_limit_t *limit)
{
    ngx_int_t                     rc;
    ngx_str_t                     key;
    ngx_http_llm_limit_zone_t    *zone;
    ngx_http_llm_bucket_limit_t   bl;
    ngx_http_llm_bucket_state_t   state;

    zone = limit->shm_zone->data;

    if (ngx_http_complex_value(r, &zone->key, &key) != NGX_OK) {
        return ngx_http_llm_limit_refuse(ctx, NGX_ERROR, NGX_HTTP_LLM_TOKENS,
                                         NULL);
    }

    if (key.len == 0) {
        return NGX_OK;
    }

    bl.rate = zone->limit.rate;
    bl.burst = limit->burst != 0 ? limit->burst : zone->limit.burst;

    rc = ngx_http_llm_limit_hold(ctx, &zone->buckets, NGX_HTTP_LLM_TOKENS,
                                 &key, &bl, limit->reserve, limit->dry_run,
                                 &state);

    if (rc == NGX_OK) {

        if (ctx->limits->status == NGX_HTTP_LLM_UNLIMITED) {
            ctx->limits->status = NGX_HTTP_LLM_PASSED;
        }

        return NGX_OK;
    }

    if (rc != NGX_ERROR) {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                      "limiting tokens%s, %uL of %uL left, by zone \"%V\"",
                      limit->dry_run ? ", dry run" : "", state.remaining,
                      state.limit, &limit->shm_zone->shm.name);
    }

    if (limit->dry_run) {
        if (ctx->limits != NULL) {
            ctx->limits->status = NGX_HTTP_LLM_REJECTED_DRY_RUN;
        }

        return NGX_OK;
    }

    if (ctx->limits != NULL) {
        ctx->limits->status = NGX_HTTP_LLM_REJECTED;
    }

    return ngx_http_llm_limit_refuse(ctx, rc, NGX_HTTP_LLM_TOKENS, &state);
}


static ngx_int_t
ngx_http_llm_limit_header_filter(ngx_http_request_t *r)
{
    ngx_http_llm_ctx_t  *ctx;

    if (r == r->main) {
        ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

        if (ctx != NULL && ctx->limits != NULL
            && ngx_http_llm_limit_headers(r, ctx->limits) != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_next_header_filter(r);
}


static ngx_int_t
ngx_http_llm_limit_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t           *s;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx == NULL || ctx->limits == NULL
        || ctx->limits->status == NGX_HTTP_LLM_UNLIMITED)
    {
        v->not_found = 1;
        return NGX_OK;
    }

    s = &ngx_http_llm_limit_statuses[ctx->limits->status];

    return ngx_http_llm_variable_set(v, s->data, s->len);
}


static ngx_int_t
ngx_http_llm_limit_add_variables(ngx_conf_t *cf)
{
    return ngx_http_llm_add_variables(cf, ngx_http_llm_limit_vars);
}


static void *
ngx_http_llm_limit_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_llm_limit_main_conf_t  *lmcf;

    lmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_limit_main_conf_t));
    if (lmcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&lmcf->zones, cf->pool, 4,
                       sizeof(ngx_http_llm_buckets_t *))
        != NGX_OK)
    {
        return NULL;
    }

    return lmcf;
}


static void *
ngx_http_llm_limit_create_conf(ngx_conf_t *cf)
{
    /* set by ngx_pcalloc(): limits.elts = NULL */

    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_limit_conf_t));
}


static char *
ngx_http_llm_limit_merge_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_llm_limit_conf_t *prev = parent;
    ngx_http_llm_limit_conf_t *conf = child;

    if (conf->limits.elts == NULL) {
        conf->limits = prev->limits;
    }

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_llm_limit_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_llm_limit_header_filter;

    return ngx_http_llm_policy_add(cf, NGX_HTTP_LLM_STEP_LIMIT,
                                   ngx_http_llm_limit_admit,
                                   ngx_http_llm_limit_settle);
}


static ngx_int_t
ngx_http_llm_limit_init_process(ngx_cycle_t *cycle)
{
    ngx_http_llm_limit_zones(cycle, ngx_http_llm_buckets_adopt);

    return NGX_OK;
}


/* A worker that is told to stop at once leaves its requests as they are. */

static void
ngx_http_llm_limit_exit_process(ngx_cycle_t *cycle)
{
    ngx_http_llm_limit_zones(cycle, ngx_http_llm_buckets_leave);
}


static void
ngx_http_llm_limit_zones(ngx_cycle_t *cycle,
    void (*handler)(ngx_http_llm_buckets_t *zone))
{
    ngx_uint_t                        i;
    ngx_http_llm_buckets_t          **zones;
    ngx_http_llm_limit_main_conf_t   *lmcf;

    if (ngx_process != NGX_PROCESS_WORKER && ngx_process != NGX_PROCESS_SINGLE)
    {
        return;
    }

    lmcf = ngx_http_cycle_get_module_main_conf(cycle,
                                               ngx_http_llm_limit_module);
    if (lmcf == NULL) {
        return;
    }

    zones = lmcf->zones.elts;

    for (i = 0; i < lmcf->zones.nelts; i++) {
        handler(zones[i]);
    }
}


char *
ngx_http_llm_buckets_zone(ngx_conf_t *cf, ngx_str_t *name, size_t size,
    void *tag, ngx_http_llm_buckets_t *zone, ngx_shm_zone_t **shm_zone)
{
    ngx_http_llm_buckets_t          **zp;
    ngx_http_llm_limit_main_conf_t   *lmcf;

    *shm_zone = ngx_shared_memory_add(cf, name, size, tag);
    if (*shm_zone == NULL) {
        return NGX_CONF_ERROR;
    }

    if ((*shm_zone)->data != NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "duplicate zone \"%V\"",
                           name);
        return NGX_CONF_ERROR;
    }

    (*shm_zone)->init = ngx_http_llm_buckets_init_zone;
    (*shm_zone)->data = zone;

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_limit_module);

    zp = ngx_array_push(&lmcf->zones);
    if (zp == NULL) {
        return NGX_CONF_ERROR;
    }

    *zp = zone;

    return NGX_CONF_OK;
}


ngx_int_t
ngx_http_llm_buckets_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_llm_buckets_t *ozone = data;

    ngx_http_llm_buckets_t  *zone;

    zone = shm_zone->data;

    if (ozone != NULL) {
        zone->sh = ozone->sh;
        zone->shpool = ozone->shpool;
        return NGX_OK;
    }

    zone->shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (shm_zone->shm.exists) {
        zone->sh = zone->shpool->data;
        return NGX_OK;
    }

    if (ngx_http_llm_buckets_init(zone) != NGX_OK) {
        return NGX_ERROR;
    }

    return ngx_http_llm_zone_name(shm_zone, zone->shpool, "zone");
}


static ngx_int_t
ngx_http_llm_limit_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_llm_limit_zone_t  *ozone = data;

    ngx_http_llm_limit_zone_t  *zone;

    zone = shm_zone->data;

    if (ozone != NULL
        && (zone->key.value.len != ozone->key.value.len
            || ngx_strncmp(zone->key.value.data, ozone->key.value.data,
                           zone->key.value.len)
               != 0))
    {
        ngx_log_error(NGX_LOG_EMERG, shm_zone->shm.log, 0,
                      "llm_token_limit_zone \"%V\" uses the \"%V\" key while "
                      "previously it used the \"%V\" key",
                      &shm_zone->shm.name, &zone->key.value,
                      &ozone->key.value);
        return NGX_ERROR;
    }

    return ngx_http_llm_buckets_init_zone(shm_zone, data);
}


static char *
ngx_http_llm_token_limit_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ssize_t                            size;
    ngx_str_t                         *value, name, s;
    ngx_uint_t                         i;
    ngx_shm_zone_t                    *shm_zone;
    ngx_http_llm_limit_zone_t         *zone;
    ngx_http_compile_complex_value_t   ccv;

    value = cf->args->elts;

    zone = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_limit_zone_t));
    if (zone == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = &zone->key;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    size = 0;
    ngx_str_null(&name);

    for (i = 2; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "zone=", 5) == 0) {

            if (ngx_http_llm_zone_param(cf, &value[i], &name, &size)
                != NGX_CONF_OK)
            {
                return NGX_CONF_ERROR;
            }

            continue;
        }

        if (ngx_http_llm_arg(&value[i], "rate", &s)) {
            if (ngx_http_llm_bucket_rate(&s, 't', &zone->limit) != NGX_OK) {
                ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                                   "invalid rate \"%V\", it must be as 500t/s "
                                   "or 30000t/m", &value[i]);
                return NGX_CONF_ERROR;
            }

            continue;
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                           &value[i]);
        return NGX_CONF_ERROR;
    }

    if (name.len == 0 || zone->limit.burst == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"%s\" parameter", &cmd->name,
                           name.len == 0 ? "zone" : "rate");
        return NGX_CONF_ERROR;
    }

    if (ngx_http_llm_buckets_zone(cf, &name, size, &ngx_http_llm_limit_module,
                                  &zone->buckets, &shm_zone)
        != NGX_CONF_OK)
    {
        return NGX_CONF_ERROR;
    }

    shm_zone->init = ngx_http_llm_limit_init_zone;

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_token_limit(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_limit_conf_t *lcf = conf;

    ngx_str_t             *value;
    ngx_uint_t             i;
    ngx_http_llm_limit_t   limit, *limits;

    value = cf->args->elts;

    ngx_memzero(&limit, sizeof(limit));
    limit.reserve = NGX_HTTP_LLM_RESERVE;

    for (i = 1; i < cf->args->nelts; i++) {
        if (ngx_http_llm_token_limit_param(cf, &limit, &value[i])
            != NGX_CONF_OK)
        {
            return NGX_CONF_ERROR;
        }
    }

    if (limit.shm_zone == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"zone\" parameter", &cmd->name);
        return NGX_CONF_ERROR;
    }

    if (lcf->limits.elts == NULL
        && ngx_array_init(&lcf->limits, cf->pool, 1,
                          sizeof(ngx_http_llm_limit_t))
           != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    limits = lcf->limits.elts;

    for (i = 0; i < lcf->limits.nelts; i++) {
        if (limits[i].shm_zone == limit.shm_zone) {
            return "is duplicate";
        }
    }

    if (lcf->limits.nelts == NGX_HTTP_LLM_LIMITS_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "more than %d of \"%V\" at one level",
                           NGX_HTTP_LLM_LIMITS_MAX, &cmd->name);
        return NGX_CONF_ERROR;
    }

    limits = ngx_array_push(&lcf->limits);
    if (limits == NULL) {
        return NGX_CONF_ERROR;
    }

    *limits = limit;

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_token_limit_param(ngx_conf_t *cf, ngx_http_llm_limit_t *limit,
    ngx_str_t *value)
{
    ngx_str_t  s;

    if (ngx_http_llm_arg(value, "zone", &s) && s.len > 0) {
        limit->shm_zone = ngx_shared_memory_add(cf, &s, 0,
                                                &ngx_http_llm_limit_module);

        return limit->shm_zone != NULL ? NGX_CONF_OK : NGX_CONF_ERROR;
    }

    if (ngx_http_llm_arg(value, "burst", &s)) {
        if (ngx_http_llm_bucket_number(&s, &limit->burst) == NGX_OK) {
            return NGX_CONF_OK;
        }

    } else if (ngx_strcmp(value->data, "reserve=full") == 0) {
        limit->reserve = NGX_HTTP_LLM_RESERVE_FULL;
        return NGX_CONF_OK;

    } else if (ngx_http_llm_arg(value, "reserve", &s)) {
        if (ngx_http_llm_bucket_number(&s, &limit->reserve) == NGX_OK) {
            return NGX_CONF_OK;
        }

    } else if (ngx_strcmp(value->data, "dry_run") == 0) {
        limit->dry_run = 1;
        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                       value);

    return NGX_CONF_ERROR;
}
