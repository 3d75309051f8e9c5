/*
 * Kernels on vectors of floats, written once for AVX2 and AVX-512: a path's
 * file includes this and puts the functions into its table.
 */

#ifndef BE_KERNELS_SIMD_H
#define BE_KERNELS_SIMD_H

#include <math.h>

#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_simd.h"
#include "backend/cpu/be_simd_product.h"


/* Queries of a register tile. */

#if defined(__AVX512F__)
#define SIMD_VALUES  8
#else
#define SIMD_VALUES  4
#endif


static size_t
simd_size(uint32_t rows, uint32_t k)
{
    return (size_t) rows * simd_padded(k, SIMD_PAD) * sizeof(float);
}


BE_INLINE void
simd_pack_row(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *x, uint32_t n, int round)
{
    vf_t      v;
    float    *a;
    uint32_t  i, end;

    a = (float *) act + (size_t) row * simd_padded(k, SIMD_PAD) + col;

    for (i = 0; i + VL <= n; i += VL) {
        v = vf_load(x + i);
        vf_store(a + i, round ? vf_round_bf16(v) : v);
    }

    if (i < n) {
        v = vf_loadn(x + i, n - i);
        vf_store(a + i, round ? vf_round_bf16(v) : v);
        i += VL;
    }

    end = simd_padded(n, SIMD_PAD);

    for ( /* void */ ; i < end; i += VL) {
        vf_store(a + i, vf_zero());
    }
}


static void
simd_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint32_t  i;

    for (i = 0; i < m; i++) {
        simd_pack_row(act, k, row + i, col, x[i], n, 0);
    }
}


static __attribute__((unused)) void
simd_pack_rounded(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint32_t  i;

    for (i = 0; i < m; i++) {
        simd_pack_row(act, k, row + i, col, x[i], n, 1);
    }
}


/* --- attention --------------------------------------------------------- */

/* `rows` queries by one or two vectors of v, the last one of `lanes`. */

BE_INLINE void
simd_value_tile(const float *p, const uint8_t *v, size_t ldv, uint32_t n,
    const float *rescale, float *o, size_t ldo, const uint32_t rows,
    const uint32_t vectors, uint32_t lanes, const int bf16)
{
    vf_t            acc[SIMD_VALUES][2], x[2];
    size_t          size;
    uint32_t        i, j, t;
    const uint8_t  *from;

    size = bf16 ? 2 : 4;

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (j = 0; j < vectors; j++) {
            x[j] = (lanes == VL) ? vf_load(o + i * ldo + j * VL)
                                 : vf_loadn(o + i * ldo + j * VL, lanes);
            acc[i][j] = vf_mul(x[j], vf_set1(rescale[i]));
        }
    }

    for (t = 0; t < n; t++) {
#pragma GCC unroll 2
        for (j = 0; j < vectors; j++) {
            from = v + t * ldv + j * VL * size;

            if (lanes == VL) {
                x[j] = bf16 ? vf_load_bf16(from) : vf_load(from);

            } else {
                x[j] = bf16 ? vf_loadn_bf16(from, lanes)
                            : vf_loadn(from, lanes);
            }
        }

#pragma GCC unroll 8
        for (i = 0; i < rows; i++) {
#pragma GCC unroll 2
            for (j = 0; j < vectors; j++) {
                acc[i][j] = vf_fma(vf_set1(p[i * BE_BLOCK + t]), x[j],
                                   acc[i][j]);
            }
        }
    }

#pragma GCC unroll 8
    for (i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (j = 0; j < vectors; j++) {
            if (lanes == VL) {
                vf_store(o + i * ldo + j * VL, acc[i][j]);

            } else {
                vf_storen(o + i * ldo + j * VL, acc[i][j], lanes);
            }
        }
    }
}


/* All queries, `vectors` of v from column j on. */

BE_INLINE void
simd_value_strip(const be_value_t *value, uint32_t j, const uint32_t vectors,
    uint32_t lanes, const int bf16)
{
    float          *o;
    uint32_t        i, m;
    const float    *p;
    const uint8_t  *v;

    m = value->m;
    p = value->p;
    o = value->o + j;
    v = value->v + j * (size_t) (bf16 ? 2 : 4);

    for (i = 0; i + SIMD_VALUES <= m; i += SIMD_VALUES) {
        simd_value_tile(p + i * BE_BLOCK, v, value->ldv, value->n,
                        value->rescale + i, o + i * value->ldo, value->ldo,
                        SIMD_VALUES, vectors, lanes, bf16);
    }

    for ( /* void */ ; i + 2 <= m; i += 2) {
        simd_value_tile(p + i * BE_BLOCK, v, value->ldv, value->n,
                        value->rescale + i, o + i * value->ldo, value->ldo,
                        2, vectors, lanes, bf16);
    }

    if (i < m) {
        simd_value_tile(p + i * BE_BLOCK, v, value->ldv, value->n,
                        value->rescale + i, o + i * value->ldo, value->ldo,
                        1, vectors, lanes, bf16);
    }
}


BE_INLINE void
simd_value(const be_value_t *value, const int bf16)
{
    uint32_t  j;

    for (j = 0; j + 2 * VL <= value->dim; j += 2 * VL) {
        simd_value_strip(value, j, 2, VL, bf16);
    }

    if (j + VL <= value->dim) {
        simd_value_strip(value, j, 1, VL, bf16);
        j += VL;
    }

    if (j < value->dim) {
        simd_value_strip(value, j, 1, value->dim - j, bf16);
    }
}


static size_t
simd_value_size(uint32_t dim)
{
    (void) dim;

    return 0;
}


static void
simd_value_f32(be_value_t *value)
{
    simd_value(value, 0);
}


static __attribute__((unused)) void
simd_value_bf16(be_value_t *value)
{
    simd_value(value, 1);
}


/*
 * All BE_BLOCK lanes are worked on, those past n as exact zeros, so that the
 * sum has one shape.
 */

BE_INLINE float
simd_softmax_block(const float *s, uint32_t n, float scale, float *max,
    float *sum, vf_t *p)
{
    vf_t      m, t[4];
    float     top, rescale;
    uint32_t  i, lanes;

    m = vf_set1(*max);

#pragma GCC unroll 8
    for (i = 0; i < BE_BLOCK / VL; i++) {
        lanes = (n > i * VL) ? n - i * VL : 0;
        p[i] = vf_first(vf_mul(vf_loadn(s + i * VL, lanes), vf_set1(scale)),
                        vf_set1(-INFINITY), lanes);
        m = vf_max(p[i], m);
    }

    top = vf_largest(m);

#pragma GCC unroll 8
    for (i = 0; i < BE_BLOCK / VL; i++) {
        lanes = (n > i * VL) ? n - i * VL : 0;
        p[i] = vf_first(simd_exp(vf_sub(p[i], vf_set1(top))), vf_zero(),
                        lanes);
    }

#pragma GCC unroll 4
    for (i = 0; i < 4; i++) {
#if VL == 16
        t[i] = p[i];
#else
        t[i] = vf_add(p[i], p[i + 4]);
#endif
    }

    t[0] = vf_add(vf_add(t[0], t[1]), vf_add(t[2], t[3]));

    m = simd_exp(vf_set1(*max - top));
    vf_storen(&rescale, m, 1);

    *sum = *sum * rescale + vf_sum(t[0]);
    *max = top;

    return rescale;
}


static float
simd_softmax(const float *s, uint32_t n, float scale, float *max, float *sum,
    void *p)
{
    vf_t      v[BE_BLOCK / VL];
    float     rescale;
    uint32_t  i;

    rescale = simd_softmax_block(s, n, scale, max, sum, v);

#pragma GCC unroll 8
    for (i = 0; i < BE_BLOCK / VL; i++) {
        vf_store((float *) p + i * VL, v[i]);
    }

    return rescale;
}


static __attribute__((unused)) float
simd_softmax_rounded(const float *s, uint32_t n, float scale, float *max,
    float *sum, void *p)
{
    vf_t      v[BE_BLOCK / VL];
    float     rescale;
    uint32_t  i;

    rescale = simd_softmax_block(s, n, scale, max, sum, v);

#pragma GCC unroll 8
    for (i = 0; i < BE_BLOCK / VL; i++) {
        vf_store((float *) p + i * VL, vf_round_bf16(v[i]));
    }

    return rescale;
}


/* --- rows -------------------------------------------------------------- */

static void
simd_norm(const float *w, float eps, const float *x, uint32_t n, float *y)
{
    vf_t      acc[4], v;
    float     r;
    uint32_t  i, j;

    for (j = 0; j < 4; j++) {
        acc[j] = vf_zero();
    }

    for (i = 0; i + 4 * VL <= n; i += 4 * VL) {
#pragma GCC unroll 4
        for (j = 0; j < 4; j++) {
            v = vf_load(x + i + j * VL);
            acc[j] = vf_fma(v, v, acc[j]);
        }
    }

    for ( /* void */ ; i < n; i += VL) {
        v = vf_loadn(x + i, n - i);
        acc[0] = vf_fma(v, v, acc[0]);
    }

    r = vf_sum(vf_add(vf_add(acc[0], acc[1]), vf_add(acc[2], acc[3])));
    r = 1.0f / sqrtf(r / (float) n + eps);

    for (i = 0; i + VL <= n; i += VL) {
        v = vf_mul(vf_load(x + i), vf_set1(r));
        vf_store(y + i, vf_mul(v, vf_load(w + i)));
    }

    if (i < n) {
        v = vf_mul(vf_loadn(x + i, n - i), vf_set1(r));
        vf_storen(y + i, vf_mul(v, vf_loadn(w + i, n - i)), n - i);
    }
}


BE_INLINE vf_t
simd_silu(vf_t g, vf_t u)
{
    vf_t  d;

    d = vf_add(vf_set1(1.0f), simd_exp(vf_sub(vf_zero(), g)));

    return vf_mul(vf_div(g, d), u);
}


static void
simd_swiglu(const float *g, const float *u, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i + VL <= n; i += VL) {
        vf_store(y + i, simd_silu(vf_load(g + i), vf_load(u + i)));
    }

    if (i < n) {
        vf_storen(y + i, simd_silu(vf_loadn(g + i, n - i),
                                   vf_loadn(u + i, n - i)), n - i);
    }
}


static void
simd_axpy(float a, const float *x, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i + VL <= n; i += VL) {
        vf_store(y + i, vf_fma(vf_set1(a), vf_load(x + i), vf_load(y + i)));
    }

    if (i < n) {
        vf_storen(y + i, vf_fma(vf_set1(a), vf_loadn(x + i, n - i),
                                vf_loadn(y + i, n - i)), n - i);
    }
}


static void
simd_add(const float *x, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i + VL <= n; i += VL) {
        vf_store(y + i, vf_add(vf_load(y + i), vf_load(x + i)));
    }

    if (i < n) {
        vf_storen(y + i, vf_add(vf_loadn(y + i, n - i),
                                vf_loadn(x + i, n - i)), n - i);
    }
}


static void
simd_scale(float a, const float *x, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i + VL <= n; i += VL) {
        vf_store(y + i, vf_mul(vf_set1(a), vf_load(x + i)));
    }

    if (i < n) {
        vf_storen(y + i, vf_mul(vf_set1(a), vf_loadn(x + i, n - i)), n - i);
    }
}


static void
simd_merge(float a, float b, const float *x, uint32_t n, float *y)
{
    vf_t      v;
    uint32_t  i;

    for (i = 0; i + VL <= n; i += VL) {
        v = vf_mul(vf_set1(a), vf_load(y + i));
        vf_store(y + i, vf_fma(vf_set1(b), vf_load(x + i), v));
    }

    if (i < n) {
        v = vf_mul(vf_set1(a), vf_loadn(y + i, n - i));
        vf_storen(y + i, vf_fma(vf_set1(b), vf_loadn(x + i, n - i), v),
                  n - i);
    }
}

#endif /* BE_KERNELS_SIMD_H */
