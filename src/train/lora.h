// What is trained where --lora-rank is given: the matrices of a LoRA adapter (Hu et al. 2021) beside a base
// that stays as it is, in PEFT's parametrisation: y += scale * B (A x).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "models/decoder.h"
#include "models/lora_slots.h"
#include "train/parameters.h"

namespace qiao::train {

struct LoraOptions {
  int64_t rank = 0;              // 0: as `init` has it, or no adapter: all of the model is trained
  double alpha = 0;              // scale * rank; 0: the rank, or as `init` has it
  bool rank_stabilized = false;  // scale alpha / sqrt(rank) (Kalajdzievski 2023)
  double dropout = 0;            // share of what enters A that is dropped in training
  std::vector<std::string> targets = {"all-linear"};  // modules by the ends of their names
  std::filesystem::path init;  // an adapter of PEFT to go on from, with its own targets
  bool on() const { return rank > 0 || !init.empty(); }
};

class LoraAdapter {
 public:
  // Lays the adapter out as the decoder's only one and gives its matrices to `parameters`. Without
  // options.init A is drawn as PEFT draws it, uniform up to 1 / sqrt(columns), by `seed` and its name alone;
  // B is 0. `base` is what the files were opened from. Throws Error naming the flag, the target that no
  // module has (with those that there are), or the tensor.
  LoraAdapter(const LoraOptions& options, uint64_t seed, const std::filesystem::path& base,
              const ModelFiles& files, Decoder& decoder, Parameters& parameters);

  // Parameters::prepare with the matrices as they begin. Once.
  void prepare(Parameters& parameters);

  // adapter_config.json and adapter_model.safetensors (F32), as PEFT has them: written beside and renamed,
  // the matrices last. Throws Error(kIo).
  void write(const std::filesystem::path& folder, const Parameters& parameters, const MasterOf& master) const;

  // What makes other values of the same matrices of it, by flag.
  const Json& fixed() const { return fixed_; }

  // Values of one of its matrices with rows in PEFT's order; the masters have those of the base's files.
  std::vector<float> as_peft(const Parameters::Named& tensor, std::vector<float> values) const;

 private:
  std::string config_;  // of adapter_config.json
  Json fixed_;
  std::vector<LoraModule> modules_;
  std::map<std::string, int64_t, std::less<>>
      paired_rows_;  // of B, by its name, where the base has them in pairs
  int64_t head_dim_;
  std::map<std::string, std::vector<float>> begin_;  // by tensor, until prepare()
};

}  // namespace qiao::train
