/*
 * What a request is refused with, before it is sent.
 */

#include "ngx_http_llm_params.h"

#include <stdio.h>


static void ngx_http_llm_error_text(char *dst, size_t size, const char *fmt,
    va_list args);


ngx_int_t
ngx_http_llm_error_set(ngx_http_llm_error_t *err, ngx_uint_t status,
    const char *code, const char *param, const char *fmt, ...)
{
    va_list  args;

    ngx_memzero(err, sizeof(ngx_http_llm_error_t));

    err->status = status;
    err->code = code;

    if (param != NULL) {
        (void) snprintf(err->param, sizeof(err->param), "%s", param);
    }

    va_start(args, fmt);
    ngx_http_llm_error_text(err->message, sizeof(err->message), fmt, args);
    va_end(args);

    return NGX_ERROR;
}


ngx_int_t
ngx_http_llm_error_invalid(ngx_http_llm_error_t *err, const char *param,
    const char *fmt, ...)
{
    va_list  args;

    ngx_memzero(err, sizeof(ngx_http_llm_error_t));

    err->status = 400;

    if (param != NULL) {
        (void) snprintf(err->param, sizeof(err->param), "%s", param);
    }

    va_start(args, fmt);
    ngx_http_llm_error_text(err->message, sizeof(err->message), fmt, args);
    va_end(args);

    return NGX_ERROR;
}


/* Whatever was quoted and cut, the text that results is valid UTF-8. */

static void
ngx_http_llm_error_text(char *dst, size_t size, const char *fmt,
    va_list args)
{
    size_t  len, i, n;

    if (vsnprintf(dst, size, fmt, args) < 0) {
        dst[0] = '\0';
        return;
    }

    len = ngx_strlen(dst);

    if (chan_utf8_valid(dst, len)) {
        return;
    }

    for (i = 0; i < len; i += n) {

        for (n = 1; n <= 4 && i + n <= len; n++) {
            if (chan_utf8_valid(dst + i, n)) {
                break;
            }
        }

        if (n > 4 || i + n > len) {
            dst[i] = '?';
            n = 1;
        }
    }
}
