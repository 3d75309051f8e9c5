/*
 * Products with F8E4M3 weights: AVX-512 with BF16.
 *
 * A code is a number of BF16 as it is, so a chunk's products are summed
 * without its scale, and the sum times that is added to those of the chunks
 * before.  Bytes become words by unpacking, four elements of an output side
 * by side; an activation's four are broadcast together.  So two lanes sum an
 * output, one the elements 0 and 1 of each four, one the others, and are
 * added at the end of the chunk.
 *
 * Few rows make words of a line as they come to it.  For more, a piece of a
 * panel is made words in the L1 cache and all of them pass over it, their
 * sums going on from piece to piece through c.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_bf16.h"
#include "backend/cpu/be_panels.h"


#define F8_FEW    4                  /* rows */
#define F8_ROWS   8                  /* of a register tile */
#define F8_PIECE  512                /* elements, a multiple of a chunk */
#define F8_AHEAD  4224               /* bytes to prefetch, a page and more */


/* Rows and a panel, from the first element of a chunk on. */

typedef struct {
    const uint16_t  *a;
    size_t           lda;
    const uint8_t   *w;
    const uint8_t   *made;           /* words, or NULL */
    uint32_t         k;              /* elements, a multiple of 4 */
    int              first;          /* else sums are in c */
    float           *c;
    size_t           ldc;
    uint32_t         n;              /* outputs */
} f8_part_t;


/*
 * The codes in both bytes of words, as BF16 times 2^-8.  Those with an
 * exponent of zero come from a table: 0 … 7 times 2^-17.
 */

BE_INLINE __m512i
f8_words(__m512i x)
{
    __m512i    y, small;
    __mmask32  none;

    small = _mm512_broadcast_i32x4(_mm_setr_epi16(0, 0x3700, 0x3780, 0x37c0,
                                                  0x3800, 0x3820, 0x3840,
                                                  0x3860));

    /* (x >> 4 & mask) | base, then the sign */

    y = _mm512_ternarylogic_epi32(_mm512_srli_epi16(x, 4),
                                  _mm512_set1_epi16(0x07f0),
                                  _mm512_set1_epi16(0x3800), 0xea);
    none = _mm512_testn_epi16_mask(x, _mm512_set1_epi16(0x7800));
    y = _mm512_mask_permutexvar_epi16(y, none, x, small);

    return _mm512_ternarylogic_epi32(y, x,
                                     _mm512_set1_epi16((short) 0x8000), 0xf8);
}


/* Outputs 0, 1 and 2, 3 of each four; a line holds four elements. */

BE_INLINE void
f8_line(const uint8_t *code, __m512i *w)
{
    __m512i  x;

    _mm_prefetch(code + F8_AHEAD, _MM_HINT_T0);

    x = _mm512_loadu_si512(code);
    w[0] = f8_words(_mm512_unpacklo_epi8(x, x));
    w[1] = f8_words(_mm512_unpackhi_epi8(x, x));
}


/* The sum of an output's two lanes, in order of the outputs. */

BE_INLINE vf_t
f8_sum(vf_t a, vf_t b)
{
    return vf_add(_mm512_shuffle_ps(a, b, 0x88),
                  _mm512_shuffle_ps(a, b, 0xdd));
}


BE_INLINE void
f8_rows(const f8_part_t *p, const uint32_t rows, const int made)
{
    vf_t            acc[F8_ROWS], sum[F8_ROWS][2], s;
    __m512i         w[2], x;
    int64_t         four;
    uint32_t        l, t, end, r;
    const uint8_t  *chunk, *line;

    chunk = p->w;
    line = p->made;

#pragma GCC unroll 8
    for (r = 0; r < rows; r++) {
        acc[r] = p->first ? vf_zero() : vf_loadn(p->c + r * p->ldc, p->n);
    }

    for (l = 0; l < p->k; l += BE_CHUNK) {
        end = (p->k - l < BE_CHUNK) ? p->k - l : BE_CHUNK;

#pragma GCC unroll 8
        for (r = 0; r < rows; r++) {
            sum[r][0] = vf_zero();
            sum[r][1] = vf_zero();
        }

        for (t = 0; t < end; t += 4) {
            if (made) {
                w[0] = _mm512_load_si512(line);
                w[1] = _mm512_load_si512(line + 64);
                line += 128;

            } else {
                f8_line(chunk + be_quant_scales(BE_F8E4M3) + t * BE_PANEL, w);
            }

#pragma GCC unroll 8
            for (r = 0; r < rows; r++) {
                memcpy(&four, p->a + r * p->lda + l + t, sizeof(four));
                x = _mm512_set1_epi64(four);

                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh) x,
                                             (__m512bh) w[0]);
                sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh) x,
                                             (__m512bh) w[1]);
            }
        }

        s = vf_mul(vf_load(chunk), vf_set1(256.0f));

#pragma GCC unroll 8
        for (r = 0; r < rows; r++) {
            acc[r] = vf_fma(f8_sum(sum[r][0], sum[r][1]), s, acc[r]);
        }

        chunk += be_quant_chunk(BE_F8E4M3);
    }

#pragma GCC unroll 8
    for (r = 0; r < rows; r++) {
        vf_storen(p->c + r * p->ldc, acc[r], p->n);
    }
}


static void
f8_few(const f8_part_t *p, uint32_t rows)
{
    switch (rows) {
    case 1:
        f8_rows(p, 1, 0);
        break;
    case 2:
        f8_rows(p, 2, 0);
        break;
    case 3:
        f8_rows(p, 3, 0);
        break;
    default:
        f8_rows(p, F8_FEW, 0);
        break;
    }
}


/* More than F8_FEW: in equal parts none is smaller than 4. */

static void
f8_many(const f8_part_t *p, uint32_t rows)
{
    switch (rows) {
    case 4:
        f8_rows(p, 4, 1);
        break;
    case 5:
        f8_rows(p, 5, 1);
        break;
    case 6:
        f8_rows(p, 6, 1);
        break;
    case 7:
        f8_rows(p, 7, 1);
        break;
    default:
        f8_rows(p, F8_ROWS, 1);
        break;
    }
}


static void
f8_make(const uint8_t *chunk, uint32_t k, uint8_t *made)
{
    __m512i   w[2];
    uint32_t  l;

    for (l = 0; l < k; l += 4) {
        f8_line(chunk + be_quant_scales(BE_F8E4M3)
                + l % BE_CHUNK * BE_PANEL, w);
        _mm512_store_si512(made, w[0]);
        _mm512_store_si512(made + 64, w[1]);
        made += 128;

        chunk += (l % BE_CHUNK == BE_CHUNK - 4) ? be_quant_chunk(BE_F8E4M3)
                                                : 0;
    }
}


/* m rows by a panel. */

static void
f8_panel(uint32_t m, const f8_part_t *all)
{
    uint8_t    made[F8_PIECE * BE_PANEL * 2] __attribute__((aligned(64)));
    uint32_t   l, i, rows, tiles;
    f8_part_t  p;

    p = *all;

    if (m <= F8_FEW) {
        f8_few(&p, m);
        return;
    }

    p.made = made;

    for (l = 0; l < all->k; l += F8_PIECE) {
        p.k = (all->k - l < F8_PIECE) ? all->k - l : F8_PIECE;
        p.w = all->w + l / BE_CHUNK * be_quant_chunk(BE_F8E4M3);
        p.first = (l == 0);
        f8_make(p.w, p.k, made);

        tiles = (m + F8_ROWS - 1) / F8_ROWS;

        for (i = 0; i < m; i += rows, tiles--) {
            rows = (m - i + tiles - 1) / tiles;
            p.a = all->a + i * all->lda + l;
            p.c = all->c + i * all->ldc;
            f8_many(&p, rows);
        }
    }
}


BE_PANEL_PRODUCT(be_panels_avx512bf16_f8)
{
    uint32_t   j;
    f8_part_t  p;

    p.lda = simd_padded(k, BF16_PAD);
    p.a = (const uint16_t *) act + row * p.lda;
    p.made = NULL;
    p.k = (uint32_t) p.lda;
    p.first = 1;
    p.ldc = ldc;

    for (j = 0; j < n; j += BE_PANEL) {
        p.w = w;
        p.c = c + j;
        p.n = (n - j < BE_PANEL) ? n - j : BE_PANEL;

        f8_panel(m, &p);
        w += ldw;
    }
}

#else

typedef int be_panels_avx512bf16_none_t;

#endif
