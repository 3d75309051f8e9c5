/*
 * Inside the server.
 *
 * A request is known by its lane's table, which is the server thread's, and
 * goes through BODY (being received), INTAKE, SCHED and DONE.  `lock` guards
 * state, credit and sequence, because credit and cancels come while it moves.
 * It is DONE before its last record is written: from then on the worker may
 * use the id again.
 *
 * A lane's event ring has many producers in this process; `out_lock` makes
 * them one.  What the ring has no room for goes to `backlog`, and `hold`
 * pauses all sequences of the lane until that is written.
 */

#ifndef SERVE_SERVE_INT_H
#define SERVE_SERVE_INT_H

#include <pthread.h>
#include <stdatomic.h>

#include "channel/chan_board.h"
#include "channel/chan_message.h"
#include "channel/channel.h"
#include "sched/sched.h"
#include "serve/serve.h"
#include "tokenizer/tok.h"
#include "tokenizer/tok_stream.h"
#include "tokenizer/tok_template.h"


#define SERVE_REQUESTS_MAX  65536            /* of a lane */
#define SERVE_BODIES_MAX    (UINT64_C(1) << 30)  /* bytes, of a lane */
#define SERVE_BACKLOG_MAX   (64u << 20)
#define SERVE_HELLO_MS      5000
#define SERVE_TICK_MS       500

typedef struct serve_s       serve_t;
typedef struct serve_lane_s  serve_lane_t;
typedef struct serve_req_s   serve_req_t;

typedef enum {
    SERVE_BODY = 0,
    SERVE_INTAKE,
    SERVE_SCHED,
    SERVE_DONE
} serve_state_t;

struct serve_req_s {
    atomic_int         refs;
    serve_t           *serve;
    serve_lane_t      *lane;
    uint64_t           id;
    chan_submit_t      submit;
    uint64_t           submitted_us;

    serve_req_t       *hash_next;    /* server thread */
    int                in_table;
    serve_req_t       *next;         /* intake's queue, then the ended */

    uint8_t           *body;
    size_t             body_got;
    size_t             body_cap;

    pthread_mutex_t    lock;
    serve_state_t      state;
    int                cancelled;
    int64_t            credit;       /* until the scheduler has it */
    sched_seq_t       *seq;

    /* From intake on, whoever runs the sequence. */
    tok_stream_t       stream;
    int                has_stream;
    tok_stream_t       echo;
    int                has_echo;
    uint32_t           n_output;
    uint32_t           n_reasoning;
    int                skip_text;    /* of the first prompt token */
    uint32_t           echo_left;    /* prompt tokens to come */
    uint64_t           suppress;     /* bytes of text sent before a resume */
    char              *replayed[2];  /* reasoning, content not sent before */
    size_t             replayed_len[2];
};

typedef struct {
    uint8_t  *data;
    size_t    off;
    size_t    size;
    size_t    cap;
} serve_backlog_t;

typedef enum {
    SERVE_L_HELLO = 0,
    SERVE_L_OPEN,
    SERVE_L_DEAD
} serve_lane_state_t;

struct serve_lane_s {
    atomic_int           refs;
    serve_t             *serve;
    serve_lane_t        *next;       /* all lanes */
    serve_lane_state_t   state;
    int                  sock;       /* until the lane owns it */
    uint32_t             number;
    uint32_t             pid;
    uint64_t             since_ms;
    int                  busy;       /* stopped reading with records left */
    chan_lane_t          chan;

    serve_req_t        **table;      /* server thread */
    uint32_t             buckets;
    uint32_t             n_table;
    uint64_t             body_bytes;

    pthread_mutex_t      out_lock;
    int                  closed;
    int                  broken;     /* to be dropped by the server thread */
    char                 why[CHAN_ERR_LEN];
    serve_backlog_t      backlog;
    serve_req_t         *ended;
    atomic_int           hold;
};

/* What a body says, gathered. */

typedef struct {
    tok_message_t   *message;
    size_t           n_messages;
    const char      *text;           /* NULL: none */
    size_t           text_len;
    const int32_t   *ids;
    size_t           n_ids;
    int              has_ids;
    const int32_t   *resume;
    size_t           n_resume;
    const uint8_t   *tenant;         /* NULL: the common one */
    size_t           n_tenant;
    const chan_tag_t  *tag;          /* as they came */
    uint32_t         n_tags;
    sched_tag_t     *tags;           /* by token */
    tok_stop_t       stop[CHAN_STOP_MAX];
    size_t           n_stops;
    sample_bias_t   *bias;
    uint32_t         n_bias;
} serve_body_t;

typedef struct {
    uint32_t     code;
    const char  *param;
    char         text[SERVE_ERR_LEN];
} serve_fault_t;

typedef struct {
    pthread_mutex_t   lock;
    pthread_cond_t    wake;
    serve_req_t      *small_first, **small_last;
    serve_req_t      *large_first, **large_last;
    uint32_t          n;
    int               stop;
    pthread_t         thread[2];
    int               n_threads;
} serve_intake_t;

struct serve_s {
    serve_options_t   opt;
    sched_t          *sched;
    sched_ops_t       ops;
    uint8_t          *known;
    size_t            longest;       /* bytes of a token */
    uint32_t          max_context;
    int               has_template;

    int               listener;
    int               accept_paused; /* no descriptors were left */
    int               lock_fd;
    int               epoll;
    int               signals;
    serve_lane_t     *lanes;
    uint32_t          n_lanes;
    uint32_t          lane_number;

    chan_board_t     *board;
    int               board_fd;
    pthread_mutex_t   board_lock;
    uint64_t          board_ms;
    uint64_t          speed_ms;
    uint64_t          board_tokens[64];
    uint64_t          board_speed[64];
    atomic_uint       board_lanes;

    serve_intake_t    intake;
    atomic_uint       n_requests;    /* in flight */
    atomic_int        draining;
    atomic_int        failed;
    uint64_t          drain_us;      /* when it began */
};


/* serve_socket.c: 0, or -1 with the reason in err */
int serve_listen(serve_t *s, char *err);
void serve_accept(serve_t *s);
void serve_hello(serve_lane_t *lane);
void serve_stop_listening(serve_t *s);
int serve_watch(serve_t *s, int fd, void *data, unsigned kind);

/* epoll's data: a pointer, its low bits say what for */
enum { SERVE_W_LISTENER = 0, SERVE_W_SIGNAL, SERVE_W_SOCK, SERVE_W_BELL };

/* serve_lane.c */
void serve_lane_bell(serve_lane_t *lane);
void serve_lane_read(serve_lane_t *lane);
void serve_lane_drop(serve_lane_t *lane, const char *why);
void serve_lane_reap(serve_lane_t *lane);
void serve_lane_unref(serve_lane_t *lane);

/* serve_request.c */
serve_req_t *serve_req_find(serve_lane_t *lane, uint64_t id);
serve_req_t *serve_req_open(serve_lane_t *lane, uint64_t id,
    const chan_submit_t *submit);
int serve_req_more(serve_req_t *r, const uint8_t *data, size_t size);
void serve_req_window(serve_req_t *r, uint64_t credit);
void serve_req_cancel(serve_req_t *r);
void serve_req_cancelled(serve_req_t *r);
void serve_req_forget(serve_req_t *r);
void serve_req_unref(serve_req_t *r);

/* serve_send.c: records of any thread */
void serve_send(serve_lane_t *lane, const struct iovec *part, int n);
int serve_flush(serve_lane_t *lane);
void serve_error(serve_req_t *r, uint32_t code, const char *param,
    const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void serve_finish(serve_req_t *r, const chan_finish_t *f);

/* serve_intake.c */
int serve_intake_open(serve_t *s, char *err);
void serve_intake_put(serve_req_t *r);
void serve_intake_close(serve_t *s);
uint32_t serve_intake_waiting(serve_t *s);

/*
 * serve_prompt.c: 0, or -1 with `f` filled.  serve_chat() and
 * serve_completion() make a prompt's ids; serve_bound() finds how many tokens
 * may follow.  serve_fault() fills `f` and returns -1.
 */
int serve_chat(serve_req_t *r, serve_body_t *b, tok_ids_t *ids,
    int *reasoning, serve_fault_t *f);
int serve_completion(serve_req_t *r, serve_body_t *b, tok_ids_t *ids,
    serve_fault_t *f);
int serve_bound(serve_req_t *r, size_t n_prompt, size_t n_resume,
    uint32_t *max_tokens, serve_fault_t *f);
int serve_fault(serve_fault_t *f, uint32_t code, const char *param,
    const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* serve_tags.c: fill b->tags; 0, or -1 with `f` filled */
int serve_tags_chat(serve_body_t *b, const tok_prompt_t *prompt,
    const tok_ids_t *ids, serve_fault_t *f);
int serve_tags_text(serve_body_t *b, const tok_ids_t *ids, uint32_t shift,
    serve_fault_t *f);

/* serve_output.c */
void serve_on_accepted(void *data, const sched_accepted_t *a);
int serve_on_tokens(void *data, sched_kind_t kind, const sched_token_t *tok,
    uint32_t n);
void serve_on_finish(void *data, const sched_finish_t *f);
int serve_replay(serve_req_t *r, const int32_t *id, uint32_t n);

/* serve_board.c */
int serve_board_open(serve_t *s, char *err);
void serve_board_publish(serve_t *s, int heartbeat);

uint64_t serve_now_us(void);

#endif /* SERVE_SERVE_INT_H */
