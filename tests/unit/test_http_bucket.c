/*
 * Buckets without an nginx: rates, the rule against a plain model under random
 * use, the bounds that are promised, memory that runs out, workers that die.
 */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "shim/ngx_shim.h"
#include "ngx_http_llm_bucket.h"

#include "unit/random.h"


#define KEYS   7
#define HELD   64

typedef struct {
    ngx_slab_pool_t         pool;
    ngx_http_llm_buckets_t  zone;
} fixture_t;

/* What is held of a key, as a plain model has it. */

typedef struct {
    ngx_http_llm_bucket_limit_t  limit;
    __int128                     excess;
    uint64_t                     last;
    uint64_t                     used;     /* since the start */
    uint64_t                     start;
} model_t;

typedef struct {
    ngx_http_llm_hold_t         *hold;
    unsigned                     key;
    uint64_t                     n;
} held_t;


static uint64_t  random_state;


static uint64_t
random_below(uint64_t n)
{
    return random_next(&random_state) % n;
}


static void
start(fixture_t *f, size_t memory)
{
    memset(f, 0, sizeof(*f));
    shim_slab_start(memory);
    shim_clock(1000000);

    ngx_pid = getpid();
    ngx_process_slot = 3;
    f->zone.shpool = &f->pool;

    assert_int_equal(ngx_http_llm_buckets_init(&f->zone), NGX_OK);
}


static ngx_str_t
str(const char *s)
{
    ngx_str_t  v;

    v.data = (u_char *) s;
    v.len = strlen(s);

    return v;
}


static ngx_int_t
take(fixture_t *f, const char *name, uint64_t rate, uint64_t burst,
    uint64_t n, ngx_http_llm_hold_t **hold)
{
    ngx_str_t                    key;
    ngx_http_llm_bucket_state_t  state;
    ngx_http_llm_bucket_limit_t  limit;

    key = str(name);
    limit.rate = rate;
    limit.burst = burst;

    return ngx_http_llm_bucket_reserve(&f->zone, 0, &key, &limit, n, &state,
                                       hold);
}


/* How much is left, by asking for nothing. */

static uint64_t
left(fixture_t *f, const char *name, uint64_t rate, uint64_t burst)
{
    ngx_str_t                    key;
    ngx_http_llm_hold_t         *hold;
    ngx_http_llm_bucket_state_t  state;
    ngx_http_llm_bucket_limit_t  limit;

    key = str(name);
    limit.rate = rate;
    limit.burst = burst;

    if (ngx_http_llm_bucket_reserve(&f->zone, 0, &key, &limit, 0, &state,
                                    &hold)
        == NGX_OK)
    {
        ngx_http_llm_bucket_settle(&f->zone, hold, 0);
    }

    return state.remaining;
}


static void
rates(void **unused)
{
    unsigned                     i;
    uint64_t                     n;
    ngx_str_t                    s;
    ngx_http_llm_bucket_limit_t  limit;

    static const char *bad[] = {
        "", "t/s", "1", "1t", "1t/", "1t/h", "1r/s", "1/s", "1t\\s", "0t/s",
        "-1t/s", "+1t/s", " 1t/s", "1 t/s", "1.5t/s", "1e3t/s", "1t/sx",
        "1000000000001t/s", "18446744073709551617t/m"
    };

    (void) unused;

    s = str("1t/m");
    assert_int_equal(ngx_http_llm_bucket_rate(&s, 't', &limit), NGX_OK);
    assert_int_equal(limit.rate, 1);
    assert_int_equal(limit.burst, 1);

    s = str("500r/s");
    assert_int_equal(ngx_http_llm_bucket_rate(&s, 'r', &limit), NGX_OK);
    assert_int_equal(limit.rate, 500 * 60);
    assert_int_equal(limit.burst, 500);

    s = str("1000000000000t/s");
    assert_int_equal(ngx_http_llm_bucket_rate(&s, 't', &limit), NGX_OK);
    assert_int_equal(limit.rate, UINT64_C(60000000000000));

    for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        s = str(bad[i]);
        assert_int_equal(ngx_http_llm_bucket_rate(&s, 't', &limit),
                         NGX_ERROR);
    }

    s = str("1000000000000");
    assert_int_equal(ngx_http_llm_bucket_number(&s, &n), NGX_OK);
    assert_int_equal(n, UINT64_C(1000000000000));
    s = str("1000000000001");
    assert_int_equal(ngx_http_llm_bucket_number(&s, &n), NGX_ERROR);
    s = str("0");
    assert_int_equal(ngx_http_llm_bucket_number(&s, &n), NGX_ERROR);
}


static void
rule(void **unused)
{
    fixture_t                    f;
    ngx_str_t                    key;
    ngx_http_llm_hold_t         *a, *b, *c;
    ngx_http_llm_bucket_state_t  state;
    ngx_http_llm_bucket_limit_t  limit;

    (void) unused;
    start(&f, 1 << 20);

    key = str("k");
    limit.rate = 60;                       /* a token each millisecond */
    limit.burst = 100;

    assert_int_equal(ngx_http_llm_bucket_reserve(&f.zone, 0, &key, &limit, 60,
                                                 &state, &a), NGX_OK);
    assert_int_equal(state.limit, 100);
    assert_int_equal(state.remaining, 40);
    assert_int_equal(state.reset, 60000);
    assert_int_equal(state.wait, 0);

    assert_int_equal(ngx_http_llm_bucket_reserve(&f.zone, 0, &key, &limit, 41,
                                                 &state, &b), NGX_BUSY);
    assert_null(b);
    assert_int_equal(state.remaining, 40);
    assert_int_equal(state.wait, 1000);

    assert_int_equal(ngx_http_llm_bucket_reserve(&f.zone, 0, &key, &limit,
                                                 101, &state, &b),
                     NGX_DECLINED);
    assert_true(state.wait == UINT64_MAX);

    /* Another kind of the same key is another bucket. */

    assert_int_equal(ngx_http_llm_bucket_reserve(&f.zone, 1, &key, &limit,
                                                 100, &state, &b), NGX_OK);
    ngx_http_llm_bucket_settle(&f.zone, b, 0);

    /* One millisecond before and when the time has come. */

    shim_clock(1000999);
    assert_int_equal(ngx_http_llm_bucket_reserve(&f.zone, 0, &key, &limit, 41,
                                                 &state, &b), NGX_BUSY);
    assert_int_equal(state.wait, 1);
    shim_clock(1001000);
    assert_int_equal(ngx_http_llm_bucket_reserve(&f.zone, 0, &key, &limit, 41,
                                                 &state, &b), NGX_OK);
    assert_int_equal(state.remaining, 0);

    /* What was not used comes back, and no more than all. */

    ngx_http_llm_bucket_settle(&f.zone, a, 10);
    assert_int_equal(left(&f, "k", 60, 100), 50);
    ngx_http_llm_bucket_settle(&f.zone, b, 0);
    assert_int_equal(left(&f, "k", 60, 100), 91);
    assert_int_equal(take(&f, "k", 60, 100, 91, &a), NGX_OK);
    shim_clock(2000000);
    ngx_http_llm_bucket_settle(&f.zone, a, 0);
    assert_int_equal(left(&f, "k", 60, 100), 100);

    /* More than was reserved is a debt. */

    assert_int_equal(take(&f, "k", 60, 100, 1, &a), NGX_OK);
    ngx_http_llm_bucket_settle(&f.zone, a, 250);
    assert_int_equal(left(&f, "k", 60, 100), 0);
    assert_int_equal(ngx_http_llm_bucket_reserve(&f.zone, 0, &key, &limit, 1,
                                                 &state, &a), NGX_BUSY);
    assert_int_equal(state.wait, 151000);
    assert_int_equal(state.reset, 250000);
    shim_clock(2000000 + 151000);
    assert_int_equal(take(&f, "k", 60, 100, 1, &a), NGX_OK);

    /* A clock that seems to go back, as another worker's may. */

    shim_clock(2000000);
    assert_int_equal(left(&f, "k", 60, 100), 0);
    shim_clock(2000000 + 151001);
    assert_int_equal(left(&f, "k", 60, 100), 0);
    shim_clock(2000000 + 152000);
    assert_int_equal(left(&f, "k", 60, 100), 1);
    ngx_http_llm_bucket_settle(&f.zone, a, 1);

    /* Nothing flows out of what counts what runs at once. */

    assert_int_equal(take(&f, "c", 0, 2, 1, &a), NGX_OK);
    assert_int_equal(take(&f, "c", 0, 2, 1, &b), NGX_OK);
    shim_clock(9000000000);
    assert_int_equal(take(&f, "c", 0, 2, 1, &c), NGX_BUSY);
    ngx_http_llm_bucket_settle(&f.zone, a, 0);
    assert_int_equal(take(&f, "c", 0, 2, 1, &c), NGX_OK);
    ngx_http_llm_bucket_settle(&f.zone, b, 0);
    ngx_http_llm_bucket_settle(&f.zone, c, 0);

    /* Another rate counts from when it is known. */

    assert_int_equal(take(&f, "r", 60, 100, 100, &a), NGX_OK);
    shim_clock(9000000000 + 10000);
    assert_int_equal(left(&f, "r", 600, 100), 10);
    shim_clock(9000000000 + 11000);
    assert_int_equal(left(&f, "r", 600, 100), 20);
    ngx_http_llm_bucket_settle(&f.zone, a, 100);

    /* The largest numbers do not overflow. */

    assert_int_equal(take(&f, "big", UINT64_C(60000000000000),
                          NGX_HTTP_LLM_RATE_MAX, NGX_HTTP_LLM_RATE_MAX, &a),
                     NGX_OK);
    ngx_http_llm_bucket_settle(&f.zone, a, UINT64_MAX);
    assert_int_equal(left(&f, "big", 1, NGX_HTTP_LLM_RATE_MAX), 0);
    shim_clock(UINT64_MAX / 4);
    assert_int_equal(left(&f, "big", 1, NGX_HTTP_LLM_RATE_MAX),
                     NGX_HTTP_LLM_RATE_MAX);
}


static void
model_flow(model_t *m, uint64_t now)
{
    m->excess -= (__int128) m->limit.rate * (now - m->last);
    m->excess = m->excess < 0 ? 0 : m->excess;
    m->last = now;
}


/*
 * Random use of several keys against the model; `over` lets answers be longer
 * than what was reserved.
 */

static void
random_use(uint64_t seed, int over)
{
    int                          ok;
    char                         name[KEYS][2];
    held_t                       held[HELD];
    model_t                      model[KEYS], *m;
    unsigned                     i, step, n_held;
    uint64_t                     now, n, used, cap, debt[KEYS];
    __int128                     may;
    ngx_int_t                    rc;
    ngx_str_t                    key;
    fixture_t                    f;
    ngx_http_llm_hold_t         *hold;
    ngx_http_llm_bucket_state_t  state;

    random_state = seed;
    start(&f, 1 << 20);
    now = 1000000;
    n_held = 0;
    cap = 400;

    for (i = 0; i < KEYS; i++) {
        memset(&model[i], 0, sizeof(model[i]));
        name[i][0] = 'a' + i;
        name[i][1] = '\0';
        model[i].limit.rate = 1 + random_below(100) * (i % 3 == 0 ? 1 : 60);
        model[i].limit.burst = 1 + random_below(300);
        model[i].last = now;
        model[i].start = now;
        debt[i] = 0;
    }

    for (step = 0; step < 20000; step++) {

        if (random_below(3) == 0) {
            now += random_below(random_below(50) == 0 ? 100000 : 200);
            shim_clock(now);
        }

        if (n_held == HELD || (n_held != 0 && random_below(2) == 0)) {
            i = random_below(n_held);
            m = &model[held[i].key];
            n = held[i].n;

            used = random_below(over ? cap + 1 : n + 1);

            model_flow(m, now);
            m->excess += ((__int128) used - n) * NGX_HTTP_LLM_UNIT;
            m->excess = m->excess < 0 ? 0 : m->excess;
            m->used += used;

            if (used > n) {
                debt[held[i].key] += used - n;
            }

            ngx_http_llm_bucket_settle(&f.zone, held[i].hold, used);
            held[i] = held[--n_held];
            continue;
        }

        i = random_below(KEYS);
        m = &model[i];
        n = random_below(m->limit.burst + m->limit.burst / 8 + 2);
        key = str(name[i]);

        model_flow(m, now);
        ok = m->excess + (__int128) n * NGX_HTTP_LLM_UNIT
             <= (__int128) m->limit.burst * NGX_HTTP_LLM_UNIT;

        rc = ngx_http_llm_bucket_reserve(&f.zone, 0, &key, &m->limit, n,
                                         &state, &hold);

        assert_int_equal(rc, ok ? NGX_OK
                             : n > m->limit.burst ? NGX_DECLINED : NGX_BUSY);

        if (ok) {
            m->excess += (__int128) n * NGX_HTTP_LLM_UNIT;
            held[n_held].hold = hold;
            held[n_held].key = i;
            held[n_held].n = n;
            n_held++;
        }

        may = (__int128) m->limit.burst * NGX_HTTP_LLM_UNIT - m->excess;
        assert_int_equal(state.remaining,
                         may > 0 ? (uint64_t) (may / NGX_HTTP_LLM_UNIT) : 0);
        assert_true((__int128) state.reset * m->limit.rate >= m->excess);

        /* What was used, of all time, and what each debt adds to it. */

        may = (__int128) m->limit.rate * (now - m->start)
              + (__int128) m->limit.burst * NGX_HTTP_LLM_UNIT;

        assert_true((__int128) m->used * NGX_HTTP_LLM_UNIT
                    <= may + (__int128) debt[i] * NGX_HTTP_LLM_UNIT);

        if (!over) {
            assert_true((__int128) m->used * NGX_HTTP_LLM_UNIT <= may);
        }
    }

    while (n_held != 0) {
        ngx_http_llm_bucket_settle(&f.zone, held[--n_held].hold, 0);
    }
}


static void
random_within(void **unused)
{
    unsigned  i;

    (void) unused;

    for (i = 0; i < 10; i++) {
        random_use(i, 0);
    }
}


static void
random_over(void **unused)
{
    unsigned  i;

    (void) unused;

    for (i = 0; i < 10; i++) {
        random_use(100 + i, 1);
    }
}


/*
 * The bound of reserve=N: however long the answers, up to a cap, what is used
 * exceeds rate * time + burst by at most (cap - N) for each that is under way.
 */

static void
overshoot(void **unused)
{
    uint64_t              now, used, n, cap, rate, burst;
    unsigned              i, streams, most, round;
    fixture_t             f;
    ngx_http_llm_hold_t  *held[256];

    (void) unused;

    for (round = 0; round < 200; round++) {
        random_state = round;
        start(&f, 1 << 20);

        now = 1000000;
        rate = 1 + random_below(2000);
        n = 1 + random_below(50);
        cap = n + random_below(500);
        burst = n + random_below(1000);
        streams = 0;
        most = 0;
        used = 0;

        for (i = 0; i < 2000; i++) {

            now += random_below(40);
            shim_clock(now);

            if (streams < 256
                && take(&f, "k", rate, burst, n, &held[streams]) == NGX_OK)
            {
                streams++;
                most = ngx_max(most, streams);
            }

            if (streams != 0 && random_below(4) == 0) {
                used += cap;
                ngx_http_llm_bucket_settle(&f.zone, held[--streams], cap);
            }

            assert_true((used + streams * n) * NGX_HTTP_LLM_UNIT
                        <= rate * (now - 1000000)
                           + (burst + most * (cap - n)) * NGX_HTTP_LLM_UNIT);
        }

        while (streams != 0) {
            ngx_http_llm_bucket_settle(&f.zone, held[--streams], cap);
        }
    }
}


static void
memory(void **unused)
{
    char                  name[32];
    unsigned              i, n;
    fixture_t             f;
    ngx_http_llm_hold_t  *hold, *kept, *all[400];

    (void) unused;

    /* Empty ones make room by themselves: no more than a few are kept. */

    start(&f, 1 << 20);

    for (i = 0; i < 1000; i++) {
        snprintf(name, sizeof(name), "u%u", i);
        shim_clock(1000000 + i * 1000);
        assert_int_equal(take(&f, name, 60, 100, 100, &hold), NGX_OK);
        ngx_http_llm_bucket_settle(&f.zone, hold, 1);
    }

    assert_true(shim_slab_used < 2000);

    /* Without room the least recently used goes, but not what is held. */

    start(&f, 16384);
    assert_int_equal(take(&f, "kept", 1, 100, 100, &kept), NGX_OK);
    n = 0;

    for (i = 0; i < 1000; i++) {
        snprintf(name, sizeof(name), "u%u", i);
        assert_int_equal(take(&f, name, 1, 100, 100, &hold), NGX_OK);
        ngx_http_llm_bucket_settle(&f.zone, hold, 100);
        assert_int_equal(left(&f, "kept", 1, 100), 0);

        /* The one used just before is still known. */

        if (i != 0) {
            snprintf(name, sizeof(name), "u%u", i - 1);
            n += left(&f, name, 1, 100) == 0;
        }
    }

    assert_int_equal(n, 999);
    ngx_http_llm_bucket_settle(&f.zone, kept, 100);

    /* Where all is held there is no more. */

    start(&f, 8192);

    for (n = 0; n < 400; n++) {
        snprintf(name, sizeof(name), "u%u", n);

        if (take(&f, name, 1, 100, 100, &all[n]) != NGX_OK) {
            break;
        }
    }

    assert_true(n > 10 && n < 400);
    assert_int_equal(take(&f, name, 1, 100, 100, &hold), NGX_ERROR);
    assert_null(hold);

    for (i = 0; i < n; i++) {
        ngx_http_llm_bucket_settle(&f.zone, all[i], 0);
    }

    assert_int_equal(take(&f, name, 1, 100, 100, &hold), NGX_OK);
    ngx_http_llm_bucket_settle(&f.zone, hold, 0);
}


/* A process that has ended and was waited for. */

static ngx_pid_t
gone(void)
{
    pid_t  pid;

    pid = fork();
    assert_true(pid >= 0);

    if (pid == 0) {
        _exit(0);
    }

    assert_int_equal(waitpid(pid, NULL, 0), pid);

    return pid;
}


static void
death(void **unused)
{
    fixture_t                f;
    ngx_pid_t                own;
    ngx_http_llm_hold_t     *a, *b, *c;
    ngx_http_llm_buckets_t   other;

    (void) unused;
    start(&f, 1 << 20);
    own = ngx_pid;

    /* A worker in slot 5 dies with two requests, one of which has run. */

    other = f.zone;
    ngx_pid = gone();
    ngx_process_slot = 5;

    assert_int_equal(take(&f, "k", 1, 100, 40, &a), NGX_OK);
    assert_int_equal(take(&f, "k", 1, 100, 40, &b), NGX_OK);
    a->used = 7;
    f.zone = other;

    /* Another worker goes on with its own; nobody has looked yet. */

    ngx_pid = own;
    ngx_process_slot = 6;
    assert_int_equal(take(&f, "k", 1, 100, 5, &c), NGX_OK);
    assert_int_equal(left(&f, "k", 1, 100), 15);

    /* The successor in the slot settles what was used. */

    other.owner = NULL;
    ngx_process_slot = 5;
    ngx_http_llm_buckets_adopt(&other);
    assert_int_equal(left(&f, "k", 1, 100), 100 - 7 - 5);
    ngx_http_llm_buckets_adopt(&other);
    assert_int_equal(left(&f, "k", 1, 100), 100 - 7 - 5);
    ngx_http_llm_bucket_settle(&f.zone, c, 5);

    /* No successor: the first refusal looks, once a second. */

    start(&f, 1 << 20);
    other = f.zone;
    ngx_pid = gone();
    ngx_process_slot = 5;
    assert_int_equal(take(&f, "k", 1, 100, 90, &a), NGX_OK);
    a->used = 30;

    f.zone = other;
    ngx_pid = own;
    ngx_process_slot = 6;
    assert_int_equal(take(&f, "k", 1, 100, 70, &b), NGX_OK);

    ngx_pid = gone();
    ngx_process_slot = 7;
    other.owner = NULL;
    f.zone = other;
    assert_int_equal(take(&f, "k", 1, 100, 1, &a), NGX_BUSY);
    shim_clock(1000999);
    assert_int_equal(take(&f, "k", 1, 100, 1, &a), NGX_BUSY);

    /* A slot is used again by a worker that did not start as such. */

    ngx_http_llm_bucket_settle(&f.zone, b, 0);
    assert_int_equal(left(&f, "k", 1, 100), 70);
    assert_int_equal(take(&f, "k", 1, 100, 60, &a), NGX_OK);
    f.zone.owner = NULL;
    ngx_pid = own;
    assert_int_equal(take(&f, "k", 1, 100, 60, &b), NGX_BUSY);
    shim_clock(1002000);
    assert_int_equal(take(&f, "k", 1, 100, 60, &b), NGX_OK);

    /* A process that lives keeps what it holds. */

    other.owner = NULL;
    ngx_pid = gone();
    ngx_process_slot = 8;
    ngx_http_llm_buckets_adopt(&other);
    assert_int_equal(left(&f, "k", 1, 100), 10);

    /* A worker that is told to go at once. */

    ngx_pid = own;
    b->used = 12;
    ngx_http_llm_buckets_leave(&f.zone);
    assert_int_equal(left(&f, "k", 1, 100), 58);
    ngx_http_llm_buckets_leave(&other);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(rates),
        cmocka_unit_test(rule),
        cmocka_unit_test(random_within),
        cmocka_unit_test(random_over),
        cmocka_unit_test(overshoot),
        cmocka_unit_test(memory),
        cmocka_unit_test(death),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
