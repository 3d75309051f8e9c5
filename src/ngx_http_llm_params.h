/*
 * The request parser: from the bytes of a body to chan_submit_t and its
 * sections.  It knows OpenAI's fields and the channel, but no HTTP request,
 * no pool and no event, so that it can be compiled and fuzzed alone.
 */

#ifndef NGX_HTTP_LLM_PARAMS_H
#define NGX_HTTP_LLM_PARAMS_H

#include <ngx_config.h>
#include <ngx_core.h>

#include <cjson/cJSON.h>

#include "channel/chan_message.h"
#include "channel/chan_board.h"


#define NGX_HTTP_LLM_DEPTH_MAX    64    /* nesting of a JSON body */
#define NGX_HTTP_LLM_VALUES_MAX   (1 << 18)  /* in a body, ids included */
#define NGX_HTTP_LLM_NUMBER_MAX   63    /* bytes of one number */
#define NGX_HTTP_LLM_N_MAX        16    /* choices of a prompt */
#define NGX_HTTP_LLM_CHOICES_MAX  512   /* prompts times choices */
#define NGX_HTTP_LLM_USER_MAX     512   /* bytes of `user` */
#define NGX_HTTP_LLM_ACCOUNT_MAX  256   /* bytes of an account's name */
#define NGX_HTTP_LLM_TENANT_MAX                                              \
    (NGX_HTTP_LLM_ACCOUNT_MAX + 1 + NGX_HTTP_LLM_USER_MAX)


/* What went wrong, as an OpenAI error object says it. */

typedef struct {
    ngx_uint_t              status;        /* of HTTP; 0: nothing wrong */
    ngx_uint_t              retry_after;   /* seconds, 0: none */
    const char             *code;          /* NULL: null */
    char                    param[64];     /* empty: null */
    char                    message[320];
} ngx_http_llm_error_t;

/* One prompt: its sections, shared by its choices until all have sent it. */

typedef struct {
    chan_body_t             body;
    ngx_uint_t              refs;
} ngx_http_llm_prompt_t;

typedef struct {

    /* given */

    uint32_t                endpoint;      /* CHAN_CHAT or CHAN_COMPLETION */
    const char             *names;         /* as chan_board_model_t.names */
    uint32_t                max_tokens;    /* cap, CHAN_TOKENS_MAX: none */
    ngx_str_t               account;       /* empty: none */

    /* found */

    chan_submit_t           submit;        /* body_size is each prompt's */
    ngx_http_llm_prompt_t  *prompts;
    ngx_uint_t              nprompts;
    ngx_uint_t              n;             /* choices of each prompt */
    char                    model[CHAN_NAMES_LEN];
    char                    user[NGX_HTTP_LLM_USER_MAX + 1];

    unsigned                stream:1;
    unsigned                include_usage:1;
} ngx_http_llm_params_t;


/*
 * Top-level fields that mean something, in strcmp() order: the two lists
 * must agree.
 */

#define NGX_HTTP_LLM_FIELDS(F)                                               \
    F(AUDIO,                 "audio")                                        \
    F(BEST_OF,               "best_of")                                      \
    F(ECHO,                  "echo")                                         \
    F(FREQUENCY_PENALTY,     "frequency_penalty")                            \
    F(FUNCTION_CALL,         "function_call")                                \
    F(FUNCTIONS,             "functions")                                    \
    F(IGNORE_EOS,            "ignore_eos")                                   \
    F(LOGIT_BIAS,            "logit_bias")                                   \
    F(LOGPROBS,              "logprobs")                                     \
    F(MAX_COMPLETION_TOKENS, "max_completion_tokens")                        \
    F(MAX_TOKENS,            "max_tokens")                                   \
    F(MESSAGES,              "messages")                                     \
    F(MIN_P,                 "min_p")                                        \
    F(MODALITIES,            "modalities")                                   \
    F(MODEL,                 "model")                                        \
    F(N,                     "n")                                            \
    F(PREDICTION,            "prediction")                                   \
    F(PRESENCE_PENALTY,      "presence_penalty")                             \
    F(PROMPT,                "prompt")                                       \
    F(REASONING_EFFORT,      "reasoning_effort")                             \
    F(REPETITION_PENALTY,    "repetition_penalty")                           \
    F(RESPONSE_FORMAT,       "response_format")                              \
    F(SEED,                  "seed")                                         \
    F(STOP,                  "stop")                                         \
    F(STREAM,                "stream")                                       \
    F(STREAM_OPTIONS,        "stream_options")                               \
    F(SUFFIX,                "suffix")                                       \
    F(TEMPERATURE,           "temperature")                                  \
    F(THINKING,              "thinking")                                     \
    F(TOOL_CHOICE,           "tool_choice")                                  \
    F(TOOLS,                 "tools")                                        \
    F(TOP_K,                 "top_k")                                        \
    F(TOP_LOGPROBS,          "top_logprobs")                                 \
    F(TOP_P,                 "top_p")                                        \
    F(USER,                  "user")                                         \
    F(WEB_SEARCH_OPTIONS,    "web_search_options")

#define NGX_HTTP_LLM_FIELD_ENUM(id, name)  NGX_HTTP_LLM_F_##id,

enum {
    NGX_HTTP_LLM_FIELDS(NGX_HTTP_LLM_FIELD_ENUM)
    NGX_HTTP_LLM_NFIELDS
};


/*
 * A parsed body.  `seed` is the number as it was written, because a double
 * does not hold 64 bits; its length is 0 if there was no plain number.
 */

typedef struct {
    cJSON                  *root;
    const cJSON            *fields[NGX_HTTP_LLM_NFIELDS];
    ngx_str_t               seed;
} ngx_http_llm_json_t;


/*
 * ngx_http_llm_params_parse() does it all: NGX_OK, or NGX_ERROR with `err`
 * filled.  What it allocates is freed by ngx_http_llm_params_free(), which
 * may be called on a zeroed structure and twice; ngx_http_llm_prompt_done()
 * frees one prompt when its last choice has sent it.
 */

ngx_int_t ngx_http_llm_params_parse(ngx_http_llm_params_t *params,
    const u_char *data, size_t len, ngx_http_llm_error_t *err);
void ngx_http_llm_params_free(ngx_http_llm_params_t *params);
void ngx_http_llm_prompt_done(ngx_http_llm_prompt_t *prompt);

/*
 * The isolation key of account and `user`, as chan_message.h has it, into
 * `buf` of NGX_HTTP_LLM_TENANT_MAX bytes; returns its length, 0: none.
 */

size_t ngx_http_llm_params_tenant(const ngx_http_llm_params_t *params,
    u_char *buf);

/* Whether `name` is among `names`, each NUL-terminated, '' ends. */
ngx_int_t ngx_http_llm_model_known(const char *names, const char *name,
    size_t len);


/* The endpoints' own parts: NGX_OK or NGX_ERROR with `err` filled. */

ngx_int_t ngx_http_llm_chat_parse(ngx_http_llm_params_t *params,
    const ngx_http_llm_json_t *json, ngx_http_llm_error_t *err);
ngx_int_t ngx_http_llm_completion_parse(ngx_http_llm_params_t *params,
    const ngx_http_llm_json_t *json, ngx_http_llm_error_t *err);

/* Makes `n` empty prompts. */
ngx_int_t ngx_http_llm_prompts_create(ngx_http_llm_params_t *params,
    ngx_uint_t n, ngx_http_llm_error_t *err);

/* Appends a section, as chan_body_put(). */
ngx_int_t ngx_http_llm_section(ngx_http_llm_prompt_t *prompt, uint32_t kind,
    const void *fixed, size_t fixed_size, const void *bytes, size_t size,
    ngx_http_llm_error_t *err);


/*
 * JSON (ngx_http_llm_json.c).  ngx_http_llm_json_parse() accepts exactly one
 * RFC 8259 object in valid UTF-8 without NUL characters, lone surrogates,
 * numbers beyond a double, more than NGX_HTTP_LLM_DEPTH_MAX levels or more than
 * NGX_HTTP_LLM_VALUES_MAX values;
 * ngx_http_llm_json_free() frees it.  ngx_http_llm_json_check()
 * (ngx_http_llm_json_check.c) is all of that for valid UTF-8 but the object,
 * and points `seed` to the digits of an integer of that name in it.
 *
 * ngx_http_llm_json_fields() finds `n` names (in strcmp() order) in an object
 * in one pass; a name that is there twice is an error.  `where` precedes the
 * name in an error's parameter and may be empty.
 *
 * The getters take a value that may be NULL or null, which leave `*out` as it
 * is, and the parameter's name for the error.
 */

ngx_int_t ngx_http_llm_json_parse(ngx_http_llm_json_t *json,
    const u_char *data, size_t len, ngx_http_llm_error_t *err);
void ngx_http_llm_json_free(ngx_http_llm_json_t *json);
ngx_int_t ngx_http_llm_json_check(const u_char *data, size_t len,
    ngx_str_t *seed, ngx_http_llm_error_t *err);
ngx_int_t ngx_http_llm_json_fields(const cJSON *object,
    const char *const *names, ngx_uint_t n, const cJSON **values,
    const char *where, ngx_http_llm_error_t *err);

ngx_int_t ngx_http_llm_json_bool(const cJSON *value, const char *name,
    ngx_uint_t *out, ngx_http_llm_error_t *err);
ngx_int_t ngx_http_llm_json_int(const cJSON *value, const char *name,
    int64_t min, int64_t max, int64_t *out, ngx_http_llm_error_t *err);
ngx_int_t ngx_http_llm_json_float(const cJSON *value, const char *name,
    double min, double max, float *out, ngx_http_llm_error_t *err);
ngx_int_t ngx_http_llm_json_string(const cJSON *value, const char *name,
    const char **out, ngx_http_llm_error_t *err);

#define ngx_http_llm_json_absent(v)  ((v) == NULL || cJSON_IsNull(v))

/* The root's fields as enumerated above; errors name them. */
extern const char *const  ngx_http_llm_fields[];


/*
 * ngx_http_llm_error_set.c.  Fills `err` and returns NGX_ERROR; `param` and
 * `code` may be NULL.
 */

ngx_int_t ngx_http_llm_error_set(ngx_http_llm_error_t *err, ngx_uint_t status,
    const char *code, const char *param, const char *fmt, ...)
    __attribute__ ((format(printf, 5, 6)));
ngx_int_t ngx_http_llm_error_invalid(ngx_http_llm_error_t *err,
    const char *param, const char *fmt, ...)
    __attribute__ ((format(printf, 3, 4)));


#endif /* NGX_HTTP_LLM_PARAMS_H */
