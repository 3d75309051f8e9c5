/*
 * Memory of the device, as pages of its own that end (to 256 bytes) at one
 * that nobody may touch, filled with 0xff; pinned memory; copies.
 */

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <vector>

#include "emu_runtime.h"
#include "emu_thread.h"


#define EMU_CANARY     0xc5
#define EMU_ALIGN      256
#define EMU_PAGE       4096
#define EMU_GUARD      512           /* bytes of canary checked in front */
#define EMU_FILL_MAX   ((size_t) 256 << 20)
#define EMU_CHECKS     256           /* allocations looked at for a launch */


struct alloc_t {
    size_t       size;
    emu_place_t  place;
    int          device;
    uint8_t     *map;                /* all pages, guards too */
    size_t       map_size;
};


static void memory_check(uintptr_t at, const alloc_t &a, const char *after)
    EMU_UNSEEN;
static void memory_fault(int sig, siginfo_t *info, void *ctx);
static void memory_handler(void);
static cudaError_t memory_copy(void *dst, size_t dpitch, const void *src,
    size_t spitch, size_t width, size_t height, enum cudaMemcpyKind kind,
    cudaStream_t stream, int wait);
static void memory_side(const void *p, int device, const char *which);


static std::mutex                    memory_lock;
static std::map<uintptr_t, alloc_t>  memory_all;
static size_t                        memory_used;
static uintptr_t                     memory_next;      /* to be checked */
static int                           memory_fail;
static int                           memory_fail_pinned;


cudaError_t
cudaMalloc(void **p, size_t size)
{
    void     *map;
    size_t    body, pages;
    uint8_t  *at;
    alloc_t   a;

    memory_handler();

    if (p == NULL) {
        return emu_error(cudaErrorInvalidValue);
    }

    *p = NULL;

    if (size == 0) {
        return cudaSuccess;
    }

    if (emu_unsafe()) {
        return emu_error(cudaErrorStreamCaptureUnsupported);
    }

    std::lock_guard<std::mutex>  lock(memory_lock);

    if (memory_fail > 0 && --memory_fail == 0) {
        return emu_error(cudaErrorMemoryAllocation);
    }

    if (size > emu_device_memory() - memory_used) {
        return emu_error(cudaErrorMemoryAllocation);
    }

    body = (size + EMU_ALIGN - 1) / EMU_ALIGN * EMU_ALIGN;
    pages = (body + EMU_GUARD + EMU_PAGE - 1) / EMU_PAGE * EMU_PAGE;

    map = mmap(NULL, pages + 2 * EMU_PAGE, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        return emu_error(cudaErrorMemoryAllocation);
    }

    a.size = size;
    a.place = EMU_DEVICE;
    a.device = emu_device();
    a.map = (uint8_t *) map;
    a.map_size = pages + 2 * EMU_PAGE;

    if (mprotect(a.map, EMU_PAGE, PROT_NONE) != 0
        || mprotect(a.map + EMU_PAGE + pages, EMU_PAGE, PROT_NONE) != 0)
    {
        munmap(map, a.map_size);
        return emu_error(cudaErrorMemoryAllocation);
    }

    at = a.map + EMU_PAGE + pages - body;

    memset(at - EMU_GUARD, EMU_CANARY, EMU_GUARD);
    memset(at + size, EMU_CANARY, body - size);

    if (size <= EMU_FILL_MAX) {
        memset(at, 0xff, size);
    }

    memory_all[(uintptr_t) at] = a;
    memory_used += size;
    *p = at;

    return cudaSuccess;
}


cudaError_t
cudaFree(void *p)
{
    alloc_t  a;

    if (p == NULL) {
        return cudaSuccess;
    }

    if (emu_unsafe()) {
        return emu_error(cudaErrorStreamCaptureUnsupported);
    }

    emu_drain_all(0);

    std::lock_guard<std::mutex>  lock(memory_lock);

    auto  it = memory_all.find((uintptr_t) p);

    if (it == memory_all.end() || it->second.place != EMU_DEVICE) {
        return emu_error(cudaErrorInvalidValue);
    }

    a = it->second;
    memory_check(it->first, a, "cudaFree");
    memory_all.erase(it);
    memory_used -= a.size;
    munmap(a.map, a.map_size);

    return cudaSuccess;
}


cudaError_t
cudaMallocHost(void **p, size_t size)
{
    void     *at;
    alloc_t   a = {};

    if (p == NULL) {
        return emu_error(cudaErrorInvalidValue);
    }

    *p = NULL;

    if (size == 0) {
        return cudaSuccess;
    }

    std::lock_guard<std::mutex>  lock(memory_lock);

    if ((memory_fail_pinned > 0 && --memory_fail_pinned == 0)
        || posix_memalign(&at, EMU_PAGE, size) != 0)
    {
        return emu_error(cudaErrorMemoryAllocation);
    }

    memset(at, 0xff, size);

    a.size = size;
    a.place = EMU_PINNED;
    a.device = emu_device();
    memory_all[(uintptr_t) at] = a;
    *p = at;

    return cudaSuccess;
}


cudaError_t
cudaHostAlloc(void **p, size_t size, unsigned int)
{
    return cudaMallocHost(p, size);
}


cudaError_t
cudaFreeHost(void *p)
{
    if (p == NULL) {
        return cudaSuccess;
    }

    emu_drain_all(0);

    std::lock_guard<std::mutex>  lock(memory_lock);

    auto  it = memory_all.find((uintptr_t) p);

    if (it == memory_all.end() || it->second.place != EMU_PINNED
        || it->second.map != NULL)
    {
        return emu_error(cudaErrorInvalidValue);
    }

    memory_all.erase(it);
    free(p);

    return cudaSuccess;
}


/* A registered range has `map` set, so that it is not freed as pinned. */

cudaError_t
cudaHostRegister(void *p, size_t size, unsigned int)
{
    size_t   left;
    alloc_t  a = {};

    if (p == NULL || size == 0) {
        return emu_error(cudaErrorInvalidValue);
    }

    if (emu_place(p, &left) != EMU_HOST) {
        return emu_error(cudaErrorHostMemoryAlreadyRegistered);
    }

    std::lock_guard<std::mutex>  lock(memory_lock);

    a.size = size;
    a.place = EMU_PINNED;
    a.device = emu_device();
    a.map = (uint8_t *) p;
    memory_all[(uintptr_t) p] = a;

    return cudaSuccess;
}


cudaError_t
cudaHostUnregister(void *p)
{
    emu_drain_all(0);

    std::lock_guard<std::mutex>  lock(memory_lock);

    auto  it = memory_all.find((uintptr_t) p);

    if (it == memory_all.end() || it->second.place != EMU_PINNED
        || it->second.map != p)
    {
        return emu_error(cudaErrorHostMemoryNotRegistered);
    }

    memory_all.erase(it);

    return cudaSuccess;
}


cudaError_t
cudaHostGetDevicePointer(void **d, void *h, unsigned int)
{
    size_t  left;

    if (emu_place(h, &left) != EMU_PINNED) {
        return emu_error(cudaErrorInvalidValue);
    }

    *d = h;

    return cudaSuccess;
}


cudaError_t
cudaMemGetInfo(size_t *free, size_t *total)
{
    std::lock_guard<std::mutex>  lock(memory_lock);

    *total = emu_device_memory();
    *free = *total - memory_used;

    return cudaSuccess;
}


cudaError_t
cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p)
{
    std::lock_guard<std::mutex>  lock(memory_lock);

    memset(a, 0, sizeof(cudaPointerAttributes));

    auto  it = memory_all.upper_bound((uintptr_t) p);

    if (it == memory_all.begin()) {
        return cudaSuccess;
    }

    --it;

    if ((uintptr_t) p - it->first >= it->second.size) {
        return cudaSuccess;
    }

    a->device = it->second.device;
    a->devicePointer = (void *) p;

    if (it->second.place == EMU_DEVICE) {
        a->type = cudaMemoryTypeDevice;

    } else {
        a->type = cudaMemoryTypeHost;
        a->hostPointer = (void *) p;
    }

    return cudaSuccess;
}


void
emu_fail_malloc(int n)
{
    memory_fail = n;
}


void
emu_fail_pinned(int n)
{
    memory_fail_pinned = n;
}


size_t
emu_in_use(void)
{
    std::lock_guard<std::mutex>  lock(memory_lock);

    return memory_used;
}


emu_place_t
emu_place(const void *p, size_t *left)
{
    std::lock_guard<std::mutex>  lock(memory_lock);

    auto  it = memory_all.upper_bound((uintptr_t) p);

    if (it != memory_all.begin()) {
        --it;

        if ((uintptr_t) p - it->first < it->second.size) {
            *left = it->second.size - ((uintptr_t) p - it->first);
            return it->second.place;
        }
    }

    *left = 0;

    return EMU_HOST;
}


/*
 * Not where thread sanitizer looks on: a lock after each kernel would order
 * those of all devices, and hide what nothing else orders.
 */

void
emu_check_memory(const char *after)
{
    size_t  i, n;

#if defined(__SANITIZE_THREAD__)
    return;
#endif

    std::lock_guard<std::mutex>  lock(memory_lock);

    n = memory_all.size();
    n = (n < EMU_CHECKS) ? n : EMU_CHECKS;
    auto  it = memory_all.lower_bound(memory_next);

    for (i = 0; i < n; i++) {
        if (it == memory_all.end()) {
            it = memory_all.begin();
        }

        memory_check(it->first, it->second, after);
        ++it;
    }

    memory_next = (it == memory_all.end()) ? 0 : it->first;
}


static void
memory_check(uintptr_t at, const alloc_t &a, const char *after)
{
    size_t          i, pad;
    const uint8_t  *p;

    if (a.place != EMU_DEVICE) {
        return;
    }

    p = (const uint8_t *) at;
    pad = (EMU_ALIGN - a.size % EMU_ALIGN) % EMU_ALIGN;

    for (i = 0; i < pad; i++) {
        if (p[a.size + i] != EMU_CANARY) {
            emu_fatal("%s: device memory written %zu bytes past the end of "
                      "an allocation of %zu", after, i, a.size);
        }
    }

    for (i = 1; i <= EMU_GUARD; i++) {
        if (p[-(ptrdiff_t) i] != EMU_CANARY) {
            emu_fatal("%s: device memory written %zu bytes in front of an "
                      "allocation of %zu", after, i, a.size);
        }
    }
}


/* --- faults ------------------------------------------------------------ */

/* Says which allocation an address that faulted lies beside. */

static void
memory_fault(int sig, siginfo_t *info, void *)
{
    uintptr_t  at;

    at = (uintptr_t) info->si_addr;
    signal(sig, SIG_DFL);

    for (auto &it : memory_all) {
        if (it.second.place == EMU_DEVICE
            && at >= (uintptr_t) it.second.map
            && at < (uintptr_t) it.second.map + it.second.map_size)
        {
            emu_fatal("device memory touched at byte %lld of an allocation "
                      "of %zu", (long long) (at - it.first),
                      it.second.size);
        }
    }

    emu_fatal("a fault at address %p, which is no device memory",
              info->si_addr);
}


static void
memory_handler(void)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    stack_t           alt;
    struct sigaction  sa;

    static thread_local char  *stack;

    if (stack == NULL) {
        stack = (char *) malloc(64 << 10);
        if (stack == NULL) {
            return;
        }

        memset(&alt, 0, sizeof(alt));
        alt.ss_sp = stack;
        alt.ss_size = 64 << 10;
        (void) sigaltstack(&alt, NULL);
    }

    /* each time: a test's framework puts its own in front */

    memset(&sa, 0, sizeof(sa));
    sa.sa_sigaction = memory_fault;
    sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
    (void) sigaction(SIGSEGV, &sa, NULL);
    (void) sigaction(SIGBUS, &sa, NULL);
#else
    (void) memory_fault;
#endif
}


/* --- copies ------------------------------------------------------------ */

cudaError_t
cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind kind)
{
    return memory_copy(dst, n, src, n, n, 1, kind, NULL, 1);
}


cudaError_t
cudaMemcpyAsync(void *dst, const void *src, size_t n,
    enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return memory_copy(dst, n, src, n, n, 1, kind, stream, 0);
}


cudaError_t
cudaMemcpyPeerAsync(void *dst, int, const void *src, int, size_t n,
    cudaStream_t stream)
{
    return memory_copy(dst, n, src, n, n, 1, cudaMemcpyDeviceToDevice,
                       stream, 0);
}


cudaError_t
cudaMemcpy2D(void *dst, size_t dpitch, const void *src, size_t spitch,
    size_t width, size_t height, enum cudaMemcpyKind kind)
{
    return memory_copy(dst, dpitch, src, spitch, width, height, kind, NULL,
                       1);
}


cudaError_t
cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch,
    size_t width, size_t height, enum cudaMemcpyKind kind,
    cudaStream_t stream)
{
    return memory_copy(dst, dpitch, src, spitch, width, height, kind, stream,
                       0);
}


static cudaError_t
memory_copy(void *dst, size_t dpitch, const void *src, size_t spitch,
    size_t width, size_t height, enum cudaMemcpyKind kind,
    cudaStream_t stream, int wait)
{
    size_t                 i, size, left;
    emu_op_t               op;
    emu_place_t            to, from;
    std::vector<uint8_t>   staged;

    if (width == 0 || height == 0) {
        return cudaSuccess;
    }

    if (dst == NULL || src == NULL || width > dpitch || width > spitch) {
        return emu_error(cudaErrorInvalidValue);
    }

    to = emu_place(dst, &left);
    size = dpitch * (height - 1) + width;

    if (to != EMU_HOST && size > left) {
        emu_fatal("a copy writes %zu bytes where %zu are left of an "
                  "allocation", size, left);
    }

    from = emu_place(src, &left);
    size = spitch * (height - 1) + width;

    if (from != EMU_HOST && size > left) {
        emu_fatal("a copy reads %zu bytes where %zu are left of an "
                  "allocation", size, left);
    }

    if (kind != cudaMemcpyDefault) {
        memory_side(dst, kind & 1, "destination");
        memory_side(src, kind & 2, "source");
    }

    /*
     * Pageable memory is read before the call returns, and written before
     * it returns; pinned memory is used when the copy's turn comes.
     */

    if (from == EMU_HOST && !emu_captures(stream)) {
        staged.resize(width * height);

        for (i = 0; i < height; i++) {
            memcpy(&staged[i * width], (const uint8_t *) src + i * spitch,
                   width);
        }
    }

    wait = wait || (to == EMU_HOST && from == EMU_DEVICE);

    if (wait) {
        cudaError_t  e = emu_may_wait(stream);

        if (e != cudaSuccess) {
            return emu_error(e);
        }
    }

    op = [=, staged = std::move(staged)]() {
        size_t  row;

        for (row = 0; row < height; row++) {
            memmove((uint8_t *) dst + row * dpitch,
                    staged.empty() ? (const uint8_t *) src + row * spitch
                                   : &staged[row * width], width);
        }
    };

    if (stream == NULL && wait) {
        emu_drain_all(1);
    }

    cudaError_t  e = emu_queue(stream, "memcpy", op);

    if (e == cudaSuccess && wait) {
        emu_drain(stream);
    }

    return e;
}


/* A wrong direction is an error of the caller that CUDA may let pass. */

static void
memory_side(const void *p, int device, const char *which)
{
    size_t       left;
    emu_place_t  place;

    place = emu_place(p, &left);

    if (device && place == EMU_HOST) {
        emu_fatal("the %s of a copy is not device memory: %p", which, p);
    }

    if (!device && place == EMU_DEVICE) {
        emu_fatal("the %s of a copy is not host memory: %p", which, p);
    }
}


cudaError_t
cudaMemset(void *p, int value, size_t n)
{
    cudaError_t  e;

    e = cudaMemsetAsync(p, value, n, NULL);

    if (e == cudaSuccess) {
        emu_drain(NULL);
    }

    return e;
}


cudaError_t
cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream)
{
    size_t  left;

    if (n == 0) {
        return cudaSuccess;
    }

    if (emu_place(p, &left) == EMU_HOST) {
        return emu_error(cudaErrorInvalidValue);
    }

    if (n > left) {
        emu_fatal("memset of %zu bytes where %zu are left of an allocation",
                  n, left);
    }

    return emu_queue(stream, "memset", [=]() { memset(p, value, n); });
}
