/*
 * Tokens drawn on the device are those that sample_token() draws: any row, any
 * parameters.
 */

#include "test_cuda_util.h"
#include "gpu_main.h"

#include "backend/cuda/cu_sample.h"
#include "sample/sample.h"
#include "sample/sample_weight.h"


#define ROWS  24


static void row_make(float *x, uint8_t *known, uint32_t vocab, uint32_t kind);
static void params_make(sample_params_t *p, uint32_t i);


/* Smooth, spiky, full of ties, with what is no number, unlikely, and flat. */

static void
row_make(float *x, uint8_t *known, uint32_t vocab, uint32_t kind)
{
    uint32_t  i;

    for (i = 0; i < vocab; i++) {
        x[i] = cu_normal() * 3;

        switch (kind) {
        case 1:
            x[i] = (cu_random(50) == 0) ? 20 + cu_normal() : x[i];
            break;

        case 2:
            x[i] = (float) (int) x[i];
            break;

        case 3:
            x[i] = (cu_random(5) == 0) ? NAN
                 : (cu_random(5) == 0) ? -INFINITY
                 : (cu_random(60) == 0) ? INFINITY : x[i];
            break;

        case 4:
            x[i] = (cu_random(3) == 0) ? -0.0f : 0.0f;
            break;

        case 5:
            x[i] *= 1e-3f;
            break;

        default:
            break;
        }

        if (kind == 6) {
            x[i] = NAN;
        }
    }

    if (known != NULL) {
        for (i = 0; i < vocab; i++) {
            known[i] = cu_random(9) != 0;
        }
    }
}


static void
params_make(sample_params_t *p, uint32_t i)
{
    static const float     temperature[] = { 0, 0.3f, 0.7f, 1, 1.5f };
    static const float     top_p[] = { 1, 0.95f, 0.5f, 0.01f, 1 };
    static const float     min_p[] = { 0, 0, 0.05f, 0.5f };
    static const uint32_t  top_k[] = { 0, 0, 1, 7, 50, 4000 };

    memset(p, 0, sizeof(sample_params_t));

    p->temperature = temperature[i == 0 ? 0 : cu_random(5)];
    p->top_p = top_p[cu_random(5)];
    p->min_p = min_p[cu_random(4)];
    p->top_k = top_k[cu_random(6)];
    p->repetition_penalty = 1;
    p->seed = cu_random(UINT32_MAX);
}


static void
check(uint32_t vocab, uint32_t round)
{
    float            *x, *dx;
    double           *block;
    int32_t           want, got[ROWS], *id;
    uint8_t          *known, *dk;
    uint32_t          i, rows, by_host;
    sample_t         *s;
    sample_draw_t     draw[ROWS];
    cu_draw_t        *dd;
    sample_params_t   p[ROWS];

    rows = round == 0 ? 1 : ROWS;
    x = malloc((size_t) rows * vocab * sizeof(float));
    known = malloc(vocab);
    assert_true(x != NULL && known != NULL);
    row_make(x, known, vocab, 0);

    s = sample_open(vocab, known, 64);
    assert_non_null(s);

    for (i = 0; i < rows; i++) {
        row_make(x + (size_t) i * vocab, NULL, vocab, i % 7);
        params_make(&p[i], i);
        assert_int_equal(sample_plain(&p[i], i + 3, &draw[i]), 1);
    }

    assert_int_equal(sizeof(cu_draw_t), sizeof(sample_draw_t));

    dx = cu_put(x, (size_t) rows * vocab * sizeof(float));
    dk = cu_put(known, vocab);
    dd = cu_put(draw, rows * sizeof(cu_draw_t));
    block = cu_put(NULL, rows * ((size_t) vocab + 63) / 64 * 8 + rows * 8);
    id = cu_put(NULL, rows * sizeof(int32_t));

    CU_OK(cu_sample(dx, rows, vocab, dk, dd, block, id, NULL));
    CU_OK(cudaDeviceSynchronize());
    cu_get(got, id, rows * sizeof(int32_t));

    by_host = 0;

    for (i = 0; i < rows; i++) {
        want = sample_token(s, &p[i], x + (size_t) i * vocab, NULL, 0, NULL,
                            0, i + 3);

        /* only very many equally likely rows are left to the host */

        if (got[i] == -2) {
            assert_true(vocab > CU_SAMPLE_SORT
                        && (p[i].top_p < 1 || p[i].top_k > 0));
            by_host++;
            continue;
        }

        if (got[i] != want) {
            fail_msg("vocab %u, row %u (kind %u): %d instead of %d; "
                     "temperature %g top_p %g min_p %g top_k %u", vocab, i,
                     i % 7, got[i], want, p[i].temperature, p[i].top_p,
                     p[i].min_p, p[i].top_k);
        }
    }

    assert_true(by_host < rows / 2 || rows == 1);

    CU_OK(cudaFree(dx));
    CU_OK(cudaFree(dk));
    CU_OK(cudaFree(dd));
    CU_OK(cudaFree(block));
    CU_OK(cudaFree(id));
    sample_close(s);
    free(x);
    free(known);
}


static void
test_draws(void **state)
{
    uint32_t  i;

    /* read four at a time or one; once or more often by a thread */

    static const uint32_t  vocab[] = {
        1, 5, 64, 101, 907, 2049, 2052, 5003, 8196, 20000, 66003, 140000
    };

    (void) state;

    for (i = 0; i < sizeof(vocab) / sizeof(vocab[0]); i++) {
        check(vocab[i], i);
        check(vocab[i], i + 1);
    }
}


/* The weights of the first n rows, added up block by block. */

static double
draw_sum(const double *w, uint32_t n)
{
    double    sum, all;
    uint32_t  i, b;

    for (b = 0, all = 0; b + SAMPLE_BLOCK <= n; b += SAMPLE_BLOCK) {
        for (i = b, sum = 0; i < b + SAMPLE_BLOCK; i++) {
            sum += w[i];
        }

        all += sum;
    }

    for (i = b; i < n; i++) {
        all += w[i];
    }

    return all;
}


/* What sample_token() draws from all rows, of their weights. */

static int32_t
draw_any(const double *w, uint32_t vocab, double u)
{
    double    sum, all;
    int32_t   id;
    uint32_t  i, b, last;

    for (b = 0, all = 0, last = 0; b < vocab; b += SAMPLE_BLOCK) {
        for (i = b, sum = 0; i < b + SAMPLE_BLOCK && i < vocab; i++) {
            sum += w[i];
        }

        all += sum;
        last = sum > 0 ? b : last;
    }

    u *= all;

    for (b = 0, all = 0; b <= last; b += SAMPLE_BLOCK) {
        for (i = b, sum = 0; i < b + SAMPLE_BLOCK && i < vocab; i++) {
            sum += w[i];
        }

        if (b == last || u < all + sum) {
            break;
        }

        all += sum;
    }

    for (i = b, id = -1; i < b + SAMPLE_BLOCK && i < vocab; i++) {
        if (w[i] > 0) {
            id = (int32_t) i;
            all += w[i];

            if (u < all) {
                break;
            }
        }
    }

    return id;
}


/*
 * Random numbers at the edges of rows, where a sum in another order, of which
 * the last bit differs, draws a neighbour.
 */

static void
edges(uint32_t vocab)
{
    float      *x, *dx;
    double     *w, sum, total, *block;
    int32_t     got[ROWS], *id;
    uint8_t    *known, *dk;
    uint32_t    i, k, at;
    cu_draw_t   draw[ROWS], *dd;

    x = malloc((size_t) ROWS * vocab * sizeof(float));
    w = malloc(vocab * sizeof(double));
    known = malloc(vocab);
    assert_true(x != NULL && w != NULL && known != NULL);
    row_make(x, known, vocab, 0);
    x[0] = 11;
    known[0] = 1;

    for (i = 0; i < vocab; i++) {
        w[i] = 11.0 - (double) x[i];
        w[i] = known[i] && w[i] < SAMPLE_FAR ? sample_exp(w[i]) : 0;
    }

    total = draw_sum(w, vocab);
    memset(draw, 0, sizeof(draw));

    for (i = 0; i < ROWS; i++) {
        memmove(x + (size_t) i * vocab, x, vocab * sizeof(float));
        draw[i].temperature = 1;
        draw[i].top_p = 1;
    }

    dx = cu_put(x, (size_t) ROWS * vocab * sizeof(float));
    dk = cu_put(known, vocab);
    dd = cu_put(NULL, sizeof(draw));
    block = cu_put(NULL, ROWS * (size_t) (vocab / 64 + 1) * sizeof(double));
    id = cu_put(NULL, sizeof(got));

    for (k = 0; k < 20; k++) {
        for (i = 0; i < ROWS; i += 3) {
            at = (k == 0 && i == 0) ? vocab : cu_random(vocab);
            sum = draw_sum(w, at);
            draw[i].u = sum / total;
            draw[i].u = draw[i].u < 1 ? draw[i].u : nextafter(1, 0);
            draw[i + 1].u = nextafter(draw[i].u, 0);
            draw[i + 2].u = draw[i].u < nextafter(1, 0)
                            ? nextafter(draw[i].u, 1) : draw[i].u;
        }

        CU_OK(cudaMemcpy(dd, draw, sizeof(draw), cudaMemcpyHostToDevice));
        CU_OK(cu_sample(dx, ROWS, vocab, dk, dd, block, id, NULL));
        CU_OK(cudaDeviceSynchronize());
        cu_get(got, id, sizeof(got));

        for (i = 0; i < ROWS; i++) {
            assert_int_equal(got[i], draw_any(w, vocab, draw[i].u));
        }
    }

    CU_OK(cudaFree(dx));
    CU_OK(cudaFree(dk));
    CU_OK(cudaFree(dd));
    CU_OK(cudaFree(block));
    CU_OK(cudaFree(id));
    free(x);
    free(w);
    free(known);
}


static void
test_edges(void **state)
{
    (void) state;

    edges(64);
    edges(1000);
    edges(4099);
    edges(20000);
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_draws),
        cmocka_unit_test(test_edges)
    };

    return GPU_MAIN(argc, argv, tests);
}
