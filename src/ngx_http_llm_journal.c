/*
 * The journal of balances and the zone that has what is summed up from it.
 */

#include "ngx_http_llm_journal.h"
#include "ngx_http_llm_table.h"

#include "ledger/ledger_journal.h"

#include <sys/file.h>


#define NGX_HTTP_LLM_JOURNAL_NAMED   16     /* damages, in one go */
#define NGX_HTTP_LLM_JOURNAL_SUFFIX  " balances"


/* Which of the two pairs is valid is one store. */

typedef struct {
    int64_t                     nano[2];
    uint64_t                    end[2];      /* of the last record in it */
    volatile ngx_uint_t         current;
} ngx_http_llm_journal_node_t;

struct ngx_http_llm_journal_sh_s {
    uint64_t                    device;      /* of the journal */
    uint64_t                    inode;
    ledger_reader_t             reader;
    ngx_atomic_t                written;     /* records that were appended */
    ngx_atomic_t                counted;     /* of them, in the balances */
    uint64_t                    duplicates;
    uint64_t                    homeless;    /* without room in the table */
    ngx_http_llm_table_t       *table;
    ledger_recent_t             recent;
};


static ngx_int_t ngx_http_llm_journal_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static ngx_int_t ngx_http_llm_journal_open(ngx_http_llm_journal_t *journal,
    ngx_log_t *log, struct stat *st);
static void ngx_http_llm_journal_close(void *data);
static ngx_int_t ngx_http_llm_journal_more(ngx_http_llm_journal_t *journal,
    ngx_log_t *log, ngx_atomic_uint_t written);
static ngx_int_t ngx_http_llm_journal_read(ngx_http_llm_journal_t *journal,
    ngx_log_t *log, ngx_uint_t *named);
static ngx_int_t ngx_http_llm_journal_apply(ngx_http_llm_journal_sh_t *sh,
    ledger_record_t *r, uint64_t end);


ngx_http_llm_journal_t *
ngx_http_llm_journal_add(ngx_conf_t *cf, ngx_str_t *path,
    ngx_shm_zone_t *accounts, ngx_module_t *tag)
{
    size_t                   size;
    ngx_str_t                name;
    ngx_shm_zone_t          *shm_zone;
    ngx_http_llm_journal_t  *journal;

    journal = ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_journal_t));
    if (journal == NULL) {
        return NULL;
    }

    journal->path = *path;
    journal->pool = cf->pool;
    journal->fd = NGX_INVALID_FILE;

    name.len = accounts->shm.name.len
               + sizeof(NGX_HTTP_LLM_JOURNAL_SUFFIX) - 1;
    name.data = ngx_pnalloc(cf->pool, name.len + 1);
    if (name.data == NULL) {
        return NULL;
    }

    (void) ngx_sprintf(name.data, "%V" NGX_HTTP_LLM_JOURNAL_SUFFIX "%Z",
                       &accounts->shm.name);

    size = accounts->shm.size
           + ngx_align(sizeof(ngx_http_llm_journal_sh_t), ngx_pagesize)
           + 4 * ngx_pagesize;

    shm_zone = ngx_shared_memory_add(cf, &name, size, tag);
    if (shm_zone == NULL) {
        return NULL;
    }

    shm_zone->init = ngx_http_llm_journal_init_zone;
    shm_zone->data = journal;

    return journal;
}


static ngx_int_t
ngx_http_llm_journal_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_http_llm_journal_t *old = data;

    ngx_log_t                  *log;
    struct stat                 st;
    ngx_http_llm_journal_t     *journal;
    ngx_http_llm_journal_sh_t  *sh;

    journal = shm_zone->data;
    log = shm_zone->shm.log;

    journal->shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    if (ngx_http_llm_journal_open(journal, log, &st) != NGX_OK) {
        return NGX_ERROR;
    }

    if (old != NULL || shm_zone->shm.exists) {
        sh = (old != NULL) ? old->sh : journal->shpool->data;
        journal->sh = sh;

        if (sh->device != (uint64_t) st.st_dev
            || sh->inode != (uint64_t) st.st_ino)
        {
            ngx_log_error(NGX_LOG_EMERG, log, 0,
                          "\"%V\" is not the journal that this nginx was "
                          "started with: stop it, then start it",
                          &journal->path);
            return NGX_ERROR;
        }

        return ngx_http_llm_journal_sync(journal, log);
    }

    sh = ngx_slab_calloc(journal->shpool, sizeof(ngx_http_llm_journal_sh_t));
    if (sh == NULL) {
        return NGX_ERROR;
    }

    sh->device = st.st_dev;
    sh->inode = st.st_ino;

    sh->table = ngx_http_llm_table_create(journal->shpool,
                                      sizeof(ngx_http_llm_journal_node_t));
    if (sh->table == NULL) {
        ngx_log_error(NGX_LOG_EMERG, log, 0,
                      "the zone of llm_accounts is too small");
        return NGX_ERROR;
    }

    journal->sh = sh;
    journal->shpool->data = sh;

    if (ngx_http_llm_journal_sync(journal, log) != NGX_OK) {
        return NGX_ERROR;
    }

    if (sh->homeless != 0) {
        return NGX_ERROR;
    }

    ngx_log_error(NGX_LOG_NOTICE, log, 0,
                  "llm journal \"%V\": %uL records, %ui accounts, %uL "
                  "damaged, %uL twice", &journal->path, sh->reader.records,
                  sh->table->n, sh->reader.damaged, sh->duplicates);

    if (journal->left != 0) {
        ngx_log_error(NGX_LOG_WARN, log, 0,
                      "llm journal \"%V\": %uL bytes at its end are a record "
                      "that was cut off, passed over", &journal->path,
                      journal->left);
    }

    return NGX_OK;
}


/*
 * The lock tells llm-ledger compact that the file is in use; it is the file's
 * as long as any worker has it open.
 */

static ngx_int_t
ngx_http_llm_journal_open(ngx_http_llm_journal_t *journal, ngx_log_t *log,
    struct stat *st)
{
    ngx_pool_cleanup_t  *cln;

    cln = ngx_pool_cleanup_add(journal->pool, 0);
    if (cln == NULL) {
        return NGX_ERROR;
    }

    journal->fd = open((const char *) journal->path.data,
                   O_RDWR|O_APPEND|O_CREAT|O_CLOEXEC, 0600);

    if (journal->fd == NGX_INVALID_FILE) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno,
                      ngx_open_file_n " \"%V\" failed", &journal->path);
        return NGX_ERROR;
    }

    cln->handler = ngx_http_llm_journal_close;
    cln->data = journal;

    if (fstat(journal->fd, st) == -1) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno,
                      ngx_fd_info_n " \"%V\" failed", &journal->path);
        return NGX_ERROR;
    }

    if (!S_ISREG(st->st_mode)) {
        ngx_log_error(NGX_LOG_EMERG, log, 0, "\"%V\" is not a regular file",
                      &journal->path);
        return NGX_ERROR;
    }

    if (flock(journal->fd, LOCK_SH|LOCK_NB) == -1) {
        ngx_log_error(NGX_LOG_EMERG, log, ngx_errno,
                      "flock() \"%V\" failed, llm-ledger compact may be "
                      "running", &journal->path);
        return NGX_ERROR;
    }

    return NGX_OK;
}


static void
ngx_http_llm_journal_close(void *data)
{
    ngx_http_llm_journal_t *journal = data;

    if (close(journal->fd) == -1) {
        ngx_log_error(NGX_LOG_ALERT, ngx_cycle->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", &journal->path);
    }

    journal->fd = NGX_INVALID_FILE;
}


ngx_int_t
ngx_http_llm_journal_look(ngx_http_llm_journal_t *journal, ngx_log_t *log)
{
    uint64_t                    offset;
    ngx_atomic_uint_t           written;
    ngx_http_llm_journal_sh_t  *sh;

    sh = journal->sh;

    /* Before the reading: what is appended meanwhile is read the next time. */

    written = sh->written;
    ngx_memory_barrier();

    if (written != sh->counted) {

        /* There is something to be read, and no need to ask how much. */

        offset = sh->reader.offset;
        journal->left = 0;

        if (ngx_http_llm_journal_more(journal, log, written) != NGX_OK) {
            return NGX_ERROR;
        }

        if (sh->reader.offset != offset) {
            return NGX_OK;
        }

    } else if (journal->looked && journal->seen == ngx_current_msec) {
        return NGX_OK;
    }

    journal->looked = 1;
    journal->seen = ngx_current_msec;

    return ngx_http_llm_journal_sync(journal, log);
}


ngx_int_t
ngx_http_llm_journal_sync(ngx_http_llm_journal_t *journal, ngx_log_t *log)
{
    uint64_t           size, offset;
    struct stat        st;
    ngx_atomic_uint_t  written;

    journal->left = 0;
    written = journal->sh->written;

    /* Before the size, or others may go beyond that in between. */

    offset = *(volatile uint64_t *) &journal->sh->reader.offset;

    if (fstat(journal->fd, &st) == -1) {
        ngx_log_error(NGX_LOG_ALERT, log, ngx_errno,
                      ngx_fd_info_n " \"%V\" failed", &journal->path);
        return NGX_ERROR;
    }

    size = st.st_size;

    if (size == offset) {
        return NGX_OK;
    }

    if (size < offset) {

        if (!journal->cut) {
            journal->cut = 1;
            ngx_log_error(NGX_LOG_ALERT, log, 0,
                          "llm journal \"%V\" has become shorter: balances "
                          "stay as they are until nginx is started again",
                          &journal->path);
        }

        return NGX_OK;
    }

    return ngx_http_llm_journal_more(journal, log, written);
}


/* What is new; the first `written` records appended here are counted then. */

static ngx_int_t
ngx_http_llm_journal_more(ngx_http_llm_journal_t *journal, ngx_log_t *log,
    ngx_atomic_uint_t written)
{
    ngx_int_t                   rc;
    ngx_uint_t                  named;
    ngx_http_llm_journal_sh_t  *sh;

    sh = journal->sh;
    named = 0;

    do {
        ngx_shmtx_lock(&journal->shpool->mutex);

        rc = ngx_http_llm_journal_read(journal, log, &named);

        if (rc == NGX_OK && (ngx_atomic_int_t) (written - sh->counted) > 0) {
            sh->counted = written;
        }

        ngx_shmtx_unlock(&journal->shpool->mutex);

    } while (rc == NGX_AGAIN);

    if (named > NGX_HTTP_LLM_JOURNAL_NAMED) {
        ngx_log_error(NGX_LOG_ERR, log, 0,
                      "llm journal \"%V\": %ui more parts passed over",
                      &journal->path, named - NGX_HTTP_LLM_JOURNAL_NAMED);
    }

    return rc;
}


/* One buffer of it, so that no one holds the lock for long; NGX_AGAIN: more. */

static ngx_int_t
ngx_http_llm_journal_read(ngx_http_llm_journal_t *journal, ngx_log_t *log,
    ngx_uint_t *named)
{
    char                        err[LEDGER_JOURNAL_ERR];
    ssize_t                     n;
    uint64_t                    at;
    const char                 *p;
    ledger_next_e               next;
    ledger_reader_t             reader;
    ledger_record_t             r;
    ngx_http_llm_journal_sh_t  *sh;

    static char  buf[LEDGER_JOURNAL_BUFFER];

    sh = journal->sh;
    reader = sh->reader;

    n = pread(journal->fd, buf, sizeof(buf), reader.offset);

    if (n == -1) {
        ngx_log_error(NGX_LOG_ALERT, log, ngx_errno,
                      ngx_read_file_n " \"%V\" failed", &journal->path);
        return NGX_ERROR;
    }

    p = buf;

    while ((next = ledger_journal_next(&reader, &p, buf + n, &r, &at, err))
           != LEDGER_AGAIN)
    {
        if (next == LEDGER_DAMAGED) {

            if (++*named <= NGX_HTTP_LLM_JOURNAL_NAMED) {
                ngx_log_error(NGX_LOG_ERR, log, 0,
                              "llm journal \"%V\": byte %uL: %s, passed over",
                              &journal->path, at, err);
            }

        } else if (ngx_http_llm_journal_apply(sh, &r, reader.offset) != NGX_OK
                   && sh->homeless++ == 0)
        {
            ngx_log_error(NGX_LOG_EMERG, log, 0,
                          "llm journal \"%V\": no room for account \"%s\", "
                          "the zone of llm_accounts is too small",
                          &journal->path, r.account);
        }

        sh->reader = reader;
    }

    sh->reader = reader;

    /* A file that is read to its end gives less than was asked for. */

    if (n == (ssize_t) sizeof(buf)) {
        return NGX_AGAIN;
    }

    journal->left = buf + n - p;

    return NGX_OK;
}


/*
 * Each step may be the last one of this process, and what follows from the
 * begin is then done again by another: see ngx_http_llm_journal.h.
 */

static ngx_int_t
ngx_http_llm_journal_apply(ngx_http_llm_journal_sh_t *sh, ledger_record_t *r,
    uint64_t end)
{
    int64_t                       nano;
    ngx_str_t                     name;
    ngx_uint_t                    from, to;
    ngx_http_llm_journal_node_t  *node;

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


ngx_int_t
ngx_http_llm_journal_find(ngx_http_llm_journal_t *journal,
    ngx_str_t *account, int64_t *nano)
{
    ngx_http_llm_journal_node_t  *node;

    node = ngx_http_llm_table_find(journal->sh->table, account);

    if (node == NULL || node->end[node->current] == 0) {
        return NGX_DECLINED;
    }

    *nano = node->nano[node->current];

    return NGX_OK;
}


/* What a short write leaves is passed over by readers. */

ngx_int_t
ngx_http_llm_journal_write(ngx_http_llm_journal_t *journal, ngx_log_t *log,
    const char *line, size_t len)
{
    ssize_t  n;

    do {
        n = write(journal->fd, line, len);

    } while (n == -1 && ngx_errno == NGX_EINTR);

    if (n == (ssize_t) len) {
        (void) ngx_atomic_fetch_add(&journal->sh->written, 1);
        return NGX_OK;
    }

    if (n == -1) {
        ngx_log_error(NGX_LOG_CRIT, log, ngx_errno,
                      ngx_write_fd_n " \"%V\" failed", &journal->path);

    } else {
        ngx_log_error(NGX_LOG_CRIT, log, 0,
                      ngx_write_fd_n " \"%V\" has written only %z of %uz",
                      &journal->path, n, len);
    }

    return NGX_ERROR;
}
