/*
 * One layer of DeepSeek-V3 at full width through the backend, FP8 weights, with
 * the 32 experts that a rank of eight holds, and as many (row, expert) pairs as
 * such a rank gets: time by operation, beside what the bytes it has to read
 * would take at the speed of a copy measured in the same run; then the layer as
 * one recorded step.  All of it twice, the second time as with --deterministic,
 * and what that costs: its time over the time without.  Then the attention of
 * prompts, from the query's product to the values', absorbed and expanded.  Last
 * what a step in two micro-batches costs, twice the time of half the rows, and
 * what it may save: the time that rows are under way between eight such ranks.
 *
 *     bench_layer [--small]     tiny, to see that it runs
 *
 * Operations run REPEATS times behind each other; weights are random numbers,
 * and so is the cache, 4096 tokens for each row of decoding.
 */

#include "cuda/bench_layer.h"


#define REPEATS   20


static double
seconds(layer_t *l, void (*run)(layer_t *), uint32_t n)
{
    float        ms;
    uint32_t     i;
    cudaEvent_t  a, b;

    run(l);

    if (cudaEventCreate(&a) != 0 || cudaEventCreate(&b) != 0
        || cudaEventRecord(a, l->cuda->stream) != 0)
    {
        die("event", "none");
    }

    for (i = 0; i < n; i++) {
        run(l);
    }

    (void) cudaEventRecord(b, l->cuda->stream);
    wait_for(l);
    ms = 0;
    (void) cudaEventElapsedTime(&ms, a, b);
    (void) cudaEventDestroy(a);
    (void) cudaEventDestroy(b);

    return ms * 1e-3 / n;
}


static void
copy_rate(layer_t *l)
{
    size_t          n;
    uint32_t        i;
    double          best, t;
    static uint8_t *from, *to;

    n = NOISE;

    if (cudaMalloc((void **) &from, n) != 0
        || cudaMalloc((void **) &to, n) != 0
        || cudaMemcpy(from, noise, n, cudaMemcpyHostToDevice) != 0
        || cudaDeviceSynchronize() != 0)
    {
        die("copy", "no memory");
    }

    best = 0;

    for (i = 0; i < 10; i++) {
        float        ms = 0;
        cudaEvent_t  a, b;

        (void) cudaEventCreate(&a);
        (void) cudaEventCreate(&b);
        (void) cudaEventRecord(a, l->cuda->stream);
        (void) cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice,
                               l->cuda->stream);
        (void) cudaEventRecord(b, l->cuda->stream);
        wait_for(l);
        (void) cudaEventElapsedTime(&ms, a, b);
        (void) cudaEventDestroy(a);
        (void) cudaEventDestroy(b);

        t = (ms > 0) ? 2.0 * (double) n / (ms * 1e-3) : 0;
        best = t > best ? t : best;
    }

    (void) cudaFree(from);
    (void) cudaFree(to);
    l->copy = best;

    printf("copy: %.0f GB/s read and written\n", best / 1e9);
}


/* As it is in a model's step: recorded, then replayed. */

static double
recorded(layer_t *l, uint32_t rows, uint32_t repeats)
{
    float        ms;
    double       total;
    uint32_t     i, j;
    cudaEvent_t  a, b;

    if (cudaEventCreate(&a) != 0 || cudaEventCreate(&b) != 0) {
        die("event", "none");
    }

    total = 0;

    for (j = 0; j < 2 + repeats; j++) {
        begin(l, rows, 0, 1);

        for (i = 0; l->rows > 0 && i < OPS; i++) {
            ops[i].run(l);
        }

        (void) cudaEventRecord(a, l->cuda->stream);
        end(l);
        (void) cudaEventRecord(b, l->cuda->stream);
        wait_for(l);
        ms = 0;
        (void) cudaEventElapsedTime(&ms, a, b);
        total += (j >= 2) ? ms : 0;
    }

    (void) cudaEventDestroy(a);
    (void) cudaEventDestroy(b);

    return total * 1e-3 / repeats;
}


static void
print(const char *name, double t, double floor, double fixed)
{
    printf("%-18s %10.1f %10.1f %7.0f%% %10.1f %7.2f\n", name, t * 1e6,
           floor * 1e6, (t > 0) ? floor / t * 100 : 0, fixed * 1e6,
           (t > 0) ? fixed / t : 0);
}


static void
measure(layer_t *l, layer_t *f, uint32_t rows, int prefill, uint32_t repeats)
{
    double    t[OPS], fixed, floor, all[3];
    uint32_t  i;

    printf("\n%s, %u rows\n%-18s %10s %10s %8s %10s %7s\n",
           prefill ? "prefill" : "decode", rows, "operation", "us", "floor us",
           "share", "fixed us", "cost");

    begin(l, rows, prefill, 0);

    for (i = 0; i < OPS; i++) {
        t[i] = seconds(l, ops[i].run, repeats);
    }

    end(l);
    wait_for(l);
    memset(all, 0, sizeof(all));
    begin(f, rows, prefill, 0);

    for (i = 0; i < OPS; i++) {
        fixed = seconds(f, ops[i].run, repeats);
        floor = (l->copy > 0) ? ops[i].bytes(l) / l->copy : 0;
        print(ops[i].name, t[i], floor, fixed);

        all[0] += t[i];
        all[1] += floor;
        all[2] += fixed;
    }

    end(f);
    wait_for(f);
    print("sum", all[0], all[1], all[2]);

    if (!prefill) {
        t[0] = recorded(l, rows, repeats);
        fixed = recorded(f, rows, repeats);
        print("recorded layer", t[0], all[1], fixed);
        all[0] = t[0];
        all[2] = fixed;
    }

    printf("--deterministic, %s of %u rows: %.1f us instead of %.1f, %.2f "
           "times the time\n", prefill ? "prefill" : "decode", rows,
           all[2] * 1e6, all[0] * 1e6, (all[0] > 0) ? all[2] / all[0] : 0);
}


static double
prompt(layer_t *l, uint32_t rows, int expanded)
{
    double  t;

    l->cuda->expand.on = expanded;
    begin(l, rows, 1, 0);
    expanded = (l->cuda->batch[0].n_expand > 0);
    t = seconds(l, op_query, 3) + seconds(l, op_attend, 3)
        + seconds(l, op_value, 3);
    end(l);
    wait_for(l);

    return (expanded == l->cuda->expand.on) ? t : 0;
}


static void
prompts(layer_t *l, int small)
{
    double         t;
    size_t         i;
    uint32_t       rows;
    cu_mla_group_t g;

    static const struct {
        uint32_t  rows;
        uint32_t  behind;
    } shapes[] = {
        { 64, 0 }, { 128, 0 }, { 512, 0 }, { 4096, 0 }, { 128, 4096 },
        { 256, 4096 }, { 1024, 4096 }, { 512, 32768 }, { 2048, 32768 }
    };

    printf("\nattention of prompts, us\n%6s %8s %10s %10s  %s\n", "rows",
           "behind", "absorbed", "expanded", "which it is");

    for (i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        rows = small ? 4 : shapes[i].rows;
        l->behind = small ? (uint32_t) i : shapes[i].behind;
        memset(&g, 0, sizeof(g));
        g.rows = rows;
        g.pos = l->behind;

        t = prompt(l, rows, 0);
        printf("%6u %8u %10.1f", rows, l->behind, t * 1e6);
        t = prompt(l, rows, 1);
        printf(" %10.1f  %s\n", t * 1e6,
               be_cuda_expands(l->cuda, &g) ? "expanded" : "absorbed");
    }
}


static double
layer_time(layer_t *l, uint32_t rows, uint32_t repeats)
{
    double    t;
    uint32_t  i;

    begin(l, rows, 1, 0);

    for (i = 0, t = 0; i < OPS; i++) {
        t += seconds(l, ops[i].run, repeats);
    }

    end(l);
    wait_for(l);

    return t;
}


/* Rows go in FP8 to seven of eight ranks, and contributions back in BF16. */

static void
halves(layer_t *l, int small)
{
    double    whole, two, bytes;
    uint32_t  i, rows;

    static const uint32_t  sizes[] = { 256, 512, 1024, 2048, 4096 };

    printf("\ntwo micro-batches, us\n%6s %10s %10s %7s  %s\n", "rows", "whole",
           "halves", "cost", "under way at 400 and at 160 GB/s");

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        rows = small ? 2 * (i % 4 + 1) : sizes[i];
        whole = layer_time(l, rows, small ? 1 : 3);
        two = 2 * layer_time(l, rows / 2, small ? 1 : 3);
        bytes = rows * TOP_K * 7.0 / 8 * (l->s.hidden * (1 + 4.0 / 128 + 2));

        printf("%6u %10.1f %10.1f %7.2f  %8.1f %8.1f\n", rows, whole * 1e6,
               two * 1e6, whole > 0 ? two / whole : 0, bytes / 400e9 * 1e6,
               bytes / 160e9 * 1e6);
    }
}


static void
open_layer(layer_t *l, const shape_t *s, int fixed)
{
    char          err[ERR_LEN];
    be_options_t  opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_BF16;
    opt.fixed = fixed;

    l->s = *s;
    l->be = be_cuda_open(&opt, err);

    if (l->be == NULL) {
        die("cuda", err);
    }

    l->cuda = (be_cuda_t *) l->be;
}


int
main(int argc, char **argv)
{
    int             small;
    size_t          i;
    uint64_t        seed;
    static layer_t  l, f;

    static const shape_t  v3 = { 7168, 1536, 2048,
                                 { 7168, 128, 128, 64, 128, 512 }, 4096,
                                 4096 };
    static const shape_t  tiny = { 256, 128, 128,
                                   { 256, 4, 16, 8, 16, 32 }, 128, 8 };

    small = (argc > 1 && strcmp(argv[1], "--small") == 0);

    noise = malloc(NOISE);
    scales = malloc(1 << 20);

    if (noise == NULL || scales == NULL) {
        die("memory", "there is not enough");
    }

    seed = 88172645463325252ull;

    for (i = 0; i < NOISE; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise[i] = (uint8_t) (seed >> 40) & 0xbf;    /* below 2 */
    }

    for (i = 0; i < (1 << 20) / sizeof(float); i++) {
        scales[i] = 0.01f;
    }

    open_layer(&l, small ? &tiny : &v3, 0);
    open_layer(&f, small ? &tiny : &v3, 1);
    printf("backend path: %s\n", l.be->path);

    copy_rate(&l);
    make(&l);
    make(&f);

    measure(&l, &f, small ? 4 : 64, 0, small ? 2 : REPEATS);
    measure(&l, &f, small ? 8 : 128, 0, small ? 2 : REPEATS);
    measure(&l, &f, small ? 8 : 4096, 1, small ? 1 : 3);
    prompts(&l, small);
    halves(&l, small);

    wait_for(&l);

    return 0;
}
