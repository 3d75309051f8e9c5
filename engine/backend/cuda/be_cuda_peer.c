/*
 * A rank's part of the exchange with other ranks: memory that those of the
 * process write, and the order of streams.  For those of other nodes there is
 * memory of its own instead (be_cuda_peer_far.c).
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
 * stream of its own, `beside`, whose kernels are few blocks and come first.
 * With A the stream of the rank and B that one, in a layer:
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

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda_peer_int.h"


/*
 * Blocks of what is copied beside other work.  Each has as many threads as
 * there may be, so that it takes a multiprocessor to itself, and the others are
 * left to products, which take one whole.
 */

#define PEER_BESIDE  20

_Static_assert(BE_PEERS_MAX == CU_PEERS, "ranks of an exchange");


static int peer_memory(be_peer_t *p, char *err);
static int peer_reach(const be_peer_t *p, char *err);
static const peer_place_t *peer_place(be_peer_t *p,
    const be_peer_send_t *send);
static int peer_copy(be_cuda_t *cuda, void *to, const void *from,
    size_t size);
static void peer_table(const be_peer_t *p, be_peer_t *const *all,
    const be_peer_send_t *sends, cu_peers_t *t);
static int peer_fork(be_cuda_t *cuda);
static void peer_join(be_cuda_t *cuda);
static int peer_sent(be_cuda_t *cuda, cudaEvent_t event, const char *what);
static int peer_wait(be_cuda_t *cuda, be_peer_t *const *all, int returned);
static int peer_events(be_peer_t *p);
static void peer_events_free(be_peer_t *p);
static void peer_event_free(cudaEvent_t event);


be_peer_t *
be_cuda_peer_open(be_t *be, const be_peer_options_t *opt, char *err)
{
    be_peer_t  *p;
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    if (opt->ranks > BE_PEERS_MAX || opt->top_k > BE_TOPK_MAX) {
        snprintf(err, ERR_LEN, "an exchange of %u ranks, %u experts a row: "
                 "%u and %u are possible", opt->ranks, opt->top_k,
                 BE_PEERS_MAX, BE_TOPK_MAX);
        return NULL;
    }

    p = calloc(1, sizeof(be_peer_t));
    if (p == NULL) {
        snprintf(err, ERR_LEN, "no memory for an exchange");
        return NULL;
    }

    p->cuda = cuda;
    p->opt = *opt;
    p->type = be_cuda_act_type(cuda, opt->expert->w1->m.type);

    p->e.ranks = opt->ranks;
    p->e.rank = opt->rank;
    p->e.max_rows = opt->max_rows;
    p->e.most = opt->max_rows;
    p->e.top_k = opt->top_k;
    p->e.hidden = opt->hidden;

    if (p->type == CU_MM_FP8) {
        p->e.groups = (opt->hidden + CU_GROUP - 1) / CU_GROUP;
        p->e.row_bytes = p->e.groups * CU_GROUP;

    } else {
        p->e.row_bytes = (opt->hidden + CUDA_ALIGN - 1) / CUDA_ALIGN
                         * CUDA_ALIGN * 2;
    }

    if (peer_reach(p, err) != 0 || peer_memory(p, err) != 0
        || (opt->local != 0 && be_cuda_far_memory(p, err) != 0))
    {
        be_cuda_peer_close(be, p);
        return NULL;
    }

    if (opt->local != 0) {
        p->nccl = be_cuda_nccl_open(cuda, opt, err);

        if (p->nccl == NULL) {
            be_cuda_peer_close(be, p);
            return NULL;
        }
    }

    cuda->peer = p;

    return p;
}


/* Each device of the process must reach each other's memory. */

static int
peer_reach(const be_peer_t *p, char *err)
{
    int               i, can, devices;
    const be_cuda_t  *cuda;

    cuda = p->cuda;

    if (cudaGetDeviceCount(&devices) != 0) {
        snprintf(err, ERR_LEN, "CUDA: no devices");
        return -1;
    }

    if (p->opt.local > (uint32_t) devices) {
        snprintf(err, ERR_LEN, "%u ranks of a node on %d CUDA devices: NCCL "
                 "refuses two ranks on one device", p->opt.local, devices);
        return -1;
    }

    for (i = 0; i < devices; i++) {
        can = 1;

        if (i != cuda->device
            && (cudaDeviceCanAccessPeer(&can, cuda->device, i) != 0 || !can))
        {
            snprintf(err, ERR_LEN, "CUDA device %d cannot reach the memory of "
                     "device %d, which an exchange between them needs: hide "
                     "one of them with CUDA_VISIBLE_DEVICES", cuda->device,
                     i);
            return -1;
        }
    }

    return 0;
}


static int
peer_memory(be_peer_t *p, char *err)
{
    int     rc;
    size_t  rows, pairs;

    rows = (size_t) p->opt.ranks * p->opt.max_rows + 1;
    pairs = (size_t) p->opt.max_rows * p->opt.top_k + 1;

    rc = cudaMalloc((void **) &p->x, rows * p->e.row_bytes);

    if (rc == 0 && p->e.groups > 0) {
        rc = cudaMalloc((void **) &p->scale,
                        rows * p->e.groups * sizeof(float));
    }

    if (rc == 0) {
        rc = cudaMalloc((void **) &p->slot,
                        rows * p->opt.top_k * sizeof(int32_t));
    }

    if (rc == 0) {
        rc = cudaMalloc((void **) &p->rows,
                        2 * p->opt.ranks * sizeof(uint32_t));
    }

    if (rc == 0) {
        rc = cudaMemsetAsync(p->rows, 0, 2 * p->opt.ranks * sizeof(uint32_t),
                             p->cuda->stream);
    }

    if (rc == 0) {
        rc = be_cuda_flags_open(p);
    }

    if (rc == 0) {
        rc = cudaStreamSynchronize(p->cuda->stream);
    }

    if (rc == 0 && !p->opt.exact) {
        rc = cudaMalloc((void **) &p->inbox,
                        pairs * p->opt.hidden * sizeof(uint16_t));
    }

    if (rc == 0) {
        rc = peer_events(p);
    }

    if (rc != 0) {
        snprintf(err, ERR_LEN, "CUDA device %d: no memory for an exchange of "
                 "%u ranks with %u rows: %s", p->cuda->device, p->opt.ranks,
                 p->opt.max_rows, cudaGetErrorString((cudaError_t) rc));
        return -1;
    }

    return 0;
}


static int
peer_events(be_peer_t *p)
{
    int           rc, least, most;
    uint32_t      i;
    peer_part_t  *part;

    rc = cudaDeviceGetStreamPriorityRange(&least, &most);

    if (rc == 0) {
        rc = cudaStreamCreateWithPriority(&p->beside, cudaStreamNonBlocking,
                                          most);
    }

    for (i = 0; i < 2 && rc == 0; i++) {
        part = &p->part[i];

        rc = cudaEventCreateWithFlags(&part->sent, cudaEventDisableTiming);

        if (rc == 0) {
            rc = cudaEventCreateWithFlags(&part->returned,
                                          cudaEventDisableTiming);
        }

        if (rc == 0) {
            rc = cudaEventCreateWithFlags(&part->ready,
                                          cudaEventDisableTiming);
        }

        if (rc == 0) {
            rc = cudaEventCreateWithFlags(&part->done,
                                          cudaEventDisableTiming);
        }
    }

    return rc;
}


static void
peer_events_free(be_peer_t *p)
{
    uint32_t      i;
    peer_part_t  *part;

    for (i = 0; i < 2; i++) {
        part = &p->part[i];

        peer_event_free(part->sent);
        peer_event_free(part->returned);
        peer_event_free(part->ready);
        peer_event_free(part->done);
    }

    if (p->beside != NULL) {
        (void) cudaStreamDestroy(p->beside);
    }
}


static void
peer_event_free(cudaEvent_t event)
{
    if (event != NULL) {
        (void) cudaEventDestroy(event);
    }
}


int
be_cuda_peer_far(const be_peer_t *p)
{
    return p->nccl != NULL;
}


int
be_cuda_peer_wait(be_peer_t *p)
{
    return be_cuda_nccl_wait(p->nccl);
}


void
be_cuda_peer_close(be_t *be, be_peer_t *peer)
{
    be_cuda_t  *cuda;

    cuda = (be_cuda_t *) be;

    (void) cudaSetDevice(cuda->device);

    /* first, as what NCCL has begun may never end by itself */

    be_cuda_nccl_close(peer->nccl);
    peer->nccl = NULL;

    (void) cudaStreamSynchronize(cuda->stream);

    if (peer->beside != NULL) {
        (void) cudaStreamSynchronize(peer->beside);
    }

    be_cuda_far_free(peer);

    cuda->peer = peer;
    be_cuda_peer_forget(cuda);
    cuda->peer = NULL;

    (void) cudaFree(peer->x);
    (void) cudaFree(peer->scale);
    (void) cudaFree(peer->slot);
    (void) cudaFree(peer->rows);
    (void) cudaFree(peer->inbox);
    be_cuda_flags_close(peer);
    peer_events_free(peer);
    free(peer);
}


void
be_cuda_peer_forget(be_cuda_t *cuda)
{
    be_peer_t     *p;
    peer_place_t  *place;

    p = cuda->peer;

    while (p != NULL && p->places != NULL) {
        place = p->places;
        p->places = place->next;

        (void) cudaFree(place->first);
        (void) cudaFree(place->slot);
        (void) cudaFree(place->home);
        free(place);
    }
}


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
    place = peer_place(p, send);

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


/* Copied when it is first used; be->forget() comes before it changes. */

static const peer_place_t *
peer_place(be_peer_t *p, const be_peer_send_t *send)
{
    int            rc;
    size_t         homes;
    be_cuda_t     *cuda;
    peer_place_t  *place;

    cuda = p->cuda;

    for (place = p->places; place != NULL; place = place->next) {
        if (place->key == send->first) {
            return place;
        }
    }

    if (cuda->recording != CUDA_PLAIN) {
        be_cuda_fail(cuda, "another placement in a recorded step");
        return NULL;
    }

    place = calloc(1, sizeof(peer_place_t));
    if (place == NULL) {
        be_cuda_fail(cuda, "no memory for a placement");
        return NULL;
    }

    /* a copy from memory that is not pinned waits for the stream */

    if (be_cuda_wait(cuda) != 0) {
        free(place);
        return NULL;
    }

    place->next = p->places;
    p->places = place;
    homes = send->homes;

    rc = cudaMalloc((void **) &place->first,
                    (send->experts + 1) * sizeof(uint32_t));

    if (rc == 0) {
        rc = cudaMalloc((void **) &place->slot, homes * sizeof(uint32_t));
    }

    if (rc == 0) {
        rc = cudaMalloc((void **) &place->home, homes);
    }

    if (be_cuda_check(cuda, rc, "memory for a placement") != 0
        || peer_copy(cuda, place->first, send->first,
                     (send->experts + 1) * sizeof(uint32_t))
           != 0
        || peer_copy(cuda, place->slot, send->slot,
                     homes * sizeof(uint32_t))
           != 0
        || peer_copy(cuda, place->home, send->home, homes) != 0
        || be_cuda_wait(cuda) != 0)
    {
        return NULL;
    }

    place->key = send->first;

    return place;
}


static int
peer_copy(be_cuda_t *cuda, void *to, const void *from, size_t size)
{
    return be_cuda_check(cuda, cudaMemcpyAsync(to, from, size,
                                               cudaMemcpyHostToDevice,
                                               cuda->stream), "a placement");
}


static void
peer_table(const be_peer_t *p, be_peer_t *const *all,
    const be_peer_send_t *sends, cu_peers_t *t)
{
    void              *out;
    size_t             base, pairs;
    uint32_t           i, rows;
    const peer_far_t  *f;

    memset(t, 0, sizeof(cu_peers_t));
    base = be_peer_base(p);
    pairs = base * p->opt.top_k * p->opt.hidden;
    rows = (p->cuda->part == 2) ? p->opt.ranks : 0;

    for (i = 0; i < p->opt.ranks; i++) {

        if (be_peer_is_far(p, i)) {
            f = &p->far[i];
            out = f->out + pairs * (p->opt.exact ? sizeof(float)
                                                 : sizeof(uint16_t));
            t->x[i] = f->x;
            t->scale[i] = f->scale;
            t->slot[i] = f->slot;
            t->rows[i] = f->rows + (rows != 0);
            t->inbox[i] = p->opt.exact ? NULL : out;
            t->contrib[i] = p->opt.exact ? out : NULL;

        } else {
            t->from[i] = p->opt.rank;
            t->x[i] = all[i]->x;
            t->scale[i] = all[i]->scale;
            t->slot[i] = all[i]->slot;
            t->rows[i] = all[i]->rows + rows;
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

    k = (cuda->part == 2);
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

    m = be_cuda_scratch(cuda, cuda->part == 2 ? CUDA_PAIRS_PEER_2
                                              : CUDA_PAIRS_PEER,
                        at + each + 2 * max * sizeof(float *));
    part->stage = NULL;

    if (m != NULL && !p->opt.exact) {
        part->stage = be_cuda_scratch(cuda, cuda->part == 2 ? CUDA_PAIRS_Y_2
                                                            : CUDA_PAIRS_Y,
                                      max * p->opt.hidden * sizeof(uint16_t));
    }

    if (m == NULL || (part->stage == NULL && !p->opt.exact) || cuda->failed
        || peer_wait(cuda, all, 0) != 0)
    {
        return;
    }

    s.slots = part->slots;
    s.stop = be_cuda_flags_stop(p);
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
    if (contrib != p->part[p->cuda->part == 2].home) {
        return NULL;
    }

    return p->inbox + be_peer_base(p) * p->opt.top_k * p->opt.hidden;
}


uint16_t *
be_cuda_peer_stage(const be_peer_t *p)
{
    return p->part[p->cuda->part == 2].stage;
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


