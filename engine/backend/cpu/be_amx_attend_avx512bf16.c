/*
 * Attention over a run of tokens on the matrix unit (AMX).
 *
 * Scores: A is 16 tokens as they lie in the KV pool, B 16 packed queries, so
 * C has a token a row and a query a lane, and the softmax goes down the rows
 * with all lanes at work:
 *
 *     s [queries / 16][BE_RUN][16]
 *
 * Values: A is the probabilities of 16 queries, 32 tokens a tile, B two
 * tokens' values interleaved:
 *
 *     p [queries / 16][BE_RUN / 32][16 queries][32]
 *     v [BE_RUN / 32][columns / 16][16 pairs of tokens][16 columns][2]
 *
 * Many queries: v has 32 columns at a time, which stay in the L1 cache while
 * all of them pass.  A tile of queries or less, as in decoding: 32 tokens by
 * 64 columns at a time, interleaved beside the product of those before.
 *
 * Nothing is asked from memory ahead: where it was measured, prefetching of
 * this run's tokens and the next one's made both slower.
 *
 * A query's sums go over the tokens in order, what it does not see counts as
 * zero; which other queries are there makes no difference.
 */

#if defined(__x86_64__)

#include <math.h>

#include "backend/cpu/be_amx.h"
#include "backend/cpu/be_simd.h"


#define RUN_TILES  (BE_RUN / AMX_K)  /* of 32 tokens */
#define RUN_SUMS   4
#define RUN_COLS   64                /* of values, for few queries */
#define RUN_PIECE  (RUN_COLS / AMX_ROWS * AMX_TILE)


static void run_many(const be_run_t *run, uint32_t most, float *s,
    uint8_t *p, uint8_t *v);
static void run_few(const be_run_t *run, uint32_t most, float *s, uint8_t *p,
    uint8_t *v);
static void run_scores(const be_run_t *run, uint32_t q, uint32_t tiles,
    uint32_t t, float *s);
static void run_softmax(const be_run_t *run, uint32_t q, uint32_t most,
    const float *s, uint8_t *p);
static void run_values(const be_run_t *run, uint32_t col, uint32_t q,
    uint32_t most, const uint8_t *p, const uint8_t *v);
static void run_values_rows(const be_run_t *run, uint32_t col, uint32_t most,
    const uint8_t *p, uint8_t *v);
static void run_values_few(const be_run_t *run, uint32_t col, uint32_t q,
    uint32_t most, const uint8_t *p, const uint8_t *v, size_t step);


size_t
be_amx_run_size(uint32_t queries, uint32_t dim)
{
    return 2 * BE_RUN * AMX_ROWS * sizeof(float)
           + (queries + AMX_ROWS - 1) / AMX_ROWS * RUN_TILES * AMX_TILE
           + RUN_TILES * simd_padded(dim, 2 * AMX_ROWS) / AMX_ROWS * AMX_TILE;
}


void
be_amx_run(const be_run_t *run)
{
    float     *s;
    uint8_t   *p, *v;
    uint32_t   i, most;

    be_amx_configure();

    s = run->work;
    p = (uint8_t *) (s + 2 * BE_RUN * AMX_ROWS);
    v = p + (run->m + AMX_ROWS - 1) / AMX_ROWS * RUN_TILES * AMX_TILE;
    most = 0;

    for (i = 0; i < run->m; i++) {
        most = (run->n[i] > most) ? run->n[i] : most;
    }

    if (run->m > AMX_ROWS) {
        run_many(run, most, s, p, v);

    } else {
        run_few(run, most, s, p, v);
    }
}


/* Two tokens' columns, 32 of each, one beside the other. */

static const uint16_t  run_order[64] = {
    0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
    16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
    24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63
};


/*
 * Interleaves the columns col … col + cols - 1 of the tokens t … t + n - 1,
 * all multiples of 32; `step` is from tile to tile of tokens.  After `most`
 * there are zeros: the pool may hold anything there, and zero times that is
 * not zero.
 */

BE_INLINE void
run_interleave(const be_run_t *run, uint32_t t, uint32_t n, uint32_t col,
    uint32_t cols, uint32_t most, uint8_t *v, size_t step)
{
    size_t          j;
    uint8_t        *to;
    __m512i         even, odd, at_low, at_high;
    uint32_t        end, left;
    __mmask32       mask;
    const uint8_t  *kv;

    at_low = _mm512_loadu_si512(run_order);
    at_high = _mm512_loadu_si512(run_order + 32);

    for (end = t + n; t < end; t += 2) {
        kv = run->kv[t / BE_BLOCK] + t % BE_BLOCK * run->ldkv
             + (size_t) col * 2;
        to = v + t / AMX_K * step + t % AMX_K * 32;

        for (j = 0; j < cols; j += 2 * AMX_ROWS) {
            left = run->dim - col - (uint32_t) j;
            mask = (left >= 32) ? 0xffffffff : (1u << left) - 1;

            even = (t < most) ? _mm512_maskz_loadu_epi16(mask, kv + j * 2)
                              : _mm512_setzero_si512();
            odd = (t + 1 < most)
                  ? _mm512_maskz_loadu_epi16(mask, kv + run->ldkv + j * 2)
                  : _mm512_setzero_si512();

            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, at_low,
                                                              odd));
            _mm512_storeu_si512(to + AMX_TILE,
                                _mm512_permutex2var_epi16(even, at_high,
                                                          odd));
            to += 2 * AMX_TILE;
        }
    }
}


static void
run_many(const be_run_t *run, uint32_t most, float *s, uint8_t *p, uint8_t *v)
{
    uint32_t  i, q, j, t, tiles;

    for (q = 0; q < run->m; q += 2 * AMX_ROWS) {
        tiles = (run->m - q > AMX_ROWS) ? 2 : 1;

        for (t = 0; t < most; t += 2 * AMX_ROWS) {
            run_scores(run, q, tiles, t, s);
        }

        for (i = 0; i < tiles; i++) {
            run_softmax(run, q + i * AMX_ROWS, most,
                        s + i * BE_RUN * AMX_ROWS,
                        p + (q / AMX_ROWS + i) * RUN_TILES * AMX_TILE);
        }
    }

    for (j = 0; j < run->dim; j += 2 * AMX_ROWS) {
        run_interleave(run, 0, simd_padded(most, AMX_K), j, 2 * AMX_ROWS,
                       most, v, 2 * AMX_TILE);

        for (q = 0; q + AMX_ROWS < run->m; q += 2 * AMX_ROWS) {
            run_values(run, j, q, most, p, v);
        }

        if (q < run->m) {
            run_values_few(run, j, q, most, p, v, 2 * AMX_TILE);
        }
    }
}


static void
run_few(const be_run_t *run, uint32_t most, float *s, uint8_t *p, uint8_t *v)
{
    uint32_t  j, t;

    for (t = 0; t < most; t += 2 * AMX_ROWS) {
        run_scores(run, 0, 1, t, s);
    }

    run_softmax(run, 0, most, s, p);

    be_amx_configure_rows(run->m);

    for (j = 0; j < run->dim; j += RUN_COLS) {
        run_values_rows(run, j, most, p, v);
    }

    be_amx_configure_rows(AMX_ROWS);
}


/* The same of 32 tokens and RUN_COLS columns, or half of these, in a row. */

BE_INLINE void
run_piece(const be_run_t *run, uint32_t t, uint32_t col, uint32_t cols,
    uint32_t most, uint8_t *v)
{
    __m512i         even, odd, at_low, at_high;
    uint32_t        i, j;
    const uint8_t  *kv;

    if (cols != RUN_COLS || run->dim - col < RUN_COLS || most - t < AMX_K) {
        run_interleave(run, t, AMX_K, col, cols, most, v, 0);
        return;
    }

    at_low = _mm512_loadu_si512(run_order);
    at_high = _mm512_loadu_si512(run_order + 32);
    kv = run->kv[t / BE_BLOCK] + t % BE_BLOCK * run->ldkv + (size_t) col * 2;

    for (i = 0; i < AMX_K / 2; i++) {
#pragma GCC unroll 2
        for (j = 0; j < 2; j++) {
            even = _mm512_loadu_si512(kv + j * 64);
            odd = _mm512_loadu_si512(kv + run->ldkv + j * 64);

            _mm512_store_si512(v + 2 * j * AMX_TILE + i * 64,
                _mm512_permutex2var_epi16(even, at_low, odd));
            _mm512_store_si512(v + (2 * j + 1) * AMX_TILE + i * 64,
                _mm512_permutex2var_epi16(even, at_high, odd));
        }

        kv += 2 * run->ldkv;
    }
}


/* 16 tokens' keys from l on, where less than a tile is left of them. */

static void
run_ragged(uint8_t *tile, const uint8_t *kv, size_t ld, uint32_t lanes)
{
    uint32_t   i;
    __mmask32  mask;

    mask = (1u << lanes) - 1;

    for (i = 0; i < AMX_ROWS; i++) {
        _mm512_store_si512(tile + i * 64,
                           _mm512_maskz_loadu_epi16(mask, kv + i * ld));
    }
}


/* One or two tiles of queries, 32 tokens. */

static void
run_scores(const be_run_t *run, uint32_t q, uint32_t tiles, uint32_t t,
    float *s)
{
    size_t          block;
    uint8_t         tile[2][AMX_TILE] __attribute__((aligned(64)));
    uint32_t        l;
    const uint8_t  *b, *b2, *kv, *kv2;

    block = (size_t) simd_padded(run->k, AMX_K) * AMX_ROWS * 2;
    b = (const uint8_t *) run->q + q / AMX_ROWS * block;
    b2 = b + block;
    kv = run->kv[t / BE_BLOCK] + t % BE_BLOCK * run->ldkv;
    kv2 = kv + AMX_ROWS * run->ldkv;

    amx_zero(0);
    amx_zero(1);
    amx_zero(2);
    amx_zero(3);

    for (l = 0; l < run->k; l += AMX_K) {
        if (run->k - l >= AMX_K) {
            amx_tile_load(4, kv + l * 2, run->ldkv);
            amx_tile_load(5, kv2 + l * 2, run->ldkv);

        } else {
            run_ragged(tile[0], kv + l * 2, run->ldkv, run->k - l);
            run_ragged(tile[1], kv2 + l * 2, run->ldkv, run->k - l);
            amx_tile_load(4, tile[0], 64);
            amx_tile_load(5, tile[1], 64);
        }

        amx_tile_load(6, b + l * 32, 64);
        amx_dot(0, 4, 6);
        amx_dot(1, 5, 6);

        if (tiles == 2) {
            amx_tile_load(7, b2 + l * 32, 64);
            amx_dot(2, 4, 7);
            amx_dot(3, 5, 7);
        }
    }

    amx_tile_store(0, s + t * AMX_ROWS, 64);
    amx_tile_store(1, s + (t + AMX_ROWS) * AMX_ROWS, 64);

    if (tiles == 2) {
        amx_tile_store(2, s + (BE_RUN + t) * AMX_ROWS, 64);
        amx_tile_store(3, s + (BE_RUN + t + AMX_ROWS) * AMX_ROWS, 64);
    }
}


/* Which of 16 queries see token t of the run. */

BE_INLINE __mmask16
run_visible(const be_run_t *run, __m512i n, uint32_t t)
{
    return (t < run->first) ? 0
           : _mm512_cmpgt_epu32_mask(n, _mm512_set1_epi32((int) t));
}


/*
 * 16 queries.  Not a number does not count for the maximum, but stays one in
 * the sum.  A query that sees nothing has a sum of zero.
 */

static void
run_softmax(const be_run_t *run, uint32_t q, uint32_t most, const float *s,
    uint8_t *p)
{
    vf_t       top, x, e[2], sum[RUN_SUMS];
    __m512i    n, r[16], pairs;
    uint32_t   i, j, t, end, all;
    __mmask16  seen;

    static const uint16_t  order[32] = {
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
    };

    n = _mm512_loadu_si512(run->n + q);
    pairs = _mm512_loadu_si512(order);
    end = simd_padded(most, AMX_K);

    /* All see the tokens before `all`, but those before `first`. */

    all = (run->first != 0) ? 0 : _mm512_reduce_min_epu32(n);

    top = vf_set1(-INFINITY);

    for (t = 0; t < most; t++) {
        seen = (t < all) ? 0xffff : run_visible(run, n, t);
        x = vf_mul(vf_load(s + t * AMX_ROWS), vf_set1(run->scale));
        top = _mm512_mask_max_ps(top, seen, x, top);
    }

    _mm512_storeu_ps(run->max + q, top);

    for (i = 0; i < RUN_SUMS; i++) {
        sum[i] = vf_zero();
    }

    for (t = 0; t < end; t += AMX_K) {
#pragma GCC unroll 4
        for (i = 0; i < AMX_K; i += 2) {
            for (j = 0; j < 2; j++) {
                seen = (t + i + j < all) ? 0xffff
                                         : run_visible(run, n, t + i + j);
                x = vf_load(s + (t + i + j) * AMX_ROWS);
                x = _mm512_fmsub_ps(x, vf_set1(run->scale), top);
                e[j] = _mm512_maskz_mov_ps(seen, simd_exp(x));
                sum[(i + j) % RUN_SUMS] = vf_add(sum[(i + j) % RUN_SUMS],
                                                 e[j]);
            }

            r[i / 2] = _mm512_permutexvar_epi16(pairs,
                           (__m512i) _mm512_cvtne2ps_pbh(e[1], e[0]));
        }

        amx_transpose(r);

#pragma GCC unroll 16
        for (i = 0; i < 16; i++) {
            _mm512_storeu_si512(p + t / AMX_K * AMX_TILE + i * 64, r[i]);
        }
    }

    _mm512_storeu_ps(run->sum + q, vf_add(vf_add(sum[0], sum[1]),
                                          vf_add(sum[2], sum[3])));
}


/* 32 queries by 32 columns. */

static void
run_values(const be_run_t *run, uint32_t col, uint32_t q, uint32_t most,
    const uint8_t *p, const uint8_t *v)
{
    float          *o;
    size_t          ld;
    uint32_t        t;
    const uint8_t  *p2;

    p += q / AMX_ROWS * RUN_TILES * AMX_TILE;
    p2 = p + RUN_TILES * AMX_TILE;

    amx_zero(0);
    amx_zero(1);
    amx_zero(2);
    amx_zero(3);

    for (t = 0; t < most; t += AMX_K) {
        amx_tile_load(4, p, 64);
        amx_tile_load(6, v, 64);
        amx_dot(0, 4, 6);
        amx_tile_load(7, v + AMX_TILE, 64);
        amx_dot(1, 4, 7);
        amx_tile_load(5, p2, 64);
        amx_dot(2, 5, 6);
        amx_dot(3, 5, 7);

        p += AMX_TILE;
        p2 += AMX_TILE;
        v += 2 * AMX_TILE;
    }

    ld = run->ldo * sizeof(float);
    o = run->o + q * run->ldo + col;

    amx_tile_store(0, o, ld);
    amx_tile_store(1, o + AMX_ROWS, ld);
    amx_tile_store(2, o + AMX_ROWS * run->ldo, ld);
    amx_tile_store(3, o + AMX_ROWS * run->ldo + AMX_ROWS, ld);
}


/*
 * At most 16 queries by RUN_COLS columns.  Tokens are interleaved 32 at a time
 * into one half of v, while the other half is multiplied.
 */

static void
run_values_rows(const be_run_t *run, uint32_t col, uint32_t most,
    const uint8_t *p, uint8_t *v)
{
    float          *o;
    size_t          ld;
    uint32_t        t, cols;
    const uint8_t  *b;

    cols = (run->dim - col > 2 * AMX_ROWS) ? RUN_COLS : 2 * AMX_ROWS;

    amx_zero(0);
    amx_zero(1);
    amx_zero(2);
    amx_zero(3);

    run_piece(run, 0, col, cols, most, v);

    for (t = 0; t < most; t += AMX_K) {
        b = v + t / AMX_K % 2 * RUN_PIECE;

        if (t + AMX_K < most) {
            run_piece(run, t + AMX_K, col, cols, most,
                      v + (t / AMX_K + 1) % 2 * RUN_PIECE);
        }

        amx_tile_load(4, p + t / AMX_K * AMX_TILE, 64);
        amx_tile_load(6, b, 64);
        amx_dot(0, 4, 6);
        amx_tile_load(7, b + AMX_TILE, 64);
        amx_dot(1, 4, 7);

        if (cols == RUN_COLS) {
            amx_tile_load(6, b + 2 * AMX_TILE, 64);
            amx_dot(2, 4, 6);
            amx_tile_load(7, b + 3 * AMX_TILE, 64);
            amx_dot(3, 4, 7);
        }
    }

    ld = run->ldo * sizeof(float);
    o = run->o + col;

    amx_tile_store(0, o, ld);
    amx_tile_store(1, o + AMX_ROWS, ld);

    if (cols == RUN_COLS) {
        amx_tile_store(2, o + 2 * AMX_ROWS, ld);
        amx_tile_store(3, o + 3 * AMX_ROWS, ld);
    }
}


/* The last 16 queries, or fewer; `step` is from tile to tile of tokens. */

static void
run_values_few(const be_run_t *run, uint32_t col, uint32_t q, uint32_t most,
    const uint8_t *p, const uint8_t *v, size_t step)
{
    float     *o;
    uint32_t   t;

    p += q / AMX_ROWS * RUN_TILES * AMX_TILE;

    amx_zero(0);
    amx_zero(1);

    for (t = 0; t < most; t += AMX_K) {
        amx_tile_load(4, p, 64);
        amx_tile_load(6, v, 64);
        amx_dot(0, 4, 6);
        amx_tile_load(7, v + AMX_TILE, 64);
        amx_dot(1, 4, 7);

        p += AMX_TILE;
        v += step;
    }

    o = run->o + q * run->ldo + col;

    amx_tile_store(0, o, run->ldo * sizeof(float));
    amx_tile_store(1, o + AMX_ROWS, run->ldo * sizeof(float));
}

#else

typedef int be_amx_attend_none_t;

#endif
