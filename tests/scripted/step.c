/*
 * Steps of the scripted engine: the queue, and each running request's next
 * tokens or incident.
 */

#include <string.h>
#include <unistd.h>

#include "scripted/engine.h"


static void wait_or_refuse(engine_t *e, int64_t *next);
static void start_requests(engine_t *e);
static int may_start(engine_t *e, request_t *r, int64_t ahead);
static void advance(engine_t *e, request_t *r, int64_t *next);
static int more_to_echo(request_t *r);
static int incident(engine_t *e, request_t *r);
static int due(const request_t *r, int64_t after, int64_t at);
static void corrupt(engine_t *e, request_t *r);
static int end(engine_t *e, request_t *r);
static void forget(engine_t *e, request_t *r);


int
tick(engine_t *e, int64_t *next)
{
    int          ran;
    request_t   *r, **p;

    ran = 0;

    for (r = e->requests; r != NULL; r = r->next) {
        ran |= r->state == REQ_RUNS;
    }

    e->step += (uint64_t) ran;

    wait_or_refuse(e, next);
    start_requests(e);

    for (r = e->requests; r != NULL; r = r->next) {

        if (r->cancelled && r->state != REQ_DONE) {
            (void) send_finish(e, r, CHAN_CANCELLED);
            continue;
        }

        if (r->state == REQ_RUNS) {
            advance(e, r, next);
        }
    }

    for (p = &e->requests; (r = *p) != NULL; /* void */) {
        if (r->state == REQ_DONE) {
            *p = r->next;
            request_free(r);
            *next = 0;           /* somebody may wait for its slot */
            continue;
        }

        p = &r->next;
    }

    return *next <= e->now;
}


static void
note(int64_t *next, int64_t when)
{
    if (when < *next) {
        *next = when;
    }
}


static void
note_future(engine_t *e, int64_t *next, int64_t when)
{
    if (when > e->now) {
        note(next, when);
    }
}


/* Every queued request: refused, out of time, or counted among the waiting. */

static void
wait_or_refuse(engine_t *e, int64_t *next)
{
    int         ready;
    int64_t     waiting, starting;
    request_t  *r;

    waiting = 0;
    starting = 0;

    for (r = e->requests; r != NULL; r = r->next) {
        starting += r->state == REQ_RUNS;
    }

    for (r = e->requests; r != NULL; r = r->next) {

        if (r->state != REQ_QUEUED || r->cancelled) {
            continue;
        }

        ready = r->arrived + r->script.first * 1000 <= e->now
                && (e->slots == 0 || starting < e->slots);

        r->refused = may_start(e, r, ready ? -1 : waiting) == 0;

        if (r->refused) {
            continue;
        }

        starting += ready;
        waiting += !ready;

        note_future(e, next, r->arrived + r->script.first * 1000);

        if (r->submit.queue_timeout != 0) {
            note_future(e, next,
                        r->arrived + r->submit.queue_timeout * 1000LL);
        }

        if (r->submit.deadline != 0) {
            note_future(e, next, r->arrived + r->submit.deadline * 1000LL);
        }
    }
}


/* The most urgent first, as far as there are slots and room in the ring. */

static void
start_requests(engine_t *e)
{
    int64_t     running;
    request_t  *r, *best;

    running = 0;

    for (r = e->requests; r != NULL; r = r->next) {
        running += r->state == REQ_RUNS;
    }

    for (/* void */; e->slots == 0 || running < e->slots; running++) {
        best = NULL;

        for (r = e->requests; r != NULL; r = r->next) {
            if (r->state == REQ_QUEUED && r->cancelled == 0
                && r->refused == 0
                && r->arrived + r->script.first * 1000 <= e->now
                && (best == NULL
                    || r->submit.priority > best->submit.priority))
            {
                best = r;
            }
        }

        if (best == NULL || send_accepted(e, best) != CHAN_OK) {
            break;
        }
    }
}


/* `ahead`: how many wait, -1: no need to.  Returns 0: an error instead. */

static int
may_start(engine_t *e, request_t *r, int64_t ahead)
{
    int64_t  limit, age, max;

    age = e->now - r->arrived;
    limit = e->context;

    if (r->submit.max_context != 0 && r->submit.max_context < limit) {
        limit = r->submit.max_context;
    }

    if (r->submit.fingerprint != 0
        && r->submit.fingerprint != e->fingerprint)
    {
        (void) send_error(e, r, CHAN_E_MODEL, "another model is loaded",
                          "model", -1);
        return 0;
    }

    if (r->wrong_bytes) {
        (void) send_error(e, r, CHAN_E_INVALID,
                          "these bytes do not go with these ids", "", -1);
        return 0;
    }

    if (r->submit.endpoint == CHAN_CHAT && e->no_template) {
        (void) send_error(e, r, CHAN_E_TEMPLATE,
                          "the model has no chat template", "messages", -1);
        return 0;
    }

    if (r->script.error != 0 && r->script.fail_after < 0
        && age >= r->script.first * 1000)
    {
        (void) send_error(e, r, (uint32_t) r->script.error, NULL, NULL, -1);
        return 0;
    }

    if (r->n_prompt + (r->submit.max_tokens != 0) > limit) {
        (void) send_error(e, r, CHAN_E_LENGTH,
                          "the prompt is longer than the context",
                          r->submit.endpoint == CHAN_CHAT ? "messages"
                                                          : "prompt", -1);
        return 0;
    }

    limit -= r->n_prompt;

    if (r->submit.max_tokens < limit) {
        limit = r->submit.max_tokens;
    }

    if (limit < r->n_total) {
        r->n_total = limit;
        r->reason = CHAN_LENGTH;
        r->cut = SIZE_MAX;

    } else if (r->n_total == 0 && r->submit.max_tokens == 0) {
        r->reason = CHAN_LENGTH;
    }

    max = r->submit.queue_max != 0 ? r->submit.queue_max : e->queue;

    if (r->queued == 0 && ahead >= max) {
        (void) send_error(e, r, CHAN_E_QUEUE, "the queue is full", "", 1);
        return 0;
    }

    r->queued = 1;

    if ((r->submit.queue_timeout != 0
         && age >= r->submit.queue_timeout * 1000LL)
        || (r->submit.deadline != 0 && age >= r->submit.deadline * 1000LL))
    {
        (void) send_error(e, r, CHAN_E_TIMEOUT, "waited too long", "", 1);
        return 0;
    }

    return 1;
}


static void
advance(engine_t *e, request_t *r, int64_t *next)
{
    int  rc;

    if (r->submit.deadline != 0) {

        if (e->now - r->arrived >= r->submit.deadline * 1000LL) {
            (void) send_error(e, r, CHAN_E_TIMEOUT, "deadline passed", "", 1);
            return;
        }

        note(next, r->arrived + r->submit.deadline * 1000LL);
    }

    if (r->due > e->now) {
        note(next, r->due);
        return;
    }

    if (incident(e, r)) {
        return;
    }

    if (r->credit <= 0 && (r->pos < r->n_total || more_to_echo(r))) {
        return;
    }

    if (more_to_echo(r)) {
        rc = send_echo(e, r);

    } else if (r->pos < r->n_total) {
        rc = send_tokens(e, r);
        r->due = e->now + r->script.delay * 1000;

    } else {
        rc = end(e, r);
    }

    if (rc == CHAN_OK && r->pos >= r->n_total && r->state == REQ_RUNS
        && r->script.fail_after < 0 && r->script.hang_after < 0
        && r->script.die_after < 0 && r->script.corrupt == 0
        && !more_to_echo(r))
    {
        rc = end(e, r);
    }

    if (rc == CHAN_OK && r->state == REQ_RUNS) {
        note(next, r->due);
    }
}


/* What the script does to the cache is on the board before FINISH. */

static int
end(engine_t *e, request_t *r)
{
    if (r->script.evict >= 0) {
        forget(e, r);
        r->script.evict = -1;
    }

    for ( /* void */ ; r->script.log > 0; r->script.log--) {
        (void) chan_board_evict(e->board, r->rank, 0);
    }

    if (r->script.epoch > 0) {
        e->epoch[r->rank] += (uint64_t) r->script.epoch;
        r->script.epoch = 0;
        publish(e);
    }

    return send_finish(e, r, r->reason);
}


static void
forget(engine_t *e, request_t *r)
{
    size_t          off, i;
    chan_tag_t      tag;
    chan_section_t  sec;

    off = 0;

    while (chan_body_next(r->body, r->have, &off, &sec) == CHAN_OK) {

        if (sec.kind != CHAN_SEC_TAGS) {
            continue;
        }

        for (i = (size_t) r->script.evict * sizeof(tag); i < sec.size;
             i += sizeof(tag))
        {
            memcpy(&tag, sec.data + i, sizeof(tag));
            (void) chan_board_evict(e->board, r->rank, tag.tag);
        }
    }
}


static int
more_to_echo(request_t *r)
{
    return (r->submit.flags & CHAN_F_ECHO) != 0
           && r->echoed < (int64_t) r->prompt.n;
}


/* What the script wants to go wrong at this token; 1: it did. */

static int
incident(engine_t *e, request_t *r)
{
    int64_t  at;

    at = r->pos >= r->n_total ? INT64_MAX : r->pos;

    if (due(r, r->script.die_after, at)) {
        log_event(e, "die", r, "pos=%" PRId64, r->pos);
        _exit(1);
    }

    if (due(r, r->script.hang_after, at)) {
        e->hangs = 1;
        return 1;
    }

    if (r->script.corrupt != CORRUPT_NONE
        && due(r, r->script.corrupt_after, at))
    {
        corrupt(e, r);
        return 1;
    }

    if (due(r, r->script.fail_after, at)) {
        (void) send_error(e, r, r->script.error != 0
                          ? (uint32_t) r->script.error : CHAN_E_INTERNAL,
                          NULL, NULL, -1);
        return 1;
    }

    return 0;
}


/* What happened to another engine does not happen to this one again. */

static int
due(const request_t *r, int64_t after, int64_t at)
{
    return after >= 0 && at >= after && (r->from == 0 || after > r->from);
}


/* The lane's other end should now drop it; till then nothing is sent. */

static void
corrupt(engine_t *e, request_t *r)
{
    lane_t           *l;
    uint64_t          at;
    chan_ring_t      *out;
    chan_delta_t      d;
    chan_record_t     rec;
    chan_accepted_t   a;

    struct {
        chan_delta_t  d;
        char          rest[8];
    } bad;

    l = r->lane;
    out = &l->chan.out;
    memset(&bad, 0, sizeof(bad));
    bad.d.kind = CHAN_CONTENT;

    switch (r->script.corrupt) {

    case CORRUPT_HEAD:
        AO_store_release(&out->ctl->head, out->cursor + out->size + 8);
        break;

    case CORRUPT_SIZE:
        memset(&rec, 0, sizeof(rec));
        rec.size = 0x7ffffff8;
        rec.type = CHAN_DELTA;
        rec.id = r->id;
        at = out->cursor & (out->size - 1);

        if (at + sizeof(rec) <= out->size) {
            memcpy(out->data + at, &rec, sizeof(rec));
        }

        AO_store_release(&out->ctl->head, out->cursor + 64);
        break;

    case CORRUPT_TYPE:
        (void) lane_write(l, 99, r->id, &bad, sizeof(bad));
        break;

    case CORRUPT_TEXT:
        bad.d.text_size = 3;
        memcpy(bad.rest, "a\xff" "b", 3);
        (void) lane_write(l, CHAN_DELTA, r->id, &bad, sizeof(bad));
        break;

    case CORRUPT_CURSOR:
        AO_store_release(&l->chan.in.ctl->tail, l->chan.in.cursor + 4096);
        break;

    case CORRUPT_ID:
        memset(&d, 0, sizeof(d));
        d.kind = CHAN_CONTENT;
        (void) lane_write(l, CHAN_DELTA, r->id + 1000000, &d, sizeof(d));
        break;

    case CORRUPT_ZERO:
        memset(&d, 0, sizeof(d));
        d.kind = CHAN_CONTENT;
        (void) lane_write(l, CHAN_DELTA, 0, &d, sizeof(d));
        break;

    case CORRUPT_ORDER:
        memset(&a, 0, sizeof(a));
        (void) lane_write(l, CHAN_ACCEPTED, r->id, &a, sizeof(a));
        break;

    case CORRUPT_TOKEN:
        bad.d.n_tokens = 1000;
        bad.d.token_size = 8;
        (void) lane_write(l, CHAN_DELTA, r->id, &bad, sizeof(bad));
        break;
    }

    log_event(e, "corrupt", r, "what=%s pos=%" PRId64,
              script_name(script_corruptions, r->script.corrupt), r->pos);

    chan_ring_notify_data(out);
    r->due = INT64_MAX;
}
