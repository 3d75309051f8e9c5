/*
 * A stand-in for NCCL between threads of one process.
 *
 * What it holds a caller to: a communicator that does not block is in progress
 * after it was begun, until all ranks are there, and after each group, and
 * may not be called then but for its state; no two ranks have one device; what
 * is sent and received lies in device memory; a receive names the size that
 * was sent.  A group is one operation of the stream: it puts what it sends into
 * the others' boxes, then waits for its own to fill, as long as nobody aborts
 * the communicator.  One that is aborted is an error of all others.
 */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emu_runtime.h"
#include "emu_thread.h"
#include "nccl.h"


struct member_t;

struct world_t {
    int                                                    ranks;
    int                                                    came;
    int                                                    aborted;
    int                                                    twice;
    std::vector<int>                                       device;
    std::map<std::pair<int, int>, std::deque<std::string>> box;
};

struct member_t {
    std::shared_ptr<world_t>  w;
    int                       rank;
    int                       device;
    int                       aborted;
    int                       closed;    /* finalized */
    int                       waits;     /* looks until a group is done */
};

struct ncclComm {
    std::shared_ptr<member_t>  m;
};

struct piece_t {
    int         recv;
    int         peer;
    void       *data;
    size_t      size;
};

struct group_t {
    int                   depth;
    ncclComm_t            comm;
    cudaStream_t          stream;
    std::vector<piece_t>  pieces;
};


static std::mutex                                       nccl_lock;
static std::condition_variable                          nccl_moved;
static std::map<std::string, std::shared_ptr<world_t>>  nccl_worlds;
static unsigned long long                               nccl_ids;
static unsigned long long                               nccl_groups;
static unsigned long long                               nccl_bytes;
static int                                              nccl_comms;
static int                                              nccl_missing;
static int                                              nccl_mute_rank;
static int                                              nccl_mute_n;
static thread_local group_t                             nccl_group;


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
    std::lock_guard<std::mutex>  lock(nccl_lock);

    memset(id, 0, sizeof(*id));
    snprintf(id->internal, sizeof(id->internal), "emu %llu", ++nccl_ids);

    return ncclSuccess;
}


static ncclResult_t
nccl_init(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
    ncclConfig_t *config)
{
    std::string                  key(id.internal, sizeof(id.internal));
    std::lock_guard<std::mutex>  lock(nccl_lock);

    if (strncmp(id.internal, "emu ", 4) != 0 || rank < 0 || rank >= ranks
        || config == NULL || config->magic != NCCL_CONFIG_MAGIC
        || config->blocking != 0)
    {
        return ncclInvalidArgument;
    }

    emu_apart();

    auto  &w = nccl_worlds[key];

    if (w == NULL) {
        w = std::make_shared<world_t>();
        w->ranks = ranks;
        w->device.assign((size_t) ranks, -1);
    }

    if (w->ranks != ranks || w->device[(size_t) rank] != -1) {
        return ncclInvalidArgument;
    }

    for (int d : w->device) {
        w->twice |= d == emu_device();
    }

    w->device[(size_t) rank] = emu_device();
    w->came++;

    *comm = new ncclComm;
    (*comm)->m = std::make_shared<member_t>();
    (*comm)->m->w = w;
    (*comm)->m->rank = rank;
    (*comm)->m->device = emu_device();
    nccl_comms++;

    if (w->came == ranks) {
        nccl_worlds.erase(key);
    }

    return ncclInProgress;
}


static ncclResult_t
nccl_status(member_t *m)
{
    if (m->w->twice) {
        return ncclInvalidUsage;
    }

    if (m->w->aborted) {
        return ncclRemoteError;
    }

    return (m->w->came < m->w->ranks || m->waits > 0) ? ncclInProgress
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
    comm->m->w->aborted = 1;
    nccl_comms--;
    delete comm;
    nccl_moved.notify_all();

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
        || peer >= comm->m->w->ranks || peer == comm->m->rank
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

    piece_t  p = { recv, peer, (void *) data, n };

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
nccl_run(std::shared_ptr<member_t> m, const std::vector<piece_t> &pieces)
{
    int                           mute;
    std::unique_lock<std::mutex>  lock(nccl_lock);

    mute = m->rank == nccl_mute_rank && nccl_mute_n == 1;

    if (m->rank == nccl_mute_rank && nccl_mute_n > 1) {
        nccl_mute_n--;
    }

    for (const piece_t &p : pieces) {
        if (!p.recv && !mute) {
            m->w->box[{ m->rank, p.peer }].emplace_back((const char *) p.data,
                                                        p.size);
            nccl_bytes += p.size;
        }
    }

    nccl_moved.notify_all();

    for (const piece_t &p : pieces) {

        if (!p.recv) {
            continue;
        }

        auto  &box = m->w->box[{ p.peer, m->rank }];

        while (box.empty() && !m->aborted) {
            nccl_moved.wait(lock);
        }

        if (m->aborted) {
            return;
        }

        if (box.front().size() != p.size) {
            emu_fatal("NCCL: rank %d receives %zu bytes of rank %d, which "
                      "sends %zu", m->rank, p.size, p.peer,
                      box.front().size());
        }

        memcpy(p.data, box.front().data(), p.size);
        box.pop_front();
    }

    nccl_groups++;
}


static ncclResult_t
nccl_end(void)
{
    group_t                    *g = &nccl_group;
    cudaStream_t                stream;
    std::vector<piece_t>        pieces;
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

    return (comm != NULL && comm->m->w->twice) ? "two ranks on one device"
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
    static const struct {
        const char  *name;
        void        *f;
    } calls[] = {
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

    if (library != (void *) &nccl_lock) {
        return NULL;
    }

    for (auto &c : calls) {
        if (strcmp(c.name, name) == 0) {
            return c.f;
        }
    }

    return NULL;
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
