// Random weights of every format, on the chip and for the law.
#include <array>
#include <cmath>
#include <cstring>

#include "backend/conformance/harness.h"
#include "base/error.h"
#include "tensor/half.h"

namespace qiao::conformance {
namespace {

constexpr std::array kWeightDTypes = {
    DType::kF32,  DType::kF16,    DType::kBF16,   DType::kQ4_0,  DType::kQ4_1,  DType::kQ5_0,
    DType::kQ5_1, DType::kQ8_0,   DType::kQ2_K,   DType::kQ3_K,  DType::kQ4_K,  DType::kQ5_K,
    DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS, DType::kMXFP4, DType::kF8_128};

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
  if (dtype == DType::kF8_128) return {Compute::kF32, Compute::kF8};
  if (traits(dtype).quantized) return {Compute::kF32, Compute::kQ8};
  if (dtype == DType::kBF16) return {Compute::kF32, Compute::kBF16};
  return {Compute::kF32};
}

std::string_view name(Compute compute) {
  static constexpr std::string_view kNames[] = {"f32", "bf16", "q8", "f8"};
  return kNames[static_cast<size_t>(compute)];
}

Harness::Peak peak_of(Compute compute) {
  static constexpr Harness::Peak kPeaks[] = {Harness::Peak::kF32, Harness::Peak::kBF16, Harness::Peak::kInt8,
                                             Harness::Peak::kF8};
  return kPeaks[static_cast<size_t>(compute)];
}

double sum_bound(const Backend& chip, Compute compute, int64_t columns, double magnitude, double x_sum,
                 double w_sum) {
  // A flushed or underflowing result or operand loses at most the least normal number, times the other one.
  constexpr double kLeastNormal = 0x1p-126;
  const auto k = static_cast<double>(columns);
  const double m = compute == Compute::kQ8   ? 3 * k / kQ8Block + 4
                   : compute == Compute::kF8 ? 3 * k / kF8Block + 5
                                             : k + 2;
  double bound = gamma(m) * magnitude + kLeastNormal * (m + x_sum + w_sum);
  if (compute == Compute::kF8) bound += block_sum_bound(chip, columns, magnitude);
  return bound;
}

double block_sum_bound(const Backend& chip, int64_t terms, double magnitude) {
  return 132 * std::ldexp(1.0, -chip.e4m3_sum_bits()) * magnitude +
         0x1p-126 * 0x1p18 * static_cast<double>(terms);
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
    if (dtype == DType::kF8_128) {  // no NaN among the numbers; a scale that has all of F32's bits
      for (size_t i = 0; i < static_cast<size_t>(kF8Block); ++i)
        if ((b[i] & std::byte{0x7f}) == std::byte{0x7f}) b[i] ^= std::byte{1};
      const float scale = harness.chance(0.03) ? 0.0f : harness.chance(0.03) ? 1e-41f : 1e-4f;
      const float value = scale * std::abs(harness.normal());
      std::memcpy(b + kF8Block, &value, sizeof value);
    }
  }
  return bytes;
}

namespace {

// Rows of F8_128 have the scales of the first of their 128.
void square_scales(std::vector<std::byte>& rows, int64_t columns) {
  const int64_t row = row_bytes(DType::kF8_128, columns), block = row_bytes(DType::kF8_128, kF8Block);
  for (int64_t r = 0; r < std::ssize(rows) / row; ++r) {
    for (int64_t at = kF8Block; at < row; at += block) {
      std::memcpy(rows.data() + r * row + at, rows.data() + r / kF8Block * kF8Block * row + at,
                  sizeof(float));
    }
  }
}

}  // namespace

WeightPair make_weights(Harness& harness, std::span<const SegmentSpec> segments, int64_t columns,
                        int64_t experts, Scales scales) {
  WeightSource source;
  source.experts = experts;
  source.columns = columns;
  source.square_scales = scales == Scales::kSquare;
  std::vector<std::vector<std::byte>> memory;
  for (int64_t e = 0; e < experts; ++e) {
    for (const SegmentSpec& segment : segments) {
      memory.push_back(random_rows(harness, segment.dtype, segment.rows, columns));
      if (source.square_scales && segment.dtype == DType::kF8_128) square_scales(memory.back(), columns);
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

namespace {

// Rows of one expert replaced: read_weight gives the law's bytes, other experts keep theirs, and a product is
// that with a weight made of those bytes.
void write_case(Harness& h, size_t line, std::span<const SegmentSpec> segments) {
  const int64_t block = traits(segments.front().dtype).block_elements, experts = h.between(1, 3);
  const int64_t columns = block == 1 ? h.pick<int64_t>({1, 7, 16, 64, 129, 700}) : block * h.between(1, 3);
  int64_t rows = 0;
  for (const SegmentSpec& segment : segments) rows += segment.rows;
  const WeightPair weights = make_weights(h, segments, columns, experts, Scales::kSquare);
  Guarded values(h, DType::kF32, {rows, columns});
  const bool wild = h.chance(0.5);
  values.fill([&] {
    const float ordinary = h.normal() * 0.05f;
    return wild ? h.pick({ordinary, 0.0f, -0.0f, 65519.0f, 65520.0f, -3e38f, 1e-40f, 6e-8f * h.normal()})
                : ordinary;
  });
  const int64_t expert = h.between(0, experts - 1);
  h.chip().write_weight(*weights.chip, expert, values.device());
  h.law().write_weight(*weights.law, expert, values.host());
  values.download(line, "values", false);
  std::vector<std::vector<std::byte>> memory;
  WeightSource source;
  source.experts = experts;
  source.columns = columns;
  for (int64_t e = 0; e < experts; ++e) {
    for (size_t s = 0; s < segments.size(); ++s) {
      std::vector<std::byte> expected(
          static_cast<size_t>(segments[s].rows * row_bytes(segments[s].dtype, columns)));
      std::vector<std::byte> actual(expected.size());
      h.law().read_weight(*weights.law, e, s, expected.data());
      h.chip().read_weight(*weights.chip, e, s, actual.data());
      if (actual != expected) {
        h.fail(line, fmt::format("segment {} of expert {} of {}, {} written, is not the rounded values", s, e,
                                 experts, expert));
      }
      memory.push_back(std::move(expected));
      source.parts.push_back({segments[s].dtype, segments[s].rows, memory.back().data()});
    }
  }
  if (wild) return;
  const std::unique_ptr<Weight> fresh = h.chip().make_weight(source);
  Guarded counts(h, DType::kI32, {experts}), x(h, DType::kF32, {2 * experts, columns});
  Guarded y(h, DType::kF32, {2 * experts, rows}), again(h, DType::kF32, {2 * experts, rows});
  counts.fill([] { return int32_t{2}; });
  x.fill([&] { return h.normal(); });
  GroupedLinear op;
  op.x = x.device(), op.counts = counts.device();
  for (const auto& [weight, out] :
       {std::pair<const Weight*, Guarded*>{weights.chip.get(), &y}, {fresh.get(), &again}}) {
    op.weight = weight, op.y = out->device();
    h.give_workspace(&op);
    h.chip().grouped_linear(op);
    out->download(line, "y");
  }
  for (int64_t i = 0; i < y.elements(); ++i) {
    h.element(line, y.result_at(i), again.result_at(i), 0, i / rows, i % rows);
  }
}

}  // namespace

void conform_write_weight(Harness& h) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8_128}) {
    const size_t line = h.line("write_weight", traits(dtype).name);
    for (int i = 0; i < (h.options().quick ? 6 : 24); ++i) {
      const SegmentSpec segment{dtype, h.pick<int64_t>({1, 15, 16, 17, 33, 100, 129, 300})};
      h.run_case(line, [&] { write_case(h, line, {&segment, 1}); });
    }
    h.run_case(line, [&] {
      if (!h.benches()) return;
      const SegmentSpec segment{dtype, 1536};
      const WeightPair weights = make_weights(h, {&segment, 1}, 768, 1, Scales::kSquare);
      Guarded values(h, DType::kF32, {1536, 768});
      values.fill([&] { return h.normal(); });
      const auto bytes = static_cast<double>(values.elements() * 4 + row_bytes(dtype, values.elements()));
      h.bench(line, "N=1536 K=768", bytes, 0, Harness::Peak::kNone,
              [&] { h.chip().write_weight(*weights.chip, 0, values.device()); });
    });
  }
  const size_t line = h.line("write_weight", "mixed");
  const SegmentSpec segments[] = {{DType::kF16, 33}, {DType::kBF16, 5}, {DType::kF32, 17}};
  for (int i = 0; i < (h.options().quick ? 6 : 24); ++i)
    h.run_case(line, [&] { write_case(h, line, segments); });
  // Fused projections: each part has scales of its own.
  const size_t fused = h.line("write_weight", "F8_128");
  const SegmentSpec parts[] = {{DType::kF8_128, 130}, {DType::kF8_128, 8}, {DType::kF8_128, 50}};
  for (int i = 0; i < (h.options().quick ? 3 : 12); ++i)
    h.run_case(fused, [&] { write_case(h, fused, parts); });
}

}  // namespace qiao::conformance
