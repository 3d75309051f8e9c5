/*
 * Replies in nginx's file cache: their names, reading and writing.
 */

#include "ngx_http_llm_response.h"

#include <openssl/evp.h>


#define NGX_HTTP_LLM_RESPONSE_BUFFER  16384     /* bytes of the first read */
#define NGX_HTTP_LLM_RESPONSE_VALID   (10 * 365 * 24 * 3600)    /* seconds */
#define NGX_HTTP_LLM_RESPONSE_KEY     "llm-response-1 "


static ngx_int_t ngx_http_llm_response_file(ngx_http_request_t *r,
    ngx_http_cache_t *c);
static ngx_int_t ngx_http_llm_response_read(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_cache_t *c, u_char **data);
static ngx_int_t ngx_http_llm_response_key(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_str_t *key);
static ngx_int_t ngx_http_llm_response_hash(ngx_http_llm_ctx_t *ctx,
    EVP_MD_CTX *md);
static ngx_int_t ngx_http_llm_response_hash_prompt(const chan_body_t *body,
    EVP_MD_CTX *md);
static void ngx_http_llm_response_write_file(ngx_http_request_t *r,
    ngx_http_cache_t *c, ngx_chain_t *reply);


ngx_int_t
ngx_http_llm_response_open(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    ngx_http_file_cache_t *cache, ngx_http_cache_t **kept, u_char **data)
{
    ngx_int_t          rc;
    ngx_str_t         *key;
    ngx_http_cache_t  *c, *saved;

    *kept = NULL;
    *data = NULL;

    /* r->cache is a proxy's, should error_page lead to one. */

    saved = r->cache;

    rc = ngx_http_file_cache_new(r);

    c = r->cache;
    r->cache = saved;

    if (rc != NGX_OK) {
        return NGX_ERROR;
    }

    key = ngx_array_push(&c->keys);
    if (key == NULL || ngx_http_llm_response_key(r, ctx, key) != NGX_OK) {
        return NGX_ERROR;
    }

    c->body_start = NGX_HTTP_LLM_RESPONSE_BUFFER;
    c->min_uses = 1;
    c->file_cache = cache;

    r->cache = c;

    rc = ngx_http_llm_response_file(r, c);

    r->cache = saved;

    if (rc == NGX_OK) {
        rc = ngx_http_llm_response_read(r, ctx, c, data);
    }

    if (rc == NGX_OK) {
        ngx_http_file_cache_free(c, NULL);
        return NGX_OK;
    }

    /* Whatever it was, c->node is there to be filled anew. */

    if (rc != NGX_ERROR && c->node != NULL && c->file.name.len != 0) {
        *kept = c;

    } else {
        ngx_http_file_cache_free(c, NULL);
    }

    return NGX_OK;
}


/* NGX_OK: there is a file, and its header is this request's. */

static ngx_int_t
ngx_http_llm_response_file(ngx_http_request_t *r, ngx_http_cache_t *c)
{
    ngx_int_t                  rc;
    ngx_uint_t                 cached, aio;
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_get_module_loc_conf(r, ngx_http_core_module);

    cached = r->cached;
    aio = clcf->aio;

    ngx_http_file_cache_create_key(r);

    clcf->aio = NGX_HTTP_AIO_OFF;

    rc = ngx_http_file_cache_open(r);

    clcf->aio = aio;
    r->cached = cached;

    /* Nothing written here gets stale: it is a damaged file. */

    if (rc == NGX_HTTP_CACHE_STALE || rc == NGX_HTTP_CACHE_UPDATING) {
        c->background = 1;
        return NGX_DECLINED;
    }

    return rc == NGX_OK || rc == NGX_ERROR ? rc : NGX_DECLINED;
}


/* NGX_DECLINED: it is no reply. */

static ngx_int_t
ngx_http_llm_response_read(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    ngx_http_cache_t *c, u_char **data)
{
    char       err[CHAN_ERR_LEN];
    off_t      size;
    size_t     have;
    u_char    *p;
    ssize_t    n;
    ngx_int_t  rc;

    size = c->length - (off_t) c->header_start;

    if (c->body_start != c->header_start
        || size < (off_t) sizeof(ngx_http_llm_reply_head_t)
        || size > (off_t) (sizeof(ngx_http_llm_reply_head_t)
                           + NGX_HTTP_LLM_REPLY_MAX))
    {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                      "llm response cache file \"%s\" has a wrong size",
                      c->file.name.data);
        return NGX_DECLINED;
    }

    p = ngx_palloc(r->pool, size);
    if (p == NULL) {
        return NGX_ERROR;
    }

    have = c->buf->last - c->buf->pos - c->header_start;
    have = ngx_min(have, (size_t) size);

    ngx_memcpy(p, c->buf->pos + c->header_start, have);

    if (have < (size_t) size) {

        n = ngx_read_file(&c->file, p + have, size - have,
                          c->header_start + have);

        if (n == NGX_ERROR || (size_t) n != size - have) {
            ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                          "llm response cache file \"%s\" could not be read",
                          c->file.name.data);
            return NGX_DECLINED;
        }
    }

    rc = ngx_http_llm_reply_check(p, size,
                                  ctx->params.nprompts * ctx->params.n, err);

    if (rc != NGX_OK) {
        ngx_log_error(NGX_LOG_WARN, r->connection->log, 0,
                      "llm response cache file \"%s\" is damaged: %s",
                      c->file.name.data, err);
        return NGX_DECLINED;
    }

    *data = p;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_response_key(ngx_http_request_t *r, ngx_http_llm_ctx_t *ctx,
    ngx_str_t *key)
{
    u_char        *p, hash[EVP_MAX_MD_SIZE];
    ngx_int_t      rc;
    EVP_MD_CTX    *md;
    unsigned int   n;

    key->len = sizeof(NGX_HTTP_LLM_RESPONSE_KEY) - 1 + 64;
    key->data = ngx_pnalloc(r->pool, key->len);

    if (key->data == NULL) {
        return NGX_ERROR;
    }

    md = EVP_MD_CTX_new();
    if (md == NULL) {
        return NGX_ERROR;
    }

    rc = NGX_ERROR;

    if (EVP_DigestInit_ex(md, EVP_sha256(), NULL) == 1
        && ngx_http_llm_response_hash(ctx, md) == NGX_OK
        && EVP_DigestFinal_ex(md, hash, &n) == 1
        && n == 32)
    {
        p = ngx_cpymem(key->data, NGX_HTTP_LLM_RESPONSE_KEY,
                       sizeof(NGX_HTTP_LLM_RESPONSE_KEY) - 1);
        (void) ngx_hex_dump(p, hash, n);
        rc = NGX_OK;
    }

    EVP_MD_CTX_free(md);

    return rc;
}


/*
 * What an answer depends on.  Each part has a fixed size or says its own, so
 * that no two requests have the same bytes.
 */

static ngx_int_t
ngx_http_llm_response_hash(ngx_http_llm_ctx_t *ctx, EVP_MD_CTX *md)
{
    u_char                     tenant[NGX_HTTP_LLM_TENANT_MAX];
    size_t                     len;
    ngx_uint_t                 i;
    const chan_submit_t       *s;
    const chan_board_model_t  *model;

    struct {
        uint64_t  fingerprint;
        uint64_t  context;
        uint64_t  max_context;
        uint64_t  seed;
        uint64_t  tenant;
        uint64_t  nprompts;
        uint32_t  n;
        uint32_t  endpoint;
        uint32_t  flags;
        uint32_t  max_tokens;
        uint32_t  top_logprobs;
        uint32_t  top_k;
        float     temperature;
        float     top_p;
        float     min_p;
        float     repetition_penalty;
        float     presence_penalty;
        float     frequency_penalty;
    } fixed;

    s = &ctx->params.submit;
    model = &ctx->engine->model;
    len = ngx_http_llm_params_tenant(&ctx->params, tenant);

    ngx_memzero(&fixed, sizeof(fixed));

    fixed.fingerprint = model->fingerprint;
    fixed.context = model->max_context;
    fixed.max_context = s->max_context;
    fixed.seed = s->flags & CHAN_F_SEED ? s->seed : 0;
    fixed.tenant = len;
    fixed.nprompts = ctx->params.nprompts;
    fixed.n = ctx->params.n;
    fixed.endpoint = s->endpoint;
    fixed.flags = s->flags;
    fixed.max_tokens = s->max_tokens;
    fixed.top_logprobs = s->top_logprobs;
    fixed.top_k = s->top_k;
    fixed.temperature = s->temperature;
    fixed.top_p = s->top_p;
    fixed.min_p = s->min_p;
    fixed.repetition_penalty = s->repetition_penalty;
    fixed.presence_penalty = s->presence_penalty;
    fixed.frequency_penalty = s->frequency_penalty;

    if (EVP_DigestUpdate(md, &fixed, sizeof(fixed)) != 1
        || EVP_DigestUpdate(md, tenant, len) != 1)
    {
        return NGX_ERROR;
    }

    for (i = 0; i < ctx->params.nprompts; i++) {
        if (ngx_http_llm_response_hash_prompt(&ctx->params.prompts[i].body,
                                              md)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_response_hash_prompt(const chan_body_t *body, EVP_MD_CTX *md)
{
    size_t          off;
    uint64_t        head[3];
    chan_section_t  sec;

    off = 0;

    while (chan_body_next(body->data, body->size, &off, &sec) == CHAN_OK) {

        head[0] = sec.kind;
        head[1] = sec.kind == CHAN_SEC_MESSAGE ? sec.role : 0;
        head[2] = sec.size;

        if (EVP_DigestUpdate(md, head, sizeof(head)) != 1
            || EVP_DigestUpdate(md, sec.data, sec.size) != 1)
        {
            return NGX_ERROR;
        }
    }

    ngx_memzero(head, sizeof(head));

    return EVP_DigestUpdate(md, head, sizeof(head)) == 1 ? NGX_OK : NGX_ERROR;
}


void
ngx_http_llm_response_write(ngx_http_request_t *r, ngx_http_cache_t *c,
    ngx_chain_t *reply)
{
    ngx_http_cache_t  *saved;

    saved = r->cache;
    r->cache = c;

    ngx_http_llm_response_write_file(r, c, reply);

    r->cache = saved;
}


static void
ngx_http_llm_response_write_file(ngx_http_request_t *r, ngx_http_cache_t *c,
    ngx_chain_t *reply)
{
    ngx_buf_t        *b;
    ngx_chain_t       out;
    ngx_temp_file_t  *tf;

    tf = ngx_pcalloc(r->pool, sizeof(ngx_temp_file_t));
    b = ngx_create_temp_buf(r->pool, c->header_start);

    if (tf == NULL || b == NULL) {
        return;
    }

    c->body_start = c->header_start;
    c->valid_sec = ngx_time() + NGX_HTTP_LLM_RESPONSE_VALID;
    c->updating_sec = 0;
    c->error_sec = 0;
    c->last_modified = -1;
    c->date = ngx_time();
    c->etag.len = 0;
    c->vary.len = 0;

    if (ngx_http_file_cache_set_header(r, b->pos) != NGX_OK) {
        return;
    }

    b->last = b->pos + c->header_start;

    out.buf = b;
    out.next = reply;

    /* Beside the file that it becomes. */

    tf->file.fd = NGX_INVALID_FILE;
    tf->file.log = r->connection->log;
    tf->file.name = c->file.name;
    tf->path = c->file_cache->path;
    tf->pool = r->pool;
    tf->persistent = 1;
    tf->access = 0600;

    if (ngx_write_chain_to_temp_file(tf, &out) == NGX_ERROR) {

        /* Said so already; what there is of it goes. */

        ngx_http_file_cache_free(c, tf);
        return;
    }

    ngx_http_file_cache_update(r, tf);
}
