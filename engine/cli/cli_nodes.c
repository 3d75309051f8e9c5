/*
 * Nodes for commands that run a scheduler.
 */

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli_nodes.h"
#include "serve/serve.h"


static int nodes_number(const char *name, uint32_t max, uint32_t *n,
    char *err);
static int nodes_host(cli_engine_t *cli, char *err);
static void nodes_setup(const cli_engine_t *cli,
    const cli_ranks_options_t *opt, char *text, size_t size);
static void nodes_log(void *ctx, int bad, const char *text);


/* Where nodes meet, made of a launcher's list. */
static char  nodes_at[512];


int
cli_nodes_find(cli_engine_t *cli, char *err)
{
    char               *end;
    unsigned long       n;
    const char *const  *name;

    /* processes of a job or step, and which of them this one is */

    static const char *const  names[][2] = {
        { "SLURM_NTASKS", "SLURM_PROCID" },
        { "SLURM_NNODES", "SLURM_NODEID" },
        { "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK" },
        { NULL, NULL }
    };

    cli->n_nodes = 1;

    if (cli->nodes == NULL) {
        return 0;
    }

    if (strcmp(cli->nodes, "auto") == 0) {

        for (name = names[0]; name[0] != NULL; name += 2) {
            if (getenv(name[0]) != NULL && getenv(name[1]) != NULL) {
                break;
            }
        }

        if (name[0] == NULL) {
            snprintf(err, ERR_LEN, "--nodes auto: neither Slurm's nor Open "
                     "MPI's variables are set (SLURM_NTASKS and SLURM_PROCID, "
                     "OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_RANK)");
            return -1;
        }

        if (nodes_number(name[0], EP_NODES_MAX, &cli->n_nodes, err) != 0
            || nodes_number(name[1], EP_NODES_MAX - 1, &cli->node_rank, err)
               != 0)
        {
            return -1;
        }

    } else {
        errno = 0;
        n = strtoul(cli->nodes, &end, 10);

        if (!isdigit((unsigned char) cli->nodes[0]) || *end != '\0'
            || errno != 0 || n == 0 || n > EP_NODES_MAX)
        {
            snprintf(err, ERR_LEN, "--nodes: \"%.64s\" is neither a number "
                     "from 1 to %u nor auto", cli->nodes, EP_NODES_MAX);
            return -1;
        }

        cli->n_nodes = (uint32_t) n;
    }

    if (cli->n_nodes == 1) {
        return 0;
    }

    if (cli->node_rank >= cli->n_nodes) {
        snprintf(err, ERR_LEN, "--node-rank: \"%u\" is not one of %u nodes, "
                 "which are numbered from 0", cli->node_rank, cli->n_nodes);
        return -1;
    }

    if (cli->rendezvous == NULL) {
        snprintf(err, ERR_LEN, "--nodes: --rendezvous HOST:PORT is needed, "
                 "where node 0 listens");
        return -1;
    }

    return cli->rendezvous[0] == ':' ? nodes_host(cli, err) : 0;
}


static int
nodes_number(const char *name, uint32_t max, uint32_t *n, char *err)
{
    char           *end;
    const char     *s;
    unsigned long   v;

    s = getenv(name);
    errno = 0;
    v = strtoul(s, &end, 10);

    if (!isdigit((unsigned char) s[0]) || *end != '\0' || errno != 0
        || v > max)
    {
        snprintf(err, ERR_LEN, "--nodes auto: %s is \"%.64s\", not a number "
                 "up to %u", name, s, max);
        return -1;
    }

    *n = (uint32_t) v;

    return 0;
}


/*
 * ":PORT": the host is the first one of Slurm's list, as in "node[03-06,9]",
 * "node3,node4" or "rack1-node3".
 */

static int
nodes_host(cli_engine_t *cli, char *err)
{
    size_t       n, digits;
    const char  *list;

    list = getenv("SLURM_STEP_NODELIST");

    if (list == NULL) {
        list = getenv("SLURM_JOB_NODELIST");
    }

    if (list == NULL || list[0] == '\0') {
        snprintf(err, ERR_LEN, "--rendezvous: \"%.64s\" has no host, and "
                 "there is no SLURM_JOB_NODELIST to take it from",
                 cli->rendezvous);
        return -1;
    }

    n = strcspn(list, ",[");
    digits = (list[n] == '[') ? strspn(list + n + 1, "0123456789") : 0;

    if (n + digits == 0 || n + digits > 253) {
        snprintf(err, ERR_LEN, "--rendezvous: no host can be read from "
                 "Slurm's list \"%.64s\"", list);
        return -1;
    }

    snprintf(nodes_at, sizeof(nodes_at), "%.*s%.*s%.16s", (int) n, list,
             (int) digits, list + n + (list[n] == '['), cli->rendezvous);
    cli->rendezvous = nodes_at;

    return 0;
}


ep_nodes_t *
cli_nodes_open(const cli_engine_t *cli, const cli_ranks_options_t *opt,
    uint64_t fingerprint, char *err)
{
    char              setup[EP_SETUP_LEN];
    ep_rendezvous_t   r;

    nodes_setup(cli, opt, setup, sizeof(setup));

    memset(&r, 0, sizeof(r));
    r.nodes = cli->n_nodes;
    r.node = cli->node_rank;
    r.ranks = cli->ranks;
    r.fingerprint = fingerprint;
    r.setup = setup;
    r.at = cli->rendezvous;
    r.join_ms = (uint32_t) (cli->join_timeout * 1000);
    r.timeout_ms = (uint32_t) (cli->node_timeout * 1000);
    r.log = nodes_log;

    return ep_nodes_open(&r, err);
}


/* All that decides about shapes, arithmetic and what ranks do together. */

static void
nodes_setup(const cli_engine_t *cli, const cli_ranks_options_t *opt,
    char *text, size_t size)
{
    int  device;

    static const char *const  types[BE_DTYPES] = {
        "auto", "bf16", "fp8", "int8", "int4"
    };

    /* the kernels of processors that only feed devices do not matter */

    device = strcmp(opt->backend, "cpu") != 0;

    snprintf(text, size, "%s %s%s%s, weights %s, batch %u, chunk %u, "
             "speculate %u, redundant %u, balance %g%s%s", opt->backend,
             device ? "" : cli_ranks_path(opt), device ? "" : " ",
             opt->compute == BE_BF16 ? "bf16" : "f32", types[opt->weights],
             cli->max_batch, cli->prefill_chunk, cli->speculate,
             cli->redundant, cli->balance_interval,
             opt->kv == BE_F8E4M3 ? ", kv fp8" : "",
             opt->fixed ? ", deterministic" : "");
}


static void
nodes_log(void *ctx, int bad, const char *text)
{
    (void) ctx;

    serve_log(bad ? SERVE_WARN : SERVE_NOTICE, "nodes: %s", text);
}


int
cli_nodes_join(ep_nodes_t *nodes, cli_ranks_t *ranks, uint32_t max_depth,
    sched_join_t *j, char *err)
{
    uint32_t     i;
    uint64_t     most;
    ep_begin_t   mine, all[EP_NODES_MAX];

    if (ep_nodes_status(nodes, err) != 0) {
        return -1;
    }

    if (!j->work && !ep_nodes_wanted(nodes)) {
        ep_nodes_idle(nodes);
        return 0;
    }

    memset(&mine, 0, sizeof(mine));
    mine.work = (uint32_t) j->work;
    mine.depth = j->depth;
    mine.rows = (uint64_t) j->rows;
    mine.planned_us = (uint64_t) j->planned_us;
    mine.move = cli_ranks_move(ranks);
    mine.most = j->most;

    if (ep_nodes_begin(nodes, &mine, all, err) != 0) {
        return -1;
    }

    j->rows = 0;
    most = 0;

    for (i = 0; i < ep_nodes_count(nodes); i++) {

        if (all[i].depth > max_depth) {
            snprintf(err, ERR_LEN, "node %u wants %u drafts, at most %u are "
                     "possible", i, all[i].depth, max_depth);
            ep_nodes_fail(nodes, err);
            return -1;
        }

        j->depth = (all[i].depth > j->depth) ? all[i].depth : j->depth;
        j->rows += (double) all[i].rows;
        most = (all[i].most > most) ? all[i].most : most;

        if ((double) all[i].planned_us > j->planned_us) {
            j->planned_us = (double) all[i].planned_us;
        }
    }

    if (cli_ranks_turn(ranks, all[0].move, err) != 0) {
        ep_nodes_fail(nodes, err);
        return -1;
    }

    cli_ranks_most(ranks, most < UINT32_MAX ? (uint32_t) most : UINT32_MAX);

    return 1;
}
