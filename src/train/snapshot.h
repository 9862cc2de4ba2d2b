// A copy in host memory of what a checkpoint keeps, so that training goes on while it is written.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "train/optimizer.h"
#include "train/parameters.h"

namespace qiao::train {

// Of the tensors whose masters are in this process. One thread may read it while another trains; take() is
// for when nobody reads.
class Snapshot {
 public:
  // Takes the memory. Both outlive it.
  Snapshot(const Parameters& parameters, const Optimizer& optimizer);

  // Copies masters and states: all that a step waits for.
  void take();

  struct Kept {
    std::string name;  // "parameter.NAME", or an Optimizer::State's
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;
    size_t tensor = 0;            // of Parameters::tensors()
    size_t first = 0, bytes = 0;  // of the copy
  };
  const std::vector<Kept>& kept() const { return kept_; }  // masters in the file's order, then states
  std::span<const std::byte> bytes(const Kept& kept) const {
    return {memory_.get() + kept.first, kept.bytes};
  }
  // Of a tensor that is here.
  std::span<const float> master(size_t tensor) const;

  static size_t bytes_for(const Parameters& parameters, const Optimizer& optimizer);

 private:
  void add(Kept kept);

  const Parameters& parameters_;
  const Optimizer& optimizer_;
  std::vector<Kept> kept_;
  std::vector<size_t> masters_;  // by tensor, of kept_
  size_t size_ = 0;
  std::unique_ptr<std::byte[]> memory_;  // not touched before the first take()
};

}  // namespace qiao::train
