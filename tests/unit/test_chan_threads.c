/*
 * Two threads on one ring: nothing lost, nothing out of order, and no wakeup
 * missed by a sleeper, in either direction.  Meant for thread sanitizer too,
 * which is why both sides use one mapping.
 *
 * A lost wakeup shows as a poll() that times out although there is something
 * to do.  LONG=1 sends millions.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "channel/channel.h"
#include "channel/chan_board.h"
#include "unit/random.h"


#define WAIT_MS  20000       /* far more than any scheduling delay */

typedef struct {
    chan_lane_t  *lane;      /* this side's view */
    uint64_t      n;         /* messages to move */
    uint64_t      burst;     /* at most before a notify */
    size_t        payload;   /* at most */
    uint64_t      sleeps, waits, lost, bad;
    char          err[CHAN_ERR_LEN];
} side_t;


/* Blocks until the bell rings; counts a time limit as a lost wakeup. */

static void
wait_bell(side_t *s)
{
    struct pollfd  pfd;

    pfd.fd = s->lane->bell_own;
    pfd.events = POLLIN;

    if (poll(&pfd, 1, WAIT_MS) != 1) {
        s->lost++;
    }

    chan_bell_drain(s->lane->bell_own);
}


static int
produce_one(side_t *s, uint64_t i, uint64_t *data)
{
    int            rc;
    size_t         k, n;
    chan_record_t  rec;
    struct iovec   part[2];

    n = random_mix(i) % (s->payload / 8 + 1);

    for (k = 0; k < n; k++) {
        data[k] = i + k;
    }

    memset(&rec, 0, sizeof(rec));
    rec.id = i;
    part[0].iov_base = &rec;
    part[0].iov_len = sizeof(rec);
    part[1].iov_base = data;
    part[1].iov_len = n * 8;

    for ( ;; ) {
        rc = chan_ring_write(&s->lane->out, part, 2, s->err);

        if (rc != CHAN_AGAIN) {
            return rc;
        }

        chan_ring_notify_data(&s->lane->out);

        if (chan_ring_wait_room(&s->lane->out, 16 + n * 8, s->err) == 1) {
            s->waits++;
            wait_bell(s);
            chan_ring_awake(&s->lane->out);
        }

        if (s->lost != 0) {
            return CHAN_ERROR;
        }
    }
}


static void *
producer(void *arg)
{
    side_t    *s = arg;
    uint64_t   i, data[512];

    for (i = 1; i <= s->n; i++) {

        if (produce_one(s, i, data) != CHAN_OK) {
            s->bad++;
            return NULL;
        }

        if (random_mix(i * 3) % s->burst == 0) {
            chan_ring_notify_data(&s->lane->out);
        }
    }

    chan_ring_notify_data(&s->lane->out);

    return NULL;
}


static void *
consumer(void *arg)
{
    int             rc;
    side_t         *s = arg;
    size_t          k, n;
    uint64_t        i, *data, buf[CHAN_RECORD_MAX / 8];
    chan_record_t  *rec;

    rec = (chan_record_t *) buf;
    data = (uint64_t *) (rec + 1);

    for (i = 1; i <= s->n; /* void */) {
        rc = chan_ring_read(&s->lane->in, buf, sizeof(buf), s->err);

        if (rc == CHAN_AGAIN) {
            chan_ring_notify_room(&s->lane->in);

            if (chan_ring_sleep(&s->lane->in, s->err) == 1) {
                s->sleeps++;
                wait_bell(s);
                chan_ring_awake(&s->lane->in);
            }

            if (s->lost != 0) {
                return NULL;
            }

            continue;
        }

        n = random_mix(i) % (s->payload / 8 + 1);

        if (rc != CHAN_OK || rec->id != i || rec->size != 16 + n * 8) {
            s->bad++;
            return NULL;
        }

        for (k = 0; k < n; k++) {
            s->bad += data[k] != i + k;
        }

        if (random_mix(i * 5) % s->burst == 0) {
            chan_ring_notify_room(&s->lane->in);
        }

        i++;
    }

    chan_ring_notify_room(&s->lane->in);

    return NULL;
}


/* The other side's view of the same mapping. */

static void
mirror(chan_lane_t *worker, chan_lane_t *engine)
{
    chan_lane_init(worker);
    worker->bell_own = engine->bell_peer;
    worker->bell_peer = engine->bell_own;
    worker->out = engine->in;
    worker->out.producer = 1;
    worker->out.bell = engine->bell_own;
    worker->in = engine->out;
    worker->in.producer = 0;
    worker->in.bell = engine->bell_own;
}


/*
 * A whole lane: in each direction one producer and one consumer.  A lane has
 * one bell for each side, so here each direction runs on its own.
 */

static void
hammer(uint64_t n, uint64_t burst, size_t payload, uint64_t ring)
{
    char         err[CHAN_ERR_LEN];
    side_t       p, c;
    pthread_t    tp, tc;
    chan_lane_t  engine, worker;

    assert_int_equal(chan_lane_create(&engine, 2 * CHAN_RING_MIN, err),
                     CHAN_OK);

    /* a smaller ring is full more often */

    engine.in.size = ring;
    engine.out.size = ring;
    mirror(&worker, &engine);

    memset(&p, 0, sizeof(p));
    p.lane = &worker;
    p.n = n;
    p.burst = burst;
    p.payload = payload;
    c = p;
    c.lane = &engine;

    assert_int_equal(pthread_create(&tc, NULL, consumer, &c), 0);
    assert_int_equal(pthread_create(&tp, NULL, producer, &p), 0);
    pthread_join(tp, NULL);
    pthread_join(tc, NULL);

    if (p.lost + c.lost + p.bad + c.bad != 0) {
        fail_msg("lost %d %d, bad %d %d, %s %s", (int) p.lost, (int) c.lost,
                 (int) p.bad, (int) c.bad, p.err, c.err);
    }

    print_message("%llu messages, burst %llu, ring %llu: %llu sleeps, "
                  "%llu waits for room\n", (unsigned long long) n,
                  (unsigned long long) burst, (unsigned long long) ring,
                  (unsigned long long) c.sleeps, (unsigned long long) p.waits);

    chan_lane_close(&engine);
}


static void
test_hammer(void **state)
{
    uint64_t  k;

    (void) state;

    k = getenv("LONG") != NULL ? 50 : 1;

    hammer(200000 * k, 1, 64, CHAN_RING_MIN);
    hammer(100000 * k, 1, 64, 256);
    hammer(100000 * k, 3, 1000, 4096);
    hammer(100000 * k, 64, 4000, 65536);
}


/*
 * The doorbell's race alone, as often as it can be had: one side goes to sleep
 * while the other writes.  Neither blocks in the kernel: a sleeper looks at
 * its flag, which the ringing side clears.  Without the fences the flag stays
 * set beside a record.
 */

static void
pin(unsigned n)
{
    unsigned   i;
    cpu_set_t  all, one;

    if (sched_getaffinity(0, sizeof(all), &all) != 0 || CPU_COUNT(&all) < 2) {
        return;
    }

    for (i = 0; i < CPU_SETSIZE; i++) {
        if (CPU_ISSET(i, &all) && n-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(i, &one);
            (void) pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
            return;
        }
    }
}


static int
spin_until(side_t *s, volatile AO_t *word, AO_t value)
{
    uint64_t         i;
    struct timespec  ts;

    ts.tv_sec = 0;
    ts.tv_nsec = 1000000;

    for (i = 0; i < 1000000 + WAIT_MS; i++) {

        if (AO_load_acquire(word) == value) {
            return 1;
        }

        if (i > 1000000) {
            (void) nanosleep(&ts, NULL);

        } else if (i % 16384 == 16383) {
            (void) sched_yield();
        }
    }

    s->lost++;

    return 0;
}


static void *
racer(void *arg)
{
    side_t         *s = arg;
    uint64_t        i;
    chan_ring_t    *r;
    struct iovec    part;
    chan_record_t   rec;

    pin(1);
    r = &s->lane->out;
    memset(&rec, 0, sizeof(rec));
    rec.id = 1;
    part.iov_base = &rec;
    part.iov_len = sizeof(rec);

    for (i = 0; i < s->n; i++) {

        if (chan_ring_write(r, &part, 1, s->err) != CHAN_OK) {
            s->bad++;
            return NULL;
        }

        chan_ring_notify_data(r);

        if (spin_until(s, &r->ctl->tail, r->cursor) == 0) {
            return NULL;
        }
    }

    return NULL;
}


static void
test_race(void **state)
{
    int                 rc;
    char                err[CHAN_ERR_LEN];
    side_t              p, c;
    uint64_t            i, buf[CHAN_RECORD_MAX / 8];
    cpu_set_t           all;
    pthread_t           tp;
    chan_ring_t        *r;
    chan_lane_t         engine, worker;
    volatile uint64_t   k;

    (void) state;

    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    assert_int_equal(chan_lane_create(&engine, 0, err), CHAN_OK);
    mirror(&worker, &engine);
    worker.out.bell = -1;
    memset(&p, 0, sizeof(p));
    p.lane = &worker;
    p.n = getenv("LONG") != NULL ? 10000000 : 200000;
    c = p;
    r = &engine.in;

    assert_int_equal(pthread_create(&tp, NULL, racer, &p), 0);
    pin(0);          /* not before: a thread inherits it */

    for (i = 0; i < p.n; /* void */) {

        /* from none to more than the other side needs for its next record */

        for (k = random_mix(i) % 256; k > 0; k--) { /* void */ }

        rc = chan_ring_sleep(r, err);
        assert_int_not_equal(rc, CHAN_ERROR);

        if (rc == 1) {
            c.sleeps++;

            if (spin_until(&c, &r->ctl->consumer_sleeps, 0) == 0) {
                break;
            }
        }

        for ( ;; ) {
            rc = chan_ring_read(r, buf, sizeof(buf), err);

            if (rc != CHAN_OK) {
                break;
            }

            i++;
        }

        assert_int_equal(rc, CHAN_AGAIN);
    }

    pthread_join(tp, NULL);
    (void) sched_setaffinity(0, sizeof(all), &all);
    print_message("%llu races, %llu sleeps\n", (unsigned long long) i,
                  (unsigned long long) c.sleeps);
    assert_int_equal(p.lost + c.lost, 0);
    assert_int_equal(p.bad, 0);
    chan_lane_close(&engine);
}


/* Ping-pong: both sleep between any two messages. */

static void *
echo(void *arg)
{
    int            rc;
    side_t        *s = arg;
    uint64_t       i, buf[CHAN_RECORD_MAX / 8];
    struct iovec   part;

    for (i = 1; i <= s->n; /* void */) {
        rc = chan_ring_read(&s->lane->in, buf, sizeof(buf), s->err);

        if (rc == CHAN_AGAIN) {

            if (chan_ring_sleep(&s->lane->in, s->err) == 1) {
                s->sleeps++;
                wait_bell(s);
                chan_ring_awake(&s->lane->in);
            }

            if (s->lost != 0) {
                return NULL;
            }

            continue;
        }

        s->bad += rc != CHAN_OK || ((chan_record_t *) buf)->id != i;
        i++;

        if (s->burst == 0 && i > s->n) {
            break;                   /* the last answer to the first side */
        }

        ((chan_record_t *) buf)->id = s->burst == 0 ? i : i - 1;
        part.iov_base = buf;
        part.iov_len = sizeof(chan_record_t);
        s->bad += chan_ring_write(&s->lane->out, &part, 1, s->err) != CHAN_OK;
        chan_ring_notify_data(&s->lane->out);
    }

    return NULL;
}


static void
test_ping_pong(void **state)
{
    char           err[CHAN_ERR_LEN];
    side_t         a, b;
    pthread_t      ta, tb;
    chan_lane_t    engine, worker;
    struct iovec   part;
    chan_record_t  rec;

    (void) state;

    assert_int_equal(chan_lane_create(&engine, 0, err), CHAN_OK);
    mirror(&worker, &engine);

    memset(&a, 0, sizeof(a));
    a.lane = &worker;
    a.n = getenv("LONG") != NULL ? 1000000 : 20000;
    b = a;
    b.lane = &engine;
    b.burst = 1;

    memset(&rec, 0, sizeof(rec));
    rec.id = 1;
    part.iov_base = &rec;
    part.iov_len = sizeof(rec);
    assert_int_equal(chan_ring_write(&worker.out, &part, 1, err), CHAN_OK);

    assert_int_equal(pthread_create(&ta, NULL, echo, &a), 0);
    assert_int_equal(pthread_create(&tb, NULL, echo, &b), 0);
    pthread_join(ta, NULL);
    pthread_join(tb, NULL);

    assert_int_equal(a.lost + b.lost, 0);
    assert_int_equal(a.bad + b.bad, 0);

    print_message("%llu round trips, %llu and %llu sleeps\n",
                  (unsigned long long) a.n, (unsigned long long) a.sleeps,
                  (unsigned long long) b.sleeps);

    chan_lane_close(&engine);
}


/* A board's readers never see half of a write. */

typedef struct {
    chan_board_t  *board;
    volatile AO_t  done;
    uint64_t       writes, reads, again, torn, applied, lapped, wrong;
} board_t;


static void *
publisher(void *arg)
{
    uint64_t             i;
    board_t             *t = arg;
    chan_board_rank_t    r;
    chan_board_state_t   s;

    memset(&s, 0, sizeof(s));
    memset(&r, 0, sizeof(r));

    for (i = 1; i <= t->writes; i++) {
        s.step = i;
        s.heartbeat_ms = i;
        s.waiting = i;
        s.running = i;
        s.log_head = 99;             /* ignored */
        s.lanes = i;
        s.requests = i;
        s.tokens = i;
        s.accepted[CHAN_DEPTH_MAX - 1] = i;
        chan_board_set_state(t->board, &s);

        r.epoch = i;
        r.moves = i;
        chan_board_set_rank(t->board, 1, &r);

        (void) chan_board_evict(t->board, (uint32_t) (i % 2), random_mix(i));

        if (i % 5000 == 0) {
            usleep(100);             /* on a busy machine the reader too */
        }
    }

    AO_store_release(&t->done, 1);

    return NULL;
}


static void *
reader(void *arg)
{
    int                  rc, last;
    board_t             *t = arg;
    uint32_t             rank;
    uint64_t             tag, next;
    chan_board_rank_t    r;
    chan_board_state_t   s;

    next = 1;

    for (last = 0; last < 2; last += AO_load_acquire(&t->done) != 0) {
        t->reads++;

        if (chan_board_get_state(t->board, &s) == CHAN_OK) {
            t->torn += s.step != s.waiting || s.step != s.running
                       || s.step != s.heartbeat_ms || s.step != s.lanes
                       || s.step != s.requests || s.step != s.tokens
                       || s.step != s.accepted[CHAN_DEPTH_MAX - 1];
        } else {
            t->again++;
        }

        if (chan_board_get_rank(t->board, 1, &r) == CHAN_OK) {
            t->torn += r.epoch != r.moves || r.running != 0;
        } else {
            t->again++;
        }

        for ( ;; ) {
            rc = chan_board_log(t->board, next, &rank, &tag);

            if (rc == CHAN_AGAIN) {
                break;
            }

            if (rc == CHAN_ERROR) {
                (void) chan_board_get_state(t->board, &s);

                /* lapped: what is asked for must really be gone */

                t->wrong += s.step != 0
                            && s.step + 2 < next + CHAN_LOG_SIZE;
                t->lapped++;
                next = s.step > next + CHAN_LOG_SIZE / 2
                       ? s.step - CHAN_LOG_SIZE / 2 : next + 1;
                continue;
            }

            t->wrong += tag != random_mix(next) || rank != next % 2;
            t->applied++;
            next++;
        }
    }

    return NULL;
}


static void
test_board(void **state)
{
    int        fd;
    char       err[CHAN_ERR_LEN];
    board_t    t;
    pthread_t  tw, tr;

    (void) state;

    memset(&t, 0, sizeof(t));
    assert_int_equal(chan_board_create(&t.board, 2, &fd, err), CHAN_OK);
    t.writes = getenv("LONG") != NULL ? 20000000 : 300000;

    assert_int_equal(pthread_create(&tr, NULL, reader, &t), 0);
    assert_int_equal(pthread_create(&tw, NULL, publisher, &t), 0);
    pthread_join(tw, NULL);
    pthread_join(tr, NULL);

    print_message("%llu reads, %llu gave up, %llu log entries, lapped %llu\n",
                  (unsigned long long) t.reads, (unsigned long long) t.again,
                  (unsigned long long) t.applied,
                  (unsigned long long) t.lapped);

    assert_int_equal(t.torn, 0);
    assert_int_equal(t.wrong, 0);
    assert_true(t.reads > 10);
    assert_true(t.applied > 10);

    chan_board_close(t.board);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_hammer),
        cmocka_unit_test(test_race),
        cmocka_unit_test(test_ping_pong),
        cmocka_unit_test(test_board),
    };

    alarm(getenv("LONG") != NULL ? 1800 : 120);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
