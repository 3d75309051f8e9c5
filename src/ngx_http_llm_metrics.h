/*
 * Counters of what was served, for llm_metrics and llm_status.
 *
 * FORMAT
 *
 *     One zone of nginx's shared memory, "llm_metrics", holds one
 *     ngx_http_llm_counters_t: a head, a fixed number of models, each with
 *     its counters, and the last minutes (ngx_http_llm_history.c).  The zone
 *     is there if a location has llm_metrics or llm_status, its size never
 *     changes, so it survives every reload.
 *
 * WRITER  any worker, once for a request, in the log phase, by atomic
 * additions.  Only a name that is new takes the zone's lock: it is written
 * before `nmodels` says that it is there, and never changes.
 *
 * READER  any worker, without a lock.  It may see a part of one request's
 * additions.  How many values a histogram has is the sum of its buckets, so
 * that at least these never disagree.
 *
 * RECOVERY  A worker that dies has added what it has added.  What the lock
 * protects is complete or not visible.
 */

#ifndef NGX_HTTP_LLM_METRICS_H
#define NGX_HTTP_LLM_METRICS_H

#include "ngx_http_llm_module.h"


#define NGX_HTTP_LLM_COUNTED_MODELS  32    /* the last takes what is left */
#define NGX_HTTP_LLM_BOUNDS_MAX      32
#define NGX_HTTP_LLM_STATUSES_MAX    18
#define NGX_HTTP_LLM_REASONS_MAX     8
#define NGX_HTTP_LLM_SAMPLES         300   /* seconds */


typedef enum {
    NGX_HTTP_LLM_H_TTFT = 0,
    NGX_HTTP_LLM_H_TPOT,
    NGX_HTTP_LLM_H_DURATION,
    NGX_HTTP_LLM_H_QUEUE,
    NGX_HTTP_LLM_NHISTOGRAMS
} ngx_http_llm_histogram_e;

typedef enum {
    NGX_HTTP_LLM_R_HIT = 0,      /* the rank that was named took it */
    NGX_HTTP_LLM_R_MOVED,        /* another one did */
    NGX_HTTP_LLM_R_NONE,         /* none was named */
    NGX_HTTP_LLM_NROUTED
} ngx_http_llm_routed_e;

/* buckets[i]: values up to bounds[i] and above the one before. */

typedef struct {
    ngx_atomic_t              sum_us;
    ngx_atomic_t              buckets[NGX_HTTP_LLM_BOUNDS_MAX + 1];
} ngx_http_llm_histogram_t;

typedef struct {
    char                      name[CHAN_NAMES_LEN];   /* empty: not known */
    ngx_atomic_t              requests[NGX_HTTP_LLM_STATUSES_MAX]
                                      [NGX_HTTP_LLM_REASONS_MAX];
    ngx_atomic_t              prompt_tokens;
    ngx_atomic_t              cached_tokens;
    ngx_atomic_t              completion_tokens;
    ngx_atomic_t              reasoning_tokens;
    ngx_atomic_t              replayed;    /* out of the response cache */
    ngx_atomic_t              resumed;     /* by another engine */
    ngx_atomic_t              routed[NGX_HTTP_LLM_NROUTED];
    ngx_http_llm_histogram_t  histograms[NGX_HTTP_LLM_NHISTOGRAMS];
} ngx_http_llm_counted_t;

/* What was at a second; ngx_http_llm_history.c has the format. */

typedef struct {
    ngx_atomic_t              time;        /* UNIX time; 0: none */
    uint64_t                  out;         /* tokens, as engines count */
    uint64_t                  prompt;      /* tokens, of requests that ended */
    uint32_t                  nranks;      /* of all engines */
    uint16_t                  load[CHAN_RANKS_MAX];    /* of experts * 1000 */
} ngx_http_llm_sample_t;

typedef struct {
    ngx_atomic_t              last;        /* the newest sample's time */
    ngx_http_llm_sample_t     samples[NGX_HTTP_LLM_SAMPLES];
} ngx_http_llm_history_t;

typedef struct {
    time_t                    since;       /* UNIX time of its creation */
    ngx_atomic_t              nmodels;
    ngx_http_llm_counted_t    models[NGX_HTTP_LLM_COUNTED_MODELS];
    ngx_http_llm_history_t    history;
} ngx_http_llm_counters_t;


/*
 * An engine as its board has it at one moment.  `up` is 0 where this worker
 * has no connection to it; `known` is 0 also where the board was being written
 * whenever it was looked at.  Without it the rest is 0.
 */

typedef struct {
    ngx_http_llm_engine_t    *engine;
    chan_board_state_t        state;
    uint64_t                  age_ms;      /* of the heartbeat */
    uint64_t                  accepted;    /* guesses, in all places */
    uint32_t                  nranks;
    chan_board_rank_t        *ranks;
    ngx_uint_t                up;
    ngx_uint_t                known;
} ngx_http_llm_view_t;


/* What the indices of `requests` and the bounds of a histogram are. */

extern const char *const  ngx_http_llm_statuses[];    /* last is "other" */
extern const char *const  ngx_http_llm_reasons[];     /* last is "" */
extern const uint64_t  *const  ngx_http_llm_bounds[]; /* µs, 0 ends */
extern ngx_module_t  ngx_http_llm_metrics_module;


/*
 * ngx_http_llm_counters.c
 *
 * ngx_http_llm_counters_zone() has the zone created with this configuration;
 * it may be called any number of times.  ngx_http_llm_counters() is what is
 * in it; NULL: no zone.  ngx_http_llm_views() looks at all engines, what it
 * returns is from `pool`; NULL: no memory.  ngx_http_llm_values() is how many
 * values are in a histogram, ngx_http_llm_quantile() the `q` quantile in
 * seconds, interpolated within a bucket; 0 if there are no values.
 */

char *ngx_http_llm_counters_zone(ngx_conf_t *cf);
ngx_int_t ngx_http_llm_counters_init(ngx_conf_t *cf);
ngx_http_llm_counters_t *ngx_http_llm_counters(ngx_http_request_t *r);
ngx_http_llm_view_t *ngx_http_llm_views(ngx_http_llm_main_conf_t *lmcf,
    ngx_pool_t *pool, ngx_uint_t *n);
uint64_t ngx_http_llm_values(const ngx_http_llm_histogram_t *h);
double ngx_http_llm_quantile(const ngx_http_llm_histogram_t *h,
    const uint64_t *bounds, double q);


/*
 * ngx_http_llm_history.c: `sample` is that of a second; NGX_DECLINED: there is
 * none.
 */

ngx_int_t ngx_http_llm_history_init_process(ngx_cycle_t *cycle);
ngx_int_t ngx_http_llm_history_get(ngx_http_llm_counters_t *counters,
    time_t time, ngx_http_llm_sample_t *sample);


/*
 * ngx_http_llm_prometheus.c: what a scrape gets, with vLLM's names too if
 * `vllm`; NGX_ERROR: no memory.
 */

ngx_int_t ngx_http_llm_metrics_put(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w, ngx_uint_t vllm);


/*
 * ngx_http_llm_metrics.c.  ngx_http_llm_get_only() is NGX_OK for GET and HEAD,
 * a body discarded; else what a content handler returns.
 * ngx_http_llm_respond() sends what `w` has, with a length and without being
 * stored anywhere; it returns what a content handler returns.
 */

ngx_int_t ngx_http_llm_get_only(ngx_http_request_t *r);
ngx_int_t ngx_http_llm_respond(ngx_http_request_t *r,
    ngx_http_llm_writer_t *w, ngx_str_t *type);


typedef struct {
    ngx_shm_zone_t           *zone;        /* NULL: nobody asks */
} ngx_http_llm_metrics_main_conf_t;


#endif /* NGX_HTTP_LLM_METRICS_H */
