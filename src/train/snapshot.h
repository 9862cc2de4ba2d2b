// What a checkpoint keeps: a copy of it in host memory, so that training goes on while it is written, or,
// where nothing is trained any more, what the parameters and the optimizer have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "train/optimizer.h"
#include "train/parameters.h"
#include "train/ranks.h"

namespace qiao::train {

// Of the tensors whose masters are in this process: all of them, where a group of processes has parts, on its
// first, and nothing on the others. One thread may read a copy while another trains; take() is for when
// nobody reads.
class Snapshot {
 public:
  enum class Kind : uint8_t {
    kCopy,
    kInPlace,  // is read where it lies, a tensor at a time: for a run's end
  };

  // Takes the memory. Of a group of several a copy. What it refers to outlives it.
  Snapshot(const Parameters& parameters, const Optimizer& optimizer, const Ranks& ranks, Kind kind);

  Kind kind() const { return kind_; }
  // Copies masters and states, where it is a copy: all that a step waits for. A group's ranks call it alike.
  void take();

  struct Kept {
    std::string name;  // "parameter.NAME", or an Optimizer::State's
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;
    size_t tensor = 0;            // of Parameters::tensors()
    size_t first = 0, bytes = 0;  // of the copy
    size_t own = 0;               // bytes of this rank's part
  };
  const std::vector<Kept>& kept() const { return kept_; }  // masters in the file's order, then states
  // In place: until the next call of this or master().
  std::span<const std::byte> bytes(const Kept& kept) const;
  // Of a tensor that is here.
  std::span<const float> master(size_t tensor) const;

  static size_t bytes_for(const Parameters& parameters, const Optimizer& optimizer, const Ranks& ranks,
                          Kind kind);

 private:
  void add(Kept kept);
  void read(const Kept& kept, std::byte* to) const;

  const Parameters& parameters_;
  const Optimizer& optimizer_;
  const Ranks& ranks_;
  const Kind kind_;
  std::vector<Kept> kept_;
  size_t states_ = 0;            // the first of kept_ that is one
  std::vector<size_t> masters_;  // by tensor, of kept_
  size_t size_ = 0;
  std::unique_ptr<std::byte[]> memory_;  // of all, or of the largest; not touched before it is needed
};

}  // namespace qiao::train
