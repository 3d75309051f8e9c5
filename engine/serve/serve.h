/*
 * The engine's side of the channel: lanes in, sequences out, events back.
 *
 *     server thread    sockets, bells, signals, the board's heartbeat
 *                      (serve.c, serve_socket.c, serve_lane.c)
 *     intake threads   check bodies, render templates, tokenise
 *                      (serve_intake.c, serve_prompt.c)
 *     step thread and  compute, and write events into the lanes
 *     leaders          (engine/sched, serve_output.c)
 *
 * No thread waits for a worker, and the step waits for none of the others.
 */

#ifndef SERVE_SERVE_H
#define SERVE_SERVE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sched/sched.h"
#include "tokenizer/tok.h"


#define SERVE_ERR_LEN  512

typedef struct {
    const char       *socket;
    mode_t            socket_mode;
    gid_t             socket_gid;    /* (gid_t) -1: none */
    uint32_t          max_lanes;
    uint64_t          grace_us;      /* for running sequences at the end */

    const char       *names;         /* NAME[,ALIAS…] */
    uint64_t          fingerprint;
    uint64_t          created;
    const tok_t      *tok;
    float             temperature;   /* of requests that do not say */
    float             top_p;
    const char       *ready;         /* logged when all is up */

    /* About a rank's experts, as the board has it; NULL: not known. */
    void            (*experts)(void *ctx, uint32_t rank, uint64_t *load_max,
                          uint64_t *moves);
    void             *experts_ctx;

    sched_options_t   sched;         /* step, ranks, KV; the rest is ours */
} serve_options_t;


/*
 * Serves until SIGTERM or SIGINT, or until a rank fails.  SIGTERM and SIGINT
 * must be blocked in all threads.  0, or -1 with the reason in `err`
 * (SERVE_ERR_LEN).
 */
int serve_run(const serve_options_t *opt, char *err);


/* Lines on stderr, as nginx writes them. */

enum { SERVE_ERROR = 0, SERVE_WARN, SERVE_NOTICE, SERVE_INFO, SERVE_DEBUG };

void serve_log_level(unsigned level);
void serve_log(unsigned level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif /* SERVE_SERVE_H */
