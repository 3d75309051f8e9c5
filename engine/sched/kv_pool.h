/*
 * The KV blocks of one rank: which are free, and how often the others are held.
 *
 * A block is 64 tokens of all layers; here it is only a number.  A block is
 * held by the sequences whose positions it covers; full blocks may have more
 * than one holder.  One without holders is not free by itself: kv_cache.h
 * decides what is kept of it.
 */

#ifndef SCHED_KV_POOL_H
#define SCHED_KV_POOL_H

#include <stdint.h>


#define KV_BLOCK  64                 /* tokens of a block */

typedef struct {
    uint32_t   n_blocks;
    uint32_t   n_free;
    int32_t   *free;                 /* stack of free blocks */
    uint32_t  *refs;                 /* [n_blocks] holders */
} kv_pool_t;


/* 0, or -1: no memory. */
int kv_pool_open(kv_pool_t *pool, uint32_t n_blocks);
void kv_pool_close(kv_pool_t *pool);

/* A free block, held once, or -1. */
int32_t kv_pool_get(kv_pool_t *pool);

/* One more holder; one less: returns how many are left. */
void kv_pool_ref(kv_pool_t *pool, int32_t block);
uint32_t kv_pool_unref(kv_pool_t *pool, int32_t block);

/* Frees a block that nobody holds. */
void kv_pool_put(kv_pool_t *pool, int32_t block);

/* Blocks that `tokens` tokens take. */
static inline uint32_t
kv_blocks(uint64_t tokens)
{
    return (uint32_t) ((tokens + KV_BLOCK - 1) / KV_BLOCK);
}

#endif /* SCHED_KV_POOL_H */
