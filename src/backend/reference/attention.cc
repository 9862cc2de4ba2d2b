// Part of the law (reference_class.h): the key/value cache and attention over it.
#include "backend/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/reference/exact.h"
#include "backend/reference/memory.h"
#include "backend/reference/reference_class.h"
#include "tensor/dequantize.h"
#include "tensor/half.h"

namespace qiao::reference {
namespace {

// KvWrite's rule.
void quantize_q8(const float* x, int64_t count, std::byte* out) {
  for (int64_t begin = 0; begin < count; begin += 32, out += 34) {
    float most = 0.0f;
    for (int64_t i = begin; i < begin + 32; ++i) {
      if (std::isnan(x[i]) || std::isnan(most)) {
        most = NAN;
      } else {
        most = std::max(most, std::abs(x[i]));
      }
    }
    const float wanted = most / 127.0f;
    const uint16_t scale_bits = float_to_f16(wanted > 65504.0f ? 65504.0f : wanted);
    const float scale = f16_to_float(scale_bits);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    std::memcpy(out, &scale_bits, sizeof scale_bits);
    for (int64_t i = 0; i < 32; ++i) {
      const float whole = std::nearbyint(x[begin + i] * inverse);
      const float clamped = whole < 127.0f ? std::max(whole, -127.0f) : 127.0f;
      out[2 + i] = static_cast<std::byte>(static_cast<int8_t>(clamped));
    }
  }
}

// KvWrite's rule.
void quantize_f8(const float* x, int64_t count, std::byte* out) {
  float most = 0.0f;
  bool nan = false;
  for (int64_t i = 0; i < count; ++i) {
    nan = nan || std::isnan(x[i]);
    most = std::max(most, std::abs(x[i]));
  }
  float scale = most < kF8Smallest ? 0.0f : kF8MostScale, inverse = 0.0f;
  while (scale > 0 && most <= kMostE4M3 * (scale / 2)) scale /= 2;
  if (scale > 0) inverse = 1.0f / scale;
  if (nan) scale = inverse = NAN;
  std::memcpy(out, &scale, sizeof scale);
  for (int64_t i = 0; i < count; ++i) {
    out[sizeof scale + static_cast<size_t>(i)] = std::byte{nan ? kNanE4M3 : float_to_e4m3(x[i] * inverse)};
  }
}

// A row of pages as numbers.
void load_row(DType dtype, const std::byte* row, int64_t count, float* out) {
  if (dtype != DType::kF8_E4M3) return dequantize(dtype, row, count, out);
  float scale = 0;
  std::memcpy(&scale, row, sizeof scale);
  const std::byte* const numbers = row + sizeof scale;
  for (int64_t i = 0; i < count; ++i) out[i] = scale * e4m3_to_float(std::to_integer<uint8_t>(numbers[i]));
}

void store_row(DType dtype, const float* x, int64_t count, std::byte* out) {
  if (dtype == DType::kQ8_0) return quantize_q8(x, count, out);
  if (dtype == DType::kF8_E4M3) return quantize_f8(x, count, out);
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t half = dtype == DType::kF16 ? float_to_f16(x[i]) : float_to_bf16(x[i]);
    if (dtype == DType::kF32) {
      std::memcpy(out + i * 4, &x[i], 4);
    } else {
      std::memcpy(out + i * 2, &half, 2);
    }
  }
}

}  // namespace

void ReferenceBackend::do_kv_write(const KvWrite& op) {
  auto& pages = static_cast<ReferencePages&>(*op.pages);
  const KvPagesSpec& spec = pages.spec();
  for (int64_t t = 0; t < op.slots.shape[0]; ++t) {
    const int64_t slot = op.slots.as<int32_t>()[t];
    for (int64_t g = 0; g < spec.kv_heads; ++g) {
      store_row(spec.dtype, &at(op.k, t, g, 0), spec.head_dim, pages.key(slot, g));
      store_row(spec.dtype, &at(op.v, t, g, 0), spec.head_dim, pages.value(slot, g));
    }
  }
}

void ReferenceBackend::do_export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) {
  const auto& own = static_cast<const ReferencePages&>(pages);
  std::memcpy(bytes, own.key(page * own.spec().page_tokens, 0), own.page_bytes());
}

void ReferenceBackend::do_import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) {
  auto& own = static_cast<ReferencePages&>(pages);
  std::memcpy(own.key(page * own.spec().page_tokens, 0), bytes, own.page_bytes());
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
  terms.spread.resize(terms.score.size());
  terms.values.resize(terms.out.size());
  std::vector<double> scores;
  std::vector<float> row(static_cast<size_t>(width));
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
        const int64_t group = h / (heads / spec.kv_heads);
        scores.clear();
        double largest = -INFINITY;
        double& magnitude = terms.score[static_cast<size_t>(t * heads + h)];
        double& spread = terms.spread[static_cast<size_t>(t * heads + h)];
        double most = 0;
        for (int64_t d = 0; d < width; ++d) {
          most = std::max(most,
                          std::abs(static_cast<double>(op.scale) * static_cast<double>(at(op.q, t, h, d))));
        }
        for (int64_t j = first_key; j <= position; ++j) {
          load_row(spec.dtype, pages.key(slot_of(j), group), width, row.data());
          double dot = 0, absolute = 0, key_sum = 0;
          for (int64_t d = 0; d < width; ++d) {
            const auto key = static_cast<double>(row[static_cast<size_t>(d)]);
            const double product = static_cast<double>(at(op.q, t, h, d)) * key;
            key_sum += std::abs(key);
            dot += product;
            absolute += std::abs(product);
          }
          double score = static_cast<double>(op.scale) * dot;
          if (op.soft_cap > 0) score = activate(Activation::kSoftCap, op.soft_cap, score);
          scores.push_back(score);
          largest = std::max(largest, score);
          magnitude = std::max(magnitude, std::abs(static_cast<double>(op.scale)) * absolute);
          spread = std::max(spread, most * key_sum);
        }
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        double* out = terms.out.data() + (t * heads + h) * width;
        double* out_magnitude = terms.magnitude.data() + (t * heads + h) * width;
        double* values = terms.values.data() + (t * heads + h) * width;
        for (int64_t j = first_key; j <= position; ++j) {
          const double p = scores[static_cast<size_t>(j - first_key)] / sum;
          load_row(spec.dtype, pages.value(slot_of(j), group), width, row.data());
          for (int64_t d = 0; d < width; ++d) {
            out[d] += p * static_cast<double>(row[static_cast<size_t>(d)]);
            out_magnitude[d] += p * std::abs(static_cast<double>(row[static_cast<size_t>(d)]));
            values[d] += std::abs(static_cast<double>(row[static_cast<size_t>(d)]));
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
