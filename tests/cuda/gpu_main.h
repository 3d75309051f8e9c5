/*
 * The end of a test that runs on a GPU: all of its tests, or one, in a process
 * of its own, as a fault of the device leaves nothing behind it that works.
 *
 *     PROGRAM            all
 *     PROGRAM --list     their names, a line each
 *     PROGRAM NAME       that one
 */

#ifndef GPU_MAIN_H
#define GPU_MAIN_H

#include <stdio.h>
#include <string.h>


/* Whether `tests` are to be run; if not, they were listed. */

static inline int
gpu_choose(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
    size_t  i;

    if (argc < 2) {
        return 1;
    }

    if (strcmp(argv[1], "--list") != 0) {
        cmocka_set_test_filter(argv[1]);
        return 1;
    }

    for (i = 0; i < n; i++) {
        printf("%s\n", tests[i].name);
    }

    return 0;
}


#define GPU_MAIN(argc, argv, tests)                                           \
    (gpu_choose(argc, argv, tests, sizeof(tests) / sizeof(tests[0]))          \
     ? cmocka_run_group_tests(tests, NULL, NULL) : 0)

#endif /* GPU_MAIN_H */
