/*
 * A meeting of ranks by flags, as one of three ranks sees it: the words of all
 * are here, in memory of the host that the device reaches, so that one device
 * is enough and nothing depends on who is faster.
 */

#include <stdatomic.h>

#include <pthread.h>
#include <time.h>

#include "test_cuda_util.h"
#include "gpu_main.h"

#include "backend/cuda/cu_flags.h"


#define RANKS  3
#define SELF   1
#define PART   1
#define SHORT  ((uint64_t) 20000000)          /* ns; that is waited for, */
#define LONG   ((uint64_t) 100000000000)      /* and this is not */
#define NAP    50000000                       /* ns, of one who comes late */

typedef struct {
    const char  *name;
    uint32_t     count;              /* the last meeting's number */
    uint32_t     word[2];            /* of ranks 0 and 2 */
    uint32_t     stop;               /* 1: of its own part, 2: of the other */
    uint64_t     limit;

    uint32_t     sent;               /* then: to both, */
    uint32_t     stopped;
    uint32_t     late;
} meeting_t;

/* All in pinned memory. */

typedef struct {
    uint32_t  word[RANKS][RANKS];
    uint32_t  count;
    uint32_t  stop[2];
    uint32_t  late;
} words_t;


static _Atomic int  came;


static double
seconds(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}


static words_t *
words_make(cu_flags_t *f, uint64_t limit)
{
    uint32_t   i;
    words_t   *w;

    CU_OK(cudaMallocHost((void **) &w, sizeof(words_t)));
    memset(w, 0, sizeof(words_t));

    memset(f, 0, sizeof(cu_flags_t));
    f->ranks = RANKS;
    f->rank = SELF;

    for (i = 0; i < RANKS; i++) {
        f->flag[i] = w->word[i];
    }

    f->count = &w->count;
    f->part = PART;
    f->stop = w->stop;
    f->late = &w->late;
    f->limit = limit;

    return w;
}


static void
check(const meeting_t *m)
{
    double       from;
    uint32_t     i;
    words_t     *w;
    cu_flags_t   f;

    w = words_make(&f, m->limit);
    w->count = m->count;
    w->stop[PART] = (m->stop == 1);
    w->stop[!PART] = (m->stop == 2);
    w->word[SELF][0] = m->word[0];
    w->word[SELF][2] = m->word[1];

    from = seconds();
    CU_OK(cu_flags_meet(&f, NULL));
    CU_OK(cudaDeviceSynchronize());

    if (m->limit == SHORT && seconds() - from < (double) SHORT * 1e-9) {
        fail_msg("%s: it gives up at once", m->name);
    }

    if (w->count != m->count + 2 || w->stop[PART] != m->stopped
        || w->stop[!PART] != (m->stop == 2)
        || w->late != m->late || w->word[0][SELF] != m->sent
        || w->word[2][SELF] != m->sent)
    {
        fail_msg("%s: number %x, sent %x and %x, stop %u, late %x", m->name,
                 w->count, w->word[0][SELF], w->word[2][SELF], w->stop[PART],
                 w->late);
    }

    /* no others are touched */

    for (i = 0; i < RANKS; i++) {
        assert_int_equal(w->word[i][i], 0);
    }

    assert_int_equal(w->word[SELF][0], m->word[0]);
    assert_int_equal(w->word[SELF][2], m->word[1]);
    assert_true(seconds() - from < 30);

    CU_OK(cudaFreeHost(w));
}


static void
test_numbers(void **state)
{
    static const meeting_t  meetings[] = {
        { "all have come", 10, { 12, 12 }, 0, LONG, 12, 0, 0 },
        { "one is ahead", 10, { 12, 14 }, 0, LONG, 12, 0, 0 },
        { "one is late", 10, { 12, 10 }, 0, SHORT, 13, 1, 3 },
        { "another one", 10, { 10, 12 }, 0, SHORT, 13, 1, 1 },
        { "the first", 0, { 2, 2 }, 0, LONG, 2, 0, 0 },
        { "the first, late", 0, { 0, 2 }, 0, SHORT, 3, 1, 1 },
        { "the last", -4u, { -2u, 0 }, 0, LONG, -2u, 0, 0 },
        { "behind the last", -2u, { 0, 2 }, 0, LONG, 0, 0, 0 },
        { "behind it, late", -2u, { 0, -2u }, 0, SHORT, 1, 1, 3 }
    };
    uint32_t                i;

    (void) state;

    for (i = 0; i < sizeof(meetings) / sizeof(meetings[0]); i++) {
        check(&meetings[i]);
    }
}


/* Whoever has given up waits no more, nor do those whom it tells. */

static void
test_given_up(void **state)
{
    static const meeting_t  meetings[] = {
        { "told", 10, { 13, 10 }, 0, LONG, 13, 1, 1 | CU_FLAGS_OTHER },
        { "told by the last", 10, { 12, 13 }, 0, LONG, 13, 1,
          3 | CU_FLAGS_OTHER },
        { "told before", 10, { 10, 9 }, 0, LONG, 13, 1, 3 | CU_FLAGS_OTHER },
        { "told by one ahead", 10, { 10, 15 }, 0, LONG, 13, 1,
          3 | CU_FLAGS_OTHER },
        { "its own", 10, { 10, 10 }, 1, LONG, 13, 1, 0 },
        { "its own, all here", 10, { 12, 12 }, 1, LONG, 13, 1, 0 },
        { "of the other part", 10, { 12, 12 }, 2, LONG, 13, 1, 0 }
    };
    uint32_t                i;

    (void) state;

    for (i = 0; i < sizeof(meetings) / sizeof(meetings[0]); i++) {
        check(&meetings[i]);
    }
}


/* One after another, of which the second has nobody else. */

static void
test_row(void **state)
{
    double       from;
    uint32_t     i;
    words_t     *w;
    cu_flags_t   f;

    (void) state;

    w = words_make(&f, 10 * SHORT);
    w->word[SELF][0] = 2;
    w->word[SELF][2] = 2;
    from = seconds();

    for (i = 0; i < 100; i++) {
        CU_OK(cu_flags_meet(&f, NULL));
    }

    CU_OK(cudaDeviceSynchronize());

    assert_int_equal(w->count, 200);
    assert_int_equal(w->word[0][SELF], 201);
    assert_int_equal(w->word[2][SELF], 201);
    assert_int_equal(w->late, 1);

    /* the limit is waited for once */

    assert_true(seconds() - from < (double) SHORT * 10e-9 * 50);

    CU_OK(cudaFreeHost(w));
}


static void *
comes(void *arg)
{
    words_t          *w;
    struct timespec   ts;

    w = arg;
    ts.tv_sec = 0;
    ts.tv_nsec = NAP;
    nanosleep(&ts, NULL);

    atomic_store(&came, 1);
    __atomic_store_n(&w->word[SELF][0], 2, __ATOMIC_RELEASE);

    return NULL;
}


/* It is not over before all have come. */

static void
test_waits(void **state)
{
    words_t     *w;
    pthread_t    thread;
    cu_flags_t   f;

    (void) state;

    w = words_make(&f, LONG);
    w->word[SELF][2] = 2;

    CU_OK(cu_flags_meet(&f, NULL));
    assert_int_equal(pthread_create(&thread, NULL, comes, w), 0);
    CU_OK(cudaDeviceSynchronize());

    assert_int_equal(atomic_load(&came), 1);
    assert_int_equal(w->late, 0);
    assert_int_equal(w->stop[0] | w->stop[1], 0);

    pthread_join(thread, NULL);
    CU_OK(cudaFreeHost(w));
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_given_up),
        cmocka_unit_test(test_row),
        cmocka_unit_test(test_waits)
    };

    return GPU_MAIN(argc, argv, tests);
}
