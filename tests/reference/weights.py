"""Reads the tensors of a checkpoint directory as float64."""

import json
import os

import numpy as np

import numerics
import packed


class Weights:
    """All tensors of the *.safetensors files in a directory, or those of
    the checkpoint that was converted to its model.packed.

    A tensor is converted when it is asked for; what fits into `keep` bytes
    stays in memory, so that scoring several prompts reads a small model
    only once.
    """

    def __init__(self, path, keep=4 << 30):
        self.entries, self.cache, self.keep = {}, {}, keep
        self.packed = None
        name = os.path.join(path, 'model.packed')
        if os.path.exists(name):
            self.packed = packed.Packed(name)
            return
        for name in sorted(os.listdir(path)):
            if name.endswith('.safetensors'):
                self._open(os.path.join(path, name))

    def _open(self, path):
        data = np.memmap(path, np.uint8, 'r')
        size = int.from_bytes(data[:8].tobytes(), 'little')
        header = json.loads(data[8:8 + size].tobytes())
        for name, entry in header.items():
            if name != '__metadata__':
                begin, end = entry['data_offsets']
                self.entries[name] = (entry['dtype'], entry['shape'],
                                      data[8 + size + begin:8 + size + end])

    def __contains__(self, name):
        return name in (self.packed or self.entries)

    def stored(self, name):
        """The tensor as it is stored: e4m3 stays in codes."""
        dtype, shape, data = self.entries[name]
        data = data.tobytes()
        if dtype == 'BF16':
            values = numerics.bf16_decode(np.frombuffer(data, '<u2'))
        elif dtype == 'F8_E4M3':
            values = np.frombuffer(data, np.uint8)
        else:
            values = np.frombuffer(data, {'F16': '<f2', 'F32': '<f4',
                                          'F64': '<f8'}[dtype])
            values = values.astype(np.float64)
        return values.reshape(shape)

    def is_fp8(self, name):
        return not self.packed and self.entries[name][0] == 'F8_E4M3'

    def load(self, name):
        """The tensor in float64, quantised ones with their scales."""
        if self.packed:
            return self.packed.load(name)
        values = self.stored(name)
        if self.entries[name][0] == 'F8_E4M3':
            values = numerics.fp8_dequantise(
                values, self.stored(name + '_scale_inv'))
        return values

    def get(self, name, rounded=False):
        """The tensor in float64, rounded to BF16 if asked for."""
        key = (name, rounded)
        if key in self.cache:
            return self.cache[key]
        values = self.load(name)
        if rounded:
            values = numerics.round_bf16(values)
        if values.nbytes <= self.keep:
            self.keep -= values.nbytes
            self.cache[key] = values
        return values
