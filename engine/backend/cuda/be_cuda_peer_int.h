/*
 * Inside be_cuda_peer.c, be_cuda_peer_rows.c, be_cuda_peer_far.c and
 * be_cuda_peer_flags.c.
 */

#ifndef BE_CUDA_PEER_INT_H
#define BE_CUDA_PEER_INT_H

#include "backend/cuda/be_cuda.h"
#include "backend/cuda/be_cuda_nccl.h"
#include "backend/cuda/cu_exchange.h"
#include "backend/cuda/cu_flags.h"


/* A placement on the device, by where the host has it. */

typedef struct peer_place_s  peer_place_t;

struct peer_place_s {
    peer_place_t    *next;
    const uint32_t  *key;
    uint32_t        *first;
    uint32_t        *slot;
    uint8_t         *home;
};

/* For a rank of another node: what it is sent, and what it sends home. */

typedef struct {
    uint8_t             *x;          /* of max_rows rows */
    float               *scale;
    int32_t             *slot;
    uint32_t            *rows;
    void                *out;        /* contributions to its rows */
    void                *box;        /* its own to this rank's */
} peer_far_t;

/* What each of two micro-batches has of its own, the whole step the first. */

typedef struct {
    cudaEvent_t         sent;        /* for the other ranks */
    cudaEvent_t         returned;
    cudaEvent_t         ready;       /* from the rank's stream to `beside` */
    cudaEvent_t         done;        /* and back */

    /* of the layer at hand */
    cu_exchange_t       e;
    uint32_t            slots;
    uint32_t            max;         /* pairs here, at most */
    uint32_t           *offset;
    uint16_t          **to;
    uint16_t           *stage;       /* [max][hidden]; NULL: exact */
    float              *home;        /* contributions to this are in inbox */
    uint32_t            home_pairs;
} peer_part_t;

struct be_peer_s {
    be_cuda_t          *cuda;
    be_peer_options_t   opt;
    cu_exchange_t       e;
    cu_mm_type_t        type;
    cudaStream_t        beside;      /* where micro-batches are exchanged */

    uint8_t            *x;           /* as cu_exchange.h has them */
    float              *scale;
    int32_t            *slot;
    uint32_t           *rows;        /* [2][ranks], by part */
    uint16_t           *inbox;

    peer_part_t         part[2];
    peer_place_t       *places;
    uint32_t           *flags;       /* in recorded steps: cu_flags.h */
    uint32_t           *late;        /* the same, of the host, pinned */

    cuda_nccl_t        *nccl;        /* NULL: all are of this process */
    peer_far_t          far[BE_PEERS_MAX];
};


/* Of the part at hand: its own, */

static inline peer_part_t *
be_peer_part(be_peer_t *p)
{
    return &p->part[be_cuda_half(p->cuda)];
}


/* where its exchange goes, */

static inline cudaStream_t
be_peer_stream(const be_peer_t *p)
{
    return p->cuda->part != 0 ? p->beside : p->cuda->stream;
}


/* and the first of its rows in memory that has max_rows of each rank. */

static inline size_t
be_peer_base(const be_peer_t *p)
{
    return be_cuda_half(p->cuda) * (size_t) ((p->opt.max_rows + 1) / 2);
}


/* Not of this process. */

static inline int
be_peer_is_far(const be_peer_t *p, uint32_t rank)
{
    return p->opt.local != 0
           && (rank < p->opt.first || rank >= p->opt.first + p->opt.local);
}


/* A placement on the device, where it was first used; NULL: failed. */
const peer_place_t *be_cuda_peer_place(be_peer_t *p,
    const be_peer_send_t *send);

/*
 * be_cuda_peer_flags.c: memory, 0 or a cudaError_t; queues, where the part at
 * hand is exchanged, that this rank has come and waits until all have; where
 * the device says that it waits no more.
 */
int be_cuda_flags_open(be_peer_t *p);
void be_cuda_flags_close(be_peer_t *p);
void be_cuda_flags_meet(be_peer_t *p);
const uint32_t *be_cuda_flags_stop(const be_peer_t *p);     /* [2] by part */
const uint32_t *be_cuda_flags_stopped(const be_peer_t *p);  /* of that part */

/* be_cuda_peer_far.c; 0, or -1 with the reason. */
int be_cuda_far_memory(be_peer_t *p, char *err);
void be_cuda_far_free(be_peer_t *p);

/* Queue what goes to other nodes and comes from them. */
void be_cuda_far_send(be_peer_t *p);
void be_cuda_far_return(be_peer_t *p);

/* Contributions of this process and of others, to their place. */
int be_cuda_far_home(be_peer_t *p, const be_peer_send_t *send);

#endif /* BE_CUDA_PEER_INT_H */
