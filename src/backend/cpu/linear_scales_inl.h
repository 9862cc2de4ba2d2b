// Unpacking of every block format's scales to the shared form (linear_kernels.h). Included inside the
// anonymous namespace of linear_<isa>.cc, by linear_unpack_inl.h.

// One F16 scale a block of 32, after `quant_bytes` bytes of quants for each row and block.
template <int quant_bytes>
void scales_half(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const uint8_t* p = bytes_of(chunk) + elements / 32 * quant_bytes * 16;
  for (int64_t k = 0; k < elements; k += 32, p += 32, scales += stride) half16(p, scales);
}

// F16 scale and minimum.
template <int quant_bytes>
void scales_half_minimum(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const uint8_t* p = bytes_of(chunk) + elements / 32 * quant_bytes * 16;
  for (int64_t k = 0; k < elements; k += 32, p += 64, scales += stride) {
    half16(p, scales);
    half16(p + 32, scales + 16);
  }
}

void scales_mxfp4(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const uint8_t* p = bytes_of(chunk) + elements * 8;
  for (int64_t k = 0; k < elements; k += 32, p += 16, scales += stride) {
    Words bits;
    for (int r = 0; r < 16; ++r) {  // half of 2^(e - 127): the table holds doubled values
      const uint32_t e = p[r];
      bits.lane[r] = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    }
    __builtin_memcpy(scales, &bits, sizeof bits);
  }
}

// Q4_K and Q5_K: 8 pairs of 6-bit (scale, minimum) in 12 bytes.
template <int quant_bytes>
void scales_k4(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const int64_t blocks = elements / 256;
  const uint8_t* packed = bytes_of(chunk) + blocks * quant_bytes * 16;
  const uint8_t* halves = packed + blocks * 12 * 16;
  for (int64_t b = 0; b < blocks; ++b, packed += 192, halves += 64) {
    alignas(64) float d[16], m[16];
    half16(halves, d);
    half16(halves + 32, m);
    const Words s0 = words16(packed), s1 = words16(packed + 64), s2 = words16(packed + 128);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j, scales += stride) {
      const int at = 8 * (j & 3);
      for (int r = 0; r < 16; ++r) {
        const uint32_t w0 = s0.lane[r] >> at, w1 = s1.lane[r] >> at, w2 = s2.lane[r] >> at;
        const uint32_t scale = j < 4 ? w0 & 63 : (w2 & 15) | (w0 >> 2 & 48);
        const uint32_t minimum = j < 4 ? w1 & 63 : (w2 >> 4 & 15) | (w1 >> 2 & 48);
        scales[r] = d[r] * static_cast<float>(static_cast<int32_t>(scale));
        scales[16 + r] = -(m[r] * static_cast<float>(static_cast<int32_t>(minimum)));
      }
    }
  }
}

void scales_q6_k(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const int64_t blocks = elements / 256;
  const uint8_t* packed = bytes_of(chunk) + blocks * 192 * 16;
  const uint8_t* halves = packed + blocks * 16 * 16;
  for (int64_t b = 0; b < blocks; ++b, packed += 256, halves += 32) {
    alignas(64) float d[16];
    half16(halves, d);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      const Words s = words16(packed + q * 64);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        for (int r = 0; r < 16; ++r) {
          const int32_t scale = static_cast<int32_t>(s.lane[r] << (24 - 8 * i)) >> 24;
          scales[i % 2 * 16 + r] = d[r] * static_cast<float>(scale);
        }
        if (i % 2 == 1) scales += stride;
      }
    }
  }
}

void scales_q2_k(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const int64_t blocks = elements / 256;
  const uint8_t* packed = bytes_of(chunk) + blocks * 64 * 16;
  const uint8_t* halves = packed + blocks * 16 * 16;
  for (int64_t b = 0; b < blocks; ++b, packed += 256, halves += 64) {
    alignas(64) float d[16], m[16];
    half16(halves, d);
    half16(halves + 32, m);
    for (int q = 0; q < 4; ++q) {
      const Words s = words16(packed + q * 64);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        for (int r = 0; r < 16; ++r) {
          const uint32_t byte = s.lane[r] >> (8 * i);
          scales[i % 2 * 16 + r] = d[r] * static_cast<float>(static_cast<int32_t>(byte & 15));
          scales[32 + i % 2 * 16 + r] = -(m[r] * static_cast<float>(static_cast<int32_t>(byte >> 4 & 15)));
        }
        if (i % 2 == 1) scales += stride;
      }
    }
  }
}

// 16 scales of 6 bits less 32: low nibbles in 8 bytes, two high bits in 4 more.
void scales_q3_k(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const int64_t blocks = elements / 256;
  const uint8_t* packed = bytes_of(chunk) + blocks * 96 * 16;
  const uint8_t* halves = packed + blocks * 12 * 16;
  for (int64_t b = 0; b < blocks; ++b, packed += 192, halves += 32) {
    alignas(64) float d[16];
    half16(halves, d);
    const Words low[2] = {words16(packed), words16(packed + 64)};
    const Words high = words16(packed + 128);
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      const int byte = 8 * (j & 3);
      for (int r = 0; r < 16; ++r) {
        const uint32_t nibble = low[j / 4 & 1].lane[r] >> (byte + (j < 8 ? 0 : 4)) & 15;
        const uint32_t bits = high.lane[r] >> (byte + 2 * (j / 4)) & 3;
        scales[j % 2 * 16 + r] = d[r] * static_cast<float>(static_cast<int32_t>(nibble | bits << 4) - 32);
      }
      if (j % 2 == 1) scales += stride;
    }
  }
}

void scales_iq4_xs(const std::byte* chunk, int64_t elements, int64_t stride, float* __restrict scales) {
  const int64_t blocks = elements / 256;
  const uint8_t* packed = bytes_of(chunk) + blocks * 128 * 16;
  const uint8_t* halves = packed + blocks * 4 * 16;
  for (int64_t b = 0; b < blocks; ++b, packed += 64, halves += 64) {
    alignas(64) float d[16];
    half16(halves, d);
    const Words low = words16(packed);
    Words high;
    for (int r = 0; r < 16; ++r) {
      high.lane[r] = static_cast<uint32_t>(halves[32 + 2 * r] | halves[33 + 2 * r] << 8);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j, scales += stride) {
      for (int r = 0; r < 16; ++r) {
        const uint32_t bits = (low.lane[r] >> (4 * j) & 15) | (high.lane[r] >> (2 * j) & 3) << 4;
        scales[r] = d[r] * static_cast<float>(static_cast<int32_t>(bits) - 32);
      }
    }
  }
}
