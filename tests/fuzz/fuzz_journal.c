/*
 * Fuzzer: files that others wrote.  The first byte chooses: a journal of
 * balances, read in pieces of some size, or a time zone.
 *
 * A journal read in pieces gives what it gives in one, and a record that is
 * taken can be written again.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "ledger/ledger_journal.h"
#include "ledger/ledger_zone.h"


int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


static void
again(const ledger_record_t *r)
{
    char             line[LEDGER_JOURNAL_LINE], err[LEDGER_JOURNAL_ERR];
    size_t           len;
    ledger_record_t  copy;

    len = ledger_record_put(line, r);

    if (len == 0 || line[len - 1] != '\n'
        || ledger_record_get(line, len - 1, &copy, err) != 0
        || copy.charge != r->charge || copy.time != r->time
        || copy.nano != r->nano || strcmp(copy.id, r->id) != 0
        || strcmp(copy.account, r->account) != 0)
    {
        abort();
    }
}


static int64_t
journal(const uint8_t *data, size_t size, size_t piece, uint64_t *records)
{
    char             err[LEDGER_JOURNAL_ERR], *buf;
    size_t           n;
    int64_t          sum;
    uint64_t         at;
    const char      *p;
    ledger_next_e    next;
    ledger_reader_t  reader;
    ledger_record_t  r;

    memset(&reader, 0, sizeof(ledger_reader_t));
    sum = 0;

    for ( ;; ) {
        n = size - reader.offset < piece ? size - reader.offset : piece;
        buf = malloc(n != 0 ? n : 1);

        if (buf == NULL) {
            abort();
        }

        memcpy(buf, data + reader.offset, n);
        p = buf;

        while ((next = ledger_journal_next(&reader, &p, buf + n, &r, &at,
                                           err))
               != LEDGER_AGAIN)
        {
            if (next == LEDGER_RECORD) {
                again(&r);
                sum += r.nano % 1000000007;
            }

            if (reader.offset > size) {
                abort();
            }
        }

        free(buf);

        if (p == buf) {
            break;
        }
    }

    *records = reader.records;

    return sum;
}


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char           err[LEDGER_ZONE_ERR];
    uint8_t       *copy;
    int64_t        one, two;
    uint64_t       n, m;
    ledger_zone_t  zone;

    if (size < 2) {
        return 0;
    }

    if (data[0] % 2 == 0) {
        one = journal(data + 2, size - 2, LEDGER_JOURNAL_BUFFER, &n);
        two = journal(data + 2, size - 2,
                      2 * LEDGER_JOURNAL_LINE + data[1] * 16, &m);

        if (one != two || n != m) {
            abort();
        }

        return 0;
    }

    copy = malloc(size - 1);

    if (copy == NULL) {
        abort();
    }

    memcpy(copy, data + 1, size - 1);

    if (ledger_zone_parse(&zone, copy, size - 1, err) == 0) {
        for (one = -4000000000; one < 8000000000; one += 123456789) {
            (void) ledger_zone_offset(&zone, one);
        }
    }

    free(copy);

    return 0;
}
