/*
 * Opening a model, and its fingerprint.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <xxhash.h>

#include "model/model_config.h"
#include "model/model_packed.h"


#define MODEL_HASH_ALL     (64u << 20)   /* of files up to this, every byte */
#define MODEL_HASH_ITEMS   4096          /* else of so many tensors */
#define MODEL_HASH_SAMPLE  256           /* so many bytes at three places */


static uint64_t model_hash(const model_t *model);
static void model_hash_bytes(XXH3_state_t *h, const model_tensor_t *t,
    int all);


int
model_error(char *err, const char *fmt, ...)
{
    va_list  args;

    va_start(args, fmt);
    vsnprintf(err, ERR_LEN, fmt, args);
    va_end(args);

    return -1;
}


model_t *
model_open(const char *dir, char *err)
{
    char          path[4096];
    model_t      *model;
    struct stat   st;

    model = calloc(1, sizeof(model_t));
    if (model == NULL) {
        model_error(err, "%s: no memory", dir);
        return NULL;
    }

    pthread_mutex_init(&model->lock, NULL);

    model->dir = strdup(dir);
    if (model->dir == NULL) {
        model_error(err, "%s: no memory", dir);
        goto failed;
    }

    if (model_config_read(dir, &model->config, err) != 0) {
        goto failed;
    }

    model->shards = model_shards_open(dir, err);

    if (model->shards == NULL || model_weights_open(model, err) != 0) {
        goto failed;
    }

    snprintf(path, sizeof(path), "%s/config.json", dir);

    if (stat(path, &st) == 0) {
        model->created = (uint64_t) st.st_mtime;
    }

    model->fingerprint = model_hash(model);

    return model;

failed:

    model_close(model);
    return NULL;
}


void
model_close(model_t *model)
{
    if (model == NULL) {
        return;
    }

    model_weights_close(model);
    model_shards_close(model->shards);
    pthread_mutex_destroy(&model->lock);
    free(model->dir);
    free(model);
}


uint64_t
model_size(const model_t *model)
{
    return model_shards_size(model->shards);
}


const model_config_t *
model_config(const model_t *model)
{
    return &model->config;
}


uint64_t
model_fingerprint(const model_t *model)
{
    return model->fingerprint;
}


be_dtype_t
model_packed_as(const model_t *model)
{
    const model_packed_t  *packed;

    packed = model_shards_packed(model->shards);

    return packed != NULL ? packed->dtype : BE_F32;
}


uint64_t
model_created(const model_t *model)
{
    return model->created;
}


size_t
model_kv_block_size(const model_t *model, be_dtype_t compute, int mtp)
{
    const model_config_t  *c;

    c = &model->config;

    return (size_t) (c->layers + (mtp != 0)) * BE_BLOCK
           * (c->mla.kv_lora + c->mla.rope) * (compute == BE_BF16 ? 2 : 4);
}


/*
 * Packed weights are what they were made of, as long as config.json is.
 *
 * Two checkpoints of the same shapes differ in every tensor, so samples tell
 * them apart; reading all of a large one would take minutes.
 */

static uint64_t
model_hash(const model_t *model)
{
    int                    all;
    size_t                 i, n, step;
    uint64_t               size, sum;
    XXH3_state_t          *h;
    uint64_t               config;
    const model_tensor_t  *t;
    const model_packed_t  *packed;

    h = XXH3_createState();
    if (h == NULL) {
        return 0;
    }

    XXH3_64bits_reset(h);

    config = model_config_hash(&model->config);
    XXH3_64bits_update(h, &config, sizeof(config));

    packed = model_shards_packed(model->shards);

    if (packed != NULL) {
        XXH3_64bits_update(h, &packed->source, sizeof(packed->source));
        sum = (packed->config == config) ? packed->source
                                         : XXH3_64bits_digest(h);
        XXH3_freeState(h);
        return sum;
    }

    size = model_shards_size(model->shards);
    t = model_shards_list(model->shards, &n);
    all = size <= MODEL_HASH_ALL;
    step = all ? 1 : n / MODEL_HASH_ITEMS + 1;

    XXH3_64bits_update(h, &size, sizeof(size));

    for (i = 0; i < n; i++) {
        XXH3_64bits_update(h, t[i].name, strlen(t[i].name) + 1);
        XXH3_64bits_update(h, t[i].dtype, strlen(t[i].dtype) + 1);
        XXH3_64bits_update(h, t[i].dim, t[i].n_dims * sizeof(t[i].dim[0]));

        if (i % step == 0) {
            model_hash_bytes(h, &t[i], all);
        }
    }

    sum = XXH3_64bits_digest(h);
    XXH3_freeState(h);

    return sum;
}


/* Field by field: a structure has padding. */

uint64_t
model_config_hash(const model_config_t *c)
{
    uint64_t       sum;
    XXH3_state_t  *h;

    const uint32_t  u[] = {
        c->hidden, c->layers, c->dense_layers, c->vocab, c->max_context,
        c->q_lora, c->mla.heads, c->mla.nope, c->mla.rope, c->mla.v,
        c->mla.kv_lora, c->inter, c->moe_inter, c->shared, c->gate.experts,
        c->gate.top_k, c->gate.groups, c->gate.topk_groups,
        (uint32_t) c->gate.scoring, (uint32_t) c->gate.method,
        (uint32_t) c->gate.normalise, c->moe_freq, (uint32_t) c->yarn,
        c->yarn_original, (uint32_t) c->fp8, (uint32_t) c->tied
    };
    const float  f[] = {
        c->gate.scale, c->eps, c->theta, c->yarn_factor, c->yarn_beta_fast,
        c->yarn_beta_slow, c->yarn_mscale, c->yarn_mscale_all_dim
    };

    h = XXH3_createState();
    if (h == NULL) {
        return 0;
    }

    XXH3_64bits_reset(h);
    XXH3_64bits_update(h, c->type, strlen(c->type) + 1);
    XXH3_64bits_update(h, u, sizeof(u));
    XXH3_64bits_update(h, f, sizeof(f));

    sum = XXH3_64bits_digest(h);
    XXH3_freeState(h);

    return sum;
}


static void
model_hash_bytes(XXH3_state_t *h, const model_tensor_t *t, int all)
{
    uint64_t  size;

    size = t->end - t->begin;

    if (all || size <= 3 * MODEL_HASH_SAMPLE) {
        XXH3_64bits_update(h, t->data, (size_t) size);
        return;
    }

    XXH3_64bits_update(h, t->data, MODEL_HASH_SAMPLE);
    XXH3_64bits_update(h, t->data + size / 2, MODEL_HASH_SAMPLE);
    XXH3_64bits_update(h, t->data + size - MODEL_HASH_SAMPLE,
                       MODEL_HASH_SAMPLE);
}
