/*
 * Threads, warps and blocks of the emulator.
 *
 * A thread is a fiber.  One that has to wait says for what (a counter that
 * moves on, an mbarrier's phase) and the scheduler passes it over until that
 * has happened, so that waiting costs no switches and "nobody can go on" is
 * seen at once.
 */

#ifndef EMU_THREAD_H
#define EMU_THREAD_H

#include <stddef.h>
#include <stdint.h>

#include "cuda_runtime_api.h"
#include "emu_fiber.h"
#include "emu_types.h"


#define EMU_BARRIERS      16
#define EMU_WARP_OPS      4          /* of one warp at a time, masks apart */
#define EMU_SMEM_STATIC   (16 << 10)
#define EMU_SMEM_WINDOW   (256 << 10)
#define EMU_STATICS       32
#define EMU_REGS          65536      /* of a multiprocessor */

typedef enum {
    EMU_WARP_SYNC, EMU_WARP_SHFL, EMU_WARP_VOTE, EMU_WARP_MATCH,
    EMU_WARP_REDUCE, EMU_WARP_ELECT, EMU_WARP_MATRIX, EMU_WARP_REGS
} emu_warp_op_t;

typedef enum {
    EMU_READY,
    EMU_WAIT_COUNT,                  /* until *count != seen */
    EMU_WAIT_PHASE,                  /* until the mbarrier leaves `seen` */
    EMU_WAIT_ZERO,                   /* until *count == 0 */
    EMU_POLLS,                       /* looks at memory again and again */
    EMU_DONE
} emu_state_t;

typedef struct emu_launch_s  emu_launch_t;
typedef struct emu_block_s   emu_block_t;
typedef struct emu_async_s   emu_async_t;
typedef struct emu_group_s   emu_group_t;      /* a warpgroup's products */

/* One warp-wide operation: what each lane of `mask` gave. */

typedef struct {
    uint32_t       mask;             /* 0: free */
    uint32_t       arrived;
    uint32_t       left;             /* lanes that have yet to read */
    uint32_t       round;
    emu_warp_op_t  op;
    uint64_t       value[32];
    const void    *from[32];         /* EMU_WARP_MATRIX: addresses */
} emu_lanes_t;

typedef struct {
    emu_lanes_t    op[EMU_WARP_OPS];
    uint32_t       regs;             /* by setmaxnreg; 0: not yet */
} emu_warp_t;

typedef struct {
    uint32_t       expected;         /* threads; 0: nobody has arrived */
    uint32_t       arrived;
    uint32_t       waits;            /* of them, how many wait */
    uint32_t       round;
    uint32_t       sum;              /* __syncthreads_count() */
    uint32_t       total;
} emu_bar_t;

typedef struct {
    emu_fiber_t    fiber;
    emu_state_t    state;
    const void    *count;
    uint32_t       seen;
    const char    *what;             /* it waits for */

    uint3          thread;
    uint32_t       index;            /* in the block */
    emu_block_t   *block;

    /* asynchronous copies: groups closed, and copies open by group */
    uint32_t       copy_group;
    uint32_t       copies;           /* cp.async in flight */
    uint32_t       bulk_group;
    uint32_t       bulk_reads;       /* bulk groups that still read */

    uint32_t       wgmma;            /* operations issued */
    int            fenced;           /* wgmma.fence since registers changed */
    int            begun;            /* cu_begin() */
    int            fenced_far;       /* __threadfence_system() */
} emu_thread_t;

typedef struct {
    const void    *key;
    uint32_t       offset;
} emu_static_t;

struct emu_block_s {
    uint3          index;
    emu_launch_t  *launch;
    emu_thread_t  *threads;
    uint32_t       n_threads;
    uint32_t       n_done;
    emu_warp_t    *warps;
    emu_bar_t      bar[EMU_BARRIERS];

    uint8_t       *window;           /* shared: statics, then dynamic */
    emu_static_t   statics[EMU_STATICS];
    uint32_t       n_statics;
    uint32_t       static_used;
    uint32_t       dynamic_size;

    emu_async_t   *async;            /* copies that have not landed */
    uint32_t       n_async;
    emu_group_t  **groups;
};

struct emu_launch_s {
    const char    *name;
    dim3           grid;
    dim3           block;
    size_t         smem;
    int            how;
    int            device;
    int            waits;            /* it polls for other devices */
    uint64_t       random;
};


extern __thread emu_thread_t  *emu_self;


static inline int
emu_lane(void)
{
    return (int) (emu_self->index & 31);
}


/* Ends the program; the line names the running kernel, block and thread. */
void emu_fatal(const char *fmt, ...)
    __attribute__((noreturn, format(printf, 1, 2)));

/* A number below n of the launch's generator. */
uint32_t emu_random(uint32_t n);

/* Lets others run, until *count (in the block's memory) has moved. */
void emu_wait_count(const uint32_t *count, uint32_t seen, const char *what);
void emu_wait_zero(const uint32_t *count, const char *what);
void emu_wait_phase(const uint64_t *bar, uint32_t parity);

/* After a look at memory that another block, thread or rank may change. */
void emu_poll(void);

/*
 * The same, of memory that other devices write.  A second kernel that waits so
 * on a device ends the program: nothing says that both get to run.
 */
void emu_poll_far(void);

/* Before a release to them: without a fence of the system it ends there. */
void emu_release_far(void);

/* Nanoseconds, as %globaltimer. */
uint64_t emu_timer(void);

/*
 * Barrier `id` of `threads` (0: all of the block); arrives and, if `wait`,
 * waits.  emu_barrier_count() is barrier 0 and adds up `n`.
 */
void emu_barrier(uint32_t id, uint32_t threads, int wait);
uint32_t emu_barrier_count(uint32_t n);

/*
 * All lanes of `mask` meet; what each gave stays valid until the caller's
 * next operation of the warp.
 */
const emu_lanes_t *emu_warp(emu_warp_op_t op, uint32_t mask, uint64_t value);

/* setmaxnreg of the warp, `n` a thread. */
void emu_regs(uint32_t n);

void *emu_dynamic_shared(void);
void *emu_static_shared(const void *key, size_t size, size_t align);

/* The address that instructions use, and back; checks `size` bytes. */
uint32_t emu_shared_address(const void *p, size_t size, const char *what);
uint8_t *emu_shared_at(uint32_t address, size_t size, const char *what);

/* Of a launch, by emu_runtime.cc; `body` is run in each thread. */
void emu_run(emu_launch_t *launch, void (*body)(void *), void *ctx);

/* emu_async.cc: called by the scheduler. */
int emu_async_some(emu_block_t *block, int force);
void emu_async_close(emu_block_t *block);
int emu_phase_passed(const uint64_t *bar, uint32_t parity);

/* emu_wgmma.cc: at the end of a block. */
void emu_wgmma_close(emu_block_t *block);

#endif /* EMU_THREAD_H */
