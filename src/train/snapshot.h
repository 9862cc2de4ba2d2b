// A copy in host memory of what a checkpoint keeps, so that training goes on while it is written.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "train/parameters.h"

namespace qiao::train {

// One thread may read it while another trains; take() is for when nobody reads.
class Snapshot {
 public:
  // Takes the memory, of Parameters::tensors() three times over. `parameters` outlives it.
  explicit Snapshot(Parameters& parameters);

  // Copies masters and moments: all that a step waits for.
  void take();
  const std::vector<Parameters::Named>& tensors() const { return parameters_.tensors(); }
  std::span<const float> values(Parameters::Kind kind, size_t tensor) const;
  size_t bytes() const { return kKinds * static_cast<size_t>(count_) * sizeof(float); }
  static size_t bytes_for(const Parameters& parameters);

 private:
  static constexpr size_t kKinds = 3;  // kept: masters, first and second moments
  Parameters& parameters_;
  std::vector<int64_t> firsts_;  // of each tensor, in one kind's values
  int64_t count_ = 0;
  std::unique_ptr<float[]> values_;  // not touched before the first take()
};

}  // namespace qiao::train
