/*
 * Output: from token ids to records.
 *
 * Called by the leader of a sequence's rank, or by the step thread; never by
 * two at once for one sequence.  A DELTA is built in memory of the caller's
 * stack and leaves when it is large enough or the call ends.
 */

#include "serve/serve_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


/*
 * A record takes no more once text and tokens reach SERVE_DELTA_FULL bytes; a
 * token's own text or entry may go beyond that, but never to CHAN_RECORD_MAX.
 */
#define SERVE_DELTA_FULL   32768
#define SERVE_TEXT_MAX     (SERVE_DELTA_FULL + 3 * TOK_MAX_BYTES)
#define SERVE_TOKENS_MAX   (SERVE_DELTA_FULL + 16384)
#define SERVE_BYTES_MAX    512       /* of a token beside its logprob */

typedef struct {
    serve_req_t  *r;
    uint32_t      kind;
    uint32_t      n_tokens;
    size_t        text_size;
    size_t        token_size;
    uint8_t       text[SERVE_TEXT_MAX + 8];
    uint8_t       token[SERVE_TOKENS_MAX];
} serve_delta_t;


static void serve_delta_begin(serve_delta_t *d, serve_req_t *r);
static void serve_delta_text(serve_delta_t *d, uint32_t kind,
    const char *text, size_t len);
static void serve_delta_token(serve_delta_t *d, uint32_t kind,
    const sched_token_t *tok, int mute);
static void serve_delta_kind(serve_delta_t *d, uint32_t kind);
static void serve_delta_send(serve_delta_t *d);
static size_t serve_put_bytes(uint8_t *to, const tok_t *tok, int32_t id,
    uint32_t *size);
static void serve_text(serve_delta_t *d, tok_stream_out_t *out);
static int serve_keep_text(serve_req_t *r, int which, const char *text,
    size_t len);
static int serve_is_eos(const serve_req_t *r, int32_t id);
static void serve_replayed(serve_delta_t *d);
static uint32_t serve_code(sched_reason_t reason);


void
serve_on_accepted(void *data, const sched_accepted_t *a)
{
    serve_req_t   *r = data;
    struct iovec   part;

    struct {
        chan_record_t    rec;
        chan_accepted_t  a;
    } head;

    memset(&head, 0, sizeof(head));
    head.rec.type = CHAN_ACCEPTED;
    head.rec.id = r->id;
    head.a.prompt_tokens = a->n_prompt;
    head.a.cached_tokens = a->cached;
    head.a.tags_matched = a->tags;
    head.a.rank = a->rank;
    head.a.rank_epoch = a->epoch;
    head.a.seed = r->submit.seed;

    part.iov_base = &head;
    part.iov_len = sizeof(head);

    serve_send(r->lane, &part, 1);
}


int
serve_on_tokens(void *data, sched_kind_t kind, const sched_token_t *tok,
    uint32_t n)
{
    uint32_t          i, where;
    serve_req_t      *r = data;
    serve_delta_t     d;
    tok_stream_out_t  out;

    serve_delta_begin(&d, r);
    memset(&out, 0, sizeof(out));

    if (kind == SCHED_OUTPUT) {
        serve_replayed(&d);
    }

    for (i = 0; i < n; i++) {

        if (kind == SCHED_ECHO) {

            /* A BOS that we put in front is no part of the prompt's text. */

            serve_delta_token(&d, CHAN_ECHO, &tok[i], r->skip_text);

            if (!r->skip_text) {
                tok_stream_push(&r->echo, tok[i].id, &out);
                serve_delta_text(&d, CHAN_ECHO, out.content,
                                 out.content_len);
            }

            r->skip_text = 0;
            continue;
        }

        where = tok_stream_in_reasoning(&r->stream) ? CHAN_REASONING
                : CHAN_CONTENT;

        r->n_output++;
        r->n_reasoning += where == CHAN_REASONING;

        serve_delta_token(&d, where, &tok[i], tok[i].eos);

        if (!tok[i].eos) {
            tok_stream_push(&r->stream, tok[i].id, &out);
            serve_text(&d, &out);
        }
    }

    if (kind == SCHED_ECHO && r->echo_left == n) {
        tok_stream_flush(&r->echo, &out);
        serve_delta_text(&d, CHAN_ECHO, out.content, out.content_len);
    }

    r->echo_left -= kind == SCHED_ECHO ? n : 0;

    serve_delta_send(&d);

    return out.stopped;
}


void
serve_on_finish(void *data, const sched_finish_t *f)
{
    uint32_t          code;
    serve_req_t      *r = data;
    chan_finish_t     fin;
    serve_delta_t     d;
    tok_stream_out_t  out;

    code = serve_code(f->reason);

    if (code != 0) {
        serve_error(r, code, "", "%s", f->message != NULL ? f->message
                    : "internal error");
        return;
    }

    if (f->reason != SCHED_CANCELLED) {
        serve_delta_begin(&d, r);
        serve_replayed(&d);
        tok_stream_flush(&r->stream, &out);
        serve_text(&d, &out);
        serve_delta_send(&d);
    }

    memset(&fin, 0, sizeof(fin));

    fin.reason = f->reason == SCHED_STOP ? CHAN_STOP
                 : f->reason == SCHED_LENGTH ? CHAN_LENGTH : CHAN_CANCELLED;
    fin.prompt_tokens = f->n_prompt;
    fin.cached_tokens = f->n_cached;
    fin.completion_tokens = f->n_output;
    fin.reasoning_tokens = r->n_reasoning;
    fin.rank = f->rank;
    fin.step = f->step;

    if (f->accepted_us != 0) {
        fin.queue_us = f->accepted_us - f->submitted_us;
    }

    if (f->first_us != 0) {
        fin.first_us = f->first_us - f->submitted_us;
    }

    fin.total_us = f->ended_us - f->submitted_us;

    serve_log(SERVE_INFO, "lane %u: request %llu: %s, %u (%u cached) + %u "
              "tokens, %u of %u guesses right, rank %u, queue %llu us, first %llu us, "
              "total %llu us",
              r->lane->number, (unsigned long long) r->id,
              f->reason == SCHED_STOP ? "stop"
              : f->reason == SCHED_LENGTH ? "length" : "cancelled",
              f->n_prompt, f->n_cached, f->n_output, f->n_hit, f->n_drafted,
              f->rank,
              (unsigned long long) fin.queue_us,
              (unsigned long long) fin.first_us,
              (unsigned long long) fin.total_us);

    serve_finish(r, &fin);
}


static uint32_t
serve_code(sched_reason_t reason)
{
    switch (reason) {

    case SCHED_E_QUEUE:
        return CHAN_E_QUEUE;

    case SCHED_E_TIMEOUT:
        return CHAN_E_TIMEOUT;

    case SCHED_E_LENGTH:
        return CHAN_E_LENGTH;

    case SCHED_E_SHUTDOWN:
        return CHAN_E_SHUTDOWN;

    case SCHED_E_INTERNAL:
        return CHAN_E_INTERNAL;

    default:
        return 0;
    }
}


/*
 * A sequence that goes on where another engine left off: brings the stream to
 * where it was.  Text of these ids that the client does not have yet, because
 * the other engine held it back or the worker had not passed it on, is kept
 * for the first record.  1: these ids were the end already; -1: that was before
 * the last of them, or no memory.
 */

int
serve_replay(serve_req_t *r, const int32_t *id, uint32_t n)
{
    int               ended;
    uint32_t          i;
    tok_stream_out_t  out;

    ended = 0;

    for (i = 0; i < n; i++) {

        if (ended) {
            return -1;
        }

        r->n_output++;
        r->n_reasoning += tok_stream_in_reasoning(&r->stream) != 0;

        if (serve_is_eos(r, id[i])) {
            ended = 1;
            continue;
        }

        tok_stream_push(&r->stream, id[i], &out);

        if (serve_keep_text(r, 0, out.reasoning, out.reasoning_len) != 0
            || serve_keep_text(r, 1, out.content, out.content_len) != 0)
        {
            return -1;
        }

        ended = out.stopped;
    }

    return ended;
}


static int
serve_is_eos(const serve_req_t *r, int32_t id)
{
    uint32_t                i;
    const sched_options_t  *opt;

    if (r->submit.flags & CHAN_F_IGNORE_EOS) {
        return 0;
    }

    opt = &r->serve->opt.sched;

    for (i = 0; i < opt->n_eos; i++) {
        if (opt->eos[i] == id) {
            return 1;
        }
    }

    return 0;
}


static int
serve_keep_text(serve_req_t *r, int which, const char *text, size_t len)
{
    char    *p;
    size_t   n;

    n = len < r->suppress ? len : (size_t) r->suppress;
    r->suppress -= n;
    text += n;
    len -= n;

    if (len == 0) {
        return 0;
    }

    p = realloc(r->replayed[which], r->replayed_len[which] + len);
    if (p == NULL) {
        return -1;
    }

    memcpy(p + r->replayed_len[which], text, len);
    r->replayed[which] = p;
    r->replayed_len[which] += len;

    return 0;
}


/* Before anything else that this sequence says. */

static void
serve_replayed(serve_delta_t *d)
{
    int           i;
    serve_req_t  *r;

    r = d->r;

    for (i = 0; i < 2; i++) {
        serve_delta_text(d, i == 0 ? CHAN_REASONING : CHAN_CONTENT,
                         r->replayed[i], r->replayed_len[i]);

        free(r->replayed[i]);
        r->replayed[i] = NULL;
        r->replayed_len[i] = 0;
    }
}


static void
serve_text(serve_delta_t *d, tok_stream_out_t *out)
{
    serve_delta_text(d, CHAN_REASONING, out->reasoning, out->reasoning_len);
    serve_delta_text(d, CHAN_CONTENT, out->content, out->content_len);
}


static void
serve_delta_begin(serve_delta_t *d, serve_req_t *r)
{
    d->r = r;
    d->kind = 0;
    d->n_tokens = 0;
    d->text_size = 0;
    d->token_size = 0;
}


/* One record says one kind of thing, and fits a record. */

static void
serve_delta_kind(serve_delta_t *d, uint32_t kind)
{
    if (d->kind != kind
        || d->text_size + d->token_size >= SERVE_DELTA_FULL)
    {
        serve_delta_send(d);
    }

    d->kind = kind;
}


static void
serve_delta_text(serve_delta_t *d, uint32_t kind, const char *text,
    size_t len)
{
    size_t  n;

    while (len > 0) {

        serve_delta_kind(d, kind);

        n = SERVE_TEXT_MAX - d->text_size - d->token_size;

        if (n < len) {

            /* Back to the start of a code point. */

            while (n > 0 && ((uint8_t) text[n] & 0xc0) == 0x80) {
                n--;
            }

        } else {
            n = len;
        }

        memcpy(d->text + d->text_size, text, n);
        d->text_size += n;
        text += n;
        len -= n;
    }
}


static void
serve_delta_token(serve_delta_t *d, uint32_t kind, const sched_token_t *tok,
    int mute)
{
    uint32_t       i;
    chan_top_t     top;
    const tok_t   *t;
    chan_token_t   head;
    uint8_t       *p;

    serve_delta_kind(d, kind);

    t = d->r->serve->opt.tok;
    p = d->token + d->token_size;

    memset(&head, 0, sizeof(head));
    head.id = tok->id;
    head.logprob = NAN;

    if (d->r->submit.flags & CHAN_F_LOGPROBS) {
        head.logprob = tok->logprob;
        head.n_top = tok->n_top;
        p += sizeof(head);

        if (!mute) {
            p += serve_put_bytes(p, t, tok->id, &head.size);
        }

        for (i = 0; i < tok->n_top; i++) {
            memset(&top, 0, sizeof(top));
            top.id = tok->top[i].id;
            top.logprob = tok->top[i].logprob;

            p += sizeof(top);
            p += serve_put_bytes(p, t, top.id, &top.size);
            memcpy(p - ((top.size + 7) & ~7u) - sizeof(top), &top,
                   sizeof(top));
        }

    } else {
        p += sizeof(head);
    }

    memcpy(d->token + d->token_size, &head, sizeof(head));

    d->token_size = (size_t) (p - d->token);
    d->n_tokens++;
}


/* Bytes of a token, padded; no more than anybody wants to look at. */

static size_t
serve_put_bytes(uint8_t *to, const tok_t *tok, int32_t id, uint32_t *size)
{
    size_t          n, padded;
    const uint8_t  *bytes;

    *size = 0;
    bytes = tok_bytes(tok, id, &n);

    if (bytes == NULL) {
        return 0;
    }

    n = n < SERVE_BYTES_MAX ? n : SERVE_BYTES_MAX;
    padded = (n + 7) & ~(size_t) 7;

    memset(to, 0, padded);
    memcpy(to, bytes, n);
    *size = (uint32_t) n;

    return padded;
}


static void
serve_delta_send(serve_delta_t *d)
{
    size_t        padded;
    struct iovec  part[3];

    struct {
        chan_record_t  rec;
        chan_delta_t   d;
    } head;

    if (d->n_tokens == 0 && d->text_size == 0) {
        return;
    }

    padded = (d->text_size + 7) & ~(size_t) 7;
    memset(d->text + d->text_size, 0, padded - d->text_size);

    memset(&head, 0, sizeof(head));
    head.rec.type = CHAN_DELTA;
    head.rec.id = d->r->id;
    head.d.kind = d->kind;
    head.d.n_tokens = d->n_tokens;
    head.d.text_size = (uint32_t) d->text_size;
    head.d.token_size = (uint32_t) d->token_size;

    part[0].iov_base = &head;
    part[0].iov_len = sizeof(head);
    part[1].iov_base = d->text;
    part[1].iov_len = padded;
    part[2].iov_base = d->token;
    part[2].iov_len = d->token_size;

    serve_send(d->r->lane, part, 3);

    sched_charge(d->r->seq, (int64_t) (sizeof(head) + padded
                                       + d->token_size));

    d->n_tokens = 0;
    d->text_size = 0;
    d->token_size = 0;
}
