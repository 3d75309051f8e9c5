/*
 * A prefix zone without an nginx, with an engine and its board.
 */

#ifndef PREFIX_ZONE_H
#define PREFIX_ZONE_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <xxhash.h>

#include "shim/ngx_shim.h"
#include "ngx_http_llm_prefix.h"

#include "unit/random.h"


#define RANKS  5


typedef struct {
    chan_board_t                  *board;
    ngx_slab_pool_t                pool;
    ngx_http_llm_prefix_t          zone;
    ngx_http_llm_prefix_engine_t  *engine;
    uint64_t                       boot;
    uint64_t                       epoch[RANKS];
    chan_board_state_t             state;
    chan_board_rank_t              rank[RANKS];
} fixture_t;


static uint64_t  random_state;


static inline uint32_t
random_below(uint32_t n)
{
    return (uint32_t) (random_next(&random_state) % n);
}


static inline void
publish(fixture_t *f)
{
    uint32_t  i;

    chan_board_set_state(f->board, &f->state);

    for (i = 0; i < RANKS; i++) {
        f->rank[i].epoch = f->epoch[i];
        chan_board_set_rank(f->board, i, &f->rank[i]);
    }
}


static inline void
board_new(fixture_t *f)
{
    int       fd;
    char      err[CHAN_ERR_LEN];
    uint32_t  i;

    chan_board_close(f->board);
    assert_int_equal(chan_board_create(&f->board, RANKS, &fd, err), CHAN_OK);
    f->boot++;

    for (i = 0; i < RANKS; i++) {
        f->epoch[i] = f->boot * 100 + i;
    }

    publish(f);
}


static inline int
sync_zone(fixture_t *f, int connect)
{
    return (int) ngx_http_llm_prefix_sync(&f->zone, f->engine, f->board,
                                          f->boot, (ngx_uint_t) connect);
}


static inline void
held(fixture_t *f, const chan_tag_t *tags, ngx_uint_t n, uint32_t rank)
{
    ngx_http_llm_prefix_held(&f->zone, f->engine, tags, n, rank,
                             f->epoch[rank]);
}


static inline uint32_t
depth(fixture_t *f, const chan_tag_t *tags, ngx_uint_t n, uint32_t rank)
{
    uint32_t  d[CHAN_RANKS_MAX];

    ngx_http_llm_prefix_find(&f->zone, f->engine, tags, n, d);

    return d[rank];
}


static inline void
fixture_start(fixture_t *f, size_t size)
{
    ngx_str_t  name = ngx_string("e");

    memset(f, 0, sizeof(*f));
    shim_clock(1000);
    shim_slab_start(size);
    f->zone.shpool = &f->pool;
    f->zone.block = 256;
    board_new(f);

    assert_int_equal(ngx_http_llm_prefix_init(&f->zone), NGX_OK);
    f->engine = ngx_http_llm_prefix_engine(&f->zone, &name);
    assert_non_null(f->engine);
    assert_ptr_equal(ngx_http_llm_prefix_engine(&f->zone, &name), f->engine);
    assert_int_equal(sync_zone(f, 0), NGX_DECLINED);
    assert_int_equal(sync_zone(f, 1), NGX_OK);
    assert_int_equal(sync_zone(f, 0), NGX_OK);
}


/* Every piece that is in use is the zone, an engine or a node. */

static inline void
fixture_end(fixture_t *f)
{
    size_t                         n;
    ngx_queue_t                   *q;
    ngx_http_llm_prefix_engine_t  *e;

    n = 0;

    for (q = ngx_queue_head(&f->zone.sh->queue);
         q != ngx_queue_sentinel(&f->zone.sh->queue);
         q = ngx_queue_next(q))
    {
        n++;
    }

    assert_int_equal(f->zone.sh->nodes, n);

    for (e = f->zone.sh->engines; e != NULL; e = e->next) {
        n += 4096 / 64;
    }

    assert_int_equal(shim_slab_used, 128 + n * 64);

    shim_slab_start(0);
    chan_board_close(f->board);
}


static inline void
tags_of(chan_tag_t *tags, uint64_t chain, ngx_uint_t n)
{
    ngx_uint_t  i;

    for (i = 0; i < n; i++) {
        tags[i].tag = (chain + 1) * UINT64_C(0x9e3779b97f4a7c15)
                      ^ (i + 1) * UINT64_C(0xd1342543de82ef95);
        tags[i].end = (i + 1) * 256;
    }
}

#endif /* PREFIX_ZONE_H */
