/*
 * Products of pairs of BF16 on vectors (AVX-512 BF16), for the files that
 * use them.
 */

#ifndef BE_BF16_H
#define BE_BF16_H

#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_simd.h"


#define BF16_PAD  32                 /* elements of a vector */


/* The first n of a vector's elements, the others zero. */

BE_INLINE __m512i
bf16_loadn(const void *p, uint32_t n)
{
    return _mm512_maskz_loadu_epi16((n >= 32) ? 0xffffffff : (1u << n) - 1,
                                    p);
}


/*
 * s[i][t] = q[i] . kv[t], for the queries of a run and n tokens that lie one
 * behind the other; lds in floats.  Asks for what lies `ahead` bytes further,
 * if that is not 0.
 */
void be_bf16_scores(const be_run_t *run, const uint8_t *kv, uint32_t n,
    ptrdiff_t ahead, float *s, size_t lds);

/* Attention's functions of the kernel table. */
size_t be_bf16_run_size(uint32_t queries, uint32_t dim);
void be_bf16_run(const be_run_t *run);

#endif /* BE_BF16_H */
