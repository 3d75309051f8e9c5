/*
 * What ranks of a communicator share: a file that all map, by the name that is
 * NCCL's id, so that they may be threads of one process or processes.  A world
 * has a ring of bytes from each rank to each other one, in which a message is
 * its size and itself.  No lock is in it: a process may die at any time, and
 * as with NCCL itself those that wait for it then wait until they abort.
 */

#ifndef EMU_NCCL_INT_H
#define EMU_NCCL_INT_H

#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <memory>


#define EMU_NCCL_RANKS  32
#define EMU_NCCL_RING   65536

struct emu_ring_t {
    std::atomic<uint64_t>  head;     /* bytes that were written, */
    std::atomic<uint64_t>  tail;     /* and read */
    char                   data[EMU_NCCL_RING];
};

struct emu_shared_t {
    std::atomic<int>       ranks;
    std::atomic<int>       aborted;
    std::atomic<int>       twice;    /* two ranks have one device */
    std::atomic<uint64_t>  device[EMU_NCCL_RANKS];   /* 0: has not come */
    emu_ring_t             ring[EMU_NCCL_RANKS][EMU_NCCL_RANKS];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free, "shared counters");

struct emu_world_t {
    emu_shared_t  *s;
    int            rank;

    ~emu_world_t();

    int came() const;
};

/* A message on its way; `done` of `size` and the word before it. */

struct emu_piece_t {
    int     recv;
    int     peer;
    char   *data;
    size_t  size;
    size_t  done;
};


/* A name of a new world, "emu …"; 0, or -1. */
int emu_world_make(char *name, size_t size);

/*
 * Joins as `rank` of `ranks` on `device`.  NULL: there is no such world, or it
 * is another's.  Its name goes when all have come.
 */
std::shared_ptr<emu_world_t> emu_world_join(const char *name, int ranks,
    int rank, int device);

/* Moves what can be moved now.  Bytes. */
size_t emu_world_move(emu_world_t *w, emu_piece_t *p);


#endif /* EMU_NCCL_INT_H */
