/*
 * The prefix zone without an nginx: tags against a flat copy of the canonical
 * prompt, the zone against a plain table under random use, the choice, memory
 * that runs out, lapped logs, epochs and boots.
 */

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
#define CHAINS 40
#define LONG   30            /* tags of a chain */

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


static uint32_t
random_below(uint32_t n)
{
    return (uint32_t) (random_next(&random_state) % n);
}


static void
publish(fixture_t *f)
{
    uint32_t  i;

    chan_board_set_state(f->board, &f->state);

    for (i = 0; i < RANKS; i++) {
        f->rank[i].epoch = f->epoch[i];
        chan_board_set_rank(f->board, i, &f->rank[i]);
    }
}


static void
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


static int
sync_zone(fixture_t *f, int connect)
{
    return (int) ngx_http_llm_prefix_sync(&f->zone, f->engine, f->board,
                                          f->boot, (ngx_uint_t) connect);
}


static void
held(fixture_t *f, const chan_tag_t *tags, ngx_uint_t n, uint32_t rank)
{
    ngx_http_llm_prefix_held(&f->zone, f->engine, tags, n, rank,
                             f->epoch[rank]);
}


static uint32_t
depth(fixture_t *f, const chan_tag_t *tags, ngx_uint_t n, uint32_t rank)
{
    uint32_t  d[CHAN_RANKS_MAX];

    ngx_http_llm_prefix_find(&f->zone, f->engine, tags, n, d);

    return d[rank];
}


static void
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

static void
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


static void
tags_of(chan_tag_t *tags, uint64_t chain, ngx_uint_t n)
{
    ngx_uint_t  i;

    for (i = 0; i < n; i++) {
        tags[i].tag = (chain + 1) * UINT64_C(0x9e3779b97f4a7c15)
                      ^ (i + 1) * UINT64_C(0xd1342543de82ef95);
        tags[i].end = (i + 1) * 256;
    }
}


/* Tags */

typedef struct {
    uint8_t  byte[65536];
    size_t   n;
} flat_t;

static void
flat_add(flat_t *flat, const void *p, size_t n)
{
    assert_true(flat->n + n <= sizeof(flat->byte));
    memcpy(flat->byte + flat->n, p, n);
    flat->n += n;
}


static void
message(chan_body_t *body, flat_t *flat, uint32_t role, const char *text,
    const char *canonical)
{
    uint8_t         b;
    chan_message_t  m = { role, 0 };

    assert_int_equal(chan_body_put(body, CHAN_SEC_MESSAGE, &m, sizeof(m),
                                   text, strlen(text)), CHAN_OK);
    b = (uint8_t) (0xf8 + role);
    flat_add(flat, &b, 1);
    flat_add(flat, canonical, strlen(canonical));
}


static void
check_tags(const chan_body_t *body, const flat_t *flat, size_t block,
    uint64_t seed)
{
    uint64_t     chain;
    ngx_uint_t   i, n;
    chan_tag_t  *tags;

    n = ngx_http_llm_tags_count(body, block);
    assert_int_equal(n, flat->n / block < CHAN_TAGS_MAX ? flat->n / block
                                                        : CHAN_TAGS_MAX);
    tags = malloc(n * sizeof(*tags) + 1);
    assert_non_null(tags);
    ngx_http_llm_tags_make(body, seed, block, tags, n);
    chain = seed;

    for (i = 0; i < n; i++) {
        chain = XXH64(flat->byte + i * block, block, chain);
        assert_int_equal(tags[i].tag, chain);
        assert_int_equal(tags[i].end, (i + 1) * block);
    }

    free(tags);
}


static void
test_tags(void **state)
{
    char         long_text[3000];
    size_t       block;
    uint64_t     seed;
    chan_body_t  body;

    static flat_t  flat;

    (void) state;

    memset(&body, 0, sizeof(body));
    memset(long_text, 'x', sizeof(long_text) - 1);
    long_text[sizeof(long_text) - 1] = '\0';
    flat.n = 0;
    seed = ngx_http_llm_tags_seed("model", (u_char *) "a\0b", 3);

    message(&body, &flat, CHAN_ROLE_SYSTEM, "be brief", "be brief");
    message(&body, &flat, CHAN_ROLE_USER, long_text, long_text);
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "<think>a</think>b</think>c",
            "c");
    message(&body, &flat, CHAN_ROLE_USER, "x</think>y", "x</think>y");
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "</think>", "");
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "</think", "</think");
    message(&body, &flat, CHAN_ROLE_ASSISTANT, "", "");
    message(&body, &flat, CHAN_ROLE_TOOL, "caf\xc3\xa9", "caf\xc3\xa9");

    /* Other sections do not belong to it. */

    assert_int_equal(chan_body_put(&body, CHAN_SEC_STOP, NULL, 0, "stop", 4),
                     CHAN_OK);
    message(&body, &flat, CHAN_ROLE_USER, long_text, long_text);

    for (block = 1; block < flat.n + 2; block += 1 + block / 7) {
        check_tags(&body, &flat, block, seed);
    }

    chan_body_free(&body);

    /* Text, ids, and more than there may be. */

    flat.n = 0;
    flat_add(&flat, long_text, 2999);
    chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, long_text, 2999);
    check_tags(&body, &flat, 64, seed);
    chan_body_free(&body);

    flat.n = 0;
    flat_add(&flat, (int32_t[]) { 1, -2, 300000 }, 12);
    chan_body_put(&body, CHAN_SEC_IDS, NULL, 0, flat.byte, 12);
    check_tags(&body, &flat, 4, seed);
    check_tags(&body, &flat, 5, seed);
    chan_body_free(&body);

    flat.n = 0;

    while (flat.n + 2999 <= sizeof(flat.byte)) {
        flat_add(&flat, long_text, 2999);
    }

    chan_body_put(&body, CHAN_SEC_TEXT, NULL, 0, flat.byte, flat.n);
    check_tags(&body, &flat, 15, seed);
    check_tags(&body, &flat, 16, seed);
    chan_body_free(&body);
}


static void
test_tags_apart(void **state)
{
    uint64_t  s;

    (void) state;

    s = ngx_http_llm_tags_seed("m", NULL, 0);
    assert_int_equal(s, ngx_http_llm_tags_seed("m", (u_char *) "x", 0));
    assert_int_not_equal(s, ngx_http_llm_tags_seed("n", NULL, 0));
    assert_int_not_equal(s, ngx_http_llm_tags_seed("m", (u_char *) "u", 1));
    assert_int_not_equal(ngx_http_llm_tags_seed("m", (u_char *) "u\0v", 3),
                         ngx_http_llm_tags_seed("m", (u_char *) "uv\0", 3));
    assert_int_not_equal(ngx_http_llm_tags_seed("mu", NULL, 0),
                         ngx_http_llm_tags_seed("m", (u_char *) "u", 1));
}


static uint64_t
head_of(int n, const uint32_t *roles, const char *const *texts)
{
    int          i;
    uint64_t     h;
    chan_body_t  body;

    static flat_t  flat;

    memset(&body, 0, sizeof(body));
    flat.n = 0;

    for (i = 0; i < n; i++) {
        message(&body, &flat, roles[i], texts[i], "");
    }

    h = ngx_http_llm_tags_head(&body);
    chan_body_free(&body);

    return h;
}


static void
test_head(void **state)
{
    char         big[8001];
    uint64_t     h;
    uint32_t     roles[] = { CHAN_ROLE_SYSTEM, CHAN_ROLE_USER,
                             CHAN_ROLE_ASSISTANT, CHAN_ROLE_USER };
    const char  *texts[] = { "s", "u1", "a1", "u2" };
    const char  *other[] = { "s", "u1", "a2", "u3" };
    const char  *first[] = { "s", "u2", "a1", "u2" };

    (void) state;

    h = head_of(4, roles, texts);
    assert_int_equal(h, head_of(4, roles, other));
    assert_int_equal(h, head_of(2, roles, texts));
    assert_int_not_equal(h, head_of(4, roles, first));
    assert_int_not_equal(h, head_of(1, roles, texts));
    assert_int_equal(h, XXH64("\xf9s\xfau1", 5, 0));

    /* 4096 bytes: the role, "s", the role, 4093 bytes of the user's. */

    memset(big, 'x', 8000);
    big[8000] = '\0';
    texts[1] = big;
    h = head_of(2, roles, texts);
    big[4093] = 'y';
    assert_int_equal(h, head_of(2, roles, texts));
    big[4092] = 'y';
    assert_int_not_equal(h, head_of(2, roles, texts));
}


/* The zone against a table. */

static void
test_random(void **state)
{
    int          step;
    uint32_t     c, r, n, k;
    uint64_t     epoch;
    fixture_t    f;
    chan_tag_t   tags[CHAINS][LONG];

    static uint8_t  table[CHAINS][LONG][RANKS];

    (void) state;

    random_state = 11;
    fixture_start(&f, 16 << 20);
    memset(table, 0, sizeof(table));

    for (c = 0; c < CHAINS; c++) {
        tags_of(tags[c], c, LONG);
    }

    for (step = 0; step < 200000; step++) {
        c = random_below(CHAINS);
        r = random_below(RANKS);
        n = 1 + random_below(LONG);

        switch (random_below(20)) {

        default:
            held(&f, tags[c], n, r);

            for (k = 0; k < n; k++) {
                table[c][k][r] = 1;
            }

            break;

        case 0: case 1: case 2: case 3: case 4: case 5:
            (void) chan_board_evict(f.board, r, tags[c][n - 1].tag);
            table[c][n - 1][r] = 0;
            break;

        case 6:                  /* out of date: nothing happens */
            epoch = f.epoch[r];
            f.epoch[r] = 1;
            assert_int_equal(sync_zone(&f, 0), NGX_OK);
            held(&f, tags[c], n, r);
            f.epoch[r] = epoch;
            break;

        case 7:
            if (random_below(20) == 0) {
                f.epoch[r]++;
                publish(&f);
                assert_int_equal(sync_zone(&f, 0), NGX_OK);

                for (c = 0; c < CHAINS; c++) {
                    for (k = 0; k < LONG; k++) {
                        table[c][k][r] = 0;
                    }
                }
            }

            break;

        case 8:
            if (random_below(200) == 0) {
                board_new(&f);
                assert_int_equal(sync_zone(&f, 0), NGX_DECLINED);
                assert_int_equal(sync_zone(&f, 1), NGX_OK);
                memset(table, 0, sizeof(table));
            }

            break;

        case 9:
            if (random_below(400) == 0) {
                for (k = 0; k <= CHAN_LOG_SIZE; k++) {
                    (void) chan_board_evict(f.board, r, 1);
                }

                assert_int_equal(sync_zone(&f, 0), NGX_OK);
                memset(table, 0, sizeof(table));
            }

            break;
        }

        assert_int_equal(sync_zone(&f, 0), NGX_OK);
        c = random_below(CHAINS);
        r = random_below(RANKS);

        for (k = 0; k < LONG && table[c][k][r]; k++) {
            /* void */
        }

        assert_int_equal(depth(&f, tags[c], LONG, r), k);
    }

    fixture_end(&f);
}


static void
test_lapped(void **state)
{
    uint32_t    k;
    fixture_t   f;
    chan_tag_t  t[4];

    (void) state;

    fixture_start(&f, 1 << 20);
    tags_of(t, 1, 4);
    held(&f, t, 4, 2);

    /* Exactly the log's size can still be read. */

    for (k = 0; k < CHAN_LOG_SIZE; k++) {
        (void) chan_board_evict(f.board, 2, 99);
    }

    assert_int_equal(sync_zone(&f, 0), NGX_OK);
    assert_int_equal(depth(&f, t, 4, 2), 4);

    for (k = 0; k <= CHAN_LOG_SIZE; k++) {
        (void) chan_board_evict(f.board, 1, 99);
    }

    assert_int_equal(sync_zone(&f, 0), NGX_OK);
    assert_int_equal(depth(&f, t, 4, 2), 0);

    held(&f, t, 4, 2);
    assert_int_equal(depth(&f, t, 4, 2), 4);
    (void) chan_board_evict(f.board, 2, t[2].tag);
    assert_int_equal(sync_zone(&f, 0), NGX_OK);
    assert_int_equal(depth(&f, t, 4, 2), 2);

    fixture_end(&f);
}


/* 65,535 voids and the counter begins again. */

static void
test_voids(void **state)
{
    uint32_t    i;
    fixture_t   f;
    chan_tag_t  t[2];

    (void) state;

    fixture_start(&f, 1 << 20);
    tags_of(t, 1, 2);

    for (i = 0; i < 140000; i++) {

        if (i % 3 != 2) {
            held(&f, t, 2, i % RANKS);
            assert_int_equal(depth(&f, t, 2, i % RANKS), 2);
        }

        f.epoch[i % RANKS]++;
        publish(&f);
        assert_int_equal(sync_zone(&f, 0), NGX_OK);
        assert_int_equal(depth(&f, t, 2, i % RANKS), 0);
    }

    fixture_end(&f);
}


static void
test_memory(void **state)
{
    uint32_t     c, n;
    size_t       full;
    fixture_t    f;
    ngx_str_t    name = ngx_string("another");
    chan_tag_t   t[LONG], big[600];

    (void) state;

    full = 8192 + 100 * 64;
    fixture_start(&f, full);

    for (c = 0; c < 1000; c++) {
        tags_of(t, c, LONG);
        held(&f, t, LONG, c % RANKS);
        assert_int_equal(depth(&f, t, LONG, c % RANKS), LONG);
        assert_true(shim_slab_used <= full);
    }

    /* The oldest are gone; of one that is going its end goes first. */

    assert_int_equal(depth(&f, t, LONG, 999 % RANKS), LONG);
    tags_of(t, 998, LONG);
    assert_int_equal(depth(&f, t, LONG, 998 % RANKS), LONG);
    tags_of(t, 900, LONG);
    assert_int_equal(depth(&f, t, LONG, 900 % RANKS), 0);

    for (c = 999, n = LONG; n == LONG; c--) {
        tags_of(t, c, LONG);
        n = depth(&f, t, LONG, c % RANKS);
    }

    assert_true(c < 997 && n < LONG);

    /* A prompt larger than the zone keeps its beginning. */

    tags_of(big, 5000, 600);
    held(&f, big, 600, 0);
    n = depth(&f, big, 600, 0);
    assert_true(n > 50 && n < 250);

    /* Another engine finds room, or hears that there is none. */

    assert_non_null(ngx_http_llm_prefix_engine(&f.zone, &name));
    name.len = 3;
    shim_slab_left = 0;
    (void) ngx_http_llm_prefix_engine(&f.zone, &name);
    shim_slab_left = 0;
    name.len = 2;

    while (ngx_http_llm_prefix_engine(&f.zone, &name) != NULL) {
        shim_slab_left = 0;
        name.len++;
        assert_true(name.len < 8);
    }

    fixture_end(&f);
}


static void
test_inactive(void **state)
{
    fixture_t   f;
    chan_tag_t  t[3], o[3];

    (void) state;

    fixture_start(&f, 1 << 20);
    f.zone.inactive = 10;
    tags_of(t, 1, 3);
    tags_of(o, 2, 3);

    held(&f, t, 3, 1);
    shim_clock(6000);
    held(&f, o, 3, 1);
    held(&f, t, 2, 3);
    shim_clock(12000);
    assert_int_equal(depth(&f, t, 3, 1), 2);
    assert_int_equal(f.zone.sh->nodes, 5);
    shim_clock(17000);
    assert_int_equal(depth(&f, t, 3, 1), 0);
    assert_int_equal(depth(&f, t, 3, 3), 0);

    /* New ones push out those that nobody asks for. */

    tags_of(t, 3, 3);
    held(&f, t, 3, 1);
    assert_int_equal(f.zone.sh->nodes, 3);

    fixture_end(&f);
}


/* Two engines share a zone and do not see each other. */

static void
test_engines(void **state)
{
    uint32_t                       d[CHAN_RANKS_MAX];
    fixture_t                      f;
    ngx_str_t                      name = ngx_string("other");
    chan_tag_t                     t[3];
    ngx_http_llm_prefix_engine_t  *other;

    (void) state;

    fixture_start(&f, 1 << 20);
    other = ngx_http_llm_prefix_engine(&f.zone, &name);
    assert_non_null(other);
    assert_int_equal(ngx_http_llm_prefix_sync(&f.zone, other, f.board, f.boot,
                                              1), NGX_OK);
    tags_of(t, 1, 3);
    held(&f, t, 3, 1);

    ngx_http_llm_prefix_find(&f.zone, other, t, 3, d);
    assert_int_equal(d[1], 0);
    ngx_http_llm_prefix_held(&f.zone, other, t, 2, 1, f.epoch[1]);
    ngx_http_llm_prefix_find(&f.zone, other, t, 3, d);
    assert_int_equal(d[1], 2);
    assert_int_equal(depth(&f, t, 3, 1), 3);

    /* One restarts, the other does not mind. */

    board_new(&f);
    assert_int_equal(sync_zone(&f, 1), NGX_OK);
    assert_int_equal(depth(&f, t, 3, 1), 0);
    ngx_http_llm_prefix_find(&f.zone, other, t, 3, d);
    assert_int_equal(d[1], 2);

    /* Ranks beyond the board's, and of another epoch. */

    ngx_http_llm_prefix_held(&f.zone, f.engine, t, 3, RANKS, f.epoch[0]);
    ngx_http_llm_prefix_held(&f.zone, f.engine, t, 3, UINT32_MAX, 0);
    ngx_http_llm_prefix_held(&f.zone, f.engine, t, 3, 0, 12345);
    assert_int_equal(depth(&f, t, 3, 0), 0);

    fixture_end(&f);
}


/* The choice */

static ngx_int_t
pick(fixture_t *f, ngx_uint_t min_match, ngx_uint_t max_skew,
    const uint32_t *d, ngx_uint_t n)
{
    uint64_t                  epoch;
    uint32_t                  full[CHAN_RANKS_MAX];
    ngx_int_t                 rank;
    ngx_http_llm_pick_conf_t  conf;

    memset(full, 0, sizeof(full));
    memcpy(full, d, RANKS * sizeof(*d));
    conf.min_match = min_match;
    conf.max_skew = max_skew;
    epoch = 0;

    rank = ngx_http_llm_pick(&f->zone, f->engine, f->board, &conf, full, n, 1,
                             &epoch);

    assert_true(rank >= -1 && rank < RANKS);
    assert_int_equal(epoch, rank == -1 ? 0 : f->epoch[rank]);

    /* forget that it was sent */

    f->state.step += 2;
    publish(f);

    return rank;
}


static void
test_pick(void **state)
{
    uint32_t   i, none[RANKS] = { 0 }, d[RANKS] = { 0, 4, 9, 0, 1 };
    uint32_t   same[RANKS] = { 0, 5, 0, 5, 5 };
    fixture_t  f;

    (void) state;

    fixture_start(&f, 1 << 20);

    assert_int_equal(pick(&f, 0, 4, none, 10), -1);
    assert_int_equal(pick(&f, 0, 4, d, 10), 2);
    assert_int_equal(pick(&f, 90, 4, d, 10), 2);
    assert_int_equal(pick(&f, 91, 4, d, 10), -1);
    assert_int_equal(pick(&f, 100, 4, d, 9), 2);

    /* Up to max_skew more than the least, or a quarter above the mean. */

    f.rank[2].running = 3;
    f.rank[2].waiting = 1;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 2);
    f.rank[2].waiting = 2;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 1);
    assert_int_equal(pick(&f, 0, 5, d, 10), 2);

    for (i = 0; i < RANKS; i++) {
        f.rank[i].running = 100;
        f.rank[i].waiting = 0;
    }

    f.rank[0].running = 80;
    f.rank[2].running = 119;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 2);
    f.rank[2].running = 140;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, d, 10), 1);

    /* Balance wins where the others have nothing to offer. */

    d[1] = 0;
    d[4] = 0;
    assert_int_equal(pick(&f, 0, 4, d, 10), 0);
    d[4] = 1;
    assert_int_equal(pick(&f, 20, 4, d, 10), 0);

    /* Of equals the least loaded, then that with more room, then in turn. */

    memset(f.rank, 0, sizeof(f.rank));
    f.rank[1].running = 2;
    f.rank[3].running = 1;
    f.rank[4].running = 1;
    f.rank[3].blocks_free = 5;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, same, 5), 3);
    f.rank[4].blocks_free = 6;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, same, 5), 4);
    f.rank[3].running = 0;
    publish(&f);
    assert_int_equal(pick(&f, 0, 4, same, 5), 3);
    f.rank[3].running = 1;
    f.rank[3].blocks_free = 6;
    publish(&f);

    for (i = 0; pick(&f, 0, 4, same, 5) != 3; i++) {
        assert_true(i < RANKS);
    }

    for (i = 0; pick(&f, 0, 4, same, 5) != 4; i++) {
        assert_true(i < RANKS);
    }

    fixture_end(&f);
}


/* What was sent counts until the board can show it. */

static void
test_pick_sent(void **state)
{
    int        i, n[RANKS];
    uint32_t   d[CHAN_RANKS_MAX] = { 9, 9, 9, 9, 9 };
    uint64_t   epoch;
    ngx_int_t  rank;
    fixture_t  f;

    ngx_http_llm_pick_conf_t  conf = { 0, 4 };

    (void) state;

    fixture_start(&f, 1 << 20);
    memset(n, 0, sizeof(n));

    for (i = 0; i < 10 * RANKS; i++) {
        rank = ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d, 9, 1,
                                 &epoch);
        assert_in_range(rank, 0, RANKS - 1);
        n[rank]++;
    }

    for (i = 0; i < RANKS; i++) {
        assert_int_equal(n[i], 10);
    }

    /* One rank alone: from the sixth on it is overloaded. */

    f.state.step += 2;
    publish(&f);
    memset(d, 0, sizeof(d));
    d[3] = 9;

    for (i = 0; i < 5; i++) {
        assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    }

    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);

    /* The step after still counts them, the next no longer. */

    f.state.step++;
    publish(&f);
    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    f.state.step++;
    publish(&f);
    assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d,
                                       9, 5, &epoch), 3);

    /* Those that the board shows in the same step do not count twice. */

    f.state.step += 2;
    publish(&f);

    for (i = 0; i < 5; i++) {
        assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
        f.rank[3].waiting = (uint64_t) i + 1;
        publish(&f);
    }

    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    f.rank[3].waiting = 0;
    f.state.step += 2;
    publish(&f);
    assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d,
                                       9, 5, &epoch), 3);

    /* Without steps, time does. */

    assert_int_not_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf,
                                           d, 9, 1, &epoch), 3);
    shim_clock(ngx_current_msec + 5001);
    assert_int_equal(ngx_http_llm_pick(&f.zone, f.engine, f.board, &conf, d,
                                       9, 1, &epoch), 3);

    fixture_end(&f);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_tags),
        cmocka_unit_test(test_tags_apart),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_lapped),
        cmocka_unit_test(test_voids),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_inactive),
        cmocka_unit_test(test_engines),
        cmocka_unit_test(test_pick),
        cmocka_unit_test(test_pick_sent),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
