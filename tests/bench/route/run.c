/*
 * Virtual time: who comes next, steps of all ranks, and what a run comes to.
 */

#include <stdio.h>
#include <stdlib.h>

#include "shim/ngx_shim.h"

#include "route.h"


static request_t *run_next(void);


route_run_t         sim;

static request_t  **events;          /* to come: a heap, the next first */
static uint32_t     n_events;


void
run_policy(int policy, result_t *out)
{
    double      now, sum, max, work, work_max;
    uint32_t    i, busy;
    request_t  *r;

    sim.policy = policy;
    run_start();

    for (i = 0; i < opt.talks; i++) {
        run_add(trace_request(&talks[i], 0, talks[i].begins));
    }

    for (now = STEP_MS, busy = 1; n_events != 0 || busy; now += STEP_MS) {

        while (n_events != 0 && events[0]->when < now) {
            r = run_next();
            shim_clock((uint64_t) r->when);
            rank_add(r);
        }

        shim_clock((uint64_t) now);
        sim.steps++;
        busy = 0;

        for (i = 0; i < opt.ranks; i++) {
            rank_step(i, now);
            busy |= sim.ranks[i].n_running + sim.ranks[i].n_waiting;
        }

        ours_publish();
    }

    sum = max = work = work_max = 0;

    for (i = 0; i < opt.ranks; i++) {
        sum += sim.ranks[i].in_flight;
        max = sim.ranks[i].in_flight > max ? sim.ranks[i].in_flight : max;
        work += sim.ranks[i].work;
        work_max = sim.ranks[i].work > work_max ? sim.ranks[i].work : work_max;
    }

    out->hit = sim.cached / sim.prompts;
    out->skew = max * opt.ranks / sum;
    out->work = work_max * opt.ranks / work;
    out->ttft = sim.first_ms / (double) sim.firsts;

    run_end();
}


void
run_start(void)
{
    uint32_t  i;

    trace_seed(opt.seed ^ 0x5eed);

    sim.cached = sim.prompts = sim.first_ms = 0;
    sim.firsts = sim.steps = sim.turns = 0;
    sim.ranks = calloc(opt.ranks, sizeof(*sim.ranks));
    events = calloc(opt.talks, sizeof(*events));

    if (sim.ranks == NULL || events == NULL) {
        fputs("no memory\n", stderr);
        exit(2);
    }

    for (i = 0; i < opt.ranks; i++) {
        sim.ranks[i].tail = &sim.ranks[i].waiting;
    }

    ours_open();
}


void
run_end(void)
{
    uint32_t  i;

    for (i = 0; i < opt.ranks; i++) {
        cache_free(&sim.ranks[i]);
    }

    ours_close();
    free(sim.ranks);
    free(events);
}


/* There is one event for a conversation at most. */

void
run_add(request_t *r)
{
    uint32_t  i, up;

    for (i = n_events++; i != 0; i = up) {
        up = (i - 1) / 2;

        if (events[up]->when <= r->when) {
            break;
        }

        events[i] = events[up];
    }

    events[i] = r;
}


static request_t *
run_next(void)
{
    uint32_t    i, down;
    request_t  *first, *last;

    first = events[0];
    last = events[--n_events];

    for (i = 0; 2 * i + 1 < n_events; i = down) {
        down = 2 * i + 1;

        if (down + 1 < n_events
            && events[down + 1]->when < events[down]->when)
        {
            down++;
        }

        if (events[down]->when >= last->when) {
            break;
        }

        events[i] = events[down];
    }

    events[i] = last;

    return first;
}
