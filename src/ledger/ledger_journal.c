/*
 * The journal of balances: its records and their reader.
 */

#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "ledger_decimal.h"
#include "ledger_journal.h"


#define JOURNAL_MARK      "L1 "
#define JOURNAL_MARK_LEN  3
#define JOURNAL_SUM       16         /* digits of a checksum */

/* Balances are sums of these, of which 10^9 fit into 64 bits. */
#define JOURNAL_NANO_MAX  ((ledger_int_t) 1000000000 * 1000000000)


static int journal_plain(unsigned char c);
static size_t journal_escape(char *buf, size_t size, const char *s);
static int journal_unescape(char *buf, size_t size, const char *s);
static int journal_hex(char c);
static int journal_id(const char *id);
static void journal_sum(char *buf, const char *line, size_t len);
static size_t journal_glued(const char *line, size_t len,
    ledger_record_t *r);


size_t
ledger_record_put(char *buf, const ledger_record_t *r)
{
    int          i;
    char         account[LEDGER_JOURNAL_LINE];
    char         time[LEDGER_DIGITS], amount[LEDGER_DIGITS];
    size_t       len, n;
    const char  *field[5];

    if (journal_id(r->id) != 0
        || journal_escape(account, sizeof(account), r->account) == 0)
    {
        return 0;
    }

    field[0] = r->charge ? "charge" : "credit";
    field[1] = ledger_exact(time, r->time, 0);
    field[2] = ledger_exact(amount, r->nano, LEDGER_NANO);
    field[3] = r->id;
    field[4] = account;

    memcpy(buf, JOURNAL_MARK, JOURNAL_MARK_LEN);
    len = JOURNAL_MARK_LEN;

    for (i = 0; i < 5; i++) {
        n = strlen(field[i]);

        if (len + n + 1 + JOURNAL_SUM + 1 >= LEDGER_JOURNAL_LINE) {
            return 0;
        }

        memcpy(buf + len, field[i], n);
        len += n;
        buf[len++] = ' ';
    }

    journal_sum(buf + len, buf, len);
    len += JOURNAL_SUM;
    buf[len++] = '\n';

    return len;
}


int
ledger_record_get(const char *line, size_t len, ledger_record_t *r,
    char *err)
{
    int           i, minus;
    char          buf[LEDGER_JOURNAL_LINE], sum[JOURNAL_SUM];
    char         *p, *field[6];
    ledger_int_t  n;

    if (len < JOURNAL_MARK_LEN
        || memcmp(line, JOURNAL_MARK, JOURNAL_MARK_LEN) != 0)
    {
        snprintf(err, LEDGER_JOURNAL_ERR, "it is no record");
        return -1;
    }

    if (len < JOURNAL_MARK_LEN + JOURNAL_SUM || len >= LEDGER_JOURNAL_LINE) {
        snprintf(err, LEDGER_JOURNAL_ERR, "it is %s",
                 len < LEDGER_JOURNAL_LINE ? "cut off" : "too long");
        return -1;
    }

    len -= JOURNAL_SUM;
    journal_sum(sum, line, len);

    if (memcmp(sum, line + len, JOURNAL_SUM) != 0) {
        snprintf(err, LEDGER_JOURNAL_ERR, "its checksum is wrong");
        return -1;
    }

    /* What has the checksum is as it was written, and yet maybe not by us. */

    memcpy(buf, line, len);
    buf[len] = '\0';
    p = buf + JOURNAL_MARK_LEN;

    for (i = 0; i < 6; i++) {
        field[i] = p;

        if (i == 5) {
            break;
        }

        p = strchr(p, ' ');

        if (p == NULL) {
            goto bad;
        }

        *p++ = '\0';
    }

    if (*p != '\0' || (size_t) (p - buf) != len) {
        goto bad;
    }

    r->charge = strcmp(field[0], "charge") == 0;

    if (!r->charge && strcmp(field[0], "credit") != 0) {
        goto bad;
    }

    if (ledger_decimal(field[1], 0, INT64_MAX, &n) != 0) {
        goto bad;
    }

    r->time = (int64_t) n;

    minus = field[2][0] == '-';

    if (ledger_decimal(field[2] + minus, LEDGER_NANO, JOURNAL_NANO_MAX, &n)
        != 0)
    {
        goto bad;
    }

    r->nano = minus ? (int64_t) -n : (int64_t) n;

    if (journal_id(field[3]) != 0) {
        goto bad;
    }

    strcpy(r->id, field[3]);

    if (journal_unescape(r->account, sizeof(r->account), field[4]) != 0) {
        goto bad;
    }

    return 0;

bad:

    snprintf(err, LEDGER_JOURNAL_ERR, "its fields are not understood");

    return -1;
}


static int
journal_plain(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
           || (c >= '0' && c <= '9')
           || (c != '\0' && strchr("-._~@:+/=", c) != NULL);
}


/* Its length, 0 if it is empty or does not fit. */

static size_t
journal_escape(char *buf, size_t size, const char *s)
{
    size_t  n;

    static const char  hex[] = "0123456789ABCDEF";

    for (n = 0; *s != '\0'; s++) {

        if (n + 4 > size) {
            return 0;
        }

        if (journal_plain((unsigned char) *s)) {
            buf[n++] = *s;
            continue;
        }

        buf[n++] = '%';
        buf[n++] = hex[(unsigned char) *s >> 4];
        buf[n++] = hex[(unsigned char) *s & 15];
    }

    buf[n] = '\0';

    return n;
}


static int
journal_unescape(char *buf, size_t size, const char *s)
{
    int     high, low;
    size_t  n;

    for (n = 0; *s != '\0'; n++) {

        if (n + 1 >= size) {
            return -1;
        }

        if (*s != '%') {

            if (!journal_plain((unsigned char) *s)) {
                return -1;
            }

            buf[n] = *s++;
            continue;
        }

        high = journal_hex(s[1]);
        low = high < 0 ? -1 : journal_hex(s[2]);

        if (low < 0 || high + low == 0
            || journal_plain((unsigned char) (high << 4 | low)))
        {
            return -1;
        }

        buf[n] = (char) (high << 4 | low);
        s += 3;
    }

    buf[n] = '\0';

    return n != 0 ? 0 : -1;
}


static int
journal_hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : -1;
}


static int
journal_id(const char *id)
{
    size_t  n;

    for (n = 0; id[n] != '\0'; n++) {
        if (id[n] <= ' ' || id[n] > '~') {
            return -1;
        }
    }

    return n != 0 && n < LEDGER_JOURNAL_ID ? 0 : -1;
}


static void
journal_sum(char *buf, const char *line, size_t len)
{
    int       i;
    uint64_t  sum;

    static const char  hex[] = "0123456789abcdef";

    sum = XXH64(line, len, 0);

    for (i = JOURNAL_SUM - 1; i >= 0; i--) {
        buf[i] = hex[sum & 15];
        sum >>= 4;
    }
}


ledger_next_e
ledger_journal_next(ledger_reader_t *reader, const char **p, const char *end,
    ledger_record_t *r, uint64_t *at, char *err)
{
    int          known;
    size_t       len, used;
    const char  *nl;

    for ( ;; ) {
        len = (size_t) (end - *p);
        nl = len != 0 ? memchr(*p, '\n', len) : NULL;

        if (nl == NULL) {

            if (len < 2 * LEDGER_JOURNAL_LINE) {
                return LEDGER_AGAIN;
            }

            /* Only what is left could still be the begin of a record. */

            used = len - LEDGER_JOURNAL_LINE;
            snprintf(err, LEDGER_JOURNAL_ERR, "it is too long");

        } else {
            len = (size_t) (nl - *p);

            if (ledger_record_get(*p, len, r, err) == 0) {
                *p += len + 1;
                reader->offset += len + 1;
                reader->records++;
                reader->skipping = 0;

                return LEDGER_RECORD;
            }

            used = journal_glued(*p, len, r);
        }

        known = reader->skipping;
        reader->skipping = nl == NULL;
        *at = reader->offset;
        *p += used;
        reader->offset += used;

        if (!known) {
            reader->damaged++;

            return LEDGER_DAMAGED;
        }
    }
}


/* Where the record begins that a line ends with; past the line: nowhere. */

static size_t
journal_glued(const char *line, size_t len, ledger_record_t *r)
{
    char    err[LEDGER_JOURNAL_ERR];
    size_t  i;

    i = len > LEDGER_JOURNAL_LINE ? len - LEDGER_JOURNAL_LINE : 1;

    for ( /* void */ ; i + JOURNAL_MARK_LEN < len; i++) {
        if (line[i] == JOURNAL_MARK[0]
            && ledger_record_get(line + i, len - i, r, err) == 0)
        {
            return i;
        }
    }

    return len + 1;
}


int
ledger_recent_has(const ledger_recent_t *recent, const char *id)
{
    int              i;
    uint64_t         hash;
    const uint64_t  *set;

    hash = XXH64(id, strlen(id), 0) | 1;
    set = recent->hash[(hash >> 32) % (LEDGER_RECENT / LEDGER_WAYS)];

    for (i = 0; i < LEDGER_WAYS; i++) {
        if (set[i] == hash) {
            return 1;
        }
    }

    return 0;
}


/* The oldest of its set makes room. */

void
ledger_recent_add(ledger_recent_t *recent, const char *id)
{
    uint64_t  hash, *set;

    hash = XXH64(id, strlen(id), 0) | 1;
    set = recent->hash[(hash >> 32) % (LEDGER_RECENT / LEDGER_WAYS)];

    memmove(set + 1, set, (LEDGER_WAYS - 1) * sizeof(uint64_t));
    set[0] = hash;
}
