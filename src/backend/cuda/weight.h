// A weight in the device's memory, in tiles (weight_layout.h). Neighbouring segments of one dtype are one
// panel, whose rows follow each other: a fused projection is one product.
#pragma once

#include <cstddef>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/weight_layout.h"

namespace qiao::cuda {

class CudaWeight final : public Weight {
 public:
  struct Panel {  // of one expert
    DType dtype;
    int64_t first_row, rows;
    int64_t units;         // tiles along K
    size_t offset, bytes;  // in the expert's memory
  };

  // `memory`: bytes_for(source), zeros.
  CudaWeight(const WeightSource& source, Buffer memory);
  static size_t bytes_for(const WeightSource& source);

  size_t bytes() const override { return memory_.bytes(); }
  const std::vector<Panel>& panels() const { return panels_; }
  // From one expert to the next.
  size_t expert_bytes() const { return expert_bytes_; }
  WeightRows rows_of(int64_t expert, size_t panel) const;
  // The panel with segment `segment`, and the row that it begins at there.
  struct Place {
    size_t panel;
    int64_t row;
  };
  Place place_of(size_t segment) const;

 private:
  Buffer memory_;
  std::vector<Panel> panels_;
  size_t expert_bytes_ = 0;
};

}  // namespace qiao::cuda
