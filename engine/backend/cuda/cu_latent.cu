#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_latent.h"
#include "backend/cuda/cu_mla.h"
#include "backend/cuda/cu_ptx.cuh"
#include "backend/cuda/cu_util.cuh"


#define LATENT_THREADS  128
#define LATENT_BLOCK    64           /* tokens of a KV block */
#define LATENT_RUN      512          /* tokens summed on their own */
#define LATENT_COLS     8            /* lora at most that times threads */


static __global__ void
latent_rope(cu_batch_t b, const float *freq, uint32_t rope, float mscale,
    float *table)
{
    double    angle, c, s;
    uint32_t  i, pos;

    cu_begin();

    pos = b.pos[blockIdx.x];
    pos = (pos == CU_NO_ROW) ? 0 : pos;
    table += (size_t) blockIdx.x * rope;

    for (i = threadIdx.x; i < rope / 2; i += blockDim.x) {
        angle = (double) pos * (double) freq[i];
        sincos(angle, &s, &c);

        table[2 * i] = (float) (c * (double) mscale);
        table[2 * i + 1] = (float) (s * (double) mscale);
    }
}


int
cu_rope_table(const cu_batch_t *b, const float *freq, uint32_t rope,
    float mscale, float *table, void *stream)
{
    if (b->rows == 0) {
        return 0;
    }

    return CU_LAUNCH(latent_rope, dim3(b->rows), dim3(32), 0,
                     (cudaStream_t) stream, *b, freq, rope, mscale, table);
}


/* Element i of the pair that begins at x, of which t are cosine and sine. */

static __device__ __forceinline__ float
latent_rotated(const float *x, const float *t, uint32_t i)
{
    return (i & 1) ? __fadd_rn(__fmul_rn(x[0], t[1]), __fmul_rn(x[1], t[0]))
                   : __fsub_rn(__fmul_rn(x[0], t[0]), __fmul_rn(x[1], t[1]));
}


static __global__ void
latent_cache(cu_latent_t l, cu_batch_t b, const float *table, const float *w,
    float eps, const float *kva, uint16_t *kv)
{
    float        sum, r;
    uint32_t     i, dim, pos;
    const float  *x, *t;

    CU_STATIC_SHARED(float, part, [32]);

    cu_begin();

    pos = b.pos[blockIdx.x];

    if (pos == CU_NO_ROW) {
        return;
    }

    dim = l.lora + l.rope;
    x = kva + (size_t) blockIdx.x * dim;
    t = table + (size_t) blockIdx.x * l.rope;
    sum = 0.0f;

    for (i = threadIdx.x; i < l.lora; i += LATENT_THREADS) {
        sum += x[i] * x[i];
    }

    r = 1.0f / sqrtf(cu_block_sum(sum, part) / (float) l.lora + eps);

    i = b.table[b.at[b.seq[blockIdx.x]] + pos / LATENT_BLOCK];
    kv += ((size_t) i * LATENT_BLOCK + pos % LATENT_BLOCK) * dim;

    for (i = threadIdx.x; i < l.lora; i += LATENT_THREADS) {
        kv[i] = cu_to_bf16(x[i] * r * w[i]);
    }

    x += l.lora;
    kv += l.lora;

    for (i = threadIdx.x; i < l.rope; i += LATENT_THREADS) {
        kv[i] = cu_to_bf16(latent_rotated(x + (i & ~1u), t + (i & ~1u), i));
    }
}


/*
 * A record in FP8: a group of 128 elements for each warp.  The scale makes the
 * largest one 448; zeros have one, too.
 */

static __global__ void
latent_cache_fp8(cu_latent_t l, cu_batch_t b, const float *table,
    const float *w, float eps, const float *kva, uint8_t *kv)
{
    float         v[4], r, sum, most, scale;
    uint32_t      i, at, pos;
    const float  *x, *t;

    CU_STATIC_SHARED(float, part, [32]);

    cu_begin();

    pos = b.pos[blockIdx.x];

    if (pos == CU_NO_ROW) {
        return;
    }

    at = threadIdx.x / 32 * 128 + threadIdx.x % 32 * 4;
    x = kva + (size_t) blockIdx.x * CU_MLA_DIM;
    t = table + (size_t) blockIdx.x * l.rope;
    sum = 0.0f;

    for (i = 0; i < 4; i++) {
        v[i] = x[at + i];
        sum += v[i] * v[i];
    }

    r = 1.0f / sqrtf(cu_block_sum(sum, part) / (float) CU_MLA_LORA + eps);
    most = 1e-30f;

    for (i = 0; i < 4; i++) {
        v[i] = v[i] * r * w[at + i];
        most = fmaxf(most, fabsf(v[i]));
    }

    scale = cu_warp_max(most) / 448.0f;

    i = b.table[b.at[b.seq[blockIdx.x]] + pos / LATENT_BLOCK];
    kv += ((size_t) i * LATENT_BLOCK + pos % LATENT_BLOCK) * CU_MLA_FP8_SIZE;

    *(uint32_t *) (kv + at) = cu_pack_e4m3(v[0] / scale, v[1] / scale,
                                           v[2] / scale, v[3] / scale);
    kv += CU_MLA_LORA;

    if (threadIdx.x % 32 == 0) {
        ((float *) kv)[threadIdx.x / 32] = scale;
    }

    x += CU_MLA_LORA;
    kv += 16;

    for (i = threadIdx.x; i < CU_MLA_ROPE; i += LATENT_THREADS) {
        ((uint16_t *) kv)[i] = cu_to_bf16(latent_rotated(x + (i & ~1u),
                                                         t + (i & ~1u), i));
    }
}


int
cu_cache(const cu_latent_t *l, const cu_batch_t *b, const float *table,
    const float *w, float eps, const float *kva, void *kv, int fp8,
    void *stream)
{
    if (b->rows == 0) {
        return 0;
    }

    if (fp8) {
        return CU_LAUNCH(latent_cache_fp8, dim3(b->rows),
                         dim3(LATENT_THREADS), 0, (cudaStream_t) stream, *l,
                         *b, table, w, eps, kva, (uint8_t *) kv);
    }

    return CU_LAUNCH(latent_cache, dim3(b->rows), dim3(LATENT_THREADS), 0,
                     (cudaStream_t) stream, *l, *b, table, w, eps, kva,
                     (uint16_t *) kv);
}


static __global__ void
latent_query(cu_latent_t l, const float *table, const float *q, uint16_t *qn,
    uint16_t *ql)
{
    size_t        head;
    uint32_t      i;
    const float  *t;

    cu_begin();

    head = (size_t) blockIdx.x * l.heads + blockIdx.y;
    q += head * (l.nope + l.rope);
    qn += head * l.nope;
    ql += head * (l.lora + l.rope) + l.lora;
    t = table + (size_t) blockIdx.x * l.rope;

    for (i = threadIdx.x; i < l.nope; i += blockDim.x) {
        qn[i] = cu_to_bf16(q[i]);
    }

    q += l.nope;

    for (i = threadIdx.x; i < l.rope; i += blockDim.x) {
        ql[i] = cu_to_bf16(latent_rotated(q + (i & ~1u), t + (i & ~1u), i));
    }
}


int
cu_query(const cu_latent_t *l, const cu_batch_t *b, const float *table,
    const float *q, void *qn, void *ql, void *stream)
{
    if (b->rows == 0) {
        return 0;
    }

    return CU_LAUNCH(latent_query, dim3(b->rows, l->heads), dim3(64), 0,
                     (cudaStream_t) stream, *l, table, q, (uint16_t *) qn,
                     (uint16_t *) ql);
}


/* --- attention ------------------------------------------------------------ */

static __global__ void
latent_attend(cu_latent_t l, cu_batch_t b, float scale, const uint16_t *ql,
    const uint16_t *kv, uint16_t *ol)
{
    int              begun;
    float            s, m, max, sum, run_max, run_sum, old, p;
    float            o[LATENT_COLS], run[LATENT_COLS];
    size_t           head;
    uint32_t         i, j, c, n, dim, pos, from, first;
    const int32_t   *table;
    const uint16_t  *k;

    CU_STATIC_SHARED(float, part, [32]);
    CU_STATIC_SHARED(float, prob, [LATENT_RUN]);
    CU_SHARED(float, q);

    cu_begin();

    pos = b.pos[blockIdx.x];

    if (pos == CU_NO_ROW) {
        return;
    }

    dim = l.lora + l.rope;
    head = (size_t) blockIdx.x * l.heads + blockIdx.y;
    ql += head * dim;
    ol += head * l.lora;
    table = b.table + b.at[b.seq[blockIdx.x]];
    first = b.first[b.seq[blockIdx.x]];

    for (i = threadIdx.x; i < dim; i += LATENT_THREADS) {
        q[i] = cu_from_bf16(ql[i]);
    }

    for (c = 0; c < LATENT_COLS; c++) {
        o[c] = 0.0f;
    }

    begun = 0;
    max = -INFINITY;
    sum = 0.0f;

    for (from = first / LATENT_RUN * LATENT_RUN; from <= pos;
         from += LATENT_RUN)
    {
        n = (pos - from < LATENT_RUN) ? pos - from + 1 : LATENT_RUN;
        m = -INFINITY;
        __syncthreads();

        for (i = threadIdx.x; i < n; i += LATENT_THREADS) {
            j = from + i;
            s = -INFINITY;

            if (j >= first) {
                k = kv + ((size_t) table[j / LATENT_BLOCK] * LATENT_BLOCK
                          + j % LATENT_BLOCK) * dim;
                s = 0.0f;

                for (c = 0; c < dim; c++) {
                    s = fmaf(q[c], cu_from_bf16(k[c]), s);
                }

                s *= scale;
            }

            prob[i] = s;
            m = fmaxf(m, s);
        }

        run_max = cu_block_max(m, part);
        p = 0.0f;

        for (i = threadIdx.x; i < n; i += LATENT_THREADS) {
            s = expf(prob[i] - run_max);
            p += s;
            prob[i] = cu_from_bf16(cu_to_bf16(s));
        }

        run_sum = cu_block_sum(p, part);

        for (c = 0; c < LATENT_COLS; c++) {
            run[c] = 0.0f;
        }

        for (i = (first > from) ? first - from : 0; i < n; i++) {
            j = from + i;
            k = kv + ((size_t) table[j / LATENT_BLOCK] * LATENT_BLOCK
                      + j % LATENT_BLOCK) * dim;

            for (c = 0; c < LATENT_COLS; c++) {
                j = c * LATENT_THREADS + threadIdx.x;

                if (j < l.lora) {
                    run[c] = fmaf(prob[i], cu_from_bf16(k[j]), run[c]);
                }
            }
        }

        m = fmaxf(max, run_max);
        old = begun ? expf(max - m) : 0.0f;
        p = expf(run_max - m);
        sum = sum * old + run_sum * p;
        max = m;
        begun = 1;

        for (c = 0; c < LATENT_COLS; c++) {
            o[c] = o[c] * old + run[c] * p;
        }
    }

    for (c = 0; c < LATENT_COLS; c++) {
        j = c * LATENT_THREADS + threadIdx.x;

        if (j < l.lora) {
            ol[j] = cu_to_bf16(o[c] / sum);
        }
    }
}


int
cu_attend_simple(const cu_latent_t *l, const cu_batch_t *b, float scale,
    const void *ql, const void *kv, void *ol, void *stream)
{
    if (b->rows == 0) {
        return 0;
    }

    return CU_LAUNCH(latent_attend, dim3(b->rows, l->heads),
                     dim3(LATENT_THREADS),
                     (size_t) (l->lora + l->rope) * sizeof(float),
                     (cudaStream_t) stream, *l, *b, scale,
                     (const uint16_t *) ql, (const uint16_t *) kv,
                     (uint16_t *) ol);
}
