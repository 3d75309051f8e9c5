/*
 * Ranks on separate devices that wait for each other without the host: in a
 * recorded step, after each dispatch and after each combine, every rank runs
 * cu_flags_meet(), which is over when all ranks have come as far.
 *
 * A rank has a word for each other one in memory of its own, which that one
 * stores into, and polls them there: polling crosses no link.  What is stored
 * is a number that grows by two with every meeting, counted on the device, so
 * that a graph can be replayed as it is, nothing is set back, and an old number
 * is never taken for a new one (they are compared by their difference).
 *
 * What rows and contributions are protected by.  Meeting 2i of a step is behind
 * the dispatch of layer i, meeting 2i + 1 behind its combine:
 *
 *     read after write   A rank stores its number when all it stored before is
 *                        done: kernels of a stream follow each other, and the
 *                        store is a release of the system's scope that comes
 *                        after a fence of that scope.  Who has read the number,
 *                        by an acquire of that scope, and the kernels behind,
 *                        see what was stored.
 *     write after read   Rows that came (x, scale, slot, rows) are read between
 *                        meetings 2i and 2i + 1, and written again by the next
 *                        dispatch, which is behind meeting 2i + 1 on the rank
 *                        that writes: so all ranks are done reading.  What came
 *                        home (inbox, contrib) is read behind meeting 2i + 1
 *                        and written again behind meeting 2i + 2, where every
 *                        rank has come with its next dispatch, which is behind
 *                        its reading.
 *     the words          A rank is at most one meeting ahead of any other, as
 *                        it leaves none before all have come to it; a word that
 *                        is overwritten with the next number was either read or
 *                        is waited for, and the next number serves as well.
 *
 * Of a step in two micro-batches both parts' meetings are one sequence, on the
 * stream beside, in the order of what they follow: dispatch of 1, of 2, combine
 * of 1, of 2.  Each part has rows of its own in that memory, and the rank's
 * stream waits for both meetings of a part before that part's next dispatch:
 * so what was said holds for each, with its own four in place of 2i, 2i + 1.
 *
 * The same holds from step to step, recorded or not: those that are not wait by
 * events at the same places, and the end of a step is behind its last meeting.
 *
 * A wait has a limit.  A rank that has waited so long notes whom it waited for,
 * stores its number with the lowest bit set, so that all others give up as
 * well, and waits no more; it sends no rows then, and pairs that it was sent
 * count as none.  Each micro-batch has a word for that, which its own meetings
 * set if either is set: those of the other may end while its pairs are sorted,
 * and all blocks of threads must find the same there.
 *
 * A kernel that polls must not keep another rank's from running: one rank on a
 * device, and a block of one warp.
 *
 * It has not run on GPUs.
 */

#ifndef CU_FLAGS_H
#define CU_FLAGS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif


#define CU_FLAGS_RANKS  32
#define CU_FLAGS_OTHER  0x100        /* of *late: that one has given up */

typedef struct {
    uint32_t   ranks;
    uint32_t   rank;                 /* this one */
    uint32_t  *flag[CU_FLAGS_RANKS]; /* of each rank, its words [ranks] */
    uint32_t  *count;                /* the device's: the last number */
    uint32_t   part;                 /* 0, 1: whose meeting it is */
    uint32_t  *stop;                 /* [2], by part; one is not 0: it waits no
                                        more */
    uint32_t  *late;                 /* the host's: 1 + whom it waited for */
    uint64_t   limit;                /* ns */
} cu_flags_t;

/* Queued on `stream`; returns a cudaError_t as int. */
int cu_flags_meet(const cu_flags_t *f, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_FLAGS_H */
