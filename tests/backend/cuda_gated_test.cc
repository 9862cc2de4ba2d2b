// Gate and up multiplied behind their product by wgmma, on the stand-in: the bits of the product and
// gated_activation apart, for every shape of tiles and who adds segments up, and where they stay apart.
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
    for (const int64_t tokens : {17, 32, 33, 64, 65, 128, 129, 200, 257}) {
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
        WgmmaCase of = gated_case(compute, 70, 48, 600, 3);
        of.y_stride = stride, of.bias = true, of.activation = activation;
        expect_same(of);
      }
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
    expect_same(gated_case(compute, 16, 80, 200), false);
    expect_same(gated_case(compute, 40, 72, 200), false);  // up begins inside a tile
    WgmmaCase before = gated_case(compute, 40, 80, 200);
    before.major = 8;
    expect_same(before, false);
    expect_same_of_experts(gated_case(compute, 0, 80, 200), {5, 1, 2, 8}, false);
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
