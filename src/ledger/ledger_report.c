/*
 * llm-ledger report: options, and a pass over all files.
 */

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "ledger.h"


#define REPORT_PAIRS      3
#define REPORT_HOURS      24         /* of a report's nodes: a day */
#define REPORT_NUMBER_MAX ((ledger_int_t) 1000000000000000)

typedef struct {
    ledger_report_t  r;
    ledger_int_t     gpus;           /* of a node */
    ledger_int_t     gpu_hour;       /* microdollars */
    void           (*print)(FILE *out, const ledger_report_t *r);
} report_t;


static int report_options(report_t *rep, int argc, char **argv);
static int report_price(report_t *rep, const char *arg);
static int report_nodes(report_t *rep, const char *arg);
static int report_pairs(const char *option, const char *text,
    const char *const *names, ledger_int_t *values, unsigned *seen);
static int report_format(report_t *rep, const char *text);
static int report_add(void *data, const ledger_usage_t *u);
static int report_named(report_t *rep, int kind, const char *name,
    const ledger_usage_t *u);
static int report_finish(report_t *rep);
static void report_help(void);


int
ledger_report(int argc, char **argv)
{
    int       rc, i;
    report_t  rep;

    memset(&rep, 0, sizeof(report_t));
    rep.gpus = 8;
    rep.gpu_hour = 2000000;
    rep.print = ledger_print_table;

    rc = report_options(&rep, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    rc = 1;

    if (optind == argc) {
        if (ledger_read("-", report_add, &rep, &rep.r.damaged) != 0) {
            goto done;
        }
    }

    for (i = optind; i < argc; i++) {
        if (ledger_read(argv[i], report_add, &rep, &rep.r.damaged) != 0) {
            goto done;
        }
    }

    if (report_finish(&rep) != 0) {
        ledger_error("revenue or cost is too large to be added up");
        goto done;
    }

    rep.print(stdout, &rep.r);

    if (fflush(stdout) != 0 || ferror(stdout)) {
        ledger_error("the report cannot be written");
        goto done;
    }

    rc = 0;

done:

    for (i = 0; i < LEDGER_KINDS; i++) {
        ledger_names_free(&rep.r.names[i]);
    }

    return rc;
}


/* -1 to go on, or an exit status. */

static int
report_options(report_t *rep, int argc, char **argv)
{
    int  c;

    static const struct option  options[] = {
        { "price", required_argument, NULL, 'p' },
        { "nodes", required_argument, NULL, 'n' },
        { "gpus-per-node", required_argument, NULL, 'g' },
        { "gpu-hour", required_argument, NULL, 'u' },
        { "off-peak", required_argument, NULL, 'o' },
        { "format", required_argument, NULL, 'f' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 }
    };

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {

        case 'p':
            if (report_price(rep, optarg) != 0) {
                return LEDGER_EXIT_USAGE;
            }

            break;

        case 'n':
            if (report_nodes(rep, optarg) != 0) {
                return LEDGER_EXIT_USAGE;
            }

            break;

        case 'g':
            if (ledger_decimal(optarg, 0, 1000000, &rep->gpus) != 0
                || rep->gpus == 0)
            {
                ledger_error("--gpus-per-node \"%s\" is no number from 1 to "
                             "1000000", optarg);
                return LEDGER_EXIT_USAGE;
            }

            break;

        case 'u':
            if (ledger_decimal(optarg, LEDGER_MICRO, REPORT_NUMBER_MAX,
                               &rep->gpu_hour) != 0)
            {
                ledger_error("--gpu-hour \"%s\" is no number of dollars up "
                             "to 10^9 with at most %d decimal places", optarg,
                             LEDGER_MICRO);
                return LEDGER_EXIT_USAGE;
            }

            break;

        case 'o':
            if (ledger_hours_parse(optarg, &rep->r.window) != 0) {
                ledger_error("--off-peak \"%s\" is not HH:MM-HH:MM", optarg);
                return LEDGER_EXIT_USAGE;
            }

            rep->r.windowed = 1;
            break;

        case 'f':
            if (report_format(rep, optarg) != 0) {
                ledger_error("--format \"%s\" is not table, json or csv",
                             optarg);
                return LEDGER_EXIT_USAGE;
            }

            break;

        case 'h':
            report_help();
            return 0;

        default:
            fputs("See llm-ledger report --help.\n", stderr);
            return LEDGER_EXIT_USAGE;
        }
    }

    return -1;
}


static int
report_price(report_t *rep, const char *arg)
{
    unsigned      seen;
    ledger_int_t  v[REPORT_PAIRS];

    static const char *const  names[] = { "hit", "miss", "output", NULL };

    if (report_pairs("price", arg, names, v, &seen) != 0) {
        return -1;
    }

    if (seen != 7) {
        ledger_error("--price \"%s\": hit, miss and output are expected",
                     arg);
        return -1;
    }

    rep->r.repriced = 1;
    rep->r.price.hit = (int64_t) v[0];
    rep->r.price.miss = (int64_t) v[1];
    rep->r.price.output = (int64_t) v[2];

    return 0;
}


static int
report_nodes(report_t *rep, const char *arg)
{
    unsigned      seen;
    ledger_int_t  v[REPORT_PAIRS];

    static const char *const  names[] = { "mean", "peak", NULL };

    if (report_pairs("nodes", arg, names, v, &seen) != 0) {
        return -1;
    }

    if (!(seen & 1)) {
        ledger_error("--nodes \"%s\": mean is expected", arg);
        return -1;
    }

    rep->r.costed = 1;
    rep->r.peaked = (seen & 2) != 0;
    rep->r.nodes_mean = v[0];
    rep->r.nodes_peak = v[1];

    if (rep->r.peaked && v[1] < v[0]) {
        ledger_error("--nodes \"%s\": the peak is below the mean", arg);
        return -1;
    }

    return 0;
}


/* "name=number,name=number", each at most once; those that stand in `seen`. */

static int
report_pairs(const char *option, const char *text, const char *const *names,
    ledger_int_t *values, unsigned *seen)
{
    char         number[LEDGER_DIGITS];
    size_t       i, len, name;
    const char  *p, *eq;

    *seen = 0;
    values[0] = 0;
    values[1] = 0;

    for (p = text; /* void */ ; p += len + 1) {
        len = strcspn(p, ",");
        eq = memchr(p, '=', len);
        name = eq != NULL ? (size_t) (eq - p) : len;

        for (i = 0; names[i] != NULL; i++) {
            if (strlen(names[i]) == name && memcmp(names[i], p, name) == 0) {
                break;
            }
        }

        if (names[i] == NULL || eq == NULL) {
            ledger_error("--%s \"%s\": \"%.*s\" is unknown", option, text,
                         (int) len, p);
            return -1;
        }

        if (*seen & 1U << i) {
            ledger_error("--%s \"%s\": %s stands twice", option, text,
                         names[i]);
            return -1;
        }

        *seen |= 1U << i;
        name = len - name - 1;

        if (name >= sizeof(number)) {
            name = 0;
        }

        memcpy(number, eq + 1, name);
        number[name] = '\0';

        if (ledger_decimal(number, LEDGER_MICRO, REPORT_NUMBER_MAX,
                           &values[i]) != 0)
        {
            ledger_error("--%s \"%s\": %s is no number up to 10^9 with at "
                         "most %d decimal places", option, text, names[i],
                         LEDGER_MICRO);
            return -1;
        }

        if (p[len] == '\0') {
            return 0;
        }
    }
}


static int
report_format(report_t *rep, const char *text)
{
    size_t  i;

    static const struct {
        const char  *name;
        void       (*print)(FILE *out, const ledger_report_t *r);
    } formats[] = {
        { "table", ledger_print_table },
        { "json", ledger_print_json },
        { "csv", ledger_print_csv }
    };

    for (i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
        if (strcmp(formats[i].name, text) == 0) {
            rep->print = formats[i].print;
            return 0;
        }
    }

    return -1;
}


static int
report_add(void *data, const ledger_usage_t *u)
{
    report_t         *rep;
    ledger_report_t  *r;

    rep = data;
    r = &rep->r;

    if (r->total.requests == 0 || u->time < r->from) {
        r->from = u->time;
    }

    if (r->total.requests == 0 || u->time > r->to) {
        r->to = u->time;
    }

    ledger_sum_add(&r->total, u);

    if (r->windowed && ledger_hours_has(&r->window, NULL, u->time)) {
        r->off_peak += (ledger_int_t) u->prompt + u->completion;
    }

    return report_named(rep, LEDGER_ACCOUNTS, u->account, u) != 0
           || report_named(rep, LEDGER_TIERS, u->tier, u) != 0
           || report_named(rep, LEDGER_MODELS, u->model, u) != 0
           ? -1 : 0;
}


static int
report_named(report_t *rep, int kind, const char *name,
    const ledger_usage_t *u)
{
    ledger_sum_t  *s;

    s = ledger_names_get(&rep->r.names[kind], name);

    if (s == NULL) {
        ledger_error("out of memory");
        return -1;
    }

    ledger_sum_add(s, u);

    return 0;
}


/* Revenue, cost and what is left; -1 if one does not fit. */

static int
report_finish(report_t *rep)
{
    int                    kind;
    size_t                 i;
    ledger_int_t           n;
    ledger_report_t       *r;
    const ledger_price_t  *price;

    r = &rep->r;
    price = r->repriced ? &r->price : NULL;

    if (ledger_sum_price(&r->total, price) != 0) {
        return -1;
    }

    for (kind = 0; kind < LEDGER_KINDS; kind++) {
        for (i = 0; i < r->names[kind].n; i++) {
            if (ledger_sum_price(&r->names[kind].sum[i], price) != 0) {
                return -1;
            }
        }

        ledger_names_sort(&r->names[kind]);
    }

    if (!r->costed) {
        return 0;
    }

    /* micronodes times microdollars are picodollars */

    if (__builtin_mul_overflow(r->nodes_mean, rep->gpu_hour, &r->cost)
        || __builtin_mul_overflow(r->cost, rep->gpus * REPORT_HOURS,
                                  &r->cost)
        || __builtin_sub_overflow(r->total.revenue, r->cost, &r->profit))
    {
        return -1;
    }

    if (r->cost != 0 && !__builtin_mul_overflow(r->profit, 10000, &n)) {
        r->rated = 1;
        r->ratio = n / r->cost;
    }

    return 0;
}


static void
report_help(void)
{
    fputs(
"Usage: llm-ledger report [OPTION]... [FILE]...\n"
"\n"
"Adds up usage logs, plain or gzip: JSON objects, one a line, as nginx's\n"
"log_format with escape=json writes them.  Without FILE, or with \"-\", it\n"
"reads standard input.  A line needs \"time\" (ISO 8601); what it may have is\n"
"account, tier, model, status, prompt_tokens, cached_tokens (of these),\n"
"completion_tokens, reasoning_tokens (of these) and cost (US dollars).\n"
"\n"
"Lines that are none are named on standard error, counted and skipped; a file\n"
"that cannot be read to its end ends the program with status 1 and no report.\n"
"\n"
"  --price hit=X,miss=X,output=X\n"
"                        dollars per million tokens, at most 6 decimal places,\n"
"                        for all tokens; without it the revenue is the sum of\n"
"                        \"cost\", and requests without one are counted\n"
"  --nodes mean=X[,peak=X]\n"
"                        nodes that ran over a day of 24 hours; without it\n"
"                        there is no cost and no profit\n"
"  --gpus-per-node N     8\n"
"  --gpu-hour X          dollars, 2\n"
"  --off-peak HH:MM-HH:MM\n"
"                        UTC, may cross midnight: the share of all tokens in\n"
"                        requests that ended in it\n"
"  --format table|json|csv\n"
"                        table rounds, half away from zero; json and csv give\n"
"                        each dollar amount exactly\n"
"  --help                this text\n",
        stdout);
}
