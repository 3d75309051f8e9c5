/*
 * Intake: from a body to a sequence, outside of server and step threads.
 *
 * Two threads.  One takes large bodies, and small ones when there are none;
 * the other takes small ones only, so that a megabyte of prompt does not stand
 * in front of a question.
 */

#include "serve/serve_int.h"

#include <errno.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>


#define SERVE_LARGE  65536           /* bytes of a body */


static void *serve_intake_main(void *data);
static serve_req_t *serve_take(serve_req_t **first, serve_req_t ***last);
static void serve_intake_run(serve_req_t *r);
static int serve_parse(serve_req_t *r, serve_body_t *b, serve_fault_t *f);
static int serve_section(serve_req_t *r, serve_body_t *b,
    const chan_section_t *sec, serve_fault_t *f);
static int serve_message(serve_body_t *b, const chan_section_t *sec,
    serve_fault_t *f);
static int serve_bias(serve_req_t *r, serve_body_t *b,
    const chan_section_t *sec, serve_fault_t *f);
static int serve_streams(serve_req_t *r, serve_body_t *b, int reasoning,
    serve_fault_t *f);
static void serve_tenant(const serve_body_t *b, uint64_t tenant[2]);
static int serve_hand_over(serve_req_t *r, serve_body_t *b, tok_ids_t *ids,
    uint32_t max_tokens, serve_fault_t *f);
static int serve_ids(serve_req_t *r, const serve_body_t *b,
    const tok_ids_t *ids, sched_request_t *q, serve_fault_t *f);
static void serve_request(serve_req_t *r, const serve_body_t *b,
    sched_request_t *q);


int
serve_intake_open(serve_t *s, char *err)
{
    int              i, rc;
    serve_intake_t  *in;

    in = &s->intake;

    pthread_mutex_init(&in->lock, NULL);
    pthread_cond_init(&in->wake, NULL);
    in->small_last = &in->small_first;
    in->large_last = &in->large_first;

    for (i = 0; i < 2; i++) {
        rc = pthread_create(&in->thread[i], NULL, serve_intake_main, s);

        if (rc != 0) {
            snprintf(err, SERVE_ERR_LEN, "cannot start a thread: %s",
                     strerror(rc));
            return -1;
        }

        in->n_threads++;
    }

    return 0;
}


/* Ends what is still in the queue. */

void
serve_intake_close(serve_t *s)
{
    int              i;
    serve_req_t     *r;
    serve_intake_t  *in;

    in = &s->intake;

    pthread_mutex_lock(&in->lock);
    in->stop = 1;
    pthread_cond_broadcast(&in->wake);
    pthread_mutex_unlock(&in->lock);

    for (i = 0; i < in->n_threads; i++) {
        pthread_join(in->thread[i], NULL);
    }

    in->n_threads = 0;

    while ((r = in->small_first) != NULL) {
        in->small_first = r->next;
        serve_error(r, CHAN_E_SHUTDOWN, "", "the engine is going down");
    }

    while ((r = in->large_first) != NULL) {
        in->large_first = r->next;
        serve_error(r, CHAN_E_SHUTDOWN, "", "the engine is going down");
    }
}


uint32_t
serve_intake_waiting(serve_t *s)
{
    uint32_t  n;

    pthread_mutex_lock(&s->intake.lock);
    n = s->intake.n;
    pthread_mutex_unlock(&s->intake.lock);

    return n;
}


void
serve_intake_put(serve_req_t *r)
{
    serve_intake_t  *in;

    in = &r->serve->intake;
    r->next = NULL;

    pthread_mutex_lock(&in->lock);

    if (r->submit.body_size > SERVE_LARGE) {
        *in->large_last = r;
        in->large_last = &r->next;

    } else {
        *in->small_last = r;
        in->small_last = &r->next;
    }

    in->n++;

    /* Both: the one that sleeps may not take large ones. */
    pthread_cond_broadcast(&in->wake);
    pthread_mutex_unlock(&in->lock);
}


static serve_req_t *
serve_take(serve_req_t **first, serve_req_t ***last)
{
    serve_req_t  *r;

    r = *first;

    if (r != NULL) {
        *first = r->next;

        if (*first == NULL) {
            *last = first;
        }
    }

    return r;
}


static void *
serve_intake_main(void *data)
{
    int              large;
    serve_t         *s = data;
    serve_req_t     *r;
    serve_intake_t  *in;

    in = &s->intake;

    pthread_setname_np(pthread_self(), "llm-intake");
    pthread_mutex_lock(&in->lock);

    large = pthread_equal(pthread_self(), in->thread[0]) != 0;

    for ( ;; ) {

        r = NULL;

        if (in->stop) {
            break;
        }

        if (large) {
            r = serve_take(&in->large_first, &in->large_last);
        }

        if (r == NULL) {
            r = serve_take(&in->small_first, &in->small_last);
        }

        if (r == NULL) {
            pthread_cond_wait(&in->wake, &in->lock);
            continue;
        }

        pthread_mutex_unlock(&in->lock);

        serve_intake_run(r);

        pthread_mutex_lock(&in->lock);
        in->n--;
    }

    pthread_mutex_unlock(&in->lock);

    return NULL;
}


static void
serve_intake_run(serve_req_t *r)
{
    int             rc, reasoning, cancelled;
    uint32_t        max_tokens;
    tok_ids_t       ids;
    serve_body_t    b;
    serve_fault_t   f;

    memset(&b, 0, sizeof(b));
    memset(&ids, 0, sizeof(ids));
    memset(&f, 0, sizeof(f));
    reasoning = 0;
    max_tokens = 0;

    /* It may have waited; nobody else's prompt is to wait for it now. */

    pthread_mutex_lock(&r->lock);
    cancelled = r->cancelled;
    pthread_mutex_unlock(&r->lock);

    if (cancelled) {
        serve_req_cancelled(r);
        return;
    }

    rc = serve_parse(r, &b, &f);

    if (rc == 0) {
        rc = r->submit.endpoint == CHAN_CHAT
             ? serve_chat(r, &b, &ids, &reasoning, &f)
             : serve_completion(r, &b, &ids, &f);
    }

    if (rc == 0) {
        rc = serve_bound(r, ids.n, b.n_resume, &max_tokens, &f);
    }

    if (rc == 0) {
        rc = serve_streams(r, &b, reasoning, &f);
    }

    if (rc == 0) {
        rc = serve_hand_over(r, &b, &ids, max_tokens, &f);
    }

    free(b.message);
    free(b.bias);
    free(b.tags);
    tok_ids_free(&ids);

    if (rc != 0) {
        serve_error(r, f.code, f.param, "%s", f.text);
    }
}


static int
serve_parse(serve_req_t *r, serve_body_t *b, serve_fault_t *f)
{
    char            err[CHAN_ERR_LEN];
    size_t          off, n;
    chan_section_t  sec;

    if (r->submit.fingerprint != 0
        && r->submit.fingerprint != r->serve->opt.fingerprint)
    {
        return serve_fault(f, CHAN_E_MODEL, "model",
                           "another model is served here now");
    }

    if (chan_body_check(&r->submit, r->body, r->body_got, err) != CHAN_OK) {
        return serve_fault(f, CHAN_E_INVALID, "", "%s", err);
    }

    off = 0;
    n = 0;

    while (chan_body_next(r->body, r->body_got, &off, &sec) == CHAN_OK) {
        n += sec.kind == CHAN_SEC_MESSAGE;
    }

    b->message = malloc((n + 1) * sizeof(tok_message_t));
    if (b->message == NULL) {
        return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
    }

    off = 0;

    while (chan_body_next(r->body, r->body_got, &off, &sec) == CHAN_OK) {
        if (serve_section(r, b, &sec, f) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
serve_section(serve_req_t *r, serve_body_t *b, const chan_section_t *sec,
    serve_fault_t *f)
{
    switch (sec->kind) {

    case CHAN_SEC_MESSAGE:
        return serve_message(b, sec, f);

    case CHAN_SEC_TEXT:
        b->text = (const char *) sec->data;
        b->text_len = sec->size;
        break;

    case CHAN_SEC_IDS:
        b->ids = (const int32_t *) sec->data;
        b->n_ids = sec->size / sizeof(int32_t);
        b->has_ids = 1;
        break;

    case CHAN_SEC_STOP:
        if (b->n_stops < CHAN_STOP_MAX) {
            b->stop[b->n_stops].text = (const char *) sec->data;
            b->stop[b->n_stops++].len = sec->size;
        }
        break;

    case CHAN_SEC_BIAS:
        return serve_bias(r, b, sec, f);

    case CHAN_SEC_RESUME_IDS:
        b->resume = (const int32_t *) sec->data;
        b->n_resume = sec->size / sizeof(int32_t);
        break;

    case CHAN_SEC_TENANT:
        b->tenant = sec->data;
        b->n_tenant = sec->size;
        break;

    case CHAN_SEC_TAGS:
        b->tag = (const chan_tag_t *) sec->data;
        b->n_tags = (uint32_t) (sec->size / sizeof(chan_tag_t));
        break;

    default:
        break;
    }

    return 0;
}


static int
serve_message(serve_body_t *b, const chan_section_t *sec, serve_fault_t *f)
{
    tok_message_t  *m;

    if (sec->role == CHAN_ROLE_TOOL) {
        return serve_fault(f, CHAN_E_INVALID, "messages",
                           "messages of tools are not supported");
    }

    m = &b->message[b->n_messages++];
    m->role = sec->role == CHAN_ROLE_SYSTEM ? TOK_ROLE_SYSTEM
              : sec->role == CHAN_ROLE_USER ? TOK_ROLE_USER
              : TOK_ROLE_ASSISTANT;
    m->content = (const char *) sec->data;
    m->len = sec->size;

    return 0;
}


static int
serve_bias(serve_req_t *r, serve_body_t *b, const chan_section_t *sec,
    serve_fault_t *f)
{
    size_t              i, n;
    const chan_bias_t  *in;

    in = (const chan_bias_t *) sec->data;
    n = sec->size / sizeof(chan_bias_t);

    free(b->bias);
    b->n_bias = 0;
    b->bias = malloc((n + 1) * sizeof(sample_bias_t));

    if (b->bias == NULL) {
        return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
    }

    for (i = 0; i < n; i++) {
        if (in[i].id < 0 || (uint32_t) in[i].id >= r->serve->opt.sched.vocab) {
            return serve_fault(f, CHAN_E_INVALID, "logit_bias",
                               "token id %d is not in the vocabulary of %u",
                               in[i].id, r->serve->opt.sched.vocab);
        }

        b->bias[i].id = in[i].id;
        b->bias[i].bias = in[i].bias;
    }

    b->n_bias = n;

    return 0;
}


static int
serve_streams(serve_req_t *r, serve_body_t *b, int reasoning,
    serve_fault_t *f)
{
    unsigned  flags;

    flags = r->submit.endpoint == CHAN_CHAT
            ? (reasoning ? TOK_STREAM_REASONING : 0) : TOK_STREAM_RAW;

    if (tok_stream_init(&r->stream, r->serve->opt.tok, b->stop, b->n_stops,
                        flags)
        != 0)
    {
        return serve_fault(f, CHAN_E_INVALID, "stop",
                           "too many or too long stop strings");
    }

    r->has_stream = 1;

    if ((r->submit.flags & CHAN_F_ECHO) == 0) {
        return 0;
    }

    if (tok_stream_init(&r->echo, r->serve->opt.tok, NULL, 0,
                        TOK_STREAM_PLAIN)
        != 0)
    {
        return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
    }

    r->has_echo = 1;

    return 0;
}


/*
 * Who shares a prefix cache.  Part of these bytes may be a client's choice, so
 * a hash for which equals can be made would let one tenant look into another's
 * cache.
 */

static void
serve_tenant(const serve_body_t *b, uint64_t tenant[2])
{
    uint8_t  digest[SHA256_DIGEST_LENGTH];

    tenant[0] = 0;
    tenant[1] = 0;

    if (b->n_tenant > 0) {
        SHA256(b->tenant, b->n_tenant, digest);
        memcpy(tenant, digest, 2 * sizeof(uint64_t));
    }
}


/* From here on the sequence is the scheduler's: its callbacks end it. */

static int
serve_hand_over(serve_req_t *r, serve_body_t *b, tok_ids_t *ids,
    uint32_t max_tokens, serve_fault_t *f)
{
    sched_request_t  q;

    if ((r->submit.flags & CHAN_F_SEED) == 0
        && getrandom(&r->submit.seed, sizeof(uint64_t), 0)
           != sizeof(uint64_t))
    {
        r->submit.seed = r->submitted_us;
    }

    serve_request(r, b, &q);
    q.max_tokens = max_tokens;

    if (serve_ids(r, b, ids, &q, f) != 0) {
        return -1;
    }

    r->echo_left = q.n_prompt;

    free(r->body);
    r->body = NULL;

    /*
     * Under the lock: a cancel or credit that comes now must find either the
     * request before, or the sequence.
     */

    pthread_mutex_lock(&r->lock);

    q.credit = r->credit;
    b->bias = NULL;
    b->tags = NULL;

    if (sched_submit(r->serve->sched, &q, &r->seq) != 0) {
        pthread_mutex_unlock(&r->lock);
        return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
    }

    r->state = SERVE_SCHED;

    if (r->cancelled) {
        sched_cancel(r->serve->sched, r->seq);
    }

    pthread_mutex_unlock(&r->lock);

    return 0;
}


/* The prompt's ids and those to resume from behind them, for the scheduler. */

static int
serve_ids(serve_req_t *r, const serve_body_t *b, const tok_ids_t *ids,
    sched_request_t *q, serve_fault_t *f)
{
    size_t    i;
    int32_t  *id;

    for (i = 0; i < b->n_resume; i++) {
        if (b->resume[i] < 0
            || (uint32_t) b->resume[i] >= r->serve->opt.sched.vocab)
        {
            return serve_fault(f, CHAN_E_INVALID, "",
                               "token id %d cannot be resumed from",
                               (int) b->resume[i]);
        }
    }

    id = malloc((ids->n + b->n_resume) * sizeof(int32_t));
    if (id == NULL) {
        return serve_fault(f, CHAN_E_INTERNAL, "", "no memory");
    }

    memcpy(id, ids->id, ids->n * sizeof(int32_t));

    if (b->n_resume > 0) {
        memcpy(id + ids->n, b->resume, b->n_resume * sizeof(int32_t));
        r->suppress = r->submit.resume_bytes;

        q->ended = serve_replay(r, b->resume, (uint32_t) b->n_resume);

        if (q->ended < 0) {
            free(id);
            return serve_fault(f, CHAN_E_INVALID, "",
                               "the ids to resume from do not go on");
        }
    }

    q->ids = id;
    q->n_prompt = (uint32_t) ids->n;
    q->n_output = (uint32_t) b->n_resume;

    return 0;
}


/* What was asked for, but the ids. */

static void
serve_request(serve_req_t *r, const serve_body_t *b, sched_request_t *q)
{
    const chan_submit_t    *p;
    const serve_options_t  *opt;

    p = &r->submit;
    opt = &r->serve->opt;

    memset(q, 0, sizeof(*q));
    q->data = r;
    q->params.temperature = (p->flags & CHAN_F_OWN_T) ? opt->temperature
                                                      : p->temperature;
    q->params.top_p = (p->flags & CHAN_F_OWN_TOP_P) ? opt->top_p : p->top_p;
    q->params.min_p = p->min_p;
    q->params.top_k = p->top_k;
    q->params.repetition_penalty = p->repetition_penalty;
    q->params.presence_penalty = p->presence_penalty;
    q->params.frequency_penalty = p->frequency_penalty;
    q->params.seed = p->seed;
    q->params.bias = b->bias;
    q->params.n_bias = b->n_bias;
    q->logprobs = (p->flags & CHAN_F_LOGPROBS) != 0;
    q->n_top = p->top_logprobs < SCHED_TOP_MAX ? p->top_logprobs
                                               : SCHED_TOP_MAX;
    q->echo = r->has_echo;
    q->ignore_eos = (p->flags & CHAN_F_IGNORE_EOS) != 0;
    q->priority = p->priority;
    q->rank_hint = p->rank_hint;
    q->rank_epoch = p->rank_epoch;
    q->queue_max = p->queue_max;
    q->submitted_us = r->submitted_us;
    q->queue_us = (uint64_t) p->queue_timeout * 1000;
    q->deadline_us = (uint64_t) p->deadline * 1000;
    q->hold = &r->lane->hold;
    serve_tenant(b, q->tenant);
    q->tags = b->tags;
    q->n_tags = b->n_tags;
}
