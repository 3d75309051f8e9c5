/*
 * cu_ptx.cuh for the emulator: the same names.
 */

#ifndef EMU_PTX_H
#define EMU_PTX_H

#include "cuda.h"
#include "emu.h"


#define CU_FN  static inline


typedef enum {
    EMU_BF16_SS, EMU_BF16_RS, EMU_E4M3_SS, EMU_E4M3_RS
} emu_product_t;

/* emu_async.cc */
void emu_mbar_init(uint64_t *bar, uint32_t arrivals);
void emu_mbar_arrive(uint64_t *bar, uint32_t expect, uint32_t arrivals);
int emu_mbar_test(const uint64_t *bar, uint32_t parity);
void emu_tma_load(void *dst, const CUtensorMap *map, uint64_t *bar,
    uint32_t rank, const int *c);
void emu_tma_store(const CUtensorMap *map, const void *src, uint32_t rank,
    const int *c);
void emu_bulk_load(void *dst, const void *src, uint32_t bytes,
    uint64_t *bar);
void emu_bulk_store(void *dst, const void *src, uint32_t bytes);
void emu_bulk_commit(void);
void emu_bulk_wait(uint32_t groups);
void emu_copy(void *dst, const void *src, uint32_t bytes);
void emu_copy_commit(void);
void emu_copy_wait(uint32_t groups);
void emu_copy_arrive(uint64_t *bar);
void emu_matrix_load(uint32_t *r, const void *row, int transpose);
void emu_matrix_store(void *row, const uint32_t *r, int transpose);

/* emu_wgmma.cc; `a` is a descriptor or four registers */
uint64_t emu_desc(const void *p, uint32_t next);
void emu_wgmma(emu_product_t type, uint32_t n, int ta, int tb, float *d,
    uint64_t desc_a, const uint32_t *a, uint64_t desc_b, int add);
void emu_wgmma_fence(void);
void emu_wgmma_commit(void);
void emu_wgmma_wait(uint32_t groups);


CU_FN void
cu_mbar_init(uint64_t *bar, uint32_t arrivals)
{
    emu_mbar_init(bar, arrivals);
}


CU_FN void
cu_fence_init(void)
{
}


CU_FN void
cu_mbar_arrive(uint64_t *bar)
{
    emu_mbar_arrive(bar, 0, 1);
}


CU_FN void
cu_mbar_expect(uint64_t *bar, uint32_t bytes)
{
    emu_mbar_arrive(bar, bytes, 1);
}


CU_FN void
cu_mbar_expect_only(uint64_t *bar, uint32_t bytes)
{
    emu_mbar_arrive(bar, bytes, 0);
}


CU_FN int
cu_mbar_test(uint64_t *bar, uint32_t parity)
{
    return emu_mbar_test(bar, parity);
}


CU_FN void
cu_mbar_wait(uint64_t *bar, uint32_t parity)
{
    (void) emu_shared_address(bar, 8, "mbarrier");
    emu_wait_phase(bar, parity);
}


CU_FN void
cu_named_sync(uint32_t id, uint32_t threads)
{
    emu_barrier(id, threads, 1);
}


CU_FN void
cu_named_arrive(uint32_t id, uint32_t threads)
{
    emu_barrier(id, threads, 0);
}


CU_FN void
cu_fence_async(void)
{
}


CU_FN void
cu_fence_async_global(void)
{
}


CU_FN int
cu_elect(void)
{
    (void) emu_warp(EMU_WARP_ELECT, 0xffffffff, 0);
    return emu_lane() == 0;
}


template <int N>
CU_FN void
cu_regs_more(void)
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "registers");
    emu_regs(N);
}


template <int N>
CU_FN void
cu_regs_less(void)
{
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "registers");
    emu_regs(N);
}


CU_FN void
cu_map_prefetch(const CUtensorMap *)
{
}


CU_FN void
cu_map_acquire(const CUtensorMap *)
{
}


CU_FN void
cu_tma_load_2d(void *dst, const CUtensorMap *map, uint64_t *bar, int c0,
    int c1, uint64_t = 0)
{
    int  c[2] = { c0, c1 };

    emu_tma_load(dst, map, bar, 2, c);
}


CU_FN void
cu_tma_load_3d(void *dst, const CUtensorMap *map, uint64_t *bar, int c0,
    int c1, int c2, uint64_t = 0)
{
    int  c[3] = { c0, c1, c2 };

    emu_tma_load(dst, map, bar, 3, c);
}


CU_FN void
cu_tma_store_2d(const CUtensorMap *map, const void *src, int c0, int c1)
{
    int  c[2] = { c0, c1 };

    emu_tma_store(map, src, 2, c);
}


CU_FN void
cu_bulk_load(void *dst, const void *src, uint32_t bytes, uint64_t *bar,
    uint64_t = 0)
{
    emu_bulk_load(dst, src, bytes, bar);
}


CU_FN void
cu_bulk_prefetch(const void *src, uint32_t bytes)
{
    if (bytes == 0 || bytes % 16 != 0 || (uintptr_t) src % 16 != 0) {
        emu_fatal("%u bytes from %p to the L2", bytes, src);
    }

    (void) *(const volatile uint8_t *) src;
    (void) ((const volatile uint8_t *) src)[bytes - 1];
}


CU_FN void
cu_bulk_store(void *dst, const void *src, uint32_t bytes)
{
    emu_bulk_store(dst, src, bytes);
}


CU_FN void
cu_bulk_commit(void)
{
    emu_bulk_commit();
}


template <int N>
CU_FN void
cu_bulk_wait(void)
{
    emu_bulk_wait(N);
}


template <int N>
CU_FN void
cu_bulk_wait_read(void)
{
    emu_bulk_wait(N);
}


CU_FN void
cu_copy16(void *dst, const void *src, uint32_t bytes = 16)
{
    emu_copy(dst, src, bytes);
}


CU_FN void
cu_copy_commit(void)
{
    emu_copy_commit();
}


template <int N>
CU_FN void
cu_copy_wait(void)
{
    emu_copy_wait(N);
}


CU_FN void
cu_copy_arrive(uint64_t *bar)
{
    emu_copy_arrive(bar);
}


CU_FN uint4
cu_load_once(const void *p)
{
    return *(const uint4 *) p;
}


CU_FN void
cu_store_once(void *p, uint4 v)
{
    *(uint4 *) p = v;
}


CU_FN uint64_t
cu_timer(void)
{
    return emu_timer();
}


/* A flag that is looked at lets others run. */

CU_FN uint32_t
cu_load_acquire_gpu(const uint32_t *p)
{
    emu_poll();
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}


CU_FN uint32_t
cu_load_acquire_sys(const uint32_t *p)
{
    emu_poll_far();
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}


CU_FN void
cu_store_release_gpu(uint32_t *p, uint32_t v)
{
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}


CU_FN void
cu_store_release_sys(uint32_t *p, uint32_t v)
{
    emu_release_far();
    __atomic_store_n(p, v, __ATOMIC_RELEASE);
}


CU_FN uint32_t
cu_add_acq_rel_gpu(uint32_t *p, uint32_t v)
{
    return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL);
}


CU_FN void
cu_add_release_sys(uint32_t *p, uint32_t v)
{
    emu_release_far();
    (void) __atomic_fetch_add(p, v, __ATOMIC_RELEASE);
}


CU_FN void
cu_matrix_load_x4(uint32_t *r, const void *row)
{
    emu_matrix_load(r, row, 0);
}


CU_FN void
cu_matrix_load_x4_t(uint32_t *r, const void *row)
{
    emu_matrix_load(r, row, 1);
}


CU_FN void
cu_matrix_store_x4(void *row, const uint32_t *r)
{
    emu_matrix_store(row, r, 0);
}


CU_FN void
cu_matrix_store_x4_t(void *row, const uint32_t *r)
{
    emu_matrix_store(row, r, 1);
}


CU_FN uint32_t
cu_pack_bf16(float lo, float hi)
{
    return (uint32_t) emu_to_bf16(hi) << 16 | emu_to_bf16(lo);
}


CU_FN uint32_t
cu_pack_e4m3(float a, float b, float c, float d)
{
    return emu_to_e4m3(a) | (uint32_t) emu_to_e4m3(b) << 8
           | (uint32_t) emu_to_e4m3(c) << 16
           | (uint32_t) emu_to_e4m3(d) << 24;
}


CU_FN void
cu_e4m3x4(float *f, uint32_t v)
{
    int  i;

    for (i = 0; i < 4; i++) {
        f[i] = emu_from_e4m3((uint8_t) (v >> 8 * i));
    }
}


CU_FN uint32_t
cu_mul_bf16(uint32_t a, uint32_t b)
{
    float  lo, hi;

    lo = emu_from_bf16((uint16_t) a) * emu_from_bf16((uint16_t) b);
    hi = emu_from_bf16((uint16_t) (a >> 16))
         * emu_from_bf16((uint16_t) (b >> 16));

    return cu_pack_bf16(lo, hi);
}


CU_FN float
cu_exp2(float x)
{
    float  r;

    r = exp2f(x);

    return r < FLT_MIN ? 0.0f : r;
}


template <int TABLE>
CU_FN uint32_t
cu_logic(uint32_t a, uint32_t b, uint32_t c)
{
    int       i;
    uint32_t  r;

    r = 0;

    for (i = 0; i < 8; i++) {
        if (TABLE >> i & 1) {
            r |= ((i & 4) ? a : ~a) & ((i & 2) ? b : ~b) & ((i & 1) ? c : ~c);
        }
    }

    return r;
}


/* --- cu_wgmma.cuh ------------------------------------------------------ */

CU_FN uint64_t
cu_desc_k(const void *p)
{
    return emu_desc(p, 16);
}


CU_FN uint64_t
cu_desc_mn(const void *p, uint32_t next)
{
    return emu_desc(p, next);
}


CU_FN uint64_t
cu_desc_plus(uint64_t desc, uint32_t bytes)
{
    if (bytes % 16 != 0 || (desc & 0x3fff) + bytes / 16 > 0x3fff) {
        emu_fatal("an operand %u bytes further on", bytes);
    }

    return desc + bytes / 16;
}


CU_FN void
cu_wgmma_fence(void)
{
    emu_wgmma_fence();
}


CU_FN void
cu_wgmma_commit(void)
{
    emu_wgmma_commit();
}


template <int N>
CU_FN void
cu_wgmma_wait(void)
{
    emu_wgmma_wait(N);
}


template <int N>
CU_FN void
cu_wgmma_hold(float *)
{
}


template <int N, int TA, int TB>
struct cu_wgmma_n {
    static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 128
                  || N == 256, "a product that cu_wgmma.cuh does not have");

    static void
    bf16(float *d, uint64_t a, uint64_t b, int add)
    {
        emu_wgmma(EMU_BF16_SS, N, TA, TB, d, a, NULL, b, add);
    }

    static void
    bf16_rs(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
        uint64_t b, int add)
    {
        uint32_t  a[4] = { a0, a1, a2, a3 };

        emu_wgmma(EMU_BF16_RS, N, 0, TB, d, 0, a, b, add);
    }

    static void
    e4m3(float *d, uint64_t a, uint64_t b, int add)
    {
        emu_wgmma(EMU_E4M3_SS, N, 0, 0, d, a, NULL, b, add);
    }

    static void
    e4m3_rs(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
        uint64_t b, int add)
    {
        uint32_t  a[4] = { a0, a1, a2, a3 };

        emu_wgmma(EMU_E4M3_RS, N, 0, 0, d, 0, a, b, add);
    }
};

#endif /* EMU_PTX_H */
