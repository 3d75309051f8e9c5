/*
 * Bodies of requests: sections are appended by the worker, checked once and
 * walked by the engine.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE  1
#endif

#include <stdlib.h>

#include "chan_int.h"
#include "chan_message.h"


/* What chan_body_check() has seen so far. */

typedef struct {
    unsigned  messages;
    unsigned  prompts;       /* TEXT and IDS */
    unsigned  stops;
    unsigned  biases;        /* sections, as the next three */
    unsigned  tags;
    unsigned  tenants;
    unsigned  resumes;
} chan_seen_t;


static int chan_check_section(const chan_section_t *sec, chan_seen_t *seen,
    char *err);
static int chan_check_ids(const chan_section_t *sec, char *err);
static int chan_check_bias(const chan_section_t *sec, char *err);
static int chan_check_tags(const chan_section_t *sec, char *err);
static int chan_check_seen(const chan_submit_t *submit,
    const chan_seen_t *seen, char *err);


int
chan_body_put(chan_body_t *body, uint32_t kind, const void *fixed,
    size_t fixed_size, const void *bytes, size_t size)
{
    size_t               need, cap;
    uint8_t             *p;
    chan_section_head_t  head;

    if (fixed_size > CHAN_BODY_MAX || size > CHAN_BODY_MAX) {
        return CHAN_ERROR;
    }

    need = body->size + sizeof(head) + chan_pad8(fixed_size + size);

    if (need > CHAN_BODY_MAX) {
        return CHAN_ERROR;
    }

    if (need > body->cap) {
        cap = body->cap == 0 ? 1024 : body->cap;

        while (cap < need) {
            cap *= 2;
        }

        p = realloc(body->data, cap);

        if (p == NULL) {
            return CHAN_ERROR;
        }

        body->data = p;
        body->cap = cap;
    }

    head.kind = kind;
    head.size = (uint32_t) (fixed_size + size);

    p = body->data + body->size;
    memcpy(p, &head, sizeof(head));
    p += sizeof(head);

    if (fixed_size != 0) {
        memcpy(p, fixed, fixed_size);
        p += fixed_size;
    }

    if (size != 0) {
        memcpy(p, bytes, size);
        p += size;
    }

    memset(p, 0, (size_t) (body->data + need - p));
    body->size = need;

    return CHAN_OK;
}


void
chan_body_free(chan_body_t *body)
{
    free(body->data);
    memset(body, 0, sizeof(*body));
}


int
chan_body_next(const uint8_t *body, size_t size, size_t *off,
    chan_section_t *sec)
{
    size_t               left;
    chan_message_t       msg;
    chan_section_head_t  head;

    if (*off == size) {
        return CHAN_AGAIN;
    }

    if (*off > size || size - *off < sizeof(head)) {
        return CHAN_ERROR;
    }

    memcpy(&head, body + *off, sizeof(head));
    left = size - *off - sizeof(head);

    if (chan_pad8((uint64_t) head.size) > left) {
        return CHAN_ERROR;
    }

    sec->kind = head.kind;
    sec->role = 0;
    sec->data = body + *off + sizeof(head);
    sec->size = head.size;

    if (head.kind == CHAN_SEC_MESSAGE) {

        if (head.size < sizeof(msg)) {
            return CHAN_ERROR;
        }

        memcpy(&msg, sec->data, sizeof(msg));

        if (msg.flags != 0) {
            return CHAN_ERROR;
        }

        sec->role = msg.role;
        sec->data += sizeof(msg);
        sec->size -= sizeof(msg);
    }

    *off += sizeof(head) + (size_t) chan_pad8((uint64_t) head.size);

    return CHAN_OK;
}


int
chan_body_check(const chan_submit_t *submit, const uint8_t *body, size_t size,
    char *err)
{
    int             rc;
    size_t          off;
    chan_seen_t     seen;
    chan_section_t  sec;

    if (size != submit->body_size) {
        return chan_fail(err, "body of %zu bytes instead of %llu", size,
                         (unsigned long long) submit->body_size);
    }

    memset(&seen, 0, sizeof(seen));
    off = 0;

    for ( ;; ) {
        rc = chan_body_next(body, size, &off, &sec);

        if (rc == CHAN_AGAIN) {
            break;
        }

        if (rc != CHAN_OK) {
            return chan_fail(err, "malformed section at byte %zu of a body "
                             "of %zu", off, size);
        }

        if (chan_check_section(&sec, &seen, err) != CHAN_OK) {
            return CHAN_ERROR;
        }
    }

    return chan_check_seen(submit, &seen, err);
}


static int
chan_check_section(const chan_section_t *sec, chan_seen_t *seen, char *err)
{
    switch (sec->kind) {

    case CHAN_SEC_MESSAGE:
        seen->messages++;

        if (sec->role < CHAN_ROLE_SYSTEM || sec->role > CHAN_ROLE_TOOL) {
            return chan_fail(err, "message with role %u", sec->role);
        }

        break;

    case CHAN_SEC_TEXT:
        seen->prompts++;
        break;

    case CHAN_SEC_IDS:
        seen->prompts++;
        return chan_check_ids(sec, err);

    case CHAN_SEC_STOP:
        if (++seen->stops > CHAN_STOP_MAX) {
            return chan_fail(err, "more than %d stop strings", CHAN_STOP_MAX);
        }

        if (sec->size == 0 || sec->size > CHAN_STOP_LEN) {
            return chan_fail(err, "stop string of %zu bytes", sec->size);
        }

        break;

    case CHAN_SEC_BIAS:
        seen->biases++;
        return chan_check_bias(sec, err);

    case CHAN_SEC_TAGS:
        seen->tags++;
        return chan_check_tags(sec, err);

    case CHAN_SEC_TENANT:
        seen->tenants++;
        return CHAN_OK;

    case CHAN_SEC_RESUME_IDS:
        seen->resumes++;
        return chan_check_ids(sec, err);

    default:
        return chan_fail(err, "section of unknown kind %u", sec->kind);
    }

    if (chan_utf8_valid(sec->data, sec->size) == 0) {
        return chan_fail(err, "section of kind %u is not valid UTF-8",
                         sec->kind);
    }

    return CHAN_OK;
}


static int
chan_check_ids(const chan_section_t *sec, char *err)
{
    size_t   i;
    int32_t  id;

    if (sec->size % sizeof(id) != 0) {
        return chan_fail(err, "token ids of %zu bytes", sec->size);
    }

    for (i = 0; i < sec->size; i += sizeof(id)) {
        memcpy(&id, sec->data + i, sizeof(id));

        if (id < 0) {
            return chan_fail(err, "token id %d", id);
        }
    }

    return CHAN_OK;
}


static int
chan_check_bias(const chan_section_t *sec, char *err)
{
    size_t       i;
    chan_bias_t  bias;

    if (sec->size % sizeof(bias) != 0
        || sec->size / sizeof(bias) > CHAN_BIAS_MAX)
    {
        return chan_fail(err, "logit biases of %zu bytes", sec->size);
    }

    for (i = 0; i < sec->size; i += sizeof(bias)) {
        memcpy(&bias, sec->data + i, sizeof(bias));

        /* written so that NaN fails */

        if (bias.id < 0 || !(bias.bias >= -100.0f && bias.bias <= 100.0f)) {
            return chan_fail(err, "logit bias %g of token id %d",
                             (double) bias.bias, bias.id);
        }
    }

    return CHAN_OK;
}


static int
chan_check_tags(const chan_section_t *sec, char *err)
{
    size_t      i;
    uint64_t    last;
    chan_tag_t  tag;

    if (sec->size % sizeof(tag) != 0
        || sec->size / sizeof(tag) > CHAN_TAGS_MAX)
    {
        return chan_fail(err, "tags of %zu bytes", sec->size);
    }

    last = 0;

    for (i = 0; i < sec->size; i += sizeof(tag)) {
        memcpy(&tag, sec->data + i, sizeof(tag));

        if (tag.end <= last) {
            return chan_fail(err, "tag that ends at %llu after one at %llu",
                             (unsigned long long) tag.end,
                             (unsigned long long) last);
        }

        last = tag.end;
    }

    return CHAN_OK;
}


static int
chan_check_seen(const chan_submit_t *submit, const chan_seen_t *seen,
    char *err)
{
    if (seen->biases > 1 || seen->tags > 1 || seen->tenants > 1
        || seen->resumes > 1)
    {
        return chan_fail(err, "a section comes twice that may come once");
    }

    if (submit->endpoint == CHAN_CHAT) {

        if (seen->messages == 0 || seen->prompts != 0) {
            return chan_fail(err, "chat with %u messages and %u prompts",
                             seen->messages, seen->prompts);
        }

    } else if (seen->messages != 0 || seen->prompts != 1) {
        return chan_fail(err, "completion with %u messages and %u prompts",
                         seen->messages, seen->prompts);
    }

    if (submit->resume_bytes != 0 && seen->resumes == 0) {
        return chan_fail(err, "bytes to resume after without their ids");
    }

    return CHAN_OK;
}


int
chan_utf8_valid(const void *s, size_t len)
{
    uint8_t         lo, hi;
    uint64_t        word;
    size_t          n;
    const uint8_t  *p, *end;

    if (len == 0) {
        return 1;
    }

    p = s;
    end = p + len;

    while (p < end) {

        if (*p < 0x80) {

            /* text is mostly ASCII: eight bytes at a time */

            if (end - p >= 8) {
                memcpy(&word, p, sizeof(word));

                if ((word & UINT64_C(0x8080808080808080)) == 0) {
                    p += 8;
                    continue;
                }
            }

            p++;
            continue;
        }

        /* The second byte's range excludes overlongs and surrogates. */

        lo = 0x80;
        hi = 0xbf;

        if (*p >= 0xc2 && *p <= 0xdf) {
            n = 1;

        } else if (*p >= 0xe0 && *p <= 0xef) {
            n = 2;
            lo = *p == 0xe0 ? 0xa0 : 0x80;
            hi = *p == 0xed ? 0x9f : 0xbf;

        } else if (*p >= 0xf0 && *p <= 0xf4) {
            n = 3;
            lo = *p == 0xf0 ? 0x90 : 0x80;
            hi = *p == 0xf4 ? 0x8f : 0xbf;

        } else {
            return 0;
        }

        if ((size_t) (end - p) <= n || p[1] < lo || p[1] > hi) {
            return 0;
        }

        p += 2;
        n--;

        while (n-- != 0) {
            if ((*p++ & 0xc0) != 0x80) {
                return 0;
            }
        }
    }

    return 1;
}
