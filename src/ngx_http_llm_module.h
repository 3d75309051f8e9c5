/*
 * ngx_http_llm_module: an OpenAI-compatible endpoint inside nginx.
 *
 * A request's way, one file a step: body.c may read the body early and peek.c
 * look at it, endpoint.c tells what is asked for, request.c reads the body
 * else, params.c with chat.c and completion.c parses it, lane.c submits it,
 * events.c dispatches what comes back, render.c makes bytes of it, output.c
 * sends them.  engine.c keeps a worker's connection to an engine, resume.c
 * what a request needs to go on with the next one.  error.c gives every error
 * under llm_pass the shape of OpenAI's error objects.
 *
 * Between parsing and submission the steps of policy.h may refuse a request or
 * answer it; accounts, limits and the like are modules of their own there.
 *
 * Only workers connect.  All state is a worker's own, except the prefix zones
 * (prefix.h), where workers share what they learn about the engine's caches;
 * route.c joins them to a request's way.
 */

#ifndef NGX_HTTP_LLM_MODULE_H
#define NGX_HTTP_LLM_MODULE_H

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "ngx_http_llm_params.h"
#include "ngx_http_llm_peek.h"
#include "ngx_http_llm_prefix.h"
#include "channel/channel.h"
#include "channel/chan_board.h"
#include "channel/chan_message.h"


#define NGX_HTTP_LLM_CREDIT       65536    /* bytes of events in flight */
#define NGX_HTTP_LLM_BLOCK        4096     /* of rendered output */
#define NGX_HTTP_LLM_BLOCK_SMALL  1024     /* of text kept for a JSON body */
#define NGX_HTTP_LLM_WAITING_MAX  1024     /* requests waiting for room */
#define NGX_HTTP_LLM_WAITING_TIME 60000    /* ms they wait, unless told */
#define NGX_HTTP_LLM_RETRY_MAX    120      /* seconds: clients ignore more */
#define NGX_HTTP_LLM_PRIORITY_MAX 100      /* and as much below zero */
#define NGX_HTTP_LLM_PROGRESS_MAX 8        /* records of a request's use */


typedef struct ngx_http_llm_ctx_s     ngx_http_llm_ctx_t;
typedef struct ngx_http_llm_engine_s  ngx_http_llm_engine_t;
typedef struct ngx_http_llm_choice_s  ngx_http_llm_choice_t;
typedef struct ngx_http_llm_limits_s  ngx_http_llm_limits_t;
typedef struct ngx_http_llm_reply_s   ngx_http_llm_reply_t;
typedef struct ngx_http_llm_replay_s  ngx_http_llm_replay_t;


typedef struct {
    ngx_array_t                engines;    /* ngx_http_llm_engine_t * */
    ngx_array_t                prefix_zones;   /* ngx_shm_zone_t * */
    ngx_array_t                policies;   /* ngx_http_llm_policy_t, in order */
    ngx_int_t                  request_id; /* index of $request_id */
    ngx_flag_t                 read_body;  /* early, somewhere */
} ngx_http_llm_main_conf_t;

typedef struct {
    ngx_http_llm_engine_t     *engine;     /* NULL: no llm_pass here */
    ngx_msec_t                 keepalive;  /* 0: off */
    ngx_uint_t                 queue_max;
    ngx_msec_t                 queue_timeout;
    ngx_uint_t                 max_context;
    ngx_uint_t                 max_tokens;
    ngx_shm_zone_t            *route_zone; /* NULL: no routing */
    ngx_http_llm_pick_conf_t   route;
    ngx_flag_t                 read_body;
    ngx_http_complex_value_t  *priority;   /* NULL: 0 */
} ngx_http_llm_loc_conf_t;


/* How admission (ngx_http_llm_policy.h) came out. */

typedef enum {
    NGX_HTTP_LLM_UNASKED = 0,
    NGX_HTTP_LLM_ASKING,             /* a step is not ready */
    NGX_HTTP_LLM_REFUSED,
    NGX_HTTP_LLM_ANSWERED,           /* without the engine */
    NGX_HTTP_LLM_ADMITTED
} ngx_http_llm_admission_e;


/* A prompt's tags, and the rank that they lead to. */

typedef struct {
    chan_tag_t                *tags;
    ngx_uint_t                 ntags;
    ngx_int_t                  rank;       /* -1: none */
    uint64_t                   epoch;
} ngx_http_llm_route_t;


/*
 * One id on a lane, from SUBMIT to FINISH or ERROR.  It outlives its request:
 * after a cancel `choice` is NULL and the id stays taken until the engine
 * has answered.
 */

typedef struct {
    uint64_t                   id;
    ngx_http_llm_engine_t     *engine;
    ngx_http_llm_choice_t     *choice;
    ngx_queue_t                queue;      /* submits, controls or free */
    uint64_t                   sent;       /* bytes of the body */
    uint64_t                   credit;     /* to be returned */
    uint32_t                   slot;
    uint32_t                   generation;

    unsigned                   used:1;
    unsigned                   submitted:1;    /* SUBMIT is on the ring */
    unsigned                   accepted:1;
    unsigned                   sending:1;      /* in `submits` */
    unsigned                   control:1;      /* in `controls` */
    unsigned                   cancel:1;
} ngx_http_llm_seq_t;


typedef enum {
    NGX_HTTP_LLM_CLOSED = 0,
    NGX_HTTP_LLM_HELLO,
    NGX_HTTP_LLM_READY
} ngx_http_llm_state_e;

struct ngx_http_llm_engine_s {

    /* from the configuration */

    ngx_str_t                  name;
    ngx_str_t                  path;       /* NUL-terminated, empty: unset */
    size_t                     lane_size;
    ngx_msec_t                 resume;
    u_char                    *file;       /* of the first mention */
    ngx_uint_t                 line;

    /* this worker's connection */

    ngx_http_llm_state_e       state;
    ngx_uint_t                 started;    /* in this process */
    ngx_msec_t                 backoff;
    ngx_event_t                timer;      /* retry, handshake, heartbeat */
    ngx_event_t                post;       /* the next turn's work */
    chan_lane_t                lane;
    int                        sock;       /* until the lane has it */
    ngx_connection_t          *sock_conn;
    ngx_connection_t          *bell_conn;
    chan_board_t              *board;
    chan_board_model_t         model;
    char                       reason[CHAN_ERR_LEN];   /* logged last */

    /* ids */

    ngx_http_llm_seq_t       **seqs;
    uint32_t                   nseqs;
    ngx_queue_t                free;
    ngx_uint_t                 inflight;   /* submitted, not ended */
    ngx_uint_t                 nwaiting;   /* in `submits` */
    ngx_queue_t                submits;
    ngx_queue_t                controls;
    ngx_queue_t                ready;      /* requests with work to do */
    ngx_queue_t                parked;     /* requests before the handshake */
    ngx_queue_t                lost;       /* those that had an engine */
};


/* Bytes being rendered, in blocks that are used again once sent. */

typedef struct {
    ngx_pool_t                *pool;
    ngx_chain_t               *first;
    ngx_chain_t               *tail;
    ngx_chain_t               *free;
    size_t                     block;
    size_t                     size;
    ngx_uint_t                 failed;
} ngx_http_llm_writer_t;


/* What a JSON body keeps of a choice until the end. */

enum {
    NGX_HTTP_LLM_W_TEXT = 0,
    NGX_HTTP_LLM_W_REASONING,
    NGX_HTTP_LLM_W_TOKENS,           /* chat: entries of the content */
    NGX_HTTP_LLM_W_TOKEN_LOGPROBS,   /* chat: entries of the reasoning */
    NGX_HTTP_LLM_W_TOP_LOGPROBS,
    NGX_HTTP_LLM_W_TEXT_OFFSET,
    NGX_HTTP_LLM_NWRITERS
};


/* What an engine has given, for the next one. */

typedef struct {
    int32_t                   *ids;        /* ngx_alloc()'d */
    size_t                     n;
    size_t                     cap;
    uint64_t                   bytes;      /* of text */
    uint64_t                   echo_tokens;
    uint64_t                   echo_bytes;
    uint64_t                   skip_tokens;    /* of an echo to come */
    uint64_t                   skip_bytes;
    unsigned                   lost:1;     /* it could not be kept */
} ngx_http_llm_past_t;


struct ngx_http_llm_choice_s {
    ngx_http_llm_ctx_t        *ctx;
    ngx_http_llm_seq_t        *seq;        /* NULL: ended */
    ngx_http_llm_prompt_t     *prompt;
    ngx_uint_t                 index;
    ngx_uint_t                 nth;        /* of its prompt */
    uint64_t                   seed;
    uint64_t                   chars;      /* of text so far */
    uint64_t                   unreturned; /* credit, until bytes are sent */
    uint32_t                   reason;     /* 0: not finished */
    chan_accepted_t            accepted;
    chan_finish_t              finish;
    ngx_http_llm_writer_t     *kept;       /* [NGX_HTTP_LLM_NWRITERS] */
    ngx_http_llm_past_t        past;
    chan_body_t                tail;       /* of the body, after its prompt */

    unsigned                   begun:1;    /* ACCEPTED came */
    unsigned                   waiting:1;  /* for the next engine */
    unsigned                   resumed:1;  /* submitted again */
};


struct ngx_http_llm_ctx_s {
    ngx_http_request_t        *request;
    ngx_http_llm_engine_t     *engine;
    ngx_http_llm_peek_t       *peek;       /* NULL: not looked at early */
    ngx_http_llm_params_t      params;
    ngx_http_llm_error_t       error;
    ngx_http_llm_route_t      *routes;     /* of prompts; NULL: no routing */
    ngx_http_llm_choice_t     *choices;
    ngx_uint_t                 nchoices;
    ngx_uint_t                 nactive;
    ngx_queue_t                ready;
    ngx_event_t                timer;
    ngx_http_llm_writer_t      out;
    ngx_chain_t               *busy;
    ngx_str_t                  head;       /* of each chunk */
    ngx_str_t                  allow;      /* methods, with a 405 */
    ngx_str_t                  name;       /* of models/NAME, or empty */
    ngx_msec_t                 start;      /* submitted first */
    ngx_msec_t                 submitted;  /* and last */
    ngx_msec_t                 lost;       /* the engine, if `waiting` */
    ngx_uint_t                 tries;      /* submitted again, no token since */
    ngx_queue_t                wait;       /* in engine->lost */
    ngx_msec_t                 last;       /* bytes went out */
    ngx_chain_t               *replaced;   /* an error page's new body */
    ngx_http_llm_reply_t      *reply;      /* NULL: it is not kept */
    ngx_http_llm_replay_t     *replay;     /* NULL: none is being given */

    /* variables, valid as far as `reached` tells */

    ngx_uint_t                 prompt_tokens;
    ngx_uint_t                 cached_tokens;
    ngx_uint_t                 completion_tokens;
    ngx_uint_t                 reasoning_tokens;
    uint64_t                   queue_us;
    uint64_t                   ttft_us;
    uint64_t                   tpot_us;
    ngx_uint_t                 rank;
    const char                *reason;     /* NULL: none yet */

    /* policy */

    ngx_http_llm_admission_e   admission;
    ngx_uint_t                 policy;     /* the step that is asked next */
    uint64_t                   bound;      /* most tokens that it may use */
    ngx_http_llm_limits_t     *limits;     /* ngx_http_llm_limit.h */
    ngx_uint_t                 discount;   /* percent off its price */
    time_t                     end;        /* when it was settled */
    volatile uint64_t         *progress[NGX_HTTP_LLM_PROGRESS_MAX];
    ngx_uint_t                 nprogress;

    unsigned                   settled:1;
    unsigned                   parsed:1;
    unsigned                   accepted:1;
    unsigned                   first:1;    /* a token came */
    unsigned                   given:1;    /* it went to a stream */
    unsigned                   waived:1;   /* nothing did, it costs nothing */
    unsigned                   tpot:1;
    unsigned                   started:1;  /* the header is out */
    unsigned                   queued:1;   /* in engine->ready or ->parked */
    unsigned                   parked:1;   /* not submitted yet */
    unsigned                   waiting:1;  /* in engine->lost */
    unsigned                   again:1;    /* to be submitted again */
    unsigned                   resumed:1;  /* it was */
    unsigned                   models:1;   /* GET models */
    unsigned                   closed:1;
    unsigned                   keepalive:1;
};


extern ngx_module_t  ngx_http_llm_module;


/*
 * ngx_http_llm_conf.c.  ngx_http_llm_arg() is whether an argument is
 * "NAME=...", and gives what comes then.  ngx_http_llm_zone_param() parses
 * "zone=NAME:SIZE"; what is wrong was logged.  ngx_http_llm_zone_name() has
 * what the slab pool logs name the zone, but not that memory is short.
 * ngx_http_llm_add_handler() is for postconfiguration.  NGX_ERROR: no memory.
 */

ngx_uint_t ngx_http_llm_arg(ngx_str_t *arg, const char *name,
    ngx_str_t *value);
char *ngx_http_llm_zone_param(ngx_conf_t *cf, ngx_str_t *value,
    ngx_str_t *name, ssize_t *size);
ngx_int_t ngx_http_llm_zone_name(ngx_shm_zone_t *shm_zone,
    ngx_slab_pool_t *shpool, const char *kind);
ngx_int_t ngx_http_llm_add_handler(ngx_conf_t *cf, ngx_http_phases phase,
    ngx_http_handler_pt handler);


/*
 * ngx_http_llm_variables.c.  ngx_http_llm_variables() adds the module's own,
 * ngx_http_llm_add_variables() those of a table that ends with an empty name.
 * ngx_http_llm_variable_set() is a handler's good end.
 * ngx_http_llm_variables_check() warns of one that is always empty.
 */

ngx_int_t ngx_http_llm_variables(ngx_conf_t *cf);
ngx_int_t ngx_http_llm_add_variables(ngx_conf_t *cf,
    ngx_http_variable_t *vars);
ngx_int_t ngx_http_llm_variable_set(ngx_http_variable_value_t *v,
    u_char *data, size_t len);
void ngx_http_llm_variables_check(ngx_conf_t *cf);


/*
 * ngx_http_llm_engine.c.  ngx_http_llm_engine_drop() closes the lane for
 * `reason`, has its requests wait or fail (in the next turn, never at once) and
 * tries again later; it may be called in any state.
 * ngx_http_llm_engine_usable() is whether a request may be submitted now:
 * NGX_OK; NGX_AGAIN, the first handshake is under way; NGX_ERROR, there is no
 * engine.
 */

ngx_int_t ngx_http_llm_engine_init_process(ngx_cycle_t *cycle);
void ngx_http_llm_engine_exit_process(ngx_cycle_t *cycle);
ngx_int_t ngx_http_llm_engine_usable(ngx_http_llm_engine_t *engine);
void ngx_http_llm_engine_drop(ngx_http_llm_engine_t *engine,
    const char *reason);


/*
 * ngx_http_llm_lane.c.  ngx_http_llm_lane_submit() takes an id for a choice
 * and queues it; ngx_http_llm_lane_pump() writes what the ring has room for.
 * ngx_http_llm_lane_cancel() ends a choice's interest in its id.
 * ngx_http_llm_lane_credit() returns `bytes`; they leave with the next pump.
 * ngx_http_llm_seq_find() is NULL for an id that is not in flight,
 * ngx_http_llm_seq_release() frees one.  ngx_http_llm_lane_park() puts a
 * request aside until the handshake is over, ngx_http_llm_lane_unpark() has
 * all of them run.
 */

ngx_int_t ngx_http_llm_lane_submit(ngx_http_llm_engine_t *engine,
    ngx_http_llm_choice_t *choice);
void ngx_http_llm_lane_cancel(ngx_http_llm_choice_t *choice);
void ngx_http_llm_lane_credit(ngx_http_llm_choice_t *choice, uint64_t bytes);
void ngx_http_llm_lane_pump(ngx_http_llm_engine_t *engine);
void ngx_http_llm_lane_reset(ngx_http_llm_engine_t *engine);
void ngx_http_llm_lane_ready(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_lane_run(ngx_http_llm_engine_t *engine);
void ngx_http_llm_lane_park(ngx_http_llm_engine_t *engine,
    ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_lane_unpark(ngx_http_llm_engine_t *engine);
ngx_http_llm_seq_t *ngx_http_llm_seq_find(ngx_http_llm_engine_t *engine,
    uint64_t id);
void ngx_http_llm_seq_release(ngx_http_llm_seq_t *seq);


/*
 * ngx_http_llm_events.c.  ngx_http_llm_lane_drain() dispatches the events that
 * are there and runs the requests they concern.  ngx_http_llm_choice_*() count
 * and render what an event says about a choice.
 */

void ngx_http_llm_lane_drain(ngx_http_llm_engine_t *engine);
void ngx_http_llm_choice_accepted(ngx_http_llm_choice_t *choice,
    const chan_accepted_t *accepted);
void ngx_http_llm_choice_delta(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view);
void ngx_http_llm_choice_finish(ngx_http_llm_choice_t *choice,
    const chan_finish_t *finish);


/*
 * ngx_http_llm_resume.c.  ngx_http_llm_resume_keep() notes what a DELTA has
 * given, of which ngx_http_llm_resume_echo() has left out what is not new;
 * `delta` is memory for its result.
 *
 * ngx_http_llm_resume_wait() is for a choice whose id has ended without an end:
 * NGX_OK, it waits for the next engine, NGX_DECLINED, it has failed.
 * ngx_http_llm_resume_connected() follows a handshake: requests that waited are
 * made ready, and ngx_http_llm_resume() submits one again; NGX_ERROR, with
 * ctx->error set.  ngx_http_llm_resume_forget() ends a request's waiting,
 * ngx_http_llm_resume_free() frees what was kept.
 *
 * ngx_http_llm_resume_submit() and ngx_http_llm_resume_accepted() are what is
 * different in a choice's SUBMIT, and its ACCEPTED from the second on.
 */

void ngx_http_llm_resume_keep(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view);
void ngx_http_llm_resume_echo(ngx_http_llm_choice_t *choice,
    chan_delta_view_t *view, chan_delta_t *delta);
ngx_int_t ngx_http_llm_resume_wait(ngx_http_llm_choice_t *choice);
void ngx_http_llm_resume_connected(ngx_http_llm_engine_t *engine);
ngx_int_t ngx_http_llm_resume(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_resume_forget(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_resume_free(ngx_http_llm_choice_t *choice);
void ngx_http_llm_resume_submit(ngx_http_llm_choice_t *choice,
    chan_submit_t *submit);
void ngx_http_llm_resume_accepted(ngx_http_llm_choice_t *choice,
    const chan_accepted_t *accepted);


/*
 * ngx_http_llm_body.c.  ngx_http_llm_body_data() is NGX_OK with the body of a
 * request that was read, in one piece; `*copy`, unless NULL, is to be freed
 * with ngx_free(); NGX_DECLINED: it is larger than CHAN_BODY_MAX; NGX_ERROR: no
 * memory, or its file cannot be read, which was logged.
 *
 * ngx_http_llm_body_read() is for a phase's handler: NGX_OK, the body is
 * there; else what to return, and the phases run again once it is.
 * ngx_http_llm_body_peek() looks at a body that is there, into ctx->peek.
 */

ngx_int_t ngx_http_llm_body_init(ngx_conf_t *cf);
ngx_int_t ngx_http_llm_body_data(ngx_http_request_t *r, u_char **data,
    size_t *size, u_char **copy);
ngx_int_t ngx_http_llm_body_read(ngx_http_request_t *r);
ngx_int_t ngx_http_llm_body_peek(ngx_http_request_t *r);


/*
 * ngx_http_llm_endpoint.c.  Which one a request asks for, and the name in
 * models/NAME to ctx->name; else 404 or 405 with ctx->error and ctx->allow
 * filled.
 */

typedef enum {
    NGX_HTTP_LLM_NONE = 0,
    NGX_HTTP_LLM_CHAT,
    NGX_HTTP_LLM_COMPLETION,
    NGX_HTTP_LLM_MODELS
} ngx_http_llm_endpoint_e;

ngx_int_t ngx_http_llm_endpoint(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx, ngx_http_llm_endpoint_e *endpoint);


/*
 * ngx_http_llm_request.c.  ngx_http_llm_get_ctx() is the request's context, a
 * new one if there is none yet; NULL: no memory.
 * ngx_http_llm_close() cancels what still runs and takes the request out of
 * all queues; it may be called twice.
 * ngx_http_llm_priority_value() reads llm_priority's value; NGX_ERROR: it is
 * not an integer within NGX_HTTP_LLM_PRIORITY_MAX.
 * ngx_http_llm_start() goes on with a request whose body is there,
 * ngx_http_llm_wait() lets it wait for what happens next, and
 * ngx_http_llm_timer_start() gives it its timer.
 * ngx_http_llm_choices() makes a parsed request's choices, for a submission or
 * an answer that is there already; NGX_ERROR: no memory.
 */

ngx_http_llm_ctx_t *ngx_http_llm_get_ctx(ngx_http_request_t *r);
ngx_int_t ngx_http_llm_handler(ngx_http_request_t *r);
ngx_int_t ngx_http_llm_priority_value(ngx_str_t *s, int32_t *value);
void ngx_http_llm_start(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_wait(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_timer_start(ngx_http_llm_ctx_t *ctx, ngx_msec_t time);
ngx_int_t ngx_http_llm_choices(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_close(ngx_http_llm_ctx_t *ctx);


/*
 * ngx_http_llm_route.c.  ngx_http_llm_route_submit() adds tags to the prompts
 * of a request and chooses a rank for each, if llm_route is on here, also when
 * its prompts were made again; NGX_ERROR: no memory.
 * ngx_http_llm_route_accepted() notes which rank took a choice,
 * ngx_http_llm_route_connected() which boot of an engine is the newest.
 */

char *ngx_http_llm_prefix_zone(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);
char *ngx_http_llm_route(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
void ngx_http_llm_route_merge(ngx_http_llm_loc_conf_t *prev,
    ngx_http_llm_loc_conf_t *conf);
void ngx_http_llm_route_connected(ngx_http_llm_engine_t *engine);
ngx_int_t ngx_http_llm_route_submit(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_route_accepted(ngx_http_llm_choice_t *choice);


/* ngx_http_llm_models.c: GET models and GET models/NAME. */

ngx_int_t ngx_http_llm_models(ngx_http_request_t *r,
    ngx_http_llm_ctx_t *ctx);


/*
 * ngx_http_llm_writer.c.  Putting never fails visibly: out of memory sets
 * `failed`.  ngx_http_llm_put_json() escapes, without quotes, and replaces
 * bytes that are not UTF-8.  ngx_http_llm_writer_join() moves the blocks of
 * `from` to the end.  ngx_http_llm_writer_take() hands out all blocks.
 */

void ngx_http_llm_writer_init(ngx_http_llm_writer_t *w, ngx_pool_t *pool,
    size_t block);
void ngx_http_llm_put(ngx_http_llm_writer_t *w, const void *data, size_t len);
void ngx_http_llm_put_json(ngx_http_llm_writer_t *w, const void *data,
    size_t len);
void ngx_http_llm_put_uint(ngx_http_llm_writer_t *w, uint64_t value);
void ngx_http_llm_put_float(ngx_http_llm_writer_t *w, double value);
void ngx_http_llm_writer_join(ngx_http_llm_writer_t *w,
    ngx_http_llm_writer_t *from);
ngx_chain_t *ngx_http_llm_writer_take(ngx_http_llm_writer_t *w);

#define ngx_http_llm_put_literal(w, s)  ngx_http_llm_put(w, s, sizeof(s) - 1)


/*
 * ngx_http_llm_render.c.  Events become bytes in ctx->out (a stream) or are
 * kept for the body that ngx_http_llm_render_end() makes.
 * ngx_http_llm_render_init() may be called once the request is parsed.
 */

ngx_int_t ngx_http_llm_render_init(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_render_accepted(ngx_http_llm_choice_t *choice);
void ngx_http_llm_render_delta(ngx_http_llm_choice_t *choice,
    const chan_delta_view_t *view);
void ngx_http_llm_render_finish(ngx_http_llm_choice_t *choice);
void ngx_http_llm_render_end(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_render_error(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_render_keepalive(ngx_http_llm_ctx_t *ctx);


/*
 * ngx_http_llm_logprobs.c.  Entries of a DELTA's tokens, separated by commas
 * (from the very first on if `more`).
 */

void ngx_http_llm_logprobs_chat(ngx_http_llm_writer_t *w,
    const chan_delta_view_t *view, ngx_uint_t more);
void ngx_http_llm_logprobs_tokens(ngx_http_llm_writer_t *w,
    const chan_delta_view_t *view, ngx_uint_t more);
void ngx_http_llm_logprobs_values(ngx_http_llm_writer_t *w,
    const chan_delta_view_t *view, ngx_uint_t more);
void ngx_http_llm_logprobs_tops(ngx_http_llm_writer_t *w,
    const chan_delta_view_t *view, ngx_uint_t more);
void ngx_http_llm_logprobs_offsets(ngx_http_llm_writer_t *w,
    const chan_delta_view_t *view, ngx_uint_t more, uint64_t chars);
uint64_t ngx_http_llm_chars(const u_char *text, size_t len);


/*
 * ngx_http_llm_output.c.  ngx_http_llm_run() does what is due for a request:
 * sends what was rendered, its end or its error; the request may be gone
 * afterwards.  ngx_http_llm_run_event() is that from an event which is not
 * nginx's own.  ngx_http_llm_write_handler() is nginx's write event.
 * ngx_http_llm_replay() gives a kept reply, which was checked and lives as long
 * as the request, and as much of it in one turn as ngx_http_llm_run() does:
 * NGX_OK, the request may be gone; NGX_ERROR: no memory.
 * ngx_http_llm_replay_end() is the end of that.
 */

void ngx_http_llm_run(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_run_event(ngx_http_llm_ctx_t *ctx);
ngx_int_t ngx_http_llm_replay(ngx_http_llm_ctx_t *ctx, const u_char *data);
void ngx_http_llm_replay_end(ngx_http_llm_ctx_t *ctx);
void ngx_http_llm_write_handler(ngx_http_request_t *r);
void ngx_http_llm_timer_handler(ngx_event_t *ev);
ngx_msec_t ngx_http_llm_timer_next(ngx_http_llm_ctx_t *ctx);


/*
 * ngx_http_llm_error.c.  ngx_http_llm_put_error() renders an error object;
 * ngx_http_llm_describe() fills one for a status; ngx_http_llm_add_header()
 * appends a response header.  ngx_http_llm_request_id_find() is the first
 * X-Request-Id that is harmless, NULL if there is none.
 */

ngx_int_t ngx_http_llm_error_init(ngx_conf_t *cf);
void ngx_http_llm_put_error(ngx_http_llm_writer_t *w,
    const ngx_http_llm_error_t *err);
ngx_int_t ngx_http_llm_add_header(ngx_http_request_t *r, const char *key,
    ngx_str_t *value);
ngx_table_elt_t *ngx_http_llm_request_id_find(ngx_list_t *headers);
void ngx_http_llm_describe(ngx_http_llm_error_t *err, ngx_uint_t status);
ngx_int_t ngx_http_llm_unavailable(ngx_http_llm_error_t *err,
    const char *what);


#endif /* NGX_HTTP_LLM_MODULE_H */
