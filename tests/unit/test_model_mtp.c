/*
 * The multi-token prediction layer drafts the same bits whatever the chunks,
 * the ranks and the threads; what it keeps of a step changes no logits.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cli/cli_ranks.h"
#include "unit/model_dir.h"


#define TOKENS  140
#define VOCAB   101
#define BLOCKS  4
#define CHAIN   3                    /* tokens that are drafted at the end */

typedef struct {
    const char  *name;
    uint32_t     ranks;
    uint32_t     threads;
    uint32_t     chunk;
    uint32_t     every;              /* rows that give logits of drafts */
    int          home;
} way_t;

typedef struct {
    float     logits[TOKENS][VOCAB];
    float     draft[TOKENS + 1][VOCAB];      /* by position of the row */
    float     chain[CHAIN][VOCAB];
} result_t;


static const way_t  ways[] = {
    { "at once", 1, 1, TOKENS, 1, 0 },
    { "one by one", 1, 1, 1, 1, 0 },
    { "chunks of 17, two threads", 1, 2, 17, 1, 0 },
    { "chunks of 64, few logits", 1, 1, 64, 5, 0 },
    { "two ranks", 2, 1, 23, 1, 1 },
    { "three ranks, two threads", 3, 2, 50, 3, 2 }
};

static int32_t         ids[TOKENS + CHAIN];
static int32_t         block[BLOCKS] = { 2, 0, 3, 1 };
static const int32_t  *blocks[1] = { block };
static uint32_t        seq[TOKENS];
static uint32_t        pos[TOKENS];
static uint32_t        from[TOKENS];
static uint32_t        row[TOKENS];
static float           logits[TOKENS * VOCAB];


static cli_ranks_t *
open_ranks(model_t *model, const char *path, be_dtype_t mode,
    const way_t *way, int mtp)
{
    char                  err[ERR_LEN];
    cli_ranks_t          *ranks;
    cli_ranks_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.backend = "cpu";
    opt.kernels = path;
    opt.compute = mode;
    opt.ranks = way->ranks;
    opt.threads = way->threads;
    opt.max_rows = TOKENS;
    opt.max_logits = TOKENS;
    opt.kv_blocks = BLOCKS;
    opt.timeout_ms = 60000;
    opt.mtp = mtp;

    ranks = cli_ranks_open(model, &opt, err);
    if (ranks == NULL) {
        fail_msg("%s", err);
    }

    return ranks;
}


/* Rows of the ids from `at` on, each `every`th of which gives logits. */

static void
set(cli_step_t *step, const way_t *way, uint32_t at, uint32_t rows,
    uint32_t every)
{
    uint32_t     i;
    cli_step_t  *s;

    memset(step, 0, 3 * sizeof(cli_step_t));
    s = &step[way->home];

    for (i = 0; i < rows; i++) {
        pos[i] = at + i;
        from[i] = i;

        if (i % every == 0) {
            row[s->n_logits++] = i;
        }
    }

    s->batch.n_rows = rows;
    s->batch.id = ids + at;
    s->batch.pos = pos;
    s->batch.seq = seq;
    s->batch.n_seqs = 1;
    s->batch.blocks = blocks;
    s->logit_row = row;
    s->logits = logits;
}


static uint32_t
likeliest(const float *l)
{
    uint32_t  i, best;

    for (best = 0, i = 1; i < VOCAB; i++) {
        best = (l[i] > l[best]) ? i : best;
    }

    return best;
}


static void
keep(const cli_step_t *step, float (*to)[VOCAB])
{
    uint32_t  i;

    for (i = 0; i < step->n_logits; i++) {
        memcpy(to[step->batch.pos[step->logit_row[i]]], logits + i * VOCAB,
               VOCAB * sizeof(float));
    }
}


static void
compute(model_t *model, const char *path, be_dtype_t mode, const way_t *way,
    int mtp, result_t *out)
{
    char            err[ERR_LEN];
    uint32_t        i, at, rows, first;
    cli_step_t      step[3], *s;
    cli_ranks_t    *ranks;

    ranks = open_ranks(model, path, mode, way, mtp);
    s = &step[way->home];
    first = 1;

    for (at = 0; at < TOKENS; at += rows) {
        rows = (TOKENS - at < way->chunk) ? TOKENS - at : way->chunk;

        set(step, way, at, rows, 1);
        assert_int_equal(cli_ranks_step(ranks, step, err), 0);
        keep(s, out->logits);

        if (!mtp) {
            continue;
        }

        if (at + rows == TOKENS) {
            ids[TOKENS] = (int32_t) likeliest(out->logits[TOKENS - 1]);
        }

        set(step, way, at + 1, rows, way->every);
        s->batch.first = &first;
        s->from = from;

        if (at + rows == TOKENS && (rows - 1) % way->every != 0) {
            row[s->n_logits++] = rows - 1;
        }

        i = s->n_logits - 1;

        if (cli_ranks_draft(ranks, step, err) != 0) {
            fail_msg("%s: %s", way->name, err);
        }

        keep(s, out->draft);
        memcpy(out->chain[0], logits + i * VOCAB, VOCAB * sizeof(float));
        from[0] = i;
    }

    for (i = 1; mtp && i < CHAIN; i++) {
        ids[TOKENS + i] = (int32_t) likeliest(out->chain[i - 1]);
        at = from[0];

        set(step, way, TOKENS + i, 1, 1);
        s->batch.first = &first;
        s->from = from;
        s->pass = i;
        from[0] = (i == 1) ? at : 0;

        assert_int_equal(cli_ranks_draft(ranks, step, err), 0);
        memcpy(out->chain[i], logits, VOCAB * sizeof(float));
    }

    cli_ranks_close(ranks);
}


static void
compare(const way_t *way, const char *path, const result_t *want,
    const result_t *got)
{
    uint32_t  i;

    if (memcmp(want->logits, got->logits, sizeof(want->logits)) != 0) {
        fail_msg("%s, %s: logits differ", way->name, path);
    }

    for (i = 1; i <= TOKENS; i++) {
        if (got->draft[i][0] != 0
            && memcmp(want->draft[i], got->draft[i], sizeof(want->draft[i]))
               != 0)
        {
            fail_msg("%s, %s: draft at %u differs", way->name, path, i);
        }
    }

    if (memcmp(want->chain, got->chain, sizeof(want->chain)) != 0) {
        fail_msg("%s, %s: drafts of drafts differ", way->name, path);
    }
}


static model_dir_t *
open_model(const model_field_t *style, const char *mtp, model_t **model)
{
    char          err[ERR_LEN];
    uint32_t      i;
    uint64_t      state;
    model_dir_t  *d;

    d = model_dir_open(style);
    model_dir_field(d, "num_nextn_predict_layers", mtp);
    model_dir_tensors(d);
    model_dir_write(d);

    *model = model_open(d->path, err);
    if (*model == NULL) {
        fail_msg("%s", err);
    }

    state = 11;

    for (i = 0; i < TOKENS; i++) {
        ids[i] = (int32_t) (random_next(&state) % VOCAB);
    }

    return d;
}


static void
all_ways(const model_field_t *style)
{
    model_t            *model;
    uint32_t            i, mode;
    model_dir_t        *d;
    const char *const  *path;
    static result_t     want, got;

    d = open_model(style, "1", &model);

    for (path = be_cpu_paths(); *path != NULL; path++) {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
        if (path[1] != NULL && getenv("LONG") == NULL) {
            continue;
        }
#endif

        for (mode = BE_F32; mode <= BE_BF16; mode++) {
            memset(&want, 0, sizeof(want));
            compute(model, *path, mode, &ways[0], 1, &want);

            assert_true(want.draft[TOKENS][0] != 0);
            assert_memory_not_equal(want.chain[0], want.chain[1],
                                    sizeof(want.chain[0]));

            for (i = 1; i < sizeof(ways) / sizeof(ways[0]); i++) {
                memset(&got, 0, sizeof(got));
                compute(model, *path, mode, &ways[i], 1, &got);
                compare(&ways[i], *path, &want, &got);
            }

            /* the same logits without a thought of drafts */

            memset(&got, 0, sizeof(got));
            compute(model, *path, mode, &ways[0], 0, &got);
            assert_memory_equal(want.logits, got.logits,
                                sizeof(want.logits));
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
test_fp8(void **state)
{
    (void) state;
    all_ways(model_dir_fp8);
}


static void
test_none(void **state)
{
    char                  err[ERR_LEN];
    model_t              *model;
    model_dir_t          *d;
    cli_ranks_options_t   opt;

    (void) state;

    d = open_model(NULL, "0", &model);

    memset(&opt, 0, sizeof(opt));
    opt.backend = "cpu";
    opt.ranks = 2;
    opt.threads = 1;
    opt.max_rows = 1;
    opt.max_logits = 1;
    opt.kv_blocks = 1;
    opt.mtp = 1;

    assert_null(cli_ranks_open(model, &opt, err));
    assert_non_null(strstr(err, "no multi-token prediction layer"));

    model_close(model);
    model_dir_close(d);
}


/* What cannot be drafted is refused, on all ranks. */

static void
test_bad_draft(void **state)
{
    char          err[ERR_LEN];
    model_t      *model;
    uint32_t      k;
    cli_step_t    step[3];
    model_dir_t  *d;
    way_t         way;
    cli_ranks_t  *ranks;

    (void) state;

    d = open_model(NULL, "1", &model);
    way = ways[4];
    way.home = 0;

    for (k = 0; k < 3; k++) {
        ranks = open_ranks(model, NULL, BE_F32, &way, k != 2);
        set(step, &way, 0, 10, 1);
        assert_int_equal(cli_ranks_step(ranks, step, err), 0);

        set(step, &way, k == 0 ? 0 : 1, 10, 1);
        step[0].from = from;
        from[9] = (k == 1) ? 10 : 9;

        assert_int_equal(cli_ranks_draft(ranks, step, err), -1);
        assert_non_null(strstr(err, k == 0 ? "row 0 of a draft is at position "
                                             "0 and comes from row 0 of 10"
                                  : k == 1 ? "row 9 of a draft is at position "
                                             "10 and comes from row 10 of 10"
                                  : "nothing was kept"));
        cli_ranks_close(ranks);
    }

    model_close(model);
    model_dir_close(d);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_v3),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_none),
        cmocka_unit_test(test_bad_draft),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
