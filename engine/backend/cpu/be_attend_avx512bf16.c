/*
 * Attention over a run of tokens, with vdpbf16ps.
 *
 * Scores are the product of the packed queries and the tokens as they lie in
 * the KV pool, probabilities take their place:
 *
 *     s [queries][BE_RUN] floats, then BF16; RUN_LD floats from row to row
 *
 * Values: the rows of two tokens are interleaved, so that one instruction
 * adds both of their products; an odd last token goes with zeros.  Few
 * queries interleave 32 columns as they pass over them, many do so once for
 * RUN_CUT tokens, which stay in the L1 cache while all of them pass:
 *
 *     v [RUN_CUT / 2][32 columns][2]
 *
 * A query's sums go over the tokens in order either way, and what it does not
 * see counts as zero.
 */

#if defined(__x86_64__)

#include <math.h>

#include "backend/cpu/be_bf16.h"


#define RUN_LD     (BE_RUN + 16)     /* a line more, for the L1 cache's sets */
#define RUN_CUT    128               /* tokens */
#define RUN_FEW    8                 /* queries */
#define RUN_STEP   4                 /* tokens of their scores at a time */
#define RUN_AHEAD  8192              /* bytes on, to ask for */
#define RUN_MANY   12                /* of a register tile */
#define RUN_COLS   32                /* columns of it */


static void run_scores(const be_run_t *run, uint32_t most, float *s);
static void run_softmax(const be_run_t *run, uint32_t q, uint32_t most,
    float *s);
static void run_few(const be_run_t *run, uint32_t most, const float *s);
static void run_many(const be_run_t *run, uint32_t most, const float *s,
    uint8_t *v);


BE_INLINE const uint8_t *
run_token(const be_run_t *run, uint32_t t)
{
    return run->kv[t / BE_BLOCK] + t % BE_BLOCK * run->ldkv;
}


size_t
be_bf16_run_size(uint32_t queries, uint32_t dim)
{
    (void) dim;

    return queries * RUN_LD * sizeof(float) + RUN_CUT * RUN_COLS * 2;
}


void
be_bf16_run(const be_run_t *run)
{
    float     *s;
    uint8_t   *v;
    uint32_t   i, most;

    v = run->work;
    s = (float *) (v + RUN_CUT * RUN_COLS * 2);
    most = 0;

    for (i = 0; i < run->m; i++) {
        most = (run->n[i] > most) ? run->n[i] : most;
    }

    run_scores(run, most, s);

    for (i = 0; i < run->m; i++) {
        run_softmax(run, i, most, s + i * RUN_LD);
    }

    if (run->m > RUN_FEW) {
        run_many(run, most, s, v);

    } else {
        run_few(run, most, s);
    }
}


/*
 * The tokens come from memory, RUN_AHEAD before they are wanted; behind the
 * last one are those of the run that may be next.
 */

static void
run_scores(const be_run_t *run, uint32_t most, float *s)
{
    uint32_t        t, n, next, far;
    const uint8_t  *kv, *ahead;

    far = (uint32_t) (RUN_AHEAD / run->ldkv + RUN_STEP) / RUN_STEP * RUN_STEP;

    for (t = 0; t < most; t += RUN_STEP) {
        n = (most - t < RUN_STEP) ? most - t : RUN_STEP;
        next = t + far;
        kv = run_token(run, t);
        ahead = kv;

        if (next < most) {
            ahead = run_token(run, next);

        } else if (next - most < run->n_ahead) {
            next -= most;
            ahead = run->ahead[next / BE_BLOCK]
                    + next % BE_BLOCK * run->ldkv;
        }

        be_bf16_scores(run, kv, n, ahead - kv, s + t, RUN_LD);
    }
}


/* Which of the tokens t … t + 15 a query sees. */

BE_INLINE __mmask16
run_visible(const be_run_t *run, uint32_t q, uint32_t t)
{
    __mmask16  seen;

    seen = (run->n[q] > t) ? vmask(run->n[q] - t) : 0;

    return (run->first > t) ? seen & (__mmask16) ~vmask(run->first - t) : seen;
}


/*
 * A query's probabilities.  Not a number does not count for the maximum, but
 * stays one in the sum.  A query that sees nothing has a sum of zero.
 */

static void
run_softmax(const be_run_t *run, uint32_t q, uint32_t most, float *s)
{
    vf_t       top, x, sum[2];
    float      max;
    uint16_t  *p;
    uint32_t   t;

    p = (uint16_t *) s;
    top = vf_set1(-INFINITY);

    for (t = 0; t < most; t += VL) {
        x = vf_mul(vf_load(s + t), vf_set1(run->scale));
        top = _mm512_mask_max_ps(top, run_visible(run, q, t), x, top);
    }

    max = vf_largest(top);
    top = vf_set1(max);
    sum[0] = vf_zero();
    sum[1] = vf_zero();

    /* Reads go before the writes: a probability takes half the room. */

    for (t = 0; t < most; t += VL) {
        x = _mm512_fmsub_ps(vf_load(s + t), vf_set1(run->scale), top);
        x = _mm512_maskz_mov_ps(run_visible(run, q, t), simd_exp(x));
        sum[t / VL % 2] = vf_add(sum[t / VL % 2], x);

        _mm256_storeu_si256((__m256i *) (p + t),
                            (__m256i) _mm512_cvtneps_pbh(x));
    }

    run->max[q] = max;
    run->sum[q] = vf_sum(vf_add(sum[0], sum[1]));
}


/* 32 columns of two tokens, four of one and four of the other. */

BE_INLINE void
run_pair(const uint8_t *v, size_t ldv, uint32_t n, uint32_t cols,
    __m512i *pair)
{
    __m512i  even, odd;

    even = bf16_loadn(v, cols);
    odd = (n > 1) ? bf16_loadn(v + ldv, cols) : _mm512_setzero_si512();

    pair[0] = _mm512_unpacklo_epi16(even, odd);
    pair[1] = _mm512_unpackhi_epi16(even, odd);
}


/* `rows` queries' sums over n tokens, of 32 columns: acc[][2] += p v. */

BE_INLINE void
run_add(vf_t (*acc)[2], const float *s, uint32_t t, const __m512i *pair,
    const uint32_t rows)
{
    int32_t   two;
    __m512i   x;
    uint32_t  i;

#pragma GCC unroll 12
    for (i = 0; i < rows; i++) {
        memcpy(&two, (const uint16_t *) (s + i * RUN_LD) + t, sizeof(two));
        x = _mm512_set1_epi32(two);

        acc[i][0] = _mm512_dpbf16_ps(acc[i][0], (__m512bh) x,
                                     (__m512bh) pair[0]);
        acc[i][1] = _mm512_dpbf16_ps(acc[i][1], (__m512bh) x,
                                     (__m512bh) pair[1]);
    }
}


/* Sums, or pairs, in the order of columns from that of run_pair(). */

BE_INLINE void
run_order(vf_t *acc)
{
    vf_t  a, b;

    a = _mm512_shuffle_f32x4(acc[0], acc[1], 0x44);
    b = _mm512_shuffle_f32x4(acc[0], acc[1], 0xee);
    acc[0] = _mm512_shuffle_f32x4(a, a, 0xd8);
    acc[1] = _mm512_shuffle_f32x4(b, b, 0xd8);
}


BE_INLINE void
run_few_tile(const be_run_t *run, uint32_t col, uint32_t most,
    const float *s, const uint32_t rows)
{
    vf_t            acc[RUN_FEW][2];
    float          *o;
    uint32_t        i, t, end, cols;
    __m512i         pair[2];
    const uint8_t  *v;

    cols = run->dim - col;

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
        acc[i][0] = vf_zero();
        acc[i][1] = vf_zero();
    }

    for (t = 0; t < most; t = end) {
        end = (most - t < BE_BLOCK) ? most : t + BE_BLOCK;
        v = run->kv[t / BE_BLOCK] + (size_t) col * 2;

        for ( /* void */ ; t < end; t += 2) {
            run_pair(v, run->ldkv, end - t, cols, pair);
            run_add(acc, s, t, pair, rows);
            v += 2 * run->ldkv;
        }
    }

    o = run->o + col;

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
        run_order(acc[i]);
        vf_store(o + i * run->ldo, acc[i][0]);
        vf_store(o + i * run->ldo + VL, acc[i][1]);
    }
}


static void
run_few(const be_run_t *run, uint32_t most, const float *s)
{
    uint32_t  col;

    for (col = 0; col < run->dim; col += RUN_COLS) {
        switch (run->m) {
        case 1:
            run_few_tile(run, col, most, s, 1);
            break;
        case 2:
            run_few_tile(run, col, most, s, 2);
            break;
        case 3:
            run_few_tile(run, col, most, s, 3);
            break;
        case 4:
            run_few_tile(run, col, most, s, 4);
            break;
        case 5:
            run_few_tile(run, col, most, s, 5);
            break;
        case 6:
            run_few_tile(run, col, most, s, 6);
            break;
        case 7:
            run_few_tile(run, col, most, s, 7);
            break;
        default:
            run_few_tile(run, col, most, s, 8);
            break;
        }
    }
}


/* The tokens t … t + n - 1, of the 32 columns from col on. */

static void
run_interleave(const be_run_t *run, uint32_t col, uint32_t t, uint32_t n,
    uint8_t *v)
{
    vf_t            order[2];
    __m512i         pair[2];
    uint32_t        i;
    const uint8_t  *from;

    for (i = 0; i < n; i += 2) {
        from = run_token(run, t + i) + (size_t) col * 2;

        run_pair(from, run->ldkv, n - i, run->dim - col, pair);

        order[0] = _mm512_castsi512_ps(pair[0]);
        order[1] = _mm512_castsi512_ps(pair[1]);
        run_order(order);

        vf_store((float *) (v + i * 64), order[0]);
        vf_store((float *) (v + i * 64 + 64), order[1]);
    }
}


/* `rows` queries from q on, n tokens from t on, which are in v. */

BE_INLINE void
run_many_tile(const be_run_t *run, uint32_t col, uint32_t q, uint32_t t,
    uint32_t n, const float *s, const uint8_t *v, const uint32_t rows)
{
    vf_t      acc[RUN_MANY][2];
    float    *o;
    __m512i   pair[2];
    uint32_t  i, end;

    s += q * RUN_LD;
    o = run->o + q * run->ldo + col;

#pragma GCC unroll 12
    for (i = 0; i < rows; i++) {
        acc[i][0] = (t == 0) ? vf_zero() : vf_load(o + i * run->ldo);
        acc[i][1] = (t == 0) ? vf_zero() : vf_load(o + i * run->ldo + VL);
    }

    for (end = t + n; t < end; t += 2) {
        pair[0] = _mm512_loadu_si512(v);
        pair[1] = _mm512_loadu_si512(v + 64);
        run_add(acc, s, t, pair, rows);
        v += 128;
    }

#pragma GCC unroll 12
    for (i = 0; i < rows; i++) {
        vf_store(o + i * run->ldo, acc[i][0]);
        vf_store(o + i * run->ldo + VL, acc[i][1]);
    }
}


static void
run_many_rows(const be_run_t *run, uint32_t col, uint32_t q, uint32_t t,
    uint32_t n, const float *s, const uint8_t *v, uint32_t rows)
{
    switch (rows) {
    case 6:
        run_many_tile(run, col, q, t, n, s, v, 6);
        break;
    case 7:
        run_many_tile(run, col, q, t, n, s, v, 7);
        break;
    case 8:
        run_many_tile(run, col, q, t, n, s, v, 8);
        break;
    case 9:
        run_many_tile(run, col, q, t, n, s, v, 9);
        break;
    case 10:
        run_many_tile(run, col, q, t, n, s, v, 10);
        break;
    case 11:
        run_many_tile(run, col, q, t, n, s, v, 11);
        break;
    default:
        run_many_tile(run, col, q, t, n, s, v, RUN_MANY);
        break;
    }
}


/* More than RUN_FEW: in equal parts none is smaller than 6. */

static void
run_many(const be_run_t *run, uint32_t most, const float *s, uint8_t *v)
{
    uint32_t  col, t, n, q, rows, tiles;

    for (col = 0; col < run->dim; col += RUN_COLS) {
        for (t = 0; t < most; t += RUN_CUT) {
            n = (most - t < RUN_CUT) ? most - t : RUN_CUT;
            run_interleave(run, col, t, n, v);

            tiles = (run->m + RUN_MANY - 1) / RUN_MANY;

            for (q = 0; q < run->m; q += rows, tiles--) {
                rows = (run->m - q + tiles - 1) / tiles;
                run_many_rows(run, col, q, t, n, s, v, rows);
            }
        }
    }
}

#else

typedef int be_attend_avx512bf16_none_t;

#endif
