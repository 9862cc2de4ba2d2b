// sample of the CUDA chip, where logits leave its short way: more of them alike than are sorted or listed,
// long lists of the largest, rows without a number. The reference sorts everything in float64.
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "backend/op_test.h"

namespace qiao {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Draw {
  std::vector<int32_t> ids, top_ids;
  std::vector<float> logs, top_logs;
};

Draw draw(Backend& chip, std::vector<float>& logits, std::vector<SampleRow>& rows, int64_t top) {
  const auto count = static_cast<int64_t>(rows.size());
  Ints ids({count}), top_ids({count, std::max<int64_t>(top, 1)});
  Floats logs({count}), top_logs({count, std::max<int64_t>(top, 1)});
  Sample op;
  op.logits = Tensor(logits.data(), DType::kF32, {count, static_cast<int64_t>(logits.size()) / count});
  op.rows = Tensor(rows.data(), DType::kU8, {count, static_cast<int64_t>(sizeof(SampleRow))});
  op.ids = ids, op.log_probabilities = logs;
  if (top > 0) op.top_ids = top_ids, op.top_log_probabilities = top_logs;
  const Buffer workspace = chip.allocate(chip.workspace_bytes(op));
  if (workspace.bytes() > 0) {
    std::memset(workspace.data(), 0xff, workspace.bytes());
    op.workspace = Tensor(workspace.data(), DType::kU8, {static_cast<int64_t>(workspace.bytes())});
  }
  chip.sample(op);
  chip.synchronize();
  return {ids.list(), top_ids.list(), logs.list(), top_logs.list()};
}

// Every way to cut, some seeds each, over rows of logit(random).
void expect_reference(int64_t vocabulary, const std::function<float(std::mt19937_64&)>& logit, int64_t top,
                      const std::vector<SampleRow>& cuts, int seeds = 2) {
  const std::unique_ptr<Backend> chip = make_cuda_backend({}), law = reference_chip();
  std::vector<SampleRow> rows;
  for (const SampleRow& cut : cuts) {
    for (int seed = 0; seed < seeds; ++seed) {
      rows.push_back(cut);
      rows.back().seed = 0x9e3779b97f4a7c15ull * static_cast<uint64_t>(seed + 1);
      rows.back().position = seed;
    }
  }
  std::mt19937_64 random(static_cast<uint64_t>(vocabulary));
  std::vector<float> logits(rows.size() * static_cast<size_t>(vocabulary));
  for (float& value : logits) value = logit(random);
  const Draw got = draw(*chip, logits, rows, top), expected = draw(*law, logits, rows, top);
  EXPECT_EQ(got.ids, expected.ids) << "V " << vocabulary;
  EXPECT_EQ(got.top_ids, expected.top_ids) << "V " << vocabulary;
  const auto near = [](const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) {
      if (std::isnan(b[i]) && std::isnan(a[i])) continue;
      const double value = b[i], bound = 0x1p-20 + 0x1p-22 * std::abs(value);
      if (std::isinf(b[i]) ? a[i] != b[i] : !(std::abs(a[i] - value) <= bound)) return false;
    }
    return true;
  };
  EXPECT_TRUE(near(got.logs, expected.logs) && near(got.top_logs, expected.top_logs)) << "V " << vocabulary;
}

std::vector<SampleRow> every_cut(int32_t top_k) {
  const SampleRow plain{.temperature = 1};
  std::vector<SampleRow> rows(9, plain);
  rows[1].top_k = top_k;
  rows[2].top_p = 0.5f;
  rows[3].top_p = 0.999f;
  rows[4].top_k = top_k, rows[4].top_p = 0.7f;
  rows[5].top_k = 5, rows[5].top_p = 0.3f;
  rows[6].min_p = 0.5f, rows[6].top_p = 0.9f;
  rows[7].top_p = 0;
  rows[8].temperature = 0;
  return rows;
}

class CudaSampleTest : public ::testing::Test {
 protected:
  CudaSampleTest() { stand_in::reset(); }
  ~CudaSampleTest() override { EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty()); }
};

// All keys differ in their ids alone.
TEST_F(CudaSampleTest, AllEqual) {
  const auto equal = [](float value) { return [value](std::mt19937_64&) { return value; }; };
  expect_reference(5003, equal(0.0f), 5, every_cut(4500));
  expect_reference(9001, equal(-3.5f), 1100, every_cut(8500), 1);
  expect_reference(2, equal(1.0f), 2, every_cut(1));
}

// All keys begin alike, some go on so.
TEST_F(CudaSampleTest, NearlyEqual) {
  expect_reference(
      5003,
      [](std::mt19937_64& random) { return 100.0f + 1e-3f * std::normal_distribution<float>()(random); }, 20,
      every_cut(5000));
  expect_reference(
      5003, [](std::mt19937_64& random) { return static_cast<float>(random() % 3); }, 5000, every_cut(4500),
      2);
}

TEST_F(CudaSampleTest, AllButOneForbidden) {
  int64_t i = 0;
  expect_reference(
      5003, [&](std::mt19937_64&) { return i++ % 5003 == 4444 ? -2.0f : -INFINITY; }, 20, every_cut(5000), 1);
}

TEST_F(CudaSampleTest, NotNumbersAreNeverDrawn) {
  expect_reference(
      5003,
      [](std::mt19937_64& random) {
        return random() % 2 == 0 ? kNan : std::normal_distribution<float>(0, 3)(random);
      },
      0, every_cut(3000));
  const std::unique_ptr<Backend> chip = make_cuda_backend({});
  std::vector<SampleRow> rows = every_cut(5);
  std::vector<float> logits(rows.size() * 1000, kNan);
  EXPECT_THAT(draw(*chip, logits, rows, 0).ids, ::testing::Each(-1));
}

// As models give them; ends of pieces; what a piece, a digit and a list hold.
TEST_F(CudaSampleTest, OfModels) {
  const auto spread = [](std::mt19937_64& random) { return 3 * std::normal_distribution<float>()(random); };
  for (const int64_t vocabulary : {1, 3, 2048, 2049, 4096, 8193})
    expect_reference(vocabulary, spread, std::min<int64_t>(vocabulary, 20), every_cut(40), 1);
}

TEST_F(CudaSampleTest, OfLargeVocabularies) {
  const auto flat = [](std::mt19937_64& random) { return 0.1f * std::normal_distribution<float>()(random); };
  const std::vector<SampleRow> rows{{.temperature = 1, .top_p = 0.95f},
                                    {.temperature = 0.7f, .top_k = 70000, .top_p = 0.9f}};
  expect_reference(100003, flat, 20, rows, 1);
}

}  // namespace
}  // namespace qiao
