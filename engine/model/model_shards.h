/*
 * What the files behind model_safetensors.h share.
 */

#ifndef MODEL_MODEL_SHARDS_H
#define MODEL_MODEL_SHARDS_H

#include "json/json.h"
#include "model/model_int.h"


#define SHARD_SUFFIX  ".safetensors"
#define SHARD_NAME    256
#define SHARD_PACKED  "model.packed"


typedef struct {
    char      name[SHARD_NAME];
    uint8_t  *map;                   /* NULL: not ours to unmap */
    size_t    size;
    char     *names;                 /* of its tensors, one after another */
} shard_t;

struct model_shards_s {
    shard_t         *file;
    uint32_t         n_files;
    uint32_t         max_files;
    model_tensor_t  *tensor;
    size_t           n_tensors;
    size_t           max_tensors;
    struct model_packed_s  *packed;  /* NULL: safetensors */
    char            *err;            /* while opening */
};

/* What the index says: which file a tensor is in. */

typedef struct {
    const char  *name;
    uint32_t     file;
} shard_place_t;

typedef struct {
    char           *names;
    size_t          size;
    size_t          used;
    shard_place_t  *place;
    size_t          n;
    size_t          max;
} shard_index_t;


/* An empty table; errors go to `err`. */
model_shards_t *model_shards_new(char *err);

/*
 * Reads the header of a file that is in memory into the table.  0, or -1 with
 * file, tensor and reason.
 */
int model_shards_read(model_shards_t *s, uint32_t file, const uint8_t *data,
    size_t size);

/* The same of model.packed, which must be the only file. */
int model_packed_read(model_shards_t *s, uint32_t file, const uint8_t *data,
    size_t size);

/*
 * Reads an index from memory: the files go to `s`, the places to `x`, whose
 * memory is freed with model_index_free().
 */
int model_index_read(model_shards_t *s, shard_index_t *x, const char *data,
    size_t len, const char *name);
void model_index_free(shard_index_t *x);

#endif /* MODEL_MODEL_SHARDS_H */
