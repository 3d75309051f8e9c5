/*
 * The file of accounts.
 *
 *     # comment
 *     account NAME [tier=NAME] [requests=Nr/s|Nr/m] [requests_burst=N]
 *                  [tokens=Nt/s|Nt/m] [tokens_burst=N] [reserve=full|N]
 *                  [concurrency=N]
 *     key NAME SHA256
 *
 * One account or key a line; words are separated by spaces and tabs, and a word
 * that begins with "#" ends the line.  A name is 1 to 255 of A-Z a-z 0-9
 * . _ @ + : / - and does not begin with a "-".  A key is the SHA-256 of what
 * clients send, as 64 hexadecimal digits: the file gives no access away.  An
 * account may have several keys, or none, and may stand before or after them.
 * Limits that are not named are none; a burst is the N of its rate unless it is
 * named.
 *
 * WRITER  the operator, with an editor and `llm-ledger key`.  READER  nginx,
 * when it reads its configuration: nothing changes before a reload, and a file
 * with an error refuses the reload.
 */

#include "ngx_http_llm_accounts_file.h"


#define NGX_HTTP_LLM_FILE_MAX   (64 << 20)
#define NGX_HTTP_LLM_LINE_MAX   4096


/* A key before its account is known. */

typedef struct {
    ngx_http_llm_key_t   key;
    ngx_str_t            name;
} ngx_http_llm_named_key_t;


static ngx_int_t ngx_http_llm_accounts_load(ngx_conf_t *cf, ngx_str_t *path,
    u_char **data, size_t *size);
static ngx_int_t ngx_http_llm_accounts_lines(
    ngx_http_llm_accounts_file_t *f, u_char *p, u_char *end);
static ngx_int_t ngx_http_llm_accounts_split(
    ngx_http_llm_accounts_file_t *f, u_char *p, u_char *end);
static ngx_int_t ngx_http_llm_accounts_key(ngx_http_llm_accounts_file_t *f);
static ngx_int_t ngx_http_llm_accounts_sort(ngx_http_llm_accounts_file_t *f);
static ngx_int_t ngx_http_llm_accounts_join(ngx_http_llm_accounts_file_t *f);
static int ngx_libc_cdecl ngx_http_llm_accounts_by_name(const void *one,
    const void *two);
static int ngx_libc_cdecl ngx_http_llm_accounts_by_digest(const void *one,
    const void *two);


ngx_int_t
ngx_http_llm_accounts_read(ngx_conf_t *cf, ngx_str_t *path,
    ngx_http_llm_accounts_t *table)
{
    size_t                         size;
    u_char                        *data;
    ngx_int_t                      rc;
    ngx_http_llm_accounts_file_t   f;

    ngx_memzero(&f, sizeof(f));

    f.cf = cf;
    f.path = path;
    f.table = table;

    if (ngx_array_init(&table->accounts, cf->pool, 16,
                       sizeof(ngx_http_llm_account_t *))
        != NGX_OK
        || ngx_array_init(&f.keys, cf->temp_pool, 16,
                          sizeof(ngx_http_llm_named_key_t))
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (ngx_http_llm_accounts_load(cf, path, &data, &size) != NGX_OK) {
        return NGX_ERROR;
    }

    rc = ngx_http_llm_accounts_lines(&f, data, data + size);

    if (rc == NGX_OK) {
        rc = ngx_http_llm_accounts_sort(&f);
    }

    if (rc == NGX_OK) {
        rc = ngx_http_llm_accounts_join(&f);
    }

    ngx_free(data);

    if (rc == NGX_OK && table->keys.nelts == 0) {
        ngx_log_error(NGX_LOG_WARN, cf->log, 0,
                      "llm_accounts: no key in \"%V\", nobody has access",
                      path);
    }

    return rc;
}


static ngx_int_t
ngx_http_llm_accounts_load(ngx_conf_t *cf, ngx_str_t *path, u_char **data,
    size_t *size)
{
    ssize_t          n;
    ngx_int_t        rc;
    ngx_file_t       file;
    ngx_file_info_t  fi;

    rc = NGX_ERROR;
    *data = NULL;

    ngx_memzero(&file, sizeof(ngx_file_t));
    file.name = *path;
    file.log = cf->log;

    file.fd = ngx_open_file(path->data, NGX_FILE_RDONLY, NGX_FILE_OPEN, 0);

    if (file.fd == NGX_INVALID_FILE) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_open_file_n " \"%V\" failed", path);
        return NGX_ERROR;
    }

    if (ngx_fd_info(file.fd, &fi) == NGX_FILE_ERROR) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, ngx_errno,
                           ngx_fd_info_n " \"%V\" failed", path);
        goto done;
    }

    if (!ngx_is_file(&fi)) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\" is not a file", path);
        goto done;
    }

    if (ngx_file_size(&fi) > NGX_HTTP_LLM_FILE_MAX) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" is larger than %d bytes", path,
                           NGX_HTTP_LLM_FILE_MAX);
        goto done;
    }

    *size = (size_t) ngx_file_size(&fi);

    *data = ngx_alloc(*size + 1, cf->log);
    if (*data == NULL) {
        goto done;
    }

    n = ngx_read_file(&file, *data, *size, 0);

    if (n == NGX_ERROR || (size_t) n != *size) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "only %z bytes of %uz were read from \"%V\"", n,
                           *size, path);
        ngx_free(*data);
        goto done;
    }

    rc = NGX_OK;

done:

    if (ngx_close_file(file.fd) == NGX_FILE_ERROR) {
        ngx_log_error(NGX_LOG_ALERT, cf->log, ngx_errno,
                      ngx_close_file_n " \"%V\" failed", path);
    }

    return rc;
}


static ngx_int_t
ngx_http_llm_accounts_lines(ngx_http_llm_accounts_file_t *f, u_char *p,
    u_char *end)
{
    u_char     *eol;
    ngx_int_t   rc;

    for ( /* void */ ; p < end; p = eol + 1) {

        f->line++;

        eol = ngx_strlchr(p, end, LF);
        if (eol == NULL) {
            eol = end;
        }

        if (eol - p > NGX_HTTP_LLM_LINE_MAX) {
            return ngx_http_llm_accounts_wrong(f, f->line, "a line of more "
                                               "than %d bytes",
                                               NGX_HTTP_LLM_LINE_MAX);
        }

        if (ngx_http_llm_accounts_split(f, p, eol) != NGX_OK) {
            return NGX_ERROR;
        }

        if (f->nwords == 0) {
            continue;
        }

        if (f->words[0].len == 7
            && ngx_strncmp(f->words[0].data, "account", 7) == 0)
        {
            rc = ngx_http_llm_accounts_line(f);

        } else if (f->words[0].len == 3
                   && ngx_strncmp(f->words[0].data, "key", 3) == 0)
        {
            rc = ngx_http_llm_accounts_key(f);

        } else {
            rc = ngx_http_llm_accounts_wrong(f, f->line, "a line must begin "
                                             "with \"account\" or \"key\"");
        }

        if (rc != NGX_OK) {
            return rc;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_accounts_split(ngx_http_llm_accounts_file_t *f, u_char *p,
    u_char *end)
{
    ngx_str_t  *word;

    f->nwords = 0;

    for ( ;; ) {

        while (p < end && (*p == ' ' || *p == '\t' || *p == CR)) {
            p++;
        }

        if (p == end || *p == '#') {
            return NGX_OK;
        }

        if (f->nwords == NGX_HTTP_LLM_WORDS_MAX) {
            return ngx_http_llm_accounts_wrong(f, f->line, "too many words");
        }

        word = &f->words[f->nwords++];
        word->data = p;

        while (p < end && *p != ' ' && *p != '\t' && *p != CR) {

            /* What is not text might spoil logs. */

            if (*p < 0x20 || *p >= 0x7f) {
                return ngx_http_llm_accounts_wrong(f, f->line, "a byte that "
                                                   "is not printable ASCII");
            }

            p++;
        }

        word->len = p - word->data;
    }
}


/* The value is not repeated: somebody may have put a key itself there. */

static ngx_int_t
ngx_http_llm_accounts_key(ngx_http_llm_accounts_file_t *f)
{
    ngx_int_t                  n;
    ngx_str_t                 *hex;
    ngx_uint_t                 i;
    ngx_http_llm_named_key_t  *nk;

    if (f->nwords != 3) {
        return ngx_http_llm_accounts_wrong(f, f->line, "\"key\" needs a name "
                                           "and a SHA-256");
    }

    hex = &f->words[2];

    if (hex->len != 2 * NGX_HTTP_LLM_DIGEST_LEN) {
        goto invalid;
    }

    nk = ngx_array_push(&f->keys);
    if (nk == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < NGX_HTTP_LLM_DIGEST_LEN; i++) {

        n = ngx_hextoi(hex->data + 2 * i, 2);
        if (n == NGX_ERROR) {
            goto invalid;
        }

        nk->key.digest[i] = (u_char) n;
    }

    nk->key.line = f->line;
    nk->key.account = NULL;
    nk->name = f->words[1];

    return NGX_OK;

invalid:

    return ngx_http_llm_accounts_wrong(f, f->line, "invalid key, it must be "
                                       "a SHA-256 in 64 hexadecimal digits");
}


static ngx_int_t
ngx_http_llm_accounts_sort(ngx_http_llm_accounts_file_t *f)
{
    ngx_uint_t                 i;
    ngx_http_llm_account_t   **ap;
    ngx_http_llm_named_key_t  *nk;

    ap = f->table->accounts.elts;
    nk = f->keys.elts;

    ngx_qsort(ap, f->table->accounts.nelts, sizeof(ngx_http_llm_account_t *),
              ngx_http_llm_accounts_by_name);

    for (i = 1; i < f->table->accounts.nelts; i++) {
        if (ngx_http_llm_accounts_by_name(&ap[i - 1], &ap[i]) == 0) {
            return ngx_http_llm_accounts_wrong(f, ngx_max(ap[i - 1]->line,
                                                          ap[i]->line),
                                               "duplicate account \"%V\", it "
                                               "is on line %ui as well",
                                               &ap[i]->name,
                                               ngx_min(ap[i - 1]->line,
                                                       ap[i]->line));
        }
    }

    ngx_qsort(nk, f->keys.nelts, sizeof(ngx_http_llm_named_key_t),
              ngx_http_llm_accounts_by_digest);

    for (i = 1; i < f->keys.nelts; i++) {
        if (ngx_http_llm_accounts_by_digest(&nk[i - 1], &nk[i]) == 0) {
            return ngx_http_llm_accounts_wrong(f, ngx_max(nk[i - 1].key.line,
                                                          nk[i].key.line),
                                               "duplicate key, it is on line "
                                               "%ui as well",
                                               ngx_min(nk[i - 1].key.line,
                                                       nk[i].key.line));
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_accounts_join(ngx_http_llm_accounts_file_t *f)
{
    ngx_uint_t                 i;
    ngx_http_llm_key_t        *key;
    ngx_http_llm_named_key_t  *nk;

    if (ngx_array_init(&f->table->keys, f->cf->pool, ngx_max(f->keys.nelts, 1),
                       sizeof(ngx_http_llm_key_t))
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    nk = f->keys.elts;

    for (i = 0; i < f->keys.nelts; i++) {

        key = ngx_array_push(&f->table->keys);
        if (key == NULL) {
            return NGX_ERROR;
        }

        *key = nk[i].key;
        key->account = ngx_http_llm_account_find(f->table, &nk[i].name);

        if (key->account == NULL) {
            return ngx_http_llm_accounts_wrong(f, key->line, "there is no "
                                               "account \"%V\"", &nk[i].name);
        }
    }

    return NGX_OK;
}


ngx_http_llm_account_t *
ngx_http_llm_account_find(ngx_http_llm_accounts_t *table, ngx_str_t *name)
{
    ngx_int_t                 rc;
    ngx_uint_t                low, high, mid;
    ngx_http_llm_account_t  **ap;

    ap = table->accounts.elts;
    low = 0;
    high = table->accounts.nelts;

    while (low < high) {
        mid = (low + high) / 2;
        rc = ngx_memn2cmp(name->data, ap[mid]->name.data, name->len,
                          ap[mid]->name.len);

        if (rc == 0) {
            return ap[mid];
        }

        if (rc < 0) {
            high = mid;

        } else {
            low = mid + 1;
        }
    }

    return NULL;
}


static int ngx_libc_cdecl
ngx_http_llm_accounts_by_name(const void *one, const void *two)
{
    ngx_http_llm_account_t  *a, *b;

    a = *(ngx_http_llm_account_t **) one;
    b = *(ngx_http_llm_account_t **) two;

    return (int) ngx_memn2cmp(a->name.data, b->name.data, a->name.len,
                              b->name.len);
}


static int ngx_libc_cdecl
ngx_http_llm_accounts_by_digest(const void *one, const void *two)
{
    const ngx_http_llm_named_key_t  *a = one, *b = two;

    return ngx_memcmp(a->key.digest, b->key.digest, NGX_HTTP_LLM_DIGEST_LEN);
}


ngx_int_t
ngx_http_llm_accounts_wrong(ngx_http_llm_accounts_file_t *f, ngx_uint_t line,
    const char *fmt, ...)
{
    u_char   buf[NGX_MAX_CONF_ERRSTR], *last;
    va_list  args;

    va_start(args, fmt);
    last = ngx_vslprintf(buf, buf + sizeof(buf), fmt, args);
    va_end(args);

    ngx_conf_log_error(NGX_LOG_EMERG, f->cf, 0, "llm_accounts: %V:%ui: %*s",
                       f->path, line, (size_t) (last - buf), buf);

    return NGX_ERROR;
}
