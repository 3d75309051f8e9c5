/*
 * The prefix zone: which ranks hold which tag.  ngx_http_llm_prefix.h tells
 * how it is laid out and what keeps it true.
 */

#include "ngx_http_llm_prefix.h"


#define NGX_HTTP_LLM_PIECE       256      /* tags or records in one go */
#define NGX_HTTP_LLM_LOG_MAX     (1u << 24)   /* slots of any log */
#define NGX_HTTP_LLM_VOIDS_MAX   65535


/* Starts in the rbtree node, at `color`, as in nginx's own zones. */

typedef struct {
    u_char       color;
    u_char       dummy;
    uint16_t     serial;
    uint32_t     used;
    ngx_queue_t  queue;
    uint64_t     ranks;
} ngx_http_llm_prefix_node_t;


static ngx_int_t ngx_http_llm_prefix_epochs(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board,
    uint64_t boot, ngx_uint_t connect, uint64_t *head);
static ngx_int_t ngx_http_llm_prefix_log(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board,
    uint64_t boot, uint64_t head);
static void ngx_http_llm_prefix_void(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, uint64_t ranks);
static ngx_http_llm_prefix_node_t *ngx_http_llm_prefix_lookup(
    ngx_http_llm_prefix_t *zone, ngx_http_llm_prefix_engine_t *engine,
    uint64_t tag);
static ngx_http_llm_prefix_node_t *ngx_http_llm_prefix_insert(
    ngx_http_llm_prefix_t *zone, ngx_http_llm_prefix_engine_t *engine,
    uint64_t tag);
static void ngx_http_llm_prefix_delete(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_node_t *pn);
static void ngx_http_llm_prefix_expire(ngx_http_llm_prefix_t *zone);
static ngx_int_t ngx_http_llm_prefix_oldest(ngx_http_llm_prefix_t *zone);


#define ngx_http_llm_prefix_rbnode(pn)                                       \
    ((ngx_rbtree_node_t *) ((u_char *) (pn)                                  \
                            - offsetof(ngx_rbtree_node_t, color)))

#define ngx_http_llm_prefix_all(n)                                           \
    ((n) == 64 ? ~UINT64_C(0) : (UINT64_C(1) << (n)) - 1)


ngx_int_t
ngx_http_llm_prefix_init(ngx_http_llm_prefix_t *zone)
{
    ngx_http_llm_prefix_sh_t  *sh;

    sh = ngx_slab_calloc(zone->shpool, sizeof(ngx_http_llm_prefix_sh_t));
    if (sh == NULL) {
        return NGX_ERROR;
    }

    ngx_rbtree_init(&sh->rbtree, &sh->sentinel, ngx_rbtree_insert_value);
    ngx_queue_init(&sh->queue);

    zone->sh = sh;
    zone->shpool->data = sh;

    return NGX_OK;
}


ngx_http_llm_prefix_engine_t *
ngx_http_llm_prefix_engine(ngx_http_llm_prefix_t *zone, ngx_str_t *name)
{
    uint64_t                       salt;
    ngx_uint_t                     i;
    ngx_http_llm_prefix_engine_t  *engine;

    /* FNV-1a */

    salt = UINT64_C(0xcbf29ce484222325);

    for (i = 0; i < name->len; i++) {
        salt = (salt ^ name->data[i]) * UINT64_C(0x100000001b3);
    }

    ngx_shmtx_lock(&zone->shpool->mutex);

    for (engine = zone->sh->engines; engine != NULL; engine = engine->next) {
        if (engine->salt == salt) {
            goto done;
        }
    }

    for ( ;; ) {
        engine = ngx_slab_calloc_locked(zone->shpool,
                                        sizeof(ngx_http_llm_prefix_engine_t));

        if (engine != NULL || ngx_http_llm_prefix_oldest(zone) != NGX_OK) {
            break;
        }
    }

    if (engine != NULL) {
        engine->salt = salt;
        engine->next = zone->sh->engines;
        zone->sh->engines = engine;
    }

done:

    ngx_shmtx_unlock(&zone->shpool->mutex);

    return engine;
}


ngx_int_t
ngx_http_llm_prefix_sync(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board, uint64_t boot,
    ngx_uint_t connect)
{
    uint64_t   head;
    ngx_int_t  rc;

    ngx_shmtx_lock(&zone->shpool->mutex);

    rc = ngx_http_llm_prefix_epochs(zone, engine, board, boot, connect,
                                    &head);

    ngx_shmtx_unlock(&zone->shpool->mutex);

    if (rc != NGX_OK) {
        return rc;
    }

    do {
        ngx_shmtx_lock(&zone->shpool->mutex);

        rc = ngx_http_llm_prefix_log(zone, engine, board, boot, head);

        ngx_shmtx_unlock(&zone->shpool->mutex);

    } while (rc == NGX_AGAIN);

    return rc;
}


/*
 * Boot and epochs.  The board is read under the lock, or a worker with an
 * older copy would take a newer epoch back.
 */

static ngx_int_t
ngx_http_llm_prefix_epochs(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board,
    uint64_t boot, ngx_uint_t connect, uint64_t *head)
{
    uint32_t            i;
    uint64_t            changed, epoch[CHAN_RANKS_MAX];
    chan_board_rank_t   rank;
    chan_board_state_t  state;

    if (engine->boot != boot && !connect) {
        return NGX_DECLINED;
    }

    if (chan_board_get_state(board, &state) != CHAN_OK) {
        return NGX_DECLINED;
    }

    *head = state.log_head;
    changed = 0;

    for (i = 0; i < chan_board_ranks(board); i++) {

        if (chan_board_get_rank(board, i, &rank) != CHAN_OK) {
            return NGX_DECLINED;
        }

        epoch[i] = rank.epoch;

        if (engine->boot != boot || engine->rank[i].epoch != rank.epoch) {
            changed |= UINT64_C(1) << i;
        }
    }

    if (engine->boot != boot) {
        engine->boot = boot;
        engine->log = state.log_head;
        engine->nranks = chan_board_ranks(board);
        changed = ngx_http_llm_prefix_all(CHAN_RANKS_MAX);

        ngx_memzero(engine->rank, sizeof(engine->rank));
    }

    if (changed != 0) {
        ngx_http_llm_prefix_void(zone, engine, changed);

        for (i = 0; i < engine->nranks; i++) {
            engine->rank[i].epoch = epoch[i];
        }
    }

    return NGX_OK;
}


/* A piece of the eviction log; NGX_AGAIN: there is more. */

static ngx_int_t
ngx_http_llm_prefix_log(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board,
    uint64_t boot, uint64_t head)
{
    int                          rc;
    uint32_t                     rank;
    uint64_t                     tag;
    ngx_uint_t                   n;
    ngx_http_llm_prefix_node_t  *pn;

    if (engine->boot != boot) {
        return NGX_DECLINED;
    }

    for (n = 0; engine->log < head; n++) {

        if (n == NGX_HTTP_LLM_PIECE) {
            return NGX_AGAIN;
        }

        if (head - engine->log > NGX_HTTP_LLM_LOG_MAX) {
            rc = CHAN_ERROR;

        } else {
            rc = chan_board_log(board, engine->log + 1, &rank, &tag);
        }

        if (rc == CHAN_AGAIN) {
            break;
        }

        if (rc == CHAN_ERROR) {

            /* Lapped.  Up to `head` nothing is worth reading any more. */

            ngx_http_llm_prefix_void(zone, engine,
                                     ngx_http_llm_prefix_all(CHAN_RANKS_MAX));
            engine->log = head;
            break;
        }

        engine->log++;

        pn = ngx_http_llm_prefix_lookup(zone, engine, tag);

        if (pn == NULL) {
            continue;
        }

        pn->ranks &= ~(UINT64_C(1) << rank);

        if (pn->ranks == 0) {
            ngx_http_llm_prefix_delete(zone, pn);
        }
    }

    return NGX_OK;
}


/* All that is known of these ranks is void. */

static void
ngx_http_llm_prefix_void(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, uint64_t ranks)
{
    ngx_uint_t                     i;
    ngx_http_llm_prefix_sh_t      *sh;
    ngx_http_llm_prefix_engine_t  *e;

    sh = zone->sh;

    if (sh->voids == NGX_HTTP_LLM_VOIDS_MAX) {

        /* The counter starts again, and so does the zone. */

        while (ngx_http_llm_prefix_oldest(zone) == NGX_OK) { /* void */ }

        for (e = sh->engines; e != NULL; e = e->next) {
            e->voided = 0;

            for (i = 0; i < CHAN_RANKS_MAX; i++) {
                e->rank[i].voided = 0;
            }
        }

        sh->voids = 0;
    }

    sh->voids++;
    engine->voided = sh->voids;

    for (i = 0; i < CHAN_RANKS_MAX; i++) {
        if (ranks & (UINT64_C(1) << i)) {
            engine->rank[i].voided = sh->voids;
        }
    }
}


void
ngx_http_llm_prefix_find(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, const chan_tag_t *tags,
    ngx_uint_t n, uint32_t *depth)
{
    uint64_t                     alive, lost;
    ngx_uint_t                   i, r, last;
    ngx_http_llm_prefix_node_t  *pn;

    alive = ngx_http_llm_prefix_all(CHAN_RANKS_MAX);

    for (r = 0; r < CHAN_RANKS_MAX; r++) {
        depth[r] = 0;
    }

    for (i = 0; i < n && alive != 0; /* void */) {

        last = ngx_min(n, i + NGX_HTTP_LLM_PIECE);

        ngx_shmtx_lock(&zone->shpool->mutex);

        for ( /* void */ ; i < last && alive != 0; i++) {

            pn = ngx_http_llm_prefix_lookup(zone, engine, tags[i].tag);

            lost = alive & (pn != NULL ? ~pn->ranks : ~UINT64_C(0));
            alive &= ~lost;

            for (r = 0; lost != 0; r++, lost >>= 1) {
                if (lost & 1) {
                    depth[r] = i;
                }
            }
        }

        ngx_shmtx_unlock(&zone->shpool->mutex);
    }

    for (r = 0; alive != 0; r++, alive >>= 1) {
        if (alive & 1) {
            depth[r] = n;
        }
    }
}


void
ngx_http_llm_prefix_held(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, const chan_tag_t *tags,
    ngx_uint_t n, uint32_t rank, uint64_t epoch)
{
    ngx_uint_t                   first;
    ngx_http_llm_prefix_node_t  *pn;

    while (n != 0) {

        first = n > NGX_HTTP_LLM_PIECE ? n - NGX_HTTP_LLM_PIECE : 0;

        ngx_shmtx_lock(&zone->shpool->mutex);

        if (rank >= engine->nranks || engine->rank[rank].epoch != epoch) {
            first = 0;
            n = 0;
        }

        while (n > first) {

            n--;
            pn = ngx_http_llm_prefix_lookup(zone, engine, tags[n].tag);

            if (pn == NULL) {
                pn = ngx_http_llm_prefix_insert(zone, engine, tags[n].tag);

                if (pn == NULL) {
                    n = 0;
                    break;
                }

            } else {
                ngx_queue_remove(&pn->queue);
            }

            ngx_queue_insert_head(&zone->sh->queue, &pn->queue);

            pn->ranks |= UINT64_C(1) << rank;
            pn->used = (uint32_t) ngx_time();
        }

        ngx_shmtx_unlock(&zone->shpool->mutex);
    }
}


/* A node whose bits are true now; nodes without any are removed. */

static ngx_http_llm_prefix_node_t *
ngx_http_llm_prefix_lookup(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, uint64_t tag)
{
    uint64_t                     key, bit;
    ngx_uint_t                   i;
    ngx_rbtree_node_t           *node, *sentinel;
    ngx_http_llm_prefix_node_t  *pn;

    key = tag ^ engine->salt;
    node = zone->sh->rbtree.root;
    sentinel = zone->sh->rbtree.sentinel;

    while (node != sentinel && node->key != key) {
        node = key < node->key ? node->left : node->right;
    }

    if (node == sentinel) {
        return NULL;
    }

    pn = (ngx_http_llm_prefix_node_t *) &node->color;

    if (engine->voided > pn->serial) {

        for (i = 0; i < CHAN_RANKS_MAX; i++) {
            bit = UINT64_C(1) << i;

            if ((pn->ranks & bit) && engine->rank[i].voided > pn->serial) {
                pn->ranks &= ~bit;
            }
        }

        pn->serial = zone->sh->voids;
    }

    if (pn->ranks == 0
        || (zone->inactive != 0
            && (uint32_t) ngx_time() - pn->used
               > (uint32_t) zone->inactive))
    {
        ngx_http_llm_prefix_delete(zone, pn);
        return NULL;
    }

    return pn;
}


/* In the tree, not yet in the queue. */

static ngx_http_llm_prefix_node_t *
ngx_http_llm_prefix_insert(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, uint64_t tag)
{
    size_t                       size;
    ngx_rbtree_node_t           *node;
    ngx_http_llm_prefix_node_t  *pn;

    size = offsetof(ngx_rbtree_node_t, color)
           + sizeof(ngx_http_llm_prefix_node_t);

    ngx_http_llm_prefix_expire(zone);

    for ( ;; ) {
        node = ngx_slab_alloc_locked(zone->shpool, size);

        if (node != NULL) {
            break;
        }

        if (ngx_http_llm_prefix_oldest(zone) != NGX_OK) {
            return NULL;
        }
    }

    node->key = tag ^ engine->salt;

    pn = (ngx_http_llm_prefix_node_t *) &node->color;

    pn->dummy = 0;
    pn->serial = zone->sh->voids;
    pn->ranks = 0;

    ngx_rbtree_insert(&zone->sh->rbtree, node);
    zone->sh->nodes++;

    return pn;
}


static void
ngx_http_llm_prefix_delete(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_node_t *pn)
{
    ngx_rbtree_node_t  *node;

    node = ngx_http_llm_prefix_rbnode(pn);

    ngx_queue_remove(&pn->queue);
    ngx_rbtree_delete(&zone->sh->rbtree, node);
    ngx_slab_free_locked(zone->shpool, node);

    zone->sh->nodes--;
}


/* One or two that nobody has asked for, at each new one. */

static void
ngx_http_llm_prefix_expire(ngx_http_llm_prefix_t *zone)
{
    ngx_uint_t                   n;
    ngx_queue_t                 *q;
    ngx_http_llm_prefix_node_t  *pn;

    if (zone->inactive == 0) {
        return;
    }

    for (n = 0; n < 2 && !ngx_queue_empty(&zone->sh->queue); n++) {

        q = ngx_queue_last(&zone->sh->queue);
        pn = ngx_queue_data(q, ngx_http_llm_prefix_node_t, queue);

        if ((uint32_t) ngx_time() - pn->used <= (uint32_t) zone->inactive) {
            return;
        }

        ngx_http_llm_prefix_delete(zone, pn);
    }
}


static ngx_int_t
ngx_http_llm_prefix_oldest(ngx_http_llm_prefix_t *zone)
{
    ngx_queue_t  *q;

    if (ngx_queue_empty(&zone->sh->queue)) {
        return NGX_DECLINED;
    }

    q = ngx_queue_last(&zone->sh->queue);

    ngx_http_llm_prefix_delete(zone,
                      ngx_queue_data(q, ngx_http_llm_prefix_node_t, queue));

    return NGX_OK;
}
