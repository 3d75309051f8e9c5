/*
 * One line of a usage log: a JSON object, as log_format with escape=json
 * writes it.
 *
 *     time               ISO 8601 with an offset or Z; required
 *     account, tier, model                                        names
 *     status, prompt_tokens, cached_tokens, completion_tokens,
 *     reasoning_tokens   whole numbers below 2^63
 *     cost               US dollars, at most 12 decimal places
 *
 * Other fields are checked as JSON and passed over.  A variable that nginx
 * does not know is an empty string, so numbers may be strings; "", "-" and
 * null are as good as no field.
 */

#include <string.h>

#include "ledger.h"


/* A line can cost 10^12 dollars, so that 10^14 of them can be added up. */
#define LEDGER_COST_MAX  ((ledger_int_t) 1000000000000 * 1000000000000)

typedef struct {
    const char  *name;
    enum { USAGE_TIME, USAGE_NAME, USAGE_COUNT, USAGE_COST }  kind;
    size_t       offset;
} usage_field_t;


static const usage_field_t *ledger_field(const char *key);
static int ledger_value(json_t *j, const usage_field_t *f, ledger_usage_t *u,
    char *err);
static int ledger_text(json_t *j, const usage_field_t *f, char *buf,
    size_t size, char *err);
static int ledger_time(const char *s, int64_t *time);
static int ledger_number(const char **s, int digits, int min, int max,
    int *n);


static const usage_field_t  usage_fields[] = {
    { "time", USAGE_TIME, offsetof(ledger_usage_t, time) },
    { "account", USAGE_NAME, offsetof(ledger_usage_t, account) },
    { "tier", USAGE_NAME, offsetof(ledger_usage_t, tier) },
    { "model", USAGE_NAME, offsetof(ledger_usage_t, model) },
    { "status", USAGE_COUNT, offsetof(ledger_usage_t, status) },
    { "prompt_tokens", USAGE_COUNT, offsetof(ledger_usage_t, prompt) },
    { "cached_tokens", USAGE_COUNT, offsetof(ledger_usage_t, cached) },
    { "completion_tokens", USAGE_COUNT,
      offsetof(ledger_usage_t, completion) },
    { "reasoning_tokens", USAGE_COUNT, offsetof(ledger_usage_t, reasoning) },
    { "cost", USAGE_COST, offsetof(ledger_usage_t, cost) },
    { NULL }
};


int
ledger_usage(const char *line, size_t len, ledger_usage_t *u, char *err)
{
    int                   rc, first;
    char                  key[LEDGER_NAME];
    json_t                j;
    unsigned              seen;
    const usage_field_t  *f;

    memset(u, 0, offsetof(ledger_usage_t, account));
    u->account[0] = '\0';
    u->tier[0] = '\0';
    u->model[0] = '\0';

    json_init(&j, line, len, err);

    if (json_open(&j, '{') != 0) {
        return -1;
    }

    seen = 0;
    first = 1;

    while ((rc = json_next(&j, '}', &first, key, sizeof(key))) == 1) {
        f = ledger_field(key);

        if (f == NULL) {
            if (json_skip(&j) != 0) {
                return -1;
            }

            continue;
        }

        if (seen & 1U << (f - usage_fields)) {
            snprintf(err, ERR_LEN, "\"%s\" stands twice", f->name);
            return -1;
        }

        seen |= 1U << (f - usage_fields);

        if (ledger_value(&j, f, u, err) != 0) {
            return -1;
        }
    }

    if (rc != 0 || json_end(&j) != 0) {
        return -1;
    }

    if (!(seen & 1U)) {
        snprintf(err, ERR_LEN, "\"time\" is missing");
        return -1;
    }

    if (u->cached > u->prompt) {
        snprintf(err, ERR_LEN,
                 "\"cached_tokens\" is more than \"prompt_tokens\"");
        return -1;
    }

    if (u->reasoning > u->completion) {
        snprintf(err, ERR_LEN,
                 "\"reasoning_tokens\" is more than \"completion_tokens\"");
        return -1;
    }

    return 0;
}


static const usage_field_t *
ledger_field(const char *key)
{
    const usage_field_t  *f;

    for (f = usage_fields; f->name != NULL; f++) {
        if (strcmp(f->name, key) == 0) {
            return f;
        }
    }

    return NULL;
}


static int
ledger_value(json_t *j, const usage_field_t *f, ledger_usage_t *u, char *err)
{
    char          text[LEDGER_NAME], *p;
    ledger_int_t  n;

    p = (char *) u + f->offset;

    if (f->kind == USAGE_NAME) {
        return ledger_text(j, f, p, LEDGER_NAME, err);
    }

    if (ledger_text(j, f, text, sizeof(text), err) != 0) {
        return -1;
    }

    if (f->kind == USAGE_TIME) {
        if (ledger_time(text, &u->time) != 0) {
            snprintf(err, ERR_LEN, "\"time\" is no ISO 8601 time with an "
                     "offset");
            return -1;
        }

        return 0;
    }

    if (text[0] == '\0' || strcmp(text, "-") == 0) {
        return 0;
    }

    if (f->kind == USAGE_COST) {
        if (ledger_decimal(text, LEDGER_PICO, LEDGER_COST_MAX, &u->cost)
            != 0)
        {
            snprintf(err, ERR_LEN, "\"cost\" is no number of dollars up to "
                     "10^12 with at most %d decimal places", LEDGER_PICO);
            return -1;
        }

        u->priced = 1;
        return 0;
    }

    if (ledger_decimal(text, 0, INT64_MAX, &n) != 0) {
        snprintf(err, ERR_LEN, "\"%s\" is no whole number below 2^63",
                 f->name);
        return -1;
    }

    *(uint64_t *) (void *) p = (uint64_t) n;

    return 0;
}


/* A string, where numbers are as well a number as it is written; or null. */

static int
ledger_text(json_t *j, const usage_field_t *f, char *buf, size_t size,
    char *err)
{
    char         c;
    size_t       len;
    const char  *from;

    buf[0] = '\0';
    c = json_peek(j);

    if (c == '"') {
        return json_string(j, buf, size);
    }

    if (c == 'n') {
        return json_skip(j);
    }

    if ((c != '-' && (c < '0' || c > '9'))
        || (f->kind != USAGE_COUNT && f->kind != USAGE_COST))
    {
        snprintf(err, ERR_LEN, "\"%s\" is of a wrong type", f->name);
        return -1;
    }

    from = j->p;

    if (json_skip(j) != 0) {
        return -1;
    }

    /* The reader takes no number that is longer. */

    len = (size_t) (j->p - from);

    if (len >= size) {
        snprintf(err, ERR_LEN, "\"%s\" is too long", f->name);
        return -1;
    }

    memcpy(buf, from, len);
    buf[len] = '\0';

    return 0;
}


static int
ledger_time(const char *s, int64_t *time)
{
    int  y, mon, d, h, min, sec, oh, om, sign;

    static const int  days[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30,
                                 31 };

    if (ledger_number(&s, 4, 1970, 9999, &y) != 0 || *s++ != '-'
        || ledger_number(&s, 2, 1, 12, &mon) != 0 || *s++ != '-'
        || ledger_number(&s, 2, 1, 31, &d) != 0 || *s++ != 'T'
        || ledger_number(&s, 2, 0, 23, &h) != 0 || *s++ != ':'
        || ledger_number(&s, 2, 0, 59, &min) != 0 || *s++ != ':'
        || ledger_number(&s, 2, 0, 60, &sec) != 0)
    {
        return -1;
    }

    if (d > days[mon - 1]
        && !(mon == 2 && d == 29 && y % 4 == 0
             && (y % 100 != 0 || y % 400 == 0)))
    {
        return -1;
    }

    if (*s == '.') {
        s++;

        if (*s < '0' || *s > '9') {
            return -1;
        }

        while (*s >= '0' && *s <= '9') {
            s++;
        }
    }

    oh = 0;
    om = 0;
    sign = 1;

    if (*s == 'Z') {
        s++;

    } else {
        if (*s != '+' && *s != '-') {
            return -1;
        }

        sign = *s++ == '-' ? -1 : 1;

        if (ledger_number(&s, 2, 0, 23, &oh) != 0 || *s++ != ':'
            || ledger_number(&s, 2, 0, 59, &om) != 0)
        {
            return -1;
        }
    }

    if (*s != '\0') {
        return -1;
    }

    *time = ledger_days(y, mon, d) * 86400 + h * 3600 + min * 60 + sec
            - sign * (oh * 3600 + om * 60);

    return 0;
}


static int
ledger_number(const char **s, int digits, int min, int max, int *n)
{
    int  i;

    *n = 0;

    for (i = 0; i < digits; i++, (*s)++) {
        if (**s < '0' || **s > '9') {
            return -1;
        }

        *n = *n * 10 + (**s - '0');
    }

    return *n < min || *n > max ? -1 : 0;
}
