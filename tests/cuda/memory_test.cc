// The device's memory, sized at the start: what it is shared out to, and what is said where it does not do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cuda_stand_in/stand_in.h"
#include "infer/engine_harness.h"

namespace qiao {
namespace {

using ::testing::HasSubstr;
using testing::load_chat_model;

stand_in::Machine machine_of(uint64_t bytes) {
  stand_in::Machine machine;
  machine.memory_bytes = bytes;
  return machine;
}

TEST(CudaMemoryTest, TheCacheTakesTheShareOfAServersDevice) {
  stand_in::reset(machine_of(uint64_t{96} << 20));
  const auto model = load_chat_model(1, "cuda");
  const uint64_t free = model->backend().describe().free_bytes;
  for (const auto& [share, dtype] : {std::pair(0.0, DType::kF16), std::pair(0.4, DType::kF8_E4M3)}) {
    Engine engine(
        model, {.context = 128, .slots = 2, .memory_share = share, .fill_memory = true, .kv_dtype = dtype});
    const EngineMemory memory = engine.memory();
    const double taken = static_cast<double>(memory.cache + memory.workspace) / static_cast<double>(free);
    EXPECT_LE(taken, share == 0 ? 0.9 : share);
    EXPECT_GT(taken, (share == 0 ? 0.9 : share) - 0.02);
    EXPECT_EQ(memory.total, uint64_t{96} << 20);
    // All that lies there was planned, but for a granule of each allocation.
    EXPECT_LE(stand_in::use().device_bytes,
              memory.weights + memory.cache + memory.workspace + (uint64_t{1} << 20));
    const uint64_t planned = stand_in::use().device_bytes;
    GenerationRequest request = testing::greedy(*model, "A bridge", 8);
    request.logprobs = true;
    request.top_logprobs = 20;
    EXPECT_EQ(testing::run(engine, request).tokens.size(), 8u);
    EXPECT_EQ(stand_in::use().device_bytes, planned);
  }
}

// A row of 64 in 8 bits: its numbers and a vector of 16 bytes for the scales, where a file's has 68.
TEST(CudaMemoryTest, PagesAreCountedAsTheyLie) {
  const auto model = load_chat_model(1, "cuda");
  DecoderConfig config;
  config.num_hidden_layers = 3;
  config.layer_slides = {true, false, true};
  config.num_key_value_heads = 2;
  config.head_dim = 64;
  const KvCache::PageBytes bytes = KvCache::bytes_per_page(model->backend(), config, 16, DType::kQ8_0);
  constexpr uint64_t kRows = 2 * 16 * 2;
  EXPECT_EQ(bytes.full, kRows * (64 + 16));
  EXPECT_EQ(bytes.sliding, 2 * kRows * (64 + 16));
}

// As many pages as the slots need, where nobody asks for more.
TEST(CudaMemoryTest, OneConversationTakesWhatItNeeds) {
  const auto model = load_chat_model(1, "cuda");
  Engine engine(model, {.context = 128, .slots = 2, .page_tokens = 16});
  EXPECT_EQ(engine.options().pages, 16);
  EXPECT_EQ(testing::run(engine, testing::greedy(*model, "A bridge", 2)).tokens.size(), 2u);
}

TEST(CudaMemoryTest, TooLittleSaysWhatWouldFit) {
  stand_in::reset(machine_of(uint64_t{24} << 20));
  const auto model = load_chat_model(1, "cuda");
  try {
    Engine engine(model, {.context = 1 << 20, .slots = 1, .kv_dtype = DType::kF32});
    FAIL() << "it fits";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kTooLarge);
    EXPECT_THAT(e.what(), HasSubstr("GiB and the steps' workspace"));
    EXPECT_THAT(e.what(), HasSubstr("of the device's memory are free beside the weights"));
    EXPECT_THAT(e.what(), HasSubstr("what may fit: a context of "));
    EXPECT_THAT(e.what(), HasSubstr("--kv-type fp8 with a context of "));  // heads of 16: no blocks of q8_0
    EXPECT_THAT(e.what(), HasSubstr("or a smaller or quantized model file"));
  }
}

TEST(CudaMemoryTest, WeightsThatDoNotFitSayWhatQuantizedOnesTake) {
  stand_in::reset(machine_of(96 << 10));
  try {
    load_chat_model(1, "cuda");
    FAIL() << "it fits";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kTooLarge);
    EXPECT_THAT(e.what(), HasSubstr("its weights take"));
    EXPECT_THAT(e.what(), HasSubstr("as Q4_K they would take"));
  }
  stand_in::reset();
  EXPECT_NE(load_chat_model(1, "cuda"), nullptr);
}

}  // namespace
}  // namespace qiao
