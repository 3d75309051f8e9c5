/*
 * Kernels on a CPU: what nvcc gives a .cu, for g++.
 *
 * A launch runs its blocks a few at a time (all, with CU_LAUNCH_COOP), each
 * thread of a block as a fiber that runs until it has to wait.  The order of
 * warps and the moment at which asynchronous copies land are drawn from a
 * generator (CU_EMU_SEED=N changes it), so that a barrier that is missing
 * shows as a wrong number.  Shared memory is full of 0xff (not a number in
 * every format) before a block starts.  What cannot be right ends the program
 * with a line that names kernel, block and thread: barriers nobody will
 * complete, lanes of a warp that disagree, memory written outside of its
 * bounds, arguments that the hardware would refuse.
 *
 * Not emulated: time, registers, bank conflicts, weak memory order, the
 * proxy fences.  Those are for the GPU's own tools.
 *
 * Functions in lower case with emu_ in front are the emulator's; what has
 * CUDA's names behaves as CUDA's.
 */

#ifndef EMU_H
#define EMU_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <tuple>

#include "cuda_runtime_api.h"
#include "emu_types.h"
#include "emu_thread.h"


#define __global__
#define __device__
#define __host__
#define __forceinline__          inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__             static const
#define __CUDA_ARCH__            900

#define CU_SHARED(type, name)                                                 \
    type *name = reinterpret_cast<type *>(emu_dynamic_shared())

#define CU_STATIC_SHARED(type, name, dims)                                    \
    typedef type name##_emu_t dims;                                           \
    static const char  name##_emu_key = 0;                                    \
    name##_emu_t &name = *reinterpret_cast<name##_emu_t *>(                   \
        emu_static_shared(&name##_emu_key, sizeof(name##_emu_t),              \
                          alignof(name##_emu_t)))

#define CU_SMEM(kernel, bytes)                                                \
    emu_smem((const void *) (kernel), #kernel, (size_t) (bytes))

#define threadIdx  (emu_self->thread)
#define blockIdx   (emu_self->block->index)
#define blockDim   (emu_self->block->launch->block)
#define gridDim    (emu_self->block->launch->grid)
#define warpSize   32


/* Queues a launch; `body` runs once in each thread. */

int emu_launch(const char *name, const void *kernel, int how, dim3 grid,
    dim3 block, size_t smem, cudaStream_t stream, std::function<void()> body);
int emu_smem(const void *kernel, const char *name, size_t bytes);


template <typename... P, typename... A>
static inline int
cu_launch(const char *name, int how, void (*kernel)(P...), dim3 grid,
    dim3 block, size_t smem, cudaStream_t stream, A... args)
{
    std::tuple<P...>  copy(static_cast<P>(args)...);

    return emu_launch(name, (const void *) kernel, how, grid, block, smem,
                      stream, [kernel, copy]() {
                          std::apply(kernel, copy);
                      });
}


static inline void
cu_begin(void)
{
    emu_self->begun = 1;
}


/* --- barriers and warps ------------------------------------------------ */

static inline void
__syncthreads(void)
{
    emu_barrier(0, 0, 1);
}


static inline int
__syncthreads_or(int pred)
{
    return emu_barrier_count(pred != 0) != 0;
}


static inline int
__syncthreads_count(int pred)
{
    return (int) emu_barrier_count(pred != 0);
}


static inline int
__syncthreads_and(int pred)
{
    return emu_barrier_count(pred == 0) == 0;
}


static inline void
__syncwarp(unsigned mask = 0xffffffff)
{
    (void) emu_warp(EMU_WARP_SYNC, mask, 0);
}


/* The value that lane `from` gave, own where it is out of the segment. */

template <typename T>
static inline T
emu_shuffle(emu_warp_op_t op, unsigned mask, T value, int from, int mine)
{
    T                    out;
    uint64_t             v;
    const emu_lanes_t   *lanes;

    static_assert(sizeof(T) <= 8, "a shuffle is of at most 8 bytes");

    v = 0;
    memcpy(&v, &value, sizeof(T));
    lanes = emu_warp(op, mask, v);

    if (from != mine && (mask >> from & 1) == 0) {
        emu_fatal("a shuffle reads lane %d, which is not in mask %08x", from,
                  mask);
    }

    memcpy(&out, &lanes->value[from], sizeof(T));
    return out;
}


template <typename T>
static inline T
__shfl_sync(unsigned mask, T value, int lane, int width = 32)
{
    int  mine;

    mine = emu_lane();
    return emu_shuffle(EMU_WARP_SHFL, mask, value,
                       (mine & ~(width - 1)) | (lane & (width - 1)), mine);
}


template <typename T>
static inline T
__shfl_xor_sync(unsigned mask, T value, int bits, int width = 32)
{
    int  mine, from;

    mine = emu_lane();
    from = mine ^ bits;
    from = (from >= (mine & ~(width - 1)) + width) ? mine : from;
    return emu_shuffle(EMU_WARP_SHFL, mask, value, from, mine);
}


template <typename T>
static inline T
__shfl_down_sync(unsigned mask, T value, unsigned n, int width = 32)
{
    int  mine, from;

    mine = emu_lane();
    from = mine + (int) n;
    from = (from >= (mine & ~(width - 1)) + width) ? mine : from;
    return emu_shuffle(EMU_WARP_SHFL, mask, value, from, mine);
}


template <typename T>
static inline T
__shfl_up_sync(unsigned mask, T value, unsigned n, int width = 32)
{
    int  mine, from;

    mine = emu_lane();
    from = mine - (int) n;
    from = (from < (mine & ~(width - 1))) ? mine : from;
    return emu_shuffle(EMU_WARP_SHFL, mask, value, from, mine);
}


static inline unsigned
__ballot_sync(unsigned mask, int pred)
{
    unsigned            i, set;
    const emu_lanes_t  *lanes;

    lanes = emu_warp(EMU_WARP_VOTE, mask, pred != 0);
    set = 0;

    for (i = 0; i < 32; i++) {
        set |= (mask >> i & 1 && lanes->value[i] != 0) ? 1u << i : 0;
    }

    return set;
}


static inline int
__any_sync(unsigned mask, int pred)
{
    return __ballot_sync(mask, pred) != 0;
}


static inline int
__all_sync(unsigned mask, int pred)
{
    return __ballot_sync(mask, pred) == mask;
}


static inline unsigned
__activemask(void)
{
    emu_fatal("__activemask() says nothing that a kernel may rely on");
    return 0;
}


template <typename T>
static inline unsigned
__match_any_sync(unsigned mask, T value)
{
    uint64_t            v;
    unsigned            i, set;
    const emu_lanes_t  *lanes;

    v = 0;
    memcpy(&v, &value, sizeof(T));
    lanes = emu_warp(EMU_WARP_MATCH, mask, v);
    set = 0;

    for (i = 0; i < 32; i++) {
        set |= (mask >> i & 1 && lanes->value[i] == v) ? 1u << i : 0;
    }

    return set;
}


template <typename T, typename F>
static inline T
emu_reduce(unsigned mask, T value, F f)
{
    T                   sum, v;
    int                 first;
    uint64_t            raw;
    unsigned            i;
    const emu_lanes_t  *lanes;

    raw = 0;
    memcpy(&raw, &value, sizeof(T));
    lanes = emu_warp(EMU_WARP_REDUCE, mask, raw);
    first = 1;
    sum = value;

    for (i = 0; i < 32; i++) {
        if (mask >> i & 1) {
            memcpy(&v, &lanes->value[i], sizeof(T));
            sum = first ? v : f(sum, v);
            first = 0;
        }
    }

    return sum;
}


#define EMU_REDUCE(name, type, expr)                                          \
    static inline type                                                        \
    name(unsigned mask, type value)                                           \
    {                                                                         \
        return emu_reduce(mask, value,                                        \
                          [](type a, type b) -> type { return expr; });       \
    }

EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_add_sync, int, a + b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_and_sync, unsigned, a & b)
EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)


/* --- memory ------------------------------------------------------------ */

/* Thread sanitizer knows of no fences: what orders anything is behind them. */

#if defined(__SANITIZE_THREAD__)
#define EMU_FENCE()             __asm__ volatile ("" : : : "memory")
#else
#define EMU_FENCE()             __atomic_thread_fence(__ATOMIC_SEQ_CST)
#endif

#define __threadfence()         EMU_FENCE()
#define __threadfence_block()   EMU_FENCE()


static inline void
__threadfence_system(void)
{
    EMU_FENCE();
    emu_self->fenced_far = 1;
}



template <typename T> static inline T __ldg(const T *p) { return *p; }
template <typename T> static inline T __ldcg(const T *p) { return *p; }
template <typename T> static inline T __ldcs(const T *p) { return *p; }
template <typename T> static inline void __stcs(T *p, T v) { *p = v; }
template <typename T> static inline void __stcg(T *p, T v) { *p = v; }

static inline void
__nanosleep(unsigned)
{
    emu_poll();
}


template <typename T> struct emu_as { typedef T type; };

template <typename T>
static inline T
emu_atomic(T *p, T v, T (*f)(T, T))
{
    T  old, next;

    __atomic_load(p, &old, __ATOMIC_RELAXED);

    do {
        next = f(old, v);
    } while (!__atomic_compare_exchange(p, &old, &next, false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED));

    return old;
}


template <typename T>
static inline T
atomicAdd(T *p, typename emu_as<T>::type v)
{
    return emu_atomic<T>(p, v, [](T a, T b) -> T { return a + b; });
}


template <typename T>
static inline T
atomicMax(T *p, typename emu_as<T>::type v)
{
    return emu_atomic<T>(p, v, [](T a, T b) { return a > b ? a : b; });
}


template <typename T>
static inline T
atomicMin(T *p, typename emu_as<T>::type v)
{
    return emu_atomic<T>(p, v, [](T a, T b) { return a < b ? a : b; });
}


template <typename T>
static inline T
atomicSub(T *p, typename emu_as<T>::type v)
{
    return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);
}


template <typename T>
static inline T
atomicOr(T *p, typename emu_as<T>::type v)
{
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}


template <typename T>
static inline T
atomicAnd(T *p, typename emu_as<T>::type v)
{
    return __atomic_fetch_and(p, v, __ATOMIC_RELAXED);
}


template <typename T>
static inline T
atomicExch(T *p, typename emu_as<T>::type v)
{
    T  old;

    __atomic_exchange(p, &v, &old, __ATOMIC_RELAXED);
    return old;
}


template <typename T>
static inline T
atomicCAS(T *p, typename emu_as<T>::type expected,
    typename emu_as<T>::type v)
{
    (void) __atomic_compare_exchange(p, &expected, &v, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}


/* --- arithmetic -------------------------------------------------------- */

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frsqrt_rn(float a)
{
    return (float) (1.0 / sqrt((double) a));
}
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float a)
{
    return (float) (1.0 / sqrt((double) a));
}

/* libc keeps these names to itself */
#define __expf(a)     expf(a)
#define __exp10f(a)   powf(10.0f, a)
#define __logf(a)     logf(a)
#define __log2f(a)    log2f(a)
#define __powf(a, b)  powf(a, b)
#define __sinf(a)     sinf(a)
#define __cosf(a)     cosf(a)

static inline float __saturatef(float a)
{
    return (a > 0.0f) ? ((a < 1.0f) ? a : 1.0f) : 0.0f;
}

static inline int __float2int_rn(float a) { return (int) rintf(a); }
static inline int __float2int_rz(float a) { return (int) a; }
static inline int __float2int_rd(float a) { return (int) floorf(a); }
static inline unsigned __float2uint_rn(float a) { return (unsigned) rintf(a); }
static inline float __int2float_rn(int a) { return (float) a; }
static inline float __uint2float_rn(unsigned a) { return (float) a; }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
static inline int __clz(int x)
{
    return (x == 0) ? 32 : __builtin_clz((unsigned) x);
}
static inline int __clzll(long long x)
{
    return (x == 0) ? 64 : __builtin_clzll((unsigned long long) x);
}
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned) ((uint64_t) a * b >> 32);
}
static inline uint64_t __umul64hi(uint64_t a, uint64_t b)
{
    return (uint64_t) ((unsigned __int128) a * b >> 64);
}


static inline unsigned
__brev(unsigned x)
{
    int       i;
    unsigned  r;

    r = 0;

    for (i = 0; i < 32; i++) {
        r |= (x >> i & 1) << (31 - i);
    }

    return r;
}


/* Byte i of the result is byte (s >> 4 i & 7) of y:x, or its sign bit. */

static inline unsigned
__byte_perm(unsigned x, unsigned y, unsigned s)
{
    int       i;
    uint64_t  v;
    unsigned  b, r;

    v = (uint64_t) y << 32 | x;
    r = 0;

    for (i = 0; i < 4; i++) {
        b = (unsigned) (v >> (s >> 4 * i & 7) * 8) & 0xff;
        b = (s >> 4 * i & 8) ? ((b & 0x80) ? 0xff : 0) : b;
        r |= b << 8 * i;
    }

    return r;
}


static inline unsigned
__funnelshift_l(unsigned lo, unsigned hi, unsigned n)
{
    return (unsigned) (((uint64_t) hi << 32 | lo) << (n & 31) >> 32);
}


static inline unsigned
__funnelshift_r(unsigned lo, unsigned hi, unsigned n)
{
    return (unsigned) (((uint64_t) hi << 32 | lo) >> (n & 31));
}


#define EMU_MINMAX(type)                                                      \
    static inline type min(type a, type b) { return b < a ? b : a; }          \
    static inline type max(type a, type b) { return a < b ? b : a; }

EMU_MINMAX(int)
EMU_MINMAX(unsigned)
EMU_MINMAX(long)
EMU_MINMAX(unsigned long)
EMU_MINMAX(long long)
EMU_MINMAX(unsigned long long)

static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

#endif /* EMU_H */
