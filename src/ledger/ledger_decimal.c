/*
 * Decimal numbers, scaled to integers.
 */

#include <string.h>

#include "ledger.h"


#define LEDGER_EXPONENT  1000        /* beyond it nothing fits anyway */


static int ledger_digit(ledger_int_t *v, int digit);
static size_t ledger_digits(char *buf, ledger_int_t v);


int
ledger_decimal(const char *s, unsigned places, ledger_int_t max,
    ledger_int_t *v)
{
    int           minus, exponent, shift, digits;
    ledger_int_t  n;

    n = 0;
    shift = (int) places;
    digits = 0;

    for ( /* void */ ; *s >= '0' && *s <= '9'; s++, digits++) {
        if (ledger_digit(&n, *s - '0') != 0) {
            return -1;
        }
    }

    if (digits == 0) {
        return -1;
    }

    if (*s == '.') {
        s++;

        for (digits = 0; *s >= '0' && *s <= '9'; s++, digits++, shift--) {
            if (ledger_digit(&n, *s - '0') != 0) {
                return -1;
            }
        }

        if (digits == 0) {
            return -1;
        }
    }

    if (*s == 'e' || *s == 'E') {
        s++;
        minus = *s == '-';

        if (*s == '-' || *s == '+') {
            s++;
        }

        exponent = 0;

        for (digits = 0; *s >= '0' && *s <= '9'; s++, digits++) {
            if (exponent < LEDGER_EXPONENT) {
                exponent = exponent * 10 + (*s - '0');
            }
        }

        if (digits == 0) {
            return -1;
        }

        shift += minus ? -exponent : exponent;
    }

    if (*s != '\0') {
        return -1;
    }

    for ( /* void */ ; n != 0 && shift > 0; shift--) {
        if (ledger_digit(&n, 0) != 0) {
            return -1;
        }
    }

    for ( /* void */ ; n != 0 && shift < 0; shift++) {
        if (n % 10 != 0) {
            return -1;
        }

        n /= 10;
    }

    if (n > max) {
        return -1;
    }

    *v = n;

    return 0;
}


static int
ledger_digit(ledger_int_t *v, int digit)
{
    return __builtin_mul_overflow(*v, 10, v)
           || __builtin_add_overflow(*v, digit, v)
           ? -1 : 0;
}


/* The digits of |v|, the last one first. */

static size_t
ledger_digits(char *buf, ledger_int_t v)
{
    size_t             n;
    uint64_t           low;
    unsigned __int128  u;

    u = v < 0 ? -(unsigned __int128) v : (unsigned __int128) v;

    for (n = 0; u > UINT64_MAX; u /= 10) {
        buf[n++] = (char) ('0' + (int) (u % 10));
    }

    low = (uint64_t) u;

    do {
        buf[n++] = (char) ('0' + (int) (low % 10));
        low /= 10;
    } while (low != 0);

    return n;
}


char *
ledger_exact(char *buf, ledger_int_t v, unsigned places)
{
    char    digits[LEDGER_DIGITS], *p;
    size_t  n, last;

    n = ledger_digits(digits, v);

    while (n <= places) {
        digits[n++] = '0';
    }

    for (last = 0; last < places && digits[last] == '0'; last++) {
        /* zeros at the end */
    }

    p = buf;

    if (v < 0) {
        *p++ = '-';
    }

    while (n > last) {
        if (n == places) {
            *p++ = '.';
        }

        *p++ = digits[--n];
    }

    *p = '\0';

    return buf;
}


char *
ledger_rounded(char *buf, ledger_int_t v, unsigned places, unsigned keep)
{
    char          digits[LEDGER_DIGITS], *p;
    size_t        n;
    ledger_int_t  unit, rest;

    for (unit = 1; places > keep; places--) {
        unit *= 10;
    }

    rest = v % unit;
    v /= unit;

    if (rest < 0) {
        v -= -rest >= unit - -rest;

    } else if (rest > 0) {
        v += rest >= unit - rest;
    }

    n = ledger_digits(digits, v);

    while (n <= places) {
        digits[n++] = '0';
    }

    p = buf;

    if (v < 0) {
        *p++ = '-';
    }

    while (n > 0) {
        *p++ = digits[--n];

        if (n == places && places != 0) {
            *p++ = '.';

        } else if (n > places && (n - places) % 3 == 0) {
            *p++ = ',';
        }
    }

    *p = '\0';

    return buf;
}
