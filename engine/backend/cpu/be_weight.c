/*
 * Matrices: used where they are mapped if their type is the one that is
 * wanted (or BF16 under F32, which widens exactly on the fly), else converted
 * once, by all threads; be_quant.h says what quantised ones look like.
 *
 * A checkpoint's FP8 is e4m3fn with a scale (a multiplier) for each block of
 * 128 x 128.
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/be_quant.h"
#include "backend/cpu/be_cpu.h"


#define WEIGHT_SCALE_BLOCK  128
#define WEIGHT_ROWS_ITEM    16
#define WEIGHT_T_TILE       64


typedef struct {
    be_tensor_t    t;
    uint32_t       stride;           /* rows of a part, and those used */
    uint32_t       take;
    int            turn;             /* transpose */
    be_weight_t   *w;
    uint8_t       *out;
    float          table[256];       /* of FP8 */
    int            bad;              /* a weight that no scale can hold */
} weight_job_t;


static be_weight_t *weight_new(const be_tensor_t *t, uint32_t rows,
    uint32_t cols, uint32_t parts, be_dtype_t dtype, char *err);
static int weight_check(const be_tensor_t *t, uint32_t parts, char *err);
static be_weight_t *weight_make(be_cpu_t *cpu, const be_tensor_t *t,
    uint32_t parts, int turn, be_dtype_t dtype, size_t *copies, char *err);
static be_weight_t *weight_made(const be_tensor_t *t, char *err);
static void weight_row_item(void *ctx, uint32_t item, uint32_t worker);
static void weight_t_item(void *ctx, uint32_t item, uint32_t worker);
static be_dtype_t weight_type(const be_cpu_t *cpu, const be_tensor_t *t);
static void weight_pairs_item(void *ctx, uint32_t item, uint32_t worker);
static void weight_panel_item(void *ctx, uint32_t item, uint32_t worker);
static void weight_gather(weight_job_t *job, uint32_t part, uint32_t out,
    uint32_t k, float *x);
static int weight_gather_f8(const weight_job_t *job, uint32_t part,
    uint32_t out, uint32_t k, uint8_t *code, float *scale);
static inline size_t weight_pair(uint32_t k, uint32_t i);
static inline uint32_t weight_source(const weight_job_t *job, uint32_t part,
    uint32_t row);
static void weight_run(const weight_job_t *job, uint32_t row, uint32_t col,
    uint32_t n, float *x);
static inline float weight_scale(const weight_job_t *job, uint32_t row,
    uint32_t col);
static inline void weight_put(const weight_job_t *job, size_t at, float x);


be_weight_t *
be_cpu_weight(be_t *be, const be_tensor_t *t, size_t *copies, char *err)
{
    uint32_t      parts;
    be_cpu_t     *cpu;
    be_dtype_t    dtype;
    be_weight_t  *w;

    cpu = (be_cpu_t *) be;

    if (t->made) {
        return weight_made(t, err);
    }

    parts = (t->parts != 0) ? t->parts : 1;

    if (weight_check(t, parts, err) != 0) {
        return NULL;
    }

    dtype = weight_type(cpu, t);

    if (cpu->weights == BE_F32) {

        /* All rows of a part serve too if its last ones are wanted. */

        if (t->dtype == dtype
            && (t->take == 0 || t->from + t->take == t->rows / parts))
        {
            w = weight_new(t, t->rows, t->cols, 1, dtype, err);

            if (w != NULL) {
                w->data = t->data;
            }

            return w;
        }

    } else if (t->dtype == dtype && dtype == BE_BF16 && t->take == 0) {

        w = weight_new(t, t->rows, t->cols, 1, dtype, err);

        if (w != NULL) {
            w->data = t->data;
        }

        return w;
    }

    return weight_make(cpu, t, parts, 0, dtype, copies, err);
}


be_weight_t *
be_cpu_weight_t(be_t *be, const be_tensor_t *t, uint32_t parts,
    size_t *copies, char *err)
{
    be_cpu_t    *cpu;
    be_dtype_t   dtype;

    cpu = (be_cpu_t *) be;

    if (weight_check(t, parts, err) != 0) {
        return NULL;
    }

    dtype = weight_type(cpu, t);

    return weight_make(cpu, t, parts, 1, dtype, copies, err);
}


/*
 * What a matrix becomes.  BF16 stays BF16, widening it would only double the
 * bytes; in pairs where that is allowed and there are products with them.
 */

static be_dtype_t
weight_type(const be_cpu_t *cpu, const be_tensor_t *t)
{
    be_dtype_t  dtype;

    dtype = (cpu->weights != BE_F32) ? cpu->weights
          : (t->dtype == BE_BF16) ? BE_BF16 : cpu->compute;

    return (dtype == BE_BF16 && cpu->opt.pack
            && cpu->mode->gemm[BE_PAIRS].row_block != 0) ? BE_PAIRS : dtype;
}


be_weight_t *
be_cpu_table(be_t *be, const be_tensor_t *t, size_t *copies, char *err)
{
    be_cpu_t     *cpu;
    be_weight_t  *w;

    cpu = (be_cpu_t *) be;

    if (weight_check(t, 1, err) != 0) {
        return NULL;
    }

    if (t->dtype == BE_F8E4M3) {
        return weight_make(cpu, t, 1, 0, cpu->compute, copies, err);
    }

    w = weight_new(t, t->rows, t->cols, 1, t->dtype, err);

    if (w != NULL) {
        w->data = t->data;
    }

    return w;
}


void
be_cpu_weight_free(be_t *be, be_weight_t *w)
{
    (void) be;

    if (w == NULL) {
        return;
    }

    if (w->region != NULL) {
        be_region_free(w->region);

    } else {
        free(w->own);
    }

    free(w);
}


void
be_cpu_weight_tensor(const be_weight_t *w, be_tensor_t *t)
{
    memset(t, 0, sizeof(be_tensor_t));

    t->data = w->data;
    t->dtype = w->dtype;
    t->rows = w->rows;
    t->cols = w->cols;
    t->parts = w->rows / w->part_rows;
    t->made = 1;
}


static int
weight_check(const be_tensor_t *t, uint32_t parts, char *err)
{
    if (t->data == NULL || t->rows == 0 || t->cols == 0) {
        snprintf(err, ERR_LEN, "a matrix of %u x %u is not possible",
                 t->rows, t->cols);
        return -1;
    }

    if (t->dtype != BE_F32 && t->dtype != BE_BF16 && t->dtype != BE_F8E4M3) {
        snprintf(err, ERR_LEN, "a matrix of type %d is not possible",
                 (int) t->dtype);
        return -1;
    }

    if (t->dtype == BE_F8E4M3
        && (t->scale == NULL
            || t->scale_cols != (t->cols + WEIGHT_SCALE_BLOCK - 1)
                                / WEIGHT_SCALE_BLOCK))
    {
        snprintf(err, ERR_LEN, "an FP8 matrix of %u x %u without a scale for "
                 "each block of 128 x 128", t->rows, t->cols);
        return -1;
    }

    if (parts == 0 || t->rows % parts != 0) {
        snprintf(err, ERR_LEN, "a matrix of %u rows has no %u equal parts",
                 t->rows, parts);
        return -1;
    }

    if ((uint64_t) t->from + t->take > t->rows / parts) {
        snprintf(err, ERR_LEN, "rows %u to %u of parts of %u are not "
                 "possible", t->from, t->from + t->take, t->rows / parts);
        return -1;
    }

    if ((uint64_t) t->cols * parts > UINT32_MAX) {
        snprintf(err, ERR_LEN, "a matrix of %u columns in %u parts is too "
                 "large", t->cols, parts);
        return -1;
    }

    return 0;
}


static be_weight_t *
weight_new(const be_tensor_t *t, uint32_t rows, uint32_t cols, uint32_t parts,
    be_dtype_t dtype, char *err)
{
    be_weight_t  *w;

    w = calloc(1, sizeof(be_weight_t));
    if (w == NULL) {
        snprintf(err, ERR_LEN, "out of memory for a matrix of %u x %u",
                 t->rows, t->cols);
        return NULL;
    }

    w->dtype = dtype;
    w->rows = rows;
    w->cols = cols;
    w->part_rows = rows / parts;

    if (be_quant_panels(dtype)) {
        w->part_panels = be_quant_part_panels(w->part_rows);
        w->ld = be_quant_panel(dtype, cols);

    } else {
        w->ld = (size_t) cols * be_dtype_size(dtype);
    }

    return w;
}


/* A matrix that is in memory as be_cpu_weight_tensor() gave it away. */

static be_weight_t *
weight_made(const be_tensor_t *t, char *err)
{
    be_weight_t  *w;

    if (t->data == NULL || t->rows == 0 || t->cols == 0 || t->parts == 0
        || t->rows % t->parts != 0
        || (be_quant_panels(t->dtype) && (uintptr_t) t->data % 64 != 0))
    {
        snprintf(err, ERR_LEN, "a matrix of %u x %u in %u parts is not "
                 "possible, or not aligned", t->rows, t->cols, t->parts);
        return NULL;
    }

    w = weight_new(t, t->rows, t->cols, t->parts, t->dtype, err);

    if (w != NULL) {
        w->data = t->data;
    }

    return w;
}


/* Converts, and transposes each part if `turn`. */

static be_weight_t *
weight_make(be_cpu_t *cpu, const be_tensor_t *t, uint32_t parts, int turn,
    be_dtype_t dtype, size_t *copies, char *err)
{
    size_t         size;
    be_item_f      item;
    uint32_t       i, take, items;
    be_weight_t   *w;
    weight_job_t   job;

    take = (t->take != 0) ? t->take : t->rows / parts;

    w = weight_new(t, (turn ? t->cols : take) * parts, turn ? take : t->cols,
                   parts, dtype, err);
    if (w == NULL) {
        return NULL;
    }

    size = be_quant_panels(dtype)
           ? be_quant_size(dtype, w->rows, w->cols, parts)
           : (size_t) w->rows * w->ld;

    w->own = be_region_alloc(&cpu->region, size, &w->region);

    if (w->own == NULL) {
        snprintf(err, ERR_LEN, "out of memory: %zu bytes for a converted "
                 "matrix of %u x %u", size, w->rows, w->cols);
        free(w);
        return NULL;
    }

    w->data = w->own;

    job.t = *t;
    job.stride = t->rows / parts;
    job.take = take;
    job.turn = turn;
    job.w = w;
    job.out = w->own;
    job.bad = 0;

    for (i = 0; i < 256; i++) {
        job.table[i] = be_from_e4m3((uint8_t) i);
    }

    if (be_quant_panels(dtype)) {
        item = (dtype == BE_PAIRS) ? weight_pairs_item : weight_panel_item;
        items = w->part_panels * parts;

    } else if (turn) {
        item = weight_t_item;
        items = (take * parts + WEIGHT_T_TILE - 1) / WEIGHT_T_TILE;

    } else {
        item = weight_row_item;
        items = (take * parts + WEIGHT_ROWS_ITEM - 1) / WEIGHT_ROWS_ITEM;
    }

    be_team_run(cpu->team, item, &job, items, (uint64_t) w->rows * w->cols);

    if (job.bad) {
        snprintf(err, ERR_LEN, "a weight is not a number or beyond %g, which "
                 "a quantised matrix cannot hold", BE_QUANT_MAX);
        be_cpu_weight_free(&cpu->be, w);
        return NULL;
    }

    if (copies != NULL) {
        *copies += size;
    }

    return w;
}


static void
weight_row_item(void *ctx, uint32_t item, uint32_t worker)
{
    float          x[WEIGHT_SCALE_BLOCK];
    size_t         at;
    uint32_t       row, end, col, i, n, cols;
    weight_job_t  *job;

    (void) worker;

    job = ctx;
    cols = job->t.cols;
    row = item * WEIGHT_ROWS_ITEM;
    end = (job->w->rows - row < WEIGHT_ROWS_ITEM) ? job->w->rows
                                                  : row + WEIGHT_ROWS_ITEM;

    for ( /* void */ ; row < end; row++) {
        at = (size_t) row * cols;

        for (col = 0; col < cols; col += n) {
            n = (cols - col < WEIGHT_SCALE_BLOCK) ? cols - col
                                                  : WEIGHT_SCALE_BLOCK;

            weight_run(job, weight_source(job, row / job->take,
                                          row % job->take), col, n, x);

            for (i = 0; i < n; i++) {
                weight_put(job, at + col + i, x[i]);
            }
        }
    }
}


/* A band of rows of the source, in tiles that stay in the cache. */

static void
weight_t_item(void *ctx, uint32_t item, uint32_t worker)
{
    float          x[WEIGHT_T_TILE];
    size_t         base;
    uint32_t       row, first, end, rows, left, n, i, part, in;
    weight_job_t  *job;

    (void) worker;

    job = ctx;
    rows = job->w->cols * (job->w->rows / job->t.cols);
    first = item * WEIGHT_T_TILE;
    end = (rows - first < WEIGHT_T_TILE) ? rows : first + WEIGHT_T_TILE;

    for (left = 0; left < job->t.cols; left += n) {
        n = (job->t.cols - left < WEIGHT_T_TILE) ? job->t.cols - left
                                                 : WEIGHT_T_TILE;

        for (row = first; row < end; row++) {
            part = row / job->take;
            in = row % job->take;
            base = (size_t) part * job->t.cols;

            weight_run(job, weight_source(job, part, in), left, n, x);

            for (i = 0; i < n; i++) {
                weight_put(job, (base + left + i) * job->take + in, x[i]);
            }
        }
    }
}


/* [pair of elements][output][2], to the end of the last chunk. */

static void
weight_pairs_item(void *ctx, uint32_t item, uint32_t worker)
{
    float          x[BE_CHUNK];
    uint8_t       *to;
    uint16_t       h;
    uint32_t       k, i, j, n, m, part, out;
    be_weight_t   *w;
    weight_job_t  *job;

    (void) worker;

    job = ctx;
    w = job->w;
    part = item / w->part_panels;
    out = item % w->part_panels * BE_PANEL;
    m = (w->part_rows - out < BE_PANEL) ? w->part_rows - out : BE_PANEL;
    to = job->out + (size_t) item * w->ld;

    memset(to, 0, w->ld);

    if (!job->turn) {

        for (i = 0; i < m; i++) {
            for (k = 0; k < w->cols; k += n) {
                n = (w->cols - k < BE_CHUNK) ? w->cols - k : BE_CHUNK;
                weight_run(job, weight_source(job, part, out + i), k, n, x);

                for (j = 0; j < n; j++) {
                    h = be_to_bf16(x[j]);
                    memcpy(to + weight_pair(k + j, i), &h, 2);
                }
            }
        }

        return;
    }

    for (k = 0; k < w->cols; k++) {
        weight_run(job, weight_source(job, part, k), out, m, x);

        for (i = 0; i < m; i++) {
            h = be_to_bf16(x[i]);
            memcpy(to + weight_pair(k, i), &h, 2);
        }
    }
}


/* Where element k of output i of a panel in pairs is, in bytes. */

static inline size_t
weight_pair(uint32_t k, uint32_t i)
{
    return ((size_t) (k / 2) * BE_PANEL + i) * 4 + k % 2 * 2;
}


static void
weight_panel_item(void *ctx, uint32_t item, uint32_t worker)
{
    float          x[BE_PANEL * BE_CHUNK], scale[BE_PANEL];
    uint8_t       *to, code[BE_PANEL * BE_CHUNK];
    uint32_t       k, part, out, i;
    be_weight_t   *w;
    weight_job_t  *job;

    (void) worker;

    job = ctx;
    w = job->w;
    part = item / w->part_panels;
    out = item % w->part_panels * BE_PANEL;
    to = job->out + (size_t) item * w->ld;

    for (k = 0; k < w->cols; k += BE_CHUNK) {

        if (w->dtype == BE_F8E4M3 && job->t.dtype == BE_F8E4M3
            && weight_gather_f8(job, part, out, k, code, scale) == 0)
        {
            for (i = 0; i < BE_PANEL * BE_CHUNK; i++) {
                if ((code[i] & 0x7f) == 0x7f
                    || !(fabsf(scale[i / BE_CHUNK]) <= BE_QUANT_MAX))
                {
                    __atomic_store_n(&job->bad, 1, __ATOMIC_RELAXED);
                }
            }

            be_quant_encode_f8(code, scale, to);

        } else {
            weight_gather(job, part, out, k, x);
            be_quant_encode(w->dtype, x, to);
        }

        to += be_quant_chunk(w->dtype);
    }
}


/* A chunk's elements, [BE_PANEL][BE_CHUNK], zero where there are none. */

static void
weight_gather(weight_job_t *job, uint32_t part, uint32_t out, uint32_t k,
    float *x)
{
    float         one[BE_PANEL];
    uint32_t      i, j, n, m;
    be_weight_t  *w;

    w = job->w;
    m = (w->part_rows - out < BE_PANEL) ? w->part_rows - out : BE_PANEL;
    n = (w->cols - k < BE_CHUNK) ? w->cols - k : BE_CHUNK;

    memset(x, 0, BE_PANEL * BE_CHUNK * sizeof(float));

    if (!job->turn) {
        for (i = 0; i < m; i++) {
            weight_run(job, weight_source(job, part, out + i), k, n,
                       x + i * BE_CHUNK);
        }

    } else {
        for (j = 0; j < n; j++) {
            weight_run(job, weight_source(job, part, k + j), out, m, one);

            for (i = 0; i < m; i++) {
                x[i * BE_CHUNK + j] = one[i];
            }
        }
    }

    for (i = 0; i < BE_PANEL * BE_CHUNK; i++) {
        if (!(fabsf(x[i]) <= BE_QUANT_MAX)) {
            __atomic_store_n(&job->bad, 1, __ATOMIC_RELAXED);
            x[i] = 0.0f;
        }
    }
}


/*
 * Codes and scales of an FP8 chunk as they are; -1 if an output of it has
 * elements of two blocks.
 */

static int
weight_gather_f8(const weight_job_t *job, uint32_t part, uint32_t out,
    uint32_t k, uint8_t *code, float *scale)
{
    uint32_t            i, j, n, m, row, col;
    const uint8_t      *data;
    const be_weight_t  *w;

    w = job->w;
    data = job->t.data;
    m = (w->part_rows - out < BE_PANEL) ? w->part_rows - out : BE_PANEL;
    n = (w->cols - k < BE_CHUNK) ? w->cols - k : BE_CHUNK;

    if (job->turn
        && weight_source(job, part, k) / WEIGHT_SCALE_BLOCK
           != weight_source(job, part, k + n - 1) / WEIGHT_SCALE_BLOCK)
    {
        return -1;
    }

    memset(code, 0, BE_PANEL * BE_CHUNK);
    memset(scale, 0, BE_PANEL * sizeof(float));

    for (i = 0; i < m; i++) {
        for (j = 0; j < n; j++) {
            row = weight_source(job, part, job->turn ? k + j : out + i);
            col = job->turn ? out + i : k + j;

            code[i * BE_CHUNK + j] = data[(size_t) row * job->t.cols + col];
            scale[i] = weight_scale(job, row, col);
        }
    }

    return 0;
}


static inline uint32_t
weight_source(const weight_job_t *job, uint32_t part, uint32_t row)
{
    return part * job->stride + job->t.from + row;
}


/* n elements of a row of the source. */

static void
weight_run(const weight_job_t *job, uint32_t row, uint32_t col, uint32_t n,
    float *x)
{
    size_t          at;
    uint32_t        i;
    const uint8_t  *p;

    p = job->t.data;
    at = (size_t) row * job->t.cols + col;

    switch (job->t.dtype) {

    case BE_F32:
        memcpy(x, p + at * 4, n * sizeof(float));
        break;

    case BE_BF16:
        for (i = 0; i < n; i++) {
            x[i] = be_load_bf16(p + (at + i) * 2);
        }

        break;

    default: /* BE_F8E4M3 */
        for (i = 0; i < n; i++) {
            x[i] = job->table[p[at + i]] * weight_scale(job, row, col + i);
        }
    }
}


static inline float
weight_scale(const weight_job_t *job, uint32_t row, uint32_t col)
{
    size_t  block;

    block = (size_t) (row / WEIGHT_SCALE_BLOCK) * job->t.scale_cols
            + col / WEIGHT_SCALE_BLOCK;

    return be_load_f32((const uint8_t *) job->t.scale + block * 4);
}


static inline void
weight_put(const weight_job_t *job, size_t at, float x)
{
    uint16_t  h;

    if (job->w->dtype == BE_F32) {
        memcpy(job->out + at * 4, &x, 4);
        return;
    }

    h = be_to_bf16(x);
    memcpy(job->out + at * 2, &h, 2);
}
