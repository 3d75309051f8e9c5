/*
 * llm-ledger credit, balance and compact: the journal of balances by hand.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ledger.h"
#include "ledger_journal.h"


#define BALANCE_PATH  4096
#define BALANCE_MAX   ((ledger_int_t) 1000000000 * 1000000000)

typedef struct {
    const char       *path;          /* of --state */
    const char       *id;            /* of --id, or NULL */
    int               fd;
    uint64_t          duplicates;
    uint64_t          left;          /* bytes at the end that are no line */
    int               id_seen;
    ledger_reader_t   reader;
    ledger_recent_t   recent;
    ledger_names_t    names;
} balance_t;


static int balance_options(balance_t *b, int argc, char **argv,
    const char *command);
static void balance_help(const char *command);
static int balance_open(balance_t *b, int flags, int lock);
static int balance_alone(balance_t *b);
static int balance_read(balance_t *b);
static int balance_add(balance_t *b, const ledger_record_t *r);
static int balance_append(balance_t *b, const char *line, size_t len);
static int balance_write(balance_t *b);
static int balance_replace(balance_t *b, const char *tmp);
static const char *balance_money(char *buf, ledger_int_t nano);
static void balance_close(balance_t *b);


static balance_t  balance;           /* with ids, more than a stack wants */


int
ledger_credit(int argc, char **argv)
{
    int               rc, minus;
    char              line[LEDGER_JOURNAL_LINE], buf[LEDGER_DIGITS];
    size_t            len;
    balance_t        *b;
    const char       *name, *amount;
    ledger_int_t      nano;
    ledger_record_t   r;

    b = &balance;

    rc = balance_options(b, argc, argv, "credit");
    if (rc >= 0) {
        return rc;
    }

    if (argc - optind != 2) {
        ledger_error("a name and an amount are expected; see llm-ledger "
                     "credit --help");
        return LEDGER_EXIT_USAGE;
    }

    name = argv[optind];
    amount = argv[optind + 1];
    minus = amount[0] == '-';

    if (ledger_decimal(amount + minus, LEDGER_NANO, BALANCE_MAX, &nano)
        != 0)
    {
        ledger_error("\"%s\" is no number of dollars up to 10^9 with at most "
                     "%d decimal places", amount, LEDGER_NANO);
        return LEDGER_EXIT_USAGE;
    }

    memset(&r, 0, sizeof(ledger_record_t));
    r.time = time(NULL);
    r.nano = minus ? (int64_t) -nano : (int64_t) nano;

    if (b->id != NULL) {
        snprintf(r.id, sizeof(r.id), "%s", b->id);

    } else {
        snprintf(r.id, sizeof(r.id), "credit-%lld-%ld", (long long) r.time,
                 (long) getpid());
    }

    snprintf(r.account, sizeof(r.account), "%s", name);

    if (strlen(name) >= sizeof(r.account)
        || (b->id != NULL && strlen(b->id) >= sizeof(r.id))
        || (len = ledger_record_put(line, &r)) == 0)
    {
        ledger_error("the name must have 1 to %d bytes, the id 1 to %d "
                     "printable ASCII characters", LEDGER_JOURNAL_ACCOUNT - 1,
                     LEDGER_JOURNAL_ID - 1);
        return LEDGER_EXIT_USAGE;
    }

    rc = 1;

    if (balance_open(b, O_RDWR|O_APPEND, LOCK_SH) != 0
        || balance_alone(b) != 0
        || balance_read(b) != 0)
    {
        goto done;
    }

    if (b->id_seen) {
        ledger_error("%s: a credit with the id \"%s\" is there already, "
                     "nothing was added", b->path, b->id);
        goto done;
    }

    if (balance_append(b, line, len) != 0 || balance_read(b) != 0) {
        goto done;
    }

    printf("%s %s\n", name,
           balance_money(buf, ledger_names_get(&b->names, name)->cost));

    rc = fflush(stdout) != 0;

done:

    balance_close(b);

    return rc;
}


int
ledger_balances(int argc, char **argv)
{
    int         rc, i;
    char        buf[LEDGER_DIGITS];
    size_t      n;
    balance_t  *b;

    b = &balance;

    rc = balance_options(b, argc, argv, "balance");
    if (rc >= 0) {
        return rc;
    }

    if (balance_open(b, O_RDONLY, LOCK_SH) != 0 || balance_read(b) != 0) {
        balance_close(b);
        return 1;
    }

    for (n = 0; n < b->names.n; n++) {

        for (i = optind; i < argc; i++) {
            if (strcmp(argv[i], b->names.sum[n].name) == 0) {
                break;
            }
        }

        if (optind == argc || i < argc) {
            ledger_print_plain(stdout, b->names.sum[n].name);
            printf(" %s\n", balance_money(buf, b->names.sum[n].cost));
        }
    }

    if (b->reader.damaged != 0 || b->duplicates != 0 || b->left != 0) {
        ledger_error("%s: %llu damaged parts, %llu duplicates, %llu bytes of "
                     "a record that was cut off", b->path,
                     (unsigned long long) b->reader.damaged,
                     (unsigned long long) b->duplicates,
                     (unsigned long long) b->left);
    }

    balance_close(b);

    if (fflush(stdout) != 0 || ferror(stdout)) {
        ledger_error("the balances cannot be written");
        return 1;
    }

    return 0;
}


int
ledger_compact(int argc, char **argv)
{
    int         rc;
    balance_t  *b;

    b = &balance;

    rc = balance_options(b, argc, argv, "compact");
    if (rc >= 0) {
        return rc;
    }

    if (optind != argc) {
        ledger_error("\"%s\" is not expected; see llm-ledger compact --help",
                     argv[optind]);
        return LEDGER_EXIT_USAGE;
    }

    rc = 1;

    if (balance_open(b, O_RDWR, LOCK_EX) == 0
        && balance_read(b) == 0
        && balance_write(b) == 0)
    {
        printf("%llu records became %zu\n",
               (unsigned long long) b->reader.records, b->names.n);

        rc = fflush(stdout) != 0;
    }

    balance_close(b);

    return rc;
}


/* -1 to go on, or an exit status. */

static int
balance_options(balance_t *b, int argc, char **argv, const char *command)
{
    int  c;

    static const struct option  options[] = {
        { "state", required_argument, NULL, 's' },
        { "id", required_argument, NULL, 'i' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 }
    };

    memset(b, 0, sizeof(balance_t));
    b->fd = -1;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {

        if (c == 's') {
            b->path = optarg;

        } else if (c == 'i' && strcmp(command, "credit") == 0) {
            b->id = optarg;

        } else if (c == 'h') {
            balance_help(command);
            return 0;

        } else {
            fprintf(stderr, "See llm-ledger %s --help.\n", command);
            return LEDGER_EXIT_USAGE;
        }
    }

    if (b->path == NULL) {
        ledger_error("--state FILE is expected; see llm-ledger %s --help",
                     command);
        return LEDGER_EXIT_USAGE;
    }

    return -1;
}


static void
balance_help(const char *command)
{
    if (strcmp(command, "credit") == 0) {
        fputs(
"Usage: llm-ledger credit --state FILE [--id ID] NAME AMOUNT\n"
"\n"
"Adds AMOUNT, US dollars with at most 9 decimal places, to the balance of the\n"
"account NAME in the journal of llm_accounts' state=FILE, while nginx runs or\n"
"not, and prints the balance.  From its first credit on, 0 too, an account has\n"
"a balance and is refused when it is used up.  An AMOUNT below zero takes away\n"
"(after \"--\").  The file must exist: nginx makes it, or touch does.\n"
"\n"
"  --state FILE          the journal\n"
"  --id ID               of the payment: if the journal has a credit with it,\n"
"                        nothing is added and the status is 1\n"
"  --help                this text\n",
            stdout);

    } else if (strcmp(command, "balance") == 0) {
        fputs(
"Usage: llm-ledger balance --state FILE [NAME]...\n"
"\n"
"Prints the balance of each account that has one, or of those named, in US\n"
"dollars.  What is damaged in the journal is named on standard error.\n"
"\n"
"  --state FILE          the journal\n"
"  --help                this text\n",
            stdout);

    } else {
        fputs(
"Usage: llm-ledger compact --state FILE\n"
"\n"
"Replaces the journal by one with a single record for each account, its\n"
"balance, written aside and renamed; the old one stays as FILE.old.  It needs\n"
"the journal for itself: nginx must be stopped.\n"
"\n"
"  --state FILE          the journal\n"
"  --help                this text\n",
            stdout);
    }
}


/* Who waits for the lock may get one of a file that was replaced meanwhile. */

static int
balance_open(balance_t *b, int flags, int lock)
{
    struct stat  st, now;

    for ( ;; ) {
        b->fd = open(b->path, flags|O_CLOEXEC);

        if (b->fd == -1) {
            ledger_error("%s: %s", b->path, strerror(errno));
            return -1;
        }

        if (flock(b->fd, lock == LOCK_EX ? LOCK_EX|LOCK_NB : lock) == -1) {
            ledger_error("%s: %s", b->path,
                         errno == EWOULDBLOCK ? "it is in use, by nginx or "
                                                "another llm-ledger"
                                              : strerror(errno));
            return -1;
        }

        if (fstat(b->fd, &st) == -1) {
            ledger_error("%s: %s", b->path, strerror(errno));
            return -1;
        }

        if (!S_ISREG(st.st_mode)) {
            ledger_error("%s: it is no regular file", b->path);
            return -1;
        }

        if (stat(b->path, &now) == 0 && now.st_dev == st.st_dev
            && now.st_ino == st.st_ino)
        {
            return 0;
        }

        close(b->fd);
    }
}


/* One credit after the other, or two with the same id could both be added. */

static int
balance_alone(balance_t *b)
{
    struct flock  lock;

    memset(&lock, 0, sizeof(struct flock));
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;

    if (fcntl(b->fd, F_OFD_SETLKW, &lock) == -1) {
        ledger_error("%s: %s", b->path, strerror(errno));
        return -1;
    }

    return 0;
}


/* On from where reading stopped. */

static int
balance_read(balance_t *b)
{
    int               rc;
    char             *buf, err[LEDGER_JOURNAL_ERR];
    ssize_t           n;
    uint64_t          at;
    const char       *p;
    ledger_next_e     next;
    ledger_record_t   r;

    rc = -1;

    buf = malloc(LEDGER_JOURNAL_BUFFER);
    if (buf == NULL) {
        ledger_error("out of memory");
        return -1;
    }

    for ( ;; ) {
        n = pread(b->fd, buf, LEDGER_JOURNAL_BUFFER,
                  (off_t) b->reader.offset);

        if (n == -1) {
            ledger_error("%s: %s", b->path, strerror(errno));
            goto done;
        }

        p = buf;

        while ((next = ledger_journal_next(&b->reader, &p, buf + n, &r, &at,
                                           err))
               != LEDGER_AGAIN)
        {
            if (next == LEDGER_DAMAGED) {
                ledger_error("%s: byte %llu: %s, passed over", b->path,
                             (unsigned long long) at, err);
                continue;
            }

            if (balance_add(b, &r) != 0) {
                goto done;
            }
        }

        if (p == buf) {
            b->left = (uint64_t) n;
            break;
        }
    }

    rc = 0;

done:

    free(buf);

    return rc;
}


static int
balance_add(balance_t *b, const ledger_record_t *r)
{
    ledger_sum_t  *s;

    if (r->charge) {

        if (ledger_recent_has(&b->recent, r->id)) {
            b->duplicates++;
            return 0;
        }

        ledger_recent_add(&b->recent, r->id);

    } else if (b->id != NULL && strcmp(b->id, r->id) == 0) {
        b->id_seen = 1;
    }

    if (b->names.n == LEDGER_NAMES) {
        ledger_error("%s: more than %d accounts", b->path, LEDGER_NAMES - 1);
        return -1;
    }

    s = ledger_names_get(&b->names, r->account);

    if (s == NULL) {
        ledger_error("out of memory");
        return -1;
    }

    s->cost += r->nano;

    return 0;
}


/* Short, it is cut off and tried again; one that is whole is kept. */

static int
balance_append(balance_t *b, const char *line, size_t len)
{
    int      tries;
    ssize_t  n;

    for (tries = 0; tries < 2; tries++) {
        n = write(b->fd, line, len);

        if (n == (ssize_t) len) {

            if (fsync(b->fd) == -1) {
                ledger_error("%s: it was added, but maybe not to the disk: "
                             "%s", b->path, strerror(errno));
                return -1;
            }

            return 0;
        }

        if (n == -1) {
            break;
        }
    }

    ledger_error("%s: nothing was added: %s", b->path,
                 n == -1 ? strerror(errno) : "there is no room");

    return -1;
}


static int
balance_write(balance_t *b)
{
    int               fd, rc;
    char              tmp[BALANCE_PATH], line[LEDGER_JOURNAL_LINE];
    FILE             *f;
    size_t            i, len;
    struct stat       st;
    ledger_record_t   r;

    rc = -1;

    if (strlen(b->path) + sizeof(".new") > sizeof(tmp)) {
        ledger_error("%s: the path is too long", b->path);
        return -1;
    }

    snprintf(tmp, sizeof(tmp), "%s.new", b->path);

    fd = open(tmp, O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0600);
    f = fd != -1 ? fdopen(fd, "w") : NULL;

    if (f == NULL) {
        goto failed;
    }

    if (fstat(b->fd, &st) == -1 || fchmod(fd, st.st_mode & 07777) == -1
        || fchown(fd, st.st_uid, st.st_gid) == -1)
    {
        goto failed;
    }

    memset(&r, 0, sizeof(ledger_record_t));
    r.time = time(NULL);
    snprintf(r.id, sizeof(r.id), "compact-%lld", (long long) r.time);

    for (i = 0; i < b->names.n; i++) {

        if (b->names.sum[i].cost > BALANCE_MAX
            || b->names.sum[i].cost < -BALANCE_MAX)
        {
            ledger_error("%s: the balance of %s is beyond 10^9 dollars",
                         b->path, b->names.sum[i].name);
            goto done;
        }

        snprintf(r.account, sizeof(r.account), "%s", b->names.sum[i].name);
        r.nano = (int64_t) b->names.sum[i].cost;
        len = ledger_record_put(line, &r);

        if (fwrite(line, 1, len, f) != len) {
            goto failed;
        }
    }

    if (fflush(f) != 0 || fsync(fd) == -1) {
        goto failed;
    }

    rc = balance_replace(b, tmp);

    goto done;

failed:

    ledger_error("%s: %s", tmp, strerror(errno));

done:

    if (rc != 0 && fd != -1) {
        (void) unlink(tmp);
    }

    if (f != NULL) {
        (void) fclose(f);

    } else if (fd != -1) {
        close(fd);
    }

    return rc;
}


/* There is a journal under its name at every moment. */

static int
balance_replace(balance_t *b, const char *tmp)
{
    int    fd;
    char   old[BALANCE_PATH + 4], *slash;

    snprintf(old, sizeof(old), "%s.old", b->path);

    if ((unlink(old) == -1 && errno != ENOENT)
        || link(b->path, old) == -1)
    {
        ledger_error("%s: %s", old, strerror(errno));
        return -1;
    }

    if (rename(tmp, b->path) == -1) {
        ledger_error("%s: %s", b->path, strerror(errno));
        return -1;
    }

    slash = strrchr(old, '/');

    if (slash != NULL) {
        slash[slash == old] = '\0';
    }

    fd = open(slash != NULL ? old : ".", O_RDONLY|O_DIRECTORY|O_CLOEXEC);

    if (fd != -1) {
        (void) fsync(fd);
        close(fd);
    }

    return 0;
}


static const char *
balance_money(char *buf, ledger_int_t nano)
{
    return ledger_exact(buf, nano, LEDGER_NANO);
}


static void
balance_close(balance_t *b)
{
    if (b->fd != -1) {
        close(b->fd);
    }

    ledger_names_free(&b->names);
}
