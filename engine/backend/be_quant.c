/*
 * Making and reading the chunks of quantised matrices.
 */

#include <math.h>
#include <string.h>

#include "backend/be_quant.h"


#define QUANT_TINY   1e-30f          /* a scale below it is zero */
#define QUANT_TRIES  14


static void quant_int8(const float *x, uint32_t o, uint8_t *chunk);
static void quant_int4(const float *x, uint32_t o, const uint8_t *nearest,
    uint8_t *chunk);
static float quant_int4_search(const float *x, const uint8_t *nearest,
    uint8_t *code);
static float quant_int4_try(const float *x, float scale,
    const uint8_t *nearest, uint8_t *code, float *error);
static void quant_int4_nearest(uint8_t *nearest);
static void quant_f8(const float *x, uint32_t o, uint8_t *chunk);
static float quant_largest(const float *x, uint32_t n);
static uint16_t quant_bf16(float x);
static uint16_t quant_bf16_up(float x);
static float quant_float(uint16_t h);


const int8_t  be_quant_levels[16] = {
    -112, -88, -72, -56, -44, -32, -20, -9, 0, 11, 22, 32, 44, 56, 72, 96
};


size_t
be_quant_size(be_dtype_t dtype, uint32_t rows, uint32_t cols, uint32_t parts)
{
    size_t    size;
    uint64_t  panels;

    panels = (uint64_t) be_quant_part_panels(rows / parts) * parts;

    if (__builtin_mul_overflow(be_quant_panel(dtype, cols), panels, &size)) {
        return 0;
    }

    return size;
}


size_t
be_tensor_size(const be_tensor_t *t)
{
    size_t  size;

    if (t->rows == 0 || t->cols == 0 || t->parts == 0
        || t->rows % t->parts != 0)
    {
        return 0;
    }

    switch (t->dtype) {

    case BE_F32:
    case BE_BF16:
        size = (t->dtype == BE_F32) ? 4 : 2;

        if (__builtin_mul_overflow(size, t->rows, &size)
            || __builtin_mul_overflow(size, t->cols, &size))
        {
            return 0;
        }

        return size;

    case BE_F8E4M3:
    case BE_INT8:
    case BE_INT4:
        return be_quant_size(t->dtype, t->rows, t->cols, t->parts);

    default:
        return 0;
    }
}


void
be_quant_encode(be_dtype_t dtype, const float *x, uint8_t *chunk)
{
    uint8_t   nearest[255];
    uint32_t  o;

    if (dtype == BE_INT4) {
        quant_int4_nearest(nearest);
    }

    for (o = 0; o < BE_PANEL; o++) {
        switch (dtype) {

        case BE_INT8:
            quant_int8(x + o * BE_CHUNK, o, chunk);
            break;

        case BE_INT4:
            quant_int4(x + o * BE_CHUNK, o, nearest, chunk);
            break;

        default:
            quant_f8(x + o * BE_CHUNK, o, chunk);
        }
    }
}


static void
quant_int8(const float *x, uint32_t o, uint8_t *chunk)
{
    float     inverse, v;
    int8_t    q;
    uint8_t  *code;
    uint16_t  h;
    uint32_t  g, i, k;

    code = chunk + be_quant_scales(BE_INT8) + o * 4;

    for (g = 0; g < BE_CHUNK / BE_GROUP_INT8; g++) {
        h = quant_bf16_up(quant_largest(x + g * BE_GROUP_INT8, BE_GROUP_INT8)
                          / 127.0f);
        memcpy(chunk + (g * BE_PANEL + o) * 2, &h, 2);
        inverse = (h != 0) ? 1.0f / quant_float(h) : 0.0f;

        for (i = 0; i < BE_GROUP_INT8; i++) {
            k = g * BE_GROUP_INT8 + i;
            v = rintf(x[k] * inverse);
            q = (int8_t) ((v > 127.0f) ? 127.0f : (v < -127.0f) ? -127.0f : v);
            memcpy(code + k / 4 * 64 + k % 4, &q, 1);
        }
    }
}


static void
quant_int4(const float *x, uint32_t o, const uint8_t *nearest,
    uint8_t *chunk)
{
    float      scale;
    uint8_t   *code, q[BE_GROUP_INT4];
    uint16_t   h;
    uint32_t   g, i, k;

    code = chunk + be_quant_scales(BE_INT4) + o * 4;

    for (g = 0; g < BE_CHUNK / BE_GROUP_INT4; g++) {
        scale = quant_int4_search(x + g * BE_GROUP_INT4, nearest, q);
        h = quant_bf16(scale);
        memcpy(chunk + (g * BE_PANEL + o) * 2, &h, 2);

        for (i = 0; i < BE_GROUP_INT4; i += 8) {
            k = (g * BE_GROUP_INT4 + i) / 8 * 64;

            code[k] = (uint8_t) (q[i] | q[i + 4] << 4);
            code[k + 1] = (uint8_t) (q[i + 1] | q[i + 5] << 4);
            code[k + 2] = (uint8_t) (q[i + 2] | q[i + 6] << 4);
            code[k + 3] = (uint8_t) (q[i + 3] | q[i + 7] << 4);
        }
    }
}


/*
 * The largest element at either end of the levels or somewhat beyond it; of
 * all these the best, then once more from where it ended.
 */

static float
quant_int4_search(const float *x, const uint8_t *nearest, uint8_t *code)
{
    float     top, scale, best, error, least;
    uint8_t   q[BE_GROUP_INT4];
    uint32_t  i;

    static const float  ends[QUANT_TRIES] = {
        -112.0f, -106.0f, -100.0f, -94.0f, -89.0f, -85.0f, -118.0f,
        96.0f, 91.0f, 85.0f, 81.0f, 76.0f, 72.0f, 101.0f
    };

    top = 0.0f;

    for (i = 0; i < BE_GROUP_INT4; i++) {
        top = (fabsf(x[i]) > fabsf(top)) ? x[i] : top;
    }

    memset(code, 8, BE_GROUP_INT4);

    if (fabsf(top) < QUANT_TINY * 127.0f) {
        return 0.0f;
    }

    best = 0.0f;
    least = INFINITY;

    for (i = 0; i <= QUANT_TRIES; i++) {
        scale = (i < QUANT_TRIES) ? top / ends[i] : best;

        if (scale == 0.0f) {
            break;
        }

        scale = quant_int4_try(x, scale, nearest, q, &error);

        if (error < least) {
            least = error;
            best = scale;
            memcpy(code, q, BE_GROUP_INT4);
        }
    }

    return best;
}


/*
 * Codes for a scale, then the scale that is best for these codes, as BF16,
 * and the squared error that remains.
 */

static float
quant_int4_try(const float *x, float scale, const uint8_t *nearest,
    uint8_t *code, float *error)
{
    float     inverse, v, level, xl, ll, d;
    uint32_t  i;

    inverse = 1.0f / scale;
    xl = 0.0f;
    ll = 0.0f;

    for (i = 0; i < BE_GROUP_INT4; i++) {
        v = x[i] * inverse;
        v = (v > 127.0f) ? 127.0f : (v < -127.0f) ? -127.0f : v;
        code[i] = nearest[(uint32_t) (v + 127.5f)];
        level = (float) be_quant_levels[code[i]];
        xl += x[i] * level;
        ll += level * level;
    }

    scale = (ll > 0.0f) ? quant_float(quant_bf16(xl / ll)) : 0.0f;
    *error = 0.0f;

    for (i = 0; i < BE_GROUP_INT4; i++) {
        d = x[i] - scale * (float) be_quant_levels[code[i]];
        *error += d * d;
    }

    return scale;
}


/* The code whose level is nearest, by value + 127. */

static void
quant_int4_nearest(uint8_t *nearest)
{
    int       v, d, least;
    uint32_t  i;

    for (v = -127; v <= 127; v++) {
        least = 255;

        for (i = 0; i < 16; i++) {
            d = v - be_quant_levels[i];
            d = (d < 0) ? -d : d;

            if (d < least) {
                least = d;
                nearest[v + 127] = (uint8_t) i;
            }
        }
    }
}


static void
quant_f8(const float *x, uint32_t o, uint8_t *chunk)
{
    float     scale, inverse;
    uint8_t  *code;
    uint32_t  k;

    code = chunk + be_quant_scales(BE_F8E4M3) + o * 4;

    scale = quant_largest(x, BE_CHUNK) / 448.0f;
    scale = (scale < QUANT_TINY) ? 0.0f : scale;
    inverse = (scale > 0.0f) ? 1.0f / scale : 0.0f;

    memcpy(chunk + o * 4, &scale, 4);

    for (k = 0; k < BE_CHUNK; k++) {
        code[k / 4 * 64 + k % 4] = be_to_e4m3(x[k] * inverse);
    }
}


void
be_quant_encode_f8(const uint8_t *code, const float *scale, uint8_t *chunk)
{
    uint8_t   *to;
    uint32_t   o, k;

    memcpy(chunk, scale, BE_PANEL * 4);

    for (o = 0; o < BE_PANEL; o++) {
        to = chunk + be_quant_scales(BE_F8E4M3) + o * 4;

        for (k = 0; k < BE_CHUNK; k++) {
            to[k / 4 * 64 + k % 4] = code[o * BE_CHUNK + k];
        }
    }
}


void
be_quant_decode(be_dtype_t dtype, const uint8_t *chunk, float *x)
{
    float           scale;
    int8_t          q;
    uint8_t         byte;
    uint16_t        h;
    uint32_t        o, k;
    const uint8_t  *code;

    code = chunk + be_quant_scales(dtype);

    for (k = 0; k < BE_CHUNK; k++) {
        for (o = 0; o < BE_PANEL; o++) {
            switch (dtype) {

            case BE_INT8:
                memcpy(&h, chunk + (k / BE_GROUP_INT8 * BE_PANEL + o) * 2, 2);
                memcpy(&q, code + k / 4 * 64 + o * 4 + k % 4, 1);
                x[k * BE_PANEL + o] = (float) q * quant_float(h);
                break;

            case BE_INT4:
                memcpy(&h, chunk + (k / BE_GROUP_INT4 * BE_PANEL + o) * 2, 2);
                byte = code[k / 8 * 64 + o * 4 + k % 4];
                q = be_quant_levels[(k & 4) ? byte >> 4 : byte & 15];
                x[k * BE_PANEL + o] = (float) q * quant_float(h);
                break;

            default:
                memcpy(&scale, chunk + o * 4, 4);
                x[k * BE_PANEL + o] =
                    be_from_e4m3(code[k / 4 * 64 + o * 4 + k % 4]) * scale;
            }
        }
    }
}


float
be_from_e4m3(uint8_t code)
{
    float     x;
    uint32_t  u, e, m;

    e = (code >> 3) & 15;
    m = code & 7;

    if (e == 0) {
        x = (float) m / 512.0f;
        return (code & 0x80) ? -x : x;
    }

    u = ((uint32_t) (code & 0x80) << 24) | ((e + 120) << 23) | (m << 20);

    if (e == 15 && m == 7) {
        u |= 0x7fc00000;
    }

    memcpy(&x, &u, 4);

    return x;
}


uint8_t
be_to_e4m3(float x)
{
    float     a;
    uint8_t   sign;
    uint32_t  u;

    sign = signbit(x) ? 0x80 : 0;
    a = fabsf(x);

    if (!(a < 464.0f)) {
        return (uint8_t) (sign | (isnan(x) ? 0x7f : 0x7e));
    }

    /* below 2^-6 in steps of 2^-9 */

    if (a < 0.015625f) {
        return (uint8_t) (sign | (uint8_t) rintf(a * 512.0f));
    }

    memcpy(&u, &a, 4);
    u += 0x7ffff + ((u >> 20) & 1);

    return (uint8_t) (sign | ((u >> 20) - (120 << 3)));
}


/* --- helpers ----------------------------------------------------------- */

static float
quant_largest(const float *x, uint32_t n)
{
    float     top;
    uint32_t  i;

    top = 0.0f;

    for (i = 0; i < n; i++) {
        top = (fabsf(x[i]) > top) ? fabsf(x[i]) : top;
    }

    return top;
}


static uint16_t
quant_bf16(float x)
{
    uint32_t  u;

    memcpy(&u, &x, 4);

    return (uint16_t) ((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}


/* Up, so that the largest element fits; what is tiny is zero. */

static uint16_t
quant_bf16_up(float x)
{
    uint32_t  u;

    if (x < QUANT_TINY) {
        return 0;
    }

    memcpy(&u, &x, 4);

    return (uint16_t) ((u + 0xffff) >> 16);
}


static float
quant_float(uint16_t h)
{
    float     x;
    uint32_t  u;

    u = (uint32_t) h << 16;
    memcpy(&x, &u, 4);

    return x;
}
