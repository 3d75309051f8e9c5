/*
 * Exact decimal numbers: integers of a power of ten, of 128 bits.
 */

#ifndef LEDGER_DECIMAL_H
#define LEDGER_DECIMAL_H

#include <stddef.h>
#include <stdint.h>


#define LEDGER_MICRO  6          /* decimal places of prices, nodes */
#define LEDGER_NANO   9          /* of balances and of what requests cost */
#define LEDGER_PICO   12         /* of a report's money */

typedef __int128  ledger_int_t;


/*
 * A number without a sign as JSON writes it, times 10^places.  0, or -1 if
 * it is none, is above `max`, or has more places and would be rounded.
 */
int ledger_decimal(const char *s, unsigned places, ledger_int_t max,
    ledger_int_t *v);

/*
 * The reverse, without zeros at its end, into `buf` of LEDGER_DIGITS bytes;
 * returns buf.  ledger_rounded() gives exactly `keep` places, half away from
 * zero, and commas between thousands.
 */
#define LEDGER_DIGITS  64

char *ledger_exact(char *buf, ledger_int_t v, unsigned places);
char *ledger_rounded(char *buf, ledger_int_t v, unsigned places,
    unsigned keep);


#endif /* LEDGER_DECIMAL_H */
