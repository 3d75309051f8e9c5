/*
 * NCCL, for ranks of other nodes: one communicator of all ranks for each rank.
 * Its library is loaded when it is first wanted.  Nothing here waits without a
 * limit: a call that NCCL has not finished, and all waits for a stream that
 * NCCL works on, look at the communicator's state, at whether the exchange has
 * failed elsewhere, and at the time.  Whatever is wrong aborts the
 * communicator, fails the backend, and is told by opt->fail().
 */

#ifndef BE_CUDA_NCCL_H
#define BE_CUDA_NCCL_H

#include "backend/cuda/be_cuda.h"


typedef struct cuda_nccl_s  cuda_nccl_t;

/*
 * Begins to make the communicator, which takes all ranks; the first group
 * waits for it.  `opt` is copied; what it points to lives on.  NULL with the
 * reason in `err`.
 */
cuda_nccl_t *be_cuda_nccl_open(be_cuda_t *cuda, const be_peer_options_t *opt,
    char *err);

/* Aborts it if the backend has failed, else waits for the end. */
void be_cuda_nccl_close(cuda_nccl_t *n);

/*
 * What is sent and received between begin and end goes at once, on `stream`,
 * which the backend's own one waits for in the end; both sides name the same
 * sizes in the same order.  end is 0, or -1: failed, and nothing after begin
 * matters.
 */
void be_cuda_nccl_begin(cuda_nccl_t *n, const char *what,
    cudaStream_t stream);
void be_cuda_nccl_send(cuda_nccl_t *n, uint32_t rank, const void *data,
    size_t size);
void be_cuda_nccl_recv(cuda_nccl_t *n, uint32_t rank, void *data,
    size_t size);
int be_cuda_nccl_end(cuda_nccl_t *n);

/* Waits until both streams are done.  0, or -1: failed. */
int be_cuda_nccl_wait(cuda_nccl_t *n);

#endif /* BE_CUDA_NCCL_H */
