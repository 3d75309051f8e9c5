/*
 * The file of accounts while it is read.
 */

#ifndef NGX_HTTP_LLM_ACCOUNTS_FILE_H
#define NGX_HTTP_LLM_ACCOUNTS_FILE_H

#include "ngx_http_llm_accounts.h"


#define NGX_HTTP_LLM_WORDS_MAX  16


typedef struct {
    ngx_conf_t               *cf;
    ngx_str_t                *path;
    ngx_uint_t                line;
    ngx_str_t                 words[NGX_HTTP_LLM_WORDS_MAX];
    ngx_uint_t                nwords;
    ngx_array_t               keys;      /* ngx_http_llm_named_key_t */
    ngx_http_llm_accounts_t  *table;
} ngx_http_llm_accounts_file_t;


/*
 * ngx_http_llm_accounts_line.c: adds the account of the line whose words are
 * there to the table.  NGX_ERROR: why was logged.
 */

ngx_int_t ngx_http_llm_accounts_line(ngx_http_llm_accounts_file_t *f);

/* Logs what is wrong with a line; NGX_ERROR. */

ngx_int_t ngx_http_llm_accounts_wrong(ngx_http_llm_accounts_file_t *f,
    ngx_uint_t line, const char *fmt, ...);


#endif /* NGX_HTTP_LLM_ACCOUNTS_FILE_H */
