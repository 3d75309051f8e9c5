/*
 * A load generator for server-sent events over HTTP/1.1.
 *
 *   sse_load -p PORT -c STREAMS -n REQUESTS [-u URI] [-b BODY] [-H HEADER]
 *
 * Keeps STREAMS requests under way on as many kept-alive connections until
 * REQUESTS have ended, and prints one JSON object: events (data lines) and
 * bytes received, redials, seconds, and percentiles in microseconds of the
 * time to the response's header, to the first event, and between events.
 * Any answer but 200, or a stream without "data: [DONE]", counts as failed.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>


#define LOAD_BUF  65536

typedef struct {
    double  *value;
    size_t   n;
    size_t   cap;
} series_t;

typedef struct {
    int     fd;
    int     header;              /* seen */
    int     ok;
    int     done;                /* "[DONE]" seen */
    long    events;              /* of this response */
    double  start;
    double  last;
    size_t  len;
    char    buf[LOAD_BUF];
} stream_t;

typedef struct {
    int       port;
    int       streams;
    long      requests;
    char     *request;
    size_t    request_len;

    int       epoll;
    long      started;
    long      ended;
    long      failed;
    long      redials;
    long      events;
    long      bytes;
    series_t  header;
    series_t  first;
    series_t  gap;
} load_t;


static int load_dial(load_t *l, stream_t *s);
static int load_send(load_t *l, stream_t *s);
static int load_read(load_t *l, stream_t *s, double now);
static size_t load_lines(load_t *l, stream_t *s, double now);
static int load_end(load_t *l, stream_t *s);
static void load_report(load_t *l, double seconds);


static double
now_us(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1e6 + ts.tv_nsec / 1e3;
}


static void
series_add(series_t *s, double v)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? 2 * s->cap : 4096;
        s->value = realloc(s->value, s->cap * sizeof(double));
        if (s->value == NULL) {
            perror("realloc");
            exit(1);
        }
    }

    s->value[s->n++] = v;
}


static int
series_cmp(const void *a, const void *b)
{
    double  x = *(const double *) a, y = *(const double *) b;

    return (x > y) - (x < y);
}


static void
series_print(const char *name, series_t *s)
{
    qsort(s->value, s->n, sizeof(double), series_cmp);
    printf(", \"%s_p50\": %.1f, \"%s_p99\": %.1f", name,
           s->n ? s->value[s->n / 2] : 0, name,
           s->n ? s->value[s->n * 99 / 100] : 0);
}


int
main(int argc, char **argv)
{
    int                 c, i, n;
    double              begin;
    load_t              l;
    stream_t           *stream;
    const char         *uri, *body, *header;
    struct epoll_event  ev[64];

    memset(&l, 0, sizeof(l));
    l.streams = 1;
    l.requests = 1;
    uri = "/v1/chat/completions";
    header = NULL;
    body = "{\"stream\":true,\"messages\":[{\"role\":\"user\","
           "\"content\":\"script: tokens=10\"}]}";

    while ((c = getopt(argc, argv, "p:c:n:u:b:H:")) != -1) {
        switch (c) {
        case 'p': l.port = atoi(optarg); break;
        case 'c': l.streams = atoi(optarg); break;
        case 'n': l.requests = atol(optarg); break;
        case 'u': uri = optarg; break;
        case 'b': body = optarg; break;
        case 'H': header = optarg; break;
        default: return 2;
        }
    }

    if (l.port <= 0 || l.streams <= 0 || l.requests < l.streams) {
        fprintf(stderr, "sse_load: -p PORT -c STREAMS -n REQUESTS\n");
        return 2;
    }

    l.request_len = strlen(uri) + strlen(body) + 256
                    + (header != NULL ? strlen(header) : 0);
    l.request = malloc(l.request_len);
    stream = calloc(l.streams, sizeof(stream_t));
    l.epoll = epoll_create1(0);
    if (l.request == NULL || stream == NULL || l.epoll < 0) {
        perror("sse_load");
        return 1;
    }

    l.request_len = snprintf(l.request, l.request_len,
                             "POST %s HTTP/1.1\r\nHost: localhost\r\n"
                             "Content-Type: application/json\r\n"
                             "Content-Length: %zu\r\n%s%s\r\n%s",
                             uri, strlen(body), header != NULL ? header : "",
                             header != NULL ? "\r\n" : "", body);

    begin = now_us();

    for (i = 0; i < l.streams; i++) {
        stream[i].fd = -1;
        if (load_dial(&l, &stream[i]) != 0 || load_send(&l, &stream[i]) != 0) {
            return 1;
        }
    }

    while (l.ended < l.requests) {
        n = epoll_wait(l.epoll, ev, 64, 30000);
        if (n <= 0) {
            fprintf(stderr, "sse_load: %s\n", n ? strerror(errno)
                                                : "nothing for 30 seconds");
            return 1;
        }

        for (i = 0; i < n; i++) {
            if (load_read(&l, ev[i].data.ptr, now_us()) != 0) {
                return 1;
            }
        }
    }

    load_report(&l, (now_us() - begin) / 1e6);
    return l.failed != 0;
}


static int
load_dial(load_t *l, stream_t *s)
{
    int                 one;
    struct sockaddr_in  sin;
    struct epoll_event  ev;

    one = 1;
    memset(&sin, 0, sizeof(sin));
    sin.sin_family = AF_INET;
    sin.sin_port = htons(l->port);
    sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

    s->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (s->fd < 0
        || connect(s->fd, (struct sockaddr *) &sin, sizeof(sin)) != 0)
    {
        perror("connect");
        return -1;
    }

    setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    fcntl(s->fd, F_SETFL, O_NONBLOCK);
    ev.events = EPOLLIN;
    ev.data.ptr = s;

    return epoll_ctl(l->epoll, EPOLL_CTL_ADD, s->fd, &ev);
}


static int
load_send(load_t *l, stream_t *s)
{
    s->header = 0;
    s->done = 0;
    s->events = 0;
    s->len = 0;
    s->start = now_us();
    l->started++;

    if (write(s->fd, l->request, l->request_len) != (ssize_t) l->request_len) {
        perror("write");
        return -1;
    }

    return 0;
}


static int
load_read(load_t *l, stream_t *s, double now)
{
    size_t   used;
    ssize_t  n;

    n = read(s->fd, s->buf + s->len, sizeof(s->buf) - s->len - 1);
    if (n < 0 && errno == EAGAIN) {
        return 0;
    }

    if (n <= 0) {
        /* The server closed: a redial unless it is the very end. */
        close(s->fd);
        l->redials++;
        if (!s->done) {
            l->failed++;
        }
        l->ended++;
        return l->started < l->requests
               ? load_dial(l, s) || load_send(l, s) : 0;
    }

    l->bytes += n;
    s->len += n;
    s->buf[s->len] = '\0';

    used = load_lines(l, s, now);
    memmove(s->buf, s->buf + used, s->len - used + 1);
    s->len -= used;

    if (s->len == sizeof(s->buf) - 1) {
        fprintf(stderr, "sse_load: a line of more than %d bytes\n", LOAD_BUF);
        return -1;
    }

    return s->done == 2 ? load_end(l, s) : 0;
}


/* Chunk sizes stand on lines of their own and are no "data:" lines. */

static size_t
load_lines(load_t *l, stream_t *s, double now)
{
    char  *p, *nl;

    for (p = s->buf; (nl = strchr(p, '\n')) != NULL; p = nl + 1) {

        if (!s->header) {
            if (strncmp(p, "HTTP/", 5) == 0) {
                s->ok = strncmp(p + 8, " 200", 4) == 0;
            }
            if (nl == p || (nl == p + 1 && *p == '\r')) {
                s->header = 1;
                series_add(&l->header, now - s->start);
                if (!s->ok) {
                    fprintf(stderr, "sse_load: not 200\n");
                    exit(1);
                }
            }
            continue;
        }

        if (s->done == 1 && (*p == '0' && p[1] == '\r')) {
            s->done = 2;
            continue;
        }

        if (strncmp(p, "data: ", 6) != 0) {
            continue;
        }

        if (strncmp(p + 6, "[DONE]", 6) == 0) {
            s->done = 1;
            continue;
        }

        l->events++;
        if (s->events++ == 0) {
            series_add(&l->first, now - s->start);
        } else {
            series_add(&l->gap, now - s->last);
        }
        s->last = now;
    }

    return p - s->buf;
}


static int
load_end(load_t *l, stream_t *s)
{
    l->ended++;
    if (l->started >= l->requests) {
        s->done = 1;
        return 0;
    }

    return load_send(l, s);
}


static void
load_report(load_t *l, double seconds)
{
    printf("{\"requests\": %ld, \"failed\": %ld, \"redials\": %ld, "
           "\"events\": %ld, \"bytes\": %ld, \"seconds\": %.3f",
           l->ended, l->failed, l->redials, l->events, l->bytes, seconds);
    series_print("header", &l->header);
    series_print("first", &l->first);
    series_print("gap", &l->gap);
    printf("}\n");
}
