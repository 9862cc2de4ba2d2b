// What a step of decoding asks of the chip: how many launches there are in a layer is what its latency is
// made of (docs/h200.md).
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "backend/backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "models/model_folder.h"
#include "models/step_driver.h"

namespace qiao {
namespace {

struct CountedOps final : OpWatch {
  void on_op(std::string_view op, double, double, double) override { ++counts[std::string(op)], ++all; }
  std::map<std::string, int64_t> counts;
  int64_t all = 0;
};

TEST(CudaLaunchesTest, AStepOfDecodingNormsInItsProductsAndHasALaunchForEachOp) {
  const auto backend = make_backend("cuda");
  const auto files = testing::ModelFolder("llama", "config.json").open();
  const auto decoder = Decoder::load(*files, *backend, {.compute = DecoderOptions::Policy::kBF16});
  const int64_t layers = decoder->config().num_hidden_layers;
  testing::StepDriver driver(*decoder, 8);
  const int32_t prompt[] = {1, 2, 3}, next[] = {4}, row[] = {0};
  driver.feed(prompt, row);
  CountedOps ops;
  backend->set_watch(&ops);
  const int64_t before = stand_in::use().launches;
  driver.feed(next, row);
  backend->synchronize();
  backend->set_watch(nullptr);
  EXPECT_EQ(ops.counts["linear"], 4 * layers + 1);
  EXPECT_EQ(ops.counts["add_rms_norm"], 1) << "the last, whose rows are a result of their own";
  EXPECT_EQ(stand_in::use().launches - before, ops.all);
}

}  // namespace
}  // namespace qiao
