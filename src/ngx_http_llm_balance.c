/*
 * Balances: 402 when one is used up, and a charge for what a request cost.
 *
 * An account has a balance from its first credit on.  A request is admitted
 * while it is above zero; what runs at the same time may take it below, by what
 * these requests cost.
 *
 * A charge that cannot be written, because the disk is full, is kept by its
 * worker and tried again; until then the worker admits no request of an
 * account with a balance.
 */

#include "ngx_http_llm_balance.h"
#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_journal.h"
#include "ngx_http_llm_policy.h"
#include "ngx_http_llm_price.h"

#include "ledger/ledger_journal.h"


#define NGX_HTTP_LLM_PAYMENT_REQUIRED  402
#define NGX_HTTP_LLM_BALANCE_RETRY     1000   /* ms between tries to write */


typedef struct {
    ngx_queue_t              queue;
    size_t                   len;
    char                     line[LEDGER_JOURNAL_LINE];
} ngx_http_llm_charge_t;

typedef struct {
    ngx_http_llm_journal_t  *journal;     /* or NULL */

    /* this worker's */

    ngx_queue_t              charges;     /* not yet written */
    ngx_event_t              timer;
} ngx_http_llm_balance_conf_t;


static void *ngx_http_llm_balance_create_conf(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_balance_init(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_balance_admit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_balance_done(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_balance_charge(ngx_http_request_t *r,
    ngx_http_llm_balance_conf_t *bcf, ngx_str_t *account, int64_t nano);
static ngx_int_t ngx_http_llm_balance_id(ngx_http_request_t *r, char *id);
static void ngx_http_llm_balance_nth(void *data);
static void ngx_http_llm_balance_keep(ngx_http_llm_balance_conf_t *bcf,
    ngx_log_t *log, const char *line, size_t len);
static void ngx_http_llm_balance_retry(ngx_http_llm_balance_conf_t *bcf,
    ngx_log_t *log);
static void ngx_http_llm_balance_timer(ngx_event_t *ev);
static ngx_int_t ngx_http_llm_balance_init_process(ngx_cycle_t *cycle);
static void ngx_http_llm_balance_exit_process(ngx_cycle_t *cycle);


static ngx_http_module_t  ngx_http_llm_balance_module_ctx = {
    NULL,                                  /* preconfiguration */
    ngx_http_llm_balance_init,             /* postconfiguration */

    ngx_http_llm_balance_create_conf,      /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    NULL,                                  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_balance_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_balance_module_ctx,      /* module context */
    NULL,                                  /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    ngx_http_llm_balance_init_process,     /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    ngx_http_llm_balance_exit_process,     /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static void *
ngx_http_llm_balance_create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_balance_conf_t));
}


static ngx_int_t
ngx_http_llm_balance_init(ngx_conf_t *cf)
{
    ngx_http_llm_balance_conf_t   *bcf;
    ngx_http_llm_accounts_conf_t  *acf;

    bcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_balance_module);
    acf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_accounts_module);

    if (acf->state.len == 0) {
        return NGX_OK;
    }

    bcf->journal = ngx_http_llm_journal_add(cf, &acf->state, acf->shm_zone,
                                            &ngx_http_llm_balance_module);
    if (bcf->journal == NULL) {
        return NGX_ERROR;
    }

    return ngx_http_llm_policy_add(cf, NGX_HTTP_LLM_STEP_BALANCE,
                                   ngx_http_llm_balance_admit,
                                   ngx_http_llm_balance_done);
}


ngx_int_t
ngx_http_llm_balance(ngx_http_request_t *r, ngx_str_t *account,
    int64_t *nano)
{
    ngx_http_llm_balance_conf_t  *bcf;

    bcf = ngx_http_get_module_main_conf(r, ngx_http_llm_balance_module);

    if (bcf->journal == NULL
        || ngx_http_llm_journal_look(bcf->journal, r->connection->log)
           != NGX_OK)
    {
        return NGX_DECLINED;
    }

    return ngx_http_llm_journal_find(bcf->journal, account, nano);
}


static ngx_int_t
ngx_http_llm_balance_admit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    int64_t                       nano;
    ngx_int_t                     rc;
    ngx_http_llm_account_t       *account;
    ngx_http_llm_balance_conf_t  *bcf;

    account = ngx_http_llm_account(r);

    if (account == NULL) {
        return NGX_OK;
    }

    bcf = ngx_http_get_module_main_conf(r, ngx_http_llm_balance_module);

    rc = ngx_http_llm_journal_look(bcf->journal, r->connection->log);

    if (ngx_http_llm_journal_find(bcf->journal, &account->name, &nano)
        != NGX_OK)
    {
        return NGX_OK;
    }

    if (rc != NGX_OK || !ngx_queue_empty(&bcf->charges)) {
        (void) ngx_http_llm_error_set(&ctx->error,
                                      NGX_HTTP_SERVICE_UNAVAILABLE,
                                      "balance_unavailable", NULL,
                                      "The account's balance cannot be kept "
                                      "at present.");
        ctx->error.retry_after = 1;
        return NGX_ERROR;
    }

    if (nano > 0) {
        return NGX_OK;
    }

    return ngx_http_llm_error_set(&ctx->error, NGX_HTTP_LLM_PAYMENT_REQUIRED,
                                  "insufficient_balance", NULL,
                                  "The account's balance is used up.");
}


static void
ngx_http_llm_balance_done(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    int64_t                       nano, had;
    ngx_http_llm_account_t       *account;
    ngx_http_llm_balance_conf_t  *bcf;

    account = ngx_http_llm_account(r);

    if (account == NULL
        || ngx_http_llm_cost(r, ctx, &nano) != NGX_OK
        || nano == 0)
    {
        return;
    }

    bcf = ngx_http_get_module_main_conf(r, ngx_http_llm_balance_module);

    /* Whether it has a balance was read when the request was admitted. */

    if (ngx_http_llm_journal_find(bcf->journal, &account->name, &had)
        == NGX_OK)
    {
        ngx_http_llm_balance_charge(r, bcf, &account->name, -nano);
    }
}


static void
ngx_http_llm_balance_charge(ngx_http_request_t *r,
    ngx_http_llm_balance_conf_t *bcf, ngx_str_t *account, int64_t nano)
{
    char             line[LEDGER_JOURNAL_LINE];
    size_t           len;
    ledger_record_t  rec;

    rec.charge = 1;
    rec.time = ngx_time();
    rec.nano = nano;

    if (ngx_http_llm_balance_id(r, rec.id) != NGX_OK
        || account->len >= sizeof(rec.account))
    {
        ngx_log_error(NGX_LOG_ALERT, r->connection->log, 0,
                      "no request id for a charge");
        return;
    }

    (void) ngx_cpystrn((u_char *) rec.account, account->data,
                       account->len + 1);

    len = ledger_record_put(line, &rec);

    if (len == 0) {
        ngx_log_error(NGX_LOG_ALERT, r->connection->log, 0,
                      "a charge of account \"%V\" cannot be written",
                      account);
        return;
    }

    if (ngx_http_llm_journal_write(bcf->journal, r->connection->log, line, len)
        != NGX_OK)
    {
        ngx_http_llm_balance_keep(bcf, r->connection->log, line, len);
    }
}


/*
 * $request_id, with "-2" and so on behind it for what one request of a client
 * costs more than once: in a location that failed and in that of error_page, or
 * in a subrequest of "mirror".  Readers would take them for the same charge.
 */

static ngx_int_t
ngx_http_llm_balance_id(ngx_http_request_t *r, char *id)
{
    u_char                     *p;
    ngx_uint_t                 *n;
    ngx_pool_cleanup_t         *cln;
    ngx_http_variable_value_t  *vv;
    ngx_http_llm_main_conf_t   *lmcf;

    lmcf = ngx_http_get_module_main_conf(r, ngx_http_llm_module);
    vv = ngx_http_get_indexed_variable(r, lmcf->request_id);

    if (vv == NULL || vv->not_found
        || vv->len + NGX_INT_T_LEN + sizeof("-") > LEDGER_JOURNAL_ID)
    {
        return NGX_ERROR;
    }

    /* Contexts do not survive error_page, the pool does. */

    for (cln = r->pool->cleanup; cln != NULL; cln = cln->next) {
        if (cln->handler == ngx_http_llm_balance_nth) {
            break;
        }
    }

    if (cln == NULL) {
        cln = ngx_pool_cleanup_add(r->pool, sizeof(ngx_uint_t));
        if (cln == NULL) {
            return NGX_ERROR;
        }

        cln->handler = ngx_http_llm_balance_nth;
        *(ngx_uint_t *) cln->data = 0;
    }

    n = cln->data;
    p = ngx_cpymem((u_char *) id, vv->data, vv->len);

    if (++*n > 1) {
        p = ngx_sprintf(p, "-%ui", *n);
    }

    *p = '\0';

    return NGX_OK;
}


/* Its data is the number of charges. */

static void
ngx_http_llm_balance_nth(void *data)
{
}


static void
ngx_http_llm_balance_keep(ngx_http_llm_balance_conf_t *bcf, ngx_log_t *log,
    const char *line, size_t len)
{
    ngx_http_llm_charge_t  *charge;

    charge = ngx_alloc(sizeof(ngx_http_llm_charge_t), log);

    if (charge == NULL) {
        ngx_log_error(NGX_LOG_ALERT, log, 0,
                      "llm journal \"%V\": lost: %*s", &bcf->journal->path,
                      len - 1, line);
        return;
    }

    ngx_memcpy(charge->line, line, len);
    charge->len = len;
    ngx_queue_insert_tail(&bcf->charges, &charge->queue);

    if (!bcf->timer.timer_set) {
        ngx_add_timer(&bcf->timer, NGX_HTTP_LLM_BALANCE_RETRY);
    }
}


static void
ngx_http_llm_balance_retry(ngx_http_llm_balance_conf_t *bcf, ngx_log_t *log)
{
    ngx_queue_t            *q;
    ngx_http_llm_charge_t  *charge;

    while (!ngx_queue_empty(&bcf->charges)) {
        q = ngx_queue_head(&bcf->charges);
        charge = ngx_queue_data(q, ngx_http_llm_charge_t, queue);

        if (ngx_http_llm_journal_write(bcf->journal, log, charge->line,
                                       charge->len)
            != NGX_OK)
        {
            return;
        }

        ngx_queue_remove(q);
        ngx_free(charge);
    }
}


static void
ngx_http_llm_balance_timer(ngx_event_t *ev)
{
    ngx_http_llm_balance_conf_t *bcf = ev->data;

    ngx_http_llm_balance_retry(bcf, ev->log);

    if (!ngx_queue_empty(&bcf->charges)) {
        ngx_add_timer(ev, NGX_HTTP_LLM_BALANCE_RETRY);
    }
}


static ngx_int_t
ngx_http_llm_balance_init_process(ngx_cycle_t *cycle)
{
    ngx_http_llm_balance_conf_t  *bcf;

    bcf = ngx_http_cycle_get_module_main_conf(cycle,
                                              ngx_http_llm_balance_module);

    if (bcf == NULL || bcf->journal == NULL) {
        return NGX_OK;
    }

    ngx_queue_init(&bcf->charges);

    bcf->timer.handler = ngx_http_llm_balance_timer;
    bcf->timer.data = bcf;
    bcf->timer.log = cycle->log;
    bcf->timer.cancelable = 1;

    return NGX_OK;
}


/* The last try; what cannot be written is at least in the log. */

static void
ngx_http_llm_balance_exit_process(ngx_cycle_t *cycle)
{
    ngx_queue_t                  *q;
    ngx_http_llm_charge_t        *charge;
    ngx_http_llm_balance_conf_t  *bcf;

    bcf = ngx_http_cycle_get_module_main_conf(cycle,
                                              ngx_http_llm_balance_module);

    if (bcf == NULL || bcf->journal == NULL || bcf->timer.handler == NULL) {
        return;
    }

    ngx_http_llm_balance_retry(bcf, cycle->log);

    while (!ngx_queue_empty(&bcf->charges)) {
        q = ngx_queue_head(&bcf->charges);
        charge = ngx_queue_data(q, ngx_http_llm_charge_t, queue);

        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0,
                      "llm journal \"%V\": lost: %*s", &bcf->journal->path,
                      charge->len - 1, charge->line);

        ngx_queue_remove(q);
        ngx_free(charge);
    }
}
