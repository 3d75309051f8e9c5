/*
 * The day's requests, tokens and revenue, by account and by model.
 *
 * One zone of shared memory, "llm_ledger", of a fixed size, so that it survives
 * every reload; a new master begins with an empty one.  It holds a table of
 * names (ngx_http_llm_table.h): "t" for all, "a" and an account, "m" and a
 * model.  Each worker adds a request once, in the log phase, under the zone's
 * lock.  An entry of another day, of UTC, is cleared before something is added
 * and passed over by readers.  When the table is full the rest goes to
 * "(others)".
 */

#ifndef NGX_HTTP_LLM_LEDGER_H
#define NGX_HTTP_LLM_LEDGER_H

#include "ngx_http_llm_module.h"


#define NGX_HTTP_LLM_LEDGER_ALL    "t"
#define ngx_http_llm_ledger_now()  ((int64_t) ngx_time() / 86400)


typedef struct {
    ngx_shm_zone_t            *shm_zone;       /* NULL: nobody asks */
} ngx_http_llm_ledger_conf_t;

typedef struct {
    int64_t     day;                 /* since 1970 */
    uint64_t    requests;
    uint64_t    failed;              /* status 400 and above */
    uint64_t    unpriced;            /* with tokens, and no price */
    uint64_t    input;
    uint64_t    hit;                 /* of these */
    uint64_t    output;
    uint64_t    reasoning;           /* of these */
    int64_t     nano;                /* revenue, nanodollars */
} ngx_http_llm_day_t;


extern ngx_module_t  ngx_http_llm_ledger_module;


/*
 * ngx_http_llm_ledger_need() is for whoever shows the day while the
 * configuration is read: it makes the zone, if llm_ledger does not.
 *
 * ngx_http_llm_ledger_today() is the sum of today so far; NGX_DECLINED: there
 * is no zone.
 */

ngx_int_t ngx_http_llm_ledger_need(ngx_conf_t *cf);
ngx_int_t ngx_http_llm_ledger_today(ngx_http_request_t *r,
    ngx_http_llm_day_t *day);


/* ngx_http_llm_ledger_sheet.c: the content handler. */

ngx_int_t ngx_http_llm_ledger_handler(ngx_http_request_t *r);


#endif /* NGX_HTTP_LLM_LEDGER_H */
