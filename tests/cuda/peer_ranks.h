/*
 * A rank on a device with experts of its own, whose exchange with others is
 * compared with the one over the host: for tests/cuda/gpu_peer.c, and for that
 * between nodes.
 */

#ifndef PEER_RANKS_H
#define PEER_RANKS_H

#include <stdlib.h>
#include <string.h>

#include "cuda/bf16.h"
#include "ep/exchange.h"
#include "unit/random.h"


#define RANKS    4
#define ROWS     9
#define TOP_K    3
#define EXPERTS  10
#define HIDDEN   256
#define INTER    128
#define STEPS    6
#define MAPS     2

typedef struct {
    uint16_t  bf16[3][INTER * HIDDEN];
    uint8_t   fp8[3][INTER * HIDDEN];
    float     scale[3][2];
} expert_t;

typedef struct {
    uint32_t         rank;
    uint32_t         ranks;
    int              fp8;
    int              exact;
    ep_exchange_t   *host;
    ep_exchange_t   *peer;
    const ep_map_t  *map[MAPS];
    uint32_t         wrong;          /* elements that differ */
    uint32_t         same;           /* that do not, nor are zero */
    uint32_t         counts;         /* loads that differ */
    char             err[ERR_LEN];

    /* of a test between nodes, else 0; host NULL: nothing to compare with */
    void           (*step)(void *rank, uint32_t n, uint32_t *rows);
    int              leave;          /* at that step */

    be_t            *be;
    be_mlp_t         mlp[MAPS][EXPERTS];
    float           *x;              /* the device's */
    float           *h;              /* normed */
    float           *ones;
    float           *contrib;
    int32_t         *id;
    uint32_t        *load;
} rank_t;


static expert_t  experts[EXPERTS];


static void
make_experts(void)
{
    int       m;
    uint32_t  e, i;
    uint64_t  state;

    state = 5;

    for (e = 0; e < EXPERTS; e++) {
        for (m = 0; m < 3; m++) {
            for (i = 0; i < INTER * HIDDEN; i++) {
                experts[e].bf16[m][i] =
                    to_bf16((float) (random_next(&state) % 2001) / 8000
                            - 0.125f);

                /* e4m3 without the codes that are not a number */

                experts[e].fp8[m][i] =
                    (uint8_t) ((random_next(&state) & 0x80)
                               | random_next(&state) % 0x50);
            }

            experts[e].scale[m][0] = 0.0125f * (float) (e + 1);
            experts[e].scale[m][1] = 0.02f;
        }
    }
}


static int
make_weight(rank_t *r, uint32_t e, int m, be_weight_t **w)
{
    size_t       copies;
    be_tensor_t  t;

    memset(&t, 0, sizeof(t));
    t.rows = (m == 2) ? HIDDEN : INTER;
    t.cols = (m == 2) ? INTER : HIDDEN;
    t.dtype = BE_BF16;
    t.data = experts[e].bf16[m];

    if (r->fp8) {
        t.dtype = BE_F8E4M3;
        t.data = experts[e].fp8[m];
        t.scale = experts[e].scale[m];
        t.scale_cols = t.cols / 128;
    }

    *w = r->be->weight(r->be, &t, &copies, r->err);

    return *w != NULL ? 0 : -1;
}


static int
open_rank(rank_t *r)
{
    float                  ones[HIDDEN];
    uint32_t               i, k, e;
    be_options_t           opt;
    const ep_placement_t  *p;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_BF16;
    opt.rank = r->rank;
    opt.fixed = 1;
    opt.alone = 1;

    r->be = be_cuda_open(&opt, r->err);
    if (r->be == NULL) {
        return -1;
    }

    for (i = 0; i < HIDDEN; i++) {
        ones[i] = 1;
    }

    r->ones = r->be->alloc(r->be, sizeof(ones));
    r->be->upload(r->be, r->ones, ones, sizeof(ones));
    r->x = r->be->alloc(r->be, ROWS * HIDDEN * sizeof(float));
    r->h = r->be->alloc(r->be, ROWS * HIDDEN * sizeof(float));
    r->contrib = r->be->alloc(r->be, ROWS * TOP_K * HIDDEN * sizeof(float));
    r->id = r->be->alloc(r->be, ROWS * TOP_K * sizeof(int32_t));
    r->load = r->be->alloc(r->be, EXPERTS * sizeof(uint32_t));

    for (i = 0; i < MAPS; i++) {
        p = ep_map_placement(r->map[i]);

        for (k = 0; k < p->count[r->rank]; k++) {
            e = p->expert[p->begin[r->rank] + k];

            if (make_weight(r, e, 0, &r->mlp[i][k].w1) != 0
                || make_weight(r, e, 1, &r->mlp[i][k].w3) != 0
                || make_weight(r, e, 2, &r->mlp[i][k].w2) != 0)
            {
                return -1;
            }
        }
    }

    return r->peer->attach(r->peer, r->be, r->mlp[0], r->err);
}


static void
close_rank(rank_t *r)
{
    uint32_t               i, k;
    const ep_placement_t  *p;

    if (r->be == NULL) {
        return;
    }

    r->peer->detach(r->peer);

    for (i = 0; i < MAPS; i++) {
        p = ep_map_placement(r->map[i]);

        for (k = 0; k < p->count[r->rank]; k++) {
            r->be->weight_free(r->be, r->mlp[i][k].w1);
            r->be->weight_free(r->be, r->mlp[i][k].w3);
            r->be->weight_free(r->be, r->mlp[i][k].w2);
        }
    }

    r->be->free(r->be, r->x);
    r->be->free(r->be, r->h);
    r->be->free(r->be, r->ones);
    r->be->free(r->be, r->contrib);
    r->be->free(r->be, r->id);
    r->be->free(r->be, r->load);
    r->be->close(r->be);
}


/* Norms `rows` rows, in the end what is to be sent of them. */

static void
normed(rank_t *r, ep_exchange_t *ex, uint32_t map, uint32_t part,
    uint32_t first, uint32_t rows, const int32_t *id, ep_send_t *send)
{
    memset(send, 0, sizeof(ep_send_t));
    send->be = r->be;
    send->part = part;
    send->placement = ep_map_placement(r->map[map]);
    send->x = r->h + first * HIDDEN;
    send->rows = rows;
    send->hidden = HIDDEN;
    send->top_k = TOP_K;
    send->id = (ex->queued ? r->id : id) + first * TOP_K;
    send->load = ex->queued ? r->load : NULL;
    send->contrib = r->contrib + first * TOP_K * HIDDEN;

    r->be->norm(r->be, r->ones, 1e-6f, r->x + first * HIDDEN, rows, HIDDEN,
                r->h + first * HIDDEN);
}


/* The two micro-batches of what exchange() does. */

static int
exchange_parts(rank_t *r, ep_exchange_t *ex, uint32_t map, uint32_t rows,
    float *out)
{
    be_t        *be;
    uint32_t     k, first;
    ep_send_t    send[2];
    be_pairs_t   pairs;

    be = r->be;

    for (k = 0; k < 2; k++) {
        first = (k == 0) ? 0 : (rows + 1) / 2;
        be->part(be, k + 1);
        normed(r, ex, map, k + 1, first, (rows + 1 - k) / 2, NULL, &send[k]);

        if (ex->send(ex, &send[k], r->err) != 0) {
            return -1;
        }
    }

    for (k = 0; k < 2; k++) {
        be->part(be, k + 1);

        if (ex->receive(ex, k + 1, &pairs, r->err) != 0) {
            return -1;
        }

        be->experts(be, r->mlp[map], &pairs);

        if (ex->give(ex, k + 1, r->err) != 0) {
            return -1;
        }
    }

    for (k = 0; k < 2; k++) {
        be->part(be, k + 1);

        if (ex->collect(ex, k + 1, r->err) != 0) {
            return -1;
        }

        first = (k == 0) ? 0 : (rows + 1) / 2 * TOP_K * HIDDEN;
        be->download(be, out + first, r->contrib + first,
                     (size_t) send[k].rows * TOP_K * HIDDEN * sizeof(float));
    }

    be->part(be, 0);

    return be->sync(be, r->err);
}


/* Contributions to `rows` rows, from a memory full of something else. */

static int
exchange(rank_t *r, ep_exchange_t *ex, uint32_t map, int split, uint32_t rows,
    const int32_t *id, float *out)
{
    be_t        *be;
    ep_send_t    send;
    be_pairs_t   pairs;

    be = r->be;
    memset(out, 0xff, ROWS * TOP_K * HIDDEN * sizeof(float));
    be->upload(be, r->contrib, out, ROWS * TOP_K * HIDDEN * sizeof(float));

    if (split && ex->micro != 0) {
        return exchange_parts(r, ex, map, rows, out);
    }

    normed(r, ex, map, 0, 0, rows, id, &send);

    if (be->sync(be, r->err) != 0
        || ex->dispatch(ex, &send, &pairs, r->err) != 0)
    {
        return -1;
    }

    be->experts(be, r->mlp[map], &pairs);

    if ((!ex->queued && be->sync(be, r->err) != 0)
        || ex->combine(ex, r->err) != 0)
    {
        return -1;
    }

    be->download(be, out, r->contrib,
                 (size_t) rows * TOP_K * HIDDEN * sizeof(float));

    return be->sync(be, r->err);
}


static void *
run(void *arg)
{
    float      x[ROWS * HIDDEN], *a, *b, want;
    rank_t    *r = arg;
    int32_t    id[ROWS * TOP_K];
    uint32_t   i, n, rows, sum[EXPERTS], load[EXPERTS];
    uint64_t   state;

    ep_exchange_t  *meet;

    a = malloc(2 * ROWS * TOP_K * HIDDEN * sizeof(float));
    b = a + ROWS * TOP_K * HIDDEN;
    memset(sum, 0, sizeof(sum));
    state = r->rank * 7 + 3;

    meet = (r->host != NULL) ? r->host : r->peer;

    if (a == NULL || open_rank(r) != 0 || meet->barrier(meet, r->err) != 0) {
        meet->abort(meet);
        r->wrong++;
        goto done;
    }

    for (n = 0; n < STEPS; n++) {
        rows = (n == 1) ? (r->rank == 0 ? ROWS : 0)
               : (uint32_t) (random_next(&state) % (ROWS + 1));

        if (r->leave != 0 && n == (uint32_t) r->leave) {
            goto done;
        }

        if (r->step != NULL) {
            r->step(r, n, &rows);
        }

        for (i = 0; i < ROWS * HIDDEN; i++) {
            x[i] = (float) (random_next(&state) % 4001) / 1000 - 2;
        }

        for (i = 0; i < ROWS * TOP_K; i++) {
            id[i] = (i % TOP_K == 0)
                    ? (int32_t) (random_next(&state) % EXPERTS)
                    : (id[i - 1] + 1 + (int32_t) (random_next(&state) % 3))
                      % EXPERTS;
        }

        for (i = 0; i < rows * TOP_K; i++) {
            sum[id[i]]++;
        }

        r->be->upload(r->be, r->x, x, sizeof(x));
        r->be->upload(r->be, r->id, id, sizeof(id));

        if ((r->host != NULL
             && exchange(r, r->host, n % MAPS, 0, rows, id, a) != 0)
            || exchange(r, r->peer, n % MAPS, n % 3 == 1 || n == 3, rows, id,
                        b) != 0)
        {
            meet->abort(meet);
            r->wrong++;
            goto done;
        }

        if (r->host == NULL) {
            continue;
        }

        for (i = 0; i < rows * TOP_K * HIDDEN; i++) {
            want = r->exact ? a[i] : from_bf16(to_bf16(a[i]));
            r->wrong += memcmp(&want, &b[i], sizeof(float)) != 0;
            r->same += (want != 0 && want == b[i]);
        }
    }

    r->be->download(r->be, load, r->load, sizeof(load));
    r->wrong += r->be->sync(r->be, r->err) != 0;

    for (i = 0; i < EXPERTS; i++) {
        r->counts += load[i] != sum[i];
    }

    r->wrong += meet->barrier(meet, r->err) != 0;

done:

    free(a);

    return NULL;
}


/* Two placements of the experts, to be closed. */

static void
make_maps(uint32_t ranks, uint32_t redundant, ep_map_t **map)
{
    char      err[ERR_LEN];
    uint32_t  i, k, count[RANKS], expert[RANKS * EXPERTS];

    map[0] = ep_map_open(EXPERTS, ranks, redundant, err);
    assert_non_null(map[0]);

    /* the other: experts dealt out one by one */

    memset(count, 0, sizeof(count));

    for (i = 0; i < EXPERTS; i++) {
        k = i % ranks;
        expert[k * EXPERTS + count[k]++] = EXPERTS - 1 - i;
    }

    map[1] = ep_map_make(EXPERTS, ranks, count, expert, EXPERTS, err);
    assert_non_null(map[1]);
}

#endif /* PEER_RANKS_H */
