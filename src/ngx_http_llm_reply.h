/*
 * A reply as the engine gave it, kept so that it can be given again, streamed
 * or not, whatever way it was asked for first: what is rendered from these
 * events is what was rendered from them the first time.
 *
 * FORMAT (integers in host order: a cache is its machine's own)
 *
 *     offset     0  ngx_http_llm_reply_head_t
 *     then          `size` bytes of records as chan_message.h has them, in the
 *                   order in which they came: ACCEPTED, DELTA and FINISH of
 *                   each choice; a record's id is the choice's number, from 0
 *
 * WRITER  the worker that got the reply, when all choices are finished; the
 * file around it is written aside and renamed.
 *
 * READER  any worker, later, or another nginx with the same cache.  All is
 * checked before anything is used: the hash of head and records, and what
 * events there may be.
 *
 * RECOVERY  A reply that fails the check is as good as none, and is written
 * over by the next.
 */

#ifndef NGX_HTTP_LLM_REPLY_H
#define NGX_HTTP_LLM_REPLY_H

#include "ngx_http_llm_module.h"


#define NGX_HTTP_LLM_REPLY_MAGIC    UINT64_C(0x31796c7065726d6c) /* lmreply1 */
#define NGX_HTTP_LLM_REPLY_VERSION  1
#define NGX_HTTP_LLM_REPLY_MAX      (4 << 20)   /* bytes; more is not kept */
#define NGX_HTTP_LLM_REPLY_TURN     (64 << 10)  /* and are given in one turn */


typedef struct {
    uint64_t               magic;
    uint32_t               version;
    uint32_t               nchoices;
    uint64_t               size;       /* of the records */
    uint64_t               hash;       /* XXH3 of all, with this being 0 */
} ngx_http_llm_reply_head_t;

struct ngx_http_llm_reply_s {
    ngx_http_llm_writer_t  records;
};

/* One that is being given: records that have yet to happen. */

struct ngx_http_llm_replay_s {
    const u_char          *next;
    const u_char          *last;
    ngx_event_t            turn;
};


/*
 * ngx_http_llm_reply_keep() keeps an event that chan_get_*() found good.
 *
 * ngx_http_llm_reply_take() makes a chain of head and records; NULL: the reply
 * is not whole, too large, or there is no memory.  The chain uses `reply`'s
 * own buffers.
 *
 * ngx_http_llm_reply_check() checks `size` bytes, aligned to 8, that somebody
 * kept: NGX_OK, or NGX_ERROR with the reason in `err` of CHAN_ERR_LEN bytes.
 * ngx_http_llm_reply_play() has those of ctx->replay happen to the request,
 * whose choices are new, as many as one turn may take: NGX_AGAIN, there are
 * more; NGX_OK, none are left.
 */

void ngx_http_llm_reply_keep(ngx_http_llm_choice_t *choice,
    const chan_record_t *rec);
ngx_chain_t *ngx_http_llm_reply_take(ngx_http_llm_ctx_t *ctx);
ngx_int_t ngx_http_llm_reply_check(const u_char *data, size_t size,
    ngx_uint_t nchoices, char *err);
ngx_int_t ngx_http_llm_reply_play(ngx_http_llm_ctx_t *ctx);


#endif /* NGX_HTTP_LLM_REPLY_H */
