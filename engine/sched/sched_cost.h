/*
 * How long a step takes: an estimate, learnt from the steps that were done.
 *
 *     time  =  fixed
 *            + experts · 1 - (1 - touch)^(rows of all ranks)
 *            + row     · rows
 *            + logits  · rows of logits
 *            + pair    · (row, position) pairs of attention
 *            + read    · positions of KV that are read
 *
 * of the rank for which that is longest.  The second term are the weights of
 * experts, read once however many rows use them: `touch` is the share of them
 * that one row uses.  A sequence's KV is read once however many rows it has in
 * the step, so many small chunks of a long prompt cost more than a large one.
 *
 * The six factors come from least squares over the relative errors of the
 * steps done, older ones counting less, none below zero.  What the steps do
 * not tell apart (a server that saw no long prompt for a day) stays near what
 * it was.  Outliers are steps that took too long; as errors are relative to
 * the time measured, they hardly count.  At first the proportions are those
 * of a small CPU, scaled by the first step.
 *
 * Results never depend on it: it only shapes plans.  Not locked: the step
 * thread's.
 */

#ifndef SCHED_SCHED_COST_H
#define SCHED_SCHED_COST_H

#include <stdint.h>


#define SCHED_COST_TERMS  6

/* What one rank has to do in a step. */

typedef struct {
    double  rows;
    double  logits;
    double  pairs;
    double  reads;
} sched_load_t;

typedef struct {
    double    touch;
    uint64_t  steps;                 /* learnt from */
    double    factor[SCHED_COST_TERMS];      /* µs per unit */
    double    base[SCHED_COST_TERMS];        /* where they would rather be */
    double    a[SCHED_COST_TERMS][SCHED_COST_TERMS];
    double    b[SCHED_COST_TERMS];
} sched_cost_t;


/* `touch`: 0 if there are no experts. */
void sched_cost_init(sched_cost_t *c, double touch);

/* Adds `rows` of one sequence, the first at position `pos`. */
void sched_load_add(sched_load_t *load, uint32_t pos, uint32_t rows,
    uint32_t logits);

/* Estimated µs; `all_rows` are those of all ranks. */
double sched_cost_time(const sched_cost_t *c, const sched_load_t *load,
    double all_rows);

/* Estimated µs that `load` adds to a step that is done anyway. */
double sched_cost_part(const sched_cost_t *c, const sched_load_t *load);

/*
 * The most rows, up to `max`, that a sequence at position `pos` can have
 * beside `load` within `us`; `all_rows` are those of all ranks without them.
 */
uint32_t sched_cost_rows(const sched_cost_t *c, const sched_load_t *load,
    double all_rows, uint32_t pos, uint32_t max, double us);

/*
 * Estimated µs to compute positions [from, to) in chunks of `chunk` rows, with
 * nothing beside them.
 */
double sched_cost_prompt(const sched_cost_t *c, uint32_t from, uint32_t to,
    uint32_t chunk);

/* A step of that load took `us`. */
void sched_cost_learn(sched_cost_t *c, const sched_load_t *load,
    double all_rows, double us);

#endif /* SCHED_SCHED_COST_H */
