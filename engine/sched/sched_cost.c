/*
 * The estimate of a step's time.
 */

#include "sched/sched_cost.h"

#include <math.h>
#include <string.h>


#define COST_DECAY    0.996          /* of what was learnt, per step */
#define COST_ANCHOR   0.02           /* weight of the base, in steps */
#define COST_FOLLOW   (1.0 / 256)    /* of the base, per step */
#define COST_WARMUP   16             /* steps in which the scale is sought */
#define COST_SWEEPS   12
#define COST_LIMIT    1000.0         /* of a factor, in bases */


static void cost_terms(const sched_cost_t *c, const sched_load_t *load,
    double all_rows, double *x);
static double cost_sum(const double *factor, const double *x);
static void cost_solve(sched_cost_t *c);
static void cost_follow(sched_cost_t *c);


/* µs of a model of 130M parameters on two cores; only proportions matter. */

static const double  cost_start[SCHED_COST_TERMS] = {
    2000, 5000, 160, 60, 0.11, 0.8
};


void
sched_cost_init(sched_cost_t *c, double touch)
{
    memset(c, 0, sizeof(sched_cost_t));

    c->touch = touch;
    memcpy(c->factor, cost_start, sizeof(cost_start));
    memcpy(c->base, cost_start, sizeof(cost_start));
}


void
sched_load_add(sched_load_t *load, uint32_t pos, uint32_t rows,
    uint32_t logits)
{
    if (rows == 0) {
        return;
    }

    load->rows += rows;
    load->logits += logits;
    load->pairs += (double) rows * pos + (double) rows * (rows + 1.0) / 2;
    load->reads += (double) pos + rows;
}


static void
cost_terms(const sched_cost_t *c, const sched_load_t *load, double all_rows,
    double *x)
{
    x[0] = 1;
    x[1] = c->touch > 0 ? 1 - pow(1 - c->touch, all_rows) : 0;
    x[2] = load->rows;
    x[3] = load->logits;
    x[4] = load->pairs;
    x[5] = load->reads;
}


static double
cost_sum(const double *factor, const double *x)
{
    double    sum;
    uint32_t  i;

    sum = 0;

    for (i = 0; i < SCHED_COST_TERMS; i++) {
        sum += factor[i] * x[i];
    }

    return sum;
}


double
sched_cost_time(const sched_cost_t *c, const sched_load_t *load,
    double all_rows)
{
    double  x[SCHED_COST_TERMS];

    cost_terms(c, load, all_rows, x);

    return cost_sum(c->factor, x);
}


double
sched_cost_part(const sched_cost_t *c, const sched_load_t *load)
{
    double  x[SCHED_COST_TERMS];

    cost_terms(c, load, 0, x);
    x[0] = 0;

    return cost_sum(c->factor, x);
}


/* The time rises with the rows, so that halving finds the most. */

uint32_t
sched_cost_rows(const sched_cost_t *c, const sched_load_t *load,
    double all_rows, uint32_t pos, uint32_t max, double us)
{
    uint32_t      lo, hi, mid;
    sched_load_t  l;

    lo = 0;
    hi = max;

    while (lo < hi) {
        mid = lo + (hi - lo + 1) / 2;
        l = *load;
        sched_load_add(&l, pos, mid, 0);

        if (sched_cost_time(c, &l, all_rows + mid) <= us) {
            lo = mid;
        } else {
            hi = mid - 1;
        }
    }

    return lo;
}


double
sched_cost_prompt(const sched_cost_t *c, uint32_t from, uint32_t to,
    uint32_t chunk)
{
    double        steps;
    sched_load_t  l;

    if (to <= from) {
        return 0;
    }

    memset(&l, 0, sizeof(l));
    sched_load_add(&l, from, to - from, 1);

    steps = ceil((double) (to - from) / chunk);

    /* KV is read by each of the steps, and half of it is there on average. */

    l.reads = steps * ((double) from + to) / 2;

    return sched_cost_time(c, &l, chunk)
           + (steps - 1) * (c->factor[0] + c->factor[1]);
}


/*
 * Minimises, over the factors f, the sum of (1 - f x / us)² of the steps and
 * of COST_ANCHOR (1 - f / base)² for each factor.
 */

void
sched_cost_learn(sched_cost_t *c, const sched_load_t *load, double all_rows,
    double us)
{
    double    x[SCHED_COST_TERMS], scale;
    uint32_t  i, j;

    if (!(us > 0)) {
        return;                      /* a clock that stands still */
    }

    cost_terms(c, load, all_rows, x);

    /*
     * The first step may have read the weights from a disk, so the scale may
     * still fall for a while; that it rises is learnt like all else.
     */

    scale = us / cost_sum(c->base, x);

    if (c->steps == 0 || (c->steps < COST_WARMUP && scale < 0.5)) {
        for (i = 0; i < SCHED_COST_TERMS; i++) {
            c->base[i] *= scale;
            c->factor[i] = c->base[i];
        }
    }

    c->steps++;

    for (i = 0; i < SCHED_COST_TERMS; i++) {
        x[i] /= us;
    }

    for (i = 0; i < SCHED_COST_TERMS; i++) {
        c->b[i] = c->b[i] * COST_DECAY + x[i];

        for (j = 0; j < SCHED_COST_TERMS; j++) {
            c->a[i][j] = c->a[i][j] * COST_DECAY + x[i] * x[j];
        }
    }

    cost_solve(c);
    cost_follow(c);
}


/* One factor after the other, in units of its base, from where they are. */

static void
cost_solve(sched_cost_t *c)
{
    double    m, v, f;
    uint32_t  i, j, sweep;

    for (sweep = 0; sweep < COST_SWEEPS; sweep++) {
        for (i = 0; i < SCHED_COST_TERMS; i++) {

            v = c->b[i] * c->base[i] + COST_ANCHOR;
            m = c->a[i][i] * c->base[i] * c->base[i] + COST_ANCHOR;

            for (j = 0; j < SCHED_COST_TERMS; j++) {
                if (j != i) {
                    v -= c->a[i][j] * c->base[i] * c->factor[j];
                }
            }

            f = v / m;
            f = f < 0 ? 0 : f;
            f = f > COST_LIMIT ? COST_LIMIT : f;

            c->factor[i] = f * c->base[i];
        }
    }
}


/* A base stays above nothing, or its factor could never leave it again. */

static void
cost_follow(sched_cost_t *c)
{
    double    least, scale;
    uint32_t  i;

    scale = 0;

    for (i = 0; i < SCHED_COST_TERMS; i++) {
        scale += c->base[i] / cost_start[i] / SCHED_COST_TERMS;
    }

    for (i = 0; i < SCHED_COST_TERMS; i++) {
        c->base[i] += (c->factor[i] - c->base[i]) * COST_FOLLOW;

        least = cost_start[i] * scale / 100;
        c->base[i] = c->base[i] < least ? least : c->base[i];
    }
}
