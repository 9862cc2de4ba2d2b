// Vocabularies that are broken or built to harm: each gives one line that names the culprit.
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "formats/gguf.h"
#include "support/expect_error.h"
#include "text/charsmap.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/regex.h"
#include "text/tokenizer.h"

namespace qiao {
namespace {

constexpr const char* kGood =
    R"({"added_tokens":[{"id":4,"content":"<s>","special":true}],"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"c":3},"merges":["a b"]}})";

struct JsonCase {
  std::string name;
  std::string pointer;  // what of kGood is replaced (or added)
  std::string value;
  std::vector<std::string_view> parts;
  ErrorKind kind = ErrorKind::kInvalidInput;
};
void PrintTo(const JsonCase& c, std::ostream* out) { *out << c.name; }

class HostileJson : public ::testing::TestWithParam<JsonCase> {};

TEST_P(HostileJson, NamesTheCulprit) {
  const JsonCase& c = GetParam();
  Json json = Json::parse(kGood);
  json[Json::json_pointer(c.pointer)] = Json::parse(c.value);
  bool thrown = false;
  try {
    Tokenizer::from_json(json, Json(), "bad.json")->encode("abc <s>\xFF 123");
  } catch (const Error& e) {
    thrown = true;
    const std::string message = e.what();
    EXPECT_EQ(e.kind(), c.kind) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_NE(message.find("bad.json"), std::string::npos) << message;
    for (const std::string_view part : c.parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  EXPECT_TRUE(thrown);
}

std::string nested(const char* list, int depth) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += std::string("{\"type\":\"Sequence\",\"") + list + "\":[";
  for (int i = 0; i < depth; ++i) text += "]}";
  return text;
}
std::string split(const std::string& regex) {
  return Json{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}}.dump();
}

INSTANTIATE_TEST_SUITE_P(
    All, HostileJson,
    ::testing::Values(
        JsonCase{"model_is_a_list", "/model", "[]", {"model", "an object"}},
        JsonCase{"vocab_is_a_list", "/model/vocab", "[]", {"model.vocab"}},
        JsonCase{"vocab_missing", "/model", R"({"type":"BPE","merges":[]})", {"model.vocab"}},
        JsonCase{"negative_id", "/model/vocab/a", "-1", {"\"a\"", "token id"}},
        JsonCase{"id_is_text", "/model/vocab/a", "\"0\"", {"\"a\"", "token id"}},
        JsonCase{"id_is_a_fraction", "/model/vocab/a", "0.5", {"\"a\""}},
        JsonCase{"id_far_out", "/model/vocab/a", "2000000000", {"2000000000", "does not fit"}},
        JsonCase{"id_beyond_64_bits", "/model/vocab/a", "18446744073709551615", {"\"a\""}},
        JsonCase{"ids_shared", "/model/vocab/b", "0", {"share id 0"}},
        JsonCase{"merges_missing", "/model/merges", "null", {"merges", "array"}},
        JsonCase{"merge_of_unknown_token", "/model/merges/0", "\"a z\"", {"merge 0", "\"z\""}},
        JsonCase{"merge_to_unknown_token", "/model/merges/0", "\"b c\"", {"merge 0", "\"bc\""}},
        JsonCase{"merge_without_space", "/model/merges/0", "\"ab\"", {"merge 0"}},
        JsonCase{"merge_of_three", "/model/merges/0", "[\"a\",\"b\",\"c\"]", {"merge 0"}},
        JsonCase{"merge_is_a_number", "/model/merges/0", "7", {"merge 0"}},
        JsonCase{"unknown_token_unknown", "/model/unk_token", "\"<u>\\n\"", {"unk_token", "\\x0a"}},
        JsonCase{"flag_is_text", "/model/byte_fallback", "\"yes\"", {"byte_fallback", "true or false"}},
        JsonCase{"model_type_unknown", "/model/type", "\"Neural\"", {"Neural"}, ErrorKind::kUnsupported},
        JsonCase{"added_tokens_is_text", "/added_tokens", "\"x\"", {"added_tokens"}},
        JsonCase{"added_token_is_text", "/added_tokens/0", "\"x\"", {"added_tokens"}},
        JsonCase{"added_token_without_content", "/added_tokens/0", R"({"id":4})", {"content"}},
        JsonCase{"added_token_far_out", "/added_tokens/0/id", "999999999", {"999999999"}},
        JsonCase{"added_token_negative", "/added_tokens/0/id", "-5", {"-5"}},
        JsonCase{"added_token_too_long",
                 "/added_tokens/0/content",
                 '"' + std::string(2000, 'x') + '"',
                 {"added token"}},
        JsonCase{"normalizer_unknown",
                 "/normalizer",
                 R"({"type":"Shout"})",
                 {"normalizer", "Shout"},
                 ErrorKind::kUnsupported},
        JsonCase{"normalizer_without_type", "/normalizer", "{}", {"normalizer", "type"}},
        JsonCase{"normalizers_too_deep",
                 "/normalizer",
                 nested("normalizers", 60),
                 {"nested"},
                 ErrorKind::kUnsupported},
        JsonCase{"pre_tokenizers_too_deep",
                 "/pre_tokenizer",
                 nested("pretokenizers", 60),
                 {"nested"},
                 ErrorKind::kUnsupported},
        JsonCase{
            "decoders_too_deep", "/decoder", nested("decoders", 60), {"nested"}, ErrorKind::kUnsupported},
        JsonCase{"processors_too_deep",
                 "/post_processor",
                 nested("processors", 60),
                 {"nested"},
                 ErrorKind::kUnsupported},
        JsonCase{"pre_tokenizer_unknown",
                 "/pre_tokenizer",
                 R"({"type":"Sentences"})",
                 {"Sentences"},
                 ErrorKind::kUnsupported},
        JsonCase{"behavior_unknown",
                 "/pre_tokenizer",
                 R"({"type":"Split","pattern":{"String":"a"},"behavior":"Eaten"})",
                 {"Eaten"}},
        JsonCase{"pattern_is_a_number",
                 "/pre_tokenizer",
                 R"({"type":"Split","pattern":7,"behavior":"Isolated"})",
                 {"pattern"}},
        JsonCase{"regex_malformed", "/pre_tokenizer", split("(a"), {"regular expression"}},
        JsonCase{"regex_class_unfinished", "/pre_tokenizer", split("[a"), {"regular expression"}},
        JsonCase{"regex_too_long",
                 "/pre_tokenizer",
                 split(std::string(100'000, 'a')),
                 {"regular expression"},
                 ErrorKind::kTooLarge},
        JsonCase{"regex_too_deep",
                 "/pre_tokenizer",
                 split(std::string(5000, '(') + std::string(5000, ')')),
                 {"nesting"},
                 ErrorKind::kUnsupported},
        JsonCase{"regex_escape_unknown", "/pre_tokenizer", split("\\y"), {"\\y"}, ErrorKind::kUnsupported},
        JsonCase{"metaspace_of_two",
                 "/pre_tokenizer",
                 R"({"type":"Metaspace","replacement":"ab"})",
                 {"replacement"}},
        JsonCase{"fixed_length_zero", "/pre_tokenizer", R"({"type":"FixedLength","length":0})", {"length"}},
        JsonCase{"decoder_unknown", "/decoder", R"({"type":"CTC2"})", {"CTC2"}, ErrorKind::kUnsupported},
        JsonCase{
            "template_id_out",
            "/post_processor",
            R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x","type_id":0}}],"special_tokens":{"x":{"ids":[99]}}})",
            {"token id"}},
        JsonCase{
            "template_token_missing",
            "/post_processor",
            R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x","type_id":0}}],"special_tokens":{}})",
            {"\"x\""}},
        JsonCase{"template_not_objects",
                 "/post_processor",
                 R"({"type":"TemplateProcessing","single":[1]})",
                 {"single"}},
        JsonCase{"roberta_without_sep",
                 "/post_processor",
                 R"({"type":"RobertaProcessing","cls":["a",0]})",
                 {"sep"}},
        JsonCase{"charsmap_not_base64",
                 "/normalizer",
                 R"({"type":"Precompiled","precompiled_charsmap":"@@@"})",
                 {"base64"}},
        JsonCase{"charsmap_too_short",
                 "/normalizer",
                 R"({"type":"Precompiled","precompiled_charsmap":"AAA="})",
                 {"precompiled_charsmap"}},
        JsonCase{"charsmap_size_out",
                 "/normalizer",
                 R"({"type":"Precompiled","precompiled_charsmap":"/////w=="})",
                 {"precompiled_charsmap"}},
        JsonCase{"unigram_entry_wrong", "/model", R"({"type":"Unigram","vocab":[["a"]]})", {"entry 0"}},
        JsonCase{"unigram_unknown_out",
                 "/model",
                 R"({"type":"Unigram","vocab":[["a",-1]],"unk_id":9})",
                 {"unk_id"}},
        JsonCase{"unigram_without_unknown",
                 "/model",
                 R"({"type":"Unigram","vocab":[["a",-1]]})",
                 {"no unknown token"}},
        JsonCase{"wordpiece_without_unknown",
                 "/model",
                 R"({"type":"WordPiece","vocab":{"a":0}})",
                 {"no unknown token"}},
        JsonCase{"wordpiece_length_negative",
                 "/model",
                 R"({"type":"WordPiece","vocab":{"a":0},"max_input_chars_per_word":-1})",
                 {"max_input"}}),
    [](const auto& info) { return info.param.name; });

GgufMetadata good_gguf(const std::string& model) {
  GgufMetadata metadata;
  metadata.source = "bad.gguf";
  metadata.entries = {{"tokenizer.ggml.model", model},
                      {"tokenizer.ggml.pre", std::string("gpt-2")},
                      {"tokenizer.ggml.tokens", GgufArray(std::vector<std::string>{"a", "b", "ab", "<s>"})},
                      {"tokenizer.ggml.token_type", GgufArray(std::vector<int64_t>{1, 1, 1, 3})},
                      {"tokenizer.ggml.scores", GgufArray(std::vector<double>{0, 0, -1, 0})},
                      {"tokenizer.ggml.merges", GgufArray(std::vector<std::string>{"a b"})}};
  return metadata;
}

GgufMetadata with(const std::string& model, const std::string& key, GgufValue value) {
  GgufMetadata metadata = good_gguf(model);
  for (auto& [name, old] : metadata.entries) {
    if (name == key) {
      old = value;
      return metadata;
    }
  }
  metadata.entries.emplace_back(key, std::move(value));
  return metadata;
}

TEST(HostileGguf, TheGoodOnesAreGood) {
  for (const char* model : {"gpt2", "llama", "t5", "bert"}) {
    const auto tokenizer = Tokenizer::from_gguf(good_gguf(model));
    EXPECT_EQ(tokenizer->vocabulary_size(), 4) << model;
  }
}

TEST(HostileGguf, NamesTheKey) {
  const std::vector<std::string> none;
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(GgufMetadata()), kInvalidInput, "tokenizer.ggml.model");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(good_gguf("rwkv")), kUnsupported, "\"rwkv\"", "known");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(good_gguf("none")), kUnsupported, "no vocabulary");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.pre", std::string("brand-new"))),
                    kUnsupported, "\"brand-new\"", "qwen2", "llama-bpe");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.tokens", GgufArray(none))),
                    kInvalidInput, "tokens");
  EXPECT_QIAO_ERROR(
      Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.tokens", GgufArray(std::vector<int64_t>{1}))),
      kInvalidInput, "tokens");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(
                        with("gpt2", "tokenizer.ggml.tokens", GgufArray(std::vector<std::string>{"\xFF"}))),
                    kInvalidInput, "tokens", "UTF-8");
  EXPECT_QIAO_ERROR(
      Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.token_type", GgufArray(std::vector<int64_t>{1}))),
      kInvalidInput, "token_type", "1 entries for 4");
  EXPECT_QIAO_ERROR(
      Tokenizer::from_gguf(with("llama", "tokenizer.ggml.scores", GgufArray(std::vector<double>{1}))),
      kInvalidInput, "scores", "1 entries for 4");
  EXPECT_QIAO_ERROR(
      Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.merges", GgufArray(std::vector<std::string>{"ab"}))),
      kInvalidInput, "merges", "[0]");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.padding_token_id", int64_t{-2})),
                    kInvalidInput, "padding_token_id");
  EXPECT_EQ(Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.padding_token_id", uint64_t{4}))->pad(),
            std::nullopt);  // published files have it
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.bos_token_id", uint64_t{4})),
                    kInvalidInput, "bos_token_id", "4");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.eos_token_id", int64_t{-2})),
                    kInvalidInput, "eos_token_id");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with("gpt2", "tokenizer.ggml.eot_token_id", uint64_t{1} << 40)),
                    kInvalidInput, "eot_token_id");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with("t5", "tokenizer.ggml.precompiled_charsmap",
                                              GgufArray(std::vector<uint64_t>{255, 255}))),
                    kInvalidInput, "precompiled_charsmap");
  EXPECT_QIAO_ERROR(Tokenizer::from_gguf(with(
                        "t5", "tokenizer.ggml.scores",
                        GgufArray(std::vector<double>{0, 0, std::numeric_limits<double>::quiet_NaN(), 0}))),
                    kInvalidInput, "score of token 2");
}

TEST(HostileGguf, OddVocabulariesStillWork) {
  // Merges of unknown tokens are left out, a NaN score merges last, the same spelling twice is found once.
  auto merges =
      with("gpt2", "tokenizer.ggml.merges", GgufArray(std::vector<std::string>{"q z", "b a", "a b"}));
  EXPECT_EQ(Tokenizer::from_gguf(merges)->encode("ab"), std::vector<TokenId>{2});
  auto twice =
      with("gpt2", "tokenizer.ggml.tokens", GgufArray(std::vector<std::string>{"a", "a", "", "<s>"}));
  EXPECT_EQ(Tokenizer::from_gguf(twice)->encode("a"), std::vector<TokenId>{1});
  auto scores = with("llama", "tokenizer.ggml.scores",
                     GgufArray(std::vector<double>{std::numeric_limits<double>::quiet_NaN(), 0,
                                                   std::numeric_limits<double>::infinity(), 0}));
  EXPECT_FALSE(Tokenizer::from_gguf(scores)->encode("abab").empty());
  auto types = with("gpt2", "tokenizer.ggml.token_type", GgufArray(std::vector<int64_t>{99, -7, 0, 3}));
  EXPECT_EQ(Tokenizer::from_gguf(types)->encode("ab"), std::vector<TokenId>{2});
}

TEST(HostileRegex, CatastrophicBacktrackingEnds) {
  const tokenization::Regex regex("(a+)+$", "test");
  std::vector<tokenization::Match> matches;
  EXPECT_QIAO_ERROR(regex.find_all(std::string(5000, 'a') + "b", matches), kTooLarge, "test",
                    "regular expression");
}

// One way or the other it ends: matches, or the stated limit.
TEST(HostileRegex, DeepRecursionEnds) {
  // As deep as the text is long, once; and from each character of a shorter one.
  for (const auto& [pattern, length] :
       {std::pair("(?:a|b)*c|[ab]+", 200'000), std::pair("(?:a|b)*c|.", 20'000)}) {
    const tokenization::Regex regex(pattern, "test");
    std::vector<tokenization::Match> matches;
    try {
      regex.find_all(std::string(static_cast<size_t>(length), 'a'), matches);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kTooLarge);
    }
  }
}

TEST(HostileCharsmap, PointersOutOfTheTrie) {
  // A trie of one unit whose children lie far outside.
  std::string blob(
      "\x04\0\0\0\0\0\xFF\x0F"
      "x\0",
      10);
  const tokenization::Charsmap charsmap(blob, "test");
  EXPECT_QIAO_ERROR(charsmap.longest("abc"), kInvalidInput, "precompiled_charsmap");
  EXPECT_QIAO_ERROR(tokenization::Charsmap(std::string("\x04\0\0\0\0\0\0\0x", 9), "test"), kInvalidInput,
                    "no end");
  EXPECT_QIAO_ERROR(tokenization::Charsmap(std::string("\x03\0\0\0\0\0\0\0", 8), "test"), kInvalidInput,
                    "trie");
}

}  // namespace
}  // namespace qiao
