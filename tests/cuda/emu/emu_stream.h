/*
 * A stream's queue and the graph that it captures: of emu_stream.cc and
 * emu_graph.cc alone.  A node comes after those that `after` has, by their
 * index; what a capturing stream takes next, after those in its `tail`.
 */

#ifndef EMU_STREAM_H
#define EMU_STREAM_H

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "emu_runtime.h"


typedef std::vector<size_t>  nodes_t;

struct node_t {
    std::string  what;
    emu_op_t     op;
    nodes_t      after;
};

/* A child graph, of which what follows waits for the last nodes. */

struct CUgraphNode_st {
    CUgraph_st  *graph;
    nodes_t      tail;
};

struct CUgraph_st {
    std::vector<node_t>                           nodes;
    std::vector<std::shared_ptr<CUgraphNode_st>>  children;
    cudaStream_t                                  origin;
    cudaError_t                                   error;
    cudaStreamCaptureMode                         mode;
    std::thread::id                               owner;
};

struct CUgraphExec_st {
    std::shared_ptr<std::vector<node_t>>  nodes;
};

/* The queue outlives its handle, events point to it. */

struct queue_t {
    std::deque<emu_op_t>  ops;
    uint64_t              queued;    /* number of the last one */
    uint64_t              done;
    int                   busy;      /* a thread runs its operations, */
    int                   apart;     /* or has been told to */
    int                   blocks;    /* waits for the null stream and back */
    int                   device;
};

struct CUstream_st {
    std::shared_ptr<queue_t>     q;
    std::shared_ptr<CUgraph_st>  capture;
    nodes_t                      tail;
    uint64_t                     joined;     /* operations not joined back */
};

struct CUevent_st {
    std::shared_ptr<queue_t>     q;          /* NULL: never recorded */
    uint64_t                     at;
    int                          device;
    std::shared_ptr<CUgraph_st>  capture;
    nodes_t                      tail;
    cudaStream_t                 from;
    std::shared_ptr<double>      time;
};


/* All of these are under the lock. */

extern std::mutex                 &emu_stream_lock;
extern std::vector<cudaStream_t>  &emu_streams;      /* but the null stream */
extern int                         emu_stream_captures;


#endif /* EMU_STREAM_H */
