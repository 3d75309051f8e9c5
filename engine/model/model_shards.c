/*
 * The files of a model directory, and the table of all their tensors, sorted
 * by name.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/model_shards.h"


static int shards_single(model_shards_t *s, const char *dir);
static int shards_there(model_shards_t *s, const char *dir, const char *name);
static int shards_new_file(model_shards_t *s, const char *name,
    uint32_t *file);
static int shards_load_index(model_shards_t *s, shard_index_t *x,
    const char *dir);
static int shards_walk_index(model_shards_t *s, shard_index_t *x, json_t *j);
static int shards_walk_map(model_shards_t *s, shard_index_t *x, json_t *j);
static int shards_check_index(model_shards_t *s, const shard_index_t *x,
    const char *dir);
static int shards_add(model_shards_t *s, const char *name, uint32_t *file);
static int shards_map(model_shards_t *s, const char *dir, uint32_t file);
static int shards_sort(model_shards_t *s);
static int by_name(const void *a, const void *b);


model_shards_t *
model_shards_open(const char *dir, char *err)
{
    int              rc;
    uint32_t         i;
    shard_index_t    index;
    model_shards_t  *s;

    memset(&index, 0, sizeof(index));

    s = model_shards_new(err);
    if (s == NULL) {
        return NULL;
    }

    rc = shards_single(s, dir);

    if (rc == 0 && s->n_files == 0) {
        rc = shards_load_index(s, &index, dir);
    }

    for (i = 0; rc == 0 && i < s->n_files; i++) {
        rc = shards_map(s, dir, i);
    }

    if (rc == 0) {
        rc = shards_sort(s);
    }

    if (rc == 0) {
        rc = shards_check_index(s, &index, dir);
    }

    model_index_free(&index);

    if (rc != 0) {
        model_shards_close(s);
        return NULL;
    }

    s->err = NULL;

    return s;
}


model_shards_t *
model_shards_memory(const uint8_t *data, size_t size, const char *name,
    char *err)
{
    int              rc;
    uint32_t         file;
    model_shards_t  *s;

    s = model_shards_new(err);
    if (s == NULL) {
        return NULL;
    }

    if (strcmp(name, SHARD_PACKED) == 0) {
        rc = shards_new_file(s, name, &file);
        rc = (rc == 0) ? model_packed_read(s, file, data, size) : rc;

    } else {
        rc = shards_add(s, name, &file);
        rc = (rc == 0) ? model_shards_read(s, file, data, size) : rc;
    }

    if (rc != 0 || shards_sort(s) != 0) {
        model_shards_close(s);
        return NULL;
    }

    s->err = NULL;

    return s;
}


model_shards_t *
model_shards_new(char *err)
{
    model_shards_t  *s;

    s = calloc(1, sizeof(model_shards_t));

    if (s == NULL) {
        model_error(err, "no memory for the table of tensors");
        return NULL;
    }

    s->err = err;

    return s;
}


void
model_shards_close(model_shards_t *s)
{
    uint32_t  i;

    if (s == NULL) {
        return;
    }

    for (i = 0; i < s->n_files; i++) {

        if (s->file[i].map != NULL) {
            munmap(s->file[i].map, s->file[i].size);
        }

        free(s->file[i].names);
    }

    free(s->file);
    free(s->tensor);
    free(s->packed);
    free(s);
}


/*
 * Packed weights first, then as Hugging Face's loader: a single file wins over
 * an index.
 */

static int
shards_single(model_shards_t *s, const char *dir)
{
    int       rc;
    uint32_t  file;

    rc = shards_there(s, dir, SHARD_PACKED);

    if (rc == 1) {
        return shards_new_file(s, SHARD_PACKED, &file);
    }

    if (rc == 0) {
        rc = shards_there(s, dir, "model.safetensors");
    }

    return rc == 1 ? shards_add(s, "model.safetensors", &file) : rc;
}


/* 1 or 0, or -1 if that cannot be told. */

static int
shards_there(model_shards_t *s, const char *dir, const char *name)
{
    char         path[4096];
    struct stat  st;

    snprintf(path, sizeof(path), "%s/%s", dir, name);

    if (stat(path, &st) == 0) {
        return 1;
    }

    if (errno != ENOENT) {
        return model_error(s->err, "%s: %s", path, strerror(errno));
    }

    return 0;
}


static int
shards_load_index(model_shards_t *s, shard_index_t *x, const char *dir)
{
    int      rc;
    char     path[4096], *data;
    size_t   len;

    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", dir);

    if (json_load(path, MODEL_INDEX_MAX, &data, &len, s->err) != 0) {
        return -1;
    }

    if (data == NULL) {
        return model_error(s->err, "%s: neither model.safetensors nor "
                           "model.safetensors.index.json is there", dir);
    }

    rc = model_index_read(s, x, data, len, path);
    free(data);

    return rc;
}


int
model_index_read(model_shards_t *s, shard_index_t *x, const char *data,
    size_t len, const char *name)
{
    char    why[ERR_LEN];
    json_t  j;

    /* decoded names are never longer than what they were written as */

    x->size = len + 1;
    x->names = malloc(x->size);

    if (x->names == NULL) {
        return model_error(s->err, "%s: no memory", name);
    }

    json_init(&j, data, len, why);

    if (shards_walk_index(s, x, &j) != 0) {
        return model_error(s->err, "%.200s: %.300s", name, why);
    }

    return 0;
}


void
model_index_free(shard_index_t *x)
{
    free(x->names);
    free(x->place);
}


static int
shards_walk_index(model_shards_t *s, shard_index_t *x, json_t *j)
{
    int   rc, first, seen;
    char  key[64];

    seen = 0;
    first = 1;

    if (json_open(j, '{') != 0) {
        return -1;
    }

    while ((rc = json_next(j, '}', &first, key, sizeof(key))) == 1) {

        if (strcmp(key, "weight_map") != 0) {
            if (json_skip(j) != 0) {
                return -1;
            }

            continue;
        }

        if (seen) {
            return model_error(j->err, "weight_map is given twice");
        }

        seen = 1;

        if (shards_walk_map(s, x, j) != 0) {
            return -1;
        }
    }

    if (rc != 0 || json_end(j) != 0) {
        return -1;
    }

    if (x->n == 0) {
        return model_error(j->err, "weight_map is missing or empty");
    }

    return 0;
}


static int
shards_walk_map(model_shards_t *s, shard_index_t *x, json_t *j)
{
    int             rc, first;
    char            file[SHARD_NAME], *name;
    shard_place_t  *grown;

    first = 1;

    if (json_open(j, '{') != 0) {
        return -1;
    }

    for ( ;; ) {
        name = x->names + x->used;
        rc = json_next(j, '}', &first, name, x->size - x->used);

        if (rc != 1) {
            return rc;
        }

        if (json_string(j, file, sizeof(file)) != 0) {
            return -1;
        }

        x->used += strlen(name) + 1;

        if (x->n == x->max) {
            x->max = x->max * 2 + 1024;
            grown = realloc(x->place, x->max * sizeof(shard_place_t));

            if (grown == NULL) {
                return model_error(j->err, "no memory");
            }

            x->place = grown;
        }

        x->place[x->n].name = name;

        if (shards_add(s, file, &x->place[x->n].file) != 0) {
            return model_error(j->err, "%.200s: %.250s", name, s->err);
        }

        x->n++;
    }
}


static int
shards_check_index(model_shards_t *s, const shard_index_t *x, const char *dir)
{
    size_t                 i;
    const char            *file;
    const model_tensor_t  *t;

    for (i = 0; i < x->n; i++) {
        t = model_shards_find(s, x->place[i].name);
        file = s->file[x->place[i].file].name;

        if (t == NULL || t->file != x->place[i].file) {
            return model_error(s->err, "%s/model.safetensors.index.json: "
                               "%.200s is not in %s", dir, x->place[i].name,
                               file);
        }
    }

    return 0;
}


/* A file of the directory itself; the one named last is the likeliest. */

static int
shards_add(model_shards_t *s, const char *name, uint32_t *file)
{
    size_t    n;
    uint32_t  i;

    for (i = s->n_files; i-- > 0; /* void */ ) {
        if (strcmp(s->file[i].name, name) == 0) {
            *file = i;
            return 0;
        }
    }

    n = strlen(name);

    if (n >= SHARD_NAME || n <= sizeof(SHARD_SUFFIX) - 1
        || strchr(name, '/') != NULL
        || strcmp(name + n - (sizeof(SHARD_SUFFIX) - 1), SHARD_SUFFIX) != 0)
    {
        return model_error(s->err, "\"%.200s\" is not the name of a "
                           SHARD_SUFFIX " file in this directory", name);
    }

    return shards_new_file(s, name, file);
}


static int
shards_new_file(model_shards_t *s, const char *name, uint32_t *file)
{
    shard_t  *grown;

    if (s->n_files == s->max_files) {
        s->max_files = s->max_files * 2 + 16;
        grown = realloc(s->file, s->max_files * sizeof(shard_t));

        if (grown == NULL) {
            return model_error(s->err, "no memory for the table of files");
        }

        s->file = grown;
    }

    memset(&s->file[s->n_files], 0, sizeof(shard_t));
    memcpy(s->file[s->n_files].name, name, strlen(name) + 1);
    *file = s->n_files++;

    return 0;
}


static int
shards_map(model_shards_t *s, const char *dir, uint32_t file)
{
    int           fd;
    char          path[4096];
    void         *map;
    shard_t      *f;
    struct stat   st;

    f = &s->file[file];
    snprintf(path, sizeof(path), "%s/%s", dir, f->name);

    fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd == -1 || fstat(fd, &st) == -1) {
        model_error(s->err, "%s: %s", path, strerror(errno));
        goto failed;
    }

    if (!S_ISREG(st.st_mode) || st.st_size < 8) {
        model_error(s->err, "%s: not a file of weights, it %s", path,
                    S_ISREG(st.st_mode) ? "has less than 8 bytes"
                                        : "is no regular file");
        goto failed;
    }

    map = mmap(NULL, (size_t) st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);

    if (map == MAP_FAILED) {
        model_error(s->err, "%s: cannot be mapped: %s", path,
                    strerror(errno));
        goto failed;
    }

    close(fd);

    f->map = map;
    f->size = (size_t) st.st_size;

    return (strcmp(f->name, SHARD_PACKED) == 0)
           ? model_packed_read(s, file, f->map, f->size)
           : model_shards_read(s, file, f->map, f->size);

failed:

    if (fd != -1) {
        close(fd);
    }

    return -1;
}


static int
shards_sort(model_shards_t *s)
{
    size_t           i;
    model_tensor_t  *t;

    if (s->n_tensors == 0) {
        return model_error(s->err, "%s: no tensor", s->file[0].name);
    }

    qsort(s->tensor, s->n_tensors, sizeof(model_tensor_t), by_name);

    for (i = 1; i < s->n_tensors; i++) {
        t = &s->tensor[i];

        if (strcmp(t[-1].name, t[0].name) == 0) {
            return model_error(s->err, "%s: %.200s: is there twice, also in "
                               "%s", s->file[t[0].file].name, t[0].name,
                               s->file[t[-1].file].name);
        }
    }

    return 0;
}


static int
by_name(const void *a, const void *b)
{
    const model_tensor_t  *x = a, *y = b;

    return strcmp(x->name, y->name);
}


const model_tensor_t *
model_shards_find(const model_shards_t *s, const char *name)
{
    model_tensor_t  key;

    key.name = name;

    return bsearch(&key, s->tensor, s->n_tensors, sizeof(model_tensor_t),
                   by_name);
}


const model_tensor_t *
model_shards_prefix(const model_shards_t *s, const char *prefix)
{
    size_t  low, high, mid;

    low = 0;
    high = s->n_tensors;

    while (low < high) {
        mid = low + (high - low) / 2;

        if (strcmp(s->tensor[mid].name, prefix) < 0) {
            low = mid + 1;

        } else {
            high = mid;
        }
    }

    if (low == s->n_tensors
        || strncmp(s->tensor[low].name, prefix, strlen(prefix)) != 0)
    {
        return NULL;
    }

    return &s->tensor[low];
}


const char *
model_shards_file(const model_shards_t *s, uint32_t file)
{
    return s->file[file].name;
}


const model_tensor_t *
model_shards_list(const model_shards_t *s, size_t *n)
{
    *n = s->n_tensors;

    return s->tensor;
}


uint64_t
model_shards_size(const model_shards_t *s)
{
    uint32_t  i;
    uint64_t  size;

    size = 0;

    for (i = 0; i < s->n_files; i++) {
        size += s->file[i].size;
    }

    return size;
}


const struct model_packed_s *
model_shards_packed(const model_shards_t *s)
{
    return s->packed;
}
