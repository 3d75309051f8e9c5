/*
 * Kernels in plain C: the reference for the others, and what runs where
 * nothing better does.  Sums go over the inner dimension in order, one
 * product and one addition at a time.  With BF16 the rounded inputs are kept
 * as floats.
 */

#include <math.h>

#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_panels.h"


static size_t generic_size(uint32_t rows, uint32_t k);
static size_t generic_value_size(uint32_t dim);
static void generic_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n);
static void generic_pack_bf16(void *act, uint32_t k, uint32_t row,
    uint32_t col, const float *const *x, uint32_t m, uint32_t n);
static void generic_product_f32(const void *act, uint32_t k, uint32_t row,
    uint32_t m, const uint8_t *w, size_t ldw, uint32_t n, float *c,
    size_t ldc);
static void generic_product_bf16(const void *act, uint32_t k, uint32_t row,
    uint32_t m, const uint8_t *w, size_t ldw, uint32_t n, float *c,
    size_t ldc);
static void generic_value_f32(be_value_t *value);
static void generic_value_bf16(be_value_t *value);
static float generic_softmax(const float *s, uint32_t n, float scale,
    float *max, float *sum, void *p);
static float generic_softmax_bf16(const float *s, uint32_t n, float scale,
    float *max, float *sum, void *p);
static void generic_norm(const float *w, float eps, const float *x,
    uint32_t n, float *y);
static void generic_swiglu(const float *g, const float *u, uint32_t n,
    float *y);
static void generic_axpy(float a, const float *x, uint32_t n, float *y);
static void generic_add(const float *x, uint32_t n, float *y);
static void generic_scale(float a, const float *x, uint32_t n, float *y);
static void generic_merge(float a, float b, const float *x, uint32_t n,
    float *y);
static float generic_exp(float x);


const be_kernels_t  be_kernels_generic = {
    .path = "generic",
    .mode = {
        [BE_F32] = {
            .gemm[BE_F32] = { 1, generic_size, generic_pack,
                              generic_product_f32 },
            .gemm[BE_BF16] = { 1, generic_size, generic_pack,
                              generic_product_bf16 },
            BE_PANEL_GEMMS(1, generic_size, generic_pack, be_panels_generic),
            .prob_size = sizeof(float),
            .value_size = generic_value_size,
            .value = generic_value_f32,
            .softmax = generic_softmax
        },
        [BE_BF16] = {
            .gemm[BE_F32] = { 1, generic_size, generic_pack_bf16,
                              generic_product_f32 },
            .gemm[BE_BF16] = { 1, generic_size, generic_pack_bf16,
                              generic_product_bf16 },
            BE_PANEL_GEMMS(1, generic_size, generic_pack_bf16,
                           be_panels_generic_rounded),
            .prob_size = sizeof(float),
            .value_size = generic_value_size,
            .value = generic_value_bf16,
            .softmax = generic_softmax_bf16
        }
    },
    .norm = generic_norm,
    .swiglu = generic_swiglu,
    .axpy = generic_axpy,
    .add = generic_add,
    .scale = generic_scale,
    .merge = generic_merge
};


static size_t
generic_size(uint32_t rows, uint32_t k)
{
    return (size_t) rows * k * sizeof(float);
}


static size_t
generic_value_size(uint32_t dim)
{
    (void) dim;

    return 0;
}


static void
generic_pack(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    uint32_t  i;

    for (i = 0; i < m; i++) {
        memcpy((float *) act + (size_t) (row + i) * k + col, x[i],
               n * sizeof(float));
    }
}


static void
generic_pack_bf16(void *act, uint32_t k, uint32_t row, uint32_t col,
    const float *const *x, uint32_t m, uint32_t n)
{
    float     *a;
    uint32_t   i, j;

    for (i = 0; i < m; i++) {
        a = (float *) act + (size_t) (row + i) * k + col;

        for (j = 0; j < n; j++) {
            a[j] = be_from_bf16(be_to_bf16(x[i][j]));
        }
    }
}


static void
generic_product_f32(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    float           sum;
    uint32_t        i, j, l;
    const float    *a;
    const uint8_t  *b;

    for (i = 0; i < m; i++) {
        a = (const float *) act + (size_t) (row + i) * k;

        for (j = 0; j < n; j++) {
            b = w + j * ldw;
            sum = 0.0f;

            for (l = 0; l < k; l++) {
                sum += a[l] * be_load_f32(b + (size_t) l * 4);
            }

            c[i * ldc + j] = sum;
        }
    }
}


static void
generic_product_bf16(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc)
{
    float           sum;
    uint32_t        i, j, l;
    const float    *a;
    const uint8_t  *b;

    for (i = 0; i < m; i++) {
        a = (const float *) act + (size_t) (row + i) * k;

        for (j = 0; j < n; j++) {
            b = w + j * ldw;
            sum = 0.0f;

            for (l = 0; l < k; l++) {
                sum += a[l] * be_load_bf16(b + (size_t) l * 2);
            }

            c[i * ldc + j] = sum;
        }
    }
}


static void
generic_value_f32(be_value_t *value)
{
    float          a, *o;
    uint32_t       i, j, t;
    const float   *p;

    for (i = 0; i < value->m; i++) {
        p = (const float *) value->p + (size_t) i * BE_BLOCK;
        o = value->o + i * value->ldo;

        for (j = 0; j < value->dim; j++) {
            a = o[j] * value->rescale[i];

            for (t = 0; t < value->n; t++) {
                a += p[t] * be_load_f32(value->v + t * value->ldv
                                        + (size_t) j * 4);
            }

            o[j] = a;
        }
    }
}


static void
generic_value_bf16(be_value_t *value)
{
    float          a, *o;
    uint32_t       i, j, t;
    const float   *p;

    for (i = 0; i < value->m; i++) {
        p = (const float *) value->p + (size_t) i * BE_BLOCK;
        o = value->o + i * value->ldo;

        for (j = 0; j < value->dim; j++) {
            a = o[j] * value->rescale[i];

            for (t = 0; t < value->n; t++) {
                a += p[t] * be_load_bf16(value->v + t * value->ldv
                                        + (size_t) j * 2);
            }

            o[j] = a;
        }
    }
}


static float
generic_softmax(const float *s, uint32_t n, float scale, float *max,
    float *sum, void *p)
{
    float      m, rescale, block, *out;
    uint32_t   i;

    out = p;
    m = *max;

    for (i = 0; i < n; i++) {
        out[i] = s[i] * scale;
        m = (out[i] > m) ? out[i] : m;
    }

    block = 0.0f;

    for (i = 0; i < n; i++) {
        out[i] = generic_exp(out[i] - m);
        block += out[i];
    }

    for ( /* void */ ; i < BE_BLOCK; i++) {
        out[i] = 0.0f;
    }

    rescale = generic_exp(*max - m);

    *sum = *sum * rescale + block;
    *max = m;

    return rescale;
}


static float
generic_softmax_bf16(const float *s, uint32_t n, float scale, float *max,
    float *sum, void *p)
{
    float      rescale, *out;
    uint32_t   i;

    out = p;
    rescale = generic_softmax(s, n, scale, max, sum, p);

    for (i = 0; i < n; i++) {
        out[i] = be_from_bf16(be_to_bf16(out[i]));
    }

    return rescale;
}


static void
generic_norm(const float *w, float eps, const float *x, uint32_t n, float *y)
{
    float     sum, r;
    uint32_t  i;

    sum = 0.0f;

    for (i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }

    r = 1.0f / sqrtf(sum / (float) n + eps);

    for (i = 0; i < n; i++) {
        y[i] = x[i] * r * w[i];
    }
}


static void
generic_swiglu(const float *g, const float *u, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        y[i] = g[i] / (1.0f + generic_exp(-g[i])) * u[i];
    }
}


static void
generic_axpy(float a, const float *x, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        y[i] += a * x[i];
    }
}


static void
generic_add(const float *x, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        y[i] += x[i];
    }
}


static void
generic_scale(float a, const float *x, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        y[i] = a * x[i];
    }
}


static void
generic_merge(float a, float b, const float *x, uint32_t n, float *y)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        y[i] = a * y[i] + b * x[i];
    }
}


/*
 * exp(x) within two units in the last place: x = n ln 2 + r with
 * |r| <= ln 2 / 2, then a polynomial in r.  What would be denormal is zero.
 * The coefficients are those of Taylor's series, whose first neglected term
 * is below 6e-9 there.
 */

static float
generic_exp(float x)
{
    float     n, r, y;
    uint32_t  u;

    if (!(x > BE_EXP_MIN)) {
        return isnan(x) ? x : 0.0f;
    }

    if (x > BE_EXP_MAX) {
        return INFINITY;
    }

    n = rintf(x * BE_LOG2E);
    r = x - n * BE_LN2_HI;
    r = r - n * BE_LN2_LO;

    y = BE_EXP_7;
    y = y * r + BE_EXP_6;
    y = y * r + BE_EXP_5;
    y = y * r + BE_EXP_4;
    y = y * r + BE_EXP_3;
    y = y * r + BE_EXP_2;
    y = y * r + 1.0f;
    y = y * r + 1.0f;

    /* n is at most 127: 128 needs x > 88.3 and is cut off above. */

    u = (uint32_t) ((int32_t) n + 127) << 23;
    memcpy(&r, &u, 4);

    return y * r;
}
