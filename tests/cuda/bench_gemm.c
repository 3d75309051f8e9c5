/*
 * Grouped products at DeepSeek-V3's shapes, beside what the device can do:
 * a copy (bytes read and written) and cuBLASLt's BF16 product of 8192 cubed,
 * measured in the same run.
 *
 *     bench_gemm [--small]      tiny shapes, to see that it runs
 *
 * Prefill, with results in BF16: tera-operations a second; decode, in float32:
 * bytes of the matrices, of the groups that have rows, a second, and the share
 * of the copy's.  Then dense products, our own beside cuBLASLt's, by rows.
 * Each figure is the median of BENCH_REPEATS, on random numbers.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/be_quant.h"
#include "backend/cuda/be_cuda.h"
#include "backend/cuda/cu_gemm.h"
#include "bench_gpu.h"


#define NOISE     (8u << 20)         /* bytes of random numbers */
#define GROUPS    32

typedef struct {
    const char  *name;
    uint32_t     groups;
    uint32_t     rows;               /* of each group */
    uint32_t     n;
    uint32_t     k;
    int          decode;
} shape_t;

typedef struct {
    double  copy;                    /* bytes a second */
    double  blas;                    /* operations a second, 0: not there */
} ceiling_t;


static void ceilings(ceiling_t *c, uint32_t side, size_t bytes);
static void bench(const shape_t *s, cu_mm_type_t type, int fp8,
    const ceiling_t *c);
static void dense(cu_mm_type_t type, uint32_t n, uint32_t k, int tiny);


static const char *const  type_name[] = { "BF16", "FP8", "INT4" };

static const shape_t  shapes[] = {
    { "prefill, 4 experts", 4, 8192, 4096, 7168, 0 },
    { "prefill, 4 experts", 4, 8192, 7168, 2048, 0 },
    { "prefill, 8 experts", 8, 4096, 4096, 7168, 0 },
    { "prefill, 32 experts", 32, 1024, 2048, 7168, 0 },
    { "prefill, 32 experts", 32, 1024, 7168, 2048, 0 },
    { "decode, 32 experts", 32, 1, 2048, 7168, 1 },
    { "decode, 32 experts", 32, 4, 2048, 7168, 1 },
    { "decode, 32 experts", 32, 8, 2048, 7168, 1 },
    { "decode, 32 experts", 32, 16, 2048, 7168, 1 },
    { "decode, 32 experts", 32, 16, 7168, 2048, 1 },
    { "decode, 32 experts", 32, 32, 2048, 7168, 1 },
    { "decode, 32 experts", 32, 64, 2048, 7168, 1 },
    { "decode, 32 experts", 32, 128, 2048, 7168, 1 }
};

static const shape_t  small[] = {
    { "prefill", 2, 150, 256, 256, 0 },
    { "decode", 4, 3, 256, 256, 1 }
};


int
main(int argc, char **argv)
{
    int         tiny;
    size_t      i, n;
    ceiling_t   c;
    uint32_t    type, kind;

    tiny = (argc > 1 && strcmp(argv[1], "--small") == 0);

    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ceilings(&c, tiny ? 256 : 8192, tiny ? 1 << 20 : (size_t) 1 << 30);

    n = tiny ? sizeof(small) / sizeof(shape_t)
             : sizeof(shapes) / sizeof(shape_t);

    /* the last one: INT4 with rows in FP8 */

    for (kind = 0; kind <= CU_MM_INT4 + 1; kind++) {
        type = kind < CU_MM_INT4 ? kind : CU_MM_INT4;

        for (i = 0; i < n; i++) {
            bench(tiny ? &small[i] : &shapes[i], (cu_mm_type_t) type,
                  kind == CU_MM_FP8 || kind > CU_MM_INT4, &c);
        }
    }

    for (type = CU_MM_BF16; type <= CU_MM_FP8; type++) {
        dense((cu_mm_type_t) type, tiny ? 256 : 7168, tiny ? 512 : 2048, tiny);
        dense((cu_mm_type_t) type, tiny ? 256 : 24576, tiny ? 512 : 1536,
              tiny);
        dense((cu_mm_type_t) type, tiny ? 256 : 7168, tiny ? 512 : 16384,
              tiny);
    }

    OK(cudaStreamDestroy(stream));

    return 0;
}


/* --- numbers ----------------------------------------------------------- */

/* Bytes of BF16, e4m3fn or INT4 chunks, random; made once. */

static const uint8_t *
noise(cu_mm_type_t type, size_t *size)
{
    size_t    i, n;
    uint8_t  *host;
    uint16_t  h;

    static uint8_t  *made[CU_MM_INT4 + 1];

    n = NOISE / be_quant_chunk(BE_INT4) * be_quant_chunk(BE_INT4);
    *size = n;

    if (made[type] != NULL) {
        return made[type];
    }

    host = malloc(n + 2);
    if (host == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }

    for (i = 0; i < n; i += 2) {
        if (type == CU_MM_BF16
            || (type == CU_MM_INT4 && i % be_quant_chunk(BE_INT4)
                                      < be_quant_scales(BE_INT4)))
        {
            h = to_bf16(random_normal()
                        * (type == CU_MM_INT4 ? 0.01f : 1.0f));
            memcpy(host + i, &h, 2);

        } else if (type == CU_MM_FP8) {
            host[i] = be_to_e4m3(random_normal() * 60);
            host[i + 1] = be_to_e4m3(random_normal() * 60);

        } else {
            host[i] = (uint8_t) random_bits();
            host[i + 1] = (uint8_t) random_bits();
        }
    }

    made[type] = host;

    return host;
}


/* `size` bytes of them on the device. */

static void *
numbers(cu_mm_type_t type, size_t size)
{
    void           *dev;
    size_t          n, at;
    const uint8_t  *host;

    host = noise(type, &n);
    OK(cudaMalloc(&dev, size));

    for (at = 0; at < size; at += n) {
        OK(cudaMemcpy((uint8_t *) dev + at, host,
                      (size - at < n) ? size - at : n,
                      cudaMemcpyHostToDevice));
    }

    return dev;
}


static float *
scales(size_t n)
{
    float  *host;
    void   *dev;
    size_t  i;

    host = malloc(n * sizeof(float));
    if (host == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }

    for (i = 0; i < n; i++) {
        host[i] = 0.001f * (float) (1 + random_bits() % 1000);
    }

    OK(cudaMalloc(&dev, n * sizeof(float)));
    OK(cudaMemcpy(dev, host, n * sizeof(float), cudaMemcpyHostToDevice));
    free(host);

    return dev;
}


/* --- ceilings ---------------------------------------------------------- */

typedef struct {
    be_cuda_t     *cuda;
    cuda_blas_t   *blas;
    cu_mm_t        mm;
    void          *room;
} peak_t;


static void
peak_blas(void *ctx)
{
    peak_t  *p;

    p = ctx;
    OK(be_cuda_blas_mm(p->cuda, p->blas, &p->mm));
}


static void
ceilings(ceiling_t *c, uint32_t side, size_t bytes)
{
    char    why[ERR_LEN];
    peak_t  p;

    memset(&p, 0, sizeof(p));
    memset(c, 0, sizeof(ceiling_t));

    c->copy = bench_copy(bytes);

    p.blas = be_cuda_blas_open(0, why);

    if (p.blas == NULL) {
        printf("cuBLASLt: %s\n", why);
        return;
    }

    p.cuda = calloc(1, sizeof(be_cuda_t));
    if (p.cuda == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }

    p.cuda->stream = stream;
    p.mm.m.w = numbers(CU_MM_BF16, (size_t) side * side * 2);
    p.mm.m.n = side;
    p.mm.m.k = side;
    p.mm.m.ld = side;
    p.mm.x.x = numbers(CU_MM_BF16, (size_t) side * side * 2);
    p.mm.x.ld = side;
    OK(cudaMalloc(&p.mm.y, (size_t) side * side * 2));
    p.mm.ldy = side;
    p.mm.rows = side;
    p.mm.batch = 1;
    p.mm.narrow = 1;

    c->blas = 2.0 * side * side * (double) side / timed(peak_blas, &p);
    printf("cuBLASLt BF16, %u cubed: %.0f TFLOP/s\n", side, c->blas * 1e-12);

    OK(cudaFree((void *) (uintptr_t) p.mm.m.w));
    OK(cudaFree(p.mm.x.x));
    OK(cudaFree(p.mm.y));
    be_cuda_blas_close(p.blas);
    free(p.cuda);
}


/* --- products ---------------------------------------------------------- */

static void
product(void *ctx)
{
    OK(cu_gemm_grouped(ctx, stream));
}


static void
bench(const shape_t *s, cu_mm_type_t type, int fp8, const ceiling_t *c)
{
    void          *w, *maps, *m, *offset;
    size_t         each, bytes;
    double         t, flops;
    uint32_t       g, rows, blocks;
    uint32_t       at[GROUPS + 1];
    cu_gemm_t      p;
    cu_matrix_t    matrix[GROUPS];
    static CUtensorMap  map[GROUPS];

    memset(&p, 0, sizeof(p));
    memset(matrix, 0, sizeof(matrix));
    rows = s->groups * s->rows;
    blocks = (s->k + 127) / 128;

    each = (type == CU_MM_INT4)
           ? be_quant_size(BE_INT4, s->n, s->k, 1)
           : (size_t) s->n * s->k * (type == CU_MM_BF16 ? 2 : 1);
    w = numbers(type, each * s->groups);

    for (g = 0; g < s->groups; g++) {
        at[g] = g * s->rows;
        matrix[g].w = (uint8_t *) w + each * g;
        matrix[g].n = s->n;
        matrix[g].k = s->k;
        matrix[g].ld = s->k;
        matrix[g].ld_scale = blocks;
        matrix[g].type = type;

        if (type == CU_MM_FP8) {
            matrix[g].scale = scales((size_t) (s->n + 127) / 128 * blocks);
        }

        if (type != CU_MM_INT4) {
            OK(cu_gemm_map(&matrix[g], &map[g]));
        }
    }

    at[s->groups] = rows;

    OK(cudaMalloc(&maps, sizeof(map)));
    OK(cudaMalloc(&m, sizeof(matrix)));
    OK(cudaMalloc(&offset, sizeof(at)));
    OK(cudaMemcpy(maps, map, sizeof(map), cudaMemcpyHostToDevice));
    OK(cudaMemcpy(m, matrix, sizeof(matrix), cudaMemcpyHostToDevice));
    OK(cudaMemcpy(offset, at, sizeof(at), cudaMemcpyHostToDevice));

    p.g.m = m;
    p.g.offset = offset;
    p.g.groups = s->groups;
    p.g.rows = rows;
    p.g.n = s->n;
    p.g.k = s->k;
    p.g.ldy = s->n;
    p.g.x.ld = s->k;
    p.g.x.ld_scale = (rows + 3) / 4 * 4;
    p.g.x.x = numbers(fp8 ? CU_MM_FP8 : CU_MM_BF16,
                      (size_t) rows * s->k * (fp8 ? 1 : 2));
    p.maps = maps;
    p.type = type;
    p.g.narrow = !s->decode;

    if (fp8) {
        p.g.x.scale = scales((size_t) blocks * p.g.x.ld_scale);
    }

    OK(cudaMalloc((void **) &p.g.y, (size_t) rows * s->n * sizeof(float)));

    t = timed(product, &p);
    flops = 2.0 * rows * s->n * (double) s->k;
    bytes = each * s->groups;

    printf("%-4s x %-4s %-20s %5u rows each, %u x %u: %8.1f us, "
           "%6.1f TFLOP/s", type_name[type], fp8 ? "FP8" : "BF16", s->name,
           s->rows, s->n, s->k, t * 1e6, flops / t * 1e-12);

    if (s->decode) {
        printf(", %5.0f GB/s, %2.0f %% of a copy",
               (double) bytes / t * 1e-9,
               100.0 * (double) bytes / t / c->copy);

    } else if (c->blas > 0) {
        printf(", %.2f of cuBLASLt in BF16", flops / t / c->blas);
    }

    printf("\n");

    for (g = 0; g < s->groups; g++) {
        OK(cudaFree((void *) (uintptr_t) matrix[g].scale));
    }

    OK(cudaFree(w));
    OK(cudaFree(maps));
    OK(cudaFree(m));
    OK(cudaFree(offset));
    OK(cudaFree(p.g.x.x));
    OK(cudaFree(p.g.x.scale));
    OK(cudaFree(p.g.y));
}


/* --- dense products ------------------------------------------------------ */

static void
dense_own(void *ctx)
{
    peak_t  *p;

    p = ctx;
    OK(cu_gemm(&p->mm, p->mm.dev, 0, p->room, stream));
}


static void
dense(cu_mm_type_t type, uint32_t n, uint32_t k, int tiny)
{
    int       fp8;
    char      why[ERR_LEN];
    void     *dev;
    double    t, flops;
    peak_t    p;
    uint32_t  i, blocks, most;

    static const uint32_t  rows[] = { 8, 64, 128, 512, 4096 };

    memset(&p, 0, sizeof(p));
    fp8 = (type == CU_MM_FP8);
    most = tiny ? 128 : 4096;
    blocks = (k + 127) / 128;
    p.blas = be_cuda_blas_open(0, why);
    p.cuda = calloc(1, sizeof(be_cuda_t));

    if (p.cuda == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }

    p.cuda->stream = stream;
    p.mm.m.type = type;
    p.mm.m.w = numbers(type, (size_t) n * k * (fp8 ? 1 : 2));
    p.mm.m.n = n;
    p.mm.m.k = k;
    p.mm.m.ld = k;
    p.mm.m.ld_scale = blocks;
    p.mm.x.x = numbers(type, (size_t) most * k * (fp8 ? 1 : 2));
    p.mm.x.ld = k;
    p.mm.ldy = n;
    p.mm.batch = 1;
    OK(cudaMalloc(&p.mm.y, (size_t) most * n * sizeof(float)));

    if (fp8) {
        p.mm.m.scale = scales((size_t) (n + 127) / 128 * blocks);
        p.mm.x.scale = scales((size_t) blocks * most);
    }

    OK(cudaMalloc(&p.room, CU_GEMM_ROOM));
    OK(cudaMemset(p.room, 0, CU_GEMM_ROOM));
    OK(cudaMalloc(&dev, sizeof(cu_matrix_t)));
    OK(cudaMemcpy(dev, &p.mm.m, sizeof(cu_matrix_t), cudaMemcpyHostToDevice));
    p.mm.dev = dev;

    for (i = 0; i < sizeof(rows) / sizeof(rows[0]) && rows[i] <= most; i++) {
        p.mm.rows = rows[i];
        p.mm.x.ld_scale = rows[i];
        flops = 2.0 * rows[i] * n * (double) k;
        t = timed(dense_own, &p);
        printf("%-4s dense, %4u rows, %5u x %5u: own %8.1f us, %6.1f TFLOP/s",
               type_name[type], rows[i], n, k, t * 1e6, flops / t * 1e-12);

        if (p.blas != NULL
            && be_cuda_blas_mm(p.cuda, p.blas, &p.mm) == 0)
        {
            t = timed(peak_blas, &p);
            printf("; cuBLASLt %8.1f us, %6.1f TFLOP/s", t * 1e6,
                   flops / t * 1e-12);
        }

        printf("\n");
    }

    OK(cudaFree((void *) (uintptr_t) p.mm.m.w));
    OK(cudaFree((void *) (uintptr_t) p.mm.m.scale));
    OK(cudaFree(p.mm.x.x));
    OK(cudaFree(p.mm.x.scale));
    OK(cudaFree(p.mm.y));
    OK(cudaFree(dev));
    OK(cudaFree(p.room));
    be_cuda_blas_close(p.blas);
    free(p.cuda);
}
