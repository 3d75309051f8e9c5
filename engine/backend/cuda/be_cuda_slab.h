/* Memory of matrices, side by side in large pieces. */

#ifndef BE_CUDA_SLAB_H
#define BE_CUDA_SLAB_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include <cuda_runtime_api.h>


#define BE_CUDA_SLAB_LEAST  ((size_t) 1 << 20)   /* smaller: cudaMalloc() */


/*
 * `size` bytes of the device, which is the calling thread's, at a multiple of
 * 256; a cudaError_t.  Any thread.
 */
int be_cuda_slab_get(int device, size_t size, void **p);

/* Waits until the device is idle, as cudaFree() does.  NULL is fine. */
void be_cuda_slab_put(int device, void *p);

#endif /* BE_CUDA_SLAB_H */
