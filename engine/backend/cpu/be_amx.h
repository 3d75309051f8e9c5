/*
 * The matrix unit (AMX), for the files that use it: its sizes and its
 * instructions.  How the tiles are used is in be_kernels_amx_avx512bf16.c.
 */

#ifndef BE_AMX_H
#define BE_AMX_H

#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_simd.h"


#define AMX_ROWS  16
#define AMX_K     32                 /* elements */
#define AMX_TILE  1024               /* bytes */

#define AMX_TILES_B  6               /* tiles from here on are B */


/*
 * The instructions, as statements that read and write memory: the compilers'
 * own intrinsics do not all say so.
 */

#define amx_zero(t)                                                          \
    __asm__ volatile ("tilezero %%tmm" #t : : )

#define amx_tile_load(t, from, ld)                                           \
    __asm__ volatile ("tileloadd (%0, %1, 1), %%tmm" #t                      \
                      : : "r" (from), "r" ((size_t) (ld)) : "memory")

#define amx_tile_store(t, to, ld)                                            \
    __asm__ volatile ("tilestored %%tmm" #t ", (%0, %1, 1)"                  \
                      : : "r" (to), "r" ((size_t) (ld)) : "memory")

#define amx_dot(c, a, b)                                                     \
    __asm__ volatile ("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : )

#define amx_dot_int8(c, a, b)                                                \
    __asm__ volatile ("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : )


/* Each thread configures its tiles before it uses them, once. */
void be_amx_configure(void);

/* The same but A and C of so few rows; to be undone with AMX_ROWS. */
void be_amx_configure_rows(uint32_t rows);

/* Attention's functions of the kernel table. */
size_t be_amx_run_size(uint32_t queries, uint32_t dim);
void be_amx_run(const be_run_t *run);


/* r[i] becomes column i of the 16 x 16 words that were the rows r[]. */

BE_INLINE void
amx_transpose(__m512i *r)
{
    __m512i   t[16], a, b, c, d;
    uint32_t  i;

#pragma GCC unroll 8
    for (i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }

#pragma GCC unroll 4
    for (i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }

    /* r[4 g + j] now has in quarter l column 4 l + j of rows 4 g … + 3. */

#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        a = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x44);
        b = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xee);
        c = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x44);
        d = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xee);

        r[i] = _mm512_shuffle_i32x4(a, c, 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(a, c, 0xdd);
        r[i + 8] = _mm512_shuffle_i32x4(b, d, 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
}

#endif /* BE_AMX_H */
