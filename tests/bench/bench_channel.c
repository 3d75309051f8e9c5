/*
 * The channel beside a pipe and a Unix socket pair, between two processes:
 * messages per second one way, and latency of one message (half a round trip)
 * when the receiver sleeps in poll(), as an event loop does, and when it looks
 * again and again, as an engine between two steps does.
 *
 *     bench_channel [--messages N] [--rounds N] [--bytes N] [--repeat N]
 *
 * Of `repeat` runs (3), taken in turn, the best is printed.
 *
 * Pipe and socket pair carry the same records with one write() and one read()
 * for each, and, as the channel does, many in one call where more are ready:
 * "batched" reads whatever is there and writes 16 records at once.  The
 * channel's receiver sleeps on its doorbell when the ring is empty, its sender
 * when it is full.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "channel/channel.h"


#define BYTES_MAX  4096
#define BATCH      16
#define LIMIT      1.0   /* seconds for the round trips of one run */

enum { CHANNEL, PIPE, SOCKETPAIR, N_KINDS };

typedef struct {
    chan_lane_t  lane;
    int          in, out;
} end_t;

typedef struct {
    double  rate;            /* messages per second */
    double  cpu;             /* us of both processes per message */
    double  p50, p99;        /* us, receiver asleep */
    double  s50, s99;        /* us, receiver awake */
} result_t;

static const char *const  names[] = { "channel", "pipe", "socketpair" };

static size_t  bytes = 64;
static int     spin, event_loop;


static void
die(const char *what)
{
    perror(what);
    exit(1);
}


static double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}


static double
cpu(int who)
{
    struct rusage  ru;

    getrusage(who, &ru);

    return (double) (ru.ru_utime.tv_sec + ru.ru_stime.tv_sec)
           + (double) (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) * 1e-6;
}


/* Two ends, `a` for this process, `b` for a child. */

static void
connect_ends(int kind, end_t *a, end_t *b)
{
    int   p[2], q[2];
    char  err[CHAN_ERR_LEN];

    chan_lane_init(&a->lane);
    chan_lane_init(&b->lane);

    if (kind == CHANNEL) {
        if (chan_lane_create(&a->lane, 0, err) != CHAN_OK) {
            fprintf(stderr, "%s\n", err);
            exit(1);
        }

        b->lane = a->lane;
        b->lane.in = a->lane.out;
        b->lane.out = a->lane.in;
        b->lane.in.producer = 0;
        b->lane.out.producer = 1;
        b->lane.bell_own = a->lane.bell_peer;
        b->lane.bell_peer = a->lane.bell_own;
        b->lane.in.bell = b->lane.bell_peer;
        b->lane.out.bell = b->lane.bell_peer;
        return;
    }

    if (kind == PIPE) {
        if (pipe(p) == -1 || pipe(q) == -1) {
            die("pipe");
        }

        a->in = p[0];
        b->out = p[1];
        b->in = q[0];
        a->out = q[1];
        return;
    }

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, p) == -1) {
        die("socketpair");
    }

    a->in = a->out = p[0];
    b->in = b->out = p[1];
}


static void
disconnect(int kind, end_t *a, end_t *b)
{
    if (kind == CHANNEL) {
        chan_lane_close(&a->lane);
        return;
    }

    close(a->in);
    close(b->in);

    if (kind == PIPE) {
        close(a->out);
        close(b->out);
    }
}


static void
wait_bell(chan_lane_t *lane)
{
    struct pollfd  pfd;

    pfd.fd = lane->bell_own;
    pfd.events = POLLIN;
    (void) poll(&pfd, 1, 10000);
    chan_bell_drain(lane->bell_own);
}


/* One record of `bytes` payload; the channel's does not wait to be rung. */

static void
put(int kind, end_t *e, uint64_t id, int count)
{
    int            i, rc;
    char           err[CHAN_ERR_LEN];
    size_t         off, total;
    ssize_t        n;
    struct iovec   part[2];
    chan_record_t  rec;

    static uint8_t  buf[BATCH * (BYTES_MAX + sizeof(chan_record_t))];

    memset(&rec, 0, sizeof(rec));
    rec.size = (uint32_t) (sizeof(rec) + bytes);
    rec.type = 1;

    if (kind == CHANNEL) {
        part[0].iov_base = &rec;
        part[0].iov_len = sizeof(rec);
        part[1].iov_base = buf;
        part[1].iov_len = bytes;

        for (i = 0; i < count; i++) {
            rec.id = id + (uint64_t) i;

            while ((rc = chan_ring_write(&e->lane.out, part, 2, err))
                   == CHAN_AGAIN)
            {
                chan_ring_notify_data(&e->lane.out);

                if (chan_ring_wait_room(&e->lane.out, e->lane.out.size / 2,
                                        err) == 1)
                {
                    wait_bell(&e->lane);
                }
            }

            if (rc != CHAN_OK) {
                fprintf(stderr, "%s\n", err);
                exit(1);
            }
        }

        chan_ring_notify_data(&e->lane.out);
        return;
    }

    for (i = 0; i < count; i++) {
        rec.id = id + (uint64_t) i;
        memcpy(buf + (size_t) i * rec.size, &rec, sizeof(rec));
    }

    total = (size_t) count * rec.size;

    for (off = 0; off < total; off += (size_t) n) {
        n = write(e->out, buf + off, total - off);

        if (n <= 0) {
            die("write");
        }
    }
}


/* Takes at least one record, at most all there is; returns the last id. */

static uint64_t
take(int kind, end_t *e, int batched)
{
    int             rc;
    char            err[CHAN_ERR_LEN];
    size_t          size, want;
    ssize_t         n;
    uint64_t        last;
    struct pollfd   pfd;
    chan_record_t  *rec;

    static size_t    have;
    static uint64_t  buf[65536 / 8];

    rec = (chan_record_t *) buf;
    size = sizeof(*rec) + bytes;

    if (kind == CHANNEL) {
        last = 0;

        for ( ;; ) {
            rc = chan_ring_read(&e->lane.in, buf, sizeof(buf), err);

            if (rc == CHAN_OK) {
                last = rec->id;

                if (batched) {
                    continue;
                }

                return last;
            }

            if (rc != CHAN_AGAIN) {
                fprintf(stderr, "%s\n", err);
                exit(1);
            }

            if (spin) {
                continue;
            }

            chan_ring_notify_room(&e->lane.in);

            if (last != 0) {
                return last;
            }

            if (chan_ring_sleep(&e->lane.in, err) == 1) {
                wait_bell(&e->lane);
            }
        }
    }

    want = batched ? sizeof(buf) / size * size : size;

    do {
        if (event_loop) {
            pfd.fd = e->in;
            pfd.events = POLLIN;
            (void) poll(&pfd, 1, 10000);
        }

        n = read(e->in, (uint8_t *) buf + have, want - have);

        if (n == -1 && errno == EAGAIN && spin) {
            continue;
        }

        if (n <= 0) {
            die("read");
        }

        have += (size_t) n;
    } while (have < size);

    last = ((chan_record_t *) ((uint8_t *) buf
                               + (have / size - 1) * size))->id;
    want = have % size;
    memmove(buf, (uint8_t *) buf + have - want, want);
    have = want;

    return last;
}


static pid_t
spawn(void)
{
    pid_t  pid;

    fflush(stdout);
    pid = fork();

    if (pid == -1) {
        die("fork");
    }

    if (pid == 0) {
        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
    }

    return pid;
}


static void
measure_rate(int kind, int batch, uint64_t n, result_t *r)
{
    end_t     a, b;
    pid_t     pid;
    double    start, used;
    uint64_t  id;

    connect_ends(kind, &a, &b);
    used = cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN);
    pid = spawn();

    if (pid == 0) {
        for (id = 1; id <= n; id += (uint64_t) batch) {
            put(kind, &b, id, batch);
        }

        _exit(0);
    }

    while (take(kind, &a, batch > 1) == 0) { /* void */ }

    start = now();

    while (take(kind, &a, batch > 1) < n) { /* void */ }

    r->rate = (double) n / (now() - start);
    waitpid(pid, NULL, 0);
    used = cpu(RUSAGE_SELF) + cpu(RUSAGE_CHILDREN) - used;
    r->cpu = used / (double) n * 1e6;
    disconnect(kind, &a, &b);
}


static int
by_value(const void *a, const void *b)
{
    double  x, y;

    x = *(const double *) a;
    y = *(const double *) b;

    return x < y ? -1 : x > y;
}


static void
measure_latency(int kind, uint64_t n, double *p50, double *p99)
{
    end_t      a, b;
    pid_t      pid;
    double    *us, start, end;
    uint64_t   id;

    us = malloc(n * sizeof(*us));

    if (us == NULL) {
        die("malloc");
    }

    connect_ends(kind, &a, &b);

    if (spin && kind != CHANNEL
        && (fcntl(a.in, F_SETFL, O_NONBLOCK) == -1
            || fcntl(b.in, F_SETFL, O_NONBLOCK) == -1))
    {
        die("fcntl");
    }

    pid = spawn();

    if (pid == 0) {
        while (take(kind, &b, 0) != UINT64_MAX) {
            put(kind, &b, 1, 1);
        }

        _exit(0);
    }

    end = now() + LIMIT;

    for (id = 0; id < n; id++) {
        start = now();

        if (start > end) {
            n = id;
            break;
        }

        put(kind, &a, 1, 1);
        (void) take(kind, &a, 0);
        us[id] = (now() - start) * 1e6 / 2;
    }

    put(kind, &a, UINT64_MAX, 1);

    waitpid(pid, NULL, 0);
    qsort(us, n, sizeof(*us), by_value);
    *p50 = us[n / 2];
    *p99 = us[n - 1 - n / 100];
    free(us);
    disconnect(kind, &a, &b);
}


/* Keeps the pair whose first value is smaller; `i` is the run's number. */

static void
best(double *x, double *y, double new_x, double new_y, int i)
{
    if (i == 0 || new_x < *x) {
        *x = new_x;
        *y = new_y;
    }
}


int
main(int argc, char **argv)
{
    int       c, i, k, repeat;
    uint64_t  messages, rounds;
    result_t  r, one[N_KINDS], many[N_KINDS];

    static const struct option  options[] = {
        { "messages", required_argument, NULL, 'm' },
        { "rounds", required_argument, NULL, 'r' },
        { "bytes", required_argument, NULL, 'b' },
        { "repeat", required_argument, NULL, 'n' },
        { NULL, 0, NULL, 0 }
    };

    messages = 1000000;
    rounds = 30000;
    repeat = 3;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'm': messages = strtoull(optarg, NULL, 10); break;
        case 'r': rounds = strtoull(optarg, NULL, 10); break;
        case 'b': bytes = strtoull(optarg, NULL, 10); break;
        case 'n': repeat = atoi(optarg); break;
        default:
            fprintf(stderr, "usage: bench_channel [--messages N] "
                    "[--rounds N] [--bytes N] [--repeat N]\n");
            return 2;
        }
    }

    if (bytes < 8 || bytes > BYTES_MAX || bytes % 8 != 0 || rounds < 100
        || messages < 1000 || repeat < 1)
    {
        fprintf(stderr, "8 to %d bytes, a multiple of 8; 100 rounds and 1000 "
                "messages at least\n", BYTES_MAX);
        return 2;
    }

    messages = messages / BATCH * BATCH;

    for (i = 0; i < repeat; i++) {
        for (k = 0; k < N_KINDS; k++) {
            measure_rate(k, 1, messages, &r);
            best(&one[k].rate, &one[k].cpu, -r.rate, r.cpu, i);
            measure_rate(k, BATCH, messages, &r);
            best(&many[k].rate, &many[k].cpu, -r.rate, r.cpu, i);
            event_loop = 1;
            measure_latency(k, rounds, &r.p50, &r.p99);
            event_loop = 0;
            best(&one[k].p50, &one[k].p99, r.p50, r.p99, i);
            spin = 1;
            measure_latency(k, rounds, &r.s50, &r.s99);
            best(&one[k].s50, &one[k].s99, r.s50, r.s99, i);
            spin = 0;
        }
    }

    for (k = 0; k < N_KINDS; k++) {
        one[k].rate = -one[k].rate;
        many[k].rate = -many[k].rate;
    }

    printf("%zu-byte payload, two processes, %llu messages, up to %llu "
           "round trips, best of %d\n\n", bytes,
           (unsigned long long) messages, (unsigned long long) rounds, repeat);
    printf("%-10s %12s %6s %7s %12s %6s %7s %14s %14s\n", "", "one by one",
           "", "CPU", "batched", "", "CPU", "asleep, us", "awake, us");
    printf("%-10s %12s %6s %7s %12s %6s %7s %7s%7s %7s%7s\n", "", "msg/s",
           "ratio", "us/msg", "msg/s", "ratio", "us/msg", "p50", "p99", "p50",
           "p99");

    for (k = 0; k < N_KINDS; k++) {
        printf("%-10s %12.0f %6.2f %7.3f %12.0f %6.2f %7.3f %7.2f%7.2f"
               " %7.2f%7.2f\n", names[k], one[k].rate,
               one[CHANNEL].rate / one[k].rate, one[k].cpu, many[k].rate,
               many[CHANNEL].rate / many[k].rate, many[k].cpu, one[k].p50,
               one[k].p99, one[k].s50, one[k].s99);
    }

    printf("\nratio: the channel's rate over this one's.  \"awake\" needs a "
           "core for each process.\n");

    return 0;
}
