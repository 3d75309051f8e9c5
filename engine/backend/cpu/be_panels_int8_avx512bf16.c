/*
 * Products of INT8 weights as integers: AVX-512 VNNI, and the matrix unit.
 *
 * A group of an activation (be_panels_int8.h) is one of the weights' scales,
 * and its 16 lines of codes are a tile B.  The group's sum is exact; it becomes
 * a float once, and floats are summed over the groups in order: a chain of
 * fused multiply-adds for each output.  So few rows on the vector unit and many
 * on the matrix unit give the same bits, and neither has to make the weights
 * into anything else.  Where there is no matrix unit all rows go over vectors,
 * and to the same bits.
 *
 * The tile registers: 0 … 3 are C, both digits of two groups; 4 and 5 are A;
 * 6 is B.
 */

#if defined(__x86_64__)

#include <math.h>

#include "backend/cpu/be_amx.h"
#include "backend/cpu/be_panels.h"
#include "backend/cpu/be_panels_int8.h"


#define INT8_TOP     32512.0f                    /* 256 * 127 */
#define INT8_SMALL   0x1p-100f                   /* groups of less are zero */
#define INT8_BAD     0x7f800000u                 /* bits: not finite */
#define INT8_AHEAD   2048                        /* bytes to prefetch */
#define INT8_ROWS    8                           /* of vectors together */
#define INT8_FEW     3                           /* rows that have two chains */


static void int8_pack_group(uint8_t *to, uint32_t row, const float *x,
    uint32_t n);


size_t
be_panels_int8_size(uint32_t rows, uint32_t k)
{
    return ((size_t) rows + AMX_ROWS - 1) / AMX_ROWS
           * (((size_t) k + INT8_GROUP - 1) / INT8_GROUP) * INT8_BLOCK;
}


void
be_panels_int8_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint8_t   *to;
    uint32_t   i, j;

    to = (uint8_t *) act + be_panels_int8_size(row / AMX_ROWS * AMX_ROWS, k)
         + (size_t) (col / INT8_GROUP) * INT8_BLOCK;

    for (j = 0; j < n; j += INT8_GROUP) {
        for (i = 0; i < m; i++) {
            int8_pack_group(to, (row + i) % AMX_ROWS, x[i] + j, n - j);
        }

        to += INT8_BLOCK;
    }
}


/*
 * 64 of a row, of which n are there; `to` are the row block's digits.  What is
 * not finite, by the bits larger than anything that is, makes the scale, and
 * so the row's products, not a number.
 */

static void
int8_pack_group(uint8_t *to, uint32_t row, const float *x, uint32_t n)
{
    vf_t      v[4];
    float     most, scale, times;
    __m512i   a[4], order, top, half[2];
    int32_t   sum;
    uint32_t  i, bits;

    top = _mm512_setzero_si512();

#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        v[i] = vf_loadn(x + i * VL, (n > i * VL) ? n - i * VL : 0);
        top = _mm512_max_epu32(top, _mm512_castps_si512(
                                        _mm512_abs_ps(v[i])));
    }

    bits = _mm512_reduce_max_epu32(top);
    memcpy(&most, &bits, 4);

    scale = most * (1.0f / INT8_TOP);
    times = INT8_TOP / most;

    if (bits >= INT8_BAD) {
        scale = NAN;
        times = 0.0f;

    } else if (most < INT8_SMALL) {
        scale = 0.0f;
        times = 0.0f;
    }

#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
        a[i] = _mm512_cvtps_epi32(vf_mul(v[i], vf_set1(times)));
    }

    half[0] = _mm512_add_epi32(a[0], a[1]);
    half[1] = _mm512_add_epi32(a[2], a[3]);

    /* Words, then bytes: each quarter takes what lies in that quarter. */

    order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7,
                              11, 15);
    a[0] = _mm512_packs_epi32(a[0], a[1]);
    a[2] = _mm512_packs_epi32(a[2], a[3]);

    for (i = 0; i < 4; i += 2) {
        a[i + 1] = _mm512_and_si512(a[i], _mm512_set1_epi16(0xff));
        a[i] = _mm512_srai_epi16(_mm512_add_epi16(a[i],
                                                  _mm512_set1_epi16(128)), 8);
    }

    _mm512_store_si512(to + row * 64,
        _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a[0], a[2])));
    _mm512_store_si512(to + INT8_LOW + row * 64,
        _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a[1], a[3])));

    memcpy(to + INT8_SCALE + row * 4, &scale, 4);

    for (i = 0; i < 2; i++) {
        sum = (int32_t) (-128 * (uint32_t) _mm512_reduce_add_epi32(half[i]));
        memcpy(to + INT8_SUM + i * 64 + row * 4, &sum, 4);
    }
}


/*
 * Rows row … of a block by a panel of which n outputs are there, on vectors.
 * Few rows have two chains for each digit, or they would wait for their own
 * sums.
 */

BE_INLINE void
int8_vectors(const uint8_t *a, uint32_t row, uint32_t groups,
    const uint8_t *w, float *c, size_t ldc, uint32_t n, const uint32_t rows)
{
    vf_t            acc[INT8_ROWS], s, f;
    int32_t         digit, total, rest;
    float           scale;
    __m512i         high[INT8_ROWS][2], low[INT8_ROWS][2], x, y;
    uint32_t        g, i, j, r;
    const uint8_t  *code, *own;
    const uint32_t  chains = (rows <= INT8_FEW) ? 2 : 1;

    own = a + INT8_SCALE + row * 4;
    a += row * 64;

#pragma GCC unroll 8
    for (r = 0; r < rows; r++) {
        acc[r] = vf_zero();
    }

    for (g = 0; g < groups; g++) {
        s = vf_load_bf16(w + g % 2 * BE_PANEL * 2);
        code = w + 2 * BE_PANEL * 2 + g % 2 * AMX_TILE;

#pragma GCC unroll 8
        for (r = 0; r < rows; r++) {
            memcpy(&total, own + 64 + r * 4, 4);
            memcpy(&rest, own + 128 + r * 4, 4);
            low[r][0] = _mm512_set1_epi32(total + rest);
            low[r][1] = _mm512_setzero_si512();
            high[r][0] = _mm512_setzero_si512();
            high[r][1] = _mm512_setzero_si512();
        }

#pragma GCC unroll 16
        for (i = 0; i < 16; i++) {
            j = i % chains;

            _mm_prefetch(code + i * 64 + INT8_AHEAD, _MM_HINT_T0);
            x = _mm512_xor_si512(_mm512_loadu_si512(code + i * 64),
                                 _mm512_set1_epi32((int) 0x80808080));

#pragma GCC unroll 8
            for (r = 0; r < rows; r++) {
                memcpy(&digit, a + r * 64 + i * 4, 4);
                y = _mm512_set1_epi32(digit);
                high[r][j] = _mm512_dpbusd_epi32(high[r][j], x, y);

                memcpy(&digit, a + INT8_LOW + r * 64 + i * 4, 4);
                y = _mm512_set1_epi32(digit);
                low[r][j] = _mm512_dpbusd_epi32(low[r][j], x, y);
            }
        }

#pragma GCC unroll 8
        for (r = 0; r < rows; r++) {
            if (chains == 2) {
                high[r][0] = _mm512_add_epi32(high[r][0], high[r][1]);
                low[r][0] = _mm512_add_epi32(low[r][0], low[r][1]);
            }

            f = _mm512_cvtepi32_ps(_mm512_add_epi32(
                    _mm512_slli_epi32(high[r][0], 8), low[r][0]));
            memcpy(&scale, own + r * 4, 4);
            acc[r] = vf_fma(f, vf_mul(s, vf_set1(scale)), acc[r]);
        }

        a += INT8_BLOCK;
        own += INT8_BLOCK;
        w += (g % 2) * be_quant_chunk(BE_INT8);
    }

#pragma GCC unroll 8
    for (r = 0; r < rows; r++) {
        vf_storen(c + r * ldc, acc[r], n);
    }
}


/* 1 … 4 rows, or INT8_ROWS. */

static void
int8_few(const uint8_t *a, uint32_t row, uint32_t groups, const uint8_t *w,
    float *c, size_t ldc, uint32_t n, uint32_t rows)
{
    switch (rows) {
    case 1:
        int8_vectors(a, row, groups, w, c, ldc, n, 1);
        break;
    case 2:
        int8_vectors(a, row, groups, w, c, ldc, n, 2);
        break;
    case 3:
        int8_vectors(a, row, groups, w, c, ldc, n, 3);
        break;
    case 4:
        int8_vectors(a, row, groups, w, c, ldc, n, 4);
        break;
    default:
        int8_vectors(a, row, groups, w, c, ldc, n, INT8_ROWS);
        break;
    }
}


/* A group's sums of 16 rows by a panel, in the tiles c and c2. */

#define int8_dot(a, code, c, c2)                                             \
    do {                                                                     \
        amx_zero(c);                                                         \
        amx_zero(c2);                                                        \
        amx_tile_load(6, code, 64);                                          \
        amx_tile_load(4, a, 64);                                             \
        amx_dot_int8(c, 4, 6);                                               \
        amx_tile_load(5, (a) + INT8_LOW, 64);                                \
        amx_dot_int8(c2, 5, 6);                                              \
    } while (0)

#define int8_store(c, c2, sum)                                               \
    do {                                                                     \
        amx_tile_store(c, sum, 64);                                          \
        amx_tile_store(c2, (sum) + 256, 64);                                 \
    } while (0)


/* Adds them to the rows' sums of floats. */

BE_INLINE void
int8_add(vf_t *acc, const int32_t *sum, const uint8_t *scale, vf_t s,
    const uint32_t rows)
{
    vf_t      f;
    float     t;
    uint32_t  r;

#pragma GCC unroll 16
    for (r = 0; r < rows; r++) {
        f = vf_fma(_mm512_cvtepi32_ps(_mm512_load_si512(sum + r * 16)),
                   vf_set1(256.0f),
                   _mm512_cvtepi32_ps(_mm512_load_si512(sum + 256 + r * 16)));
        memcpy(&t, scale + r * 4, 4);
        acc[r] = vf_fma(f, vf_mul(s, vf_set1(t)), acc[r]);
    }
}


/*
 * m rows by a panel, on the matrix unit, whose tiles are of `rows`: all of
 * them are computed.
 */

BE_INLINE void
int8_tiles(const uint8_t *a, uint32_t groups, const uint8_t *w, float *c,
    size_t ldc, uint32_t m, uint32_t n, const uint32_t rows)
{
    vf_t            acc[AMX_ROWS];
    int32_t         sum[2][512] __attribute__((aligned(64)));
    uint32_t        g, r;

#pragma GCC unroll 16
    for (r = 0; r < rows; r++) {
        acc[r] = vf_zero();
    }

    /*
     * Products, storing and adding each take their time: three groups are
     * under way, in program order the newest first.  Past the last one there
     * is nothing to multiply, and what is stored is not used.
     */

    int8_dot(a, w + 64, 0, 1);

    if (groups > 1) {
        int8_dot(a + INT8_BLOCK, w + 64 + AMX_TILE, 2, 3);
    }

    int8_store(0, 1, sum[0]);

    for (g = 0; g < groups; g += 2) {
        if (g + 2 < groups) {
            int8_dot(a + 2 * INT8_BLOCK, w + be_quant_chunk(BE_INT8) + 64, 0,
                     1);
        }

        int8_store(2, 3, sum[1]);
        int8_add(acc, sum[0], a + INT8_SCALE, vf_load_bf16(w), rows);

        if (g + 1 == groups) {
            break;
        }

        if (g + 3 < groups) {
            int8_dot(a + 3 * INT8_BLOCK,
                     w + be_quant_chunk(BE_INT8) + 64 + AMX_TILE, 2, 3);
        }

        int8_store(0, 1, sum[0]);
        int8_add(acc, sum[1], a + INT8_BLOCK + INT8_SCALE,
                 vf_load_bf16(w + 32), rows);

        a += 2 * INT8_BLOCK;
        w += be_quant_chunk(BE_INT8);
    }

#pragma GCC unroll 16
    for (r = 0; r < rows; r++) {
        if (r < m) {
            vf_storen(c + r * ldc, acc[r], n);
        }
    }
}


/*
 * As many rows as there are in a tile of them, which has `rows`.  Half a tile
 * is done in half the time.
 */

static void
int8_rows(const uint8_t *a, uint32_t groups, const uint8_t *w, float *c,
    size_t ldc, uint32_t m, uint32_t n, uint32_t rows)
{
    if (m <= INT8_FEW) {
        int8_few(a, 0, groups, w, c, ldc, n, m);

    } else if (rows == AMX_ROWS) {
        int8_tiles(a, groups, w, c, ldc, m, n, AMX_ROWS);

    } else {
        int8_tiles(a, groups, w, c, ldc, m, n, AMX_ROWS / 2);
    }
}


BE_PANEL_PRODUCT(be_panels_int8)
{
    size_t          block;
    uint32_t        groups, i, j, rows;
    const uint8_t  *a;

    rows = (m <= AMX_ROWS / 2) ? AMX_ROWS / 2 : AMX_ROWS;

    if (m > INT8_FEW) {
        be_amx_configure();

        if (rows != AMX_ROWS) {
            be_amx_configure_rows(rows);
        }
    }

    groups = (k + INT8_GROUP - 1) / INT8_GROUP;
    block = be_panels_int8_size(AMX_ROWS, k);
    a = (const uint8_t *) act + row / AMX_ROWS * block;

    for (j = 0; j < n; j += BE_PANEL) {
        for (i = 0; i < m; i += AMX_ROWS) {
            int8_rows(a + i / AMX_ROWS * block, groups, w, c + i * ldc + j,
                      ldc, m - i, (n - j < BE_PANEL) ? n - j : BE_PANEL,
                      rows);
        }

        w += ldw;
    }

    if (m > INT8_FEW && rows != AMX_ROWS) {
        be_amx_configure_rows(AMX_ROWS);
    }
}


/* The same without the matrix unit. */

BE_PANEL_PRODUCT(be_panels_vnni_int8)
{
    size_t          block;
    uint32_t        groups, i, j, rows, left;
    const uint8_t  *a;

    groups = (k + INT8_GROUP - 1) / INT8_GROUP;
    block = be_panels_int8_size(AMX_ROWS, k);

    for (j = 0; j < n; j += BE_PANEL) {
        for (i = 0; i < m; i += rows) {
            a = (const uint8_t *) act + (row + i) / AMX_ROWS * block;
            left = AMX_ROWS - i % AMX_ROWS;
            left = (m - i < left) ? m - i : left;
            rows = (left >= INT8_ROWS) ? INT8_ROWS : (left < 4) ? left : 4;

            int8_few(a, i % AMX_ROWS, groups, w, c + i * ldc + j, ldc,
                     (n - j < BE_PANEL) ? n - j : BE_PANEL, rows);
        }

        w += ldw;
    }
}

#else

typedef int be_panels_int8_none_t;

#endif
