/*
 * Fibers: a stack each, and a switch that saves what the calling convention
 * says must be saved.  The sanitizers are told of every switch.
 */

#ifndef EMU_FIBER_H
#define EMU_FIBER_H

#include <stddef.h>


typedef struct {
    char    *stack;                  /* lowest usable address */
    void    *sp;                     /* where it stopped */
    void    *fake;                   /* address sanitizer's */
    void    *tsan;                   /* thread sanitizer's */
} emu_fiber_t;

typedef struct {
    void        *sp;                 /* the scheduler's */
    void        *fake;
    void        *tsan;
    const void  *bottom;             /* of the scheduler's stack */
    size_t       size;
} emu_home_t;


/*
 * Makes `f`, on a stack from this OS thread's pool, start in `run` when it is
 * first resumed; `run` never returns.
 */
void emu_fiber_init(emu_fiber_t *f, void (*run)(void));

/* Gives the stack back. */
void emu_fiber_free(emu_fiber_t *f);

void emu_fiber_resume(emu_home_t *home, emu_fiber_t *f);
void emu_fiber_yield(emu_home_t *home, emu_fiber_t *f);

/* First thing in `run`; and in place of the last yield. */
void emu_fiber_enter(emu_home_t *home, emu_fiber_t *f);
void emu_fiber_exit(emu_home_t *home, emu_fiber_t *f)
    __attribute__((noreturn));

#endif /* EMU_FIBER_H */
