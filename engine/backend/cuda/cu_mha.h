/*
 * Attention of a prompt's rows over expanded keys and values (MLA, not
 * absorbed): with k = W_uk c and v = W_uv c made for a tile of tokens, a query
 * takes 320 multiplications and additions for a token and head, of which the
 * absorbed form (cu_mla.h) takes 1088.
 *
 * Tokens come in tiles; what a tile leaves, sums and what they are relative to,
 * is where the next one goes on.  Where tiles begin decides the bits of the
 * result, and so do the rows that a step has: not for --deterministic.
 *
 * Sizes are those of DeepSeek-V2 and V3.  All are queued on `stream` and return
 * a cudaError_t as int.
 */

#ifndef CU_MHA_H
#define CU_MHA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif


#define CU_MHA_NOPE   128            /* of a head's key, without */
#define CU_MHA_ROPE   64             /* and of the part with positions */
#define CU_MHA_V      128
#define CU_MHA_BLOCK  64             /* tokens that are taken at once */

/* Floats of a state of one query: 128 sums, a maximum, a sum. */
#define CU_MHA_STATE  (CU_MHA_V + 2)

/*
 * Rows row … row + rows - 1 of a step, of one sequence, the first at position
 * pos; tokens from … from + tokens - 1 of it, `from` a multiple of 64.  qn
 * [all][heads][128] and ql [all][heads][576], of which the last 64 count, BF16,
 * as cu_query() makes them; k and v [tokens][heads][128], rope [tokens][64],
 * BF16; o [all][heads][128] BF16, or float with `wide`; state [rows][heads] of
 * CU_MHA_STATE floats, unused where one tile is all there is.  No token before
 * `first` counts.  All at 128 bytes; `scale` is of the scores.
 */

typedef struct {
    const void  *qn;
    const void  *ql;
    const void  *k;
    const void  *v;
    const void  *rope;
    void        *o;
    float       *state;
    uint32_t     all;
    uint32_t     heads;
    uint32_t     row;
    uint32_t     rows;
    uint32_t     pos;
    uint32_t     first;
    uint32_t     from;
    uint32_t     tokens;
    float        scale;
    int          begin;              /* the first tile */
    int          end;                /* the last one: o is written */
    int          wide;
} cu_mha_t;

int cu_mha(const cu_mha_t *a, void *stream);

/*
 * Latent rows of tokens from … from + tokens - 1 of the sequence with those
 * block numbers, out of a layer's cache (cu_mla.h, BF16 or, with `fp8`, its
 * records): c [tokens][512] and rope [tokens][64], BF16.
 */
int cu_mha_gather(const void *kv, int fp8, const int32_t *table,
    uint32_t from, uint32_t tokens, void *c, void *rope, void *stream);

/* to [parts][cols][rows] of w [parts][rows][ld], BF16. */
int cu_mha_turn(const void *w, uint32_t parts, uint32_t rows, uint32_t cols,
    uint32_t ld, void *to, void *stream);


#ifdef __cplusplus
}
#endif

#endif /* CU_MHA_H */
