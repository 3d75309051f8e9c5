/*
 * KV blocks of a rank: a stack of free ones and a count of holders.
 */

#include "sched/kv_pool.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>


int
kv_pool_open(kv_pool_t *pool, uint32_t n_blocks)
{
    uint32_t  i;

    memset(pool, 0, sizeof(kv_pool_t));

    pool->free = malloc(n_blocks * sizeof(int32_t));
    pool->refs = calloc(n_blocks, sizeof(uint32_t));

    if (pool->free == NULL || pool->refs == NULL) {
        kv_pool_close(pool);
        return -1;
    }

    pool->n_blocks = n_blocks;
    pool->n_free = n_blocks;

    /* Low numbers are handed out first: untouched memory stays untouched. */

    for (i = 0; i < n_blocks; i++) {
        pool->free[i] = (int32_t) (n_blocks - 1 - i);
    }

    return 0;
}


void
kv_pool_close(kv_pool_t *pool)
{
    free(pool->free);
    free(pool->refs);
    memset(pool, 0, sizeof(kv_pool_t));
}


int32_t
kv_pool_get(kv_pool_t *pool)
{
    int32_t  block;

    if (pool->n_free == 0) {
        return -1;
    }

    block = pool->free[--pool->n_free];
    assert(pool->refs[block] == 0);
    pool->refs[block] = 1;

    return block;
}


void
kv_pool_ref(kv_pool_t *pool, int32_t block)
{
    pool->refs[block]++;
}


uint32_t
kv_pool_unref(kv_pool_t *pool, int32_t block)
{
    assert(pool->refs[block] > 0);

    return --pool->refs[block];
}


void
kv_pool_put(kv_pool_t *pool, int32_t block)
{
    assert(pool->refs[block] == 0);
    assert(pool->n_free < pool->n_blocks);

    pool->free[pool->n_free++] = block;
}
