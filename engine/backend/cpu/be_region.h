/*
 * Memory of huge pages for many pieces that live about as long: weights.
 */

#ifndef BE_REGION_H
#define BE_REGION_H

#include <stddef.h>


typedef struct be_region_s  be_region_t;


/*
 * `size` bytes, aligned to 64, of the region *current, or of a new one which
 * then takes its place; both NULL at first.  The piece's own region goes to
 * *owner.  NULL: no memory.  One thread at a time for each `current`.
 */
void *be_region_alloc(be_region_t **current, size_t size,
    be_region_t **owner);

/* Gives back a piece of it, or `current`; by any thread. */
void be_region_free(be_region_t *region);

#endif /* BE_REGION_H */
