/*
 * The emulator: threads, warps, barriers, memory, streams and graphs.  What
 * is wrong on purpose must be seen.
 */

#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_ptx.cuh"
#include "test_cuda_util.h"

#include <thread>


/* --- threads ----------------------------------------------------------- */

static __global__ void
kernel_reverse(const int *in, int *out, int n)
{
    int  i, b;

    CU_SHARED(int, buf);

    b = (int) blockDim.x;
    i = (int) (blockIdx.x * blockDim.x + threadIdx.x);
    buf[threadIdx.x] = (i < n) ? in[i] : 0;

    __syncthreads();

    if (i < n) {
        out[i] = buf[b - 1 - (int) threadIdx.x] + (int) gridDim.x * 1000;
    }
}


static void
test_threads(void **)
{
    int           in[1000], out[1000], i;
    int          *d, *e;
    cudaStream_t  s;

    for (i = 0; i < 1000; i++) {
        in[i] = i;
    }

    d = (int *) cu_put(in, sizeof(in));
    e = (int *) cu_put(NULL, sizeof(out));
    CU_OK(cudaStreamCreate(&s));

    CU_OK(CU_LAUNCH(kernel_reverse, 8, 125, 125 * sizeof(int), s, d, e,
                    1000));
    CU_OK(cudaStreamSynchronize(s));
    cu_get(out, e, sizeof(out));

    for (i = 0; i < 1000; i++) {
        assert_int_equal(out[i], i / 125 * 125 + 124 - i % 125 + 8000);
    }

    CU_OK(cudaFree(d));
    CU_OK(cudaFree(e));
    CU_OK(cudaStreamDestroy(s));
}


static __global__ void
kernel_warps(float *sums, unsigned *votes, int *counts)
{
    int    i, n;
    float  v;

    CU_STATIC_SHARED(float, part, [8]);

    v = (float) threadIdx.x;

    for (i = 16; i > 0; i >>= 1) {
        v += __shfl_xor_sync(0xffffffff, v, i);
    }

    if ((threadIdx.x & 31) == 0) {
        part[threadIdx.x / 32] = v;
    }

    __syncthreads();

    if (threadIdx.x == 0) {
        for (i = 1; i < 8; i++) {
            part[0] += part[i];
        }
    }

    __syncthreads();
    sums[threadIdx.x] = part[0] + __shfl_up_sync(0xffffffff, v, 1);
    votes[threadIdx.x] = __ballot_sync(0xffffffff, threadIdx.x % 3 == 0);

    if ((threadIdx.x & 31) < 8) {
        votes[threadIdx.x] ^= __reduce_max_sync(0xff, threadIdx.x);
    }

    n = __syncthreads_count(threadIdx.x % 5 == 0);
    counts[threadIdx.x] = n * 1000 + __syncthreads_or(threadIdx.x == 17)
                          + __syncthreads_and(threadIdx.x != 17);
}


static void
test_warps(void **)
{
    int        counts[256], i, w;
    int       *dc;
    float      sums[256], *ds;
    unsigned   votes[256], *dv, expected;

    ds = (float *) cu_put(NULL, sizeof(sums));
    dv = (unsigned *) cu_put(NULL, sizeof(votes));
    dc = (int *) cu_put(NULL, sizeof(counts));

    CU_OK(CU_LAUNCH(kernel_warps, 1, 256, 0, NULL, ds, dv, dc));
    cu_get(sums, ds, sizeof(sums));
    cu_get(votes, dv, sizeof(votes));
    cu_get(counts, dc, sizeof(counts));

    for (i = 0; i < 256; i++) {
        assert_true(sums[i] == 255 * 128 + (i / 32 * 32 * 32 + 496));
        expected = 0;

        for (w = 0; w < 32; w++) {
            expected |= ((i / 32 * 32 + w) % 3 == 0) ? 1u << w : 0;
        }

        if (i % 32 < 8) {
            expected ^= (unsigned) (i / 32 * 32 + 7);
        }

        assert_int_equal(votes[i], expected);
        assert_int_equal(counts[i], 52 * 1000 + 1);
    }

    CU_OK(cudaFree(ds));
    CU_OK(cudaFree(dv));
    CU_OK(cudaFree(dc));
}


/* Blocks that wait for each other, by a counter in memory. */

static __global__ void
kernel_grid(unsigned *count, unsigned *seen)
{
    if (threadIdx.x == 0) {
        atomicAdd(count, 1);

        while (__atomic_load_n(count, __ATOMIC_ACQUIRE) != gridDim.x) {
            __nanosleep(10);
        }
    }

    __syncthreads();
    seen[blockIdx.x * blockDim.x + threadIdx.x] = *count;
}


static void
test_grid(void **)
{
    int        i;
    unsigned  *d, *e, seen[7 * 64];

    d = (unsigned *) cu_put(NULL, 4);
    e = (unsigned *) cu_put(NULL, sizeof(seen));
    CU_OK(cudaMemset(d, 0, 4));

    CU_OK(CU_LAUNCH_COOP(kernel_grid, 7, 64, 0, NULL, d, e));
    cu_get(seen, e, sizeof(seen));

    for (i = 0; i < 7 * 64; i++) {
        assert_int_equal(seen[i], 7);
    }

    CU_OK(cudaFree(d));
    CU_OK(cudaFree(e));
}


/*
 * Two streams whose kernels wait for each other's flags, one of them waited
 * for: the other runs, too.
 */

static __global__ void
kernel_flags(unsigned *mine, unsigned *other, unsigned *seen)
{
    __atomic_store_n(mine, 1, __ATOMIC_RELEASE);

    while (__atomic_load_n(other, __ATOMIC_ACQUIRE) != 1) {
        __nanosleep(10);
    }

    *seen = 1;
}


static void
test_flags(void **)
{
    unsigned      *d, flags[4];
    cudaStream_t   a, b;

    d = (unsigned *) cu_put(NULL, sizeof(flags));
    CU_OK(cudaMemset(d, 0, sizeof(flags)));
    CU_OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CU_OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));

    CU_OK(CU_LAUNCH(kernel_flags, 1, 1, 0, a, d, d + 1, d + 2));
    CU_OK(CU_LAUNCH(kernel_flags, 1, 1, 0, b, d + 1, d, d + 3));
    CU_OK(cudaStreamSynchronize(a));
    CU_OK(cudaStreamSynchronize(b));
    cu_get(flags, d, sizeof(flags));

    assert_int_equal(flags[2], 1);
    assert_int_equal(flags[3], 1);

    CU_OK(cudaStreamDestroy(a));
    CU_OK(cudaStreamDestroy(b));
    CU_OK(cudaFree(d));
}


/* --- what is wrong ----------------------------------------------------- */

static __global__ void
kernel_wrong(int what, char *p, int *q)
{
    CU_SHARED(char, smem);
    CU_STATIC_SHARED(int, fixed, [4]);

    fixed[threadIdx.x & 3] = 0;

    switch (what) {

    case 0:
        /* half of a barrier's threads */
        if (threadIdx.x < 32) {
            emu_barrier(1, 64, 1);
        }

        break;

    case 1:
        smem[64 + threadIdx.x] = 1;
        break;

    case 2:
        (&fixed[0])[what * 2] = 1;
        break;

    case 3:
        p[1000] = 1;
        break;

    case 4:
        p[-1] = 1;
        break;

    case 5:
        *q = p[1024];
        break;

    case 6:
        if (threadIdx.x != 3) {
            (void) __shfl_sync(0xffffffff, 1, 0);

        } else {
            (void) __ballot_sync(0xffffffff, 1);
        }

        break;

    case 7:
        if (threadIdx.x != 3) {
            (void) __shfl_sync(0xffffffff, 1, 0);
        }

        break;

    case 8:
        (void) __shfl_sync(threadIdx.x < 32 ? 0xffffffff : 0xff, 1, 0);
        break;

    case 24:
        /* 512 of the 504 that three warpgroups have */
        if (threadIdx.x < 256) {
            cu_regs_more<224>();

        } else {
            cu_regs_less<64>();
        }

        break;

    case 27:
        cu_store_release_sys((uint32_t *) q, 1);
        break;

    case 9:
        /* a race: the neighbour's value, without a barrier */
        smem[threadIdx.x] = (char) threadIdx.x;
        q[threadIdx.x] = smem[63 - threadIdx.x];
        break;
    }
}


static __global__ void
kernel_add(float *x, const float *y, int n)
{
    int  i;

    i = (int) (blockIdx.x * blockDim.x + threadIdx.x);

    if (i < n) {
        x[i] += y[i];
    }
}


static __global__ void
kernel_far(const uint32_t *flag)
{
    cu_begin();

    while (cu_load_acquire_sys(flag) == 0) { /* void */ }
}


static void
wrong(int what)
{
    char          *p;
    int           *q;
    cudaStream_t   a, b;

    p = (char *) cu_put(NULL, 1000);
    q = (int *) cu_put(NULL, 64 * sizeof(int));

    if (what == 20) {
        (void) CU_LAUNCH(kernel_wrong, 1, 64, 100000, NULL, 0, p, q);

    } else if (what == 21) {
        (void) CU_LAUNCH(kernel_wrong, 0, 64, 0, NULL, 0, p, q);

    } else if (what == 22) {
        char  host[2000];

        memset(host, 0, sizeof(host));
        (void) cudaMemcpy(p, host, 1001, cudaMemcpyHostToDevice);

    } else if (what == 23) {
        char  host[100];

        (void) cudaMemcpy(host, host, 10, cudaMemcpyHostToDevice);

    } else if (what == 26) {
        CU_OK(cudaMemset(p, 0, 1000));
        CU_OK(cudaStreamCreate(&a));
        CU_OK(cudaStreamCreate(&b));
        CU_OK(CU_LAUNCH(kernel_far, 1, 32, 0, a, (const uint32_t *) p));
        CU_OK(CU_LAUNCH(kernel_far, 1, 32, 0, b, (const uint32_t *) p));
        std::thread([=]() { (void) cudaStreamSynchronize(b); }).detach();
        (void) cudaStreamSynchronize(a);

    } else if (what == 25) {
        (void) cu_launch("kernel_add", CU_DEP, kernel_add, 1, 64, 0, NULL,
                         (float *) p, (const float *) q, 0);
        (void) cudaDeviceSynchronize();

    } else {
        (void) CU_LAUNCH(kernel_wrong, 1, what == 24 ? 384 : 64, 64, NULL,
                         what, p, q);
        (void) cudaDeviceSynchronize();
    }
}


static void
test_wrong(void **)
{
    cu_dies(wrong, 0, "nobody can go on");
    cu_dies(wrong, 1, "shared memory written 0 bytes past its end");
    cu_dies(wrong, 2, "static shared memory written 0 bytes past");
#if !defined(__SANITIZE_THREAD__)
    cu_dies(wrong, 3, "device memory written 0 bytes past the end");
    cu_dies(wrong, 4, "device memory written 1 bytes in front of");
#endif
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    cu_dies(wrong, 5, "device memory touched at byte 1024 of an allocation");
#endif
    cu_dies(wrong, 6, "lanes of a warp are at different operations");
    cu_dies(wrong, 7, "the other lanes of its warp");
    cu_dies(wrong, 24, "they would wait for ever");
    cu_dies(wrong, 8, "a lane is not in the mask");
    cu_dies(wrong, 20, "is launched with 100000 bytes of shared memory");
    cu_dies(wrong, 21, "is launched with a grid of 0 x 1 x 1");
    cu_dies(wrong, 22, "writes 1001 bytes where 1000 are left");
    cu_dies(wrong, 23, "the destination of a copy is not device memory");
    cu_dies(wrong, 25, "launched early, and the thread ends without cu_begin");
    cu_dies(wrong, 27, "a release to other devices without");

    /* thread sanitizer starts no threads in a child */

#if !defined(__SANITIZE_THREAD__)
    cu_dies(wrong, 26, "two kernels on device 0 wait for others");
#endif
}


static void
test_race(void **)
{
    int    i, bad, q[64], *d;
    char  *p;

    p = (char *) cu_put(NULL, 1000);
    d = (int *) cu_put(NULL, sizeof(q));

    CU_OK(CU_LAUNCH(kernel_wrong, 1, 64, 64, NULL, 9, p, d));
    cu_get(q, d, sizeof(q));
    bad = 0;

    for (i = 0; i < 64; i++) {
        bad += q[i] != 63 - i;
    }

    assert_int_equal(bad, 32);

    CU_OK(cudaFree(p));
    CU_OK(cudaFree(d));
}


/* --- streams and graphs ------------------------------------------------ */

/* A result that was not waited for is not there; events order streams. */

static void
test_streams(void **)
{
    int           i;
    float        *host, *x, *y, one[100];
    cudaEvent_t   e;
    cudaStream_t  a, b;

    for (i = 0; i < 100; i++) {
        one[i] = 1.0f;
    }

    CU_OK(cudaMallocHost((void **) &host, sizeof(one)));
    x = (float *) cu_put(one, sizeof(one));
    y = (float *) cu_put(one, sizeof(one));
    CU_OK(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking));
    CU_OK(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    CU_OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));

    CU_OK(CU_LAUNCH(kernel_add, 4, 32, 0, a, x, (const float *) y, 100));
    CU_OK(cudaEventRecord(e, a));
    CU_OK(cudaStreamWaitEvent(b, e, 0));
    CU_OK(CU_LAUNCH(kernel_add, 4, 32, 0, b, x, (const float *) x, 100));
    CU_OK(cudaMemcpyAsync(host, x, sizeof(one), cudaMemcpyDeviceToHost, b));

    assert_true(isnan(host[0]));
    assert_int_equal(cudaEventQuery(e), cudaErrorNotReady);

    CU_OK(cudaStreamSynchronize(b));

    for (i = 0; i < 100; i++) {
        assert_true(host[i] == 4.0f);
    }

    CU_OK(cudaEventQuery(e));
    CU_OK(cudaEventDestroy(e));
    CU_OK(cudaStreamDestroy(a));
    CU_OK(cudaStreamDestroy(b));
    CU_OK(cudaFreeHost(host));
    CU_OK(cudaFree(x));
    CU_OK(cudaFree(y));
}


static void
test_graphs(void **)
{
    int               i;
    float            *x, *y, out[64];
    cudaEvent_t       fork, join;
    cudaGraph_t       g;
    cudaStream_t      a, b;
    cudaGraphExec_t   exec;

    x = (float *) cu_put(NULL, sizeof(out));
    y = (float *) cu_put(NULL, sizeof(out));
    CU_OK(cudaMemset(x, 0, sizeof(out)));
    CU_OK(cudaMemset(y, 0, sizeof(out)));
    CU_OK(cudaStreamCreate(&a));
    CU_OK(cudaStreamCreate(&b));
    CU_OK(cudaEventCreate(&fork));
    CU_OK(cudaEventCreate(&join));

    for (i = 0; i < 64; i++) {
        out[i] = (float) i;
    }

    CU_OK(cudaMemcpy(y, out, sizeof(out), cudaMemcpyHostToDevice));

    CU_OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    CU_OK(cudaEventRecord(fork, a));
    CU_OK(cudaStreamWaitEvent(b, fork, 0));
    CU_OK(CU_LAUNCH(kernel_add, 1, 64, 0, b, x, (const float *) y, 64));
    CU_OK(cudaEventRecord(join, b));
    CU_OK(cudaStreamWaitEvent(a, join, 0));
    assert_int_equal(cudaStreamSynchronize(a),
                     cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(a, &g),
                     cudaErrorStreamCaptureInvalidated);

    CU_OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    CU_OK(cudaEventRecord(fork, a));
    CU_OK(cudaStreamWaitEvent(b, fork, 0));
    CU_OK(CU_LAUNCH(kernel_add, 1, 64, 0, b, x, (const float *) y, 64));
    assert_int_equal(cudaStreamEndCapture(a, &g),
                     cudaErrorStreamCaptureUnjoined);

    CU_OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
    CU_OK(cudaEventRecord(fork, a));
    CU_OK(cudaStreamWaitEvent(b, fork, 0));
    CU_OK(CU_LAUNCH(kernel_add, 1, 64, 0, b, x, (const float *) y, 64));
    CU_OK(cudaEventRecord(join, b));
    CU_OK(cudaStreamWaitEvent(a, join, 0));
    CU_OK(cudaStreamEndCapture(a, &g));
    CU_OK(cudaGraphInstantiate(&exec, g, 0));
    CU_OK(cudaGraphDestroy(g));

    cu_get(out, x, sizeof(out));

    for (i = 0; i < 64; i++) {
        assert_true(out[i] == 0.0f);
    }

    for (i = 0; i < 3; i++) {
        CU_OK(cudaGraphLaunch(exec, a));
    }

    CU_OK(cudaStreamSynchronize(a));
    cu_get(out, x, sizeof(out));

    for (i = 0; i < 64; i++) {
        assert_true(out[i] == 3.0f * (float) i);
    }

    CU_OK(cudaGraphExecDestroy(exec));
    CU_OK(cudaEventDestroy(fork));
    CU_OK(cudaEventDestroy(join));
    CU_OK(cudaStreamDestroy(a));
    CU_OK(cudaStreamDestroy(b));
    CU_OK(cudaFree(x));
    CU_OK(cudaFree(y));
}


/* How often of 64 times the doubling came after the sum. */

static int
children(const float *one, float *x, int ordered)
{
    int               i, first;
    float             out;
    cudaGraph_t       g, piece[2];
    cudaStream_t      s;
    cudaGraphNode_t   node[2];
    cudaGraphExec_t   exec;

    CU_OK(cudaStreamCreate(&s));

    for (i = 0; i < 2; i++) {
        CU_OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
        CU_OK(CU_LAUNCH(kernel_add, 1, 32, 0, s, x,
                        i == 0 ? one : (const float *) x, 1));
        CU_OK(cudaStreamEndCapture(s, &piece[i]));
    }

    CU_OK(cudaGraphCreate(&g, 0));
    CU_OK(cudaGraphAddChildGraphNode(&node[0], g, NULL, 0, piece[0]));
    CU_OK(cudaGraphAddChildGraphNode(&node[1], g, ordered ? &node[0] : NULL,
                                     ordered ? 1 : 0, piece[1]));
    CU_OK(cudaGraphInstantiate(&exec, g, 0));
    CU_OK(cudaGraphDestroy(g));
    CU_OK(cudaGraphDestroy(piece[0]));
    CU_OK(cudaGraphDestroy(piece[1]));

    for (i = 0, first = 0; i < 64; i++) {
        CU_OK(cudaMemset(x, 0, sizeof(float)));
        CU_OK(cudaGraphLaunch(exec, s));
        CU_OK(cudaStreamSynchronize(s));
        cu_get(&out, x, sizeof(out));
        assert_true(out == 1.0f || out == 2.0f);
        first += out == 2.0f;
    }

    CU_OK(cudaGraphExecDestroy(exec));
    CU_OK(cudaStreamDestroy(s));

    return first;
}


static void
test_children(void **)
{
    float  one, *x, *y;

    one = 1.0f;
    x = (float *) cu_put(&one, sizeof(one));
    y = (float *) cu_put(&one, sizeof(one));

    assert_int_equal(children(y, x, 1), 64);
    assert_in_range(children(y, x, 0), 1, 63);

    CU_OK(cudaFree(x));
    CU_OK(cudaFree(y));
}


/* What a device refuses: another thread's capture, another one's stream. */

static void
test_refused(void **)
{
    int           rc;
    void         *p;
    cudaEvent_t   e;
    cudaGraph_t   g;
    cudaStream_t  s;

    CU_OK(cudaStreamCreate(&s));
    CU_OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    assert_int_equal(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);

    std::thread([&]() {
        rc = cudaStreamEndCapture(s, &g);
        CU_OK(cudaMalloc(&p, 16));
        CU_OK(cudaFree(p));
    }).join();

    assert_int_equal(rc, cudaErrorStreamCaptureWrongThread);
    CU_OK(cudaStreamEndCapture(s, &g));
    CU_OK(cudaGraphDestroy(g));

    emu_set_device(2, 4, (size_t) 8 << 30);
    CU_OK(cudaSetDevice(1));
    assert_int_equal(CU_LAUNCH(kernel_add, 1, 32, 0, s, (float *) NULL,
                               (const float *) NULL, 0),
                     cudaErrorInvalidResourceHandle);
    CU_OK(cudaEventCreate(&e));
    assert_int_equal(cudaEventRecord(e, s), cudaErrorInvalidResourceHandle);
    CU_OK(cudaEventDestroy(e));
    CU_OK(cudaSetDevice(0));
    emu_set_device(1, 4, (size_t) 8 << 30);

    CU_OK(cudaStreamDestroy(s));
}


static void
test_memory(void **)
{
    int     i;
    void   *p;
    float   x[16];

    assert_int_equal(emu_in_use(), 0);
    p = cu_put(NULL, sizeof(x));
    cu_get(x, p, sizeof(x));

    for (i = 0; i < 16; i++) {
        assert_true(isnan(x[i]));
    }

    assert_int_equal(emu_in_use(), sizeof(x));
    CU_OK(cudaFree(p));
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);

    emu_fail_malloc(1);
    assert_int_equal(cudaMalloc(&p, 16), cudaErrorMemoryAllocation);
    assert_null(p);
    assert_int_equal(cudaMalloc(&p, (size_t) 1 << 40),
                     cudaErrorMemoryAllocation);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_warps),
        cmocka_unit_test(test_grid),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_wrong),
        cmocka_unit_test(test_race),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_children),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_memory)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
