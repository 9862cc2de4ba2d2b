#!/usr/bin/env python3
"""Writes fp8_numbers.bin: what PyTorch's float8_e4m3fn makes of bytes, of floats, and of a matrix in blocks.

256 float32 (the value of each byte; NaN for 0x7f and 0xff), then u32 n, n float32 and the n bytes that they
round to (beyond 448 the largest: PyTorch's own conversion gives NaN there, so they are clamped first), then
u32 rows, u32 columns, a float32 matrix, its bytes with one scale for each 128 x 128, and the scales. Needs
the wheels torch and numpy.
"""
import pathlib
import struct

import numpy as np
import torch

ROWS, COLUMNS = 130, 256


def to_bytes(values: torch.Tensor) -> bytes:
    return values.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()


def main() -> None:
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).float()
    finite = every[torch.isfinite(every)].double()
    ascending = torch.sort(finite).values
    middles = (ascending[1:] + ascending[:-1]) / 2  # exact in float32: ties
    exact = torch.cat([ascending, middles]).float()
    beside = [torch.from_numpy(np.nextafter(exact.numpy(), np.float32(to))) for to in (-np.inf, np.inf)]
    torch.manual_seed(1)
    random = torch.randn(4096) * torch.exp2(torch.randint(-14, 10, (4096,)).float())
    special = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 464.0, 480.0, 1e30, -1e30, float("inf"), -float("inf")])
    floats = torch.cat([exact, *beside, random, special])

    matrix = torch.randn(ROWS, COLUMNS) * torch.exp2(torch.randint(-3, 4, (ROWS, 1)).float())
    matrix[:128, 128:256] = 0
    numbers, scales = torch.empty(ROWS, COLUMNS), []
    for row in range(0, ROWS, 128):
        for column in range(0, COLUMNS, 128):
            block = matrix[row:row + 128, column:column + 128]
            most = block.abs().max()
            scales.append(float(most / 448.0))
            inverse = 448.0 / most if most > 0 else torch.zeros(())
            numbers[row:row + 128, column:column + 128] = block * inverse
    with open(pathlib.Path(__file__).with_name("fp8_numbers.bin"), "wb") as out:
        out.write(every.numpy().astype("<f4").tobytes())
        out.write(struct.pack("<I", floats.numel()) + floats.numpy().astype("<f4").tobytes() + to_bytes(floats))
        out.write(struct.pack("<II", ROWS, COLUMNS) + matrix.numpy().astype("<f4").tobytes() + to_bytes(numbers))
        out.write(np.array(scales, dtype="<f4").tobytes())


if __name__ == "__main__":
    main()
