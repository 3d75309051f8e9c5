/*
 * The thread team of the CPU backend: every item once, whatever the number
 * of threads and the load, and its exponential function.
 */

#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "test_be_util.h"
#include "backend/cpu/be_team.h"


typedef struct {
    uint32_t          n;
    uint32_t          size;
    _Atomic uint32_t  done[4096];
    uint64_t          plain[4096];
    uint32_t          nap;
} team_job_t;


static team_job_t  job;


static void
team_item(void *ctx, uint32_t item, uint32_t worker)
{
    team_job_t  *j;

    j = ctx;

    if (item >= j->n || worker >= j->size) {
        abort();
    }

    if (j->nap != 0 && item % 64 == 5) {
        usleep(j->nap);
    }

    atomic_fetch_add(&j->done[item], 1);
    j->plain[item] += item;
}


/* Items are done when the call returns, and seen by the caller. */

static void
team_rounds(uint32_t threads, uint32_t rounds, uint32_t nap)
{
    char        err[ERR_LEN];
    uint32_t    i, r, n;
    be_team_t  *team;

    team = be_team_open(threads, -1, err);
    assert_non_null(team);
    assert_int_equal(be_team_size(team), threads);

    job.size = threads;
    job.nap = nap;

    for (r = 0; r < rounds; r++) {
        n = (r * 37) % (r % 16 == 0 ? 4096 : 40);
        job.n = n;

        for (i = 0; i < n; i++) {
            atomic_store(&job.done[i], 0);
            job.plain[i] = r;
        }

        be_team_run(team, team_item, &job, n, (r % 3) * 40000);

        for (i = 0; i < n; i++) {
            assert_int_equal(atomic_load(&job.done[i]), 1);
            assert_int_equal(job.plain[i], (uint64_t) r + i);
        }

        if (r % 500 == 499) {
            usleep(300);             /* let the helpers fall asleep */
        }
    }

    be_team_close(team);
}


static void
test_team(void **state)
{
    (void) state;

    team_rounds(1, 1000, 0);
    team_rounds(2, 5000, 0);
    team_rounds(3, 5000, 0);
    team_rounds(16, 1000, 0);
    team_rounds(4, 60, 200);
}


static void
leader_item(void *ctx, uint32_t item, uint32_t worker)
{
    team_item(ctx, item, worker);

    if (worker != 0) {
        abort();
    }
}


/* With one CPU for all of them helpers stay away. */

static void
test_team_crowded(void **state)
{
    char        err[ERR_LEN];
    uint32_t    i, r;
    cpu_set_t   was, one;
    be_team_t  *team;

    (void) state;

    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    assert_int_equal(sched_getaffinity(0, sizeof(was), &was), 0);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);

    team = be_team_open(3, -1, err);
    assert_non_null(team);

    job.size = 3;
    job.nap = 2000;
    job.n = 128;

    for (r = 0; r < 40; r++) {
        for (i = 0; i < job.n; i++) {
            atomic_store(&job.done[i], 0);
        }

        be_team_run(team, leader_item, &job, job.n, 1000000);

        for (i = 0; i < job.n; i++) {
            assert_int_equal(atomic_load(&job.done[i]), 1);
        }
    }

    be_team_close(team);
    assert_int_equal(sched_setaffinity(0, sizeof(was), &was), 0);
}


static void
test_team_open(void **state)
{
    int         i;
    char        err[ERR_LEN];
    be_team_t  *team;

    (void) state;

    assert_null(be_team_open(0, -1, err));
    assert_null(be_team_open(100000, -1, err));

    for (i = 0; i < 200; i++) {
        team = be_team_open(1 + i % 4, i % 3 - 1, err);
        assert_non_null(team);
        be_team_close(team);
    }
}


/*
 * The exponential function, through SiLU and the softmax: at most two units
 * in the last place over its range, exact at the ends.
 */

static void
test_exp(void **state)
{
    be_t                    *be;
    float                    s[BE_BLOCK], p[BE_BLOCK], max, sum, r, one, y;
    double                   e;
    uint32_t                 i, n;
    const char *const       *path;
    const be_kernels_t      *k;

    (void) state;

    for (path = be_test_paths(); *path != NULL; path++) {
        k = &be_kernels_generic;

#if defined(__x86_64__)
        k = strcmp(*path, "avx2") == 0 ? &be_kernels_avx2
          : strcmp(*path, "avx512") == 0 ? &be_kernels_avx512
          : strcmp(*path, "avx512bf16") == 0 ? &be_kernels_avx512bf16
          : strcmp(*path, "amx") == 0 ? &be_kernels_amx : k;
#endif
        be = be_test_open(*path, BE_F32, 1);
        be->close(be);

        for (n = 0; n < 3000; n++) {
            for (i = 0; i < BE_BLOCK; i++) {
                s[i] = -87.3f * (float) (n * BE_BLOCK + i)
                       / (3000 * BE_BLOCK);
            }

            s[0] = 0.0f;
            max = -INFINITY;
            sum = 0;
            r = k->mode[BE_F32].softmax(s, BE_BLOCK, 1.0f, &max, &sum, p);

            assert_true(r == 0.0f && max == 0.0f && p[0] == 1.0f);

            for (i = 1; i < BE_BLOCK; i++) {
                e = exp((double) s[i]);
                one = nextafterf((float) e, INFINITY) - (float) e;
                assert_true(fabs(p[i] - e) <= 2.0 * one);
            }
        }

        s[0] = -200.0f;
        s[1] = 0.0f;
        s[2] = -INFINITY;
        max = -INFINITY;
        sum = 0;
        (void) k->mode[BE_F32].softmax(s, 3, 1.0f, &max, &sum, p);
        assert_true(p[0] == 0.0f && p[1] == 1.0f && p[2] == 0.0f);
        assert_true(sum == 1.0f);

        for (i = 3; i < BE_BLOCK; i++) {
            assert_true(p[i] == 0.0f);
        }

        /* SiLU far out: the number itself, or zero. */

        s[0] = 100.0f;
        s[1] = -100.0f;
        s[2] = NAN;
        p[0] = p[1] = p[2] = 1.0f;
        k->swiglu(s, p, 3, p);
        assert_true(p[0] == 100.0f && fabsf(p[1]) < 1e-35f && isnan(p[2]));

        for (n = 0; n < 2000; n++) {
            s[0] = -20.0f + 0.02f * (float) n;
            p[0] = 1.0f;
            k->swiglu(s, p, 1, &y);
            e = s[0] / (1 + exp(-(double) s[0]));
            assert_true(fabs(y - e) <= fabs(e) * 5e-7);
        }
    }
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_team),
        cmocka_unit_test(test_team_crowded),
        cmocka_unit_test(test_team_open),
        cmocka_unit_test(test_exp)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
