/*
 * Graphs.
 *
 * A capture collects the operations of its stream, and of those that join it
 * by events, in the order of the calls; a graph is that list.
 */

#include <string.h>

#include "emu_stream.h"


cudaError_t
cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
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

    e = g->error;

    for (cudaStream_t s : emu_streams) {
        if (s->capture == g) {
            if (s != stream && s->joined != 0) {
                e = cudaErrorStreamCaptureUnjoined;
            }

            s->capture = NULL;
            s->joined = 0;
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
