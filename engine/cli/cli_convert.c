/*
 * llm-engine convert: writes a checkpoint whose weights are as the engine
 * uses them, so that the next start does no work; or checks one.
 */

#include <stdio.h>
#include <string.h>

#include "cli/cli_options.h"
#include "cli/cli_ranks.h"
#include "model/model.h"


static int convert_verify(model_t *model);
static int convert_run(model_t *model, const cli_engine_t *opt);


int
cli_convert(int argc, char **argv)
{
    int            rc, verify;
    char           err[ERR_LEN];
    model_t       *model;
    cli_engine_t   opt;
    cli_command_t  cmd;

    verify = 0;

    cli_option_t  own[] = {
        { "verify", NULL, CLI_FLAG, &verify,
          "check a converted checkpoint's checksums instead" },
        { NULL }
    };

    memset(&cmd, 0, sizeof(cmd));
    cmd.name = "convert";
    cmd.args = "OUT";
    cmd.about = "Writes the directory OUT: the checkpoint with weights of "
                "the type --weights,\nwhich later starts map as they are.";
    cmd.groups = CLI_G_MODEL|CLI_G_COMPUTE;
    cmd.own = own;
    cmd.max_args = 1;

    rc = cli_parse(&cmd, &opt, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    if (!verify && (opt.argc != 1 || opt.weights == CLI_WEIGHTS_AUTO)) {
        cli_error("convert: OUT and --weights are required");
        return CLI_EXIT_USAGE;
    }

    if (verify && opt.argc != 0) {
        cli_error("convert: --verify checks --model and writes nothing");
        return CLI_EXIT_USAGE;
    }

    model = model_open(opt.model, err);
    if (model == NULL) {
        cli_error("%s", err);
        return 1;
    }

    rc = verify ? convert_verify(model) : convert_run(model, &opt);
    model_close(model);

    return rc;
}


static int
convert_verify(model_t *model)
{
    char  err[ERR_LEN];

    if (model_packed_verify(model, err) != 0) {
        cli_error("%s", err);
        return 1;
    }

    printf("all checksums are right\n");

    return 0;
}


static int
convert_run(model_t *model, const cli_engine_t *opt)
{
    int                   rc;
    char                  err[ERR_LEN];
    be_t                 *be;
    uint64_t              bytes;
    be_options_t          b;
    cli_ranks_options_t   ranks;

    cli_ranks_options(opt, &ranks);

    memset(&b, 0, sizeof(b));
    b.compute = ranks.compute;
    b.weights = ranks.weights;
    b.threads = ranks.threads * ranks.ranks;
    b.path = ranks.kernels;
    b.pin = -1;

    be = be_open(ranks.backend, &b, err);
    if (be == NULL) {
        cli_error("%s", err);
        return 1;
    }

    rc = model_convert(model, be, opt->argv[0], &bytes, err);
    be->close(be);

    if (rc != 0) {
        cli_error("%s", err);
        return 1;
    }

    printf("%s: %.1f MB of weights\n", opt->argv[0], (double) bytes / 1e6);

    return 0;
}
