/*
 * The lane: joining, writing records, and reading until all has ended.
 */

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "client.h"


static void wait_for(int fd, int fd2, int ms);


static chan_lane_t    lane;
static chan_board_t  *board;


void
lane_close(void)
{
    chan_board_close(board);
    chan_lane_close(&lane);
}


void
lane_dial(void)
{
    int             rc, sock, fds[4];
    char            err[CHAN_ERR_LEN];
    double          until;
    chan_welcome_t  w;

    until = now() + opt.timeout;

    for ( ;; ) {
        sock = chan_connect(opt.socket, err);

        if (sock >= 0) {
            break;
        }

        if (now() > until) {
            die("connect", err);
        }

        usleep(50000);
    }

    if (chan_send_hello(sock, 0, err) != CHAN_OK) {
        die("hello", err);
    }

    while ((rc = chan_recv_welcome(sock, &w, fds, err)) == CHAN_AGAIN) {
        wait_for(sock, -1, 1000);
    }

    if (rc != CHAN_OK || chan_welcome_check(&w, err) != CHAN_OK) {
        die("welcome", err);
    }

    if (chan_lane_open(&lane, &w, fds[0], fds[2], fds[3], err) != CHAN_OK
        || chan_board_open(&board, &w, fds[1], err) != CHAN_OK)
    {
        die("lane", err);
    }

    lane.sock = sock;

    if (chan_board_get_model(board, &client.model) != CHAN_OK) {
        die("board", "no model");
    }
}


void
lane_put(const struct iovec *part, int n)
{
    int   rc;
    char  err[CHAN_ERR_LEN];

    while ((rc = chan_ring_write(&lane.out, part, n, err)) == CHAN_AGAIN) {
        chan_ring_notify_data(&lane.out);
        usleep(1000);
    }

    if (rc != CHAN_OK) {
        die("submission ring", err);
    }

    chan_ring_notify_data(&lane.out);
}


void
lane_loop(void)
{
    int     rc;
    char    err[CHAN_ERR_LEN];
    double  until;

    static uint64_t  buf[CHAN_RECORD_MAX / 8];

    until = now() + opt.timeout;

    while (client.ended < (opt.total > 0 ? opt.total : 1)) {

        while (client.begun < (opt.total > 0 ? opt.total : 1)
               && client.begun - client.ended < opt.concurrent)
        {
            submit(client.begun);
        }

        rc = chan_ring_read(&lane.in, buf, sizeof(buf), err);

        if (rc == CHAN_OK) {
            events_take((chan_record_t *) buf);
            until = now() + opt.timeout;
            continue;
        }

        if (rc == CHAN_AGAIN) {
            chan_ring_notify_room(&lane.in);
            rc = chan_ring_sleep(&lane.in, err);

            if (rc == 0) {
                continue;
            }

            if (rc == 1) {
                wait_for(lane.bell_own, lane.sock, 1000);
                chan_bell_drain(lane.bell_own);
                chan_ring_awake(&lane.in);

                if (chan_ring_room(&lane.out, err) < 0) {
                    die("ring", err);
                }

                if (chan_peer_alive(lane.sock, err) != CHAN_OK
                    && chan_ring_sleep(&lane.in, err) == 1)
                {
                    die("engine", err);
                }

                if (now() > until) {
                    die("engine", "nothing comes");
                }

                continue;
            }
        }

        die("event ring", err);
    }
}


static void
wait_for(int fd, int fd2, int ms)
{
    struct pollfd  p[2] = { { fd, POLLIN, 0 }, { fd2, POLLIN, 0 } };

    (void) poll(p, fd2 >= 0 ? 2 : 1, ms);
}
