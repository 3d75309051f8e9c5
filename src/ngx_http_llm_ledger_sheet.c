/*
 * What llm_ledger answers: the day's accounts and models as JSON or CSV.
 */

#include "ngx_http_llm_ledger.h"
#include "ngx_http_llm_accounts.h"
#include "ngx_http_llm_balance.h"
#include "ngx_http_llm_metrics.h"
#include "ngx_http_llm_table.h"

#include "ledger/ledger_decimal.h"


#define NGX_HTTP_LLM_LEDGER_BLOCK  16384


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


static const char *const  ngx_http_llm_ledger_keys[] = {
    "requests", "failed_requests", "unpriced_requests", "input_tokens",
    "hit_tokens", "miss_tokens", "output_tokens", "reasoning_tokens",
    "revenue_usd"
};


ngx_int_t
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
