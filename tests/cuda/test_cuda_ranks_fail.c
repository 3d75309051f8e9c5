/*
 * Recorded steps of several ranks, in emulation: where a rank fails, leaves or
 * does not come, on one device or on devices of their own, the step ends with
 * words on all ranks, and in time; what can be told is not waited for.
 */

#include "cuda/rank_steps.h"


#define LIMIT  (1000 * SLOWER)       /* ms, of who waits for nothing */


typedef int (*combine_pt)(ep_exchange_t *ex, char *err);
typedef int (*give_pt)(ep_exchange_t *ex, uint32_t part, char *err);


static combine_pt  the_combine;
static give_pt     the_give;


static void
nap(uint32_t ms)
{
    struct timespec  ts;

    ts.tv_sec = ms / 1000;
    ts.tv_nsec = (long) (ms % 1000) * 1000000;
    nanosleep(&ts, NULL);
}


static int
leaves(rank_t *r)
{
    r->ex->abort(r->ex);
    snprintf(r->err, ERR_LEN, "it left");

    return -1;
}


static int
combine_less(ep_exchange_t *ex, char *err)
{
    ex->abort(ex);

    return the_combine(ex, err);
}


/* Leaves in the midst of a layer. */

static int
breaks(rank_t *r)
{
    the_combine = r->ex->combine;
    r->ex->combine = combine_less;

    return 0;
}


static int
give_less(ep_exchange_t *ex, uint32_t part, char *err)
{
    ex->abort(ex);

    return the_give(ex, part, err);
}


/* The same, of a micro-batch. */

static int
gives_up(rank_t *r)
{
    the_give = r->ex->give;
    r->ex->give = give_less;

    return 0;
}


/* A meeting has the limit twice. */

static int
late(rank_t *r)
{
    (void) r;
    nap(3 * LIMIT);

    return 0;
}


static void
sleeps(void *data)
{
    (void) data;
    nap(2 * LIMIT);
}


static int
stuck(rank_t *r)
{
    return cudaLaunchHostFunc(((be_cuda_t *) r->be)->stream, sleeps, NULL) != 0;
}


/* Before a step that others begin. */

static int
broken(rank_t *r)
{
    be_cuda_fail((be_cuda_t *) r->be, "it is broken");

    return 0;
}


static int
end_broken(be_t *be, char *err)
{
    be_cuda_fail((be_cuda_t *) be, "it is broken");

    return be_cuda_end(be, err);
}


/* When it is to be launched, */

static int
broken_end(rank_t *r)
{
    r->be->end = end_broken;

    return 0;
}


static int
end_late(be_t *be, char *err)
{
    nap(LIMIT / 2);

    return be_cuda_end(be, err);
}


/* which others have not begun. */

static int
late_end(rank_t *r)
{
    r->be->end = end_late;

    return 0;
}


static int
no_kernel(rank_t *r)
{
    (void) r;
    emu_fail_launch(30);

    return 0;
}


static int
no_graph(rank_t *r)
{
    (void) r;
    emu_fail_graph(1);

    return 0;
}


/*
 * All ranks end with words, in time, in that step; `word` is in those of so
 * many at least.
 */

static void
ends(const way_t *way, uint32_t least, const char *word)
{
    uint32_t          i, said;
    uint64_t          recorded[RANKS], replayed[RANKS];
    struct timespec   from, to;
    static rank_t     r[RANKS];
    static result_t   got;

    clock_gettime(CLOCK_MONOTONIC, &from);
    compute(way, &got, r, recorded, replayed);
    clock_gettime(CLOCK_MONOTONIC, &to);

    emu_fail_launch(0);
    emu_fail_graph(0);
    said = 0;

    for (i = 0; i < way->ranks; i++) {
        print_message("%s: rank %u: %s\n", way->name, i, r[i].err);
        said += strstr(r[i].err, word) != NULL;

        if (r[i].rc == 0 || r[i].steps != way->at || r[i].open
            || r[i].err[0] == '\0')
        {
            fail_msg("%s: rank %u goes on after step %u: %d, %u, %d",
                     way->name, i, way->at, r[i].rc, r[i].steps, r[i].open);
        }
    }

    if (said < least) {
        fail_msg("%s: %u ranks say \"%s\"", way->name, said, word);
    }

    assert_true(to.tv_sec - from.tv_sec < WAIT / 2000);
}


static void
test_shared(void **state)
{
    static const way_t  ways[] = {
        { "leaves", 3, 1, 0, 1, 0, STEPS, KEPT, WAIT, leaves, REPLAY },
        { "breaks", 3, 1, 0, 1, 0, STEPS, KEPT, WAIT, breaks, RECORD },
        { "late", 3, 1, 0, 1, 0, STEPS, KEPT, LIMIT, late, REPLAY },
        { "broken", 3, 1, 0, 1, 0, STEPS, KEPT, WAIT, broken, REPLAY },
        { "no kernel", 3, 1, 0, 1, 0, STEPS, KEPT, WAIT, no_kernel, RECORD },
        { "no recording", 3, 1, 0, 1, 0, STEPS, KEPT, WAIT, no_graph, RECORD },
        { "no graph", 3, 1, 0, 1, 0, STEPS, KEPT, WAIT, no_graph, REPLAY }
    };

    (void) state;

    ends(&ways[0], 2, "rank 2 left the exchange");
    ends(&ways[1], 3, "rank 2 left the exchange");
    ends(&ways[2], 3, "ms from rank 2");
    ends(&ways[3], 3, "it is broken");
    ends(&ways[4], 3, "too many resources");
    ends(&ways[5], 3, "a recorded step");
    ends(&ways[6], 3, "a recorded step");
}


static void
test_apart(void **state)
{
    static const way_t  ways[] = {
        { "leaves, apart", 3, 3, 0, 1, 0, STEPS, KEPT, WAIT, leaves, REPLAY },
        { "breaks, apart", 3, 3, 0, 1, 0, STEPS, KEPT, WAIT, breaks, RECORD },
        { "late, apart", 3, 3, 0, 1, 0, STEPS, KEPT, LIMIT, late, REPLAY },
        { "stuck, apart", 3, 3, 0, 1, 0, STEPS, KEPT, LIMIT, stuck, REPLAY },
        { "broken, apart", 3, 3, 0, 1, 0, STEPS, KEPT, WAIT, broken, REPLAY },
        { "broken end, apart", 3, 3, 0, 1, 0, STEPS, KEPT, WAIT, broken_end,
          REPLAY, late_end },
        { "no kernel, apart", 3, 3, 0, 1, 0, STEPS, KEPT, WAIT, no_kernel,
          RECORD },
        { "no recording, apart", 3, 3, 0, 1, 0, STEPS, KEPT, LIMIT, no_graph,
          RECORD },
        { "no graph, apart", 3, 3, 0, 1, 0, STEPS, KEPT, LIMIT, no_graph,
          REPLAY }
    };

    (void) state;

    ends(&ways[0], 2, "rank 2 left the exchange");
    ends(&ways[1], 3, "rank 2 left the exchange");
    ends(&ways[2], 3, "ms from rank 2");
    ends(&ways[3], 1, "ms from rank 2 in a recorded step");
    ends(&ways[4], 3, "it is broken");
    ends(&ways[5], 3, "it is broken");
    ends(&ways[6], 3, "too many resources");

    /* others may have begun to wait, and tell each other that they give up */

    ends(&ways[7], 2, "a recorded step");
    ends(&ways[8], 2, "a recorded step");
}


/* In two micro-batches, whose exchange goes on a stream of its own. */

static void
test_micro(void **state)
{
    static const way_t  ways[] = {
        { "breaks, halves", 3, 3, 0, 1, 1, STEPS, KEPT, WAIT, gives_up,
          RECORD },
        { "stuck, halves", 3, 3, 0, 1, 1, STEPS, KEPT, LIMIT, stuck, REPLAY },
        { "no kernel, halves", 3, 3, 0, 1, 1, STEPS, KEPT, WAIT, no_kernel,
          RECORD },
        { "late, halves, one device", 3, 1, 0, 1, 1, STEPS, KEPT, LIMIT, late,
          REPLAY }
    };

    (void) state;

    ends(&ways[0], 3, "rank 2 left the exchange");
    ends(&ways[1], 1, "ms from rank 2 in a recorded step");
    ends(&ways[2], 3, "too many resources");
    ends(&ways[3], 3, "ms from rank 2");
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_apart),
        cmocka_unit_test(test_micro)
    };

    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }

    return cmocka_run_group_tests(tests, setup, teardown);
}
