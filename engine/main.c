/*
 * llm-engine: one program, one command word.
 */

#include "cli/cli_options.h"

#include <stdio.h>
#include <string.h>


typedef struct {
    const char   *name;
    const char   *about;
    int         (*run)(int argc, char **argv);
} main_command_t;


static int main_usage(int status);


static const main_command_t  main_commands[] = {
    { "serve", "serve a model to nginx workers", cli_serve },
    { "generate", "continue a prompt on the terminal", cli_generate },
    { "score", "log-probability of each token of a text", cli_score },
    { "tokenize", "JSON strings in, JSON arrays of ids out", cli_tokenize },
    { "detokenize", "JSON arrays of ids in, JSON strings out",
      cli_detokenize },
    { "convert", "write a checkpoint with quantised weights", cli_convert },
    { "status", "what a running engine does", cli_status },
    { "bench", "measure prompt and generation speed", cli_bench },
    { "plan", "what each GPU will hold, without loading", cli_plan },
    { NULL }
};


int
main(int argc, char **argv)
{
    const main_command_t  *c;

    if (argc < 2) {
        return main_usage(CLI_EXIT_USAGE);
    }

    if (strcmp(argv[1], "--help") == 0) {
        return main_usage(0);
    }

    if (strcmp(argv[1], "--version") == 0) {
        printf("llm-engine %s\n", CLI_VERSION);
        return 0;
    }

    for (c = main_commands; c->name != NULL; c++) {
        if (strcmp(c->name, argv[1]) == 0) {
            return c->run(argc - 1, argv + 1);
        }
    }

    cli_error("unknown command \"%s\"; see llm-engine --help", argv[1]);
    return CLI_EXIT_USAGE;
}


static int
main_usage(int status)
{
    FILE                  *out;
    const main_command_t  *c;

    out = status == 0 ? stdout : stderr;

    fputs("Usage: llm-engine COMMAND [OPTION]...\n\n", out);

    for (c = main_commands; c->name != NULL; c++) {
        fprintf(out, "  %-12s %s\n", c->name, c->about);
    }

    fputs("\nllm-engine COMMAND --help lists the options of a command.\n",
          out);

    return status;
}
