/*
 * Submissions: ids, bodies, credit and cancels on their way to the engine, and
 * the requests that have something to do.
 *
 * An id is a slot and a generation, so that looking one up is an index and a
 * comparison.  Room in the submission ring is kept for one CANCEL and one
 * WINDOW of each request in flight; what does not fit waits in two queues,
 * `controls` (credit and cancels) before `submits`, and goes on when the
 * engine rings for space.  Requests in `submits` take turns record by record,
 * so that a large prompt does not hold up small ones.
 *
 * Nothing here ends a request directly: it is marked ready and run after the
 * events of this turn, so that all of its tokens leave in one write and so
 * that no list changes under a loop.
 */

#include "ngx_http_llm_module.h"


#define NGX_HTTP_LLM_PIECE_MIN  4096     /* of a body, worth a record */

#define NGX_HTTP_LLM_SUBMIT_SIZE                                             \
    (sizeof(chan_record_t) + sizeof(chan_submit_t))


static ngx_http_llm_seq_t *ngx_http_llm_seq_get(
    ngx_http_llm_engine_t *engine);
static ngx_int_t ngx_http_llm_lane_controls(ngx_http_llm_engine_t *engine,
    char *err);
static ngx_int_t ngx_http_llm_lane_submits(ngx_http_llm_engine_t *engine,
    char *err);
static ngx_int_t ngx_http_llm_lane_piece(ngx_http_llm_seq_t *seq, char *err);
static int64_t ngx_http_llm_lane_room(ngx_http_llm_engine_t *engine,
    uint64_t need, char *err);
static void ngx_http_llm_lane_request(ngx_http_llm_choice_t *choice,
    uint64_t body_size, chan_submit_t *submit);
static void ngx_http_llm_lane_sent(ngx_http_llm_choice_t *choice);
static ngx_int_t ngx_http_llm_lane_wait(ngx_http_llm_engine_t *engine,
    uint64_t need, char *err);


static ngx_http_llm_seq_t *
ngx_http_llm_seq_get(ngx_http_llm_engine_t *engine)
{
    void                 *seqs;
    uint32_t              n;
    ngx_queue_t          *q;
    ngx_http_llm_seq_t   *seq;

    if (ngx_queue_empty(&engine->free)) {

        n = engine->nseqs;

        /* The table doubles at powers of two. */

        if ((n & (n - 1)) == 0) {
            seqs = ngx_alloc((n ? 2 * (size_t) n : 1) * sizeof(void *),
                             ngx_cycle->log);
            if (seqs == NULL) {
                return NULL;
            }

            if (n != 0) {
                ngx_memcpy(seqs, engine->seqs, n * sizeof(void *));
                ngx_free(engine->seqs);
            }

            engine->seqs = seqs;
        }

        seq = ngx_calloc(sizeof(ngx_http_llm_seq_t), ngx_cycle->log);
        if (seq == NULL) {
            return NULL;
        }

        seq->slot = n;
        seq->engine = engine;

        engine->seqs[n] = seq;
        engine->nseqs = n + 1;

    } else {
        q = ngx_queue_head(&engine->free);
        ngx_queue_remove(q);
        seq = ngx_queue_data(q, ngx_http_llm_seq_t, queue);
    }

    if (++seq->generation == 0) {
        seq->generation = 1;
    }

    seq->id = (uint64_t) seq->generation << 32 | seq->slot;
    seq->used = 1;

    return seq;
}


ngx_http_llm_seq_t *
ngx_http_llm_seq_find(ngx_http_llm_engine_t *engine, uint64_t id)
{
    uint32_t             slot;
    ngx_http_llm_seq_t  *seq;

    slot = (uint32_t) id;

    if (slot >= engine->nseqs) {
        return NULL;
    }

    seq = engine->seqs[slot];

    return seq->used && seq->submitted && seq->id == id ? seq : NULL;
}


/* The id is free again: never submitted, or ended by the engine. */

void
ngx_http_llm_seq_release(ngx_http_llm_seq_t *seq)
{
    ngx_http_llm_engine_t  *engine;

    engine = seq->engine;

    if (seq->sending) {
        engine->nwaiting--;
        ngx_queue_remove(&seq->queue);
    }

    if (seq->control) {
        ngx_queue_remove(&seq->queue);
    }

    if (seq->submitted) {
        engine->inflight--;
    }

    if (seq->choice != NULL) {
        ngx_http_llm_lane_sent(seq->choice);
        seq->choice->seq = NULL;
        seq->choice = NULL;
    }

    seq->sent = 0;
    seq->credit = 0;
    seq->used = 0;
    seq->submitted = 0;
    seq->accepted = 0;
    seq->sending = 0;
    seq->control = 0;
    seq->cancel = 0;

    ngx_queue_insert_head(&engine->free, &seq->queue);
}


ngx_int_t
ngx_http_llm_lane_submit(ngx_http_llm_engine_t *engine,
    ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_seq_t  *seq;

    seq = ngx_http_llm_seq_get(engine);
    if (seq == NULL) {
        return NGX_ERROR;
    }

    seq->choice = choice;
    choice->seq = seq;

    seq->sending = 1;
    engine->nwaiting++;
    ngx_queue_insert_tail(&engine->submits, &seq->queue);

    return NGX_OK;
}


void
ngx_http_llm_lane_cancel(ngx_http_llm_choice_t *choice)
{
    ngx_http_llm_seq_t     *seq;
    ngx_http_llm_engine_t  *engine;

    seq = choice->seq;

    if (seq == NULL) {
        return;
    }

    engine = seq->engine;

    if (!seq->submitted) {
        ngx_http_llm_seq_release(seq);
        return;
    }

    if (seq->sending) {
        seq->sending = 0;
        engine->nwaiting--;
        ngx_queue_remove(&seq->queue);
    }

    ngx_http_llm_lane_sent(choice);

    choice->seq = NULL;
    seq->choice = NULL;
    seq->cancel = 1;

    if (!seq->control) {
        seq->control = 1;
        ngx_queue_insert_tail(&engine->controls, &seq->queue);
    }

    ngx_http_llm_lane_pump(engine);
}


void
ngx_http_llm_lane_credit(ngx_http_llm_choice_t *choice, uint64_t bytes)
{
    ngx_http_llm_seq_t  *seq;

    seq = choice->seq;

    if (seq == NULL) {
        return;
    }

    seq->credit += bytes;

    /* Several deltas share a WINDOW; three quarters stay to go on with. */

    if (seq->credit < NGX_HTTP_LLM_CREDIT / 4 || seq->control
        || seq->sending)
    {
        return;
    }

    seq->control = 1;
    ngx_queue_insert_tail(&seq->engine->controls, &seq->queue);
}


void
ngx_http_llm_lane_pump(ngx_http_llm_engine_t *engine)
{
    char  err[CHAN_ERR_LEN];

    if (engine->state != NGX_HTTP_LLM_READY
        || (ngx_queue_empty(&engine->controls)
            && ngx_queue_empty(&engine->submits)))
    {
        return;
    }

    if (ngx_http_llm_lane_controls(engine, err) == NGX_ERROR
        || ngx_http_llm_lane_submits(engine, err) == NGX_ERROR)
    {
        ngx_http_llm_engine_drop(engine, err);
        return;
    }

    chan_ring_notify_data(&engine->lane.out);
}


static ngx_int_t
ngx_http_llm_lane_controls(ngx_http_llm_engine_t *engine, char *err)
{
    int                  rc, n;
    int64_t              room;
    uint64_t             need;
    ngx_queue_t         *q;
    struct iovec         iov[2];
    chan_record_t        rec;
    chan_window_t        window;
    ngx_http_llm_seq_t  *seq;

    while (!ngx_queue_empty(&engine->controls)) {

        q = ngx_queue_head(&engine->controls);
        seq = ngx_queue_data(q, ngx_http_llm_seq_t, queue);

        ngx_memzero(&rec, sizeof(chan_record_t));
        rec.id = seq->id;

        iov[0].iov_base = &rec;
        iov[0].iov_len = sizeof(chan_record_t);
        n = 1;

        if (seq->cancel) {
            rec.type = CHAN_CANCEL;
            need = sizeof(chan_record_t);

        } else {
            rec.type = CHAN_WINDOW;
            window.credit = seq->credit;
            iov[1].iov_base = &window;
            iov[1].iov_len = sizeof(chan_window_t);
            n = 2;

            /* A WINDOW must leave room for everybody's CANCEL. */

            need = sizeof(chan_record_t) + sizeof(chan_window_t)
                   + engine->inflight * sizeof(chan_record_t);
        }

        room = chan_ring_room(&engine->lane.out, err);

        if (room < 0) {
            return NGX_ERROR;
        }

        if ((uint64_t) room < need) {

            if (ngx_http_llm_lane_wait(engine, need, err) != NGX_OK) {
                return NGX_ERROR;
            }

            room = chan_ring_room(&engine->lane.out, err);

            if (room < 0) {
                return NGX_ERROR;
            }

            if ((uint64_t) room < need) {
                return NGX_AGAIN;
            }
        }

        rc = chan_ring_write(&engine->lane.out, iov, n, err);

        if (rc == CHAN_AGAIN) {
            return NGX_AGAIN;
        }

        if (rc != CHAN_OK) {
            return NGX_ERROR;
        }

        ngx_queue_remove(q);
        seq->control = 0;
        seq->credit = 0;
    }

    return NGX_OK;
}


static ngx_int_t
ngx_http_llm_lane_submits(ngx_http_llm_engine_t *engine, char *err)
{
    ngx_int_t              rc;
    ngx_queue_t           *q;
    ngx_http_llm_seq_t    *seq;

    while (!ngx_queue_empty(&engine->submits)) {

        q = ngx_queue_head(&engine->submits);
        seq = ngx_queue_data(q, ngx_http_llm_seq_t, queue);

        rc = ngx_http_llm_lane_piece(seq, err);

        if (rc != NGX_OK) {
            return rc;
        }

        ngx_queue_remove(q);

        if (seq->sent < seq->choice->prompt->body.size
                        + seq->choice->tail.size)
        {
            ngx_queue_insert_tail(&engine->submits, q);
            continue;
        }

        seq->sending = 0;
        engine->nwaiting--;

        ngx_http_llm_lane_sent(seq->choice);
    }

    return NGX_OK;
}


/* A body is not needed any more; another choice may share its prompt. */

static void
ngx_http_llm_lane_sent(ngx_http_llm_choice_t *choice)
{
    if (choice->prompt != NULL) {
        ngx_http_llm_prompt_done(choice->prompt);
        choice->prompt = NULL;
    }

    chan_body_free(&choice->tail);
}


/* One record of a body: NGX_OK, NGX_AGAIN when there is no room for it. */

static ngx_int_t
ngx_http_llm_lane_piece(ngx_http_llm_seq_t *seq, char *err)
{
    int                     rc, n;
    int64_t                 room;
    uint64_t                all, fixed, left, size, part, reserve;
    struct iovec            iov[4];
    chan_more_t             more;
    chan_record_t           rec;
    chan_submit_t           submit;
    ngx_http_llm_prompt_t  *prompt;
    ngx_http_llm_engine_t  *engine;
    ngx_http_llm_choice_t  *choice;

    engine = seq->engine;
    choice = seq->choice;
    prompt = choice->prompt;

    fixed = seq->submitted ? sizeof(chan_record_t) + sizeof(chan_more_t)
                           : NGX_HTTP_LLM_SUBMIT_SIZE;
    all = prompt->body.size + choice->tail.size;
    left = all - seq->sent;
    reserve = (engine->inflight + !seq->submitted) * CHAN_REQUEST_RESERVE;

    room = ngx_http_llm_lane_room(engine,
                                  fixed + reserve
                                  + ngx_min(left, NGX_HTTP_LLM_PIECE_MIN),
                                  err);
    if (room < 0) {
        return (ngx_int_t) room;
    }

    size = ngx_min(left, (uint64_t) room - reserve - fixed);
    size = ngx_min(size, CHAN_RECORD_MAX - fixed) & ~UINT64_C(7);

    ngx_memzero(&rec, sizeof(chan_record_t));
    rec.id = seq->id;
    rec.type = seq->submitted ? CHAN_SUBMIT_MORE : CHAN_SUBMIT;

    iov[0].iov_base = &rec;
    iov[0].iov_len = sizeof(chan_record_t);

    if (seq->submitted) {
        more.offset = seq->sent;
        iov[1].iov_base = &more;
        iov[1].iov_len = sizeof(chan_more_t);

    } else {
        ngx_http_llm_lane_request(choice, all, &submit);
        iov[1].iov_base = &submit;
        iov[1].iov_len = sizeof(chan_submit_t);
    }

    n = 2;
    part = 0;

    if (seq->sent < prompt->body.size) {
        part = ngx_min(size, prompt->body.size - seq->sent);
        iov[n].iov_base = prompt->body.data + seq->sent;
        iov[n++].iov_len = part;
    }

    if (part < size) {
        iov[n].iov_base = choice->tail.data
                          + (seq->sent + part - prompt->body.size);
        iov[n++].iov_len = size - part;
    }

    rc = chan_ring_write(&engine->lane.out, iov, n, err);

    if (rc == CHAN_AGAIN) {
        return NGX_AGAIN;
    }

    if (rc != CHAN_OK) {
        return NGX_ERROR;
    }

    seq->sent += size;

    if (!seq->submitted) {
        seq->submitted = 1;
        engine->inflight++;
    }

    return NGX_OK;
}


/* At least `need` bytes of the ring; NGX_AGAIN; NGX_ERROR. */

static int64_t
ngx_http_llm_lane_room(ngx_http_llm_engine_t *engine, uint64_t need,
    char *err)
{
    int64_t  room;

    room = chan_ring_room(&engine->lane.out, err);

    if (room < 0) {
        return NGX_ERROR;
    }

    if ((uint64_t) room >= need) {
        return room;
    }

    /* Beyond the whole ring only fewer requests in flight can help. */

    if (need > engine->lane.out.size) {
        return NGX_AGAIN;
    }

    if (ngx_http_llm_lane_wait(engine, need, err) != NGX_OK) {
        return NGX_ERROR;
    }

    room = chan_ring_room(&engine->lane.out, err);

    if (room < 0) {
        return NGX_ERROR;
    }

    return (uint64_t) room >= need ? room : NGX_AGAIN;
}


static void
ngx_http_llm_lane_request(ngx_http_llm_choice_t *choice, uint64_t body_size,
    chan_submit_t *submit)
{
    ngx_http_llm_ctx_t    *ctx;
    ngx_http_llm_route_t  *route;

    ctx = choice->ctx;

    *submit = ctx->params.submit;
    submit->body_size = body_size;
    submit->seed = choice->seed;

    ngx_http_llm_resume_submit(choice, submit);

    if (ctx->routes != NULL) {
        route = &ctx->routes[choice->index / ctx->params.n];
        submit->rank_hint = route->rank;
        submit->rank_epoch = route->epoch;
    }
}


/* NGX_OK: the bell will ring, or there is room already. */

static ngx_int_t
ngx_http_llm_lane_wait(ngx_http_llm_engine_t *engine, uint64_t need,
    char *err)
{
    return chan_ring_wait_room(&engine->lane.out, need, err) == CHAN_ERROR
           ? NGX_ERROR : NGX_OK;
}


/* The lane is gone: its requests wait or fail, all ids are free. */

void
ngx_http_llm_lane_reset(ngx_http_llm_engine_t *engine)
{
    uint32_t                n;
    ngx_http_llm_ctx_t     *ctx;
    ngx_http_llm_seq_t     *seq;
    ngx_http_llm_choice_t  *choice;

    for (n = 0; n < engine->nseqs; n++) {
        seq = engine->seqs[n];

        if (!seq->used) {
            continue;
        }

        choice = seq->choice;

        ngx_http_llm_seq_release(seq);

        if (choice == NULL || ngx_http_llm_resume_wait(choice) == NGX_OK) {
            continue;
        }

        ctx = choice->ctx;

        if (ctx->error.status == 0) {
            (void) ngx_http_llm_unavailable(&ctx->error, "The engine was "
                                            "lost while it worked on the "
                                            "request.");
        }

        ctx->nactive--;
        ngx_http_llm_lane_ready(engine, ctx);
    }

    ngx_http_llm_lane_unpark(engine);

    if (!ngx_queue_empty(&engine->ready) && !engine->post.posted) {
        ngx_post_event(&engine->post, &ngx_posted_next_events);
    }
}


void
ngx_http_llm_lane_ready(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx)
{
    if (!ctx->queued && !ctx->closed) {
        ctx->queued = 1;
        ngx_queue_insert_tail(&engine->ready, &ctx->ready);
    }
}


void
ngx_http_llm_lane_run(ngx_http_llm_engine_t *engine)
{
    ngx_queue_t         *q;
    ngx_http_llm_ctx_t  *ctx;

    while (!ngx_queue_empty(&engine->ready)) {

        q = ngx_queue_head(&engine->ready);
        ngx_queue_remove(q);

        ctx = ngx_queue_data(q, ngx_http_llm_ctx_t, ready);
        ctx->queued = 0;

        ngx_http_llm_run_event(ctx);
    }
}


void
ngx_http_llm_lane_park(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx)
{
    ctx->parked = 1;
    ctx->queued = 1;
    ngx_queue_insert_tail(&engine->parked, &ctx->ready);
}


void
ngx_http_llm_lane_unpark(ngx_http_llm_engine_t *engine)
{
    if (ngx_queue_empty(&engine->parked)) {
        return;
    }

    ngx_queue_add(&engine->ready, &engine->parked);
    ngx_queue_init(&engine->parked);
}
