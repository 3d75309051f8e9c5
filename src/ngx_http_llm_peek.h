/*
 * What a body says before anybody serves it: the model it asks for, the user,
 * how its prompt begins, and how
 * much is asked for.  Unlike the parser (ngx_http_llm_params.h) this
 * refuses nothing: the body may be meant for another server, with fields that
 * the module does not know.  It is compiled alone as well.
 */

#ifndef NGX_HTTP_LLM_PEEK_H
#define NGX_HTTP_LLM_PEEK_H

#include "ngx_http_llm_params.h"


typedef struct {
    char        model[CHAN_NAMES_LEN];               /* empty: not said */
    char        user[NGX_HTTP_LLM_USER_MAX + 1];     /* empty: not said */
    uint64_t    head;        /* hash of the prompt's beginning */
    ngx_uint_t  prompt;      /* there is one */
    ngx_uint_t  read;        /* it is one JSON object */
    ngx_uint_t  n;           /* choices of a prompt, at least 1 if read */
    ngx_uint_t  nprompts;    /* at least 1 if read */
    uint32_t    max_tokens;  /* by the largest name of it; 0: not said */
} ngx_http_llm_peek_t;


/*
 * Zeroes `peek` and fills in what is there.  A body that is not one JSON
 * object says nothing; nor does a model with control characters, which would
 * do harm in headers and logs.
 */

void ngx_http_llm_peek(ngx_http_llm_peek_t *peek, const u_char *data,
    size_t len);


#endif /* NGX_HTTP_LLM_PEEK_H */
