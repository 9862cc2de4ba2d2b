#!/usr/bin/env python3
"""Writes quantized.bin: floats, and the blocks that ggml's reference quantizers make of them.

  quantize_with_ggml.py LIBGGML_BASE     the library libggml-base.so of a llama.cpp build

Each record: name (16 bytes, zero-padded), u32 block bytes, u32 blocks, u32 elements, the elements as little-endian
float32, then the blocks. Needs the wheel numpy.
"""
import ctypes
import pathlib
import struct
import sys

import numpy as np

FORMATS = {"Q4_0": (32, 18), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q5_K": (256, 176),
           "Q6_K": (256, 210)}


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    random = np.random.default_rng(20250301)
    with open(pathlib.Path(__file__).with_name("quantized.bin"), "wb") as out:
        for name, (elements, size) in FORMATS.items():
            count = 12 if elements == 256 else 48
            values = random.normal(0, 1, (count, elements)).astype("<f4")
            values *= (10.0 ** random.integers(-5, 3, (count, 1))).astype("<f4")
            values[0] = 0
            values[1, 3:] = 0
            values[2] = np.abs(values[2])
            values[3] = -np.abs(values[3])
            values[4] = np.sign(values[4])
            values[5, ::2] = 0
            blocks = np.zeros((count, size), np.uint8)
            quantize = getattr(library, f"quantize_row_{name if name.endswith('K') else name.lower()}_ref".replace("_Q", "_q"))
            quantize(values.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p),
                     ctypes.c_int64(values.size))
            out.write(struct.pack("<16sIII", name.encode(), size, count, values.size))
            out.write(values.tobytes() + blocks.tobytes())


if __name__ == "__main__":
    main()
