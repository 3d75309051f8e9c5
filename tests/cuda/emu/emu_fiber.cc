/*
 * Switching stacks, and the pool of them.
 *
 * Thread sanitizer is told of no switches: to it, all that fibers do is done by
 * the OS thread that they are of, so that threads of a launch, which race where
 * a kernel lets them, are one, and launches of different OS threads are not.
 * That it counts calls and returns of an OS thread is why no fiber's function
 * is left: one that is done waits to be used again.  Stacks that it prints have
 * frames of such fibers among their outermost.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

#include "emu_fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif


#define EMU_STACK   (256 << 10)
#define EMU_PAGE    4096


struct emu_pool_t {
    std::vector<emu_fiber_t>  free;

    ~emu_pool_t()
    {
        for (emu_fiber_t &f : free) {
#if defined(__SANITIZE_ADDRESS__)
            __asan_unpoison_memory_region(f.stack, EMU_STACK);
#endif
            munmap(f.stack - EMU_PAGE, EMU_STACK + EMU_PAGE);
        }
    }
};


static char *stack_get(void);
static void fiber_make(emu_fiber_t *f, void (*run)(void));


static thread_local emu_pool_t  fiber_pool;


void
emu_fiber_init(emu_fiber_t *f, void (*run)(void))
{
    if (!fiber_pool.free.empty()) {
        *f = fiber_pool.free.back();
        fiber_pool.free.pop_back();
        return;
    }

    fiber_make(f, run);
    f->fake = NULL;
}


void
emu_fiber_free(emu_fiber_t *f)
{
    fiber_pool.free.push_back(*f);
}


static char *
stack_get(void)
{
    void  *p;

    p = mmap(NULL, EMU_STACK + EMU_PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED || mprotect(p, EMU_PAGE, PROT_NONE) != 0) {
        perror("emu: no memory for the stack of a thread");
        abort();
    }

    return (char *) p + EMU_PAGE;
}


#if defined(__x86_64__)

/* Callee-saved registers go to the old stack and come from the new one. */

extern "C" void emu_switch(void **save, void *to);

__asm__ (
    ".text\n"
    ".globl emu_switch\n"
    ".type emu_switch, @function\n"
    "emu_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size emu_switch, . - emu_switch\n"
);


static void
fiber_make(emu_fiber_t *f, void (*run)(void))
{
    uintptr_t  *top;

    f->stack = stack_get();

    /* `run` begins as if it had been called: 16-byte aligned plus 8 */

    top = (uintptr_t *) (f->stack + EMU_STACK - 56);
    top[0] = 0;
    top[-1] = (uintptr_t) run;
    f->sp = top - 7;
}

#else

static void
emu_switch(void **save, void *to)
{
    ucontext_t  here;

    *save = &here;
    swapcontext(&here, (ucontext_t *) to);
}


static void
fiber_make(emu_fiber_t *f, void (*run)(void))
{
    ucontext_t  *c;

    f->stack = stack_get();
    c = (ucontext_t *) f->stack;
    getcontext(c);
    c->uc_stack.ss_sp = f->stack + sizeof(ucontext_t);
    c->uc_stack.ss_size = EMU_STACK - sizeof(ucontext_t);
    c->uc_link = NULL;
    makecontext(c, run, 0);
    f->sp = c;
}

#endif


void
emu_fiber_resume(emu_home_t *home, emu_fiber_t *f)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&home->fake, f->stack, EMU_STACK);
#endif

    emu_switch(&home->sp, f->sp);

#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(home->fake, NULL, NULL);
#endif
}


void
emu_fiber_yield(emu_home_t *home, emu_fiber_t *f)
{
    emu_fiber_leave(home, f);
    emu_fiber_enter(home, f);
}


void
emu_fiber_enter(emu_home_t *home, emu_fiber_t *f)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(f->fake, &home->bottom, &home->size);
#else
    (void) home;
    (void) f;
#endif
}


void
emu_fiber_leave(emu_home_t *home, emu_fiber_t *f)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&f->fake, home->bottom, home->size);
#endif

    emu_switch(&f->sp, home->sp);
}
