/*
 * Products of a warpgroup.
 *
 * A thread that issues one hands over its part of D and goes on; the last one
 * of 128 carries it out, on the operands as they are then.  D in the threads
 * is no number until cu_wgmma_wait() gives it back, and shared memory must
 * still be what it was: so results read too early, operands overwritten too
 * early and operands not yet there are all seen.
 */

#include <math.h>
#include <string.h>

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "emu_ptx.h"
#include "emu_runtime.h"


#define GROUP      128
#define ROWS       64
#define COLS_MAX   256
#define K_MAX      32

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)                     \
    && !defined(__SANITIZE_THREAD__)
#define WGMMA_CLONES  __attribute__((target_clones("avx512f", "avx2",         \
                                                   "default")))
#else
#define WGMMA_CLONES
#endif


typedef std::shared_ptr<std::vector<float>>  acc_t;

struct product_t {
    emu_product_t          type;
    uint32_t               n;
    int                    ta, tb, add;
    uint64_t               a, b;
    uint32_t               group;
    acc_t                  d;
    uint32_t               arrived;
    int                    checked;  /* operands were still the same */
    std::vector<uint32_t>  regs;     /* [GROUP][4] */
    std::vector<uint8_t>   raw;      /* operands in shared memory */
};

struct open_t {
    float    *to;
    acc_t     d;
    uint32_t  group;                 /* of the last product on it */
};

struct state_t {
    uint32_t             groups;     /* closed by this thread */
    std::vector<open_t>  open;
};

struct emu_group_s {
    std::deque<product_t>  products;
    uint32_t               first;    /* number of products[0] */
    uint32_t               done;     /* carried out */
    state_t                thread[GROUP];
};


static emu_group_t *group_of(void);
static void product_run(product_t *p);
static void product_read(const product_t *p, std::vector<uint8_t> *raw);
static void product_lines(uint64_t desc, uint32_t rows, uint32_t k,
    uint32_t size, int transposed, std::vector<uint8_t> *raw) EMU_UNSEEN;
static void product_sum(float *d, const float *a, const float *b, uint32_t n,
    uint32_t k, int add) EMU_UNSEEN;
static void product_floats(const uint8_t *raw, uint32_t size, size_t n,
    float *f) EMU_UNSEEN;
static uint32_t place(uint32_t n, uint32_t thread, uint32_t i);


uint64_t
emu_desc(const void *p, uint32_t next)
{
    uint32_t  address;

    address = emu_shared_address(p, 16, "an operand");

    if (address % 16 != 0 || next % 16 != 0 || next >> 4 >= 1 << 14) {
        emu_fatal("an operand at shared address %u, %u bytes to the next "
                  "tile", address, next);
    }

    return (uint64_t) (address >> 4) | (uint64_t) (next >> 4) << 16
           | (uint64_t) (1024 >> 4) << 32 | (uint64_t) 1 << 62;
}


static emu_group_t *
group_of(void)
{
    uint32_t      i;
    emu_block_t  *block;

    block = emu_self->block;

    if (block->groups == NULL) {
        block->groups = (emu_group_t **)
                        calloc(block->n_threads / GROUP + 1,
                               sizeof(emu_group_t *));
        if (block->groups == NULL) {
            emu_fatal("out of memory");
        }
    }

    i = emu_self->index / GROUP;

    if ((i + 1) * GROUP > block->n_threads) {
        emu_fatal("a product in a warpgroup that is not whole");
    }

    if (block->groups[i] == NULL) {
        block->groups[i] = new emu_group_t();
    }

    return block->groups[i];
}


/* Where d[i] of a thread is in D [64][n]. */

static uint32_t
place(uint32_t n, uint32_t thread, uint32_t i)
{
    uint32_t  lane, row, col;

    lane = thread % 32;
    row = thread / 32 * 16 + lane / 4 + 8 * (i / 2 % 2);
    col = 8 * (i / 4) + 2 * (lane % 4) + i % 2;

    return row * n + col;
}


void
emu_wgmma(emu_product_t type, uint32_t n, int ta, int tb, float *d,
    uint64_t desc_a, const uint32_t *a, uint64_t desc_b, int add)
{
    uint32_t      i, number, thread;
    open_t       *open;
    state_t      *s;
    product_t    *p;
    emu_group_t  *g;

    g = group_of();
    thread = emu_self->index % GROUP;
    s = &g->thread[thread];

    if (!emu_self->fenced) {
        emu_fatal("a product without cu_wgmma_fence() after the registers "
                  "were used");
    }

    number = emu_self->wgmma++ - g->first;

    if (number == g->products.size()) {
        product_t  fresh = {};

        fresh.type = type;
        fresh.n = n;
        fresh.ta = ta;
        fresh.tb = tb;
        fresh.a = desc_a;
        fresh.b = desc_b;
        fresh.add = add;
        fresh.group = s->groups;
        g->products.push_back(fresh);

        if (a != NULL) {
            g->products.back().regs.resize(GROUP * 4);
        }
    }

    p = &g->products[number];

    if (p->type != type || p->n != n || p->ta != ta || p->tb != tb
        || p->a != desc_a || p->b != desc_b || (p->add != 0) != (add != 0)
        || p->group != s->groups)
    {
        emu_fatal("the threads of a warpgroup issue different products");
    }

    /* sums go on where this thread's last product on them left them */

    open = NULL;

    for (open_t &o : s->open) {
        open = (o.to == d) ? &o : open;
    }

    if (open == NULL) {
        open_t  o = { d, p->d, 0 };

        if (o.d == NULL) {
            o.d = std::make_shared<std::vector<float>>(ROWS * n, NAN);
        }

        s->open.push_back(o);
        open = &s->open.back();

        for (i = 0; i < n / 2; i++) {
            (*open->d)[place(n, thread, i)] = d[i];
            d[i] = NAN;
        }
    }

    if (p->d == NULL) {
        p->d = open->d;
    }

    if (p->d != open->d || p->d->size() != ROWS * n) {
        emu_fatal("the threads of a warpgroup have different sums in one "
                  "product");
    }

    open->group = p->group;

    if (a != NULL) {
        memcpy(&p->regs[thread * 4], a, 16);
    }

    if (++p->arrived == GROUP) {
        product_run(p);
        g->done++;
    }
}


void
emu_wgmma_fence(void)
{
    (void) group_of();
    emu_self->fenced = 1;
}


void
emu_wgmma_commit(void)
{
    group_of()->thread[emu_self->index % GROUP].groups++;
}


void
emu_wgmma_wait(uint32_t groups)
{
    size_t                k;
    uint32_t              i, n, until, thread;
    state_t              *s;
    emu_group_t          *g;
    std::vector<uint8_t>  raw;

    g = group_of();
    thread = emu_self->index % GROUP;
    s = &g->thread[thread];
    until = (s->groups > groups) ? s->groups - groups : 0;
    emu_self->fenced = 0;

    /* products are carried out in order, so a number says enough */

    for (n = g->first; n - g->first < g->products.size(); n++) {
        if (g->products[n - g->first].group >= until) {
            break;
        }
    }

    while (g->done < n) {
        emu_wait_count(&g->done, g->done,
                       "the others of its warpgroup to issue a product");
    }

    for (product_t &p : g->products) {
        if (p.group >= until) {
            break;
        }

        if (!p.checked) {
            product_read(&p, &raw);
            p.checked = 1;

            if (raw != p.raw) {
                emu_fatal("shared memory was overwritten while a product "
                          "read it");
            }
        }
    }

    while (!g->products.empty() && g->products.front().checked) {
        g->products.pop_front();
        g->first++;
    }

    for (k = 0; k < s->open.size(); /* void */ ) {
        open_t  &o = s->open[k];

        if (o.group >= until) {
            k++;
            continue;
        }

        n = (uint32_t) o.d->size() / ROWS;

        for (i = 0; i < n / 2; i++) {
            o.to[i] = (*o.d)[place(n, thread, i)];
        }

        s->open.erase(s->open.begin() + (ptrdiff_t) k);
    }
}


void
emu_wgmma_close(emu_block_t *block)
{
    uint32_t  i, k;

    if (block->groups == NULL) {
        return;
    }

    for (i = 0; i < block->n_threads / GROUP; i++) {
        if (block->groups[i] == NULL) {
            continue;
        }

        for (k = 0; k < GROUP; k++) {
            if (!block->groups[i]->thread[k].open.empty()) {
                emu_self = &block->threads[i * GROUP + k];
                emu_fatal("the thread ends with products that it did not "
                          "wait for");
            }
        }

        delete block->groups[i];
    }

    free(block->groups);
    block->groups = NULL;
}


/* --- arithmetic -------------------------------------------------------- */

static void
product_run(product_t *p)
{
    float                  a[ROWS * K_MAX], b[COLS_MAX * K_MAX], v;
    float                  bt[COLS_MAX * K_MAX];
    size_t                 at;
    uint32_t               i, k, r, m, size, elements, bytes;
    std::vector<uint8_t>   line;

    size = (p->type == EMU_BF16_SS || p->type == EMU_BF16_RS) ? 2 : 1;
    elements = 32 / size;
    at = 0;

    product_read(p, &p->raw);

    if (p->type == EMU_BF16_SS || p->type == EMU_E4M3_SS) {
        product_floats(p->raw.data(), size, ROWS * elements, a);
        at = ROWS * 32;

    } else {
        line.resize(ROWS * 32);
        bytes = 4;

        for (i = 0; i < GROUP; i++) {
            for (r = 0; r < 4; r++) {
                m = i / 32 * 16 + i % 32 / 4 + 8 * (r % 2);
                memcpy(&line[m * 32 + 4 * (i % 4) + 16 * (r / 2)],
                       &p->regs[i * 4 + r], bytes);
            }
        }

        product_floats(line.data(), size, ROWS * elements, a);
    }

    product_floats(p->raw.data() + at, size, (size_t) p->n * elements, b);

    for (i = 0; i < p->n; i++) {
        for (k = 0; k < elements; k++) {
            bt[k * p->n + i] = b[i * elements + k];
        }
    }

    product_sum(p->d->data(), a, bt, p->n, elements, p->add);

    /* sums of e4m3fn keep 14 bits */

    if (size == 1) {
        for (i = 0; i < ROWS * p->n; i++) {
            v = (*p->d)[i];

            if (isfinite(v)) {
                (*p->d)[i] = __uint_as_float(__float_as_uint(v)
                                             & 0xfffffc00);
            }
        }
    }
}


/* A (if in shared memory), then B, as rows of 32 bytes. */

static void
product_read(const product_t *p, std::vector<uint8_t> *raw)
{
    uint32_t  size;

    size = (p->type == EMU_BF16_SS || p->type == EMU_BF16_RS) ? 2 : 1;
    raw->clear();

    if (p->type == EMU_BF16_SS || p->type == EMU_E4M3_SS) {
        product_lines(p->a, ROWS, 32 / size, size, p->ta, raw);
    }

    product_lines(p->b, p->n, 32 / size, size, p->tb, raw);
}


static void
product_lines(uint64_t desc, uint32_t rows, uint32_t k, uint32_t size,
    int transposed, std::vector<uint8_t> *raw)
{
    uint32_t        start, leading, stride, row, e, at;
    const uint8_t  *p;

    start = (uint32_t) (desc & 0x3fff) << 4;
    leading = (uint32_t) (desc >> 16 & 0x3fff) << 4;
    stride = (uint32_t) (desc >> 32 & 0x3fff) << 4;

    for (row = 0; row < rows; row++) {
        for (e = 0; e < k; e++) {
            if (transposed) {
                at = start + row / 64 * leading + row % 64 * 2
                     + e / 8 * stride + e % 8 * 128;

            } else {
                at = start + row / 8 * stride + row % 8 * 128 + e * size;
            }

            at ^= (at >> 7 & 7) << 4;
            p = emu_shared_at(at, size, "an operand of a product");
            raw->insert(raw->end(), p, p + size);
        }
    }
}


static void
product_floats(const uint8_t *raw, uint32_t size, size_t n, float *f)
{
    size_t    i;
    uint16_t  h;

    for (i = 0; i < n; i++) {
        if (size == 2) {
            memcpy(&h, raw + 2 * i, 2);
            f[i] = emu_from_bf16(h);

        } else {
            f[i] = emu_from_e4m3(raw[i]);
        }
    }
}


WGMMA_CLONES static void
product_sum(float *d, const float *a, const float *b, uint32_t n, uint32_t k,
    int add)
{
    float     sum[COLS_MAX], x;
    uint32_t  m, i, j;

    for (m = 0; m < ROWS; m++) {
        for (j = 0; j < n; j++) {
            sum[j] = 0.0f;
        }

        for (i = 0; i < k; i++) {
            x = a[m * k + i];

            for (j = 0; j < n; j++) {
                sum[j] += x * b[i * n + j];
            }
        }

        for (j = 0; j < n; j++) {
            d[m * n + j] = add ? d[m * n + j] + sum[j] : sum[j];
        }
    }
}
