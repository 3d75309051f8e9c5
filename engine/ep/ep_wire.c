/*
 * Sockets.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "ep/ep_wire.h"


#define WIRE_RETRY_MS  100
#define WIRE_BACKLOG   128
#define WIRE_BUFFER    (4 << 20)


static int wire_error(char *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static struct addrinfo *wire_resolve(const char *host, const char *port,
    int flags, char *err);
static int wire_try(const struct sockaddr *sa, socklen_t len, int64_t until);
static int wire_itself(int fd);
static int wire_poll(int fd, short events, int64_t until);
static int wire_from(const struct sockaddr_storage *sa, ep_wire_addr_t *a);


static int
wire_error(char *err, const char *fmt, ...)
{
    va_list  args;

    va_start(args, fmt);
    vsnprintf(err, ERR_LEN, fmt, args);
    va_end(args);

    return -1;
}


int64_t
ep_wire_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}


int
ep_wire_split(const char *at, char host[EP_WIRE_HOST],
    char port[EP_WIRE_PORT], char *err)
{
    char          *end;
    size_t         len;
    const char    *colon, *begin;
    unsigned long  n;

    colon = strrchr(at, ':');

    if (colon == NULL) {
        return wire_error(err, "\"%.100s\" has no port: write HOST:PORT", at);
    }

    begin = at;
    len = (size_t) (colon - at);

    if (len >= 2 && at[0] == '[' && colon[-1] == ']') {
        begin++;
        len -= 2;

    } else if (memchr(at, ':', len) != NULL) {
        return wire_error(err, "\"%.100s\" has several colons: write "
                          "[ADDRESS]:PORT", at);
    }

    n = strtoul(colon + 1, &end, 10);

    if (colon[1] < '0' || colon[1] > '9' || *end != '\0' || n == 0
        || n > 65535)
    {
        return wire_error(err, "\"%.100s\" has no port from 1 to 65535", at);
    }

    if (len == 0 || len >= EP_WIRE_HOST) {
        return wire_error(err, "\"%.100s\" has no host: write HOST:PORT", at);
    }

    memcpy(host, begin, len);
    host[len] = '\0';
    snprintf(port, EP_WIRE_PORT, "%lu", n);

    return 0;
}


static struct addrinfo *
wire_resolve(const char *host, const char *port, int flags, char *err)
{
    int               rc;
    struct addrinfo   hints, *list;

    memset(&hints, 0, sizeof(hints));
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags | AI_NUMERICSERV;

    rc = getaddrinfo(host, port, &hints, &list);

    if (rc != 0) {
        wire_error(err, "%.100s: %s", host, gai_strerror(rc));
        return NULL;
    }

    return list;
}


int
ep_wire_listen(const char *host, const char *port, uint16_t *bound, char *err)
{
    int                       fd, on;
    socklen_t                 len;
    struct addrinfo          *list;
    struct sockaddr_storage   sa;

    list = wire_resolve(host, port, AI_PASSIVE, err);
    if (list == NULL) {
        return -1;
    }

    on = 1;
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC,
                0);

    if (fd == -1
        || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == -1
        || bind(fd, list->ai_addr, list->ai_addrlen) == -1
        || listen(fd, WIRE_BACKLOG) == -1)
    {
        wire_error(err, "cannot listen on %.100s port %s: %s", host, port,
                   strerror(errno));

        if (fd != -1) {
            close(fd);
        }

        freeaddrinfo(list);
        return -1;
    }

    freeaddrinfo(list);
    len = sizeof(sa);

    if (bound != NULL && getsockname(fd, (struct sockaddr *) &sa, &len) == 0) {
        *bound = ntohs(sa.ss_family == AF_INET6
                       ? ((struct sockaddr_in6 *) &sa)->sin6_port
                       : ((struct sockaddr_in *) &sa)->sin_port);
    }

    return fd;
}


int
ep_wire_connect(const char *host, const char *port, int64_t until, char *err)
{
    int               fd, cause;
    struct addrinfo  *list, *a;
    struct timespec   pause;

    pause.tv_sec = 0;
    pause.tv_nsec = WIRE_RETRY_MS * 1000000;
    cause = 0;

    for ( ;; ) {
        list = wire_resolve(host, port, 0, err);

        for (a = list; a != NULL; a = a->ai_next) {
            fd = wire_try(a->ai_addr, a->ai_addrlen, until);

            if (fd != -1) {
                freeaddrinfo(list);
                return fd;
            }

            /* a try cut short by the limit says less than one before */

            cause = (errno == ETIMEDOUT && cause != 0) ? cause : errno;
        }

        if (list != NULL) {
            freeaddrinfo(list);
            wire_error(err, "%.100s port %s does not answer: %s", host, port,
                       strerror(cause));
        }

        if (ep_wire_now() + WIRE_RETRY_MS > until) {
            return -1;
        }

        nanosleep(&pause, NULL);
    }
}


int
ep_wire_dial(const ep_wire_addr_t *to, int64_t until, char *err)
{
    char  host[INET6_ADDRSTRLEN + 12], text[INET6_ADDRSTRLEN], port[8];

    if (inet_ntop(to->family == 6 ? AF_INET6 : AF_INET, to->addr, text,
                  sizeof(text))
        == NULL)
    {
        return wire_error(err, "an address of family %u", to->family);
    }

    if (to->scope != 0) {
        snprintf(host, sizeof(host), "%s%%%u", text, to->scope);

    } else {
        snprintf(host, sizeof(host), "%s", text);
    }

    snprintf(port, sizeof(port), "%u", to->port);

    return ep_wire_connect(host, port, until, err);
}


/* -1 with errno. */

static int
wire_try(const struct sockaddr *sa, socklen_t len, int64_t until)
{
    int        fd, cause;
    socklen_t  size;

    fd = socket(sa->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd == -1) {
        return -1;
    }

    cause = (connect(fd, sa, len) == 0) ? 0 : errno;

    if (cause == EINPROGRESS) {
        cause = ETIMEDOUT;
        size = sizeof(cause);

        if (wire_poll(fd, POLLOUT, until) == 1) {
            (void) getsockopt(fd, SOL_SOCKET, SO_ERROR, &cause, &size);
        }
    }

    if (cause == 0) {
        if (!wire_itself(fd)) {
            return fd;
        }

        cause = ECONNREFUSED;
    }

    close(fd);
    errno = cause;

    return -1;
}


/*
 * Where nobody listens yet at a port that the system may choose for this end,
 * it may, and the two ends are one; who comes to listen there cannot.
 */

static int
wire_itself(int fd)
{
    ep_wire_addr_t  here, there;

    return ep_wire_self(fd, &here) == 0 && ep_wire_peer(fd, &there) == 0
           && memcmp(&here, &there, sizeof(here)) == 0;
}


/* 1, 0 after `until`, or -1. */

static int
wire_poll(int fd, short events, int64_t until)
{
    int            rc;
    int64_t        left;
    struct pollfd  p;

    p.fd = fd;
    p.events = events;

    for ( ;; ) {
        left = until - ep_wire_now();

        if (left <= 0) {
            return 0;
        }

        rc = poll(&p, 1, left > 60000 ? 60000 : (int) left);

        if (rc > 0) {
            return 1;
        }

        if (rc == -1 && errno != EINTR) {
            return -1;
        }
    }
}


static int
wire_from(const struct sockaddr_storage *sa, ep_wire_addr_t *a)
{
    const struct sockaddr_in   *in;
    const struct sockaddr_in6  *in6;

    memset(a, 0, sizeof(ep_wire_addr_t));

    if (sa->ss_family == AF_INET) {
        in = (const struct sockaddr_in *) sa;
        a->family = 4;
        a->port = ntohs(in->sin_port);
        memcpy(a->addr, &in->sin_addr, 4);
        return 0;
    }

    if (sa->ss_family == AF_INET6) {
        in6 = (const struct sockaddr_in6 *) sa;
        a->family = 6;
        a->port = ntohs(in6->sin6_port);
        a->scope = in6->sin6_scope_id;
        memcpy(a->addr, &in6->sin6_addr, 16);
        return 0;
    }

    return -1;
}


int
ep_wire_peer(int fd, ep_wire_addr_t *a)
{
    socklen_t                len;
    struct sockaddr_storage  sa;

    len = sizeof(sa);

    return getpeername(fd, (struct sockaddr *) &sa, &len) == 0
           ? wire_from(&sa, a) : -1;
}


int
ep_wire_self(int fd, ep_wire_addr_t *a)
{
    socklen_t                len;
    struct sockaddr_storage  sa;

    len = sizeof(sa);

    return getsockname(fd, (struct sockaddr *) &sa, &len) == 0
           ? wire_from(&sa, a) : -1;
}


void
ep_wire_name(const ep_wire_addr_t *a, char *buf, size_t size)
{
    char  text[INET6_ADDRSTRLEN];

    if (inet_ntop(a->family == 6 ? AF_INET6 : AF_INET, a->addr, text,
                  sizeof(text))
        == NULL)
    {
        snprintf(text, sizeof(text), "?");
    }

    snprintf(buf, size, a->family == 6 ? "[%s]:%u" : "%s:%u", text, a->port);
}


int
ep_wire_accept(int fd)
{
    return accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}


/* What the system does not grant only costs speed. */

void
ep_wire_tune(int fd, uint32_t timeout_ms)
{
    int           on, size;
    unsigned int  ms;

    on = 1;
    size = WIRE_BUFFER;
    ms = timeout_ms;

    (void) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void) setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    (void) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));

    if (ms != 0) {
        (void) setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
    }
}


int
ep_wire_read(int fd, void *buf, size_t size, int64_t until, char *err)
{
    int       rc;
    char     *at;
    ssize_t   n;

    at = buf;

    while (size > 0) {
        n = recv(fd, at, size, 0);

        if (n > 0) {
            at += n;
            size -= (size_t) n;
            continue;
        }

        if (n == 0) {
            return wire_error(err, "the connection was closed");
        }

        if (errno == EINTR) {
            continue;
        }

        if (errno != EAGAIN) {
            return wire_error(err, "%s", strerror(errno));
        }

        rc = wire_poll(fd, POLLIN, until);

        if (rc <= 0) {
            return wire_error(err, "%s", rc == 0 ? "no answer in time"
                                                 : strerror(errno));
        }
    }

    return 0;
}


int
ep_wire_write(int fd, const void *buf, size_t size, int64_t until, char *err)
{
    int          rc;
    ssize_t      n;
    const char  *at;

    at = buf;

    while (size > 0) {
        n = send(fd, at, size, MSG_NOSIGNAL);

        if (n >= 0) {
            at += n;
            size -= (size_t) n;
            continue;
        }

        if (errno == EINTR) {
            continue;
        }

        if (errno != EAGAIN) {
            return wire_error(err, "%s", strerror(errno));
        }

        rc = wire_poll(fd, POLLOUT, until);

        if (rc <= 0) {
            return wire_error(err, "%s", rc == 0 ? "nothing is taken in time"
                                                 : strerror(errno));
        }
    }

    return 0;
}
