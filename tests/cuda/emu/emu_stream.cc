/*
 * Streams, events, graphs, launches.
 *
 * A stream is a queue of operations with numbers.  They run, in order, in the
 * thread that waits for one of them: cudaStreamSynchronize(), an event, a
 * copy to pageable memory, or another stream's operation behind an event.  An
 * event is a stream and a number in it.
 *
 * A capture collects the operations of its stream, and of those that join it
 * by events, in the order of the calls; a graph is that list.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "emu_runtime.h"
#include "emu_thread.h"


#define EMU_SMEM_PLAIN   (48 << 10)
#define EMU_SMEM_OPTIN   232448
#define EMU_SMS          4
#define EMU_MEMORY       ((size_t) 8 << 30)


struct node_t {
    std::string  what;
    emu_op_t     op;
};

struct CUgraph_st {
    std::vector<node_t>  nodes;
    cudaStream_t         origin;
    cudaError_t          error;
    int                  captures;
};

struct CUgraphExec_st {
    std::shared_ptr<std::vector<node_t>>  nodes;
};

/* The queue outlives its handle, events point to it. */

struct queue_t {
    std::deque<emu_op_t>  ops;
    uint64_t              queued;    /* number of the last one */
    uint64_t              done;
    int                   busy;      /* a thread runs its operations */
    int                   blocks;    /* waits for the null stream and back */
};

struct CUstream_st {
    std::shared_ptr<queue_t>     q;
    std::shared_ptr<CUgraph_st>  capture;
    uint64_t                     joined;     /* operations not joined back */
};

struct CUevent_st {
    std::shared_ptr<queue_t>     q;          /* NULL: never recorded */
    uint64_t                     at;
    std::shared_ptr<CUgraph_st>  capture;
    cudaStream_t                 from;
    std::shared_ptr<double>      time;
};


static cudaStream_t stream_of(cudaStream_t stream);
static void queue_add(std::shared_ptr<queue_t> q, emu_op_t op);
static void queue_drain(std::shared_ptr<queue_t> q, uint64_t until);
static double now(void);
static void launch_check(const char *name, const void *kernel, dim3 grid,
    dim3 block, size_t smem);


static std::mutex                                 stream_lock;
static std::condition_variable                    stream_moved;
static std::vector<cudaStream_t>                  stream_all;
static CUstream_st                                stream_null;
static int                                        stream_captures;
static unsigned long long                         stream_launches;
static std::unordered_map<const void *, size_t>   stream_smem;

static int                                        dev_count = 1;
static int                                        dev_sms = EMU_SMS;
static size_t                                     dev_memory = EMU_MEMORY;
static thread_local int                           dev_current;
static thread_local cudaError_t                   dev_error;


/* --- launches ---------------------------------------------------------- */

int
emu_smem(const void *kernel, const char *name, size_t bytes)
{
    if (bytes > EMU_SMEM_OPTIN) {
        emu_fatal("kernel %s wants %zu bytes of shared memory, a block has "
                  "%d", name, bytes, EMU_SMEM_OPTIN);
    }

    std::lock_guard<std::mutex>  lock(stream_lock);

    stream_smem[kernel] = bytes;

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
    emu_op_t  op;

    launch_check(name, kernel, grid, block, smem);

    op = [=]() {
        emu_launch_t            l = {};
        const char             *seed;
        std::function<void()>   f = body;

        static const char  *all = getenv("CU_EMU_TRACE");

        {
            std::lock_guard<std::mutex>  lock(stream_lock);
            l.random = ++stream_launches;
        }

        seed = getenv("CU_EMU_SEED");
        l.name = name;
        l.grid = grid;
        l.block = block;
        l.smem = smem;
        l.how = how;
        l.random = (l.random + (seed ? strtoull(seed, NULL, 10) : 0) * 7919)
                   * 0x9e3779b97f4a7c15ull | 1;

        double  from = now();

        emu_run(&l, emu_body_call, &f);
        emu_check_memory(name);

        if (all != NULL) {
            fprintf(stderr, "emu: %s <%u,%u,%u> x %u: %.1f ms\n", name,
                    grid.x, grid.y, grid.z, block.x * block.y * block.z,
                    (now() - from) * 1e3);
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

    std::lock_guard<std::mutex>  lock(stream_lock);

    auto  it = stream_smem.find(kernel);

    limit = (it != stream_smem.end() && it->second > EMU_SMEM_PLAIN)
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


unsigned long long
emu_launches(void)
{
    std::lock_guard<std::mutex>  lock(stream_lock);

    return stream_launches;
}


/* --- queues ------------------------------------------------------------ */

static cudaStream_t
stream_of(cudaStream_t stream)
{
    if (stream == NULL || stream == (cudaStream_t) 1) {
        if (stream_null.q == NULL) {
            stream_null.q = std::make_shared<queue_t>();
            stream_null.q->blocks = 1;
        }

        return &stream_null;
    }

    return stream;
}


cudaError_t
emu_queue(cudaStream_t stream, const char *what, emu_op_t op)
{
    int                                    null;
    std::vector<std::shared_ptr<queue_t>>  others;

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        null = stream == NULL;
        stream = stream_of(stream);

        if (stream->capture != NULL) {
            node_t  node = { what, op };

            stream->capture->nodes.push_back(node);
            stream->joined++;
            return cudaSuccess;
        }

        /* the null stream comes after all that block, and before */

        if (null) {
            for (cudaStream_t s : stream_all) {
                if (s->q->blocks && s->q->done != s->q->queued) {
                    others.push_back(s->q);
                }
            }

        } else if (stream->q->blocks && stream_null.q != NULL
                   && stream_null.q->done != stream_null.q->queued)
        {
            others.push_back(stream_null.q);
        }

        if (others.empty()) {
            queue_add(stream->q, op);
            return cudaSuccess;
        }

        std::vector<uint64_t>  at;

        for (auto &q : others) {
            at.push_back(q->queued);
        }

        queue_add(stream->q, [=]() {
            size_t  i;

            for (i = 0; i < others.size(); i++) {
                queue_drain(others[i], at[i]);
            }

            op();
        });
    }

    return cudaSuccess;
}


static void
queue_add(std::shared_ptr<queue_t> q, emu_op_t op)
{
    q->ops.push_back(op);
    q->queued++;
}


/* Runs what is queued up to a number, or waits for the one that does. */

static void
queue_drain(std::shared_ptr<queue_t> q, uint64_t until)
{
    emu_op_t                      op;
    std::unique_lock<std::mutex>  lock(stream_lock);

    while (q->done < until) {

        if (q->busy) {
            stream_moved.wait(lock);
            continue;
        }

        op = std::move(q->ops.front());
        q->ops.pop_front();
        q->busy = 1;

        lock.unlock();
        op();
        op = nullptr;
        lock.lock();

        q->busy = 0;
        q->done++;
        stream_moved.notify_all();
    }
}


void
emu_drain(cudaStream_t stream)
{
    uint64_t                  until;
    std::shared_ptr<queue_t>  q;

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        q = stream_of(stream)->q;
        until = q->queued;
    }

    queue_drain(q, until);
}


void
emu_drain_all(int blocking_only)
{
    std::vector<std::shared_ptr<queue_t>>  all;

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        all.push_back(stream_of(NULL)->q);

        for (cudaStream_t s : stream_all) {
            if (s->q->blocks || !blocking_only) {
                all.push_back(s->q);
            }
        }
    }

    for (auto &q : all) {
        queue_drain(q, q->queued);
    }
}


void
emu_kick(void)
{
    std::lock_guard<std::mutex>  lock(stream_lock);

    for (cudaStream_t s : stream_all) {
        if (!s->q->busy && s->q->done != s->q->queued) {
            std::shared_ptr<queue_t>  q = s->q;
            uint64_t                  at = s->q->queued;

            std::thread([q, at]() { queue_drain(q, at); }).detach();
        }
    }
}


static double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}


/* --- streams ----------------------------------------------------------- */

cudaError_t
cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}


cudaError_t
cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    return cudaStreamCreateWithPriority(stream, flags, 0);
}


cudaError_t
cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int)
{
    std::lock_guard<std::mutex>  lock(stream_lock);

    *stream = new CUstream_st();
    (*stream)->q = std::make_shared<queue_t>();
    (*stream)->q->blocks = (flags & cudaStreamNonBlocking) == 0;
    stream_all.push_back(*stream);

    return cudaSuccess;
}


cudaError_t
cudaStreamDestroy(cudaStream_t stream)
{
    if (stream == NULL) {
        return emu_error(cudaErrorInvalidResourceHandle);
    }

    emu_drain(stream);

    std::lock_guard<std::mutex>  lock(stream_lock);

    stream_all.erase(std::remove(stream_all.begin(), stream_all.end(),
                                 stream), stream_all.end());
    delete stream;

    return cudaSuccess;
}


/* Waiting for what a capture only writes down ends the capture. */

cudaError_t
emu_may_wait(cudaStream_t stream)
{
    std::lock_guard<std::mutex>  lock(stream_lock);

    stream = stream_of(stream);

    if (stream->capture == NULL) {
        return cudaSuccess;
    }

    stream->capture->error = cudaErrorStreamCaptureInvalidated;

    return cudaErrorStreamCaptureUnsupported;
}


int
emu_captures(cudaStream_t stream)
{
    std::lock_guard<std::mutex>  lock(stream_lock);

    return stream_of(stream)->capture != NULL;
}


int
emu_any_capture(void)
{
    std::lock_guard<std::mutex>  lock(stream_lock);

    return stream_captures != 0;
}


cudaError_t
cudaStreamSynchronize(cudaStream_t stream)
{
    cudaError_t  e;

    e = emu_may_wait(stream);
    if (e != cudaSuccess) {
        return emu_error(e);
    }

    if (stream == NULL) {
        emu_drain_all(1);
    }

    emu_drain(stream);

    return cudaSuccess;
}


/* A look at a stream lets it do one more operation. */

cudaError_t
cudaStreamQuery(cudaStream_t stream)
{
    uint64_t                  at;
    cudaError_t               e;
    std::shared_ptr<queue_t>  q;

    e = emu_may_wait(stream);
    if (e != cudaSuccess) {
        return emu_error(e);
    }

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        q = stream_of(stream)->q;

        if (q->done == q->queued) {
            return cudaSuccess;
        }

        if (q->busy) {
            return cudaErrorNotReady;
        }

        at = q->done + 1;
    }

    queue_drain(q, at);

    return cudaErrorNotReady;
}


cudaError_t
cudaDeviceSynchronize(void)
{
    if (emu_any_capture()) {
        return emu_error(cudaErrorStreamCaptureUnsupported);
    }

    emu_drain_all(0);

    return cudaSuccess;
}


cudaError_t
cudaDeviceReset(void)
{
    emu_drain_all(0);

    return cudaSuccess;
}


cudaError_t
cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t f, void *data)
{
    return emu_queue(stream, "host function", [=]() { f(data); });
}


/* --- events ------------------------------------------------------------ */

cudaError_t
cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}


cudaError_t
cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    *event = new CUevent_st();

    if ((flags & cudaEventDisableTiming) == 0) {
        (*event)->time = std::make_shared<double>(0);
    }

    return cudaSuccess;
}


cudaError_t
cudaEventDestroy(cudaEvent_t event)
{
    if (event == NULL) {
        return emu_error(cudaErrorInvalidResourceHandle);
    }

    delete event;

    return cudaSuccess;
}


cudaError_t
cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    std::shared_ptr<double>  time;

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        stream = stream_of(stream);

        if (stream->capture != NULL) {
            event->capture = stream->capture;
            event->from = stream;
            event->at = stream->joined;
            event->q = NULL;
            return cudaSuccess;
        }

        if (event->time != NULL) {
            event->time = std::make_shared<double>(0);
        }

        time = event->time;
    }

    emu_queue(stream == &stream_null ? NULL : stream, "event", [time]() {
        if (time != NULL) {
            *time = now();
        }
    });

    std::lock_guard<std::mutex>  lock(stream_lock);

    event->capture = NULL;
    event->q = stream->q;
    event->at = stream->q->queued;

    return cudaSuccess;
}


cudaError_t
cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int)
{
    uint64_t                  at;
    std::shared_ptr<queue_t>  q;

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        stream = stream_of(stream);

        if (event->capture != NULL) {

            /* the stream joins the capture, or takes one back */

            if (stream->capture == NULL) {
                stream->capture = event->capture;
                stream->joined = 0;
                stream_captures++;

            } else if (event->from->joined == event->at) {
                event->from->joined = 0;
                event->at = 0;
            }

            return cudaSuccess;
        }

        if (stream->capture != NULL) {
            if (event->q == NULL) {
                return cudaSuccess;
            }

            stream->capture->error = cudaErrorStreamCaptureInvalidated;
            return emu_error(cudaErrorStreamCaptureUnsupported);
        }

        q = event->q;
        at = event->at;
    }

    if (q == NULL) {
        return cudaSuccess;
    }

    return emu_queue(stream == &stream_null ? NULL : stream, "wait",
                     [q, at]() { queue_drain(q, at); });
}


cudaError_t
cudaEventQuery(cudaEvent_t event)
{
    uint64_t                  at;
    std::shared_ptr<queue_t>  q;

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        if (event->capture != NULL) {
            return emu_error(cudaErrorStreamCaptureUnsupported);
        }

        q = event->q;

        if (q == NULL || q->done >= event->at) {
            return cudaSuccess;
        }

        if (q->busy) {
            return cudaErrorNotReady;
        }

        at = q->done + 1;
    }

    queue_drain(q, at);

    return cudaErrorNotReady;
}


cudaError_t
cudaEventSynchronize(cudaEvent_t event)
{
    uint64_t                  at;
    std::shared_ptr<queue_t>  q;

    {
        std::lock_guard<std::mutex>  lock(stream_lock);

        if (event->capture != NULL) {
            return emu_error(cudaErrorStreamCaptureUnsupported);
        }

        q = event->q;
        at = event->at;
    }

    if (q != NULL) {
        queue_drain(q, at);
    }

    return cudaSuccess;
}


cudaError_t
cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    if (from->time == NULL || to->time == NULL || from->q == NULL
        || to->q == NULL)
    {
        return emu_error(cudaErrorInvalidResourceHandle);
    }

    if (from->q->done < from->at || to->q->done < to->at) {
        return emu_error(cudaErrorNotReady);
    }

    *ms = (float) ((*to->time - *from->time) * 1e3);

    return cudaSuccess;
}


/* --- graphs ------------------------------------------------------------ */

cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    std::lock_guard<std::mutex>  lock(stream_lock);

    if (stream == NULL) {
        return emu_error(cudaErrorStreamCaptureUnsupported);
    }

    if (stream->capture != NULL) {
        return emu_error(cudaErrorInvalidValue);
    }

    stream->capture = std::make_shared<CUgraph_st>();
    stream->capture->origin = stream;
    stream_captures++;

    return cudaSuccess;
}


cudaError_t
cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    cudaError_t                  e;
    std::shared_ptr<CUgraph_st>  g;

    std::lock_guard<std::mutex>  lock(stream_lock);

    *graph = NULL;
    g = stream->capture;

    if (g == NULL || g->origin != stream) {
        return emu_error(cudaErrorInvalidValue);
    }

    e = g->error;

    for (cudaStream_t s : stream_all) {
        if (s->capture == g) {
            if (s != stream && s->joined != 0) {
                e = cudaErrorStreamCaptureUnjoined;
            }

            s->capture = NULL;
            s->joined = 0;
            stream_captures--;
        }
    }

    if (e != cudaSuccess) {
        return emu_error(e);
    }

    *graph = new CUgraph_st(*g);

    return cudaSuccess;
}


cudaError_t
cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    *status = emu_captures(stream) ? cudaStreamCaptureStatusActive
                                   : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}


cudaError_t
cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
    unsigned long long)
{
    *exec = new CUgraphExec_st();
    (*exec)->nodes = std::make_shared<std::vector<node_t>>(graph->nodes);

    return cudaSuccess;
}


cudaError_t
cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
    cudaGraphExecUpdateResultInfo *info)
{
    size_t  i;

    memset(info, 0, sizeof(cudaGraphExecUpdateResultInfo));

    if (exec->nodes->size() != graph->nodes.size()) {
        info->result = 1;
        return emu_error(cudaErrorGraphExecUpdateFailure);
    }

    for (i = 0; i < graph->nodes.size(); i++) {
        if ((*exec->nodes)[i].what != graph->nodes[i].what) {
            info->result = 1;
            return emu_error(cudaErrorGraphExecUpdateFailure);
        }
    }

    exec->nodes = std::make_shared<std::vector<node_t>>(graph->nodes);

    return cudaSuccess;
}


cudaError_t
cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}


cudaError_t
cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    auto  nodes = exec->nodes;

    return emu_queue(stream, "graph", [nodes]() {
        for (node_t &n : *nodes) {
            n.op();
        }
    });
}


cudaError_t
cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n)
{
    if (nodes != NULL) {
        return emu_error(cudaErrorNotSupported);
    }

    *n = graph->nodes.size();

    return cudaSuccess;
}


cudaError_t
cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;

    return cudaSuccess;
}


cudaError_t
cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;

    return cudaSuccess;
}


/* --- devices ----------------------------------------------------------- */

void
emu_set_device(int count, int multiprocessors, size_t memory)
{
    dev_count = count;
    dev_sms = multiprocessors;
    dev_memory = memory;
}


int
emu_device(void)
{
    return dev_current;
}


int
emu_device_count(void)
{
    return dev_count;
}


int
emu_device_sms(void)
{
    return dev_sms;
}


size_t
emu_device_memory(void)
{
    return dev_memory;
}


cudaError_t
emu_error(cudaError_t e)
{
    dev_error = e;

    return e;
}


cudaError_t
cudaGetLastError(void)
{
    cudaError_t  e;

    e = dev_error;
    dev_error = cudaSuccess;

    return e;
}


cudaError_t
cudaPeekAtLastError(void)
{
    return dev_error;
}


cudaError_t
cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;

    return cudaSuccess;
}


cudaError_t
cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;

    return cudaSuccess;
}


cudaError_t
cudaGetDeviceCount(int *count)
{
    *count = dev_count;

    return (dev_count == 0) ? emu_error(cudaErrorNoDevice) : cudaSuccess;
}


cudaError_t
cudaSetDevice(int device)
{
    if (device < 0 || device >= dev_count) {
        return emu_error(cudaErrorInvalidDevice);
    }

    dev_current = device;

    return cudaSuccess;
}


cudaError_t
cudaGetDevice(int *device)
{
    *device = dev_current;

    return cudaSuccess;
}


cudaError_t
cudaSetDeviceFlags(unsigned int)
{
    return cudaSuccess;
}


cudaError_t
cudaGetDeviceProperties(cudaDeviceProp *prop, int device)
{
    if (device < 0 || device >= dev_count) {
        return emu_error(cudaErrorInvalidDevice);
    }

    memset(prop, 0, sizeof(cudaDeviceProp));
    strcpy(prop->name, "emulator");
    prop->totalGlobalMem = dev_memory;
    prop->sharedMemPerBlock = EMU_SMEM_PLAIN;
    prop->sharedMemPerBlockOptin = EMU_SMEM_OPTIN;
    prop->sharedMemPerMultiprocessor = 228 << 10;
    prop->regsPerBlock = 65536;
    prop->regsPerMultiprocessor = 65536;
    prop->warpSize = 32;
    prop->maxThreadsPerBlock = 1024;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->major = 9;
    prop->multiProcessorCount = dev_sms;
    prop->l2CacheSize = 50 << 20;
    prop->memoryBusWidth = 5120;
    prop->asyncEngineCount = 3;
    prop->cooperativeLaunch = 1;
    prop->pciBusID = device;

    return cudaSuccess;
}


cudaError_t
cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    if (device < 0 || device >= dev_count) {
        return emu_error(cudaErrorInvalidDevice);
    }

    switch (attr) {

    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;

    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = EMU_SMEM_PLAIN;
        break;

    case cudaDevAttrWarpSize:
        *value = 32;
        break;

    case cudaDevAttrClockRate:
        *value = 1755000;
        break;

    case cudaDevAttrMultiProcessorCount:
        *value = dev_sms;
        break;

    case cudaDevAttrMemoryClockRate:
        *value = 2619000;
        break;

    case cudaDevAttrGlobalMemoryBusWidth:
        *value = 5120;
        break;

    case cudaDevAttrL2CacheSize:
        *value = 50 << 20;
        break;

    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = 2048;
        break;

    case cudaDevAttrComputeCapabilityMajor:
        *value = 9;
        break;

    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;

    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = 228 << 10;
        break;

    case cudaDevAttrCooperativeLaunch:
        *value = 1;
        break;

    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = EMU_SMEM_OPTIN;
        break;

    default:
        return emu_error(cudaErrorInvalidValue);
    }

    return cudaSuccess;
}


cudaError_t
cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = device != peer && device < dev_count && peer < dev_count;

    return cudaSuccess;
}


cudaError_t
cudaDeviceEnablePeerAccess(int peer, unsigned int)
{
    return (peer < 0 || peer >= dev_count || peer == dev_current)
           ? emu_error(cudaErrorInvalidDevice) : cudaSuccess;
}


cudaError_t
cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;

    return cudaSuccess;
}


const char *
cudaGetErrorName(cudaError_t e)
{
    return cudaGetErrorString(e);
}


const char *
cudaGetErrorString(cudaError_t e)
{
    switch (e) {

    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
    case cudaErrorNotReady:
        return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined:
        return "capture was not joined to its origin stream";
    case cudaErrorGraphExecUpdateFailure:
        return "the graph update was not performed";
    default:
        return "unknown error";
    }
}
