/*
 * llm-engine serve: a model for the nginx workers.
 */

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "cli/cli_engine.h"
#include "cli/cli_nodes.h"
#include "serve/serve.h"


#define CLI_GRACE_S  30


static void cli_serve_log(int warning, const char *message);
static int cli_serve_group(const cli_engine_t *cli, gid_t *gid);
static void cli_serve_experts(void *ctx, uint32_t rank, uint64_t *load_max,
    uint64_t *moves);
static uint64_t cli_serve_fingerprint(const cli_stack_t *st);
static const char *cli_serve_name(const cli_engine_t *cli, char *buf,
    size_t size);


int
cli_serve(int argc, char **argv)
{
    int               rc;
    char              err[ERR_LEN], ready[512], name[512];
    double            grace;
    sigset_t          set;
    cli_stack_t       st;
    cli_engine_t      cli;
    serve_options_t   opt;

    const cli_option_t  own[] = {
        { "grace", "SECONDS", CLI_FLOAT, &grace,
          "time for running requests after SIGTERM", 0, 86400 },
        { NULL }
    };

    const cli_command_t  cmd = {
        "serve", NULL, "Serves a model to nginx workers over a Unix socket.",
        CLI_G_MODEL|CLI_G_COMPUTE|CLI_G_NODES|CLI_G_SERVE, own, 0
    };

    grace = CLI_GRACE_S;

    rc = cli_parse(&cmd, &cli, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    serve_log_level(cli.log_level);
    memset(&opt, 0, sizeof(opt));

    if (cli_serve_group(&cli, &opt.socket_gid) != 0) {
        return CLI_EXIT_USAGE;
    }

    /* Before any thread starts: all inherit it. */

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);

    if (cli_nodes_find(&cli, err) != 0
        || cli_stack_open(&st, &cli, 1, err) != 0)
    {
        serve_log(SERVE_ERROR, "%s", err);
        return 1;
    }

    opt.socket = cli.socket;
    opt.socket_mode = (mode_t) cli.socket_mode;
    opt.max_lanes = cli.max_lanes;
    opt.grace_us = (uint64_t) (grace * 1e6);
    opt.names = cli_serve_name(&cli, name, sizeof(name));
    opt.fingerprint = cli_serve_fingerprint(&st);
    opt.temperature = model_config(st.model)->temperature;
    opt.top_p = model_config(st.model)->top_p;
    opt.created = model_created(st.model);
    opt.tok = st.tok;
    opt.ready = ready;

    opt.experts = cli_serve_experts;
    opt.experts_ctx = &st;

    cli_stack_sched(&st, &cli, &opt.sched);
    cli_stack_disk(&st, &cli, &opt.sched, cli_serve_log);

    snprintf(ready, sizeof(ready), "ready: %s, %s, fingerprint %016llx, "
             "ranks %u, threads %u, %s %s, KV blocks %u of %zu bytes per rank, "
             "context %u, socket %s",
             opt.names, model_config(st.model)->type,
             (unsigned long long) opt.fingerprint, cli.ranks, cli.threads,
             st.path, st.compute, st.opt.kv_blocks, st.block_size,
             st.max_context, cli.socket);

    rc = serve_run(&opt, err);

    if (rc != 0) {
        serve_log(SERVE_ERROR, "%s", err);

        /* a device that has failed may never let go of what it was given */

        if (strcmp(cli.backend, "cpu") != 0) {
            serve_log(SERVE_NOTICE, "exit");
            _exit(1);
        }
    }

    cli_stack_close(&st);

    serve_log(SERVE_NOTICE, "exit");

    return rc != 0;
}


static void
cli_serve_log(int warning, const char *message)
{
    serve_log(warning ? SERVE_WARN : SERVE_NOTICE, "%s", message);
}


static int
cli_serve_group(const cli_engine_t *cli, gid_t *gid)
{
    char           *end;
    unsigned long   n;
    struct group   *group;

    *gid = (gid_t) -1;

    if (cli->socket_group == NULL) {
        return 0;
    }

    group = getgrnam(cli->socket_group);

    if (group != NULL) {
        *gid = group->gr_gid;
        return 0;
    }

    errno = 0;
    n = strtoul(cli->socket_group, &end, 10);

    if (errno != 0 || *end != '\0' || end == cli->socket_group
        || n >= (gid_t) -1)
    {
        cli_error("--socket-group: \"%s\" is not a group", cli->socket_group);
        return -1;
    }

    *gid = (gid_t) n;

    return 0;
}


static void
cli_serve_experts(void *ctx, uint32_t rank, uint64_t *load_max,
    uint64_t *moves)
{
    model_balance_stats_t   st;
    const cli_stack_t      *stack = ctx;

    cli_ranks_load(stack->ranks, rank, &st);

    *load_max = st.load_max;
    *moves = st.moves;
}


/*
 * Names all that decides an answer beside the request: the checkpoint, how it
 * is computed, and what holds where a request does not say.
 */

static uint64_t
cli_serve_fingerprint(const cli_stack_t *st)
{
    int                    n;
    char                   s[256];
    const model_config_t  *config;

    config = model_config(st->model);

    n = snprintf(s, sizeof(s), "%016llx %s %s %s %a %a",
                 (unsigned long long) st->fingerprint,
                 cli_ranks_backend(st->ranks, 0)->name, st->path, st->compute,
                 config->temperature, config->top_p);

    return XXH3_64bits(s, (size_t) n) | 1;
}


/* The directory's name, unless names were given. */

static const char *
cli_serve_name(const cli_engine_t *cli, char *buf, size_t size)
{
    char    *p;
    size_t   n;

    if (cli->model_name != NULL) {
        return cli->model_name;
    }

    p = realpath(cli->model, NULL);
    snprintf(buf, size, "%s", p != NULL ? p : cli->model);
    free(p);

    n = strlen(buf);

    while (n > 1 && buf[n - 1] == '/') {
        buf[--n] = '\0';
    }

    p = strrchr(buf, '/');

    return p != NULL && p[1] != '\0' ? p + 1 : buf;
}
