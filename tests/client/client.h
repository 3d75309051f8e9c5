/*
 * The parts of chan_client, see there, and what they share.  Whatever goes
 * wrong with the channel ends the program, with exit status 2.
 */

#ifndef CLIENT_H
#define CLIENT_H

#include <stddef.h>
#include <stdint.h>

#include "channel/chan_board.h"
#include "channel/chan_message.h"
#include "channel/channel.h"


typedef struct {
    uint64_t   id;
    double     submitted;
    double     last;
    uint32_t   n_tokens;
    uint32_t   reason;
    uint64_t   owed;
    uint64_t   logprobs;             /* hash of all of their bits */
    char      *text;
    size_t     text_len;
    char      *ids;
    size_t     ids_len;
} request_t;

typedef struct {
    const char      *socket;
    const char      *prompt;
    const char      *chat;
    const char      *system;
    const char      *ids;
    const char      *stop[CHAN_STOP_MAX];
    int              n_stops;
    int              text;
    int              dump;
    int              stall;
    long             cancel_after;
    long             total;
    long             concurrent;
    long             prompt_tokens;
    int              vary;
    int              timeout;
    chan_submit_t    submit;
} client_options_t;

typedef struct {
    request_t           *request;        /* by number */
    long                 begun, ended;
    int                  failed;         /* one of them did */
    uint64_t             tokens, prompt_tokens;
    chan_board_model_t   model;
} client_state_t;


extern client_options_t  opt;
extern client_state_t    client;


/* chan_client.c.  now() is in seconds. */

void die(const char *what, const char *err);
double now(void);


/*
 * lane.c.  lane_put() waits for room; lane_loop() submits and takes events
 * until all requests have ended.
 */

void lane_dial(void);
void lane_put(const struct iovec *part, int n);
void lane_loop(void);
void lane_close(void);


/*
 * submit.c.  submit_control() writes another record of a request.  mix() is a
 * pseudo-random number.
 */

void submit(long number);
void submit_control(request_t *r, uint16_t type, const void *data,
    size_t size);
uint64_t mix(uint64_t z);


/* events.c.  print_text() makes one line of whatever is in it. */

void events_take(const chan_record_t *rec);
void print_text(const char *s, size_t n);


/* figures.c: times of `n` requests, in seconds. */

void figures_open(size_t n);
void figures_first(double t);
void figures_between(double t);
void figures_print(double seconds);
void figures_close(void);


#endif /* CLIENT_H */
