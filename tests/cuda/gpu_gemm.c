/*
 * Grouped products beside float64: every type and tile, odd sizes, groups
 * without rows, rows that are not there; and that a row's bits depend on
 * nothing but the row.  The kernel for any shape has to give as much.
 */

#include "backend/be_quant.h"
#include "backend/cuda/cu_gemm.h"
#include "bf16.h"
#include "test_cuda_util.h"
#include "gpu_main.h"


#define SPARE  7                     /* rows behind the last one */

/* Types of matrices, and INT4 with rows in FP8. */
#define KINDS      4
#define KIND_W4A8  3

/*
 * Of the sum of magnitudes: products in FP8 are summed in about 14 bits, cut
 * off, in a way that is not documented.
 */
#define LOOSE_FP8  3e-3

#define SIMPLE     1                 /* as a tile: the kernel for any shape */

typedef struct {
    cu_mm_type_t  type;
    int           fp8;               /* rows are */
    uint32_t      groups;
    uint32_t      n;
    uint32_t      k;
    uint32_t      ld;                /* of x */
    uint32_t      rows;
    uint32_t     *offset;

    /* what the device computes with, as float64 */
    double       *x;                 /* [rows][k] */
    double       *w;                 /* [groups][n][k] */

    uint8_t      *raw_x;
    float        *scale_x;
    size_t        size_x;

    void         *dev_x, *dev_scale_x, *dev_offset, *dev_m, *dev_maps;
    void        **dev_w, **dev_scale;
    cu_gemm_t     p;
} work_t;


static void *
get(size_t size)
{
    void  *p;

    p = calloc(1, size);
    assert_non_null(p);
    return p;
}


static void
make_rows(work_t *t)
{
    float     s, v[128], top;
    size_t    at;
    uint8_t   q;
    uint32_t  r, c, i, blocks, ld_scale;
    uint16_t  h;

    ld_scale = (t->rows + SPARE + 3) / 4 * 4;
    blocks = (t->k + 127) / 128;
    t->x = get((size_t) t->rows * t->k * sizeof(double));

    if (!t->fp8) {
        t->ld = (t->k + 63) / 64 * 64;
        t->size_x = (size_t) (t->rows + SPARE) * t->ld * 2;
        t->raw_x = get(t->size_x);
        memset(t->raw_x, 0xff, t->size_x);

        for (r = 0; r < t->rows; r++) {
            for (c = 0; c < t->ld; c++) {
                h = (c < t->k) ? to_bf16(cu_normal()) : 0;
                memcpy(t->raw_x + ((size_t) r * t->ld + c) * 2, &h, 2);

                if (c < t->k) {
                    t->x[(size_t) r * t->k + c] = from_bf16(h);
                }
            }
        }

    } else {
        t->ld = blocks * 128;
        t->size_x = (size_t) (t->rows + SPARE) * t->ld;
        t->raw_x = get(t->size_x);
        memset(t->raw_x, 0xff, t->size_x);
        t->scale_x = get((size_t) blocks * ld_scale * sizeof(float));
        memset(t->scale_x, 0xff, (size_t) blocks * ld_scale * sizeof(float));

        for (r = 0; r < t->rows; r++) {
            for (c = 0; c < t->ld; c += 128) {
                top = 0;

                for (i = 0; i < 128; i++) {
                    v[i] = (c + i < t->k) ? cu_normal() : 0;
                    top = (fabsf(v[i]) > top) ? fabsf(v[i]) : top;
                }

                s = top / 448.0f;
                t->scale_x[(size_t) (c / 128) * ld_scale + r] = s;

                for (i = 0; i < 128; i++) {
                    q = be_to_e4m3(v[i] / s);
                    at = (size_t) r * t->ld + c + i;
                    t->raw_x[at] = q;

                    if (c + i < t->k) {
                        t->x[(size_t) r * t->k + c + i] =
                            (double) be_from_e4m3(q) * s;
                    }
                }
            }
        }

        t->dev_scale_x = cu_put(t->scale_x,
                                (size_t) blocks * ld_scale * sizeof(float));
    }

    t->dev_x = cu_put(t->raw_x, t->size_x);

    t->p.g.x.x = t->dev_x;
    t->p.g.x.scale = t->dev_scale_x;
    t->p.g.x.ld = t->ld;
    t->p.g.x.ld_scale = ld_scale;
}


/* One matrix; `m` as the device is told about it. */

static void
make_matrix(work_t *t, uint32_t g, cu_matrix_t *m)
{
    float      x[BE_PANEL * BE_CHUNK], y[BE_PANEL * BE_CHUNK], s;
    double    *w;
    size_t     size;
    uint8_t   *raw, q;
    uint32_t   i, j, r, c, panels, chunks, ld;
    uint16_t   h;
    float     *scale;

    w = t->w + (size_t) g * t->n * t->k;
    chunks = (t->k + 127) / 128;
    memset(m, 0, sizeof(cu_matrix_t));
    m->n = t->n;
    m->k = t->k;
    m->type = t->type;

    if (t->type == CU_MM_INT4) {
        panels = (t->n + 15) / 16;
        size = (size_t) panels * be_quant_panel(BE_INT4, t->k);
        raw = get(size);

        for (i = 0; i < panels; i++) {
            for (j = 0; j < chunks; j++) {
                for (r = 0; r < BE_PANEL; r++) {
                    for (c = 0; c < BE_CHUNK; c++) {
                        x[r * BE_CHUNK + c] =
                            (i * 16 + r < t->n && j * 128 + c < t->k)
                            ? cu_normal() : 0;
                    }
                }

                be_quant_encode(BE_INT4, x, raw + (size_t) i
                                * be_quant_panel(BE_INT4, t->k)
                                + j * be_quant_chunk(BE_INT4));
                be_quant_decode(BE_INT4, raw + (size_t) i
                                * be_quant_panel(BE_INT4, t->k)
                                + j * be_quant_chunk(BE_INT4), y);

                for (r = 0; r < BE_PANEL && i * 16 + r < t->n; r++) {
                    for (c = 0; c < BE_CHUNK && j * 128 + c < t->k; c++) {
                        w[(size_t) (i * 16 + r) * t->k + j * 128 + c] =
                            t->fp8 ? y[c * BE_PANEL + r]
                                   : from_bf16(to_bf16(y[c * BE_PANEL + r]));
                    }
                }
            }
        }

    } else if (t->type == CU_MM_FP8) {
        ld = (t->k + 15) / 16 * 16;
        size = (size_t) t->n * ld;
        raw = get(size);
        scale = get((size_t) ((t->n + 127) / 128) * chunks * sizeof(float));

        for (i = 0; i < (t->n + 127) / 128 * chunks; i++) {
            scale[i] = 0.001f * (float) (1 + cu_random(1000));
        }

        for (r = 0; r < t->n; r++) {
            for (c = 0; c < t->k; c++) {
                q = be_to_e4m3(cu_normal() * 60);
                s = scale[r / 128 * chunks + c / 128];
                raw[(size_t) r * ld + c] = q;
                w[(size_t) r * t->k + c] = (double) be_from_e4m3(q) * s;
            }
        }

        t->dev_scale[g] = cu_put(scale, (size_t) ((t->n + 127) / 128)
                                        * chunks * sizeof(float));
        free(scale);
        m->scale = t->dev_scale[g];
        m->ld = ld;
        m->ld_scale = chunks;

    } else {
        ld = (t->k + 7) / 8 * 8;
        size = (size_t) t->n * ld * 2;
        raw = get(size);

        for (r = 0; r < t->n; r++) {
            for (c = 0; c < t->k; c++) {
                h = to_bf16(cu_normal());
                memcpy(raw + ((size_t) r * ld + c) * 2, &h, 2);
                w[(size_t) r * t->k + c] = from_bf16(h);
            }
        }

        m->ld = ld;
    }

    t->dev_w[g] = cu_put(raw, size);
    m->w = t->dev_w[g];
    free(raw);
}


static void
make(work_t *t, uint32_t kind, uint32_t groups, const uint32_t *count,
    uint32_t n, uint32_t k)
{
    uint32_t      g;
    CUtensorMap  *maps;
    cu_matrix_t  *m;
    cu_mm_type_t  type;

    memset(t, 0, sizeof(work_t));
    type = (kind == KIND_W4A8) ? CU_MM_INT4 : (cu_mm_type_t) kind;
    t->type = type;
    t->fp8 = (kind == CU_MM_FP8 || kind == KIND_W4A8);
    t->groups = groups;
    t->n = n;
    t->k = k;
    t->offset = get((groups + 1) * sizeof(uint32_t));

    for (g = 0; g < groups; g++) {
        t->offset[g + 1] = t->offset[g] + count[g];
    }

    t->rows = t->offset[groups];
    t->w = get((size_t) groups * n * k * sizeof(double));
    t->dev_w = get(groups * sizeof(void *));
    t->dev_scale = get(groups * sizeof(void *));
    m = get(groups * sizeof(cu_matrix_t));
    assert_int_equal(posix_memalign((void **) &maps, 128,
                                    groups * sizeof(CUtensorMap)), 0);

    make_rows(t);

    for (g = 0; g < groups; g++) {
        make_matrix(t, g, &m[g]);

        if (type != CU_MM_INT4) {
            CU_OK(cu_gemm_map(&m[g], &maps[g]));
        }
    }

    t->dev_m = cu_put(m, groups * sizeof(cu_matrix_t));
    t->dev_offset = cu_put(t->offset, (groups + 1) * sizeof(uint32_t));

    if (type != CU_MM_INT4) {
        t->dev_maps = cu_put(maps, groups * sizeof(CUtensorMap));
    }

    t->p.g.m = t->dev_m;
    t->p.g.offset = t->dev_offset;
    t->p.g.groups = groups;
    t->p.g.rows = t->rows + SPARE;   /* at most so many */
    t->p.g.n = n;
    t->p.g.k = k;
    t->p.maps = t->dev_maps;
    t->p.type = type;

    free(m);
    free(maps);
}


static void
drop(work_t *t)
{
    uint32_t  g;

    for (g = 0; g < t->groups; g++) {
        CU_OK(cudaFree(t->dev_w[g]));
        CU_OK(cudaFree(t->dev_scale[g]));
    }

    CU_OK(cudaFree(t->dev_x));
    CU_OK(cudaFree(t->dev_scale_x));
    CU_OK(cudaFree(t->dev_m));
    CU_OK(cudaFree(t->dev_maps));
    CU_OK(cudaFree(t->dev_offset));
    free(t->dev_w);
    free(t->dev_scale);
    free(t->offset);
    free(t->x);
    free(t->w);
    free(t->raw_x);
    free(t->scale_x);
}


/* The product of a row and an output, and how large its terms are. */

static double
want(const work_t *t, uint32_t g, uint32_t row, uint32_t col, double *size)
{
    double         sum;
    uint32_t       i;
    const double  *x, *w;

    x = t->x + (size_t) row * t->k;
    w = t->w + ((size_t) g * t->n + col) * t->k;
    sum = 0;
    *size = 0;

    for (i = 0; i < t->k; i++) {
        sum += x[i] * w[i];
        *size += fabs(x[i] * w[i]);
    }

    return sum;
}


/* y through pointers, in a mixed order, or as rows. */

static void
run(work_t *t, uint32_t tile, int pointers, float *out)
{
    void      *y, *py;
    float    **at;
    size_t     size;
    uint32_t   r, all;

    all = t->rows + SPARE;
    size = (size_t) all * t->n * sizeof(float);
    y = cu_put(NULL, size);
    CU_OK(cudaMemset(y, 0xff, size));
    at = get(all * sizeof(float *));
    py = NULL;

    for (r = 0; r < t->rows; r++) {
        at[r] = (float *) y + (size_t) (t->rows - 1 - r) * t->n;
    }

    if (pointers) {
        py = cu_put(at, all * sizeof(float *));
    }

    t->p.g.y = pointers ? NULL : y;
    t->p.g.ldy = pointers ? 0 : t->n;
    t->p.g.py = py;
    t->p.tile = tile;

    CU_OK(tile == SIMPLE ? cu_mm_grouped_simple(&t->p.g, NULL)
                         : cu_gemm_grouped(&t->p, NULL));
    CU_OK(cudaDeviceSynchronize());
    cu_get(out, y, size);

    CU_OK(cudaFree(y));
    CU_OK(cudaFree(py));
    free(at);
}


static void
check(work_t *t, uint32_t tile, int pointers)
{
    float     *out;
    double     w, size, loose;
    uint32_t   g, r, c, at;

    out = get((size_t) (t->rows + SPARE) * t->n * sizeof(float));
    run(t, tile, pointers, out);
    loose = t->fp8 ? LOOSE_FP8 : 1e-5;

    for (g = 0; g < t->groups; g++) {
        for (r = t->offset[g]; r < t->offset[g + 1]; r++) {
            at = pointers ? t->rows - 1 - r : r;

            for (c = 0; c < t->n; c++) {
                w = want(t, g, r, c, &size);

                if (!(fabs(out[(size_t) at * t->n + c] - w)
                      <= size * loose + 1e-6))
                {
                    fail_msg("type %d%s, tile %u, group %u, row %u, output %u "
                             "of %u, k %u: %g, not %g", (int) t->type,
                             t->fp8 ? ", FP8" : "", tile, g, r, c, t->n,
                             t->k, out[(size_t) at * t->n + c], w);
                }
            }
        }
    }

    /* rows that are not there stay untouched */

    for (r = t->rows * t->n; r < (t->rows + SPARE) * t->n; r++) {
        assert_true(isnan(out[r]));
    }

    free(out);
}


static uint32_t
most(const work_t *t)
{
    return (t->type == CU_MM_INT4 && t->fp8) ? 64 : 128;
}


static void
test_tiles(void **state)
{
    work_t              t;
    uint32_t            kind, tile;

    static const uint32_t  count[] = { 3, 0, 1, 17, 0, 9, 0 };

    (void) state;

    for (kind = 0; kind < KINDS; kind++) {
        make(&t, kind, 7, count, 144, 320);

        for (tile = 8; tile <= most(&t); tile *= 2) {
            check(&t, tile, tile % 3 == 2);
        }

        check(&t, SIMPLE, 0);

        drop(&t);
    }
}


static void
test_shapes(void **state)
{
    work_t    t;
    uint32_t  kind, i, j, n, k, groups, count[9];

    (void) state;

    for (kind = 0; kind < KINDS; kind++) {
        for (i = 0; i < 6; i++) {
            groups = 1 + cu_random(9);
            n = 1 + cu_random(300);
            k = 1 + cu_random(700);

            for (j = 0; j < groups; j++) {
                count[j] = cu_random(3) ? cu_random(20) : 0;
            }

            count[cu_random(groups)] += 1 + (i == 0 ? 150 : 0);

            make(&t, kind, groups, count, n, k);
            check(&t, 0, (int) (i % 2));
            drop(&t);
        }
    }
}


/* All matrices' turns come round: more tiles than blocks, and one row. */

static void
test_many(void **state)
{
    work_t    t;
    uint32_t  kind, i, count[40];

    (void) state;

    for (kind = 0; kind < KINDS; kind++) {
        for (i = 0; i < 40; i++) {
            count[i] = cu_random(4);
        }

        count[0] = 1;
        make(&t, kind, 40, count, 130, 64);
        check(&t, 0, 1);
        drop(&t);

        count[0] = 1;
        make(&t, kind, 1, count, 16, 128);
        check(&t, 0, 0);
        drop(&t);
    }
}


/* The same row among others, elsewhere, alone: the same bits. */

static void
test_alone(void **state)
{
    float     *all, *one;
    work_t     t;
    uint32_t   kind, r, count[2];

    (void) state;

    for (kind = 0; kind < KINDS; kind++) {
        count[0] = 5;
        count[1] = 70;
        make(&t, kind, 2, count, 200, 256);
        all = get((size_t) (t.rows + SPARE) * t.n * sizeof(float));
        one = get((size_t) (t.rows + SPARE) * t.n * sizeof(float));
        run(&t, CU_GEMM_FIXED, 0, all);

        for (r = 5; r < 75; r += 23) {
            uint32_t  offset[3] = { r, r, r + 1 };

            CU_OK(cudaMemcpy(t.dev_offset, offset, sizeof(offset),
                             cudaMemcpyHostToDevice));
            run(&t, CU_GEMM_FIXED, 0, one);
            assert_memory_equal(all + (size_t) r * t.n,
                                one + (size_t) r * t.n,
                                t.n * sizeof(float));
        }

        free(all);
        free(one);
        drop(&t);
    }
}


/* One matrix, BF16 results, results added to. */

/* One matrix beside float64; with room several blocks may share a tile. */

static void
dense(uint32_t kind, uint32_t count, uint32_t n, uint32_t k, void *room)
{
    float       *f, sum;
    void        *y;
    work_t       t;
    cu_mm_t      p;
    double       w, size;
    uint32_t     r, c, way;
    uint16_t    *h;
    cu_matrix_t  m;

    make(&t, kind, 1, &count, n, k);
    cu_get(&m, t.dev_m, sizeof(m));
    f = get((size_t) count * t.n * sizeof(float));
    h = (uint16_t *) f;

    for (way = 0; way < 4; way++) {
        memset(&p, 0, sizeof(p));
        p.m = m;
        p.x = t.p.g.x;
        p.ldy = t.n;
        p.rows = count;
        p.batch = 1;
        p.narrow = way & 1;
        p.add = way >> 1;

        for (r = 0; r < count * t.n; r++) {
            if (p.narrow) {
                h[r] = to_bf16(p.add ? 2.0f : NAN);
            } else {
                f[r] = p.add ? 2.0f : NAN;
            }
        }

        y = cu_put(f, (size_t) count * t.n * sizeof(float));
        p.y = y;
        CU_OK(cu_gemm(&p, t.dev_m, 0, room, NULL));
        CU_OK(cudaDeviceSynchronize());
        cu_get(f, y, (size_t) count * t.n * sizeof(float));
        CU_OK(cudaFree(y));

        for (r = 0; r < count; r++) {
            for (c = 0; c < t.n; c++) {
                w = want(&t, 0, r, c, &size) + (p.add ? 2 : 0);
                sum = p.narrow ? from_bf16(h[r * t.n + c])
                               : f[r * t.n + c];

                if (!(fabs(sum - w) <= size * LOOSE_FP8
                                       + (p.narrow ? fabs(w) / 250 : 1e-6)))
                {
                    fail_msg("kind %u, %u rows, %u x %u, way %u, row %u, "
                             "output %u: %g, not %g", kind, count, n, k, way,
                             r, c, sum, w);
                }
            }
        }
    }

    free(f);
    drop(&t);
}


static void
test_dense(void **state)
{
    uint32_t  kind;

    (void) state;

    for (kind = 0; kind < KINDS; kind++) {
        dense(kind, 33, 160, 192, NULL);
    }
}


/* The room is used again and again, as counters are left at zero. */

static void
test_split(void **state)
{
    void      *room;
    uint32_t   kind, i, counts[CU_GEMM_TILES];

    (void) state;

    room = cu_put(NULL, CU_GEMM_ROOM);
    CU_OK(cudaMemset(room, 0, CU_GEMM_ROOM));
    CU_OK(cudaMemset((uint8_t *) room + sizeof(counts), 0xff,
                     CU_GEMM_ROOM - sizeof(counts)));

    for (kind = 0; kind < KINDS; kind++) {
        dense(kind, 1, 160, 2100, room);
        dense(kind, 33, 100, 1100, room);
        dense(kind, 70, 300, 700, room);
        dense(kind, 130, 130, 520, room);
    }

    cu_get(counts, room, sizeof(counts));

    for (i = 0; i < CU_GEMM_TILES; i++) {
        assert_int_equal(counts[i], 0);
    }

    CU_OK(cudaFree(room));
}


/* Rows for the next product of gate and up, with room and without. */

static void
gated(uint32_t kind, uint32_t count, uint32_t n, uint32_t k, void *room)
{
    void      *act[2], *scale[2];
    float     *s[2], v[2];
    work_t     t, up;
    size_t     size, size_scale, at;
    uint8_t   *raw[2];
    uint32_t   r, c, way, ld, ld_scale;

    make(&t, kind, 1, &count, n, k);
    make(&up, kind, 1, &count, n, k);
    ld = (n + 127) / 128 * 128;
    ld_scale = (count + 3) / 4 * 4;
    size = (size_t) count * ld * (t.fp8 ? 1 : 2);
    size_scale = (size_t) ld / 128 * ld_scale * sizeof(float);

    t.p.g.offset = NULL;
    t.p.g.rows = count;
    t.p.tile = 0;
    t.p.m_up = up.dev_m;
    t.p.maps_up = up.dev_maps;
    t.p.act.ld = ld;
    t.p.act.ld_scale = ld_scale;

    for (way = 0; way < 2; way++) {
        raw[way] = get(size);
        s[way] = get(size_scale);
        act[way] = cu_put(raw[way], size);
        scale[way] = cu_put(s[way], size_scale);

        t.p.room = way ? room : NULL;
        t.p.act.x = act[way];
        t.p.act.scale = t.fp8 ? scale[way] : NULL;
        CU_OK(cu_gemm_grouped(&t.p, NULL));
        CU_OK(cudaDeviceSynchronize());

        cu_get(raw[way], act[way], size);
        cu_get(s[way], scale[way], size_scale);
        CU_OK(cudaFree(act[way]));
        CU_OK(cudaFree(scale[way]));
    }

    for (r = 0; r < count; r++) {
        for (c = 0; c < n; c++) {
            at = (size_t) r * ld + c;

            for (way = 0; way < 2; way++) {
                v[way] = t.fp8 ? be_from_e4m3(raw[way][at])
                                 * s[way][c / 128 * ld_scale + r]
                               : from_bf16(((uint16_t *) raw[way])[at]);
            }

            if (!(fabsf(v[0] - v[1]) <= fabsf(v[0]) * (t.fp8 ? 0.14f : 0.02f)
                                        + 2e-3f * (float) k / 100))
            {
                fail_msg("kind %u, %u rows, %u x %u, row %u, output %u: %g, "
                         "not %g", kind, count, n, k, r, c, v[1], v[0]);
            }
        }
    }

    for (way = 0; way < 2; way++) {
        free(raw[way]);
        free(s[way]);
    }

    drop(&t);
    drop(&up);
}


static void
test_split_act(void **state)
{
    void      *room;
    uint32_t   kind;

    (void) state;

    room = cu_put(NULL, CU_GEMM_ROOM);
    CU_OK(cudaMemset(room, 0, CU_GEMM_ROOM));

    for (kind = 0; kind < KINDS; kind++) {
        gated(kind, 1, 160, 2100, room);
        gated(kind, 40, 200, 1100, room);
        gated(kind, 90, 130, 600, room);
    }

    CU_OK(cudaFree(room));
}


/* silu(m x) * (m_up x): the bits of two products and cu_act(). */

static void
test_act(void **state)
{
    void       *y, *act[2], *scale[2];
    work_t      t, up;
    size_t      size, size_scale;
    uint8_t    *a, *b;
    cu_src_t    src;
    uint32_t    kind, tile, r, c, way, ld, ld_scale, all, n, bytes;

    static const uint32_t  count[] = { 5, 0, 30, 1 };

    (void) state;
    n = 200;

    for (kind = 0; kind < KINDS; kind++) {
        make(&t, kind, 4, count, n, 200);
        make(&up, kind, 4, count, n, 200);
        all = t.rows + SPARE;
        ld = (n + 127) / 128 * 128;
        ld_scale = (all + 3) / 4 * 4;
        bytes = t.fp8 ? 1 : 2;
        size = (size_t) all * ld * bytes;
        size_scale = 2 * ld_scale * sizeof(float);
        a = get(size);
        b = get(size);

        for (tile = 8; tile <= most(&t); tile *= 2) {
            y = cu_put(NULL, 2 * (size_t) all * n * sizeof(float));

            for (way = 0; way < 2; way++) {
                act[way] = cu_put(NULL, size);
                scale[way] = cu_put(NULL, size_scale);
                CU_OK(cudaMemset(act[way], 0, size));
                CU_OK(cudaMemset(scale[way], 0, size_scale));
            }

            t.p.tile = tile;
            t.p.m_up = NULL;
            t.p.g.y = y;
            t.p.g.ldy = n;
            CU_OK(cu_gemm_grouped(&t.p, NULL));

            up.p.tile = tile;
            up.p.g.x = t.p.g.x;
            up.p.g.y = (float *) y + (size_t) all * n;
            up.p.g.ldy = n;
            CU_OK(cu_gemm_grouped(&up.p, NULL));

            memset(&src, 0, sizeof(src));
            src.x = y;
            src.up = up.p.g.y;
            src.ld = n;
            src.rows = t.rows;
            src.dim = n;
            t.p.act.x = act[0];
            t.p.act.scale = t.fp8 ? scale[0] : NULL;
            t.p.act.ld = ld;
            t.p.act.ld_scale = ld_scale;
            CU_OK(cu_act(&src, &t.p.act, NULL));

            t.p.m_up = up.dev_m;
            t.p.maps_up = up.dev_maps;
            t.p.act.x = act[1];
            t.p.act.scale = t.fp8 ? scale[1] : NULL;
            CU_OK(cu_gemm_grouped(&t.p, NULL));
            CU_OK(cudaDeviceSynchronize());

            if (t.fp8) {
                cu_get(a, scale[0], size_scale);
                cu_get(b, scale[1], size_scale);
                assert_memory_equal(a, b, size_scale);
            }

            cu_get(a, act[0], size);
            cu_get(b, act[1], size);

            for (r = 0; r < all; r++) {
                for (c = 0; c < n * bytes; c++) {
                    size_t  at = (size_t) r * ld * bytes + c;

                    if (a[at] != b[at]) {
                        fail_msg("kind %u, tile %u, row %u, byte %u: %u, not "
                                 "%u", kind, tile, r, c, b[at], a[at]);
                    }
                }
            }

            CU_OK(cudaFree(y));

            for (way = 0; way < 2; way++) {
                CU_OK(cudaFree(act[way]));
                CU_OK(cudaFree(scale[way]));
            }
        }

        free(a);
        free(b);
        drop(&t);
        drop(&up);
    }
}


static void
test_refused(void **state)
{
    work_t    t;
    uint32_t  count;
    float     out[8];

    (void) state;
    count = 1;
    make(&t, CU_MM_BF16, 1, &count, 8, 64);
    t.p.g.y = out;
    t.p.g.ldy = 8;

    t.p.g.groups = CU_GEMM_GROUPS + 1;
    assert_int_equal(cu_gemm_grouped(&t.p, NULL), cudaErrorInvalidValue);
    t.p.g.groups = 1;

    t.p.g.x.ld = 68;
    assert_int_equal(cu_gemm_grouped(&t.p, NULL), cudaErrorInvalidValue);
    t.p.g.x.ld = 64;

    t.p.g.x.x = (char *) t.dev_x + 2;
    assert_int_equal(cu_gemm_grouped(&t.p, NULL), cudaErrorInvalidValue);
    t.p.g.x.x = t.dev_x;

    t.p.type = CU_MM_FP8;
    assert_int_equal(cu_gemm_grouped(&t.p, NULL), cudaErrorInvalidValue);
    t.p.type = CU_MM_BF16;

    t.p.g.rows = 0;
    CU_OK(cu_gemm_grouped(&t.p, NULL));

    drop(&t);

    /* rows in FP8 */

    make(&t, KIND_W4A8, 1, &count, 8, 64);
    t.p.g.y = out;
    t.p.g.ldy = 8;
    t.p.tile = 128;
    assert_int_equal(cu_gemm_grouped(&t.p, NULL), cudaErrorInvalidValue);
    t.p.tile = 0;

    t.p.g.x.ld_scale = 2;
    assert_int_equal(cu_gemm_grouped(&t.p, NULL), cudaErrorInvalidValue);
    t.p.type = CU_MM_BF16;
    assert_int_equal(cu_gemm_grouped(&t.p, NULL), cudaErrorInvalidValue);

    drop(&t);
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_act),
        cmocka_unit_test(test_act),
        cmocka_unit_test(test_refused)
    };

    return GPU_MAIN(argc, argv, tests);
}
