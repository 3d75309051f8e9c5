#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_mm.h"
#include "backend/cuda/cu_util.cuh"


#define MM_THREADS     128
#define MM_INT4_CHUNK  (128 + 1024)  /* bytes of 16 outputs by 128 */


/*
 * The level of element k of output o of a panel, and its scale; be_quant.h says
 * how they lie there.
 */

static __device__ float
mm_int4(const uint8_t *panel, uint32_t o, uint32_t k, float *scale)
{
    uint32_t         code;
    const uint16_t  *scales;

    /* be_quant_levels */

    static constexpr signed char  levels[16] = {
        -112, -88, -72, -56, -44, -32, -20, -9, 0, 11, 22, 32, 44, 56, 72, 96
    };

    panel += (size_t) (k / CU_GROUP) * MM_INT4_CHUNK;
    k %= CU_GROUP;
    scales = (const uint16_t *) panel;
    *scale = cu_from_bf16(scales[k / 32 * 16 + o]);

    code = panel[128 + k / 8 * 64 + o * 4 + k % 4] >> (k % 8 / 4 * 4) & 15;

    return (float) levels[code];
}


/* Level times scale, in BF16. */

static __device__ float
mm_int4_bf16(const uint8_t *panel, uint32_t o, uint32_t k)
{
    float  level, scale;

    level = mm_int4(panel, o, k, &scale);

    return cu_from_bf16(cu_to_bf16(level * scale));
}


/* Elements from … to, of one group of 128 of x in FP8: scaled each 32. */

static __device__ float
mm_int4_fp8(const uint8_t *panel, uint32_t o, const uint8_t *x, uint32_t from,
    uint32_t to)
{
    float     sum, part, scale;
    uint32_t  i, k;

    sum = 0.0f;

    for (i = from; i < to; i += 32) {
        part = 0.0f;
        scale = 0.0f;

        for (k = i; k < i + 32 && k < to; k++) {
            part = fmaf(cu_from_e4m3(x[k]), mm_int4(panel, o, k, &scale),
                        part);
        }

        sum = fmaf(part, scale, sum);
    }

    return sum;
}


/*
 * The dot product of row `row` of x with row `col` of m.  Of x in FP8 each 128
 * elements are summed apart, then scaled, as block-scaled products do.
 */

static __device__ float
mm_dot(const cu_matrix_t &m, const cu_act_t &x, uint32_t row, uint32_t col)
{
    float            sum, part;
    uint32_t         i, j, end;
    const uint8_t   *q, *c;
    const uint16_t  *a, *b;

    sum = 0.0f;

    if (m.type == CU_MM_BF16) {
        a = (const uint16_t *) x.x + (size_t) row * x.ld;
        b = (const uint16_t *) m.w + (size_t) col * m.ld;

        for (i = 0; i < m.k; i++) {
            sum = fmaf(cu_from_bf16(a[i]), cu_from_bf16(b[i]), sum);
        }

        return sum;
    }

    q = (const uint8_t *) x.x + (size_t) row * x.ld;

    if (m.type == CU_MM_INT4) {
        a = (const uint16_t *) x.x + (size_t) row * x.ld;
        c = (const uint8_t *) m.w
            + (size_t) (col / 16) * ((m.k + CU_GROUP - 1) / CU_GROUP)
              * MM_INT4_CHUNK;

        for (i = 0; i < m.k && x.scale == NULL; i++) {
            sum = fmaf(cu_from_bf16(a[i]), mm_int4_bf16(c, col % 16, i), sum);
        }

        for (i = 0; i < m.k && x.scale != NULL; i = end) {
            end = (m.k - i < CU_GROUP) ? m.k : i + CU_GROUP;
            sum = fmaf(mm_int4_fp8(c, col % 16, q, i, end),
                       x.scale[(size_t) (i / CU_GROUP) * x.ld_scale + row],
                       sum);
        }

        return sum;
    }

    c = (const uint8_t *) m.w + (size_t) col * m.ld;

    for (i = 0; i < m.k; i = end) {
        end = (m.k - i < CU_GROUP) ? m.k : i + CU_GROUP;
        part = 0.0f;

        for (j = i; j < end; j++) {
            part = fmaf(cu_from_e4m3(q[j]), cu_from_e4m3(c[j]), part);
        }

        sum = fmaf(part, x.scale[(size_t) (i / CU_GROUP) * x.ld_scale + row]
                         * m.scale[(size_t) (col / CU_GROUP) * m.ld_scale
                                   + i / CU_GROUP], sum);
    }

    return sum;
}


static __global__ void
mm_simple(cu_mm_t p)
{
    float      v, *f;
    uint32_t   row, col, b;
    uint16_t  *h;

    cu_begin();

    row = blockIdx.x;
    col = blockIdx.y * MM_THREADS + threadIdx.x;
    b = blockIdx.z;

    if (col >= p.m.n) {
        return;
    }

    if (p.batch > 1) {
        p.m.w = (const uint16_t *) p.m.w + b * p.stride_w;
        p.x.x = (uint16_t *) p.x.x + b * p.stride_x;
    }

    v = mm_dot(p.m, p.x, row, col);

    if (p.narrow) {
        h = (uint16_t *) p.y + b * p.stride_y + row * p.ldy + col;
        *h = cu_to_bf16(p.add ? cu_from_bf16(*h) + v : v);

    } else {
        f = (float *) p.y + b * p.stride_y + row * p.ldy + col;
        *f = p.add ? *f + v : v;
    }
}


int
cu_mm_simple(const cu_mm_t *p, void *stream)
{
    if (p->rows == 0) {
        return 0;
    }

    return CU_LAUNCH(mm_simple, dim3(p->rows, (p->m.n + MM_THREADS - 1)
                                              / MM_THREADS, p->batch),
                     dim3(MM_THREADS), 0, (cudaStream_t) stream, *p);
}


static __global__ void
mm_grouped(cu_mm_grouped_t p)
{
    float     *y, v;
    uint32_t   row, col, low, high, mid;

    cu_begin();

    row = blockIdx.x;
    col = blockIdx.y * MM_THREADS + threadIdx.x;

    if (row >= p.offset[p.groups] || col >= p.n) {
        return;
    }

    low = 0;
    high = p.groups;

    while (high - low > 1) {
        mid = (low + high) / 2;

        if (p.offset[mid] <= row) {
            low = mid;

        } else {
            high = mid;
        }
    }

    v = mm_dot(p.m[low], p.x, row, col);

    if (p.narrow) {
        ((uint16_t *) p.y)[row * p.ldy + col] = cu_to_bf16(v);
        return;
    }

    y = (p.py != NULL) ? p.py[row] : p.y + row * p.ldy;
    y[col] = v;
}


int
cu_mm_grouped_simple(const cu_mm_grouped_t *p, void *stream)
{
    if (p->rows == 0) {
        return 0;
    }

    return CU_LAUNCH(mm_grouped, dim3(p->rows, (p->n + MM_THREADS - 1)
                                               / MM_THREADS),
                     dim3(MM_THREADS), 0, (cudaStream_t) stream, *p);
}
