/*
 * Worlds of the stand-in for NCCL.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <string>

#include "emu_nccl.h"
#include "emu_runtime.h"
#include "emu_thread.h"


/* Names made here, that go at the end if not before. */

struct names_t {
    std::mutex             lock;
    std::set<std::string>  name;

    ~names_t()
    {
        for (auto &n : name) {
            (void) unlink(n.c_str());
        }
    }
};


static std::string world_path(const char *name);
static size_t ring_write(emu_ring_t *r, const char *from, size_t n);
static size_t ring_read(emu_ring_t *r, char *to, size_t n);


static names_t             world_names;
static unsigned long long  world_count;


/* "emu 12-3" is $TMPDIR/emu-nccl-12-3. */

static std::string
world_path(const char *name)
{
    const char  *dir;

    dir = getenv("TMPDIR");

    return std::string(dir != NULL ? dir : "/tmp") + "/emu-nccl-"
           + (name + strlen("emu "));
}


int
emu_world_make(char *name, size_t size)
{
    int          fd;
    std::string  path;

    std::lock_guard<std::mutex>  lock(world_names.lock);

    snprintf(name, size, "emu %d-%llu", (int) getpid(), ++world_count);
    path = world_path(name);
    (void) unlink(path.c_str());

    fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd == -1) {
        return -1;
    }

    world_names.name.insert(path);

    if (ftruncate(fd, sizeof(emu_shared_t)) == -1) {
        close(fd);
        return -1;
    }

    close(fd);

    return 0;
}


std::shared_ptr<emu_world_t>
emu_world_join(const char *name, int ranks, int rank, int device)
{
    int            fd, i, none;
    void          *p;
    uint64_t       mine, nobody;
    std::string    path;

    if (strncmp(name, "emu ", 4) != 0 || strchr(name, '/') != NULL
        || ranks > EMU_NCCL_RANKS || rank < 0 || rank >= ranks)
    {
        return NULL;
    }

    path = world_path(name);
    fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd == -1) {
        return NULL;
    }

    p = mmap(NULL, sizeof(emu_shared_t), PROT_READ | PROT_WRITE, MAP_SHARED,
             fd, 0);
    close(fd);

    if (p == MAP_FAILED) {
        return NULL;
    }

    auto  w = std::make_shared<emu_world_t>();

    w->s = (emu_shared_t *) p;
    w->rank = rank;
    none = 0;
    nobody = 0;
    mine = (uint64_t) getpid() << 8 | (uint64_t) (device + 1);

    if ((!w->s->ranks.compare_exchange_strong(none, ranks) && none != ranks)
        || !w->s->device[rank].compare_exchange_strong(nobody, mine))
    {
        return NULL;
    }

    /* of two that come at once one at least sees the other */

    for (i = 0; i < ranks; i++) {
        if (i != rank && w->s->device[i] == mine) {
            w->s->twice = 1;
        }
    }

    if (w->came() == ranks) {
        (void) unlink(path.c_str());
    }

    return w;
}


emu_world_t::~emu_world_t()
{
    (void) munmap(s, sizeof(emu_shared_t));
}


int
emu_world_t::came() const
{
    int  i, n;

    for (i = 0, n = 0; i < s->ranks; i++) {
        n += s->device[i] != 0;
    }

    return n;
}


size_t
emu_world_move(emu_world_t *w, emu_piece_t *p)
{
    size_t       n, all, moved;
    uint64_t     size;
    emu_ring_t  *r;

    all = sizeof(size) + p->size;
    r = p->recv ? &w->s->ring[p->peer][w->rank]
                : &w->s->ring[w->rank][p->peer];
    moved = 0;

    /* its size, which comes at once */

    if (p->done == 0) {
        size = p->size;
        n = p->recv ? ring_read(r, (char *) &size, sizeof(size))
                    : ring_write(r, (const char *) &size, sizeof(size));

        if (n == 0) {
            return 0;
        }

        if (size != p->size) {
            emu_fatal("NCCL: rank %d receives %zu bytes of rank %d, which "
                      "sends %zu", w->rank, p->size, p->peer, (size_t) size);
        }

        p->done = n;
        moved = n;
    }

    while (p->done < all) {
        n = std::min(all - p->done, (size_t) EMU_NCCL_RING / 2);
        n = p->recv ? ring_read(r, p->data + p->done - sizeof(size), n)
                    : ring_write(r, p->data + p->done - sizeof(size), n);

        if (n == 0) {
            break;
        }

        p->done += n;
        moved += n;
    }

    return moved;
}


/* What there is room for, but words whole. */

static size_t
ring_write(emu_ring_t *r, const char *from, size_t n)
{
    size_t    at, part;
    uint64_t  head;

    head = r->head.load(std::memory_order_relaxed);
    part = EMU_NCCL_RING - (head - r->tail.load(std::memory_order_acquire));

    if (part < n) {
        n = (n <= sizeof(uint64_t)) ? 0 : part;
    }

    at = head % EMU_NCCL_RING;
    part = std::min(n, EMU_NCCL_RING - at);
    memcpy(r->data + at, from, part);
    memcpy(r->data, from + part, n - part);
    r->head.store(head + n, std::memory_order_release);

    return n;
}


static size_t
ring_read(emu_ring_t *r, char *to, size_t n)
{
    size_t    at, part;
    uint64_t  tail;

    tail = r->tail.load(std::memory_order_relaxed);
    part = r->head.load(std::memory_order_acquire) - tail;

    if (part < n) {
        n = (n <= sizeof(uint64_t)) ? 0 : part;
    }

    at = tail % EMU_NCCL_RING;
    part = std::min(n, EMU_NCCL_RING - at);
    memcpy(to, r->data + at, part);
    memcpy(to + part, r->data, n - part);
    r->tail.store(tail + n, std::memory_order_release);

    return n;
}
