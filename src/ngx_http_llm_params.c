/*
 * What chat and completion requests have in common: sampling, limits, stop
 * strings, biases, streaming, the model's name, and the fields that would
 * change the answer but are not implemented.
 */

#include "ngx_http_llm_params.h"

#include <stdio.h>
#include <stdlib.h>


static ngx_int_t ngx_http_llm_params_unsupported(
    ngx_http_llm_params_t *params, const cJSON *const *f,
    ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_format(const cJSON *v,
    ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_modalities(const cJSON *v,
    ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_model(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_stream(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_sampling(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_seed(ngx_http_llm_params_t *params,
    const ngx_http_llm_json_t *json, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_sections(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_stop(ngx_http_llm_params_t *params,
    const cJSON *stop, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_bias(ngx_http_llm_params_t *params,
    const cJSON *bias, ngx_http_llm_error_t *err);
static ngx_int_t ngx_http_llm_params_everywhere(
    ngx_http_llm_params_t *params, uint32_t kind, const void *bytes,
    size_t size, ngx_http_llm_error_t *err);


ngx_int_t
ngx_http_llm_params_parse(ngx_http_llm_params_t *params, const u_char *data,
    size_t len, ngx_http_llm_error_t *err)
{
    ngx_int_t            rc;
    const cJSON        **f;
    ngx_http_llm_json_t  json;

    if (ngx_http_llm_json_parse(&json, data, len, err) != NGX_OK) {
        return NGX_ERROR;
    }

    f = json.fields;

    params->submit.endpoint = params->endpoint;
    params->submit.rank_hint = -1;
    params->submit.temperature = 1.0f;
    params->submit.top_p = 1.0f;
    params->submit.repetition_penalty = 1.0f;
    params->n = 1;

    if (ngx_http_llm_params_model(params, f, err) != NGX_OK
        || ngx_http_llm_params_unsupported(params, f, err) != NGX_OK
        || ngx_http_llm_params_stream(params, f, err) != NGX_OK
        || ngx_http_llm_params_sampling(params, f, err) != NGX_OK
        || ngx_http_llm_params_seed(params, &json, err) != NGX_OK)
    {
        rc = NGX_ERROR;
        goto done;
    }

    if (params->endpoint == CHAN_CHAT) {
        rc = ngx_http_llm_chat_parse(params, &json, err);

    } else {
        rc = ngx_http_llm_completion_parse(params, &json, err);
    }

    if (rc != NGX_OK) {
        goto done;
    }

    rc = ngx_http_llm_params_sections(params, f, err);

done:

    ngx_http_llm_json_free(&json);

    if (rc != NGX_OK) {
        ngx_http_llm_params_free(params);
    }

    return rc;
}


void
ngx_http_llm_params_free(ngx_http_llm_params_t *params)
{
    ngx_uint_t  i;

    for (i = 0; i < params->nprompts; i++) {
        chan_body_free(&params->prompts[i].body);
    }

    free(params->prompts);

    params->prompts = NULL;
    params->nprompts = 0;
}


void
ngx_http_llm_prompt_done(ngx_http_llm_prompt_t *prompt)
{
    if (--prompt->refs == 0) {
        chan_body_free(&prompt->body);
    }
}


ngx_int_t
ngx_http_llm_model_known(const char *names, const char *name, size_t len)
{
    size_t  n;

    for (n = ngx_strlen(names); n != 0; n = ngx_strlen(names)) {

        if (n == len && ngx_memcmp(names, name, len) == 0) {
            return 1;
        }

        names += n + 1;
    }

    return 0;
}


static ngx_int_t
ngx_http_llm_params_model(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err)
{
    const char  *name;

    name = params->names;

    if (ngx_http_llm_json_string(f[NGX_HTTP_LLM_F_MODEL], "model", &name, err)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (name != params->names
        && !ngx_http_llm_model_known(params->names, name, ngx_strlen(name)))
    {
        return ngx_http_llm_error_set(err, 404, "model_not_found", "model",
                                      "The model '%.200s' does not exist.",
                                      name);
    }

    (void) snprintf(params->model, sizeof(params->model), "%s", name);

    return NGX_OK;
}


/* Fields that ask for another answer than the one that would come. */

static ngx_int_t
ngx_http_llm_params_unsupported(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err)
{
    ngx_uint_t    i, id;
    const cJSON  *v;

    static const ngx_uint_t  never[] = {
        NGX_HTTP_LLM_F_AUDIO,
        NGX_HTTP_LLM_F_FUNCTION_CALL,
        NGX_HTTP_LLM_F_FUNCTIONS,
        NGX_HTTP_LLM_F_PREDICTION,
        NGX_HTTP_LLM_F_SUFFIX,
        NGX_HTTP_LLM_F_TOOLS,
        NGX_HTTP_LLM_F_WEB_SEARCH_OPTIONS
    };

    for (i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
        id = never[i];
        v = f[id];

        /* Empty lists and strings, and "none", ask for nothing. */

        if (ngx_http_llm_json_absent(v)
            || (cJSON_IsArray(v) && v->child == NULL)
            || (cJSON_IsString(v) && v->valuestring[0] == '\0')
            || (id == NGX_HTTP_LLM_F_FUNCTION_CALL && cJSON_IsString(v)
                && (strcmp(v->valuestring, "none") == 0
                    || strcmp(v->valuestring, "auto") == 0)))
        {
            continue;
        }

        return ngx_http_llm_error_set(err, 400, "unsupported_parameter",
                                      ngx_http_llm_fields[id],
                                      "'%s' is not supported.",
                                      ngx_http_llm_fields[id]);
    }

    v = f[NGX_HTTP_LLM_F_TOOL_CHOICE];

    if (!ngx_http_llm_json_absent(v)
        && !(cJSON_IsString(v) && (strcmp(v->valuestring, "none") == 0
                                   || strcmp(v->valuestring, "auto") == 0)))
    {
        return ngx_http_llm_error_set(err, 400, "unsupported_parameter",
                                      "tool_choice",
                                      "'tool_choice' is not supported.");
    }

    if (ngx_http_llm_params_format(f[NGX_HTTP_LLM_F_RESPONSE_FORMAT], err)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    return ngx_http_llm_params_modalities(f[NGX_HTTP_LLM_F_MODALITIES], err);
}


static ngx_int_t
ngx_http_llm_params_format(const cJSON *v, ngx_http_llm_error_t *err)
{
    if (ngx_http_llm_json_absent(v)) {
        return NGX_OK;
    }

    v = cJSON_IsObject(v) ? cJSON_GetObjectItemCaseSensitive(v, "type")
                          : NULL;

    if (v == NULL || !cJSON_IsString(v)) {
        return ngx_http_llm_error_invalid(err, "response_format",
                                          "'response_format' must be an "
                                          "object with a type.");
    }

    if (strcmp(v->valuestring, "text") != 0) {
        return ngx_http_llm_error_set(err, 400, "unsupported_parameter",
                                      "response_format",
                                      "'response_format' of type '%.64s' "
                                      "is not supported.", v->valuestring);
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_params_modalities(const cJSON *v, ngx_http_llm_error_t *err)
{
    if (ngx_http_llm_json_absent(v)) {
        return NGX_OK;
    }

    if (!cJSON_IsArray(v)) {
        return ngx_http_llm_error_invalid(err, "modalities",
                                          "'modalities' must be a list.");
    }

    for (v = v->child; v != NULL; v = v->next) {
        if (!cJSON_IsString(v) || strcmp(v->valuestring, "text") != 0) {
            return ngx_http_llm_error_set(err, 400, "unsupported_parameter",
                                          "modalities", "'modalities' other "
                                          "than text are not supported.");
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_params_stream(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err)
{
    ngx_uint_t    stream, usage;
    const cJSON  *options, *value;

    static const char *const  names[] = { "include_usage" };

    stream = 0;
    usage = 0;

    if (ngx_http_llm_json_bool(f[NGX_HTTP_LLM_F_STREAM], "stream", &stream,
                               err)
        != NGX_OK)
    {
        return NGX_ERROR;
    }

    options = f[NGX_HTTP_LLM_F_STREAM_OPTIONS];

    if (!ngx_http_llm_json_absent(options)) {

        if (!cJSON_IsObject(options)) {
            return ngx_http_llm_error_invalid(err, "stream_options",
                                              "'stream_options' must be an "
                                              "object.");
        }

        if (!stream) {
            return ngx_http_llm_error_invalid(err, "stream_options",
                                              "'stream_options' is only "
                                              "allowed when 'stream' is "
                                              "true.");
        }

        if (ngx_http_llm_json_fields(options, names, 1, &value,
                                     "stream_options.", err)
            != NGX_OK
            || ngx_http_llm_json_bool(value, "stream_options.include_usage",
                                      &usage, err)
               != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    params->stream = stream;
    params->include_usage = usage;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_params_sampling(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err)
{
    int64_t         n, top_k;
    ngx_uint_t      eos;
    chan_submit_t  *s;

    s = &params->submit;

    n = 1;
    eos = 0;
    top_k = 0;

    if (ngx_http_llm_json_float(f[NGX_HTTP_LLM_F_TEMPERATURE], "temperature",
                                0, 2, &s->temperature, err)
        != NGX_OK
        || ngx_http_llm_json_float(f[NGX_HTTP_LLM_F_TOP_P], "top_p", 0, 1,
                                   &s->top_p, err)
           != NGX_OK
        || ngx_http_llm_json_float(f[NGX_HTTP_LLM_F_MIN_P], "min_p", 0, 1,
                                   &s->min_p, err)
           != NGX_OK
        || ngx_http_llm_json_float(f[NGX_HTTP_LLM_F_REPETITION_PENALTY],
                                   "repetition_penalty", 0, 100,
                                   &s->repetition_penalty, err)
           != NGX_OK
        || ngx_http_llm_json_float(f[NGX_HTTP_LLM_F_PRESENCE_PENALTY],
                                   "presence_penalty", -2, 2,
                                   &s->presence_penalty, err)
           != NGX_OK
        || ngx_http_llm_json_float(f[NGX_HTTP_LLM_F_FREQUENCY_PENALTY],
                                   "frequency_penalty", -2, 2,
                                   &s->frequency_penalty, err)
           != NGX_OK
        || ngx_http_llm_json_int(f[NGX_HTTP_LLM_F_TOP_K], "top_k", -1,
                                 INT32_MAX, &top_k, err)
           != NGX_OK
        || ngx_http_llm_json_int(f[NGX_HTTP_LLM_F_N], "n", 1,
                                 NGX_HTTP_LLM_N_MAX, &n, err)
           != NGX_OK
        || ngx_http_llm_json_bool(f[NGX_HTTP_LLM_F_IGNORE_EOS], "ignore_eos",
                                  &eos, err)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    if (s->top_p == 0) {
        return ngx_http_llm_error_invalid(err, "top_p",
                                          "'top_p' must be above 0.");
    }

    if (s->repetition_penalty == 0) {
        return ngx_http_llm_error_invalid(err, "repetition_penalty",
                                          "'repetition_penalty' must be "
                                          "above 0.");
    }

    if (eos) {
        s->flags |= CHAN_F_IGNORE_EOS;
    }

    params->n = n;
    s->top_k = top_k > 0 ? top_k : 0;

    if (ngx_http_llm_json_absent(f[NGX_HTTP_LLM_F_TEMPERATURE])) {
        s->flags |= CHAN_F_OWN_T;
    }

    if (ngx_http_llm_json_absent(f[NGX_HTTP_LLM_F_TOP_P])) {
        s->flags |= CHAN_F_OWN_TOP_P;
    }

    return NGX_OK;
}


/* All 64 bits count, so the number is read as it was written. */

static ngx_int_t
ngx_http_llm_params_seed(ngx_http_llm_params_t *params,
    const ngx_http_llm_json_t *json, ngx_http_llm_error_t *err)
{
    size_t        i;
    uint64_t      seed, digit, max;
    ngx_uint_t    negative;
    const cJSON  *value;

    value = json->fields[NGX_HTTP_LLM_F_SEED];

    if (ngx_http_llm_json_absent(value)) {
        return NGX_OK;
    }

    if (!cJSON_IsNumber(value) || json->seed.len == 0) {
        return ngx_http_llm_error_invalid(err, "seed",
                                          "'seed' must be an integer.");
    }

    negative = (json->seed.data[0] == '-');
    max = negative ? (uint64_t) INT64_MAX + 1 : (uint64_t) INT64_MAX;
    seed = 0;

    for (i = negative; i < json->seed.len; i++) {
        digit = json->seed.data[i] - '0';

        if (seed > (max - digit) / 10) {
            return ngx_http_llm_error_invalid(err, "seed", "'seed' must fit "
                                              "in 64 bits with a sign.");
        }

        seed = seed * 10 + digit;
    }

    params->submit.seed = negative ? 0 - seed : seed;
    params->submit.flags |= CHAN_F_SEED;

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_params_sections(ngx_http_llm_params_t *params,
    const cJSON *const *f, ngx_http_llm_error_t *err)
{
    size_t       len;
    u_char       tenant[NGX_HTTP_LLM_TENANT_MAX];
    const char  *user;

    user = "";

    if (ngx_http_llm_params_stop(params, f[NGX_HTTP_LLM_F_STOP], err)
        != NGX_OK
        || ngx_http_llm_params_bias(params, f[NGX_HTTP_LLM_F_LOGIT_BIAS], err)
           != NGX_OK
        || ngx_http_llm_json_string(f[NGX_HTTP_LLM_F_USER], "user", &user,
                                    err)
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    len = ngx_strlen(user);

    if (len > NGX_HTTP_LLM_USER_MAX) {
        return ngx_http_llm_error_invalid(err, "user", "'user' must not be "
                                          "longer than %d bytes.",
                                          NGX_HTTP_LLM_USER_MAX);
    }

    ngx_memcpy(params->user, user, len + 1);

    len = ngx_http_llm_params_tenant(params, tenant);

    if (len == 0) {
        return NGX_OK;
    }

    return ngx_http_llm_params_everywhere(params, CHAN_SEC_TENANT, tenant,
                                          len, err);
}


/* JSON's strings hold no zero bytes here, so the parts cannot be mixed up. */

size_t
ngx_http_llm_params_tenant(const ngx_http_llm_params_t *params, u_char *buf)
{
    u_char  *p;

    p = buf;

    if (params->account.len != 0) {
        p = ngx_cpymem(p, params->account.data,
                       ngx_min(params->account.len,
                               NGX_HTTP_LLM_ACCOUNT_MAX));
        *p++ = '\0';
    }

    return ngx_cpymem(p, params->user, ngx_strlen(params->user)) - buf;
}


static ngx_int_t
ngx_http_llm_params_stop(ngx_http_llm_params_t *params, const cJSON *stop,
    ngx_http_llm_error_t *err)
{
    size_t        len;
    ngx_uint_t    n, list;
    const cJSON  *item;

    if (ngx_http_llm_json_absent(stop)) {
        return NGX_OK;
    }

    list = cJSON_IsArray(stop);
    n = 0;

    for (item = list ? stop->child : stop;
         item != NULL;
         item = list ? item->next : NULL)
    {
        if (!cJSON_IsString(item)) {
            return ngx_http_llm_error_invalid(err, "stop", "'stop' must be a "
                                              "string or a list of strings.");
        }

        len = ngx_strlen(item->valuestring);

        if (len == 0 || len > CHAN_STOP_LEN) {
            return ngx_http_llm_error_invalid(err, "stop", "A stop string "
                                              "must have 1 to %d bytes.",
                                              CHAN_STOP_LEN);
        }

        if (++n > CHAN_STOP_MAX) {
            return ngx_http_llm_error_invalid(err, "stop", "'stop' must not "
                                              "have more than %d strings.",
                                              CHAN_STOP_MAX);
        }

        if (ngx_http_llm_params_everywhere(params, CHAN_SEC_STOP,
                                           item->valuestring, len, err)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_params_bias(ngx_http_llm_params_t *params, const cJSON *bias,
    ngx_http_llm_error_t *err)
{
    size_t         len;
    ngx_int_t      id;
    ngx_uint_t     n;
    chan_bias_t    list[CHAN_BIAS_MAX];
    const cJSON   *item;

    if (ngx_http_llm_json_absent(bias)) {
        return NGX_OK;
    }

    if (!cJSON_IsObject(bias)) {
        return ngx_http_llm_error_invalid(err, "logit_bias", "'logit_bias' "
                                          "must be an object.");
    }

    n = 0;

    for (item = bias->child; item != NULL; item = item->next) {

        len = ngx_strlen(item->string);
        id = 0;

        if (len == 0 || len > 9
            || strspn(item->string, "0123456789") != len)
        {
            return ngx_http_llm_error_invalid(err, "logit_bias", "The names "
                                              "in 'logit_bias' must be token "
                                              "ids.");
        }

        id = atoi(item->string);

        if (n == CHAN_BIAS_MAX) {
            return ngx_http_llm_error_invalid(err, "logit_bias",
                                              "'logit_bias' must not have "
                                              "more than %d tokens.",
                                              CHAN_BIAS_MAX);
        }

        list[n].id = id;
        list[n].bias = 0;

        if (cJSON_IsNull(item)
            || ngx_http_llm_json_float(item, "logit_bias", -100, 100,
                                       &list[n].bias, err)
               != NGX_OK)
        {
            return ngx_http_llm_error_invalid(err, "logit_bias", "The values "
                                              "in 'logit_bias' must be "
                                              "numbers between -100 and "
                                              "100.");
        }

        n++;
    }

    if (n == 0) {
        return NGX_OK;
    }

    return ngx_http_llm_params_everywhere(params, CHAN_SEC_BIAS, list,
                                          n * sizeof(chan_bias_t), err);
}


static ngx_int_t
ngx_http_llm_params_everywhere(ngx_http_llm_params_t *params, uint32_t kind,
    const void *bytes, size_t size, ngx_http_llm_error_t *err)
{
    ngx_uint_t  i;

    for (i = 0; i < params->nprompts; i++) {
        if (ngx_http_llm_section(&params->prompts[i], kind, NULL, 0, bytes,
                                 size, err)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_prompts_create(ngx_http_llm_params_t *params, ngx_uint_t n,
    ngx_http_llm_error_t *err)
{
    ngx_uint_t  i;

    params->prompts = calloc(n, sizeof(ngx_http_llm_prompt_t));

    if (params->prompts == NULL) {
        return ngx_http_llm_error_set(err, 500, NULL, NULL, "Out of memory.");
    }

    for (i = 0; i < n; i++) {
        params->prompts[i].refs = params->n;
    }

    params->nprompts = n;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_section(ngx_http_llm_prompt_t *prompt, uint32_t kind,
    const void *fixed, size_t fixed_size, const void *bytes, size_t size,
    ngx_http_llm_error_t *err)
{
    if (chan_body_put(&prompt->body, kind, fixed, fixed_size, bytes, size)
        != CHAN_OK)
    {
        return ngx_http_llm_error_set(err, 413, "request_too_large", NULL,
                                      "The request is too large.");
    }

    return NGX_OK;
}
