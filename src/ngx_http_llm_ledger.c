/*
 * llm_ledger: the day's accounts and models as JSON or CSV.
 */

#include "ngx_http_llm_ledger.h"
#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_balance.h"
#include "ngx_http_llm_metrics.h"
#include "ngx_http_llm_price.h"
#include "ngx_http_llm_table.h"

#include "ledger/ledger_decimal.h"


#define NGX_HTTP_LLM_LEDGER_SIZE   (4 * 1024 * 1024)
#define NGX_HTTP_LLM_LEDGER_BLOCK  16384
#define NGX_HTTP_LLM_LEDGER_ALL    "t"
#define NGX_HTTP_LLM_OTHERS        "(others)"


typedef struct {
    ngx_shm_zone_t            *shm_zone;       /* NULL: nobody asks */
} ngx_http_llm_ledger_conf_t;

/* A copy of an entry, its name without the first letter. */

typedef struct {
    u_char                     kind;           /* 'a' or 'm' */
    ngx_str_t                  name;
    ngx_http_llm_day_t         day;
} ngx_http_llm_entry_t;

typedef struct {
    ngx_http_request_t        *request;
    ngx_http_llm_writer_t      out;
    ngx_http_llm_entry_t      *entries;
    ngx_uint_t                 n;
    ngx_http_llm_day_t         total;
    ngx_tm_t                   date;
} ngx_http_llm_sheet_t;


static ngx_int_t ngx_http_llm_ledger_handler(ngx_http_request_t *r);
static ngx_int_t ngx_http_llm_ledger_log(ngx_http_request_t *r);
static void ngx_http_llm_ledger_add(ngx_http_llm_table_t *table, u_char kind,
    u_char *name, size_t len, ngx_http_llm_day_t *one);
static ngx_int_t ngx_http_llm_ledger_copy(ngx_http_llm_sheet_t *sheet,
    ngx_shm_zone_t *shm_zone);
static int ngx_libc_cdecl ngx_http_llm_ledger_order(const void *one,
    const void *two);
static void ngx_http_llm_ledger_json(ngx_http_llm_sheet_t *sheet);
static void ngx_http_llm_ledger_json_list(ngx_http_llm_sheet_t *sheet,
    u_char kind);
static void ngx_http_llm_ledger_json_day(ngx_http_llm_writer_t *w,
    ngx_http_llm_day_t *day);
static void ngx_http_llm_ledger_csv(ngx_http_llm_sheet_t *sheet);
static void ngx_http_llm_ledger_csv_row(ngx_http_llm_sheet_t *sheet,
    const char *kind, ngx_str_t *name, ngx_http_llm_day_t *day);
static void ngx_http_llm_ledger_csv_text(ngx_http_llm_writer_t *w,
    ngx_str_t *text);
static void ngx_http_llm_ledger_put_tier(ngx_http_llm_sheet_t *sheet,
    ngx_str_t *account, ngx_str_t *tier);
static void ngx_http_llm_ledger_put_money(ngx_http_llm_writer_t *w,
    int64_t nano);
static ngx_int_t ngx_http_llm_ledger_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
static void *ngx_http_llm_ledger_create_conf(ngx_conf_t *cf);
static ngx_int_t ngx_http_llm_ledger_init(ngx_conf_t *cf);
static char *ngx_http_llm_ledger(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);


#define ngx_http_llm_ledger_now()  ((int64_t) ngx_time() / 86400)


static ngx_command_t  ngx_http_llm_ledger_commands[] = {

    { ngx_string("llm_ledger"),
      NGX_HTTP_LOC_CONF|NGX_CONF_NOARGS,
      ngx_http_llm_ledger,
      NGX_HTTP_MAIN_CONF_OFFSET,
      0,
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_llm_ledger_module_ctx = {
    NULL,                                  /* preconfiguration */
    ngx_http_llm_ledger_init,              /* postconfiguration */

    ngx_http_llm_ledger_create_conf,       /* create main configuration */
    NULL,                                  /* init main configuration */

    NULL,                                  /* create server configuration */
    NULL,                                  /* merge server configuration */

    NULL,                                  /* create location configuration */
    NULL                                   /* merge location configuration */
};


ngx_module_t  ngx_http_llm_ledger_module = {
    NGX_MODULE_V1,
    &ngx_http_llm_ledger_module_ctx,       /* module context */
    ngx_http_llm_ledger_commands,          /* module directives */
    NGX_HTTP_MODULE,                       /* module type */
    NULL,                                  /* init master */
    NULL,                                  /* init module */
    NULL,                                  /* init process */
    NULL,                                  /* init thread */
    NULL,                                  /* exit thread */
    NULL,                                  /* exit process */
    NULL,                                  /* exit master */
    NGX_MODULE_V1_PADDING
};


static const char *const  ngx_http_llm_ledger_keys[] = {
    "requests", "failed_requests", "unpriced_requests", "input_tokens",
    "hit_tokens", "miss_tokens", "output_tokens", "reasoning_tokens",
    "revenue_usd"
};


static ngx_int_t
ngx_http_llm_ledger_handler(ngx_http_request_t *r)
{
    ngx_int_t                    rc;
    ngx_str_t                    type, format;
    ngx_http_llm_sheet_t         sheet;
    ngx_http_llm_ledger_conf_t  *lcf;

    rc = ngx_http_llm_get_only(r);
    if (rc != NGX_OK) {
        return rc;
    }

    lcf = ngx_http_get_module_main_conf(r, ngx_http_llm_ledger_module);

    ngx_memzero(&sheet, sizeof(ngx_http_llm_sheet_t));
    sheet.request = r;

    if (ngx_http_llm_ledger_copy(&sheet, lcf->shm_zone) != NGX_OK) {
        return NGX_HTTP_INTERNAL_SERVER_ERROR;
    }

    ngx_http_llm_writer_init(&sheet.out, r->pool, NGX_HTTP_LLM_LEDGER_BLOCK);

    if (ngx_http_arg(r, (u_char *) "format", 6, &format) != NGX_OK
        || (format.len == 4 && ngx_strncmp(format.data, "json", 4) == 0))
    {
        ngx_str_set(&type, "application/json");
        ngx_http_llm_ledger_json(&sheet);

    } else if (format.len == 3 && ngx_strncmp(format.data, "csv", 3) == 0) {
        ngx_str_set(&type, "text/csv; charset=utf-8");
        ngx_http_llm_ledger_csv(&sheet);

    } else {
        return NGX_HTTP_BAD_REQUEST;
    }

    return ngx_http_llm_respond(r, &sheet.out, &type);
}


/* The same requests as in a usage log of locations with llm_pass. */

static ngx_int_t
ngx_http_llm_ledger_log(ngx_http_request_t *r)
{
    int64_t                      nano;
    ngx_str_t                    name;
    ngx_uint_t                   status;
    const char                  *model;
    ngx_slab_pool_t             *shpool;
    ngx_http_llm_ctx_t          *ctx;
    ngx_http_llm_day_t           one;
    ngx_http_llm_table_t        *table;
    ngx_http_llm_account_t      *account;
    ngx_http_llm_loc_conf_t     *llcf;
    ngx_http_llm_ledger_conf_t  *lcf;

    llcf = ngx_http_get_module_loc_conf(r, ngx_http_llm_module);
    ctx = ngx_http_get_module_ctx(r, ngx_http_llm_module);

    if (ctx != NULL ? ctx->models
                      || (llcf->engine == NULL
                          && ctx->admission == NGX_HTTP_LLM_UNASKED)
                    : llcf->engine == NULL)
    {
        return NGX_OK;
    }

    ngx_memzero(&one, sizeof(ngx_http_llm_day_t));

    status = r->err_status != 0 ? r->err_status : r->headers_out.status;

    one.requests = 1;
    one.failed = (status >= NGX_HTTP_BAD_REQUEST);

    if (ctx != NULL) {
        one.input = ctx->prompt_tokens;
        one.hit = ngx_min(ctx->cached_tokens, ctx->prompt_tokens);
        one.output = ctx->completion_tokens;
        one.reasoning = ctx->reasoning_tokens;

        if (ngx_http_llm_cost(r, ctx, &nano) == NGX_OK) {
            one.nano = nano;

        } else {
            one.unpriced = (one.input != 0 || one.output != 0);
        }
    }

    account = ngx_http_llm_account(r);
    ngx_str_set(&name, "");

    if (account != NULL) {
        name = account->name;
    }

    model = (ctx != NULL && ctx->parsed) ? ctx->params.model : "";

    lcf = ngx_http_get_module_main_conf(r, ngx_http_llm_ledger_module);
    shpool = (ngx_slab_pool_t *) lcf->shm_zone->shm.addr;
    table = shpool->data;

    ngx_shmtx_lock(&shpool->mutex);

    ngx_http_llm_ledger_add(table, NGX_HTTP_LLM_LEDGER_ALL[0],
                            (u_char *) "", 0, &one);
    ngx_http_llm_ledger_add(table, 'a', name.data, name.len, &one);
    ngx_http_llm_ledger_add(table, 'm', (u_char *) model, ngx_strlen(model),
                            &one);

    ngx_shmtx_unlock(&shpool->mutex);

    return NGX_OK;
}


static void
ngx_http_llm_ledger_add(ngx_http_llm_table_t *table, u_char kind,
    u_char *name, size_t len, ngx_http_llm_day_t *one)
{
    u_char               buf[NGX_HTTP_LLM_TABLE_NAME];
    int64_t              today;
    ngx_str_t            key;
    ngx_http_llm_day_t  *day;

    len = ngx_min(len, sizeof(buf) - 1);

    buf[0] = kind;
    ngx_memcpy(buf + 1, name, len);

    key.data = buf;
    key.len = 1 + len;

    /*
     * Accounts are as many as the operator made, but some servers behind
     * llm_meter take any name for a model: half of the room is theirs.
     */

    if (kind == 'm' && table->n >= table->nslots / 8 * 3) {
        day = ngx_http_llm_table_find(table, &key);

    } else {
        day = ngx_http_llm_table_get(table, &key);
    }

    if (day == NULL) {
        key.len = ngx_sprintf(buf + 1, NGX_HTTP_LLM_OTHERS) - buf;
        day = ngx_http_llm_table_find(table, &key);
    }

    today = ngx_http_llm_ledger_now();

    if (day->day != today) {
        ngx_memzero(day, sizeof(ngx_http_llm_day_t));
        day->day = today;
    }

    day->requests += one->requests;
    day->failed += one->failed;
    day->unpriced += one->unpriced;
    day->input += one->input;
    day->hit += one->hit;
    day->output += one->output;
    day->reasoning += one->reasoning;
    day->nano += one->nano;
}


ngx_int_t
ngx_http_llm_ledger_today(ngx_http_request_t *r, ngx_http_llm_day_t *day)
{
    ngx_str_t                    key = ngx_string(NGX_HTTP_LLM_LEDGER_ALL);
    ngx_slab_pool_t             *shpool;
    ngx_http_llm_day_t          *all;
    ngx_http_llm_ledger_conf_t  *lcf;

    lcf = ngx_http_get_module_main_conf(r, ngx_http_llm_ledger_module);

    if (lcf->shm_zone == NULL) {
        return NGX_DECLINED;
    }

    shpool = (ngx_slab_pool_t *) lcf->shm_zone->shm.addr;

    ngx_shmtx_lock(&shpool->mutex);

    all = ngx_http_llm_table_find(shpool->data, &key);
    *day = *all;

    ngx_shmtx_unlock(&shpool->mutex);

    if (day->day != ngx_http_llm_ledger_now()) {
        ngx_memzero(day, sizeof(ngx_http_llm_day_t));
        day->day = ngx_http_llm_ledger_now();
    }

    return NGX_OK;
}


/* Names never change: only the numbers are copied under the lock. */

static ngx_int_t
ngx_http_llm_ledger_copy(ngx_http_llm_sheet_t *sheet,
    ngx_shm_zone_t *shm_zone)
{
    int64_t                today;
    ngx_str_t              name;
    ngx_uint_t             i, n;
    ngx_slab_pool_t       *shpool;
    ngx_http_llm_day_t    *day;
    ngx_http_llm_table_t  *table;

    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;
    table = shpool->data;

    /* What comes while this is made is left out. */

    n = table->n;

    sheet->entries = ngx_palloc(sheet->request->pool,
                                n * sizeof(ngx_http_llm_entry_t));
    if (sheet->entries == NULL) {
        return NGX_ERROR;
    }

    today = ngx_http_llm_ledger_now();
    ngx_gmtime(ngx_time(), &sheet->date);
    i = 0;

    ngx_shmtx_lock(&shpool->mutex);

    while (sheet->n < n
           && (day = ngx_http_llm_table_next(table, &i, &name)) != NULL)
    {
        if (day->day != today || day->requests == 0) {
            continue;
        }

        if (name.data[0] == NGX_HTTP_LLM_LEDGER_ALL[0]) {
            sheet->total = *day;
            continue;
        }

        sheet->entries[sheet->n].kind = name.data[0];
        sheet->entries[sheet->n].name.data = name.data + 1;
        sheet->entries[sheet->n].name.len = name.len - 1;
        sheet->entries[sheet->n].day = *day;
        sheet->n++;
    }

    ngx_shmtx_unlock(&shpool->mutex);

    ngx_qsort(sheet->entries, sheet->n, sizeof(ngx_http_llm_entry_t),
              ngx_http_llm_ledger_order);

    return NGX_OK;
}


/* By revenue, tokens, name: as llm-ledger report does. */

static int ngx_libc_cdecl
ngx_http_llm_ledger_order(const void *one, const void *two)
{
    uint64_t                     a, b;
    const ngx_http_llm_entry_t  *x, *y;

    x = one;
    y = two;

    if (x->day.nano != y->day.nano) {
        return x->day.nano < y->day.nano ? 1 : -1;
    }

    a = x->day.input + x->day.output;
    b = y->day.input + y->day.output;

    if (a != b) {
        return a < b ? 1 : -1;
    }

    return (int) ngx_memn2cmp(x->name.data, y->name.data, x->name.len,
                              y->name.len);
}


static void
ngx_http_llm_ledger_json(ngx_http_llm_sheet_t *sheet)
{
    u_char                 *p, date[sizeof("1970-01-01")];
    ngx_http_llm_writer_t  *w;

    w = &sheet->out;

    p = ngx_sprintf(date, "%4d-%02d-%02d", sheet->date.ngx_tm_year,
                    sheet->date.ngx_tm_mon, sheet->date.ngx_tm_mday);

    ngx_http_llm_put_literal(w, "{\"date\":\"");
    ngx_http_llm_put(w, date, p - date);
    ngx_http_llm_put_literal(w, "\",");
    ngx_http_llm_ledger_json_day(w, &sheet->total);
    ngx_http_llm_put_literal(w, ",\"accounts\":[");
    ngx_http_llm_ledger_json_list(sheet, 'a');
    ngx_http_llm_put_literal(w, "],\"models\":[");
    ngx_http_llm_ledger_json_list(sheet, 'm');
    ngx_http_llm_put_literal(w, "]}\n");
}


static void
ngx_http_llm_ledger_json_list(ngx_http_llm_sheet_t *sheet, u_char kind)
{
    int64_t                 nano;
    ngx_str_t               tier;
    ngx_uint_t              i, first;
    ngx_http_llm_entry_t   *entry;
    ngx_http_llm_writer_t  *w;

    w = &sheet->out;
    first = 1;

    for (i = 0; i < sheet->n; i++) {
        entry = &sheet->entries[i];

        if (entry->kind != kind) {
            continue;
        }

        if (first) {
            first = 0;

        } else {
            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_put_literal(w, "\n{\"name\":\"");
        ngx_http_llm_put_json(w, entry->name.data, entry->name.len);
        ngx_http_llm_put_literal(w, "\",");

        if (kind == 'a') {
            ngx_http_llm_ledger_put_tier(sheet, &entry->name, &tier);
            ngx_http_llm_put_literal(w, "\"tier\":\"");
            ngx_http_llm_put_json(w, tier.data, tier.len);
            ngx_http_llm_put_literal(w, "\",\"balance_usd\":");

            if (ngx_http_llm_balance(sheet->request, &entry->name, &nano)
                == NGX_OK)
            {
                ngx_http_llm_ledger_put_money(w, nano);

            } else {
                ngx_http_llm_put_literal(w, "null");
            }

            ngx_http_llm_put_literal(w, ",");
        }

        ngx_http_llm_ledger_json_day(w, &entry->day);
        ngx_http_llm_put_literal(w, "}");
    }
}


static void
ngx_http_llm_ledger_json_day(ngx_http_llm_writer_t *w,
    ngx_http_llm_day_t *day)
{
    ngx_uint_t  i;

    const uint64_t  values[] = {
        day->requests, day->failed, day->unpriced, day->input, day->hit,
        day->input - day->hit, day->output, day->reasoning
    };

    for (i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        ngx_http_llm_put_literal(w, "\"");
        ngx_http_llm_put(w, ngx_http_llm_ledger_keys[i],
                         ngx_strlen(ngx_http_llm_ledger_keys[i]));
        ngx_http_llm_put_literal(w, "\":");
        ngx_http_llm_put_uint(w, values[i]);
        ngx_http_llm_put_literal(w, ",");
    }

    ngx_http_llm_put_literal(w, "\"revenue_usd\":");
    ngx_http_llm_ledger_put_money(w, day->nano);
}


static void
ngx_http_llm_ledger_csv(ngx_http_llm_sheet_t *sheet)
{
    ngx_str_t               name;
    ngx_uint_t              i;
    ngx_http_llm_entry_t   *entry;
    ngx_http_llm_writer_t  *w;

    w = &sheet->out;

    ngx_http_llm_put_literal(w, "kind,name,tier");

    for (i = 0; i < sizeof(ngx_http_llm_ledger_keys) / sizeof(char *); i++) {
        ngx_http_llm_put_literal(w, ",");
        ngx_http_llm_put(w, ngx_http_llm_ledger_keys[i],
                         ngx_strlen(ngx_http_llm_ledger_keys[i]));
    }

    ngx_http_llm_put_literal(w, ",balance_usd\r\n");

    ngx_str_null(&name);
    ngx_http_llm_ledger_csv_row(sheet, "total", &name, &sheet->total);

    for (i = 0; i < sheet->n; i++) {
        entry = &sheet->entries[i];

        ngx_http_llm_ledger_csv_row(sheet, entry->kind == 'a' ? "account"
                                                              : "model",
                                    &entry->name, &entry->day);
    }
}


static void
ngx_http_llm_ledger_csv_row(ngx_http_llm_sheet_t *sheet, const char *kind,
    ngx_str_t *name, ngx_http_llm_day_t *day)
{
    int64_t                 nano;
    ngx_str_t               tier;
    ngx_uint_t              i;
    ngx_http_llm_writer_t  *w;

    const uint64_t  values[] = {
        day->requests, day->failed, day->unpriced, day->input, day->hit,
        day->input - day->hit, day->output, day->reasoning
    };

    w = &sheet->out;

    ngx_str_null(&tier);

    if (kind[0] == 'a') {
        ngx_http_llm_ledger_put_tier(sheet, name, &tier);
    }

    ngx_http_llm_put(w, kind, ngx_strlen(kind));
    ngx_http_llm_put_literal(w, ",");
    ngx_http_llm_ledger_csv_text(w, name);
    ngx_http_llm_put_literal(w, ",");
    ngx_http_llm_ledger_csv_text(w, &tier);

    for (i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        ngx_http_llm_put_literal(w, ",");
        ngx_http_llm_put_uint(w, values[i]);
    }

    ngx_http_llm_put_literal(w, ",");
    ngx_http_llm_ledger_put_money(w, day->nano);
    ngx_http_llm_put_literal(w, ",");

    if (kind[0] == 'a'
        && ngx_http_llm_balance(sheet->request, name, &nano) == NGX_OK)
    {
        ngx_http_llm_ledger_put_money(w, nano);
    }

    ngx_http_llm_put_literal(w, "\r\n");
}


/* RFC 4180 */

static void
ngx_http_llm_ledger_csv_text(ngx_http_llm_writer_t *w, ngx_str_t *text)
{
    size_t  i;

    ngx_http_llm_put_literal(w, "\"");

    for (i = 0; i < text->len; i++) {

        if (text->data[i] == '"') {
            ngx_http_llm_put_literal(w, "\"");
        }

        ngx_http_llm_put(w, &text->data[i], 1);
    }

    ngx_http_llm_put_literal(w, "\"");
}


/* As the file of accounts has it now. */

static void
ngx_http_llm_ledger_put_tier(ngx_http_llm_sheet_t *sheet, ngx_str_t *account,
    ngx_str_t *tier)
{
    ngx_http_llm_account_t        *a;
    ngx_http_llm_accounts_conf_t  *acf;

    ngx_str_null(tier);

    acf = ngx_http_llm_accounts_conf(sheet->request);

    if (acf != NULL) {
        a = ngx_http_llm_account_find(&acf->table, account);

        if (a != NULL) {
            *tier = a->tier;
        }
    }
}


static void
ngx_http_llm_ledger_put_money(ngx_http_llm_writer_t *w, int64_t nano)
{
    char  buf[LEDGER_DIGITS];

    ledger_exact(buf, nano, LEDGER_NANO);
    ngx_http_llm_put(w, buf, ngx_strlen(buf));
}


static ngx_int_t
ngx_http_llm_ledger_init_zone(ngx_shm_zone_t *shm_zone, void *data)
{
    ngx_uint_t             i;
    ngx_slab_pool_t       *shpool;
    ngx_http_llm_table_t  *table;

    static ngx_str_t  always[] = {
        ngx_string(NGX_HTTP_LLM_LEDGER_ALL),
        ngx_string("a" NGX_HTTP_LLM_OTHERS),
        ngx_string("m" NGX_HTTP_LLM_OTHERS)
    };

    if (data != NULL || shm_zone->shm.exists) {
        return NGX_OK;
    }

    shpool = (ngx_slab_pool_t *) shm_zone->shm.addr;

    table = ngx_http_llm_table_create(shpool, sizeof(ngx_http_llm_day_t));
    if (table == NULL) {
        return NGX_ERROR;
    }

    for (i = 0; i < sizeof(always) / sizeof(always[0]); i++) {
        if (ngx_http_llm_table_get(table, &always[i]) == NULL) {
            return NGX_ERROR;
        }
    }

    shpool->data = table;

    return NGX_OK;
}


static void *
ngx_http_llm_ledger_create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_llm_ledger_conf_t));
}


static ngx_int_t
ngx_http_llm_ledger_init(ngx_conf_t *cf)
{
    ngx_http_llm_ledger_conf_t  *lcf;

    lcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_ledger_module);

    if (lcf->shm_zone == NULL) {
        return NGX_OK;
    }

    return ngx_http_llm_add_handler(cf, NGX_HTTP_LOG_PHASE,
                                    ngx_http_llm_ledger_log);
}


ngx_int_t
ngx_http_llm_ledger_need(ngx_conf_t *cf)
{
    ngx_str_t                    name = ngx_string("llm_ledger");
    ngx_http_llm_ledger_conf_t  *lcf;

    lcf = ngx_http_conf_get_module_main_conf(cf, ngx_http_llm_ledger_module);

    if (lcf->shm_zone != NULL) {
        return NGX_OK;
    }

    lcf->shm_zone = ngx_shared_memory_add(cf, &name,
                                          NGX_HTTP_LLM_LEDGER_SIZE,
                                          &ngx_http_llm_ledger_module);
    if (lcf->shm_zone == NULL) {
        return NGX_ERROR;
    }

    /* Only for the next cycle, which is told so by it. */

    lcf->shm_zone->data = lcf;
    lcf->shm_zone->init = ngx_http_llm_ledger_init_zone;

    return NGX_OK;
}


static char *
ngx_http_llm_ledger(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    ngx_http_core_loc_conf_t  *clcf;

    clcf = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);

    if (clcf->handler == ngx_http_llm_ledger_handler) {
        return "is duplicate";
    }

    clcf->handler = ngx_http_llm_ledger_handler;

    return ngx_http_llm_ledger_need(cf) == NGX_OK ? NGX_CONF_OK
                                                  : NGX_CONF_ERROR;
}
