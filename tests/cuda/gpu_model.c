/*
 * The whole model on the device backend, in emulation: within 1.5 times the
 * error that the CPU backend has in BF16, against its float32, and the same
 * bits whatever the chunks, neighbours, ranks, recorded steps, and micro-batches.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "backend/cuda/be_cuda.h"
#include "gpu_main.h"

#include "cli/cli_ranks.h"
#include "unit/model_dir.h"


#define TOKENS   88                  /* of the sequence that is compared */
#define OTHER    2                   /* sequences beside it */
#define BLOCKS   12
#define ROWS     112
#define VOCAB    101
#define CHAIN    3                   /* drafts after the last token */

/* Sanitizers make the emulator slow. */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW     1
#else
#define SLOW     0
#endif

typedef struct {
    const char  *name;
    uint32_t     ranks;
    uint32_t     first;              /* rows of the first step */
    uint32_t     chunk;              /* and of the others */
    int          others;             /* rows of others in the same steps */
    int          few;                /* logits of every seventh row only */
    int          mtp;
    uint32_t     micro;              /* rows of a step in two micro-batches */
} way_t;

typedef struct {
    float     logits[TOKENS][VOCAB];
    float     draft[CHAIN][VOCAB];
    uint8_t  *kv;                    /* of two blocks */
    size_t    kv_size;
} result_t;


static const way_t  ways[] = {
    { "one prefill", 1, TOKENS, TOKENS, 0, 0, 0, 0 },
    { "chunks of 16", 1, 16, 16, 0, 0, 0, 0 },
    { "prefill, then decode", 1, 70, 1, 0, 0, 0, 0 },
    { "neighbours, decode", 1, 77, 1, 1, 0, 0, 0 },
    { "few logits", 1, 37, 5, 1, 1, 0, 0 },
    { "two ranks", 2, 50, 9, 1, 0, 0, 0 },
    { "two ranks, micro-batches", 2, 50, 9, 1, 0, 0, 8 },
    { "two ranks, some micro-batches, few logits", 2, 21, 5, 1, 1, 0, 20 }
};

static const way_t  mtp_ways[] = {
    { "drafts", 1, TOKENS, TOKENS, 0, 0, 1, 0 },
    { "drafts, decode", 1, 75, 1, 0, 0, 1, 0 },
    { "drafts, two ranks", 2, 40, 16, 0, 0, 1, 0 },
    { "drafts, two ranks, micro-batches", 2, 40, 16, 0, 0, 1, 2 }
};


static cli_ranks_t *open_ranks(model_t *model, const char *backend,
    be_dtype_t compute, const way_t *way);
static void compute(model_t *model, const char *backend, be_dtype_t mode,
    const way_t *way, result_t *out);
static uint32_t fill(cli_step_t *step, const way_t *way, uint32_t done,
    uint32_t rows);
static void draft(cli_ranks_t *ranks, const way_t *way, uint32_t done,
    uint32_t rows, result_t *out);
static double mean_error(const float *a, const float *b, size_t n);


static be_dtype_t      kv_type;          /* of the device's cache */
static int32_t         ids[OTHER + 1][TOKENS + CHAIN];
static int32_t         blocks[OTHER + 1][4];
static const int32_t  *tables[OTHER + 1];
static int32_t         row_id[ROWS];
static uint32_t        row_pos[ROWS], row_seq[ROWS], row_want[ROWS];
static uint32_t        row_from[ROWS], first_pos[OTHER + 1];
static float           row_logits[ROWS][VOCAB];


static cli_ranks_t *
open_ranks(model_t *model, const char *backend, be_dtype_t compute,
    const way_t *way)
{
    char                  err[ERR_LEN];
    cli_ranks_t          *ranks;
    cli_ranks_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.backend = backend;
    opt.compute = compute;
    opt.ranks = way->ranks;
    opt.threads = 1;
    opt.max_rows = ROWS;
    opt.max_logits = ROWS;
    opt.kv_blocks = BLOCKS;
    opt.timeout_ms = 120000;
    opt.micro = way->micro;
    opt.mtp = way->mtp;
    opt.fixed = 1;
    opt.kv = (strcmp(backend, "cuda") == 0) ? kv_type : BE_F32;

    ranks = cli_ranks_open(model, &opt, err);
    if (ranks == NULL) {
        fail_msg("%s", err);
    }

    return ranks;
}


static void
compute(model_t *model, const char *backend, be_dtype_t mode,
    const way_t *way, result_t *out)
{
    be_t          *be;
    char           err[ERR_LEN];
    be_kv_t       *kv;
    uint32_t       i, done, rows, first;
    cli_step_t     step[2];
    cli_ranks_t   *ranks;

    ranks = open_ranks(model, backend, mode, way);

    for (done = 0; done < TOKENS; done += rows) {
        rows = (done == 0) ? way->first : way->chunk;
        rows = rows < TOKENS - done ? rows : TOKENS - done;

        memset(step, 0, sizeof(step));
        first = fill(&step[0], way, done, rows);

        if (cli_ranks_step(ranks, step, err) != 0) {
            fail_msg("%s, %s: %s", backend, way->name, err);
        }

        for (i = first; i < step[0].n_logits; i++) {
            memcpy(out->logits[row_pos[row_want[i]]], row_logits[i],
                   sizeof(row_logits[i]));
        }

        if (way->mtp) {
            draft(ranks, way, done, rows, out);
        }
    }

    be = cli_ranks_backend(ranks, 0);

    if (way->micro != 0) {
        assert_true(((be_cuda_t *) be)->splits > 0);
    }

    kv = model_rank_kv(cli_ranks_rank(ranks, 0));
    out->kv_size = be->kv_block_size(kv);
    out->kv = calloc(2, out->kv_size);

    for (i = 0; i < 2; i++) {
        be->kv_read(be, kv, blocks[0][i], out->kv + i * out->kv_size);
    }

    /* what is written is what is read */

    be->kv_write(be, kv, blocks[1][3], out->kv);
    be->kv_write(be, kv, blocks[1][2], out->kv + out->kv_size);
    be->kv_read(be, kv, blocks[1][3], out->kv);
    be->kv_read(be, kv, blocks[1][2], out->kv + out->kv_size);

    cli_ranks_close(ranks);
}


/* Returns the first logits that are the sequence's. */

static uint32_t
fill(cli_step_t *step, const way_t *way, uint32_t done, uint32_t rows)
{
    uint32_t  i, s, n, logits, first;

    n = 0;
    logits = 0;

    for (s = 1; way->others && s <= OTHER; s++) {
        row_id[n] = ids[s][done % 64];
        row_pos[n] = (s == 1 && rows == 1) ? done % 64 : 0;
        row_seq[n] = s;
        row_want[logits++] = n++;
    }

    first = logits;

    for (i = 0; i < rows; i++, n++) {
        row_id[n] = ids[0][done + i];
        row_pos[n] = done + i;
        row_seq[n] = 0;

        if (!way->few || (done + i) % 7 == 0) {
            row_want[logits++] = n;
        }
    }

    step->batch.n_rows = n;
    step->batch.id = row_id;
    step->batch.pos = row_pos;
    step->batch.seq = row_seq;
    step->batch.n_seqs = OTHER + 1;
    step->batch.blocks = tables;
    step->logit_row = row_want;
    step->n_logits = logits;
    step->logits = row_logits[0];

    return first;
}


/* Drafts for the rows of the step before; after the last one, a chain. */

static void
draft(cli_ranks_t *ranks, const way_t *way, uint32_t done, uint32_t rows,
    result_t *out)
{
    char         err[ERR_LEN];
    uint32_t     i, pass;
    cli_step_t   step[2];

    for (pass = 0; pass < CHAIN; pass++) {
        memset(step, 0, sizeof(step));
        i = fill(&step[0], way, done + 1, pass == 0 ? rows : 1);

        for (i = 0; i < step[0].batch.n_rows; i++) {
            row_pos[i] += pass;
            row_id[i] = ids[0][row_pos[i]];
            row_from[i] = i;
        }

        row_want[0] = step[0].batch.n_rows - 1;
        step[0].n_logits = 1;
        step[0].batch.first = first_pos;
        step[0].from = row_from;
        step[0].pass = pass;

        if (cli_ranks_draft(ranks, step, err) != 0) {
            fail_msg("%s: draft %u: %s", way->name, pass, err);
        }

        if (done + rows < TOKENS) {
            break;
        }

        memcpy(out->draft[pass], row_logits[0], sizeof(row_logits[0]));
        done = TOKENS - 1;
        rows = 1;
    }
}


static double
mean_error(const float *a, const float *b, size_t n)
{
    double  sum;
    size_t  i;

    for (sum = 0, i = 0; i < n; i++) {
        assert_true(isfinite(a[i]) && isfinite(b[i]));
        sum += fabs((double) a[i] - (double) b[i]);
    }

    return sum / (double) n;
}


static void
check(const model_field_t *style, const way_t *way, uint32_t n_ways)
{
    char               err[ERR_LEN];
    double             mine, cpu, most;
    size_t             tail, layer, l;
    model_t           *model;
    uint32_t           i, k;
    uint64_t           state;
    model_dir_t       *d;
    static result_t    exact, bf16, want, got;

    d = model_dir_open(style);
    model_dir_tensors(d);
    model_dir_write(d);

    model = model_open(d->path, err);
    if (model == NULL) {
        fail_msg("%s", err);
    }

    state = 11;

    for (i = 0; i <= OTHER; i++) {
        tables[i] = blocks[i];
        first_pos[i] = 1;

        for (k = 0; k < TOKENS + CHAIN; k++) {
            ids[i][k] = (int32_t) (random_next(&state) % VOCAB);
        }

        for (k = 0; k < 4; k++) {
            blocks[i][k] = (int32_t) ((i * 4 + k) * 5 % BLOCKS);
        }
    }

    memset(&want, 0, sizeof(want));

    compute(model, "cpu", BE_F32, &way[0], &exact);
    compute(model, "cpu", BE_BF16, &way[0], &bf16);
    compute(model, "cuda", BE_BF16, &way[0], &want);

    mine = mean_error(want.logits[0], exact.logits[0], TOKENS * VOCAB);
    cpu = mean_error(bf16.logits[0], exact.logits[0], TOKENS * VOCAB);

    most = (kv_type == BE_F32) ? 1.5 : 12;

    if (!(mine <= most * cpu) || mine == 0) {
        fail_msg("error %g, of the CPU in BF16 %g", mine, cpu);
    }

    for (i = 1; i < n_ways; i++) {
        memset(&got, 0, sizeof(got));
        compute(model, "cuda", BE_BF16, &way[i], &got);

        for (k = 0; k < TOKENS; k++) {
            if (way[i].few && k % 7 != 0) {
                continue;
            }

            if (memcmp(want.logits[k], got.logits[k], sizeof(got.logits[k]))
                != 0)
            {
                fail_msg("%s: logits of token %u differ", way[i].name, k);
            }
        }

        assert_memory_equal(want.draft, got.draft, sizeof(got.draft));

        /* the second block is filled up to TOKENS only */

        assert_memory_equal(want.kv, got.kv, want.kv_size);

        layer = want.kv_size / (way->mtp ? 4 : 3);
        tail = layer / BE_BLOCK * (TOKENS - BE_BLOCK);

        for (l = 0; l < 3; l++) {
            assert_memory_equal(want.kv + want.kv_size + l * layer,
                                got.kv + want.kv_size + l * layer, tail);
        }

        free(got.kv);
    }

    free(exact.kv);
    free(bf16.kv);
    free(want.kv);
    model_close(model);
    model_dir_close(d);
}


static void
test_v3(void **state)
{
    (void) state;
    check(NULL, ways, sizeof(ways) / sizeof(ways[0]));
}


static void
test_v2(void **state)
{
    (void) state;
    check(model_dir_v2, ways, sizeof(ways) / sizeof(ways[0]));
}


static void
test_mtp(void **state)
{
    (void) state;
    check(NULL, mtp_ways, sizeof(mtp_ways) / sizeof(mtp_ways[0]));
}


/* The published sizes of the latent cache, whose attention has own kernels. */

static const model_field_t  published[] = {
    { "kv_lora_rank", "512" }, { "qk_rope_head_dim", "64" },
    { "num_attention_heads", "5" }, { NULL, NULL }
};


static void
test_latent(void **state)
{
    (void) state;
    check(published, ways, SLOW ? 2 : sizeof(ways) / sizeof(ways[0]));
    check(published, mtp_ways, 2);
}


/*
 * A cache in FP8: its rounding is the larger error by far, but the same in all
 * ways.
 */

static void
test_kv_fp8(void **state)
{
    (void) state;

    kv_type = BE_F8E4M3;
    check(published, ways, SLOW ? 2 : 4);
    kv_type = BE_F32;
}


/* What the backend cannot do is said when it is opened. */

static void
test_refused(void **state)
{
    char           err[ERR_LEN];
    be_options_t   opt;

    (void) state;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_F32;
    assert_null(be_cuda_open(&opt, err));
    assert_non_null(strstr(err, "bf16"));

    opt.compute = BE_BF16;
    opt.weights = BE_F32;
    opt.path = "avx2";
    assert_null(be_cuda_open(&opt, err));
    assert_non_null(strstr(err, "avx2"));
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_v2),
        cmocka_unit_test(test_mtp),
        cmocka_unit_test(test_latent),
        cmocka_unit_test(test_kv_fp8),
        cmocka_unit_test(test_refused)
    };

    return GPU_MAIN(argc, argv, tests);
}
