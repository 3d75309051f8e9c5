/*
 * Instructions that C++ has no words for; the only file, with cu_wgmma.cuh,
 * that has inline PTX.  Under CU_EMU the same names come from emu_ptx.h, with
 * what the PTX manual says that they do.
 *
 * Addresses of shared memory are ordinary pointers.  `bar` is an mbarrier, a
 * uint64_t in shared memory; a phase is waited for by its parity, the first
 * phase has 0, and waiting for 1 on a fresh one returns at once.
 */

#ifndef CU_PTX_CUH
#define CU_PTX_CUH

#include "cu_launch.cuh"
#include "cu_map.h"

/* Where lines that were read or written stay in L2. */

#define CU_KEEP_NORMAL  0x1000000000000000ull
#define CU_KEEP_FIRST   0x12f0000000000000ull      /* evict first */
#define CU_KEEP_LAST    0x14f0000000000000ull      /* evict last */


#ifdef CU_EMU

#include "emu_ptx.h"

#else

#define CU_FN  static __device__ __forceinline__


CU_FN uint32_t
cu_smem(const void *p)
{
    return (uint32_t) __cvta_generic_to_shared(p);
}


/* --- mbarriers --------------------------------------------------------- */

/* By one thread; cu_fence_init() and a barrier of the block follow. */

CU_FN void
cu_mbar_init(uint64_t *bar, uint32_t arrivals)
{
    asm volatile ("mbarrier.init.shared::cta.b64 [%0], %1;"
                  :: "r"(cu_smem(bar)), "r"(arrivals) : "memory");
}


CU_FN void
cu_fence_init(void)
{
    asm volatile ("fence.mbarrier_init.release.cluster;" ::: "memory");
}


CU_FN void
cu_mbar_arrive(uint64_t *bar)
{
    asm volatile ("mbarrier.arrive.shared::cta.b64 _, [%0];"
                  :: "r"(cu_smem(bar)) : "memory");
}


/* Arrives, and the phase waits for `bytes` of copies, too. */

CU_FN void
cu_mbar_expect(uint64_t *bar, uint32_t bytes)
{
    asm volatile ("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                  :: "r"(cu_smem(bar)), "r"(bytes) : "memory");
}


/* The phase waits for `bytes` of copies, without an arrival. */

CU_FN void
cu_mbar_expect_only(uint64_t *bar, uint32_t bytes)
{
    asm volatile ("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"
                  :: "r"(cu_smem(bar)), "r"(bytes) : "memory");
}


/* Whether the phase has passed; may wait for a while. */

CU_FN int
cu_mbar_test(uint64_t *bar, uint32_t parity)
{
    uint32_t  passed;

    asm volatile ("{\n"
                  "    .reg .pred p;\n"
                  "    mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                  "    selp.b32 %0, 1, 0, p;\n"
                  "}\n"
                  : "=r"(passed) : "r"(cu_smem(bar)), "r"(parity)
                  : "memory");

    return (int) passed;
}


CU_FN void
cu_mbar_wait(uint64_t *bar, uint32_t parity)
{
    while (!cu_mbar_test(bar, parity)) {
        /* void */
    }
}


/* --- named barriers and fences ----------------------------------------- */

/*
 * Barrier id 1 … 15 of `threads`, whole warps; sync waits, arrive does not, but
 * in a build for compute-sanitizer's racecheck, which does not know of it.
 */

CU_FN void
cu_named_sync(uint32_t id, uint32_t threads)
{
    asm volatile ("barrier.cta.sync %0, %1;" :: "r"(id), "r"(threads)
                  : "memory");
}


CU_FN void
cu_named_arrive(uint32_t id, uint32_t threads)
{
#ifdef CU_RACECHECK
    cu_named_sync(id, threads);
#else
    asm volatile ("barrier.cta.arrive %0, %1;" :: "r"(id), "r"(threads)
                  : "memory");
#endif
}


/*
 * Between ordinary stores to shared memory and their use by wgmma or by bulk
 * copies, in each storing thread, before the barrier.
 */

CU_FN void
cu_fence_async(void)
{
    asm volatile ("fence.proxy.async.shared::cta;" ::: "memory");
}


/* The same for global memory that bulk copies read. */

CU_FN void
cu_fence_async_global(void)
{
    asm volatile ("fence.proxy.async.global;" ::: "memory");
}


/* True in one lane of a warp that is whole here. */

CU_FN int
cu_elect(void)
{
    uint32_t  mine;

    asm volatile ("{\n"
                  "    .reg .pred p;\n"
                  "    elect.sync _|p, 0xffffffff;\n"
                  "    selp.b32 %0, 1, 0, p;\n"
                  "}\n"
                  : "=r"(mine));

    return (int) mine;
}


/* --- registers --------------------------------------------------------- */

/* Of all warps of a warpgroup; N is a multiple of 8, 24 to 256. */

template <int N>
CU_FN void
cu_regs_more(void)
{
    asm volatile ("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N));
}


template <int N>
CU_FN void
cu_regs_less(void)
{
    asm volatile ("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N));
}


/* --- bulk copies (TMA) ------------------------------------------------- */

CU_FN void
cu_map_prefetch(const CUtensorMap *map)
{
    asm volatile ("prefetch.tensormap [%0];"
                  :: "l"((uint64_t) map) : "memory");
}


/*
 * By the thread that copies by it, before: a map in global memory, written
 * from the host or by another kernel.  Maps that are parameters need none.
 */

CU_FN void
cu_map_acquire(const CUtensorMap *map)
{
    asm volatile ("fence.proxy.tensormap::generic.acquire.sys [%0], 128;"
                  :: "l"((uint64_t) map) : "memory");
}


/*
 * By one thread.  A box of the tensor at element c0 of the innermost
 * dimension, c1 of the next, … to `dst`, aligned to 128 bytes (1024 with the
 * swizzle); what is outside the tensor is zero, and counts: the box's whole
 * size is added to the bytes that `bar` has seen.
 */

CU_FN void
cu_tma_load_2d(void *dst, const CUtensorMap *map, uint64_t *bar, int c0,
    int c1, uint64_t keep = CU_KEEP_NORMAL)
{
    asm volatile ("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier"
                  "::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], "
                  "[%2], %5;"
                  :: "r"(cu_smem(dst)), "l"((uint64_t) map),
                     "r"(cu_smem(bar)), "r"(c0), "r"(c1), "l"(keep)
                  : "memory");
}


CU_FN void
cu_tma_load_3d(void *dst, const CUtensorMap *map, uint64_t *bar, int c0,
    int c1, int c2, uint64_t keep = CU_KEEP_NORMAL)
{
    asm volatile ("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier"
                  "::complete_tx::bytes.L2::cache_hint [%0], "
                  "[%1, {%3, %4, %5}], [%2], %6;"
                  :: "r"(cu_smem(dst)), "l"((uint64_t) map),
                     "r"(cu_smem(bar)), "r"(c0), "r"(c1), "r"(c2), "l"(keep)
                  : "memory");
}


/* Stores belong to the thread's open group; see cu_bulk_commit(). */

CU_FN void
cu_tma_store_2d(const CUtensorMap *map, const void *src, int c0, int c1)
{
    asm volatile ("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group "
                  "[%0, {%2, %3}], [%1];"
                  :: "l"((uint64_t) map), "r"(cu_smem(src)), "r"(c0), "r"(c1)
                  : "memory");
}


/* `bytes` and both addresses are multiples of 16. */

CU_FN void
cu_bulk_load(void *dst, const void *src, uint32_t bytes, uint64_t *bar,
    uint64_t keep = CU_KEEP_NORMAL)
{
    asm volatile ("cp.async.bulk.shared::cluster.global.mbarrier"
                  "::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
                  "%4;"
                  :: "r"(cu_smem(dst)),
                     "l"((uint64_t) __cvta_generic_to_global(src)),
                     "r"(bytes), "r"(cu_smem(bar)), "l"(keep)
                  : "memory");
}


/* To the L2: a hint.  `bytes` and the address are multiples of 16. */

CU_FN void
cu_bulk_prefetch(const void *src, uint32_t bytes)
{
    asm volatile ("cp.async.bulk.prefetch.L2.global [%0], %1;"
                  :: "l"((uint64_t) __cvta_generic_to_global(src)), "r"(bytes)
                  : "memory");
}


CU_FN void
cu_bulk_store(void *dst, const void *src, uint32_t bytes)
{
    asm volatile ("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], "
                  "%2;"
                  :: "l"((uint64_t) __cvta_generic_to_global(dst)),
                     "r"(cu_smem(src)), "r"(bytes)
                  : "memory");
}


CU_FN void
cu_bulk_commit(void)
{
    asm volatile ("cp.async.bulk.commit_group;" ::: "memory");
}


/* Until all but the last N groups of this thread's stores are done … */

template <int N>
CU_FN void
cu_bulk_wait(void)
{
    asm volatile ("cp.async.bulk.wait_group %0;" :: "n"(N) : "memory");
}


/* … or have read their sources, which may then be overwritten. */

template <int N>
CU_FN void
cu_bulk_wait_read(void)
{
    asm volatile ("cp.async.bulk.wait_group.read %0;" :: "n"(N) : "memory");
}


/* --- copies of 16 bytes by each thread --------------------------------- */

/* The first `bytes` (0 or 16) of them, zeros behind. */

CU_FN void
cu_copy16(void *dst, const void *src, uint32_t bytes = 16)
{
    asm volatile ("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                  :: "r"(cu_smem(dst)),
                     "l"((uint64_t) __cvta_generic_to_global(src)),
                     "r"(bytes)
                  : "memory");
}


CU_FN void
cu_copy_commit(void)
{
    asm volatile ("cp.async.commit_group;" ::: "memory");
}


template <int N>
CU_FN void
cu_copy_wait(void)
{
    asm volatile ("cp.async.wait_group %0;" :: "n"(N) : "memory");
}


/* This thread's arrival, one of those expected, when its copies are done. */

CU_FN void
cu_copy_arrive(uint64_t *bar)
{
    asm volatile ("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
                  :: "r"(cu_smem(bar)) : "memory");
}


/* --- loads and stores -------------------------------------------------- */

/* Read once, by nobody else: past the L1. */

CU_FN uint4
cu_load_once(const void *p)
{
    uint4  v;

    asm volatile ("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 "
                  "{%0, %1, %2, %3}, [%4];"
                  : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                  : "l"((uint64_t) __cvta_generic_to_global(p)));
    return v;
}


CU_FN void
cu_store_once(void *p, uint4 v)
{
    asm volatile ("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};"
                  :: "l"((uint64_t) __cvta_generic_to_global(p)),
                     "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}


/* Flags between blocks (gpu) and between devices (sys). */

CU_FN uint32_t
cu_load_acquire_gpu(const uint32_t *p)
{
    uint32_t  v;

    asm volatile ("ld.acquire.gpu.global.u32 %0, [%1];"
                  : "=r"(v) : "l"((uint64_t) __cvta_generic_to_global(p))
                  : "memory");
    return v;
}


CU_FN uint32_t
cu_load_acquire_sys(const uint32_t *p)
{
    uint32_t  v;

    asm volatile ("ld.acquire.sys.global.u32 %0, [%1];"
                  : "=r"(v) : "l"((uint64_t) __cvta_generic_to_global(p))
                  : "memory");
    return v;
}


CU_FN void
cu_store_release_gpu(uint32_t *p, uint32_t v)
{
    asm volatile ("st.release.gpu.global.u32 [%0], %1;"
                  :: "l"((uint64_t) __cvta_generic_to_global(p)), "r"(v)
                  : "memory");
}


CU_FN void
cu_store_release_sys(uint32_t *p, uint32_t v)
{
    asm volatile ("st.release.sys.global.u32 [%0], %1;"
                  :: "l"((uint64_t) __cvta_generic_to_global(p)), "r"(v)
                  : "memory");
}


CU_FN uint32_t
cu_add_acq_rel_gpu(uint32_t *p, uint32_t v)
{
    uint32_t  old;

    asm volatile ("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
                  : "=r"(old)
                  : "l"((uint64_t) __cvta_generic_to_global(p)), "r"(v)
                  : "memory");
    return old;
}


CU_FN void
cu_add_release_sys(uint32_t *p, uint32_t v)
{
    asm volatile ("red.add.release.sys.global.u32 [%0], %1;"
                  :: "l"((uint64_t) __cvta_generic_to_global(p)), "r"(v)
                  : "memory");
}


/* Nanoseconds, of a clock that only goes on, in steps of about 1000. */

CU_FN uint64_t
cu_timer(void)
{
    uint64_t  t;

    asm volatile ("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}


/* --- matrices of 8 x 8 of 2 bytes -------------------------------------- */

/*
 * Lane l gives the address of row l % 8 of matrix l / 8, 16 bytes aligned to
 * them; register i has elements 2 (l % 4) and the next one of row l / 4 of
 * matrix i, or with _t of its transpose.
 */

CU_FN void
cu_matrix_load_x4(uint32_t *r, const void *row)
{
    asm volatile ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 "
                  "{%0, %1, %2, %3}, [%4];"
                  : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                  : "r"(cu_smem(row)) : "memory");
}


CU_FN void
cu_matrix_load_x4_t(uint32_t *r, const void *row)
{
    asm volatile ("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 "
                  "{%0, %1, %2, %3}, [%4];"
                  : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                  : "r"(cu_smem(row)) : "memory");
}


CU_FN void
cu_matrix_store_x4(void *row, const uint32_t *r)
{
    asm volatile ("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], "
                  "{%1, %2, %3, %4};"
                  :: "r"(cu_smem(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                     "r"(r[3]) : "memory");
}


CU_FN void
cu_matrix_store_x4_t(void *row, const uint32_t *r)
{
    asm volatile ("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], "
                  "{%1, %2, %3, %4};"
                  :: "r"(cu_smem(row)), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                     "r"(r[3]) : "memory");
}


/* --- short floats ------------------------------------------------------ */

/* Two BF16, `lo` in the lower half; nearest even. */

CU_FN uint32_t
cu_pack_bf16(float lo, float hi)
{
    uint32_t  r;

    asm ("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));

    return r;
}


/* Four e4m3fn from the lowest byte on; nearest even, saturating. */

CU_FN uint32_t
cu_pack_e4m3(float a, float b, float c, float d)
{
    uint16_t  lo, hi;

    asm ("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
         : "=h"(lo) : "f"(b), "f"(a));
    asm ("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
         : "=h"(hi) : "f"(d), "f"(c));

    return (uint32_t) hi << 16 | lo;
}


/* Four e4m3fn as float32, exactly. */

CU_FN void
cu_e4m3x4(float *f, uint32_t v)
{
    uint32_t  lo, hi;

    asm ("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(lo) : "h"((uint16_t) v));
    asm ("cvt.rn.f16x2.e4m3x2 %0, %1;"
         : "=r"(hi) : "h"((uint16_t) (v >> 16)));
    asm ("{\n"
         "    .reg .b16 l, h;\n"
         "    mov.b32 {l, h}, %2;\n"
         "    cvt.f32.f16 %0, l;\n"
         "    cvt.f32.f16 %1, h;\n"
         "}\n" : "=f"(f[0]), "=f"(f[1]) : "r"(lo));
    asm ("{\n"
         "    .reg .b16 l, h;\n"
         "    mov.b32 {l, h}, %2;\n"
         "    cvt.f32.f16 %0, l;\n"
         "    cvt.f32.f16 %1, h;\n"
         "}\n" : "=f"(f[2]), "=f"(f[3]) : "r"(hi));
}


/* Two BF16 products, rounded to nearest even. */

CU_FN uint32_t
cu_mul_bf16(uint32_t a, uint32_t b)
{
    uint32_t  r;

    asm ("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));

    return r;
}


/* 2^x, to 2 units in the last place; of minus infinity, and near it, 0. */

CU_FN float
cu_exp2(float x)
{
    float  r;

    asm ("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));

    return r;
}


/* Bit by bit, what table bits of (a, b, c) say. */

template <int TABLE>
CU_FN uint32_t
cu_logic(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t  r;

    asm ("lop3.b32 %0, %1, %2, %3, %4;"
         : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(TABLE));

    return r;
}

#endif /* CU_EMU */

#include "cu_wgmma.cuh"

#endif /* CU_PTX_CUH */
