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
    void          *kept;             /* what the backend may point into */
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
static void *pool_half(model_pool_t *pool, be_t *be,
    const model_item_t *item, void **kept, size_t *copies, char *err);
static void pool_rows(const be_tensor_t *t, uint32_t row, uint32_t n,
    uint8_t *dst);
static float pool_e4m3(uint8_t v);


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
        if (pool->model->item[item].kind == MODEL_FLOATS) {
            be->free(be, of->made);

        } else {
            be->weight_free(be, of->made);
        }
    }

    free(of->kept);
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
    char                 err[ERR_LEN];
    void                *made, *kept;
    size_t               copies;
    const model_item_t  *m;

    m = &pool->model->item[item];
    kept = NULL;
    copies = 0;
    model_error(err, "no memory");

    switch (m->kind) {

    case MODEL_FLOATS:
        made = pool_floats(be, &m->t);
        break;

    case MODEL_MATRIX:
        made = be->weight(be, &m->t, &copies, err);
        break;

    default:
        made = pool_half(pool, be, m, &kept, &copies, err);
    }

    pthread_mutex_lock(&pool->lock);

    pool->item[item].made = made;
    pool->item[item].kept = kept;
    pool->item[item].state = POOL_READY;

    if (made == NULL && !pool->failed) {
        pool->failed = 1;
        model_error(pool->why, "%.200s: %.300s", m->name, err);
    }

    pthread_cond_broadcast(&pool->ready);
    pthread_mutex_unlock(&pool->lock);

    return made != NULL ? 0 : -1;
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


/*
 * kv_b_proj is [heads][nope + v] rows; one half of every head, stacked.  Heads
 * do not respect the blocks of FP8 scales, so those are applied here.
 */

static void *
pool_half(model_pool_t *pool, be_t *be, const model_item_t *item, void **kept,
    size_t *copies, char *err)
{
    int                uk;
    void              *made;
    size_t             row_size;
    uint8_t           *rows;
    uint32_t           h, n, stride;
    be_tensor_t        t;
    const be_mla_t    *mla;

    mla = &pool->model->config.mla;
    uk = (item->kind == MODEL_UK);
    n = uk ? mla->nope : mla->v;
    stride = mla->nope + mla->v;

    t = item->t;
    t.rows = mla->heads * n;
    t.scale = NULL;
    t.dtype = (item->t.dtype == BE_BF16) ? BE_BF16 : BE_F32;
    row_size = (size_t) t.cols * (t.dtype == BE_BF16 ? 2 : 4);

    rows = malloc(t.rows * row_size);
    if (rows == NULL) {
        return NULL;
    }

    for (h = 0; h < mla->heads; h++) {
        pool_rows(&item->t, h * stride + (uk ? 0 : mla->nope), n,
                  rows + (size_t) h * n * row_size);
    }

    t.data = rows;

    if (uk) {
        made = be->weight_t(be, &t, mla->heads, copies, err);
        free(rows);
        return made;
    }

    made = be->weight(be, &t, copies, err);

    if (made == NULL) {
        free(rows);
        return NULL;
    }

    *kept = rows;
    return made;
}


/* Copies rows as they are; FP8 becomes float32. */

static void
pool_rows(const be_tensor_t *t, uint32_t row, uint32_t n, uint8_t *dst)
{
    float           v;
    size_t          size;
    uint32_t        i, j;
    const float    *scale;
    const uint8_t  *src;

    if (t->dtype != BE_F8E4M3) {
        size = (size_t) t->cols * (t->dtype == BE_BF16 ? 2 : 4);
        memcpy(dst, (const uint8_t *) t->data + row * size, n * size);
        return;
    }

    for (i = row; i < row + n; i++) {
        src = (const uint8_t *) t->data + (size_t) i * t->cols;
        scale = t->scale + (size_t) (i / 128) * t->scale_cols;

        for (j = 0; j < t->cols; j++) {
            v = pool_e4m3(src[j]) * scale[j / 128];
            memcpy(dst, &v, sizeof(float));
            dst += sizeof(float);
        }
    }
}


/* Four bits of exponent, bias 7; three of mantissa; 0x7f: not a number. */

static float
pool_e4m3(uint8_t v)
{
    float     f;
    uint32_t  u, exp, man;

    exp = (v >> 3) & 15;
    man = v & 7;

    if (exp == 0) {
        f = (float) man / 512;
        return (v & 0x80) ? -f : f;
    }

    u = ((uint32_t) (v & 0x80) << 24) | ((exp + 120) << 23) | (man << 20);

    if (exp == 15 && man == 7) {
        u |= 0x7fc00000;
    }

    memcpy(&f, &u, 4);

    return f;
}
