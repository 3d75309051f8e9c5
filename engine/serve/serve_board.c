/*
 * What the engine says about itself on the board.
 *
 * The step thread publishes after each step, the server thread on its tick:
 * only that one counts as a heartbeat, and only while the step thread is well.
 * A step may take long on a large model; it is taken for hung when it lasts
 * longer than SERVE_HUNG_US.
 */

#include "serve/serve_int.h"

#include <stdio.h>
#include <string.h>


_Static_assert(CHAN_DEPTH_MAX >= SCHED_DEPTH_MAX, "accepted[] is too short");

#define SERVE_HUNG_US   (UINT64_C(300) * 1000000)
#define SERVE_SPEED_MS  1000         /* tokens per second are counted over */


static void serve_board_speed(serve_t *s, const sched_stats_t *st);


int
serve_board_open(serve_t *s, char *err)
{
    char                *name;
    size_t               i, n, len;
    const char          *from;
    chan_board_model_t   m;

    if (chan_board_create(&s->board, s->opt.sched.n_ranks, &s->board_fd, err)
        != CHAN_OK)
    {
        s->board = NULL;
        return -1;
    }

    memset(&m, 0, sizeof(m));
    m.boot = s->opt.sched.boot;
    m.fingerprint = s->opt.fingerprint;
    m.created = s->opt.created;
    m.max_context = s->max_context;
    m.vocab_size = s->opt.sched.vocab;
    m.has_template = s->has_template;
    m.max_batch = s->opt.sched.max_batch;
    m.speculate = s->opt.sched.speculate;

    /* "name,alias" becomes "name\0alias\0\0". */

    n = 0;

    for (from = s->opt.names; *from != '\0'; from += len) {
        from += *from == ',';
        len = strcspn(from, ",");

        if (len == 0) {
            continue;
        }

        if (n + len + 2 > sizeof(m.names)) {
            snprintf(err, SERVE_ERR_LEN, "--model-name: names are longer than "
                     "%zu bytes together", sizeof(m.names) - 2);
            return -1;
        }

        name = m.names + n;
        memcpy(name, from, len);

        for (i = 0; i < len; i++) {
            if ((uint8_t) name[i] < 0x20 || name[i] == 0x7f) {
                snprintf(err, SERVE_ERR_LEN, "--model-name: control character "
                         "in a name");
                return -1;
            }
        }

        n += len + 1;
    }

    if (n == 0 || !chan_utf8_valid(m.names, n)) {
        snprintf(err, SERVE_ERR_LEN, "--model-name: \"%s\" is no name",
                 s->opt.names);
        return -1;
    }

    chan_board_set_model(s->board, &m);
    serve_board_publish(s, 1);

    return 0;
}


void
serve_board_publish(serve_t *s, int heartbeat)
{
    uint32_t             i;
    sched_stats_t        st;
    chan_board_rank_t    rank;
    chan_board_state_t   state;

    pthread_mutex_lock(&s->board_lock);

    sched_stats(s->sched, &st);

    if (heartbeat && sched_alive(s->sched, SERVE_HUNG_US)) {
        s->board_ms = chan_now_ms();
    }

    serve_board_speed(s, &st);

    memset(&state, 0, sizeof(state));
    state.step = st.steps;
    state.heartbeat_ms = s->board_ms;
    state.waiting = st.waiting;
    state.running = st.running;
    state.lanes = atomic_load(&s->board_lanes);
    state.requests = st.accepted;
    state.tokens = st.tokens;
    state.depth = st.depth;
    state.drafts = st.drafts;
    state.draft_tokens = st.drafted;

    for (i = 0; i < SCHED_DEPTH_MAX; i++) {
        state.accepted[i] = st.hit[i];
    }

    for (i = 0; i < st.n_ranks; i++) {
        memset(&rank, 0, sizeof(rank));
        rank.epoch = st.rank[i].epoch;
        rank.running = st.rank[i].running;
        rank.blocks_total = st.rank[i].blocks_total;
        rank.blocks_free = st.rank[i].blocks_free;
        rank.tokens_per_sec = s->board_speed[i];

        if (s->opt.experts != NULL) {
            s->opt.experts(s->opt.experts_ctx, i, &rank.load_max, &rank.moves);
        }

        chan_board_set_rank(s->board, i, &rank);
    }

    chan_board_set_state(s->board, &state);

    pthread_mutex_unlock(&s->board_lock);
}


static void
serve_board_speed(serve_t *s, const sched_stats_t *st)
{
    uint32_t  i;
    uint64_t  now, ms;

    now = chan_now_ms();
    ms = now - s->speed_ms;

    if (ms < SERVE_SPEED_MS) {
        return;
    }

    for (i = 0; i < st->n_ranks; i++) {
        s->board_speed[i] = (st->rank[i].tokens - s->board_tokens[i]) * 1000
                            / ms;
        s->board_tokens[i] = st->rank[i].tokens;
    }

    s->speed_ms = now;
}
