/*
 * Pages in the module's data, and their way out.
 */

#include "ngx_http_llm_page.h"

#include <openssl/sha.h>


static ngx_int_t ngx_http_llm_page_hash(ngx_http_llm_page_t *page,
    const char *open, const char *close, ngx_str_t *hash);
static u_char *ngx_http_llm_page_find(const u_char *p, const u_char *last,
    const char *text);


/* The assembler looks for files where the compiler looks for headers. */

#define ngx_http_llm_page_embed(name, file)                                  \
    __asm__ (".pushsection .rodata\n"                                        \
             #name ":\n"                                                     \
             ".incbin \"" file "\"\n"                                        \
             #name "_end:\n"                                                 \
             ".byte 0\n"                                                     \
             ".popsection\n");                                               \
                                                                             \
    extern const u_char  name[] __attribute__ ((visibility("hidden")));      \
    extern const u_char  name##_end[] __attribute__ ((visibility("hidden")))


ngx_http_llm_page_embed(ngx_http_llm_status_html,
                        "ngx_http_llm_status.html");
ngx_http_llm_page_embed(ngx_http_llm_playground_html,
                        "ngx_http_llm_playground.html");


ngx_http_llm_page_t  ngx_http_llm_status_page = {
    ngx_http_llm_status_html, ngx_http_llm_status_html_end,
    ngx_null_string, { 0 }
};

ngx_http_llm_page_t  ngx_http_llm_playground_page = {
    ngx_http_llm_playground_html, ngx_http_llm_playground_html_end,
    ngx_null_string, { 0 }
};


ngx_int_t
ngx_http_llm_page_init(ngx_http_llm_page_t *page)
{
    ngx_str_t   style, script;
    u_char      buf[2][ngx_base64_encoded_length(SHA256_DIGEST_LENGTH)];

    static const char  policy[] =
        "default-src 'none'; style-src 'sha256-%V'; script-src 'sha256-%V'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'";

    style.data = buf[0];
    script.data = buf[1];

    if (ngx_http_llm_page_hash(page, "<style>", "</style>", &style) != NGX_OK
        || ngx_http_llm_page_hash(page, "<script>", "</script>", &script)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    page->policy.data = page->buf;
    page->policy.len = ngx_snprintf(page->buf, NGX_HTTP_LLM_POLICY_MAX,
                                    policy, &style, &script)
                       - page->buf;

    return NGX_OK;
}


/* Of what is between the two tags, as a browser takes it. */

static ngx_int_t
ngx_http_llm_page_hash(ngx_http_llm_page_t *page, const char *open,
    const char *close, ngx_str_t *hash)
{
    u_char     *p, *end, digest[SHA256_DIGEST_LENGTH];
    ngx_str_t   s;

    p = ngx_http_llm_page_find(page->data, page->last, open);
    if (p == NULL) {
        return NGX_ERROR;
    }

    p += ngx_strlen(open);

    end = ngx_http_llm_page_find(p, page->last, close);
    if (end == NULL) {
        return NGX_ERROR;
    }

    if (SHA256(p, end - p, digest) == NULL) {
        return NGX_ERROR;
    }

    s.data = digest;
    s.len = SHA256_DIGEST_LENGTH;

    ngx_encode_base64(hash, &s);

    return NGX_OK;
}


static u_char *
ngx_http_llm_page_find(const u_char *p, const u_char *last, const char *text)
{
    return ngx_strlcasestrn((u_char *) p, (u_char *) last, (u_char *) text,
                            ngx_strlen(text) - 1);
}


ngx_int_t
ngx_http_llm_page_send(ngx_http_request_t *r, ngx_http_llm_page_t *page,
    ngx_str_t *value)
{
    u_char                 *p;
    ngx_str_t               type;
    ngx_uint_t              i;
    ngx_http_llm_writer_t   w;

    static struct {
        const char  *key;
        ngx_str_t    value;
    } headers[] = {
        { "X-Content-Type-Options", ngx_string("nosniff") },
        { "Referrer-Policy", ngx_string("no-referrer") }
    };

    if (ngx_http_llm_add_header(r, "Content-Security-Policy", &page->policy)
        != NGX_OK)
    {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    for (i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        if (ngx_http_llm_add_header(r, headers[i].key, &headers[i].value)
            != NGX_OK)
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR;
        }
    }

    ngx_http_llm_writer_init(&w, r->pool, page->last - page->data + 1);

    p = NULL;

    if (value != NULL) {
        p = ngx_http_llm_page_find(page->data, page->last, "%VALUE%");
    }

    if (p == NULL) {
        ngx_http_llm_put(&w, page->data, page->last - page->data);

    } else {
        ngx_http_llm_put(&w, page->data, p - page->data);
        ngx_http_llm_put(&w, value->data, value->len);

        p += sizeof("%VALUE%") - 1;
        ngx_http_llm_put(&w, p, page->last - p);
    }

    ngx_str_set(&type, "text/html; charset=utf-8");

    return ngx_http_llm_respond(r, &w, &type);
}
