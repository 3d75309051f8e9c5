/*
 * What the files of llm-ledger share.
 *
 *     main.c              the commands
 *     ledger_usage.c      one line of a usage log
 *     ledger_read.c       files of such lines, plain or gzip
 *     ledger_sum.c        sums, one for each account, tier and model
 *     ledger_report.c     llm-ledger report
 *     ledger_print.c      its table, JSON and CSV
 *     ledger_balance.c    llm-ledger credit, balance and compact
 *     ledger_key.c        llm-ledger key
 *
 * These have headers of their own, for nginx's module too:
 *
 *     ledger_decimal.c    exact decimal numbers
 *     ledger_zone.c       time zones
 *     ledger_price.c      prices, hours of a day, what a request costs
 *     ledger_journal.c    the journal of balances
 *
 * A report's money is whole picodollars (10^-12 US dollars), which is what a
 * token costs at a price of one microdollar per million tokens: nothing is
 * ever rounded before it is printed.
 */

#ifndef LEDGER_LEDGER_H
#define LEDGER_LEDGER_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "json/json.h"
#include "ledger_decimal.h"
#include "ledger_price.h"


#define LEDGER_EXIT_USAGE   2        /* exit status of a wrong command line */

#define LEDGER_LINE         65536    /* bytes of a line at most */
#define LEDGER_NAME         256      /* of a name, its end included */
#define LEDGER_NAMES        1048576  /* of accounts, tiers or models */


/* "llm-ledger: …" on stderr. */
void ledger_error(const char *fmt, ...)
    __attribute__((format(printf, 1, 2)));


/* One request.  Names are empty and counts 0 where the line has none. */

typedef struct {
    int64_t       time;              /* seconds since 1970, UTC */
    uint64_t      status;            /* HTTP's, 0: none */
    uint64_t      prompt;            /* tokens; cached ones included */
    uint64_t      cached;
    uint64_t      completion;        /* reasoning included */
    uint64_t      reasoning;
    int           priced;            /* has a cost */
    ledger_int_t  cost;
    char          account[LEDGER_NAME];
    char          tier[LEDGER_NAME];
    char          model[LEDGER_NAME];
} ledger_usage_t;

/* A line without its end: 0, or -1 with what is wrong in `err` (ERR_LEN). */
int ledger_usage(const char *line, size_t len, ledger_usage_t *u, char *err);


/*
 * Calls `add` for each line of a file, plain or gzip, "-" is stdin.  Damaged
 * lines are named on stderr and counted.  0, or -1 after a message, also if
 * `add` returned something else than 0.
 */
int ledger_read(const char *path, int (*add)(void *data,
    const ledger_usage_t *u), void *data, uint64_t *damaged);


typedef struct {
    char         *name;
    uint64_t      requests;
    uint64_t      failed;            /* status 400 and above */
    uint64_t      unpriced;          /* with tokens and without a cost */
    ledger_int_t  input;
    ledger_int_t  hit;
    ledger_int_t  output;
    ledger_int_t  reasoning;
    ledger_int_t  cost;              /* as logged */
    ledger_int_t  revenue;           /* of ledger_sum_price() */
} ledger_sum_t;

typedef struct {
    ledger_sum_t  *sum;
    size_t         n;
    uint32_t      *slot;             /* index + 1; a power of two of them */
    size_t         slots;
} ledger_names_t;

void ledger_sum_add(ledger_sum_t *s, const ledger_usage_t *u);

/* The revenue at `price`, NULL: as logged; -1 if it does not fit. */
int ledger_sum_price(ledger_sum_t *s, const ledger_price_t *price);

/*
 * The sum of a name, made if there is none; with LEDGER_NAMES of them the
 * rest share "(others)".  NULL without memory.
 */
ledger_sum_t *ledger_names_get(ledger_names_t *names, const char *name);

/* By revenue, tokens, name; nothing can be looked up after it. */
void ledger_names_sort(ledger_names_t *names);
void ledger_names_free(ledger_names_t *names);


enum { LEDGER_ACCOUNTS = 0, LEDGER_TIERS, LEDGER_MODELS, LEDGER_KINDS };

typedef struct {
    ledger_sum_t    total;
    ledger_names_t  names[LEDGER_KINDS];
    uint64_t        damaged;         /* lines */
    int64_t         from;            /* first and last request */
    int64_t         to;

    int             windowed;        /* off-peak minutes of the UTC day */
    ledger_hours_t  window;
    ledger_int_t    off_peak;        /* tokens */

    int             repriced;
    ledger_price_t  price;

    int             costed;          /* the nodes are known */
    int             peaked;          /* and their peak */
    ledger_int_t    nodes_mean;      /* micro */
    ledger_int_t    nodes_peak;
    ledger_int_t    cost;            /* picodollars */
    ledger_int_t    profit;
    int             rated;
    ledger_int_t    ratio;           /* profit by cost, 10^-4 */
} ledger_report_t;

int ledger_report(int argc, char **argv);
int ledger_key(int argc, char **argv);

void ledger_print_table(FILE *out, const ledger_report_t *r);
void ledger_print_json(FILE *out, const ledger_report_t *r);
void ledger_print_csv(FILE *out, const ledger_report_t *r);

/* A name without control characters, those of two bytes too; its width. */
int ledger_print_plain(FILE *out, const char *name);


/* ledger_balance.c: the commands. */

int ledger_credit(int argc, char **argv);
int ledger_balances(int argc, char **argv);
int ledger_compact(int argc, char **argv);

#endif /* LEDGER_LEDGER_H */
