/*
 * The weight of a row of logits, as all that draw from them have it: on the
 * CPU and in a device's kernel it is the same bits, where neither makes one
 * operation of a multiplication and an addition.
 */

#ifndef SAMPLE_SAMPLE_WEIGHT_H
#define SAMPLE_SAMPLE_WEIGHT_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>


#define SAMPLE_FAR        60.0
#define SAMPLE_BUCKETS    1024
#define SAMPLE_PER_UNIT   17.0       /* 60 * 17 < SAMPLE_BUCKETS */
#define SAMPLE_BLOCK      64         /* rows weighed, and summed, together */

#if defined(__CUDACC__)
#define SAMPLE_INLINE     __device__ __forceinline__
#else
#define SAMPLE_INLINE     inline
#endif


/* NaN and -inf can never be drawn; +inf is merely very likely. */

static SAMPLE_INLINE float
sample_finite(float x)
{
    if (isnan(x)) {
        return -INFINITY;
    }

    return x > FLT_MAX ? FLT_MAX : x;
}


/*
 * exp(-d) for 0 <= d <= SAMPLE_FAR: 2^k times exp(r), |r| <= ln 2 / 2, by its
 * series; right to 1e-11 of its value.  Adding `round` leaves the nearest
 * integer in the low bits; there is no branch and no call, so that loops over
 * it become vector code.
 */

static SAMPLE_INLINE double
sample_exp(double d)
{
    double    k, r, y;
    uint64_t  bits;

    const double  round = 0x1.8p52;

    k = round - d * 1.4426950408889634074;

    memcpy(&bits, &k, sizeof(bits));
    bits = (bits + 1023) << 52;

    k -= round;
    r = -d - k * 0x1.62e42fefa3800p-1;
    r -= k * 0x1.ef35793c76730p-45;

    y = 1.0 / 3628800 * r + 1.0 / 362880;
    y = y * r + 1.0 / 40320;
    y = y * r + 1.0 / 5040;
    y = y * r + 1.0 / 720;
    y = y * r + 1.0 / 120;
    y = y * r + 1.0 / 24;
    y = y * r + 1.0 / 6;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;

    memcpy(&k, &bits, sizeof(k));

    return k * y;
}

#endif /* SAMPLE_SAMPLE_WEIGHT_H */
