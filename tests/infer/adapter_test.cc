// Requests that choose a LoRA adapter: names, the prefix cache, and what neighbours without one see.
// (That company changes no bit is in invariance_test.cc.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "infer/engine_harness.h"

namespace qiao::testing {
namespace {

using ::testing::HasSubstr;

GenerationRequest with_adapter(GenerationRequest request, const std::string& name) {
  request.adapter = name;
  return request;
}

TEST(AdapterTest, EachAdapterAnswersInItsOwnWay) {
  const auto model = load_chat_model(1, "cpu", chat_adapters());
  Engine engine(model, {.context = 160, .slots = 4});
  const GenerationRequest request = greedy(*model, "A bridge carries");
  const Answer base = run(engine, request), one = run(engine, with_adapter(request, "one")),
               two = run(engine, with_adapter(request, "two"));
  EXPECT_NE(base.tokens, one.tokens);
  EXPECT_NE(base.tokens, two.tokens);
  EXPECT_NE(one.tokens, two.tokens);
}

TEST(AdapterTest, RequestsWithoutOneSeeNoneOfThem) {
  const auto plain = load_chat_model(), loaded = load_chat_model(1, "cpu", chat_adapters());
  GenerationRequest request = greedy(*plain, "The sky is blue");
  request.logprobs = true;
  request.top_logprobs = 5;
  Engine alone(plain, {.context = 160, .slots = 1});
  Engine among(loaded, {.context = 160, .slots = 4});
  const Answer expected = run(alone, request);
  Pending one(among, with_adapter(request, "one")), none(among, request),
      two(among, with_adapter(request, "two"));
  const Answer got = none.wait();
  one.wait();
  two.wait();
  ASSERT_EQ(got.tokens, expected.tokens);
  for (size_t i = 0; i < expected.logprobs.size(); ++i) {
    EXPECT_EQ(got.logprobs[i].logprob, expected.logprobs[i].logprob) << i;  // the same bits
    EXPECT_EQ(got.logprobs[i].top, expected.logprobs[i].top) << i;
  }
}

TEST(AdapterTest, CachedPromptsAreOfOneAdapterAlone) {
  const auto model = load_chat_model(1, "cpu", chat_adapters());
  Engine engine(model, {.context = 160, .slots = 2, .page_tokens = 4});
  const GenerationRequest request = greedy(*model, "A bridge carries people over a river.", 4);
  const auto cached = [&](const std::string& adapter, const std::string& tenant = "") {
    GenerationRequest again = with_adapter(request, adapter);
    again.tenant = tenant;
    return run(engine, again).last.cached_tokens;
  };
  EXPECT_EQ(cached(""), 0);
  EXPECT_EQ(cached("one"), 0);
  EXPECT_EQ(cached("two"), 0);
  EXPECT_GT(cached(""), 0);
  EXPECT_GT(cached("one"), 0);
  EXPECT_GT(cached("two"), 0);
  EXPECT_EQ(cached("one", "another"), 0);
  EXPECT_EQ(cached("", "one"), 0);
}

TEST(AdapterTest, AnEmbeddingGoesThroughIt) {
  const auto model = load_chat_model(1, "cpu", chat_adapters());
  Engine engine(model, {.context = 160, .slots = 2});
  GenerationRequest request = greedy(*model, "A bridge");
  request.embedding = true;
  const auto base = run(engine, request).last.embedding,
             one = run(engine, with_adapter(request, "one")).last.embedding;
  ASSERT_EQ(base.size(), one.size());
  EXPECT_NE(base, one);
}

TEST(AdapterTest, AnUnknownNameIsRefused) {
  const auto model = load_chat_model(1, "cpu", chat_adapters());
  Engine engine(model, {.context = 160, .slots = 1});
  try {
    engine.submit(with_adapter(greedy(*model, "A"), "three"), [](const GenerationEvent&) {});
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
    EXPECT_THAT(error.what(), HasSubstr("adapter: \"three\" is not loaded; loaded are: one, two"));
  }
}

TEST(AdapterTest, WrongNamesAreRefusedAtLoading) {
  const std::filesystem::path path = chat_adapters().front().path;
  const auto says = [&](const std::vector<AdapterSource>& adapters) -> std::string {
    try {
      load_chat_model(1, "cpu", adapters);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidInput);
      return error.what();
    }
    return "not refused";
  };
  EXPECT_THAT(says({{"", path}}), HasSubstr("adapter name \"\""));
  EXPECT_THAT(says({{"a\nb", path}}), HasSubstr("without control characters"));
  EXPECT_THAT(says({{std::string(201, 'x'), path}}), HasSubstr("1 to 200 bytes"));
  EXPECT_THAT(says({{"a", path}, {"b", path}, {"a", path}}), HasSubstr("\"a\" is given twice"));
}

}  // namespace
}  // namespace qiao::testing
