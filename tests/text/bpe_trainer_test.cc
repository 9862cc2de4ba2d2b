// The trainer against that of the tokenizers library, and small examples by hand.
#include "text/bpe_trainer.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "support/expect_error.h"

namespace qiao::tokenization {
namespace {

std::filesystem::path golden_bpe() { return std::filesystem::path(QIAO_TEST_DATA) / "golden" / "bpe"; }

WordCounts golden_words(const std::string& pre_tokenizer) {
  WordCounts words(pre_tokenizer);
  const std::string rows = read_file(golden_bpe() / "texts.jsonl");
  for (size_t begin = 0; begin < rows.size();) {
    const size_t end = rows.find('\n', begin);
    words.add(parse_json(rows.substr(begin, end - begin), "row")["text"].get<std::string>());
    begin = end + 1;
  }
  return words;
}

struct GoldenBpe {
  const char* name;
  BpeTrainerOptions options;
};

class BpeTrainerTest : public ::testing::TestWithParam<GoldenBpe> {};

TEST_P(BpeTrainerTest, MakesTheLibrarysTokensAndMerges) {
  const auto& [name, options] = GetParam();
  const TrainedBpe made = train_bpe(golden_words(options.pre_tokenizer), options);
  const Json expected = parse_json(read_file(golden_bpe() / fmt::format("{}.json", name)), name);
  EXPECT_EQ(made.tokens, expected["tokens"].get<std::vector<std::string>>());
  ASSERT_EQ(made.merges.size(), expected["merges"].size());
  for (size_t i = 0; i < made.merges.size(); ++i) {
    const auto& [left, right] = made.merges[i];
    ASSERT_EQ(made.tokens[static_cast<size_t>(left)], expected["merges"][i][0].get<std::string>()) << i;
    ASSERT_EQ(made.tokens[static_cast<size_t>(right)], expected["merges"][i][1].get<std::string>()) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Golden, BpeTrainerTest,
    ::testing::Values(
        GoldenBpe{"gpt2", {.vocabulary_size = 700, .special = {"<|endoftext|>"}, .pre_tokenizer = "gpt2"}},
        GoldenBpe{"llama3", {.vocabulary_size = 800, .special = {"<|begin|>", "<|end|>"}}},
        GoldenBpe{"exhausted", {.vocabulary_size = 60000, .special = {}}}));

// "aaaa" has the pair three times, and two merges of it; then "aa aa" is a pair as common as nothing else.
TEST(BpeTrainer, MergesTheCommonestPairFirst) {
  WordCounts words("gpt2");
  words.add("aaaa");
  words.add("bc");
  words.add("bc");
  const TrainedBpe made = train_bpe(words, {.vocabulary_size = 259, .special = {}, .pre_tokenizer = "gpt2"});
  ASSERT_EQ(made.tokens.size(), 259u);
  EXPECT_EQ(made.tokens[256], "aa");    // 3 of them, as they overlap
  EXPECT_EQ(made.tokens[257], "bc");    // 2
  EXPECT_EQ(made.tokens[258], "aaaa");  // 1
}

TEST(BpeTrainer, RarePairsStayApart) {
  WordCounts words("gpt2");
  words.add("xy xy zw");
  const TrainedBpe made =
      train_bpe(words, {.vocabulary_size = 300, .special = {}, .pre_tokenizer = "gpt2", .min_frequency = 2});
  EXPECT_EQ(made.tokens.back(), "xy");
  EXPECT_EQ(made.tokens.size(), 257u);
}

TEST(BpeTrainer, WrongOptionsNameThemselves) {
  const WordCounts words("gpt2");
  EXPECT_QIAO_ERROR(train_bpe(words, {.vocabulary_size = 256, .special = {"<e>"}}), kInvalidInput,
                    "--vocab-size is 256", "257");
  EXPECT_QIAO_ERROR(train_bpe(words, {.special = {"<e>", "<e>"}}), kInvalidInput, "--special is", "<e>");
  EXPECT_QIAO_ERROR(train_bpe(words, {.special = {""}}), kInvalidInput, "--special is");
  EXPECT_QIAO_ERROR(WordCounts("bert"), kInvalidInput, "--pre-tokenizer is", "gpt2 or llama3");
}

}  // namespace
}  // namespace qiao::tokenization
