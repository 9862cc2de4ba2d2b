// The CPU's way back of linear: any number of threads gives the same bits, so do all sets of fused
// instructions and a batch in pieces, and they are within the contract's bound of float64.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "backend/cpu/linear_backward.h"
#include "backend/cpu/linear_backward_inl.h"
#include "backend/cpu/simd_generic.h"
#include "cpu_weights.h"
#include "tensor/fp8.h"

namespace qiao::cpu {
namespace {

struct Gradients {
  std::vector<float> dx, dw, dbias;
  bool operator==(const Gradients&) const = default;
};

// The product of pairs that AVX-512 BF16 has as one instruction (Intel's manual: the odd product first, each
// fused), in plain C++.
struct PairsGeneric : generic::Simd {
  static F fma(const F& x, const F& w, const F& sum) {
    float lanes[3][16];
    store(lanes[0], x), store(lanes[1], w), store(lanes[2], sum);
    for (int i = 0; i < 16; ++i) {
      uint16_t a[2], b[2];
      std::memcpy(a, &lanes[0][i], sizeof a);
      std::memcpy(b, &lanes[1][i], sizeof b);
      for (const int half : {1, 0})
        lanes[2][i] = std::fma(bf16_to_float(a[half]), bf16_to_float(b[half]), lanes[2][i]);
    }
    return load(lanes[2]);
  }
};
const LinearBackwardKernels kPairs = pair_kernels<generic::Simd, PairsGeneric>();

std::vector<float> rounded(std::vector<float> values) {
  for (float& v : values) v = bf16_to_float(float_to_bf16(v));
  return values;
}

Gradients backward(const CpuWeight& weight, std::vector<float> dy, std::vector<float> x, Isa isa,
                   ThreadPool& pool, Compute compute = Compute::kF32,
                   const LinearBackwardKernels* kernels = nullptr) {
  const int64_t rows = weight.rows(), columns = weight.columns();
  const int64_t tokens = static_cast<int64_t>(dy.size()) / rows;
  Gradients g{std::vector<float>(x.size(), -777.0f),
              std::vector<float>(static_cast<size_t>(rows * columns), 0.5f),
              std::vector<float>(static_cast<size_t>(rows), 0.25f)};
  LinearBackward op;
  op.weight = &weight;
  op.compute = compute;
  op.dy = Tensor(dy.data(), DType::kF32, {tokens, rows});
  op.x = Tensor(x.data(), DType::kF32, {tokens, columns});
  op.dx = Tensor(g.dx.data(), DType::kF32, {tokens, columns});
  op.dw = Tensor(g.dw.data(), DType::kF32, {rows, columns});
  op.dbias = Tensor(g.dbias.data(), DType::kF32, {rows});
  const Workspace workspace(linear_backward_workspace_bytes(op, pool.size()));
  op.workspace = workspace.tensor;
  std::memset(workspace.tensor.data, 0xff, static_cast<size_t>(workspace.tensor.bytes()));
  run_linear_backward(op, linear_kernels(isa), kernels != nullptr ? *kernels : gradient_kernels(isa), pool);
  return g;
}

void expect_near(double actual, double expected, double magnitude, int64_t terms, const std::string& what) {
  const double m = static_cast<double>(terms + 2) * 0x1p-24;
  ASSERT_TRUE(std::fabs(actual - expected) <= m / (1 - m) * magnitude + 0x1p-120) << what;
}

TEST(CpuLinearBackward, ThreadsAndFusedInstructionsAgree) {
  std::mt19937 random(1);
  ThreadPool one(1), three(3);
  struct Shape {
    int64_t tokens, rows, columns;
  };
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_K}) {
    const int64_t block = traits(dtype).block_elements;
    for (const Shape& shape : {Shape{1, 1, 1}, {7, 17, 65}, {97, 100, 131}, {530, 49, 640}, {13, 1030, 64}}) {
      const int64_t columns = (shape.columns + block - 1) / block * block;
      const auto rows = random_rows(dtype, shape.rows, columns, random);
      WeightSource source;
      source.columns = columns;
      source.parts = {{dtype, shape.rows, rows.data()}};
      const CpuWeight weight = make_cpu_weight(source, one);
      const auto dy = random_floats(shape.tokens * shape.rows, random);
      const auto x = random_floats(shape.tokens * columns, random);
      const auto w = dequantized(weight, Isa::kGeneric, one);
      std::vector<Gradients> of_isas;
      for (const Isa isa : usable_isas()) {
        of_isas.push_back(backward(weight, dy, x, isa, one));
        const Gradients& g = of_isas.back();
        EXPECT_TRUE(backward(weight, dy, x, isa, three) == g) << name(isa);
        // From AVX2 on, multiply-adds are fused.
        if (isa > Isa::kAvx2) {
          EXPECT_TRUE(of_isas[static_cast<size_t>(Isa::kAvx2)] == g) << name(isa);
        }
        // A row and a column of each, in float64.
        for (int64_t k = 0; k < columns; k += 13) {
          double sum = 0, magnitude = 0;
          const int64_t t = shape.tokens / 2, n = shape.rows / 3;
          for (int64_t i = 0; i < shape.rows; ++i) {
            const double term = static_cast<double>(dy[static_cast<size_t>(t * shape.rows + i)]) *
                                w[static_cast<size_t>(i * columns + k)];
            sum += term, magnitude += std::fabs(term);
          }
          expect_near(g.dx[static_cast<size_t>(t * columns + k)], sum, magnitude, shape.rows, "dx");
          sum = magnitude = 0.5;
          for (int64_t i = 0; i < shape.tokens; ++i) {
            const double term = static_cast<double>(dy[static_cast<size_t>(i * shape.rows + n)]) *
                                x[static_cast<size_t>(i * columns + k)];
            sum += term, magnitude += std::fabs(term);
          }
          expect_near(g.dw[static_cast<size_t>(n * columns + k)], sum, magnitude, shape.tokens, "dw");
        }
      }
    }
  }
}

// In BF16: what kF32 makes of rounded operands, and by pairs the same within the bound.
TEST(CpuLinearBackward, InBF16OperandsAreRounded) {
  std::mt19937 random(4);
  ThreadPool one(1), three(3);
  struct Shape {
    int64_t tokens, rows, columns;
  };
  for (const Shape& shape : {Shape{1, 1, 1}, {7, 17, 65}, {97, 100, 131}, {531, 49, 640}, {13, 1031, 64}}) {
    const auto bytes = random_rows(DType::kBF16, shape.rows, shape.columns, random);
    WeightSource source;
    source.columns = shape.columns;
    source.parts = {{DType::kBF16, shape.rows, bytes.data()}};
    const CpuWeight weight = make_cpu_weight(source, one);
    const auto dy = random_floats(shape.tokens * shape.rows, random);
    const auto x = random_floats(shape.tokens * shape.columns, random);
    for (const Isa isa : usable_isas()) {
      const Gradients g = backward(weight, dy, x, isa, one, Compute::kBF16);
      EXPECT_TRUE(backward(weight, dy, x, isa, three, Compute::kBF16) == g) << name(isa);
      if (isa == Isa::kAvx512Bf16) continue;
      Gradients expected = backward(weight, rounded(dy), rounded(x), isa, one);
      expected.dbias = backward(weight, dy, x, isa, one).dbias;
      EXPECT_TRUE(g == expected) << name(isa);
    }
    const auto magnitudes = [](std::vector<float> values) {
      for (float& v : values) v = std::fabs(v);
      return values;
    };
    const auto w = dequantized(weight, Isa::kGeneric, one);
    const Gradients pairs = backward(weight, dy, x, Isa::kGeneric, one, Compute::kBF16, &kPairs);
    EXPECT_TRUE(backward(weight, dy, x, Isa::kGeneric, three, Compute::kBF16, &kPairs) == pairs);
    const auto dy_of = rounded(dy), x_of = rounded(x), dy_size = magnitudes(dy_of), x_size = magnitudes(x_of);
    const auto at = [](const std::vector<float>& list, int64_t i) { return list[static_cast<size_t>(i)]; };
    for (int64_t t = 0; t < shape.tokens; t += 5) {
      for (int64_t k = 0; k < shape.columns; k += 13) {
        double sum = 0, magnitude = 0;
        for (int64_t n = 0; n < shape.rows; ++n) {
          const double term =
              static_cast<double>(at(dy_of, t * shape.rows + n)) * at(w, n * shape.columns + k);
          sum += term, magnitude += std::fabs(term);
        }
        expect_near(at(pairs.dx, t * shape.columns + k), sum, magnitude, shape.rows, "dx");
      }
    }
    for (int64_t n = 0; n < shape.rows; n += 3) {
      for (int64_t k = 0; k < shape.columns; k += 13) {
        double sum = 0.5, magnitude = 0.5;
        for (int64_t t = 0; t < shape.tokens; ++t) {
          const double term =
              static_cast<double>(at(dy_of, t * shape.rows + n)) * at(x_of, t * shape.columns + k);
          sum += term, magnitude += std::fabs(term);
        }
        expect_near(at(pairs.dw, n * shape.columns + k), sum, magnitude, shape.tokens, "dw");
      }
    }
  }
}

std::vector<float> in_e4m3(const std::vector<float>& block) {
  float most = 0;
  for (const float v : block) most = std::max(most, std::fabs(v));
  std::vector<float> made;
  for (const float v : block)
    made.push_back(most / kMostE4M3 * e4m3_to_float(float_to_e4m3(v * (kMostE4M3 / most))));
  return made;
}

// Rows [tokens, width] rounded in blocks of 128 along them from each of `starts` on, or by columns.
std::vector<float> rounded_rows(std::vector<float> rows, int64_t width, std::vector<int64_t> starts) {
  starts.push_back(width);
  for (auto row = rows.begin(); row != rows.end(); row += width) {
    for (size_t s = 0; s + 1 < starts.size(); ++s) {
      for (int64_t at = starts[s]; at < starts[s + 1]; at += kF8Block) {
        const int64_t end = std::min(at + kF8Block, starts[s + 1]);
        std::ranges::copy(in_e4m3({row + at, row + end}), row + at);
      }
    }
  }
  return rows;
}
std::vector<float> turned(const std::vector<float>& rows, int64_t width) {
  const int64_t count = std::ssize(rows) / width;
  std::vector<float> made;
  for (int64_t k = 0; k < width; ++k)
    for (int64_t t = 0; t < count; ++t) made.push_back(rows[static_cast<size_t>(t * width + k)]);
  return made;
}
std::vector<float> rounded_columns(const std::vector<float>& rows, int64_t width) {
  const int64_t count = std::ssize(rows) / width;
  return turned(rounded_rows(turned(rows, width), count, {0}), count);
}

// In E4M3: what kF32 makes of operands that are rounded and dequantized.
TEST(CpuLinearBackward, InF8OperandsAreRounded) {
  std::mt19937 random(6);
  ThreadPool one(1), three(3);
  struct Shape {
    int64_t tokens;
    std::vector<int64_t> parts;
    int64_t columns;
  };
  for (const Shape& shape :
       {Shape{1, {1}, 128}, {7, {17}, 128}, {129, {100, 3, 600}, 256}, {700, {49}, 384}, {13, {1031}, 128}}) {
    WeightSource source;
    source.columns = shape.columns;
    source.square_scales = true;
    std::vector<std::vector<std::byte>> bytes;
    std::vector<int64_t> starts;
    int64_t rows = 0;
    for (const int64_t part : shape.parts) {
      const std::vector<float> values = random_floats(part * shape.columns, random);
      bytes.emplace_back(static_cast<size_t>(part * row_bytes(DType::kF8_128, shape.columns)));
      quantize_f8(values, part, shape.columns, bytes.back().data());
      starts.push_back(rows);
      rows += part;
    }
    for (size_t i = 0; i < bytes.size(); ++i)
      source.parts.push_back({DType::kF8_128, shape.parts[i], bytes[i].data()});
    const CpuWeight weight = make_cpu_weight(source, one);
    const auto dy = random_floats(shape.tokens * rows, random);
    const auto x = random_floats(shape.tokens * shape.columns, random);
    for (const Isa isa : usable_isas()) {
      const Gradients g = backward(weight, dy, x, isa, one, Compute::kF8);
      EXPECT_TRUE(backward(weight, dy, x, isa, three, Compute::kF8) == g) << name(isa);
      EXPECT_EQ(g.dx, backward(weight, rounded_rows(dy, rows, starts), x, isa, one).dx) << name(isa);
      EXPECT_EQ(g.dw,
                backward(weight, rounded_columns(dy, rows), rounded_columns(x, shape.columns), isa, one).dw)
          << name(isa);
      EXPECT_EQ(g.dbias, backward(weight, dy, x, isa, one).dbias) << name(isa);
    }
  }
}

// A block of zeros stays zeros; a NaN or an infinity shows in its whole block.
TEST(CpuLinearBackward, F8KeepsWhatIsNotFinite) {
  for (const Isa isa : usable_isas()) {
    std::vector<float> row(300, 1.0f), to(row.size());
    std::fill_n(row.begin(), 128, 0.0f);
    row[130] = std::nanf("");
    row[260] = INFINITY;
    gradient_kernels(isa).round_row_f8(row.data(), 300, to.data());
    EXPECT_TRUE(std::all_of(to.begin(), to.begin() + 128, [](float v) { return v == 0; })) << name(isa);
    EXPECT_TRUE(std::all_of(to.begin() + 128, to.end(), [](float v) { return std::isnan(v); })) << name(isa);
    std::vector<float> column(to.size());
    gradient_kernels(isa).round_rows_f8(row.data(), 1, 300, 1, column.data());
    EXPECT_TRUE(std::all_of(column.begin(), column.begin() + 128, [](float v) { return v == 0; }));
    EXPECT_TRUE(std::all_of(column.begin() + 128, column.end(), [](float v) { return std::isnan(v); }));
  }
}

// The rounding of each set is the format's own, for all sorts of numbers.
TEST(CpuLinearBackward, RoundsAsTheFormatDoes) {
  std::mt19937 random(5);
  std::vector<float> from;
  for (const uint32_t bits :
       {0u, 0x80000000u, 0x7f800000u, 0xff800000u, 0x7f7fffffu, 0x7f7f8000u, 0x7f7f7fffu, 1u, 0x8000u,
        0x8001u, 0x18000u, 0x3f808000u, 0x3f818000u, 0x7f800001u, 0xff80ffffu, 0x7fc00000u, 0x7fffffffu})
    from.push_back(std::bit_cast<float>(bits));
  while (from.size() < 1003) from.push_back(std::bit_cast<float>(static_cast<uint32_t>(random())));
  for (const Isa isa : usable_isas()) {
    if (isa == Isa::kAvx512Bf16) continue;  // pairs
    std::vector<float> to(from.size());
    gradient_kernels(isa).round_row(from.data(), std::ssize(from), to.data());
    for (size_t i = 0; i < from.size(); ++i) {
      EXPECT_EQ(std::bit_cast<uint32_t>(to[i]), uint32_t{float_to_bf16(from[i])} << 16)
          << name(isa) << " " << std::bit_cast<uint32_t>(from[i]);
    }
  }
}

// What AVX-512 BF16 is given: plain memory.
TEST(CpuLinearBackward, PairsOfASum) {
  const auto word = [](float low, float high) {
    return uint32_t{float_to_bf16(low)} | uint32_t{float_to_bf16(high)} << 16;
  };
  const LinearBackwardKernels* kernels = &kPairs;
  {
    for (const int64_t count : {1, 2, 15, 16, 17, 32, 35}) {
      std::vector<float> row(static_cast<size_t>(count)), to(row.size() + 1, 7.0f);
      for (int64_t i = 0; i < count; ++i)
        row[static_cast<size_t>(i)] = 1.0f + static_cast<float>(i) * 0x1.8p-7f;
      kernels->round_row(row.data(), count, to.data());
      for (int64_t s = 0; 2 * s < count; ++s) {
        const float high = 2 * s + 1 < count ? row[static_cast<size_t>(2 * s + 1)] : 0.0f;
        EXPECT_EQ(std::bit_cast<uint32_t>(to[static_cast<size_t>(s)]),
                  word(row[static_cast<size_t>(2 * s)], high))
            << count << " " << s;
      }
      EXPECT_EQ(to[static_cast<size_t>((count + 1) / 2)], 7.0f);
    }
    for (const int64_t depth : {1, 2, 5, 8}) {
      for (const int64_t width : {1, 6, 16, 20, 48}) {
        const int64_t stride = width + 3;
        std::vector<float> rows(static_cast<size_t>(depth * stride)), to(rows.size(), 7.0f), dense;
        for (size_t i = 0; i < rows.size(); ++i) rows[i] = 1.0f - static_cast<float>(i) * 0x1.4p-5f;
        for (int64_t s = 0; s < depth; ++s)
          dense.insert(dense.end(), rows.begin() + s * stride, rows.begin() + s * stride + width);
        kernels->round_rows(rows.data(), stride, depth, width, to.data());
        std::vector<float> in_place = dense;
        kernels->round_rows(in_place.data(), width, depth, width, in_place.data());
        for (int64_t s = 0; 2 * s < depth; ++s) {
          for (int64_t j = 0; j < width; ++j) {
            const auto at = [&](int64_t r) {
              return r < depth ? rows[static_cast<size_t>(r * stride + j)] : 0.0f;
            };
            const auto i = static_cast<size_t>(s * width + j);
            EXPECT_EQ(std::bit_cast<uint32_t>(to[i]), word(at(2 * s), at(2 * s + 1)));
            EXPECT_EQ(std::bit_cast<uint32_t>(in_place[i]), std::bit_cast<uint32_t>(to[i]));
          }
        }
        EXPECT_EQ(to[static_cast<size_t>((depth + 1) / 2 * width)], 7.0f);
      }
    }
  }
}

TEST(CpuLinearBackward, PartOfAWeightInPieces) {
  // input_gradient over rows [0, 32), then the rest added: the bits of the whole.
  std::mt19937 random(2);
  ThreadPool pool(2);
  const int64_t tokens = 9, rows = 77, columns = 70;
  const auto bytes = random_rows(DType::kBF16, rows, columns, random);
  WeightSource source;
  source.columns = columns;
  source.parts = {{DType::kBF16, rows, bytes.data()}};
  const CpuWeight weight = make_cpu_weight(source, pool);
  auto dy = random_floats(tokens * rows, random);
  std::vector<float> whole(static_cast<size_t>(tokens * columns)), pieces(whole.size());
  const Workspace workspace(gradient_workspace_bytes(tokens, rows, columns, Compute::kF32, pool.size()));
  const GradientContext context{linear_kernels(active_isa()), gradient_kernels(active_isa()), pool,
                                workspace.tensor.as<std::byte>()};
  const Tensor all(dy.data(), DType::kF32, {tokens, rows});
  const Tensor whole_dx(whole.data(), DType::kF32, {tokens, columns});
  const Tensor pieces_dx(pieces.data(), DType::kF32, {tokens, columns});
  input_gradient(all, {weight}, whole_dx, false, context);
  input_gradient(all.narrow(1, 0, 32), {weight}, pieces_dx, false, context);
  input_gradient(all.narrow(1, 32, 45), {weight, 32}, pieces_dx, true, context);
  EXPECT_EQ(pieces, whole);
}

TEST(CpuLinearBackward, SumsOfABatchInPieces) {
  std::mt19937 random(3);
  ThreadPool pool(2);
  const int64_t tokens = 700, rows = 35, columns = 70;
  const auto bytes = random_rows(DType::kF32, rows, columns, random);
  WeightSource source;
  source.columns = columns;
  source.parts = {{DType::kF32, rows, bytes.data()}};
  const CpuWeight weight = make_cpu_weight(source, pool);
  auto dy = random_floats(tokens * rows, random), x = random_floats(tokens * columns, random);
  const Tensor all_dy(dy.data(), DType::kF32, {tokens, rows}),
      all_x(x.data(), DType::kF32, {tokens, columns});
  std::vector<float> whole(static_cast<size_t>(rows * columns), 0.5f), pieces = whole;
  const Workspace workspace(gradient_workspace_bytes(tokens, rows, columns, Compute::kF32, pool.size()));
  const GradientContext context{linear_kernels(active_isa()), gradient_kernels(active_isa()), pool,
                                workspace.tensor.as<std::byte>()};
  weight_gradient(all_dy, all_x, whole.data(), context);
  for (int64_t begin = 0; const int64_t count : {1, 16, 83, 600}) {
    weight_gradient(all_dy.slice(begin, count), all_x.slice(begin, count), pieces.data(), context);
    begin += count;
  }
  EXPECT_EQ(pieces, whole);
}

}  // namespace
}  // namespace qiao::cpu
