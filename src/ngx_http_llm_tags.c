/*
 * Tags: names for the beginnings of a canonical prompt.
 *
 * The canonical prompt (engine/channel/chan_message.h) is walked in pieces,
 * nothing is copied.  A block's hash is seeded with that of the block before,
 * the first one's with model and tenant.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE  1
#endif

#include "ngx_http_llm_prefix.h"

#define XXH_INLINE_ALL
#include <xxhash.h>


#define NGX_HTTP_LLM_UNTHINK  "</think>"


/* A walk over the pieces: each message's role, then its content. */

typedef struct {
    const chan_body_t  *body;
    size_t              off;
    chan_section_t      sec;
    ngx_uint_t          content;     /* of `sec` comes next */
    u_char              role;
} ngx_http_llm_canon_t;


static ngx_int_t ngx_http_llm_canon_next(ngx_http_llm_canon_t *canon,
    const u_char **p, size_t *n);
static void ngx_http_llm_canon_reasoning(chan_section_t *sec);


/* NGX_OK and a piece, which may be empty; NGX_DONE at the end. */

static ngx_int_t
ngx_http_llm_canon_next(ngx_http_llm_canon_t *canon, const u_char **p,
    size_t *n)
{
    chan_section_t  *sec;

    sec = &canon->sec;

    if (canon->content) {
        canon->content = 0;
        *p = sec->data;
        *n = sec->size;
        return NGX_OK;
    }

    while (chan_body_next(canon->body->data, canon->body->size, &canon->off,
                          sec)
           == CHAN_OK)
    {
        switch (sec->kind) {

        case CHAN_SEC_MESSAGE:

            if (sec->role == CHAN_ROLE_ASSISTANT) {
                ngx_http_llm_canon_reasoning(sec);
            }

            canon->content = 1;
            canon->role = CHAN_CANON_ROLE + sec->role;
            *p = &canon->role;
            *n = 1;
            return NGX_OK;

        case CHAN_SEC_TEXT:
        case CHAN_SEC_IDS:
            *p = sec->data;
            *n = sec->size;
            return NGX_OK;
        }
    }

    return NGX_DONE;
}


/* What follows the last </think> is left. */

static void
ngx_http_llm_canon_reasoning(chan_section_t *sec)
{
    size_t         len;
    const u_char  *p;

    len = sizeof(NGX_HTTP_LLM_UNTHINK) - 1;

    for (p = sec->data + sec->size; p - sec->data >= (ssize_t) len; p--) {

        if (p[-1] == '>'
            && ngx_memcmp(p - len, NGX_HTTP_LLM_UNTHINK, len) == 0)
        {
            sec->size -= p - sec->data;
            sec->data = p;
            return;
        }
    }
}


uint64_t
ngx_http_llm_tags_seed(const char *model, const u_char *tenant, size_t size)
{
    uint64_t  seed;

    seed = XXH64(model, ngx_strlen(model), 0);

    return XXH64(tenant, size, seed);
}


ngx_uint_t
ngx_http_llm_tags_count(const chan_body_t *body, size_t block)
{
    size_t                 n, size;
    const u_char          *p;
    ngx_http_llm_canon_t   canon;

    ngx_memzero(&canon, sizeof(ngx_http_llm_canon_t));
    canon.body = body;
    size = 0;

    while (ngx_http_llm_canon_next(&canon, &p, &n) == NGX_OK) {
        size += n;
    }

    return ngx_min(size / block, CHAN_TAGS_MAX);
}


void
ngx_http_llm_tags_make(const chan_body_t *body, uint64_t seed, size_t block,
    chan_tag_t *tags, ngx_uint_t n)
{
    size_t                 len, take, have;
    ngx_uint_t             i;
    XXH64_state_t          state;
    const u_char          *p;
    ngx_http_llm_canon_t   canon;

    ngx_memzero(&canon, sizeof(ngx_http_llm_canon_t));
    canon.body = body;
    have = 0;
    i = 0;

    while (i < n && ngx_http_llm_canon_next(&canon, &p, &len) == NGX_OK) {

        for ( /* void */ ; len != 0 && i < n; len -= take, p += take) {

            take = ngx_min(len, block - have);

            if (have == 0 && take == block) {
                seed = XXH64(p, block, seed);

            } else {

                if (have == 0) {
                    (void) XXH64_reset(&state, seed);
                }

                (void) XXH64_update(&state, p, take);
                have += take;

                if (have < block) {
                    continue;
                }

                seed = XXH64_digest(&state);
                have = 0;
            }

            tags[i].tag = seed;
            tags[i].end = (uint64_t) (i + 1) * block;
            i++;
        }
    }
}


uint64_t
ngx_http_llm_tags_head(const chan_body_t *body)
{
    size_t                 n, left;
    XXH64_state_t          state;
    const u_char          *p;
    ngx_http_llm_canon_t   canon;

    ngx_memzero(&canon, sizeof(ngx_http_llm_canon_t));
    canon.body = body;
    left = NGX_HTTP_LLM_HEAD_MAX;

    (void) XXH64_reset(&state, 0);

    while (left != 0 && ngx_http_llm_canon_next(&canon, &p, &n) == NGX_OK) {

        n = ngx_min(n, left);
        left -= n;

        (void) XXH64_update(&state, p, n);

        if (canon.sec.kind == CHAN_SEC_MESSAGE && !canon.content
            && canon.sec.role == CHAN_ROLE_USER)
        {
            break;
        }
    }

    return XXH64_digest(&state);
}


/* The strings' ends are hashed too, so that they cannot be mixed up. */

uint64_t
ngx_http_llm_tags_key(ngx_str_t *account, const char *user, const char *model,
    uint64_t head)
{
    uint64_t  h;

    h = XXH64(account->data, account->len, head);
    h = XXH64(user, ngx_strlen(user) + 1, h);

    return XXH64(model, ngx_strlen(model) + 1, h);
}
