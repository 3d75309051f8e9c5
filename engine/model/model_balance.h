/*
 * The balancer: which experts are used how much, and where they should live.
 *
 * A thread of the lowest priority counts the rows of each expert, older rows
 * for less and less, and from time to time places each layer anew (ep_balance)
 * where that makes the busiest rank less busy by enough.  It makes the weights
 * that a rank needs for its new place beside those in use; between two steps
 * model_balance_turn() exchanges the two, on all ranks at once, one layer at a
 * time; then the thread frees what nobody uses any more.  No step waits for
 * it, and at most one layer has two places.
 *
 * Ranks that share weights have all of them in memory anyway: a move costs
 * them nothing.
 *
 * Which rank computes a row for an expert changes no answer.
 *
 * SEVERAL NODES.  Each has a balancer, of its own ranks.  Those of the others
 * send node 0 what they count; node 0's places the layers for all ranks and
 * sends each new place to the others (model_balance_nodes.c), and when all
 * have made it ready, says in which step they exchange it (ep_begin_t.move).
 */

#ifndef MODEL_MODEL_BALANCE_H
#define MODEL_MODEL_BALANCE_H

#include "ep/ep_nodes.h"
#include "model/model.h"


typedef struct model_balance_s  model_balance_t;

typedef struct {
    double   interval;               /* seconds; 0: count only */
    double   gain;                   /* least share of the load to be saved */
    void   (*log)(void *ctx, int bad, const char *text);
    void    *log_ctx;
    ep_nodes_t  *nodes;              /* NULL: all ranks are here */
} model_balance_options_t;

typedef struct {
    uint64_t  load_max;              /* over mean, x 1000: the worst layer */
    uint64_t  moves;                 /* experts that came here, so far */
} model_balance_stats_t;


/*
 * Starts the thread.  `rank`, all of one model and exchange, outlive it; the
 * array is copied.  NULL with the reason in `err` (ERR_LEN).
 */
model_balance_t *model_balance_open(model_rank_t *const *rank, uint32_t n,
    const model_balance_options_t *opt, char *err);

/* Between steps, or after the last. */
void model_balance_close(model_balance_t *b);

/*
 * To be called before each step while no rank computes, by the thread that
 * then lets them begin: the number of the move that is ready, 0 if there is
 * none; and making it, or the one that node 0 has named.  0, or -1 if it is
 * not there.  Both cost next to nothing.
 */
uint64_t model_balance_move(const model_balance_t *b);
int model_balance_turn(model_balance_t *b, uint64_t move);

/* About one rank of this node, as of the last second.  Any thread may ask. */
void model_balance_stats(const model_balance_t *b, uint32_t rank,
    model_balance_stats_t *st);

#endif /* MODEL_MODEL_BALANCE_H */
