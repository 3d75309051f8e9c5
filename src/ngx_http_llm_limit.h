/*
 * Limits of a request: what it holds of which buckets, from its admission until
 * it is settled, and what the client is told of it.
 *
 * ngx_http_llm_hold.c keeps that for one request; ngx_http_llm_limit.c is the
 * module with llm_token_limit and the zones; the limits of an account
 * (ngx_http_llm_accounts.c) are held the same way.
 */

#ifndef NGX_HTTP_LLM_LIMIT_H
#define NGX_HTTP_LLM_LIMIT_H

#include "ngx_http_llm_bucket.h"
#include "ngx_http_llm_policy.h"


#define NGX_HTTP_LLM_LIMITS_MAX  7     /* llm_token_limit at one level */
#define NGX_HTTP_LLM_HELD_MAX    (NGX_HTTP_LLM_LIMITS_MAX + 3)
#define NGX_HTTP_LLM_RESERVE     1024  /* tokens, unless told */
#define NGX_HTTP_LLM_RESERVE_FULL  UINT64_MAX


/* What is counted; kinds of buckets. */

typedef enum {
    NGX_HTTP_LLM_TOKENS = 0,
    NGX_HTTP_LLM_REQUESTS,
    NGX_HTTP_LLM_CONCURRENCY
} ngx_http_llm_kind_e;

typedef struct {
    ngx_http_llm_buckets_t       *zone;
    ngx_http_llm_hold_t          *hold;
    ngx_http_llm_kind_e           kind;
} ngx_http_llm_held_t;

typedef enum {
    NGX_HTTP_LLM_UNLIMITED = 0,
    NGX_HTTP_LLM_PASSED,
    NGX_HTTP_LLM_REJECTED,
    NGX_HTTP_LLM_REJECTED_DRY_RUN
} ngx_http_llm_limit_status_e;

struct ngx_http_llm_limits_s {
    ngx_http_llm_held_t           held[NGX_HTTP_LLM_HELD_MAX];
    ngx_uint_t                    nheld;
    ngx_http_llm_limit_status_e   status;  /* of llm_token_limit */
    ngx_uint_t                    never;   /* refused, and always will be */

    /* For headers: the tightest of each; limit 0: none. */

    ngx_http_llm_bucket_state_t   tokens;
    ngx_http_llm_bucket_state_t   requests;
};


extern ngx_module_t  ngx_http_llm_limit_module;


/*
 * ngx_http_llm_limits_get() is what a request holds, made if need be; NULL: no
 * memory.
 *
 * ngx_http_llm_limit_hold() takes what the request needs of a bucket: its share
 * of tokens as `reserve` says (NGX_HTTP_LLM_RESERVE_FULL: all that it may use),
 * or one of anything else.  NGX_OK: it holds it.  NGX_BUSY and NGX_DECLINED as
 * ngx_http_llm_bucket_reserve(), with `*state`; NGX_ERROR: no memory in the
 * zone.  With `dry_run` the client is not told.  ngx_http_llm_limit_refuse()
 * fills ctx->error for such an `rc` and returns NGX_ERROR.
 *
 * ngx_http_llm_limit_settle() is the done function for all that is held, and
 * ngx_http_llm_limit_headers() adds the headers that tell of it.
 */

ngx_http_llm_limits_t *ngx_http_llm_limits_get(ngx_http_llm_ctx_t *ctx);
ngx_int_t ngx_http_llm_limit_hold(ngx_http_llm_ctx_t *ctx,
    ngx_http_llm_buckets_t *zone, ngx_http_llm_kind_e kind, ngx_str_t *key,
    const ngx_http_llm_bucket_limit_t *limit, uint64_t reserve,
    ngx_uint_t dry_run, ngx_http_llm_bucket_state_t *state);
ngx_int_t ngx_http_llm_limit_refuse(ngx_http_llm_ctx_t *ctx, ngx_int_t rc,
    ngx_http_llm_kind_e kind, const ngx_http_llm_bucket_state_t *state);
void ngx_http_llm_limit_settle(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
ngx_int_t ngx_http_llm_limit_headers(ngx_http_request_t *r,
    ngx_http_llm_limits_t *limits);


/*
 * ngx_http_llm_buckets_zone() makes a zone of the configuration one of buckets;
 * its data is `zone`, or what begins with it.  Workers settle there what dead
 * ones left.  ngx_http_llm_buckets_init_zone() is its init function, for zones
 * that have more to look at.
 */

char *ngx_http_llm_buckets_zone(ngx_conf_t *cf, ngx_str_t *name, size_t size,
    void *tag, ngx_http_llm_buckets_t *zone, ngx_shm_zone_t **shm_zone);
ngx_int_t ngx_http_llm_buckets_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);


#endif /* NGX_HTTP_LLM_LIMIT_H */
