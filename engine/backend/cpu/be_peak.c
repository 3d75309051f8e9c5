/*
 * Peaks of the processor.  The instructions are written out, so that this
 * file needs no flags and each stands alone, on chains enough to hide its
 * latency.
 */

#include <stdint.h>
#include <string.h>
#include <time.h>

#include "backend/backend.h"
#include "backend/cpu/be_peak.h"


#define PEAK_THREADS  64
#define PEAK_LOOPS    20000
#define PEAK_TIMES    7              /* the best of so many counts */
#define PEAK_READS    9
#define PEAK_ITEM     ((size_t) 1 << 20)
#define PEAK_AHEAD    2048           /* bytes */
#define PEAK_ITEMS    8
#define PEAK_COST     100000000      /* enough to wake every thread */


typedef struct {
    const be_peak_t  *peak;
    const uint8_t    *data;
    size_t            size;
    struct {
        double        n;
        char          pad[56];       /* a cache line for each thread */
    } done[PEAK_THREADS];
} peak_job_t;


static int peak_have(const be_peak_t *p);
static void peak_item(void *ctx, uint32_t item, uint32_t worker);
static void peak_read_item(void *ctx, uint32_t item, uint32_t worker);
static double peak_done(peak_job_t *job);
static double peak_now(void);


/* Eight chains of what plain C has. */

static double
peak_scalar(void)
{
    float     x[8];
    uint32_t  i, j;

    memset(x, 0, sizeof(x));

    for (i = 0; i < PEAK_LOOPS; i++) {
#pragma GCC unroll 8
        for (j = 0; j < 8; j++) {
            x[j] = x[j] * 0.5f + 0.5f;
            __asm__ volatile ("" : "+x" (x[j]));
        }
    }

    return (double) PEAK_LOOPS * 8 * 2;
}


#if defined(__x86_64__)

/*
 * Twelve chains.  The first register is the input, and cleared: what the
 * numbers are makes no difference to the time.
 */

#define PEAK_CHAINS(op, r)                                                   \
    op " %%" r "0, %%" r "0, %%" r "1\n\t" op " %%" r "0, %%" r "0, %%" r    \
    "2\n\t" op " %%" r "0, %%" r "0, %%" r "3\n\t" op " %%" r "0, %%" r      \
    "0, %%" r "4\n\t" op " %%" r "0, %%" r "0, %%" r "5\n\t" op " %%" r      \
    "0, %%" r "0, %%" r "6\n\t" op " %%" r "0, %%" r "0, %%" r "7\n\t" op    \
    " %%" r "0, %%" r "0, %%" r "8\n\t" op " %%" r "0, %%" r "0, %%" r       \
    "9\n\t" op " %%" r "0, %%" r "0, %%" r "10\n\t" op " %%" r "0, %%" r     \
    "0, %%" r "11\n\t" op " %%" r "0, %%" r "0, %%" r "12"

#define PEAK_VECTOR(op, r, ops)                                              \
    uint32_t  i_;                                                            \
                                                                             \
    __asm__ volatile ("vzeroall" : : : "memory");                            \
                                                                             \
    for (i_ = 0; i_ < PEAK_LOOPS; i_++) {                                    \
        __asm__ volatile (PEAK_CHAINS(op, r) : : : "xmm0", "xmm1", "xmm2",   \
                          "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",    \
                          "xmm9", "xmm10", "xmm11", "xmm12");                \
    }                                                                        \
                                                                             \
    return (double) PEAK_LOOPS * 12 * (ops)

/* Four tiles of sums, of 16 x 16 over 64 bytes. */

#define PEAK_TILES(op, ops)                                                  \
    uint32_t  i_;                                                            \
                                                                             \
    __asm__ volatile ("ldtilecfg %0" : : "m" (peak_tiles));                  \
                                                                             \
    for (i_ = 0; i_ < PEAK_LOOPS; i_++) {                                    \
        __asm__ volatile (op " %tmm6, %tmm4, %tmm0\n\t"                      \
                          op " %tmm6, %tmm5, %tmm1\n\t"                      \
                          op " %tmm7, %tmm4, %tmm2\n\t"                      \
                          op " %tmm7, %tmm5, %tmm3");                        \
    }                                                                        \
                                                                             \
    return (double) PEAK_LOOPS * 4 * (ops)

/* As the kernels configure them, so that nothing is to be restored. */

static const uint8_t  peak_tiles[64] __attribute__((aligned(64))) = {
    [0] = 1,
    [16] = 64, [18] = 64, [20] = 64, [22] = 64,
    [24] = 64, [26] = 64, [28] = 64, [30] = 64,
    [48] = 16, [49] = 16, [50] = 16, [51] = 16,
    [52] = 16, [53] = 16, [54] = 16, [55] = 16
};


static double
peak_fma256(void)
{
    PEAK_VECTOR("vfmadd231ps", "ymm", 16);
}


static double
peak_fma512(void)
{
    PEAK_VECTOR("vfmadd231ps", "zmm", 32);
}


static double
peak_bf16(void)
{
    PEAK_VECTOR("vdpbf16ps", "zmm", 64);
}


static double
peak_int16(void)
{
    PEAK_VECTOR("vpmaddwd", "ymm", 32);
}


static double
peak_tiles_bf16(void)
{
    PEAK_TILES("tdpbf16ps", 16384);
}

#endif


static const be_peak_t  peak_all[] = {
    { "scalar mul and add", BE_PEAK_F32, "generic", peak_scalar },
#if defined(__x86_64__)
    { "vfmadd231ps ymm", BE_PEAK_F32, "avx2", peak_fma256 },
    { "vfmadd231ps zmm", BE_PEAK_F32, "avx512", peak_fma512 },
    { "vdpbf16ps zmm", BE_PEAK_BF16, "avx512bf16", peak_bf16 },
    { "tdpbf16ps", BE_PEAK_BF16, "amx", peak_tiles_bf16 },
    { "vpmaddwd ymm", BE_PEAK_INT16, "avx2", peak_int16 }
#endif
};

#define PEAK_N  (sizeof(peak_all) / sizeof(peak_all[0]))


const be_peak_t *
be_peak_of(const char *path, be_peak_type_t type)
{
    uint32_t          i, j;
    const be_peak_t  *best, *p;

    /* In order: each path has what those before it have. */

    static const char *const  order[] = {
        "generic", "avx2", "avx512", "avx512bf16", "amx"
    };

    best = &peak_all[0];

    for (i = 0; i < sizeof(order) / sizeof(order[0]); i++) {

        for (j = 0; j < PEAK_N; j++) {
            p = &peak_all[j];

            if (strcmp(p->path, order[i]) == 0 && peak_have(p)
                && (p->type == type
                    || (p->type == BE_PEAK_F32 && best->type != type)))
            {
                best = p;
            }
        }

        if (strcmp(order[i], path) == 0) {
            break;
        }
    }

    return best;
}


static int
peak_have(const be_peak_t *p)
{
    uint32_t            i;
    const char *const  *can;

    can = be_cpu_paths();

    for (i = 0; can[i] != NULL; i++) {
        if (strcmp(can[i], p->path) == 0) {
            return 1;
        }
    }

    return 0;
}


double
be_peak_measure(be_team_t *team, const be_peak_t *peak)
{
    double       best, from, rate;
    uint32_t     i;
    peak_job_t   job;

    memset(&job, 0, sizeof(job));
    job.peak = peak;
    best = 0;

    for (i = 0; i < PEAK_TIMES; i++) {
        from = peak_now();
        be_team_run(team, peak_item, &job, PEAK_ITEMS, PEAK_COST);
        rate = peak_done(&job) / (peak_now() - from);
        best = (rate > best) ? rate : best;
    }

    return best;
}


static void
peak_item(void *ctx, uint32_t item, uint32_t worker)
{
    peak_job_t  *job;

    (void) item;

    job = ctx;
    job->done[worker % PEAK_THREADS].n += job->peak->run();
}


static double
peak_done(peak_job_t *job)
{
    double    n;
    uint32_t  i;

    n = 0;

    for (i = 0; i < PEAK_THREADS; i++) {
        n += job->done[i].n;
        job->done[i].n = 0;
    }

    return n;
}


double
be_peak_read(be_team_t *team, const void *data, size_t size)
{
    double       best, from, rate;
    uint32_t     i;
    peak_job_t   job;

    memset(&job, 0, sizeof(job));
    job.data = data;
    job.size = size;
    best = 0;

    for (i = 0; i < PEAK_READS; i++) {
        from = peak_now();
        be_team_run(team, peak_read_item, &job,
                    (uint32_t) ((size + PEAK_ITEM - 1) / PEAK_ITEM),
                    PEAK_COST);
        rate = (double) size / (peak_now() - from);
        best = (rate > best) ? rate : best;
    }

    return best;
}


/*
 * One load of each cache line, asked for some lines ahead: what a line costs
 * is bringing it here.
 */

static void
peak_read_item(void *ctx, uint32_t item, uint32_t worker)
{
    size_t          i, n;
    uint64_t        x, sum;
    peak_job_t     *job;
    const uint8_t  *p;

    job = ctx;
    p = job->data + (size_t) item * PEAK_ITEM;
    n = job->size - (size_t) item * PEAK_ITEM;
    n = (n < PEAK_ITEM) ? n : PEAK_ITEM;
    sum = 0;

    for (i = 0; i + 64 <= n; i += 64) {
        __builtin_prefetch(p + i + PEAK_AHEAD);
        memcpy(&x, p + i, sizeof(x));
        sum += x;
    }

    job->done[worker % PEAK_THREADS].n += (double) sum;
}


static double
peak_now(void)
{
    struct timespec  ts;

    (void) clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}
