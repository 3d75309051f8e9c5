/*
 * How the nodes of one engine find each other.
 *
 * Node 0 listens at the rendezvous address.  All numbers are little endian.
 *
 *   1. Every other node connects (again and again until its limit), and sends
 *      a HELLO of kind JOIN: who it is, the port where it listens itself, and
 *      what has to be the same everywhere: nodes, ranks of each, fingerprint
 *      of the model, and in `setup`, as text, all options that matter.
 *   2. Node 0 compares.  What does not fit it answers with an ANSWER that says
 *      why, and waits on.  When all have come, everyone gets an ANSWER with a
 *      random session number and the addresses of all.
 *   3. From each pair the node with the higher number connects to the other
 *      twice, with a HELLO of kind MEET that names the session and says which
 *      of the two it is: "step", where the steps' frames go (ep_nodes.h), or
 *      "side".  The connection of 1. is the side one to node 0.
 *
 * HELLO is 288 bytes:                      ANSWER is 1816 bytes:
 *
 *     0   8  "LLMNODES"                        0   8  "LLMNODES"
 *     8   4  version                           8   4  version
 *    12   4  size of this record              12   4  size of this record
 *    16   4  kind, 1 JOIN, 2 MEET             16   4  status, 0: welcome
 *    20   4  node                             20   4  nodes
 *    24   4  nodes                            24   8  session
 *    28   4  ranks of each                    32 248  why not, text
 *    32   8  session (MEET)                  280  24  of each of 64 nodes:
 *    40   8  fingerprint                              ep_wire_addr_t
 *    48   4  port (JOIN)
 *    52   4  channel, 0 step, 1 side (MEET)
 *    56 232  setup, text
 *
 * Whoever connects is a stranger until its HELLO is read and checked: it has
 * five seconds for that, and sixty-four of them may be at it.  Nothing is
 * encrypted and nobody proves who he is: the port belongs on a network of
 * one's own.  It is open until all have come.
 */

#ifndef EP_EP_RENDEZVOUS_H
#define EP_EP_RENDEZVOUS_H

#include <stdint.h>

#include "backend/backend.h"


#define EP_NODES_MAX    64
#define EP_SETUP_LEN    232
#define EP_VERSION      2

/* Connections to a node; -1 to oneself. */

typedef struct {
    int  step;
    int  side;
} ep_link_t;

typedef struct {
    uint32_t     nodes;              /* at least 2 */
    uint32_t     node;
    uint32_t     ranks;              /* of each node */
    uint64_t     fingerprint;
    const char  *setup;              /* fits EP_SETUP_LEN */
    const char  *at;                 /* "HOST:PORT" */
    uint32_t     join_ms;            /* until all have to be there */
    uint32_t     timeout_ms;         /* of the connections */
    void       (*log)(void *ctx, int bad, const char *text);
    void        *log_ctx;
} ep_rendezvous_t;


/*
 * Fills link[nodes] and `session`.  0, or -1 with the reason in `err`
 * (ERR_LEN) and nothing open.
 */
int ep_rendezvous(const ep_rendezvous_t *r, ep_link_t *link,
    uint64_t *session, char *err);

#endif /* EP_EP_RENDEZVOUS_H */
