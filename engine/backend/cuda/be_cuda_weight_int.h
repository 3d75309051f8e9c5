/*
 * Inside be_cuda_weight.c: how matrices come to the device.
 */

#ifndef BACKEND_BE_CUDA_WEIGHT_INT_H
#define BACKEND_BE_CUDA_WEIGHT_INT_H

#include <string.h>

#include "backend/cuda/be_cuda.h"


#define WEIGHT_BLOCK  128            /* of a scale, both ways */


/* What is copied to `to`, a buffer at a time. */

typedef struct {
    be_cuda_t  *cuda;
    uint8_t    *to;
    size_t      used;                /* of the buffer at hand */
    int         rc;
} cuda_stage_t;


/*
 * be_cuda_stage.c.  Pinned buffers that take turns, made by be_cuda_stages();
 * 0, or -1 with the reason.  The others are one copy: it is begun, filled, by
 * room for `size` bytes behind what went before (NULL: it failed) or by bytes,
 * and flushed; `rc` is the first error of CUDA, 0 if there is none.
 */

int be_cuda_stages(be_cuda_t *cuda, char *err);
void be_cuda_stage(cuda_stage_t *s, be_cuda_t *cuda, void *to);
void *be_cuda_stage_room(cuda_stage_t *s, size_t size);
void be_cuda_stage_put(cuda_stage_t *s, const void *p, size_t size);
void be_cuda_stage_flush(cuda_stage_t *s);


/* be_cuda_row.c.  A row of a checkpoint's matrix, without its parts. */

void be_cuda_row_bf16(const be_tensor_t *t, uint32_t row, uint16_t *to);
void be_cuda_row_f32(const be_tensor_t *t, uint32_t row, float *to);


/* Nearest even. */

static inline uint16_t
be_cuda_bf16(float x)
{
    uint32_t  u;

    memcpy(&u, &x, 4);

    if ((u & 0x7fffffff) > 0x7f800000) {
        return (uint16_t) (u >> 16 | 0x40);
    }

    return (uint16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

#endif /* BACKEND_BE_CUDA_WEIGHT_INT_H */
