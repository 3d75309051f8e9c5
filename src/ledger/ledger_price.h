/*
 * Prices, the hours in which they differ, and what a request costs.
 *
 * A price is in picodollars for a token, which are microdollars for a million
 * tokens.  What a request costs is exact up to one rounding at its end, to
 * whole nanodollars (10^-9 US dollars), half up.
 */

#ifndef LEDGER_PRICE_H
#define LEDGER_PRICE_H

#include <stdint.h>

#include "ledger_decimal.h"
#include "ledger_zone.h"


#define LEDGER_PERCENT_MAX  1000
#define LEDGER_TOKENS_MAX   INT64_MAX    /* of one kind */
#define LEDGER_PRICE_MAX    (INT64_C(1000000) * 1000000)

typedef struct {
    int64_t       hit;
    int64_t       miss;
    int64_t       output;
} ledger_price_t;

/* Of a day, in local time: minutes from `from` on, before `to`. */

typedef struct {
    uint32_t      from;
    uint32_t      to;                /* below `from`: across midnight */
} ledger_hours_t;

/* "HH:MM-HH:MM": 0, or -1. */
int ledger_hours_parse(const char *text, ledger_hours_t *hours);

/* Whether `time` is within; `zone` NULL is UTC. */
int ledger_hours_has(const ledger_hours_t *hours, const ledger_zone_t *zone,
    int64_t time);

/* Percent of each price; `all` of their sum. */

typedef struct {
    uint32_t      hit;
    uint32_t      miss;
    uint32_t      output;
    uint32_t      all;
} ledger_percent_t;

/*
 * Nanodollars; prices up to LEDGER_PRICE_MAX, tokens up to LEDGER_TOKENS_MAX,
 * percents up to LEDGER_PERCENT_MAX.  INT64_MAX if it is more.
 */
int64_t ledger_price_cost(const ledger_price_t *price,
    const ledger_percent_t *percent, uint64_t hit, uint64_t miss,
    uint64_t output);


#endif /* LEDGER_PRICE_H */
