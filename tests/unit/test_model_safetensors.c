/*
 * Weights: what is read, and what is refused naming file, tensor and reason.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/backend.h"
#include "model/model.h"
#include "model/model_safetensors.h"
#include "unit/model_dir.h"


#define Q_A  "model.layers.1.self_attn.q_a_proj.weight"


/* A file of one header and `size` bytes of data: 1 if it is accepted. */

static int
read_header(const char *header, uint64_t len, size_t size, char *err)
{
    size_t           i, n;
    uint8_t         *file;
    model_shards_t  *s;

    n = strlen(header);
    file = calloc(1, 8 + n + size);
    assert_non_null(file);

    for (i = 0; i < 8; i++) {
        file[i] = (uint8_t) ((len == 0 ? n : len) >> (8 * i));
    }

    memcpy(file + 8, header, n);
    s = model_shards_memory(file, 8 + n + size, "a.safetensors", err);

    i = (s != NULL);

    model_shards_close(s);
    free(file);

    return (int) i;
}


static void
test_headers(void **state)
{
    int     good;
    size_t  i;
    char    err[ERR_LEN];

    static const struct {
        const char  *header;
        uint64_t     len;            /* 0: right */
        size_t       size;           /* of the data */
        const char  *says;
    } cases[] = {
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
          0, 8, NULL },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
          "\"__metadata__\":{\"x\":\"y\"}} ", 0, 4, NULL },
        { "{\"b\":{\"dtype\":\"U8\",\"shape\":[0,5],\"data_offsets\":[2,2],"
          "\"more\":[{}]},\"a\":{\"dtype\":\"BF16\",\"shape\":[1,1],"
          "\"data_offsets\":[0,2]}}", 0, 2, NULL },

        { "{}", 0, 0, "no tensor" },
        { "{}", 1, 0, "a string is expected" },
        { "{}", UINT64_MAX, 0, "the header is longer than the file" },
        { "{}", 1ull << 63, 0, "the header is longer than the file" },
        { "{}", 3, 0, "the header is longer than the file" },
        { "[]", 0, 0, "an object is expected" },
        { "{\"a\":[]}", 0, 0, "a: an object is expected" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}x",
          0, 8, "something follows" },
        { "{\"__metadata__\":[]}", 0, 0, "__metadata__: not an object" },
        { "{\"a\":{\"dtype\":\"F7\",\"shape\":[2],\"data_offsets\":[0,8]}}",
          0, 8, "a: dtype F7 is unknown" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
          0, 9, "bytes after the last tensor" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
          0, 7, "a: ends behind the end" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}}",
          0, 9, "a: does not follow" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}",
          0, 8, "a: data_offsets is not [begin, end]" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}",
          0, 8, "a: data_offsets is not [begin, end]" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}}",
          0, 8, "a: data_offsets is not [begin, end]" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":"
          "[0,18446744073709551616]}}", 0, 8, "a: a number too large" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":"
          "[0,8.0]}}", 0, 8, "a: a whole number" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}",
          0, 8, "a: a whole number" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[02],\"data_offsets\":[0,8]}}",
          0, 8, "a: a whole number" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}",
          0, 8, "a: the shape needs 12 bytes of F32, data_offsets say 8" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],"
          "\"data_offsets\":[0,8]}}", 0, 8, "a: the shape is too large" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,2],"
          "\"data_offsets\":[0,8]}}", 0, 8, "a: more than 8 dimensions" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 0, 8,
          "a: dtype, shape or data_offsets is missing" },
        { "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],"
          "\"data_offsets\":[0,8]}}", 0, 8, "a: dtype is given twice" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
          "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
          0, 12, "b: overlaps" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
          "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[9,13]}}",
          0, 13, "b: does not follow" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
          "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
          0, 8, "a: is there twice" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
          "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}",
          0, 16, "a: is there twice" },
        { "{\"a\xff\":{}}", 0, 0, "invalid UTF-8" },
        { "{\"a\\u0000\":{}}", 0, 0, "null character" }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        good = read_header(cases[i].header, cases[i].len, cases[i].size, err);

        if (good != (cases[i].says == NULL)) {
            fail_msg("%s is %s", cases[i].header, good ? "accepted" : err);
        }

        if (!good && (strncmp(err, "a.safetensors: ", 15) != 0
                      || strstr(err, cases[i].says) == NULL))
        {
            fail_msg("%s gives \"%s\", not \"%s\"", cases[i].header, err,
                     cases[i].says);
        }
    }
}


static void
test_table(void **state)
{
    char                   err[ERR_LEN];
    size_t                 n;
    uint8_t                file[8 + 256];
    model_shards_t        *s;
    const model_tensor_t  *t;
    static const char      header[] =
        "{\"m.b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[4,7]},"
        "\"m.a\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[0,4]}}";

    (void) state;

    memset(file, 0, sizeof(file));
    file[0] = sizeof(header) - 1;
    memcpy(file + 8, header, sizeof(header) - 1);
    file[8 + sizeof(header) - 1 + 5] = 77;

    s = model_shards_memory(file, 8 + sizeof(header) - 1 + 7, "x.safetensors",
                            err);
    assert_non_null(s);

    t = model_shards_find(s, "m.b");
    assert_non_null(t);
    assert_string_equal(t->dtype, "U8");
    assert_int_equal(t->n_dims, 1);
    assert_int_equal(t->dim[0], 3);
    assert_int_equal(t->data[1], 77);
    assert_null(model_shards_find(s, "m"));
    assert_string_equal(model_shards_prefix(s, "m.")->name, "m.a");
    assert_null(model_shards_prefix(s, "n"));
    assert_string_equal(model_shards_list(s, &n)->name, "m.a");
    assert_int_equal(n, 2);
    assert_string_equal(model_shards_file(s, t->file), "x.safetensors");

    model_shards_close(s);
}


/* One tensor is changed; what must the refusal say? */

typedef struct {
    const char           *tensor;
    const char           *dtype;     /* NULL: stays */
    uint32_t              dims;      /* 0: stays */
    uint32_t              dim[2];
    int                   dropped;
    const char           *says;      /* NULL: accepted */
} change_t;


static void
changes(const model_field_t *style, const change_t *c)
{
    char           err[ERR_LEN];
    model_t       *model;
    model_dir_t   *d;
    model_spec_t  *t;

    for ( /* void */ ; c->tensor != NULL; c++) {
        d = model_dir_open(style);
        model_dir_tensors(d);
        t = model_dir_find(d, c->tensor);
        t->dtype = c->dtype != NULL ? c->dtype : t->dtype;
        t->dropped = c->dropped;

        if (c->dims != 0) {
            t->dims = c->dims;
            t->dim[0] = c->dim[0];
            t->dim[1] = c->dim[1];
        }

        model_dir_write(d);
        memset(err, 0, sizeof(err));
        model = model_open(d->path, err);
        model_dir_close(d);

        if ((model == NULL) != (c->says != NULL)) {
            fail_msg("%s is %s", c->tensor, model == NULL ? err : "accepted");
        }

        if (model == NULL && (strstr(err, c->says) == NULL
                              || strstr(err, c->tensor) == NULL))
        {
            fail_msg("%s gives \"%s\", not \"%s\"", c->tensor, err, c->says);
        }

        model_close(model);
    }
}


static void
test_tensors(void **state)
{
    static const change_t  cases[] = {
        { "lm_head.weight", NULL, 0, { 0, 0 }, 0, NULL },
        { "lm_head.weight", "F32", 0, { 0, 0 }, 0, NULL },
        { "lm_head.weight", NULL, 0, { 0, 0 }, 1, "missing" },
        { "model.embed_tokens.weight", NULL, 2, { 100, 72 }, 0,
          "the shape is [100, 72], config.json says [101, 72]" },
        { "model.norm.weight", NULL, 2, { 72, 1 }, 0, "the shape is not" },
        { "model.norm.weight", NULL, 1, { 71, 0 }, 0, "the shape is not" },
        { "model.norm.weight", NULL, 0, { 0, 0 }, 1, "missing" },
        { Q_A, NULL, 2, { 72, 36 }, 0, "the shape is [72, 36]" },
        { Q_A, NULL, 1, { 36 * 72, 0 }, 0, "the shape is not [36, 72]" },
        { Q_A, "F16", 0, { 0, 0 }, 0, "convert it to BF16" },
        { Q_A, "I16", 0, { 0, 0 }, 0, "dtype I16 is not supported" },
        { Q_A, "F8_E4M3", 0, { 0, 0 }, 0, "no quantization_config" },
        { Q_A, "F32", 0, { 0, 0 }, 0, NULL },
        { "model.layers.1.mlp.gate.weight", "F32", 0, { 0, 0 }, 0, NULL },
        { "model.layers.1.mlp.gate.weight", "F8_E4M3", 0, { 0, 0 }, 0,
          "dtype F8_E4M3 is not supported here" },
        { "model.layers.1.mlp.gate.weight", NULL, 2, { 11, 72 }, 0,
          "the shape is [11, 72]" },
        { "model.layers.1.mlp.gate.e_score_correction_bias", NULL, 0,
          { 0, 0 }, 1, "missing" },
        { "model.layers.1.mlp.gate.e_score_correction_bias", "BF16", 0,
          { 0, 0 }, 0, NULL },
        { "model.layers.2.mlp.experts.11.down_proj.weight", NULL, 0, { 0, 0 },
          1, "missing" },
        { "model.layers.2.mlp.shared_experts.up_proj.weight", NULL, 2,
          { 56, 72 }, 0, "the shape is [56, 72]" },
        { "model.layers.2.self_attn.kv_b_proj.weight", NULL, 2, { 114, 43 },
          0, "the shape is [114, 43], config.json says [114, 44]" },

        /* the MTP layer is checked too */
        { "model.layers.3.eh_proj.weight", NULL, 2, { 72, 72 }, 0,
          "the shape is [72, 72]" },
        { "model.layers.3.enorm.weight", NULL, 0, { 0, 0 }, 1, "missing" },
        { "model.layers.3.mlp.experts.0.up_proj.weight", NULL, 0, { 0, 0 }, 1,
          "missing" },
        { NULL, NULL, 0, { 0, 0 }, 0, NULL }
    };

    (void) state;
    changes(NULL, cases);
}


static void
test_scales(void **state)
{
    static const change_t  cases[] = {
        { Q_A, NULL, 0, { 0, 0 }, 0, NULL },
        { Q_A, "BF16", 0, { 0, 0 }, 0, NULL },
        { Q_A "_scale_inv", NULL, 0, { 0, 0 }, 1, "is missing" },
        { Q_A "_scale_inv", NULL, 2, { 2, 1 }, 0, "the shape is not [1, 2]" },
        { Q_A "_scale_inv", NULL, 1, { 2, 0 }, 0, "the shape is not [1, 2]" },
        { Q_A "_scale_inv", "BF16", 0, { 0, 0 }, 0, "scales must be F32" },
        { NULL, NULL, 0, { 0, 0 }, 0, NULL }
    };

    (void) state;
    changes(model_dir_fp8, cases);
}


static void
refused(const char *path, const char *says)
{
    char      err[ERR_LEN];
    model_t  *model;

    model = model_open(path, err);

    if (model != NULL) {
        fail_msg("accepted, not \"%s\"", says);
    }

    if (strstr(err, says) == NULL) {
        fail_msg("\"%s\", not \"%s\"", err, says);
    }
}


/* A scale that is not a number; where it is, is searched in the file. */

static void
test_scale_value(void **state)
{
    char          name[128];
    FILE         *f;
    float         bad;
    uint64_t      len;
    uint32_t      i;
    long          at;
    model_dir_t  *d;

    (void) state;

    d = model_dir_open(model_dir_fp8);
    model_dir_tensors(d);
    model_dir_write(d);
    snprintf(name, sizeof(name), "%s/model.safetensors", d->path);

    f = fopen(name, "r+");
    assert_non_null(f);
    assert_int_equal(fread(&len, 8, 1, f), 1);
    at = 8 + (long) len;

    for (i = 0; strcmp(d->tensor[i].name, Q_A "_scale_inv") != 0; i++) {
        at += (long) d->tensor[i].dim[0]
              * (d->tensor[i].dims == 2 ? d->tensor[i].dim[1] : 1)
              * model_dir_width(d->tensor[i].dtype);
    }

    bad = NAN;
    fseek(f, at + 4, SEEK_SET);
    fwrite(&bad, 4, 1, f);
    fflush(f);
    refused(d->path, Q_A "_scale_inv: scale 1 is");

    bad = -1;
    fseek(f, at + 4, SEEK_SET);
    fwrite(&bad, 4, 1, f);
    fclose(f);
    refused(d->path, Q_A "_scale_inv: scale 1 is -1");

    model_dir_close(d);
}


static void
put(const model_dir_t *d, const char *file, const char *text)
{
    char   name[160];
    FILE  *f;

    snprintf(name, sizeof(name), "%s/%s", d->path, file);
    f = fopen(name, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}


static void
test_files(void **state)
{
    char          from[128], to[128], err[ERR_LEN];
    size_t        i;
    model_t      *model;
    model_dir_t  *d;

    static const struct {
        const char  *index;
        const char  *says;
    } cases[] = {
        { "", "an object is expected" },
        { "{\"weight_map\": 3}", "an object is expected" },
        { "{\"metadata\": {}}", "weight_map is missing or empty" },
        { "{\"weight_map\": {}}", "weight_map is missing or empty" },
        { "{\"weight_map\": {\"a\": 7}}", "a string is expected" },
        { "{\"weight_map\": {\"a\": \"../x.safetensors\"}}",
          "not the name of a .safetensors file" },
        { "{\"weight_map\": {\"a\": \"config.json\"}}", "not the name of" },
        { "{\"weight_map\": {\"a\": \"b.safetensors\"}}",
          "b.safetensors: No such file" },
        { "{\"weight_map\": {\"a\": \"a.safetensors\"}}",
          "a is not in a.safetensors" },
        { "{\"weight_map\": {}, \"weight_map\": {}}", "given twice" },
        { "{\"weight_map\": {\"lm_head.weight\": \"a.safetensors\"}} 1",
          "something follows" },
        { "{\"weight_map\": {\"lm_head.weight\": \"a.safetensors\"}}", NULL }
    };

    (void) state;

    refused("/nonexistent", "/nonexistent/config.json: no such file");

    d = model_dir_open(NULL);
    model_dir_tensors(d);
    model_dir_write(d);

    snprintf(from, sizeof(from), "%s/model.safetensors", d->path);
    snprintf(to, sizeof(to), "%s/a.safetensors", d->path);
    assert_int_equal(rename(from, to), 0);
    refused(d->path, "neither model.safetensors nor");

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put(d, "model.safetensors.index.json", cases[i].index);

        if (cases[i].says != NULL) {
            refused(d->path, cases[i].says);
            continue;
        }

        model = model_open(d->path, err);
        assert_non_null(model);
        model_close(model);
    }

    /* a tensor in two files */

    put(d, "model.safetensors.index.json", "{\"weight_map\": {\"x\":"
        " \"b.safetensors\", \"lm_head.weight\": \"a.safetensors\"}}");
    snprintf(from, sizeof(from), "%s/b.safetensors", d->path);
    assert_int_equal(link(to, from), 0);
    refused(d->path, "is there twice, also in");
    unlink(from);

    put(d, "b.safetensors", "\1\0");
    refused(d->path, "less than 8 bytes");
    unlink(from);
    assert_int_equal(mkdir(from, 0700), 0);
    refused(d->path, "no regular file");
    rmdir(from);

    put(d, "generation_config.json", "{\"top_p\": 2}");
    refused(d->path, "generation_config.json: top_p: 2");

    model_dir_close(d);
}


/* MTP layers may be left out altogether; a bias may not be there. */

static void
test_whole(void **state)
{
    char          err[ERR_LEN];
    model_t      *model;
    uint32_t      i;
    uint64_t      print;
    model_dir_t  *d;

    (void) state;

    d = model_dir_open(NULL);
    model_dir_tensors(d);
    model_dir_write(d);

    model = model_open(d->path, err);
    assert_non_null(model);
    assert_int_equal(model_config(model)->mtp_layers, 1);
    print = model_fingerprint(model);
    assert_int_equal(model_kv_block_size(model, BE_BF16, 0),
                     3 * 64 * 56 * 2);
    assert_int_equal(model_kv_block_size(model, BE_BF16, 1),
                     4 * 64 * 56 * 2);
    model_close(model);

    model = model_open(d->path, err);
    assert_non_null(model);
    assert_true(model_fingerprint(model) == print);
    assert_true(model_created(model) > 1000000000);
    model_close(model);

    d->seed = 2;
    model_dir_write(d);
    model = model_open(d->path, err);
    assert_non_null(model);
    assert_true(model_fingerprint(model) != print);
    model_close(model);

    d->seed = 1;
    model_dir_field(d, "rope_theta", "20000");
    model_dir_write(d);
    model = model_open(d->path, err);
    assert_non_null(model);
    assert_true(model_fingerprint(model) != print);
    model_close(model);

    for (i = 0; i < d->n_tensors; i++) {
        if (strncmp(d->tensor[i].name, "model.layers.3.", 15) == 0) {
            d->tensor[i].dropped = 1;
        }
    }

    model_dir_write(d);
    model = model_open(d->path, err);
    assert_non_null(model);
    assert_int_equal(model_config(model)->mtp_layers, 0);
    model_close(model);

    model_dir_tensor(d, "BF16", 0, 72, "model.layers.1.self_attn.",
                     "o_proj.bias");
    model_dir_write(d);
    refused(d->path, "model.layers.1.self_attn.o_proj.bias: a bias");

    model_dir_close(d);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_scale_value),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
