/*
 * Ranks that exchange rows step by step, each in a thread, and compare what
 * comes home with what each expert should have made of it.
 */

#ifndef TESTS_UNIT_EP_RANKS_H
#define TESTS_UNIT_EP_RANKS_H

#include <pthread.h>
#include <string.h>
#include <time.h>

#include "ep/exchange.h"


#define RANKS    4
#define ROWS     13
#define TOP_K    3
#define HIDDEN   5
#define EXPERTS  11
#define STEPS    300

typedef struct {
    ep_exchange_t         *ex;
    const ep_placement_t  *p;
    uint32_t               seed;
    uint32_t               steps;
    int                    late;     /* ms before the second step, or -1 */
    int                    leave;    /* aborts instead of the second step */
    int                    bad;      /* an impossible id in the second step */
    uint32_t               wrong;    /* contributions that differ */
    uint32_t               order;    /* pairs out of order */
    uint64_t               pairs;    /* computed here */
    int                    hot;      /* all rows want experts 0, 1, 2 */
    int                    rc;
    char                   err[ERR_LEN];
} rank_t;


static uint32_t
next(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;

    return *state >> 8;
}


/* What expert e makes of x[i]. */

static float
expert(uint32_t e, const float *x, uint32_t i)
{
    return x[i] * (float) (e + 1) + (float) i;
}


static int
step(rank_t *r, const float *x, uint32_t rows, const int32_t *id,
    float *contrib)
{
    uint32_t      e, p, i, global;
    ep_send_t     send;
    be_pairs_t    pairs;

    memset(&send, 0, sizeof(send));
    send.placement = r->p;
    send.x = x;
    send.rows = rows;
    send.hidden = HIDDEN;
    send.top_k = TOP_K;
    send.id = id;
    send.contrib = contrib;

    if (r->ex->dispatch(r->ex, &send, &pairs, r->err) != 0) {
        return -1;
    }

    for (e = 0; e < pairs.n_experts; e++) {

        global = r->p->expert[r->p->begin[r->ex->rank] + e];
        r->pairs += pairs.offset[e + 1] - pairs.offset[e];

        for (p = pairs.offset[e]; p < pairs.offset[e + 1]; p++) {

            for (i = 0; i < HIDDEN; i++) {
                pairs.y[p][i] = expert(global, pairs.x[p], i);
            }

            /* x[0] says where a row comes from */

            if (p > pairs.offset[e] && !(pairs.x[p - 1][0] < pairs.x[p][0])) {
                r->order++;
            }
        }
    }

    return r->ex->combine(r->ex, r->err);
}


static void *
run(void *arg)
{
    float            x[ROWS * HIDDEN], contrib[ROWS * TOP_K * HIDDEN];
    rank_t          *r;
    int32_t          id[ROWS * TOP_K];
    uint32_t         n, i, k, rows, state;
    struct timespec  ts;

    r = arg;
    state = r->seed;

    for (n = 0; n < r->steps; n++) {
        rows = next(&state) % (ROWS + 1);

        for (i = 0; i < rows * HIDDEN; i++) {
            x[i] = (float) (next(&state) % 1000);
        }

        for (i = 0; i < rows; i++) {
            x[i * HIDDEN] = (float) (r->ex->rank * 1000 + i);

            /* three different experts, often of one rank */

            id[i * TOP_K] = (int32_t) (next(&state) % EXPERTS);
            id[i * TOP_K + 1] = (id[i * TOP_K] + 1) % EXPERTS;
            id[i * TOP_K + 2] = (id[i * TOP_K] + 2
                                 + (int32_t) (next(&state) % 9)) % EXPERTS;

            for (k = 0; r->hot && k < TOP_K; k++) {
                id[i * TOP_K + k] = (int32_t) k;
            }
        }

        if (n == 1 && r->late >= 0) {
            ts.tv_sec = r->late / 1000;
            ts.tv_nsec = r->late % 1000 * 1000000L;
            nanosleep(&ts, NULL);
        }

        if (n == 1 && r->leave) {
            r->ex->abort(r->ex);
        }

        if (n == 1 && r->bad) {
            rows = 1;
            id[0] = EXPERTS;
        }

        r->rc = step(r, x, rows, id, contrib);

        if (r->rc != 0) {
            break;
        }

        for (i = 0; i < rows * TOP_K; i++) {
            for (k = 0; k < HIDDEN; k++) {
                if (contrib[i * HIDDEN + k]
                    != expert((uint32_t) id[i], x + i / TOP_K * HIDDEN, k))
                {
                    r->wrong++;
                }
            }
        }
    }

    return NULL;
}

#endif /* TESTS_UNIT_EP_RANKS_H */
