/*
 * Fibers: a stack each, and a switch that saves what the calling convention
 * says must be saved.  Address sanitizer is told of every switch.
 */

#ifndef EMU_FIBER_H
#define EMU_FIBER_H

#include <stddef.h>


typedef struct {
    char    *stack;                  /* lowest usable address */
    void    *sp;                     /* where it stopped */
    void    *fake;                   /* address sanitizer's */
} emu_fiber_t;

typedef struct {
    void        *sp;                 /* the scheduler's */
    void        *fake;
    const void  *bottom;             /* of the scheduler's stack */
    size_t       size;
} emu_home_t;


/*
 * Makes `f`, from this OS thread's pool or anew, start in `run` when it is
 * resumed; all fibers of an OS thread have the same, which never returns.
 */
void emu_fiber_init(emu_fiber_t *f, void (*run)(void));

/* Gives it back, after it has left, to go on behind that as another one. */
void emu_fiber_free(emu_fiber_t *f);

void emu_fiber_resume(emu_home_t *home, emu_fiber_t *f);
void emu_fiber_yield(emu_home_t *home, emu_fiber_t *f);

/* At the begin of each turn of `run`'s loop, and at its end. */
void emu_fiber_enter(emu_home_t *home, emu_fiber_t *f);
void emu_fiber_leave(emu_home_t *home, emu_fiber_t *f);

#endif /* EMU_FIBER_H */
