/*
 * Converted checkpoints: the same logits, bit by bit, as with weights
 * quantised at start; whole or not at all; and every byte before the payloads
 * refused when it is wrong.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>

#include "cli/cli_ranks.h"
#include "model/model_packed.h"
#include "unit/model_dir.h"


#define ROWS   40
#define VOCAB  101


static void
packed_convert(const model_dir_t *d, be_dtype_t weights, const char *out)
{
    be_t          *be;
    char           err[ERR_LEN];
    model_t       *model;
    uint64_t       bytes;
    be_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_F32;
    opt.weights = weights;
    opt.threads = 2;
    opt.pin = -1;

    model = model_open(d->path, err);
    be = be_open("cpu", &opt, err);
    assert_non_null(model);
    assert_non_null(be);

    if (model_convert(model, be, out, &bytes, err) != 0) {
        fail_msg("%s", err);
    }

    /* What is there is not written over. */

    assert_int_equal(model_convert(model, be, out, &bytes, err), -1);
    assert_non_null(strstr(err, "is there already"));

    be->close(be);
    model_close(model);
}


static void
packed_remove(const char *out)
{
    char            name[512];
    DIR            *dir;
    struct dirent  *e;

    dir = opendir(out);
    assert_non_null(dir);

    while ((e = readdir(dir)) != NULL) {
        snprintf(name, sizeof(name), "%.200s/%.255s", out, e->d_name);
        (void) unlink(name);
    }

    closedir(dir);
    assert_int_equal(rmdir(out), 0);
}


static void
packed_logits(const char *path, be_dtype_t compute, be_dtype_t weights,
    uint32_t ranks, float *logits)
{
    char                  err[ERR_LEN];
    model_t              *model;
    int32_t               id[ROWS];
    uint32_t              i, pos[ROWS], seq[ROWS], row[ROWS];
    cli_step_t            step[2];
    cli_ranks_t          *r;
    cli_ranks_options_t   opt;

    static const int32_t         block[1] = { 1 };
    static const int32_t *const  blocks[1] = { block };

    model = model_open(path, err);
    if (model == NULL) {
        fail_msg("%s", err);
    }

    memset(&opt, 0, sizeof(opt));
    opt.backend = "cpu";
    opt.compute = compute;
    opt.weights = weights;
    opt.ranks = ranks;
    opt.threads = 1;
    opt.max_rows = ROWS;
    opt.max_logits = ROWS;
    opt.kv_blocks = 2;

    r = cli_ranks_open(model, &opt, err);
    if (r == NULL) {
        fail_msg("%s", err);
    }

    for (i = 0; i < ROWS; i++) {
        id[i] = (int32_t) (i * 37 % VOCAB);
        pos[i] = i;
        seq[i] = 0;
        row[i] = i;
    }

    memset(step, 0, sizeof(step));
    step[0].batch.n_rows = ROWS;
    step[0].batch.id = id;
    step[0].batch.pos = pos;
    step[0].batch.seq = seq;
    step[0].batch.n_seqs = 1;
    step[0].batch.blocks = blocks;
    step[0].logit_row = row;
    step[0].n_logits = ROWS;
    step[0].logits = logits;

    assert_int_equal(cli_ranks_step(r, step, err), 0);

    cli_ranks_close(r);
    model_close(model);
}


static void
packed_style(const model_field_t *style, be_dtype_t weights)
{
    char           out[128], err[ERR_LEN];
    float         *want, *got;
    model_t       *model, *packed;
    uint32_t       compute;
    model_dir_t   *d;
    be_dtype_t     other;

    d = model_dir_open(style);
    model_dir_tensors(d);
    model_dir_write(d);

    snprintf(out, sizeof(out), "%s.packed", d->path);
    packed_convert(d, weights, out);

    want = calloc(ROWS * VOCAB, sizeof(float));
    got = calloc(ROWS * VOCAB, sizeof(float));
    assert_non_null(want);
    assert_non_null(got);

    for (compute = BE_F32; compute <= BE_BF16; compute++) {
        packed_logits(d->path, compute, weights, 1, want);
        packed_logits(out, compute, BE_F32, 1, got);
        assert_memory_equal(want, got, ROWS * VOCAB * sizeof(float));

        memset(got, 0, ROWS * VOCAB * sizeof(float));
        packed_logits(out, compute, weights, 2, got);
        assert_memory_equal(want, got, ROWS * VOCAB * sizeof(float));
    }

    model = model_open(d->path, err);
    packed = model_open(out, err);
    assert_non_null(model);
    assert_non_null(packed);

    assert_true(model_fingerprint(model) == model_fingerprint(packed));
    assert_int_equal(model_packed_as(model), BE_F32);
    assert_int_equal(model_packed_as(packed), weights);
    assert_int_equal(model_packed_verify(packed, err), 0);
    assert_int_equal(model_packed_verify(model, err), -1);

    other = (weights == BE_INT8) ? BE_INT4 : BE_INT8;
    assert_int_equal(cli_ranks_weights(packed, &other, err), -1);
    assert_non_null(strstr(err, "--weights"));

    model_close(model);
    model_close(packed);
    packed_remove(out);
    model_dir_close(d);
    free(want);
    free(got);
}


static void
test_roundtrip(void **state)
{
    (void) state;

    packed_style(NULL, BE_INT8);
    packed_style(NULL, BE_INT4);
    packed_style(NULL, BE_BF16);
    packed_style(model_dir_v2, BE_INT8);
    packed_style(model_dir_fp8, BE_F8E4M3);
    packed_style(model_dir_fp8, BE_BF16);
}


/* Another configuration is another model, and must still fit. */

static void
test_config(void **state)
{
    char          out[128], name[256], err[ERR_LEN], *text, *at;
    FILE         *f;
    size_t        n;
    model_t      *model, *packed;
    model_dir_t  *d;

    (void) state;

    d = model_dir_open(NULL);
    model_dir_tensors(d);
    model_dir_write(d);
    snprintf(out, sizeof(out), "%s.packed", d->path);
    packed_convert(d, BE_INT8, out);

    snprintf(name, sizeof(name), "%s/config.json", out);
    text = calloc(1, 20000);
    assert_non_null(text);

    f = fopen(name, "r");
    assert_non_null(f);
    n = fread(text, 1, 19999, f);
    fclose(f);

    at = strstr(text, "\"rope_theta\": 10000");
    assert_non_null(at);
    at[18] = '1';

    f = fopen(name, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);

    model = model_open(d->path, err);
    packed = model_open(out, err);
    assert_non_null(model);
    assert_non_null(packed);
    assert_true(model_fingerprint(model) != model_fingerprint(packed));
    model_close(model);
    model_close(packed);

    at = strstr(text, "\"hidden_size\": 72");
    assert_non_null(at);
    at[16] = '4';
    f = fopen(name, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);

    assert_null(model_open(out, err));
    assert_non_null(strstr(err, "as config.json says"));

    packed_remove(out);
    model_dir_close(d);
    free(text);
}


/* Every byte before the payloads, the length, and a payload. */

static void
test_damage(void **state)
{
    int            fd;
    char           out[128], name[256], err[ERR_LEN];
    off_t          size;
    uint8_t       *data, *copy, byte;
    uint64_t       first, i;
    model_t       *model;
    model_dir_t   *d;
    model_shards_t *s;

    (void) state;

    d = model_dir_open(NULL);
    model_dir_tensors(d);
    model_dir_write(d);
    snprintf(out, sizeof(out), "%s.packed", d->path);
    packed_convert(d, BE_INT4, out);

    snprintf(name, sizeof(name), "%s/" MODEL_PACKED_NAME, out);
    fd = open(name, O_RDWR);
    assert_int_not_equal(fd, -1);
    size = lseek(fd, 0, SEEK_END);
    data = malloc((size_t) size);
    copy = malloc((size_t) size);
    assert_non_null(data);
    assert_non_null(copy);
    assert_int_equal(pread(fd, data, (size_t) size, 0), size);
    memcpy(copy, data, (size_t) size);

    first = data[24] | (uint64_t) data[25] << 8 | (uint64_t) data[26] << 16;

    s = model_shards_memory(copy, (size_t) size, MODEL_PACKED_NAME, err);
    assert_non_null(s);
    model_shards_close(s);

    for (i = 0; i < first; i++) {
        copy[i] ^= 0x10;
        assert_null(model_shards_memory(copy, (size_t) size,
                                        MODEL_PACKED_NAME, err));
        assert_non_null(strstr(err, MODEL_PACKED_NAME));
        copy[i] = data[i];
    }

    for (i = 0; i < (uint64_t) size; i += 1 + i / 8) {
        assert_null(model_shards_memory(copy, (size_t) i, MODEL_PACKED_NAME,
                                        err));
    }

    byte = data[size - 1] ^ 1;
    assert_int_equal(pwrite(fd, &byte, 1, size - 1), 1);
    close(fd);

    model = model_open(out, err);
    assert_non_null(model);
    assert_int_equal(model_packed_verify(model, err), -1);
    assert_non_null(strstr(err, "checksum"));
    model_close(model);

    packed_remove(out);
    model_dir_close(d);
    free(data);
    free(copy);
}


/* Nothing is left behind where it cannot be written. */

static void
test_no_place(void **state)
{
    be_t          *be;
    char           err[ERR_LEN];
    model_t       *model;
    uint64_t       bytes;
    model_dir_t   *d;
    be_options_t   opt;

    (void) state;

    d = model_dir_open(NULL);
    model_dir_tensors(d);
    model_dir_write(d);

    memset(&opt, 0, sizeof(opt));
    opt.weights = BE_INT8;
    opt.pin = -1;
    be = be_open("cpu", &opt, err);
    model = model_open(d->path, err);
    assert_non_null(be);
    assert_non_null(model);

    assert_int_equal(model_convert(model, be, "/nonexistent/out", &bytes,
                                   err), -1);
    assert_non_null(strstr(err, "/nonexistent/out"));
    assert_int_equal(model_convert(model, be, "/dev/null", &bytes, err), -1);

    model_close(model);
    be->close(be);
    model_dir_close(d);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_roundtrip),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_no_place)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
