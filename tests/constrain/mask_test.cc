// Masks against the definition: a token's bit is set where its bytes can be taken.
#include <gtest/gtest.h>

#include <random>

#include "constrain_support.h"

namespace qiao {
namespace {

using constrain::CompiledGrammar;
using constrain::ConstraintState;
using constrain::TokenTable;

// Every byte, and thousands of pieces as vocabularies have them; the last token ends the text.
std::shared_ptr<const TokenTable> make_table() {
  std::vector<std::string> tokens;
  for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
  const char* parts[] = {"\"", "{",    "}",    "[",        "]", ",",   ":",    " ",    "\n", "name", "a",
                         "b",  "1",    "23",   ".",        "-", "e",   "true", "null", "\\", "\\u",  "00e9",
                         "é",  "\xC3", "\xA9", "\xF0\x9F", "x", "yes", "no",   "(",    ")",  "+"};
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    std::string token;
    for (size_t n = 2 + random() % 3; n > 0; --n) token += parts[random() % std::size(parts)];
    tokens.push_back(token);
  }
  tokens.push_back("");       // a control token
  tokens.push_back("<end>");  // the end
  const auto end = static_cast<TokenId>(tokens.size() - 1);
  return std::make_shared<TokenTable>(tokens, std::vector<TokenId>{end});
}

// Walks random tokens that the masks allow, and holds each mask to the definition.
void check_masks(const std::shared_ptr<CompiledGrammar>& grammar, uint32_t seed) {
  static const auto table = make_table();
  std::mt19937 random(seed);
  std::vector<uint32_t> mask(table->words());
  for (int run = 0; run < 4; ++run) {
    ConstraintState state(grammar, table);
    for (int step = 0; step < 25 && !state.ended(); ++step) {
      state.mask(mask);
      std::vector<TokenId> allowed;
      for (TokenId id = 0; id < table->size(); ++id) {
        const bool bit = (mask[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0;
        if (bit) allowed.push_back(id);
        if (table->is_end(id)) {
          ASSERT_EQ(bit, state.can_end());
          continue;
        }
        ConstraintState copy = state;
        ASSERT_EQ(copy.accept_token(id), bit) << "token " << table->bytes_of(id) << " at step " << step;
      }
      ASSERT_FALSE(allowed.empty()) << "nothing may follow at step " << step;
      ASSERT_TRUE(state.accept_token(allowed[random() % allowed.size()]));
    }
    if (state.ended()) {
      state.mask(mask);
      for (const uint32_t word : mask) ASSERT_EQ(word, 0u);
    }
  }
}

TEST(MaskTest, HoldToTheDefinition) {
  const char* schemas[] = {
      R"({"type":"object"})",
      R"({"type":"string"})",
      R"({"type":"string","minLength":2,"maxLength":5})",
      R"({"type":"object","properties":{"name":{"type":"string"},"a":{"type":"number"}},"required":["name"]})",
      R"({"type":"object","properties":{"name":{"type":"string"},"ab":{"enum":["yes","no",1.5]}},"additionalProperties":false})",
      R"({"type":"array","items":{"anyOf":[{"type":"integer"},{"type":"string","pattern":"^[a-z]+$"},{"type":"null"}]}})",
      R"({"type":"string","pattern":"^name.*é"})"};
  uint32_t seed = 1;
  for (const char* schema : schemas) {
    SCOPED_TRACE(schema);
    check_masks(testing::schema_of(schema), seed++);
    check_masks(testing::schema_of(schema, constrain::JsonStyle::generation()), seed++);
  }
}

TEST(MaskTest, HoldToTheDefinitionForGrammars) {
  check_masks(constrain::compile_regex("(name|[a-b]+1?)*( .*)?", "regex"), 1);
  check_masks(constrain::compile_regex("[^\"]*\"(yes|no)", "regex"), 2);
  check_masks(
      constrain::compile_grammar(
          "root ::= item (\",\" item)*\nitem ::= \"(\" root \")\" | [0-9]+ | \"\\\"\" [^\"\\\\]* \"\\\"\"",
          "grammar"),
      3);
  check_masks(constrain::compile_choice({"yes", "yesno", "no"}, "choice"), 4);
}

TEST(MaskTest, OneGrammarServesTwoTokenizers) {
  const auto grammar = constrain::compile_choice({"ab"}, "choice");
  const auto small =
      std::make_shared<TokenTable>(std::vector<std::string>{"a", "b", "ab"}, std::vector<TokenId>{});
  const auto other =
      std::make_shared<TokenTable>(std::vector<std::string>{"x", "ab", "a", "abc"}, std::vector<TokenId>{});
  std::vector<uint32_t> mask(1);
  ConstraintState(grammar, small).mask(mask);
  EXPECT_EQ(mask[0], 0b101u);
  ConstraintState(grammar, other).mask(mask);
  EXPECT_EQ(mask[0], 0b110u);
}

TEST(GrammarCacheTest, DropsTheLeastRecentlyUsed) {
  constrain::GrammarCache cache(2);
  int compiled = 0;
  const auto get = [&](const std::string& source) {
    return cache.get(source, [&] {
      ++compiled;
      return constrain::compile_choice({source}, "choice");
    });
  };
  const auto a = get("a");
  get("b");
  EXPECT_EQ(get("a"), a);
  get("c");  // b goes
  EXPECT_EQ(get("a"), a);
  EXPECT_EQ(compiled, 3);
  get("b");
  EXPECT_EQ(compiled, 4);
}

}  // namespace
}  // namespace qiao
