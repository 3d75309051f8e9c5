/*
 * Launches: what a kernel may ask for, and the operation that runs it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <atomic>
#include <mutex>
#include <unordered_map>

#include "emu_runtime.h"
#include "emu_thread.h"


static void launch_check(const char *name, const void *kernel, dim3 grid,
    dim3 block, size_t smem);


static std::mutex                                 launch_lock;
static std::atomic<unsigned long long>            launch_count;
static int                                        launch_fail;
static std::unordered_map<const void *, size_t>   launch_smem;


int
emu_smem(const void *kernel, const char *name, size_t bytes)
{
    if (bytes > EMU_SMEM_OPTIN) {
        emu_fatal("kernel %s wants %zu bytes of shared memory, a block has "
                  "%d", name, bytes, EMU_SMEM_OPTIN);
    }

    std::lock_guard<std::mutex>  lock(launch_lock);

    launch_smem[kernel] = bytes;

    return cudaSuccess;
}


cudaError_t
cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute attr, int value)
{
    return (attr == cudaFuncAttributeMaxDynamicSharedMemorySize)
           ? (cudaError_t) emu_smem(f, "", (size_t) value) : cudaSuccess;
}


static void
emu_body_call(void *ctx)
{
    (*(std::function<void()> *) ctx)();
}


int
emu_launch(const char *name, const void *kernel, int how, dim3 grid,
    dim3 block, size_t smem, cudaStream_t stream, std::function<void()> body)
{
    int       device;
    emu_op_t  op;

    launch_check(name, kernel, grid, block, smem);

    device = emu_device();

    if (emu_stream_device(stream) != device) {
        return emu_error(cudaErrorInvalidResourceHandle);
    }

    {
        std::lock_guard<std::mutex>  lock(launch_lock);

        if (launch_fail > 0 && --launch_fail == 0) {
            return emu_error(cudaErrorLaunchOutOfResources);
        }
    }

    op = [=]() {
        emu_launch_t            l = {};
        const char             *seed;
        std::function<void()>   f = body;

        static const char  *all = getenv("CU_EMU_TRACE");

        /* it orders nothing, so that what nobody orders is seen as a race */

        l.random = launch_count.fetch_add(1, std::memory_order_relaxed) + 1;

        seed = getenv("CU_EMU_SEED");
        l.name = name;
        l.grid = grid;
        l.block = block;
        l.smem = smem;
        l.how = how;
        l.device = device;
        l.random = (l.random + (seed ? strtoull(seed, NULL, 10) : 0) * 7919)
                   * 0x9e3779b97f4a7c15ull | 1;

        double  from = emu_now();

        emu_run(&l, emu_body_call, &f);
        emu_check_memory(name);

        if (all != NULL) {
            fprintf(stderr, "emu: %s <%u,%u,%u> x %u: %.1f ms\n", name,
                    grid.x, grid.y, grid.z, block.x * block.y * block.z,
                    (emu_now() - from) * 1e3);
        }
    };

    return emu_queue(stream, name, op);
}


static void
launch_check(const char *name, const void *kernel, dim3 grid, dim3 block,
    size_t smem)
{
    size_t    limit;
    uint64_t  threads;

    std::lock_guard<std::mutex>  lock(launch_lock);

    auto  it = launch_smem.find(kernel);

    limit = (it != launch_smem.end() && it->second > EMU_SMEM_PLAIN)
            ? it->second : EMU_SMEM_PLAIN;
    threads = (uint64_t) block.x * block.y * block.z;

    if (smem > limit) {
        emu_fatal("kernel %s is launched with %zu bytes of shared memory, "
                  "its limit is %zu (CU_SMEM)", name, smem, limit);
    }

    if (threads == 0 || threads > 1024 || block.z > 64) {
        emu_fatal("kernel %s is launched with blocks of %u x %u x %u", name,
                  block.x, block.y, block.z);
    }

    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff
        || grid.y > 65535 || grid.z > 65535)
    {
        emu_fatal("kernel %s is launched with a grid of %u x %u x %u", name,
                  grid.x, grid.y, grid.z);
    }
}


void
emu_fail_launch(int n)
{
    std::lock_guard<std::mutex>  lock(launch_lock);

    launch_fail = n;
}


unsigned long long
emu_launches(void)
{
    return launch_count;
}


double
emu_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}
