#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_sample.h"
#include "backend/cuda/cu_util.cuh"
#include "sample/sample_weight.h"


#define SAMPLE_THREADS  1024
#define SAMPLE_WARPS    (SAMPLE_THREADS / 32)
#define SAMPLE_STRIPE   16           /* rows of a block weighed at once, for
                                        32 blocks */
#define SAMPLE_LINE     (SAMPLE_STRIPE + 1)


/* A row and how it is looked at. */

typedef struct {
    const float    *row;
    const uint8_t  *known;
    uint32_t        vocab;
    int             wide;            /* four neighbours can be read at once */
    double          max;
    double          inverse_t;
} sample_row_t;

/* In shared memory. */

typedef struct {
    union {
        double  stripe[SAMPLE_WARPS][32 * SAMPLE_LINE];

        struct {
            uint64_t   key[CU_SAMPLE_SORT];  /* falling logit, rising id */
            double     weight[CU_SAMPLE_SORT];
        };
    };

    double     bucket_w[SAMPLE_BUCKETS];
    uint32_t   bucket_n[SAMPLE_BUCKETS];
    float      best[SAMPLE_WARPS];
    uint32_t   best_id[SAMPLE_WARPS];
    double     total;
    uint32_t   last;
    uint32_t   n;
} sample_shared_t;


/* A logit, minus infinity where it can never be drawn. */

static __device__ __forceinline__ float
sample_one(const sample_row_t *r, uint32_t i)
{
    return (i < r->vocab && r->known[i]) ? sample_finite(r->row[i])
                                         : -INFINITY;
}


/* Those of i … i + 3, i a multiple of four. */

static __device__ __forceinline__ void
sample_four(const sample_row_t *r, uint32_t i, float *x)
{
    float4    all;
    uint32_t  k, known;

    if (!r->wide) {
#pragma unroll
        for (k = 0; k < 4; k++) {
            x[k] = sample_one(r, i + k);
        }

        return;
    }

    known = 0;
    all = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    if (i < r->vocab) {
        all = *(const float4 *) (r->row + i);
        known = *(const uint32_t *) (r->known + i);
    }

    x[0] = (known & 0xff) ? sample_finite(all.x) : -INFINITY;
    x[1] = (known & 0xff00) ? sample_finite(all.y) : -INFINITY;
    x[2] = (known & 0xff0000) ? sample_finite(all.z) : -INFINITY;
    x[3] = (known & 0xff000000) ? sample_finite(all.w) : -INFINITY;
}


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
    float     x[8], max, other;
    uint32_t  i, k, id, o;

    max = -INFINITY;
    id = UINT32_MAX;

    for (i = threadIdx.x * 4; i < r->vocab; i += 8 * SAMPLE_THREADS) {
        sample_four(r, i, x);
        sample_four(r, i + 4 * SAMPLE_THREADS, x + 4);

#pragma unroll
        for (k = 0; k < 8; k++) {
            if (x[k] > max) {
                max = x[k];
                id = i + k % 4 + k / 4 * 4 * SAMPLE_THREADS;
            }
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
sample_distance(const sample_row_t *r, float x)
{
    double  v;

    v = (r->max - (double) x) * r->inverse_t;

    return v < SAMPLE_FAR ? v : SAMPLE_FAR;
}


/* What a logit weighs in a draw from all rows. */

static __device__ __forceinline__ double
sample_weight(const sample_row_t *r, float x, double min_p)
{
    double  d, w;

    d = sample_distance(r, x);
    w = sample_exp(d);

    return d >= SAMPLE_FAR || (w < min_p && d > 0) ? 0.0 : w;
}


/*
 * block[b]: the sum of weigh(x) over the rows of block b, in order of ids.  A
 * warp has 32 blocks at a time.  It weighs a stripe of each, reading neighbours
 * together, and then each lane adds up those of a block of its own.
 */

template <typename F>
static __device__ __forceinline__ void
sample_sums(const sample_row_t *r, double *stripe, double *block,
    const F &weigh)
{
    float     x[4];
    double    sum;
    uint32_t  i, j, k, b, at, lane, blocks;

    lane = threadIdx.x % 32;
    stripe += threadIdx.x / 32 * 32 * SAMPLE_LINE;
    blocks = (r->vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;

    for (b = threadIdx.x / 32 * 32; b < blocks; b += SAMPLE_THREADS) {
        sum = 0.0;

#pragma unroll 1
        for (i = 0; i < SAMPLE_BLOCK; i += SAMPLE_STRIPE) {

#pragma unroll 1
            for (j = lane; j < 32 * SAMPLE_STRIPE / 4; j += 32) {
                at = j / (SAMPLE_STRIPE / 4);
                k = j % (SAMPLE_STRIPE / 4) * 4;
                sample_four(r, (b + at) * SAMPLE_BLOCK + i + k, x);
                at = at * SAMPLE_LINE + k;

#pragma unroll
                for (k = 0; k < 4; k++) {
                    stripe[at + k] = weigh(x[k]);
                }
            }

            __syncwarp();

#pragma unroll
            for (j = 0; j < SAMPLE_STRIPE; j++) {
                sum += stripe[lane * SAMPLE_LINE + j];
            }

            __syncwarp();
        }

        if (b + lane < blocks) {
            block[b + lane] = sum;
        }
    }
}


/*
 * block[b] becomes the sum of all up to b, in order; by one warp.  Returns the
 * last that adds anything.
 */

static __device__ __forceinline__ uint32_t
sample_run(double *block, uint32_t blocks, double *all)
{
    double    v, next, mine, total;
    uint32_t  i, b, lane, more, last;

    lane = threadIdx.x % 32;
    total = 0.0;
    last = 0;
    next = (lane < blocks) ? block[lane] : 0.0;

    for (b = 0; b < blocks; b += 32) {
        v = next;
        next = (b + 32 + lane < blocks) ? block[b + 32 + lane] : 0.0;
        mine = 0.0;

#pragma unroll 8
        for (i = 0; i < 32; i++) {
            total += __shfl_sync(CU_ALL_LANES, v, (int) i);
            mine = (i == lane) ? total : mine;
        }

        more = __ballot_sync(CU_ALL_LANES, v > 0);
        last = (more != 0) ? b + 31 - (uint32_t) __clz((int) more) : last;

        if (b + lane < blocks) {
            block[b + lane] = mine;
        }
    }

    *all = total;

    return last;
}


/*
 * The first row of a block that takes `sum`, which is not beyond u, beyond it,
 * or else the last that weighs anything; by one warp.
 */

static __device__ __forceinline__ int32_t
sample_within(const sample_row_t *r, uint32_t begin, double min_p, double u,
    double sum)
{
    double    w[SAMPLE_BLOCK / 32], mine;
    int32_t   id;
    uint32_t  i, k, lane, some, beyond;

    lane = threadIdx.x % 32;
    id = -1;

#pragma unroll
    for (k = 0; k < SAMPLE_BLOCK / 32; k++) {
        w[k] = sample_weight(r, sample_one(r, begin + 32 * k + lane), min_p);
    }

#pragma unroll
    for (k = 0; k < SAMPLE_BLOCK / 32; k++) {
        mine = 0.0;

#pragma unroll 8
        for (i = 0; i < 32; i++) {
            sum += __shfl_sync(CU_ALL_LANES, w[k], (int) i);
            mine = (i == lane) ? sum : mine;
        }

        some = __ballot_sync(CU_ALL_LANES, w[k] > 0);
        beyond = __ballot_sync(CU_ALL_LANES, u < mine);

        if (beyond != 0) {
            return (int32_t) (begin + 32 * k) + __ffs((int) beyond) - 1;
        }

        if (some != 0) {
            id = (int32_t) (begin + 32 * k) + 31 - __clz((int) some);
        }
    }

    return id;
}


/* All rows, in order of ids. */

static __device__ int32_t
sample_any(const sample_row_t *r, const cu_draw_t *p, double *block,
    sample_shared_t *s)
{
    double    u, total;
    uint32_t  b, n, last, blocks;

    blocks = (r->vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;

    sample_sums(r, s->stripe[0], block, [&](float x) {
        return sample_weight(r, x, p->min_p);
    });

    __syncthreads();

    if (threadIdx.x < 32) {
        last = sample_run(block, blocks, &total);

        if (threadIdx.x == 0) {
            s->total = total;
            s->last = last;
        }
    }

    __syncthreads();

    /* how many blocks u is beyond: sums of more of them are no smaller */

    u = p->u * s->total;
    last = s->last;

    for (n = 0, b = threadIdx.x; b - threadIdx.x < last; b += SAMPLE_THREADS) {
        n += (uint32_t) __syncthreads_count(b < last && u >= block[b]);
    }

    if (threadIdx.x >= 32) {
        return -1;
    }

    return sample_within(r, n * SAMPLE_BLOCK, p->min_p, u,
                         n > 0 ? block[n - 1] : 0.0);
}


/* The last bucket that top-k, or else top-p, can reach into. */

static __device__ void
sample_reach(const sample_row_t *r, const cu_draw_t *p, double *block,
    sample_shared_t *s)
{
    double    sum, total;
    uint32_t  i, b, n;

    for (i = threadIdx.x; i < SAMPLE_BUCKETS; i += SAMPLE_THREADS) {
        s->bucket_w[i] = 0.0;
        s->bucket_n[i] = 0;
    }

    s->n = 0;
    __syncthreads();

    sample_sums(r, s->stripe[0], block, [&](float x) {
        double    d, w;
        uint32_t  k;

        d = sample_distance(r, x);

        if (d >= SAMPLE_FAR) {
            return 0.0;
        }

        k = (uint32_t) (d * SAMPLE_PER_UNIT);
        w = 0.0;
        atomicAdd(&s->bucket_n[k], 1u);

        if (p->top_k == 0) {
            w = sample_exp(d);
            atomicAdd(&s->bucket_w[k], w);
        }

        return w;
    });

    __syncthreads();

    total = 0.0;

    if (threadIdx.x < 32 && p->top_k == 0) {
        (void) sample_run(block, (r->vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK,
                          &total);
    }

    if (threadIdx.x == 0) {
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
    float     x[8];
    double    d;
    uint32_t  i, j, k, at, n, last, size;
    uint64_t  a, b;

    last = s->last;

    for (i = threadIdx.x * 4; i < r->vocab; i += 8 * SAMPLE_THREADS) {
        sample_four(r, i, x);
        sample_four(r, i + 4 * SAMPLE_THREADS, x + 4);

#pragma unroll
        for (k = 0; k < 8; k++) {
            d = sample_distance(r, x[k]);

            if (d >= SAMPLE_FAR || (uint32_t) (d * SAMPLE_PER_UNIT) > last) {
                continue;
            }

            at = atomicAdd(&s->n, 1u);

            if (at < CU_SAMPLE_SORT) {
                s->key[at] = (uint64_t) sample_falling(x[k]) << 32
                             | (i + k % 4 + k / 4 * 4 * SAMPLE_THREADS);
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
                                                  sample_logit(s->key[i])));
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
    r.wide = (vocab % 4 == 0 && (uintptr_t) logits % 16 == 0
              && (uintptr_t) known % 4 == 0);
    p = draw[blockIdx.x];
    block += (size_t) blockIdx.x * ((vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK);

    best = sample_best(&r, s);

    if (best == UINT32_MAX || !(p.temperature > 0)) {
        drawn = (int32_t) best;

    } else {
        r.max = sample_finite(r.row[best]);
        r.inverse_t = 1.0 / p.temperature;

        if (p.top_k == 0 && p.top_p >= 1.0f) {
            drawn = sample_any(&r, &p, block, s);

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
