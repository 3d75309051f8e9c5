/*
 * Attention over the paged latent cache (MLA, absorbed), DeepSeek-V2 report
 * section 2.1: one head of keys, the latent rows, whose first 512 elements are
 * the values too.
 *
 * The rows of a step are seen as n_rows * heads queries of 576 elements, query
 * f being head f % heads of row f / heads.  A tile is 64 of them, all of one
 * sequence, which a block of threads takes over a range of the sequence's
 * tokens: a unit of work.  A sequence of which several units have a part gives
 * partial results, a maximum, a sum and 512 numbers a query, that a second
 * kernel merges in order.
 *
 * Who does what is planned on the host once per step, from positions, and is
 * the same for all layers; it travels with the step's other arrays, so that a
 * captured graph serves any step of its size.
 *
 * DETERMINISM.  A query's result depends on its own row and tokens, and on
 * where sums are begun anew.  With `fixed` that is at every multiple of
 * CU_MLA_RUN tokens, by position, whoever computes the runs, and they are
 * merged one after the other: the same in any batch and chunking.  Else it is
 * where units meet, which balance the load.
 */

#ifndef CU_MLA_H
#define CU_MLA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif


#define CU_MLA_LORA     512          /* of the latent part */
#define CU_MLA_ROPE     64
#define CU_MLA_DIM      (CU_MLA_LORA + CU_MLA_ROPE)
#define CU_MLA_BLOCK    64           /* tokens of a KV block */
#define CU_MLA_TILE     64           /* queries of a tile */
#define CU_MLA_RUN      1024         /* tokens between fixed cuts */
#define CU_MLA_GANG     4            /* most tiles that go together */

/*
 * A token in FP8: 512 e4m3, four float scales, one for 128 of them, 64 BF16 of
 * the rope part.
 */
#define CU_MLA_FP8_SIZE  (CU_MLA_LORA + 16 + 2 * CU_MLA_ROPE)


/*
 * Tiles query, query + 64, … of a gang go to neighbouring blocks of threads,
 * as they read the same tokens; each has its own partial result, part, part +
 * 1, ….
 */

typedef struct {
    uint32_t  query;                 /* of the gang's first tile */
    uint32_t  end;                   /* queries end here */
    uint32_t  table;                 /* of block numbers, from its start */
    uint32_t  begin;                 /* tokens, a multiple of 64 */
    uint32_t  stop;
    uint32_t  first;                 /* no token before it counts */
    uint32_t  full;                  /* from here on rows may end */
    int32_t   part;                  /* -1: nobody else has a part */
} cu_mla_unit_t;

typedef struct {
    uint32_t  query;
    uint32_t  end;                   /* at most 64 queries */
    uint32_t  part;                  /* the first of them, */
    uint32_t  stride;                /* and how far the next one is */
    uint32_t  parts;
} cu_mla_merge_t;

/* What is on the device, as cu_mla_plan() makes it. */

typedef struct {
    const cu_mla_unit_t   *unit;
    const uint32_t        *lane;     /* [lanes + 1] first unit of each */
    const cu_mla_merge_t  *merge;
    const uint32_t        *n_merge;
    const int32_t         *table;    /* block numbers */
    const uint32_t        *pos;      /* [n_rows] */
} cu_mla_work_t;

/*
 * The plan of one step.  `gang` and `lanes` depend on the model and the device
 * alone: lanes * gang blocks of threads.
 */

typedef struct {
    uint32_t         heads;
    uint32_t         gang;           /* tiles that go together */
    uint32_t         lanes;
    int              fixed;

    uint32_t         max_rows;
    uint32_t         max_units;
    uint32_t         max_parts;      /* of 64 queries */

    cu_mla_unit_t   *unit;           /* [max_units], by lane */
    uint32_t        *lane;           /* [lanes + 1] */
    cu_mla_merge_t  *merge;          /* [max_parts] */
    uint32_t         n_units;
    uint32_t         n_merge;
    uint32_t         n_parts;

    /* While it is made. */
    cu_mla_unit_t   *gangs;          /* [max_gangs], whole */
    uint32_t         max_gangs;
    uint32_t         n_gangs;
    cu_mla_unit_t   *cut;            /* [max_units] */
    uint32_t        *of;             /* [max_units] the lane of each */
    uint64_t        *load;           /* [lanes] */
} cu_mla_plan_t;

/* Rows of a sequence that follow each other. */

typedef struct {
    uint32_t  row;                   /* the first */
    uint32_t  rows;
    uint32_t  pos;                   /* of the first; the others follow */
    uint32_t  first;                 /* where attention begins */
    uint32_t  table;                 /* of its block numbers */
} cu_mla_group_t;


/*
 * Room for steps of up to `max_rows` rows of a model with `heads` heads on a
 * device with `sms` multiprocessors.  0, or -1: no memory, or numbers that
 * have no sense.
 */
int cu_mla_plan_open(cu_mla_plan_t *p, uint32_t heads, uint32_t sms,
    uint32_t max_rows, int fixed);
void cu_mla_plan_close(cu_mla_plan_t *p);

/* The most units and merges that a step of `rows` rows has. */
uint32_t cu_mla_plan_units(const cu_mla_plan_t *p, uint32_t rows);
uint32_t cu_mla_plan_merges(const cu_mla_plan_t *p);

/* Plans a step.  0, or -1: it is larger than what there is room for. */
int cu_mla_plan(cu_mla_plan_t *p, const cu_mla_group_t *group,
    uint32_t n_groups);

/*
 * Bytes of scratch memory on the device: partial results of any plan, and,
 * with `fixed`, what each block of threads has merged.
 */
size_t cu_mla_scratch_size(const cu_mla_plan_t *p);


/*
 * Attention.  q [n_queries][576] BF16; kv a layer's blocks, [blocks][64][576]
 * BF16 or, with `fp8`, [blocks][64] records; o [n_queries][512], BF16, or
 * float with `wide`; `scratch` has cu_mla_scratch_size() bytes; all are aligned
 * to 128.  `scale` is of the scores.  Queries of no group are
 * not written.  Two launches on `stream`, of which the second does nothing
 * where nothing is to be merged.  A cudaError_t.
 */

typedef struct {
    cu_mla_work_t   work;
    const void     *q;
    const void     *kv;
    void           *o;
    void           *scratch;
    uint32_t        n_queries;
    uint32_t        heads;
    uint32_t        blocks;          /* of the layer */
    uint32_t        gang;
    uint32_t        lanes;
    uint32_t        max_parts;
    float           scale;
    int             fixed;
    int             fp8;
    int             wide;
} cu_mla_attend_t;

int cu_mla_attend(const cu_mla_attend_t *a, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_MLA_H */
