// What a step of training costs, by op.
#pragma once

#include <map>
#include <string>

#include "backend/backend.h"

namespace qiao::train {

// What the chip can do in products of this kind; 0: not measured.
double product_peak(const DevicePeaks& peaks, Compute compute);

class Profile final : public OpWatch {
 public:
  void on_op(std::string_view op, double seconds, double flops, double bytes) override;

  // A table of one step, the dearest op first: time, share, calls, GFLOP/s and GB/s with their shares of
  // `peaks` (0: not known), and what passed between ops. `seconds`: of all `steps` that were watched.
  // `compute`: what matrices are multiplied in.
  std::string table(int64_t steps, double seconds, const DevicePeaks& peaks, Compute compute) const;

 private:
  struct Cost {
    int64_t calls = 0;
    double seconds = 0, flops = 0, bytes = 0;
  };
  std::map<std::string, Cost, std::less<>> costs_;
};

}  // namespace qiao::train
