/*
 * How many tokens to guess, by what it has brought.
 *
 * Guessing costs the drafting layer and the rows of wrong guesses, and pays
 * with steps that need not be made.  Which is more depends on the model, on
 * what it writes and on how many sequences share a step.  So for each power of
 * two of those, tokens per time are measured for each depth, 0 (off) to
 * `speculate`, and the best is used.  A depth is measured over SCHED_TRIAL
 * steps that have no prompts and follow a step of the same depth.  Now and
 * then another depth is tried again, seldomer the longer none was better.
 *
 * While nothing is guessed the drafting layer is not computed at all, so that
 * off costs nothing; sequences that run when it is taken up again guess from
 * what has come since, a little worse than those that begin then.
 *
 * Results do not depend on it, so it may look at the clock.
 */

#include "sched/sched_int.h"


#define SCHED_TRIAL      16          /* steps */
#define SCHED_PAUSE      256         /* steps between trials, at first */
#define SCHED_PAUSE_MAX  16384


static sched_size_t *sched_depth_size(sched_t *s, uint32_t n);
static uint32_t sched_depth_best(const sched_t *s, const sched_size_t *z);
static void sched_depth_end(sched_t *s, sched_size_t *z);


/* Before the plan of a step in which up to `n` sequences answer. */

void
sched_depth_choose(sched_t *s, uint32_t n)
{
    sched_size_t  *z;

    s->last_depth = s->run.depth;

    if (s->opt.speculate == 0 || s->opt.speculate_always) {
        s->depth = s->opt.speculate;
        return;
    }

    z = sched_depth_size(s, n);
    s->depth = z->depth;
}


/* A step in which `n` sequences answered made `tokens` in `us`. */

void
sched_depth_learn(sched_t *s, uint32_t n, uint32_t tokens, uint64_t us)
{
    sched_size_t  *z;

    if (n == 0 || s->opt.speculate == 0 || s->opt.speculate_always
        || s->run.depth != s->run.last_depth)
    {
        return;
    }

    z = sched_depth_size(s, n);

    if (z->depth != s->run.depth) {
        return;                      /* fewer answered than was thought */
    }

    z->steps++;
    z->tokens += tokens;
    z->us += (double) us;

    if (z->steps == SCHED_TRIAL) {
        sched_depth_end(s, z);
    }
}


static sched_size_t *
sched_depth_size(sched_t *s, uint32_t n)
{
    uint32_t       i;
    sched_size_t  *z;

    for (i = 0; i + 1 < SCHED_SIZES && n > 1; n = (n + 1) / 2) {
        i++;
    }

    z = &s->size[i];

    if (!z->known) {
        z->known = 1;
        z->depth = s->opt.speculate;
        z->pause = SCHED_PAUSE;
    }

    return z;
}


/* So many steps of one depth are done: what next? */

static void
sched_depth_end(sched_t *s, sched_size_t *z)
{
    int       tried;
    double    speed;
    uint32_t  best, n;

    speed = z->tokens / (z->us > 1 ? z->us : 1);
    tried = (z->depth != z->best);

    z->speed[z->depth] = z->speed[z->depth] == 0
                         ? speed : (z->speed[z->depth] + speed) / 2;
    z->steps = 0;
    z->tokens = 0;
    z->us = 0;

    if (z->depth > 0 && z->speed[z->depth - 1] == 0) {
        z->depth--;                  /* all are tried once, from the deepest */
        z->best = z->depth;
        return;
    }

    best = sched_depth_best(s, z);

    if (tried) {
        z->pause = best == z->best ? z->pause * 2 : SCHED_PAUSE;
        z->pause = z->pause < SCHED_PAUSE_MAX ? z->pause : SCHED_PAUSE_MAX;
        z->waited = 0;
    }

    z->best = best;
    z->depth = best;

    z->waited += SCHED_TRIAL;

    if (z->waited > z->pause) {
        n = s->opt.speculate + 1;
        z->next = (z->next + 1) % n;
        z->next = z->next == best ? (z->next + 1) % n : z->next;
        z->depth = z->next;
    }
}


static uint32_t
sched_depth_best(const sched_t *s, const sched_size_t *z)
{
    uint32_t  i, best;

    for (best = 0, i = 1; i <= s->opt.speculate; i++) {
        best = z->speed[i] > z->speed[best] ? i : best;
    }

    return best;
}
