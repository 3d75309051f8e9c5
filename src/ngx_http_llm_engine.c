/*
 * A worker's connection to an engine: connect, handshake, heartbeat, retry.
 *
 * Socket and doorbell enter the event loop as nginx's own channel does (the
 * `channel` flag keeps shutdown from closing them and the exit from calling
 * them a leak).  One cancelable timer does for each state what is due there:
 * CLOSED, the next attempt; HELLO, the end of the handshake's time; READY,
 * a look at the heartbeat.
 */

#include "ngx_http_llm_module.h"


#define NGX_HTTP_LLM_BACKOFF_MIN   100      /* ms */
#define NGX_HTTP_LLM_BACKOFF_MAX   2000
#define NGX_HTTP_LLM_HELLO_TIME    2000
#define NGX_HTTP_LLM_BEAT_TIME     1000

#define NGX_HTTP_LLM_BELL_FLAGS                                              \
    (ngx_event_flags & NGX_USE_EPOLL_EVENT ? NGX_CLEAR_EVENT : 0)


static void ngx_http_llm_engine_start(ngx_http_llm_engine_t *engine);
static void ngx_http_llm_engine_connect(ngx_http_llm_engine_t *engine);
static void ngx_http_llm_engine_welcome(ngx_http_llm_engine_t *engine);
static ngx_int_t ngx_http_llm_engine_open(ngx_http_llm_engine_t *engine,
    chan_welcome_t *welcome, int *fds, char *err);
static ngx_connection_t *ngx_http_llm_engine_watch(
    ngx_http_llm_engine_t *engine, int fd, ngx_event_handler_pt handler,
    ngx_uint_t flags);
static void ngx_http_llm_engine_forget(ngx_connection_t **cp);
static void ngx_http_llm_engine_close(ngx_http_llm_engine_t *engine);
static void ngx_http_llm_engine_sock_handler(ngx_event_t *ev);
static void ngx_http_llm_engine_bell_handler(ngx_event_t *ev);
static void ngx_http_llm_engine_timer_handler(ngx_event_t *ev);
static void ngx_http_llm_engine_post_handler(ngx_event_t *ev);


ngx_int_t
ngx_http_llm_engine_init_process(ngx_cycle_t *cycle)
{
    ngx_uint_t                  i;
    ngx_http_llm_engine_t     **engines;
    ngx_http_llm_main_conf_t   *lmcf;

    if (ngx_process != NGX_PROCESS_WORKER
        && ngx_process != NGX_PROCESS_SINGLE)
    {
        return NGX_OK;
    }

    lmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_llm_module);

    if (lmcf == NULL) {
        return NGX_OK;
    }

    engines = lmcf->engines.elts;

    for (i = 0; i < lmcf->engines.nelts; i++) {
        ngx_http_llm_engine_start(engines[i]);
    }

    return NGX_OK;
}


void
ngx_http_llm_engine_exit_process(ngx_cycle_t *cycle)
{
    uint32_t                    n;
    ngx_uint_t                  i;
    ngx_http_llm_engine_t      *engine, **engines;
    ngx_http_llm_main_conf_t   *lmcf;

    lmcf = ngx_http_cycle_get_module_main_conf(cycle, ngx_http_llm_module);

    if (lmcf == NULL) {
        return;
    }

    engines = lmcf->engines.elts;

    for (i = 0; i < lmcf->engines.nelts; i++) {
        engine = engines[i];

        if (!engine->started) {
            continue;
        }

        ngx_http_llm_engine_close(engine);

        for (n = 0; n < engine->nseqs; n++) {
            ngx_free(engine->seqs[n]);
        }

        ngx_free(engine->seqs);
        engine->seqs = NULL;
        engine->nseqs = 0;
        engine->started = 0;
    }
}


static void
ngx_http_llm_engine_start(ngx_http_llm_engine_t *engine)
{
    engine->started = 1;
    engine->state = NGX_HTTP_LLM_CLOSED;
    engine->sock = -1;
    engine->backoff = NGX_HTTP_LLM_BACKOFF_MIN;

    ngx_queue_init(&engine->free);
    ngx_queue_init(&engine->submits);
    ngx_queue_init(&engine->controls);
    ngx_queue_init(&engine->ready);
    ngx_queue_init(&engine->parked);
    ngx_queue_init(&engine->lost);

    chan_lane_init(&engine->lane);

    engine->timer.handler = ngx_http_llm_engine_timer_handler;
    engine->timer.data = engine;
    engine->timer.log = ngx_cycle->log;
    engine->timer.cancelable = 1;

    engine->post.handler = ngx_http_llm_engine_post_handler;
    engine->post.data = engine;
    engine->post.log = ngx_cycle->log;

    ngx_http_llm_engine_connect(engine);
}


ngx_int_t
ngx_http_llm_engine_usable(ngx_http_llm_engine_t *engine)
{
    if (engine->state == NGX_HTTP_LLM_READY) {

        if (!chan_board_stale(engine->board)) {
            return NGX_OK;
        }

        ngx_http_llm_engine_drop(engine, "the heartbeat has stopped");

        return NGX_ERROR;
    }

    /* A worker that has just started knows of no trouble yet. */

    if (engine->state == NGX_HTTP_LLM_HELLO && engine->reason[0] == '\0') {
        return NGX_AGAIN;
    }

    return NGX_ERROR;
}


static void
ngx_http_llm_engine_connect(ngx_http_llm_engine_t *engine)
{
    char  err[CHAN_ERR_LEN];

    engine->sock = chan_connect((char *) engine->path.data, err);

    if (engine->sock < 0) {
        engine->sock = -1;
        ngx_http_llm_engine_drop(engine, err);
        return;
    }

    if (chan_send_hello(engine->sock, engine->lane_size, err) != CHAN_OK) {
        ngx_http_llm_engine_drop(engine, err);
        return;
    }

    engine->sock_conn = ngx_http_llm_engine_watch(engine, engine->sock,
                                          ngx_http_llm_engine_sock_handler,
                                          0);

    if (engine->sock_conn == NULL) {
        ngx_http_llm_engine_drop(engine, "no connection slot for the socket");
        return;
    }

    engine->state = NGX_HTTP_LLM_HELLO;

    ngx_add_timer(&engine->timer, NGX_HTTP_LLM_HELLO_TIME);
}


static void
ngx_http_llm_engine_welcome(ngx_http_llm_engine_t *engine)
{
    int             rc, fds[4];
    char            err[CHAN_ERR_LEN];
    chan_welcome_t  welcome;

    fds[0] = fds[1] = fds[2] = fds[3] = -1;

    rc = chan_recv_welcome(engine->sock, &welcome, fds, err);

    if (rc == CHAN_AGAIN) {
        return;
    }

    if (rc != CHAN_OK
        || ngx_http_llm_engine_open(engine, &welcome, fds, err) != NGX_OK)
    {
        ngx_http_llm_engine_drop(engine, err);
        return;
    }

    engine->bell_conn = ngx_http_llm_engine_watch(engine,
                                          engine->lane.bell_own,
                                          ngx_http_llm_engine_bell_handler,
                                          NGX_HTTP_LLM_BELL_FLAGS);

    if (engine->bell_conn == NULL) {
        ngx_http_llm_engine_drop(engine, "no connection slot for the bell");
        return;
    }

    engine->state = NGX_HTTP_LLM_READY;
    engine->backoff = NGX_HTTP_LLM_BACKOFF_MIN;
    engine->reason[0] = '\0';

    ngx_add_timer(&engine->timer, NGX_HTTP_LLM_BEAT_TIME);

    ngx_log_error(NGX_LOG_NOTICE, ngx_cycle->log, 0,
                  "llm engine \"%V\": connected, model \"%s\"",
                  &engine->name, engine->model.names);

    ngx_http_llm_route_connected(engine);

    /* The sleep flag is set by the first drain; it runs who has waited. */

    ngx_http_llm_resume_connected(engine);
    ngx_http_llm_lane_unpark(engine);
    ngx_http_llm_lane_drain(engine);
}


/* Descriptors in `fds` are the callee's, also when it fails. */

static ngx_int_t
ngx_http_llm_engine_open(ngx_http_llm_engine_t *engine,
    chan_welcome_t *welcome, int *fds, char *err)
{
    if (chan_welcome_check(welcome, err) != CHAN_OK) {
        goto failed;
    }

    /* lane, board, bell_engine, bell_worker */

    if (chan_lane_open(&engine->lane, welcome, fds[0], fds[2], fds[3], err)
        != CHAN_OK)
    {
        fds[0] = fds[2] = fds[3] = -1;
        goto failed;
    }

    fds[0] = fds[2] = fds[3] = -1;

    engine->lane.sock = engine->sock;
    engine->sock = -1;

    if (chan_board_open(&engine->board, welcome, fds[1], err) != CHAN_OK) {
        engine->board = NULL;
        fds[1] = -1;
        goto failed;
    }

    if (chan_board_get_model(engine->board, &engine->model) != CHAN_OK) {
        ngx_memcpy(err, "the board has no model",
                   sizeof("the board has no model"));
        return NGX_ERROR;
    }

    /* An engine that hangs may still shake hands. */

    if (chan_board_stale(engine->board)) {
        ngx_memcpy(err, "the heartbeat has stopped",
                   sizeof("the heartbeat has stopped"));
        return NGX_ERROR;
    }

    if (engine->model.names[0] == '\0') {
        ngx_memcpy(err, "the model has no name",
                   sizeof("the model has no name"));
        return NGX_ERROR;
    }

    return NGX_OK;

failed:

    if (fds[0] != -1) {
        (void) close(fds[0]);
    }

    if (fds[1] != -1) {
        (void) close(fds[1]);
    }

    if (fds[2] != -1) {
        (void) close(fds[2]);
    }

    if (fds[3] != -1) {
        (void) close(fds[3]);
    }

    return NGX_ERROR;
}


static ngx_connection_t *
ngx_http_llm_engine_watch(ngx_http_llm_engine_t *engine, int fd,
    ngx_event_handler_pt handler, ngx_uint_t flags)
{
    ngx_int_t          rc;
    ngx_connection_t  *c;

    c = ngx_get_connection(fd, ngx_cycle->log);
    if (c == NULL) {
        return NULL;
    }

    c->data = engine;
    c->pool = NULL;

    c->read->handler = handler;
    c->read->log = ngx_cycle->log;
    c->read->channel = 1;
    c->write->log = ngx_cycle->log;
    c->write->channel = 1;

    if (ngx_add_conn && (ngx_event_flags & NGX_USE_EPOLL_EVENT) == 0) {
        rc = ngx_add_conn(c);

    } else {
        rc = ngx_add_event(c->read, NGX_READ_EVENT, flags);
    }

    if (rc == NGX_ERROR) {
        ngx_free_connection(c);
        c->fd = (ngx_socket_t) -1;
        return NULL;
    }

    return c;
}


/* The descriptor stays open: it is the lane's. */

static void
ngx_http_llm_engine_forget(ngx_connection_t **cp)
{
    ngx_connection_t  *c;

    c = *cp;

    if (c == NULL) {
        return;
    }

    *cp = NULL;

    if (ngx_del_conn) {
        (void) ngx_del_conn(c, 0);

    } else if (c->read->active || c->read->disabled) {
        (void) ngx_del_event(c->read, NGX_READ_EVENT, 0);
    }

    if (c->read->posted) {
        ngx_delete_posted_event(c->read);
    }

    c->read->closed = 1;
    c->write->closed = 1;

    ngx_free_connection(c);
    c->fd = (ngx_socket_t) -1;
}


static void
ngx_http_llm_engine_close(ngx_http_llm_engine_t *engine)
{
    ngx_http_llm_engine_forget(&engine->sock_conn);
    ngx_http_llm_engine_forget(&engine->bell_conn);

    if (engine->timer.timer_set) {
        ngx_del_timer(&engine->timer);
    }

    chan_lane_close(&engine->lane);
    chan_lane_init(&engine->lane);

    if (engine->sock != -1) {
        (void) close(engine->sock);
        engine->sock = -1;
    }

    if (engine->board != NULL) {
        chan_board_close(engine->board);
        engine->board = NULL;
    }

    engine->state = NGX_HTTP_LLM_CLOSED;
}


void
ngx_http_llm_engine_drop(ngx_http_llm_engine_t *engine, const char *reason)
{
    /* Retries are silent as long as they fail for the same reason. */

    if (engine->state == NGX_HTTP_LLM_READY
        || ngx_strncmp(engine->reason, reason, CHAN_ERR_LEN - 1) != 0)
    {
        ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0,
                      "llm engine \"%V\" at \"%V\" is not available: %s",
                      &engine->name, &engine->path, reason);
    }

    (void) ngx_cpystrn((u_char *) engine->reason, (u_char *) reason,
                       CHAN_ERR_LEN);

    ngx_http_llm_engine_close(engine);
    ngx_http_llm_lane_reset(engine);

    ngx_add_timer(&engine->timer, engine->backoff);

    engine->backoff = ngx_min(engine->backoff * 2, NGX_HTTP_LLM_BACKOFF_MAX);
}


/* In HELLO the welcome, in READY the engine's end. */

static void
ngx_http_llm_engine_sock_handler(ngx_event_t *ev)
{
    char                    err[CHAN_ERR_LEN];
    ngx_connection_t       *c;
    ngx_http_llm_engine_t  *engine;

    c = ev->data;
    engine = c->data;

    if (engine->state == NGX_HTTP_LLM_HELLO) {
        ngx_http_llm_engine_welcome(engine);
        return;
    }

    if (chan_peer_alive(engine->lane.sock, err) == CHAN_OK) {
        return;
    }

    /* What the engine has still said counts. */

    ngx_http_llm_lane_drain(engine);

    if (engine->state == NGX_HTTP_LLM_READY) {
        ngx_http_llm_engine_drop(engine, err);
    }
}


static void
ngx_http_llm_engine_bell_handler(ngx_event_t *ev)
{
    ngx_connection_t       *c;
    ngx_http_llm_engine_t  *engine;

    c = ev->data;
    engine = c->data;

    /* Where each ring is an edge, the counter need not be read. */

    if (!(ngx_event_flags & NGX_USE_EPOLL_EVENT)) {
        chan_bell_drain(engine->lane.bell_own);
    }

    chan_ring_awake(&engine->lane.in);
    chan_ring_awake(&engine->lane.out);

    ngx_http_llm_lane_drain(engine);
}


static void
ngx_http_llm_engine_timer_handler(ngx_event_t *ev)
{
    char                    err[CHAN_ERR_LEN];
    ngx_http_llm_engine_t  *engine;

    engine = ev->data;

    switch (engine->state) {

    case NGX_HTTP_LLM_CLOSED:
        ngx_http_llm_engine_connect(engine);
        break;

    case NGX_HTTP_LLM_HELLO:
        ngx_http_llm_engine_drop(engine, "no answer to the handshake");
        break;

    case NGX_HTTP_LLM_READY:
        if (chan_board_stale(engine->board)) {
            ngx_http_llm_engine_drop(engine, "the heartbeat has stopped");
            break;
        }

        /* A ring that nobody writes to is checked too. */

        if (chan_ring_room(&engine->lane.out, err) < 0) {
            ngx_http_llm_engine_drop(engine, err);
            break;
        }

        ngx_add_timer(ev, NGX_HTTP_LLM_BEAT_TIME);
        break;
    }
}


static void
ngx_http_llm_engine_post_handler(ngx_event_t *ev)
{
    ngx_http_llm_engine_t  *engine;

    engine = ev->data;

    if (engine->state == NGX_HTTP_LLM_READY) {
        ngx_http_llm_lane_drain(engine);
        return;
    }

    ngx_http_llm_lane_run(engine);
}
