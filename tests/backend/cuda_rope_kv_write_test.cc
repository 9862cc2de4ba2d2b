// Which shapes the CUDA chip does in one launch: its bits are conformance's matter.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"

namespace qiao {
namespace {

struct KeptHeadsShape {
  int64_t width, pairs;
  Rope::Layout layout = Rope::Layout::kHalf;
  int64_t first = 0;  // the first element's place in memory
};

// Launches of a call with norms of queries and keys.
int64_t launches_of(const KeptHeadsShape& shape, int64_t tokens) {
  stand_in::reset();
  int64_t launched = 0;
  {
    const std::unique_ptr<Backend> chip = make_cuda_backend({});
    const std::unique_ptr<KvPages> pages = chip->make_kv_pages({tokens, 1, 2, shape.width, DType::kBF16});
    const Buffer memory = chip->allocate(static_cast<size_t>(tokens * 8 * shape.width + 64) * sizeof(float));
    const Buffer frequencies = chip->allocate(static_cast<size_t>(shape.pairs) * sizeof(float));
    const Buffer indices = chip->allocate(static_cast<size_t>(tokens) * sizeof(int32_t));
    const std::vector<float> zeros(static_cast<size_t>(tokens * 8 * shape.width + 64));
    std::vector<int32_t> slots;
    for (int64_t t = 0; t < tokens; ++t) slots.push_back(static_cast<int32_t>(t));
    chip->upload(memory.data(), zeros.data(), memory.bytes());
    chip->upload(frequencies.data(), zeros.data(), frequencies.bytes());
    chip->upload(indices.data(), slots.data(), indices.bytes());
    const Tensor rows(static_cast<float*>(memory.data()) + shape.first, DType::kF32,
                      {tokens, 8, shape.width});
    RopeKvWrite op;
    op.q = rows.narrow(1, 0, 4), op.k = rows.narrow(1, 4, 2), op.v = rows.narrow(1, 6, 2);
    op.q_norm.present = op.k_norm.present = true;
    op.positions = op.slots = Tensor(indices.data(), DType::kI32, {tokens});
    op.inverse_frequencies = Tensor(frequencies.data(), DType::kF32, {shape.pairs});
    op.layout = shape.layout;
    op.pages = pages.get();
    chip->synchronize();
    const int64_t before = stand_in::use().launches;
    chip->rope_kv_write(op);
    chip->synchronize();
    launched = stand_in::use().launches - before;
  }
  EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
  return launched;
}

TEST(CudaRopeKvWriteTest, HeadsOfCommonModelsAreOneLaunch) {
  using enum Rope::Layout;
  for (const int64_t tokens : {1, 70}) {
    for (const int64_t width : {64, 80, 96, 128, 256}) {
      EXPECT_EQ(launches_of({width, width / 2}, tokens), 1) << width;
      EXPECT_EQ(launches_of({width, width / 2, kInterleaved}, tokens), 1) << width;
      EXPECT_EQ(launches_of({width, width / 8}, tokens), width == 80 ? 4 : 1) << width;
      EXPECT_EQ(launches_of({width, width / 8, kInterleaved}, tokens), 1) << width;
    }
    EXPECT_EQ(launches_of({80, 16}, tokens), 1);  // Phi-2's
    EXPECT_EQ(launches_of({96, 12}, tokens), 1);  // GPT-NeoX-20B's
  }
}

TEST(CudaRopeKvWriteTest, OthersAreTheOpsApart) {
  EXPECT_EQ(launches_of({100, 50}, 1), 4);        // not whole vectors of the pages
  EXPECT_EQ(launches_of({64, 32, {}, 1}, 1), 4);  // nor at multiples of 16 bytes
  EXPECT_EQ(launches_of({64, 10}, 1), 4);         // pairs that lie across vectors
  EXPECT_EQ(launches_of({256, 96}, 1), 4);        // and across both of a lane's
}

}  // namespace
}  // namespace qiao
