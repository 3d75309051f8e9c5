/*
 * Pages that are part of the module: each is one HTML file in src/ with its
 * style and script in it, taken into the module's data when that is compiled.
 *
 * A page is sent with a Content-Security-Policy that allows its own style and
 * script by their hashes, connections to its own origin and nothing else.  It
 * may have one value filled in where it says %VALUE%, inside an attribute.
 */

#ifndef NGX_HTTP_LLM_PAGE_H
#define NGX_HTTP_LLM_PAGE_H

#include "ngx_http_llm_metrics.h"


#define NGX_HTTP_LLM_POLICY_MAX  512


typedef struct {
    const u_char  *data;
    const u_char  *last;
    ngx_str_t      policy;       /* of the header; empty: not made yet */
    u_char         buf[NGX_HTTP_LLM_POLICY_MAX];
} ngx_http_llm_page_t;


extern ngx_http_llm_page_t  ngx_http_llm_status_page;
extern ngx_http_llm_page_t  ngx_http_llm_playground_page;


/*
 * ngx_http_llm_page_init() makes the policy, when a directive asks for the
 * page.  ngx_http_llm_page_send() answers a request with it; `value` may be
 * NULL where the page has none, else it is of characters that HTML leaves
 * alone.  It returns what a content handler returns.
 */

ngx_int_t ngx_http_llm_page_init(ngx_http_llm_page_t *page);
ngx_int_t ngx_http_llm_page_send(ngx_http_request_t *r,
    ngx_http_llm_page_t *page, ngx_str_t *value);


#endif /* NGX_HTTP_LLM_PAGE_H */
