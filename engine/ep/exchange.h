/*
 * The exchange between expert-parallel ranks: dispatch and combine.
 *
 * Ranks step together: each call below is collective, every rank makes it once
 * per MoE layer and step, with zero rows if it has none.  A rank that does not
 * come within the time limit makes the call fail on all others.
 *
 * The home rank of a row keeps the row, its expert ids and its weights.
 * dispatch() brings rows to the ranks that hold their experts; each of those
 * computes one contribution per (row, expert); combine() brings the
 * contributions home, into contrib[row][k], where k is the expert's place in
 * the row's own top-k list.  The home rank sums them in that order, so the
 * result does not depend on where experts live.
 */

#ifndef EP_EXCHANGE_H
#define EP_EXCHANGE_H

#include <stdint.h>

#include "backend/backend.h"


typedef struct ep_exchange_s  ep_exchange_t;

#define EP_RANKS_MAX  256            /* a rank is a uint8_t in placements */

/*
 * Where experts live: the same on every rank, per layer.  Homes of expert e
 * are first[e] … first[e + 1] - 1, at least one, each on another rank, in
 * order of rank.
 */

typedef struct {
    uint32_t        experts;         /* logical experts */
    uint32_t        ranks;
    const uint32_t *first;           /* [experts + 1] its homes */
    const uint8_t  *rank;            /* [homes] rank that holds it */
    const uint32_t *slot;            /* [homes] its local index there */
    const uint32_t *count;           /* [ranks] slots */
    const uint32_t *begin;           /* [ranks] of them in `expert` */
    const uint32_t *expert;          /* [homes] by rank and slot */
} ep_placement_t;

typedef struct {
    be_t                  *be;       /* of the rank, for a queued exchange */
    uint32_t               part;     /* of the step: 0, all of it */
    const be_batch_t      *batch;    /* the rows' */
    uint32_t              *load;     /* [experts], counts rows: if queued */
    const ep_placement_t  *placement;
    const float           *x;        /* [rows][hidden], stays until combine */
    uint32_t               rows;
    uint32_t               hidden;
    uint32_t               top_k;
    const int32_t         *id;       /* [rows][top_k] logical experts */
    float                 *contrib;  /* [rows][top_k][hidden], by combine */
} ep_send_t;

struct ep_exchange_s {
    const char  *name;               /* "host" */
    uint32_t     rank;
    uint32_t     ranks;

    /*
     * Not 0: dispatch() and combine() only queue what they do behind what the
     * backend was told before, and the host learns nothing: ids, `load` and
     * the arrays of `pairs` are in the backend's memory.  0: ids are in host
     * memory, and rows are ready when dispatch() is called.
     */
    int          queued;

    /*
     * Of a queued one: the backend may record it together with the step around
     * it.  With several ranks be->begin() is collective then, as dispatch() is.
     */
    int          recorded;

    /*
     * `pairs` is the exchange's until combine() returns; pairs of an expert
     * are in order of (home rank, row).  Of the homes of an expert that has
     * several the least busy ones get rows; only where a row is computed
     * depends on that.  All ranks must send with equal placements.  0, or -1
     * with the reason in `err`.
     */
    int (*dispatch)(ep_exchange_t *ex, const ep_send_t *send,
        be_pairs_t *pairs, char *err);
    int (*combine)(ep_exchange_t *ex, char *err);

    /*
     * Not 0: a queued one that takes steps in two micro-batches (parts 1 and 2,
     * see be_t's part()), where a rank has that many rows.  Its dispatch() is
     * send() and receive(), its combine() is give() and collect(); between the
     * two of a pair those of the other part may come, in the same order on all
     * ranks.  Half as many rows as else are possible, in the first one more.
     * most(): the rows of any rank in the step to come, where all know it.
     */
    uint32_t     micro;
    int (*send)(ep_exchange_t *ex, const ep_send_t *send, char *err);
    int (*receive)(ep_exchange_t *ex, uint32_t part, be_pairs_t *pairs,
        char *err);
    int (*give)(ep_exchange_t *ex, uint32_t part, char *err);
    int (*collect)(ep_exchange_t *ex, uint32_t part, char *err);
    uint32_t (*most)(ep_exchange_t *ex);

    /*
     * NULL, or before a rank's first dispatch, with the backend that its calls
     * will name and one of its experts, and after its last, before the backend
     * is closed; by the rank's thread, or while none computes.  attach() is 0,
     * or -1 with the reason in `err`.
     */
    int (*attach)(ep_exchange_t *ex, be_t *be, const be_mlp_t *expert,
        char *err);
    void (*detach)(ep_exchange_t *ex);

    /* All ranks: waits for all, or fails. */
    int (*barrier)(ep_exchange_t *ex, char *err);

    /*
     * Makes every call, also one that waits, fail from now on.  Another rank
     * may still read rows and write contributions of this one until it makes
     * its next call: memory goes only after all ranks have stopped.
     */
    void (*abort)(ep_exchange_t *ex);
    void (*close)(ep_exchange_t *ex);
};

/*
 * Ranks in one process, host memory: rows are read and contributions written
 * in place.  Makes `ranks` exchanges at once, into ex[0 … ranks - 1], each to
 * be closed by its own close().  `max_rows`: of one rank in one step;
 * `max_experts`: of the model, no rank has more slots; `timeout_ms` 0: none.
 * 0, or -1 with the reason in `err` (ERR_LEN).
 */

int ep_host_open(ep_exchange_t **ex, uint32_t ranks, uint32_t max_rows,
    uint32_t max_top_k, uint32_t max_experts, uint32_t timeout_ms, char *err);

/*
 * One rank on a device, queued: every expert is in its own slot, and the
 * backend sorts the pairs.  NULL with the reason in `err`.
 */

ep_exchange_t *ep_local_open(uint32_t max_experts, char *err);

/*
 * Ranks of one process on devices that reach each other's memory, queued
 * (ep_peer.c).  `hidden`: of a row; `exact`: contributions are not rounded to
 * BF16 on their way; `micro`: rows from which on a step goes in two
 * micro-batches, 0: none does.  Else as ep_host_open().
 */

int ep_peer_open(ep_exchange_t **ex, uint32_t ranks, uint32_t max_rows,
    uint32_t top_k, uint32_t experts, uint32_t hidden, int exact,
    uint32_t micro, uint32_t timeout_ms, char *err);

/*
 * A placement's memory.  ep_map_open(): one to start with, of contiguous runs,
 * sizes differing by at most one; with `redundant` slots more than experts the
 * first ones have replicas.  ep_map_make(): any; rank r holds the count[r]
 * experts that follow expert[r * room], all different; each expert has to be
 * somewhere.  NULL with the reason in `err` (ERR_LEN).
 */

typedef struct ep_map_s  ep_map_t;

ep_map_t *ep_map_open(uint32_t experts, uint32_t ranks, uint32_t redundant,
    char *err);
ep_map_t *ep_map_make(uint32_t experts, uint32_t ranks, const uint32_t *count,
    const uint32_t *expert, uint32_t room, char *err);
ep_map_t *ep_map_copy(const ep_map_t *map, char *err);
const ep_placement_t *ep_map_placement(const ep_map_t *map);
void ep_map_close(ep_map_t *map);

#endif /* EP_EXCHANGE_H */
