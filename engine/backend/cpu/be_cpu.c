/*
 * The CPU backend: opening, memory, the KV pool, and the operations that are
 * a loop over rows.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/cpu/be_cpu.h"


#define CPU_ROW_ITEM  8192           /* floats of one item of a row loop */


typedef struct {
    be_cpu_t           *cpu;
    const be_weight_t  *table;
    const int32_t      *id;
    const uint32_t     *row;
    const float        *w;
    float               eps;
    const float        *x;
    uint32_t            rows;
    uint32_t            dim;
    uint32_t            per_item;
    float              *y;
} cpu_rows_t;


static const be_kernels_t *cpu_kernels(const char *path, char *err);
static be_t *cpu_helper(be_t *be, char *err);
static void cpu_close(be_t *be);
static void *cpu_alloc(be_t *be, size_t size);
static void cpu_free(be_t *be, void *p);
static void cpu_copy(be_t *be, void *dst, const void *src, size_t size);
static int cpu_sync(be_t *be, char *err);
static be_kv_t *cpu_kv_open(be_t *be, uint32_t layers, uint32_t blocks,
    const be_mla_t *mla, char *err);
static void cpu_kv_free(be_t *be, be_kv_t *kv);
static size_t cpu_kv_block_size(const be_kv_t *kv);
static void cpu_kv_read(be_t *be, be_kv_t *kv, int32_t block, void *dst);
static void cpu_kv_write(be_t *be, be_kv_t *kv, int32_t block,
    const void *src);
static void cpu_embed(be_t *be, const be_weight_t *w, const be_batch_t *b,
    float *x);
static void cpu_embed_item(void *ctx, uint32_t item, uint32_t worker);
static void cpu_norm(be_t *be, const float *w, float eps, const float *x,
    uint32_t rows, uint32_t dim, float *y);
static void cpu_norm_item(void *ctx, uint32_t item, uint32_t worker);
static void cpu_gather(be_t *be, const float *x, const uint32_t *row,
    uint32_t n, uint32_t dim, float *y);
static void cpu_gather_item(void *ctx, uint32_t item, uint32_t worker);
static void cpu_join(be_t *be, const float *a, const float *b, uint32_t rows,
    uint32_t dim, float *y);
static void cpu_over_rows(be_cpu_t *cpu, be_item_f item, cpu_rows_t *r);


static const be_t  cpu_table = {
    .name = "cpu",
    .close = cpu_close,
    .helper = cpu_helper,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_copy,
    .download = cpu_copy,
    .sync = cpu_sync,
    .reserve = be_cpu_reserve,
    .weight = be_cpu_weight,
    .weight_t = be_cpu_weight_t,
    .table = be_cpu_table,
    .weight_free = be_cpu_weight_free,
    .weight_tensor = be_cpu_weight_tensor,
    .kv_open = cpu_kv_open,
    .kv_free = cpu_kv_free,
    .kv_block_size = cpu_kv_block_size,
    .kv_read = cpu_kv_read,
    .kv_write = cpu_kv_write,
    .embed = cpu_embed,
    .norm = cpu_norm,
    .linear = be_cpu_linear,
    .linear_add = be_cpu_linear_add,
    .mla_cache = be_cpu_mla_cache,
    .mla_query = be_cpu_mla_query,
    .mla_attend = be_cpu_mla_attend,
    .mla_value = be_cpu_mla_value,
    .mlp_add = be_cpu_mlp_add,
    .gate = be_cpu_gate,
    .experts = be_cpu_experts,
    .combine = be_cpu_combine,
    .gather = cpu_gather,
    .join = cpu_join
};


const char *const *
be_cpu_paths(void)
{
    static const char *const  generic[] = { "generic", NULL };
#if defined(__x86_64__)
    static const char *const  avx2[] = { "generic", "avx2", NULL };
    static const char *const  avx512[] = {
        "generic", "avx2", "avx512", NULL
    };
    static const char *const  bf16[] = {
        "generic", "avx2", "avx512", "avx512bf16", NULL
    };
    static const char *const  amx[] = {
        "generic", "avx2", "avx512", "avx512bf16", "amx", NULL
    };

    __builtin_cpu_init();

    /* These builtins ask for the system's saving of the registers too. */

    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {

        if (__builtin_cpu_supports("avx512f")
            && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512vl")
            && __builtin_cpu_supports("avx512dq"))
        {
            if (!__builtin_cpu_supports("avx512bf16")
                || !__builtin_cpu_supports("avx512vnni"))
            {
                return avx512;
            }

            return (be_amx_enable() == 0) ? amx : bf16;
        }

        return avx2;
    }
#endif

    return generic;
}


static const be_kernels_t *
cpu_kernels(const char *path, char *err)
{
    uint32_t            i, j;
    const char *const  *can;

    static const be_kernels_t *const  all[] = {
        &be_kernels_generic,
#if defined(__x86_64__)
        &be_kernels_avx2,
        &be_kernels_avx512,
        &be_kernels_avx512bf16,
        &be_kernels_amx,
#endif
    };

    can = be_cpu_paths();

    if (path == NULL) {
        for (i = 0; can[i + 1] != NULL; i++) { /* void */ }
        path = can[i];
    }

    for (i = 0; can[i] != NULL; i++) {
        if (strcmp(can[i], path) != 0) {
            continue;
        }

        for (j = 0; j < sizeof(all) / sizeof(all[0]); j++) {
            if (strcmp(all[j]->path, path) == 0) {
                return all[j];
            }
        }
    }

    snprintf(err, ERR_LEN, "this processor has no kernel path \"%s\"", path);

    return NULL;
}


be_t *
be_cpu_open(const be_options_t *opt, char *err)
{
    char       share[64];
    long       l2;
    be_cpu_t  *cpu;

    static const char *const  names[BE_DTYPES] = {
        "", " bf16", " fp8", " int8", " int4", ""
    };

    if (opt->kv != BE_F32) {
        snprintf(err, ERR_LEN, "the CPU backend has no KV cache in FP8");
        return NULL;
    }

    if (opt->compute != BE_F32 && opt->compute != BE_BF16) {
        snprintf(err, ERR_LEN, "the cpu backend computes in f32 or bf16");
        return NULL;
    }

    if (opt->weights >= BE_PAIRS) {
        snprintf(err, ERR_LEN, "weights of type %d are not possible",
                 (int) opt->weights);
        return NULL;
    }

    cpu = calloc(1, sizeof(be_cpu_t));
    if (cpu == NULL) {
        snprintf(err, ERR_LEN, "out of memory for the cpu backend");
        return NULL;
    }

    cpu->k = cpu_kernels(opt->path, err);
    if (cpu->k == NULL) {
        goto failed;
    }

    cpu->compute = opt->compute;
    cpu->weights = opt->weights;
    cpu->mode = &cpu->k->mode[opt->compute];
    cpu->threads = (opt->threads != 0) ? opt->threads : 1;
    cpu->most_packed = UINT32_MAX / BE_ROW_BLOCK * BE_ROW_BLOCK;

    cpu->team = be_team_open(cpu->threads, opt->pin, err);
    if (cpu->team == NULL) {
        goto failed;
    }

    l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    cpu->cache = (l2 < 512 * 1024) ? 256 * 1024
               : (l2 > 2048 * 1024) ? 1024 * 1024 : (size_t) l2 / 2;

    cpu->be = cpu_table;
    cpu->be.path = cpu->k->path;

    cpu->opt = *opt;
    cpu->opt.path = cpu->k->path;

    if (opt->alone) {
        return &cpu->be;
    }

    /* Without memory for its key nothing is shared. */

    snprintf(share, sizeof(share), "cpu %s %s%s%s", cpu->k->path,
             opt->compute == BE_F32 ? "f32" : "bf16", names[opt->weights],
             opt->pack ? " packed" : "");
    cpu->be.share = strdup(share);

    return &cpu->be;

failed:

    free(cpu);

    return NULL;
}


static be_t *
cpu_helper(be_t *be, char *err)
{
    be_options_t  opt;

    opt = ((be_cpu_t *) be)->opt;
    opt.threads = 1;
    opt.pin = -1;

    return be_cpu_open(&opt, err);
}


static void
cpu_close(be_t *be)
{
    uint32_t   i;
    be_cpu_t  *cpu;

    cpu = (be_cpu_t *) be;

    be_team_close(cpu->team);
    be_region_free(cpu->region);

    for (i = 0; i < BE_SCRATCH_MAX; i++) {
        free(cpu->scratch[i]);
    }

    free((char *) cpu->be.share);
    free(cpu);
}


size_t
be_dtype_size(be_dtype_t dtype)
{
    return (dtype == BE_F32) ? 4 : (dtype == BE_BF16) ? 2 : 1;
}


static void *
cpu_alloc(be_t *be, size_t size)
{
    void  *p;

    (void) be;

    if (size > SIZE_MAX - 64) {
        return NULL;
    }

    size = (size == 0) ? 64 : (size + 63) / 64 * 64;

    p = aligned_alloc(64, size);
    if (p != NULL) {
        memset(p, 0, size);
    }

    return p;
}


static void
cpu_free(be_t *be, void *p)
{
    (void) be;

    free(p);
}


static void
cpu_copy(be_t *be, void *dst, const void *src, size_t size)
{
    (void) be;

    if (size != 0) {
        memcpy(dst, src, size);
    }
}


static int
cpu_sync(be_t *be, char *err)
{
    (void) be;
    (void) err;

    return 0;
}


/* --- the KV pool ------------------------------------------------------- */

static be_kv_t *
cpu_kv_open(be_t *be, uint32_t layers, uint32_t blocks, const be_mla_t *mla,
    char *err)
{
    void      *p;
    be_kv_t   *kv;
    be_cpu_t  *cpu;

    cpu = (be_cpu_t *) be;

    kv = calloc(1, sizeof(be_kv_t));
    if (kv == NULL) {
        snprintf(err, ERR_LEN, "out of memory for the KV pool");
        return NULL;
    }

    kv->layers = layers;
    kv->blocks = blocks;
    kv->dim = mla->kv_lora + mla->rope;
    kv->dtype = cpu->compute;
    kv->row_size = kv->dim * be_dtype_size(kv->dtype);
    kv->block_size = kv->row_size * BE_BLOCK;

    if (layers == 0 || blocks == 0
        || kv->block_size > SIZE_MAX / layers / blocks)
    {
        snprintf(err, ERR_LEN, "a KV pool of %u layers and %u blocks is not "
                 "possible", layers, blocks);
        free(kv);
        return NULL;
    }

    kv->size = kv->block_size * layers * blocks;

    /* Fresh pages are zero and cost nothing until they are used. */

    p = mmap(NULL, kv->size, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        snprintf(err, ERR_LEN, "no memory for a KV pool of %zu bytes: %s",
                 kv->size, strerror(errno));
        free(kv);
        return NULL;
    }

    (void) madvise(p, kv->size, MADV_HUGEPAGE);

    kv->data = p;

    return kv;
}


static void
cpu_kv_free(be_t *be, be_kv_t *kv)
{
    (void) be;

    if (kv == NULL) {
        return;
    }

    (void) munmap(kv->data, kv->size);
    free(kv);
}


static size_t
cpu_kv_block_size(const be_kv_t *kv)
{
    return kv->block_size * kv->layers;
}


static void
cpu_kv_read(be_t *be, be_kv_t *kv, int32_t block, void *dst)
{
    size_t    at;
    uint32_t  i;

    (void) be;

    for (i = 0; i < kv->layers; i++) {
        at = ((size_t) i * kv->blocks + (uint32_t) block) * kv->block_size;
        memcpy((uint8_t *) dst + i * kv->block_size, kv->data + at,
               kv->block_size);
    }
}


static void
cpu_kv_write(be_t *be, be_kv_t *kv, int32_t block, const void *src)
{
    size_t    at;
    uint32_t  i;

    (void) be;

    for (i = 0; i < kv->layers; i++) {
        at = ((size_t) i * kv->blocks + (uint32_t) block) * kv->block_size;
        memcpy(kv->data + at, (const uint8_t *) src + i * kv->block_size,
               kv->block_size);
    }
}


/* --- loops over rows --------------------------------------------------- */

/* Cuts r->rows into items of about CPU_ROW_ITEM floats. */

static void
cpu_over_rows(be_cpu_t *cpu, be_item_f item, cpu_rows_t *r)
{
    uint32_t  items;

    if (r->rows == 0 || r->dim == 0) {
        return;
    }

    r->cpu = cpu;
    r->per_item = (r->dim >= CPU_ROW_ITEM) ? 1 : CPU_ROW_ITEM / r->dim;
    items = (r->rows + r->per_item - 1) / r->per_item;

    be_team_run(cpu->team, item, r, items,
                (uint64_t) r->rows * r->dim / 8);
}


static void
cpu_embed(be_t *be, const be_weight_t *w, const be_batch_t *b, float *x)
{
    cpu_rows_t  r;

    memset(&r, 0, sizeof(r));
    r.table = w;
    r.id = b->id;
    r.rows = b->n_rows;
    r.dim = w->cols;
    r.y = x;

    cpu_over_rows((be_cpu_t *) be, cpu_embed_item, &r);
}


static void
cpu_embed_item(void *ctx, uint32_t item, uint32_t worker)
{
    float          *y;
    size_t          at;
    uint32_t        row, end, i;
    cpu_rows_t     *r;
    const uint8_t  *src;

    (void) worker;

    r = ctx;
    row = item * r->per_item;
    end = (r->rows - row < r->per_item) ? r->rows : row + r->per_item;

    for ( /* void */ ; row < end; row++) {
        y = r->y + (size_t) row * r->dim;
        at = (size_t) (uint32_t) r->id[row] * r->dim;

        if (r->table->dtype == BE_F32) {
            memcpy(y, r->table->data + at * 4, (size_t) r->dim * 4);

        } else {
            src = r->table->data + at * 2;

            for (i = 0; i < r->dim; i++) {
                y[i] = be_load_bf16(src + (size_t) i * 2);
            }
        }
    }
}


static void
cpu_norm(be_t *be, const float *w, float eps, const float *x, uint32_t rows,
    uint32_t dim, float *y)
{
    cpu_rows_t  r;

    memset(&r, 0, sizeof(r));
    r.w = w;
    r.eps = eps;
    r.x = x;
    r.rows = rows;
    r.dim = dim;
    r.y = y;

    cpu_over_rows((be_cpu_t *) be, cpu_norm_item, &r);
}


static void
cpu_norm_item(void *ctx, uint32_t item, uint32_t worker)
{
    uint32_t     row, end;
    cpu_rows_t  *r;

    (void) worker;

    r = ctx;
    row = item * r->per_item;
    end = (r->rows - row < r->per_item) ? r->rows : row + r->per_item;

    for ( /* void */ ; row < end; row++) {
        r->cpu->k->norm(r->w, r->eps, r->x + (size_t) row * r->dim, r->dim,
                        r->y + (size_t) row * r->dim);
    }
}


static void
cpu_gather(be_t *be, const float *x, const uint32_t *row, uint32_t n,
    uint32_t dim, float *y)
{
    cpu_rows_t  r;

    memset(&r, 0, sizeof(r));
    r.x = x;
    r.row = row;
    r.rows = n;
    r.dim = dim;
    r.y = y;

    cpu_over_rows((be_cpu_t *) be, cpu_gather_item, &r);
}


static void
cpu_gather_item(void *ctx, uint32_t item, uint32_t worker)
{
    uint32_t     row, end;
    cpu_rows_t  *r;

    (void) worker;

    r = ctx;
    row = item * r->per_item;
    end = (r->rows - row < r->per_item) ? r->rows : row + r->per_item;

    for ( /* void */ ; row < end; row++) {
        memcpy(r->y + (size_t) row * r->dim,
               r->x + (size_t) r->row[row] * r->dim, (size_t) r->dim * 4);
    }
}


static void
cpu_join(be_t *be, const float *a, const float *b, uint32_t rows,
    uint32_t dim, float *y)
{
    uint32_t  row;

    (void) be;

    for (row = 0; row < rows; row++) {
        memcpy(y, a + (size_t) row * dim, (size_t) dim * sizeof(float));
        memcpy(y + dim, b + (size_t) row * dim, (size_t) dim * sizeof(float));
        y += 2 * (size_t) dim;
    }
}
