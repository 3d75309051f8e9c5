/*
 * What the kernel of the latent attention has in shared memory, what it is
 * told, and how the results of two runs become one: that is written once,
 * since a query's result must not depend on which kernel merges.
 */

#ifndef CU_MLA_CUH
#define CU_MLA_CUH

#include "cu_launch.cuh"
#include "cu_ptx.cuh"
#include "cu_mla.h"
#include "cu_mla_int.h"


#define MLA_THREADS   384
#define MLA_TILE      8192           /* bytes of 64 x 64 BF16, swizzled */
#define MLA_TILES     (CU_MLA_DIM / 64)
#define MLA_HALF      (CU_MLA_LORA / 2)

#define MLA_OWN       0
#define MLA_CROSS     1

/* Named barriers; 0 is of all threads. */
#define MLA_P0        1              /* P0 and its maximum are there */
#define MLA_P1        2
#define MLA_SUM       3              /* sums are exchanged */
#define MLA_GROUP     4              /* of warpgroup 0, and 1 */

typedef struct {
    unsigned char  q[MLA_TILES][MLA_TILE];
    unsigned char  kv[2][MLA_TILES][MLA_TILE];
    float          max[2][CU_MLA_TILE];
    float          sum[2][2][CU_MLA_TILE];     /* in turn */
    uint64_t       q_full;
    uint64_t       q_free;
    uint64_t       full[2][2];       /* block, half */
    uint64_t       free[2][2];
} mla_shared_t;

/* Where a thread is in the use of the barriers. */

typedef struct {
    uint32_t  q;
    uint32_t  kv[2];                 /* times that a block was filled */
} mla_turn_t;

typedef struct {
    const cu_mla_unit_t  *unit;
    const uint32_t       *lane;
    const int32_t        *table;
    const uint32_t       *pos;
    const uint8_t        *kv;        /* records, in FP8 */
    void                 *o;
    float                *part;      /* [parts][64][512] */
    float                *part_ml;   /* [parts][2][64] */
    float                *merged;    /* [blocks of threads][64][512] */
    uint32_t              heads;
    uint32_t              gang;
    float                 scale;     /* of base 2 */
    uint32_t              run;       /* tokens; 0: no fixed cuts */
    int                   wide;
} mla_args_t;

/* A tile's part of a unit. */

typedef struct {
    uint32_t  query;
    uint32_t  end;
    uint32_t  table;
    uint32_t  begin;
    uint32_t  stop;
    uint32_t  first;
    uint32_t  full;
    int32_t   part;
} mla_work_t;

/* What a thread of a computing warpgroup has of its two rows. */

typedef struct {
    float     max[2];                /* of scores times `scale` */
    float     sum[2];                /* of its own columns */
    float     all_max[2];            /* of the runs merged so far */
    float     all_sum[2];
    uint32_t  limit[2];              /* tokens that the row may see */
    int       row[2];                /* of the tile */
} mla_rows_t;


static __device__ __forceinline__ int
mla_work(const mla_args_t *a, uint32_t i, mla_work_t *w)
{
    uint32_t              g;
    const cu_mla_unit_t  *u;

    u = &a->unit[i];
    g = blockIdx.x % a->gang;

    w->query = u->query + g * CU_MLA_TILE;

    if (w->query >= u->end) {
        return 0;
    }

    w->end = min(u->end, w->query + CU_MLA_TILE);
    w->table = u->table;
    w->begin = u->begin;
    w->stop = u->stop;
    w->first = u->first;
    w->full = u->full;
    w->part = u->part < 0 ? -1 : u->part + (int32_t) g;

    return 1;
}


/* Where a run ends, and a pair of blocks, which is of one run. */

static __device__ __forceinline__ uint32_t
mla_run_end(const mla_args_t *a, uint32_t at, uint32_t stop)
{
    return a->run > 0 ? min(stop, (at / a->run + 1) * a->run) : stop;
}


static __device__ __forceinline__ uint32_t
mla_next(const mla_args_t *a, uint32_t at, uint32_t stop)
{
    return min(mla_run_end(a, at, stop), at + 2 * CU_MLA_BLOCK);
}


/* The first of the four tiles of a half. */

static __device__ __forceinline__ int
mla_half(int block, int half)
{
    return half == MLA_OWN ? 4 * block : 4 * (1 - block);
}


#define MLA_NONE  (-INFINITY)        /* the maximum of nothing */


/* 2^(from - to): what takes sums from one maximum to another one. */

static __device__ __forceinline__ float
mla_shift(float from, float to)
{
    return from == to ? 1.0f : cu_exp2(from - to);
}


static __device__ __forceinline__ float
mla_join(float x, float a, float y, float b)
{
    return __fmaf_rn(x, a, __fmul_rn(y, b));
}


/* Two elements of the output, at an even place. */

static __device__ __forceinline__ void
mla_out(void *o, size_t at, float x, float y, int wide)
{
    if (wide) {
        *(float2 *) ((float *) o + at) = make_float2(x, y);
    } else {
        *(uint32_t *) ((uint16_t *) o + at) = cu_pack_bf16(x, y);
    }
}


#endif /* CU_MLA_CUH */
