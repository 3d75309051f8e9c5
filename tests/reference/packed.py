"""Reads model.packed, the weights of a converted checkpoint, as float64.

Written from the description of the format in engine/model/model_packed.h
and engine/backend/be_quant.h; checksums are the engine's own matter
(`llm-engine convert --verify`).
"""

import struct

import numpy as np

import numerics

PANEL, CHUNK = 16, 128
F32, BF16, FP8, INT8, INT4 = range(5)
MATRIX, FLOATS, KEYS, VALUES, TABLE = range(5)

LEVELS = np.array([-112, -88, -72, -56, -44, -32, -20, -9,
                   0, 11, 22, 32, 44, 56, 72, 96], np.float64)


class Entry:
    """A matrix or vector of the file."""

    def __init__(self, data, fields):
        (self.kind, self.dtype, self.rows, self.cols, self.parts, zero,
         offset, size, _) = fields
        if zero != 0 or offset % 64 != 0 or offset + size > len(data):
            raise ValueError('an entry that makes no sense')
        self.data = data[offset:offset + size]

    def values(self):
        """[rows][cols] in float64."""
        if self.dtype == F32:
            values = np.frombuffer(self.data.tobytes(), '<f4')
        elif self.dtype == BF16:
            values = numerics.bf16_decode(
                np.frombuffer(self.data.tobytes(), '<u2'))
        else:
            return self.panels()
        return values.astype(np.float64).reshape(self.rows, self.cols)

    def panels(self):
        """Quantised: chunks of scales and codes, parts with own panels."""
        rows = self.rows // self.parts
        panels = self.parts * -(-rows // PANEL)
        chunks = -(-self.cols // CHUNK)
        data = self.data.reshape(panels * chunks, -1)
        values = {FP8: self.fp8, INT8: self.int8, INT4: self.int4}[
            self.dtype](data)
        # [panel][chunk][element][output] -> [part][row][column]
        values = values.reshape(panels, chunks * CHUNK, PANEL)
        values = values.transpose(0, 2, 1)
        values = values.reshape(self.parts, -1, chunks * CHUNK)
        values = values[:, :rows, :self.cols]
        return values.reshape(self.rows, self.cols)

    @staticmethod
    def spread(scales, group):
        """[chunk][scale][output] -> [chunk][element][output]"""
        return np.repeat(scales, group, axis=1)

    @staticmethod
    def bytes_of(codes):
        """[chunk][32][16][4] -> [chunk][element][output]"""
        codes = codes.reshape(-1, CHUNK // 4, PANEL, 4)
        return codes.transpose(0, 1, 3, 2).reshape(-1, CHUNK, PANEL)

    def fp8(self, data):
        scales = np.frombuffer(data[:, :64].tobytes(), '<f4')
        scales = scales.astype(np.float64).reshape(-1, 1, PANEL)
        return numerics.E4M3[self.bytes_of(data[:, 64:])] * scales

    def int8(self, data):
        scales = numerics.bf16_decode(
            np.frombuffer(data[:, :64].tobytes(), '<u2'))
        codes = self.bytes_of(np.ascontiguousarray(data[:, 64:])
                              .view(np.int8))
        return codes * self.spread(scales.reshape(-1, 2, PANEL), 64)

    def int4(self, data):
        scales = numerics.bf16_decode(
            np.frombuffer(data[:, :128].tobytes(), '<u2'))
        codes = data[:, 128:].reshape(-1, CHUNK // 8, PANEL, 4)
        codes = np.stack([codes & 15, codes >> 4], axis=2)
        codes = codes.transpose(0, 1, 2, 4, 3).reshape(-1, CHUNK, PANEL)
        return LEVELS[codes] * self.spread(scales.reshape(-1, 4, PANEL), 32)


class Packed:
    """The entries of a file, and the source's tensors in them."""

    def __init__(self, path):
        data = np.memmap(path, np.uint8, 'r')
        head = data[:64].tobytes()
        if head[:8] != b'llmpack\n':
            raise ValueError(f'{path}: no packed weights')
        version, self.dtype, count, length, begin = struct.unpack(
            '<4IQ', head[8:32])
        if version != 2:
            raise ValueError(f'{path}: version {version}')
        table = data[64:64 + 48 * count].tobytes()
        names = data[64 + 48 * count:64 + 48 * count + length].tobytes()
        names = names.decode().split('\0')[:-1]
        if len(names) != count or begin > len(data):
            raise ValueError(f'{path}: the table makes no sense')
        self.entries = {
            name: Entry(data, struct.unpack('<6I3Q', table[i * 48:i * 48 + 48]))
            for i, name in enumerate(names)}

    def __contains__(self, name):
        return any(name + end in self.entries
                   for end in ('', '.uk', '.rows'))

    def load(self, name):
        """A tensor of the source, as far as it can be had back."""
        if name in self.entries:
            entry = self.entries[name]
            values = entry.values()
            if entry.kind == FLOATS and entry.rows == 1:
                return values[0]
            return values
        if name + '.rows' in self.entries:
            return self.entries[name + '.rows'].values()
        keys = self.entries[name + '.uk']
        values = self.entries[name + '.uv']
        # Keys are transposed, head by head.
        uk = keys.values().reshape(keys.parts, -1, keys.cols)
        uv = values.values().reshape(values.parts, -1, values.cols)
        return np.concatenate([uk.transpose(0, 2, 1), uv], axis=1) \
            .reshape(-1, values.cols)
