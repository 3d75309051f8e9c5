/*
 * llm_metrics: the directive, and how it and its like answer.
 */

#include "ngx_http_llm_metrics.h"


#define NGX_HTTP_LLM_METRICS_BLOCK  16384


typedef struct {
    ngx_flag_t                        vllm;
    ngx_uint_t                        on;
} ngx_http_llm_metrics_loc_conf_t;


static ngx_int_t ngx_http_llm_metrics_handler(ngx_http_request_t *r);
static void *ngx_http_llm_metrics_create_main_conf(ngx_conf_t *cf);
static void *ngx_http_llm_metrics_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_llm_metrics(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_command_t  ngx_http_llm_metrics_commands[] = {

    { ngx_string("llm_metrics"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_llm_metrics,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_metrics_module_ctx = {
    NULL,                                  /* preconfiguration */
    ngx_http_llm_counters_init,            /* postconfiguration */

    ngx_http_llm_metrics_create_main_conf, /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_metrics_create_loc_conf,  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_metrics_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_metrics_module_ctx,      /* module context */
    ngx_http_llm_metrics_commands,         /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_llm_history_init_process,     /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_llm_metrics_handler(ngx_http_request_t *r)
{
    ngx_int_t                         rc;
    ngx_str_t                         type;
    ngx_http_llm_writer_t             w;
    ngx_http_llm_metrics_loc_conf_t  *mlcf;

    rc = ngx_http_llm_get_only(r);
    if (rc != NGX_OK) {
        return rc;
    }

    mlcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_metrics_module);

    ngx_http_llm_writer_init(&w, r->pool, NGX_HTTP_LLM_METRICS_BLOCK);

    if (ngx_http_llm_metrics_put(r, &w, mlcf->vllm) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_str_set(&type, "text/plain; version=0.0.4; charset=utf-8");

    return ngx_http_llm_respond(r, &w, &type);
}


ngx_int_t
ngx_http_llm_get_only(ngx_http_request_t *r)
{
    if (!(r->method & (NGX_HTTP_GET|NGX_HTTP_HEAD))) {
        return NGX_HTTP_NOT_ALLOWED;
    }

    return ngx_http_discard_request_body(r);
}


ngx_int_t
ngx_http_llm_respond(ngx_http_request_t *r, ngx_http_llm_writer_t *w,
    ngx_str_t *type)
{
    ngx_int_t     rc;
    ngx_str_t     value;
    ngx_chain_t  *cl, *out;

    if (w->failed || w->first == NULL) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_str_set(&value, "no-store");

    if (ngx_http_llm_add_header(r, "Cache-Control", &value) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    r->headers_out.status = NGX_HTTP_OK;
    r->headers_out.content_length_n = w->size;
    r->headers_out.content_type = *type;
    r->headers_out.content_type_len = type->len;
    r->headers_out.content_type_lowcase = NULL;

    /* Conditions are for files, not for answers. */

    r->disable_not_modified = 1;

    rc = ngx_http_send_header(r);

    if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) {
        return rc;
    }

    out = ngx_http_llm_writer_take(w);

    for (cl = out; cl->next != NULL; cl = cl->next) { /* void */ }

    cl->buf->last_buf = (r == r->main) ? 1 : 0;
    cl->buf->last_in_chain = 1;

    return ngx_http_output_filter(r, out);
}


static void *
ngx_http_llm_metrics_create_main_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_metrics_main_conf_t));
}


static void *
ngx_http_llm_metrics_create_loc_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_metrics_loc_conf_t));
}


static char *
ngx_http_llm_metrics(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_metrics_loc_conf_t *mlcf = conf;

    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    if (mlcf->on) {
        return "is duplicate";
    }

    mlcf->on = 1;

    if (cf->args->nelts == 2) {
        value = cf->args->elts;

        if (ngx_strcmp(value[1].data, "vllm") != 0) {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid parameter \"%V\"", &value[1]);
            return NGX_CONF_ERROR;
        }

        mlcf->vllm = 1;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_llm_metrics_handler;

    return ngx_http_llm_counters_zone(cf);
}
