/*
 * One arithmetic per position: a sequence's keys and logits are the same bits
 * whatever the chunks, the batch, the ranks, the threads and the place of its
 * blocks, in every compute mode and on every kernel path of this processor.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cli/cli_ranks.h"
#include "unit/model_dir.h"


#define TOKENS     150               /* of the sequence that is compared */
#define OTHER      70                /* of each of its neighbours */
#define NEIGHBOUR  2
#define BLOCKS     16
#define ROWS       160

/* A way to compute the sequence. */

typedef struct {
    const char  *name;
    uint32_t     ranks;
    uint32_t     threads;
    uint32_t     first;              /* rows of the first step */
    uint32_t     chunk;              /* and of the others */
    int          neighbours;         /* rows of others in the same steps */
    int          scattered;          /* blocks in another order */
    int          home;               /* the rank that has it */
    int          few;                /* logits of every seventh row only */
} way_t;

typedef struct {
    float     logits[TOKENS][101];
    uint8_t  *kv;                    /* blocks one after another */
    size_t    kv_size;
} result_t;


static const way_t  ways[] = {
    { "one prefill", 1, 1, TOKENS, TOKENS, 0, 0, 0, 0 },
    { "chunks of 1", 1, 1, 1, 1, 0, 0, 0, 0 },
    { "chunks of 16", 1, 1, 16, 16, 0, 0, 0, 0 },
    { "chunks of 64", 1, 1, 64, 64, 0, 1, 0, 0 },
    { "prefill, then decode", 1, 1, 131, 1, 0, 0, 0, 0 },
    { "few logits", 1, 1, 37, 37, 0, 0, 0, 1 },
    { "two threads", 1, 2, TOKENS, TOKENS, 0, 0, 0, 0 },
    { "two threads, chunks of 16", 1, 2, 16, 16, 1, 1, 0, 0 },
    { "neighbours", 1, 1, 20, 13, 1, 1, 0, 0 },
    { "two ranks", 2, 1, TOKENS, TOKENS, 0, 0, 1, 0 },
    { "two ranks, neighbours", 2, 1, 64, 16, 1, 0, 0, 0 },
    { "three ranks of two threads", 3, 2, 50, 7, 1, 1, 2, 1 }
};


static int32_t   ids[NEIGHBOUR + 1][TOKENS];


static void compute(model_t *model, const char *path, be_dtype_t mode,
    const way_t *way, result_t *out);
static uint32_t fill(cli_step_t *step, const way_t *way, int home,
    uint32_t done, uint32_t rows);
static void compare(const way_t *way, const char *path, be_dtype_t mode,
    const result_t *want, const result_t *got);


/* Static: a step's rows, for up to three ranks. */

typedef struct {
    int32_t         id[ROWS];
    uint32_t        pos[ROWS];
    uint32_t        seq[ROWS];
    uint32_t        want[ROWS];
    const int32_t  *blocks[NEIGHBOUR + 1];
    float           logits[ROWS * 101];
} rows_t;

static be_dtype_t  weights_as;       /* BE_F32: as they are */
static rows_t   rows_of[3];
static int32_t  block_of[NEIGHBOUR + 1][BLOCKS];


static void
compute(model_t *model, const char *path, be_dtype_t mode, const way_t *way,
    result_t *out)
{
    char                  err[ERR_LEN];
    uint32_t              i, k, done, rows, first;
    cli_step_t            step[3];
    cli_ranks_t          *ranks;
    cli_ranks_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.backend = "cpu";
    opt.kernels = path;
    opt.compute = mode;
    opt.weights = weights_as;
    opt.ranks = way->ranks;
    opt.threads = way->threads;
    opt.max_rows = ROWS;
    opt.max_logits = ROWS;
    opt.kv_blocks = BLOCKS;
    opt.timeout_ms = 60000;

    ranks = cli_ranks_open(model, &opt, err);
    if (ranks == NULL) {
        fail_msg("%s", err);
    }

    for (i = 0; i <= NEIGHBOUR; i++) {
        for (k = 0; k < 5; k++) {
            block_of[i][k] = (int32_t) (way->scattered ? (k * 7 + 3 + i * 5)
                                                         % BLOCKS
                                                       : i * 5 + k);
        }
    }

    for (done = 0; done < TOKENS; done += rows) {
        rows = (done == 0) ? way->first : way->chunk;
        rows = rows < TOKENS - done ? rows : TOKENS - done;
        first = 0;

        memset(step, 0, sizeof(step));

        for (i = 0; i < way->ranks; i++) {
            k = fill(&step[i], way, (int) i, done, rows);
            first = (i == (uint32_t) way->home) ? k : first;
        }

        assert_int_equal(cli_ranks_step(ranks, step, err), 0);

        for (i = first; i < step[way->home].n_logits; i++) {
            k = step[way->home].logit_row[i];
            k = step[way->home].batch.pos[k];
            memcpy(out->logits[k], step[way->home].logits + i * 101,
                   sizeof(out->logits[k]));
        }
    }

    out->kv_size = model_kv_block_size(model, mode, 0);
    out->kv = calloc(3, out->kv_size);

    be_t     *be = cli_ranks_backend(ranks, (uint32_t) way->home);
    be_kv_t  *kv = model_rank_kv(cli_ranks_rank(ranks, (uint32_t) way->home));

    assert_int_equal(be->kv_block_size(kv), out->kv_size);

    for (i = 0; i < 3; i++) {
        be->kv_read(be, kv, block_of[0][i], out->kv + i * out->kv_size);
    }

    cli_ranks_close(ranks);
}


/*
 * The rows of a rank: those of its neighbours first, then, at home, those of
 * the sequence.  Returns the first logit that is the sequence's.
 */

static uint32_t
fill(cli_step_t *step, const way_t *way, int home, uint32_t done,
    uint32_t rows)
{
    rows_t    *r;
    uint32_t   i, s, n, logits, first;

    r = &rows_of[home];
    n = 0;
    logits = 0;

    /* a neighbour has one row at a time, and begins anew when it is full */

    for (s = 1; way->neighbours && s <= NEIGHBOUR; s++) {
        r->id[n] = ids[s][done % OTHER];
        r->pos[n] = (done == 0 || rows > 1) ? 0 : done % 2;
        r->seq[n] = s;
        r->want[logits++] = n++;
    }

    first = logits;

    for (i = 0; home == way->home && i < rows; i++) {
        r->id[n] = ids[0][done + i];
        r->pos[n] = done + i;
        r->seq[n] = 0;

        if (!way->few || (done + i) % 7 == 0) {
            r->want[logits++] = n;
        }

        n++;
    }

    for (s = 0; s <= NEIGHBOUR; s++) {
        r->blocks[s] = block_of[s];
    }

    step->batch.n_rows = n;
    step->batch.id = r->id;
    step->batch.pos = r->pos;
    step->batch.seq = r->seq;
    step->batch.n_seqs = NEIGHBOUR + 1;
    step->batch.blocks = r->blocks;
    step->logit_row = r->want;
    step->n_logits = logits;
    step->logits = r->logits;

    return first;
}


static void
compare(const way_t *way, const char *path, be_dtype_t mode,
    const result_t *want, const result_t *got)
{
    size_t    token, tail, l, layers;
    uint32_t  i;

    for (i = 0; i < TOKENS; i++) {

        if (way->few && i % 7 != 0) {
            continue;
        }

        if (memcmp(want->logits[i], got->logits[i], sizeof(want->logits[i]))
            != 0)
        {
            fail_msg("%s, %s, %s: logits of token %u differ", way->name, path,
                     mode == BE_F32 ? "f32" : "bf16", i);
        }
    }

    /* the last block is filled up to TOKENS only */

    layers = 3;
    token = want->kv_size / layers / BE_BLOCK;
    tail = (TOKENS % BE_BLOCK) * token;

    assert_memory_equal(want->kv, got->kv, 2 * want->kv_size);

    for (l = 0; l < layers; l++) {
        assert_memory_equal(want->kv + 2 * want->kv_size
                            + l * want->kv_size / layers,
                            got->kv + 2 * want->kv_size
                            + l * want->kv_size / layers, tail);
    }
}


/* Sanitizers make this slow: there the best path and some ways must do. */

static int
left_out(uint32_t way, const char *const *path)
{
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    return getenv("LONG") == NULL
           && (path[1] != NULL || (way != 1 && way != 7 && way != 11));
#else
    (void) way;
    (void) path;
    return 0;
#endif
}


/* A small model in a directory of its own. */

static model_dir_t *
small_open(const model_field_t *style, model_t **model)
{
    char          err[ERR_LEN];
    model_dir_t  *d;

    d = model_dir_open(style);
    model_dir_tensors(d);
    model_dir_write(d);

    *model = model_open(d->path, err);
    if (*model == NULL) {
        fail_msg("%s", err);
    }

    return d;
}


static cli_ranks_t *
two_ranks(model_t *model, be_dtype_t compute)
{
    char                  err[ERR_LEN];
    cli_ranks_t          *ranks;
    cli_ranks_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.backend = "cpu";
    opt.compute = compute;
    opt.ranks = 2;
    opt.threads = 1;
    opt.max_rows = ROWS;
    opt.max_logits = ROWS;
    opt.kv_blocks = BLOCKS;

    ranks = cli_ranks_open(model, &opt, err);
    if (ranks == NULL) {
        fail_msg("%s", err);
    }

    return ranks;
}


static void
all_ways(const model_field_t *style)
{
    model_t            *model;
    uint32_t            i, k, mode;
    uint64_t            state;
    model_dir_t        *d;
    const char *const  *path;
    static result_t     want, got;

    d = small_open(style, &model);

    state = 7;

    for (i = 0; i <= NEIGHBOUR; i++) {
        for (k = 0; k < TOKENS; k++) {
            ids[i][k] = (int32_t) (random_next(&state) % 101);
        }
    }

    for (path = be_cpu_paths(); *path != NULL; path++) {
        for (mode = BE_F32; mode <= BE_BF16; mode++) {

            if (left_out(1, path)) {
                continue;
            }

            compute(model, *path, mode, &ways[0], &want);

            for (i = 1; i < sizeof(ways) / sizeof(ways[0]); i++) {

                if (left_out(i, path)) {
                    continue;
                }

                memset(&got, 0, sizeof(got));
                compute(model, *path, mode, &ways[i], &got);
                compare(&ways[i], *path, mode, &want, &got);
                free(got.kv);
            }

            free(want.kv);
        }
    }

    model_close(model);
    model_dir_close(d);
}


static void
test_v3(void **state)
{
    (void) state;
    all_ways(NULL);
}


static void
test_v2(void **state)
{
    (void) state;
    all_ways(model_dir_v2);
}


static void
test_fp8(void **state)
{
    (void) state;
    all_ways(model_dir_fp8);
}


/* Quantised weights: the same rule. */

static void
test_quantised(void **state)
{
    (void) state;

    weights_as = BE_F8E4M3;
    all_ways(model_dir_fp8);

    weights_as = BE_INT8;
    all_ways(NULL);

    weights_as = BE_INT4;
    all_ways(model_dir_v2);

    weights_as = BE_F32;
}


/* Blocks that are copied to another pool continue as in their own. */

static void
test_copied_blocks(void **state)
{
    char                 err[ERR_LEN];
    float                want[101];
    uint8_t             *kv;
    model_t             *model;
    uint32_t             i;
    uint64_t             rng;
    cli_step_t           step[2];
    model_dir_t         *d;
    cli_ranks_t         *ranks;
    static const way_t   way = { "", 2, 1, 0, 0, 0, 0, 0, 0 };
    static const way_t   other = { "", 2, 1, 0, 0, 0, 0, 1, 0 };

    (void) state;

    d = small_open(NULL, &model);

    rng = 9;

    for (i = 0; i < TOKENS; i++) {
        ids[0][i] = (int32_t) (random_next(&rng) % 101);
    }

    ranks = two_ranks(model, BE_BF16);

    for (i = 0; i < 3; i++) {
        block_of[0][i] = (int32_t) i;
    }

    memset(step, 0, sizeof(step));
    fill(&step[0], &way, 0, 0, TOKENS);
    assert_int_equal(cli_ranks_step(ranks, step, err), 0);
    memcpy(want, step[0].logits + (TOKENS - 1) * 101, sizeof(want));

    be_t  *be[2] = { cli_ranks_backend(ranks, 0),
                     cli_ranks_backend(ranks, 1) };

    kv = malloc(model_kv_block_size(model, BE_BF16, 0));
    assert_non_null(kv);

    for (i = 0; i < 2; i++) {
        be[0]->kv_read(be[0], model_rank_kv(cli_ranks_rank(ranks, 0)),
                       (int32_t) i, kv);
        be[1]->kv_write(be[1], model_rank_kv(cli_ranks_rank(ranks, 1)),
                        (int32_t) i + 5, kv);
    }

    for (i = 0; i < 3; i++) {
        block_of[0][i] = (int32_t) i + 5;
    }

    memset(step, 0, sizeof(step));
    fill(&step[1], &other, 1, 128, TOKENS - 128);
    assert_int_equal(cli_ranks_step(ranks, step, err), 0);
    assert_memory_equal(want, step[1].logits + (TOKENS - 129) * 101,
                        sizeof(want));

    free(kv);
    cli_ranks_close(ranks);
    model_close(model);
    model_dir_close(d);
}


/* Each row of a MoE layer counts for top-k experts, at its home only. */

static void
test_expert_load(void **state)
{
    char                 err[ERR_LEN];
    model_t             *model;
    uint32_t             i, e;
    uint64_t             sum;
    cli_step_t           step[2];
    model_dir_t         *d;
    cli_ranks_t         *ranks;
    uint64_t             load[12];
    static const way_t   way = { "", 2, 1, 0, 0, 0, 0, 0, 0 };

    (void) state;

    d = small_open(NULL, &model);

    ranks = two_ranks(model, BE_F32);

    memset(step, 0, sizeof(step));
    fill(&step[0], &way, 0, 0, 40);
    assert_int_equal(cli_ranks_step(ranks, step, err), 0);

    for (i = 0; i < 2; i++) {
        memset(load, 0, sizeof(load));
        model_expert_load(cli_ranks_rank(ranks, i), 1, load);

        for (e = 0, sum = 0; e < 12; e++) {
            sum += load[e];
        }

        assert_int_equal(sum, i == 0 ? 40 * 3 : 0);
    }

    cli_ranks_close(ranks);
    model_close(model);
    model_dir_close(d);
}


/* A step that cannot be is refused on all ranks, and so is the next. */

static void
test_bad_step(void **state)
{
    char                 err[ERR_LEN];
    model_t             *model;
    cli_step_t           step[2];
    model_dir_t         *d;
    cli_ranks_t         *ranks;
    static const way_t   way = { "", 2, 1, 0, 0, 0, 0, 0, 0 };

    (void) state;

    d = small_open(NULL, &model);

    ranks = two_ranks(model, BE_F32);

    memset(step, 0, sizeof(step));
    fill(&step[0], &way, 0, 0, 10);
    rows_of[0].id[3] = 101;

    assert_int_equal(cli_ranks_step(ranks, step, err), -1);
    assert_non_null(strstr(err, "row 3 has token 101 of 101"));

    rows_of[0].id[3] = 1;
    assert_int_equal(cli_ranks_step(ranks, step, err), -1);
    assert_non_null(strstr(err, "left the exchange"));

    cli_ranks_close(ranks);
    model_close(model);
    model_dir_close(d);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_v2),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_quantised),
        cmocka_unit_test(test_copied_blocks),
        cmocka_unit_test(test_expert_load),
        cmocka_unit_test(test_bad_step),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
