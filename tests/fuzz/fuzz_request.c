/*
 * Request bodies from anywhere: no crash, no leak; what is accepted is a
 * submission that the engine accepts too, and what is refused is refused with
 * a status and a sentence.  A look at the same body leaves only what is
 * harmless in a header.
 *
 * The first byte chooses the endpoint; the rest is the body.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ngx_http_llm_peek.h"


#define CHECK(x)  do { if (!(x)) { abort(); } } while (0)


static void check_refused(const ngx_http_llm_error_t *err);
static void check_accepted(ngx_http_llm_params_t *params);
static void check_peek(const u_char *text, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    u_char                 *text;
    ngx_int_t               rc;
    ngx_http_llm_error_t    err;
    ngx_http_llm_params_t   params;

    if (size == 0) {
        return 0;
    }

    /* exactly as long as the body, so that a step beyond it is seen */

    text = malloc(size - 1 + (size == 1));
    CHECK(text != NULL);
    memcpy(text, data + 1, size - 1);

    memset(&params, 0, sizeof(params));
    memset(&err, 0, sizeof(err));

    params.endpoint = data[0] == 'c' ? CHAN_CHAT : CHAN_COMPLETION;
    params.names = "m\0org/alias\0";
    params.max_tokens = CHAN_TOKENS_MAX;

    rc = ngx_http_llm_params_parse(&params, text, size - 1, &err);

    check_peek(text, size - 1);
    free(text);

    if (rc == NGX_OK) {
        check_accepted(&params);

    } else {
        check_refused(&err);
        CHECK(params.prompts == NULL && params.nprompts == 0);
    }

    ngx_http_llm_params_free(&params);
    ngx_http_llm_params_free(&params);

    return 0;
}


static void
check_peek(const u_char *text, size_t size)
{
    const char           *p;
    ngx_http_llm_peek_t   peek, again;

    ngx_http_llm_peek(&peek, text, size);
    ngx_http_llm_peek(&again, text, size);

    CHECK(memcmp(&peek, &again, sizeof(peek)) == 0);
    CHECK(strlen(peek.model) < sizeof(peek.model));
    CHECK(strlen(peek.user) < sizeof(peek.user));

    for (p = peek.model; *p != '\0'; p++) {
        CHECK((unsigned char) *p >= 0x20 && *p != 0x7f);
    }
}


/* 500 would mean that cJSON refused what the check had passed. */

static void
check_refused(const ngx_http_llm_error_t *err)
{
    size_t  len;

    CHECK(err->status == 400 || err->status == 404 || err->status == 413);

    len = strlen(err->message);
    CHECK(len > 0 && len < sizeof(err->message));
    CHECK(chan_utf8_valid(err->message, len));
    CHECK(strlen(err->param) < sizeof(err->param));
}


static void
check_accepted(ngx_http_llm_params_t *params)
{
    char                  reason[CHAN_ERR_LEN];
    size_t                size;
    ngx_uint_t            i, j;
    const uint8_t        *body;
    const chan_submit_t  *submit;
    struct {
        chan_record_t     rec;
        chan_submit_t     submit;
    } record;

    CHECK(params->nprompts >= 1);
    CHECK(params->n >= 1 && params->n <= NGX_HTTP_LLM_N_MAX);
    CHECK(params->nprompts * params->n <= NGX_HTTP_LLM_CHOICES_MAX);
    CHECK(ngx_http_llm_model_known(params->names, params->model,
                                   strlen(params->model)));

    for (i = 0; i < params->nprompts; i++) {

        memset(&record, 0, sizeof(record));
        record.rec.size = sizeof(record);
        record.rec.type = CHAN_SUBMIT;
        record.rec.id = 1;
        record.submit = params->submit;
        record.submit.body_size = params->prompts[i].body.size;

        CHECK(chan_get_submit(&record.rec, &submit, &body, &size, reason)
              == CHAN_OK);
        CHECK(chan_body_check(&record.submit, params->prompts[i].body.data,
                              params->prompts[i].body.size, reason)
              == CHAN_OK);

        for (j = 0; j < params->n; j++) {
            ngx_http_llm_prompt_done(&params->prompts[i]);
        }
    }
}
