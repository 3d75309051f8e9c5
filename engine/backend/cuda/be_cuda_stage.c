/*
 * Copies to the device by way of pinned buffers that take turns, so that making
 * rows (reading the file, for the most part) and copying overlap.
 */

#include <stdio.h>
#include <string.h>

#include "backend/cuda/be_cuda_weight_int.h"


int
be_cuda_stages(be_cuda_t *cuda, char *err)
{
    int       rc;
    uint32_t  i;

    rc = cudaSetDevice(cuda->device);

    for (i = 0; i < CUDA_STAGES && rc == 0; i++) {
        if (cuda->stage[i] == NULL) {
            rc = cudaMallocHost((void **) &cuda->stage[i], CUDA_STAGE);
        }

        if (rc == 0 && cuda->staged[i] == NULL) {
            rc = cudaEventCreateWithFlags(&cuda->staged[i],
                                          cudaEventDisableTiming);
        }
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "CUDA device %d: no pinned memory: %s",
                 cuda->device, cudaGetErrorString((cudaError_t) rc));
        return -1;
    }

    return 0;
}


void
be_cuda_stage(cuda_stage_t *s, be_cuda_t *cuda, void *to)
{
    s->cuda = cuda;
    s->to = to;
    s->used = 0;
    s->rc = cudaEventSynchronize(cuda->staged[cuda->next_stage]);
}


void *
be_cuda_stage_room(cuda_stage_t *s, size_t size)
{
    uint8_t  *p;

    if (s->used + size > CUDA_STAGE) {
        be_cuda_stage_flush(s);
    }

    if (s->rc != 0) {
        return NULL;
    }

    p = s->cuda->stage[s->cuda->next_stage] + s->used;
    s->used += size;

    return p;
}


void
be_cuda_stage_put(cuda_stage_t *s, const void *p, size_t size)
{
    void    *to;
    size_t   i, n;

    for (i = 0; i < size; i += n) {
        n = size - i;
        n = (n < CUDA_STAGE / 2) ? n : CUDA_STAGE / 2;
        to = be_cuda_stage_room(s, n);

        if (to == NULL) {
            return;
        }

        memcpy(to, (const uint8_t *) p + i, n);
    }
}


void
be_cuda_stage_flush(cuda_stage_t *s)
{
    uint32_t    i;
    be_cuda_t  *cuda;

    cuda = s->cuda;
    i = cuda->next_stage;

    if (s->rc != 0 || s->used == 0) {
        return;
    }

    s->rc = cudaMemcpyAsync(s->to, cuda->stage[i], s->used,
                            cudaMemcpyHostToDevice, cuda->load);

    if (s->rc == 0) {
        s->rc = cudaEventRecord(cuda->staged[i], cuda->load);
    }

    s->to += s->used;
    s->used = 0;
    cuda->next_stage = (i + 1) % CUDA_STAGES;

    if (s->rc == 0) {
        s->rc = cudaEventSynchronize(cuda->staged[cuda->next_stage]);
    }
}
