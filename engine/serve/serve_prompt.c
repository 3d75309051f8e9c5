/*
 * Prompts: messages or text to token ids, and whether they fit the context.
 */

#include "serve/serve_int.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>


static uint32_t serve_context(const serve_req_t *r);
static int serve_fits(const serve_req_t *r, size_t size, serve_fault_t *f);


int
serve_fault(serve_fault_t *f, uint32_t code, const char *param,
    const char *fmt, ...)
{
    va_list  ap;

    f->code = code;
    f->param = param;

    va_start(ap, fmt);
    vsnprintf(f->text, sizeof(f->text), fmt, ap);
    va_end(ap);

    return -1;
}


int
serve_chat(serve_req_t *r, serve_body_t *b, tok_ids_t *ids, int *reasoning,
    serve_fault_t *f)
{
    int           rc, think;
    char          err[ERR_LEN];
    tok_prompt_t  prompt;
    const tok_t  *tok;

    tok = r->serve->opt.tok;

    if (tok_template(tok) == TOK_TEMPLATE_NONE) {
        return serve_fault(f, CHAN_E_TEMPLATE, "messages",
                           "this model has no known chat template; use "
                           "completions");
    }

    think = -1;
    think = (r->submit.flags & CHAN_F_THINK) ? 1 : think;
    think = (r->submit.flags & CHAN_F_NO_THINK) ? 0 : think;

    memset(&prompt, 0, sizeof(prompt));

    rc = tok_render(tok, b->message, b->n_messages, think, &prompt, err);

    if (rc == 0 && serve_fits(r, prompt.len, f) != 0) {
        tok_prompt_free(&prompt);
        return -1;
    }

    if (rc == 0) {
        rc = tok_encode(tok, prompt.text, prompt.len, prompt.trusted,
                        prompt.n_trusted, ids, err);
    }

    if (rc != 0) {
        tok_prompt_free(&prompt);
        return serve_fault(f, CHAN_E_INVALID, "messages", "%s", err);
    }

    *reasoning = prompt.in_reasoning;
    rc = serve_tags_chat(b, &prompt, ids, f);

    tok_prompt_free(&prompt);

    return rc;
}


int
serve_completion(serve_req_t *r, serve_body_t *b, tok_ids_t *ids,
    serve_fault_t *f)
{
    char          err[ERR_LEN];
    size_t        i, bos;
    int32_t      *id;
    uint32_t      vocab;
    const tok_t  *tok;

    tok = r->serve->opt.tok;
    vocab = r->serve->opt.sched.vocab;

    if (!b->has_ids) {

        if (serve_fits(r, b->text_len, f) != 0) {
            return -1;
        }

        if (tok_encode(tok, b->text != NULL ? b->text : "", b->text_len, NULL,
                       0, ids, err)
            != 0)
        {
            return serve_fault(f, CHAN_E_INVALID, "prompt", "%s", err);
        }

        bos = tok_add_bos(tok) && tok_bos(tok) >= 0;

        if (bos + ids->n == 0) {
            return serve_fault(f, CHAN_E_INVALID, "prompt",
                               "the prompt has no tokens");
        }

        if (serve_tags_text(b, ids, (uint32_t) bos, f) != 0) {
            return -1;
        }

        if (!bos) {
            return 0;
        }

        id = malloc((ids->n + 1) * sizeof(int32_t));
        if (id == NULL) {
            return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
        }

        id[0] = tok_bos(tok);

        /* An empty prompt has no list at all. */

        if (ids->n != 0) {
            memcpy(id + 1, ids->id, ids->n * sizeof(int32_t));
        }

        free(ids->id);
        ids->id = id;
        ids->n++;
        ids->cap = ids->n;
        r->skip_text = 1;

        return 0;
    }

    if (b->n_ids == 0) {
        return serve_fault(f, CHAN_E_INVALID, "prompt",
                           "the prompt has no tokens");
    }

    for (i = 0; i < b->n_ids; i++) {
        if (b->ids[i] < 0 || (uint32_t) b->ids[i] >= vocab) {
            return serve_fault(f, CHAN_E_INVALID, "prompt",
                               "token id %d is not one of 0 to %u",
                               (int) b->ids[i], vocab - 1);
        }
    }

    ids->id = malloc(b->n_ids * sizeof(int32_t));
    if (ids->id == NULL) {
        return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
    }

    memcpy(ids->id, b->ids, b->n_ids * sizeof(int32_t));
    ids->n = b->n_ids;
    ids->cap = b->n_ids;

    return serve_tags_text(b, ids, 0, f);
}


static uint32_t
serve_context(const serve_req_t *r)
{
    uint32_t  context;

    context = r->serve->max_context;

    return r->submit.max_context != 0 && r->submit.max_context < context
           ? r->submit.max_context : context;
}


/* Whether a text may fit the context; no use encoding it if it cannot. */

static int
serve_fits(const serve_req_t *r, size_t size, serve_fault_t *f)
{
    size_t    least;
    uint32_t  context;

    context = serve_context(r);
    least = size / r->serve->longest;

    if (least <= context) {
        return 0;
    }

    return serve_fault(f, CHAN_E_LENGTH,
                       r->submit.endpoint == CHAN_CHAT ? "messages"
                       : "prompt",
                       "This model's maximum context length is %u tokens, "
                       "your prompt has at least %zu", context, least);
}


/* What the context has room for. */

int
serve_bound(serve_req_t *r, size_t n_prompt, size_t n_resume,
    uint32_t *max_tokens, serve_fault_t *f)
{
    uint32_t  context, want;

    context = serve_context(r);
    want = r->submit.max_tokens;

    if (n_prompt + (want != 0) > context) {
        return serve_fault(f, CHAN_E_LENGTH,
                           r->submit.endpoint == CHAN_CHAT ? "messages"
                           : "prompt",
                           "This model's maximum context length is %u tokens, "
                           "your prompt has %zu", context, n_prompt);
    }

    if (want == CHAN_TOKENS_MAX) {
        want = context - (uint32_t) n_prompt;

    } else if (want > context - n_prompt) {
        return serve_fault(f, CHAN_E_LENGTH, "max_tokens",
                           "This model's maximum context length is %u tokens, "
                           "you requested %zu: %zu of the prompt and %u to "
                           "complete it", context, n_prompt + want, n_prompt,
                           want);
    }

    if (n_resume > want) {
        return serve_fault(f, CHAN_E_INVALID, "",
                           "%zu tokens to resume from, %u allowed", n_resume,
                           want);
    }

    *max_tokens = want;

    return 0;
}
