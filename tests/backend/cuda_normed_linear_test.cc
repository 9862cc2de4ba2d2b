// Products that norm their rows first (Linear::norm), on the stand-in: the bits of the ops apart where
// conformance's shapes do not reach (rows of 16 warps, several panels of K), and the launches saved.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"

namespace qiao::cuda {
namespace {

struct NormedProduct {
  const char* name;
  DType dtype;
  Compute compute;
  int major = 9;  // of the compute capability
};

class CudaNormedLinearTest : public ::testing::TestWithParam<NormedProduct> {
 protected:
  void SetUp() override { start({}); }
  void TearDown() override {
    buffers_.clear();
    chip_.reset();
    EXPECT_TRUE(stand_in::faults().empty());
  }
  void start(stand_in::Machine machine) {
    buffers_.clear();
    chip_.reset();
    machine.major = GetParam().major;
    stand_in::reset(machine);
    chip_ = make_cuda_backend({});
  }
  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor made(nullptr, dtype, shape);
    buffers_.push_back(chip_->allocate(static_cast<size_t>(made.bytes())));
    made.data = buffers_.back().data();
    return made;
  }
  Tensor random(std::initializer_list<int64_t> shape, uint32_t seed) {
    const Tensor made = tensor(DType::kF32, shape);
    std::mt19937 generator(seed);
    std::vector<float> values(static_cast<size_t>(made.elements()));
    for (float& value : values) value = static_cast<float>(generator() % 4001) * 1e-3f - 2;
    chip_->upload(made.data, values.data(), values.size() * sizeof(float));
    return made;
  }
  std::unique_ptr<Weight> weight(int64_t rows, int64_t columns) {
    const DType dtype = GetParam().dtype;
    std::mt19937 generator(5);
    std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes(dtype, columns)));
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(generator() % 119);  // finite in every format
    const auto block = static_cast<size_t>(traits(dtype).block_bytes);
    for (size_t i = 0; i < bytes.size(); i += block) {
      const uint16_t half = 0x2000;
      const float scale = 0.01f;
      if (dtype == DType::kQ8_0 || dtype == DType::kQ4_0) std::memcpy(&bytes[i], &half, sizeof half);
      if (dtype == DType::kF8_128) std::memcpy(&bytes[i + block - sizeof scale], &scale, sizeof scale);
      if (dtype == DType::kF32) std::memcpy(&bytes[i], &scale, sizeof scale);
      if (dtype == DType::kBF16) {
        const uint16_t value = static_cast<uint16_t>(0x3c00 + generator() % 512);
        std::memcpy(&bytes[i], &value, sizeof value);
      }
    }
    WeightSource source;
    source.columns = columns;
    source.parts.push_back({dtype, rows, bytes.data()});
    return chip_->make_weight(source);
  }
  // Its result; `launches`: how many it took.
  std::vector<float> run(Linear op, int64_t* launches = nullptr) {
    op.compute = GetParam().compute;
    op.y = tensor(DType::kF32, {op.x.shape[0], op.weight->rows()});
    if (const auto bytes = static_cast<int64_t>(chip_->workspace_bytes(op)); bytes > 0)
      op.workspace = tensor(DType::kU8, {bytes});
    chip_->synchronize();
    const int64_t before = stand_in::use().launches;
    chip_->linear(op);
    chip_->synchronize();
    if (launches != nullptr) *launches = stand_in::use().launches - before;
    std::vector<float> values(static_cast<size_t>(op.y.elements()));
    chip_->download(values.data(), op.y.data, values.size() * sizeof(float));
    return values;
  }
  // Of the ops apart.
  std::vector<float> apart(Linear op) {
    const Tensor normed = tensor(DType::kF32, {op.x.shape[0], op.x.shape[1]});
    AddRmsNorm norm;
    norm.x = op.x, norm.gamma = op.norm.gamma, norm.gamma_offset = op.norm.gamma_offset;
    norm.epsilon = op.norm.epsilon, norm.y = normed;
    chip_->add_rms_norm(norm);
    op.x = normed, op.norm = {};
    return run(op);
  }
  void expect_same(const Linear& op, int64_t expected_launches) {
    int64_t launches = 0;
    const std::vector<float> one = run(op, &launches), other = apart(op);
    EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(float)), 0)
        << op.x.shape[0] << " rows of " << op.x.shape[1];
    EXPECT_EQ(launches, expected_launches) << op.x.shape[0] << " rows of " << op.x.shape[1];
  }
  bool fuses() const { return GetParam().compute != Compute::kF32; }
  // Of a product with so many rows: few are prepared by it, more by a launch before.
  int64_t launches_of(int64_t tokens) const { return fuses() && tokens > 8 ? 2 : 1; }

  std::unique_ptr<Backend> chip_;
  std::vector<Buffer> buffers_;
};

// Widths of 1, 4 and 16 warps a row, of which a thread has one, two and four fours, whole and not.
TEST_P(CudaNormedLinearTest, TheBitsAreThoseOfTheOpsApart) {
  for (const int64_t columns : {128, 512, 768, 2048, 2304, 4096, 8192}) {
    const std::unique_ptr<Weight> own = weight(48, columns);
    const Tensor gamma = random({columns}, 1);
    for (const int64_t tokens : {1, 3, 8, 9, 17, 130}) {
      if (tokens == 130 && columns > 2304) continue;  // for time
      Linear op;
      // Rows apart by what is no multiple of 16 bytes, half of the time.
      op.x = random({tokens, columns + tokens % 2}, 2).narrow(1, 0, columns);
      op.weight = own.get();
      op.norm = {.present = true, .gamma = gamma, .gamma_offset = tokens == 3 ? 1.0f : 0.0f};
      if (tokens == 9) op.norm.gamma = {};
      expect_same(op, launches_of(tokens) + (fuses() ? 0 : 1));
    }
  }
}

// Inside a four, or at the end of a block where there are blocks.
TEST_P(CudaNormedLinearTest, RowsMayEndAnywhere) {
  const int64_t block = traits(GetParam().dtype).block_elements;
  for (const int64_t least : {1, 3, 130, 517, 2049, 4099}) {
    const int64_t columns = (least + block - 1) / block * block;
    const std::unique_ptr<Weight> own = weight(33, columns);
    const Tensor gamma = random({columns}, 3);
    for (const int64_t tokens : {1, 7, 20}) {
      Linear op;
      op.x = random({tokens, columns}, 4);
      op.weight = own.get();
      op.norm = {.present = true, .gamma = gamma, .epsilon = 1e-5f};
      expect_same(op, launches_of(tokens) + (fuses() ? 0 : 1));
    }
  }
}

// More than a thread keeps, and blocks with few warps: the norm is a launch of its own.
TEST_P(CudaNormedLinearTest, WhatIsTooWideIsNormedApart) {
  const auto expect_apart = [&](int64_t columns) {
    const std::unique_ptr<Weight> own = weight(16, columns);
    for (const int64_t tokens : {2, 10}) {
      Linear op;
      op.x = random({tokens, columns}, 6);
      op.weight = own.get();
      op.norm.present = true;
      expect_same(op, launches_of(tokens) + 1);
    }
  };
  expect_apart(8192 + 256);
  stand_in::Machine small;
  small.block_shared_bytes = 99 * 1024;
  start(small);
  expect_apart(512);
}

// What a row's norm makes NaN stays that row's; one of zeros gives zeros.
TEST_P(CudaNormedLinearTest, ARowsNumbersAreItsOwn) {
  const int64_t columns = 2304, rows = 20;
  const std::unique_ptr<Weight> own = weight(rows, columns);
  for (const int64_t tokens : {3, 12}) {
    std::vector<float> values(static_cast<size_t>(tokens * columns), 1.0f);
    std::fill_n(values.begin() + columns, columns, 0.0f);
    values[static_cast<size_t>(2 * columns) + 5] = std::numeric_limits<float>::quiet_NaN();
    const Tensor x = tensor(DType::kF32, {tokens, columns});
    chip_->upload(x.data, values.data(), values.size() * sizeof(float));
    Linear op;
    op.x = x, op.weight = own.get(), op.norm.present = true;
    const std::vector<float> y = run(op);
    for (int64_t i = 0; i < rows; ++i) {
      EXPECT_TRUE(std::isfinite(y[static_cast<size_t>(i)]));
      EXPECT_EQ(y[static_cast<size_t>(rows + i)], 0.0f);
      EXPECT_TRUE(std::isnan(y[static_cast<size_t>(2 * rows + i)]));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaNormedLinearTest,
                         ::testing::Values(NormedProduct{"F32", DType::kF32, Compute::kF32},
                                           NormedProduct{"BF16", DType::kBF16, Compute::kBF16},
                                           NormedProduct{"BF16BeforeHopper", DType::kBF16, Compute::kBF16, 8},
                                           NormedProduct{"Q8", DType::kQ8_0, Compute::kQ8},
                                           NormedProduct{"Q4", DType::kQ4_0, Compute::kQ8},
                                           NormedProduct{"F8", DType::kF8_128, Compute::kF8},
                                           NormedProduct{"F8BeforeHopper", DType::kF8_128, Compute::kF8, 8}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qiao::cuda
