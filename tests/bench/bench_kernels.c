/*
 * Speed of the CPU backend's kernels beside what the machine can do, both
 * measured in this run: read bandwidth, and fused multiply-adds (pairs of
 * BF16 where there are) from registers.
 *
 *     bench_kernels [--path PATH] [--threads N] [--only WORD] [--quick]
 *
 * Each figure is the best of several runs; "of roof" is against the nearer
 * of the two roofs.
 */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "backend/backend.h"
#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_peak.h"
#include "backend/cpu/be_team.h"


#define BENCH_BYTES      ((size_t) 256 << 20)
#define BENCH_HUGE_PAGE  ((size_t) 2 << 20)
#define BENCH_THREADS    64


typedef struct {
    be_t          *be;
    be_dtype_t     compute;
    uint32_t       threads;
    double         gb;               /* roofs: GB/s, GFLOP/s */
    double         gflop;
    double         time;             /* seconds for a figure */
} bench_t;


static uint64_t     bench_seed = 1234567;
static const char  *bench_only = "";    /* what the line must contain */


static double bench_now(void);
static uint16_t bench_random(void);
static void bench_roofs(bench_t *b);
static void bench_line(const bench_t *b, const char *what, double seconds,
    double flop, double bytes);
static void bench_linear(bench_t *b, uint32_t rows, uint32_t in,
    uint32_t out);
static void bench_experts(bench_t *b, uint32_t per, uint32_t n,
    uint32_t hidden, uint32_t inter);
static void bench_attend(bench_t *b, uint32_t rows, uint32_t context,
    uint32_t heads, uint32_t kv_lora, uint32_t rope);
static void bench_path(const char *path, be_dtype_t compute,
    uint32_t threads, int quick);


int
main(int argc, char **argv)
{
    int                 i, quick;
    uint32_t            threads, t;
    const char         *one;
    const char *const  *path;

    one = NULL;
    threads = 0;
    quick = 0;

    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--path") == 0 && i + 1 < argc) {
            one = argv[++i];

        } else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) {
            threads = (uint32_t) atoi(argv[++i]);

        } else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            bench_only = argv[++i];

        } else if (strcmp(argv[i], "--quick") == 0) {
            quick = 1;

        } else {
            fprintf(stderr, "usage: bench_kernels [--path PATH] "
                    "[--threads N] [--only WORD] [--quick]\n");
            return 2;
        }
    }

    if (threads > BENCH_THREADS) {
        threads = BENCH_THREADS;
    }

    for (path = be_cpu_paths(); *path != NULL; path++) {
        if (one != NULL ? strcmp(one, *path) != 0
                        : strcmp(*path, "generic") == 0)
        {
            continue;
        }

        for (t = (threads != 0) ? threads : 1; t <= (threads ? threads : 2);
             t++)
        {
            bench_path(*path, BE_BF16, t, quick);

            if (!quick) {
                bench_path(*path, BE_F32, t, quick);
            }
        }
    }

    return 0;
}


static double
bench_now(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}


/* A small number in BF16. */

static uint16_t
bench_random(void)
{
    bench_seed = bench_seed * 6364136223846793005ull + 1442695040888963407ull;

    return be_to_bf16((float) (bench_seed >> 40) / (1 << 25) - 0.25f);
}


static be_weight_t *
bench_weight(be_t *be, uint32_t rows, uint32_t cols, void **data)
{
    char          err[ERR_LEN];
    size_t        i;
    uint16_t     *h;
    be_tensor_t   t;
    be_weight_t  *w;

    h = malloc((size_t) rows * cols * 2);
    if (h == NULL) {
        exit(1);
    }

    for (i = 0; i < (size_t) rows * cols; i++) {
        h[i] = bench_random();
    }

    memset(&t, 0, sizeof(t));
    t.data = h;
    t.dtype = BE_BF16;
    t.rows = rows;
    t.cols = cols;

    w = be->weight(be, &t, NULL, err);
    if (w == NULL) {
        fprintf(stderr, "%s\n", err);
        exit(1);
    }

    *data = h;

    return w;
}


static float *
bench_floats(be_t *be, size_t n)
{
    float   *x;
    size_t   i;

    x = be->alloc(be, n * sizeof(float));
    if (x == NULL) {
        exit(1);
    }

    for (i = 0; i < n; i++) {
        x[i] = be_from_bf16(bench_random());
    }

    return x;
}


static void
bench_roofs(bench_t *b)
{
    char              err[ERR_LEN];
    uint8_t          *data;
    be_team_t        *team;
    const be_peak_t  *peak;

    data = aligned_alloc(BENCH_HUGE_PAGE, BENCH_BYTES);
    team = be_team_open(b->threads, -1, err);
    if (data == NULL || team == NULL) {
        exit(1);
    }

    (void) madvise(data, BENCH_BYTES, MADV_HUGEPAGE);
    memset(data, 0, BENCH_BYTES);

    peak = be_peak_of(b->be->path,
                      b->compute == BE_F32 ? BE_PEAK_F32 : BE_PEAK_BF16);

    b->gb = be_peak_read(team, data, BENCH_BYTES) * 1e-9;
    b->gflop = be_peak_measure(team, peak) * 1e-9;

    be_team_close(team);
    free(data);
}


static void
bench_line(const bench_t *b, const char *what, double seconds, double flop,
    double bytes)
{
    double  roof;

    roof = fmax(flop * 1e-9 / b->gflop, bytes * 1e-9 / b->gb);

    printf("  %-38s %9.1f us %8.1f GFLOP/s %7.1f GB/s %5.0f %% of roof\n",
           what, seconds * 1e6, flop / seconds * 1e-9,
           bytes / seconds * 1e-9, roof / seconds * 100);
    fflush(stdout);
}


#define BENCH_BEST(b, best, call)                                            \
    do {                                                                     \
        double  bench_end_ = bench_now() + (b)->time, bench_from_;           \
        best = 1e9;                                                          \
        do {                                                                 \
            bench_from_ = bench_now();                                       \
            call;                                                            \
            best = fmin(best, bench_now() - bench_from_);                    \
        } while (bench_now() < bench_end_);                                  \
    } while (0)


/*
 * With few rows the matrices are as many as do not fit into the cache, used
 * in turn; the figure is the mean over them, at its best.
 */

static void
bench_linear(bench_t *b, uint32_t rows, uint32_t in, uint32_t out)
{
    char          what[64];
    void         *data[256];
    float        *x, *y;
    double        best;
    uint32_t      i, n;
    be_weight_t  *w[256];

    snprintf(what, sizeof(what), "linear %u x [%u][%u]", rows, out, in);

    if (strstr(what, bench_only) == NULL) {
        return;
    }

    n = (rows >= 64) ? 1
        : (uint32_t) (BENCH_BYTES / ((size_t) in * out * 2)) + 1;
    n = (n > 256) ? 256 : n;

    for (i = 0; i < n; i++) {
        w[i] = bench_weight(b->be, out, in, &data[i]);
    }

    x = bench_floats(b->be, (size_t) rows * in);
    y = bench_floats(b->be, (size_t) rows * out);

    BENCH_BEST(b, best,
        for (i = 0; i < n; i++) {
            b->be->linear(b->be, w[i], x, rows, y);
        });

    bench_line(b, what, best / n, 2.0 * rows * in * out,
               2.0 * in * out + 4.0 * rows * (in + out));

    for (i = 0; i < n; i++) {
        b->be->weight_free(b->be, w[i]);
        free(data[i]);
    }

    b->be->free(b->be, x);
    b->be->free(b->be, y);
}


static void
bench_experts(bench_t *b, uint32_t per, uint32_t n, uint32_t hidden,
    uint32_t inter)
{
    char          what[64];
    void         *data[3][256];
    float        *x, *y;
    double        best;
    uint32_t      i, offset[257];
    be_mlp_t      mlp[256];
    be_pairs_t    pairs;
    const float **from;
    float       **to;

    snprintf(what, sizeof(what), "experts %u x %u rows [%u][%u]", n, per,
             inter, hidden);

    if (strstr(what, bench_only) == NULL) {
        return;
    }

    for (i = 0; i < n; i++) {
        mlp[i].w1 = bench_weight(b->be, inter, hidden, &data[0][i]);
        mlp[i].w3 = bench_weight(b->be, inter, hidden, &data[1][i]);
        mlp[i].w2 = bench_weight(b->be, hidden, inter, &data[2][i]);
        offset[i] = i * per;
    }

    offset[n] = n * per;
    x = bench_floats(b->be, (size_t) n * per * hidden);
    y = bench_floats(b->be, (size_t) n * per * hidden);
    from = malloc((size_t) n * per * sizeof(float *));
    to = malloc((size_t) n * per * sizeof(float *));

    if (from == NULL || to == NULL) {
        exit(1);
    }

    for (i = 0; i < n * per; i++) {
        from[i] = x + (size_t) i * hidden;
        to[i] = y + (size_t) i * hidden;
    }

    pairs.n_experts = n;
    pairs.offset = offset;
    pairs.x = from;
    pairs.y = to;

    BENCH_BEST(b, best, b->be->experts(b->be, mlp, &pairs));

    bench_line(b, what, best, 6.0 * n * per * hidden * inter,
               n * 6.0 * hidden * inter);

    for (i = 0; i < n; i++) {
        b->be->weight_free(b->be, mlp[i].w1);
        b->be->weight_free(b->be, mlp[i].w3);
        b->be->weight_free(b->be, mlp[i].w2);
        free(data[0][i]);
        free(data[1][i]);
        free(data[2][i]);
    }

    free(from);
    free(to);
    b->be->free(b->be, x);
    b->be->free(b->be, y);
}


/*
 * rows == 1: decode at that context, in layers as many as do not fit into the
 * cache, one after the other; else the last rows of a prefill.
 */

static void
bench_attend(bench_t *b, uint32_t rows, uint32_t context, uint32_t heads,
    uint32_t kv_lora, uint32_t rope)
{
    char            err[ERR_LEN], what[64], *block;
    float          *ql, *ol;
    double          best, tokens;
    int32_t        *ids;
    be_kv_t        *kv;
    be_mla_t        mla;
    uint32_t        i, blocks, layers, *pos, *seq;
    be_batch_t      batch;
    const int32_t  *table[1];

    snprintf(what, sizeof(what), "attend %u @ %u, %u heads %u+%u", rows,
             context, heads, kv_lora, rope);

    if (strstr(what, bench_only) == NULL) {
        return;
    }

    memset(&mla, 0, sizeof(mla));
    mla.heads = heads;
    mla.kv_lora = kv_lora;
    mla.rope = rope;
    mla.nope = 64;
    mla.v = 64;

    blocks = (context + 63) / 64;
    ids = malloc(blocks * sizeof(int32_t));
    pos = malloc(rows * sizeof(uint32_t));
    seq = calloc(rows, sizeof(uint32_t));
    layers = (rows > 1) ? 1
             : (uint32_t) (BENCH_BYTES / ((size_t) context * (kv_lora + rope)
                                          * 2)) + 1;
    kv = b->be->kv_open(b->be, layers, blocks, &mla, err);

    if (ids == NULL || pos == NULL || seq == NULL || kv == NULL) {
        exit(1);
    }

    block = calloc(1, b->be->kv_block_size(kv));
    if (block == NULL) {
        exit(1);
    }

    for (i = 0; i < b->be->kv_block_size(kv) / 2; i++) {
        ((uint16_t *) block)[i] = bench_random();
    }

    for (i = 0; i < blocks; i++) {
        ids[i] = (int32_t) i;
        b->be->kv_write(b->be, kv, (int32_t) i, block);
    }

    tokens = 0;

    for (i = 0; i < rows; i++) {
        pos[i] = context - rows + i;
        tokens += pos[i] + 1;
    }

    ql = bench_floats(b->be, (size_t) rows * heads * (kv_lora + rope));
    ol = bench_floats(b->be, (size_t) rows * heads * kv_lora);

    table[0] = ids;
    memset(&batch, 0, sizeof(batch));
    batch.n_rows = rows;
    batch.pos = pos;
    batch.seq = seq;
    batch.n_seqs = 1;
    batch.blocks = table;

    BENCH_BEST(b, best,
        for (i = 0; i < layers; i++) {
            b->be->mla_attend(b->be, kv, i, &mla, 0.1f, ql, &batch, ol);
        });

    bench_line(b, what, best / layers,
               2.0 * tokens * heads * (2 * kv_lora + rope),
               (double) context * (kv_lora + rope)
               * (b->compute == BE_F32 ? 4 : 2));

    free(block);
    free(ids);
    free(pos);
    free(seq);
    b->be->free(b->be, ql);
    b->be->free(b->be, ol);
    b->be->kv_free(b->be, kv);
}


static void
bench_path(const char *path, be_dtype_t compute, uint32_t threads, int quick)
{
    char           err[ERR_LEN];
    bench_t        b;
    be_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = compute;
    opt.threads = threads;
    opt.path = path;
    opt.pin = -1;

    memset(&b, 0, sizeof(b));
    b.be = be_cpu_open(&opt, err);
    if (b.be == NULL) {
        fprintf(stderr, "%s\n", err);
        exit(1);
    }

    b.compute = compute;
    b.threads = threads;
    b.time = quick ? 0.2 : 0.4;

    bench_roofs(&b);

    printf("%s, %s, %u thread%s: roofs %.1f GB/s, %.1f GFLOP/s\n", path,
           compute == BE_F32 ? "f32 (bf16 weights)" : "bf16", threads,
           threads == 1 ? "" : "s", b.gb, b.gflop);

    bench_linear(&b, 1, 512, 512);
    bench_linear(&b, 1, 2048, 2048);
    bench_linear(&b, 1, 512, 16384);
    bench_linear(&b, 4, 2048, 2048);
    bench_linear(&b, 16, 2048, 2048);
    bench_linear(&b, 512, 128, 512);
    bench_linear(&b, 512, 512, 512);
    bench_linear(&b, 512, 2048, 2048);
    bench_linear(&b, 512, 7168, 1536);

    bench_experts(&b, 1, 64, 512, 128);
    bench_experts(&b, 4, 64, 512, 128);
    bench_experts(&b, 48, 64, 512, 128);
    bench_experts(&b, 1, 16, 2048, 1408);

    bench_attend(&b, 1, 2048, 8, 128, 32);
    bench_attend(&b, 1, 2048, 8, 512, 64);
    bench_attend(&b, 1, 2048, 16, 512, 64);
    bench_attend(&b, 1, 8192, 128, 512, 64);
    bench_attend(&b, 512, 512, 8, 128, 32);
    bench_attend(&b, 512, 512, 8, 512, 64);
    bench_attend(&b, 512, 4096, 8, 512, 64);
    bench_attend(&b, 512, 2048, 16, 512, 64);

    b.be->close(b.be);
}
