/*
 * A rank's part of the exchange with other ranks: memory that those of the
 * process write.  For those of other nodes there is memory of its own instead
 * (be_cuda_peer_far.c).
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda_peer_int.h"


_Static_assert(BE_PEERS_MAX == CU_PEERS, "ranks of an exchange");


static int peer_memory(be_peer_t *p, char *err);
static int peer_reach(const be_peer_t *p, char *err);
static int peer_events(be_peer_t *p);
static void peer_events_free(be_peer_t *p);
static void peer_event_free(cudaEvent_t event);
static int peer_copy(be_cuda_t *cuda, void *to, const void *from,
    size_t size);


be_peer_t *
be_cuda_peer_open(be_t *be, const be_peer_options_t *opt, char *err)
{
    be_peer_t  *p;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    if (opt->ranks > BE_PEERS_MAX || opt->top_k > BE_TOPK_MAX) {
        snprintf(err, ERR_LEN, "an exchange of %u ranks, %u experts a row: "
                 "%u and %u are possible", opt->ranks, opt->top_k,
                 BE_PEERS_MAX, BE_TOPK_MAX);
        return NULL;
    }

    p = calloc(1, sizeof(be_peer_t));
    if (p == NULL) {
        snprintf(err, ERR_LEN, "no memory for an exchange");
        return NULL;
    }

    p->cuda = cuda;
    p->opt = *opt;
    p->type = be_cuda_act_type(cuda, opt->expert->w1->m.type);

    p->e.ranks = opt->ranks;
    p->e.rank = opt->rank;
    p->e.max_rows = opt->max_rows;
    p->e.most = opt->max_rows;
    p->e.top_k = opt->top_k;
    p->e.hidden = opt->hidden;

    if (p->type == CU_MM_FP8) {
        p->e.groups = (opt->hidden + CU_GROUP - 1) / CU_GROUP;
        p->e.row_bytes = p->e.groups * CU_GROUP;

    } else {
        p->e.row_bytes = (opt->hidden + CUDA_ALIGN - 1) / CUDA_ALIGN
                         * CUDA_ALIGN * 2;
    }

    if (peer_reach(p, err) != 0 || peer_memory(p, err) != 0
        || (opt->local != 0 && be_cuda_far_memory(p, err) != 0))
    {
        be_cuda_peer_close(be, p);
        return NULL;
    }

    if (opt->local != 0) {
        p->nccl = be_cuda_nccl_open(cuda, opt, err);

        if (p->nccl == NULL) {
            be_cuda_peer_close(be, p);
            return NULL;
        }
    }

    cuda->peer = p;

    return p;
}


/* Each device of the process must reach each other's memory. */

static int
peer_reach(const be_peer_t *p, char *err)
{
    int               i, can, devices;
    const be_cuda_t  *cuda;

    cuda = p->cuda;

    if (cudaGetDeviceCount(&devices) != 0) {
        snprintf(err, ERR_LEN, "CUDA: no devices");
        return -1;
    }

    if (p->opt.local > (uint32_t) devices) {
        snprintf(err, ERR_LEN, "%u ranks of a node on %d CUDA devices: NCCL "
                 "refuses two ranks on one device", p->opt.local, devices);
        return -1;
    }

    for (i = 0; i < devices; i++) {
        can = 1;

        if (i != cuda->device
            && (cudaDeviceCanAccessPeer(&can, cuda->device, i) != 0 || !can))
        {
            snprintf(err, ERR_LEN, "CUDA device %d cannot reach the memory of "
                     "device %d, which an exchange between them needs: hide "
                     "one of them with CUDA_VISIBLE_DEVICES", cuda->device,
                     i);
            return -1;
        }
    }

    return 0;
}


static int
peer_memory(be_peer_t *p, char *err)
{
    int     rc;
    size_t  rows, pairs;

    rows = (size_t) p->opt.ranks * p->opt.max_rows + 1;
    pairs = (size_t) p->opt.max_rows * p->opt.top_k + 1;

    rc = cudaMalloc((void **) &p->x, rows * p->e.row_bytes);

    if (rc == 0 && p->e.groups > 0) {
        rc = cudaMalloc((void **) &p->scale,
                        rows * p->e.groups * sizeof(float));
    }

    if (rc == 0) {
        rc = cudaMalloc((void **) &p->slot,
                        rows * p->opt.top_k * sizeof(int32_t));
    }

    if (rc == 0) {
        rc = cudaMalloc((void **) &p->rows,
                        2 * p->opt.ranks * sizeof(uint32_t));
    }

    if (rc == 0) {
        rc = cudaMemsetAsync(p->rows, 0, 2 * p->opt.ranks * sizeof(uint32_t),
                             p->cuda->stream);
    }

    if (rc == 0) {
        rc = be_cuda_flags_open(p);
    }

    if (rc == 0) {
        rc = cudaStreamSynchronize(p->cuda->stream);
    }

    if (rc == 0 && !p->opt.exact) {
        rc = cudaMalloc((void **) &p->inbox,
                        pairs * p->opt.hidden * sizeof(uint16_t));
    }

    if (rc == 0) {
        rc = peer_events(p);
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "CUDA device %d: no memory for an exchange of "
                 "%u ranks with %u rows: %s", p->cuda->device, p->opt.ranks,
                 p->opt.max_rows, cudaGetErrorString((cudaError_t) rc));
        return -1;
    }

    return 0;
}


static int
peer_events(be_peer_t *p)
{
    int           rc, least, most;
    uint32_t      i;
    peer_part_t  *part;

    rc = cudaDeviceGetStreamPriorityRange(&least, &most);

    if (rc == 0) {
        rc = cudaStreamCreateWithPriority(&p->beside, cudaStreamNonBlocking,
                                          most);
    }

    for (i = 0; i < 2 && rc == 0; i++) {
        part = &p->part[i];

        rc = cudaEventCreateWithFlags(&part->sent, cudaEventDisableTiming);

        if (rc == 0) {
            rc = cudaEventCreateWithFlags(&part->returned,
                                          cudaEventDisableTiming);
        }

        if (rc == 0) {
            rc = cudaEventCreateWithFlags(&part->ready,
                                          cudaEventDisableTiming);
        }

        if (rc == 0) {
            rc = cudaEventCreateWithFlags(&part->done,
                                          cudaEventDisableTiming);
        }
    }

    return rc;
}


static void
peer_events_free(be_peer_t *p)
{
    uint32_t      i;
    peer_part_t  *part;

    for (i = 0; i < 2; i++) {
        part = &p->part[i];

        peer_event_free(part->sent);
        peer_event_free(part->returned);
        peer_event_free(part->ready);
        peer_event_free(part->done);
    }

    if (p->beside != NULL) {
        (void) cudaStreamDestroy(p->beside);
    }
}


static void
peer_event_free(cudaEvent_t event)
{
    if (event != NULL) {
        (void) cudaEventDestroy(event);
    }
}


int
be_cuda_peer_far(const be_peer_t *p)
{
    return p->nccl != NULL;
}


int
be_cuda_peer_wait(be_peer_t *p)
{
    return be_cuda_nccl_wait(p->nccl);
}


void
be_cuda_peer_close(be_t *be, be_peer_t *peer)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    (void) cudaSetDevice(cuda->device);

    /* first, as what NCCL has begun may never end by itself */

    be_cuda_nccl_close(peer->nccl);
    peer->nccl = NULL;

    (void) cudaStreamSynchronize(cuda->stream);

    if (peer->beside != NULL) {
        (void) cudaStreamSynchronize(peer->beside);
    }

    be_cuda_far_free(peer);

    cuda->peer = peer;
    be_cuda_peer_forget(cuda);
    cuda->peer = NULL;

    (void) cudaFree(peer->x);
    (void) cudaFree(peer->scale);
    (void) cudaFree(peer->slot);
    (void) cudaFree(peer->rows);
    (void) cudaFree(peer->inbox);
    be_cuda_flags_close(peer);
    peer_events_free(peer);
    free(peer);
}


void
be_cuda_peer_forget(be_cuda_t *cuda)
{
    be_peer_t     *p;
    peer_place_t  *place;

    p = cuda->peer;

    while (p != NULL && p->places != NULL) {
        place = p->places;
        p->places = place->next;

        (void) cudaFree(place->first);
        (void) cudaFree(place->slot);
        (void) cudaFree(place->home);
        free(place);
    }
}


/* Copied when it is first used; be->forget() comes before it changes. */

const peer_place_t *
be_cuda_peer_place(be_peer_t *p, const be_peer_send_t *send)
{
    int            rc;
    size_t         homes;
    be_cuda_t     *cuda;
    peer_place_t  *place;

    cuda = p->cuda;

    for (place = p->places; place != NULL; place = place->next) {
        if (place->key == send->first) {
            return place;
        }
    }

    if (cuda->recording != CUDA_PLAIN) {
        be_cuda_fail(cuda, "another placement in a recorded step");
        return NULL;
    }

    place = calloc(1, sizeof(peer_place_t));
    if (place == NULL) {
        be_cuda_fail(cuda, "no memory for a placement");
        return NULL;
    }

    /* a copy from memory that is not pinned waits for the stream */

    if (be_cuda_wait(cuda) != 0) {
        free(place);
        return NULL;
    }

    place->next = p->places;
    p->places = place;
    homes = send->homes;

    rc = cudaMalloc((void **) &place->first,
                    (send->experts + 1) * sizeof(uint32_t));

    if (rc == 0) {
        rc = cudaMalloc((void **) &place->slot, homes * sizeof(uint32_t));
    }

    if (rc == 0) {
        rc = cudaMalloc((void **) &place->home, homes);
    }

    if (be_cuda_check(cuda, rc, "memory for a placement") != 0
        || peer_copy(cuda, place->first, send->first,
                     (send->experts + 1) * sizeof(uint32_t))
           != 0
        || peer_copy(cuda, place->slot, send->slot,
                     homes * sizeof(uint32_t))
           != 0
        || peer_copy(cuda, place->home, send->home, homes) != 0
        || be_cuda_wait(cuda) != 0)
    {
        return NULL;
    }

    place->key = send->first;

    return place;
}


static int
peer_copy(be_cuda_t *cuda, void *to, const void *from, size_t size)
{
    return be_cuda_check(cuda, cudaMemcpyAsync(to, from, size,
                                               cudaMemcpyHostToDevice,
                                               cuda->stream), "a placement");
}
