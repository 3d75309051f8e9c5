#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_sample.h"
#include "backend/cuda/cu_util.cuh"
#include "sample/sample_weight.h"


#define SAMPLE_THREADS  1024
#define SAMPLE_WARPS    (SAMPLE_THREADS / 32)


/* A row and how it is looked at. */

typedef struct {
    const float    *row;
    const uint8_t  *known;
    uint32_t        vocab;
    double          max;
    double          inverse_t;
} sample_row_t;

/* In shared memory. */

typedef struct {
    uint64_t   key[CU_SAMPLE_SORT];  /* falling logit, then rising id */
    double     weight[CU_SAMPLE_SORT];
    double     bucket_w[SAMPLE_BUCKETS];
    uint32_t   bucket_n[SAMPLE_BUCKETS];
    float      best[SAMPLE_WARPS];
    uint32_t   best_id[SAMPLE_WARPS];
    double     total;
    uint32_t   last;
    uint32_t   n;
} sample_shared_t;


/* A float's bits in an order of their own: rising, or falling. */

static __device__ __forceinline__ uint32_t
sample_falling(float x)
{
    uint32_t  u;

    u = __float_as_uint(x + 0.0f);           /* -0 and 0 are equal */

    return (u >> 31) ? u : ~u & 0x7fffffff;
}


static __device__ __forceinline__ float
sample_logit(uint64_t key)
{
    uint32_t  u;

    u = (uint32_t) (key >> 32);

    return __uint_as_float((u >> 31) ? u : ~u & 0x7fffffff);
}


/* The largest logit's row, among equals the lowest; none: UINT32_MAX. */

static __device__ uint32_t
sample_best(const sample_row_t *r, sample_shared_t *s)
{
    float     x, max, other;
    uint32_t  i, id, o;

    max = -INFINITY;
    id = UINT32_MAX;

    for (i = threadIdx.x; i < r->vocab; i += SAMPLE_THREADS) {
        x = sample_finite(r->row[i]);

        if (x > max && r->known[i]) {
            max = x;
            id = i;
        }
    }

    for (i = 16; i > 0; i >>= 1) {
        other = __shfl_xor_sync(CU_ALL_LANES, max, i);
        o = __shfl_xor_sync(CU_ALL_LANES, id, i);

        if (other > max || (other == max && o < id)) {
            max = other;
            id = o;
        }
    }

    if (threadIdx.x % 32 == 0) {
        s->best[threadIdx.x / 32] = max;
        s->best_id[threadIdx.x / 32] = id;
    }

    __syncthreads();

    for (i = 0; i < SAMPLE_WARPS; i++) {
        if (s->best[i] > max || (s->best[i] == max && s->best_id[i] < id)) {
            max = s->best[i];
            id = s->best_id[i];
        }
    }

    return id;
}


static __device__ __forceinline__ double
sample_distance(const sample_row_t *r, uint32_t i)
{
    float   x;
    double  v;

    x = sample_finite(r->row[i]);
    v = (r->max - (double) x) * r->inverse_t;

    return v < SAMPLE_FAR && r->known[i] ? v : SAMPLE_FAR;
}


/* What row i weighs in a draw from all rows. */

static __device__ __forceinline__ double
sample_weight(const sample_row_t *r, uint32_t i, double min_p)
{
    double  d, w;

    d = sample_distance(r, i);
    w = sample_exp(d);

    return d >= SAMPLE_FAR || (w < min_p && d > 0) ? 0.0 : w;
}


/* All rows, in order of ids. */

static __device__ int32_t
sample_any(const sample_row_t *r, const cu_draw_t *p, double *block)
{
    double    w, u, sum, total;
    int32_t   id;
    uint32_t  i, b, n, last, blocks;

    blocks = (r->vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;

    for (b = threadIdx.x; b < blocks; b += SAMPLE_THREADS) {
        sum = 0.0;

        for (i = b * SAMPLE_BLOCK; i < (b + 1) * SAMPLE_BLOCK; i++) {
            if (i < r->vocab) {
                sum += sample_weight(r, i, p->min_p);
            }
        }

        block[b] = sum;
    }

    __syncthreads();

    if (threadIdx.x != 0) {
        return -1;
    }

    total = 0.0;
    last = 0;

    for (b = 0; b < blocks; b++) {
        total += block[b];
        last = block[b] > 0 ? b : last;
    }

    u = p->u * total;

    for (sum = 0.0, b = 0; b < last && u >= sum + block[b]; b++) {
        sum += block[b];
    }

    n = r->vocab - b * SAMPLE_BLOCK;
    n = (n < SAMPLE_BLOCK) ? n : SAMPLE_BLOCK;
    id = -1;

    for (i = 0; i < n && (id < 0 || u >= sum); i++) {
        w = sample_weight(r, b * SAMPLE_BLOCK + i, p->min_p);

        if (w > 0) {
            id = (int32_t) (b * SAMPLE_BLOCK + i);
            sum += w;
        }
    }

    return id;
}


/* The last bucket that top-k, or else top-p, can reach into. */

static __device__ void
sample_reach(const sample_row_t *r, const cu_draw_t *p, double *block,
    sample_shared_t *s)
{
    double    d, w, sum, total;
    uint32_t  i, b, n, blocks;

    blocks = (r->vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;

    for (i = threadIdx.x; i < SAMPLE_BUCKETS; i += SAMPLE_THREADS) {
        s->bucket_w[i] = 0.0;
        s->bucket_n[i] = 0;
    }

    s->n = 0;
    __syncthreads();

    for (b = threadIdx.x; b < blocks; b += SAMPLE_THREADS) {
        sum = 0.0;

        for (i = b * SAMPLE_BLOCK;
             i < (b + 1) * SAMPLE_BLOCK && i < r->vocab; i++)
        {
            d = sample_distance(r, i);

            if (d < SAMPLE_FAR) {
                n = (uint32_t) (d * SAMPLE_PER_UNIT);
                atomicAdd(&s->bucket_n[n], 1u);

                if (p->top_k == 0) {
                    w = sample_exp(d);
                    atomicAdd(&s->bucket_w[n], w);
                    sum += w;
                }
            }
        }

        block[b] = sum;
    }

    __syncthreads();

    if (threadIdx.x == 0) {
        total = 0.0;

        for (b = 0; b < blocks; b++) {
            total += block[b];
        }

        n = 0;
        sum = 0.0;

        for (b = 0; b < SAMPLE_BUCKETS - 1; b++) {
            n += s->bucket_n[b];
            sum += s->bucket_w[b];

            if ((p->top_k > 0 && n >= p->top_k)
                || (p->top_k == 0
                    && sum > p->top_p * total * (1 + 1e-9)))
            {
                break;
            }
        }

        s->total = total;
        s->last = b;
    }

    __syncthreads();
}


/* The rows up to the last bucket, likeliest first; how many there are. */

static __device__ uint32_t
sample_sorted(const sample_row_t *r, sample_shared_t *s)
{
    double    d;
    uint32_t  i, j, k, at, n, size;
    uint64_t  a, b;

    for (i = threadIdx.x; i < r->vocab; i += SAMPLE_THREADS) {
        d = sample_distance(r, i);

        if (d < SAMPLE_FAR && (uint32_t) (d * SAMPLE_PER_UNIT) <= s->last) {
            at = atomicAdd(&s->n, 1u);

            if (at < CU_SAMPLE_SORT) {
                s->key[at] = (uint64_t) sample_falling(sample_finite(
                                                           r->row[i])) << 32
                             | i;
            }
        }
    }

    __syncthreads();
    n = s->n;

    if (n > CU_SAMPLE_SORT) {
        return n;
    }

    for (size = 2; size < n; size *= 2) { /* void */ }

    for (i = n + threadIdx.x; i < size; i += SAMPLE_THREADS) {
        s->key[i] = UINT64_MAX;
    }

    __syncthreads();

    for (k = 2; k <= size; k *= 2) {
        for (j = k / 2; j > 0; j /= 2) {
            for (i = threadIdx.x; i < size; i += SAMPLE_THREADS) {
                if ((i ^ j) > i) {
                    a = s->key[i];
                    b = s->key[i ^ j];

                    if ((a > b) == ((i & k) == 0)) {
                        s->key[i] = b;
                        s->key[i ^ j] = a;
                    }
                }
            }

            __syncthreads();
        }
    }

    for (i = threadIdx.x; i < n; i += SAMPLE_THREADS) {
        s->weight[i] = sample_exp(sample_distance(r,
                                                  (uint32_t) s->key[i]));
    }

    __syncthreads();

    return n;
}


/* By one thread. */

static __device__ int32_t
sample_cut(const cu_draw_t *p, const sample_shared_t *s, uint32_t n)
{
    double    sum, want, total, u;
    uint32_t  i;

    total = s->total;

    if (p->top_k > 0) {
        n = n < p->top_k ? n : p->top_k;

        for (total = 0.0, i = 0; i < n; i++) {
            total += s->weight[i];
        }
    }

    if (p->top_p < 1.0f) {
        want = (double) p->top_p * total;

        for (sum = 0.0, i = 0; i < n; ) {
            sum += s->weight[i++];

            if (sum >= want) {
                break;
            }
        }

        n = i;
    }

    while (n > 1 && s->weight[n - 1] < (double) p->min_p
           && sample_logit(s->key[n - 1]) < sample_logit(s->key[0]))
    {
        n--;
    }

    for (total = 0.0, i = 0; i < n; i++) {
        total += s->weight[i];
    }

    u = p->u * total;

    for (sum = 0.0, i = 0; i + 1 < n; i++) {
        sum += s->weight[i];

        if (u < sum) {
            break;
        }
    }

    return (int32_t) (uint32_t) s->key[i];
}


static __global__ void
__launch_bounds__(SAMPLE_THREADS, 1)
sample_draw(const float *logits, uint32_t vocab, const uint8_t *known,
    const cu_draw_t *draw, double *block, int32_t *id)
{
    int32_t       drawn;
    uint32_t      best, n;
    cu_draw_t     p;
    sample_row_t  r;

    CU_SHARED(sample_shared_t, s);

    cu_begin();

    r.row = logits + (size_t) blockIdx.x * vocab;
    r.known = known;
    r.vocab = vocab;
    p = draw[blockIdx.x];
    block += (size_t) blockIdx.x * ((vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK);

    best = sample_best(&r, s);

    if (best == UINT32_MAX || !(p.temperature > 0)) {
        drawn = (int32_t) best;

    } else {
        r.max = sample_finite(r.row[best]);
        r.inverse_t = 1.0 / p.temperature;

        if (p.top_k == 0 && p.top_p >= 1.0f) {
            drawn = sample_any(&r, &p, block);

        } else {
            sample_reach(&r, &p, block, s);
            n = sample_sorted(&r, s);
            drawn = (n > CU_SAMPLE_SORT) ? -2
                  : (threadIdx.x == 0) ? sample_cut(&p, s, n) : -1;
        }
    }

    if (threadIdx.x == 0) {
        id[blockIdx.x] = drawn;
    }
}


int
cu_sample(const float *logits, uint32_t rows, uint32_t vocab,
    const uint8_t *known, const cu_draw_t *draw, double *block, int32_t *id,
    void *stream)
{
    int  rc;

    if (rows == 0) {
        return 0;
    }

    rc = CU_SMEM(sample_draw, sizeof(sample_shared_t));

    if (rc != 0) {
        return rc;
    }

    return CU_LAUNCH(sample_draw, dim3(rows), dim3(SAMPLE_THREADS),
                     sizeof(sample_shared_t), (cudaStream_t) stream, logits,
                     vocab, known, draw, block, id);
}
