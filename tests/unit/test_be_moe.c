/*
 * Router, experts, MLPs and combine of the CPU backend.
 */

#include "test_be_util.h"


typedef struct {
    be_tensor_t   t[3];
    void         *base[3];
    be_mlp_t      mlp;
} moe_expert_t;


static void moe_make(moe_expert_t *e, uint32_t hidden, uint32_t inter);
static void moe_open(be_t *be, moe_expert_t *e);
static void moe_close(be_t *be, moe_expert_t *e);
static void moe_reserve(be_t *be, uint32_t hidden, uint32_t inter);
static void moe_reference(const moe_expert_t *e, be_dtype_t compute,
    const float *x, double *y, double *size);
static void gate_reference(const be_gate_t *g, const float *w,
    const float *bias, const float *x, uint32_t hidden, int32_t *id,
    double *weight, double *margin);


static void
moe_make(moe_expert_t *e, uint32_t hidden, uint32_t inter)
{
    int  i;

    memset(e, 0, sizeof(*e));

    for (i = 0; i < 3; i++) {
        e->t[i].dtype = BE_BF16;
        e->t[i].rows = (i == 2) ? hidden : inter;
        e->t[i].cols = (i == 2) ? inter : hidden;
        e->t[i].data = be_random_bf16((size_t) hidden * inter, 0.2f,
                                      &e->base[i]);
    }
}


static void
moe_open(be_t *be, moe_expert_t *e)
{
    char  err[ERR_LEN];

    e->mlp.w1 = be->weight(be, &e->t[0], NULL, err);
    e->mlp.w3 = be->weight(be, &e->t[1], NULL, err);
    e->mlp.w2 = be->weight(be, &e->t[2], NULL, err);
    assert_non_null(e->mlp.w1);
    assert_non_null(e->mlp.w3);
    assert_non_null(e->mlp.w2);
}


static void
moe_close(be_t *be, moe_expert_t *e)
{
    be->weight_free(be, e->mlp.w1);
    be->weight_free(be, e->mlp.w3);
    be->weight_free(be, e->mlp.w2);
}


/* For steps of 8 rows that choose one of two experts: 16 and 2 * 16. */

static void
moe_reserve(be_t *be, uint32_t hidden, uint32_t inter)
{
    char          err[ERR_LEN];
    be_gate_t     gate;
    be_largest_t  l;

    static const be_mla_t  mla = { 16, 1, 4, 2, 4, 16 };

    memset(&gate, 0, sizeof(gate));
    gate.experts = 2;
    gate.top_k = 1;

    memset(&l, 0, sizeof(l));
    l.rows = 8;
    l.pairs = 8;
    l.inputs = hidden;
    l.hidden = hidden;
    l.inter = inter;
    l.moe_inter = inter;
    l.mla = &mla;
    l.gate = &gate;

    assert_int_equal(be->reserve(be, &l, err), 0);
}


static void
moe_reference(const moe_expert_t *e, be_dtype_t compute, const float *x,
    double *y, double *size)
{
    double          *h, g, u, w;
    uint32_t         i, j, hidden, inter;
    const uint8_t   *w1, *w3, *w2;

    inter = e->t[0].rows;
    hidden = e->t[0].cols;
    w1 = e->t[0].data;
    w3 = e->t[1].data;
    w2 = e->t[2].data;
    h = calloc(inter, sizeof(double));
    assert_non_null(h);

    for (i = 0; i < inter; i++) {
        g = 0;
        u = 0;

        for (j = 0; j < hidden; j++) {
            g += be_round(x[j], compute)
                 * be_load_bf16(w1 + ((size_t) i * hidden + j) * 2);
            u += be_round(x[j], compute)
                 * be_load_bf16(w3 + ((size_t) i * hidden + j) * 2);
        }

        h[i] = be_round(g / (1 + exp(-g)) * u, compute);
    }

    for (i = 0; i < hidden; i++) {
        y[i] = 0;
        size[i] = 0;

        for (j = 0; j < inter; j++) {
            w = be_load_bf16(w2 + ((size_t) i * inter + j) * 2);
            y[i] += h[j] * w;
            size[i] += fabs(h[j] * w);
        }
    }

    free(h);
}


/* Experts with 0, 1, few and many rows; rows scattered over memory. */

static void
test_experts(void **state)
{
    be_t               *be;
    float              *x, *y, *first, *z, **to, **at;
    double             *ref, *size, tol;
    size_t              k;
    uint32_t            e, p, i, threads, offset[6], one[2], hidden, inter;
    be_mlp_t            mlp[5];
    be_pairs_t          pairs;
    be_dtype_t          compute;
    moe_expert_t        ex[5];
    const char *const  *path;

    static const uint32_t  rows[5] = { 1, 0, 3, 60, 2 };
    static const uint32_t  shapes[][2] = {
        { 72, 40 }, { 33, 100 }, { 128, 290 }
    };

    enum { PAIRS = 66 };

    (void) state;

    for (k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
        hidden = shapes[k][0];
        inter = shapes[k][1];
        offset[0] = 0;

        for (e = 0; e < 5; e++) {
            moe_make(&ex[e], hidden, inter);
            offset[e + 1] = offset[e] + rows[e];
        }

        x = be_random_floats(PAIRS * hidden, 1.0f);
        y = be_random_floats(PAIRS * hidden, 0.0f);
        z = be_random_floats(PAIRS * hidden, 0.0f);
        first = be_random_floats(PAIRS * hidden, 0.0f);
        at = calloc(PAIRS, sizeof(float *));
        to = calloc(PAIRS, sizeof(float *));
        ref = calloc(hidden, sizeof(double));
        size = calloc(hidden, sizeof(double));

        for (p = 0; p < PAIRS; p++) {
            at[p] = x + (p * 5 % PAIRS) * hidden;
            to[p] = y + (p * 7 % PAIRS) * hidden;
        }

        for (path = be_test_paths(); *path != NULL; path++) {
            for (compute = BE_F32; compute <= BE_BF16; compute++) {
                for (threads = 1; threads <= 3; threads++) {
                    be = be_test_open(*path, compute, threads);

                    for (e = 0; e < 5; e++) {
                        moe_open(be, &ex[e]);
                        mlp[e] = ex[e].mlp;
                    }

                    pairs.n_experts = 5;
                    pairs.offset = offset;
                    pairs.x = (const float *const *) at;
                    pairs.y = to;
                    memset(y, 0, PAIRS * hidden * sizeof(float));
                    be->experts(be, mlp, &pairs);

                    if (threads == 1) {
                        memcpy(first, y, PAIRS * hidden * sizeof(float));
                    }

                    assert_memory_equal(first, y,
                                        PAIRS * hidden * sizeof(float));

                    /* In turns, where there is memory for few rows. */

                    moe_reserve(be, hidden, inter);
                    memset(y, 0, PAIRS * hidden * sizeof(float));
                    be->experts(be, mlp, &pairs);
                    assert_memory_equal(first, y,
                                        PAIRS * hidden * sizeof(float));

                    for (e = 0; e < 5; e++) {
                        for (p = offset[e]; p < offset[e + 1]; p++) {
                            one[0] = 0;
                            one[1] = 1;
                            pairs.n_experts = 1;
                            pairs.offset = one;
                            pairs.x = (const float *const *) at + p;
                            pairs.y = &z;
                            be->experts(be, mlp + e, &pairs);
                            assert_memory_equal(z, to[p],
                                                hidden * sizeof(float));

                            moe_reference(&ex[e], compute, at[p], ref, size);
                            tol = (compute == BE_F32) ? 1e-5 : 5e-3;

                            for (i = 0; i < hidden; i++) {
                                be_near(z[i], ref[i], size[i], tol,
                                        "experts", *path);
                            }

                            /* The dense MLP is the same arithmetic. */

                            memset(z, 0, hidden * sizeof(float));
                            be->mlp_add(be, mlp + e, at[p], 1, z);

                            for (i = 0; i < hidden; i++) {
                                assert_true(z[i] == to[p][i]);
                            }
                        }
                    }

                    memset(z, 0, PAIRS * hidden * sizeof(float));
                    be->mlp_add(be, mlp, x, PAIRS, z);
                    be->mlp_add(be, mlp, x, PAIRS, z);
                    memset(y, 0, PAIRS * hidden * sizeof(float));
                    be->mlp_add(be, mlp, x + 3 * hidden, 1, y);

                    for (i = 0; i < hidden; i++) {
                        assert_true(z[3 * hidden + i] == 2 * y[i]);
                    }

                    memset(offset, 0, sizeof(offset));
                    pairs.n_experts = 5;
                    pairs.offset = offset;
                    be->experts(be, mlp, &pairs);

                    for (e = 0; e < 5; e++) {
                        offset[e + 1] = offset[e] + rows[e];
                        moe_close(be, &ex[e]);
                    }

                    be->close(be);
                }
            }
        }

        for (e = 0; e < 5; e++) {
            for (i = 0; i < 3; i++) {
                free(ex[e].base[i]);
            }
        }

        free(x);
        free(y);
        free(z);
        free(first);
        free(at);
        free(to);
        free(ref);
        free(size);
    }
}


/* By definition: sort everything; `margin` is how near the choice was. */

static void
gate_reference(const be_gate_t *g, const float *w, const float *bias,
    const float *x, uint32_t hidden, int32_t *id, double *weight,
    double *margin)
{
    double    s[512], c[512], group[16], best, second, sum, cut;
    uint32_t  e, i, k, n, size, chosen[512];

    sum = 0;

    for (e = 0; e < g->experts; e++) {
        s[e] = 0;

        for (i = 0; i < hidden; i++) {
            s[e] += (double) w[(size_t) e * hidden + i] * x[i];
        }
    }

    for (e = 0; e < g->experts; e++) {
        s[e] = (g->scoring == BE_SIGMOID) ? 1 / (1 + exp(-s[e])) : exp(s[e]);
        sum += s[e];
    }

    for (e = 0; e < g->experts; e++) {
        s[e] /= (g->scoring == BE_SOFTMAX) ? sum : 1;
        c[e] = s[e] + (bias != NULL ? bias[e] : 0);
        chosen[e] = 0;
    }

    *margin = 1;

    if (g->method != BE_GREEDY && g->groups > 1) {
        size = g->experts / g->groups;

        for (i = 0; i < g->groups; i++) {
            best = second = -INFINITY;

            for (e = i * size; e < (i + 1) * size; e++) {
                if (c[e] > best) {
                    second = best;
                    best = c[e];

                } else if (c[e] > second) {
                    second = c[e];
                }
            }

            group[i] = best + (g->method == BE_NOAUX_TC ? second : 0);
        }

        for (i = 0; i < g->groups; i++) {
            n = 0;

            for (k = 0; k < g->groups; k++) {
                n += group[k] > group[i];
                cut = fabs(group[k] - group[i]);
                *margin = (k != i && cut < *margin) ? cut : *margin;
            }

            for (e = i * size; n >= g->topk_groups && e < (i + 1) * size;
                 e++)
            {
                c[e] = -INFINITY;
            }
        }
    }

    sum = 0;

    for (k = 0; k <= g->top_k && k < g->experts; k++) {
        n = UINT32_MAX;

        for (e = 0; e < g->experts; e++) {
            if (!chosen[e] && (n == UINT32_MAX || c[e] > c[n])) {
                n = e;
            }
        }

        if (k > 0) {
            cut = c[id[k - 1]] - c[n];
            *margin = (cut < *margin) ? cut : *margin;
        }

        if (k < g->top_k) {
            chosen[n] = 1;
            id[k] = (int32_t) n;
            weight[k] = s[n];
            sum += s[n];
        }
    }

    for (k = 0; k < g->top_k; k++) {
        weight[k] = weight[k] / (g->normalise ? sum + 1e-20 : 1) * g->scale;
    }
}


static void
test_gate(void **state)
{
    be_t               *be;
    float              *w, *x, bias[256], *weight, one_weight[8];
    double              ref[8], margin;
    size_t              n;
    int32_t             id[8 * 40], one[8], want[8];
    uint32_t            r, k, hidden;
    const be_gate_t    *g;
    const char *const  *path;

    static const be_gate_t  gates[] = {
        { 64, 6, 1, 1, BE_SOFTMAX, BE_GREEDY, 0, 1.0f },
        { 64, 6, 4, 2, BE_SIGMOID, BE_NOAUX_TC, 1, 2.5f },
        { 160, 6, 8, 3, BE_SOFTMAX, BE_GROUP_MAX, 0, 16.0f },
        { 256, 8, 8, 4, BE_SIGMOID, BE_NOAUX_TC, 1, 2.5f },
        { 12, 3, 1, 1, BE_SIGMOID, BE_NOAUX_TC, 1, 1.0f }
    };

    (void) state;

    for (n = 0; n < sizeof(gates) / sizeof(gates[0]); n++) {
        g = &gates[n];
        hidden = 50 + 30 * (uint32_t) n;

        w = be_random_floats((size_t) g->experts * hidden, 0.2f);
        x = be_random_floats(40 * hidden, 1.0f);
        weight = be_random_floats(40 * 8, 0.0f);

        for (k = 0; k < g->experts; k++) {
            bias[k] = be_random() * 0.05f;
        }

        for (path = be_test_paths(); *path != NULL; path++) {
            be = be_test_open(*path, BE_BF16, 2);
            be->gate(be, g, w, g->method == BE_NOAUX_TC ? bias : NULL, x, 40,
                     hidden, id, weight);

            for (r = 0; r < 40; r++) {
                be->gate(be, g, w, g->method == BE_NOAUX_TC ? bias : NULL,
                         x + r * hidden, 1, hidden, one, one_weight);

                assert_memory_equal(one, id + r * g->top_k, g->top_k * 4);
                assert_memory_equal(one_weight, weight + r * g->top_k,
                                    g->top_k * 4);

                gate_reference(g, w, g->method == BE_NOAUX_TC ? bias : NULL,
                               x + r * hidden, hidden, want, ref, &margin);

                if (margin < 1e-5) {
                    continue;
                }

                for (k = 0; k < g->top_k; k++) {
                    assert_int_equal(one[k], want[k]);
                    be_near(one_weight[k], ref[k], fabs(ref[k]), 1e-5,
                            "gate", *path);
                }
            }

            be->close(be);
        }

        free(w);
        free(x);
        free(weight);
    }
}


/* Ties go to the lower id; nothing that is not a number breaks it. */

static void
test_gate_odd(void **state)
{
    be_t               *be;
    float               w[16 * 4], x[4], bias[16], weight[4];
    int32_t             id[4];
    uint32_t            i, k;
    be_gate_t           g;
    const char *const  *path;

    static const float  odd[] = { NAN, INFINITY, -INFINITY, 1e38f };

    (void) state;

    memset(&g, 0, sizeof(g));
    g.experts = 16;
    g.top_k = 4;
    g.groups = 4;
    g.topk_groups = 2;
    g.scoring = BE_SIGMOID;
    g.method = BE_NOAUX_TC;
    g.normalise = 1;
    g.scale = 1.0f;

    for (path = be_test_paths(); *path != NULL; path++) {
        be = be_test_open(*path, BE_F32, 1);

        for (i = 0; i < 64; i++) {
            w[i] = 0.0f;
        }

        for (i = 0; i < 16; i++) {
            bias[i] = 0.0f;
        }

        x[0] = x[1] = x[2] = x[3] = 1.0f;

        be->gate(be, &g, w, bias, x, 1, 4, id, weight);

        for (k = 0; k < 4; k++) {
            assert_int_equal(id[k], k);
            assert_true(weight[k] == 0.25f);
        }

        for (i = 0; i < 4 * 4 * 4; i++) {
            x[0] = odd[i % 4];
            bias[3] = odd[i / 4 % 4];
            w[8] = odd[i / 16];
            g.scoring = (i & 1) ? BE_SIGMOID : BE_SOFTMAX;
            g.method = (i & 2) ? BE_NOAUX_TC : BE_GROUP_MAX;

            be->gate(be, &g, w, bias, x, 1, 4, id, weight);

            for (k = 0; k < 4; k++) {
                assert_in_range(id[k], 0, 15);
            }
        }

        be->close(be);
    }
}


static void
test_combine(void **state)
{
    be_t               *be;
    float              *c, *x, *y, *w, *one;
    double              sum, size;
    uint32_t            i, j, k;
    const char *const  *path;

    enum { ROWS = 200, TOP = 6, HIDDEN = 77 };

    (void) state;

    c = be_random_floats(ROWS * TOP * HIDDEN, 1.0f);
    x = be_random_floats(ROWS * HIDDEN, 1.0f);
    w = be_random_floats(ROWS * TOP, 1.0f);
    y = be_random_floats(ROWS * HIDDEN, 0.0f);
    one = be_random_floats(HIDDEN, 0.0f);

    for (path = be_test_paths(); *path != NULL; path++) {
        be = be_test_open(*path, BE_BF16, 2);

        memcpy(y, x, ROWS * HIDDEN * sizeof(float));
        be->combine(be, c, w, ROWS, TOP, HIDDEN, y);

        for (i = 0; i < ROWS; i++) {
            memcpy(one, x + i * HIDDEN, HIDDEN * sizeof(float));
            be->combine(be, c + i * TOP * HIDDEN, w + i * TOP, 1, TOP, HIDDEN,
                        one);
            assert_memory_equal(one, y + i * HIDDEN, HIDDEN * sizeof(float));

            for (j = 0; j < HIDDEN; j++) {
                sum = x[i * HIDDEN + j];
                size = fabs(sum);

                for (k = 0; k < TOP; k++) {
                    sum += (double) w[i * TOP + k]
                           * c[(i * TOP + k) * HIDDEN + j];
                    size += fabs(w[i * TOP + k]
                                 * c[(i * TOP + k) * HIDDEN + j]);
                }

                be_near(one[j], sum, size, 1e-6, "combine", *path);
            }
        }

        be->close(be);
    }

    free(c);
    free(x);
    free(w);
    free(y);
    free(one);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_gate_odd),
        cmocka_unit_test(test_combine)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
