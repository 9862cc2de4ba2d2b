// What turns gradients into steps: AdamW (Loshchilov and Hutter 2019) for every tensor, or Muon (Jordan 2024)
// for the layers' matrices and AdamW for the rest. Each tensor is updated by itself, and its states lie
// together.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "train/joined_steps.h"
#include "train/parameters.h"
#include "train/ranks.h"

namespace qiao::train {

struct OptimizerSettings {
  std::string kind = "adamw";  // adamw, muon
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1;
  // What AdamW's moments are kept in: f32, bf16, 8bit. Tensors (or one expert's matrix) of fewer than
  // kLeastSmallStates F32.
  std::string adam_states = "f32";
  std::optional<double> adam_learning_rate;  // of what Muon does not train; none: learning_rate
  double muon_momentum = 0.95;
  std::string muon_lr_adjust = "original";  // original, match_rms_adamw
};

// Throws Error(kInvalidInput) naming the flag, its value and what was expected.
void check_optimizer(const OptimizerSettings& settings);
// What settings that are allowed lead to unexpectedly; empty: nothing.
std::string optimizer_warning(const OptimizerSettings& settings);

// As bitsandbytes has it: what is saved with fewer would be nothing, what is lost would be most in norms.
inline constexpr int64_t kLeastSmallStates = 4096;

// Ranks::WholeStepCost: Muon orthogonalises a matrix, of which a part does not tell; the blocks of 8-bit
// codes are those of the whole tensor. `outer` as below.
int64_t whole_step_cost(const OptimizerSettings& settings, std::span<const Weight* const> outer,
                        const Parameters::Named& tensor);

class Optimizer {
 public:
  // Plans the states of the tensors whose masters are here, once Ranks::share() has told which. `outer` are
  // the weights that are no layer's: embedding and head. `parameters` and `ranks` outlive it; null: alone.
  Optimizer(Backend& backend, Parameters& parameters, const OptimizerSettings& settings,
            std::span<const Weight* const> outer, const Ranks* ranks = nullptr);

  size_t bytes() const { return bytes_ + workspace_bytes_ + (joined_ ? joined_->bytes() : 0); }
  // Takes that memory: all states are zero. Before anything below.
  void prepare();

  // One step with the gradients times `gradient_scale`; `step` from 1. The weights are rewritten by
  // Parameters::rewrite(). A group's ranks call it alike.
  void update(double learning_rate, double adam_learning_rate, double gradient_scale, int64_t step);

  // What a checkpoint keeps beside the masters, of one tensor: "first_moment.NAME", "second_moment.NAME" or
  // "momentum.NAME" in the tensor's whole shape and its dtype, and "….scales" beside codes.
  struct State {
    std::string name;
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;
    size_t tensor = 0;                 // of Parameters::tensors()
    size_t first = 0;                  // bytes into the memory, of the tensor's first run
    size_t run_bytes = 0, stride = 0;  // from run to run
    size_t bytes = 0;                  // of this rank's part; 0: another rank keeps it (Named::is_kept)
    size_t whole_bytes = 0;            // of all ranks'
  };
  const std::vector<State>& states() const { return states_; }
  void read(const State& state, std::span<std::byte> bytes) const;
  void write(const State& state, std::span<const std::byte> bytes);

 private:
  // A matrix, a norm or a bias, or one expert's matrix of a tensor of all.
  struct Unit {
    size_t tensor = 0;
    int64_t run = 0;
    bool is_muon = false;
    DType kept = DType::kF32;
    // Bytes into the memory: AdamW's moments and their scales, or in `first` Muon's momentum.
    size_t first = 0, second = 0, first_scales = 0, second_scales = 0;
  };
  void take_memory(Unit& unit, int64_t count);
  void add_states(size_t tensor, size_t begin);
  Tensor place(size_t offset, DType dtype, int64_t count) const;
  // Of all of the unit's numbers.
  struct Numbers {
    Tensor master, gradient;
  };
  struct Step {
    double learning_rate, adam_learning_rate, gradient_scale;
    int64_t number;
  };
  void take_step(const Unit& unit, const Numbers& numbers, const Step& step);
  void adamw(const Unit& unit, const Numbers& numbers, const Step& step);
  void muon(const Unit& unit, const Numbers& numbers, const Step& step);
  Muon muon_of(const Parameters::Named& tensor) const;

  Backend& backend_;
  Parameters& parameters_;
  OptimizerSettings settings_;
  std::vector<Unit> units_;
  std::vector<size_t> first_units_;  // by tensor, of those that are kept here
  std::optional<JoinedSteps> joined_;
  std::vector<State> states_;
  size_t bytes_ = 0, workspace_bytes_ = 0;
  Buffer memory_, workspace_;
};

}  // namespace qiao::train
