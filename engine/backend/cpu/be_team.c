/*
 * The team of threads.
 *
 * One word carries everything that must change together:
 *
 *     31 … 16  number of the job
 *     15       open: helpers may join
 *     14       the leader sleeps until the last helper has left
 *     13 … 0   helpers inside
 *
 * A helper joins by compare-and-swap while the job is open, so after the
 * leader has closed it nobody can come in, and the job's fields may be
 * written again once the count is zero.
 */

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "backend/backend.h"
#include "backend/cpu/be_team.h"


#define TEAM_JOB         0x10000u
#define TEAM_OPEN        0x8000u
#define TEAM_WAIT        0x4000u
#define TEAM_INSIDE      0x3fffu

#define TEAM_SHARE_COST  1500      /* ns: less is done by the leader alone */
#define TEAM_WAKE_COST   50000     /* ns of work lost before sleepers wake */
#define TEAM_SPIN_MAX    200000    /* ns */
#define TEAM_SPIN_MIN    50000     /* the gaps in a step are shorter */
#define TEAM_JOIN_SPIN   5000
#define TEAM_LATE        300000    /* ns: a helper must have been preempted */
#define TEAM_ALONE_MIN   1000000
#define TEAM_ALONE_MAX   16000000

#define TEAM_AWAY_MIN    1000000
#define TEAM_AWAY_MAX    256000000
#define TEAM_AWAY_SOON   16        /* times that: it happened again soon */
#define TEAM_AWAY_SLICE  32000000  /* but not sooner than that */

#define TEAM_FUTEX_HELP  1u        /* futex bits: helpers, leader */
#define TEAM_FUTEX_LEAD  2u


/* What a helper is told when it starts. */

typedef struct {
    be_team_t         *team;
    uint32_t           worker;
    pthread_t          thread;

    uint64_t           away;         /* ns, the last time; 0: never */
    uint64_t           back;         /* when it came back */
} team_helper_t;

struct be_team_s {
    _Atomic uint32_t   state;
    char               pad0[60];
    _Atomic uint32_t   next;         /* item */
    char               pad1[60];

    _Atomic uint32_t   sleepers;
    _Atomic uint32_t   quit;
    _Atomic int        cpu;          /* the leader's, at its last job */
    be_item_f          item;
    void              *ctx;
    uint32_t           n;

    uint32_t           size;         /* with the leader */
    uint64_t           debt;         /* ns done without the sleepers */
    uint64_t           alone_until;
    uint64_t           alone;        /* ns, how long the next time */
    int                pin;
    pthread_t          leader;       /* was the last one here */
    int                led;
    team_helper_t     *helper;       /* [size - 1] */
    uint32_t           started;
};


/*
 * Threads of all teams of the process: with more of them than CPUs spinning
 * would only keep others from running.
 */

static _Atomic uint32_t  team_threads;

static void *team_helper(void *data);
static uint32_t team_wait_job(be_team_t *team, uint32_t seen, uint64_t *spin);
static int team_in_the_way(be_team_t *team);
static void team_go_away(team_helper_t *h);
static void team_join_helpers(be_team_t *team, uint64_t usual);
static uint32_t team_work(be_team_t *team, uint32_t worker);
static void team_pin(int cpu);
static uint32_t team_cpus(void);
static uint64_t team_now(void);
static void team_pause(void);
static void team_sleep(_Atomic uint32_t *word, uint32_t value, uint32_t bits);
static void team_wake(_Atomic uint32_t *word, int n, uint32_t bits);


be_team_t *
be_team_open(uint32_t threads, int pin, char *err)
{
    int             rc;
    uint32_t        i;
    be_team_t      *team;
    team_helper_t  *h;

    if (threads == 0 || threads > 1024) {
        snprintf(err, ERR_LEN, "a team of %u threads is not possible",
                 threads);
        return NULL;
    }

    team = aligned_alloc(64, (sizeof(be_team_t) + 63) / 64 * 64);
    if (team == NULL) {
        snprintf(err, ERR_LEN, "out of memory for a team of threads");
        return NULL;
    }

    memset(team, 0, sizeof(be_team_t));
    team->size = threads;
    team->pin = pin;
    team->alone = TEAM_ALONE_MIN;
    atomic_store(&team->cpu, -1);

    atomic_fetch_add(&team_threads, threads);

    if (threads == 1) {
        return team;
    }

    team->helper = calloc(threads - 1, sizeof(team_helper_t));
    if (team->helper == NULL) {
        snprintf(err, ERR_LEN, "out of memory for a team of threads");
        goto failed;
    }

    for (i = 1; i < threads; i++) {
        h = &team->helper[i - 1];
        h->team = team;
        h->worker = i;

        rc = pthread_create(&h->thread, NULL, team_helper, h);
        if (rc != 0) {
            snprintf(err, ERR_LEN, "cannot start thread %u of %u: %s",
                     i + 1, threads, strerror(rc));
            goto failed;
        }

        team->started++;
    }

    return team;

failed:

    be_team_close(team);

    return NULL;
}


void
be_team_close(be_team_t *team)
{
    uint32_t  i;

    if (team == NULL) {
        return;
    }

    atomic_store(&team->quit, 1);
    atomic_fetch_add(&team->state, TEAM_JOB);
    team_wake(&team->state, INT_MAX, TEAM_FUTEX_HELP);
    team_wake(&team->quit, INT_MAX, TEAM_FUTEX_HELP);

    for (i = 0; i < team->started; i++) {
        (void) pthread_join(team->helper[i].thread, NULL);
    }

    atomic_fetch_sub(&team_threads, team->size);

    free(team->helper);
    free(team);
}


uint32_t
be_team_size(const be_team_t *team)
{
    return team->size;
}


void
be_team_run(be_team_t *team, be_item_f item, void *ctx, uint32_t n,
    uint64_t cost)
{
    uint32_t  i, state, done;
    uint64_t  from;

    /* Weights are made by one thread, steps done by another. */

    if (team->pin >= 0
        && (!team->led || !pthread_equal(team->leader, pthread_self())))
    {
        team->led = 1;
        team->leader = pthread_self();
        team_pin(team->pin);
    }

    if (team->size == 1 || n < 2 || cost < TEAM_SHARE_COST
        || (team->alone_until != 0 && team_now() < team->alone_until))
    {
        for (i = 0; i < n; i++) {
            item(ctx, i, 0);
        }

        return;
    }

    team->item = item;
    team->ctx = ctx;
    team->n = n;
    atomic_store_explicit(&team->cpu, sched_getcpu(), memory_order_relaxed);
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);

    /* The count is zero and the job closed, so nobody else writes here. */

    state = atomic_load_explicit(&team->state, memory_order_relaxed);
    state = ((state & ~(TEAM_JOB - 1)) + TEAM_JOB) | TEAM_OPEN;
    atomic_store(&team->state, state);

    if (atomic_load(&team->sleepers) != 0) {
        team->debt += cost;

        if (team->debt >= TEAM_WAKE_COST) {
            team->debt = 0;
            team_wake(&team->state, INT_MAX, TEAM_FUTEX_HELP);
        }
    }

    from = team_now();
    done = team_work(team, 0);

    team_join_helpers(team, (team_now() - from) / (done + 1));
}


/*
 * Closes the job and waits until those inside have left.  What is left to
 * wait for is the rest of one item, which takes the leader `usual` ns.  If it
 * takes much longer, the helper was preempted inside it: for a while the
 * leader then works alone, longer each time, because on a machine that busy
 * the other thread costs more than it brings.
 */

static void
team_join_helpers(be_team_t *team, uint64_t usual)
{
    uint32_t  state, i;
    uint64_t  from, now;

    state = atomic_fetch_and(&team->state, ~TEAM_OPEN) & ~TEAM_OPEN;

    if ((state & TEAM_INSIDE) == 0) {
        team->alone_until = 0;
        return;
    }

    from = team_now();
    now = from;

    while ((state & TEAM_INSIDE) != 0) {

        if (now - from < TEAM_JOIN_SPIN) {
            for (i = 0; i < 8; i++) {
                team_pause();
            }

        } else {
            if ((state & TEAM_WAIT) == 0) {
                state = atomic_fetch_or(&team->state, TEAM_WAIT) | TEAM_WAIT;
                if ((state & TEAM_INSIDE) == 0) {
                    break;
                }
            }

            team_sleep(&team->state, state, TEAM_FUTEX_LEAD);
        }

        now = team_now();
        state = atomic_load_explicit(&team->state, memory_order_acquire);
    }

    if ((state & TEAM_WAIT) != 0) {
        atomic_fetch_and(&team->state, ~TEAM_WAIT);
    }

    if (now - from > TEAM_LATE + 4 * usual) {
        team->alone_until = now + team->alone;
        if (team->alone < TEAM_ALONE_MAX) {
            team->alone *= 2;
        }

    } else {
        team->alone_until = 0;
        if (team->alone > TEAM_ALONE_MIN) {
            team->alone -= team->alone / 64;
        }
    }
}


/* Takes items while there are any; how many it took. */

static uint32_t
team_work(be_team_t *team, uint32_t worker)
{
    void       *ctx;
    uint32_t    i, n, done;
    be_item_f   item;

    n = team->n;
    ctx = team->ctx;
    item = team->item;

    for (done = 0; /* void */ ; done++) {
        i = atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
        if (i >= n) {
            return done;
        }

        item(ctx, i, worker);
    }
}


static void *
team_helper(void *data)
{
    uint32_t        worker, state, seen, was;
    uint64_t        spin;
    be_team_t      *team;
    team_helper_t  *h;

    h = data;
    team = h->team;
    worker = h->worker;

    if (team->pin >= 0) {
        team_pin(team->pin + (int) worker);
    }

    seen = 0;
    spin = TEAM_SPIN_MAX;

    for ( ;; ) {
        state = team_wait_job(team, seen, &spin);

        if (atomic_load_explicit(&team->quit, memory_order_relaxed)) {
            return NULL;
        }

        seen = state & ~(TEAM_JOB - 1);

        if (team_in_the_way(team)) {
            team_go_away(h);
            continue;
        }

        while ((state & TEAM_OPEN) != 0) {
            if (!atomic_compare_exchange_weak_explicit(&team->state, &state,
                     state + 1, memory_order_acquire, memory_order_relaxed))
            {
                continue;
            }

            (void) team_work(team, worker);

            was = atomic_fetch_sub_explicit(&team->state, 1,
                                            memory_order_release);

            if ((was & TEAM_WAIT) != 0 && (was & TEAM_INSIDE) == 1) {
                team_wake(&team->state, INT_MAX, TEAM_FUTEX_LEAD);
            }

            seen = was & ~(TEAM_JOB - 1);
            break;
        }
    }
}


/*
 * Waits for another job than `seen` (its number), first spinning for *spin
 * ns: twice as long the next time if that was good for something, half as
 * long if not.
 */

static uint32_t
team_wait_job(be_team_t *team, uint32_t seen, uint64_t *spin)
{
    uint32_t  state, i;
    uint64_t  from, limit;

    limit = *spin;
    if (atomic_load_explicit(&team_threads, memory_order_relaxed)
        > team_cpus())
    {
        limit = 0;
    }

    from = team_now();

    do {
        for (i = 0; i < 16; i++) {
            state = atomic_load_explicit(&team->state, memory_order_acquire);

            if ((state & ~(TEAM_JOB - 1)) != seen) {
                *spin = (*spin * 2 < TEAM_SPIN_MAX) ? *spin * 2
                                                    : TEAM_SPIN_MAX;
                return state;
            }

            team_pause();
        }

        if (team_in_the_way(team)) {
            break;
        }

    } while (team_now() - from < limit);

    if (*spin > TEAM_SPIN_MIN) {
        *spin /= 2;
    }

    atomic_fetch_add(&team->sleepers, 1);

    for ( ;; ) {
        state = atomic_load(&team->state);

        if ((state & ~(TEAM_JOB - 1)) != seen
            || atomic_load_explicit(&team->quit, memory_order_relaxed))
        {
            break;
        }

        team_sleep(&team->state, state, TEAM_FUTEX_HELP);
    }

    atomic_fetch_sub(&team->sleepers, 1);

    return state;
}


/*
 * Where others take the CPUs, the system lets a thread that wakes run in place
 * of the one that woke it: the leader then stands while a helper spins.
 */

static int
team_in_the_way(be_team_t *team)
{
    int  cpu;

    cpu = atomic_load_explicit(&team->cpu, memory_order_relaxed);

    return cpu >= 0 && sched_getcpu() == cpu;
}


/* Nobody wakes it meanwhile; twice as long each time that it is soon again. */

static void
team_go_away(team_helper_t *h)
{
    uint64_t         now, soon;
    be_team_t       *team;
    struct timespec  until;

    team = h->team;
    now = team_now();
    soon = TEAM_AWAY_SOON * h->away;
    soon = (soon > TEAM_AWAY_SLICE) ? soon : TEAM_AWAY_SLICE;

    if (h->away == 0 || now - h->back > soon) {
        h->away = TEAM_AWAY_MIN;

    } else if (h->away < TEAM_AWAY_MAX) {
        h->away *= 2;
    }

    h->back = now + h->away;
    until.tv_sec = (time_t) (h->back / 1000000000);
    until.tv_nsec = (long) (h->back % 1000000000);

    while (atomic_load_explicit(&team->quit, memory_order_relaxed) == 0
           && team_now() < h->back)
    {
        (void) syscall(SYS_futex, &team->quit, FUTEX_WAIT_BITSET_PRIVATE, 0,
                       &until, NULL, TEAM_FUTEX_HELP);
    }
}


static void
team_pin(int cpu)
{
    cpu_set_t  set;

    if (cpu >= CPU_SETSIZE) {
        return;
    }

    CPU_ZERO(&set);
    CPU_SET(cpu, &set);

    /* A wish only: the CPU may not exist or not be ours. */

    (void) sched_setaffinity(0, sizeof(set), &set);
}


static uint32_t
team_cpus(void)
{
    long                     n;
    uint32_t                 cpus;
    static _Atomic uint32_t  cached;

    cpus = atomic_load_explicit(&cached, memory_order_relaxed);

    if (cpus == 0) {
        n = sysconf(_SC_NPROCESSORS_ONLN);
        cpus = (n > 0) ? (uint32_t) n : 1;
        atomic_store_explicit(&cached, cpus, memory_order_relaxed);
    }

    return cpus;
}


static uint64_t
team_now(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000000 + (uint64_t) ts.tv_nsec;
}


static void
team_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}


static void
team_sleep(_Atomic uint32_t *word, uint32_t value, uint32_t bits)
{
    /* EAGAIN and EINTR are as good as a wake-up: callers look again. */

    (void) syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, NULL,
                   NULL, bits);
}


static void
team_wake(_Atomic uint32_t *word, int n, uint32_t bits)
{
    (void) syscall(SYS_futex, word, FUTEX_WAKE_BITSET_PRIVATE, n, NULL, NULL,
                   bits);
}
