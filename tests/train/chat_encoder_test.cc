// Which tokens of a conversation carry loss, against Transformers' own masks.
#include "train/chat_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "support/expect_error.h"
#include "support/temporary_directory.h"
#include "train/preference.h"

namespace qiao::train {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

fs::path golden_file(const char* name) {
  return fs::path(QIAO_TEST_DATA) / "golden" / "chat_training" / name;
}

std::string without(std::string text, std::string_view part) {
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part))
    text.erase(at, part.size());
  return text;
}

class ChatEncoderTest : public ::testing::Test {
 protected:
  ChatEncoder encoder(const std::string& source) {
    write_file_atomically(folder_.path() / "chat.jinja", source);
    return {*files_, tokenizer_.get(), {folder_.path() / "chat.jinja"}};
  }
  ChatEncoder encoder() { return {*files_, tokenizer_.get(), {}}; }
  // What carries loss, as text.
  std::string learned(const Document& document) {
    std::string text;
    for (size_t i = 0; i < document.tokens.size(); ++i)
      if (document.learned[i]) text += tokenizer_->token_bytes(document.tokens[i]);
    return text;
  }
  std::string learned(const char* row) {
    return learned(encoder().encode(read_conversation(parse_json(row, "row"))));
  }

  testing::TemporaryDirectory folder_;
  std::shared_ptr<ModelFiles> files_ = ModelFiles::open(fs::path(QIAO_TEST_DATA) / "golden" / "chat");
  std::unique_ptr<Tokenizer> tokenizer_ = Tokenizer::from_model(*files_);
};

TEST_F(ChatEncoderTest, MasksAreTransformersWithAndWithoutMarks) {
  const Json golden = parse_json(read_file(golden_file("masks.json")), "masks.json");
  for (const auto& [name, source] : golden["templates"].items()) {
    const std::string marked = source.get<std::string>();
    const ChatEncoder by_marks = encoder(marked);
    const ChatEncoder by_search =
        encoder(without(without(marked, "{% generation %}"), "{% endgeneration %}"));
    for (const Json& expected : golden["cases"]) {
      if (expected["template"] != name) continue;
      Conversation conversation;
      conversation.messages = read_messages(expected["messages"], "messages");
      for (const ChatEncoder* each : {&by_marks, &by_search}) {
        const Document document = each->encode(conversation);
        const auto tokens = expected["tokens"].get<std::vector<int32_t>>();
        std::string text;
        for (size_t i = 0; i < tokens.size(); ++i)
          if (expected["mask"][i] == 1) text += tokenizer_->token_bytes(tokens[i]);
        EXPECT_EQ(document.tokens, tokens) << name;
        EXPECT_EQ(learned(document), text)
            << name << (each == &by_marks ? ", by marks: " : ", by search: ") << expected["messages"];
      }
    }
  }
}

TEST_F(ChatEncoderTest, EveryShapeOfRow) {
  EXPECT_EQ(
      learned(R"({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]})"),
      "A<|im_end|>");
  EXPECT_EQ(learned(R"({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"},
                        {"from": "gpt", "value": "A"}, {"from": "human", "value": "R"}, {"from": "gpt", "value": "B"}]})"),
            "A<|im_end|>B<|im_end|>");
  EXPECT_EQ(learned(R"({"instruction": "Add", "input": "1 2", "output": "3", "history": [["Q", "A"]]})"),
            "A<|im_end|>3<|im_end|>");
  EXPECT_EQ(learned(R"({"prompt": "Q", "completion": "A"})"), "A<|im_end|>");
  EXPECT_EQ(learned(R"({"prompt": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "old"},
                        {"role": "user", "content": "R"}], "completion": [{"role": "assistant", "content": "new"}]})"),
            "new<|im_end|>");
  // OpenAI's weights.
  EXPECT_EQ(
      learned(
          R"({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0},
                        {"role": "user", "content": "R"}, {"role": "assistant", "content": "B", "weight": 1}]})"),
      "B<|im_end|>");
  // Alpaca's input stands in a line of its own.
  const Document alpaca = encoder().encode(
      read_conversation(parse_json(R"({"instruction": "Add", "input": "1", "output": "2"})", "row")));
  EXPECT_EQ(tokenizer_->decode(alpaca.tokens, false),
            "<|im_start|>user\nAdd\n1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n");
}

TEST_F(ChatEncoderTest, CallsOfToolsAreLearntAndTheirResultsAreNot) {
  const std::string rows[] = {
      R"({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c",
          "type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}}]},
          {"role": "tool", "tool_call_id": "c", "content": "RESULT"}, {"role": "assistant", "content": "B"}],
          "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]})",
      R"({"conversations": [{"from": "human", "value": "Q"}, {"from": "function_call",
          "value": "{\"name\": \"add\", \"arguments\": {\"a\": 1}}"}, {"from": "observation", "value": "RESULT"},
          {"from": "gpt", "value": "B"}], "tools": "[{\"name\": \"add\", \"parameters\": {\"type\": \"object\"}}]"})"};
  for (const std::string& row : rows) {
    const std::string text = learned(row.c_str());
    EXPECT_THAT(text, HasSubstr(R"("name": "add")"));
    EXPECT_THAT(text, ::testing::EndsWith("<|im_end|>B<|im_end|>"));
    EXPECT_THAT(text, ::testing::Not(HasSubstr("RESULT")));
    EXPECT_THAT(text, ::testing::Not(HasSubstr("assistant")));
  }
}

TEST_F(ChatEncoderTest, WrongRowsNameTheField) {
  const auto refused = [&](const char* row, const char* message) {
    EXPECT_QIAO_ERROR(learned(row), kInvalidInput, message);
  };
  refused("[]", "\"messages\"");
  refused("{\"foo\": 1}", "\"conversations\"");
  refused(R"({"messages": []})", "messages: a list of one or more messages");
  refused(R"({"messages": [1]})", "messages[0]: an object");
  refused(R"({"messages": [{"role": "bot", "content": "x"}]})", "messages[0].role: \"bot\"");
  refused(R"({"messages": [{"role": "user", "content": 1}]})", "messages[0].content: a string");
  refused(R"({"messages": [{"role": "user", "content": "x"}]})", "no message of the assistant");
  refused(
      R"({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]})",
      "tool_calls[0].function.arguments");
  refused(R"({"conversations": [{"from": "alien", "value": "x"}]})", "conversations[0].from: \"alien\"");
  refused(R"({"instruction": "x", "output": 5})", "output: a string");
  refused(R"({"prompt": "x", "completion": {}})", "completion: a string or a list of messages");
  refused(R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
          "messages[0].content[0]");
  refused(R"({"messages": [{"role": "assistant", "content": "x", "weight": 2}]})", "weight: 0 or 1");
}

TEST_F(ChatEncoderTest, ATemplateThatRefusesSaysWhy) {
  const ChatEncoder strict = encoder(
      "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{%- endif %}"
      "{%- for m in messages %}{{- m['role'] + ': ' + m['content'] + '<|im_end|>' }}{%- endfor %}");
  Conversation conversation;
  conversation.messages = read_messages(
      parse_json(R"([{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}])", "row"),
      "m");
  EXPECT_QIAO_ERROR(strict.encode(conversation), kInvalidInput, "No system role");
}

TEST_F(ChatEncoderTest, WhatTheModelLacksIsSaid) {
  EXPECT_QIAO_ERROR(ChatEncoder(*files_, nullptr, {}), kUnsupported, "tokenizer");
  const fs::path bare = folder_.path() / "bare";
  fs::create_directories(bare);
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"})
    fs::copy(files_->path() / name, bare / name);
  const std::shared_ptr<ModelFiles> files = ModelFiles::open(bare);
  EXPECT_QIAO_ERROR(ChatEncoder(*files, tokenizer_.get(), {}), kUnsupported, "--chat-template FILE");
}

TEST_F(ChatEncoderTest, PairsGiveTwoDocumentsWithOneQuestion) {
  PairDocuments pairs(encoder());
  const auto make = [&](const char* row) { return pairs.make({parse_json(row, "row")}); };
  for (const char* row :
       {R"({"prompt": "Q", "chosen": "A", "rejected": "B"})",
        R"({"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"role": "assistant", "content": "A"}],
            "rejected": [{"role": "assistant", "content": "B"}]})",
        R"({"chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
            "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]})"}) {
    const std::vector<Document> documents = make(row);
    ASSERT_EQ(documents.size(), 2u);
    EXPECT_EQ(learned(documents[0]), "A<|im_end|>");
    EXPECT_EQ(learned(documents[1]), "B<|im_end|>");
    EXPECT_EQ(tokenizer_->decode(documents[1].tokens, false),
              "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n");
  }
  EXPECT_QIAO_ERROR(make(R"({"chosen": "A", "rejected": "B"})"), kInvalidInput, "\"prompt\"");
  EXPECT_QIAO_ERROR(make(R"({"prompt": "Q", "chosen": "A"})"), kInvalidInput, "\"rejected\"");
}

TEST(PreferenceLossTest, ValueAndSlopesArePyTorchs) {
  const Json golden = parse_json(read_file(golden_file("slopes.json")), "slopes.json");
  ASSERT_EQ(golden.size(), 18u);
  for (const Json& expected : golden) {
    PreferenceOptions options;
    options.beta = expected["beta"];
    options.label_smoothing = expected["smoothing"];
    options.loss = expected["loss"];
    const auto values = expected["logprobs"].get<std::vector<double>>();
    const PreferenceLoss loss = preference_loss(options, {values[0], values[1]}, {values[2], values[3]});
    const double value = expected["value"], slope = expected["slopes"][0];
    EXPECT_NEAR(loss.value, value, 1e-12 * std::abs(value)) << expected;
    EXPECT_NEAR(loss.slope, slope, 1e-12 * std::abs(slope)) << expected;
    EXPECT_NEAR(-loss.slope, expected["slopes"][1].get<double>(), 1e-12 * std::abs(slope)) << expected;
  }
}

}  // namespace
}  // namespace qiao::train
