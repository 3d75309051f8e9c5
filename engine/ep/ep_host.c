/*
 * The exchange between ranks of one process.
 *
 * Nothing is copied: a rank shows the others what it sends, each of them
 * picks the pairs of its own experts and reads rows and writes contributions
 * in the home rank's memory.  What remains is two meetings per MoE layer:
 * after all have shown their rows, and after all have written.
 *
 * A rank that waits spins for a moment, as ranks usually come within
 * microseconds of each other, and then sleeps in a futex.
 */

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ep/exchange.h"


#define EP_SPIN       2000           /* pauses before sleeping */

/*
 * An expert's weights are read once on each rank that has a row for it, which
 * costs about as much as computing that many rows: fewer are not given away.
 */

#define EP_PIECE      8


/*
 * Failure is sticky: `why` is written by the one that won `failing`, and read
 * only after `failed` was seen.
 */

typedef struct {
    _Atomic uint32_t   round;        /* meetings held; the futex */
    _Atomic uint32_t   arrived;      /* ranks at the current meeting */
    _Atomic uint32_t   failing;
    _Atomic uint32_t   failed;
    char               why[ERR_LEN];

    uint32_t           ranks;
    uint32_t           max_rows;
    uint32_t           max_top_k;
    uint32_t           max_experts;
    uint32_t           timeout_ms;
    uint32_t           spin;
    _Atomic uint32_t   open;         /* exchanges not closed yet */
    _Atomic uint32_t  *came;         /* [ranks] the last meeting of each */
    ep_send_t         *send;         /* [ranks] what each shows */
} ep_hub_t;


typedef struct {
    ep_exchange_t   ex;              /* first: the two are cast */
    ep_hub_t       *hub;
    int             dispatched;
    uint32_t       *offset;          /* [max_experts + 1], by slot */
    uint32_t       *total;           /* [max_experts] pairs of all ranks */
    uint32_t       *begin;           /* [max_experts] first that is ours */
    uint32_t       *mine;            /* [max_experts] how many are */
    uint32_t       *at;              /* [max_experts] where they go */
    uint64_t       *busy;            /* [ranks] pairs given so far */
    uint32_t       *share;           /* [ranks] of one expert's homes */
    const float   **x;               /* [max pairs] */
    float         **y;
} ep_host_t;


static ep_host_t *ep_host_rank(ep_hub_t *hub, uint32_t rank);
static void ep_host_rank_free(ep_host_t *h);
static void ep_hub_free(ep_hub_t *hub);
static int ep_host_dispatch(ep_exchange_t *ex, const ep_send_t *send,
    be_pairs_t *pairs, char *err);
static int ep_host_check(ep_host_t *h, const ep_send_t *send, char *err);
static void ep_host_count(ep_host_t *h, const ep_placement_t *p);
static void ep_host_share(ep_host_t *h, const ep_placement_t *p);
static void ep_host_split(ep_host_t *h, const ep_placement_t *p, uint32_t e);
static void ep_host_collect(ep_host_t *h, const ep_placement_t *p);
static int ep_host_combine(ep_exchange_t *ex, char *err);
static int ep_host_barrier(ep_exchange_t *ex, char *err);
static int ep_host_meet(ep_host_t *h, const char *what, char *err);
static int ep_host_wait(ep_host_t *h, uint32_t round, const char *what,
    char *err);
static void ep_host_late(ep_host_t *h, uint32_t round, const char *what);
static void ep_hub_fail(ep_hub_t *hub, const char *why);
static int ep_hub_status(ep_hub_t *hub, char *err);
static void ep_host_abort(ep_exchange_t *ex);
static void ep_host_close(ep_exchange_t *ex);


int
ep_host_open(ep_exchange_t **ex, uint32_t ranks, uint32_t max_rows,
    uint32_t max_top_k, uint32_t max_experts, uint32_t timeout_ms, char *err)
{
    uint32_t    r;
    cpu_set_t   set;
    ep_hub_t   *hub;
    ep_host_t  *h;

    if (ranks == 0 || ranks > EP_RANKS_MAX) {
        snprintf(err, ERR_LEN, "%u ranks: 1 to %u are possible", ranks,
                 EP_RANKS_MAX);
        return -1;
    }

    if ((uint64_t) ranks * max_rows * max_top_k > INT32_MAX) {
        snprintf(err, ERR_LEN, "an exchange of %u ranks, %u rows and %u "
                 "experts a row is too large", ranks, max_rows, max_top_k);
        return -1;
    }

    hub = calloc(1, sizeof(ep_hub_t));
    if (hub == NULL) {
        goto nomem;
    }

    hub->ranks = ranks;
    hub->max_rows = max_rows;
    hub->max_top_k = max_top_k;
    hub->max_experts = max_experts;
    hub->timeout_ms = timeout_ms;
    hub->came = calloc(ranks, sizeof(*hub->came));
    hub->send = calloc(ranks, sizeof(ep_send_t));

    if (hub->came == NULL || hub->send == NULL) {
        ep_hub_free(hub);
        goto nomem;
    }

    /* spinning only takes the processor from those that are waited for */

    if (sched_getaffinity(0, sizeof(set), &set) == 0
        && CPU_COUNT(&set) >= (int) ranks)
    {
        hub->spin = EP_SPIN;
    }

    for (r = 0; r < ranks; r++) {
        h = ep_host_rank(hub, r);

        if (h == NULL) {
            while (r-- > 0) {
                ep_host_rank_free((ep_host_t *) ex[r]);
                ex[r] = NULL;
            }

            ep_hub_free(hub);
            goto nomem;
        }

        ex[r] = &h->ex;
    }

    atomic_store(&hub->open, ranks);

    return 0;

nomem:

    snprintf(err, ERR_LEN, "no memory for an exchange of %u ranks, %u rows "
             "and %u experts a row", ranks, max_rows, max_top_k);
    return -1;
}


static ep_host_t *
ep_host_rank(ep_hub_t *hub, uint32_t rank)
{
    size_t      pairs;
    ep_host_t  *h;

    h = calloc(1, sizeof(ep_host_t));
    if (h == NULL) {
        return NULL;
    }

    /* every row of every rank may want this rank's experts only */

    pairs = (size_t) hub->ranks * hub->max_rows * hub->max_top_k + 1;

    h->hub = hub;
    h->offset = calloc((size_t) hub->max_experts + 1, sizeof(uint32_t));
    h->total = calloc((size_t) hub->max_experts + 1, sizeof(uint32_t));
    h->begin = calloc((size_t) hub->max_experts + 1, sizeof(uint32_t));
    h->mine = calloc((size_t) hub->max_experts + 1, sizeof(uint32_t));
    h->at = calloc((size_t) hub->max_experts + 1, sizeof(uint32_t));
    h->busy = calloc(hub->ranks, sizeof(uint64_t));
    h->share = calloc(hub->ranks, sizeof(uint32_t));
    h->x = calloc(pairs, sizeof(*h->x));
    h->y = calloc(pairs, sizeof(*h->y));

    if (h->offset == NULL || h->total == NULL || h->begin == NULL
        || h->mine == NULL || h->at == NULL || h->busy == NULL
        || h->share == NULL || h->x == NULL || h->y == NULL)
    {
        ep_host_rank_free(h);
        return NULL;
    }

    h->ex.name = "host";
    h->ex.rank = rank;
    h->ex.ranks = hub->ranks;
    h->ex.dispatch = ep_host_dispatch;
    h->ex.combine = ep_host_combine;
    h->ex.barrier = ep_host_barrier;
    h->ex.abort = ep_host_abort;
    h->ex.close = ep_host_close;

    return h;
}


static void
ep_host_rank_free(ep_host_t *h)
{
    free(h->offset);
    free(h->total);
    free(h->begin);
    free(h->mine);
    free(h->at);
    free(h->busy);
    free(h->share);
    free(h->x);
    free(h->y);
    free(h);
}


static void
ep_hub_free(ep_hub_t *hub)
{
    free(hub->came);
    free(hub->send);
    free(hub);
}


static int
ep_host_dispatch(ep_exchange_t *ex, const ep_send_t *send, be_pairs_t *pairs,
    char *err)
{
    ep_hub_t   *hub;
    ep_host_t  *h;

    h = (ep_host_t *) ex;
    hub = h->hub;

    /* others may still look at what a failed exchange has shown them */

    if (ep_hub_status(hub, err) != 0) {
        return -1;
    }

    if (ep_host_check(h, send, err) != 0) {
        ep_hub_fail(hub, err);
        return -1;
    }

    hub->send[ex->rank] = *send;

    if (ep_host_meet(h, "dispatch", err) != 0) {
        return -1;
    }

    ep_host_count(h, send->placement);
    ep_host_share(h, send->placement);
    ep_host_collect(h, send->placement);

    pairs->n_experts = send->placement->count[ex->rank];
    pairs->offset = h->offset;
    pairs->x = h->x;
    pairs->y = h->y;
    pairs->max = 0;

    h->dispatched = 1;

    return 0;
}


/* Checked by the home rank, so that the others need not. */

static int
ep_host_check(ep_host_t *h, const ep_send_t *send, char *err)
{
    size_t                 i, n;
    ep_hub_t              *hub;
    const ep_placement_t  *p;

    hub = h->hub;
    p = send->placement;

    if (h->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: dispatch without combine",
                 h->ex.rank);
        return -1;
    }

    if (p->ranks != hub->ranks || p->experts > hub->max_experts
        || p->count[h->ex.rank] > hub->max_experts
        || send->rows > hub->max_rows || send->top_k > hub->max_top_k)
    {
        snprintf(err, ERR_LEN, "rank %u: dispatch of %u rows to %u experts "
                 "each is more than the exchange was made for", h->ex.rank,
                 send->rows, send->top_k);
        return -1;
    }

    n = (size_t) send->rows * send->top_k;

    for (i = 0; i < n; i++) {
        if (send->id[i] < 0 || (uint32_t) send->id[i] >= p->experts) {
            snprintf(err, ERR_LEN, "rank %u: row %zu wants expert %d of %u",
                     h->ex.rank, i / send->top_k, send->id[i], p->experts);
            return -1;
        }
    }

    return 0;
}


/*
 * Rows go to experts by a counting sort of all ranks' pairs (row, expert).
 * What depends on all pairs each rank works out for itself, alike.
 */

static void
ep_host_count(ep_host_t *h, const ep_placement_t *p)
{
    size_t            i, n;
    uint32_t          r;
    const ep_send_t  *s;

    memset(h->total, 0, p->experts * sizeof(uint32_t));

    for (r = 0; r < h->hub->ranks; r++) {
        s = &h->hub->send[r];
        n = (size_t) s->rows * s->top_k;

        for (i = 0; i < n; i++) {
            h->total[s->id[i]]++;
        }
    }
}


/* Which of each expert's pairs are this rank's: a run of them. */

static void
ep_host_share(ep_host_t *h, const ep_placement_t *p)
{
    uint32_t  e, i, n, me;

    me = h->ex.rank;
    memset(h->busy, 0, p->ranks * sizeof(uint64_t));

    for (e = 0; e < p->experts; e++) {
        n = p->first[e + 1] - p->first[e];
        h->begin[e] = 0;
        h->mine[e] = 0;

        for (i = p->first[e]; i < p->first[e + 1]; i++) {
            h->busy[p->rank[i]] += h->total[e] / n;
            h->mine[e] = (n == 1 && p->rank[i] == me) ? h->total[e] : 0;
        }
    }

    for (e = 0; e < p->experts; e++) {
        if (p->first[e + 1] > p->first[e] + 1 && h->total[e] > 0) {
            ep_host_split(h, p, e);
        }
    }
}


/*
 * Pairs of an expert with several homes, shared evenly so far, go there in
 * pieces, each to the home that has least to do.
 */

static void
ep_host_split(ep_host_t *h, const ep_placement_t *p, uint32_t e)
{
    uint32_t        k, n, best, left, piece, begin;
    const uint8_t  *home;

    home = p->rank + p->first[e];
    n = p->first[e + 1] - p->first[e];
    left = h->total[e];

    piece = (left + 4 * n - 1) / (4 * n);
    piece = (piece < EP_PIECE) ? EP_PIECE : piece;

    for (k = 0; k < n; k++) {
        h->busy[home[k]] -= left / n;
        h->share[k] = 0;
    }

    while (left > 0) {

        if (left < piece + EP_PIECE) {
            piece = left;
        }

        for (best = 0, k = 1; k < n; k++) {
            best = (h->busy[home[k]] < h->busy[home[best]]) ? k : best;
        }

        h->share[best] += piece;
        h->busy[home[best]] += piece;
        left -= piece;
    }

    for (begin = 0, k = 0; k < n; k++) {
        if (home[k] == h->ex.rank) {
            h->begin[e] = begin;
            h->mine[e] = h->share[k];
        }

        begin += h->share[k];
    }
}


static void
ep_host_collect(ep_host_t *h, const ep_placement_t *p)
{
    size_t            i, n;
    uint32_t          e, r, j, at, sum, seen, slots;
    const ep_send_t  *s;
    const uint32_t   *expert;

    slots = p->count[h->ex.rank];
    expert = p->expert + p->begin[h->ex.rank];
    sum = 0;

    for (j = 0; j < slots; j++) {
        h->offset[j] = sum;
        h->at[expert[j]] = sum;
        sum += h->mine[expert[j]];
    }

    h->offset[slots] = sum;

    /* counted anew, in the order of home rank and row */

    memset(h->total, 0, p->experts * sizeof(uint32_t));

    for (r = 0; r < h->hub->ranks; r++) {
        s = &h->hub->send[r];
        n = (size_t) s->rows * s->top_k;

        for (i = 0; i < n; i++) {
            e = (uint32_t) s->id[i];
            seen = h->total[e]++ - h->begin[e];

            if (seen < h->mine[e]) {
                at = h->at[e] + seen;
                h->x[at] = s->x + i / s->top_k * s->hidden;
                h->y[at] = s->contrib + i * s->hidden;
            }
        }
    }
}


static int
ep_host_combine(ep_exchange_t *ex, char *err)
{
    ep_host_t  *h;

    h = (ep_host_t *) ex;

    if (!h->dispatched) {
        snprintf(err, ERR_LEN, "rank %u: combine without dispatch", ex->rank);
        ep_hub_fail(h->hub, err);
        return -1;
    }

    h->dispatched = 0;

    return ep_host_meet(h, "combine", err);
}


static int
ep_host_barrier(ep_exchange_t *ex, char *err)
{
    return ep_host_meet((ep_host_t *) ex, "barrier", err);
}


/*
 * The last to arrive opens the next round.  What a rank wrote before it came
 * is seen by all that leave: `arrived` chains the arrivals, `round` releases.
 */

static int
ep_host_meet(ep_host_t *h, const char *what, char *err)
{
    uint32_t   round;
    ep_hub_t  *hub;

    hub = h->hub;
    round = atomic_load_explicit(&hub->round, memory_order_acquire);

    if (ep_hub_status(hub, err) != 0) {
        return -1;
    }

    atomic_store_explicit(&hub->came[h->ex.rank], round + 1,
                          memory_order_relaxed);

    if (atomic_fetch_add_explicit(&hub->arrived, 1, memory_order_acq_rel) + 1
        < hub->ranks)
    {
        return ep_host_wait(h, round, what, err);
    }

    atomic_store_explicit(&hub->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&hub->round, round + 1, memory_order_release);

    if (hub->ranks > 1) {
        syscall(SYS_futex, &hub->round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL,
                NULL, 0);
    }

    return ep_hub_status(hub, err);
}


static int
ep_host_wait(ep_host_t *h, uint32_t round, const char *what, char *err)
{
    long              rc;
    int64_t           left;
    uint32_t          i;
    ep_hub_t         *hub;
    struct timespec   now, end, ts;

    hub = h->hub;

    for (i = 0; i < hub->spin; i++) {
        if (atomic_load_explicit(&hub->round, memory_order_acquire) != round) {
            return ep_hub_status(hub, err);
        }

#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += hub->timeout_ms / 1000;
    end.tv_nsec += (long) (hub->timeout_ms % 1000) * 1000000;

    for ( ;; ) {

        if (atomic_load_explicit(&hub->round, memory_order_acquire) != round) {
            return ep_hub_status(hub, err);
        }

        if (hub->timeout_ms != 0) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            left = (int64_t) (end.tv_sec - now.tv_sec) * 1000000000
                   + (end.tv_nsec - now.tv_nsec);

            if (left <= 0) {
                ep_host_late(h, round, what);
                continue;
            }

            ts.tv_sec = left / 1000000000;
            ts.tv_nsec = left % 1000000000;
        }

        rc = syscall(SYS_futex, &hub->round, FUTEX_WAIT_PRIVATE, round,
                     hub->timeout_ms != 0 ? &ts : NULL, NULL, 0);

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
ep_host_late(ep_host_t *h, uint32_t round, const char *what)
{
    int        n;
    char       why[ERR_LEN];
    uint32_t   r;
    ep_hub_t  *hub;

    hub = h->hub;
    n = snprintf(why, sizeof(why), "no %s within %u ms from rank", what,
                 hub->timeout_ms);

    for (r = 0; r < hub->ranks && n < (int) sizeof(why) - 8; r++) {
        if (atomic_load_explicit(&hub->came[r], memory_order_relaxed)
            != round + 1)
        {
            n += snprintf(why + n, sizeof(why) - n, " %u", r);
        }
    }

    ep_hub_fail(hub, why);
}


/*
 * Sleepers wait on `round` and must see it change, or they could miss the
 * wake: a failed exchange counts one more round.  So `failed` comes first,
 * and whoever sees a new round looks at it.
 */

static void
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
}


static int
ep_hub_status(ep_hub_t *hub, char *err)
{
    if (atomic_load_explicit(&hub->failed, memory_order_acquire) == 0) {
        return 0;
    }

    snprintf(err, ERR_LEN, "%s", hub->why);
    return -1;
}


static void
ep_host_abort(ep_exchange_t *ex)
{
    char  why[64];

    snprintf(why, sizeof(why), "rank %u left the exchange", ex->rank);
    ep_hub_fail(((ep_host_t *) ex)->hub, why);
}


static void
ep_host_close(ep_exchange_t *ex)
{
    ep_hub_t   *hub;
    ep_host_t  *h;

    h = (ep_host_t *) ex;
    hub = h->hub;

    ep_host_rank_free(h);

    if (atomic_fetch_sub_explicit(&hub->open, 1, memory_order_acq_rel) == 1) {
        ep_hub_free(hub);
    }
}
