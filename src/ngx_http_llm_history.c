/*
 * The last minutes, second by second, so that a status page has something to
 * show when it is opened.
 *
 * FORMAT  A ring of samples behind the counters in their zone: the sample of
 * second t lives in slot t modulo the ring's size and carries t itself.
 *
 * WRITER  Every worker has a timer of one second; the first of them in a
 * second takes it (`last`) and writes its sample: `time` is set to 0, then the
 * rest, then `time`.
 *
 * READER  copies a slot that has the second that it looks for before and after
 * copying it, and does without a second that is missing: nobody may have been
 * awake in it.
 *
 * RECOVERY  What a worker leaves half written has no time, and is written over
 * when the ring comes round.
 */

#include "ngx_http_llm_metrics.h"


#define NGX_HTTP_LLM_HISTORY_TIME  1000        /* ms */


static void ngx_http_llm_history_handler(ngx_event_t *ev);
static void ngx_http_llm_history_sample(ngx_http_llm_counters_t *counters,
    ngx_http_llm_sample_t *sample);


static ngx_event_t       ngx_http_llm_history_event;
static ngx_connection_t  ngx_http_llm_history_conn;


ngx_int_t
ngx_http_llm_history_init_process(ngx_cycle_t *cycle)
{
    ngx_event_t                       *ev;
    ngx_http_llm_metrics_main_conf_t  *mmcf;

    if (ngx_process != NGX_PROCESS_WORKER
        && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    mmcf = ngx_http_cycle_get_module_main_conf(cycle,
                                               ngx_http_llm_metrics_module);

    if (mmcf == NULL || mmcf->zone == NULL) {
        return NGX_OK;
    }

    ev = &ngx_http_llm_history_event;

    /* nginx's debug log takes a timer's data for a connection. */

    ngx_http_llm_history_conn.fd = (ngx_socket_t) -1;

    ev->handler = ngx_http_llm_history_handler;
    ev->data = &ngx_http_llm_history_conn;
    ev->log = cycle->log;
    ev->cancelable = 1;

    ngx_add_timer(ev, NGX_HTTP_LLM_HISTORY_TIME);

    return NGX_OK;
}


static void
ngx_http_llm_history_handler(ngx_event_t *ev)
{
    time_t                             now;
    ngx_atomic_uint_t                  last;
    ngx_http_llm_history_t            *history;
    ngx_http_llm_counters_t           *counters;
    ngx_http_llm_metrics_main_conf_t  *mmcf;

    if (ngx_exiting) {
        return;
    }

    ngx_add_timer(ev, NGX_HTTP_LLM_HISTORY_TIME);

    mmcf = ngx_http_cycle_get_module_main_conf(ngx_cycle,
                                               ngx_http_llm_metrics_module);

    if (mmcf == NULL || mmcf->zone == NULL) {
        return;
    }

    counters = mmcf->zone->data;
    history = &counters->history;

    now = ngx_time();
    last = history->last;

    if (last == (ngx_atomic_uint_t) now
        || !ngx_atomic_cmp_set(&history->last, last, now))
    {
        return;
    }

    ngx_http_llm_history_sample(counters,
                            &history->samples[now % NGX_HTTP_LLM_SAMPLES]);
}


static void
ngx_http_llm_history_sample(ngx_http_llm_counters_t *counters,
    ngx_http_llm_sample_t *sample)
{
    uint32_t                   j;
    uint64_t                   load;
    ngx_uint_t                 i, n;
    ngx_pool_t                *pool;
    ngx_http_llm_view_t       *views;
    ngx_http_llm_main_conf_t  *lmcf;

    pool = ngx_create_pool(4096, ngx_cycle->log);
    if (pool == NULL) {
        return;
    }

    lmcf = ngx_http_cycle_get_module_main_conf(ngx_cycle,
                                               ngx_http_llm_module);

    views = ngx_http_llm_views(lmcf, pool, &n);
    if (views == NULL) {
        goto done;
    }

    for (i = 0; i < n; i++) {
        if (views[i].up && !views[i].known) {
            goto done;
        }
    }

    sample->time = 0;

    ngx_memory_barrier();

    sample->out = 0;
    sample->prompt = 0;
    sample->nranks = 0;

    for (i = 0; i < counters->nmodels; i++) {
        sample->prompt += counters->models[i].prompt_tokens;
    }

    for (i = 0; i < n; i++) {
        sample->out += views[i].state.tokens;

        for (j = 0; j < views[i].nranks; j++) {

            if (sample->nranks == CHAN_RANKS_MAX) {
                break;
            }

            load = views[i].ranks[j].load_max;
            sample->load[sample->nranks++] = ngx_min(load, 65535);
        }
    }

    ngx_memory_barrier();

    sample->time = counters->history.last;

done:

    ngx_destroy_pool(pool);
}


ngx_int_t
ngx_http_llm_history_get(ngx_http_llm_counters_t *counters, time_t time,
    ngx_http_llm_sample_t *sample)
{
    ngx_http_llm_sample_t  *slot;

    slot = &counters->history.samples[time % NGX_HTTP_LLM_SAMPLES];

    if (slot->time != (ngx_atomic_uint_t) time) {
        return NGX_DECLINED;
    }

    ngx_memory_barrier();

    *sample = *slot;

    ngx_memory_barrier();

    return slot->time == (ngx_atomic_uint_t) time ? NGX_OK : NGX_DECLINED;
}
