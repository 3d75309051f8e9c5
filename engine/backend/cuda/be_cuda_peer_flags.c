/*
 * Ranks of one process, in steps that are recorded: who they are, their
 * threads' meetings around a step, and what stands for these meetings in a
 * graph.
 */

#include <stdio.h>
#include <string.h>

#include "backend/cuda/be_cuda_peer_int.h"


/* Words of the device; those that others store into have their own line. */

#define FLAGS_COUNT  32
#define FLAGS_STOP   34              /* two, by part */
#define FLAGS_WORDS  64

_Static_assert(CU_FLAGS_RANKS == BE_PEERS_MAX
               && CU_FLAGS_RANKS <= FLAGS_COUNT, "ranks that wait");


/* The kernel is run here once, for nothing: loading it later could wait. */

int
be_cuda_flags_open(be_peer_t *p)
{
    int         rc;
    cu_flags_t  f;

    rc = cudaMalloc((void **) &p->flags, FLAGS_WORDS * sizeof(uint32_t));

    if (rc == 0) {
        rc = cudaMemsetAsync(p->flags, 0, FLAGS_WORDS * sizeof(uint32_t),
                             p->cuda->stream);
    }

    if (rc == 0) {
        rc = cudaMallocHost((void **) &p->late, sizeof(uint32_t));
    }

    if (rc != 0) {
        return rc;
    }

    *p->late = 0;

    memset(&f, 0, sizeof(f));
    f.ranks = 1;
    f.flag[0] = p->flags;
    f.count = p->flags + FLAGS_COUNT;
    f.stop = p->flags + FLAGS_STOP;
    f.late = p->late;

    return cu_flags_meet(&f, p->cuda->stream);
}


void
be_cuda_flags_close(be_peer_t *p)
{
    (void) cudaFree(p->flags);
    (void) cudaFreeHost(p->late);
}


void
be_cuda_flags_meet(be_peer_t *p)
{
    uint32_t    i;
    cu_flags_t  f;

    memset(&f, 0, sizeof(f));
    f.ranks = p->opt.ranks;
    f.rank = p->opt.rank;

    for (i = 0; i < p->opt.ranks; i++) {
        f.flag[i] = p->opt.peers[i]->flags;
    }

    f.count = p->flags + FLAGS_COUNT;
    f.stop = p->flags + FLAGS_STOP;
    f.late = p->late;
    f.part = be_cuda_half(p->cuda);
    f.limit = (uint64_t) p->opt.timeout_ms * 1000000;

    (void) be_cuda_check(p->cuda, cu_flags_meet(&f, be_peer_stream(p)),
                         "other ranks");
}


const uint32_t *
be_cuda_flags_stop(const be_peer_t *p)
{
    return p->flags + FLAGS_STOP;
}


const uint32_t *
be_cuda_flags_stopped(const be_peer_t *p)
{
    return p->flags + FLAGS_STOP + be_cuda_half(p->cuda);
}


int
be_cuda_peer_late(be_cuda_t *cuda)
{
    uint32_t    late;
    be_peer_t  *p;

    p = cuda->peer;
    late = (p != NULL && p->late != NULL) ? *(volatile uint32_t *) p->late : 0;

    if (late == 0) {
        return 0;
    }

    if (late & CU_FLAGS_OTHER) {
        be_cuda_fail(cuda, "rank %u: rank %u has given a step up",
                     p->opt.rank, (late & ~CU_FLAGS_OTHER) - 1);

    } else {
        be_cuda_fail(cuda, "rank %u: nothing within %u ms from rank %u in a "
                     "recorded step", p->opt.rank, p->opt.timeout_ms,
                     late - 1);
    }

    return -1;
}


uint32_t
be_cuda_peer_all(be_cuda_t *cuda, be_cuda_t **all, cuda_group_t *group)
{
    uint32_t                  i, k, same;
    const be_peer_options_t  *opt;

    all[0] = cuda;
    *group = CUDA_ALONE;

    if (cuda->peer == NULL) {
        return 1;
    }

    opt = &cuda->peer->opt;

    if (opt->meet == NULL) {
        *group = CUDA_NEVER;
        return 1;
    }

    for (i = 0, same = 0; i < opt->ranks; i++) {
        if (opt->peers[i] == NULL) {
            return 0;
        }

        all[i] = opt->peers[i]->cuda;

        for (k = 0; k < i; k++) {
            same += all[k]->device == all[i]->device;
        }
    }

    if (opt->ranks == 1) {
        return 1;
    }

    /* without a limit nothing would end a wait for a rank that has failed */

    *group = (same == opt->ranks * (opt->ranks - 1) / 2) ? CUDA_SHARED
             : (same == 0 && opt->timeout_ms != 0) ? CUDA_APART
                                                   : CUDA_NEVER;

    return opt->ranks;
}


int
be_cuda_peer_meet(be_cuda_t *cuda, const char *what,
    int (*last)(void *arg, char *err), char *err)
{
    const be_peer_options_t  *opt;

    if (cuda->peer == NULL || cuda->peer->opt.meet == NULL) {
        return last(cuda, err);
    }

    opt = &cuda->peer->opt;

    return opt->meet(opt->ctx, opt->rank, what, last, cuda, err);
}


int
be_cuda_peer_status(be_cuda_t *cuda, char *err)
{
    const be_peer_options_t  *opt;

    opt = &cuda->peer->opt;

    return opt->status != NULL ? opt->status(opt->ctx, err) : 0;
}


void
be_cuda_peer_tell(be_cuda_t *cuda)
{
    be_peer_t  *p;

    p = cuda->peer;

    /* between nodes what waits for NCCL tells, and knows who is gone */

    if (cuda->failed && p != NULL && p->nccl == NULL && p->opt.fail != NULL) {
        p->opt.fail(p->opt.ctx, cuda->why);
    }
}


/*
 * By the rank's thread, as captures are ended by those that began them.  What is
 * queued may still store to other ranks, which are closed one by one; all waits
 * there end, as those for NCCL do elsewhere.
 */

void
be_cuda_peer_stop(be_t *be)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;
    be_cuda_record_stop(cuda);

    if (cuda->peer != NULL && cuda->peer->nccl == NULL) {
        (void) cudaStreamSynchronize(cuda->stream);
        (void) cudaStreamSynchronize(cuda->peer->beside);
    }
}
