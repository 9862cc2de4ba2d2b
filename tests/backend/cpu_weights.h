// Weights of random blocks, and the CPU's matmul run directly with a chosen set of instructions.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/matmul.h"
#include "backend/cpu/weight_memory.h"
#include "tensor/half.h"

namespace qiao::cpu {

inline constexpr DType kBlockFormats[] = {
    DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,   DType::kQ8_0,   DType::kQ2_K, DType::kQ3_K,
    DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4};
inline constexpr DType kPlainFormats[] = {DType::kF32, DType::kF16, DType::kBF16};

// Offsets of half-precision scales in a block.
inline std::vector<size_t> half_offsets(DType dtype) {
  switch (dtype) {
    case DType::kQ4_1:
    case DType::kQ5_1:
    case DType::kQ4_K:
    case DType::kQ5_K:
      return {0, 2};
    case DType::kQ2_K:
      return {80, 82};
    case DType::kQ3_K:
      return {108};
    case DType::kQ6_K:
      return {208};
    case DType::kMXFP4:
      return {};
    default:
      return {0};
  }
}

// Any bytes, but scales of ordinary size; `fill` >= 0 sets every other byte to it (extremes of the quants).
inline std::vector<std::byte> random_rows(DType dtype, int64_t rows, int64_t columns, std::mt19937& random,
                                          int fill = -1) {
  std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes(dtype, columns)));
  std::uniform_real_distribution<float> value(-1.0f, 1.0f);
  const auto put = [&](size_t at, auto bits) { std::memcpy(bytes.data() + at, &bits, sizeof bits); };
  if (!traits(dtype).quantized) {
    for (int64_t i = 0; i < rows * columns; ++i) {
      const float v = value(random);
      if (dtype == DType::kF32) put(static_cast<size_t>(i) * 4, v);
      if (dtype == DType::kF16) put(static_cast<size_t>(i) * 2, float_to_f16(v));
      if (dtype == DType::kBF16) put(static_cast<size_t>(i) * 2, float_to_bf16(v));
    }
    return bytes;
  }
  for (std::byte& b : bytes) b = static_cast<std::byte>(fill >= 0 ? static_cast<unsigned>(fill) : random());
  const auto block = static_cast<size_t>(traits(dtype).block_bytes);
  for (size_t at = 0; at < bytes.size(); at += block) {
    if (dtype == DType::kF8_128) {  // no NaN
      for (size_t i = at; i < at + 128; ++i)
        if ((bytes[i] & std::byte{0x7f}) == std::byte{0x7f}) bytes[i] ^= std::byte{1};
      put(at + 128, 0.001f * value(random));
      continue;
    }
    for (const size_t half : half_offsets(dtype)) put(at + half, float_to_f16(0.05f * value(random)));
    if (dtype == DType::kMXFP4) bytes[at] = static_cast<std::byte>(110 + random() % 20);
  }
  return bytes;
}

inline CpuWeight make_cpu_weight(const WeightSource& source, ThreadPool& pool) {
  static WeightMemory memory;
  return CpuWeight(source, memory.take(static_cast<size_t>(CpuWeight::bytes_for(source))), pool);
}

inline std::vector<Isa> usable_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i <= static_cast<int>(widest_isa()); ++i) isas.push_back(static_cast<Isa>(i));
  return isas;
}

inline std::vector<float> random_floats(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

// 64-byte aligned memory for a workspace.
struct Workspace {
  explicit Workspace(size_t bytes) : memory(bytes + 64) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    tensor = Tensor(memory.data() + (64 - address % 64) % 64, DType::kU8, {static_cast<int64_t>(bytes)});
  }
  std::vector<std::byte> memory;
  Tensor tensor;
};

// y[T, N] for x[T, K].
inline std::vector<float> linear(const CpuWeight& weight, std::vector<float> x, Compute compute, Isa isa,
                                 ThreadPool& pool) {
  const int64_t rows = static_cast<int64_t>(x.size()) / weight.columns();
  std::vector<float> y(static_cast<size_t>(rows * weight.rows()), -777.0f);
  Linear op;
  op.x = Tensor(x.data(), DType::kF32, {rows, weight.columns()});
  op.weight = &weight;
  op.compute = compute;
  op.y = Tensor(y.data(), DType::kF32, {rows, weight.rows()});
  const Workspace workspace(linear_workspace_bytes(op, pool.size()));
  op.workspace = workspace.tensor;
  run_linear(op, linear_kernels(isa), pool);
  return y;
}

// [N, K] as gather reads it.
inline std::vector<float> dequantized(const CpuWeight& weight, Isa isa, ThreadPool& pool) {
  std::vector<int32_t> ids(static_cast<size_t>(weight.rows()));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::vector<float> out(static_cast<size_t>(weight.rows() * weight.columns()), -777.0f);
  Gather op;
  op.table = &weight;
  op.ids = Tensor(ids.data(), DType::kI32, {weight.rows()});
  op.out = Tensor(out.data(), DType::kF32, {weight.rows(), weight.columns()});
  run_gather(op, linear_kernels(isa), pool);
  return out;
}

}  // namespace qiao::cpu
