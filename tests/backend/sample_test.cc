#include "backend/ops/sample.h"

#include <cmath>
#include <cstring>

#include "backend/op_test.h"
#include "backend/philox.h"

namespace qiao {
namespace {

// The known answers that Random123 publishes for philox4x32-10 (kat_vectors).
TEST(PhiloxTest, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, std::array<uint32_t, 2>{0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, std::array<uint32_t, 2>{~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                       std::array<uint32_t, 2>{0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
  EXPECT_EQ(philox4x32({1, 2, 3, 4}, uint64_t{0x299f31d0a4093822}),
            philox4x32({1, 2, 3, 4}, std::array<uint32_t, 2>{0xa4093822, 0x299f31d0}));
}

class SampleTest : public ::testing::Test {
 protected:
  SampleTest() {
    set(SampleRow{});
    op_.logits = logits_, op_.rows = rows_, op_.ids = ids_;
  }
  void set(const SampleRow& row) { std::memcpy(rows_.data(), &row, sizeof row); }
  int32_t draw() {
    chip_->sample(op_);
    return ids_.data()[0];
  }
  std::unique_ptr<Backend> chip_ = reference_chip();
  Floats logits_{{1, 4}, {0, std::log(3.0f), std::log(4.0f), std::log(2.0f)}};  // probabilities in tenths
  Bytes rows_{{1, static_cast<int64_t>(sizeof(SampleRow))}};
  Ints ids_{{1}};
  Sample op_;
};

TEST_F(SampleTest, GreedyTakesTheLargestAndOfEqualsTheSmallestId) {
  EXPECT_EQ(draw(), 2);
  logits_.data()[1] = logits_.data()[2];
  EXPECT_EQ(draw(), 1);
}

TEST_F(SampleTest, TheMaskForbids) {
  Ints mask({1, 1}, {0b1001});
  op_.mask = mask;
  EXPECT_EQ(draw(), 3);
  mask.data()[0] = 0;
  EXPECT_EQ(draw(), -1);
}

TEST_F(SampleTest, PenaltiesByHand) {
  Ints ids({2}, {2, 1}), counts({2}, {0, 2}), offsets({2}, {0, 2});
  op_.history_ids = ids, op_.history_counts = counts, op_.history_offsets = offsets;
  SampleRow row;
  row.repetition_penalty = 2;  // both are halved: below log 2
  set(row);
  EXPECT_EQ(draw(), 2) << "log(4) / 2 = log(2) ties with id 3, the smaller id first";
  row.repetition_penalty = 1;
  row.presence_penalty = 3;  // id 1 only: id 2 was never generated
  set(row);
  EXPECT_EQ(draw(), 2);
  counts.data()[0] = 1;
  EXPECT_EQ(draw(), 3);
  row.presence_penalty = 0;
  row.frequency_penalty = 0.3f;  // log 4 - 0.3 = 1.086, log 3 - 0.6 = 0.499
  set(row);
  EXPECT_EQ(draw(), 2);
}

TEST_F(SampleTest, BiasAdds) {
  Ints ids({1}, {0}), offsets({2}, {0, 1});
  Floats values({1}, {5});
  op_.bias_ids = ids, op_.bias_values = values, op_.bias_offsets = offsets;
  EXPECT_EQ(draw(), 0);
  values.data()[0] = -INFINITY;
  EXPECT_EQ(draw(), 2);
}

TEST_F(SampleTest, LogProbabilitiesAreOfTheLogitsAsGiven) {
  Floats log({1}), top_log({1, 2});
  Ints top({1, 2}), mask({1, 1}, {0b0001});
  op_.log_probabilities = log, op_.top_ids = top, op_.top_log_probabilities = top_log, op_.mask = mask;
  EXPECT_EQ(draw(), 0);
  EXPECT_NEAR(log.data()[0], std::log(0.1), 1e-6);
  EXPECT_THAT(top.list(), ::testing::ElementsAre(2, 1));
  EXPECT_NEAR(top_log.data()[0], std::log(0.4), 1e-6);
  EXPECT_NEAR(top_log.data()[1], std::log(0.3), 1e-6);
}

TEST_F(SampleTest, LogProbabilitiesAreAtTheirOwnTemperature) {
  Floats log({1}), top_log({1, 2});
  Ints top({1, 2});
  op_.log_probabilities = log, op_.top_ids = top, op_.top_log_probabilities = top_log;
  SampleRow row;
  row.logprob_temperature = 0.5f;  // probabilities 1, 9, 16 and 4 in 30ths
  set(row);
  EXPECT_EQ(draw(), 2);
  EXPECT_NEAR(log.data()[0], std::log(16.0 / 30), 1e-6);
  EXPECT_THAT(top.list(), ::testing::ElementsAre(2, 1));
  EXPECT_NEAR(top_log.data()[1], std::log(9.0 / 30), 1e-6);
}

TEST_F(SampleTest, TheGumbelOfAKnownWordDecides) {
  // seed 0, position 0, choice 0: words 0x6627e8d5 0xe169c58d 0xbc57ac4c 0x9b00dbd8 (above). With equal
  // logits the largest word wins: id 1.
  for (int i = 0; i < 4; ++i) logits_.data()[i] = 0;
  SampleRow row;
  row.temperature = 1;
  set(row);
  EXPECT_EQ(draw(), 1);
  // Its g is 2.0617, that of id 2 is 1.1812: a logit of 0.88 more is just enough.
  logits_.data()[2] = 0.87f;
  EXPECT_EQ(draw(), 1);
  logits_.data()[2] = 0.89f;
  EXPECT_EQ(draw(), 2);
  row.temperature = 2;  // which halves the lead
  set(row);
  EXPECT_EQ(draw(), 1);
}

TEST_F(SampleTest, DrawsFollowTheProbabilities) {
  int seen[4] = {};
  SampleRow row;
  row.temperature = 1;
  constexpr int kDraws = 20000;
  for (row.position = 0; row.position < kDraws; ++row.position) {
    set(row);
    ++seen[draw()];
  }
  // Five standard deviations of a binomial: 5 * sqrt(20000 * 0.25) = 354 at most.
  const double expected[] = {0.1, 0.3, 0.4, 0.2};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(seen[i], expected[i] * kDraws, 354);
}

TEST_F(SampleTest, CutsByHand) {
  const auto drawn = [&](SampleRow row) {
    std::string ids(4, '-');
    row.temperature = 1;
    for (row.position = 0; row.position < 400; ++row.position) {
      set(row);
      const int32_t id = draw();
      ids[static_cast<size_t>(id)] = static_cast<char>('0' + id);
    }
    return ids;
  };
  SampleRow row;
  EXPECT_EQ(drawn(row), "0123");
  row.top_k = 3;
  EXPECT_EQ(drawn(row), "-123");
  row.top_k = 0, row.top_p = 0.69f;  // 0.4 + 0.3 reach it
  EXPECT_EQ(drawn(row), "-12-");
  row.top_p = 0.0f;
  EXPECT_EQ(drawn(row), "--2-");
  row.top_p = 1, row.min_p = 0.6f;  // at least 0.24
  EXPECT_EQ(drawn(row), "-12-");
  row.min_p = 0, row.top_k = 2, row.top_p = 0.55f;  // of 4/7 and 3/7 the first reaches it
  EXPECT_EQ(drawn(row), "--2-");
}

TEST_F(SampleTest, SeedChoiceAndPositionEachMatter) {
  const auto sequence = [&](SampleRow row) {
    std::string ids;
    row.temperature = 1;
    for (int i = 0; i < 40; ++i, ++row.position) {
      set(row);
      ids += static_cast<char>('0' + draw());
    }
    return ids;
  };
  SampleRow row;
  const std::string plain = sequence(row);
  EXPECT_EQ(sequence(row), plain);
  row.seed = uint64_t{1} << 32;
  EXPECT_NE(sequence(row), plain);
  row.seed = 0, row.choice = 1;
  EXPECT_NE(sequence(row), plain);
  row.choice = 0, row.position = 40;
  EXPECT_NE(sequence(row), plain);
}

TEST_F(SampleTest, Refuses) {
  EXPECT_EQ(refusal(op_), "");
  Sample op = op_;
  op.logits = reshaped(logits_, {4});
  EXPECT_EQ(refusal(op), "sample: logits is F32[4], expected 2 dimensions");
  op = op_, op.logits = op.logits.narrow(1, 0, 0);
  EXPECT_EQ(refusal(op), "sample: logits is F32[1, 0], expected one token or more");
  op = op_, op.rows = reshaped(rows_, {1, 40});
  EXPECT_EQ(refusal(op), fmt::format("sample: rows is U8[1, 40], expected U8[1, {}]", sizeof(SampleRow)));
  op = op_, op.ids = {};
  EXPECT_EQ(refusal(op), "sample: ids is absent, expected I32[1]");
  op = op_, op.ids.data = logits_.data();
  EXPECT_THAT(refusal(op), ::testing::HasSubstr("overlaps"));
  Ints two({1, 2});
  op = op_, op.mask = two;
  EXPECT_EQ(refusal(op), "sample: mask is I32[1, 2], expected I32[1, 1]");
}

TEST_F(SampleTest, RefusesHalfALists) {
  Ints ids({2}), counts({3}), offsets({2});
  Sample op = op_;
  op.history_ids = ids;
  EXPECT_EQ(refusal(op), "sample: history list is not whole: all of its tensors or none");
  op.history_counts = counts, op.history_offsets = offsets;
  EXPECT_EQ(refusal(op), "sample: history is I32[3], expected I32[2]");
  op = op_, op.bias_ids = ids, op.bias_values = counts, op.bias_offsets = offsets;
  EXPECT_EQ(refusal(op), "sample: bias is I32[3], expected F32[2]");
}

TEST_F(SampleTest, RefusesHalfTheTop) {
  Ints top({1, 5});
  Floats log({1, 5});
  Sample op = op_;
  op.top_ids = top;
  EXPECT_EQ(refusal(op), "sample: top_ids and top_log_probabilities: one is absent, expected both or none");
  op.top_log_probabilities = log;
  EXPECT_EQ(refusal(op), "sample: top_ids is I32[1, 5], expected from 1 to 4 of logits F32[1, 4]");
  op = op_, op.log_probabilities = reshaped(log, {5});
  EXPECT_EQ(refusal(op), "sample: log_probabilities is F32[5], expected F32[1]");
}

}  // namespace
}  // namespace qiao
