/*
 * Directives, configuration and the module's place in nginx.
 */

#include "ngx_http_llm_policy.h"

#include <sys/un.h>


static ngx_int_t ngx_http_llm_pre(ngx_conf_t *cf);
static void *ngx_http_llm_create_main_conf(ngx_conf_t *cf);
static char *ngx_http_llm_init_main_conf(ngx_conf_t *cf, void *conf);
static void *ngx_http_llm_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_llm_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child);
static ngx_int_t ngx_http_llm_init(ngx_conf_t *cf);
static ngx_http_llm_engine_t *ngx_http_llm_get_engine(ngx_conf_t *cf,
    ngx_str_t *name);
static char *ngx_http_llm_engine(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_engine_param(ngx_conf_t *cf,
    ngx_http_llm_engine_t *engine, ngx_str_t *value);
static char *ngx_http_llm_pass(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_queue(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_priority(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_positive(ngx_conf_t *cf, void *post, void *data);


static ngx_conf_post_t  ngx_http_llm_positive_post = {
    ngx_http_llm_positive
};


static ngx_command_t  ngx_http_llm_commands[] = {

    { ngx_string("llm_engine"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_2MORE,
      ngx_http_llm_engine,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_pass"),
      NGX_HTTP_LOC_CONF|NGX_HTTP_LIF_CONF|NGX_HTTP_LMT_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_pass,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_keepalive"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_msec_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, keepalive),
      NULL },

    { ngx_string("llm_queue"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE12,
      ngx_http_llm_queue,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_max_context"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, max_context),
      &ngx_http_llm_positive_post },

    { ngx_string("llm_max_tokens"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_num_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, max_tokens),
      &ngx_http_llm_positive_post },

    { ngx_string("llm_prefix_zone"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE123,
      ngx_http_llm_prefix_zone,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_route"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE123,
      ngx_http_llm_route,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_read_body"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_FLAG,
      ngx_conf_set_flag_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_llm_loc_conf_t, read_body),
      NULL },

    { ngx_string("llm_priority"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_http_llm_priority,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_module_ctx = {
    ngx_http_llm_pre,                      /* preconfiguration */
    ngx_http_llm_init,                     /* postconfiguration */

    ngx_http_llm_create_main_conf,         /* create main configuration */
    ngx_http_llm_init_main_conf,           /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_create_loc_conf,          /* create location configuration */
    ngx_http_llm_merge_loc_conf            /* merge location configuration */
};


ngx_module_t  ngx_http_llm_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_module_ctx,              /* module context */
    ngx_http_llm_commands,                 /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_llm_engine_init_process,      /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_llm_engine_exit_process,      /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


/*
 * nginx in one process would start no module again after a reload: connections
 * to engines, timers and what is charged later belong to the configuration that
 * it was started with.
 */

static ngx_int_t
ngx_http_llm_pre(ngx_conf_t *cf)
{
    if (ngx_process == NGX_PROCESS_SINGLE
        && !ngx_is_init_cycle(cf->cycle->old_cycle))
    {
        ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                      "llm module: nginx with \"master_process off\" cannot "
                      "be reloaded: stop it, then start it");
        return NGX_ERROR;
    }

    return ngx_http_llm_variables(cf);
}


static void *
ngx_http_llm_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_llm_main_conf_t  *lmcf;

    lmcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_main_conf_t));
    if (lmcf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&lmcf->engines, cf->pool, 4,
                       sizeof(ngx_http_llm_engine_t *))
        != NGX_OK
        || ngx_array_init(&lmcf->prefix_zones, cf->pool, 1,
                          sizeof(ngx_shm_zone_t *))
           != NGX_OK
        || ngx_array_init(&lmcf->policies, cf->pool, 8,
                          sizeof(ngx_http_llm_policy_t))
           != NGX_OK)
    {
        return NULL;
    }

    return lmcf;
}


/* Engines may be named before they are defined, so they are checked here. */

static char *
ngx_http_llm_init_main_conf(ngx_conf_t *cf, void *conf)
{
    ngx_http_llm_main_conf_t *lmcf = conf;

    ngx_str_t                name = ngx_string("request_id");
    ngx_uint_t               i;
    ngx_http_llm_engine_t  **engines;

    engines = lmcf->engines.elts;

    for (i = 0; i < lmcf->engines.nelts; i++) {
        if (engines[i]->path.len == 0) {
            ngx_log_error(NGX_LOG_EMERG, cf->log, 0,
                          "llm engine \"%V\" not found in %s:%ui",
                          &engines[i]->name, engines[i]->file,
                          engines[i]->line);
            return NGX_CONF_ERROR;
        }
    }

    lmcf->request_id = ngx_http_get_variable_index(cf, &name);

    if (lmcf->request_id == NGX_ERROR) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static void *
ngx_http_llm_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_llm_loc_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_loc_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    conf->keepalive = NGX_CONF_UNSET_MSEC;
    conf->queue_max = NGX_CONF_UNSET_UINT;
    conf->queue_timeout = NGX_CONF_UNSET_MSEC;
    conf->max_context = NGX_CONF_UNSET_UINT;
    conf->max_tokens = NGX_CONF_UNSET_UINT;
    conf->route_zone = NGX_CONF_UNSET_PTR;
    conf->read_body = NGX_CONF_UNSET;
    conf->priority = NGX_CONF_UNSET_PTR;

    return conf;
}


static char *
ngx_http_llm_merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_llm_loc_conf_t *prev = parent;
    ngx_http_llm_loc_conf_t *conf = child;

    ngx_http_core_loc_conf_t  *clcf;
    ngx_http_llm_main_conf_t  *lmcf;

    ngx_conf_merge_msec_value(conf->keepalive, prev->keepalive, 15000);

    /* The two belong to one directive. */

    if (conf->queue_max == NGX_CONF_UNSET_UINT
        && conf->queue_timeout == NGX_CONF_UNSET_MSEC)
    {
        conf->queue_max = prev->queue_max;
        conf->queue_timeout = prev->queue_timeout;
    }

    ngx_conf_init_uint_value(conf->queue_max, 0);
    ngx_conf_init_msec_value(conf->queue_timeout, 0);

    ngx_conf_merge_uint_value(conf->max_context, prev->max_context, 0);
    ngx_conf_merge_uint_value(conf->max_tokens, prev->max_tokens,
                              CHAN_TOKENS_MAX);

    ngx_conf_merge_value(conf->read_body, prev->read_body, 0);

    if (conf->read_body) {
        lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);
        lmcf->read_body = 1;
    }

    ngx_conf_merge_ptr_value(conf->priority, prev->priority, NULL);

    ngx_http_llm_route_merge(prev, conf);

    /* As with other handlers, only "if" and "limit_except" inherit it. */

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->noname && conf->engine == NULL) {
        conf->engine = prev->engine;

        if (clcf->lmt_excpt && clcf->handler == NULL
            && conf->engine != NULL)
        {
            clcf->handler = ngx_http_llm_handler;
        }
    }

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_llm_init(ngx_conf_t *cf)
{
    if (ngx_http_llm_body_init(cf) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_http_llm_variables_check(cf);

    return ngx_http_llm_error_init(cf);
}


static ngx_http_llm_engine_t *
ngx_http_llm_get_engine(ngx_conf_t *cf, ngx_str_t *name)
{
    ngx_uint_t                 i;
    ngx_http_llm_engine_t     *engine, **p;
    ngx_http_llm_main_conf_t  *lmcf;

    lmcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_module);
    p = lmcf->engines.elts;

    for (i = 0; i < lmcf->engines.nelts; i++) {
        if (p[i]->name.len == name->len
            && ngx_strncmp(p[i]->name.data, name->data, name->len) == 0)
        {
            return p[i];
        }
    }

    engine = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_engine_t));
    if (engine == NULL) {
        return NULL;
    }

    p = ngx_array_push(&lmcf->engines);
    if (p == NULL) {
        return NULL;
    }

    *p = engine;

    engine->name = *name;
    engine->file = cf->conf_file->file.name.data;
    engine->line = cf->conf_file->line;

    return engine;
}


static char *
ngx_http_llm_engine(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    char                   *rv;
    ngx_str_t              *value, path;
    ngx_uint_t              i;
    struct sockaddr_un      sun;
    ngx_http_llm_engine_t  *engine;

    value = cf->args->elts;

    engine = ngx_http_llm_get_engine(cf, &value[1]);
    if (engine == NULL) {
        return NGX_CONF_ERROR;
    }

    if (engine->path.len != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "duplicate llm engine \"%V\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (value[2].len <= 5 || ngx_strncmp(value[2].data, "unix:", 5) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid socket \"%V\", it must be \"unix:PATH\"",
                           &value[2]);
        return NGX_CONF_ERROR;
    }

    path.data = value[2].data + 5;
    path.len = value[2].len - 5;

    if (ngx_conf_full_name(cf->cycle, &path, 0) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    if (path.len >= sizeof(sun.sun_path)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "too long socket path \"%V\"", &path);
        return NGX_CONF_ERROR;
    }

    engine->path = path;
    engine->lane_size = 0;
    engine->resume = 30000;

    for (i = 3; i < cf->args->nelts; i++) {
        rv = ngx_http_llm_engine_param(cf, engine, &value[i]);

        if (rv != NGX_CONF_OK) {
            return rv;
        }
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_engine_param(ngx_conf_t *cf, ngx_http_llm_engine_t *engine,
    ngx_str_t *value)
{
    off_t      size;
    ngx_int_t  time;
    ngx_str_t  s;

    if (ngx_http_llm_arg(value, "lane", &s)) {
        size = ngx_parse_offset(&s);

        if (size < 2 * CHAN_RING_MIN
            || size > (off_t) 2 * (off_t) CHAN_RING_MAX)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid lane size \"%V\", it must be between "
                               "512k and 2g", value);
            return NGX_CONF_ERROR;
        }

        engine->lane_size = size;

        return NGX_CONF_OK;
    }

    if (ngx_http_llm_arg(value, "resume", &s)) {
        time = ngx_parse_time(&s, 0);

        if (time == NGX_ERROR) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid time \"%V\"",
                               value);
            return NGX_CONF_ERROR;
        }

        engine->resume = time;

        return NGX_CONF_OK;
    }

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                       value);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_llm_pass(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    if (llcf->engine != NULL) {
        return "is duplicate";
    }

    value = cf->args->elts;

    llcf->engine = ngx_http_llm_get_engine(cf, &value[1]);
    if (llcf->engine == NULL) {
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    clcf->handler = ngx_http_llm_handler;

    if (clcf->name.len && clcf->name.data[clcf->name.len - 1] == '/') {
        clcf->auto_redirect = 1;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_queue(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    ngx_int_t    n;
    ngx_str_t   *value, s;
    ngx_uint_t   i;

    if (llcf->queue_max != NGX_CONF_UNSET_UINT
        || llcf->queue_timeout != NGX_CONF_UNSET_MSEC)
    {
        return "is duplicate";
    }

    value = cf->args->elts;

    for (i = 1; i < cf->args->nelts; i++) {

        if (ngx_http_llm_arg(&value[i], "max", &s)) {
            n = ngx_atoi(s.data, s.len);

            if (n == NGX_ERROR || n == 0 || n > NGX_MAX_INT32_VALUE) {
                goto invalid;
            }

            llcf->queue_max = n;
            continue;
        }

        if (ngx_http_llm_arg(&value[i], "timeout", &s)) {
            n = ngx_parse_time(&s, 0);

            if (n == NGX_ERROR || n == 0 || n > NGX_MAX_INT32_VALUE) {
                goto invalid;
            }

            llcf->queue_timeout = n;
            continue;
        }

        goto invalid;
    }

    return NGX_CONF_OK;

invalid:

    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                       &value[i]);

    return NGX_CONF_ERROR;
}


static char *
ngx_http_llm_priority(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_loc_conf_t *llcf = conf;

    int32_t                            priority;
    ngx_str_t                         *value;
    ngx_http_compile_complex_value_t   ccv;

    if (llcf->priority != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    llcf->priority = ngx_palloc(cf->pool, sizeof(ngx_http_complex_value_t));
    if (llcf->priority == NULL) {
        return NGX_CONF_ERROR;
    }

    ngx_memzero(&ccv, sizeof(ngx_http_compile_complex_value_t));

    ccv.cf = cf;
    ccv.value = &value[1];
    ccv.complex_value = llcf->priority;

    if (ngx_http_compile_complex_value(&ccv) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    /* A variable's value is looked at with each request. */

    if (llcf->priority->lengths == NULL
        && ngx_http_llm_priority_value(&value[1], &priority) != NGX_OK)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid priority \"%V\", it must be between "
                           "-%d and %d", &value[1], NGX_HTTP_LLM_PRIORITY_MAX,
                           NGX_HTTP_LLM_PRIORITY_MAX);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_positive(ngx_conf_t *cf, void *post, void *data)
{
    ngx_int_t *np = data;

    if (*np <= 0 || (uint64_t) *np >= CHAN_TOKENS_MAX) {
        return "must be above 0 and below 2^32 - 1";
    }

    return NGX_CONF_OK;
}
