/*
 * An engine without a model: speaks the whole channel protocol and answers
 * from the request's own text, so that the module can be tested for what it
 * does with any answer, failure or violation.  scripted/script.h has what a
 * test may ask for; without a script the words of the last user message or
 * of the prompt come back, one token each.
 *
 *     scripted_engine --socket PATH [options], see usage()
 *
 * --log writes one line per event: a name, then key=value words; text is
 * percent-encoded, `us` is the time since start.  SIGTERM ends the process
 * after an ERROR (shutdown) to every request in flight.
 */

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "scripted/engine.h"


#define IDLE_MS  200


static void usage(FILE *out);
static int parse_options(engine_t *e, int argc, char **argv);
static int set_up(engine_t *e);
static void publish_model(engine_t *e);
static int loop(engine_t *e);
static void notify_lanes(engine_t *e);
static int wait_events(engine_t *e, int ms);
static int fall_asleep(engine_t *e, lane_t *l);
static void lane_event(engine_t *e, lane_t *l, int sock, int bell);
static int read_signals(engine_t *e);
static void hang(engine_t *e);
static void shut_down(engine_t *e);


int
main(int argc, char **argv)
{
    int        rc;
    engine_t  *e;

    e = calloc(1, sizeof(*e));

    if (e == NULL) {
        return 1;
    }

    e->names = "scripted";
    e->fingerprint = FINGERPRINT;
    e->ranks = 1;
    e->version = CHAN_VERSION;
    e->max_lanes = LANES_MAX;
    e->mode = 0666;
    e->context = 65536;
    e->queue = 1024;

    if (parse_options(e, argc, argv) != 0 || set_up(e) != 0) {
        free(e);
        return 2;
    }

    rc = loop(e);
    shut_down(e);

    return rc;
}


static void
usage(FILE *out)
{
    fputs("usage: scripted_engine --socket PATH [options]\n"
          "  --model NAME[,ALIAS...]   names on the board (scripted)\n"
          "  --ranks N                 ranks on the board (1)\n"
          "  --fingerprint HEX         of the model, on the board\n"
          "  --context N               tokens, prompt and completion (65536)\n"
          "  --speculate N             guesses on the board, for each token N\n"
          "                            of which all but the last are right (0)\n"
          "  --delay MS                between tokens, unless scripted (0)\n"
          "  --script WORDS            a script for every request\n"
          "  --queue N                 requests that may wait (1024)\n"
          "  --slots N                 requests that run at once (no limit)\n"
          "  --max-lanes N             further workers are refused (256)\n"
          "  --refuse WHY              every worker: denied, limit or bad\n"
          "  --version N               channel version to claim\n"
          "  --no-template             chat is an error\n"
          "  --socket-mode OCTAL       of the socket (666)\n"
          "  --log FILE                one line per event\n", out);
}


static int
parse_options(engine_t *e, int argc, char **argv)
{
    int  c;

    static const struct option  options[] = {
        { "socket", required_argument, NULL, 's' },
        { "model", required_argument, NULL, 'm' },
        { "ranks", required_argument, NULL, 'r' },
        { "fingerprint", required_argument, NULL, 'f' },
        { "context", required_argument, NULL, 'c' },
        { "speculate", required_argument, NULL, 'g' },
        { "delay", required_argument, NULL, 'd' },
        { "script", required_argument, NULL, 'S' },
        { "queue", required_argument, NULL, 'q' },
        { "slots", required_argument, NULL, 'n' },
        { "max-lanes", required_argument, NULL, 'l' },
        { "refuse", required_argument, NULL, 'R' },
        { "version", required_argument, NULL, 'v' },
        { "no-template", no_argument, NULL, 't' },
        { "socket-mode", required_argument, NULL, 'M' },
        { "log", required_argument, NULL, 'L' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 }
    };

    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (c) {
        case 's': e->socket = optarg; break;
        case 'm': e->names = optarg; break;
        case 'r': e->ranks = atoi(optarg); break;
        case 'f': e->fingerprint = strtoull(optarg, NULL, 16); break;
        case 'c': e->context = atoll(optarg); break;
        case 'g': e->speculate = atoi(optarg); break;
        case 'd': e->delay = atoll(optarg); break;
        case 'S': e->script = optarg; break;
        case 'q': e->queue = atoll(optarg); break;
        case 'n': e->slots = atoll(optarg); break;
        case 'l': e->max_lanes = atoi(optarg); break;
        case 'v': e->version = atoi(optarg); break;
        case 't': e->no_template = 1; break;
        case 'M': e->mode = (mode_t) strtoul(optarg, NULL, 8); break;
        case 'L': e->log_path = optarg; break;

        case 'R':
            e->refuse = strcmp(optarg, "denied") == 0 ? CHAN_WELCOME_DENIED
                        : strcmp(optarg, "limit") == 0 ? CHAN_WELCOME_LIMIT
                        : CHAN_WELCOME_BAD;
            break;

        case 'h':
            usage(stdout);
            exit(0);

        default:
            usage(stderr);
            return -1;
        }
    }

    if (e->socket == NULL || optind != argc) {
        usage(stderr);
        return -1;
    }

    if (e->speculate < 0 || e->speculate > CHAN_DEPTH_MAX) {
        usage(stderr);
        return -1;
    }

    return 0;
}


static int
set_up(engine_t *e)
{
    int              i;
    char             err[CHAN_ERR_LEN];
    sigset_t         set;
    struct timespec  ts;

    e->start = now_us();
    e->now = e->start;

    (void) clock_gettime(CLOCK_REALTIME, &ts);
    e->boot = ((uint64_t) ts.tv_sec << 32) ^ ((uint64_t) ts.tv_nsec << 8)
              ^ (uint64_t) getpid();

    if (e->log_path != NULL) {
        e->log = fopen(e->log_path, "a");

        if (e->log == NULL) {
            fprintf(stderr, "%s: %s\n", e->log_path, strerror(errno));
            return -1;
        }

        setvbuf(e->log, NULL, _IOLBF, 1 << 16);
    }

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    (void) sigprocmask(SIG_BLOCK, &set, NULL);
    e->signals = signalfd(-1, &set, SFD_NONBLOCK|SFD_CLOEXEC);

    if (e->signals == -1) {
        perror("signalfd");
        return -1;
    }

    if (chan_board_create(&e->board, (uint32_t) e->ranks, &e->board_fd, err)
        != CHAN_OK)
    {
        fprintf(stderr, "%s\n", err);
        return -1;
    }

    for (i = 0; i < e->ranks; i++) {
        e->epoch[i] = e->boot ^ ((uint64_t) i << 32);
    }

    publish_model(e);
    publish(e);

    e->listener = chan_listen(e->socket, e->mode, (gid_t) -1, &e->lock, err);

    if (e->listener < 0) {
        fprintf(stderr, "%s\n", err);
        return -1;
    }

    log_event(e, "start", NULL, "model=%s ranks=%d pid=%d", e->names,
              e->ranks, (int) getpid());

    return 0;
}


static void
publish_model(engine_t *e)
{
    char                *p;
    chan_board_model_t   m;

    memset(&m, 0, sizeof(m));
    m.boot = e->boot;
    m.fingerprint = e->fingerprint;
    m.created = 1700000000;
    m.max_context = (uint64_t) e->context;
    m.vocab_size = 1 << 20;
    m.has_template = e->no_template == 0;
    m.speculate = (uint64_t) e->speculate;
    m.max_batch = e->slots > 0 ? (uint64_t) e->slots : 256;
    snprintf(m.names, sizeof(m.names) - 1, "%s", e->names);

    for (p = m.names; *p != '\0'; p++) {
        if (*p == ',') {
            *p = '\0';

            if (p[1] == '\0') {
                break;
            }
        }
    }

    chan_board_set_model(e->board, &m);
}


void
publish(engine_t *e)
{
    int                  i;
    request_t           *r;
    chan_board_rank_t    rank[CHAN_RANKS_MAX];
    chan_board_state_t   s;

    memset(&s, 0, sizeof(s));
    memset(rank, 0, sizeof(rank));

    for (r = e->requests; r != NULL; r = r->next) {
        i = (int) (r->rank % (uint32_t) e->ranks);

        if (r->state == REQ_QUEUED) {
            s.waiting++;
            rank[i].waiting++;

        } else if (r->state == REQ_RUNS) {
            s.running++;
            rank[i].running++;
        }
    }

    s.step = e->step;
    s.heartbeat_ms = chan_now_ms();
    s.lanes = e->n_lanes;
    s.requests = e->accepted;
    s.tokens = e->tokens;
    s.depth = (uint64_t) e->speculate;

    if (e->speculate > 0) {
        s.drafts = e->tokens;
        s.draft_tokens = e->tokens * (uint64_t) e->speculate;
    }

    for (i = 0; i < e->speculate - 1; i++) {
        s.accepted[i] = e->tokens;
    }

    for (i = 0; i < e->ranks; i++) {
        rank[i].epoch = e->epoch[i];
        rank[i].blocks_total = 1024;
        rank[i].blocks_free = 1024 - (rank[i].running > 1024
                                      ? 1024 : rank[i].running);
        rank[i].load_max = 1000;
        chan_board_set_rank(e->board, (uint32_t) i, &rank[i]);
    }

    chan_board_set_state(e->board, &s);
}


/* Until SIGTERM. */

static int
loop(engine_t *e)
{
    int      i, busy;
    int64_t  next;

    for ( ;; ) {
        e->now = now_us();

        for (i = 0; i < LANES_MAX; i++) {
            if (e->lane[i].state == LANE_OPEN) {
                lane_read(e, &e->lane[i]);
            }
        }

        next = INT64_MAX;
        busy = tick(e, &next);
        publish(e);

        if (e->hangs) {
            hang(e);
            return 0;
        }

        notify_lanes(e);

        if (busy) {
            i = 0;

        } else if (next == INT64_MAX) {
            i = IDLE_MS;

        } else {
            i = next <= e->now ? 0 : (int) ((next - e->now + 999) / 1000);
            i = i > IDLE_MS ? IDLE_MS : i;
        }

        if (wait_events(e, i) != 0) {
            return 0;
        }
    }
}


static void
notify_lanes(engine_t *e)
{
    int      i;
    lane_t  *l;

    for (i = 0; i < LANES_MAX; i++) {
        l = &e->lane[i];

        if (l->state != LANE_OPEN) {
            continue;
        }

        if (l->broken) {
            log_event(e, "violation", NULL, "lane=%d", l->number);
            lane_drop(e, l, l->why);
            continue;
        }

        if (l->wrote) {
            chan_ring_notify_data(&l->chan.out);
            l->wrote = 0;
        }

        if (l->read) {
            chan_ring_notify_room(&l->chan.in);
            l->read = 0;
        }
    }
}


/* Waits up to `ms` and sees to sockets; 1: the end was asked for. */

static int
wait_events(engine_t *e, int ms)
{
    int             i, n, rc;
    lane_t         *l, *of[LANES_MAX];
    struct pollfd   pfd[2 + 2 * LANES_MAX];

    pfd[0].fd = e->listener;
    pfd[0].events = POLLIN;
    pfd[1].fd = e->signals;
    pfd[1].events = POLLIN;
    n = 0;

    for (i = 0; i < LANES_MAX; i++) {
        l = &e->lane[i];

        if (l->state == LANE_OPEN && ms != 0) {
            rc = fall_asleep(e, l);
            ms = rc == 1 ? ms : 0;
        }

        if (l->state == LANE_FREE) {
            continue;
        }

        of[n] = l;
        pfd[2 + 2 * n].fd = l->chan.sock;
        pfd[2 + 2 * n].events = POLLIN;
        pfd[3 + 2 * n].fd = l->chan.bell_own;
        pfd[3 + 2 * n].events = POLLIN;
        n++;
    }

    if (poll(pfd, (nfds_t) (2 + 2 * n), ms) == -1) {
        return errno != EINTR;
    }

    e->now = now_us();

    for (i = 0; i < n; i++) {
        lane_event(e, of[i], pfd[2 + 2 * i].revents, pfd[3 + 2 * i].revents);
    }

    if (pfd[0].revents != 0) {
        lane_accept(e);
    }

    return read_signals(e);
}


/* 1: nothing to do for this lane till a bell rings. */

static int
fall_asleep(engine_t *e, lane_t *l)
{
    int   rc;
    char  err[CHAN_ERR_LEN];

    l->slept = 1;
    rc = chan_ring_sleep(&l->chan.in, err);

    if (rc == 1 && l->need != 0) {
        rc = chan_ring_wait_room(&l->chan.out, l->need, err);
        l->need = 0;
    }

    if (rc == CHAN_ERROR) {
        log_event(e, "violation", NULL, "lane=%d", l->number);
        lane_drop(e, l, err);
    }

    return rc;
}


static void
lane_event(engine_t *e, lane_t *l, int sock, int bell)
{
    char  err[CHAN_ERR_LEN];

    if (l->state == LANE_HELLO) {
        lane_hello(e, l);
        return;
    }

    if (bell != 0) {
        chan_bell_drain(l->chan.bell_own);
    }

    if (l->slept) {
        chan_ring_awake(&l->chan.in);
        l->slept = 0;
    }

    if (sock != 0 && chan_peer_alive(l->chan.sock, err) != CHAN_OK) {
        lane_drop(e, l, err);
    }
}


/* SIGUSR1 writes what is in flight to the log; others ask for the end: 1. */

static int
read_signals(engine_t *e)
{
    request_t                *r;
    struct signalfd_siginfo   si;

    while (read(e->signals, &si, sizeof(si)) == sizeof(si)) {

        if (si.ssi_signo != SIGUSR1) {
            return 1;
        }

        log_event(e, "state", NULL, "step=%" PRIu64 " lanes=%" PRIu64,
                  e->step, e->n_lanes);

        for (r = e->requests; r != NULL; r = r->next) {
            log_event(e, "request", r, "state=%d pos=%" PRId64
                      " credit=%" PRId64, r->state, r->pos, r->credit);
        }
    }

    return 0;
}


static void
hang(engine_t *e)
{
    sigset_t  set;
    int       sig;

    log_event(e, "hang", NULL, "step=%" PRIu64, e->step);

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    (void) sigwait(&set, &sig);
}


static void
shut_down(engine_t *e)
{
    int         i;
    lane_t     *l;
    request_t  *r;

    for (r = e->requests; r != NULL; r = r->next) {
        if (r->state != REQ_DONE) {
            (void) send_error(e, r, CHAN_E_SHUTDOWN,
                              "engine is shutting down", "", 1);
        }
    }

    for (i = 0; i < LANES_MAX; i++) {
        l = &e->lane[i];

        if (l->state == LANE_OPEN) {
            chan_ring_notify_data(&l->chan.out);
        }

        if (l->state != LANE_FREE) {
            lane_drop(e, l, "shutdown");
        }
    }

    log_event(e, "end", NULL, "step=%" PRIu64, e->step);

    (void) unlink(e->socket);
    (void) close(e->listener);
    (void) close(e->lock);
    (void) close(e->signals);
    chan_board_close(e->board);

    if (e->log != NULL) {
        (void) fclose(e->log);
    }

    free(e);
}
