/*
 * Inside ep_nodes.c and ep_swap.c.
 */

#ifndef EP_EP_NODES_INT_H
#define EP_EP_NODES_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "ep/ep_nodes.h"


typedef struct {
    char      magic[4];
    uint32_t  what;
    uint64_t  number;
    uint64_t  length;
} ep_frame_t;

_Static_assert(sizeof(ep_frame_t) == 24, "a frame's header");

typedef struct {
    ep_link_t    link;

    /* the listening thread's */
    ep_frame_t   head;
    char        *buf;
    size_t       got;
    int          gone;               /* its side connection has ended */
    int          mute;               /* its step connection */

    /* under `lock` */
    int          ready;
    int          bye;
} nodes_peer_t;

struct ep_nodes_s {
    uint32_t            nodes;
    uint32_t            self;
    uint32_t            timeout_ms;
    uint32_t            join_ms;

    pthread_t           thread;
    int                 started;
    atomic_int          quit;
    atomic_int          idle;        /* nobody reads the step connections */
    int                 wake_fd;     /* wakes the listening thread */
    int                 stop_fd;     /* readable once it has failed */
    uint64_t            drain;

    atomic_int          failing;
    atomic_int          failed;      /* and `why` is there */
    char                why[ERR_LEN];

    pthread_mutex_t     lock;
    pthread_condattr_t  attr;
    pthread_cond_t      news;
    int                 bye;

    pthread_mutex_t     send_lock;   /* of the side connections */
    pthread_mutex_t     tell_lock;   /* of those below, also while called */
    void              (*fail)(void *ctx, const char *why);
    void               *fail_ctx;
    void              (*wake)(void *ctx);
    void               *wake_ctx;
    void              (*post)(void *ctx, uint32_t node, const void *data,
                              size_t len);
    void               *post_ctx;

    uint64_t            swaps;
    nodes_peer_t        peer[EP_NODES_MAX];
};


static inline void
ep_frame_make(ep_frame_t *f, uint32_t what, uint64_t number, uint64_t length)
{
    memcpy(f->magic, "LLMF", 4);
    f->what = what;
    f->number = number;
    f->length = length;
}


static inline int
ep_frame_check(const ep_frame_t *f)
{
    return memcmp(f->magic, "LLMF", 4) == 0 ? 0 : -1;
}

#endif /* EP_EP_NODES_INT_H */
