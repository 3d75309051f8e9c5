/*
 * Steps that are recorded as graphs, and replayed.
 *
 * The first step of a kind and size is computed as it comes (memory grows,
 * libraries choose), the second is recorded and launched, all others are
 * launched.  What a graph was made of stays where it is, or it is dropped.
 *
 * Ranks of one process agree when a step begins, in a meeting of their threads:
 * all are padded to the sizes of the one that has most, as all wait for that
 * one anyway, so that a graph, which has all ranks' sizes in it, is of one key.
 * The first rank keeps the list of keys for all, and whatever one rank drops
 * makes the keys new for all: a recording is made by all ranks in the same
 * step, and replayed by all or none.
 *
 *     apart     each rank has its own device, graph and stream; the graphs wait
 *               for each other by flags (cu_flags.h); two micro-batches are two
 *               branches of the graph
 *     shared    all are on one device, where a kernel that waits for another
 *               rank's could keep it from running: one graph has the operations
 *               of all, which the last thread that ends the step launches; not
 *               of a step in two micro-batches
 *     never     some ranks share a device and others do not, ranks of other
 *               nodes, or no limit to a wait: events and meetings, as before
 *
 * A graph must not be touched by two threads at once (CUDA calls graphs "not
 * internally synchronized"), and a capture is a graph: so threads of ranks that
 * share one do not capture into it.  Each captures pieces of its own, from one
 * meeting to the next, and the last one that ends the step puts these together,
 * where piece i of a rank comes after the pieces i - 1 of all.  That is also
 * why the mode is cudaStreamCaptureModeThreadLocal: nothing is captured by two
 * threads, a rank's own must not wait or allocate, and threads that copy
 * weights or KV blocks meanwhile may.  A capture is ended by the thread that
 * began it: be->end(), or be->peer_stop() where the exchange fails.
 *
 * It has run with one rank on a GPU, with several in emulation alone.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/be_cuda.h"


static int record_agreed(void *arg, char *err);
static void record_choose(be_cuda_t *first, const cuda_ask_t *ask);
static cuda_known_t *record_known(be_cuda_t *first, uint64_t key);
static int record_made(void *arg, char *err);
static int record_shared(void *arg, char *err);
static int record_failed(be_cuda_t **all, uint32_t n, char *err);
static void record_make(be_cuda_t **all, uint32_t n);
static int record_join(be_cuda_t **all, uint32_t n, cudaGraph_t graph);
static void record_launch(be_cuda_t *cuda);
static void record_forget_pieces(be_cuda_t *cuda);


uint32_t
be_cuda_bucket(uint32_t n, uint32_t max)
{
    uint32_t  size;

    if (n == 0 || n > CUDA_RECORD_ROWS) {
        return n;
    }

    if (n <= 8) {
        for (size = 1; size < n; size *= 2) { /* void */ }

    } else {
        size = (n <= 64) ? 8 : (n <= 128) ? 16 : 32;
        size = (n + size - 1) / size * size;
    }

    return size < max ? size : max > n ? max : n;
}


int
be_cuda_agree(be_cuda_t *cuda, const be_step_t *step, char *err)
{
    cuda_ask_t  *ask;

    ask = &cuda->ask;
    ask->key = step->key;
    ask->rows = step->all.n_rows;
    ask->last = step->last.n_rows;
    ask->max_rows = step->max_rows;
    ask->max_last = step->max_last;
    ask->micro = step->micro;
    ask->some = step->some;
    ask->drops = cuda->drops;

    memset(&cuda->say, 0, sizeof(cuda_say_t));

    if (step->key == 0) {
        return 0;
    }

    return be_cuda_peer_meet(cuda, "step", record_agreed, err);
}


/* By the last rank to come, for all. */

static int
record_agreed(void *arg, char *err)
{
    uint32_t       i, n;
    be_cuda_t     *all[BE_PEERS_MAX];
    cuda_ask_t     ask;
    cuda_say_t    *say;
    cuda_group_t   group;

    n = be_cuda_peer_all(arg, all, &group);

    if (n == 0) {
        snprintf(err, ERR_LEN, "a step without all ranks");
        return -1;
    }

    ask = all[0]->ask;

    for (i = 1; i < n; i++) {
        ask.key = (all[i]->ask.key == ask.key) ? ask.key : 0;
        ask.some |= all[i]->ask.some;
        ask.drops += all[i]->ask.drops;

        if (all[i]->ask.rows > ask.rows) {
            ask.rows = all[i]->ask.rows;
        }

        if (all[i]->ask.last > ask.last) {
            ask.last = all[i]->ask.last;
        }
    }

    say = &all[0]->say;
    memset(say, 0, sizeof(cuda_say_t));
    say->group = group;
    say->split = (ask.micro != 0 && ask.rows >= ask.micro);

    /* what is cut where ranks meet has nothing to run beside */

    if (ask.key != 0 && ask.rows > 0 && group != CUDA_NEVER
        && (group != CUDA_SHARED || !say->split))
    {
        record_choose(all[0], &ask);

        /* steps of one key are alike */

        if (say->rows != 0) {
            say->split = (ask.micro != 0 && say->rows >= ask.micro
                          && group != CUDA_SHARED);
        }
    }

    for (i = 1; i < n; i++) {
        all[i]->say = *say;
    }

    return 0;
}


/* Where every row gives logits both have the same padding. */

static void
record_choose(be_cuda_t *first, const cuda_ask_t *ask)
{
    uint32_t       rows, last, max;
    uint64_t       key;
    cuda_say_t    *say;
    cuda_known_t  *k;

    max = ask->max_rows < ask->max_last ? ask->max_rows : ask->max_last;
    rows = be_cuda_bucket(ask->rows, ask->some ? ask->max_rows : max);
    last = ask->some ? be_cuda_bucket(ask->last, max) : rows;

    if (rows > CUDA_RECORD_ROWS) {
        return;
    }

    say = &first->say;
    say->rows = rows;
    say->last = last;
    say->some = ask->some;

    key = (uint64_t) ask->key << 48 | (uint64_t) (ask->some != 0) << 40
          | (uint64_t) rows << 20 | last;

    k = record_known(first, key);
    k->used = ++first->steps;
    say->index = (uint32_t) (k - first->known);

    if (k->key != key || k->drops != ask->drops) {
        k->key = key;
        k->drops = ask->drops;
        k->recorded = 0;
        return;
    }

    say->how = k->recorded ? CUDA_REPLAY : CUDA_RECORD;
    k->recorded = 1;
}


/* That of the key, or the one that was not used for longest. */

static cuda_known_t *
record_known(be_cuda_t *first, uint64_t key)
{
    uint32_t       i;
    cuda_known_t  *k, *oldest;

    oldest = &first->known[0];

    for (i = 0; i < CUDA_RECORDS; i++) {
        k = &first->known[i];

        if (k->key == key) {
            return k;
        }

        oldest = (k->used < oldest->used) ? k : oldest;
    }

    return oldest;
}


void
be_cuda_record_go(be_cuda_t *cuda)
{
    if (cuda->recording != CUDA_RECORD || cuda->capturing || cuda->failed) {
        return;
    }

    if (be_cuda_check(cuda, cudaStreamBeginCapture(cuda->stream,
                                cudaStreamCaptureModeThreadLocal),
                      "recording a step")
        == 0)
    {
        cuda->capturing = 1;
    }
}


void
be_cuda_record_cut(be_cuda_t *cuda)
{
    int            rc;
    uint32_t       n;
    cudaGraph_t    graph, *piece;

    if (!cuda->capturing) {
        return;
    }

    graph = NULL;
    cuda->capturing = 0;
    rc = cudaStreamEndCapture(cuda->stream, &graph);

    if (be_cuda_check(cuda, rc, "recording a step") != 0) {
        return;
    }

    if (cuda->n_pieces == cuda->max_pieces) {
        n = 2 * cuda->max_pieces + 16;
        piece = realloc(cuda->piece, n * sizeof(cudaGraph_t));

        if (piece == NULL) {
            (void) cudaGraphDestroy(graph);
            be_cuda_fail(cuda, "no memory for a recorded step");
            return;
        }

        cuda->piece = piece;
        cuda->max_pieces = n;
    }

    cuda->piece[cuda->n_pieces++] = graph;
}


/* What the others must not miss comes before a failure of one's own is told. */

int
be_cuda_record_end(be_cuda_t *cuda, char *err)
{
    int         rc;
    uint32_t    n;
    be_cuda_t  *all[BE_PEERS_MAX];

    rc = 0;
    be_cuda_record_cut(cuda);

    if (cuda->say.group == CUDA_SHARED) {
        rc = be_cuda_peer_meet(cuda, "end of a step", record_shared, err);
        n = be_cuda_peer_all(cuda, all, &cuda->say.group);

        /* copies of the next step's arrays, and draws, come after it */

        if (rc == 0 && n > 0) {
            (void) be_cuda_check(cuda, cudaStreamWaitEvent(cuda->stream,
                                           all[0]->stepped, 0),
                                 "a recorded step");
        }

    } else {
        if (cuda->recording == CUDA_RECORD) {
            record_make(&cuda, 1);
        }

        /* a graph that waits for one that there is not would do so in vain */

        if (cuda->say.group == CUDA_APART) {
            rc = (cuda->recording == CUDA_RECORD)
                 ? be_cuda_peer_meet(cuda, "recording", record_made, err)
                 : be_cuda_peer_status(cuda, err);
        }

        if (rc == 0 && !cuda->failed) {
            record_launch(cuda);
        }
    }

    if (rc == 0 && !cuda->failed) {
        cuda->recorded++;
        cuda->replayed += (cuda->recording == CUDA_REPLAY);
        record_forget_pieces(cuda);
        cuda->recording = CUDA_PLAIN;
    }

    be_cuda_record_stop(cuda);

    return rc;
}


/* Of ranks apart, before the first of them launches. */

static int
record_made(void *arg, char *err)
{
    uint32_t       n;
    be_cuda_t     *all[BE_PEERS_MAX];
    cuda_group_t   group;

    n = be_cuda_peer_all(arg, all, &group);

    return record_failed(all, n, err);
}


/* By the last rank to come: all ranks' arrays are there, or on their way. */

static int
record_shared(void *arg, char *err)
{
    uint32_t       i, n;
    be_cuda_t     *all[BE_PEERS_MAX], *first;
    cuda_group_t   group;

    n = be_cuda_peer_all(arg, all, &group);

    if (record_failed(all, n, err) != 0) {
        return -1;
    }

    first = all[0];

    for (i = 1; i < n; i++) {
        (void) be_cuda_check(first, cudaStreamWaitEvent(first->stream,
                                        all[i]->copied, 0),
                             "a recorded step");
    }

    if (first->recording == CUDA_RECORD) {
        record_make(all, n);
    }

    record_launch(first);

    (void) be_cuda_check(first, cudaEventRecord(first->stepped,
                                                first->stream), "a step");

    return record_failed(all, 1, err);
}


static int
record_failed(be_cuda_t **all, uint32_t n, char *err)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        if (all[i]->failed) {
            snprintf(err, ERR_LEN, "%s", all[i]->why);
            return -1;
        }
    }

    return 0;
}


/* Of the pieces of all, for the first of them. */

static void
record_make(be_cuda_t **all, uint32_t n)
{
    int               rc;
    be_cuda_t        *cuda;
    cudaGraph_t       graph, made;
    cudaGraphExec_t  *exec;

    cuda = all[0];
    exec = &cuda->exec[cuda->say.index];

    if (cuda->failed) {
        return;
    }

    if (*exec != NULL) {
        (void) cudaGraphExecDestroy(*exec);
        *exec = NULL;
    }

    made = NULL;
    rc = 0;

    if (n == 1 && cuda->n_pieces == 1) {
        graph = cuda->piece[0];

    } else {
        rc = cudaGraphCreate(&made, 0);
        graph = made;

        if (rc == 0) {
            rc = record_join(all, n, graph);
        }
    }

    if (rc == 0) {
        rc = cudaGraphInstantiate(exec, graph, cuda->say.split
                                      ? cudaGraphInstantiateFlagUseNodePriority
                                      : 0);
    }

    /* not at its first launch, when others may wait for it already */

    if (rc == 0 && cuda->say.group == CUDA_APART) {
        rc = cudaGraphUpload(*exec, cuda->stream);
    }

    if (made != NULL) {
        (void) cudaGraphDestroy(made);
    }

    (void) be_cuda_check(cuda, rc, "recording a step");
}


static int
record_join(be_cuda_t **all, uint32_t n, cudaGraph_t graph)
{
    int              rc;
    uint32_t         i, r;
    cudaGraphNode_t  before[BE_PEERS_MAX], node[BE_PEERS_MAX];

    for (r = 1; r < n; r++) {
        if (all[r]->n_pieces != all[0]->n_pieces) {
            return cudaErrorInvalidValue;
        }
    }

    for (i = 0; i < all[0]->n_pieces; i++) {
        for (r = 0; r < n; r++) {
            rc = cudaGraphAddChildGraphNode(&node[r], graph,
                                            i > 0 ? before : NULL,
                                            i > 0 ? n : 0, all[r]->piece[i]);

            if (rc != 0) {
                return rc;
            }
        }

        memcpy(before, node, sizeof(before));
    }

    return 0;
}


static void
record_launch(be_cuda_t *cuda)
{
    if (!cuda->failed) {
        (void) be_cuda_check(cuda, cudaGraphLaunch(
                                       cuda->exec[cuda->say.index],
                                       cuda->stream), "a recorded step");
    }
}


/* What a step has left that was not ended: it has to be recorded anew. */

void
be_cuda_record_stop(be_cuda_t *cuda)
{
    cudaGraph_t  graph;

    if (cuda->capturing) {
        graph = NULL;
        cuda->capturing = 0;
        (void) cudaStreamEndCapture(cuda->stream, &graph);

        if (graph != NULL) {
            (void) cudaGraphDestroy(graph);
        }
    }

    record_forget_pieces(cuda);

    if (cuda->recording != CUDA_PLAIN) {
        cuda->recording = CUDA_PLAIN;
        cuda->drops++;
    }
}


static void
record_forget_pieces(be_cuda_t *cuda)
{
    while (cuda->n_pieces > 0) {
        (void) cudaGraphDestroy(cuda->piece[--cuda->n_pieces]);
    }
}


void
be_cuda_record_close(be_cuda_t *cuda)
{
    be_cuda_record_stop(cuda);
    be_cuda_drop(cuda);
    free(cuda->piece);
}


void
be_cuda_drop(be_cuda_t *cuda)
{
    uint32_t  i;

    cuda->drops++;

    for (i = 0; i < CUDA_RECORDS; i++) {
        if (cuda->exec[i] != NULL) {
            (void) cudaGraphExecDestroy(cuda->exec[i]);
            cuda->exec[i] = NULL;
        }
    }
}
