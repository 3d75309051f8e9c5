/*
 * The emulator's mbarriers, bulk copies and products: layouts held against
 * float64, and what is wrong seen.
 */

#include "backend/cuda/cu_launch.cuh"
#include "backend/cuda/cu_ptx.cuh"
#include "test_cuda_util.h"


#define K_ALL   64                   /* elements of a BF16 row of 128 bytes */


static float
bf16(uint16_t h)
{
    return emu_from_bf16(h);
}


/* --- products ---------------------------------------------------------- */

typedef struct {
    uint64_t  bar;
    int       wrong;
} head_t;

/*
 * A and B come in boxes of 128 bytes by rows; along K, [rows][64], or with
 * the rows inside, [64 k][64 rows], a box for each 64 rows.
 */

template <int N, int TA, int TB, int RS>
static __global__ void
kernel_bf16(const __grid_constant__ CUtensorMap ma,
    const __grid_constant__ CUtensorMap mb, const uint16_t *a, float *out)
{
    int        i, k, r, c, lane, warp;
    float      d[N / 2];
    uint32_t   regs[4];
    uint64_t   da, db;

    CU_SHARED(uint8_t, smem);
    CU_STATIC_SHARED(head_t, head, );

    uint8_t  *sa = smem, *sb = smem + 8192;

    if (threadIdx.x == 0) {
        cu_mbar_init(&head.bar, 1);
        cu_fence_init();
    }

    __syncthreads();

    if (threadIdx.x == 0) {
        cu_mbar_expect(&head.bar, 8192 + N * 128);
        cu_tma_load_2d(sa, &ma, &head.bar, 0, 0);

        if (TB) {
            for (i = 0; i < N / 64; i++) {
                cu_tma_load_2d(sb + i * 8192, &mb, &head.bar, i * 64, 0);
            }

        } else {
            cu_tma_load_2d(sb, &mb, &head.bar, 0, 0);
        }
    }

    cu_mbar_wait(&head.bar, 0);

    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;

    for (i = 0; i < N / 2; i++) {
        d[i] = 1.0f;
    }

    cu_wgmma_fence();

    for (k = 0; k < 4; k++) {
        db = TB ? cu_desc_mn(sb + 2048 * k, 8192) : cu_desc_k(sb + 32 * k);

        if (RS) {
            for (r = 0; r < 4; r++) {
                i = (16 * warp + lane / 4 + 8 * (r % 2)) * K_ALL + 16 * k
                    + 2 * (lane % 4) + 8 * (r / 2);
                memcpy(&regs[r], a + i, 4);
            }

            cu_wgmma_bf16_rs<N, TB>(d, regs[0], regs[1], regs[2], regs[3],
                                    db, 1);

        } else {
            da = TA ? cu_desc_mn(sa + 2048 * k, 8192)
                    : cu_desc_k(sa + 32 * k);
            cu_wgmma_bf16<N, TA, TB>(d, da, db, 1);
        }
    }

    cu_wgmma_commit();
    cu_wgmma_wait<0>();

    for (i = 0; i < N / 2; i++) {
        r = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
        c = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        out[r * N + c] = d[i];
    }
}


template <int N, int TA, int TB, int RS>
static void
product_bf16(void)
{
    int           i, j, k;
    void         *da, *db;
    float        *out, *dout;
    double        sum, size;
    uint16_t     *a, *b;
    CUtensorMap   ma, mb;

    a = (uint16_t *) malloc(64 * K_ALL * 2);
    b = (uint16_t *) malloc(N * K_ALL * 2);
    out = (float *) malloc(64 * N * 4);

    for (i = 0; i < 64 * K_ALL; i++) {
        a[i] = emu_to_bf16(cu_normal());
    }

    for (i = 0; i < N * K_ALL; i++) {
        b[i] = emu_to_bf16(cu_normal());
    }

    da = cu_put(a, 64 * K_ALL * 2);
    db = cu_put(b, N * K_ALL * 2);
    dout = (float *) cu_put(NULL, 64 * N * 4);

    CU_OK(cu_map_2d(&ma, CU_BF16, da, 64, 64, 64, 64));

    if (TB) {
        CU_OK(cu_map_2d(&mb, CU_BF16, db, N, 64, 64, 64));
    } else {
        CU_OK(cu_map_2d(&mb, CU_BF16, db, 64, N, 64, N));
    }

    CU_OK(CU_SMEM((kernel_bf16<N, TA, TB, RS>), 8192 + N * 128));
    CU_OK(CU_LAUNCH((kernel_bf16<N, TA, TB, RS>), 1, 128, 8192 + N * 128,
                    NULL, ma, mb, (const uint16_t *) da, dout));
    cu_get(out, dout, 64 * N * 4);

    for (i = 0; i < 64; i++) {
        for (j = 0; j < N; j++) {
            sum = 1;
            size = 1;

            for (k = 0; k < K_ALL; k++) {
                double  x = bf16(TA ? a[k * 64 + i] : a[i * K_ALL + k]);
                double  y = bf16(TB ? b[k * N + j] : b[j * K_ALL + k]);

                sum += x * y;
                size += fabs(x * y);
            }

            assert_true(fabs(out[i * N + j] - sum) <= size * 1e-6);
        }
    }

    free(a);
    free(b);
    free(out);
    CU_OK(cudaFree(da));
    CU_OK(cudaFree(db));
    CU_OK(cudaFree(dout));
}


static void
test_bf16(void **)
{
    product_bf16<8, 0, 0, 0>();
    product_bf16<64, 0, 0, 0>();
    product_bf16<256, 0, 0, 0>();
    product_bf16<64, 1, 0, 0>();
    product_bf16<64, 0, 1, 0>();
    product_bf16<128, 1, 1, 0>();
    product_bf16<16, 0, 0, 1>();
    product_bf16<256, 0, 1, 1>();
}


template <int N, int RS>
static __global__ void
kernel_e4m3(const __grid_constant__ CUtensorMap ma,
    const __grid_constant__ CUtensorMap mb, const uint8_t *a, float *out)
{
    int        i, k, r, c, lane, warp;
    float      d[N / 2];
    uint32_t   regs[4];

    CU_SHARED(uint8_t, smem);
    CU_STATIC_SHARED(head_t, head, );

    uint8_t  *sa = smem, *sb = smem + 8192;

    if (threadIdx.x == 0) {
        cu_mbar_init(&head.bar, 1);
        cu_fence_init();
    }

    __syncthreads();

    if (threadIdx.x == 0) {
        cu_mbar_expect(&head.bar, 8192 + N * 128);
        cu_tma_load_2d(sa, &ma, &head.bar, 0, 0);
        cu_tma_load_2d(sb, &mb, &head.bar, 0, 0);
    }

    cu_mbar_wait(&head.bar, 0);

    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;

    cu_wgmma_fence();

    for (k = 0; k < 4; k++) {
        if (RS) {
            for (r = 0; r < 4; r++) {
                i = (16 * warp + lane / 4 + 8 * (r % 2)) * 128 + 32 * k
                    + 4 * (lane % 4) + 16 * (r / 2);
                memcpy(&regs[r], a + i, 4);
            }

            cu_wgmma_e4m3_rs<N>(d, regs[0], regs[1], regs[2], regs[3],
                                cu_desc_k(sb + 32 * k), k != 0);

        } else {
            cu_wgmma_e4m3<N>(d, cu_desc_k(sa + 32 * k),
                             cu_desc_k(sb + 32 * k), k != 0);
        }
    }

    cu_wgmma_commit();
    cu_wgmma_wait<0>();

    for (i = 0; i < N / 2; i++) {
        r = 16 * warp + lane / 4 + 8 * (i / 2 % 2);
        c = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        out[r * N + c] = d[i];
    }
}


template <int N, int RS>
static void
product_e4m3(void)
{
    int           i, j, k;
    void         *da, *db;
    float        *out, *dout;
    double        sum, size, x, y;
    uint8_t      *a, *b;
    CUtensorMap   ma, mb;

    a = (uint8_t *) malloc(64 * 128);
    b = (uint8_t *) malloc(N * 128);
    out = (float *) malloc(64 * N * 4);

    for (i = 0; i < 64 * 128; i++) {
        a[i] = emu_to_e4m3(cu_normal());
    }

    for (i = 0; i < N * 128; i++) {
        b[i] = emu_to_e4m3(cu_normal() * 30);
    }

    da = cu_put(a, 64 * 128);
    db = cu_put(b, N * 128);
    dout = (float *) cu_put(NULL, 64 * N * 4);

    CU_OK(cu_map_2d(&ma, CU_BYTES, da, 128, 64, 128, 64));
    CU_OK(cu_map_2d(&mb, CU_BYTES, db, 128, N, 128, N));
    CU_OK(CU_LAUNCH((kernel_e4m3<N, RS>), 1, 128, 8192 + N * 128, NULL, ma,
                    mb, (const uint8_t *) da, dout));
    cu_get(out, dout, 64 * N * 4);

    for (i = 0; i < 64; i++) {
        for (j = 0; j < N; j++) {
            sum = 0;
            size = 0;

            for (k = 0; k < 128; k++) {
                x = emu_from_e4m3(a[i * 128 + k]);
                y = emu_from_e4m3(b[j * 128 + k]);
                sum += x * y;
                size += fabs(x * y);
            }

            assert_true(fabs(out[i * N + j] - sum) <= size * 5e-4);
        }
    }

    free(a);
    free(b);
    free(out);
    CU_OK(cudaFree(da));
    CU_OK(cudaFree(db));
    CU_OK(cudaFree(dout));
}


static void
test_e4m3(void **)
{
    product_e4m3<8, 0>();
    product_e4m3<128, 0>();
    product_e4m3<32, 1>();
}


/* --- copies ------------------------------------------------------------ */

/* Boxes at odd places, zero outside, out again through a store. */

static __global__ void
kernel_boxes(const __grid_constant__ CUtensorMap from,
    const __grid_constant__ CUtensorMap to, int c0, int c1, uint8_t *plain)
{
    int  i;

    CU_SHARED(uint8_t, smem);
    CU_STATIC_SHARED(head_t, head, );

    if (threadIdx.x == 0) {
        cu_mbar_init(&head.bar, 1);
    }

    __syncthreads();

    if (threadIdx.x == 0) {
        cu_mbar_expect(&head.bar, 128 * 16);
        cu_tma_load_2d(smem, &from, &head.bar, c0, c1);
    }

    cu_mbar_wait(&head.bar, 0);

    for (i = 0; i < 16; i++) {
        plain[i * 128 + threadIdx.x] =
            smem[i * 128 + (threadIdx.x ^ ((i & 7) << 4))];
    }

    cu_fence_async();
    __syncthreads();

    if (threadIdx.x == 0) {
        cu_tma_store_2d(&to, smem, c0, c1);
        cu_bulk_commit();
        cu_bulk_wait<0>();
    }
}


static void
test_boxes(void **)
{
    int           i, j, r, c;
    void         *a, *b, *p;
    uint8_t       in[20 * 304], out[20 * 304], plain[16 * 128], want;
    CUtensorMap   from, to;

    for (i = 0; i < (int) sizeof(in); i++) {
        in[i] = (uint8_t) cu_random(256);
    }

    a = cu_put(in, sizeof(in));
    b = cu_put(in, sizeof(in));
    p = cu_put(NULL, sizeof(plain));

    CU_OK(cu_map_2d_ld(&from, CU_BYTES, a, 300, 20, 304, 128, 16));
    CU_OK(cu_map_2d_ld(&to, CU_BYTES, b, 300, 20, 304, 128, 16));

    CU_OK(cudaMemset(b, 0xee, sizeof(in)));
    CU_OK(CU_LAUNCH(kernel_boxes, 1, 128, 2048, NULL, from, to, 208, 9,
                    (uint8_t *) p));
    cu_get(plain, p, sizeof(plain));
    cu_get(out, b, sizeof(out));

    for (i = 0; i < 16; i++) {
        for (j = 0; j < 128; j++) {
            r = 9 + i;
            c = 208 + j;
            want = (r < 20 && c < 300) ? in[r * 304 + c] : 0;
            assert_int_equal(plain[i * 128 + j], want);
        }
    }

    for (i = 0; i < 20; i++) {
        for (j = 0; j < 304; j++) {
            assert_int_equal(out[i * 304 + j],
                             (i >= 9 && j >= 208 && j < 300)
                             ? in[i * 304 + j] : 0xee);
        }
    }

    /* what the driver refuses */

    assert_int_equal(cu_map_2d_ld(&to, CU_BYTES, b, 300, 20, 300, 128, 16),
                     cudaErrorInvalidValue);
    assert_int_equal(cu_map_2d(&to, CU_BF16, (char *) b + 8, 64, 20, 64, 16),
                     cudaErrorInvalidValue);
    assert_int_equal(cu_map_2d(&to, CU_BF16, b, 64, 20, 64, 257),
                     cudaErrorInvalidValue);

    CU_OK(cudaFree(a));
    CU_OK(cudaFree(b));
    CU_OK(cudaFree(p));
}


/*
 * A ring of four stages between a producing warp and the rest, many times
 * round; sums of what came through.
 */

static __global__ void
kernel_ring(const int *in, int n, long long *out)
{
    int        i, stage, turn;
    long long  sum;

    CU_SHARED(int, buf);
    CU_STATIC_SHARED(uint64_t, full, [4]);
    CU_STATIC_SHARED(uint64_t, empty, [4]);

    if (threadIdx.x == 0) {
        for (i = 0; i < 4; i++) {
            cu_mbar_init(&full[i], 1);
            cu_mbar_init(&empty[i], 64);
        }

        cu_fence_init();
    }

    __syncthreads();

    if (threadIdx.x >= 64) {
        if (threadIdx.x == 64) {
            for (i = 0; i < n; i++) {
                stage = i % 4;
                turn = i / 4;
                cu_mbar_wait(&empty[stage], (uint32_t) ~turn & 1);
                cu_mbar_expect(&full[stage], 256);
                cu_bulk_load(buf + stage * 64, in + i * 64, 256,
                             &full[stage]);
            }
        }

    } else {
        sum = 0;

        for (i = 0; i < n; i++) {
            stage = i % 4;
            turn = i / 4;
            cu_mbar_wait(&full[stage], (uint32_t) turn & 1);
            sum += buf[stage * 64 + threadIdx.x];
            cu_mbar_arrive(&empty[stage]);
        }

        out[threadIdx.x] = sum;
    }
}


/* The same by the threads' own copies of 16 bytes. */

static __global__ void
kernel_copies(const int *in, int n, long long *out)
{
    int        i;
    long long  sum;

    CU_SHARED(int, buf);

    cu_copy16(buf + threadIdx.x * 4, in + threadIdx.x * 4);
    cu_copy_commit();
    sum = 0;

    for (i = 0; i < n; i++) {
        if (i + 1 < n) {
            cu_copy16(buf + (i + 1) % 2 * 256 + threadIdx.x * 4,
                      in + (i + 1) * 256 + threadIdx.x * 4);
        }

        cu_copy_commit();
        cu_copy_wait<1>();
        __syncthreads();
        sum += buf[i % 2 * 256 + threadIdx.x * 4 + 3]
               + buf[i % 2 * 256 + (threadIdx.x + 1) % 64 * 4];
        __syncthreads();
    }

    out[threadIdx.x] = sum;
}


static void
test_rings(void **)
{
    int         in[64 * 64 * 4], i, k;
    int        *d;
    long long   out[64], *e, sum;

    for (i = 0; i < 64 * 64 * 4; i++) {
        in[i] = (int) cu_random(1000000);
    }

    d = (int *) cu_put(in, sizeof(in));
    e = (long long *) cu_put(NULL, sizeof(out));

    CU_OK(CU_LAUNCH(kernel_ring, 2, 96, 1024, NULL, (const int *) d, 64, e));
    cu_get(out, e, sizeof(out));

    for (k = 0; k < 64; k++) {
        sum = 0;

        for (i = 0; i < 64; i++) {
            sum += in[i * 64 + k];
        }

        assert_true(out[k] == sum);
    }

    CU_OK(CU_LAUNCH(kernel_copies, 1, 64, 2048, NULL, (const int *) d, 64,
                    e));
    cu_get(out, e, sizeof(out));

    for (k = 0; k < 64; k++) {
        sum = 0;

        for (i = 0; i < 64; i++) {
            sum += in[i * 256 + k * 4 + 3] + in[i * 256 + (k + 1) % 64 * 4];
        }

        assert_true(out[k] == sum);
    }

    CU_OK(cudaFree(d));
    CU_OK(cudaFree(e));
}


/* 8 x 8 matrices in, and out transposed. */

static __global__ void
kernel_matrices(const uint16_t *in, uint16_t *out)
{
    int       i;
    uint32_t  r[4];

    CU_SHARED(uint16_t, s);

    for (i = 0; i < 8; i++) {
        s[i * 32 + threadIdx.x] = in[i * 32 + threadIdx.x];
    }

    __syncwarp();
    cu_matrix_load_x4(r, s + threadIdx.x * 8);
    cu_matrix_store_x4_t(s + 256 + threadIdx.x * 8, r);
    __syncwarp();
    cu_matrix_load_x4_t(r, s + threadIdx.x * 8);
    cu_matrix_store_x4(s + 512 + threadIdx.x * 8, r);
    __syncwarp();

    for (i = 0; i < 16; i++) {
        out[i * 32 + threadIdx.x] = s[256 + i * 32 + threadIdx.x];
    }
}


static void
test_matrices(void **)
{
    int        i, m, r, c;
    void      *d, *e;
    uint16_t   in[256], out[512];

    for (i = 0; i < 256; i++) {
        in[i] = (uint16_t) cu_random(65536);
    }

    d = cu_put(in, sizeof(in));
    e = cu_put(NULL, sizeof(out));
    CU_OK(CU_LAUNCH(kernel_matrices, 1, 32, 1536, NULL,
                    (const uint16_t *) d, (uint16_t *) e));
    cu_get(out, e, sizeof(out));

    for (i = 0; i < 256; i++) {
        m = i / 64;
        r = i % 64 / 8;
        c = i % 8;
        assert_int_equal(out[i], in[m * 64 + c * 8 + r]);
        assert_int_equal(out[256 + i], in[m * 64 + c * 8 + r]);
    }

    CU_OK(cudaFree(d));
    CU_OK(cudaFree(e));
}


static void
test_short(void **)
{
    int       i, k;
    float     f[4];
    uint32_t  v;

    for (i = 0; i < 256; i++) {
        cu_e4m3x4(f, 0x01010101u * (uint32_t) i);

        if ((i & 0x7f) != 0x7f) {
            v = cu_pack_e4m3(f[0], f[1], f[2], f[3]);
            assert_int_equal(v, 0x01010101u * (uint32_t) i);
        }
    }

    assert_int_equal(cu_pack_bf16(1.0f, -2.0f), 0xc0003f80);

    for (k = 0; k < 8; k++) {
        assert_int_equal(cu_logic<0xea>(k & 4 ? ~0u : 0, k & 2 ? ~0u : 0,
                                        k & 1 ? ~0u : 0),
                         (0xea >> k & 1) ? ~0u : 0);
    }

    assert_int_equal(__byte_perm(0x33221100, 0x77665544, 0x6240), 0x66224400);
}


/* --- what is wrong ----------------------------------------------------- */

static __global__ void
kernel_wrong(int what, const uint8_t *in, float *out)
{
    int    i;
    float  d[4];

    CU_SHARED(uint8_t, smem);
    CU_STATIC_SHARED(uint64_t, bar, );

    for (i = 0; i < 16; i++) {
        smem[i * 128 + threadIdx.x] = 0;
    }

    for (i = 16; i < 128; i++) {
        smem[i * 128 + threadIdx.x] = 0;
    }

    if (threadIdx.x == 0 && what != 0) {
        cu_mbar_init(&bar, 1);
    }

    __syncthreads();

    switch (what) {

    case 0:
        cu_mbar_wait(&bar, 0);
        break;

    case 1:
        /* bytes that never come */
        if (threadIdx.x == 0) {
            cu_mbar_expect(&bar, 257);
            cu_bulk_load(smem, in, 256, &bar);
        }

        cu_mbar_wait(&bar, 0);
        break;

    case 2:
        if (threadIdx.x == 0) {
            cu_mbar_expect(&bar, 256);
            cu_bulk_load(smem, in, 256, &bar);
        }

        break;

    case 3:
        if (threadIdx.x == 0) {
            cu_mbar_arrive(&bar);
            cu_mbar_expect(&bar, 16);
            cu_mbar_arrive(&bar);
        }

        break;

    case 4:
        if (threadIdx.x == 0) {
            cu_bulk_store(out, smem, 256);
            cu_bulk_commit();
        }

        break;

    case 5:
        cu_wgmma_bf16<8>(d, cu_desc_k(smem), cu_desc_k(smem + 8192), 0);
        break;

    case 6:
        cu_wgmma_fence();
        cu_wgmma_bf16<8>(d, cu_desc_k(smem), cu_desc_k(smem + 8192), 0);
        cu_wgmma_commit();
        break;

    case 7:
        cu_wgmma_fence();
        cu_wgmma_bf16<8>(d, cu_desc_k(smem), cu_desc_k(smem + 8192), 0);
        cu_wgmma_commit();
        __syncthreads();
        smem[threadIdx.x] = 1;
        __syncthreads();
        cu_wgmma_wait<0>();
        break;

    case 8:
        if (threadIdx.x < 96) {
            cu_wgmma_fence();
            cu_wgmma_bf16<8>(d, cu_desc_k(smem), cu_desc_k(smem + 8192), 0);
            cu_wgmma_commit();
            cu_wgmma_wait<0>();
        }

        break;

    case 9:
        cu_wgmma_fence();
        cu_wgmma_bf16<8>(d, cu_desc_k(smem), cu_desc_k(smem + 16384 - 512),
                         0);
        break;

    case 10:
        /* read before it is there: no number */
        cu_wgmma_fence();
        cu_wgmma_bf16<8>(d, cu_desc_k(smem), cu_desc_k(smem + 8192), 0);
        cu_wgmma_commit();
        out[threadIdx.x] = d[0];
        cu_wgmma_wait<0>();
        out[128 + threadIdx.x] = d[0];
        break;
    }
}


static void
wrong(int what)
{
    void  *in, *out;

    in = cu_put(NULL, 1024);
    out = cu_put(NULL, 1024);
    (void) CU_LAUNCH(kernel_wrong, 1, 128, 16384, NULL, what,
                     (const uint8_t *) in, (float *) out);
    (void) cudaDeviceSynchronize();
}


static void
wrong_box(int c0)
{
    void         *a, *p;
    CUtensorMap   map;

    a = cu_put(NULL, 20 * 304);
    p = cu_put(NULL, 16 * 128);
    CU_OK(cu_map_2d_ld(&map, CU_BYTES, a, 300, 20, 304, 128, 16));
    (void) CU_LAUNCH(kernel_boxes, 1, 128, 2048, NULL, map, map, c0, 9,
                     (uint8_t *) p);
    (void) cudaDeviceSynchronize();
}


static void
test_wrong(void **)
{
    int     i;
    void   *in, *out;
    float   d[256];

    cu_dies(wrong, 0, "an mbarrier that was not made");
    cu_dies(wrong, 1, "the phase of an mbarrier");
    cu_dies(wrong, 2, "the block ends while a bulk copy");
    cu_dies(wrong, 3, "more than the 1 arrivals of a phase");
    cu_dies(wrong, 4, "the block ends while a bulk store");
    cu_dies(wrong, 5, "a product without cu_wgmma_fence()");
    cu_dies(wrong, 6, "products that it did not wait for");
    cu_dies(wrong, 7, "shared memory was overwritten while a product");
    cu_dies(wrong, 8, "the others of its warpgroup to issue a product");
    cu_dies(wrong, 9, "are not shared memory of this block");
    cu_dies(wrong_box, 200, "from element 200, not at 16 bytes");

    in = cu_put(NULL, 1024);
    out = cu_put(NULL, 1024);
    CU_OK(CU_LAUNCH(kernel_wrong, 1, 128, 16384, NULL, 10,
                    (const uint8_t *) in, (float *) out));
    cu_get(d, out, sizeof(d));

    for (i = 0; i < 128; i++) {
        assert_true(isnan(d[i]));
        assert_true(d[128 + i] == 0.0f);
    }

    CU_OK(cudaFree(in));
    CU_OK(cudaFree(out));
}


int
main(void)
{
    const struct CMUnitTest  tests[] = {
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_e4m3),
        cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_rings),
        cmocka_unit_test(test_matrices),
        cmocka_unit_test(test_short),
        cmocka_unit_test(test_wrong)
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
