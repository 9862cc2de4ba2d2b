// Part of the law (reference_class.h): log-probabilities of known tokens, and their way back.
#include "backend/ops/token_logprob.h"

#include <algorithm>
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/memory.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {
namespace {

// log_sum_exp and logprob are left to the caller.
template <typename Op>
LogprobTerms exact_logits(const Op& op) {
  LogprobTerms terms;
  const std::vector<int64_t> experts(static_cast<size_t>(op.x.shape[0]), 0);
  terms.products = exact_products(op.x, *op.weight, op.compute, experts);
  for (const double sum : terms.products.sum) {
    const double capped = op.soft_cap > 0 ? activate(Activation::kSoftCap, op.soft_cap, sum) : sum;
    terms.z.push_back(capped / static_cast<double>(op.temperature));
  }
  return terms;
}

}  // namespace

LogprobTerms exact_token_logprob(const TokenLogprob& op) {
  LogprobTerms terms = exact_logits(op);
  const int64_t vocabulary = op.weight->rows();
  for (int64_t t = 0; t < op.x.shape[0]; ++t) {
    const double* z = terms.z.data() + t * vocabulary;
    const int32_t label = op.labels.as<int32_t>()[t];
    if (label < 0) {
      terms.log_sum_exp.push_back(0);
      terms.logprob.push_back(0);
      continue;
    }
    const double largest = *std::max_element(z, z + vocabulary);
    double sum = 0;
    for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(z[v] - largest);
    terms.log_sum_exp.push_back(largest + std::log(sum));
    terms.logprob.push_back(z[label] - terms.log_sum_exp.back());
  }
  return terms;
}

// By linear's logits and sample's log-softmax of them, so that their bits agree.
void ReferenceBackend::do_token_logprob(const TokenLogprob& op) {
  const int64_t tokens = op.x.shape[0], vocabulary = op.weight->rows();
  std::vector<float> logits(static_cast<size_t>(tokens * vocabulary));
  Linear linear;
  linear.x = op.x;
  linear.weight = op.weight;
  linear.compute = op.compute;
  if (op.soft_cap > 0) linear.activation = Activation::kSoftCap, linear.soft_cap = op.soft_cap;
  linear.y = Tensor(logits.data(), DType::kF32, {tokens, vocabulary});
  do_linear(linear);
  for (int64_t t = 0; t < tokens; ++t) {
    float* z = logits.data() + t * vocabulary;
    double largest = -INFINITY, sum = 0;
    for (int64_t v = 0; v < vocabulary; ++v) {
      z[v] /= op.temperature;
      largest = std::max(largest, static_cast<double>(z[v]));
    }
    for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(static_cast<double>(z[v]) - largest);
    const int32_t label = op.labels.as<int32_t>()[t];
    const double logprob = label < 0 ? 0 : static_cast<double>(z[label]) - largest - std::log(sum);
    op.logprob.as<float>()[t] = static_cast<float>(logprob);
    op.log_sum_exp.as<float>()[t] = label < 0 ? 0.0f : static_cast<float>(largest + std::log(sum));
  }
}

LogprobGradients exact_token_logprob_backward(const TokenLogprobBackward& op) {
  LogprobGradients result;
  result.terms = exact_logits(op);
  const int64_t tokens = op.x.shape[0], width = op.weight->columns(), vocabulary = op.weight->rows();
  const auto temperature = static_cast<double>(op.temperature), cap = static_cast<double>(op.soft_cap);
  result.h.resize(static_cast<size_t>(tokens * vocabulary));
  result.size.resize(result.h.size());
  result.dx.resize(static_cast<size_t>(tokens * width));
  const auto& weight = static_cast<const ReferenceWeight&>(*op.weight);
  std::vector<Term> row(static_cast<size_t>(width));
  std::vector<double> x(static_cast<size_t>(width));
  for (int64_t v = 0; v < vocabulary; ++v) {
    weight.row_terms(0, v, row.data());
    for (const Term& term : row) result.w.push_back(static_cast<double>(term.value()));
  }
  result.dw.resize(result.w.size());
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t label = op.labels.as<int32_t>()[t];
    const double g = op.dlogprob.as<float>()[t];
    if (label < 0 || g == 0) continue;
    round_activations(gradient_compute(op.compute), &at(op.x, t, 0), width, x.data());
    for (int64_t v = 0; v < vocabulary; ++v) {
      const auto i = static_cast<size_t>(t * vocabulary + v);
      const double z = result.terms.z[i];
      const double p = std::exp(z - static_cast<double>(op.log_sum_exp.as<float>()[t]));
      const double share = cap > 0 ? z * temperature / cap : 0;
      result.h[i] = g * ((v == label ? 1.0 : 0.0) - p) / temperature * (1 - share * share);
      result.size[i] = std::abs(g) * ((v == label ? 1.0 : 0.0) + p) / temperature;
      for (int64_t c = 0; c < width; ++c) {
        result.dx[static_cast<size_t>(t * width + c)] +=
            result.h[i] * result.w[static_cast<size_t>(v * width + c)];
        result.dw[static_cast<size_t>(v * width + c)] += result.h[i] * x[static_cast<size_t>(c)];
      }
    }
  }
  return result;
}

void ReferenceBackend::do_token_logprob_backward(const TokenLogprobBackward& op) {
  const LogprobGradients gradients = exact_token_logprob_backward(op);
  for (int64_t i = 0; op.dx.present() && i < op.dx.elements(); ++i) {
    at(op.dx, i / op.dx.shape[1], i % op.dx.shape[1]) =
        static_cast<float>(gradients.dx[static_cast<size_t>(i)]);
  }
  for (int64_t i = 0; op.dw.present() && i < op.dw.elements(); ++i) {
    float& to = op.dw.as<float>()[i];
    to = static_cast<float>(static_cast<double>(to) + gradients.dw[static_cast<size_t>(i)]);
  }
}

}  // namespace qiao::reference
