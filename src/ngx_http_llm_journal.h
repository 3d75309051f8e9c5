/*
 * The journal of balances, llm_accounts' state=FILE, and the balances that it
 * comes to.
 *
 * FORMAT    The file (ledger/ledger_journal.h) is the only truth.  A zone of
 * shared memory has what is summed up from it: for each account its balance
 * and up to where of the file it is, and up to where the file was read.
 *
 * READERS   Whoever wants to know a balance reads what is new in the file and
 * adds it up, under the zone's lock.  So what other workers, another master
 * after a binary upgrade and llm-ledger credit appended is counted the same
 * way, once, by whichever worker comes first.  Workers count in the zone what
 * they appended, so what a request cost is seen by all that come after its end;
 * for what others appended a worker looks once a millisecond.
 *
 * RECOVERY  A record is added to a balance by one store, which changes balance
 * and place together; who is killed before the place of the whole file moved
 * on leaves a record to be read again that the account already has.  A new
 * zone, after a start or a reload that changes its size, reads the file from
 * its begin.
 */

#ifndef NGX_HTTP_LLM_JOURNAL_H
#define NGX_HTTP_LLM_JOURNAL_H

#include <ngx_config.h>
#include <ngx_core.h>


typedef struct ngx_http_llm_journal_sh_s  ngx_http_llm_journal_sh_t;

typedef struct {
    ngx_str_t                     path;
    ngx_pool_t                   *pool;
    ngx_fd_t                      fd;
    ngx_slab_pool_t              *shpool;
    ngx_http_llm_journal_sh_t    *sh;

    /* this process's */

    ngx_msec_t                    seen;        /* when it last looked for
                                                  others' records */
    uint64_t                      left;        /* bytes of a record not yet
                                                  whole at the file's end */
    unsigned                      looked:1;
    unsigned                      cut:1;       /* the file is too short */
} ngx_http_llm_journal_t;


/*
 * A journal of cf->pool, for module `tag`.  Its zone is named after that of the
 * accounts, which all of their state goes with, and as large; ids and the like
 * come on top.  The file is opened, and read, with the zone.  NULL: no memory.
 */

ngx_http_llm_journal_t *ngx_http_llm_journal_add(ngx_conf_t *cf,
    ngx_str_t *path, ngx_shm_zone_t *accounts, ngx_module_t *tag);

/* Adds up what is new in the file.  NGX_ERROR, logged: it cannot be read. */

ngx_int_t ngx_http_llm_journal_sync(ngx_http_llm_journal_t *journal,
    ngx_log_t *log);

/* The same where there may be something new.  To be called for a balance. */

ngx_int_t ngx_http_llm_journal_look(ngx_http_llm_journal_t *journal,
    ngx_log_t *log);

/*
 * An account's balance in nanodollars as of the last sync or look.
 * NGX_DECLINED: it has none.
 */

ngx_int_t ngx_http_llm_journal_find(ngx_http_llm_journal_t *journal,
    ngx_str_t *account, int64_t *nano);

/* Appends a record.  NGX_ERROR, logged: it does not count, write it again. */

ngx_int_t ngx_http_llm_journal_write(ngx_http_llm_journal_t *journal,
    ngx_log_t *log, const char *line, size_t len);


#endif /* NGX_HTTP_LLM_JOURNAL_H */
