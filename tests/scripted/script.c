/*
 * Scripts: what a line of key=value words asks for.
 */

#include <stdlib.h>
#include <string.h>

#include "channel/chan_message.h"

#include "scripted/script.h"


static int script_hex(int c);
static size_t script_decode(char *dst, const char *src, size_t len);
static int script_value(int64_t *out, const script_word_t *words,
    const char *v, size_t len);
static int script_word(script_t *s, const char *word, size_t len, int apply);


const script_word_t  script_errors[] = {
    { "invalid", CHAN_E_INVALID }, { "length", CHAN_E_LENGTH },
    { "template", CHAN_E_TEMPLATE }, { "model", CHAN_E_MODEL },
    { "queue", CHAN_E_QUEUE }, { "timeout", CHAN_E_TIMEOUT },
    { "shutdown", CHAN_E_SHUTDOWN }, { "internal", CHAN_E_INTERNAL },
    { NULL, 0 }
};

const script_word_t  script_reasons[] = {
    { "stop", CHAN_STOP }, { "length", CHAN_LENGTH },
    { "cancelled", CHAN_CANCELLED }, { "tools", CHAN_TOOLS }, { NULL, 0 }
};

const script_word_t  script_corruptions[] = {
    { "head", CORRUPT_HEAD }, { "size", CORRUPT_SIZE },
    { "type", CORRUPT_TYPE }, { "text", CORRUPT_TEXT },
    { "cursor", CORRUPT_CURSOR }, { "id", CORRUPT_ID },
    { "zero", CORRUPT_ZERO }, { "order", CORRUPT_ORDER },
    { "token", CORRUPT_TOKEN }, { NULL, 0 }
};


void
script_init(script_t *s)
{
    memset(s, 0, sizeof(*s));
    s->tokens = -1;
    s->batch = 1;
    s->finish = CHAN_STOP;
    s->retry = -1;
    s->fail_after = -1;
    s->die_after = -1;
    s->hang_after = -1;
    s->cached = -1;
    s->tags = -1;
    s->prompt_tokens = -1;
    s->rank = -1;
    s->evict = -1;
}


const char *
script_name(const script_word_t *words, int64_t value)
{
    for (/* void */; words->name != NULL; words++) {
        if (words->value == value) {
            return words->name;
        }
    }

    return "?";
}


static int
script_hex(int c)
{
    return c >= '0' && c <= '9' ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}


/* Decodes %XX in place of `dst`, which has room for `len` bytes. */

static size_t
script_decode(char *dst, const char *src, size_t len)
{
    size_t  i, n;

    n = 0;

    for (i = 0; i < len; i++) {

        if (src[i] == '%' && i + 2 < len && script_hex(src[i + 1]) >= 0
            && script_hex(src[i + 2]) >= 0)
        {
            dst[n++] = (char) (script_hex(src[i + 1]) * 16
                               + script_hex(src[i + 2]));
            i += 2;

        } else {
            dst[n++] = src[i];
        }
    }

    return n;
}


/* A number, or a name out of `words`; 0: neither. */

static int
script_value(int64_t *out, const script_word_t *words, const char *v,
    size_t len)
{
    char    buf[24], *end;
    size_t  n;

    if (words != NULL) {
        for (/* void */; words->name != NULL; words++) {
            n = strlen(words->name);

            if (n == len && memcmp(words->name, v, n) == 0) {
                *out = words->value;
                return 1;
            }
        }

        return 0;
    }

    if (len == 0 || len >= sizeof(buf)) {
        return 0;
    }

    memcpy(buf, v, len);
    buf[len] = '\0';
    *out = strtoll(buf, &end, 10);

    return *end == '\0' && *out >= 0;
}


/* One word; 1 if it is known.  It takes effect only if `apply` is set. */

static int
script_word(script_t *s, const char *word, size_t len, int apply)
{
    size_t       i, n;
    int64_t      value;
    const char  *eq, *v;

    const struct {
        const char           *name;
        int64_t              *to;
        const script_word_t  *words;
    } keys[] = {
        { "tokens", &s->tokens, NULL },
        { "reasoning", &s->reasoning, NULL },
        { "first", &s->first, NULL },
        { "prefill", &s->prefill, NULL },
        { "delay", &s->delay, NULL },
        { "batch", &s->batch, NULL },
        { "bytes", &s->bytes, NULL },
        { "retry", &s->retry, NULL },
        { "fail_after", &s->fail_after, NULL },
        { "die_after", &s->die_after, NULL },
        { "hang_after", &s->hang_after, NULL },
        { "corrupt_after", &s->corrupt_after, NULL },
        { "cached", &s->cached, NULL },
        { "tags", &s->tags, NULL },
        { "prompt_tokens", &s->prompt_tokens, NULL },
        { "rank", &s->rank, NULL },
        { "evict", &s->evict, NULL },
        { "log", &s->log, NULL },
        { "epoch", &s->epoch, NULL },
        { "finish", &s->finish, script_reasons },
        { "error", &s->error, script_errors },
        { "corrupt", &s->corrupt, script_corruptions },
    };

    eq = memchr(word, '=', len);

    if (eq == NULL) {
        return 0;
    }

    n = (size_t) (eq - word);
    v = eq + 1;
    len -= n + 1;

    for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {

        if (strlen(keys[i].name) != n || memcmp(keys[i].name, word, n) != 0) {
            continue;
        }

        if (script_value(&value, keys[i].words, v, len) == 0) {
            return 0;
        }

        if (apply) {
            *keys[i].to = value;
        }

        return 1;
    }

    if (n == 4 && memcmp(word, "text", 4) == 0) {

        if (apply) {
            free(s->text);
            s->text = malloc(len + 1);

            if (s->text == NULL) {
                return 0;
            }

            s->text_size = script_decode(s->text, v, len);

            if (chan_utf8_valid(s->text, s->text_size) == 0) {
                s->text_size = 0;
            }
        }

        return 1;
    }

    if (n == 5 && memcmp(word, "param", 5) == 0
        && len < sizeof(s->param))
    {
        if (apply) {
            s->param[script_decode(s->param, v, len)] = '\0';
        }

        return 1;
    }

    if (n == 7 && memcmp(word, "message", 7) == 0
        && len < sizeof(s->message))
    {
        if (apply) {
            s->message[script_decode(s->message, v, len)] = '\0';
        }

        return 1;
    }

    return 0;
}


int
script_line(script_t *s, const char *line, size_t len)
{
    int          pass, words, forced;
    const char  *p, *end, *start;

    end = line + len;
    forced = len >= 7 && memcmp(line, "script:", 7) == 0;

    for (pass = 0; pass < 2; pass++) {
        words = 0;

        for (p = line + (forced ? 7 : 0); p < end; /* void */) {

            while (p < end && (*p == ' ' || *p == '\t' || *p == '\r')) {
                p++;
            }

            start = p;

            while (p < end && *p != ' ' && *p != '\t' && *p != '\r') {
                p++;
            }

            if (p == start) {
                break;
            }

            words++;

            if (script_word(s, start, (size_t) (p - start), pass) == 0
                && !forced)
            {
                return 0;
            }
        }

        if (words == 0 && !forced) {
            return 0;
        }
    }

    return 1;
}
