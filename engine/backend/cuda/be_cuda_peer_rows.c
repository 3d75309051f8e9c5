/*
 * Rows to other ranks and contributions home, and the order of streams.
 *
 * `sent` is recorded behind what a rank stores elsewhere in a dispatch,
 * `returned` behind its contributions.  A rank waits for the event of every
 * other one, which these have recorded when the host says that all have called.
 * Neither is recorded again before all wait for it: each rank's next one comes
 * after a meeting that follows all waits.
 *
 * A recorded step has no events: peer_sent() and peer_wait() stand where ranks
 * wait for each other, and be_cuda_record.c says what is there instead.
 *
 * Of a step in two micro-batches, 1 and 2, what is sent and returned goes by a
 * stream of its own, `beside`, whose kernels are few blocks and come first
 * where a multiprocessor is free.  With A the stream of the rank and B that
 * one, in a layer:
 *
 *     A   keys, attention, router of 1   of 2   experts of 1   of 2
 *     B                          send 1   send 2    return 1    return 2
 *
 * B waits for A before each (`ready`), A for B (`done`) before it computes with
 * what came.  The parts have separate rows of the memory that others write:
 * those of 2 begin in the middle.  What was said of events and of their order
 * holds for each part by itself, as A waits for both of B's of a part before
 * the part's next ones.
 */

#include <string.h>

#include "backend/cuda/be_cuda_peer_int.h"


/*
 * Blocks of what is copied beside other work.  Each has as many threads as
 * there may be, so that it takes a multiprocessor to itself.  It gets one when a
 * block of another kernel ends, and products and attention, which divide their
 * work among all multiprocessors, then have some blocks wait for others: whether
 * they should leave these out from the start is to be measured.
 */

#define PEER_BESIDE  20


static void peer_table(const be_peer_t *p, be_peer_t *const *all,
    const be_peer_send_t *sends, cu_peers_t *t);
static int peer_fork(be_cuda_t *cuda);
static void peer_join(be_cuda_t *cuda);
static int peer_sent(be_cuda_t *cuda, cudaEvent_t event, const char *what);
static int peer_wait(be_cuda_t *cuda, be_peer_t *const *all, int returned);


void
be_cuda_peer_send(be_t *be, be_peer_t *const *all, const be_peer_send_t *send)
{
    be_peer_t            *p;
    be_cuda_t            *cuda;
    cu_peers_t            to;
    peer_part_t          *part;
    cuda_batch_t         *batch;
    const peer_place_t   *place;
    cu_exchange_send_t    s;

    cuda = (be_cuda_t *) be;
    p = cuda->peer;
    part = be_peer_part(p);
    place = be_cuda_peer_place(p, send);

    if (place == NULL || cuda->failed) {
        return;
    }

    memset(&s, 0, sizeof(s));
    batch = (send->batch != NULL) ? send->batch->device : NULL;

    /* what is made for one product only does not stay until it is sent */

    if (cuda->part != 0 && send->rows > 0
        && be_cuda_made(cuda)->x != send->x)
    {
        be_cuda_fail(cuda, "rows of a micro-batch that no norm has made");
        return;
    }

    if (send->rows > 0
        && be_cuda_input(cuda, send->x, send->rows, 0, send->rows,
                         p->opt.hidden, p->type, &s.act)
           != 0)
    {
        return;
    }

    s.id = send->id;
    s.pos = (batch != NULL) ? batch->b.pos : NULL;
    s.rows = send->rows;
    s.first = place->first;
    s.home = place->home;
    s.slot = place->slot;
    s.load = send->load;
    s.stop = be_cuda_flags_stop(p);
    part->slots = send->slots;
    part->home = NULL;

    /* of a step that is recorded all have as many */

    part->e = p->e;
    part->e.most = (cuda->recording != CUDA_PLAIN) ? send->rows : send->most;
    part->e.blocks = (cuda->part != 0) ? PEER_BESIDE : 0;

    peer_table(p, all, NULL, &to);

    if (peer_fork(cuda) != 0
        || be_cuda_check(cuda, cu_exchange_send(&part->e, &to, &s,
                                                be_peer_stream(p)),
                         "dispatch")
           != 0
        || peer_sent(cuda, part->sent, "dispatch") != 0)
    {
        return;
    }

    if (p->nccl != NULL) {
        be_cuda_far_send(p);
    }

    peer_join(cuda);
}


static void
peer_table(const be_peer_t *p, be_peer_t *const *all,
    const be_peer_send_t *sends, cu_peers_t *t)
{
    void              *out;
    size_t             base, pairs;
    uint32_t           i, half;
    const peer_far_t  *f;

    memset(t, 0, sizeof(cu_peers_t));
    base = be_peer_base(p);
    pairs = base * p->opt.top_k * p->opt.hidden;
    half = be_cuda_half(p->cuda);

    for (i = 0; i < p->opt.ranks; i++) {

        if (be_peer_is_far(p, i)) {
            f = &p->far[i];
            out = f->out + pairs * (p->opt.exact ? sizeof(float)
                                                 : sizeof(uint16_t));
            t->x[i] = f->x;
            t->scale[i] = f->scale;
            t->slot[i] = f->slot;
            t->rows[i] = f->rows + half;
            t->inbox[i] = p->opt.exact ? NULL : out;
            t->contrib[i] = p->opt.exact ? out : NULL;

        } else {
            t->from[i] = p->opt.rank;
            t->x[i] = all[i]->x;
            t->scale[i] = all[i]->scale;
            t->slot[i] = all[i]->slot;
            t->rows[i] = all[i]->rows + half * p->opt.ranks;
            t->inbox[i] = p->opt.exact ? NULL : all[i]->inbox + pairs;
            t->contrib[i] = (sends != NULL) ? sends[i].contrib : NULL;
        }

        t->x[i] += base * p->e.row_bytes;
        t->slot[i] += base * p->e.top_k;

        if (t->scale[i] != NULL) {
            t->scale[i] += base * p->e.groups;
        }
    }
}


/* `beside` goes on when the rank's stream has come so far. */

static int
peer_fork(be_cuda_t *cuda)
{
    peer_part_t  *part;

    if (cuda->part == 0) {
        return 0;
    }

    part = be_peer_part(cuda->peer);

    if (be_cuda_check(cuda, cudaEventRecord(part->ready, cuda->stream),
                      "a micro-batch")
        != 0)
    {
        return -1;
    }

    return be_cuda_check(cuda, cudaStreamWaitEvent(cuda->peer->beside,
                                                   part->ready, 0),
                         "a micro-batch");
}


/* What peer_wait() is to wait for. */

static void
peer_join(be_cuda_t *cuda)
{
    if (cuda->part != 0 && !cuda->failed) {
        (void) be_cuda_check(cuda, cudaEventRecord(
                                       be_peer_part(cuda->peer)->done,
                                       cuda->peer->beside),
                             "a micro-batch");
    }
}


static int
peer_sent(be_cuda_t *cuda, cudaEvent_t event, const char *what)
{
    if (cuda->recording == CUDA_PLAIN) {
        return be_cuda_check(cuda, cudaEventRecord(event,
                                       be_peer_stream(cuda->peer)), what);
    }

    if (cuda->say.group == CUDA_SHARED) {
        be_cuda_record_cut(cuda);

    } else if (cuda->say.group == CUDA_APART && cuda->part != 0) {
        be_cuda_flags_meet(cuda->peer);
    }

    return cuda->failed ? -1 : 0;
}


static int
peer_wait(be_cuda_t *cuda, be_peer_t *const *all, int returned)
{
    uint32_t      i, k;
    cudaEvent_t   event;
    peer_part_t  *part;

    k = be_cuda_half(cuda);
    part = &cuda->peer->part[k];

    if (cuda->part != 0
        && be_cuda_check(cuda, cudaStreamWaitEvent(cuda->stream, part->done,
                                                   0), "a micro-batch")
           != 0)
    {
        return -1;
    }

    if (cuda->recording != CUDA_PLAIN) {

        if (cuda->say.group == CUDA_SHARED) {
            be_cuda_record_go(cuda);

        } else if (cuda->say.group == CUDA_APART && cuda->part == 0) {
            be_cuda_flags_meet(cuda->peer);
        }

        return cuda->failed ? -1 : 0;
    }

    for (i = 0; i < cuda->peer->opt.ranks; i++) {
        if (all[i] == NULL || all[i] == cuda->peer) {
            continue;
        }

        event = returned ? all[i]->part[k].returned : all[i]->part[k].sent;

        if (be_cuda_check(cuda, cudaStreamWaitEvent(cuda->stream, event, 0),
                             "other ranks")
               != 0)
        {
            return -1;
        }
    }

    return 0;
}


void
be_cuda_peer_pairs(be_t *be, be_peer_t *const *all,
    const be_peer_send_t *sends, be_pairs_t *pairs)
{
    size_t                at, max, each;
    uint8_t              *m;
    uint32_t              i, most;
    be_peer_t            *p;
    be_cuda_t            *cuda;
    cu_peers_t            peers;
    peer_part_t          *part;
    cu_exchange_pairs_t   s;

    cuda = (be_cuda_t *) be;
    p = cuda->peer;
    part = be_peer_part(p);

    /* a rank gets a row no oftener than it has slots */

    most = (part->slots < p->opt.top_k) ? part->slots : p->opt.top_k;

    for (i = 0, max = 0; i < p->opt.ranks; i++) {
        max += (size_t) (be_peer_is_far(p, i) ? sends[p->opt.rank].most
                                              : sends[i].rows) * most;
    }

    max = (max > 0) ? max : 1;
    at = ((part->slots + 1) * sizeof(uint32_t) + 63) / 64 * 64;
    each = (max * sizeof(uint32_t) + 63) / 64 * 64;

    memset(pairs, 0, sizeof(be_pairs_t));
    pairs->n_experts = part->slots;
    pairs->max = (uint32_t) max;

    m = be_cuda_scratch(cuda, CUDA_PAIRS_PEER + be_cuda_half(cuda),
                        at + each + 2 * max * sizeof(float *));
    part->stage = NULL;

    if (m != NULL && !p->opt.exact) {
        part->stage = be_cuda_scratch(cuda, CUDA_PAIRS_Y + be_cuda_half(cuda),
                                      max * p->opt.hidden * sizeof(uint16_t));
    }

    if (m == NULL || (part->stage == NULL && !p->opt.exact) || cuda->failed
        || peer_wait(cuda, all, 0) != 0)
    {
        return;
    }

    s.slots = part->slots;
    s.stop = be_cuda_flags_stopped(p);
    s.offset = (uint32_t *) (void *) m;
    s.row = (uint32_t *) (void *) (m + at);
    s.y = (float **) (void *) (m + at + each);
    s.to = (uint16_t **) (void *) (s.y + max);

    part->max = (uint32_t) max;
    part->offset = s.offset;
    part->to = s.to;

    pairs->offset = s.offset;
    pairs->row = s.row;
    pairs->y = p->opt.exact ? s.y : NULL;

    peer_table(p, all, sends, &peers);

    (void) be_cuda_check(cuda, cu_exchange_pairs(&part->e, &peers, &s,
                                                 cuda->stream), "pairs");
}


int
be_cuda_peer_take(be_cuda_t *cuda, const be_pairs_t *pairs,
    const cu_act_t *act)
{
    float        *scale;
    size_t        base;
    be_peer_t    *p;
    peer_part_t  *part;

    p = cuda->peer;
    part = be_peer_part(p);
    base = be_peer_base(p);
    scale = (p->scale != NULL) ? p->scale + base * p->e.groups : NULL;

    return be_cuda_check(cuda, cu_exchange_take(&part->e,
                                   p->x + base * p->e.row_bytes, scale,
                                   pairs->row, part->offset + part->slots,
                                   part->max, act, cuda->stream), "rows");
}


void
be_cuda_peer_return(be_t *be, be_peer_t *const *all)
{
    be_peer_t    *p;
    be_cuda_t    *cuda;
    peer_part_t  *part;

    (void) all;

    cuda = (be_cuda_t *) be;
    p = cuda->peer;
    part = be_peer_part(p);

    if (cuda->failed || peer_fork(cuda) != 0) {
        return;
    }

    if (!p->opt.exact
        && be_cuda_check(cuda, cu_exchange_return(&part->e, part->stage,
                                                  part->to,
                                                  part->offset + part->slots,
                                                  part->max,
                                                  be_peer_stream(p)),
                         "combine")
           != 0)
    {
        return;
    }

    if (peer_sent(cuda, part->returned, "combine") != 0) {
        return;
    }

    if (p->nccl != NULL) {
        be_cuda_far_return(p);
    }

    peer_join(cuda);
}


void
be_cuda_peer_collect(be_t *be, be_peer_t *const *all,
    const be_peer_send_t *send)
{
    be_peer_t    *p;
    be_cuda_t    *cuda;
    peer_part_t  *part;

    cuda = (be_cuda_t *) be;
    p = cuda->peer;
    part = be_peer_part(p);

    if (cuda->failed || peer_wait(cuda, all, 1) != 0) {
        return;
    }

    if (p->nccl != NULL) {
        (void) be_cuda_check(cuda, be_cuda_far_home(p, send), "combine");
        return;
    }

    if (p->opt.exact) {
        return;
    }

    /* They stay where they came: combine() is what reads them. */

    part->home = send->contrib;
    part->home_pairs = send->rows * p->opt.top_k;
}


const uint16_t *
be_cuda_peer_inbox(const be_peer_t *p, const float *contrib)
{
    if (contrib != p->part[be_cuda_half(p->cuda)].home) {
        return NULL;
    }

    return p->inbox + be_peer_base(p) * p->opt.top_k * p->opt.hidden;
}


uint16_t *
be_cuda_peer_stage(const be_peer_t *p)
{
    return p->part[be_cuda_half(p->cuda)].stage;
}


int
be_cuda_peer_home(be_peer_t *p, const float *x)
{
    float        *home;
    peer_part_t  *part;

    part = be_peer_part(p);
    home = part->home;

    if (home == NULL || x < home
        || x >= home + (size_t) part->home_pairs * p->opt.hidden)
    {
        return 0;
    }

    part->home = NULL;

    return be_cuda_check(p->cuda, cu_exchange_widen(&part->e,
                                      p->inbox + be_peer_base(p)
                                                 * p->opt.top_k
                                                 * p->opt.hidden,
                                      part->home_pairs, home,
                                      p->cuda->stream), "combine");
}
