/*
 * Graphs.
 *
 * A capture collects the operations of its stream, and of those that join it
 * by events, each with those that it comes after; a graph is that list, and a
 * child graph is put into it.  A launch takes any of the orders that this
 * leaves, drawn anew each time, so that what was not waited for shows.
 */

#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "emu_stream.h"


static void graph_run(const std::vector<node_t> &nodes, uint64_t seed);


static std::atomic<uint64_t>  graph_launches;
static std::atomic<int>       graph_fail;


cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    if (stream == NULL) {
        return emu_error(cudaErrorStreamCaptureUnsupported);
    }

    if (stream->capture != NULL) {
        return emu_error(cudaErrorInvalidValue);
    }

    stream->capture = std::make_shared<CUgraph_st>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->owner = std::this_thread::get_id();
    stream->tail.clear();
    emu_stream_captures++;

    return cudaSuccess;
}


cudaError_t
cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    cudaError_t                  e;
    std::shared_ptr<CUgraph_st>  g;

    std::lock_guard<std::mutex>  lock(emu_stream_lock);

    *graph = NULL;
    g = stream->capture;

    if (g == NULL || g->origin != stream) {
        return emu_error(cudaErrorInvalidValue);
    }

    if (g->mode != cudaStreamCaptureModeRelaxed
        && g->owner != std::this_thread::get_id())
    {
        return emu_error(cudaErrorStreamCaptureWrongThread);
    }

    e = g->error;

    for (cudaStream_t s : emu_streams) {
        if (s->capture == g) {
            if (s != stream && s->joined != 0) {
                e = cudaErrorStreamCaptureUnjoined;
            }

            s->capture = NULL;
            s->joined = 0;
            s->tail.clear();
            emu_stream_captures--;
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
cudaGraphCreate(cudaGraph_t *graph, unsigned int flags)
{
    if (graph == NULL || flags != 0) {
        return emu_error(cudaErrorInvalidValue);
    }

    *graph = new CUgraph_st();

    return cudaSuccess;
}


/* The child is copied, and its first nodes come after all that is named. */

cudaError_t
cudaGraphAddChildGraphNode(cudaGraphNode_t *node, cudaGraph_t graph,
    const cudaGraphNode_t *before, size_t n, cudaGraph_t child)
{
    size_t             i, at;
    nodes_t            tail;
    std::vector<char>  followed(child->nodes.size());

    if (graph == child || (n > 0 && before == NULL)) {
        return emu_error(cudaErrorInvalidValue);
    }

    for (i = 0; i < n; i++) {
        if (before[i] == NULL || before[i]->graph != graph) {
            return emu_error(cudaErrorInvalidValue);
        }

        tail.insert(tail.end(), before[i]->tail.begin(),
                    before[i]->tail.end());
    }

    at = graph->nodes.size();

    for (node_t c : child->nodes) {
        for (size_t &a : c.after) {
            followed[a] = 1;
            a += at;
        }

        if (c.after.empty()) {
            c.after = tail;
        }

        graph->nodes.push_back(c);
    }

    auto  made = std::make_shared<CUgraphNode_st>();

    made->graph = graph;

    for (i = 0; i < followed.size(); i++) {
        if (!followed[i]) {
            made->tail.push_back(at + i);
        }
    }

    if (followed.empty()) {
        made->tail = tail;
    }

    graph->children.push_back(made);
    *node = made.get();

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
    uint64_t     launch;
    const char  *seed;

    auto  nodes = exec->nodes;

    if (graph_fail > 0 && --graph_fail == 0) {
        return emu_error(cudaErrorLaunchOutOfResources);
    }

    seed = getenv("CU_EMU_SEED");
    launch = ++graph_launches + (seed ? strtoull(seed, NULL, 10) : 0) * 7919;

    return emu_queue(stream, "graph", [nodes, launch]() {
        graph_run(*nodes, launch);
    });
}


static void
graph_run(const std::vector<node_t> &nodes, uint64_t seed)
{
    size_t                i, k;
    nodes_t               ready;
    std::vector<size_t>   left(nodes.size());
    std::vector<nodes_t>  next(nodes.size());

    for (i = 0; i < nodes.size(); i++) {
        left[i] = nodes[i].after.size();

        for (size_t a : nodes[i].after) {
            next[a].push_back(i);
        }

        if (left[i] == 0) {
            ready.push_back(i);
        }
    }

    seed = seed * 0x9e3779b97f4a7c15ull | 1;

    while (!ready.empty()) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;

        k = seed % ready.size();
        i = ready[k];
        ready[k] = ready.back();
        ready.pop_back();

        nodes[i].op();

        for (size_t n : next[i]) {
            if (--left[n] == 0) {
                ready.push_back(n);
            }
        }
    }
}


void
emu_fail_graph(int n)
{
    graph_fail = n;
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
