/*
 * The scheduler of a launch: which fiber runs next, barriers, operations of a
 * warp, shared memory.
 */

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <string>
#include <vector>

#include "emu_runtime.h"
#include "emu_thread.h"


#define EMU_CANARY     0xc5
#define EMU_GUARD      1024          /* bytes of it behind shared memory */
#define EMU_PAGE       4096
#define EMU_RESIDENT   2             /* blocks at a time */
#define EMU_POLL_TIME  60            /* seconds of polling and nothing else */
#define EMU_KICK       1000          /* looks without change */
#define EMU_DEP        1             /* CU_DEP, CU_COOP */
#define EMU_COOP       2
#define EMU_DEVICES    64

#define LIVE(block)    ((block)->n_threads - (block)->n_done)


struct windows_t {
    std::vector<uint8_t *>  free;

    ~windows_t()
    {
        for (uint8_t *p : free) {
            munmap(p - EMU_PAGE, EMU_SMEM_WINDOW + 2 * EMU_PAGE);
        }
    }
};


static emu_block_t *block_new(emu_launch_t *launch, uint64_t index);
static void block_free(emu_block_t *block);
static void block_check(emu_block_t *block) EMU_UNSEEN;
static uint32_t block_pass(emu_block_t *block);
static int thread_ready(emu_thread_t *t);
static void thread_resume(emu_thread_t *t);
static void thread_run(void);
static void thread_body(emu_thread_t *t);
static void thread_wait(emu_state_t state, const char *what);
static void barrier_complete(emu_bar_t *bar);
static void stuck(std::vector<emu_block_t *> *blocks);
static uint8_t *window_get(void);


__thread emu_thread_t            *emu_self;

static thread_local emu_home_t    emu_home;
static thread_local emu_launch_t *emu_current;
static thread_local void        (*emu_body)(void *);
static thread_local void         *emu_body_ctx;
static thread_local windows_t     emu_windows;

static std::atomic<int>           emu_waiting[EMU_DEVICES];


void
emu_run(emu_launch_t *launch, void (*body)(void *), void *ctx)
{
    time_t                      idle;
    uint64_t                    next, total;
    uint32_t                    progress, i, resident, looks;
    emu_block_t                *block;
    emu_thread_t               *self;
    std::vector<emu_block_t *>  blocks;

    /* a body never launches, but a host function between may */

    self = emu_self;
    emu_current = launch;
    emu_body = body;
    emu_body_ctx = ctx;
    next = 0;
    idle = 0;
    looks = 0;
    total = (uint64_t) launch->grid.x * launch->grid.y * launch->grid.z;
    resident = (launch->how == EMU_COOP) ? (uint32_t) total : EMU_RESIDENT;

    for ( ;; ) {

        while (blocks.size() < resident && next < total) {
            blocks.push_back(block_new(launch, next++));
        }

        if (blocks.empty()) {
            break;
        }

        progress = 0;

        for (i = 0; i < blocks.size(); /* void */ ) {
            block = blocks[i];
            progress += block_pass(block);

            if (block->n_done == block->n_threads) {
                block_check(block);
                block_free(block);
                blocks.erase(blocks.begin() + i);
                continue;
            }

            i++;
        }

        for (i = 0; progress == 0 && i < blocks.size(); i++) {
            progress += (uint32_t) emu_async_some(blocks[i], 1);
        }

        if (progress != 0) {
            idle = 0;
            continue;
        }

        /* only other ranks' launches may still change something */

        for (i = 0; i < blocks.size(); i++) {
            for (uint32_t t = 0; t < blocks[i]->n_threads; t++) {
                progress |= blocks[i]->threads[t].state == EMU_POLLS;
            }
        }

        idle = (idle == 0) ? time(NULL) : idle;

        if (progress == 0 || time(NULL) - idle > EMU_POLL_TIME) {
            stuck(&blocks);
        }

        /* what they wait for may be queued where nobody waits */

        if (++looks % EMU_KICK == 0) {
            emu_kick();
        }

        sched_yield();
    }

    if (launch->waits) {
        emu_waiting[launch->device] = 0;
    }

    emu_current = NULL;
    emu_self = self;
}


/* Once over the warps of a block; how many threads got somewhere. */

static uint32_t
block_pass(emu_block_t *block)
{
    int            turn, moved;
    uint32_t       w, first, lane, n, i, warps, progress, again;
    emu_thread_t  *t;

    warps = (block->n_threads + 31) / 32;
    first = emu_random(warps);
    progress = 0;

    for (w = 0; w < warps; w++) {
        n = (w + first) % warps * 32;
        turn = (int) emu_random(2);

        for (again = emu_random(8) + 1; again != 0; again--) {
            moved = 0;

            for (i = 0; i < 32; i++) {
                lane = n + (turn ? 31 - i : i);

                if (lane >= block->n_threads) {
                    continue;
                }

                t = &block->threads[lane];

                if (t->state != EMU_DONE && thread_ready(t)) {
                    thread_resume(t);
                    moved += t->state != EMU_POLLS;
                }
            }

            progress += (uint32_t) moved;

            if (moved == 0) {
                break;
            }
        }

        if (block->n_async != 0) {
            progress += (uint32_t) emu_async_some(block, 0);
        }
    }

    return progress;
}


static int
thread_ready(emu_thread_t *t)
{
    switch (t->state) {

    case EMU_WAIT_COUNT:
        return *(const uint32_t *) t->count != t->seen;

    case EMU_WAIT_ZERO:
        return *(const uint32_t *) t->count == 0;

    case EMU_WAIT_PHASE:
        return emu_phase_passed((const uint64_t *) t->count, t->seen);

    default:
        return 1;
    }
}


static void
thread_resume(emu_thread_t *t)
{
    t->state = EMU_READY;
    emu_self = t;
    emu_fiber_resume(&emu_home, &t->fiber);
    emu_self = NULL;
}


/* A fiber is one thread after another. */

static void
thread_run(void)
{
    emu_thread_t  *t;

    for ( ;; ) {
        t = emu_self;
        emu_fiber_enter(&emu_home, &t->fiber);
        thread_body(t);
        emu_fiber_leave(&emu_home, &t->fiber);
    }
}


static void
thread_body(emu_thread_t *t)
{
    emu_bar_t     *bar;
    emu_block_t   *block;

    emu_body(emu_body_ctx);

    if (t->block->launch->how == EMU_DEP && !t->begun) {
        emu_fatal("the kernel is launched early, and the thread ends without "
                  "cu_begin()");
    }

    /* a barrier of all threads is one of those that are left */

    block = t->block;
    bar = &block->bar[0];
    t->state = EMU_DONE;
    block->n_done++;

    if (bar->arrived != 0 && bar->expected == 0
        && bar->arrived == LIVE(block))
    {
        barrier_complete(bar);
    }
}


static void
thread_wait(emu_state_t state, const char *what)
{
    emu_thread_t  *t;

    t = emu_self;
    t->state = state;
    t->what = what;
    emu_fiber_yield(&emu_home, &t->fiber);
}


void
emu_wait_count(const uint32_t *count, uint32_t seen, const char *what)
{
    while (*count == seen) {
        emu_self->count = count;
        emu_self->seen = seen;
        thread_wait(EMU_WAIT_COUNT, what);
    }
}


void
emu_wait_zero(const uint32_t *count, const char *what)
{
    while (*count != 0) {
        emu_self->count = count;
        thread_wait(EMU_WAIT_ZERO, what);
    }
}


void
emu_wait_phase(const uint64_t *bar, uint32_t parity)
{
    while (!emu_phase_passed(bar, parity)) {
        emu_self->count = bar;
        emu_self->seen = parity;
        thread_wait(EMU_WAIT_PHASE, "the phase of an mbarrier");
    }
}


void
emu_poll(void)
{
    thread_wait(EMU_POLLS, "memory that others write");
}


void
emu_poll_far(void)
{
    emu_launch_t  *l;

    l = emu_self->block->launch;

    if (!l->waits) {
        l->waits = 1;

        if (l->device < 0 || l->device >= EMU_DEVICES
            || emu_waiting[l->device].exchange(1) != 0)
        {
            emu_fatal("two kernels on device %d wait for others at the same "
                      "time: one of them may never run", l->device);
        }
    }

    emu_poll();
}


void
emu_release_far(void)
{
    if (!emu_self->fenced_far) {
        emu_fatal("a release to other devices without __threadfence_system(), "
                  "of what others of this one have stored");
    }
}


uint64_t
emu_timer(void)
{
    return (uint64_t) (emu_now() * 1e9);
}


/* --- barriers ---------------------------------------------------------- */

void
emu_barrier(uint32_t id, uint32_t threads, int wait)
{
    uint32_t      round;
    emu_bar_t    *bar;
    emu_block_t  *block;

    block = emu_self->block;

    if (id >= EMU_BARRIERS) {
        emu_fatal("barrier %u: there are %d", id, EMU_BARRIERS);
    }

    if (threads % 32 != 0 || threads > block->n_threads) {
        emu_fatal("barrier %u of %u threads in a block of %u", id, threads,
                  block->n_threads);
    }

    bar = &block->bar[id];

    if (bar->arrived != 0 && bar->expected != threads) {
        emu_fatal("barrier %u is waited for by %u threads and by %u", id,
                  bar->expected, threads);
    }

    round = bar->round;
    bar->expected = threads;
    bar->arrived++;

    if (bar->arrived == (threads != 0 ? threads : LIVE(block))) {
        barrier_complete(bar);
        return;
    }

    if (wait) {
        emu_wait_count(&bar->round, round,
                       (id == 0) ? "barrier 0" : "a named barrier");
    }
}


uint32_t
emu_barrier_count(uint32_t n)
{
    uint32_t    total;
    emu_bar_t  *bar;

    bar = &emu_self->block->bar[0];
    bar->sum += n;
    emu_barrier(0, 0, 1);
    total = bar->total;
    emu_barrier(0, 0, 1);

    return total;
}


static void
barrier_complete(emu_bar_t *bar)
{
    bar->total = bar->sum;
    bar->sum = 0;
    bar->arrived = 0;
    bar->expected = 0;
    bar->round++;
}


/* --- warps ------------------------------------------------------------- */

const emu_lanes_t *
emu_warp(emu_warp_op_t op, uint32_t mask, uint64_t value)
{
    uint32_t       i, bit, round;
    emu_warp_t    *warp;
    emu_lanes_t   *o, *free;
    emu_thread_t  *t;

    t = emu_self;
    warp = &t->block->warps[t->index / 32];
    bit = 1u << (t->index & 31);
    o = NULL;
    free = NULL;

    if ((mask & bit) == 0) {
        emu_fatal("a lane is not in the mask %08x that it gives", mask);
    }

    for (i = 0; i < EMU_WARP_OPS; i++) {
        if (warp->op[i].mask == 0) {
            free = &warp->op[i];

        } else if (warp->op[i].arrived != warp->op[i].mask) {

            /* still gathering */

            if (warp->op[i].mask == mask) {
                o = &warp->op[i];

            } else if (warp->op[i].mask & mask) {
                emu_fatal("lanes of a warp meet with masks %08x and %08x",
                          warp->op[i].mask, mask);
            }
        }
    }

    if (o == NULL) {
        if (free == NULL) {
            emu_fatal("a warp in more than %d pieces", EMU_WARP_OPS);
        }

        o = free;
        o->mask = mask;
        o->arrived = 0;
        o->left = 0;
        o->op = op;
    }

    if (o->op != op) {
        emu_fatal("lanes of a warp are at different operations (%d and %d)",
                  (int) o->op, (int) op);
    }

    o->value[t->index & 31] = value;
    o->arrived |= bit;
    round = o->round;

    if (o->arrived == mask) {
        o->round++;

    } else {
        emu_wait_count(&o->round, round, "the other lanes of its warp");
    }

    o->left |= bit;

    if (o->left == mask) {
        o->mask = 0;
    }

    return o;
}


/*
 * A block has the registers that it was launched with, which launch bounds of
 * its size make as many as there are, in eights; a warp that wants more waits
 * for them.  When all have said what they want, that must not be for ever.
 */

void
emu_regs(uint32_t n)
{
    uint32_t      i, all, sum, warps;
    emu_block_t  *block;

    block = emu_self->block;
    warps = (block->n_threads + 31) / 32;
    all = EMU_REGS / (warps * 32) / 8 * 8;
    all = warps * (all < 256 ? all : 256);

    (void) emu_warp(EMU_WARP_REGS, 0xffffffff, 0);
    block->warps[emu_self->index / 32].regs = n;

    for (i = 0, sum = 0; i < warps; i++) {
        if (block->warps[i].regs == 0) {
            return;
        }

        sum += block->warps[i].regs;
    }

    if (sum > all) {
        emu_fatal("setmaxnreg: %u warps want %u registers a lane, all in all, "
                  "and the block has %u: they would wait for ever", warps,
                  sum, all);
    }
}


/* --- shared memory ----------------------------------------------------- */

void *
emu_dynamic_shared(void)
{
    return emu_self->block->window + EMU_SMEM_STATIC;
}


void *
emu_static_shared(const void *key, size_t size, size_t align)
{
    uint32_t      i, at;
    emu_block_t  *block;

    block = emu_self->block;

    for (i = 0; i < block->n_statics; i++) {
        if (block->statics[i].key == key) {
            return block->window + block->statics[i].offset;
        }
    }

    at = (uint32_t) ((block->static_used + align - 1) / align * align);

    if (i == EMU_STATICS || at + size > EMU_SMEM_STATIC - EMU_GUARD) {
        emu_fatal("more than %d bytes of static shared memory, or %d pieces",
                  EMU_SMEM_STATIC - EMU_GUARD, EMU_STATICS);
    }

    memset(block->window + at, 0xff, size);
    block->statics[i].key = key;
    block->statics[i].offset = at;
    block->n_statics++;
    block->static_used = (uint32_t) (at + size);

    return block->window + at;
}


uint32_t
emu_shared_address(const void *p, size_t size, const char *what)
{
    size_t        at;
    emu_block_t  *block;

    block = emu_self->block;
    at = (size_t) ((const uint8_t *) p - block->window);

    if (at >= EMU_SMEM_WINDOW
        || (at < EMU_SMEM_STATIC && at + size > block->static_used)
        || (at >= EMU_SMEM_STATIC
            && at + size > (size_t) EMU_SMEM_STATIC + block->dynamic_size))
    {
        emu_fatal("%s: %zu bytes at %p are not shared memory of this block "
                  "(%u static, %u dynamic)", what, size, p,
                  block->static_used, block->dynamic_size);
    }

    return (uint32_t) at;
}


uint8_t *
emu_shared_at(uint32_t address, size_t size, const char *what)
{
    uint8_t  *p;

    p = emu_self->block->window + address;
    (void) emu_shared_address(p, size, what);

    return p;
}


static uint8_t *
window_get(void)
{
    void     *p;
    uint8_t  *window;

    if (!emu_windows.free.empty()) {
        window = emu_windows.free.back();
        emu_windows.free.pop_back();
        return window;
    }

    p = mmap(NULL, EMU_SMEM_WINDOW + 2 * EMU_PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    window = (uint8_t *) p + EMU_PAGE;

    if (p == MAP_FAILED || mprotect(p, EMU_PAGE, PROT_NONE) != 0
        || mprotect(window + EMU_SMEM_WINDOW, EMU_PAGE, PROT_NONE) != 0)
    {
        emu_fatal("no memory for the shared memory of a block");
    }

    return window;
}


/* --- blocks ------------------------------------------------------------ */

static emu_block_t *
block_new(emu_launch_t *launch, uint64_t index)
{
    uint32_t       i, n, end;
    emu_block_t   *block;
    emu_thread_t  *t;

    n = launch->block.x * launch->block.y * launch->block.z;

    block = (emu_block_t *) calloc(1, sizeof(emu_block_t));
    t = (emu_thread_t *) calloc(n, sizeof(emu_thread_t));

    if (block == NULL || t == NULL) {
        emu_fatal("out of memory for a block of %u threads", n);
    }

    block->threads = t;
    block->warps = (emu_warp_t *) calloc((n + 31) / 32, sizeof(emu_warp_t));

    if (block->warps == NULL) {
        emu_fatal("out of memory for a block of %u threads", n);
    }

    block->launch = launch;
    block->n_threads = n;
    block->index.x = (uint32_t) (index % launch->grid.x);
    block->index.y = (uint32_t) (index / launch->grid.x % launch->grid.y);
    block->index.z = (uint32_t) (index / launch->grid.x / launch->grid.y);
    block->dynamic_size = (uint32_t) launch->smem;

    block->window = window_get();
    memset(block->window, EMU_CANARY, EMU_SMEM_STATIC);
    memset(block->window + EMU_SMEM_STATIC, 0xff, block->dynamic_size);

    end = EMU_SMEM_STATIC + block->dynamic_size;
    memset(block->window + end, EMU_CANARY, EMU_GUARD);

    for (i = 0; i < n; i++) {
        t[i].block = block;
        t[i].index = i;
        t[i].thread.x = i % launch->block.x;
        t[i].thread.y = i / launch->block.x % launch->block.y;
        t[i].thread.z = i / launch->block.x / launch->block.y;
        emu_fiber_init(&t[i].fiber, thread_run);
    }

    return block;
}


static void
block_free(emu_block_t *block)
{
    uint32_t  i;

    for (i = 0; i < block->n_threads; i++) {
        emu_fiber_free(&block->threads[i].fiber);
    }

    emu_windows.free.push_back(block->window);
    free(block->warps);
    free(block->threads);
    free(block);
}


/* What a block that ends must have left in order. */

static void
block_check(emu_block_t *block)
{
    uint32_t  i, at;

    emu_self = &block->threads[0];

    for (i = 1; i < EMU_BARRIERS; i++) {
        if (block->bar[i].arrived != 0) {
            emu_fatal("the block ends with %u threads at barrier %u",
                      block->bar[i].arrived, i);
        }
    }

    emu_async_close(block);
    emu_wgmma_close(block);

    for (at = block->static_used; at < EMU_SMEM_STATIC; at++) {
        if (block->window[at] != EMU_CANARY) {
            emu_fatal("static shared memory written %u bytes past its end",
                      at - block->static_used);
        }
    }

    for (i = 0; i < EMU_GUARD; i++) {
        at = EMU_SMEM_STATIC + block->dynamic_size + i;

        if (block->window[at] != EMU_CANARY) {
            emu_fatal("shared memory written %u bytes past its end (%u)",
                      i, block->dynamic_size);
        }
    }

    emu_self = NULL;
}


/* --- messages ---------------------------------------------------------- */

uint32_t
emu_random(uint32_t n)
{
    uint64_t  *s;

    s = &emu_current->random;
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;

    return (uint32_t) ((*s >> 32) * n >> 32);
}


void
emu_fatal(const char *fmt, ...)
{
    va_list        args;
    emu_thread_t  *t;

    t = emu_self;
    fflush(stdout);
    fprintf(stderr, "emu: ");

    if (emu_current != NULL) {
        fprintf(stderr, "kernel %s", emu_current->name);

        if (t != NULL) {
            fprintf(stderr, ", block (%u,%u,%u), thread (%u,%u,%u)",
                    t->block->index.x, t->block->index.y, t->block->index.z,
                    t->thread.x, t->thread.y, t->thread.z);
        }

        fprintf(stderr, ": ");
    }

    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);

    fprintf(stderr, "\n");
    abort();
}


/* Says who waits for what, by warp. */

static void
stuck(std::vector<emu_block_t *> *blocks)
{
    uint32_t      i, n, end;
    emu_block_t  *block;
    std::string   text;
    char          line[200];

    block = (*blocks)[0];

    for (i = 0; i < block->n_threads; i = end) {
        n = 0;

        for (end = i; end < block->n_threads; end++) {
            if (block->threads[end].state != block->threads[i].state
                || block->threads[end].what != block->threads[i].what
                || block->threads[end].count != block->threads[i].count)
            {
                break;
            }

            n++;
        }

        if (block->threads[i].state != EMU_DONE) {
            snprintf(line, sizeof(line), "\n    threads %u to %u wait for %s",
                     i, end - 1, block->threads[i].what);
            text += line;

            if (block->threads[i].state == EMU_WAIT_PHASE) {
                snprintf(line, sizeof(line), " at shared address %u (phase "
                         "%u, word %016llx)",
                         (unsigned) ((const uint8_t *) block->threads[i].count
                                     - block->window), block->threads[i].seen,
                         (unsigned long long)
                         *(const uint64_t *) block->threads[i].count);
                text += line;
            }
        }
    }

    emu_fatal("nobody can go on (a deadlock); block (%u,%u,%u):%s",
              block->index.x, block->index.y, block->index.z, text.c_str());
}
