/*
 * Ways to choose a rank.
 */

#include "route.h"


static uint32_t policy_oracle(request_t *r);


uint32_t
policy_choose(request_t *r)
{
    switch (sim.policy) {

    case RANDOM:
        return (uint32_t) (trace_unit() * opt.ranks);

    case ROUND_ROBIN:
        return (uint32_t) (sim.turns++ % opt.ranks);

    case OURS:
        return ours_choose(r);

    case ORACLE:
        return policy_oracle(r);
    }

    return policy_least();
}


uint32_t
policy_least(void)
{
    uint32_t  i, k, best;

    best = (uint32_t) (sim.turns++ % opt.ranks);

    for (k = 0, i = best; k < opt.ranks; k++, i = (i + 1) % opt.ranks) {
        if (sim.ranks[i].n_running + sim.ranks[i].n_waiting
            < sim.ranks[best].n_running + sim.ranks[best].n_waiting)
        {
            best = i;
        }
    }

    return best;
}


static uint32_t
policy_oracle(request_t *r)
{
    double    mean;
    uint32_t  i, load, depth, best, best_depth, best_load;

    mean = 0;

    for (i = 0; i < opt.ranks; i++) {
        mean += (double) (sim.ranks[i].n_running + sim.ranks[i].n_waiting)
                / opt.ranks;
    }

    best = 0;
    best_depth = 0;
    best_load = UINT32_MAX;

    for (i = 0; i < opt.ranks; i++) {
        load = sim.ranks[i].n_running + sim.ranks[i].n_waiting;

        if (load > 1.25 * mean) {
            continue;
        }

        depth = cache_depth(&sim.ranks[i], r);

        if (best_load == UINT32_MAX || depth > best_depth
            || (depth == best_depth && load < best_load))
        {
            best = i;
            best_depth = depth;
            best_load = load;
        }
    }

    return best;
}
