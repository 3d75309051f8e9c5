/*
 * The KV pool: [layers][blocks][64] of [kv_lora + rope] BF16, or of records in
 * FP8 (cu_mla.h), for models with the sizes of these.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"


static void cuda_kv_copy(be_cuda_t *cuda, be_kv_t *kv, int32_t block,
    void *dst, const void *src);


be_kv_t *
be_cuda_kv_open(be_t *be, uint32_t layers, uint32_t blocks,
    const be_mla_t *mla, char *err)
{
    int         rc;
    size_t      size;
    be_kv_t    *kv;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    kv = calloc(1, sizeof(be_kv_t));
    if (kv == NULL) {
        snprintf(err, ERR_LEN, "no memory for the KV pool");
        return NULL;
    }

    be_cuda_attend_model(cuda, mla);
    pthread_mutex_init(&kv->lock, NULL);

    kv->layers = layers;
    kv->blocks = blocks;
    kv->dim = mla->kv_lora + mla->rope;
    kv->block_size = (size_t) kv->dim * BE_BLOCK * sizeof(uint16_t);
    kv->fp8 = (cuda->opt.kv == BE_F8E4M3);

    if (kv->fp8) {

        if (mla->kv_lora != CU_MLA_LORA || mla->rope != CU_MLA_ROPE) {
            snprintf(err, ERR_LEN, "a KV cache in FP8 is for latent rows of "
                     "%d and %d, this model has %u and %u", CU_MLA_LORA,
                     CU_MLA_ROPE, mla->kv_lora, mla->rope);
            goto failed;
        }

        kv->block_size = (size_t) CU_MLA_FP8_SIZE * BE_BLOCK;
    }

    if (layers == 0 || blocks == 0
        || kv->block_size > SIZE_MAX / layers / blocks)
    {
        snprintf(err, ERR_LEN, "a KV pool of %u layers and %u blocks is not "
                 "possible", layers, blocks);
        goto failed;
    }

    size = kv->block_size * layers * blocks;

    rc = cudaSetDevice(cuda->device);

    if (rc == 0) {
        rc = cudaMalloc((void **) &kv->data, size);
    }

    if (rc == 0) {
        rc = cudaMemsetAsync(kv->data, 0, size, cuda->stream);
    }

    if (rc == 0) {
        rc = cudaStreamSynchronize(cuda->stream);
    }

    if (rc == 0) {
        rc = cudaMallocHost((void **) &kv->stage, kv->block_size * layers);
    }

    if (rc == 0) {
        rc = cudaStreamCreateWithFlags(&kv->stream, cudaStreamNonBlocking);
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "no memory on CUDA device %d for a KV pool of "
                 "%zu bytes: %s", cuda->device, size,
                 cudaGetErrorString((cudaError_t) rc));
        (void) cudaGetLastError();
        goto failed;
    }

    return kv;

failed:

    be_cuda_kv_free(be, kv);

    return NULL;
}


void
be_cuda_kv_free(be_t *be, be_kv_t *kv)
{
    if (kv == NULL) {
        return;
    }

    (void) cudaSetDevice(((be_cuda_t *) be)->device);

    if (kv->stream != NULL) {
        (void) cudaStreamDestroy(kv->stream);
    }

    (void) cudaFreeHost(kv->stage);
    (void) cudaFree(kv->data);

    pthread_mutex_destroy(&kv->lock);
    free(kv);
}


size_t
be_cuda_kv_block_size(const be_kv_t *kv)
{
    return kv->block_size * kv->layers;
}


void
be_cuda_kv_read(be_t *be, be_kv_t *kv, int32_t block, void *dst)
{
    cuda_kv_copy((be_cuda_t *) be, kv, block, dst, NULL);
}


void
be_cuda_kv_write(be_t *be, be_kv_t *kv, int32_t block, const void *src)
{
    cuda_kv_copy((be_cuda_t *) be, kv, block, NULL, src);
}


/*
 * Through pinned memory, on a stream that the leader's work does not wait for,
 * after the last step that was queued.  A copy that fails is a device that is
 * lost: what was read must not pass for a block, on disk least of all.
 */

static void
cuda_kv_copy(be_cuda_t *cuda, be_kv_t *kv, int32_t block, void *dst,
    const void *src)
{
    int       rc;
    size_t    size, pitch;
    uint8_t  *at, *stage;
    uint32_t  i;

    size = kv->block_size * kv->layers;
    pitch = kv->block_size * kv->blocks;
    at = kv->data + (uint32_t) block * kv->block_size;

    pthread_mutex_lock(&kv->lock);

    rc = cudaSetDevice(cuda->device);

    if (rc == 0) {
        rc = cudaStreamWaitEvent(kv->stream, cuda->stepped, 0);
    }

    if (src != NULL) {
        memcpy(kv->stage, src, size);
    }

    /* One copy would do, but for its pitch, which ends at 2 GiB. */

    for (i = 0; rc == 0 && i < kv->layers; i++) {
        stage = (uint8_t *) kv->stage + i * kv->block_size;

        rc = (src != NULL)
             ? cudaMemcpyAsync(at + i * pitch, stage, kv->block_size,
                               cudaMemcpyHostToDevice, kv->stream)
             : cudaMemcpyAsync(stage, at + i * pitch, kv->block_size,
                               cudaMemcpyDeviceToHost, kv->stream);
    }

    if (rc == 0) {
        rc = cudaStreamSynchronize(kv->stream);
    }

    if (rc != 0) {
        fprintf(stderr, "cuda backend: copy of a KV block: %s\n",
                cudaGetErrorString((cudaError_t) rc));
        abort();
    }

    if (dst != NULL) {
        memcpy(dst, kv->stage, size);
    }

    pthread_mutex_unlock(&kv->lock);
}
