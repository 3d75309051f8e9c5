/*
 * The journal of balances: an append-only file of lines, each a record.
 *
 *     L1 TYPE TIME AMOUNT ID ACCOUNT CHECKSUM
 *
 *     TYPE      credit, or charge for what a request cost
 *     TIME      seconds since 1970, UTC
 *     AMOUNT    US dollars, at most 9 decimal places, what it adds to the
 *               balance: negative for a charge
 *     ID        of the request or the payment, printable ASCII
 *     ACCOUNT   name; bytes other than letters, digits and "-._~@:+/=" as %XX
 *     CHECKSUM  XXH64 of all before it, 16 hexadecimal digits
 *
 * WRITERS   nginx's workers (charges) and llm-ledger credit (credits), of any
 * number of masters, each record with one write() to a file opened with
 * O_APPEND.  If a write comes back short, the whole record is written again.
 * All hold a shared lock (flock) of the file; llm-ledger compact, which
 * replaces it, takes an exclusive one and so never meets them.
 *
 * READERS   go from record to record and stop before a line without an end: it
 * may be half written.  A balance is the sum of an account's records; an
 * account without any has no balance, which is not a balance of zero.  A
 * charge whose ID is that of one shortly before, hundreds of charges at the
 * least, does not count.
 *
 * RECOVERY  A record counts if it is whole: checksum right and newline there.
 * What is left of one that was cut off has the next record glued to it, so in
 * a line that is none the reader looks for a record that ends with it; what
 * stands before is damaged, counted and passed over.
 */

#ifndef LEDGER_JOURNAL_H
#define LEDGER_JOURNAL_H

#include <stddef.h>
#include <stdint.h>


#define LEDGER_JOURNAL_ERR      128
#define LEDGER_JOURNAL_ID       129      /* bytes of an id, its end included */
#define LEDGER_JOURNAL_ACCOUNT  257
#define LEDGER_JOURNAL_LINE     1024     /* of a record, its end included */
#define LEDGER_JOURNAL_BUFFER   65536    /* for reading: at least two lines */
#define LEDGER_RECENT           4096     /* ids of charges, in sets of */
#define LEDGER_WAYS             8

typedef struct {
    int      charge;                 /* else a credit */
    int64_t  time;
    int64_t  nano;                   /* dollars, signed */
    char     id[LEDGER_JOURNAL_ID];
    char     account[LEDGER_JOURNAL_ACCOUNT];
} ledger_record_t;

/*
 * A record as a line into `buf` (LEDGER_JOURNAL_LINE): its length, 0 if id or
 * account cannot be written (empty, or the id no printable ASCII).
 */
size_t ledger_record_put(char *buf, const ledger_record_t *r);

/* A line without its end: 0, or -1 with the reason in `err`. */
int ledger_record_get(const char *line, size_t len, ledger_record_t *r,
    char *err);


/* A reader's place in the file. */

typedef struct {
    uint64_t  offset;                /* up to where it was read */
    uint64_t  records;
    uint64_t  damaged;               /* lines or parts of lines */
    uint32_t  skipping;              /* within a line that is too long */
} ledger_reader_t;

typedef enum {
    LEDGER_AGAIN = 0,                /* no whole line: read more, at `offset` */
    LEDGER_RECORD,                   /* in `r` */
    LEDGER_DAMAGED                   /* `err` says why; at `at` */
} ledger_next_e;

/*
 * The next of what is at `*p` up to `end`, which lies at reader->offset of the
 * file; both go on.  After LEDGER_AGAIN what is left before `end` is less than
 * two lines.
 */
ledger_next_e ledger_journal_next(ledger_reader_t *reader, const char **p,
    const char *end, ledger_record_t *r, uint64_t *at, char *err);


/*
 * The last charges' ids, as hashes in sets of LEDGER_WAYS.  Zeroed at first.
 */

typedef struct {
    uint64_t  hash[LEDGER_RECENT / LEDGER_WAYS][LEDGER_WAYS];
} ledger_recent_t;

int ledger_recent_has(const ledger_recent_t *recent, const char *id);
void ledger_recent_add(ledger_recent_t *recent, const char *id);


#endif /* LEDGER_JOURNAL_H */
