/*
 * JSON as strict as RFC 8259 says, on top of cJSON.
 *
 * cJSON builds the tree, but it is lenient where a server must not be: it
 * passes invalid UTF-8, raw control characters, trailing garbage, "01" and
 * "1e999", cuts strings at \u0000 and goes 1000 levels deep.  So the text is
 * checked whole (ngx_http_llm_json_check.c) before cJSON sees it.
 */

#include "ngx_http_llm_params.h"

#include <math.h>
#include <stdio.h>


#define NGX_HTTP_LLM_FIELD_NAME(id, name)  name,

const char *const  ngx_http_llm_fields[] = {
    NGX_HTTP_LLM_FIELDS(NGX_HTTP_LLM_FIELD_NAME)
    NULL
};


ngx_int_t
ngx_http_llm_json_parse(ngx_http_llm_json_t *json, const u_char *data,
    size_t len, ngx_http_llm_error_t *err)
{
    const char  *end;

    ngx_memzero(json, sizeof(ngx_http_llm_json_t));

    if (len == 0) {
        return ngx_http_llm_error_invalid(err, NULL,
                                          "The request body is empty.");
    }

    if (!chan_utf8_valid(data, len)) {
        return ngx_http_llm_error_invalid(err, NULL, "The request body is "
                                          "not valid UTF-8.");
    }

    if (ngx_http_llm_json_check(data, len, &json->seed, err) != NGX_OK) {
        return NGX_ERROR;
    }

    json->root = cJSON_ParseWithLengthOpts((const char *) data, len, &end, 0);

    if (json->root == NULL) {
        return ngx_http_llm_error_set(err, 500, NULL, NULL,
                                      "The request body could not be parsed: "
                                      "out of memory.");
    }

    if (!cJSON_IsObject(json->root)) {
        ngx_http_llm_json_free(json);
        return ngx_http_llm_error_invalid(err, NULL, "The request body must "
                                          "be a JSON object.");
    }

    if (ngx_http_llm_json_fields(json->root, ngx_http_llm_fields,
                                 NGX_HTTP_LLM_NFIELDS, json->fields, "", err)
        != NGX_OK)
    {
        ngx_http_llm_json_free(json);
        return NGX_ERROR;
    }

    return NGX_OK;
}


void
ngx_http_llm_json_free(ngx_http_llm_json_t *json)
{
    cJSON_Delete(json->root);
    json->root = NULL;
}


ngx_int_t
ngx_http_llm_json_fields(const cJSON *object, const char *const *names,
    ngx_uint_t n, const cJSON **values, const char *where,
    ngx_http_llm_error_t *err)
{
    int           rc;
    char          param[sizeof(err->param)];
    ngx_uint_t    low, high, mid;
    const cJSON  *item;

    ngx_memzero(values, n * sizeof(cJSON *));

    cJSON_ArrayForEach(item, object) {

        low = 0;
        high = n;

        while (low < high) {
            mid = (low + high) / 2;
            rc = strcmp(item->string, names[mid]);

            if (rc > 0) {
                low = mid + 1;
                continue;
            }

            if (rc < 0) {
                high = mid;
                continue;
            }

            if (values[mid] != NULL) {
                (void) snprintf(param, sizeof(param), "%s%s", where,
                                names[mid]);
                return ngx_http_llm_error_invalid(err, param, "'%s' is given "
                                                  "twice.", param);
            }

            values[mid] = item;
            break;
        }
    }

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_json_bool(const cJSON *value, const char *name, ngx_uint_t *out,
    ngx_http_llm_error_t *err)
{
    if (ngx_http_llm_json_absent(value)) {
        return NGX_OK;
    }

    if (!cJSON_IsBool(value)) {
        return ngx_http_llm_error_invalid(err, name, "'%s' must be true or "
                                          "false.", name);
    }

    *out = cJSON_IsTrue(value) ? 1 : 0;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_json_int(const cJSON *value, const char *name, int64_t min,
    int64_t max, int64_t *out, ngx_http_llm_error_t *err)
{
    double  v;

    if (ngx_http_llm_json_absent(value)) {
        return NGX_OK;
    }

    v = value->valuedouble;

    if (!cJSON_IsNumber(value) || v != floor(v)) {
        return ngx_http_llm_error_invalid(err, name, "'%s' must be an "
                                          "integer.", name);
    }

    /* Callers' bounds are far below 2^53, where doubles are exact. */

    if (v < (double) min || v > (double) max) {
        return ngx_http_llm_error_invalid(err, name, "'%s' must be between "
                                          "%lld and %lld.", name,
                                          (long long) min, (long long) max);
    }

    *out = (int64_t) v;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_json_float(const cJSON *value, const char *name, double min,
    double max, float *out, ngx_http_llm_error_t *err)
{
    double  v;

    if (ngx_http_llm_json_absent(value)) {
        return NGX_OK;
    }

    if (!cJSON_IsNumber(value)) {
        return ngx_http_llm_error_invalid(err, name, "'%s' must be a number.",
                                          name);
    }

    v = value->valuedouble;

    if (!(v >= min && v <= max)) {
        return ngx_http_llm_error_invalid(err, name, "'%s' must be between "
                                          "%g and %g.", name, min, max);
    }

    *out = (float) v;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_json_string(const cJSON *value, const char *name,
    const char **out, ngx_http_llm_error_t *err)
{
    if (ngx_http_llm_json_absent(value)) {
        return NGX_OK;
    }

    if (!cJSON_IsString(value)) {
        return ngx_http_llm_error_invalid(err, name, "'%s' must be a string.",
                                          name);
    }

    *out = value->valuestring;

    return NGX_OK;
}
