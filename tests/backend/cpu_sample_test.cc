#include <algorithm>
#include <array>
#include <numeric>

#include "backend/reference/reference_backend.h"
#include "cpu_test_support.h"

namespace qiao::cpu_test {
namespace {

struct Draw {
  int32_t id = -2;
  float log_probability = 0;
  std::vector<int32_t> top_ids;
  std::vector<float> top_log_probabilities;
};

// All rows at once, each with `top` alternatives.
std::vector<Draw> draw(Backend& backend, std::vector<float> logits, std::vector<SampleRow> rows,
                       int64_t top = 0, std::vector<int32_t> mask = {}) {
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t vocabulary = static_cast<int64_t>(logits.size()) / count;
  std::vector<int32_t> ids(rows.size()), top_ids(static_cast<size_t>(count * top));
  std::vector<float> values(rows.size()), top_values(static_cast<size_t>(count * top));
  Sample op;
  op.logits = view(logits, {count, vocabulary});
  op.rows = Tensor(rows.data(), DType::kU8, {count, static_cast<int64_t>(sizeof(SampleRow))});
  op.ids = view(ids, {count});
  op.log_probabilities = view(values, {count});
  if (!mask.empty()) op.mask = view(mask, {count, (vocabulary + 31) / 32});
  if (top > 0) {
    op.top_ids = view(top_ids, {count, top});
    op.top_log_probabilities = view(top_values, {count, top});
  }
  const Workspace workspace(backend, &op);
  backend.sample(op);
  std::vector<Draw> draws;
  for (int64_t s = 0; s < count; ++s) {
    draws.push_back({ids[static_cast<size_t>(s)],
                     values[static_cast<size_t>(s)],
                     {top_ids.begin() + s * top, top_ids.begin() + (s + 1) * top},
                     {top_values.begin() + s * top, top_values.begin() + (s + 1) * top}});
  }
  return draws;
}

// The least kept value lies near 0, where a billion floats are as good as equal.
TEST(CpuSample, MinPOfOneKeepsTheLargestAlone) {
  const auto backend = cpu_with(1);
  SampleRow row;
  row.temperature = 1, row.min_p = 1;
  for (const float largest : {0.0f, 1e-30f, -1e-30f, 3.0f}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      row.seed = seed;
      EXPECT_EQ(draw(*backend, {largest - 1, largest, largest - 2}, {row})[0].id, 1);
    }
  }
}

TEST(CpuSample, GreedyByHand) {
  const auto backend = cpu_with(1);
  // log 1, log 2, log 4, log 4, log 5: sum 16; the largest is the last.
  std::vector<float> logits{0.0f, std::log(2.0f), std::log(4.0f), std::log(4.0f), std::log(5.0f)};
  const Draw all = draw(*backend, logits, {SampleRow{}}, 4)[0];
  EXPECT_EQ(all.id, 4);
  EXPECT_NEAR(all.log_probability, std::log(5.0 / 16.0), 1e-6);
  EXPECT_EQ(all.top_ids, (std::vector<int32_t>{4, 2, 3, 1}));
  EXPECT_NEAR(all.top_log_probabilities[3], std::log(2.0 / 16.0), 1e-6);
  // Masked, the smaller id of equals is left; its log-probability is still of all.
  const Draw masked = draw(*backend, logits, {SampleRow{}}, 0, {0b01111})[0];
  EXPECT_EQ(masked.id, 2);
  EXPECT_NEAR(masked.log_probability, std::log(4.0 / 16.0), 1e-6);
  const Draw none = draw(*backend, logits, {SampleRow{}}, 0, {0})[0];
  EXPECT_EQ(none.id, -1);
  EXPECT_EQ(none.log_probability, -INFINITY);
  EXPECT_EQ(draw(*backend, logits, {SampleRow{.temperature = 1.0f}}, 0, {0})[0].id, -1);
}

TEST(CpuSample, LogProbabilitiesAreAtTheirOwnTemperature) {
  const auto backend = cpu_with(1);
  const std::vector<float> logits{0.0f, std::log(2.0f), std::log(3.0f), std::log(4.0f)};
  SampleRow row;
  row.logprob_temperature = 0.5f;  // squares: 1, 4, 9 and 16 in 30ths
  const Draw greedy = draw(*backend, logits, {row}, 4)[0];
  EXPECT_EQ(greedy.id, 3);
  EXPECT_NEAR(greedy.log_probability, std::log(16.0 / 30), 1e-6);
  EXPECT_EQ(greedy.top_ids, (std::vector<int32_t>{3, 2, 1, 0}));
  EXPECT_NEAR(greedy.top_log_probabilities[1], std::log(9.0 / 30), 1e-6);
  row.temperature = 2;  // whatever draws
  const Draw drawn = draw(*backend, logits, {row})[0];
  EXPECT_NEAR(drawn.log_probability, 2 * logits[static_cast<size_t>(drawn.id)] - std::log(30.0), 1e-6);
}

TEST(CpuSample, PenaltiesAndBiasByHand) {
  const auto backend = cpu_with(1);
  std::vector<float> logits{4.0f, 3.0f, -1.0f, 2.5f};
  std::vector<SampleRow> rows{
      SampleRow{.repetition_penalty = 2.0f, .frequency_penalty = 0.25f, .presence_penalty = 0.5f}};
  // 0: 4 / 2 - 0 (in the prompt only) = 2; 1: 3 / 2 - 0.5 - 0.5 = 0.5; 2: -1 * 2 - 0.75 = -2.75, + 6 = 3.25.
  std::vector<int32_t> ids{0, 1, 2}, counts{0, 2, 1}, offsets{0, 3}, bias_ids{2}, bias_offsets{0, 1}, out{-2};
  std::vector<float> bias{6.0f};
  Sample op;
  op.logits = view(logits, {1, 4});
  op.rows = Tensor(rows.data(), DType::kU8, {1, static_cast<int64_t>(sizeof(SampleRow))});
  op.history_ids = view(ids, {3});
  op.history_counts = view(counts, {3});
  op.history_offsets = view(offsets, {2});
  op.bias_ids = view(bias_ids, {1});
  op.bias_values = view(bias, {1});
  op.bias_offsets = view(bias_offsets, {2});
  op.ids = view(out, {1});
  const Workspace workspace(*backend, &op);
  backend->sample(op);
  EXPECT_EQ(out[0], 2);
  bias[0] = 5.0f;  // 2.25: below 2.5
  backend->sample(op);
  EXPECT_EQ(out[0], 3);
}

// The reference chip draws by sorting everything in float64: nothing in common but the contract.
TEST(CpuSample, DrawsWhatTheReferenceDraws) {
  const auto backend = cpu_with(2);
  const auto reference = make_reference_backend({});
  for (const int64_t vocabulary : {1, 5, 64, 100, 1000, 20011}) {
    std::vector<SampleRow> rows;
    for (int32_t i = 0; i < 48; ++i) {
      SampleRow row;
      row.seed = 0x123456789abcdefull * static_cast<uint64_t>(i + 1);
      row.choice = i % 3;
      row.position = 17 * i;
      row.temperature = i % 8 == 7 ? 0.0f : 0.3f + 0.2f * static_cast<float>(i % 5);
      if (i % 3 == 1) row.top_k = 1 + i * i;
      if (i % 4 >= 2) row.top_p = i % 8 == 2 ? 0.999999f : 0.5f + 0.009f * static_cast<float>(i);
      if (i % 5 == 3) row.min_p = 0.02f * static_cast<float>(1 + i % 7);
      rows.push_back(row);
    }
    std::vector<float> logits;
    std::vector<int32_t> mask;
    for (size_t i = 0; i < rows.size(); ++i) {
      std::vector<float> row = normal_values(vocabulary, static_cast<uint32_t>(i), i % 2 == 0 ? 1.0f : 6.0f);
      if (i % 6 == 5) {
        for (float& value : row) value = std::nearbyint(value);  // many equal ones
      }
      if (i % 7 == 3) row[row.size() / 2] = -std::numeric_limits<float>::infinity();
      logits.insert(logits.end(), row.begin(), row.end());
      for (int64_t word = 0; word < (vocabulary + 31) / 32; ++word) {
        mask.push_back(i % 2 == 0 ? -1 : static_cast<int32_t>(0x9e3779b9u * static_cast<uint32_t>(word + 1)));
      }
    }
    const int64_t top = std::min<int64_t>(vocabulary, 20);
    const auto got = draw(*backend, logits, rows, top, mask);
    const auto expected = draw(*reference, logits, rows, top, mask);
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(got[i].id, expected[i].id) << "V " << vocabulary << " row " << i;
      const float log = expected[i].log_probability;
      if (std::isinf(log)) {
        EXPECT_EQ(got[i].log_probability, log);
      } else {
        EXPECT_NEAR(got[i].log_probability, log, 0x1p-20 + 0x1p-22 * std::abs(static_cast<double>(log)));
      }
      EXPECT_EQ(got[i].top_ids, expected[i].top_ids) << "V " << vocabulary << " row " << i;
    }
  }
}

TEST(CpuSample, FrequenciesFollowTheSoftmax) {
  const auto backend = cpu_with(2);
  const std::vector<float> one{0.0f, std::log(2.0f), std::log(5.0f)};  // 1/8, 2/8, 5/8
  constexpr int kDraws = 8000;
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  for (int i = 0; i < kDraws; ++i) {
    logits.insert(logits.end(), one.begin(), one.end());
    rows.push_back({.seed = 7, .position = i, .temperature = 1.0f});
  }
  std::array<int, 3> seen{};
  for (const Draw& drawn : draw(*backend, logits, rows)) ++seen[static_cast<size_t>(drawn.id)];
  const double deviation = std::sqrt(kDraws * 0.25);  // at most
  EXPECT_NEAR(seen[0], kDraws / 8.0, 4 * deviation);
  EXPECT_NEAR(seen[1], kDraws / 4.0, 4 * deviation);
  EXPECT_NEAR(seen[2], kDraws * 5 / 8.0, 4 * deviation);
}

TEST(CpuSample, NanIsNeverDrawn) {
  const auto backend = cpu_with(1);
  std::vector<float> logits(100, kNan);
  EXPECT_EQ(draw(*backend, logits, {SampleRow{}})[0].id, -1);
  EXPECT_EQ(draw(*backend, logits, {SampleRow{.temperature = 1.0f, .top_p = 0.5f}})[0].id, -1);
  logits[70] = -3.0f;
  EXPECT_EQ(draw(*backend, logits, {SampleRow{}})[0].id, 70);
  EXPECT_EQ(draw(*backend, logits, {SampleRow{.temperature = 1.0f, .top_p = 0.5f}})[0].id, 70);
  EXPECT_EQ(draw(*backend, logits, {SampleRow{.temperature = 1.0f, .top_k = 9}})[0].id, 70);
}

}  // namespace
}  // namespace qiao::cpu_test
