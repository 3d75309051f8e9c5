/*
 * Products of INT4 weights as integers, with AVX-512 VNNI: what half bytes
 * stand for are bytes, so all is as with INT8 but that 32 elements have a
 * scale.  Their sum is exact, becomes a float once, and is added to those of
 * the groups before: a chain for each output.
 *
 * Few rows make bytes of a line as they come to it.  For more, a piece of a
 * panel is made bytes in the L1 cache and all of them pass over it, their
 * chains going on from piece to piece through c.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_panels.h"
#include "backend/cpu/be_panels_int8.h"
#include "backend/cpu/be_simd.h"


#define INT4_FEW    4                /* rows */
#define INT4_ROWS   8                /* of a register tile */
#define INT4_STEPS  8                /* of four elements, in a group */
#define INT4_LINES  8                /* of codes, in 64 elements */
#define INT4_PIECE  1024             /* elements, a multiple of a chunk */
#define INT4_AHEAD  2048             /* bytes to prefetch */


/* A block's rows, 64 elements after the other, and the panel's. */

typedef struct {
    const uint8_t  *a;
    uint32_t        row;             /* in the block */
    const uint8_t  *w;               /* the chunk that they begin with */
    const uint8_t  *made;            /* bytes, or NULL */
    uint32_t        groups;          /* of 64 */
    int             first;           /* else sums are in c */
    float          *c;
    size_t          ldc;
    uint32_t        n;               /* outputs */
} int4_part_t;


/* Elements 4 i … of those a line holds, i < 2, as bytes with 128 added. */

BE_INLINE __m512i
int4_bytes(__m512i line, const uint32_t i)
{
    __m512i  levels;

    levels = _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128(
                                  (const __m128i *) be_quant_levels)),
                              _mm512_set1_epi32((int) 0x80808080));

    if (i == 1) {
        line = _mm512_srli_epi32(line, 4);
    }

    return _mm512_shuffle_epi8(levels, _mm512_and_si512(line,
                                           _mm512_set1_epi32(0x0f0f0f0f)));
}


BE_INLINE void
int4_rows(const int4_part_t *p, const uint32_t rows, const int made)
{
    vf_t            acc[INT4_ROWS], s, f;
    float           scale;
    int32_t         digit, total;
    __m512i         high[INT4_ROWS], low[INT4_ROWS], x;
    uint32_t        g, h, i, r;
    const uint8_t  *a, *own, *w, *code, *line;

    a = p->a + p->row * 64;
    own = p->a + INT8_SCALE + p->row * 4;
    w = p->w;
    line = p->made;

#pragma GCC unroll 8
    for (r = 0; r < rows; r++) {
        acc[r] = p->first ? vf_zero() : vf_loadn(p->c + r * p->ldc, p->n);
    }

    for (g = 0; g < 2 * p->groups; g++) {
        h = g % 2;
        s = vf_load_bf16(w + g % 4 * BE_PANEL * 2);
        code = w + be_quant_scales(BE_INT4) + g % 4 * (INT4_LINES / 2) * 64;

#pragma GCC unroll 8
        for (r = 0; r < rows; r++) {
            memcpy(&total, own + 64 + h * 64 + r * 4, 4);
            low[r] = _mm512_set1_epi32(total);
            high[r] = _mm512_setzero_si512();
        }

#pragma GCC unroll 8
        for (i = 0; i < INT4_STEPS; i++) {
            if (made) {
                x = _mm512_load_si512(line + i * 64);

            } else {
                x = _mm512_loadu_si512(code + i / 2 * 64);
                x = int4_bytes(x, i % 2);

                if (i % 2 == 0) {
                    _mm_prefetch(code + i / 2 * 64 + INT4_AHEAD,
                                 _MM_HINT_T0);
                }
            }

#pragma GCC unroll 8
            for (r = 0; r < rows; r++) {
                memcpy(&digit, a + r * 64 + h * 32 + i * 4, 4);
                high[r] = _mm512_dpbusd_epi32(high[r], x,
                                              _mm512_set1_epi32(digit));

                memcpy(&digit, a + INT8_LOW + r * 64 + h * 32 + i * 4, 4);
                low[r] = _mm512_dpbusd_epi32(low[r], x,
                                             _mm512_set1_epi32(digit));
            }
        }

#pragma GCC unroll 8
        for (r = 0; r < rows; r++) {
            f = _mm512_cvtepi32_ps(_mm512_add_epi32(
                    _mm512_slli_epi32(high[r], 8), low[r]));
            memcpy(&scale, own + r * 4, 4);
            acc[r] = vf_fma(f, vf_mul(s, vf_set1(scale)), acc[r]);
        }

        line += made ? INT4_STEPS * 64 : 0;
        a += h * INT8_BLOCK;
        own += h * INT8_BLOCK;
        w += (g % 4 == 3) ? be_quant_chunk(BE_INT4) : 0;
    }

#pragma GCC unroll 8
    for (r = 0; r < rows; r++) {
        vf_storen(p->c + r * p->ldc, acc[r], p->n);
    }
}


static void
int4_few(const int4_part_t *p, uint32_t rows)
{
    switch (rows) {
    case 1:
        int4_rows(p, 1, 0);
        break;
    case 2:
        int4_rows(p, 2, 0);
        break;
    case 3:
        int4_rows(p, 3, 0);
        break;
    default:
        int4_rows(p, INT4_FEW, 0);
        break;
    }
}


/* 1 … 4 rows, or INT4_ROWS. */

static void
int4_many(const int4_part_t *p, uint32_t rows)
{
    switch (rows) {
    case 1:
        int4_rows(p, 1, 1);
        break;
    case 2:
        int4_rows(p, 2, 1);
        break;
    case 3:
        int4_rows(p, 3, 1);
        break;
    case 4:
        int4_rows(p, 4, 1);
        break;
    default:
        int4_rows(p, INT4_ROWS, 1);
        break;
    }
}


/* `groups` of 64 elements, from the beginning of a chunk on. */

static void
int4_make(const uint8_t *w, uint32_t groups, uint8_t *made)
{
    __m512i         line;
    uint32_t        g, i;
    const uint8_t  *code;

    for (g = 0; g < groups; g++) {
        code = w + be_quant_scales(BE_INT4) + g % 2 * INT4_LINES * 64;

        for (i = 0; i < INT4_LINES; i++) {
            _mm_prefetch(code + i * 64 + INT4_AHEAD, _MM_HINT_T0);
            line = _mm512_loadu_si512(code + i * 64);
            _mm512_store_si512(made, int4_bytes(line, 0));
            _mm512_store_si512(made + 64, int4_bytes(line, 1));
            made += 128;
        }

        w += g % 2 * be_quant_chunk(BE_INT4);
    }
}


/* All rows of `act`, from its first block on, by a panel. */

static void
int4_panel(const uint8_t *act, uint32_t k, uint32_t m, const int4_part_t *all)
{
    size_t          block;
    uint8_t         made[INT4_PIECE * BE_PANEL] __attribute__((aligned(64)));
    uint32_t        l, i, left, rows, groups;
    int4_part_t     p;

    p = *all;
    groups = (k + INT8_GROUP - 1) / INT8_GROUP;
    block = be_panels_int8_size(BE_ROW_BLOCK, k);
    p.first = 1;

    if (m <= INT4_FEW) {
        p.a = act;
        p.row = 0;
        p.groups = groups;
        int4_few(&p, m);
        return;
    }

    p.made = made;

    for (l = 0; l < groups; l += p.groups) {
        p.groups = (groups - l < INT4_PIECE / INT8_GROUP)
                    ? groups - l : INT4_PIECE / INT8_GROUP;
        p.w = all->w + l / 2 * be_quant_chunk(BE_INT4);
        p.first = (l == 0);
        int4_make(p.w, p.groups, made);

        for (i = 0; i < m; i += rows) {
            left = BE_ROW_BLOCK - i % BE_ROW_BLOCK;
            left = (m - i < left) ? m - i : left;
            rows = (left >= INT4_ROWS) ? INT4_ROWS : (left < 4) ? left : 4;

            p.a = act + i / BE_ROW_BLOCK * block + (size_t) l * INT8_BLOCK;
            p.row = i % BE_ROW_BLOCK;
            p.c = all->c + i * p.ldc;
            int4_many(&p, rows);
        }
    }
}


BE_PANEL_PRODUCT(be_panels_vnni_int4)
{
    uint32_t      j;
    int4_part_t   p;

    act = (const uint8_t *) act
          + row / BE_ROW_BLOCK * be_panels_int8_size(BE_ROW_BLOCK, k);

    for (j = 0; j < n; j += BE_PANEL) {
        p.w = w;
        p.made = NULL;
        p.c = c + j;
        p.ldc = ldc;
        p.n = (n - j < BE_PANEL) ? n - j : BE_PANEL;

        int4_panel(act, k, m, &p);
        w += ldw;
    }
}

#else

typedef int be_panels_int4_none_t;

#endif
