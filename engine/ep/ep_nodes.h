/*
 * The nodes of one engine, once they have found each other (ep_rendezvous.h):
 * every pair has two connections.
 *
 * STEP connections carry what a step is made of.  All nodes go through the
 * same sequence of swaps, in each of which every node sends every other one
 * frame and gets one: the beginning of a step, dispatch and combine of each
 * layer, barriers, the opening of an exchange over NCCL.  A frame is 24 bytes
 *
 *     0   4  "LLMF"
 *     4   4  what (EP_FRAME_…)
 *     8   8  number of the swap, counted from 1
 *    16   8  length of what follows
 *
 * and what follows.  Anything else than the frame that is due ends it all.
 *
 * SIDE connections carry what comes at any time, in frames of the same form:
 * READY and BYE, nothing follows; ABORT and why, as text; POST and a message
 * for whoever registered.  A thread listens there.
 *
 * STARTING A STEP.  A node that has work begins: it sends its frame and waits
 * for those of the others.  Nodes without work sleep; the first frame that
 * comes to one, which its thread sees, wakes it up, and it joins.  So idle
 * nodes send nothing and cost nothing.
 *
 * FAILURE.  A connection that ends, a node that does not answer within the
 * limit, a frame that is not right, a rank that leaves: whoever notices says
 * why to all others, and every call fails with these words from then on.
 * There is no going on without a node, which has its part of the experts.
 */

#ifndef EP_EP_NODES_H
#define EP_EP_NODES_H

#include <stddef.h>
#include <sys/uio.h>

#include "ep/ep_rendezvous.h"


#define EP_POST_MAX  (64u << 20)     /* bytes of a message */

enum {
    EP_FRAME_BEGIN = 1,
    EP_FRAME_DISPATCH,
    EP_FRAME_COMBINE,
    EP_FRAME_BARRIER,
    EP_FRAME_OPEN,
    EP_FRAME_READY = 16,
    EP_FRAME_BYE,
    EP_FRAME_ABORT,
    EP_FRAME_POST
};

typedef struct ep_nodes_s  ep_nodes_t;

/* What a node says of a step before it begins. */

typedef struct {
    uint32_t  work;                  /* it has rows */
    uint32_t  depth;                 /* drafts that follow */
    uint64_t  rows;
    uint64_t  planned_us;            /* the step would take it alone */
    uint64_t  move;                  /* of node 0: experts to exchange now */
    uint64_t  most;                  /* rows of its busiest rank, drafts too */
} ep_begin_t;

/* A frame to send: iov[0] is the header's, the rest the caller's. */

typedef struct {
    struct iovec  *iov;
    uint32_t       n;                /* with iov[0] */
} ep_out_t;

/* Where one is to be received; its length. */

typedef struct {
    void    *buf;
    size_t   max;
    size_t   len;
} ep_in_t;


/*
 * Meets the others; `r` need not live on.  NULL with the reason in `err`
 * (ERR_LEN).  ep_nodes_ready() waits until all say that they are, too, for
 * at most as long.  ep_nodes_close() without ep_nodes_linger() before it ends
 * it for all.
 */
ep_nodes_t *ep_nodes_open(const ep_rendezvous_t *r, char *err);
int ep_nodes_ready(ep_nodes_t *n, char *err);
void ep_nodes_close(ep_nodes_t *n);

uint32_t ep_nodes_count(const ep_nodes_t *n);
uint32_t ep_nodes_self(const ep_nodes_t *n);

/*
 * Before a step, by the thread that steps: tells the others what this node
 * says and gets what they do, all[nodes].  0, or -1 with the reason.
 */
int ep_nodes_begin(ep_nodes_t *n, const ep_begin_t *mine, ep_begin_t *all,
    char *err);

/* Whether another node has begun; and, if not: from now on one that does is
   cause to call `wake`. */
int ep_nodes_wanted(ep_nodes_t *n);
void ep_nodes_idle(ep_nodes_t *n);

/*
 * A swap: out[nodes] and in[nodes], those of this node unused.  The iovecs
 * are consumed.  `what` names it in errors.  0, or -1 with the reason.
 */
int ep_nodes_swap(ep_nodes_t *n, uint32_t frame, const char *what,
    ep_out_t *out, ep_in_t *in, char *err);

/* Ends it, here and, with `why`, at the others; the first reason stays. */
void ep_nodes_fail(ep_nodes_t *n, const char *why);
int ep_nodes_status(ep_nodes_t *n, char *err);

/*
 * Who is told: of failure, of a step that others want (or failure), of a
 * message, by the thread that listens; NULL: nobody, and then it is not told
 * any more when the call returns.
 */
void ep_nodes_on_fail(ep_nodes_t *n, void (*fail)(void *ctx,
    const char *why), void *ctx);
void ep_nodes_on_wake(ep_nodes_t *n, void (*wake)(void *ctx), void *ctx);
void ep_nodes_on_post(ep_nodes_t *n, void (*post)(void *ctx, uint32_t node,
    const void *data, size_t len), void *ctx);

/* A message to a node; 0, or -1 with the reason. */
int ep_nodes_post(ep_nodes_t *n, uint32_t node, const void *data, size_t len,
    char *err);

/*
 * This node has nothing more to do; waits until all say so, meanwhile steps
 * go on.  0, or -1 with the reason.
 */
int ep_nodes_linger(ep_nodes_t *n, char *err);

#endif /* EP_EP_NODES_H */
