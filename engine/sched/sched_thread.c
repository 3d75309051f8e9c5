/*
 * The step thread and the leaders.  Rank 0's leader is the step thread itself
 * in each step during which that does not prepare the next one: waking another
 * thread, and being woken by it, takes longer than planning a few rows.
 */

#include "sched/sched_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>


#define SCHED_RETRY_US  100000       /* work, but no memory to plan it */


static void *sched_main(void *data);
static void *sched_leader(void *data);
static int sched_stops(sched_t *s, int work);
static int sched_sleep(sched_t *s);
static int sched_join(sched_t *s, int work);
static uint32_t sched_most(const sched_t *s);
static void sched_step(sched_t *s);
static int sched_watch(sched_t *s);
static void sched_land(sched_t *s);
static void sched_halt(sched_t *s);


int
sched_start(sched_t *s, char *err)
{
    int       rc;
    uint32_t  i;

    if (s->opt.join != NULL) {
        s->opt.waker(s->opt.step_ctx, s);
    }

    for (i = s->opt.ahead ? 0 : 1; i < s->n_ranks; i++) {
        rc = pthread_create(&s->rank[i].thread, NULL, sched_leader,
                            &s->rank[i]);
        if (rc != 0) {
            goto failed;
        }

        s->rank[i].started = 1;
    }

    rc = pthread_create(&s->thread, NULL, sched_main, s);
    if (rc != 0) {
        goto failed;
    }

    s->started = 1;

    return 0;

failed:

    snprintf(err, SCHED_ERR_LEN, "scheduler: cannot start a thread: %s",
             strerror(rc));
    sched_halt(s);

    return -1;
}


void
sched_stop(sched_t *s)
{
    pthread_mutex_lock(&s->lock);
    s->stopping = 1;
    s->draining = 1;
    s->changed = 1;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);

    if (s->started) {
        pthread_join(s->thread, NULL);
        s->started = 0;
    }

    if (s->opt.join != NULL) {
        s->opt.waker(s->opt.step_ctx, NULL);
    }

    sched_halt(s);

    /* Nobody else is at work now. */

    s->prepared = 0;
    sched_deliver(s);
    sched_take_events(s);
    sched_refuse(s);
    sched_end_all(s, SCHED_E_SHUTDOWN, "the engine is going down");
    sched_disk_quiet(s);
    sched_publish(s);
}


/* Ends the leaders. */

static void
sched_halt(sched_t *s)
{
    uint32_t  i;

    pthread_mutex_lock(&s->step_lock);
    s->step_quit = 1;
    pthread_cond_broadcast(&s->step_begin);
    pthread_mutex_unlock(&s->step_lock);

    for (i = 0; i < s->n_ranks; i++) {
        if (s->rank[i].started) {
            pthread_join(s->rank[i].thread, NULL);
            s->rank[i].started = 0;
        }
    }
}


static void *
sched_main(void *data)
{
    int       work;
    sched_t  *s = data;

    pthread_setname_np(pthread_self(), "llm-step");

    do {
        atomic_store(&s->step_began, sched_now(s));

        work = sched_next(s);

        if (s->opt.join != NULL) {
            work = sched_join(s, work);
        }

        if (work) {
            sched_step(s);
            sched_collect(s);

        } else {
            s->idled = 1;
            sched_publish(s);

            if (s->opt.ops->stepped != NULL) {
                s->opt.ops->stepped(s->opt.ops_ctx);
            }
        }

        atomic_store(&s->step_began, 0);

        if (s->failed) {
            sched_drain(s);
        }

    } while (!sched_stops(s, work));

    return NULL;
}


/* After a step, or without work: then it waits until there may be some. */

static int
sched_stops(sched_t *s, int work)
{
    int  stopping;

    pthread_mutex_lock(&s->lock);

    while (!work && !s->stopping && !s->changed && sched_sleep(s) == 0) {
        /* void */
    }

    stopping = s->stopping;
    pthread_mutex_unlock(&s->lock);

    return stopping;
}


/* Waits for a change, 0, or until a time limit, 1. */

static int
sched_sleep(sched_t *s)
{
    uint32_t         i, active;
    uint64_t         until, now;
    struct timespec  ts;

    for (i = 0, active = 0; i < s->n_ranks; i++) {
        active += s->rank[i].n_active;
    }

    now = sched_now(s);
    until = s->next_deadline;

    if (active > 0 && now + SCHED_RETRY_US < until) {
        until = now + SCHED_RETRY_US;
    }

    if (until == SCHED_NEVER) {
        pthread_cond_wait(&s->wake, &s->lock);
        return 0;
    }

    if (until <= now) {
        return 1;
    }

    ts.tv_sec = (time_t) (until / 1000000);
    ts.tv_nsec = (long) (until % 1000000) * 1000;

    return pthread_cond_timedwait(&s->wake, &s->lock, &ts) == ETIMEDOUT;
}


/*
 * Whether a step follows.  One that others' work makes longer than this
 * engine's would have been teaches nothing.
 */

static int
sched_join(sched_t *s, int work)
{
    int           rc;
    char          err[SCHED_ERR_LEN];
    sched_join_t  j;

    j.work = work;
    j.depth = work ? s->depth : 0;
    j.rows = work ? s->all_rows : 0;
    j.planned_us = work ? s->planned_us : 0;
    j.most = work ? sched_most(s) : 0;

    rc = s->opt.join(s->opt.step_ctx, &j, err);

    if (rc == -1) {
        sched_fail(s, err);
        sched_abort(s, "a node of the engine failed");
        return 0;
    }

    if (rc == 1) {
        s->foreign = !work || j.planned_us > s->planned_us;
        s->depth = j.depth;
        s->run.depth = j.depth;
        s->run.ahead = s->run.ahead && j.depth == 0;
        s->run.all_rows = j.rows;
        s->step_from = sched_now(s);
    }

    return rc;
}


/*
 * Others may want drafts where this one does not; a draft has no more rows than
 * the step, but one that a sequence may have missed (sched_draft.c).
 */

static uint32_t
sched_most(const sched_t *s)
{
    uint32_t             i, n, most;
    const sched_rank_t  *rk;

    for (i = 0, most = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];
        n = rk->n_rows + (s->opt.speculate > 0 ? rk->part->n : 0);
        n = (n < s->max_rows) ? n : s->max_rows;
        most = (n > most) ? n : most;
    }

    return most;
}


static void
sched_step(sched_t *s)
{
    uint32_t  leaders;

    if (!s->run.ahead) {
        sched_deliver(s);
    }

    if (s->opt.begin != NULL) {
        s->opt.begin(s->opt.step_ctx);
    }

    leaders = s->n_ranks - !s->run.ahead;
    s->landed = leaders == 0;

    if (leaders > 0) {
        pthread_mutex_lock(&s->step_lock);
        s->step_no++;
        s->step_apart = s->run.ahead;
        s->step_left = leaders;
        pthread_cond_broadcast(&s->step_begin);
        pthread_mutex_unlock(&s->step_lock);
    }

    if (!s->run.ahead) {
        sched_rank_run(s, &s->rank[0]);
    }

    sched_deliver(s);

    do {
        if (s->run.ahead) {
            sched_prepare(s);
        }

    } while (sched_watch(s));
}


/*
 * Waits until the step is done, 0; or, if the next one is prepared meanwhile,
 * until there is something new to be put into it, 1.
 */

static int
sched_watch(sched_t *s)
{
    int  landed;

    pthread_mutex_lock(&s->lock);

    while (!s->landed && !(s->run.ahead && s->changed)) {
        pthread_cond_wait(&s->wake, &s->lock);
    }

    landed = s->landed;
    pthread_mutex_unlock(&s->lock);

    return !landed;
}


static void
sched_land(sched_t *s)
{
    pthread_mutex_lock(&s->lock);
    s->landed = 1;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}


static void *
sched_leader(void *data)
{
    int            last;
    char           name[16];
    sched_t       *s;
    sched_rank_t  *rk = data;

    s = rk->sched;

    snprintf(name, sizeof(name), "llm-rank%u", rk->index);
    pthread_setname_np(pthread_self(), name);

    pthread_mutex_lock(&s->step_lock);

    for ( ;; ) {

        while (rk->seen == s->step_no && !s->step_quit) {
            pthread_cond_wait(&s->step_begin, &s->step_lock);
        }

        if (s->step_quit) {
            break;
        }

        rk->seen = s->step_no;

        if (rk->index == 0 && !s->step_apart) {
            continue;
        }

        pthread_mutex_unlock(&s->step_lock);

        sched_rank_run(s, rk);

        pthread_mutex_lock(&s->step_lock);
        last = --s->step_left == 0;

        if (last) {
            sched_land(s);
        }
    }

    pthread_mutex_unlock(&s->step_lock);

    return NULL;
}
