"""Number formats of the checkpoints: BF16, e4m3 and 128 x 128 block scales.

Everything here is written from the formats' definitions and shares nothing
with the engine, so that the two can be held against each other.
"""

import numpy as np

BLOCK = 128         # side of the square that shares one weight_scale_inv
E4M3_MAX = 448.0


def bf16_encode(x):
    """float32 array -> uint16 BF16 codes, round to nearest, ties to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    tie = (u >> np.uint32(16)) & np.uint32(1)
    return ((u + np.uint32(0x7fff) + tie) >> np.uint32(16)).astype(np.uint16)


def bf16_decode(codes):
    """uint16 BF16 codes -> float64."""
    u = np.asarray(codes, np.uint16).astype(np.uint32) << np.uint32(16)
    return u.view(np.float32).astype(np.float64)


def round_bf16(x):
    """Rounds float64 to the nearest BF16 value, ties to even.

    It rounds once: going through float32 would round twice and miss ties.
    Values below BF16's normal range keep eight bits here; they never matter
    next to the others in a sum.
    """
    u = np.ascontiguousarray(x, np.float64).view(np.uint64)
    tie = (u >> np.uint64(45)) & np.uint64(1)
    u = u + (np.uint64((1 << 44) - 1) + tie)
    u &= np.uint64(~((1 << 45) - 1) & (1 << 64) - 1)
    return u.view(np.float64)


def e4m3_table():
    """The 256 values of e4m3fn: no infinities, 0x7f and 0xff are NaN."""
    code = np.arange(256)
    exponent = (code >> 3) & 15
    mantissa = (code & 7) / 8.0
    value = np.where(exponent == 0,
                     np.ldexp(mantissa, -6),
                     np.ldexp(1.0 + mantissa, exponent - 7))
    value[(code & 127) == 127] = np.nan
    return np.where(code >= 128, -value, value)


E4M3 = e4m3_table()


def e4m3_encode(x):
    """float array -> e4m3 codes: nearest, ties to even, saturating."""
    positive = E4M3[:127]
    magnitude = np.minimum(np.abs(np.asarray(x, np.float64)), E4M3_MAX)
    above = np.clip(np.searchsorted(positive, magnitude), 1, 126)
    low, high = positive[above - 1], positive[above]
    up = (magnitude - low > high - magnitude) \
        | ((magnitude - low == high - magnitude) & (above % 2 == 0))
    code = np.where(up, above, above - 1).astype(np.uint8)
    return code | (np.signbit(x).astype(np.uint8) << np.uint8(7))


def spread_blocks(scale, shape):
    """[ceil(out/128), ceil(in/128)] scales -> one scale per element."""
    rows = np.repeat(scale, BLOCK, axis=0)[:shape[0]]
    return np.repeat(rows, BLOCK, axis=1)[:, :shape[1]]


def fp8_quantise(weight):
    """[out, in] -> (e4m3 codes, float32 scales); weight ~ code * scale."""
    out, width = weight.shape
    rows, columns = -(-out // BLOCK), -(-width // BLOCK)
    padded = np.zeros((rows * BLOCK, columns * BLOCK))
    padded[:out, :width] = np.abs(weight)
    peak = padded.reshape(rows, BLOCK, columns, BLOCK).max(axis=(1, 3))
    scale = np.where(peak > 0, peak / E4M3_MAX, 1.0).astype(np.float32)
    codes = e4m3_encode(weight / spread_blocks(scale, weight.shape))
    return codes, scale


def round_fp8(x):
    """Rounds to e4m3 times a scale for each 128 elements of a row."""
    groups = -(-x.shape[-1] // BLOCK)
    padded = np.zeros((*x.shape[:-1], groups * BLOCK))
    padded[..., :x.shape[-1]] = x
    padded = padded.reshape(*x.shape[:-1], groups, BLOCK)
    peak = np.abs(padded).max(axis=-1, keepdims=True)
    scale = np.maximum(peak, 1e-4) / E4M3_MAX
    padded = E4M3[e4m3_encode(padded / scale)] * scale
    return padded.reshape(*x.shape[:-1], groups * BLOCK)[..., :x.shape[-1]]


def fp8_dequantise(codes, scale):
    """e4m3 codes [out, in] and their block scales -> float64 weights."""
    return E4M3[codes] * spread_blocks(scale.astype(np.float64), codes.shape)
