/*
 * The table of names without an nginx: against a plain list, names that begin
 * alike or hold any bytes, a table that is full, a writer that is killed.
 */

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "shim/ngx_shim.h"
#include "ngx_http_llm_table.h"

#include "unit/random.h"


#define NAMES  3000

static uint64_t  state;


static ngx_http_llm_table_t *
table_new(size_t pages, size_t size)
{
    static ngx_slab_pool_t  pool;

    memset(&pool, 0, sizeof(pool));
    pool.pfree = pages;
    shim_slab_start(SIZE_MAX / 2);

    return ngx_http_llm_table_create(&pool, size);
}


static ngx_str_t
name_of(u_char *buf, ngx_uint_t i)
{
    ngx_str_t  name;

    /* Equal begins, and bytes of all kinds. */

    name.len = (size_t) sprintf((char *) buf, "account %lu/",
                                (unsigned long) (i / 3));
    memset(buf + name.len, (int) i, i % 3);
    name.len += i % 3;
    name.data = buf;

    return name;
}


static void
test_names(void **unused)
{
    u_char                 buf[NGX_HTTP_LLM_TABLE_NAME];
    uint64_t              *bytes;
    ngx_str_t              name;
    ngx_uint_t             i, n, sum;
    ngx_http_llm_table_t  *table;

    (void) unused;

    table = table_new(600, 3 * sizeof(uint64_t));
    assert_non_null(table);

    for (i = 0; i < NAMES; i++) {
        name = name_of(buf, i);
        assert_null(ngx_http_llm_table_find(table, &name));

        bytes = ngx_http_llm_table_get(table, &name);
        assert_non_null(bytes);
        assert_int_equal(bytes[0] | bytes[1] | bytes[2], 0);
        bytes[0] = i;
        bytes[2] = ~i;

        assert_ptr_equal(ngx_http_llm_table_find(table, &name), bytes);
        assert_ptr_equal(ngx_http_llm_table_get(table, &name), bytes);
    }

    for (i = 0; i < NAMES; i++) {
        name = name_of(buf, i);
        bytes = ngx_http_llm_table_find(table, &name);
        assert_non_null(bytes);
        assert_int_equal(bytes[0], i);
        assert_int_equal(bytes[2], ~i);
    }

    sum = 0;

    for (i = 0, n = 0;
         (bytes = ngx_http_llm_table_next(table, &i, &name)) != NULL;
         n++)
    {
        assert_ptr_equal(ngx_http_llm_table_find(table, &name), bytes);
        sum += bytes[0];
    }

    assert_int_equal(n, NAMES);
    assert_int_equal(table->n, NAMES);
    assert_int_equal(sum, (uint64_t) NAMES * (NAMES - 1) / 2);
}


static void
test_full(void **unused)
{
    u_char                 buf[NGX_HTTP_LLM_TABLE_NAME + 1];
    ngx_str_t              name;
    ngx_uint_t             i;
    ngx_http_llm_table_t  *table;

    (void) unused;

    assert_null(table_new(0, 8));

    table = table_new(8, 8);
    assert_non_null(table);

    for (i = 0; name = name_of(buf, i),
                ngx_http_llm_table_get(table, &name) != NULL; i++)
    {
        assert_true(i < 1000);
    }

    assert_int_equal(i, table->nslots / 4 * 3);
    assert_true(table->nslots * table->stride <= 8 * 4096);
    assert_null(ngx_http_llm_table_find(table, &name));

    name = name_of(buf, 0);
    assert_non_null(ngx_http_llm_table_get(table, &name));

    /* The longest name, and one that is longer; no name at all. */

    table = table_new(8, 8);
    memset(buf, 'x', sizeof(buf));
    name.data = buf;
    name.len = sizeof(buf);
    assert_null(ngx_http_llm_table_get(table, &name));
    name.len--;
    assert_non_null(ngx_http_llm_table_get(table, &name));
    name.len = 0;
    assert_non_null(ngx_http_llm_table_get(table, &name));
    assert_int_equal(table->n, 2);
}


/* Whoever comes after one that was killed finds whole names or none. */

static void
test_killed(void **unused)
{
    int                    i, status;
    pid_t                  pid;
    u_char                 buf[NGX_HTTP_LLM_TABLE_NAME], *shared;
    ngx_str_t              name;
    ngx_uint_t             k, n;
    ngx_http_llm_table_t  *table, *copy;

    (void) unused;

    table = table_new(600, 8);
    assert_non_null(table);

    shared = mmap(NULL, 600 * 4096, PROT_READ|PROT_WRITE,
                  MAP_SHARED|MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    copy = (ngx_http_llm_table_t *) (void *) shared;

    for (i = 0; i < 40; i++) {
        memset(shared, 0, 600 * 4096);
        *copy = *table;
        copy->slots = shared + 4096;
        copy->nslots = table->nslots / 2;

        pid = fork();
        assert_true(pid != -1);

        if (pid == 0) {
            for (k = 0; k < copy->nslots / 2; k++) {
                name = name_of(buf, k);
                (void) ngx_http_llm_table_get(copy, &name);
            }

            pause();
        }

        usleep((useconds_t) (random_next(&state) % 800));
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);

        /* Those before are all there, those behind are not. */

        for (k = 0, n = 0; k < copy->nslots / 2; k++) {
            name = name_of(buf, k);

            if (ngx_http_llm_table_find(copy, &name) != NULL) {
                assert_int_equal(n, k);
                n++;
            }
        }

        assert_true(copy->n == n || copy->n + 1 == n);

        for (k = 0; k < copy->nslots / 2; k++) {
            name = name_of(buf, k);
            assert_non_null(ngx_http_llm_table_get(copy, &name));
        }
    }

    munmap(shared, 600 * 4096);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_killed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
