/*
 * The arrays of a step on the device: what it is padded to, and its halves.
 */

#include "test_cuda_util.h"

#include <cublasLt.h>

#include "backend/cuda/be_cuda.h"


#define ROWS    512
#define BLOCKS  (ROWS / BE_BLOCK)

typedef struct {
    uint32_t    rows;
    uint32_t    max_rows;
    int         fp8;
    int         blas;
    int         fixed;
    int         split;

    uint32_t    padded;
} size_case_t;


static int32_t   id[ROWS];
static uint32_t  pos[ROWS], seq[ROWS];


static void
step_make(be_step_t *s, const size_case_t *c)
{
    uint32_t               i;
    static int32_t         table[BLOCKS];
    static const int32_t  *tables[1] = { table };
    static const uint32_t  last[1] = { 0 };

    for (i = 0; i < ROWS; i++) {
        id[i] = (int32_t) (7 * i + 1);
        pos[i] = i;
    }

    for (i = 0; i < BLOCKS; i++) {
        table[i] = (int32_t) i;
    }

    memset(s, 0, sizeof(be_step_t));
    s->all.n_rows = c->rows;
    s->all.id = id;
    s->all.pos = pos;
    s->all.seq = seq;
    s->all.n_seqs = 1;
    s->all.blocks = tables;
    s->last = s->all;
    s->last.n_rows = 1;
    s->some = 1;
    s->row = last;
    s->max_rows = c->max_rows;
    s->max_last = 1;
    s->micro = c->split ? 1 : 0;
    s->most = c->split ? c->max_rows : 0;
}


/* The rows of a batch, of which the first one is row `first` of the step. */

static void
batch_check(const be_batch_t *b, uint32_t first, uint32_t rows)
{
    uint32_t             i, at[ROWS];
    int32_t              was[ROWS];
    const cuda_batch_t  *d;

    d = b->device;
    assert_int_equal(d->b.rows, b->n_rows);
    CU_OK(cudaMemcpy(was, d->b.id, b->n_rows * sizeof(int32_t),
                     cudaMemcpyDeviceToHost));
    CU_OK(cudaMemcpy(at, d->b.pos, b->n_rows * sizeof(uint32_t),
                     cudaMemcpyDeviceToHost));

    for (i = 0; i < b->n_rows; i++) {
        if (first + i < rows) {
            assert_int_equal(was[i], id[first + i]);
            assert_int_equal(at[i], pos[first + i]);

        } else {
            assert_int_equal(at[i], CU_NO_ROW);
        }
    }
}


static void
test_sizes(void **state)
{
    char           err[ERR_LEN];
    be_t          *be;
    uint32_t       i;
    be_step_t      s;
    be_cuda_t     *cuda;
    be_options_t   opt;

    static const size_case_t  cases[] = {
        { 301, 512, 1, 1, 0, 0, 304 },
        { 304, 512, 1, 1, 0, 0, 304 },
        { 125, 512, 1, 1, 0, 0, 125 },       /* few */
        { 301, 303, 1, 1, 0, 0, 301 },       /* no room */
        { 301, 512, 0, 1, 0, 0, 301 },       /* BF16 */
        { 301, 512, 1, 0, 0, 0, 301 },       /* no cuBLASLt */
        { 301, 512, 1, 1, 1, 0, 301 },       /* fixed */
        { 298, 512, 1, 1, 0, 1, 304 },       /* halves of a multiple of four */
        { 301, 303, 1, 1, 0, 1, 301 },
        { 301, 512, 0, 1, 0, 1, 301 },
        { 1, 512, 0, 1, 0, 1, 1 }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        emu_blas_missing(!cases[i].blas);

        memset(&opt, 0, sizeof(opt));
        opt.compute = BE_BF16;
        opt.fixed = cases[i].fixed;

        be = be_cuda_open(&opt, err);
        assert_non_null(be);

        cuda = (be_cuda_t *) be;
        assert_int_equal(cuda->blas != NULL, cases[i].blas);
        cuda->fp8 = cases[i].fp8;

        step_make(&s, &cases[i]);
        assert_int_equal(be->begin(be, &s, err), 0);
        assert_int_equal(be->sync(be, err), 0);
        assert_int_equal(s.all.n_rows, cases[i].padded);
        assert_int_equal(s.split, cases[i].split);
        batch_check(&s.all, 0, cases[i].rows);

        if (s.split) {
            assert_int_equal(s.part[0].n_rows, (cases[i].padded + 1) / 2);
            assert_int_equal(s.part[1].n_rows, cases[i].padded / 2);
            batch_check(&s.part[0], 0, cases[i].rows);
            batch_check(&s.part[1], s.part[0].n_rows, cases[i].rows);
        }

        assert_int_equal(be->end(be, err), 0);
        be->close(be);
    }

    emu_blas_missing(0);
}


/*
 * Tables of all rows, of halves and of the last rows lie apart, also in a step
 * that is larger than the one that its memory was taken for.
 */

static void
test_rope(void **state)
{
    char              err[ERR_LEN];
    be_t             *be;
    float             freq[32], *room;
    uint32_t          i, k;
    be_step_t         s;
    be_cuda_t        *cuda;
    be_rope_t         rope;
    const float      *at[CUDA_BATCHES];
    be_options_t      opt;

    static const uint32_t     sizes[] = { 112, 128, 131, 160, 201 };
    static const size_case_t  way = { 0, ROWS, 0, 1, 0, 1, 0 };

    (void) state;

    memset(freq, 0, sizeof(freq));
    memset(&rope, 0, sizeof(rope));
    rope.dim = 64;
    rope.freq = freq;
    rope.mscale = 1;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_BF16;
    be = be_cuda_open(&opt, err);
    assert_non_null(be);
    cuda = (be_cuda_t *) be;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        step_make(&s, &way);
        s.all.n_rows = sizes[i];
        s.last.n_rows = sizes[i];
        s.row = pos;
        s.max_last = ROWS;
        assert_int_equal(be->begin(be, &s, err), 0);

        for (k = 0; k < CUDA_BATCHES; k++) {
            at[k] = be_cuda_rope(cuda, &cuda->batch[k], &rope);
            assert_non_null(at[k]);
        }

        room = cuda->scratch[CUDA_ROPE];
        assert_ptr_equal(at[CUDA_PART], room);
        assert_true(at[CUDA_PART] + s.part[0].n_rows * 64
                    <= at[CUDA_PART + 1]);
        assert_true(at[CUDA_PART + 1] + s.part[1].n_rows * 64
                    <= at[CUDA_LAST]);
        assert_true(at[CUDA_ALL] + sizes[i] * 64 <= at[CUDA_LAST]);
        assert_true(at[CUDA_LAST] + sizes[i] * 64
                    <= room + cuda->scratch_size[CUDA_ROPE] / sizeof(float));

        assert_int_equal(be->sync(be, err), 0);
        assert_int_equal(be->end(be, err), 0);
    }

    be->close(be);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_rope)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
