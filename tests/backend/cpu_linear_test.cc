#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "cpu_weights.h"

namespace qiao::cpu {
namespace {

// The contract of Compute, written plainly.
struct Rounded {
  std::vector<double> values;
};
Rounded as_computed(const std::vector<float>& x, Compute compute) {
  Rounded r;
  r.values.assign(x.begin(), x.end());
  if (compute == Compute::kBF16) {
    for (size_t i = 0; i < x.size(); ++i) r.values[i] = bf16_to_float(float_to_bf16(x[i]));
  }
  if (compute == Compute::kF8) {
    for (size_t i = 0; i < x.size(); i += 128) {
      float most = 0;
      for (size_t j = i; j < i + 128; ++j) most = std::max(most, std::fabs(x[j]));
      const float scale = most / 448.0f, inverse = most == 0 ? 0.0f : 448.0f / most;
      for (size_t j = i; j < i + 128; ++j) {
        const float number = e4m3_to_float(float_to_e4m3(x[j] * inverse));
        r.values[j] = static_cast<double>(scale) * static_cast<double>(number);
      }
    }
  }
  if (compute == Compute::kQ8) {
    for (size_t i = 0; i < x.size(); i += 32) {
      float most = 0;
      for (size_t j = i; j < i + 32; ++j) most = std::max(most, std::fabs(x[j]));
      const float scale = most / 127.0f, inverse = most == 0 ? 0.0f : 127.0f / most;
      for (size_t j = i; j < i + 32; ++j) {
        r.values[j] = static_cast<double>(scale) * static_cast<double>(std::nearbyintf(x[j] * inverse));
      }
    }
  }
  return r;
}

// |y - sum x w| within gamma_m * sum |x w| + u |y|, in float64.
void expect_within_bound(const std::vector<float>& y, const std::vector<float>& x,
                         const std::vector<float>& w, int64_t rows, int64_t outputs, int64_t columns,
                         Compute compute, double slack, const std::string& what) {
  constexpr double u = 0x1p-24;
  const double m = compute == Compute::kQ8   ? 3.0 * static_cast<double>(columns) / 32 + 4
                   : compute == Compute::kF8 ? 128 + 3.0 * static_cast<double>(columns) / 128 + 5
                                             : static_cast<double>(columns) + 2;
  const double gamma = m * u / (1 - m * u);
  const Rounded r = as_computed(x, compute);
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < columns; ++k) {
        const double term = r.values[static_cast<size_t>(t * columns + k)] *
                            static_cast<double>(w[static_cast<size_t>(n * columns + k)]);
        sum += term;
        magnitude += std::fabs(term);
      }
      const double got = static_cast<double>(y[static_cast<size_t>(t * outputs + n)]);
      const double bound = gamma * magnitude * slack + u * std::fabs(sum);
      ASSERT_TRUE(std::fabs(got - sum) <= bound) << what << " row " << t << " output " << n << ": " << got
                                                 << ", expected " << sum << " +- " << bound;
    }
  }
}

std::string describe(DType dtype, Isa isa) {
  return std::string(traits(dtype).name) + " " + std::string(name(isa));
}

TEST(CpuLinear, IsWithinTheBoundOfPlainLoops) {
  std::mt19937 random(11);
  ThreadPool pool(2);
  constexpr int64_t kColumns = 1280, kOutputs = 49, kRows = 7;
  const std::vector<float> x = random_floats(kRows * kColumns, random);
  const auto check = [&](DType dtype, int fill, std::vector<Compute> computes) {
    const std::vector<std::byte> rows = random_rows(dtype, kOutputs, kColumns, random, fill);
    const CpuWeight weight = make_cpu_weight({1, kColumns, {{dtype, kOutputs, rows.data()}}}, pool);
    const std::vector<float> w = dequantized(weight, Isa::kGeneric, pool);
    for (const Isa isa : usable_isas()) {
      for (const Compute compute : computes) {
        // With a minimum, w = d q + m may cancel where d q and m do not.
        const bool cancels =
            traits(dtype).quantized && dtype != DType::kF8_128 && has_minimum(format_form(dtype).family);
        expect_within_bound(linear(weight, x, compute, isa, pool), x, w, kRows, kOutputs, kColumns, compute,
                            cancels && compute == Compute::kQ8 ? 4 : 1, describe(dtype, isa));
      }
    }
  };
  for (const DType dtype : kBlockFormats) {
    for (const int fill : {-1, 0, 255, 127, 128}) check(dtype, fill, {Compute::kF32, Compute::kQ8});
  }
  for (const DType dtype : kPlainFormats) check(dtype, -1, {Compute::kF32, Compute::kBF16});
  for (const int fill : {-1, 0, 1, 7, 126, 254}) check(DType::kF8_128, fill, {Compute::kF32, Compute::kF8});
}

// The two promises that batch invariance rests on: a row's result is the same bytes whatever stands beside
// it, and on whatever instructions it is computed.
TEST(CpuLinear, GivesTheSameBytesForAnyRowCountAndInstructionSet) {
  std::mt19937 random(12);
  ThreadPool pool(2);
  constexpr int64_t kColumns = 768, kOutputs = 72, kRows = 300;
  const std::vector<float> x = random_floats(kRows * kColumns, random);
  const auto check = [&](DType dtype, Compute compute) {
    const std::vector<std::byte> rows = random_rows(dtype, kOutputs, kColumns, random);
    const CpuWeight weight = make_cpu_weight({1, kColumns, {{dtype, kOutputs, rows.data()}}}, pool);
    const std::vector<float> expected =
        linear(weight, {x.begin(), x.begin() + 17 * kColumns}, compute, Isa::kGeneric, pool);
    for (const Isa isa : usable_isas()) {
      // vdpbf16ps flushes subnormal products and is compared with itself only.
      const bool own = compute == Compute::kBF16 && dtype == DType::kBF16;
      std::vector<float> reference = expected;
      if (own) reference = linear(weight, {x.begin(), x.begin() + 17 * kColumns}, compute, isa, pool);
      for (const int64_t count : {1, 2, 3, 4, 5, 7, 16, 17, 256, 300}) {
        if (isa == Isa::kGeneric && count > 17) continue;
        const std::vector<float> y =
            linear(weight, {x.begin(), x.begin() + count * kColumns}, compute, isa, pool);
        const auto bytes = static_cast<size_t>(std::min<int64_t>(count, 17) * kOutputs) * sizeof(float);
        ASSERT_EQ(std::memcmp(y.data(), reference.data(), bytes), 0)
            << describe(dtype, isa) << " x " << count << " compute " << static_cast<int>(compute);
      }
    }
  };
  for (const DType dtype : kBlockFormats) check(dtype, Compute::kQ8);
  check(DType::kQ4_K, Compute::kF32);
  check(DType::kF8_128, Compute::kF8);
  check(DType::kF8_128, Compute::kF32);
  for (const DType dtype : kPlainFormats) check(dtype, Compute::kF32);
  check(DType::kBF16, Compute::kBF16);
  check(DType::kF16, Compute::kBF16);
}

TEST(CpuLinear, DoesItsEpilogueOnStridedRowsAndMixedSegments) {
  std::mt19937 random(13);
  ThreadPool pool(2);
  constexpr int64_t kColumns = 512, kRows = 3;
  const std::vector<std::byte> a = random_rows(DType::kQ4_K, 40, kColumns, random);
  const std::vector<std::byte> b = random_rows(DType::kQ6_K, 9, kColumns, random);
  const WeightSource source{1, kColumns, {{DType::kQ4_K, 40, a.data()}, {DType::kQ6_K, 9, b.data()}}};
  const CpuWeight weight = make_cpu_weight(source, pool);
  std::vector<float> x = random_floats(kRows * kColumns, random);
  std::vector<float> bias = random_floats(49, random), residual = random_floats(kRows * 50, random);
  const Isa isa = widest_isa();
  const std::vector<float> plain = linear(weight, x, Compute::kQ8, isa, pool);
  const CpuWeight first = make_cpu_weight({1, kColumns, {source.parts[0]}}, pool);
  const CpuWeight second = make_cpu_weight({1, kColumns, {source.parts[1]}}, pool);
  const std::vector<float> left = linear(first, x, Compute::kQ8, isa, pool);
  const std::vector<float> right = linear(second, x, Compute::kQ8, isa, pool);
  for (int64_t t = 0; t < kRows; ++t) {
    for (int64_t n = 0; n < 49; ++n) {
      const float part =
          n < 40 ? left[static_cast<size_t>(t * 40 + n)] : right[static_cast<size_t>(t * 9 + n - 40)];
      ASSERT_EQ(plain[static_cast<size_t>(t * 49 + n)], part);
    }
  }

  // x in rows of 520, y in place of a residual in rows of 50.
  std::vector<float> wide(static_cast<size_t>(kRows * 520), NAN);
  for (int64_t t = 0; t < kRows; ++t) {
    std::copy_n(x.data() + t * kColumns, kColumns, wide.data() + t * 520);
  }
  struct Case {
    Activation activation;
    double (*f)(double);
  };
  const Case cases[] = {
      {Activation::kNone, [](double v) { return v; }},
      {Activation::kSilu, [](double v) { return v / (1 + std::exp(-v)); }},
      {Activation::kGelu, [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); }},
      {Activation::kGeluTanh,
       [](double v) {
         return 0.5 * v * (1 + std::tanh(std::sqrt(2 / 3.14159265358979) * (v + 0.044715 * v * v * v)));
       }},
      {Activation::kSoftCap, [](double v) { return 30 * std::tanh(v / 30); }},
  };
  for (const Case& c : cases) {
    std::vector<float> y = residual;
    Linear op;
    op.x = Tensor(wide.data(), DType::kF32, {kRows, kColumns});
    op.x.stride[0] = 520;
    op.weight = &weight;
    op.bias = Tensor(bias.data(), DType::kF32, {49});
    op.y = Tensor(y.data(), DType::kF32, {kRows, 49});
    op.y.stride[0] = 50;
    op.residual = op.y;
    op.activation = c.activation;
    op.soft_cap = 30;
    op.compute = Compute::kQ8;
    const Workspace workspace(linear_workspace_bytes(op, pool.size()));
    op.workspace = workspace.tensor;
    run_linear(op, linear_kernels(isa), pool);
    for (int64_t t = 0; t < kRows; ++t) {
      for (int64_t n = 0; n < 49; ++n) {
        const auto at = static_cast<size_t>(t * 50 + n);
        const double sum = static_cast<double>(plain[static_cast<size_t>(t * 49 + n)]) +
                           static_cast<double>(bias[static_cast<size_t>(n)]);
        const double expected = c.f(sum) + static_cast<double>(residual[at]);
        EXPECT_NEAR(static_cast<double>(y[at]), expected, 1e-5 * (1 + std::fabs(sum)))
            << static_cast<int>(c.activation) << " at " << sum;
      }
      EXPECT_EQ(y[static_cast<size_t>(t * 50 + 49)], residual[static_cast<size_t>(t * 50 + 49)]);
    }
  }
}

TEST(CpuLinear, CarriesNanAndInfinityThroughQuantization) {
  std::mt19937 random(14);
  ThreadPool pool(1);
  const std::vector<std::byte> rows = random_rows(DType::kQ8_0, 16, 64, random);
  const CpuWeight weight = make_cpu_weight({1, 64, {{DType::kQ8_0, 16, rows.data()}}}, pool);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> x = random_floats(2 * 64, random);
    x[64 + 40] = bad;
    for (const Isa isa : usable_isas()) {
      const std::vector<float> y = linear(weight, x, Compute::kQ8, isa, pool);
      for (size_t n = 0; n < 16; ++n) {
        EXPECT_TRUE(std::isfinite(y[n])) << name(isa);
        EXPECT_FALSE(std::isfinite(y[16 + n])) << name(isa);
      }
    }
  }
}

// Scales from F32's ends, and every code but NaN's; rows of x from one to more than are read as they are.
TEST(CpuLinear, MultipliesF8TheSameWayOnEverySetAndForAnyRows) {
  std::mt19937 random(17);
  ThreadPool pool(1);
  constexpr int64_t kColumns = 640, kOutputs = 20;
  std::vector<std::byte> rows = random_rows(DType::kF8_128, kOutputs, kColumns, random);
  constexpr float kScales[] = {0x1p-149f, 0x1.8p-130f, 0x1.234568p-120f, 0x1.fedcbap-100f, 0x1.fffffep+102f};
  size_t at = kF8Block;
  for (int i = 0; at < rows.size(); ++i, at += kF8Block + sizeof(float)) {
    std::memcpy(rows.data() + at, &kScales[i / 5 % 5], sizeof(float));
  }
  const CpuWeight weight = make_cpu_weight({1, kColumns, {{DType::kF8_128, kOutputs, rows.data()}}}, pool);
  const std::vector<float> x = random_floats(19 * kColumns, random);
  for (const Compute compute : {Compute::kF32, Compute::kF8}) {
    const std::vector<float> expected = linear(weight, x, compute, Isa::kGeneric, pool);
    for (const float y : expected) ASSERT_TRUE(std::isfinite(y));
    for (const Isa isa : usable_isas()) {
      for (int64_t count = 1; count <= 19; ++count) {
        const std::vector<float> y =
            linear(weight, {x.begin(), x.begin() + count * kColumns}, compute, isa, pool);
        ASSERT_EQ(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)), 0)
            << name(isa) << " x " << count << " compute " << static_cast<int>(compute);
      }
      EXPECT_TRUE(dequantized(weight, isa, pool) == dequantized(weight, Isa::kGeneric, pool)) << name(isa);
    }
  }
}

TEST(CpuLinear, CarriesNanCodesOfF8ToTheirOutputsAlone) {
  std::mt19937 random(18);
  ThreadPool pool(1);
  constexpr int64_t kColumns = 1408, kOutputs = 37, kRow = kColumns / kF8Block * (kF8Block + 4);
  const std::vector<std::byte> clean = random_rows(DType::kF8_128, kOutputs, kColumns, random);
  std::vector<std::byte> rows = clean;
  const auto spoil = [&](int64_t row, int64_t k, int code) {
    rows[static_cast<size_t>(row * kRow + k + k / kF8Block * 4)] = static_cast<std::byte>(code);
    return static_cast<size_t>(row);
  };
  std::vector<bool> bad(kOutputs);
  for (const auto& [row, k, code] : {std::array<int, 3>{0, 0, 0x7f},
                                     {7, 1, 0xff},
                                     {15, 1407, 0x7f},
                                     {16, 130, 0xff},
                                     {27, 643, 0x7f},
                                     {36, 900, 0xff}}) {
    bad[spoil(row, k, code)] = true;
  }
  const CpuWeight weight = make_cpu_weight({1, kColumns, {{DType::kF8_128, kOutputs, rows.data()}}}, pool);
  const CpuWeight whole = make_cpu_weight({1, kColumns, {{DType::kF8_128, kOutputs, clean.data()}}}, pool);
  for (const Compute compute : {Compute::kF32, Compute::kF8}) {
    for (const Isa isa : usable_isas()) {
      for (const int64_t count : {1, 2, 3, 4, 7, 40}) {
        const std::vector<float> x = random_floats(count * kColumns, random);
        const std::vector<float> y = linear(weight, x, compute, isa, pool);
        const std::vector<float> expected = linear(whole, x, compute, isa, pool);
        for (size_t i = 0; i < y.size(); ++i) {
          if (bad[i % kOutputs]) {
            ASSERT_TRUE(std::isnan(y[i])) << name(isa) << " x " << count << " at " << i;
          } else {
            ASSERT_EQ(y[i], expected[i]) << name(isa) << " x " << count << " at " << i;
          }
        }
      }
    }
  }
}

TEST(CpuGroupedLinear, IsLinearForEachExpertsRows) {
  std::mt19937 random(15);
  ThreadPool pool(2);
  constexpr int64_t kColumns = 256, kOutputs = 50, kExperts = 5;
  std::vector<int32_t> counts = {3, 0, 300, 1, 0};
  const int64_t rows = 304;
  std::vector<std::vector<std::byte>> parts;
  WeightSource source{kExperts, kColumns, {}};
  for (int64_t e = 0; e < kExperts; ++e)
    parts.push_back(random_rows(DType::kQ4_K, kOutputs, kColumns, random));
  for (const auto& part : parts) source.parts.push_back({DType::kQ4_K, kOutputs, part.data()});
  const CpuWeight weight = make_cpu_weight(source, pool);
  std::vector<float> x = random_floats(rows * kColumns, random);
  for (const Compute compute : {Compute::kQ8, Compute::kF32}) {
    for (const Isa isa : usable_isas()) {
      std::vector<float> y(static_cast<size_t>(rows * kOutputs));
      GroupedLinear op;
      op.x = Tensor(x.data(), DType::kF32, {rows, kColumns});
      op.weight = &weight;
      op.counts = Tensor(counts.data(), DType::kI32, {kExperts});
      op.compute = compute;
      op.y = Tensor(y.data(), DType::kF32, {rows, kOutputs});
      const Workspace workspace(linear_workspace_bytes(op, pool.size()));
      op.workspace = workspace.tensor;
      run_grouped_linear(op, linear_kernels(isa), pool);
      int64_t first = 0;
      for (size_t e = 0; e < kExperts; ++e) {
        if (counts[e] == 0) continue;
        const CpuWeight one = make_cpu_weight({1, kColumns, {source.parts[e]}}, pool);
        const std::vector<float> expected =
            linear(one, {x.begin() + first * kColumns, x.begin() + (first + counts[e]) * kColumns}, compute,
                   isa, pool);
        EXPECT_EQ(std::memcmp(expected.data(), y.data() + first * kOutputs, expected.size() * sizeof(float)),
                  0)
            << name(isa) << " expert " << e;
        first += counts[e];
      }
    }
  }
}

TEST(CpuGather, ReadsRowsOfAnySegmentScaled) {
  std::mt19937 random(16);
  ThreadPool pool(2);
  std::vector<std::byte> a = random_rows(DType::kF32, 3, 100, random);
  std::vector<std::byte> b = random_rows(DType::kBF16, 18, 100, random);
  const CpuWeight weight =
      make_cpu_weight({1, 100, {{DType::kF32, 3, a.data()}, {DType::kBF16, 18, b.data()}}}, pool);
  std::vector<int32_t> ids = {20, 0, 2, 3, 20};
  std::vector<float> out(5 * 100);
  Gather op;
  op.table = &weight;
  op.ids = Tensor(ids.data(), DType::kI32, {5});
  op.scale = 24.0f;
  op.out = Tensor(out.data(), DType::kF32, {5, 100});
  run_gather(op, linear_kernels(widest_isa()), pool);
  for (size_t t = 0; t < 5; ++t) {
    for (size_t k = 0; k < 100; ++k) {
      const auto id = static_cast<size_t>(ids[t]);
      float value = 0;
      if (id < 3) {
        std::memcpy(&value, a.data() + (id * 100 + k) * 4, 4);
      } else {
        uint16_t bits;
        std::memcpy(&bits, b.data() + ((id - 3) * 100 + k) * 2, 2);
        value = bf16_to_float(bits);
      }
      ASSERT_EQ(out[t * 100 + k], 24.0f * value) << t << " " << k;
    }
  }
}

}  // namespace
}  // namespace qiao::cpu
