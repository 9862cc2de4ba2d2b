// Part of the law (reference_class.h): attention without a cache.
#include "backend/ops/attention_varlen.h"

#include <algorithm>
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {

AttentionTerms exact_attention_varlen(const AttentionVarlen& op) {
  const int64_t heads = op.q.shape[1], width = op.q.shape[2], share = heads / op.k.shape[1];
  AttentionTerms terms;
  terms.out.resize(static_cast<size_t>(op.q.elements()));
  terms.magnitude.resize(terms.out.size());
  terms.score.resize(static_cast<size_t>(op.q.shape[0] * heads));
  terms.keys.resize(static_cast<size_t>(op.q.shape[0]));
  std::vector<double> scores;
  for (int64_t s = 0; s + 1 < op.starts.shape[0]; ++s) {
    const int64_t begin = op.starts.as<int32_t>()[s], end = op.starts.as<int32_t>()[s + 1];
    for (int64_t t = begin; t < end; ++t) {
      terms.keys[static_cast<size_t>(t)] = end - begin;
      for (int64_t h = 0; h < heads; ++h) {
        scores.clear();
        double largest = -INFINITY;
        double& magnitude = terms.score[static_cast<size_t>(t * heads + h)];
        for (int64_t j = begin; j < end; ++j) {
          double dot = 0, absolute = 0;
          for (int64_t d = 0; d < width; ++d) {
            const double product =
                static_cast<double>(at(op.q, t, h, d)) * static_cast<double>(at(op.k, j, h / share, d));
            dot += product;
            absolute += std::abs(product);
          }
          const double bias = op.bias.present() ? at(op.bias, h, j - t + (op.bias.shape[1] - 1) / 2) : 0.0;
          scores.push_back(static_cast<double>(op.scale) * dot + bias);
          largest = std::max(largest, scores.back());
          magnitude =
              std::max(magnitude, std::abs(static_cast<double>(op.scale)) * absolute + std::abs(bias));
        }
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        double* out = terms.out.data() + (t * heads + h) * width;
        double* out_magnitude = terms.magnitude.data() + (t * heads + h) * width;
        for (int64_t j = begin; j < end; ++j) {
          const double p = scores[static_cast<size_t>(j - begin)] / sum;
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
  const int64_t heads = op.q.shape[1], width = op.q.shape[2];
  for (int64_t i = 0; i < op.out.elements(); ++i) {
    at(op.out, i / width / heads, i / width % heads, i % width) =
        static_cast<float>(terms.out[static_cast<size_t>(i)]);
  }
}

}  // namespace qiao::reference
