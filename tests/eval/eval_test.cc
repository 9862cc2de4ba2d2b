// Tasks against what Transformers and Python make of the same files (tests/golden/make_eval.py).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/file.h"
#include "eval/encoding.h"
#include "eval/few_shot.h"
#include "eval/python_text.h"
#include "eval/runner.h"
#include "eval/task.h"
#include "infer/engine_harness.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"

namespace qiao::eval {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

fs::path golden_eval() { return fs::path(QIAO_TEST_DATA) / "golden" / "eval"; }

const Json& expected_eval() {
  static const Json json = parse_json(read_file(golden_eval() / "expected.json"), "expected.json");
  return json;
}

std::shared_ptr<LanguageModel> exact_chat_model() {
  LanguageModelOptions options;
  options.device = "cpu";
  options.threads = 1;
  options.decoder.compute = DecoderOptions::Policy::kF32;
  options.adapters = testing::chat_adapters();
  return LanguageModel::load(fs::path(QIAO_TEST_DATA) / "golden" / "chat", options);
}

class EvalTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = exact_chat_model(); }
  static void TearDownTestSuite() { model_.reset(); }

  static EvalOptions options() {
    EvalOptions options;
    options.context = 500;
    options.max_tokens = 12;
    return options;
  }
  Warn warn() {
    return [this](const std::string& line) { warnings_.push_back(line); };
  }
  static EngineOptions engine_wishes(const Task& task, int64_t slots) {
    EngineOptions wishes;
    wishes.slots = slots;
    wishes.context = std::max<int64_t>(2, task.longest());
    wishes.page_tokens = 4;
    wishes.kv_dtype = DType::kF32;
    return wishes;
  }
  static TaskResult run(const Task& task, int64_t slots = 3, const std::string& adapter = {}) {
    Engine engine(model_, engine_wishes(task, slots));
    return run_task(engine, task, adapter, {}, true);
  }
  static double metric(const TaskResult& result, std::string_view name) {
    for (const Metric& one : result.metrics) {
      if (one.name == name) return one.value;
    }
    ADD_FAILURE() << "no metric " << name;
    return 0;
  }
  static int64_t count(const TaskResult& result, std::string_view name) {
    for (const auto& [known, value] : result.counts) {
      if (known == name) return value;
    }
    return -1;
  }
  static void expect_mean(const TaskResult& result, const std::string& name, const Json& mean) {
    for (const Metric& one : result.metrics) {
      if (one.name != name) continue;
      EXPECT_NEAR(one.value, mean[0].get<double>(), 1e-12) << name;
      ASSERT_TRUE(one.standard_error);
      EXPECT_NEAR(*one.standard_error, mean[1].get<double>(), 1e-12) << name;
      return;
    }
    ADD_FAILURE() << "no metric " << name;
  }

  static std::shared_ptr<LanguageModel> model_;
  std::vector<std::string> warnings_;
  testing::TemporaryDirectory folder_;
};

std::shared_ptr<LanguageModel> EvalTest::model_;

TEST_F(EvalTest, TextsAreScoredInTheHarnessesWindows) {
  for (const Json& expected : expected_eval()["texts"]) {
    EvalOptions o = options();
    o.window = expected["seq"];
    o.stride = expected["stride"];
    const TaskResult result = run(*read_text_task(golden_eval() / "texts.jsonl", *model_, o, warn()));
    ASSERT_EQ(result.samples.size(), expected["documents"].size());
    for (size_t i = 0; i < result.samples.size(); ++i) {
      const double sum = expected["documents"][i];
      EXPECT_NEAR(result.samples[i]["log_likelihood"].get<double>(), sum, 2e-5 * std::abs(sum)) << i;
    }
    for (const char* name : {"tokens", "words", "bytes"})
      EXPECT_EQ(count(result, name), expected[name]) << name;
    for (const char* name : {"word_perplexity", "byte_perplexity", "bits_per_byte", "token_perplexity"}) {
      const double value = expected[name];
      EXPECT_NEAR(metric(result, name), value, 5e-4 * value) << name;
    }
  }
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(EvalTest, APlainFileIsOneDocument) {
  const Json row = parse_json(R"({"text": "A bridge carries people.\n"})", "row");
  folder_.write("a.txt", row["text"].get<std::string>());
  folder_.write("a.jsonl", dump_json(row) + "\n");
  const TaskResult plain = run(*read_text_task(folder_.path() / "a.txt", *model_, options(), warn()));
  const TaskResult rows = run(*read_text_task(folder_.path() / "a.jsonl", *model_, options(), warn()));
  EXPECT_EQ(metric(plain, "log_likelihood"), metric(rows, "log_likelihood"));
}

TEST_F(EvalTest, ChoicesAreScoredAsTheHarnessDoes) {
  for (const auto& [name, shots] : {std::pair("choices", 0), std::pair("choices_3_shots", 3)}) {
    EvalOptions o = options();
    o.shots = shots;
    const Json& expected = expected_eval()[name];
    const TaskResult result = run(*read_choice_task(golden_eval() / "choices.jsonl", *model_, o, warn()));
    ASSERT_EQ(result.samples.size(), expected["log_likelihoods"].size());
    for (size_t i = 0; i < result.samples.size(); ++i) {
      const Json& sums = expected["log_likelihoods"][i];
      ASSERT_EQ(result.samples[i]["log_likelihoods"].size(), sums.size());
      for (size_t j = 0; j < sums.size(); ++j)
        EXPECT_NEAR(result.samples[i]["log_likelihoods"][j].get<double>(), sums[j].get<double>(), 1e-3)
            << name << " " << i << " " << j;
    }
    for (const char* metric : {"acc", "acc_norm", "acc_bytes"}) expect_mean(result, metric, expected[metric]);
  }
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(EvalTest, AnswersAreGeneratedAndComparedAsTheHarnessDoes) {
  const Json& expected = expected_eval()["exact"];
  EvalOptions o = options();
  TaskResult result = run(*read_exact_task(golden_eval() / "exact.jsonl", *model_, o, warn()));
  for (size_t i = 0; i < expected["generated"].size(); ++i)
    EXPECT_EQ(result.samples[i]["generated"], expected["generated"][i]) << i;
  expect_mean(result, "exact_match", expected["exact_match"]);
  o.filter.ignore_case = o.filter.ignore_punctuation = true;
  result = run(*read_exact_task(golden_eval() / "exact.jsonl", *model_, o, warn()));
  expect_mean(result, "exact_match", expected["ignoring"]);
}

TEST_F(EvalTest, NoNumberDependsOnHowManyRunAtOnceNorOnTheCache) {
  EvalOptions o = options();
  o.shots = 2;
  const auto task = read_choice_task(golden_eval() / "choices.jsonl", *model_, o, warn());
  const TaskResult alone = run(*task, 1), together = run(*task, 8);
  EngineOptions wishes = engine_wishes(*task, 4);
  wishes.prefix_cache = false;
  Engine uncached(model_, wishes);
  const TaskResult without = run_task(uncached, *task, "", {}, true);
  EXPECT_EQ(Json(alone.samples), Json(together.samples));
  EXPECT_EQ(Json(alone.samples), Json(without.samples));
  EXPECT_LT(alone.computed_tokens, without.computed_tokens * 2 / 3);  // choices share their context
}

TEST_F(EvalTest, AdaptersAreEvaluatedByName) {
  const auto task = read_choice_task(golden_eval() / "choices.jsonl", *model_, options(), warn());
  const TaskResult base = run(*task), one = run(*task, 3, "one");
  EXPECT_EQ(one.adapter, "one");
  EXPECT_EQ(one.samples[0]["adapter"], "one");
  EXPECT_NE(base.samples[0]["log_likelihoods"], one.samples[0]["log_likelihoods"]);
}

TEST_F(EvalTest, AChatIsRenderedByTheTemplate) {
  folder_.write("p.jsonl", R"({"prompt": "Hi", "answer": 7})"
                           "\n");
  folder_.write("m.jsonl", R"({"messages": [{"role": "user", "content": "Hi"}], "answer": ["7"]})"
                           "\n");
  EvalOptions o = options();
  o.chat = true;
  const auto prompt = read_exact_task(folder_.path() / "p.jsonl", *model_, o, warn());
  const auto messages = read_exact_task(folder_.path() / "m.jsonl", *model_, options(), warn());
  const auto rendered = model_->tokenizer().encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(prompt->requests().front().tokens, rendered);
  EXPECT_EQ(messages->requests().front().tokens, rendered);
}

TEST_F(EvalTest, LongContextsLoseTheirBeginning) {
  std::string words;
  for (int i = 0; i < 400; ++i) words += "word ";
  folder_.write("c.jsonl", dump_json({{"question", words}, {"choices", {"a", "b"}}, {"answer", 0}}) + "\n");
  EvalOptions o = options();
  o.context = 50;
  const auto task = read_choice_task(folder_.path() / "c.jsonl", *model_, o, warn());
  EXPECT_EQ(task->longest(), 51);  // the last one is scored, and no input
  EXPECT_EQ(count(run(*task), "truncated_rows"), 1);
  o.max_tokens = 50;
  EXPECT_QIAO_ERROR(read_exact_task(golden_eval() / "exact.jsonl", *model_, o, warn()), kInvalidInput,
                    "--max-tokens 50");
}

TEST_F(EvalTest, BadRowsAreToldCountedAndSkipped) {
  folder_.write("c.jsonl",
                "\n"
                R"({"question": "q", "choices": ["a", "b"], "answer": "B"})"
                "\n{oops\n[1]\n"
                R"({"choices": ["a", "b"], "answer": 0})"
                "\n"
                R"({"question": "q", "choices": ["a"], "answer": 0})"
                "\n"
                R"({"question": "q", "choices": ["a", ""], "answer": 0})"
                "\n"
                R"({"question": "q", "choices": ["a", 3], "answer": 0})"
                "\n"
                R"({"question": "q", "choices": ["a", "b"], "answer": 2})"
                "\n"
                R"({"question": "q", "choices": ["a", "b"], "answer": -1})"
                "\n"
                R"({"question": "q", "choices": ["a", "b"], "answer": true})"
                "\n"
                R"({"question": "q", "choices": ["a", "b"], "answer": 18446744073709551615})"
                "\n"
                R"({"question": 5, "choices": ["a", "b"], "answer": 0})"
                "\n"
                R"({"question": "q", "choices": ["a", "b"]})"
                "\n");
  const TaskResult result = run(*read_choice_task(folder_.path() / "c.jsonl", *model_, options(), warn()));
  EXPECT_EQ(count(result, "rows"), 1);
  EXPECT_EQ(count(result, "bad_rows"), 12);
  EXPECT_FALSE(result.metrics[0].standard_error);
  ASSERT_EQ(warnings_.size(), 12u);
  const std::pair<int, const char*> told[] = {
      {3, "byte"},   {4, "object"},  {5, "question"}, {6, "2 or more"}, {7, "[1] is empty"}, {8, "[1] is 3"},
      {9, "answer"}, {10, "answer"}, {11, "answer"},  {12, "answer"},   {13, "question"},    {14, "answer"}};
  for (size_t i = 0; i < warnings_.size(); ++i) {
    EXPECT_THAT(warnings_[i], HasSubstr("c.jsonl:" + std::to_string(told[i].first) + ": "));
    EXPECT_THAT(warnings_[i], HasSubstr(told[i].second));
  }
}

TEST_F(EvalTest, WhatCannotBeEvaluatedIsRefused) {
  folder_.write("bad.jsonl", "{}\n{}\n");
  folder_.write("blank.jsonl", "\n\n");
  folder_.write("broken.txt", "abc\xff");
  const fs::path bad = folder_.path() / "bad.jsonl";
  EXPECT_QIAO_ERROR(read_choice_task(bad, *model_, options(), warn()), kInvalidInput, "2 are bad");
  EXPECT_QIAO_ERROR(read_exact_task(bad, *model_, options(), warn()), kInvalidInput, "2 are bad");
  EXPECT_QIAO_ERROR(read_text_task(bad, *model_, options(), warn()), kInvalidInput, "no text");
  EXPECT_QIAO_ERROR(read_choice_task(folder_.path() / "blank.jsonl", *model_, options(), warn()),
                    kInvalidInput, "no row");
  EXPECT_QIAO_ERROR(read_text_task(folder_.path() / "broken.txt", *model_, options(), warn()), kInvalidInput,
                    "byte 3");
  EXPECT_QIAO_ERROR(read_text_task(folder_.path() / "none.txt", *model_, options(), warn()), kNotFound,
                    "none.txt");
  EvalOptions o = options();
  o.shots = 8;
  EXPECT_QIAO_ERROR(read_choice_task(golden_eval() / "choices.jsonl", *model_, o, warn()), kInvalidInput,
                    "9 good rows");
  o = options();
  o.window = 501;
  EXPECT_QIAO_ERROR(read_text_task(golden_eval() / "texts.jsonl", *model_, o, warn()), kInvalidInput,
                    "--seq 501");
  o.window = 8;
  o.stride = 9;
  EXPECT_QIAO_ERROR(read_text_task(golden_eval() / "texts.jsonl", *model_, o, warn()), kInvalidInput,
                    "--stride 9");
  EXPECT_QIAO_ERROR(AnswerFilter({.regex = "(a"}), kInvalidInput, "--regex");
}

TEST_F(EvalTest, ARunEndsWhenItIsAskedTo) {
  const auto task = read_exact_task(golden_eval() / "exact.jsonl", *model_, options(), warn());
  Engine engine(model_, engine_wishes(*task, 1));
  EXPECT_QIAO_ERROR(run_task(engine, *task, "", {{}, [] { return true; }}, false), kCancelled, "interrupted");
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.requests, stats.finished + stats.cancelled);  // none goes on
}

TEST(EvalTextTest, WordsAreCountedAsPythonSplitsThem) {
  for (const Json& one : expected_eval()["words"])
    EXPECT_EQ(count_words(one[0].get_ref<const std::string&>()), one[1]) << one[0];
  EXPECT_EQ(count_characters("a你好!"), 4);
  EXPECT_EQ(strip("\u00a0 a b\x1c\n"), "a b");
}

TEST(EvalTextTest, FiltersExtractWhatPythonFinds) {
  for (const Json& one : expected_eval()["filters"]) {
    const AnswerFilter filter({.regex = one[0], .regex_match = one[1]});
    EXPECT_EQ(filter.extract(one[2].get_ref<const std::string&>()), one[3].get_ref<const std::string&>())
        << one;
  }
}

TEST(EvalTextTest, ExamplesAreDrawnAsPythonDrawsThem) {
  for (const Json& one : expected_eval()["samples"]) {
    PythonRandom random(one[0].get<uint64_t>());
    for (const Json& draw : one[1])
      EXPECT_EQ(random.sample(draw[0], draw[1]), draw[2].get<std::vector<size_t>>()) << one[0] << draw;
  }
}

TEST(EvalTextTest, WindowsCoverEachTokenOnce) {
  const std::vector<TokenId> text = {1, 2, 3, 4, 5, 6, 7};
  const std::vector<ScoredTokens> windows = rolling_windows(text, 0, 4, 2);
  ASSERT_EQ(windows.size(), 3u);
  EXPECT_EQ(windows[0].tokens, (std::vector<TokenId>{0, 1, 2, 3, 4}));
  EXPECT_EQ(windows[0].first, 1);
  EXPECT_EQ(windows[1].tokens, (std::vector<TokenId>{2, 3, 4, 5, 6}));
  EXPECT_EQ(windows[1].first, 3);
  EXPECT_EQ(windows[2].tokens, (std::vector<TokenId>{3, 4, 5, 6, 7}));
  EXPECT_EQ(windows[2].first, 4);
  EXPECT_TRUE(rolling_windows({}, 0, 4, 2).empty());
}

}  // namespace
}  // namespace qiao::eval
