/*
 * Partial results of the latent attention become one, in order.
 */

#include "cu_mla.cuh"


#define MERGE_THREADS  256
#define MERGE_ROWS     8             /* that a block of threads takes */
#define MERGE_ITEMS    (CU_MLA_TILE / MERGE_ROWS)


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
    float         max, sum, next, of, by;
    size_t        at;
    float4        o, v;
    uint32_t      i, part;
    const float  *ml;

    o = make_float4(0, 0, 0, 0);
    max = 0;
    sum = 0;

    for (i = 0; i < m->parts; i++) {
        part = m->part + i * m->stride;
        ml = a->part_ml + (size_t) part * 2 * CU_MLA_TILE + row;
        v = *(const float4 *) (a->part
                               + ((size_t) part * CU_MLA_TILE + row)
                                 * CU_MLA_LORA + col);

        if (i == 0) {
            o = v;
            max = ml[0];
            sum = ml[CU_MLA_TILE];
            continue;
        }

        next = fmaxf(max, ml[0]);
        of = mla_shift(max, next);
        by = mla_shift(ml[0], next);
        max = next;
        sum = mla_join(sum, of, ml[CU_MLA_TILE], by);
        o.x = mla_join(o.x, of, v.x, by);
        o.y = mla_join(o.y, of, v.y, by);
        o.z = mla_join(o.z, of, v.z, by);
        o.w = mla_join(o.w, of, v.w, by);
    }

    by = sum > 0 ? 1.0f / sum : 0;
    at = (size_t) (m->query + row) * CU_MLA_LORA + col;

    mla_out(a->o, at, o.x * by, o.y * by, a->wide);
    mla_out(a->o, at + 2, o.z * by, o.w * by, a->wide);
}


static __global__ void __launch_bounds__(MERGE_THREADS)
merge_kernel(const merge_args_t a)
{
    uint32_t               i, k, n, row;
    const cu_mla_merge_t  *m;

    n = *a.n_merge * MERGE_ITEMS;

    for (i = blockIdx.x; i < n; i += gridDim.x) {

        m = &a.merge[i / MERGE_ITEMS];

        for (k = threadIdx.x; k < MERGE_ROWS * CU_MLA_LORA / 4;
             k += MERGE_THREADS)
        {
            row = i % MERGE_ITEMS * MERGE_ROWS + k / (CU_MLA_LORA / 4);

            if (m->query + row < m->end) {
                merge_row(&a, m, row, k % (CU_MLA_LORA / 4) * 4);
            }
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

    return CU_LAUNCH(merge_kernel, dim3(a->lanes * a->gang),
                     dim3(MERGE_THREADS), 0, (cudaStream_t) stream, args);
}
