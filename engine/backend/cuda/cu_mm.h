/*
 * A product y = x w^T of rows and a matrix, and how the kernels and libraries
 * that do it are told about it.
 *
 * cu_mm_simple() takes any shape and alignment, a thread for an element: what
 * others are held against, and what is left for shapes that they refuse.
 */

#ifndef CU_MM_H
#define CU_MM_H

#include "backend/cuda/cu_rows.h"

#ifdef __cplusplus
extern "C" {
#endif


typedef enum { CU_MM_BF16 = 0, CU_MM_FP8, CU_MM_INT4 } cu_mm_type_t;

/*
 * A matrix [n][k].  INT4: panels as be_quant.h has them, `ld` unused; with x in
 * BF16 level times scale is rounded to BF16, with x in FP8 the level is exact.
 * BF16, or e4m3fn with a float32 scale for each block of 128 x 128 at
 * scale[r / 128 * ld_scale + c / 128].  `ld` in elements.
 */

typedef struct {
    const void    *w;
    const float   *scale;
    uint32_t       n;
    uint32_t       k;
    uint32_t       ld;
    uint32_t       ld_scale;
    cu_mm_type_t   type;
} cu_matrix_t;

/*
 * For b < batch: y + b * stride_y, [rows][ldy], from x + b * stride_x and the
 * matrix at w + b * stride_w (BF16 only); strides in elements.  y is float32
 * or, with `narrow`, BF16; `add` adds to it.
 */

typedef struct {
    cu_matrix_t         m;
    const cu_matrix_t  *dev;         /* the same in the device's memory, of
                                        batches NULL */
    cu_act_t            x;           /* of the matrix's type; with INT4 BF16
                                        or, where it has a scale, FP8 */
    void               *y;
    size_t              ldy;
    uint32_t            rows;
    uint32_t            batch;
    size_t              stride_w;
    size_t              stride_x;
    size_t              stride_y;
    int                 narrow;
    int                 add;
} cu_mm_t;

/*
 * Products of groups of rows, each with a matrix of its own: rows offset[e] …
 * offset[e + 1] - 1 of x with m[e]; both arrays are in the device's memory, all
 * matrices are of one shape and type.  Row p of the result goes to y + p * ldy,
 * or to py[p].  There are at most `rows` rows.
 */

typedef struct {
    const cu_matrix_t  *m;           /* [groups] */
    const uint32_t     *offset;      /* [groups + 1] */
    uint32_t            groups;
    uint32_t            rows;
    uint32_t            n;
    uint32_t            k;
    cu_act_t            x;
    float              *y;
    float *const       *py;
    size_t              ldy;
    int                 narrow;      /* y is BF16, not with py */
} cu_mm_grouped_t;


int cu_mm_simple(const cu_mm_t *p, void *stream);
int cu_mm_grouped_simple(const cu_mm_grouped_t *p, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_MM_H */
