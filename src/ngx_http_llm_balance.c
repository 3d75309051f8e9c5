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
#include "ngx_http_llm_policy.h"
#include "ngx_http_llm_price.h"
#include "ngx_http_llm_table.h"

#include "ledger/ledger_journal.h"

#include <sys/file.h>


#define NGX_HTTP_LLM_PAYMENT_REQUIRED  402
#define NGX_HTTP_LLM_BALANCE_RETRY     1000   /* ms between tries to write */
#define NGX_HTTP_LLM_BALANCE_NAMED     16     /* damages, in one go */
#define NGX_HTTP_LLM_BALANCE_SUFFIX    " balances"


/* Which of the two pairs is valid is one store. */

typedef struct {
    int64_t                       nano[2];
    uint64_t                      end[2];      /* of the last record in it */
    volatile ngx_uint_t           current;
} ngx_http_llm_balance_node_t;

typedef struct {
    uint64_t                      device;      /* of the journal */
    uint64_t                      inode;
    ledger_reader_t               reader;
    uint64_t                      duplicates;
    uint64_t                      homeless;    /* without room in the table */
    ngx_http_llm_table_t         *table;
    ledger_recent_t               recent;
} ngx_http_llm_balance_sh_t;

typedef struct {
    ngx_queue_t                   queue;
    size_t                        len;
    char                          line[LEDGER_JOURNAL_LINE];
} ngx_http_llm_charge_t;

typedef struct {
    ngx_str_t                     path;        /* empty: no journal */
    ngx_pool_t                   *pool;
    ngx_fd_t                      fd;
    ngx_slab_pool_t              *shpool;
    ngx_http_llm_balance_sh_t    *sh;

    /* this worker's */

    ngx_queue_t                   charges;     /* not yet written */
    ngx_event_t                   timer;
    ngx_uint_t                    cut;         /* the file is too short */
} ngx_http_llm_balance_conf_t;


static void *ngx_http_llm_balance_create_conf(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_balance_init(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_balance_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_llm_balance_open(ngx_http_llm_balance_conf_t *bcf,
    ngx_log_t *log, struct stat *st);
static void ngx_http_llm_balance_close(void *data);
static ngx_int_t ngx_http_llm_balance_sync(ngx_http_llm_balance_conf_t *bcf,
    ngx_log_t *log, uint64_t *left);
static ngx_int_t ngx_http_llm_balance_read(ngx_http_llm_balance_conf_t *bcf,
    ngx_log_t *log, uint64_t *left);
static ngx_int_t ngx_http_llm_balance_apply(ngx_http_llm_balance_sh_t *sh,
    ledger_record_t *r, uint64_t end);
static ngx_int_t ngx_http_llm_balance_find(ngx_http_llm_balance_conf_t *bcf,
    ngx_str_t *account, int64_t *nano);
static ngx_int_t ngx_http_llm_balance_admit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_balance_done(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static void ngx_http_llm_balance_charge(ngx_http_request_t *r,
    ngx_http_llm_balance_conf_t *bcf, ngx_str_t *account, int64_t nano);
static ngx_int_t ngx_http_llm_balance_id(ngx_http_request_t *r, char *id);
static void ngx_http_llm_balance_nth(void *data);
static ngx_int_t ngx_http_llm_balance_write(ngx_http_llm_balance_conf_t *bcf,
    ngx_log_t *log, const char *line, size_t len);
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
    ngx_http_llm_balance_conf_t  *bcf;

    bcf = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_balance_conf_t));

    if (bcf != NULL) {
        bcf->fd = NGX_INVALID_FILE;
    }

    return bcf;
}


/*
 * The zone is named after that of the accounts, which all of their state goes
 * with, and as large; ids and the like come on top.
 */

static ngx_int_t
ngx_http_llm_balance_init(ngx_conf_t *cf)
{
    size_t                         size;
    ngx_str_t                      name, *zone;
    ngx_shm_zone_t                *shm_zone;
    ngx_http_llm_balance_conf_t   *bcf;
    ngx_http_llm_accounts_conf_t  *acf;

    bcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_balance_module);
    acf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_accounts_module);

    if (acf->state.len == 0) {
        return NGX_OK;
    }

    bcf->path = acf->state;
    bcf->pool = cf->pool;

    zone = &acf->shm_zone->shm.name;
    name.len = zone->len + sizeof(NGX_HTTP_LLM_BALANCE_SUFFIX) - 1;
    name.data = ngx_pnalloc(cf->pool, name.len + 1);
    if (name.data == NULL) {
        return NGX_ERROR;
    }

    (void) ngx_sprintf(name.data, "%V" NGX_HTTP_LLM_BALANCE_SUFFIX "%Z",
                       zone);

    size = acf->shm_zone->shm.size
           + ngx_align(sizeof(ngx_http_llm_balance_sh_t), ngx_pagesize)
           + 4 * ngx_pagesize;

    shm_zone = ngx_shared_memory_add(cf, &name, size,
                                     &ngx_http_llm_balance_module);
    if (shm_zone == NULL) {
        return NGX_ERROR;
    }

    shm_zone->init = ngx_http_llm_balance_init_zone;
    shm_zone->data = bcf;

    return ngx_http_llm_policy_add(cf, NGX_HTTP_LLM_STEP_BALANCE,
                                   ngx_http_llm_balance_admit,
                                   ngx_http_llm_balance_done);
}


static ngx_int_t
ngx_http_llm_balance_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_llm_balance_conf_t *old = data;

    uint64_t                      left;
    ngx_log_t                    *log;
    struct stat                   st;
    ngx_http_llm_balance_sh_t    *sh;
    ngx_http_llm_balance_conf_t  *bcf;

    bcf = shm_zone->data;
    log = shm_zone->shm.log;

    bcf->shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (ngx_http_llm_balance_open(bcf, log, &st) != NGX_OK) {
        return NGX_ERROR;
    }

    if (old != NULL || shm_zone->shm.exists) {
        sh = (old != NULL) ? old->sh : bcf->shpool->data;
        bcf->sh = sh;

        if (sh->device != (uint64_t) st.st_dev
            || sh->inode != (uint64_t) st.st_ino)
        {
            ngx_log_error(NGX_LOG_EMERG, log, 0,
                          "\"%V\" is not the journal that this nginx was "
                          "started with: stop it, then start it",
                          &bcf->path);
            return NGX_ERROR;
        }

        return ngx_http_llm_balance_sync(bcf, log, &left);
    }

    sh = ngx_slab_calloc(bcf->shpool, sizeof(ngx_http_llm_balance_sh_t));
    if (sh == NULL) {
        return NGX_ERROR;
    }

    sh->device = st.st_dev;
    sh->inode = st.st_ino;

    sh->table = ngx_http_llm_table_create(bcf->shpool,
                                      sizeof(ngx_http_llm_balance_node_t));
    if (sh->table == NULL) {
        ngx_log_error(NGX_LOG_EMERG, log, 0,
                      "the zone of llm_accounts is too small");
        return NGX_ERROR;
    }

    bcf->sh = sh;
    bcf->shpool->data = sh;

    if (ngx_http_llm_balance_sync(bcf, log, &left) != NGX_OK) {
        return NGX_ERROR;
    }

    if (sh->homeless != 0) {
        return NGX_ERROR;
    }

    ngx_log_error(NGX_LOG_NOTICE, log, 0,
                  "llm journal \"%V\": %uL records, %ui accounts, %uL "
                  "damaged, %uL twice", &bcf->path, sh->reader.records,
                  sh->table->n, sh->reader.damaged, sh->duplicates);

    if (left != 0) {
        ngx_log_error(NGX_LOG_WARN, log, 0,
                      "llm journal \"%V\": %uL bytes at its end are a record "
                      "that was cut off, passed over", &bcf->path, left);
    }

    return NGX_OK;
}


/*
 * The lock tells llm-ledger compact that the file is in use; it is the file's
 * as long as any worker has it open.
 */

static ngx_int_t
ngx_http_llm_balance_open(ngx_http_llm_balance_conf_t *bcf, ngx_log_t *log,
    struct stat *st)
{
    ngx_pool_cleanup_t  *cln;

    cln = ngx_pool_cleanup_add(bcf->pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    bcf->fd = open((const char *) bcf->path.data,
                   O_RDWR|O_APPEND|O_CREAT|O_CLOEXEC, 0600);

    if (bcf->fd == NGX_INVALID_FILE) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno,
                      ngx_open_file_n " \"%V\" failed", &bcf->path);
        return NGX_ERROR;
    }

    cln->handler = ngx_http_llm_balance_close;
    cln->data = bcf;

    if (fstat(bcf->fd, st) == -1) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno,
                      ngx_fd_info_n " \"%V\" failed", &bcf->path);
        return NGX_ERROR;
    }

    if (!S_ISREG(st->st_mode)) {
        ngx_log_error(NGX_LOG_EMERG, log, 0, "\"%V\" is not a regular file",
                      &bcf->path);
        return NGX_ERROR;
    }

    if (flock(bcf->fd, LOCK_SH|LOCK_NB) == -1) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno,
                      "flock() \"%V\" failed, llm-ledger compact may be "
                      "running", &bcf->path);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static void
ngx_http_llm_balance_close(void *data)
{
    ngx_http_llm_balance_conf_t *bcf = data;

    if (close(bcf->fd) == -1) {
        ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", &bcf->path);
    }

    bcf->fd = NGX_INVALID_FILE;
}


/* Adds up what is new; `*left` is what is there of an unfinished record. */

static ngx_int_t
ngx_http_llm_balance_sync(ngx_http_llm_balance_conf_t *bcf, ngx_log_t *log,
    uint64_t *left)
{
    uint64_t      size, offset;
    ngx_int_t     rc;
    struct stat   st;

    *left = 0;

    /* Before the size, or others may go beyond that in between. */

    offset = *(volatile uint64_t *) &bcf->sh->reader.offset;

    if (fstat(bcf->fd, &st) == -1) {
        ngx_log_error(NGX_LOG_ALERT, log, ngx_errno,
                      ngx_fd_info_n " \"%V\" failed", &bcf->path);
        return NGX_ERROR;
    }

    size = st.st_size;

    if (size == offset) {
        return NGX_OK;
    }

    if (size < offset) {

        if (!bcf->cut) {
            bcf->cut = 1;
            ngx_log_error(NGX_LOG_ALERT, log, 0,
                          "llm journal \"%V\" has become shorter: balances "
                          "stay as they are until nginx is started again",
                          &bcf->path);
        }

        return NGX_OK;
    }

    ngx_shmtx_lock(&bcf->shpool->mutex);

    rc = ngx_http_llm_balance_read(bcf, log, left);

    ngx_shmtx_unlock(&bcf->shpool->mutex);

    return rc;
}


static ngx_int_t
ngx_http_llm_balance_read(ngx_http_llm_balance_conf_t *bcf, ngx_log_t *log,
    uint64_t *left)
{
    char                        err[LEDGER_JOURNAL_ERR];
    ssize_t                     n;
    uint64_t                    at;
    ngx_uint_t                  named;
    const char                 *p;
    ledger_next_e               next;
    ledger_reader_t             reader;
    ledger_record_t             r;
    ngx_http_llm_balance_sh_t  *sh;

    static char  buf[LEDGER_JOURNAL_BUFFER];

    sh = bcf->sh;
    named = 0;

    for ( ;; ) {
        reader = sh->reader;

        n = pread(bcf->fd, buf, sizeof(buf), reader.offset);

        if (n == -1) {
            ngx_log_error(NGX_LOG_ALERT, log, ngx_errno,
                          ngx_read_file_n " \"%V\" failed", &bcf->path);
            return NGX_ERROR;
        }

        p = buf;

        while ((next = ledger_journal_next(&reader, &p, buf + n, &r, &at,
                                           err))
               != LEDGER_AGAIN)
        {
            if (next == LEDGER_DAMAGED) {

                if (++named <= NGX_HTTP_LLM_BALANCE_NAMED) {
                    ngx_log_error(NGX_LOG_ERR, log, 0,
                                  "llm journal \"%V\": byte %uL: %s, passed "
                                  "over", &bcf->path, at, err);
                }

            } else if (ngx_http_llm_balance_apply(sh, &r, reader.offset)
                       != NGX_OK
                       && sh->homeless++ == 0)
            {
                ngx_log_error(NGX_LOG_EMERG, log, 0,
                              "llm journal \"%V\": no room for account "
                              "\"%s\", the zone of llm_accounts is too small",
                              &bcf->path, r.account);
            }

            sh->reader = reader;
        }

        sh->reader = reader;

        /* A file that is read to its end gives less than was asked for. */

        if (n < (ssize_t) sizeof(buf)) {
            *left = buf + n - p;
            break;
        }
    }

    if (named > NGX_HTTP_LLM_BALANCE_NAMED) {
        ngx_log_error(NGX_LOG_ERR, log, 0,
                      "llm journal \"%V\": %ui more parts passed over",
                      &bcf->path, named - NGX_HTTP_LLM_BALANCE_NAMED);
    }

    return NGX_OK;
}


/*
 * Each step may be the last one of this process, and what follows from the
 * begin is then done again by another: see ngx_http_llm_balance.h.
 */

static ngx_int_t
ngx_http_llm_balance_apply(ngx_http_llm_balance_sh_t *sh, ledger_record_t *r,
    uint64_t end)
{
    int64_t                       nano;
    ngx_str_t                     name;
    ngx_uint_t                    from, to;
    ngx_http_llm_balance_node_t  *node;

    name.data = (u_char *) r->account;
    name.len = ngx_strlen(r->account);

    node = ngx_http_llm_table_find(sh->table, &name);

    if (node != NULL && node->end[node->current] >= end) {
        goto done;
    }

    if (r->charge && ledger_recent_has(&sh->recent, r->id)) {
        sh->duplicates++;
        return NGX_OK;
    }

    if (node == NULL) {
        node = ngx_http_llm_table_get(sh->table, &name);
        if (node == NULL) {
            return NGX_ERROR;
        }
    }

    from = node->current;
    to = !from;

    if (__builtin_add_overflow(node->nano[from], r->nano, &nano)) {
        nano = r->nano < 0 ? INT64_MIN : INT64_MAX;
    }

    node->nano[to] = nano;
    node->end[to] = end;

    ngx_memory_barrier();

    node->current = to;

    ngx_memory_barrier();

done:

    if (r->charge && !ledger_recent_has(&sh->recent, r->id)) {
        ledger_recent_add(&sh->recent, r->id);
    }

    return NGX_OK;
}


/* As it was last read. */

static ngx_int_t
ngx_http_llm_balance_find(ngx_http_llm_balance_conf_t *bcf,
    ngx_str_t *account, int64_t *nano)
{
    ngx_http_llm_balance_node_t  *node;

    node = ngx_http_llm_table_find(bcf->sh->table, account);

    if (node == NULL || node->end[node->current] == 0) {
        return NGX_DECLINED;
    }

    *nano = node->nano[node->current];

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_balance(ngx_http_request_t *r, ngx_str_t *account,
    int64_t *nano)
{
    uint64_t                      left;
    ngx_http_llm_balance_conf_t  *bcf;

    bcf = ngx_http_get_module_main_conf(r, ngx_http_llm_balance_module);

    if (bcf->path.len == 0
        || ngx_http_llm_balance_sync(bcf, r->connection->log, &left)
           != NGX_OK)
    {
        return NGX_DECLINED;
    }

    return ngx_http_llm_balance_find(bcf, account, nano);
}


static ngx_int_t
ngx_http_llm_balance_admit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    int64_t                       nano;
    uint64_t                      left;
    ngx_int_t                     rc;
    ngx_http_llm_account_t       *account;
    ngx_http_llm_balance_conf_t  *bcf;

    account = ngx_http_llm_account(r);

    if (account == NULL) {
        return NGX_OK;
    }

    bcf = ngx_http_get_module_main_conf(r, ngx_http_llm_balance_module);

    rc = ngx_http_llm_balance_sync(bcf, r->connection->log, &left);

    if (ngx_http_llm_balance_find(bcf, &account->name, &nano) != NGX_OK) {
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

    if (ngx_http_llm_balance_find(bcf, &account->name, &had) == NGX_OK) {
        ngx_http_llm_balance_charge(r, bcf, &account->name, -nano);
    }
}


static void
ngx_http_llm_balance_charge(ngx_http_request_t *r,
    ngx_http_llm_balance_conf_t *bcf, ngx_str_t *account, int64_t nano)
{
    char             line[LEDGER_JOURNAL_LINE];
    size_t           len;
    uint64_t         left;
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

    if (ngx_http_llm_balance_write(bcf, r->connection->log, line, len)
        != NGX_OK)
    {
        ngx_http_llm_balance_keep(bcf, r->connection->log, line, len);
        return;
    }

    (void) ngx_http_llm_balance_sync(bcf, r->connection->log, &left);
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


/* What a short write leaves is passed over by readers. */

static ngx_int_t
ngx_http_llm_balance_write(ngx_http_llm_balance_conf_t *bcf, ngx_log_t *log,
    const char *line, size_t len)
{
    ssize_t  n;

    do {
        n = write(bcf->fd, line, len);

    } while (n == -1 && ngx_errno == NGX_EINTR);

    if (n == (ssize_t) len) {
        return NGX_OK;
    }

    if (n == -1) {
        ngx_log_error(NGX_LOG_CRIT, log, ngx_errno,
                      ngx_write_fd_n " \"%V\" failed", &bcf->path);

    } else {
        ngx_log_error(NGX_LOG_CRIT, log, 0,
                      ngx_write_fd_n " \"%V\" has written only %z of %uz",
                      &bcf->path, n, len);
    }

    return NGX_ERROR;
}


static void
ngx_http_llm_balance_keep(ngx_http_llm_balance_conf_t *bcf, ngx_log_t *log,
    const char *line, size_t len)
{
    ngx_http_llm_charge_t  *charge;

    charge = ngx_alloc(sizeof(ngx_http_llm_charge_t), log);

    if (charge == NULL) {
        ngx_log_error(NGX_LOG_ALERT, log, 0,
                      "llm journal \"%V\": lost: %*s", &bcf->path, len - 1,
                      line);
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
    uint64_t                left;
    ngx_queue_t            *q;
    ngx_http_llm_charge_t  *charge;

    while (!ngx_queue_empty(&bcf->charges)) {
        q = ngx_queue_head(&bcf->charges);
        charge = ngx_queue_data(q, ngx_http_llm_charge_t, queue);

        if (ngx_http_llm_balance_write(bcf, log, charge->line, charge->len)
            != NGX_OK)
        {
            return;
        }

        ngx_queue_remove(q);
        ngx_free(charge);
    }

    (void) ngx_http_llm_balance_sync(bcf, log, &left);
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

    if (bcf == NULL || bcf->path.len == 0) {
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

    if (bcf == NULL || bcf->path.len == 0 || bcf->timer.handler == NULL) {
        return;
    }

    ngx_http_llm_balance_retry(bcf, cycle->log);

    while (!ngx_queue_empty(&bcf->charges)) {
        q = ngx_queue_head(&bcf->charges);
        charge = ngx_queue_data(q, ngx_http_llm_charge_t, queue);

        ngx_log_error(NGX_LOG_ALERT, cycle->log, 0,
                      "llm journal \"%V\": lost: %*s", &bcf->path,
                      charge->len - 1, charge->line);

        ngx_queue_remove(q);
        ngx_free(charge);
    }
}
