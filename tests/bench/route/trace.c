/*
 * The trace: conversations, their system prompts, and the prompt of a turn.
 * All texts are made of numbers, the same for the same seed.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "route.h"


static double lognormal(double median, double sigma);


talk_t           *talks;

static uint64_t   state;
static uint32_t  *system_bytes;
static double    *system_share;


void
trace_seed(uint64_t seed)
{
    state = seed;
}


/* splitmix64 */

uint64_t
trace_draw(void)
{
    uint64_t  z;

    z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);

    return z ^ (z >> 31);
}


double
trace_unit(void)
{
    return (double) (trace_draw() >> 11) * 0x1p-53;
}


static double
lognormal(double median, double sigma)
{
    double  r, a;

    r = sqrt(-2 * log(1 - trace_unit()));
    a = 2 * 3.14159265358979 * trace_unit();

    return median * exp(sigma * r * cos(a));
}


void
trace_make(void)
{
    double    at, share, x;
    talk_t   *t;
    uint32_t  i, k;

    trace_seed(opt.seed);

    talks = calloc(opt.talks, sizeof(*talks));
    system_bytes = calloc(opt.systems, sizeof(*system_bytes));
    system_share = calloc(opt.systems, sizeof(*system_share));

    if (talks == NULL || system_bytes == NULL || system_share == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    share = 0;

    for (i = 0; i < opt.systems; i++) {
        x = lognormal(3000, 0.8);
        system_bytes[i] = x > 24000 ? 24000 : (uint32_t) x;
        share += 1 / (double) (i + 1);          /* Zipf */
        system_share[i] = share;
    }

    at = 0;

    for (i = 0; i < opt.talks; i++) {
        t = &talks[i];
        at -= 1000 / opt.rate * log(1 - trace_unit());
        t->id = i + 1;
        t->begins = at;
        x = trace_unit() * share;

        while (system_share[t->system] < x && t->system < opt.systems - 1) {
            t->system++;
        }

        t->turns = 1;

        while (t->turns < TURNS_MAX && trace_unit() < 0.75) {   /* geometric */
            t->turns++;
        }

        for (k = 0; k < t->turns; k++) {
            x = lognormal(400, 1.2);
            t->asked[k] = 16 + (x > 16000 ? 16000 : (uint32_t) x);
            x = lognormal(700, 0.8);
            t->said[k] = 16 + (x > 6000 ? 6000 : (uint32_t) x);
            t->think[k] = -12000 * log(1 - trace_unit());
        }
    }
}


/* The prompt of a turn, and its tags with the answer's. */

request_t *
trace_request(talk_t *talk, uint32_t turn, double when)
{
    uint32_t      k;
    uint64_t      chain;
    request_t    *r;
    chan_body_t   body;

    r = calloc(1, sizeof(*r));
    memset(&body, 0, sizeof(body));

    if (r == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    r->talk = talk;
    r->turn = turn;
    r->when = when;
    r->left = 1 + talk->said[turn] / TOKEN_BYTES;

    trace_text(&body, CHAN_ROLE_SYSTEM, talk->system,
             system_bytes[talk->system]);
    r->tokens = system_bytes[talk->system];

    for (k = 0; k <= turn; k++) {
        trace_text(&body, CHAN_ROLE_USER, talk->id << 8 | k << 1,
                 talk->asked[k]);
        r->tokens += talk->asked[k];

        if (k < turn) {
            trace_text(&body, CHAN_ROLE_ASSISTANT, talk->id << 8 | k << 1 | 1,
                     talk->said[k]);
            r->tokens += talk->said[k];
        }
    }

    r->tokens /= TOKEN_BYTES;

    r->n = ngx_http_llm_tags_count(&body, BLOCK_BYTES);

    trace_text(&body, CHAN_ROLE_ASSISTANT, talk->id << 8 | turn << 1 | 1,
             talk->said[turn]);
    r->n_after = ngx_http_llm_tags_count(&body, BLOCK_BYTES);
    r->tags = malloc((r->n_after + 1) * sizeof(chan_tag_t));

    if (r->tags == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    chain = ngx_http_llm_tags_seed("bench", NULL, 0);
    ngx_http_llm_tags_make(&body, chain, BLOCK_BYTES, r->tags, r->n_after);

    chan_body_free(&body);

    return r;
}


void
trace_text(chan_body_t *body, uint32_t role, uint64_t id, uint32_t bytes)
{
    uint32_t         i;
    uint64_t         saved;
    chan_message_t   m;

    static uint64_t  text[65536 / 8];

    saved = state;
    state = id * UINT64_C(0xd1342543de82ef95) + role;

    for (i = 0; i * 8 < bytes; i++) {
        text[i] = trace_draw() & UINT64_C(0x0f0f0f0f0f0f0f0f);
        text[i] |= UINT64_C(0x6060606060606060);
    }

    state = saved;

    memset(&m, 0, sizeof(m));
    m.role = role;

    if (chan_body_put(body, CHAN_SEC_MESSAGE, &m, sizeof(m), text, bytes)
        != CHAN_OK)
    {
        fputs("no memory\n", stderr);
        exit(2);
    }
}
