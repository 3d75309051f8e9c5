/*
 * Products of the stand-in for cuBLASLt.
 *
 * Sums are float32, in FP8 of 128 elements, which are scaled and added up.  The
 * order along K is the algorithm's: its step, and how many parts of K are
 * added at the end (where reductions are allowed).
 */

#include <string.h>

#include <vector>

#include "emu_blas.h"
#include "emu_types.h"


#define BLAS_LANES  16


static float
blas_get(int type, const uint8_t *p, size_t i)
{
    float     f;
    uint16_t  h;

    switch (type) {

    case CUDA_R_32F:
        memcpy(&f, p + 4 * i, 4);
        return f;

    case CUDA_R_16BF:
        memcpy(&h, p + 2 * i, 2);
        return emu_from_bf16(h);

    default:
        return emu_from_e4m3(p[i]);
    }
}


/* A column's elements from … to, in the algorithm's order. */

static float
blas_sum(const product_t *p, const float *a, const float *b, size_t from,
    size_t to)
{
    float   sum, lane[BLAS_LANES];
    size_t  i, j, end;

    sum = 0;

    for (i = from; i < to; i = end) {
        end = (i + p->algo.step < to) ? i + p->algo.step : to;
        memset(lane, 0, sizeof(lane));

        for (j = i; j + BLAS_LANES <= end; j += BLAS_LANES) {
            for (int l = 0; l < BLAS_LANES; l++) {
                lane[l] += a[j + (size_t) l] * b[j + (size_t) l];
            }
        }

        for (int l = 0; l < BLAS_LANES; l++) {
            sum += lane[l];
        }

        for (; j < end; j++) {
            sum += a[j] * b[j];
        }
    }

    return sum;
}


static float
blas_scale(const product_t *p, int of, size_t i, size_t block)
{
    size_t  blocks;

    blocks = (p->a.rows + 127) / 128;

    if (p->desc.mode[of] == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F) {
        return p->desc.scale[of][block * (of ? p->d.cols : p->d.rows) + i];
    }

    return p->desc.scale[of][i / 128 * ((blocks + 3) / 4 * 4) + block];
}


static float
blas_element(const product_t *p, const float *a, const float *b, size_t row,
    size_t col)
{
    float   sum;
    size_t  k, i, end, part;

    k = p->a.rows;
    sum = 0;

    if (p->a.type == CUDA_R_8F_E4M3) {
        for (i = 0; i < k; i += 128) {
            end = (i + 128 < k) ? i + 128 : k;
            sum += blas_sum(p, a, b, i, end)
                   * (blas_scale(p, 0, row, i / 128)
                      * blas_scale(p, 1, col, i / 128));
        }

        return sum;
    }

    part = (k / p->algo.parts + 127) / 128 * 128;

    for (i = 0; i < k; i += part) {
        sum += blas_sum(p, a, b, i, i + part < k ? i + part : k);
    }

    return sum;
}


void
emu_blas_run(const product_t *p)
{
    float               v;
    size_t              m, n, k, i, j, e, at, batch, size;
    uint16_t            h;
    std::vector<float>  a, b;

    m = p->d.rows;
    n = p->d.cols;
    k = p->a.rows;
    size = blas_size(p->a.type);
    a.resize(m * k);
    b.resize(k);

    for (batch = 0; batch < (size_t) p->d.batch; batch++) {
        const uint8_t  *pa = p->pa + batch * p->a.stride * size;
        const uint8_t  *pb = p->pb + batch * p->b.stride * size;

        for (i = 0; i < m; i++) {
            for (e = 0; e < k; e++) {
                a[i * k + e] = blas_get(p->a.type, pa, i * p->a.ld + e);
            }
        }

        for (j = 0; j < n; j++) {
            for (e = 0; e < k; e++) {
                b[e] = blas_get(p->b.type, pb, j * p->b.ld + e);
            }

            for (i = 0; i < m; i++) {
                at = batch * p->d.stride + j * p->d.ld + i;
                v = p->alpha * blas_element(p, &a[i * k], b.data(), i, j);

                if (p->beta != 0) {
                    v += p->beta * blas_get(p->d.type, p->pc, at);
                }

                if (p->d.type == CUDA_R_32F) {
                    memcpy(p->pd + 4 * at, &v, 4);

                } else {
                    h = emu_to_bf16(v);
                    memcpy(p->pd + 2 * at, &h, 2);
                }
            }
        }
    }
}
