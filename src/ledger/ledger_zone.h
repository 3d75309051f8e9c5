/*
 * Time zones: the offset of local time from UTC, from a file of the tz
 * database (TZif, RFC 8536, versions 1 to 4).
 *
 * A file is kept as it is and read where it lies:
 *
 *     header          "TZif", version, 15 bytes, six counts of 32 bits
 *     times           moments at which the offset changes, ascending
 *     indices         one byte each: the type that holds from then on
 *     types           offset (32 bits), whether it is daylight time, name
 *     names, leap seconds, indicators                       (not used)
 *
 * once with times of 32 bits and, from version 2 on, again with 64 bits and
 * followed by a rule in POSIX's form for all later times, between newlines:
 * "CET-1CEST,M3.5.0,M10.5.0/3".  All integers are big-endian.
 */

#ifndef LEDGER_ZONE_H
#define LEDGER_ZONE_H

#include <stddef.h>
#include <stdint.h>


#define LEDGER_ZONE_ERR   128
#define LEDGER_ZONE_FILE  (1 << 20)      /* bytes of a file at most */

/* A day of each year and a time on it, which may lie beyond the day. */

typedef struct {
    int        kind;                 /* 'M', 'J' or '0' */
    int        month;
    int        week;                 /* 5: the last one */
    int        day;                  /* of the week, or of the year */
    int32_t    time;                 /* seconds, local */
} ledger_date_t;

typedef struct {
    const uint8_t  *times;
    const uint8_t  *indices;
    const uint8_t  *types;
    uint32_t        n;               /* changes */
    int             wide;            /* their times have 64 bits */

    int             ruled;           /* what follows holds after the last */
    int             saving;          /* there is daylight time */
    int32_t         standard;        /* seconds east of UTC */
    int32_t         daylight;
    ledger_date_t   begin;           /* of daylight time */
    ledger_date_t   end;
} ledger_zone_t;


/*
 * Checks `len` bytes, which must stay: 0, or -1 with the reason in `err`
 * (LEDGER_ZONE_ERR).
 */
int ledger_zone_parse(ledger_zone_t *zone, const uint8_t *data, size_t len,
    char *err);

/* Seconds to be added to UTC at `time`, seconds since 1970. */
int32_t ledger_zone_offset(const ledger_zone_t *zone, int64_t time);

/* Days since 1970 of a date. */
int64_t ledger_days(int64_t year, int month, int day);


#endif /* LEDGER_ZONE_H */
