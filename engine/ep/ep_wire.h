/*
 * TCP between nodes: addresses, connections, reading and writing with a time
 * limit.  Descriptors are non-blocking and close-on-exec.  Times are ms of
 * CLOCK_MONOTONIC, as ep_wire_now() gives them.  Errors: -1 with the reason
 * in `err` (ERR_LEN).
 */

#ifndef EP_EP_WIRE_H
#define EP_EP_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "backend/backend.h"


#define EP_WIRE_HOST  256
#define EP_WIRE_PORT  8

/* An address without its family's name for it. */

typedef struct {
    uint8_t   family;                /* 4 or 6 */
    uint8_t   zero;
    uint16_t  port;
    uint8_t   addr[16];              /* 4 of them, in network order */
    uint32_t  scope;                 /* of a link-local one, here */
} ep_wire_addr_t;


int64_t ep_wire_now(void);

/* "HOST:PORT" or "[ADDRESS]:PORT" in parts. */
int ep_wire_split(const char *at, char host[EP_WIRE_HOST],
    char port[EP_WIRE_PORT], char *err);

/* The listening socket; its port goes to `*bound`, if that is not NULL. */
int ep_wire_listen(const char *host, const char *port, uint16_t *bound,
    char *err);

/* Tries again until it is answered, or `until`. */
int ep_wire_connect(const char *host, const char *port, int64_t until,
    char *err);
int ep_wire_dial(const ep_wire_addr_t *to, int64_t until, char *err);

/* Who is at the other end, or at this one. */
int ep_wire_peer(int fd, ep_wire_addr_t *a);
int ep_wire_self(int fd, ep_wire_addr_t *a);
void ep_wire_name(const ep_wire_addr_t *a, char *buf, size_t size);

/* Accepts, NONBLOCK; -1 without a reason if there is nobody. */
int ep_wire_accept(int fd);

/* No delay, and an end to what nobody acknowledges. */
void ep_wire_tune(int fd, uint32_t timeout_ms);

/* All of it. */
int ep_wire_read(int fd, void *buf, size_t size, int64_t until, char *err);
int ep_wire_write(int fd, const void *buf, size_t size, int64_t until,
    char *err);

#endif /* EP_EP_WIRE_H */
