// The CPU's way back of linear: any number of threads gives the same bits, so do all sets of fused
// instructions and a batch in pieces, and they are within the contract's bound of float64.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "backend/cpu/linear_backward.h"
#include "cpu_weights.h"

namespace qiao::cpu {
namespace {

const LinearBackwardKernels& kernels_of(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512) return kLinearBackwardAvx512;
  if (isa == Isa::kAvx2) return kLinearBackwardAvx2;
#endif
  static_cast<void>(isa);
  return kLinearBackwardGeneric;
}

struct Gradients {
  std::vector<float> dx, dw, dbias;
  bool operator==(const Gradients&) const = default;
};

Gradients backward(const CpuWeight& weight, std::vector<float> dy, std::vector<float> x, Isa isa,
                   ThreadPool& pool) {
  const int64_t rows = weight.rows(), columns = weight.columns();
  const int64_t tokens = static_cast<int64_t>(dy.size()) / rows;
  Gradients g{std::vector<float>(x.size(), -777.0f),
              std::vector<float>(static_cast<size_t>(rows * columns), 0.5f),
              std::vector<float>(static_cast<size_t>(rows), 0.25f)};
  LinearBackward op;
  op.weight = &weight;
  op.dy = Tensor(dy.data(), DType::kF32, {tokens, rows});
  op.x = Tensor(x.data(), DType::kF32, {tokens, columns});
  op.dx = Tensor(g.dx.data(), DType::kF32, {tokens, columns});
  op.dw = Tensor(g.dw.data(), DType::kF32, {rows, columns});
  op.dbias = Tensor(g.dbias.data(), DType::kF32, {rows});
  const Workspace workspace(linear_backward_workspace_bytes(op, pool.size()));
  op.workspace = workspace.tensor;
  std::memset(workspace.tensor.data, 0xff, static_cast<size_t>(workspace.tensor.bytes()));
  run_linear_backward(op, linear_kernels(isa), kernels_of(isa), pool);
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
  const Workspace workspace(gradient_workspace_bytes(tokens, rows, columns, pool.size()));
  const GradientContext context{linear_kernels(active_isa()), kernels_of(active_isa()), pool,
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
  const Workspace workspace(gradient_workspace_bytes(tokens, rows, columns, pool.size()));
  const GradientContext context{linear_kernels(active_isa()), kernels_of(active_isa()), pool,
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
