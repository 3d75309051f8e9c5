/*
 * Counters and gauges in Prometheus' text format.
 *
 * All samples of a name must follow each other, so the families are walked,
 * and for each the models, engines or ranks.  With "vllm" those of
 * ngx_http_llm_vllm.c follow.
 */

#include "ngx_http_llm_prometheus.h"


static void ngx_http_llm_metrics_own(ngx_http_llm_scrape_t *s);
static void ngx_http_llm_metrics_value(ngx_http_llm_scrape_t *s,
    const ngx_http_llm_family_t *f, uint64_t value);
static void ngx_http_llm_metrics_up(ngx_http_llm_scrape_t *s);
static void ngx_http_llm_metrics_requests(ngx_http_llm_scrape_t *s);
static void ngx_http_llm_metrics_routed(ngx_http_llm_scrape_t *s);
static void ngx_http_llm_metrics_bucket(ngx_http_llm_scrape_t *s,
    const char *name, ngx_http_llm_counted_t *m, uint64_t bound, uint64_t n);
static void ngx_http_llm_metrics_seconds(ngx_http_llm_writer_t *w,
    uint64_t us);


static const ngx_http_llm_family_t  ngx_http_llm_families[] = {

    { "llm_prompt_tokens_total", "counter",
      "Tokens of prompts, those found in a prefix cache included.",
      ngx_http_llm_of_model(prompt_tokens) },
    { "llm_cached_tokens_total", "counter",
      "Tokens of prompts found in a prefix cache.",
      ngx_http_llm_of_model(cached_tokens) },
    { "llm_completion_tokens_total", "counter",
      "Tokens of answers, reasoning included.",
      ngx_http_llm_of_model(completion_tokens) },
    { "llm_reasoning_tokens_total", "counter",
      "Tokens of reasoning.",
      ngx_http_llm_of_model(reasoning_tokens) },

    { "llm_response_cache_hits_total", "counter",
      "Requests answered out of the response cache.",
      ngx_http_llm_of_model(replayed) },
    { "llm_resumed_requests_total", "counter",
      "Requests that went on with another engine than they began with.",
      ngx_http_llm_of_model(resumed) },

    { "llm_engine_heartbeat_age_seconds", "gauge",
      "Time since the engine has last said that it is well.",
      NGX_HTTP_LLM_OF_ENGINE, offsetof(ngx_http_llm_view_t, age_ms), 1 },
    { "llm_engine_steps_total", "counter",
      "Steps of the model since the engine's start.",
      ngx_http_llm_of_engine(state.step) },
    { "llm_engine_requests_total", "counter",
      "Sequences that the engine has accepted since its start.",
      ngx_http_llm_of_engine(state.requests) },
    { "llm_engine_tokens_total", "counter",
      "Tokens that the engine has generated since its start.",
      ngx_http_llm_of_engine(state.tokens) },
    { "llm_engine_drafts_total", "counter",
      "Times that guessed tokens were verified since the engine's start.",
      ngx_http_llm_of_engine(state.drafts) },
    { "llm_engine_draft_tokens_total", "counter",
      "Tokens that the engine has guessed and verified since its start.",
      ngx_http_llm_of_engine(state.draft_tokens) },
    { "llm_engine_accepted_draft_tokens_total", "counter",
      "Guessed tokens that were right since the engine's start.",
      ngx_http_llm_of_engine(accepted) },
    { "llm_engine_running_requests", "gauge",
      "Sequences that are being computed.",
      ngx_http_llm_of_engine(state.running) },
    { "llm_engine_waiting_requests", "gauge",
      "Sequences in the engine's queue.",
      ngx_http_llm_of_engine(state.waiting) },
    { "llm_engine_lanes", "gauge",
      "Worker processes and others that are connected.",
      ngx_http_llm_of_engine(state.lanes) },

    { "llm_rank_running_requests", "gauge",
      "Sequences that a rank computes.",
      ngx_http_llm_of_rank(running) },
    { "llm_rank_kv_blocks", "gauge",
      "Blocks of KV that a rank has memory for.",
      ngx_http_llm_of_rank(blocks_total) },
    { "llm_rank_kv_free_blocks", "gauge",
      "Blocks of KV that no running sequence holds.",
      ngx_http_llm_of_rank(blocks_free) },
    { "llm_rank_tokens_per_second", "gauge",
      "Tokens that a rank generates in a second.",
      ngx_http_llm_of_rank(tokens_per_sec) },
    { "llm_rank_expert_load_ratio", "gauge",
      "Load of a rank's experts over the mean of all ranks, in the layer where "
      "that is most.",
      NGX_HTTP_LLM_OF_RANK, offsetof(chan_board_rank_t, load_max), 1 },
    { "llm_rank_expert_moves_total", "counter",
      "Experts that came to a rank since the engine's start.",
      ngx_http_llm_of_rank(moves) },

    { NULL, NULL, NULL, 0, 0, 0 }
};


static const ngx_http_llm_times_t  ngx_http_llm_times[] = {

    { "llm_time_to_first_token_seconds",
      "Time from a request's submission to its first token.",
      NGX_HTTP_LLM_H_TTFT },
    { "llm_time_per_output_token_seconds",
      "Mean time of a request's tokens after the first.",
      NGX_HTTP_LLM_H_TPOT },
    { "llm_queue_time_seconds",
      "Time in the engine's queue.",
      NGX_HTTP_LLM_H_QUEUE },
    { "llm_request_duration_seconds",
      "Time from a request's first byte to the last of its answer.",
      NGX_HTTP_LLM_H_DURATION },

    { NULL, NULL, 0 }
};


ngx_int_t
ngx_http_llm_metrics_put(ngx_http_request_t *r, ngx_http_llm_writer_t *w,
    ngx_uint_t vllm)
{
    ngx_http_llm_scrape_t      s;
    ngx_http_llm_main_conf_t  *lmcf;

    ngx_memzero(&s, sizeof(ngx_http_llm_scrape_t));

    s.out = w;
    s.counters = ngx_http_llm_counters(r);
    s.nmodels = s.counters->nmodels;

    ngx_memory_barrier();

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);

    s.views = ngx_http_llm_views(lmcf, r->pool, &s.nviews);
    if (s.views == NULL) {
        return NGX_ERROR;
    }

    ngx_http_llm_metrics_own(&s);

    if (vllm) {
        s.vllm = 1;
        ngx_http_llm_metrics_vllm(&s);
    }

    return NGX_OK;
}


static void
ngx_http_llm_metrics_own(ngx_http_llm_scrape_t *s)
{
    ngx_uint_t  i;

    ngx_http_llm_metrics_requests(s);
    ngx_http_llm_metrics_routed(s);

    for (i = 0; ngx_http_llm_times[i].name != NULL; i++) {
        ngx_http_llm_metrics_times(s, &ngx_http_llm_times[i]);
    }

    ngx_http_llm_metrics_up(s);

    for (i = 0; ngx_http_llm_families[i].name != NULL; i++) {
        ngx_http_llm_metrics_family(s, &ngx_http_llm_families[i]);
    }
}


void
ngx_http_llm_metrics_head(ngx_http_llm_scrape_t *s, const char *name,
    const char *type, const char *help)
{
    ngx_http_llm_put_literal(s->out, "# HELP ");
    ngx_http_llm_put(s->out, name, ngx_strlen(name));
    ngx_http_llm_put_literal(s->out, " ");
    ngx_http_llm_put(s->out, help, ngx_strlen(help));
    ngx_http_llm_put_literal(s->out, "\n# TYPE ");
    ngx_http_llm_put(s->out, name, ngx_strlen(name));
    ngx_http_llm_put_literal(s->out, " ");
    ngx_http_llm_put(s->out, type, ngx_strlen(type));
    ngx_http_llm_put_literal(s->out, "\n");
}


void
ngx_http_llm_metrics_family(ngx_http_llm_scrape_t *s,
    const ngx_http_llm_family_t *f)
{
    size_t                   len;
    u_char                   rank[NGX_INT32_LEN];
    ngx_uint_t               i, n;
    ngx_http_llm_view_t     *view;
    ngx_http_llm_counted_t  *m;

    ngx_http_llm_metrics_head(s, f->name, f->type, f->help);

    if (f->of == NGX_HTTP_LLM_OF_MODEL) {

        for (i = 0; i < s->nmodels; i++) {
            m = &s->counters->models[i];

            ngx_http_llm_metrics_labels(s, f->name, "model", m->name);
            ngx_http_llm_metrics_value(s, f, *(ngx_atomic_t *)
                                             ((char *) m + f->offset));
        }

        return;
    }

    for (i = 0; i < s->nviews; i++) {
        view = &s->views[i];

        if (!view->known) {
            continue;
        }

        if (f->of == NGX_HTTP_LLM_OF_ENGINE) {
            ngx_http_llm_metrics_labels(s, f->name, "engine",
                                        (char *) view->engine->name.data);
            ngx_http_llm_metrics_value(s, f, *(uint64_t *)
                                             ((char *) view + f->offset));
            continue;
        }

        for (n = 0; n < view->nranks; n++) {

            /* A rank without experts has no load. */

            if (f->thousandths && view->ranks[n].load_max == 0) {
                continue;
            }

            ngx_http_llm_metrics_labels(s, f->name, "engine",
                                        (char *) view->engine->name.data);

            len = ngx_sprintf(rank, "%ui", n) - rank;

            ngx_http_llm_metrics_label(s->out, ",rank", (char *) rank, len);
            ngx_http_llm_metrics_value(s, f, *(uint64_t *)
                                             ((char *) &view->ranks[n]
                                              + f->offset));
        }
    }
}


/* Closes the labels of a sample. */

static void
ngx_http_llm_metrics_value(ngx_http_llm_scrape_t *s,
    const ngx_http_llm_family_t *f, uint64_t value)
{
    ngx_http_llm_put_literal(s->out, "} ");

    if (f->thousandths) {
        ngx_http_llm_metrics_seconds(s->out, value * 1000);

    } else {
        ngx_http_llm_put_uint(s->out, value);
    }

    ngx_http_llm_put_literal(s->out, "\n");
}


static void
ngx_http_llm_metrics_up(ngx_http_llm_scrape_t *s)
{
    size_t                  len;
    u_char                  hex[16];
    ngx_uint_t              i;
    ngx_http_llm_engine_t  *engine;

    ngx_http_llm_metrics_head(s, "llm_engine_up", "gauge",
                              "Whether a worker is connected to the engine.");

    for (i = 0; i < s->nviews; i++) {
        engine = s->views[i].engine;

        ngx_http_llm_metrics_labels(s, "llm_engine_up", "engine",
                                    (char *) engine->name.data);
        ngx_http_llm_put_literal(s->out, "} ");
        ngx_http_llm_put_uint(s->out, s->views[i].up);
        ngx_http_llm_put_literal(s->out, "\n");
    }

    ngx_http_llm_metrics_head(s, "llm_engine_info", "gauge",
                              "The model that the engine serves.");

    for (i = 0; i < s->nviews; i++) {
        engine = s->views[i].engine;

        if (!s->views[i].up) {
            continue;
        }

        len = ngx_sprintf(hex, "%016xL", engine->model.fingerprint) - hex;

        ngx_http_llm_metrics_labels(s, "llm_engine_info", "engine",
                                    (char *) engine->name.data);
        ngx_http_llm_metrics_label(s->out, ",model", engine->model.names,
                                   ngx_strlen(engine->model.names));
        ngx_http_llm_metrics_label(s->out, ",fingerprint", (char *) hex,
                                   len);
        ngx_http_llm_put_literal(s->out, "} 1\n");
    }
}


static void
ngx_http_llm_metrics_requests(ngx_http_llm_scrape_t *s)
{
    ngx_uint_t               i, j, k;
    ngx_http_llm_counted_t  *m;

    ngx_http_llm_metrics_head(s, "llm_requests_total", "counter",
                              "Requests that have ended, refused ones "
                              "included.");

    for (i = 0; i < s->nmodels; i++) {
        m = &s->counters->models[i];

        for (j = 0; j < NGX_HTTP_LLM_STATUSES_MAX; j++) {
            for (k = 0; k < NGX_HTTP_LLM_REASONS_MAX; k++) {

                if (m->requests[j][k] == 0) {
                    continue;
                }

                ngx_http_llm_metrics_labels(s, "llm_requests_total", "model",
                                            m->name);
                ngx_http_llm_metrics_label(s->out, ",status",
                                      ngx_http_llm_statuses[j],
                                      ngx_strlen(ngx_http_llm_statuses[j]));
                ngx_http_llm_metrics_label(s->out, ",finish_reason",
                                      ngx_http_llm_reasons[k],
                                      ngx_strlen(ngx_http_llm_reasons[k]));
                ngx_http_llm_put_literal(s->out, "} ");
                ngx_http_llm_put_uint(s->out, m->requests[j][k]);
                ngx_http_llm_put_literal(s->out, "\n");
            }
        }
    }
}


static void
ngx_http_llm_metrics_routed(ngx_http_llm_scrape_t *s)
{
    ngx_uint_t               i, j;
    ngx_http_llm_counted_t  *m;

    static const char *const  names[NGX_HTTP_LLM_NROUTED] = {
        "hit", "moved", "none"
    };

    ngx_http_llm_metrics_head(s, "llm_routed_requests_total", "counter",
                              "Requests under llm_route: the rank named by "
                              "prefix took it (hit), another one did (moved), "
                              "or none was named.");

    for (i = 0; i < s->nmodels; i++) {
        m = &s->counters->models[i];

        for (j = 0; j < NGX_HTTP_LLM_NROUTED; j++) {
            ngx_http_llm_metrics_labels(s, "llm_routed_requests_total",
                                        "model", m->name);
            ngx_http_llm_metrics_label(s->out, ",result", names[j],
                                       ngx_strlen(names[j]));
            ngx_http_llm_put_literal(s->out, "} ");
            ngx_http_llm_put_uint(s->out, m->routed[j]);
            ngx_http_llm_put_literal(s->out, "\n");
        }
    }
}


/* The buckets are copied first: they go on counting. */

void
ngx_http_llm_metrics_times(ngx_http_llm_scrape_t *s,
    const ngx_http_llm_times_t *times)
{
    size_t                     len;
    u_char                     name[96];
    uint64_t                   n;
    ngx_uint_t                 i, j;
    const uint64_t            *bounds;
    ngx_http_llm_counted_t    *m;
    ngx_http_llm_histogram_t   h;

    ngx_http_llm_metrics_head(s, times->name, "histogram", times->help);

    bounds = ngx_http_llm_bounds[times->which];
    len = ngx_strlen(times->name);

    ngx_memcpy(name, times->name, len);

    for (i = 0; i < s->nmodels; i++) {
        m = &s->counters->models[i];
        h = m->histograms[times->which];

        (void) ngx_cpystrn(name + len, (u_char *) "_bucket", 8);

        for (n = 0, j = 0; bounds[j] != 0; j++) {
            n += h.buckets[j];
            ngx_http_llm_metrics_bucket(s, (char *) name, m, bounds[j], n);
        }

        n += h.buckets[j];
        ngx_http_llm_metrics_bucket(s, (char *) name, m, 0, n);

        (void) ngx_cpystrn(name + len, (u_char *) "_sum", 5);

        ngx_http_llm_metrics_labels(s, (char *) name, "model", m->name);
        ngx_http_llm_put_literal(s->out, "} ");
        ngx_http_llm_metrics_seconds(s->out, h.sum_us);

        (void) ngx_cpystrn(name + len, (u_char *) "_count", 7);

        ngx_http_llm_put_literal(s->out, "\n");
        ngx_http_llm_metrics_labels(s, (char *) name, "model", m->name);
        ngx_http_llm_put_literal(s->out, "} ");
        ngx_http_llm_put_uint(s->out, n);
        ngx_http_llm_put_literal(s->out, "\n");
    }
}


static void
ngx_http_llm_metrics_bucket(ngx_http_llm_scrape_t *s, const char *name,
    ngx_http_llm_counted_t *m, uint64_t bound, uint64_t n)
{
    ngx_http_llm_metrics_labels(s, name, "model", m->name);
    ngx_http_llm_put_literal(s->out, ",le=\"");

    if (bound != 0) {
        ngx_http_llm_metrics_seconds(s->out, bound);

    } else {
        ngx_http_llm_put_literal(s->out, "+Inf");
    }

    ngx_http_llm_put_literal(s->out, "\"} ");
    ngx_http_llm_put_uint(s->out, n);
    ngx_http_llm_put_literal(s->out, "\n");
}


void
ngx_http_llm_metrics_labels(ngx_http_llm_scrape_t *s, const char *name,
    const char *key, const char *value)
{
    ngx_uint_t   i;
    const char  *model;

    ngx_http_llm_put(s->out, name, ngx_strlen(name));
    ngx_http_llm_put_literal(s->out, "{");

    if (!s->vllm) {
        ngx_http_llm_metrics_label(s->out, key, value, ngx_strlen(value));
        return;
    }

    if (key[0] == 'm') {
        ngx_http_llm_metrics_label(s->out, "model_name", value,
                                   ngx_strlen(value));
        return;
    }

    ngx_http_llm_metrics_label(s->out, key, value, ngx_strlen(value));

    for (i = 0, model = ""; i < s->nviews; i++) {
        if (s->views[i].engine->name.data == (u_char *) value) {
            model = s->views[i].engine->model.names;
        }
    }

    ngx_http_llm_metrics_label(s->out, ",model_name", model,
                               ngx_strlen(model));
}


/* Prometheus knows three escapes of JSON's. */

void
ngx_http_llm_metrics_label(ngx_http_llm_writer_t *w, const char *key,
    const char *value, size_t len)
{
    size_t  i, from;

    ngx_http_llm_put(w, key, ngx_strlen(key));
    ngx_http_llm_put_literal(w, "=\"");

    for (i = 0, from = 0; i < len; i++) {

        if ((u_char) value[i] < 0x20 && value[i] != '\n') {
            ngx_http_llm_put_json(w, value + from, i - from);
            ngx_http_llm_put_literal(w, "_");
            from = i + 1;
        }
    }

    ngx_http_llm_put_json(w, value + from, len - from);
    ngx_http_llm_put_literal(w, "\"");
}


/* Microseconds as seconds, without zeros at the end. */

static void
ngx_http_llm_metrics_seconds(ngx_http_llm_writer_t *w, uint64_t us)
{
    u_char  *p, buf[NGX_INT64_LEN + sizeof(".000000")];

    p = ngx_sprintf(buf, "%uL.%06uL", us / 1000000, us % 1000000);

    while (p[-1] == '0') {
        p--;
    }

    if (p[-1] == '.') {
        p--;
    }

    ngx_http_llm_put(w, buf, p - buf);
}
