/*
 * A step takes no memory from the system and no lock, on any thread: both are
 * counted while steps of all kinds go on, from the first.  Threads may sleep in
 * a futex where there is nothing to do.
 *
 * Not with a sanitizer, which has these functions for itself.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>

#include "ep/exchange.h"
#include "model/model.h"
#include "unit/model_dir.h"


#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define STEADY_COUNTS  0
#else
#define STEADY_COUNTS  1
#endif

#define RANKS   2
#define ROWS    96                   /* of the largest step */
#define BLOCKS  64
#define CONTEXT 1400                 /* several runs of attention */

typedef struct {
    uint32_t         index;
    model_t         *model;
    ep_map_t        *map;
    ep_exchange_t   *ex;
    const char      *path;
    be_dtype_t       compute;
    be_dtype_t       weights;
    be_t            *be;
    model_rank_t    *mr;
    pthread_t        thread;
    int              rc;
    char             err[ERR_LEN];
} side_t;

typedef struct {
    int32_t          id[ROWS];
    uint32_t         pos[ROWS];
    uint32_t         seq[ROWS];
    uint32_t         row[ROWS];
    int32_t          block[2][BLOCKS / 2];
    const int32_t   *blocks[2];
    float           *logits;
    be_batch_t       batch;
} rows_t;


static atomic_int         counting;
static atomic_uint        n_alloc;
static atomic_uint        n_lock;
static pthread_barrier_t  turn;


#if STEADY_COUNTS

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static inline void
alloc(void)
{
    if (atomic_load_explicit(&counting, memory_order_relaxed)) {
        atomic_fetch_add(&n_alloc, 1);
    }
}

void *
malloc(size_t size)
{
    alloc();
    return __libc_malloc(size);
}

void *
calloc(size_t n, size_t size)
{
    alloc();
    return __libc_calloc(n, size);
}

void *
realloc(void *p, size_t size)
{
    alloc();
    return __libc_realloc(p, size);
}

void *
aligned_alloc(size_t align, size_t size)
{
    alloc();
    return __libc_memalign(align, size);
}

int
posix_memalign(void **p, size_t align, size_t size)
{
    alloc();
    *p = __libc_memalign(align, size);
    return *p != NULL ? 0 : ENOMEM;
}

void
free(void *p)
{
    alloc();
    __libc_free(p);
}

int
pthread_mutex_lock(pthread_mutex_t *mutex)
{
    static int  (*real)(pthread_mutex_t *);

    if (real == NULL) {
        *(void **) &real = dlsym(RTLD_NEXT, "pthread_mutex_lock");
    }

    if (atomic_load_explicit(&counting, memory_order_relaxed)) {
        atomic_fetch_add(&n_lock, 1);
    }

    return real(mutex);
}

#endif


/* `n` rows at the end of `of` sequences that have `done` tokens each. */

static void
rows(rows_t *r, uint32_t n, uint32_t of, uint32_t done)
{
    uint32_t  i;

    for (i = 0; i < n; i++) {
        r->id[i] = (int32_t) ((done + i * 7) % 101);
        r->pos[i] = done + i / of;
        r->seq[i] = i % of;
    }

    /* Rows of a sequence follow each other. */

    if (of == 2 && n > 2) {
        for (i = 0; i < n; i++) {
            r->seq[i] = i / (n / 2);
            r->pos[i] = done + i % (n / 2);
        }
    }

    r->batch.n_rows = n;
}


static int
step(side_t *s, rows_t *r, uint32_t n_logits)
{
    uint32_t  i;

    for (i = 0; i < n_logits; i++) {
        r->row[i] = r->batch.n_rows - n_logits + i;
    }

    return model_step(s->mr, &r->batch, r->row, n_logits, r->logits, s->err);
}


/* The largest steps, long contexts, one row, two, none. */

static int
steps(side_t *s, rows_t *r)
{
    uint32_t  done;

    for (done = 0; done + ROWS <= CONTEXT; done += ROWS) {
        rows(r, ROWS, 1, done);

        if (step(s, r, done == 0 ? ROWS : 1) != 0) {
            return -1;
        }
    }

    rows(r, ROWS, 2, 0);

    if (step(s, r, 2) != 0) {
        return -1;
    }

    for (done = 100; done < 104; done++) {
        rows(r, done % 2 + 1, done % 2 + 1, done);

        if (step(s, r, 1) != 0) {
            return -1;
        }
    }

    rows(r, s->index == 0 ? 1 : 0, 1, CONTEXT - 1);

    return step(s, r, s->index == 0 ? 1 : 0);
}


static void *
side_main(void *data)
{
    side_t                *s = data;
    rows_t                 r;
    uint32_t               i, k;
    be_options_t           be;
    model_rank_options_t   opt;

    memset(&be, 0, sizeof(be));
    be.compute = s->compute;
    be.weights = s->weights;
    be.threads = 2;
    be.rank = s->index;
    be.path = s->path;
    be.pin = -1;

    memset(&opt, 0, sizeof(opt));
    opt.max_rows = ROWS;
    opt.max_logits = ROWS;
    opt.kv_blocks = BLOCKS;

    memset(&r, 0, sizeof(r));
    r.batch.id = r.id;
    r.batch.pos = r.pos;
    r.batch.seq = r.seq;
    r.batch.n_seqs = 2;
    r.batch.blocks = r.blocks;
    r.logits = malloc(ROWS * 101 * sizeof(float));

    for (i = 0; i < 2; i++) {
        for (k = 0; k < BLOCKS / 2; k++) {
            r.block[i][k] = (int32_t) (i * BLOCKS / 2 + k);
        }

        r.blocks[i] = r.block[i];
    }

    s->be = be_open("cpu", &be, s->err);
    s->mr = s->be == NULL ? NULL
            : model_rank_open(s->model, s->be, s->ex, s->map, &opt, s->err);
    s->rc = s->mr != NULL ? 0 : -1;

    pthread_barrier_wait(&turn);         /* the counter goes on */
    pthread_barrier_wait(&turn);

    if (s->rc == 0) {
        s->rc = steps(s, &r);
    }

    pthread_barrier_wait(&turn);         /* and off */
    pthread_barrier_wait(&turn);

    if (s->mr != NULL) {
        model_rank_close(s->mr);
    }

    if (s->be != NULL) {
        s->be->close(s->be);
    }

    free(r.logits);

    return NULL;
}


static void
steady(model_t *model, const char *path, be_dtype_t compute,
    be_dtype_t weights, uint32_t ranks)
{
    char            err[ERR_LEN];
    side_t          side[RANKS];
    uint32_t        i;
    ep_map_t       *map;
    ep_exchange_t  *ex[RANKS];

    map = ep_map_open(12, ranks, 0, err);
    assert_non_null(map);
    assert_int_equal(ep_host_open(ex, ranks, ROWS, 3, 12, 60000, err), 0);
    pthread_barrier_init(&turn, NULL, ranks + 1);
    memset(side, 0, sizeof(side));

    for (i = 0; i < ranks; i++) {
        side[i].index = i;
        side[i].model = model;
        side[i].map = map;
        side[i].ex = ex[i];
        side[i].path = path;
        side[i].compute = compute;
        side[i].weights = weights;
        assert_int_equal(pthread_create(&side[i].thread, NULL, side_main,
                                        &side[i]), 0);
    }

    pthread_barrier_wait(&turn);
    atomic_store(&n_alloc, 0);
    atomic_store(&n_lock, 0);
    atomic_store(&counting, 1);
    pthread_barrier_wait(&turn);

    pthread_barrier_wait(&turn);
    atomic_store(&counting, 0);
    pthread_barrier_wait(&turn);

    for (i = 0; i < ranks; i++) {
        pthread_join(side[i].thread, NULL);

        if (side[i].rc != 0) {
            fail_msg("%s", side[i].err);
        }

        ex[i]->close(ex[i]);
    }

    pthread_barrier_destroy(&turn);
    ep_map_close(map);

    if (n_alloc != 0 || n_lock != 0) {
        fail_msg("%s, compute %d, weights %d, %u ranks: %u allocations, %u "
                 "locks", path, (int) compute, (int) weights, ranks, n_alloc,
                 n_lock);
    }
}


static void
test_steady(void **state)
{
    char                err[ERR_LEN];
    model_t            *model;
    uint32_t            i, ranks;
    model_dir_t        *d;
    const char *const  *path;

    static const struct {
        be_dtype_t  compute;
        be_dtype_t  weights;
    } kinds[] = {
        { BE_F32, BE_F32 }, { BE_BF16, BE_F32 }, { BE_BF16, BE_INT8 },
        { BE_BF16, BE_INT4 }, { BE_BF16, BE_F8E4M3 }
    };

    (void) state;

    d = model_dir_open(NULL);
    model_dir_tensors(d);
    model_dir_write(d);

    model = model_open(d->path, err);
    if (model == NULL) {
        fail_msg("%s", err);
    }

    for (path = be_cpu_paths(); *path != NULL; path++) {
        for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {

            /* All kinds on the best path, one on the others. */

            if (path[1] != NULL && i != 1) {
                continue;
            }

            for (ranks = 1; ranks <= RANKS; ranks++) {
                steady(model, *path, kinds[i].compute, kinds[i].weights,
                       ranks);
            }
        }
    }

    model_close(model);
    model_dir_close(d);
}


/* More rows than there is memory for. */

static void
test_refused(void **state)
{
    be_t           *be;
    char            err[ERR_LEN];
    be_mla_t        mla;
    be_gate_t       gate;
    be_largest_t    l;
    be_options_t    opt;
    struct rlimit   limit, none;

    (void) state;

    if (!STEADY_COUNTS) {
        skip();
    }

    memset(&opt, 0, sizeof(opt));
    memset(&mla, 0, sizeof(mla));
    memset(&gate, 0, sizeof(gate));
    memset(&l, 0, sizeof(l));

    opt.compute = BE_F32;
    opt.threads = 3;
    opt.pin = -1;

    mla.hidden = 64;
    mla.heads = 4;
    mla.nope = 16;
    mla.rope = 8;
    mla.v = 16;
    mla.kv_lora = 32;
    gate.experts = 8;
    gate.top_k = 2;

    l.rows = 100000;
    l.pairs = 200000;
    l.inputs = 64;
    l.hidden = 64;
    l.inter = 64;
    l.moe_inter = 64;
    l.mla = &mla;
    l.gate = &gate;

    be = be_open("cpu", &opt, err);
    assert_non_null(be);

    assert_int_equal(getrlimit(RLIMIT_AS, &limit), 0);
    none = limit;
    none.rlim_cur = 1024 * 1024;
    assert_int_equal(setrlimit(RLIMIT_AS, &none), 0);

    err[0] = '\0';
    assert_int_equal(be->reserve(be, &l, err), -1);

    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
    assert_non_null(strstr(err, "no memory for steps of 100000 rows on 3 "
                                "threads: they work in "));

    l.rows = 100;
    assert_int_equal(be->reserve(be, &l, err), 0);

    be->close(be);
}


/* That the counters count. */

static void
test_counters(void **state)
{
    void             *volatile p;
    pthread_mutex_t   mutex = PTHREAD_MUTEX_INITIALIZER;

    (void) state;

    if (!STEADY_COUNTS) {
        skip();
    }

    atomic_store(&n_alloc, 0);
    atomic_store(&n_lock, 0);
    atomic_store(&counting, 1);

    p = malloc(8);
    free(p);
    (void) pthread_mutex_lock(&mutex);

    atomic_store(&counting, 0);
    (void) pthread_mutex_unlock(&mutex);

    assert_int_equal(n_alloc, 2);
    assert_int_equal(n_lock, 1);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_counters),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_steady),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
