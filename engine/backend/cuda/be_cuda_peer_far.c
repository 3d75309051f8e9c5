/*
 * Rows to ranks of other nodes, and theirs, over NCCL.
 *
 * What another node's rank sends in a dispatch lands where a rank of the
 * process would have written it.  Contributions come into a box for each of
 * them: all send the same size, with places for all pairs, of which those that
 * they had to compute are filled.
 */

#include <stdio.h>
#include <string.h>

#include "backend/cuda/be_cuda_peer_int.h"


static size_t peer_pair_size(const be_peer_t *p);


int
be_cuda_far_memory(be_peer_t *p, char *err)
{
    int          rc;
    size_t       rows, pairs;
    uint32_t     i;
    peer_far_t  *f;

    rc = 0;
    rows = (size_t) p->opt.max_rows + 1;
    pairs = (rows * p->opt.top_k) * peer_pair_size(p);

    for (i = 0; i < p->opt.ranks && rc == 0; i++) {

        if (!be_peer_is_far(p, i)) {
            continue;
        }

        f = &p->far[i];
        rc = cudaMalloc((void **) &f->x, rows * p->e.row_bytes);

        if (rc == 0 && p->e.groups > 0) {
            rc = cudaMalloc((void **) &f->scale,
                            rows * p->e.groups * sizeof(float));
        }

        if (rc == 0) {
            rc = cudaMalloc((void **) &f->slot,
                            rows * p->opt.top_k * sizeof(int32_t));
        }

        if (rc == 0) {
            rc = cudaMalloc((void **) &f->rows, 2 * sizeof(uint32_t));
        }

        if (rc == 0) {
            rc = cudaMalloc((void **) &f->out, pairs);
        }

        if (rc == 0) {
            rc = cudaMalloc((void **) &f->box, pairs);
        }

        /* all is sent, also what no row has filled */

        if (rc == 0) {
            rc = cudaMemset(f->x, 0, rows * p->e.row_bytes);
        }

        if (rc == 0 && p->e.groups > 0) {
            rc = cudaMemset(f->scale, 0, rows * p->e.groups * sizeof(float));
        }

        if (rc == 0) {
            rc = cudaMemset(f->slot, 0xff,
                            rows * p->opt.top_k * sizeof(int32_t));
        }

        if (rc == 0) {
            rc = cudaMemset(f->out, 0, pairs);
        }
    }

    /* The streams that send do not wait for the default one. */

    if (rc == 0) {
        rc = cudaDeviceSynchronize();
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "CUDA device %d: no memory for an exchange "
                 "with %u ranks of other nodes, %zu bytes each: %s",
                 p->cuda->device, p->opt.ranks - p->opt.local,
                 rows * p->e.row_bytes + 2 * pairs,
                 cudaGetErrorString((cudaError_t) rc));
        return -1;
    }

    return 0;
}


void
be_cuda_far_free(be_peer_t *p)
{
    uint32_t  i;

    for (i = 0; i < BE_PEERS_MAX; i++) {
        (void) cudaFree(p->far[i].x);
        (void) cudaFree(p->far[i].scale);
        (void) cudaFree(p->far[i].slot);
        (void) cudaFree(p->far[i].rows);
        (void) cudaFree(p->far[i].out);
        (void) cudaFree(p->far[i].box);
    }
}


/* Bytes of a contribution on its way. */

static size_t
peer_pair_size(const be_peer_t *p)
{
    return (size_t) p->opt.hidden
           * (p->opt.exact ? sizeof(float) : sizeof(uint16_t));
}


void
be_cuda_far_send(be_peer_t *p)
{
    size_t       x, scale, slot, at, base, most;
    uint32_t     i, part;
    peer_far_t  *f;

    part = be_cuda_half(p->cuda);
    base = be_peer_base(p);
    most = p->part[part].e.most;
    x = most * p->e.row_bytes;
    scale = most * p->e.groups * sizeof(float);
    slot = most * p->e.top_k * sizeof(int32_t);

    be_cuda_nccl_begin(p->nccl, "dispatch", be_peer_stream(p));

    for (i = 0; i < p->opt.ranks; i++) {

        if (!be_peer_is_far(p, i)) {
            continue;
        }

        f = &p->far[i];
        at = (size_t) i * p->e.max_rows + base;

        be_cuda_nccl_send(p->nccl, i, f->rows + part, sizeof(uint32_t));
        be_cuda_nccl_recv(p->nccl, i, p->rows + part * p->opt.ranks + i,
                          sizeof(uint32_t));

        if (most == 0) {
            continue;
        }

        be_cuda_nccl_send(p->nccl, i, f->slot + base * p->e.top_k, slot);
        be_cuda_nccl_recv(p->nccl, i, p->slot + at * p->e.top_k, slot);
        be_cuda_nccl_send(p->nccl, i, f->x + base * p->e.row_bytes, x);
        be_cuda_nccl_recv(p->nccl, i, p->x + at * p->e.row_bytes, x);

        if (p->e.groups > 0) {
            be_cuda_nccl_send(p->nccl, i, f->scale + base * p->e.groups,
                              scale);
            be_cuda_nccl_recv(p->nccl, i, p->scale + at * p->e.groups, scale);
        }
    }

    (void) be_cuda_nccl_end(p->nccl);
}


void
be_cuda_far_return(be_peer_t *p)
{
    size_t    size, at;
    uint32_t  i;

    size = (size_t) be_peer_part(p)->e.most * p->e.top_k * peer_pair_size(p);
    at = be_peer_base(p) * p->e.top_k * peer_pair_size(p);

    if (size == 0) {
        return;
    }

    be_cuda_nccl_begin(p->nccl, "combine", be_peer_stream(p));

    for (i = 0; i < p->opt.ranks; i++) {
        if (be_peer_is_far(p, i)) {
            be_cuda_nccl_send(p->nccl, i, p->far[i].out + at, size);
            be_cuda_nccl_recv(p->nccl, i, p->far[i].box + at, size);
        }
    }

    (void) be_cuda_nccl_end(p->nccl);
}


int
be_cuda_far_home(be_peer_t *p, const be_peer_send_t *send)
{
    size_t              at;
    uint32_t            i;
    cu_exchange_home_t  h;

    memset(&h, 0, sizeof(h));
    at = be_peer_base(p) * p->opt.top_k;
    h.inbox = p->opt.exact ? NULL : p->inbox + at * p->opt.hidden;

    for (i = 0; i < p->opt.ranks; i++) {
        if (be_peer_is_far(p, i)) {
            h.slot[i] = p->far[i].slot + at;
            h.box[i] = p->far[i].box + at * peer_pair_size(p);
        }
    }

    return cu_exchange_home(&p->e, &h, send->rows * p->opt.top_k,
                            send->contrib, p->cuda->stream);
}
