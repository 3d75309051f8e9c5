/*
 * Recorded steps of several ranks, in emulation: a talk of uneven steps, with
 * guesses, gives the same bits with 1, 2 and 4 ranks, on one device and on
 * devices of their own, as it does where nothing is recorded; steps were
 * replayed indeed; a rank that fails, leaves or does not come ends the step
 * with words on all ranks and in time.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <time.h>

#include "backend/cuda/be_cuda.h"
#include "ep/exchange.h"
#include "model/model.h"
#include "unit/model_dir.h"


#define SEQS     4
#define TOKENS   128
#define BLOCKS   (2 * SEQS)
#define RANKS    4
#define ROWS     96
#define VOCAB    101                 /* as model_dir.h has it, and */
#define EXPERTS  12
#define TOP_K    3
#define HIDDEN   72
#define PASSES   2                   /* of guesses after each step */
#define LIMIT    2000                /* ms, where something is to fail */

/*
 * Rows of each sequence in each step; sequence s is of rank s % ranks.  Of more
 * than two only the last one gives logits.
 */

static const uint8_t  script[][SEQS] = {
    { 13, 1, 7, 20 },
    { 1, 1, 1, 1 }, { 1, 1, 1, 1 }, { 1, 1, 1, 1 }, { 1, 1, 1, 1 },
    { 2, 0, 1, 0 }, { 2, 0, 1, 0 }, { 2, 0, 1, 0 }, { 0, 1, 0, 1 },
    { 0, 3, 0, 0 }, { 0, 3, 0, 0 }, { 0, 3, 0, 0 }, { 0, 3, 0, 0 },
    { 30, 1, 0, 1 },
    { 1, 1, 1, 1 }, { 0, 0, 0, 1 }, { 1, 0, 0, 0 }, { 1, 0, 0, 0 },
    { 1, 1, 1, 1 }, { 1, 2, 0, 2 }, { 2, 1, 2, 1 }, { 2, 2, 2, 2 },
    { 1, 1, 1, 1 }, { 1, 1, 1, 1 }, { 1, 1, 1, 1 }
};

#define STEPS    (sizeof(script) / sizeof(script[0]))
#define REPLAY   4                   /* a step that is replayed, */
#define RECORD   2                   /* and one that is recorded */

typedef enum { KEPT = 0, EACH, ONCE, ONE } forget_t;

typedef enum {
    NONE = 0, LEAVES, BREAKS, LATE, STUCK, NO_KERNEL, NO_GRAPH
} fault_t;

typedef struct {
    const char  *name;
    uint32_t     ranks;
    int          devices;
    int          mtp;
    int          exact;
    forget_t     forget;             /* in each step, in one, by one rank */
    fault_t      fault;
    uint32_t     at;                 /* the step of the fault */
} way_t;

typedef struct {
    float  step[STEPS][SEQS][2][VOCAB];
    float  draft[STEPS][PASSES][SEQS][VOCAB];
} result_t;

typedef struct {
    const way_t    *way;
    model_t        *model;
    ep_map_t       *map;
    result_t       *out;
    uint32_t        rank;
    ep_exchange_t  *ex;
    be_t           *be;
    model_rank_t   *mr;
    int             rc;
    int             open;            /* a capture was left */
    uint32_t        steps;           /* that succeeded */
    char            err[ERR_LEN];

    int32_t         id[ROWS];
    uint32_t        pos[ROWS];
    uint32_t        seq[ROWS];
    uint32_t        from[ROWS];
    uint32_t        want[ROWS];
    uint32_t        done[SEQS];
    float           logits[ROWS][VOCAB];
} rank_t;

typedef int (*combine_pt)(ep_exchange_t *ex, char *err);


static int32_t         ids[SEQS][TOKENS];
static int32_t         blocks[SEQS][2];
static const int32_t  *tables[SEQS];
static uint32_t        first_pos[SEQS];
static combine_pt      the_combine;
static model_t        *the_model;
static model_dir_t    *the_dir;


static void
nap(uint32_t ms)
{
    struct timespec  ts;

    ts.tv_sec = ms / 1000;
    ts.tv_nsec = (long) (ms % 1000) * 1000000;
    nanosleep(&ts, NULL);
}


static void
stuck(void *data)
{
    (void) data;
    nap(2 * LIMIT);
}


/* Leaves in the midst of a layer. */

static int
breaks(ep_exchange_t *ex, char *err)
{
    ex->abort(ex);

    return the_combine(ex, err);
}


static int
open_rank(rank_t *r)
{
    be_options_t           be;
    model_rank_options_t   opt;

    memset(&be, 0, sizeof(be));
    be.compute = BE_BF16;
    be.threads = 1;
    be.rank = r->rank;
    be.pin = -1;
    be.fixed = 1;

    r->be = be_cuda_open(&be, r->err);
    if (r->be == NULL) {
        return -1;
    }

    opt.max_rows = ROWS;
    opt.max_logits = ROWS;
    opt.kv_blocks = BLOCKS;
    opt.mtp = r->way->mtp;

    r->mr = model_rank_open(r->model, r->be, r->ex, r->map, &opt, r->err);

    return r->mr != NULL ? 0 : -1;
}


/* The rows of step n, or, in a pass of guesses, of the tokens behind them. */

static void
fill(rank_t *r, uint32_t n, int pass, be_batch_t *b, uint32_t *logits)
{
    uint32_t  s, i, k, rows, at;

    memset(b, 0, sizeof(be_batch_t));
    *logits = 0;
    k = 0;
    at = 0;

    for (s = r->rank; s < SEQS; s += r->way->ranks) {
        rows = script[n][s];

        for (i = 0; i < rows; i++) {

            if (pass > 0 && i + 1 < rows) {
                continue;
            }

            r->seq[k] = s;
            r->pos[k] = r->done[s] + i + (uint32_t) (pass + 1);
            r->id[k] = ids[s][r->pos[k]];
            r->from[k] = (pass > 0) ? at : k;

            if (pass < 0 ? rows <= 2 || i + 1 == rows : i + 1 == rows) {
                r->want[(*logits)++] = k;
            }

            k++;
        }

        at += (rows > 0);
    }

    b->n_rows = k;
    b->id = r->id;
    b->pos = r->pos;
    b->seq = r->seq;
    b->n_seqs = SEQS;
    b->blocks = tables;
    b->first = (pass < 0) ? NULL : first_pos;
}


static void
keep(rank_t *r, uint32_t n, int pass)
{
    uint32_t  s, i, k, rows;

    for (s = r->rank, k = 0; s < SEQS; s += r->way->ranks) {
        rows = script[n][s];

        if (pass >= 0 && rows > 0) {
            memcpy(r->out->draft[n][pass][s], r->logits[k++],
                   sizeof(r->logits[0]));
        }

        if (pass < 0) {
            rows = (rows > 2) ? 1 : rows;

            for (i = 0; i < rows; i++) {
                memcpy(r->out->step[n][s][i], r->logits[k++],
                       sizeof(r->logits[0]));
            }
        }
    }
}


/* What is to go wrong, or to be forgotten, before step n. */

static int
upset(rank_t *r, uint32_t n)
{
    const way_t  *way;
    cudaStream_t  stream;

    way = r->way;
    stream = ((be_cuda_t *) r->be)->stream;

    if (way->forget == EACH || (way->forget == ONCE && n == way->at)
        || (way->forget == ONE && n == way->at && r->rank == 1))
    {
        r->be->forget(r->be);
    }

    if (way->fault == NONE || n != way->at || r->rank != way->ranks - 1) {
        return 0;
    }

    switch (way->fault) {

    case LEAVES:
        r->ex->abort(r->ex);
        snprintf(r->err, ERR_LEN, "it left");
        return -1;

    case BREAKS:
        the_combine = r->ex->combine;
        r->ex->combine = breaks;
        return 0;

    case LATE:                       /* a meeting has the limit twice */
        nap(3 * LIMIT);
        return 0;

    case STUCK:
        return cudaLaunchHostFunc(stream, stuck, NULL) != 0;

    case NO_KERNEL:
        emu_fail_launch(60);
        return 0;

    case NO_GRAPH:
        emu_fail_graph(1);
        return 0;

    default:
        return 0;
    }
}


static int
step(rank_t *r, uint32_t n)
{
    int         pass, none;
    uint32_t    logits;
    be_batch_t  b;

    for (pass = -1; pass < (r->way->mtp ? PASSES : 0); pass++) {
        fill(r, n, pass, &b, &logits);

        none = (b.n_rows == 0);

        if (pass < 0) {
            r->rc = model_step(r->mr, &b, none ? NULL : r->want, logits,
                               r->logits[0], r->err);

        } else {
            r->rc = model_draft(r->mr, &b, none ? NULL : r->from,
                                (uint32_t) pass, none ? NULL : r->want, logits,
                                r->logits[0], r->err);
        }

        if (r->rc != 0) {
            return -1;
        }

        keep(r, n, pass);
    }

    return 0;
}


static void *
run(void *arg)
{
    rank_t                   *r;
    uint32_t                  n, s;
    cudaStreamCaptureStatus   status;

    r = arg;
    r->rc = open_rank(r);

    if (r->rc != 0) {
        r->ex->abort(r->ex);
        return NULL;
    }

    for (n = 0; n < STEPS && r->rc == 0; n++) {
        r->rc = upset(r, n);

        if (r->rc == 0 && step(r, n) == 0) {
            r->steps++;
        }

        for (s = 0; s < SEQS; s++) {
            r->done[s] += script[n][s];
        }
    }

    /* whatever happened, the stream is free */

    if (cudaStreamIsCapturing(((be_cuda_t *) r->be)->stream, &status) != 0
        || status != cudaStreamCaptureStatusNone)
    {
        r->open = 1;
    }

    return NULL;
}


/* All ranks, in threads; ranks' records are left in r, closed. */

static void
compute(const way_t *way, result_t *out, rank_t *r, uint64_t *recorded,
    uint64_t *replayed)
{
    char            err[ERR_LEN];
    uint32_t        i;
    ep_map_t       *map;
    pthread_t       thread[RANKS];
    be_cuda_t      *cuda;
    ep_exchange_t  *ex[RANKS];

    emu_set_device(way->devices, 4, (size_t) 8 << 30);
    memset(out, 0, sizeof(result_t));
    memset(r, 0, RANKS * sizeof(rank_t));

    map = ep_map_open(EXPERTS, way->ranks, 0, err);
    assert_non_null(map);

    if (way->ranks == 1) {
        ex[0] = ep_local_open(EXPERTS, err);
        assert_non_null(ex[0]);

    } else {
        assert_int_equal(ep_peer_open(ex, way->ranks, ROWS, TOP_K,
                                      EXPERTS, HIDDEN, way->exact, 0,
                                      way->fault != NONE ? LIMIT : 120000,
                                      err), 0);
    }

    for (i = 0; i < way->ranks; i++) {
        r[i].way = way;
        r[i].model = the_model;
        r[i].map = map;
        r[i].out = out;
        r[i].rank = i;
        r[i].ex = ex[i];
        assert_int_equal(pthread_create(&thread[i], NULL, run, &r[i]), 0);
    }

    for (i = 0; i < way->ranks; i++) {
        pthread_join(thread[i], NULL);
    }

    for (i = 0; i < way->ranks; i++) {
        cuda = (be_cuda_t *) r[i].be;
        recorded[i] = (cuda != NULL) ? cuda->recorded : 0;
        replayed[i] = (cuda != NULL) ? cuda->replayed : 0;
        model_rank_close(r[i].mr);

        if (r[i].be != NULL) {
            r[i].be->close(r[i].be);
        }
    }

    for (i = 0; i < way->ranks; i++) {
        ex[i]->close(ex[i]);
    }

    ep_map_close(map);
    emu_set_device(1, 4, (size_t) 8 << 30);
    assert_int_equal(emu_in_use(), 0);
}


/* A way against that without recordings. */

static void
same(const way_t *way, const result_t *want, uint64_t least)
{
    uint32_t          i, n, s;
    uint64_t          recorded[RANKS], replayed[RANKS];
    static rank_t     r[RANKS];
    static result_t   got;

    compute(way, &got, r, recorded, replayed);

    for (i = 0; i < way->ranks; i++) {
        if (r[i].rc != 0) {
            fail_msg("%s: rank %u: %s", way->name, i, r[i].err);
        }

        if (recorded[i] != recorded[0] || replayed[i] != replayed[0]
            || replayed[i] < least || (least == 0 && recorded[i] != 0))
        {
            fail_msg("%s: rank %u: %u steps recorded, %u replayed; rank 0: "
                     "%u and %u", way->name, i, (uint32_t) recorded[i],
                     (uint32_t) replayed[i], (uint32_t) recorded[0],
                     (uint32_t) replayed[0]);
        }

        assert_int_equal(r[i].open, 0);
    }

    for (n = 0; n < STEPS; n++) {
        for (s = 0; s < SEQS; s++) {
            if (memcmp(want->step[n][s], got.step[n][s],
                       sizeof(got.step[n][s]))
                != 0)
            {
                fail_msg("%s: step %u: logits of sequence %u differ",
                         way->name, n, s);
            }

            for (i = 0; i < PASSES; i++) {
                if (memcmp(want->draft[n][i][s], got.draft[n][i][s],
                           sizeof(got.draft[n][i][s]))
                    != 0)
                {
                    fail_msg("%s: step %u: guesses %u of sequence %u differ",
                             way->name, n, i, s);
                }
            }
        }
    }

    print_message("%s: %u steps recorded, %u replayed\n", way->name,
                  (uint32_t) recorded[0], (uint32_t) replayed[0]);
}


static void
reference(const way_t *way, result_t *want)
{
    uint32_t        i;
    uint64_t        recorded[RANKS], replayed[RANKS];
    static rank_t   r[RANKS];

    compute(way, want, r, recorded, replayed);

    for (i = 0; i < way->ranks; i++) {
        if (r[i].rc != 0) {
            fail_msg("%s: rank %u: %s", way->name, i, r[i].err);
        }

        assert_int_equal(recorded[i], 0);
    }
}


static void
test_same(void **state)
{
    static result_t      want;
    static const way_t   none = {
        "nothing recorded", 1, 1, 0, 1, EACH, NONE, 0
    };
    static const way_t   ways[] = {
        { "one rank", 1, 1, 0, 1, KEPT, NONE, 0 },
        { "two ranks, one device", 2, 1, 0, 1, KEPT, NONE, 0 },
        { "two ranks, two devices", 2, 2, 0, 1, KEPT, NONE, 0 },
        { "four ranks, one device", 4, 1, 0, 1, KEPT, NONE, 0 },
        { "four ranks, four devices", 4, 4, 0, 1, KEPT, NONE, 0 }
    };
    uint32_t             i;

    (void) state;

    reference(&none, &want);

    for (i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        same(&ways[i], &want, 5);
    }
}


/* Ranks of which some share a device are as they were. */

static void
test_mixed(void **state)
{
    static result_t      want;
    static const way_t   none = {
        "nothing recorded", 1, 1, 0, 1, EACH, NONE, 0
    };
    static const way_t   mixed = {
        "four ranks, two devices", 4, 2, 0, 1, KEPT, NONE, 0
    };

    (void) state;

    reference(&none, &want);
    same(&mixed, &want, 0);
}


static void
test_mtp(void **state)
{
    static result_t      want;
    static const way_t   none = {
        "guesses, nothing recorded", 1, 1, 1, 1, EACH, NONE, 0
    };
    static const way_t   ways[] = {
        { "guesses, two ranks, one device", 2, 1, 1, 1, KEPT, NONE, 0 },
        { "guesses, two ranks, two devices", 2, 2, 1, 1, KEPT, NONE, 0 },
        { "guesses, four ranks, one device", 4, 1, 1, 1, KEPT, NONE, 0 },
        { "guesses, four ranks, four devices", 4, 4, 1, 1, KEPT, NONE, 0 }
    };
    uint32_t             i;

    (void) state;

    reference(&none, &want);

    for (i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        same(&ways[i], &want, 15);
    }
}


/* Contributions in BF16: the same where nothing is recorded. */

static void
test_rounded(void **state)
{
    static result_t      want;
    static const way_t   none = {
        "rounded, nothing recorded", 2, 1, 0, 0, EACH, NONE, 0
    };
    static const way_t   ways[] = {
        { "rounded, one device", 2, 1, 0, 0, KEPT, NONE, 0 },
        { "rounded, two devices", 2, 2, 0, 0, KEPT, NONE, 0 }
    };

    (void) state;

    reference(&none, &want);
    same(&ways[0], &want, 5);
    same(&ways[1], &want, 5);
}


/* What all forget, or one alone, nobody replays. */

static void
test_forget(void **state)
{
    static result_t      want;
    static const way_t   none = {
        "nothing recorded", 1, 1, 0, 1, EACH, NONE, 0
    };
    static const way_t   ways[] = {
        { "all forget, one device", 2, 1, 0, 1, ONCE, NONE, 7 },
        { "all forget, two devices", 2, 2, 0, 1, ONCE, NONE, 7 },
        { "one forgets, one device", 2, 1, 0, 1, ONE, NONE, REPLAY },
        { "one forgets, two devices", 2, 2, 0, 1, ONE, NONE, REPLAY }
    };
    uint32_t             i;

    (void) state;

    reference(&none, &want);

    for (i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        same(&ways[i], &want, 2);
    }
}


/* All ranks end with words, in time, in that step; `word` is in one's. */

static void
ends(const way_t *way, const char *word)
{
    int               found;
    uint32_t          i;
    uint64_t          recorded[RANKS], replayed[RANKS];
    struct timespec   from, to;
    static rank_t     r[RANKS];
    static result_t   got;

    clock_gettime(CLOCK_MONOTONIC, &from);
    compute(way, &got, r, recorded, replayed);
    clock_gettime(CLOCK_MONOTONIC, &to);

    emu_fail_launch(0);
    emu_fail_graph(0);
    found = 0;

    for (i = 0; i < way->ranks; i++) {
        print_message("%s: rank %u: %s\n", way->name, i, r[i].err);
        found |= strstr(r[i].err, word) != NULL;

        if (r[i].rc == 0 || r[i].steps != way->at || r[i].open
            || r[i].err[0] == '\0')
        {
            fail_msg("%s: rank %u goes on after step %u: %d, %u, %d",
                     way->name, i, way->at, r[i].rc, r[i].steps, r[i].open);
        }
    }

    if (!found) {
        fail_msg("%s: nobody says \"%s\"", way->name, word);
    }

    assert_true(to.tv_sec - from.tv_sec < 30);
}


static void
test_faults_shared(void **state)
{
    static const way_t  ways[] = {
        { "leaves", 3, 1, 0, 1, KEPT, LEAVES, REPLAY },
        { "breaks", 3, 1, 0, 1, KEPT, BREAKS, RECORD },
        { "late", 3, 1, 0, 1, KEPT, LATE, REPLAY },
        { "no kernel", 3, 1, 0, 1, KEPT, NO_KERNEL, RECORD },
        { "no recording", 3, 1, 0, 1, KEPT, NO_GRAPH, RECORD },
        { "no graph", 3, 1, 0, 1, KEPT, NO_GRAPH, REPLAY }
    };

    (void) state;

    ends(&ways[0], "rank 2 left the exchange");
    ends(&ways[1], "rank 2 left the exchange");
    ends(&ways[2], "no step within 4000 ms from rank 2");
    ends(&ways[3], "too many resources");
    ends(&ways[4], "a recorded step");
    ends(&ways[5], "a recorded step");
}


static void
test_faults_apart(void **state)
{
    static const way_t  ways[] = {
        { "leaves, apart", 3, 3, 0, 1, KEPT, LEAVES, REPLAY },
        { "breaks, apart", 3, 3, 0, 1, KEPT, BREAKS, RECORD },
        { "late, apart", 3, 3, 0, 1, KEPT, LATE, REPLAY },
        { "stuck, apart", 3, 3, 0, 1, KEPT, STUCK, REPLAY },
        { "no kernel, apart", 3, 3, 0, 1, KEPT, NO_KERNEL, RECORD },
        { "no recording, apart", 3, 3, 0, 1, KEPT, NO_GRAPH, RECORD },
        { "no graph, apart", 3, 3, 0, 1, KEPT, NO_GRAPH, REPLAY }
    };

    (void) state;

    ends(&ways[0], "rank 2 left the exchange");
    ends(&ways[1], "rank 2 left the exchange");
    ends(&ways[2], "no step within 4000 ms from rank 2");
    ends(&ways[3], "nothing within 2000 ms from rank 2 in a recorded step");
    ends(&ways[4], "too many resources");
    ends(&ways[5], "a recorded step");
    ends(&ways[6], "a recorded step");
}


static int
setup(void **state)
{
    char      err[ERR_LEN];
    uint32_t  s, k;
    uint64_t  random;

    (void) state;

    the_dir = model_dir_open(NULL);
    model_dir_tensors(the_dir);
    model_dir_write(the_dir);
    the_model = model_open(the_dir->path, err);

    if (the_model == NULL) {
        fprintf(stderr, "%s\n", err);
        return -1;
    }

    random = 17;

    for (s = 0; s < SEQS; s++) {
        tables[s] = blocks[s];
        first_pos[s] = 1;

        for (k = 0; k < TOKENS; k++) {
            ids[s][k] = (int32_t) (random_next(&random) % VOCAB);
        }

        for (k = 0; k < 2; k++) {
            blocks[s][k] = (int32_t) ((2 * s + k) * 3 % BLOCKS);
        }
    }

    return 0;
}


static int
teardown(void **state)
{
    (void) state;

    model_close(the_model);
    model_dir_close(the_dir);

    return 0;
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_mtp),
        cmocka_unit_test(test_rounded),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_faults_shared),
        cmocka_unit_test(test_faults_apart)
    };

    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }

    return cmocka_run_group_tests(tests, setup, teardown);
}
