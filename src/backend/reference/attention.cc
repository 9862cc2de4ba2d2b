// Part of the law (reference_class.h): the key/value cache and attention over it.
#include "backend/ops/attention.h"

#include <algorithm>
#include <cmath>

#include "backend/reference/exact.h"
#include "backend/reference/memory.h"
#include "backend/reference/reference_class.h"
#include "tensor/half.h"

namespace qiao::reference {
namespace {

float round_to(DType dtype, float value) {
  if (dtype == DType::kF16) return f16_to_float(float_to_f16(value));
  if (dtype == DType::kBF16) return bf16_to_float(float_to_bf16(value));
  return value;
}

}  // namespace

void ReferenceBackend::do_kv_write(const KvWrite& op) {
  auto& pages = static_cast<ReferencePages&>(*op.pages);
  const KvPagesSpec& spec = pages.spec();
  for (int64_t t = 0; t < op.slots.shape[0]; ++t) {
    const int64_t slot = op.slots.as<int32_t>()[t];
    for (int64_t g = 0; g < spec.kv_heads; ++g) {
      for (int64_t d = 0; d < spec.head_dim; ++d) {
        pages.keys(slot)[g * spec.head_dim + d] = round_to(spec.dtype, at(op.k, t, g, d));
        pages.values(slot)[g * spec.head_dim + d] = round_to(spec.dtype, at(op.v, t, g, d));
      }
    }
  }
}

AttentionTerms exact_attention(const AttentionPaged& op) {
  const auto& pages = static_cast<const ReferencePages&>(*op.pages);
  const KvPagesSpec& spec = pages.spec();
  const int64_t heads = op.q.shape[1], width = op.q.shape[2];
  AttentionTerms terms;
  terms.out.resize(static_cast<size_t>(op.q.elements()));
  terms.magnitude.resize(terms.out.size());
  terms.score.resize(static_cast<size_t>(op.q.shape[0] * heads));
  terms.keys.resize(static_cast<size_t>(op.q.shape[0]));
  std::vector<double> scores;
  for (int64_t s = 0; s < op.lengths.shape[0]; ++s) {
    const int64_t first_query = op.query_starts.as<int32_t>()[s];
    const int64_t queries = op.query_starts.as<int32_t>()[s + 1] - first_query;
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t t = first_query + i;
      const int64_t position = op.lengths.as<int32_t>()[s] - queries + i;
      const int64_t first_key = op.window > 0 ? std::max<int64_t>(0, position - op.window + 1) : 0;
      terms.keys[static_cast<size_t>(t)] = position + 1 - first_key;
      const auto slot_of = [&](int64_t j) {
        return int_at(op.page_table, s, j / spec.page_tokens) * spec.page_tokens + j % spec.page_tokens;
      };
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t group = h / (heads / spec.kv_heads) * width;
        scores.clear();
        double largest = -INFINITY;
        double& magnitude = terms.score[static_cast<size_t>(t * heads + h)];
        for (int64_t j = first_key; j <= position; ++j) {
          const float* key = pages.keys(slot_of(j)) + group;
          double dot = 0, absolute = 0;
          for (int64_t d = 0; d < width; ++d) {
            const double product = static_cast<double>(at(op.q, t, h, d)) * static_cast<double>(key[d]);
            dot += product;
            absolute += std::abs(product);
          }
          double score = static_cast<double>(op.scale) * dot;
          if (op.soft_cap > 0) score = activate(Activation::kSoftCap, op.soft_cap, score);
          scores.push_back(score);
          largest = std::max(largest, score);
          magnitude = std::max(magnitude, std::abs(static_cast<double>(op.scale)) * absolute);
        }
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        double* out = terms.out.data() + (t * heads + h) * width;
        double* out_magnitude = terms.magnitude.data() + (t * heads + h) * width;
        for (int64_t j = first_key; j <= position; ++j) {
          const double p = scores[static_cast<size_t>(j - first_key)] / sum;
          const float* value = pages.values(slot_of(j)) + group;
          for (int64_t d = 0; d < width; ++d) {
            out[d] += p * static_cast<double>(value[d]);
            out_magnitude[d] += p * std::abs(static_cast<double>(value[d]));
          }
        }
      }
    }
  }
  return terms;
}

void ReferenceBackend::do_attention_paged(const AttentionPaged& op) {
  const AttentionTerms terms = exact_attention(op);
  const int64_t heads = op.q.shape[1], width = op.q.shape[2];
  for (int64_t i = 0; i < op.out.elements(); ++i) {
    at(op.out, i / width / heads, i / width % heads, i % width) =
        static_cast<float>(terms.out[static_cast<size_t>(i)]);
  }
}

}  // namespace qiao::reference
