/*
 * llm_ledger: the day's accounts and models, counted.
 */

#include "ngx_http_llm_ledger.h"
#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_price.h"
#include "ngx_http_llm_table.h"


#define NGX_HTTP_LLM_LEDGER_SIZE   (4 * 1024 * 1024)
#define NGX_HTTP_LLM_OTHERS        "(others)"


static ngx_int_t ngx_http_llm_ledger_log(ngx_http_request_t *r);
static void ngx_http_llm_ledger_add(ngx_http_llm_table_t *table, u_char kind,
    u_char *name, size_t len, ngx_http_llm_day_t *one);
static ngx_int_t ngx_http_llm_ledger_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static void *ngx_http_llm_ledger_create_conf(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_ledger_init(ngx_conf_t *cf);
static char *ngx_http_llm_ledger(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_command_t  ngx_http_llm_ledger_commands[] = {

    { ngx_string("llm_ledger"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_llm_ledger,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_ledger_module_ctx = {
    NULL,                                  /* preconfiguration */
    ngx_http_llm_ledger_init,              /* postconfiguration */

    ngx_http_llm_ledger_create_conf,       /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    NULL,                                  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_ledger_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_ledger_module_ctx,       /* module context */
    ngx_http_llm_ledger_commands,          /* module directives */
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


/* The same requests as in a usage log of locations with llm_pass. */

static ngx_int_t
ngx_http_llm_ledger_log(ngx_http_request_t *r)
{
    int64_t                      nano;
    ngx_str_t                    name;
    ngx_uint_t                   status;
    const char                  *model;
    ngx_slab_pool_t             *shpool;
    ngx_http_llm_ctx_t          *ctx;
    ngx_http_llm_day_t           one;
    ngx_http_llm_table_t        *table;
    ngx_http_llm_account_t      *account;
    ngx_http_llm_loc_conf_t     *llcf;
    ngx_http_llm_ledger_conf_t  *lcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);
    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx != NULL ? ctx->models
                      || (llcf->engine == NULL
                          && ctx->admission == NGX_HTTP_LLM_UNASKED)
                    : llcf->engine == NULL)
    {
        return NGX_OK;
    }

    ngx_memzero(&one, sizeof(ngx_http_llm_day_t));

    status = r->err_status != 0 ? r->err_status : r->headers_out.status;

    one.requests = 1;
    one.failed = (status >= NGX_HTTP_BAD_REQUEST);

    if (ctx != NULL) {
        one.input = ctx->prompt_tokens;
        one.hit = ngx_min(ctx->cached_tokens, ctx->prompt_tokens);
        one.output = ctx->completion_tokens;
        one.reasoning = ctx->reasoning_tokens;

        if (ngx_http_llm_cost(r, ctx, &nano) == NGX_OK) {
            one.nano = nano;

        } else {
            one.unpriced = (one.input != 0 || one.output != 0);
        }
    }

    account = ngx_http_llm_account(r);
    ngx_str_set(&name, "");

    if (account != NULL) {
        name = account->name;
    }

    model = (ctx != NULL && ctx->parsed) ? ctx->params.model : "";

    lcf = ngx_http_get_module_main_conf(r, ngx_http_llm_ledger_module);
    shpool = (ngx_slab_pool_t *) lcf->shm_zone->shm.addr;
    table = shpool->data;

    ngx_shmtx_lock(&shpool->mutex);

    ngx_http_llm_ledger_add(table, NGX_HTTP_LLM_LEDGER_ALL[0],
                            (u_char *) "", 0, &one);
    ngx_http_llm_ledger_add(table, 'a', name.data, name.len, &one);
    ngx_http_llm_ledger_add(table, 'm', (u_char *) model, ngx_strlen(model),
                            &one);

    ngx_shmtx_unlock(&shpool->mutex);

    return NGX_OK;
}


static void
ngx_http_llm_ledger_add(ngx_http_llm_table_t *table, u_char kind,
    u_char *name, size_t len, ngx_http_llm_day_t *one)
{
    u_char               buf[NGX_HTTP_LLM_TABLE_NAME];
    int64_t              today;
    ngx_str_t            key;
    ngx_http_llm_day_t  *day;

    len = ngx_min(len, sizeof(buf) - 1);

    buf[0] = kind;
    ngx_memcpy(buf + 1, name, len);

    key.data = buf;
    key.len = 1 + len;

    /*
     * Accounts are as many as the operator made, but some servers behind
     * llm_meter take any name for a model: half of the room is theirs.
     */

    if (kind == 'm' && table->n >= table->nslots / 8 * 3) {
        day = ngx_http_llm_table_find(table, &key);

    } else {
        day = ngx_http_llm_table_get(table, &key);
    }

    if (day == NULL) {
        key.len = ngx_sprintf(buf + 1, NGX_HTTP_LLM_OTHERS) - buf;
        day = ngx_http_llm_table_find(table, &key);
    }

    today = ngx_http_llm_ledger_now();

    if (day->day != today) {
        ngx_memzero(day, sizeof(ngx_http_llm_day_t));
        day->day = today;
    }

    day->requests += one->requests;
    day->failed += one->failed;
    day->unpriced += one->unpriced;
    day->input += one->input;
    day->hit += one->hit;
    day->output += one->output;
    day->reasoning += one->reasoning;
    day->nano += one->nano;
}


ngx_int_t
ngx_http_llm_ledger_today(ngx_http_request_t *r, ngx_http_llm_day_t *day)
{
    ngx_str_t                    key = ngx_string(NGX_HTTP_LLM_LEDGER_ALL);
    ngx_slab_pool_t             *shpool;
    ngx_http_llm_day_t          *all;
    ngx_http_llm_ledger_conf_t  *lcf;

    lcf = ngx_http_get_module_main_conf(r, ngx_http_llm_ledger_module);

    if (lcf->shm_zone == NULL) {
        return NGX_DECLINED;
    }

    shpool = (ngx_slab_pool_t *) lcf->shm_zone->shm.addr;

    ngx_shmtx_lock(&shpool->mutex);

    all = ngx_http_llm_table_find(shpool->data, &key);
    *day = *all;

    ngx_shmtx_unlock(&shpool->mutex);

    if (day->day != ngx_http_llm_ledger_now()) {
        ngx_memzero(day, sizeof(ngx_http_llm_day_t));
        day->day = ngx_http_llm_ledger_now();
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_ledger_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_uint_t             i;
    ngx_slab_pool_t       *shpool;
    ngx_http_llm_table_t  *table;

    static ngx_str_t  always[] = {
        ngx_string(NGX_HTTP_LLM_LEDGER_ALL),
        ngx_string("a" NGX_HTTP_LLM_OTHERS),
        ngx_string("m" NGX_HTTP_LLM_OTHERS)
    };

    if (data != NULL || shm_zone->shm.exists) {
        return NGX_OK;
    }

    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    table = ngx_http_llm_table_create(shpool, sizeof(ngx_http_llm_day_t));
    if (table == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < sizeof(always) / sizeof(always[0]); i++) {
        if (ngx_http_llm_table_get(table, &always[i]) == NULL) {
            return NGX_ERROR;
        }
    }

    shpool->data = table;

    return NGX_OK;
}


static void *
ngx_http_llm_ledger_create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_ledger_conf_t));
}


static ngx_int_t
ngx_http_llm_ledger_init(ngx_conf_t *cf)
{
    ngx_http_llm_ledger_conf_t  *lcf;

    lcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_ledger_module);

    if (lcf->shm_zone == NULL) {
        return NGX_OK;
    }

    return ngx_http_llm_add_handler(cf, NGX_HTTP_LOG_PHASE,
                                    ngx_http_llm_ledger_log);
}


ngx_int_t
ngx_http_llm_ledger_need(ngx_conf_t *cf)
{
    ngx_str_t                    name = ngx_string("llm_ledger");
    ngx_http_llm_ledger_conf_t  *lcf;

    lcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_ledger_module);

    if (lcf->shm_zone != NULL) {
        return NGX_OK;
    }

    lcf->shm_zone = ngx_shared_memory_add(cf, &name,
                                          NGX_HTTP_LLM_LEDGER_SIZE,
                                          &ngx_http_llm_ledger_module);
    if (lcf->shm_zone == NULL) {
        return NGX_ERROR;
    }

    /* Only for the next cycle, which is told so by it. */

    lcf->shm_zone->data = lcf;
    lcf->shm_zone->init = ngx_http_llm_ledger_init_zone;

    return NGX_OK;
}


static char *
ngx_http_llm_ledger(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->handler == ngx_http_llm_ledger_handler) {
        return "is duplicate";
    }

    clcf->handler = ngx_http_llm_ledger_handler;

    return ngx_http_llm_ledger_need(cf) == NGX_OK ? NGX_CONF_OK
                                                  : NGX_CONF_ERROR;
}
