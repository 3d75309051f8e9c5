/*
 * A lane: its records in, its end.  Server thread only.
 */

#include "serve/serve_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>


#define SERVE_TURN  512              /* records of a lane before the others */


static int serve_record(serve_lane_t *lane, const chan_record_t *rec,
    char *err);
static int serve_submit(serve_lane_t *lane, const chan_record_t *rec,
    char *err);
static int serve_more(serve_lane_t *lane, const chan_record_t *rec,
    char *err);
static int serve_complete(serve_req_t *r);
static int serve_queue_full(serve_lane_t *lane, const chan_submit_t *submit);


/* The worker rang: for submissions, for room, or we did, see serve_broken(). */

void
serve_lane_bell(serve_lane_t *lane)
{
    chan_bell_drain(lane->chan.bell_own);

    (void) serve_flush(lane);

    serve_lane_read(lane);
}


void
serve_lane_read(serve_lane_t *lane)
{
    int   n, rc, broken;
    char  err[CHAN_ERR_LEN];

    static uint64_t  buf[CHAN_RECORD_MAX / 8];

    serve_lane_reap(lane);

    pthread_mutex_lock(&lane->out_lock);
    broken = lane->broken;
    pthread_mutex_unlock(&lane->out_lock);

    if (broken) {
        serve_lane_drop(lane, lane->why);
        return;
    }

    chan_ring_awake(&lane->chan.in);
    lane->busy = 0;

    for (n = 0; n < SERVE_TURN; n++) {

        rc = chan_ring_read(&lane->chan.in, buf, sizeof(buf), err);

        if (rc == CHAN_AGAIN) {
            rc = chan_ring_sleep(&lane->chan.in, err);

            if (rc == 1) {
                chan_ring_notify_room(&lane->chan.in);
                return;
            }

            if (rc == 0) {
                continue;
            }
        }

        if (rc != CHAN_OK
            || serve_record(lane, (chan_record_t *) buf, err) != CHAN_OK)
        {
            serve_lane_drop(lane, err);
            return;
        }
    }

    chan_ring_notify_room(&lane->chan.in);
    lane->busy = 1;
}


/* CHAN_ERROR: a violation. */

static int
serve_record(serve_lane_t *lane, const chan_record_t *rec, char *err)
{
    uint64_t      credit;
    serve_req_t  *r;

    switch (rec->type) {

    case CHAN_SUBMIT:
        return serve_submit(lane, rec, err);

    case CHAN_SUBMIT_MORE:
        return serve_more(lane, rec, err);

    case CHAN_WINDOW:
        if (chan_get_window(rec, &credit, err) != CHAN_OK) {
            return CHAN_ERROR;
        }

        r = serve_req_find(lane, rec->id);

        if (r != NULL) {
            serve_req_window(r, credit);
        }

        return CHAN_OK;

    case CHAN_CANCEL:
        r = serve_req_find(lane, rec->id);

        if (r != NULL) {
            serve_req_cancel(r);
        }

        return CHAN_OK;
    }

    snprintf(err, CHAN_ERR_LEN, "record of unknown type %u",
             (unsigned) rec->type);

    return CHAN_ERROR;
}


static int
serve_submit(serve_lane_t *lane, const chan_record_t *rec, char *err)
{
    int                   done;
    size_t                size;
    serve_req_t          *r;
    const uint8_t        *body;
    const chan_submit_t  *submit;

    if (chan_get_submit(rec, &submit, &body, &size, err) != CHAN_OK) {
        return CHAN_ERROR;
    }

    r = serve_req_find(lane, rec->id);

    if (r != NULL) {
        pthread_mutex_lock(&r->lock);
        done = r->state == SERVE_DONE;
        pthread_mutex_unlock(&r->lock);

        if (!done) {
            snprintf(err, CHAN_ERR_LEN, "SUBMIT with request id %llu in use",
                     (unsigned long long) rec->id);
            return CHAN_ERROR;
        }

        serve_req_forget(r);
    }

    if (lane->n_table >= SERVE_REQUESTS_MAX) {
        snprintf(err, CHAN_ERR_LEN, "more than %u requests in flight",
                 SERVE_REQUESTS_MAX);
        return CHAN_ERROR;
    }

    r = serve_req_open(lane, rec->id, submit);

    if (r == NULL) {
        snprintf(err, CHAN_ERR_LEN, "no memory for a request");
        return CHAN_ERROR;
    }

    lane->body_bytes += submit->body_size;

    if (atomic_load(&lane->serve->draining)) {
        serve_error(r, CHAN_E_SHUTDOWN, "", "the engine is going down");
        return CHAN_OK;
    }

    if (lane->body_bytes > SERVE_BODIES_MAX
        || serve_queue_full(lane, submit))
    {
        serve_error(r, CHAN_E_QUEUE, "", "too many requests wait");
        return CHAN_OK;
    }

    if (serve_req_more(r, body, size) != 0) {
        serve_error(r, CHAN_E_INTERNAL, "", "no memory for the request");
        return CHAN_OK;
    }

    return serve_complete(r);
}


/*
 * The scheduler decides exactly, but only between steps.  What is past all
 * bounds whatever the next step brings is refused here, at once.
 */

static int
serve_queue_full(serve_lane_t *lane, const chan_submit_t *submit)
{
    serve_t        *s;
    uint32_t        waiting, limit;
    sched_stats_t   st;

    s = lane->serve;
    limit = s->opt.sched.queue_max;

    if (submit->queue_max == CHAN_QUEUE_ANY) {
        return 0;
    }

    if (submit->queue_max != 0 && submit->queue_max < limit) {
        limit = submit->queue_max;
    }

    sched_stats(s->sched, &st);
    waiting = serve_intake_waiting(s) + sched_waiting(s->sched);

    if (waiting < limit) {
        return 0;
    }

    return waiting - limit >= s->opt.sched.max_batch * s->opt.sched.n_ranks
           || st.waiting >= limit;
}


static int
serve_more(serve_lane_t *lane, const chan_record_t *rec, char *err)
{
    size_t          size;
    uint64_t        offset;
    serve_req_t    *r;
    const uint8_t  *body;
    serve_state_t   state;

    if (chan_get_more(rec, &offset, &body, &size, err) != CHAN_OK) {
        return CHAN_ERROR;
    }

    r = serve_req_find(lane, rec->id);

    if (r == NULL) {
        return CHAN_OK;              /* refused, and reaped since */
    }

    pthread_mutex_lock(&r->lock);
    state = r->state;
    pthread_mutex_unlock(&r->lock);

    if (state == SERVE_DONE) {
        return CHAN_OK;              /* refused or cancelled on the way */
    }

    if (state != SERVE_BODY || offset != r->body_got
        || size > r->submit.body_size - r->body_got)
    {
        snprintf(err, CHAN_ERR_LEN, "SUBMIT_MORE of %zu bytes at %llu, "
                 "request %llu has %zu of %llu", size,
                 (unsigned long long) offset, (unsigned long long) rec->id,
                 r->body_got, (unsigned long long) r->submit.body_size);
        return CHAN_ERROR;
    }

    if (serve_req_more(r, body, size) != 0) {
        serve_error(r, CHAN_E_INTERNAL, "", "no memory for the request");
        return CHAN_OK;
    }

    return serve_complete(r);
}


static int
serve_complete(serve_req_t *r)
{
    if (r->body_got == r->submit.body_size) {

        pthread_mutex_lock(&r->lock);
        r->state = SERVE_INTAKE;
        pthread_mutex_unlock(&r->lock);

        serve_intake_put(r);
    }

    return CHAN_OK;
}


/* Forgets what has ended. */

void
serve_lane_reap(serve_lane_t *lane)
{
    serve_req_t  *r, *next;

    pthread_mutex_lock(&lane->out_lock);
    r = lane->ended;
    lane->ended = NULL;
    pthread_mutex_unlock(&lane->out_lock);

    for ( ; r != NULL; r = next) {
        next = r->next;
        serve_req_forget(r);
        serve_req_unref(r);
    }
}


/*
 * The end of a lane: its descriptors go at once, its sequences are cancelled,
 * and its memory goes with the last of them.
 */

void
serve_lane_drop(serve_lane_t *lane, const char *why)
{
    uint32_t      i, n;
    serve_t      *s;
    serve_req_t  *r, *next;

    if (lane->state == SERVE_L_DEAD) {
        return;
    }

    serve_lane_reap(lane);

    s = lane->serve;
    n = lane->n_table;

    if (lane->state == SERVE_L_OPEN) {
        serve_log(SERVE_NOTICE, "lane %u: worker %u is gone: %s; %u requests "
                  "cancelled", lane->number, lane->pid, why, n);
    } else {
        serve_log(SERVE_WARN, "lane %u: refused: %s", lane->number, why);
    }

    /* The bell lives on in the worker, and so would our watch on it. */

    if (lane->chan.bell_own != -1) {
        (void) epoll_ctl(s->epoll, EPOLL_CTL_DEL, lane->chan.bell_own, NULL);
    }

    pthread_mutex_lock(&lane->out_lock);
    lane->closed = 1;
    chan_lane_close(&lane->chan);
    pthread_mutex_unlock(&lane->out_lock);

    if (lane->sock != -1) {
        close(lane->sock);
        lane->sock = -1;
    }

    lane->state = SERVE_L_DEAD;
    lane->busy = 0;
    s->n_lanes--;
    atomic_store(&s->board_lanes, s->n_lanes);

    for (i = 0; i < lane->buckets; i++) {
        for (r = lane->table[i]; r != NULL; r = next) {
            next = r->hash_next;
            serve_req_cancel(r);
            serve_req_forget(r);
        }
    }
}


void
serve_lane_unref(serve_lane_t *lane)
{
    if (atomic_fetch_sub(&lane->refs, 1) != 1) {
        return;
    }

    pthread_mutex_destroy(&lane->out_lock);
    free(lane->backlog.data);
    free(lane->table);
    free(lane);
}
