/*
 * As much of nginx as the zones need, so that their code runs without an nginx:
 * a slab with a budget, a lock that knows whether it is held, a search tree, a
 * clock and a process that the test sets.
 */

#ifndef NGX_SHIM_H
#define NGX_SHIM_H

#include <ngx_config.h>
#include <ngx_core.h>


/* Forgets all that was handed out; bytes left and handed out from then on. */

void shim_slab_start(size_t size);

extern size_t  shim_slab_left;
extern size_t  shim_slab_used;

/* How often the lock was taken. */

extern uint64_t  shim_locks;

void shim_clock(uint64_t ms);


#endif /* NGX_SHIM_H */
