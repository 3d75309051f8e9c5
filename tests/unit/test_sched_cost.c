/*
 * The estimate of a step's time, learnt from machines whose factors are known.
 */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "random.h"
#include "sched/sched_cost.h"


typedef struct {
    double  fixed;
    double  experts;
    double  row;
    double  logits;
    double  pair;
    double  read;
    double  touch;
} machine_t;


static uint64_t  rng;


static double
uniform(void)
{
    return (double) (random_next(&rng) >> 11) / 9007199254740992.0;
}


static double
truth(const machine_t *m, const sched_load_t *l, double all)
{
    return m->fixed + m->experts * (1 - pow(1 - m->touch, all))
           + m->row * l->rows + m->logits * l->logits + m->pair * l->pairs
           + m->read * l->reads;
}


/* Some answers, most of the time a chunk of prompt. */

static void
any_load(sched_load_t *l, uint32_t max_depth, int chunk)
{
    uint32_t  i, n, rows;

    memset(l, 0, sizeof(sched_load_t));

    n = chunk ? (uint32_t) (uniform() * 16) : 1 + (uint32_t) (uniform() * 16);

    for (i = 0; i < n; i++) {
        sched_load_add(l, (uint32_t) (uniform() * 1000), 1, 1);
    }

    rows = 1 + (uint32_t) (uniform() * 256);

    if (chunk) {
        sched_load_add(l, (uint32_t) (uniform() * max_depth), rows, 1);
    }
}


/* Within `limit` of the truth, for loads like those it has seen. */

static void
check(const sched_cost_t *c, const machine_t *m, uint32_t depth, double limit)
{
    double        t, g, worst;
    uint32_t      i;
    sched_load_t  l;

    for (worst = 0, i = 0; i < 400; i++) {
        any_load(&l, depth, i % 2);
        t = truth(m, &l, l.rows);
        g = sched_cost_time(c, &l, l.rows);
        worst = fabs(g / t - 1) > worst ? fabs(g / t - 1) : worst;
    }

    if (worst > limit) {
        fail_msg("off by %.3f", worst);
    }
}


static void
learn(sched_cost_t *c, const machine_t *m, uint32_t steps, uint32_t depth,
    double noise, int chunks)
{
    double        t;
    uint32_t      i;
    sched_load_t  l;

    for (i = 0; i < steps; i++) {
        any_load(&l, depth, chunks && uniform() < 0.7);
        t = truth(m, &l, l.rows) * (1 + noise * (2 * uniform() - 1));

        /* Now and then the machine does something else. */

        if (noise > 0 && uniform() < 0.03) {
            t *= 1 + 30 * uniform();
        }

        sched_cost_learn(c, &l, l.rows, t);
    }
}


static const machine_t  machines[] = {
    { 2000, 5000, 160, 60, 0.11, 0.8, 6.0 / 64 },
    { 500, 20000, 900, 10, 0.02, 0.1, 8.0 / 256 },
    { 9000, 0, 3, 40, 0.0002, 0.01, 0 },
    { 10, 3000, 1, 0, 0.00005, 0.00002, 8.0 / 256 },
    { 100, 0, 20000, 100, 30, 5, 0 }
};


static void
test_exact(void **state)
{
    uint32_t      i;
    sched_cost_t  c;

    (void) state;

    for (i = 0; i < sizeof(machines) / sizeof(machines[0]); i++) {
        rng = i;
        sched_cost_init(&c, machines[i].touch);
        learn(&c, &machines[i], 2000, 30000, 0, 1);
        check(&c, &machines[i], 30000, 0.15);
    }
}


static void
test_noise(void **state)
{
    uint32_t      i;
    sched_cost_t  c;

    (void) state;

    for (i = 0; i < sizeof(machines) / sizeof(machines[0]); i++) {
        rng = 10 + i;
        sched_cost_init(&c, machines[i].touch);
        learn(&c, &machines[i], 3000, 30000, 0.3, 1);
        check(&c, &machines[i], 30000, 0.35);
    }
}


/* The first step reads weights from a disk: that is forgotten at once. */

static void
test_cold(void **state)
{
    sched_cost_t  c;
    sched_load_t  l;

    (void) state;

    rng = 20;
    sched_cost_init(&c, machines[0].touch);
    any_load(&l, 100, 1);
    sched_cost_learn(&c, &l, l.rows, 1000 * truth(&machines[0], &l, l.rows));
    learn(&c, &machines[0], 60, 30000, 0, 1);
    check(&c, &machines[0], 30000, 0.3);
}


/* Long without prompts: what they cost is not lost. */

static void
test_memory(void **state)
{
    sched_cost_t  c;

    (void) state;

    rng = 30;
    sched_cost_init(&c, machines[1].touch);
    learn(&c, &machines[1], 1000, 30000, 0.1, 1);
    learn(&c, &machines[1], 20000, 30000, 0.1, 0);
    check(&c, &machines[1], 30000, 0.5);
}


/* Another machine: the old one is forgotten. */

static void
test_change(void **state)
{
    sched_cost_t  c;

    (void) state;

    rng = 40;
    sched_cost_init(&c, machines[0].touch);
    learn(&c, &machines[0], 1000, 30000, 0.1, 1);
    learn(&c, &machines[4], 3000, 30000, 0.1, 1);
    check(&c, &machines[4], 30000, 0.3);
}


/* No factor below zero, whatever the times are. */

static void
test_nonsense(void **state)
{
    uint32_t      i, j;
    sched_cost_t  c;
    sched_load_t  l;

    (void) state;

    rng = 50;
    sched_cost_init(&c, 0.1);

    for (i = 0; i < 5000; i++) {
        any_load(&l, 160000, i % 3 == 0);
        sched_cost_learn(&c, &l, l.rows, i % 7 == 0 ? 0
                         : exp(uniform() * 40 - 10));

        for (j = 0; j < SCHED_COST_TERMS; j++) {
            assert_true(isfinite(c.factor[j]) && c.factor[j] >= 0);
        }
    }
}


/* The most rows that fit, and not one more. */

static void
test_rows(void **state)
{
    double        us;
    uint32_t      i, n, pos;
    sched_cost_t  c;
    sched_load_t  l, m;

    (void) state;

    rng = 60;
    sched_cost_init(&c, 0.05);

    for (i = 0; i < 3000; i++) {
        any_load(&l, 1000, 0);
        pos = (uint32_t) (uniform() * 50000);
        us = sched_cost_time(&c, &l, l.rows) * (0.5 + 4 * uniform());

        n = sched_cost_rows(&c, &l, l.rows, pos, 300, us);
        assert_true(n <= 300);

        m = l;
        sched_load_add(&m, pos, n, 0);
        assert_true(n == 0 || sched_cost_time(&c, &m, m.rows) <= us);

        m = l;
        sched_load_add(&m, pos, n + 1, 0);
        assert_true(n == 300 || sched_cost_time(&c, &m, m.rows) > us);
    }
}


/* A prompt's time is that of its chunks, one after the other. */

static void
test_prompt(void **state)
{
    double        sum, t;
    uint32_t      i, from, to, pos, n;
    sched_cost_t  c;
    sched_load_t  l;

    (void) state;

    rng = 70;
    sched_cost_init(&c, 0.1);
    assert_true(sched_cost_prompt(&c, 100, 100, 256) <= 0);

    for (i = 0; i < 200; i++) {
        from = (uint32_t) (uniform() * 5000);
        to = from + 500 + (uint32_t) (uniform() * 5000);

        for (sum = 0, pos = from; pos < to; pos += n) {
            n = to - pos < 256 ? to - pos : 256;
            memset(&l, 0, sizeof(l));
            sched_load_add(&l, pos, n, pos + n == to);
            sum += sched_cost_time(&c, &l, n);
        }

        t = sched_cost_prompt(&c, from, to, 256);
        assert_true(fabs(t / sum - 1) < 0.1);
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_cold),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_change),
        cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_prompt)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
