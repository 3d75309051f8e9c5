/*
 * Tags: from bytes of the canonical prompt to tokens.
 *
 * chan_message.h says what the canonical prompt is and which token a tag's
 * last one is.  Its bytes are walked in order, those of the rendered text are
 * not always: a template may move a message to the front, or drop it.  So a
 * tag's last token is the last of all that its bytes need.
 */

#include "serve/serve_int.h"

#include <stdlib.h>
#include <string.h>


#define SERVE_UNTHINK  "</think>"

typedef struct {
    serve_body_t  *body;
    size_t         at;               /* canonical bytes so far */
    uint32_t       last;             /* token that these need */
    uint32_t       n;                /* tags done */
} serve_canon_t;


static int serve_tags_open(serve_body_t *b, serve_canon_t *c,
    serve_fault_t *f);
static int serve_tags_close(serve_canon_t *c, serve_fault_t *f);
static void serve_tags_span(serve_canon_t *c, size_t size, size_t begin,
    size_t end, const tok_ids_t *ids, uint32_t shift);
static uint32_t serve_token(const tok_ids_t *ids, size_t byte);
static size_t serve_answer(const tok_message_t *m);


/* Of a conversation; `ids` are those of `prompt`. */

int
serve_tags_chat(serve_body_t *b, const tok_prompt_t *prompt,
    const tok_ids_t *ids, serve_fault_t *f)
{
    size_t                i, len;
    serve_canon_t         c;
    const tok_range_t    *at;
    const tok_message_t  *m;

    if (serve_tags_open(b, &c, f) != 0) {
        return -1;
    }

    for (i = 0; i < b->n_messages; i++) {
        m = &b->message[i];
        at = &prompt->content[i];
        len = m->len - (m->role == TOK_ROLE_ASSISTANT ? serve_answer(m) : 0);

        serve_tags_span(&c, 1, at->begin, at->begin, ids, 0);    /* role */
        serve_tags_span(&c, len, at->begin, at->end, ids, 0);
    }

    return serve_tags_close(&c, f);
}


/*
 * Of a text or an id list; `shift` tokens come before it.  Ids have four bytes
 * each.
 */

int
serve_tags_text(serve_body_t *b, const tok_ids_t *ids, uint32_t shift,
    serve_fault_t *f)
{
    size_t         i;
    serve_canon_t  c;

    if (serve_tags_open(b, &c, f) != 0) {
        return -1;
    }

    if (!b->has_ids) {
        serve_tags_span(&c, b->text_len, 0, b->text_len, ids, shift);
        return serve_tags_close(&c, f);
    }

    for (i = 0; i < b->n_ids; i++) {
        c.last = (uint32_t) i;
        c.at += sizeof(int32_t);

        while (c.n < b->n_tags && b->tag[c.n].end <= c.at) {
            b->tags[c.n++].last = c.last;
        }
    }

    return serve_tags_close(&c, f);
}


static int
serve_tags_open(serve_body_t *b, serve_canon_t *c, serve_fault_t *f)
{
    memset(c, 0, sizeof(serve_canon_t));
    c->body = b;

    if (b->n_tags == 0) {
        return 0;
    }

    b->tags = calloc(b->n_tags, sizeof(sched_tag_t));
    if (b->tags == NULL) {
        return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
    }

    return 0;
}


static int
serve_tags_close(serve_canon_t *c, serve_fault_t *f)
{
    uint32_t             i;
    const serve_body_t  *b;

    b = c->body;

    if (c->n < b->n_tags) {
        return serve_fault(f, CHAN_E_INVALID, "", "a tag ends at byte %llu of "
                           "a prompt of %zu",
                           (unsigned long long) b->tag[c->n].end, c->at);
    }

    for (i = 0; i < b->n_tags; i++) {
        b->tags[i].tag = b->tag[i].tag;
    }

    return 0;
}


/*
 * The next `size` canonical bytes, the last of which is the text's byte before
 * `end`; those that would lie before `begin` count as the byte before that.
 */

static void
serve_tags_span(serve_canon_t *c, size_t size, size_t begin, size_t end,
    const tok_ids_t *ids, uint32_t shift)
{
    size_t         last, left, byte;
    uint32_t       token;
    serve_body_t  *b;

    b = c->body;
    last = c->at + size;

    while (c->at < last) {

        /* On to the next tag, or to the end. */

        c->at = last;

        if (c->n < b->n_tags && b->tag[c->n].end < last) {
            c->at = (size_t) b->tag[c->n].end;
        }

        left = last - c->at;

        if (left < end - begin) {
            byte = end - left - 1;
        } else {
            byte = begin > 0 ? begin - 1 : 0;
        }

        token = serve_token(ids, byte) + shift;
        c->last = token > c->last ? token : c->last;

        if (c->n < b->n_tags && b->tag[c->n].end == c->at) {
            b->tags[c->n++].last = c->last;
        }
    }
}


/* The token that holds a byte of the text. */

static uint32_t
serve_token(const tok_ids_t *ids, size_t byte)
{
    size_t  lo, hi, mid;

    lo = 0;
    hi = ids->n;

    while (lo < hi) {
        mid = lo + (hi - lo) / 2;

        if (ids->end[mid] > byte) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }

    return lo < ids->n ? (uint32_t) lo : ids->n > 0 ? (uint32_t) ids->n - 1
                                                    : 0;
}


/* Where the answer begins that follows an assistant's reasoning. */

static size_t
serve_answer(const tok_message_t *m)
{
    size_t       from;
    const char  *p;

    from = 0;

    while (m->len - from > 0) {
        p = memmem(m->content + from, m->len - from, SERVE_UNTHINK,
                   sizeof(SERVE_UNTHINK) - 1);

        if (p == NULL) {
            break;
        }

        from = (size_t) (p - m->content) + sizeof(SERVE_UNTHINK) - 1;
    }

    return from;
}
