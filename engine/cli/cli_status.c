/*
 * llm-engine status: what a running engine says about itself on its board.
 *
 * It connects as a worker does, which takes a lane for the moment; the board
 * is read in shared memory and costs the engine nothing.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "channel/chan_board.h"
#include "cli/cli_options.h"


#define CLI_STATUS_MS  5000


static int status_engine(chan_board_t *board);
static void status_guesses(const chan_board_model_t *m,
    const chan_board_state_t *s);
static int status_ranks(chan_board_t *board);


int
cli_status(int argc, char **argv)
{
    int            rc;
    char           err[CHAN_ERR_LEN];
    const char    *path;
    chan_lane_t    lane;
    cli_engine_t   cli;
    chan_board_t  *board;

    const cli_option_t  own[] = {
        { "socket", "PATH", CLI_STRING, &path, "the engine's Unix socket" },
        { NULL }
    };

    const cli_command_t  cmd = {
        "status", NULL, "Shows what a running engine does.", 0, own, 0
    };

    path = "/run/llm-engine/engine.sock";

    rc = cli_parse(&cmd, &cli, argc, argv);
    if (rc >= 0) {
        return rc;
    }

    if (chan_dial(path, CLI_STATUS_MS, &lane, &board, err) != CHAN_OK) {
        cli_error("status: %s", err);
        return 1;
    }

    rc = 1;

    if (status_engine(board) != 0 || status_ranks(board) != 0) {
        cli_error("%s: the board cannot be read", path);

    } else if (chan_board_stale(board)) {
        cli_error("%s: the engine has hung", path);

    } else {
        rc = 0;
    }

    chan_board_close(board);
    chan_lane_close(&lane);

    return rc;
}


static int
status_engine(chan_board_t *board)
{
    chan_board_model_t  m;
    chan_board_state_t  s;

    if (chan_board_get_model(board, &m) != CHAN_OK
        || chan_board_get_state(board, &s) != CHAN_OK)
    {
        return -1;
    }

    printf("model     %s, fingerprint %016" PRIx64 ", context %" PRIu64 "\n",
           m.names, m.fingerprint, m.max_context);
    printf("engine    step %" PRIu64 ", heartbeat %" PRIu64 " ms ago, %" PRIu64
           " lanes\n", s.step, chan_now_ms() - s.heartbeat_ms, s.lanes);
    printf("requests  %" PRIu64 " running, %" PRIu64 " waiting, %" PRIu64
           " accepted, %" PRIu64 " tokens\n", s.running, s.waiting,
           s.requests, s.tokens);

    if (m.speculate != 0) {
        status_guesses(&m, &s);
    }

    return 0;
}


static void
status_guesses(const chan_board_model_t *m, const chan_board_state_t *s)
{
    uint32_t  i;
    uint64_t  right;

    for (right = 0, i = 0; i < CHAN_DEPTH_MAX; i++) {
        right += s->accepted[i];
    }

    printf("guesses   %" PRIu64 " of up to %" PRIu64 " at once, %" PRIu64
           " made in %" PRIu64 " drafts, %" PRIu64 " right", s->depth,
           m->speculate, s->draft_tokens, s->drafts, right);

    if (s->draft_tokens != 0) {
        printf(" (%.1f%%)", 100.0 * (double) right / (double) s->draft_tokens);
    }

    printf("\n");
}


/*
 * Expert load: of the rank, over the mean of all, in the layer where that is
 * most; experts moved: those that came to it.
 */

static int
status_ranks(chan_board_t *board)
{
    uint32_t           i;
    chan_board_rank_t  r;

    printf("\n%4s  %8s  %15s  %9s  %11s  %13s\n", "rank", "running",
           "KV blocks free", "tokens/s", "expert load", "experts moved");

    for (i = 0; i < chan_board_ranks(board); i++) {

        if (chan_board_get_rank(board, i, &r) != CHAN_OK) {
            return -1;
        }

        printf("%4u  %8" PRIu64 "  %7" PRIu64 "/%-7" PRIu64 "  %9" PRIu64 "  ",
               i, r.running, r.blocks_free, r.blocks_total, r.tokens_per_sec);

        if (r.load_max != 0) {
            printf("%11.2f  %13" PRIu64 "\n", (double) r.load_max / 1000,
                   r.moves);

        } else {
            printf("%11s  %13s\n", "-", "-");
        }
    }

    return 0;
}
