/*
 * The AVX-512 BF16 kernels with products on the matrix unit (AMX).
 *
 * A tile is 16 rows of 64 bytes.  One instruction adds to C [16][16] floats
 * the product of A [16][32] and B, [16] pairs of rows by 16 columns, both
 * BF16, over its pairs in order, denormals as zeros.  A takes 16 rows of the
 * weights (or of the KV pool) as they are mapped, B takes activations, so it
 * is these that are packed: 16 rows together, 32 columns a tile,
 *
 *     [rows / 16][k / 32][16 pairs][16 rows][2]
 *
 * and C comes out transposed.
 *
 * Every element of C has its own chain of sums over k, so which other rows
 * are in the tile does not matter, not even when they are leftovers.
 *
 * The tile registers: 0 … 3 are C; 4 and 5 are A; 6 and 7 are B.
 */

#if defined(__x86_64__)

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/cpu/be_amx.h"
#include "backend/cpu/be_kernels_simd.h"
#include "backend/cpu/be_panels.h"
#include "backend/cpu/be_panels_int8.h"


#define AMX_CUT            512       /* elements: 32 rows are 32 kB */
#define AMX_SUMS           16        /* sums of 32 x 32 kept, 64 kB */
#define AMX_COPY           4         /* from that many on weights are copied */

#define AMX_CPUID_BF16     (1u << 22)  /* leaf 7, edx */
#define AMX_CPUID_TILE     (1u << 24)
#define AMX_CPUID_INT8     (1u << 25)

#define AMX_REQ_XCOMP_PERM 0x1023    /* arch_prctl() */
#define AMX_XTILEDATA      18


typedef struct {
    uint8_t                palette;
    uint8_t                start_row;
    uint8_t                reserved[14];
    uint16_t               row_bytes[16];
    uint8_t                rows[16];
} amx_config_t;

/* A product with what all its tiles have in common. */

typedef struct {
    const uint8_t         *act;      /* the first row's block */
    size_t                 block;    /* bytes of 16 packed rows */
    uint32_t               k;
    uint32_t               m;
    size_t                 ldw;
    float                 *c;
    size_t                 ldc;
} amx_product_t;

/* A piece of 32 rows of weights, as mapped or copied as tiles. */

typedef struct {
    const uint8_t         *w;
    const uint8_t         *w2;       /* rows 16 … 31 */
    size_t                 ld;
    size_t                 step;     /* from tile to tile */
} amx_piece_t;


static size_t amx_size(uint32_t rows, uint32_t k);
static void amx_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);
static void amx_pack_few(uint8_t *to, uint32_t row, const float *const *x,
    uint32_t m, uint32_t n);
static void amx_product(const void *act, uint32_t k, uint32_t row,
    uint32_t m, const uint8_t *w, size_t ldw, uint32_t n, float *c,
    size_t ldc);
static void amx_band(const amx_product_t *p, uint32_t rows, uint32_t col,
    const uint8_t *w);
static void amx_tiles_2x2(const amx_product_t *p, const amx_piece_t *a,
    uint32_t row, uint32_t l, uint32_t end, float *c);
static void amx_tiles_4x1(const amx_product_t *p, uint32_t row, uint32_t col,
    const uint8_t *w);
static void amx_tiles_1x1(const amx_product_t *p, uint32_t row, uint32_t col,
    const uint8_t *w, uint32_t n);
static void amx_store(const amx_product_t *p, const float *tile,
    uint32_t row, uint32_t col, uint32_t n);


const be_kernels_t  be_kernels_amx = {
    .path = "amx",
    .mode = {
        [BE_F32] = {
            .gemm[BE_F32] = { 1, simd_size, simd_pack, simd_product_f32 },
            .gemm[BE_BF16] = { 1, simd_size, simd_pack, simd_product_bf16 },
            BE_PANEL_GEMMS(1, simd_size, simd_pack, be_panels_avx512),
            .prob_size = sizeof(float),
            .value_size = simd_value_size,
            .value = simd_value_f32,
            .softmax = simd_softmax
        },
        [BE_BF16] = {
            .gemm[BE_BF16] = { AMX_ROWS, amx_size, amx_pack, amx_product },
            .gemm[BE_F8E4M3] = { AMX_ROWS, be_panels_amx_size,
                                 be_panels_amx_pack, be_panels_amx_f8 },
            .gemm[BE_INT4] = { AMX_ROWS, be_panels_amx_size,
                               be_panels_amx_pack, be_panels_amx_int4 },
            .gemm[BE_INT8] = { AMX_ROWS, be_panels_int8_size,
                               be_panels_int8_pack, be_panels_int8,
                               BE_GROUP_INT8 },
            .gemm[BE_PAIRS] = { AMX_ROWS, be_panels_amx_size,
                                be_panels_amx_pack, be_panels_amx_pairs },
            .run_size = be_amx_run_size,
            .run = be_amx_run
        }
    },
    .norm = simd_norm,
    .swiglu = simd_swiglu,
    .axpy = simd_axpy,
    .add = simd_add,
    .scale = simd_scale,
    .merge = simd_merge
};


int
be_amx_enable(void)
{
    uint32_t  a, b, c, d;

    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)
        || (d & AMX_CPUID_BF16) == 0 || (d & AMX_CPUID_TILE) == 0
        || (d & AMX_CPUID_INT8) == 0)
    {
        return -1;
    }

    /* Once for all threads; old systems and some sandboxes say no. */

    return (syscall(SYS_arch_prctl, AMX_REQ_XCOMP_PERM, AMX_XTILEDATA) == 0)
           ? 0 : -1;
}


void
be_amx_configure(void)
{
    static __thread int  done;

    if (!done) {
        be_amx_configure_rows(AMX_ROWS);
        done = 1;
    }
}


void
be_amx_configure_rows(uint32_t rows)
{
    uint32_t      i;
    amx_config_t  config;

    memset(&config, 0, sizeof(config));
    config.palette = 1;

    for (i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = (uint8_t) ((i < AMX_TILES_B) ? rows : AMX_ROWS);
    }

    __asm__ volatile ("ldtilecfg %0" : : "m" (config));
}


static size_t
amx_size(uint32_t rows, uint32_t k)
{
    return (size_t) simd_padded(rows, AMX_ROWS) * simd_padded(k, AMX_K)
           * sizeof(uint16_t);
}


/* 32 floats from x, those past n as zeros, rounded. */

BE_INLINE __m512i
amx_load(const float *x, uint32_t n)
{
    return (__m512i) _mm512_cvtne2ps_pbh(
               vf_loadn(x + VL, (n > VL) ? n - VL : 0), vf_loadn(x, n));
}


static void
amx_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint8_t    *to;
    __m512i     r[16];
    uint32_t    i, j, first;
    __mmask16   mask;

    first = row % AMX_ROWS;
    to = (uint8_t *) act + amx_size(row - first, k)
         + (size_t) col / AMX_K * AMX_TILE;

    if (m <= 2) {
        amx_pack_few(to, first, x, m, n);
        return;
    }

    mask = (__mmask16) (((1u << m) - 1) << first);

    for (j = 0; j < n; j += AMX_K) {
        for (i = 0; i < 16; i++) {
            r[i] = (i - first < m) ? amx_load(x[i - first] + j, n - j)
                                   : _mm512_setzero_si512();
        }

        amx_transpose(r);

#pragma GCC unroll 16
        for (i = 0; i < 16; i++) {
            _mm512_mask_storeu_epi32(to + i * 64, mask, r[i]);
        }

        to += AMX_TILE;
    }
}


/* One row or two are not worth a transposition. */

static void
amx_pack_few(uint8_t *to, uint32_t row, const float *const *x, uint32_t m,
    uint32_t n)
{
    __m512i   at;
    uint32_t  i, j;

    at = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160,
                           176, 192, 208, 224, 240);

    for (j = 0; j < n; j += AMX_K) {
        for (i = 0; i < m; i++) {
            _mm512_i32scatter_epi32(to + (row + i) * 4, at,
                                    amx_load(x[i] + j, n - j), 4);
        }

        to += AMX_TILE;
    }
}


static void
amx_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    uint32_t       i, j, cols, pairs;
    amx_product_t  p;

    be_amx_configure();

    p.act = (const uint8_t *) act + amx_size(row, k);
    p.block = amx_size(AMX_ROWS, k);
    p.k = k;
    p.m = m;
    p.ldw = ldw;
    p.c = c;
    p.ldc = ldc;

    pairs = (m + AMX_ROWS - 1) / (2 * AMX_ROWS) * (2 * AMX_ROWS);

    for (j = 0; j + 2 * AMX_ROWS <= n; j += 2 * AMX_ROWS) {
        amx_band(&p, pairs, j, w + j * ldw);
    }

    for ( /* void */ ; j < n; j += AMX_ROWS) {
        cols = (n - j < AMX_ROWS) ? n - j : AMX_ROWS;

        for (i = 0; i < pairs; i += AMX_ROWS) {
            amx_tiles_1x1(&p, i, j, w + j * ldw, cols);
        }
    }

    i = pairs;

    if (i < m) {

        /* Weights that only stream by come best 16 rows at a time. */

        j = 0;

        for ( /* void */ ; i > 0 && j + 4 * AMX_ROWS <= n;
             j += 4 * AMX_ROWS)
        {
            amx_tiles_4x1(&p, i, j, w + j * ldw);
        }

        for ( /* void */ ; j < n; j += AMX_ROWS) {
            cols = (n - j < AMX_ROWS) ? n - j : AMX_ROWS;
            amx_tiles_1x1(&p, i, j, w + j * ldw, cols);
        }
    }
}


/* n rows of k elements, fewer than a tile, with zeros around them. */

static void
amx_ragged(uint8_t *tile, const uint8_t *w, size_t ldw, uint32_t n,
    uint32_t k)
{
    uint32_t   i;
    __mmask32  mask;

    mask = (k >= AMX_K) ? 0xffffffff : (1u << k) - 1;

    for (i = 0; i < n; i++) {
        _mm512_store_si512(tile + i * 64,
                           _mm512_maskz_loadu_epi16(mask, w + i * ldw));
    }

    for ( /* void */ ; i < AMX_ROWS; i++) {
        _mm512_store_si512(tile + i * 64, _mm512_setzero_si512());
    }
}


/*
 * 32 rows of weights by `rows` packed rows, a multiple of 32.  A long inner
 * dimension is cut, so that the piece of the weights stays in the L1 cache
 * while the rows pass; meanwhile the sums are kept as they are.  If many rows
 * pass, the piece is copied first: rows a power of two apart would all want
 * the same few sets of the cache.
 */

static void
amx_band(const amx_product_t *p, uint32_t rows, uint32_t col,
    const uint8_t *w)
{
    float        c[AMX_SUMS][1024] __attribute__((aligned(64)));
    uint8_t      piece[2][AMX_CUT * 32] __attribute__((aligned(64)));
    uint32_t     i, j, row, n, l, end;
    amx_piece_t  a;

    for (row = 0; row < rows; row += n * 32) {
        n = (rows - row) / 32;
        n = (n < AMX_SUMS) ? n : AMX_SUMS;

        for (l = 0; l < p->k; l = end) {
            end = (p->k - l <= AMX_CUT) ? p->k : l + AMX_CUT;

            a.w = w + l * 2;
            a.w2 = a.w + AMX_ROWS * p->ldw;
            a.ld = p->ldw;
            a.step = AMX_K * 2;

            if (n >= AMX_COPY) {
                for (i = 0; l + i < end; i += AMX_K) {
                    amx_ragged(piece[0] + i * 32, a.w + i * 2, p->ldw,
                               AMX_ROWS, end - l - i);
                    amx_ragged(piece[1] + i * 32, a.w2 + i * 2, p->ldw,
                               AMX_ROWS, end - l - i);
                }

                a.w = piece[0];
                a.w2 = piece[1];
                a.ld = 64;
                a.step = AMX_TILE;
            }

            for (i = 0; i < n; i++) {
                amx_tiles_2x2(p, &a, row + i * 32, l, end, c[i]);
            }
        }

        for (i = 0; i < n; i++) {
            for (j = 0; j < 4; j++) {
                amx_store(p, c[i] + j * 256, row + i * 32 + j / 2 * AMX_ROWS,
                          col + j % 2 * AMX_ROWS, AMX_ROWS);
            }
        }
    }
}


/* 32 x 32 over the elements l … end - 1; what c holds, if l > 0, is added. */

static void
amx_tiles_2x2(const amx_product_t *p, const amx_piece_t *a, uint32_t row,
    uint32_t l, uint32_t end, float *c)
{
    uint8_t         tile[2][AMX_TILE] __attribute__((aligned(64)));
    const uint8_t  *w, *w2, *b, *b2;

    w = a->w;
    w2 = a->w2;
    b = p->act + row / AMX_ROWS * p->block + l * 32;
    b2 = b + p->block;

    if (l == 0) {
        amx_zero(0);
        amx_zero(1);
        amx_zero(2);
        amx_zero(3);

    } else {
        amx_tile_load(0, c, 64);
        amx_tile_load(1, c + 256, 64);
        amx_tile_load(2, c + 512, 64);
        amx_tile_load(3, c + 768, 64);
    }

    for ( /* void */ ; l < end; l += AMX_K) {
        if (end - l >= AMX_K || a->step == AMX_TILE) {
            amx_tile_load(4, w, a->ld);
            amx_tile_load(5, w2, a->ld);

        } else {
            amx_ragged(tile[0], w, a->ld, AMX_ROWS, end - l);
            amx_ragged(tile[1], w2, a->ld, AMX_ROWS, end - l);
            amx_tile_load(4, tile[0], 64);
            amx_tile_load(5, tile[1], 64);
        }

        amx_tile_load(6, b, 64);
        amx_dot(0, 4, 6);
        amx_dot(1, 5, 6);
        amx_tile_load(7, b2, 64);
        amx_dot(2, 4, 7);
        amx_dot(3, 5, 7);

        w += a->step;
        w2 += a->step;
        b += AMX_TILE;
        b2 += AMX_TILE;
    }

    amx_tile_store(0, c, 64);
    amx_tile_store(1, c + 256, 64);
    amx_tile_store(2, c + 512, 64);
    amx_tile_store(3, c + 768, 64);
}


/* 64 rows of weights by 16 packed rows. */

static void
amx_tiles_4x1(const amx_product_t *p, uint32_t row, uint32_t col,
    const uint8_t *w)
{
    float           c[4][256] __attribute__((aligned(64)));
    size_t          next;
    uint8_t         tile[4][AMX_TILE] __attribute__((aligned(64)));
    uint32_t        l, i;
    const uint8_t  *b;

    next = AMX_ROWS * p->ldw;
    b = p->act + row / AMX_ROWS * p->block;

    amx_zero(0);
    amx_zero(1);
    amx_zero(2);
    amx_zero(3);

    for (l = 0; l + AMX_K <= p->k; l += AMX_K) {
        amx_tile_load(6, b + l * 32, 64);
        amx_tile_load(4, w + l * 2, p->ldw);
        amx_dot(0, 4, 6);
        amx_tile_load(5, w + next + l * 2, p->ldw);
        amx_dot(1, 5, 6);
        amx_tile_load(4, w + 2 * next + l * 2, p->ldw);
        amx_dot(2, 4, 6);
        amx_tile_load(5, w + 3 * next + l * 2, p->ldw);
        amx_dot(3, 5, 6);
    }

    if (l < p->k) {
        for (i = 0; i < 4; i++) {
            amx_ragged(tile[i], w + i * next + l * 2, p->ldw, AMX_ROWS,
                       p->k - l);
        }

        amx_tile_load(6, b + l * 32, 64);
        amx_tile_load(4, tile[0], 64);
        amx_dot(0, 4, 6);
        amx_tile_load(5, tile[1], 64);
        amx_dot(1, 5, 6);
        amx_tile_load(4, tile[2], 64);
        amx_dot(2, 4, 6);
        amx_tile_load(5, tile[3], 64);
        amx_dot(3, 5, 6);
    }

    amx_tile_store(0, c[0], 64);
    amx_tile_store(1, c[1], 64);
    amx_tile_store(2, c[2], 64);
    amx_tile_store(3, c[3], 64);

    for (i = 0; i < 4; i++) {
        amx_store(p, c[i], row, col + i * AMX_ROWS, AMX_ROWS);
    }
}


/* n <= 16 rows of weights by 16 packed rows. */

static void
amx_tiles_1x1(const amx_product_t *p, uint32_t row, uint32_t col,
    const uint8_t *w, uint32_t n)
{
    float           c[256] __attribute__((aligned(64)));
    uint8_t         tile[AMX_TILE] __attribute__((aligned(64)));
    uint32_t        l;
    const uint8_t  *b;

    b = p->act + row / AMX_ROWS * p->block;

    amx_zero(0);

    for (l = 0; l < p->k; l += AMX_K) {
        amx_tile_load(6, b + l * 32, 64);

        if (n == AMX_ROWS && p->k - l >= AMX_K) {
            amx_tile_load(4, w + l * 2, p->ldw);

        } else {
            amx_ragged(tile, w + l * 2, p->ldw, n, p->k - l);
            amx_tile_load(4, tile, 64);
        }

        amx_dot(0, 4, 6);
    }

    amx_tile_store(0, c, 64);

    amx_store(p, c, row, col, n);
}


/* A tile [16 columns of the result][16 rows] to where it belongs. */

static void
amx_store(const amx_product_t *p, const float *tile, uint32_t row,
    uint32_t col, uint32_t n)
{
    float     *c;
    __m512i    r[16], at;
    uint32_t   i, m;

    c = p->c + row * p->ldc + col;
    m = (p->m - row < AMX_ROWS) ? p->m - row : AMX_ROWS;

    if (m <= 3) {
        at = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160,
                               176, 192, 208, 224, 240);

        for (i = 0; i < m; i++) {
            vf_storen(c + i * p->ldc, _mm512_i32gather_ps(at, tile + i, 4),
                      n);
        }

        return;
    }

#pragma GCC unroll 16
    for (i = 0; i < 16; i++) {
        r[i] = _mm512_load_si512(tile + i * 16);
    }

    amx_transpose(r);

    for (i = 0; i < m; i++) {
        vf_storen(c + i * p->ldc, _mm512_castsi512_ps(r[i]), n);
    }
}

#else

typedef int be_kernels_amx_none_t;

#endif
