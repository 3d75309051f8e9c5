/*
 * What comes back: it is printed, or kept for --dump.
 */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"


static void on_delta(request_t *r, const chan_record_t *rec);
static void append(char **s, size_t *len, const char *data, size_t n);
static void hash_logprob(request_t *r, int32_t id, float logprob);


void
events_take(const chan_record_t *rec)
{
    char                    err[CHAN_ERR_LEN];
    request_t              *r;
    chan_error_view_t       e;
    const chan_finish_t    *f;
    const chan_accepted_t  *a;

    if (rec->id == 0 || rec->id > (uint64_t) client.begun) {
        die("event", "of an unknown request");
    }

    r = &client.request[rec->id - 1];

    switch (rec->type) {

    case CHAN_ACCEPTED:
        if (chan_get_accepted(rec, &a, err) != CHAN_OK) {
            die("accepted", err);
        }

        if (!opt.text && opt.total == 0) {
            printf("ACCEPTED prompt_tokens=%u cached=%u rank=%u epoch=%" PRIu64
                   " seed=%" PRIu64 "\n", a->prompt_tokens, a->cached_tokens,
                   a->rank, a->rank_epoch, a->seed);
        }
        break;

    case CHAN_DELTA:
        on_delta(r, rec);
        break;

    case CHAN_FINISH:
        if (chan_get_finish(rec, &f, err) != CHAN_OK) {
            die("finish", err);
        }

        r->reason = f->reason;
        client.prompt_tokens += f->prompt_tokens;
        client.ended++;

        if (opt.text) {
            putchar('\n');

        } else if (opt.total == 0) {
            printf("FINISH reason=%u prompt=%u completion=%u reasoning=%u "
                   "rank=%u step=%" PRIu64 " queue_us=%" PRIu64
                   " first_us=%" PRIu64 " total_us=%" PRIu64 "\n", f->reason,
                   f->prompt_tokens, f->completion_tokens,
                   f->reasoning_tokens, f->rank, f->step, f->queue_us,
                   f->first_us, f->total_us);
        }
        break;

    case CHAN_ERROR_REC:
        if (chan_get_error(rec, &e, err) != CHAN_OK) {
            die("error", err);
        }

        fprintf(stderr, "ERROR request=%" PRIu64 " code=%u param=%.*s %.*s\n",
                rec->id, e.error->code, (int) e.error->param_size, e.param,
                (int) e.error->message_size, e.message);
        r->reason = 100 + e.error->code;
        client.ended++;
        client.failed = 1;
        break;

    default:
        die("event", "of unknown type");
    }
}


static void
on_delta(request_t *r, const chan_record_t *rec)
{
    char               err[CHAN_ERR_LEN], id[32];
    double             t;
    uint32_t           i, j;
    chan_window_t      w;
    const uint8_t     *p, *q;
    chan_top_view_t    top;
    chan_delta_view_t  v;
    chan_token_view_t  tok;

    static const char *const  kind[] = {
        "?", "content", "reasoning", "tool", "echo"
    };

    if (chan_get_delta(rec, &v, err) != CHAN_OK) {
        die("delta", err);
    }

    t = now();

    if (v.delta->kind != CHAN_ECHO && v.delta->n_tokens > 0) {
        if (r->n_tokens == 0) {
            figures_first(t - r->submitted);
        } else {
            figures_between(t - r->last);
        }

        r->last = t;
        r->n_tokens += v.delta->n_tokens;
        client.tokens += v.delta->n_tokens;
    }

    append(&r->text, &r->text_len, (const char *) v.text,
           v.delta->text_size);

    if (opt.text) {
        fwrite(v.text, 1, v.delta->text_size, stdout);
        fflush(stdout);

    } else if (opt.total == 0) {
        printf("DELTA %s ", kind[v.delta->kind]);
        print_text((const char *) v.text, v.delta->text_size);
    }

    p = v.tokens;

    for (i = 0; i < v.delta->n_tokens; i++) {
        chan_next_token(&p, &tok);

        snprintf(id, sizeof(id), "%s%d", r->ids_len > 0 ? "," : "",
                 (int) tok.token->id);
        append(&r->ids, &r->ids_len, id, strlen(id));
        hash_logprob(r, tok.token->id, tok.token->logprob);

        if (opt.text || opt.total > 0) {
            for (q = tok.tops, j = 0; j < tok.token->n_top; j++) {
                chan_next_top(&q, &top);
                hash_logprob(r, top.top->id, top.top->logprob);
            }

            continue;
        }

        printf(" %d", (int) tok.token->id);

        if (!isnan(tok.token->logprob)) {
            printf(":%.6f", tok.token->logprob);
        }

        q = tok.tops;

        for (j = 0; j < tok.token->n_top; j++) {
            chan_next_top(&q, &top);
            printf("/%d:%.6f", (int) top.top->id, top.top->logprob);
        }
    }

    if (!opt.text && opt.total == 0) {
        putchar('\n');
    }

    r->owed += rec->size;

    if (!opt.stall && r->owed >= opt.submit.credit / 2) {
        w.credit = r->owed;
        r->owed = 0;
        submit_control(r, CHAN_WINDOW, &w, sizeof(w));
    }

    if (opt.cancel_after > 0 && r->n_tokens >= opt.cancel_after) {
        submit_control(r, CHAN_CANCEL, NULL, 0);
    }
}


static void
append(char **s, size_t *len, const char *data, size_t n)
{
    char  *p;

    p = realloc(*s, *len + n + 1);
    if (p == NULL) {
        die("text", "no memory");
    }

    memcpy(p + *len, data, n);
    *s = p;
    *len += n;
    p[*len] = '\0';
}


static void
hash_logprob(request_t *r, int32_t id, float logprob)
{
    uint32_t  bits;

    memcpy(&bits, &logprob, sizeof(bits));

    if (!isnan(logprob)) {
        r->logprobs = mix(r->logprobs ^ bits) ^ (uint32_t) id;
    }
}


/* One line whatever is in it. */

void
print_text(const char *s, size_t n)
{
    size_t  i;

    putchar('"');

    for (i = 0; i < n; i++) {
        if ((unsigned char) s[i] < 0x20 || s[i] == '"' || s[i] == '\\') {
            printf("\\x%02x", (unsigned char) s[i]);
        } else {
            putchar(s[i]);
        }
    }

    putchar('"');
}
