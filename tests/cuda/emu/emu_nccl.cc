/*
 * A stand-in for NCCL between threads of one process, or processes of one
 * machine (emu_nccl.h).
 *
 * What it holds a caller to: a communicator that does not block is in progress
 * after it was begun, until all ranks are there, and after each group, and
 * may not be called then but for its state; no two ranks have one device; what
 * is sent and received lies in device memory; a receive names the size that
 * was sent.  A group is one operation of the stream: all that it sends and
 * receives moves together, as long as nobody aborts the communicator.  One that
 * is aborted is an error of all others; a process that has died is none, and
 * who waits for it waits until it aborts.
 */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emu_nccl.h"
#include "emu_runtime.h"
#include "emu_thread.h"
#include "nccl.h"


#define NCCL_SLEEP  50000            /* ns, while nothing moves */


struct member_t {
    std::shared_ptr<emu_world_t>  w;
    int                           device;
    std::atomic<int>              aborted;
    int                           closed;    /* finalized */
    int                           waits;     /* looks until a group is done */
};

struct ncclComm {
    std::shared_ptr<member_t>  m;
};

struct group_t {
    int                       depth;
    ncclComm_t                comm;
    cudaStream_t              stream;
    std::vector<emu_piece_t>  pieces;
};


static void nccl_run(std::shared_ptr<member_t> m,
    std::vector<emu_piece_t> pieces);
static void nccl_count(const member_t *m, std::vector<emu_piece_t> *pieces);
static size_t nccl_move(emu_world_t *w, std::vector<emu_piece_t> *pieces,
    int recv);


static std::mutex             nccl_lock;
static unsigned long long     nccl_groups;
static unsigned long long     nccl_bytes;
static int                    nccl_comms;
static int                    nccl_missing;
static int                    nccl_mute_rank;
static int                    nccl_mute_n;
static thread_local group_t   nccl_group;


/* --- communicators ----------------------------------------------------- */

static ncclResult_t
nccl_version(int *version)
{
    *version = NCCL_VERSION(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);

    return ncclSuccess;
}


static ncclResult_t
nccl_id(ncclUniqueId *id)
{
    memset(id, 0, sizeof(*id));

    return emu_world_make(id->internal, sizeof(id->internal)) == 0
           ? ncclSuccess : ncclSystemError;
}


static ncclResult_t
nccl_init(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
    ncclConfig_t *config)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    if (memchr(id.internal, '\0', sizeof(id.internal)) == NULL
        || config == NULL || config->magic != NCCL_CONFIG_MAGIC
        || config->blocking != 0)
    {
        return ncclInvalidArgument;
    }

    emu_apart();

    auto  w = emu_world_join(id.internal, ranks, rank, emu_device());

    if (w == NULL) {
        return ncclInvalidArgument;
    }

    *comm = new ncclComm;
    (*comm)->m = std::make_shared<member_t>();
    (*comm)->m->w = w;
    (*comm)->m->device = emu_device();
    nccl_comms++;

    return ncclInProgress;
}


static ncclResult_t
nccl_status(member_t *m)
{
    if (m->w->s->twice) {
        return ncclInvalidUsage;
    }

    if (m->w->s->aborted) {
        return ncclRemoteError;
    }

    return (m->w->came() < m->w->s->ranks || m->waits > 0) ? ncclInProgress
                                                           : ncclSuccess;
}


static ncclResult_t
nccl_state(ncclComm_t comm, ncclResult_t *state)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    *state = nccl_status(comm->m.get());

    if (comm->m->waits > 0) {
        comm->m->waits--;
    }

    return ncclSuccess;
}


static ncclResult_t
nccl_finalize(ncclComm_t comm)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    if (nccl_status(comm->m.get()) == ncclInProgress || comm->m->closed) {
        return ncclInvalidArgument;
    }

    comm->m->closed = 1;
    comm->m->waits = 1;

    return ncclInProgress;
}


static ncclResult_t
nccl_destroy(ncclComm_t comm)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    if (!comm->m->closed || comm->m->waits > 0) {
        return ncclInvalidArgument;
    }

    nccl_comms--;
    delete comm;

    return ncclSuccess;
}


static ncclResult_t
nccl_abort(ncclComm_t comm)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    comm->m->aborted = 1;
    comm->m->w->s->aborted = 1;
    nccl_comms--;
    delete comm;

    return ncclSuccess;
}


/* --- groups ------------------------------------------------------------ */

static ncclResult_t
nccl_start(void)
{
    nccl_group.depth++;

    return ncclSuccess;
}


static ncclResult_t
nccl_piece(int recv, const void *data, size_t n, ncclDataType_t type,
    int peer, ncclComm_t comm, cudaStream_t stream)
{
    size_t   left;
    group_t  *g = &nccl_group;

    std::lock_guard<std::mutex>  lock(nccl_lock);

    if (g->depth == 0 || type != ncclUint8 || peer < 0
        || peer >= comm->m->w->s->ranks || peer == comm->m->w->rank
        || (g->comm != NULL && (g->comm != comm || g->stream != stream))
        || nccl_status(comm->m.get()) == ncclInProgress
        || emu_device() != comm->m->device)
    {
        return ncclInvalidArgument;
    }

    if (n > 0 && (emu_place(data, &left) != EMU_DEVICE || left < n)) {
        emu_fatal("NCCL: %s of %zu bytes at %p, which is no device memory of "
                  "that size", recv ? "a receive" : "a send", n, data);
    }

    emu_piece_t  p = { recv, peer, (char *) data, n, 0 };

    g->comm = comm;
    g->stream = stream;
    g->pieces.push_back(p);

    return ncclSuccess;
}


static ncclResult_t
nccl_send(const void *data, size_t n, ncclDataType_t type, int peer,
    ncclComm_t comm, cudaStream_t stream)
{
    return nccl_piece(0, data, n, type, peer, comm, stream);
}


static ncclResult_t
nccl_recv(void *data, size_t n, ncclDataType_t type, int peer,
    ncclComm_t comm, cudaStream_t stream)
{
    return nccl_piece(1, data, n, type, peer, comm, stream);
}


static void
nccl_run(std::shared_ptr<member_t> m, std::vector<emu_piece_t> pieces)
{
    struct timespec  ts = { 0, NCCL_SLEEP };

    nccl_count(m.get(), &pieces);

    while (!pieces.empty()) {

        if (m->aborted) {
            return;
        }

        if (nccl_move(m->w.get(), &pieces, 0)
            + nccl_move(m->w.get(), &pieces, 1)
            == 0)
        {
            /* devices go on whether or not anybody waits for them */

            emu_kick();
            nanosleep(&ts, NULL);
        }
    }

    std::lock_guard<std::mutex>  lock(nccl_lock);

    nccl_groups++;
}


/* Who is mute only receives. */

static void
nccl_count(const member_t *m, std::vector<emu_piece_t> *pieces)
{
    int     mute;
    size_t  i;

    std::lock_guard<std::mutex>  lock(nccl_lock);

    mute = m->w->rank == nccl_mute_rank && nccl_mute_n == 1;

    if (m->w->rank == nccl_mute_rank && nccl_mute_n > 1) {
        nccl_mute_n--;
    }

    for (i = 0; i < pieces->size(); /* void */ ) {

        if ((*pieces)[i].recv) {
            i++;

        } else if (mute) {
            pieces->erase(pieces->begin() + (ptrdiff_t) i);

        } else {
            nccl_bytes += (*pieces)[i++].size;
        }
    }
}


/* One way, to or from each rank in order.  Bytes. */

static size_t
nccl_move(emu_world_t *w, std::vector<emu_piece_t> *pieces, int recv)
{
    int       full[EMU_NCCL_RANKS] = { 0 };
    size_t    i, moved;

    moved = 0;

    for (i = 0; i < pieces->size(); /* void */ ) {
        emu_piece_t  *p = &(*pieces)[i];

        if (p->recv != recv || full[p->peer]) {
            i++;
            continue;
        }

        moved += emu_world_move(w, p);

        if (p->done == p->size + sizeof(uint64_t)) {
            pieces->erase(pieces->begin() + (ptrdiff_t) i);

        } else {
            full[p->peer] = 1;
            i++;
        }
    }

    return moved;
}


static ncclResult_t
nccl_end(void)
{
    group_t                    *g = &nccl_group;
    cudaStream_t                stream;
    std::vector<emu_piece_t>    pieces;
    std::shared_ptr<member_t>   m;

    if (g->depth == 0) {
        return ncclInvalidUsage;
    }

    if (--g->depth > 0 || g->comm == NULL) {
        return ncclSuccess;
    }

    {
        std::lock_guard<std::mutex>  lock(nccl_lock);

        m = g->comm->m;
        m->waits = 2;
    }

    pieces.swap(g->pieces);
    stream = g->stream;
    g->comm = NULL;

    if (emu_queue(stream, "NCCL", [m, pieces]() { nccl_run(m, pieces); })
        != cudaSuccess)
    {
        return ncclUnhandledCudaError;
    }

    return ncclInProgress;
}


/* --- the library ------------------------------------------------------- */

static const char *
nccl_text(ncclResult_t rc)
{
    static const char *const  text[] = {
        "no error", "unhandled cuda error", "unhandled system error",
        "internal error", "invalid argument", "invalid usage",
        "remote process exited or there was a network error",
        "NCCL operation in progress"
    };

    return (unsigned) rc <= ncclInProgress ? text[rc] : "unknown";
}


static const char *
nccl_last(ncclComm_t comm)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    return (comm != NULL && comm->m->w->s->twice) ? "two ranks on one device"
                                               : "";
}


void *
emu_nccl_dlopen(const char *name, int)
{
    if (nccl_missing) {
        return dlopen("libnccl-is-not-here.so", RTLD_NOW);
    }

    return strcmp(name, "libnccl.so.2") == 0 ? (void *) &nccl_lock : NULL;
}


void *
emu_nccl_dlsym(void *library, const char *name)
{
    static const emu_call_t  calls[] = {
        { "ncclGetVersion", (void *) nccl_version },
        { "ncclGetUniqueId", (void *) nccl_id },
        { "ncclCommInitRankConfig", (void *) nccl_init },
        { "ncclCommGetAsyncError", (void *) nccl_state },
        { "ncclCommFinalize", (void *) nccl_finalize },
        { "ncclCommDestroy", (void *) nccl_destroy },
        { "ncclCommAbort", (void *) nccl_abort },
        { "ncclSend", (void *) nccl_send },
        { "ncclRecv", (void *) nccl_recv },
        { "ncclGroupStart", (void *) nccl_start },
        { "ncclGroupEnd", (void *) nccl_end },
        { "ncclGetErrorString", (void *) nccl_text },
        { "ncclGetLastError", (void *) nccl_last }
    };

    return (library == (void *) &nccl_lock) ? emu_call(calls, name) : NULL;
}


void
emu_nccl_missing(int missing)
{
    nccl_missing = missing;
}


void
emu_nccl_mute(int rank, int n)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    nccl_mute_rank = rank;
    nccl_mute_n = n;
}


unsigned long long
emu_nccl_groups(void)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    return nccl_groups;
}


unsigned long long
emu_nccl_bytes(void)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    return nccl_bytes;
}


int
emu_nccl_open(void)
{
    std::lock_guard<std::mutex>  lock(nccl_lock);

    return nccl_comms;
}
