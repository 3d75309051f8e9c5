/*
 * llm_response_cache: directives, variable, and the steps before and after
 * the engine (ngx_http_llm_policy.h).
 */

#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_balance.h"
#include "ngx_http_llm_policy.h"
#include "ngx_http_llm_response.h"


typedef enum {
    NGX_HTTP_LLM_RESPONSE_OFF = 0,
    NGX_HTTP_LLM_RESPONSE_BYPASS,
    NGX_HTTP_LLM_RESPONSE_MISS,
    NGX_HTTP_LLM_RESPONSE_HIT
} ngx_http_llm_response_status_e;


typedef struct {
    ngx_array_t                      caches;   /* ngx_http_file_cache_t * */
} ngx_http_llm_response_main_conf_t;

typedef struct {
    ngx_shm_zone_t                  *zone;     /* NULL: off */
    ngx_uint_t                       cached;   /* percent of the price */
} ngx_http_llm_response_loc_conf_t;

typedef struct {
    ngx_http_llm_response_status_e   status;
    ngx_http_cache_t                *cache;    /* NULL: nothing is kept */
} ngx_http_llm_response_ctx_t;


static ngx_int_t ngx_http_llm_response_admit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_response_wanted(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_response_solvent(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_response_keep(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_response_header(ngx_http_request_t *r,
    ngx_http_llm_response_status_e status);
static void ngx_http_llm_response_done(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_response_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_response_add_variables(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_response_init(ngx_conf_t *cf);
static void *ngx_http_llm_response_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_llm_response_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_llm_response_merge_loc_conf(ngx_conf_t *cf,
    void *parent, void *child);
static char *ngx_http_llm_response_cache(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_str_t  ngx_http_llm_response_names[] = {
    ngx_null_string,
    ngx_string("BYPASS"),
    ngx_string("MISS"),
    ngx_string("HIT")
};


static ngx_command_t  ngx_http_llm_response_commands[] = {

    { ngx_string("llm_response_cache_path"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_2MORE,
      ngx_http_file_cache_set_slot,
      NGX_HTTP_MAIN_CONF_OFFSET,
      offsetof(ngx_http_llm_response_main_conf_t, caches),
      &ngx_http_llm_response_cache_module },

    { ngx_string("llm_response_cache"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE12,
      ngx_http_llm_response_cache,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_response_cache_module_ctx = {
    ngx_http_llm_response_add_variables,   /* preconfiguration */
    ngx_http_llm_response_init,            /* postconfiguration */

    ngx_http_llm_response_create_main_conf,    /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_response_create_loc_conf, /* create location configuration */
    ngx_http_llm_response_merge_loc_conf   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_response_cache_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_response_cache_module_ctx,   /* module context */
    ngx_http_llm_response_commands,        /* module directives */
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
ngx_http_llm_response_admit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    u_char                            *data;
    ngx_http_llm_response_ctx_t       *rctx;
    ngx_http_llm_response_loc_conf_t  *rlcf;

    rlcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_response_cache_module);

    if (rlcf->zone == NULL || ctx->engine == NULL) {
        return NGX_OK;
    }

    rctx = ngx_pcalloc(r->pool, sizeof(ngx_http_llm_response_ctx_t));
    if (rctx == NULL) {
        return NGX_ERROR;
    }

    ngx_http_set_ctx(r, rctx, ngx_http_llm_response_cache_module);

    data = NULL;
    rctx->status = NGX_HTTP_LLM_RESPONSE_BYPASS;

    if (ngx_http_llm_response_wanted(r, ctx)) {

        rctx->status = NGX_HTTP_LLM_RESPONSE_MISS;

        if (ngx_http_llm_response_open(r, ctx, rlcf->zone->data, &rctx->cache,
                                       &data)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    if (data == NULL) {

        if (rctx->cache != NULL
            && ngx_http_llm_response_keep(r, ctx) != NGX_OK)
        {
            return NGX_ERROR;
        }

        return ngx_http_llm_response_header(r, rctx->status);
    }

    /* What costs something is not given on credit: a later step says so. */

    if (rlcf->cached != 0 && !ngx_http_llm_response_solvent(r)) {
        rctx->status = NGX_HTTP_LLM_RESPONSE_BYPASS;
        return ngx_http_llm_response_header(r, rctx->status);
    }

    rctx->status = NGX_HTTP_LLM_RESPONSE_HIT;

    if (ngx_http_llm_response_header(r, rctx->status) != NGX_OK
        || ngx_http_llm_choices(ctx) != NGX_OK)
    {
        return NGX_ERROR;
    }

    ctx->admission = NGX_HTTP_LLM_ANSWERED;
    ctx->discount = 100 - rlcf->cached;

    if (ngx_http_llm_replay(ctx, data) != NGX_OK) {
        return NGX_ERROR;
    }

    return NGX_DONE;
}


/* Whether its answer would be the same again, and an old one will do. */

static ngx_int_t
ngx_http_llm_response_wanted(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    if (ctx->params.submit.temperature != 0
        && !(ctx->params.submit.flags & CHAN_F_SEED))
    {
        return 0;
    }

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */; i++) {

        if (i >= part->nelts) {

            if (part->next == NULL) {
                break;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == sizeof("Cache-Control") - 1
            && ngx_strncasecmp(h[i].key.data, (u_char *) "Cache-Control",
                               sizeof("Cache-Control") - 1)
               == 0
            && (ngx_strlcasestrn(h[i].value.data,
                                 h[i].value.data + h[i].value.len,
                                 (u_char *) "no-store", 8 - 1)
                != NULL
                || ngx_strlcasestrn(h[i].value.data,
                                    h[i].value.data + h[i].value.len,
                                    (u_char *) "no-cache", 8 - 1)
                   != NULL))
        {
            return 0;
        }
    }

    return 1;
}


static ngx_int_t
ngx_http_llm_response_solvent(ngx_http_request_t *r)
{
    int64_t                  nano;
    ngx_http_llm_account_t  *account;

    account = ngx_http_llm_account(r);

    return account == NULL
           || ngx_http_llm_balance(r, &account->name, &nano) != NGX_OK
           || nano > 0;
}


static ngx_int_t
ngx_http_llm_response_keep(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ctx->reply = ngx_palloc(r->pool, sizeof(ngx_http_llm_reply_t));
    if (ctx->reply == NULL) {
        return NGX_ERROR;
    }

    ngx_http_llm_writer_init(&ctx->reply->records, r->pool,
                             NGX_HTTP_LLM_BLOCK);

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_response_header(ngx_http_request_t *r,
    ngx_http_llm_response_status_e status)
{
    return ngx_http_llm_add_header(r, "x-llm-cache",
                                   &ngx_http_llm_response_names[status]);
}


static void
ngx_http_llm_response_done(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_chain_t                  *reply;
    ngx_http_cache_t             *c;
    ngx_http_llm_response_ctx_t  *rctx;

    rctx = ngx_http_get_module_ctx(r, ngx_http_llm_response_cache_module);

    if (rctx == NULL || rctx->cache == NULL) {
        return;
    }

    c = rctx->cache;
    rctx->cache = NULL;

    if (ctx->error.status == 0 && ctx->nactive == 0) {
        reply = ngx_http_llm_reply_take(ctx);

        if (reply != NULL) {
            ngx_http_llm_response_write(r, c, reply);
        }
    }

    ctx->reply = NULL;

    /* Does nothing if a file was written. */

    ngx_http_file_cache_free(c, NULL);
}


static ngx_int_t
ngx_http_llm_response_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t                    *name;
    ngx_http_llm_response_ctx_t  *rctx;

    rctx = ngx_http_get_module_ctx(r, ngx_http_llm_response_cache_module);

    if (rctx == NULL) {
        v->not_found = 1;
        return NGX_OK;
    }

    name = &ngx_http_llm_response_names[rctx->status];

    return ngx_http_llm_variable_set(v, name->data, name->len);
}


static ngx_int_t
ngx_http_llm_response_add_variables(ngx_conf_t *cf)
{
    ngx_str_t             name = ngx_string("llm_cache_status");
    ngx_http_variable_t  *var;

    var = ngx_http_add_variable(cf, &name, NGX_HTTP_VAR_NOCACHEABLE);
    if (var == NULL) {
        return NGX_ERROR;
    }

    var->get_handler = ngx_http_llm_response_variable;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_response_init(ngx_conf_t *cf)
{
    return ngx_http_llm_policy_add(cf, NGX_HTTP_LLM_STEP_CACHE,
                                   ngx_http_llm_response_admit,
                                   ngx_http_llm_response_done);
}


static void *
ngx_http_llm_response_create_main_conf(ngx_conf_t *cf)
{
    ngx_http_llm_response_main_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_response_main_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    if (ngx_array_init(&conf->caches, cf->pool, 4,
                       sizeof(ngx_http_file_cache_t *))
        != NGX_OK)
    {
        return NULL;
    }

    return conf;
}


static void *
ngx_http_llm_response_create_loc_conf(ngx_conf_t *cf)
{
    ngx_http_llm_response_loc_conf_t  *conf;

    conf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_response_loc_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    conf->zone = NGX_CONF_UNSET_PTR;

    return conf;
}


static char *
ngx_http_llm_response_merge_loc_conf(ngx_conf_t *cf, void *parent,
    void *child)
{
    ngx_http_llm_response_loc_conf_t *prev = parent;
    ngx_http_llm_response_loc_conf_t *conf = child;

    if (conf->zone == NGX_CONF_UNSET_PTR) {

        if (prev->zone == NGX_CONF_UNSET_PTR) {
            prev->zone = NULL;
        }

        *conf = *prev;
    }

    if (conf->zone != NULL && conf->zone->data == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"llm_response_cache\" zone \"%V\" is unknown",
                           &conf->zone->shm.name);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_response_cache(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_response_loc_conf_t *rlcf = conf;

    ngx_int_t   n;
    ngx_str_t  *value;

    if (rlcf->zone != NGX_CONF_UNSET_PTR) {
        return "is duplicate";
    }

    value = cf->args->elts;

    if (ngx_strcmp(value[1].data, "off") == 0 && cf->args->nelts == 2) {
        rlcf->zone = NULL;
        return NGX_CONF_OK;
    }

    if (cf->args->nelts == 3) {

        n = NGX_ERROR;

        if (value[2].len > 8
            && ngx_strncmp(value[2].data, "cached=", 7) == 0
            && value[2].data[value[2].len - 1] == '%')
        {
            n = ngx_atoi(value[2].data + 7, value[2].len - 8);
        }

        if (n == NGX_ERROR || n > 100) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[2]);
            return NGX_CONF_ERROR;
        }

        rlcf->cached = n;
    }

    rlcf->zone = ngx_shared_memory_add(cf, &value[1], 0,
                                       &ngx_http_llm_response_cache_module);
    if (rlcf->zone == NULL) {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}
