/*
 * An engine on several nodes: what the command line or the job's launcher
 * says of them, and how their schedulers step together.
 */

#ifndef CLI_CLI_NODES_H
#define CLI_CLI_NODES_H

#include "cli/cli_ranks.h"
#include "ep/ep_nodes.h"
#include "sched/sched.h"


/*
 * --nodes auto asks the environment: Slurm's or Open MPI's variables of this
 * process among its like.  0, or -1 with the reason in `err` (ERR_LEN).
 */
int cli_nodes_find(cli_engine_t *cli, char *err);

/*
 * Meets the others, whose model, ranks and options must be the same.  NULL
 * with the reason in `err` (ERR_LEN).
 */
ep_nodes_t *cli_nodes_open(const cli_engine_t *cli,
    const cli_ranks_options_t *opt, uint64_t fingerprint, char *err);

/* What a sched_join_pt does, moves of experts included. */
int cli_nodes_join(ep_nodes_t *nodes, cli_ranks_t *ranks, uint32_t max_depth,
    sched_join_t *j, char *err);

#endif /* CLI_CLI_NODES_H */
