/*
 * Recorded steps of several ranks, in emulation: a talk of uneven steps, with
 * guesses, gives the same bits with 1, 2 and 4 ranks, on one device and on
 * devices of their own, as it does where nothing is recorded; and steps were
 * replayed indeed.  So it does where steps go in two micro-batches.
 */

#include "cuda/rank_steps.h"


static result_t  the_talk;           /* by one rank that records nothing */
static int       the_talk_known;


/* A way against that without recordings. */

static void
same(const way_t *way, const result_t *want, uint64_t least)
{
    uint32_t          i, n, s;
    uint64_t          recorded[RANKS], replayed[RANKS];
    static rank_t     r[RANKS];
    static result_t   got;

    compute(way, &got, r, recorded, replayed);

    for (i = 0; i < way->ranks; i++) {
        if (r[i].rc != 0) {
            fail_msg("%s: rank %u: %s", way->name, i, r[i].err);
        }

        if (recorded[i] != recorded[0] || replayed[i] != replayed[0]
            || replayed[i] < least || (least == 0 && recorded[i] != 0))
        {
            fail_msg("%s: rank %u: %u steps recorded, %u replayed; rank 0: "
                     "%u and %u", way->name, i, (uint32_t) recorded[i],
                     (uint32_t) replayed[i], (uint32_t) recorded[0],
                     (uint32_t) replayed[0]);
        }

        assert_int_equal(r[i].open, 0);
        assert_true(r[i].splits >= (way->micro != 0 ? 4 : 0));
    }

    for (n = 0; n < way->steps; n++) {
        for (s = 0; s < SEQS; s++) {
            if (memcmp(want->step[n][s], got.step[n][s],
                       sizeof(got.step[n][s]))
                != 0)
            {
                fail_msg("%s: step %u: logits of sequence %u differ",
                         way->name, n, s);
            }

            for (i = 0; i < (way->mtp ? PASSES : 0); i++) {
                if (memcmp(want->draft[n][i][s], got.draft[n][i][s],
                           sizeof(got.draft[n][i][s]))
                    != 0)
                {
                    fail_msg("%s: step %u: guesses %u of sequence %u differ",
                             way->name, n, i, s);
                }
            }
        }
    }

    print_message("%s: %u steps recorded, %u replayed\n", way->name,
                  (uint32_t) recorded[0], (uint32_t) replayed[0]);
}


static void
reference(const way_t *way, result_t *want)
{
    uint32_t        i;
    uint64_t        recorded[RANKS], replayed[RANKS];
    static rank_t   r[RANKS];

    compute(way, want, r, recorded, replayed);

    for (i = 0; i < way->ranks; i++) {
        if (r[i].rc != 0) {
            fail_msg("%s: rank %u: %s", way->name, i, r[i].err);
        }

        assert_int_equal(recorded[i], 0);
    }
}


static const result_t *
talk(void)
{
    static const way_t  way = {
        .name = "nothing recorded", .ranks = 1, .devices = 1, .mtp = 1,
        .exact = 1, .steps = MOST, .forget = EACH
    };

    if (!the_talk_known) {
        reference(&way, &the_talk);
        the_talk_known = 1;
    }

    return &the_talk;
}


static void
test_guesses(void **state)
{
    static const way_t  ways[] = {
        { "one rank", 1, 1, 1, 1, 0, MOST, KEPT, 0, NULL, 0 },
        { "two ranks, one device", 2, 1, 1, 1, 0, MOST, KEPT, WAIT, NULL, 0 },
        { "two ranks, two devices", 2, 2, 1, 1, 0, MOST, KEPT, WAIT, NULL, 0 }
    };
    uint32_t            i;

    (void) state;

    for (i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        same(&ways[i], talk(), MOST * 5 / 6);
    }
}


static void
test_four(void **state)
{
    static const way_t  ways[] = {
        { "four ranks, one device", 4, 1, 0, 1, 0, MOST, KEPT, WAIT, NULL, 0 },
        { "four ranks, four devices", 4, 4, 0, 1, 0, MOST, KEPT, WAIT, NULL,
          0 }
    };

    (void) state;

    same(&ways[0], talk(), MOST / 4);
    same(&ways[1], talk(), MOST / 4);
}


/* Ranks of which some share a device are as they were. */

static void
test_mixed(void **state)
{
    static const way_t  way = {
        "three ranks, two devices", 3, 2, 0, 1, 0, 10, KEPT, WAIT, NULL, 0
    };

    (void) state;

    same(&way, talk(), 0);
}


/* Contributions in BF16: the same where nothing is recorded. */

static void
test_rounded(void **state)
{
    static result_t     want;
    static const way_t  none = {
        "rounded, nothing recorded", 2, 1, 0, 0, 0, 9, EACH, WAIT, NULL, 0
    };
    static const way_t  ways[] = {
        { "rounded, one device", 2, 1, 0, 0, 0, 9, KEPT, WAIT, NULL, 0 },
        { "rounded, two devices", 2, 2, 0, 0, 0, 9, KEPT, WAIT, NULL, 0 }
    };

    (void) state;

    reference(&none, &want);
    same(&ways[0], &want, 3);
    same(&ways[1], &want, 3);
}


/* What all forget, or one alone, nobody replays. */

static void
test_forget(void **state)
{
    static const way_t  ways[] = {
        { "forgotten, one device", 2, 1, 0, 1, 0, 12, SOME, WAIT, NULL, 0 },
        { "forgotten, two devices", 2, 2, 0, 1, 0, 12, SOME, WAIT, NULL, 0 }
    };

    (void) state;

    same(&ways[0], talk(), 2);
    same(&ways[1], talk(), 2);
}


/* Of every step, and of those of four rows and more. */

static void
test_micro(void **state)
{
    static const way_t  ways[] = {
        { "halves, two devices", 2, 2, 0, 1, 1, MOST, KEPT, WAIT, NULL, 0 },
        { "halves, four devices", 4, 4, 1, 1, 1, MOST, KEPT, WAIT, NULL, 0 },
        { "large halves, two devices", 2, 2, 0, 1, 4, MOST, KEPT, WAIT, NULL,
          0 }
    };
    uint32_t            i;

    (void) state;

    for (i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        same(&ways[i], talk(), 3);
    }
}


static void
test_micro_plain(void **state)
{
    static result_t     want;
    static const way_t  none = {
        "rounded, nothing recorded", 2, 1, 0, 0, 0, 9, EACH, WAIT, NULL, 0
    };
    static const way_t  ways[] = {
        { "halves, one device", 2, 1, 0, 1, 1, MOST, KEPT, WAIT, NULL, 0 },
        { "halves, three ranks, two devices", 3, 2, 0, 1, 1, 10, KEPT, WAIT,
          NULL, 0 },
        { "halves, nothing recorded", 2, 2, 1, 1, 1, 9, EACH, WAIT, NULL, 0 },
        { "halves, rounded, one device", 2, 1, 0, 0, 1, 9, KEPT, WAIT, NULL,
          0 }
    };

    (void) state;

    same(&ways[0], talk(), 0);
    same(&ways[1], talk(), 0);
    same(&ways[2], talk(), 0);

    reference(&none, &want);
    same(&ways[3], &want, 0);
}


/* In graphs, too, what goes home is rounded but once. */

static void
test_micro_rounded(void **state)
{
    static result_t     want;
    static const way_t  none = {
        "rounded, nothing recorded", 2, 1, 0, 0, 0, 9, EACH, WAIT, NULL, 0
    };
    static const way_t  way = {
        "halves, rounded, two devices", 2, 2, 0, 0, 1, 9, KEPT, WAIT, NULL, 0
    };

    (void) state;

    reference(&none, &want);
    same(&way, &want, 3);
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_guesses),
        cmocka_unit_test(test_four),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_rounded),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_micro),
        cmocka_unit_test(test_micro_plain),
        cmocka_unit_test(test_micro_rounded)
    };

    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }

    return cmocka_run_group_tests(tests, setup, teardown);
}
