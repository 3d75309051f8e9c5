/*
 * Streams and events.
 *
 * A stream is a queue of operations with numbers.  They run, in order, in the
 * thread that waits for one of them: cudaStreamSynchronize(), an event, a
 * copy to pageable memory, or another stream's operation behind an event.  An
 * event is a stream and a number in it.
 */

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <thread>

#include "emu_stream.h"


static cudaStream_t stream_of(cudaStream_t stream);
static void queue_add(std::shared_ptr<queue_t> q, emu_op_t op);
static void queue_drain(std::shared_ptr<queue_t> q, uint64_t until);
static void queue_drain_apart(std::shared_ptr<queue_t> q, uint64_t until);
static void queue_worker(void);


/* Threads that run operations may outlive main(): none of it is destroyed. */

std::mutex                 &emu_stream_lock = *new std::mutex;
std::vector<cudaStream_t>  &emu_streams = *new std::vector<cudaStream_t>;
int                         emu_stream_captures;

static std::condition_variable  &stream_moved = *new std::condition_variable;
static CUstream_st              &stream_null = *new CUstream_st();
static std::atomic<int>          stream_apart;

/* Threads that run operations for nobody who waits; they keep their fibers. */

struct workers_t {
    std::condition_variable                                    work;
    std::deque<std::pair<std::shared_ptr<queue_t>, uint64_t>>  jobs;
    size_t                                                     idle;
};

static workers_t  &stream_workers = *new workers_t();


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
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

        null = stream == NULL;
        stream = stream_of(stream);

        if (stream->capture != NULL) {
            node_t  node = { what, op, stream->tail };

            stream->tail = { stream->capture->nodes.size() };
            stream->capture->nodes.push_back(node);
            stream->joined++;
            return cudaSuccess;
        }

        /* the null stream comes after all that block, and before */

        if (null) {
            for (cudaStream_t s : emu_streams) {
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
    std::unique_lock<std::mutex>  lock(emu_stream_lock);

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


/*
 * Under the lock.  A job may wait for another one, so none waits for a thread;
 * one at a time for each queue, as all that wait are woken by each operation.
 */

static void
queue_drain_apart(std::shared_ptr<queue_t> q, uint64_t until)
{
    q->apart = 1;
    stream_workers.jobs.push_back({ q, until });

    if (stream_workers.idle < stream_workers.jobs.size()) {
        std::thread(queue_worker).detach();

    } else {
        stream_workers.work.notify_one();
    }
}


static void
queue_worker(void)
{
    std::unique_lock<std::mutex>  lock(emu_stream_lock);

    for ( ;; ) {
        stream_workers.idle++;

        while (stream_workers.jobs.empty()) {
            stream_workers.work.wait(lock);
        }

        stream_workers.idle--;

        auto  job = stream_workers.jobs.front();

        stream_workers.jobs.pop_front();
        lock.unlock();
        queue_drain(job.first, job.second);
        lock.lock();
        job.first->apart = 0;
    }
}


void
emu_drain(cudaStream_t stream)
{
    uint64_t                  until;
    std::shared_ptr<queue_t>  q;

    {
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

        q = stream_of(stream)->q;
        until = q->queued;
    }

    queue_drain(q, until);
}


void
emu_drain_all(int blocking_only)
{
    std::vector<std::pair<std::shared_ptr<queue_t>, uint64_t>>  all;

    {
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

        all.push_back({ stream_of(NULL)->q, stream_of(NULL)->q->queued });

        for (cudaStream_t s : emu_streams) {
            if (s->q->device == emu_device()
                && (s->q->blocks || !blocking_only))
            {
                all.push_back({ s->q, s->q->queued });
            }
        }
    }

    for (auto &q : all) {
        queue_drain(q.first, q.second);
    }
}


void
emu_kick(void)
{
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    for (cudaStream_t s : emu_streams) {
        if (!s->q->busy && !s->q->apart && s->q->done != s->q->queued) {
            queue_drain_apart(s->q, s->q->queued);
        }
    }
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
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    *stream = new CUstream_st();
    (*stream)->q = std::make_shared<queue_t>();
    (*stream)->q->blocks = (flags & cudaStreamNonBlocking) == 0;
    (*stream)->q->device = emu_device();
    emu_streams.push_back(*stream);

    return cudaSuccess;
}


cudaError_t
cudaStreamDestroy(cudaStream_t stream)
{
    if (stream == NULL) {
        return emu_error(cudaErrorInvalidResourceHandle);
    }

    emu_drain(stream);

    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    emu_streams.erase(std::remove(emu_streams.begin(), emu_streams.end(),
                                 stream), emu_streams.end());
    delete stream;

    return cudaSuccess;
}


/* Waiting for what a capture only writes down ends the capture. */

cudaError_t
emu_may_wait(cudaStream_t stream)
{
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

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
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    return stream_of(stream)->capture != NULL;
}


int
emu_any_capture(void)
{
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    return emu_stream_captures != 0;
}


int
emu_unsafe(void)
{
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    for (cudaStream_t s : emu_streams) {
        if (s->capture != NULL
            && (s->capture->mode == cudaStreamCaptureModeGlobal
                || (s->capture->mode == cudaStreamCaptureModeThreadLocal
                    && s->capture->owner == std::this_thread::get_id())))
        {
            return 1;
        }
    }

    return 0;
}


int
emu_stream_device(cudaStream_t stream)
{
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    stream = stream_of(stream);

    return (stream == &stream_null) ? emu_device() : stream->q->device;
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


/*
 * A look at a stream lets it do one more operation; or, where operations may
 * wait for those of other threads, has them done in a thread of their own.
 */

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
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

        q = stream_of(stream)->q;

        if (q->done == q->queued) {
            return cudaSuccess;
        }

        if (q->busy || q->apart) {
            return cudaErrorNotReady;
        }

        at = q->done + 1;

        if (stream_apart) {
            queue_drain_apart(q, q->queued);
            return cudaErrorNotReady;
        }
    }

    queue_drain(q, at);

    return cudaErrorNotReady;
}


void
emu_apart(void)
{
    stream_apart = 1;
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
    (*event)->device = emu_device();

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

    if (emu_stream_device(stream) != event->device) {
        return emu_error(cudaErrorInvalidResourceHandle);
    }

    {
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

        stream = stream_of(stream);

        if (stream->capture != NULL) {
            event->capture = stream->capture;
            event->tail = stream->tail;
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
            *time = emu_now();
        }
    });

    std::lock_guard<std::mutex>  lock(emu_stream_lock);

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
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

        stream = stream_of(stream);

        if (event->capture != NULL) {

            /* the stream joins the capture, or takes one back */

            if (stream->capture == NULL) {
                stream->capture = event->capture;
                stream->tail = event->tail;
                stream->joined = 0;
                emu_stream_captures++;
                return cudaSuccess;
            }

            if (stream->capture != event->capture) {
                stream->capture->error = cudaErrorStreamCaptureInvalidated;
                return emu_error(cudaErrorStreamCaptureUnsupported);
            }

            stream->tail.insert(stream->tail.end(), event->tail.begin(),
                                event->tail.end());

            if (event->from->joined == event->at) {
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
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

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
        std::lock_guard<std::mutex>  lock(emu_stream_lock);

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
