// What evens out the loads of a mixture's experts in training: the auxiliary loss of a batch's routers.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace qiao {

// E * sum over experts of f * P: f the picks of an expert and P its mean score (softmax of the logits), both
// over the tokens of all layers. f is a constant on the way back. In float64, in host memory: E numbers a
// token are little beside the experts' products.
class RouterBalance {
 public:
  explicit RouterBalance(int64_t experts = 0);

  // A layer's router: logits F32 [T, E], counts I32 [E] of its picks.
  void add(Backend& backend, const Tensor& logits, const Tensor& counts);
  double value() const;  // 0 before the first

  void set_slope(double slope) { slope_ = slope; }  // the loss's derivative by value()
  double slope() const { return slope_; }
  // The derivative by the logits of one of the layers, F32 [T, E].
  void gradient(Backend& backend, const Tensor& logits, const Tensor& dlogits);

 private:
  void read_scores(Backend& backend, const Tensor& logits);
  std::vector<double> picks_, scores_;  // sums by expert
  double rows_ = 0;                     // tokens of all layers
  double slope_ = 0;
  std::vector<float> values_;
  std::vector<double> row_scores_;  // [T, E], of the layer read last
};

}  // namespace qiao
