/*
 * Pairs in the order of the slots or experts that they are for, beside loops
 * on the host: lists that end with a chunk of 128 pairs, one before and one
 * behind; ranks without rows in front of others, between and behind; few pairs
 * and more than a small block takes; rows that are padding.
 */

#include "test_cuda_util.h"
#include "gpu_main.h"

#include "backend/cuda/cu_exchange.h"
#include "backend/cuda/cu_gate.h"


#define HIDDEN  24
#define UNUSED  0xab                 /* each byte of what is not written */

typedef struct {
    uint32_t   ranks;
    uint32_t   rank;
    uint32_t   max_rows;
    uint32_t   most;
    uint32_t   top_k;
    uint32_t   slots;
    uint32_t   rows[CU_PEERS];
} case_t;

/* What there is to compare, [pairs] each but offset. */

typedef struct {
    uint32_t   pairs;
    uint32_t  *offset;
    uint32_t  *row;
    void     **y;
    void     **to;
} sorted_t;


static void
sorted_make(sorted_t *s, uint32_t pairs, uint32_t slots)
{
    s->pairs = pairs;
    s->offset = malloc((slots + 1) * sizeof(uint32_t));
    s->row = malloc(pairs * sizeof(uint32_t) + 1);
    s->y = malloc(pairs * sizeof(void *) + 1);
    s->to = malloc(pairs * sizeof(void *) + 1);
    assert_true(s->offset && s->row && s->y && s->to);

    memset(s->offset, UNUSED, (slots + 1) * sizeof(uint32_t));
    memset(s->row, UNUSED, pairs * sizeof(uint32_t));
    memset(s->y, UNUSED, pairs * sizeof(void *));
    memset(s->to, UNUSED, pairs * sizeof(void *));
}


static void
sorted_free(sorted_t *s)
{
    free(s->offset);
    free(s->row);
    free(s->y);
    free(s->to);
}


static void
sorted_same(const sorted_t *a, const sorted_t *b, uint32_t slots)
{
    assert_memory_equal(a->offset, b->offset, (slots + 1) * sizeof(uint32_t));
    assert_memory_equal(a->row, b->row, a->pairs * sizeof(uint32_t));
    assert_memory_equal(a->y, b->y, a->pairs * sizeof(void *));
    assert_memory_equal(a->to, b->to, a->pairs * sizeof(void *));
}


/* Where a rank's contributions would go: only the addresses count. */

static void
peers_make(cu_peers_t *p, uint32_t ranks)
{
    uint32_t  r;

    memset(p, 0, sizeof(cu_peers_t));

    for (r = 0; r < ranks; r++) {
        if (r % 3 == 1) {
            p->contrib[r] = (float *) (uintptr_t) ((r + 1ull) << 40);

        } else {
            p->inbox[r] = (uint16_t *) (uintptr_t) ((r + 1ull) << 40);
        }
    }
}


/* Slots: any and none; of one slot only; none. */

static int32_t
slot_make(uint32_t kind, uint32_t slots)
{
    switch (kind) {
    case 0:
        return (int32_t) cu_random(slots + 1) - 1;

    case 1:
        return (int32_t) slots / 2;

    default:
        return -1;
    }
}


static void
pairs_want(const case_t *c, const cu_peers_t *peers, const int32_t *slot,
    sorted_t *want)
{
    size_t    place;
    uint32_t  s, r, i, n, at;

    for (s = 0, at = 0; s < c->slots; s++) {
        want->offset[s] = at;

        for (r = 0; r < c->ranks; r++) {
            n = (c->rows[r] < c->most ? c->rows[r] : c->most) * c->top_k;

            for (i = 0; i < n; i++) {
                if (slot[r * c->max_rows * c->top_k + i] != (int32_t) s) {
                    continue;
                }

                place = (size_t) i * HIDDEN;
                want->row[at] = r * c->max_rows + i / c->top_k;

                if (peers->inbox[r] == NULL) {
                    want->y[at] = peers->contrib[r] + place;

                } else {
                    want->to[at] = peers->inbox[r] + place;
                }

                at++;
            }
        }
    }

    want->offset[c->slots] = at;
}


static void
pairs_check(const case_t *c, uint32_t kind, uint32_t stop)
{
    void                 *slot, *rows, *flag;
    int32_t              *host;
    uint32_t              i, n;
    sorted_t              want, got;
    cu_peers_t            peers;
    cu_exchange_t         e;
    cu_exchange_pairs_t   p;

    n = c->ranks * c->max_rows * c->top_k;
    host = malloc(n * sizeof(int32_t));
    assert_non_null(host);

    for (i = 0; i < n; i++) {
        host[i] = slot_make(kind, c->slots);
    }

    peers_make(&peers, c->ranks);
    sorted_make(&want, n, c->slots);
    sorted_make(&got, n, c->slots);

    if (stop) {
        memset(want.offset, 0, (c->slots + 1) * sizeof(uint32_t));

    } else {
        pairs_want(c, &peers, host, &want);
    }

    memset(&e, 0, sizeof(e));
    e.ranks = c->ranks;
    e.rank = c->rank;
    e.max_rows = c->max_rows;
    e.most = c->most;
    e.top_k = c->top_k;
    e.hidden = HIDDEN;

    slot = cu_put(host, n * sizeof(int32_t));
    rows = cu_put(c->rows, c->ranks * sizeof(uint32_t));
    flag = cu_put(&stop, sizeof(stop));
    peers.slot[c->rank] = slot;
    peers.rows[c->rank] = rows;

    p.slots = c->slots;
    p.stop = flag;
    p.offset = cu_put(got.offset, (c->slots + 1) * sizeof(uint32_t));
    p.row = cu_put(got.row, n * sizeof(uint32_t));
    p.y = cu_put(got.y, n * sizeof(void *));
    p.to = cu_put(got.to, n * sizeof(void *));

    CU_OK(cu_exchange_pairs(&e, &peers, &p, NULL));
    CU_OK(cudaDeviceSynchronize());

    cu_get(got.offset, p.offset, (c->slots + 1) * sizeof(uint32_t));
    cu_get(got.row, p.row, n * sizeof(uint32_t));
    cu_get(got.y, p.y, n * sizeof(void *));
    cu_get(got.to, p.to, n * sizeof(void *));
    sorted_same(&got, &want, c->slots);

    sorted_free(&want);
    sorted_free(&got);
    free(host);
    cudaFree(slot);
    cudaFree(rows);
    cudaFree(flag);
    cudaFree(p.offset);
    cudaFree(p.row);
    cudaFree(p.y);
    cudaFree(p.to);
}


static void
test_borders(void **state)
{
    size_t    i;
    uint32_t  kind;

    static const case_t  cases[] = {
        { 1, 0, 1, 1, 1, 3, { 0 } },
        { 1, 0, 1, 1, 1, 3, { 1 } },
        { 1, 0, 300, 300, 1, 5, { 127 } },
        { 1, 0, 300, 300, 1, 5, { 128 } },
        { 1, 0, 300, 300, 1, 5, { 129 } },
        { 1, 0, 300, 300, 1, 5, { 255 } },
        { 1, 0, 300, 300, 1, 5, { 256 } },
        { 1, 0, 300, 300, 1, 5, { 257 } },
        { 1, 0, 1100, 1100, 1, 3, { 8 * 128 } },
        { 1, 0, 1100, 1100, 1, 3, { 8 * 128 + 1 } },
        { 1, 0, 2050, 2048, 1, 3, { 16 * 128 } },
        { 1, 0, 2050, 2050, 1, 3, { 16 * 128 + 1 } },
        { 3, 1, 700, 700, 1, 4, { 255, 512, 257 } },
        { 5, 4, 86, 86, 3, 6, { 86, 0, 85, 0, 86 } },
        { 8, 2, 257, 257, 1, 7, { 0, 0, 256, 0, 0, 1, 257, 0 } },
        { 8, 7, 129, 129, 1, 7, { 129, 0, 1, 128, 0, 0, 127, 0 } },
        { 8, 0, 64, 64, 8, 4, { 64, 64, 64, 64, 64, 64, 64, 64 } }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (kind = 0; kind < 3; kind++) {
            pairs_check(&cases[i], kind, 0);
        }
    }
}


/* More rows than are to be looked at; a step that is not to be. */

static void
test_most(void **state)
{
    static const case_t  clamped = {
        3, 2, 100, 33, 8, 4, { 100, 20, 34 }
    };

    static const case_t  nothing = { 2, 0, 10, 0, 8, 4, { 10, 10 } };

    (void) state;

    pairs_check(&clamped, 0, 0);
    pairs_check(&clamped, 0, 1);
    pairs_check(&nothing, 0, 0);
}


/* A large block: the same chunks, other warps. */

static void
test_many(void **state)
{
    uint32_t  i;
    case_t    c;

    static const case_t  cases[] = {
        { 1, 0, 4097, 4097, 1, 2, { 32 * 128 + 1 } },
        { 4, 0, 800, 800, 8, 3, { 800, 0, 1, 799 } },
        { 2, 1, 8447, 8447, 1, 2, { 66 * 128 - 1, 62 * 128 + 1 } }
    };

    (void) state;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        pairs_check(&cases[i], 0, 0);
        pairs_check(&cases[i], 1, 0);
    }

    memset(&c, 0, sizeof(c));
    c.ranks = CU_PEERS;
    c.rank = 17;
    c.max_rows = 70;
    c.most = 66;
    c.top_k = 5;
    c.slots = 9;

    for (i = 0; i < CU_PEERS; i++) {
        c.rows[i] = cu_random(3) == 0 ? 0 : cu_random(c.max_rows + 1);
    }

    pairs_check(&c, 0, 0);
    c.rows[0] = 0;
    c.rows[CU_PEERS - 1] = c.max_rows;
    pairs_check(&c, 0, 0);
    c.rows[0] = c.max_rows;
    c.rows[CU_PEERS - 1] = 0;
    pairs_check(&c, 1, 0);
}


static void
route_want(const cu_route_t *r, const int32_t *id, const uint32_t *pos,
    sorted_t *want, uint32_t *load)
{
    uint32_t  e, i, at;

    for (e = 0, at = 0; e < r->experts; e++) {
        want->offset[e] = at;

        for (i = 0; i < r->rows * r->top_k; i++) {
            if (id[i] == (int32_t) e
                && (pos == NULL || pos[i / r->top_k] != CU_NO_ROW))
            {
                want->y[at] = (void *) (r->from + i / r->top_k * HIDDEN);
                want->to[at++] = r->to + i * HIDDEN;
                load[e]++;
            }
        }
    }

    want->offset[r->experts] = at;
}


/* Padding: 0 cannot be, 1 is not, 2 is anywhere, 3 is at the end, 4 is all. */

static uint32_t *
pos_make(uint32_t rows, uint32_t padding)
{
    uint32_t   i, *pos;

    pos = malloc(rows * sizeof(uint32_t) + 1);
    assert_non_null(pos);

    for (i = 0; i < rows; i++) {
        pos[i] = (padding == 2 && cu_random(3) == 0)
                 || (padding == 3 && i >= rows / 2)
                 || padding == 4 ? CU_NO_ROW : i;
    }

    return pos;
}


static void
route_check(uint32_t rows, uint32_t top_k, uint32_t experts,
    uint32_t padding)
{
    int32_t     *id;
    uint32_t     i, n, *pos, load[64], got_load[64];
    sorted_t     want, got;
    cu_route_t   r;

    n = rows * top_k;
    id = malloc(n * sizeof(int32_t) + 1);
    pos = padding ? pos_make(rows, padding) : NULL;
    assert_non_null(id);

    for (i = 0; i < n; i++) {
        id[i] = (int32_t) cu_random(experts);
    }

    for (i = 0; i < experts; i++) {
        load[i] = 7 * i + 1;
    }

    sorted_make(&want, n, experts);
    sorted_make(&got, n, experts);

    memset(&r, 0, sizeof(r));
    r.rows = rows;
    r.top_k = top_k;
    r.experts = experts;
    r.hidden = HIDDEN;
    r.id = cu_put(id, n * sizeof(int32_t) + 1);
    r.pos = padding ? cu_put(pos, rows * sizeof(uint32_t) + 1) : NULL;
    r.from = (const float *) (uintptr_t) (1ull << 40);
    r.to = (float *) (uintptr_t) (1ull << 44);
    r.offset = cu_put(got.offset, (experts + 1) * sizeof(uint32_t));
    r.x = cu_put(got.y, n * sizeof(void *) + 1);
    r.y = cu_put(got.to, n * sizeof(void *) + 1);
    r.load = cu_put(load, experts * sizeof(uint32_t));

    route_want(&r, id, pos, &want, load);
    CU_OK(cu_route(&r, NULL));
    CU_OK(cudaDeviceSynchronize());

    cu_get(got.offset, r.offset, (experts + 1) * sizeof(uint32_t));
    cu_get(got.y, r.x, n * sizeof(void *));
    cu_get(got.to, r.y, n * sizeof(void *));
    cu_get(got_load, r.load, experts * sizeof(uint32_t));
    sorted_same(&got, &want, experts);
    assert_memory_equal(got_load, load, experts * sizeof(uint32_t));

    sorted_free(&want);
    sorted_free(&got);
    free(id);
    free(pos);
    cudaFree((void *) r.id);
    cudaFree((void *) r.pos);
    cudaFree(r.offset);
    cudaFree(r.x);
    cudaFree(r.y);
    cudaFree(r.load);
}


static void
test_route(void **state)
{
    size_t    i;
    uint32_t  padding;

    static const uint32_t  sizes[][3] = {
        { 0, 8, 4 }, { 1, 1, 3 }, { 127, 1, 3 }, { 64, 2, 5 }, { 129, 1, 3 },
        { 2048, 1, 2 }, { 683, 3, 4 }, { 64, 8, 17 }, { 9, 32, 11 }, { 520, 8, 3 },
        { 331, 13, 2 }
    };

    (void) state;

    for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (padding = 0; padding < 5; padding++) {
            route_check(sizes[i][0], sizes[i][1], sizes[i][2], padding);
        }
    }
}


int
main(int argc, char **argv)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_borders),
        cmocka_unit_test(test_most),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_route)
    };

    return GPU_MAIN(argc, argv, tests);
}
