/*
 * A look at a body: model, user, and the beginning of the prompt.
 */

#include "ngx_http_llm_peek.h"
#include "ngx_http_llm_prefix.h"

#include <stdio.h>


static void ngx_http_llm_peek_model(ngx_http_llm_peek_t *peek,
    const cJSON *model);
static uint32_t ngx_http_llm_peek_number(const cJSON *value);
static uint32_t ngx_http_llm_peek_max_tokens(const ngx_http_llm_json_t *json);
static ngx_uint_t ngx_http_llm_peek_prompts(const cJSON *prompt);
static ngx_int_t ngx_http_llm_peek_messages(chan_body_t *body,
    const cJSON *messages);
static ngx_int_t ngx_http_llm_peek_message(chan_body_t *body,
    const cJSON *message, uint32_t role);
static uint32_t ngx_http_llm_peek_role(const cJSON *message);
static ngx_int_t ngx_http_llm_peek_prompt(chan_body_t *body,
    const cJSON *prompt);


void
ngx_http_llm_peek(ngx_http_llm_peek_t *peek, const u_char *data, size_t len)
{
    ngx_int_t              rc;
    chan_body_t            body;
    const cJSON          **f;
    ngx_http_llm_json_t    json;
    ngx_http_llm_error_t   err;

    ngx_memzero(peek, sizeof(ngx_http_llm_peek_t));

    ngx_memzero(&body, sizeof(chan_body_t));

    if (ngx_http_llm_json_parse(&json, data, len, &err) != NGX_OK) {
        return;
    }

    f = json.fields;

    ngx_http_llm_peek_model(peek, f[NGX_HTTP_LLM_F_MODEL]);

    if (cJSON_IsString(f[NGX_HTTP_LLM_F_USER])) {
        (void) snprintf(peek->user, sizeof(peek->user), "%s",
                        f[NGX_HTTP_LLM_F_USER]->valuestring);
    }

    peek->read = 1;

    peek->n = ngx_max(ngx_http_llm_peek_number(f[NGX_HTTP_LLM_F_N]),
                      ngx_http_llm_peek_number(f[NGX_HTTP_LLM_F_BEST_OF]));
    peek->n = ngx_max(peek->n, 1);
    peek->nprompts = ngx_http_llm_peek_prompts(f[NGX_HTTP_LLM_F_PROMPT]);
    peek->max_tokens = ngx_http_llm_peek_max_tokens(&json);

    if (cJSON_IsArray(f[NGX_HTTP_LLM_F_MESSAGES])) {
        rc = ngx_http_llm_peek_messages(&body, f[NGX_HTTP_LLM_F_MESSAGES]);

    } else {
        rc = ngx_http_llm_peek_prompt(&body, f[NGX_HTTP_LLM_F_PROMPT]);
    }

    if (rc == NGX_OK && body.size != 0) {
        peek->head = ngx_http_llm_tags_head(&body);
        peek->prompt = 1;
    }

    chan_body_free(&body);
    ngx_http_llm_json_free(&json);
}


static void
ngx_http_llm_peek_model(ngx_http_llm_peek_t *peek, const cJSON *model)
{
    const u_char  *p;

    if (!cJSON_IsString(model)
        || ngx_strlen(model->valuestring) >= sizeof(peek->model))
    {
        return;
    }

    for (p = (const u_char *) model->valuestring; *p != '\0'; p++) {
        if (*p < 0x20 || *p == 0x7f) {
            return;
        }
    }

    ngx_memcpy(peek->model, model->valuestring,
               ngx_strlen(model->valuestring) + 1);
}


static uint32_t
ngx_http_llm_peek_number(const cJSON *value)
{
    if (!cJSON_IsNumber(value) || !(value->valuedouble >= 1)) {
        return 0;
    }

    return value->valuedouble < INT32_MAX ? (uint32_t) value->valuedouble
                                          : INT32_MAX;
}


/*
 * Servers differ in which name they obey if there are several, so the largest
 * value counts; a negative one is "no limit" to those who know "n_predict".
 */

static uint32_t
ngx_http_llm_peek_max_tokens(const ngx_http_llm_json_t *json)
{
    uint32_t      max;
    ngx_uint_t    i;
    const cJSON  *value;

    static const char *const  names[] = {
        "max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict"
    };

    max = 0;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        value = cJSON_GetObjectItemCaseSensitive(json->root, names[i]);

        if (cJSON_IsNumber(value) && value->valuedouble < 0) {
            return INT32_MAX;
        }

        max = ngx_max(max, ngx_http_llm_peek_number(value));
    }

    return max;
}


/* A list of numbers is one prompt, a list of anything else so many. */

static ngx_uint_t
ngx_http_llm_peek_prompts(const cJSON *prompt)
{
    if (!cJSON_IsArray(prompt) || cJSON_IsNumber(prompt->child)) {
        return 1;
    }

    return ngx_max(cJSON_GetArraySize(prompt), 1);
}


/* Up to the first user's, or as much as is hashed. */

static ngx_int_t
ngx_http_llm_peek_messages(chan_body_t *body, const cJSON *messages)
{
    uint32_t      role;
    const cJSON  *message;

    cJSON_ArrayForEach(message, messages) {

        role = ngx_http_llm_peek_role(message);

        if (ngx_http_llm_peek_message(body, message, role) != NGX_OK) {
            return NGX_ERROR;
        }

        if (role == CHAN_ROLE_USER || body->size > NGX_HTTP_LLM_HEAD_MAX) {
            break;
        }
    }

    return NGX_OK;
}


/* Text parts are joined by newlines, as chat.c does; others have no text. */

static ngx_int_t
ngx_http_llm_peek_message(chan_body_t *body, const cJSON *message,
    uint32_t role)
{
    char             text[NGX_HTTP_LLM_HEAD_MAX];
    size_t           n, len;
    ngx_uint_t       parts;
    const char      *piece;
    const cJSON     *content, *part, *value;
    chan_message_t   fixed;

    fixed.role = role;
    fixed.flags = 0;

    content = cJSON_GetObjectItemCaseSensitive(message, "content");

    if (cJSON_IsString(content)) {
        piece = content->valuestring;

        return chan_body_put(body, CHAN_SEC_MESSAGE, &fixed, sizeof(fixed),
                             piece, ngx_strlen(piece))
               == CHAN_OK ? NGX_OK : NGX_ERROR;
    }

    len = 0;
    parts = 0;

    if (cJSON_IsArray(content)) {

        cJSON_ArrayForEach(part, content) {

            value = cJSON_GetObjectItemCaseSensitive(part, "text");

            if (!cJSON_IsString(value)) {
                continue;
            }

            if (parts++ != 0 && len < sizeof(text)) {
                text[len++] = '\n';
            }

            n = ngx_min(ngx_strlen(value->valuestring), sizeof(text) - len);
            ngx_memcpy(text + len, value->valuestring, n);
            len += n;
        }
    }

    return chan_body_put(body, CHAN_SEC_MESSAGE, &fixed, sizeof(fixed), text,
                         len)
           == CHAN_OK ? NGX_OK : NGX_ERROR;
}


static uint32_t
ngx_http_llm_peek_role(const cJSON *message)
{
    const char   *name;
    const cJSON  *role;

    role = cJSON_GetObjectItemCaseSensitive(message, "role");
    name = cJSON_IsString(role) ? role->valuestring : "";

    if (ngx_strcmp(name, "system") == 0 || ngx_strcmp(name, "developer") == 0)
    {
        return CHAN_ROLE_SYSTEM;
    }

    if (ngx_strcmp(name, "user") == 0) {
        return CHAN_ROLE_USER;
    }

    return ngx_strcmp(name, "assistant") == 0 ? CHAN_ROLE_ASSISTANT
                                              : CHAN_ROLE_TOOL;
}


/* A string, ids, or a list of either, of which the first counts. */

static ngx_int_t
ngx_http_llm_peek_prompt(chan_body_t *body, const cJSON *prompt)
{
    double        v;
    int32_t       ids[NGX_HTTP_LLM_HEAD_MAX / sizeof(int32_t)];
    ngx_uint_t    n;
    const cJSON  *item;

    if (cJSON_IsArray(prompt) && prompt->child != NULL
        && !cJSON_IsNumber(prompt->child))
    {
        prompt = prompt->child;
    }

    if (cJSON_IsString(prompt)) {
        return chan_body_put(body, CHAN_SEC_TEXT, NULL, 0,
                             prompt->valuestring,
                             ngx_strlen(prompt->valuestring))
               == CHAN_OK ? NGX_OK : NGX_ERROR;
    }

    n = 0;

    if (cJSON_IsArray(prompt)) {

        cJSON_ArrayForEach(item, prompt) {

            if (n == sizeof(ids) / sizeof(ids[0])) {
                break;
            }

            v = item->valuedouble;

            if (!cJSON_IsNumber(item) || !(v >= 0 && v <= INT32_MAX)) {
                return NGX_ERROR;
            }

            ids[n++] = (int32_t) v;
        }
    }

    if (n == 0) {
        return NGX_DECLINED;
    }

    return chan_body_put(body, CHAN_SEC_IDS, NULL, 0, ids, n * sizeof(ids[0]))
           == CHAN_OK ? NGX_OK : NGX_ERROR;
}
