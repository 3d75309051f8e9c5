/*
 * Time zones, from files of the tz database.
 */

#include <stdio.h>
#include <string.h>

#include "ledger_zone.h"


#define ZONE_HEADER      44
#define ZONE_TYPE        6           /* bytes of a type */
#define ZONE_OFFSET_MAX  (26 * 3600)
#define ZONE_HOURS_MAX   167         /* of a rule's time, a week less one */

typedef struct {
    uint32_t        utc;             /* in the header's order */
    uint32_t        standard;
    uint32_t        leaps;
    uint32_t        times;
    uint32_t        types;
    uint32_t        names;
} zone_counts_t;


static int zone_header(const uint8_t *data, size_t len,
    zone_counts_t *counts);
static size_t zone_size(const zone_counts_t *counts, size_t wide);
static int zone_check(const ledger_zone_t *zone, const zone_counts_t *counts);
static int zone_rule(ledger_zone_t *zone, const char *p, const char *end);
static const char *zone_name(const char *p, const char *end);
static const char *zone_time(const char *p, const char *end, int hours,
    int32_t *time);
static const char *zone_date(const char *p, const char *end,
    ledger_date_t *date);
static const char *zone_number(const char *p, const char *end, int min,
    int max, int *n);
static int64_t zone_moment(const ledger_date_t *date, int64_t year);
static int zone_leap(int64_t year);
static int64_t zone_year(int64_t time);
static int64_t zone_floor(int64_t a, int64_t b);
static uint32_t zone_be32(const uint8_t *p);
static int64_t zone_at(const ledger_zone_t *zone, uint32_t i);
static int32_t zone_type(const ledger_zone_t *zone, uint32_t type);


int
ledger_zone_parse(ledger_zone_t *zone, const uint8_t *data, size_t len,
    char *err)
{
    size_t          size;
    const char     *p, *end;
    zone_counts_t   counts;

    memset(zone, 0, sizeof(ledger_zone_t));

    if (zone_header(data, len, &counts) != 0) {
        snprintf(err, LEDGER_ZONE_ERR, "it is no time zone file");
        return -1;
    }

    size = zone_size(&counts, 4);

    if (size > len) {
        goto cut;
    }

    if (data[4] >= '2') {
        data += size;
        len -= size;
        zone->wide = 1;

        if (zone_header(data, len, &counts) != 0) {
            goto cut;
        }

        size = zone_size(&counts, 8);

        if (size > len) {
            goto cut;
        }
    }

    zone->n = counts.times;
    zone->times = data + ZONE_HEADER;
    zone->indices = zone->times
                    + (size_t) counts.times * (zone->wide ? 8 : 4);
    zone->types = zone->indices + counts.times;

    if (counts.leaps != 0) {
        snprintf(err, LEDGER_ZONE_ERR, "its times count leap seconds");
        return -1;
    }

    if (zone_check(zone, &counts) != 0) {
        snprintf(err, LEDGER_ZONE_ERR, "its changes are damaged");
        return -1;
    }

    if (!zone->wide) {
        return 0;
    }

    p = (const char *) data + size;
    end = (const char *) data + len;

    if (p == end || *p++ != '\n') {
        goto cut;
    }

    end = memchr(p, '\n', (size_t) (end - p));

    if (end == NULL) {
        goto cut;
    }

    if (p != end && zone_rule(zone, p, end) != 0) {
        snprintf(err, LEDGER_ZONE_ERR, "its rule \"%.*s\" is not understood",
                 end - p < 64 ? (int) (end - p) : 64, p);
        return -1;
    }

    return 0;

cut:

    snprintf(err, LEDGER_ZONE_ERR, "it is cut off");

    return -1;
}


static int
zone_header(const uint8_t *data, size_t len, zone_counts_t *counts)
{
    if (len < ZONE_HEADER || memcmp(data, "TZif", 4) != 0
        || (data[4] != 0 && (data[4] < '2' || data[4] > '9')))
    {
        return -1;
    }

    counts->utc = zone_be32(data + 20);
    counts->standard = zone_be32(data + 24);
    counts->leaps = zone_be32(data + 28);
    counts->times = zone_be32(data + 32);
    counts->types = zone_be32(data + 36);
    counts->names = zone_be32(data + 40);

    return 0;
}


/* Of a header and what it counts; 32 bits each, so it cannot overflow. */

static size_t
zone_size(const zone_counts_t *counts, size_t wide)
{
    return ZONE_HEADER + (size_t) counts->times * (wide + 1)
           + (size_t) counts->types * ZONE_TYPE + counts->names
           + (size_t) counts->leaps * (wide + 4) + counts->standard
           + counts->utc;
}


static int
zone_check(const ledger_zone_t *zone, const zone_counts_t *counts)
{
    int32_t   offset;
    uint32_t  i;

    if (counts->types == 0 || counts->types > 256) {
        return -1;
    }

    for (i = 0; i < counts->types; i++) {
        offset = zone_type(zone, i);

        if (offset < -ZONE_OFFSET_MAX || offset > ZONE_OFFSET_MAX) {
            return -1;
        }
    }

    for (i = 0; i < zone->n; i++) {
        if (zone->indices[i] >= counts->types
            || (i != 0 && zone_at(zone, i) <= zone_at(zone, i - 1)))
        {
            return -1;
        }
    }

    return 0;
}


/* Offsets of a rule are west of UTC. */

static int
zone_rule(ledger_zone_t *zone, const char *p, const char *end)
{
    int32_t  west;

    p = zone_name(p, end);

    if (p == NULL || (p = zone_time(p, end, 24, &west)) == NULL) {
        return -1;
    }

    zone->ruled = 1;
    zone->standard = -west;

    if (p == end) {
        return 0;
    }

    p = zone_name(p, end);

    if (p == NULL || p == end) {
        return -1;
    }

    zone->saving = 1;
    zone->daylight = zone->standard + 3600;

    if (*p != ',') {
        p = zone_time(p, end, 24, &west);

        if (p == NULL) {
            return -1;
        }

        zone->daylight = -west;
    }

    p = zone_date(p, end, &zone->begin);

    if (p == NULL) {
        return -1;
    }

    return zone_date(p, end, &zone->end) == end ? 0 : -1;
}


/* Three letters or more, or anything between "<" and ">". */

static const char *
zone_name(const char *p, const char *end)
{
    const char  *start;

    if (p < end && *p == '<') {
        p = memchr(p, '>', (size_t) (end - p));
        return p != NULL ? p + 1 : NULL;
    }

    for (start = p; p < end; p++) {
        if ((*p < 'a' || *p > 'z') && (*p < 'A' || *p > 'Z')) {
            break;
        }
    }

    return p - start >= 3 ? p : NULL;
}


/* [+-]h[:mm[:ss]] */

static const char *
zone_time(const char *p, const char *end, int hours, int32_t *time)
{
    int  h, m, s, sign;

    m = 0;
    s = 0;
    sign = 1;

    if (p < end && (*p == '+' || *p == '-')) {
        sign = *p++ == '-' ? -1 : 1;
    }

    p = zone_number(p, end, 0, hours, &h);

    if (p != NULL && p < end && *p == ':') {
        p = zone_number(p + 1, end, 0, 59, &m);

        if (p != NULL && p < end && *p == ':') {
            p = zone_number(p + 1, end, 0, 59, &s);
        }
    }

    *time = sign * (h * 3600 + m * 60 + s);

    return p;
}


/* ",Mm.w.d", ",Jn" or ",n", and a time after "/", else 02:00 */

static const char *
zone_date(const char *p, const char *end, ledger_date_t *date)
{
    if (end - p < 2 || *p++ != ',') {
        return NULL;
    }

    date->time = 7200;

    if (*p == 'M') {
        date->kind = 'M';
        p = zone_number(p + 1, end, 1, 12, &date->month);

        if (p == NULL || p == end || *p != '.') {
            return NULL;
        }

        p = zone_number(p + 1, end, 1, 5, &date->week);

        if (p == NULL || p == end || *p != '.') {
            return NULL;
        }

        p = zone_number(p + 1, end, 0, 6, &date->day);

    } else if (*p == 'J') {
        date->kind = 'J';
        p = zone_number(p + 1, end, 1, 365, &date->day);

    } else {
        date->kind = '0';
        p = zone_number(p, end, 0, 365, &date->day);
    }

    if (p != NULL && p < end && *p == '/') {
        p = zone_time(p + 1, end, ZONE_HOURS_MAX, &date->time);
    }

    return p;
}


static const char *
zone_number(const char *p, const char *end, int min, int max, int *n)
{
    int  digits;

    *n = 0;

    for (digits = 0; p < end && *p >= '0' && *p <= '9' && digits < 4;
         p++, digits++)
    {
        *n = *n * 10 + (*p - '0');
    }

    return digits != 0 && *n >= min && *n <= max ? p : NULL;
}


int32_t
ledger_zone_offset(const ledger_zone_t *zone, int64_t time)
{
    int64_t   year, begin, end;
    uint32_t  low, high, mid;

    if (zone->n != 0 && time < zone_at(zone, 0)) {
        return zone_type(zone, 0);
    }

    if (zone->n == 0 || time >= zone_at(zone, zone->n - 1)) {

        if (!zone->ruled) {
            return zone_type(zone, zone->n == 0 ? 0
                                   : zone->indices[zone->n - 1]);
        }

        if (!zone->saving) {
            return zone->standard;
        }

        year = zone_year(time + zone->standard);
        begin = zone_moment(&zone->begin, year) - zone->standard;
        end = zone_moment(&zone->end, year) - zone->daylight;

        if (begin < end ? time >= begin && time < end
                        : time >= begin || time < end)
        {
            return zone->daylight;
        }

        return zone->standard;
    }

    /* The last change that is not later. */

    low = 0;
    high = zone->n - 1;

    while (high - low > 1) {
        mid = low + (high - low) / 2;

        if (zone_at(zone, mid) <= time) {
            low = mid;

        } else {
            high = mid;
        }
    }

    return zone_type(zone, zone->indices[low]);
}


/* When it is that date and time, as if local time were UTC. */

static int64_t
zone_moment(const ledger_date_t *date, int64_t year)
{
    int64_t  day, last;

    switch (date->kind) {

    case 'M':
        day = ledger_days(year, date->month, 1);

        /* 1970 began on a Thursday, day 4 */

        day += (date->day - (day % 7 + 7 + 4) % 7 + 7) % 7
               + (date->week - 1) * 7;

        last = date->month == 12 ? ledger_days(year + 1, 1, 1)
                                 : ledger_days(year, date->month + 1, 1);

        if (day >= last) {
            day -= 7;
        }

        break;

    case 'J':
        day = ledger_days(year, 1, 1) + date->day - 1;

        /* February 29 is never counted */

        if (date->day >= 60 && zone_leap(year)) {
            day++;
        }

        break;

    default:
        day = ledger_days(year, 1, 1) + date->day;
    }

    return day * 86400 + date->time;
}


static int
zone_leap(int64_t year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}


static int64_t
zone_year(int64_t time)
{
    int64_t  day, year;

    day = zone_floor(time, 86400);
    year = 1970 + zone_floor(day * 400, 146097);

    while (ledger_days(year, 1, 1) > day) {
        year--;
    }

    while (ledger_days(year + 1, 1, 1) <= day) {
        year++;
    }

    return year;
}


static int64_t
zone_floor(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}


/* Years begin in March, so that the leap day is the last one. */

int64_t
ledger_days(int64_t year, int month, int day)
{
    int64_t  y;

    y = month > 2 ? year : year - 1;

    return y * 365 + zone_floor(y, 4) - zone_floor(y, 100)
           + zone_floor(y, 400)
           + (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5
           + day - 1 - 719468;
}


static uint32_t
zone_be32(const uint8_t *p)
{
    return (uint32_t) p[0] << 24 | (uint32_t) p[1] << 16
           | (uint32_t) p[2] << 8 | p[3];
}


/* The time of a change. */

static int64_t
zone_at(const ledger_zone_t *zone, uint32_t i)
{
    const uint8_t  *p;

    if (!zone->wide) {
        return (int32_t) zone_be32(zone->times + (size_t) i * 4);
    }

    p = zone->times + (size_t) i * 8;

    return (int64_t) ((uint64_t) zone_be32(p) << 32 | zone_be32(p + 4));
}


/* The offset of a type. */

static int32_t
zone_type(const ledger_zone_t *zone, uint32_t type)
{
    return (int32_t) zone_be32(zone->types + (size_t) type * ZONE_TYPE);
}
