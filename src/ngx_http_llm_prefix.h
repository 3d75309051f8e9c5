/*
 * Prefix-cache routing: which rank has computed the beginning of a prompt
 * already.
 *
 * tags.c names the beginnings of a canonical prompt (engine/channel/
 * chan_message.h): each block of so many bytes gets a hash that is chained on
 * the one before, so equal tags mean equal beginnings.  prefix.c remembers in
 * shared memory which ranks hold which tag.  pick.c weighs that against load.
 * These three know no request and no configuration: they are compiled alone by
 * tests/bench/bench_route.c and the unit tests.  route.c joins them to both.
 *
 *
 * THE ZONE
 *
 * A node for each tag, in a red-black tree and in a queue, most recent first:
 *
 *     key      tag ^ the engine's salt, so that engines may share a zone
 *     ranks    a bit for each rank that holds the tag
 *     serial   as of which void the bits are true
 *     used     when an ACCEPTED named the tag last, seconds
 *
 * and for each engine, by name: the boot that it speaks of, the last number of
 * the eviction log that was applied, and for each rank its epoch, the void
 * that ended what was known of it, and what was sent there lately.
 *
 * WRITER  any worker, under the zone's lock; nothing is waited for there, and
 * long prompts and long logs are worked on in pieces, so that other workers
 * get a turn.
 *
 * TRUTH  A bit is set when an ACCEPTED says that the rank took the prompt.  It
 * is cleared by a record of the eviction log.  Emptying a rank (another epoch)
 * or an engine (another boot, or a lapped log) only takes the next number of
 * a counter: bits whose node has an older serial are void, and cleared when
 * somebody comes by.  Bits may be wrong for moments: a hint that misses costs
 * a computation and never changes an answer, and the ACCEPTED that follows
 * makes the bit true.
 *
 * MEMORY  64 bytes a tag.  The oldest tags make room for new ones.  A prompt's
 * tags are touched from the last to the first, so the ends of conversations
 * go before the beginnings that they share.
 */

#ifndef NGX_HTTP_LLM_PREFIX_H
#define NGX_HTTP_LLM_PREFIX_H

#include <ngx_config.h>
#include <ngx_core.h>

#include "channel/chan_board.h"
#include "channel/chan_message.h"


#define NGX_HTTP_LLM_BLOCK_MIN   16       /* bytes of a tagged block */
#define NGX_HTTP_LLM_BLOCK_MAX   65536
#define NGX_HTTP_LLM_HEAD_MAX    4096     /* bytes of $llm_prefix_key */


typedef struct {
    uint64_t                     epoch;
    uint64_t                     step;     /* of sent[0]; sent[1] the last */
    uint32_t                     sent[2];  /* requests in those steps */
    uint32_t                     base[2];  /* shown by the board before them */
    uint32_t                     when;     /* ms, of the last one sent */
    uint16_t                     voided;   /* older serials' bits are void */
} ngx_http_llm_prefix_rank_t;

typedef struct ngx_http_llm_prefix_engine_s  ngx_http_llm_prefix_engine_t;

struct ngx_http_llm_prefix_engine_s {
    ngx_http_llm_prefix_engine_t  *next;
    uint64_t                       salt;   /* of its name */
    uint64_t                       boot;   /* 0: none seen yet */
    uint64_t                       log;    /* last number applied */
    uint64_t                       turn;   /* breaks ties */
    uint32_t                       nranks;
    uint16_t                       voided; /* the newest of its ranks' */
    ngx_http_llm_prefix_rank_t     rank[CHAN_RANKS_MAX];
};

/* In shared memory. */

typedef struct {
    ngx_rbtree_t                   rbtree;
    ngx_rbtree_node_t              sentinel;
    ngx_queue_t                    queue;
    ngx_http_llm_prefix_engine_t  *engines;
    uint64_t                       nodes;
    uint16_t                       voids;  /* the counter */
} ngx_http_llm_prefix_sh_t;

/* A worker's view of a zone. */

typedef struct {
    ngx_http_llm_prefix_sh_t      *sh;
    ngx_slab_pool_t               *shpool;
    size_t                         block;
    time_t                         inactive;   /* seconds, 0: for ever */
} ngx_http_llm_prefix_t;


/*
 * Tags (ngx_http_llm_tags.c).
 *
 * ngx_http_llm_tags_seed() starts a chain for a model and a tenant.
 * ngx_http_llm_tags_count() is how many whole blocks the canonical prompt of
 * `body` has, at most CHAN_TAGS_MAX; ngx_http_llm_tags_make() writes so many.
 *
 * ngx_http_llm_tags_head() hashes the canonical prompt up to the end of the
 * first user message, or NGX_HTTP_LLM_HEAD_MAX bytes of it;
 * ngx_http_llm_tags_key() makes a key of that and of whom it is for.
 */

uint64_t ngx_http_llm_tags_seed(const char *model, const u_char *tenant,
    size_t size);
ngx_uint_t ngx_http_llm_tags_count(const chan_body_t *body, size_t block);
void ngx_http_llm_tags_make(const chan_body_t *body, uint64_t seed,
    size_t block, chan_tag_t *tags, ngx_uint_t n);
uint64_t ngx_http_llm_tags_head(const chan_body_t *body);
uint64_t ngx_http_llm_tags_key(ngx_str_t *account, const char *user,
    const char *model, uint64_t head);


/*
 * The zone (ngx_http_llm_prefix.c).
 *
 * ngx_http_llm_prefix_init() makes an empty zone in zone->shpool.
 * ngx_http_llm_prefix_engine() finds an engine by name or adds it; NULL: no
 * memory.
 *
 * ngx_http_llm_prefix_sync() brings what is known of an engine up to date with
 * its board: NGX_OK, or NGX_DECLINED when the board is not that of the boot
 * that the zone speaks of (or cannot be read).  `connect` is for a worker that
 * has just connected, and so brings the newest boot.
 *
 * ngx_http_llm_prefix_find() sets depth[rank], for each of the engine's ranks,
 * to the number of tags, from the first on, that it holds.
 *
 * ngx_http_llm_prefix_held() notes that `rank` holds all `n` tags; an epoch
 * other than the zone's is ignored.  Call ngx_http_llm_prefix_sync() before.
 *
 * All of them take the zone's lock themselves.
 */

ngx_int_t ngx_http_llm_prefix_init(ngx_http_llm_prefix_t *zone);
ngx_http_llm_prefix_engine_t *ngx_http_llm_prefix_engine(
    ngx_http_llm_prefix_t *zone, ngx_str_t *name);
ngx_int_t ngx_http_llm_prefix_sync(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board, uint64_t boot,
    ngx_uint_t connect);
void ngx_http_llm_prefix_find(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, const chan_tag_t *tags,
    ngx_uint_t n, uint32_t *depth);
void ngx_http_llm_prefix_held(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, const chan_tag_t *tags,
    ngx_uint_t n, uint32_t rank, uint64_t epoch);


/*
 * The choice (ngx_http_llm_pick.c).
 *
 * A rank's load is the number of requests that run or wait there, with those
 * sent there that the board does not show yet.  A rank is overloaded if its
 * load exceeds the least by more than `max_skew` and is more than a quarter
 * above the mean.  Of the others the one that holds most of the prompt is
 * picked, and of several with the same the least loaded; less than `min_match`
 * percent of the tags count as none.
 *
 * ngx_http_llm_pick() returns the rank, with `*epoch` its epoch and the `n`
 * requests counted as sent there; or -1 where no rank holds anything worth
 * mentioning: then the engine knows better.  Where only overloaded ranks do,
 * it is the least loaded.  The board must belong to the zone's boot.
 */

typedef struct {
    ngx_uint_t                   min_match;    /* percent */
    ngx_uint_t                   max_skew;     /* requests */
} ngx_http_llm_pick_conf_t;

ngx_int_t ngx_http_llm_pick(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board,
    const ngx_http_llm_pick_conf_t *conf, const uint32_t *depth,
    ngx_uint_t ntags, ngx_uint_t n, uint64_t *epoch);


#endif /* NGX_HTTP_LLM_PREFIX_H */
