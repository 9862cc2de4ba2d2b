// Weights and products of the CUDA chip on the stand-in: tiles, and the order of sums where conformance's
// small shapes do not reach, several segments of K walked by one block or by a block each.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/weight_layout.h"
#include "backend/cuda_stand_in/stand_in.h"

namespace qiao::cuda {
namespace {

constexpr DType kWeightDTypes[] = {DType::kF32,   DType::kF16,   DType::kBF16, DType::kQ4_0,   DType::kQ4_1,
                                   DType::kQ5_0,  DType::kQ5_1,  DType::kQ8_0, DType::kQ2_K,   DType::kQ3_K,
                                   DType::kQ4_K,  DType::kQ5_K,  DType::kQ6_K, DType::kIQ4_NL, DType::kIQ4_XS,
                                   DType::kMXFP4, DType::kF8_128};

std::vector<std::byte> random_bytes(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// A tensor on the chip.
struct OnChip {
  Buffer buffer;
  Tensor tensor;

  OnChip(Backend& chip, DType dtype, std::initializer_list<int64_t> shape) : tensor(nullptr, dtype, shape) {
    buffer = chip.allocate(static_cast<size_t>(tensor.bytes()));
    tensor.data = buffer.data();
  }
  template <class T>
  OnChip(Backend& chip, DType dtype, std::initializer_list<int64_t> shape, const std::vector<T>& values)
      : OnChip(chip, dtype, shape) {
    chip.upload(buffer.data(), values.data(), values.size() * sizeof(T));
  }
  std::vector<float> floats(Backend& chip) const {
    std::vector<float> values(static_cast<size_t>(tensor.elements()));
    chip.download(values.data(), tensor.data, values.size() * sizeof(float));
    return values;
  }
};

TEST(CudaWeightLayoutTest, ATileHasAPlaceForEachByte) {
  for (const DType dtype : kWeightDTypes) {
    const TileLayout layout = tile_layout(dtype);
    std::set<int> places;
    for (int row = 0; row < kTileRows; ++row) {
      for (int byte = 0; byte < layout.block_bytes; ++byte) places.insert(layout.position(row, byte));
    }
    EXPECT_EQ(static_cast<int>(places.size()), layout.bytes()) << traits(dtype).name;
    EXPECT_EQ(*places.begin(), 0) << traits(dtype).name;
    EXPECT_EQ(*places.rbegin(), layout.bytes() - 1) << traits(dtype).name;
    EXPECT_EQ(layout.bytes() % 16, 0) << traits(dtype).name;
    EXPECT_EQ(layout.block_bytes, row_bytes(dtype, layout.elements)) << traits(dtype).name;
  }
}

struct Product {
  DType dtype;
  Compute compute;
  int major = 9;  // of the compute capability
};

stand_in::Machine machine_of(int major, int multiprocessors = 4) {
  stand_in::Machine machine;
  machine.major = major, machine.multiprocessors = multiprocessors;
  return machine;
}

class CudaSegmentsTest : public ::testing::TestWithParam<Product> {
 protected:
  void SetUp() override { restart(GetParam().major); }
  void restart(int major, int multiprocessors = 4) {
    chip_.reset();
    stand_in::reset(machine_of(major, multiprocessors));
    chip_ = make_cuda_backend({});
  }
  void TearDown() override {
    chip_.reset();
    EXPECT_TRUE(stand_in::faults().empty());
  }

  void restart(const stand_in::Machine& machine) {
    chip_.reset();
    EXPECT_TRUE(stand_in::faults().empty());
    stand_in::reset(machine);
    chip_ = make_cuda_backend({});
  }
  // Finite weights of `rows` rows.
  std::vector<std::byte> weights(int64_t rows, int64_t columns, uint32_t seed) const {
    const DType dtype = GetParam().dtype;
    auto bytes = random_bytes(static_cast<size_t>(rows * row_bytes(dtype, columns)), seed);
    std::mt19937 random(seed);
    const auto put = [&](std::byte* at, uint16_t bits) { std::memcpy(at, &bits, sizeof bits); };
    const auto block = static_cast<size_t>(traits(dtype).block_bytes);
    for (size_t i = 0; i < bytes.size(); i += block) {
      if (dtype == DType::kQ4_0) put(&bytes[i], 0x2000);
      if (dtype == DType::kQ4_K) put(&bytes[i], 0x2000), put(&bytes[i + 2], 0x1c00);  // 2^-7, 2^-8
      if (dtype == DType::kQ6_K) put(&bytes[i + 208], 0x1c00);
      if (dtype == DType::kBF16) put(&bytes[i], static_cast<uint16_t>(0x3c00 + random() % 512));
      if (dtype == DType::kF8_128) {  // no NaN
        for (size_t k = i; k < i + static_cast<size_t>(kF8Block); ++k) {
          if ((bytes[k] & std::byte{0x7f}) == std::byte{0x7f}) bytes[k] = std::byte{0x11};
        }
        const float scale = static_cast<float>(random() % 2001) * 1e-7f;
        std::memcpy(&bytes[i + static_cast<size_t>(kF8Block)], &scale, sizeof scale);
      }
      if (dtype == DType::kF32) {
        const float value = static_cast<float>(random() % 2001) * 1e-3f - 1;
        std::memcpy(&bytes[i], &value, sizeof value);
      }
    }
    return bytes;
  }
  std::unique_ptr<Weight> make(int64_t experts, int64_t rows, int64_t columns, const std::byte* bytes) {
    WeightSource source;
    source.experts = experts, source.columns = columns;
    const int64_t each = rows * row_bytes(GetParam().dtype, columns);
    for (int64_t e = 0; e < experts; ++e) source.parts.push_back({GetParam().dtype, rows, bytes + e * each});
    return chip_->make_weight(source);
  }
  std::vector<float> linear(const Weight& weight, const Tensor& x) {
    const OnChip y(*chip_, DType::kF32, {x.shape[0], weight.rows()});
    Linear op;
    op.x = x, op.weight = &weight, op.compute = GetParam().compute, op.y = y.tensor;
    const auto bytes = static_cast<int64_t>(chip_->workspace_bytes(op));
    const OnChip workspace(*chip_, DType::kU8, {bytes});
    if (bytes > 0) op.workspace = workspace.tensor;
    chip_->linear(op);
    return y.floats(*chip_);
  }
  std::vector<float> random_x(int64_t count) const {
    std::mt19937 random(7);
    std::vector<float> x(static_cast<size_t>(count));
    for (float& v : x) v = static_cast<float>(random() % 2001) * 1e-3f - 1;
    return x;
  }

  std::unique_ptr<Backend> chip_;
};

// So many tokens that a block walks all segments; some that each segment has a block of its own, which the
// last adds up; one that reads the weight as a decode step does.
TEST_P(CudaSegmentsTest, ARowsSumIsTheSameWhoeverAddsUp) {
  const int64_t tokens = 1030, rows = 20, columns = 768;
  const auto bytes = weights(rows, columns, 1);
  const std::unique_ptr<Weight> weight = make(1, rows, columns, bytes.data());
  const OnChip x(*chip_, DType::kF32, {tokens, columns}, random_x(tokens * columns));
  const std::vector<float> all = linear(*weight, x.tensor);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{1029, 1}, {0, 5}, {500, 9}, {64, 128}}) {
    const std::vector<float> some = linear(*weight, x.tensor.slice(first, count));
    EXPECT_EQ(std::memcmp(some.data(), all.data() + first * rows, some.size() * sizeof(float)), 0)
        << count << " rows from " << first;
  }
}

// Experts of few rows each, enough of them that a block walks all segments; each expert's rows alone.
TEST_P(CudaSegmentsTest, AnExpertsRowsAreThoseOfItsOwnWeight) {
  const int64_t experts = 130, rows = 16, columns = 512, tokens = 1032;
  const auto bytes = weights(experts * rows, columns, 2);
  const std::unique_ptr<Weight> weight = make(experts, rows, columns, bytes.data());
  std::vector<int32_t> counts(static_cast<size_t>(experts), 8);
  counts[0] = 0, counts[1] = 24, counts[64] = 0, counts[65] = 1, counts[129] = 15;
  int64_t sum = 0;
  for (const int32_t count : counts) sum += count;
  counts[2] += static_cast<int32_t>(tokens - sum);
  const OnChip count(*chip_, DType::kI32, {experts}, counts);
  const OnChip x(*chip_, DType::kF32, {tokens, columns}, random_x(tokens * columns));
  const OnChip y(*chip_, DType::kF32, {tokens, rows});
  GroupedLinear op;
  op.x = x.tensor, op.weight = weight.get(), op.counts = count.tensor, op.y = y.tensor;
  op.compute = GetParam().compute;
  const auto needed = static_cast<int64_t>(chip_->workspace_bytes(op));
  const OnChip workspace(*chip_, DType::kU8, {needed});
  if (needed > 0) op.workspace = workspace.tensor;
  chip_->grouped_linear(op);
  const std::vector<float> all = y.floats(*chip_);
  int64_t first = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int32_t own = counts[static_cast<size_t>(e)];
    if (own > 0 && (e < 3 || (e > 62 && e < 67) || e == 129)) {
      const int64_t each = rows * row_bytes(GetParam().dtype, columns);
      const std::unique_ptr<Weight> alone = make(1, rows, columns, bytes.data() + e * each);
      const std::vector<float> some = linear(*alone, x.tensor.slice(first, own));
      EXPECT_EQ(std::memcmp(some.data(), all.data() + first * rows, some.size() * sizeof(float)), 0) << e;
    }
    first += own;
  }
}

// How many multiprocessors share the row tiles, how much of K has room in one at a time, and which columns of
// a product few rows have, changes no bit; nor do the tickets of one launch reach into the next.
TEST_P(CudaSegmentsTest, ARowsSumIsTheSameOnEveryDevice) {
  const int64_t rows = 72, columns = 9216;
  const auto bytes = weights(rows, columns, 3);
  const std::vector<float> values = random_x(12 * columns);
  std::vector<float> all;
  stand_in::Machine small;
  small.major = GetParam().major, small.multiprocessors = 7, small.block_shared_bytes = 99 * 1024;
  for (const int multiprocessors : {4, 1, 41, 0}) {
    stand_in::Machine machine;
    machine.major = GetParam().major, machine.multiprocessors = multiprocessors;
    restart(multiprocessors == 0 ? small : machine);
    const std::unique_ptr<Weight> weight = make(1, rows, columns, bytes.data());
    const OnChip x(*chip_, DType::kF32, {12, columns}, values);
    if (all.empty()) all = linear(*weight, x.tensor);  // more than few
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>{4, 8}, {0, 5}, {5, 3}, {11, 1}}) {
      const std::vector<float> some = linear(*weight, x.tensor.slice(first, count));
      EXPECT_EQ(std::memcmp(some.data(), all.data() + first * rows, some.size() * sizeof(float)), 0)
          << count << " rows from " << first << ", " << multiprocessors << " multiprocessors";
    }
  }
}

// A product that follows at once asks for its weight before it waits: not before that is written.
TEST_P(CudaSegmentsTest, AWeightIsReadOnceItIsThere) {
  const int64_t rows = 40, columns = 512;
  const bool can_be_written = GetParam().dtype == DType::kF32 || GetParam().dtype == DType::kBF16;
  const auto bytes = weights(rows, columns, 4);
  const OnChip x(*chip_, DType::kF32, {20, columns}, random_x(20 * columns));
  const OnChip values(*chip_, DType::kF32, {rows, columns}, random_x(rows * columns));
  for (const int64_t tokens : {1, 20}) {
    const std::unique_ptr<Weight> weight = make(1, rows, columns, bytes.data());
    EXPECT_EQ(linear(*weight, x.tensor.slice(0, tokens)), linear(*weight, x.tensor.slice(0, tokens)));
    if (!can_be_written) continue;
    chip_->write_weight(*weight, 0, values.tensor);
    EXPECT_EQ(linear(*weight, x.tensor.slice(0, tokens)), linear(*weight, x.tensor.slice(0, tokens)));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, CudaSegmentsTest,
    ::testing::Values(Product{DType::kF32, Compute::kF32}, Product{DType::kBF16, Compute::kBF16},
                      Product{DType::kBF16, Compute::kBF16, 8}, Product{DType::kQ4_0, Compute::kQ8},
                      Product{DType::kQ4_K, Compute::kQ8}, Product{DType::kQ6_K, Compute::kQ8},
                      Product{DType::kF8_128, Compute::kF8}, Product{DType::kF8_128, Compute::kF8, 8}),
    [](const auto& info) {
      return std::string(traits(info.param.dtype).name) + (info.param.major == 9 ? "" : "BeforeHopper");
    });

}  // namespace
}  // namespace qiao::cuda
