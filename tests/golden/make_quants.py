#!/usr/bin/env python3
"""Writes quants.bin: random blocks of each format and what gguf-py makes of them.

Each record: name (16 bytes, zero-padded), u32 block bytes, u32 blocks, u32 elements, the blocks, then the
elements as little-endian float32. Needs the wheels gguf and numpy.
"""
import pathlib
import struct

import gguf
import numpy as np

FORMATS = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
# Where the F16 scales and minimums of a block lie: made finite and of both signs.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}


def main() -> None:
    random = np.random.default_rng(20240601)
    with open(pathlib.Path(__file__).with_name("quants.bin"), "wb") as out:
        for name in FORMATS:
            kind = gguf.GGMLQuantizationType[name]
            elements, size = gguf.GGML_QUANT_SIZES[kind]
            count = 3 if elements == 256 else 8 if elements == 32 else 64
            blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
            for offset in HALVES.get(name, []):
                halves = random.normal(0, 1, count).astype(np.float16)
                halves[0] = np.float16(-6e-8)  # a subnormal
                blocks[:, offset:offset + 2] = halves.view(np.uint8).reshape(count, 2)
            if name == "F16":
                blocks.view(np.uint16)[:] &= 0xBFFF  # no infinities nor NaN
            if name == "BF16":
                blocks.view(np.uint16)[:] &= 0xBFFF
            if name == "MXFP4":
                blocks[:, 0] = [0, 1, 2, 100, 127, 128, 140, 250]
            values = gguf.quants.dequantize(blocks.reshape(1, -1), kind).astype("<f4").reshape(-1)
            out.write(struct.pack("<16sIII", name.encode(), size, count, values.size))
            out.write(blocks.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
