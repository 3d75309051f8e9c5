/*
 * Files of lines.  zlib reads what is not gzip as it is; a line is all that
 * is held in memory.
 */

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "ledger.h"


#define LEDGER_BUFFER  (4 * LEDGER_LINE)

typedef struct {
    const char  *name;
    uint64_t     line;
    uint64_t    *damaged;
    int        (*add)(void *data, const ledger_usage_t *u);
    void        *data;
} read_t;


static gzFile ledger_open(const char *path);
static int ledger_lines(read_t *r, gzFile gz, char *buf);
static int ledger_line(read_t *r, const char *line, size_t len);


void
ledger_error(const char *fmt, ...)
{
    va_list  ap;

    fputs("llm-ledger: ", stderr);

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);

    fputc('\n', stderr);
}


int
ledger_read(const char *path, int (*add)(void *data, const ledger_usage_t *u),
    void *data, uint64_t *damaged)
{
    int     rc;
    char   *buf;
    read_t  r;
    gzFile  gz;

    rc = -1;
    buf = NULL;

    r.name = strcmp(path, "-") == 0 ? "(standard input)" : path;
    r.line = 0;
    r.damaged = damaged;
    r.add = add;
    r.data = data;

    gz = ledger_open(path);

    if (gz == NULL) {
        ledger_error("%s: %s", r.name,
                     errno != 0 ? strerror(errno) : "out of memory");
        return -1;
    }

    buf = malloc(LEDGER_BUFFER);

    if (buf == NULL || gzbuffer(gz, LEDGER_BUFFER) != 0) {
        ledger_error("%s: out of memory", r.name);
        goto done;
    }

    rc = ledger_lines(&r, gz, buf);

done:

    free(buf);
    gzclose(gz);

    return rc;
}


static gzFile
ledger_open(const char *path)
{
    int     fd;
    gzFile  gz;

    errno = 0;

    if (strcmp(path, "-") != 0) {
        return gzopen(path, "rb");
    }

    fd = dup(STDIN_FILENO);
    if (fd == -1) {
        return NULL;
    }

    gz = gzdopen(fd, "rb");
    if (gz == NULL) {
        close(fd);
    }

    return gz;
}


/* A line that is too long is passed over up to its end. */

static int
ledger_lines(read_t *r, gzFile gz, char *buf)
{
    int          n, skip, code;
    char        *p, *end, *nl;
    size_t       used;
    const char  *reason;

    used = 0;
    skip = 0;

    for ( ;; ) {
        n = gzread(gz, buf + used, (unsigned) (LEDGER_BUFFER - used));

        if (n <= 0) {
            break;
        }

        p = buf;
        end = buf + used + n;

        while ((nl = memchr(p, '\n', (size_t) (end - p))) != NULL) {
            if (skip) {
                skip = 0;

            } else if (ledger_line(r, p, (size_t) (nl - p)) != 0) {
                return -1;
            }

            p = nl + 1;
        }

        used = (size_t) (end - p);

        if (skip) {
            used = 0;

        } else if (used > LEDGER_LINE) {
            if (ledger_line(r, p, used) != 0) {
                return -1;
            }

            skip = 1;
            used = 0;
        }

        memmove(buf, p, used);
    }

    reason = gzerror(gz, &code);

    if (n < 0 || code != Z_OK) {
        ledger_error("%s: line %llu: %s", r->name,
                     (unsigned long long) r->line + 1,
                     code == Z_ERRNO ? strerror(errno) : reason);
        return -1;
    }

    return used > 0 ? ledger_line(r, buf, used) : 0;
}


static int
ledger_line(read_t *r, const char *line, size_t len)
{
    char            err[ERR_LEN];
    ledger_usage_t  u;

    r->line++;

    if (len > LEDGER_LINE) {
        snprintf(err, sizeof(err), "longer than %d bytes", LEDGER_LINE);

    } else if (ledger_usage(line, len, &u, err) == 0) {
        return r->add(r->data, &u);
    }

    (*r->damaged)++;
    ledger_error("%s:%llu: %s, skipped", r->name,
                 (unsigned long long) r->line, err);

    return 0;
}
