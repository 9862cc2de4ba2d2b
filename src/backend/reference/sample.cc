// Part of the law (reference_class.h): one token a row.
#include "backend/ops/sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/philox.h"
#include "backend/reference/exact.h"
#include "backend/reference/reference_class.h"

namespace qiao::reference {
namespace {

// Steps 1 and 2: each operation rounded to F32.
void adjust(const Sample& op, int64_t row, const SampleRow& how, std::vector<float>* l) {
  if (op.history_ids.present()) {
    const int32_t* offsets = op.history_offsets.as<int32_t>();
    for (int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
      float& value = (*l)[static_cast<size_t>(op.history_ids.as<int32_t>()[i])];
      const int32_t count = op.history_counts.as<int32_t>()[i];
      value = value > 0 ? value / how.repetition_penalty : value * how.repetition_penalty;
      const float frequency = how.frequency_penalty * static_cast<float>(count);
      value -= frequency + (count > 0 ? how.presence_penalty : 0.0f);
    }
  }
  if (op.bias_ids.present()) {
    const int32_t* offsets = op.bias_offsets.as<int32_t>();
    for (int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
      (*l)[static_cast<size_t>(op.bias_ids.as<int32_t>()[i])] += op.bias_values.as<float>()[i];
    }
  }
  if (op.mask.present()) {
    for (size_t id = 0; id < l->size(); ++id) {
      const auto word = static_cast<uint32_t>(int_at(op.mask, row, static_cast<int64_t>(id / 32)));
      if ((word >> (id % 32) & 1) == 0) (*l)[id] = -INFINITY;
    }
  }
}

double gumbel(const SampleRow& how, int32_t id) {
  const std::array<uint32_t, 4> counter = {static_cast<uint32_t>(id) / 4, static_cast<uint32_t>(how.position),
                                           static_cast<uint32_t>(how.choice), 0};
  const uint32_t word = philox4x32(counter, how.seed)[static_cast<size_t>(id % 4)];
  return -std::log(-std::log((static_cast<double>(word) + 0.5) * 0x1p-32));
}

// Step 3's cuts of by_z, which is sorted, with p raised and min_p lowered by `slack`.
size_t cut(const SampleRow& how, double slack, std::vector<SampleTerms::Candidate>* by_z) {
  auto& candidates = *by_z;
  size_t kept = candidates.size();
  if (how.top_k > 0) kept = std::min(kept, static_cast<size_t>(how.top_k));
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    candidates[i].probability =
        std::exp(static_cast<double>(candidates[i].z) - static_cast<double>(candidates[0].z));
    sum += candidates[i].probability;
  }
  for (size_t i = 0; i < kept; ++i) candidates[i].probability /= sum;
  if (how.top_p < 1) {
    double reached = 0;
    size_t count = 0;
    while (count < kept) {
      reached += candidates[count++].probability;
      if (reached >= static_cast<double>(how.top_p) + slack) break;
    }
    kept = count;
  }
  if (how.min_p > 0) {
    const double least = static_cast<double>(how.min_p) * (1 - slack) * candidates[0].probability;
    while (kept > 1 && candidates[kept - 1].probability < least) --kept;
  }
  return kept;
}

}  // namespace

SampleTerms exact_sample(const Sample& op, int64_t row) {
  SampleRow how;
  std::memcpy(&how, op.rows.as<std::byte>() + row * static_cast<int64_t>(sizeof how), sizeof how);
  const float* logits = op.logits.as<float>() + row * op.logits.stride[0];
  SampleTerms terms;
  terms.l.assign(logits, logits + op.logits.shape[1]);

  std::vector<double> scaled;
  for (const float logit : terms.l) scaled.push_back(logit / how.logprob_temperature);
  double largest = -INFINITY, sum = 0;
  for (const double z : scaled) largest = std::max(largest, z);
  for (const double z : scaled) sum += std::exp(z - largest);
  for (const double z : scaled)
    terms.log_softmax.push_back(z == -INFINITY ? -INFINITY : z - largest - std::log(sum));

  adjust(op, row, how, &terms.l);
  for (size_t id = 0; id < terms.l.size(); ++id) {
    if (!(terms.l[id] > -INFINITY)) continue;
    const float z = how.temperature > 0 ? terms.l[id] / how.temperature : terms.l[id];
    terms.by_z.push_back({static_cast<int32_t>(id), z, 0, z});
  }
  if (terms.by_z.empty()) return terms;
  std::stable_sort(terms.by_z.begin(), terms.by_z.end(),
                   [](const auto& a, const auto& b) { return a.z > b.z; });
  if (how.temperature <= 0) {
    terms.kept = terms.kept_least = terms.kept_most = 1;
    terms.id = terms.by_z.front().id;
    return terms;
  }
  terms.kept_least = cut(how, -kSampleSlack, &terms.by_z);
  terms.kept_most = cut(how, kSampleSlack, &terms.by_z);
  terms.kept = cut(how, 0, &terms.by_z);
  const SampleTerms::Candidate* best = nullptr;
  for (size_t i = 0; i < terms.by_z.size(); ++i) {
    SampleTerms::Candidate& candidate = terms.by_z[i];
    candidate.score = static_cast<double>(candidate.z) + gumbel(how, candidate.id);
    if (i < terms.kept && (best == nullptr || candidate.score > best->score)) best = &candidate;
  }
  terms.id = best->id;
  return terms;
}

void ReferenceBackend::do_sample(const Sample& op) {
  const int64_t vocabulary = op.logits.shape[1];
  for (int64_t row = 0; row < op.logits.shape[0]; ++row) {
    const SampleTerms terms = exact_sample(op, row);
    op.ids.as<int32_t>()[row] = terms.id;
    if (op.log_probabilities.present()) {
      const double value = terms.id < 0 ? -INFINITY : terms.log_softmax[static_cast<size_t>(terms.id)];
      op.log_probabilities.as<float>()[row] = static_cast<float>(value);
    }
    if (!op.top_ids.present()) continue;
    std::vector<int32_t> order;
    for (int32_t id = 0; id < vocabulary; ++id) order.push_back(id);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return at(op.logits, row, a) > at(op.logits, row, b); });
    for (int64_t j = 0; j < op.top_ids.shape[1]; ++j) {
      const int32_t id = order[static_cast<size_t>(j)];
      int_at(op.top_ids, row, j) = id;
      at(op.top_log_probabilities, row, j) = static_cast<float>(terms.log_softmax[static_cast<size_t>(id)]);
    }
  }
}

}  // namespace qiao::reference
