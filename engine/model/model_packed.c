/*
 * Reading model.packed: everything before the payloads is checked here, and
 * each payload's place.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "model/model_packed.h"


static int packed_header(model_shards_t *s, const uint8_t *data, size_t size,
    model_packed_t *h);
static int packed_table(model_shards_t *s, uint32_t file,
    const uint8_t *data, const model_packed_t *h);
static int packed_entry(model_shards_t *s, const model_packed_t *h,
    const char *name, const model_packed_entry_t *e, uint64_t end);
static int packed_error(model_shards_t *s, const char *name,
    const char *why);
static uint64_t packed_align(uint64_t at);
static uint32_t packed_u32(const uint8_t *p);
static uint64_t packed_u64(const uint8_t *p);
static void packed_put(uint8_t *p, uint64_t v, uint32_t bytes);


const char *
model_packed_suffix(model_kind_t kind)
{
    switch (kind) {

    case MODEL_UK:
        return ".uk";

    case MODEL_UV:
        return ".uv";

    case MODEL_TABLE:
        return ".rows";

    default:
        return "";
    }
}


const char *
model_dtype_name(be_dtype_t dtype)
{
    static const char *const  names[BE_DTYPES] = {
        "f32", "bf16", "fp8", "int8", "int4"
    };

    return dtype < BE_DTYPES ? names[dtype] : "?";
}


uint64_t
model_packed_data(uint32_t n, uint32_t names)
{
    return packed_align(MODEL_PACKED_HEADER
                        + (uint64_t) n * MODEL_PACKED_ENTRY + names);
}


int
model_packed_read(model_shards_t *s, uint32_t file, const uint8_t *data,
    size_t size)
{
    model_packed_t  h;

    s->file[file].size = size;

    if (packed_header(s, data, size, &h) != 0
        || packed_table(s, file, data, &h) != 0)
    {
        return -1;
    }

    s->packed = malloc(sizeof(model_packed_t));
    if (s->packed == NULL) {
        return packed_error(s, NULL, "no memory");
    }

    *s->packed = h;

    return 0;
}


static int
packed_header(model_shards_t *s, const uint8_t *data, size_t size,
    model_packed_t *h)
{
    uint64_t       sum;
    uint8_t        zero[8] = { 0 };
    XXH3_state_t  *state;

    if (size < MODEL_PACKED_HEADER
        || memcmp(data, MODEL_PACKED_MAGIC, 8) != 0)
    {
        return packed_error(s, NULL, "not a file of packed weights");
    }

    if (packed_u32(data + 8) != MODEL_PACKED_VERSION) {
        return packed_error(s, NULL, "of another version of the format; "
                            "convert the checkpoint again");
    }

    h->dtype = packed_u32(data + 12);
    h->n = packed_u32(data + 16);
    h->names = packed_u32(data + 20);
    h->data = packed_u64(data + 24);
    h->size = packed_u64(data + 32);
    h->source = packed_u64(data + 40);
    h->config = packed_u64(data + 48);

    if (h->size != size) {
        return packed_error(s, NULL, "the file is not as long as it says: "
                            "cut short?");
    }

    if (h->dtype <= BE_F32 || h->dtype >= BE_PAIRS || h->n == 0
        || h->n > MODEL_PACKED_MOST
        || h->data != model_packed_data(h->n, h->names) || h->data > size)
    {
        return packed_error(s, NULL, "the header makes no sense");
    }

    state = XXH3_createState();
    if (state == NULL) {
        return packed_error(s, NULL, "no memory");
    }

    XXH3_64bits_reset(state);
    XXH3_64bits_update(state, data, 56);
    XXH3_64bits_update(state, zero, 8);
    XXH3_64bits_update(state, data + MODEL_PACKED_HEADER,
                       (size_t) h->data - MODEL_PACKED_HEADER);
    sum = XXH3_64bits_digest(state);
    XXH3_freeState(state);

    if (sum != packed_u64(data + 56)) {
        return packed_error(s, NULL, "the checksum of the table is wrong");
    }

    return 0;
}


static int
packed_table(model_shards_t *s, uint32_t file, const uint8_t *data,
    const model_packed_t *h)
{
    char                  *name, *last;
    uint32_t               i;
    uint64_t               end;
    model_tensor_t        *t;
    model_packed_entry_t   e;

    /* A zero more: no name goes on behind the names. */

    s->file[file].names = malloc((size_t) h->names + 1);
    s->tensor = calloc(h->n, sizeof(model_tensor_t));

    if (s->file[file].names == NULL || s->tensor == NULL) {
        return packed_error(s, NULL, "no memory for the table");
    }

    s->max_tensors = h->n;
    name = s->file[file].names;
    last = name + h->names;
    memcpy(name, data + MODEL_PACKED_HEADER
                 + (size_t) h->n * MODEL_PACKED_ENTRY, h->names);
    *last = '\0';
    end = h->data;

    for (i = 0; i < h->n; i++) {

        if (name >= last || *name == '\0') {
            return packed_error(s, NULL, "there are fewer names than "
                                "entries");
        }

        model_packed_get_entry(data + MODEL_PACKED_HEADER
                               + (size_t) i * MODEL_PACKED_ENTRY, &e);

        if (packed_entry(s, h, name, &e, end) != 0) {
            return -1;
        }

        t = &s->tensor[s->n_tensors++];
        t->name = name;
        t->dtype = model_dtype_name(e.dtype);
        t->file = file;
        t->kind = e.kind;
        t->made = 1;
        t->parts = e.parts;
        t->n_dims = 2;
        t->dim[0] = e.rows;
        t->dim[1] = e.cols;
        t->sum = e.sum;
        t->begin = e.offset;
        t->end = e.offset + e.size;
        t->data = data + e.offset;

        end = t->end;
        name += strlen(name) + 1;
    }

    if (name != last || end != h->size) {
        return packed_error(s, NULL, "there is something behind the last "
                            "name or payload");
    }

    return 0;
}


/* `end` is where the payload before it ends. */

static int
packed_entry(model_shards_t *s, const model_packed_t *h, const char *name,
    const model_packed_entry_t *e, uint64_t end)
{
    be_tensor_t  t;

    if (e->kind > MODEL_TABLE) {
        return packed_error(s, name, "of an unknown kind");
    }

    if (e->kind == MODEL_FLOATS ? e->dtype != BE_F32
        : e->kind == MODEL_TABLE ? e->dtype != BE_F32 && e->dtype != BE_BF16
        : e->dtype != h->dtype)
    {
        return packed_error(s, name, "not of the file's type");
    }

    memset(&t, 0, sizeof(t));
    t.dtype = e->dtype;
    t.rows = e->rows;
    t.cols = e->cols;
    t.parts = e->parts;

    if (e->size == 0 || be_tensor_size(&t) != e->size) {
        return packed_error(s, name, "its size is not that of its shape");
    }

    if (e->offset != packed_align(end) || e->offset > h->size
        || e->size > h->size - e->offset)
    {
        return packed_error(s, name, "overlaps another or ends behind the "
                            "file's end");
    }

    return 0;
}


int
model_packed_verify(const model_t *model, char *err)
{
    size_t                 i, n;
    const model_tensor_t  *t;

    t = model_shards_list(model->shards, &n);

    if (model_shards_packed(model->shards) == NULL) {
        return model_error(err, "%.200s: there is no " MODEL_PACKED_NAME,
                           model->dir);
    }

    for (i = 0; i < n; i++) {
        if (XXH3_64bits(t[i].data, (size_t) (t[i].end - t[i].begin))
            != t[i].sum)
        {
            return model_error(err, "%s: %.200s: the checksum is wrong",
                               MODEL_PACKED_NAME, t[i].name);
        }
    }

    return 0;
}


static int
packed_error(model_shards_t *s, const char *name, const char *why)
{
    if (name != NULL) {
        return model_error(s->err, MODEL_PACKED_NAME ": %.200s: %s", name,
                           why);
    }

    return model_error(s->err, MODEL_PACKED_NAME ": %s", why);
}


/* --- bytes ------------------------------------------------------------- */

void
model_packed_put_header(uint8_t *p, const model_packed_t *h, uint64_t sum)
{
    memcpy(p, MODEL_PACKED_MAGIC, 8);
    packed_put(p + 8, MODEL_PACKED_VERSION, 4);
    packed_put(p + 12, h->dtype, 4);
    packed_put(p + 16, h->n, 4);
    packed_put(p + 20, h->names, 4);
    packed_put(p + 24, h->data, 8);
    packed_put(p + 32, h->size, 8);
    packed_put(p + 40, h->source, 8);
    packed_put(p + 48, h->config, 8);
    packed_put(p + 56, sum, 8);
}


void
model_packed_put_entry(uint8_t *p, const model_packed_entry_t *e)
{
    packed_put(p, e->kind, 4);
    packed_put(p + 4, e->dtype, 4);
    packed_put(p + 8, e->rows, 4);
    packed_put(p + 12, e->cols, 4);
    packed_put(p + 16, e->parts, 4);
    packed_put(p + 20, 0, 4);
    packed_put(p + 24, e->offset, 8);
    packed_put(p + 32, e->size, 8);
    packed_put(p + 40, e->sum, 8);
}


void
model_packed_get_entry(const uint8_t *p, model_packed_entry_t *e)
{
    e->kind = packed_u32(p);
    e->dtype = packed_u32(p + 4);
    e->rows = packed_u32(p + 8);
    e->cols = packed_u32(p + 12);
    e->parts = packed_u32(p + 16);
    e->offset = packed_u64(p + 24);
    e->size = packed_u64(p + 32);
    e->sum = packed_u64(p + 40);
}


static uint64_t
packed_align(uint64_t at)
{
    return (at + MODEL_PACKED_ALIGN - 1) / MODEL_PACKED_ALIGN
           * MODEL_PACKED_ALIGN;
}


static uint32_t
packed_u32(const uint8_t *p)
{
    return (uint32_t) p[0] | (uint32_t) p[1] << 8 | (uint32_t) p[2] << 16
           | (uint32_t) p[3] << 24;
}


static uint64_t
packed_u64(const uint8_t *p)
{
    return packed_u32(p) | (uint64_t) packed_u32(p + 4) << 32;
}


static void
packed_put(uint8_t *p, uint64_t v, uint32_t bytes)
{
    uint32_t  i;

    for (i = 0; i < bytes; i++) {
        p[i] = (uint8_t) (v >> (8 * i));
    }
}
