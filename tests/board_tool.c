/*
 * Shows an engine's board: connects as a worker does, maps the board that it
 * is handed and prints it as JSON, one line each time.
 *
 *     board_tool SOCKET          one line for each line on standard input
 *     board_tool SOCKET once     one line
 *
 * The board is read in shared memory, so a line costs the engine nothing and
 * is as new as the last step.  The connection is a lane on the board.
 *
 * Exit status: 0; 2 if there is no engine or the board cannot be read.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "channel/chan_board.h"
#include "channel/channel.h"


static chan_lane_t    lane;
static chan_board_t  *board;


static int print_board(void);
static int print_ranks(void);


int
main(int argc, char **argv)
{
    char  err[CHAN_ERR_LEN], line[64];

    if (argc < 2 || argc > 3) {
        fputs("usage: board_tool SOCKET [once]\n", stderr);
        return 2;
    }

    if (chan_dial(argv[1], 5000, &lane, &board, err) != CHAN_OK) {
        fprintf(stderr, "board_tool: %s: %s\n", argv[1], err);
        return 2;
    }

    setvbuf(stdout, NULL, _IOLBF, 0);

    do {
        if (argc == 2 && fgets(line, sizeof(line), stdin) == NULL) {
            break;
        }

        if (print_board() != 0) {
            fputs("board_tool: the board could not be read\n", stderr);
            return 2;
        }

    } while (argc == 2);

    chan_board_close(board);
    chan_lane_close(&lane);

    return 0;
}


static int
print_board(void)
{
    chan_board_model_t  m;
    chan_board_state_t  s;

    if (chan_board_get_model(board, &m) != CHAN_OK
        || chan_board_get_state(board, &s) != CHAN_OK)
    {
        return -1;
    }

    printf("{\"boot\":\"%016" PRIx64 "\",\"fingerprint\":\"%016" PRIx64
           "\",\"created\":%" PRIu64 ",\"max_context\":%" PRIu64
           ",\"vocab_size\":%" PRIu64 ",\"has_template\":%" PRIu64
           ",\"step\":%" PRIu64 ",\"age_ms\":%" PRIu64 ",\"waiting\":%" PRIu64
           ",\"running\":%" PRIu64 ",\"lanes\":%" PRIu64 ",\"requests\":%"
           PRIu64 ",\"tokens\":%" PRIu64 ",\"draft_tokens\":%" PRIu64
           ",\"stale\":%d,\"ranks\":[",
           m.boot, m.fingerprint, m.created, m.max_context, m.vocab_size,
           m.has_template, s.step, chan_now_ms() - s.heartbeat_ms, s.waiting,
           s.running, s.lanes, s.requests, s.tokens, s.draft_tokens,
           chan_board_stale(board));

    if (print_ranks() != 0) {
        return -1;
    }

    printf("]}\n");

    return 0;
}


static int
print_ranks(void)
{
    uint32_t           i;
    chan_board_rank_t  r;

    for (i = 0; i < chan_board_ranks(board); i++) {

        if (chan_board_get_rank(board, i, &r) != CHAN_OK) {
            return -1;
        }

        printf("%s{\"epoch\":\"%016" PRIx64 "\",\"running\":%" PRIu64
               ",\"waiting\":%" PRIu64 ",\"blocks_total\":%" PRIu64
               ",\"blocks_free\":%" PRIu64 ",\"load_max\":%" PRIu64
               ",\"moves\":%" PRIu64 "}", i == 0 ? "" : ",", r.epoch,
               r.running, r.waiting, r.blocks_total, r.blocks_free,
               r.load_max, r.moves);
    }

    return 0;
}
