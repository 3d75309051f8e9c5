/*
 * llm_price, llm_price_window and $llm_cost.
 *
 * A level that has directives of one of the two replaces those of the level
 * above, as with nginx's other lists.  The first window that has the time of a
 * request counts.
 */

#include "ngx_http_llm_price.h"

#include "ledger/ledger_decimal.h"
#include "ledger/ledger_price.h"
#include "ledger/ledger_zone.h"


#define NGX_HTTP_LLM_ZONES  "/usr/share/zoneinfo/"


typedef struct {
    ngx_str_t                model;    /* empty: all others */
    ledger_price_t           price;
} ngx_http_llm_price_t;

typedef struct {
    ledger_hours_t           hours;
    ledger_zone_t           *zone;     /* NULL: UTC */
    ledger_percent_t         percent;
} ngx_http_llm_window_t;

typedef struct {
    ngx_array_t             *prices;   /* ngx_http_llm_price_t */
    ngx_array_t             *windows;  /* ngx_http_llm_window_t */
} ngx_http_llm_price_conf_t;

/* "name=" and what stands behind it. */

typedef struct {
    ngx_str_t                name;
    ngx_str_t                value;    /* data NULL: not there */
} ngx_http_llm_price_arg_t;


static ngx_int_t ngx_http_llm_price_variables(ngx_conf_t *cf);
static void *ngx_http_llm_price_create_conf(ngx_conf_t *cf);
static char *ngx_http_llm_price_merge_conf(ngx_conf_t *cf, void *parent,
    void *child);
static char *ngx_http_llm_price(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static char *ngx_http_llm_price_window(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
static ngx_array_t *ngx_http_llm_price_array(ngx_conf_t *cf,
    ngx_array_t **array, size_t size);
static char *ngx_http_llm_price_args(ngx_conf_t *cf, ngx_uint_t first,
    ngx_http_llm_price_arg_t *args, ngx_uint_t required);
static char *ngx_http_llm_price_dollars(ngx_conf_t *cf,
    ngx_http_llm_price_arg_t *arg, int64_t *value);
static char *ngx_http_llm_price_percent(ngx_conf_t *cf,
    ngx_http_llm_price_arg_t *arg, uint32_t *value);
static char *ngx_http_llm_price_zone(ngx_conf_t *cf, ngx_str_t *name,
    ledger_zone_t **zone);
static ngx_int_t ngx_http_llm_price_load(ngx_conf_t *cf, ngx_str_t *path,
    u_char **data, size_t *size);
static ngx_http_llm_price_t *ngx_http_llm_price_find(
    ngx_http_llm_price_conf_t *plcf, const char *model);
static ngx_int_t ngx_http_llm_price_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);


static ngx_command_t  ngx_http_llm_price_commands[] = {

    { ngx_string("llm_price"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF
                        |NGX_CONF_1MORE,
      ngx_http_llm_price,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

    { ngx_string("llm_price_window"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF
                        |NGX_CONF_1MORE,
      ngx_http_llm_price_window,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_price_module_ctx = {
    ngx_http_llm_price_variables,          /* preconfiguration */
    NULL,                                  /* postconfiguration */

    NULL,                                  /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_price_create_conf,        /* create location configuration */
    ngx_http_llm_price_merge_conf          /* merge location configuration */
};


ngx_module_t  ngx_http_llm_price_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_price_module_ctx,        /* module context */
    ngx_http_llm_price_commands,           /* module directives */
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


static ngx_str_t  ngx_http_llm_price_cost = ngx_string("llm_cost");


static ngx_int_t
ngx_http_llm_price_variables(ngx_conf_t *cf)
{
    ngx_http_variable_t  *var;

    var = ngx_http_add_variable(cf, &ngx_http_llm_price_cost,
                                NGX_HTTP_VAR_NOCACHEABLE);
    if (var == NULL) {
        return NGX_ERROR;
    }

    var->get_handler = ngx_http_llm_price_variable;

    return NGX_OK;
}


static void *
ngx_http_llm_price_create_conf(ngx_conf_t *cf)
{
    ngx_http_llm_price_conf_t  *conf;

    conf = ngx_palloc(cf->pool, sizeof(ngx_http_llm_price_conf_t));
    if (conf == NULL) {
        return NULL;
    }

    conf->prices = NGX_CONF_UNSET_PTR;
    conf->windows = NGX_CONF_UNSET_PTR;

    return conf;
}


static char *
ngx_http_llm_price_merge_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_llm_price_conf_t *prev = parent;
    ngx_http_llm_price_conf_t *conf = child;

    ngx_conf_merge_ptr_value(conf->prices, prev->prices, NULL);
    ngx_conf_merge_ptr_value(conf->windows, prev->windows, NULL);

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_price(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_price_conf_t *plcf = conf;

    char                  *rv;
    ngx_uint_t             i;
    ngx_array_t           *array;
    ngx_http_llm_price_t  *price, *p;

    ngx_http_llm_price_arg_t  args[] = {
        { ngx_string("hit"), ngx_null_string },
        { ngx_string("miss"), ngx_null_string },
        { ngx_string("output"), ngx_null_string },
        { ngx_string("model"), ngx_null_string },
        { ngx_null_string, ngx_null_string }
    };

    array = ngx_http_llm_price_array(cf, &plcf->prices,
                                     sizeof(ngx_http_llm_price_t));

    if (array == NULL) {
        return plcf->prices == NULL ? NGX_CONF_OK : NGX_CONF_ERROR;
    }

    rv = ngx_http_llm_price_args(cf, 1, args, 3);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    p = array->elts;

    for (i = 0; i < array->nelts; i++) {
        if (p[i].model.len == args[3].value.len
            && ngx_strncmp(p[i].model.data, args[3].value.data,
                           p[i].model.len)
               == 0)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate price of model \"%V\"",
                               &p[i].model);
            return NGX_CONF_ERROR;
        }
    }

    price = ngx_array_push(array);
    if (price == NULL) {
        return NGX_CONF_ERROR;
    }

    price->model = args[3].value;

    if (ngx_http_llm_price_dollars(cf, &args[0], &price->price.hit)
        != NGX_CONF_OK
        || ngx_http_llm_price_dollars(cf, &args[1], &price->price.miss)
           != NGX_CONF_OK
        || ngx_http_llm_price_dollars(cf, &args[2], &price->price.output)
           != NGX_CONF_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_price_window(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_price_conf_t *plcf = conf;

    char                   *rv;
    ngx_str_t              *value;
    ngx_array_t            *array;
    ngx_http_llm_window_t  *window;

    ngx_http_llm_price_arg_t  args[] = {
        { ngx_string("hit"), ngx_null_string },
        { ngx_string("miss"), ngx_null_string },
        { ngx_string("output"), ngx_null_string },
        { ngx_null_string, ngx_null_string }
    };

    array = ngx_http_llm_price_array(cf, &plcf->windows,
                                     sizeof(ngx_http_llm_window_t));

    if (array == NULL) {
        return plcf->windows == NULL ? NGX_CONF_OK : NGX_CONF_ERROR;
    }

    value = cf->args->elts;

    window = ngx_array_push(array);
    if (window == NULL) {
        return NGX_CONF_ERROR;
    }

    if (ledger_hours_parse((char *) value[1].data, &window->hours) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid hours \"%V\", they must be "
                           "\"HH:MM-HH:MM\"", &value[1]);
        return NGX_CONF_ERROR;
    }

    if (cf->args->nelts < 3) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have a time zone", &value[0]);
        return NGX_CONF_ERROR;
    }

    rv = ngx_http_llm_price_zone(cf, &value[2], &window->zone);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    rv = ngx_http_llm_price_args(cf, 3, args, 3);
    if (rv != NGX_CONF_OK) {
        return rv;
    }

    if (ngx_http_llm_price_percent(cf, &args[0], &window->percent.hit)
        != NGX_CONF_OK
        || ngx_http_llm_price_percent(cf, &args[1], &window->percent.miss)
           != NGX_CONF_OK
        || ngx_http_llm_price_percent(cf, &args[2], &window->percent.output)
           != NGX_CONF_OK)
    {
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


/* The level's own list; NULL: "off", which `*array` is then, or an error. */

static ngx_array_t *
ngx_http_llm_price_array(ngx_conf_t *cf, ngx_array_t **array, size_t size)
{
    ngx_str_t    *value;
    ngx_array_t  *a;

    value = cf->args->elts;
    a = *array;

    if (cf->args->nelts == 2 && ngx_strcmp(value[1].data, "off") == 0) {

        if (a == NGX_CONF_UNSET_PTR) {
            *array = NULL;
            return NULL;
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V off\" stands beside others", &value[0]);

        *array = NGX_CONF_UNSET_PTR;
        return NULL;
    }

    if (a == NULL) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V off\" stands beside others", &value[0]);

        *array = NGX_CONF_UNSET_PTR;
        return NULL;
    }

    if (a == NGX_CONF_UNSET_PTR) {
        a = ngx_array_create(cf->pool, 2, size);

        if (a != NULL) {
            *array = a;
        }
    }

    return a;
}


/* Each at most once, the first `required` of them at least once. */

static char *
ngx_http_llm_price_args(ngx_conf_t *cf, ngx_uint_t first,
    ngx_http_llm_price_arg_t *args, ngx_uint_t required)
{
    ngx_str_t                 *value;
    ngx_uint_t                 i, k;
    ngx_http_llm_price_arg_t  *arg;

    value = cf->args->elts;

    for (i = first; i < cf->args->nelts; i++) {

        for (arg = args; arg->name.len != 0; arg++) {
            if (value[i].len > arg->name.len
                && value[i].data[arg->name.len] == '='
                && ngx_strncmp(value[i].data, arg->name.data, arg->name.len)
                   == 0)
            {
                break;
            }
        }

        if (arg->name.len == 0
            || value[i].len == arg->name.len + 1)
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        if (arg->value.data != NULL) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "duplicate parameter \"%V\"", &value[i]);
            return NGX_CONF_ERROR;
        }

        arg->value.data = value[i].data + arg->name.len + 1;
        arg->value.len = value[i].len - arg->name.len - 1;
    }

    for (k = 0; k < required; k++) {
        if (args[k].value.data == NULL) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "\"%V\" must have \"%V\" parameter",
                               &value[0], &args[k].name);
            return NGX_CONF_ERROR;
        }
    }

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_price_dollars(ngx_conf_t *cf, ngx_http_llm_price_arg_t *arg,
    int64_t *value)
{
    ledger_int_t  n;

    if (ledger_decimal((char *) arg->value.data, LEDGER_MICRO,
                       LEDGER_PRICE_MAX, &n)
        != 0)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid price \"%V=%V\", it must be a number of "
                           "dollars up to 1000000 with at most %d decimal "
                           "places", &arg->name, &arg->value, LEDGER_MICRO);
        return NGX_CONF_ERROR;
    }

    *value = (int64_t) n;

    return NGX_CONF_OK;
}


static char *
ngx_http_llm_price_percent(ngx_conf_t *cf, ngx_http_llm_price_arg_t *arg,
    uint32_t *value)
{
    ngx_int_t  n;

    n = NGX_ERROR;

    if (arg->value.data[arg->value.len - 1] == '%') {
        n = ngx_atoi(arg->value.data, arg->value.len - 1);
    }

    if (n == NGX_ERROR || n > LEDGER_PERCENT_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid percentage \"%V=%V\", it must be between "
                           "0%% and %d%%", &arg->name, &arg->value,
                           LEDGER_PERCENT_MAX);
        return NGX_CONF_ERROR;
    }

    *value = n;

    return NGX_CONF_OK;
}


/* "UTC" needs no file; a path is one as well. */

static char *
ngx_http_llm_price_zone(ngx_conf_t *cf, ngx_str_t *name,
    ledger_zone_t **zone)
{
    char        err[LEDGER_ZONE_ERR];
    size_t      size;
    u_char     *data;
    ngx_str_t   path;
    ngx_uint_t  i;

    if (ngx_strcmp(name->data, "UTC") == 0) {
        *zone = NULL;
        return NGX_CONF_OK;
    }

    path = *name;

    if (name->len == 0 || name->data[0] != '/') {

        for (i = 0; i < name->len; i++) {
            if (name->data[i] == '.' || name->data[i] == '=') {
                break;
            }
        }

        if (i < name->len || name->len == 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid time zone \"%V\"", name);
            return NGX_CONF_ERROR;
        }

        path.len = sizeof(NGX_HTTP_LLM_ZONES) - 1 + name->len;
        path.data = ngx_pnalloc(cf->pool, path.len + 1);
        if (path.data == NULL) {
            return NGX_CONF_ERROR;
        }

        (void) ngx_sprintf(path.data, NGX_HTTP_LLM_ZONES "%V%Z", name);
    }

    if (ngx_http_llm_price_load(cf, &path, &data, &size) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    *zone = ngx_palloc(cf->pool, sizeof(ledger_zone_t));
    if (*zone == NULL) {
        return NGX_CONF_ERROR;
    }

    if (ledger_zone_parse(*zone, data, size, err) != 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "invalid time zone \"%V\", \"%V\": %s", name,
                           &path, err);
        return NGX_CONF_ERROR;
    }

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_llm_price_load(ngx_conf_t *cf, ngx_str_t *path, u_char **data,
    size_t *size)
{
    ssize_t     n;
    ngx_int_t   rc;
    ngx_file_t  file;

    ngx_memzero(&file, sizeof(ngx_file_t));
    file.name = *path;
    file.log = cf->log;

    rc = NGX_ERROR;

    file.fd = ngx_open_file(path->data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (file.fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_open_file_n " \"%V\" failed", path);
        return NGX_ERROR;
    }

    if (ngx_fd_info(file.fd, &file.info) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_fd_info_n " \"%V\" failed", path);
        goto done;
    }

    if (!ngx_is_file(&file.info)
        || ngx_file_size(&file.info) > LEDGER_ZONE_FILE)
    {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" is no time zone file", path);
        goto done;
    }

    *size = ngx_file_size(&file.info);

    *data = ngx_pnalloc(cf->pool, *size + 1);
    if (*data == NULL) {
        goto done;
    }

    n = ngx_read_file(&file, *data, *size, 0);

    if (n != (ssize_t) *size) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, n == NGX_ERROR ? ngx_errno : 0,
                           ngx_read_file_n " \"%V\" failed", path);
        goto done;
    }

    rc = NGX_OK;

done:

    if (ngx_close_file(file.fd) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_ALERT, cf->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", path);
    }

    return rc;
}


ngx_int_t
ngx_http_llm_cost(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    int64_t *nano)
{
    time_t                      time;
    uint64_t                    hit;
    ngx_uint_t                  i;
    ledger_percent_t            percent;
    ngx_http_llm_price_t       *price;
    ngx_http_llm_window_t      *window;
    ngx_http_llm_price_conf_t  *plcf;

    plcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_price_module);

    price = ngx_http_llm_price_find(plcf, ctx->params.model);

    if (price == NULL) {
        return NGX_DECLINED;
    }

    percent.hit = 100;
    percent.miss = 100;
    percent.output = 100;

    if (plcf->windows != NULL) {
        time = ctx->settled ? ctx->end : ngx_time();
        window = plcf->windows->elts;

        for (i = 0; i < plcf->windows->nelts; i++) {
            if (ledger_hours_has(&window[i].hours, window[i].zone, time)) {
                percent = window[i].percent;
                break;
            }
        }
    }

    percent.all = ctx->waived ? 0 : 100 - ngx_min(ctx->discount, 100);

    hit = ngx_min(ctx->cached_tokens, ctx->prompt_tokens);

    *nano = ledger_price_cost(&price->price, &percent, hit,
                              ctx->prompt_tokens - hit,
                              ctx->completion_tokens);

    return NGX_OK;
}


/* A model's own price, or that of all others. */

static ngx_http_llm_price_t *
ngx_http_llm_price_find(ngx_http_llm_price_conf_t *plcf, const char *model)
{
    size_t                 len;
    ngx_uint_t             i;
    ngx_http_llm_price_t  *price, *other;

    if (plcf->prices == NULL) {
        return NULL;
    }

    len = ngx_strlen(model);
    price = plcf->prices->elts;
    other = NULL;

    for (i = 0; i < plcf->prices->nelts; i++) {

        if (price[i].model.len == 0) {
            other = &price[i];

        } else if (price[i].model.len == len
                   && ngx_strncmp(price[i].model.data, model, len) == 0)
        {
            return &price[i];
        }
    }

    return other;
}


static ngx_int_t
ngx_http_llm_price_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    char                *p;
    int64_t              nano;
    ngx_http_llm_ctx_t  *ctx;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx == NULL || ngx_http_llm_cost(r, ctx, &nano) != NGX_OK) {
        v->not_found = 1;
        return NGX_OK;
    }

    p = ngx_pnalloc(r->pool, LEDGER_DIGITS);
    if (p == NULL) {
        return NGX_ERROR;
    }

    p = ledger_exact(p, nano, LEDGER_NANO);

    return ngx_http_llm_variable_set(v, (u_char *) p, ngx_strlen(p));
}
