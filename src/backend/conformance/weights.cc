// Random weights of every format, on the chip and for the law.
#include <array>
#include <cstring>

#include "backend/conformance/harness.h"
#include "base/error.h"
#include "tensor/half.h"

namespace qiao::conformance {
namespace {

constexpr std::array kWeightDTypes = {DType::kF32,  DType::kF16,    DType::kBF16,   DType::kQ4_0,
                                      DType::kQ4_1, DType::kQ5_0,   DType::kQ5_1,   DType::kQ8_0,
                                      DType::kQ2_K, DType::kQ3_K,   DType::kQ4_K,   DType::kQ5_K,
                                      DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4};

// Where a block holds F16 scales and minimums: bytes there must not be an infinity or NaN, nor wild.
std::vector<int> half_offsets(DType dtype) {
  switch (dtype) {
    case DType::kQ4_0:
    case DType::kQ5_0:
    case DType::kQ8_0:
    case DType::kIQ4_NL:
    case DType::kIQ4_XS:
      return {0};
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
    default:
      return {};
  }
}

void put_half(std::byte* at, float value) {
  const uint16_t bits = float_to_f16(value);
  std::memcpy(at, &bits, sizeof bits);
}

}  // namespace

std::span<const DType> weight_dtypes() { return kWeightDTypes; }

std::vector<Compute> computes_of(DType dtype) {
  if (traits(dtype).quantized) return {Compute::kF32, Compute::kQ8};
  if (dtype == DType::kBF16) return {Compute::kF32, Compute::kBF16};
  return {Compute::kF32};
}

std::string_view name(Compute compute) {
  static constexpr std::string_view kNames[] = {"f32", "bf16", "q8"};
  return kNames[static_cast<size_t>(compute)];
}

Harness::Peak peak_of(Compute compute) {
  static constexpr Harness::Peak kPeaks[] = {Harness::Peak::kF32, Harness::Peak::kBF16, Harness::Peak::kInt8};
  return kPeaks[static_cast<size_t>(compute)];
}

std::vector<std::byte> random_rows(Harness& harness, DType dtype, int64_t rows, int64_t columns) {
  const DTypeTraits& t = traits(dtype);
  std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes(dtype, columns)));
  const auto block_bytes = static_cast<size_t>(t.block_bytes);
  const std::vector<int> halves = half_offsets(dtype);
  for (size_t block = 0; block < bytes.size(); block += block_bytes) {
    std::byte* b = bytes.data() + block;
    if (!t.quantized) {
      const float value = harness.chance(0.02) ? 0.0f : harness.normal() * 0.05f;
      if (dtype == DType::kF32) std::memcpy(b, &value, sizeof value);
      if (dtype == DType::kF16) put_half(b, value);
      if (const uint16_t bits = float_to_bf16(value); dtype == DType::kBF16)
        std::memcpy(b, &bits, sizeof bits);
      continue;
    }
    for (size_t i = 0; i < block_bytes; ++i) b[i] = static_cast<std::byte>(harness.between(0, 255));
    // Now and then a scale of zero or a subnormal one.
    for (const int offset : halves) {
      const float scale = harness.chance(0.03) ? 0.0f : harness.chance(0.03) ? 3e-7f : 1.0f / 64;
      put_half(b + offset, scale * harness.normal());
    }
    if (dtype == DType::kMXFP4) b[0] = static_cast<std::byte>(harness.between(115, 128));
  }
  return bytes;
}

WeightPair make_weights(Harness& harness, std::span<const SegmentSpec> segments, int64_t columns,
                        int64_t experts) {
  WeightSource source;
  source.experts = experts;
  source.columns = columns;
  std::vector<std::vector<std::byte>> memory;
  for (int64_t e = 0; e < experts; ++e) {
    for (const SegmentSpec& segment : segments) {
      memory.push_back(random_rows(harness, segment.dtype, segment.rows, columns));
      source.parts.push_back({segment.dtype, segment.rows, memory.back().data()});
    }
  }
  WeightPair pair{harness.chip().make_weight(source), harness.law().make_weight(source)};
  // The file's bytes can be had back.
  for (size_t i = 0; i < memory.size(); ++i) {
    std::vector<std::byte> back(memory[i].size());
    harness.chip().read_weight(*pair.chip, static_cast<int64_t>(i / segments.size()), i % segments.size(),
                               back.data());
    if (back != memory[i]) {
      throw_error(ErrorKind::kInvalidInput, "read_weight: segment {} of {} is not what the file had", i,
                  traits(source.parts[i].dtype).name);
    }
  }
  return pair;
}

}  // namespace qiao::conformance
