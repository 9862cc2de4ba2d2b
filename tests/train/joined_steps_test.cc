// Steps of matrices that are cut over ranks: from the same gradients they leave the bytes that one process
// leaves, model, masters and states, for any number of ranks.
#include "train/joined_steps.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "train/golden_run.h"
#include "train/saver.h"
#include "train/trained_model.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;

// Of all of a tensor, the same for any number of ranks.
std::vector<float> drawn_gradient(const Parameters::Named& tensor, size_t place, int64_t step) {
  std::mt19937 random(static_cast<uint32_t>(1000 * step + static_cast<int64_t>(place)));
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(tensor.runs * tensor.part.whole_count()));
  for (float& value : values) value = normal(random);
  return values;
}

void draw_gradients(Backend& backend, const Parameters& parameters, int64_t step) {
  for (size_t i = 0; i < parameters.tensors().size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    const std::vector<float> whole = drawn_gradient(tensor, i, step);
    std::vector<float> own(static_cast<size_t>(tensor.count));
    take_part(tensor.part, tensor.runs, sizeof(float), std::as_bytes(std::span(whole)),
              std::as_writable_bytes(std::span(own)));
    const float* from = own.data();
    for (int64_t run = 0; tensor.count > 0 && run < tensor.runs; ++run) {
      const Tensor to = parameters.gradient(tensor, run);
      backend.upload(to.data, from, static_cast<size_t>(to.bytes()));
      from += to.elements();
    }
  }
}

struct Found {
  std::map<DType, int> joined;  // states of joined tensors that this rank keeps, by dtype
  size_t state_bytes = 0;       // of this rank
};

// Steps from the checkpoint that is in options.out, or the beginning, to options.steps, with a checkpoint and
// the model there. By rank.
std::vector<Found> take_steps(const TrainOptions& options, int64_t first) {
  const auto size = static_cast<int>(options.tensor_parallel);
  std::vector<Found> found(static_cast<size_t>(size));
  in_a_group(size, [&](Communicator& communicator) {
    Ranks ranks(communicator, 1, size);
    TrainedModel model(options, communicator, ranks);
    model.prepare();
    const auto no_warning = [](const std::string& text) { ADD_FAILURE() << text; };
    if (first > 1) {
      const CheckpointState state = load_checkpoint(options.out, model.fixed(), 1, *model.parameters,
                                                    *model.optimizer, ranks, no_warning);
      EXPECT_EQ(state.step, first - 1);
      ranks.publish(*model.parameters);
    }
    for (int64_t step = first; step <= options.steps; ++step) {
      draw_gradients(*model.backend, *model.parameters, step);
      model.optimizer->update(0.02, 0.01, 0.5, step);
      ranks.publish(*model.parameters);
    }
    Saver saver({.options = options,
                 .parameters = *model.parameters,
                 .optimizer = *model.optimizer,
                 .ranks = ranks,
                 .write_model = [&](const MasterOf& master) { model.write(options.out / "model", master); },
                 .warn = no_warning,
                 .snapshot = Snapshot::Kind::kCopy});
    saver.begin({options.steps, 0, Json::object(), model.fixed()});
    saver.finish();
    Found& own = found[static_cast<size_t>(communicator.rank())];
    for (const Optimizer::State& state : model.optimizer->states()) {
      own.state_bytes += state.bytes;
      if (state.bytes > 0 && model.parameters->tensors()[state.tensor].is_joined) ++own.joined[state.dtype];
    }
  });
  return found;
}

struct JoinedCase {
  const char* name;
  const char* model;
  const char* optimizer;
  const char* states;
  const char* chip = "cpu";
  const char* dtype = "f32";
  int64_t lora_rank = 0;
  std::vector<int64_t> sizes = {2, 4};
};

// Heads of a block of E4M3's each, and as many units for each of four ranks.
void write_wide_model(const fs::path& folder) {
  Json config = parse_json(read_file(golden() / "llama" / "init" / "config.json"), "config.json");
  config.update({{"head_dim", 128}, {"hidden_size", 128}, {"intermediate_size", 512}});
  write_file_atomically(folder / "config.json", dump_json(config, 2));
}

class JoinedStepsTest : public ::testing::TestWithParam<JoinedCase> {
 protected:
  TrainOptions options(const std::string& name, int64_t size) const {
    const JoinedCase& of = GetParam();
    const std::string model = of.model;
    TrainOptions made = as_pytorch(folder_.path() / name, model);
    if (model.starts_with("models/")) made.init = golden().parent_path() / model;
    if (model == "uneven" || model == "fp8") {
      made.init = folder_.path() / "init";
      fs::create_directories(made.init);
      if (model == "uneven") {
        write_uneven_model(made.init);
      } else {
        write_wide_model(made.init);
      }
    }
    made.tensor_parallel = size;
    made.device = of.chip;
    made.dtype = of.dtype;
    made.optimizer.kind = of.optimizer;
    made.optimizer.adam_states = of.states;
    made.lora.rank = of.lora_rank;
    made.threads = 1;
    made.keep_checkpoints = 1;
    made.steps = 2;
    return made;
  }
  const testing::TemporaryDirectory folder_;
};

TEST_P(JoinedStepsTest, LeaveTheBytesOfOneProcess) {
  const std::vector<Found> alone = take_steps(options("1", 1), 1);
  EXPECT_TRUE(alone[0].joined.empty());
  for (const int64_t size : GetParam().sizes) {
    SCOPED_TRACE(size);
    const std::string name = std::to_string(size);
    const std::vector<Found> found = take_steps(options(name, size), 1);
    expect_same_run(folder_.path() / "1", folder_.path() / name);
    const bool is_muon = std::string_view(GetParam().optimizer) == "muon";
    int kept = 0;
    for (const Found& rank : found) {
      const auto joined = rank.joined.find(is_muon ? DType::kF32 : DType::kU8);
      kept += joined == rank.joined.end() ? 0 : joined->second;
      EXPECT_LT(rank.state_bytes, alone[0].state_bytes);
    }
    EXPECT_GT(kept, static_cast<int>(size)) << "else nothing is tested";
  }
}

TEST_P(JoinedStepsTest, GoOnOverAnotherNumber) {
  TrainOptions whole = options("whole", 1);
  whole.steps = 3;
  take_steps(whole, 1);
  const std::vector<int64_t>& sizes = GetParam().sizes;
  for (const auto& [then, now] :
       {std::pair{int64_t{1}, sizes.back()}, {sizes.front(), sizes.back()}, {sizes.back(), int64_t{1}}}) {
    SCOPED_TRACE(fmt::format("from {} to {}", then, now));
    const std::string name = fmt::format("{} {}", then, now);
    take_steps(options(name, then), 1);
    TrainOptions rest = options(name, now);
    rest.steps = 3;
    take_steps(rest, 3);
    expect_same_run(whole.out, rest.out);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, JoinedStepsTest,
    ::testing::Values(JoinedCase{"muon", "llama", "muon", "f32"},
                      JoinedCase{"muon_reference", "llama", "muon", "f32", "reference"},
                      JoinedCase{"muon_experts", "qwen3-moe-balanced", "muon", "bf16"},
                      JoinedCase{"muon_shared_expert", "hunyuan-moe", "muon", "f32", "cpu", "bf16"},
                      JoinedCase{"muon_fused", "models/phi3", "muon", "f32", "cpu", "f32", 0, {2}},
                      JoinedCase{"muon_uneven", "uneven", "muon", "8bit", "cpu", "f32", 0, {2, 3, 6}},
                      JoinedCase{"muon_lora", "gemma3", "muon", "f32", "cpu", "f32", 4},
                      JoinedCase{"muon_fp8", "fp8", "muon", "8bit", "cpu", "fp8"},
                      JoinedCase{"codes", "llama", "adamw", "8bit"},
                      JoinedCase{"codes_uneven", "uneven", "adamw", "8bit", "cpu", "bf16", 0, {2, 3, 6}},
                      JoinedCase{"codes_fp8", "fp8", "adamw", "8bit", "cpu", "fp8"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qiao::train
