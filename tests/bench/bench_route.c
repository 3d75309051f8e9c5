/*
 * Routing by prefix beside other ways to choose a rank, in virtual time.
 *
 * A trace of conversations over several ranks: each begins with one of a few
 * system prompts (some are popular, most are not), has several turns with time
 * to think in between, and sends all that was said before with each turn.  A
 * rank works in steps: it takes requests while it has slots and KV blocks, has
 * a budget of prompt tokens a step, and makes one token for each sequence that
 * has its prompt.  Its cache keeps what requests left behind until the blocks
 * are needed; the least recently used go first, ends before beginnings.
 *
 *     random, round robin, least loaded     (in requests, exact)
 *     ours      the module's own code: tags, zone, choice; it sees the board
 *               as the last step left it, and the eviction log.  Where it has
 *               no opinion the engine takes the least loaded rank
 *     oracle    knows every cache: the longest cached prefix among ranks with
 *               at most 1.25 times the mean load
 *
 * Printed are the share of prompt tokens found in caches, and how far ranks
 * are apart: the busiest's share of requests in flight (mean over time) and of
 * tokens computed, each over the mean of all; then the mean time from arrival
 * to the first token.  At last the time that the module's code takes for a
 * prompt of 1 KB in a zone of 100,000 tags; the tree that stands in for
 * nginx's is deeper than that, so it takes no less.
 *
 * With --check: exit status 1 unless ours has at least 95 % of the oracle's
 * hits with both ratios at most 1.25.  Same seed, same figures.
 */

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shim/ngx_shim.h"
#include "ngx_http_llm_prefix.h"


#define STEP_MS       20
#define TOKEN_BYTES   4
#define BLOCK_BYTES   256            /* of a tag, and of a KV block */
#define BLOCK_TOKENS  (BLOCK_BYTES / TOKEN_BYTES)
#define TABLE         (1u << 17)     /* of a rank's cache */
#define TURNS_MAX     16
#define BATCH_MAX     256

enum { RANDOM, ROUND_ROBIN, LEAST, OURS, ORACLE, POLICIES };

static const char *const  names[] = { "random", "round robin", "least loaded",
                                      "ours", "oracle" };

typedef struct block_s  block_t;

struct block_s {
    block_t   *chain;
    block_t   *newer, *older;        /* while nobody holds it */
    uint64_t   tag;
    uint32_t   holders;
    int        tagged;               /* a SUBMIT has named it */
};

/* A conversation; its text is made again from its number when needed. */

typedef struct {
    uint64_t     id;
    uint32_t     system;
    uint32_t     turns;
    uint32_t     asked[TURNS_MAX];   /* bytes */
    uint32_t     said[TURNS_MAX];
    double       think[TURNS_MAX];   /* ms before a turn */
    double       begins;             /* ms */
} talk_t;

typedef struct request_s  request_t;

struct request_s {
    request_t   *next;
    talk_t      *talk;
    uint32_t     turn;
    uint32_t     tokens;             /* of the prompt */
    double       when;
    ngx_uint_t   n, n_after;         /* tags of the prompt, and with answer */
    uint32_t     rank;
    uint32_t     todo;               /* prompt tokens to compute */
    uint32_t     left;               /* tokens to generate */
    int          first;
    chan_tag_t  *tags;
};

typedef struct {
    block_t    *table[TABLE];
    block_t    *newest, *oldest;     /* blocks nobody holds */
    uint32_t    blocks;              /* in the table */
    request_t  *running, *waiting, **tail;
    uint32_t    idle;                /* of them, held by nobody */
    uint32_t    n_running, n_waiting;
    double      in_flight;           /* sum over steps */
    double      work;                /* tokens computed */
} rank_t;

typedef struct {
    double  hit, skew, work, ttft;
} result_t;


static uint64_t   seed = 1;
static uint32_t   n_ranks = 8;
static uint32_t   n_talks = 6000;
static uint32_t   n_systems = 40;
static uint32_t   n_blocks = 3072;
static uint32_t   budget = 512;
static double     talks_per_sec = 8;
static size_t     zone_size = 10 << 20;

static ngx_http_llm_pick_conf_t  conf = { 0, 4 };

static uint64_t   state;
static talk_t    *talks;
static uint32_t  *system_bytes;
static double    *system_share;
static rank_t    *ranks;
static request_t **events;           /* to come: a heap, the next first */
static uint32_t   n_events;
static int        policy;

static double     cached, prompts, first_ms;
static uint64_t   firsts;
static uint64_t   steps, turn_of;

static chan_board_t                  *board;
static ngx_slab_pool_t                pool;
static ngx_http_llm_prefix_t          zone;
static ngx_http_llm_prefix_engine_t  *engine;


static void usage(FILE *out);
static double cost(void);
static int parse_options(int argc, char **argv, int *check);
static uint64_t draw(void);
static double unit(void);
static double lognormal(double median, double sigma);
static void make_trace(void);
static void run(int p, result_t *out);
static void start_run(void);
static void end_run(void);
static void event_add(request_t *r);
static request_t *event_next(void);
static request_t *arrival(talk_t *talk, uint32_t turn, double when);
static void add_text(chan_body_t *body, uint32_t role, uint64_t id,
    uint32_t bytes);
static void arrive(request_t *r);
static uint32_t choose(request_t *r);
static uint32_t choose_least(void);
static uint32_t choose_ours(request_t *r);
static uint32_t choose_oracle(request_t *r);
static void step_rank(uint32_t i, double now);
static int admit(uint32_t i, request_t *r);
static void finish(uint32_t i, request_t *r, double now);
static void publish(void);
static double spent(const struct timespec *from, const struct timespec *to);
static block_t *block_find(rank_t *rk, uint64_t tag);
static void block_take(uint32_t i, uint64_t tag, int tagged);
static void block_hold(rank_t *rk, block_t *b);
static void block_drop(rank_t *rk, block_t *b);
static void block_evict(uint32_t i);
static uint32_t depth_of(rank_t *rk, request_t *r);


int
main(int argc, char **argv)
{
    int       i, check;
    result_t  r[POLICIES];

    check = 0;

    if (parse_options(argc, argv, &check) != 0) {
        return 2;
    }

    make_trace();

    printf("%u ranks, %u conversations, %u system prompts, %u KV blocks a"
           " rank, seed %llu\n\n", n_ranks, n_talks, n_systems, n_blocks,
           (unsigned long long) seed);
    printf("%-14s %8s %12s %12s %10s\n", "", "hits", "requests", "tokens",
           "ttft");
    printf("%-14s %8s %12s %12s %10s\n", "", "%", "max/mean", "max/mean",
           "ms");

    for (i = 0; i < POLICIES; i++) {
        run(i, &r[i]);
        printf("%-14s %8.2f %12.3f %12.3f %10.0f\n", names[i], r[i].hit * 100,
               r[i].skew, r[i].work, r[i].ttft);
    }

    printf("\nours has %.1f %% of the oracle's hits\n",
           100 * r[OURS].hit / r[ORACLE].hit);

    if (!check) {
        printf("1 KB prompt: %.0f ns to tag, look up, choose and note\n",
               cost());
        return 0;
    }

    return r[OURS].hit >= 0.95 * r[ORACLE].hit && r[OURS].skew <= 1.25
           && r[OURS].work <= 1.25 ? 0 : 1;
}


static void
usage(FILE *out)
{
    fputs("usage: bench_route [options]\n"
          "  --seed N           of the trace (1)\n"
          "  --ranks N          (8)\n"
          "  --talks N          conversations (6000)\n"
          "  --systems N        system prompts (40)\n"
          "  --blocks N         KV blocks of 64 tokens a rank (3072)\n"
          "  --rate N           conversations a second (8)\n"
          "  --budget N         prompt tokens a step (512)\n"
          "  --zone BYTES       size of the zone (10485760)\n"
          "  --min-match N      percent (0)\n"
          "  --max-skew N       requests (4)\n"
          "  --check            fail if ours is worse than promised\n", out);
}


static int
parse_options(int argc, char **argv, int *check)
{
    int  c;

    static const struct option  options[] = {
        { "seed", required_argument, NULL, 's' },
        { "ranks", required_argument, NULL, 'r' },
        { "talks", required_argument, NULL, 't' },
        { "systems", required_argument, NULL, 'S' },
        { "blocks", required_argument, NULL, 'b' },
        { "rate", required_argument, NULL, 'R' },
        { "budget", required_argument, NULL, 'B' },
        { "zone", required_argument, NULL, 'z' },
        { "min-match", required_argument, NULL, 'm' },
        { "max-skew", required_argument, NULL, 'k' },
        { "check", no_argument, NULL, 'c' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 }
    };

    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (c) {
        case 's': seed = strtoull(optarg, NULL, 10); break;
        case 'r': n_ranks = (uint32_t) atoi(optarg); break;
        case 't': n_talks = (uint32_t) atoi(optarg); break;
        case 'S': n_systems = (uint32_t) atoi(optarg); break;
        case 'b': n_blocks = (uint32_t) atoi(optarg); break;
        case 'R': talks_per_sec = atof(optarg); break;
        case 'B': budget = (uint32_t) atoi(optarg); break;
        case 'z': zone_size = strtoull(optarg, NULL, 10); break;
        case 'm': conf.min_match = (ngx_uint_t) atoi(optarg); break;
        case 'k': conf.max_skew = (ngx_uint_t) atoi(optarg); break;
        case 'c': *check = 1; break;

        case 'h':
            usage(stdout);
            exit(0);

        default:
            usage(stderr);
            return -1;
        }
    }

    if (n_ranks == 0 || n_ranks > CHAN_RANKS_MAX || n_talks == 0
        || n_systems == 0 || talks_per_sec <= 0 || budget == 0
        || n_blocks < 1024 || optind != argc)
    {
        usage(stderr);
        return -1;
    }

    return 0;
}


/* A prompt's way through the module's code, in nanoseconds. */

static double
cost(void)
{
    uint32_t          i, n, depth[CHAN_RANKS_MAX];
    uint64_t          chain, epoch;
    chan_tag_t        tags[16];
    chan_body_t       body;
    struct timespec   from, to;

    zone_size = 100000 * 64 + 65536;
    start_run();

    for (i = 0; i < 100000; i++) {
        tags[0].tag = draw();
        ngx_http_llm_prefix_held(&zone, engine, tags, 1, i % n_ranks,
                                 1 + i % n_ranks);
    }

    chain = ngx_http_llm_tags_seed("bench", NULL, 0);
    memset(&body, 0, sizeof(body));
    (void) clock_gettime(CLOCK_MONOTONIC, &from);

    for (i = 0; i < 100000; i++) {
        body.size = 0;
        add_text(&body, CHAN_ROLE_USER, i & ~3u, 1024);

        n = (uint32_t) ngx_http_llm_tags_count(&body, BLOCK_BYTES);
        ngx_http_llm_tags_make(&body, chain, BLOCK_BYTES, tags, n);
        (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
        ngx_http_llm_prefix_find(&zone, engine, tags, n, depth);
        (void) ngx_http_llm_pick(&zone, engine, board, &conf, depth, n, 1,
                                 &epoch);
        (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
        ngx_http_llm_prefix_held(&zone, engine, tags, n, i % n_ranks,
                                 1 + i % n_ranks);
    }

    (void) clock_gettime(CLOCK_MONOTONIC, &to);

    chan_body_free(&body);
    end_run();

    return spent(&from, &to) / 100000;
}


/* splitmix64 */

static uint64_t
draw(void)
{
    uint64_t  z;

    z = (state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);

    return z ^ (z >> 31);
}


static double
unit(void)
{
    return (double) (draw() >> 11) * 0x1p-53;
}


static double
lognormal(double median, double sigma)
{
    double  r, a;

    r = sqrt(-2 * log(1 - unit()));
    a = 2 * 3.14159265358979 * unit();

    return median * exp(sigma * r * cos(a));
}


static void
make_trace(void)
{
    double    at, share, x;
    talk_t   *t;
    uint32_t  i, k;

    state = seed;
    talks = calloc(n_talks, sizeof(*talks));
    system_bytes = calloc(n_systems, sizeof(*system_bytes));
    system_share = calloc(n_systems, sizeof(*system_share));
    ranks = calloc(n_ranks, sizeof(*ranks));
    events = calloc(n_talks, sizeof(*events));

    if (talks == NULL || events == NULL || system_bytes == NULL
        || system_share == NULL || ranks == NULL)
    {
        fputs("no memory\n", stderr);
        exit(2);
    }

    share = 0;

    for (i = 0; i < n_systems; i++) {
        x = lognormal(3000, 0.8);
        system_bytes[i] = x > 24000 ? 24000 : (uint32_t) x;
        share += 1 / (double) (i + 1);          /* Zipf */
        system_share[i] = share;
    }

    at = 0;

    for (i = 0; i < n_talks; i++) {
        t = &talks[i];
        at -= 1000 / talks_per_sec * log(1 - unit());
        t->id = i + 1;
        t->begins = at;
        x = unit() * share;

        while (system_share[t->system] < x && t->system < n_systems - 1) {
            t->system++;
        }

        for (t->turns = 1; t->turns < TURNS_MAX && unit() < 0.75; t->turns++) {
            /* geometric */
        }

        for (k = 0; k < t->turns; k++) {
            x = lognormal(400, 1.2);
            t->asked[k] = 16 + (x > 16000 ? 16000 : (uint32_t) x);
            x = lognormal(700, 0.8);
            t->said[k] = 16 + (x > 6000 ? 6000 : (uint32_t) x);
            t->think[k] = -12000 * log(1 - unit());
        }
    }
}


static void
run(int p, result_t *out)
{
    double      now, sum, max, work, work_max;
    uint32_t    i, busy;
    request_t  *r;

    policy = p;
    start_run();

    for (i = 0; i < n_talks; i++) {
        event_add(arrival(&talks[i], 0, talks[i].begins));
    }

    for (now = STEP_MS, busy = 1; n_events != 0 || busy; now += STEP_MS) {

        while (n_events != 0 && events[0]->when < now) {
            r = event_next();
            shim_clock((uint64_t) r->when);
            arrive(r);
        }

        shim_clock((uint64_t) now);
        steps++;
        busy = 0;

        for (i = 0; i < n_ranks; i++) {
            step_rank(i, now);
            busy |= ranks[i].n_running + ranks[i].n_waiting;
        }

        publish();
    }

    sum = max = work = work_max = 0;

    for (i = 0; i < n_ranks; i++) {
        sum += ranks[i].in_flight;
        max = ranks[i].in_flight > max ? ranks[i].in_flight : max;
        work += ranks[i].work;
        work_max = ranks[i].work > work_max ? ranks[i].work : work_max;
    }

    out->hit = cached / prompts;
    out->skew = max * n_ranks / sum;
    out->work = work_max * n_ranks / work;
    out->ttft = first_ms / (double) firsts;

    end_run();
}


static void
start_run(void)
{
    int                 fd;
    char                err[CHAN_ERR_LEN];
    uint32_t            i;
    ngx_str_t           name = ngx_string("bench");
    chan_board_model_t  m;

    state = seed ^ 0x5eed;
    cached = prompts = first_ms = 0;
    firsts = steps = turn_of = 0;

    memset(ranks, 0, n_ranks * sizeof(*ranks));

    for (i = 0; i < n_ranks; i++) {
        ranks[i].tail = &ranks[i].waiting;
    }

    if (chan_board_create(&board, n_ranks, &fd, err) != CHAN_OK) {
        fprintf(stderr, "%s\n", err);
        exit(2);
    }

    memset(&m, 0, sizeof(m));
    m.boot = 1;
    chan_board_set_model(board, &m);
    publish();

    shim_slab_start(zone_size);
    shim_clock(0);

    memset(&zone, 0, sizeof(zone));
    zone.shpool = &pool;
    zone.block = BLOCK_BYTES;

    if (ngx_http_llm_prefix_init(&zone) != NGX_OK
        || (engine = ngx_http_llm_prefix_engine(&zone, &name)) == NULL
        || ngx_http_llm_prefix_sync(&zone, engine, board, 1, 1) != NGX_OK)
    {
        fputs("the zone cannot be set up\n", stderr);
        exit(2);
    }
}


static void
end_run(void)
{
    block_t   *b, *next;
    uint32_t   i, k;

    for (i = 0; i < n_ranks; i++) {
        for (k = 0; k < TABLE; k++) {
            for (b = ranks[i].table[k]; b != NULL; b = next) {
                next = b->chain;
                free(b);
            }
        }
    }

    shim_slab_start(0);
    chan_board_close(board);
}


/* There is one event for a conversation at most. */

static void
event_add(request_t *r)
{
    uint32_t  i, up;

    for (i = n_events++; i != 0; i = up) {
        up = (i - 1) / 2;

        if (events[up]->when <= r->when) {
            break;
        }

        events[i] = events[up];
    }

    events[i] = r;
}


static request_t *
event_next(void)
{
    uint32_t    i, down;
    request_t  *first, *last;

    first = events[0];
    last = events[--n_events];

    for (i = 0; 2 * i + 1 < n_events; i = down) {
        down = 2 * i + 1;

        if (down + 1 < n_events
            && events[down + 1]->when < events[down]->when)
        {
            down++;
        }

        if (events[down]->when >= last->when) {
            break;
        }

        events[i] = events[down];
    }

    events[i] = last;

    return first;
}


/* The prompt of a turn, and its tags with the answer's. */

static request_t *
arrival(talk_t *talk, uint32_t turn, double when)
{
    uint32_t      k;
    uint64_t      chain;
    request_t    *r;
    chan_body_t   body;

    r = calloc(1, sizeof(*r));
    memset(&body, 0, sizeof(body));

    if (r == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    r->talk = talk;
    r->turn = turn;
    r->when = when;
    r->left = 1 + talk->said[turn] / TOKEN_BYTES;

    add_text(&body, CHAN_ROLE_SYSTEM, talk->system,
             system_bytes[talk->system]);
    r->tokens = system_bytes[talk->system];

    for (k = 0; k <= turn; k++) {
        add_text(&body, CHAN_ROLE_USER, talk->id << 8 | k << 1,
                 talk->asked[k]);
        r->tokens += talk->asked[k];

        if (k < turn) {
            add_text(&body, CHAN_ROLE_ASSISTANT, talk->id << 8 | k << 1 | 1,
                     talk->said[k]);
            r->tokens += talk->said[k];
        }
    }

    r->tokens /= TOKEN_BYTES;

    r->n = ngx_http_llm_tags_count(&body, BLOCK_BYTES);

    add_text(&body, CHAN_ROLE_ASSISTANT, talk->id << 8 | turn << 1 | 1,
             talk->said[turn]);
    r->n_after = ngx_http_llm_tags_count(&body, BLOCK_BYTES);
    r->tags = malloc((r->n_after + 1) * sizeof(chan_tag_t));

    if (r->tags == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    chain = ngx_http_llm_tags_seed("bench", NULL, 0);
    ngx_http_llm_tags_make(&body, chain, BLOCK_BYTES, r->tags, r->n_after);

    chan_body_free(&body);

    return r;
}


static void
add_text(chan_body_t *body, uint32_t role, uint64_t id, uint32_t bytes)
{
    uint32_t         i;
    uint64_t         saved;
    chan_message_t   m;

    static uint64_t  text[65536 / 8];

    saved = state;
    state = id * UINT64_C(0xd1342543de82ef95) + role;

    for (i = 0; i * 8 < bytes; i++) {
        text[i] = draw() & UINT64_C(0x0f0f0f0f0f0f0f0f);
        text[i] |= UINT64_C(0x6060606060606060);
    }

    state = saved;

    memset(&m, 0, sizeof(m));
    m.role = role;

    if (chan_body_put(body, CHAN_SEC_MESSAGE, &m, sizeof(m), text, bytes)
        != CHAN_OK)
    {
        fputs("no memory\n", stderr);
        exit(2);
    }
}


static double
spent(const struct timespec *from, const struct timespec *to)
{
    return (double) (to->tv_sec - from->tv_sec) * 1e9
           + (double) (to->tv_nsec - from->tv_nsec);
}


static void
arrive(request_t *r)
{
    rank_t  *rk;

    r->rank = choose(r);
    rk = &ranks[r->rank];

    r->next = NULL;
    *rk->tail = r;
    rk->tail = &r->next;
    rk->n_waiting++;
}


static uint32_t
choose(request_t *r)
{
    switch (policy) {

    case RANDOM:
        return (uint32_t) (unit() * n_ranks);

    case ROUND_ROBIN:
        return (uint32_t) (turn_of++ % n_ranks);

    case OURS:
        return choose_ours(r);

    case ORACLE:
        return choose_oracle(r);
    }

    return choose_least();
}


static uint32_t
choose_least(void)
{
    uint32_t  i, k, best;

    best = (uint32_t) (turn_of++ % n_ranks);

    for (k = 0, i = best; k < n_ranks; k++, i = (i + 1) % n_ranks) {
        if (ranks[i].n_running + ranks[i].n_waiting
            < ranks[best].n_running + ranks[best].n_waiting)
        {
            best = i;
        }
    }

    return best;
}


static uint32_t
choose_ours(request_t *r)
{
    uint32_t   depth[CHAN_RANKS_MAX];
    uint64_t   epoch;
    ngx_int_t  rank;

    (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
    ngx_http_llm_prefix_find(&zone, engine, r->tags, r->n, depth);
    rank = ngx_http_llm_pick(&zone, engine, board, &conf, depth, r->n, 1,
                             &epoch);

    return rank >= 0 ? (uint32_t) rank : choose_least();
}


static uint32_t
choose_oracle(request_t *r)
{
    double    mean;
    uint32_t  i, load, depth, best, best_depth, best_load;

    mean = 0;

    for (i = 0; i < n_ranks; i++) {
        mean += (double) (ranks[i].n_running + ranks[i].n_waiting) / n_ranks;
    }

    best = 0;
    best_depth = 0;
    best_load = UINT32_MAX;

    for (i = 0; i < n_ranks; i++) {
        load = ranks[i].n_running + ranks[i].n_waiting;

        if (load > 1.25 * mean) {
            continue;
        }

        depth = depth_of(&ranks[i], r);

        if (best_load == UINT32_MAX || depth > best_depth
            || (depth == best_depth && load < best_load))
        {
            best = i;
            best_depth = depth;
            best_load = load;
        }
    }

    return best;
}


/* How much of a prompt a rank has: tags from the first on. */

static uint32_t
depth_of(rank_t *rk, request_t *r)
{
    uint32_t  n;

    for (n = 0; n < r->n && block_find(rk, r->tags[n].tag) != NULL; n++) {
        /* void */
    }

    return n;
}


static void
step_rank(uint32_t i, double now)
{
    rank_t     *rk;
    uint32_t    left, take;
    request_t  *r, **p;

    rk = &ranks[i];

    while (rk->waiting != NULL && rk->n_running < BATCH_MAX) {
        r = rk->waiting;

        if (!admit(i, r)) {
            break;
        }

        rk->waiting = r->next;
        rk->tail = rk->waiting == NULL ? &rk->waiting : rk->tail;
        rk->n_waiting--;

        for (p = &rk->running; *p != NULL; p = &(*p)->next) {
            /* void */
        }

        r->next = NULL;
        *p = r;
        rk->n_running++;
    }

    rk->in_flight += rk->n_running + rk->n_waiting;
    left = budget;

    for (p = &rk->running; (r = *p) != NULL; /* void */) {

        if (r->todo != 0) {
            take = r->todo < left ? r->todo : left;
            r->todo -= take;
            left -= take;
            rk->work += take;

            if (r->todo != 0) {
                p = &r->next;
                continue;
            }
        }

        if (!r->first) {
            r->first = 1;
            first_ms += now - r->when;
            firsts++;
        }

        rk->work++;

        if (--r->left == 0) {
            *p = r->next;
            rk->n_running--;
            finish(i, r, now);
            continue;
        }

        p = &r->next;
    }
}


/* 0: not enough blocks; it waits. */

static int
admit(uint32_t i, request_t *r)
{
    rank_t    *rk;
    block_t   *b;
    uint32_t   k, depth, need;

    rk = &ranks[i];
    depth = depth_of(rk, r);
    need = 0;

    for (k = 0; k < r->n_after; k++) {
        b = block_find(rk, r->tags[k].tag);

        /* One that nobody holds can no longer be evicted. */

        need += b == NULL || b->holders == 0;
    }

    if (n_blocks - rk->blocks + rk->idle < need) {
        return 0;
    }

    /* Those that are there first, lest they make room for the others. */

    for (k = 0; k < r->n_after; k++) {
        b = block_find(rk, r->tags[k].tag);

        if (b != NULL) {
            block_hold(rk, b);
        }
    }

    for (k = 0; k < r->n_after; k++) {
        block_take(i, r->tags[k].tag, k < r->n);
    }

    r->todo = r->tokens - depth * BLOCK_TOKENS;
    r->todo = r->todo == 0 ? 1 : r->todo;
    cached += r->tokens - r->todo;
    prompts += r->tokens;

    if (policy == OURS) {
        (void) ngx_http_llm_prefix_sync(&zone, engine, board, 1, 0);
        ngx_http_llm_prefix_held(&zone, engine, r->tags, r->n, i, 1 + i);
    }

    return 1;
}


/* Its blocks stay as cache; then the client thinks about the next turn. */

static void
finish(uint32_t i, request_t *r, double now)
{
    uint32_t  k;
    talk_t   *talk;

    for (k = (uint32_t) r->n_after; k-- > 0; /* void */) {
        block_drop(&ranks[i], block_find(&ranks[i], r->tags[k].tag));
    }

    talk = r->talk;

    if (r->turn + 1 < talk->turns) {
        event_add(arrival(talk, r->turn + 1,
                          now + talk->think[r->turn + 1]));
    }

    free(r->tags);
    free(r);
}


static void
publish(void)
{
    uint32_t            i;
    chan_board_rank_t   rank;
    chan_board_state_t  s;

    memset(&s, 0, sizeof(s));
    s.step = steps;
    chan_board_set_state(board, &s);

    for (i = 0; i < n_ranks; i++) {
        memset(&rank, 0, sizeof(rank));
        rank.epoch = 1 + i;
        rank.running = ranks[i].n_running;
        rank.waiting = ranks[i].n_waiting;
        rank.blocks_total = n_blocks;
        rank.blocks_free = n_blocks - ranks[i].blocks + ranks[i].idle;
        chan_board_set_rank(board, i, &rank);
    }
}


static block_t *
block_find(rank_t *rk, uint64_t tag)
{
    block_t  *b;

    for (b = rk->table[tag % TABLE]; b != NULL; b = b->chain) {
        if (b->tag == tag) {
            return b;
        }
    }

    return NULL;
}


/* Adds a block that is not there yet. */

static void
block_take(uint32_t i, uint64_t tag, int tagged)
{
    rank_t   *rk;
    block_t  *b;

    rk = &ranks[i];
    b = block_find(rk, tag);

    if (b != NULL) {
        b->tagged |= tagged;
        return;
    }

    if (rk->blocks == n_blocks) {
        block_evict(i);
    }

    b = calloc(1, sizeof(*b));

    if (b == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    b->tag = tag;
    b->tagged = tagged;
    b->holders = 1;
    b->chain = rk->table[tag % TABLE];
    rk->table[tag % TABLE] = b;
    rk->blocks++;
}


static void
block_hold(rank_t *rk, block_t *b)
{
    if (b->holders++ == 0) {
        *(b->newer != NULL ? &b->newer->older : &rk->newest) = b->older;
        *(b->older != NULL ? &b->older->newer : &rk->oldest) = b->newer;
        rk->idle--;
    }
}


static void
block_drop(rank_t *rk, block_t *b)
{
    if (--b->holders == 0) {
        b->newer = NULL;
        b->older = rk->newest;
        *(b->older != NULL ? &b->older->newer : &rk->oldest) = b;
        rk->newest = b;
        rk->idle++;
    }
}


static void
block_evict(uint32_t i)
{
    rank_t    *rk;
    block_t   *b, **p;

    rk = &ranks[i];
    b = rk->oldest;

    block_hold(rk, b);

    for (p = &rk->table[b->tag % TABLE]; *p != b; p = &(*p)->chain) {
        /* void */
    }

    *p = b->chain;
    rk->blocks--;

    if (b->tagged) {
        (void) chan_board_evict(board, i, b->tag);
    }

    free(b);
}
