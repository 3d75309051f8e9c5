/*
 * Buckets in shared memory: how much of a limit is used, by whom, and what is
 * reserved of it.  Requests, tokens and concurrency are all counted in them.
 * Like the prefix zone this knows no request and no configuration.
 *
 *
 * THE ZONE
 *
 * A bucket for each kind and key, in a red-black tree and in a queue, most
 * recent first:
 *
 *     excess   what was taken and has not flowed out yet, signed, in units of
 *              1/60000: so that any whole rate a second or a minute is whole
 *              units a millisecond, and nothing is ever rounded
 *     last     until when it has flowed
 *     holds    reservations that are not settled
 *
 * and for each worker slot (ngx_process_slot) an owner, with the queue of the
 * reservations that its process holds.
 *
 * WRITER  any worker, under the zone's lock.  `used` of a reservation is
 * written by its owner alone, without the lock, while a request runs.
 *
 * RULE  A reservation of n is made if the excess, after what has flowed out,
 * plus n is at most the burst; it adds n.  Settling it with u takes n back and
 * adds u; the excess does not fall below zero.  So where u is never above n,
 *
 *     what was used <= rate * time + burst
 *
 * holds exactly, over every time that begins when nothing is reserved.  Where
 * u may be above n the excess may rise over the burst: a debt that has to flow
 * out before anything is reserved again.
 *
 * RECOVERY  A slot is given to another process only after its own has ended.  A
 * worker that starts settles what is left in its slot, and what processes that
 * are gone left in others; so does one that had to refuse, once a second.  It
 * settles with `used`, which is as new as the dead worker's last event.  A
 * worker that is killed within the lock may leave the zone broken, as in any
 * zone of nginx, whose master only frees the lock.
 *
 * MEMORY  Buckets that are empty make room first.  If there are none, the one
 * that was used least recently is forgotten, unless something is reserved of
 * it; a zone that is too small forgets what was used.
 */

#ifndef NGX_HTTP_LLM_BUCKET_H
#define NGX_HTTP_LLM_BUCKET_H

#include <ngx_config.h>
#include <ngx_core.h>


#define NGX_HTTP_LLM_UNIT       60000
#define NGX_HTTP_LLM_RATE_MAX   1000000000000   /* of rates and bursts */


/* Rate 0: nothing flows out, as with concurrency.  Burst 0: no limit. */

typedef struct {
    uint64_t                    rate;      /* units a millisecond */
    uint64_t                    burst;
} ngx_http_llm_bucket_limit_t;

typedef struct ngx_http_llm_bucket_s  ngx_http_llm_bucket_t;
typedef struct ngx_http_llm_owner_s   ngx_http_llm_owner_t;

/* In shared memory. */

typedef struct {
    ngx_queue_t                 queue;     /* of its owner */
    ngx_http_llm_bucket_t      *bucket;
    uint64_t                    reserved;
    volatile uint64_t           used;
} ngx_http_llm_hold_t;

struct ngx_http_llm_owner_s {
    ngx_http_llm_owner_t       *next;
    ngx_queue_t                 holds;
    ngx_int_t                   slot;
    ngx_pid_t                   pid;
};

typedef struct {
    ngx_rbtree_t                rbtree;
    ngx_rbtree_node_t           sentinel;
    ngx_queue_t                 queue;
    ngx_http_llm_owner_t       *owners;
    ngx_msec_t                  swept;     /* looked for dead owners */
    void                       *extra;     /* of the zone's user */
} ngx_http_llm_bucket_sh_t;

/* A worker's view of a zone. */

typedef struct {
    ngx_http_llm_bucket_sh_t   *sh;
    ngx_slab_pool_t            *shpool;
    ngx_http_llm_owner_t       *owner;     /* this process's; NULL: none */
} ngx_http_llm_buckets_t;

/* How a bucket stood after it was asked. */

typedef struct {
    uint64_t                    limit;     /* the burst */
    uint64_t                    remaining;
    uint64_t                    reset;     /* ms until it is empty */
    uint64_t                    wait;      /* ms until NGX_OK; UINT64_MAX:
                                              never by time alone */
} ngx_http_llm_bucket_state_t;


/*
 * ngx_http_llm_buckets_init() makes an empty zone in zone->shpool; NGX_ERROR:
 * no memory.
 *
 * ngx_http_llm_bucket_reserve() reserves `n` for a key of a kind, NGX_OK with
 * `*hold`; NGX_BUSY: the limit does not allow it now, NGX_DECLINED: nor ever;
 * NGX_ERROR: no memory.  `state` is filled in any case but the last.
 * ngx_http_llm_bucket_settle() ends a reservation with what was used;
 * ngx_http_llm_bucket_settle(…, hold->reserved) keeps it all.
 *
 * ngx_http_llm_buckets_adopt() is for a process that starts, and
 * ngx_http_llm_buckets_leave() for one that ends: what it still holds is
 * settled.  `alive` tells whether another process exists.
 *
 * All of them take the zone's lock themselves.
 *
 * ngx_http_llm_bucket_rate() parses "Nt/s" or "Nt/m", where `unit` is the "t",
 * with a burst of N; ngx_http_llm_bucket_number() a burst, 1 to
 * NGX_HTTP_LLM_RATE_MAX.  NGX_ERROR: it is none.
 */

ngx_int_t ngx_http_llm_buckets_init(ngx_http_llm_buckets_t *zone);
ngx_int_t ngx_http_llm_bucket_reserve(ngx_http_llm_buckets_t *zone,
    ngx_uint_t kind, ngx_str_t *key, const ngx_http_llm_bucket_limit_t *limit,
    uint64_t n, ngx_http_llm_bucket_state_t *state,
    ngx_http_llm_hold_t **hold);
void ngx_http_llm_bucket_settle(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_hold_t *hold, uint64_t used);
void ngx_http_llm_buckets_adopt(ngx_http_llm_buckets_t *zone);
void ngx_http_llm_buckets_leave(ngx_http_llm_buckets_t *zone);

ngx_int_t ngx_http_llm_bucket_rate(ngx_str_t *s, u_char unit,
    ngx_http_llm_bucket_limit_t *limit);
ngx_int_t ngx_http_llm_bucket_number(ngx_str_t *s, uint64_t *n);


#endif /* NGX_HTTP_LLM_BUCKET_H */
