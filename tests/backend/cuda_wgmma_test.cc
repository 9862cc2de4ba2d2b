// Products by wgmma on Hopper, on the stand-in, for every shape of tiles, who adds segments up, experts and
// what follows a sum: BF16's have the bits of mma.sync's kernel, which a device before Hopper runs, FP8's are
// the same for a row alone and in any batch.
#include <cstring>
#include <type_traits>

#include "backend/cuda/matmul_call.h"
#include "backend/cuda/matmul_wgmma.h"
#include "backend/cuda/matmul_wgmma_f8.h"
#include "backend/cuda/weight.h"
#include "backend/cuda_wgmma_products.h"

namespace qiao::cuda {
namespace {

class CudaWgmmaTest : public WgmmaProducts {
 public:
  static std::vector<float> product(int major, const WgmmaCase& of, const Operands& o) {
    Chip chip(major, of.multiprocessors);
    const std::unique_ptr<Weight> weight = chip.weight(o, of);
    const int64_t stride = of.y_stride == 0 ? of.rows : of.y_stride;
    std::vector<float> y(static_cast<size_t>(of.tokens * stride), -7);
    const Tensor x = chip.tensor(DType::kF32, {of.tokens, of.columns}, o.x);
    Tensor of_y = chip.tensor(DType::kF32, {of.tokens, stride}, y);
    of_y.shape[1] = of.rows;
    if (of.counts.empty()) {
      Linear op;
      op.x = x, op.weight = weight.get(), op.compute = of.compute, op.y = of_y;
      if (of.bias) op.bias = chip.tensor(DType::kF32, {of.rows}, o.bias);
      if (of.residual) op.residual = chip.tensor(DType::kF32, {of.tokens, of.rows}, o.residual);
      op.activation = of.activation, op.soft_cap = of.activation == Activation::kSoftCap ? 3.0f : 0.0f;
      with_workspace(chip, op);
      chip.backend->linear(op);
    } else {
      GroupedLinear op;
      op.x = x, op.weight = weight.get(), op.compute = of.compute, op.y = of_y;
      op.counts = chip.tensor(DType::kI32, {static_cast<int64_t>(of.counts.size())}, of.counts);
      with_workspace(chip, op);
      chip.backend->grouped_linear(op);
    }
    chip.backend->download(y.data(), of_y.data, y.size() * sizeof(float));
    return y;
  }

  void expect_same(const WgmmaCase& of) {
    const Operands o = operands(of);
    const std::vector<float> before = product(8, of, o), hopper = product(9, of, o);
    EXPECT_TRUE(stand_in::faults().empty()) << stand_in::faults().front();
    EXPECT_EQ(std::memcmp(before.data(), hopper.data(), before.size() * sizeof(float)), 0)
        << of.tokens << " " << of.rows << " " << of.columns;
  }
};

TEST_F(CudaWgmmaTest, EdgesOfTilesAreThoseOfTheProduct) {
  expect_same({65, 144, 64});
  expect_same({130, 20, 24});       // less than a stage of K, and a step that is not whole
  expect_same({200, 260, 200});     // three row blocks, and a last stage of one step
  expect_same({300, 7, 600});       // three segments
  expect_same({129, 130, 320, 2});  // a block has many tiles
  expect_same({300, 70, 128, 1});   // of 256 tokens
}

TEST_F(CudaWgmmaTest, SegmentsHaveBlocksOfTheirOwnOrNot) {
  expect_same({100, 128, 1024, 132});
  expect_same({67 * 64, 16, 512, 132});  // more tiles than are split
}

// Even shares: blocks begin and end anywhere in tiles of 64 or 128 rows, one block has all, and more blocks
// than there are units.
TEST_F(CudaWgmmaTest, SharesOfFewTokensEndAnywhere) {
  for (const int64_t tokens : {9, 15, 16, 17, 33, 63, 64, 65, 128}) {
    expect_same({tokens, 300, 600, 7});
    expect_same({tokens, 65, 1200, 4});
    expect_same({tokens, 72, 1024, 132});
  }
  for (const int multiprocessors : {1, 2, 3, 5, 11, 13, 16, 31}) {
    expect_same({12, 200, 1280, multiprocessors});
    expect_same({40, 264, 1280, multiprocessors});
  }
  expect_same({20, 2200, 264, 5});  // two segments, the last of them a step
  for (const int multiprocessors : {2, 7, 11, 132}) expect_same({200, 260, 1280, multiprocessors});
  expect_same({12, 1340, 512, 22});  // whole tiles, one for each but one
}

TEST_F(CudaWgmmaTest, WhatFollowsASumIsAligned) {
  for (const int64_t tokens : {10, 30, 50}) {
    expect_same({tokens, 64, 512, 3, 0, true, true, Activation::kGeluTanh});
    expect_same({tokens, 66, 512, 3, 67, true, true, Activation::kSilu});
  }
  expect_same({70, 64, 64, 4, 0, true, true, Activation::kGeluTanh});
  expect_same({70, 66, 64, 4, 67, true, true, Activation::kSilu});  // or not
  expect_same({150, 68, 64, 4, 72, true, false, Activation::kSoftCap});
}

TEST_F(CudaWgmmaTest, ExpertsRowsBeginAnywhere) {
  WgmmaCase of{0, 80, 320};
  of.counts = {3, 0, 70, 1, 129, 0, 0, 66};
  for (const int32_t count : of.counts) of.tokens += count;
  expect_same(of);
  of.counts.assign(40, 0);  // beyond a warp of experts
  of.counts[0] = 1, of.counts[31] = 200, of.counts[32] = 3, of.counts[33] = 5, of.counts[39] = 115;
  of.tokens = 324, of.columns = 64;
  expect_same(of);
}

// As many as a step of decoding gives each: tiles of 32 tokens and of 64, of experts that share a line.
TEST_F(CudaWgmmaTest, ExpertsOfFewRowsShareALine) {
  for (const int multiprocessors : {3, 50}) {
    WgmmaCase of{0, 80, 640, multiprocessors};
    of.counts = {12, 0, 33, 1, 40, 0, 15, 9};
    for (const int32_t count : of.counts) of.tokens += count;
    expect_same(of);
    of.counts = {0, 0, 0, 0, 0, 110, 0, 0};  // all of one
    expect_same(of);
    of.counts = {30, 41, 28, 39}, of.tokens = 138;
    expect_same(of);
    of.counts = {5, 9, 0, 7, 3, 17, 2, 4}, of.tokens = 47;  // nearly few
    expect_same(of);
  }
}

// A launch leaves the tickets as it found them, and what it leaves of sums is not the next one's.
TEST_F(CudaWgmmaTest, OneChipMultipliesAgainAndAgain) {
  for (const Compute compute : {Compute::kBF16, Compute::kF8}) {
    WgmmaCase of{64, 200, 1280, 5};
    of.compute = compute;
    Chip chip(9, of.multiprocessors);
    const Operands o = operands(of);
    const std::unique_ptr<Weight> weight = chip.weight(o, of);
    const Tensor x = chip.tensor(DType::kF32, {of.tokens, of.columns}, o.x);
    std::vector<float> all;
    for (const int64_t tokens : {64, 12, 30, 8, 12, 64}) {
      std::vector<float> y(static_cast<size_t>(tokens * of.rows));
      Linear op;
      op.x = x.slice(0, tokens), op.weight = weight.get(), op.compute = compute;
      op.y = chip.tensor(DType::kF32, {tokens, of.rows}, y);
      with_workspace(chip, op);
      chip.backend->linear(op);
      chip.backend->download(y.data(), op.y.data, y.size() * sizeof(float));
      if (all.empty()) all = y;
      EXPECT_EQ(std::memcmp(y.data(), all.data(), y.size() * sizeof(float)), 0) << tokens;
    }
    EXPECT_TRUE(stand_in::faults().empty());
  }
}

TEST_F(CudaWgmmaTest, MoreTokensWantNoLessWorkspace) {
  for (const Compute compute : {Compute::kBF16, Compute::kF8}) {
    for (const int experts : {1, 4, 40}) {
      WgmmaCase of{0, 384, 1280};
      of.compute = compute;
      if (experts > 1) of.counts.assign(static_cast<size_t>(experts), 0);
      Chip chip(9, 4);
      const std::unique_ptr<Weight> weight = chip.weight(operands(of), of);
      size_t before = 0;
      for (int64_t tokens = 1; tokens < 700; ++tokens) {
        const size_t bytes = matmul_workspace_bytes(*weight, compute, tokens);
        EXPECT_GE(bytes, before) << tokens << " tokens, " << experts << " experts";
        before = bytes;
      }
    }
  }
}

// The first rows of a batch, alone: the kernel of few tokens and that of many, whichever tiles it has.
TEST_F(CudaWgmmaTest, Fp8RowsAreThoseOfAnyBatch) {
  struct Shape {
    int64_t rows, columns;
    std::vector<int64_t> tokens;
  };
  for (const Shape& shape :
       {Shape{16, 128, {1, 3, 8, 9, 15, 16, 17, 32, 33, 63, 64, 65, 128, 129, 256}},
        Shape{40, 4224, {1, 8, 9, 20, 64, 65, 129}}, Shape{1040, 384, {5, 8, 17, 40, 128, 256}}}) {
    WgmmaCase of{257, shape.rows, shape.columns};
    of.compute = Compute::kF8;
    const Operands o = operands(of);
    const std::vector<float> all = product(9, of, o);
    for (const int64_t tokens : shape.tokens) {
      for (const int multiprocessors : {4, 132}) {
        if (multiprocessors == 132 && tokens > 9) continue;
        of.tokens = tokens, of.multiprocessors = multiprocessors;
        const std::vector<float> some = product(9, of, o);
        EXPECT_EQ(std::memcmp(some.data(), all.data(), some.size() * sizeof(float)), 0)
            << tokens << " of " << shape.rows << " x " << shape.columns;
      }
    }
    of.tokens = 8;  // made of F16 before
    EXPECT_NE(std::memcmp(product(8, of, o).data(), all.data(), 8 * sizeof(float)), 0);
  }
}

TEST_F(CudaWgmmaTest, Fp8RowsOfExpertsAreThoseOfTheirWeightAlone) {
  for (const std::vector<int32_t>& counts :
       {std::vector<int32_t>{3, 0, 70, 1, 129, 0, 0, 66}, {1, 0, 9, 2}, {12, 0, 31, 1, 20}}) {
    WgmmaCase of{0, 80, 384};
    of.compute = Compute::kF8, of.counts = counts;
    for (const int32_t count : counts) of.tokens += count;
    const Operands o = operands(of);
    const std::vector<float> all = product(9, of, o);
    const int64_t each = of.rows * row_bytes(DType::kF8_128, of.columns);
    int64_t first = 0;
    for (size_t e = 0; e < counts.size(); first += counts[e++]) {
      if (counts[e] == 0) continue;
      WgmmaCase alone{counts[e], of.rows, of.columns};
      alone.compute = Compute::kF8;
      Operands own;
      own.x.assign(o.x.begin() + first * of.columns, o.x.begin() + (first + counts[e]) * of.columns);
      own.weight.assign(o.weight.begin() + static_cast<int64_t>(e) * each,
                        o.weight.begin() + static_cast<int64_t>(e + 1) * each);
      const std::vector<float> some = product(9, alone, own);
      EXPECT_EQ(std::memcmp(some.data(), all.data() + first * of.rows, some.size() * sizeof(float)), 0) << e;
    }
  }
}

// One kernel after the other, with segments of 256 that each block walks.
template <class S>
void expect_kernels_agree(const WgmmaCase& of, CudaWgmmaTest::Chip& chip, const CudaWgmmaTest::Operands& o) {
  const std::unique_ptr<Weight> weight = chip.weight(o, of);
  const auto& on_chip = static_cast<const CudaWeight&>(*weight);
  const Tensor x = chip.tensor(DType::kF32, {of.tokens, of.columns}, o.x);
  const int64_t columns = ceil_div(of.columns, 64) * 64;
  const std::vector<uint8_t> bytes(static_cast<size_t>(ceil_div(of.tokens, 8) * 8 * columns * 2), 0xff);
  const Tensor prepared = chip.tensor(DType::kU8, {static_cast<int64_t>(bytes.size())}, bytes);
  std::vector<float> expected(static_cast<size_t>(of.tokens * of.rows)), y(expected.size());
  const Tensor of_mma = chip.tensor(DType::kF32, {of.tokens, of.rows}, y);
  const Tensor of_wgmma = chip.tensor(DType::kF32, {of.tokens, of.rows}, y);
  chip.backend->synchronize();
  {
    const Stream stream(0);
    MatmulArguments a;
    a.weight = on_chip.rows_of(0, 0), a.expert_bytes = static_cast<int64_t>(on_chip.expert_bytes());
    a.end_row = of.rows, a.x = x.as<float>(), a.x_stride = of.columns, a.tokens = of.tokens;
    a.prepared = prepared.as<uint8_t>(), a.prepared_columns = columns;
    a.segment = 256, a.segments = ceil_div(of.columns, 256), a.row_blocks = ceil_div(of.rows, kManyRows);
    a.y_stride = of.rows;
    a.y = of_mma.as<float>(), a.token_tiles = ceil_div(of.tokens, kManyTokens);
    launch_prepare_bf16(stream, a, prepared.as<uint8_t>());
    launch_matmul_bf16(stream, a, false);
    a.y = of_wgmma.as<float>(), a.token_tiles = ceil_div(of.tokens, S::kTokens);
    a.row_blocks = wgmma_row_blocks(of.rows, S::kTokens);
    launch_prepare_wgmma(stream, a, prepared.as<uint8_t>());
    launch_wgmma<S>(stream, a);
    stream.synchronize();
  }
  chip.backend->download(expected.data(), of_mma.data, y.size() * sizeof(float));
  chip.backend->download(y.data(), of_wgmma.data, y.size() * sizeof(float));
  EXPECT_EQ(std::memcmp(expected.data(), y.data(), y.size() * sizeof(float)), 0) << S::kTokens;
}

// Eight: were few tokens to be wgmma's as well.
TEST_F(CudaWgmmaTest, TilesOfAnySizeAddUpAlike) {
  for (const int64_t columns : {200, 512, 600}) {
    const WgmmaCase of{270, 150, columns};
    const Operands o = operands(of);
    Chip chip(9, 3);  // fewer blocks than tiles
    expect_kernels_agree<WgmmaShape<16>>(of, chip, o);
    expect_kernels_agree<WgmmaShape<32>>(of, chip, o);
    expect_kernels_agree<WgmmaShape<64>>(of, chip, o);
    expect_kernels_agree<WgmmaShape<128>>(of, chip, o);
    expect_kernels_agree<WgmmaShape<192>>(of, chip, o);
    if (columns <= 256) expect_kernels_agree<WgmmaShape<256>>(of, chip, o);
  }
  const WgmmaCase of{21, 150, 600};
  const Operands o = operands(of);
  Chip chip(9, 3);
  expect_kernels_agree<WgmmaShape<8>>(of, chip, o);
}

TEST_F(CudaWgmmaTest, Fp8TilesOfAnySizeAddUpAlike) {
  WgmmaCase of{270, 150, 640};
  of.compute = Compute::kF8;
  const Operands o = operands(of);
  Chip chip(9, 3);  // fewer blocks than tiles
  const std::unique_ptr<Weight> weight = chip.weight(o, of);
  const auto& on_chip = static_cast<const CudaWeight&>(*weight);
  const Tensor x = chip.tensor(DType::kF32, {of.tokens, of.columns}, o.x);
  const std::vector<uint8_t> bytes(static_cast<size_t>(ceil_div(of.tokens, 8) * 8 * of.columns), 0xff);
  const Tensor prepared = chip.tensor(DType::kU8, {static_cast<int64_t>(bytes.size())}, bytes);
  const Tensor meta = chip.tensor(DType::kU8, {static_cast<int64_t>(bytes.size())}, bytes);
  std::vector<float> y(static_cast<size_t>(of.tokens * of.rows));
  Tensor ys[5];
  for (Tensor& of_tile : ys) of_tile = chip.tensor(DType::kF32, {of.tokens, of.rows}, y);
  chip.backend->synchronize();
  {
    const Stream stream(0);
    MatmulArguments a;
    a.weight = on_chip.rows_of(0, 0), a.end_row = of.rows;
    a.x = x.as<float>(), a.x_stride = of.columns, a.tokens = of.tokens;
    a.prepared = prepared.as<uint8_t>(), a.meta = meta.as<ActivationMeta>(), a.prepared_columns = of.columns;
    a.segment = 256, a.segments = 3, a.y_stride = of.rows;
    launch_prepare_wgmma_f8(stream, a, prepared.as<uint8_t>(), meta.as<ActivationMeta>());
    const auto launch_tiles = [&]<class S>(std::type_identity<S>, const Tensor& to) {
      a.y = to.as<float>(), a.token_tiles = ceil_div(of.tokens, S::kTokens);
      a.row_blocks = wgmma_row_blocks(of.rows, S::kTokens);
      launch_wgmma_f8<S>(stream, a);
    };
    launch_tiles(std::type_identity<WgmmaF8Shape<64>>(), ys[0]);
    launch_tiles(std::type_identity<WgmmaF8Shape<128>>(), ys[1]);
    launch_tiles(std::type_identity<WgmmaF8Shape<192>>(), ys[2]);
    launch_tiles(std::type_identity<WgmmaF8Shape<16>>(), ys[3]);
    launch_tiles(std::type_identity<WgmmaF8Shape<32>>(), ys[4]);
    stream.synchronize();
  }
  const auto values = [&](const Tensor& of_tile) {
    chip.backend->download(y.data(), of_tile.data, y.size() * sizeof(float));
    return y;
  };
  const std::vector<float> expected = values(ys[0]);
  for (const Tensor& of_tile : ys) {
    EXPECT_EQ(std::memcmp(expected.data(), values(of_tile).data(), y.size() * sizeof(float)), 0);
  }
}

}  // namespace
}  // namespace qiao::cuda
