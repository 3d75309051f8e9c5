/*
 * model.packed from anywhere: no crash, and every payload that is accepted
 * lies within the file, aligned, apart from the others, and as large as its
 * shape.
 *
 * Unless the first byte is 'r', the file's length and checksum are put right
 * first: no fuzzer finds these.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "model/model_packed.h"


#define CHECK(x)  do { if (!(x)) { abort(); } } while (0)


static void fuzz_right(uint8_t *file, size_t size);
static void fuzz_read(const uint8_t *file, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t  *file;

    if (size == 0) {
        return 0;
    }

    file = malloc(size);
    CHECK(file != NULL);
    memcpy(file, data + 1, size - 1);

    if (data[0] != 'r') {
        fuzz_right(file, size - 1);
    }

    fuzz_read(file, size - 1);
    free(file);

    return 0;
}


static void
fuzz_right(uint8_t *file, size_t size)
{
    uint32_t  i;
    uint64_t  begin, sum;

    if (size < MODEL_PACKED_HEADER) {
        return;
    }

    begin = 0;

    for (i = 8; i-- > 0; /* void */ ) {
        begin = begin << 8 | file[24 + i];
        file[32 + i] = (uint8_t) ((uint64_t) size >> (8 * i));
        file[56 + i] = 0;
    }

    if (begin > size) {
        return;
    }

    sum = XXH3_64bits(file, (size_t) begin);

    for (i = 0; i < 8; i++) {
        file[56 + i] = (uint8_t) (sum >> (8 * i));
    }
}


static void
fuzz_read(const uint8_t *file, size_t size)
{
    char                   err[ERR_LEN];
    size_t                 i, n;
    uint64_t               covered;
    be_tensor_t            made;
    model_shards_t        *s;
    const model_tensor_t  *t;

    s = model_shards_memory(file, size, MODEL_PACKED_NAME, err);

    if (s == NULL) {
        CHECK(strstr(err, MODEL_PACKED_NAME) != NULL);
        return;
    }

    CHECK(model_shards_packed(s) != NULL);

    t = model_shards_list(s, &n);
    covered = 0;

    for (i = 0; i < n; i++) {
        CHECK(t[i].begin % MODEL_PACKED_ALIGN == 0);
        CHECK(t[i].data == file + t[i].begin);
        CHECK(t[i].end > t[i].begin && t[i].end <= size);
        CHECK(model_shards_find(s, t[i].name) == &t[i]);
        covered += t[i].end - t[i].begin;

        memset(&made, 0, sizeof(made));
        made.rows = (uint32_t) t[i].dim[0];
        made.cols = (uint32_t) t[i].dim[1];
        made.parts = t[i].parts;

        for (made.dtype = BE_F32; made.dtype < BE_DTYPES; made.dtype++) {
            if (strcmp(t[i].dtype, model_dtype_name(made.dtype)) == 0) {
                break;
            }
        }

        CHECK(be_tensor_size(&made) == t[i].end - t[i].begin);
    }

    CHECK(covered <= size);
    model_shards_close(s);
}
