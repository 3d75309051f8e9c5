/*
 * Products with quantised weights on the matrix unit (AMX).
 *
 * Activations are A, packed as tiles of 16 rows by 32 columns,
 *
 *     [rows / 16][k / 32][16 rows][32]
 *
 * and one or two panels of weights, made into pairs of BF16 a piece of AMX_CUT
 * elements at a time, are B: C is 16 rows by 16 outputs, in the order of
 * be_panels_pairs.h.  Between pieces sums stay as they are, in tiles.  Weights
 * that are kept in pairs are B as they lie, in order.
 *
 * The tile registers: 0 … 3 are C, two blocks of rows by two panels; 4 and 5
 * are A; 6 and 7 are B.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_amx.h"
#include "backend/cpu/be_panels_pairs.h"


#define AMX_CUT    256               /* elements; a piece is 16 kB */
#define AMX_ROWS2  (2 * AMX_ROWS)
#define AMX_MOST   512               /* rows whose sums are kept, 64 kB */
#define AMX_SUMS   1024              /* floats of AMX_ROWS2 by two panels */


typedef struct {
    const uint8_t  *act;             /* tiles of the first row */
    size_t          block;           /* bytes of 16 rows */
    const uint8_t  *b;               /* the piece of the first panel */
    const uint8_t  *b2;
    uint32_t        tiles;           /* of the piece, along k */
    int             first;           /* nothing is summed yet */
} amx_piece_t;


static void amx_rows2(const amx_piece_t *p, const uint8_t *a, float *sum);
static void amx_rows1(const amx_piece_t *p, const uint8_t *a, float *sum);
static void amx_rows1_panel(const amx_piece_t *p, const uint8_t *a,
    float *sum);
static void amx_put(const float *sum, uint32_t m, float *c, size_t ldc,
    uint32_t n, int ordered);


size_t
be_panels_amx_size(uint32_t rows, uint32_t k)
{
    return ((size_t) rows + AMX_ROWS - 1) / AMX_ROWS
           * (((size_t) k + AMX_K - 1) / AMX_K) * AMX_TILE;
}


void
be_panels_amx_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint8_t   *to;
    uint32_t   i, j;

    to = (uint8_t *) act + be_panels_amx_size(row / AMX_ROWS * AMX_ROWS, k)
         + (size_t) (col / AMX_K) * AMX_TILE + row % AMX_ROWS * 64;

    for (i = 0; i < m; i++) {
        for (j = 0; j < n; j += AMX_K) {
            _mm512_store_si512(to + i * 64 + (size_t) (j / AMX_K) * AMX_TILE,
                (__m512i) _mm512_cvtne2ps_pbh(
                    vf_loadn(x[i] + j + VL, (n - j > VL) ? n - j - VL : 0),
                    vf_loadn(x[i] + j, n - j)));
        }
    }
}


/* All rows by two panels, of which n outputs are there. */

BE_INLINE void
amx_panels(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const be_dtype_t dtype)
{
    float           sum[AMX_MOST / AMX_ROWS2 * AMX_SUMS]
                    __attribute__((aligned(64)));
    uint8_t         piece[2][AMX_CUT / PAIRS_STEP * PAIRS_PIECE]
                    __attribute__((aligned(64)));
    uint32_t        i, l, h, two;
    amx_piece_t     p;
    const uint8_t  *a, *from;

    two = (n > BE_PANEL);

    p.act = (const uint8_t *) act + be_panels_amx_size(row, k);
    p.block = be_panels_amx_size(AMX_ROWS, k);
    p.b = piece[0];
    p.b2 = piece[two];

    for (l = 0; l < k; l += AMX_CUT) {
        p.first = (l == 0);
        p.tiles = (k - l < AMX_CUT) ? (k - l + AMX_K - 1) / AMX_K
                                    : AMX_CUT / AMX_K;

        if (dtype == BE_PAIRS) {
            p.b = w + (size_t) (l / AMX_K) * AMX_TILE;
            p.b2 = p.b + (two ? ldw : 0);
        }

        for (i = 0; dtype != BE_PAIRS && i <= two; i++) {
            from = w + i * ldw + l / BE_CHUNK * be_quant_chunk(dtype);

            for (h = 0; h * PAIRS_STEP < AMX_CUT && l + h * PAIRS_STEP < k;
                 h++)
            {
                pairs_decode(from + h / 2 * be_quant_chunk(dtype), h % 2,
                             piece[i] + h * PAIRS_PIECE, dtype);
            }
        }

        a = p.act + l / AMX_K * AMX_TILE;

        for (i = 0; i < m; i += AMX_ROWS2) {
            if (m - i > AMX_ROWS) {
                amx_rows2(&p, a, sum + i / AMX_ROWS2 * AMX_SUMS);

            } else if (two) {
                amx_rows1(&p, a, sum + i / AMX_ROWS2 * AMX_SUMS);

            } else {
                amx_rows1_panel(&p, a, sum + i / AMX_ROWS2 * AMX_SUMS);
            }

            a += 2 * p.block;
        }
    }

    for (i = 0; i < m; i += AMX_ROWS) {
        amx_put(sum + i / AMX_ROWS * (AMX_SUMS / 2),
                (m - i < AMX_ROWS) ? m - i : AMX_ROWS, c + i * ldc, ldc, n,
                dtype == BE_PAIRS);
    }
}


/* 32 rows of activations by two panels. */

static void
amx_rows2(const amx_piece_t *p, const uint8_t *a, float *sum)
{
    uint32_t        i;
    const uint8_t  *a2, *b, *b2;

    a2 = a + p->block;
    b = p->b;
    b2 = p->b2;

    if (p->first) {
        amx_zero(0);
        amx_zero(1);
        amx_zero(2);
        amx_zero(3);

    } else {
        amx_tile_load(0, sum, 64);
        amx_tile_load(1, sum + 256, 64);
        amx_tile_load(2, sum + 512, 64);
        amx_tile_load(3, sum + 768, 64);
    }

    for (i = 0; i < p->tiles; i++) {
        amx_tile_load(4, a, 64);
        amx_tile_load(6, b, 64);
        amx_dot(0, 4, 6);
        amx_tile_load(7, b2, 64);
        amx_dot(1, 4, 7);
        amx_tile_load(5, a2, 64);
        amx_dot(2, 5, 6);
        amx_dot(3, 5, 7);

        a += AMX_TILE;
        a2 += AMX_TILE;
        b += AMX_TILE;
        b2 += AMX_TILE;
    }

    amx_tile_store(0, sum, 64);
    amx_tile_store(1, sum + 256, 64);
    amx_tile_store(2, sum + 512, 64);
    amx_tile_store(3, sum + 768, 64);
}


/* 16 rows of activations by two panels. */

static void
amx_rows1(const amx_piece_t *p, const uint8_t *a, float *sum)
{
    uint32_t        i;
    const uint8_t  *b, *b2;

    b = p->b;
    b2 = p->b2;

    if (p->first) {
        amx_zero(0);
        amx_zero(1);

    } else {
        amx_tile_load(0, sum, 64);
        amx_tile_load(1, sum + 256, 64);
    }

    for (i = 0; i < p->tiles; i++) {
        amx_tile_load(4, a, 64);
        amx_tile_load(6, b, 64);
        amx_dot(0, 4, 6);
        amx_tile_load(7, b2, 64);
        amx_dot(1, 4, 7);

        a += AMX_TILE;
        b += AMX_TILE;
        b2 += AMX_TILE;
    }

    amx_tile_store(0, sum, 64);
    amx_tile_store(1, sum + 256, 64);
}


/* 16 rows of activations by the first panel. */

static void
amx_rows1_panel(const amx_piece_t *p, const uint8_t *a, float *sum)
{
    uint32_t        i;
    const uint8_t  *b;

    b = p->b;

    if (p->first) {
        amx_zero(0);

    } else {
        amx_tile_load(0, sum, 64);
    }

    for (i = 0; i < p->tiles; i++) {
        amx_tile_load(4, a, 64);
        amx_tile_load(6, b, 64);
        amx_dot(0, 4, 6);

        a += AMX_TILE;
        b += AMX_TILE;
    }

    amx_tile_store(0, sum, 64);
}


/* Two tiles of m rows to where they belong. */

static void
amx_put(const float *sum, uint32_t m, float *c, size_t ldc, uint32_t n,
    int ordered)
{
    vf_t      x, y;
    uint32_t  i;

    for (i = 0; i < m; i++) {
        x = vf_load(sum + i * 16);
        vf_storen(c + i * ldc, ordered ? x : pairs_order(x), n);

        if (n > BE_PANEL) {
            y = vf_load(sum + 256 + i * 16);
            vf_storen(c + i * ldc + BE_PANEL, ordered ? y : pairs_order(y),
                      n - BE_PANEL);
        }
    }
}


BE_INLINE void
amx_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    const be_dtype_t dtype)
{
    uint32_t  i, j, rows, outs, most;

    be_amx_configure();

    /*
     * Few rows wait for the weights: one panel after the other, as they lie
     * in memory, and no more of the tiles than there are rows.
     */

    most = (m > AMX_ROWS) ? 2 * BE_PANEL : BE_PANEL;

    if (m < AMX_ROWS) {
        be_amx_configure_rows(m);
    }

    for (i = 0; i < m; i += rows) {
        rows = (m - i < AMX_MOST) ? m - i : AMX_MOST;

        for (j = 0; j < n; j += outs) {
            outs = (n - j < most) ? n - j : most;

            amx_panels(act, k, row + i, rows, w + j / BE_PANEL * ldw, ldw,
                       outs, c + i * ldc + j, ldc, dtype);
        }
    }

    if (m < AMX_ROWS) {
        be_amx_configure_rows(AMX_ROWS);
    }
}


BE_PANEL_PRODUCT(be_panels_amx_f8)
{
    amx_product(act, k, row, m, w, ldw, n, c, ldc, BE_F8E4M3);
}


BE_PANEL_PRODUCT(be_panels_amx_int4)
{
    amx_product(act, k, row, m, w, ldw, n, c, ldc, BE_INT4);
}


BE_PANEL_PRODUCT(be_panels_amx_pairs)
{
    amx_product(act, k, row, m, w, ldw, n, c, ldc, BE_PAIRS);
}

#else

typedef int be_panels_amx_none_t;

#endif
