/*
 * The CUDA backend: opening, memory, copies, and the table of operations.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"


static int cuda_open_device(be_cuda_t *cuda, char *err);
static int cuda_peers(be_cuda_t *cuda, int devices, char *err);
static be_t *cuda_helper(be_t *be, char *err);
static void cuda_close(be_t *be);
static void *cuda_alloc(be_t *be, size_t size);
static void cuda_free(be_t *be, void *p);
static void cuda_upload(be_t *be, void *dst, const void *src, size_t size);
static void cuda_download(be_t *be, void *dst, const void *src, size_t size);
static int cuda_sync(be_t *be, char *err);


static const be_t  cuda_table = {
    .name = "cuda",
    .device = 1,
    .close = cuda_close,
    .helper = cuda_helper,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .sync = cuda_sync,
    .begin = be_cuda_begin,
    .end = be_cuda_end,
    .part = be_cuda_part,
    .forget = be_cuda_forget,
    .weight = be_cuda_weight,
    .weight_t = be_cuda_weight_t,
    .table = be_cuda_table,
    .weight_free = be_cuda_weight_free,
    .loaded = be_cuda_loaded,
    .weight_tensor = be_cuda_weight_tensor,
    .kv_open = be_cuda_kv_open,
    .kv_free = be_cuda_kv_free,
    .kv_block_size = be_cuda_kv_block_size,
    .kv_read = be_cuda_kv_read,
    .kv_write = be_cuda_kv_write,
    .embed = be_cuda_embed,
    .norm = be_cuda_norm,
    .linear = be_cuda_linear,
    .linear_add = be_cuda_linear_add,
    .mla_cache = be_cuda_mla_cache,
    .mla_query = be_cuda_mla_query,
    .mla_attend = be_cuda_mla_attend,
    .mla_value = be_cuda_mla_value,
    .mlp_add = be_cuda_mlp_add,
    .gate = be_cuda_gate,
    .route = be_cuda_route,
    .peer_open = be_cuda_peer_open,
    .peer_close = be_cuda_peer_close,
    .peer_send = be_cuda_peer_send,
    .peer_pairs = be_cuda_peer_pairs,
    .peer_return = be_cuda_peer_return,
    .peer_collect = be_cuda_peer_collect,
    .peer_stop = be_cuda_peer_stop,
    .experts = be_cuda_experts,
    .combine = be_cuda_combine,
    .draw = be_cuda_draw,
    .gather = be_cuda_gather,
    .join = be_cuda_join
};


be_t *
be_cuda_open(const be_options_t *opt, char *err)
{
    int         own;
    char        share[64], why[ERR_LEN];
    be_cuda_t  *cuda;

    if (opt->compute != BE_BF16) {
        snprintf(err, ERR_LEN, "the cuda backend computes in bf16 only");
        return NULL;
    }

    own = (opt->path != NULL && strcmp(opt->path, CUDA_PATH_OWN) == 0);

    if (opt->path != NULL && !own && strcmp(opt->path, CUDA_PATH) != 0) {
        snprintf(err, ERR_LEN, "the cuda backend has no kernel path \"%s\", "
                 "but " CUDA_PATH " and " CUDA_PATH_OWN, opt->path);
        return NULL;
    }

    cuda = calloc(1, sizeof(be_cuda_t));
    if (cuda == NULL) {
        snprintf(err, ERR_LEN, "no memory for the cuda backend");
        return NULL;
    }

    cuda->be = cuda_table;
    cuda->opt = *opt;
    cuda->opt.path = own ? CUDA_PATH_OWN : NULL;
    atomic_init(&cuda->forget, 0);

    if (cuda_open_device(cuda, err) != 0) {
        cuda_close(&cuda->be);
        return NULL;
    }

    if (!own) {
        cuda->blas = be_cuda_blas_open(opt->fixed, why);
    }

    cuda->be.path = cuda->blas != NULL ? CUDA_PATH : CUDA_PATH_OWN;

    /* Without memory for its key nothing is shared. */

    if (!opt->alone) {
        snprintf(share, sizeof(share), "cuda %d weights %d", cuda->device,
                 (int) opt->weights);
        cuda->be.share = strdup(share);
    }

    return &cuda->be;
}


int
be_cuda_memory(uint32_t ranks, uint64_t *bytes, uint32_t *shared, char *err)
{
    int       i, rc, devices;
    size_t    has, all;
    uint32_t  n;

    *bytes = 0;
    *shared = 1;
    devices = 0;
    rc = cudaGetDeviceCount(&devices);

    if (rc == 0 && devices == 0) {
        rc = cudaErrorNoDevice;
    }

    for (i = 0; i < devices && (uint32_t) i < ranks && rc == 0; i++) {
        rc = cudaSetDevice(i);

        if (rc == 0) {
            rc = cudaMemGetInfo(&has, &all);
        }

        n = (ranks - (uint32_t) i + (uint32_t) devices - 1)
            / (uint32_t) devices;

        if (rc == 0 && (*bytes == 0 || has / n < *bytes / *shared)) {
            *bytes = has;
            *shared = n;
        }
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "CUDA: no CUDA device: %s",
                 cudaGetErrorString((cudaError_t) rc));
        return -1;
    }

    return 0;
}


static int
cuda_open_device(be_cuda_t *cuda, char *err)
{
    int          rc, devices, major;
    const char  *what;

    devices = 0;
    what = "no CUDA device";
    rc = cudaGetDeviceCount(&devices);

    if (rc == 0 && devices == 0) {
        rc = cudaErrorNoDevice;
    }

    if (rc != 0) {
        goto failed;
    }

    cuda->device = (int) (cuda->opt.rank % (uint32_t) devices);
    what = "the device cannot be used";
    rc = cudaSetDevice(cuda->device);

    if (rc == 0) {
        rc = cudaDeviceGetAttribute(&cuda->sms,
                                    cudaDevAttrMultiProcessorCount,
                                    cuda->device);
    }

    if (rc == 0) {
        rc = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                    cuda->device);
    }

    if (rc != 0) {
        goto failed;
    }

    if (major != 9) {
        snprintf(err, ERR_LEN, "CUDA device %d has compute capability %d: "
                 "the kernels are made for 9.0 (H100, H800, H200)",
                 cuda->device, major);
        return -1;
    }

    what = "no stream";
    rc = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);

    if (rc == 0) {
        rc = cudaStreamCreateWithFlags(&cuda->load, cudaStreamNonBlocking);
    }

    if (rc == 0) {
        rc = cudaEventCreateWithFlags(&cuda->stepped, cudaEventDisableTiming);
    }

    if (rc == 0) {
        rc = cudaEventCreateWithFlags(&cuda->copied, cudaEventDisableTiming);
    }

    if (rc == 0) {
        what = "no memory for sums of products";
        rc = cudaMalloc(&cuda->room, CU_GEMM_ROOM);
    }

    if (rc == 0) {
        rc = cudaMemsetAsync(cuda->room, 0, CU_GEMM_ROOM, cuda->stream);
    }

    if (rc == 0) {
        return cuda_peers(cuda, devices, err);
    }

failed:

    snprintf(err, ERR_LEN, "CUDA: %s: %s", what,
             cudaGetErrorString((cudaError_t) rc));
    return -1;
}


/* Ranks read and write each other's rows. */

static int
cuda_peers(be_cuda_t *cuda, int devices, char *err)
{
    int  i, rc, can;

    for (i = 0; i < devices; i++) {
        if (i == cuda->device
            || cudaDeviceCanAccessPeer(&can, cuda->device, i) != 0 || !can)
        {
            continue;
        }

        rc = cudaDeviceEnablePeerAccess(i, 0);

        if (rc == cudaErrorPeerAccessAlreadyEnabled) {
            (void) cudaGetLastError();
            continue;
        }

        if (rc != 0) {
            snprintf(err, ERR_LEN, "CUDA: no access from device %d to %d: %s",
                     cuda->device, i, cudaGetErrorString((cudaError_t) rc));
            return -1;
        }
    }

    return 0;
}


static be_t *
cuda_helper(be_t *be, char *err)
{
    return be_cuda_open(&((be_cuda_t *) be)->opt, err);
}


static void
cuda_close(be_t *be)
{
    uint32_t    i;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    (void) cudaSetDevice(cuda->device);

    if (cuda->stream != NULL) {
        (void) cudaStreamSynchronize(cuda->stream);
    }

    be_cuda_record_close(cuda);
    be_cuda_step_close(cuda);
    be_cuda_moe_close(cuda);
    be_cuda_weight_close(cuda);
    be_cuda_blas_close(cuda->blas);
    (void) cudaFree(cuda->room);

    for (i = 0; i < CUDA_SCRATCH_MAX; i++) {
        (void) cudaFree(cuda->scratch[i]);
    }

    if (cuda->stepped != NULL) {
        (void) cudaEventDestroy(cuda->stepped);
    }

    if (cuda->copied != NULL) {
        (void) cudaEventDestroy(cuda->copied);
    }

    if (cuda->load != NULL) {
        (void) cudaStreamDestroy(cuda->load);
    }

    if (cuda->stream != NULL) {
        (void) cudaStreamDestroy(cuda->stream);
    }

    free((char *) cuda->be.share);
    free(cuda);
}


void
be_cuda_fail(be_cuda_t *cuda, const char *fmt, ...)
{
    va_list  args;

    if (cuda->failed) {
        return;
    }

    va_start(args, fmt);
    vsnprintf(cuda->why, sizeof(cuda->why), fmt, args);
    va_end(args);

    cuda->failed = 1;
}


int
be_cuda_check(be_cuda_t *cuda, int rc, const char *what)
{
    if (rc == 0) {
        return 0;
    }

    be_cuda_fail(cuda, "CUDA device %d: %s: %s", cuda->device, what,
                 cudaGetErrorString((cudaError_t) rc));

    return -1;
}


int
be_cuda_enter(be_cuda_t *cuda)
{
    return be_cuda_check(cuda, cudaSetDevice(cuda->device), "device");
}


int
be_cuda_wait(be_cuda_t *cuda)
{
    if (cuda->peer != NULL && be_cuda_peer_far(cuda->peer)) {
        return be_cuda_peer_wait(cuda->peer);
    }

    if (be_cuda_check(cuda, cudaStreamSynchronize(cuda->stream), "a kernel")
        != 0)
    {
        return -1;
    }

    return be_cuda_peer_late(cuda);
}


int
be_cuda_settle(be_cuda_t *cuda)
{
    if (cuda->peer == NULL || !be_cuda_peer_far(cuda->peer)
        || cuda->recording != CUDA_PLAIN)
    {
        return 0;
    }

    return be_cuda_wait(cuda);
}


void *
be_cuda_scratch(be_cuda_t *cuda, cuda_scratch_t use, size_t size)
{
    size_t  n;

    if (size <= cuda->scratch_size[use]) {
        return cuda->scratch[use];
    }

    /*
     * While a step is recorded nothing grows, as the same step was computed
     * before.  What was recorded with the old memory is worth nothing.
     */

    if (cuda->recording != CUDA_PLAIN) {
        be_cuda_fail(cuda, "CUDA device %d: a recorded step wants %zu bytes "
                     "more", cuda->device, size);
        return NULL;
    }

    be_cuda_drop(cuda);
    n = (size + size / 4 + 4095) / 4096 * 4096;

    /* What is queued may still use it. */

    if (be_cuda_wait(cuda) != 0) {
        return NULL;
    }

    (void) cudaFree(cuda->scratch[use]);
    cuda->scratch[use] = NULL;
    cuda->scratch_size[use] = 0;

    if (be_cuda_check(cuda, cudaMalloc(&cuda->scratch[use], n), "scratch")
        != 0)
    {
        return NULL;
    }

    cuda->scratch_size[use] = n;

    return cuda->scratch[use];
}


static void *
cuda_alloc(be_t *be, size_t size)
{
    void       *p;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;
    size = (size == 0) ? 64 : size;
    p = NULL;

    if (be_cuda_enter(cuda) != 0 || cudaMalloc(&p, size) != 0) {
        (void) cudaGetLastError();
        return NULL;
    }

    if (cudaMemsetAsync(p, 0, size, cuda->stream) != 0
        || cudaStreamSynchronize(cuda->stream) != 0)
    {
        (void) cudaFree(p);
        return NULL;
    }

    return p;
}


static void
cuda_free(be_t *be, void *p)
{
    if (be_cuda_enter((be_cuda_t *) be) == 0) {
        (void) cudaFree(p);
    }
}


/* The source may go when this returns. */

static void
cuda_upload(be_t *be, void *dst, const void *src, size_t size)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    if (size == 0 || be_cuda_enter(cuda) != 0 || be_cuda_settle(cuda) != 0) {
        return;
    }

    if (be_cuda_check(cuda, cudaMemcpyAsync(dst, src, size,
                                            cudaMemcpyHostToDevice,
                                            cuda->stream), "upload")
        == 0)
    {
        (void) be_cuda_wait(cuda);
    }
}


static void
cuda_download(be_t *be, void *dst, const void *src, size_t size)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    if (size == 0 || be_cuda_enter(cuda) != 0
        || (cuda->peer != NULL && be_cuda_peer_home(cuda->peer, src) != 0)
        || be_cuda_settle(cuda) != 0)
    {
        return;
    }

    (void) be_cuda_check(cuda, cudaMemcpyAsync(dst, src, size,
                                               cudaMemcpyDeviceToHost,
                                               cuda->stream), "download");
}


static int
cuda_sync(be_t *be, char *err)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    if (be_cuda_enter(cuda) == 0) {
        (void) be_cuda_wait(cuda);
    }

    if (cuda->failed) {
        be_cuda_peer_tell(cuda);
        snprintf(err, ERR_LEN, "%s", cuda->why);
        return -1;
    }

    return 0;
}
