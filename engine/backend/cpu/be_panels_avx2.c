/*
 * Products with quantised weights: AVX2.
 */

#if defined(__x86_64__)

#include "backend/cpu/be_panels_simd.h"


PANELS(be_panels_avx2_f8, BE_F8E4M3, 0)
PANELS(be_panels_avx2_int8, BE_INT8, 0)
PANELS(be_panels_avx2_int4, BE_INT4, 0)
PANELS(be_panels_avx2_rounded_f8, BE_F8E4M3, 1)

#else

typedef int be_panels_avx2_none_t;

#endif
