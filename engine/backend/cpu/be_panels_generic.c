/*
 * Products with quantised weights in plain C: sums in order over k.
 */

#include "backend/cpu/be_panels.h"


static void panels_product(const void *act, uint32_t k, uint32_t row,
    uint32_t m, const uint8_t *w, size_t ldw, uint32_t n, float *c,
    size_t ldc, be_dtype_t dtype, int round);


#define PANELS(name, dtype, round)                                           \
    BE_PANEL_PRODUCT(name)                                                   \
    {                                                                        \
        panels_product(act, k, row, m, w, ldw, n, c, ldc, dtype, round);     \
    }

PANELS(be_panels_generic_f8, BE_F8E4M3, 0)
PANELS(be_panels_generic_int8, BE_INT8, 0)
PANELS(be_panels_generic_int4, BE_INT4, 0)
PANELS(be_panels_generic_rounded_f8, BE_F8E4M3, 1)
PANELS(be_panels_generic_rounded_int8, BE_INT8, 1)
PANELS(be_panels_generic_rounded_int4, BE_INT4, 1)


static void
panels_product(const void *act, uint32_t k, uint32_t row, uint32_t m,
    const uint8_t *w, size_t ldw, uint32_t n, float *c, size_t ldc,
    be_dtype_t dtype, int round)
{
    float         x[BE_CHUNK * BE_PANEL], sum;
    uint32_t      i, j, o, l, t, steps, outs;
    const float  *a;

    for (j = 0; j < n; j += BE_PANEL) {
        outs = (n - j < BE_PANEL) ? n - j : BE_PANEL;

        for (l = 0; l < k; l += BE_CHUNK) {
            steps = (k - l < BE_CHUNK) ? k - l : BE_CHUNK;

            be_quant_decode(dtype, w + j / BE_PANEL * ldw
                                   + l / BE_CHUNK * be_quant_chunk(dtype), x);

            for (t = 0; round && t < BE_CHUNK * BE_PANEL; t++) {
                x[t] = be_from_bf16(be_to_bf16(x[t]));
            }

            for (i = 0; i < m; i++) {
                a = (const float *) act + (size_t) (row + i) * k + l;

                for (o = 0; o < outs; o++) {
                    sum = (l == 0) ? 0.0f : c[i * ldc + j + o];

                    for (t = 0; t < steps; t++) {
                        sum += a[t] * x[t * BE_PANEL + o];
                    }

                    c[i * ldc + j + o] = sum;
                }
            }
        }
    }
}
