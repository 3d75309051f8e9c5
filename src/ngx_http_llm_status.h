/*
 * What llm_status says.
 *
 * FORMAT
 *
 *     {"time": seconds, "since": seconds,
 *      "engines": [{"name", "up", and where it is up: "model", "fingerprint",
 *          "max_context", "heartbeat_age", "step", "running", "waiting",
 *          "lanes", "requests", "tokens", where it may speculate
 *          "speculation": {"max", "depth", "drafts", "draft_tokens",
 *              "accepted_tokens"},
 *          "ranks": [{"running", "kv_blocks", "kv_free_blocks",
 *              "tokens_per_second", "expert_load", "expert_moves"}]}],
 *      "bounds": {"ttft": [seconds, ...], "tpot", "queue", "duration"},
 *      "models": [{"model", "requests", "status": {"200": n, ...},
 *          "finish_reason": {"stop": n, ...}, "prompt_tokens",
 *          "cached_tokens", "completion_tokens", "reasoning_tokens",
 *          "response_cache_hits", "routed": {"hit", "moved", "none"},
 *          "ttft": {"sum", "p50", "p90", "p99", "buckets": [n, ...]}, "tpot",
 *          "queue", "duration"}],
 *      "today": {"revenue": dollars, "cost": dollars}}
 *
 * Counters are those of ngx_http_llm_metrics.h, from "since" on; those of an
 * engine are from its own start on.  Where the board could not be read, an
 * engine that is up has its name and model alone.  `expert_load` is 0 for a
 * rank without experts.  Today is a day of UTC; its revenue is there where
 * llm_price has priced something, its cost where the directive says what an
 * hour costs.
 */

#ifndef NGX_HTTP_LLM_STATUS_H
#define NGX_HTTP_LLM_STATUS_H

#include "ngx_http_llm_metrics.h"


typedef struct {
    ngx_uint_t              on;
    int64_t                 cost;          /* nanodollars an hour, 0: none */
} ngx_http_llm_status_loc_conf_t;


extern ngx_module_t  ngx_http_llm_status_module;


/*
 * ngx_http_llm_status_put() puts one object; NGX_ERROR: no memory.
 * ngx_http_llm_status_history() puts the event before the first one of a
 * stream.
 */

ngx_int_t ngx_http_llm_status_put(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w);
void ngx_http_llm_status_history(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w);


#endif /* NGX_HTTP_LLM_STATUS_H */
