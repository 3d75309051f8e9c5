/*
 * Between the parser (cli_options.c) and the table of the engine's options
 * (cli_common.c).
 */

#ifndef CLI_CLI_COMMON_H
#define CLI_CLI_COMMON_H

#include "cli/cli_options.h"


#define CLI_COMMON_MAX  48

typedef struct {
    unsigned      group;             /* CLI_G_…, 0: of every command */
    cli_option_t  o;
} cli_common_t;


void cli_engine_defaults(cli_engine_t *opt);

/* Rows of prompts in a step of each rank, where they are not given. */
uint32_t cli_prefill_chunk(const char *backend, uint32_t ranks);

/*
 * Fills `common`, CLI_COMMON_MAX entries, with options that set `opt` and
 * `*config`; returns how many there are.
 */
size_t cli_engine_table(cli_engine_t *opt, const char **config,
    cli_common_t *common);

/* After parsing: -1 to go on, or an exit status after a message. */
int cli_engine_check(const cli_command_t *cmd, cli_engine_t *opt);

#endif /* CLI_CLI_COMMON_H */
