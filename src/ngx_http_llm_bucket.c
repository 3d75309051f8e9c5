/*
 * Buckets in shared memory; ngx_http_llm_bucket.h tells the rules.
 */

#include "ngx_http_llm_bucket.h"

#include <signal.h>

#define XXH_INLINE_ALL
#include <xxhash.h>


#define NGX_HTTP_LLM_SWEEP     1000      /* ms between looks for the dead */
#define NGX_HTTP_LLM_USED_MAX  (UINT64_C(1) << 42)
#define NGX_HTTP_LLM_KEY_BYTES 65535


/* Starts in the rbtree node, at `color`, as in nginx's own zones. */

struct ngx_http_llm_bucket_s {
    u_char       color;
    u_char       kind;
    u_short      len;
    uint32_t     holds;
    ngx_queue_t  queue;
    int64_t      excess;
    uint64_t     rate;       /* that it flowed out with last */
    ngx_msec_t   last;
    u_char       data[1];
};


static ngx_http_llm_bucket_t *ngx_http_llm_bucket_lookup(
    ngx_http_llm_buckets_t *zone, ngx_uint_t kind, ngx_str_t *key,
    uint64_t hash);
static ngx_http_llm_bucket_t *ngx_http_llm_bucket_insert(
    ngx_http_llm_buckets_t *zone, ngx_uint_t kind, ngx_str_t *key,
    uint64_t hash);
static void ngx_http_llm_bucket_flow(ngx_http_llm_bucket_t *bucket);
static void ngx_http_llm_bucket_tell(ngx_http_llm_bucket_t *bucket,
    const ngx_http_llm_bucket_limit_t *limit, uint64_t n,
    ngx_http_llm_bucket_state_t *state);
static uint64_t ngx_http_llm_bucket_time(int64_t excess, uint64_t rate);
static void ngx_http_llm_bucket_release(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_hold_t *hold, uint64_t used);
static void *ngx_http_llm_bucket_alloc(ngx_http_llm_buckets_t *zone,
    size_t size);
static void ngx_http_llm_bucket_expire(ngx_http_llm_buckets_t *zone);
static ngx_int_t ngx_http_llm_bucket_oldest(ngx_http_llm_buckets_t *zone);
static void ngx_http_llm_bucket_delete(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_bucket_t *bucket);
static void ngx_http_llm_bucket_rbtree_insert(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel);
static ngx_int_t ngx_http_llm_bucket_cmp(ngx_http_llm_bucket_t *bucket,
    ngx_uint_t kind, u_char *data, size_t len);
static ngx_http_llm_owner_t *ngx_http_llm_bucket_owner(
    ngx_http_llm_buckets_t *zone);
static void ngx_http_llm_bucket_bury(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_owner_t *owner);
static ngx_uint_t ngx_http_llm_bucket_sweep(ngx_http_llm_buckets_t *zone);


#define ngx_http_llm_bucket_rbnode(b)                                        \
    ((ngx_rbtree_node_t *) ((u_char *) (b)                                   \
                            - offsetof(ngx_rbtree_node_t, color)))


ngx_int_t
ngx_http_llm_buckets_init(ngx_http_llm_buckets_t *zone)
{
    ngx_http_llm_bucket_sh_t  *sh;

    sh = ngx_slab_calloc(zone->shpool, sizeof(ngx_http_llm_bucket_sh_t));
    if (sh == NULL) {
        return NGX_ERROR;
    }

    ngx_rbtree_init(&sh->rbtree, &sh->sentinel,
                    ngx_http_llm_bucket_rbtree_insert);
    ngx_queue_init(&sh->queue);

    zone->sh = sh;
    zone->shpool->data = sh;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_bucket_reserve(ngx_http_llm_buckets_t *zone, ngx_uint_t kind,
    ngx_str_t *key, const ngx_http_llm_bucket_limit_t *limit, uint64_t n,
    ngx_http_llm_bucket_state_t *state, ngx_http_llm_hold_t **hold)
{
    uint64_t                hash;
    ngx_int_t               rc;
    ngx_uint_t              again;
    ngx_http_llm_hold_t    *h;
    ngx_http_llm_owner_t   *owner;
    ngx_http_llm_bucket_t  *bucket;

    *hold = NULL;
    rc = NGX_ERROR;
    hash = XXH64(key->data, key->len, kind);

    ngx_shmtx_lock(&zone->shpool->mutex);

    bucket = ngx_http_llm_bucket_lookup(zone, kind, key, hash);

    if (bucket == NULL) {
        bucket = ngx_http_llm_bucket_insert(zone, kind, key, hash);

        if (bucket == NULL) {
            goto done;
        }

    } else {
        ngx_queue_remove(&bucket->queue);
        ngx_queue_insert_head(&zone->sh->queue, &bucket->queue);
    }

    /* What time has passed was under the old rate. */

    ngx_http_llm_bucket_flow(bucket);
    bucket->rate = limit->rate;

    for (again = 0; again < 2; again++) {

        ngx_http_llm_bucket_flow(bucket);
        ngx_http_llm_bucket_tell(bucket, limit, n, state);

        if (state->wait == 0 || ngx_http_llm_bucket_sweep(zone) == 0) {
            break;
        }
    }

    if (state->wait != 0) {
        rc = (n > limit->burst) ? NGX_DECLINED : NGX_BUSY;
        goto done;
    }

    /* Nothing that is asked for below may push the bucket out. */

    bucket->holds++;

    owner = ngx_http_llm_bucket_owner(zone);
    h = (owner != NULL)
        ? ngx_http_llm_bucket_alloc(zone, sizeof(ngx_http_llm_hold_t)) : NULL;

    if (h == NULL) {
        bucket->holds--;
        goto done;
    }

    h->bucket = bucket;
    h->reserved = n;
    h->used = 0;

    ngx_queue_insert_tail(&owner->holds, &h->queue);

    bucket->excess += (int64_t) n * NGX_HTTP_LLM_UNIT;

    ngx_http_llm_bucket_tell(bucket, limit, 0, state);

    *hold = h;
    rc = NGX_OK;

done:

    ngx_shmtx_unlock(&zone->shpool->mutex);

    return rc;
}


void
ngx_http_llm_bucket_settle(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_hold_t *hold, uint64_t used)
{
    ngx_shmtx_lock(&zone->shpool->mutex);

    ngx_http_llm_bucket_release(zone, hold, used);

    ngx_shmtx_unlock(&zone->shpool->mutex);
}


static void
ngx_http_llm_bucket_release(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_hold_t *hold, uint64_t used)
{
    ngx_http_llm_bucket_t  *bucket;

    bucket = hold->bucket;
    used = ngx_min(used, NGX_HTTP_LLM_USED_MAX);

    ngx_http_llm_bucket_flow(bucket);

    bucket->excess += ((int64_t) used - (int64_t) hold->reserved)
                      * NGX_HTTP_LLM_UNIT;
    bucket->excess = ngx_max(bucket->excess, 0);
    bucket->holds--;

    ngx_queue_remove(&hold->queue);
    ngx_slab_free_locked(zone->shpool, hold);
}


static ngx_http_llm_bucket_t *
ngx_http_llm_bucket_lookup(ngx_http_llm_buckets_t *zone, ngx_uint_t kind,
    ngx_str_t *key, uint64_t hash)
{
    ngx_int_t               rc;
    ngx_rbtree_node_t      *node, *sentinel;
    ngx_http_llm_bucket_t  *bucket;

    node = zone->sh->rbtree.root;
    sentinel = zone->sh->rbtree.sentinel;

    while (node != sentinel) {

        if (hash != node->key) {
            node = (hash < node->key) ? node->left : node->right;
            continue;
        }

        bucket = (ngx_http_llm_bucket_t *) &node->color;

        rc = ngx_http_llm_bucket_cmp(bucket, kind, key->data, key->len);

        if (rc == 0) {
            return bucket;
        }

        node = (rc < 0) ? node->left : node->right;
    }

    return NULL;
}


static ngx_http_llm_bucket_t *
ngx_http_llm_bucket_insert(ngx_http_llm_buckets_t *zone, ngx_uint_t kind,
    ngx_str_t *key, uint64_t hash)
{
    size_t                  size;
    ngx_rbtree_node_t      *node;
    ngx_http_llm_bucket_t  *bucket;

    if (key->len > NGX_HTTP_LLM_KEY_BYTES) {
        return NULL;
    }

    ngx_http_llm_bucket_expire(zone);

    size = offsetof(ngx_rbtree_node_t, color)
           + offsetof(ngx_http_llm_bucket_t, data)
           + key->len;

    node = ngx_http_llm_bucket_alloc(zone, size);
    if (node == NULL) {
        return NULL;
    }

    node->key = hash;

    bucket = (ngx_http_llm_bucket_t *) &node->color;

    bucket->kind = (u_char) kind;
    bucket->len = (u_short) key->len;
    bucket->holds = 0;
    bucket->excess = 0;
    bucket->rate = 0;
    bucket->last = ngx_current_msec;
    ngx_memcpy(bucket->data, key->data, key->len);

    ngx_rbtree_insert(&zone->sh->rbtree, node);
    ngx_queue_insert_head(&zone->sh->queue, &bucket->queue);

    return bucket;
}


/* Workers read the clock at different moments: it never goes back here. */

static void
ngx_http_llm_bucket_flow(ngx_http_llm_bucket_t *bucket)
{
    uint64_t        ms;
    ngx_msec_int_t  elapsed;

    elapsed = (ngx_msec_int_t) (ngx_current_msec - bucket->last);

    if (elapsed <= 0) {
        return;
    }

    bucket->last = ngx_current_msec;

    if (bucket->rate == 0) {
        return;
    }

    ms = (uint64_t) elapsed;

    if (ms >= ngx_http_llm_bucket_time(bucket->excess, bucket->rate)) {
        bucket->excess = 0;

    } else {
        bucket->excess -= (int64_t) (ms * bucket->rate);
    }
}


/* How it stands towards another `n`. */

static void
ngx_http_llm_bucket_tell(ngx_http_llm_bucket_t *bucket,
    const ngx_http_llm_bucket_limit_t *limit, uint64_t n,
    ngx_http_llm_bucket_state_t *state)
{
    int64_t  left, over;

    left = (int64_t) (limit->burst * NGX_HTTP_LLM_UNIT) - bucket->excess;

    state->limit = limit->burst;
    state->remaining = left > 0 ? (uint64_t) left / NGX_HTTP_LLM_UNIT : 0;
    state->reset = ngx_http_llm_bucket_time(bucket->excess, limit->rate);

    if (n > limit->burst) {
        state->wait = UINT64_MAX;
        return;
    }

    over = (int64_t) (n * NGX_HTTP_LLM_UNIT) - left;
    state->wait = ngx_http_llm_bucket_time(over, limit->rate);
}


/* Milliseconds in which so much flows out; UINT64_MAX: never. */

static uint64_t
ngx_http_llm_bucket_time(int64_t excess, uint64_t rate)
{
    if (excess <= 0) {
        return 0;
    }

    if (rate == 0) {
        return UINT64_MAX;
    }

    return ((uint64_t) excess + rate - 1) / rate;
}


/* In need of memory the oldest go. */

static void *
ngx_http_llm_bucket_alloc(ngx_http_llm_buckets_t *zone, size_t size)
{
    void  *p;

    for ( ;; ) {
        p = ngx_slab_alloc_locked(zone->shpool, size);

        if (p != NULL || ngx_http_llm_bucket_oldest(zone) != NGX_OK) {
            return p;
        }
    }
}


/* One or two that are empty, at each new one. */

static void
ngx_http_llm_bucket_expire(ngx_http_llm_buckets_t *zone)
{
    ngx_uint_t              n;
    ngx_queue_t            *q;
    ngx_http_llm_bucket_t  *bucket;

    for (n = 0; n < 2 && !ngx_queue_empty(&zone->sh->queue); n++) {

        q = ngx_queue_last(&zone->sh->queue);
        bucket = ngx_queue_data(q, ngx_http_llm_bucket_t, queue);

        ngx_http_llm_bucket_flow(bucket);

        if (bucket->holds != 0 || bucket->excess > 0) {
            return;
        }

        ngx_http_llm_bucket_delete(zone, bucket);
    }
}


static ngx_int_t
ngx_http_llm_bucket_oldest(ngx_http_llm_buckets_t *zone)
{
    ngx_queue_t            *q;
    ngx_http_llm_bucket_t  *bucket;

    for (q = ngx_queue_last(&zone->sh->queue);
         q != ngx_queue_sentinel(&zone->sh->queue);
         q = ngx_queue_prev(q))
    {
        bucket = ngx_queue_data(q, ngx_http_llm_bucket_t, queue);

        if (bucket->holds == 0) {
            ngx_http_llm_bucket_delete(zone, bucket);
            return NGX_OK;
        }
    }

    return NGX_DECLINED;
}


static void
ngx_http_llm_bucket_delete(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_bucket_t *bucket)
{
    ngx_rbtree_node_t  *node;

    node = ngx_http_llm_bucket_rbnode(bucket);

    ngx_queue_remove(&bucket->queue);
    ngx_rbtree_delete(&zone->sh->rbtree, node);
    ngx_slab_free_locked(zone->shpool, node);
}


static void
ngx_http_llm_bucket_rbtree_insert(ngx_rbtree_node_t *temp,
    ngx_rbtree_node_t *node, ngx_rbtree_node_t *sentinel)
{
    ngx_rbtree_node_t      **p;
    ngx_http_llm_bucket_t   *bucket;

    bucket = (ngx_http_llm_bucket_t *) &node->color;

    for ( ;; ) {

        if (node->key != temp->key) {
            p = (node->key < temp->key) ? &temp->left : &temp->right;

        } else {
            p = ngx_http_llm_bucket_cmp(
                                  (ngx_http_llm_bucket_t *) &temp->color,
                                  bucket->kind, bucket->data, bucket->len)
                < 0 ? &temp->left : &temp->right;
        }

        if (*p == sentinel) {
            break;
        }

        temp = *p;
    }

    *p = node;
    node->parent = temp;
    node->left = sentinel;
    node->right = sentinel;
    ngx_rbt_red(node);
}


static ngx_int_t
ngx_http_llm_bucket_cmp(ngx_http_llm_bucket_t *bucket, ngx_uint_t kind,
    u_char *data, size_t len)
{
    size_t     n;
    ngx_int_t  rc;

    if (kind != bucket->kind) {
        return (ngx_int_t) kind - (ngx_int_t) bucket->kind;
    }

    n = ngx_min(len, bucket->len);
    rc = (n != 0) ? ngx_memcmp(data, bucket->data, n) : 0;

    return rc != 0 ? rc : (ngx_int_t) len - (ngx_int_t) bucket->len;
}


/* This process's own, made if need be; the zone is locked. */

static ngx_http_llm_owner_t *
ngx_http_llm_bucket_owner(ngx_http_llm_buckets_t *zone)
{
    ngx_http_llm_owner_t  *owner;

    if (zone->owner != NULL) {
        return zone->owner;
    }

    for (owner = zone->sh->owners; owner != NULL; owner = owner->next) {

        if (owner->slot == ngx_process_slot) {

            /* A single process may have an older configuration's there. */

            if (owner->pid != ngx_pid) {
                ngx_http_llm_bucket_bury(zone, owner);
            }

            goto done;
        }
    }

    owner = ngx_http_llm_bucket_alloc(zone, sizeof(ngx_http_llm_owner_t));
    if (owner == NULL) {
        return NULL;
    }

    ngx_queue_init(&owner->holds);
    owner->slot = ngx_process_slot;
    owner->next = zone->sh->owners;
    zone->sh->owners = owner;

done:

    owner->pid = ngx_pid;
    zone->owner = owner;

    return owner;
}


/* All that an owner still holds is settled. */

static void
ngx_http_llm_bucket_bury(ngx_http_llm_buckets_t *zone,
    ngx_http_llm_owner_t *owner)
{
    ngx_queue_t          *q;
    ngx_http_llm_hold_t  *hold;

    while (!ngx_queue_empty(&owner->holds)) {
        q = ngx_queue_head(&owner->holds);
        hold = ngx_queue_data(q, ngx_http_llm_hold_t, queue);

        ngx_http_llm_bucket_release(zone, hold, hold->used);
    }
}


void
ngx_http_llm_buckets_adopt(ngx_http_llm_buckets_t *zone)
{
    ngx_http_llm_owner_t  *owner;

    ngx_shmtx_lock(&zone->shpool->mutex);

    for (owner = zone->sh->owners; owner != NULL; owner = owner->next) {
        if (owner->slot == ngx_process_slot && owner->pid != ngx_pid) {
            ngx_http_llm_bucket_bury(zone, owner);
        }
    }

    zone->sh->swept = ngx_current_msec - NGX_HTTP_LLM_SWEEP;
    (void) ngx_http_llm_bucket_sweep(zone);

    ngx_shmtx_unlock(&zone->shpool->mutex);
}


void
ngx_http_llm_buckets_leave(ngx_http_llm_buckets_t *zone)
{
    if (zone->owner == NULL) {
        return;
    }

    ngx_shmtx_lock(&zone->shpool->mutex);

    ngx_http_llm_bucket_bury(zone, zone->owner);

    ngx_shmtx_unlock(&zone->shpool->mutex);
}


/* Settles what processes that are gone have left; returns their number. */

static ngx_uint_t
ngx_http_llm_bucket_sweep(ngx_http_llm_buckets_t *zone)
{
    ngx_uint_t             n;
    ngx_msec_int_t         elapsed;
    ngx_http_llm_owner_t  *owner;

    elapsed = (ngx_msec_int_t) (ngx_current_msec - zone->sh->swept);

    if (elapsed >= 0 && elapsed < NGX_HTTP_LLM_SWEEP) {
        return 0;
    }

    zone->sh->swept = ngx_current_msec;
    n = 0;

    for (owner = zone->sh->owners; owner != NULL; owner = owner->next) {

        if (!ngx_queue_empty(&owner->holds) && owner->pid != ngx_pid
            && kill(owner->pid, 0) == -1 && ngx_errno == NGX_ESRCH)
        {
            ngx_http_llm_bucket_bury(zone, owner);
            n++;
        }
    }

    return n;
}


ngx_int_t
ngx_http_llm_bucket_rate(ngx_str_t *s, u_char unit,
    ngx_http_llm_bucket_limit_t *limit)
{
    uint64_t   n;
    ngx_str_t  number;

    if (s->len < 4 || s->data[s->len - 3] != unit
        || s->data[s->len - 2] != '/')
    {
        return NGX_ERROR;
    }

    number.data = s->data;
    number.len = s->len - 3;

    if (ngx_http_llm_bucket_number(&number, &n) != NGX_OK) {
        return NGX_ERROR;
    }

    switch (s->data[s->len - 1]) {

    case 's':
        limit->rate = n * (NGX_HTTP_LLM_UNIT / 1000);
        break;

    case 'm':
        limit->rate = n * (NGX_HTTP_LLM_UNIT / 60000);
        break;

    default:
        return NGX_ERROR;
    }

    limit->burst = n;

    return NGX_OK;
}


ngx_int_t
ngx_http_llm_bucket_number(ngx_str_t *s, uint64_t *n)
{
    size_t    i;
    uint64_t  value;

    if (s->len == 0) {
        return NGX_ERROR;
    }

    value = 0;

    for (i = 0; i < s->len; i++) {

        if (s->data[i] < '0' || s->data[i] > '9') {
            return NGX_ERROR;
        }

        value = value * 10 + (s->data[i] - '0');

        if (value > NGX_HTTP_LLM_RATE_MAX) {
            return NGX_ERROR;
        }
    }

    if (value == 0) {
        return NGX_ERROR;
    }

    *n = value;

    return NGX_OK;
}
