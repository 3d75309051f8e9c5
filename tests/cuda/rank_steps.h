/*
 * A talk of uneven steps, by several ranks on emulated devices: what
 * test_cuda_ranks.c and test_cuda_ranks_fail.c share.
 *
 * The model is as small as it can be with two layers between which ranks
 * exchange rows, and matrices of one tile: products in software are most of
 * the time.
 */

#ifndef RANK_STEPS_H
#define RANK_STEPS_H

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
#define TOKENS   64
#define BLOCKS   (2 * SEQS)
#define RANKS    4
#define ROWS     48
#define VOCAB    101                 /* as model_dir.h has it, and */
#define EXPERTS  12
#define TOP_K    3
#define HIDDEN   64
#define PASSES   2                   /* of guesses after each step */
#define WAIT     120000              /* ms: none is to be late */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWER   4
#else
#define SLOWER   1
#endif

/*
 * Rows of each sequence in each step; sequence s is of rank s % ranks.  Of more
 * than two only the last one gives logits.
 */

static const uint8_t  script[][SEQS] = {
    { 5, 1, 3, 9 },
    { 1, 1, 1, 1 }, { 1, 1, 1, 1 }, { 1, 1, 1, 1 }, { 1, 1, 1, 1 },
    { 2, 0, 1, 0 }, { 2, 0, 1, 0 }, { 2, 0, 1, 0 }, { 0, 1, 0, 1 },
    { 0, 3, 0, 0 }, { 0, 3, 0, 0 }, { 0, 3, 0, 0 },
    { 10, 1, 0, 1 },
    { 0, 0, 0, 1 }, { 1, 0, 0, 0 }, { 1, 2, 0, 2 }, { 2, 2, 2, 2 },
    { 1, 1, 1, 1 }
};

#define STEPS    (sizeof(script) / sizeof(script[0]))
#define MOST     (SLOWER == 1 ? STEPS : 12)
#define REPLAY   4                   /* a step that is replayed, */
#define RECORD   2                   /* and one that is recorded */

#define FORGET_ONE  4                /* before this step one rank forgets, */
#define FORGET_ALL  8                /* before this one all do */

typedef enum { KEPT = 0, EACH, SOME } forget_t;

typedef struct way_s   way_t;
typedef struct rank_s  rank_t;

struct way_s {
    const char  *name;
    uint32_t     ranks;
    int          devices;
    int          mtp;
    int          exact;
    uint32_t     micro;              /* rows of a step in two micro-batches */
    uint32_t     steps;
    forget_t     forget;             /* in each step; in two of them */
    uint32_t     limit;              /* ms, of a wait for others */

    /* what goes wrong on the last rank, and on others, before that step */
    int        (*fault)(rank_t *r);
    uint32_t     at;
    int        (*others)(rank_t *r);
};

typedef struct {
    float  step[STEPS][SEQS][2][VOCAB];
    float  draft[STEPS][PASSES][SEQS][VOCAB];
} result_t;

struct rank_s {
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
    uint64_t        splits;          /* steps in two micro-batches */
    uint32_t        steps;           /* that succeeded */
    char            err[ERR_LEN];

    int32_t         id[ROWS];
    uint32_t        pos[ROWS];
    uint32_t        seq[ROWS];
    uint32_t        from[ROWS];
    uint32_t        want[ROWS];
    uint32_t        done[SEQS];
    float           logits[ROWS][VOCAB];
};


static int32_t         ids[SEQS][TOKENS];
static int32_t         blocks[SEQS][2];
static const int32_t  *tables[SEQS];
static uint32_t        first_pos[SEQS];
static model_t        *the_model;
static model_dir_t    *the_dir;


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
    int         (*fault)(rank_t *r);
    const way_t  *way;

    way = r->way;

    if (way->forget == EACH
        || (way->forget == SOME
            && ((n == FORGET_ONE && r->rank == 1) || n == FORGET_ALL)))
    {
        r->be->forget(r->be);
    }

    fault = (r->rank == way->ranks - 1) ? way->fault : way->others;

    return (fault != NULL && n == way->at) ? fault(r) : 0;
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

    for (n = 0; n < r->way->steps && r->rc == 0; n++) {
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

    emu_set_device(way->devices, 1, (size_t) 8 << 30);
    memset(out, 0, sizeof(result_t));
    memset(r, 0, RANKS * sizeof(rank_t));

    map = ep_map_open(EXPERTS, way->ranks, 0, err);
    assert_non_null(map);

    if (way->ranks == 1) {
        ex[0] = ep_local_open(EXPERTS, err);
        assert_non_null(ex[0]);

    } else {
        assert_int_equal(ep_peer_open(ex, way->ranks, ROWS, TOP_K,
                                      EXPERTS, HIDDEN, way->exact, way->micro,
                                      way->limit, err), 0);
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
        r[i].splits = (cuda != NULL) ? cuda->splits : 0;
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


static int
setup(void **state)
{
    char      err[ERR_LEN];
    uint32_t  s, k;
    uint64_t  random;

    static const model_field_t  small[] = {
        { "hidden_size", "64" }, { "num_hidden_layers", "2" },
        { "first_k_dense_replace", "0" }, { NULL, NULL }
    };

    (void) state;

    the_dir = model_dir_open(small);
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

#endif /* RANK_STEPS_H */
