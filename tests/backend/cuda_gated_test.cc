// Gate and up multiplied behind their product by wgmma or of few tokens, on the stand-in: the bits of the
// product and gated_activation apart, for every shape of tiles and who adds segments up, and where they stay
// apart.
#include <cstring>
#include <numeric>
#include <string>

#include "backend/cuda/matmul_call.h"
#include "backend/cuda/matmul_wgmma.h"
#include "backend/cuda/matmul_wgmma_f8.h"
#include "backend/cuda/weight.h"
#include "backend/cuda_wgmma_products.h"

namespace qiao::cuda {
namespace {

class OpNames final : public OpWatch {
 public:
  void on_op(std::string_view op, double, double, double) override { names += std::string(op) + " "; }
  std::string names;
};

class CudaGatedTest : public WgmmaProducts {
 public:
  // `rows`: of gate and up together.
  template <class Op>
  static std::vector<float> run(Chip& chip, Op op, const WgmmaCase& of, bool apart) {
    const int64_t width = of.rows / 2, stride = of.y_stride == 0 ? width : of.y_stride;
    std::vector<float> y(static_cast<size_t>(of.tokens * stride), -7);
    Tensor of_y = chip.tensor(DType::kF32, {of.tokens, stride}, y);
    of_y.shape[1] = width;
    const Activation activation = of.activation == Activation::kNone ? Activation::kSilu : of.activation;
    if (!apart) op.gated = true, op.activation = activation;
    op.y = of_y;
    if (apart) {
      op.y =
          chip.tensor(DType::kF32, {of.tokens, of.rows}, floats_of(static_cast<size_t>(of.tokens * of.rows)));
    }
    with_workspace(chip, op);
    if constexpr (std::is_same_v<Op, Linear>) {
      chip.backend->linear(op);
    } else {
      chip.backend->grouped_linear(op);
    }
    if (apart) chip.backend->gated_activation({op.y, activation, of_y});
    chip.backend->download(y.data(), of_y.data, y.size() * sizeof(float));
    return y;
  }

  void expect_same(const WgmmaCase& of, bool in_one = true) {
    const Operands o = operands(of);
    Chip chip(of.major, of.multiprocessors);
    const std::unique_ptr<Weight> weight = chip.weight(o, of);
    const Tensor x = chip.tensor(DType::kF32, {of.tokens, of.columns}, o.x);
    OpNames told;
    std::vector<float> apart, y;
    if (of.counts.empty()) {
      Linear op;
      op.x = x, op.weight = weight.get(), op.compute = of.compute;
      if (of.bias) op.bias = chip.tensor(DType::kF32, {of.rows}, o.bias);
      apart = run(chip, op, of, true);
      chip.backend->set_watch(&told);
      y = run(chip, op, of, false);
      EXPECT_EQ(told.names, in_one ? "linear " : "linear gated_activation ") << told_of(of);
    } else {
      GroupedLinear op;
      op.x = x, op.weight = weight.get(), op.compute = of.compute;
      op.counts = chip.tensor(DType::kI32, {static_cast<int64_t>(of.counts.size())}, of.counts);
      apart = run(chip, op, of, true);
      chip.backend->set_watch(&told);
      y = run(chip, op, of, false);
      EXPECT_EQ(told.names, in_one ? "grouped_linear " : "grouped_linear gated_activation ") << told_of(of);
    }
    chip.backend->set_watch(nullptr);
    ASSERT_TRUE(stand_in::faults().empty()) << stand_in::faults().front();
    EXPECT_EQ(std::memcmp(y.data(), apart.data(), y.size() * sizeof(float)), 0) << told_of(of);
  }

  void expect_same_of_experts(WgmmaCase of, std::vector<int32_t> counts, bool in_one = true) {
    of.counts = std::move(counts);
    of.tokens = std::accumulate(of.counts.begin(), of.counts.end(), int64_t{0});
    expect_same(of, in_one);
  }

 private:
  static std::vector<float> floats_of(size_t count) { return std::vector<float>(count, -3); }
  static std::string told_of(const WgmmaCase& of) {
    return std::to_string(of.tokens) + " tokens, " + std::to_string(of.rows) + " x " +
           std::to_string(of.columns) + ", " + std::to_string(of.multiprocessors);
  }
};

constexpr Compute kGatedKinds[] = {Compute::kBF16, Compute::kF8};

WgmmaCase gated_case(Compute compute, int64_t tokens, int64_t width, int64_t columns,
                     int multiprocessors = 4) {
  WgmmaCase of{tokens, 2 * width, compute == Compute::kF8 ? (columns + 127) / 128 * 128 : columns,
               multiprocessors};
  of.compute = compute;
  return of;
}

TEST_F(CudaGatedTest, HasTheBitsOfTheOpsApart) {
  for (const Compute compute : kGatedKinds) {
    for (const int64_t tokens : {9, 16, 17, 32, 33, 64, 65, 128, 129, 200, 257}) {
      expect_same(gated_case(compute, tokens, 80, 200));
      expect_same(gated_case(compute, tokens, 16, 600, 7));  // three segments, less than a tile's rows
    }
    expect_same(gated_case(compute, 300, 64, 128, 1));  // of 256 tokens, or of 192
    expect_same(gated_case(compute, 390, 208, 1280, 2));
  }
}

// Even shares: blocks begin and end anywhere in tiles, whose both halves end together.
TEST_F(CudaGatedTest, SharesEndAnywhere) {
  for (const Compute compute : kGatedKinds) {
    for (const int multiprocessors : {2, 11, 132}) {
      expect_same(gated_case(compute, 20, 144, 1280, multiprocessors));
      expect_same(gated_case(compute, 100, 96, 1200, multiprocessors));
      expect_same(gated_case(compute, 200, 144, 1280, multiprocessors));  // few large ones
    }
  }
}

TEST_F(CudaGatedTest, BiasComesFirst) {
  for (const Compute compute : kGatedKinds) {
    for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
      for (const int64_t stride : {0, 49, 52}) {
        for (const int64_t tokens : {3, 7, 70}) {
          WgmmaCase of = gated_case(compute, tokens, 48, 600, 3);
          of.y_stride = stride, of.bias = true, of.activation = activation;
          expect_same(of);
        }
      }
    }
  }
}

// Of few tokens: the kinds of products that a warp has.
std::vector<WgmmaCase> few_cases() {
  std::vector<WgmmaCase> cases(6);
  cases[1].compute = Compute::kF8;
  cases[2].major = 8;
  cases[3].compute = Compute::kF8, cases[3].major = 8;
  cases[4].compute = Compute::kQ8;
  cases[5].compute = Compute::kQ8, cases[5].quants = DType::kQ4_K;
  return cases;
}

WgmmaCase few_case(WgmmaCase kind, int64_t tokens, int64_t width, int64_t columns, int multiprocessors) {
  kind.tokens = tokens, kind.rows = 2 * width, kind.columns = columns, kind.multiprocessors = multiprocessors;
  return kind;
}

// A warp that has both tiles gates them, else the last of those that share them, of a block or of several:
// with one segment and with more, of whole tiles where those come out even, in one panel of K and in two.
TEST_F(CudaGatedTest, FewTokensAreGatedByWhoeverAddsUp) {
  for (const WgmmaCase& kind : few_cases()) {
    for (const int64_t tokens : {1, 4, 5, 8}) {
      expect_same(few_case(kind, tokens, 528, 256, 1));  // some warps have two tiles of gate
      expect_same(few_case(kind, tokens, 80, 1280, 3));
      expect_same(few_case(kind, tokens, 16, 768, 41));  // a block for each segment
      expect_same(few_case(kind, tokens, 192, 512, 2));  // come out even
    }
    expect_same(few_case(kind, 8, 80, 9216, 2));
  }
}

TEST_F(CudaGatedTest, ExpertsOfFewTokensGateTheirOwn) {
  for (const WgmmaCase& kind : few_cases()) {
    for (const int multiprocessors : {1, 5}) {
      const WgmmaCase of = few_case(kind, 0, 48, 512, multiprocessors);
      expect_same_of_experts(of, {3, 0, 7, 1, 9, 0, 0, 2});
      expect_same_of_experts(of, {0, 0, 4, 0});
      expect_same_of_experts(of, {1});
    }
  }
}

// Before Hopper, and of 8 bits, many tokens are gated apart, in memory that fewer may be given.
TEST_F(CudaGatedTest, ManyStayApartWithoutWgmma) {
  for (const WgmmaCase& kind : few_cases()) {
    const bool apart = kind.major == 8 || kind.compute == Compute::kQ8;
    expect_same(few_case(kind, 9, 48, 512, 4), !apart);
    expect_same_of_experts(few_case(kind, 0, 48, 512, 4), {20, 1, 2, 10}, !apart);
    size_t before = 0;
    Chip chip(kind.major, 4);
    for (const int64_t tokens : {1, 8, 9, 16, 17, 130}) {
      const WgmmaCase of = few_case(kind, tokens, 48, 256, 4);
      const std::unique_ptr<Weight> weight = chip.weight(operands(of), of);
      Linear op;
      op.x = Tensor(nullptr, DType::kF32, {tokens, of.columns});
      op.weight = weight.get(), op.compute = of.compute, op.gated = true;
      const size_t bytes = chip.backend->workspace_bytes(op);
      EXPECT_GE(bytes, before) << tokens;
      before = bytes;
    }
  }
}

TEST_F(CudaGatedTest, ExpertsGateTheirOwn) {
  for (const Compute compute : kGatedKinds) {
    const WgmmaCase of = gated_case(compute, 0, 48, 320);
    expect_same_of_experts(of, {3, 0, 70, 1, 129, 0, 0, 66});
    expect_same_of_experts(of, {0, 0, 300, 0});
    expect_same_of_experts(of, {90, 1, 2, 100});
    expect_same_of_experts(of, {40});
    const WgmmaCase long_rows = gated_case(compute, 0, 80, 1280, 7);
    expect_same_of_experts(long_rows, {12, 0, 33, 1, 40, 0, 15, 9});
    expect_same_of_experts(long_rows, {0, 0, 0, 0, 0, 110, 0, 0});
  }
}

TEST_F(CudaGatedTest, StaysApartWhereTilesCannotBeShared) {
  for (const Compute compute : kGatedKinds) {
    for (const int64_t tokens : {3, 40}) {
      expect_same(gated_case(compute, tokens, 72, 200), false);  // up begins inside a tile
    }
  }
  WgmmaCase f32 = gated_case(Compute::kBF16, 40, 80, 200);
  f32.compute = Compute::kF32;
  expect_same(f32, false);
  // Of two dtypes.
  const Operands o = operands(f32);
  Chip chip(9, 4);
  WeightSource source;
  source.columns = f32.columns;
  const std::vector<float> up = floats(80 * f32.columns);
  source.parts.push_back({DType::kBF16, 80, o.weight.data()});
  source.parts.push_back({DType::kF32, 80, reinterpret_cast<const std::byte*>(up.data())});
  const std::unique_ptr<Weight> weight = chip.backend->make_weight(source);
  Linear op;
  op.x = chip.tensor(DType::kF32, {f32.tokens, f32.columns}, o.x), op.weight = weight.get();
  const std::vector<float> apart = run(chip, op, f32, true), y = run(chip, op, f32, false);
  EXPECT_EQ(std::memcmp(y.data(), apart.data(), y.size() * sizeof(float)), 0);
}

// One kernel after the other, plain and gated, with segments of 256 that each block walks.
template <class S>
void expect_tile_gates(const WgmmaCase& of, WgmmaProducts::Chip& chip, const WgmmaProducts::Operands& o) {
  constexpr bool kF8 = S::kScalesAt != 0;
  const std::unique_ptr<Weight> weight = chip.weight(o, of);
  const auto& on_chip = static_cast<const CudaWeight&>(*weight);
  const Tensor x = chip.tensor(DType::kF32, {of.tokens, of.columns}, o.x);
  const std::vector<uint8_t> bytes(static_cast<size_t>(ceil_div(of.tokens, 8) * 8 * of.columns * 2), 0xff);
  const Tensor prepared = chip.tensor(DType::kU8, {static_cast<int64_t>(bytes.size())}, bytes);
  const Tensor meta = chip.tensor(DType::kU8, {static_cast<int64_t>(bytes.size())}, bytes);
  std::vector<float> y(static_cast<size_t>(of.tokens * of.rows / 2)), apart(y.size());
  const Tensor z = chip.tensor(DType::kF32, {of.tokens, of.rows},
                               std::vector<float>(static_cast<size_t>(of.tokens * of.rows), -3));
  const Tensor of_y = chip.tensor(DType::kF32, {of.tokens, of.rows / 2}, y);
  chip.backend->synchronize();
  {
    const Stream stream(0);
    MatmulArguments a;
    a.weight = on_chip.rows_of(0, 0), a.end_row = of.rows;
    a.x = x.as<float>(), a.x_stride = of.columns, a.tokens = of.tokens;
    a.prepared = prepared.as<uint8_t>(), a.meta = meta.as<ActivationMeta>(), a.prepared_columns = of.columns;
    a.segment = 256, a.segments = S::kSums > 96 ? 1 : ceil_div(of.columns, 256);
    a.token_tiles = ceil_div(of.tokens, S::kTokens), a.row_blocks = wgmma_row_blocks(of.rows, S::kTokens);
    if constexpr (kF8) {
      launch_prepare_wgmma_f8(stream, a, prepared.as<uint8_t>(), meta.as<ActivationMeta>());
    } else {
      launch_prepare_wgmma(stream, a, prepared.as<uint8_t>());
    }
    const auto launch_tiles = [&] {
      if constexpr (kF8) {
        launch_wgmma_f8<S>(stream, a);
      } else {
        launch_wgmma<S>(stream, a);
      }
    };
    a.y = z.as<float>(), a.y_stride = of.rows;
    launch_tiles();
    a.y = of_y.as<float>(), a.y_stride = of.rows / 2;
    a.gated = of.rows / 2, a.activation = Activation::kSilu;
    launch_tiles();
    stream.synchronize();
  }
  chip.backend->download(y.data(), of_y.data, y.size() * sizeof(float));
  chip.backend->gated_activation({z, Activation::kSilu, of_y});
  chip.backend->download(apart.data(), of_y.data, y.size() * sizeof(float));
  EXPECT_EQ(std::memcmp(y.data(), apart.data(), y.size() * sizeof(float)), 0) << S::kTokens;
}

TEST_F(CudaGatedTest, TilesOfAnySizeGate) {
  Chip chip(9, 3);  // fewer blocks than tiles
  const WgmmaCase of = gated_case(Compute::kBF16, 270, 112, 256), longer{270, 224, 640};
  const Operands o = operands(of), more = operands(longer);
  expect_tile_gates<WgmmaShape<256>>(of, chip, o);
  expect_tile_gates<WgmmaShape<192>>(longer, chip, more);
  expect_tile_gates<WgmmaShape<128>>(longer, chip, more);
  expect_tile_gates<WgmmaShape<64>>(longer, chip, more);
  expect_tile_gates<WgmmaShape<32>>(longer, chip, more);
  const WgmmaCase f8 = gated_case(Compute::kF8, 270, 112, 640);
  const Operands numbers = operands(f8);
  expect_tile_gates<WgmmaF8Shape<192>>(f8, chip, numbers);
  expect_tile_gates<WgmmaF8Shape<128>>(f8, chip, numbers);
  expect_tile_gates<WgmmaF8Shape<64>>(f8, chip, numbers);
  expect_tile_gates<WgmmaF8Shape<32>>(f8, chip, numbers);
}

}  // namespace
}  // namespace qiao::cuda
