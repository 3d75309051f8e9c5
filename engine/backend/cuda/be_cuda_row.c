/*
 * Rows of matrices in BF16, F32 and FP8, as a checkpoint has them.
 */

#include <string.h>

#include "backend/be_quant.h"
#include "backend/cuda/be_cuda_weight_int.h"


void
be_cuda_row_bf16(const be_tensor_t *t, uint32_t row, uint16_t *to)
{
    float           x;
    size_t          at;
    uint32_t        i;
    const float    *scale;
    const uint8_t  *from;

    at = (size_t) row * t->cols;
    from = t->data;

    switch (t->dtype) {

    case BE_BF16:
        memcpy(to, from + at * 2, (size_t) t->cols * 2);
        break;

    case BE_F32:
        for (i = 0; i < t->cols; i++) {
            memcpy(&x, from + (at + i) * 4, 4);
            to[i] = be_cuda_bf16(x);
        }

        break;

    default: /* BE_F8E4M3 */
        scale = t->scale + (size_t) (row / WEIGHT_BLOCK) * t->scale_cols;

        for (i = 0; i < t->cols; i++) {
            to[i] = be_cuda_bf16(be_from_e4m3(from[at + i])
                                * scale[i / WEIGHT_BLOCK]);
        }
    }
}


void
be_cuda_row_f32(const be_tensor_t *t, uint32_t row, float *to)
{
    size_t          at;
    uint16_t        h;
    uint32_t        i, u;
    const uint8_t  *from;

    at = (size_t) row * t->cols;
    from = t->data;

    for (i = 0; i < t->cols; i++) {

        if (t->dtype == BE_F32) {
            memcpy(&to[i], from + (at + i) * 4, 4);

        } else if (t->dtype == BE_BF16) {
            memcpy(&h, from + (at + i) * 2, 2);
            u = (uint32_t) h << 16;
            memcpy(&to[i], &u, 4);

        } else {
            to[i] = be_from_e4m3(from[at + i])
                    * t->scale[(size_t) (row / WEIGHT_BLOCK) * t->scale_cols
                               + i / WEIGHT_BLOCK];
        }
    }
}
