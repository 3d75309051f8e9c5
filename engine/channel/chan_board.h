/*
 * The board: what the engine publishes for every worker.
 *
 * FORMAT
 *
 *     offset     0  chan_board_head_t: magic, version, sizes, counts; written
 *                   before the board is handed out, never again
 *     then          chan_entry_t of chan_board_model_t
 *     then          chan_entry_t of chan_board_state_t
 *     then          n_ranks chan_entry_t of chan_board_rank_t
 *     then          the eviction log: `log_size` (a power of two) slots of
 *                   chan_evict_t
 *
 * WRITER  the engine alone (one thread at a time per entry).
 *
 * READER  any worker.  An entry is a sequence counter followed by 64-bit words:
 * the writer makes the counter odd, stores the words, makes it even; a reader
 * copies the words between two equal even loads and tries again otherwise, a
 * bounded number of times.  Words are loaded and stored atomically, so a torn
 * copy is possible but a torn word is not.
 *
 * The eviction log: record number n (from 1) lives in slot n & (log_size - 1)
 * and carries n itself.  The engine stores the slot's `seq` as 0, the words,
 * then `seq` (release), then state.log_head.  A reader that last applied
 * number n reads n + 1 … log_head; a slot whose `seq` is larger than wanted
 * means that the reader was lapped: what it knew of any rank is void, for
 * nobody can say whose records were lost.  A record says that a tag
 * (chan_message.h) stopped being resident on a rank.  A rank whose cache is
 * emptied as a whole takes a new epoch instead of logging each tag: what was
 * known of the old epoch is void.
 *
 * RECOVERY  A reader that finds an odd counter too long, a bad size or an old
 * heartbeat treats the engine as gone.  A board is never reused by another
 * engine process.
 */

#ifndef CHAN_BOARD_H
#define CHAN_BOARD_H

#include "channel.h"

#ifdef __cplusplus
extern "C" {
#endif


#define CHAN_RANKS_MAX      64
#define CHAN_NAMES_LEN      512      /* names, each NUL-terminated, '' ends */
#define CHAN_LOG_SIZE       16384
#define CHAN_DEPTH_MAX      8        /* tokens guessed in a row */
#define CHAN_STALE_MS       5000     /* heartbeat older than this: gone */


typedef struct {
    uint64_t  magic;
    uint32_t  version;
    uint32_t  n_ranks;
    uint64_t  size;              /* of the whole board */
    uint64_t  log_size;          /* slots */
} chan_board_head_t;

/* Constant while an engine lives. */

typedef struct {
    uint64_t  boot;              /* random, different in each engine process */
    uint64_t  fingerprint;       /* of config, weights and tokenizer */
    uint64_t  created;           /* UNIX time of the checkpoint, seconds */
    uint64_t  max_context;       /* tokens, prompt and completion */
    uint64_t  vocab_size;
    uint64_t  has_template;      /* chat is possible */
    uint64_t  max_batch;
    uint64_t  speculate;         /* tokens guessed at most; 0: none */
    char      names[CHAN_NAMES_LEN];     /* first is the model's own name */
} chan_board_model_t;

typedef struct {
    uint64_t  step;              /* steps done */
    uint64_t  heartbeat_ms;      /* CLOCK_MONOTONIC */
    uint64_t  waiting;           /* requests in the queue */
    uint64_t  running;
    uint64_t  log_head;          /* last number in the eviction log */
    uint64_t  lanes;
    uint64_t  requests;          /* accepted since start */
    uint64_t  tokens;            /* generated since start */
    uint64_t  depth;             /* tokens guessed in a row, lately */
    uint64_t  drafts;            /* times that guesses were verified */
    uint64_t  draft_tokens;      /* guesses in these */
    uint64_t  accepted[CHAN_DEPTH_MAX];  /* right ones, by their place */
} chan_board_state_t;

typedef struct {
    uint64_t  epoch;             /* of this rank's cache */
    uint64_t  running;           /* sequences */
    uint64_t  waiting;
    uint64_t  blocks_total;      /* KV blocks */
    uint64_t  blocks_free;
    uint64_t  tokens_per_sec;
    uint64_t  load_max;          /* of its experts, recently: over the ranks'
                                    mean, * 1000, in the worst layer */
    uint64_t  moves;             /* experts that came to it, since start */
} chan_board_rank_t;

typedef struct {
    volatile AO_t  seq;
    volatile AO_t  tag;
    volatile AO_t  rank;
    volatile AO_t  reserved;
} chan_evict_t;

typedef struct chan_board_s  chan_board_t;


/*
 * chan_board_create(): the engine's; `*fd` is to be handed to workers and
 * stays the board's.  chan_board_open(): a worker's; takes `fd` (owned, also
 * on error), checks seals, size, magic and version, and maps it read-only.
 * Both return CHAN_OK, or CHAN_ERROR with the reason in `err`.
 * chan_board_close() unmaps and closes; NULL does no harm.
 * chan_board_ranks() is the number of ranks, chan_board_size() that of bytes.
 *
 * chan_board_set_*() publish; chan_board_get_*() return CHAN_OK, or
 * CHAN_AGAIN if no untorn copy was to be had; then all fields are 0.  Names
 * read are always terminated.  A rank that is not there is CHAN_ERROR.
 *
 * chan_board_evict() appends to the log, publishes state.log_head, which
 * chan_board_set_state() therefore leaves alone, and returns the number.
 * chan_board_log() reads number `n`: CHAN_OK, CHAN_AGAIN (not written yet),
 * CHAN_ERROR (lapped).
 *
 * chan_board_stale(): whether the heartbeat is older than CHAN_STALE_MS.
 * chan_now_ms() is the clock of the heartbeat.
 */

int chan_board_create(chan_board_t **board, uint32_t n_ranks, int *fd,
    char *err);
int chan_board_open(chan_board_t **board, const chan_welcome_t *welcome,
    int fd, char *err);
void chan_board_close(chan_board_t *board);
uint32_t chan_board_ranks(const chan_board_t *board);
uint64_t chan_board_size(const chan_board_t *board);

void chan_board_set_model(chan_board_t *board, const chan_board_model_t *m);
void chan_board_set_state(chan_board_t *board, const chan_board_state_t *s);
void chan_board_set_rank(chan_board_t *board, uint32_t rank,
    const chan_board_rank_t *r);
int chan_board_get_model(chan_board_t *board, chan_board_model_t *m);
int chan_board_get_state(chan_board_t *board, chan_board_state_t *s);
int chan_board_get_rank(chan_board_t *board, uint32_t rank,
    chan_board_rank_t *r);

uint64_t chan_board_evict(chan_board_t *board, uint32_t rank, uint64_t tag);
int chan_board_log(chan_board_t *board, uint64_t n, uint32_t *rank,
    uint64_t *tag);

int chan_board_stale(chan_board_t *board);

/*
 * Connects as a worker does and waits for each answer up to `timeout_ms`
 * (chan_dial.c): for programs that only look, and for tests.  CHAN_OK with
 * lane and board open, or CHAN_ERROR with nothing open.
 */
int chan_dial(const char *path, int timeout_ms, chan_lane_t *lane,
    chan_board_t **board, char *err);

uint64_t chan_now_ms(void);


#ifdef __cplusplus
}
#endif

#endif /* CHAN_BOARD_H */
