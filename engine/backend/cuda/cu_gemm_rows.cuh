/*
 * FP8 with many rows: tiles of 128 rows by 128 outputs, where the rows are the
 * 64-row operand, so that a thread has two rows and two scales of them, and one
 * of the matrix.  With the outputs as that operand, as in decode, it has 32
 * rows, and multiplying with their scales takes the time of the products.
 *
 * One matrix: the next stage's products are under way while this one's are
 * added up.  Two: there are no registers for that, and the other warpgroup's
 * are.
 *
 * Sums of thread: rows 64 g + 16 w + lane / 4 and 8 more, of warp w in
 * warpgroup g; outputs 8 j + 2 (lane % 4) and the next one.
 */

#ifndef CU_GEMM_ROWS_CUH
#define CU_GEMM_ROWS_CUH


#define ROWS_TILE  128


/* One stage's products into `part`. */

static __device__ __forceinline__ void
rows_begin(float *part, const uint8_t *x, const uint8_t *w)
{
    int  k;

    cu_wgmma_hold<128>(part);
    cu_wgmma_fence();

#pragma unroll
    for (k = 0; k < 4; k++) {
        cu_wgmma_e4m3<128>(part, cu_desc_k(x + 32 * k), cu_desc_k(w + 32 * k),
                           k > 0);
    }

    cu_wgmma_commit();
}


/* d (+)= part times the scales of both rows. */

static __device__ __forceinline__ void
rows_add(float *d, float *part, float lo, float hi, int first)
{
    int  i;

    cu_wgmma_hold<128>(part);

#pragma unroll
    for (i = 0; i < 64; i++) {
        d[i] = __fmaf_rn(part[i], i / 2 % 2 ? hi : lo, first ? 0.0f : d[i]);
    }
}


/* Of a stage: the scales of the thread's two rows. */

static __device__ __forceinline__ void
rows_scale(float *s, const float *scale, uint32_t row, float factor)
{
    s[0] = __fmul_rn(scale[row], factor);
    s[1] = __fmul_rn(scale[row + 8], factor);
}


/*
 * A row of four lanes has 32 outputs, eight times two of each lane's: gives
 * every lane eight neighbouring ones, for stores of 16 bytes.  v[j] is two
 * BF16 of outputs 8 j + 2 lane; then v[0] … v[3] are outputs 8 lane … 8 lane +
 * 7.
 */

static __device__ __forceinline__ void
rows_turn(uint32_t *v, uint32_t lane)
{
    uint32_t  a, b;

    a = (lane & 1) ? v[0] : v[1];
    b = (lane & 1) ? v[2] : v[3];
    a = __shfl_xor_sync(0xffffffff, a, 1);
    b = __shfl_xor_sync(0xffffffff, b, 1);

    if (lane & 1) {
        v[0] = a;
        v[2] = b;
    } else {
        v[1] = a;
        v[3] = b;
    }

    a = (lane & 2) ? v[0] : v[2];
    b = (lane & 2) ? v[1] : v[3];
    a = __shfl_xor_sync(0xffffffff, a, 2);
    b = __shfl_xor_sync(0xffffffff, b, 2);

    if (lane & 2) {
        v[0] = a;
        v[1] = b;
    } else {
        v[2] = a;
        v[3] = b;
    }
}


/* A row's sums, every other two of `d`, to what is there; loads first. */

static __device__ __forceinline__ void
rows_store_add(const gemm_args_t &a, const gemm_tile_t &t, const float *d,
    uint32_t row)
{
    int       i;
    float    *f;
    float2    old[16];
    uint32_t  col;

    f = a.y + (size_t) (t.row + row) * a.ldy;

#pragma unroll
    for (i = 0; i < 16; i++) {
        col = t.col + 8 * i + 2 * (threadIdx.x % 4);
        old[i] = (col < a.n) ? *(const float2 *) (f + col)
                             : make_float2(0.0f, 0.0f);
    }

#pragma unroll
    for (i = 0; i < 16; i++) {
        col = t.col + 8 * i + 2 * (threadIdx.x % 4);

        if (col < a.n) {
            *(float2 *) (f + col) = make_float2(old[i].x + d[4 * i],
                                                old[i].y + d[4 * i + 1]);
        }
    }
}


/* y, of one matrix. */

static __device__ __forceinline__ void
rows_store(const gemm_args_t &a, const gemm_tile_t &t, const float *d,
    uint32_t row)
{
    int        i, k, j;
    float     *f;
    uint32_t   lane, col, v[4];
    uint16_t  *h;

    lane = threadIdx.x % 4;

#pragma unroll
    for (k = 0; k < 2; k++, row += 8) {

        if (a.narrow && !a.add && a.ldy % 8 == 0 && a.n % 8 == 0) {
            h = (uint16_t *) a.y + (size_t) (t.row + row) * a.ldy;

#pragma unroll
            for (i = 0; i < 64; i += 16) {

#pragma unroll
                for (j = 0; j < 4; j++) {
                    v[j] = cu_pack_bf16(d[i + 4 * j + 2 * k],
                                        d[i + 4 * j + 2 * k + 1]);
                }

                rows_turn(v, lane);
                col = t.col + 2 * i + 8 * lane;

                if (row < t.count && col < a.n) {
                    *(uint4 *) (h + col) = make_uint4(v[0], v[1], v[2], v[3]);
                }
            }

            continue;
        }

        if (row >= t.count) {
            continue;
        }

        if (a.add && !a.narrow && a.ldy % 2 == 0 && a.n % 2 == 0) {
            rows_store_add(a, t, d + 2 * k, row);
            continue;
        }

        if (a.narrow || a.add || a.ldy % 2 != 0 || a.n % 2 != 0) {

#pragma unroll
            for (i = 0; i < 64; i += 4) {
                col = t.col + 2 * i + 2 * lane;
                gemm_put(a, t.row + row, col, d[i + 2 * k]);
                gemm_put(a, t.row + row, col + 1, d[i + 2 * k + 1]);
            }

            continue;
        }

        f = (a.py != NULL) ? a.py[t.row + row]
                           : a.y + (size_t) (t.row + row) * a.ldy;

#pragma unroll
        for (i = 0; i < 64; i += 4) {
            col = t.col + 2 * i + 2 * lane;

            if (col < a.n) {
                *(float2 *) (f + col) = make_float2(d[i + 2 * k],
                                                    d[i + 2 * k + 1]);
            }
        }
    }
}


/* silu(g) * u as inputs of the next product; the same arithmetic as cu_act(). */

static __device__ __forceinline__ void
rows_store_act(const gemm_args_t &a, const gemm_tile_t &t, float *g,
    const float *u, uint32_t row)
{
    int        i, k;
    float      top, scale, inv;
    uint8_t   *q;
    uint32_t   lane, col, codes;

    lane = threadIdx.x % 4;

#pragma unroll
    for (i = 0; i < 64; i++) {
        col = t.col + i / 4 * 8 + 2 * lane + i % 2;
        g[i] = (col < a.n) ? g[i] / (1.0f + expf(-g[i])) * u[i] : 0.0f;
    }

#pragma unroll
    for (k = 0; k < 2; k++, row += 8) {
        top = 0.0f;

#pragma unroll
        for (i = 0; i < 64; i += 4) {
            top = fmaxf(top, fmaxf(fabsf(g[i + 2 * k]),
                                   fabsf(g[i + 2 * k + 1])));
        }

        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
        scale = fmaxf(top, 1e-4f) / 448.0f;
        inv = 1.0f / scale;

        if (row >= t.count) {
            continue;
        }

        if (lane == 0) {
            a.act.scale[(size_t) (t.col / 128) * a.act.ld_scale + t.row
                        + row] = scale;
        }

        q = (uint8_t *) a.act.x + (size_t) (t.row + row) * a.act.ld;

#pragma unroll
        for (i = 0; i < 64; i += 4) {
            col = t.col + 2 * i + 2 * lane;
            codes = cu_pack_e4m3(g[i + 2 * k] * inv, g[i + 2 * k + 1] * inv,
                                 0, 0);

            if (col + 1 < a.n) {
                *(uint16_t *) (q + col) = (uint16_t) codes;

            } else if (col < a.n) {
                q[col] = (uint8_t) codes;
            }
        }
    }
}


/* Where a computing warpgroup is in the ring of stages. */

typedef struct {
    uint32_t  stage;
    uint32_t  turn;
} rows_at_t;


template <uint32_t STAGES>
static __device__ __forceinline__ void
rows_next(rows_at_t *at)
{
    if (++at->stage == STAGES) {
        at->stage = 0;
        at->turn++;
    }
}


/* What a warpgroup has of a tile while it goes through its stages. */

typedef struct {
    gemm_head_t    *head;
    const uint8_t  *ring;
    const float    *factors;         /* of the matrix, by stage */
    const float    *factors_up;
    float           factor;          /* of the next stage, read ahead */
    float           factor_up;
    uint32_t        block;           /* its number */
    uint32_t        last;
    uint32_t        group;
    uint32_t        row;             /* of the stage's scales */
    rows_at_t       from;            /* the next stage to be begun */
    rows_at_t       to;              /* to be added up and given back */
} rows_work_t;


template <typename shape>
static __device__ __forceinline__ void
rows_start(rows_work_t *w, float *part, float *s)
{
    const uint8_t  *x;

    x = w->ring + w->from.stage * shape::stage;
    cu_mbar_wait(&w->head->full[w->from.stage], w->from.turn & 1);
    rows_begin(part, x + w->group * 8192, x + shape::x);
    rows_scale(s, (const float *) (x + shape::x + shape::w), w->row,
               w->factor);
    w->block += (w->block < w->last);
    w->factor = w->factors[w->block];
    rows_next<shape::stages>(&w->from);
}


template <typename shape>
static __device__ __forceinline__ void
rows_finish(rows_work_t *w, float *d, float *part, const float *s)
{
    rows_add(d, part, s[0], s[1], 0);
    gemm_release(&w->head->empty[w->to.stage]);
    rows_next<shape::stages>(&w->to);
}


/* One matrix: a stage is begun before the one in front of it is added up. */

template <typename shape>
static __device__ __forceinline__ void
rows_tile(rows_work_t *w, uint32_t blocks, float *d)
{
    int       i;
    float     even[64], odd[64], s[2][2];
    uint32_t  block;

#pragma unroll
    for (i = 0; i < 64; i++) {
        d[i] = 0.0f;
    }

    w->from = w->to;
    rows_start<shape>(w, even, s[0]);

    for (block = 1; block + 1 < blocks; block += 2) {
        rows_start<shape>(w, odd, s[1]);
        cu_wgmma_wait<1>();
        rows_finish<shape>(w, d, even, s[0]);

        rows_start<shape>(w, even, s[0]);
        cu_wgmma_wait<1>();
        rows_finish<shape>(w, d, odd, s[1]);
    }

    if (block < blocks) {
        rows_start<shape>(w, odd, s[1]);
        cu_wgmma_wait<1>();
        rows_finish<shape>(w, d, even, s[0]);
        cu_wgmma_wait<0>();
        rows_finish<shape>(w, d, odd, s[1]);

    } else {
        cu_wgmma_wait<0>();
        rows_finish<shape>(w, d, even, s[0]);
    }
}


/* Two matrices. */

template <typename shape>
static __device__ __forceinline__ void
rows_tile_2(rows_work_t *w, uint32_t blocks, float *d, float *e)
{
    float           part[64], s[2];
    uint32_t        block;
    const float    *scale;
    const uint8_t  *x;

    for (block = 0; block < blocks; block++) {
        x = w->ring + w->to.stage * shape::stage;
        scale = (const float *) (x + shape::x + 2 * shape::w);
        cu_mbar_wait(&w->head->full[w->to.stage], w->to.turn & 1);

        rows_begin(part, x + w->group * 8192, x + shape::x);
        rows_scale(s, scale, w->row, w->factor);
        w->block += (w->block < w->last);
        w->factor = w->factors[w->block];
        cu_wgmma_wait<0>();
        rows_add(d, part, s[0], s[1], block == 0);

        rows_begin(part, x + w->group * 8192, x + shape::x + shape::w);
        rows_scale(s, scale, w->row, w->factor_up);
        w->factor_up = w->factors_up[w->block];
        cu_wgmma_wait<0>();
        rows_add(e, part, s[0], s[1], block == 0);

        gemm_release(&w->head->empty[w->to.stage]);
        rows_next<shape::stages>(&w->to);
    }
}


template <int PARTS>
static __device__ __forceinline__ void
gemm_compute_rows(const gemm_args_t &a, gemm_head_t *head,
    const uint8_t *ring)
{
    typedef gemm_shape_t<GEMM_FP8, ROWS_TILE, PARTS>  shape;

    float        d[64], e[64];
    uint32_t     tile, blocks, row;
    gemm_tile_t  t;
    rows_work_t  w;

    blocks = (a.k + shape::k - 1) / shape::k;
    row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;

    w.head = head;
    w.ring = ring;
    w.group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    w.last = blocks - 1;
    w.to.stage = 0;
    w.to.turn = 0;

    for (tile = blockIdx.x; gemm_tile<ROWS_TILE>(a, head, tile, &t);
         tile += gridDim.x)
    {
        w.row = t.row % 4 + row;
        w.factors = a.m[t.group].scale + (size_t) (t.col / 128)
                                         * a.m[t.group].ld_scale;

        w.factor = w.factors[0];
        w.block = 0;

        if constexpr (PARTS == 1) {
            rows_tile<shape>(&w, blocks, d);
            rows_store(a, t, d, row);

        } else {
            w.factors_up = a.m_up[t.group].scale
                           + (size_t) (t.col / 128) * a.m_up[t.group].ld_scale;
            w.factor_up = w.factors_up[0];
            rows_tile_2<shape>(&w, blocks, d, e);
            rows_store_act(a, t, d, e, row);
        }
    }
}

#endif /* CU_GEMM_ROWS_CUH */
