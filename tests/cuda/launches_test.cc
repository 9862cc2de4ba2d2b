// What a step of decoding asks of the chip: how many launches there are in a layer is what its latency is
// made of (docs/h200.md).
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "base/file.h"
#include "models/initial_weights.h"
#include "models/model_folder.h"
#include "models/step_driver.h"
#include "support/temporary_directory.h"

namespace qiao {
namespace {

struct CountedOps final : OpWatch {
  void on_op(std::string_view op, double, double, double) override { ++counts[std::string(op)], ++all; }
  std::map<std::string, int64_t> counts;
  int64_t all = 0;
};

// A model of BF16 weights, drawn at random.
struct Bf16Model {
  explicit Bf16Model(const char* family = "llama") : backend(make_backend("cuda")) {
    Json config = parse_json(read_file(testing::golden_models() / family / "config.json"), "config.json");
    config["dtype"] = "bfloat16";
    config["intermediate_size"] = 96;  // whole tiles of gate and of up
    folder.write("config.json", dump_json(config));
    files = open_or_initialize(folder.path(), 1);
    decoder = Decoder::load(*files, *backend);
  }
  testing::TemporaryDirectory folder;
  std::unique_ptr<Backend> backend;
  std::shared_ptr<ModelFiles> files;
  std::unique_ptr<Decoder> decoder;
};

// Of a step of one token behind three.
CountedOps ops_of_a_step(const Bf16Model& model, int64_t& launches) {
  testing::StepDriver driver(*model.decoder, 8);
  const int32_t prompt[] = {1, 2, 3}, next[] = {4}, row[] = {0};
  driver.feed(prompt, row);
  CountedOps ops;
  model.backend->set_watch(&ops);
  const int64_t before = stand_in::use().launches;
  driver.feed(next, row);
  model.backend->synchronize();
  model.backend->set_watch(nullptr);
  launches = stand_in::use().launches - before;
  return ops;
}

TEST(CudaLaunchesTest, AStepOfDecodingNormsInItsProductsAndHasALaunchForEachOp) {
  const Bf16Model model;
  const int64_t layers = model.decoder->config().num_hidden_layers;
  int64_t launches = 0;
  CountedOps ops = ops_of_a_step(model, launches);
  EXPECT_EQ(ops.counts["linear"], 4 * layers + 1);
  EXPECT_EQ(ops.counts["rope_kv_write"], layers);
  EXPECT_EQ(ops.counts["attention_paged"], layers);
  EXPECT_EQ(ops.counts["rope"] + ops.counts["kv_write"] + ops.counts["gated_activation"], 0);
  EXPECT_EQ(ops.counts["add_rms_norm"], 1) << "the last, whose rows are a result of their own";
  EXPECT_EQ(launches, ops.all);
}

TEST(CudaLaunchesTest, SoHasOneOfExperts) {
  const Bf16Model model("qwen3-moe");
  const int64_t layers = model.decoder->config().num_hidden_layers;
  int64_t launches = 0;
  CountedOps ops = ops_of_a_step(model, launches);
  EXPECT_EQ(ops.counts["moe_permute"], layers);
  EXPECT_EQ(ops.counts["grouped_linear"], 2 * layers);
  EXPECT_EQ(ops.counts["gated_activation"], 0);
  EXPECT_EQ(launches, ops.all);
}

// Few rows are normed by the products themselves, more on their way to them.
TEST(CudaLaunchesTest, ARowsLogitsAreTheSameHoweverItIsNormed) {
  const Bf16Model model;
  std::vector<int32_t> prompt(20);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7 % 90 + 1);
  const std::vector<float> whole = testing::StepDriver(*model.decoder, 20).feed_in_chunks(prompt, 20);
  for (const size_t chunk : {1, 5, 9}) {
    const std::vector<float> got = testing::StepDriver(*model.decoder, 20).feed_in_chunks(prompt, chunk);
    ASSERT_EQ(got.size(), whole.size());
    EXPECT_EQ(std::memcmp(whole.data(), got.data(), got.size() * sizeof(float)), 0) << "chunks of " << chunk;
  }
}

}  // namespace
}  // namespace qiao
