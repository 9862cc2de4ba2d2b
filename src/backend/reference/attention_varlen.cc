// Part of the law (reference_class.h): attention without a cache, and its way back.
#include "backend/ops/attention_varlen.h"

#include <algorithm>
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {
namespace {

// The keys [first, end) that the query at row t sees of the sequence of rows [begin, sequence_end).
struct SeenKeys {
  int64_t first, end;
};
template <typename Op>
SeenKeys seen_keys(const Op& op, int64_t t, int64_t begin, int64_t sequence_end) {
  if (!op.causal) return {begin, sequence_end};
  return {op.window > 0 ? std::max(begin, t - op.window + 1) : begin, t + 1};
}

// The score of query t of head h towards key j without bias and soft-cap; *magnitude with |.| throughout.
template <typename Op>
double plain_score(const Op& op, int64_t t, int64_t h, int64_t j, double* magnitude) {
  const int64_t group = h / (op.q.shape[1] / op.k.shape[1]);
  double dot = 0, absolute = 0;
  for (int64_t d = 0; d < op.q.shape[2]; ++d) {
    const double product =
        static_cast<double>(at(op.q, t, h, d)) * static_cast<double>(at(op.k, j, group, d));
    dot += product;
    absolute += std::abs(product);
  }
  *magnitude = std::abs(static_cast<double>(op.scale)) * absolute;
  return static_cast<double>(op.scale) * dot;
}

void store(const Tensor& to, const std::vector<double>& from) {
  for (int64_t i = 0; i < to.elements(); ++i) {
    at(to, i / to.shape[2] / to.shape[1], i / to.shape[2] % to.shape[1], i % to.shape[2]) =
        static_cast<float>(from[static_cast<size_t>(i)]);
  }
}

}  // namespace

AttentionTerms exact_attention_varlen(const AttentionVarlen& op) {
  const int64_t heads = op.q.shape[1], width = op.q.shape[2], share = heads / op.k.shape[1];
  AttentionTerms terms;
  terms.out.resize(static_cast<size_t>(op.q.elements()));
  terms.magnitude.resize(terms.out.size());
  terms.score.resize(static_cast<size_t>(op.q.shape[0] * heads));
  terms.log_sum_exp.resize(terms.score.size());
  terms.keys.resize(static_cast<size_t>(op.q.shape[0]));
  std::vector<double> scores;
  for (int64_t s = 0; s + 1 < op.starts.shape[0]; ++s) {
    const int64_t begin = op.starts.as<int32_t>()[s], end = op.starts.as<int32_t>()[s + 1];
    for (int64_t t = begin; t < end; ++t) {
      const SeenKeys seen = seen_keys(op, t, begin, end);
      terms.keys[static_cast<size_t>(t)] = seen.end - seen.first;
      for (int64_t h = 0; h < heads; ++h) {
        scores.clear();
        double largest = -INFINITY;
        double& magnitude = terms.score[static_cast<size_t>(t * heads + h)];
        for (int64_t j = seen.first; j < seen.end; ++j) {
          const double bias = op.bias.present() ? at(op.bias, h, j - t + (op.bias.shape[1] - 1) / 2) : 0.0;
          double absolute = 0;
          double score = plain_score(op, t, h, j, &absolute) + bias;
          if (op.soft_cap > 0) score = activate(Activation::kSoftCap, op.soft_cap, score);
          scores.push_back(score);
          largest = std::max(largest, score);
          magnitude = std::max(magnitude, absolute + std::abs(bias));
        }
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        terms.log_sum_exp[static_cast<size_t>(t * heads + h)] = largest + std::log(sum);
        double* out = terms.out.data() + (t * heads + h) * width;
        double* out_magnitude = terms.magnitude.data() + (t * heads + h) * width;
        for (int64_t j = seen.first; j < seen.end; ++j) {
          const double p = scores[static_cast<size_t>(j - seen.first)] / sum;
          for (int64_t d = 0; d < width; ++d) {
            const double value = at(op.v, j, h / share, d);
            out[d] += p * value;
            out_magnitude[d] += p * std::abs(value);
          }
        }
      }
    }
  }
  return terms;
}

void ReferenceBackend::do_attention_varlen(const AttentionVarlen& op) {
  const AttentionTerms terms = exact_attention_varlen(op);
  store(op.out, terms.out);
  for (int64_t i = 0; i < op.log_sum_exp.elements(); ++i) {
    op.log_sum_exp.as<float>()[i] = static_cast<float>(terms.log_sum_exp[static_cast<size_t>(i)]);
  }
}

AttentionGradients exact_attention_varlen_backward(const AttentionVarlenBackward& op) {
  const int64_t heads = op.q.shape[1], kv_heads = op.k.shape[1], width = op.q.shape[2];
  const auto scale = static_cast<double>(op.scale);
  AttentionGradients result;
  for (auto* gradient : {&result.dq, &result.dk, &result.dv}) {
    const Tensor& like = gradient == &result.dq ? op.q : op.k;
    for (auto* list : {&gradient->value, &gradient->magnitude, &gradient->span}) {
      list->resize(static_cast<size_t>(like.elements()));
    }
  }
  result.score.resize(static_cast<size_t>(op.q.shape[0] * heads));
  const bool is_rounded = op.compute == Compute::kBF16;
  // As an operand of a product that is not the scores'.
  const auto operand = [&](const Tensor& tensor, int64_t t, int64_t h, int64_t d) {
    const float value = at(tensor, t, h, d);
    double rounded = 0;
    round_activations(op.compute, &value, 1, &rounded);
    return rounded;
  };
  const auto add = [](AttentionGradients::Gradient& to, int64_t index, double value, double magnitude,
                      double span) {
    const auto i = static_cast<size_t>(index);
    to.value[i] += value, to.magnitude[i] += magnitude, to.span[i] += span;
  };
  for (int64_t s = 0; s + 1 < op.starts.shape[0]; ++s) {
    const int64_t begin = op.starts.as<int32_t>()[s], end = op.starts.as<int32_t>()[s + 1];
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t group = h / (heads / kv_heads);
      for (int64_t t = begin; t < end; ++t) {
        double delta = 0, delta_size = 0;
        for (int64_t d = 0; d < width; ++d) {
          const double product =
              static_cast<double>(at(op.dout, t, h, d)) * static_cast<double>(at(op.out, t, h, d));
          delta += product;
          delta_size += std::abs(product);
        }
        const SeenKeys seen = seen_keys(op, t, begin, end);
        for (int64_t j = seen.first; j < seen.end; ++j) {
          double size = 0, slope = 1;
          double score = plain_score(op, t, h, j, &size);
          double& largest = result.score[static_cast<size_t>(t * heads + h)];
          largest = std::max(largest, size);
          if (op.soft_cap > 0) {
            score = activate(Activation::kSoftCap, op.soft_cap, score);
            const double share = score / static_cast<double>(op.soft_cap);
            slope = 1 - share * share;
          }
          const double p = std::exp(score - static_cast<double>(at(op.log_sum_exp, t, h)));
          double dp = 0, dp_size = 0;
          for (int64_t d = 0; d < width; ++d) {
            const double product = operand(op.dout, t, h, d) * operand(op.v, j, group, d);
            dp += product;
            dp_size += std::abs(product);
          }
          const double ds = p * (dp - delta) * slope * scale;
          const double ds_span = (dp_size + delta_size) * std::abs(scale);
          for (int64_t d = 0; d < width; ++d) {
            const double q = operand(op.q, t, h, d), k = operand(op.k, j, group, d),
                         dout = operand(op.dout, t, h, d), least = is_rounded ? 1 : 0;
            const int64_t key = (j * kv_heads + group) * width + d;
            add(result.dq, (t * heads + h) * width + d, ds * k, p * ds_span * std::abs(k),
                (ds_span + least) * std::abs(k));
            add(result.dk, key, ds * q, p * ds_span * std::abs(q), (ds_span + least) * std::abs(q));
            add(result.dv, key, p * dout, p * std::abs(dout), std::abs(dout));
          }
        }
      }
    }
  }
  return result;
}

void ReferenceBackend::do_attention_varlen_backward(const AttentionVarlenBackward& op) {
  const AttentionGradients gradients = exact_attention_varlen_backward(op);
  store(op.dq, gradients.dq.value);
  store(op.dk, gradients.dk.value);
  store(op.dv, gradients.dv.value);
}

}  // namespace qiao::reference
