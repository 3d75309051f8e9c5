#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_ptx.cuh"
#include "backend/cuda/cu_rows.h"
#include "backend/cuda/cu_util.cuh"


#define ROWS_THREADS  256
#define ROWS_WARPS    (ROWS_THREADS / 32)


/* --- copies of rows ----------------------------------------------------- */

static __global__ void
rows_embed(const void *table, int wide, cu_batch_t b, uint32_t dim, float *y)
{
    size_t           from;
    uint32_t         i;
    const float     *f;
    const uint16_t  *h;

    cu_begin();

    from = (size_t) (uint32_t) b.id[blockIdx.x] * dim;
    f = (const float *) table + from;
    h = (const uint16_t *) table + from;
    y += (size_t) blockIdx.x * dim;

    for (i = threadIdx.x; i < dim; i += blockDim.x) {
        y[i] = wide ? f[i] : cu_from_bf16(h[i]);
    }
}


int
cu_embed(const void *table, int wide, const cu_batch_t *b, uint32_t dim,
    float *y, void *stream)
{
    if (b->rows == 0) {
        return 0;
    }

    return CU_LAUNCH(rows_embed, dim3(b->rows), dim3(ROWS_THREADS), 0,
                     (cudaStream_t) stream, table, wide, *b, dim, y);
}


static __global__ void
rows_gather(const float *x, const uint32_t *row, uint32_t dim, float *y)
{
    uint32_t  i;

    cu_begin();

    x += (size_t) row[blockIdx.x] * dim;
    y += (size_t) blockIdx.x * dim;

    for (i = threadIdx.x; i < dim; i += blockDim.x) {
        y[i] = x[i];
    }
}


int
cu_gather(const float *x, const uint32_t *row, uint32_t n, uint32_t dim,
    float *y, void *stream)
{
    if (n == 0) {
        return 0;
    }

    return CU_LAUNCH(rows_gather, dim3(n), dim3(ROWS_THREADS), 0,
                     (cudaStream_t) stream, x, row, dim, y);
}


static __global__ void
rows_join(const float *a, const float *b, uint32_t dim, float *y)
{
    uint32_t  i;

    cu_begin();

    a += (size_t) blockIdx.x * dim;
    b += (size_t) blockIdx.x * dim;
    y += (size_t) blockIdx.x * dim * 2;

    for (i = threadIdx.x; i < dim; i += blockDim.x) {
        y[i] = a[i];
        y[dim + i] = b[i];
    }
}


int
cu_join(const float *a, const float *b, uint32_t rows, uint32_t dim, float *y,
    void *stream)
{
    if (rows == 0) {
        return 0;
    }

    return CU_LAUNCH(rows_join, dim3(rows), dim3(ROWS_THREADS), 0,
                     (cudaStream_t) stream, a, b, dim, y);
}


/* --- a product's inputs -------------------------------------------------- */

/* Whether rows of `dim` elements may be read by four. */

static __device__ __forceinline__ int
rows_by_four(const void *p, size_t dim)
{
    return dim % 4 == 0 && (uintptr_t) p % 16 == 0;
}


/* Four elements from `k` on, zeros behind the end. */

static __device__ __forceinline__ void
rows_load(float *v, const float *x, uint32_t k, uint32_t dim, int four)
{
    int     j;
    float4  f;

    if (four) {
        f = (k < dim) ? *(const float4 *) (x + k)
                      : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        v[0] = f.x;
        v[1] = f.y;
        v[2] = f.z;
        v[3] = f.w;
        return;
    }

    for (j = 0; j < 4; j++) {
        v[j] = (k + j < dim) ? x[k + j] : 0.0f;
    }
}


/*
 * A warp's group of 128 elements from `col` on, four of them a lane, as row
 * `row` of `act`.
 */

static __device__ __forceinline__ void
rows_store(const cu_act_t &act, uint32_t row, uint32_t col, const float *v)
{
    int        j;
    float      scale, inverse;
    uint8_t   *q;
    uint16_t  *h;
    uint32_t   i, lane;

    lane = threadIdx.x % 32;
    i = col + lane * 4;

    if (act.scale == NULL) {
        h = (uint16_t *) act.x + (size_t) row * act.ld + i;

        if (i + 4 <= act.ld) {
            *(ushort4 *) h = make_ushort4(cu_to_bf16(v[0]), cu_to_bf16(v[1]),
                                          cu_to_bf16(v[2]), cu_to_bf16(v[3]));
        }

        return;
    }

    scale = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])),
                  fmaxf(fabsf(v[2]), fabsf(v[3])));
    scale = fmaxf(cu_warp_max(scale), 1e-4f) / 448.0f;
    inverse = 1.0f / scale;

    if (lane == 0) {
        act.scale[(size_t) (col / CU_GROUP) * act.ld_scale + row] = scale;
    }

    q = (uint8_t *) act.x + (size_t) row * act.ld + i;

    if (i + 4 <= act.ld && (uintptr_t) q % 4 == 0) {
        *(uint32_t *) q = cu_pack_e4m3(v[0] * inverse, v[1] * inverse,
                                       v[2] * inverse, v[3] * inverse);
        return;
    }

    for (j = 0; j < 4; j++) {
        if (i + (uint32_t) j < act.ld) {
            q[j] = cu_to_e4m3(v[j] * inverse);
        }
    }
}


static __global__ void
rows_norm(const float *w, float eps, const float *x, uint32_t dim, float *y,
    cu_act_t act)
{
    int       j, four;
    float     sum, r, v[4], f[4];
    uint32_t  i, k, lane;

    CU_STATIC_SHARED(float, part, [32]);
    CU_SHARED(float, row);

    cu_begin();

    four = rows_by_four(x, dim) && rows_by_four(w, dim) && rows_by_four(y, dim);
    x += (size_t) blockIdx.x * dim;
    y += (y != NULL) ? (size_t) blockIdx.x * dim : 0;
    sum = 0.0f;

#pragma unroll 4
    for (i = threadIdx.x * 4; i < dim; i += ROWS_THREADS * 4) {
        rows_load(v, x, i, dim, four);

        if (four) {
            *(float4 *) (row + i) = make_float4(v[0], v[1], v[2], v[3]);
        }

        for (j = 0; j < 4; j++) {
            if (!four && i + j < dim) {
                row[i + j] = v[j];
            }

            sum += v[j] * v[j];
        }
    }

    r = 1.0f / sqrtf(cu_block_sum(sum, part) / (float) dim + eps);

    lane = threadIdx.x % 32;

    for (i = threadIdx.x / 32 * CU_GROUP; i < dim;
         i += ROWS_WARPS * CU_GROUP)
    {
        k = i + lane * 4;
        rows_load(v, row, k, dim, four);
        rows_load(f, w, k, dim, four);

        for (j = 0; j < 4; j++) {
            v[j] = v[j] * r * f[j];

            if (y != NULL && !four && k + j < dim) {
                y[k + j] = v[j];
            }
        }

        if (y != NULL && four && k < dim) {
            *(float4 *) (y + k) = make_float4(v[0], v[1], v[2], v[3]);
        }

        if (act.x != NULL) {
            rows_store(act, blockIdx.x, i, v);
        }
    }
}


int
cu_norm(const float *w, float eps, const float *x, uint32_t rows,
    uint32_t dim, float *y, const cu_act_t *act, void *stream)
{
    int       rc;
    cu_act_t  none = { NULL, NULL, 0, 0 };

    if (rows == 0) {
        return 0;
    }

    rc = CU_SMEM(rows_norm, CU_NORM_MAX * sizeof(float));

    if (rc != 0) {
        return rc;
    }

    return CU_LAUNCH(rows_norm, dim3(rows), dim3(ROWS_THREADS),
                     (size_t) dim * sizeof(float), (cudaStream_t) stream, w,
                     eps, x, dim, y, act != NULL ? *act : none);
}


static __global__ void
rows_act(cu_src_t s, cu_act_t act)
{
    int           j, four;
    float         v[4], u[4];
    uint32_t      i, k, lane;
    const float  *x, *up;

    cu_begin();

    if (s.n != NULL && blockIdx.x >= *s.n) {
        return;
    }

    x = (s.px != NULL) ? s.px[blockIdx.x] : s.x + blockIdx.x * s.ld;
    up = (s.up != NULL) ? s.up + blockIdx.x * s.ld : NULL;
    four = rows_by_four(x, s.dim) && rows_by_four(up, s.dim);
    lane = threadIdx.x % 32;

    for (i = threadIdx.x / 32 * CU_GROUP; i < s.dim;
         i += ROWS_WARPS * CU_GROUP)
    {
        k = i + lane * 4;
        rows_load(v, x, k, s.dim, four);

        if (up != NULL) {
            rows_load(u, up, k, s.dim, four);

            for (j = 0; j < 4; j++) {
                v[j] = v[j] / (1.0f + expf(-v[j])) * u[j];
            }
        }

        rows_store(act, blockIdx.x, i, v);
    }
}


int
cu_act(const cu_src_t *src, const cu_act_t *act, void *stream)
{
    if (src->rows == 0) {
        return 0;
    }

    return CU_LAUNCH(rows_act, dim3(src->rows), dim3(ROWS_THREADS), 0,
                     (cudaStream_t) stream, *src, *act);
}


/* --- combine -------------------------------------------------------------- */

static __device__ __forceinline__ float
rows_wide(float x)
{
    return x;
}


static __device__ __forceinline__ float
rows_wide(uint16_t x)
{
    return cu_from_bf16(x);
}


template <typename T>
static __global__ void
rows_combine(const T *c, const float *weight, uint32_t top_k, uint32_t dim,
    float *x)
{
    float     sum;
    uint32_t  i, k;

    cu_begin();

    i = blockIdx.y * ROWS_THREADS + threadIdx.x;

    if (i >= dim) {
        return;
    }

    c += (size_t) blockIdx.x * top_k * dim;
    weight += (size_t) blockIdx.x * top_k;
    x += (size_t) blockIdx.x * dim;
    sum = x[i];

    for (k = 0; k < top_k; k++) {
        sum = fmaf(weight[k], rows_wide(c[(size_t) k * dim + i]), sum);
    }

    x[i] = sum;
}


/* The same of four neighbours, of eight contributions at a time. */

template <typename T, typename T4>
static __global__ void
rows_combine_4(const T *c, const float *weight, uint32_t top_k, uint32_t dim,
    float *x)
{
    float     w;
    float4    sum;
    uint32_t  i, k, n, j;
    T4        v[8];

    cu_begin();

    i = blockIdx.y * ROWS_THREADS + threadIdx.x;

    if (i >= dim / 4) {
        return;
    }

    c += (size_t) blockIdx.x * top_k * dim;
    weight += (size_t) blockIdx.x * top_k;
    x += (size_t) blockIdx.x * dim;
    sum = ((float4 *) x)[i];

    for (k = 0; k < top_k; k += 8) {
        n = (top_k - k < 8) ? top_k - k : 8;

#pragma unroll
        for (j = 0; j < 8; j++) {
            if (j < n) {
                v[j] = ((const T4 *) (c + (size_t) (k + j) * dim))[i];
            }
        }

#pragma unroll
        for (j = 0; j < 8; j++) {
            if (j < n) {
                w = weight[k + j];
                sum.x = fmaf(w, rows_wide((T) v[j].x), sum.x);
                sum.y = fmaf(w, rows_wide((T) v[j].y), sum.y);
                sum.z = fmaf(w, rows_wide((T) v[j].z), sum.z);
                sum.w = fmaf(w, rows_wide((T) v[j].w), sum.w);
            }
        }
    }

    ((float4 *) x)[i] = sum;
}


template <typename T, typename T4>
static int
rows_launch_combine(const T *c, const float *weight, uint32_t rows,
    uint32_t top_k, uint32_t dim, float *x, void *stream)
{
    dim3  grid;

    if (rows == 0) {
        return 0;
    }

    if (dim % 4 == 0 && (uintptr_t) c % 16 == 0 && (uintptr_t) x % 16 == 0) {
        grid = dim3(rows, (dim / 4 + ROWS_THREADS - 1) / ROWS_THREADS);

        return CU_LAUNCH((rows_combine_4<T, T4>), grid, dim3(ROWS_THREADS), 0,
                         (cudaStream_t) stream, c, weight, top_k, dim, x);
    }

    grid = dim3(rows, (dim + ROWS_THREADS - 1) / ROWS_THREADS);

    return CU_LAUNCH(rows_combine<T>, grid, dim3(ROWS_THREADS), 0,
                     (cudaStream_t) stream, c, weight, top_k, dim, x);
}


int
cu_combine(const float *c, const float *weight, uint32_t rows,
    uint32_t top_k, uint32_t dim, float *x, void *stream)
{
    return rows_launch_combine<float, float4>(c, weight, rows, top_k, dim, x,
                                              stream);
}


int
cu_combine_bf16(const uint16_t *c, const float *weight, uint32_t rows,
    uint32_t top_k, uint32_t dim, float *x, void *stream)
{
    return rows_launch_combine<uint16_t, ushort4>(c, weight, rows, top_k, dim,
                                                  x, stream);
}
