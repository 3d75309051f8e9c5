/*
 * Tags of blocks beside a model: a matrix of who has what.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "sched/kv_tags.h"
#include "random.h"


#define BLOCKS  12
#define TAGS    40


static kv_tags_t  tags;
static uint8_t    has[BLOCKS][TAGS];
static uint32_t   lost[TAGS];        /* reports, less those expected */
static uint32_t   n_lost;


static uint64_t
tag_of(uint32_t i)
{
    return i == 0 ? 0 : i % 2 ? i : random_mix(i);
}


static uint32_t
on_blocks(uint32_t i)
{
    uint32_t  b, n;

    for (b = 0, n = 0; b < BLOCKS; b++) {
        n += has[b][i];
    }

    return n;
}


static void
on_lost(void *ctx, uint64_t tag)
{
    uint32_t  i;

    assert_ptr_equal(ctx, has);

    for (i = 0; i < TAGS && tag_of(i) != tag; i++) { /* void */ }

    assert_true(i < TAGS);
    lost[i]++;
    n_lost++;
}


static void
check(void)
{
    uint32_t  i, b, n;

    for (i = 0, n = 0; i < TAGS; i++) {
        assert_int_equal(lost[i], 0);
        assert_int_equal(kv_tags_resident(&tags, tag_of(i)),
                         on_blocks(i) > 0);
        n += on_blocks(i) > 0;

        for (b = 0; b < BLOCKS; b++) {
            assert_int_equal(kv_tags_has(&tags, (int32_t) b, tag_of(i)),
                             has[b][i]);
        }
    }

    assert_int_equal(tags.n_resident, n);
}


static void
test_random(void **state)
{
    uint32_t  i, b, t, total, full;
    uint64_t  rng;

    (void) state;

    rng = 1;
    full = 0;
    total = 0;
    assert_int_equal(kv_tags_open(&tags, BLOCKS, on_lost, has), 0);

    for (i = 0; i < 20000; i++) {
        b = (uint32_t) (random_next(&rng) % BLOCKS);
        t = (uint32_t) (random_next(&rng) % TAGS);

        if (random_next(&rng) % 12 == 0) {
            kv_tags_drop(&tags, (int32_t) b);

            for (t = 0; t < TAGS; t++) {
                if (has[b][t]) {
                    has[b][t] = 0;
                    total--;
                    lost[t] -= on_blocks(t) == 0;
                }
            }

        } else {
            kv_tags_add(&tags, (int32_t) b, tag_of(t));

            if (!has[b][t] && total == BLOCKS * KV_TAGS) {
                full++;
                lost[t] -= on_blocks(t) == 0;

            } else {
                total += !has[b][t];
                has[b][t] = 1;
            }
        }

        check();
    }

    assert_true(full > 0 && n_lost > 100);
    kv_tags_close(&tags);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_random)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
