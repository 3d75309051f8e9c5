/*
 * Kernels that go row by row: what a step's rows are, embedding, norm, copies
 * in the type of a product's inputs, combine.
 *
 * All are queued on `stream` (a cudaStream_t) and return a cudaError_t as int.
 * Matrices are row-major.  A row's result depends on nothing but the row: one
 * block of threads has a row, and adds up in one order.
 */

#ifndef CU_ROWS_H
#define CU_ROWS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif


#define CU_GROUP    128              /* elements of a scale of activations */
#define CU_NO_ROW   UINT32_MAX       /* position of a row that is padding */

/*
 * A step's rows in the device's memory.  The KV blocks of sequence s are
 * table[at[s]], …, by position / 64.
 */

typedef struct {
    const int32_t   *id;             /* [rows] */
    const uint32_t  *pos;            /* [rows], CU_NO_ROW: padding */
    const uint32_t  *seq;            /* [rows] */
    const uint32_t  *at;             /* [sequences] */
    const uint32_t  *first;          /* [sequences] */
    const int32_t   *table;
    uint32_t         rows;
} cu_batch_t;

/*
 * Rows in the type of a product's inputs.  BF16: [rows][ld].  FP8: e4m3fn
 * [rows][ld], the scale of row r, elements 128 g …, at scale[g * ld_scale + r].
 * Where `x` is NULL nothing is stored.
 */

typedef struct {
    void      *x;
    float     *scale;                /* NULL: BF16 */
    uint32_t   ld;                   /* elements */
    uint32_t   ld_scale;
} cu_act_t;

/*
 * Rows of float32: row r is x + r * ld, or px[r].  With `up` what counts is
 * silu(x) * up, both [rows][ld].  `rows` are there at most; with `n`, in the
 * device's memory, *n of them.
 */

typedef struct {
    const float         *x;
    const float *const  *px;
    const float         *up;
    size_t               ld;
    uint32_t             rows;
    uint32_t             dim;
    const uint32_t      *n;
} cu_src_t;


/* y[r] = table[id[r]], table [][dim] of BF16 or, with `wide`, float32. */
int cu_embed(const void *table, int wide, const cu_batch_t *b, uint32_t dim,
    float *y, void *stream);

/* y[i] = x[row[i]], each [dim] */
int cu_gather(const float *x, const uint32_t *row, uint32_t n, uint32_t dim,
    float *y, void *stream);

/* y[i] = a[i], then b[i] */
int cu_join(const float *a, const float *b, uint32_t rows, uint32_t dim,
    float *y, void *stream);

/*
 * y = x * w / sqrt(mean(x^2) + eps); y may be x, or NULL where only `act` is
 * wanted.  dim at most CU_NORM_MAX.
 */
#define CU_NORM_MAX  32768

int cu_norm(const float *w, float eps, const float *x, uint32_t rows,
    uint32_t dim, float *y, const cu_act_t *act, void *stream);

/* The rows of `src`, rounded to BF16 or quantised. */
int cu_act(const cu_src_t *src, const cu_act_t *act, void *stream);

/*
 * x[r] += weight[r][k] * c[r][k], k in order, one fused multiplication and
 * addition each.
 */
int cu_combine(const float *c, const float *weight, uint32_t rows,
    uint32_t top_k, uint32_t dim, float *x, void *stream);

/* The same of contributions in BF16. */
int cu_combine_bf16(const uint16_t *c, const float *weight, uint32_t rows,
    uint32_t top_k, uint32_t dim, float *x, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_ROWS_H */
