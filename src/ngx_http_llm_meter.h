/*
 * llm_meter: what goes to another OpenAI-compatible server, by proxy_pass or
 * any other handler, is admitted, counted and settled like a request to an
 * engine (ngx_http_llm_policy.h).
 *
 * ngx_http_llm_meter_on() is whether a request's location has it and no
 * llm_pass: errors there have the shape of OpenAI's, and keys are checked.
 */

#ifndef NGX_HTTP_LLM_METER_H
#define NGX_HTTP_LLM_METER_H

#include "ngx_http_llm_module.h"


ngx_uint_t ngx_http_llm_meter_on(ngx_http_request_t *r);


extern ngx_module_t  ngx_http_llm_meter_module;


#endif /* NGX_HTTP_LLM_METER_H */
