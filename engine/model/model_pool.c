/*
 * Weights as a backend likes them.
 *
 * Backends of one kind share one pool: what one rank has converted, all use.
 * Experts are asked for only by the ranks that hold them.
 */

#include <stdlib.h>
#include <string.h>

#include "model/model_int.h"


typedef enum { POOL_EMPTY = 0, POOL_BUSY, POOL_READY } pool_state_t;

typedef struct {
    void          *made;
    pool_state_t   state;
    uint32_t       users;            /* gets that were not put back */
} pool_item_t;

struct model_pool_s {
    model_pool_t      *next;
    model_t           *model;
    char              *share;        /* NULL: of one backend alone */
    uint32_t           ranks;        /* that use it */
    pthread_mutex_t    lock;
    pthread_cond_t     ready;
    int                failed;
    char               why[ERR_LEN];
    pool_item_t       *item;
};


static model_pool_t *pool_new(model_t *model, const char *share);
static void pool_free(model_pool_t *pool);
static void pool_unmake(model_pool_t *pool, be_t *be, uint32_t item,
    pool_item_t *of);
static int pool_claim(model_pool_t *pool, uint32_t item);
static int pool_make(model_pool_t *pool, be_t *be, uint32_t item);
static void *pool_floats(be_t *be, const be_tensor_t *t);


model_pool_t *
model_pool_join(model_t *model, be_t *be, char *err)
{
    model_pool_t  *pool;

    pthread_mutex_lock(&model->lock);

    for (pool = model->pools; pool != NULL; pool = pool->next) {
        if (be->share != NULL && pool->share != NULL
            && strcmp(be->share, pool->share) == 0)
        {
            break;
        }
    }

    if (pool == NULL) {
        pool = pool_new(model, be->share);
    }

    if (pool != NULL) {
        pool->ranks++;

    } else {
        model_error(err, "no memory for a pool of %u weights",
                    model->n_items);
    }

    pthread_mutex_unlock(&model->lock);

    return pool;
}


/* Under the model's lock. */

static model_pool_t *
pool_new(model_t *model, const char *share)
{
    model_pool_t  *pool;

    pool = calloc(1, sizeof(model_pool_t));
    if (pool == NULL) {
        return NULL;
    }

    pool->item = calloc(model->n_items, sizeof(pool_item_t));
    pool->share = (share != NULL) ? strdup(share) : NULL;

    if (pool->item == NULL || (share != NULL && pool->share == NULL)) {
        free(pool->item);
        free(pool->share);
        free(pool);
        return NULL;
    }

    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->ready, NULL);

    pool->model = model;
    pool->next = model->pools;
    model->pools = pool;

    return pool;
}


void
model_pool_leave(model_pool_t *pool, be_t *be)
{
    uint32_t        i;
    model_t        *model;
    model_pool_t  **at;

    model = pool->model;

    pthread_mutex_lock(&model->lock);

    if (--pool->ranks != 0) {
        pthread_mutex_unlock(&model->lock);
        return;
    }

    for (at = &model->pools; *at != pool; at = &(*at)->next) { /* void */ }
    *at = pool->next;

    pthread_mutex_unlock(&model->lock);

    for (i = 0; i < model->n_items; i++) {
        pool_unmake(pool, be, i, &pool->item[i]);
    }

    pool_free(pool);
}


static void
pool_unmake(model_pool_t *pool, be_t *be, uint32_t item, pool_item_t *of)
{
    if (of->made != NULL) {
        model_item_free(pool->model, be, item, of->made);
    }
}


static void
pool_free(model_pool_t *pool)
{
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->ready);
    free(pool->item);
    free(pool->share);
    free(pool);
}


/* 1: it is the caller's to make. */

static int
pool_claim(model_pool_t *pool, uint32_t item)
{
    int  mine;

    pthread_mutex_lock(&pool->lock);

    mine = (pool->item[item].state == POOL_EMPTY && !pool->failed);

    if (mine) {
        pool->item[item].state = POOL_BUSY;
    }

    pthread_mutex_unlock(&pool->lock);

    return mine;
}


int
model_pool_make(model_pool_t *pool, be_t *be, const uint32_t *item,
    uint32_t n, char *err)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        if (item[i] != MODEL_NONE && pool_claim(pool, item[i])
            && pool_make(pool, be, item[i]) != 0)
        {
            return model_error(err, "%s", pool->why);
        }
    }

    return 0;
}


void *
model_pool_get(model_pool_t *pool, be_t *be, uint32_t item, char *err)
{
    void  *made;

    if (pool_claim(pool, item)) {
        (void) pool_make(pool, be, item);
    }

    pthread_mutex_lock(&pool->lock);

    while (pool->item[item].state != POOL_READY && !pool->failed) {
        pthread_cond_wait(&pool->ready, &pool->lock);
    }

    made = pool->failed ? NULL : pool->item[item].made;

    if (made == NULL) {
        model_error(err, "%s", pool->why);

    } else {
        pool->item[item].users++;
    }

    pthread_mutex_unlock(&pool->lock);

    return made;
}


void
model_pool_put(model_pool_t *pool, be_t *be, uint32_t item)
{
    pool_item_t  last;

    memset(&last, 0, sizeof(pool_item_t));

    pthread_mutex_lock(&pool->lock);

    if (--pool->item[item].users == 0) {
        last = pool->item[item];
        memset(&pool->item[item], 0, sizeof(pool_item_t));
    }

    pthread_mutex_unlock(&pool->lock);

    pool_unmake(pool, be, item, &last);
}


static int
pool_make(model_pool_t *pool, be_t *be, uint32_t item)
{
    char     err[ERR_LEN];
    void    *made;
    size_t   copies;

    copies = 0;
    made = model_item_make(pool->model, be, item, &copies, err);

    pthread_mutex_lock(&pool->lock);

    pool->item[item].made = made;
    pool->item[item].state = POOL_READY;

    if (made == NULL && !pool->failed) {
        pool->failed = 1;
        model_error(pool->why, "%.200s: %.300s",
                    pool->model->item[item].name, err);
    }

    pthread_cond_broadcast(&pool->ready);
    pthread_mutex_unlock(&pool->lock);

    return made != NULL ? 0 : -1;
}


void *
model_item_make(const model_t *model, be_t *be, uint32_t item,
    size_t *copies, char *err)
{
    be_tensor_t          t;
    const be_mla_t      *mla;
    const model_item_t  *m;

    m = &model->item[item];
    mla = &model->config.mla;
    t = m->t;

    model_error(err, "no memory");

    switch (m->kind) {

    case MODEL_FLOATS:
        return pool_floats(be, &t);

    case MODEL_TABLE:
        return be->table(be, &t, copies, err);

    /* kv_b_proj is [heads][nope + v] rows; one half of every head. */

    case MODEL_UK:
        if (!t.made) {
            t.take = mla->nope;
            return be->weight_t(be, &t, mla->heads, copies, err);
        }

        break;

    case MODEL_UV:
        if (!t.made) {
            t.parts = mla->heads;
            t.from = mla->nope;
            t.take = mla->v;
        }

        break;

    default: /* MODEL_MATRIX */
        break;
    }

    return be->weight(be, &t, copies, err);
}


void
model_item_free(const model_t *model, be_t *be, uint32_t item, void *made)
{
    if (model->item[item].kind == MODEL_FLOATS) {
        be->free(be, made);

    } else {
        be->weight_free(be, made);
    }
}


static void *
pool_floats(be_t *be, const be_tensor_t *t)
{
    void      *made;
    float     *f;
    size_t     i, n;
    uint16_t   h;
    uint32_t   u;

    n = (size_t) t->rows * t->cols;
    f = malloc(n * sizeof(float));
    made = be->alloc(be, n * sizeof(float));

    if (f == NULL || made == NULL) {
        free(f);
        be->free(be, made);
        return NULL;
    }

    if (t->dtype == BE_F32) {
        memcpy(f, t->data, n * sizeof(float));

    } else {
        for (i = 0; i < n; i++) {
            memcpy(&h, (const uint8_t *) t->data + i * 2, 2);
            u = (uint32_t) h << 16;
            memcpy(&f[i], &u, 4);
        }
    }

    be->upload(be, made, f, n * sizeof(float));
    free(f);

    return made;
}
