/*
 * Matrices in the device's memory: BF16; FP8 as the checkpoint has it; routed
 * experts in INT4, in the panels of be_quant.h, if that is what is wanted.  Of
 * a converted checkpoint all that is not such an expert becomes BF16 again.
 *
 * A row begins at a multiple of 128 bytes.  Rows are made in pinned buffers
 * that take turns (be_cuda_stage.c); when weight() returns all is there.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/be_quant.h"
#include "backend/cuda/be_cuda_slab.h"
#include "backend/cuda/be_cuda_weight_int.h"


static be_weight_t *weight_new(be_cuda_t *cuda, cu_mm_type_t type,
    uint32_t rows, uint32_t cols, uint32_t parts, uint32_t ld, size_t size,
    size_t scales, size_t *copies, char *err);
static int weight_check(const be_tensor_t *t, uint32_t parts, char *err);
static be_weight_t *weight_f8(be_cuda_t *cuda, const be_tensor_t *t,
    size_t *copies, char *err);
static be_weight_t *weight_int4(be_cuda_t *cuda, const be_tensor_t *t,
    size_t *copies, char *err);
static int weight_panel_int4(const be_tensor_t *t, uint32_t panel,
    float *rows, uint8_t *to);
static be_weight_t *weight_decoded(be_cuda_t *cuda, const be_tensor_t *t,
    uint32_t parts, size_t *copies, char *err);
static be_weight_t *weight_done(be_cuda_t *cuda, be_weight_t *w,
    cuda_stage_t *s, char *err);
static double weight_now(void);


be_weight_t *
be_cuda_weight(be_t *be, const be_tensor_t *t, size_t *copies, char *err)
{
    uint16_t        *to;
    uint32_t         i, ld, parts, stride, take;
    be_cuda_t       *cuda;
    be_weight_t     *w;
    cuda_stage_t     s;

    cuda = (be_cuda_t *) be;
    parts = (t->parts != 0) ? t->parts : 1;

    if (weight_check(t, parts, err) != 0) {
        return NULL;
    }

    stride = t->rows / parts;
    take = (t->take != 0) ? t->take : stride;

    if (t->expert && cuda->opt.weights == BE_INT4
        && (!t->made || t->dtype == BE_INT4))
    {
        return weight_int4(cuda, t, copies, err);
    }

    if (t->made && be_quant_panels(t->dtype)) {
        return weight_decoded(cuda, t, parts, copies, err);
    }

    if (t->dtype == BE_F8E4M3 && cuda->opt.weights != BE_BF16 && parts == 1
        && take == stride)
    {
        return weight_f8(cuda, t, copies, err);
    }

    if (cuda->opt.weights == BE_F8E4M3 || cuda->opt.weights == BE_INT8) {
        snprintf(err, ERR_LEN, "the cuda backend makes no weights in fp8 or "
                 "int8 of its own, only routed experts in int4");
        return NULL;
    }

    ld = (t->cols + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
    w = weight_new(cuda, CU_MM_BF16, take * parts, t->cols, parts, ld,
                   (size_t) take * parts * ld * sizeof(uint16_t), 0, copies,
                   err);
    if (w == NULL) {
        return NULL;
    }

    be_cuda_stage(&s, cuda, w->data);

    for (i = 0; i < take * parts; i++) {
        to = be_cuda_stage_room(&s, w->m.ld * sizeof(uint16_t));

        if (to == NULL) {
            break;
        }

        be_cuda_row_bf16(t, i / take * stride + t->from + i % take, to);
        memset(to + t->cols, 0, (w->m.ld - t->cols) * sizeof(uint16_t));
    }

    return weight_done(cuda, w, &s, err);
}


/* Each part transposed: [cols][take] of it, one after another. */

be_weight_t *
be_cuda_weight_t(be_t *be, const be_tensor_t *t, uint32_t parts,
    size_t *copies, char *err)
{
    uint16_t        *row, *part;
    uint32_t         i, j, p, stride, take, ld;
    be_cuda_t       *cuda;
    be_weight_t     *w;
    cuda_stage_t     s;

    cuda = (be_cuda_t *) be;

    if (weight_check(t, parts, err) != 0) {
        return NULL;
    }

    stride = t->rows / parts;
    take = (t->take != 0) ? t->take : stride;
    ld = (take + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;

    row = malloc((size_t) t->cols * sizeof(uint16_t));
    part = calloc((size_t) t->cols * ld, sizeof(uint16_t));
    w = NULL;

    if (row == NULL || part == NULL) {
        snprintf(err, ERR_LEN, "no memory to transpose a matrix");
        goto done;
    }

    w = weight_new(cuda, CU_MM_BF16, t->cols * parts, take, parts, ld,
                   (size_t) t->cols * parts * ld * sizeof(uint16_t), 0,
                   copies, err);
    if (w == NULL) {
        goto done;
    }

    be_cuda_stage(&s, cuda, w->data);

    for (p = 0; p < parts; p++) {

        for (i = 0; i < take; i++) {
            be_cuda_row_bf16(t, p * stride + t->from + i, row);

            for (j = 0; j < t->cols; j++) {
                part[(size_t) j * ld + i] = row[j];
            }
        }

        be_cuda_stage_put(&s, part, (size_t) t->cols * ld * sizeof(uint16_t));
    }

    w = weight_done(cuda, w, &s, err);

done:

    free(row);
    free(part);

    return w;
}


/* Rows without gaps, BF16 or float32. */

be_weight_t *
be_cuda_table(be_t *be, const be_tensor_t *t, size_t *copies, char *err)
{
    uint16_t        *to;
    uint32_t         i;
    be_cuda_t       *cuda;
    be_weight_t     *w;
    cuda_stage_t     s;

    cuda = (be_cuda_t *) be;

    if (weight_check(t, 1, err) != 0) {
        return NULL;
    }

    w = weight_new(cuda, CU_MM_BF16, t->rows, t->cols, 1, t->cols,
                   (size_t) t->rows * t->cols
                   * (t->dtype == BE_F32 ? 4 : 2), 0, copies, err);
    if (w == NULL) {
        return NULL;
    }

    w->wide = (t->dtype == BE_F32);
    be_cuda_stage(&s, cuda, w->data);

    if (t->dtype != BE_F8E4M3) {
        be_cuda_stage_put(&s, t->data, (size_t) t->rows * t->cols
                                  * (w->wide ? 4 : 2));
        return weight_done(cuda, w, &s, err);
    }

    for (i = 0; i < t->rows; i++) {
        to = be_cuda_stage_room(&s, t->cols * sizeof(uint16_t));

        if (to == NULL) {
            break;
        }

        be_cuda_row_bf16(t, i, to);
    }

    return weight_done(cuda, w, &s, err);
}


static be_weight_t *
weight_f8(be_cuda_t *cuda, const be_tensor_t *t, size_t *copies, char *err)
{
    uint8_t         *to;
    size_t           scales;
    uint32_t         i, ld;
    be_weight_t     *w;
    cuda_stage_t     s;

    scales = (size_t) ((t->rows + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK)
             * t->scale_cols;

    ld = (t->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK * WEIGHT_BLOCK;
    w = weight_new(cuda, CU_MM_FP8, t->rows, t->cols, 1, ld,
                   (size_t) t->rows * ld, scales, copies, err);
    if (w == NULL) {
        return NULL;
    }

    w->m.ld_scale = t->scale_cols;
    cuda->fp8 = 1;

    be_cuda_stage(&s, cuda, w->scale);
    be_cuda_stage_put(&s, t->scale, scales * sizeof(float));
    be_cuda_stage_flush(&s);
    s.to = w->data;

    for (i = 0; i < t->rows; i++) {
        to = be_cuda_stage_room(&s, w->m.ld);

        if (to == NULL) {
            break;
        }

        memcpy(to, (const uint8_t *) t->data + (size_t) i * t->cols, t->cols);
        memset(to + t->cols, 0, w->m.ld - t->cols);
    }

    return weight_done(cuda, w, &s, err);
}


/*
 * Panels as they are, or made here, which takes its time: a checkpoint that
 * was converted is only copied.
 */

static be_weight_t *
weight_int4(be_cuda_t *cuda, const be_tensor_t *t, size_t *copies, char *err)
{
    float           *rows;
    size_t           panel;
    uint8_t         *to;
    uint32_t         i, panels;
    be_weight_t     *w;
    cuda_stage_t     s;

    panel = be_quant_panel(BE_INT4, t->cols);
    panels = be_quant_part_panels(t->rows);
    rows = malloc(((size_t) t->cols + BE_CHUNK) * BE_PANEL * sizeof(float));

    if (rows == NULL || panel > CUDA_STAGE) {
        snprintf(err, ERR_LEN, "no memory for a panel of %u columns",
                 t->cols);
        free(rows);
        return NULL;
    }

    w = weight_new(cuda, CU_MM_INT4, t->rows, t->cols, 1, 0,
                   (size_t) panels * panel, 0, copies, err);
    if (w == NULL) {
        free(rows);
        return NULL;
    }

    be_cuda_stage(&s, cuda, w->data);

    if (t->made) {
        be_cuda_stage_put(&s, t->data, (size_t) panels * panel);

    } else {
        for (i = 0; i < panels; i++) {
            to = be_cuda_stage_room(&s, panel);

            if (to == NULL) {
                break;
            }

            if (weight_panel_int4(t, i, rows, to) != 0) {
                snprintf(err, ERR_LEN, "a weight is not a number or beyond "
                         "%g, which a quantised matrix cannot hold",
                         BE_QUANT_MAX);
                (void) cudaStreamSynchronize(cuda->load);
                be_cuda_weight_free(&cuda->be, w);
                free(rows);
                return NULL;
            }
        }
    }

    free(rows);

    return weight_done(cuda, w, &s, err);
}


/* Outputs and elements past the end are zero. */

static int
weight_panel_int4(const be_tensor_t *t, uint32_t panel, float *rows,
    uint8_t *to)
{
    float     x[BE_PANEL * BE_CHUNK];
    uint32_t  i, k, n, row;

    memset(rows, 0, (size_t) t->cols * BE_PANEL * sizeof(float));

    for (i = 0; i < BE_PANEL; i++) {
        row = panel * BE_PANEL + i;

        if (row < t->rows) {
            be_cuda_row_f32(t, row, rows + (size_t) i * t->cols);
        }
    }

    for (i = 0; i < t->cols * BE_PANEL; i++) {
        if (!(rows[i] >= -BE_QUANT_MAX && rows[i] <= BE_QUANT_MAX)) {
            return -1;
        }
    }

    for (k = 0; k < t->cols; k += BE_CHUNK) {
        n = (t->cols - k < BE_CHUNK) ? t->cols - k : BE_CHUNK;
        memset(x, 0, sizeof(x));

        for (i = 0; i < BE_PANEL; i++) {
            memcpy(x + i * BE_CHUNK, rows + (size_t) i * t->cols + k,
                   n * sizeof(float));
        }

        be_quant_encode(BE_INT4, x, to);
        to += be_quant_chunk(BE_INT4);
    }

    return 0;
}


/* Rows in BF16 of a matrix in panels. */

static be_weight_t *
weight_decoded(be_cuda_t *cuda, const be_tensor_t *t, uint32_t parts,
    size_t *copies, char *err)
{
    float            x[BE_PANEL * BE_CHUNK];
    size_t           chunk;
    uint16_t        *to;
    uint32_t         i, j, k, n, p, rows, ld;
    be_weight_t     *w;
    const uint8_t   *from;
    cuda_stage_t     s;

    ld = (t->cols + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
    rows = t->rows / parts;
    chunk = be_quant_chunk(t->dtype);
    from = t->data;

    if ((size_t) ld * BE_PANEL * sizeof(uint16_t) > CUDA_STAGE) {
        snprintf(err, ERR_LEN, "a matrix of %u columns is too large",
                 t->cols);
        return NULL;
    }

    w = weight_new(cuda, CU_MM_BF16, t->rows, t->cols, parts, ld,
                   (size_t) t->rows * ld * sizeof(uint16_t), 0, copies, err);
    if (w == NULL) {
        return NULL;
    }

    be_cuda_stage(&s, cuda, w->data);

    for (p = 0; p < be_quant_part_panels(rows) * parts; p++) {
        n = rows - p % be_quant_part_panels(rows) * BE_PANEL;
        n = (n < BE_PANEL) ? n : BE_PANEL;
        to = be_cuda_stage_room(&s, (size_t) n * ld * sizeof(uint16_t));

        if (to == NULL) {
            break;
        }

        memset(to, 0, (size_t) n * ld * sizeof(uint16_t));

        for (k = 0; k < t->cols; k += BE_CHUNK, from += chunk) {
            be_quant_decode(t->dtype, from, x);

            for (i = 0; i < n; i++) {
                for (j = 0; j < BE_CHUNK && k + j < t->cols; j++) {
                    to[(size_t) i * ld + k + j]
                        = be_cuda_bf16(x[j * BE_PANEL + i]);
                }
            }
        }
    }

    return weight_done(cuda, w, &s, err);
}


void
be_cuda_weight_free(be_t *be, be_weight_t *w)
{
    if (w == NULL) {
        return;
    }

    (void) cudaSetDevice(((be_cuda_t *) be)->device);
    be_cuda_slab_put(((be_cuda_t *) be)->device, w->data);
    (void) cudaFree(w->scale);
    free(w);
}


/* What is on a device is not saved: no bytes. */

void
be_cuda_weight_tensor(const be_weight_t *w, be_tensor_t *t)
{
    memset(t, 0, sizeof(be_tensor_t));

    t->rows = w->m.n;
    t->cols = w->m.k;
    t->parts = w->parts;
    t->dtype = (w->m.type == CU_MM_FP8) ? BE_F8E4M3
             : w->wide ? BE_F32 : BE_BF16;
}


void
be_cuda_loaded(be_t *be, uint64_t *bytes, double *seconds)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    *bytes = cuda->load_bytes;
    *seconds = cuda->load_end - cuda->load_begin;
}


static double
weight_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}


void
be_cuda_weight_close(be_cuda_t *cuda)
{
    uint32_t  i;

    for (i = 0; i < CUDA_STAGES; i++) {
        (void) cudaFreeHost(cuda->stage[i]);

        if (cuda->staged[i] != NULL) {
            (void) cudaEventDestroy(cuda->staged[i]);
        }
    }
}


static int
weight_check(const be_tensor_t *t, uint32_t parts, char *err)
{
    if (t->data == NULL || t->rows == 0 || t->cols == 0) {
        snprintf(err, ERR_LEN, "a matrix of %u x %u is not possible",
                 t->rows, t->cols);
        return -1;
    }

    if (t->dtype != BE_F32 && t->dtype != BE_BF16 && t->dtype != BE_F8E4M3
        && !t->made)
    {
        snprintf(err, ERR_LEN, "a matrix of type %d is not possible",
                 (int) t->dtype);
        return -1;
    }

    if (t->dtype == BE_F8E4M3 && !t->made
        && (t->scale == NULL
            || t->scale_cols != (t->cols + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK))
    {
        snprintf(err, ERR_LEN, "an FP8 matrix of %u x %u without a scale for "
                 "each block of 128 x 128", t->rows, t->cols);
        return -1;
    }

    if (parts == 0 || t->rows % parts != 0
        || (uint64_t) t->from + t->take > t->rows / parts)
    {
        snprintf(err, ERR_LEN, "a matrix of %u rows has no %u equal parts "
                 "with rows %u to %u", t->rows, parts, t->from,
                 t->from + t->take);
        return -1;
    }

    if ((uint64_t) t->cols * parts > UINT32_MAX
        || t->cols > CUDA_STAGE / sizeof(float))
    {
        snprintf(err, ERR_LEN, "a matrix of %u columns in %u parts is too "
                 "large", t->cols, parts);
        return -1;
    }

    return 0;
}


static be_weight_t *
weight_new(be_cuda_t *cuda, cu_mm_type_t type, uint32_t rows, uint32_t cols,
    uint32_t parts, uint32_t ld, size_t size, size_t scales, size_t *copies,
    char *err)
{
    int           rc;
    size_t        at;
    be_weight_t  *w;

    if (be_cuda_stages(cuda, err) != 0) {
        return NULL;
    }

    w = calloc(1, sizeof(be_weight_t));
    if (w == NULL) {
        snprintf(err, ERR_LEN, "no memory for a matrix of %u x %u", rows,
                 cols);
        return NULL;
    }

    if (cuda->load_bytes == 0) {
        cuda->load_begin = weight_now();
    }

    /* its description for kernels behind it */

    w->size = size;
    at = (size + 255) / 256 * 256;
    rc = be_cuda_slab_get(cuda->device, at + sizeof(cu_matrix_t), &w->data);

    if (rc == 0 && scales > 0) {
        rc = cudaMalloc(&w->scale, scales * sizeof(float));
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "CUDA device %d: no memory for a matrix of %u "
                 "x %u, %zu bytes: %s", cuda->device, rows, cols, w->size,
                 cudaGetErrorString((cudaError_t) rc));
        (void) cudaGetLastError();
        be_cuda_weight_free(&cuda->be, w);
        return NULL;
    }

    w->dev = (cu_matrix_t *) (void *) ((uint8_t *) w->data + at);
    w->m.w = w->data;
    w->m.scale = w->scale;
    w->m.n = rows;
    w->m.k = cols;
    w->m.ld = ld;
    w->m.type = type;
    w->parts = parts;

    if (copies != NULL) {
        *copies += w->size + scales * sizeof(float);
    }

    return w;
}


static be_weight_t *
weight_done(be_cuda_t *cuda, be_weight_t *w, cuda_stage_t *s, char *err)
{
    be_cuda_stage_flush(s);

    if (s->rc == 0) {
        s->rc = cudaMemcpyAsync(w->dev, &w->m, sizeof(cu_matrix_t),
                                cudaMemcpyHostToDevice, cuda->load);
    }

    if (s->rc == 0) {
        s->rc = cudaStreamSynchronize(cuda->load);
    }

    if (s->rc == 0) {
        cuda->load_bytes += w->size;
        cuda->load_end = weight_now();
        return w;
    }

    snprintf(err, ERR_LEN, "CUDA device %d: copy of a matrix: %s",
             cuda->device, cudaGetErrorString((cudaError_t) s->rc));
    be_cuda_weight_free(&cuda->be, w);

    return NULL;
}
