/*
 * llm_playground: a page to talk to the model, through the API that the same
 * server has under a path.
 */

#include "ngx_http_llm_page.h"


typedef struct {
    ngx_str_t  api;              /* path of the API, empty: no playground */
} ngx_http_llm_playground_loc_conf_t;


static ngx_int_t ngx_http_llm_playground_handler(ngx_http_request_t *r);
static void *ngx_http_llm_playground_create_loc_conf(ngx_conf_t *cf);
static char *ngx_http_llm_playground(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_command_t  ngx_http_llm_playground_commands[] = {

    { ngx_string("llm_playground"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS|NGX_CONF_TAKE1,
      ngx_http_llm_playground,
      NGX_HTTP_LOC_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_playground_module_ctx = {
    NULL,                                  /* preconfiguration */
    NULL,                                  /* postconfiguration */

    NULL,                                  /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    ngx_http_llm_playground_create_loc_conf,  /* create location
                                                 configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_playground_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_playground_module_ctx,   /* module context */
    ngx_http_llm_playground_commands,      /* module directives */
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
ngx_http_llm_playground_handler(ngx_http_request_t *r)
{
    ngx_int_t                            rc;
    ngx_http_llm_playground_loc_conf_t  *plcf;

    rc = ngx_http_llm_get_only(r);
    if (rc != NGX_OK) {
        return rc;
    }

    plcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_playground_module);

    return ngx_http_llm_page_send(r, &ngx_http_llm_playground_page,
                                  &plcf->api);
}


static void *
ngx_http_llm_playground_create_loc_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_playground_loc_conf_t));
}


static char *
ngx_http_llm_playground(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_playground_loc_conf_t *plcf = conf;

    size_t                     i;
    ngx_str_t                 *value;
    ngx_http_core_loc_conf_t  *clcf;

    if (plcf->api.len != 0) {
        return "is duplicate";
    }

    if (cf->args->nelts == 1) {
        ngx_str_set(&plcf->api, "/v1/");

    } else {
        value = cf->args->elts;
        plcf->api = value[1];

        /* It goes into the page as it is. */

        for (i = 0; i < plcf->api.len; i++) {
            if (ngx_strchr("abcdefghijklmnopqrstuvwxyz"
                           "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/-._~",
                           plcf->api.data[i])
                == NULL)
            {
                break;
            }
        }

        if (plcf->api.len == 0 || i != plcf->api.len
            || plcf->api.data[0] != '/'
            || (plcf->api.len > 1 && plcf->api.data[1] == '/'))
        {
            ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                               "invalid path \"%V\", it must begin with \"/\" "
                               "and have letters, digits, \"-._~\" and \"/\" "
                               "only", &value[1]);
            return NGX_CONF_ERROR;
        }
    }

    if (ngx_http_llm_page_init(&ngx_http_llm_playground_page) != NGX_OK) {
        return NGX_CONF_ERROR;
    }

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
    clcf->handler = ngx_http_llm_playground_handler;

    return NGX_CONF_OK;
}
