/*
 * Requests of the scripted engine: from a body to prompt and answer tokens.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scripted/request.h"


enum { BY_WORD, BY_CHAR, BY_BYTE };


static int pieces_add(pieces_t *p, size_t start, size_t size, int32_t id);
static void pieces_free(pieces_t *p);
static int pieces_cut(pieces_t *p, int by);
static int request_scripts(request_t *r, const char *text, size_t size);
static int request_ids(pieces_t *p, const chan_section_t *sec);
static int request_count(request_t *r);
static void request_stop(request_t *r);
static void request_resume(request_t *r);
static float token_logprob(int32_t id);


static int
pieces_add(pieces_t *p, size_t start, size_t size, int32_t id)
{
    piece_t  *grown;

    if ((p->n & (p->n - 1)) == 0) {
        grown = realloc(p->piece, (p->n == 0 ? 1 : p->n * 2) * sizeof(*grown));

        if (grown == NULL) {
            return -1;
        }

        p->piece = grown;
    }

    p->piece[p->n].start = (uint32_t) start;
    p->piece[p->n].size = (uint32_t) size;
    p->piece[p->n].id = id;
    p->n++;

    return 0;
}


static void
pieces_free(pieces_t *p)
{
    free(p->text);
    free(p->piece);
    memset(p, 0, sizeof(*p));
}


/*
 * Cuts p->text: words with the white space before them, code points, or bytes.
 * The pieces joined are the text again.
 */

static int
pieces_cut(pieces_t *p, int by)
{
    int     word;
    size_t  i, start;

    start = 0;
    word = 0;

    for (i = 0; i < p->size; i++) {
        int  white, lead, cut;

        white = p->text[i] == ' ' || p->text[i] == '\n'
                || p->text[i] == '\t' || p->text[i] == '\r';
        lead = (p->text[i] & 0xc0) != 0x80;

        cut = by == BY_BYTE || (by == BY_CHAR && lead)
              || (by == BY_WORD && white && word)
              || (lead && i - start >= PIECE_MAX - 4);

        if (cut && i != start) {
            if (pieces_add(p, start, i - start, (int32_t) p->n + 1) != 0) {
                return -1;
            }

            start = i;
            word = 0;
        }

        word |= !white;
    }

    if (start < p->size) {
        return pieces_add(p, start, p->size - start, (int32_t) p->n + 1);
    }

    return 0;
}


/* Takes scripts out of `text`; what is left becomes the answer's text. */

static int
request_scripts(request_t *r, const char *text, size_t size)
{
    const char  *p, *end, *eol;

    r->answer.text = malloc(size + 1);

    if (r->answer.text == NULL) {
        return -1;
    }

    end = text + size;

    for (p = text; p < end; p = eol) {
        eol = memchr(p, '\n', (size_t) (end - p));
        eol = eol == NULL ? end : eol + 1;

        if (script_line(&r->script, p,
                        (size_t) (eol - p) - (eol[-1] == '\n')) == 0)
        {
            memcpy(r->answer.text + r->answer.size, p, (size_t) (eol - p));
            r->answer.size += (size_t) (eol - p);
        }
    }

    return 0;
}


/* Prompt given as ids: words "t<ID>" that keep their ids. */

static int
request_ids(pieces_t *p, const chan_section_t *sec)
{
    size_t   i, n;
    int32_t  id;

    n = sec->size / sizeof(id);
    p->text = malloc(n * 13 + 1);

    if (p->text == NULL) {
        return -1;
    }

    for (i = 0; i < n; i++) {
        int  len;

        memcpy(&id, sec->data + i * sizeof(id), sizeof(id));
        len = sprintf(p->text + p->size, "%st%d", i == 0 ? "" : " ", id);

        if (pieces_add(p, p->size, (size_t) len, id) != 0) {
            return -1;
        }

        p->size += (size_t) len;
    }

    return 0;
}


/* tokens=N with stop strings or bytes: the text is needed as a whole. */

static int
request_count(request_t *r)
{
    int64_t  i;

    if (r->script.tokens > 1000000) {
        r->script.tokens = 1000000;
    }

    free(r->answer.text);
    r->answer.size = 0;
    r->answer.text = malloc((size_t) r->script.tokens * 10 + 1);

    if (r->answer.text == NULL) {
        return -1;
    }

    for (i = 1; i <= r->script.tokens; i++) {
        r->answer.size += (size_t) sprintf(r->answer.text + r->answer.size,
                                           "%sw%d", i == 1 ? "" : " ",
                                           (int) i);
    }

    r->script.tokens = -1;

    return 0;
}


/* Finds the first stop string in the answer; shortens it. */

static void
request_stop(request_t *r)
{
    char            *at;
    size_t           off, i, end;
    chan_section_t   sec;

    off = 0;
    end = 0;

    while (chan_body_next(r->body, r->have, &off, &sec) == CHAN_OK) {

        if (sec.kind != CHAN_SEC_STOP || r->answer.size == 0) {
            continue;
        }

        at = memmem(r->answer.text, r->answer.size, sec.data, sec.size);

        if (at != NULL && (size_t) (at - r->answer.text) < r->cut) {
            r->cut = (size_t) (at - r->answer.text);
            end = r->cut + sec.size;
        }
    }

    if (end == 0) {
        return;
    }

    for (i = 0; i < r->answer.n; i++) {
        if (r->answer.piece[i].start + r->answer.piece[i].size >= end) {
            r->n_total = r->n_reason + (int64_t) i + 1;
            r->reason = CHAN_STOP;
            return;
        }
    }
}


int
request_prepare(request_t *r)
{
    int              stops;
    size_t           off;
    pieces_t         words;
    chan_section_t   sec, last;

    stops = 0;
    off = 0;
    memset(&last, 0, sizeof(last));

    while (chan_body_next(r->body, r->have, &off, &sec) == CHAN_OK) {

        switch (sec.kind) {

        case CHAN_SEC_MESSAGE:
            if (sec.role == CHAN_ROLE_USER || last.role != CHAN_ROLE_USER) {
                last = sec;
            }

            memset(&words, 0, sizeof(words));
            words.text = (char *) sec.data;
            words.size = sec.size;

            if (pieces_cut(&words, BY_WORD) != 0) {
                return -1;
            }

            r->n_prompt += (int64_t) words.n;
            free(words.piece);
            break;

        case CHAN_SEC_TEXT:
            last = sec;
            r->prompt.text = malloc(sec.size + 1);

            if (r->prompt.text == NULL) {
                return -1;
            }

            memcpy(r->prompt.text, sec.data, sec.size);
            r->prompt.size = sec.size;

            if (pieces_cut(&r->prompt, BY_WORD) != 0) {
                return -1;
            }

            r->n_prompt = (int64_t) r->prompt.n;
            break;

        case CHAN_SEC_IDS:
            if (request_ids(&r->prompt, &sec) != 0) {
                return -1;
            }

            r->n_prompt = (int64_t) r->prompt.n;
            last.data = (uint8_t *) r->prompt.text;
            last.size = r->prompt.size;
            break;

        case CHAN_SEC_STOP:
            stops++;
            break;

        case CHAN_SEC_RESUME_IDS:
            r->from = (int64_t) (sec.size / sizeof(int32_t));
            break;
        }
    }

    if (request_scripts(r, (const char *) last.data, last.size) != 0) {
        return -1;
    }

    if (r->script.text != NULL) {
        free(r->answer.text);
        r->answer.text = r->script.text;
        r->answer.size = r->script.text_size;
        r->script.text = NULL;
        r->script.tokens = -1;

        if (pieces_cut(&r->answer, r->script.bytes ? BY_BYTE : BY_CHAR) != 0) {
            return -1;
        }

    } else {

        if (r->script.tokens >= 0 && (stops != 0 || r->script.bytes)
            && request_count(r) != 0)
        {
            return -1;
        }

        if (r->script.tokens < 0
            && pieces_cut(&r->answer, r->script.bytes ? BY_BYTE : BY_WORD)
               != 0)
        {
            return -1;
        }
    }

    r->n_reason = r->script.reasoning;
    r->n_total = r->n_reason + (r->script.tokens >= 0 ? r->script.tokens
                                                      : (int64_t) r->answer.n);
    r->reason = (uint32_t) r->script.finish;
    r->cut = SIZE_MAX;

    if (stops != 0) {
        request_stop(r);
    }

    if (r->script.prompt_tokens >= 0) {
        r->n_prompt = r->script.prompt_tokens;
    }

    request_resume(r);

    return 0;
}


/* Goes through the answer as send_tokens() did until another engine ended. */

static void
request_resume(request_t *r)
{
    char      text[sizeof(r->carry) + PIECE_MAX];
    token_t   t;
    uint32_t  size, whole;
    uint64_t  bytes;

    bytes = 0;

    while (r->pos < r->from && r->pos < r->n_total) {

        request_token(r, r->pos++, &t);

        memcpy(text, r->carry, r->n_carry);
        memcpy(text + r->n_carry, t.text, t.size);

        size = r->n_carry + t.size;
        whole = whole_chars(text, size);

        r->n_carry = size - whole;
        memcpy(r->carry, text + whole, r->n_carry);

        if (t.kind == CHAN_CONTENT) {
            r->shown += whole;

        } else {
            bytes += whole;
        }
    }

    if (r->shown > r->cut) {
        r->shown = r->cut;
    }

    /* What the worker has is what was sent with these tokens, or the test
       fails. */

    if (bytes + r->shown != r->submit.resume_bytes) {
        r->wrong_bytes = 1;
    }
}


void
request_free(request_t *r)
{
    pieces_free(&r->prompt);
    pieces_free(&r->answer);
    free(r->script.text);
    free(r->body);
    free(r);
}


/* Made up, but always the same for the same token. */

static float
token_logprob(int32_t id)
{
    return -0.125f - 0.25f * (float) (id % 8);
}


void
request_echo_token(request_t *r, int64_t i, token_t *t)
{
    t->id = r->prompt.piece[i].id;
    t->kind = CHAN_ECHO;
    t->text = r->prompt.text + r->prompt.piece[i].start;
    t->size = r->prompt.piece[i].size;
    t->logprob = i == 0 ? NAN : token_logprob(t->id);
    t->n_top = i == 0 ? 0 : r->submit.top_logprobs;
}


void
request_token(request_t *r, int64_t i, token_t *t)
{
    int64_t  k;

    t->id = (int32_t) i + 1;
    t->logprob = token_logprob(t->id);
    t->n_top = r->submit.top_logprobs;
    t->text = r->word;

    if (i < r->n_reason) {
        t->kind = CHAN_REASONING;
        t->size = (uint32_t) sprintf(r->word, "%sr%lld", i == 0 ? "" : " ",
                                     (long long) i + 1);
        return;
    }

    k = i - r->n_reason;
    t->kind = CHAN_CONTENT;

    if (r->script.tokens >= 0) {
        t->size = (uint32_t) sprintf(r->word, "%sw%lld", k == 0 ? "" : " ",
                                     (long long) k + 1);
        return;
    }

    if (k >= (int64_t) r->answer.n) {
        t->size = 0;
        return;
    }

    t->text = r->answer.text + r->answer.piece[k].start;
    t->size = r->answer.piece[k].size;
}


uint32_t
whole_chars(const char *s, uint32_t size)
{
    int            need;
    uint32_t       i;
    unsigned char  c;

    for (i = size; i > 0 && size - i < 4; i--) {
        c = (unsigned char) s[i - 1];

        if ((c & 0xc0) == 0x80) {
            continue;
        }

        need = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;

        return size - (i - 1) >= (uint32_t) need ? size : i - 1;
    }

    return size;
}
