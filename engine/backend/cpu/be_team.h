/*
 * A team of threads: the caller, who leads, and helpers.  The leader
 * publishes a job of numbered items and works on it at once; helpers that
 * are awake join, and the leader waits only for those that did join.  So a
 * helper that the system does not run costs nothing, and a team larger than
 * the free cores still makes progress.
 *
 * Helpers spin a short while for the next job, then sleep on a futex; how
 * long they spin adapts.  One that finds itself on the leader's CPU has been
 * put in its place by the system and stays away for a while.  Which thread
 * takes which item is up to chance: an item's result must not depend on it.
 */

#ifndef BE_TEAM_H
#define BE_TEAM_H

#include <stdint.h>


typedef struct be_team_s  be_team_t;

/* One item; `worker` is 0 for the leader, less than the team's size. */
typedef void (*be_item_f)(void *ctx, uint32_t item, uint32_t worker);


/*
 * A team of `threads` (at least one) including the caller; `pin` is the CPU
 * of the leader, helpers get the ones after it, or -1.  NULL with the reason
 * in err (ERR_LEN).
 */
be_team_t *be_team_open(uint32_t threads, int pin, char *err);
void be_team_close(be_team_t *team);

uint32_t be_team_size(const be_team_t *team);

/*
 * Runs items 0 … n - 1.  `cost` is a rough time in ns of all of them on one
 * thread: little work is not worth waking anybody.
 */
void be_team_run(be_team_t *team, be_item_f item, void *ctx, uint32_t n,
    uint64_t cost);

#endif /* BE_TEAM_H */
