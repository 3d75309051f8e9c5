/*
 * The option parser: what it takes, what it refuses, and who wins.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/cli_options.h"
#include "sched/sched.h"


static cli_engine_t  opt;
static uint32_t      n;
static uint64_t      u64;
static double        f;
static int           flag;
static cli_list_t    list;
static char          said[4096];


/* Parses; what it prints goes to `said`. */

static int
parse(char *first, ...)
{
    int      rc, argc, out, err, to;
    char    *argv[16], *arg;
    char     path[] = "/tmp/test_options.XXXXXX";
    ssize_t  len;
    va_list  ap;

    cli_option_t  own[] = {
        { "number", "N", CLI_UINT, &n, "a number", 1, 10 },
        { "seed", "N", CLI_U64, &u64, "a seed" },
        { "factor", "F", CLI_FLOAT, &f, "a factor", 0, 2 },
        { "flag", NULL, CLI_FLAG, &flag, "a flag" },
        { "list", "N,N", CLI_LIST, &list, "a list", 1, 100 },
        { NULL }
    };

    cli_command_t  cmd = {
        "test", "[ARG]", "tests", CLI_G_MODEL|CLI_G_COMPUTE, own, 1
    };

    argc = 0;
    argv[argc++] = "test";

    va_start(ap, first);
    for (arg = first; arg != NULL; arg = va_arg(ap, char *)) {
        argv[argc++] = arg;
    }
    va_end(ap);
    argv[argc] = NULL;

    to = mkstemp(path);
    assert_true(to >= 0);
    unlink(path);
    fflush(NULL);
    out = dup(1);
    err = dup(2);
    dup2(to, 1);
    dup2(to, 2);

    rc = cli_parse(&cmd, &opt, argc, argv);

    fflush(NULL);
    dup2(out, 1);
    dup2(err, 2);
    close(out);
    close(err);

    len = pread(to, said, sizeof(said) - 1, 0);
    said[len > 0 ? len : 0] = '\0';
    close(to);

    return rc;
}


#define REFUSED(what, ...)                                                   \
    do {                                                                     \
        assert_int_equal(parse(__VA_ARGS__, NULL), CLI_EXIT_USAGE);          \
        if (strstr(said, what) == NULL) {                                    \
            fail_msg("\"%s\" is not in: %s", what, said);                    \
        }                                                                    \
    } while (0)


static void
test_taken(void **state)
{
    (void) state;

    assert_int_equal(parse("--model", "dir", NULL), -1);
    assert_string_equal(opt.model, "dir");
    assert_string_equal(opt.backend, "cpu");
    assert_int_equal(opt.ranks, 1);
    assert_true(opt.threads >= 1);
    assert_int_equal(opt.argc, 0);

    assert_int_equal(parse("--model=d", "--ranks=3", "--kv-memory", "64M",
                           "--number", "7", "word", "--flag",
                           "--factor=0.5", "--list", "1,8,32", NULL), -1);
    assert_int_equal(opt.ranks, 3);
    assert_int_equal(opt.kv_memory, 64 << 20);
    assert_int_equal(n, 7);
    assert_int_equal(flag, 1);
    assert_true(f == 0.5);
    assert_int_equal(list.n, 3);
    assert_int_equal(list.value[2], 32);
    assert_int_equal(opt.argc, 1);
    assert_string_equal(opt.argv[0], "word");

    assert_int_equal(parse("--model=d", "--ahead", "on", NULL), -1);
    assert_int_equal(cli_ahead(&opt), 1);
    assert_int_equal(parse("--model=d", "--ahead", "off", NULL), -1);
    assert_int_equal(cli_ahead(&opt), 0);
    assert_int_equal(parse("--model=d", NULL), -1);
    assert_int_equal(cli_ahead(&opt), 0);
    assert_int_equal(parse("--model=d", "--backend=cuda", NULL), -1);
    assert_int_equal(cli_ahead(&opt), SCHED_AHEAD);

    assert_int_equal(parse("--model=d", "--seed=18446744073709551615", "--",
                           "--flag", NULL), -1);
    assert_true(u64 == UINT64_MAX);
    assert_string_equal(opt.argv[0], "--flag");

    assert_int_equal(parse("--help", NULL), 0);
    assert_non_null(strstr(said, "--number N"));
    assert_non_null(strstr(said, "--kv-memory SIZE"));
    assert_null(strstr(said, "--socket"));
    assert_int_equal(parse("--version", NULL), 0);
    assert_string_equal(said, "llm-engine " CLI_VERSION "\n");
}


static void
test_refused(void **state)
{
    (void) state;

    REFUSED("more than one rank", "--model", "d", "--redundant-experts", "4");

    REFUSED("--speculate-always: without --speculate", "--model=d",
            "--speculate-always");
    REFUSED("ahead: \"yes\" is not known", "--model=d", "--ahead=yes");
    REFUSED("speculate: \"9\" is out of range", "--model=d", "--speculate=9");
    REFUSED("--model is required", "--flag");
    REFUSED("unknown option \"--nothing\"", "--nothing=3");
    REFUSED("unknown option \"-x\"", "-x");
    REFUSED("unknown option \"--socket\"", "--model=d", "--socket=s");
    REFUSED("--number: \"x\"", "--model=d", "--number=x");
    REFUSED("--number: \"11\"", "--model=d", "--number", "11");
    REFUSED("--number: \"0\"", "--model=d", "--number", "0");
    REFUSED("--number: \"1.5\"", "--model=d", "--number", "1.5");
    REFUSED("--number: \"nan\"", "--model=d", "--number", "nan");
    REFUSED("--number needs a value", "--model=d", "--number");
    REFUSED("--flag takes no value", "--model=d", "--flag=1");
    REFUSED("--factor: \"2.1\"", "--model=d", "--factor=2.1");
    REFUSED("--seed: \"-1\"", "--model=d", "--seed=-1");
    REFUSED("--kv-memory: \"1Q\"", "--model=d", "--kv-memory=1Q");
    REFUSED("--kv-memory: \"99999999999T\"", "--model=d",
            "--kv-memory=99999999999T");
    REFUSED("--compute: \"f64\"", "--model=d", "--compute=f64");
    REFUSED("--list: \"1,,2\"", "--model=d", "--list=1,,2");
    REFUSED("--list: \"1,200\"", "--model=d", "--list=1,200");
    REFUSED("--model: \"\"", "--model=");
    REFUSED("unexpected argument \"b\"", "--model=d", "a", "b");
}


static void
write_config(char *path, const char *text)
{
    int  fd;

    fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}


static void
test_config(void **state)
{
    char  good[] = "/tmp/test_options.XXXXXX";
    char  bad[] = "/tmp/test_options.XXXXXX";
    char  worse[] = "/tmp/test_options.XXXXXX";

    (void) state;

    write_config(good, "# engine\n\nmodel  /some dir/with space   # where\n"
                 "ranks 2\n\tflag\nsocket /x#y\nmax-batch 5");
    flag = 0;

    assert_int_equal(parse("--ranks=4", "--config", good, NULL), -1);
    assert_string_equal(opt.model, "/some dir/with space");
    assert_int_equal(opt.ranks, 4);          /* the command line wins */
    assert_int_equal(opt.max_batch, 5);
    assert_int_equal(flag, 1);
    assert_string_equal(opt.socket, "/x#y");

    write_config(bad, "model d\nrank 2\n");
    REFUSED(":2: unknown option \"rank\"", "--config", bad);

    write_config(worse, "model d\nranks two\n");
    REFUSED(":2: ranks: \"two\"", "--config", worse);

    REFUSED("/nowhere", "--config", "/nowhere/at/all");

    unlink(good);
    unlink(bad);
    unlink(worse);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_taken),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_config)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
