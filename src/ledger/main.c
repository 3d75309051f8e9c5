/*
 * llm-ledger: API keys, the balances of accounts, and what the usage logs of
 * nginx add up to; one program, one command word.
 */

#include <stdio.h>
#include <string.h>

#include "ledger.h"


typedef struct {
    const char   *name;
    const char   *about;
    int         (*run)(int argc, char **argv);
} main_command_t;


static int main_usage(FILE *out, int status);


static const main_command_t  main_commands[] = {
    { "report", "add up usage logs: tokens, revenue, cost, margin",
      ledger_report },
    { "credit", "add to the balance of an account", ledger_credit },
    { "balance", "print the balances of accounts", ledger_balances },
    { "compact", "make the journal of balances short", ledger_compact },
    { "key", "make an API key for an account", ledger_key },
    { NULL }
};


int
main(int argc, char **argv)
{
    const main_command_t  *c;

    if (argc < 2) {
        return main_usage(stderr, LEDGER_EXIT_USAGE);
    }

    if (strcmp(argv[1], "--help") == 0) {
        return main_usage(stdout, 0);
    }

    for (c = main_commands; c->name != NULL; c++) {
        if (strcmp(c->name, argv[1]) == 0) {
            return c->run(argc - 1, argv + 1);
        }
    }

    ledger_error("unknown command \"%s\"; see llm-ledger --help", argv[1]);
    return LEDGER_EXIT_USAGE;
}


static int
main_usage(FILE *out, int status)
{
    const main_command_t  *c;

    fputs("Usage: llm-ledger COMMAND [OPTION]...\n\n", out);

    for (c = main_commands; c->name != NULL; c++) {
        fprintf(out, "  %-12s %s\n", c->name, c->about);
    }

    fputs("\nllm-ledger COMMAND --help lists the options of a command.\n",
          out);

    return status;
}
