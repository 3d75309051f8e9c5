/*
 * What goes on beside the threads: mbarriers, bulk copies, copies of 16
 * bytes; and the instructions on 8 x 8 matrices.
 *
 * A copy is carried out some passes of the scheduler after it was issued, or
 * at once, as the generator says; in any order.  Waiting for a group carries
 * out what is left of it.
 *
 * An mbarrier's word: arrivals that are missing in this phase (20 bits), in
 * each phase (20), the phase's parity (1), bytes that are missing (23, with a
 * sign).
 *
 * A tensor map's words: a mark, element size and rank, base; sizes; strides
 * in bytes; box; swizzle.
 */

#include <stdio.h>
#include <string.h>

#include <functional>
#include <vector>

#include "emu_ptx.h"
#include "emu_runtime.h"


#define BAR_MASK     0xfffffu
#define MAP_MARK     0x70616d20756d65ull
#define ASYNC_LATE   60              /* passes that a copy may take */

typedef enum { ASYNC_LOAD, ASYNC_STORE, ASYNC_COPY } async_kind_t;

struct async_op_t {
    async_kind_t           kind;
    emu_thread_t          *thread;
    uint32_t               group;
    uint32_t               delay;
    std::function<void()>  run;
};

struct emu_async_s {
    std::vector<async_op_t>  ops;
};

typedef struct {
    uint32_t  missing;
    uint32_t  each;
    uint32_t  parity;
    int32_t   bytes;
} bar_t;

typedef struct {
    uint64_t  mark;
    uint32_t  size;                  /* of an element */
    uint32_t  rank;
    uint64_t  base;
    uint32_t  dims[5];
    uint32_t  swizzle;
    uint64_t  strides[4];
    uint16_t  box[5];
} map_t;

static_assert(sizeof(map_t) <= sizeof(CUtensorMap), "a tensor map");


static void async_add(async_kind_t kind, uint32_t group,
    std::function<void()> run);
static void async_run(emu_block_t *block, size_t i);
static void async_finish(async_kind_t kind, uint32_t before);
static bar_t bar_get(const uint64_t *bar);
static void bar_put(uint64_t *bar, const bar_t *b);
static void bar_bytes(uint64_t *bar, uint32_t bytes);
static void tma_box(const map_t *m, uint8_t *smem, uint32_t address,
    const int *c, int load);
static const map_t *tma_map(const CUtensorMap *map, uint32_t rank);
static uint32_t tma_bytes(const map_t *m);


/* --- mbarriers --------------------------------------------------------- */

static bar_t
bar_get(const uint64_t *bar)
{
    bar_t     b;
    uint64_t  w;

    w = *bar;
    b.missing = w & BAR_MASK;
    b.each = w >> 20 & BAR_MASK;
    b.parity = w >> 40 & 1;
    b.bytes = (int32_t) ((int64_t) w >> 41);

    if (b.each == 0 || b.each == BAR_MASK || b.missing > b.each) {
        emu_fatal("an mbarrier that was not made, at shared address %u",
                  emu_shared_address(bar, 8, "mbarrier"));
    }

    return b;
}


static void
bar_put(uint64_t *bar, const bar_t *b)
{
    bar_t  c;

    c = *b;

    if (c.missing == 0 && c.bytes == 0) {
        c.missing = c.each;
        c.parity ^= 1;
    }

    *bar = (uint64_t) c.missing | (uint64_t) c.each << 20
           | (uint64_t) c.parity << 40 | (uint64_t) (int64_t) c.bytes << 41;
}


void
emu_mbar_init(uint64_t *bar, uint32_t arrivals)
{
    if (emu_shared_address(bar, 8, "mbarrier") % 8 != 0 || arrivals == 0
        || arrivals >= BAR_MASK)
    {
        emu_fatal("an mbarrier of %u arrivals at %p", arrivals, (void *) bar);
    }

    *bar = (uint64_t) arrivals | (uint64_t) arrivals << 20;
}


void
emu_mbar_arrive(uint64_t *bar, uint32_t expect, uint32_t arrivals)
{
    bar_t  b;

    (void) emu_shared_address(bar, 8, "mbarrier");
    b = bar_get(bar);
    b.bytes += (int32_t) expect;

    if (arrivals > b.missing) {
        emu_fatal("more than the %u arrivals of a phase, at shared address "
                  "%u", b.each, emu_shared_address(bar, 8, "mbarrier"));
    }

    b.missing -= arrivals;
    bar_put(bar, &b);
}


static void
bar_bytes(uint64_t *bar, uint32_t bytes)
{
    bar_t  b;

    b = bar_get(bar);
    b.bytes -= (int32_t) bytes;
    bar_put(bar, &b);
}


int
emu_phase_passed(const uint64_t *bar, uint32_t parity)
{
    return bar_get(bar).parity != (parity & 1);
}


/* One that fails lets others run, the caller comes back. */

int
emu_mbar_test(const uint64_t *bar, uint32_t parity)
{
    (void) emu_shared_address(bar, 8, "mbarrier");

    if (!emu_phase_passed(bar, parity)) {
        emu_poll();
        return 0;
    }

    return 1;
}


/* --- what is under way ------------------------------------------------- */

static void
async_add(async_kind_t kind, uint32_t group, std::function<void()> run)
{
    async_op_t    op;
    emu_block_t  *block;

    block = emu_self->block;

    if (block->async == NULL) {
        block->async = new emu_async_t();
    }

    op.kind = kind;
    op.thread = emu_self;
    op.group = group;
    op.delay = (emu_random(4) == 0) ? 0 : emu_random(ASYNC_LATE);
    op.run = run;
    block->async->ops.push_back(op);
    block->n_async++;
}


static void
async_run(emu_block_t *block, size_t i)
{
    emu_thread_t             *self;
    std::function<void()>     run;
    std::vector<async_op_t>  *ops;

    ops = &block->async->ops;
    self = emu_self;
    emu_self = (*ops)[i].thread;
    run = std::move((*ops)[i].run);
    ops->erase(ops->begin() + (ptrdiff_t) i);
    block->n_async--;
    run();
    emu_self = self;
}


int
emu_async_some(emu_block_t *block, int force)
{
    int     done;
    size_t  i;

    if (block->n_async == 0) {
        return 0;
    }

    if (force) {
        async_run(block, emu_random(block->n_async));
        return 1;
    }

    done = 0;

    for (i = 0; i < block->async->ops.size(); /* void */ ) {
        if (block->async->ops[i].delay == 0) {
            async_run(block, i);
            done++;
            continue;
        }

        block->async->ops[i].delay--;
        i++;
    }

    return done;
}


/* Carries out this thread's operations of groups before `before`. */

static void
async_finish(async_kind_t kind, uint32_t before)
{
    size_t        i;
    emu_block_t  *block;

    block = emu_self->block;

    for (i = 0; block->n_async != 0 && i < block->async->ops.size();
         /* void */ )
    {
        async_op_t  &op = block->async->ops[i];

        if (op.kind == kind && op.thread == emu_self
            && (int32_t) (op.group - before) < 0)
        {
            async_run(block, i);
            continue;
        }

        i++;
    }
}


void
emu_async_close(emu_block_t *block)
{
    if (block->n_async != 0) {
        async_op_t  &op = block->async->ops[0];

        emu_self = op.thread;
        emu_fatal("the block ends while %s is under way",
                  op.kind == ASYNC_LOAD ? "a bulk copy to shared memory"
                  : op.kind == ASYNC_STORE ? "a bulk store (cu_bulk_wait)"
                                           : "a copy of 16 bytes");
    }

    delete block->async;
    block->async = NULL;
}


/* --- bulk copies ------------------------------------------------------- */

/* The driver's function; what it refuses the emulator names. */

extern "C" CUresult
emu_map_encode(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
    void *base, const cuuint64_t *dims, const cuuint64_t *strides,
    const cuuint32_t *box, const cuuint32_t *steps, CUtensorMapInterleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
    CUtensorMapFloatOOBfill)
{
    map_t       m;
    uint32_t    i;
    uint64_t    row;
    const char *bad;

    static const uint32_t  size[] = { 1, 2, 4, 4, 8, 8, 2, 4, 8, 2 };
    static const uint32_t  span[] = { 0, 32, 64, 128 };

    memset(&m, 0, sizeof(m));
    memset(map, 0, sizeof(CUtensorMap));
    m.mark = MAP_MARK;
    m.size = size[type];
    m.rank = rank;
    m.base = (uint64_t) base;
    m.swizzle = swizzle;
    row = (uint64_t) box[0] * m.size;

    bad = (rank < 1 || rank > 5) ? "rank"
          : (m.base % 16 != 0 || base == NULL) ? "base"
          : (row % 16 != 0) ? "the size of a box's row"
          : (swizzle != CU_TENSOR_MAP_SWIZZLE_NONE && row > span[swizzle])
              ? "a box's row beside the swizzle" : NULL;

    for (i = 0; bad == NULL && i < rank; i++) {
        bad = (dims[i] == 0 || dims[i] > UINT32_MAX) ? "a dimension"
              : (box[i] == 0 || box[i] > 256) ? "the size of a box"
              : (steps[i] != 1) ? "a step"
              : (i > 0 && (strides[i - 1] % 16 != 0
                           || strides[i - 1] >= (uint64_t) 1 << 40))
                  ? "a stride" : NULL;
        m.dims[i] = (uint32_t) dims[i];
        m.box[i] = (uint16_t) box[i];
        m.strides[i > 0 ? i - 1 : 3] = (i > 0) ? strides[i - 1] : 0;
    }

    if (bad != NULL) {
        fprintf(stderr, "emu: no tensor map: %s is not possible\n", bad);
        return CUDA_ERROR_INVALID_VALUE;
    }

    memcpy(map, &m, sizeof(m));

    return CUDA_SUCCESS;
}


cudaError_t
cudaGetDriverEntryPointByVersion(const char *symbol, void **f, unsigned int,
    unsigned long long, enum cudaDriverEntryPointQueryResult *result)
{
    if (strcmp(symbol, "cuTensorMapEncodeTiled") != 0) {
        *f = NULL;
        *result = cudaDriverEntryPointSymbolNotFound;
        return cudaSuccess;
    }

    *f = (void *) emu_map_encode;
    *result = cudaDriverEntryPointSuccess;

    return cudaSuccess;
}


static const map_t *
tma_map(const CUtensorMap *map, uint32_t rank)
{
    const map_t  *m;

    m = (const map_t *) map;

    if (m->mark != MAP_MARK || m->rank != rank) {
        emu_fatal("a tensor map of rank %u that is none", rank);
    }

    return m;
}


static uint32_t
tma_bytes(const map_t *m)
{
    uint32_t  i, n;

    n = m->size;

    for (i = 0; i < m->rank; i++) {
        n *= m->box[i];
    }

    return n;
}


void
emu_tma_load(void *dst, const CUtensorMap *map, uint64_t *bar, uint32_t rank,
    const int *c)
{
    int       at[5];
    map_t     m;
    uint32_t  address;

    m = *tma_map(map, rank);
    address = emu_shared_address(dst, tma_bytes(&m), "bulk copy");
    (void) emu_shared_address(bar, 8, "mbarrier");
    memcpy(at, c, rank * sizeof(int));

    if (address % (m.swizzle ? 1024 : 128) != 0) {
        emu_fatal("a bulk copy to shared address %u", address);
    }

    /* Seen on an H100: anything else is an illegal instruction. */

    if ((int64_t) c[0] * m.size % 16 != 0) {
        emu_fatal("a bulk copy from element %d, not at 16 bytes", c[0]);
    }

    async_add(ASYNC_LOAD, 0, [=]() {
        tma_box(&m, (uint8_t *) dst, address, at, 1);
        bar_bytes(bar, tma_bytes(&m));
    });
}


void
emu_tma_store(const CUtensorMap *map, const void *src, uint32_t rank,
    const int *c)
{
    int       at[5];
    map_t     m;
    uint32_t  address;

    m = *tma_map(map, rank);
    address = emu_shared_address(src, tma_bytes(&m), "bulk store");
    memcpy(at, c, rank * sizeof(int));

    if (address % (m.swizzle ? 1024 : 128) != 0
        || (int64_t) c[0] * m.size % 16 != 0)
    {
        emu_fatal("a bulk store from shared address %u to element %d",
                  address, c[0]);
    }

    async_add(ASYNC_STORE, emu_self->bulk_group, [=]() {
        tma_box(&m, (uint8_t *) src, address, at, 0);
    });
}


/* A box between global and shared memory, line by line. */

static void
tma_box(const map_t *m, uint8_t *smem, uint32_t address, const int *c,
    int load)
{
    int        inside;
    int64_t    at;
    uint8_t   *global, *line;
    uint32_t   i, k, n, lines, bytes, piece, to, span, count[5];

    static const uint32_t  mask[] = { 0, 1, 3, 7 };

    span = m->box[0] * m->size;
    lines = tma_bytes(m) / span;

    for (n = 0; n < lines; n++) {
        inside = 1;
        global = (uint8_t *) m->base;
        k = n;

        for (i = 1; i < m->rank; i++) {
            count[i] = k % m->box[i];
            k /= m->box[i];
            at = (int64_t) c[i] + count[i];
            inside = inside && at >= 0 && at < m->dims[i];
            global += (inside ? at : 0) * (int64_t) m->strides[i - 1];
        }

        for (k = 0; k < span; k += 16) {
            piece = n * span + k;
            to = address + piece;
            to ^= (to >> 7 & mask[m->swizzle]) << 4;
            line = smem + (to - address);

            for (i = 0; i < 16; i += m->size) {
                at = (int64_t) c[0] + (k + i) / m->size;
                bytes = m->size;

                if (inside && at >= 0 && at < m->dims[0]) {
                    if (load) {
                        memcpy(line + i, global + at * bytes, bytes);
                    } else {
                        memcpy(global + at * bytes, line + i, bytes);
                    }

                } else if (load) {
                    memset(line + i, 0, bytes);
                }
            }
        }
    }
}


void
emu_bulk_load(void *dst, const void *src, uint32_t bytes, uint64_t *bar)
{
    uint32_t  address;

    address = emu_shared_address(dst, bytes, "bulk copy");
    (void) emu_shared_address(bar, 8, "mbarrier");

    if (bytes == 0 || bytes % 16 != 0 || address % 16 != 0
        || (uintptr_t) src % 16 != 0)
    {
        emu_fatal("a bulk copy of %u bytes from %p to shared address %u",
                  bytes, src, address);
    }

    async_add(ASYNC_LOAD, 0, [=]() {
        memcpy(dst, src, bytes);
        bar_bytes(bar, bytes);
    });
}


void
emu_bulk_store(void *dst, const void *src, uint32_t bytes)
{
    uint32_t  address;

    address = emu_shared_address(src, bytes, "bulk store");

    if (bytes == 0 || bytes % 16 != 0 || address % 16 != 0
        || (uintptr_t) dst % 16 != 0)
    {
        emu_fatal("a bulk store of %u bytes from shared address %u to %p",
                  bytes, address, dst);
    }

    async_add(ASYNC_STORE, emu_self->bulk_group, [=]() {
        memcpy(dst, src, bytes);
    });
}


void
emu_bulk_commit(void)
{
    emu_self->bulk_group++;
}


void
emu_bulk_wait(uint32_t groups)
{
    async_finish(ASYNC_STORE, emu_self->bulk_group - groups);
}


/* --- copies of 16 bytes ------------------------------------------------ */

void
emu_copy(void *dst, const void *src, uint32_t bytes)
{
    uint32_t  address;

    address = emu_shared_address(dst, 16, "cp.async");

    if (bytes > 16 || address % 16 != 0 || (uintptr_t) src % 16 != 0) {
        emu_fatal("cp.async of %u bytes from %p to shared address %u", bytes,
                  src, address);
    }

    async_add(ASYNC_COPY, emu_self->copy_group, [=]() {
        if (bytes != 0) {
            memcpy(dst, src, bytes);
        }

        memset((uint8_t *) dst + bytes, 0, 16 - bytes);
    });
}


void
emu_copy_commit(void)
{
    emu_self->copy_group++;
}


void
emu_copy_wait(uint32_t groups)
{
    async_finish(ASYNC_COPY, emu_self->copy_group - groups);
}


void
emu_copy_arrive(uint64_t *bar)
{
    (void) emu_shared_address(bar, 8, "mbarrier");

    async_add(ASYNC_LOAD, 0, [=]() {
        async_finish(ASYNC_COPY, emu_self->copy_group + 1);
        emu_mbar_arrive(bar, 0, 1);
    });
}


/* --- 8 x 8 matrices ---------------------------------------------------- */

/* Addresses meet in the warp; then each lane reads, or writes, its own. */

void
emu_matrix_load(uint32_t *r, const void *row, int transpose)
{
    int                 i, h;
    uint16_t            e[2];
    const uint8_t      *p;
    const emu_lanes_t  *lanes;

    if (emu_shared_address(row, 16, "ldmatrix") % 16 != 0) {
        emu_fatal("ldmatrix of a row at %p", row);
    }

    lanes = emu_warp(EMU_WARP_MATRIX, 0xffffffff, (uint64_t) row);

    for (i = 0; i < 4; i++) {
        for (h = 0; h < 2; h++) {
            if (transpose) {
                p = (const uint8_t *)
                    lanes->value[8 * i + 2 * (emu_lane() % 4) + h];
                memcpy(&e[h], p + 2 * (emu_lane() / 4), 2);

            } else {
                p = (const uint8_t *) lanes->value[8 * i + emu_lane() / 4];
                memcpy(&e[h], p + 4 * (emu_lane() % 4) + 2 * h, 2);
            }
        }

        r[i] = (uint32_t) e[1] << 16 | e[0];
    }

    __syncwarp();
}


void
emu_matrix_store(void *row, const uint32_t *r, int transpose)
{
    int                 i, h;
    uint8_t            *p;
    uint16_t            e;
    const emu_lanes_t  *lanes;

    if (emu_shared_address(row, 16, "stmatrix") % 16 != 0) {
        emu_fatal("stmatrix of a row at %p", row);
    }

    lanes = emu_warp(EMU_WARP_MATRIX, 0xffffffff, (uint64_t) row);

    for (i = 0; i < 4; i++) {
        for (h = 0; h < 2; h++) {
            e = (uint16_t) (r[i] >> 16 * h);

            if (transpose) {
                p = (uint8_t *)
                    lanes->value[8 * i + 2 * (emu_lane() % 4) + h];
                memcpy(p + 2 * (emu_lane() / 4), &e, 2);

            } else {
                p = (uint8_t *) lanes->value[8 * i + emu_lane() / 4];
                memcpy(p + 4 * (emu_lane() % 4) + 2 * h, &e, 2);
            }
        }
    }

    __syncwarp();
}
