/*
 * Prices: what a request costs.
 */

#ifndef NGX_HTTP_LLM_PRICE_H
#define NGX_HTTP_LLM_PRICE_H

#include "ngx_http_llm_module.h"


extern ngx_module_t  ngx_http_llm_price_module;


/*
 * What the counts of a request cost so far, in nanodollars (10^-9 US dollars),
 * rounded once, half up.  The hours are those of the moment in which it was
 * settled, or of now.  NGX_DECLINED: its model has no price here.
 */

ngx_int_t ngx_http_llm_cost(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    int64_t *nano);


#endif /* NGX_HTTP_LLM_PRICE_H */
