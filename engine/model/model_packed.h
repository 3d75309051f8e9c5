/*
 * model.packed: the weights of a model as a backend uses them, so that
 * opening it does no work.  `llm-engine convert` writes it, into a directory
 * with config.json and the tokenizer's files beside it.
 *
 *     header      MODEL_PACKED_HEADER bytes
 *     table       MODEL_PACKED_ENTRY bytes for each matrix or vector
 *     names       each ends with a zero, in the order of the table
 *     payloads    each at the next multiple of 64, in the order of the table
 *
 * All numbers are little endian.
 *
 *     header   0  "llmpack\n"              32  file's size
 *              8  version, 2 (u32)         40  fingerprint of the source
 *             12  type of matrices (u32)   48  hash of its configuration
 *             16  entries (u32)            56  XXH3 of all before the
 *             20  bytes of names (u32)         payloads, these 8 bytes zero
 *             24  where payloads begin
 *
 *     entry    0  kind (u32)               16  parts (u32)
 *              4  type (u32)               20  zero (u32)
 *              8  rows (u32)               24  offset of the payload
 *             12  columns (u32)            32  its bytes
 *                                          40  XXH3 of it
 *
 * A type is 0 float32, 1 BF16, 2 FP8, 3 INT8, 4 INT4: the first two are rows
 * one after the other, the others what backend/be_quant.h describes.  A kind
 * is 0 a matrix, 1 floats (norms, router, bias), 2 and 3 the halves of
 * kv_b_proj for keys (of each head, transposed) and for values, 4 the
 * embedding.  A name is that of the source's tensor, with ".uk", ".uv" or
 * ".rows" for kinds 2, 3 and 4.
 *
 * The file is written aside, synced and renamed: there is none or a whole
 * one.  Who opens it checks everything but the payloads; these too have
 * hashes, for model_packed_verify().
 */

#ifndef MODEL_MODEL_PACKED_H
#define MODEL_MODEL_PACKED_H

#include "model/model_shards.h"


#define MODEL_PACKED_NAME     SHARD_PACKED
#define MODEL_PACKED_MAGIC    "llmpack\n"
#define MODEL_PACKED_VERSION  2
#define MODEL_PACKED_HEADER   64
#define MODEL_PACKED_ENTRY    48
#define MODEL_PACKED_ALIGN    64
#define MODEL_PACKED_MOST     (1 << 22)      /* entries */

typedef struct model_packed_s {
    be_dtype_t  dtype;               /* of all matrices */
    uint32_t    n;
    uint32_t    names;
    uint64_t    data;                /* where payloads begin */
    uint64_t    size;                /* of the file */
    uint64_t    source;              /* fingerprint of what was converted */
    uint64_t    config;              /* model_config_hash() of that */
} model_packed_t;

typedef struct {
    model_kind_t  kind;
    be_dtype_t    dtype;
    uint32_t      rows;
    uint32_t      cols;
    uint32_t      parts;
    uint64_t      offset;
    uint64_t      size;
    uint64_t      sum;
} model_packed_entry_t;


/* What a kind's names end with. */
const char *model_packed_suffix(model_kind_t kind);

/* "f32", "bf16", "fp8", "int8", "int4" */
const char *model_dtype_name(be_dtype_t dtype);

/* Where the payloads of so many entries and bytes of names begin. */
uint64_t model_packed_data(uint32_t n, uint32_t names);

/* Both ways between these and the bytes of the file. */
void model_packed_put_header(uint8_t *p, const model_packed_t *h,
    uint64_t sum);
void model_packed_put_entry(uint8_t *p, const model_packed_entry_t *e);
void model_packed_get_entry(const uint8_t *p, model_packed_entry_t *e);

#endif /* MODEL_MODEL_PACKED_H */
