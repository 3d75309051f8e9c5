/*
 * The journal of balances: records there and back, a file cut at each byte and
 * written on, bytes changed, lines without an end, reading in any pieces.
 */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ledger/ledger_journal.h"

#include "unit/random.h"


#define RECORDS  12

static uint64_t  state;

typedef struct {
    uint64_t         damaged;
    uint64_t         left;
    size_t           n;
    ledger_record_t  r[4 * RECORDS];
} read_t;


static void
record(ledger_record_t *r, uint64_t n)
{
    memset(r, 0, sizeof(ledger_record_t));
    r->charge = n % 3 != 0;
    r->time = 1700000000 + (int64_t) n;
    r->nano = (int64_t) (random_next(&state) >> (n % 60 + 5));
    r->nano = r->charge ? -r->nano : r->nano;
    snprintf(r->id, sizeof(r->id), "%032llx", (unsigned long long) n);
    snprintf(r->account, sizeof(r->account), "team %llu",
             (unsigned long long) n % 5);
}


static int
same(const ledger_record_t *a, const ledger_record_t *b)
{
    return a->charge == b->charge && a->time == b->time && a->nano == b->nano
           && strcmp(a->id, b->id) == 0
           && strcmp(a->account, b->account) == 0;
}


/* As a process reads a file: in buffers, from where it stopped. */

static void
read_all(const char *data, size_t len, size_t piece, read_t *out)
{
    char              err[LEDGER_JOURNAL_ERR], *buf;
    size_t            n;
    uint64_t          at;
    const char       *p;
    ledger_next_e     next;
    ledger_reader_t   reader;

    memset(&reader, 0, sizeof(ledger_reader_t));
    memset(out, 0, sizeof(read_t));
    buf = malloc(piece);
    assert_non_null(buf);

    for ( ;; ) {
        n = len - reader.offset < piece ? len - reader.offset : piece;
        memcpy(buf, data + reader.offset, n);
        p = buf;

        while ((next = ledger_journal_next(&reader, &p, buf + n,
                                           &out->r[out->n], &at, err))
               != LEDGER_AGAIN)
        {
            if (next == LEDGER_RECORD) {
                assert_true(++out->n < 4 * RECORDS);

            } else {
                assert_true(at < len);
                assert_int_not_equal(strlen(err), 0);
            }
        }

        if (p == buf) {
            break;
        }
    }

    assert_int_equal(reader.records, out->n);
    assert_true(n < 2 * LEDGER_JOURNAL_LINE);
    out->damaged = reader.damaged;
    out->left = n;

    free(buf);
}


static void
test_record(void **unused)
{
    char             line[LEDGER_JOURNAL_LINE + 1], err[LEDGER_JOURNAL_ERR];
    int              i;
    size_t           len, k;
    ledger_record_t  a, b;

    (void) unused;

    record(&a, 1);
    a.nano = -123456;
    strcpy(a.account, "b%o b\xc3\xa9\n");
    len = ledger_record_put(line, &a);
    line[len] = '\0';
    assert_string_equal(line, "L1 charge 1700000001 -0.000123456 "
                        "00000000000000000000000000000001 "
                        "b%25o%20b%C3%A9%0A 3d177543f14fc209\n");
    assert_int_equal(ledger_record_get(line, len - 1, &b, err), 0);
    assert_true(same(&a, &b));

    /* The longest of everything. */

    a.nano = -INT64_C(1000000000000000000);
    a.time = INT64_MAX;
    memset(a.account, '%', sizeof(a.account) - 1);
    memset(a.id, 'x', sizeof(a.id) - 1);
    len = ledger_record_put(line, &a);
    assert_in_range(len, 900, LEDGER_JOURNAL_LINE);
    assert_int_equal(ledger_record_get(line, len - 1, &b, err), 0);
    assert_true(same(&a, &b));

    /* Nothing of one byte less or with any byte changed. */

    for (k = 0; k < len - 1; k++) {
        assert_int_equal(ledger_record_get(line, k, &b, err), -1);
        line[k] ^= (char) (1 << k % 8);
        assert_int_equal(ledger_record_get(line, len - 1, &b, err), -1);
        line[k] ^= (char) (1 << k % 8);
    }

    for (i = 0; i < 4; i++) {
        record(&a, 5);

        switch (i) {
        case 0:
            a.account[0] = '\0';
            break;
        case 1:
            a.id[0] = '\0';
            break;
        case 2:
            a.id[3] = ' ';
            break;
        default:
            a.id[3] = (char) 0xc3;
        }

        assert_int_equal(ledger_record_put(line, &a), 0);
    }
}


/* Some records in `buf`; where each of them ends. */

static size_t
journal(char *buf, ledger_record_t *r, size_t n, size_t *end)
{
    size_t  i, len;

    len = 0;

    for (i = 0; i < n; i++) {
        record(&r[i], i);
        len += ledger_record_put(buf + len, &r[i]);
        end[i] = len;
    }

    return len;
}


/*
 * Killed while it writes, at each byte, another one goes on: what was whole
 * counts once, and so does all that comes after.
 */

static void
test_cut(void **unused)
{
    char             buf[8192], cut[8192];
    size_t           len, n, whole, i, end[RECORDS];
    read_t           out;
    ledger_record_t  r[RECORDS];

    (void) unused;

    len = journal(buf, r, RECORDS, end);

    for (n = 0; n <= len; n++) {

        for (whole = 0; whole < RECORDS && end[whole] <= n; whole++) {
            /* void */
        }

        read_all(buf, n, 4096, &out);
        assert_int_equal(out.n, whole);
        assert_int_equal(out.damaged, 0);
        assert_int_equal(out.left, n - (whole != 0 ? end[whole - 1] : 0));

        memcpy(cut, buf, n);
        memcpy(cut + n, buf, end[2]);
        read_all(cut, n + end[2], 4096, &out);
        assert_int_equal(out.n, whole + 3);
        assert_int_equal(out.left, 0);
        assert_int_equal(out.damaged,
                         n != (whole != 0 ? end[whole - 1] : 0));

        for (i = 0; i < out.n; i++) {
            assert_true(same(&out.r[i], &r[i < whole ? i : i - whole]));
        }
    }
}


/* Bytes changed: no record that was not written, no more lost than hit. */

static void
test_changed(void **unused)
{
    int              i, k, hits;
    char             buf[8192], cut[8192];
    size_t           len, n, j, end[RECORDS];
    read_t           out;
    ledger_record_t  r[RECORDS];

    (void) unused;

    len = journal(buf, r, RECORDS, end);

    for (i = 0; i < 20000; i++) {
        memcpy(cut, buf, len);
        hits = 1 + i % 4;

        for (k = 0; k < hits; k++) {
            n = random_next(&state) % len;
            cut[n] = i % 3 ? (char) random_next(&state) : '\n';
        }

        read_all(cut, len, 2048 + random_next(&state) % 5000, &out);
        assert_true(out.n + 2 * (size_t) hits >= RECORDS);

        for (n = 0, j = 0; n < out.n; n++, j++) {
            while (j < RECORDS && !same(&out.r[n], &r[j])) {
                j++;
            }

            assert_true(j < RECORDS);
        }
    }
}


/* A hole of zeros, as after a power failure, of any size. */

static void
test_hole(void **unused)
{
    char             *buf;
    size_t            len, hole, at, end[RECORDS], i;
    read_t            out;
    ledger_record_t   r[RECORDS];

    (void) unused;

    buf = malloc(400000);
    assert_non_null(buf);

    for (i = 0; i < 60; i++) {
        len = journal(buf, r, RECORDS, end);
        hole = i < 10 ? i + 1 : random_next(&state) % 300000;
        at = end[5];
        memmove(buf + at + hole, buf + at, len - at);
        memset(buf + at, 0, hole);

        read_all(buf, len + hole, 2048 + random_next(&state) % 9000, &out);
        assert_int_equal(out.n, RECORDS);
        assert_int_equal(out.damaged, hole != 0);

        /* And without anything behind it. */

        read_all(buf, at + hole, 65536, &out);
        assert_int_equal(out.n, 6);
        assert_int_equal(out.damaged, hole >= 2 * LEDGER_JOURNAL_LINE);
    }

    free(buf);
}


static void
test_recent(void **unused)
{
    int              i;
    char             id[64];
    ledger_recent_t  *recent;

    (void) unused;

    recent = calloc(1, sizeof(ledger_recent_t));
    assert_non_null(recent);

    for (i = 0; i < 20000; i++) {
        snprintf(id, sizeof(id), "%032x", i * 77);
        assert_false(ledger_recent_has(recent, id));
        ledger_recent_add(recent, id);
        assert_true(ledger_recent_has(recent, id));

        if (i >= LEDGER_RECENT / 16) {
            snprintf(id, sizeof(id), "%032x", (i - LEDGER_RECENT / 16) * 77);
            assert_true(ledger_recent_has(recent, id));
        }
    }

    free(recent);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_changed),
        cmocka_unit_test(test_hole),
        cmocka_unit_test(test_recent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
