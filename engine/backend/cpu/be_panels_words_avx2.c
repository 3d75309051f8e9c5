/*
 * Products of INT8 and INT4 weights as integers, with AVX2: vpmaddwd
 * multiplies words and adds neighbours, twice the products of a fused
 * multiply-add on floats.
 *
 * A register of codes is eight outputs by four elements.  Its even bytes and
 * its odd ones become words, each meets two elements of an activation
 * (be_panels_words.h), and both are added to the outputs' sums.  The sum over
 * a scale's elements is exact; it becomes a float once, and floats are summed
 * in order: a chain of fused multiply-adds for each output.  So the bits are
 * those of the products with VNNI and on the matrix unit.
 *
 * Few rows make words of codes as they come to them.  For more, a piece of a
 * panel is made words in the L1 cache and all of them pass over it, their
 * chains going on from piece to piece through c.
 */

#if defined(__x86_64__)

#include <math.h>

#include "backend/cpu/be_panels_words.h"
#include "backend/cpu/be_simd.h"


#define WORDS_TOP    32512.0f        /* 256 * 127 */
#define WORDS_SMALL  0x1p-100f       /* groups of less are zero */
#define WORDS_BAD    0x7f800000u     /* bits: not finite */
#define WORDS_ROWS   4               /* of a register tile */
#define WORDS_PIECE  4               /* groups made words, whole chunks */
#define WORDS_AHEAD  2112            /* bytes to prefetch */


/* Rows by a panel, 64 elements after the other. */

typedef struct {
    const uint8_t  *a;
    size_t          lda;
    const uint8_t  *w;               /* the chunk that they begin with */
    const __m256i  *made;            /* words, or NULL */
    uint32_t        groups;          /* of 64 elements */
    int             first;           /* else sums are in c */
    float          *c;
    size_t          ldc;
    uint32_t        n;               /* outputs */
} words_part_t;


static void words_pack_group(uint8_t *to, const float *x, uint32_t n);


size_t
be_panels_words_size(uint32_t rows, uint32_t k)
{
    return (size_t) rows * (((size_t) k + WORDS_GROUP - 1) / WORDS_GROUP)
           * WORDS_BLOCK;
}


void
be_panels_words_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint8_t   *to;
    uint32_t   i, j;

    for (i = 0; i < m; i++) {
        to = (uint8_t *) act + be_panels_words_size(row + i, k)
             + (size_t) (col / WORDS_GROUP) * WORDS_BLOCK;

        for (j = 0; j < n; j += WORDS_GROUP) {
            words_pack_group(to, x[i] + j, n - j);
            to += WORDS_BLOCK;
        }
    }
}


/*
 * 64 of a row, of which n are there.  What is not finite, by the bits larger
 * than anything that is, makes the scale, and so the row's products, not a
 * number.
 */

static void
words_pack_group(uint8_t *to, const float *x, uint32_t n)
{
    vf_t      v[8];
    float     most, scale, times;
    __m128i   half;
    __m256i   a, top;
    uint32_t  i, bits;

    top = _mm256_setzero_si256();

#pragma GCC unroll 8
    for (i = 0; i < 8; i++) {
        v[i] = (n >= (i + 1) * VL) ? vf_load(x + i * VL)
             : (n > i * VL) ? vf_loadn(x + i * VL, n - i * VL) : vf_zero();
        top = _mm256_max_epu32(top, _mm256_and_si256(
                                        _mm256_castps_si256(v[i]),
                                        _mm256_set1_epi32(0x7fffffff)));
    }

    half = _mm_max_epu32(_mm256_castsi256_si128(top),
                         _mm256_extracti128_si256(top, 1));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0x4e));
    half = _mm_max_epu32(half, _mm_shuffle_epi32(half, 0xb1));
    bits = (uint32_t) _mm_cvtsi128_si32(half);
    memcpy(&most, &bits, 4);

    scale = most * (1.0f / WORDS_TOP);
    times = WORDS_TOP / most;

    if (bits >= WORDS_BAD) {
        scale = NAN;
        times = 0.0f;

    } else if (most < WORDS_SMALL) {
        scale = 0.0f;
        times = 0.0f;
    }

    /* Not a number times zero is none: as an integer it is far out. */

#pragma GCC unroll 4
    for (i = 0; i < 8; i += 2) {
        a = _mm256_packs_epi32(
                _mm256_cvtps_epi32(vf_mul(v[i], vf_set1(times))),
                _mm256_cvtps_epi32(vf_mul(v[i + 1], vf_set1(times))));
        a = _mm256_permute4x64_epi64(a, 0xd8);
        a = _mm256_shufflelo_epi16(a, 0xd8);
        a = _mm256_shufflehi_epi16(a, 0xd8);

        _mm256_storeu_si256((__m256i *) (to + i * 16), a);
    }

    memset(to + WORDS_SCALE, 0, WORDS_BLOCK - WORDS_SCALE);
    memcpy(to + WORDS_SCALE, &scale, 4);
}


/* Bytes as words: the even ones of each, the odd ones. */

BE_INLINE void
words_make(__m256i x, __m256i *w)
{
    w[0] = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
    w[1] = _mm256_srai_epi16(x, 8);
}


/*
 * Four elements of 16 outputs as words: even and odd of the first eight
 * outputs, then of the others.  They are the j-th four, j < 2, of the eight
 * that begin at `code`.
 */

BE_INLINE void
words_codes(const uint8_t *code, const uint32_t j, __m256i *w,
    const be_dtype_t dtype)
{
    __m256i   x, levels;
    uint32_t  v;

    levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(
                 (const __m128i *) be_quant_levels));

#pragma GCC unroll 2
    for (v = 0; v < 2; v++) {
        if (dtype == BE_INT8) {
            x = _mm256_loadu_si256((const __m256i *)
                                   (code + j * 64 + v * 32));

        } else {
            x = _mm256_loadu_si256((const __m256i *) (code + v * 32));
            x = (j == 0) ? x : _mm256_srli_epi16(x, 4);
            x = _mm256_shuffle_epi8(levels, _mm256_and_si256(x,
                                        _mm256_set1_epi8(0x0f)));
        }

        words_make(x, w + 2 * v);
    }
}


/* The codes of a group, and of its outputs' first scale. */

BE_INLINE const uint8_t *
words_group(const uint8_t *w, uint32_t g, const be_dtype_t dtype)
{
    return w + g / 2 * be_quant_chunk(dtype) + be_quant_scales(dtype)
           + g % 2 * (be_quant_chunk(dtype) - be_quant_scales(dtype)) / 2;
}


BE_INLINE const uint8_t *
words_scale(const uint8_t *w, uint32_t g, const be_dtype_t dtype)
{
    return w + g / 2 * be_quant_chunk(dtype)
           + g % 2 * be_quant_scales(dtype) / 2;
}


BE_INLINE void
words_ask(const uint8_t *code, const uint32_t j, const be_dtype_t dtype)
{
    if (dtype == BE_INT8 || j == 0) {
        _mm_prefetch(code + j * 64 + WORDS_AHEAD, _MM_HINT_T0);
    }
}


/*
 * Sums of words must stay the chains that they are: regrouped, as a compiler
 * may do with integers, they do not fit into the registers.
 */

BE_INLINE __m256i
words_add(__m256i sum, __m256i w, __m256i x)
{
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
    __asm__("" : "+x" (sum));

    return sum;
}


/* Two words in all lanes, by a load that needs no other unit. */

BE_INLINE __m256i
words_two(const uint8_t *a)
{
    return _mm256_castps_si256(_mm256_broadcast_ss((const float *)
                                                   (const void *) a));
}


/* Four elements of each row. */

BE_INLINE void
words_dot(const uint8_t *a, size_t lda, const __m256i *w,
    __m256i (*sum)[2], const uint32_t rows)
{
    __m256i   x;
    uint32_t  r;

#pragma GCC unroll 4
    for (r = 0; r < rows; r++) {
        x = words_two(a + r * lda);
        sum[r][0] = words_add(sum[r][0], w[0], x);
        sum[r][1] = words_add(sum[r][1], w[2], x);

        x = words_two(a + r * lda + 4);
        sum[r][0] = words_add(sum[r][0], w[1], x);
        sum[r][1] = words_add(sum[r][1], w[3], x);
    }
}


BE_INLINE vf_t
words_loadn(const float *c, uint32_t n)
{
    return (n >= VL) ? vf_load(c) : (n > 0) ? vf_loadn(c, n) : vf_zero();
}


BE_INLINE void
words_storen(float *c, vf_t x, uint32_t n)
{
    if (n >= VL) {
        vf_store(c, x);

    } else if (n > 0) {
        vf_storen(c, x, n);
    }
}


/* `rows` rows; an output has `parts` scales for a group. */

BE_INLINE void
words_tile(const words_part_t *p, const uint32_t rows,
    const be_dtype_t dtype, const int made)
{
    vf_t            acc[WORDS_ROWS][2], s[2];
    float           scale;
    __m256i         sum[WORDS_ROWS][2], w[4];
    uint32_t        g, h, i, j, r, v, lanes[2];
    const uint8_t  *a, *code, *scales;
    const __m256i  *line;
    const uint32_t  parts = (dtype == BE_INT4) ? 2 : 1;
    const uint32_t  eight = (dtype == BE_INT4) ? 64 : 128;   /* elements */

    a = p->a;
    line = p->made;
    lanes[0] = p->n;
    lanes[1] = (p->n > VL) ? p->n - VL : 0;

#pragma GCC unroll 4
    for (r = 0; r < rows; r++) {
#pragma GCC unroll 2
        for (v = 0; v < 2; v++) {
            acc[r][v] = p->first ? vf_zero()
                        : words_loadn(p->c + r * p->ldc + v * VL, lanes[v]);
        }
    }

    for (g = 0; g < p->groups; g++) {
        code = words_group(p->w, g, dtype);
        scales = words_scale(p->w, g, dtype);

#pragma GCC unroll 2
        for (h = 0; h < parts; h++) {

#pragma GCC unroll 4
            for (r = 0; r < rows; r++) {
                sum[r][0] = _mm256_setzero_si256();
                sum[r][1] = _mm256_setzero_si256();
            }

            for (i = h * 8 / parts; i < (h + 1) * 8 / parts; i++) {
#pragma GCC unroll 2
                for (j = 0; j < 2; j++) {
                    if (made) {
                        w[0] = line[0];
                        w[1] = line[1];
                        w[2] = line[2];
                        w[3] = line[3];
                        line += 4;

                    } else {
                        words_codes(code + i * eight, j, w, dtype);
                        words_ask(code + i * eight, j, dtype);
                    }

                    words_dot(a + i * 16 + j * 8, p->lda, w, sum, rows);
                }
            }

            s[0] = vf_load_bf16(scales + h * BE_PANEL * 2);
            s[1] = vf_load_bf16(scales + h * BE_PANEL * 2 + VL * 2);

#pragma GCC unroll 4
            for (r = 0; r < rows; r++) {
                memcpy(&scale, a + r * p->lda + WORDS_SCALE, 4);

#pragma GCC unroll 2
                for (v = 0; v < 2; v++) {
                    acc[r][v] = vf_fma(_mm256_cvtepi32_ps(sum[r][v]),
                                       vf_mul(s[v], vf_set1(scale)),
                                       acc[r][v]);
                }
            }
        }

        a += WORDS_BLOCK;
    }

#pragma GCC unroll 4
    for (r = 0; r < rows; r++) {
#pragma GCC unroll 2
        for (v = 0; v < 2; v++) {
            words_storen(p->c + r * p->ldc + v * VL, acc[r][v], lanes[v]);
        }
    }
}


BE_INLINE void
words_rows(const words_part_t *p, uint32_t rows, const be_dtype_t dtype,
    const int made)
{
    switch (rows) {
    case 1:
        words_tile(p, 1, dtype, made);
        break;
    case 2:
        words_tile(p, 2, dtype, made);
        break;
    case 3:
        words_tile(p, 3, dtype, made);
        break;
    default:
        words_tile(p, WORDS_ROWS, dtype, made);
        break;
    }
}


/* All rows by a panel. */

BE_INLINE void
words_panel(const words_part_t *all, uint32_t m, const be_dtype_t dtype)
{
    __m256i         made[WORDS_PIECE * 16 * 4];
    uint32_t        l, g, i, rows;
    const uint8_t  *code, *at;
    words_part_t    p;
    const uint32_t  eight = (dtype == BE_INT4) ? 64 : 128;

    p = *all;

    if (m <= WORDS_ROWS) {
        words_rows(&p, m, dtype, 0);
        return;
    }

    p.made = made;

    for (l = 0; l < all->groups; l += p.groups) {
        p.groups = (all->groups - l < WORDS_PIECE) ? all->groups - l
                                                   : WORDS_PIECE;
        p.w = all->w + l / 2 * be_quant_chunk(dtype);
        p.first = (l == 0);

        for (g = 0; g < p.groups; g++) {
            code = words_group(p.w, g, dtype);

            for (i = 0; i < 16; i++) {
                at = code + i / 2 * eight;
                words_ask(at, i % 2, dtype);
                words_codes(at, i % 2, made + (g * 16 + i) * 4, dtype);
            }
        }

        for (i = 0; i < m; i += rows) {
            rows = (m - i < WORDS_ROWS) ? m - i : WORDS_ROWS;

            p.a = all->a + i * p.lda + (size_t) l * WORDS_BLOCK;
            p.c = all->c + i * p.ldc;
            words_rows(&p, rows, dtype, 1);
        }
    }
}


BE_INLINE void
words_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const be_dtype_t dtype)
{
    uint32_t      j;
    words_part_t  p;

    memset(&p, 0, sizeof(p));
    p.lda = be_panels_words_size(1, k);
    p.a = (const uint8_t *) act + row * p.lda;
    p.groups = (k + WORDS_GROUP - 1) / WORDS_GROUP;
    p.first = 1;
    p.ldc = ldc;

    for (j = 0; j < n; j += BE_PANEL) {
        p.w = w;
        p.c = c + j;
        p.n = (n - j < BE_PANEL) ? n - j : BE_PANEL;

        words_panel(&p, m, dtype);
        w += ldw;
    }
}


BE_PANEL_PRODUCT(be_panels_words_int8)
{
    words_product(act, k, row, m, w, ldw, n, c, ldc, BE_INT8);
}


BE_PANEL_PRODUCT(be_panels_words_int4)
{
    words_product(act, k, row, m, w, ldw, n, c, ldc, BE_INT4);
}

#else

typedef int be_panels_words_none_t;

#endif
