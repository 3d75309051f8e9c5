/*
 * The scripted engine's log: one line per event, a name and key=value words.
 */

#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "scripted/engine.h"


static void log_sections(FILE *f, request_t *r);
static void log_text(FILE *f, const char *name, const chan_section_t *sec);
static void log_words(FILE *f, const char *name, const chan_section_t *sec);


int64_t
now_us(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}


void
log_event(engine_t *e, const char *name, request_t *r, const char *fmt, ...)
{
    va_list  args;

    if (e->log == NULL) {
        return;
    }

    fprintf(e->log, "%s ", name);

    if (r != NULL) {
        fprintf(e->log, "lane=%d ", ((lane_t *) r->lane)->number);

        if (strncmp(fmt, "id=", 3) != 0) {
            fprintf(e->log, "id=%" PRIu64 " ", r->id);
        }
    }

    va_start(args, fmt);
    (void) vfprintf(e->log, fmt, args);
    va_end(args);

    fprintf(e->log, " us=%" PRId64 "\n", now_us() - e->start);
}


void
log_submit(engine_t *e, request_t *r)
{
    int             i;
    chan_submit_t  *s;

    static const char *const  flags[] = { "logprobs", "echo", "seed", "think",
                                          "no_think", "ignore_eos", "own_t",
                                          "own_top_p" };

    if (e->log == NULL) {
        return;
    }

    s = &r->submit;
    fprintf(e->log, "submit lane=%d id=%" PRIu64 " endpoint=%s flags=",
            ((lane_t *) r->lane)->number, r->id,
            s->endpoint == CHAN_CHAT ? "chat" : "completion");

    for (i = 0; i < 8; i++) {
        if (s->flags & (1u << i)) {
            fprintf(e->log, "%s,", flags[i]);
        }
    }

    fprintf(e->log, " body_size=%" PRIu64 " credit=%" PRIu64 " seed=%" PRIu64
            " fingerprint=%" PRIx64 " max_tokens=%u max_context=%u"
            " queue_max=%u queue_timeout=%u deadline=%u priority=%d"
            " rank_hint=%d rank_epoch=%" PRIx64 " top_logprobs=%u",
            s->body_size, s->credit, s->seed, s->fingerprint, s->max_tokens,
            s->max_context, s->queue_max, s->queue_timeout, s->deadline,
            s->priority, s->rank_hint, s->rank_epoch, s->top_logprobs);

    fprintf(e->log, " temperature=%.9g top_p=%.9g min_p=%.9g top_k=%u"
            " repetition_penalty=%.9g presence_penalty=%.9g"
            " frequency_penalty=%.9g resume_bytes=%" PRIu64,
            (double) s->temperature, (double) s->top_p, (double) s->min_p,
            s->top_k, (double) s->repetition_penalty,
            (double) s->presence_penalty, (double) s->frequency_penalty,
            s->resume_bytes);

    log_sections(e->log, r);
    fprintf(e->log, " us=%" PRId64 "\n", e->now - e->start);
}


static void
log_sections(FILE *f, request_t *r)
{
    char            name[32];
    size_t          off;
    unsigned        messages, stops;
    chan_section_t  sec;

    static const char *const  roles[] = { "?", "system", "user", "assistant",
                                          "tool" };

    messages = 0;
    stops = 0;
    off = 0;

    while (chan_body_next(r->body, r->have, &off, &sec) == CHAN_OK) {

        switch (sec.kind) {

        case CHAN_SEC_MESSAGE:
            fprintf(f, " message%u.role=%s", messages, roles[sec.role]);
            snprintf(name, sizeof(name), "message%u", messages++);
            log_text(f, name, &sec);
            break;

        case CHAN_SEC_TEXT:
            log_text(f, "text", &sec);
            break;

        case CHAN_SEC_STOP:
            snprintf(name, sizeof(name), "stop%u", stops++);
            log_text(f, name, &sec);
            break;

        case CHAN_SEC_TENANT:
            log_text(f, "tenant", &sec);
            break;

        case CHAN_SEC_IDS:
            log_words(f, "ids", &sec);
            break;

        case CHAN_SEC_RESUME_IDS:
            log_words(f, "resume_ids", &sec);
            break;

        case CHAN_SEC_BIAS:
            log_words(f, "bias", &sec);
            break;

        case CHAN_SEC_TAGS:
            log_words(f, "tags", &sec);
            break;
        }
    }

    fprintf(f, " messages=%u stops=%u", messages, stops);
}


/* Up to 4096 bytes, percent-encoded, with the whole's size and FNV-1a hash. */

static void
log_text(FILE *f, const char *name, const chan_section_t *sec)
{
    size_t    i;
    uint64_t  hash;

    hash = UINT64_C(0xcbf29ce484222325);

    for (i = 0; i < sec->size; i++) {
        hash = (hash ^ sec->data[i]) * UINT64_C(0x100000001b3);
    }

    fprintf(f, " %s.size=%zu %s.hash=%016" PRIx64 " %s=", name, sec->size,
            name, hash, name);

    for (i = 0; i < sec->size && i < 4096; i++) {
        if (sec->data[i] <= ' ' || sec->data[i] >= 0x7f
            || sec->data[i] == '%')
        {
            fprintf(f, "%%%02X", sec->data[i]);

        } else {
            putc(sec->data[i], f);
        }
    }
}


static void
log_words(FILE *f, const char *name, const chan_section_t *sec)
{
    size_t       i;
    int32_t      id;
    chan_tag_t   tag;
    chan_bias_t  bias;

    fprintf(f, " %s=", name);

    if (sec->kind == CHAN_SEC_BIAS) {
        for (i = 0; i < sec->size; i += sizeof(bias)) {
            memcpy(&bias, sec->data + i, sizeof(bias));
            fprintf(f, "%s%d:%.9g", i == 0 ? "" : ",", bias.id,
                    (double) bias.bias);
        }

    } else if (sec->kind == CHAN_SEC_TAGS) {
        for (i = 0; i < sec->size; i += sizeof(tag)) {
            memcpy(&tag, sec->data + i, sizeof(tag));
            fprintf(f, "%s%016" PRIx64 ":%" PRIu64, i == 0 ? "" : ",",
                    tag.tag, tag.end);
        }

    } else {
        for (i = 0; i < sec->size && i < 1024 * sizeof(id); i += sizeof(id)) {
            memcpy(&id, sec->data + i, sizeof(id));
            fprintf(f, "%s%d", i == 0 ? "" : ",", id);
        }
    }
}
