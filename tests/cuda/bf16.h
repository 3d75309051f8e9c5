/*
 * BF16 on the host, apart from the engine's own: rounds to the nearest, ties to
 * even; a quiet NaN stays one.
 */

#ifndef TEST_CUDA_BF16_H
#define TEST_CUDA_BF16_H

#include <stdint.h>
#include <string.h>


static inline uint16_t
to_bf16(float f)
{
    uint32_t  u;

    memcpy(&u, &f, 4);

    return (uint16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}


/* In double: references multiply what it returns. */

static inline double
from_bf16(uint16_t h)
{
    float     f;
    uint32_t  u;

    u = (uint32_t) h << 16;
    memcpy(&f, &u, 4);

    return f;
}

#endif
