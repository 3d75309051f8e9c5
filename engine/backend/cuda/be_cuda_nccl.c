/*
 * NCCL, loaded with dlopen().  It has run against a stand-in only
 * (tests/cuda/emu/emu_nccl.cc), not yet between two GPUs.
 *
 * The communicator does not block: a call may return before it is done, and
 * nothing else may be asked of it until it is.
 */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/cuda/be_cuda_nccl.h"

#if defined(__has_include)
#if __has_include(<nccl.h>)
#define CUDA_NCCL  1
#include <nccl.h>
#endif
#endif

#ifdef CU_EMU
#define dlopen  emu_nccl_dlopen
#define dlsym   emu_nccl_dlsym
#endif


#ifdef CUDA_NCCL

#define NCCL_SPIN     200            /* looks before sleeping in between */
#define NCCL_SLEEP    20000          /* ns */

_Static_assert(sizeof(ncclUniqueId) == BE_PEER_ID, "an id of NCCL's");

typedef struct {
    void           *library;
    ncclResult_t  (*version)(int *version);
    ncclResult_t  (*id)(ncclUniqueId *id);
    ncclResult_t  (*init)(ncclComm_t *comm, int ranks, ncclUniqueId id,
                          int rank, ncclConfig_t *config);
    ncclResult_t  (*state)(ncclComm_t comm, ncclResult_t *state);
    ncclResult_t  (*finalize)(ncclComm_t comm);
    ncclResult_t  (*destroy)(ncclComm_t comm);
    ncclResult_t  (*abort)(ncclComm_t comm);
    ncclResult_t  (*send)(const void *data, size_t n, ncclDataType_t type,
                          int rank, ncclComm_t comm, cudaStream_t stream);
    ncclResult_t  (*recv)(void *data, size_t n, ncclDataType_t type, int rank,
                          ncclComm_t comm, cudaStream_t stream);
    ncclResult_t  (*begin)(void);
    ncclResult_t  (*end)(void);
    const char   *(*text)(ncclResult_t rc);
    const char   *(*last)(ncclComm_t comm);
} nccl_calls_t;

struct cuda_nccl_s {
    nccl_calls_t         call;
    be_cuda_t           *cuda;
    be_peer_options_t    opt;
    ncclComm_t           comm;       /* NULL: aborted */
    int                  ready;
    const char          *what;       /* the group at hand */
    cudaStream_t         stream;
    ncclResult_t         rc;         /* its first failure */
};


static int nccl_load(nccl_calls_t *c, char *err);
static int nccl_settle(cuda_nccl_t *n, const char *what);
static int nccl_fine(cuda_nccl_t *n, const char *what, int64_t until);
static void nccl_note(cuda_nccl_t *n, ncclResult_t rc);
static int nccl_failed(cuda_nccl_t *n, const char *what, ncclResult_t rc);
static int nccl_ended(cuda_nccl_t *n, const char *why);
static int64_t nccl_now(void);
static void nccl_pause(uint32_t n);


/* It stays loaded. */

static int
nccl_load(nccl_calls_t *c, char *err)
{
    int     version;
    size_t  i;

    const struct {
        const char  *name;
        void        *at;
    } calls[] = {
        { "ncclGetVersion", &c->version },
        { "ncclGetUniqueId", &c->id },
        { "ncclCommInitRankConfig", &c->init },
        { "ncclCommGetAsyncError", &c->state },
        { "ncclCommFinalize", &c->finalize },
        { "ncclCommDestroy", &c->destroy },
        { "ncclCommAbort", &c->abort },
        { "ncclSend", &c->send },
        { "ncclRecv", &c->recv },
        { "ncclGroupStart", &c->begin },
        { "ncclGroupEnd", &c->end },
        { "ncclGetErrorString", &c->text },
        { "ncclGetLastError", &c->last }
    };

    c->library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);

    if (c->library == NULL) {
        snprintf(err, ERR_LEN, "ranks of other nodes need NCCL: %s",
                 dlerror());
        return -1;
    }

    for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        *(void **) calls[i].at = dlsym(c->library, calls[i].name);

        if (*(void **) calls[i].at == NULL) {
            snprintf(err, ERR_LEN, "libnccl has no %s", calls[i].name);
            return -1;
        }
    }

    version = 0;

    if (c->version(&version) != ncclSuccess || version / 10000 != NCCL_MAJOR
        || version < NCCL_VERSION(2, 18, 0))
    {
        snprintf(err, ERR_LEN, "libnccl is version %d; 2.18 or newer of %d is "
                 "needed", version, NCCL_MAJOR);
        return -1;
    }

    return 0;
}


int
be_cuda_peer_id(uint8_t *id, char *err)
{
    nccl_calls_t   c;
    ncclResult_t   rc;
    ncclUniqueId   made;

    if (nccl_load(&c, err) != 0) {
        return -1;
    }

    rc = c.id(&made);

    if (rc != ncclSuccess) {
        snprintf(err, ERR_LEN, "NCCL: no id: %s", c.text(rc));
        return -1;
    }

    memcpy(id, &made, BE_PEER_ID);

    return 0;
}


cuda_nccl_t *
be_cuda_nccl_open(be_cuda_t *cuda, const be_peer_options_t *opt, char *err)
{
    cuda_nccl_t   *n;
    ncclConfig_t   config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t   rc;
    ncclUniqueId   id;

    n = calloc(1, sizeof(cuda_nccl_t));
    if (n == NULL) {
        snprintf(err, ERR_LEN, "no memory for NCCL");
        return NULL;
    }

    n->cuda = cuda;
    n->opt = *opt;

    if (nccl_load(&n->call, err) != 0) {
        free(n);
        return NULL;
    }

    memcpy(&id, opt->id, BE_PEER_ID);
    config.blocking = 0;

    rc = n->call.init(&n->comm, (int) opt->ranks, id, (int) opt->rank,
                      &config);

    if (rc != ncclSuccess && rc != ncclInProgress) {
        snprintf(err, ERR_LEN, "NCCL: rank %u of %u cannot begin: %s",
                 opt->rank, opt->ranks, n->call.text(rc));
        free(n);
        return NULL;
    }

    return n;
}


void
be_cuda_nccl_close(cuda_nccl_t *n)
{
    if (n == NULL) {
        return;
    }

    if (!n->cuda->failed && n->ready && be_cuda_nccl_wait(n) == 0) {
        n->rc = n->call.finalize(n->comm);

        if (nccl_settle(n, "the end") == 0) {
            (void) n->call.destroy(n->comm);
            n->comm = NULL;
        }
    }

    if (n->comm != NULL) {
        (void) n->call.abort(n->comm);
    }

    free(n);
}


/* Waits until NCCL has done what it was told last. */

static int
nccl_settle(cuda_nccl_t *n, const char *what)
{
    int       rc;
    int64_t   until;
    uint32_t  i;

    if (n->comm == NULL) {
        return -1;
    }

    if (n->rc != ncclSuccess && n->rc != ncclInProgress) {
        return nccl_failed(n, what, n->rc);
    }

    until = nccl_now() + n->opt.timeout_ms;

    for (i = 0; (rc = nccl_fine(n, what, until)) == 1; i++) {
        nccl_pause(i);
    }

    return rc;
}


/* 0; 1: still at it; -1: failed. */

static int
nccl_fine(cuda_nccl_t *n, const char *what, int64_t until)
{
    char          why[ERR_LEN];
    ncclResult_t  rc, state;

    state = ncclSuccess;
    rc = n->call.state(n->comm, &state);
    state = (rc != ncclSuccess) ? rc : state;

    if (n->opt.status != NULL && n->opt.status(n->opt.ctx, why) != 0) {
        return nccl_ended(n, why);
    }

    if (state != ncclSuccess && state != ncclInProgress) {
        return nccl_failed(n, what, state);
    }

    if (state == ncclSuccess) {
        return 0;
    }

    if (n->opt.timeout_ms != 0 && nccl_now() >= until) {
        snprintf(why, sizeof(why), "rank %u: NCCL: %s with ranks of other "
                 "nodes did not end within %u ms", n->opt.rank, what,
                 n->opt.timeout_ms);
        return nccl_ended(n, why);
    }

    return 1;
}


void
be_cuda_nccl_begin(cuda_nccl_t *n, const char *what, cudaStream_t stream)
{
    n->what = what;
    n->stream = stream;
    n->rc = ncclSuccess;

    if (!n->ready) {
        if (nccl_settle(n, "meeting") != 0) {
            return;
        }

        n->ready = 1;
    }

    if (n->comm != NULL) {
        nccl_note(n, n->call.begin());
    }
}


void
be_cuda_nccl_send(cuda_nccl_t *n, uint32_t rank, const void *data,
    size_t size)
{
    if (n->comm != NULL && n->rc == ncclSuccess) {
        nccl_note(n, n->call.send(data, size, ncclUint8, (int) rank, n->comm,
                                  n->stream));
    }
}


void
be_cuda_nccl_recv(cuda_nccl_t *n, uint32_t rank, void *data, size_t size)
{
    if (n->comm != NULL && n->rc == ncclSuccess) {
        nccl_note(n, n->call.recv(data, size, ncclUint8, (int) rank, n->comm,
                                  n->stream));
    }
}


/* The group is on the stream only when NCCL says that it is done with it. */

int
be_cuda_nccl_end(cuda_nccl_t *n)
{
    if (n->comm == NULL) {
        return -1;
    }

    nccl_note(n, n->call.end());

    return nccl_settle(n, n->what);
}


/* After a failure, too, as others must not see memory go that it writes. */

int
be_cuda_nccl_wait(cuda_nccl_t *n)
{
    int          failed;
    char         why[ERR_LEN];
    int64_t      until;
    uint32_t     i;
    cudaError_t  done;

    failed = n->comm == NULL;
    until = nccl_now() + n->opt.timeout_ms;

    for (i = 0; /* void */ ; i++) {

        done = cudaStreamQuery(n->cuda->stream);

        if (done == cudaSuccess && n->stream != NULL
            && n->stream != n->cuda->stream)
        {
            done = cudaStreamQuery(n->stream);
        }

        if (done != cudaErrorNotReady) {
            done = (cudaError_t) be_cuda_check(n->cuda, done, "a kernel");
            return failed ? -1 : (int) done;
        }

        (void) cudaGetLastError();

        if (!failed && n->ready && nccl_fine(n, "a step", until) < 0) {
            failed = 1;
            until = nccl_now() + n->opt.timeout_ms;
        }

        if (n->opt.timeout_ms != 0 && nccl_now() >= until) {

            if (failed) {
                return -1;
            }

            snprintf(why, sizeof(why), "rank %u: NCCL: a step with ranks of "
                     "other nodes did not end within %u ms", n->opt.rank,
                     n->opt.timeout_ms);

            failed = 1;
            until = nccl_now() + n->opt.timeout_ms;
            (void) nccl_ended(n, why);
        }

        nccl_pause(i);
    }
}


static void
nccl_note(cuda_nccl_t *n, ncclResult_t rc)
{
    if (n->rc == ncclSuccess) {
        n->rc = rc;
    }
}


static int
nccl_failed(cuda_nccl_t *n, const char *what, ncclResult_t rc)
{
    char         why[ERR_LEN];
    const char  *last;

    last = n->call.last(n->comm);

    snprintf(why, sizeof(why), "rank %u: NCCL: %s: %s%s%.200s%s",
             n->opt.rank, what, n->call.text(rc),
             (last != NULL && *last != '\0') ? ": " : "",
             (last != NULL) ? last : "",
             (rc == ncclInvalidUsage && !n->ready)
             ? "; each rank needs a device of its own" : "");

    return nccl_ended(n, why);
}


/* Only an aborted communicator lets go of the stream. */

static int
nccl_ended(cuda_nccl_t *n, const char *why)
{
    if (n->comm != NULL) {
        (void) n->call.abort(n->comm);
        n->comm = NULL;
    }

    be_cuda_fail(n->cuda, "%s", why);

    if (n->opt.fail != NULL) {
        n->opt.fail(n->opt.ctx, why);
    }

    return -1;
}


static int64_t
nccl_now(void)
{
    struct timespec  ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);

    return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}


static void
nccl_pause(uint32_t n)
{
    struct timespec  ts;

    if (n >= NCCL_SPIN) {
        ts.tv_sec = 0;
        ts.tv_nsec = NCCL_SLEEP;
        nanosleep(&ts, NULL);
    }
}

#else

int
be_cuda_peer_id(uint8_t *id, char *err)
{
    (void) id;

    snprintf(err, ERR_LEN, "ranks of other nodes need NCCL: built without "
             "nccl.h");
    return -1;
}


cuda_nccl_t *
be_cuda_nccl_open(be_cuda_t *cuda, const be_peer_options_t *opt, char *err)
{
    uint8_t  id[BE_PEER_ID];

    (void) cuda;
    (void) opt;
    (void) be_cuda_peer_id(id, err);

    return NULL;
}


/* Nobody has one. */

void
be_cuda_nccl_close(cuda_nccl_t *n)
{
    (void) n;
}


void
be_cuda_nccl_begin(cuda_nccl_t *n, const char *what, cudaStream_t stream)
{
    (void) n;
    (void) what;
    (void) stream;
}


void
be_cuda_nccl_send(cuda_nccl_t *n, uint32_t rank, const void *data,
    size_t size)
{
    (void) n;
    (void) rank;
    (void) data;
    (void) size;
}


void
be_cuda_nccl_recv(cuda_nccl_t *n, uint32_t rank, void *data, size_t size)
{
    (void) n;
    (void) rank;
    (void) data;
    (void) size;
}


int
be_cuda_nccl_end(cuda_nccl_t *n)
{
    (void) n;

    return -1;
}


int
be_cuda_nccl_wait(cuda_nccl_t *n)
{
    (void) n;

    return -1;
}

#endif /* CUDA_NCCL */
