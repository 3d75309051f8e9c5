/*
 * A rank's KV blocks: a table by tag, and the blocks that nobody holds by age.
 */

#include <stdio.h>
#include <stdlib.h>

#include "route.h"


static void cache_evict(rank_t *rk, uint32_t i);


block_t *
cache_find(rank_t *rk, uint64_t tag)
{
    block_t  *b;

    for (b = rk->table[tag % CACHE_TABLE]; b != NULL; b = b->chain) {
        if (b->tag == tag) {
            return b;
        }
    }

    return NULL;
}


/* Adds a block that is not there yet. */

void
cache_take(uint32_t i, uint64_t tag, int tagged)
{
    rank_t   *rk;
    block_t  *b;

    rk = &sim.ranks[i];
    b = cache_find(rk, tag);

    if (b != NULL) {
        b->tagged |= tagged;
        return;
    }

    if (rk->blocks == opt.blocks) {
        cache_evict(rk, i);
    }

    b = calloc(1, sizeof(*b));

    if (b == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    b->tag = tag;
    b->tagged = tagged;
    b->holders = 1;
    b->chain = rk->table[tag % CACHE_TABLE];
    rk->table[tag % CACHE_TABLE] = b;
    rk->blocks++;
}


void
cache_hold(rank_t *rk, block_t *b)
{
    if (b->holders++ == 0) {
        *(b->newer != NULL ? &b->newer->older : &rk->newest) = b->older;
        *(b->older != NULL ? &b->older->newer : &rk->oldest) = b->newer;
        rk->idle--;
    }
}


void
cache_drop(rank_t *rk, block_t *b)
{
    if (--b->holders == 0) {
        b->newer = NULL;
        b->older = rk->newest;
        *(b->older != NULL ? &b->older->newer : &rk->oldest) = b;
        rk->newest = b;
        rk->idle++;
    }
}


static void
cache_evict(rank_t *rk, uint32_t i)
{
    block_t  *b, **p;

    b = rk->oldest;

    cache_hold(rk, b);

    for (p = &rk->table[b->tag % CACHE_TABLE]; *p != b; p = &(*p)->chain) {
        /* void */
    }

    *p = b->chain;
    rk->blocks--;

    if (b->tagged) {
        ours_evicted(i, b->tag);
    }

    free(b);
}


/* How much of a prompt a rank has: tags from the first on. */

uint32_t
cache_depth(rank_t *rk, request_t *r)
{
    uint32_t  n;

    for (n = 0; n < r->n && cache_find(rk, r->tags[n].tag) != NULL; n++) {
        /* void */
    }

    return n;
}


void
cache_free(rank_t *rk)
{
    uint32_t   i;
    block_t   *b, *next;

    for (i = 0; i < CACHE_TABLE; i++) {
        for (b = rk->table[i]; b != NULL; b = next) {
            next = b->chain;
            free(b);
        }
    }
}
