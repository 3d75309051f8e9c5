/*
 * What benchmarks on a GPU share: time by events, random numbers, and the
 * ceiling that a copy is.
 */

#ifndef BENCH_GPU_H
#define BENCH_GPU_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "bf16.h"


#define BENCH_REPEATS  15

#define OK(call)                                                              \
    do {                                                                      \
        int  ok_rc = (int) (call);                                            \
                                                                              \
        if (ok_rc != 0) {                                                     \
            fprintf(stderr, "%s: error %d (%s), line %d\n", #call, ok_rc,     \
                    cudaGetErrorString((cudaError_t) ok_rc), __LINE__);       \
            exit(1);                                                          \
        }                                                                     \
    } while (0)


static cudaStream_t  stream;
static uint64_t      seed = 88172645463325252ull;


static inline int
bench_by_size(const void *a, const void *b)
{
    double  x, y;

    x = *(const double *) a;
    y = *(const double *) b;

    return (x > y) - (x < y);
}


static inline double
bench_once(void (*f)(void *), void *ctx, int n, cudaEvent_t from,
    cudaEvent_t to)
{
    int    i;
    float  ms;

    OK(cudaEventRecord(from, stream));

    for (i = 0; i < n; i++) {
        f(ctx);
    }

    OK(cudaEventRecord(to, stream));
    OK(cudaEventSynchronize(to));
    OK(cudaEventElapsedTime(&ms, from, to));

    return ms * 1e-3 / n;
}


/*
 * Seconds, the median.  What is short is called several times in a row, so
 * that the device does not wait for the host.
 */

static inline double
timed(void (*f)(void *), void *ctx)
{
    int          i, n;
    double       t[BENCH_REPEATS];
    cudaEvent_t  from, to;

    /* uploads, which `stream` does not wait for */

    OK(cudaDeviceSynchronize());

    OK(cudaEventCreate(&from));
    OK(cudaEventCreate(&to));

    f(ctx);
    t[0] = bench_once(f, ctx, 1, from, to);
    n = t[0] >= 1e-3 ? 1 : t[0] < 5e-5 ? 20 : (int) (1e-3 / t[0]);

    for (i = 0; i < BENCH_REPEATS; i++) {
        t[i] = bench_once(f, ctx, n, from, to);
    }

    OK(cudaEventDestroy(from));
    OK(cudaEventDestroy(to));
    qsort(t, BENCH_REPEATS, sizeof(double), bench_by_size);

    return t[BENCH_REPEATS / 2];
}


static inline uint32_t
random_bits(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;

    return (uint32_t) (seed >> 32);
}


static inline float
random_normal(void)
{
    int     i;
    double  sum;

    sum = 0;

    for (i = 0; i < 4; i++) {
        sum += random_bits() / 4294967296.0 - 0.5;
    }

    return (float) (sum * 1.7320508);
}


typedef struct {
    void    *from, *to;
    size_t   size;
} bench_copy_t;


static inline void
bench_copy_once(void *ctx)
{
    bench_copy_t  *c;

    c = ctx;
    OK(cudaMemcpyAsync(c->to, c->from, c->size, cudaMemcpyDeviceToDevice,
                       stream));
}


/* Bytes a second, read and written, of a copy of `size` random bytes. */

static inline double
bench_copy(size_t size)
{
    double         rate;
    size_t         i, n;
    uint32_t      *host;
    bench_copy_t   c;

    n = (size < 8u << 20) ? size : 8u << 20;
    host = malloc(n);

    if (host == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }

    for (i = 0; i < n / 4; i++) {
        host[i] = random_bits();
    }

    c.size = size;
    OK(cudaMalloc(&c.from, size));
    OK(cudaMalloc(&c.to, size));

    for (i = 0; i + n <= size; i += n) {
        OK(cudaMemcpy((uint8_t *) c.from + i, host, n,
                      cudaMemcpyHostToDevice));
    }

    rate = 2.0 * (double) size / timed(bench_copy_once, &c);
    printf("copy: %.0f GB/s, read and written\n", rate * 1e-9);

    OK(cudaFree(c.from));
    OK(cudaFree(c.to));
    free(host);

    return rate;
}

#endif /* BENCH_GPU_H */
