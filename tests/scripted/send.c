/*
 * Records from the scripted engine to workers.
 */

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "scripted/engine.h"


#define BATCH_MAX  16


static size_t put_padded(uint8_t *p, const void *data, size_t n);
static size_t put_token(uint8_t *p, const token_t *t, int logprobs);
static int send_delta(engine_t *e, request_t *r, uint32_t kind,
    const char *text, size_t text_size, const token_t *t, uint32_t n);


int
send_accepted(engine_t *e, request_t *r)
{
    int              rc;
    chan_accepted_t  a;

    memset(&a, 0, sizeof(a));
    a.prompt_tokens = (uint32_t) r->n_prompt;
    a.cached_tokens = r->script.cached > 0 ? (uint32_t) r->script.cached : 0;
    a.tags_matched = r->script.tags > 0 ? (uint32_t) r->script.tags : 0;
    a.rank = r->rank;
    a.rank_epoch = e->epoch[r->rank];
    a.seed = r->seed;

    rc = lane_write(r->lane, CHAN_ACCEPTED, r->id, &a, sizeof(a));

    if (rc == CHAN_OK) {
        r->state = REQ_RUNS;
        r->accepted = e->now;
        r->due = e->now + r->script.prefill * 1000;
        e->accepted++;
        log_event(e, "accepted", r, "rank=%u epoch=%" PRIx64, r->rank,
                  a.rank_epoch);
    }

    return rc;
}


int
send_echo(engine_t *e, request_t *r)
{
    int       rc;
    size_t    size;
    token_t   t[BATCH_MAX];
    uint32_t  n;

    size = 0;

    for (n = 0; n < BATCH_MAX && r->echoed + n < (int64_t) r->prompt.n; n++) {
        request_echo_token(r, r->echoed + n, &t[n]);
        size += t[n].size;
    }

    rc = send_delta(e, r, CHAN_ECHO, t[0].text, size, t, n);

    if (rc == CHAN_OK) {
        r->echoed += n;
    }

    return rc;
}


int
send_tokens(engine_t *e, request_t *r)
{
    int       rc, answer;
    char      words[BATCH_MAX][sizeof(r->word)];
    char      text[BATCH_MAX * PIECE_MAX + sizeof(r->carry)];
    size_t    whole, size, show;
    token_t   t[BATCH_MAX];
    int64_t   batch;
    uint32_t  n;

    batch = r->script.batch < 1 ? 1
            : r->script.batch > BATCH_MAX ? BATCH_MAX : r->script.batch;
    size = r->n_carry;
    memcpy(text, r->carry, size);

    for (n = 0; n < batch && r->pos + n < r->n_total; n++) {
        request_token(r, r->pos + n, &t[n]);

        if (t[n].kind != t[0].kind) {
            break;
        }

        if (t[n].text == r->word) {
            memcpy(words[n], r->word, sizeof(r->word));
            t[n].text = words[n];
        }

        memcpy(text + size, t[n].text, t[n].size);
        size += t[n].size;
    }

    whole = whole_chars(text, (uint32_t) size);
    answer = t[0].kind == CHAN_CONTENT;
    show = whole;

    if (answer && show > r->cut - r->shown) {
        show = r->cut - r->shown;
    }

    rc = send_delta(e, r, t[0].kind, text, show, t, n);

    if (rc != CHAN_OK) {
        return rc;
    }

    r->shown += answer ? show : 0;
    r->n_carry = (uint32_t) (size - whole);
    memcpy(r->carry, text + whole, r->n_carry);
    r->pos += n;
    e->tokens += n;

    if (r->first == 0) {
        r->first = e->now;
    }

    return CHAN_OK;
}


int
send_finish(engine_t *e, request_t *r, uint32_t reason)
{
    int            rc;
    chan_finish_t  f;

    memset(&f, 0, sizeof(f));
    f.reason = reason;
    f.prompt_tokens = (uint32_t) r->n_prompt;
    f.cached_tokens = r->script.cached > 0 ? (uint32_t) r->script.cached : 0;
    f.completion_tokens = (uint32_t) r->pos;
    f.reasoning_tokens = (uint32_t) (r->pos < r->n_reason ? r->pos
                                                          : r->n_reason);
    f.rank = r->rank;
    f.step = e->step;
    f.total_us = (uint64_t) (e->now - r->arrived);
    f.queue_us = r->accepted != 0 ? (uint64_t) (r->accepted - r->arrived)
                                  : f.total_us;
    f.first_us = r->first != 0 ? (uint64_t) (r->first - r->arrived) : 0;

    rc = lane_write(r->lane, CHAN_FINISH, r->id, &f, sizeof(f));

    if (rc == CHAN_OK) {
        r->state = REQ_DONE;
        log_event(e, "finish", r, "reason=%s prompt_tokens=%u"
                  " completion_tokens=%u step=%" PRIu64,
                  script_name(script_reasons, reason), f.prompt_tokens,
                  f.completion_tokens, f.step);
    }

    return rc;
}


int
send_error(engine_t *e, request_t *r, uint32_t code, const char *message,
    const char *param, int64_t retry)
{
    int            rc;
    char           text[256];
    uint8_t       *p;
    chan_error_t   x;

    if (message == NULL) {
        snprintf(text, sizeof(text), "scripted error: %s",
                 script_name(script_errors, code));
        message = r->script.message[0] != '\0' ? r->script.message : text;
        param = r->script.param;
        retry = r->script.retry;
    }

    memset(&x, 0, sizeof(x));
    x.code = code;
    x.retry_after = retry > 0 ? (uint32_t) retry : 0;
    x.message_size = (uint32_t) strlen(message);
    x.param_size = (uint32_t) strlen(param);

    p = e->delta;
    p += put_padded(p, &x, sizeof(x));
    p += put_padded(p, message, x.message_size);
    p += put_padded(p, param, x.param_size);

    rc = lane_write(r->lane, CHAN_ERROR_REC, r->id, e->delta,
                    (size_t) (p - e->delta));

    if (rc == CHAN_OK) {
        r->state = REQ_DONE;
        log_event(e, "error", r, "code=%s pos=%" PRId64 " step=%" PRIu64,
                  script_name(script_errors, code), r->pos, e->step);
    }

    return rc;
}


static int
send_delta(engine_t *e, request_t *r, uint32_t kind, const char *text,
    size_t text_size, const token_t *t, uint32_t n)
{
    int            rc;
    size_t         size;
    uint32_t       i;
    uint8_t       *p;
    chan_delta_t   d;

    p = e->delta + sizeof(d);
    p += put_padded(p, text, text_size);

    memset(&d, 0, sizeof(d));
    d.kind = kind;
    d.n_tokens = n;
    d.text_size = (uint32_t) text_size;

    for (i = 0; i < n; i++) {
        size = put_token(p, &t[i], r->submit.flags & CHAN_F_LOGPROBS);
        d.token_size += (uint32_t) size;
        p += size;
    }

    memcpy(e->delta, &d, sizeof(d));
    size = (size_t) (p - e->delta);

    rc = lane_write(r->lane, CHAN_DELTA, r->id, e->delta, size);

    if (rc == CHAN_OK) {
        r->credit -= (int64_t) (sizeof(chan_record_t) + size);
    }

    return rc;
}


/* One entry; alternatives are the token itself, then made-up words. */

static size_t
put_token(uint8_t *p, const token_t *t, int logprobs)
{
    int           n;
    char          word[32];
    uint8_t      *start;
    uint32_t      i;
    chan_top_t    top;
    chan_token_t  entry;

    start = p;
    memset(&entry, 0, sizeof(entry));
    entry.id = t->id;
    entry.logprob = logprobs ? t->logprob : NAN;
    entry.size = logprobs ? t->size : 0;
    entry.n_top = logprobs ? t->n_top : 0;

    p += put_padded(p, &entry, sizeof(entry));
    p += put_padded(p, t->text, entry.size);

    for (i = 0; i < entry.n_top; i++) {
        memset(&top, 0, sizeof(top));
        top.id = t->id + (int32_t) i * 1000;
        top.logprob = t->logprob - (float) i;

        if (i == 0) {
            top.size = t->size;
            p += put_padded(p, &top, sizeof(top));
            p += put_padded(p, t->text, t->size);
            continue;
        }

        n = snprintf(word, sizeof(word), " alt%u", i);
        top.size = (uint32_t) n;
        p += put_padded(p, &top, sizeof(top));
        p += put_padded(p, word, (size_t) n);
    }

    return (size_t) (p - start);
}


static size_t
put_padded(uint8_t *p, const void *data, size_t n)
{
    memcpy(p, data, n);
    memset(p + n, 0, (8 - n % 8) % 8);

    return (n + 7) & ~(size_t) 7;
}
