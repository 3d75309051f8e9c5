/*
 * Partial results of the latent attention become one, in order.
 */

#include "cu_mla.cuh"


#define MERGE_THREADS  (CU_MLA_LORA / 4)
#define MERGE_AHEAD    8             /* parts that are read at a time */


typedef struct {
    const cu_mla_merge_t  *merge;
    const uint32_t        *n_merge;
    const float           *part;
    const float           *part_ml;
    void                  *o;
    int                    wide;
} merge_args_t;


/* Four elements of a row; maxima and sums go along with each thread. */

static __device__ void
merge_row(const merge_args_t *a, const cu_mla_merge_t *m, uint32_t row,
    uint32_t col)
{
    int           k;
    float         max, sum, next, of, by;
    float         most[MERGE_AHEAD], sums[MERGE_AHEAD];
    size_t        at;
    float4        o, v[MERGE_AHEAD];
    uint32_t      i, part;
    const float  *ml;

    o = make_float4(0, 0, 0, 0);
    max = 0;
    sum = 0;

    for (i = 0; i < m->parts; i += MERGE_AHEAD) {

#pragma unroll
        for (k = 0; k < MERGE_AHEAD; k++) {
            part = m->part + min(i + k, m->parts - 1) * m->stride;
            ml = a->part_ml + (size_t) part * 2 * CU_MLA_TILE + row;
            most[k] = ml[0];
            sums[k] = ml[CU_MLA_TILE];
            v[k] = *(const float4 *) (a->part
                                      + ((size_t) part * CU_MLA_TILE + row)
                                        * CU_MLA_LORA + col);
        }

#pragma unroll
        for (k = 0; k < MERGE_AHEAD; k++) {

            if (i + k >= m->parts) {
                break;
            }

            if (i + k == 0) {
                o = v[k];
                max = most[k];
                sum = sums[k];
                continue;
            }

            next = fmaxf(max, most[k]);
            of = mla_shift(max, next);
            by = mla_shift(most[k], next);
            max = next;
            sum = mla_join(sum, of, sums[k], by);
            o.x = mla_join(o.x, of, v[k].x, by);
            o.y = mla_join(o.y, of, v[k].y, by);
            o.z = mla_join(o.z, of, v[k].z, by);
            o.w = mla_join(o.w, of, v[k].w, by);
        }
    }

    by = sum > 0 ? 1.0f / sum : 0;
    at = (size_t) (m->query + row) * CU_MLA_LORA + col;

    mla_out(a->o, at, o.x * by, o.y * by, a->wide);
    mla_out(a->o, at + 2, o.z * by, o.w * by, a->wide);
}


static __global__ void __launch_bounds__(MERGE_THREADS)
merge_kernel(const merge_args_t a)
{
    uint32_t               i, n, row;
    const cu_mla_merge_t  *m;

    cu_begin();

    n = *a.n_merge * CU_MLA_TILE;

    for (i = blockIdx.x; i < n; i += gridDim.x) {

        m = &a.merge[i / CU_MLA_TILE];
        row = i % CU_MLA_TILE;

        if (m->query + row < m->end) {
            merge_row(&a, m, row, 4 * threadIdx.x);
        }
    }
}


int
cu_mla_merge(const cu_mla_attend_t *a, const float *part,
    const float *part_ml, void *stream)
{
    merge_args_t  args;

    args.merge = a->work.merge;
    args.n_merge = a->work.n_merge;
    args.part = part;
    args.part_ml = part_ml;
    args.o = a->o;
    args.wide = a->wide;

    /* several blocks a multiprocessor, as each waits for memory */

    return CU_LAUNCH(merge_kernel, dim3(8 * a->lanes * a->gang),
                     dim3(MERGE_THREADS), 0, (cudaStream_t) stream, args);
}
