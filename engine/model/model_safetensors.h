/*
 * The tensors of a model directory: model.packed (model_packed.h), else
 * model.safetensors, or the shards that model.safetensors.index.json names.
 *
 * A safetensors file is 8 bytes of length n, little endian; n bytes of JSON,
 * {name: {"dtype", "shape", "data_offsets": [begin, end]}}; then the data,
 * which the tensors cover without holes or overlaps
 * (github.com/huggingface/safetensors, README and safetensors/src/tensor.rs).
 *
 * Files are mapped read-only and privately.  Their sizes are taken and every
 * offset is checked against them when they are opened.  A file that is
 * truncated in place later makes the next access to its lost pages raise
 * SIGBUS, which ends the process: replace checkpoints by renaming, never by
 * writing into them.
 */

#ifndef MODEL_MODEL_SAFETENSORS_H
#define MODEL_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>


#define MODEL_HEADER_MAX  100000000      /* bytes, as in the reference code */
#define MODEL_INDEX_MAX   (1 << 26)
#define MODEL_DIMS_MAX    8

typedef struct {
    const char     *name;
    const char     *dtype;           /* as in the file: "BF16" */
    uint32_t        file;
    uint32_t        n_dims;
    uint64_t        dim[MODEL_DIMS_MAX];
    uint64_t        begin;           /* in the file's data */
    uint64_t        end;
    const uint8_t  *data;

    /* Of model.packed: rows and columns are two dimensions, always. */
    int             made;
    uint32_t        kind;            /* model_kind_t */
    uint32_t        parts;
    uint64_t        sum;             /* XXH3 of the data */
} model_tensor_t;

typedef struct model_shards_s  model_shards_t;


/* NULL with file, tensor and reason in `err` (ERR_LEN). */
model_shards_t *model_shards_open(const char *dir, char *err);
void model_shards_close(model_shards_t *s);

/*
 * One file that is in memory, which stays the caller's and outlives the
 * result; `name` stands in errors.
 */
model_shards_t *model_shards_memory(const uint8_t *data, size_t size,
    const char *name, char *err);

/* NULL: there is none of that name. */
const model_tensor_t *model_shards_find(const model_shards_t *s,
    const char *name);

/* The first tensor whose name starts with `prefix`, NULL: none. */
const model_tensor_t *model_shards_prefix(const model_shards_t *s,
    const char *prefix);

/* The name of a tensor's file, for errors. */
const char *model_shards_file(const model_shards_t *s, uint32_t file);

/* All tensors by name. */
const model_tensor_t *model_shards_list(const model_shards_t *s, size_t *n);

/* What model.packed says of itself; NULL if the tensors are not from there. */
const struct model_packed_s *model_shards_packed(const model_shards_t *s);

/* Bytes of all files. */
uint64_t model_shards_size(const model_shards_t *s);

#endif /* MODEL_MODEL_SAFETENSORS_H */
