/*
 * Plans of the latent attention on a device: every query meets every token
 * once, in order, and blocks of threads have equal work.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cuda/cu_mla.h"
#include "unit/random.h"


#define ROWS  512


typedef struct {
    uint32_t  at;                    /* tokens covered so far */
    uint32_t  stop;
    uint32_t  units;
    uint32_t  parts;                 /* seen */
    int32_t   part;                  /* the first */
} tile_t;


static cu_mla_group_t  group[ROWS];
static uint32_t        n_groups;
static tile_t          tile[ROWS * 8];


/* Groups of 1 … most rows, contexts up to `context`. */

static void
groups(uint64_t *seed, uint32_t rows, uint32_t most, uint32_t context,
    int first)
{
    uint32_t         row, n;
    cu_mla_group_t  *g;

    n_groups = 0;

    for (row = 0; row < rows; row += n) {
        n = 1 + (uint32_t) (random_next(seed) % most);
        n = n < rows - row ? n : rows - row;

        g = &group[n_groups++];
        g->row = row;
        g->rows = n;
        g->pos = (uint32_t) (random_next(seed) % context);
        g->first = first ? (uint32_t) (random_next(seed) % (g->pos + 1)) : 0;
        g->table = 100 * n_groups;
    }
}


static const cu_mla_group_t *
group_of(uint32_t row)
{
    uint32_t  i;

    for (i = 0; row >= group[i].row + group[i].rows; i++) {
        assert_true(i < n_groups);
    }

    return &group[i];
}


/* Units of a lane are in no order that matters but those of one tile. */

static void
covers(const cu_mla_plan_t *p)
{
    uint32_t                i, k, q, pass, tiles, from, to;
    tile_t                 *t;
    const cu_mla_unit_t    *u;
    const cu_mla_group_t   *g;
    const cu_mla_merge_t   *m;

    tiles = 0;
    memset(tile, 0, sizeof(tile));

    /* By their first tokens: the units of a tile need not be in order. */

    for (pass = 0; pass < p->n_units; pass++) {

        u = NULL;
        g = NULL;
        t = NULL;
        q = 0;

        for (i = 0; i < p->n_units; i++) {
            g = group_of(p->unit[i].query / p->heads);
            q = p->unit[i].query;
            t = &tile[(g->row * p->heads + 63) / 64 + 2 * g->row
                      + (q - g->row * p->heads) / 64];

            if (p->unit[i].begin == (t->units == 0
                                     ? p->unit[i].begin : t->at)
                && (t->units > 0 || p->unit[i].begin == g->first / 64 * 64)
                && t->stop != UINT32_MAX)
            {
                u = &p->unit[i];

                if (t->units > 0 && t->at == t->stop) {
                    u = NULL;
                    continue;
                }

                break;
            }
        }

        assert_non_null(u);

        from = q - g->row * p->heads;
        to = u->end - g->row * p->heads;
        assert_true(u->end > u->query && to <= g->rows * p->heads);
        assert_true(to - from <= p->gang * 64);
        assert_true(from % 64 == 0);
        assert_true(to % 64 == 0 || to == g->rows * p->heads);
        assert_int_equal(u->table, g->table);
        assert_int_equal(u->first, g->first);
        assert_int_equal(u->full, g->pos + from / p->heads + 1);
        assert_true(u->begin < u->stop);
        assert_true(u->begin % 64 == 0);

        t->stop = g->pos + (to - 1) / p->heads + 1;
        assert_true(u->stop <= t->stop);
        assert_true(u->stop == t->stop || (u->stop - u->begin) % 128 == 0
                    || (p->fixed && u->stop % CU_MLA_RUN == 0));

        if (u->part >= 0 && p->fixed) {
            assert_int_equal(u->begin / CU_MLA_RUN,
                             (u->stop - 1) / CU_MLA_RUN);
        }

        assert_true(u->part >= 0 || (t->units == 0 && u->stop == t->stop));

        if (u->part >= 0) {
            t->part = t->units == 0 ? u->part : t->part;
            assert_int_equal(u->part, t->part + (int) (t->units * p->gang));
        }

        t->at = u->stop;
        t->units++;
        t->parts += u->part >= 0;
        tiles += u->stop == t->stop;
    }

    /* Whole gangs: tiles of 64 queries of each group. */

    k = 0;

    for (i = 0; i < n_groups; i++) {
        k += (group[i].rows * p->heads + p->gang * 64 - 1) / (p->gang * 64);
    }

    assert_int_equal(tiles, k);

    for (i = 0; i < p->n_merge; i++) {
        m = &p->merge[i];
        g = group_of(m->query / p->heads);
        q = (m->query - g->row * p->heads) / 64;
        t = &tile[(g->row * p->heads + 63) / 64 + 2 * g->row
                  + q / p->gang * p->gang];
        assert_int_equal(m->parts, t->parts);
        assert_int_equal(m->stride, p->gang);
        assert_int_equal(m->part, t->part + (int) (q % p->gang));
        assert_true(m->part + (m->parts - 1) * m->stride < p->n_parts);
        assert_true(m->end - m->query <= 64);
    }

    assert_true(p->n_parts <= p->max_parts);
}


/* The fullest lane over the mean, in pairs of blocks and four for a unit. */

static double
skew(const cu_mla_plan_t *p)
{
    uint32_t  i, k;
    double    load, most, sum;

    most = 0;
    sum = 0;

    assert_int_equal(p->lane[0], 0);
    assert_int_equal(p->lane[p->lanes], p->n_units);

    for (i = 0; i < p->lanes; i++) {
        load = 0;

        for (k = p->lane[i]; k < p->lane[i + 1]; k++) {
            load += 2 + (p->unit[k].stop - p->unit[k].begin + 127) / 128;
        }

        sum += load;
        most = load > most ? load : most;
    }

    return most * p->lanes / sum;
}


static void
test_random(void **state)
{
    uint64_t       seed;
    uint32_t       i, heads, sms, rows;
    cu_mla_plan_t  p;

    static const uint32_t  some[] = { 1, 2, 16, 24, 64, 65, 100, 128, 300 };

    (void) state;
    seed = 7;

    for (i = 0; i < 400; i++) {
        heads = some[random_next(&seed) % 9];
        sms = 1 + (uint32_t) (random_next(&seed) % 140);
        rows = 1 + (uint32_t) (random_next(&seed) % 40);

        assert_int_equal(cu_mla_plan_open(&p, heads, sms, rows, (int) i % 2),
                         0);
        groups(&seed, rows, i % 3 == 0 ? 1 : 1 + i % 9,
               i % 5 == 0 ? 100 : 20000, i % 7 == 0);
        assert_int_equal(cu_mla_plan(&p, group, n_groups), 0);
        covers(&p);
        (void) skew(&p);
        cu_mla_plan_close(&p);
    }
}


/* V3's heads on 132 multiprocessors. */

static void
test_balance(void **state)
{
    uint64_t       seed;
    uint32_t       i, k;
    cu_mla_plan_t  p;

    static const struct {
        uint32_t  heads;
        uint32_t  rows;
        uint32_t  from;
        uint32_t  to;
        double    most;
    } c[] = {
        { 128, 128, 4096, 4097, 1.05 }, { 128, 128, 1000, 8000, 1.10 },
        { 128, 1, 30000, 30001, 1.15 }, { 128, 64, 100, 200, 1.10 },
        { 128, 7, 20000, 20001, 1.05 }, { 16, 128, 4096, 4097, 1.05 },
        { 16, 256, 1, 16000, 1.05 }, { 16, 8, 2048, 2049, 2.10 },
        { 64, 100, 500, 30000, 1.05 },
    };

    (void) state;
    seed = 3;

    for (i = 0; i < sizeof(c) / sizeof(c[0]); i++) {
        assert_int_equal(cu_mla_plan_open(&p, c[i].heads, 132, 512, 0), 0);

        for (k = 0; k < c[i].rows; k++) {
            group[k].row = k;
            group[k].rows = 1;
            group[k].pos = c[i].from
                           + (uint32_t) (random_next(&seed)
                                         % (c[i].to - c[i].from)) - 1;
            group[k].first = 0;
            group[k].table = 0;
        }

        n_groups = c[i].rows;
        assert_int_equal(cu_mla_plan(&p, group, n_groups), 0);
        covers(&p);

        if (skew(&p) > c[i].most) {
            fail_msg("%u heads, %u rows, %u - %u tokens: %.3f", c[i].heads,
                     c[i].rows, c[i].from, c[i].to, skew(&p));
        }

        cu_mla_plan_close(&p);
    }
}


/* More than there is room for, and what has no sense. */

static void
test_refused(void **state)
{
    cu_mla_plan_t  p;

    (void) state;

    assert_int_equal(cu_mla_plan_open(&p, 0, 132, 8, 0), -1);
    assert_int_equal(cu_mla_plan_open(&p, 128, 0, 8, 0), -1);
    assert_int_equal(cu_mla_plan_open(&p, 128, 132, 0, 0), -1);
    assert_int_equal(cu_mla_plan_open(&p, 1 << 20, 132, 1 << 20, 0), -1);

    assert_int_equal(cu_mla_plan_open(&p, 128, 132, 8, 0), 0);
    memset(group, 0, sizeof(group));
    group[0].rows = 9;
    assert_int_equal(cu_mla_plan(&p, group, 1), -1);
    group[0].rows = 8;
    assert_int_equal(cu_mla_plan(&p, group, 1), 0);
    assert_int_equal(cu_mla_plan(&p, group, 0), 0);
    assert_int_equal(p.n_units, 0);
    cu_mla_plan_close(&p);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_balance),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
