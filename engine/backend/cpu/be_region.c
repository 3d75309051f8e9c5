/*
 * Regions: a piece follows the other until one is full; the last piece that
 * is given back takes the region with it.
 */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "backend/cpu/be_region.h"


#define REGION_SIZE  ((size_t) 32 << 20)
#define REGION_PAGE  ((size_t) 2 << 20)
#define REGION_LINE  64


struct be_region_s {
    uint8_t       *data;
    size_t         size;
    size_t         used;
    atomic_size_t  refs;             /* pieces, and being the current one */
};


static be_region_t *region_new(size_t size);


void *
be_region_alloc(be_region_t **current, size_t size, be_region_t **owner)
{
    void         *p;
    be_region_t  *r;

    if (size > SIZE_MAX - REGION_PAGE) {
        return NULL;
    }

    size = (size + REGION_LINE - 1) / REGION_LINE * REGION_LINE;
    r = *current;

    if (r == NULL || r->size - r->used < size) {
        r = region_new(size);
        if (r == NULL) {
            return NULL;
        }

        be_region_free(*current);
        *current = r;
    }

    p = r->data + r->used;
    r->used += size;
    atomic_fetch_add(&r->refs, 1);
    *owner = r;

    return p;
}


static be_region_t *
region_new(size_t size)
{
    void         *p;
    be_region_t  *r;

    size = (size < REGION_SIZE) ? REGION_SIZE
         : (size + REGION_PAGE - 1) / REGION_PAGE * REGION_PAGE;

    r = malloc(sizeof(be_region_t));
    if (r == NULL) {
        return NULL;
    }

    p = mmap(NULL, size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        free(r);
        return NULL;
    }

    (void) madvise(p, size, MADV_HUGEPAGE);

    r->data = p;
    r->size = size;
    r->used = 0;
    atomic_init(&r->refs, 1);

    return r;
}


void
be_region_free(be_region_t *region)
{
    if (region == NULL || atomic_fetch_sub(&region->refs, 1) != 1) {
        return;
    }

    (void) munmap(region->data, region->size);
    free(region);
}
