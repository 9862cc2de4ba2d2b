// A weight in the device's memory: each segment's rows as the file has them, block after block.
#pragma once

#include <cstddef>
#include <vector>

#include "backend/backend.h"

namespace qiao::cuda {

class CudaWeight final : public Weight {
 public:
  CudaWeight(const WeightSource& source, Buffer memory);
  static size_t bytes_for(const WeightSource& source);

  size_t bytes() const override { return memory_.bytes(); }
  // The rows of one segment of one expert.
  std::byte* part(int64_t expert, size_t segment) const;
  size_t part_bytes(size_t segment) const;

 private:
  Buffer memory_;
  std::vector<size_t> offsets_;  // of each segment in an expert; the last: the expert's bytes
};

}  // namespace qiao::cuda
