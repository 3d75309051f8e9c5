/*
 * The vector and short float types of CUDA, as far as they are used, with the
 * same names, sizes and rounding.
 */

#ifndef EMU_TYPES_H
#define EMU_TYPES_H

#include <math.h>
#include <stdint.h>
#include <string.h>


#define EMU_VEC2(name, type)                                                  \
    struct alignas(2 * sizeof(type)) name {                                   \
        type  x, y;                                                           \
    };                                                                        \
                                                                              \
    static inline name                                                        \
    make_##name(type x, type y)                                               \
    {                                                                         \
        name  v = { x, y };                                                   \
        return v;                                                             \
    }

#define EMU_VEC3(name, type)                                                  \
    struct name {                                                             \
        type  x, y, z;                                                        \
    };                                                                        \
                                                                              \
    static inline name                                                        \
    make_##name(type x, type y, type z)                                       \
    {                                                                         \
        name  v = { x, y, z };                                                \
        return v;                                                             \
    }

#define EMU_VEC4(name, type, align)                                           \
    struct alignas(align) name {                                              \
        type  x, y, z, w;                                                     \
    };                                                                        \
                                                                              \
    static inline name                                                        \
    make_##name(type x, type y, type z, type w)                               \
    {                                                                         \
        name  v = { x, y, z, w };                                             \
        return v;                                                             \
    }

typedef unsigned char       emu_uchar;
typedef unsigned short      emu_ushort;
typedef unsigned int        emu_uint;
typedef long long           emu_ll;
typedef unsigned long long  emu_ull;

EMU_VEC2(char2, signed char)
EMU_VEC2(uchar2, emu_uchar)
EMU_VEC2(short2, short)
EMU_VEC2(ushort2, emu_ushort)
EMU_VEC2(int2, int)
EMU_VEC2(uint2, emu_uint)
EMU_VEC2(float2, float)
EMU_VEC2(longlong2, emu_ll)
EMU_VEC2(ulonglong2, emu_ull)
EMU_VEC2(double2, double)
EMU_VEC3(int3, int)
EMU_VEC3(uint3, emu_uint)
EMU_VEC3(float3, float)
EMU_VEC4(char4, signed char, 4)
EMU_VEC4(uchar4, emu_uchar, 4)
EMU_VEC4(short4, short, 8)
EMU_VEC4(ushort4, emu_ushort, 8)
EMU_VEC4(int4, int, 16)
EMU_VEC4(uint4, emu_uint, 16)
EMU_VEC4(float4, float, 16)


static inline float
__uint_as_float(uint32_t u)
{
    float  f;

    memcpy(&f, &u, 4);
    return f;
}


static inline uint32_t
__float_as_uint(float f)
{
    uint32_t  u;

    memcpy(&u, &f, 4);
    return u;
}


static inline float
__int_as_float(int i)
{
    return __uint_as_float((uint32_t) i);
}


static inline int
__float_as_int(float f)
{
    return (int) __float_as_uint(f);
}


/* Nearest even; what is not a number becomes 0x7fff, as on the device. */

static inline uint16_t
emu_to_bf16(float f)
{
    uint32_t  u;

    if (f != f) {
        return 0x7fff;
    }

    u = __float_as_uint(f);
    return (uint16_t) ((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}


static inline float
emu_from_bf16(uint16_t h)
{
    return __uint_as_float((uint32_t) h << 16);
}


/* e4m3fn: nearest even, saturating at 448. */

static inline uint8_t
emu_to_e4m3(float f)
{
    float     a;
    uint8_t   sign;
    uint32_t  u;

    sign = (uint8_t) (__float_as_uint(f) >> 24 & 0x80);
    a = fabsf(f);

    if (a != a) {
        return sign | 0x7f;
    }

    if (a >= 448.0f) {
        return sign | 0x7e;
    }

    if (a < 0.015625f) {
        return sign | (uint8_t) rintf(a * 512.0f);
    }

    u = __float_as_uint(a);
    u += 0x7ffff + (u >> 20 & 1);

    return sign | (uint8_t) ((u >> 20) - (120 << 3));
}


static inline float
emu_from_e4m3(uint8_t code)
{
    float     f;
    uint32_t  e, m;

    e = code >> 3 & 15;
    m = code & 7;

    if (e == 15 && m == 7) {
        f = NAN;

    } else if (e == 0) {
        f = (float) m / 512.0f;

    } else {
        f = __uint_as_float((e + 120) << 23 | m << 20);
    }

    return (code & 0x80) ? -f : f;
}


struct alignas(2) __nv_bfloat16 {
    uint16_t  __x;

    __nv_bfloat16() = default;
    __nv_bfloat16(float f) : __x(emu_to_bf16(f)) { }
    operator float() const { return emu_from_bf16(__x); }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16  x, y;
};

struct __nv_fp8_e4m3 {
    uint8_t  __x;

    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float f) : __x(emu_to_e4m3(f)) { }
    explicit operator float() const { return emu_from_e4m3(__x); }
};

typedef __nv_bfloat16   nv_bfloat16;
typedef __nv_bfloat162  nv_bfloat162;


static inline __nv_bfloat16
__float2bfloat16_rn(float f)
{
    return __nv_bfloat16(f);
}


static inline __nv_bfloat16
__float2bfloat16(float f)
{
    return __nv_bfloat16(f);
}


static inline float
__bfloat162float(__nv_bfloat16 h)
{
    return emu_from_bf16(h.__x);
}


static inline unsigned short
__bfloat16_as_ushort(__nv_bfloat16 h)
{
    return h.__x;
}


static inline __nv_bfloat16
__ushort_as_bfloat16(unsigned short u)
{
    __nv_bfloat16  h;

    h.__x = u;
    return h;
}


static inline __nv_bfloat162
__floats2bfloat162_rn(float x, float y)
{
    __nv_bfloat162  h;

    h.x = __nv_bfloat16(x);
    h.y = __nv_bfloat16(y);
    return h;
}


static inline float2
__bfloat1622float2(__nv_bfloat162 h)
{
    return make_float2(__bfloat162float(h.x), __bfloat162float(h.y));
}

#endif /* EMU_TYPES_H */
