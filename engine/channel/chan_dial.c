/*
 * Connecting as a worker does, for programs that only look or test: it waits.
 */

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "chan_board.h"


int
chan_dial(const char *path, int timeout_ms, chan_lane_t *lane,
    chan_board_t **board, char *err)
{
    int             i, rc, sock, fds[4];
    struct pollfd   p;
    chan_welcome_t  w;

    *board = NULL;
    chan_lane_init(lane);

    sock = chan_connect(path, err);
    if (sock < 0) {
        return CHAN_ERROR;
    }

    if (chan_send_hello(sock, 0, err) != CHAN_OK) {
        goto failed;
    }

    p.fd = sock;
    p.events = POLLIN;

    while ((rc = chan_recv_welcome(sock, &w, fds, err)) == CHAN_AGAIN) {
        if (poll(&p, 1, timeout_ms) == 0) {
            snprintf(err, CHAN_ERR_LEN, "%s: no answer within %d ms", path,
                     timeout_ms);
            goto failed;
        }
    }

    if (rc != CHAN_OK) {
        goto failed;
    }

    if (chan_welcome_check(&w, err) != CHAN_OK) {
        for (i = 0; i < 4; i++) {
            if (fds[i] != -1) {
                close(fds[i]);
            }
        }

        goto failed;
    }

    /* both own what they are given, on error too */

    if (chan_lane_open(lane, &w, fds[0], fds[2], fds[3], err) != CHAN_OK) {
        close(fds[1]);
        goto failed;
    }

    lane->sock = sock;

    if (chan_board_open(board, &w, fds[1], err) != CHAN_OK) {
        chan_lane_close(lane);
        return CHAN_ERROR;
    }

    return CHAN_OK;

failed:

    close(sock);

    return CHAN_ERROR;
}
