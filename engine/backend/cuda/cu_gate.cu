#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_gate.h"
#include "backend/cuda/cu_util.cuh"


#define GATE_THREADS  256
#define GATE_ROWS     32             /* of a tile, */
#define GATE_EXPERTS  64             /* and experts; */
#define GATE_CHUNK    32             /* elements in shared memory at once */
#define GATE_PAD      4
#define ROUTE_THREADS 256


/*
 * Logits in float32, each the sum of CU_GATE_SPLITS parts, as a step of few
 * rows would leave most of the device idle otherwise.  A thread has two rows
 * by four experts.
 */

static __global__ void
gate_logits(const float *w, const float *x, uint32_t rows, uint32_t experts,
    uint32_t hidden, uint32_t run, float *part)
{
    float     sum[2][4], a[2], b[4];
    uint32_t  i, j, k, c, begin, end, row, col, r, e;

    CU_STATIC_SHARED(float, tx, [GATE_CHUNK][GATE_ROWS + GATE_PAD]);
    CU_STATIC_SHARED(float, tw, [GATE_CHUNK][GATE_EXPERTS + GATE_PAD]);

    row = blockIdx.x * GATE_ROWS;
    col = blockIdx.y * GATE_EXPERTS;
    begin = blockIdx.z * run;
    end = (hidden - begin < run) ? hidden : begin + run;
    r = threadIdx.x / 16 * 2;
    e = threadIdx.x % 16 * 4;

    for (i = 0; i < 2; i++) {
        for (j = 0; j < 4; j++) {
            sum[i][j] = 0.0f;
        }
    }

    for (c = begin; c < end; c += GATE_CHUNK) {

        for (i = threadIdx.x; i < GATE_CHUNK * GATE_ROWS; i += GATE_THREADS) {
            k = i % GATE_CHUNK;
            j = i / GATE_CHUNK;
            tx[k][j] = (c + k < end && row + j < rows)
                       ? x[(size_t) (row + j) * hidden + c + k] : 0.0f;
        }

        for (i = threadIdx.x; i < GATE_CHUNK * GATE_EXPERTS;
             i += GATE_THREADS)
        {
            k = i % GATE_CHUNK;
            j = i / GATE_CHUNK;
            tw[k][j] = (c + k < end && col + j < experts)
                       ? w[(size_t) (col + j) * hidden + c + k] : 0.0f;
        }

        __syncthreads();

#pragma unroll 8
        for (k = 0; k < GATE_CHUNK; k++) {
            a[0] = tx[k][r];
            a[1] = tx[k][r + 1];

#pragma unroll
            for (j = 0; j < 4; j++) {
                b[j] = tw[k][e + j];
                sum[0][j] = fmaf(a[0], b[j], sum[0][j]);
                sum[1][j] = fmaf(a[1], b[j], sum[1][j]);
            }
        }

        __syncthreads();
    }

    part += (size_t) blockIdx.z * rows * experts;

    for (i = 0; i < 2; i++) {
        for (j = 0; j < 4; j++) {
            if (row + r + i < rows && col + e + j < experts) {
                part[(size_t) (row + r + i) * experts + col + e + j]
                    = sum[i][j];
            }
        }
    }
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
    uint32_t  run, splits;

    if (rows == 0) {
        return 0;
    }

    run = (hidden + CU_GATE_SPLITS - 1) / CU_GATE_SPLITS;
    run = (run + GATE_CHUNK - 1) / GATE_CHUNK * GATE_CHUNK;
    splits = (hidden + run - 1) / run;

    rc = CU_LAUNCH(gate_logits,
                   dim3((rows + GATE_ROWS - 1) / GATE_ROWS,
                        (g->experts + GATE_EXPERTS - 1) / GATE_EXPERTS,
                        splits),
                   dim3(GATE_THREADS), 0, (cudaStream_t) stream, w, x, rows,
                   g->experts, hidden, run, part);

    if (rc != 0) {
        return rc;
    }

    return CU_LAUNCH(gate_choose, dim3(rows), dim3(32), 0,
                     (cudaStream_t) stream, *g, bias, part, rows, splits, id,
                     weight);
}


/* --- pairs by expert -------------------------------------------------------- */

/* The expert of pair i, or none. */

static __device__ __forceinline__ uint32_t
route_expert(const cu_route_t &r, uint32_t i)
{
    if (i >= r.rows * r.top_k
        || (r.pos != NULL && r.pos[i / r.top_k] == CU_NO_ROW))
    {
        return UINT32_MAX;
    }

    return (uint32_t) r.id[i];
}


/*
 * A block of threads for an expert, one more for the end: counts the pairs of
 * lower experts, which is where its own begin, then goes through all pairs in
 * order and writes those that are its own.
 */

static __global__ void
route_sort(cu_route_t r)
{
    uint32_t  i, j, e, n, at, lower, mine, before, warp, lane, mask;

    CU_STATIC_SHARED(uint32_t, count, [ROUTE_THREADS / 32]);
    CU_STATIC_SHARED(uint32_t, below, [ROUTE_THREADS / 32]);

    warp = threadIdx.x / 32;
    lane = threadIdx.x % 32;
    n = r.rows * r.top_k;
    lower = 0;

    for (i = threadIdx.x; i < n; i += ROUTE_THREADS) {
        lower += route_expert(r, i) < blockIdx.x;
    }

    for (i = 16; i > 0; i >>= 1) {
        lower += __shfl_xor_sync(CU_ALL_LANES, lower, i);
    }

    if (lane == 0) {
        below[warp] = lower;
    }

    __syncthreads();

    for (i = 0, at = 0; i < ROUTE_THREADS / 32; i++) {
        at += below[i];
    }

    if (threadIdx.x == 0) {
        r.offset[blockIdx.x] = at;
    }

    if (blockIdx.x == r.experts) {
        return;
    }

    for (i = 0, mine = 0; i < n; i += ROUTE_THREADS) {
        e = route_expert(r, i + threadIdx.x);
        mask = __ballot_sync(CU_ALL_LANES, e == blockIdx.x);

        if (lane == 0) {
            count[warp] = (uint32_t) __popc(mask);
        }

        __syncthreads();

        for (j = 0, before = 0, lower = 0; j < ROUTE_THREADS / 32; j++) {
            before += (j < warp) ? count[j] : 0;
            lower += count[j];
        }

        if (e == blockIdx.x) {
            before += at + mine
                      + (uint32_t) __popc(mask & ((1u << lane) - 1));
            j = i + threadIdx.x;

            r.x[before] = r.from + (size_t) (j / r.top_k) * r.hidden;
            r.y[before] = r.to + (size_t) j * r.hidden;
        }

        mine += lower;
        __syncthreads();
    }

    if (threadIdx.x == 0 && r.load != NULL) {
        r.load[blockIdx.x] += mine;
    }
}


int
cu_route(const cu_route_t *r, void *stream)
{
    return CU_LAUNCH(route_sort, dim3(r->experts + 1), dim3(ROUTE_THREADS), 0,
                     (cudaStream_t) stream, *r);
}
