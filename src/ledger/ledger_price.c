/*
 * Prices, hours of a day, and what a request costs.
 */

#include "ledger_price.h"


/* picodollars by percent by percent, of a nanodollar */
#define PRICE_UNIT  ((ledger_int_t) 1000 * 100 * 100)


static int price_minute(const char **text, uint32_t *minute);


int
ledger_hours_parse(const char *text, ledger_hours_t *hours)
{
    return price_minute(&text, &hours->from) != 0 || *text++ != '-'
           || price_minute(&text, &hours->to) != 0 || *text != '\0'
           || hours->from == hours->to
           ? -1 : 0;
}


static int
price_minute(const char **text, uint32_t *minute)
{
    int          i;
    uint32_t     h, m;
    const char  *s;

    s = *text;

    for (i = 0; i < 5; i++) {
        if (i == 2 ? s[i] != ':' : s[i] < '0' || s[i] > '9') {
            return -1;
        }
    }

    h = (uint32_t) ((s[0] - '0') * 10 + (s[1] - '0'));
    m = (uint32_t) ((s[3] - '0') * 10 + (s[4] - '0'));

    if (h > 23 || m > 59) {
        return -1;
    }

    *minute = h * 60 + m;
    *text = s + 5;

    return 0;
}


int
ledger_hours_has(const ledger_hours_t *hours, const ledger_zone_t *zone,
    int64_t time)
{
    int64_t  minute;

    if (zone != NULL) {
        time += ledger_zone_offset(zone, time);
    }

    minute = (time % 86400 + 86400) % 86400 / 60;

    return hours->from < hours->to
           ? minute >= hours->from && minute < hours->to
           : minute >= hours->from || minute < hours->to;
}


int64_t
ledger_price_cost(const ledger_price_t *price,
    const ledger_percent_t *percent, uint64_t hit, uint64_t miss,
    uint64_t output)
{
    ledger_int_t  sum;

    sum = (ledger_int_t) hit * price->hit * percent->hit
          + (ledger_int_t) miss * price->miss * percent->miss
          + (ledger_int_t) output * price->output * percent->output;

    sum = (sum * percent->all + PRICE_UNIT / 2) / PRICE_UNIT;

    return sum > INT64_MAX ? INT64_MAX : (int64_t) sum;
}
