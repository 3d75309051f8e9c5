/*
 * The scripted engine's state, and what its parts call of each other.
 */

#ifndef SCRIPTED_ENGINE_H
#define SCRIPTED_ENGINE_H

#include <inttypes.h>
#include <stdio.h>
#include <sys/types.h>

#include "channel/channel.h"
#include "channel/chan_board.h"

#include "scripted/request.h"


#define LANES_MAX    256
#define FINGERPRINT  UINT64_C(0x5c81b7ed)

enum { LANE_FREE, LANE_HELLO, LANE_OPEN };

typedef struct {
    int          state;
    int          number;
    int64_t      since;
    chan_lane_t  chan;
    uint64_t     need;           /* room that a writer waits for */
    int          wrote, read, slept;
    int          broken;         /* violation met while writing */
    char         why[CHAN_ERR_LEN];
} lane_t;

typedef struct {
    const char     *socket, *log_path, *names, *script;
    int             ranks, version, max_lanes, refuse, no_template;
    int             speculate;
    mode_t          mode;
    uint64_t        fingerprint;
    int64_t         context, delay, queue, slots;

    FILE           *log;
    int             listener, lock, signals, board_fd;
    int             hangs;
    chan_board_t   *board;
    uint64_t        boot, step, accepted, tokens, n_lanes;
    uint64_t        epoch[CHAN_RANKS_MAX];
    int64_t         start, now;          /* us */
    lane_t          lane[LANES_MAX];
    request_t      *requests;            /* oldest first */
    uint64_t        buf[CHAN_RECORD_MAX / 8];
    uint8_t         delta[CHAN_RECORD_MAX];
} engine_t;


/* scripted_engine.c */

void publish(engine_t *e);


/* lane.c: connections, and records from and to workers */

void lane_accept(engine_t *e);
void lane_hello(engine_t *e, lane_t *l);
void lane_drop(engine_t *e, lane_t *l, const char *why);
void lane_read(engine_t *e, lane_t *l);

/* CHAN_AGAIN: no room now; the lane notes how much it waits for. */
int lane_write(lane_t *l, uint16_t type, uint64_t id, const void *p,
    size_t n);


/*
 * step.c: takes requests from the queue and makes each running one's next
 * tokens; `*next` becomes the time (us) of the next thing to do.  1: at once.
 */

int tick(engine_t *e, int64_t *next);


/* send.c: CHAN_OK, CHAN_AGAIN (no room) or CHAN_ERROR (lane broken) */

int send_accepted(engine_t *e, request_t *r);
int send_echo(engine_t *e, request_t *r);
int send_tokens(engine_t *e, request_t *r);
int send_finish(engine_t *e, request_t *r, uint32_t reason);

/* NULL, or -1 for retry: what the script says. */
int send_error(engine_t *e, request_t *r, uint32_t code, const char *message,
    const char *param, int64_t retry);


/* log.c */

int64_t now_us(void);
void log_event(engine_t *e, const char *name, request_t *r, const char *fmt,
    ...) __attribute__((format(printf, 4, 5)));
void log_submit(engine_t *e, request_t *r);


#endif /* SCRIPTED_ENGINE_H */
