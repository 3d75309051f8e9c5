/*
 * The module's own code, and what it looks at: the board and the zone.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ngx_http_llm_prefix.h"
#include "shim/ngx_shim.h"

#include "route.h"


static double spent(const struct timespec *from, const struct timespec *to);


static chan_board_t                  *board;
static ngx_slab_pool_t                pool;
static ngx_http_llm_prefix_t          zone;
static ngx_http_llm_prefix_engine_t  *engine;


void
ours_open(void)
{
    int                 fd;
    char                err[CHAN_ERR_LEN];
    ngx_str_t           name = ngx_string("bench");
    chan_board_model_t  m;

    if (chan_board_create(&board, opt.ranks, &fd, err) != CHAN_OK) {
        fprintf(stderr, "%s\n", err);
        exit(2);
    }

    memset(&m, 0, sizeof(m));
    m.boot = 1;
    chan_board_set_model(board, &m);
    ours_publish();

    shim_slab_start(opt.zone);
    shim_clock(0);

    memset(&zone, 0, sizeof(zone));
    zone.shpool = &pool;
    zone.block = BLOCK_BYTES;

    if (ngx_http_llm_prefix_init(&zone) != NGX_OK
        || (engine = ngx_http_llm_prefix_engine(&zone, &name)) == NULL
        || ngx_http_llm_prefix_sync(&zone, engine, board, 1, 1) != NGX_OK)
    {
        fputs("the zone cannot be set up\n", stderr);
        exit(2);
    }
}


void
ours_close(void)
{
    shim_slab_start(0);
    chan_board_close(board);
}


void
ours_admitted(const request_t *r, uint32_t rank)
{
    (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
    ngx_http_llm_prefix_held(&zone, engine, r->tags, r->n, rank, 1 + rank);
}


void
ours_evicted(uint32_t rank, uint64_t tag)
{
    (void) chan_board_evict(board, rank, tag);
}


uint32_t
ours_choose(request_t *r)
{
    uint32_t   depth[CHAN_RANKS_MAX];
    uint64_t   epoch;
    ngx_int_t  rank;

    (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
    ngx_http_llm_prefix_find(&zone, engine, r->tags, r->n, depth);
    rank = ngx_http_llm_pick(&zone, engine, board, &opt.pick, depth, r->n, 1,
                             &epoch);

    return rank >= 0 ? (uint32_t) rank : policy_least();
}


void
ours_publish(void)
{
    uint32_t            i;
    chan_board_rank_t   rank;
    chan_board_state_t  s;

    memset(&s, 0, sizeof(s));
    s.step = sim.steps;
    chan_board_set_state(board, &s);

    for (i = 0; i < opt.ranks; i++) {
        memset(&rank, 0, sizeof(rank));
        rank.epoch = 1 + i;
        rank.running = sim.ranks[i].n_running;
        rank.waiting = sim.ranks[i].n_waiting;
        rank.blocks_total = opt.blocks;
        rank.blocks_free = opt.blocks - sim.ranks[i].blocks
                           + sim.ranks[i].idle;
        chan_board_set_rank(board, i, &rank);
    }
}


/* A prompt's way through the module's code, in nanoseconds. */

double
ours_cost(void)
{
    uint32_t          i, n, depth[CHAN_RANKS_MAX];
    uint64_t          chain, epoch;
    chan_tag_t        tags[16];
    chan_body_t       body;
    struct timespec   from, to;

    opt.zone = 100000 * 64 + 65536;
    run_start();

    for (i = 0; i < 100000; i++) {
        tags[0].tag = trace_draw();
        ngx_http_llm_prefix_held(&zone, engine, tags, 1, i % opt.ranks,
                                 1 + i % opt.ranks);
    }

    chain = ngx_http_llm_tags_seed("bench", NULL, 0);
    memset(&body, 0, sizeof(body));
    (void) clock_gettime(CLOCK_MONOTONIC, &from);

    for (i = 0; i < 100000; i++) {
        body.size = 0;
        trace_text(&body, CHAN_ROLE_USER, i & ~3u, 1024);

        n = (uint32_t) ngx_http_llm_tags_count(&body, BLOCK_BYTES);
        ngx_http_llm_tags_make(&body, chain, BLOCK_BYTES, tags, n);
        (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
        ngx_http_llm_prefix_find(&zone, engine, tags, n, depth);
        (void) ngx_http_llm_pick(&zone, engine, board, &opt.pick, depth, n, 1,
                                 &epoch);
        (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
        ngx_http_llm_prefix_held(&zone, engine, tags, n, i % opt.ranks,
                                 1 + i % opt.ranks);
    }

    (void) clock_gettime(CLOCK_MONOTONIC, &to);

    chan_body_free(&body);
    run_end();

    return spent(&from, &to) / 100000;
}


static double
spent(const struct timespec *from, const struct timespec *to)
{
    return (double) (to->tv_sec - from->tv_sec) * 1e9
           + (double) (to->tv_nsec - from->tv_nsec);
}
