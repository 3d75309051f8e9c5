/*
 * Meetings.
 */

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ep/ep_hub.h"


#define HUB_SPIN  2000               /* pauses before sleeping */


/* `why` is written by the one that won `failing`, read after `failed`. */

struct ep_hub_s {
    _Atomic uint32_t   round;        /* meetings held; the futex */
    _Atomic uint32_t   arrived;      /* ranks at the current meeting */
    _Atomic uint32_t   failing;
    _Atomic uint32_t   failed;
    char               why[ERR_LEN];

    uint32_t           ranks;
    uint32_t           first;
    uint32_t           timeout_ms;
    uint32_t           spin;
    _Atomic uint32_t  *came;         /* [ranks] the last meeting of each */

    void             (*tell)(void *ctx, const char *why);
    void              *tell_ctx;
};


static int hub_wait(ep_hub_t *hub, uint32_t round, const char *what,
    uint32_t timeout_ms, char *err);
static void hub_late(ep_hub_t *hub, uint32_t round, const char *what,
    uint32_t timeout_ms);


ep_hub_t *
ep_hub_open(uint32_t ranks, uint32_t first, uint32_t timeout_ms)
{
    cpu_set_t   set;
    ep_hub_t   *hub;

    hub = calloc(1, sizeof(ep_hub_t));
    if (hub == NULL) {
        return NULL;
    }

    hub->ranks = ranks;
    hub->first = first;
    hub->timeout_ms = timeout_ms;
    hub->came = calloc(ranks, sizeof(*hub->came));

    if (hub->came == NULL) {
        free(hub);
        return NULL;
    }

    /* spinning only takes the processor from those that are waited for */

    if (sched_getaffinity(0, sizeof(set), &set) == 0
        && CPU_COUNT(&set) >= (int) ranks)
    {
        hub->spin = HUB_SPIN;
    }

    return hub;
}


void
ep_hub_close(ep_hub_t *hub)
{
    if (hub == NULL) {
        return;
    }

    free(hub->came);
    free(hub);
}


void
ep_hub_tell(ep_hub_t *hub, void (*failed)(void *ctx, const char *why),
    void *ctx)
{
    hub->tell_ctx = ctx;
    hub->tell = failed;
}


/*
 * The last to arrive opens the next round.  `arrived` chains the arrivals,
 * `round` releases.
 */

int
ep_hub_meet(ep_hub_t *hub, uint32_t index, const char *what,
    ep_hub_last_pt last, void *ctx, char *err)
{
    uint32_t  round, limit;

    round = atomic_load_explicit(&hub->round, memory_order_acquire);

    if (ep_hub_status(hub, err) != 0) {
        return -1;
    }

    atomic_store_explicit(&hub->came[index], round + 1, memory_order_relaxed);

    if (atomic_fetch_add_explicit(&hub->arrived, 1, memory_order_acq_rel) + 1
        < hub->ranks)
    {
        /* what the last one does has the same limit of its own */

        limit = (last != NULL) ? 2 * hub->timeout_ms : hub->timeout_ms;

        return hub_wait(hub, round, what, limit, err);
    }

    atomic_store_explicit(&hub->arrived, 0, memory_order_relaxed);

    if (last != NULL && last(ctx, err) != 0) {
        ep_hub_fail(hub, err);
        return ep_hub_status(hub, err);
    }

    atomic_store_explicit(&hub->round, round + 1, memory_order_release);

    if (hub->ranks > 1) {
        syscall(SYS_futex, &hub->round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL,
                NULL, 0);
    }

    return ep_hub_status(hub, err);
}


static int
hub_wait(ep_hub_t *hub, uint32_t round, const char *what,
    uint32_t timeout_ms, char *err)
{
    long              rc;
    int64_t           left;
    uint32_t          i;
    struct timespec   now, end, ts;

    for (i = 0; i < hub->spin; i++) {
        if (atomic_load_explicit(&hub->round, memory_order_acquire) != round) {
            return ep_hub_status(hub, err);
        }

#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += (long) (timeout_ms % 1000) * 1000000;

    for ( ;; ) {

        if (atomic_load_explicit(&hub->round, memory_order_acquire) != round) {
            return ep_hub_status(hub, err);
        }

        if (timeout_ms != 0) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            left = (int64_t) (end.tv_sec - now.tv_sec) * 1000000000
                   + (end.tv_nsec - now.tv_nsec);

            if (left <= 0) {
                hub_late(hub, round, what, timeout_ms);
                continue;
            }

            ts.tv_sec = left / 1000000000;
            ts.tv_nsec = left % 1000000000;
        }

        rc = syscall(SYS_futex, &hub->round, FUTEX_WAIT_PRIVATE, round,
                     timeout_ms != 0 ? &ts : NULL, NULL, 0);

        if (rc == -1 && errno != EAGAIN && errno != EINTR
            && errno != ETIMEDOUT)
        {
            ep_hub_fail(hub, "the exchange cannot sleep: futex() failed");
        }
    }
}


/*
 * Names those that did not come.  One may arrive just now: then its meeting
 * succeeds and its next call fails.
 */

static void
hub_late(ep_hub_t *hub, uint32_t round, const char *what, uint32_t timeout_ms)
{
    int        n;
    char       why[ERR_LEN];
    uint32_t   r, missing;

    missing = 0;
    n = snprintf(why, sizeof(why), "no %s within %u ms from rank", what,
                 timeout_ms);

    for (r = 0; r < hub->ranks && n < (int) sizeof(why) - 8; r++) {
        if (atomic_load_explicit(&hub->came[r], memory_order_relaxed)
            != round + 1)
        {
            missing++;
            n += snprintf(why + n, sizeof(why) - n, " %u", hub->first + r);
        }
    }

    if (missing == 0) {
        snprintf(why, sizeof(why), "the %s with other nodes did not end "
                 "within %u ms", what, timeout_ms);
    }

    ep_hub_fail(hub, why);
}


/*
 * Sleepers wait on `round` and must see it change, or they could miss the
 * wake: a failed exchange counts one more round.  So `failed` comes first,
 * and whoever sees a new round looks at it.
 */

void
ep_hub_fail(ep_hub_t *hub, const char *why)
{
    if (atomic_exchange_explicit(&hub->failing, 1, memory_order_acq_rel)) {

        while (atomic_load_explicit(&hub->failed, memory_order_acquire) == 0) {
            sched_yield();
        }

        return;
    }

    snprintf(hub->why, sizeof(hub->why), "%s", why);
    atomic_store_explicit(&hub->failed, 1, memory_order_release);
    atomic_fetch_add_explicit(&hub->round, 1, memory_order_acq_rel);
    syscall(SYS_futex, &hub->round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL,
            0);

    if (hub->tell != NULL) {
        hub->tell(hub->tell_ctx, hub->why);
    }
}


int
ep_hub_status(ep_hub_t *hub, char *err)
{
    if (atomic_load_explicit(&hub->failed, memory_order_acquire) == 0) {
        return 0;
    }

    snprintf(err, ERR_LEN, "%s", hub->why);
    return -1;
}
