/*
 * Memory of matrices: what is got lies apart, keeps what is written, is used
 * again when it was given back, and wastes little.
 */

#include "backend/cuda/be_cuda_slab.h"
#include "test_cuda_util.h"


#define KEPT   24
#define TURNS  400
#define MIB    ((size_t) 1 << 20)


typedef struct {
    uint8_t  *p;
    size_t    size;
    uint32_t  tag;
} kept_t;


static void
mark(kept_t *k)
{
    CU_OK(cudaMemcpy(k->p, &k->tag, 4, cudaMemcpyHostToDevice));
    CU_OK(cudaMemcpy(k->p + k->size - 4, &k->tag, 4, cudaMemcpyHostToDevice));
}


static void
marked(const kept_t *k)
{
    uint32_t  tag;

    cu_get(&tag, k->p, 4);
    assert_int_equal(tag, k->tag);
    cu_get(&tag, k->p + k->size - 4, 4);
    assert_int_equal(tag, k->tag);
}


static void
test_random(void **state)
{
    void      *p;
    uint32_t   i, j, turn;
    kept_t     kept[KEPT];

    (void) state;
    memset(kept, 0, sizeof(kept));

    for (turn = 0; turn < TURNS; turn++) {
        i = cu_random(KEPT);

        if (kept[i].p != NULL) {
            marked(&kept[i]);
            be_cuda_slab_put(0, kept[i].p);
            kept[i].p = NULL;
            continue;
        }

        kept[i].size = (cu_random(4) == 0) ? 4 + cu_random(5000)
                                           : MIB + cu_random(4 << 20);
        kept[i].tag = turn + 1;
        CU_OK(be_cuda_slab_get(0, kept[i].size, &p));
        kept[i].p = p;
        assert_int_equal((uintptr_t) p % 256, 0);

        for (j = 0; j < KEPT; j++) {
            if (j != i && kept[j].p != NULL) {
                assert_true(kept[i].p + kept[i].size <= kept[j].p
                            || kept[j].p + kept[j].size <= kept[i].p);
            }
        }

        mark(&kept[i]);
    }

    for (i = 0; i < KEPT; i++) {
        if (kept[i].p != NULL) {
            marked(&kept[i]);
            be_cuda_slab_put(0, kept[i].p);
        }
    }

    be_cuda_slab_put(0, NULL);
}


/* V3's experts, 14 MiB and a description each. */

static void
test_waste(void **state)
{
    void    *p[20];
    size_t   has, left, all, size;
    int      i;

    (void) state;

    size = 14 * MIB + 256;
    CU_OK(cudaMemGetInfo(&has, &all));

    for (i = 0; i < 20; i++) {
        CU_OK(be_cuda_slab_get(0, size, &p[i]));
    }

    CU_OK(cudaMemGetInfo(&left, &all));
    assert_true(has - left >= 20 * size);
    assert_true(has - left < 20 * size + 16 * MIB);

    /* what lies between is used again */

    for (i = 0; i < 20; i += 2) {
        be_cuda_slab_put(0, p[i]);
    }

    for (i = 0; i < 20; i += 2) {
        CU_OK(be_cuda_slab_get(0, size, &p[i]));
    }

    for (i = 0; i < 20; i++) {
        be_cuda_slab_put(0, p[i]);
    }

    CU_OK(cudaMemGetInfo(&left, &all));
    assert_int_equal(left, has);
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_waste)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
