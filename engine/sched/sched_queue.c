/*
 * What waits: the queue in order, the parked, time limits, refusals.
 */

#include "sched/sched_int.h"

#include <stdio.h>
#include <stdlib.h>


static void sched_arrive(sched_t *s, sched_seq_t *seq);
static uint64_t sched_due(const sched_seq_t *seq);
static void sched_check_late(sched_t *s, sched_seq_t *seq, uint64_t now);


/* Higher priority first, then first come first served. */

int
sched_before(const sched_seq_t *a, const sched_seq_t *b)
{
    if (a->r.priority != b->r.priority) {
        return a->r.priority > b->r.priority;
    }

    return a->order < b->order;
}


/* Inserts in order; from the end, where a newcomer nearly always belongs. */

void
sched_list_add(sched_list_t *list, sched_seq_t *seq)
{
    sched_seq_t  *after;

    after = list->last;

    while (after != NULL && sched_before(seq, after)) {
        after = after->prev;
    }

    seq->prev = after;
    seq->next = after != NULL ? after->next : list->first;

    if (seq->prev != NULL) {
        seq->prev->next = seq;
    } else {
        list->first = seq;
    }

    if (seq->next != NULL) {
        seq->next->prev = seq;
    } else {
        list->last = seq;
    }

    list->n++;
}


void
sched_list_remove(sched_list_t *list, sched_seq_t *seq)
{
    if (seq->prev != NULL) {
        seq->prev->next = seq->next;
    } else {
        list->first = seq->next;
    }

    if (seq->next != NULL) {
        seq->next->prev = seq->prev;
    } else {
        list->last = seq->prev;
    }

    seq->prev = NULL;
    seq->next = NULL;
    list->n--;
}


/*
 * Takes in what came since the last plan, in order of arrival.  The events'
 * references move to the array and are given back by sched_refuse().
 */

void
sched_take_events(sched_t *s)
{
    uint32_t       i, n;
    sched_seq_t   *seq, **event;

    pthread_mutex_lock(&s->lock);

    s->changed = 0;
    s->drained = s->draining;

    for (n = 0, seq = s->events; seq != NULL; seq = seq->event_next) {
        n++;
    }

    if (n > s->cap_event) {
        event = realloc(s->event, 2 * n * sizeof(sched_seq_t *));

        if (event == NULL) {
            s->changed = 1;          /* try again after the next step */
            n = 0;

        } else {
            s->event = event;
            s->cap_event = 2 * n;
        }
    }

    s->n_event = n;

    for (i = n; i > 0; i--) {        /* the list is newest first */
        seq = s->events;
        s->events = seq->event_next;
        seq->event = 0;
        s->event[i - 1] = seq;
    }

    pthread_mutex_unlock(&s->lock);

    for (i = 0; i < n; i++) {
        seq = s->event[i];

        if (seq->order == 0) {
            sched_arrive(s, seq);
        }

        if (!seq->ended && atomic_load(&seq->cancelled)) {
            sched_end(s, seq, SCHED_CANCELLED, NULL);
        }
    }

    if (s->drained) {
        sched_end_queue(s, SCHED_E_SHUTDOWN, "the engine is going down");
    }
}


static void
sched_arrive(sched_t *s, sched_seq_t *seq)
{
    char  why[SCHED_WHY_LEN];

    atomic_fetch_sub(&s->n_inbox, 1);

    seq->order = s->next_order++;

    /* The pool has nothing beyond the context; see sched_open()'s caller. */

    if (kv_blocks((uint64_t) seq->r.n_prompt + seq->r.max_tokens)
        > s->opt.kv_blocks)
    {
        snprintf(why, sizeof(why), "%u prompt tokens and %u more need %u KV "
                 "blocks, a rank has %u", seq->r.n_prompt, seq->r.max_tokens,
                 kv_blocks((uint64_t) seq->r.n_prompt + seq->r.max_tokens),
                 s->opt.kv_blocks);
        sched_end(s, seq, SCHED_E_LENGTH, why);
        return;
    }

    sched_list_add(&s->queue, seq);
    seq->place = SCHED_IN_QUEUE;
    s->n_waiting++;

    sched_note_deadline(s, seq);
}


/*
 * Refuses those of the newcomers that were not admitted at once and find too
 * many waiting, and gives the events' references back.
 */

void
sched_refuse(sched_t *s)
{
    char          why[SCHED_WHY_LEN];
    uint32_t      i, n, limit;
    sched_seq_t  *seq;

    n = s->n_waiting;

    for (i = 0; i < s->n_event; i++) {
        seq = s->event[i];

        if (seq->place == SCHED_IN_QUEUE && !seq->looked_at) {
            n--;
        }
    }

    for (i = 0; i < s->n_event; i++) {
        seq = s->event[i];

        if (seq->place == SCHED_IN_QUEUE && !seq->looked_at) {

            seq->looked_at = 1;
            limit = s->opt.queue_max;

            if (seq->r.queue_max != 0 && seq->r.queue_max < limit) {
                limit = seq->r.queue_max;
            }

            if (n >= limit && seq->r.queue_max != SCHED_QUEUE_ANY) {
                snprintf(why, sizeof(why), "too many requests wait: %u of %u",
                         n, limit);
                sched_end(s, seq, SCHED_E_QUEUE, why);

            } else {
                n++;
            }
        }

        sched_release(seq);
    }

    s->n_event = 0;
    atomic_store(&s->n_queued, s->n_waiting);
}


/* Parked sequences that have credit again go back into the queue. */

void
sched_unpark(sched_t *s)
{
    sched_seq_t  *seq, *next;

    for (seq = s->park.first; seq != NULL; seq = next) {
        next = seq->next;

        if (!sched_paused(seq)) {
            sched_list_remove(&s->park, seq);
            sched_list_add(&s->queue, seq);
            seq->place = SCHED_IN_QUEUE;
        }
    }
}


static uint64_t
sched_due(const sched_seq_t *seq)
{
    uint64_t  due, t;

    due = SCHED_NEVER;

    if (seq->r.deadline_us != 0) {
        due = seq->r.submitted_us + seq->r.deadline_us;
    }

    if (seq->r.queue_us != 0 && !seq->accepted) {
        t = seq->r.submitted_us + seq->r.queue_us;
        due = t < due ? t : due;
    }

    return due;
}


void
sched_note_deadline(sched_t *s, const sched_seq_t *seq)
{
    uint64_t  due;

    due = sched_due(seq);

    if (due < s->next_deadline) {
        s->next_deadline = due;
    }
}


static void
sched_check_late(sched_t *s, sched_seq_t *seq, uint64_t now)
{
    char      why[SCHED_WHY_LEN];
    uint64_t  ms;

    if (sched_due(seq) > now) {
        sched_note_deadline(s, seq);
        return;
    }

    if (seq->r.deadline_us != 0
        && seq->r.submitted_us + seq->r.deadline_us <= now)
    {
        ms = seq->r.deadline_us / 1000;
        snprintf(why, sizeof(why), "the request's deadline of %llu ms passed "
                 "after %u tokens", (unsigned long long) ms,
                 seq->n_total - seq->r.n_prompt);

    } else {
        ms = seq->r.queue_us / 1000;
        snprintf(why, sizeof(why), "the request waited in the queue for more "
                 "than its limit of %llu ms", (unsigned long long) ms);
    }

    sched_end(s, seq, SCHED_E_TIMEOUT, why);
}


/* Looks at everybody, but only once somebody is late. */

void
sched_expire(sched_t *s, uint64_t now)
{
    uint32_t       i, j;
    sched_seq_t   *seq, *next;
    sched_rank_t  *rk;

    if (now < s->next_deadline) {
        return;
    }

    s->next_deadline = SCHED_NEVER;

    for (seq = s->queue.first; seq != NULL; seq = next) {
        next = seq->next;
        sched_check_late(s, seq, now);
    }

    for (seq = s->park.first; seq != NULL; seq = next) {
        next = seq->next;
        sched_check_late(s, seq, now);
    }

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        for (j = rk->n_running; j-- > 0; ) {
            sched_check_late(s, rk->running[j], now);
        }
    }
}


/* Ends those that wait and were never accepted. */

void
sched_end_queue(sched_t *s, sched_reason_t reason, const char *message)
{
    sched_seq_t  *seq, *next;

    for (seq = s->queue.first; seq != NULL; seq = next) {
        next = seq->next;

        if (!seq->accepted) {
            sched_end(s, seq, reason, message);
        }
    }
}


void
sched_end_all(sched_t *s, sched_reason_t reason, const char *message)
{
    uint32_t       i;
    sched_rank_t  *rk;

    while (s->queue.first != NULL) {
        sched_end(s, s->queue.first, reason, message);
    }

    while (s->park.first != NULL) {
        sched_end(s, s->park.first, reason, message);
    }

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        while (rk->n_running > 0) {
            sched_end(s, rk->running[rk->n_running - 1], reason, message);
        }
    }
}
