/*
 * Operations of the device backend against the CPU backend in float32, on odd
 * shapes, with outputs poisoned before: the error is at most what rounding the
 * inputs of products to BF16, or FP8 with a scale for 128, explains.  All of it
 * with cuBLASLt, where it is (the emulator has a stand-in), and without.
 */

#include "unit/test_be_util.h"
#include "gpu_main.h"

#include "backend/be_quant.h"


#define BF16_TOL  0.01
#define FP8_TOL   0.05


/* The same operation on both backends. */

typedef struct {
    be_t     *cpu;
    be_t     *cuda;
    char      err[ERR_LEN];
} both_t;


static both_t  both;
static int     of_expert;            /* matrices are */
static int     own;                  /* without cuBLASLt */
static int     fp8_inputs;           /* inputs in FP8, matrices not */


static int
setup(void **state)
{
    be_options_t  opt;

    (void) state;

    memset(&opt, 0, sizeof(opt));
    opt.compute = BE_F32;
    opt.threads = 1;
    opt.pin = -1;
    both.cpu = be_cpu_open(&opt, both.err);

    opt.compute = BE_BF16;
    opt.path = own ? "sm90-own" : NULL;
    both.cuda = be_cuda_open(&opt, both.err);

    if (both.cpu == NULL || both.cuda == NULL) {
        fprintf(stderr, "%s\n", both.err);
        return -1;
    }

    return 0;
}


static int
teardown(void **state)
{
    (void) state;

    both.cuda->close(both.cuda);
    both.cpu->close(both.cpu);

    return 0;
}


/* Device memory with that content, or poison. */

static void *
put(const void *x, size_t size)
{
    void  *p, *poison;

    p = both.cuda->alloc(both.cuda, size);
    assert_non_null(p);

    if (x == NULL) {
        poison = malloc(size + 1);
        assert_non_null(poison);
        memset(poison, 0xff, size);
        both.cuda->upload(both.cuda, p, poison, size);
        free(poison);

    } else {
        both.cuda->upload(both.cuda, p, x, size);
    }

    return p;
}


static void *
get(void *p, size_t size)
{
    void  *x;

    x = malloc(size + 1);
    assert_non_null(x);
    both.cuda->download(both.cuda, x, p, size);

    if (both.cuda->sync(both.cuda, both.err) != 0) {
        fail_msg("%s", both.err);
    }

    return x;
}


/* The error of all of x, relative to the size of `want`. */

static void
near(const float *x, const float *want, size_t n, double tol,
    const char *what)
{
    double  error, size;
    size_t  i;

    for (error = 0, size = 0, i = 0; i < n; i++) {
        if (!isfinite(x[i])) {
            fail_msg("%s: element %zu is %g", what, i, x[i]);
        }

        error += ((double) x[i] - want[i]) * ((double) x[i] - want[i]);
        size += (double) want[i] * want[i];
    }

    if (!(sqrt(error) <= tol * sqrt(size) + 1e-30)) {
        fail_msg("%s: error %g of %g", what, sqrt(error), sqrt(size));
    }
}


static void
weights(const be_tensor_t *t, be_weight_t **cpu, be_weight_t **cuda)
{
    *cpu = both.cpu->weight(both.cpu, t, NULL, both.err);
    *cuda = both.cuda->weight(both.cuda, t, NULL, both.err);

    if (*cpu == NULL || *cuda == NULL) {
        fail_msg("%s", both.err);
    }
}


static void
weights_free(be_weight_t *cpu, be_weight_t *cuda)
{
    both.cpu->weight_free(both.cpu, cpu);
    both.cuda->weight_free(both.cuda, cuda);
}


/* A random matrix of that type; `base` and `scale` are to be freed. */

static void
matrix(be_tensor_t *t, be_dtype_t dtype, uint32_t rows, uint32_t cols,
    void **base, float **scale)
{
    size_t    i, n;
    uint8_t  *p;

    memset(t, 0, sizeof(be_tensor_t));
    n = (size_t) rows * cols;
    t->rows = rows;
    t->cols = cols;
    t->dtype = dtype;
    t->expert = of_expert;
    *scale = NULL;

    if (dtype == BE_F32) {
        *base = be_random_floats(n, 0.1f);
        t->data = *base;

    } else if (dtype == BE_BF16) {
        t->data = be_random_bf16(n, 0.1f, base);

    } else {
        p = malloc(n);
        assert_non_null(p);

        for (i = 0; i < n; i++) {
            p[i] = be_to_e4m3(be_random() * 100);
        }

        t->scale_cols = (cols + 127) / 128;
        n = (size_t) ((rows + 127) / 128) * t->scale_cols;
        *scale = malloc(n * sizeof(float));
        assert_non_null(*scale);

        for (i = 0; i < n; i++) {
            (*scale)[i] = 1e-3f * (1 + (float) (i % 5));
        }

        *base = p;
        t->data = p;
        t->scale = *scale;
    }
}


static void
test_rows(void **state)
{
    void         *d[4];
    float        *x, *w, *want, *got;
    size_t        n;
    uint32_t      i, k, rows, dim;

    static const uint32_t  dims[] = { 1, 31, 128, 200, 1030 };

    (void) state;

    for (i = 0; i < sizeof(dims) / sizeof(dims[0]); i++) {
        dim = dims[i];
        rows = 1 + i * 3;
        n = (size_t) rows * dim;

        x = be_random_floats(n, 2);
        w = be_random_floats(dim, 1);
        want = malloc(2 * n * sizeof(float));
        assert_non_null(want);

        d[0] = put(x, n * sizeof(float));
        d[1] = put(w, dim * sizeof(float));
        d[2] = put(NULL, 2 * n * sizeof(float));
        d[3] = put(NULL, n * sizeof(float));

        both.cpu->norm(both.cpu, w, 1e-6f, x, rows, dim, want);
        both.cuda->norm(both.cuda, d[1], 1e-6f, d[0], rows, dim, d[3]);
        got = get(d[3], n * sizeof(float));
        near(got, want, n, 1e-6, "norm");
        free(got);

        both.cpu->join(both.cpu, x, x, rows, dim, want);
        both.cuda->join(both.cuda, d[0], d[0], rows, dim, d[2]);
        got = get(d[2], 2 * n * sizeof(float));
        assert_memory_equal(got, want, 2 * n * sizeof(float));
        free(got);

        for (k = 0; k < 4; k++) {
            both.cuda->free(both.cuda, d[k]);
        }

        free(x);
        free(w);
        free(want);
    }
}


static void
linear(be_dtype_t dtype, uint32_t rows, uint32_t out, uint32_t in)
{
    char          what[80];
    void         *base, *dx, *dy;
    float        *x, *y, *scale, *want, *got;
    double        tol;
    uint32_t      i;
    be_tensor_t   t;
    be_weight_t  *cpu, *cuda;

    snprintf(what, sizeof(what), "linear, type %d, %u x %u x %u",
             (int) dtype, rows, out, in);

    matrix(&t, dtype, out, in, &base, &scale);
    weights(&t, &cpu, &cuda);
    tol = (dtype == BE_F8E4M3) ? FP8_TOL : BF16_TOL;

    x = be_random_floats((size_t) rows * in, 1);
    y = be_random_floats((size_t) rows * out, 1);
    want = malloc((size_t) rows * out * sizeof(float));
    assert_non_null(want);

    dx = put(x, (size_t) rows * in * sizeof(float));
    dy = put(NULL, (size_t) rows * out * sizeof(float));

    both.cpu->linear(both.cpu, cpu, x, rows, want);
    both.cuda->linear(both.cuda, cuda, dx, rows, dy);
    got = get(dy, (size_t) rows * out * sizeof(float));
    near(got, want, (size_t) rows * out, tol, what);

    /* added: the same product on top of what was there */

    both.cuda->upload(both.cuda, dy, y, (size_t) rows * out * sizeof(float));
    both.cuda->linear_add(both.cuda, cuda, dx, rows, dy);
    free(got);
    got = get(dy, (size_t) rows * out * sizeof(float));

    for (i = 0; i < rows * out; i++) {
        want[i] += y[i];
    }

    near(got, want, (size_t) rows * out, tol, what);

    both.cuda->free(both.cuda, dx);
    both.cuda->free(both.cuda, dy);
    weights_free(cpu, cuda);
    free(base);
    free(scale);
    free(got);
    free(want);
    free(x);
    free(y);
}


static void
test_linear(void **state)
{
    uint32_t  type;

    static const be_dtype_t  types[] = { BE_BF16, BE_F32, BE_F8E4M3 };

    (void) state;

    for (type = 0; type < 3; type++) {
        linear(types[type], 1, 1, 1);
        linear(types[type], 1, 130, 65);
        linear(types[type], 3, 57, 200);
        linear(types[type], 17, 128, 256);
        linear(types[type], 33, 260, 384);
        linear(types[type], 132, 144, 512);
    }
}


static void
mlp(be_dtype_t dtype, uint32_t rows, uint32_t hidden, uint32_t inter)
{
    void         *base[3], *dx, *dy;
    float        *x, *y, *scale[3], *got;
    uint32_t      i;
    be_mlp_t      cpu, cuda;
    be_tensor_t   t;

    matrix(&t, dtype, inter, hidden, &base[0], &scale[0]);
    weights(&t, &cpu.w1, &cuda.w1);
    matrix(&t, dtype, inter, hidden, &base[1], &scale[1]);
    weights(&t, &cpu.w3, &cuda.w3);
    matrix(&t, dtype, hidden, inter, &base[2], &scale[2]);
    weights(&t, &cpu.w2, &cuda.w2);

    x = be_random_floats((size_t) rows * hidden, 1);
    y = calloc((size_t) rows * hidden, sizeof(float));
    assert_non_null(y);

    dx = put(x, (size_t) rows * hidden * sizeof(float));
    dy = put(y, (size_t) rows * hidden * sizeof(float));

    both.cpu->mlp_add(both.cpu, &cpu, x, rows, y);
    both.cuda->mlp_add(both.cuda, &cuda, dx, rows, dy);
    got = get(dy, (size_t) rows * hidden * sizeof(float));
    near(got, y, (size_t) rows * hidden,
         dtype == BE_F8E4M3 ? 2 * FP8_TOL : 2 * BF16_TOL, "mlp");

    both.cuda->free(both.cuda, dx);
    both.cuda->free(both.cuda, dy);
    weights_free(cpu.w1, cuda.w1);
    weights_free(cpu.w3, cuda.w3);
    weights_free(cpu.w2, cuda.w2);

    for (i = 0; i < 3; i++) {
        free(base[i]);
        free(scale[i]);
    }

    free(got);
    free(x);
    free(y);
}


static void
test_mlp(void **state)
{
    (void) state;

    mlp(BE_BF16, 5, 70, 130);
    mlp(BE_BF16, 1, 128, 64);
    mlp(BE_F8E4M3, 9, 140, 257);
}


static void
gate(const be_gate_t *g, uint32_t rows, uint32_t hidden, int biased,
    int ties)
{
    void      *dw, *db, *dx, *did, *dweight;
    float     *w, *b, *x, *weight, *got_weight;
    size_t     n;
    int32_t   *id, *got_id;
    uint32_t   i, e;

    w = be_random_floats((size_t) g->experts * hidden, 0.3f);
    b = be_random_floats(g->experts, 0.1f);
    x = be_random_floats((size_t) rows * hidden, 1);
    n = (size_t) rows * g->top_k;
    id = malloc(n * sizeof(int32_t));
    weight = malloc(n * sizeof(float));
    assert_true(id != NULL && weight != NULL);

    /* pairs of equal experts */

    for (e = 1; ties && e < g->experts; e += 2) {
        memcpy(w + (size_t) e * hidden, w + (size_t) (e - 1) * hidden,
               hidden * sizeof(float));
        b[e] = b[e - 1];
    }

    dw = put(w, (size_t) g->experts * hidden * sizeof(float));
    db = put(b, g->experts * sizeof(float));
    dx = put(x, (size_t) rows * hidden * sizeof(float));
    did = put(NULL, n * sizeof(int32_t));
    dweight = put(NULL, n * sizeof(float));

    both.cpu->gate(both.cpu, g, w, biased ? b : NULL, x, rows, hidden, id,
                   weight);
    both.cuda->gate(both.cuda, g, dw, biased ? db : NULL, dx, rows, hidden,
                    did, dweight);

    got_id = get(did, n * sizeof(int32_t));
    got_weight = get(dweight, n * sizeof(float));

    for (i = 0; i < n; i++) {
        if (got_id[i] != id[i]) {
            fail_msg("gate of %u experts: row %u takes %d for %d", g->experts,
                     i / g->top_k, got_id[i], id[i]);
        }
    }

    near(got_weight, weight, n, 1e-5, "gate");

    both.cuda->free(both.cuda, dw);
    both.cuda->free(both.cuda, db);
    both.cuda->free(both.cuda, dx);
    both.cuda->free(both.cuda, did);
    both.cuda->free(both.cuda, dweight);
    free(w);
    free(b);
    free(x);
    free(id);
    free(weight);
    free(got_id);
    free(got_weight);
}


static void
test_gate(void **state)
{
    static const be_gate_t  v3 = { 256, 8, 8, 4, BE_SIGMOID, BE_NOAUX_TC, 1,
                                   2.5f };
    static const be_gate_t  lite = { 64, 6, 1, 1, BE_SOFTMAX, BE_GREEDY, 0,
                                     1 };
    static const be_gate_t  v2 = { 160, 6, 8, 3, BE_SOFTMAX, BE_GROUP_MAX, 0,
                                   16 };
    static const be_gate_t  k2 = { 384, 8, 1, 1, BE_SIGMOID, BE_NOAUX_TC, 1,
                                   2.827f };
    static const be_gate_t  odd = { 3, 3, 1, 1, BE_SIGMOID, BE_GREEDY, 1, 1 };

    (void) state;

    gate(&v3, 5, 720, 1, 0);
    gate(&v3, 33, 97, 1, 1);
    gate(&lite, 9, 130, 0, 0);
    gate(&lite, 1, 64, 0, 1);
    gate(&v2, 7, 200, 0, 0);
    gate(&k2, 4, 300, 1, 1);
    gate(&odd, 2, 5, 0, 0);

    /* so many that a block does all of K */

    gate(&v3, 530, 724, 1, 1);
    gate(&lite, 600, 97, 0, 0);
}


/*
 * Experts on pairs that the device sorts, some of them without a row; then
 * what they gave, combined.
 */

static void
experts(be_dtype_t dtype, uint32_t rows, uint32_t n, uint32_t top_k,
    uint32_t hidden, uint32_t inter)
{
    void           *base[3 * 16], *dx, *did, *dc, *dweight, *dsum, *dload;
    float          *x, *c, *got, *weight, *scale[3 * 16], *sum;
    size_t          pairs, i;
    int32_t        *id;
    uint32_t        e, k, *offset, *load, *got_load;
    be_mlp_t        cpu[16], cuda[16];
    be_pairs_t      p;
    be_route_t      r;
    be_tensor_t     t;
    const float   **px;
    float         **py;

    for (e = 0; e < n; e++) {
        matrix(&t, dtype, inter, hidden, &base[3 * e], &scale[3 * e]);
        weights(&t, &cpu[e].w1, &cuda[e].w1);
        matrix(&t, dtype, inter, hidden, &base[3 * e + 1], &scale[3 * e + 1]);
        weights(&t, &cpu[e].w3, &cuda[e].w3);
        matrix(&t, dtype, hidden, inter, &base[3 * e + 2], &scale[3 * e + 2]);
        weights(&t, &cpu[e].w2, &cuda[e].w2);
    }

    pairs = (size_t) rows * top_k;
    x = be_random_floats((size_t) rows * hidden, 1);
    sum = be_random_floats((size_t) rows * hidden, 1);
    weight = be_random_floats(pairs, 1);
    c = calloc(pairs * hidden, sizeof(float));
    id = malloc(pairs * sizeof(int32_t));
    px = malloc(pairs * sizeof(float *));
    py = malloc(pairs * sizeof(float *));
    offset = calloc(n + 1, sizeof(uint32_t));
    load = calloc(n, sizeof(uint32_t));
    assert_true(c && id && px && py && offset && load);

    /* every third expert is left alone */

    for (i = 0; i < pairs; i++) {
        e = (uint32_t) (i % top_k * 3 + i / top_k * 2) % n;
        id[i] = (int32_t) (e % 3 == 2 ? e - 1 : e);
    }

    for (e = 0, k = 0; e < n; e++) {
        offset[e] = k;

        for (i = 0; i < pairs; i++) {
            if (id[i] == (int32_t) e) {
                px[k] = x + i / top_k * hidden;
                py[k++] = c + i * hidden;
                load[e]++;
            }
        }
    }

    offset[n] = k;

    memset(&p, 0, sizeof(p));
    p.n_experts = n;
    p.offset = offset;
    p.x = px;
    p.y = py;
    both.cpu->experts(both.cpu, cpu, &p);
    both.cpu->combine(both.cpu, c, weight, rows, top_k, hidden, sum);

    dx = put(x, (size_t) rows * hidden * sizeof(float));
    did = put(id, pairs * sizeof(int32_t));
    dc = put(NULL, pairs * hidden * sizeof(float));
    dweight = put(weight, pairs * sizeof(float));
    dload = both.cuda->alloc(both.cuda, n * sizeof(uint32_t));

    memset(&r, 0, sizeof(r));
    r.rows = rows;
    r.hidden = hidden;
    r.top_k = top_k;
    r.experts = n;
    r.id = did;
    r.x = dx;
    r.contrib = dc;
    r.load = dload;

    both.cuda->route(both.cuda, &r, &p);
    assert_int_equal(p.max, pairs);
    both.cuda->experts(both.cuda, cuda, &p);

    got = get(dc, pairs * hidden * sizeof(float));
    near(got, c, pairs * hidden,
         dtype == BE_F8E4M3 || fp8_inputs ? 2 * FP8_TOL : 2 * BF16_TOL,
         "experts");

    /* combined: of the same contributions exactly what the CPU has with fma */

    free(sum);
    sum = be_random_floats((size_t) rows * hidden, 1);
    dsum = put(sum, (size_t) rows * hidden * sizeof(float));
    both.cpu->combine(both.cpu, got, weight, rows, top_k, hidden, sum);
    both.cuda->combine(both.cuda, dc, dweight, rows, top_k, hidden, dsum);
    free(got);
    got = get(dsum, (size_t) rows * hidden * sizeof(float));
    near(got, sum, (size_t) rows * hidden, 1e-6, "combine");
    free(got);

    got_load = get(dload, n * sizeof(uint32_t));
    assert_memory_equal(got_load, load, n * sizeof(uint32_t));
    free(got_load);

    both.cuda->forget(both.cuda);

    for (e = 0; e < n; e++) {
        weights_free(cpu[e].w1, cuda[e].w1);
        weights_free(cpu[e].w3, cuda[e].w3);
        weights_free(cpu[e].w2, cuda[e].w2);
    }

    for (e = 0; e < 3 * n; e++) {
        free(base[e]);
        free(scale[e]);
    }

    both.cuda->free(both.cuda, dx);
    both.cuda->free(both.cuda, did);
    both.cuda->free(both.cuda, dc);
    both.cuda->free(both.cuda, dweight);
    both.cuda->free(both.cuda, dsum);
    both.cuda->free(both.cuda, dload);
    free(x);
    free(sum);
    free(weight);
    free(c);
    free(id);
    free(px);
    free(py);
    free(offset);
    free(load);
}


static void
begin_nothing(void)
{
    be_step_t  step;

    memset(&step, 0, sizeof(step));
    assert_int_equal(both.cuda->begin(both.cuda, &step, both.err), 0);
    assert_int_equal(both.cuda->end(both.cuda, both.err), 0);
}


/*
 * The same codes and scales as the CPU's: only BF16's rounding is between, or
 * that of inputs to FP8.
 */

static void
int4(be_dtype_t inputs)
{
    both_t        old;
    be_options_t  opt;

    old = both;
    fp8_inputs = (inputs == BE_F8E4M3);
    memset(&opt, 0, sizeof(opt));
    opt.weights = BE_INT4;
    opt.threads = 1;
    opt.pin = -1;
    both.cpu = be_cpu_open(&opt, both.err);
    opt.compute = BE_BF16;
    opt.path = own ? "sm90-own" : NULL;
    opt.expert_inputs = inputs;
    both.cuda = be_cuda_open(&opt, both.err);
    assert_true(both.cpu != NULL && both.cuda != NULL);

    of_expert = 1;
    experts(BE_BF16, 7, 6, 2, 70, 40);
    begin_nothing();
    experts(BE_F32, 1, 6, 2, 160, 257);
    begin_nothing();
    of_expert = 0;

    (void) teardown(NULL);
    both = old;
    fp8_inputs = 0;
}


static void
test_int4(void **state)
{
    (void) state;

    int4(BE_F32);
    int4(BE_F8E4M3);
}


static void
test_experts(void **state)
{
    (void) state;

    experts(BE_BF16, 1, 6, 2, 70, 40);
    begin_nothing();
    experts(BE_BF16, 21, 12, 3, 65, 130);
    begin_nothing();
    experts(BE_F8E4M3, 13, 9, 2, 256, 140);
    begin_nothing();
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_int4)
    };

    int  failed;

    if (!gpu_choose(argc, argv, tests, sizeof(tests) / sizeof(tests[0]))) {
        return 0;
    }

    setenv("CU_EMU_BLAS", "1", 0);
    failed = cmocka_run_group_tests(tests, setup, teardown);
    own = 1;

    return failed + cmocka_run_group_tests(tests, setup, teardown);
}
