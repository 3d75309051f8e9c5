/*
 * Inside the scheduler.
 *
 * Who may touch what: `events`, the inbox and `stats` under `lock`; atomics by
 * anybody; all else by the step thread between steps.  Within a step a rank's
 * arrays of rows, its logits and its part of the step are its leader's.  So
 * are the sequences of that part, if nothing is prepared meanwhile; else they
 * are the step thread's, and a leader reads what no plan changes of them:
 * `r`, `ids`, `n_total`, and the blocks that the rows need.
 */

#ifndef SCHED_SCHED_INT_H
#define SCHED_SCHED_INT_H

#include <pthread.h>

#include "sched/kv_cache.h"
#include "sched/kv_tags.h"
#include "sched/sched.h"
#include "sched/sched_cost.h"


#define SCHED_EOS_MAX  8
#define SCHED_WHY_LEN  128
#define SCHED_NEVER    UINT64_MAX
#define SCHED_NO_LIMIT 1e300         /* of a step's time */

typedef enum {
    SCHED_IN_NONE = 0,               /* new, or ended */
    SCHED_IN_QUEUE,
    SCHED_IN_PARK,                   /* preempted, and pauses */
    SCHED_IN_RANK
} sched_place_t;

typedef enum {
    SCHED_UNPLANNED = 0,
    SCHED_PLANNED,
    SCHED_PASSED                     /* looked at, nothing to be had */
} sched_planned_t;

struct sched_seq_s {
    atomic_int        refs;
    atomic_int        cancelled;
    _Atomic int64_t   credit;

    sched_seq_t      *event_next;    /* under lock */
    int               event;         /* is in the list */

    sched_seq_t      *prev;          /* queue or park */
    sched_seq_t      *next;
    sched_place_t     place;

    sched_request_t   r;
    uint64_t          order;         /* of arrival */
    uint32_t          rank;
    int               accepted;
    int               ended;
    int               looked_at;     /* the queue's limit was applied */

    int32_t          *ids;
    uint32_t          n_total;       /* ids known */
    uint32_t          cap;
    uint32_t          n_done;        /* positions in the KV blocks, those of
                                        the step under way included */
    int               in_step;       /* is part of that */
    uint32_t          coming;        /* tokens that it makes for certain */
    uint32_t          n_seen;        /* the most that ever were */
    uint32_t          n_cached;      /* of the prompt, found and not computed */
    uint32_t          n_echo;        /* prompt tokens handed out */

    int32_t          *blocks;
    uint32_t          n_blocks;
    uint32_t          n_public;      /* leading blocks that are published */
    uint32_t          n_tagged;      /* tags that these have */

    kv_key_t         *hash;          /* chained, of its leading full blocks */
    uint32_t          n_hash;
    uint32_t          cap_hash;
    uint32_t          fetched;       /* block asked of the disk, plus one */

    int32_t           draft[SCHED_DEPTH_MAX];    /* guesses that follow */
    uint32_t          n_draft;
    uint32_t          mtp_first;     /* has the drafting layer's keys from */
    uint32_t          mtp_next;      /* there up to before here */
    uint32_t          n_drafted;
    uint32_t          n_hit;

    int               pause;         /* as this plan saw it */
    int               leaves;        /* after the step under way, likewise */
    uint32_t          rows;          /* planned */
    uint32_t          n_spec;        /* the last of them, for guesses */
    uint32_t          n_score;       /* rows whose logits score the prompt */
    sched_planned_t   planned;

    sched_reason_t    done;          /* to be ended, and why */
    const char       *message;
    char              why[SCHED_WHY_LEN];
    uint64_t          accepted_us;
    uint64_t          first_us;
};

typedef struct {
    sched_seq_t  *first;
    sched_seq_t  *last;
    uint32_t      n;
} sched_list_t;

/* Blocks that a rank has read from disk, see sched_disk.c. */

typedef struct sched_fetch_s  sched_fetch_t;

struct sched_fetch_s {
    kv_restore_t    job;             /* holds the blocks it reads into */
    sched_fetch_t  *next;            /* of the rank */
    uint32_t        first;           /* number of its first block */
    int32_t        *front;           /* [first] blocks before it, held */
    int             wanted;          /* as of this plan */
};

/* What a sequence has in a step. */

typedef struct {
    sched_seq_t      *seq;
    uint32_t          first;         /* position of its first row */
    uint32_t          rows;
    uint32_t          n_spec;        /* the last of them, for guesses */
    uint32_t          scored;        /* position of the first row that scores */
    uint32_t          n_score;
    int               samples;
    int               dead;          /* had ended before the step was done */
    uint32_t          logit;         /* its first row of logits */
    uint32_t          slot;          /* its first token: see sched_output.c */
    uint32_t          n_out;         /* tokens to be handed out */
} sched_entry_t;

/* A rank's part of a step, and what came of it. */

typedef struct {
    sched_entry_t    *entry;         /* [max_batch] */
    uint32_t          n;
    uint32_t          n_slots;
    sched_token_t    *token;         /* [max_logits + max_batch] */
    sample_top_t     *top;           /* SCHED_TOP_MAX of each */
} sched_part_t;

typedef struct {
    uint32_t          index;
    kv_cache_t        cache;
    kv_tags_t         tags;          /* open if there is a cache */
    sched_fetch_t    *fetches;       /* blocks that are being read */
    uint32_t         *paused;        /* [n_blocks] holders that pause */
    int               counted;       /* some of these are not 0 */

    sched_seq_t     **running;       /* in order */
    uint32_t          n_running;
    uint32_t          cap_running;
    uint32_t          n_active;      /* not paused, as of this plan */
    double            backlog_us;    /* of the prompts among them */
    double            answers_us;    /* that they add to a step */
    uint32_t          reserve;       /* blocks promised but not taken yet */
    uint32_t          reclaim;       /* blocks that only pausing ones hold */

    uint32_t          n_planned;     /* sequences in the plan */
    uint32_t          n_prompts;     /* that need more than one row */
    uint64_t          prompt_rows;   /* these need in all */
    uint32_t          logits_left;
    sched_load_t      load;          /* of the plan so far */
    uint64_t          oldest;        /* order of the first prompt */
    double            lead;          /* µs it had more than the others */

    sched_part_t      parts[2];
    sched_part_t     *part;          /* of the step at hand */
    sched_part_t     *owed;          /* tokens of the one before, if any */
    int32_t          *row_id;
    uint32_t         *row_pos;
    uint32_t         *row_seq;
    const int32_t   **seq_blocks;
    uint32_t         *logit_row;
    uint32_t          n_rows;
    uint32_t          n_logits;

    uint32_t         *d_entry;       /* of a pass of drafts */
    int32_t          *d_id;
    uint32_t         *d_pos;
    uint32_t         *d_seq;
    uint32_t         *d_from;
    uint32_t         *d_first;
    uint32_t         *d_logit_row;
    uint32_t          d_rows;
    uint32_t          d_logits;
    uint32_t          answered;      /* sequences, in this step */
    uint32_t          made;          /* their tokens */
    uint64_t          drafts;        /* as in sched_stats_t */
    uint64_t          drafted;
    uint64_t          hit[SCHED_DEPTH_MAX];

    float            *logits;
    sample_draw_t    *draw;          /* of each row of logits */
    int32_t          *drawn;
    int               drawing;       /* in this step */
    sample_t         *sample;
    sched_token_t    *echo;          /* [max_logits] prompt tokens */
    uint64_t          tokens;
    uint64_t          prompt;        /* of sequences that have ended */
    uint64_t          cached;
    int               rc;
    char              err[SCHED_ERR_LEN];

    uint64_t          oldest_kept;   /* before this plan */
    double            lead_kept;

    uint64_t          began_us;      /* computing its last step */
    uint64_t          ended_us;
    uint64_t          last_us;       /* ended_us of the one before */
    uint64_t          idle_us;       /* between steps */

    pthread_t         thread;
    int               started;
    uint64_t          seen;          /* step last joined */
    sched_t          *sched;
} sched_rank_t;

/* What guessing brought at one number of sequences; see sched_depth.c. */

#define SCHED_SIZES  12

typedef struct {
    int       known;
    uint32_t  depth;                 /* in use */
    uint32_t  best;
    uint32_t  next;                  /* last one tried again */
    uint32_t  steps;                 /* measured of `depth` */
    uint32_t  waited;                /* since the last trial */
    uint32_t  pause;                 /* until the next */
    double    tokens;
    double    us;
    double    speed[SCHED_DEPTH_MAX + 1];    /* tokens per us; 0: unknown */
} sched_size_t;

/* What the step under way was planned as; plans made meanwhile have theirs. */

typedef struct {
    int               ahead;         /* the next one is prepared meanwhile */
    uint32_t          depth;         /* guesses after it */
    uint32_t          last_depth;
    double            all_rows;
} sched_run_t;

struct sched_s {
    sched_options_t   opt;
    int32_t           eos[SCHED_EOS_MAX];
    uint32_t          max_rows;
    uint32_t          max_logits;

    pthread_mutex_t   lock;
    pthread_cond_t    wake;          /* for the step thread */
    sched_seq_t      *events;        /* new and cancelled, newest first */
    int               changed;       /* something to look at */
    int               landed;        /* all leaders are done */
    int               draining;      /* asked for */
    int               drained;       /* done so */
    int               stopping;
    sched_stats_t     stats;

    pthread_mutex_t   step_lock;
    pthread_cond_t    step_begin;
    uint64_t          step_no;       /* steps begun */
    uint32_t          step_left;     /* leaders at work */
    int               step_apart;    /* rank 0's is one of them */
    int               step_quit;

    pthread_t         thread;
    int               started;

    sched_list_t      queue;
    sched_list_t      park;
    uint32_t          n_waiting;     /* in the queue, never accepted */
    uint64_t          next_order;
    uint64_t          next_deadline;
    uint64_t          steps;
    uint64_t          accepted;
    uint64_t          preempted;
    int               failed;

    sched_run_t       run;
    int               preparing;     /* a step is under way */
    int               abandoned;     /* what it brings matters */
    int               prepared;      /* shares are given out */
    int               owing;         /* tokens of the step before */
    int               idled;         /* had nothing to do before this step */
    int               kept;          /* sums from before this plan are */
    double            account_kept;
    uint64_t          followed;      /* steps right behind another */

    kv_disk_t        *disk;          /* NULL: none */
    uint32_t          depth;         /* guesses after this step */
    uint32_t          last_depth;
    sched_size_t      size[SCHED_SIZES];

    sched_cost_t      cost;
    double            all_rows;      /* of the plan so far */
    double            budget_base;   /* µs of the step without prompts */
    double            budget;        /* with them; 0: no prompts */
    double            account;       /* µs that prompts may take */
    double            planned_us;    /* of the step at hand */
    sched_load_t      load;          /* of its slowest rank */
    int               foreign;       /* others' work took the time of it */
    uint64_t          step_from;     /* when it began */
    uint64_t          busy_us;       /* of all steps */
    uint64_t          guess_us;

    atomic_uint       n_inbox;       /* submitted, not looked at */
    atomic_uint       n_queued;      /* n_waiting, for others */
    _Atomic uint64_t  step_began;    /* µs; 0: asleep */

    sched_seq_t     **event;         /* those of this plan, in order */
    uint32_t          n_event;
    uint32_t          cap_event;

    uint32_t          n_ranks;
    sched_rank_t     *rank;
};


/* sched.c */
uint64_t sched_now(const sched_t *s);
int sched_paused(const sched_seq_t *seq);
int sched_leaves(const sched_seq_t *seq);
int sched_samples(const sched_seq_t *seq);
uint32_t sched_target(const sched_seq_t *seq);
void sched_end(sched_t *s, sched_seq_t *seq, sched_reason_t reason,
    const char *message);
void sched_free_blocks(sched_t *s, sched_seq_t *seq);
void sched_publish(sched_t *s);

/* sched_queue.c */
void sched_list_add(sched_list_t *list, sched_seq_t *seq);
void sched_list_remove(sched_list_t *list, sched_seq_t *seq);
int sched_before(const sched_seq_t *a, const sched_seq_t *b);
void sched_take_events(sched_t *s);
void sched_unpark(sched_t *s);
void sched_expire(sched_t *s, uint64_t now);
void sched_note_deadline(sched_t *s, const sched_seq_t *seq);
void sched_refuse(sched_t *s);
void sched_end_queue(sched_t *s, sched_reason_t reason, const char *message);
void sched_end_all(sched_t *s, sched_reason_t reason, const char *message);

/* sched_admit.c */
void sched_admit(sched_t *s, uint64_t now);
void sched_count(const sched_t *s, sched_rank_t *rk);
uint32_t sched_missing(const sched_seq_t *seq);
uint32_t sched_need(const sched_t *s, const sched_rank_t *rk,
    sched_seq_t *seq, uint32_t *cached);
void sched_leave_rank(sched_t *s, sched_seq_t *seq);
int sched_preempt(sched_t *s, sched_seq_t *seq);

/* sched_room.c */
sched_rank_t *sched_make_room(sched_t *s, sched_seq_t *seq);

/*
 * sched_plan.c: sched_share_out() decides who gets what, sched_batch() turns
 * that into rows; sched_plan() does both.  1 if there is something to compute.
 */
int sched_plan(sched_t *s);
void sched_share_out(sched_t *s);
int sched_batch(sched_t *s);
uint32_t sched_pending(const sched_seq_t *seq);
int sched_takes_part(const sched_seq_t *seq);
sched_seq_t *sched_next_prompt(const sched_rank_t *rk);

/* sched_ahead.c */
void sched_prepare(sched_t *s);
int sched_next(sched_t *s);

/* sched_budget.c */
void sched_budget_keep(sched_t *s);
void sched_budget_open(sched_t *s, uint32_t n_answers, uint32_t n_prompts);
uint32_t sched_budget_rows(const sched_t *s, const sched_rank_t *rk,
    const sched_seq_t *seq, uint32_t max, int first);
void sched_budget_take(sched_t *s, sched_rank_t *rk, const sched_seq_t *seq,
    const sched_seq_t *oldest);
void sched_budget_close(sched_t *s);
void sched_budget_learn(sched_t *s);

/* sched_cache.c */
int sched_cache_open(sched_t *s, sched_rank_t *rk);
void sched_cache_close(sched_rank_t *rk);
uint32_t sched_cache_limit(const sched_seq_t *seq);
int sched_cache_hash(const sched_t *s, sched_seq_t *seq, uint32_t n);
int sched_cache_name(const sched_t *s, sched_seq_t *seq, uint32_t i,
    int32_t parent, kv_name_t *name);
uint32_t sched_cache_match(const sched_t *s, const sched_rank_t *rk,
    sched_seq_t *seq, uint32_t *held);
void sched_cache_adopt(const sched_t *s, sched_rank_t *rk, sched_seq_t *seq);
int sched_cache_shares(const sched_t *s, const sched_rank_t *rk,
    sched_seq_t *seq, sched_seq_t *o);
int sched_cache_follows(const sched_t *s, const sched_rank_t *rk,
    sched_seq_t *seq);
int sched_cache_coming(sched_t *s, const sched_rank_t *rk, sched_seq_t *seq);
void sched_cache_publish(const sched_t *s, sched_rank_t *rk,
    sched_seq_t *seq);

/* sched_disk.c */
int sched_disk_open(sched_t *s, char *err);
void sched_disk_quiet(sched_t *s);
void sched_disk_close(sched_t *s);
void sched_disk_store(sched_rank_t *rk, int32_t block, const kv_name_t *name,
    const kv_key_t *parent);
int sched_disk_waits(sched_t *s, sched_rank_t *rk, sched_seq_t *seq);
uint32_t sched_disk_tags(const sched_t *s, sched_seq_t *seq);
void sched_disk_collect(sched_t *s);
void sched_disk_give_up(sched_t *s);

/* sched_draft.c */
void sched_draft_plan(sched_t *s, sched_rank_t *rk, sched_seq_t *seq);
int sched_draft_run(sched_t *s, sched_rank_t *rk);
void sched_draft_found(sched_seq_t *seq, uint32_t i, int drafted);
int sched_draft_full(const sched_seq_t *seq, uint32_t i);

/* sched_depth.c */
void sched_depth_choose(sched_t *s, uint32_t n);
void sched_depth_learn(sched_t *s, uint32_t n, uint32_t tokens, uint64_t us);

/* sched_rank.c */
void sched_rank_run(sched_t *s, sched_rank_t *rk);
void sched_draw(sched_t *s, sched_rank_t *rk, const sched_entry_t *e,
    uint32_t i);

/*
 * sched_output.c: sched_answer() is what a leader does with an entry unless
 * the next step is prepared meanwhile, sched_collect() follows when all ranks
 * have run, and sched_deliver() hands out what is owed then.
 */
void sched_answer(sched_t *s, sched_rank_t *rk, sched_entry_t *e);
void sched_collect(sched_t *s);
void sched_deliver(sched_t *s);

/* A rank or a node failed: nothing goes on. */
void sched_fail(sched_t *s, const char *why);
void sched_abort(sched_t *s, const char *message);

#endif /* SCHED_SCHED_INT_H */
