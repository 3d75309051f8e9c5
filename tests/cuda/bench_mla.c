/*
 * Attention over the latent cache at the published sizes, beside a copy of
 * the same run: bytes of the tokens a second and their share of the copy's,
 * and operations a second (1,088 multiplications and additions for each query
 * and token).
 *
 *     bench_mla [--small]       tiny shapes, to see that it runs
 *
 * Each figure is the median of BENCH_REPEATS, on random numbers; sequences have
 * blocks all over the pool.
 */

#include "backend/cuda/cu_mla.h"
#include "bench_gpu.h"


typedef struct {
    const char  *name;
    uint32_t     heads;
    uint32_t     seqs;
    uint32_t     rows;               /* of each, its last ones */
    uint32_t     tokens;             /* of each */
} shape_t;


static void bench(const shape_t *s, int fp8, int fixed, double copy);


static const shape_t  shapes[] = {
    { "decode, 16 heads", 16, 1, 1, 4096 },
    { "decode, 16 heads", 16, 128, 1, 4096 },
    { "decode, 128 heads", 128, 1, 1, 4096 },
    { "decode, 128 heads", 128, 1, 1, 32768 },
    { "decode, 128 heads", 128, 16, 1, 4096 },
    { "decode, 128 heads", 128, 128, 1, 4096 },
    { "verify 2, 128 heads", 128, 64, 2, 4096 },
    { "prefill, 128 heads", 128, 1, 512, 4096 },
    { "prefill, 16 heads", 16, 1, 4096, 4096 }
};

static const shape_t  small[] = {
    { "decode", 16, 3, 1, 300 },
    { "prefill", 16, 1, 20, 100 }
};


int
main(int argc, char **argv)
{
    int       tiny, fixed, fp8;
    double    copy;
    size_t    i, n;

    tiny = (argc > 1 && strcmp(argv[1], "--small") == 0);
    n = tiny ? sizeof(small) / sizeof(shape_t)
             : sizeof(shapes) / sizeof(shape_t);

    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    copy = bench_copy(tiny ? 1 << 20 : (size_t) 1 << 30);

    for (fp8 = 0; fp8 < 2; fp8++) {
        for (fixed = 0; fixed < 2; fixed++) {

            printf("\n%s%s\n", fp8 ? "FP8" : "BF16",
                   fixed ? ", fixed cuts" : "");

            for (i = 0; i < n; i++) {
                bench(tiny ? &small[i] : &shapes[i], fp8, fixed, copy);
            }
        }
    }

    OK(cudaStreamDestroy(stream));

    return 0;
}


static void *
device(const void *host, size_t size)
{
    void  *p;

    OK(cudaMalloc(&p, size + 16));

    if (host != NULL) {
        OK(cudaMemcpy(p, host, size, cudaMemcpyHostToDevice));
    }

    return p;
}


static void *
host_room(size_t size)
{
    void  *p;

    p = malloc(size);
    if (p == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }

    return p;
}


/* BF16, or records of FP8, the same 64 tokens in every block. */

static void *
tokens(uint32_t blocks, int fp8)
{
    float      scale;
    size_t     size;
    uint8_t   *host, *dev;
    uint16_t  *h;
    uint32_t   i, k;

    size = (size_t) CU_MLA_BLOCK * (fp8 ? CU_MLA_FP8_SIZE : 2 * CU_MLA_DIM);
    host = host_room(size);
    h = (uint16_t *) (void *) host;

    for (i = 0; i < size / 2; i++) {
        h[i] = to_bf16(random_normal());
    }

    for (i = 0; fp8 && i < CU_MLA_BLOCK; i++) {

        for (k = 0; k < CU_MLA_LORA; k++) {
            host[i * CU_MLA_FP8_SIZE + k] = (uint8_t) (random_bits() % 127);
        }

        for (k = 0; k < 4; k++) {
            scale = 0.01f;
            memcpy(host + i * CU_MLA_FP8_SIZE + CU_MLA_LORA + 4 * k, &scale,
                   4);
        }
    }

    dev = device(NULL, size * blocks);

    for (i = 0; i < blocks; i++) {
        OK(cudaMemcpy(dev + size * i, host, size, cudaMemcpyHostToDevice));
    }

    free(host);

    return dev;
}


static void
attend(void *ctx)
{
    OK(cu_mla_attend(ctx, stream));
}


static void
bench(const shape_t *s, int fp8, int fixed, double copy)
{
    int               sms;
    double            t, bytes, flops;
    size_t            n;
    int32_t          *table;
    uint32_t          i, k, each, rows, *pos;
    uint16_t         *q;
    cu_mla_plan_t     p;
    cu_mla_group_t   *g;
    cu_mla_attend_t   a;

    rows = s->seqs * s->rows;
    each = (s->tokens + CU_MLA_BLOCK - 1) / CU_MLA_BLOCK;
    table = host_room((size_t) each * s->seqs * sizeof(int32_t));
    pos = host_room(rows * sizeof(uint32_t));
    g = host_room(s->seqs * sizeof(cu_mla_group_t));
    n = (size_t) rows * s->heads * CU_MLA_DIM;
    q = host_room(n * 2);
    bytes = 0;
    flops = 0;

    for (i = 0; i < each * s->seqs; i++) {
        table[i] = (int32_t) i;
    }

    for (i = each * s->seqs; i > 1; i--) {
        k = random_bits() % i;
        n = (size_t) table[k];
        table[k] = table[i - 1];
        table[i - 1] = (int32_t) n;
    }

    for (i = 0; i < s->seqs; i++) {
        g[i].row = i * s->rows;
        g[i].rows = s->rows;
        g[i].pos = s->tokens - s->rows;
        g[i].first = 0;
        g[i].table = i * each;
        bytes += (double) s->tokens
                 * (fp8 ? CU_MLA_FP8_SIZE : 2 * CU_MLA_DIM);

        for (k = 0; k < s->rows; k++) {
            pos[i * s->rows + k] = g[i].pos + k;
            flops += 2.0 * (g[i].pos + k + 1) * s->heads
                     * (CU_MLA_DIM + CU_MLA_LORA);
        }
    }

    n = (size_t) rows * s->heads * CU_MLA_DIM;

    for (i = 0; i < n; i++) {
        q[i] = to_bf16(random_normal() * 0.3f);
    }

    OK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));

    if (cu_mla_plan_open(&p, s->heads, (uint32_t) sms, rows, fixed) != 0
        || cu_mla_plan(&p, g, s->seqs) != 0)
    {
        fprintf(stderr, "no plan\n");
        exit(1);
    }

    memset(&a, 0, sizeof(a));
    a.work.unit = device(p.unit, p.n_units * sizeof(cu_mla_unit_t));
    a.work.lane = device(p.lane, (p.lanes + 1) * sizeof(uint32_t));
    a.work.merge = device(p.merge, p.n_merge * sizeof(cu_mla_merge_t));
    a.work.n_merge = device(&p.n_merge, sizeof(uint32_t));
    a.work.table = device(table, (size_t) each * s->seqs * sizeof(int32_t));
    a.work.pos = device(pos, rows * sizeof(uint32_t));
    a.q = device(q, n * 2);
    a.kv = tokens(each * s->seqs, fp8);
    a.o = device(NULL, (size_t) rows * s->heads * CU_MLA_LORA * 2);
    a.scratch = device(NULL, cu_mla_scratch_size(&p));
    a.n_queries = rows * s->heads;
    a.heads = s->heads;
    a.blocks = each * s->seqs;
    a.gang = p.gang;
    a.lanes = p.lanes;
    a.max_parts = p.max_parts;
    a.scale = 0.1352338f;
    a.fixed = fixed;
    a.fp8 = fp8;

    t = timed(attend, &a);

    printf("%-20s %4u x %2u of %6u: %8.1f us %6.0f GB/s (%3.0f %%) "
           "%5.0f TFLOP/s, %u units, %u parts\n", s->name, s->seqs, s->rows,
           s->tokens, t * 1e6, bytes / t * 1e-9, 100 * bytes / t / copy,
           flops / t * 1e-12, p.n_units, p.n_parts);

    OK(cudaFree((void *) (uintptr_t) a.work.unit));
    OK(cudaFree((void *) (uintptr_t) a.work.lane));
    OK(cudaFree((void *) (uintptr_t) a.work.merge));
    OK(cudaFree((void *) (uintptr_t) a.work.n_merge));
    OK(cudaFree((void *) (uintptr_t) a.work.table));
    OK(cudaFree((void *) (uintptr_t) a.work.pos));
    OK(cudaFree((void *) (uintptr_t) a.q));
    OK(cudaFree((void *) (uintptr_t) a.kv));
    OK(cudaFree(a.o));
    OK(cudaFree(a.scratch));
    cu_mla_plan_close(&p);
    free(table);
    free(pos);
    free(g);
    free(q);
}
