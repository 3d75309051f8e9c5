/*
 * Experts that move while answers are computed: no answer changes, the busiest
 * rank becomes less busy, and nothing is left behind.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <time.h>

#include "cli/cli_ranks.h"
#include "ep/ep_balance.h"
#include "ep_published.h"
#include "model/model_rank.h"
#include "model_dir.h"


#define RANKS    3
#define TOKENS   90
#define CHUNK    6
#define VOCAB    101
#define EXPERTS  12
#define LAYERS   3                   /* the first one is dense */

typedef struct {
    int32_t         id[CHUNK];
    uint32_t        pos[CHUNK];
    uint32_t        seq[CHUNK];
    uint32_t        want[CHUNK];
    int32_t         block[2];
    const int32_t  *blocks[1];
    float           logits[CHUNK * VOCAB];
} rows_t;

static rows_t      rows_of[RANKS];
static float       want[TOKENS][VOCAB];
static be_dtype_t  weights;          /* BE_F32: as the checkpoint has them */


/* A model whose router likes a few experts much better than others. */

static model_dir_t *
skewed_open(const model_field_t *style, model_t **model)
{
    char          err[ERR_LEN], name[64];
    uint32_t      i;
    model_dir_t  *d;

    d = model_dir_open(style);
    model_dir_tensors(d);

    for (i = 1; i < LAYERS; i++) {
        snprintf(name, sizeof(name),
                 "model.layers.%u.mlp.gate.e_score_correction_bias", i);
        model_dir_find(d, name)->scale = 0.5;
    }

    model_dir_write(d);

    *model = model_open(d->path, err);
    if (*model == NULL) {
        fail_msg("%s", err);
    }

    return d;
}


static cli_ranks_t *
open_ranks(model_t *model, uint32_t ranks, uint32_t redundant, int alone,
    double interval)
{
    char                  err[ERR_LEN];
    cli_ranks_t          *r;
    cli_ranks_options_t   opt;

    memset(&opt, 0, sizeof(opt));
    opt.backend = "cpu";
    opt.compute = BE_F32;
    opt.weights = weights;
    opt.ranks = ranks;
    opt.threads = 1;
    opt.max_rows = CHUNK;
    opt.max_logits = CHUNK;
    opt.kv_blocks = 2;
    opt.timeout_ms = 60000;
    opt.redundant = redundant;
    opt.interval = interval;
    opt.alone = alone;

    r = cli_ranks_open(model, &opt, err);
    if (r == NULL) {
        fail_msg("%s", err);
    }

    return r;
}


/* CHUNK tokens from `done` on, each rank of a sequence of its own. */

static void
step(cli_ranks_t *r, uint32_t ranks, uint32_t done)
{
    char         err[ERR_LEN];
    rows_t      *rows;
    uint32_t     i, k;
    cli_step_t   s[RANKS];

    memset(s, 0, sizeof(s));

    for (i = 0; i < ranks; i++) {
        rows = &rows_of[i];

        for (k = 0; k < CHUNK; k++) {
            rows->id[k] = (int32_t) ((done + k) * 7 + i * 31 + done * done)
                          % VOCAB;
            rows->pos[k] = done + k;
            rows->seq[k] = 0;
            rows->want[k] = k;
        }

        rows->block[0] = 1;
        rows->block[1] = 0;
        rows->blocks[0] = rows->block;

        s[i].batch.n_rows = CHUNK;
        s[i].batch.id = rows->id;
        s[i].batch.pos = rows->pos;
        s[i].batch.seq = rows->seq;
        s[i].batch.n_seqs = 1;
        s[i].batch.blocks = rows->blocks;
        s[i].logit_row = rows->want;
        s[i].n_logits = CHUNK;
        s[i].logits = rows->logits;
    }

    if (cli_ranks_step(r, s, err) != 0) {
        fail_msg("%s", err);
    }
}


static void
reference(model_t *model)
{
    uint32_t      done;
    cli_ranks_t  *r;

    r = open_ranks(model, 1, 0, 0, 0);

    for (done = 0; done < TOKENS; done += CHUNK) {
        step(r, 1, done);
        memcpy(want[done], rows_of[0].logits, sizeof(rows_of[0].logits));
    }

    cli_ranks_close(r);
}


/* Any placement at all: every expert somewhere, some of them twice. */

static ep_map_t *
random_map(uint32_t ranks, uint32_t redundant, uint64_t *seed)
{
    char       err[ERR_LEN];
    uint8_t    has[RANKS][EXPERTS];
    uint32_t   i, e, r, count[RANKS], expert[RANKS * EXPERTS];
    ep_map_t  *map;

    memset(has, 0, sizeof(has));
    memset(count, 0, sizeof(count));

    for (i = 0; i < EXPERTS + redundant; i++) {
        do {
            r = (uint32_t) (random_next(seed) % ranks);
            e = i < EXPERTS ? i : (uint32_t) (random_next(seed) % EXPERTS);
        } while (has[r][e]);

        has[r][e] = 1;
        expert[r * EXPERTS + count[r]++] = e;
    }

    map = ep_map_make(EXPERTS, ranks, count, expert, EXPERTS, err);
    if (map == NULL) {
        fail_msg("%s", err);
    }

    return map;
}


/* Before every step, on all ranks and in each layer. */

static void
move_all(cli_ranks_t *r, uint32_t ranks, uint32_t redundant, uint64_t *seed)
{
    char           err[ERR_LEN];
    uint32_t       i, l;
    ep_map_t      *map;
    model_rank_t  *mr;
    model_place_t  place[RANKS];

    for (l = 1; l < LAYERS; l++) {
        map = random_map(ranks, redundant, seed);

        for (i = 0; i < ranks; i++) {
            mr = cli_ranks_rank(r, i);
            assert_int_equal(model_place_open(mr, mr->be, l, map, &place[i],
                                              err), 0);
        }

        for (i = 0; i < ranks; i++) {
            mr = cli_ranks_rank(r, i);
            model_place_swap(mr, l, &place[i]);
            model_place_close(mr, mr->be, l, &place[i]);
        }

        ep_map_close(map);
    }
}


static void
test_moved_each_step(void **state)
{
    int            alone;
    model_t       *model;
    uint64_t       seed;
    uint32_t       ranks, redundant, done, s;
    model_dir_t   *d;
    cli_ranks_t   *r;

    static const struct {
        const model_field_t  *style;
        be_dtype_t            weights;
    } kind[] = {
        { NULL, BE_F32 }, { model_dir_fp8, BE_F32 }, { NULL, BE_INT4 }
    };

    (void) state;

    seed = 1;

    for (s = 0; s < sizeof(kind) / sizeof(kind[0]); s++) {
        weights = kind[s].weights;
        d = skewed_open(kind[s].style, &model);
        reference(model);

        for (ranks = 1; ranks <= RANKS; ranks++) {
            for (redundant = 0; redundant <= 2 * (ranks - 1); redundant += 2) {
                for (alone = 0; alone < 2; alone++) {
                    r = open_ranks(model, ranks, redundant, alone, -1);

                    for (done = 0; done < TOKENS; done += CHUNK) {
                        move_all(r, ranks, redundant, &seed);
                        step(r, ranks, done);
                        assert_memory_equal(want[done], rows_of[0].logits,
                                            sizeof(rows_of[0].logits));
                    }

                    cli_ranks_close(r);
                }
            }
        }

        model_close(model);
        model_dir_close(d);
    }

    weights = BE_F32;
}


/* The most loaded rank over the mean, summed over layers, as placed now. */

static double
busiest(cli_ranks_t *r, uint32_t ranks, uint32_t redundant, double *published)
{
    double                 load[EXPERTS], all, max;
    uint32_t               i, l, e;
    uint64_t               sum[EXPERTS];
    ep_balance_t           b;
    const ep_placement_t  *p;

    b = (ep_balance_t) { EXPERTS, EXPERTS + redundant, 1, 1, ranks };
    *published = 0;
    max = 0;

    for (l = 1; l < LAYERS; l++) {
        memset(sum, 0, sizeof(sum));

        for (i = 0; i < ranks; i++) {
            model_expert_load(cli_ranks_rank(r, i), l, sum);
        }

        for (e = 0, all = 0; e < EXPERTS; e++) {
            load[e] = (double) sum[e];
            all += load[e];
        }

        p = ep_map_placement(cli_ranks_rank(r, 0)->layer[l].place.map);
        max += ep_balance_load(p, load, NULL) / all * ranks / (LAYERS - 1);
        *published += published_max(&b, load) / all * ranks / (LAYERS - 1);
    }

    return max;
}


/*
 * The balancer's own thread, as often as it can, while the same answer is
 * computed again and again.
 */

static void
test_balancer(void **state)
{
    int                     alone;
    double                  before, after, published;
    model_t                *model;
    uint64_t                moves;
    uint32_t                ranks, redundant, done, n, i;
    model_dir_t            *d;
    cli_ranks_t            *r;
    struct timespec         ts;
    model_balance_stats_t   st;

    (void) state;

    d = skewed_open(model_dir_fp8, &model);
    reference(model);

    for (ranks = 2; ranks <= RANKS; ranks++) {
        for (redundant = 0; redundant <= 2 * ranks;
             redundant += 2 * ranks)
        {
            alone = (redundant != 0) == (ranks == 2);

            /* where experts live before anything has moved */

            r = open_ranks(model, ranks, redundant, alone, 0);

            for (done = 0; done < TOKENS; done += CHUNK) {
                step(r, ranks, done);
            }

            before = busiest(r, ranks, redundant, &published);
            cli_ranks_close(r);

            r = open_ranks(model, ranks, redundant, alone, 0.001);
            moves = 0;

            for (n = 0; n < 2000 && (moves == 0 || n < 10); n++) {
                for (done = 0; done < TOKENS; done += CHUNK) {
                    step(r, ranks, done);
                    assert_memory_equal(want[done], rows_of[0].logits,
                                        sizeof(rows_of[0].logits));
                }

                /* the lowest priority may need a pause */

                ts.tv_sec = 0;
                ts.tv_nsec = 10000000;
                nanosleep(&ts, NULL);

                for (i = 0, moves = 0; i < ranks; i++) {
                    cli_ranks_load(r, i, &st);
                    moves += st.moves;
                    assert_true(st.load_max <= ranks * 1000);
                }
            }

            after = busiest(r, ranks, redundant, &published);
            cli_ranks_close(r);

            print_message("%u ranks, %2u redundant, %s: busiest over mean "
                          "%.3f -> %.3f (published %.3f), %u experts moved\n",
                          ranks, redundant, alone ? "alone " : "shared",
                          before, after, published, (uint32_t) moves);

            assert_true(moves > 0);
            assert_true(after < before);
        }
    }

    model_close(model);
    model_dir_close(d);
}


/* A place that is ready waits for a step, and none comes any more. */

static void
test_closed_while_ready(void **state)
{
    int               alone;
    model_t          *model;
    uint32_t          done;
    model_dir_t      *d;
    cli_ranks_t      *r;
    struct timespec   ts;

    (void) state;

    d = skewed_open(model_dir_fp8, &model);

    for (alone = 0; alone < 2; alone++) {
        r = open_ranks(model, 2, 4, alone, 0.001);

        for (done = 0; done < TOKENS; done += CHUNK) {
            step(r, 2, done);
        }

        ts.tv_sec = 0;
        ts.tv_nsec = 100000000;
        nanosleep(&ts, NULL);

        cli_ranks_close(r);
    }

    model_close(model);
    model_dir_close(d);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_moved_each_step),
        cmocka_unit_test(test_balancer),
        cmocka_unit_test(test_closed_while_ready),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
