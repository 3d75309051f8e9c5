/*
 * Counters and gauges under vLLM's names and labels, as far as their meaning is
 * the same.
 */

#include "ngx_http_llm_prometheus.h"


static void ngx_http_llm_metrics_success(ngx_http_llm_scrape_t *s);
static void ngx_http_llm_metrics_usage(ngx_http_llm_scrape_t *s);
static void ngx_http_llm_metrics_places(ngx_http_llm_scrape_t *s);


static const ngx_http_llm_family_t  ngx_http_llm_vllm_families[] = {

    { "vllm:num_requests_running", "gauge",
      "Sequences that are being computed.",
      ngx_http_llm_of_engine(state.running) },
    { "vllm:num_requests_waiting", "gauge",
      "Sequences in the engine's queue.",
      ngx_http_llm_of_engine(state.waiting) },
    { "vllm:prompt_tokens_total", "counter",
      "Tokens of prompts.",
      ngx_http_llm_of_model(prompt_tokens) },
    { "vllm:generation_tokens_total", "counter",
      "Tokens of answers.",
      ngx_http_llm_of_model(completion_tokens) },
    { "vllm:prefix_cache_queries_total", "counter",
      "Tokens of prompts that were looked for in the prefix cache.",
      ngx_http_llm_of_model(prompt_tokens) },
    { "vllm:prefix_cache_hits_total", "counter",
      "Tokens of prompts that were found in the prefix cache.",
      ngx_http_llm_of_model(cached_tokens) },
    { "vllm:spec_decode_num_drafts_total", "counter",
      "Times that guessed tokens were verified.",
      ngx_http_llm_of_engine(state.drafts) },
    { "vllm:spec_decode_num_draft_tokens_total", "counter",
      "Tokens that were guessed and verified.",
      ngx_http_llm_of_engine(state.draft_tokens) },
    { "vllm:spec_decode_num_accepted_tokens_total", "counter",
      "Guessed tokens that were right.",
      ngx_http_llm_of_engine(accepted) },

    { NULL, NULL, NULL, 0, 0, 0 }
};


static const ngx_http_llm_times_t  ngx_http_llm_vllm_times[] = {

    { "vllm:time_to_first_token_seconds",
      "Time from a request's submission to its first token.",
      NGX_HTTP_LLM_H_TTFT },
    { "vllm:request_time_per_output_token_seconds",
      "Mean time of a request's tokens after the first.",
      NGX_HTTP_LLM_H_TPOT },
    { "vllm:request_queue_time_seconds",
      "Time in the engine's queue.",
      NGX_HTTP_LLM_H_QUEUE },
    { "vllm:e2e_request_latency_seconds",
      "Time from a request's first byte to the last of its answer.",
      NGX_HTTP_LLM_H_DURATION },

    { NULL, NULL, 0 }
};


void
ngx_http_llm_metrics_vllm(ngx_http_llm_scrape_t *s)
{
    ngx_uint_t  i;

    ngx_http_llm_metrics_success(s);

    for (i = 0; ngx_http_llm_vllm_times[i].name != NULL; i++) {
        ngx_http_llm_metrics_times(s, &ngx_http_llm_vllm_times[i]);
    }

    for (i = 0; ngx_http_llm_vllm_families[i].name != NULL; i++) {
        ngx_http_llm_metrics_family(s, &ngx_http_llm_vllm_families[i]);
    }

    ngx_http_llm_metrics_usage(s);
    ngx_http_llm_metrics_places(s);
}


/* What vLLM counts are answers, and those that were given up. */

static void
ngx_http_llm_metrics_success(ngx_http_llm_scrape_t *s)
{
    uint64_t                 n;
    ngx_uint_t               i, j, k;
    ngx_http_llm_counted_t  *m;

    static const struct {
        ngx_uint_t   reason;             /* of ngx_http_llm_reasons */
        const char  *name;
    } map[] = { { 0, "stop" }, { 1, "length" }, { 4, "abort" } };

    ngx_http_llm_metrics_head(s, "vllm:request_success_total", "counter",
                              "Requests that have ended.");

    for (i = 0; i < s->nmodels; i++) {
        m = &s->counters->models[i];

        for (j = 0; j < sizeof(map) / sizeof(map[0]); j++) {

            for (n = 0, k = 0; k < NGX_HTTP_LLM_STATUSES_MAX; k++) {
                n += m->requests[k][map[j].reason];
            }

            ngx_http_llm_metrics_labels(s, "vllm:request_success_total",
                                        "model", m->name);
            ngx_http_llm_metrics_label(s->out, ",finished_reason",
                                       map[j].name, ngx_strlen(map[j].name));
            ngx_http_llm_put_literal(s->out, "} ");
            ngx_http_llm_put_uint(s->out, n);
            ngx_http_llm_put_literal(s->out, "\n");
        }
    }
}


static void
ngx_http_llm_metrics_usage(ngx_http_llm_scrape_t *s)
{
    uint64_t              total, used;
    ngx_uint_t            i, n;
    ngx_http_llm_view_t  *view;

    ngx_http_llm_metrics_head(s, "vllm:kv_cache_usage_perc", "gauge",
                              "Share of KV blocks that sequences hold, 0 to "
                              "1.");

    for (i = 0; i < s->nviews; i++) {
        view = &s->views[i];

        for (n = 0, total = 0, used = 0; n < view->nranks; n++) {
            total += view->ranks[n].blocks_total;
            used += view->ranks[n].blocks_total
                    - ngx_min(view->ranks[n].blocks_free,
                              view->ranks[n].blocks_total);
        }

        if (total == 0) {
            continue;
        }

        ngx_http_llm_metrics_labels(s, "vllm:kv_cache_usage_perc", "engine",
                                    (char *) view->engine->name.data);
        ngx_http_llm_put_literal(s->out, "} ");
        ngx_http_llm_put_float(s->out, (double) used / (double) total);
        ngx_http_llm_put_literal(s->out, "\n");
    }
}


/* Guesses are made in a row, up to `speculate`; how many of each place hold. */

static void
ngx_http_llm_metrics_places(ngx_http_llm_scrape_t *s)
{
    size_t                len;
    u_char                place[NGX_INT32_LEN];
    ngx_uint_t            i, n;
    ngx_http_llm_view_t  *view;

    static const char  name[] =
        "vllm:spec_decode_num_accepted_tokens_per_pos_total";

    ngx_http_llm_metrics_head(s, name, "counter",
                              "Guessed tokens that were right, by their place "
                              "among those guessed at once.");

    for (i = 0; i < s->nviews; i++) {
        view = &s->views[i];

        if (!view->known) {
            continue;
        }

        for (n = 0; n < ngx_min(view->engine->model.speculate,
                                CHAN_DEPTH_MAX); n++)
        {
            len = ngx_sprintf(place, "%ui", n) - place;

            ngx_http_llm_metrics_labels(s, name, "engine",
                                        (char *) view->engine->name.data);
            ngx_http_llm_metrics_label(s->out, ",position", (char *) place,
                                       len);
            ngx_http_llm_put_literal(s->out, "} ");
            ngx_http_llm_put_uint(s->out, view->state.accepted[n]);
            ngx_http_llm_put_literal(s->out, "\n");
        }
    }
}
