/*
 * The choice of a rank: the longest cached beginning, unless it costs balance.
 */

#include "ngx_http_llm_prefix.h"


#define NGX_HTTP_LLM_SENT_TIME  5000     /* ms; then a step should have been */
#define NGX_HTTP_LLM_SHOWN_MAX  (1u << 30)


/* What is known of the ranks at this moment. */

typedef struct {
    uint64_t                  load[CHAN_RANKS_MAX];
    uint64_t                  room[CHAN_RANKS_MAX];   /* free KV blocks */
    uint64_t                  least;
    uint64_t                  sum;
    ngx_uint_t                n;
} ngx_http_llm_pick_t;


static ngx_int_t ngx_http_llm_pick_read(ngx_http_llm_pick_t *pick,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board);
static uint64_t ngx_http_llm_pick_load(ngx_http_llm_prefix_rank_t *rank,
    uint32_t shown, uint64_t step);
static ngx_int_t ngx_http_llm_pick_best(ngx_http_llm_pick_t *pick,
    const ngx_http_llm_pick_conf_t *conf, const uint32_t *depth,
    ngx_uint_t ntags, uint64_t turn);
static ngx_uint_t ngx_http_llm_pick_overloaded(ngx_http_llm_pick_t *pick,
    const ngx_http_llm_pick_conf_t *conf, ngx_uint_t rank);


ngx_int_t
ngx_http_llm_pick(ngx_http_llm_prefix_t *zone,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board,
    const ngx_http_llm_pick_conf_t *conf, const uint32_t *depth,
    ngx_uint_t ntags, ngx_uint_t n, uint64_t *epoch)
{
    ngx_int_t             best;
    ngx_http_llm_pick_t   pick;

    best = -1;

    ngx_shmtx_lock(&zone->shpool->mutex);

    if (ngx_http_llm_pick_read(&pick, engine, board) == NGX_OK) {

        best = ngx_http_llm_pick_best(&pick, conf, depth, ntags,
                                      engine->turn++);
    }

    if (best >= 0) {
        engine->rank[best].sent[0] += n;
        engine->rank[best].when = (uint32_t) ngx_current_msec;
        *epoch = engine->rank[best].epoch;
    }

    ngx_shmtx_unlock(&zone->shpool->mutex);

    return best;
}


static ngx_int_t
ngx_http_llm_pick_read(ngx_http_llm_pick_t *pick,
    ngx_http_llm_prefix_engine_t *engine, chan_board_t *board)
{
    uint32_t            i, shown;
    chan_board_rank_t   rank;
    chan_board_state_t  state;

    if (chan_board_get_state(board, &state) != CHAN_OK) {
        return NGX_DECLINED;
    }

    pick->n = ngx_min(engine->nranks, chan_board_ranks(board));
    pick->least = UINT64_MAX;
    pick->sum = 0;

    for (i = 0; i < pick->n; i++) {

        if (chan_board_get_rank(board, i, &rank) != CHAN_OK) {
            return NGX_DECLINED;
        }

        /* An engine may write anything: sums must not overflow. */

        shown = ngx_min(rank.running, NGX_HTTP_LLM_SHOWN_MAX)
                + ngx_min(rank.waiting, NGX_HTTP_LLM_SHOWN_MAX);

        pick->load[i] = ngx_http_llm_pick_load(&engine->rank[i], shown,
                                               state.step);
        pick->room[i] = rank.blocks_free;
        pick->sum += pick->load[i];
        pick->least = ngx_min(pick->least, pick->load[i]);
    }

    return pick->n != 0 ? NGX_OK : NGX_DECLINED;
}


/*
 * The board shows a request after the step that took it in, at the latest.
 * For the step that was under way when requests were sent, and the one after,
 * a rank has at least what was shown before and these; then the board is
 * right again, whatever became of them.
 */

static uint64_t
ngx_http_llm_pick_load(ngx_http_llm_prefix_rank_t *rank, uint32_t shown,
    uint64_t step)
{
    uint64_t  load;

    if (rank->step != step) {
        rank->sent[1] = rank->step + 1 == step ? rank->sent[0] : 0;
        rank->base[1] = rank->base[0];
        rank->sent[0] = 0;
        rank->step = step;
    }

    if ((uint32_t) ngx_current_msec - rank->when > NGX_HTTP_LLM_SENT_TIME) {
        rank->sent[0] = 0;
        rank->sent[1] = 0;
    }

    if (rank->sent[0] == 0) {
        rank->base[0] = shown;
    }

    load = (uint64_t) rank->sent[0] + rank->sent[1]
           + (rank->sent[1] != 0 ? rank->base[1] : rank->base[0]);

    return ngx_max(load, shown);
}


static ngx_int_t
ngx_http_llm_pick_best(ngx_http_llm_pick_t *pick,
    const ngx_http_llm_pick_conf_t *conf, const uint32_t *depth,
    ngx_uint_t ntags, uint64_t turn)
{
    uint32_t    held;
    ngx_int_t   best;
    ngx_uint_t  i, k, want, refused;

    best = -1;
    refused = 0;
    want = ngx_max((ntags * conf->min_match + 99) / 100, 1);

    /* The deepest; equals by load, then by room, then in turn. */

    for (k = 0; k < pick->n; k++) {

        i = (turn + k) % pick->n;
        held = depth[i];

        if (held < want) {
            continue;
        }

        if (ngx_http_llm_pick_overloaded(pick, conf, i)) {
            refused = 1;
            continue;
        }

        if (best == -1
            || held > depth[best]
            || (held == depth[best]
                && (pick->load[i] < pick->load[best]
                    || (pick->load[i] == pick->load[best]
                        && pick->room[i] > pick->room[best]))))
        {
            best = i;
        }
    }

    if (best != -1 || !refused) {
        return best;
    }

    /* Balance wins. */

    for (k = 0; k < pick->n; k++) {

        i = (turn + k) % pick->n;

        if (pick->load[i] == pick->least
            && (best == -1 || pick->room[i] > pick->room[best]))
        {
            best = i;
        }
    }

    return best;
}


static ngx_uint_t
ngx_http_llm_pick_overloaded(ngx_http_llm_pick_t *pick,
    const ngx_http_llm_pick_conf_t *conf, ngx_uint_t rank)
{
    uint64_t  load;

    load = pick->load[rank];

    return load > pick->least + conf->max_skew
           && 4 * load * pick->n > 5 * pick->sum;
}
