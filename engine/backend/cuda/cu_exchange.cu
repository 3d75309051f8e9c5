#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_exchange.h"
#include "backend/cuda/cu_pairs.cuh"
#include "backend/cuda/cu_util.cuh"


#define EX_COPY  128                 /* threads that copy a row */
#define EX_ROWS  8                   /* at once, of a large block */


/* What the threads of a row do, and how many rows the others take on. */

static __device__ __forceinline__ uint32_t
exchange_item(void)
{
    return blockIdx.x * (blockDim.x / EX_COPY) + threadIdx.x / EX_COPY;
}


static __device__ __forceinline__ uint32_t
exchange_items(void)
{
    return gridDim.x * (blockDim.x / EX_COPY);
}


/* A launch for `n` rows; with e->blocks no more of them, in large ones. */

static dim3
exchange_grid(const cu_exchange_t *e, uint32_t n)
{
    uint32_t  most;

    most = (n + EX_ROWS - 1) / EX_ROWS;

    return dim3(e->blocks == 0 ? n : most < e->blocks ? most : e->blocks);
}


static dim3
exchange_block(const cu_exchange_t *e)
{
    return dim3(e->blocks == 0 ? EX_COPY : EX_COPY * EX_ROWS);
}


/* A row to a rank that it may go to. */

static __device__ void
exchange_send_row(const cu_exchange_t &e, const cu_peers_t &to,
    const cu_exchange_send_t &s, uint32_t row, uint32_t d)
{
    int           wanted, real, slot;
    size_t        at, there;
    uint32_t      i, k, n, h, lane, expert;
    uint4        *y;
    const uint4  *x;

    lane = threadIdx.x % EX_COPY;
    at = (size_t) e.rank * e.max_rows + row;
    there = (size_t) to.from[d] * e.max_rows + row;
    real = (s.pos == NULL || s.pos[row] != CU_NO_ROW);
    wanted = 0;

    for (k = 0; k < e.top_k; k++) {
        expert = (uint32_t) s.id[(size_t) row * e.top_k + k];
        h = s.first[expert];
        n = s.first[expert + 1] - h;
        h += (n > 1) ? (uint32_t) ((at + expert) % n) : 0;

        slot = (real && s.home[h] == d) ? (int) s.slot[h] : -1;
        wanted |= (slot >= 0);

        if (lane == k) {
            to.slot[d][there * e.top_k + k] = slot;

            if (d == 0 && real && s.load != NULL) {
                atomicAdd(&s.load[expert], 1u);
            }
        }
    }

    if (!wanted) {
        return;
    }

    x = (const uint4 *) ((const uint8_t *) s.act.x
                         + (size_t) row * e.row_bytes);
    y = (uint4 *) (to.x[d] + there * e.row_bytes);

    for (i = lane; i < e.row_bytes / 16; i += EX_COPY) {
        y[i] = x[i];
    }

    for (i = lane; i < e.groups; i += EX_COPY) {
        to.scale[d][there * e.groups + i] =
            s.act.scale[(size_t) i * s.act.ld_scale + row];
    }
}


static __global__ void __launch_bounds__(EX_COPY * EX_ROWS)
exchange_send(cu_exchange_t e, cu_peers_t to, cu_exchange_send_t s)
{
    uint32_t  i;

    cu_begin();

    if ((s.stop[0] | s.stop[1]) != 0) {
        return;
    }

    if (blockIdx.x == 0 && threadIdx.x < e.ranks) {
        to.rows[threadIdx.x][to.from[threadIdx.x]] = s.rows;
    }

    for (i = exchange_item(); i < s.rows * e.ranks; i += exchange_items()) {
        exchange_send_row(e, to, s, i % s.rows, i / s.rows);
    }
}


int
cu_exchange_send(const cu_exchange_t *e, const cu_peers_t *to,
    const cu_exchange_send_t *s, void *stream)
{
    uint32_t  n;

    n = (s->rows > 0) ? s->rows * e->ranks : 1;

    return CU_LAUNCH(exchange_send, exchange_grid(e, n), exchange_block(e), 0,
                     (cudaStream_t) stream, *e, *to, *s);
}


/* A block for a slot, one more for the end; a list of pairs for a rank. */

static __global__ void
__launch_bounds__(PAIRS_LARGE)
exchange_pairs(cu_exchange_t e, cu_peers_t peers, cu_exchange_pairs_t p)
{
    pairs_t   s;
    uint32_t  n, lane;

    CU_STATIC_SHARED(uint32_t, part, [PAIRS_SHARED]);

    cu_begin();

    if (*p.stop != 0) {
        if (threadIdx.x == 0) {
            p.offset[blockIdx.x] = 0;
        }

        return;
    }

    lane = threadIdx.x % 32;
    n = (lane < e.ranks)
        ? min(peers.rows[e.rank][lane], e.most) * e.top_k : 0;

    s.of = peers.slot[e.rank];
    s.stride = (size_t) e.max_rows * e.top_k;
    s.pos = NULL;
    s.top_k = e.top_k;
    pairs_lists(&s, n);

    (void) pairs_sort(s, p.slots, p.offset, part,
                      [&](uint32_t at, uint32_t r, uint32_t i) {
        p.row[at] = r * e.max_rows + i / e.top_k;

        if (peers.inbox[r] == NULL) {
            p.y[at] = peers.contrib[r] + (size_t) i * e.hidden;

        } else {
            p.to[at] = peers.inbox[r] + (size_t) i * e.hidden;
        }
    });
}


int
cu_exchange_pairs(const cu_exchange_t *e, const cu_peers_t *peers,
    const cu_exchange_pairs_t *p, void *stream)
{
    size_t  most;

    most = (size_t) e->ranks * e->most * e->top_k;

    return CU_LAUNCH(exchange_pairs, dim3(p->slots + 1),
                     dim3(PAIRS_THREADS(most)), 0, (cudaStream_t) stream, *e,
                     *peers, *p);
}


static __global__ void
exchange_take(cu_exchange_t e, const uint8_t *x, const float *scale,
    const uint32_t *row, const uint32_t *n, cu_act_t act)
{
    size_t        from;
    uint32_t      i;
    uint4        *y;
    const uint4  *v;

    cu_begin();

    if (blockIdx.x >= *n) {
        return;
    }

    from = row[blockIdx.x];
    v = (const uint4 *) (x + from * e.row_bytes);
    y = (uint4 *) ((uint8_t *) act.x + (size_t) blockIdx.x * e.row_bytes);

    for (i = threadIdx.x; i < e.row_bytes / 16; i += EX_COPY) {
        y[i] = v[i];
    }

    for (i = threadIdx.x; i < e.groups; i += EX_COPY) {
        act.scale[(size_t) i * act.ld_scale + blockIdx.x] =
            scale[from * e.groups + i];
    }
}


int
cu_exchange_take(const cu_exchange_t *e, const uint8_t *x, const float *scale,
    const uint32_t *row, const uint32_t *n, uint32_t max,
    const cu_act_t *act, void *stream)
{
    if (max == 0) {
        return 0;
    }

    return CU_LAUNCH(exchange_take, dim3(max), dim3(EX_COPY), 0,
                     (cudaStream_t) stream, *e, x, scale, row, n, *act);
}


static __global__ void __launch_bounds__(EX_COPY * EX_ROWS)
exchange_return(cu_exchange_t e, const uint16_t *stage, uint16_t *const *to,
    const uint32_t *n)
{
    uint32_t         i, p, lane;
    uint16_t        *y;
    const uint16_t  *x;

    cu_begin();

    lane = threadIdx.x % EX_COPY;

    for (p = exchange_item(); p < *n; p += exchange_items()) {
        x = stage + (size_t) p * e.hidden;
        y = to[p];

        if (e.hidden % 8 != 0) {
            for (i = lane; i < e.hidden; i += EX_COPY) {
                y[i] = x[i];
            }

            continue;
        }

        for (i = lane * 8; i < e.hidden; i += EX_COPY * 8) {
            *(uint4 *) (y + i) = *(const uint4 *) (x + i);
        }
    }
}


int
cu_exchange_return(const cu_exchange_t *e, const uint16_t *stage,
    uint16_t *const *to, const uint32_t *n, uint32_t max, void *stream)
{
    if (max == 0) {
        return 0;
    }

    return CU_LAUNCH(exchange_return, exchange_grid(e, max),
                     exchange_block(e), 0, (cudaStream_t) stream, *e, stage,
                     to, n);
}


static __global__ void
exchange_widen(cu_exchange_t e, const uint16_t *inbox, float *contrib)
{
    size_t    at;
    uint32_t  i;

    cu_begin();

    at = (size_t) blockIdx.x * e.hidden;

    for (i = threadIdx.x; i < e.hidden; i += EX_COPY) {
        contrib[at + i] = cu_from_bf16(inbox[at + i]);
    }
}


int
cu_exchange_widen(const cu_exchange_t *e, const uint16_t *inbox,
    uint32_t pairs, float *contrib, void *stream)
{
    if (pairs == 0) {
        return 0;
    }

    return CU_LAUNCH(exchange_widen, dim3(pairs), dim3(EX_COPY), 0,
                     (cudaStream_t) stream, *e, inbox, contrib);
}


/* A block for a pair; it comes from one rank. */

static __global__ void
exchange_home(cu_exchange_t e, cu_exchange_home_t h, float *contrib)
{
    size_t           at;
    uint32_t         i, r;
    const float     *exact;
    const uint16_t  *x;

    cu_begin();

    for (r = 0; r < e.ranks; r++) {
        if (h.slot[r] != NULL && h.slot[r][blockIdx.x] >= 0) {
            break;
        }
    }

    if (r == e.ranks && h.inbox == NULL) {
        return;                      /* it is there */
    }

    at = (size_t) blockIdx.x * e.hidden;

    if (h.inbox == NULL) {
        exact = (const float *) h.box[r];

        for (i = threadIdx.x; i < e.hidden; i += EX_COPY) {
            contrib[at + i] = exact[at + i];
        }

        return;
    }

    x = (r < e.ranks) ? (const uint16_t *) h.box[r] : h.inbox;

    for (i = threadIdx.x; i < e.hidden; i += EX_COPY) {
        contrib[at + i] = cu_from_bf16(x[at + i]);
    }
}


int
cu_exchange_home(const cu_exchange_t *e, const cu_exchange_home_t *h,
    uint32_t pairs, float *contrib, void *stream)
{
    if (pairs == 0) {
        return 0;
    }

    return CU_LAUNCH(exchange_home, dim3(pairs), dim3(EX_COPY), 0,
                     (cudaStream_t) stream, *e, *h, contrib);
}
