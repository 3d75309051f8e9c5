/*
 * Time zones against the C library's: every zone of the tz database, rules
 * alone, hours of a day across midnight and daylight time's changes, damage.
 */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>
#include <sys/stat.h>
#include <time.h>

#include <cmocka.h>

#include "ledger/ledger_price.h"
#include "ledger/ledger_zone.h"

#include "unit/random.h"


#define ZONES   "/usr/share/zoneinfo"
#define YEAR    31556952
#define TIMES   300

static uint64_t  state;


/* Seconds since 1970 of a time in the zone that TZ names. */

static int64_t
local(int year, int month, int day, int hour, int minute, int second)
{
    struct tm  tm;

    memset(&tm, 0, sizeof(tm));
    tm.tm_year = year - 1900;
    tm.tm_mon = month - 1;
    tm.tm_mday = day;
    tm.tm_hour = hour;
    tm.tm_min = minute;
    tm.tm_sec = second;
    tm.tm_isdst = -1;

    return mktime(&tm);
}


static void
library_zone(const char *name)
{
    assert_int_equal(setenv("TZ", name, 1), 0);
    tzset();
}


static int32_t
library_offset(int64_t time)
{
    time_t     t;
    struct tm  tm;

    t = time;
    assert_non_null(localtime_r(&t, &tm));

    return (int32_t) tm.tm_gmtoff;
}


/* A file, or NULL if it is none of a time zone. */

static uint8_t *
load(const char *path, size_t *len)
{
    FILE         *f;
    uint8_t      *data;
    struct stat   st;

    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) {
        return NULL;
    }

    f = fopen(path, "rb");
    assert_non_null(f);

    *len = (size_t) st.st_size;
    data = malloc(*len + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *len, f), *len);
    fclose(f);

    if (*len < 4 || memcmp(data, "TZif", 4) != 0) {
        free(data);
        return NULL;
    }

    return data;
}


static uint8_t *
load_zone(ledger_zone_t *zone, const char *name)
{
    char      path[600], err[LEDGER_ZONE_ERR];
    size_t    len;
    uint8_t  *data;

    snprintf(path, sizeof(path), ZONES "/%s", name);
    data = load(path, &len);
    assert_non_null(data);
    assert_int_equal(ledger_zone_parse(zone, data, len, err), 0);
    library_zone(name);

    return data;
}


static void
compare(const ledger_zone_t *zone, const char *name, int64_t time)
{
    int32_t  want, got;

    want = library_offset(time);
    got = ledger_zone_offset(zone, time);

    if (want != got) {
        print_error("%s at %lld: %d, not %d\n", name, (long long) time, got,
                    want);
        assert_int_equal(got, want);
    }
}


/* From 1970 on; zones of the last century are told of in several ways. */

static void
compare_many(const ledger_zone_t *zone, const char *name)
{
    int      i;
    int64_t  time;

    for (i = 0; i < TIMES; i++) {
        time = (int64_t) (random_next(&state)
                          % ((i % 2 ? 60ULL : 400ULL) * YEAR));
        compare(zone, name, time);
    }
}


static int
walk(const char *below)
{
    int             n;
    DIR            *dir;
    char            path[300], err[LEDGER_ZONE_ERR];
    size_t          len;
    uint8_t        *data;
    struct stat     st;
    struct dirent  *e;
    ledger_zone_t   zone;

    n = 0;
    snprintf(path, sizeof(path), ZONES "/%s", below);
    dir = opendir(path);
    assert_non_null(dir);

    while ((e = readdir(dir)) != NULL) {

        if (e->d_name[0] == '.' || strcmp(e->d_name, "right") == 0
            || strcmp(e->d_name, "posix") == 0)
        {
            continue;
        }

        assert_true(snprintf(path, sizeof(path), ZONES "/%s%s", below,
                             e->d_name) < (int) sizeof(path) - 1);

        if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
            strcat(path, "/");
            n += walk(path + sizeof(ZONES));
            continue;
        }

        data = load(path, &len);

        if (data == NULL) {
            continue;
        }

        if (ledger_zone_parse(&zone, data, len, err) != 0) {
            fail_msg("%s: %s", path, err);
        }

        library_zone(path + sizeof(ZONES));
        compare_many(&zone, path);
        free(data);
        n++;
    }

    closedir(dir);

    return n;
}


static void
test_database(void **unused)
{
    (void) unused;

    assert_in_range(walk(""), 300, 2000);
}


/* Around each of the changes of a zone, to the second. */

static void
test_changes(void **unused)
{
    size_t         i;
    int64_t        time, end;
    uint8_t       *data;
    ledger_zone_t  zone;

    static const char *const  names[] = {
        "America/New_York", "Europe/Berlin", "Australia/Lord_Howe",
        "Asia/Shanghai", "Africa/Casablanca", "America/Sao_Paulo",
        "Pacific/Apia", "Asia/Kathmandu"
    };

    (void) unused;

    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        data = load_zone(&zone, names[i]);
        end = 100LL * YEAR;

        for (time = 0; time < end; time += 3600) {

            if (library_offset(time) != library_offset(time + 3600)) {
                int64_t  a, b, m;

                for (a = time, b = time + 3600; b - a > 1; /* void */) {
                    m = a + (b - a) / 2;

                    if (library_offset(m) == library_offset(a)) {
                        a = m;

                    } else {
                        b = m;
                    }
                }

                compare(&zone, names[i], a);
                compare(&zone, names[i], b);
            }
        }

        free(data);
    }
}


/* A file of version 2 with nothing but a rule. */

static size_t
rule_file(uint8_t *buf, const char *rule)
{
    size_t  i, n;

    n = 0;

    for (i = 0; i < 2; i++) {
        memset(buf + n, 0, 44);
        memcpy(buf + n, "TZif2", 5);
        buf[n + 39] = 1;                         /* a type */
        buf[n + 43] = 1;                         /* a byte of names */
        memset(buf + n + 44, 0, 7);
        n += 51;
    }

    return n + (size_t) sprintf((char *) buf + n, "\n%s\n", rule);
}


static void
test_rules(void **unused)
{
    char           err[LEDGER_ZONE_ERR];
    size_t         i, len;
    uint8_t        buf[256];
    ledger_zone_t  zone;

    static const char *const  good[] = {
        "CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT,M3.2.0,M11.1.0",
        "NZST-12NZDT,M9.5.0,M4.1.0/3", "IST-5:30", "<+0545>-5:45",
        "AAA0BBB,J60,J300", "AAA0BBB,59/1,300/1:30:15",
        "<-02>2<-01>,M3.5.0/-1,M10.5.0/0", "IST-2IDT,M3.4.4/26,M10.5.0",
        "AAA3BBB2:30,M2.5.6/0,M11.1.0/24", "EET-2EEST,M4.5.5/0,M10.5.4/24",
        "AEST-10AEDT,J60/2,J59/2"
    };
    static const char *const  bad[] = {
        "C-1", "CET", "CET-25", "CET-1CEST", "CET-1CEST,M3.5.0",
        "CET-1CEST,M3.5.0,M10.5.0/3x", "CET-1CEST,M13.5.0,M10.5.0",
        "CET-1CEST,M3.6.0,M10.5.0", "CET-1CEST,M3.5.7,M10.5.0",
        "CET-1CEST,J0,J5", "CET-1CEST,J1,366", "CET-1CEST,M3.5.0/168,J1",
        "<CET-1", "CET-1:60", "CET-1CEST,", "CET-1CEST,M,M", "CET-1CEST,,",
        "CET-99999999999"
    };

    (void) unused;

    for (i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        len = rule_file(buf, good[i]);

        if (ledger_zone_parse(&zone, buf, len, err) != 0) {
            fail_msg("%s: %s", good[i], err);
        }

        library_zone(good[i]);
        compare_many(&zone, good[i]);
    }

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        len = rule_file(buf, bad[i]);

        if (ledger_zone_parse(&zone, buf, len, err) == 0) {
            fail_msg("%s was taken", bad[i]);
        }

        assert_non_null(strstr(err, "is not understood"));
        assert_non_null(strstr(err, bad[i]));
    }
}


/* Each file cut at each length, and bytes changed: an error or an offset. */

static void
test_damage(void **unused)
{
    int            i;
    char           err[LEDGER_ZONE_ERR];
    size_t         len, n, v1;
    int32_t        offset;
    uint8_t       *data, *cut;
    ledger_zone_t  zone;

    (void) unused;

    data = load(ZONES "/Europe/Berlin", &len);
    assert_non_null(data);

    for (n = 0; n < len; n++) {
        cut = malloc(n + 1);
        memcpy(cut, data, n);
        assert_int_equal(ledger_zone_parse(&zone, cut, n, err), -1);
        assert_non_null(strstr(err, n < 44 ? "no time zone" : "cut off"));
        free(cut);
    }

    cut = malloc(len);

    for (i = 0; i < 20000; i++) {
        memcpy(cut, data, len);

        do {
            cut[random_next(&state) % (i % 2 ? len : 200)] =
                (uint8_t) random_next(&state);
        } while (random_next(&state) % 4 != 0);

        if (ledger_zone_parse(&zone, cut, len, err) == 0) {
            offset = ledger_zone_offset(&zone, 1700000000);
            assert_in_range(offset + 200 * 3600, 0, 400 * 3600);
            offset = ledger_zone_offset(&zone, 5000000000);
            assert_in_range(offset + 200 * 3600, 0, 400 * 3600);
        }
    }

    free(cut);

    /* Times that go back, and leap seconds. */

    v1 = 44;
    memcpy(data, "TZif\0", 5);                   /* its first part alone */
    assert_int_equal(ledger_zone_parse(&zone, data, len, err), 0);
    memcpy(data + v1 + 4, data + v1, 4);
    assert_int_equal(ledger_zone_parse(&zone, data, len, err), -1);
    assert_string_equal(err, "its changes are damaged");
    memset(data + 31, 1, 1);
    assert_int_equal(ledger_zone_parse(&zone, data, len, err), -1);
    assert_string_equal(err, "its times count leap seconds");

    free(data);
}


static int
within(const char *hours, const ledger_zone_t *zone, int64_t time)
{
    ledger_hours_t  h;

    assert_int_equal(ledger_hours_parse(hours, &h), 0);

    return ledger_hours_has(&h, zone, time);
}


static void
test_hours(void **unused)
{
    int64_t          time;
    uint8_t         *data;
    ledger_zone_t    zone;
    ledger_hours_t   h;

    static const char *const  bad[] = {
        "", "16:30", "16:30-", "24:00-01:00", "16:60-01:00", "1:00-02:00",
        "16:30-16:30", "16:30-00:30 ", "16.30-00:30", "16:30_00:30"
    };

    (void) unused;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(ledger_hours_parse(bad[i], &h), -1);
    }

    /* UTC, across midnight, before 1970 as well */

    time = 20000 * 86400LL;

    for (int i = 0; i < 2; i++, time = -20000 * 86400LL) {
        assert_false(within("16:30-00:30", NULL, time + 59399));
        assert_true(within("16:30-00:30", NULL, time + 59400));
        assert_true(within("16:30-00:30", NULL, time + 86400));
        assert_true(within("16:30-00:30", NULL, time + 1799));
        assert_false(within("16:30-00:30", NULL, time + 1800));
        assert_true(within("00:30-16:30", NULL, time + 1800));
        assert_false(within("00:30-16:30", NULL, time + 59400));
        assert_true(within("23:59-00:00", NULL, time - 1));
        assert_false(within("23:59-00:00", NULL, time));
    }

    /* A night of Berlin: 02:00 to 03:00 is missing, then there twice. */

    data = load_zone(&zone, "Europe/Berlin");

    time = local(2026, 3, 29, 1, 59, 59);
    assert_true(within("01:30-03:00", &zone, time));
    assert_false(within("01:30-03:00", &zone, time + 1));
    assert_false(within("02:00-03:00", &zone, time));
    assert_false(within("02:00-03:00", &zone, time + 1));

    time = local(2026, 10, 25, 1, 59, 59);
    assert_false(within("02:00-03:00", &zone, time));
    assert_true(within("02:00-03:00", &zone, time + 1));
    assert_true(within("02:00-03:00", &zone, time + 7200));
    assert_false(within("02:00-03:00", &zone, time + 7201));

    /* Midnight is Berlin's own, in winter and in summer. */

    time = local(2026, 7, 1, 0, 0, 0);
    assert_false(within("22:00-00:00", &zone, time));
    assert_true(within("22:00-00:00", &zone, time - 1));
    assert_true(within("22:00-00:00", NULL, time));
    time = local(2026, 1, 1, 0, 0, 0);
    assert_false(within("22:00-00:00", &zone, time));
    assert_true(within("22:00-00:00", &zone, time - 1));

    free(data);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_database),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_hours),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
