/*
 * A line of an account: its name, tier and limits.
 */

#include "ngx_http_llm_accounts_file.h"


static ngx_int_t ngx_http_llm_accounts_param(ngx_http_llm_accounts_file_t *f,
    ngx_http_llm_account_t *account, ngx_str_t *word, ngx_uint_t *seen);
static ngx_int_t ngx_http_llm_accounts_value(ngx_http_llm_accounts_file_t *f,
    ngx_http_llm_account_t *account, ngx_uint_t param, ngx_str_t *value);
static ngx_int_t ngx_http_llm_accounts_bursts(
    ngx_http_llm_accounts_file_t *f, ngx_uint_t seen);
static ngx_int_t ngx_http_llm_accounts_name(ngx_str_t *name);
static ngx_int_t ngx_http_llm_accounts_copy(ngx_http_llm_accounts_file_t *f,
    ngx_str_t *to, ngx_str_t *from);


enum {
    NGX_HTTP_LLM_P_TIER = 0,
    NGX_HTTP_LLM_P_REQUESTS,
    NGX_HTTP_LLM_P_REQUESTS_BURST,
    NGX_HTTP_LLM_P_TOKENS,
    NGX_HTTP_LLM_P_TOKENS_BURST,
    NGX_HTTP_LLM_P_RESERVE,
    NGX_HTTP_LLM_P_CONCURRENCY,
    NGX_HTTP_LLM_NPARAMS
};

static const char *const  ngx_http_llm_accounts_params[] = {
    "tier", "requests", "requests_burst", "tokens", "tokens_burst", "reserve",
    "concurrency"
};


ngx_int_t
ngx_http_llm_accounts_line(ngx_http_llm_accounts_file_t *f)
{
    ngx_uint_t               i, seen;
    ngx_http_llm_account_t  *account, **ap;

    if (f->nwords < 2) {
        return ngx_http_llm_accounts_wrong(f, f->line,
                                           "\"account\" needs a name");
    }

    if (ngx_http_llm_accounts_name(&f->words[1]) != NGX_OK) {
        return ngx_http_llm_accounts_wrong(f, f->line, "invalid name \"%V\"",
                                           &f->words[1]);
    }

    account = ngx_pcalloc(f->cf->pool, sizeof(ngx_http_llm_account_t));
    ap = ngx_array_push(&f->table->accounts);

    if (account == NULL || ap == NULL
        || ngx_http_llm_accounts_copy(f, &account->name, &f->words[1])
           != NGX_OK)
    {
        return NGX_ERROR;
    }

    *ap = account;

    account->line = f->line;
    account->reserve = NGX_HTTP_LLM_RESERVE;

    seen = 0;

    for (i = 2; i < f->nwords; i++) {
        if (ngx_http_llm_accounts_param(f, account, &f->words[i], &seen)
            != NGX_OK)
        {
            return NGX_ERROR;
        }
    }

    return ngx_http_llm_accounts_bursts(f, seen);
}


static ngx_int_t
ngx_http_llm_accounts_param(ngx_http_llm_accounts_file_t *f,
    ngx_http_llm_account_t *account, ngx_str_t *word, ngx_uint_t *seen)
{
    u_char      *p;
    ngx_str_t    name, value;
    ngx_uint_t   i;

    p = ngx_strlchr(word->data, word->data + word->len, '=');

    if (p == NULL) {
        return ngx_http_llm_accounts_wrong(f, f->line, "invalid parameter "
                                           "\"%V\"", word);
    }

    name.data = word->data;
    name.len = p - word->data;
    value.data = p + 1;
    value.len = word->data + word->len - value.data;

    for (i = 0; i < NGX_HTTP_LLM_NPARAMS; i++) {
        if (ngx_strlen(ngx_http_llm_accounts_params[i]) == name.len
            && ngx_strncmp(ngx_http_llm_accounts_params[i], name.data,
                           name.len)
               == 0)
        {
            break;
        }
    }

    if (i == NGX_HTTP_LLM_NPARAMS) {
        return ngx_http_llm_accounts_wrong(f, f->line, "unknown parameter "
                                           "\"%V\"", &name);
    }

    if (*seen & ((ngx_uint_t) 1 << i)) {
        return ngx_http_llm_accounts_wrong(f, f->line, "duplicate parameter "
                                           "\"%V\"", &name);
    }

    *seen |= (ngx_uint_t) 1 << i;

    if (ngx_http_llm_accounts_value(f, account, i, &value) != NGX_OK) {
        return ngx_http_llm_accounts_wrong(f, f->line, "invalid value \"%V\" "
                                           "of \"%V\"", &value, &name);
    }

    return NGX_OK;
}


/* A burst that was named stands before its rate or after it. */

static ngx_int_t
ngx_http_llm_accounts_value(ngx_http_llm_accounts_file_t *f,
    ngx_http_llm_account_t *account, ngx_uint_t param, ngx_str_t *value)
{
    u_char                        unit;
    ngx_http_llm_bucket_limit_t   rate, *limit;

    switch (param) {

    case NGX_HTTP_LLM_P_TIER:
        if (ngx_http_llm_accounts_name(value) != NGX_OK) {
            return NGX_ERROR;
        }

        return ngx_http_llm_accounts_copy(f, &account->tier, value);

    case NGX_HTTP_LLM_P_REQUESTS:
    case NGX_HTTP_LLM_P_TOKENS:
        unit = (param == NGX_HTTP_LLM_P_REQUESTS) ? 'r' : 't';
        limit = (unit == 'r') ? &account->requests : &account->tokens;

        if (ngx_http_llm_bucket_rate(value, unit, &rate) != NGX_OK) {
            return NGX_ERROR;
        }

        limit->rate = rate.rate;

        if (limit->burst == 0) {
            limit->burst = rate.burst;
        }

        return NGX_OK;

    case NGX_HTTP_LLM_P_REQUESTS_BURST:
        return ngx_http_llm_bucket_number(value, &account->requests.burst);

    case NGX_HTTP_LLM_P_TOKENS_BURST:
        return ngx_http_llm_bucket_number(value, &account->tokens.burst);

    case NGX_HTTP_LLM_P_CONCURRENCY:
        return ngx_http_llm_bucket_number(value, &account->concurrency.burst);

    default: /* NGX_HTTP_LLM_P_RESERVE */
        if (value->len == 4 && ngx_strncmp(value->data, "full", 4) == 0) {
            account->reserve = NGX_HTTP_LLM_RESERVE_FULL;
            return NGX_OK;
        }

        return ngx_http_llm_bucket_number(value, &account->reserve);
    }
}


/* What says how a limit works needs the limit. */

static ngx_int_t
ngx_http_llm_accounts_bursts(ngx_http_llm_accounts_file_t *f, ngx_uint_t seen)
{
    ngx_uint_t  i;

    static const ngx_uint_t  needs[][2] = {
        { NGX_HTTP_LLM_P_REQUESTS_BURST, NGX_HTTP_LLM_P_REQUESTS },
        { NGX_HTTP_LLM_P_TOKENS_BURST, NGX_HTTP_LLM_P_TOKENS },
        { NGX_HTTP_LLM_P_RESERVE, NGX_HTTP_LLM_P_TOKENS }
    };

    for (i = 0; i < sizeof(needs) / sizeof(needs[0]); i++) {

        if ((seen & ((ngx_uint_t) 1 << needs[i][0]))
            && !(seen & ((ngx_uint_t) 1 << needs[i][1])))
        {
            return ngx_http_llm_accounts_wrong(f, f->line, "\"%s\" without "
                                 "\"%s\"",
                                 ngx_http_llm_accounts_params[needs[i][0]],
                                 ngx_http_llm_accounts_params[needs[i][1]]);
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_accounts_name(ngx_str_t *name)
{
    u_char      ch;
    ngx_uint_t  i;

    if (name->len == 0 || name->len > NGX_HTTP_LLM_NAME_MAX
        || name->data[0] == '-')
    {
        return NGX_ERROR;
    }

    for (i = 0; i < name->len; i++) {
        ch = name->data[i];

        if (!((ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z')
              || (ch >= '0' && ch <= '9')
              || ngx_strchr("._@+:/-", ch) != NULL))
        {
            return NGX_ERROR;
        }
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_accounts_copy(ngx_http_llm_accounts_file_t *f, ngx_str_t *to,
    ngx_str_t *from)
{
    to->data = ngx_pstrdup(f->cf->pool, from);
    to->len = from->len;

    return to->data != NULL ? NGX_OK : NGX_ERROR;
}
