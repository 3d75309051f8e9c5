/*
 * Memory that a step works in.  Each file says what its operations need for
 * the largest step; that much is taken, and written once so that it is there,
 * before the first.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/be_cpu.h"


#define SCRATCH_PAGE   4096
#define SCRATCH_SHARE  2             /* of pairs, times the even share */


static size_t scratch_pages(size_t size);


int
be_cpu_reserve(be_t *be, const be_largest_t *l, char *err)
{
    void      *p;
    size_t     all, size[BE_SCRATCH_MAX];
    uint32_t   i;
    uint64_t   pairs, padding;
    be_cpu_t  *cpu;

    cpu = (be_cpu_t *) be;
    memset(size, 0, sizeof(size));

    /*
     * All rows of all ranks may choose this rank's experts.  What is above
     * twice the even share is done in turns, and reads weights again.
     */

    pairs = (uint64_t) l->rows * l->gate->top_k;
    padding = (pairs < l->gate->experts) ? pairs : l->gate->experts;
    pairs *= SCRATCH_SHARE;
    pairs = (pairs < l->pairs) ? pairs : l->pairs;
    pairs = (pairs / BE_ROW_BLOCK + padding + 1) * BE_ROW_BLOCK;

    if (pairs < cpu->most_packed) {
        cpu->most_packed = (uint32_t) pairs;
    }

    be_product_reserve(cpu, l, size);
    be_mla_reserve(cpu, l, size);
    be_attend_reserve(cpu, l, size);
    be_moe_reserve(cpu, l, size);

    all = 0;

    for (i = 0; i < BE_SCRATCH_MAX; i++) {
        size[i] = scratch_pages(size[i]);
        all += size[i];
    }

    for (i = 0; i < BE_SCRATCH_MAX; i++) {

        if (size[i] <= cpu->scratch_size[i]) {
            continue;
        }

        p = aligned_alloc(64, size[i]);
        if (p == NULL) {
            snprintf(err, ERR_LEN, "no memory for steps of %u rows on %u "
                     "threads: they work in %zu MiB besides weights and KV "
                     "pool, and a piece of %zu MiB is not there", l->rows,
                     cpu->threads, (all + 1048575) / 1048576,
                     (size[i] + 1048575) / 1048576);
            return -1;
        }

        memset(p, 0, size[i]);

        free(cpu->scratch[i]);
        cpu->scratch[i] = p;
        cpu->scratch_size[i] = size[i];
    }

    return 0;
}


void *
be_scratch(be_cpu_t *cpu, be_scratch_t use, size_t size)
{
    void    *p;
    size_t   n;

    if (size <= cpu->scratch_size[use]) {
        return cpu->scratch[use];
    }

    /* Not after be_cpu_reserve(), and a step cannot fail half-way. */

    n = scratch_pages(size + size / 4);

    p = aligned_alloc(64, n);
    if (p == NULL) {
        fprintf(stderr, "cpu backend: no memory for %zu bytes of scratch\n",
                n);
        abort();
    }

    free(cpu->scratch[use]);
    cpu->scratch[use] = p;
    cpu->scratch_size[use] = n;

    return p;
}


size_t
be_packed_size(const be_cpu_t *cpu, uint32_t rows, uint32_t k)
{
    size_t            most;
    uint32_t          i;
    const be_gemm_t  *gemm;

    most = 0;
    rows = (rows + BE_ROW_BLOCK - 1) / BE_ROW_BLOCK * BE_ROW_BLOCK;

    for (i = 0; i < BE_DTYPES; i++) {
        gemm = &cpu->mode->gemm[i];

        if (gemm->row_block != 0) {
            be_reserve(&most, gemm->size(rows, k));
        }
    }

    return most;
}


static size_t
scratch_pages(size_t size)
{
    return (size + SCRATCH_PAGE - 1) / SCRATCH_PAGE * SCRATCH_PAGE;
}
