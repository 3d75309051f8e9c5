/*
 * Dispatch and combine between ranks that share a GPU, at the width of V3,
 * without the experts between them, and the sums at home: time of a layer, and
 * bytes read and written by that against a copy on the same device.
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime_api.h>

#include "ep/exchange.h"
#include "unit/random.h"


#define RANKS    8
#define HIDDEN   7168
#define TOP_K    8
#define EXPERTS  256
#define WARM     5
#define LAYERS   60
#define COPY     ((size_t) 1 << 30)

typedef struct {
    uint32_t         rank;
    uint32_t         ranks;
    uint32_t         rows;
    int              fp8;
    ep_exchange_t   *ex;
    const ep_map_t  *map;
    double           bytes;          /* of a layer, this rank's */
    double           seconds;        /* of one, rank 0's */
    int              failed;
    char             err[ERR_LEN];
} rank_t;


static double
now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}


/* Bytes a second, read and written. */

static double
copy_rate(void)
{
    int      i;
    void    *a, *b;
    double   began, best, t;

    if (cudaMalloc(&a, COPY) != 0 || cudaMalloc(&b, COPY) != 0) {
        return 0;
    }

    best = 0;

    for (i = 0; i < 12; i++) {
        cudaDeviceSynchronize();
        began = now();
        cudaMemcpyAsync(b, a, COPY, cudaMemcpyDeviceToDevice, 0);
        cudaDeviceSynchronize();
        t = 2 * (double) COPY / (now() - began);
        best = t > best ? t : best;
    }

    cudaFree(a);
    cudaFree(b);

    return best;
}


/* Eight different experts of each row, and the bytes that they move. */

static void
choose(rank_t *r, int32_t *id)
{
    double                 row, each;
    uint32_t               i, k, j;
    uint64_t               state, ranks;
    const ep_placement_t  *p;

    p = ep_map_placement(r->map);
    state = r->rank + 1;
    row = r->fp8 ? HIDDEN + HIDDEN / 128 * 4 : HIDDEN * 2;
    each = HIDDEN * (2 + 2) + HIDDEN * 2;      /* returned, combined */
    r->bytes = 8.0 * HIDDEN * r->rows;

    for (i = 0; i < r->rows; i++) {
        ranks = 0;

        for (k = 0; k < TOP_K; k++) {
            do {
                id[k] = (int32_t) (random_next(&state) % EXPERTS);

                for (j = 0; j < k && id[j] != id[k]; j++) { /* void */ }
            } while (j < k);

            ranks |= UINT64_C(1) << p->rank[p->first[id[k]]];
        }

        r->bytes += 2 * row * __builtin_popcountll(ranks) + TOP_K * each;
        id += TOP_K;
    }
}


static int
layer(rank_t *r, const ep_send_t *send, const float *weight)
{
    be_pairs_t  pairs;

    if (r->ex->dispatch(r->ex, send, &pairs, r->err) != 0
        || r->ex->combine(r->ex, r->err) != 0)
    {
        return -1;
    }

    send->be->combine(send->be, send->contrib, weight, r->rows, TOP_K, HIDDEN,
                      (float *) (uintptr_t) send->x);

    return 0;
}


static void *
run(void *arg)
{
    be_t          *be;
    void          *data;
    float         *scale, *weight;
    double         began;
    size_t         copies;
    rank_t        *r = arg;
    int32_t       *id;
    uint32_t       i;
    be_mlp_t       mlp;
    ep_send_t      send;
    be_tensor_t    t;
    be_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_BF16;
    opt.alone = 1;

    memset(&t, 0, sizeof(t));
    memset(&mlp, 0, sizeof(mlp));
    memset(&send, 0, sizeof(send));

    id = malloc((size_t) r->rows * TOP_K * sizeof(int32_t));
    data = calloc(128, HIDDEN * 2);
    scale = calloc(HIDDEN / 128, sizeof(float));
    be = be_cuda_open(&opt, r->err);

    if (id == NULL || data == NULL || scale == NULL || be == NULL) {
        goto failed;
    }

    t.rows = 128;
    t.cols = HIDDEN;
    t.dtype = r->fp8 ? BE_F8E4M3 : BE_BF16;
    t.data = data;
    t.scale = scale;
    t.scale_cols = HIDDEN / 128;
    mlp.w1 = be->weight(be, &t, &copies, r->err);

    if (mlp.w1 == NULL || r->ex->attach(r->ex, be, &mlp, r->err) != 0) {
        goto failed;
    }

    send.be = be;
    send.placement = ep_map_placement(r->map);
    send.rows = r->rows;
    send.hidden = HIDDEN;
    send.top_k = TOP_K;
    send.x = be->alloc(be, (size_t) r->rows * HIDDEN * sizeof(float));
    send.id = be->alloc(be, (size_t) r->rows * TOP_K * sizeof(int32_t));
    send.contrib = be->alloc(be, (size_t) r->rows * TOP_K * HIDDEN
                                 * sizeof(float));

    weight = be->alloc(be, (size_t) r->rows * TOP_K * sizeof(float));

    if (send.x == NULL || send.id == NULL || send.contrib == NULL
        || weight == NULL)
    {
        snprintf(r->err, ERR_LEN, "no memory");
        goto failed;
    }

    choose(r, id);
    be->upload(be, (void *) (uintptr_t) send.id, id,
               (size_t) r->rows * TOP_K * sizeof(int32_t));

    began = 0;

    for (i = 0; i < WARM + LAYERS; i++) {

        if (i == 0 || i == WARM) {
            if (be->sync(be, r->err) != 0
                || r->ex->barrier(r->ex, r->err) != 0)
            {
                goto failed;
            }

            began = now();
        }

        if (layer(r, &send, weight) != 0) {
            goto failed;
        }
    }

    if (be->sync(be, r->err) != 0 || r->ex->barrier(r->ex, r->err) != 0) {
        goto failed;
    }

    r->seconds = (now() - began) / LAYERS;

    r->ex->detach(r->ex);
    be->free(be, (void *) (uintptr_t) send.x);
    be->free(be, (void *) (uintptr_t) send.id);
    be->free(be, send.contrib);
    be->free(be, weight);
    be->weight_free(be, mlp.w1);
    be->close(be);
    free(id);
    free(data);
    free(scale);

    return NULL;

failed:

    r->failed = 1;
    r->ex->abort(r->ex);

    return NULL;
}


static int
bench(uint32_t ranks, uint32_t rows, int fp8, double copy)
{
    char            err[ERR_LEN];
    rank_t          r[RANKS];
    double          bytes;
    ep_map_t       *map;
    uint32_t        i;
    pthread_t       thread[RANKS];
    ep_exchange_t  *ex[RANKS];

    map = ep_map_open(EXPERTS, ranks, 0, err);

    if (map == NULL
        || ep_peer_open(ex, ranks, rows, TOP_K, EXPERTS, HIDDEN, 0, 0, 60000,
                        err)
           != 0)
    {
        printf("%s\n", err);
        return -1;
    }

    memset(r, 0, sizeof(r));

    for (i = 0; i < ranks; i++) {
        r[i].rank = i;
        r[i].ranks = ranks;
        r[i].rows = rows;
        r[i].fp8 = fp8;
        r[i].ex = ex[i];
        r[i].map = map;

        if (pthread_create(&thread[i], NULL, run, &r[i]) != 0) {
            printf("no thread\n");
            exit(1);
        }
    }

    bytes = 0;

    for (i = 0; i < ranks; i++) {
        pthread_join(thread[i], NULL);
        bytes += r[i].bytes;

        if (r[i].failed) {
            printf("rank %u: %s\n", i, r[i].err);
            exit(1);
        }
    }

    printf("%5u  %5u  %-5s  %8.1f  %9.0f  %5.1f %%\n", ranks, rows,
           fp8 ? "fp8" : "bf16", r[0].seconds * 1e6,
           bytes / r[0].seconds / 1e9, 100 * bytes / r[0].seconds / copy);

    for (i = 0; i < ranks; i++) {
        ex[i]->close(ex[i]);
    }

    ep_map_close(map);

    return 0;
}


int
main(void)
{
    int       fp8;
    double    copy;
    uint32_t  i;

    static const uint32_t  size[][2] = {
        { 1, 128 }, { 2, 128 }, { 4, 128 }, { 8, 64 }, { 2, 1024 },
        { 4, 1024 }
    };

    copy = copy_rate();

    if (copy == 0) {
        printf("no CUDA device with memory for a copy\n");
        return 1;
    }

    printf("copy: %.0f GB/s read and written\n\n", copy / 1e9);
    printf("%5s  %5s  %-5s  %8s  %9s  %s\n", "ranks", "rows", "rows", "us",
           "GB/s", "of a copy");

    for (fp8 = 0; fp8 < 2; fp8++) {
        for (i = 0; i < sizeof(size) / sizeof(size[0]); i++) {
            if (bench(size[i][0], size[i][1], fp8, copy) != 0) {
                return 1;
            }
        }
    }

    return 0;
}
