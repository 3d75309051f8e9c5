/*
 * The KV blocks of one rank: which are free, which are held, how often.
 *
 * A block is 64 tokens of all layers; here it is only a number.  A block is
 * held by the sequences whose positions it covers; full blocks may have more
 * than one holder.  `epoch` names the contents of the whole pool: whoever
 * remembers a block of another epoch remembers nothing.
 */

#ifndef SCHED_KV_POOL_H
#define SCHED_KV_POOL_H

#include <stdint.h>


#define KV_BLOCK  64                 /* tokens of a block */

typedef struct {
    uint64_t   epoch;
    uint32_t   n_blocks;
    uint32_t   n_free;
    int32_t   *free;                 /* stack of free blocks */
    uint32_t  *refs;                 /* [n_blocks] holders */
} kv_pool_t;


/* 0, or -1: no memory. */
int kv_pool_open(kv_pool_t *pool, uint32_t n_blocks, uint64_t epoch);
void kv_pool_close(kv_pool_t *pool);

/* A free block, held once, or -1. */
int32_t kv_pool_get(kv_pool_t *pool);

/* One more holder; one less, and free when there is none. */
void kv_pool_ref(kv_pool_t *pool, int32_t block);
void kv_pool_put(kv_pool_t *pool, int32_t block);

/* Blocks that `tokens` tokens take. */
static inline uint32_t
kv_blocks(uint64_t tokens)
{
    return (uint32_t) ((tokens + KV_BLOCK - 1) / KV_BLOCK);
}

#endif /* SCHED_KV_POOL_H */
