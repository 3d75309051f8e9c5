/*
 * Writing a converted checkpoint: model.packed and the files beside it.
 *
 * All of it goes into a directory of another name, which is renamed when it
 * is complete and on the disk.  One item at a time is in memory.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "model/model_packed.h"


#define CONVERT_PIECE  (1 << 20)     /* bytes of a copy */


typedef struct {
    model_t               *model;
    be_t                  *be;
    char                  *err;
    char                   dir[4096];
    int                    fd;
    model_packed_t         head;
    uint32_t              *item;     /* that are written */
    model_packed_entry_t  *entry;
} convert_t;


static int convert_plan(convert_t *c);
static int convert_dir(convert_t *c, const char *out);
static int convert_files(convert_t *c);
static int convert_copy(convert_t *c, const char *name);
static int convert_weights(convert_t *c);
static int convert_item(convert_t *c, uint32_t i);
static int convert_floats(convert_t *c, uint32_t i, const void *made,
    uint8_t **copy);
static int convert_table(convert_t *c);
static int convert_write(convert_t *c, int fd, const void *data, size_t size,
    uint64_t offset);
static int convert_sync(convert_t *c, const char *path);
static void convert_remove(convert_t *c);


/* What a directory may have besides its weights; the first is required. */

static const char *const  convert_names[] = {
    "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "LICENSE", "LICENSE-MODEL", "LICENSE.wordnet", NULL
};


int
model_convert(model_t *model, be_t *be, const char *out, uint64_t *bytes,
    char *err)
{
    int        rc;
    convert_t  c;

    memset(&c, 0, sizeof(c));
    c.model = model;
    c.be = be;
    c.err = err;
    c.fd = -1;
    rc = -1;

    if (convert_plan(&c) != 0 || convert_dir(&c, out) != 0) {
        goto done;
    }

    if (convert_files(&c) != 0 || convert_weights(&c) != 0
        || convert_sync(&c, c.dir) != 0)
    {
        convert_remove(&c);
        goto done;
    }

    if (rename(c.dir, out) != 0) {
        model_error(err, "%.200s: cannot be renamed to %.200s: %s", c.dir,
                    out, strerror(errno));
        convert_remove(&c);
        goto done;
    }

    *bytes = c.head.size;
    rc = 0;

done:

    if (c.fd != -1) {
        close(c.fd);
    }

    free(c.item);
    free(c.entry);

    return rc;
}


/* What is written, and where payloads begin. */

static int
convert_plan(convert_t *c)
{
    size_t         names;
    uint32_t       i;
    model_t       *model;
    model_item_t  *m;

    model = c->model;

    if (model_packed_as(model) != BE_F32) {
        return model_error(c->err, "%.200s: is converted already",
                           model->dir);
    }

    c->item = calloc(model->n_items, sizeof(uint32_t));
    c->entry = calloc(model->n_items, sizeof(model_packed_entry_t));

    if (c->item == NULL || c->entry == NULL) {
        return model_error(c->err, "no memory for the table of weights");
    }

    names = 0;

    for (i = 0; i < model->n_items; i++) {
        m = &model->item[i];

        if (!m->idle) {
            c->item[c->head.n++] = i;
            names += strlen(m->name) + strlen(model_packed_suffix(m->kind))
                     + 1;
        }
    }

    if (c->head.n > MODEL_PACKED_MOST || names > UINT32_MAX) {
        return model_error(c->err, "%.200s: there are too many weights",
                           model->dir);
    }

    c->head.names = (uint32_t) names;
    c->head.data = model_packed_data(c->head.n, c->head.names);
    c->head.size = c->head.data;
    c->head.source = model->fingerprint;
    c->head.config = model_config_hash(&model->config);

    return 0;
}


static int
convert_dir(convert_t *c, const char *out)
{
    struct stat  st;

    if (lstat(out, &st) == 0) {
        return model_error(c->err, "%.300s: is there already", out);
    }

    if (errno != ENOENT) {
        return model_error(c->err, "%.300s: %s", out, strerror(errno));
    }

    if (snprintf(c->dir, sizeof(c->dir), "%s.%ld.part", out, (long) getpid())
        >= (int) sizeof(c->dir) - 256)
    {
        return model_error(c->err, "%.300s: the name is too long", out);
    }

    if (mkdir(c->dir, 0777) != 0) {
        return model_error(c->err, "%.300s: cannot be made: %s", c->dir,
                           strerror(errno));
    }

    return 0;
}


static int
convert_files(convert_t *c)
{
    uint32_t  i;

    for (i = 0; convert_names[i] != NULL; i++) {
        if (convert_copy(c, convert_names[i]) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
convert_copy(convert_t *c, const char *name)
{
    int       from, to, rc;
    char      path[4096 + 256], *data;
    ssize_t   n;
    uint64_t  at;

    rc = -1;
    to = -1;
    data = NULL;

    snprintf(path, sizeof(path), "%.4000s/%s", c->model->dir, name);
    from = open(path, O_RDONLY | O_CLOEXEC);

    if (from == -1) {
        if (errno == ENOENT && name != convert_names[0]) {
            return 0;
        }

        return model_error(c->err, "%.400s: %s", path, strerror(errno));
    }

    snprintf(path, sizeof(path), "%s/%s", c->dir, name);
    to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    data = malloc(CONVERT_PIECE);

    if (to == -1 || data == NULL) {
        model_error(c->err, "%.400s: %s", path, strerror(errno));
        goto done;
    }

    for (at = 0; (n = read(from, data, CONVERT_PIECE)) > 0; at += (size_t) n) {
        if (convert_write(c, to, data, (size_t) n, at) != 0) {
            goto done;
        }
    }

    if (n < 0 || fsync(to) != 0) {
        model_error(c->err, "%.400s: %s", path, strerror(errno));
        goto done;
    }

    rc = 0;

done:

    close(from);

    if (to != -1) {
        close(to);
    }

    free(data);

    return rc;
}


static int
convert_weights(convert_t *c)
{
    char      path[4096 + 256];
    uint32_t  i;

    snprintf(path, sizeof(path), "%s/%s", c->dir, MODEL_PACKED_NAME);
    c->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

    if (c->fd == -1) {
        return model_error(c->err, "%.400s: %s", path, strerror(errno));
    }

    for (i = 0; i < c->head.n; i++) {
        if (convert_item(c, i) != 0) {
            return -1;
        }
    }

    if (convert_table(c) != 0) {
        return -1;
    }

    if (fsync(c->fd) != 0) {
        return model_error(c->err, "%.400s: %s", path, strerror(errno));
    }

    return 0;
}


static int
convert_item(convert_t *c, uint32_t i)
{
    int                    rc;
    char                   why[ERR_LEN];
    void                  *made;
    size_t                 copies;
    uint8_t               *copy;
    be_tensor_t            t;
    const model_item_t    *m;
    model_packed_entry_t  *e;

    m = &c->model->item[c->item[i]];
    e = &c->entry[i];
    copies = 0;
    copy = NULL;
    rc = -1;

    made = model_item_make(c->model, c->be, c->item[i], &copies, why);
    if (made == NULL) {
        return model_error(c->err, "%.200s: %.300s", m->name, why);
    }

    if (m->kind == MODEL_FLOATS) {
        memset(&t, 0, sizeof(t));
        t.dtype = BE_F32;
        t.rows = m->t.rows;
        t.cols = m->t.cols;
        t.parts = 1;

        if (convert_floats(c, i, made, &copy) != 0) {
            goto done;
        }

        t.data = copy;

    } else {
        c->be->weight_tensor(made, &t);

        if (m->kind != MODEL_TABLE) {
            c->head.dtype = t.dtype;
        }
    }

    e->kind = m->kind;
    e->dtype = t.dtype;
    e->rows = t.rows;
    e->cols = t.cols;
    e->parts = t.parts;
    e->size = be_tensor_size(&t);
    e->sum = XXH3_64bits(t.data, (size_t) e->size);

    /* Between payloads is a hole of the file, which reads as zeros. */

    e->offset = (c->head.size + MODEL_PACKED_ALIGN - 1) / MODEL_PACKED_ALIGN
                * MODEL_PACKED_ALIGN;

    rc = convert_write(c, c->fd, t.data, (size_t) e->size, e->offset);
    c->head.size = e->offset + e->size;

done:

    model_item_free(c->model, c->be, c->item[i], made);
    free(copy);

    return rc;
}


static int
convert_floats(convert_t *c, uint32_t i, const void *made, uint8_t **copy)
{
    size_t               size;
    const model_item_t  *m;

    m = &c->model->item[c->item[i]];
    size = (size_t) m->t.rows * m->t.cols * sizeof(float);

    *copy = malloc(size);
    if (*copy == NULL) {
        return model_error(c->err, "%.200s: no memory", m->name);
    }

    c->be->download(c->be, *copy, made, size);

    return c->be->sync(c->be, c->err);
}


/* Header, entries and names, before the payloads. */

static int
convert_table(convert_t *c)
{
    int                  rc;
    char                *name;
    uint8_t             *p;
    uint32_t             i;
    const model_item_t  *m;

    p = calloc(1, (size_t) c->head.data);
    if (p == NULL) {
        return model_error(c->err, "no memory for the table of weights");
    }

    name = (char *) p + MODEL_PACKED_HEADER
           + (size_t) c->head.n * MODEL_PACKED_ENTRY;

    for (i = 0; i < c->head.n; i++) {
        m = &c->model->item[c->item[i]];
        model_packed_put_entry(p + MODEL_PACKED_HEADER
                               + (size_t) i * MODEL_PACKED_ENTRY,
                               &c->entry[i]);
        name += sprintf(name, "%s%s", m->name, model_packed_suffix(m->kind))
                + 1;
    }

    model_packed_put_header(p, &c->head, 0);
    model_packed_put_header(p, &c->head,
                            XXH3_64bits(p, (size_t) c->head.data));

    rc = convert_write(c, c->fd, p, (size_t) c->head.data, 0);
    free(p);

    return rc;
}


static int
convert_write(convert_t *c, int fd, const void *data, size_t size,
    uint64_t offset)
{
    ssize_t         n;
    const uint8_t  *p;

    for (p = data; size != 0; p += n) {
        n = pwrite(fd, p, size, (off_t) offset);

        if (n < 0 && errno == EINTR) {
            n = 0;
            continue;
        }

        if (n <= 0) {
            return model_error(c->err, "%.300s: cannot be written: %s",
                               c->dir, n < 0 ? strerror(errno)
                                             : "nothing goes in");
        }

        size -= (size_t) n;
        offset += (uint64_t) n;
    }

    return 0;
}


static int
convert_sync(convert_t *c, const char *path)
{
    int  fd, rc;

    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rc = (fd != -1) ? fsync(fd) : -1;

    if (rc != 0) {
        model_error(c->err, "%.300s: %s", path, strerror(errno));
    }

    if (fd != -1) {
        close(fd);
    }

    return rc;
}


static void
convert_remove(convert_t *c)
{
    char      path[4096 + 256];
    uint32_t  i;

    for (i = 0; convert_names[i] != NULL; i++) {
        snprintf(path, sizeof(path), "%s/%s", c->dir, convert_names[i]);
        (void) unlink(path);
    }

    snprintf(path, sizeof(path), "%s/%s", c->dir, MODEL_PACKED_NAME);
    (void) unlink(path);
    (void) rmdir(c->dir);
}
