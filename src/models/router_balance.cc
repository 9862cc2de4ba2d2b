#include "models/router_balance.h"

#include <algorithm>
#include <cmath>

namespace qiao {

RouterBalance::RouterBalance(int64_t experts)
    : picks_(static_cast<size_t>(experts)), scores_(static_cast<size_t>(experts)) {}

void RouterBalance::read_scores(Backend& backend, const Tensor& logits) {
  const size_t experts = picks_.size(), rows = static_cast<size_t>(logits.shape[0]);
  values_.resize(rows * experts);
  row_scores_.resize(rows * experts);
  backend.download(values_.data(), logits.data, values_.size() * sizeof(float));
  for (size_t row = 0; row < rows; ++row) {
    const float* x = &values_[row * experts];
    double* q = &row_scores_[row * experts];
    const auto largest = static_cast<double>(*std::max_element(x, x + experts));
    double sum = 0;
    for (size_t e = 0; e < experts; ++e) sum += q[e] = std::exp(static_cast<double>(x[e]) - largest);
    for (size_t e = 0; e < experts; ++e) q[e] /= sum;
  }
}

void RouterBalance::add(Backend& backend, const Tensor& logits, const Tensor& counts) {
  const size_t experts = picks_.size();
  read_scores(backend, logits);
  for (size_t i = 0; i < row_scores_.size(); ++i) scores_[i % experts] += row_scores_[i];
  std::vector<int32_t> picked(experts);
  backend.download(picked.data(), counts.data, experts * sizeof(int32_t));
  for (size_t e = 0; e < experts; ++e) picks_[e] += picked[e];
  rows_ += static_cast<double>(logits.shape[0]);
}

double RouterBalance::value() const {
  if (rows_ == 0) return 0;
  double sum = 0;
  for (size_t e = 0; e < picks_.size(); ++e) sum += picks_[e] / rows_ * (scores_[e] / rows_);
  return static_cast<double>(picks_.size()) * sum;
}

void RouterBalance::gradient(Backend& backend, const Tensor& logits, const Tensor& dlogits) {
  const size_t experts = picks_.size();
  read_scores(backend, logits);
  std::vector<double> by_score(experts);  // the loss's derivative by each token's score
  for (size_t e = 0; e < experts; ++e)
    by_score[e] = slope_ * static_cast<double>(experts) * (picks_[e] / rows_) / rows_;
  for (size_t first = 0; first < row_scores_.size(); first += experts) {
    double mean = 0;
    for (size_t e = 0; e < experts; ++e) mean += row_scores_[first + e] * by_score[e];
    for (size_t e = 0; e < experts; ++e)
      values_[first + e] = static_cast<float>(row_scores_[first + e] * (by_score[e] - mean));
  }
  backend.upload(dlogits.data, values_.data(), values_.size() * sizeof(float));
}

}  // namespace qiao
