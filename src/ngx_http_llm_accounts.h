/*
 * Accounts: who asks.  The file of accounts is read with the configuration
 * (ngx_http_llm_accounts_file.c has its format); the zone keeps what they use.
 */

#ifndef NGX_HTTP_LLM_ACCOUNTS_H
#define NGX_HTTP_LLM_ACCOUNTS_H

#include "ngx_http_llm_limit.h"


#define NGX_HTTP_LLM_NAME_MAX    255       /* bytes of an account or tier */
#define NGX_HTTP_LLM_DIGEST_LEN  32        /* SHA-256 */
#define NGX_HTTP_LLM_KEY_MAX     512       /* bytes of a key in a header */


typedef struct {
    ngx_str_t                     name;
    ngx_str_t                     tier;    /* empty: none */
    ngx_http_llm_bucket_limit_t   requests;
    ngx_http_llm_bucket_limit_t   tokens;
    ngx_http_llm_bucket_limit_t   concurrency;
    uint64_t                      reserve; /* tokens, or …_RESERVE_FULL */
    ngx_uint_t                    line;
} ngx_http_llm_account_t;

typedef struct {
    u_char                        digest[NGX_HTTP_LLM_DIGEST_LEN];
    ngx_http_llm_account_t       *account;
    ngx_uint_t                    line;
} ngx_http_llm_key_t;

typedef struct {
    ngx_array_t                   accounts;    /* …_account_t *, by name */
    ngx_array_t                   keys;        /* …_key_t, by digest */
} ngx_http_llm_accounts_t;

typedef struct {
    ngx_str_t                     path;    /* empty: no llm_accounts */
    ngx_str_t                     state;   /* empty: no balances */
    ngx_http_llm_accounts_t       table;
    ngx_shm_zone_t               *shm_zone;
    ngx_http_llm_buckets_t        zone;
} ngx_http_llm_accounts_conf_t;


extern ngx_module_t  ngx_http_llm_accounts_module;


/*
 * ngx_http_llm_account() is the account whose key a request shows; it may be
 * called in any phase and for subrequests.  NULL: none, because there are no
 * accounts, no key or a wrong one, or no memory.
 *
 * ngx_http_llm_accounts_check() is NGX_OK if there are no accounts or the
 * request shows a good key, else 401 with ctx->error filled and
 * WWW-Authenticate set: what an access handler returns.
 *
 * ngx_http_llm_accounts_conf() is the main configuration, NULL without
 * llm_accounts.  ngx_http_llm_account_find() looks a name up; NULL: there is
 * none.
 */

ngx_http_llm_account_t *ngx_http_llm_account(ngx_http_request_t *r);
ngx_int_t ngx_http_llm_accounts_check(ngx_http_request_t *r);
ngx_http_llm_accounts_conf_t *ngx_http_llm_accounts_conf(
    ngx_http_request_t *r);
ngx_http_llm_account_t *ngx_http_llm_account_find(
    ngx_http_llm_accounts_t *table, ngx_str_t *name);


/*
 * ngx_http_llm_accounts_file.c.  Reads a file into `table`, from cf->pool;
 * NGX_ERROR: why was logged, with the file and the line.
 */

ngx_int_t ngx_http_llm_accounts_read(ngx_conf_t *cf, ngx_str_t *path,
    ngx_http_llm_accounts_t *table);


#endif /* NGX_HTTP_LLM_ACCOUNTS_H */
