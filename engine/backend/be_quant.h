/*
 * Quantised matrices: one layout for all kernel paths, in memory and on disk.
 *
 * A matrix of outputs by k elements is cut into panels of 16 outputs, a panel
 * along k into chunks of 128 elements.  A chunk is scales, then codes; both
 * are whole cache lines, and chunks and panels follow each other without
 * gaps:
 *
 *     INT8     [2][16] BF16 scales, of 64 elements each; [32][16][4] int8
 *     INT4     [4][16] BF16 scales, of 32 elements each; [16][16][4] bytes
 *     F8E4M3   [16] float32 scales, of 128 elements; [32][16][4] e4m3fn
 *     PAIRS    no scales; [64][16][2] BF16: not quantised, the matrix unit's
 *              own order, and only in memory
 *
 * A code times its scale is the weight.  Four neighbouring elements of an
 * output lie together, as the products of bytes want them.  A byte of INT4
 * has element k in its lower half and k + 4 in the upper: eight elements to a
 * line; a half byte stands for an entry of be_quant_levels[].
 *
 * Elements and outputs past the end are zero.  A matrix may be of several
 * equal parts (heads), of which each begins with a panel of its own.
 *
 * INT8 takes the largest element to 127.  INT4 tries scales of either sign
 * and keeps the one of the least squared error; its levels are numbers of
 * e4m3fn and of int8, so that products of either compute with what is stored,
 * and have the least squared error that sixteen such numbers, zero among them,
 * reach on normal numbers in groups of 32 with a scale for each.  F8E4M3 of a
 * checkpoint keeps codes and scales as published, where its blocks of 128 x
 * 128 lie so that a chunk is in one of them; else the largest element goes to
 * 448.
 */

#ifndef BE_QUANT_H
#define BE_QUANT_H

#include "backend/backend.h"


#define BE_PANEL        16           /* outputs */
#define BE_CHUNK        128          /* elements */
#define BE_QUANT_MAX    1e15f        /* no weight is larger */

/* Elements of a scale. */
#define BE_GROUP_INT8   64
#define BE_GROUP_INT4   32


/* What the half bytes of INT4 stand for. */
extern const int8_t  be_quant_levels[16];


static inline int
be_quant_panels(be_dtype_t dtype)
{
    return dtype == BE_F8E4M3 || dtype == BE_INT8 || dtype == BE_INT4
           || dtype == BE_PAIRS;
}


/* Bytes of a chunk's scales, and of the chunk. */

static inline size_t
be_quant_scales(be_dtype_t dtype)
{
    return (dtype == BE_PAIRS) ? 0
         : (dtype == BE_INT4) ? BE_CHUNK / BE_GROUP_INT4 * BE_PANEL * 2
                              : BE_PANEL * 4;
}


static inline size_t
be_quant_chunk(be_dtype_t dtype)
{
    return be_quant_scales(dtype)
           + ((dtype == BE_INT4) ? BE_PANEL * BE_CHUNK / 2
              : (dtype == BE_PAIRS) ? BE_PANEL * BE_CHUNK * 2
                                    : BE_PANEL * BE_CHUNK);
}


/* Bytes of a panel of k elements. */

static inline size_t
be_quant_panel(be_dtype_t dtype, uint32_t k)
{
    return be_quant_chunk(dtype)
           * (((size_t) k + BE_CHUNK - 1) / BE_CHUNK);
}


static inline uint32_t
be_quant_part_panels(uint32_t part_rows)
{
    return part_rows / BE_PANEL + (part_rows % BE_PANEL != 0);
}


/*
 * Bytes of a matrix in panels, `rows` in `parts` (at least one, which divides
 * them); 0 if they do not fit into a size_t.
 */
size_t be_quant_size(be_dtype_t dtype, uint32_t rows, uint32_t cols,
    uint32_t parts);

/*
 * Makes a chunk of x [BE_PANEL][BE_CHUNK], finite and at most BE_QUANT_MAX.
 */
void be_quant_encode(be_dtype_t dtype, const float *x, uint8_t *chunk);

/* An F8E4M3 chunk of codes [BE_PANEL][BE_CHUNK] and scales [BE_PANEL]. */
void be_quant_encode_f8(const uint8_t *code, const float *scale,
    uint8_t *chunk);

/* The chunk as floats [BE_CHUNK][BE_PANEL]. */
void be_quant_decode(be_dtype_t dtype, const uint8_t *chunk, float *x);

/* e4m3fn: bias 7, no infinities, 0x7f is not a number; nearest even. */
float be_from_e4m3(uint8_t code);
uint8_t be_to_e4m3(float x);

#endif /* BE_QUANT_H */
