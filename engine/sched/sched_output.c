/*
 * What comes of a step: ids that are known now, tokens handed out, sequences
 * that end.
 *
 * For a sequence this is three things: the step is done for it, its tokens are
 * taken, which makes them part of it, and they are handed out.  A leader does
 * them one after the other (sched_answer()).  But with the next step prepared
 * meanwhile, only what that one needs is done between the two: sched_collect()
 * takes the tokens of all, and sched_deliver() hands them out when the next
 * step is under way, and ends those that are done.
 */

#include "sched/sched_int.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>


static int sched_settle(sched_rank_t *rk, sched_entry_t *e);
static void sched_take(sched_t *s, sched_rank_t *rk, sched_entry_t *e,
    uint32_t i);
static int sched_append(sched_seq_t *seq, int32_t id);
static int sched_is_eos(const sched_t *s, int32_t id);
static void sched_hand_out(sched_t *s, const sched_part_t *p,
    const sched_entry_t *e, uint32_t i);
static void sched_echo(sched_t *s, sched_rank_t *rk, const sched_part_t *p,
    const sched_entry_t *e);
static const sched_token_t *sched_echo_tokens(sched_rank_t *rk,
    const sched_part_t *p, const sched_entry_t *e, uint32_t n);
static void sched_collect_rank(sched_t *s, sched_rank_t *rk);
static void sched_deliver_rank(sched_t *s, sched_rank_t *rk);
static void sched_end_done(sched_t *s, sched_part_t *p);
static void sched_stepped(sched_t *s);
static void sched_idle(sched_t *s);
static void sched_learn_depth(sched_t *s);


/* Hands out the prompt's tokens and the next one, and right guesses. */

void
sched_answer(sched_t *s, sched_rank_t *rk, sched_entry_t *e)
{
    int           hit, more;
    uint32_t      i;
    sched_seq_t  *seq;

    seq = e->seq;
    more = sched_settle(rk, e);

    if (!e->dead) {
        sched_echo(s, rk, rk->part, e);
    }

    if (more) {
        rk->drafts += e->n_spec > 0;
        rk->drafted += e->n_spec;
        seq->n_drafted += e->n_spec;
    }

    for (i = 0; more; i++) {
        sched_draw(s, rk, e, i);
        sched_take(s, rk, e, i);

        if (e->n_out > i) {
            sched_hand_out(s, rk->part, e, i);
        }

        if (i == e->n_spec || seq->n_done == seq->n_total) {
            break;
        }

        hit = seq->ids[seq->n_total - 1] == seq->draft[i];
        seq->n_hit += (uint32_t) hit;
        rk->hit[i] += (uint64_t) hit;

        if (!hit || seq->done != 0 || sched_paused(seq)) {
            break;
        }

        seq->n_done++;
    }
}


/* The step is done for a sequence; 1: it has another token. */

static int
sched_settle(sched_rank_t *rk, sched_entry_t *e)
{
    sched_seq_t  *seq;

    seq = e->seq;
    seq->coming = 0;
    e->dead = seq->done != 0;

    if (e->dead) {
        return 0;
    }

    if (seq->r.max_tokens == 0) {
        if (seq->n_done == sched_target(seq)) {
            seq->done = SCHED_LENGTH;
        }

        return 0;
    }

    /* Resumed, and there was no more to do. */

    if (seq->r.ended) {
        seq->done = SCHED_STOP;

    } else if (seq->n_total - seq->r.n_prompt >= seq->r.max_tokens) {
        seq->done = SCHED_LENGTH;
    }

    if (e->samples) {
        seq->n_draft = 0;
        rk->answered++;
    }

    return e->samples;
}


static void
sched_take(sched_t *s, sched_rank_t *rk, sched_entry_t *e, uint32_t i)
{
    sched_seq_t    *seq;
    sched_token_t  *t;

    seq = e->seq;
    t = &rk->part->token[e->slot + 1 + e->n_score + i];

    if (t->id < 0) {
        seq->done = SCHED_E_INTERNAL;
        seq->message = "the model gave no token that could be drawn";
        return;
    }

    if (sched_append(seq, t->id) != 0) {
        seq->done = SCHED_E_INTERNAL;
        seq->message = "no memory";
        return;
    }

    t->eos = !seq->r.ignore_eos && sched_is_eos(s, t->id);
    e->n_out++;
    rk->tokens++;
    rk->made++;

    if (seq->first_us == 0) {
        seq->first_us = sched_now(s);
    }

    if (t->eos) {
        seq->done = SCHED_STOP;

    } else if (seq->n_total - seq->r.n_prompt >= seq->r.max_tokens) {
        seq->done = SCHED_LENGTH;
    }
}


static int
sched_append(sched_seq_t *seq, int32_t id)
{
    int32_t   *ids;
    uint32_t   cap;

    if (seq->n_total == seq->cap) {
        cap = seq->cap + seq->cap / 2 + 64;

        ids = realloc(seq->ids, (size_t) cap * sizeof(int32_t));
        if (ids == NULL) {
            return -1;
        }

        seq->ids = ids;
        seq->cap = cap;
    }

    seq->ids[seq->n_total++] = id;

    return 0;
}


static int
sched_is_eos(const sched_t *s, int32_t id)
{
    uint32_t  i;

    for (i = 0; i < s->opt.n_eos; i++) {
        if (s->eos[i] == id) {
            return 1;
        }
    }

    return 0;
}


static void
sched_hand_out(sched_t *s, const sched_part_t *p, const sched_entry_t *e,
    uint32_t i)
{
    sched_seq_t          *seq;
    const sched_token_t  *t;

    seq = e->seq;
    t = &p->token[e->slot + 1 + e->n_score + i];

    if (s->opt.ops->tokens(seq->r.data, SCHED_OUTPUT, t, 1)) {
        seq->done = SCHED_STOP;
    }
}


/* Prompt tokens that have not been handed out, as far as they are scored. */

static void
sched_echo(sched_t *s, sched_rank_t *rk, const sched_part_t *p,
    const sched_entry_t *e)
{
    uint32_t              n, end, last;
    sched_seq_t          *seq;
    const sched_token_t  *t;

    seq = e->seq;

    if (!seq->r.echo) {
        return;
    }

    end = seq->r.n_prompt;

    if (seq->r.logprobs) {
        last = e->first + e->rows + 1;
        end = last < end ? last : end;
    }

    while (seq->n_echo < end) {

        n = end - seq->n_echo;
        n = n < s->max_logits ? n : s->max_logits;
        t = sched_echo_tokens(rk, p, e, n);

        seq->n_echo += n;
        (void) s->opt.ops->tokens(seq->r.data, SCHED_ECHO, t, n);
    }
}


/* The next `n`.  Scored ones are in their slots, but for the first of all. */

static const sched_token_t *
sched_echo_tokens(sched_rank_t *rk, const sched_part_t *p,
    const sched_entry_t *e, uint32_t n)
{
    uint32_t        i, at;
    sched_seq_t    *seq;
    sched_token_t  *t;

    seq = e->seq;
    at = seq->n_echo;
    t = seq->r.logprobs ? &p->token[e->slot + at - e->scored] : rk->echo;

    for (i = 0; i < n; i++) {
        if (!seq->r.logprobs || at + i == 0) {
            memset(&t[i], 0, sizeof(sched_token_t));
            t[i].id = seq->ids[at + i];
            t[i].logprob = NAN;
        }
    }

    return t;
}


/* All ranks have run. */

void
sched_collect(sched_t *s)
{
    uint32_t  i;

    s->steps++;
    sched_idle(s);

    for (i = 0; i < s->n_ranks; i++) {
        if (s->rank[i].rc != 0) {
            sched_fail(s, s->rank[i].err);
        }
    }

    if (s->failed) {
        sched_abort(s, "a rank of the engine failed");
        sched_stepped(s);
        return;
    }

    for (i = 0; i < s->n_ranks; i++) {
        sched_collect_rank(s, &s->rank[i]);
    }

    if (!s->foreign) {
        sched_budget_learn(s);
        sched_learn_depth(s);
    }

    if (s->run.ahead) {
        s->owing = 1;
        return;
    }

    for (i = 0; i < s->n_ranks; i++) {
        sched_end_done(s, s->rank[i].part);
    }

    sched_stepped(s);
}


static void
sched_collect_rank(sched_t *s, sched_rank_t *rk)
{
    uint32_t        i;
    sched_part_t   *p;
    sched_entry_t  *e;

    p = rk->part;

    for (i = 0; i < p->n; i++) {
        e = &p->entry[i];
        e->seq->in_step = 0;

        if (s->run.ahead && sched_settle(rk, e)) {
            sched_take(s, rk, e, 0);
        }

        sched_cache_publish(s, rk, e->seq);
    }

    if (s->run.ahead) {
        rk->part = rk->owed;
        rk->owed = p;
        rk->part->n = 0;
    }
}


/* Hands out what is owed, if anything is, and ends who is done. */

void
sched_deliver(sched_t *s)
{
    uint32_t  i;

    if (!s->owing) {
        return;
    }

    s->owing = 0;

    for (i = 0; i < s->n_ranks; i++) {
        sched_deliver_rank(s, &s->rank[i]);
    }

    for (i = 0; i < s->n_ranks; i++) {
        sched_end_done(s, s->rank[i].owed);
    }

    sched_stepped(s);
}


static void
sched_deliver_rank(sched_t *s, sched_rank_t *rk)
{
    uint32_t        i;
    sched_part_t   *p;
    sched_entry_t  *e;

    p = rk->owed;

    for (i = 0; i < p->n; i++) {
        e = &p->entry[i];

        if (!e->dead) {
            sched_echo(s, rk, p, e);
        }

        if (e->n_out > 0) {
            sched_hand_out(s, p, e, 0);
        }
    }
}


/* Those that the next step computes, too, end after it: see sched_end(). */

static void
sched_end_done(sched_t *s, sched_part_t *p)
{
    uint32_t      i;
    sched_seq_t  *seq;

    for (i = 0; i < p->n; i++) {
        seq = p->entry[i].seq;

        if (seq->done != 0) {
            sched_end(s, seq, seq->done, seq->message);
        }
    }

    p->n = 0;
}


static void
sched_stepped(sched_t *s)
{
    sched_publish(s);

    if (s->opt.ops->stepped != NULL) {
        s->opt.ops->stepped(s->opt.ops_ctx);
    }
}


/* How long the ranks had nothing to do, unless there was nothing. */

static void
sched_idle(sched_t *s)
{
    uint32_t       i;
    sched_rank_t  *rk;

    s->followed += !s->idled;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        if (!s->idled) {
            rk->idle_us += rk->began_us - rk->last_us;
        }

        rk->last_us = rk->ended_us;
    }

    s->idled = 0;
}


/* Only a step of nothing but answers tells what guessing brings. */

static void
sched_learn_depth(sched_t *s)
{
    uint32_t             i, n, entries, answered, made;
    const sched_rank_t  *rk;

    entries = 0;
    answered = 0;
    made = 0;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];
        n = (s->run.ahead ? rk->owed : rk->part)->n;
        entries += n;
        answered += rk->answered;
        made += rk->made;

        if (rk->n_rows > n * (1 + s->opt.speculate)) {
            return;                  /* a prompt, too */
        }
    }

    if (answered == entries) {
        sched_depth_learn(s, answered, made, sched_now(s) - s->step_from);
    }
}


void
sched_fail(sched_t *s, const char *why)
{
    if (!s->failed) {
        s->failed = 1;
        s->opt.ops->failed(s->opt.ops_ctx, why);
    }
}


/* Nothing is done any more: whoever is not done ends, with that message. */

void
sched_abort(sched_t *s, const char *message)
{
    uint32_t       i, j;
    sched_rank_t  *rk;

    for (i = 0; i < s->n_ranks; i++) {
        rk = &s->rank[i];

        for (j = 0; j < rk->part->n; j++) {
            rk->part->entry[j].seq->in_step = 0;
        }

        sched_end_done(s, rk->owed);
        sched_end_done(s, rk->part);
    }

    s->owing = 0;
    s->prepared = 0;
    sched_end_all(s, SCHED_E_INTERNAL, message);
}
