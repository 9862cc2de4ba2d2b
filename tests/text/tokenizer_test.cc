// Hand-made tokenizers: what the options, broken bytes, special tokens and long texts do.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "formats/gguf.h"
#include "support/expect_error.h"
#include "text/byte_alphabet.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/regex.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace qiao {
namespace {

using Ids = std::vector<TokenId>;

void put(GgufMetadata& metadata, std::string key, GgufValue value) {
  metadata.entries.emplace_back("tokenizer.ggml." + std::move(key), std::move(value));
}

// 256 byte tokens, then "he" 256, "ll" 257, "hell" 258, "hello" 259, a control token 260 and a user-defined
// one 261.
GgufMetadata byte_level(const std::string& pre = "gpt-2") {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) {
    std::string spelling;
    tokenization::append_byte_alphabet(std::string(1, static_cast<char>(b)), {}, spelling);
    tokens.push_back(spelling);
  }
  for (const char* token : {"he", "ll", "hell", "hello", "<|im_end|>", "<tool>"}) tokens.emplace_back(token);
  std::vector<int64_t> types(tokens.size(), 1);
  types[260] = 3;
  types[261] = 4;
  GgufMetadata metadata;
  metadata.source = "test.gguf";
  put(metadata, "model", std::string("gpt2"));
  put(metadata, "pre", pre);
  put(metadata, "tokens", GgufArray(tokens));
  put(metadata, "token_type", GgufArray(types));
  put(metadata, "merges", GgufArray(std::vector<std::string>{"h e", "l l", "he ll", "hell o"}));
  put(metadata, "bos_token_id", uint64_t{260});
  put(metadata, "add_bos_token", true);
  return metadata;
}

TEST(Tokenizer, MergesInTheOrderOfRanks) {
  const auto tokenizer = Tokenizer::from_gguf(byte_level());
  EXPECT_EQ(tokenizer->encode("hello"), Ids{259});
  EXPECT_EQ(tokenizer->encode("hell yell"), (Ids{258, ' ', 'y', 'e', 257}));
  EXPECT_EQ(tokenizer->kind(), "byte-level BPE (gpt-2)");
}

// Gemma 3 1B's tokenizer.json has an image token behind the model's last.
TEST(Tokenizer, OnlySpecialTokensMayLieBeyondTheModel) {
  const auto tokenizer = Tokenizer::from_gguf(byte_level());  // 260 is a control token, 261 user-defined
  EXPECT_NO_THROW(tokenizer->require_fit(262, "test"));
  EXPECT_NO_THROW(tokenizer->require_fit(300, "test"));
  EXPECT_QIAO_ERROR(tokenizer->require_fit(261, "test"), kInvalidInput, "test: ", "262 tokens", "only 261");
  const Json json = Json::parse(
      R"({"added_tokens":[{"id":2,"content":"<s>","special":true}],"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}})");
  const auto with_special = Tokenizer::from_json(json, Json(), "test");
  EXPECT_NO_THROW(with_special->require_fit(2, "test"));
  EXPECT_QIAO_ERROR(with_special->require_fit(1, "test"), kInvalidInput, "3 tokens", "only 1");
}

// Expected: what the tokenizers wheel 0.23 gives.
TEST(Tokenizer, AddedTokensAreFoundInTheSpaceThatAnotherTook) {
  const auto tokenizer = Tokenizer::from_json(
      Json::parse(
          R"({"added_tokens":[{"id":4,"content":"\n","rstrip":true,"normalized":false},{"id":5,"content":"\t\t","normalized":false}],"model":{"type":"BPE","vocab":{"a":0,"b":1," ":2,"\t":3},"merges":[]}})"),
      Json(), "test");
  EXPECT_EQ(tokenizer->encode("a\n  b"), (Ids{0, 4, 1}));
  EXPECT_EQ(tokenizer->encode("a\n\n \nb"), (Ids{0, 4, 4, 4, 1}));
  EXPECT_EQ(tokenizer->encode("a\n\t\t \tb"), (Ids{0, 4, 5, 2, 3, 1}));  // " \t" is read twice
}

// An added token whose own rules refuse a place must not be found there by the model.
TEST(Tokenizer, TheModelDoesNotFindAddedTokens) {
  const auto with_model = [](const std::string& model) {
    return Tokenizer::from_json(
        Json::parse(
            R"({"added_tokens":[{"id":3,"content":"ab","special":false,"normalized":false,"single_word":true}],"model":)" +
            model + "}"),
        Json(), "test");
  };
  const auto bpe =
      with_model(R"({"type":"BPE","vocab":{"a":0,"b":1,"c":2},"merges":[],"ignore_merges":true})");
  EXPECT_EQ(bpe->encode("ab"), Ids{3});
  EXPECT_EQ(bpe->encode("abc"), (Ids{0, 1, 2}));
  EXPECT_EQ(bpe->encode("cab"), (Ids{2, 0, 1}));
  const auto unigram = with_model(R"({"type":"Unigram","vocab":[["<unk>",0],["c",-1],["d",-2]],"unk_id":0})");
  EXPECT_EQ(unigram->encode("ab"), Ids{3});
  EXPECT_EQ(unigram->encode("cab"), (Ids{1, 0}));  // "ab" is a run of unknown characters
}

TEST(Tokenizer, SpecialTokensOnlyWhereAsked) {
  const auto tokenizer = Tokenizer::from_gguf(byte_level());
  EXPECT_EQ(tokenizer->encode("a<|im_end|>b"), (Ids{'a', 260, 'b'}));
  const Ids plain = tokenizer->encode("<|im_end|>", {.parse_special = false});
  EXPECT_EQ(plain.size(), 10u);
  EXPECT_EQ(tokenizer->decode(plain), "<|im_end|>");
  // A user-defined token is text that is always one token.
  EXPECT_EQ(tokenizer->encode("<tool>", {.parse_special = false}), Ids{261});
  EXPECT_EQ(tokenizer->encode("a", {.add_special = true}), (Ids{260, 'a'}));
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_TRUE(tokenizer->is_control(260));
  EXPECT_FALSE(tokenizer->is_control(261));
  EXPECT_EQ(tokenizer->end_of_generation(), Ids{260});
  EXPECT_EQ(tokenizer->decode(Ids{'a', 260}), "a");
  EXPECT_EQ(tokenizer->decode(Ids{'a', 260}, false), "a<|im_end|>");
}

TEST(Tokenizer, BrokenBytesKeepTheirValue) {
  const auto tokenizer = Tokenizer::from_gguf(byte_level());
  for (const std::string text :
       {"\xFF", "a\xC3", "\xF0\x9F\x99", "x\x80\x80y\xED\xA0\x80", "\xC0\xAF\xF4\x90\x80\x80"}) {
    const Ids ids = tokenizer->encode(text);
    EXPECT_EQ(ids.size(), text.size());
    EXPECT_EQ(tokenizer->decode(ids), text);
  }
  // Also where the text uses the private characters that could stand for the bytes.
  const std::string text = "\xF3\xB0\x80\x80\xFF";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(Tokenizer, StreamHoldsBackUnfinishedCharacters) {
  const auto tokenizer = Tokenizer::from_gguf(byte_level());
  StreamDecoder stream(*tokenizer);
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push(0x9F), "");
  EXPECT_EQ(stream.push(0x99), "");
  EXPECT_EQ(stream.push(0x82), "\xF0\x9F\x99\x82");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push('a'),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.push(260), "");  // a control token
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Tokenizer, TokenBytes) {
  const auto tokenizer = Tokenizer::from_gguf(byte_level());
  EXPECT_EQ(tokenizer->token_bytes(' '), " ");
  EXPECT_EQ(tokenizer->token_bytes(0xFF), "\xFF");
  EXPECT_EQ(tokenizer->token_bytes(260), "<|im_end|>");
  EXPECT_EQ(tokenizer->token_bytes(-1), "");
  EXPECT_EQ(tokenizer->token_bytes(1 << 20), "");
  EXPECT_EQ(tokenizer->find_token("hello"), std::optional<TokenId>(259));
  EXPECT_EQ(tokenizer->find_token("nothing"), std::nullopt);
}

// A line of one repeated character, in every kind of pre-tokenizer that has a name: no step is quadratic. (A
// quadratic one takes minutes for this.)
TEST(Tokenizer, EveryPreTokenizerIsLinear) {
  const std::vector<std::string> units = {
      "a", "A", " ", "\n", "1", "=", "\xF0\x9F\x99\x82", "\xE7\x9A\x84", "\xFF", "a b", "\xCC\x81"};
  for (const std::string_view name : tokenization::gguf_pre_tokenizer_kinds()) {
    const auto tokenizer = Tokenizer::from_gguf(byte_level(std::string(name)));
    for (const std::string& unit : units) {
      std::string text;
      while (text.size() < 100'000) text += unit;
      const Ids ids = tokenizer->encode(text);
      if (name != "whitespace" && name != "gemma4" && name != "sarvam-moe" &&
          name != "granite-embed-multi-311m") {
        EXPECT_EQ(tokenizer->decode(ids), text) << name << " " << unit;
      }
    }
  }
}

TEST(Tokenizer, OneWordOfAMillionCharacters) {
  const auto tokenizer = Tokenizer::from_gguf(byte_level());
  const std::string text(1'000'000, 'l');
  EXPECT_EQ(tokenizer->encode(text), Ids(500'000, 257));
}

TEST(Tokenizer, TurnEndsAreControlWhateverTheFileSays) {
  GgufMetadata metadata = byte_level();
  for (auto& [key, value] : metadata.entries) {
    if (key == "tokenizer.ggml.token_type") value = GgufArray(std::vector<int64_t>(262, 1));
  }
  const auto tokenizer = Tokenizer::from_gguf(metadata);
  EXPECT_TRUE(tokenizer->is_control(260));
  EXPECT_EQ(tokenizer->encode("<|im_end|>"), Ids{260});
}

TEST(Regex, SpaceIsUnicodeWhiteSpace) {
  const tokenization::Regex regex(R"(\s+)", "test");
  std::vector<tokenization::Match> matches;
  regex.find_all(
      "a\xC2\xA0\xE3\x80\x80"
      "b",
      matches);
  ASSERT_EQ(matches.size(), 1u);
  EXPECT_EQ(matches[0].begin, 1u);
  EXPECT_EQ(matches[0].end, 6u);
  regex.find_all("\xE1\xA0\x8E", matches);  // U+180E is not white space since Unicode 6.3
  EXPECT_TRUE(matches.empty());
}

TEST(Unicode, KnowsVersion16) {
  using tokenization::Category;
  EXPECT_EQ(tokenization::category(0x1C89), Category::kLu);   // Cyrillic capital letter Tje, 16.0
  EXPECT_EQ(tokenization::category(0x31350), Category::kLo);  // CJK extension H, 15.0
  EXPECT_EQ(tokenization::category(0x11F50), Category::kNd);  // Kawi digit zero, 15.0
  EXPECT_EQ(tokenization::category('a'), Category::kLl);
  EXPECT_TRUE(tokenization::is_word('_'));
  EXPECT_FALSE(tokenization::is_word('-'));
}

TEST(Utf8, ReplacesMaximalBrokenParts) {
  using tokenization::utf8_replace_invalid;
  const std::string u = "\xEF\xBF\xBD";
  EXPECT_EQ(utf8_replace_invalid("a\xF0\x9F\x99z"), "a" + u + "z");  // one cut-short character
  EXPECT_EQ(utf8_replace_invalid("\xED\xA0\x80"), u + u + u);        // a surrogate: no prefix is possible
  EXPECT_EQ(utf8_replace_invalid("\xC0\x80\xFF"), u + u + u);
  EXPECT_EQ(tokenization::utf8_unfinished_tail("ab\xE2\x82"), 2u);
  EXPECT_EQ(tokenization::utf8_unfinished_tail("ab\xE2\x82\xAC"), 0u);
  EXPECT_EQ(tokenization::utf8_unfinished_tail("\xFF"), 0u);
}

}  // namespace
}  // namespace qiao
