/*
 * The next step is prepared while one is computed.
 *
 * WHAT IS KNOWN.  A step does for each sequence what it was planned to do: so
 * many positions more, and a token if it gets that far.  A plan made meanwhile
 * counts that as done, though the token's id is not known yet: sequences get
 * their rows, and blocks for them, newcomers their rank.  Those that the step
 * ends for certain, by their length, have no part in it.  When the step is
 * done, ids are put into the rows (sched_batch()), and whoever has ended with
 * them, or was cancelled since, is left out.
 *
 * WHAT IS NOT.  Where the plan depends on what the step brings, it is given
 * up and made afterwards, as without all this:
 *
 *     guesses       how many are right says where a sequence stands
 *     preemption    who ends makes room, too, so perhaps nobody has to leave;
 *                   and the step still writes to a victim's blocks
 *     prefixes      a sequence waits for blocks that are being computed, and
 *                   could go on behind them; or those behind are on disk
 *
 * WHAT COMES MEANWHILE has the plan made again: nothing of it is final but
 * that newcomers were accepted, and blocks that were taken are for positions
 * that are computed next in any case.  So a request is in the next step still.
 *
 * WHAT IS KNOWN LATE.  Tokens are handed out when the next step is under way.
 * A stop string, or the lack of credit, shows only then: the sequence has a
 * row in that step, whose token is dropped, and its blocks stay its own until
 * the step is done.
 *
 * Answers do not depend on plans, so not on this either.
 */

#include "sched/sched_int.h"


void
sched_prepare(sched_t *s)
{
    s->preparing = 1;
    s->abandoned = 0;

    sched_share_out(s);

    s->preparing = 0;
    s->prepared = !s->abandoned;
}


/* The next step's rows: those prepared, or planned now.  1 if there are any. */

int
sched_next(sched_t *s)
{
    if (s->prepared) {
        s->prepared = 0;

        if (sched_batch(s)) {
            return 1;
        }
    }

    sched_deliver(s);

    return sched_plan(s);
}
