#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_gate.h"
#include "backend/cuda/cu_pairs.cuh"
#include "backend/cuda/cu_util.cuh"


#define GATE_THREADS  256
#define GATE_EXPERTS  128            /* of a tile */
#define GATE_CHUNK    32             /* elements in shared memory at once */
#define GATE_LINE     (GATE_CHUNK / 4 + 1)


/* Four neighbours of a row, zeros behind its end. */

template <int VEC>
static __device__ __forceinline__ float4
gate_load(const float *row, uint32_t k, uint32_t end)
{
    float4  v;

    v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

    if (row == NULL || k >= end) {
        return v;
    }

    if (VEC && k + 4 <= end) {
        return *(const float4 *) (row + k);
    }

    v.x = row[k];
    v.y = (k + 1 < end) ? row[k + 1] : 0.0f;
    v.z = (k + 2 < end) ? row[k + 2] : 0.0f;
    v.w = (k + 3 < end) ? row[k + 3] : 0.0f;

    return v;
}


/*
 * Logits in float32, each the sum of CU_GATE_SPLITS parts, as a step of few
 * rows would leave most of the device idle otherwise; with many rows a block
 * does `each` = all of them, and adds them up in the same order.  The sums of a
 * row do not depend on how many there are.
 *
 * A warp has TR rows, a lane four experts of 128, 32 apart, so that their
 * elements are read without conflicts; of both come four elements of K at a
 * time.  The next chunk is on its way while this one is computed.
 */

template <int TR, int VEC>
static __global__ void __launch_bounds__(GATE_THREADS)
gate_logits(const float *w, const float *x, uint32_t rows, uint32_t experts,
    uint32_t hidden, uint32_t run, uint32_t each, float *part)
{
    constexpr int  nx = (TR * 8 * GATE_CHUNK / 4 + GATE_THREADS - 1)
                        / GATE_THREADS;
    constexpr int  nw = GATE_EXPERTS * GATE_CHUNK / 4 / GATE_THREADS;

    int           i, j;
    float         sum[TR][4], total[TR][4];
    float4        vx[nx], vw[nw], a[TR], b[4];
    uint32_t      k, c, s, end, next, row, col, at, warp, lane;
    float4       *tx, *tw;
    const float  *from;

    CU_SHARED(float4, tiles);

    cu_begin();

    tx = tiles;                      /* [TR * 8][GATE_LINE] */
    tw = tiles + TR * 8 * GATE_LINE; /* [GATE_EXPERTS][GATE_LINE] */

    row = blockIdx.x * TR * 8;
    col = blockIdx.y * GATE_EXPERTS;
    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    at = threadIdx.x % (GATE_CHUNK / 4);

    for (i = 0; i < TR; i++) {
        for (j = 0; j < 4; j++) {
            total[i][j] = 0.0f;
        }
    }

    for (s = blockIdx.z * each; s < (blockIdx.z + 1) * each; s++) {

        if (s * run >= hidden) {
            break;
        }

        end = (hidden - s * run < run) ? hidden : (s + 1) * run;

#pragma unroll
        for (i = 0; i < TR; i++) {
#pragma unroll
            for (j = 0; j < 4; j++) {
                sum[i][j] = 0.0f;
            }
        }

        next = s * run;

        for (c = next; c < end + GATE_CHUNK; c += GATE_CHUNK) {

            /* what was asked for before, then the next */

            if (c > s * run) {
                __syncthreads();

#pragma unroll
                for (i = 0; i < nx; i++) {
                    k = threadIdx.x / (GATE_CHUNK / 4)
                        + i * (GATE_THREADS / (GATE_CHUNK / 4));

                    if (k < TR * 8) {
                        tx[k * GATE_LINE + at] = vx[i];
                    }
                }

#pragma unroll
                for (i = 0; i < nw; i++) {
                    k = threadIdx.x / (GATE_CHUNK / 4)
                        + i * (GATE_THREADS / (GATE_CHUNK / 4));
                    tw[k * GATE_LINE + at] = vw[i];
                }

                __syncthreads();
            }

            if (c < end) {

#pragma unroll
                for (i = 0; i < nx; i++) {
                    k = row + threadIdx.x / (GATE_CHUNK / 4)
                        + i * (GATE_THREADS / (GATE_CHUNK / 4));
                    from = (k < rows && k < row + TR * 8)
                           ? x + (size_t) k * hidden : NULL;
                    vx[i] = gate_load<VEC>(from, c + 4 * at, end);
                }

#pragma unroll
                for (i = 0; i < nw; i++) {
                    k = col + threadIdx.x / (GATE_CHUNK / 4)
                        + i * (GATE_THREADS / (GATE_CHUNK / 4));
                    from = (k < experts) ? w + (size_t) k * hidden : NULL;
                    vw[i] = gate_load<VEC>(from, c + 4 * at, end);
                }
            }

            if (c == s * run) {
                continue;
            }

#pragma unroll 2
            for (k = 0; k < GATE_CHUNK / 4; k++) {

#pragma unroll
                for (i = 0; i < TR; i++) {
                    a[i] = tx[(warp * TR + i) * GATE_LINE + k];
                }

#pragma unroll
                for (j = 0; j < 4; j++) {
                    b[j] = tw[(32 * j + lane) * GATE_LINE + k];
                }

#pragma unroll
                for (i = 0; i < TR; i++) {
#pragma unroll
                    for (j = 0; j < 4; j++) {
                        sum[i][j] = fmaf(a[i].x, b[j].x, sum[i][j]);
                        sum[i][j] = fmaf(a[i].y, b[j].y, sum[i][j]);
                        sum[i][j] = fmaf(a[i].z, b[j].z, sum[i][j]);
                        sum[i][j] = fmaf(a[i].w, b[j].w, sum[i][j]);
                    }
                }
            }
        }

#pragma unroll
        for (i = 0; i < TR; i++) {
#pragma unroll
            for (j = 0; j < 4; j++) {
                total[i][j] += sum[i][j];
            }
        }
    }

    part += (size_t) blockIdx.z * rows * experts;

    for (i = 0; i < TR; i++) {
        for (j = 0; j < 4; j++) {
            k = row + warp * TR + i;

            if (k < rows && col + 32 * j + lane < experts) {
                part[(size_t) k * experts + col + 32 * j + lane]
                    = total[i][j];
            }
        }
    }
}


template <int TR>
static int
gate_launch(const float *w, const float *x, uint32_t rows, uint32_t experts,
    uint32_t hidden, uint32_t run, uint32_t splits, uint32_t each,
    float *part, void *stream)
{
    dim3    grid;
    size_t  size;

    size = (TR * 8 + GATE_EXPERTS) * GATE_LINE * sizeof(float4);
    grid = dim3((rows + TR * 8 - 1) / (TR * 8),
                (experts + GATE_EXPERTS - 1) / GATE_EXPERTS, splits / each);

    if (hidden % 4 == 0 && (uintptr_t) w % 16 == 0 && (uintptr_t) x % 16 == 0)
    {
        return CU_LAUNCH((gate_logits<TR, 1>), grid, dim3(GATE_THREADS), size,
                         (cudaStream_t) stream, w, x, rows, experts, hidden,
                         run, each, part);
    }

    return CU_LAUNCH((gate_logits<TR, 0>), grid, dim3(GATE_THREADS), size,
                     (cudaStream_t) stream, w, x, rows, experts, hidden, run,
                     each, part);
}


/* The lane's best of score[begin … end), then the warp's; lower id first. */

static __device__ __forceinline__ uint32_t
gate_best(const float *score, const uint32_t *taken, uint32_t end)
{
    float     best, other;
    uint32_t  i, id, o;

    best = -INFINITY;
    id = UINT32_MAX;

    for (i = threadIdx.x; i < end; i += 32) {
        if (!(taken[i / 32] >> (i % 32) & 1)
            && (id == UINT32_MAX || score[i] > best))
        {
            best = score[i];
            id = i;
        }
    }

    for (i = 16; i > 0; i >>= 1) {
        other = __shfl_xor_sync(CU_ALL_LANES, best, i);
        o = __shfl_xor_sync(CU_ALL_LANES, id, i);

        if (o != UINT32_MAX && (id == UINT32_MAX || other > best
                                || (other == best && o < id)))
        {
            best = other;
            id = o;
        }
    }

    return id;
}


/* Scores in double from float logits, as the CPU backend has them. */

static __device__ __forceinline__ void
gate_scores(const cu_gate_t &g, float *score)
{
    float     max;
    double    sum;
    uint32_t  e, i;

    if (g.sigmoid) {
        for (e = threadIdx.x; e < g.experts; e += 32) {
            score[e] = (float) (1.0 / (1.0 + exp(-(double) score[e])));
        }

        __syncwarp();
        return;
    }

    max = -INFINITY;

    for (e = threadIdx.x; e < g.experts; e += 32) {
        max = fmaxf(max, score[e]);
    }

    max = cu_warp_max(max);
    sum = 0.0;

    for (e = threadIdx.x; e < g.experts; e += 32) {
        sum += exp((double) score[e] - (double) max);
    }

    for (i = 16; i > 0; i >>= 1) {
        sum += __shfl_xor_sync(CU_ALL_LANES, sum, i);
    }

    for (e = threadIdx.x; e < g.experts; e += 32) {
        score[e] = (float) (exp((double) score[e] - (double) max) / sum);
    }

    __syncwarp();
}


/* Experts of all but the best groups become minus infinity. */

static __device__ __forceinline__ void
gate_groups(const cu_gate_t &g, float *choice, float *rank, uint32_t *taken)
{
    float     first, second, c;
    uint32_t  i, e, k, n, size, best;

    n = (g.groups < CU_GATE_GROUPS) ? g.groups : CU_GATE_GROUPS;
    size = g.experts / n;

    for (i = threadIdx.x; i < n; i += 32) {
        first = -INFINITY;
        second = -INFINITY;

        for (e = 0; e < size; e++) {
            c = choice[i * size + e];

            if (c > first) {
                second = first;
                first = c;

            } else if (c > second) {
                second = c;
            }
        }

        rank[i] = g.two ? first + second : first;
    }

    if (threadIdx.x < CU_GATE_GROUPS / 32) {
        taken[threadIdx.x] = 0;
    }

    __syncwarp();

    for (k = 0; k < g.topk_groups && k < n; k++) {
        best = gate_best(rank, taken, n);

        if (threadIdx.x == 0) {
            taken[best / 32] |= 1u << (best % 32);
        }

        __syncwarp();
    }

    for (e = threadIdx.x; e < n * size; e += 32) {
        i = e / size;

        if (!(taken[i / 32] >> (i % 32) & 1)) {
            choice[e] = -INFINITY;
        }
    }

    __syncwarp();
}


/* A warp for a row. */

static __global__ void
gate_choose(cu_gate_t g, const float *bias, const float *part, uint32_t rows,
    uint32_t splits, int32_t *id, float *weight)
{
    float     sum, w;
    uint32_t  e, k, best;

    CU_STATIC_SHARED(float, score, [CU_GATE_EXPERTS]);
    CU_STATIC_SHARED(float, choice, [CU_GATE_EXPERTS]);
    CU_STATIC_SHARED(float, rank, [CU_GATE_GROUPS]);
    CU_STATIC_SHARED(float, chosen, [CU_GATE_TOPK]);
    CU_STATIC_SHARED(uint32_t, taken, [CU_GATE_EXPERTS / 32]);

    cu_begin();

    part += (size_t) blockIdx.x * g.experts;
    id += (size_t) blockIdx.x * g.top_k;
    weight += (size_t) blockIdx.x * g.top_k;

    for (e = threadIdx.x; e < g.experts; e += 32) {
        sum = 0.0f;

        for (k = 0; k < splits; k++) {
            sum += part[(size_t) k * rows * g.experts + e];
        }

        score[e] = sum;
    }

    __syncwarp();
    gate_scores(g, score);

    for (e = threadIdx.x; e < g.experts; e += 32) {
        w = (bias != NULL) ? score[e] + bias[e] : score[e];

        /* Not a number compares with nothing: it must lose, not confuse. */

        choice[e] = isnan(w) ? -INFINITY : w;
    }

    __syncwarp();

    if (g.grouped && g.groups > 1) {
        gate_groups(g, choice, rank, taken);
    }

    for (e = threadIdx.x; e < CU_GATE_EXPERTS / 32; e += 32) {
        taken[e] = 0;
    }

    __syncwarp();
    sum = 0.0f;

    for (k = 0; k < g.top_k; k++) {
        best = gate_best(choice, taken, g.experts);
        best = (best == UINT32_MAX) ? 0 : best;

        if (threadIdx.x == 0) {
            taken[best / 32] |= 1u << (best % 32);
            id[k] = (int32_t) best;
            chosen[k] = score[best];
        }

        __syncwarp();
        sum += score[best];
    }

    for (k = threadIdx.x; k < g.top_k; k += 32) {
        w = chosen[k];

        if (g.normalise) {
            w /= sum + 1e-20f;
        }

        weight[k] = w * g.scale;
    }
}


int
cu_gate(const cu_gate_t *g, const float *w, const float *bias, const float *x,
    uint32_t rows, uint32_t hidden, float *part, int32_t *id, float *weight,
    void *stream)
{
    int       rc;
    uint32_t  run, splits, each;

    if (rows == 0) {
        return 0;
    }

    run = (hidden + CU_GATE_SPLITS - 1) / CU_GATE_SPLITS;
    run = (run + GATE_CHUNK - 1) / GATE_CHUNK * GATE_CHUNK;
    splits = (hidden + run - 1) / run;

    each = (rows > CU_GATE_MANY) ? splits : 1;

    rc = (rows > CU_GATE_MANY)
         ? gate_launch<8>(w, x, rows, g->experts, hidden, run, splits, each,
                          part, stream)
         : gate_launch<2>(w, x, rows, g->experts, hidden, run, splits, each,
                          part, stream);

    if (rc != 0) {
        return rc;
    }

    return CU_LAUNCH(gate_choose, dim3(rows), dim3(32), 0,
                     (cudaStream_t) stream, *g, bias, part, rows, splits / each,
                     id, weight);
}


/* --- pairs by expert -------------------------------------------------------- */

/* A block of threads for an expert, one more for the end. */

static __global__ void
__launch_bounds__(PAIRS_LARGE)
route_sort(cu_route_t r)
{
    pairs_t   s;
    uint32_t  n;

    CU_STATIC_SHARED(uint32_t, part, [PAIRS_SHARED]);

    cu_begin();

    s.of = r.id;
    s.stride = 0;
    s.pos = r.pos;
    s.top_k = r.top_k;
    pairs_lists(&s, threadIdx.x % 32 == 0 ? r.rows * r.top_k : 0);

    n = pairs_sort(s, r.experts, r.offset, part,
                   [&](uint32_t at, uint32_t, uint32_t i) {
        r.x[at] = r.from + (size_t) (i / r.top_k) * r.hidden;
        r.y[at] = r.to + (size_t) i * r.hidden;
    });

    if (blockIdx.x < r.experts && threadIdx.x == 0 && r.load != NULL) {
        r.load[blockIdx.x] += n;
    }
}


int
cu_route(const cu_route_t *r, void *stream)
{
    size_t  pairs;

    pairs = (size_t) r->rows * r->top_k;

    return CU_LAUNCH(route_sort, dim3(r->experts + 1),
                     dim3(PAIRS_THREADS(pairs)), 0, (cudaStream_t) stream, *r);
}
