/*
 * The scheduler: making it, handing sequences over, ending them.
 */

#include "sched/sched_int.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>


static int sched_rank_open(sched_t *s, uint32_t index);
static int sched_part_open(sched_t *s, sched_part_t *p);
static int sched_rank_drafts(sched_t *s, sched_rank_t *rk);
static void sched_rank_close(sched_rank_t *rk);
static void sched_event(sched_t *s, sched_seq_t *seq);
static int sched_answers(const sched_seq_t *seq);


uint32_t
sched_max_rows(uint32_t max_batch, uint32_t prefill_chunk,
    uint32_t speculate)
{
    return max_batch * (1 + speculate) + prefill_chunk;
}


/*
 * Every sequence samples from its rows; scoring a prompt takes what is left of
 * a number that keeps the logits of a large vocabulary at a modest size.
 */

uint32_t
sched_max_logits(uint32_t max_batch, uint32_t prefill_chunk,
    uint32_t speculate)
{
    return max_batch * (1 + speculate)
           + (prefill_chunk < 64 ? prefill_chunk : 64);
}


uint64_t
sched_now(const sched_t *s)
{
    struct timespec  ts;

    if (s->opt.now != NULL) {
        return s->opt.now();
    }

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}


sched_t *
sched_open(const sched_options_t *opt, char *err)
{
    sched_t             *s;
    uint32_t             i;
    pthread_condattr_t   attr;

    s = calloc(1, sizeof(sched_t));
    if (s == NULL) {
        snprintf(err, SCHED_ERR_LEN, "scheduler: no memory");
        return NULL;
    }

    s->opt = *opt;

    if (s->opt.n_eos > SCHED_EOS_MAX) {
        s->opt.n_eos = SCHED_EOS_MAX;
    }

    for (i = 0; i < s->opt.n_eos; i++) {
        s->eos[i] = opt->eos[i];
    }

    s->opt.eos = s->eos;
    s->max_rows = sched_max_rows(opt->max_batch, opt->prefill_chunk,
                                 opt->speculate);
    s->max_logits = sched_max_logits(opt->max_batch, opt->prefill_chunk,
                                     opt->speculate);
    s->next_deadline = SCHED_NEVER;
    s->next_order = 1;
    s->idled = 1;
    sched_cost_init(&s->cost, opt->touch);

    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->step_lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&s->step_begin, NULL);

    s->rank = calloc(opt->n_ranks, sizeof(sched_rank_t));

    if (s->rank == NULL) {
        snprintf(err, SCHED_ERR_LEN, "scheduler: no memory");
        sched_close(s);
        return NULL;
    }

    for (i = 0; i < opt->n_ranks; i++) {
        s->n_ranks++;

        if (sched_rank_open(s, i) != 0) {
            snprintf(err, SCHED_ERR_LEN, "scheduler: no memory for rank %u: "
                     "%u KV blocks, %u rows of %u logits", i, opt->kv_blocks,
                     s->max_logits, opt->vocab);
            sched_close(s);
            return NULL;
        }
    }

    if (sched_disk_open(s, err) != 0) {
        sched_close(s);
        return NULL;
    }

    sched_publish(s);

    return s;
}


static int
sched_rank_open(sched_t *s, uint32_t index)
{
    size_t         rows, logits, batch;
    sched_rank_t  *rk;

    rk = &s->rank[index];
    rk->index = index;
    rk->sched = s;
    rk->part = &rk->parts[0];
    rk->owed = &rk->parts[1];

    rows = s->max_rows;
    logits = s->max_logits;
    batch = (size_t) s->opt.max_batch;

    rk->row_id = calloc(rows, sizeof(int32_t));
    rk->row_pos = calloc(rows, sizeof(uint32_t));
    rk->row_seq = calloc(rows, sizeof(uint32_t));
    rk->seq_blocks = calloc(batch, sizeof(int32_t *));
    rk->logit_row = calloc(logits, sizeof(uint32_t));
    rk->logits = calloc(logits * s->opt.vocab, sizeof(float));
    rk->draw = calloc(logits, sizeof(sample_draw_t));
    rk->drawn = calloc(logits, sizeof(int32_t));
    rk->echo = calloc(logits, sizeof(sched_token_t));
    rk->sample = sample_open(s->opt.vocab, s->opt.known, s->opt.max_context);

    rk->paused = calloc(s->opt.kv_blocks, sizeof(uint32_t));

    if (sched_cache_open(s, rk) != 0
        || sched_part_open(s, &rk->parts[0]) != 0
        || sched_part_open(s, &rk->parts[1]) != 0
        || rk->paused == NULL || rk->row_id == NULL || rk->row_pos == NULL
        || rk->row_seq == NULL || rk->seq_blocks == NULL
        || rk->logit_row == NULL || rk->logits == NULL || rk->draw == NULL
        || rk->drawn == NULL || rk->echo == NULL || rk->sample == NULL)
    {
        return -1;
    }

    return s->opt.speculate > 0 ? sched_rank_drafts(s, rk) : 0;
}


/* Scored rows are handed out with the one before them: one slot more each. */

static int
sched_part_open(sched_t *s, sched_part_t *p)
{
    size_t  slots;

    slots = (size_t) s->max_logits + s->opt.max_batch;

    p->entry = calloc(s->opt.max_batch, sizeof(sched_entry_t));
    p->token = calloc(slots, sizeof(sched_token_t));
    p->top = calloc(slots * SCHED_TOP_MAX, sizeof(sample_top_t));

    return p->entry != NULL && p->token != NULL && p->top != NULL ? 0 : -1;
}


static int
sched_rank_drafts(sched_t *s, sched_rank_t *rk)
{
    size_t  rows, batch;

    rows = s->max_rows;
    batch = s->opt.max_batch;

    rk->d_entry = calloc(batch, sizeof(uint32_t));
    rk->d_id = calloc(rows, sizeof(int32_t));
    rk->d_pos = calloc(rows, sizeof(uint32_t));
    rk->d_seq = calloc(rows, sizeof(uint32_t));
    rk->d_from = calloc(rows, sizeof(uint32_t));
    rk->d_first = calloc(batch, sizeof(uint32_t));
    rk->d_logit_row = calloc(batch, sizeof(uint32_t));

    return rk->d_entry != NULL && rk->d_id != NULL && rk->d_pos != NULL
           && rk->d_seq != NULL && rk->d_from != NULL && rk->d_first != NULL
           && rk->d_logit_row != NULL ? 0 : -1;
}


static void
sched_rank_close(sched_rank_t *rk)
{
    uint32_t  i;

    for (i = 0; i < 2; i++) {
        free(rk->parts[i].entry);
        free(rk->parts[i].token);
        free(rk->parts[i].top);
    }

    sched_cache_close(rk);
    sample_close(rk->sample);
    free(rk->paused);
    free(rk->running);
    free(rk->row_id);
    free(rk->row_pos);
    free(rk->row_seq);
    free(rk->seq_blocks);
    free(rk->logit_row);
    free(rk->d_entry);
    free(rk->d_id);
    free(rk->d_pos);
    free(rk->d_seq);
    free(rk->d_from);
    free(rk->d_first);
    free(rk->d_logit_row);
    free(rk->logits);
    free(rk->draw);
    free(rk->drawn);
    free(rk->echo);
}


void
sched_close(sched_t *s)
{
    uint32_t  i;

    if (s == NULL) {
        return;
    }

    sched_stop(s);
    sched_disk_close(s);

    for (i = 0; i < s->n_ranks; i++) {
        sched_rank_close(&s->rank[i]);
    }

    pthread_cond_destroy(&s->wake);
    pthread_cond_destroy(&s->step_begin);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->step_lock);

    free(s->rank);
    free(s->event);
    free(s);
}


int
sched_submit(sched_t *s, const sched_request_t *r, sched_seq_t **out)
{
    sched_seq_t  *seq;

    seq = calloc(1, sizeof(sched_seq_t));
    if (seq == NULL) {
        free(r->ids);
        free(r->tags);
        free((void *) r->params.bias);
        return -1;
    }

    seq->r = *r;
    seq->ids = r->ids;
    seq->n_total = r->n_prompt + r->n_output;
    seq->cap = seq->n_total;
    atomic_init(&seq->refs, 2);
    atomic_init(&seq->credit, r->credit);

    *out = seq;

    atomic_fetch_add(&s->n_inbox, 1);
    sched_event(s, seq);

    return 0;
}


void
sched_release(sched_seq_t *seq)
{
    if (atomic_fetch_sub(&seq->refs, 1) != 1) {
        return;
    }

    free(seq->ids);
    free(seq->blocks);
    free(seq->hash);
    free(seq->r.tags);
    free((void *) seq->r.params.bias);
    free(seq);
}


/*
 * Puts the sequence on the list of those that the step thread must look at.
 * The list holds a reference of its own.
 */

static void
sched_event(sched_t *s, sched_seq_t *seq)
{
    pthread_mutex_lock(&s->lock);

    if (!seq->event) {
        seq->event = 1;
        atomic_fetch_add(&seq->refs, 1);
        seq->event_next = s->events;
        s->events = seq;
    }

    s->changed = 1;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}


void
sched_cancel(sched_t *s, sched_seq_t *seq)
{
    atomic_store(&seq->cancelled, 1);
    sched_event(s, seq);
}


void
sched_credit(sched_t *s, sched_seq_t *seq, int64_t bytes)
{
    int64_t  old;

    old = atomic_fetch_add(&seq->credit, bytes);

    if (old <= 0 && old + bytes > 0) {
        sched_wake(s);
    }
}


void
sched_charge(sched_seq_t *seq, int64_t bytes)
{
    atomic_fetch_sub(&seq->credit, bytes);
}


void
sched_wake(sched_t *s)
{
    pthread_mutex_lock(&s->lock);
    s->changed = 1;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}


void
sched_drain(sched_t *s)
{
    pthread_mutex_lock(&s->lock);
    s->draining = 1;
    s->changed = 1;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}


int
sched_paused(const sched_seq_t *seq)
{
    return atomic_load_explicit(&seq->credit, memory_order_relaxed) <= 0
           || (seq->r.hold != NULL
               && atomic_load_explicit(seq->r.hold, memory_order_relaxed)
                  != 0);
}


/*
 * Whether a sequence has no part in what follows the step under way, which
 * ends it for certain, or after which it pauses.
 */

int
sched_leaves(const sched_seq_t *seq)
{
    if (!seq->in_step) {
        return 0;
    }

    if (seq->done != 0 || sched_paused(seq)) {
        return 1;
    }

    return seq->r.max_tokens == 0 ? seq->n_done == sched_target(seq)
                                  : !sched_answers(seq);
}


/* Whether one that has something to answer may have another token. */

static int
sched_answers(const sched_seq_t *seq)
{
    return seq->r.max_tokens > 0 && !seq->r.ended
           && seq->n_total + seq->coming - seq->r.n_prompt
              < seq->r.max_tokens;
}


/* Whether a sequence samples after the rows it was given. */

int
sched_samples(const sched_seq_t *seq)
{
    return seq->rows > 0 && sched_answers(seq)
           && seq->n_done + seq->rows - seq->n_spec
              == seq->n_total + seq->coming;
}


/* How many positions have to be computed before the next token, or the end. */

uint32_t
sched_target(const sched_seq_t *seq)
{
    if (seq->r.max_tokens > 0) {
        return seq->n_total + seq->coming;
    }

    return seq->r.echo && seq->r.logprobs ? seq->r.n_prompt - 1 : 0;
}


void
sched_free_blocks(sched_t *s, sched_seq_t *seq)
{
    uint32_t     i;
    kv_cache_t  *cache;

    cache = &s->rank[seq->rank].cache;

    /* The last first: see kv_cache.h. */

    for (i = seq->n_blocks; i-- > 0; ) {
        kv_cache_put(cache, seq->blocks[i]);
    }

    seq->n_blocks = 0;
    seq->n_public = 0;
    seq->n_tagged = 0;
    seq->n_done = 0;
    seq->n_draft = 0;
    seq->mtp_next = 0;
}


/*
 * Ends a sequence wherever it is; step thread only.  One that is part of the
 * step under way ends when what that brings is handed out: until then the
 * step writes to its blocks.
 */

void
sched_end(sched_t *s, sched_seq_t *seq, sched_reason_t reason,
    const char *message)
{
    sched_finish_t  f;

    if (seq->in_step) {

        if (seq->done == 0) {
            seq->done = reason;

            if (message != NULL) {
                snprintf(seq->why, sizeof(seq->why), "%s", message);
                seq->message = seq->why;
            }
        }

        return;
    }

    switch (seq->place) {

    case SCHED_IN_NONE:
        break;

    case SCHED_IN_QUEUE:
        sched_list_remove(&s->queue, seq);
        s->n_waiting -= !seq->accepted;
        break;

    case SCHED_IN_PARK:
        sched_list_remove(&s->park, seq);
        break;

    case SCHED_IN_RANK:
        sched_leave_rank(s, seq);
        break;
    }

    seq->place = SCHED_IN_NONE;
    seq->ended = 1;

    if (seq->accepted) {
        s->rank[seq->rank].prompt += seq->r.n_prompt;
        s->rank[seq->rank].cached += seq->n_cached;
    }

    memset(&f, 0, sizeof(f));
    f.reason = reason;
    f.message = message;
    f.n_prompt = seq->r.n_prompt;
    f.n_cached = seq->n_cached;
    f.n_output = seq->n_total - seq->r.n_prompt;
    f.n_drafted = seq->n_drafted;
    f.n_hit = seq->n_hit;
    f.rank = seq->rank;
    f.step = s->steps;
    f.submitted_us = seq->r.submitted_us;
    f.accepted_us = seq->accepted_us;
    f.first_us = seq->first_us;
    f.ended_us = sched_now(s);

    s->opt.ops->finish(seq->r.data, &f);

    sched_release(seq);
}


void
sched_publish(sched_t *s)
{
    uint32_t             i, n;
    sched_rank_t        *rk;
    sched_rank_stats_t  *st;

    pthread_mutex_lock(&s->lock);

    s->stats.steps = s->steps;
    s->stats.waiting = s->n_waiting;
    s->stats.accepted = s->accepted;
    s->stats.preempted = s->preempted;
    s->stats.busy_us = s->busy_us;
    s->stats.guess_us = s->guess_us;
    s->stats.n_ranks = s->n_ranks;
    s->stats.tokens = 0;
    s->stats.prompt = 0;
    s->stats.cached = 0;
    s->stats.drafts = 0;
    s->stats.drafted = 0;
    s->stats.hits = 0;
    memset(s->stats.hit, 0, sizeof(s->stats.hit));
    s->stats.depth = s->run.depth;
    s->stats.followed = s->followed;
    s->stats.idle_us = 0;
    s->stats.running = s->park.n + (s->queue.n - s->n_waiting);

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];
        st = &s->stats.rank[i];

        st->epoch = rk->cache.epoch;
        st->running = rk->n_running;
        st->blocks_total = rk->cache.pool.n_blocks;
        st->blocks_free = kv_cache_free(&rk->cache);
        st->blocks_cached = rk->cache.n_idle;
        st->tokens = rk->tokens;
        st->prompt = rk->prompt;
        st->cached = rk->cached;

        s->stats.tokens += rk->tokens;
        s->stats.prompt += rk->prompt;
        s->stats.cached += rk->cached;
        s->stats.drafts += rk->drafts;
        s->stats.drafted += rk->drafted;
        s->stats.idle_us += rk->idle_us / s->n_ranks;
        s->stats.running += rk->n_running;

        for (n = 0; n < SCHED_DEPTH_MAX; n++) {
            s->stats.hit[n] += rk->hit[n];
            s->stats.hits += rk->hit[n];
        }
    }

    pthread_mutex_unlock(&s->lock);

    atomic_store(&s->n_queued, s->n_waiting);
}


void
sched_stats(sched_t *s, sched_stats_t *st)
{
    pthread_mutex_lock(&s->lock);
    *st = s->stats;
    pthread_mutex_unlock(&s->lock);
}


uint32_t
sched_waiting(sched_t *s)
{
    return atomic_load(&s->n_inbox) + atomic_load(&s->n_queued);
}


int
sched_alive(sched_t *s, uint64_t limit_us)
{
    uint64_t  began;

    began = atomic_load(&s->step_began);

    return began == 0 || sched_now(s) - began < limit_us;
}
