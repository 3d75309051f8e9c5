/*
 * How llm_metrics writes families, for those who have some.
 */

#ifndef NGX_HTTP_LLM_PROMETHEUS_H
#define NGX_HTTP_LLM_PROMETHEUS_H

#include "ngx_http_llm_metrics.h"


/* What a family's samples are of. */

typedef enum {
    NGX_HTTP_LLM_OF_MODEL = 0,       /* offset in ngx_http_llm_counted_t */
    NGX_HTTP_LLM_OF_ENGINE,          /* offset in ngx_http_llm_view_t */
    NGX_HTTP_LLM_OF_RANK             /* offset in chan_board_rank_t */
} ngx_http_llm_of_e;

typedef struct {
    const char                       *name;
    const char                       *type;
    const char                       *help;
    ngx_http_llm_of_e                 of;
    size_t                            offset;
    ngx_uint_t                        thousandths;   /* 0 is no sample */
} ngx_http_llm_family_t;

typedef struct {
    const char                       *name;
    const char                       *help;
    ngx_http_llm_histogram_e          which;
} ngx_http_llm_times_t;

typedef struct {
    ngx_http_llm_writer_t            *out;
    ngx_http_llm_counters_t          *counters;
    ngx_uint_t                        nmodels;
    ngx_http_llm_view_t              *views;
    ngx_uint_t                        nviews;
    ngx_uint_t                        vllm;    /* its labels */
} ngx_http_llm_scrape_t;


#define ngx_http_llm_of_model(field)                                         \
    NGX_HTTP_LLM_OF_MODEL, offsetof(ngx_http_llm_counted_t, field), 0

#define ngx_http_llm_of_engine(field)                                        \
    NGX_HTTP_LLM_OF_ENGINE, offsetof(ngx_http_llm_view_t, field), 0

#define ngx_http_llm_of_rank(field)                                          \
    NGX_HTTP_LLM_OF_RANK, offsetof(chan_board_rank_t, field), 0


/*
 * ngx_http_llm_metrics_head() begins a family.  ngx_http_llm_metrics_family()
 * and ngx_http_llm_metrics_times() are whole ones.
 *
 * ngx_http_llm_metrics_labels() puts a sample's name and its first label.
 * vLLM's samples have both the engine and the model; here an engine goes with
 * its model's name, a model's with no engine.  ngx_http_llm_metrics_label()
 * puts another one, with `key` beginning with a comma.  The caller closes them
 * by "} ", the value and a newline.
 */

void ngx_http_llm_metrics_head(ngx_http_llm_scrape_t *s,
    const char *name, const char *type, const char *help);
void ngx_http_llm_metrics_family(ngx_http_llm_scrape_t *s,
    const ngx_http_llm_family_t *f);
void ngx_http_llm_metrics_times(ngx_http_llm_scrape_t *s,
    const ngx_http_llm_times_t *times);
void ngx_http_llm_metrics_labels(ngx_http_llm_scrape_t *s,
    const char *name, const char *key, const char *value);
void ngx_http_llm_metrics_label(ngx_http_llm_writer_t *w,
    const char *key, const char *value, size_t len);


/* ngx_http_llm_vllm.c: what vLLM has too, under its names. */

void ngx_http_llm_metrics_vllm(ngx_http_llm_scrape_t *s);


#endif /* NGX_HTTP_LLM_PROMETHEUS_H */
