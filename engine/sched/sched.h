/*
 * The scheduler: sequences, continuous batching, KV blocks.
 *
 * It decides which rows each rank computes in each step, has them computed by
 * a function it was given, samples, and tells the owner of each sequence what
 * came out.  It knows token ids, positions and block numbers; what a tensor
 * is, or a request, it does not.
 *
 * A STEP.  All ranks step together.  The step thread plans: it takes in new
 * and cancelled sequences, ends those that are late, admits from the queue
 * while a rank has blocks, gives every running sequence its rows and its KV
 * blocks.  Then each rank's leader (the step thread itself is rank 0's)
 * computes the rank's rows, samples its sequences and hands out the tokens.
 * Then the step thread ends what is done.  With nothing to do everything
 * sleeps.
 *
 * AHEAD.  Ranks on devices would wait for all that.  In a step of `ahead` rows
 * or more, in all ranks together, the step thread leads no rank: while the step
 * is computed it hands out the tokens of the one before and plans the one behind
 * (sched_ahead.c), so that between two steps there is little but to put the new
 * tokens into the rows.  With fewer rows that takes less than the two changes of
 * threads.  What a stop string or a lack of credit ends is known one step later
 * then: that step's row is of no use, and one token more may be paid with
 * credit.
 *
 * ROWS.  A sequence that only needs its next token gets one row.  Prompts get
 * up to `prefill_chunk` rows beside them, within a budget of estimated time
 * (sched_budget.c): with a prompt at hand the mean time between tokens is 1.7
 * times what it is without.  Half of the prompts' time goes to the oldest, the
 * rest to the shortest, so that neither a long one starves nor a short one
 * waits behind it.
 *
 * ORDER.  Higher priority first, then first come first served; nothing
 * overtakes the head of the queue.  Where that finds no room, running ones of
 * lower priority make it (sched_room.c): they go back into the queue.
 *
 * BLOCKS are taken when they are needed.  When a rank runs out, the sequence
 * that is last in order (those that pause before all others) gives its blocks
 * back, goes back into the queue and is computed again later, prompt and
 * answer alike.  One arithmetic per position makes that exact: nothing is sent
 * twice and nothing changes.
 *
 * CACHE.  Full blocks stay where they are until their memory is needed, and
 * sequences that begin alike share them (kv_cache.h, sched_cache.c): those of
 * one tenant, on one rank.  So a sequence that was preempted mostly finds its
 * own again.  `cached` is what a sequence did not compute of its prompt.
 *
 * SPECULATION.  Up to `speculate` tokens are guessed and verified in one step
 * (sched_draft.c), as many as pay (sched_depth.c); the answers are the same.
 *
 * A sequence PAUSES while its credit is not positive or its `hold` is set.  It
 * does not count as one of the batch then.
 *
 * THREADS.  sched_submit(), sched_cancel(), sched_credit(), sched_wake() and
 * the readers at the end may be called by any thread.
 */

#ifndef SCHED_SCHED_H
#define SCHED_SCHED_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "sample/sample.h"
#include "sched/kv_disk.h"


#define SCHED_ERR_LEN   512
#define SCHED_TOP_MAX   20
#define SCHED_RANKS_MAX 64
#define SCHED_DEPTH_MAX 8            /* tokens that can be guessed */
#define SCHED_AHEAD     128          /* rows from which `ahead` pays */

typedef struct sched_s      sched_t;
typedef struct sched_seq_s  sched_seq_t;

/* The rows of one step on one rank, as be_batch_t has them. */

typedef struct {
    uint32_t                n_rows;
    const int32_t          *id;      /* [n_rows] */
    const uint32_t         *pos;     /* [n_rows] */
    const uint32_t         *seq;     /* [n_rows] index into `blocks` */
    uint32_t                n_seqs;
    const int32_t *const   *blocks;  /* [n_seqs] */
    int                     drafts;  /* sched_draft_pt follows */

    /*
     * How the token of each row of logits is drawn, or NULL: not all can be
     * drawn from their rows alone.  A step that can do so writes their ids;
     * logits are looked at where they stay SAMPLE_NOT_DRAWN.
     */
    const sample_draw_t    *draw;    /* [n_logits] */
    int32_t                *drawn;
    const uint8_t          *known;   /* [vocab] */
} sched_batch_t;

/*
 * Computes a step of one rank: logits of the rows `logit_row` (rising) go to
 * `logits`, [n_logits][vocab].  Called by that rank's leader, on every rank
 * in every step.  0, or -1 with the reason in `err` (SCHED_ERR_LEN); then the
 * scheduler ends all sequences and stops.  The step thread calls `begin`
 * before each step, while no rank is in one.
 */
typedef int (*sched_step_pt)(void *ctx, uint32_t rank,
    const sched_batch_t *batch, const uint32_t *logit_row, uint32_t n_logits,
    float *logits, char *err);

/*
 * Computes the drafting layer of one rank: a row is a token at its position,
 * and `from` says where the state of the position before is: in pass 0 the row
 * of the step just done, later the index of the row of logits of the pass
 * before.  Sequences have the layer's keys from position `first` on.  Logits
 * are those of the token after the row's.  Called by the rank's leader, on
 * every rank, for passes 0 to as many as the plan has.  0, or -1 as above.
 */

typedef struct {
    sched_batch_t    rows;
    const uint32_t  *first;          /* [n_seqs] */
    const uint32_t  *from;           /* [n_rows] */
    uint32_t         pass;
} sched_draft_t;

typedef int (*sched_draft_pt)(void *ctx, uint32_t rank,
    const sched_draft_t *draft, const uint32_t *logit_row, uint32_t n_logits,
    float *logits, char *err);

/*
 * Engines that step together, each with a scheduler of its own.  After its
 * plan, before the step, one says what it has to do and learns what all have.
 * 1: a step follows, with the most drafts that any wants, also for one that
 * has no work; 0: nobody has work, and sched_wake() is called as soon as
 * somebody has; -1 with the reason in `err`, as from a step.
 */

typedef struct {
    int       work;
    uint32_t  depth;                 /* drafts; then the most of all */
    double    rows;                  /* of the step; then those of all */
    double    planned_us;            /* then of the slowest */
    uint32_t  most;                  /* rows of a rank in any of its passes,
                                        drafts as well, at most; of this
                                        engine alone */
} sched_join_t;

typedef int (*sched_join_pt)(void *ctx, sched_join_t *j, char *err);

/* Whom to wake; NULL: nobody any more. */
typedef void (*sched_waker_pt)(void *ctx, sched_t *s);

/* Why a sequence ended. */

typedef enum {
    SCHED_STOP = 1,                  /* end of sequence, or tokens() said so */
    SCHED_LENGTH,                    /* max_tokens */
    SCHED_CANCELLED,
    SCHED_E_QUEUE,                   /* refused: too many wait */
    SCHED_E_TIMEOUT,                 /* queue_timeout or deadline */
    SCHED_E_LENGTH,                  /* cannot fit this rank's KV pool */
    SCHED_E_SHUTDOWN,
    SCHED_E_INTERNAL
} sched_reason_t;

typedef struct {
    uint32_t  rank;
    uint64_t  epoch;
    uint32_t  n_prompt;
    uint32_t  cached;                /* prompt tokens found so far */
    uint32_t  tags;                  /* that lie in these, or on disk */
} sched_accepted_t;

typedef struct {
    int32_t              id;
    float                logprob;    /* NaN: none */
    int                  eos;        /* ends the sequence, has no text */
    uint32_t             n_top;
    const sample_top_t  *top;
} sched_token_t;

typedef struct {
    sched_reason_t  reason;
    const char     *message;         /* of SCHED_E_…, else NULL */
    uint32_t        n_prompt;
    uint32_t        n_cached;
    uint32_t        n_output;
    uint32_t        n_drafted;       /* tokens guessed and verified */
    uint32_t        n_hit;           /* of them right */
    uint32_t        rank;
    uint64_t        step;            /* steps done */
    uint64_t        submitted_us;    /* monotonic; 0: did not come to that */
    uint64_t        accepted_us;
    uint64_t        first_us;
    uint64_t        ended_us;
} sched_finish_t;

typedef enum { SCHED_ECHO = 1, SCHED_OUTPUT } sched_kind_t;

/*
 * What the owner is told.  accepted() at most once, by the step thread;
 * tokens() by that or by the leader of the sequence's rank, never by two at
 * once: first those of the prompt (SCHED_ECHO), then others, of which it
 * returns 1 to end the sequence.  finish() exactly once and last, by the step
 * thread; `data` is not touched afterwards.  stepped() follows each step.  None
 * may block.  failed(): a rank failed.  lost(): a tag is not resident on a rank
 * any more; by the step thread, may be NULL.
 */

typedef struct {
    void (*accepted)(void *data, const sched_accepted_t *a);
    int (*tokens)(void *data, sched_kind_t kind, const sched_token_t *tok,
        uint32_t n);
    void (*finish)(void *data, const sched_finish_t *f);
    void (*stepped)(void *ctx);
    void (*failed)(void *ctx, const char *reason);
    void (*lost)(void *ctx, uint32_t rank, uint64_t tag);
} sched_ops_t;

/* A name for the tokens up to `last`: resident while that one's block is. */

typedef struct {
    uint64_t  tag;
    uint32_t  last;
} sched_tag_t;

typedef struct {
    uint32_t            n_ranks;
    uint32_t            vocab;
    const uint8_t      *known;       /* [vocab], kept by reference */
    uint32_t            kv_blocks;   /* of each rank */
    uint32_t            max_context;
    uint32_t            max_batch;   /* sequences per rank and step */
    uint32_t            prefill_chunk;
    double              touch;       /* share of the experts one row uses */
    uint32_t            queue_max;
    int                 prefix_cache;    /* 0: each computes its own */
    uint64_t            cache_seed;  /* of the model; chained hashes */
    const kv_disk_options_t  *disk;  /* NULL: none; without prefix_cache, too */
    const int32_t      *eos;         /* copied */
    uint32_t            n_eos;
    uint64_t            boot;        /* random; epochs start from it */
    sched_step_pt       step;
    sched_join_pt       join;        /* NULL: it steps alone */
    sched_waker_pt      waker;       /* with `join` */
    void              (*begin)(void *step_ctx);  /* NULL, or before steps */
    void               *step_ctx;
    uint32_t            ahead;       /* rows of such a step; 0: there is none */
    uint32_t            speculate;   /* at most SCHED_DEPTH_MAX; 0: off */
    int                 speculate_always;    /* also where it does not pay */
    sched_draft_pt      draft;       /* NULL without speculation */
    const sched_ops_t  *ops;
    void               *ops_ctx;
    uint64_t          (*now)(void);  /* µs; NULL: CLOCK_MONOTONIC */
} sched_options_t;

#define SCHED_QUEUE_ANY  UINT32_MAX  /* queue_max: however many wait */

/*
 * A sequence to compute.  `ids` is the prompt and, of a resumed one, `n_output`
 * ids made before; `ids`, `tags` and `params.bias` are malloc'd and the
 * scheduler's from sched_submit() on, also when it fails.
 */

typedef struct {
    void              *data;
    int32_t           *ids;
    uint32_t           n_prompt;     /* at least 1 */
    uint32_t           n_output;
    int                ended;        /* with those: it only stops */
    uint32_t           max_tokens;   /* n_prompt + max_tokens <= max_context */
    sample_params_t    params;
    int                logprobs;
    uint32_t           n_top;        /* at most SCHED_TOP_MAX */
    int                echo;         /* tokens() of the prompt too */
    int                ignore_eos;
    int32_t            priority;
    uint64_t           tenant[2];    /* shares blocks with its equals only */
    sched_tag_t       *tags;         /* `last` never falls, is in the prompt */
    uint32_t           n_tags;
    int32_t            rank_hint;    /* -1: none */
    uint64_t           rank_epoch;
    uint32_t           queue_max;    /* 0: the scheduler's own */
    uint64_t           submitted_us; /* when the request came, monotonic */
    uint64_t           queue_us;     /* may wait that long; 0: no limit */
    uint64_t           deadline_us;  /* may take that long; 0: no limit */
    int64_t            credit;
    const atomic_int  *hold;         /* pauses while not 0; NULL: never */
} sched_request_t;


/* Rows and logits rows that one step of a rank can have. */
uint32_t sched_max_rows(uint32_t max_batch, uint32_t prefill_chunk,
    uint32_t speculate);
uint32_t sched_max_logits(uint32_t max_batch, uint32_t prefill_chunk,
    uint32_t speculate);

/*
 * sched_open() makes it, sched_start() starts its threads; NULL or -1 with the
 * reason in `err` (SCHED_ERR_LEN).  sched_drain(): nothing new, what waits is
 * ended with SCHED_E_SHUTDOWN, what runs goes on.  sched_stop() ends the rest
 * alike and joins the threads.  sched_close() frees.
 */
sched_t *sched_open(const sched_options_t *opt, char *err);
int sched_start(sched_t *s, char *err);
void sched_drain(sched_t *s);
void sched_stop(sched_t *s);
void sched_close(sched_t *s);

/*
 * Between sched_stop() and sched_close(): writes the cached blocks to disk,
 * those used last first, for at most about `limit_us`.
 */
void sched_keep(sched_t *s, uint64_t limit_us);

/*
 * Hands a sequence over; finish() will be called, unless -1 is returned (no
 * memory).  `*seq` is set before any callback can run.  The sequence is
 * referred to twice, by the scheduler and by the caller, who gives it back
 * with sched_release(), before finish() or after.  Not after sched_stop().
 */
int sched_submit(sched_t *s, const sched_request_t *r, sched_seq_t **seq);
void sched_release(sched_seq_t *seq);

/* Ends it within one step. */
void sched_cancel(sched_t *s, sched_seq_t *seq);

/* Adds credit; sched_charge(), from tokens() or finish(), takes it. */
void sched_credit(sched_t *s, sched_seq_t *seq, int64_t bytes);
void sched_charge(sched_seq_t *seq, int64_t bytes);

/* A `hold` was cleared. */
void sched_wake(sched_t *s);


typedef struct {
    uint64_t  epoch;
    uint32_t  running;               /* sequences, paused ones too */
    uint32_t  blocks_total;
    uint32_t  blocks_free;           /* those only cached, too */
    uint32_t  blocks_cached;         /* that nobody holds */
    uint64_t  tokens;                /* made since start */
    uint64_t  prompt;                /* tokens of prompts that have ended */
    uint64_t  cached;                /* those of them found in the cache */
} sched_rank_stats_t;

typedef struct {
    uint64_t            steps;
    uint32_t            waiting;     /* not accepted yet */
    uint32_t            running;     /* accepted */
    uint64_t            accepted;    /* since start */
    uint64_t            tokens;
    uint64_t            preempted;
    uint64_t            prompt;      /* sums over the ranks */
    uint64_t            cached;
    uint64_t            drafts;      /* times that guesses were verified */
    uint64_t            drafted;     /* guesses in these */
    uint64_t            hits;        /* of them right */
    uint64_t            hit[SCHED_DEPTH_MAX];    /* by place in their row */
    uint32_t            depth;       /* guessed in the last step */
    uint64_t            busy_us;     /* in steps */
    uint64_t            guess_us;    /* that they were planned to take */
    uint64_t            followed;    /* steps right behind another */
    uint64_t            idle_us;     /* of a rank, between those */
    uint32_t            n_ranks;
    sched_rank_stats_t  rank[SCHED_RANKS_MAX];
} sched_stats_t;

/* A consistent copy, as of the last step. */
void sched_stats(sched_t *s, sched_stats_t *st);

/* Of the disk tier; 0, or -1: there is none. */
int sched_disk_stats(sched_t *s, kv_disk_stats_t *st);

/* Sequences that wait, those not yet looked at included. */
uint32_t sched_waiting(sched_t *s);

/*
 * Whether the step thread is well: asleep, or in a step that began less than
 * `limit_us` ago.
 */
int sched_alive(sched_t *s, uint64_t limit_us);

#endif /* SCHED_SCHED_H */
