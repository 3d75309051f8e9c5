/*
 * llm_response_cache: replies of deterministic requests, in nginx's own file
 * cache.
 *
 * A request is deterministic if its temperature is 0 or it has a seed.  What
 * is looked up is a SHA-256 of all that its answer depends on: tenant (account
 * and `user`), the model's fingerprint and context, and the canonical request,
 * without how it is to be sent, scheduled and routed.  The file holds, behind
 * nginx's header, the reply's events (ngx_http_llm_reply.h), so that either
 * form can be made of it.
 *
 * The file is written when the reply is whole, just before its last bytes
 * leave: an equal request that comes after them finds it.  It is read at once,
 * whatever `aio` says: it is small.
 */

#ifndef NGX_HTTP_LLM_RESPONSE_H
#define NGX_HTTP_LLM_RESPONSE_H

#include "ngx_http_llm_reply.h"


#if !(NGX_HTTP_CACHE)
#error "nginx's file cache is needed (not --without-http-cache)."
#endif


/*
 * ngx_http_llm_response_open() looks a parsed request up.  NGX_OK with `*data`:
 * the reply, checked, from the request's pool.  NGX_OK with `*kept`: there is
 * none, or a damaged one; a reply may be written there, and in any case it is
 * to be given back by ngx_http_file_cache_free().  With neither there is none
 * and the cache has no room, which is no reason to refuse a request.
 * NGX_ERROR: no memory.
 *
 * ngx_http_llm_response_write() writes `reply`; what goes wrong is logged.
 */

ngx_int_t ngx_http_llm_response_open(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_file_cache_t *cache,
    ngx_http_cache_t **kept, u_char **data);
void ngx_http_llm_response_write(ngx_http_request_t *r, ngx_http_cache_t *c,
    ngx_chain_t *reply);


extern ngx_module_t  ngx_http_llm_response_cache_module;


#endif /* NGX_HTTP_LLM_RESPONSE_H */
