/*
 * The table of inner loops of one kernel path.  Everything that depends on
 * the instruction set is here; how work is cut and who does it is not.
 *
 * Each output element is one fixed sequence of operations over the inner
 * dimension, whatever the number of rows, the blocking in registers or the
 * place of the element.  That is the whole of the backend's determinism: the
 * code above these loops may cut a product into any tiles it likes.
 *
 * Pointers into weights are bytes, because mapped tensors are not aligned.
 */

#ifndef BE_KERNELS_H
#define BE_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "backend/backend.h"


/*
 * A run of tokens, the unit of attention: within it weights are relative to
 * its own largest score, and what comes of the runs is merged in order.  So
 * runs may be computed by different threads, and a run of many tokens in one
 * chain of sums.
 */

#define BE_RUN        512            /* tokens */

#define BE_ROW_BLOCK  16             /* the largest row_block of a path */
#define BE_PIECE      32             /* columns, of a packing */

/*
 * Attention of m queries over one run: for query i, of the tokens first …
 * n[i] - 1 the largest score, the sum of exp(score - largest), and the sum of
 * that times their values, o[i].  A query with n[i] <= first gives a sum of
 * zero.  All tokens before the largest n are finite.  What o, max, sum and n
 * point to goes on to a multiple of BE_ROW_BLOCK queries, n with zeros, ldo
 * is a multiple of 32.
 */

typedef struct {
    const void            *q;        /* packed, of k elements */
    uint32_t               m;
    uint32_t               k;
    uint32_t               dim;      /* of values: the first of the k */
    const uint8_t *const  *kv;       /* blocks of BE_BLOCK tokens */
    const uint8_t *const  *ahead;    /* those that may be wanted next */
    uint32_t               n_ahead;  /* tokens of them, 0: not known */
    size_t                 ldkv;     /* bytes from token to token */
    uint32_t               first;
    const uint32_t        *n;
    float                  scale;
    float                 *o;        /* [m][ldo] */
    size_t                 ldo;
    float                 *max;
    float                 *sum;
    void                  *work;     /* run_size() */
} be_run_t;


/*
 * One block of values of the online softmax: for i < m, j < dim,
 *
 *     o[i][j] = o[i][j] * rescale[i] + sum over t < n, in order, of
 *               p[i][t] v[t][j]
 *
 * p is [m][BE_BLOCK], zero from n on, v as in the KV pool, ldv in bytes, ldo
 * in floats.  `work` is memory for a rearranged v, of which `have` tokens are
 * done: a caller sets it to zero for each v.
 */

typedef struct {
    const void    *p;
    uint32_t       m;
    uint32_t       n;
    uint32_t       dim;
    const uint8_t *v;
    size_t         ldv;
    const float   *rescale;
    float         *o;
    size_t         ldo;
    void          *work;
    uint32_t       have;
} be_value_t;


/*
 * Products with weights of one type.  Activations are packed first: rounded
 * to BF16 in that mode and padded with zeros, so that the inner loops need no
 * tail on that side.  `row_block` rows are packed together; a product must
 * start at a multiple of it.  How they are packed may differ from type to
 * type.
 */

typedef struct {
    uint32_t   row_block;            /* 0: there are no such products */

    /* Bytes that `rows` packed rows of k elements take. */
    size_t   (*size)(uint32_t rows, uint32_t k);

    /*
     * Puts n elements of each x[i] at columns col … of packed row row + i,
     * i < m.  The piece that ends at k also clears the padding; all others
     * start and end at a multiple of `piece` columns.  The rows lie in one
     * row block; other rows of it are left alone.
     */
    void     (*pack)(void *act, uint32_t k, uint32_t row, uint32_t col,
                  const float *const *x, uint32_t m, uint32_t n);

    /*
     * c[i][j] = act[row + i] . w[j] for i < m, j < n.  ldw in bytes, from row
     * to row or, of weights in panels, from panel to panel; ldc in floats.
     */
    void     (*product)(const void *act, uint32_t k, uint32_t row,
                  uint32_t m, const uint8_t *w, size_t ldw, uint32_t n,
                  float *c, size_t ldc);

    uint32_t   piece;                /* 0: BE_PIECE */
} be_gemm_t;

typedef struct {
    be_gemm_t  gemm[BE_DTYPES];      /* by the type of the weights */

    size_t     prob_size;            /* bytes of a probability */
    size_t   (*value_size)(uint32_t dim);            /* of `work` */
    void     (*value)(be_value_t *value);

    /*
     * One block of the online softmax for one row: s[0 … n - 1] scaled, then
     * maximum and sum brought up to date, probabilities stored (the rest of
     * the BE_BLOCK is zero), and the factor for what was summed before.
     */
    float    (*softmax)(const float *s, uint32_t n, float scale, float *max,
                  float *sum, void *p);

    /*
     * A run as a whole, instead of the three above.  NULL: block by block
     * with these.
     */
    size_t   (*run_size)(uint32_t queries, uint32_t dim);
    void     (*run)(const be_run_t *run);
} be_mode_kernels_t;

typedef struct {
    const char         *path;
    be_mode_kernels_t   mode[2];     /* by compute: BE_F32, BE_BF16 */

    void (*norm)(const float *w, float eps, const float *x, uint32_t n,
        float *y);

    /* y[i] = silu(g[i]) * u[i];  y may be g */
    void (*swiglu)(const float *g, const float *u, uint32_t n, float *y);

    /* y[i] += a * x[i];  add: y[i] += x[i];  scale: y[i] = a * x[i] */
    void (*axpy)(float a, const float *x, uint32_t n, float *y);
    void (*add)(const float *x, uint32_t n, float *y);
    void (*scale)(float a, const float *x, uint32_t n, float *y);

    /* y[i] = a * y[i] + b * x[i] */
    void (*merge)(float a, float b, const float *x, uint32_t n, float *y);
} be_kernels_t;


extern const be_kernels_t  be_kernels_generic;
extern const be_kernels_t  be_kernels_avx2;
extern const be_kernels_t  be_kernels_avx512;
extern const be_kernels_t  be_kernels_avx512bf16;
extern const be_kernels_t  be_kernels_amx;

/* Asks the system for the matrix registers; 0 if they may be used. */
int be_amx_enable(void);


/*
 * exp(): range, reduction, and the polynomial of every path.  Above the
 * largest argument the result is infinite, a little early (2^127.5).
 */

#define BE_EXP_MIN  -87.3365f
#define BE_EXP_MAX  88.3762f
#define BE_LOG2E    1.44269504088896341f
#define BE_LN2_HI   0.693359375f
#define BE_LN2_LO   -2.12194440e-4f
#define BE_EXP_7    1.98412698e-4f
#define BE_EXP_6    1.38888889e-3f
#define BE_EXP_5    8.33333333e-3f
#define BE_EXP_4    4.16666667e-2f
#define BE_EXP_3    1.66666667e-1f
#define BE_EXP_2    0.5f


/* BF16 by rounding to nearest even; a NaN stays one. */

static inline uint16_t
be_to_bf16(float x)
{
    uint32_t  u;

    memcpy(&u, &x, 4);

    if ((u & 0x7fffffff) > 0x7f800000) {
        return (uint16_t) ((u >> 16) | 0x40);
    }

    return (uint16_t) ((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}


static inline float
be_from_bf16(uint16_t h)
{
    float     x;
    uint32_t  u;

    u = (uint32_t) h << 16;
    memcpy(&x, &u, 4);

    return x;
}


/* The element at p, which may be unaligned. */

static inline float
be_load_f32(const uint8_t *p)
{
    float  x;

    memcpy(&x, p, 4);

    return x;
}


static inline float
be_load_bf16(const uint8_t *p)
{
    uint16_t  h;

    memcpy(&h, p, 2);

    return be_from_bf16(h);
}

#endif /* BE_KERNELS_H */
