/*
 * Accounts: API keys, $llm_account and $llm_tier.
 *
 * Clients show a key as "Authorization: Bearer KEY" or "x-api-key: KEY".  Only
 * its SHA-256 is known here.  It is looked for by its first bytes, which a
 * client cannot choose without trying that many keys, and then compared in a
 * time that does not depend on what is equal.
 *
 * An account's own limits are held in the zone like those of llm_token_limit,
 * under its name.
 *
 * An account is looked up when somebody asks for it, in whatever phase that
 * is, and remembered with the request.
 */

#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_meter.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>


typedef struct {
    ngx_http_llm_account_t  *account;      /* NULL: none */
} ngx_http_llm_accounts_ctx_t;


static ngx_int_t ngx_http_llm_accounts_key(ngx_http_request_t *r,
    ngx_str_t *key);
static ngx_int_t ngx_http_llm_accounts_bearer(ngx_str_t *value,
    ngx_str_t *key);
static ngx_int_t ngx_http_llm_accounts_digest(ngx_http_request_t *r,
    ngx_str_t *key, u_char *digest);
static ngx_http_llm_account_t *ngx_http_llm_accounts_lookup(
    ngx_http_llm_accounts_t *table, const u_char *digest);
static ngx_int_t ngx_http_llm_accounts_challenge(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_accounts_access(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_accounts_admit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
static ngx_int_t ngx_http_llm_accounts_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data);
static ngx_int_t ngx_http_llm_accounts_add_variables(ngx_conf_t *cf);
static void *ngx_http_llm_accounts_create_conf(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_accounts_init(ngx_conf_t *cf);
static char *ngx_http_llm_accounts(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


static ngx_command_t  ngx_http_llm_accounts_commands[] = {

    { ngx_string("llm_accounts"),
      NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE23,
      ngx_http_llm_accounts,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_accounts_module_ctx = {
    ngx_http_llm_accounts_add_variables,   /* preconfiguration */
    ngx_http_llm_accounts_init,            /* postconfiguration */

    ngx_http_llm_accounts_create_conf,     /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    NULL,                                  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_accounts_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_accounts_module_ctx,     /* module context */
    ngx_http_llm_accounts_commands,        /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_http_variable_t  ngx_http_llm_accounts_vars[] = {

    { ngx_string("llm_account"), NULL, ngx_http_llm_accounts_variable,
      offsetof(ngx_http_llm_account_t, name), NGX_HTTP_VAR_NOCACHEABLE, 0 },

    { ngx_string("llm_tier"), NULL, ngx_http_llm_accounts_variable,
      offsetof(ngx_http_llm_account_t, tier), NGX_HTTP_VAR_NOCACHEABLE, 0 },

      ngx_http_null_variable
};


ngx_http_llm_accounts_conf_t *
ngx_http_llm_accounts_conf(ngx_http_request_t *r)
{
    ngx_http_llm_accounts_conf_t  *acf;

    acf = ngx_http_get_module_main_conf(r, ngx_http_llm_accounts_module);

    return acf->path.len != 0 ? acf : NULL;
}


ngx_http_llm_account_t *
ngx_http_llm_account(ngx_http_request_t *r)
{
    u_char                         digest[EVP_MAX_MD_SIZE];
    ngx_str_t                      key;
    ngx_http_llm_accounts_ctx_t   *ctx;
    ngx_http_llm_accounts_conf_t  *acf;

    r = r->main;

    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_accounts_module);

    if (ctx != NULL) {
        return ctx->account;
    }

    acf = ngx_http_llm_accounts_conf(r);

    if (acf == NULL) {
        return NULL;
    }

    ctx = ngx_pcalloc(r->pool, sizeof(ngx_http_llm_accounts_ctx_t));
    if (ctx == NULL) {
        return NULL;
    }

    ngx_http_set_ctx(r, ctx, ngx_http_llm_accounts_module);

    if (ngx_http_llm_accounts_key(r, &key) != NGX_OK) {
        return NULL;
    }

    if (ngx_http_llm_accounts_digest(r, &key, digest) != NGX_OK) {
        return NULL;
    }

    ctx->account = ngx_http_llm_accounts_lookup(&acf->table, digest);

    return ctx->account;
}


static ngx_int_t
ngx_http_llm_accounts_key(ngx_http_request_t *r, ngx_str_t *key)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *h;

    h = r->headers_in.authorization;

    if (h != NULL && ngx_http_llm_accounts_bearer(&h->value, key) == NGX_OK) {
        return NGX_OK;
    }

    part = &r->headers_in.headers.part;
    h = part->elts;

    for (i = 0; /* void */; i++) {

        if (i >= part->nelts) {

            if (part->next == NULL) {
                return NGX_DECLINED;
            }

            part = part->next;
            h = part->elts;
            i = 0;
        }

        if (h[i].key.len == sizeof("x-api-key") - 1
            && ngx_strncasecmp(h[i].key.data, (u_char *) "x-api-key",
                               sizeof("x-api-key") - 1)
               == 0)
        {
            *key = h[i].value;

            return key->len != 0 && key->len <= NGX_HTTP_LLM_KEY_MAX
                   ? NGX_OK : NGX_DECLINED;
        }
    }
}


static ngx_int_t
ngx_http_llm_accounts_bearer(ngx_str_t *value, ngx_str_t *key)
{
    u_char  *p, *last;

    if (value->len < sizeof("Bearer ")
        || ngx_strncasecmp(value->data, (u_char *) "Bearer ",
                           sizeof("Bearer ") - 1)
           != 0)
    {
        return NGX_DECLINED;
    }

    p = value->data + sizeof("Bearer ") - 1;
    last = value->data + value->len;

    while (p < last && *p == ' ') {
        p++;
    }

    while (p < last && last[-1] == ' ') {
        last--;
    }

    key->data = p;
    key->len = last - p;

    return key->len != 0 && key->len <= NGX_HTTP_LLM_KEY_MAX ? NGX_OK
                                                             : NGX_DECLINED;
}


/*
 * One context for each process: OpenSSL 3 searches for an algorithm at each
 * use unless it was fetched, and makes a context of it.
 */

static ngx_int_t
ngx_http_llm_accounts_digest(ngx_http_request_t *r, ngx_str_t *key,
    u_char *digest)
{
    static EVP_MD_CTX    *md;
    static const EVP_MD  *sha256;

    if (md == NULL) {
        md = EVP_MD_CTX_new();
    }

    if (sha256 == NULL) {
#if (OPENSSL_VERSION_NUMBER >= 0x30000000L)
        sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
#else
        sha256 = EVP_sha256();
#endif
    }

    if (md != NULL
        && sha256 != NULL
        && EVP_DigestInit_ex(md, sha256, NULL) == 1
        && EVP_DigestUpdate(md, key->data, key->len) == 1
        && EVP_DigestFinal_ex(md, digest, NULL) == 1)
    {
        return NGX_OK;
    }

    ngx_log_error(NGX_LOG_ALERT, r->connection->log, 0,
                  "SHA-256 of an API key failed");

    return NGX_ERROR;
}


/* The first key that is not below the digest's first bytes, and those equal. */

static ngx_http_llm_account_t *
ngx_http_llm_accounts_lookup(ngx_http_llm_accounts_t *table,
    const u_char *digest)
{
    ngx_uint_t               low, high, mid;
    ngx_http_llm_key_t      *keys;
    ngx_http_llm_account_t  *account;

    keys = table->keys.elts;
    low = 0;
    high = table->keys.nelts;

    while (low < high) {
        mid = (low + high) / 2;

        if (ngx_memcmp(keys[mid].digest, digest, sizeof(uint64_t)) < 0) {
            low = mid + 1;

        } else {
            high = mid;
        }
    }

    account = NULL;

    for ( /* void */ ; low < table->keys.nelts; low++) {

        if (ngx_memcmp(keys[low].digest, digest, sizeof(uint64_t)) != 0) {
            break;
        }

        if (CRYPTO_memcmp(keys[low].digest, digest, NGX_HTTP_LLM_DIGEST_LEN)
            == 0)
        {
            account = keys[low].account;
        }
    }

    return account;
}


ngx_int_t
ngx_http_llm_accounts_check(ngx_http_request_t *r)
{
    ngx_str_t            key;
    const char          *message;
    ngx_http_llm_ctx_t  *ctx;

    if (ngx_http_llm_accounts_conf(r) == NULL
        || ngx_http_llm_account(r) != NULL)
    {
        return NGX_OK;
    }

    ctx = ngx_http_llm_get_ctx(r);

    if (ctx == NULL || ngx_http_llm_accounts_challenge(r) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    message = ngx_http_llm_accounts_key(r, &key) == NGX_OK
              ? "The API key is not known."
              : "An API key is required: send it as \"Authorization: Bearer "
                "KEY\" or \"x-api-key: KEY\".";

    (void) ngx_http_llm_error_set(&ctx->error, NGX_HTTP_UNAUTHORIZED,
                                  "invalid_api_key", NULL, "%s", message);

    return NGX_HTTP_UNAUTHORIZED;
}


static ngx_int_t
ngx_http_llm_accounts_challenge(ngx_http_request_t *r)
{
    ngx_table_elt_t  *h;

    h = ngx_list_push(&r->headers_out.headers);
    if (h == NULL) {
        return NGX_ERROR;
    }

    h->hash = 1;
    ngx_str_set(&h->key, "WWW-Authenticate");
    ngx_str_set(&h->value, "Bearer");
    h->lowcase_key = NULL;
#if (nginx_version >= 1023000)
    h->next = NULL;
#endif

    /* So that "satisfy any" can take it back. */

    r->headers_out.www_authenticate = h;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_accounts_access(ngx_http_request_t *r)
{
    ngx_http_llm_loc_conf_t  *llcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);

    if (llcf->engine == NULL && !ngx_http_llm_meter_on(r)) {
        return NGX_DECLINED;
    }

    return ngx_http_llm_accounts_check(r);
}


/* What is given back most easily comes first. */

static ngx_int_t
ngx_http_llm_accounts_admit(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx)
{
    ngx_int_t                      rc;
    ngx_uint_t                     i;
    ngx_http_llm_account_t        *account;
    ngx_http_llm_bucket_limit_t   *limit;
    ngx_http_llm_bucket_state_t    state;
    ngx_http_llm_accounts_conf_t  *acf;

    static const struct {
        ngx_http_llm_kind_e        kind;
        size_t                     offset;
    } own[] = {
        { NGX_HTTP_LLM_CONCURRENCY,
          offsetof(ngx_http_llm_account_t, concurrency) },
        { NGX_HTTP_LLM_REQUESTS,
          offsetof(ngx_http_llm_account_t, requests) },
        { NGX_HTTP_LLM_TOKENS,
          offsetof(ngx_http_llm_account_t, tokens) }
    };

    account = ngx_http_llm_account(r);

    if (account == NULL) {
        return NGX_OK;
    }

    acf = ngx_http_llm_accounts_conf(r);

    for (i = 0; i < sizeof(own) / sizeof(own[0]); i++) {

        limit = (ngx_http_llm_bucket_limit_t *)
                    ((char *) account + own[i].offset);

        if (limit->burst == 0) {
            continue;
        }

        rc = ngx_http_llm_limit_hold(ctx, &acf->zone, own[i].kind,
                                     &account->name, limit, account->reserve,
                                     0, &state);

        if (rc != NGX_OK) {
            return ngx_http_llm_limit_refuse(ctx, rc, own[i].kind, &state);
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_accounts_variable(ngx_http_request_t *r,
    ngx_http_variable_value_t *v, uintptr_t data)
{
    ngx_str_t               *s;
    ngx_http_llm_account_t  *account;

    account = ngx_http_llm_account(r);
    s = (account != NULL) ? (ngx_str_t *) ((char *) account + data) : NULL;

    if (s == NULL || s->len == 0) {
        v->not_found = 1;
        return NGX_OK;
    }

    return ngx_http_llm_variable_set(v, s->data, s->len);
}


static ngx_int_t
ngx_http_llm_accounts_add_variables(ngx_conf_t *cf)
{
    return ngx_http_llm_add_variables(cf, ngx_http_llm_accounts_vars);
}


static void *
ngx_http_llm_accounts_create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_accounts_conf_t));
}


static ngx_int_t
ngx_http_llm_accounts_init(ngx_conf_t *cf)
{
    ngx_http_llm_accounts_conf_t  *acf;

    acf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_accounts_module);

    if (acf->path.len == 0) {
        return NGX_OK;
    }

    if (ngx_http_llm_add_handler(cf, NGX_HTTP_ACCESS_PHASE,
                                 ngx_http_llm_accounts_access)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_llm_policy_add(cf, NGX_HTTP_LLM_STEP_ACCOUNT,
                                   ngx_http_llm_accounts_admit, NULL);
}


static char *
ngx_http_llm_accounts(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_llm_accounts_conf_t *acf = conf;

    ssize_t      size;
    ngx_str_t   *value, name;
    ngx_uint_t   i;

    if (acf->path.len != 0) {
        return "is duplicate";
    }

    value = cf->args->elts;
    size = 0;
    ngx_str_null(&name);

    for (i = 2; i < cf->args->nelts; i++) {

        if (ngx_strncmp(value[i].data, "zone=", 5) == 0) {

            if (ngx_http_llm_zone_param(cf, &value[i], &name, &size)
                != NGX_CONF_OK)
            {
                return NGX_CONF_ERROR;
            }

            continue;
        }

        if (ngx_http_llm_arg(&value[i], "state", &acf->state)
            && acf->state.len > 0)
        {
            if (ngx_conf_full_name(cf->cycle, &acf->state, 0) != NGX_OK) {
                return NGX_CONF_ERROR;
            }

            continue;
        }

        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"",
                           &value[i]);
        return NGX_CONF_ERROR;
    }

    if (name.len == 0) {
        ngx_conf_log_error(NGX_LOG_EMERG, cf, 0,
                           "\"%V\" must have \"zone\" parameter", &cmd->name);
        return NGX_CONF_ERROR;
    }

    acf->path = value[1];

    if (ngx_conf_full_name(cf->cycle, &acf->path, 1) != NGX_OK
        || ngx_http_llm_accounts_read(cf, &acf->path, &acf->table) != NGX_OK)
    {
        return NGX_CONF_ERROR;
    }

    return ngx_http_llm_buckets_zone(cf, &name, size,
                                     &ngx_http_llm_accounts_module,
                                     &acf->zone, &acf->shm_zone);
}
