// A GGUF file's tokenizer as tokenizer.json gives the same ids.
#include "text/tokenizer_export.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "support/expect_error.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/tokenizer.h"

namespace qiao {
namespace {

std::filesystem::path golden_tokenizers() {
  return std::filesystem::path(QIAO_TEST_DATA) / "golden" / "tokenizers";
}

const std::vector<std::string> kTexts = {
    "Hello world",
    " Hello  world\n\n\nnew  lines\t\tand tabs ",
    "don't we'll I'M 12345 3.14 x² ½ 100,000",
    "naïve café 你好，世界 こんにちは 안녕 😀👩‍👩‍👧 ",
    "<s>special</s> <|endoftext|><unk>",
    "",
    " ",
    "\n",
    "for (int i = 0; i < 10; ++i) { x[i] += 1; }\r\n",
    "ａｂｃ ﬁ  \u200b\u3000end"};

void expect_same_ids(const GgufMetadata& metadata) {
  const auto ours = Tokenizer::from_gguf(metadata);
  const auto theirs =
      Tokenizer::from_json(tokenizer_json_of(metadata), tokenizer_config_of(metadata, 2048), "exported");
  EXPECT_EQ(theirs->vocabulary_size(), ours->vocabulary_size());
  EXPECT_EQ(theirs->bos(), ours->bos());
  EXPECT_EQ(theirs->eos(), ours->eos());
  EXPECT_EQ(theirs->adds_bos(), ours->adds_bos());
  for (const std::string& text : kTexts) {
    for (const bool special : {false, true}) {
      const std::vector<TokenId> ids = ours->encode(text, {.add_special = special});
      EXPECT_EQ(theirs->encode(text, {.add_special = special}), ids) << text;
      EXPECT_EQ(theirs->decode(ids), ours->decode(ids)) << text;
    }
  }
}

TEST(TokenizerExportTest, SentencePieceKeepsItsIds) {
  for (const char* name : {"sentencepiece_llama.gguf", "sentencepiece_gemma.gguf"}) {
    SCOPED_TRACE(name);
    const std::string bytes = read_file(golden_tokenizers() / name);
    expect_same_ids(parse_gguf(std::as_bytes(std::span(bytes)), name).metadata);
  }
}

// The vocabulary of a tokenizer.json as converters write it, cut by every pre-tokenizer that GGUF files name.
TEST(TokenizerExportTest, ByteLevelKeepsItsIdsWithEveryPreTokenizer) {
  const Json golden = parse_json(read_file(golden_tokenizers() / "llama3.json"), "llama3.json");
  GgufMetadata metadata;
  metadata.source = "llama3.gguf";
  const Json& model = golden["model"];
  std::vector<std::string> tokens(model["vocab"].size() + golden["added_tokens"].size());
  std::vector<int64_t> types(tokens.size(), 1);
  for (const auto& [token, id] : model["vocab"].items()) tokens.at(id.get<size_t>()) = token;
  for (const Json& token : golden["added_tokens"]) {
    tokens.at(token["id"].get<size_t>()) = token["content"].get<std::string>();
    types.at(token["id"].get<size_t>()) = token["special"].get<bool>() ? 3 : 4;
  }
  while (tokens.back().empty()) tokens.pop_back(), types.pop_back();
  std::vector<std::string> merges;
  for (const Json& merge : model["merges"]) {
    merges.push_back(merge.is_string() ? merge.get<std::string>()
                                       : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  int written = 0;
  for (const std::string_view pre : tokenization::gguf_pre_tokenizer_kinds()) {
    SCOPED_TRACE(pre);
    metadata.entries = {{"tokenizer.ggml.model", std::string("gpt2")},
                        {"tokenizer.ggml.pre", std::string(pre)},
                        {"tokenizer.ggml.tokens", GgufArray(tokens)},
                        {"tokenizer.ggml.token_type", GgufArray(types)},
                        {"tokenizer.ggml.merges", GgufArray(merges)}};
    if (pre == "gemma4" || pre == "whitespace" || pre == "afmoe") {
      EXPECT_QIAO_ERROR(tokenizer_json_of(metadata), kUnsupported, "tokenizer.ggml.pre", pre);
      continue;
    }
    expect_same_ids(metadata);
    ++written;
  }
  EXPECT_GT(written, 25);
}

TEST(TokenizerExportTest, RefusesWhatTheFormatCannotSay) {
  const std::string bytes = read_file(golden_tokenizers() / "sentencepiece_unigram.gguf");
  const GgufMetadata metadata = parse_gguf(std::as_bytes(std::span(bytes)), "unigram.gguf").metadata;
  EXPECT_QIAO_ERROR(tokenizer_json_of(metadata), kUnsupported, "tokenizer.ggml.model", "gpt2 and llama");
}

}  // namespace
}  // namespace qiao
