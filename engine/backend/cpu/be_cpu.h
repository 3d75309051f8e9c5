/*
 * The CPU backend's inside: what its files share.
 *
 *     be_cpu.c       opening, memory, the KV pool, simple row operations
 *     be_scratch.c   memory that a step works in
 *     be_weight.c    matrices: mapped, converted, transposed, quantised
 *     be_region.c    huge pages for them
 *     be_product.c   matrix products over groups of rows, cut into items
 *     be_mla.c       cache, query and value of the latent attention
 *     be_attend.c    attention over the latent cache
 *     be_moe.c       router, experts, MLPs, combine
 *     be_team.c      threads
 *     be_kernels*    inner loops, a table for each kernel path
 *     be_panels*     products with quantised weights, for each kernel path
 *     be_simd.h      vectors of floats, AVX2 or AVX-512
 *     be_bf16.h      products of pairs of BF16; attention with them
 *     be_amx*        the matrix unit
 */

#ifndef BE_CPU_H
#define BE_CPU_H

#include <stdatomic.h>

#include "backend/backend.h"
#include "backend/be_quant.h"
#include "backend/cpu/be_kernels.h"
#include "backend/cpu/be_region.h"
#include "backend/cpu/be_team.h"


#define BE_TILE_COLS  256            /* most columns of a store function */


struct be_weight_s {
    be_dtype_t       dtype;
    uint32_t         rows;
    uint32_t         cols;
    uint32_t         part_rows;      /* of an equal part, or all */
    uint32_t         part_panels;    /* 0: rows, one after the other */
    size_t           ld;             /* bytes from row to row, or panel */
    const uint8_t   *data;
    void            *own;            /* what data points to if it is ours */
    be_region_t     *region;         /* that it lies in, or NULL */
};

struct be_kv_s {
    uint32_t         layers;
    uint32_t         blocks;
    uint32_t         dim;            /* kv_lora + rope */
    be_dtype_t       dtype;
    size_t           row_size;       /* bytes of a token in one layer */
    size_t           block_size;     /* bytes of a block in one layer */
    size_t           size;
    uint8_t         *data;

    /* What was stored last is not all finite. */
    _Atomic int      infinite;
};

/*
 * Scratch memory by use.  What the largest step needs is reserved before the
 * first; whoever does without that, as tests do, lets each grow to the
 * largest so far.
 */

typedef enum {
    BE_SCRATCH_ACT = 0,              /* packed inputs of a product */
    BE_SCRATCH_ACT2,                 /* and of the one after it */
    BE_SCRATCH_GROUP,
    BE_SCRATCH_OFFSET,
    BE_SCRATCH_ITEM,
    BE_SCRATCH_TILE,                 /* per thread */
    BE_SCRATCH_ATTEND,               /* per thread */
    BE_SCRATCH_PART,                 /* what comes of runs, to be merged */
    BE_SCRATCH_RUN,
    BE_SCRATCH_ROPE,
    BE_SCRATCH_POS,
    BE_SCRATCH_LOGITS,
    BE_SCRATCH_MAX
} be_scratch_t;

typedef struct {
    be_t                      be;    /* first */
    const be_kernels_t       *k;
    const be_mode_kernels_t  *mode;  /* of the compute mode */
    be_dtype_t                compute;
    be_dtype_t                weights;   /* BE_F32: as they are */
    be_options_t              opt;   /* as opened, with the path chosen */
    be_team_t                *team;
    be_region_t              *region;    /* where weights go */
    uint32_t                  threads;
    size_t                    cache; /* bytes of L2 to work in */

    void                     *scratch[BE_SCRATCH_MAX];
    size_t                    scratch_size[BE_SCRATCH_MAX];

    /* Packed rows of experts at a time, a multiple of BE_ROW_BLOCK. */
    uint32_t                  most_packed;

    /* What the cosines and sines in BE_SCRATCH_ROPE were made for. */
    uint32_t                  rope_rows;
    uint32_t                  rope_dim;
    float                     rope_mscale;
} be_cpu_t;


/*
 * A product: for each group g, rows act_row … + rows of the packed
 * activations times rows w_row … + n of `w`, both of k elements.  The types
 * of the matrices of a product are one, or such that pack alike.
 */

typedef struct {
    const be_weight_t  *w;
    const be_weight_t  *pair;        /* second matrix on the same inputs */
    uint32_t            w_row;
    uint32_t            act_row;     /* a multiple of row_block */
    uint32_t            rows;
} be_group_t;

/*
 * Takes `m` rows from `row` of group `g`, columns col … col + n - 1, of the
 * result; c and pair are [m][ld] and may be overwritten.  Called once for
 * each element, by any thread.
 */

typedef void (*be_store_f)(void *ctx, uint32_t g, uint32_t row, uint32_t m,
    uint32_t col, uint32_t n, float *c, const float *pair, size_t ld);

typedef struct {
    const be_gemm_t          *gemm;      /* [BE_DTYPES] */
    const void               *act;       /* packed for the weights' type */
    uint32_t                  k;
    uint32_t                  n;
    uint32_t                  n_groups;
    const be_group_t         *group;

    /*
     * Where row r of group g goes, y + g * group_y + r * ldy, or NULL; then
     * `store` takes the result, else it is only told, with c in place.
     */
    float                    *y;
    size_t                    ldy;
    size_t                    group_y;

    be_store_f                store;     /* NULL: nothing more to do */
    void                     *ctx;

    /* It is told multiples of so many columns, or the last; 0: BE_PIECE. */
    uint32_t                  piece;
} be_product_t;


/* At least `size` bytes for that use, their content undefined. */
void *be_scratch(be_cpu_t *cpu, be_scratch_t use, size_t size);

int be_cpu_reserve(be_t *be, const be_largest_t *l, char *err);

/* What the operations of a file use at most: raises size[BE_SCRATCH_MAX]. */
void be_product_reserve(const be_cpu_t *cpu, const be_largest_t *l,
    size_t *size);
void be_mla_reserve(const be_cpu_t *cpu, const be_largest_t *l, size_t *size);
void be_attend_reserve(be_cpu_t *cpu, const be_largest_t *l, size_t *size);
void be_moe_reserve(const be_cpu_t *cpu, const be_largest_t *l, size_t *size);

/* Packed rows, of the type of weights for which they take most. */
size_t be_packed_size(const be_cpu_t *cpu, uint32_t rows, uint32_t k);

static inline void
be_reserve(size_t *at, size_t size)
{
    *at = (*at < size) ? size : *at;
}

/* Rows x[i] or x + i * ldx of k elements → packed rows; n rows. */
typedef const float *(*be_row_f)(void *ctx, uint32_t row, uint32_t *packed);
void be_pack(be_cpu_t *cpu, const be_gemm_t *gemm, void *act, uint32_t k,
    uint32_t rows, be_row_f row, void *ctx);

/* The i < n with first[i] <= item < first[i + 1]. */
uint32_t be_find(const uint32_t *first, uint32_t n, uint32_t item);

void be_product(be_cpu_t *cpu, const be_product_t *p);

/* Rows that follow each other, for be_pack(). */
typedef struct {
    const float  *x;
    size_t        ldx;
} be_rows_t;

const float *be_rows_row(void *ctx, uint32_t row, uint32_t *packed);

size_t be_dtype_size(be_dtype_t dtype);

/* Where a row of a matrix is, or its panel if it begins one. */

static inline const uint8_t *
be_weight_row(const be_weight_t *w, uint32_t row)
{
    size_t  at;

    at = row;

    if (w->part_panels != 0) {
        at = (size_t) (row / w->part_rows) * w->part_panels
             + row % w->part_rows / BE_PANEL;
    }

    return w->data + at * w->ld;
}


/* Products with this matrix in the backend's compute mode. */

static inline const be_gemm_t *
be_weight_gemm(const be_cpu_t *cpu, const be_weight_t *w)
{
    return &cpu->mode->gemm[w->dtype];
}

/* Operations, by file. */

be_weight_t *be_cpu_weight(be_t *be, const be_tensor_t *t, size_t *copies,
    char *err);
be_weight_t *be_cpu_weight_t(be_t *be, const be_tensor_t *t, uint32_t parts,
    size_t *copies, char *err);
be_weight_t *be_cpu_table(be_t *be, const be_tensor_t *t, size_t *copies,
    char *err);
void be_cpu_weight_free(be_t *be, be_weight_t *w);
void be_cpu_weight_tensor(const be_weight_t *w, be_tensor_t *t);

void be_cpu_linear(be_t *be, const be_weight_t *w, const float *x,
    uint32_t rows, float *y);
void be_cpu_linear_add(be_t *be, const be_weight_t *w, const float *x,
    uint32_t rows, float *y);

void be_cpu_mla_cache(be_t *be, be_kv_t *kv, uint32_t layer,
    const be_mla_t *mla, const be_rope_t *rope, const float *w, float eps,
    const float *kva, const be_batch_t *b);
void be_cpu_mla_query(be_t *be, const be_mla_t *mla, const be_rope_t *rope,
    const be_weight_t *w_uk, const float *q, const be_batch_t *b, float *ql);
void be_cpu_mla_attend(be_t *be, be_kv_t *kv, uint32_t layer,
    const be_mla_t *mla, float scale, const float *ql, const be_batch_t *b,
    float *ol);
void be_cpu_mla_value(be_t *be, const be_mla_t *mla, const be_weight_t *w_uv,
    const float *ol, uint32_t rows, float *o);

void be_cpu_mlp_add(be_t *be, const be_mlp_t *mlp, const float *x,
    uint32_t rows, float *y);
void be_cpu_gate(be_t *be, const be_gate_t *g, const float *w,
    const float *bias, const float *x, uint32_t rows, uint32_t hidden,
    int32_t *id, float *weight);
void be_cpu_experts(be_t *be, const be_mlp_t *mlp, const be_pairs_t *pairs);
void be_cpu_combine(be_t *be, const float *c, const float *weight,
    uint32_t rows, uint32_t top_k, uint32_t hidden, float *x);

#endif /* BE_CPU_H */
