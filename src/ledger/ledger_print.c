/*
 * A report as a table, as JSON and as CSV.
 */

#include <string.h>
#include <time.h>

#include "ledger.h"


static void print_row(FILE *out, const char *name, const ledger_sum_t *s);
static void print_sum(FILE *out, const ledger_sum_t *s);
static void print_string(FILE *out, const char *s);
static void print_csv(FILE *out, const char *kind, const char *name,
    const ledger_sum_t *s);
static void print_money(FILE *out, int known, ledger_int_t v);
static char *print_time(char *buf, size_t size, int64_t t);
static char *print_share(char *buf, const ledger_report_t *r,
    unsigned places);


static const char *const  print_one[] = { "account", "tier", "model" };
static const char *const  print_all[] = { "accounts", "tiers", "models" };


void
ledger_print_table(FILE *out, const ledger_report_t *r)
{
    int     kind;
    char    buf[LEDGER_DIGITS], from[32], to[32];
    size_t  i;

    if (r->total.requests != 0) {
        fprintf(out, "%s to %s\n\n",
                print_time(from, sizeof(from), r->from),
                print_time(to, sizeof(to), r->to));
    }

    fprintf(out, "%-24s %14s %19s %19s %19s %19s %17s\n", "", "requests",
            "input", "hit", "miss", "output", "revenue $");

    print_row(out, "total", &r->total);

    for (kind = 0; kind < LEDGER_KINDS; kind++) {
        fprintf(out, "\n%s\n", print_all[kind]);

        for (i = 0; i < r->names[kind].n; i++) {
            print_row(out, r->names[kind].sum[i].name,
                      &r->names[kind].sum[i]);
        }
    }

    fputc('\n', out);

    if (r->costed) {
        fprintf(out, "nodes, mean     %20s\n",
                ledger_rounded(buf, r->nodes_mean, LEDGER_MICRO, 2));

        if (r->peaked) {
            fprintf(out, "nodes, peak     %20s\n",
                    ledger_rounded(buf, r->nodes_peak, LEDGER_MICRO, 2));
        }

        fprintf(out, "cost $          %20s\n",
                ledger_rounded(buf, r->cost, LEDGER_PICO, 2));
        fprintf(out, "profit $        %20s\n",
                ledger_rounded(buf, r->profit, LEDGER_PICO, 2));

        if (r->rated) {
            fprintf(out, "profit by cost  %18s %%\n",
                    ledger_rounded(buf, r->ratio, 2, 1));
        }
    }

    if (r->windowed) {
        fprintf(out, "off-peak tokens %18s %%\n", print_share(buf, r, 2));
    }

    fprintf(out, "failed requests %20llu\n",
            (unsigned long long) r->total.failed);

    if (!r->repriced) {
        fprintf(out, "without a cost  %20llu\n",
                (unsigned long long) r->total.unpriced);
    }

    fprintf(out, "damaged lines   %20llu\n", (unsigned long long) r->damaged);
}


static void
print_row(FILE *out, const char *name, const ledger_sum_t *s)
{
    int   width;
    char  requests[LEDGER_DIGITS], input[LEDGER_DIGITS], hit[LEDGER_DIGITS],
          miss[LEDGER_DIGITS], output[LEDGER_DIGITS], revenue[LEDGER_DIGITS];

    width = ledger_print_plain(out, name[0] != '\0' ? name : "-");

    fprintf(out, "%*s", width < 24 ? 24 - width : 0, "");

    fprintf(out, " %14s %19s %19s %19s %19s %17s\n",
            ledger_rounded(requests, s->requests, 0, 0),
            ledger_rounded(input, s->input, 0, 0),
            ledger_rounded(hit, s->hit, 0, 0),
            ledger_rounded(miss, s->input - s->hit, 0, 0),
            ledger_rounded(output, s->output, 0, 0),
            ledger_rounded(revenue, s->revenue, LEDGER_PICO, 2));
}


/* Names come from clients, and must not reach a terminal as they are. */

int
ledger_print_plain(FILE *out, const char *name)
{
    int                   width;
    size_t                n;
    const char           *end;
    const unsigned char  *p;

    end = name + strlen(name);

    for (width = 0; name < end; name += n, width++) {
        p = (const unsigned char *) name;
        n = json_utf8_length(name, end);

        if (n == 0) {
            n = 1;
        }

        if (p[0] < 0x20 || p[0] == 0x7f || (p[0] == 0xc2 && p[1] < 0xa0)) {
            fputc('?', out);

        } else {
            fwrite(name, 1, n, out);
        }
    }

    return width;
}


void
ledger_print_json(FILE *out, const ledger_report_t *r)
{
    int     kind;
    char    buf[LEDGER_DIGITS], time[32];
    size_t  i;

    fputs("{\n  \"from\": ", out);

    if (r->total.requests != 0) {
        fprintf(out, "\"%s\"", print_time(time, sizeof(time), r->from));
        fprintf(out, ",\n  \"to\": \"%s\"",
                print_time(time, sizeof(time), r->to));

    } else {
        fputs("null,\n  \"to\": null", out);
    }

    fputs(",\n  ", out);
    print_sum(out, &r->total);

    fprintf(out, ",\n  \"damaged_lines\": %llu,\n  \"nodes_mean\": %s",
            (unsigned long long) r->damaged,
            r->costed ? ledger_exact(buf, r->nodes_mean, LEDGER_MICRO)
                      : "null");
    fprintf(out, ",\n  \"nodes_peak\": %s",
            r->peaked ? ledger_exact(buf, r->nodes_peak, LEDGER_MICRO)
                      : "null");

    fputs(",\n  \"cost_usd\": ", out);
    print_money(out, r->costed, r->cost);
    fputs(",\n  \"profit_usd\": ", out);
    print_money(out, r->costed, r->profit);

    fprintf(out, ",\n  \"profit_ratio\": %s",
            r->rated ? ledger_exact(buf, r->ratio, 4) : "null");
    fprintf(out, ",\n  \"off_peak_share\": %s",
            r->windowed ? print_share(buf, r, 4) : "null");

    for (kind = 0; kind < LEDGER_KINDS; kind++) {
        fprintf(out, ",\n  \"%s\": [", print_all[kind]);

        for (i = 0; i < r->names[kind].n; i++) {
            fprintf(out, "%s\n    {\"name\": ", i != 0 ? "," : "");
            print_string(out, r->names[kind].sum[i].name);
            fputs(", ", out);
            print_sum(out, &r->names[kind].sum[i]);
            fputc('}', out);
        }

        fputs(i != 0 ? "\n  ]" : "]", out);
    }

    fputs("\n}\n", out);
}


static void
print_sum(FILE *out, const ledger_sum_t *s)
{
    char  buf[LEDGER_DIGITS];

    fprintf(out, "\"requests\": %llu, \"failed_requests\": %llu, "
            "\"unpriced_requests\": %llu",
            (unsigned long long) s->requests, (unsigned long long) s->failed,
            (unsigned long long) s->unpriced);

    fprintf(out, ", \"input_tokens\": %s", ledger_exact(buf, s->input, 0));
    fprintf(out, ", \"hit_tokens\": %s", ledger_exact(buf, s->hit, 0));
    fprintf(out, ", \"miss_tokens\": %s",
            ledger_exact(buf, s->input - s->hit, 0));
    fprintf(out, ", \"output_tokens\": %s", ledger_exact(buf, s->output, 0));
    fprintf(out, ", \"reasoning_tokens\": %s",
            ledger_exact(buf, s->reasoning, 0));
    fputs(", \"revenue_usd\": ", out);
    print_money(out, 1, s->revenue);
}


/* Names are valid UTF-8: the reader took no other. */

static void
print_string(FILE *out, const char *s)
{
    fputc('"', out);

    for ( /* void */ ; *s != '\0'; s++) {
        if (*s == '"' || *s == '\\') {
            fputc('\\', out);
            fputc(*s, out);

        } else if ((unsigned char) *s < 0x20) {
            fprintf(out, "\\u%04x", (unsigned) *s);

        } else {
            fputc(*s, out);
        }
    }

    fputc('"', out);
}


void
ledger_print_csv(FILE *out, const ledger_report_t *r)
{
    int     kind;
    char    buf[LEDGER_DIGITS];
    size_t  i;

    fputs("kind,name,requests,failed_requests,unpriced_requests,"
          "input_tokens,hit_tokens,miss_tokens,output_tokens,"
          "reasoning_tokens,revenue_usd,cost_usd,profit_usd,profit_ratio,"
          "off_peak_share,damaged_lines\n", out);

    print_csv(out, "total", "", &r->total);
    fputc(',', out);

    if (r->costed) {
        fputs(ledger_exact(buf, r->cost, LEDGER_PICO), out);
        fprintf(out, ",%s", ledger_exact(buf, r->profit, LEDGER_PICO));
        fprintf(out, ",%s", r->rated ? ledger_exact(buf, r->ratio, 4) : "");

    } else {
        fputs(",,", out);
    }

    fprintf(out, ",%s,%llu\n", r->windowed ? print_share(buf, r, 4) : "",
            (unsigned long long) r->damaged);

    for (kind = 0; kind < LEDGER_KINDS; kind++) {
        for (i = 0; i < r->names[kind].n; i++) {
            print_csv(out, print_one[kind], r->names[kind].sum[i].name,
                      &r->names[kind].sum[i]);
            fputs(",,,,,\n", out);
        }
    }
}


static void
print_csv(FILE *out, const char *kind, const char *name,
    const ledger_sum_t *s)
{
    char  buf[LEDGER_DIGITS];

    fprintf(out, "%s,\"", kind);

    for ( /* void */ ; *name != '\0'; name++) {
        if (*name == '"') {
            fputc('"', out);
        }

        fputc(*name, out);
    }

    fprintf(out, "\",%llu,%llu,%llu", (unsigned long long) s->requests,
            (unsigned long long) s->failed, (unsigned long long) s->unpriced);
    fprintf(out, ",%s", ledger_exact(buf, s->input, 0));
    fprintf(out, ",%s", ledger_exact(buf, s->hit, 0));
    fprintf(out, ",%s", ledger_exact(buf, s->input - s->hit, 0));
    fprintf(out, ",%s", ledger_exact(buf, s->output, 0));
    fprintf(out, ",%s", ledger_exact(buf, s->reasoning, 0));
    fprintf(out, ",%s", ledger_exact(buf, s->revenue, LEDGER_PICO));
}


static void
print_money(FILE *out, int known, ledger_int_t v)
{
    char  buf[LEDGER_DIGITS];

    fputs(known ? ledger_exact(buf, v, LEDGER_PICO) : "null", out);
}


static char *
print_time(char *buf, size_t size, int64_t t)
{
    time_t     sec;
    struct tm  tm;

    sec = (time_t) t;

    if (gmtime_r(&sec, &tm) == NULL
        || strftime(buf, size, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
    {
        buf[0] = '\0';
    }

    return buf;
}


/*
 * Of all tokens; `places` 2 makes it percent.  Below 2^63 tokens a request
 * nothing overflows.
 */

static char *
print_share(char *buf, const ledger_report_t *r, unsigned places)
{
    ledger_int_t  all;

    all = r->total.input + r->total.output;

    return ledger_exact(buf, all != 0 ? r->off_peak * 10000 / all : 0,
                        places);
}
