/*
 * A simulation of ranks and of who chooses among them, see bench_route.c.
 *
 *     trace.c    conversations, and the prompts of their turns
 *     cache.c    a rank's KV blocks
 *     rank.c     a rank's steps
 *     policy.c   ways to choose a rank
 *     ours.c     one of them: the module's code, with its board and zone
 *     run.c      virtual time
 *
 * One run at a time: `sim` is its state.  Where memory ends, so does the
 * program, with exit status 2.
 */

#ifndef BENCH_ROUTE_H
#define BENCH_ROUTE_H

#include <stdint.h>

#include "ngx_http_llm_prefix.h"


#define STEP_MS       20
#define TOKEN_BYTES   4
#define BLOCK_BYTES   256            /* of a tag, and of a KV block */
#define BLOCK_TOKENS  (BLOCK_BYTES / TOKEN_BYTES)
#define CACHE_TABLE   (1u << 17)     /* of a rank's cache */
#define TURNS_MAX     16
#define BATCH_MAX     256

enum { RANDOM, ROUND_ROBIN, LEAST, OURS, ORACLE, POLICIES };


typedef struct {
    uint64_t                  seed;
    uint32_t                  ranks;
    uint32_t                  talks;
    uint32_t                  systems;
    uint32_t                  blocks;        /* KV blocks of a rank */
    uint32_t                  budget;        /* prompt tokens of a step */
    double                    rate;          /* conversations a second */
    size_t                    zone;          /* bytes */
    ngx_http_llm_pick_conf_t  pick;
} route_options_t;

typedef struct block_s  block_t;

struct block_s {
    block_t   *chain;
    block_t   *newer, *older;        /* while nobody holds it */
    uint64_t   tag;
    uint32_t   holders;
    int        tagged;               /* a SUBMIT has named it */
};

/* A conversation; its text is made again from its number when needed. */

typedef struct {
    uint64_t     id;
    uint32_t     system;
    uint32_t     turns;
    uint32_t     asked[TURNS_MAX];   /* bytes */
    uint32_t     said[TURNS_MAX];
    double       think[TURNS_MAX];   /* ms before a turn */
    double       begins;             /* ms */
} talk_t;

typedef struct request_s  request_t;

struct request_s {
    request_t   *next;
    talk_t      *talk;
    uint32_t     turn;
    uint32_t     tokens;             /* of the prompt */
    double       when;
    ngx_uint_t   n, n_after;         /* tags of the prompt, and with answer */
    uint32_t     rank;
    uint32_t     todo;               /* prompt tokens to compute */
    uint32_t     left;               /* tokens to generate */
    int          first;
    chan_tag_t  *tags;
};

typedef struct {
    block_t    *table[CACHE_TABLE];
    block_t    *newest, *oldest;     /* blocks nobody holds */
    uint32_t    blocks;              /* in the table */
    request_t  *running, *waiting, **tail;
    uint32_t    idle;                /* of them, held by nobody */
    uint32_t    n_running, n_waiting;
    double      in_flight;           /* sum over steps */
    double      work;                /* tokens computed */
} rank_t;

typedef struct {
    int         policy;
    rank_t     *ranks;
    uint64_t    steps;
    uint64_t    turns;               /* of those that choose by turns */
    uint64_t    firsts;              /* first tokens */
    double      first_ms;            /* sum of the times to them */
    double      cached, prompts;     /* tokens */
} route_run_t;

typedef struct {
    double  hit, skew, work, ttft;
} result_t;


extern route_options_t   opt;
extern route_run_t       sim;
extern talk_t           *talks;


/*
 * trace.c.  trace_seed() sets what trace_draw() (64 bits) and trace_unit()
 * (from 0 to below 1) go on from; trace_make() fills `talks`.
 * trace_request() is a turn of a conversation, its owner's to free with its
 * tags; trace_text() adds the message that `role` and `id` stand for.
 */

void trace_seed(uint64_t seed);
uint64_t trace_draw(void);
double trace_unit(void);
void trace_make(void);
request_t *trace_request(talk_t *talk, uint32_t turn, double when);
void trace_text(chan_body_t *body, uint32_t role, uint64_t id,
    uint32_t bytes);


/*
 * cache.c.  cache_take() adds a block, held, if it is not there yet, in place
 * of the oldest that nobody holds where the cache is full.  cache_depth() is
 * how many of a prompt's tags a rank has, from the first on.
 */

block_t *cache_find(rank_t *rk, uint64_t tag);
void cache_take(uint32_t i, uint64_t tag, int tagged);
void cache_hold(rank_t *rk, block_t *b);
void cache_drop(rank_t *rk, block_t *b);
void cache_free(rank_t *rk);
uint32_t cache_depth(rank_t *rk, request_t *r);


/* rank.c.  rank_add() puts a request in the queue of the rank it chooses. */

void rank_add(request_t *r);
void rank_step(uint32_t i, double now);


/* policy.c */

uint32_t policy_choose(request_t *r);
uint32_t policy_least(void);


/*
 * ours.c.  ours_publish() puts the ranks on the board, ours_admitted() and
 * ours_evicted() tell which rank has a prompt's blocks and loses one.
 * ours_cost() is a prompt's way through the module's code, in nanoseconds.
 */

void ours_open(void);
void ours_close(void);
void ours_publish(void);
uint32_t ours_choose(request_t *r);
void ours_admitted(const request_t *r, uint32_t rank);
void ours_evicted(uint32_t rank, uint64_t tag);
double ours_cost(void);


/*
 * run.c.  run_policy() is a whole run, run_start() and run_end() what is
 * before and after it; run_add() has a request come at its time.
 */

void run_policy(int policy, result_t *out);
void run_start(void);
void run_end(void);
void run_add(request_t *r);


#endif /* BENCH_ROUTE_H */
