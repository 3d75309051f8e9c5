/*
 * Replies that are kept and played again (ngx_http_llm_reply.h).
 */

#include "ngx_http_llm_reply.h"

#include <stdio.h>

#define XXH_INLINE_ALL
#include <xxhash.h>


/* How far a choice has come. */

typedef enum {
    NGX_HTTP_LLM_REPLY_NEW = 0,
    NGX_HTTP_LLM_REPLY_ACCEPTED,
    NGX_HTTP_LLM_REPLY_FINISHED
} ngx_http_llm_reply_state_e;


static ngx_int_t ngx_http_llm_reply_check_head(const u_char *data,
    size_t size, ngx_uint_t nchoices, char *err);
static ngx_int_t ngx_http_llm_reply_check_record(const chan_record_t *rec,
    u_char *state, char *err);
static uint64_t ngx_http_llm_reply_hash(ngx_http_llm_reply_head_t *head,
    const u_char *records);


void
ngx_http_llm_reply_keep(ngx_http_llm_choice_t *choice,
    const chan_record_t *rec)
{
    chan_record_t           head;
    ngx_http_llm_writer_t  *w;

    w = &choice->ctx->reply->records;

    if (w->size + rec->size > NGX_HTTP_LLM_REPLY_MAX) {
        w->failed = 1;
    }

    if (w->failed) {
        return;
    }

    head = *rec;
    head.id = choice->index;

    ngx_http_llm_put(w, &head, sizeof(chan_record_t));
    ngx_http_llm_put(w, rec + 1, rec->size - sizeof(chan_record_t));
}


ngx_chain_t *
ngx_http_llm_reply_take(ngx_http_llm_ctx_t *ctx)
{
    ngx_buf_t                  *b;
    ngx_uint_t                  i;
    ngx_chain_t                *cl, *out;
    XXH3_state_t                state;
    ngx_http_llm_writer_t      *w;
    ngx_http_llm_reply_head_t  *head;

    w = &ctx->reply->records;

    if (w->failed || ctx->nchoices == 0) {
        return NULL;
    }

    for (i = 0; i < ctx->nchoices; i++) {
        if (ctx->choices[i].reason == 0
            || ctx->choices[i].reason == CHAN_CANCELLED)
        {
            return NULL;
        }
    }

    b = ngx_create_temp_buf(w->pool, sizeof(ngx_http_llm_reply_head_t));
    out = ngx_alloc_chain_link(w->pool);

    if (b == NULL || out == NULL) {
        return NULL;
    }

    head = (ngx_http_llm_reply_head_t *) b->last;
    b->last += sizeof(ngx_http_llm_reply_head_t);

    head->magic = NGX_HTTP_LLM_REPLY_MAGIC;
    head->version = NGX_HTTP_LLM_REPLY_VERSION;
    head->nchoices = ctx->nchoices;
    head->size = w->size;
    head->hash = 0;

    out->buf = b;
    out->next = ngx_http_llm_writer_take(w);

    (void) XXH3_64bits_reset(&state);

    for (cl = out; cl != NULL; cl = cl->next) {
        (void) XXH3_64bits_update(&state, cl->buf->pos,
                                  cl->buf->last - cl->buf->pos);
    }

    head->hash = XXH3_64bits_digest(&state);

    return out;
}


ngx_int_t
ngx_http_llm_reply_check(const u_char *data, size_t size,
    ngx_uint_t nchoices, char *err)
{
    u_char                state[NGX_HTTP_LLM_CHOICES_MAX];
    size_t                off;
    ngx_uint_t            i;
    const chan_record_t  *rec;

    if (ngx_http_llm_reply_check_head(data, size, nchoices, err) != NGX_OK) {
        return NGX_ERROR;
    }

    ngx_memzero(state, sizeof(state));

    for (off = sizeof(ngx_http_llm_reply_head_t);
         off < size;
         off += rec->size)
    {
        rec = (const chan_record_t *) (data + off);

        if (size - off < sizeof(chan_record_t)
            || rec->size < sizeof(chan_record_t)
            || rec->size > CHAN_RECORD_MAX
            || rec->size % 8 != 0
            || rec->size > size - off)
        {
            (void) snprintf(err, CHAN_ERR_LEN, "bad record size at %zu", off);
            return NGX_ERROR;
        }

        if (rec->id >= nchoices) {
            (void) snprintf(err, CHAN_ERR_LEN, "no choice %lu",
                            (unsigned long) rec->id);
            return NGX_ERROR;
        }

        if (ngx_http_llm_reply_check_record(rec, &state[rec->id], err)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    for (i = 0; i < nchoices; i++) {
        if (state[i] != NGX_HTTP_LLM_REPLY_FINISHED) {
            (void) snprintf(err, CHAN_ERR_LEN, "choice %lu is not whole",
                            (unsigned long) i);
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_reply_check_head(const u_char *data, size_t size,
    ngx_uint_t nchoices, char *err)
{
    ngx_http_llm_reply_head_t  head;

    if (size < sizeof(head)) {
        (void) snprintf(err, CHAN_ERR_LEN, "too short");
        return NGX_ERROR;
    }

    ngx_memcpy(&head, data, sizeof(head));

    if (head.magic != NGX_HTTP_LLM_REPLY_MAGIC
        || head.version != NGX_HTTP_LLM_REPLY_VERSION)
    {
        (void) snprintf(err, CHAN_ERR_LEN, "another format or version");
        return NGX_ERROR;
    }

    if (head.size != size - sizeof(head)) {
        (void) snprintf(err, CHAN_ERR_LEN, "%zu bytes instead of %lu",
                        size - sizeof(head), (unsigned long) head.size);
        return NGX_ERROR;
    }

    if (nchoices > NGX_HTTP_LLM_CHOICES_MAX || head.nchoices != nchoices) {
        (void) snprintf(err, CHAN_ERR_LEN, "%u choices instead of %lu",
                        head.nchoices, (unsigned long) nchoices);
        return NGX_ERROR;
    }

    if (head.hash != ngx_http_llm_reply_hash(&head, data + sizeof(head))) {
        (void) snprintf(err, CHAN_ERR_LEN, "wrong hash");
        return NGX_ERROR;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_reply_check_record(const chan_record_t *rec, u_char *state,
    char *err)
{
    ngx_int_t               rc;
    chan_delta_view_t       view;
    const chan_finish_t    *finish;
    const chan_accepted_t  *accepted;

    rc = CHAN_ERROR;
    (void) snprintf(err, CHAN_ERR_LEN, "event %u is out of place",
                    (unsigned) rec->type);

    switch (rec->type) {

    case CHAN_ACCEPTED:
        if (*state == NGX_HTTP_LLM_REPLY_NEW) {
            *state = NGX_HTTP_LLM_REPLY_ACCEPTED;
            rc = chan_get_accepted(rec, &accepted, err);
        }

        break;

    case CHAN_DELTA:
        if (*state == NGX_HTTP_LLM_REPLY_ACCEPTED) {
            rc = chan_get_delta(rec, &view, err);
        }

        break;

    case CHAN_FINISH:
        if (*state == NGX_HTTP_LLM_REPLY_ACCEPTED) {
            *state = NGX_HTTP_LLM_REPLY_FINISHED;
            rc = chan_get_finish(rec, &finish, err);

            if (rc == CHAN_OK && finish->reason == CHAN_CANCELLED) {
                (void) snprintf(err, CHAN_ERR_LEN, "a choice was cancelled");
                rc = CHAN_ERROR;
            }
        }

        break;
    }

    return rc == CHAN_OK ? NGX_OK : NGX_ERROR;
}


static uint64_t
ngx_http_llm_reply_hash(ngx_http_llm_reply_head_t *head,
    const u_char *records)
{
    XXH3_state_t               state;
    ngx_http_llm_reply_head_t  copy;

    copy = *head;
    copy.hash = 0;

    (void) XXH3_64bits_reset(&state);
    (void) XXH3_64bits_update(&state, &copy, sizeof(copy));
    (void) XXH3_64bits_update(&state, records, head->size);

    return XXH3_64bits_digest(&state);
}


ngx_int_t
ngx_http_llm_reply_play(ngx_http_llm_ctx_t *ctx)
{
    char                     err[CHAN_ERR_LEN];
    const u_char            *end;
    chan_delta_view_t        view;
    const chan_finish_t     *finish;
    const chan_record_t     *rec;
    const chan_accepted_t   *accepted;
    ngx_http_llm_choice_t   *choice;
    ngx_http_llm_replay_t   *replay;

    replay = ctx->replay;
    end = replay->last;

    if (end - replay->next > NGX_HTTP_LLM_REPLY_TURN) {
        end = replay->next + NGX_HTTP_LLM_REPLY_TURN;
    }

    while (replay->next < end) {

        rec = (const chan_record_t *) replay->next;
        replay->next += rec->size;

        choice = &ctx->choices[rec->id];

        switch (rec->type) {

        case CHAN_ACCEPTED:
            (void) chan_get_accepted(rec, &accepted, err);
            ngx_http_llm_choice_accepted(choice, accepted);
            break;

        case CHAN_DELTA:
            (void) chan_get_delta(rec, &view, err);
            ngx_http_llm_choice_delta(choice, &view);
            break;

        default: /* CHAN_FINISH */
            (void) chan_get_finish(rec, &finish, err);
            ngx_http_llm_choice_finish(choice, finish);
        }
    }

    return replay->next < replay->last ? NGX_AGAIN : NGX_OK;
}
